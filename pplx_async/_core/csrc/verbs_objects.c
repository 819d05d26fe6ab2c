/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* See verbs_objects.h. */
#include "verbs_objects.h"

#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "verbs_internal.h"

enum { WANTED_INLINE = 64, RNR_TIMER = 12 /* 0.64 ms */, MAX_READS = 16, PSN_MASK = 0xffffff };

struct pplx_verbs_context {
    const pplx_libibverbs *lib;
    struct ibv_context *context;
    verbs_options options;
    verbs_port port;
    struct ibv_device_attr attr;
};

struct pplx_verbs_queue {
    pplx_verbs_context *owner;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
};

struct pplx_verbs_pair {
    pplx_verbs_context *owner;
    struct ibv_qp *qp;
    uint32_t psn, max_inline;
};

static pplx_status fail(pplx_error *error, const char *call, int native) {
    if (!native) native = EIO; /* some drivers leave errno alone */
    if (native == ENOMEM) return verbs_fail(error, PPLX_NATIVE, native, "%s: no memory or no more of these", call);
    return verbs_fail(error, PPLX_NATIVE, native, "%s: %s", call, strerror(native));
}

/* ---- context ---- */

static void fill_port(const pplx_verbs_context *context, pplx_verbs_port *out) {
    const verbs_port *port = &context->port;
    memset(out, 0, sizeof *out);
    if (port->ngids) {
        memcpy(out->gid_bytes, port->gids[0].gid.raw, sizeof out->gid_bytes);
        verbs_gid_format(&port->gids[0].gid, out->gid, sizeof out->gid);
        out->gid_index = (uint32_t)port->gids[0].index;
    }
    out->pkey = port->pkey;
    out->pkey_index = port->pkey_index;
    out->bits_per_second = port->bits_per_second;
    out->max_message = port->attr.max_msg_sz;
    out->number = port->number;
    out->mtu = verbs_mtu_nbytes((uint8_t)port->attr.active_mtu);
    out->lid = port->attr.lid;
    out->max_entries = (uint32_t)context->attr.max_cqe;
    out->max_work = (uint32_t)context->attr.max_qp_wr;
    out->ethernet = port->ethernet;
}

static pplx_status context_open(const char *device, const pplx_option *options, size_t noptions,
                                pplx_verbs_context **out, pplx_verbs_port *port, pplx_error *error) {
    const char *file = NULL;
    pplx_verbs_context *context = calloc(1, sizeof *context);
    if (!context) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    pplx_status status = verbs_options_parse(options, noptions, &context->options, error);
    if (status == PPLX_OK) status = verbs_load(&context->options, &context->lib, &file, error);
    if (status == PPLX_OK)
        status = verbs_find(context->lib, file, &context->options, device, &context->context, &context->port, error);
    if (status == PPLX_OK) {
        int ret = context->lib->query_device(context->context, &context->attr);
        if (ret) {
            status = fail(error, "ibv_query_device", ret);
            context->lib->close_device(context->context);
        }
    }
    if (status != PPLX_OK) {
        free(context);
        return status;
    }
    fill_port(context, port);
    *out = context;
    return PPLX_OK;
}

static void context_close(pplx_verbs_context *context) {
    context->lib->close_device(context->context);
    free(context);
}

/* ---- protection domain and memory ---- */

static pplx_status pd_open(pplx_verbs_context *context, struct ibv_pd **pd, pplx_error *error) {
    errno = 0;
    *pd = context->lib->alloc_pd(context->context);
    return *pd ? PPLX_OK : fail(error, "ibv_alloc_pd", errno);
}

static pplx_status pd_close(pplx_verbs_context *context, struct ibv_pd *pd, pplx_error *error) {
    int ret = context->lib->dealloc_pd(pd);
    return ret ? fail(error, "ibv_dealloc_pd", ret) : PPLX_OK;
}

