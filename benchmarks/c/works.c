/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The works, in the sizes of pplx_async/cli/bench/works.py. Each write carries an immediate. A work with many
 * writes ends when the target has counted all of them and its answer is back. */
#include "bench.h"

#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>

enum { SLOT_ALIGNMENT = 64 };

static const bench_write answer = {0, 0, 0};

static void wait_for(uint64_t arrived) {
    while (bench.arrived < arrived) bench_turn();
}

/* ---- pingpong: write and immediate, there and back ---- */

static bench_write place_at_start(size_t i) {
    (void)i;
    return (bench_write){0, 0, 0};
}

static void pingpong(bench_result *result) {
    const size_t count = bench.options.count;
    double *halves = malloc(count * sizeof *halves);
    if (!halves) bench_die("out of memory");
    double before = bench_now();
    for (size_t i = 0; i < count; i++) {
        uint64_t arrived = bench.arrived;
        bench_post(&bench.writes[i], (uint32_t)i);
        wait_for(arrived + 1);
        double now = bench_now();
        halves[i] = (now - before) / 2 * 1e6;
        before = now;
        if (bench.imm != (uint32_t)i) bench_die("immediate %u instead of %u", bench.imm, (uint32_t)i);
    }
    result->p50 = bench_percentile(halves, count, 50);
    result->p99 = bench_percentile(halves, count, 99);
    result->value = result->p50;
    free(halves);
}

static void pong(void) {
    for (size_t i = 0; i < bench.options.count; i++) {
        wait_for(bench.arrived + 1);
        bench_post(&bench.writes[i], bench.imm);
    }
}

/* ---- many writes: stream, awaits, pages, scatter ---- */

/* As many slots as writes may be in flight, round and round. */
static bench_write place_in_slots(size_t i) {
    size_t stride = (bench.options.nbytes + SLOT_ALIGNMENT - 1) / SLOT_ALIGNMENT * SLOT_ALIGNMENT;
    size_t offset = i % bench.options.inflight * stride;
    return (bench_write){offset, 0, offset};
}

/* Pages of the whole arena, from one place to another. */
static bench_write place_pages(size_t i) {
    size_t pages = BENCH_ARENA / bench.options.nbytes;
    if (pages * bench.options.nbytes != BENCH_ARENA || (pages & (pages - 1)) || pages > UINT32_MAX)
        bench_die("pages must be of a power of two of bytes");
    if (bench.options.count > pages) bench_die("%zu pages do not fit into the arena", bench.options.count);
    unsigned bits = (unsigned)__builtin_ctzll(pages);
    return (bench_write){bench_scramble((uint32_t)i, bits, 1) * bench.options.nbytes, 0,
                         bench_scramble((uint32_t)i, bits, 2) * bench.options.nbytes};
}

/* One source, a row of messages for each target; the targets take turns. */
static bench_write place_scattered(size_t i) {
    return (bench_write){i * bench.options.nbytes, (unsigned)(i % bench.options.targets),
                         i / bench.options.targets * bench.options.nbytes};
}

/* Returns the seconds that it took. */
static double write_all(void) {
    const uint64_t arrived = bench.arrived;
    const double start = bench_now();
    for (size_t i = 0; i < bench.options.count; i++) {
        while (bench.posted - bench.completed >= bench.options.inflight) bench_turn();
        bench_post(&bench.writes[i], (uint32_t)i);
    }
    while (bench.completed < bench.posted) bench_turn();
    wait_for(arrived + 1);
    return bench_now() - start;
}

static void gigabytes(bench_result *result) {
    result->value = (double)bench.options.count * (double)bench.options.nbytes / write_all() / 1e9;
}

static void thousands(bench_result *result) { result->value = (double)bench.options.count / write_all() / 1e3; }

static void count_all(void) {
    wait_for(bench.arrived + bench.options.count);
    bench_post(&answer, 0);
}

/* ---- idle: the processor time of a side that waits for one write ---- */

static void let_wait(bench_result *result) {
    bench_pause(bench.options.seconds);
    bench_post(&answer, 0);
    while (bench.completed < bench.posted) bench_turn();
    result->value = NAN; /* side 1 tells it */
}

static double seconds_of(const struct timeval *time) { return (double)time->tv_sec + (double)time->tv_usec / 1e6; }

static void wait_idle(void) {
    struct rusage before, after;
    double start = bench_now();
    getrusage(RUSAGE_SELF, &before);
    wait_for(bench.arrived + 1);
    getrusage(RUSAGE_SELF, &after);
    double used = seconds_of(&after.ru_utime) + seconds_of(&after.ru_stime) - seconds_of(&before.ru_utime) -
                  seconds_of(&before.ru_stime);
    bench_tell(used / (bench_now() - start) * 100);
}

const bench_work bench_works[] = {
    {"pingpong", "us", 8, 2000, 1, 1, true, place_at_start, pingpong, pong},
    {"stream", "GB/s", 1 << 20, 128, 16, 1, false, place_in_slots, gigabytes, count_all},
    {"awaits", "k/s", 8, 20000, 64, 1, false, place_in_slots, thousands, count_all},
    {"pages", "k/s", 64 << 10, 1024, 256, 1, false, place_pages, thousands, count_all},
    {"scatter", "k/s", 7168, 2048, 256, 8, false, place_scattered, thousands, count_all},
    {"idle", "%", 8, 1, 1, 1, false, place_at_start, let_wait, wait_idle},
    {0},
};
