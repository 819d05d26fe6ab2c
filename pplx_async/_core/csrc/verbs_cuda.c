/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs.
 *
 * It is registered as a dma-buf, where the GPU's driver gives one and kernel and device take it; or by its address, for
 * which a kernel module of that driver (nvidia_peermem) has to be loaded.
 *
 * A region that peers may reach has a registration of its own, whose keys end with it. Those that they may not reach
 * share one of the whole allocation: the first of a pool's arrays pays for all of them. */
#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "verbs_internal.h"

static const unsigned REMOTE = IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;

void verbs_cuda_find(verbs_domain *domain, const char *libcuda) { domain->cuda = pplx_cuda_found(libcuda); }

bool verbs_cuda_by_dmabuf(const verbs_domain *domain) {
    return domain->caps.flags & PPLX_CAP_DMABUF && domain->cuda && domain->cuda->range_handle;
}

/* What was tried in vain. */
typedef struct tries {
    cu_result cuda;
    int dmabuf, peer; /* errno */
} tries;

static struct ibv_mr *register_range(verbs_domain *domain, const cuda_range *range, uint64_t address, uint64_t nbytes,
                                     unsigned access, tries *tries) {
    struct ibv_mr *mr = NULL;
    uint64_t offset;
    int fd;
    if (range && domain->caps.flags & PPLX_CAP_DMABUF) {
        tries->cuda = pplx_cuda_export(domain->cuda, range, &fd, &offset);
        if (tries->cuda == CU_OK) {
            mr = domain->lib->reg_dmabuf_mr(domain->pd, offset + (address - range->start), nbytes, address, fd,
                                            (int)(access | (domain->relaxed ? IBV_ACCESS_RELAXED_ORDERING : 0)));
            tries->dmabuf = errno;
            close(fd); /* who has registered it holds it */
        }
    }
    if (mr || !verbs_has_peer_memory()) return mr;
    mr = verbs_register(domain, (void *)(uintptr_t)address, nbytes, access);
    tries->peer = errno;
    return mr;
}

static pplx_status refuse(const verbs_domain *domain, const tries *tries, pplx_error *error) {
    const char *name = domain->context->device->name, *why = "the device, or the kernel, takes none (Linux 5.12 does)";
    if (!domain->cuda)
        why = "there is no libcuda.so.1, or no GPU";
    else if (tries->cuda != CU_OK)
        why = tries->cuda == CU_ERROR_NOT_SUPPORTED ? "the GPU's driver has none (11.7, open kernel modules)"
                                                    : pplx_cuda_error(domain->cuda, tries->cuda);
    else if (tries->dmabuf)
        why = strerror(tries->dmabuf);
    return verbs_fail(error, PPLX_REGISTRATION, tries->peer ? tries->peer : tries->dmabuf,
                      "%s can't reach memory of a GPU: as a dma-buf: %s; by its address: %s", name, why,
                      tries->peer ? strerror(tries->peer) : "load the kernel module nvidia_peermem");
}

/* One of the whole allocation. NULL: then not. */
static verbs_shared *share(verbs_domain *domain, const cuda_range *range, unsigned access) {
    verbs_shared *shared = (verbs_shared *)(void *)cuda_shared_take(domain->allocations, range);
    if (shared) return shared;
    shared = calloc(1, sizeof *shared);
    if (shared) shared->mr = register_range(domain, range, range->start, range->nbytes, access, &(tries){0});
    if (shared && shared->mr) {
        cuda_shared_add(&domain->allocations, &shared->shared, range);
        return shared;
    }
    free(shared);
    return NULL;
}

pplx_status verbs_cuda_register(verbs_domain *domain, const pplx_memory *memory, unsigned access, verbs_mr *mr,
                                pplx_error *error) {
    cuda_range range;
    tries tries = {0};
    const bool known = domain->cuda && pplx_cuda_init(domain->cuda, "libcuda.so.1", error) == PPLX_OK;
    if (known) {
        const cu_result result = pplx_cuda_look_up(domain->cuda, memory->address, &range);
        if (result != CU_OK || range.type != CU_MEMORY_DEVICE || range.managed ||
            !cuda_holds(&range, memory->address, memory->nbytes))
            return verbs_fail(error, PPLX_INVALID, result, "%#llx, %llu bytes: no memory of one allocation on a GPU",
                              (unsigned long long)memory->address, (unsigned long long)memory->nbytes);
    } else if (domain->cuda && !verbs_has_peer_memory()) {
        return error->status = PPLX_REGISTRATION;
    }
    mr->shared = known && !(access & REMOTE) ? share(domain, &range, access) : NULL;
    mr->mr = mr->shared
                 ? mr->shared->mr
                 : register_range(domain, known ? &range : NULL, memory->address, memory->nbytes, access, &tries);
    return mr->mr ? PPLX_OK : refuse(domain, &tries, error);
}

bool verbs_cuda_deregister(verbs_domain *domain, verbs_shared *shared) {
    if (shared->shared.regions == 1 && domain->lib->dereg_mr(shared->mr)) return false;
    if (cuda_shared_give(&domain->allocations, &shared->shared)) free(shared);
    return true;
}

#else
typedef int pplx_verbs_cuda_left_out;
#endif
