/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Counters: a table from the 20-bit id of an immediate to what it counts.
 *
 * Telling the owner, without a lock and without a message per immediate:
 *   owner  1. store notify_at   2. load value: reached? then it need not be told
 *   proxy  1. add to value      2. load notify_at: reached? then claim `queued` and push
 * All four are seq_cst: either the owner sees the value, or the proxy sees the threshold (or both,
 * and the owner is told what it knows). `queued` keeps a counter from being pushed twice: the owner
 * clears it before it reads the value, so what it misses is pushed again.
 *
 * Who may count. Ids are small numbers, so that a peer can name one that it was never told. What is one
 * peer's alone (heartbeats, credits, the counters that are bound to it) counts only what came through an
 * endpoint to that peer, where the provider can tell. */
#include <stdlib.h>

#include "internal.h"

pplx_status pplx_counter_open(pplx_engine *engine, pplx_counter *counter) {
    uint32_t id;
    if (engine->nfree_counters)
        id = engine->free_counters[engine->first_free_counter];
    else if (engine->counters_used < PPLX_MAX_COUNTERS)
        id = engine->counters_used;
    else
        return PPLX_NO_MEMORY;
    _Atomic(pplx_counter *) *chunk = atomic_load_explicit(&engine->chunks[id / PPLX_CHUNK], memory_order_relaxed);
    if (!chunk) {
        chunk = calloc(PPLX_CHUNK, sizeof *chunk);
        if (!chunk) return PPLX_NO_MEMORY;
        /* release: pairs with the acquire in pplx_counter_hit(), which then sees zeroes */
        atomic_store_explicit(&engine->chunks[id / PPLX_CHUNK], chunk, memory_order_release);
    }
    if (id == engine->counters_used) {
        engine->counters_used++;
    } else {
        engine->first_free_counter = (engine->first_free_counter + 1) % engine->free_counters_room;
        engine->nfree_counters--;
    }
    counter->node.kind = PPLX_NODE_COUNTER;
    counter->id = id;
    counter->value = 0;
    counter->notify_at = UINT64_MAX;
    counter->queued = 0;
    counter->gated = 0;
    counter->gates = counter->last_gate = NULL;
    /* release: pairs with the acquire in pplx_counter_hit() */
    atomic_store_explicit(&chunk[id % PPLX_CHUNK], counter, memory_order_release);
    return PPLX_OK;
}

uint64_t pplx_counter_value(const pplx_counter *counter) {
    /* acquire: pairs with the store in pplx_counter_hit(): the counted bytes are visible */
    return __atomic_load_n(&counter->value, __ATOMIC_ACQUIRE);
}

uint64_t pplx_counter_gated(const pplx_counter *counter) {
    return __atomic_load_n(&counter->gated, __ATOMIC_RELAXED); /* relaxed: for humans */
}

bool pplx_counter_notify(pplx_counter *counter, uint64_t eighths) {
    __atomic_store_n(&counter->notify_at, eighths, __ATOMIC_SEQ_CST); /* seq_cst: see the head */
    return __atomic_load_n(&counter->value, __ATOMIC_SEQ_CST) >= eighths;
}

void pplx_counter_reaped(pplx_counter *counter) {
    /* seq_cst: pairs with the exchange in pplx_counter_hit(); the value is read after it */
    __atomic_store_n(&counter->queued, 0, __ATOMIC_SEQ_CST);
}

static bool came_from(const pplx_peer *peer, const pplx_completion *arrived) {
    if (arrived->status != PPLX_OK) return false;
    if (!arrived->source) return true; /* there is no telling */
    for (uint32_t i = 0; i < peer->nlinks; i++)
        if (peer->links[i].source == arrived->source) return true;
    return false;
}

static bool may_count(const pplx_engine *engine, const pplx_counter *counter, const pplx_completion *arrived) {
    switch (counter->role) {
    case PPLX_COUNTER_HEARTBEAT:
        /* It may be connected to us already, and we not to it: then its address is not known here yet. */
        if (arrived->status != PPLX_OK && counter->peer->state == PPLX_PEER_OPEN) return true;
        return came_from(counter->peer, arrived);
    case PPLX_COUNTER_CREDIT: return came_from(counter->peer, arrived);
    default: break;
    }
    if (counter->owner == 0) return arrived->status == PPLX_OK;
    /* By its token: the peer may be gone, and the counter lives on. acquire: pairs with pplx_peer_new() */
    const pplx_peer *owner = atomic_load_explicit(&engine->by_index[counter->owner % PPLX_MAX_PEERS],
                                                  memory_order_acquire);
    return owner && owner->token == counter->owner && came_from(owner, arrived);
}

