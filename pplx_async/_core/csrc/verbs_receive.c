/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The two shared receive queues, and messages.
 *
 * Every immediate uses up a receive without a buffer, every message one with a buffer of the domain. A message
 * is copied into the oldest RECV of its endpoint; one that comes before its RECV waits in its buffer, and a peer
 * that has more than a few of those breaks the rules: it would use up the buffers of all. */
#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_internal.h"

enum { BUFFER_ALIGNMENT = 4096 };

static uint8_t *buffer_at(const verbs_domain *domain, uint32_t i) {
    return domain->buffers + (size_t)i * domain->message_nbytes;
}

void verbs_buffer_used(verbs_domain *domain, uint32_t buffer) {
    domain->reposts[domain->nreposts++] = (uint16_t)buffer;
    verbs_attend(domain);
}

static void fill_imms(verbs_domain *domain) {
    struct ibv_recv_wr wrs[VERBS_BATCH], *bad = NULL;
    while (domain->imms_used >= domain->imms_few) {
        const uint32_t n = domain->imms_used < VERBS_BATCH ? domain->imms_used : VERBS_BATCH;
        for (uint32_t i = 0; i < n; i++)
            wrs[i] = (struct ibv_recv_wr){.wr_id = verbs_receive_id(VERBS_WR_IMM, 0),
                                          .next = i + 1 < n ? &wrs[i + 1] : NULL};
        const int native = ibv_post_srq_recv(domain->imms, wrs, &bad);
        domain->imms_used -= native ? bad ? (uint32_t)(bad - wrs) : 0 : n;
        if (native) break; /* the next poll tries again */
    }
}

static void fill_messages(verbs_domain *domain) {
    while (domain->nreposts) {
        const uint32_t buffer = domain->reposts[domain->nreposts - 1];
        struct ibv_sge sge = {(uintptr_t)buffer_at(domain, buffer), domain->message_nbytes, domain->buffers_mr->lkey};
        struct ibv_recv_wr wr = {.wr_id = verbs_receive_id(VERBS_WR_MESSAGE, buffer), .sg_list = &sge, .num_sge = 1},
                           *bad = NULL;
        if (ibv_post_srq_recv(domain->messages, &wr, &bad)) break;
        domain->nreposts--;
    }
}

/* Immediates many at a time: as long as fewer are missing, enough are left. */
void verbs_receives_fill(verbs_domain *domain) {
    fill_imms(domain);
    if (domain->nreposts) fill_messages(domain);
}

static struct ibv_srq *open_srq(const verbs_domain *domain, uint32_t entries, uint32_t sges) {
    struct ibv_srq_init_attr attr = {.attr = {.max_wr = entries, .max_sge = sges}};
    return domain->lib->create_srq(domain->pd, &attr);
}

