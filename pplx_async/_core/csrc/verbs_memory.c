/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory regions. The device makes their keys: 32 bits, and not random (docs/security.md).
 *
 * Memory of a GPU: verbs_cuda.c. */
#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "verbs_internal.h"

/* Relaxed ordering lets a write pass another one on its way through PCIe, and is what makes fast NICs fast on
 * some hosts. What tells of a write, its completion, passes none. The flag is optional: a device or kernel that
 * doesn't know it ignores it. */
struct ibv_mr *verbs_register(verbs_domain *domain, void *address, size_t nbytes, unsigned access) {
    if (domain->relaxed)
        return domain->lib->reg_mr_iova2(domain->pd, address, nbytes, (uintptr_t)address,
                                         access | IBV_ACCESS_RELAXED_ORDERING);
    return (domain->lib->reg_mr)(domain->pd, address, nbytes, (int)access);
}

/* The kernel asks the device first, and looks at the descriptor then. */
bool verbs_has_dmabuf(verbs_domain *domain) {
    if (!domain->lib->reg_dmabuf_mr) return false;
    errno = 0;
    struct ibv_mr *mr = domain->lib->reg_dmabuf_mr(domain->pd, 0, 4096, 0, -1, IBV_ACCESS_LOCAL_WRITE);
    if (mr) domain->lib->dereg_mr(mr);
    return !mr && errno == EBADF;
}

bool verbs_has_peer_memory(void) {
    return access("/sys/module/nvidia_peermem", F_OK) == 0 || access("/sys/module/nv_peer_mem", F_OK) == 0;
}

static pplx_status check_memory(const verbs_domain *domain, const pplx_memory *memory, pplx_error *error) {
    if (memory->kind > PPLX_MEMORY_DMABUF)
        return verbs_fail(error, PPLX_INVALID, 0, "unknown kind of memory %u", memory->kind);
    if (memory->kind == PPLX_MEMORY_DMABUF && !(domain->caps.flags & PPLX_CAP_DMABUF))
        return verbs_fail(error, PPLX_UNSUPPORTED, 0,
                          "%s takes no dma-buf: it needs a device, a kernel (5.12) and an "
                          "rdma-core (34) that do",
                          domain->context->device->name);
    if (!memory->nbytes || !memory->address || memory->address + memory->nbytes < memory->address)
        return verbs_fail(error, PPLX_INVALID, 0, "an empty range of memory, or one that wraps around");
    return PPLX_OK;
}

pplx_status verbs_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                          pplx_provider_mr **out, pplx_remote_key *key, pplx_error *error) {
    verbs_domain *domain = (verbs_domain *)handle;
    /* The device insists on it for REMOTE_WRITE, and READs need it; pages that are read-only have neither. */
    unsigned flags = IBV_ACCESS_LOCAL_WRITE;
    pplx_status status = check_memory(domain, memory, error);
    if (status != PPLX_OK) return status;
    verbs_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    if (access & PPLX_ACCESS_REMOTE_READ) flags |= IBV_ACCESS_REMOTE_READ;
    if (access & PPLX_ACCESS_REMOTE_WRITE) flags |= IBV_ACCESS_REMOTE_WRITE;
    void *address = (void *)(uintptr_t)memory->address;
    if (memory->kind == PPLX_MEMORY_CUDA) {
        status = verbs_cuda_register(domain, memory, flags, mr, error);
        if (status != PPLX_OK) {
            free(mr);
            return status;
        }
    } else if (memory->kind == PPLX_MEMORY_DMABUF)
        mr->mr = domain->lib->reg_dmabuf_mr(domain->pd, memory->fd_offset, memory->nbytes, memory->address, memory->fd,
                                            (int)(flags | (domain->relaxed ? IBV_ACCESS_RELAXED_ORDERING : 0)));
    else
        mr->mr = verbs_register(domain, address, memory->nbytes, flags);
    if (!mr->mr && memory->kind == PPLX_MEMORY_HOST && errno == EFAULT && !(access & PPLX_ACCESS_REMOTE_WRITE))
        mr->mr = verbs_register(domain, address, memory->nbytes, flags & ~(unsigned)IBV_ACCESS_LOCAL_WRITE);
    if (!mr->mr) {
        const int native = errno;
        free(mr);
        return verbs_fail(error, PPLX_REGISTRATION, native, "ibv_reg_mr of %llu B (%s): %s%s",
                          (unsigned long long)memory->nbytes, domain->context->device->name, strerror(native),
                          native == ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
    }
    mr->address = memory->address;
    mr->nbytes = memory->nbytes;
    mr->most = mr->nbytes < domain->caps.max_message ? mr->nbytes : domain->caps.max_message;
    mr->lkey = mr->mr->lkey;
    mr->send_flags = memory->kind == PPLX_MEMORY_HOST ? IBV_SEND_INLINE : 0;
    mr->domain = domain;
    key->key = mr->mr->rkey;
    key->base = memory->address;
    *out = (pplx_provider_mr *)mr;
    return PPLX_OK;
}

pplx_status verbs_mr_close(pplx_provider_mr *handle) {
    verbs_mr *mr = (verbs_mr *)handle;
    const bool gone = mr->shared ? verbs_cuda_deregister(mr->domain, mr->shared) : !mr->domain->lib->dereg_mr(mr->mr);
    if (!gone) return PPLX_NATIVE; /* still registered, and still ours */
    free(mr);
    return PPLX_OK;
}

#else
typedef int pplx_verbs_memory_left_out;
#endif
