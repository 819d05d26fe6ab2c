/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The way to one peer: open, connect, and close as a fence where the provider can. */
#if PPLX_HAVE_LIBFABRIC

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include <rdma/fi_cm.h>

#include "fabric_internal.h"

pplx_status fabric_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **out, void *address,
                                 size_t *nbytes, pplx_error *error) {
    fabric_domain *domain = (fabric_domain *)handle;
    pplx_status status = PPLX_OK;
    fabric_endpoint *endpoint = calloc(1, sizeof *endpoint);
    if (!endpoint) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    endpoint->domain = domain;
    fabric_list_init(&endpoint->posted);
    fabric_list_init(&endpoint->waiting);

    endpoint->ep = domain->shared_ep;
    endpoint->cq = domain->cq;
    if (domain->quirks->endpoint_per_peer) {
        status = fabric_ep_open(domain, &endpoint->ep, &endpoint->cq, error);
        if (status != PPLX_OK) goto fail;
        endpoint->wakes = domain->wait_fd >= 0 && fabric_cq_wakes(endpoint->cq);
    }
    size_t capacity = *nbytes;
    int ret = fi_getname(&endpoint->ep->fid, address, nbytes);
    if (ret || *nbytes > capacity || *nbytes > PPLX_ADDRESS_BYTES) {
        status = fabric_fail(error, ret ? PPLX_NATIVE : PPLX_TOO_LARGE, -ret, "fi_getname: %s",
                             ret ? domain->lib->strerror(-ret) : "the address is too long");
        goto fail;
    }
    fabric_list_append(&domain->endpoints, &endpoint->in_domain);
    *out = (pplx_provider_endpoint *)endpoint;
    return PPLX_OK;

fail:
    if (domain->quirks->endpoint_per_peer && endpoint->ep) {
        fi_close(&endpoint->ep->fid);
        fabric_cq_close(domain, endpoint->cq);
    }
    free(endpoint);
    return status;
}

pplx_status fabric_address_check(const struct fi_info *info, const void *own, size_t own_nbytes, const void *address,
                                 size_t nbytes, pplx_error *error) {
    unsigned char theirs[PPLX_ADDRESS_BYTES];
    static const unsigned char nothing[PPLX_ADDRESS_BYTES];
    uint32_t format = info->addr_format;
    if (nbytes > sizeof theirs || nbytes != own_nbytes || memcmp(address, nothing, nbytes) == 0)
        return fabric_fail(error, PPLX_INVALID, 0, "not an address of this fabric: %zu B, %zu B are expected", nbytes,
                           own_nbytes);
    memcpy(theirs, address, nbytes); /* aligned */
    if (format == FI_SOCKADDR_IN || (format == FI_SOCKADDR && nbytes == sizeof(struct sockaddr_in))) {
        struct sockaddr_in a, b;
        memcpy(&a, own, sizeof a);
        memcpy(&b, theirs, sizeof b);
        if (b.sin_family != AF_INET || !b.sin_port || !b.sin_addr.s_addr)
            return fabric_fail(error, PPLX_INVALID, 0, "not an IPv4 address and port");
        if (ntohl(a.sin_addr.s_addr) >> 24 == 127 && ntohl(b.sin_addr.s_addr) >> 24 != 127)
            return fabric_fail(error, PPLX_INVALID, 0, "the peer is beyond loopback, this end is bound to loopback");
    } else if (format == FI_SOCKADDR_IN6 || (format == FI_SOCKADDR && nbytes == sizeof(struct sockaddr_in6))) {
        struct sockaddr_in6 a, b;
        memcpy(&a, own, sizeof a);
        memcpy(&b, theirs, sizeof b);
        if (b.sin6_family != AF_INET6 || !b.sin6_port || IN6_IS_ADDR_UNSPECIFIED(&b.sin6_addr))
            return fabric_fail(error, PPLX_INVALID, 0, "not an IPv6 address and port");
        if (IN6_IS_ADDR_LOOPBACK(&a.sin6_addr) && !IN6_IS_ADDR_LOOPBACK(&b.sin6_addr))
            return fabric_fail(error, PPLX_INVALID, 0, "the peer is beyond loopback, this end is bound to loopback");
    }
    return PPLX_OK;
}

