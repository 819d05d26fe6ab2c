/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The memfds that peers may map: who in this process has them, and how their pages are moved.
 *
 * A memfd is mappable in one domain of the process, the first that registers it: when its pages move
 * (ipc_fence.c), only that domain can tell all who have them. For other domains it is memory as any
 * other, and staged. A NIC that has pinned the pages would not notice a move: memory that is
 * registered with one, too, has to be registered there again. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* seals, dup3 */
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
    if (segment->fd >= 0) close(segment->fd);
    free(segment);
}

/* *out stays NULL where another domain has it, or its pages have been moved out of any memfd. */
pplx_status pplx_ipc_segment_find(ipc_domain *domain, const pplx_memory *memory, ipc_segment **out, pplx_error *error) {
    const long page = sysconf(_SC_PAGESIZE);
    const uint64_t base = memory->address - memory->fd_offset;
    const int needed = F_SEAL_SHRINK | F_SEAL_GROW;
    struct stat file;
    int seals = fcntl(memory->fd, F_GET_SEALS);
    if (seals < 0 || (seals & needed) != needed || fstat(memory->fd, &file) != 0)
        return ipc_fail(error, PPLX_REGISTRATION, errno, "descriptor %d is no memfd sealed against resizing",
                        memory->fd);
    if (file.st_size == 0) return PPLX_OK; /* see pplx_ipc_segment_move() */
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

/* Make the pages our own: what the memfd's holders write from now on lands in pages that we have given
 * up. Nothing that our own threads write meanwhile is lost. The range becomes a private mapping of the
 * memfd, which shows the same contents, and a page is copied by the kernel at the first write to it. So
 * each page is written to, a byte for itself in one atomic step. Afterwards the memory lies in no memfd,
 * and the next peer that asks for it has to go through the staging area.
 *
 * False: it can't be done now, and nothing has changed. */
bool pplx_ipc_segment_move(ipc_segment *segment) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const int marker = pplx_ipc_memfd("pplx-ipc-moved", 0);
    if (marker < 0) return false;
    if (mmap(segment->address, (size_t)segment->nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, segment->fd,
             0) == MAP_FAILED) {
        close(marker);
        return false;
    }
    for (uint64_t at = 0; at < segment->nbytes; at += page) {
        unsigned char *byte = segment->address + at, same = *byte;
        /* relaxed: nothing is handed over. It writes whether it finds the same or not. */
        __atomic_compare_exchange_n(byte, &same, same, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    /* An empty memfd tells who registers this memory again that it is not where it was. */
    dup3(marker, segment->owner_fd, O_CLOEXEC);
    close(marker);
    close(segment->fd);
    segment->fd = -1;
    return true;
}
