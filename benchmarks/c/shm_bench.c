/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Writes between two processes by shared memory, with as little as that takes. Each side has a memfd,
 * mapped by both: the arena that the other side copies into, and behind it the ring of its immediates.
 *
 *     sender                                      receiver
 *     memcpy into the arena                       take the slot: acquire
 *     the slot: release                           ...
 *     fence                                       nothing came: asleep = 1
 *     asleep? then ring its eventfd               fence
 *                                                 the slot once more, and only then epoll
 *
 * Both fences are seq_cst: whichever comes first, the one behind it sees what was stored before it. So
 * either the receiver finds the slot or the sender finds it asleep. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create */
#endif
#include "bench.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SLOTS = 4096, CACHE_LINE = 64 };

const char *const transport_program = "shm_bench";

typedef struct ring {
    /* sequence << 32 | immediate. Stored by the sender, with release for the receiver's acquire. The
     * n-th immediate of all has sequence n, counted from 1: a slot of the round before is not it. */
    _Alignas(CACHE_LINE) _Atomic uint64_t slots[SLOTS];
    /* How many the receiver has taken: release, for the sender's acquire before it uses a slot again. */
    _Alignas(CACHE_LINE) _Atomic uint32_t taken;
    /* The receiver sets it, either side clears it. See above. */
    _Alignas(CACHE_LINE) _Atomic uint32_t asleep;
} ring;

typedef struct inbox { /* of one side */
    char *arena;
    ring *ring;
    int doorbell;
} inbox;

static inbox inboxes[2];
static inbox *ours, *theirs;
static uint32_t received; /* slots that we took */
static uint32_t sent;     /* slots that we filled */
static uint32_t free_to;  /* `sent` may grow to here, as far as we know */

const char *transport_provider(void) { return "shm"; }

static void make_inbox(inbox *box) {
    int fd = memfd_create("shm_bench", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)(BENCH_ARENA + sizeof(ring)))) bench_die("memfd: %s", strerror(errno));
    void *memory = mmap(NULL, BENCH_ARENA + sizeof(ring), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) bench_die("mmap: %s", strerror(errno));
    close(fd); /* the mapping keeps it */
    box->arena = memory;
    box->ring = (ring *)(void *)(box->arena + BENCH_ARENA);
    box->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (box->doorbell < 0) bench_die("eventfd: %s", strerror(errno));
}

void transport_prepare(void) {
    make_inbox(&inboxes[0]);
    make_inbox(&inboxes[1]);
}

void transport_open(void) {
    ours = &inboxes[bench.rank];
    theirs = &inboxes[!bench.rank];
    bench.dst = ours->arena;
    free_to = SLOTS;
    bench_wake_on(ours->doorbell, EPOLLIN | EPOLLET); /* edge-triggered: it need not be read */
}

void transport_close(void) {}

static void ring_doorbell(void) {
    const uint64_t one = 1;
    /* Cleared by us, so that one sleep is rung for once. */
    if (atomic_exchange_explicit(&theirs->ring->asleep, 0, memory_order_relaxed) &&
        write(theirs->doorbell, &one, sizeof one) != sizeof one)
        bench_die("eventfd: %s", strerror(errno));
}

bool transport_write(const bench_write *write, uint32_t imm) {
    const size_t region = BENCH_ARENA / bench.options.targets;
    if (sent == free_to) {
        free_to = atomic_load_explicit(&theirs->ring->taken, memory_order_acquire) + SLOTS;
        if (sent == free_to) return false;
    }
    memcpy(theirs->arena + write->target * region + write->dst, bench.src + write->src, bench.options.nbytes);
    uint64_t slot = (uint64_t)(sent + 1) << 32 | imm;
    atomic_store_explicit(&theirs->ring->slots[sent % SLOTS], slot, memory_order_release);
    sent++;
    bench.completed++; /* visible at the target */
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load_explicit(&theirs->ring->asleep, memory_order_relaxed)) ring_doorbell();
    return true;
}

bool transport_poll(void) {
    const uint32_t before = received;
    for (;;) {
        uint64_t slot = atomic_load_explicit(&ours->ring->slots[received % SLOTS], memory_order_acquire);
        if ((uint32_t)(slot >> 32) != received + 1) break;
        bench.imm = (uint32_t)slot;
        received++;
    }
    if (received == before) return false;
    atomic_store_explicit(&ours->ring->taken, received, memory_order_release);
    bench.arrived += received - before;
    return true;
}

void transport_sleep(void) {
    atomic_store_explicit(&ours->ring->asleep, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst);
    if (!transport_poll()) bench_sleep();
    atomic_store_explicit(&ours->ring->asleep, 0, memory_order_relaxed);
}
