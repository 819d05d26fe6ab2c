/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory in two halves: physical memory (cuMemCreate), and where it is mapped. A reservation of addresses is a range,
 * mapped or not; its alias is reserved likewise, and what is mapped lies there in a row. */
#include "fake_cuda.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_PHYSICAL = 2048, BY_FD = 1 };

typedef struct allocation_properties {
    int type, handle_types;
    struct {
        int type, id;
    } location;
    void *security;
    unsigned char flags[8];
} allocation_properties;

typedef struct access_of {
    struct {
        int type, id;
    } location;
    int flags;
} access_of;

typedef struct physical {
    int fd, device, handle_types, uses; /* handles and mappings */
    uint64_t nbytes;
} physical;

struct mapping {
    struct mapping *next;
    uint64_t start, nbytes, id;
    physical *memory;
    bool reached[MOST_DEVICES]; /* by work of that device */
};

static physical memories[MOST_PHYSICAL]; /* guarded by fake_lock, as all that is here */
static atomic_int imported, mapped, reserved, chunks;

API fake_cuda_imported(void) { return atomic_load(&imported); }

API fake_cuda_chunks(void) { return atomic_load(&chunks); }

API fake_cuda_mapped(void) { return atomic_load(&mapped); }

API fake_cuda_reserved(void) { return atomic_load(&reserved); }

static physical *new_physical(int fd, uint64_t nbytes, int device, int handle_types, uint64_t *handle) {
    for (int i = 0; i < MOST_PHYSICAL; i++) {
        if (memories[i].uses) continue;
        memories[i] = (physical){.fd = fd, .device = device, .handle_types = handle_types, .uses = 1, .nbytes = nbytes};
        *handle = (uint64_t)i + 1;
        atomic_fetch_add(&chunks, 1);
        return &memories[i];
    }
    return NULL;
}

static physical *physical_of(uint64_t handle) {
    return handle && handle <= MOST_PHYSICAL && memories[handle - 1].uses ? &memories[handle - 1] : NULL;
}

static void drop_use(physical *memory) {
    if (--memory->uses) return;
    close(memory->fd);
    atomic_fetch_sub(&chunks, 1);
}

/* The range's mapping there. */
static mapping *mapping_at(const range *range, uint64_t pointer) {
    mapping *at = range ? range->mappings : NULL;
    while (at && !(pointer >= at->start && pointer - at->start < at->nbytes)) at = at->next;
    return at;
}

/* Whether all of it is mapped, and work of that device reaches it; -1: of any device. */
bool fake_is_mapped(const range *range, uint64_t pointer, uint64_t nbytes, int device) {
    const uint64_t end = pointer + nbytes;
    while (pointer < end) {
        const mapping *mapping = mapping_at(range, pointer);
        bool reached = false;
        for (int i = 0; mapping && i < MOST_DEVICES; i++) reached |= mapping->reached[i] && (device < 0 || device == i);
        if (!reached) return false;
        pointer = mapping->start + mapping->nbytes;
    }
    return true;
}

/* Of virtual mappings what that device was given access to. */
bool fake_may_reach(int device, uint64_t pointer, uint64_t nbytes) {
    pthread_mutex_lock(&fake_lock);
    const range *range = fake_find(pointer);
    const bool reaches = !range || !range->reserved || fake_is_mapped(range, pointer, nbytes, device);
    pthread_mutex_unlock(&fake_lock);
    return reaches;
}

bool fake_chunk(const range *range, uint64_t pointer, chunk *found) {
    const mapping *mapping = mapping_at(range, pointer);
    if (!mapping) return false;
    *found = (chunk){.start = mapping->start,
                     .nbytes = mapping->nbytes,
                     .id = mapping->id,
                     .device = mapping->memory->device,
                     .handle_types = mapping->memory->handle_types};
    return true;
}

/* ---- physical memory */

