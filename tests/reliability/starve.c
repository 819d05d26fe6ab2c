/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Preloaded into an interpreter: when our extension modules ask for memory, or for a thread, there is none
 * from the n-th time on, for a while. Who else asks, Python and libfabric, gets what it wants: so whatever
 * goes wrong is ours. Told what to do by way of ctypes (helpers/limits.py):
 *
 *     starve_module(start, end)   code of ours
 *     starve(first, count)        refuse so many requests, beginning with this one, counted from 1 and from now
 *     starve_seen()               requests since then */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST_MODULES = 64 };

void *__libc_malloc(size_t nbytes);
void *__libc_calloc(size_t count, size_t nbytes);
void *__libc_realloc(void *memory, size_t nbytes);
void *__libc_memalign(size_t alignment, size_t nbytes);

void starve_module(uintptr_t start, uintptr_t end);
void starve(long first, long count);
long starve_seen(void);

static struct {
    uintptr_t start, end;
} modules[MOST_MODULES];
static atomic_int nmodules;
static atomic_long seen, from, to; /* requests [from, to) are refused */

void starve_module(uintptr_t start, uintptr_t end) {
    int i = atomic_load(&nmodules);
    if (i == MOST_MODULES) return;
    modules[i].start = start;
    modules[i].end = end;
    atomic_store(&nmodules, i + 1);
}

void starve(long first, long count) {
    atomic_store(&to, 0);
    atomic_store(&seen, 0);
    atomic_store(&from, first);
    atomic_store(&to, first + count);
}

long starve_seen(void) { return atomic_load(&seen); }

static bool refused(const void *caller) {
    const uintptr_t at = (uintptr_t)caller;
    for (int i = 0; i < atomic_load_explicit(&nmodules, memory_order_acquire); i++) {
        if (at < modules[i].start || at >= modules[i].end) continue;
        const long number = atomic_fetch_add(&seen, 1) + 1;
        if (number < atomic_load(&from) || number >= atomic_load(&to)) return false;
        errno = ENOMEM;
        return true;
    }
    return false;
}

#define REFUSED refused(__builtin_return_address(0))

void *malloc(size_t nbytes) { return REFUSED ? NULL : __libc_malloc(nbytes); }
void *calloc(size_t count, size_t nbytes) { return REFUSED ? NULL : __libc_calloc(count, nbytes); }
void *realloc(void *memory, size_t nbytes) { return REFUSED ? NULL : __libc_realloc(memory, nbytes); }

int posix_memalign(void **memory, size_t alignment, size_t nbytes) {
    if (REFUSED) return ENOMEM;
    void *found = __libc_memalign(alignment, nbytes);
    if (!found) return ENOMEM;
    *memory = found;
    return 0;
}

void *mmap(void *address, size_t nbytes, int protection, int flags, int fd, off_t offset) {
    if (REFUSED) return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, nbytes, protection, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *), void *argument) {
    static int (*next)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (REFUSED) return EAGAIN;
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, "pthread_create");
    return next(thread, attributes, run, argument);
}
