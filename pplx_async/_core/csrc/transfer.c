/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Transfers: from a target (segments, region to region) to work requests, and back.
 *
 * Every target with something left to cut stands in the queue of its peer. In its turn it is cut
 * into pieces; each piece goes to the next link that has room, whichever NIC that is: counting makes
 * the order irrelevant, and a faster NIC has room more often. Where the links are of different speeds
 * a write is cut in proportion, each piece for its link, and everything else goes to the link that has
 * had least for its speed. What a piece counts at the receiver, whatever its size:
 *
 *   a run of m pages                       m                    (cut at page boundaries)
 *   a write in 1, 2, 4 or 8 pieces         1, 1/2, 1/4, 1/8     (shards; or the limit of a piece)
 *   a write that needs more than 8 pieces  nothing, and the last one 1, posted when all others are
 *                                          visible at the target
 *   a page above the limit of a piece      like a write of its own
 *   several of the first two together      the sum              (on a link that takes several segments at once)
 *
 * A target leaves the queue when it is cut to the end, has failed, or is cancelled; it is finished
 * when its last piece has completed; its request settles with its last target. Proxy thread. */
#include "internal.h"

enum {
    BULK_NBYTES = 4 << 20,
    MOST_RUNS = 16,
    WORK_NBYTES = 256, /* what a work request costs beside its bytes */
    TOGETHER_NBYTES = 2 << 20 /* of segments in one work request: much less than a window */
};

/* How one segment is cut: whole pages per piece, or several pieces per page. A plain write is a run
 * of one page. */
typedef struct cut {
    uint64_t npieces;
    uint64_t page_nbytes;
    uint64_t pages_per_piece; /* 1 where a page is cut */
    uint64_t pieces_per_page; /* 1 where it isn't */
    uint32_t eighths;         /* of each piece; runs: of each page */
    bool last_counts;         /* of a page's pieces only the last counts, and waits for the others */
    bool aligned;             /* pieces of a page start at cache lines */
    const pplx_peer *shares;  /* whose shares the pieces are; NULL: all alike */
} cut;

static uint64_t divide_up(uint64_t a, uint64_t b) { return a / b + (a % b != 0); }

static uint64_t power_of_two_above(uint64_t n) {
    uint64_t p = 1;
    while (p < n) p *= 2;
    return p;
}

static uint64_t share(uint64_t nbytes, uint32_t of_65536) { return (uint64_t)((__uint128_t)nbytes * of_65536 >> 16); }

/* A piece for each link, and more for the fastest until they are a power of two; pieces of pages as many as the
 * slowest link needs to have its part. */
void pplx_transfer_divide(pplx_peer *peer) {
    uint64_t total = 0, end = 0;
    uint32_t pieces[PPLX_MAX_LINKS] = {0}, most = 0, least = UINT32_MAX;
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        const uint32_t weight = peer->links[i].weight;
        total += weight;
        most = weight > most ? weight : most;
        least = weight < least ? weight : least;
        pieces[i] = 1;
        peer->shard_links[i] = (uint8_t)i;
    }
    peer->weighted = most != least;
    peer->nshards = (uint32_t)power_of_two_above(peer->nlinks);
    peer->nruns = peer->nlinks;
    if (!peer->weighted) return;
    const uint64_t runs = divide_up(total, least);
    peer->nruns = runs < MOST_RUNS ? (uint32_t)runs : MOST_RUNS;
    for (uint32_t i = 0; i < peer->nlinks; i++)
        peer->links[i].cost = (uint32_t)((UINT64_C(256) * most) / peer->links[i].weight);
    for (uint32_t k = peer->nlinks; k < peer->nshards; k++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < peer->nlinks; i++)
            if ((uint64_t)peer->links[i].weight * pieces[best] > (uint64_t)peer->links[best].weight * pieces[i])
                best = i;
        pieces[best]++;
        peer->shard_links[k] = (uint8_t)best;
    }
    for (uint32_t k = 0, last = 0; k < peer->nshards; k++) {
        const uint32_t link = peer->shard_links[k];
        end += ((uint64_t)peer->links[link].weight << 16) / (total * pieces[link]);
        peer->shard_ends[k] = k + 1 == peer->nshards ? 1 << 16 : (uint32_t)end;
        if (peer->shard_ends[k] - last > peer->most_shard) peer->most_shard = peer->shard_ends[k] - last;
        last = peer->shard_ends[k];
    }
}

