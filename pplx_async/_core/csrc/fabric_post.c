/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Posting: work requests become fi_writemsg, fi_readmsg, fi_sendmsg and fi_recvmsg. */
#if PPLX_HAVE_LIBFABRIC

#include <rdma/fi_rma.h>

#include "fabric_internal.h"

/* Local memory is checked here for every provider: EFA would fail the completion, tcp would just
 * read whatever lies at the address. */
pplx_status fabric_check(const fabric_endpoint *endpoint, const pplx_work_request *request) {
    const fabric_mr *mr = (const fabric_mr *)request->local_mr;
    if (!request->op || !mr || request->opcode > PPLX_RECV) return PPLX_INVALID;
    if (endpoint->closing || !endpoint->ep) return PPLX_CLOSED;
    if (request->nbytes > endpoint->domain->caps.max_message) return PPLX_TOO_LARGE;
    if (mr->domain != endpoint->domain || request->local_address < mr->address || request->nbytes > mr->nbytes ||
        request->local_address - mr->address > mr->nbytes - request->nbytes)
        return PPLX_LOCAL_ACCESS;
    return PPLX_OK;
}

/* Our own caps: tcp takes any number of posts. One message may exceed the cap on bytes, alone;
 * immediates alone have room behind data. */
static bool fits(const fabric_endpoint *endpoint, const pplx_work_request *request, uint32_t more,
                 uint64_t more_bytes) {
    const pplx_caps *caps = &endpoint->domain->caps;
    if (request->opcode == PPLX_RECV) return endpoint->receives + more < caps->max_inflight;
    if (request->opcode == PPLX_WRITE_IMM && request->nbytes == 0)
        return endpoint->peer && endpoint->inflight + more < caps->max_inflight + PPLX_RESERVED_IMMS;
    uint64_t bytes = endpoint->inflight_bytes + more_bytes;
    return endpoint->peer && endpoint->inflight + more < caps->max_inflight &&
           (!bytes || bytes + request->nbytes <= caps->max_inflight_bytes);
}

static ssize_t post_receive(fabric_endpoint *endpoint, fi_addr_t peer, fabric_op *op, uint64_t address, uint64_t nbytes,
                            fabric_mr *mr) {
    struct iovec iov = {(void *)(uintptr_t)address, nbytes};
    struct fi_msg message = {.msg_iov = &iov, .desc = &mr->desc, .iov_count = 1, .addr = peer, .context = op};
    return fi_recvmsg(endpoint->ep, &message, FI_COMPLETION);
}

static ssize_t post_send(fabric_endpoint *endpoint, fi_addr_t peer, fabric_op *op, const pplx_work_request *request,
                         uint64_t flags) {
    struct iovec iov = {(void *)(uintptr_t)request->local_address, request->nbytes};
    struct fi_msg message = {
        .msg_iov = &iov, .desc = &((fabric_mr *)request->local_mr)->desc, .iov_count = 1, .addr = peer, .context = op};
    return fi_sendmsg(endpoint->ep, &message, flags | FI_DELIVERY_COMPLETE);
}

/* A write of no bytes keeps its one iov, of length 0, with a valid descriptor and key: iov_count 0
 * crashes some providers, key 0 vanishes without a word on tcp, and EFA insists (2.5.1).
 *
 * FI_DELIVERY_COMPLETE must be in the flags of the call, fi_writemsg() ignores those of the
 * endpoint. Without it tcp reports success for a write that the target refused. */
