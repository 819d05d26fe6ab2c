/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A kernel of one thread that does what a stream does in words (pplx_async/words.h), for GPUs or drivers without
 * stream memory operations. In PTX as cuda_copy.h; sm_70 has what it needs. In CUDA C:
 *
 *   struct { pplx_step of[CUDA_STEPS]; uint32_t count; } steps;
 *   for (i = 0; i < steps.count; i++)
 *       if (steps.of[i].kind == PPLX_STEP_WRITE)
 *           { __threadfence_system(); *(volatile uint32_t *)steps.of[i].address = steps.of[i].value; }
 *       else
 *           { while (*(volatile uint64_t *)steps.of[i].address < steps.of[i].least) __nanosleep(200);
 *             __threadfence_system(); } */
#ifndef PPLX_CSRC_CUDA_WORDS_H
#define PPLX_CSRC_CUDA_WORDS_H

#include "pplx_async/words.h"

enum { CUDA_STEPS = 4 };

typedef struct cuda_steps {
    pplx_step of[CUDA_STEPS]; /* 24 bytes each: kind, value, least, address */
    uint32_t count, reserved;
} cuda_steps;

static const char pplx_cuda_words_name[] = "pplx_words";
static const char pplx_cuda_words_ptx[] = ".version 6.4\n"
                                          ".target sm_70\n"
                                          ".address_size 64\n"
                                          ".visible .entry pplx_words(.param .align 8 .b8 steps[104])\n"
                                          "{\n"
                                          "    .reg .pred %p;\n"
                                          "    .reg .b32 %i, %count, %kind, %value;\n"
                                          "    .reg .b64 %at, %least, %address, %seen;\n"
                                          "    mov.b64 %at, steps;\n"
                                          "    ld.param.u32 %count, [steps+96];\n"
                                          "    mov.u32 %i, 0;\n"
                                          "NEXT:\n"
                                          "    setp.ge.u32 %p, %i, %count;\n"
                                          "    @%p bra DONE;\n"
                                          "    ld.param.u32 %kind, [%at];\n"
                                          "    ld.param.u32 %value, [%at+4];\n"
                                          "    ld.param.u64 %least, [%at+8];\n"
                                          "    ld.param.u64 %address, [%at+16];\n"
                                          "    setp.ne.u32 %p, %kind, 0;\n"
                                          "    @%p bra WAIT;\n"
                                          "    fence.sc.sys;\n"
                                          "    st.relaxed.sys.u32 [%address], %value;\n"
                                          "    bra AFTER;\n"
                                          "WAIT:\n"
                                          "    ld.acquire.sys.u64 %seen, [%address];\n"
                                          "    setp.ge.u64 %p, %seen, %least;\n"
                                          "    @%p bra AFTER;\n"
                                          "    nanosleep.u32 200;\n"
                                          "    bra WAIT;\n"
                                          "AFTER:\n"
                                          "    add.s64 %at, %at, 24;\n"
                                          "    add.u32 %i, %i, 1;\n"
                                          "    bra NEXT;\n"
                                          "DONE:\n"
                                          "    fence.sc.sys;\n"
                                          "    ret;\n"
                                          "}\n";

#endif
