/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Our registered memory: regions by key, and which peer was told of what.
 *
 * A region is *mappable* if the engine names the memfd it lies in. A peer that asks for it gets a
 * descriptor, one for reading only if it may not write there. Whoever has a descriptor has the whole
 * memfd, so an engine gives each allocation one of its own. All other memory is *staged*: no peer
 * ever has it, we copy on its behalf (ipc_serve.c); or *addressed*, for peers that we trust: they are
 * told where it lies, and have the kernel copy (ipc_direct.c).
 *
 * When a region is closed its key is gone at once, for commands. Peers that know it are told to let
 * go; the word `news` makes them read that before their next operation. It is no fence: a copy that
 * a peer has begun goes on, into pages that nobody else gets as long as the peer has them. Addressed
 * memory can't be taken elsewhere: as long as a peer that knows it has not let go, it isn't closed. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipc_internal.h"

/* ------------------------------------------------------------------ regions */

/* Keys are random, so their low bits are hash enough. */
static ipc_region **bucket_of(const ipc_domain *domain, uint64_t key) {
    return &domain->buckets[key & (domain->nbuckets - 1)];
}

ipc_region *pplx_ipc_region_find(const ipc_domain *domain, uint64_t key) {
    if (domain->nbuckets == 0) return NULL;
    ipc_region *region = *bucket_of(domain, key);
    while (region && region->key != key) region = region->next;
    return region;
}

/* Room for one more, at one region per bucket on average. */
static bool grow(ipc_domain *domain) {
    size_t old = domain->nbuckets;
    if (domain->nregions < old) return true;
    ipc_region **before = domain->buckets;
    ipc_region **buckets = calloc(old ? 2 * old : 64, sizeof(ipc_region *));
    if (!buckets) return false;
    domain->buckets = buckets;
    domain->nbuckets = old ? 2 * old : 64;
    for (size_t i = 0; i < old; i++) {
        for (ipc_region *region = before[i], *next; region; region = next) {
            next = region->next;
            ipc_region **bucket = bucket_of(domain, region->key);
            region->next = *bucket;
            *bucket = region;
        }
    }
    free(before);
    return true;
}

pplx_status pplx_ipc_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                             pplx_provider_mr **mr_out, pplx_remote_key *key, pplx_error *error) {
    ipc_domain *domain = (ipc_domain *)handle;
    if (memory->kind != PPLX_MEMORY_HOST && memory->kind != PPLX_MEMORY_CUDA)
        return ipc_fail(error, PPLX_UNSUPPORTED, 0, "ipc registers memory of the host and of GPUs only");
    if (memory->nbytes == 0 || memory->address == 0 || memory->address + memory->nbytes < memory->address)
        return ipc_fail(error, PPLX_INVALID, 0, "no memory: address %#llx, %llu bytes",
                        (unsigned long long)memory->address, (unsigned long long)memory->nbytes);
    if (access & ~(uint32_t)(PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE))
        return ipc_fail(error, PPLX_INVALID, 0, "unknown access bits %#x", access);
    ipc_region *region = calloc(1, sizeof *region);
    if (!region || !grow(domain)) {
        free(region);
        return ipc_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for a region");
    }
    *region = (ipc_region){.domain = domain,
                           .address = memory->address,
                           .nbytes = memory->nbytes,
                           .access = access,
                           .ordinary = memory->fd < 0};
    bool random;
    do random = pplx_ipc_random(&region->key, sizeof region->key);
    while (random && (region->key == 0 || pplx_ipc_region_find(domain, region->key)));
    pplx_status status = PPLX_OK;
    if (!random) status = ipc_fail(error, PPLX_NATIVE, errno, "getrandom() gives no key");
    if (status == PPLX_OK && memory->kind == PPLX_MEMORY_CUDA) status = pplx_ipc_cuda_region(region, memory, error);
    if (status == PPLX_OK && memory->fd >= 0) status = pplx_ipc_segment_find(domain, memory, &region->segment, error);
    if (status != PPLX_OK) {
        pplx_ipc_cuda_unshare(region);
        free(region);
        return status;
    }
    if (region->segment) region->segment->regions++;
    ipc_region **bucket = bucket_of(domain, region->key);
    region->next = *bucket;
    *bucket = region;
    domain->nregions++;
    *mr_out = (pplx_provider_mr *)region;
    *key = (pplx_remote_key){.key = region->key, .base = 0};
    return PPLX_OK;
}

