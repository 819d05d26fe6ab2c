/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The completion queue: polling, errors, waiting, and draining it when an endpoint closes.
 *
 * An entry that ends more work requests than there is room for stays in `wcs` until the next poll: dealing with
 * it again goes on where it was left.
 *
 * To sleep: ask for an event, then read the queue once more. What is found goes to `wcs`, for the next poll, and
 * nobody sleeps; what comes later makes the event. An event is read when entries are, so that the descriptor
 * doesn't stay readable, and acknowledged many at a time, since that takes a lock. */
#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_internal.h"

enum { EVENTS_EVERY = 4096, ACKNOWLEDGE_EVERY = 64 };

static pplx_status status_of(enum ibv_wc_status status) {
    switch (status) {
    case IBV_WC_SUCCESS: return PPLX_OK;
    case IBV_WC_REM_ACCESS_ERR: return PPLX_REMOTE_ACCESS;
    case IBV_WC_LOC_PROT_ERR: return PPLX_LOCAL_ACCESS;
    case IBV_WC_LOC_LEN_ERR: return PPLX_TOO_LARGE;
    case IBV_WC_WR_FLUSH_ERR: return PPLX_FLUSHED;
    default: return PPLX_TRANSPORT;
    }
}

/* All up to `through` have been done. False: no room. */
static inline bool finish_through(verbs_domain *domain, verbs_queue *queue, uint32_t through, verbs_sink *sink) {
    uint32_t at = queue->first;
    bool all = true;
    for (; (int32_t)(through - at) >= 0; at++) {
        verbs_op *op = *verbs_place(queue, at);
        if (!op) continue;
        all = verbs_emit(sink, op, PPLX_OK, 0, 0);
        if (!all) break;
        if (op->opcode == PPLX_WRITE_IMM) queue->endpoint->imms_delivered++;
    }
    domain->cq_room += (int32_t)(at - queue->first);
    queue->first = at;
    return all;
}

/* The first one that fails says that those before it were done, unless it was flushed: then nobody has said so,
 * and they stay. So do those that are flushed: verbs_repair.c posts them again, or loses the peer. */
static VERBS_COLD bool send_failed(verbs_queue *queue, uint32_t sequence, enum ibv_wc_status status, verbs_sink *sink) {
    const bool flushed = status == IBV_WC_WR_FLUSH_ERR, dead = status == IBV_WC_RETRY_EXC_ERR;
    if (!flushed && !queue->failed && !finish_through(queue->endpoint->domain, queue, sequence - 1, sink)) return false;
    verbs_op **place = verbs_place(queue, sequence);
    if (!flushed && !dead && (int32_t)(sequence - queue->first) >= 0 && *place) {
        if (!verbs_emit(sink, *place, status_of(status), (int32_t)status, 0)) return false;
        *place = NULL;
    }
    queue->failed = true;
    queue->seen = sequence + 1;
    verbs_queue_failed(queue, status);
    return true;
}

static bool send_ended(verbs_domain *domain, const struct ibv_wc *wc, verbs_sink *sink) {
    const uint32_t sequence = (uint32_t)wc->wr_id;
    verbs_queue *queue = verbs_queue_named(domain, wc->wr_id);
    if (!queue) return true;
    if (wc->status == IBV_WC_SUCCESS) return queue->failed || finish_through(domain, queue, sequence, sink);
    return (int32_t)(sequence - queue->first) < 0 || send_failed(queue, sequence, wc->status, sink);
}

static bool imm_arrived(verbs_domain *domain, const struct ibv_wc *wc, verbs_sink *sink) {
    verbs_queue *queue = wc->status == IBV_WC_SUCCESS ? verbs_queue_of(domain, wc->qp_num) : NULL;
    if (queue && wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM) {
        if (sink->count == sink->capacity) return false;
        queue->endpoint->imms_received++;
        sink->completions[sink->count++] = (pplx_completion){.kind = PPLX_COMPLETION_IMM,
                                                             .imm = ntohl(wc->imm_data),
                                                             .source = (const pplx_provider_endpoint *)queue->endpoint};
    }
    domain->imms_used++;
    return true;
}

/* False: no room, and it has to come again. */
static inline bool deal_with(verbs_domain *domain, const struct ibv_wc *wc, verbs_sink *sink) {
    switch ((enum verbs_kind)(wc->wr_id >> 62)) {
    case VERBS_WR_SEND: return send_ended(domain, wc, sink);
    case VERBS_WR_IMM: return imm_arrived(domain, wc, sink);
    default: return verbs_message_arrived(domain, wc, sink);
    }
}

