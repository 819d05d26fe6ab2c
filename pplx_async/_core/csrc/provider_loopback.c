/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The loopback provider: a fabric inside one process, for tests, demos and whoever has no NIC. It
 * promises no more than EFA does (any order, registered local memory, valid keys, an address handle
 * on both sides), and under a fault plan less. This file: the fabric, domains, endpoints, the ops
 * table. The map of the rest, with the rules for threads and locks, is in loopback_internal.h.
 *
 * Addresses. An endpoint is named by 24 bytes: a magic, the process's nonce, the endpoint's token,
 * the latter two random. They are looked up, never followed, so hostile bytes find nothing.
 *
 * Lifetimes. An endpoint outlives its close as long as a peer names it, and a domain outlives its
 * close as long as an endpoint points to it, so a lock that a peer may take is always there. The
 * references go in one direction each, and close() drops them, so there are no cycles left. */
#include "loopback_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------ the fabric */

static struct {
    pthread_mutex_t lock;
    loopback_endpoint *endpoints; /* open ones, of all domains */
    uint64_t nonce;               /* 0 until the first endpoint */
} fabric = {.lock = PTHREAD_MUTEX_INITIALIZER};

typedef struct loopback_address {
    char magic[8];
    uint64_t nonce;
    uint64_t token;
} loopback_address;

static const char address_magic[8] = {'P', 'P', 'L', 'X', 'L', 'O', 'O', 'P'};

/* Holding the fabric's lock. */
static loopback_endpoint *find_endpoint(uint64_t token) {
    loopback_endpoint *endpoint = fabric.endpoints;
    while (endpoint && endpoint->token != token) endpoint = endpoint->fabric_next;
    return endpoint;
}

/* ------------------------------------------------------------------ lifetimes */

static void unref_domain(loopback_domain *domain) {
    /* acq_rel: what the others did before they let go happens before we free */
    if (atomic_fetch_sub_explicit(&domain->references, 1, memory_order_acq_rel) != 1) return;
    pthread_cond_destroy(&domain->shared.unpinned);
    pthread_mutex_destroy(&domain->shared.lock);
    free(domain->shared.buckets);
    free(domain->shared.imms);
    free(domain);
}

static void unref_endpoint(loopback_endpoint *endpoint) {
    /* acq_rel: as in unref_domain() */
    if (atomic_fetch_sub_explicit(&endpoint->references, 1, memory_order_acq_rel) != 1) return;
    loopback_domain *domain = endpoint->domain;
    free(endpoint->records.all);
    free(endpoint->receives.all);
    free(endpoint);
    unref_domain(domain);
}

/* ------------------------------------------------------------------ domains */

static pplx_status loopback_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                                     size_t *count, pplx_error *error) {
    loopback_plan plan;
    pplx_status status = pplx_loopback_plan_parse(&plan, options, noptions, error);
    *count = 0;
    if (status != PPLX_OK) return status;
    for (unsigned i = 0; i < LOOPBACK_DEVICES && i < capacity; i++) {
        devices[i] = (pplx_device){
            .provider = "loopback", .address = "in-process", .bits_per_second = plan.bits_per_second};
        snprintf(devices[i].name, sizeof devices[i].name, "loop%u", i);
        snprintf(devices[i].description, sizeof devices[i].description,
                 "in-process fabric: reaches engines of this process only");
    }
    *count = LOOPBACK_DEVICES;
    return PPLX_OK;
}

