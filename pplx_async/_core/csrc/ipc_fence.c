/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Closing an endpoint so that its peer touches our memory no more.
 *
 * Our own work requests end at once: only this thread worked for them. What the peer may still do is
 * write to memfds of ours that it has mapped. It is told to let go (BYE), and does so in its next
 * poll(). Until it confirms, or is dead, endpoint_close() says PPLX_UNRELEASED.
 *
 * A peer that is stopped, hangs, or lies can't be waited for. Nobody can take a mapping away from
 * another process, but we can take our memory elsewhere (pplx_ipc_segment_move): what the peer writes
 * from then on goes to pages that we have given up. Before that the other peers that have the memfd are
 * told to let go of it, so that no write of theirs goes there; they get at the memory through staging.
 * One of those may stand still for a moment itself, which is no reason to lose it: it has longer.
 *
 * The same for a region that is closed: who was told of it lets go, or its pages move.
 *
 * Memory that a peer was told the address of (ipc_direct.c) is not ours to move. There is nothing but
 * to wait: it is PPLX_UNRELEASED until the peer confirms, hangs up, or is dead. */
#include <poll.h>
#include <stdlib.h>

#include "ipc_internal.h"

/* ------------------------------------------------------------------ who has them */

/* It has a descriptor of memory that is still registered. */
static bool exposes(const ipc_export *export) { return export->segment && export->segment->regions; }

static bool exposed(const ipc_endpoint *endpoint) {
    for (const ipc_export *export = endpoint->exports; export; export = export->endpoint_next)
        if (exposes(export)) return true;
    return false;
}

/* The peer may yet write to memory that can't be moved. A trusting one: it hangs up after its copies, and
 * a process that is killed closes its socket when the last of its threads has left the kernel. */
static bool reaches(const ipc_export *export) {
    const ipc_endpoint *endpoint = export->endpoint;
    return !endpoint->let_go && (export->opened || (export->addressed && !endpoint->hung_up));
}

bool pplx_ipc_reached(const ipc_endpoint *endpoint) {
    for (const ipc_export *export = endpoint->exports; export; export = export->endpoint_next)
        if (reaches(export)) return true;
    return false;
}

static void start_moving(const ipc_endpoint *endpoint) {
    ipc_domain *domain = endpoint->domain;
    for (const ipc_export *export = endpoint->exports; export; export = export->endpoint_next)
        if (exposes(export)) export->segment->moving = true;
    for (ipc_endpoint *other = domain->endpoints; other; other = other->next) {
        if (other->state != IPC_UP || other->closing) continue;
        for (ipc_export *export = other->exports; export; export = export->endpoint_next)
            if (export->segment && export->segment->moving) pplx_ipc_unwant(export);
        pplx_ipc_send_revokes(other);
    }
}

static ipc_endpoint *other_holder(const ipc_domain *domain) {
    for (ipc_endpoint *other = domain->endpoints; other; other = other->next) {
        if (other->state != IPC_UP || other->closing) continue;
        for (const ipc_export *export = other->exports; export; export = export->endpoint_next)
            if (export->segment && export->segment->moving) return other;
    }
    return NULL;
}

/* Whoever was told of the old pages has nothing of ours any more. */
static void forget_holders(const ipc_domain *domain, ipc_segment *segment) {
    for (ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next) {
        for (ipc_export *export = endpoint->exports; export; export = export->endpoint_next) {
            if (export->segment != segment) continue;
            export->segment = NULL;
            segment->exports--;
        }
    }
}

static bool move_pages(const ipc_domain *domain) {
    bool all = true;
    for (ipc_segment *segment = domain->segments; segment; segment = segment->next) {
        if (!segment->moving || !segment->regions || segment->fd < 0) continue;
        if (pplx_ipc_segment_move(segment)) {
            segment->moving = false;
            forget_holders(domain, segment);
        } else {
            all = false;
        }
    }
    return all;
}

/* ------------------------------------------------------------------ one region */

static bool has_holder(const ipc_region *region) {
    for (const ipc_export *export = region->exports; export; export = export->region_next)
        if (export->segment) return true;
    return false;
}

static bool is_reached(const ipc_region *region) {
    for (const ipc_export *export = region->exports; export; export = export->region_next)
        if (reaches(export)) return true;
    return false;
}

/* Somebody has not answered who may yet do so. Who let an earlier fence wait in vain is not waited for
 * again: for every region that a stopped peer knows the others would stand still that long, and lose us. */
static bool may_answer(const ipc_region *region) {
    for (const ipc_export *export = region->exports; export; export = export->region_next)
        if ((export->segment || reaches(export)) && !export->endpoint->mute) return true;
    return false;
}

static void mute_holders(const ipc_region *region) {
    for (const ipc_export *export = region->exports; export; export = export->region_next)
        if (export->segment || reaches(export)) export->endpoint->mute = true;
}

/* Afterwards no peer writes there any more: it has confirmed, which takes microseconds if it runs, or
 * the pages have moved. Not those of an allocation of which another region is still open: its holders
 * would have to let go first. */
bool pplx_ipc_fence_region(const ipc_region *region, uint64_t patience_ns) {
    ipc_domain *domain = region->domain;
    ipc_segment *segment = region->segment;
    const uint64_t end_ns = ipc_now_ns() + patience_ns;
    for (ipc_export *export = region->exports, *next; export; export = next) {
        next = export->region_next;
        pplx_ipc_unwant(export);
        pplx_ipc_send_revokes(export->endpoint);
    }
    if (is_reached(region)) pplx_ipc_look(domain, ipc_now_ns()); /* it may have answered */
    while (may_answer(region) && ipc_now_ns() < end_ns) {
        struct pollfd readable = {.fd = domain->epoll_fd, .events = POLLIN};
        poll(&readable, 1, 1);
        pplx_ipc_look(domain, ipc_now_ns());
    }
    if (patience_ns) mute_holders(region);
    if (has_holder(region) && segment->regions == 1 && segment->fd >= 0 && pplx_ipc_segment_move(segment))
        forget_holders(domain, segment);
    return !is_reached(region) && !pplx_ipc_hops_in(region);
}

