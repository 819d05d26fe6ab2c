/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A device: what an engine opens of it, and what it can do. */
#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "verbs_internal.h"

enum {
    CQ_ENTRIES = 16384,
    IMM_RECEIVES = 4096,
    MESSAGE_RECEIVES = 256,
    MESSAGE_BYTES = 4 << 20, /* of all buffers together, as long as there are a few */
    FEWEST_MESSAGES = 16,
    EAGER_POSTS = 16,
    POSTS_PER_TURN = 64,
    SOFT_PACKETS = 4,
    SOFT_INFLIGHT = 32
};

static const uint64_t MAX_MESSAGE = UINT64_C(1) << 30, MAX_INFLIGHT_BYTES = UINT64_C(128) << 20;

static uint32_t least(uint64_t a, int64_t limit) {
    return (uint32_t)(limit > 0 && (uint64_t)limit < a ? (uint64_t)limit : a);
}

static pplx_status native_fail(const verbs_domain *domain, pplx_error *error, int native, const char *call) {
    return verbs_fail(error, native == ENOMEM ? PPLX_NO_MEMORY : PPLX_NATIVE, native, "%s (%s): %s%s", call,
                      domain->context->device->name, strerror(native),
                      native == ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
}

/* A queue pair of a thread domain needs no locks: the progress token is one. Not every device has them. */
static void open_thread_domain(verbs_domain *domain) {
    domain->thread_pd = domain->pd;
    domain->td = ibv_alloc_td(domain->context, &(struct ibv_td_init_attr){0});
    if (!domain->td) return;
    struct ibv_parent_domain_init_attr attr = {.pd = domain->pd, .td = domain->td};
    struct ibv_pd *pd = ibv_alloc_parent_domain(domain->context, &attr);
    if (pd) {
        domain->thread_pd = pd;
    } else {
        ibv_dealloc_td(domain->td);
        domain->td = NULL;
    }
}

static int watch(verbs_domain *domain, int fd) {
    const int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) return errno;
    return epoll_ctl(domain->wait_fd, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN, .data.fd = fd})
               ? errno
               : 0;
}

static void prepare_requests(verbs_domain *domain) {
    for (int i = 0; i < VERBS_BATCH; i++) {
        domain->wrs[i].wr.next = i + 1 < VERBS_BATCH ? &domain->wrs[i + 1].wr : NULL;
        domain->wrs[i].wr.sg_list = &domain->wrs[i].sge;
    }
}

static pplx_status open_queues(verbs_domain *domain, pplx_error *error) {
    const struct ibv_device_attr *attr = &domain->attr;
    const uint32_t entries = least(CQ_ENTRIES, attr->max_cqe);
    const char *call = "ibv_alloc_pd";
    int native = 0;
    if (!(domain->pd = domain->lib->alloc_pd(domain->context))) goto fail;
    open_thread_domain(domain);
    call = "ibv_create_comp_channel";
    if (!(domain->channel = domain->lib->create_comp_channel(domain->context))) goto fail;
    call = "ibv_create_cq";
    domain->cq = domain->lib->create_cq(domain->context, (int)entries, domain, domain->channel, 0);
    if (!domain->cq) goto fail;
    call = "epoll";
    domain->wait_fd = epoll_create1(EPOLL_CLOEXEC);
    if (domain->wait_fd < 0) goto fail;
    native = watch(domain, domain->channel->fd);
    if (!native) native = watch(domain, domain->context->async_fd);
    if (native) goto fail_native;
    /* What lies in the completion queue at worst: an entry for each receive, and for each send. */
    domain->imms_wanted = least(least(IMM_RECEIVES, attr->max_srq_wr), entries / 4);
    domain->message_nbytes = domain->options.message_nbytes;
    domain->nmessages = MESSAGE_BYTES / domain->message_nbytes;
    if (domain->nmessages < FEWEST_MESSAGES) domain->nmessages = FEWEST_MESSAGES;
    domain->nmessages = least(
        least(domain->nmessages < MESSAGE_RECEIVES ? domain->nmessages : MESSAGE_RECEIVES, attr->max_srq_wr),
        entries / 4);
    domain->cq_room = (int32_t)(entries - domain->imms_wanted - domain->nmessages);
    prepare_requests(domain);
    return verbs_receives_open(domain, error);

fail:
    native = errno;
fail_native:
    return native_fail(domain, error, native, call);
}

/* rdma_rxe (Linux 6.1) counts a loss that it was told of as one of its retries, like one that it had to find out,
 * and forgets them only when a whole message has arrived: of a long one more packets are lost than there are
 * retries. One that was overtaken counts as lost, and where all packets overtake each other, an attempt brings one
 * through at least. So no write has more than 4: that leaves 3 of the 7 attempts for losses. And since it may be one or
 * two for each round trip, few are in flight: a heartbeat comes behind them, and in time. */
static bool is_soft(const verbs_domain *domain) {
    return domain->attr.vendor_id == 0xffffff && domain->attr.vendor_part_id == 0;
}