/* One page or plain write, into at least `shards` pieces. */
static void cut_page(cut *c, uint64_t most, uint64_t shards, bool counted) {
    uint64_t needed = c->page_nbytes > most ? divide_up(c->page_nbytes, most) : 1;
    c->pieces_per_page = needed > shards ? needed : shards;
    if (counted && needed > PPLX_EIGHTHS) {
        c->last_counts = true;
    } else if (counted) {
        c->pieces_per_page = power_of_two_above(c->pieces_per_page);
        c->eighths = (uint32_t)(PPLX_EIGHTHS / c->pieces_per_page);
    }
    /* A step down to the cache line makes the next piece up to 63 bytes longer. */
    c->aligned = c->page_nbytes / c->pieces_per_page >= 64 &&
                 divide_up(c->page_nbytes, c->pieces_per_page) + 63 <= most;
}

static cut cut_segment(const pplx_target *target, const pplx_segment *segment) {
    const uint64_t most = target->most;
    const pplx_peer *peer = target->peer;
    const bool shard = peer->nlinks > 1 && segment->nbytes >= peer->engine->config.shard_nbytes;
    cut c = {.npieces = 1,
             .page_nbytes = segment->nbytes,
             .pages_per_piece = 1,
             .pieces_per_page = 1,
             .eighths = PPLX_EIGHTHS};
    if (segment->pages <= 1) {
        if (segment->nbytes <= most && !shard) return c;
        cut_page(&c, most, shard ? peer->nshards : 1, target->counter != PPLX_NO_COUNTER);
        c.npieces = c.pieces_per_page;
        if (shard && peer->weighted && c.npieces == peer->nshards &&
            share(segment->nbytes, peer->most_shard) + 64 <= most)
            c.shares = peer;
        return c;
    }
    c.page_nbytes = segment->nbytes / segment->pages;
    if (c.page_nbytes > most) {
        cut_page(&c, most, 1, target->counter != PPLX_NO_COUNTER);
        c.npieces = segment->pages * c.pieces_per_page;
        return c;
    }
    uint64_t pages = shard ? divide_up(segment->pages, peer->nruns) : segment->pages;
    if (c.page_nbytes && pages > most / c.page_nbytes) pages = most / c.page_nbytes;
    c.pages_per_piece = pages < PPLX_MAX_RUN ? pages : PPLX_MAX_RUN;
    c.npieces = divide_up(segment->pages, c.pages_per_piece);
    return c;
}

/* Where piece i starts, and so where piece i - 1 ends. */
static uint64_t piece_start(const pplx_segment *segment, const cut *c, uint64_t i) {
    if (i == 0) return 0;
    if (i >= c->npieces) return segment->nbytes;
    if (c->pieces_per_page == 1) return i * c->pages_per_piece * c->page_nbytes;
    uint64_t page = i / c->pieces_per_page * c->page_nbytes;
    uint64_t start = c->shares
                         ? share(c->page_nbytes, c->shares->shard_ends[i - 1])
                         : (uint64_t)((__uint128_t)c->page_nbytes * (i % c->pieces_per_page) / c->pieces_per_page);
    return page + (c->aligned ? start & ~UINT64_C(63) : start);
}

/* What piece i counts at the receiver, in eighths. */
static uint32_t piece_eighths(const pplx_segment *segment, const cut *c, uint64_t i) {
    if (c->last_counts) return (i + 1) % c->pieces_per_page ? 0 : PPLX_EIGHTHS;
    if (c->pieces_per_page > 1 || segment->pages <= 1) return c->eighths;
    uint64_t left = segment->pages - i * c->pages_per_piece;
    return c->eighths * (uint32_t)(left < c->pages_per_piece ? left : c->pages_per_piece);
}

