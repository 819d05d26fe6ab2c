/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Protection domains, memory regions, completion channels and queues, shared receive queues: made and destroyed. */
#include "fake_ibverbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

fake_mr *fake_mrs;
static uint32_t next_key = 0x100, nmrs;

static void made(struct ibv_context *context, int change) {
    fake_context_of(context)->objects += change;
    fake_count.objects += (uint64_t)(int64_t)change;
}

/* ---- protection domains ---- */

struct ibv_pd *ibv_alloc_pd(struct ibv_context *context) {
    fake_pd *pd = calloc(1, sizeof *pd);
    if (!pd) return NULL;
    pd->pd.context = context;
    pd->of = pd;
    pthread_mutex_lock(&fake_lock);
    made(context, 1);
    pthread_mutex_unlock(&fake_lock);
    return &pd->pd;
}

int ibv_dealloc_pd(struct ibv_pd *handle) {
    fake_pd *pd = (fake_pd *)handle;
    pthread_mutex_lock(&fake_lock);
    const bool busy = pd->objects != 0;
    if (busy) {
        fake_complain("a protection domain was freed before what belongs to it");
    } else {
        if (pd->of != pd) pd->of->objects--;
        if (pd->td) ((fake_td *)pd->td)->objects--;
        made(handle->context, -1);
    }
    pthread_mutex_unlock(&fake_lock);
    if (busy) return EBUSY;
    free(pd);
    return 0;
}

/* ---- memory ---- */

/* All of it is there, and may be written if it has to be: the kernel takes hold of every page. */
static bool is_mapped(uint64_t address, uint64_t nbytes, bool written) {
    FILE *maps = fopen("/proc/self/maps", "re");
    uint64_t at = address, first, last;
    char line[512], mode[5];
    while (maps && at < address + nbytes && fgets(line, sizeof line, maps)) {
        unsigned long long a, b;
        if (sscanf(line, "%llx-%llx %4s", &a, &b, mode) != 3) continue;
        first = a;
        last = b;
        if (first <= at && at < last && mode[0] == 'r' && (mode[1] == 'w' || !written)) at = last;
    }
    if (maps) fclose(maps);
    return at >= address + nbytes;
}

static struct ibv_mr *add_mr(struct ibv_pd *pd, void *bytes, size_t nbytes, uint64_t iova, unsigned access,
                             bool mapped) {
    const unsigned known = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ |
                           IBV_ACCESS_REMOTE_ATOMIC | IBV_ACCESS_OPTIONAL_RANGE;
    if (access & ~known) return errno = EOPNOTSUPP, NULL;
    if ((access & (IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC)) && !(access & IBV_ACCESS_LOCAL_WRITE))
        return errno = EINVAL, NULL;
    if (!nbytes) return errno = EINVAL, NULL;
    if (!mapped && !is_mapped((uintptr_t)bytes, nbytes, access & IBV_ACCESS_LOCAL_WRITE)) return errno = EFAULT, NULL;
    usleep((useconds_t)fake_device_of(pd->context)->register_ms * 1000);
    fake_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return NULL;
    mr->mr.context = pd->context;
    mr->mr.pd = pd;
    mr->mr.addr = bytes;
    mr->mr.length = nbytes;
    mr->pd = ((fake_pd *)pd)->of;
    mr->iova = iova;
    mr->bytes = bytes;
    mr->access = access;
    mr->mapped = mapped;
    pthread_mutex_lock(&fake_lock);
    const bool room = nmrs < (uint32_t)fake_device_of(pd->context)->attr.max_mr;
    if (room) {
        nmrs++;
        next_key += 0x100; /* an index and a byte that changes, as devices have it */
        mr->mr.lkey = mr->mr.rkey = next_key | (next_key >> 8 & 0xff);
        mr->next = fake_mrs;
        fake_mrs = mr;
        ((fake_pd *)pd)->objects++;
        made(pd->context, 1);
    }
    pthread_mutex_unlock(&fake_lock);
    if (room) return &mr->mr;
    free(mr);
    return errno = ENOMEM, NULL;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *address, size_t nbytes, int access) {
    if ((unsigned)access & IBV_ACCESS_OPTIONAL_RANGE) return errno = EINVAL, NULL;
    return add_mr(pd, address, nbytes, (uintptr_t)address, (unsigned)access, false);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *address, size_t nbytes, uint64_t iova, unsigned access) {
    return add_mr(pd, address, nbytes, iova, access, false);
}

/* Anything that can be mapped will do. */
struct ibv_mr *ibv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t nbytes, uint64_t iova, int fd, int access) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), before = offset % page;
    if (!fake_device_of(pd->context)->dmabuf) return errno = EOPNOTSUPP, NULL;
    if (iova % page != before) return errno = EINVAL, NULL;
    unsigned char *bytes = mmap(NULL, nbytes + before, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                                (off_t)(offset - before));
    if (bytes == MAP_FAILED) return NULL;
    struct ibv_mr *mr = add_mr(pd, bytes + before, nbytes, iova, (unsigned)access, true);
    if (!mr) munmap(bytes, nbytes + before);
    return mr;
}

