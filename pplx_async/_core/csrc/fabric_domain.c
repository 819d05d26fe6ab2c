/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A NIC opened: fid_fabric, fid_domain, address vector, completion queues. */
#if PPLX_HAVE_LIBFABRIC

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "fabric_internal.h"

/* An enum, which no #ifdef can see; its numbers are ABI. Since 1.18 and 1.19. */
enum { OPT_CUDA_API_PERMITTED = 10, OPT_SHARED_MEMORY_PERMITTED = 11 };
enum { MAX_MESSAGE = 1 << 30 };

static void close_fid(void *object) { /* a struct fid_*: begins with its fid */
    if (object) fi_close(object);
}

static pplx_status native_fail(fabric_domain *domain, pplx_error *error, int ret, const char *call) {
    return fabric_fail(error, PPLX_NATIVE, -ret, "%s (%s): %s", call, domain->quirks->name,
                       domain->lib->strerror(-ret));
}

/* EFA would carry traffic inside a host over its shm provider, which hangs when a peer dies, and
 * copy CUDA memory by CUDA calls, which can deadlock with kernels that wait for us. Both options for
 * that memory fail where the NIC can't reach it. */
static pplx_status set_efa_options(fabric_domain *domain, struct fid_ep *ep, pplx_error *error) {
    const bool no = false, gpus = domain->info->caps & FI_HMEM;
    const int required = FI_HMEM_P2P_REQUIRED;
    uint32_t version = domain->lib->version();
    if (FI_VERSION_GE(version, FI_VERSION(1, 18))) {
        int ret = fi_setopt(&ep->fid, FI_OPT_ENDPOINT, OPT_CUDA_API_PERMITTED, &no, sizeof no);
        /* Without CUDA in the library it refuses the option, and there is nothing to forbid. */
        if (ret && gpus) return native_fail(domain, error, ret, "fi_setopt(FI_OPT_CUDA_API_PERMITTED)");
    }
    if (gpus) {
        int ret = fi_setopt(&ep->fid, FI_OPT_ENDPOINT, FI_OPT_FI_HMEM_P2P, &required, sizeof required);
        if (ret) return native_fail(domain, error, ret, "fi_setopt(FI_OPT_FI_HMEM_P2P)");
    }
    if (FI_VERSION_GE(version, FI_VERSION(1, 19))) {
        int ret = fi_setopt(&ep->fid, FI_OPT_ENDPOINT, OPT_SHARED_MEMORY_PERMITTED, &no, sizeof no);
        if (ret && ret != -FI_ENOPROTOOPT && ret != -FI_EOPNOTSUPP && ret != -FI_ENOSYS)
            return native_fail(domain, error, ret, "fi_setopt(FI_OPT_SHARED_MEMORY_PERMITTED)");
    }
    return PPLX_OK;
}

static bool wait_fd_of(struct fid_cq *cq, int *fd) { return fi_control(&cq->fid, FI_GETWAIT, fd) == 0; }

static int open_cq(fabric_domain *domain, enum fi_wait_obj wait, struct fid_cq **cq) {
    struct fi_cq_attr attr = {.format = FI_CQ_FORMAT_DATA, .wait_obj = wait};
    int ret = fi_cq_open(domain->domain, &attr, cq, domain);
    if (ret) *cq = NULL;
    return ret;
}

int fabric_cq_open(fabric_domain *domain, struct fid_cq **cq, int *fd) {
    const int ret = domain->quirks->wait_fd ? open_cq(domain, FI_WAIT_FD, cq) : -FI_ENOSYS;
    if (ret == -EMFILE || ret == -ENFILE) return ret; /* nobody wants it polled for that */
    if (ret == 0) {
        if (wait_fd_of(*cq, fd)) return 0;
        fi_close(&(*cq)->fid);
    }
    *fd = -1;
    return open_cq(domain, FI_WAIT_NONE, cq);
}

/* 0: any number. In 1.17 each CQ has an epoll for its own sockets only; versions between that and 2.5.1
 * were not tried. */
static uint32_t max_wait_fds(const fabric_domain *domain) {
    return FI_VERSION_GE(domain->lib->version(), FI_VERSION(1, 18)) ? domain->quirks->max_wait_fds : 0;
}

