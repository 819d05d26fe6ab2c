/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Queue pairs: made, moved from state to state, destroyed. */
#include "fake_ibverbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

fake_qp *fake_qps;

enum { FIRST_QPN = 0x11, MOST_24 = 0xffffff, ACKNOWLEDGE_NS = 500000000, SEARCH_NS = 1000000000 };

static void count(fake_qp *qp, int change) {
    ((fake_pd *)qp->qp.pd)->objects += change;
    ((fake_cq *)qp->qp.send_cq)->objects += change;
    ((fake_cq *)qp->qp.recv_cq)->objects += change;
    if (qp->qp.srq) ((fake_srq *)qp->qp.srq)->objects += change;
    fake_context_of(qp->qp.context)->objects += change;
    fake_count.objects += (uint64_t)(int64_t)change;
}

/* Each device counts for itself, so two of them have queue pairs of the same number. */
static bool take_number(fake_qp *qp) {
    uint32_t number = FIRST_QPN;
    int n = 0;
    for (const fake_qp *other = fake_qps; other; other = other->next) {
        if (other->device != qp->device) continue;
        n++;
        if (other->qp.qp_num >= number) number = other->qp.qp_num + 1;
    }
    qp->qp.qp_num = number;
    return n < qp->device->attr.max_qp;
}

static bool fits(const struct ibv_qp_init_attr *attr, const fake_device *device) {
    const struct ibv_qp_cap *cap = &attr->cap;
    const uint32_t wr = (uint32_t)device->attr.max_qp_wr, sge = (uint32_t)device->attr.max_sge;
    return attr->send_cq && attr->recv_cq && cap->max_send_wr >= 1 && cap->max_send_wr <= wr &&
           cap->max_send_sge <= sge && cap->max_inline_data <= (uint32_t)device->max_inline &&
           (attr->srq || (cap->max_recv_wr <= wr && cap->max_recv_sge <= sge));
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr) {
    fake_device *device = fake_device_of(pd->context);
    if (attr->qp_type != IBV_QPT_RC) return errno = EOPNOTSUPP, NULL;
    if (!fits(attr, device)) return errno = EINVAL, NULL;
    fake_qp *qp = calloc(1, sizeof *qp);
    if (qp) qp->sends = calloc(attr->cap.max_send_wr, sizeof *qp->sends);
    if (qp && !attr->srq) qp->own_rq.receives = calloc(attr->cap.max_recv_wr + 1, sizeof *qp->own_rq.receives);
    if (!qp || !qp->sends) return free(qp), errno = ENOMEM, NULL;
    qp->qp = (struct ibv_qp){.context = pd->context,
                             .qp_context = attr->qp_context,
                             .pd = pd,
                             .send_cq = attr->send_cq,
                             .recv_cq = attr->recv_cq,
                             .srq = attr->srq,
                             .state = IBV_QPS_RESET,
                             .qp_type = IBV_QPT_RC};
    qp->device = device;
    qp->pd = ((fake_pd *)pd)->of;
    qp->cap = attr->cap;
    qp->signal_all = attr->sq_sig_all != 0;
    qp->own_rq.capacity = attr->cap.max_recv_wr;
    qp->own_rq.max_sge = (int)attr->cap.max_recv_sge;
    qp->own_rq.pd = qp->pd;
    qp->rq = attr->srq ? &((fake_srq *)attr->srq)->rq : &qp->own_rq;
    pthread_mutex_lock(&fake_lock);
    const bool room = take_number(qp);
    if (room) {
        qp->next = fake_qps;
        fake_qps = qp;
        count(qp, 1);
    }
    pthread_mutex_unlock(&fake_lock);
    if (room) return &qp->qp;
    free(qp->sends);
    free(qp->own_rq.receives);
    free(qp);
    return errno = ENOMEM, NULL;
}

static void clean(fake_qp *qp, bool stale) {
    fake_cq_clean((fake_cq *)qp->qp.send_cq, qp, stale);
    if (qp->qp.recv_cq != qp->qp.send_cq) fake_cq_clean((fake_cq *)qp->qp.recv_cq, qp, stale);
}

int ibv_destroy_qp(struct ibv_qp *handle) {
    fake_qp *qp = (fake_qp *)handle, **link = &fake_qps;
    pthread_mutex_lock(&fake_lock);
    const uint64_t start = fake_now_ns();
    while (qp->lingers && fake_now_ns() < start + (uint64_t)qp->device->linger_ms * 1000000)
        fake_wait_until(start + (uint64_t)qp->device->linger_ms * 1000000);
    for (const uint64_t until = fake_now_ns() + ACKNOWLEDGE_NS; qp->told != qp->acked && fake_now_ns() < until;)
        fake_wait_until(until);
    const bool busy = qp->told != qp->acked;
    if (busy) {
        fake_complain("a queue pair was destroyed with events that aren't acknowledged: waits for ever");
    } else {
        if (handle->state == IBV_QPS_RTS && !qp->device->dead) fake_count.cut_short++;
        if (qp->device->late) fake_flush(qp);
        while (*link != qp) link = &(*link)->next;
        *link = qp->next;
        clean(qp, qp->device->stale);
        fake_channel_forget(&fake_context_of(handle->context)->async, qp);
        count(qp, -1);
    }
    pthread_mutex_unlock(&fake_lock);
    if (busy) return EBUSY;
    free(qp->sends);
    free(qp->own_rq.receives);
    free(qp);
    return 0;
}