static void fill_caps(verbs_domain *domain, const char *file) {
    pplx_caps *caps = &domain->caps;
    const verbs_port *port = &domain->port;
    char address[PPLX_NAME_BYTES], gid[PPLX_NAME_BYTES + 32] = "";
    caps->flags = PPLX_CAP_READ | PPLX_CAP_WAIT_FD | PPLX_CAP_FENCE | PPLX_CAP_STREAM | PPLX_CAP_REGISTER_APART;
    if (verbs_has_dmabuf(domain)) caps->flags |= PPLX_CAP_DMABUF;
    if (verbs_cuda_by_dmabuf(domain) || verbs_has_peer_memory()) caps->flags |= PPLX_CAP_CUDA | PPLX_CAP_GPU_FLUSH;
    caps->max_inflight = least(VERBS_MAX_INFLIGHT, domain->attr.max_qp_wr - PPLX_RESERVED_IMMS - VERBS_CONTROLS);
    caps->max_inflight_bytes = MAX_INFLIGHT_BYTES;
    caps->max_message = port->attr.max_msg_sz && port->attr.max_msg_sz < MAX_MESSAGE ? port->attr.max_msg_sz
                                                                                     : MAX_MESSAGE;
    if (domain->soft) {
        const uint32_t mtu = verbs_mtu_nbytes((uint8_t)port->attr.active_mtu);
        caps->max_message = SOFT_PACKETS * mtu;
        caps->max_inflight = least(caps->max_inflight, SOFT_INFLIGHT);
        caps->max_inflight_bytes = SOFT_INFLIGHT * mtu;
    }
    caps->eager_posts = EAGER_POSTS;
    caps->posts_per_turn = POSTS_PER_TURN;
    caps->bits_per_second = port->bits_per_second;
    verbs_port_subnets(port, caps->subnets, sizeof caps->subnets);
    if (port->ngids) {
        verbs_gid_format(&port->gids[0].gid, address, sizeof address);
        snprintf(gid, sizeof gid, "GID %d (%s%s)", port->gids[0].index, address, port->ngids > 1 ? ", and others" : "");
    }
    const size_t used = strlen(gid);
    verbs_pkey_format(port, gid + used, sizeof gid - used);
    snprintf(caps->description, sizeof caps->description, "verbs (%s), port %u: %s, %s, MTU %u, %.0f Gb/s%s%s%s%s",
             file, port->number, port->ethernet ? "RoCE v2" : "InfiniBand", gid,
             verbs_mtu_nbytes((uint8_t)port->attr.active_mtu), (double)port->bits_per_second / 1e9,
             domain->relaxed ? ", relaxed ordering" : "", domain->td ? ", no locks" : "",
             verbs_cuda_by_dmabuf(domain)    ? ", GPUs by dma-buf"
             : caps->flags & PPLX_CAP_DMABUF ? ", dma-buf"
                                             : "",
             verbs_has_peer_memory() ? ", GPUs by peer memory" : "");
}

pplx_status verbs_domain_open(const char *device, const pplx_option *options, size_t noptions,
                              pplx_provider_domain **out, pplx_error *error) {
    verbs_options parsed;
    const pplx_libibverbs *lib = NULL;
    const char *file = NULL;
    pplx_status status = verbs_options_parse(options, noptions, &parsed, error);
    if (status == PPLX_OK) status = verbs_load(&parsed, &lib, &file, error);
    if (status != PPLX_OK) return status;

    verbs_domain *domain = calloc(1, sizeof *domain);
    if (!domain) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    pplx_aside_init(&domain->aside, "pplx-verbs", verbs_domain_free, domain);
    domain->lib = lib;
    domain->options = parsed;
    verbs_cuda_find(domain, parsed.libcuda);
    domain->options.node = domain->options.library = domain->options.libcuda = NULL; /* not ours */
    domain->wait_fd = -1;
    status = verbs_find(domain->lib, file, &parsed, device, &domain->context, &domain->port, error);
    if (status != PPLX_OK) goto fail;
    if (domain->lib->query_device(domain->context, &domain->attr)) {
        status = native_fail(domain, error, errno, "ibv_query_device");
        goto fail;
    }
    domain->relaxed = parsed.relaxed_ordering && domain->lib->reg_mr_iova2;
    domain->soft = is_soft(domain);
    status = open_queues(domain, error);
    if (status != PPLX_OK) goto fail;
    if (!verbs_reserve_kept(domain, VERBS_RING)) {
        status = verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
        goto fail;
    }
    fill_caps(domain, file);
    *out = (pplx_provider_domain *)domain;
    return PPLX_OK;

fail:
    verbs_domain_close((pplx_provider_domain *)domain);
    return status;
}

void verbs_domain_close(pplx_provider_domain *handle) {
    verbs_domain *domain = (verbs_domain *)handle;
    if (pplx_aside_end(&domain->aside)) verbs_domain_free(domain);
}

void verbs_domain_free(void *handle) {
    verbs_domain *domain = handle;
    const pplx_libibverbs *lib = domain->lib;
    verbs_receives_close(domain);
    if (domain->events) lib->ack_cq_events(domain->cq, domain->events); /* or destroying it waits for that */
    if (domain->cq) lib->destroy_cq(domain->cq);
    if (domain->channel) lib->destroy_comp_channel(domain->channel);
    if (domain->thread_pd != domain->pd) lib->dealloc_pd(domain->thread_pd);
    if (domain->td) ibv_dealloc_td(domain->td);
    if (domain->pd) lib->dealloc_pd(domain->pd);
    if (domain->context) lib->close_device(domain->context);
    if (domain->wait_fd >= 0) close(domain->wait_fd);
    free(domain->kept);
    free(domain);
}

void verbs_domain_caps(pplx_provider_domain *handle, pplx_caps *caps) { *caps = ((verbs_domain *)handle)->caps; }

#else
typedef int pplx_verbs_domain_left_out;
#endif
