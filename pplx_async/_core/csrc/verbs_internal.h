/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the files of the verbs provider share. provider_verbs.c tells how they work together. */
#ifndef PPLX_ASYNC_VERBS_INTERNAL_H
#define PPLX_ASYNC_VERBS_INTERNAL_H

#include <stdbool.h>

#include <infiniband/verbs.h>

#include "aside.h"
#include "cuda_driver.h"
#include "dynload.h"
#include "pplx_async/provider.h"

enum {
    VERBS_BATCH = 32,        /* work requests chained, and completions read, at a time */
    VERBS_MAX_INFLIGHT = 256, /* work requests of one queue: our own cap */
    VERBS_RING = 512,        /* places of a queue: a power of two above that, and what is reserved */
    VERBS_CONTROLS = 8,      /* of these for messages of our own */
    VERBS_MAX_ENDPOINTS = 1 << 15,
    VERBS_NAMES = 2 * VERBS_MAX_ENDPOINTS, /* of queues */
    VERBS_BUCKETS = 1 << 10, /* of the table from QP numbers to queues */
    VERBS_MAX_GIDS = 4,
    VERBS_GID_ENTRIES = 1 << 8, /* of a port's table that a queue pair can name */
    VERBS_MAX_WAITING = 8 /* messages of a peer that nobody has posted a RECV for */
};

/* The options, as domain_open() and discover() get them. -1: by rule. */
typedef struct verbs_options {
    const char *library;
    const char *libcuda;
    const char *node; /* the address that the engine listens on */
    int port, gid_index, pkey_index;
    int traffic_class, service_level;
    int timeout, retry_count; /* as in ibv_qp_attr */
    uint32_t message_nbytes;  /* of the largest message */
    bool relaxed_ordering;
} verbs_options;

/* A GID that peers may know us by. */
typedef struct verbs_gid {
    union ibv_gid gid;
    int index;
    int rank; /* the higher, the better */
} verbs_gid;

/* What was chosen of a device. */
typedef struct verbs_port {
    uint8_t number;
    bool ethernet; /* RoCE; else InfiniBand */
    bool grh;      /* it takes no packet without a global route, whoever sends it */
    struct ibv_port_attr attr;
    uint16_t pkey, pkey_index;
    uint32_t ngids;
    verbs_gid gids[VERBS_MAX_GIDS]; /* best first */
    bool at_node;                   /* the first of them is the address that the engine listens on */
    uint64_t bits_per_second;
} verbs_port;

/* An endpoint's address, as it travels: verbs_address.c. */
typedef struct verbs_address {
    bool ethernet, grh;
    uint8_t mtu;        /* enum ibv_mtu */
    uint8_t read_depth; /* READs that it answers at a time */
    uint16_t lid, pkey;
    uint32_t qpn[2], psn[2];
    uint32_t message_nbytes;
    uint32_t ngids;
    union ibv_gid gids[VERBS_MAX_GIDS];
} verbs_address;

typedef struct verbs_endpoint verbs_endpoint;
typedef struct verbs_domain verbs_domain;

/* Of an allocation of a GPU: for regions that no peer may reach. */
typedef struct verbs_shared {
    cuda_shared shared;
    struct ibv_mr *mr;
} verbs_shared;

typedef struct verbs_mr {
    struct ibv_mr *mr;
    verbs_shared *shared; /* NULL: `mr` is its own */
    uint64_t address, nbytes;
    uint64_t most; /* of that, in one work request */
    uint32_t lkey;
    uint32_t send_flags; /* IBV_SEND_INLINE: the CPU may read it */
    verbs_domain *domain;
} verbs_mr;

/* What lies in pplx_op.scratch from post to completion: the work request, in case it has to be posted again. Its
 * memory stays registered until then. */
typedef struct __attribute__((may_alias)) verbs_op {
    uint64_t local_address, nbytes;
    const verbs_mr *mr;
    union {
        uint64_t remote_address;
        struct verbs_op *next; /* RECV: posted after it */
    };
    uint64_t remote_key;
    uint8_t opcode, flags;
    uint16_t nsegments; /* 0 */
    uint32_t imm;
} verbs_op;

_Static_assert(sizeof(verbs_op) <= sizeof(((pplx_op *)0)->scratch), "verbs_op must fit in pplx_op.scratch");
_Static_assert(offsetof(pplx_op, scratch) == 0, "an op is found from its scratch");