/* ---- states ---- */

/* What a step takes: no less than the first, no more than both. */
static const struct {
    enum ibv_qp_state from, to;
    int needed, allowed;
} steps[] = {
    {IBV_QPS_RESET, IBV_QPS_INIT, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS, 0},
    {IBV_QPS_INIT, IBV_QPS_INIT, 0, IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS},
    {IBV_QPS_INIT, IBV_QPS_RTR,
     IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER,
     IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX},
    {IBV_QPS_RTR, IBV_QPS_RTS,
     IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC,
     IBV_QP_CUR_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER},
    {IBV_QPS_RTS, IBV_QPS_RTS, 0, IBV_QP_CUR_STATE | IBV_QP_ACCESS_FLAGS | IBV_QP_MIN_RNR_TIMER},
};

static bool may_step(enum ibv_qp_state from, enum ibv_qp_state to, int mask) {
    mask &= ~IBV_QP_STATE;
    if (to == IBV_QPS_RESET || to == IBV_QPS_ERR) return mask == 0;
    for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
        if (steps[i].from == from && steps[i].to == to)
            return (mask & steps[i].needed) == steps[i].needed && !(mask & ~(steps[i].needed | steps[i].allowed));
    return false;
}

static bool is_mapped(const union ibv_gid *gid) {
    static const uint8_t prefix[12] = {[10] = 0xff, [11] = 0xff};
    return memcmp(gid->raw, prefix, sizeof prefix) == 0;
}

/* Somebody has this GID: RoCE asks its neighbours for it. */
static bool is_there(const fake_port *from, const union ibv_gid *gid) {
    for (int d = 0; d < fake_ndevices; d++) {
        for (int p = 0; p < fake_devices[d].attr.phys_port_cnt; p++) {
            const fake_port *port = &fake_devices[d].ports[p];
            for (int i = 0; i < FAKE_MAX_GIDS && port->net == from->net; i++)
                if (port->gids[i].used && memcmp(&port->gids[i].gid, gid, sizeof *gid) == 0) return true;
        }
    }
    return false;
}

static int check_route(const fake_qp *qp, const struct ibv_ah_attr *ah) {
    const fake_port *port = &qp->device->ports[qp->attr.port_num - 1];
    const bool ethernet = port->attr.link_layer == IBV_LINK_LAYER_ETHERNET;
    if (ah->port_num != qp->attr.port_num) return EINVAL;
    if (!ethernet && (ah->dlid == 0 || ah->dlid >= 0xc000)) return EINVAL;
    if (!ah->is_global) return ethernet || port->attr.flags & IBV_QPF_GRH_REQUIRED ? EINVAL : 0;
    if (ah->grh.sgid_index >= FAKE_MAX_GIDS || !port->gids[ah->grh.sgid_index].used) return EINVAL;
    if (!ethernet) return 0;
    if (is_mapped(&port->gids[ah->grh.sgid_index].gid) != is_mapped(&ah->grh.dgid)) return EINVAL;
    return is_there(port, &ah->grh.dgid) ? 0 : ETIMEDOUT;
}

static int check_values(const fake_qp *qp, const struct ibv_qp_attr *attr, int mask) {
    const fake_device *device = qp->device;
    if ((mask & IBV_QP_CUR_STATE) && attr->cur_qp_state != qp->qp.state) return EINVAL;
    if ((mask & IBV_QP_PORT) && (attr->port_num < 1 || attr->port_num > device->attr.phys_port_cnt)) return EINVAL;
    if (mask & IBV_QP_PKEY_INDEX) {
        const uint8_t number = mask & IBV_QP_PORT ? attr->port_num : qp->attr.port_num;
        if (attr->pkey_index >= FAKE_MAX_PKEYS || !device->ports[number - 1].pkeys[attr->pkey_index]) return EINVAL;
    }
    if ((mask & IBV_QP_ACCESS_FLAGS) &&
        attr->qp_access_flags & ~(unsigned)(IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                                            IBV_ACCESS_REMOTE_ATOMIC))
        return EINVAL;
    if ((mask & IBV_QP_PATH_MTU) &&
        (attr->path_mtu < IBV_MTU_256 || attr->path_mtu > device->ports[qp->attr.port_num - 1].attr.active_mtu))
        return EINVAL;
    if ((mask & IBV_QP_DEST_QPN) && (attr->dest_qp_num > MOST_24)) return EINVAL;
    if ((mask & IBV_QP_RQ_PSN) && attr->rq_psn > MOST_24) return EINVAL;
    if ((mask & IBV_QP_SQ_PSN) && attr->sq_psn > MOST_24) return EINVAL;
    if ((mask & IBV_QP_MAX_DEST_RD_ATOMIC) && attr->max_dest_rd_atomic > device->attr.max_qp_rd_atom) return EINVAL;
    if ((mask & IBV_QP_MAX_QP_RD_ATOMIC) && attr->max_rd_atomic > device->attr.max_qp_init_rd_atom) return EINVAL;
    if ((mask & IBV_QP_MIN_RNR_TIMER) && attr->min_rnr_timer > 31) return EINVAL;
    if ((mask & IBV_QP_TIMEOUT) && attr->timeout > 31) return EINVAL;
    if ((mask & IBV_QP_RETRY_CNT) && attr->retry_cnt > 7) return EINVAL;
    if ((mask & IBV_QP_RNR_RETRY) && attr->rnr_retry > 7) return EINVAL;
    return mask & IBV_QP_AV ? check_route(qp, &attr->ah_attr) : 0;
}