static pplx_status loopback_domain_open(const char *device, const pplx_option *options, size_t noptions,
                                        pplx_provider_domain **domain_out, pplx_error *error) {
    loopback_plan plan;
    pplx_status status = pplx_loopback_plan_parse(&plan, options, noptions, error);
    if (status != PPLX_OK) return status;
    if (strncmp(device, "loop", 4) != 0 || device[4] < '0' || device[4] >= '0' + LOOPBACK_DEVICES || device[5] != '\0')
        return loopback_fail(error, PPLX_UNAVAILABLE, ENODEV, "loopback has no device '%.60s': it has loop0 to loop%d",
                             device, LOOPBACK_DEVICES - 1);
    if (plan.device != UINT64_MAX && plan.device != (uint64_t)(device[4] - '0'))
        pplx_loopback_plan_parse(&plan, NULL, 0, error);

    loopback_domain *domain = calloc(1, sizeof *domain);
    loopback_imm *imms = calloc(LOOPBACK_IMM_RING, sizeof *imms);
    if (!domain || !imms) {
        free(domain);
        free(imms);
        return loopback_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for a loopback domain");
    }
    domain->plan = plan;
    domain->device = (uint32_t)(device[4] - '0');
    domain->shared.imms = imms;
    /* Domains of one seed differ by device, so that NICs of one engine don't fail in step. */
    domain->random = plan.seed + domain->device * UINT64_C(0xd1342543de82ef95);
    if (!pplx_loopback_wake_open(domain)) {
        int native = errno;
        free(domain);
        free(imms);
        return loopback_fail(error, PPLX_NATIVE, native, "no wait fd: %s", strerror(native));
    }
    pthread_mutex_init(&domain->shared.lock, NULL);
    pthread_cond_init(&domain->shared.unpinned, NULL);
    atomic_init(&domain->references, 1);
    atomic_init(&domain->attention, 0);
    if (plan.drop_after == 0) pplx_loopback_silence(domain);
    *domain_out = (pplx_provider_domain *)domain;
    return PPLX_OK;
}

static void loopback_domain_close(pplx_provider_domain *handle) {
    loopback_domain *domain = (loopback_domain *)handle;
    pplx_loopback_wake_close(domain);
    unref_domain(domain);
}

static void loopback_domain_caps(pplx_provider_domain *handle, pplx_caps *caps) {
    const loopback_plan *plan = &((loopback_domain *)handle)->plan;
    uint32_t flags = PPLX_CAP_READ | PPLX_CAP_PROMPT;
    if (plan->wait_fd) flags |= PPLX_CAP_WAIT_FD;
    if (plan->release) flags |= PPLX_CAP_FENCE;
    *caps = (pplx_caps){
        .flags = flags,
        .max_inflight = plan->max_inflight,
        .max_inflight_bytes = 64u << 20,
        .max_message = plan->max_message,
        .eager_posts = plan->eager_posts,
        .posts_per_turn = plan->posts_per_turn,
        .bits_per_second = plan->bits_per_second,
    };
    bool faults = plan->reorder > 0 || plan->delay_max_ns > 0 || plan->again > 0 || plan->fail > 0 ||
                  plan->fail_after != UINT64_MAX || plan->fail_registration != UINT64_MAX ||
                  plan->fail_deregistration != UINT64_MAX || plan->drop_after != UINT64_MAX || !plan->release;
    if (faults)
        snprintf(caps->description, sizeof caps->description, "in-process loopback with a fault plan, seed %llu",
                 (unsigned long long)plan->seed);
    else
        snprintf(caps->description, sizeof caps->description, "in-process loopback");
}

/* ------------------------------------------------------------------ endpoints */

