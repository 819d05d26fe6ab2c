/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The memfds that peers may map: who in this process has them, and how their pages are moved.
 *
 * A memfd is mappable in one domain of the process, the first that registers it: when its pages move
 * (ipc_fence.c), only that domain can tell all who have them. For other domains it is memory as any
 * other, and staged. A NIC that has pinned the pages would not notice a move: memory that is
 * registered with one, too, has to be registered there again. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* seals, mremap, SEEK_DATA */
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ipc_internal.h"

/* Every memfd that a domain of this process lets peers map. The lock is a leaf, and held for a walk. */
static struct {
    pthread_mutex_t lock;
    ipc_segment *segments;
} process = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* False: another domain has it. */
static bool claim(ipc_segment *segment) {
    pthread_mutex_lock(&process.lock);
    const ipc_segment *other = process.segments;
    while (other && (other->device != segment->device || other->inode != segment->inode)) other = other->process_next;
    if (!other) {
        segment->process_next = process.segments;
        process.segments = segment;
    }
    pthread_mutex_unlock(&process.lock);
    return !other;
}

static void unclaim(const ipc_segment *segment) {
    pthread_mutex_lock(&process.lock);
    ipc_segment **at = &process.segments;
    while (*at != segment) at = &(*at)->process_next;
    *at = segment->process_next;
    pthread_mutex_unlock(&process.lock);
}

void pplx_ipc_segment_release(ipc_domain *domain, ipc_segment *segment) {
    if (segment->regions || segment->exports) return;
    ipc_segment **at = &domain->segments;
    while (*at != segment) at = &(*at)->next;
    *at = segment->next;
    unclaim(segment);
    close(segment->fd);
    free(segment);
}

/* *out stays NULL where another domain has it. */
pplx_status pplx_ipc_segment_find(ipc_domain *domain, const pplx_memory *memory, ipc_segment **out, pplx_error *error) {
    const long page = sysconf(_SC_PAGESIZE);
    const uint64_t base = memory->address - memory->fd_offset;
    const int needed = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat file;
    int seals = fcntl(memory->fd, F_GET_SEALS);
    if (seals < 0 || (seals & needed) != needed || fstat(memory->fd, &file) != 0)
        return ipc_fail(error, PPLX_REGISTRATION, errno, "descriptor %d is no memfd sealed against resizing",
                        memory->fd);
    if (memory->fd_offset > (uint64_t)file.st_size || memory->nbytes > (uint64_t)file.st_size - memory->fd_offset ||
        base > memory->address || base % (uint64_t)page != 0)
        return ipc_fail(error, PPLX_REGISTRATION, 0, "the memory is not where descriptor %d can be mapped whole",
                        memory->fd);
    ipc_segment *segment = domain->segments;
    while (segment && (segment->device != file.st_dev || segment->inode != file.st_ino)) segment = segment->next;
    if (segment && !segment->regions) segment->address = (unsigned char *)(uintptr_t)base; /* mapped anew */
    if (segment && segment->address != (unsigned char *)(uintptr_t)base)
        return ipc_fail(error, PPLX_REGISTRATION, 0, "descriptor %d is registered at another address", memory->fd);
    if (!segment) {
        segment = calloc(1, sizeof *segment);
        int fd = segment ? fcntl(memory->fd, F_DUPFD_CLOEXEC, 3) : -1;
        if (fd < 0) {
            free(segment);
            return ipc_fail(error, PPLX_REGISTRATION, errno, "no descriptor for a region: %s", strerror(errno));
        }
        *segment = (ipc_segment){.next = domain->segments,
                                 .device = file.st_dev,
                                 .inode = file.st_ino,
                                 .fd = fd,
                                 .address = (unsigned char *)(uintptr_t)base,
                                 .nbytes = (uint64_t)file.st_size};
        if (!claim(segment)) {
            close(segment->fd);
            free(segment);
            return PPLX_OK;
        }
        domain->segments = segment;
    }
    segment->owner_fd = memory->fd;
    *out = segment;
    return PPLX_OK;
}

/* ------------------------------------------------------------------ moving pages */

static void become(ipc_segment *segment, dev_t device, ino_t inode) {
    pthread_mutex_lock(&process.lock);
    segment->device = device;
    segment->inode = inode;
    pthread_mutex_unlock(&process.lock);
}

/* Only what was ever written: the rest of a sparse memfd stays unallocated. */
static void copy_contents(const ipc_segment *segment, unsigned char *to) {
    off_t at = 0, size = (off_t)segment->nbytes;
    while (at < size) {
        off_t data = lseek(segment->fd, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO) return; /* a hole up to the end */
        off_t hole = data < 0 ? -1 : lseek(segment->fd, data, SEEK_HOLE);
        if (data < 0 || hole < 0) { /* not told: all of it */
            data = at;
            hole = size;
        }
        memcpy(to + data, segment->address + data, (size_t)(hole - data));
        at = hole;
    }
}

/* False: it can't be done now, and nothing has changed. */
bool pplx_ipc_segment_move(ipc_segment *segment) {
    const size_t nbytes = (size_t)segment->nbytes;
    struct stat file;
    int fd = pplx_ipc_memfd("pplx-ipc-moved", segment->nbytes);
    if (fd < 0) return false;
    void *fresh = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fresh == MAP_FAILED || fstat(fd, &file) != 0) {
        if (fresh != MAP_FAILED) munmap(fresh, nbytes);
        close(fd);
        return false;
    }
    copy_contents(segment, fresh);
    if (mremap(fresh, nbytes, nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, segment->address) == MAP_FAILED) {
        munmap(fresh, nbytes);
        close(fd);
        return false;
    }
    /* The engine's descriptor goes with it: who registers this memory again means these pages. */
    dup3(fd, segment->owner_fd, O_CLOEXEC);
    close(segment->fd);
    segment->fd = fd;
    become(segment, file.st_dev, file.st_ino);
    return true;
}
