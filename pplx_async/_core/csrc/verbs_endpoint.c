/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The way to one peer: two queue pairs; open, connect, and close as a fence. */
#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "verbs_internal.h"

enum { FLUSH_MS = 50 };

static uint32_t bucket_of(uint32_t qpn) { return (qpn * UINT32_C(2654435761)) >> 22; }

_Static_assert(VERBS_BUCKETS == 1 << 10, "bucket_of() gives 10 bits");

verbs_queue *verbs_queue_of(const verbs_domain *domain, uint32_t qpn) {
    verbs_queue *queue = domain->buckets[bucket_of(qpn)];
    while (queue && queue->qp->qp_num != qpn) queue = queue->next_in_bucket;
    return queue;
}

static void leave_bucket(verbs_domain *domain, const verbs_queue *queue) {
    verbs_queue **at = &domain->buckets[bucket_of(queue->qp->qp_num)];
    while (*at && *at != queue) at = &(*at)->next_in_bucket;
    if (*at) *at = queue->next_in_bucket;
}

/* A slot, and a generation of it: completions of an endpoint that had it before name another one. */
static bool take_slot(verbs_domain *domain, verbs_endpoint *endpoint) {
    for (uint32_t tried = 0; tried < VERBS_MAX_ENDPOINTS; tried++) {
        const uint32_t slot = domain->next_slot++ % VERBS_MAX_ENDPOINTS;
        if (domain->queues[2 * slot]) continue;
        domain->generations[slot] = (uint16_t)((domain->generations[slot] + 1) % VERBS_GENERATIONS);
        endpoint->slot = slot;
        for (int i = 0; i < 2; i++) {
            endpoint->queues[i].wr_id = verbs_wr_id(domain->generations[slot], slot, (enum verbs_which)i);
            domain->queues[2 * slot + (uint32_t)i] = &endpoint->queues[i];
        }
        return true;
    }
    return false;
}

/* While its queue of writes is made new there are messages all the same. */
void verbs_enter(verbs_endpoint *endpoint, enum verbs_state state) {
    const uint32_t most = endpoint->domain->caps.max_inflight;
    endpoint->state = (uint8_t)state;
    endpoint->queues[VERBS_MESSAGES].most = state >= VERBS_UP && state < VERBS_LOST ? most : 0;
    endpoint->queues[VERBS_WRITES].most = state == VERBS_UP ? most : 0;
}

/* Nothing that the device says is of it any more. */
static void forget(verbs_endpoint *endpoint) {
    verbs_domain *domain = endpoint->domain;
    for (int i = 0; i < 2; i++)
        if (endpoint->queues[i].qp) leave_bucket(domain, &endpoint->queues[i]);
    domain->queues[2 * endpoint->slot] = domain->queues[2 * endpoint->slot + 1] = NULL;
}

static bool random_psns(verbs_endpoint *endpoint) {
    uint32_t psns[2];
    if (getrandom(psns, sizeof psns, 0) != sizeof psns) return false;
    for (int i = 0; i < 2; i++) endpoint->queues[i].psn = psns[i] & 0xffffff;
    return true;
}

static void write_own_address(verbs_endpoint *endpoint) {
    const verbs_domain *domain = endpoint->domain;
    const verbs_port *port = &domain->port;
    const int depth = domain->attr.max_qp_rd_atom;
    verbs_address own = {.ethernet = port->ethernet,
                         .grh = port->grh,
                         .mtu = (uint8_t)port->attr.active_mtu,
                         .read_depth = (uint8_t)(depth < 16 ? depth : 16),
                         .lid = port->attr.lid,
                         .pkey = port->pkey,
                         .message_nbytes = domain->message_nbytes,
                         .ngids = port->ngids};
    for (int i = 0; i < 2; i++) {
        own.qpn[i] = endpoint->queues[i].qp->qp_num;
        own.psn[i] = endpoint->queues[i].psn;
    }
    for (uint32_t i = 0; i < port->ngids; i++) own.gids[i] = port->gids[i].gid;
    endpoint->own_nbytes = verbs_address_write(&own, endpoint->own, sizeof endpoint->own);
}

static pplx_status open_queue(verbs_endpoint *endpoint, enum verbs_which which, struct ibv_srq *srq,
                              pplx_error *error) {
    verbs_domain *domain = endpoint->domain;
    verbs_queue *queue = &endpoint->queues[which];
    queue->endpoint = endpoint;
    queue->which = (uint8_t)which;
    const int native = verbs_qp_open(queue, srq);
    if (queue->qp) {
        verbs_queue **bucket = &domain->buckets[bucket_of(queue->qp->qp_num)];
        queue->next_in_bucket = *bucket;
        *bucket = queue;
    }
    if (!native) return PPLX_OK;
    return verbs_fail(error, native == ENOMEM ? PPLX_NO_MEMORY : PPLX_NATIVE, native, "a queue pair of %s: %s%s",
                      domain->context->device->name, strerror(native),
                      native == ENOMEM ? "; the device has no more, or raise the limit on locked memory (ulimit -l)"
                                       : "");
}