static pplx_status loopback_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **endpoint_out,
                                          void *address, size_t *nbytes, pplx_error *error) {
    loopback_domain *domain = (loopback_domain *)handle;
    if (*nbytes < sizeof(loopback_address))
        return loopback_fail(error, PPLX_INVALID, 0, "an address needs %zu bytes, there are %zu",
                             sizeof(loopback_address), *nbytes);
    uint32_t size = domain->plan.max_inflight;
    loopback_endpoint *endpoint = calloc(1, sizeof *endpoint);
    loopback_record *records = calloc(size + PPLX_RESERVED_IMMS, sizeof *records);
    loopback_record *receives = calloc(size, sizeof *receives);
    pplx_status status = PPLX_OK;
    if (!endpoint || !records || !receives) {
        status = loopback_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for an endpoint");
        goto fail;
    }
    endpoint->domain = domain;
    endpoint->records = (loopback_pool){.all = records, .size = size + PPLX_RESERVED_IMMS};
    endpoint->receives = (loopback_pool){.all = receives, .size = size};
    atomic_init(&endpoint->references, 1);

    loopback_address bytes;
    pthread_mutex_lock(&fabric.lock);
    bool random = true;
    while (random && fabric.nonce == 0) random = pplx_loopback_random_key(&fabric.nonce);
    do random = random && pplx_loopback_random_key(&endpoint->token);
    while (random && find_endpoint(endpoint->token));
    if (random) {
        endpoint->fabric_next = fabric.endpoints;
        if (fabric.endpoints) fabric.endpoints->fabric_prev = endpoint;
        fabric.endpoints = endpoint;
    }
    bytes = (loopback_address){.nonce = fabric.nonce, .token = endpoint->token};
    pthread_mutex_unlock(&fabric.lock);
    if (!random) {
        status = loopback_fail(error, PPLX_NATIVE, errno, "getrandom() gives no token");
        goto fail;
    }

    /* relaxed: the caller has a reference, so nobody frees it meanwhile */
    atomic_fetch_add_explicit(&domain->references, 1, memory_order_relaxed);
    endpoint->domain_next = domain->endpoints;
    if (domain->endpoints) domain->endpoints->domain_prev = endpoint;
    domain->endpoints = endpoint;
    memcpy(bytes.magic, address_magic, sizeof bytes.magic);
    memcpy(address, &bytes, sizeof bytes);
    *nbytes = sizeof bytes;
    *endpoint_out = (pplx_provider_endpoint *)endpoint;
    return PPLX_OK;

fail:
    free(endpoint);
    free(records);
    free(receives);
    return status;
}

static pplx_status loopback_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                             pplx_error *error) {
    loopback_endpoint *endpoint = (loopback_endpoint *)handle;
    loopback_address bytes;
    if (endpoint->peer) return loopback_fail(error, PPLX_INVALID, 0, "the endpoint is connected already");
    if (nbytes != sizeof bytes)
        return loopback_fail(error, PPLX_INVALID, 0, "a loopback address has %zu bytes, not %zu", sizeof bytes, nbytes);
    memcpy(&bytes, address, sizeof bytes);
    if (memcmp(bytes.magic, address_magic, sizeof bytes.magic) != 0)
        return loopback_fail(error, PPLX_INVALID, 0, "not a loopback address");

    pthread_mutex_lock(&fabric.lock);
    bool ours = bytes.nonce == fabric.nonce;
    loopback_endpoint *peer = ours ? find_endpoint(bytes.token) : NULL;
    if (peer) {
        /* relaxed: it is in the fabric's list, so its owner's reference is there, under this lock */
        atomic_fetch_add_explicit(&peer->references, 1, memory_order_relaxed);
        pthread_mutex_lock(&endpoint->domain->shared.lock);
        endpoint->peer = peer;
        pthread_mutex_unlock(&endpoint->domain->shared.lock);
    }
    pthread_mutex_unlock(&fabric.lock);
    if (!ours)
        return loopback_fail(error, PPLX_INVALID, 0, "the address is of another process: loopback ends at this one");
    if (!peer) return loopback_fail(error, PPLX_PEER_LOST, 0, "the peer's endpoint is not open any more");
    pplx_loopback_poke(peer->domain); /* its post() may have said PPLX_AGAIN */
    return PPLX_OK;
}

bool pplx_loopback_connected(loopback_endpoint *self) {
    loopback_endpoint *peer = self->peer;
    if (!peer) return false;
    pthread_mutex_lock(&peer->domain->shared.lock);
    bool connected = peer->peer == self || peer->closed;
    pthread_mutex_unlock(&peer->domain->shared.lock);
    return connected;
}

static void drop_records(loopback_list *list, const loopback_endpoint *endpoint) {
    for (loopback_record *record = list->head, *next; record; record = next) {
        next = record->next;
        if (record->endpoint == endpoint) loopback_list_remove(list, record);
    }
}