/* What of ours still wants to use it ends with LOCAL_ACCESS, as on a NIC. What is in commands is not
 * copied back any more, and ends when those are acknowledged. */
static void refuse_records(ipc_endpoint *endpoint, const pplx_provider_mr *handle) {
    ipc_list *lists[] = {&endpoint->queue, &endpoint->sends, &endpoint->waiting, &endpoint->receives};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        for (ipc_record *record = lists[i]->head, *next; record; record = next) {
            next = record->next;
            if (record->request.local_mr != handle) continue;
            if (record->pending || record->moved) /* the peer is in the middle of it */
                record->status = PPLX_LOCAL_ACCESS;
            else
                pplx_ipc_finish(lists[i], record, PPLX_LOCAL_ACCESS);
        }
    }
    if (endpoint->receiving && endpoint->receiving->request.local_mr == handle) {
        pplx_ipc_finish(NULL, endpoint->receiving, PPLX_LOCAL_ACCESS);
        endpoint->receiving = NULL;
    }
    endpoint->queue_blocked = endpoint->sends_blocked = IPC_RUNNABLE;
}

/* False: it was closed before, and could not be fenced. */
static bool take_out(ipc_region *region) {
    ipc_domain *domain = region->domain;
    const bool open = pplx_ipc_region_find(domain, region->key) == region;
    ipc_region **at = open ? bucket_of(domain, region->key) : &domain->unfenced;
    while (*at != region) at = &(*at)->next;
    *at = region->next;
    domain->nregions -= open;
    return open;
}

/* PPLX_UNRELEASED: its key is gone, but who was told its address may still write there. To be called
 * again; from then on it doesn't wait. */
