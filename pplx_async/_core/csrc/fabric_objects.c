/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* See fabric_objects.h. The objects are the provider's own structs, used differently: an endpoint is a
 * fabric_endpoint without a peer, a work's state is the fabric_op in its pplx_op. */
#include "fabric_objects.h"

#if PPLX_HAVE_LIBFABRIC

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <rdma/fi_cm.h>

#include "fabric_internal.h"

/* All fields of all objects are under the lock of their domain. */
struct pplx_fabric_domain {
    pthread_mutex_t lock;
    fabric_domain *base; /* NULL once the library's side is closed */
    uint32_t children;   /* queues, endpoints and regions that the library knows */
    bool closed;
    pplx_fabric_limits limits;
};

struct pplx_fabric_queue {
    pplx_fabric_domain *domain;
    struct fid_cq *cq; /* NULL where each endpoint has its own */
    int fd;            /* of `cq`, or an epoll set of ours over theirs; or -1 */
    fabric_link endpoints;
    bool closed, ended;
};

struct pplx_fabric_endpoint {
    fabric_endpoint base; /* first; linked into queue->endpoints by in_domain */
    pplx_fabric_queue *queue;
    bool drained, ended;
};

static void lock(pplx_fabric_domain *domain) { pthread_mutex_lock(&domain->lock); }
static void unlock(pplx_fabric_domain *domain) { pthread_mutex_unlock(&domain->lock); }

static pplx_status closed(pplx_error *error, const char *what) {
    return fabric_fail(error, PPLX_CLOSED, 0, "the %s is closed", what);
}

/* ---- domain ---- */

static pplx_status domain_open(const char *device, const pplx_option *options, size_t noptions,
                               pplx_fabric_domain **out, pplx_fabric_limits *limits, pplx_error *error) {
    const char *file = NULL;
    pplx_fabric_domain *domain = calloc(1, sizeof *domain);
    if (!domain) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    pplx_status status = fabric_domain_open_bare(device, options, noptions, &domain->base, &file, error);
    if (status != PPLX_OK) {
        free(domain);
        return status;
    }
    pthread_mutex_init(&domain->lock, NULL);
    const struct fi_info *info = domain->base->info;
    domain->base->caps.max_message = info->ep_attr->max_msg_size; /* what fabric_check() looks at */
    *limits = (pplx_fabric_limits){.max_message = info->ep_attr->max_msg_size,
                                   .tx_size = (uint32_t)info->tx_attr->size,
                                   .rx_size = (uint32_t)info->rx_attr->size};
    domain->limits = *limits;
    *out = domain;
    return PPLX_OK;
}

/* It was closed, and nothing of it is left. */
static void end_domain(pplx_fabric_domain *domain) {
    if (!domain->base || !domain->closed || domain->children) return;
    while (domain->base->peers) {
        fabric_peer *peer = domain->base->peers;
        domain->base->peers = peer->next;
        free(peer);
    }
    fabric_domain_close((pplx_provider_domain *)domain->base);
    domain->base = NULL;
}

static void leave(pplx_fabric_domain *domain) {
    domain->children--;
    end_domain(domain);
}

static void domain_close(pplx_fabric_domain *domain) {
    lock(domain);
    domain->closed = true;
    end_domain(domain);
    unlock(domain);
}

static void domain_free(pplx_fabric_domain *domain) {
    domain_close(domain);
    if (domain->base) return; /* a child that the library would not close points here */
    pthread_mutex_destroy(&domain->lock);
    free(domain);
}

/* ---- peers and memory ---- */

static pplx_status peer_insert(pplx_fabric_domain *domain, const void *address, size_t nbytes, fabric_peer **peer,
                               pplx_error *error) {
    lock(domain);
    pplx_status status = PPLX_OK;
    if (domain->closed) {
        status = closed(error, "domain");
    } else {
        const struct fi_info *info = domain->base->info;
        status = fabric_address_check(info, info->src_addr, info->src_addrlen, address, nbytes, error);
        if (status == PPLX_OK) status = fabric_peer_insert(domain->base, address, nbytes, peer, error);
    }
    unlock(domain);
    return status;
}

static void peer_remove(pplx_fabric_domain *domain, fabric_peer *peer) {
    lock(domain);
    if (domain->base) fabric_peer_remove(domain->base, peer);
    unlock(domain);
}