/* ---- the queue of a peer ---- */

static void enqueue(pplx_peer *peer, pplx_target *target) {
    target->next = NULL;
    target->prev = peer->queue_tail;
    if (peer->queue_tail)
        peer->queue_tail->next = target;
    else
        peer->queue_head = target;
    peer->queue_tail = target;
    target->queued = 1;
    pplx_peer_busy(peer);
}

static void dequeue(pplx_peer *peer, pplx_target *target) {
    if (target->prev)
        target->prev->next = target->next;
    else
        peer->queue_head = target->next;
    if (target->next)
        target->next->prev = target->prev;
    else
        peer->queue_tail = target->prev;
    target->next = target->prev = NULL;
    target->queued = 0;
}

/* ---- ends ---- */

static void finish(pplx_target *target) {
    pplx_request *request = target->request;
    if (target->status != PPLX_OK && request->error.status == PPLX_OK) {
        request->error.status = (pplx_status)target->status;
        request->error.provider_error = target->provider_error;
        request->failed_target = (uint32_t)(target - request->targets);
    }
    if (--request->open_targets == 0) pplx_settle(target->peer->engine, request);
}

/* Nothing queued, nothing in flight: finished, unless only the peer's fate can say how. */
static void finish_if_ended(pplx_target *target) {
    pplx_peer *peer = target->peer;
    if (target->queued || target->inflight) return;
    if (pplx_suspicious(target->status)) {
        if (peer->state == PPLX_PEER_UP) {
            pplx_peer_suspect(peer, target->links, target->domain, target->provider_error);
            target->next = peer->suspects;
            peer->suspects = target;
            return;
        }
        /* A piece of it failed, and before the last one had ended it was known why. */
        if (peer->reason.status != PPLX_OK) target->status = (int32_t)peer->reason.status;
    }
    finish(target);
}

static void fail(pplx_target *target, pplx_status status, int32_t provider_error, uint32_t domain) {
    if (target->status == PPLX_OK || target->status == PPLX_CANCELLED) {
        target->status = status;
        target->provider_error = provider_error;
        target->domain = domain;
    }
    if (target->queued) dequeue(target->peer, target);
}

void pplx_transfer_completed(pplx_slot *slot, pplx_status status, int32_t provider_error) {
    pplx_target *target = slot->target;
    if (!target) { /* orphaned (link.c): it ended before, now the memory is let go */
        pplx_release(slot->link->peer->engine, slot->request, 1);
        return;
    }
    target->inflight--;
    if (!slot->posted) target->posted -= slot->eighths;
    if (status == PPLX_OK)
        target->delivered += slot->eighths;
    else
        fail(target, status, provider_error, slot->link->domain->index);
    if (pplx_suspicious(status)) target->links |= 1u << slot->link->index;
    if (status == PPLX_CONNECTION && (target->failed == 0 || slot->order < target->failed))
        target->failed = slot->order;
    finish_if_ended(target);
}

/* The peer lives: then it broke the connection over one of them, and those behind that one on the
 * connection fell with it. So it is the oldest, whatever the order of their completions. */
static void find_refused(pplx_target *suspects) {
    pplx_target *first = NULL;
    for (pplx_target *target = suspects; target; target = target->next)
        if (target->status == PPLX_CONNECTION && (!first || target->failed < first->failed)) first = target;
    if (first) first->status = PPLX_REMOTE_ACCESS;
}

/* The peer lives, and the link they failed on does not: nothing was wrong with them. */
static void tell_rails(const pplx_peer *peer, pplx_target *suspects) {
    uint32_t lost = 0;
    for (uint32_t i = 0; i < peer->nlinks; i++)
        if (peer->links[i].reason.status != PPLX_OK) lost |= 1u << i;
    for (pplx_target *target = suspects; target && lost; target = target->next)
        if (target->links & lost) target->status = PPLX_RAIL_LOST;
}

