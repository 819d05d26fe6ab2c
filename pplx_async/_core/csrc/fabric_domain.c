/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A NIC opened: fid_fabric, fid_domain, address vector, completion queues; its memory. */
#if PPLX_HAVE_LIBFABRIC

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <unistd.h>

#include "fabric_internal.h"

/* An enum, which no #ifdef can see; its numbers are ABI. Since 1.18 and 1.19. */
enum { OPT_CUDA_API_PERMITTED = 10, OPT_SHARED_MEMORY_PERMITTED = 11 };
enum { MAX_MESSAGE = 1 << 30, KEY_ATTEMPTS = 8 };

static void close_fid(void *object) { /* a struct fid_*: begins with its fid */
    if (object) fi_close(object);
}

static pplx_status native_fail(fabric_domain *domain, pplx_error *error, int ret, const char *call) {
    return fabric_fail(error, PPLX_NATIVE, -ret, "%s (%s): %s", call, domain->quirks->name,
                       domain->lib->strerror(-ret));
}

/* EFA would carry traffic inside a host over its shm provider, which hangs when a peer dies, and
 * copy CUDA memory by CUDA calls, which can deadlock with kernels that wait for us. */
static pplx_status set_efa_options(fabric_domain *domain, struct fid_ep *ep, pplx_error *error) {
    const bool no = false;
    uint32_t version = domain->lib->version();
    if (FI_VERSION_GE(version, FI_VERSION(1, 18))) {
        int ret = fi_setopt(&ep->fid, FI_OPT_ENDPOINT, OPT_CUDA_API_PERMITTED, &no, sizeof no);
        /* Without CUDA in the library it refuses the option, and there is nothing to forbid. */
        if (ret && (domain->info->caps & FI_HMEM))
            return native_fail(domain, error, ret, "fi_setopt(FI_OPT_CUDA_API_PERMITTED)");
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
    if (info->caps & FI_HMEM) caps->flags |= PPLX_CAP_CUDA;
    caps->max_inflight = smaller(quirks->max_inflight, info->tx_attr->size);
    caps->max_inflight_bytes = quirks->max_inflight_bytes;
    const uint64_t most = quirks->max_message ? quirks->max_message : MAX_MESSAGE;
    caps->max_message = info->ep_attr->max_msg_size < most ? info->ep_attr->max_msg_size : most;
    caps->eager_posts = quirks->eager_posts;
    caps->posts_per_turn = quirks->posts_per_turn;
    if (info->nic && info->nic->link_attr) caps->bits_per_second = info->nic->link_attr->speed;
    snprintf(caps->description, sizeof caps->description, "%s of libfabric %u.%u (%s): %s, %s, %s, %s%s", quirks->name,
             FI_MAJOR(version), FI_MINOR(version), file,
             quirks->endpoint_per_peer ? "an endpoint per peer" : "one endpoint for all peers",
             domain->wait_fd >= 0 ? wait : "no wait fd",
             info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? "virtual addresses" : "offsets",
             info->domain_attr->mr_mode & FI_MR_PROV_KEY ? "keys of the NIC" : "random keys",
             !exposed          ? ""
             : domain->guarded ? ", ports for the peers' hosts only"
                               : ", ports open to whoever reaches them");
}

pplx_status fabric_domain_open_bare(const char *device, const pplx_option *options, size_t noptions,
                                    fabric_domain **out, const char **file, pplx_error *error) {
    fabric_options parsed;
    const void *functions = NULL;
    const char *call = NULL;
    int ret = 0;
    pplx_status status = fabric_options_parse(options, noptions, &parsed, error);
    if (status == PPLX_OK) status = pplx_library_load(&pplx_library_libfabric, parsed.library, &functions, file, error);
    if (status != PPLX_OK) return status;

    fabric_domain *domain = calloc(1, sizeof *domain);
    if (!domain) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    domain->lib = functions;
    domain->wait_fd = -1;
    fabric_list_init(&domain->endpoints);
    fabric_list_init(&domain->kept);

    status = fabric_find(domain->lib, *file, &parsed, device, &domain->info, &domain->quirks, error);
    if (status != PPLX_OK) goto fail_said;
    call = "fi_fabric";
    ret = domain->lib->fabric(domain->info->fabric_attr, &domain->fabric, domain);
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
    *out = domain;
    return PPLX_OK;

fail:
    status = native_fail(domain, error, ret, call);
fail_said:
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
    close_fid(domain->shared_ep);
    close_fid(domain->av);
    close_fid(domain->cq);
    close_fid(domain->eq);
    close_fid(domain->domain);
    close_fid(domain->fabric);
    if (domain->quirks && domain->quirks->cq_per_endpoint && domain->wait_fd >= 0) close(domain->wait_fd);
    if (domain->info) domain->lib->freeinfo(domain->info);
    free(domain->imms);
    free(domain->by_address);
    free(domain);
}

void fabric_domain_caps(pplx_provider_domain *handle, pplx_caps *caps) { *caps = ((fabric_domain *)handle)->caps; }

/* Where the library lets us choose, a key that nobody can guess. */
static int random_key(const fabric_domain *domain, uint64_t *key) {
    size_t nbytes = domain->info->domain_attr->mr_key_size;
    do {
        if (getrandom(key, sizeof *key, 0) != sizeof *key) return -FI_EOTHER;
        if (nbytes < sizeof *key) *key &= (1ull << (8 * nbytes)) - 1;
    } while (*key == 0 || *key == FI_KEY_NOTAVAIL);
    return 0;
}

static pplx_status check_memory(const fabric_domain *domain, const pplx_memory *memory, pplx_error *error) {
    if (memory->kind == PPLX_MEMORY_DMABUF)
        return fabric_fail(error, PPLX_UNSUPPORTED, 0, "dma-buf memory is not supported by the fabric provider");
    if (memory->kind == PPLX_MEMORY_CUDA && !(domain->caps.flags & PPLX_CAP_CUDA))
        return fabric_fail(error, PPLX_REGISTRATION, 0,
                           "%s was opened for memory of the host only: a GPU's is reached by ipc inside a host, and "
                           "by verbs, with dma-buf or nvidia_peermem",
                           domain->info->domain_attr->name);
    if (memory->kind != PPLX_MEMORY_HOST && memory->kind != PPLX_MEMORY_CUDA)
        return fabric_fail(error, PPLX_INVALID, 0, "unknown kind of memory %u", memory->kind);
    if (!memory->nbytes || !memory->address || memory->address + memory->nbytes < memory->address)
        return fabric_fail(error, PPLX_INVALID, 0, "an empty range of memory, or one that wraps around");
    return PPLX_OK;
}

pplx_status fabric_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                           pplx_provider_mr **out, pplx_remote_key *key, pplx_error *error) {
    fabric_domain *domain = (fabric_domain *)handle;
    const int mode = domain->info->domain_attr->mr_mode;
    pplx_status status = check_memory(domain, memory, error);
    if (status != PPLX_OK) return status;
    fabric_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");

    struct iovec iov = {(void *)(uintptr_t)memory->address, memory->nbytes};
    struct fi_mr_attr attr = {.mr_iov = &iov, .iov_count = 1, .access = FI_SEND | FI_RECV | FI_READ | FI_WRITE};
    if (access & PPLX_ACCESS_REMOTE_READ) attr.access |= FI_REMOTE_READ;
    if (access & PPLX_ACCESS_REMOTE_WRITE) attr.access |= FI_REMOTE_WRITE;
    if (memory->kind == PPLX_MEMORY_CUDA) {
        attr.iface = FI_HMEM_CUDA;
        attr.device.cuda = memory->device;
    }
    int ret = -FI_ENOKEY;
    for (int attempt = 0; ret == -FI_ENOKEY && attempt < KEY_ATTEMPTS; attempt++) {
        if (!(mode & FI_MR_PROV_KEY) && (ret = random_key(domain, &attr.requested_key)) != 0) break;
        ret = fi_mr_regattr(domain->domain, &attr, 0, &mr->mr); /* -FI_ENOKEY: the key is taken */
    }
    if (ret) {
        status = fabric_fail(error, PPLX_REGISTRATION, -ret, "fi_mr_regattr of %llu B (%s): %s%s",
                             (unsigned long long)memory->nbytes, domain->quirks->name, domain->lib->strerror(-ret),
                             ret == -FI_ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
        goto fail;
    }
    mr->desc = fi_mr_desc(mr->mr);
    mr->address = memory->address;
    mr->nbytes = memory->nbytes;
    mr->domain = domain;
    key->key = fi_mr_key(mr->mr);
    key->base = mode & FI_MR_VIRT_ADDR ? memory->address : 0;
    *out = (pplx_provider_mr *)mr;
    return PPLX_OK;

fail:
    free(mr);
    return status;
}

pplx_status fabric_mr_close(pplx_provider_mr *handle) {
    fabric_mr *mr = (fabric_mr *)handle;
    void *desc = mr->desc;
    if (fi_close(&mr->mr->fid)) return PPLX_NATIVE; /* still registered, and still ours */
    if (mr->domain->last.desc == desc) mr->domain->unrung = false; /* its work is done, so somebody has rung */
    free(mr);
    return PPLX_OK;
}

#else
typedef int pplx_fabric_domain_left_out;
#endif