pplx_status pplx_ipc_mr_close(pplx_provider_mr *handle) {
    ipc_region *region = (ipc_region *)handle;
    ipc_domain *domain = region->domain;
    for (ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
        refuse_records(endpoint, handle);
    if (!pplx_ipc_fence_region(region, take_out(region) ? IPC_FENCE_NS : 0)) {
        region->next = domain->unfenced;
        domain->unfenced = region;
        return PPLX_UNRELEASED;
    }
    for (ipc_export *export = region->exports, *next; export; export = next) {
        next = export->region_next;
        export->region = NULL;
        export->addressed = false; /* its peer is gone */
        export->opened = 0;
    }
    if (region->segment) {
        region->segment->regions--;
        pplx_ipc_segment_release(domain, region->segment);
    }
    pplx_ipc_cuda_unshare(region);
    free(region);
    return PPLX_OK;
}

/* ------------------------------------------------------------------ what peers know */

static void free_export(ipc_export *export) {
    ipc_endpoint *endpoint = export->endpoint;
    ipc_export **at = &endpoint->exports;
    while (*at != export) at = &(*at)->endpoint_next;
    *at = export->endpoint_next;
    if (export->region) {
        at = &export->region->exports;
        while (*at != export) at = &(*at)->region_next;
        *at = export->region_next;
    }
    endpoint->unwanted -= export->state == IPC_EXPORT_UNWANTED;
    endpoint->revoking -= export->state == IPC_EXPORT_REVOKED;
    if (export->segment) {
        export->segment->exports--;
        pplx_ipc_segment_release(endpoint->domain, export->segment);
    }
    free(export);
}

void pplx_ipc_drop_exports(ipc_endpoint *endpoint) {
    while (endpoint->exports) free_export(endpoint->exports);
}

void pplx_ipc_unwant(ipc_export *export) {
    if (export->state != IPC_EXPORT_HELD) return;
    export->state = IPC_EXPORT_UNWANTED;
    export->endpoint->unwanted++;
}

/* As many as may be unanswered; the rest follows the answers. */
void pplx_ipc_send_revokes(ipc_endpoint *endpoint) {
    if (endpoint->state != IPC_UP || endpoint->closing) return; /* a goodbye takes back everything */
    for (ipc_export *export = endpoint->exports; export && endpoint->unwanted; export = export->endpoint_next) {
        if (export->state != IPC_EXPORT_UNWANTED) continue;
        const ipc_note note = {.kind = IPC_REVOKE, .key = export->key};
        if (endpoint->revoking == IPC_MAX_ASKED || !pplx_ipc_say(endpoint, &note, NULL)) break;
        export->state = IPC_EXPORT_REVOKED;
        endpoint->unwanted--;
        endpoint->revoking++;
    }
}

void pplx_ipc_revoked(ipc_endpoint *endpoint, uint64_t key) {
    ipc_export *export = endpoint->exports;
    while (export && (export->key != key || export->state != IPC_EXPORT_REVOKED)) export = export->endpoint_next;
    if (!export) {
        endpoint->garbage = true; /* nobody asked */
        return;
    }
    endpoint->mute = false;
    free_export(export);
    if (endpoint->unwanted) pplx_ipc_send_revokes(endpoint);
}

/* The descriptor to pass on; -1: none can be made. *passed says that it is to be closed again. */
static int descriptor_for(const ipc_region *region, bool *passed) {
    *passed = false;
    if (region->access & PPLX_ACCESS_REMOTE_WRITE) return region->segment->fd;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", region->segment->fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    *passed = fd >= 0;
    return fd;
}

/* It asks again once it has a GPU, see pplx_ipc_keys_ask_again(). Descriptors of a GPU's memory take milliseconds to
 * make: for whoever asks for them on and on we copy. */
enum { MOST_TELLS = 2 };

static ipc_export *export_of(ipc_region *region, ipc_endpoint *endpoint) {
    ipc_export *export = region->exports;
    while (export && export->endpoint != endpoint) export = export->region_next;
    if (export) return export;
    export = calloc(1, sizeof *export);
    if (!export) return NULL;
    *export = (ipc_export){.region_next = region->exports,
                           .endpoint_next = endpoint->exports,
                           .endpoint = endpoint,
                           .region = region,
                           .key = region->key};
    region->exports = endpoint->exports = export;
    return export;
}

void pplx_ipc_answer_map(ipc_endpoint *endpoint, uint64_t key) {
    ipc_note note = {.kind = IPC_MAPPED, .extent = IPC_NO_KEY, .key = key};
    int fd = -1;
    ipc_fds fds;
    bool passed = false; /* they are ours to close */
    fds.count = 0;
    ipc_region *region = endpoint->closing ? NULL : pplx_ipc_region_find(endpoint->domain, key);
    ipc_export *export = region ? export_of(region, endpoint) : NULL;
    if (export && export->state != IPC_EXPORT_HELD) {
        note.extent = IPC_LATER;
    } else if (export) {
        note.extent = IPC_STAGED;
        note.access = region->access;
        note.nbytes = region->nbytes;
        /* While its pages are to be moved we copy for the peer, as afterwards: that may have to wait for others. */
        if (region->segment && region->segment->fd >= 0 && !region->segment->moving)
            fd = descriptor_for(region, &passed);
        if (fd >= 0) {
            fds.of[fds.count++] = fd;
            note.extent = IPC_MAPPABLE;
            note.offset = region->address - (uint64_t)(uintptr_t)region->segment->address;
            if (!export->segment) region->segment->exports++;
            export->segment = region->segment;
        } else if (region->allocation && export->opened < MOST_TELLS && pplx_ipc_cuda_tell(region, &note, &fds)) {
            export->opened++;
            passed = true;
        } else if (pplx_ipc_may_address(region, endpoint)) {
            note.extent = IPC_ADDRESSED;
            note.offset = region->address;
            export->addressed = true;
        }
    }
    bool said = pplx_ipc_say(endpoint, &note, &fds);
    if (!said && fds.count) { /* this user may have too many on their way already: we copy */
        note.extent = IPC_STAGED;
        said = pplx_ipc_say(endpoint, &note, NULL);
    }
    if (!said) endpoint->garbage = true; /* no room in its socket: it asks, and reads no answers */
    if (passed) pplx_ipc_close_fds(&fds);
}
