/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What NICs have written into memory of a device, and who sees it. */
#include "fake_cuda.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

static atomic_bool shared_with_nics;
static atomic_int exported, flushes;

API fake_cuda_exported(void) { return atomic_load(&exported); }

API fake_cuda_flushes(void) { return atomic_load(&flushes); }

int fake_ordering(void) { return fake_env("FAKE_CUDA_ORDERING", OWNER); }

/* A NIC may write there from now on. */
void fake_share_with_nics(range *range) {
    if (range->near || fake_ordering() == ALL_DEVICES) return;
    atomic_store(&shared_with_nics, true);
    range->near = malloc(range->nbytes);
    range->far = malloc(range->nbytes);
    if (!range->near || !range->far) abort();
    memcpy(range->near, range->alias, range->nbytes);
    memcpy(range->far, range->alias, range->nbytes);
}

/* As work on a stream of that device reads it. */
static const unsigned char *seen(const range *range, uint64_t pointer, int device) {
    const bool owns = range->device == device;
    const bool ordered = !range->near || fake_ordering() >= (owns ? OWNER : ALL_DEVICES);
    return (ordered ? range->alias : owns ? range->near : range->far) + (pointer - range->start);
}

/* `device`: whose memory; -1: everybody's. */
void fake_flush(int device, int scope) {
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MOST_RANGES; i++) {
        const range *range = &fake_ranges[i];
        if (!range->near || (device >= 0 && range->device != device)) continue;
        memcpy(range->near, range->alias, range->nbytes);
        if (scope == ALL_DEVICES) memcpy(range->far, range->alias, range->nbytes);
    }
    pthread_mutex_unlock(&fake_lock);
}

/* Work that the program submits sees what came before, as does what it waits for. */
void fake_submit(void) {
    if (atomic_load(&shared_with_nics)) fake_flush(-1, ALL_DEVICES);
}

/* What work on a stream of that device writes is seen by all. */
void fake_move(unsigned char *to, uint64_t at, const unsigned char *from, uint64_t source, uint64_t nbytes,
               int device) {
    if (!atomic_load(&shared_with_nics)) {
        memcpy(to, from, nbytes);
        return;
    }
    pthread_mutex_lock(&fake_lock);
    const range *target = fake_find(at), *origin = fake_find(source);
    if (origin) from = seen(origin, source, device);
    memcpy(to, from, nbytes);
    if (target && target->near) {
        memcpy(target->near + (at - target->start), to, nbytes);
        memcpy(target->far + (at - target->start), to, nbytes);
    }
    pthread_mutex_unlock(&fake_lock);
}

API fake_cuda_alias(uint64_t pointer, size_t nbytes, int device, void **alias) {
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    const bool there = range && range->device == device && !range->reserved;
    if (there) fake_share_with_nics(range);
    pthread_mutex_unlock(&fake_lock);
    *alias = there ? fake_translate(pointer, nbytes, true) : NULL;
    return *alias ? OK : INVALID_VALUE;
}

/* A dma-buf is anything that can be mapped. Whole allocations only: a memfd has no part that begins elsewhere. */
API cuMemGetHandleForAddressRange(void *handle, uint64_t pointer, size_t nbytes, int type, unsigned long long flags) {
    NEED_CONTEXT();
    if (type != 1 || flags || pointer % 4096 || nbytes % 4096) return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    const bool fine = range && !range->opened && range->fd >= 0 && pointer == range->start && nbytes == range->nbytes;
    const int fd = fine ? fcntl(range->fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (fine) fake_share_with_nics(range);
    pthread_mutex_unlock(&fake_lock);
    memcpy(handle, &fd, sizeof fd);
    if (fd >= 0) atomic_fetch_add(&exported, 1);
    return fd >= 0 ? OK : INVALID_VALUE;
}

/* Nobody says that a capture allows it. */
API cuFlushGPUDirectRDMAWrites(int target, int scope) {
    NEED_CONTEXT();
    if (fake_forbidden()) return CAPTURE_UNSUPPORTED;
    if (target != 0 || (scope != OWNER && scope != ALL_DEVICES)) return INVALID_VALUE;
    if (!(fake_env("FAKE_CUDA_FLUSH", BY_CALL) & BY_CALL)) return NOT_SUPPORTED;
    atomic_fetch_add(&flushes, 1);
    if (scope > fake_ordering()) fake_flush(fake_device(), scope);
    return OK;
}