/* Those on which the verdict is known, out of the list. */
static pplx_target *take_suspects(pplx_peer *peer, bool all) {
    pplx_target *taken = NULL;
    for (pplx_target **at = &peer->suspects, *target; (target = *at) != NULL;) {
        if (!all && !pplx_peer_has_answered(peer, target->links)) {
            at = &target->next;
            continue;
        }
        *at = target->next;
        target->next = taken;
        taken = target;
    }
    return taken;
}

void pplx_transfer_judge(pplx_peer *peer, pplx_status verdict) {
    pplx_target *target = take_suspects(peer, verdict != PPLX_OK);
    if (verdict == PPLX_OK) {
        tell_rails(peer, target);
        find_refused(target);
    }
    while (target) {
        pplx_target *next = target->next;
        if (verdict == PPLX_PEER_LOST) target->status = PPLX_PEER_LOST;
        finish(target);
        target = next;
    }
}

/* ---- sent again on another link ---- */

/* What the provider never had can be sent by another, whatever it is. What it had may have been done: to do it twice
 * changes nothing if it counts nothing, as long as the first one can't come after the second. So it waits until both
 * ends of the link are closed. */
bool pplx_transfer_park(pplx_slot *slot) {
    pplx_link *link = slot->link;
    const pplx_engine *engine = link->peer->engine;
    const bool repeatable = slot->opcode == PPLX_WRITE || slot->opcode == PPLX_READ;
    if (slot->several) return false; /* it was the peer's only link */
    if (slot->target->status != PPLX_OK || (slot->posted && !(repeatable && engine->config.rail_failover)))
        return false;
    pplx_slot **list = slot->posted && !link->closed_there ? &link->parked : &link->peer->resends;
    slot->next = *list;
    *list = slot;
    pplx_peer_busy(link->peer);
    return true;
}

void pplx_transfer_unpark(pplx_link *link, bool again) {
    pplx_peer *peer = link->peer;
    while (link->parked) {
        pplx_slot *slot = link->parked;
        link->parked = slot->next;
        if (!again) {
            pplx_transfer_completed(slot, PPLX_RAIL_LOST, link->reason.provider_error);
            continue;
        }
        slot->next = peer->resends;
        peer->resends = slot;
        pplx_peer_busy(peer);
    }
}

void pplx_transfer_flush(pplx_peer *peer, pplx_status status) {
    for (uint32_t i = 0; i < peer->nlinks; i++) pplx_transfer_unpark(&peer->links[i], true);
    while (peer->resends) {
        pplx_slot *slot = peer->resends;
        peer->resends = slot->next;
        pplx_transfer_completed(slot, status, peer->reason.provider_error);
    }
    while (peer->queue_head) {
        pplx_target *target = peer->queue_head;
        fail(target, status, peer->reason.provider_error, peer->lost_domain);
        finish_if_ended(target);
    }
}

/* ---- cutting and posting ---- */

static bool has_room(pplx_link *link, uint64_t nbytes) {
    if (link->nstaged == PPLX_BATCH) pplx_link_flush(link);
    return pplx_link_has_room(link, nbytes);
}

/* The one that the piece was cut for; else of those that have room the one that has had least for its speed. The
 * difference of two sums is small, so they may run over. */
static pplx_link *link_by_weight(pplx_peer *peer, uint64_t nbytes, const cut *c, uint64_t piece) {
    pplx_link *best = c->shares ? &peer->links[peer->shard_links[piece]] : NULL;
    if (best && !has_room(best, nbytes)) best = NULL;
    for (uint32_t i = 0; i < peer->nlinks && (!best || !c->shares); i++) {
        pplx_link *link = &peer->links[i];
        if ((!best || (int64_t)(link->served - best->served) < 0) && has_room(link, nbytes)) best = link;
    }
    if (best) best->served += (nbytes + WORK_NBYTES) * best->cost;
    return best;
}

