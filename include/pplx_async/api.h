/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The core's functions as a table.
 *
 * The core is compiled once, into the extension module pplx_async._core.rt, and links to nothing.
 * Whoever lives in another module takes this table from the capsule of that module:
 *
 *   const pplx_api *api = PyCapsule_Import(PPLX_API_CAPSULE, 0);
 *
 * or, in Cython, `from pplx_async._core.rt cimport api`. Entries are only ever added at the end. */
#ifndef PPLX_ASYNC_API_H
#define PPLX_ASYNC_API_H

#include "pplx_async/engine.h"
#include "pplx_async/words.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PPLX_API_ABI 2
#define PPLX_API_CAPSULE "pplx_async._core.rt._C_API"

/* X(result, name without pplx_, arguments) */
#define PPLX_API_MAP(X)                                                                                        \
    X(const char *, status_name, (int))                                                                        \
    X(const char *, status_text, (int))                                                                        \
    X(const pplx_provider *, provider_builtin, (const char *name))                                             \
    X(pplx_status, provider_load, (const char *path, const pplx_provider **, pplx_error *))                    \
    X(pplx_status, engine_open, (const pplx_engine_config *, pplx_engine **, pplx_error *))                    \
    X(pplx_status, engine_add_domain,                                                                          \
      (pplx_engine *, const pplx_provider *, const char *, const pplx_option *, size_t, pplx_error *))         \
    X(pplx_status, engine_start, (pplx_engine *, pplx_error *))                                                \
    X(void, engine_stop, (pplx_engine *))                                                                      \
    X(void, engine_close, (pplx_engine *))                                                                     \
    X(size_t, engine_domains, (const pplx_engine *))                                                           \
    X(void, engine_caps, (const pplx_engine *, size_t, pplx_caps *))                                           \
    X(void, engine_landing, (const pplx_engine *, size_t, pplx_remote_key *))                                  \
    X(int, engine_fd, (const pplx_engine *))                                                                   \
    X(void, clear, (pplx_engine *))                                                                            \
    X(pplx_node *, reap, (pplx_engine *))                                                                      \
    X(bool, arm, (pplx_engine *))                                                                              \
    X(void, engine_read_stats, (const pplx_engine *, pplx_engine_stats *))                                     \
    X(pplx_status, counter_open, (pplx_engine *, pplx_counter *))                                              \
    X(uint64_t, counter_value, (const pplx_counter *))                                                         \
    X(bool, counter_notify, (pplx_counter *, uint64_t))                                                        \
    X(void, counter_reaped, (pplx_counter *))                                                                  \
    X(void, counter_recycle, (pplx_engine *, uint32_t))                                                        \
    X(void, submit, (pplx_engine *, pplx_request *))                                                           \
    X(bool, cancel, (pplx_engine *, pplx_request *))                                                           \
    X(bool, request_reaped, (pplx_request *))                                                                  \
    X(pplx_peer *, peer_new, (pplx_engine *, void *, uint32_t, const pplx_route *, uint32_t))                  \
    X(uint64_t, peer_max_message, (const pplx_peer *))                                                         \
    X(void, peer_free, (pplx_peer *))                                                                          \
    X(size_t, peer_links, (const pplx_peer *))                                                                 \
    X(void, peer_address, (const pplx_peer *, size_t, pplx_link_address *))                                    \
    X(uint32_t, peer_heartbeat_counter, (const pplx_peer *))                                                   \
    X(uint32_t, peer_credit_counter, (const pplx_peer *))                                                      \
    X(bool, reaches, (const pplx_mr *, const pplx_peer *))                                                     \
    X(uint64_t, peer_token, (const pplx_peer *))                                                               \
    X(void, peer_configure, (pplx_peer *, const pplx_peer_config *))                                           \
    X(void *, peer_cookie, (const pplx_peer *))                                                                \
    X(void, peer_reason, (const pplx_peer *, pplx_error *))                                                    \
    X(void, link_read_stats, (const pplx_peer *, size_t, pplx_link_stats *))                                   \
    X(void, message_release, (pplx_engine *, pplx_message *))                                                  \
    X(pplx_peer *, node_peer, (pplx_node *))                                                                   \
    X(uint32_t, submit_here, (pplx_engine *, pplx_request *))                                                  \
    X(uint32_t, submit_spinning, (pplx_engine *, pplx_request *))                                              \
    X(void, submit_there, (pplx_engine *, pplx_request *))                                                     \
    X(int, engine_wait_fd, (const pplx_engine *, size_t))                                                      \
    X(uint32_t, drive, (pplx_engine *))                                                                        \
    X(void, listens, (pplx_engine *, bool))                                                                    \
    X(uint32_t, spin, (pplx_engine *, uint32_t))                                                               \
    X(void, spin_end, (pplx_engine *))                                                                         \
    X(uint32_t, watch, (pplx_engine *, uint32_t))                                                              \
    X(uint32_t, peer_lost_domain, (const pplx_peer *))                                                         \
    X(pplx_peer *, node_rail, (pplx_node *, uint32_t *))                                                       \
    X(void, link_reason, (const pplx_peer *, size_t, pplx_error *))                                            \
    X(void, link_notice, (const pplx_peer *, size_t, pplx_rail_notice *))                                      \
    X(uint64_t, counter_gated, (const pplx_counter *))                                                         \
    X(void, word_arm, (pplx_engine *, pplx_word *))                                                            \
    X(void, word_end, (pplx_engine *, pplx_word *))                                                            \
    X(void, word_close, (pplx_engine *, pplx_word *))                                                          \
    X(void, word_let_go, (pplx_cell *))                                                                        \
    X(uint64_t, cell_value, (const pplx_cell *))                                                               \
    X(bool, cell_aborted, (const pplx_cell *))                                                                 \
    X(bool, word_reaped, (pplx_word *))                                                                        \
    X(bool, word_notify, (pplx_word *, uint64_t))                                                              \
    X(uint64_t, word_count, (const pplx_word *))                                                               \
    X(uint64_t, word_posted, (const pplx_word *))                                                              \
    X(int32_t, word_take_status, (pplx_word *))                                                                \
    X(uint32_t, lane_poisons, (const pplx_lane *))                                                             \
    X(bool, lane_poisoned, (const pplx_lane *))                                                                \
    X(void, lane_heal, (pplx_lane *))                                                                          \
    X(bool, step_run, (const pplx_step *, uint32_t))                                                           \
    X(pplx_status, cuda_capturing, (const char *, uint64_t, bool *, pplx_error *))                             \
    X(pplx_status, cuda_pin, (const char *, uint64_t, void *, size_t, pplx_pinned *, pplx_error *))            \
    X(void, cuda_unpin, (const char *, void *, const pplx_pinned *))                                           \
    X(pplx_status, cuda_push, (const char *, uint64_t, const pplx_step *, size_t, uint32_t *, pplx_error *))   \
    X(size_t, engine_gpus, (const pplx_engine *, pplx_gpu_told *, size_t))                                     \
    X(uint32_t, cell_take, (pplx_cell *))                                                                      \
    X(pplx_status, cuda_queue, (const char *, uint64_t, const pplx_step *, size_t, pplx_word *, pplx_error *)) \
    X(void, word_undo, (pplx_word *))                                                                          \
    X(void, word_hold, (pplx_word *))                                                                          \
    X(pplx_status, cuda_identify, (const char *, uint64_t, pplx_stream_identity *, pplx_error *))

typedef struct pplx_api {
    size_t size; /* sizeof(pplx_api) in the core */
    uint32_t abi; /* PPLX_API_ABI there */
    uint32_t reserved;
#define X(result, name, arguments) result(*name) arguments;
    PPLX_API_MAP(X)
#undef X
} pplx_api;

const pplx_api *pplx_core_api(void); /* inside the core's own module only */

#ifdef __cplusplus
}
#endif
#endif