API cuMemCreate(uint64_t *handle, size_t nbytes, const allocation_properties *properties, unsigned long long flags) {
    char name[32];
    REFUSE();
    const int device = properties->location.id;
    if (flags || !nbytes || nbytes % GRANULARITY || properties->type != 1 || properties->location.type != 1 ||
        device < 0 || device >= MOST_DEVICES)
        return INVALID_VALUE;
    snprintf(name, sizeof name, "fake-gpu-chunk-%d", device);
    const int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)nbytes) != 0) return OUT_OF_MEMORY;
    pthread_mutex_lock(&fake_lock);
    const bool fine = new_physical(fd, nbytes, device, properties->handle_types, handle) != NULL;
    pthread_mutex_unlock(&fake_lock);
    if (!fine) close(fd);
    return fine ? OK : OUT_OF_MEMORY;
}

API cuMemRelease(uint64_t handle) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    physical *memory = physical_of(handle);
    if (memory) drop_use(memory);
    pthread_mutex_unlock(&fake_lock);
    return memory ? OK : INVALID_VALUE;
}

API cuMemRetainAllocationHandle(uint64_t *handle, void *address) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    const mapping *mapping = mapping_at(fake_find((uintptr_t)address), (uintptr_t)address);
    if (mapping) mapping->memory->uses++;
    if (mapping) *handle = (uint64_t)(mapping->memory - memories) + 1;
    pthread_mutex_unlock(&fake_lock);
    return mapping ? OK : INVALID_VALUE;
}

API cuMemGetAllocationPropertiesFromHandle(allocation_properties *properties, uint64_t handle) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    const physical *memory = physical_of(handle);
    if (memory)
        *properties = (allocation_properties){
            .type = 1, .handle_types = memory->handle_types, .location = {.type = 1, .id = memory->device}};
    pthread_mutex_unlock(&fake_lock);
    return memory ? OK : INVALID_VALUE;
}

/* ---- between processes */

API cuMemExportToShareableHandle(void *out, uint64_t handle, int type, unsigned long long flags) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    const physical *memory = physical_of(handle);
    const bool fine = memory && type == BY_FD && !flags && memory->handle_types & BY_FD;
    const int fd = fine ? fcntl(memory->fd, F_DUPFD_CLOEXEC, 0) : -1;
    pthread_mutex_unlock(&fake_lock);
    if (fd >= 0) memcpy(out, &fd, sizeof fd);
    return fd >= 0 ? OK : INVALID_VALUE;
}

/* What it is of shows by its name. It isn't ours to pass on. */
API cuMemImportFromShareableHandle(uint64_t *handle, void *from, int type) {
    static const char prefix[] = "/memfd:fake-gpu-chunk-";
    char path[64], target[64] = "";
    struct stat stat;
    REFUSE();
    if (type != BY_FD) return INVALID_VALUE;
    snprintf(path, sizeof path, "/proc/self/fd/%d", (int)(intptr_t)from);
    if (readlink(path, target, sizeof target - 1) < 0 || strncmp(target, prefix, sizeof prefix - 1) != 0)
        return UNKNOWN;
    const int fd = fcntl((int)(intptr_t)from, F_DUPFD_CLOEXEC, 0);
    if (fd < 0 || fstat(fd, &stat) != 0) return UNKNOWN;
    pthread_mutex_lock(&fake_lock);
    const int device = atoi(target + sizeof prefix - 1);
    const bool fine = new_physical(fd, (uint64_t)stat.st_size, device, 0, handle) != NULL;
    pthread_mutex_unlock(&fake_lock);
    if (!fine) close(fd);
    if (fine) atomic_fetch_add(&imported, 1);
    return fine ? OK : OUT_OF_MEMORY;
}

/* ---- addresses */

API cuMemAddressReserve(uint64_t *pointer, size_t nbytes, size_t alignment, uint64_t hint, unsigned long long flags) {
    REFUSE();
    if (!nbytes || nbytes % GRANULARITY || alignment || hint || flags) return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    const int result = fake_reserve(nbytes, pointer);
    if (result == OK) atomic_fetch_add(&reserved, 1);
    pthread_mutex_unlock(&fake_lock);
    return result;
}