int fabric_cq_open_in(fabric_domain *domain, int set, struct fid_cq **cq) {
    const uint32_t most = max_wait_fds(domain);
    int fd = -1;
    if (set < 0 || (most && domain->wait_fds >= most)) return open_cq(domain, FI_WAIT_NONE, cq);
    int ret = fabric_cq_open(domain, cq, &fd);
    if (ret) return ret;
    if (fd < 0)
        ret = -FI_ENOSYS;
    else if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &(struct epoll_event){.events = EPOLLIN}))
        ret = -errno;
    if (ret) {
        close_fid(*cq);
        *cq = NULL;
        return ret;
    }
    domain->wait_fds++;
    return 0;
}

bool fabric_cq_wakes(struct fid_cq *cq) {
    int fd;
    return wait_fd_of(cq, &fd);
}

void fabric_cq_close_in(fabric_domain *domain, int set, struct fid_cq *cq) {
    int fd = -1;
    if (set >= 0 && wait_fd_of(cq, &fd)) {
        epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL);
        domain->wait_fds--;
    }
    fi_close(&cq->fid);
}

void fabric_cq_close(fabric_domain *domain, struct fid_cq *cq) {
    if (cq && cq != domain->cq) fabric_cq_close_in(domain, domain->wait_fd, cq);
}

pplx_status fabric_ep_open_on(fabric_domain *domain, struct fid_cq *cq, struct fid_ep **out, pplx_error *error) {
    pplx_status status = PPLX_NATIVE;
    struct fid_ep *ep = NULL;
    const char *call = "fi_endpoint";
    int ret = fi_endpoint(domain->domain, domain->info, &ep, domain);
    if (ret) {
        ep = NULL;
        goto fail;
    }
    if (domain->quirks->efa_options) {
        status = set_efa_options(domain, ep, error);
        if (status != PPLX_OK) goto fail_said;
    }
    call = "fi_ep_bind";
    ret = fi_ep_bind(ep, &domain->av->fid, 0);
    if (!ret) ret = fi_ep_bind(ep, &cq->fid, FI_TRANSMIT | FI_RECV);
    if (!ret && domain->eq) ret = fi_ep_bind(ep, &domain->eq->fid, 0);
    if (ret) goto fail;
    call = "fi_enable";
    ret = fi_enable(ep);
    if (ret) goto fail;
    *out = ep;
    return PPLX_OK;

fail:
    status = native_fail(domain, error, ret, call);
fail_said:
    close_fid(ep);
    return status;
}

pplx_status fabric_ep_open(fabric_domain *domain, struct fid_ep **ep, struct fid_cq **cq, pplx_error *error) {
    *cq = domain->cq;
    int ret = domain->quirks->cq_per_endpoint ? fabric_cq_open_in(domain, domain->wait_fd, cq) : 0;
    if (ret) return native_fail(domain, error, ret, "fi_cq_open");
    pplx_status status = fabric_ep_open_on(domain, *cq, ep, error);
    if (status != PPLX_OK) fabric_cq_close(domain, *cq);
    return status;
}

/* The library allocates, and clears, its pool of work entries at the first post: 10 ms (tcp 2.5.1)
 * that the progress thread should not pay in the middle of its work. A RECV on an endpoint that
 * is closed at once makes it do so here. Done for the effect alone: a failure shows later. */
static void warm_up(fabric_domain *domain) {
    struct fid_ep *ep = NULL;
    struct fid_cq *cq = NULL;
    char byte;
    bool empty = false;
    if (!domain->quirks->warm_up || fabric_ep_open(domain, &ep, &cq, NULL) != PPLX_OK) return;
    fi_recv(ep, &byte, sizeof byte, NULL, FI_ADDR_UNSPEC, &domain->doorbell);
    fi_close(&ep->fid);
    while (!empty && !domain->broken) { /* its context is the doorbell, which is never reported */
        pplx_completion completion;
        fabric_cq_read(domain, cq, &completion, NULL, 1, &empty);
    }
    fabric_cq_close(domain, cq);
}

static uint32_t smaller(uint32_t cap, size_t limit) { return limit && limit < cap ? (uint32_t)limit : cap; }

