/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Posting, and what becomes of it: bytes move from memory to memory, completions to both queues. */
#include "fake_ibverbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const uint32_t rnr_us[32] = {655360, 10,    20,    30,    40,    60,     80,     120,    160,    240,   320,
                                    480,    640,   960,   1280,  1920,  2560,   3840,   5120,   7680,   10240, 15360,
                                    20480,  30720, 40960, 61440, 81920, 122880, 163840, 245760, 327680, 491520};

/* ---- a thread for deadlines ---- */

static pthread_cond_t changed;
static bool has_thread, has_condition;

enum { LINGER_NS = 20000000 };

/* When its oldest send is executed: each takes its time, after the one before. */
static uint64_t start_ns(const fake_qp *qp) {
    const uint64_t posted = qp->sends[qp->executed % qp->cap.max_send_wr].posted_ns;
    return (posted > qp->executed_ns ? posted : qp->executed_ns) + (uint64_t)qp->device->delay_us * 1000;
}

/* When its oldest send has to be looked at again; 0: when somebody comes by. */
static uint64_t due_ns(const fake_qp *qp) {
    if (qp->qp.state != IBV_QPS_RTS || qp->executed == qp->posted || qp->device->held || qp->device->dead) return 0;
    return qp->waiting_since_ns ? qp->deadline_ns : start_ns(qp);
}

static void *keep_time(void *nothing) {
    uint64_t last = fake_now_ns();
    pthread_mutex_lock(&fake_lock);
    for (;;) {
        uint64_t first = 0;
        fake_pump_all();
        for (const fake_qp *qp = fake_qps; qp; qp = qp->next) {
            const uint64_t due = due_ns(qp);
            if (due && (!first || due < first)) first = due;
        }
        if (first) {
            last = first;
        } else {
            first = last + LINGER_NS;
            if (fake_now_ns() >= first) break;
        }
        const struct timespec until = {(time_t)(first / 1000000000u), (long)(first % 1000000000u)};
        pthread_cond_timedwait(&changed, &fake_lock, &until);
    }
    has_thread = false;
    pthread_mutex_unlock(&fake_lock);
    return nothing;
}

static void need_time(void) {
    pthread_t thread;
    if (!has_condition) {
        pthread_condattr_t attr;
        pthread_condattr_init(&attr);
        pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
        pthread_cond_init(&changed, &attr);
        pthread_condattr_destroy(&attr);
        has_condition = true;
    }
    if (has_thread) {
        pthread_cond_signal(&changed);
    } else if (pthread_create(&thread, NULL, keep_time, NULL) == 0) {
        has_thread = true;
        pthread_setname_np(thread, "fake-ibverbs"); /* else that of the thread which made it */
        pthread_detach(thread);
    } else {
        abort();
    }
}

/* ---- completions ---- */

/* Of a failed one these fields mean nothing, so they are nonsense. */
static struct ibv_wc failed(uint64_t wr_id, enum ibv_wc_status status, const fake_qp *qp) {
    struct ibv_wc wc;
    memset(&wc, 0xdb, sizeof wc);
    wc.wr_id = wr_id;
    wc.status = status;
    wc.vendor_err = 0x80 + (uint32_t)status;
    wc.qp_num = qp->qp.qp_num;
    return wc;
}

static enum ibv_wc_opcode opcode_of(enum ibv_wr_opcode opcode) {
    switch (opcode) {
    case IBV_WR_RDMA_READ: return IBV_WC_RDMA_READ;
    case IBV_WR_SEND:
    case IBV_WR_SEND_WITH_IMM: return IBV_WC_SEND;
    default: return IBV_WC_RDMA_WRITE;
    }
}

/* The oldest send that isn't executed is, with this result. */
static void complete(fake_qp *qp, enum ibv_wc_status status) {
    const fake_send *send = &qp->sends[qp->executed++ % qp->cap.max_send_wr];
    qp->waiting_since_ns = 0;
    if (status == IBV_WC_SUCCESS && !qp->signal_all && !(send->flags & IBV_SEND_SIGNALED)) return;
    fake_entry entry = {.qp = qp, .sequence = qp->executed, .is_send = true};
    if (status == IBV_WC_SUCCESS)
        entry.wc = (struct ibv_wc){.wr_id = send->wr_id, .opcode = opcode_of(send->opcode), .qp_num = qp->qp.qp_num};
    else
        entry.wc = failed(send->wr_id, status, qp);
    fake_cq_put((fake_cq *)qp->qp.send_cq, &entry, false);
}