/* A work request has the same fields in a row, so they are copied as a whole, and filled in from either. */
#define VERBS_SAME_FIELD(a, b) (offsetof(pplx_work_request, a) == offsetof(verbs_op, b) + sizeof(pplx_op *))
_Static_assert(VERBS_SAME_FIELD(local_address, local_address) && VERBS_SAME_FIELD(nbytes, nbytes) &&
                   VERBS_SAME_FIELD(local_mr, mr) && VERBS_SAME_FIELD(remote_address, remote_address) &&
                   VERBS_SAME_FIELD(remote_key, remote_key) && VERBS_SAME_FIELD(opcode, opcode) &&
                   VERBS_SAME_FIELD(imm, imm) && sizeof(pplx_work_request) >= sizeof(verbs_op) + sizeof(pplx_op *),
               "verbs_op_of() takes a part of a work request for a verbs_op");

static inline const verbs_op *verbs_op_of(const pplx_work_request *request) {
    return (const verbs_op *)&request->local_address;
}

enum verbs_which { VERBS_MESSAGES, VERBS_WRITES };

/* A queue pair, and what is on its way through it. On RC work requests end in the order of their posts, so a
 * completion of one stands for all before it: they wait here, in a ring, by their sequence number. */
typedef struct verbs_queue {
    struct ibv_qp *qp;
    verbs_endpoint *endpoint;
    struct verbs_queue *next_in_bucket;
    uint64_t wr_id;     /* of its work requests, without the sequence number: below */
    uint32_t first;     /* the oldest that hasn't ended */
    uint32_t next;      /* that of the next post */
    uint32_t seen;      /* a failed queue: completions have told of those before it */
    uint32_t most;      /* that may be in flight now: none unless its state allows it */
    uint32_t max_inline;
    uint32_t psn; /* of our first packet, in epoch 0 */
    uint8_t which; /* enum verbs_which */
    bool failed;   /* a completion with an error was read */
    bool tail;     /* what was posted last may be unsignalled: the device took part of a batch */
    verbs_op *ops[VERBS_RING]; /* NULL: of our own, or it has ended */
} verbs_queue;

/* The queue of writes breaks when a peer names a wrong key; both sides make it new, see verbs_repair.c. */
enum verbs_state {
    VERBS_OPEN,      /* not connected */
    VERBS_GREETING,  /* connected, and nothing was heard of the peer */
    VERBS_UP,
    VERBS_DRAINING,  /* the queue of writes is in ERR: until all that was in it has come out */
    VERBS_DRAINED,   /* ... and until the completion queue was found empty */
    VERBS_RESETTING, /* in RESET: once more until the completion queue was found empty */
    VERBS_RESET,     /* the peer knows; until it says the same */
    VERBS_READY,     /* in RTS; until it says that it is */
    VERBS_LOST,
    VERBS_CLOSING
};

struct verbs_endpoint {
    verbs_domain *domain;
    verbs_endpoint *next, *prev;
    uint32_t slot;
    uint8_t state; /* enum verbs_state */
    bool first;      /* of the two: it greets */
    bool greet_again; /* ... and its greeting was not heard */
    bool heard;       /* ... though the peer's was */
    bool busy;        /* counted in verbs_domain.nbusy */
    bool told;        /* LOST: all was reported */
    bool peer_reset, peer_ready; /* it said so, for the next epoch */
    bool last_wqe;               /* the device says that the broken queue takes no more */
    bool lingers;                /* CLOSING: with work under way */
    uint16_t epoch;              /* of the queue of writes; 14 bits */
    uint16_t imms_received;      /* in this epoch */
    uint16_t imms_delivered;     /* ... and of ours, as far as we know */
    uint16_t peer_imms;          /* ... as the peer has counted */
    int32_t lost_error;
    uint64_t since_ns; /* DRAINING */
    verbs_queue queues[2];
    verbs_address peer;
    uint32_t gid; /* which of ours, and of the peer's */
    uint32_t peer_gid;
    pplx_aside_call retire; /* verbs_retire.c */
    verbs_op *receives, **last_receive;
    uint32_t nreceives;
    uint32_t nwaiting; /* messages that came before their RECV: buffers of the domain */
    uint16_t waiting[VERBS_MAX_WAITING];
    uint32_t waiting_nbytes[VERBS_MAX_WAITING];
    unsigned char own[PPLX_ADDRESS_BYTES];
    size_t own_nbytes;
};

