/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Kernels and words: signal one that a coroutine watches, wait for one, ask whether a gate let the kernel through for
 * want of something better. For nvcc, clang and NVRTC (CuPy's RawKernel and RawModule), with no header of anyone's:
 *
 *   cupy.RawModule(code='#include <pplx_async/device.cuh> ...', options=("-I" + pplx_async.get_include(),))
 *
 * A word is 64 bits in pinned memory of the host; its address goes to the kernel as an argument (device_address).
 * Everything here is of system scope, for sm_70 and newer. One GPU increases a word: over PCIe, atomics of two of
 * them on memory of the host do not see each other. */
#ifndef PPLX_ASYNC_DEVICE_CUH
#define PPLX_ASYNC_DEVICE_CUH

#define PPLX_DEVICE static __device__ __inline__

typedef unsigned long long pplx_device_word;

/* Add n to it. Whoever sees that sees also what this thread has written before; what others of its block have, after
 * __syncthreads(). */
PPLX_DEVICE void pplx_signal(pplx_device_word *word, pplx_device_word n) {
    asm volatile("fence.acq_rel.sys; red.relaxed.sys.add.u64 [%0], %1;" : : "l"(word), "l"(n) : "memory");
}

PPLX_DEVICE pplx_device_word pplx_read(const pplx_device_word *word) {
    pplx_device_word value;
    asm volatile("ld.acquire.sys.u64 %0, [%1];" : "=l"(value) : "l"(word) : "memory");
    return value;
}

/* Until it is at least that. What was written before it by whoever set it is seen afterwards. It keeps its place on
 * the GPU meanwhile: a gate in front of the kernel does not. */
PPLX_DEVICE void pplx_wait(const pplx_device_word *word, pplx_device_word value) {
    while (pplx_read(word) < value) asm volatile("nanosleep.u32 100;");
}

/* Of a gate (Gate.device_address) in front of this kernel on its stream: it let the stream go without what that waited
 * for. That stays until the engine ends, or is out of other words and takes this one again. The word of a gate that has
 * opened is another one's after 1,000 more: a kernel that starts so late may see what became of that one. */
PPLX_DEVICE bool pplx_aborted(const void *gate) {
    unsigned gone, aborted;
    asm volatile("ld.acquire.sys.u32 %0, [%1+4];" : "=r"(gone) : "l"(gate) : "memory");
    asm volatile("ld.acquire.sys.u32 %0, [%1+8];" : "=r"(aborted) : "l"(gate) : "memory");
    return gone != 0 || aborted != 0;
}

#endif
