/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A link: one endpoint of ours, and what is on its way through it.
 *
 *   stage   take a slot, put the work request into the batch
 *   flush   hand the batch to the provider (one doorbell); what it says PPLX_AGAIN to stays staged
 *   completed   the slot is free again, then whoever staged it is told
 *
 * Slots are allocated when the link opens, as many as the provider wants in flight and a few more
 * for heartbeats and credits, which may not wait behind data. Proxy thread. */
#include <stdlib.h>

#include "internal.h"

enum { RESERVED_SLOTS = PPLX_RESERVED_IMMS, MOST_SLOTS = 4096 };

/* Bytes in flight, see adapt_window(): at first, and at least. */
typedef struct window_range {
    uint64_t first, least;
} window_range;

/* A stream may be a slow one: the first window takes 1.3 s at 200 KB/s, the least one at 50 KB/s. A fast
 * one has doubled it often enough after its first few milliseconds. */
static const window_range stream_windows = {256 << 10, 64 << 10}, other_windows = {16 << 20, 4 << 20};

static const window_range *windows_of(const pplx_link *link) {
    return link->domain->caps.flags & PPLX_CAP_STREAM ? &stream_windows : &other_windows;
}

/* No piece fills a stream's window: one that is on its way is followed by another. */
static void limit_pieces(pplx_peer *peer) {
    peer->max_piece = peer->max_message;
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        const pplx_link *link = &peer->links[i];
        if (link->endpoint && link->domain->caps.flags & PPLX_CAP_STREAM && link->window / 2 < peer->max_piece)
            peer->max_piece = link->window / 2;
    }
}

pplx_status pplx_link_open(pplx_link *link, pplx_error *error) {
    pplx_domain *domain = link->domain;
    uint32_t nslots = domain->caps.max_inflight < MOST_SLOTS ? domain->caps.max_inflight : MOST_SLOTS;
    link->nslots = nslots + RESERVED_SLOTS;
    link->room = nslots;
    link->slots = calloc(link->nslots, sizeof *link->slots);
    if (!link->slots) return pplx_fail(error, PPLX_NO_MEMORY, 0, "no memory for %u slots", link->nslots);
    for (uint32_t i = link->nslots; i-- > 0;) {
        link->slots[i].link = link;
        link->slots[i].next = link->free_slots;
        link->free_slots = &link->slots[i];
    }
    size_t nbytes = sizeof link->local_address.bytes;
    pplx_status status = domain->provider->endpoint_open(domain->handle, &link->endpoint, link->local_address.bytes,
                                                         &nbytes, error);
    if (status == PPLX_OK)
        domain->nendpoints++;
    else
        link->endpoint = NULL;
    link->source = link->endpoint;
    link->local_address.nbytes = (uint32_t)nbytes;
    const uint64_t most = domain->caps.max_inflight_bytes, first = windows_of(link)->first;
    link->window = link->peer->engine->config.heartbeat_interval_ms && most > first ? first : most;
    limit_pieces(link->peer);
    return status;
}

/* For data; heartbeats and credits may use the reserved slots too. */
bool pplx_link_has_room(const pplx_link *link, uint64_t nbytes) {
    const pplx_link_stats *stats = &link->stats;
    return link->endpoint && link->nstaged < PPLX_BATCH && stats->inflight < link->room &&
           (stats->inflight == 0 || stats->inflight_nbytes + nbytes <= link->window);
}

/* The caller fills in target or request. NULL: no slot, or the batch is full. */
pplx_slot *pplx_link_stage(pplx_link *link, uint8_t role, const pplx_work_request *request) {
    pplx_slot *slot = link->free_slots;
    if (!link->endpoint || link->nstaged == PPLX_BATCH || !slot) return NULL;
    link->free_slots = slot->next;
    PPLX_COUNT(link->stats.inflight, 1);
    PPLX_COUNT(link->stats.inflight_nbytes, request->nbytes);
    slot->target = NULL;
    slot->request = NULL;
    slot->next = slot; /* not in the free list: in flight */
    slot->nbytes = request->nbytes;
    slot->order = ++link->peer->staged;
    slot->eighths = 0;
    slot->opcode = (uint8_t)request->opcode;
    slot->role = role;
    slot->whole = false;
    slot->posted = false;
    slot->orphaned = false;
    slot->several = false;
    link->staged[link->nstaged] = *request;
    link->staged[link->nstaged].op = &slot->op;
    link->nstaged++;
    pplx_peer_busy(link->peer);
    return slot;
}

static void leave_flight(const pplx_slot *slot) {
    pplx_link_stats *stats = &slot->link->stats;
    __atomic_store_n(&stats->inflight, stats->inflight - 1, __ATOMIC_RELAXED);
    __atomic_store_n(&stats->inflight_nbytes, stats->inflight_nbytes - slot->nbytes, __ATOMIC_RELAXED);
}

static void free_slot(pplx_slot *slot) {
    pplx_link *link = slot->link;
    leave_flight(slot);
    slot->next = link->free_slots;
    link->free_slots = slot;
}