pplx_status verbs_receives_open(verbs_domain *domain, pplx_error *error) {
    const size_t nbytes = (size_t)domain->nmessages * domain->message_nbytes;
    const char *call = "ibv_create_srq";
    domain->imms = open_srq(domain, domain->imms_wanted, 1);
    if (domain->imms) domain->messages = open_srq(domain, domain->nmessages, 1);
    if (!domain->imms || !domain->messages) goto fail;
    domain->reposts = calloc(domain->nmessages, sizeof *domain->reposts);
    if (!domain->reposts || posix_memalign((void **)&domain->buffers, BUFFER_ALIGNMENT, nbytes)) {
        domain->buffers = NULL;
        return verbs_fail(error, PPLX_NO_MEMORY, 0, "no memory for %u messages", domain->nmessages);
    }
    call = "ibv_reg_mr of the buffers of messages";
    domain->buffers_mr = verbs_register(domain, domain->buffers, nbytes, IBV_ACCESS_LOCAL_WRITE);
    if (!domain->buffers_mr) goto fail;
    domain->imms_used = domain->imms_wanted;
    domain->imms_few = 1; /* now all of them */
    for (uint32_t i = domain->nmessages; i-- > 0;) verbs_buffer_used(domain, i);
    fill_imms(domain);
    fill_messages(domain);
    domain->imms_few = domain->imms_wanted < 4 ? 1 : domain->imms_wanted / 4;
    if (domain->imms_few > VERBS_BATCH) domain->imms_few = VERBS_BATCH;
    call = "ibv_post_srq_recv";
    if (!domain->imms_used && !domain->nreposts) return PPLX_OK;

fail:
    return verbs_fail(error, errno == ENOMEM ? PPLX_NO_MEMORY : PPLX_NATIVE, errno, "%s (%s): %s%s", call,
                      domain->context->device->name, strerror(errno),
                      errno == ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
}

void verbs_receives_close(verbs_domain *domain) {
    if (domain->imms) domain->lib->destroy_srq(domain->imms);
    if (domain->messages) domain->lib->destroy_srq(domain->messages);
    if (domain->buffers_mr) domain->lib->dereg_mr(domain->buffers_mr);
    free(domain->buffers);
    free(domain->reposts);
}

/* ---- RECVs ---- */

/* The oldest RECV takes the message. There is one, and room in the sink. */
static void deliver(verbs_endpoint *endpoint, uint32_t buffer, uint32_t nbytes, pplx_completion *completion) {
    verbs_domain *domain = endpoint->domain;
    verbs_op *op = endpoint->receives;
    verbs_sink sink = {completion, 0, 1};
    endpoint->receives = op->next;
    if (!endpoint->receives) endpoint->last_receive = &endpoint->receives;
    endpoint->nreceives--;
    const bool fits = nbytes <= op->nbytes;
    if (fits && nbytes) memcpy((void *)(uintptr_t)op->local_address, buffer_at(domain, buffer), nbytes);
    verbs_buffer_used(domain, buffer);
    verbs_emit(&sink, op, fits ? PPLX_OK : PPLX_TRUNCATED, 0, nbytes);
}

pplx_status verbs_post_receive(verbs_endpoint *endpoint, const pplx_work_request *request) {
    verbs_domain *domain = endpoint->domain;
    verbs_op *op = (verbs_op *)request->op;
    if (endpoint->state == VERBS_CLOSING) return PPLX_CLOSED;
    if (endpoint->state == VERBS_LOST) return PPLX_PEER_LOST;
    if (endpoint->nreceives == domain->caps.max_inflight) return PPLX_AGAIN;
    /* it is the processor that copies a message to where it belongs: not to a GPU */
    if (!(((const verbs_mr *)(const void *)request->local_mr)->send_flags & IBV_SEND_INLINE)) return PPLX_UNSUPPORTED;
    op->local_address = request->local_address;
    op->nbytes = request->nbytes;
    op->opcode = PPLX_RECV;
    op->next = NULL;
    *endpoint->last_receive = op;
    endpoint->last_receive = &op->next;
    endpoint->nreceives++;
    if (!endpoint->nwaiting || !verbs_reserve_kept(domain, 1)) return PPLX_OK;
    pplx_completion completion;
    deliver(endpoint, endpoint->waiting[0], endpoint->waiting_nbytes[0], &completion);
    endpoint->nwaiting--;
    memmove(endpoint->waiting, endpoint->waiting + 1, endpoint->nwaiting * sizeof endpoint->waiting[0]);
    memmove(endpoint->waiting_nbytes, endpoint->waiting_nbytes + 1,
            endpoint->nwaiting * sizeof endpoint->waiting_nbytes[0]);
    verbs_keep(domain, endpoint, &completion);
    return PPLX_OK;
}

bool verbs_message_arrived(verbs_domain *domain, const struct ibv_wc *wc, verbs_sink *sink) {
    const uint32_t buffer = (uint32_t)wc->wr_id % domain->nmessages;
    verbs_queue *queue = wc->status == IBV_WC_SUCCESS ? verbs_queue_of(domain, wc->qp_num) : NULL;
    verbs_endpoint *endpoint = queue && queue->which == VERBS_MESSAGES ? queue->endpoint : NULL;
    if (!endpoint || endpoint->state >= VERBS_LOST) {
        verbs_buffer_used(domain, buffer); /* its queue pair has failed, or is gone */
    } else if (wc->wc_flags & IBV_WC_WITH_IMM) {
        verbs_buffer_used(domain, buffer);
        verbs_control_arrived(endpoint, ntohl(wc->imm_data));
    } else if (endpoint->receives) {
        if (sink->count == sink->capacity) return false;
        deliver(endpoint, buffer, wc->byte_len, &sink->completions[sink->count++]);
    } else if (endpoint->nwaiting == VERBS_MAX_WAITING) {
        verbs_buffer_used(domain, buffer);
        verbs_lose(endpoint, 0);
    } else {
        endpoint->waiting[endpoint->nwaiting] = (uint16_t)buffer;
        endpoint->waiting_nbytes[endpoint->nwaiting++] = wc->byte_len;
    }
    return true;
}

#else
typedef int pplx_verbs_receive_left_out;
#endif
