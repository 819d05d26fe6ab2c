/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What a loopback domain was told to be: its limits, and which faults it makes. */
#ifndef PPLX_CSRC_LOOPBACK_PLAN_H
#define PPLX_CSRC_LOOPBACK_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pplx_async/types.h"

/* A probability in units of 2^-32, so that 1.0 is exact and a draw is an integer compare. */
typedef uint64_t loopback_odds;

/* Counts say "off" by UINT64_MAX. Written by pplx_loopback_plan_parse() only. */
typedef struct loopback_plan {
    uint64_t seed;
    uint64_t delay_min_ns, delay_max_ns;
    loopback_odds again, fail;
    pplx_status fail_status;
    uint32_t reorder;           /* window; 0 is off */
    uint64_t fail_after;        /* which posted operation, from 1 */
    uint64_t fail_registration; /* which mr_open, from 1 */
    uint64_t fail_deregistration; /* which mr_close, from 1 */
    uint64_t drop_after;        /* operations executed before the silence */
    uint64_t device;          /* only domains on this one follow it */
    uint64_t max_message;
    uint64_t bits_per_second; /* 0: as fast as memory */
    uint32_t max_inflight, eager_posts, posts_per_turn;
    bool wait_fd, release;
} loopback_plan;

/* Defaults, then `options` over them. PPLX_INVALID names the option and what it takes. */
pplx_status pplx_loopback_plan_parse(loopback_plan *plan, const pplx_option *options, size_t noptions,
                                     pplx_error *error);

/* Operations may become due later than they were posted. */
static inline bool loopback_plan_timed(const loopback_plan *plan) {
    return plan->delay_max_ns > 0 || plan->bits_per_second > 0;
}

/* splitmix64 (Steele, Lea, Flood 2014): one word of state, every seed is good. */
static inline uint64_t loopback_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

/* 0 .. bound-1, for bound >= 1. The bias of the remainder is below 2^-32 here and doesn't matter. */
static inline uint64_t loopback_below(uint64_t *state, uint64_t bound) { return loopback_random(state) % bound; }

static inline bool loopback_chance(uint64_t *state, loopback_odds odds) {
    return odds > 0 && (loopback_random(state) >> 32) < odds;
}

#endif
