/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Posting: work requests are chained, and handed to the device by one call.
 *
 * Few are signalled: the last of a batch, one half way through a long batch, and long requests, so that what is
 * done is known soon. An error is told of any of them. */
#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <errno.h>

#include "verbs_internal.h"

enum { SIGNALLED_TOO = VERBS_BATCH / 2 - 1, SIGNAL_NBYTES = 4 << 10 };

/* Of no more than the region has. An address below the region's is, by unsigned numbers, far above it. */
static inline bool is_inside(const verbs_mr *mr, const pplx_work_request *request) {
    return request->local_address - mr->address <= mr->nbytes - request->nbytes;
}

/* Of any opcode that there is. */
static VERBS_COLD pplx_status check(const verbs_endpoint *endpoint, const pplx_work_request *request) {
    const verbs_mr *mr = (const verbs_mr *)request->local_mr;
    if (!request->op || !mr) return PPLX_INVALID;
    if (request->nbytes > endpoint->domain->caps.max_message && request->opcode <= PPLX_READ) return PPLX_TOO_LARGE;
    if (mr->domain != endpoint->domain || request->nbytes > mr->nbytes || !is_inside(mr, request))
        return PPLX_LOCAL_ACCESS;
    if (request->remote_key >> 32 && request->opcode <= PPLX_READ) return PPLX_REMOTE_ACCESS; /* nobody's */
    if (request->opcode == PPLX_SEND && request->nbytes > endpoint->peer.message_nbytes) return PPLX_TOO_LARGE;
    return PPLX_OK;
}

static inline bool is_for(enum verbs_which which, const pplx_work_request *request) {
    return which == VERBS_WRITES ? request->opcode <= PPLX_READ : request->opcode == PPLX_SEND;
}

/* It is for this queue, and check() says PPLX_OK. */
static inline bool is_right(const verbs_domain *domain, const verbs_queue *queue, enum verbs_which which,
                            const pplx_work_request *request) {
    const verbs_mr *mr = (const verbs_mr *)request->local_mr;
    return is_for(which, request) && request->op && mr && mr->domain == domain && request->nbytes <= mr->most &&
           is_inside(mr, request) &&
           (which == VERBS_WRITES ? !(request->remote_key >> 32)
                                  : request->nbytes <= queue->endpoint->peer.message_nbytes);
}

/* Into a place of the chain. */
static inline void fill(verbs_wr *place, uint64_t wr_id, uint32_t max_inline, const verbs_op *op) {
    static const struct {
        uint8_t opcode, send_flags;
    } as[] = {
        [PPLX_WRITE] = {IBV_WR_RDMA_WRITE, IBV_SEND_INLINE},
        [PPLX_WRITE_IMM] = {IBV_WR_RDMA_WRITE_WITH_IMM, IBV_SEND_INLINE},
        [PPLX_READ] = {IBV_WR_RDMA_READ, 0},
        [PPLX_SEND] = {IBV_WR_SEND, IBV_SEND_INLINE},
    };
    const verbs_mr *mr = op->mr;
    const uint32_t nbytes = (uint32_t)op->nbytes, opcode = op->opcode;
    place->sge = (struct ibv_sge){op->local_address, nbytes, mr->lkey};
    place->wr.wr_id = wr_id;
    place->wr.num_sge = nbytes != 0;
    place->wr.opcode = as[opcode].opcode;
    place->wr.imm_data = htonl(op->imm);
    place->wr.wr.rdma.remote_addr = op->remote_address;
    place->wr.wr.rdma.rkey = (uint32_t)op->remote_key;
    if (nbytes <= max_inline)
        place->wr.send_flags = mr->send_flags & as[opcode].send_flags;
    else
        place->wr.send_flags = nbytes >= SIGNAL_NBYTES ? IBV_SEND_SIGNALED : 0;
}

/* The device has refused one, and all behind it. Returns how many it took. */
static VERBS_COLD uint32_t take_back(verbs_domain *domain, verbs_queue *queue, uint32_t from, uint32_t count,
                                     const struct ibv_send_wr *bad) {
    const verbs_wr *first = &domain->wrs[from];
    const uint32_t taken = bad ? (uint32_t)((const verbs_wr *)bad - first) : 0;
    if (taken && !(first[taken - 1].wr.send_flags & IBV_SEND_SIGNALED)) queue->tail = true;
    queue->next -= count - taken;
    domain->cq_room += (int32_t)(count - taken);
    return taken;
}

