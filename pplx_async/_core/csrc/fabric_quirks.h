/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the code must know about each provider inside libfabric: the one table of such facts.
 * Rows are in order of preference. Versions are those of libfabric that were tried. */
#ifndef PPLX_ASYNC_FABRIC_QUIRKS_H
#define PPLX_ASYNC_FABRIC_QUIRKS_H

#include <rdma/fabric.h>

#include "fabric_internal.h"

static const fabric_quirks fabric_quirk_table[] = {
    {
        /* The NIC completes in any order and each queue pair serves every peer: one endpoint for
         * all. Its CQ has no wait object. fi_writemsg with FI_MORE saves doorbells. Fatal errors
         * go to the event queue, and without one the library calls abort() (by its source). Few
         * eager posts: the published TransferEngine measured 1, then 32 per turn, as best. It may register beside
         * all else: fi_domain(3) has control interfaces thread-safe under any threading model, and its domain's lock is
         * a mutex under each. */
        .name = "efa",
        .endpoint_per_peer = false,
        .wait_fd = false,
        .more = true,
        .event_queue = true,
        .efa_options = true,
        .newer_api = true,
        .gpus = true,
        .register_apart = true,
        .takes_node = false,
        .extra_caps = FI_DIRECTED_RECV,
        .max_inflight = 1024,
        .max_inflight_bytes = 128u << 20,
        .eager_posts = 1,
        .posts_per_turn = 32,
    },
    {
        /* Native RDM since 1.18; in 1.17 asking for it gives tcp;ofi_rxm, which the comparison of
         * names sorts out. Takes any number of posts while nobody reads the CQ (2.5.1): cap them.
         * A closed fid_ep closes its sockets, hence one per peer makes closing a fence. A stream:
         * nothing overtakes a message, so none may be long; 1 MiB ones are as fast as any. */
        .name = "tcp",
        .endpoint_per_peer = true,
        .wait_fd = true,
        .warm_up = true,
        .takes_node = true,
        .stream = true,
        .extra_caps = FI_SOURCE,
        .max_inflight = 256,
        .max_inflight_bytes = 128u << 20,
        .max_message = 4u << 20,
        .eager_posts = 16,
        .posts_per_turn = 64,
    },
    {
        /* The same protocol by a utility layer over connected endpoints. 1.17 and 2.5.1. A closed
         * endpoint stays in the wait set of its CQ and fi_trywait() reads freed memory: so a CQ
         * dies with its endpoint. It looks for broken connections every 10 ms only
         * (FI_OFI_RXM_CM_PROGRESS_INTERVAL) and fails thousands of posts in between: hold them
         * until it can have noticed.
         *
         * In 2.5.1 a domain has one epoll for all its sockets, which lies in two epolls of each
         * endpoint, these in the CQ's, and that in ours: so each peer adds two ways by which a
         * socket reaches our epoll, and at this depth the kernel takes 50 of them (path_limits in
         * fs/eventpoll.c; one level deeper, 10). It would refuse the next with EINVAL in
         * fi_enable(), or in the middle of a connection. The CQs of further peers get no wait fd. */
        .name = "tcp;ofi_rxm",
        .endpoint_per_peer = true,
        .cq_per_endpoint = true,
        .abandons = true,
        .wait_fd = true,
        .max_wait_fds = 25,
        .warm_up = true,
        .takes_node = true,
        .stream = true,
        .settle_ms = 20,
        .max_inflight = 256,
        .max_inflight_bytes = 128u << 20,
        .max_message = 4u << 20,
        .eager_posts = 16,
        .posts_per_turn = 64,
    },
};

enum { FABRIC_NQUIRKS = sizeof fabric_quirk_table / sizeof fabric_quirk_table[0] };

#endif