static pplx_status memory_open(pplx_fabric_domain *domain, const pplx_memory *memory, uint32_t access,
                               pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error) {
    lock(domain);
    pplx_status status = domain->closed
                             ? closed(error, "domain")
                             : fabric_mr_open((pplx_provider_domain *)domain->base, memory, access, mr, key, error);
    if (status == PPLX_OK) domain->children++;
    unlock(domain);
    return status;
}

static pplx_status memory_close(pplx_fabric_domain *domain, pplx_provider_mr *mr) {
    lock(domain);
    pplx_status status = fabric_mr_close(mr);
    if (status == PPLX_OK) leave(domain);
    unlock(domain);
    return status;
}

/* ---- queue ---- */

static pplx_status queue_open(pplx_fabric_domain *domain, pplx_fabric_queue **out, pplx_error *error) {
    pplx_status status = PPLX_OK;
    int ret = 0;
    pplx_fabric_queue *queue = calloc(1, sizeof *queue);
    if (!queue) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    queue->domain = domain;
    queue->fd = -1;
    fabric_list_init(&queue->endpoints);
    lock(domain);
    if (domain->closed)
        status = closed(error, "domain");
    else if (!domain->base->quirks->cq_per_endpoint)
        ret = fabric_cq_open(domain->base, &queue->cq, &queue->fd);
    else if (domain->base->quirks->wait_fd)
        queue->fd = epoll_create1(EPOLL_CLOEXEC);
    if (ret)
        status = fabric_fail(error, PPLX_NATIVE, -ret, "fi_cq_open (%s): %s", domain->base->quirks->name,
                             domain->base->lib->strerror(-ret));
    if (status == PPLX_OK) domain->children++;
    unlock(domain);
    if (status != PPLX_OK)
        free(queue);
    else
        *out = queue;
    return status;
}

static void end_queue(pplx_fabric_queue *queue) {
    if (queue->ended || !queue->closed || !fabric_list_empty(&queue->endpoints)) return;
    queue->ended = true;
    if (queue->cq)
        fi_close(&queue->cq->fid);
    else if (queue->fd >= 0)
        close(queue->fd);
    leave(queue->domain);
}

static void queue_close(pplx_fabric_queue *queue) {
    lock(queue->domain);
    queue->closed = true;
    for (fabric_link *link = queue->endpoints.next; link != &queue->endpoints; link = link->next)
        fabric_endpoint_of(link)->closing = true; /* takes no more posts */
    end_queue(queue);
    unlock(queue->domain);
}

static void queue_free(pplx_fabric_queue *queue) {
    queue_close(queue);
    if (queue->ended) free(queue);
}

static int queue_fd(const pplx_fabric_queue *queue) { return queue->fd; }

/* fi_trywait() of the CQ of a closed endpoint reads freed memory (tcp;ofi_rxm): one that is being
 * flushed has something to be read anyway. */
static bool arm_own(const fabric_endpoint *endpoint) {
    return endpoint->ep && !endpoint->settled_ns && fabric_may_sleep(endpoint->domain, endpoint->cq);
}

static bool queue_arm(pplx_fabric_queue *queue) {
    bool armed = false;
    lock(queue->domain);
    if (!queue->closed && queue->fd >= 0 && !queue->domain->base->broken) {
        armed = !queue->cq || fabric_may_sleep(queue->domain->base, queue->cq);
        for (fabric_link *link = queue->endpoints.next; !queue->cq && link != &queue->endpoints; link = link->next)
            armed = armed && arm_own(fabric_endpoint_of(link));
    }
    unlock(queue->domain);
    return armed;
}

/* Where each endpoint has its own CQ, another one comes first each time: none starves the others. */
static size_t read_all(pplx_fabric_queue *queue, pplx_completion *completions, uint64_t *flags, size_t capacity) {
    size_t count = 0;
    bool empty;
    if (queue->cq) return fabric_cq_read(queue->domain->base, queue->cq, completions, flags, capacity, &empty);
    for (fabric_link *link = queue->endpoints.next; link != &queue->endpoints; link = link->next)
        count += fabric_cq_read_own(fabric_endpoint_of(link), completions + count, flags + count, capacity - count);
    if (!fabric_list_empty(&queue->endpoints)) {
        fabric_link *first = queue->endpoints.next;
        fabric_list_remove(first);
        fabric_list_append(&queue->endpoints, first);
    }
    return count;
}