static ssize_t post_rma(fabric_endpoint *endpoint, fi_addr_t peer, fabric_op *op, const pplx_work_request *request,
                        uint64_t flags) {
    struct iovec iov = {(void *)(uintptr_t)request->local_address, request->nbytes};
    struct fi_rma_iov remote = {request->remote_address, request->nbytes, request->remote_key};
    struct fi_msg_rma message = {.msg_iov = &iov,
                                 .desc = &((fabric_mr *)request->local_mr)->desc,
                                 .iov_count = 1,
                                 .addr = peer,
                                 .rma_iov = &remote,
                                 .rma_iov_count = 1,
                                 .context = op,
                                 .data = request->imm};
    if (request->opcode == PPLX_READ) return fi_readmsg(endpoint->ep, &message, flags);
    if (request->opcode == PPLX_WRITE_IMM) flags |= FI_REMOTE_CQ_DATA;
    return fi_writemsg(endpoint->ep, &message, flags | FI_DELIVERY_COMPLETE);
}

static void prepare(fabric_endpoint *endpoint, fabric_op *op, const pplx_work_request *request) {
    op->endpoint = endpoint;
    op->opcode = (uint8_t)request->opcode;
    op->nbytes = request->nbytes & ((1ull << 56) - 1);
}

ssize_t fabric_post_to(fabric_endpoint *endpoint, fi_addr_t peer, const pplx_work_request *request, uint64_t flags) {
    fabric_op *op = (fabric_op *)request->op;
    ssize_t ret = 0;
    prepare(endpoint, op, request);
    if (request->opcode == PPLX_RECV) {
        ret = post_receive(endpoint, peer, op, request->local_address, request->nbytes, (fabric_mr *)request->local_mr);
        if (!ret) endpoint->receives++;
    } else {
        ret = request->opcode == PPLX_SEND ? post_send(endpoint, peer, op, request, flags)
                                           : post_rma(endpoint, peer, op, request, flags);
        if (!ret) {
            endpoint->domain->inflight++;
            endpoint->inflight++;
            endpoint->inflight_bytes += request->nbytes;
        }
    }
    if (!ret) fabric_list_append(&endpoint->posted, &op->link);
    return ret;
}

/* FI_DIRECTED_RECV: where one endpoint serves all peers there is one queue of RECVs for each, which
 * are directed once the peer is known. */
static fi_addr_t receives_from(const fabric_endpoint *endpoint) {
    return endpoint->domain->shared_ep ? endpoint->peer->address : FI_ADDR_UNSPEC;
}

static ssize_t post_one(fabric_endpoint *endpoint, const pplx_work_request *request, uint64_t flags) {
    fabric_op *op = (fabric_op *)request->op;
    if (request->opcode != PPLX_RECV) return fabric_post_to(endpoint, endpoint->peer->address, request, flags);
    if (endpoint->domain->shared_ep && (!endpoint->peer || !fabric_list_empty(&endpoint->waiting))) {
        prepare(endpoint, op, request);
        op->state.receive.local_address = request->local_address;
        op->state.receive.local_mr = (fabric_mr *)request->local_mr;
        fabric_list_append(&endpoint->waiting, &op->link);
        endpoint->domain->waiting++;
        endpoint->receives++;
        return 0;
    }
    return fabric_post_to(endpoint, receives_from(endpoint), request, flags);
}

void fabric_post_waiting(fabric_endpoint *endpoint) {
    while (endpoint->peer && !endpoint->closing && !fabric_list_empty(&endpoint->waiting)) {
        fabric_op *op = fabric_op_of(endpoint->waiting.next);
        uint64_t address = op->state.receive.local_address;
        fabric_mr *mr = op->state.receive.local_mr;
        ssize_t ret = post_receive(endpoint, receives_from(endpoint), op, address, op->nbytes, mr);
        if (ret == -FI_EAGAIN) {
            op->state.receive.local_address = address; /* the library may have used its words */
            op->state.receive.local_mr = mr;
            return;
        }
        fabric_list_remove(&op->link);
        endpoint->domain->waiting--;
        if (ret == 0) {
            fabric_list_append(&endpoint->posted, &op->link);
        } else {
            endpoint->receives--;
            fabric_keep(endpoint->domain, op, fabric_status((int)-ret), (int32_t)-ret, 0);
        }
    }
}