/* Those of the chain. Returns how many the device took, and why not all. */
static inline uint32_t submit(verbs_domain *domain, verbs_queue *queue, uint32_t from, uint32_t count, int *native) {
    verbs_wr *first = &domain->wrs[from], *last = &first[count - 1];
    const bool ends_early = from + count < VERBS_BATCH;
    struct ibv_send_wr *bad = NULL;
    last->wr.send_flags |= IBV_SEND_SIGNALED;
    if (count > SIGNALLED_TOO) first[SIGNALLED_TOO].wr.send_flags |= IBV_SEND_SIGNALED;
    if (ends_early) last->wr.next = NULL;
    queue->next += count;
    domain->cq_room -= (int32_t)count;
    *native = ibv_post_send(queue->qp, &first->wr, &bad);
    if (ends_early) last->wr.next = &last[1].wr;
    return VERBS_LIKELY(!*native) ? count : take_back(domain, queue, from, count, bad);
}

/* ---- how many there is room for ---- */

static inline bool has_room(const verbs_domain *domain, const verbs_queue *queue, uint32_t more) {
    return queue->next - queue->first + more <= queue->most && (int32_t)more <= domain->cq_room;
}

/* Why there is none. */
static pplx_status why_none(const verbs_endpoint *endpoint, int32_t *provider_error) {
    if (endpoint->state == VERBS_CLOSING) return PPLX_CLOSED;
    if (endpoint->state != VERBS_LOST) return PPLX_AGAIN;
    *provider_error = endpoint->lost_error;
    return PPLX_PEER_LOST;
}

/* An immediate alone may go beyond our own cap. */
static bool is_reserved_for(const verbs_queue *queue, const pplx_work_request *request, uint32_t more) {
    const verbs_domain *domain = queue->endpoint->domain;
    return request->opcode == PPLX_WRITE_IMM && request->nbytes == 0 && queue->most &&
           queue->next - queue->first + more < queue->most + PPLX_RESERVED_IMMS && (int32_t)more < domain->cq_room;
}

/* Of `most` requests; *beyond says why not all. */
static VERBS_COLD uint32_t fewer(const verbs_queue *queue, const pplx_work_request *requests, uint32_t most,
                                 pplx_status *beyond, int32_t *provider_error) {
    const verbs_endpoint *endpoint = queue->endpoint;
    uint32_t n = 0;
    while (n < most && (has_room(endpoint->domain, queue, n + 1) || is_reserved_for(queue, &requests[n], n))) n++;
    if (n == most || !is_for((enum verbs_which)queue->which, &requests[n])) return n;
    *beyond = check(endpoint, &requests[n]);
    if (*beyond == PPLX_OK) *beyond = why_none(endpoint, provider_error);
    return n;
}

/* ---- posting ---- */

static VERBS_COLD pplx_status refused(verbs_queue *queue, int native, int32_t *provider_error) {
    if (queue->tail) verbs_post_tail(queue);
    if (native == ENOMEM || native == EAGAIN) return PPLX_AGAIN;
    *provider_error = native;
    return native == EINVAL ? PPLX_INVALID : PPLX_NATIVE;
}

/* Into the ring and into the chain. */
static inline void put(verbs_queue *queue, verbs_wr *place, uint32_t sequence, uint64_t wr_id, uint32_t max_inline,
                       const pplx_work_request *request) {
    verbs_op *op = (verbs_op *)request->op;
    *verbs_place(queue, sequence) = op;
    *op = *verbs_op_of(request);
    fill(place, wr_id | sequence, max_inline, verbs_op_of(request));
}

/* Whether to stop at this one, and with what status. */
static VERBS_COLD bool stops(const verbs_queue *queue, const pplx_work_request *request, pplx_status *status) {
    const bool turn = is_for((enum verbs_which)queue->which, request);
    const pplx_status wrong = turn ? check(queue->endpoint, request) : PPLX_OK;
    if (turn && wrong == PPLX_OK) return false;
    *status = wrong; /* or it is another queue's turn */
    return true;
}

/* Requests for one queue, from the first on; *taken says how many. It is compiled for each queue by itself. */
static inline pplx_status post_run(verbs_endpoint *endpoint, enum verbs_which which, const pplx_work_request *requests,
                                   size_t count, size_t *taken, int32_t *provider_error) {
    verbs_domain *domain = endpoint->domain;
    verbs_queue *queue = &endpoint->queues[which];
    const uint64_t wr_id = queue->wr_id;
    const uint32_t next = queue->next, max_inline = queue->max_inline;
    uint32_t most = count < VERBS_BATCH ? (uint32_t)count : VERBS_BATCH, n = 0;
    pplx_status status = PPLX_OK;
    int native = 0;
    if (!VERBS_LIKELY(has_room(domain, queue, most))) most = fewer(queue, requests, most, &status, provider_error);
    verbs_wr *place = &domain->wrs[VERBS_BATCH - most];
    for (; n < most; n++) {
        const pplx_work_request *request = &requests[n];
        if (!VERBS_LIKELY(is_right(domain, queue, which, request)) && stops(queue, request, &status)) break;
        put(queue, place++, next + n, wr_id, max_inline, request);
    }
    if (n) *taken = submit(domain, queue, VERBS_BATCH - most, n, &native);
    return VERBS_LIKELY(!native) ? status : refused(queue, native, provider_error);
}