/* An immediate arrived. Its bytes are in memory: the provider's promise. */
void pplx_counter_hit(pplx_engine *engine, const pplx_completion *arrived) {
    uint32_t id = pplx_imm_counter(arrived->imm);
    uint32_t eighths = pplx_imm_eighths(arrived->imm);
    /* acquire: pairs with the releases in pplx_counter_open() */
    _Atomic(pplx_counter *) *chunk = atomic_load_explicit(&engine->chunks[id / PPLX_CHUNK], memory_order_acquire);
    pplx_counter *counter = chunk ? atomic_load_explicit(&chunk[id % PPLX_CHUNK], memory_order_acquire) : NULL;
    if (!counter || !may_count(engine, counter, arrived)) {
        PPLX_COUNT(engine->stats.stray_imms, 1);
        return;
    }
    if (counter->role == PPLX_COUNTER_HEARTBEAT) {
        pplx_peer_heard(counter->peer, eighths / PPLX_EIGHTHS - 1);
        return;
    }
    if (counter->role == PPLX_COUNTER_CREDIT) {
        pplx_message_credited(counter->peer, eighths / PPLX_EIGHTHS);
        return;
    }
    /* Only this thread writes it; relaxed for that reason. It stops below UINT64_MAX, which as a
     * threshold means never, and so never wraps around. */
    uint64_t value = __atomic_load_n(&counter->value, __ATOMIC_RELAXED);
    value = value < UINT64_MAX - 1 - eighths ? value + eighths : UINT64_MAX - 1;
    __atomic_store_n(&counter->value, value, __ATOMIC_SEQ_CST); /* see the head */
    if (counter->gates) pplx_gates_serve(engine, counter);
    if (value >= __atomic_load_n(&counter->notify_at, __ATOMIC_SEQ_CST) &&
        __atomic_exchange_n(&counter->queued, 1, __ATOMIC_SEQ_CST) == 0)
        pplx_finish(engine, &counter->node);
}

/* Proxy: this counter counts no more. Its id may be another's by now (closed twice, or never open):
 * then that one stays. */
void pplx_counter_forget(pplx_engine *engine, pplx_counter *counter) {
    if (counter->id >= PPLX_MAX_COUNTERS) return;
    /* acquire: pairs with the release in pplx_counter_open() */
    _Atomic(pplx_counter *) *chunk = atomic_load_explicit(&engine->chunks[counter->id / PPLX_CHUNK],
                                                          memory_order_acquire);
    pplx_counter *present = counter;
    /* relaxed: only this thread reads it; the owner writes it again after the call has settled */
    if (chunk)
        atomic_compare_exchange_strong_explicit(&chunk[counter->id % PPLX_CHUNK], &present, NULL, memory_order_relaxed,
                                                memory_order_relaxed);
}

/* Owner. Ids queue up, so that each is used again as late as can be: what is still on its way to it
 * finds nobody. Running out of memory for the queue costs the id, nothing else. */
void pplx_counter_recycle(pplx_engine *engine, uint32_t id) {
    if (engine->nfree_counters == engine->free_counters_room) {
        uint32_t before = engine->free_counters_room, room = before ? before * 2 : 64;
        uint32_t *ids = malloc(room * sizeof *ids);
        if (!ids) return;
        for (uint32_t i = 0; i < before; i++) ids[i] = engine->free_counters[(engine->first_free_counter + i) % before];
        free(engine->free_counters);
        engine->free_counters = ids;
        engine->first_free_counter = 0;
        engine->free_counters_room = room;
    }
    uint32_t at = (engine->first_free_counter + engine->nfree_counters++) % engine->free_counters_room;
    engine->free_counters[at] = id;
}

void pplx_counters_free(pplx_engine *engine) {
    for (size_t i = 0; i < PPLX_MAX_COUNTERS / PPLX_CHUNK; i++)
        free(atomic_load_explicit(&engine->chunks[i], memory_order_relaxed));
    free(engine->free_counters);
}
