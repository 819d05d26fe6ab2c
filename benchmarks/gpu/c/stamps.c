/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* When a word of the host's got the values 1 to `count`: for a thread of Python's, which polls here without the GIL. */
#include <sched.h>
#include <stdint.h>
#include <time.h>

enum { TURNS_BEFORE_YIELD = 1 << 14 }; /* for machines with fewer cores than threads that poll */

__attribute__((visibility("default"))) uint64_t gpu_stamps(const uint64_t *word, uint64_t count, uint64_t *stamps,
                                                           const uint32_t *stop);

/* `stamps`: nanoseconds of CLOCK_MONOTONIC. How many there are; fewer, when `stop` was set. */
uint64_t gpu_stamps(const uint64_t *word, uint64_t count, uint64_t *stamps, const uint32_t *stop) {
    struct timespec time;
    unsigned turns = 0;
    for (uint64_t i = 0; i < count; i++) {
        while (__atomic_load_n(word, __ATOMIC_ACQUIRE) <= i) {
            if (__atomic_load_n(stop, __ATOMIC_RELAXED)) return i;
            if (++turns % TURNS_BEFORE_YIELD == 0) sched_yield();
        }
        clock_gettime(CLOCK_MONOTONIC, &time);
        stamps[i] = (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
    }
    return count;
}