/* What was posted and will never complete. */
static size_t end_posted(fabric_endpoint *endpoint, pplx_status status, int32_t provider_error,
                         pplx_completion *completions, uint64_t *flags, size_t capacity) {
    size_t count = 0;
    for (; count < capacity && !fabric_list_empty(&endpoint->posted); count++) {
        fabric_finish(fabric_op_of(endpoint->posted.next), &completions[count], status, provider_error, 0);
        flags[count] = 0;
    }
    return count;
}

static size_t queue_read(pplx_fabric_queue *queue, pplx_completion *completions, uint64_t *flags, size_t capacity,
                         int32_t *broken) {
    size_t count = 0;
    *broken = 0;
    lock(queue->domain);
    if (!queue->ended) {
        const fabric_domain *base = queue->domain->base;
        count = read_all(queue, completions, flags, capacity);
        if (base->broken) {
            for (fabric_link *link = queue->endpoints.next; link != &queue->endpoints; link = link->next)
                count += end_posted(fabric_endpoint_of(link), PPLX_TRANSPORT, base->broken, completions + count,
                                    flags + count, capacity - count);
            if (!count) *broken = base->broken;
        }
    }
    unlock(queue->domain);
    return count;
}

/* ---- endpoint ---- */

static pplx_status open_locked(pplx_fabric_queue *queue, pplx_fabric_endpoint *endpoint, void *address, size_t *nbytes,
                               pplx_error *error) {
    fabric_domain *base = queue->domain->base;
    const size_t capacity = *nbytes;
    struct fid_cq *cq = queue->cq;
    struct fid_ep *ep = NULL;
    if (queue->closed) return closed(error, "completion queue");
    int ret = queue->cq ? 0 : fabric_cq_open_in(base, queue->fd, &cq);
    if (!ret && !queue->cq && queue->fd >= 0 && !fabric_cq_wakes(cq)) { /* nobody would hear of its completions */
        fabric_cq_close_in(base, queue->fd, cq);
        return fabric_fail(error, PPLX_UNSUPPORTED, 0, "%s wakes a queue for %u endpoints at most", base->quirks->name,
                           base->quirks->max_wait_fds);
    }
    if (ret) return fabric_fail(error, PPLX_NATIVE, -ret, "fi_cq_open: %s", base->lib->strerror(-ret));
    pplx_status status = fabric_ep_open_on(base, cq, &ep, error);
    if (status != PPLX_OK) goto fail;
    ret = fi_getname(&ep->fid, address, nbytes);
    if (ret || *nbytes > capacity) {
        status = fabric_fail(error, ret ? PPLX_NATIVE : PPLX_TOO_LARGE, -ret, "fi_getname: %s",
                             ret ? base->lib->strerror(-ret) : "the address is too long");
        goto fail;
    }
    endpoint->queue = queue;
    endpoint->base = (fabric_endpoint){.domain = base, .ep = ep, .cq = cq};
    fabric_list_init(&endpoint->base.posted);
    fabric_list_init(&endpoint->base.waiting);
    fabric_list_append(&queue->endpoints, &endpoint->base.in_domain);
    queue->domain->children++;
    return PPLX_OK;

fail:
    if (ep) fi_close(&ep->fid);
    if (!queue->cq) fabric_cq_close_in(base, queue->fd, cq);
    return status;
}

static pplx_status endpoint_open(pplx_fabric_queue *queue, pplx_fabric_endpoint **out, void *address, size_t *nbytes,
                                 pplx_error *error) {
    pplx_fabric_endpoint *endpoint = calloc(1, sizeof *endpoint);
    if (!endpoint) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    lock(queue->domain);
    pplx_status status = open_locked(queue, endpoint, address, nbytes, error);
    unlock(queue->domain);
    if (status != PPLX_OK)
        free(endpoint);
    else
        *out = endpoint;
    return status;
}

static pplx_status endpoint_close(pplx_fabric_endpoint *endpoint, pplx_error *error) {
    pplx_status status = PPLX_OK;
    fabric_endpoint *base = &endpoint->base;
    lock(endpoint->queue->domain);
    base->closing = true;
    if (base->ep) {
        int ret = fabric_ep_close(base);
        if (ret)
            status = fabric_fail(error, PPLX_NATIVE, -ret, "fi_close of an endpoint: %s",
                                 base->domain->lib->strerror(-ret));
        else
            base->ep = NULL;
    }
    unlock(endpoint->queue->domain);
    return status;
}