static void fill_caps(fabric_domain *domain, const char *file, bool exposed) {
    const fabric_quirks *quirks = domain->quirks;
    const struct fi_info *info = domain->info;
    pplx_caps *caps = &domain->caps;
    uint32_t version = domain->lib->version();
    char wait[32];
    snprintf(wait, sizeof wait, max_wait_fds(domain) ? "wait fds for %u peers" : "wait fd", max_wait_fds(domain));
    caps->flags = PPLX_CAP_READ;
    if (domain->wait_fd >= 0) caps->flags |= PPLX_CAP_WAIT_FD;
    if (max_wait_fds(domain)) caps->flags |= PPLX_CAP_STACKED;
    if (quirks->endpoint_per_peer) caps->flags |= PPLX_CAP_FENCE;
    if (quirks->stream) caps->flags |= PPLX_CAP_STREAM;
    if (info->caps & FI_HMEM) caps->flags |= PPLX_CAP_CUDA | (quirks->gpus ? PPLX_CAP_GPU_FLUSH : 0);
    if (quirks->register_apart) caps->flags |= PPLX_CAP_REGISTER_APART | PPLX_CAP_CUDA_APART;
    caps->max_inflight = smaller(quirks->max_inflight, info->tx_attr->size);
    caps->max_inflight_bytes = quirks->max_inflight_bytes;
    const uint64_t most = quirks->max_message ? quirks->max_message : MAX_MESSAGE;
    caps->max_message = info->ep_attr->max_msg_size < most ? info->ep_attr->max_msg_size : most;
    caps->eager_posts = quirks->eager_posts;
    caps->posts_per_turn = quirks->posts_per_turn;
    if (info->nic && info->nic->link_attr) caps->bits_per_second = info->nic->link_attr->speed;
    char gpus[sizeof domain->no_gpus + 16] = "";
    if (info->caps & FI_HMEM)
        snprintf(gpus, sizeof gpus, ", GPUs %s", fabric_cuda_by_dmabuf(domain) ? "by dma-buf" : "by address");
    else if (*domain->no_gpus)
        snprintf(gpus, sizeof gpus, ", no GPUs (%s)", domain->no_gpus);
    snprintf(caps->description, sizeof caps->description, "%s of libfabric %u.%u (%s): %s, %s, %s, %s%s%s",
             quirks->name, FI_MAJOR(version), FI_MINOR(version), file,
             quirks->endpoint_per_peer ? "an endpoint per peer" : "one endpoint for all peers",
             domain->wait_fd >= 0 ? wait : "no wait fd",
             info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? "virtual addresses" : "offsets",
             info->domain_attr->mr_mode & FI_MR_PROV_KEY ? "keys of the NIC" : "random keys",
             !exposed          ? ""
             : domain->guarded ? ", ports for the peers' hosts only"
                               : ", ports open to whoever reaches them",
             gpus);
}

/* It takes the options of its endpoints that memory of GPUs depends on: the library says only then that the NIC can't
 * reach it. */
static pplx_status try_endpoint(fabric_domain *domain, pplx_error *error) {
    struct fid_ep *ep = NULL;
    const int ret = fi_endpoint(domain->domain, domain->info, &ep, domain);
    if (ret) return native_fail(domain, error, ret, "fi_endpoint");
    const pplx_status status = set_efa_options(domain, ep, error);
    fi_close(&ep->fid);
    return status;
}

/* What was opened before a failure, fabric_domain_close() or close_objects() closes. */
static pplx_status open_objects(fabric_domain *domain, const fabric_options *options, const char *file,
                                const char *device, pplx_error *error) {
    const char *call = "fi_fabric";
    const pplx_status status = fabric_find(domain->lib, file, options, device, &domain->info, &domain->quirks, error);
    if (status != PPLX_OK) return status;
    int ret = domain->lib->fabric(domain->info->fabric_attr, &domain->fabric, domain);
    if (ret) goto fail;
    call = "fi_domain";
    ret = fi_domain(domain->fabric, domain->info, &domain->domain, domain);
    if (ret) goto fail;
    call = "fi_av_open";
    ret = fi_av_open(domain->domain, &(struct fi_av_attr){.type = FI_AV_TABLE, .count = 64}, &domain->av, domain);
    if (ret) goto fail;
    if (domain->quirks->event_queue) {
        call = "fi_eq_open";
        ret = fi_eq_open(domain->fabric, &(struct fi_eq_attr){.wait_obj = FI_WAIT_NONE}, &domain->eq, domain);
        if (ret) goto fail;
    }
    return domain->quirks->efa_options && (domain->info->caps & FI_HMEM) ? try_endpoint(domain, error) : PPLX_OK;

fail:
    return native_fail(domain, error, ret, call);
}

static void close_objects(fabric_domain *domain) {
    close_fid(domain->shared_ep);
    close_fid(domain->av);
    close_fid(domain->cq);
    close_fid(domain->eq);
    close_fid(domain->domain);
    close_fid(domain->fabric);
    if (domain->info) domain->lib->freeinfo(domain->info);
    domain->shared_ep = NULL;
    domain->av = NULL;
    domain->cq = NULL;
    domain->eq = NULL;
    domain->domain = NULL;
    domain->fabric = NULL;
    domain->info = NULL;
}