static VERBS_COLD void break_domain(verbs_domain *domain, int32_t native) {
    domain->broken = true;
    domain->broken_error = native;
    verbs_attend(domain);
    for (verbs_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
        verbs_lose(endpoint, native);
}

/* Into `wcs`, which is empty. False: no more than these are there; asking again would only say so, at a cost. */
static inline bool fetch(verbs_domain *domain) {
    const int n = domain->broken ? 0 : ibv_poll_cq(domain->cq, VERBS_BATCH, domain->wcs);
    domain->wc_first = 0;
    domain->wc_count = n > 0 ? (uint32_t)n : 0;
    if (n < 0) break_domain(domain, IBV_WC_FATAL_ERR);
    return n == VERBS_BATCH;
}

/* True: the queue was found empty. */
static bool read_queue(verbs_domain *domain, verbs_sink *sink) {
    for (bool more = true;;) {
        while (domain->wc_first < domain->wc_count)
            if (deal_with(domain, &domain->wcs[domain->wc_first], sink))
                domain->wc_first++;
            else
                return false;
        if (!more) return true;
        if (sink->count == sink->capacity) return false;
        more = fetch(domain);
    }
}

static void take_kept(verbs_domain *domain, verbs_sink *sink) {
    while (domain->kept_count && sink->count < sink->capacity) {
        sink->completions[sink->count++] = domain->kept[domain->kept_first].completion;
        domain->kept_first++;
        if (--domain->kept_count == 0) domain->kept_first = 0;
    }
}

/* What an event was asked for is being read now. */
static void take_event(verbs_domain *domain) {
    struct ibv_cq *cq = NULL;
    void *cookie = NULL;
    if (domain->lib->get_cq_event(domain->channel, &cq, &cookie)) return; /* not yet: it is still to come */
    domain->armed = false;
    if (++domain->events < ACKNOWLEDGE_EVERY) return;
    domain->lib->ack_cq_events(domain->cq, domain->events);
    domain->events = 0;
}

static void step_all(verbs_domain *domain) {
    for (verbs_endpoint *endpoint = domain->endpoints; endpoint && domain->nbusy; endpoint = endpoint->next)
        if (endpoint->busy) verbs_step(endpoint);
}

static void tell_lost(verbs_domain *domain, verbs_sink *sink) {
    for (verbs_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
        if (endpoint->state == VERBS_LOST && !endpoint->told && verbs_tell_lost(endpoint, sink)) endpoint->told = true;
}

/* What calls for more than reading completions: whatever makes one of these true says verbs_attend(). */
static bool has_more_to_do(const verbs_domain *domain) {
    return domain->armed || domain->broken || domain->port_down || domain->nbusy || domain->kept_count ||
           domain->wc_first < domain->wc_count || domain->imms_used >= domain->imms_few || domain->nreposts;
}

static VERBS_APART size_t poll_all(verbs_domain *domain, pplx_completion *completions, size_t count, size_t capacity) {
    verbs_sink sink = {completions, count, capacity};
    if (domain->armed || ++domain->polls == EVENTS_EVERY || !has_more_to_do(domain)) {
        domain->polls = 0;
        if (domain->armed) take_event(domain);
        verbs_events_take(domain);
    }
    if (domain->port_down) verbs_port_check(domain);
    if (domain->kept_count) take_kept(domain, &sink);
    const bool empty = read_queue(domain, &sink);
    if (domain->nbusy) {
        if (empty) step_all(domain);
        tell_lost(domain, &sink);
        if (domain->kept_count) take_kept(domain, &sink);
    }
    if (domain->imms_used >= domain->imms_few || domain->nreposts) verbs_receives_fill(domain);
    domain->quiet = has_more_to_do(domain) ? 0 : EVENTS_EVERY;
    return sink.count;
}

static VERBS_APART size_t poll_on(verbs_domain *domain, const struct ibv_wc *first, int left,
                                  pplx_completion *completions, size_t count, size_t capacity) {
    domain->wc_first = (uint32_t)(first - domain->wcs);
    domain->wc_count = domain->wc_first + (uint32_t)left;
    return poll_all(domain, completions, count, capacity);
}

static VERBS_COLD size_t poll_failed(verbs_domain *domain) {
    break_domain(domain, IBV_WC_FATAL_ERR);
    return 0;
}

/* The short way, as long as there are only successful ends of what was posted. */
size_t verbs_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity) {
    verbs_domain *domain = (verbs_domain *)handle;
    if (!VERBS_LIKELY(--domain->quiet >= 0)) return poll_all(domain, completions, 0, capacity);
    int left = ibv_poll_cq(domain->cq, VERBS_BATCH, domain->wcs);
    verbs_sink sink = {completions, 0, capacity};
    if (left <= 0) return left == 0 ? 0 : poll_failed(domain);
    const struct ibv_wc *wc = domain->wcs;
    do {
        verbs_queue *queue = verbs_queue_named(domain, wc->wr_id);
        if (!VERBS_LIKELY(wc->status == IBV_WC_SUCCESS && queue && !queue->failed &&
                          finish_through(domain, queue, (uint32_t)wc->wr_id, &sink)))
            return poll_on(domain, wc, left, completions, sink.count, capacity);
        wc++;
    } while (--left);
    return sink.count;
}

pplx_status verbs_arm(pplx_provider_domain *handle) {
    verbs_domain *domain = (verbs_domain *)handle;
    bool waits = domain->port_down; /* for a time to be up */
    if (domain->kept_count || domain->wc_first < domain->wc_count) return PPLX_AGAIN;
    for (const verbs_endpoint *endpoint = domain->endpoints; endpoint && domain->nbusy; endpoint = endpoint->next) {
        if (endpoint->state == VERBS_DRAINED || endpoint->state == VERBS_RESETTING || endpoint->greet_again ||
            (endpoint->state == VERBS_LOST && !endpoint->told))
            return PPLX_AGAIN;
        waits |= endpoint->busy &&
                 (endpoint->state == VERBS_DRAINING || endpoint->queues[0].tail || endpoint->queues[1].tail);
    }
    verbs_attend(domain);
    if (domain->broken) return PPLX_OK;
    if (!domain->armed) {
        if (ibv_req_notify_cq(domain->cq, 0)) return PPLX_UNSUPPORTED;
        domain->armed = true;
        fetch(domain);
        if (domain->wc_count || domain->broken) return PPLX_AGAIN;
    }
    return waits ? PPLX_UNSUPPORTED : PPLX_OK;
}

int verbs_wait_fd(pplx_provider_domain *handle) { return ((verbs_domain *)handle)->wait_fd; }

/* ---- what is found while an endpoint is closed ---- */

bool verbs_reserve_kept(verbs_domain *domain, size_t more) {
    if (domain->kept_first && domain->kept_first + domain->kept_count + more > domain->kept_capacity) {
        memmove(domain->kept, domain->kept + domain->kept_first, domain->kept_count * sizeof *domain->kept);
        domain->kept_first = 0;
    }
    if (domain->kept_first + domain->kept_count + more <= domain->kept_capacity) return true;
    size_t capacity = 2 * (domain->kept_count + more);
    verbs_kept *grown = realloc(domain->kept, capacity * sizeof *grown);
    if (!grown) return false;
    domain->kept = grown;
    domain->kept_capacity = capacity;
    return true;
}

void verbs_keep(verbs_domain *domain, const verbs_endpoint *endpoint, const pplx_completion *completion) {
    domain->kept[domain->kept_first + domain->kept_count++] = (verbs_kept){*completion, endpoint};
    verbs_attend(domain);
}

void verbs_forget_kept(verbs_domain *domain, const verbs_endpoint *endpoint) {
    size_t left = 0;
    verbs_kept *first = domain->kept + domain->kept_first;
    for (size_t i = 0; i < domain->kept_count; i++)
        if (first[i].endpoint != endpoint) first[left++] = first[i];
    domain->kept_count = left;
}

/* Whose ops an entry ends: one endpoint's. */
static const verbs_endpoint *owner_of(const verbs_domain *domain, const struct ibv_wc *wc) {
    const verbs_queue *queue = wc->wr_id >> 62 == VERBS_WR_SEND ? verbs_queue_named(domain, wc->wr_id)
                               : wc->status == IBV_WC_SUCCESS   ? verbs_queue_of(domain, wc->qp_num)
                                                                : NULL;
    return queue ? queue->endpoint : NULL;
}

pplx_status verbs_drain(verbs_domain *domain, const verbs_endpoint *closing) {
    verbs_attend(domain);
    for (;;) {
        while (domain->wc_first < domain->wc_count) {
            const struct ibv_wc *wc = &domain->wcs[domain->wc_first];
            const verbs_endpoint *owner = owner_of(domain, wc);
            pplx_completion completions[VERBS_BATCH];
            verbs_sink sink = {completions, 0, VERBS_BATCH};
            if (!verbs_reserve_kept(domain, VERBS_BATCH)) return PPLX_AGAIN;
            if (deal_with(domain, wc, &sink)) domain->wc_first++;
            for (size_t i = 0; i < sink.count; i++) {
                const bool imm = completions[i].kind == PPLX_COMPLETION_IMM;
                if (imm || owner != closing) verbs_keep(domain, imm ? NULL : owner, &completions[i]);
            }
        }
        verbs_receives_fill(domain);
        fetch(domain);
        if (!domain->wc_count) return PPLX_OK;
    }
}

#else
typedef int pplx_verbs_cq_left_out;
#endif
