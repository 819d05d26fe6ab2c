/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */
#include "gates_held.h"

#include <stdatomic.h>
#include <time.h>

#include "aside.h"

enum { NAP_NS = 1000000 };

static _Atomic uint32_t held;

/* relaxed, all of them: a number, which orders nothing */
void pplx_gate_holds(void) { atomic_fetch_add_explicit(&held, 1, memory_order_relaxed); }

void pplx_gate_lets_go(void) { atomic_fetch_sub_explicit(&held, 1, memory_order_relaxed); }

uint32_t pplx_gates_held(void) { return atomic_load_explicit(&held, memory_order_relaxed); }

void pplx_outlast_gates(void) {
    const struct timespec moment = {0, NAP_NS};
    while (pplx_aside_is_here() && pplx_gates_held()) nanosleep(&moment, NULL);
}
