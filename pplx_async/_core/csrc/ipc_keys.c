/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The peer's regions, as one endpoint knows them: asked for at first use, mapped if they can be,
 * and forgotten when the peer revokes them. (Memory of a GPU is opened and closed by a thread beside: OPENING,
 * CLOSING.) What the peer says is checked before it is believed: a
 * mapping is made of what is sealed and long enough, and bounds are those of the mapping. An address
 * is in the peer's own process, so the harm of a wrong one is its own. */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ipc_internal.h"

static ipc_key **bucket_of(const ipc_keys *keys, uint64_t key) { return &keys->buckets[key & (keys->nbuckets - 1)]; }

ipc_key *pplx_ipc_key_find(const ipc_endpoint *endpoint, uint64_t key) {
    if (endpoint->keys.nbuckets == 0) return NULL;
    ipc_key *found = *bucket_of(&endpoint->keys, key);
    while (found && found->key != key) found = found->next;
    return found;
}

static bool grow(ipc_keys *keys) {
    size_t old = keys->nbuckets;
    if (keys->count < old) return true;
    ipc_key **before = keys->buckets;
    ipc_key **buckets = calloc(old ? 2 * old : 32, sizeof(ipc_key *));
    if (!buckets) return false;
    keys->buckets = buckets;
    keys->nbuckets = old ? 2 * old : 32;
    for (size_t i = 0; i < old; i++) {
        for (ipc_key *key = before[i], *next; key; key = next) {
            next = key->next;
            ipc_key **bucket = bucket_of(keys, key->key);
            key->next = *bucket;
            *bucket = key;
        }
    }
    free(before);
    return true;
}

ipc_key *pplx_ipc_key_use(ipc_endpoint *endpoint, uint64_t number) {
    ipc_keys *keys = &endpoint->keys;
    ipc_key *key = pplx_ipc_key_find(endpoint, number);
    if (endpoint->heard_bye) return NULL;
    if (key) return (key->state == IPC_KEY_KNOWN || key->state == IPC_KEY_NONE) && !key->unwanted ? key : NULL;
    const ipc_note note = {.kind = IPC_MAP, .key = number};
    if (keys->asked == IPC_MAX_ASKED || !grow(keys)) return NULL;
    key = calloc(1, sizeof *key);
    if (!key || !pplx_ipc_say(endpoint, &note, NULL)) {
        free(key);
        return NULL;
    }
    key->key = number;
    key->state = IPC_KEY_ASKED;
    key->next = *bucket_of(keys, number);
    *bucket_of(keys, number) = key;
    keys->count++;
    keys->asked++;
    return NULL;
}

void pplx_ipc_key_drop(ipc_endpoint *endpoint, ipc_key *key) {
    ipc_key **at = bucket_of(&endpoint->keys, key->key);
    while (*at != key) at = &(*at)->next;
    *at = key->next;
    endpoint->keys.count--;
    endpoint->keys.asked -= key->state == IPC_KEY_ASKED;
    pplx_ipc_cuda_drop(key);
    if (key->mapping) munmap(key->mapping, key->mapping_nbytes);
    free(key);
}

/* It is gone, and its owner is told. */
static void give_back(ipc_endpoint *endpoint, ipc_key *key) {
    const ipc_note note = {.kind = IPC_REVOKED, .key = key->key};
    pplx_ipc_key_drop(endpoint, key);
    if (!pplx_ipc_say(endpoint, &note, NULL)) endpoint->garbage = true; /* it asks, and reads no answer */
    endpoint->queue_blocked = IPC_RUNNABLE;
}

/* Let go of what its owner has asked for. */
bool pplx_ipc_keys_yield(ipc_endpoint *endpoint) {
    bool all = true;
    for (size_t i = 0; i < endpoint->keys.nbuckets; i++) {
        for (ipc_key *key = endpoint->keys.buckets[i], *next; key; key = next) {
            next = key->next;
            if (!key->unwanted) continue;
            if (key->state == IPC_KEY_OPENING) {
                all = false;
            } else if (pplx_ipc_cuda_yield(key)) {
                key->unwanted = false;
                key->state = IPC_KEY_CLOSING;
            } else {
                give_back(endpoint, key);
            }
        }
    }
    return all;
}