pplx_status verbs_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **out, void *address,
                                size_t *nbytes, pplx_error *error) {
    verbs_domain *domain = (verbs_domain *)handle;
    if (domain->broken || domain->port_down)
        return verbs_fail(error, PPLX_NATIVE, domain->broken_error, "%s: %s", domain->context->device->name,
                          domain->broken ? "the device has failed" : "its port is down");
    if (!verbs_port_refresh(domain->lib, domain->context, &domain->options, &domain->port))
        return verbs_fail(error, PPLX_NATIVE, 0, "port %u of %s has lost the address that it was chosen with",
                          domain->port.number, domain->context->device->name);
    verbs_endpoint *endpoint = calloc(1, sizeof *endpoint);
    if (!endpoint) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    endpoint->domain = domain;
    endpoint->last_receive = &endpoint->receives;
    if (!take_slot(domain, endpoint)) {
        free(endpoint);
        return verbs_fail(error, PPLX_NO_MEMORY, 0, "%s has %d endpoints already", domain->context->device->name,
                          VERBS_MAX_ENDPOINTS);
    }
    pplx_status status = random_psns(endpoint) ? PPLX_OK : verbs_fail(error, PPLX_NATIVE, errno, "getrandom");
    if (status == PPLX_OK) status = open_queue(endpoint, VERBS_MESSAGES, domain->messages, error);
    if (status == PPLX_OK) status = open_queue(endpoint, VERBS_WRITES, domain->imms, error);
    if (status == PPLX_OK) {
        write_own_address(endpoint);
        if (endpoint->own_nbytes == 0 || endpoint->own_nbytes > *nbytes)
            status = verbs_fail(error, PPLX_TOO_LARGE, 0, "the address takes %zu B", endpoint->own_nbytes);
    }
    if (status != PPLX_OK) {
        forget(endpoint);
        verbs_queues_destroy(endpoint);
        return status;
    }
    memcpy(address, endpoint->own, endpoint->own_nbytes);
    *nbytes = endpoint->own_nbytes;
    endpoint->next = domain->endpoints;
    if (endpoint->next) endpoint->next->prev = endpoint;
    domain->endpoints = endpoint;
    *out = (pplx_provider_endpoint *)endpoint;
    return PPLX_OK;
}

/* Two ports hear each other that are in one partition, at least one of them as a full member. */
static bool share_partition(uint16_t a, uint16_t b) { return ((a ^ b) & 0x7fff) == 0 && ((a | b) & 0x8000); }

static pplx_status check_address(verbs_endpoint *endpoint, const void *address, size_t nbytes, pplx_error *error) {
    const verbs_port *port = &endpoint->domain->port;
    union ibv_gid own[VERBS_MAX_GIDS];
    if (!verbs_address_read(&endpoint->peer, address, nbytes))
        return verbs_fail(error, PPLX_INVALID, 0, "not an address of this fabric, or of another version of it: %zu B",
                          nbytes);
    if (nbytes == endpoint->own_nbytes && memcmp(address, endpoint->own, nbytes) == 0)
        return verbs_fail(error, PPLX_INVALID, 0, "the endpoint's own address");
    if (endpoint->peer.ethernet != port->ethernet)
        return verbs_fail(error, PPLX_INVALID, 0, "the peer's NIC speaks %s, ours (%s) %s",
                          endpoint->peer.ethernet ? "RoCE" : "InfiniBand", endpoint->domain->context->device->name,
                          port->ethernet ? "RoCE" : "InfiniBand");
    if (!share_partition(port->pkey, endpoint->peer.pkey))
        return verbs_fail(
            error, PPLX_INVALID, 0,
            "the peer's NIC has P_Key 0x%04x, ours (%s) 0x%04x: they are in no partition together, or both "
            "as limited members; verbs_pkey_index names another",
            endpoint->peer.pkey, endpoint->domain->context->device->name, port->pkey);
    if (!port->ethernet) return PPLX_OK; /* the first GIDs, if any: those of the ports */
    for (uint32_t i = 0; i < port->ngids; i++) own[i] = port->gids[i].gid;
    if (!verbs_gids_match(own, port->ngids, endpoint->peer.gids, endpoint->peer.ngids, &endpoint->gid,
                          &endpoint->peer_gid))
        return verbs_fail(error, PPLX_INVALID, 0,
                          "one NIC has IPv4 GIDs only, the other one IPv6: give both an "
                          "address of the same kind");
    return PPLX_OK;
}

