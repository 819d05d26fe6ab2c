/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Posting: work requests are chained, and handed to the device by one call.
 *
 * Few are signalled: the last of a batch, and of a long batch some on the way, so that what is done is known
 * soon. An error is told of any of them. */
#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <errno.h>

#include "verbs_internal.h"

enum { SIGNAL_EVERY = 16, SIGNAL_NBYTES = 64 << 10 };

static pplx_status check(const verbs_endpoint *endpoint, const pplx_work_request *request) {
    const verbs_mr *mr = (const verbs_mr *)request->local_mr;
    if (!request->op || !mr || request->opcode > PPLX_RECV) return PPLX_INVALID;
    if (request->nbytes > endpoint->domain->caps.max_message) return PPLX_TOO_LARGE;
    if (mr->domain != endpoint->domain || request->local_address < mr->address || request->nbytes > mr->nbytes ||
        request->local_address - mr->address > mr->nbytes - request->nbytes)
        return PPLX_LOCAL_ACCESS;
    if (request->opcode <= PPLX_READ && request->remote_key > UINT32_MAX) return PPLX_REMOTE_ACCESS; /* nobody's */
    if (request->opcode == PPLX_SEND && request->nbytes > endpoint->peer.message_nbytes) return PPLX_TOO_LARGE;
    return PPLX_OK;
}

static enum verbs_which which_of(const pplx_work_request *request) {
    return request->opcode == PPLX_SEND ? VERBS_MESSAGES : VERBS_WRITES;
}

/* Of one queue, with `more` before it that are not posted yet. */
static bool fits(const verbs_queue *queue, const pplx_work_request *request, uint32_t more) {
    const verbs_domain *domain = queue->endpoint->domain;
    const uint32_t inflight = queue->next - queue->first + more;
    uint32_t most = domain->caps.max_inflight;
    if (request->opcode == PPLX_WRITE_IMM && request->nbytes == 0) most += PPLX_RESERVED_IMMS;
    return inflight < most && domain->inflight + more < domain->cq_room;
}

/* Into place `i` of the chain. */
static void fill(verbs_queue *queue, uint32_t i, uint32_t sequence, const verbs_op *op) {
    static const uint8_t opcodes[] = {
        [PPLX_WRITE] = IBV_WR_RDMA_WRITE,
        [PPLX_WRITE_IMM] = IBV_WR_RDMA_WRITE_WITH_IMM,
        [PPLX_READ] = IBV_WR_RDMA_READ,
        [PPLX_SEND] = IBV_WR_SEND,
    };
    verbs_domain *domain = queue->endpoint->domain;
    struct ibv_send_wr *wr = &domain->wrs[i];
    domain->sges[i] = (struct ibv_sge){op->local_address, op->nbytes, op->lkey};
    wr->wr_id = verbs_wr_id(queue, sequence);
    wr->num_sge = op->nbytes != 0;
    wr->opcode = opcodes[op->opcode];
    wr->imm_data = htonl(op->imm);
    wr->wr.rdma.remote_addr = op->remote_address;
    wr->wr.rdma.rkey = op->rkey;
    wr->send_flags = 0;
    if (op->nbytes <= queue->max_inline && op->host && op->opcode != PPLX_READ) wr->send_flags = IBV_SEND_INLINE;
    queue->unsignalled_nbytes += op->nbytes;
    if (++queue->unsignalled < SIGNAL_EVERY && queue->unsignalled_nbytes < SIGNAL_NBYTES) return;
    wr->send_flags |= IBV_SEND_SIGNALED;
    queue->unsignalled = queue->unsignalled_nbytes = 0;
}

/* The first `count` of the chain. Returns how many the device took, and why not all. */
static uint32_t submit(verbs_queue *queue, uint32_t count, int *native) {
    verbs_domain *domain = queue->endpoint->domain;
    struct ibv_send_wr *last = &domain->wrs[count - 1], *next = last->next, *bad = NULL;
    last->next = NULL;
    last->send_flags |= IBV_SEND_SIGNALED;
    *native = ibv_post_send(queue->qp, domain->wrs, &bad);
    last->next = next;
    if (*native && bad) {
        count = (uint32_t)(bad - domain->wrs);
        queue->tail = count && !(domain->wrs[count - 1].send_flags & IBV_SEND_SIGNALED);
    } else if (*native) {
        count = 0;
    } else {
        queue->tail = false;
    }
    queue->unsignalled = queue->unsignalled_nbytes = 0;
    queue->next += count;
    domain->inflight += count;
    return count;
}