static void put_receive(fake_qp *qp, const struct ibv_wc *wc, bool solicited) {
    const fake_entry entry = {.wc = *wc, .qp = qp, .rq = qp->rq};
    qp->rq->first = (qp->rq->first + 1) % qp->rq->capacity;
    qp->rq->count--;
    qp->rq->unread++;
    fake_cq_put((fake_cq *)qp->qp.recv_cq, &entry, solicited);
}

void fake_flush(fake_qp *qp) {
    while (qp->executed != qp->posted) complete(qp, IBV_WC_WR_FLUSH_ERR);
    while (!qp->qp.srq && qp->rq->count) {
        const struct ibv_wc wc = failed(qp->rq->receives[qp->rq->first].wr_id, IBV_WC_WR_FLUSH_ERR, qp);
        put_receive(qp, &wc, false);
    }
}

void fake_fail_qp(fake_qp *qp) {
    qp->qp.state = IBV_QPS_ERR;
    qp->lingers |= qp->executed != qp->posted;
    qp->stuck |= qp->device->sticky && qp->executed != qp->posted &&
                 qp->sends[qp->executed % qp->cap.max_send_wr].opcode == IBV_WR_RDMA_READ;
    if (!qp->device->late) fake_flush(qp);
    if (!qp->qp.srq || qp->last_told) return;
    qp->last_told = true;
    fake_tell(qp->qp.context, IBV_EVENT_QP_LAST_WQE_REACHED, qp);
}

/* ---- memory ---- */

static unsigned char *reach(const fake_pd *pd, uint32_t key, uint64_t address, uint64_t nbytes, unsigned access) {
    const fake_mr *mr = fake_mrs;
    while (mr && mr->mr.lkey != key) mr = mr->next;
    if (!mr || mr->pd != pd || (mr->access & access) != access) return NULL;
    if (address < mr->iova || nbytes > mr->mr.length || address - mr->iova > mr->mr.length - nbytes) return NULL;
    return mr->bytes + (address - mr->iova);
}

static uint64_t total(const struct ibv_sge *sges, int n) {
    uint64_t nbytes = 0;
    for (int i = 0; i < n; i++) nbytes += sges[i].length;
    return nbytes;
}

static bool reach_all(const fake_pd *pd, const struct ibv_sge *sges, int n, unsigned access) {
    for (int i = 0; i < n; i++)
        if (sges[i].length && !reach(pd, sges[i].lkey, sges[i].addr, sges[i].length, access)) return false;
    return true;
}

/* Between pieces, which were checked, and one range; `out`: from the pieces. */
static void move(const fake_pd *pd, const struct ibv_sge *sges, int n, unsigned char *range, uint64_t nbytes,
                 bool out) {
    for (int i = 0; i < n && nbytes; i++) {
        const uint64_t part = sges[i].length < nbytes ? sges[i].length : nbytes;
        unsigned char *piece = part ? reach(pd, sges[i].lkey, sges[i].addr, part, 0) : NULL;
        if (piece && out) memmove(range, piece, part);
        if (piece && !out) memmove(piece, range, part);
        range += part;
        nbytes -= part;
    }
}

/* ---- the other side ---- */

static const fake_port *port_of(const fake_qp *qp) { return &qp->device->ports[qp->attr.port_num - 1]; }

static bool same_gid(const union ibv_gid *a, const union ibv_gid *b) { return memcmp(a, b, sizeof *a) == 0; }

/* Of one partition, and not both limited members of it. */
static bool share_partition(const fake_qp *a, const fake_qp *b) {
    const unsigned x = port_of(a)->pkeys[a->attr.pkey_index], y = port_of(b)->pkeys[b->attr.pkey_index];
    return ((x ^ y) & 0x7fff) == 0 && ((x | y) & 0x8000);
}

/* A packet from `qp` is one that `to` waits for. */
static bool belongs(const fake_qp *qp, const fake_qp *to) {
    const struct ibv_ah_attr *out = &qp->attr.ah_attr, *in = &to->attr.ah_attr;
    if (to->qp.state != IBV_QPS_RTR && to->qp.state != IBV_QPS_RTS) return false;
    if (to->attr.dest_qp_num != qp->qp.qp_num || qp->psn != to->expected_psn || to->device->dead) return false;
    const fake_port *ours = port_of(qp), *theirs = port_of(to);
    if (theirs->cut || theirs->attr.state != IBV_PORT_ACTIVE || ours->net != theirs->net) return false;
    if (!share_partition(qp, to)) return false;
    if (ours->attr.link_layer != theirs->attr.link_layer || out->is_global != in->is_global) return false;
    if (ours->attr.link_layer == IBV_LINK_LAYER_INFINIBAND)
        return out->dlid == theirs->attr.lid && in->dlid == ours->attr.lid;
    const fake_gid *from = &ours->gids[out->grh.sgid_index], *at = &theirs->gids[in->grh.sgid_index];
    return from->type == at->type && same_gid(&out->grh.dgid, &at->gid) && same_gid(&in->grh.dgid, &from->gid);
}

