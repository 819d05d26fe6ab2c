/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* libibverbs' own objects, for an engine that is not ours: what pplx_async.verbs is made of.
 *
 * One level below the provider, and as thin as can be: each function is one or a few calls of the
 * library, and says why it failed. How a device, its port and its GIDs are chosen is the provider's
 * way too (verbs_discover.c, verbs_port.c).
 *
 *   Threads. As in libibverbs any thread may call, but what an object is closed for must not run.
 *   Nothing but opening, closing and registering may be long.
 *
 *   Lifetimes are the caller's: an object is closed after what was made from it, exactly once.
 *
 * Compiled without libibverbs' headers, context_open says PPLX_UNAVAILABLE and there is nothing else. */
#ifndef PPLX_ASYNC_VERBS_OBJECTS_H
#define PPLX_ASYNC_VERBS_OBJECTS_H

#include <stdbool.h>

#include "pplx_async/provider.h"

typedef struct pplx_verbs_context pplx_verbs_context; /* a device, opened, and one of its ports */
typedef struct pplx_verbs_queue pplx_verbs_queue;     /* a completion queue, and the channel that it tells */
typedef struct pplx_verbs_pair pplx_verbs_pair;       /* a queue pair (RC) */
typedef struct ibv_pd pplx_verbs_pd;
typedef struct ibv_mr pplx_verbs_mr;

typedef struct pplx_verbs_port {
    char gid[PPLX_NAME_BYTES]; /* readable: "10.77.0.1" */
    uint8_t gid_bytes[16];
    uint64_t bits_per_second;
    uint64_t max_message; /* bytes of one work request */
    uint32_t number, gid_index, pkey_index, pkey, mtu, lid;
    uint32_t max_entries; /* of a completion queue */
    uint32_t max_work;    /* of a queue of a queue pair */
    bool ethernet;        /* RoCE; else InfiniBand */
} pplx_verbs_port;

/* What a peer needs to know of a queue pair. */
typedef struct pplx_verbs_address {
    uint8_t gid[16];
    uint32_t number, psn; /* 24 bits each */
    uint32_t mtu;         /* in bytes */
    uint32_t lid;
    uint32_t reads; /* that it answers at a time */
    bool grh;       /* its port takes no packet without a global route */
} pplx_verbs_address;

typedef struct pplx_verbs_connection {
    uint32_t timeout;     /* 4.096 us * 2^timeout until an answer is missed; 0: never */
    uint32_t retries;     /* 7 is for ever on rdma_rxe */
    uint32_t rnr_retries; /* where the peer has posted no receive; 7: for ever */
} pplx_verbs_connection;

enum pplx_verbs_state { PPLX_VERBS_OPEN, PPLX_VERBS_CONNECTED, PPLX_VERBS_BROKEN };

typedef struct pplx_verbs_request {
    uint64_t id; /* comes back in the completion */
    uint64_t local_address, nbytes, remote_address;
    uint32_t lkey, rkey;
    uint32_t opcode; /* enum pplx_opcode */
    uint32_t imm;
    bool has_imm;
} pplx_verbs_request;

typedef struct pplx_verbs_completion {
    uint64_t id;
    uint64_t nbytes;  /* that a receive got */
    uint32_t flags;   /* enum ibv_wc_flags */
    uint32_t imm;
    int32_t status;   /* pplx_status */
    int32_t native;   /* ibv_wc_status, and nothing else is valid if it isn't 0 */
    bool remote_write, has_imm;
} pplx_verbs_completion;

typedef struct pplx_verbs_api {
    /* The options are those of the provider. */
    pplx_status (*context_open)(const char *device, const pplx_option *options, size_t noptions,
                                pplx_verbs_context **context, pplx_verbs_port *port, pplx_error *error);
    void (*context_close)(pplx_verbs_context *context);

    pplx_status (*pd_open)(pplx_verbs_context *context, pplx_verbs_pd **pd, pplx_error *error);
    pplx_status (*pd_close)(pplx_verbs_context *context, pplx_verbs_pd *pd, pplx_error *error);

    pplx_status (*memory_open)(pplx_verbs_context *context, pplx_verbs_pd *pd, void *address, uint64_t nbytes,
                               uint32_t access, bool writable, pplx_verbs_mr **mr, uint32_t *lkey, uint32_t *rkey,
                               pplx_error *error);
    pplx_status (*memory_close)(pplx_verbs_context *context, pplx_verbs_mr *mr, pplx_error *error);

    /* *entries: wanted in, those it has out. *fd: for epoll; stays the same. */
    pplx_status (*queue_open)(pplx_verbs_context *context, uint32_t *entries, pplx_verbs_queue **queue, int *fd,
                              pplx_error *error);
    pplx_status (*queue_close)(pplx_verbs_queue *queue, pplx_error *error);
    /* Take the events that were, and ask for the next: it comes for what completes from now on, so look once more
     * before you sleep. An errno if not 0. */
    int (*queue_arm)(pplx_verbs_queue *queue);
    /* Negative: the queue is lost, it was overrun or its device is gone. */
    int (*queue_read)(pplx_verbs_queue *queue, pplx_verbs_completion *completions, int capacity);

    /* `depth`: work requests of the send queue, and of the receive queue. */
    pplx_status (*pair_open)(pplx_verbs_context *context, pplx_verbs_pd *pd, pplx_verbs_queue *sends,
                             pplx_verbs_queue *receives, uint32_t send_depth, uint32_t receive_depth,
                             pplx_verbs_pair **pair, pplx_verbs_address *address, pplx_error *error);
    pplx_status (*pair_connect)(pplx_verbs_pair *pair, const pplx_verbs_address *peer,
                                const pplx_verbs_connection *connection, pplx_error *error);
    /* What is in it and what is posted from now on is flushed. */
    pplx_status (*pair_break)(pplx_verbs_pair *pair, pplx_error *error);
    int (*pair_state)(pplx_verbs_pair *pair); /* enum pplx_verbs_state */
    pplx_status (*pair_close)(pplx_verbs_pair *pair, pplx_error *error);
    /* PPLX_AGAIN: not taken, there is no room. */
    pplx_status (*post)(pplx_verbs_pair *pair, const pplx_verbs_request *request, int32_t *native);

    const char *(*status_text)(int native); /* of an ibv_wc_status */
} pplx_verbs_api;

const pplx_verbs_api *pplx_verbs_objects(void);

#endif