static VERBS_APART pplx_status post_writes(verbs_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                                           size_t *taken, int32_t *provider_error) {
    return post_run(endpoint, VERBS_WRITES, requests, count, taken, provider_error);
}

static VERBS_APART pplx_status post_sends(verbs_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                                          size_t *taken, int32_t *provider_error) {
    return post_run(endpoint, VERBS_MESSAGES, requests, count, taken, provider_error);
}

/* One run after the other. */
static VERBS_APART pplx_status post_runs(verbs_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                                         size_t *posted, int32_t *provider_error) {
    pplx_status status = PPLX_OK;
    size_t done = 0;
    while (done < count && status == PPLX_OK) {
        const pplx_work_request *next = &requests[done];
        size_t taken = 0;
        if (next->opcode <= PPLX_READ) {
            status = post_writes(endpoint, next, count - done, &taken, provider_error);
        } else if (next->opcode == PPLX_SEND) {
            status = post_sends(endpoint, next, count - done, &taken, provider_error);
        } else if (next->opcode == PPLX_RECV) {
            status = check(endpoint, next);
            if (status == PPLX_OK) status = verbs_post_receive(endpoint, next);
            taken = status == PPLX_OK;
        } else {
            status = PPLX_INVALID;
        }
        done += taken;
    }
    *posted = done;
    return status;
}

/* The short way, of a write alone that has nothing in its way. */
pplx_status verbs_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count, size_t *posted,
                       int32_t *provider_error) {
    enum { LAST = VERBS_BATCH - 1 };
    verbs_endpoint *endpoint = (verbs_endpoint *)handle;
    verbs_domain *domain = endpoint->domain;
    verbs_queue *queue = &endpoint->queues[VERBS_WRITES];
    int native;
    *provider_error = 0;
    if (!VERBS_LIKELY(count == 1 && has_room(domain, queue, 1) && is_right(domain, queue, VERBS_WRITES, requests)))
        return post_runs(endpoint, requests, count, posted, provider_error);
    put(queue, &domain->wrs[LAST], queue->next, queue->wr_id, queue->max_inline, requests);
    *posted = submit(domain, queue, LAST, 1, &native);
    return VERBS_LIKELY(!native) ? PPLX_OK : refused(queue, native, provider_error);
}

/* One of ours: nobody is told of its end. */
static int post_own(verbs_queue *queue, struct ibv_send_wr *wr) {
    struct ibv_send_wr *bad = NULL;
    wr->wr_id = queue->wr_id | queue->next;
    wr->send_flags = IBV_SEND_SIGNALED;
    *verbs_place(queue, queue->next) = NULL;
    const int native = ibv_post_send(queue->qp, wr, &bad);
    if (native) return native;
    queue->next++;
    queue->endpoint->domain->cq_room--;
    return 0;
}

int verbs_post_control(verbs_endpoint *endpoint, uint32_t word) {
    struct ibv_send_wr wr = {.opcode = IBV_WR_SEND_WITH_IMM, .imm_data = htonl(word)};
    return post_own(&endpoint->queues[VERBS_MESSAGES], &wr);
}

/* A write of no bytes, which names no memory and needs no key: what was posted before it is told with it. */
void verbs_post_tail(verbs_queue *queue) {
    struct ibv_send_wr wr = {.opcode = queue->which == VERBS_WRITES ? IBV_WR_RDMA_WRITE : IBV_WR_SEND_WITH_IMM};
    verbs_endpoint *endpoint = queue->endpoint;
    if (queue->which == VERBS_MESSAGES) wr.imm_data = htonl(UINT32_MAX);
    if (post_own(queue, &wr) == 0) queue->tail = false;
    if (queue->tail) verbs_want_step(endpoint); /* which tries again */
}

/* In place of an op that is none: a READ of no bytes, which names no memory and needs no key. */
static const verbs_mr no_memory;
static const verbs_op nothing = {.mr = &no_memory, .opcode = PPLX_READ};

int verbs_post_again(verbs_queue *queue, uint32_t from) {
    verbs_domain *domain = queue->endpoint->domain;
    const uint32_t end = queue->next;
    int native = 0;
    domain->cq_room += (int32_t)(end - from);
    queue->next = from;
    while (queue->next != end && !native) {
        const uint32_t left = end - queue->next, n = left < VERBS_BATCH ? left : VERBS_BATCH, at = VERBS_BATCH - n;
        for (uint32_t i = 0; i < n; i++) {
            const verbs_op *op = *verbs_place(queue, queue->next + i);
            fill(&domain->wrs[at + i], queue->wr_id | (queue->next + i), queue->max_inline, op ? op : &nothing);
        }
        submit(domain, queue, at, n, &native);
    }
    domain->cq_room -= (int32_t)(end - queue->next); /* what was not taken waits for its end all the same */
    queue->next = end;
    return native;
}

#else
typedef int pplx_verbs_post_left_out;
#endif
