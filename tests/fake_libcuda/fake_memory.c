/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of devices, and where addresses lie. */
#include "fake_cuda.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
range fake_ranges[MOST_RANGES];
static _Atomic uint64_t last_id;

uint64_t fake_new_id(void) { return atomic_fetch_add(&last_id, 1) + 1; }

range *fake_find(uint64_t pointer) {
    for (int i = 0; i < MOST_RANGES; i++)
        if (fake_ranges[i].start && pointer >= fake_ranges[i].start &&
            pointer < fake_ranges[i].start + fake_ranges[i].nbytes)
            return &fake_ranges[i];
    return NULL;
}

/* What a stream reads or writes; NULL: a fault. `device_only`: host addresses are none. */
unsigned char *fake_translate(uint64_t pointer, uint64_t nbytes, bool device_only) {
    unsigned char *found = NULL;
    pthread_mutex_lock(&fake_lock);
    const range *in = fake_find(pointer);
    if (in) {
        if (nbytes <= in->nbytes - (pointer - in->start) && (!in->reserved || fake_is_mapped(in, pointer, nbytes, -1)))
            found = in->alias + (pointer - in->start);
    } else if (pointer & PINNED) {
        const uint64_t host = pointer - PINNED;
        if (fake_is_pinned(host, nbytes)) found = (unsigned char *)(uintptr_t)host;
    } else if (!device_only) {
        found = (unsigned char *)(uintptr_t)pointer;
    }
    pthread_mutex_unlock(&fake_lock);
    return found;
}

static range *new_range(void) {
    for (int i = 0; i < MOST_RANGES; i++)
        if (!fake_ranges[i].start) return &fake_ranges[i];
    return NULL;
}

int fake_map(int fd, uint64_t nbytes, int device, bool opened, uint64_t *out) {
    struct stat stat;
    void *alias = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *address = mmap(NULL, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (alias == MAP_FAILED || address == MAP_FAILED || fstat(fd, &stat) != 0) return OUT_OF_MEMORY;
    range *range = new_range();
    if (!range) return OUT_OF_MEMORY;
    range->start = (uintptr_t)address;
    range->nbytes = nbytes;
    range->alias = alias;
    range->fd = fd;
    range->device = device;
    range->context = fake_context();
    range->opened = opened;
    range->opens = 1;
    range->inode = stat.st_ino;
    range->id = fake_new_id();
    *out = range->start;
    return OK;
}

/* Neither the addresses nor the alias have anything behind them yet. */
int fake_reserve(uint64_t nbytes, uint64_t *out) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *alias = mmap(NULL, nbytes, PROT_NONE, flags, -1, 0), *address = mmap(NULL, nbytes, PROT_NONE, flags, -1, 0);
    range *range = new_range();
    if (!range || alias == MAP_FAILED || address == MAP_FAILED) {
        if (alias != MAP_FAILED) munmap(alias, nbytes);
        if (address != MAP_FAILED) munmap(address, nbytes);
        return OUT_OF_MEMORY;
    }
    *range = (struct range){
        .start = (uintptr_t)address, .nbytes = nbytes, .alias = alias, .fd = -1, .opens = 1, .reserved = true};
    *out = range->start;
    return OK;
}

void fake_unmap(range *range) {
    free(range->near);
    free(range->far);
    munmap(range->alias, range->nbytes);
    munmap((void *)(uintptr_t)range->start, range->nbytes);
    if (range->fd >= 0) close(range->fd);
    memset(range, 0, sizeof *range);
}