pplx_status verbs_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                   pplx_error *error) {
    verbs_endpoint *endpoint = (verbs_endpoint *)handle;
    if (endpoint->state != VERBS_OPEN) return verbs_fail(error, PPLX_INVALID, 0, "the endpoint is connected already");
    pplx_status status = check_address(endpoint, address, nbytes, error);
    if (status != PPLX_OK) return status;
    for (int i = 0; i < 2; i++) {
        verbs_queue *queue = &endpoint->queues[i];
        const int native = verbs_qp_connect(queue, queue->psn, endpoint->peer.psn[i]);
        if (native)
            return verbs_fail(error, PPLX_NATIVE, native, "ibv_modify_qp of %s to the peer's address: %s",
                              endpoint->domain->context->device->name, strerror(native));
    }
    /* One of the two greets; the other one answers. */
    endpoint->first = nbytes < endpoint->own_nbytes ||
                      (nbytes == endpoint->own_nbytes && memcmp(endpoint->own, address, nbytes) < 0);
    verbs_enter(endpoint, VERBS_GREETING);
    if (endpoint->first) verbs_greet(endpoint);
    return PPLX_OK;
}

/* What it has received goes back to the shared queue. */
static void drop_messages(verbs_endpoint *endpoint) {
    while (endpoint->nwaiting) verbs_buffer_used(endpoint->domain, endpoint->waiting[--endpoint->nwaiting]);
}

static bool is_flushed(const verbs_queue *queue) {
    return queue->first == queue->next || (queue->failed && queue->seen == queue->next);
}

/* All of what it was told is read, until nothing more can come. PPLX_AGAIN: no memory for that. */
static pplx_status read_out(verbs_endpoint *endpoint) {
    const verbs_domain *domain = endpoint->domain;
    const uint64_t until = verbs_now_ns() + FLUSH_MS * UINT64_C(1000000);
    do {
        if (verbs_drain(endpoint->domain, endpoint) != PPLX_OK) return PPLX_AGAIN;
    } while (!domain->broken && !(is_flushed(&endpoint->queues[0]) && is_flushed(&endpoint->queues[1])) &&
             verbs_now_ns() < until);
    return PPLX_OK;
}

/* The fence. In ERR a queue pair neither sends nor answers any more. What it had finished by then lies in the
 * completion queue, or comes to lie there in a moment: it is read, since destroying a queue pair may take it
 * out. After that the device knows nothing of it.
 *
 * Destroying may take long if something was under way. RESET is as good a fence, and takes no time. */
pplx_status verbs_endpoint_close(pplx_provider_endpoint *handle) {
    verbs_endpoint *endpoint = (verbs_endpoint *)handle;
    verbs_domain *domain = endpoint->domain;
    if (endpoint->state != VERBS_CLOSING) {
        endpoint->lingers = endpoint->state == VERBS_LOST;
        for (int i = 0; i < 2; i++) endpoint->lingers |= endpoint->queues[i].first != endpoint->queues[i].next;
        verbs_enter(endpoint, VERBS_CLOSING);
        verbs_calm(endpoint);
        for (int i = 0; i < 2; i++) verbs_qp_move(&endpoint->queues[i], IBV_QPS_ERR);
    }
    if (read_out(endpoint) != PPLX_OK) return PPLX_UNRELEASED;
    const bool reset = endpoint->lingers && verbs_qp_move(&endpoint->queues[0], IBV_QPS_RESET) == 0 &&
                       verbs_qp_move(&endpoint->queues[1], IBV_QPS_RESET) == 0;
    if (reset && verbs_drain(domain, endpoint) != PPLX_OK) return PPLX_UNRELEASED;
    verbs_forget_kept(domain, endpoint);
    for (int i = 0; i < 2; i++) domain->cq_room += (int32_t)(endpoint->queues[i].next - endpoint->queues[i].first);
    drop_messages(endpoint);
    verbs_receives_fill(domain);
    if (endpoint->prev)
        endpoint->prev->next = endpoint->next;
    else
        domain->endpoints = endpoint->next;
    if (endpoint->next) endpoint->next->prev = endpoint->prev;
    forget(endpoint);
    if (reset)
        verbs_queues_retire(endpoint);
    else
        verbs_queues_destroy(endpoint);
    return PPLX_OK;
}

#else
typedef int pplx_verbs_endpoint_left_out;
#endif