API cuMemAddressFree(uint64_t pointer, size_t nbytes) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    const bool fine = range && range->reserved && !range->mappings && range->start == pointer &&
                      range->nbytes == nbytes;
    if (fine) fake_unmap(range);
    if (fine) atomic_fetch_sub(&reserved, 1);
    pthread_mutex_unlock(&fake_lock);
    return fine ? OK : INVALID_VALUE;
}

/* Physical memory is mapped whole. */
API cuMemMap(uint64_t pointer, size_t nbytes, size_t offset, uint64_t handle, unsigned long long flags) {
    REFUSE();
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    physical *memory = physical_of(handle);
    const bool whole = memory && nbytes == memory->nbytes;
    bool fine = memory && range && range->reserved && !offset && !flags;
    fine = fine && (pointer - range->start) % GRANULARITY == 0 && nbytes <= range->nbytes - (pointer - range->start);
    for (const mapping *other = fine ? range->mappings : NULL; other; other = other->next)
        fine &= pointer + nbytes <= other->start || other->start + other->nbytes <= pointer;
    mapping *mapping = fine && whole ? calloc(1, sizeof *mapping) : NULL;
    if (mapping) {
        *mapping = (struct mapping){
            .next = range->mappings, .start = pointer, .nbytes = nbytes, .id = fake_new_id(), .memory = memory};
        if (mmap(range->alias + (pointer - range->start), nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                 memory->fd, 0) == MAP_FAILED)
            abort();
        memory->uses++;
        range->mappings = mapping;
        atomic_fetch_add(&mapped, 1);
    }
    pthread_mutex_unlock(&fake_lock);
    return mapping ? OK : fine && !whole ? NOT_SUPPORTED : INVALID_VALUE;
}

/* Whole mappings. */
API cuMemUnmap(uint64_t pointer, size_t nbytes) {
    REFUSE();
    fake_wait_for_all();
    pthread_mutex_lock(&fake_lock);
    range *range = fake_find(pointer);
    uint64_t found = 0;
    for (mapping *at = range ? range->mappings : NULL; at; at = at->next)
        if (at->start >= pointer && at->start + at->nbytes <= pointer + nbytes) found += at->nbytes;
    const bool fine = nbytes && found == nbytes;
    for (mapping **at = &range->mappings, *mapping; fine && (mapping = *at) != NULL;) {
        if (mapping->start < pointer || mapping->start >= pointer + nbytes) {
            at = &mapping->next;
            continue;
        }
        *at = mapping->next;
        if (mmap(range->alias + (mapping->start - range->start), mapping->nbytes, PROT_NONE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            abort();
        drop_use(mapping->memory);
        atomic_fetch_sub(&mapped, 1);
        free(mapping);
    }
    pthread_mutex_unlock(&fake_lock);
    return fine ? OK : INVALID_VALUE;
}

API cuMemSetAccess(uint64_t pointer, size_t nbytes, const access_of *access, size_t count) {
    REFUSE();
    if (count != 1 || access->location.type != 1 || access->flags != 3 || access->location.id < 0 ||
        access->location.id >= MOST_DEVICES)
        return INVALID_VALUE;
    pthread_mutex_lock(&fake_lock);
    const range *range = fake_find(pointer);
    uint64_t found = 0;
    for (mapping *at = range ? range->mappings : NULL; at; at = at->next)
        if (at->start >= pointer && at->start + at->nbytes <= pointer + nbytes) found += at->nbytes;
    for (mapping *at = range && found == nbytes ? range->mappings : NULL; at; at = at->next)
        at->reached[access->location.id] |= at->start >= pointer && at->start < pointer + nbytes;
    pthread_mutex_unlock(&fake_lock);
    return range && found == nbytes ? OK : INVALID_VALUE;
}