/* With memory of GPUs where there is one and the provider may reach it, otherwise without. */
static pplx_status open_either(fabric_domain *domain, fabric_options *options, const char *file, const char *device,
                               pplx_error *error) {
    pplx_error refused = {0};
    if (options->cuda || !domain->cuda) return open_objects(domain, options, file, device, error);
    options->cuda_too = true;
    pplx_status status = open_objects(domain, options, file, device, &refused);
    if (error) *error = refused;
    if (status != PPLX_OK && domain->info && (domain->info->caps & FI_HMEM)) {
        snprintf(domain->no_gpus, sizeof domain->no_gpus, "%.120s: is there GPUDirect RDMA?", refused.text);
        close_objects(domain);
        options->cuda_too = false;
        status = open_objects(domain, options, file, device, error);
    } else if (status == PPLX_OK && domain->quirks->gpus && !(domain->info->caps & FI_HMEM)) {
        snprintf(
            domain->no_gpus, sizeof domain->no_gpus,
            "this libfabric offers no FI_HMEM: it was built without CUDA (AWS's has it), or its variables forbid it");
    }
    return status;
}

pplx_status fabric_domain_open_bare(const char *device, const pplx_option *options, size_t noptions,
                                    fabric_domain **out, const char **file, pplx_error *error) {
    fabric_options parsed;
    const void *functions = NULL;
    pplx_status status = fabric_options_parse(options, noptions, &parsed, error);
    if (status == PPLX_OK) status = pplx_library_load(&pplx_library_libfabric, parsed.library, &functions, file, error);
    if (status != PPLX_OK) return status;

    fabric_domain *domain = calloc(1, sizeof *domain);
    if (!domain) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    domain->lib = functions;
    domain->wait_fd = -1;
    domain->cuda = pplx_cuda_found(parsed.libcuda);
    fabric_list_init(&domain->endpoints);
    fabric_list_init(&domain->kept);
    status = open_either(domain, &parsed, *file, device, error);
    if (status == PPLX_OK)
        *out = domain;
    else
        fabric_domain_close((pplx_provider_domain *)domain);
    return status;
}

pplx_status fabric_domain_open(const char *device, const pplx_option *options, size_t noptions,
                               pplx_provider_domain **out, pplx_error *error) {
    fabric_domain *domain = NULL;
    const char *file = NULL;
    pplx_status status = fabric_domain_open_bare(device, options, noptions, &domain, &file, error);
    if (status != PPLX_OK) return status;
    if (!fabric_reserve_imms(domain)) {
        status = fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    } else if (domain->quirks->cq_per_endpoint) {
        domain->wait_fd = domain->quirks->wait_fd ? epoll_create1(EPOLL_CLOEXEC) : -1;
        if (domain->quirks->wait_fd && domain->wait_fd < 0)
            status = native_fail(domain, error, -errno, "epoll_create1");
    } else {
        int ret = fabric_cq_open(domain, &domain->cq, &domain->wait_fd);
        if (ret) status = native_fail(domain, error, ret, "fi_cq_open");
    }
    if (status == PPLX_OK && !domain->quirks->endpoint_per_peer)
        status = fabric_ep_open(domain, &domain->shared_ep, &(struct fid_cq *){NULL}, error);
    if (status != PPLX_OK) {
        fabric_domain_close((pplx_provider_domain *)domain);
        return status;
    }
    domain->tells_source = domain->cq && !domain->shared_ep && (domain->info->caps & FI_SOURCE);
    const bool exposed = domain->quirks->takes_node && fabric_guard_wanted(domain->info);
    domain->guarded = exposed && fabric_guard_works();
    warm_up(domain);
    fill_caps(domain, file, exposed);
    *out = (pplx_provider_domain *)domain;
    return PPLX_OK;
}

void fabric_domain_close(pplx_provider_domain *handle) {
    fabric_domain *domain = (fabric_domain *)handle;
    close_objects(domain);
    if (domain->quirks && domain->quirks->cq_per_endpoint && domain->wait_fd >= 0) close(domain->wait_fd);
    free(domain->imms);
    free(domain->by_address);
    free(domain);
}

void fabric_domain_caps(pplx_provider_domain *handle, pplx_caps *caps) { *caps = ((fabric_domain *)handle)->caps; }

#else
typedef int pplx_fabric_domain_left_out;
#endif
