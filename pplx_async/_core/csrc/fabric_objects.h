/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* libfabric's own objects, for an engine that is not ours: what pplx_async.fabric is made of.
 *
 * One level below the provider. A domain has any number of completion queues, an endpoint talks to
 * any number of peers, nothing is hidden between a post and its completion, and every work request
 * that was taken completes once, also when its endpoint is closed under it. What the provider knows
 * of libfabric's ways is used here too: which devices there are, quirks, keys, checks, errors.
 *
 *   Threads. Any thread may call. Each call takes its domain's lock, which is a leaf, and may be long
 *   (on tcp it copies data): call without the GIL.
 *
 *   Lifetimes. close ends what the library knows of an object. The struct stays until free, and calls
 *   on it say PPLX_CLOSED. A queue or a domain that is closed before its children ends with the last
 *   of them. An object is freed before what it was made from.
 *
 *   Closing an endpoint is endpoint_close, then endpoint_flush until that gives nothing: completions
 *   that its queue holds, of other endpoints too, then those of the works that have none.
 *
 * Compiled without libfabric's headers, domain_open says PPLX_UNAVAILABLE and there is nothing else. */
#ifndef PPLX_ASYNC_FABRIC_OBJECTS_H
#define PPLX_ASYNC_FABRIC_OBJECTS_H

#include <stdbool.h>

#include "pplx_async/provider.h"

typedef struct pplx_fabric_domain pplx_fabric_domain;
typedef struct pplx_fabric_queue pplx_fabric_queue;
typedef struct pplx_fabric_endpoint pplx_fabric_endpoint;
typedef struct fabric_peer pplx_fabric_peer; /* an entry of the domain's address vector */

typedef struct pplx_fabric_limits {
    uint64_t max_message; /* bytes of one work request */
    uint32_t tx_size;     /* writes, reads and sends in flight on one endpoint: we hold it to that */
    uint32_t rx_size;     /* and receives */
} pplx_fabric_limits;

typedef struct pplx_fabric_api {
    /* The options are those of the provider. */
    pplx_status (*domain_open)(const char *device, const pplx_option *options, size_t noptions,
                               pplx_fabric_domain **domain, pplx_fabric_limits *limits, pplx_error *error);
    void (*domain_close)(pplx_fabric_domain *domain);
    void (*domain_free)(pplx_fabric_domain *domain);

    /* The bytes of an address are hostile. Removing needs no work in flight to the peer. */
    pplx_status (*peer_insert)(pplx_fabric_domain *domain, const void *address, size_t nbytes, pplx_fabric_peer **peer,
                               pplx_error *error);
    void (*peer_remove)(pplx_fabric_domain *domain, pplx_fabric_peer *peer);

    /* There is no struct of ours: a region is free when it is closed. */
    pplx_status (*memory_open)(pplx_fabric_domain *domain, const pplx_memory *memory, uint32_t access,
                               pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error);
    pplx_status (*memory_close)(pplx_fabric_domain *domain, pplx_provider_mr *mr);

    pplx_status (*queue_open)(pplx_fabric_domain *domain, pplx_fabric_queue **queue, pplx_error *error);
    void (*queue_close)(pplx_fabric_queue *queue);
    void (*queue_free)(pplx_fabric_queue *queue);
    /* For epoll; -1 where the provider has none. Stays the same. */
    int (*queue_fd)(const pplx_fabric_queue *queue);
    /* True: the thread may sleep, the fd turns readable as soon as there is something to read. */
    bool (*queue_arm)(pplx_fabric_queue *queue);
    /* Take completions and make progress. `flags`: libfabric's, of each. *broken: the native error
     * that has ended the queue, as soon as all it had has been read; otherwise 0. */
    size_t (*queue_read)(pplx_fabric_queue *queue, pplx_completion *completions, uint64_t *flags, size_t capacity,
                         int32_t *broken);

    /* *nbytes: capacity of `address` in, its length out. */
    pplx_status (*endpoint_open)(pplx_fabric_queue *queue, pplx_fabric_endpoint **endpoint, void *address,
                                 size_t *nbytes, pplx_error *error);
    pplx_status (*endpoint_close)(pplx_fabric_endpoint *endpoint, pplx_error *error);
    size_t (*endpoint_flush)(pplx_fabric_endpoint *endpoint, pplx_completion *completions, uint64_t *flags,
                             size_t capacity);
    void (*endpoint_free)(pplx_fabric_endpoint *endpoint);
    /* `peer` is NULL for a RECV from anyone. PPLX_AGAIN: not taken, there is no room or no way yet. */
    pplx_status (*post)(pplx_fabric_endpoint *endpoint, const pplx_fabric_peer *peer, const pplx_work_request *request,
                        int32_t *provider_error);
} pplx_fabric_api;

const pplx_fabric_api *pplx_fabric_objects(void);

#endif
