/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */
#include "gpu_bench.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    LEAST_PAUSE_US = 20,
    MOST_PAUSE_US = 60,
    COMPUTE_THREADS = 1024,
    GATHER_THREADS = 512,
    WARM_UP_PAGES = 4,
    REST_US = 1000
};

static const double median = -1;

/* Until a stream has come to where it waits, and then for a random time: a GPU looks at a stream that waits only now
 * and then, so after pauses of one length it would always be as soon, by luck. */
static void settle(void) {
    static uint64_t dice = 1;
    dice = dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    const double part = (double)(dice >> 32) / 4294967296.0;
    const double end = gpu_now_us() + LEAST_PAUSE_US + part * (MOST_PAUSE_US - LEAST_PAUSE_US);
    while (gpu_now_us() < end) {
    }
}

static void queue_store(const gpu *gpu, enum gpu_word word, uint64_t value) {
    CUdeviceptr address = gpu_address(word);
    void *arguments[] = {&address, &value};
    gpu_launch(gpu->store, 1, 1, gpu->streams[0], arguments);
}

/* ---- write: a copy, a store behind it, and a loop that polls for that ---- */

static void queue_write(uint64_t number) {
    CU(cuMemcpyAsync(bench.to.memory, bench.from.memory, bench.nbytes, bench.from.streams[0]));
    CU(cuStreamWriteValue64_v2(bench.from.streams[0], gpu_address(WORD_FLAG), number, 0));
}

static double run_write(void) {
    gpu_use(&bench.from);
    for (size_t i = 0; i < bench.count; i++) {
        const uint64_t number = gpu_next();
        const double began = gpu_now_us();
        queue_write(number);
        gpu_await(WORD_FLAG, number);
        bench.samples[i] = gpu_now_us() - began;
    }
    return median;
}

/* ---- gated, gate: a stream of the other GPU waits, and then a kernel runs there ---- */

static double open_gates(void (*queue)(uint64_t number)) {
    for (size_t i = 0; i < bench.count; i++) {
        const uint64_t number = gpu_next();
        gpu_use(&bench.to);
        CU(cuStreamWaitValue64_v2(bench.to.streams[0], gpu_address(WORD_GO), number, CU_STREAM_WAIT_VALUE_GEQ));
        queue_store(&bench.to, WORD_STAMP, number);
        gpu_use(&bench.from);
        settle();
        const double began = gpu_now_us();
        if (queue) {
            queue(number);
            gpu_await(WORD_FLAG, number);
        }
        gpu_set(WORD_GO, number);
        gpu_await(WORD_STAMP, number);
        bench.samples[i] = gpu_now_us() - began;
    }
    return median;
}

static double run_gated(void) { return open_gates(queue_write); }
static double run_gate(void) { return open_gates(NULL); }

/* ---- doorbell: from a kernel's store to the bytes that the host copies when the stream has come behind it ---- */

static double run_doorbell(void) {
    gpu_use(&bench.from);
    for (size_t i = 0; i < bench.count; i++) {
        const uint64_t number = gpu_next();
        CU(cuStreamWaitValue64_v2(bench.from.streams[0], gpu_address(WORD_GO), number, CU_STREAM_WAIT_VALUE_GEQ));
        queue_store(&bench.from, WORD_STAMP, number);
        CU(cuStreamWriteValue64_v2(bench.from.streams[0], gpu_address(WORD_BELL), number, 0));
        settle();
        gpu_set(WORD_GO, number);
        gpu_await(WORD_STAMP, number);
        const double began = gpu_now_us();
        gpu_await(WORD_BELL, number);
        bench.landed = number;
        bench.samples[i] = gpu_now_us() - began;
    }
    return median;
}

/* ---- watch: the host says that it saw a number; the kernel adds to it; the host sees that ---- */

static double run_watch(void) {
    CUdeviceptr word = gpu_address(WORD_STAMP), seen = gpu_address(WORD_SEEN);
    uint64_t count = bench.count;
    void *arguments[] = {&word, &seen, &count};
    gpu_set(WORD_STAMP, 0);
    gpu_set(WORD_SEEN, 0);
    gpu_use(&bench.from);
    double began = gpu_now_us(); /* the first one has the launch in it */
    gpu_launch(bench.from.count, 1, 1, bench.from.streams[0], arguments);
    for (size_t i = 0; i < bench.count; i++) {
        gpu_await(WORD_STAMP, i + 1);
        const double now = gpu_now_us();
        bench.samples[i] = now - began;
        began = now;
        gpu_set(WORD_SEEN, i + 1);
    }
    if (bench.count > 1) bench.samples[0] = bench.samples[1];
    CU(cuStreamSynchronize(bench.from.streams[0]));
    return median;
}

/* ---- compute: a kernel that has the GPU to itself ---- */

static double run_compute(void) {
    CUdeviceptr out = bench.from.memory;
    void *arguments[] = {&out, &bench.rounds};
    gpu_use(&bench.from);
    for (size_t i = 0; i < bench.count; i++) {
        const double began = gpu_now_us();
        gpu_launch(bench.from.compute, (unsigned)bench.from.processors, COMPUTE_THREADS, bench.from.streams[0],
                   arguments);
        CU(cuStreamSynchronize(bench.from.streams[0]));
        bench.samples[i] = gpu_now_us() - began;
    }
    return median;
}

