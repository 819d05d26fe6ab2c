/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A queue pair through its states: RESET -> INIT -> RTR (it answers) -> RTS (it sends), and ERR. */
#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <string.h>

#include "verbs_internal.h"

enum {
    WANTED_INLINE = 64,
    RNR_TIMER = 8,   /* 0.16 ms: until the receive queue is filled again */
    RNR_RETRIES = 7 /* for ever: who does not fill it is judged by its heartbeats */
};

int verbs_qp_init(verbs_queue *queue) {
    const verbs_domain *domain = queue->endpoint->domain;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT,
        .pkey_index = domain->port.pkey_index,
        .port_num = domain->port.number,
        .qp_access_flags = queue->which == VERBS_WRITES ? IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ : 0};
    return domain->lib->modify_qp(queue->qp, &attr,
                                  IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

int verbs_qp_open(verbs_queue *queue, struct ibv_srq *srq) {
    const verbs_domain *domain = queue->endpoint->domain;
    struct ibv_qp_init_attr attr = {
        .qp_context = queue,
        .send_cq = domain->cq,
        .recv_cq = domain->cq,
        .srq = srq,
        .cap = {.max_send_wr = domain->caps.max_inflight + PPLX_RESERVED_IMMS + VERBS_CONTROLS,
                .max_send_sge = 1,
                .max_inline_data = WANTED_INLINE},
        .qp_type = IBV_QPT_RC,
    };
    queue->qp = domain->lib->create_qp(domain->thread_pd, &attr);
    if (!queue->qp) { /* some devices refuse instead of giving less */
        attr.cap.max_inline_data = 0;
        queue->qp = domain->lib->create_qp(domain->thread_pd, &attr);
    }
    if (!queue->qp) return errno ? errno : EIO;
    queue->max_inline = attr.cap.max_inline_data;
    return verbs_qp_init(queue);
}

int verbs_qp_move(verbs_queue *queue, enum ibv_qp_state state) {
    struct ibv_qp_attr attr = {.qp_state = state};
    return queue->endpoint->domain->lib->modify_qp(queue->qp, &attr, IBV_QP_STATE);
}

static void fill_route(const verbs_endpoint *endpoint, struct ibv_ah_attr *ah) {
    const verbs_port *port = &endpoint->domain->port;
    const verbs_address *peer = &endpoint->peer;
    verbs_route(port, &endpoint->domain->options, port->ngids ? &port->gids[endpoint->gid] : NULL,
                peer->ngids ? &peer->gids[endpoint->peer_gid] : NULL, peer->lid, peer->grh, ah);
}

static uint8_t least(int a, int b, int most) { return (uint8_t)(a < b ? a < most ? a : most : b < most ? b : most); }

int verbs_qp_connect(verbs_queue *queue, uint32_t psn, uint32_t peer_psn) {
    const verbs_endpoint *endpoint = queue->endpoint;
    const verbs_domain *domain = endpoint->domain;
    const verbs_address *peer = &endpoint->peer;
    const uint8_t own_mtu = (uint8_t)domain->port.attr.active_mtu;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR,
                               .path_mtu = own_mtu < peer->mtu ? own_mtu : peer->mtu,
                               .dest_qp_num = peer->qpn[queue->which],
                               .rq_psn = peer_psn & 0xffffff,
                               .max_dest_rd_atomic = least(domain->attr.max_qp_rd_atom, 16, 16),
                               .min_rnr_timer = RNR_TIMER};
    fill_route(endpoint, &attr.ah_attr);
    int ret = domain->lib->modify_qp(queue->qp, &attr,
                                     IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                         IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (ret) return ret;
    attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS,
                                .timeout = (uint8_t)domain->options.timeout,
                                .retry_cnt = (uint8_t)domain->options.retry_count,
                                .rnr_retry = RNR_RETRIES,
                                .sq_psn = psn & 0xffffff,
                                .max_rd_atomic = least(domain->attr.max_qp_init_rd_atom, peer->read_depth, 16)};
    return domain->lib->modify_qp(queue->qp, &attr,
                                  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                      IBV_QP_MAX_QP_RD_ATOMIC);
}

bool verbs_qp_is_broken(verbs_queue *queue) {
    struct ibv_qp_attr attr = {0};
    struct ibv_qp_init_attr init;
    return queue->endpoint->domain->lib->query_qp(queue->qp, &attr, IBV_QP_STATE, &init) == 0 &&
           (attr.qp_state == IBV_QPS_ERR || attr.qp_state == IBV_QPS_SQE);
}

#else
typedef int pplx_verbs_qp_left_out;
#endif
