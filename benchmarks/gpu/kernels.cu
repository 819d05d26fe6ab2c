/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The kernels of both sides, the C program and pplx_async. Compiled to PTX, which both load. */
#include <pplx_async/device.cuh>

/* One thread. Its first instruction that anybody sees. */
extern "C" __global__ void bench_store(volatile pplx_device_word *word, pplx_device_word value) { *word = value; }

/* One thread. Add 1 to `word`, wait until the host has said in `seen` that it saw that, and once more. An end to it if
 * the host says nothing for ten seconds: a kernel that never ends takes the GPU along. */
extern "C" __global__ void bench_count(pplx_device_word *word, const pplx_device_word *seen, pplx_device_word count) {
    const pplx_device_word patience = 10000000000ull;
    pplx_device_word now, before;
    for (pplx_device_word i = 1; i <= count; i++) {
        pplx_signal(word, 1);
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(before));
        do {
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
            if (now - before > patience) return;
        } while (pplx_read(seen) < i);
    }
}

/* A block for each page, which it brings from one place to another. `pages`: (from, to) of each, in pages. */
extern "C" __global__ void bench_gather(uint4 *to, const uint4 *from, const uint2 *pages, unsigned page_nbytes) {
    const size_t units = page_nbytes / sizeof(uint4);
    const uint4 *source = from + pages[blockIdx.x].x * units;
    uint4 *target = to + pages[blockIdx.x].y * units;
#pragma unroll 8
    for (size_t i = threadIdx.x; i < units; i += blockDim.x) target[i] = source[i];
}

/* Work for all of a GPU that waits for no memory. */
extern "C" __global__ void bench_compute(float *out, unsigned rounds) {
    float value = (float)threadIdx.x;
    for (unsigned i = 0; i < rounds; i++) value = fmaf(value, 0.999f, 1.0f);
    out[blockIdx.x * blockDim.x + threadIdx.x] = value;
}
