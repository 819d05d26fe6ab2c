/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* How many streams of GPUs are in gates of this process, or will be.
 *
 * To unpin memory, to close what another process has, and to load a module wait in the driver until no stream of the
 * context waits. And while one thread is in such a call, copies, launches and allocations of all others wait with it
 * (two H200s, driver 580): those of a proxy, too, which opens the gates. So threads beside make them when no stream is
 * in a gate. Of streams that wait for something else, and of a gate that comes at the same moment, we know nothing. */
#ifndef PPLX_CSRC_GATES_HELD_H
#define PPLX_CSRC_GATES_HELD_H

#include <stdint.h>

void pplx_gate_holds(void);
void pplx_gate_lets_go(void);
uint32_t pplx_gates_held(void);

/* Wait until there is none, however long that takes. On a thread of aside.c; on any other, which may be the one that
 * opens them, it returns at once. */
void pplx_outlast_gates(void);

#endif
