/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Greeting a peer, making a broken queue of writes new, and losing a peer. All of it by messages of no bytes on
 * the queue of messages, whose immediate is the word: two bits what, 14 the epoch, 16 a count.
 *
 * Greeting. Who is not connected yet drops what is sent to it, so a first packet may be sent in vain until the
 * retries are used up. One side alone greets, and answers are sent by who has heard it. If its greeting fails it
 * begins again with the same sequence numbers: had the peer received it after all, it takes the second one for
 * the first.
 *
 * A wrong key breaks the queue pair on both sides, and ops fall that are not to blame. The queue of messages is
 * another one and goes on. Each side, when its queue of writes has failed or the peer says that its has:
 *
 *   DRAINING   moves it to ERR, and waits until everything has come out
 *   DRAINED    ... and was read from the completion queue
 *   RESETTING  moves it to RESET: not an immediate more can arrive; reads the completion queue again
 *   RESET      tells the peer the next epoch, and how many immediates it has received in this one
 *   READY      has heard the same: connects anew, with sequence numbers of the new epoch, and says so
 *   UP         has heard that: posts again what has not been done
 *
 * What has been done the peer's count says: a responder executes in order, so if n immediates have arrived, all
 * writes up to the n-th of them have. The rest has not delivered an immediate, and may be repeated: who gave us
 * the memory has not been told that it is free. So an immediate arrives exactly once, and only the one op that
 * was refused fails.
 *
 * rdma_rxe (Linux 6.1) does not forget in RESET which answer it has had last. Was that a part of a READ, then it takes
 * the next ACK or NAK for nonsense: it says of the oldest work request, whatever that is, that it has succeeded, and
 * breaks the queue pair. Only another READ's answer makes that good. So there the first that is posted again is one of no
 * bytes, and of ours.
 *
 * A peer is lost when its NIC has not answered through all retries, when the queue of messages fails, or when it
 * breaks these rules. */
#if PPLX_HAVE_LIBIBVERBS

#include <time.h>

#include "verbs_internal.h"

enum { WORD_GREETING, WORD_RESET, WORD_READY, WORD_NOTHING };
enum { LAST_WQE_MS = 20, FLUSH_MS = 200, EPOCHS = 1 << 14 };

uint64_t verbs_now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void verbs_want_step(verbs_endpoint *endpoint) {
    endpoint->domain->nbusy += !endpoint->busy;
    endpoint->busy = true;
    verbs_attend(endpoint->domain);
}

void verbs_calm(verbs_endpoint *endpoint) {
    endpoint->domain->nbusy -= endpoint->busy;
    endpoint->busy = false;
}

/* Its ops end in verbs_tell_lost(); nothing reads or writes their memory any more. */
void verbs_lose(verbs_endpoint *endpoint, int32_t native) {
    if (endpoint->state >= VERBS_LOST) return;
    verbs_enter(endpoint, VERBS_LOST);
    endpoint->lost_error = native;
    for (int i = 0; i < 2; i++) verbs_qp_move(&endpoint->queues[i], IBV_QPS_ERR);
    verbs_want_step(endpoint);
}

bool verbs_tell_lost(verbs_endpoint *endpoint, verbs_sink *sink) {
    for (int i = 0; i < 2; i++) {
        verbs_queue *queue = &endpoint->queues[i];
        for (; queue->first != queue->next; queue->first++, endpoint->domain->cq_room++) {
            verbs_op *op = *verbs_place(queue, queue->first);
            if (op && !verbs_emit(sink, op, PPLX_PEER_LOST, endpoint->lost_error, 0)) return false;
        }
    }
    while (endpoint->receives) {
        verbs_op *op = endpoint->receives;
        verbs_op *next = op->next;
        if (!verbs_emit(sink, op, PPLX_PEER_LOST, endpoint->lost_error, 0)) return false;
        endpoint->receives = next;
        endpoint->nreceives--;
    }
    endpoint->last_receive = &endpoint->receives;
    verbs_calm(endpoint);
    return true;
}

static void say(verbs_endpoint *endpoint, uint32_t what, uint32_t epoch, uint16_t count) {
    const int native = verbs_post_control(endpoint, what << 30 | epoch % EPOCHS << 16 | count);
    if (native) verbs_lose(endpoint, native);
}

/* ---- greeting ---- */

void verbs_greet(verbs_endpoint *endpoint) { say(endpoint, WORD_GREETING, 0, 0); }

