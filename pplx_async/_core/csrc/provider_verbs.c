/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The verbs provider: reliable connections (RC) of libibverbs under our contract. InfiniBand and RoCE.
 *
 *   dynload.c         finds libibverbs and binds its functions
 *   verbs_discover.c  options; which devices there are
 *   verbs_port.c      a port of a device, and the GIDs that peers may know it by
 *   verbs_domain.c    a device: protection domain, completion queue, what it can do
 *   verbs_memory.c    memory regions: of the host, dma-buf
 *   verbs_cuda.c      of GPUs
 *   verbs_address.c   an endpoint's address, as it travels
 *   verbs_endpoint.c  the way to one peer; closing it, as a fence
 *   verbs_qp.c        a queue pair through its states
 *   verbs_retire.c    a queue pair's end, if that takes long
 *   verbs_post.c      work requests -> ibv_post_send(), chained
 *   verbs_receive.c   the shared receive queues; messages
 *   verbs_cq.c        completions, waiting
 *   verbs_repair.c    greeting a peer, mending what a wrong key has broken, losing a peer
 *   verbs_events.c    what the device tells by itself
 *
 * Two queue pairs for each peer: one for messages, one for writes and reads. A receive is used up by a message
 * and by an immediate alike, so each has a shared receive queue of its own; both are kept filled by poll(). A
 * message is received into a buffer of the domain and copied into the oldest RECV of its endpoint: so the RECVs
 * of an endpoint are let go by forgetting them, and a peer that sends without being asked uses up nobody
 * else's.
 *
 * On RC work requests end in order, so few are signalled: a completion ends all that were posted before it
 * (verbs_queue). It says that the peer's NIC has taken the last byte and answers for it: the peer's CPU finds
 * it in memory when it looks after it was told, by an immediate or a message, which come behind it.
 *
 * Connections are made by who holds both addresses. A greeting says that the peer is there, and nothing else is
 * posted before it.
 *
 * Compiled without libibverbs's headers (PPLX_HAVE_LIBIBVERBS not 1) this is a stub that says so. */
#include "pplx_async/provider.h"

extern const pplx_provider pplx_provider_verbs;

#if PPLX_HAVE_LIBIBVERBS

#include "verbs_internal.h"

const pplx_provider pplx_provider_verbs = {
    .size = sizeof(pplx_provider),
    .abi = PPLX_PROVIDER_ABI,
    .name = "verbs",
    .discover = verbs_discover,
    .domain_open = verbs_domain_open,
    .domain_close = verbs_domain_close,
    .domain_caps = verbs_domain_caps,
    .endpoint_open = verbs_endpoint_open,
    .endpoint_connect = verbs_endpoint_connect,
    .endpoint_close = verbs_endpoint_close,
    .mr_open = verbs_mr_open,
    .mr_close = verbs_mr_close,
    .post = verbs_post,
    .poll = verbs_poll,
    .arm = verbs_arm,
    .wait_fd = verbs_wait_fd,
};

#else

#define PPLX_STUB_TEXT                                                                             \
    "this build has no verbs provider: libibverbs's headers were not found when it was compiled; " \
    "apt-get install libibverbs-dev and rebuild, or install a wheel"
#include "provider_stub.h"

const pplx_provider pplx_provider_verbs = PPLX_STUB("verbs");

#endif
