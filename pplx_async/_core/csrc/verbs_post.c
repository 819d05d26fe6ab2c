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

/* Of any opcode that there is. */
static inline pplx_status check(const verbs_endpoint *endpoint, const pplx_work_request *request) {
    const verbs_mr *mr = (const verbs_mr *)request->local_mr;
    if (!request->op || !mr) return PPLX_INVALID;
    if (request->nbytes > endpoint->domain->caps.max_message) return PPLX_TOO_LARGE;
    /* an address below the region's is, by unsigned numbers, far above it */
    if (mr->domain != endpoint->domain || request->nbytes > mr->nbytes ||
        request->local_address - mr->address > mr->nbytes - request->nbytes)
        return PPLX_LOCAL_ACCESS;
    if (request->remote_key >> 32 && request->opcode <= PPLX_READ) return PPLX_REMOTE_ACCESS; /* nobody's */
    if (request->opcode == PPLX_SEND && request->nbytes > endpoint->peer.message_nbytes) return PPLX_TOO_LARGE;
    return PPLX_OK;
}

/* For how many more there is room. */
static uint32_t room_of(const verbs_queue *queue) {
    const verbs_domain *domain = queue->endpoint->domain;
    const uint32_t inflight = queue->next - queue->first, most = domain->caps.max_inflight;
    const uint32_t own = inflight < most ? most - inflight : 0, all = domain->cq_room - domain->inflight;
    return own < all ? own : all;
}

/* An immediate alone may go beyond our own cap. */
static bool is_reserved_for(const verbs_queue *queue, const pplx_work_request *request, uint32_t more) {
    const verbs_domain *domain = queue->endpoint->domain;
    return request->opcode == PPLX_WRITE_IMM && request->nbytes == 0 &&
           queue->next - queue->first + more < domain->caps.max_inflight + PPLX_RESERVED_IMMS &&
           domain->inflight + more < domain->cq_room;
}

/* What all work requests of a run have in common, and the compiler may keep in registers. */
typedef struct run {
    struct ibv_send_wr *wrs;
    struct ibv_sge *sges;
    uint64_t wr_id;
    uint32_t max_inline;
} run;

static inline run run_of(const verbs_queue *queue) {
    verbs_domain *domain = queue->endpoint->domain;
    return (run){domain->wrs, domain->sges, queue->wr_id, queue->max_inline};
}

/* Into place `i` of the chain. */
static inline void fill(const run *run, uint32_t i, uint32_t sequence, const verbs_op *op) {
    static const uint8_t opcodes[] = {
        [PPLX_WRITE] = IBV_WR_RDMA_WRITE,
        [PPLX_WRITE_IMM] = IBV_WR_RDMA_WRITE_WITH_IMM,
        [PPLX_READ] = IBV_WR_RDMA_READ,
        [PPLX_SEND] = IBV_WR_SEND,
    };
    struct ibv_send_wr *wr = &run->wrs[i];
    run->sges[i] = (struct ibv_sge){op->local_address, op->nbytes, op->lkey};
    wr->wr_id = run->wr_id | sequence;
    wr->num_sge = op->nbytes != 0;
    wr->opcode = opcodes[op->opcode];
    wr->imm_data = htonl(op->imm);
    wr->wr.rdma.remote_addr = op->remote_address;
    wr->wr.rdma.rkey = op->rkey;
    if (op->nbytes <= run->max_inline)
        wr->send_flags = op->host && op->opcode != PPLX_READ ? IBV_SEND_INLINE : 0;
    else
        wr->send_flags = op->nbytes >= SIGNAL_NBYTES ? IBV_SEND_SIGNALED : 0;
}

/* The first `count` of the chain. Returns how many the device took, and why not all. */
static inline uint32_t submit(verbs_queue *queue, uint32_t count, int *native) {
    verbs_domain *domain = queue->endpoint->domain;
    struct ibv_send_wr *last = &domain->wrs[count - 1], *next = last->next, *bad = NULL;
    last->next = NULL;
    last->send_flags |= IBV_SEND_SIGNALED;
    if (count > SIGNALLED_TOO) domain->wrs[SIGNALLED_TOO].send_flags |= IBV_SEND_SIGNALED;
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
    queue->next += count;
    domain->inflight += count;
    return count;
}

static inline pplx_status ready(const verbs_endpoint *endpoint, enum verbs_which which, int32_t *provider_error) {
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
    const bool sends = requests->opcode == PPLX_SEND;
    const enum verbs_which which = sends ? VERBS_MESSAGES : VERBS_WRITES;
    const uint32_t low = sends ? PPLX_SEND : PPLX_WRITE, span = sends ? 0 : PPLX_READ; /* its opcodes */
    verbs_queue *queue = &endpoint->queues[which];
    const pplx_status open = ready(endpoint, which, provider_error);
    const uint32_t room = room_of(queue), next = queue->next;
    const run run = run_of(queue);
    pplx_status status = PPLX_OK;
    uint32_t n = 0;
    int native = 0;
    *taken = 0;
    for (; n < count && n < VERBS_BATCH; n++) {
        const pplx_work_request *request = &requests[n];
        if (request->opcode - low > span) break;
        status = check(endpoint, request);
        if (status == PPLX_OK) status = open;
        if (status == PPLX_OK && n >= room && !is_reserved_for(queue, request, n)) status = PPLX_AGAIN;
        if (status != PPLX_OK) break;
        const verbs_mr *mr = (const verbs_mr *)request->local_mr;
        const verbs_op op = {.local_address = request->local_address,
                             .remote_address = request->remote_address,
                             .nbytes = (uint32_t)request->nbytes,
                             .lkey = mr->lkey,
                             .rkey = (uint32_t)request->remote_key,
                             .imm = request->imm,
                             .opcode = request->opcode,
                             .host = mr->host};
        verbs_op *kept = (verbs_op *)request->op;
        *kept = op;
        *verbs_place(queue, next + n) = kept;
        fill(&run, n, next + n, &op);
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
        if (requests[done].opcode > PPLX_RECV) {
            status = PPLX_INVALID;
        } else if (requests[done].opcode == PPLX_RECV) {
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
    wr->wr_id = queue->wr_id | queue->next;
    wr->send_flags = IBV_SEND_SIGNALED;
    *verbs_place(queue, queue->next) = NULL;
    const int native = ibv_post_send(queue->qp, wr, &bad);
    if (native) return native;
    queue->next++;
    queue->endpoint->domain->inflight++;
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
    const run run = run_of(queue);
    int native = 0;
    queue->endpoint->domain->inflight -= end - from;
    queue->next = from;
    for (uint32_t at = from; at != end && !native;) {
        uint32_t n = 0;
        for (; n < VERBS_BATCH && at + n != end; n++) fill(&run, n, at + n, *verbs_place(queue, at + n));
        at += submit(queue, n, &native);
    }
    queue->endpoint->domain->inflight += end - queue->next; /* what was not taken waits for its end all the same */
    queue->next = end;
    return native;
}

#else
typedef int pplx_verbs_post_left_out;
#endif