/* The peer has sent its greeting when it had ours, so both have used up one sequence number. */
static void greet_again(verbs_endpoint *endpoint) {
    verbs_queue *queue = &endpoint->queues[VERBS_MESSAGES];
    const uint32_t used = endpoint->heard;
    endpoint->greet_again = false;
    verbs_calm(endpoint);
    int native = verbs_qp_move(queue, IBV_QPS_RESET);
    if (!native) native = verbs_qp_init(queue);
    if (!native) native = verbs_qp_connect(queue, queue->psn + used, endpoint->peer.psn[VERBS_MESSAGES] + used);
    endpoint->domain->cq_room += (int32_t)(queue->next - queue->first);
    queue->first = queue->next;
    queue->failed = false;
    if (native)
        verbs_lose(endpoint, native);
    else if (endpoint->heard)
        verbs_enter(endpoint, VERBS_UP);
    else
        verbs_greet(endpoint);
}

static void greeting_arrived(verbs_endpoint *endpoint) {
    if (endpoint->state != VERBS_GREETING) return;
    endpoint->heard = true;
    if (endpoint->greet_again) return;
    verbs_enter(endpoint, VERBS_UP);
    if (!endpoint->first) verbs_greet(endpoint);
}

/* ---- the queue of writes ---- */

void verbs_writes_broke(verbs_endpoint *endpoint) {
    if (endpoint->state != VERBS_UP) return;
    verbs_qp_move(&endpoint->queues[VERBS_WRITES], IBV_QPS_ERR);
    verbs_enter(endpoint, VERBS_DRAINING);
    endpoint->since_ns = verbs_now_ns();
    endpoint->last_wqe = endpoint->peer_ready = false;
    verbs_want_step(endpoint);
}

/* All work requests have come out, and the device says that it takes no receive for this queue any more, if it
 * is one that says so (rdma_rxe of Linux 6.1 is not). */
static bool is_drained(const verbs_endpoint *endpoint) {
    const verbs_queue *queue = &endpoint->queues[VERBS_WRITES];
    const uint64_t ms = (verbs_now_ns() - endpoint->since_ns) / 1000000;
    const bool flushed = queue->first == queue->next || (queue->failed && queue->seen == queue->next);
    return (flushed || ms >= FLUSH_MS) && (endpoint->last_wqe || ms >= LAST_WQE_MS);
}

/* Writes up to the last immediate that the peer has counted are done. What is not done is put into the ring
 * again, under new numbers. False: the peer has counted more than we have sent, or there is no memory. */
static bool settle(verbs_endpoint *endpoint) {
    verbs_queue *queue = &endpoint->queues[VERBS_WRITES];
    verbs_domain *domain = endpoint->domain;
    uint16_t landed = (uint16_t)(endpoint->peer_imms - endpoint->imms_delivered);
    verbs_op *left[VERBS_RING];
    uint32_t nleft = 0, sent = 0;
    if (domain->soft) left[nleft++] = NULL;
    for (uint32_t at = queue->first; at != queue->next; at++) {
        const verbs_op *op = *verbs_place(queue, at);
        sent += op && op->opcode == PPLX_WRITE_IMM;
    }
    if (landed > sent || !verbs_reserve_kept(domain, VERBS_RING)) return false;
    for (uint32_t at = queue->first; at != queue->next; at++) {
        verbs_op *op = *verbs_place(queue, at);
        if (!op) continue;
        if (!landed || op->opcode == PPLX_READ) {
            left[nleft++] = op;
            continue;
        }
        landed = (uint16_t)(landed - (op->opcode == PPLX_WRITE_IMM));
        verbs_keep(domain, endpoint, &(pplx_completion){.op = (pplx_op *)op, .kind = PPLX_COMPLETION_OP});
    }
    domain->cq_room += (int32_t)(queue->next - queue->first - nleft);
    queue->first = queue->next;
    for (uint32_t i = 0; i < nleft; i++) *verbs_place(queue, queue->next++) = left[i];
    queue->failed = true; /* not posted yet */
    queue->seen = queue->next;
    return true;
}

static void go_on(verbs_endpoint *endpoint) {
    verbs_queue *queue = &endpoint->queues[VERBS_WRITES];
    verbs_enter(endpoint, VERBS_UP);
    endpoint->peer_ready = false;
    verbs_calm(endpoint);
    queue->failed = false;
    const int native = verbs_post_again(queue, queue->first);
    if (native) verbs_lose(endpoint, native);
}