API cuMemAlloc_v2(uint64_t *pointer, size_t nbytes) {
    NEED_CONTEXT();
    const size_t whole = (nbytes + 4095) / 4096 * 4096;
    int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
    if (nbytes == 0 || fd < 0 || ftruncate(fd, (off_t)whole) != 0) return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    const int result = fake_map(fd, whole, fake_device(), false, pointer);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

API cuMemFree_v2(uint64_t pointer) {
    NEED_CONTEXT();
    fake_wait_for_all();
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    const bool fine = range && range->start == pointer && !range->opened && !range->reserved;
    if (fine) fake_unmap(range);
    pthread_mutex_unlock(&fake_lock);
    return fine ? OK : INVALID_VALUE;
}

/* False: there is nothing. What was allocated as a whole is one mapping, of whole units. */
static bool is_there(const range *range, uint64_t pointer, chunk *found) {
    if (!range || range->reserved) return range && fake_chunk(range, pointer, found);
    *found = (chunk){.start = range->start,
                     .nbytes = (range->nbytes + GRANULARITY - 1) / GRANULARITY * GRANULARITY,
                     .id = range->id,
                     .device = range->device};
    return true;
}

API cuPointerGetAttributes(unsigned count, const int *attributes, void **data, uint64_t pointer) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    const range *range = fake_find(pointer);
    chunk chunk = {.device = -2};
    if (!is_there(range, pointer, &chunk)) range = NULL;
    for (unsigned i = 0; i < count; i++) {
        const uint32_t type = range ? 2 : 0, no = 0,
                       shareable = range && !range->opened && !range->reserved && !fake_env("FAKE_CUDA_POOL", 0);
        const uint64_t start = range ? range->start : 0;
        const size_t nbytes = range ? range->nbytes : 0;
        const uintptr_t context = range && !range->reserved ? range->context : 0;
        switch (attributes[i]) {
        case 1: memcpy(data[i], &context, sizeof context); break;
        case 2: memcpy(data[i], &type, sizeof type); break;
        case 7: memcpy(data[i], &chunk.id, sizeof chunk.id); break;
        case 8: memcpy(data[i], &no, 1); break; /* the driver writes a byte here */
        case 9: memcpy(data[i], &chunk.device, sizeof chunk.device); break;
        case 10: memcpy(data[i], &shareable, sizeof shareable); break;
        case 11: memcpy(data[i], &start, sizeof start); break;
        case 12: memcpy(data[i], &nbytes, sizeof nbytes); break;
        case 14: memcpy(data[i], &chunk.handle_types, sizeof chunk.handle_types); break;
        case 18: memcpy(data[i], &chunk.nbytes, sizeof chunk.nbytes); break;
        case 19: memcpy(data[i], &chunk.start, sizeof chunk.start); break;
        default: pthread_mutex_unlock(&fake_lock); return INVALID_VALUE;
        }
    }
    pthread_mutex_unlock(&fake_lock);
    return OK;
}

/* The manual: this one fails where there is nothing, of which the others say 0. */
API cuPointerGetAttribute(void *data, int attribute, uint64_t pointer) {
    chunk found;
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    const bool there = is_there(fake_find(pointer), pointer, &found);
    pthread_mutex_unlock(&fake_lock);
    return there ? cuPointerGetAttributes(1, &attribute, &data, pointer) : INVALID_VALUE;
}

/* Only what the tests themselves do: it waits for nobody's stream. */
static int copy_now(uint64_t to, uint64_t from, size_t nbytes) {
    unsigned char *target = fake_translate(to, nbytes, false), *source = fake_translate(from, nbytes, false);
    if (!target || !source || !fake_may_reach(fake_device(), to, nbytes) ||
        !fake_may_reach(fake_device(), from, nbytes))
        return INVALID_VALUE;
    fake_submit();
    fake_move(target, to, source, from, nbytes, -1);
    return OK;
}

API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t nbytes) {
    NEED_CONTEXT();
    return copy_now(to, (uintptr_t)from, nbytes);
}

API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t nbytes) {
    NEED_CONTEXT();
    return copy_now((uintptr_t)to, from, nbytes);
}

/* For tests alone: memory of the host is memory of the device from now on, at another address. */
API fake_cuda_adopt(uint64_t *pointer, void *memory, size_t nbytes) {
    void *address = mmap(NULL, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pthread_mutex_lock(&fake_lock);
    range *range = new_range();
    if (range && address != MAP_FAILED)
        *range = (struct range){
            .start = (uintptr_t)address, .nbytes = nbytes, .alias = memory, .fd = -1, .opens = 1, .id = fake_new_id()};
    pthread_mutex_unlock(&fake_lock);
    *pointer = range ? range->start : 0;
    return range && address != MAP_FAILED ? OK : OUT_OF_MEMORY;
}

API fake_cuda_renew(uint64_t pointer) {
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    if (range) range->id = fake_new_id();
    pthread_mutex_unlock(&fake_lock);
    return range ? OK : INVALID_VALUE;
}

API fake_cuda_forget(uint64_t pointer) {
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    if (range) {
        free(range->near);
        free(range->far);
        munmap((void *)(uintptr_t)range->start, range->nbytes);
        memset(range, 0, sizeof *range);
    }
    pthread_mutex_unlock(&fake_lock);
    return range ? OK : INVALID_VALUE;
}
