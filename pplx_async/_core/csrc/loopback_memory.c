/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Registered memory of the loopback provider: a table by key in each domain, and the pins that make
 * mr_close() a fence. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "loopback_internal.h"

bool pplx_loopback_random_key(uint64_t *key) {
    ssize_t n;
    do n = getrandom(key, sizeof *key, 0);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof *key;
}

/* Keys are random, so their low bits are hash enough. */
static loopback_mr **bucket_of(loopback_domain *domain, uint64_t key) {
    return &domain->shared.buckets[key & (domain->shared.nbuckets - 1)];
}

loopback_mr *pplx_loopback_mr_find(loopback_domain *domain, uint64_t key) {
    if (domain->shared.nbuckets == 0) return NULL;
    loopback_mr *mr = *bucket_of(domain, key);
    while (mr && mr->key != key) mr = mr->next;
    return mr;
}

/* Room for one more, at one region per bucket on average. Holding the lock. */
static bool grow(loopback_domain *domain) {
    size_t old = domain->shared.nbuckets;
    if (domain->shared.nregions < old) return true;
    loopback_mr **before = domain->shared.buckets;
    loopback_mr **buckets = calloc(old ? 2 * old : 64, sizeof *buckets);
    if (!buckets) return false;
    domain->shared.buckets = buckets;
    domain->shared.nbuckets = old ? 2 * old : 64;
    for (size_t i = 0; i < old; i++) {
        for (loopback_mr *mr = before[i], *next; mr; mr = next) {
            next = mr->next;
            loopback_mr **bucket = bucket_of(domain, mr->key);
            mr->next = *bucket;
            *bucket = mr;
        }
    }
    free(before);
    return true;
}

pplx_status pplx_loopback_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                                  pplx_provider_mr **mr_out, pplx_remote_key *key, pplx_error *error) {
    loopback_domain *domain = (loopback_domain *)handle;
    if (memory->kind != PPLX_MEMORY_HOST)
        return loopback_fail(error, PPLX_REGISTRATION, 0, "loopback reaches memory of the host only");
    if (memory->nbytes == 0 || memory->address == 0 || memory->address + memory->nbytes < memory->address)
        return loopback_fail(error, PPLX_INVALID, 0, "no memory: address %#llx, %llu bytes",
                             (unsigned long long)memory->address, (unsigned long long)memory->nbytes);
    if (access & ~(uint32_t)(PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE))
        return loopback_fail(error, PPLX_INVALID, 0, "unknown access bits %#x", access);
    if (++domain->registrations == domain->plan.fail_registration)
        return loopback_fail(error, PPLX_REGISTRATION, ENOMEM,
                             "the fault plan refuses registration number %llu (fail_registration)",
                             (unsigned long long)domain->registrations);
    loopback_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return loopback_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for a region");
    mr->domain = domain;
    mr->address = memory->address;
    mr->nbytes = memory->nbytes;
    mr->access = access;

    pthread_mutex_lock(&domain->shared.lock);
    bool room = grow(domain), random = true;
    do random = random && pplx_loopback_random_key(&mr->key);
    while (random && room && (mr->key == 0 || pplx_loopback_mr_find(domain, mr->key)));
    if (room && random) {
        loopback_mr **bucket = bucket_of(domain, mr->key);
        mr->next = *bucket;
        *bucket = mr;
        domain->shared.nregions++;
    }
    pthread_mutex_unlock(&domain->shared.lock);
    if (!room || !random) {
        free(mr);
        return room ? loopback_fail(error, PPLX_NATIVE, errno, "getrandom() gives no key")
                    : loopback_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for the table of regions");
    }
    *mr_out = (pplx_provider_mr *)mr;
    *key = (pplx_remote_key){.key = mr->key, .base = mr->address};
    return PPLX_OK;
}

/* What of ours still wants to use `mr` ends with LOCAL_ACCESS, as on a NIC. Blocked records go back
 * to the queue so that they end at all. */
static void refuse_records(loopback_domain *domain, const loopback_mr *mr) {
    const pplx_provider_mr *handle = (const pplx_provider_mr *)mr;
    for (loopback_record *record = domain->queue.head; record; record = record->next)
        if (record->request.local_mr == handle) record->status = PPLX_LOCAL_ACCESS;
    for (loopback_record *record = domain->blocked.head, *next; record; record = next) {
        next = record->next;
        if (record->request.local_mr != handle) continue;
        record->status = PPLX_LOCAL_ACCESS;
        loopback_list_move(&domain->blocked, &domain->queue, record);
    }
}

pplx_status pplx_loopback_mr_close(pplx_provider_mr *handle) {
    loopback_mr *mr = (loopback_mr *)handle;
    loopback_domain *domain = mr->domain;
    if (++domain->deregistrations == domain->plan.fail_deregistration) return PPLX_NATIVE; /* it stays as it is */
    refuse_records(domain, mr);
    pthread_mutex_lock(&domain->shared.lock);
    for (loopback_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->domain_next) {
        for (loopback_record *record = endpoint->posted.head, *next; record; record = next) {
            next = record->next;
            if (record->request.local_mr != handle) continue;
            record->status = PPLX_LOCAL_ACCESS;
            loopback_list_move(&endpoint->posted, &domain->shared.received, record);
            atomic_fetch_or_explicit(&domain->attention, LOOPBACK_ARRIVED, memory_order_relaxed);
            pplx_loopback_wake(domain);
        }
    }
    loopback_mr **at = bucket_of(domain, mr->key);
    while (*at != mr) at = &(*at)->next;
    *at = mr->next;
    domain->shared.nregions--;
    pplx_loopback_wait_unpinned(domain, &mr->users);
    pthread_mutex_unlock(&domain->shared.lock);
    free(mr);
    return PPLX_OK;
}

void pplx_loopback_unpin(loopback_domain *domain, uint32_t *users) {
    if (--*users == 0 && domain->shared.closers > 0) pthread_cond_broadcast(&domain->shared.unpinned);
}

void pplx_loopback_wait_unpinned(loopback_domain *domain, const uint32_t *users) {
    domain->shared.closers++;
    while (*users > 0) pthread_cond_wait(&domain->shared.unpinned, &domain->shared.lock);
    domain->shared.closers--;
}