pplx_status fabric_peer_insert(fabric_domain *domain, const void *address, size_t nbytes, fabric_peer **out,
                               pplx_error *error) {
    fabric_peer *peer = domain->peers;
    while (peer && (peer->nbytes != nbytes || memcmp(peer->raw, address, nbytes) != 0)) peer = peer->next;
    if (!peer) {
        peer = calloc(1, sizeof *peer);
        if (!peer) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
        memcpy(peer->raw, address, nbytes);
        peer->nbytes = (uint32_t)nbytes;
        int inserted = fi_av_insert(domain->av, peer->raw, 1, &peer->address, 0, NULL);
        if (inserted != 1) {
            int native = inserted < 0 ? -inserted : FI_EADDRNOTAVAIL;
            free(peer);
            return fabric_fail(error, PPLX_NATIVE, native, "fi_av_insert (%s): %s", domain->quirks->name,
                               domain->lib->strerror(native));
        }
        peer->next = domain->peers;
        domain->peers = peer;
    }
    peer->references++;
    *out = peer;
    return PPLX_OK;
}

/* ... and not our own: the engine has no peer that is itself. */
static pplx_status check_address(fabric_endpoint *endpoint, const void *address, size_t nbytes, pplx_error *error) {
    unsigned char own[PPLX_ADDRESS_BYTES];
    size_t own_nbytes = sizeof own;
    int ret = fi_getname(&endpoint->ep->fid, own, &own_nbytes);
    if (ret) return fabric_fail(error, PPLX_NATIVE, -ret, "fi_getname: %s", endpoint->domain->lib->strerror(-ret));
    pplx_status status = fabric_address_check(endpoint->domain->info, own, own_nbytes, address, nbytes, error);
    if (status == PPLX_OK && endpoint->domain->quirks->endpoint_per_peer && memcmp(address, own, nbytes) == 0)
        return fabric_fail(error, PPLX_INVALID, 0, "the endpoint's own address");
    return status;
}

void fabric_peer_remove(fabric_domain *domain, fabric_peer *peer) {
    if (!peer || --peer->references) return;
    fabric_peer **link = &domain->peers;
    while (*link != peer) link = &(*link)->next;
    *link = peer->next;
    fi_av_remove(domain->av, &peer->address, 1, 0);
    free(peer);
}

/* Immediates from the peer's address are the endpoint's from now on. So no other peer may say that it has
 * that address too: the first one's immediates would be taken for its own. */
static pplx_status claim_source(fabric_endpoint *endpoint, pplx_error *error) {
    fabric_domain *domain = endpoint->domain;
    const fi_addr_t address = endpoint->peer->address;
    if (!domain->tells_source) return PPLX_OK;
    if (endpoint->peer->references > 1)
        return fabric_fail(error, PPLX_INVALID, 0, "another peer has this address already");
    if (address >= domain->naddresses) {
        size_t n = 2 * (size_t)address + 64;
        const fabric_endpoint **grown = realloc(domain->by_address, n * sizeof *grown);
        if (!grown) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
        memset(grown + domain->naddresses, 0, (n - domain->naddresses) * sizeof *grown);
        domain->by_address = grown;
        domain->naddresses = n;
    }
    domain->by_address[address] = endpoint;
    return PPLX_OK;
}

/* Both sides do it before they post: on EFA the responder, too, needs an address handle for the
 * requester (libfabric issue 11054), which is why a connection is made from both ends. */