void pplx_ipc_keys_ask_again(ipc_endpoint *endpoint) {
    for (size_t i = 0; i < endpoint->keys.nbuckets; i++) {
        for (ipc_key *key = endpoint->keys.buckets[i], *next; key; key = next) {
            next = key->next;
            if (key->later) pplx_ipc_key_drop(endpoint, key);
        }
    }
    endpoint->queue_blocked = IPC_RUNNABLE;
}

void pplx_ipc_key_opened(ipc_endpoint *endpoint, ipc_key *key, bool fine) {
    key->state = IPC_KEY_KNOWN;
    if (!fine) endpoint->garbage = true;
    endpoint->queue_blocked = IPC_RUNNABLE;
}

void pplx_ipc_key_closed(ipc_endpoint *endpoint, ipc_key *key) { give_back(endpoint, key); }

void pplx_ipc_keys_close(ipc_endpoint *endpoint) {
    ipc_keys *keys = &endpoint->keys;
    for (size_t i = 0; i < keys->nbuckets; i++)
        while (keys->buckets[i]) pplx_ipc_key_drop(endpoint, keys->buckets[i]);
    free(keys->buckets);
    *keys = (ipc_keys){0};
}

/* False: what came can't be what the peer says. Without memory for a mapping, or a descriptor, the peer does
 * the copying. */
static bool map(ipc_key *key, const ipc_note *note, const ipc_fds *fds) {
    if (fds->dropped) return true;
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), from = note->offset / page * page;
    if (note->nbytes > UINT64_MAX - (note->offset - from)) return false;
    uint64_t nbytes = note->nbytes + (note->offset - from);
    key->mapping = pplx_ipc_map_foreign(fds->of[0], from, nbytes, note->access & PPLX_ACCESS_REMOTE_WRITE);
    if (!key->mapping) return errno == ENOMEM;
    key->mapping_nbytes = (size_t)nbytes;
    key->memory = (unsigned char *)key->mapping + (note->offset - from);
    return true;
}

/* False: nobody tells an address who was not asked to, nor one round the end of memory. */
static bool address(const ipc_endpoint *endpoint, ipc_key *key, const ipc_note *note) {
    key->address = note->offset;
    return endpoint->trusting && note->offset != 0 && note->nbytes <= UINT64_MAX - note->offset;
}

/* False: there is no such answer, or it can't be true. */
static bool take_extent(ipc_endpoint *endpoint, ipc_key *key, const ipc_note *note, ipc_fds *fds) {
    switch (note->extent) {
    case IPC_NO_KEY:
    case IPC_STAGED: return true;
    case IPC_MAPPABLE: return map(key, note, fds);
    case IPC_ADDRESSED: return address(endpoint, key, note);
    case IPC_DEVICE:
    case IPC_CHUNKED: endpoint->shown = true; return pplx_ipc_cuda_open(endpoint, key, note, fds);
    default: return false;
    }
}

void pplx_ipc_key_mapped(ipc_endpoint *endpoint, const ipc_note *note, ipc_fds *fds) {
    ipc_key *key = pplx_ipc_key_find(endpoint, note->key);
    bool fine = key && key->state == IPC_KEY_ASKED;
    if (endpoint->closing || endpoint->heard_bye) {
        fine = true; /* nobody needs it any more; what is said next is waited for, a BYE_ACK */
    } else if (fine && note->extent == IPC_LATER) {
        pplx_ipc_key_drop(endpoint, key); /* asked again by whoever needs it */
    } else if (fine) {
        endpoint->keys.asked--;
        key->state = note->extent == IPC_NO_KEY ? IPC_KEY_NONE : IPC_KEY_KNOWN;
        key->access = note->access;
        key->nbytes = note->nbytes;
        fine = take_extent(endpoint, key, note, fds);
    }
    pplx_ipc_close_fds(fds);
    if (!fine) endpoint->garbage = true;
    endpoint->queue_blocked = IPC_RUNNABLE;
}
