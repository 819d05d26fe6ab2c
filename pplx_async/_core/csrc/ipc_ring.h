/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The two rings of an inbox, and how their ends wake each other. Each ring has one producer, the
 * peer, and one consumer, the inbox's owner; positions count up for ever, slot = position mod size.
 *
 * Immediates. A slot is one 64-bit word, (position + 1) mod 2^32 above the immediate, so a single
 * store publishes both. The consumer takes a slot whose upper half says that it is its turn; what an
 * earlier lap left there says position + 1 - size, which is another number. The producer knows what
 * is free from `head->immediates`, which the consumer moves behind what it has read.
 *
 * Commands. A slot has its turn in a word of its own, stored last. The consumer executes it, stores
 * the result into the slot, then moves `head->commands`: that is the acknowledgement, after which
 * the producer reads the result and uses the slot again.
 *
 * Both ends keep their own positions in private memory. From the shared words each reads only the
 * other's, and checks them: a head that is behind what it said before, or ahead of what was
 * produced, is the work of a broken or hostile peer.
 *
 * Waking. All loads and stores named here are seq_cst, so they have one order that both see.
 *
 *   producer  1. store slot (or an acknowledgement, or news)  2. load `wake` of the consumer's inbox
 *   consumer  1. store `wake` of its inbox                    2. load all that could have come
 *
 * If the producer's load comes after the consumer's store it sees that the consumer may sleep, and
 * rings. If it comes before, then the store of the slot came before that, and so before the
 * consumer's look, which finds it. The bit taken off by an exchange makes it one ring per sleep.
 * Room that is made is a thing produced in the other direction, asked for with IPC_WAKE_ROOM.
 *
 * The bell is a message on the socket, sent without waiting. (An eventfd of which the peer has a
 * copy would be a trap: the peer can make that descriptor a blocking one.) If there is no room for
 * it, then something unread lies there already, which wakes as well.
 *
 * A thread fence would do with weaker stores, but ThreadSanitizer can't see fences. The protocol is
 * checked by tests/models/ipc_wake.pml and tried by tests/c/test_ipc_ring.c and stress_ipc_wake.c. */
#ifndef PPLX_CSRC_IPC_RING_H
#define PPLX_CSRC_IPC_RING_H

#include <string.h>

#include "ipc_wire.h"

/* ---- immediates ---- */

static inline uint64_t ipc_immediate_slot(uint64_t position, uint32_t imm) {
    return (uint64_t)(uint32_t)(position + 1) << 32 | imm;
}

/* Producer, behind a slot that is pushed after that, which publishes this one too. */
static inline void ipc_put_immediate(const ipc_inbox *to, uint64_t position, uint32_t imm) {
    /* relaxed: the consumer doesn't get here before the one that is pushed */
    atomic_store_explicit(&to->immediates[position & (to->slots - 1)], ipc_immediate_slot(position, imm),
                          memory_order_relaxed);
}

/* Producer. `tail`: its next position; the caller has seen that there is room. */
static inline void ipc_push_immediate(const ipc_inbox *to, uint64_t tail, uint32_t imm) {
    uint64_t slot = ipc_immediate_slot(tail, imm);
    /* release part: pairs with the load in ipc_peek_immediate(), the bytes come first; seq_cst: "Waking" */
    atomic_store_explicit(&to->immediates[tail & (to->slots - 1)], slot, memory_order_seq_cst);
}

/* Consumer. `head`: its next position. */
static inline bool ipc_peek_immediate(const ipc_inbox *own, uint64_t head, uint32_t *imm) {
    /* seq_cst: pairs with the store in ipc_push_immediate(), see "Waking" */
    uint64_t slot = atomic_load_explicit(&own->immediates[head & (own->slots - 1)], memory_order_seq_cst);
    *imm = (uint32_t)slot;
    return slot >> 32 == (uint32_t)(head + 1);
}

/* Consumer: what is before `head` is read. */
static inline void ipc_free_immediates(const ipc_inbox *own, uint64_t head) {
    /* release part: pairs with the load in ipc_immediates_free(); seq_cst: "Waking" */
    atomic_store_explicit(&own->head->immediates, head, memory_order_seq_cst);
}

/* Producer: how many there is room for; UINT64_MAX if the consumer's head can't be true. */
static inline uint64_t ipc_immediates_free(const ipc_inbox *to, uint64_t tail) {
    /* seq_cst: pairs with the store in ipc_free_immediates(), see "Waking" */
    uint64_t taken = tail - atomic_load_explicit(&to->head->immediates, memory_order_seq_cst);
    return taken <= to->slots ? to->slots - taken : UINT64_MAX;
}

/* ---- immediates of a GPU's stream ----
 *
 * As above, but a slot is stored by the stream, after its copies, and nobody looks at `wake` then: the thread that
 * gave the stream its work does so when it sees that the work is done, and doesn't sleep before. Of several that the
 * stream publishes at once it stores the first one; those behind it are there already. */

/* What a stream has to store, and where. `position` is the next one of its ring. */
static inline _Atomic uint64_t *ipc_stream_slot(const ipc_inbox *to, int stream, uint64_t position) {
    return &to->streams[stream * IPC_STREAM_SLOTS + (int)(position % IPC_STREAM_SLOTS)];
}

/* Producer, behind a slot that the stream stores after that, which publishes this one too. */
static inline void ipc_put_streamed(const ipc_inbox *to, int stream, uint64_t position, uint32_t imm) {
    /* release: before the stream is given its work; the consumer doesn't get here before the stream's store */
    atomic_store_explicit(ipc_stream_slot(to, stream, position), ipc_immediate_slot(position, imm),
                          memory_order_release);
}