static pplx_status memory_open(pplx_verbs_context *context, struct ibv_pd *pd, void *address, uint64_t nbytes,
                               uint32_t access, bool writable, struct ibv_mr **mr, uint32_t *lkey, uint32_t *rkey,
                               pplx_error *error) {
    int flags = writable ? IBV_ACCESS_LOCAL_WRITE : 0;
    if (access & PPLX_ACCESS_REMOTE_READ) flags |= IBV_ACCESS_REMOTE_READ;
    if (access & PPLX_ACCESS_REMOTE_WRITE) flags |= IBV_ACCESS_REMOTE_WRITE;
    errno = 0;
    *mr = context->lib->reg_mr(pd, address, nbytes, flags);
    if (!*mr)
        return verbs_fail(error, PPLX_REGISTRATION, errno, "ibv_reg_mr of %llu B: %s", (unsigned long long)nbytes,
                          strerror(errno ? errno : EIO));
    *lkey = (*mr)->lkey;
    *rkey = (*mr)->rkey;
    return PPLX_OK;
}

static pplx_status memory_close(pplx_verbs_context *context, struct ibv_mr *mr, pplx_error *error) {
    int ret = context->lib->dereg_mr(mr);
    return ret ? fail(error, "ibv_dereg_mr", ret) : PPLX_OK;
}

/* ---- completion queue ---- */