static void mark_posted(pplx_slot *slot) {
    slot->posted = true;
    slot->posted_ns = slot->link->peer->engine->now_ns;
    PPLX_COUNT(slot->link->stats.posted[slot->opcode], 1);
}

static void remove_staged(pplx_link *link, size_t count) {
    link->nstaged -= (uint32_t)count;
    memmove(link->staged, link->staged + count, link->nstaged * sizeof link->staged[0]);
    if (link->nstaged == 0) link->again_ns = 0;
}

/* Returns how many the provider took. */
size_t pplx_link_flush(pplx_link *link) {
    size_t total = 0;
    while (link->nstaged && link->endpoint) {
        size_t posted = 0;
        int32_t provider_error = 0;
        pplx_status status = link->domain->provider->post(link->endpoint, link->staged, link->nstaged, &posted,
                                                          &provider_error);
        for (size_t i = 0; i < posted; i++) mark_posted((pplx_slot *)link->staged[i].op);
        total += posted;
        if (posted) {
            remove_staged(link, posted);
            link->again_ns = 0;
        }
        if (status == PPLX_OK) break;
        if (status == PPLX_AGAIN) {
            PPLX_COUNT(link->stats.again, 1);
            if (!link->again_ns) {
                link->again_ns = link->peer->engine->now_ns;
                pplx_tick_at(link->peer->engine, link->again_ns + pplx_ms(link->peer->engine->config.again_timeout_ms));
            }
            break;
        }
        pplx_slot *refused = (pplx_slot *)link->staged[0].op;
        PPLX_COUNT(link->stats.posted[refused->opcode], 1); /* posted, and failed at once */
        PPLX_COUNT(link->stats.failed[refused->opcode], 1);
        remove_staged(link, 1);
        pplx_link_completed(refused, status, provider_error, 0);
    }
    return total;
}

/* Receives have slots of their own (they are in flight for as long as the peer is silent), and don't
 * go through the batch, where one that finds no place would hold up what is behind it. */
pplx_status pplx_link_receive(pplx_link *link, const pplx_work_request *requests, size_t count, size_t *posted,
                              int32_t *provider_error) {
    pplx_status status = link->domain->provider->post(link->endpoint, requests, count, posted, provider_error);
    for (size_t i = 0; i < *posted; i++) mark_posted((pplx_slot *)requests[i].op);
    return status;
}

/* Take back what is staged and stands for whole writes: the provider has not seen it. Returns how
 * many work requests, and adds what they would have counted. */
uint32_t pplx_link_unstage(pplx_link *link, const pplx_target *target, uint64_t *eighths) {
    uint32_t kept = 0, count = link->nstaged;
    for (uint32_t i = 0; i < count; i++) {
        pplx_slot *slot = (pplx_slot *)link->staged[i].op;
        if (slot->role == PPLX_SLOT_TRANSFER && slot->target == target && slot->whole) {
            *eighths += slot->eighths;
            free_slot(slot);
        } else {
            link->staged[kept++] = link->staged[i];
        }
    }
    link->nstaged = kept;
    if (kept == 0) link->again_ns = 0;
    return count - kept;
}

static uint32_t latency_bucket(uint64_t ns) {
    if (ns < 2) return 0;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(ns);
    uint32_t bucket = 2 * octave + (uint32_t)(ns >> (octave - 1) & 1);
    return bucket < PPLX_LATENCY_BUCKETS ? bucket : PPLX_LATENCY_BUCKETS - 1;
}

/* Heartbeats stand in line behind data, so what is in flight may not take long, however slow the
 * link is: when a work request took too much of the time after which the peer would call us lost,
 * half as much may be in flight; when they are quick and the window is what limits, twice as much.
 * Each size is judged by what was posted under it. */
static void adapt_window(pplx_link *link, const pplx_slot *slot) {
    const pplx_engine *engine = link->peer->engine;
    const uint64_t limit = pplx_ms(engine->config.heartbeat_timeout_ms), most = link->domain->caps.max_inflight_bytes;
    if (slot->nbytes == 0 || !slot->posted || slot->posted_ns < link->window_ns) return;
    const uint64_t took = engine->now_ns - slot->posted_ns;
    uint64_t window = link->window;
    if (took > limit / 8)
        window = window / 2 > windows_of(link)->least ? window / 2 : windows_of(link)->least;
    else if (took < limit / 32 && link->stats.inflight_nbytes > window / 2)
        window = window * 2;
    if (window > most) window = most;
    if (window == link->window) return;
    link->window = window;
    link->window_ns = engine->now_ns;
    limit_pieces(link->peer);
}

static void count_completed(pplx_slot *slot, pplx_status status, uint64_t nbytes) {
    pplx_link_stats *stats = &slot->link->stats;
    if (!slot->posted) return; /* staged only: nothing has happened */
    if (status == PPLX_OK) {
        PPLX_COUNT(stats->completed[slot->opcode], 1);
        PPLX_COUNT(stats->nbytes[slot->opcode], nbytes);
    } else {
        PPLX_COUNT(stats->failed[slot->opcode], 1);
    }
    if (slot->role == PPLX_SLOT_RECEIVE) return; /* how long it took says only when the peer sent */
    uint64_t ns = slot->link->peer->engine->now_ns - slot->posted_ns;
    PPLX_COUNT(stats->latency[slot->opcode][latency_bucket(ns)], 1);
}