static inline bool ipc_peek_stream(const ipc_inbox *own, int stream, uint64_t head, uint32_t *imm) {
    /* acquire part: pairs with the store of the stream, which comes after its copies; seq_cst: "Waking" */
    uint64_t slot = atomic_load_explicit(ipc_stream_slot(own, stream, head), memory_order_seq_cst);
    *imm = (uint32_t)slot;
    return slot >> 32 == (uint32_t)(head + 1);
}

static inline void ipc_free_stream(const ipc_inbox *own, int stream, uint64_t head) {
    /* seq_cst: pairs with the load in ipc_stream_free(); "Waking" */
    atomic_store_explicit(&own->head->streams[stream], head, memory_order_seq_cst);
}

/* Producer: as ipc_immediates_free(). */
static inline uint64_t ipc_stream_free(const ipc_inbox *to, int stream, uint64_t tail) {
    /* seq_cst: pairs with the store in ipc_free_stream(), see "Waking" */
    uint64_t taken = tail - atomic_load_explicit(&to->head->streams[stream], memory_order_seq_cst);
    return taken <= IPC_STREAM_SLOTS ? IPC_STREAM_SLOTS - taken : UINT64_MAX;
}

static inline bool ipc_streaming(const ipc_inbox *own) {
    /* seq_cst: pairs with the store in ipc_start_streaming(), see "Waking" */
    return atomic_load_explicit(&own->head->streaming, memory_order_seq_cst) != 0;
}

static inline void ipc_start_streaming(const ipc_inbox *to) {
    /* seq_cst: pairs with the load in ipc_streaming(), see "Waking" */
    atomic_store_explicit(&to->head->streaming, 1, memory_order_seq_cst);
}

/* ---- commands ---- */

/* Producer, into a slot that is free. */
static inline void ipc_push_command(const ipc_inbox *to, uint64_t tail, const ipc_command *command) {
    ipc_slot *slot = &to->commands[tail % IPC_COMMANDS];
    uint64_t words[IPC_COMMAND_WORDS];
    memcpy(words, command, sizeof words);
    for (int i = 0; i < IPC_COMMAND_WORDS; i++) /* relaxed: the turn publishes them */
        atomic_store_explicit(&slot->words[i], words[i], memory_order_relaxed);
    /* release part: pairs with the load in ipc_peek_command(); seq_cst: "Waking" */
    atomic_store_explicit(&slot->turn, tail + 1, memory_order_seq_cst);
}

/* Consumer: true and a copy, which is all that may be looked at. */
static inline bool ipc_peek_command(const ipc_inbox *own, uint64_t head, ipc_command *command) {
    ipc_slot *slot = &own->commands[head % IPC_COMMANDS];
    uint64_t words[IPC_COMMAND_WORDS];
    /* seq_cst: pairs with the store in ipc_push_command(), see "Waking" */
    if (atomic_load_explicit(&slot->turn, memory_order_seq_cst) != head + 1) return false;
    for (int i = 0; i < IPC_COMMAND_WORDS; i++) words[i] = atomic_load_explicit(&slot->words[i], memory_order_relaxed);
    memcpy(command, words, sizeof *command);
    return true;
}

/* Consumer: the command at `head` is done. */
static inline void ipc_acknowledge(const ipc_inbox *own, uint64_t head, uint64_t result) {
    /* relaxed: head->commands publishes it */
    atomic_store_explicit(&own->commands[head % IPC_COMMANDS].result, result, memory_order_relaxed);
    /* release part: pairs with the load in ipc_acknowledged(); seq_cst: "Waking" */
    atomic_store_explicit(&own->head->commands, head + 1, memory_order_seq_cst);
}

/* Producer: how many were acknowledged since `acknowledged`; UINT64_MAX if that can't be true. */
static inline uint64_t ipc_acknowledged(const ipc_inbox *to, uint64_t acknowledged, uint64_t tail) {
    /* seq_cst: pairs with the store in ipc_acknowledge(), see "Waking" */
    uint64_t since = atomic_load_explicit(&to->head->commands, memory_order_seq_cst) - acknowledged;
    return since <= tail - acknowledged ? since : UINT64_MAX;
}

static inline uint64_t ipc_result(const ipc_inbox *to, uint64_t position) {
    /* relaxed: read after ipc_acknowledged() */
    return atomic_load_explicit(&to->commands[position % IPC_COMMANDS].result, memory_order_relaxed);
}

/* ---- waking ---- */

/* Consumer, before it sleeps; 0: it is awake. */
static inline void ipc_set_wake(const ipc_inbox *own, unsigned what) {
    /* seq_cst: see "Waking" */
    atomic_store_explicit(&own->head->wake, what, memory_order_seq_cst);
}

/* Consumer, awake again: true if it is still set, nobody rang. */
static inline bool ipc_clear_wake(const ipc_inbox *own) {
    /* seq_cst: see "Waking" */
    return atomic_exchange_explicit(&own->head->wake, 0, memory_order_seq_cst) != 0;
}

/* Producer, after it has published: true if the bell has to be rung, once per sleep. */
static inline bool ipc_take_wake(const ipc_inbox *to, unsigned what) {
    /* seq_cst: see "Waking" */
    if (!(atomic_load_explicit(&to->head->wake, memory_order_seq_cst) & what)) return false;
    return atomic_exchange_explicit(&to->head->wake, 0, memory_order_seq_cst) != 0;
}

#endif