static pplx_link *link_with_room(pplx_peer *peer, uint64_t nbytes, const cut *c, uint64_t piece) {
    if (peer->weighted) return link_by_weight(peer, nbytes, c, piece);
    for (uint32_t tried = 0; tried < peer->nlinks; tried++) {
        pplx_link *link = &peer->links[peer->next_link];
        peer->next_link = peer->next_link + 1 == peer->nlinks ? 0 : peer->next_link + 1;
        if (has_room(link, nbytes)) return link;
    }
    return NULL;
}

enum verdict { POSTED_ALL, USED_QUANTUM, NO_ROOM, WAITS };

static void stage_piece(pplx_link *link, pplx_target *target, uint64_t from, uint64_t to, uint64_t nbytes,
                        uint32_t eighths, bool whole, uint32_t nsegments) {
    const pplx_engine *engine = target->peer->engine;
    const pplx_mr *local = target->local ? target->local : &engine->landing;
    const pplx_remote_key *key = target->remote ? &target->remote->keys[link->remote_domain]
                                                : &target->peer->config.landing[link->remote_domain];
    pplx_work_request request = {
        .local_address = local->memory.address + from,
        .nbytes = nbytes,
        .local_mr = local->handles[link->domain->index],
        .remote_address = key->base + to,
        .remote_key = key->key,
        .opcode = target->request->opcode == PPLX_READ ? PPLX_READ
                  : eighths                            ? PPLX_WRITE_IMM
                                                       : PPLX_WRITE,
        .flags = target->request->nbytes >= BULK_NBYTES ? PPLX_WORK_BULK : 0,
        .imm = eighths ? pplx_imm_encode(target->counter, eighths) : 0,
        .nsegments = (uint16_t)nsegments,
        .segments = nsegments ? &target->segments[target->cursor] : NULL,
    };
    pplx_slot *slot = pplx_link_stage(link, PPLX_SLOT_TRANSFER, &request);
    slot->target = target;
    slot->local = from;
    slot->remote = to;
    slot->eighths = eighths;
    slot->whole = whole;
    slot->several = nsegments != 0;
}

static void stage(pplx_link *link, pplx_target *target, const cut *c) {
    const pplx_segment *segment = &target->segments[target->cursor];
    const uint64_t start = piece_start(segment, c, target->piece);
    const uint64_t nbytes = piece_start(segment, c, target->piece + UINT64_C(1)) - start;
    const uint32_t eighths = target->counter != PPLX_NO_COUNTER ? piece_eighths(segment, c, target->piece) : 0;
    stage_piece(link, target, segment->local + start, segment->remote + start, nbytes, eighths, c->pieces_per_page == 1,
                0);
    target->posted += eighths;
    target->inflight++;
}

/* Its target can't end meanwhile: the slot still counts as one in flight. It is taken off first, since to look for room
 * may flush a batch, and what is refused then comes to the list. */
static void stage_resends(pplx_peer *peer) {
    const cut any = {0};
    while (peer->resends) {
        pplx_slot *slot = peer->resends;
        pplx_target *target = slot->target;
        peer->resends = slot->next;
        if (target->status != PPLX_OK && target->status != PPLX_CANCELLED) {
            pplx_transfer_completed(slot, PPLX_RAIL_LOST, slot->link->reason.provider_error);
            continue;
        }
        pplx_link *link = link_with_room(peer, slot->nbytes, &any, 0);
        if (!link) {
            slot->next = peer->resends;
            peer->resends = slot;
            return;
        }
        stage_piece(link, target, slot->local, slot->remote, slot->nbytes, slot->eighths, slot->whole, 0);
    }
}

/* Segments from the cursor on that one work request takes: each of them is one that is not cut. */
typedef struct together {
    uint32_t count; /* 0 or 1: there are none */
    uint64_t nbytes, pages;
} together;

/* A GPU copies by itself, and soon: what is together counts once of a quantum. What the provider's thread copies counts
 * one by one, for others wait as long. */
static bool is_of_gpu(const pplx_target *target) {
    return target->local && target->local->memory.kind == PPLX_MEMORY_CUDA;
}