/* A completion that was found while an endpoint was closed. */
typedef struct verbs_kept {
    pplx_completion completion;
    const verbs_endpoint *endpoint; /* whose op; NULL: an immediate */
} verbs_kept;

/* A work request, as the device takes it. */
typedef struct verbs_wr {
    struct ibv_send_wr wr; /* first: the device names one that it refuses */
    struct ibv_sge sge;
} verbs_wr;

/* Where completions go. */
typedef struct verbs_sink {
    pplx_completion *completions;
    size_t count, capacity;
} verbs_sink;

struct verbs_domain {
    /* Entries of the completion queue that were read; those from the first on were not dealt with. */
    struct ibv_wc wcs[VERBS_BATCH];
    uint32_t wc_first, wc_count;

    const pplx_libibverbs *lib;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_td *td;        /* NULL where the device has none */
    struct ibv_pd *thread_pd; /* for queue pairs: `pd`, or one without locks */
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_srq *imms;     /* receives without a buffer, for immediates */
    struct ibv_srq *messages; /* receives with a buffer of ours */
    int wait_fd;              /* an epoll of ours over the channel and the device's events */
    verbs_options options;
    verbs_port port;
    struct ibv_device_attr attr;
    bool relaxed, soft, broken, port_down; /* soft: rdma_rxe */
    int32_t broken_error;
    uint64_t port_down_ns; /* since when it is down */

    int32_t cq_room; /* in the completion queue, for more sends: each may take an entry */

    uint32_t imms_wanted, nmessages, message_nbytes;
    uint32_t imms_used; /* receives to be posted again ... */
    uint32_t imms_few;  /* ... when so many are: a batch, or of a short queue a part */
    uint8_t *buffers;
    struct ibv_mr *buffers_mr;
    uint16_t *reposts; /* buffers to be posted again */
    uint32_t nreposts;

    verbs_endpoint *endpoints;
    uint32_t next_slot;
    verbs_queue *buckets[VERBS_BUCKETS];
    uint32_t nbusy; /* endpoints that want verbs_step() */

    verbs_kept *kept;
    size_t kept_first, kept_count, kept_capacity;

    bool armed;             /* an event was asked for, and not read */
    uint32_t events;        /* read and not acknowledged */
    int32_t quiet;          /* polls to come that have nothing to do but to read completions of what was posted */
    uint32_t polls;         /* others, since the device was asked for events */

    const pplx_libcuda *cuda; /* NULL: there is no sign of a GPU */
    cuda_shared *allocations; /* verbs_shared */
    pplx_aside aside; /* destroys queue pairs: verbs_retire.c */
    verbs_wr wrs[VERBS_BATCH]; /* a chain; those that are posted are its end */
    pplx_caps caps;

    uint16_t generations[VERBS_MAX_ENDPOINTS]; /* of the slots */
    verbs_queue *queues[VERBS_NAMES];          /* two of each slot, by the low bits of their names */
};

/* The 64 bits by which a work request is known: its kind in the top two; of a send the slot's generation, the slot,
 * which queue of the two, and the sequence number; of a message's receive the buffer. Nothing else of a failed
 * completion is valid, and a queue that is gone is not found. */
enum verbs_kind { VERBS_WR_SEND, VERBS_WR_IMM, VERBS_WR_MESSAGE };
enum { VERBS_GENERATIONS = 1 << 14 };

static inline uint64_t verbs_wr_id(uint32_t generation, uint32_t slot, enum verbs_which which) {
    return (uint64_t)VERBS_WR_SEND << 62 | (uint64_t)generation << 48 | (uint64_t)slot << 33 | (uint64_t)which << 32;
}

/* NULL: it was closed. */
static inline verbs_queue *verbs_queue_named(const verbs_domain *domain, uint64_t wr_id) {
    const uint32_t name = (uint32_t)(wr_id >> 32);
    verbs_queue *queue = domain->queues[name % VERBS_NAMES];
    return queue && (uint32_t)(queue->wr_id >> 32) == name ? queue : NULL;
}