static void take_values(fake_qp *qp, const struct ibv_qp_attr *attr, int mask) {
    struct ibv_qp_attr *own = &qp->attr;
    if (mask & IBV_QP_PKEY_INDEX) own->pkey_index = attr->pkey_index;
    if (mask & IBV_QP_PORT) own->port_num = attr->port_num;
    if (mask & IBV_QP_ACCESS_FLAGS) own->qp_access_flags = attr->qp_access_flags;
    if (mask & IBV_QP_AV) own->ah_attr = attr->ah_attr;
    if (mask & IBV_QP_PATH_MTU) own->path_mtu = attr->path_mtu;
    if (mask & IBV_QP_DEST_QPN) own->dest_qp_num = attr->dest_qp_num;
    if (mask & IBV_QP_RQ_PSN) qp->expected_psn = own->rq_psn = attr->rq_psn;
    if (mask & IBV_QP_SQ_PSN) qp->psn = own->sq_psn = attr->sq_psn;
    if (mask & IBV_QP_MAX_DEST_RD_ATOMIC) own->max_dest_rd_atomic = attr->max_dest_rd_atomic;
    if (mask & IBV_QP_MAX_QP_RD_ATOMIC) own->max_rd_atomic = attr->max_rd_atomic;
    if (mask & IBV_QP_MIN_RNR_TIMER) own->min_rnr_timer = attr->min_rnr_timer;
    if (mask & IBV_QP_TIMEOUT) own->timeout = attr->timeout;
    if (mask & IBV_QP_RETRY_CNT) own->retry_cnt = attr->retry_cnt;
    if (mask & IBV_QP_RNR_RETRY) own->rnr_retry = attr->rnr_retry;
}

static void reset(fake_qp *qp) {
    clean(qp, qp->device->stale);
    if (!qp->device->late) qp->executed = qp->freed = qp->posted;
    qp->waiting_since_ns = 0;
    qp->last_told = false;
    qp->own_rq.count = qp->own_rq.unread = 0;
    qp->qp.state = IBV_QPS_RESET;
    memset(&qp->attr, 0, sizeof qp->attr);
}

/* Under fake_lock, which others have meanwhile. */
static void search(fake_device *device) {
    device->searching++;
    while (device->searches) fake_wait_until(fake_now_ns() + SEARCH_NS);
    device->searching--;
}

int ibv_modify_qp(struct ibv_qp *handle, struct ibv_qp_attr *attr, int mask) {
    fake_qp *qp = (fake_qp *)handle;
    pthread_mutex_lock(&fake_lock);
    const enum ibv_qp_state to = mask & IBV_QP_STATE ? attr->qp_state : handle->state;
    if (to == IBV_QPS_RTR) search(qp->device);
    int native = qp->device->dead ? EIO : may_step(handle->state, to, mask) ? check_values(qp, attr, mask) : EINVAL;
    if (native) goto out;
    take_values(qp, attr, mask);
    if (to == IBV_QPS_RESET) {
        reset(qp);
    } else if (to == IBV_QPS_ERR) {
        fake_fail_qp(qp);
    } else {
        handle->state = to;
    }
    if (to == IBV_QPS_RTR || to == IBV_QPS_RTS) fake_pump_all();
out:
    pthread_mutex_unlock(&fake_lock);
    return native;
}

int ibv_query_qp(struct ibv_qp *handle, struct ibv_qp_attr *attr, int mask, struct ibv_qp_init_attr *init) {
    fake_qp *qp = (fake_qp *)handle;
    (void)mask;
    pthread_mutex_lock(&fake_lock);
    *attr = qp->attr;
    attr->qp_state = attr->cur_qp_state = handle->state;
    attr->cap = qp->cap;
    pthread_mutex_unlock(&fake_lock);
    *init = (struct ibv_qp_init_attr){.qp_context = handle->qp_context,
                                      .send_cq = handle->send_cq,
                                      .recv_cq = handle->recv_cq,
                                      .srq = handle->srq,
                                      .cap = qp->cap,
                                      .qp_type = IBV_QPT_RC,
                                      .sq_sig_all = qp->signal_all};
    return 0;
}