static fake_qp *find_target(const fake_qp *qp) {
    const fake_port *port = port_of(qp);
    if (port->cut || port->attr.state != IBV_PORT_ACTIVE) return NULL;
    for (fake_qp *to = fake_qps; to; to = to->next)
        if (to->qp.qp_num == qp->attr.dest_qp_num && belongs(qp, to)) return to;
    return NULL;
}

/* The target refuses a request, and can't go on after that. */
static enum ibv_wc_status refuse(fake_qp *to, enum ibv_wc_status status) {
    fake_tell(to->qp.context, status == IBV_WC_REM_ACCESS_ERR ? IBV_EVENT_QP_ACCESS_ERR : IBV_EVENT_QP_REQ_ERR, to);
    fake_fail_qp(to);
    return status;
}

/* ---- one request ---- */

enum { WAITS_FOR_ANSWER = -1, WAITS_FOR_RECEIVE = -2 }; /* besides enum ibv_wc_status */

static bool has_imm(const fake_send *send) {
    return send->opcode == IBV_WR_RDMA_WRITE_WITH_IMM || send->opcode == IBV_WR_SEND_WITH_IMM;
}

static bool is_send(const fake_send *send) {
    return send->opcode == IBV_WR_SEND || send->opcode == IBV_WR_SEND_WITH_IMM;
}

static void copy_out(const fake_qp *qp, const fake_send *send, unsigned char *to, uint64_t nbytes) {
    if (send->flags & IBV_SEND_INLINE)
        memcpy(to, send->inlined, nbytes);
    else
        move(qp->pd, send->sges, send->num_sge, to, nbytes, true);
}

/* Into the oldest receive; its pieces are filled in turn. */
static enum ibv_wc_status arrive(fake_qp *qp, fake_qp *to, const fake_send *send, uint64_t nbytes) {
    const fake_receive *receive = &to->rq->receives[to->rq->first];
    struct ibv_wc wc = {.wr_id = receive->wr_id,
                        .opcode = is_send(send) ? IBV_WC_RECV : IBV_WC_RECV_RDMA_WITH_IMM,
                        .byte_len = (uint32_t)nbytes,
                        .imm_data = send->imm,
                        .qp_num = to->qp.qp_num,
                        .src_qp = qp->qp.qp_num,
                        .wc_flags = has_imm(send) ? IBV_WC_WITH_IMM : 0};
    if (is_send(send)) {
        const bool fits = total(receive->sges, receive->num_sge) >= nbytes;
        if (!fits || !reach_all(to->rq->pd, receive->sges, receive->num_sge, IBV_ACCESS_LOCAL_WRITE)) {
            wc = failed(receive->wr_id, fits ? IBV_WC_LOC_PROT_ERR : IBV_WC_LOC_LEN_ERR, to);
            put_receive(to, &wc, false);
            return refuse(to, fits ? IBV_WC_REM_OP_ERR : IBV_WC_REM_INV_REQ_ERR);
        }
        unsigned char *whole = malloc(nbytes + 1);
        if (!whole) abort();
        copy_out(qp, send, whole, nbytes);
        move(to->rq->pd, receive->sges, receive->num_sge, whole, nbytes, false);
        free(whole);
    }
    put_receive(to, &wc, send->flags & IBV_SEND_SOLICITED);
    return IBV_WC_SUCCESS;
}

