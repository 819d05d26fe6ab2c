/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A bounded ring of pointers: many producers, one consumer, no lock (after D. Vyukov's queue).
 *
 * Each cell has a turn counter. Cell i of a ring of C cells starts at turn i; with position p of
 * a producer or of the consumer (p counts up for ever, its cell is p mod C):
 *
 *   push  1. load turn of the cell at `tail`. turn == p: free for p. turn < p: the consumer has
 *            not emptied it since the last lap: full. turn > p: another producer was faster.
 *         2. claim p by compare-and-swap of `tail`. Only the claimant writes this cell now.
 *         3. write the value, then publish: turn = p + 1.
 *   pop   1. load turn of the cell at `head`. turn == p + 1: there is a value. Otherwise empty, or
 *            claimed but not published: both read as "nothing yet".
 *         2. read the value, then give the cell back: turn = p + C, what the next lap waits for.
 *
 * A producer that is descheduled between 2 and 3 holds up what was pushed behind it, but not the
 * other producers; it loses nothing. Values of one producer come out in the order they went in.
 *
 * Sleeping: the publishing store and the load in pplx_ring_empty() are seq_cst, so that
 *
 *   producer: push, then look at `asleep`          (seq_cst load)
 *   consumer: set `asleep` (seq_cst store), then pplx_ring_empty(), and block only if it is
 *
 * can't miss each other: in the single order of these four operations either the producer's look
 * comes after the consumer's set, and it rings; or the consumer's look comes after the publishing
 * store, and it does not sleep. No thread fence is used: ThreadSanitizer can't see those. */
#ifndef PPLX_CSRC_RING_H
#define PPLX_CSRC_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

enum { PPLX_RING_CACHE_LINE = 64 };

typedef struct pplx_ring_cell {
    atomic_size_t turn; /* whose turn: written by the claimant (publish) and the consumer (give back) */
    void *value;        /* written by the claimant, read by the consumer */
} pplx_ring_cell;

/* Padding, not _Alignas, keeps the ends apart, so that a ring may live in ordinary malloc memory. */
typedef struct pplx_ring {
    pplx_ring_cell *cells; /* written by init and free only */
    size_t mask;
    char pad0[PPLX_RING_CACHE_LINE];
    atomic_size_t tail; /* next position to claim; written by producers */
    char pad1[PPLX_RING_CACHE_LINE];
    size_t head; /* next position to pop; the consumer's own */
    char pad2[PPLX_RING_CACHE_LINE];
} pplx_ring;

/* A power of two, at least 2: with one cell "published" and "free for the next lap" would be the same turn. */
static inline bool pplx_ring_valid(size_t capacity) { return capacity >= 2 && (capacity & (capacity - 1)) == 0; }

/* False: `capacity` is not valid, or out of memory; then there is nothing to free. */
static inline bool pplx_ring_init(pplx_ring *ring, size_t capacity) {
    ring->cells = NULL;
    ring->mask = 0;
    ring->head = 0;
    atomic_init(&ring->tail, 0);
    if (!pplx_ring_valid(capacity)) return false;
    pplx_ring_cell *cells = calloc(capacity, sizeof *cells);
    if (!cells) return false;
    for (size_t i = 0; i < capacity; i++) atomic_init(&cells[i].turn, i);
    ring->cells = cells;
    ring->mask = capacity - 1;
    return true;
}

/* No thread uses it any more. Values left inside are the caller's. */
static inline void pplx_ring_free(pplx_ring *ring) {
    free(ring->cells);
    ring->cells = NULL;
}

/* Any thread. False: full. `value` is not NULL. */
static inline bool pplx_ring_push(pplx_ring *ring, void *value) {
    /* relaxed: only a guess at the position, the cell's turn and the swap below decide */
    size_t position = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    pplx_ring_cell *cell;
    for (;;) {
        cell = &ring->cells[position & ring->mask];
        /* acquire: pairs with the release in pplx_ring_pop(), whose read of the value is over */
        size_t turn = atomic_load_explicit(&cell->turn, memory_order_acquire);
        intptr_t ahead = (intptr_t)(turn - position);
        if (ahead == 0) {
            /* relaxed: claims a number, publishes nothing; a failed swap reloads `position` */
            if (atomic_compare_exchange_weak_explicit(&ring->tail, &position, position + 1, memory_order_relaxed,
                                                      memory_order_relaxed))
                break;
        } else if (ahead < 0) {
            return false;
        } else {
            position = atomic_load_explicit(&ring->tail, memory_order_relaxed); /* relaxed: as above */
        }
    }
    cell->value = value;
    /* release part: pairs with the acquire in pplx_ring_pop(); seq_cst: see "Sleeping" above */
    atomic_store_explicit(&cell->turn, position + 1, memory_order_seq_cst);
    return true;
}

/* Consumer only. NULL: nothing yet. */
static inline void *pplx_ring_pop(pplx_ring *ring) {
    size_t position = ring->head;
    pplx_ring_cell *cell = &ring->cells[position & ring->mask];
    /* acquire: pairs with the publishing store in pplx_ring_push() */
    if (atomic_load_explicit(&cell->turn, memory_order_acquire) != position + 1) return NULL;
    void *value = cell->value;
    ring->head = position + 1;
    /* release: pairs with the acquire in pplx_ring_push(): our read is over before it is overwritten */
    atomic_store_explicit(&cell->turn, position + ring->mask + 1, memory_order_release);
    return value;
}

/* Consumer only. True: pplx_ring_pop() would have found nothing. */
static inline bool pplx_ring_empty(pplx_ring *ring) {
    pplx_ring_cell *cell = &ring->cells[ring->head & ring->mask];
    /* seq_cst: pairs with the publishing store in pplx_ring_push(), see "Sleeping" above */
    return atomic_load_explicit(&cell->turn, memory_order_seq_cst) != ring->head + 1;
}

#endif