static void connect_anew(verbs_endpoint *endpoint) {
    verbs_queue *queue = &endpoint->queues[VERBS_WRITES];
    endpoint->epoch = (uint16_t)((endpoint->epoch + 1) % EPOCHS);
    const uint32_t jump = endpoint->epoch * UINT32_C(0x9e3779); /* far from what may still be on its way */
    int native = verbs_qp_init(queue);
    if (!native) native = verbs_qp_connect(queue, queue->psn + jump, endpoint->peer.psn[VERBS_WRITES] + jump);
    if (native || !settle(endpoint)) {
        verbs_lose(endpoint, native);
        return;
    }
    endpoint->imms_received = endpoint->imms_delivered = 0;
    endpoint->peer_reset = false;
    verbs_enter(endpoint, VERBS_READY);
    say(endpoint, WORD_READY, endpoint->epoch, 0);
    if (endpoint->state == VERBS_READY && endpoint->peer_ready) go_on(endpoint);
}

/* One step at a time: the completion queue has been found empty since the one before. */
void verbs_step(verbs_endpoint *endpoint) {
    for (int i = 0; i < 2; i++)
        if (endpoint->queues[i].tail && !endpoint->queues[i].failed) verbs_post_tail(&endpoint->queues[i]);
    switch ((enum verbs_state)endpoint->state) {
    case VERBS_GREETING:
        if (endpoint->greet_again) greet_again(endpoint);
        break;
    case VERBS_UP:
        if (!endpoint->queues[0].tail && !endpoint->queues[1].tail) verbs_calm(endpoint);
        break;
    case VERBS_DRAINING:
        if (is_drained(endpoint)) verbs_enter(endpoint, VERBS_DRAINED);
        break;
    case VERBS_DRAINED:
        endpoint->queues[VERBS_WRITES].tail = false;
        verbs_enter(endpoint, VERBS_RESETTING);
        const int native = verbs_qp_move(&endpoint->queues[VERBS_WRITES], IBV_QPS_RESET);
        if (native) verbs_lose(endpoint, native);
        break;
    case VERBS_RESETTING:
        verbs_enter(endpoint, VERBS_RESET);
        say(endpoint, WORD_RESET, endpoint->epoch + 1u, endpoint->imms_received);
        break;
    case VERBS_RESET:
        if (endpoint->peer_reset) connect_anew(endpoint);
        break;
    case VERBS_OPEN:
    case VERBS_READY:
    case VERBS_LOST:
    case VERBS_CLOSING: break;
    }
}

/* ---- what is heard ---- */

/* From the peer, and so perhaps not by the rules. */
void verbs_control_arrived(verbs_endpoint *endpoint, uint32_t word) {
    const uint32_t what = word >> 30, epoch = word >> 16 & (EPOCHS - 1);
    const uint32_t next = (endpoint->epoch + 1u) % EPOCHS;
    if (what == WORD_GREETING) {
        greeting_arrived(endpoint);
    } else if (what == WORD_RESET && epoch == next && endpoint->state >= VERBS_UP && endpoint->state < VERBS_READY &&
               !endpoint->peer_reset) {
        endpoint->peer_reset = true;
        endpoint->peer_imms = (uint16_t)word;
        verbs_writes_broke(endpoint);
    } else if (what == WORD_READY && epoch == next && endpoint->state == VERBS_RESET && endpoint->peer_reset) {
        endpoint->peer_ready = true;
    } else if (what == WORD_READY && epoch == endpoint->epoch && endpoint->state == VERBS_READY) {
        go_on(endpoint);
    } else if (what != WORD_NOTHING) {
        verbs_lose(endpoint, 0);
    }
}

void verbs_queue_failed(verbs_queue *queue, enum ibv_wc_status status) {
    verbs_endpoint *endpoint = queue->endpoint;
    if (endpoint->state >= VERBS_LOST) return;
    if (queue->which == VERBS_WRITES) {
        if (status == IBV_WC_RETRY_EXC_ERR)
            verbs_lose(endpoint, (int32_t)status);
        else
            verbs_writes_broke(endpoint);
    } else if (endpoint->state == VERBS_GREETING && endpoint->first) {
        endpoint->greet_again = true;
        verbs_want_step(endpoint);
    } else {
        verbs_lose(endpoint, (int32_t)status);
    }
}

#else
typedef int pplx_verbs_repair_left_out;
#endif
