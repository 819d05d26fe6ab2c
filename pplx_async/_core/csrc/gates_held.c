/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */
#include "gates_held.h"

#include <stdatomic.h>
#include <time.h>

#include "aside.h"
#include "internal.h"

enum { NAP_NS = 1000000, SHORT_NAP_NS = 50000, MOST_NS = 1000000000 };

static _Atomic uint32_t held, calls;
static _Atomic uint64_t ended, in_vain = UINT64_MAX; /* calls; and how many had when one was waited for in vain */

static void nap(long ns) {
    const struct timespec moment = {0, ns};
    nanosleep(&moment, NULL);
}

/* seq_cst: see the head of gates_held.h */
void pplx_gate_holds(void) { atomic_fetch_add_explicit(&held, 1, memory_order_seq_cst); }

/* release, like the next but one: who finds none comes after what they held up, or called */
void pplx_gate_lets_go(void) { atomic_fetch_sub_explicit(&held, 1, memory_order_release); }

uint32_t pplx_gates_held(void) { return atomic_load_explicit(&held, memory_order_seq_cst); }

void pplx_gates_may_come(void) {
    atomic_fetch_add_explicit(&ended, 1, memory_order_relaxed); /* relaxed: see below */
    atomic_fetch_sub_explicit(&calls, 1, memory_order_release);
}

/* relaxed, `ended` and `in_vain`: numbers, which order nothing; an old one costs a wait */
void pplx_gate_comes(void) {
    pplx_gate_holds();
    const uint64_t until = pplx_now_ns() + MOST_NS;
    while (atomic_load_explicit(&calls, memory_order_seq_cst)) {
        const uint64_t so_far = atomic_load_explicit(&ended, memory_order_relaxed);
        if (atomic_load_explicit(&in_vain, memory_order_relaxed) == so_far) return;
        if (pplx_now_ns() >= until) atomic_store_explicit(&in_vain, so_far, memory_order_relaxed);
        nap(SHORT_NAP_NS);
    }
}

void pplx_outlast_gates(void) {
    for (;;) {
        atomic_fetch_add_explicit(&calls, 1, memory_order_seq_cst);
        if (!pplx_gates_held() || !pplx_aside_is_here()) return;
        atomic_fetch_sub_explicit(&calls, 1, memory_order_release); /* none has ended, for none was made */
        nap(NAP_NS);
    }
}