/* Now the library touches the memory of its works no more, and reports none but those that it has
 * reported already. */
static size_t endpoint_flush(pplx_fabric_endpoint *endpoint, pplx_completion *completions, uint64_t *flags,
                             size_t capacity) {
    pplx_fabric_queue *queue = endpoint->queue;
    fabric_endpoint *base = &endpoint->base;
    size_t count = 0;
    lock(queue->domain);
    while (!endpoint->ended && !base->ep && !endpoint->drained && count < capacity) {
        bool empty = false;
        count += fabric_cq_read(base->domain, base->cq, completions + count, flags + count, capacity - count, &empty);
        endpoint->drained = empty || base->domain->broken;
    }
    if (endpoint->drained && !endpoint->ended) {
        count += end_posted(base, PPLX_FLUSHED, FI_ECANCELED, completions + count, flags + count, capacity - count);
        if (!count) {
            endpoint->ended = true;
            fabric_list_remove(&base->in_domain);
            if (!queue->cq) fabric_cq_close_in(base->domain, queue->fd, base->cq);
            leave(queue->domain);
            end_queue(queue);
        }
    }
    unlock(queue->domain);
    return count;
}

static void endpoint_free(pplx_fabric_endpoint *endpoint) {
    if (endpoint->ended) free(endpoint); /* otherwise the library would not close it, and still knows it */
}

static bool is_full(const pplx_fabric_endpoint *endpoint, const pplx_work_request *request) {
    const pplx_fabric_limits *limits = &endpoint->queue->domain->limits;
    return request->opcode == PPLX_RECV ? endpoint->base.receives >= limits->rx_size
                                        : endpoint->base.inflight >= limits->tx_size;
}

static pplx_status post(pplx_fabric_endpoint *endpoint, const fabric_peer *peer, const pplx_work_request *request,
                        int32_t *provider_error) {
    fabric_endpoint *base = &endpoint->base;
    *provider_error = 0;
    lock(endpoint->queue->domain);
    pplx_status status = fabric_check(base, request);
    if (status == PPLX_OK && base->domain->broken) {
        status = PPLX_TRANSPORT;
        *provider_error = base->domain->broken;
    } else if (status == PPLX_OK && (is_full(endpoint, request) || base->settled_ns)) {
        status = PPLX_AGAIN; /* our own cap: tcp takes any number (2.5.1) */
    } else if (status == PPLX_OK) {
        ssize_t ret = fabric_post_to(base, peer ? peer->address : FI_ADDR_UNSPEC, request, FI_COMPLETION);
        if (ret) {
            status = fabric_status((int)-ret);
            if (status != PPLX_AGAIN) *provider_error = (int32_t)-ret;
            if (status == PPLX_TRANSPORT || status == PPLX_CONNECTION) fabric_unsettle(base);
        }
    }
    unlock(endpoint->queue->domain);
    return status;
}

const pplx_fabric_api *pplx_fabric_objects(void) {
    static const pplx_fabric_api api = {
        .domain_open = domain_open,
        .domain_close = domain_close,
        .domain_free = domain_free,
        .peer_insert = peer_insert,
        .peer_remove = peer_remove,
        .memory_open = memory_open,
        .memory_close = memory_close,
        .queue_open = queue_open,
        .queue_close = queue_close,
        .queue_free = queue_free,
        .queue_fd = queue_fd,
        .queue_arm = queue_arm,
        .queue_read = queue_read,
        .endpoint_open = endpoint_open,
        .endpoint_close = endpoint_close,
        .endpoint_flush = endpoint_flush,
        .endpoint_free = endpoint_free,
        .post = post,
    };
    return &api;
}

#else

#include <stdio.h>

static pplx_status domain_open(const char *device, const pplx_option *options, size_t noptions,
                               pplx_fabric_domain **domain, pplx_fabric_limits *limits, pplx_error *error) {
    (void)device, (void)options, (void)noptions, (void)domain, (void)limits;
    *error = (pplx_error){.status = PPLX_UNAVAILABLE};
    snprintf(error->text, sizeof error->text,
             "this build has no libfabric: its headers were not found when it was compiled; "
             "apt-get install libfabric-dev and rebuild, or install a wheel");
    return PPLX_UNAVAILABLE;
}

const pplx_fabric_api *pplx_fabric_objects(void) {
    static const pplx_fabric_api api = {.domain_open = domain_open};
    return &api;
}

#endif
