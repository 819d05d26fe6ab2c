/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A fuzz target as a program: libFuzzer's engine, fed with the coverage that gcc's trace-pc gives.
 *
 * The engine expects clang's counters, one for each edge. gcc calls a function at each block instead, so
 * the counters are here, and a block's address says which of them is its own. */
#include <stdint.h>

#include "fuzz.h"

enum { COUNTERS = 1 << 15 };

static uint8_t counters[COUNTERS];

/* Of the engine. */
void __sanitizer_cov_8bit_counters_init(uint8_t *start, uint8_t *stop);
int LLVMFuzzerRunDriver(int *argc, char ***argv, int (*target)(const uint8_t *data, size_t nbytes));

/* The linker puts it in the place of __sanitizer_cov_trace_pc(), which the engine has too, to no effect. */
void __wrap___sanitizer_cov_trace_pc(void);
void __wrap___sanitizer_cov_trace_pc(void) {
    const uintptr_t pc = (uintptr_t)__builtin_return_address(0);
    counters[(pc ^ pc >> 15) % COUNTERS]++;
}

static int run(const uint8_t *data, size_t nbytes) {
    fuzz_one(data, nbytes);
    return 0;
}

int main(int argc, char **argv) {
    fuzz_open();
    __sanitizer_cov_8bit_counters_init(counters, counters + COUNTERS);
    return LLVMFuzzerRunDriver(&argc, &argv, run);
}