/* ---- stream, pages: many bytes ---- */

static void fill(void) {
    uint64_t *content = malloc(bench.arena_nbytes);
    if (!content) gpu_die("out of memory");
    for (size_t i = 0; i < bench.arena_nbytes / 8; i++) content[i] = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    gpu_use(&bench.from);
    CU(cuMemcpyHtoD_v2(bench.from.memory, content, bench.arena_nbytes));
    free(content);
}

/* Ends the program unless these bytes are the same on both. */
static void compare(size_t from, size_t to, size_t nbytes) {
    void *ours = malloc(nbytes), *theirs = malloc(nbytes);
    if (!ours || !theirs) gpu_die("out of memory");
    gpu_use(&bench.from);
    CU(cuMemcpyDtoH_v2(ours, bench.from.memory + from, nbytes));
    gpu_use(&bench.to);
    CU(cuMemcpyDtoH_v2(theirs, bench.to.memory + to, nbytes));
    if (memcmp(ours, theirs, nbytes) != 0) gpu_die("other bytes have arrived than were sent");
    free(ours);
    free(theirs);
}

static double gigabytes(double us) { return (double)bench.count * (double)bench.nbytes / us / 1e3; }

static double run_stream(void) {
    static int filled;
    if (!filled++) fill();
    gpu_use(&bench.from);
    const double began = gpu_now_us();
    for (size_t i = 0; i < bench.count; i++) {
        const size_t slot = i % bench.inflight * bench.nbytes;
        CU(cuMemcpyAsync(bench.to.memory + slot, bench.from.memory + slot, bench.nbytes,
                         bench.from.streams[i % GPU_STREAMS]));
    }
    for (int i = 0; i < GPU_STREAMS; i++) CU(cuStreamSynchronize(bench.from.streams[i]));
    return gigabytes(gpu_now_us() - began);
}

static void check_stream(void) {
    compare(0, 0, bench.nbytes * (bench.count < bench.inflight ? bench.count : bench.inflight));
}

/* A bijection of the numbers below 2^bits that looks random; `scramble` of works.py is the same. */
static uint32_t scramble(uint32_t i, unsigned bits, uint32_t seed) {
    const uint32_t mask = (uint32_t)((UINT64_C(1) << bits) - 1);
    for (unsigned round = 0; round < 3; round++) {
        i = (i * UINT32_C(0x9E3779B1) + seed) & mask;
        i ^= i >> (bits / 2 + 1);
    }
    return i;
}

static uint32_t *places; /* (from, to) of each page */
static CUdeviceptr places_address;

static void place_pages(void) {
    const size_t pages = bench.arena_nbytes / bench.nbytes;
    if (pages * bench.nbytes != bench.arena_nbytes || (pages & (pages - 1)) || bench.count > pages)
        gpu_die("the arena must be a power of two of pages, and all must fit");
    const unsigned bits = (unsigned)__builtin_ctzll(pages);
    places = malloc(bench.count * 2 * sizeof *places);
    if (!places) gpu_die("out of memory");
    for (size_t i = 0; i < bench.count; i++) {
        places[2 * i] = scramble((uint32_t)i, bits, 1);
        places[2 * i + 1] = scramble((uint32_t)i, bits, 2);
    }
    fill();
    CU(cuMemAlloc_v2(&places_address, bench.count * 2 * sizeof *places));
    CU(cuMemcpyHtoD_v2(places_address, places, bench.count * 2 * sizeof *places));
}

static void gather(unsigned pages, void **arguments) {
    gpu_launch(bench.from.gather, pages, GATHER_THREADS, bench.from.streams[0], arguments);
    CU(cuStreamSynchronize(bench.from.streams[0]));
}

static double run_pages(void) {
    unsigned nbytes = (unsigned)bench.nbytes;
    void *arguments[] = {&bench.to.memory, &bench.from.memory, &places_address, &nbytes};
    if (!places) place_pages();
    gpu_use(&bench.from);
    gather(WARM_UP_PAGES, arguments);
    usleep(REST_US);
    const double began = gpu_now_us();
    gather((unsigned)bench.count, arguments);
    return gigabytes(gpu_now_us() - began);
}

static void check_pages(void) {
    for (size_t i = 0; i < bench.count; i++)
        compare(places[2 * i] * bench.nbytes, places[2 * i + 1] * bench.nbytes, bench.nbytes);
}

const gpu_work gpu_works[] = {
    {"write", "us", run_write, NULL},
    {"gated", "us", run_gated, NULL},
    {"gate", "us", run_gate, NULL},
    {"doorbell", "us", run_doorbell, NULL},
    {"watch", "us", run_watch, NULL},
    {"compute", "us", run_compute, NULL},
    {"stream", "GB/s", run_stream, check_stream},
    {"burst", "GB/s", run_pages, check_pages},
    {"pages", "GB/s", run_pages, check_pages},
    {0},
};