/* ------------------------------------------------------------------ closing */

/* Say goodbye. False: not yet; our GPU works for the peer, or has its memory open, which is free for anything from
 * then on. */
static bool part(ipc_endpoint *endpoint, uint64_t now_ns) {
    const ipc_note note = {.kind = IPC_BYE};
    if (endpoint->fence_ns) return true;
    pplx_ipc_cuda_finish(endpoint->domain);
    if (!pplx_ipc_cuda_idle(endpoint) || pplx_ipc_hops_of(endpoint, false)) return false;
    pplx_ipc_answer(endpoint); /* it may have asked before */
    pplx_ipc_keys_close(endpoint);
    if (endpoint->socket >= 0 && (endpoint->aside || endpoint->owing)) return false;
    endpoint->fence_ns = now_ns + IPC_FENCE_NS;
    endpoint->said_bye = endpoint->state != IPC_BROKEN && pplx_ipc_say(endpoint, &note, NULL);
    return true;
}

static bool keep(const ipc_endpoint *endpoint, uint32_t imm) {
    ipc_domain *domain = endpoint->domain;
    if (domain->late_count == domain->late_capacity) {
        size_t capacity = domain->late_capacity ? 2 * domain->late_capacity : 64;
        ipc_late *late = realloc(domain->late, capacity * sizeof *late);
        if (!late) return false;
        domain->late = late;
        domain->late_capacity = capacity;
    }
    domain->late[domain->late_count++] = (ipc_late){endpoint, imm};
    return true;
}

/* What the peer has sent before it knew is counted, if its endpoint is here or not. */
static void keep_immediates(ipc_endpoint *endpoint) {
    uint32_t imm;
    if (!endpoint->inbox.head) return;
    for (uint32_t i = 0; i < endpoint->inbox.slots; i++)
        if (!ipc_peek_immediate(&endpoint->inbox, endpoint->immediate_head++, &imm) || !keep(endpoint, imm)) break;
    for (int stream = 0; stream < IPC_STREAMS; stream++)
        for (int i = 0; i < IPC_STREAM_SLOTS; i++)
            if (!ipc_peek_stream(&endpoint->inbox, stream, endpoint->stream_head[stream]++, &imm) ||
                !keep(endpoint, imm))
                break;
}

static void drop_done(ipc_endpoint *endpoint) {
    ipc_list *done = &endpoint->domain->done;
    for (ipc_record *record = done->head, *next; record; record = next) {
        next = record->next;
        if (record->endpoint == endpoint) ipc_list_remove(done, record);
    }
}

/* What only this endpoint wanted moved stays where it is. */
static void settle_moving(const ipc_domain *domain) {
    for (ipc_segment *segment = domain->segments; segment; segment = segment->next) segment->moving = false;
    for (const ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
        for (const ipc_export *export = endpoint->moving ? endpoint->exports : NULL; export;
             export = export->endpoint_next)
            if (exposes(export)) export->segment->moving = true;
}

static pplx_status finish_closing(ipc_endpoint *endpoint) {
    ipc_domain *domain = endpoint->domain;
    keep_immediates(endpoint);
    drop_done(endpoint);
    pplx_ipc_disconnect(endpoint);
    pplx_ipc_drop_exports(endpoint);
    if (domain->turn == endpoint) domain->turn = endpoint->next;
    *(endpoint->prev ? &endpoint->prev->next : &domain->endpoints) = endpoint->next;
    if (endpoint->next) endpoint->next->prev = endpoint->prev;
    if (endpoint->moving) settle_moving(domain);
    free(endpoint->records.all);
    free(endpoint->receive_records.all);
    free(endpoint);
    return PPLX_OK;
}

pplx_status pplx_ipc_endpoint_close(pplx_provider_endpoint *handle) {
    ipc_endpoint *endpoint = (ipc_endpoint *)handle;
    ipc_domain *domain = endpoint->domain;
    const uint64_t now_ns = ipc_now_ns();
    if (!endpoint->closing) {
        endpoint->closing = true;
        pplx_ipc_end_all(endpoint, PPLX_FLUSHED);
        pplx_ipc_cuda_settle(endpoint);
    }
    if (!part(endpoint, now_ns)) return PPLX_UNRELEASED; /* our own memory, too */
    if (!endpoint->let_go && (exposed(endpoint) || pplx_ipc_reached(endpoint)))
        pplx_ipc_look(domain, now_ns); /* it may have answered */
    const bool unmovable = pplx_ipc_reached(endpoint);
    if (endpoint->let_go || (!exposed(endpoint) && !unmovable)) return finish_closing(endpoint);
    if (!exposed(endpoint) || now_ns < endpoint->fence_ns) return PPLX_UNRELEASED;
    if (!endpoint->moving) {
        endpoint->moving = true;
        endpoint->fence_ns = now_ns + domain->options.holders_ms * UINT64_C(1000000);
        start_moving(endpoint);
    }
    for (ipc_endpoint *other; (other = other_holder(domain)) != NULL;) {
        if (now_ns < endpoint->fence_ns) return PPLX_UNRELEASED;
        pplx_ipc_break(other, PPLX_CONNECTION); /* it does not answer either */
    }
    return move_pages(domain) && !unmovable ? finish_closing(endpoint) : PPLX_UNRELEASED;
}
