/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What cuda_nudge.h says.
 *
 * The table is the process's. An entry is made when the first gate is queued in its context, also where that fails: then
 * it is not tried again, for the driver may have those wait who make streams, and gates by then be what they wait for.
 * It stays, since nothing can be unpinned while a stream waits in a gate, and is written to once, under the lock, before
 * anybody has its number; a proxy has that with the word, through the ring. A child of a fork has the entries, for which
 * its driver is not there, and no number of one: it makes its own.
 *
 * Never more than two stores are outstanding. The second was given when the first had not been taken, so the GPU comes to
 * it, and looks, after whatever opens then. And it need not come soon: streams share the queues of a GPU, and behind one
 * that waits in another gate nothing moves. If we went on the queue would fill up, and the driver have the proxy wait.
 *
 * Proxies of several engines may nudge an entry at once, by one word, `state`:
 *
 *   IDLE   --(one comes)-->  BUSY    it gives a store
 *   BUSY   --(another)-->    AGAIN   it has opened a gate since, maybe: the first one gives one more
 *   BUSY, AGAIN  --(the driver says no)-->  BROKEN, for good
 *
 * So stores are given one after the other and `given` is of whoever is at it; nobody waits for anybody. What opened the
 * gate comes before the store that is given for it: by the order of the program, or by release and acquire of `state`. */
#include "cuda_nudge.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

enum { MOST_OUTSTANDING = 2, LINE = 64 };

enum state { IDLE, BUSY, AGAIN, BROKEN };

typedef struct nudge {
    const pplx_libcuda *cuda;
    cu_context context;
    pid_t pid;
    cu_stream stream;
    cu_pointer address;            /* of the word, as the GPU sees it */
    const _Atomic uint64_t *taken; /* ... and as we do: the last number that was stored */
    uint64_t given;                /* ... that was given; of who made it BUSY */
    _Atomic uint32_t state;
} nudge;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf of ours; the driver is called under it */
static nudge nudges[PPLX_MOST_NUDGES];
static uint32_t count; /* under the lock */
static void *page; /* likewise; a line for each. Shared with children: no copy on write comes between us and the GPU */
static cu_pointer page_at; /* ... as every GPU sees it */
static pid_t pinned_by; /* ... whose it is; under the lock */

static cu_result make_word(const pplx_libcuda *cuda, nudge *entry) {
    const size_t nbytes = (size_t)sysconf(_SC_PAGESIZE), offset = (size_t)(entry - nudges) * LINE;
    if (pinned_by != entry->pid) {
        void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return CU_ERROR_NOT_SUPPORTED;
        const cu_result result = pplx_cuda_pin_pages(cuda, memory, nbytes, &page_at);
        if (result != CU_OK) {
            munmap(memory, nbytes);
            return result;
        }
        page = memory;
        pinned_by = entry->pid;
    }
    entry->taken = (const _Atomic uint64_t *)(void *)((char *)page + offset);
    entry->address = page_at + offset;
    return CU_OK;
}

/* A device's primary one, which lasts from now on; others are the program's to destroy, with our stream. */
static bool retain_if_primary(const pplx_libcuda *cuda, cu_context context) {
    cu_device device;
    cu_context primary;
    unsigned flags;
    int active = 0;
    if (cuda->context_device(&device) != CU_OK || cuda->primary_state(device, &flags, &active) != CU_OK || !active ||
        cuda->primary_retain(&primary, device) != CU_OK)
        return false;
    if (primary != context) cuda->primary_release(device);
    return primary == context;
}

uint32_t pplx_nudge_find(const pplx_libcuda *cuda, cu_context context) {
    const pid_t pid = getpid();
    uint32_t i = 0;
    pthread_mutex_lock(&lock);
    while (i < count && !(nudges[i].context == context && nudges[i].cuda == cuda && nudges[i].pid == pid)) i++;
    if (i == count && count < PPLX_MOST_NUDGES && retain_if_primary(cuda, context)) {
        nudge *entry = &nudges[count++];
        *entry = (nudge){.cuda = cuda, .context = context, .pid = pid};
        if (make_word(cuda, entry) != CU_OK || pplx_cuda_stream(cuda, &entry->stream) != CU_OK)
            atomic_init(&entry->state, BROKEN);
    }
    const bool found = i < count;
    pthread_mutex_unlock(&lock);
    return found ? i + 1 : 0;
}

/* False: the driver says no. */
static bool give(nudge *entry) {
    int mode;
    /* relaxed: an old number has us give less, and nothing is read because of it */
    if (entry->given - atomic_load_explicit(entry->taken, memory_order_relaxed) >= MOST_OUTSTANDING) return true;
    if (pplx_cuda_enter(entry->cuda, entry->context, &mode) != CU_OK) return false;
    const cu_result result = entry->cuda->stream_write(entry->stream, entry->address, ++entry->given, 0);
    pplx_cuda_leave(entry->cuda, mode);
    return result == CU_OK;
}

static void nudge_one(nudge *entry) {
    uint32_t seen = atomic_load_explicit(&entry->state, memory_order_relaxed); /* relaxed: the exchange looks again */
    do
        if (seen == BROKEN) return;
    while (!atomic_compare_exchange_weak_explicit(&entry->state, &seen, seen == IDLE ? BUSY : AGAIN,
                                                  memory_order_acq_rel, memory_order_relaxed)); /* see the head */
    if (seen != IDLE) return;
    while (give(entry)) {
        seen = BUSY;
        if (atomic_compare_exchange_strong_explicit(&entry->state, &seen, IDLE, memory_order_acq_rel,
                                                    memory_order_acquire)) /* see the head */
            return;
        atomic_store_explicit(&entry->state, BUSY, memory_order_relaxed); /* relaxed: from AGAIN only we go on */
    }
    atomic_store_explicit(&entry->state, BROKEN, memory_order_relaxed); /* relaxed: nobody touches it any more */
}

void pplx_nudge(uint64_t which) {
    for (; which; which &= which - 1) nudge_one(&nudges[__builtin_ctzll(which)]);
}
