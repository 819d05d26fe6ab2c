/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs between processes of this host: what the files of it share.
 *
 *   ipc_cuda.c        the streams, from the first region on to the end; what of our memory peers may reach
 *   ipc_cuda_peers.c  memory of peers: opened, closed; their rings, which our GPU knows
 *   ipc_cuda_batch.c  copies from GPU to GPU
 *   ipc_cuda_host.c   copies between GPU and host, piece by piece (ipc_internal.h)
 *
 * Threads. The thread that calls the domain, and two beside, which touch an ipc_opened from when it is given until `done`
 * is set, an ipc_plug from when the endpoint has left it, and of ipc_cuda what its comments say. Each call makes the
 * context current and then that of before again. */
#ifndef PPLX_CSRC_IPC_CUDA_H
#define PPLX_CSRC_IPC_CUDA_H

#include "aside.h"
#include "cuda_copy.h"
#include "ipc_internal.h"

enum { IPC_CUDA_BATCH = CUDA_PIECES }; /* pieces begun together */

struct ipc_cuda {
    const pplx_libcuda *api;
    cu_device device;
    int ordinal;
    cu_context context;
    cu_stream streams[IPC_STREAMS];
    cu_module module;          /* the patient thread's, like the next calls */
    pplx_aside_call load, shut;
    _Atomic(cu_function) kernel; /* the patient thread's; NULL: not there yet, or this GPU's driver doesn't take it */
    pplx_aside aside;          /* what passes streams in gates */
    pplx_aside patient;        /* what waits for them */
    cuda_shared *allocations; /* of ours: struct ipc_allocation */
    ipc_opened *under_way; /* opened or closed by it */
    atomic_bool news;      /* the other threads: one of them is done, and has rung */
    atomic_uint telling;   /* ... so many are about to ring, or have just done so */
    int bell;              /* an eventfd in the domain's epoll set; -1: there is none, and we don't sleep */
    ipc_watch watch;
    _Atomic uint64_t *done;    /* a pinned page: how far each stream has come */
    cu_pointer done_at;        /* as the GPU sees it */
    uint64_t begun[IPC_STREAMS];
    ipc_list working[IPC_STREAMS]; /* oldest first */
    uint32_t nworking;         /* on them */
    uint64_t asked_ns;
    cu_result lost; /* the driver has given the context up */
    bool stuck;     /* somebody has waited for it in vain: the next one doesn't */
    ipc_hops *hops;
    /* The batch that is gathered. */
    int stream;
    uint32_t count; /* pieces */
    uint32_t slots; /* immediates */
    uint64_t nbytes, longest;
    bool apart; /* some of it can be copied alone only */
    cuda_pieces pieces;
    uint32_t nrecords;
    ipc_record *records[IPC_CUDA_BATCH]; /* in the order of their pieces */
};

static inline cu_result ipc_cuda_enter(const ipc_cuda *cuda, int *mode) {
    return pplx_cuda_enter(cuda->api, cuda->context, mode);
}

static inline void ipc_cuda_leave(const ipc_cuda *cuda, int mode) { pplx_cuda_leave(cuda->api, mode); }

/* A kernel of ours may touch it: copies find what is another device's, or another context's, by themselves. */
static inline bool ipc_cuda_is_near(const ipc_cuda *cuda, const cuda_range *range) {
    return range->ordinal == cuda->ordinal && (!range->context || range->context == cuda->context);
}

/* ipc_cuda_peers.c */
bool pplx_ipc_cuda_plug(ipc_endpoint *endpoint);         /* false: our GPU doesn't get to know the peer's rings */
void pplx_ipc_cuda_close_opened(const ipc_cuda *cuda);   /* all that nobody has heard of; the context is current */
void pplx_ipc_cuda_free_opened(const ipc_cuda *cuda);

#endif
