/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs: a dma-buf is anything that can be mapped, an address is one that the tests' libcuda knows. */
#include "fake_efa.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Newer than some headers, so as fi_mr(3) has them. */
static const uint64_t DMABUF = UINT64_C(1) << 40;

typedef struct described {
    int fd;
    uint64_t offset;
    size_t len;
    void *base_addr;
} described;

/* fi_mr_attr, as far as any version has it. */
typedef struct whole_attr {
    union {
        const struct iovec *iov;
        const described *dmabuf;
    } what;
    size_t count;
    uint64_t access, offset, requested_key;
    void *context;
    size_t auth_key_size;
    uint8_t *auth_key;
    enum fi_hmem_iface iface;
    union {
        uint64_t reserved;
        int cuda;
    } device;
    void *hmem_data;
    size_t page_size;
    const struct fid_mr *base_mr;
    size_t sub_mr_cnt;
} whole_attr;
_Static_assert(offsetof(whole_attr, device) == offsetof(struct fi_mr_attr, device), "as in the headers");

static fake_registration last; /* under fake_lock */
static bool held;              /* under fake_lock */
static pthread_cond_t let_go = PTHREAD_COND_INITIALIZER;

void fake_efa_registered(fake_registration *out) {
    pthread_mutex_lock(&fake_lock);
    *out = last;
    pthread_mutex_unlock(&fake_lock);
}

void fake_efa_hold(int yes) {
    pthread_mutex_lock(&fake_lock);
    held = yes;
    pthread_cond_broadcast(&let_go);
    pthread_mutex_unlock(&fake_lock);
}

static void note(const fake_registration *one, int ret) {
    pthread_mutex_lock(&fake_lock);
    const int taken = last.taken, refused = last.refused;
    last = *one;
    last.taken = taken + (ret == 0);
    last.refused = refused + (ret != 0);
    while (held) pthread_cond_wait(&let_go, &fake_lock);
    pthread_mutex_unlock(&fake_lock);
}

static int take_dmabuf(fake_mr *mr, const described *dmabuf) {
    struct stat stat;
    if (!fake_number("FAKE_EFA_DMABUF", 1)) return -FI_EOPNOTSUPP;
    if (fstat(dmabuf->fd, &stat) != 0) return -FI_EBADF;
    if (dmabuf->offset > (uint64_t)stat.st_size || dmabuf->len > (uint64_t)stat.st_size - dmabuf->offset)
        return -FI_EINVAL;
    mr->mapped_nbytes = (size_t)stat.st_size;
    mr->mapped = mmap(NULL, mr->mapped_nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf->fd, 0);
    if (mr->mapped == MAP_FAILED) {
        mr->mapped = NULL;
        return -FI_ENOMEM;
    }
    mr->alias = (unsigned char *)mr->mapped + dmabuf->offset;
    mr->address = (uintptr_t)dmabuf->base_addr + dmabuf->offset;
    mr->nbytes = dmabuf->len;
    return 0;
}

static int take_address(fake_mr *mr, const struct iovec *iov, int device) {
    int (*find)(uint64_t pointer, size_t nbytes, int device, void **alias) = NULL;
    void *alias = NULL, *library;
    if (!fake_number("FAKE_EFA_PEER", 1)) return -FI_EFAULT;
    library = dlopen(getenv("FAKE_EFA_CUDA"), RTLD_NOW | RTLD_LOCAL);
    if (library) *(void **)&find = dlsym(library, "fake_cuda_alias");
    if (!find || find((uintptr_t)iov->iov_base, iov->iov_len, device, &alias) != 0) return -FI_EINVAL;
    mr->alias = alias;
    mr->address = (uintptr_t)iov->iov_base;
    mr->nbytes = iov->iov_len;
    return 0;
}

int fake_register_gpu(fake_mr *mr, const struct fi_mr_attr *attr, uint64_t flags) {
    const whole_attr *given = (const whole_attr *)(const void *)attr;
    const bool newer = FI_VERSION_GE(mr->domain->api, FI_VERSION(1, 20));
    fake_registration one = {.flags = flags, .iface = (int)attr->iface, .device = attr->device.cuda};
    int ret;
    if (!mr->domain->hmem)
        ret = -FI_ENOSYS;
    else if (flags & ~(newer ? DMABUF : 0))
        ret = -FI_EBADFLAGS;
    else if (newer && (given->hmem_data || given->page_size || given->base_mr || given->sub_mr_cnt))
        ret = -FI_EINVAL;
    else if (flags & DMABUF)
        ret = take_dmabuf(mr, given->what.dmabuf);
    else
        ret = take_address(mr, given->what.iov, attr->device.cuda);
    if (flags & DMABUF) {
        one.offset = given->what.dmabuf->offset;
        one.nbytes = given->what.dmabuf->len;
        one.address = (uintptr_t)given->what.dmabuf->base_addr + one.offset;
    } else {
        one.address = (uintptr_t)given->what.iov->iov_base;
        one.nbytes = given->what.iov->iov_len;
    }
    note(&one, ret);
    return ret;
}