static inline uint64_t verbs_receive_id(enum verbs_kind kind, uint32_t buffer) { return (uint64_t)kind << 62 | buffer; }

static inline verbs_op **verbs_place(verbs_queue *queue, uint32_t sequence) {
    return &queue->ops[sequence % VERBS_RING];
}

/* What a write goes through when nothing is amiss stays together in the code, and the rest is kept out of it. */
#define VERBS_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define VERBS_APART __attribute__((noinline))
#define VERBS_COLD __attribute__((noinline, cold))

/* verbs_discover.c: the library, options, devices */
pplx_status verbs_load(const verbs_options *options, const pplx_libibverbs **lib, const char **file, pplx_error *error);
pplx_status verbs_options_parse(const pplx_option *options, size_t noptions, verbs_options *out, pplx_error *error);
pplx_status verbs_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                           size_t *count, pplx_error *error);
/* Open the device of this name ("mlx5_0", or "mlx5_0:2" for its second port) and choose a port and GIDs. */
pplx_status verbs_find(const pplx_libibverbs *lib, const char *file, const verbs_options *options, const char *device,
                       struct ibv_context **context, verbs_port *port, pplx_error *error);
pplx_status verbs_fail(pplx_error *error, pplx_status status, int native, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* verbs_port.c: a port, and which of its GIDs */
/* False: it can't be used, `why` says why not. */
bool verbs_port_choose(const pplx_libibverbs *lib, struct ibv_context *context, uint8_t number,
                       const verbs_options *options, verbs_port *port, char *why, size_t nbytes);
/* Look once more for what may have changed since it was chosen. False: it has none of its GIDs any more. */
bool verbs_port_refresh(const pplx_libibverbs *lib, struct ibv_context *context, const verbs_options *options,
                        verbs_port *port);
void verbs_port_subnets(const verbs_port *port, char *text, size_t nbytes); /* as pplx_caps has them */
void verbs_gid_format(const union ibv_gid *gid, char *text, size_t nbytes);
void verbs_pkey_format(const verbs_port *port, char *text, size_t nbytes); /* ", P_Key ..."; empty on RoCE */
/* The way to a peer. `ours`: NULL, we have no GID; `theirs` likewise. */
void verbs_route(const verbs_port *port, const verbs_options *options, const verbs_gid *ours,
                 const union ibv_gid *theirs, uint16_t lid, bool grh, struct ibv_ah_attr *ah);
uint32_t verbs_mtu_nbytes(uint8_t mtu);

/* verbs_address.c */
size_t verbs_address_write(const verbs_address *address, unsigned char *bytes, size_t capacity);
bool verbs_address_read(verbs_address *address, const unsigned char *bytes, size_t nbytes);
/* The pair of GIDs that both sides choose, each by itself. False: none fit each other. */
bool verbs_gids_match(const union ibv_gid *ours, uint32_t nours, const union ibv_gid *theirs, uint32_t ntheirs,
                      uint32_t *our, uint32_t *their);

/* verbs_domain.c */
pplx_status verbs_domain_open(const char *device, const pplx_option *options, size_t noptions,
                              pplx_provider_domain **domain, pplx_error *error);
void verbs_domain_close(pplx_provider_domain *handle);
void verbs_domain_free(void *domain);
void verbs_domain_caps(pplx_provider_domain *handle, pplx_caps *caps);

/* verbs_memory.c */
pplx_status verbs_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                          pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error);
pplx_status verbs_mr_close(pplx_provider_mr *handle);
struct ibv_mr *verbs_register(verbs_domain *domain, void *address, size_t nbytes, unsigned access);
bool verbs_has_dmabuf(verbs_domain *domain);
bool verbs_has_peer_memory(void);

/* verbs_cuda.c: memory of GPUs */
void verbs_cuda_find(verbs_domain *domain, const char *libcuda);
bool verbs_cuda_by_dmabuf(const verbs_domain *domain);
pplx_status verbs_cuda_register(verbs_domain *domain, const pplx_memory *memory, unsigned access, verbs_mr *mr,
                                pplx_error *error);
bool verbs_cuda_deregister(verbs_domain *domain, verbs_shared *shared); /* one region; false: it is still registered */

/* verbs_endpoint.c */
pplx_status verbs_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **endpoint, void *address,
                                size_t *nbytes, pplx_error *error);
