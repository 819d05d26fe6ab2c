/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory regions and their keys. With PPLX_CAP_REGISTER_APART any thread may be here, beside the domain's: nothing of
 * the domain's that changes is looked at.
 *
 * Memory of a GPU: fabric_cuda.c. */
#if PPLX_HAVE_LIBFABRIC

#include <stdlib.h>
#include <sys/random.h>

#include "fabric_internal.h"

enum { KEY_ATTEMPTS = 8 };

static int random_key(const fabric_domain *domain, uint64_t *key) {
    size_t nbytes = domain->info->domain_attr->mr_key_size;
    do {
        if (getrandom(key, sizeof *key, 0) != sizeof *key) return -FI_EOTHER;
        if (nbytes < sizeof *key) *key &= (1ull << (8 * nbytes)) - 1;
    } while (*key == 0 || *key == FI_KEY_NOTAVAIL);
    return 0;
}

int fabric_register(fabric_domain *domain, fabric_mr_attr *attr, uint64_t flags, struct fid_mr **mr) {
    const bool chosen = !(domain->info->domain_attr->mr_mode & FI_MR_PROV_KEY);
    int ret = -FI_ENOKEY;
    for (int attempt = 0; ret == -FI_ENOKEY && attempt < KEY_ATTEMPTS; attempt++) {
        if (chosen && (ret = random_key(domain, &attr->attr.requested_key)) != 0) break;
        ret = fi_mr_regattr(domain->domain, &attr->attr, flags, mr); /* -FI_ENOKEY: the key is taken */
    }
    return ret;
}

static pplx_status check_memory(const pplx_memory *memory, pplx_error *error) {
    if (memory->kind == PPLX_MEMORY_DMABUF)
        return fabric_fail(error, PPLX_UNSUPPORTED, 0, "dma-buf memory is not supported by the fabric provider");
    if (memory->kind != PPLX_MEMORY_HOST && memory->kind != PPLX_MEMORY_CUDA)
        return fabric_fail(error, PPLX_INVALID, 0, "unknown kind of memory %u", memory->kind);
    if (!memory->nbytes || !memory->address || memory->address + memory->nbytes < memory->address)
        return fabric_fail(error, PPLX_INVALID, 0, "an empty range of memory, or one that wraps around");
    return PPLX_OK;
}

static pplx_status register_host(fabric_domain *domain, const pplx_memory *memory, uint64_t access, struct fid_mr **mr,
                                 pplx_error *error) {
    struct iovec iov = {(void *)(uintptr_t)memory->address, memory->nbytes};
    fabric_mr_attr attr = {.room = {0}};
    attr.attr.mr_iov = &iov;
    attr.attr.iov_count = 1;
    attr.attr.access = access;
    const int ret = fabric_register(domain, &attr, 0, mr);
    if (ret == 0) return PPLX_OK;
    return fabric_fail(error, PPLX_REGISTRATION, -ret, "fi_mr_regattr of %llu B (%s): %s%s",
                       (unsigned long long)memory->nbytes, domain->quirks->name, domain->lib->strerror(-ret),
                       ret == -FI_ENOMEM ? "; raise the limit on locked memory (ulimit -l)" : "");
}

pplx_status fabric_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                           pplx_provider_mr **out, pplx_remote_key *key, pplx_error *error) {
    fabric_domain *domain = (fabric_domain *)handle;
    uint64_t allowed = FI_SEND | FI_RECV | FI_READ | FI_WRITE;
    pplx_status status = check_memory(memory, error);
    if (status != PPLX_OK) return status;
    fabric_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    if (access & PPLX_ACCESS_REMOTE_READ) allowed |= FI_REMOTE_READ;
    if (access & PPLX_ACCESS_REMOTE_WRITE) allowed |= FI_REMOTE_WRITE;
    status = memory->kind == PPLX_MEMORY_CUDA ? fabric_cuda_register(domain, memory, allowed, &mr->mr, error)
                                              : register_host(domain, memory, allowed, &mr->mr, error);
    if (status != PPLX_OK) {
        free(mr);
        return status;
    }
    mr->desc = fi_mr_desc(mr->mr);
    mr->address = memory->address;
    mr->nbytes = memory->nbytes;
    mr->domain = domain;
    key->key = fi_mr_key(mr->mr);
    key->base = domain->info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? memory->address : 0;
    *out = (pplx_provider_mr *)mr;
    return PPLX_OK;
}

pplx_status fabric_mr_close(pplx_provider_mr *handle) {
    fabric_mr *mr = (fabric_mr *)handle;
    if (fi_close(&mr->mr->fid)) return PPLX_NATIVE; /* still registered, and still ours */
    free(mr);
    return PPLX_OK;
}

#else
typedef int pplx_fabric_memory_left_out;
#endif
