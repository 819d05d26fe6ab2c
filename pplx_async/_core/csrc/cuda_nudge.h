/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Have a GPU look at its streams that wait, when the gate of one has opened.
 *
 * By itself a GPU looks at a stream that waits for a word every 8 us or so (H200, driver 580): from the store that opens
 * a gate to the first instruction behind it 7.3 us in the middle, 11.5 at 99 %. It looks at all that wait when it takes a
 * stream memory operation of any other stream of the context, whatever else runs: 5.2 and 6.2 then. A launch, a copy or
 * an event do not help, nor does a second operation. So a context with gates has a stream of ours, which is given a store
 * into a word that nobody waits for; 1.4 us of the caller's time. */
#ifndef PPLX_CSRC_CUDA_NUDGE_H
#define PPLX_CSRC_CUDA_NUDGE_H

#include "cuda_driver.h"

/* Of the context, which is the current one (pplx_cuda_enter()); its device has stream memory operations of 64 bit. A
 * number for pplx_nudge(), 1 to PPLX_MOST_NUDGES; 0: there is none, and the GPU looks when it looks. Any thread; it may
 * wait as cuStreamCreate and cuMemHostRegister do, the first time. */
uint32_t pplx_nudge_find(const pplx_libcuda *cuda, cu_context context);

#endif
