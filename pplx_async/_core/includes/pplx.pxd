# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The public C headers, as far as Cython code uses them: declarations only, structs in part."""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t


cdef extern from "pplx_async/pplx_async.h" nogil:
    const char *PPLX_ASYNC_VERSION
    ctypedef bint pplx_bool "bool"

    enum:
        PPLX_DONE
        PPLX_DROVE

    ctypedef enum pplx_status:
        PPLX_OK
        PPLX_AGAIN
        PPLX_NO_MEMORY
        PPLX_CLOSED
        PPLX_PEER_LOST
        PPLX_REGISTRATION
        PPLX_REMOTE_ACCESS
        PPLX_CANCELLED
        PPLX_RAIL_LOST
        PPLX_UNAVAILABLE
        PPLX_INVALID
        PPLX_FLUSHED
        PPLX_POISONED
        PPLX_NATIVE

    enum:
        PPLX_MAX_DOMAINS
        PPLX_MAX_GPUS
        PPLX_MAX_LINKS
        PPLX_ADDRESS_BYTES
        PPLX_MAX_COUNTERS
        PPLX_MAX_RUN
        PPLX_EIGHTHS
        PPLX_NO_COUNTER
        PPLX_OPCODES
        PPLX_LATENCY_BUCKETS
        PPLX_API_ABI
        PPLX_WRITE
        PPLX_READ
        PPLX_ACCESS_LOCAL
        PPLX_ACCESS_REMOTE_READ
        PPLX_ACCESS_REMOTE_WRITE
        PPLX_MEMORY_HOST
        PPLX_MEMORY_CUDA
        PPLX_CAP_READ
        PPLX_CAP_WAIT_FD
        PPLX_CAP_FENCE
        PPLX_CAP_CUDA
        PPLX_CAP_DMABUF
        PPLX_CAP_GPU_FLUSH
        PPLX_NODE_REQUEST
        PPLX_NODE_COUNTER
        PPLX_NODE_MESSAGE
        PPLX_NODE_PEER
        PPLX_NODE_RAIL
        PPLX_NODE_WORD
        PPLX_REQUEST_TRANSFER
        PPLX_REQUEST_SEND
        PPLX_REQUEST_CALL
        PPLX_CALL_MR_OPEN
        PPLX_CALL_MR_CLOSE
        PPLX_CALL_PEER_OPEN
        PPLX_CALL_PEER_CONNECT
        PPLX_CALL_PEER_CLOSE
        PPLX_CALL_PEER_LOST
        PPLX_CALL_COUNTER_CLOSE
        PPLX_CALL_DRAIN
        PPLX_CALL_RAIL_LOST
        PPLX_CALL_WORDS_CLOSE
        PPLX_CELL_ASKS
        PPLX_CELL_ANSWERED
        PPLX_WORD_GATE
        PPLX_WORD_DOORBELL
        PPLX_WORD_WATCH
        PPLX_STEP_WRITE
        PPLX_STEP_WAIT
        PPLX_STEP_WAIT_FLUSH

    const char *PPLX_API_CAPSULE

    ctypedef struct pplx_error:
        pplx_status status
        int32_t provider_error
        char text[256]

    ctypedef struct pplx_option:
        const char *key
        const char *value

    ctypedef struct pplx_device:
        char name[64]
        char provider[64]
        char address[64]
        char description[256]
        uint64_t bits_per_second

    ctypedef struct pplx_memory:
        uint32_t kind
        int32_t device
        uint64_t address
        uint64_t nbytes
        int32_t fd
        uint64_t fd_offset

    ctypedef struct pplx_route:
        uint32_t domain
        uint32_t remote_domain
        uint32_t weight

    ctypedef struct pplx_rail_notice:
        uint32_t link
        uint64_t prefix
        uint8_t arrived[250]
        char why[256]

    ctypedef struct pplx_remote_key:
        uint64_t key
        uint64_t base

    const uint64_t PPLX_NO_KEY

    ctypedef struct pplx_caps:
        uint32_t flags
        uint32_t max_inflight
        uint64_t max_inflight_bytes
        uint64_t max_message
        uint32_t eager_posts
        uint32_t posts_per_turn
        uint32_t max_segments
        uint64_t bits_per_second
        char description[256]
        char subnets[256]

    ctypedef struct pplx_provider:
        const char *name
        pplx_status (*discover)(const pplx_option *, size_t, pplx_device *, size_t, size_t *,
                                pplx_error *) noexcept nogil

    ctypedef struct pplx_engine:
        pass
    ctypedef struct pplx_peer:
        pass

    ctypedef struct pplx_engine_config:
        uint32_t ring_entries
        uint32_t spin_us
        uint32_t poll_interval_us
        uint32_t heartbeat_interval_ms
        uint32_t heartbeat_timeout_ms
        uint32_t again_timeout_ms
        uint64_t shard_nbytes
        uint32_t message_nbytes
        uint32_t message_slots
        int32_t cpu
        uint32_t owner_drives
        uint32_t rail_failover
        const char *libcuda

    ctypedef struct pplx_engine_stats:
        uint64_t turns
        uint64_t sleeps
        uint64_t spin_ns
        uint64_t wakes
        uint64_t requests
        uint64_t overflowed
        uint64_t stray_imms
        uint64_t stray_messages
        uint64_t registrations
        uint64_t register_ns
        uint64_t words

    ctypedef struct pplx_node:
        pplx_node *next
        uint32_t kind

    ctypedef struct pplx_mr:
        pplx_memory memory
        uint32_t access
        uint32_t domains
        void *handles[9]  # PPLX_MAX_DOMAINS
        pplx_remote_key keys[8]
        uint64_t register_ns

    ctypedef struct pplx_remote:
        pplx_peer *peer
        uint64_t nbytes
        uint32_t access
        uint32_t domains
        pplx_remote_key keys[8]

    ctypedef struct pplx_counter:
        pplx_node node
        void *cookie
        uint32_t id
        uint32_t role
        uint64_t owner

    ctypedef struct pplx_segment:
        uint64_t local
        uint64_t remote
        uint64_t nbytes
        uint64_t pages

    ctypedef struct pplx_target:
        pplx_mr *local
        pplx_remote *remote
        pplx_peer *peer
        pplx_segment *segments
        uint32_t nsegments
        uint32_t counter
        uint64_t delivered
        uint64_t posted
        uint64_t total
        int32_t status
        int32_t provider_error
        uint32_t domain
        uint32_t failed
        uint32_t links
        uint64_t most

    ctypedef struct pplx_request:
        pplx_node node
        void *cookie
        uint32_t kind
        uint32_t opcode
        pplx_target *targets
        uint32_t ntargets
        void *subject
        const void *payload
        uint64_t nbytes
        pplx_error error
        uint32_t failed_target

    ctypedef struct pplx_link_address:
        uint8_t bytes[128]
        uint32_t nbytes

    ctypedef struct pplx_peer_config:
        uint32_t domains
        uint32_t heartbeat_counter
        uint32_t credit_counter
        uint32_t credits
        uint64_t token
        uint64_t message_nbytes
        pplx_remote_key landing[8]
        pplx_link_address links[8]

    ctypedef struct pplx_link_stats:
        uint64_t posted[5]
        uint64_t completed[5]
        uint64_t failed[5]
        uint64_t nbytes[5]
        uint64_t again
        uint64_t inflight
        uint64_t inflight_nbytes
        uint64_t latency[5][64]
        uint32_t domain
        uint32_t remote_domain

    ctypedef struct pplx_message:
        pplx_node node
        pplx_peer *peer
        const uint8_t *data
        uint64_t nbytes

    ctypedef struct pplx_cell:
        uint32_t state
        uint32_t gone
        uint64_t watched

    ctypedef struct pplx_lane:
        uint32_t poisons
        uint32_t healed

    ctypedef struct pplx_word:
        pplx_node node
        void *cookie
        uint32_t kind
        uint32_t repeats
        uint32_t poisons
        int32_t end_status
        pplx_cell *cell
        pplx_lane *lane
        pplx_counter *counter
        uint64_t eighths
        pplx_request *request
        uint64_t notify_at
        uint32_t spent
        uint32_t gpu
        int32_t native
        uint32_t turn

    ctypedef struct pplx_step:
        uint32_t kind
        uint32_t value
        uint64_t least
        uint64_t address

    ctypedef struct pplx_stream_identity:
        uint64_t context
        uint64_t id
        pplx_bool capturing

    ctypedef struct pplx_pinned:
        uint64_t address
        uint64_t context

    ctypedef struct pplx_gpu_told:
        int32_t ordinal
        uint32_t ordered
        uint32_t by_wait
        uint32_t by_call

    ctypedef struct pplx_api:
        size_t size
        uint32_t abi
        const char *(*status_name)(int) noexcept nogil
        const char *(*status_text)(int) noexcept nogil
        const pplx_provider *(*provider_builtin)(const char *) noexcept nogil
        pplx_status (*provider_load)(const char *, const pplx_provider **, pplx_error *) noexcept nogil
        pplx_status (*engine_open)(const pplx_engine_config *, pplx_engine **, pplx_error *) noexcept nogil
        pplx_status (*engine_add_domain)(pplx_engine *, const pplx_provider *, const char *,
                                         const pplx_option *, size_t, pplx_error *) noexcept nogil
        pplx_status (*engine_start)(pplx_engine *, pplx_error *) noexcept nogil
        void (*engine_stop)(pplx_engine *) noexcept nogil
        void (*engine_close)(pplx_engine *) noexcept nogil
        size_t (*engine_domains)(const pplx_engine *) noexcept nogil
        void (*engine_caps)(const pplx_engine *, size_t, pplx_caps *) noexcept nogil
        void (*engine_landing)(const pplx_engine *, size_t, pplx_remote_key *) noexcept nogil
        int (*engine_fd)(const pplx_engine *) noexcept nogil
        void (*clear)(pplx_engine *) noexcept nogil
        pplx_node *(*reap)(pplx_engine *) noexcept nogil
        pplx_bool (*arm)(pplx_engine *) noexcept nogil
        void (*engine_read_stats)(const pplx_engine *, pplx_engine_stats *) noexcept nogil
        pplx_status (*counter_open)(pplx_engine *, pplx_counter *) noexcept nogil
        uint64_t (*counter_value)(const pplx_counter *) noexcept nogil
        pplx_bool (*counter_notify)(pplx_counter *, uint64_t) noexcept nogil
        void (*counter_reaped)(pplx_counter *) noexcept nogil
        void (*counter_recycle)(pplx_engine *, uint32_t) noexcept nogil
        void (*submit)(pplx_engine *, pplx_request *) noexcept nogil
        pplx_bool (*cancel)(pplx_engine *, pplx_request *) noexcept nogil
        pplx_bool (*request_reaped)(pplx_request *) noexcept nogil
        pplx_peer *(*peer_new)(pplx_engine *, void *, uint32_t, const pplx_route *, uint32_t) noexcept nogil
        uint64_t (*peer_max_message)(const pplx_peer *) noexcept nogil
        void (*peer_free)(pplx_peer *) noexcept nogil
        size_t (*peer_links)(const pplx_peer *) noexcept nogil
        void (*peer_address)(const pplx_peer *, size_t, pplx_link_address *) noexcept nogil
        uint32_t (*peer_heartbeat_counter)(const pplx_peer *) noexcept nogil
        uint32_t (*peer_credit_counter)(const pplx_peer *) noexcept nogil
        bint (*reaches)(const pplx_mr *, const pplx_peer *) noexcept nogil
        uint64_t (*peer_token)(const pplx_peer *) noexcept nogil
        void (*peer_configure)(pplx_peer *, const pplx_peer_config *) noexcept nogil
        void *(*peer_cookie)(const pplx_peer *) noexcept nogil
        void (*peer_reason)(const pplx_peer *, pplx_error *) noexcept nogil
        void (*link_read_stats)(const pplx_peer *, size_t, pplx_link_stats *) noexcept nogil
        void (*message_release)(pplx_engine *, pplx_message *) noexcept nogil
        pplx_peer *(*node_peer)(pplx_node *) noexcept nogil
        uint32_t (*submit_here)(pplx_engine *, pplx_request *) noexcept nogil
        uint32_t (*submit_spinning)(pplx_engine *, pplx_request *) noexcept nogil
        void (*submit_there)(pplx_engine *, pplx_request *) noexcept nogil
        int (*engine_wait_fd)(const pplx_engine *, size_t) noexcept nogil
        uint32_t (*drive)(pplx_engine *) noexcept nogil
        void (*listens)(pplx_engine *, pplx_bool) noexcept nogil
        uint32_t (*spin)(pplx_engine *, uint32_t) noexcept nogil
        void (*spin_end)(pplx_engine *) noexcept nogil
        uint32_t (*watch)(pplx_engine *, uint32_t) noexcept nogil
        uint32_t (*peer_lost_domain)(const pplx_peer *) noexcept nogil
        pplx_peer *(*node_rail)(pplx_node *, uint32_t *) noexcept nogil
        void (*link_reason)(const pplx_peer *, size_t, pplx_error *) noexcept nogil
        void (*link_notice)(const pplx_peer *, size_t, pplx_rail_notice *) noexcept nogil
        uint64_t (*counter_gated)(const pplx_counter *) noexcept nogil
        void (*word_arm)(pplx_engine *, pplx_word *) noexcept nogil
        void (*word_end)(pplx_engine *, pplx_word *) noexcept nogil
        void (*word_close)(pplx_engine *, pplx_word *) noexcept nogil
        void (*word_let_go)(pplx_cell *) noexcept nogil
        uint64_t (*cell_value)(const pplx_cell *) noexcept nogil
        pplx_bool (*cell_aborted)(const pplx_cell *) noexcept nogil
        pplx_bool (*word_reaped)(pplx_word *) noexcept nogil
        pplx_bool (*word_notify)(pplx_word *, uint64_t) noexcept nogil
        uint64_t (*word_count)(const pplx_word *) noexcept nogil
        uint64_t (*word_posted)(const pplx_word *) noexcept nogil
        int32_t (*word_take_status)(pplx_word *) noexcept nogil
        uint32_t (*lane_poisons)(const pplx_lane *) noexcept nogil
        pplx_bool (*lane_poisoned)(const pplx_lane *) noexcept nogil
        void (*lane_heal)(pplx_lane *) noexcept nogil
        pplx_bool (*step_run)(const pplx_step *, uint32_t) noexcept nogil
        pplx_status (*cuda_pin)(const char *, uint64_t, void *, size_t, pplx_pinned *, pplx_error *) noexcept nogil
        void (*cuda_unpin)(const char *, void *, const pplx_pinned *) noexcept nogil
        size_t (*engine_gpus)(const pplx_engine *, pplx_gpu_told *, size_t) noexcept nogil
        uint32_t (*cell_take)(pplx_cell *) noexcept nogil
        pplx_status (*cuda_queue)(const char *, uint64_t, const pplx_step *, size_t, pplx_word *,
                                  pplx_error *) noexcept nogil
        void (*word_undo)(pplx_word *) noexcept nogil
        void (*word_hold)(pplx_word *) noexcept nogil
        pplx_status (*cuda_identify)(const char *, uint64_t, pplx_stream_identity *, pplx_error *) noexcept nogil

    const pplx_api *pplx_core_api()
