/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* How many streams of GPUs are in gates of this process, or will be; and how many calls are under way that wait for them.
 *
 * To unpin memory, to close what another process has, and to load a module wait in the driver until no stream of the
 * context waits. And while one thread is in such a call, copies, launches and allocations of all others wait with it
 * (two H200s, driver 580): those of a proxy, too, which opens the gates. So threads beside make them when no stream is
 * in a gate, and no gate is queued meanwhile: it would hold up the call, and the call what opens it, for ever.
 *
 *   who calls    adds to `calls`, looks at `held`; if there are any, takes it back, and waits
 *   who queues   adds to `held`, looks at `calls`; if there are any, waits until there is none; then queues
 *
 * All four seq_cst: one of the two sees the other. Both may; then the call is taken back, so the gate goes first.
 *
 * Who queues is the owner, and a call may last as long as a kernel of the program's does. So it waits for a bounded time
 * and then queues all the same. That loses nothing: until then its launches, and those of the program, would have waited
 * in the driver for the same call. Of streams that wait for something else we know nothing, nor of gates that a graph has
 * captured, before the proxy sees their streams there. */
#ifndef PPLX_CSRC_GATES_HELD_H
#define PPLX_CSRC_GATES_HELD_H

#include <stdint.h>

void pplx_gate_holds(void);
void pplx_gate_lets_go(void);
uint32_t pplx_gates_held(void);

/* A gate is about to be queued, and holds from now on: wait until no call is under way that waits for gates, for a second
 * at most, and not once more for a call that was waited for in vain. Any thread that makes no such call. */
void pplx_gate_comes(void);

/* Round such calls. On a thread of aside.c it waits until there is no gate, however long that takes; on any other, which
 * may be the one that opens them, it does not. */
void pplx_outlast_gates(void);
void pplx_gates_may_come(void);

#endif