static pplx_status queue_open(pplx_verbs_context *context, uint32_t *entries, pplx_verbs_queue **out, int *fd,
                              pplx_error *error) {
    const pplx_libibverbs *lib = context->lib;
    pplx_status status = PPLX_OK;
    pplx_verbs_queue *queue = calloc(1, sizeof *queue);
    if (!queue) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    queue->owner = context;
    errno = 0;
    queue->channel = lib->create_comp_channel(context->context);
    if (!queue->channel) {
        status = fail(error, "ibv_create_comp_channel", errno);
        goto fail;
    }
    /* Else ibv_get_cq_event() would wait where there is no event. */
    const int flags = fcntl(queue->channel->fd, F_GETFL);
    if (flags < 0 || fcntl(queue->channel->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        status = fail(error, "fcntl of a completion channel", errno);
        goto fail;
    }
    errno = 0;
    queue->cq = lib->create_cq(context->context, (int)*entries, queue, queue->channel, 0);
    if (!queue->cq) {
        status = fail(error, "ibv_create_cq", errno);
        goto fail;
    }
    *entries = (uint32_t)queue->cq->cqe;
    *fd = queue->channel->fd;
    *out = queue;
    return PPLX_OK;

fail:
    if (queue->channel) lib->destroy_comp_channel(queue->channel);
    free(queue);
    return status;
}

static void take_events(pplx_verbs_queue *queue) {
    const pplx_libibverbs *lib = queue->owner->lib;
    struct ibv_cq *cq = NULL;
    void *cookie = NULL;
    unsigned count = 0;
    while (lib->get_cq_event(queue->channel, &cq, &cookie) == 0) count++;
    if (count) lib->ack_cq_events(queue->cq, count); /* or destroying it would wait for that */
}

static pplx_status queue_close(pplx_verbs_queue *queue, pplx_error *error) {
    const pplx_libibverbs *lib = queue->owner->lib;
    int ret = lib->destroy_cq(queue->cq);
    if (ret) return fail(error, "ibv_destroy_cq", ret);
    lib->destroy_comp_channel(queue->channel);
    free(queue);
    return PPLX_OK;
}

static int queue_arm(pplx_verbs_queue *queue) {
    take_events(queue);
    return ibv_req_notify_cq(queue->cq, 0);
}

static pplx_status status_of(enum ibv_wc_status status) {
    switch (status) {
    case IBV_WC_SUCCESS: return PPLX_OK;
    case IBV_WC_REM_ACCESS_ERR: return PPLX_REMOTE_ACCESS;
    case IBV_WC_LOC_PROT_ERR: return PPLX_LOCAL_ACCESS;
    case IBV_WC_LOC_LEN_ERR: return PPLX_TRUNCATED; /* of a receive: what we send is measured before */
    case IBV_WC_REM_INV_REQ_ERR: return PPLX_TRUNCATED;
    case IBV_WC_RETRY_EXC_ERR: return PPLX_PEER_LOST;
    case IBV_WC_WR_FLUSH_ERR: return PPLX_FLUSHED;
    default: return PPLX_TRANSPORT;
    }
}

static int queue_read(pplx_verbs_queue *queue, pplx_verbs_completion *completions, int capacity) {
    struct ibv_wc wcs[VERBS_BATCH];
    const int n = ibv_poll_cq(queue->cq, capacity < VERBS_BATCH ? capacity : VERBS_BATCH, wcs);
    for (int i = 0; i < n; i++) {
        const struct ibv_wc *wc = &wcs[i];
        completions[i] = (pplx_verbs_completion){
            .id = wc->wr_id, .status = status_of(wc->status), .native = (int32_t)wc->status};
        if (wc->status != IBV_WC_SUCCESS) continue;
        completions[i].flags = wc->wc_flags;
        completions[i].nbytes = wc->byte_len;
        completions[i].remote_write = wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM;
        completions[i].has_imm = (wc->opcode & IBV_WC_RECV) && (wc->wc_flags & IBV_WC_WITH_IMM);
        if (completions[i].has_imm) completions[i].imm = ntohl(wc->imm_data);
    }
    return n;
}

/* ---- queue pair ---- */

static uint32_t least(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* A device answers so many at a time, and asks for so many: two limits. */
static uint32_t reads_of(int limit) { return limit < 0 ? 0 : least((uint32_t)limit, MAX_READS); }

/* What a peer may do is said by each memory. */
static int to_init(const pplx_verbs_pair *pair) {
    const pplx_verbs_context *context = pair->owner;
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT,
                               .pkey_index = context->port.pkey_index,
                               .port_num = context->port.number,
                               .qp_access_flags = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE};
    return context->lib->modify_qp(pair->qp, &attr,
                                   IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

/* Opened in INIT, so that receives can be posted before the peer is known. */
static pplx_status pair_open(pplx_verbs_context *context, struct ibv_pd *pd, pplx_verbs_queue *sends,
                             pplx_verbs_queue *receives, uint32_t send_depth, uint32_t receive_depth,
                             pplx_verbs_pair **out, pplx_verbs_address *address, pplx_error *error) {
    pplx_verbs_pair *pair = calloc(1, sizeof *pair);
    if (!pair) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    struct ibv_qp_init_attr attr = {.send_cq = sends->cq,
                                    .recv_cq = receives->cq,
                                    .cap = {.max_send_wr = send_depth,
                                            .max_recv_wr = receive_depth,
                                            .max_send_sge = 1,
                                            .max_recv_sge = 1,
                                            .max_inline_data = WANTED_INLINE},
                                    .qp_type = IBV_QPT_RC};
    pair->owner = context;
    errno = 0;
    pair->qp = context->lib->create_qp(pd, &attr);
    if (!pair->qp) { /* some devices refuse instead of giving less */
        attr.cap.max_inline_data = 0;
        pair->qp = context->lib->create_qp(pd, &attr);
    }
    if (!pair->qp) {
        free(pair);
        return fail(error, "ibv_create_qp", errno);
    }
    pair->max_inline = attr.cap.max_inline_data;
    /* Where it starts need not be secret: it only tells packets of an earlier connection apart. */
    if (getrandom(&pair->psn, sizeof pair->psn, 0) != sizeof pair->psn) pair->psn = pair->qp->qp_num;
    pair->psn &= PSN_MASK;
    int ret = to_init(pair);
    if (ret) {
        context->lib->destroy_qp(pair->qp);
        free(pair);
        return fail(error, "ibv_modify_qp to INIT", ret);
    }
    *address = (pplx_verbs_address){.number = pair->qp->qp_num,
                                    .psn = pair->psn,
                                    .mtu = verbs_mtu_nbytes((uint8_t)context->port.attr.active_mtu),
                                    .lid = context->port.attr.lid,
                                    .reads = reads_of(context->attr.max_qp_rd_atom),
                                    .grh = context->port.grh};
    if (context->port.ngids) memcpy(address->gid, context->port.gids[0].gid.raw, sizeof address->gid);
    *out = pair;
    return PPLX_OK;
}

static enum ibv_mtu mtu_of(uint32_t nbytes) {
    enum ibv_mtu mtu = IBV_MTU_256;
    while (mtu < IBV_MTU_4096 && verbs_mtu_nbytes((uint8_t)(mtu + 1)) <= nbytes) mtu++;
    return mtu;
}

static void fill_route(const pplx_verbs_context *context, const pplx_verbs_address *peer, struct ibv_ah_attr *ah) {
    static const union ibv_gid none;
    union ibv_gid gid;
    memcpy(gid.raw, peer->gid, sizeof gid.raw);
    verbs_route(&context->port, &context->options, context->port.ngids ? &context->port.gids[0] : NULL,
                context->port.ethernet || memcmp(&gid, &none, sizeof none) != 0 ? &gid : NULL, (uint16_t)peer->lid,
                peer->grh, ah);
}

static pplx_status pair_connect(pplx_verbs_pair *pair, const pplx_verbs_address *peer,
                                const pplx_verbs_connection *connection, pplx_error *error) {
    const pplx_verbs_context *context = pair->owner;
    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_RTR,
        .path_mtu = mtu_of(least(verbs_mtu_nbytes((uint8_t)context->port.attr.active_mtu), peer->mtu)),
        .dest_qp_num = peer->number & PSN_MASK,
        .rq_psn = peer->psn & PSN_MASK,
        .max_dest_rd_atomic = (uint8_t)reads_of(context->attr.max_qp_rd_atom),
        .min_rnr_timer = RNR_TIMER};
    fill_route(context, peer, &attr.ah_attr);
    int ret = context->lib->modify_qp(pair->qp, &attr,
                                      IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                          IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
    if (ret) return fail(error, "ibv_modify_qp to RTR", ret);
    attr = (struct ibv_qp_attr){
        .qp_state = IBV_QPS_RTS,
        .timeout = (uint8_t)connection->timeout,
        .retry_cnt = (uint8_t)connection->retries,
        .rnr_retry = (uint8_t)connection->rnr_retries,
        .sq_psn = pair->psn,
        .max_rd_atomic = (uint8_t)least(reads_of(context->attr.max_qp_init_rd_atom), peer->reads)};
    ret = context->lib->modify_qp(pair->qp, &attr,
                                  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                      IBV_QP_MAX_QP_RD_ATOMIC);
    return ret ? fail(error, "ibv_modify_qp to RTS", ret) : PPLX_OK;
}

static pplx_status pair_break(pplx_verbs_pair *pair, pplx_error *error) {
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
    int ret = pair->owner->lib->modify_qp(pair->qp, &attr, IBV_QP_STATE);
    return ret ? fail(error, "ibv_modify_qp to ERR", ret) : PPLX_OK;
}

static int pair_state(pplx_verbs_pair *pair) {
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    if (pair->owner->lib->query_qp(pair->qp, &attr, IBV_QP_STATE, &init)) return PPLX_VERBS_BROKEN;
    switch (attr.qp_state) {
    case IBV_QPS_RESET:
    case IBV_QPS_INIT: return PPLX_VERBS_OPEN;
    case IBV_QPS_RTR:
    case IBV_QPS_RTS:
    case IBV_QPS_SQD: return PPLX_VERBS_CONNECTED;
    default: return PPLX_VERBS_BROKEN;
    }
}

static pplx_status pair_close(pplx_verbs_pair *pair, pplx_error *error) {
    int ret = pair->owner->lib->destroy_qp(pair->qp);
    if (ret) return fail(error, "ibv_destroy_qp", ret);
    free(pair);
    return PPLX_OK;
}

static pplx_status posted(int ret, int32_t *native) {
    if (!ret) return PPLX_OK;
    if (ret < 0) ret = -ret;
    *native = ret;
    return ret == ENOMEM ? PPLX_AGAIN : ret == EINVAL ? PPLX_INVALID : PPLX_TRANSPORT;
}

static pplx_status post(pplx_verbs_pair *pair, const pplx_verbs_request *request, int32_t *native) {
    struct ibv_sge sge = {request->local_address, (uint32_t)request->nbytes, request->lkey};
    *native = 0;
    if (request->opcode == PPLX_RECV) {
        struct ibv_recv_wr wr = {.wr_id = request->id, .sg_list = &sge, .num_sge = request->nbytes ? 1 : 0}, *bad;
        return posted(ibv_post_recv(pair->qp, &wr, &bad), native);
    }
    struct ibv_send_wr wr = {.wr_id = request->id,
                             .sg_list = &sge,
                             .num_sge = request->nbytes ? 1 : 0,
                             .send_flags = IBV_SEND_SIGNALED,
                             .imm_data = htonl(request->imm)},
                       *bad;
    if (request->opcode == PPLX_SEND) {
        wr.opcode = request->has_imm ? IBV_WR_SEND_WITH_IMM : IBV_WR_SEND;
    } else {
        wr.opcode = request->opcode == PPLX_READ ? IBV_WR_RDMA_READ
                    : request->has_imm           ? IBV_WR_RDMA_WRITE_WITH_IMM
                                                 : IBV_WR_RDMA_WRITE;
        wr.wr.rdma.remote_addr = request->remote_address;
        wr.wr.rdma.rkey = request->rkey;
    }
    if (request->opcode != PPLX_READ && request->nbytes && request->nbytes <= pair->max_inline)
        wr.send_flags |= IBV_SEND_INLINE;
    return posted(ibv_post_send(pair->qp, &wr, &bad), native);
}

/* ibv_wc_status_str() says the same; these are for who reads them in a sentence. */
static const char *status_text(int native) {
    switch (native) {
    case IBV_WC_SUCCESS: return "success";
    case IBV_WC_LOC_LEN_ERR: return "local length error: the message was longer than the receive it met";
    case IBV_WC_LOC_QP_OP_ERR: return "local queue pair operation error";
    case IBV_WC_LOC_PROT_ERR: return "local protection error: the memory is not registered for this";
    case IBV_WC_WR_FLUSH_ERR: return "flushed: its queue pair was broken or closed before this was done";
    case IBV_WC_LOC_ACCESS_ERR: return "local access error";
    case IBV_WC_REM_INV_REQ_ERR:
        return "remote invalid request: the peer's receive was too short, or it does not allow this";
    case IBV_WC_REM_ACCESS_ERR: return "remote access error: the key is wrong, or the range is not inside its memory";
    case IBV_WC_REM_OP_ERR: return "remote operation error";
    case IBV_WC_RETRY_EXC_ERR: return "the peer does not answer, or has closed its queue pair: retries exceeded";
    case IBV_WC_RNR_RETRY_EXC_ERR: return "the peer has posted no receive: retries exceeded";
    case IBV_WC_FATAL_ERR: return "fatal error of the device";
    case IBV_WC_RESP_TIMEOUT_ERR: return "response timeout";
    default: return "error of the device";
    }
}

const pplx_verbs_api *pplx_verbs_objects(void) {
    static const pplx_verbs_api api = {
        .context_open = context_open,
        .context_close = context_close,
        .pd_open = pd_open,
        .pd_close = pd_close,
        .memory_open = memory_open,
        .memory_close = memory_close,
        .queue_open = queue_open,
        .queue_close = queue_close,
        .queue_arm = queue_arm,
        .queue_read = queue_read,
        .pair_open = pair_open,
        .pair_connect = pair_connect,
        .pair_break = pair_break,
        .pair_state = pair_state,
        .pair_close = pair_close,
        .post = post,
        .status_text = status_text,
    };
    return &api;
}

#else

#include <stdio.h>

static pplx_status context_open(const char *device, const pplx_option *options, size_t noptions,
                                pplx_verbs_context **context, pplx_verbs_port *port, pplx_error *error) {
    (void)device, (void)options, (void)noptions, (void)context, (void)port;
    *error = (pplx_error){.status = PPLX_UNAVAILABLE};
    snprintf(error->text, sizeof error->text,
             "this build has no libibverbs: its headers were not found when it was compiled; "
             "apt-get install libibverbs-dev and rebuild, or install a wheel");
    return PPLX_UNAVAILABLE;
}

static const char *status_text(int native) {
    (void)native;
    return "error of the device";
}

const pplx_verbs_api *pplx_verbs_objects(void) {
    static const pplx_verbs_api api = {.context_open = context_open, .status_text = status_text};
    return &api;
}

#endif
