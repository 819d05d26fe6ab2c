/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What benchmarks/gpu/works.py measures, in plain CUDA C: gpu_bench.c has the GPUs and the repetitions, works.c what is
 * done in one. One process and one thread, which may have both GPUs: less than what two processes need. */
#ifndef GPU_BENCH_H
#define GPU_BENCH_H

#include "driver.h"

enum { GPU_STREAMS = 4 };

typedef struct gpu {
    int processors;
    CUcontext context;
    CUstream streams[GPU_STREAMS];
    CUdeviceptr memory; /* `arena_nbytes` */
    CUfunction store, count, gather, compute;
} gpu;

/* Words of the host that GPUs see, each on a cache line of its own. */
enum gpu_word { WORD_FLAG, WORD_GO, WORD_STAMP, WORD_BELL, WORD_SEEN, GPU_WORDS };

typedef struct gpu_bench {
    size_t nbytes, count;
    unsigned inflight, rounds;
    size_t arena_nbytes;
    gpu from, to; /* the same GPU where there is one */
    volatile uint64_t landed; /* what a doorbell lets go: 8 bytes */
    double *samples; /* `count`: in us, of works that measure each time */
} gpu_bench;

extern gpu_bench bench;

typedef struct gpu_work {
    const char *name, *unit;
    double (*run)(void); /* the value; or less than 0: it is the median of bench.samples */
    void (*check)(void); /* after the first time: what has arrived */
} gpu_work;

extern const gpu_work gpu_works[]; /* ends with a nameless one */

double gpu_now_us(void);
void gpu_use(const gpu *gpu); /* calls are for its context from now on */
uint64_t gpu_load(enum gpu_word word); /* acquire */
void gpu_set(enum gpu_word word, uint64_t value); /* release */
CUdeviceptr gpu_address(enum gpu_word word); /* as GPUs see it */
void gpu_await(enum gpu_word word, uint64_t value); /* polls until it is at least that */
uint64_t gpu_next(void); /* 1, 2, ...: never the same in a program */
void gpu_launch(CUfunction function, unsigned blocks, unsigned threads, CUstream stream, void **arguments);

#endif
