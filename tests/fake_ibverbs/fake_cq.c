/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Completion queues: filled, read, armed. */
#include "fake_ibverbs.h"

/* Its queue pairs can't go on: none of them would learn what becomes of its work. */
static void overrun(fake_cq *cq) {
    cq->overrun = true;
    fake_tell(cq->cq.context, IBV_EVENT_CQ_ERR, cq);
    for (fake_qp *qp = fake_qps; qp; qp = qp->next) {
        if (qp->qp.send_cq != &cq->cq && qp->qp.recv_cq != &cq->cq) continue;
        if (qp->qp.state == IBV_QPS_RESET || qp->qp.state == IBV_QPS_ERR) continue;
        fake_tell(qp->qp.context, IBV_EVENT_QP_FATAL, qp);
        fake_fail_qp(qp);
    }
}

void fake_cq_put(fake_cq *cq, const fake_entry *entry, bool solicited) {
    if (cq->overrun || fake_device_of(cq->cq.context)->dead) return;
    if (cq->count == (uint32_t)cq->cq.cqe) {
        overrun(cq);
        return;
    }
    cq->entries[(cq->first + cq->count++) % (uint32_t)cq->cq.cqe] = *entry;
    if (!cq->armed || (cq->solicited_only && !solicited && entry->wc.status == IBV_WC_SUCCESS)) return;
    cq->armed = false;
    if (!cq->cq.channel) return;
    fake_count.events++;
    fake_channel_put(&((fake_comp_channel *)cq->cq.channel)->events, &(fake_event){.cq = &cq->cq, .of = &cq->cq});
}

static void read_entry(fake_entry *entry, struct ibv_wc *wc) {
    *wc = entry->wc;
    if (entry->rq) entry->rq->unread--;
    if (entry->is_send && entry->qp && (int32_t)(entry->sequence - entry->qp->freed) > 0)
        entry->qp->freed = entry->sequence;
}

int fake_poll_cq(struct ibv_cq *handle, int n, struct ibv_wc *wcs) {
    fake_cq *cq = (fake_cq *)handle;
    int taken = 0;
    pthread_mutex_lock(&fake_lock);
    fake_count.polls++;
    if (!fake_device_of(handle->context)->dead) {
        for (; taken < n && cq->count; taken++, cq->count--) {
            read_entry(&cq->entries[cq->first], &wcs[taken]);
            cq->first = (cq->first + 1) % (uint32_t)handle->cqe;
        }
    }
    pthread_mutex_unlock(&fake_lock);
    return taken;
}

int fake_req_notify_cq(struct ibv_cq *handle, int solicited_only) {
    fake_cq *cq = (fake_cq *)handle;
    pthread_mutex_lock(&fake_lock);
    fake_count.arms++;
    /* Any completion outranks solicited ones only. */
    cq->solicited_only = solicited_only && (!cq->armed || cq->solicited_only);
    cq->armed = true;
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

/* A queue pair is destroyed or reset: its completions leave the queue, or stay and free nothing any more. */
void fake_cq_clean(fake_cq *cq, fake_qp *qp, bool stale) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < cq->count; i++) {
        fake_entry *entry = &cq->entries[(cq->first + i) % (uint32_t)cq->cq.cqe];
        if (entry->qp == qp) {
            if (entry->rq) entry->rq->unread--;
            if (!stale) continue;
            entry->qp = NULL;
            entry->rq = NULL;
        }
        cq->entries[(cq->first + kept++) % (uint32_t)cq->cq.cqe] = *entry;
    }
    cq->count = kept;
}
