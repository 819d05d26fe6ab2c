/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A kernel that copies many small pieces at once: what a copy engine takes a few microseconds for each, it does in
 * one launch. In PTX, which the driver compiles for the GPU that is there, and written for an old version of it, so
 * that every driver we load does. In CUDA C:
 *
 *   struct piece { char *to; const char *from; size_t nbytes; };
 *   __global__ void pplx_copy(struct { piece of[CUDA_PIECES]; } pieces) {     // grid: (blocks of a piece, pieces)
 *       piece p = pieces.of[blockIdx.y];
 *       size_t unit = ((uintptr_t)p.to | (uintptr_t)p.from | p.nbytes) % 16 ? 1 : 16;
 *       for (size_t at = blockIdx.x * blockDim.x + threadIdx.x; at < p.nbytes / unit; at += gridDim.x * blockDim.x)
 *           copy unit bytes at unit * at;                                     // of 16 bytes four at a time
 *   } */
#ifndef PPLX_CSRC_CUDA_COPY_H
#define PPLX_CSRC_CUDA_COPY_H

#include <stdint.h>

enum { CUDA_PIECES = 160, CUDA_PIECE_THREADS = 256 };

typedef struct cuda_piece {
    uint64_t to, from, nbytes;
} cuda_piece;

typedef struct cuda_pieces {
    cuda_piece of[CUDA_PIECES];
} cuda_pieces;

static const char pplx_cuda_copy_name[] = "pplx_copy";
static const char pplx_cuda_copy_ptx[] =
    ".version 6.4\n"
    ".target sm_70\n"
    ".address_size 64\n"
    ".visible .entry pplx_copy(.param .align 8 .b8 pieces[3840])\n"
    "{\n"
    "    .reg .pred %p;\n"
    "    .reg .b32 %piece, %thread, %block, %width, %grid, %byte;\n"
    "    .reg .b32 %a0, %a1, %a2, %a3, %b0, %b1, %b2, %b3, %c0, %c1, %c2, %c3, %d0, %d1, %d2, %d3;\n"
    "    .reg .b64 %base, %offset, %to, %from, %left, %at, %step, %low, %end, %x, %y;\n"
    "    mov.u32 %piece, %ctaid.y;\n"
    "    mul.wide.u32 %offset, %piece, 24;\n"
    "    mov.b64 %base, pieces;\n"
    "    add.s64 %base, %base, %offset;\n"
    "    ld.param.u64 %to, [%base];\n"
    "    ld.param.u64 %from, [%base+8];\n"
    "    ld.param.u64 %left, [%base+16];\n"
    "    cvta.to.global.u64 %to, %to;\n"
    "    cvta.to.global.u64 %from, %from;\n"
    "    mov.u32 %thread, %tid.x;\n"
    "    mov.u32 %block, %ctaid.x;\n"
    "    mov.u32 %width, %ntid.x;\n"
    "    mov.u32 %grid, %nctaid.x;\n"
    "    mad.lo.u32 %thread, %block, %width, %thread;\n"
    "    mul.lo.u32 %grid, %grid, %width;\n"
    "    cvt.u64.u32 %at, %thread;\n"
    "    cvt.u64.u32 %step, %grid;\n"
    "    or.b64 %low, %to, %from;\n"
    "    or.b64 %low, %low, %left;\n"
    "    and.b64 %low, %low, 15;\n"
    "    setp.ne.u64 %p, %low, 0;\n"
    "    @%p bra BYTES;\n"
    "    shl.b64 %at, %at, 4;\n" /* from here on in bytes */
    "    shl.b64 %step, %step, 4;\n"
    "    mul.lo.u64 %x, %step, 3;\n"
    "    sub.s64 %end, %left, %x;\n" /* below this there are four of them; may be less than 0 */
    "FOUR:\n"
    "    setp.ge.s64 %p, %at, %end;\n"
    "    @%p bra ONE;\n"
    "    add.s64 %x, %from, %at;\n"
    "    add.s64 %y, %to, %at;\n"
    "    ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%x];\n"
    "    add.s64 %x, %x, %step;\n"
    "    ld.global.v4.u32 {%b0, %b1, %b2, %b3}, [%x];\n"
    "    add.s64 %x, %x, %step;\n"
    "    ld.global.v4.u32 {%c0, %c1, %c2, %c3}, [%x];\n"
    "    add.s64 %x, %x, %step;\n"
    "    ld.global.v4.u32 {%d0, %d1, %d2, %d3}, [%x];\n"
    "    st.global.v4.u32 [%y], {%a0, %a1, %a2, %a3};\n"
    "    add.s64 %y, %y, %step;\n"
    "    st.global.v4.u32 [%y], {%b0, %b1, %b2, %b3};\n"
    "    add.s64 %y, %y, %step;\n"
    "    st.global.v4.u32 [%y], {%c0, %c1, %c2, %c3};\n"
    "    add.s64 %y, %y, %step;\n"
    "    st.global.v4.u32 [%y], {%d0, %d1, %d2, %d3};\n"
    "    shl.b64 %x, %step, 2;\n"
    "    add.s64 %at, %at, %x;\n"
    "    bra FOUR;\n"
    "ONE:\n"
    "    setp.ge.u64 %p, %at, %left;\n"
    "    @%p bra DONE;\n"
    "    add.s64 %x, %from, %at;\n"
    "    add.s64 %y, %to, %at;\n"
    "    ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%x];\n"
    "    st.global.v4.u32 [%y], {%a0, %a1, %a2, %a3};\n"
    "    add.s64 %at, %at, %step;\n"
    "    bra ONE;\n"
    "BYTES:\n"
    "    setp.ge.u64 %p, %at, %left;\n"
    "    @%p bra DONE;\n"
    "    add.s64 %x, %from, %at;\n"
    "    add.s64 %y, %to, %at;\n"
    "    ld.global.u8 %byte, [%x];\n"
    "    st.global.u8 [%y], %byte;\n"
    "    add.s64 %at, %at, %step;\n"
    "    bra BYTES;\n"
    "DONE:\n"
    "    ret;\n"
    "}\n";

#endif