/* Of a link that is lost: sent again over others, or not. Not if its target has ended without it. */
static bool park(pplx_slot *slot) {
    if (slot->role != PPLX_SLOT_TRANSFER || slot->orphaned || !pplx_transfer_park(slot)) return false;
    count_completed(slot, PPLX_RAIL_LOST, 0);
    leave_flight(slot);
    return true;
}

/* The work request of this slot has ended. */
void pplx_link_completed(pplx_slot *slot, pplx_status status, int32_t provider_error, uint64_t nbytes) {
    slot->link->again_ns = 0; /* things move */
    if (status == PPLX_PEER_LOST) { /* while connecting, too: it will never be ready */
        /* Its process has ended: no other link can show that it lives, and in shared memory some seem to. */
        if (slot->link->domain->caps.flags & PPLX_CAP_DEATH)
            pplx_peer_lose(slot->link->peer, slot->link->domain->index, PPLX_OK, provider_error,
                           "its endpoint is gone");
        else
            pplx_link_lose(slot->link, PPLX_OK, provider_error, "its endpoint is gone");
        if (slot->link->peer->state == PPLX_PEER_UP && slot->link->reason.status != PPLX_OK) status = PPLX_RAIL_LOST;
        if (status == PPLX_RAIL_LOST && park(slot)) return;
    }
    if (slot->role == PPLX_SLOT_RECEIVE) {
        count_completed(slot, status, nbytes);
        pplx_message_received(slot, status, nbytes);
        return;
    }
    count_completed(slot, status, slot->nbytes);
    if (status == PPLX_OK) adapt_window(slot->link, slot);
    free_slot(slot);
    /* The slot is free, but nothing is staged before the callee has read it. */
    switch (slot->role) {
    case PPLX_SLOT_TRANSFER: pplx_transfer_completed(slot, status, provider_error); break;
    case PPLX_SLOT_SEND: pplx_message_sent(slot, status, provider_error); break;
    case PPLX_SLOT_HEARTBEAT: pplx_heartbeat_completed(slot, status, provider_error); break;
    case PPLX_SLOT_CREDIT: pplx_credits_returned(slot, status); break;
    default: break;
    }
}

/* In flight: its `next` is itself (see pplx_link_stage). */
static bool in_flight(const pplx_slot *slot) { return slot->next == slot; }

/* The provider keeps the slot's memory for now. What it stands for ends all the same, and of its
 * request only the release is left to wait for. A message was copied: it has nothing to wait for. */
static void orphan(pplx_slot *slot, pplx_status status) {
    if (slot->role == PPLX_SLOT_TRANSFER) {
        slot->request = slot->target->request;
        slot->request->unreleased++;
        pplx_transfer_completed(slot, status, slot->link->peer->reason.provider_error);
        slot->target = NULL; /* not looked at again */
    } else if (slot->role == PPLX_SLOT_SEND) {
        pplx_message_sent(slot, status, slot->link->peer->reason.provider_error);
    }
    slot->orphaned = true;
}

/* End everything: what is staged, and, as soon as the provider has let go, what is posted. Returns
 * PPLX_UNRELEASED until then: call again. Requests settle at the first call either way. With PPLX_RAIL_LOST only the
 * link ends, and what is parked stays in its slots. */
pplx_status pplx_link_close(pplx_link *link, pplx_status status) {
    const bool rail = status == PPLX_RAIL_LOST;
    const int32_t provider_error = rail ? link->reason.provider_error : link->peer->reason.provider_error;
    pplx_provider_endpoint *endpoint = link->endpoint ? link->endpoint : link->fading;
    link->endpoint = NULL; /* nothing more is staged or posted */
    while (link->nstaged) {
        pplx_slot *slot = (pplx_slot *)link->staged[--link->nstaged].op;
        if (!rail || !park(slot)) pplx_link_completed(slot, status, provider_error, 0);
    }
    pplx_status closed = endpoint ? link->domain->provider->endpoint_close(endpoint) : PPLX_OK;
    link->fading = closed == PPLX_UNRELEASED ? endpoint : NULL;
    for (uint32_t i = 0; link->slots && i < link->nslots; i++) {
        pplx_slot *slot = &link->slots[i];
        if (!in_flight(slot)) continue;
        if (closed == PPLX_UNRELEASED) {
            if (!slot->orphaned) orphan(slot, status);
        } else if (!rail || !park(slot)) {
            pplx_link_completed(slot, status, provider_error, 0);
        }
    }
    if (closed == PPLX_UNRELEASED) return closed;
    if (endpoint) link->domain->nendpoints--;
    if (rail) {
        limit_pieces(link->peer); /* it may have been the slow one */
        return PPLX_OK;
    }
    free(link->slots);
    link->slots = link->free_slots = NULL;
    return PPLX_OK;
}