static together gather(const pplx_target *target, uint32_t quantum) {
    const pplx_peer *peer = target->peer;
    const uint32_t allowed = peer->nlinks == 1 ? peer->links[0].domain->caps.max_segments : 0;
    const uint32_t most = allowed < quantum || is_of_gpu(target) ? allowed : quantum;
    const uint64_t most_nbytes = target->most < TOGETHER_NBYTES ? target->most : TOGETHER_NBYTES;
    together some = {0};
    while (some.count < most && target->cursor + some.count < target->nsegments) {
        const pplx_segment *next = &target->segments[target->cursor + some.count];
        if (next->nbytes == 0 || next->nbytes > most_nbytes - some.nbytes || next->pages > PPLX_MAX_RUN - some.pages)
            break;
        some.count++;
        some.nbytes += next->nbytes;
        some.pages += next->pages;
    }
    return some;
}

static void stage_together(pplx_link *link, pplx_target *target, const together *some) {
    const pplx_segment *first = &target->segments[target->cursor];
    const uint32_t eighths = target->counter != PPLX_NO_COUNTER ? (uint32_t)(some->pages * PPLX_EIGHTHS) : 0;
    stage_piece(link, target, first->local, first->remote, some->nbytes, eighths, true, some->count);
    target->posted += eighths;
    target->inflight++;
}

/* The caller holds the target by one `inflight`, so that it can't finish in here. */
static enum verdict cut_target(pplx_target *target, uint32_t *quantum) {
    pplx_peer *peer = target->peer;
    while (target->cursor < target->nsegments) {
        if (target->piece == 0) target->most = peer->max_piece; /* it may change, but not within a segment */
        together some = {0};
        if (target->piece == 0 && target->cursor + 1 < target->nsegments) some = gather(target, *quantum);
        if (some.count > 1) {
            if (target->status == PPLX_CANCELLED) return POSTED_ALL;
            if (*quantum == 0) return USED_QUANTUM;
            pplx_link *link = link_with_room(peer, some.nbytes, &(cut){0}, 0);
            if (!link || !target->queued) return NO_ROOM;
            stage_together(link, target, &some);
            *quantum -= is_of_gpu(target) ? 1 : some.count;
            target->cursor += some.count;
            continue;
        }
        const pplx_segment *segment = &target->segments[target->cursor];
        const cut c = cut_segment(target, segment);
        for (; target->piece < c.npieces; target->piece++) {
            if (target->status == PPLX_CANCELLED && target->piece % c.pieces_per_page == 0) return POSTED_ALL;
            if (*quantum == 0) return USED_QUANTUM;
            if (c.last_counts && (target->piece + 1) % c.pieces_per_page == 0 && target->inflight > 1) return WAITS;
            uint64_t nbytes = piece_start(segment, &c, target->piece + UINT64_C(1)) -
                              piece_start(segment, &c, target->piece);
            pplx_link *link = link_with_room(peer, nbytes, &c, target->piece);
            if (!link || !target->queued) return NO_ROOM; /* flushing may have failed the target */
            stage(link, target, &c);
            --*quantum;
        }
        target->piece = 0;
        target->cursor++;
    }
    return POSTED_ALL;
}

/* Returns how much of the quantum was staged. Afterwards a target that is not queued may be gone. */
static uint32_t post_target(pplx_target *target, uint32_t quantum, enum verdict *verdict, bool *queued) {
    uint32_t left = quantum;
    target->inflight++;
    *verdict = cut_target(target, &left);
    target->inflight--;
    if (*verdict == POSTED_ALL && target->queued) dequeue(target->peer, target);
    *queued = target->queued;
    finish_if_ended(target);
    return quantum - left;
}