static int execute(fake_qp *qp, const fake_send *send) {
    const bool read = send->opcode == IBV_WR_RDMA_READ;
    const uint64_t nbytes = send->flags & IBV_SEND_INLINE ? send->inlined_nbytes : total(send->sges, send->num_sge);
    const uint32_t mtu = 128u << qp->attr.path_mtu;
    unsigned char *remote = NULL;
    if (nbytes > port_of(qp)->attr.max_msg_sz) return IBV_WC_LOC_LEN_ERR;
    if (!(send->flags & IBV_SEND_INLINE) &&
        !reach_all(qp->pd, send->sges, send->num_sge, read ? IBV_ACCESS_LOCAL_WRITE : 0))
        return IBV_WC_LOC_PROT_ERR;
    fake_qp *to = find_target(qp);
    if (!to) return WAITS_FOR_ANSWER;
    if ((is_send(send) || has_imm(send)) && !to->rq->count) return WAITS_FOR_RECEIVE;
    if (to->qp.state == IBV_QPS_RTR && to->expected_psn == to->attr.rq_psn)
        fake_tell(to->qp.context, IBV_EVENT_COMM_EST, to);
    if (to->attr.path_mtu != qp->attr.path_mtu && nbytes > 128u << to->attr.path_mtu)
        return refuse(to, IBV_WC_REM_INV_REQ_ERR);
    if (!is_send(send)) {
        const unsigned access = read ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;
        if (!(to->attr.qp_access_flags & access)) return refuse(to, IBV_WC_REM_INV_REQ_ERR);
        if (read && qp->attr.max_rd_atomic > to->attr.max_dest_rd_atomic) return refuse(to, IBV_WC_REM_INV_REQ_ERR);
        if (nbytes && !(remote = reach(to->pd, send->rkey, send->remote, nbytes, access)))
            return refuse(to, IBV_WC_REM_ACCESS_ERR);
    }
    const uint32_t packets = nbytes ? (uint32_t)((nbytes + mtu - 1) / mtu) : 1;
    qp->psn = (qp->psn + packets) & 0xffffff;
    to->expected_psn = (to->expected_psn + packets) & 0xffffff;
    if (read)
        move(qp->pd, send->sges, send->num_sge, remote, nbytes, false);
    else if (remote)
        copy_out(qp, send, remote, nbytes);
    return is_send(send) || has_imm(send) ? (int)arrive(qp, to, send, nbytes) : (int)IBV_WC_SUCCESS;
}

/* How long it is tried; 0: for ever. */
static uint64_t patience_ns(const fake_qp *qp, bool for_receive) {
    if (for_receive) {
        const fake_qp *to = find_target(qp);
        if (qp->attr.rnr_retry == 7 || !to) return 0;
        return (qp->attr.rnr_retry + 1u) * (uint64_t)rnr_us[to->attr.min_rnr_timer] * 1000;
    }
    if (qp->device->retry_ms >= 0) return (uint64_t)qp->device->retry_ms * 1000000 + 1;
    if (qp->attr.retry_cnt == 7 || qp->attr.timeout == 0) return 0;
    return (qp->attr.retry_cnt + 1u) * (UINT64_C(4096) << qp->attr.timeout);
}

/* True: it has to wait on. */
static bool waits(fake_qp *qp, bool for_receive) {
    const uint64_t now = fake_now_ns();
    if (!qp->waiting_since_ns || qp->waits_for_receive != for_receive) {
        const uint64_t patience = patience_ns(qp, for_receive);
        qp->waiting_since_ns = now;
        qp->waits_for_receive = for_receive;
        qp->deadline_ns = patience ? now + patience : 0;
        if (patience) need_time();
    }
    return !qp->deadline_ns || now < qp->deadline_ns;
}

void fake_pump(fake_qp *qp) {
    fake_device *device = qp->device;
    while (qp->qp.state == IBV_QPS_RTS && qp->executed != qp->posted && !device->held && !device->dead) {
        const fake_send *send = &qp->sends[qp->executed % qp->cap.max_send_wr];
        const uint64_t now = device->delay_us ? fake_now_ns() : 0;
        if (device->delay_us && now < start_ns(qp)) {
            need_time();
            return;
        }
        if (qp->stuck && find_target(qp)) {
            qp->stuck = send->opcode != IBV_WR_RDMA_READ || total(send->sges, send->num_sge) > 128u
                                                                                                   << qp->attr.path_mtu;
            if (qp->stuck) {
                complete(qp, IBV_WC_SUCCESS);
                fake_fail_qp(qp);
                return;
            }
        }
        int status = execute(qp, send);
        if (status < 0) {
            const bool for_receive = status == WAITS_FOR_RECEIVE;
            if (waits(qp, for_receive)) return;
            status = for_receive ? IBV_WC_RNR_RETRY_EXC_ERR : IBV_WC_RETRY_EXC_ERR;
        }
        if (device->break_status && device->break_after-- == 0) {
            status = device->break_status;
            device->break_status = 0;
        }
        qp->executed_ns = now;
        complete(qp, (enum ibv_wc_status)status);
        if (status != IBV_WC_SUCCESS) fake_fail_qp(qp);
    }
}

void fake_pump_all(void) {
    for (fake_qp *qp = fake_qps; qp; qp = qp->next) fake_pump(qp);
}

/* ---- posting ---- */