static pplx_status ready(const verbs_endpoint *endpoint, enum verbs_which which, int32_t *provider_error) {
    if (endpoint->closing) return PPLX_CLOSED;
    if (endpoint->state == VERBS_LOST) {
        *provider_error = endpoint->lost_error;
        return PPLX_PEER_LOST;
    }
    if (endpoint->state == VERBS_UP || (which == VERBS_MESSAGES && endpoint->state > VERBS_UP)) return PPLX_OK;
    return PPLX_AGAIN;
}

/* Requests for one queue, from the first on; *taken says how many. */
static pplx_status post_run(verbs_endpoint *endpoint, const pplx_work_request *requests, size_t count, size_t *taken,
                            int32_t *provider_error) {
    const enum verbs_which which = which_of(requests);
    verbs_queue *queue = &endpoint->queues[which];
    const pplx_status open = ready(endpoint, which, provider_error);
    pplx_status status = PPLX_OK;
    uint32_t n = 0;
    int native = 0;
    *taken = 0;
    for (; n < count && n < VERBS_BATCH; n++) {
        const pplx_work_request *request = &requests[n];
        if (n && (which_of(request) != which || request->opcode == PPLX_RECV)) break;
        status = check(endpoint, request);
        if (status == PPLX_OK) status = open;
        if (status == PPLX_OK && !fits(queue, request, n)) status = PPLX_AGAIN;
        if (status != PPLX_OK) break;
        const verbs_mr *mr = (const verbs_mr *)request->local_mr;
        verbs_op *op = (verbs_op *)request->op;
        op->local_address = request->local_address;
        op->remote_address = request->remote_address;
        op->nbytes = (uint32_t)request->nbytes;
        op->lkey = mr->lkey;
        op->rkey = (uint32_t)request->remote_key;
        op->imm = request->imm;
        op->opcode = request->opcode;
        op->host = mr->host;
        *verbs_place(queue, queue->next + n) = op;
        fill(queue, n, queue->next + n, op);
    }
    if (n == 0) return status;
    *taken = submit(queue, n, &native);
    if (queue->tail) verbs_post_tail(queue);
    if (!native) return status;
    if (native == ENOMEM || native == EAGAIN) return PPLX_AGAIN;
    *provider_error = native;
    return native == EINVAL ? PPLX_INVALID : PPLX_NATIVE;
}

pplx_status verbs_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count, size_t *posted,
                       int32_t *provider_error) {
    verbs_endpoint *endpoint = (verbs_endpoint *)handle;
    pplx_status status = PPLX_OK;
    size_t done = 0;
    *provider_error = 0;
    while (done < count && status == PPLX_OK) {
        size_t taken = 0;
        if (requests[done].opcode == PPLX_RECV) {
            status = check(endpoint, &requests[done]);
            if (status == PPLX_OK) status = verbs_post_receive(endpoint, &requests[done]);
            taken = status == PPLX_OK;
        } else {
            status = post_run(endpoint, requests + done, count - done, &taken, provider_error);
        }
        done += taken;
    }
    *posted = done;
    return status;
}

/* One of ours: nobody is told of its end. */
static int post_own(verbs_queue *queue, struct ibv_send_wr *wr) {
    struct ibv_send_wr *bad = NULL;
    wr->wr_id = verbs_wr_id(queue, queue->next);
    wr->send_flags = IBV_SEND_SIGNALED;
    *verbs_place(queue, queue->next) = NULL;
    const int native = ibv_post_send(queue->qp, wr, &bad);
    if (native) return native;
    queue->next++;
    queue->endpoint->domain->inflight++;
    queue->unsignalled = queue->unsignalled_nbytes = 0;
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

int verbs_post_again(verbs_queue *queue, uint32_t from) {
    const uint32_t end = queue->next;
    int native = 0;
    queue->endpoint->domain->inflight -= end - from;
    queue->next = from;
    for (uint32_t at = from; at != end && !native;) {
        uint32_t n = 0;
        for (; n < VERBS_BATCH && at + n != end; n++) fill(queue, n, at + n, *verbs_place(queue, at + n));
        at += submit(queue, n, &native);
    }
    queue->endpoint->domain->inflight += end - queue->next; /* what was not taken waits for its end all the same */
    queue->next = end;
    return native;
}

#else
typedef int pplx_verbs_post_left_out;
#endif