pplx_status fabric_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                    pplx_error *error) {
    fabric_endpoint *endpoint = (fabric_endpoint *)handle;
    if (endpoint->peer || endpoint->closing)
        return fabric_fail(error, PPLX_INVALID, 0, "the endpoint is connected already");
    pplx_status status = check_address(endpoint, address, nbytes, error);
    if (status == PPLX_OK) status = fabric_peer_insert(endpoint->domain, address, nbytes, &endpoint->peer, error);
    if (status != PPLX_OK) return status;
    status = claim_source(endpoint, error);
    if (status == PPLX_OK && endpoint->domain->guarded) status = fabric_guard(endpoint, error);
    if (status == PPLX_OK) {
        fabric_post_waiting(endpoint);
    } else {
        fabric_peer_remove(endpoint->domain, endpoint->peer);
        endpoint->peer = NULL;
    }
    return status;
}

static pplx_status finish_close(fabric_endpoint *endpoint) {
    if (endpoint->peer && endpoint->domain->last.peer == endpoint->peer->address)
        endpoint->domain->unrung = false; /* its work is done, so somebody has rung */
    fabric_list_remove(&endpoint->in_domain);
    fabric_cq_close(endpoint->domain, endpoint->cq);
    if (endpoint->peer && endpoint->domain->tells_source) endpoint->domain->by_address[endpoint->peer->address] = NULL;
    fabric_peer_remove(endpoint->domain, endpoint->peer);
    free(endpoint);
    return PPLX_OK;
}

/* rxm of 1.17 reads freed memory when it closes an endpoint without having seen that a peer has hung
 * up. So what its connections have to say is looked at first; no entries are read. */
int fabric_ep_close(fabric_endpoint *endpoint) {
    fi_cq_read(endpoint->cq, NULL, 0);
    return fabric_guard_close(endpoint);
}

/* The fence. fi_close() shuts the endpoint's sockets and lets go of its operations, reporting some
 * as cancelled; what the CQ holds of them is taken out before we return, and what it holds of others
 * (it may be shared) is kept. */
static pplx_status close_own(fabric_endpoint *endpoint) {
    if (endpoint->ep) {
        if (fabric_ep_close(endpoint)) return PPLX_UNRELEASED;
        endpoint->ep = NULL;
    }
    if (fabric_cq_drain(endpoint) != PPLX_OK) return PPLX_UNRELEASED;
    return finish_close(endpoint);
}

/* No fence: the queue pair belongs to all peers. RECVs are called back, the rest runs out. */
static pplx_status close_shared(fabric_endpoint *endpoint) {
    if (!endpoint->closing) {
        endpoint->closing = true;
        while (!fabric_list_empty(&endpoint->waiting)) {
            fabric_op *op = fabric_op_of(endpoint->waiting.next);
            fabric_list_remove(&op->link);
            endpoint->receives--;
            endpoint->domain->waiting--;
            fabric_keep(endpoint->domain, op, PPLX_FLUSHED, FI_ECANCELED, 0);
        }
        for (fabric_link *link = endpoint->posted.next, *next; link != &endpoint->posted; link = next) {
            fabric_op *op = fabric_op_of(link);
            next = link->next;
            if (op->opcode == PPLX_RECV) fi_cancel(&endpoint->ep->fid, op);
        }
    }
    if (!fabric_list_empty(&endpoint->posted)) return PPLX_UNRELEASED;
    for (fabric_link *link = endpoint->domain->kept.next; link != &endpoint->domain->kept; link = link->next)
        if (fabric_op_of(link)->endpoint == endpoint) return PPLX_UNRELEASED; /* done, but not reported yet */
    return finish_close(endpoint);
}

pplx_status fabric_endpoint_close(pplx_provider_endpoint *handle) {
    fabric_endpoint *endpoint = (fabric_endpoint *)handle;
    return endpoint->domain->quirks->endpoint_per_peer ? close_own(endpoint) : close_shared(endpoint);
}

#else
typedef int pplx_fabric_endpoint_left_out;
#endif
