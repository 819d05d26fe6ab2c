/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Work requests that the ipc provider has taken: records, lists of them, pools of them. */
#ifndef PPLX_CSRC_IPC_RECORDS_H
#define PPLX_CSRC_IPC_RECORDS_H

#include <stdbool.h>

#include "pplx_async/provider.h"

struct ipc_endpoint;

/* It is on one list at a time, or in its pool. */
typedef struct ipc_record {
    struct ipc_record *next, *prev;
    struct ipc_endpoint *endpoint;
    pplx_work_request request; /* of several segments: the one that it has come to, which `segments` points to */
    uint32_t following; /* segments after that */
    uint64_t moved;     /* bytes copied, or handed to the peer in commands; RECV: bytes received */
    uint32_t pending;   /* commands that are not acknowledged */
    bool issued;        /* all of it is in commands */
    pplx_status status; /* how it ends; once it is not PPLX_OK nothing more is copied */
    int32_t native;     /* the code behind that, of the GPU's driver */
    uint64_t turn;      /* of a stream of the GPU: it is done when the stream has come so far */
    bool hopped;        /* pieces of it went between GPU and host: ipc_cuda_host.c */
    bool parked;        /* it has ended, as soon as no GPU copies for it */
} ipc_record;

typedef struct ipc_list {
    ipc_record *head, *tail;
} ipc_list;

/* Records, of which `used` were ever handed out: the rest isn't touched before. */
typedef struct ipc_pool {
    ipc_record *all, *free;
    uint32_t used, size, taken;
} ipc_pool;

typedef struct ipc_part {
    uint64_t local, remote; /* addresses, as the request has them */
    uint64_t nbytes;
} ipc_part;

/* The segment that lies `i` behind the one that it has come to. */
static inline ipc_part ipc_part_of(const ipc_record *record, uint32_t i) {
    const pplx_work_request *request = &record->request;
    ipc_part part = {request->local_address, request->remote_address, request->nbytes};
    if (i == 0) return part;
    const pplx_segment *now = request->segments, *there = now + i;
    part.local += there->local - now->local;
    part.remote += there->remote - now->remote;
    part.nbytes = there->nbytes;
    return part;
}

static inline void ipc_list_append(ipc_list *list, ipc_record *record) {
    record->next = NULL;
    record->prev = list->tail;
    *(list->tail ? &list->tail->next : &list->head) = record;
    list->tail = record;
}

static inline void ipc_list_remove(ipc_list *list, ipc_record *record) {
    *(record->prev ? &record->prev->next : &list->head) = record->next;
    *(record->next ? &record->next->prev : &list->tail) = record->prev;
}

static inline void ipc_list_move(ipc_list *from, ipc_list *to, ipc_record *record) {
    ipc_list_remove(from, record);
    ipc_list_append(to, record);
}

/* NULL: as many are in flight as may be, and `reserved` are not for the caller. */
static inline ipc_record *ipc_pool_take(ipc_pool *pool, uint32_t reserved) {
    if (pool->taken + reserved >= pool->size) return NULL;
    pool->taken++;
    ipc_record *record = pool->free;
    if (!record) return &pool->all[pool->used++];
    pool->free = record->next;
    return record;
}

static inline void ipc_pool_give(ipc_pool *pool, ipc_record *record) {
    pool->taken--;
    record->next = pool->free;
    pool->free = record;
}

#endif