static int check_send(const fake_qp *qp, const struct ibv_send_wr *wr) {
    const bool is_inline = wr->send_flags & IBV_SEND_INLINE;
    if (wr->opcode > IBV_WR_RDMA_READ || wr->num_sge < 0 || wr->num_sge > (int)qp->cap.max_send_sge) return EINVAL;
    if (wr->send_flags & ~(unsigned)(IBV_SEND_FENCE | IBV_SEND_SIGNALED | IBV_SEND_SOLICITED | IBV_SEND_INLINE))
        return EINVAL;
    if (is_inline && (wr->opcode == IBV_WR_RDMA_READ || total(wr->sg_list, wr->num_sge) > qp->cap.max_inline_data))
        return EINVAL;
    return 0;
}

static void take(fake_qp *qp, const struct ibv_send_wr *wr, uint64_t now) {
    fake_send *send = &qp->sends[qp->posted++ % qp->cap.max_send_wr];
    *send = (fake_send){.wr_id = wr->wr_id,
                        .opcode = wr->opcode,
                        .flags = wr->send_flags,
                        .imm = wr->imm_data,
                        .num_sge = wr->num_sge,
                        .posted_ns = now};
    send->remote = wr->wr.rdma.remote_addr;
    send->rkey = wr->wr.rdma.rkey;
    for (int i = 0; i < wr->num_sge; i++) {
        send->sges[i] = wr->sg_list[i];
        if (!(wr->send_flags & IBV_SEND_INLINE)) continue;
        memcpy(send->inlined + send->inlined_nbytes, (void *)(uintptr_t)wr->sg_list[i].addr, wr->sg_list[i].length);
        send->inlined_nbytes += wr->sg_list[i].length;
    }
    fake_count.requests++;
    if (qp->signal_all || (wr->send_flags & IBV_SEND_SIGNALED)) fake_count.signalled++;
}

/* What the test asked for: to refuse some that would fit. */
static int refused(fake_device *device) {
    if (!device->refuse_count) return 0;
    if (device->refuse_after) {
        device->refuse_after--;
        return 0;
    }
    device->refuse_count--;
    return device->refuse_native;
}

int fake_post_send(struct ibv_qp *handle, struct ibv_send_wr *wr, struct ibv_send_wr **bad) {
    fake_qp *qp = (fake_qp *)handle;
    int native = 0;
    pthread_mutex_lock(&fake_lock);
    const uint64_t now = qp->device->delay_us ? fake_now_ns() : 0;
    fake_count.doorbells++;
    if (handle->state != IBV_QPS_RTS && handle->state != IBV_QPS_ERR) native = EINVAL;
    if (qp->device->dead) native = EIO;
    for (; wr && !native; wr = wr->next) {
        native = check_send(qp, wr);
        if (!native && qp->posted - qp->freed >= qp->cap.max_send_wr) native = ENOMEM;
        if (!native) native = refused(qp->device);
        if (native) break;
        take(qp, wr, now);
    }
    if (native) {
        *bad = wr;
        fake_count.refused++;
    }
    if (handle->state == IBV_QPS_ERR && !qp->device->late) fake_flush(qp);
    fake_pump(qp);
    pthread_mutex_unlock(&fake_lock);
    return native;
}

static int post_receives(fake_rq *rq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
    int native = 0;
    for (; wr; wr = wr->next) {
        if (wr->num_sge < 0 || wr->num_sge > rq->max_sge) native = EINVAL;
        if (!native && rq->count + rq->unread >= rq->capacity) native = ENOMEM;
        if (native) break;
        fake_receive *receive = &rq->receives[(rq->first + rq->count++) % rq->capacity];
        *receive = (fake_receive){.wr_id = wr->wr_id, .num_sge = wr->num_sge};
        for (int i = 0; i < wr->num_sge; i++) receive->sges[i] = wr->sg_list[i];
    }
    if (native) {
        *bad = wr;
        fake_count.refused++;
    }
    return native;
}

int fake_post_recv(struct ibv_qp *handle, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
    fake_qp *qp = (fake_qp *)handle;
    pthread_mutex_lock(&fake_lock);
    int native = EINVAL;
    if (!handle->srq && handle->state != IBV_QPS_RESET)
        native = post_receives(qp->rq, wr, bad);
    else
        *bad = wr;
    if (handle->state == IBV_QPS_ERR && !qp->device->late) fake_flush(qp);
    fake_pump_all();
    pthread_mutex_unlock(&fake_lock);
    return native;
}

int fake_post_srq_recv(struct ibv_srq *handle, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad) {
    pthread_mutex_lock(&fake_lock);
    const int native = post_receives(&((fake_srq *)handle)->rq, wr, bad);
    fake_pump_all();
    pthread_mutex_unlock(&fake_lock);
    return native;
}