/* A provider that can't fence: what waits for the peer is flushed, the rest goes on to complete. */
static void start_closing(loopback_endpoint *endpoint) {
    loopback_domain *domain = endpoint->domain;
    endpoint->closing = true;
    for (loopback_record *record = domain->blocked.head, *next; record; record = next) {
        next = record->next;
        if (record->endpoint != endpoint) continue;
        record->status = PPLX_FLUSHED;
        loopback_list_move(&domain->blocked, &domain->queue, record);
    }
    pthread_mutex_lock(&domain->shared.lock);
    while (endpoint->posted.head) {
        endpoint->posted.head->status = PPLX_FLUSHED;
        loopback_list_move(&endpoint->posted, &domain->shared.received, endpoint->posted.head);
        atomic_fetch_or_explicit(&domain->attention, LOOPBACK_ARRIVED, memory_order_relaxed); /* relaxed: a hint */
    }
    pthread_mutex_unlock(&domain->shared.lock);
    pplx_loopback_poke(domain); /* if it is armed, poll() has work now */
}

static pplx_status loopback_endpoint_close(pplx_provider_endpoint *handle) {
    loopback_endpoint *endpoint = (loopback_endpoint *)handle;
    loopback_domain *domain = endpoint->domain;
    if (!domain->plan.release && endpoint->outstanding > 0) {
        if (!endpoint->closing) start_closing(endpoint);
        return PPLX_UNRELEASED;
    }
    /* Ours: executed by this thread only, so off the lists is off for good. */
    drop_records(&domain->queue, endpoint);
    drop_records(&domain->blocked, endpoint);
    drop_records(&domain->done, endpoint);
    /* The peer's: `closed` lets none begin, and no pin means that none is under way. What such a
     * copy reported last is dropped behind the wait. */
    pthread_mutex_lock(&domain->shared.lock);
    endpoint->closed = true;
    pplx_loopback_wait_unpinned(domain, &endpoint->users);
    drop_records(&domain->shared.received, endpoint);
    pthread_mutex_unlock(&domain->shared.lock);

    pthread_mutex_lock(&fabric.lock);
    *(endpoint->fabric_prev ? &endpoint->fabric_prev->fabric_next : &fabric.endpoints) = endpoint->fabric_next;
    if (endpoint->fabric_next) endpoint->fabric_next->fabric_prev = endpoint->fabric_prev;
    pthread_mutex_lock(&domain->shared.lock);
    loopback_endpoint *peer = endpoint->peer;
    endpoint->peer = NULL;
    pthread_mutex_unlock(&domain->shared.lock);
    /* Whoever waits for us is to learn that we are gone: its records end with PEER_LOST. */
    for (loopback_endpoint *other = fabric.endpoints; other; other = other->fabric_next)
        if (other->peer == endpoint) pplx_loopback_poke(other->domain);
    pthread_mutex_unlock(&fabric.lock);

    *(endpoint->domain_prev ? &endpoint->domain_prev->domain_next : &domain->endpoints) = endpoint->domain_next;
    if (endpoint->domain_next) endpoint->domain_next->domain_prev = endpoint->domain_prev;
    if (peer) unref_endpoint(peer); /* may be the endpoint itself, which its owner's reference still holds */
    unref_endpoint(endpoint);
    return PPLX_OK;
}

const pplx_provider pplx_provider_loopback = {
    .size = sizeof(pplx_provider),
    .abi = PPLX_PROVIDER_ABI,
    .name = "loopback",
    .discover = loopback_discover,
    .domain_open = loopback_domain_open,
    .domain_close = loopback_domain_close,
    .domain_caps = loopback_domain_caps,
    .endpoint_open = loopback_endpoint_open,
    .endpoint_connect = loopback_endpoint_connect,
    .endpoint_close = loopback_endpoint_close,
    .mr_open = pplx_loopback_mr_open,
    .mr_close = pplx_loopback_mr_close,
    .post = pplx_loopback_post,
    .poll = pplx_loopback_poll,
    .arm = pplx_loopback_arm,
    .wait_fd = pplx_loopback_wait_fd,
};
