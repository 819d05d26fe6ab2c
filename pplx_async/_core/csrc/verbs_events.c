/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What a device tells by itself: a queue pair that broke at the peer's request, which fails no work request of
 * ours; the port, the device.
 *
 * A port that goes down may come up again in a moment: it has half a second, as a peer has to answer. Not every device
 * says for each queue pair that nobody does (rdma_rxe sends nothing then, and counts no retries), so after that
 * its peers are lost. A device that has failed takes all with it. */
#if PPLX_HAVE_LIBIBVERBS

#include "verbs_internal.h"

static const uint64_t PORT_DOWN_NS = 500000000;

/* An event may be an old one, of before the queue was made new: so it is asked for its state. */
static void queue_event(verbs_queue *queue, bool last_wqe) {
    verbs_endpoint *endpoint = queue->endpoint;
    if (queue->which == VERBS_WRITES) {
        if (endpoint->state == VERBS_DRAINING)
            endpoint->last_wqe |= last_wqe;
        else if (endpoint->state == VERBS_UP && verbs_qp_is_broken(queue)) {
            verbs_writes_broke(endpoint);
            endpoint->last_wqe = last_wqe;
        }
    } else if (endpoint->state >= VERBS_UP && endpoint->state < VERBS_LOST && verbs_qp_is_broken(queue)) {
        verbs_lose(endpoint, IBV_WC_FATAL_ERR);
    }
}

static void lose_all(verbs_domain *domain, enum ibv_wc_status status) {
    for (verbs_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
        verbs_lose(endpoint, (int32_t)status);
}

void verbs_port_check(verbs_domain *domain) {
    if (verbs_now_ns() - domain->port_down_ns > PORT_DOWN_NS) lose_all(domain, IBV_WC_RETRY_EXC_ERR);
}

static void device_event(verbs_domain *domain, enum ibv_event_type type) {
    switch (type) {
    case IBV_EVENT_PORT_ERR:
        domain->port_down = true;
        domain->port_down_ns = verbs_now_ns();
        break;
    case IBV_EVENT_PORT_ACTIVE: domain->port_down = false; break;
    case IBV_EVENT_DEVICE_FATAL:
    case IBV_EVENT_CQ_ERR:
    case IBV_EVENT_SRQ_ERR:
        domain->broken = true;
        domain->broken_error = (int32_t)type;
        lose_all(domain, IBV_WC_FATAL_ERR);
        break;
    default: break;
    }
}

void verbs_events_take(verbs_domain *domain) {
    struct ibv_async_event event;
    while (domain->lib->get_async_event(domain->context, &event) == 0) {
        switch (event.event_type) {
        case IBV_EVENT_QP_FATAL:
        case IBV_EVENT_QP_REQ_ERR:
        case IBV_EVENT_QP_ACCESS_ERR:
        case IBV_EVENT_PATH_MIG_ERR: queue_event(event.element.qp->qp_context, false); break;
        case IBV_EVENT_QP_LAST_WQE_REACHED: queue_event(event.element.qp->qp_context, true); break;
        case IBV_EVENT_PORT_ERR:
        case IBV_EVENT_PORT_ACTIVE:
            if (event.element.port_num == domain->port.number) device_event(domain, event.event_type);
            break;
        default: device_event(domain, event.event_type);
        }
        domain->lib->ack_async_event(&event); /* now: destroying a queue pair waits for that */
    }
}

#else
typedef int pplx_verbs_events_left_out;
#endif
