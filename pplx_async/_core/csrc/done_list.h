/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The list of finished requests: linked in by the proxy thread, taken whole by the owner thread.
 * It is intrusive, so it can't fill up and a push can't fail.
 *
 * Everything is in one word, `head`:
 *
 *   NULL   empty, and the owner is awake: it will look by itself
 *   ARMED  empty, and the owner is about to block: whoever pushes next must ring it
 *   node   newest node; the others follow by `next`. The owner has been rung, or is awake.
 *
 *   push   node->next = head (NULL for ARMED); swap the node in. What was ARMED is not any more:
 *          exactly one push per arm returns true, and that one rings.
 *   take   swap NULL in; what was there is the owner's alone; reverse it, oldest first.
 *   arm    swap ARMED in for NULL. Fails if there is a node: take again.
 *
 * The owner's rule: clear the wake fd, take, work, arm; if the arm fails, start over; then block.
 *
 * Why no wake-up is lost. "Arm, then look again" usually needs two words, a flag and a list, and
 * seq_cst on all four accesses (a store followed by a load of the other word, on both sides).
 * Here flag and list are the same word, every access is a read-modify-write of it, and those have
 * one order, the word's modification order, whatever the memory model does with other words.
 * A push and an arm are somewhere in it: push first, the arm sees the node and fails; arm first,
 * the push sees ARMED and rings. So acquire and release are enough.
 *
 * No ABA: nodes leave only all at once. If between push's load and its swap the list was taken and
 * the same node became its newest again, then `next` still names the newest: that is all it says. */
#ifndef PPLX_CSRC_DONE_LIST_H
#define PPLX_CSRC_DONE_LIST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pplx_async/engine.h"

typedef struct pplx_done_list {
    _Atomic(pplx_node *) head; /* written by the proxy (push) and the owner thread (take, arm) */
    pplx_node armed;           /* never linked: its address is the value ARMED */
} pplx_done_list;

/* Before any other thread knows the list. Not armed. */
static inline void pplx_done_init(pplx_done_list *list) {
    list->armed.next = NULL;
    list->armed.kind = 0;
    atomic_init(&list->head, NULL);
}

/* Proxy thread (any number of threads would do). True: the owner was armed, ring it; it no longer
 * is. After this call the node is the owner's: it may be gone already. */
static inline bool pplx_done_push(pplx_done_list *list, pplx_node *node) {
    /* relaxed: compared, not followed; the swap below confirms it */
    pplx_node *head = atomic_load_explicit(&list->head, memory_order_relaxed);
    do {
        node->next = head == &list->armed ? NULL : head;
        /* release: pairs with the acquire in pplx_done_take(); what the node says is written.
         * Later pushes are read-modify-writes, so they continue the release sequence of this one. */
    } while (
        !atomic_compare_exchange_weak_explicit(&list->head, &head, node, memory_order_release, memory_order_relaxed));
    return head == &list->armed;
}

/* Owner thread. All nodes pushed so far, oldest first, linked by `next`; NULL for none. Takes the
 * arm off, if it is on. */
static inline pplx_node *pplx_done_take(pplx_done_list *list) {
    /* acquire: pairs with the release in every pplx_done_push() whose node we get */
    pplx_node *newest = atomic_exchange_explicit(&list->head, NULL, memory_order_acquire);
    if (newest == &list->armed) return NULL;
    pplx_node *oldest = NULL;
    while (newest) {
        pplx_node *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    return oldest;
}

/* Owner thread. Takes the arm off: it looks by itself now. True if it was on. */
static inline bool pplx_done_disarm(pplx_done_list *list) {
    pplx_node *expected = &list->armed;
    /* relaxed: nothing is handed over; a push that was first has rung, which does no harm */
    return atomic_compare_exchange_strong_explicit(&list->head, &expected, NULL, memory_order_relaxed,
                                                   memory_order_relaxed);
}

/* Owner thread. True: pplx_done_take() would have found nothing. */
static inline bool pplx_done_empty(pplx_done_list *list) {
    /* relaxed: the take acquires */
    const pplx_node *head = atomic_load_explicit(&list->head, memory_order_relaxed);
    return !head || head == &list->armed;
}

/* Owner thread. True: armed, the next push rings. False: something came meanwhile, take again. */
static inline bool pplx_done_arm(pplx_done_list *list) {
    pplx_node *expected = NULL;
    /* release: what the owner wrote before it blocks is seen by the push that finds ARMED; nothing
     * needs it yet, it costs nothing. relaxed on failure: the take that follows acquires. */
    return atomic_compare_exchange_strong_explicit(&list->head, &expected, &list->armed, memory_order_release,
                                                   memory_order_relaxed) ||
           expected == &list->armed;
}

#endif