pplx_status verbs_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                   pplx_error *error);
pplx_status verbs_endpoint_close(pplx_provider_endpoint *handle);
verbs_queue *verbs_queue_of(const verbs_domain *domain, uint32_t qpn);
void verbs_enter(verbs_endpoint *endpoint, enum verbs_state state);

/* verbs_qp.c: the states of a queue pair; 0 or an errno */
int verbs_qp_open(verbs_queue *queue, struct ibv_srq *srq);
int verbs_qp_connect(verbs_queue *queue, uint32_t psn, uint32_t peer_psn); /* from RESET or INIT to RTS */
int verbs_qp_init(verbs_queue *queue);
int verbs_qp_move(verbs_queue *queue, enum ibv_qp_state state); /* RESET or ERR */
bool verbs_qp_is_broken(verbs_queue *queue);

/* verbs_retire.c: the end of queue pairs, and of their endpoint's memory; now, or by a thread */
void verbs_queues_destroy(verbs_endpoint *endpoint);
void verbs_queues_retire(verbs_endpoint *endpoint);

/* verbs_post.c */
pplx_status verbs_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count, size_t *posted,
                       int32_t *provider_error);
int verbs_post_control(verbs_endpoint *endpoint, uint32_t word);
/* Post what is in the ring from `from` on again; all of it or an errno. */
int verbs_post_again(verbs_queue *queue, uint32_t from);
void verbs_post_tail(verbs_queue *queue);

/* verbs_cq.c */
size_t verbs_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity);
pplx_status verbs_arm(pplx_provider_domain *handle);
int verbs_wait_fd(pplx_provider_domain *handle);
/* Read the completion queue until it is empty and keep what is found, but for ops of `closing`. PPLX_AGAIN: no
 * memory for it. */
pplx_status verbs_drain(verbs_domain *domain, const verbs_endpoint *closing);
void verbs_forget_kept(verbs_domain *domain, const verbs_endpoint *endpoint);
bool verbs_reserve_kept(verbs_domain *domain, size_t more);
void verbs_keep(verbs_domain *domain, const verbs_endpoint *endpoint, const pplx_completion *completion);

/* verbs_receive.c: both shared receive queues, and messages */
pplx_status verbs_receives_open(verbs_domain *domain, pplx_error *error);
void verbs_receives_close(verbs_domain *domain);
void verbs_receives_fill(verbs_domain *domain); /* post again what was used */
/* False: no room in the sink, nothing was done. */
bool verbs_message_arrived(verbs_domain *domain, const struct ibv_wc *wc, verbs_sink *sink);
pplx_status verbs_post_receive(verbs_endpoint *endpoint, const pplx_work_request *request);
void verbs_buffer_used(verbs_domain *domain, uint32_t buffer);

/* verbs_repair.c: greeting, making the queue of writes new, losing a peer */
void verbs_greet(verbs_endpoint *endpoint);
void verbs_control_arrived(verbs_endpoint *endpoint, uint32_t word);
void verbs_queue_failed(verbs_queue *queue, enum ibv_wc_status status);
void verbs_lose(verbs_endpoint *endpoint, int32_t native);
void verbs_step(verbs_endpoint *endpoint); /* the completion queue was found empty */
void verbs_want_step(verbs_endpoint *endpoint);
void verbs_calm(verbs_endpoint *endpoint);
void verbs_writes_broke(verbs_endpoint *endpoint);
bool verbs_tell_lost(verbs_endpoint *endpoint, verbs_sink *sink);
uint64_t verbs_now_ns(void);

/* verbs_events.c: what the device has to say */
void verbs_events_take(verbs_domain *domain);
void verbs_port_check(verbs_domain *domain); /* it is down: for too long? */

/* There is more to do than to read completions. */
static inline void verbs_attend(verbs_domain *domain) { domain->quiet = 0; }

static inline bool verbs_emit(verbs_sink *sink, verbs_op *op, pplx_status status, int32_t native, uint64_t nbytes) {
    if (sink->count == sink->capacity) return false;
    sink->completions[sink->count++] = (pplx_completion){
        .op = (pplx_op *)op, .kind = PPLX_COMPLETION_OP, .status = status, .provider_error = native, .nbytes = nbytes};
    return true;
}

#endif
