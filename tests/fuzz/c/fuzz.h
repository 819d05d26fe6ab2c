/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What a fuzz target is, and what it takes its input apart with. */
#ifndef PPLX_TESTS_FUZZ_H
#define PPLX_TESTS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void fuzz_open(void); /* once */
void fuzz_one(const uint8_t *data, size_t nbytes);

/* A property that does not hold: the engine keeps the input. */
#define HOLDS(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

/* The input, read from its front; behind its end there are zeros. */
typedef struct input {
    const uint8_t *data;
    size_t left;
} input;

static inline void take(input *in, void *bytes, size_t nbytes) {
    const size_t n = in->left < nbytes ? in->left : nbytes;
    memset(bytes, 0, nbytes);
    if (n) memcpy(bytes, in->data, n);
    in->data += n;
    in->left -= n;
}

static inline uint8_t take_u8(input *in) {
    uint8_t value;
    take(in, &value, sizeof value);
    return value;
}

static inline uint32_t take_u32(input *in) {
    uint32_t value;
    take(in, &value, sizeof value);
    return value;
}

static inline uint64_t take_u64(input *in) {
    uint64_t value;
    take(in, &value, sizeof value);
    return value;
}

/* Mostly small, or near an end of the range: where mistakes are. */
static inline uint64_t take_number(input *in) {
    const uint8_t how = take_u8(in);
    switch (how >> 6) {
    case 0: return how;
    case 1: return (uint64_t)take_u8(in) << (how & 63);
    case 2: return UINT64_MAX - (how & 63);
    default: return take_u64(in);
    }
}

#endif