/* FI_MORE promises that another post follows at once, so it is given to a write or read only if
 * the next request passes our own checks. The library may refuse that one all the same, and so there has to be room
 * for who rings then: a queue that is full of those that wait for it would never be rung. */
static bool more_follows(const fabric_endpoint *endpoint, const pplx_work_request *request, size_t left) {
    const fabric_domain *domain = endpoint->domain;
    const size_t taken = (size_t)domain->inflight + domain->doorbell_out + 1; /* with this one */
    return domain->quirks->more && left > 1 && taken < domain->info->tx_attr->size &&
           (request->opcode == PPLX_WRITE || request->opcode == PPLX_WRITE_IMM) && request[1].opcode != PPLX_RECV &&
           fabric_check(endpoint, request + 1) == PPLX_OK && fits(endpoint, request + 1, 1, request->nbytes);
}

void fabric_ring(fabric_domain *domain) {
    if (domain->doorbell_out || domain->broken) return;
    const struct fabric_last *last = &domain->last;
    struct iovec iov = {(void *)(uintptr_t)last->local_address, 0};
    struct fi_rma_iov remote = {last->remote_address, 0, last->remote_key};
    struct fi_msg_rma message = {.msg_iov = &iov,
                                 .desc = (void *[]){last->desc},
                                 .iov_count = 1,
                                 .addr = last->peer,
                                 .rma_iov = &remote,
                                 .rma_iov_count = 1,
                                 .context = &domain->doorbell};
    ssize_t ret = fi_writemsg(domain->shared_ep, &message, FI_COMPLETION | FI_DELIVERY_COMPLETE);
    domain->doorbell_out = ret == 0;
    domain->unrung = ret == -FI_EAGAIN;
}

/* Nothing that was posted may wait for a request that will perhaps never come: the engine may drop
 * it. Those behind the doorbell keep its regions open: until the last of them completes, and then
 * somebody has rung (fabric_finish()). */
static void note_bell(fabric_endpoint *endpoint, const pplx_work_request *request, bool more) {
    fabric_domain *domain = endpoint->domain;
    domain->unrung = more;
    if (more)
        domain->last = (struct fabric_last){.op = (const fabric_op *)request->op,
                                            .peer = endpoint->peer->address,
                                            .local_address = request->local_address,
                                            .remote_address = request->remote_address,
                                            .remote_key = request->remote_key,
                                            .desc = ((fabric_mr *)request->local_mr)->desc};
}

pplx_status fabric_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count, size_t *posted,
                        int32_t *provider_error) {
    fabric_endpoint *endpoint = (fabric_endpoint *)handle;
    fabric_domain *domain = endpoint->domain;
    pplx_status status = PPLX_OK;
    size_t done = 0;
    *provider_error = 0;
    for (; done < count; done++) {
        const pplx_work_request *request = &requests[done];
        status = fabric_check(endpoint, request);
        if (status != PPLX_OK) break;
        if (domain->broken) {
            status = PPLX_TRANSPORT;
            *provider_error = domain->broken;
            break;
        }
        if (!fits(endpoint, request, 0, 0) || endpoint->settled_ns) {
            status = PPLX_AGAIN;
            break;
        }
        bool more = more_follows(endpoint, request, count - done);
        ssize_t ret = post_one(endpoint, request, more ? FI_COMPLETION | FI_MORE : FI_COMPLETION);
        if (ret) {
            status = ret == -FI_EAGAIN ? PPLX_AGAIN : fabric_status((int)-ret);
            *provider_error = ret == -FI_EAGAIN ? 0 : (int32_t)-ret;
            if (status == PPLX_TRANSPORT || status == PPLX_CONNECTION) fabric_unsettle(endpoint);
            break;
        }
        if (domain->quirks->more && request->opcode != PPLX_RECV) note_bell(endpoint, request, more);
    }
    *posted = done;
    return status;
}

#else
typedef int pplx_fabric_post_left_out;
#endif