int ibv_dereg_mr(struct ibv_mr *handle) {
    fake_mr *mr = (fake_mr *)handle, **link = &fake_mrs;
    usleep((useconds_t)fake_device_of(handle->context)->register_ms * 1000);
    pthread_mutex_lock(&fake_lock);
    while (*link != mr) link = &(*link)->next;
    *link = mr->next;
    nmrs--;
    ((fake_pd *)handle->pd)->objects--;
    made(handle->context, -1);
    pthread_mutex_unlock(&fake_lock);
    if (mr->mapped) {
        const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), before = (uintptr_t)mr->bytes % page;
        munmap(mr->bytes - before, handle->length + before);
    }
    free(mr);
    return 0;
}

/* ---- completion channels and queues ---- */

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context) {
    fake_comp_channel *channel = calloc(1, sizeof *channel);
    if (!channel) return NULL;
    const int native = fake_channel_open(&channel->events);
    if (native) return free(channel), errno = native, NULL;
    channel->channel.context = context;
    channel->channel.fd = channel->events.fd;
    pthread_mutex_lock(&fake_lock);
    made(context, 1);
    pthread_mutex_unlock(&fake_lock);
    return &channel->channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *handle) {
    fake_comp_channel *channel = (fake_comp_channel *)handle;
    pthread_mutex_lock(&fake_lock);
    const bool busy = handle->refcnt != 0;
    if (busy)
        fake_complain("a completion channel was destroyed before its completion queues");
    else
        made(handle->context, -1);
    pthread_mutex_unlock(&fake_lock);
    if (busy) return EBUSY;
    fake_channel_close(&channel->events);
    free(channel);
    return 0;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int n, void *cookie, struct ibv_comp_channel *channel,
                             int vector) {
    if (n < 1 || n > fake_device_of(context)->attr.max_cqe || vector < 0 || vector >= context->num_comp_vectors)
        return errno = EINVAL, NULL;
    fake_cq *cq = calloc(1, sizeof *cq);
    if (cq) cq->entries = calloc((size_t)n, sizeof *cq->entries);
    if (!cq || !cq->entries) return free(cq), errno = ENOMEM, NULL;
    cq->cq = (struct ibv_cq){.context = context, .channel = channel, .cq_context = cookie, .cqe = n};
    pthread_mutex_lock(&fake_lock);
    if (channel) channel->refcnt++;
    made(context, 1);
    pthread_mutex_unlock(&fake_lock);
    return &cq->cq;
}

int ibv_destroy_cq(struct ibv_cq *handle) {
    fake_cq *cq = (fake_cq *)handle;
    int native = 0;
    pthread_mutex_lock(&fake_lock);
    if (cq->objects) {
        fake_complain("a completion queue was destroyed before its queue pairs");
        native = EBUSY;
    } else if (handle->comp_events_completed != cq->told) {
        fake_complain("a completion queue was destroyed with events that aren't acknowledged: waits for ever");
        native = EBUSY;
    } else {
        if (handle->channel) {
            fake_channel_forget(&((fake_comp_channel *)handle->channel)->events, handle);
            handle->channel->refcnt--;
        }
        made(handle->context, -1);
    }
    pthread_mutex_unlock(&fake_lock);
    if (native) return native;
    free(cq->entries);
    free(cq);
    return 0;
}

/* ---- shared receive queues ---- */

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr) {
    const struct ibv_device_attr *most = &fake_device_of(pd->context)->attr;
    if (attr->attr.max_wr < 1 || attr->attr.max_wr > (uint32_t)most->max_srq_wr ||
        attr->attr.max_sge > (uint32_t)most->max_srq_sge)
        return errno = EINVAL, NULL;
    fake_srq *srq = calloc(1, sizeof *srq);
    if (srq) srq->rq.receives = calloc(attr->attr.max_wr, sizeof *srq->rq.receives);
    if (!srq || !srq->rq.receives) return free(srq), errno = ENOMEM, NULL;
    srq->srq.context = pd->context;
    srq->srq.srq_context = attr->srq_context;
    srq->srq.pd = pd;
    srq->rq.capacity = attr->attr.max_wr;
    srq->rq.max_sge = (int)attr->attr.max_sge;
    srq->rq.pd = ((fake_pd *)pd)->of;
    pthread_mutex_lock(&fake_lock);
    ((fake_pd *)pd)->objects++;
    made(pd->context, 1);
    pthread_mutex_unlock(&fake_lock);
    return &srq->srq;
}

int ibv_destroy_srq(struct ibv_srq *handle) {
    fake_srq *srq = (fake_srq *)handle;
    pthread_mutex_lock(&fake_lock);
    const bool busy = srq->objects != 0;
    if (busy) {
        fake_complain("a shared receive queue was destroyed before its queue pairs");
    } else {
        ((fake_pd *)handle->pd)->objects--;
        made(handle->context, -1);
    }
    pthread_mutex_unlock(&fake_lock);
    if (busy) return EBUSY;
    free(srq->rq.receives);
    free(srq);
    return 0;
}