/* One turn for a peer: true if anything was posted. */
bool pplx_transfer_post(pplx_peer *peer) {
    uint32_t budget = 0;
    for (uint32_t i = 0; i < peer->nlinks; i++) budget += peer->links[i].domain->caps.posts_per_turn;
    const pplx_target *first_waiting = NULL; /* all the way round and no one could go on */
    if (peer->resends) stage_resends(peer);
    peer->no_room = false;
    while (budget && peer->queue_head && peer->queue_head != first_waiting) {
        pplx_target *target = peer->queue_head;
        enum verdict verdict;
        bool queued;
        uint32_t staged = post_target(target, budget < PPLX_QUANTUM ? budget : PPLX_QUANTUM, &verdict, &queued);
        budget -= staged ? staged : 1; /* 1: first_waiting may have left the queue, but this ends */
        if (!queued) continue;
        if (verdict == NO_ROOM) {
            peer->no_room = true;
            break;
        }
        dequeue(peer, target); /* to the end: the next one's turn */
        enqueue(peer, target);
        if (verdict == USED_QUANTUM)
            first_waiting = NULL;
        else if (!first_waiting)
            first_waiting = target;
    }
    size_t posted = 0;
    for (uint32_t i = 0; i < peer->nlinks; i++) posted += pplx_link_flush(&peer->links[i]);
    return posted != 0;
}

static void start_target(pplx_request *request, pplx_target *target) {
    pplx_peer *peer = target->peer;
    target->request = request;
    enqueue(peer, target);
    if (peer->state != PPLX_PEER_UP) {
        fail(target, peer->reason.status == PPLX_OK ? PPLX_CLOSED : peer->reason.status, peer->reason.provider_error,
             peer->lost_domain);
        finish_if_ended(target);
    } else if (!peer->no_room) {
        enum verdict verdict;
        bool queued;
        post_target(target, peer->links[0].domain->caps.eager_posts, &verdict, &queued);
        peer->no_room = verdict == NO_ROOM;
    }
    for (uint32_t i = 0; i < target->nsegments && target->counter != PPLX_NO_COUNTER; i++)
        target->total += target->segments[i].pages * PPLX_EIGHTHS;
}

/* A request from the ring: its first work requests go out before its peers' older ones; not where
 * those wait for room, or small ones could keep a large one waiting for ever. */
void pplx_transfer_start(pplx_engine *engine, pplx_request *request) {
    request->submitted_ns = engine->now_ns;
    request->open_targets = request->ntargets + 1; /* + 1: not before the loop is through */
    for (uint32_t i = 0; i < request->ntargets; i++) start_target(request, &request->targets[i]);
    if (--request->open_targets == 0) pplx_settle(engine, request);
}

/* ---- cancelling ---- */

/* Leave out what has not begun. A write or page that has begun is posted to its end, so that each
 * happens whole or not at all: cut_target() goes on to there. */
static void drop_rest(pplx_target *target) {
    uint32_t keep = target->cursor;
    bool more_pages = false;
    if (target->piece) {
        const pplx_segment *segment = &target->segments[target->cursor];
        const cut c = cut_segment(target, segment);
        if (target->piece % c.pieces_per_page != 0) {
            keep++;
            more_pages = divide_up(target->piece, c.pieces_per_page) < divide_up(c.npieces, c.pieces_per_page);
        }
    }
    if (target->status == PPLX_OK && (keep < target->nsegments || more_pages)) target->status = PPLX_CANCELLED;
    if (keep < target->nsegments) target->nsegments = keep;
    if (target->cursor == keep) dequeue(target->peer, target);
}

static void cancel_target(pplx_target *target) {
    if (!target->queued && !target->inflight) return; /* finished, or a suspect */
    uint64_t eighths = 0;
    uint32_t unstaged = 0;
    if (target->queued) drop_rest(target);
    for (uint32_t i = 0; i < target->peer->nlinks; i++)
        unstaged += pplx_link_unstage(&target->peer->links[i], target, &eighths);
    target->inflight -= unstaged;
    target->posted -= eighths;
    if (unstaged && target->status == PPLX_OK) target->status = PPLX_CANCELLED;
    finish_if_ended(target);
}

/* Drop what is not posted. */
void pplx_transfer_cancel(pplx_engine *engine, pplx_request *request) {
    request->open_targets++; /* it may not settle under our hands */
    for (uint32_t i = 0; i < request->ntargets; i++) cancel_target(&request->targets[i]);
    if (--request->open_targets == 0) pplx_settle(engine, request);
}
