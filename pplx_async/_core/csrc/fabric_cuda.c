/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs, on a domain that was opened with FI_HMEM.
 *
 * As a dma-buf that we have from the GPU's driver, where the library takes one (1.20); else, or where that fails, by its
 * address: then the library finds a way, by a dma-buf of its own making or a kernel module of the driver
 * (efa_nv_peermem, nvidia_peermem).
 *
 * Each region has a registration of its own, also those that no peer may reach: EFA opens what is registered to all
 * whose NIC has RDMA and who guess a key of 32 bits (by its source), and that shall not be a whole allocation. */
#if PPLX_HAVE_LIBFABRIC

#include <stdio.h>
#include <unistd.h>

#include "fabric_internal.h"

/* Since 1.20, and ABI; older headers lack them. */
static const uint64_t MR_DMABUF = 1ull << 40;

typedef struct mr_dmabuf {
    int fd;
    uint64_t offset; /* of the region in the dma-buf */
    size_t len;
    void *base_addr; /* where the dma-buf begins: the region's address is that plus the offset */
} mr_dmabuf;

#ifdef FI_MR_DMABUF
_Static_assert(FI_MR_DMABUF == 1ull << 40, "as in the library's headers");
_Static_assert(sizeof(mr_dmabuf) == sizeof(struct fi_mr_dmabuf) &&
                   offsetof(mr_dmabuf, fd) == offsetof(struct fi_mr_dmabuf, fd) &&
                   offsetof(mr_dmabuf, offset) == offsetof(struct fi_mr_dmabuf, offset) &&
                   offsetof(mr_dmabuf, len) == offsetof(struct fi_mr_dmabuf, len) &&
                   offsetof(mr_dmabuf, base_addr) == offsetof(struct fi_mr_dmabuf, base_addr),
               "as in the library's headers");
_Static_assert(offsetof(struct fi_mr_attr, dmabuf) == offsetof(struct fi_mr_attr, mr_iov), "one or the other");
#endif

static bool takes_dmabuf(const fabric_domain *domain) {
    return FI_VERSION_GE(fabric_api(domain->lib, domain->quirks), FI_VERSION(1, 20));
}

bool fabric_cuda_by_dmabuf(const fabric_domain *domain) {
    return takes_dmabuf(domain) && domain->cuda && domain->cuda->range_handle;
}

/* What was tried in vain. */
typedef struct tries {
    cu_result cuda;
    int dmabuf, address; /* of libfabric */
} tries;

static int register_as(fabric_domain *domain, const void *what, uint64_t flags, int32_t ordinal, uint64_t access,
                       struct fid_mr **mr) {
    fabric_mr_attr attr = {.room = {0}};
    attr.attr.mr_iov = what;
    attr.attr.iov_count = 1;
    attr.attr.access = access;
    attr.attr.iface = FI_HMEM_CUDA;
    attr.attr.device.cuda = ordinal;
    return fabric_register(domain, &attr, flags, mr);
}

static int register_dmabuf(fabric_domain *domain, const pplx_memory *memory, const cuda_range *range, uint64_t access,
                           struct fid_mr **mr, tries *tries) {
    uint64_t first;
    mr_dmabuf dmabuf = {.len = memory->nbytes};
    tries->cuda = pplx_cuda_export(domain->cuda, range, &dmabuf.fd, &first);
    if (tries->cuda != CU_OK) return -FI_EOPNOTSUPP;
    dmabuf.offset = first + (memory->address - range->start);
    dmabuf.base_addr = (void *)(uintptr_t)(memory->address - dmabuf.offset);
    const int ret = register_as(domain, &dmabuf, MR_DMABUF, range->ordinal, access, mr);
    close(dmabuf.fd); /* who has registered it holds it */
    tries->dmabuf = -ret;
    return ret;
}

static pplx_status refuse(const fabric_domain *domain, const tries *tries, pplx_error *error) {
    const uint32_t version = domain->lib->version();
    char why[96] = "there is no libcuda.so.1, or no GPU"; /* a copy: strerror() may have one buffer for all */
    if (!takes_dmabuf(domain))
        snprintf(why, sizeof why, "libfabric %u.%u takes none (1.20 does)", FI_MAJOR(version), FI_MINOR(version));
    else if (tries->cuda != CU_OK)
        snprintf(why, sizeof why, "%s",
                 tries->cuda == CU_ERROR_NOT_SUPPORTED ? "the GPU's driver has none (11.7, open kernel modules)"
                                                       : pplx_cuda_error(domain->cuda, tries->cuda));
    else if (tries->dmabuf)
        snprintf(why, sizeof why, "%s", domain->lib->strerror(tries->dmabuf));
    return fabric_fail(error, PPLX_REGISTRATION, tries->address,
                       "%s can't reach memory of a GPU: as a dma-buf: %s; by its address: %s, which a kernel module "
                       "(efa_nv_peermem, nvidia_peermem) may help",
                       domain->info->domain_attr->name, why, domain->lib->strerror(tries->address));
}

static pplx_status refuse_all(const fabric_domain *domain, pplx_error *error) {
    const char *name = domain->info->domain_attr->name;
    if (*domain->no_gpus)
        return fabric_fail(error, PPLX_REGISTRATION, 0, "%s can't reach memory of a GPU: %s; ipc does, inside a host",
                           name, domain->no_gpus);
    return fabric_fail(error, PPLX_REGISTRATION, 0,
                       "%s was opened for memory of the host only: a GPU's is reached by ipc inside a host, and by EFA "
                       "and verbs, with dma-buf or a kernel module for peer memory",
                       name);
}

pplx_status fabric_cuda_register(fabric_domain *domain, const pplx_memory *memory, uint64_t access, struct fid_mr **mr,
                                 pplx_error *error) {
    cuda_range range = {.ordinal = memory->device};
    tries tries = {0};
    if (!(domain->info->caps & FI_HMEM)) return refuse_all(domain, error);
    if (domain->cuda) {
        if (pplx_cuda_init(domain->cuda, "libcuda.so.1", error) != PPLX_OK) return error->status = PPLX_REGISTRATION;
        const cu_result result = pplx_cuda_look_up(domain->cuda, memory->address, &range);
        if (result != CU_OK || range.type != CU_MEMORY_DEVICE || range.managed ||
            !cuda_holds(&range, memory->address, memory->nbytes))
            return fabric_fail(error, PPLX_INVALID, result, "%#llx, %llu bytes: no memory of one allocation on a GPU",
                               (unsigned long long)memory->address, (unsigned long long)memory->nbytes);
        if (takes_dmabuf(domain) && register_dmabuf(domain, memory, &range, access, mr, &tries) == 0) return PPLX_OK;
    }
    const struct iovec iov = {(void *)(uintptr_t)memory->address, memory->nbytes};
    tries.address = -register_as(domain, &iov, 0, range.ordinal, access, mr);
    return tries.address ? refuse(domain, &tries, error) : PPLX_OK;
}

#else
typedef int pplx_fabric_cuda_left_out;
#endif
