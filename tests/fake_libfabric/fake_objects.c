/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Opening, binding and closing: domain, address vector, queues, memory regions, endpoints. */
#include "fake_efa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

enum { OPT_CUDA_API_PERMITTED = 10, OPT_SHARED_MEMORY_PERMITTED = 11 }; /* newer than some headers */

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
fake_ep *fake_endpoints;
fake_mr *fake_regions;
uint64_t fake_pinned;
static uint32_t next_key = 0x1234;
static uint16_t next_qpn = 1;

long fake_number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 0) : otherwise;
}

static void count(fake_domain *domain, int change) {
    pthread_mutex_lock(&fake_lock);
    domain->objects += change;
    pthread_mutex_unlock(&fake_lock);
}

static void complain(const char *text) { fprintf(stderr, "fake libfabric: %s\n", text); }

/* ---- address vector ---- */

static int av_insert(struct fid_av *fid, const void *addresses, size_t n, fi_addr_t *out, uint64_t flags,
                     void *context) {
    fake_av *av = (fake_av *)fid;
    const fake_address *address = addresses;
    int inserted = 0;
    (void)flags, (void)context;
    pthread_mutex_lock(&fake_lock);
    for (size_t i = 0; i < n; i++) {
        size_t slot = 0, vacant = FAKE_MAX_PEERS;
        for (; slot < FAKE_MAX_PEERS; slot++) {
            if (av->used[slot] && memcmp(&av->peers[slot], &address[i], sizeof *address) == 0) break;
            if (!av->used[slot] && vacant == FAKE_MAX_PEERS) vacant = slot;
        }
        if (slot == FAKE_MAX_PEERS) slot = vacant;
        out[i] = FI_ADDR_NOTAVAIL;
        if (slot == FAKE_MAX_PEERS) continue;
        av->peers[slot] = address[i];
        av->used[slot] = true;
        out[i] = slot;
        inserted++;
    }
    pthread_mutex_unlock(&fake_lock);
    return inserted;
}

static int av_remove(struct fid_av *fid, fi_addr_t *addresses, size_t n, uint64_t flags) {
    fake_av *av = (fake_av *)fid;
    (void)flags;
    pthread_mutex_lock(&fake_lock);
    for (size_t i = 0; i < n; i++) av->used[addresses[i]] = false;
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

static int av_close(struct fid *fid) {
    count(((fake_av *)fid)->domain, -1);
    free(fid);
    return 0;
}

static struct fi_ops av_fid_ops = {.size = sizeof(struct fi_ops), .close = av_close};
static struct fi_ops_av av_ops = {.size = sizeof(struct fi_ops_av), .insert = av_insert, .remove = av_remove};

static int av_open(struct fid_domain *domain, struct fi_av_attr *attr, struct fid_av **out, void *context) {
    if (attr->type == FI_AV_MAP) return -FI_ENOSYS;
    fake_av *av = calloc(1, sizeof *av);
    if (!av) return -FI_ENOMEM;
    av->fid.fid = (struct fid){FI_CLASS_AV, context, &av_fid_ops};
    av->fid.ops = &av_ops;
    av->domain = (fake_domain *)domain;
    count(av->domain, 1);
    *out = &av->fid;
    return 0;
}

/* ---- completion and event queues ---- */

static int cq_close(struct fid *fid) {
    fake_cq *cq = (fake_cq *)fid;
    while (cq->first) {
        fake_entry *entry = cq->first;
        cq->first = entry->next;
        free(entry);
    }
    count(cq->domain, -1);
    free(cq);
    return 0;
}

static int no_control(struct fid *fid, int command, void *arg) {
    (void)fid, (void)command, (void)arg;
    return -FI_ENOSYS;
}

static struct fi_ops cq_fid_ops = {.size = sizeof(struct fi_ops), .close = cq_close, .control = no_control};

static int cq_open(struct fid_domain *domain, struct fi_cq_attr *attr, struct fid_cq **out, void *context) {
    if (attr->wait_obj != FI_WAIT_NONE || attr->format != FI_CQ_FORMAT_DATA) return -FI_ENOSYS;
    fake_cq *cq = calloc(1, sizeof *cq);
    if (!cq) return -FI_ENOMEM;
    cq->fid.fid = (struct fid){FI_CLASS_CQ, context, &cq_fid_ops};
    cq->fid.ops = &fake_cq_ops;
    cq->domain = (fake_domain *)domain;
    cq->last = &cq->first;
    count(cq->domain, 1);
    *out = &cq->fid;
    return 0;
}

int fake_trywait(struct fid_fabric *fabric, struct fid **fids, int n) {
    (void)fabric, (void)fids, (void)n;
    return -FI_ENOSYS;
}

static ssize_t eq_read(struct fid_eq *fid, uint32_t *event, void *buffer, size_t nbytes, uint64_t flags) {
    (void)event, (void)buffer, (void)nbytes, (void)flags;
    pthread_mutex_lock(&fake_lock);
    int fatal = ((fake_eq *)fid)->fatal;
    pthread_mutex_unlock(&fake_lock);
    return fatal ? -FI_EAVAIL : -FI_EAGAIN;
}

static ssize_t eq_readerr(struct fid_eq *fid, struct fi_eq_err_entry *entry, uint64_t flags) {
    fake_eq *eq = (fake_eq *)fid;
    (void)flags;
    pthread_mutex_lock(&fake_lock);
    entry->err = eq->fatal;
    eq->fatal = 0;
    pthread_mutex_unlock(&fake_lock);
    return entry->err ? (ssize_t)sizeof *entry : -FI_EAGAIN;
}

static int eq_close(struct fid *fid) {
    free(fid);
    return 0;
}

static struct fi_ops eq_fid_ops = {.size = sizeof(struct fi_ops), .close = eq_close};
static struct fi_ops_eq eq_ops = {.size = sizeof(struct fi_ops_eq), .read = eq_read, .readerr = eq_readerr};

int fake_eq_open(struct fid_fabric *fabric, struct fi_eq_attr *attr, struct fid_eq **out, void *context) {
    (void)fabric, (void)attr;
    fake_eq *eq = calloc(1, sizeof *eq);
    if (!eq) return -FI_ENOMEM;
    eq->fid.fid = (struct fid){FI_CLASS_EQ, context, &eq_fid_ops};
    eq->fid.ops = &eq_ops;
    *out = &eq->fid;
    return 0;
}

/* ---- memory ---- */

static int mr_close(struct fid *fid) {
    fake_mr *mr = (fake_mr *)fid, **link = &fake_regions;
    pthread_mutex_lock(&fake_lock);
    while (*link != mr) link = &(*link)->next;
    *link = mr->next;
    mr->domain->objects--;
    if (mr->domain->regions >= 0) mr->domain->regions++;
    if (mr->domain->pins) fake_pinned -= mr->nbytes;
    pthread_mutex_unlock(&fake_lock);
    if (mr->mapped) munmap(mr->mapped, mr->mapped_nbytes);
    free(mr);
    return 0;
}

/* Under fake_lock: takes a region's share of what there is, or says what there is no more of. */
static int take_share(fake_domain *domain, uint64_t nbytes) {
    struct rlimit limit;
    if (domain->regions == 0) return -FI_ENOSPC;
    if (domain->pins && getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && fake_pinned + nbytes > limit.rlim_cur)
        return -FI_ENOMEM;
    if (domain->regions > 0) domain->regions--;
    if (domain->pins) fake_pinned += nbytes;
    return 0;
}

static struct fi_ops mr_fid_ops = {.size = sizeof(struct fi_ops), .close = mr_close};

static int mr_regattr(struct fid *fid, const struct fi_mr_attr *attr, uint64_t flags, struct fid_mr **out) {
    int ret = 0;
    if (attr->iov_count != 1 || attr->iface > FI_HMEM_CUDA) return -FI_ENOSYS;
    fake_mr *mr = calloc(1, sizeof *mr);
    if (!mr) return -FI_ENOMEM;
    mr->domain = (fake_domain *)fid;
    mr->access = attr->access;
    if (attr->iface == FI_HMEM_SYSTEM) {
        ret = flags ? -FI_EBADFLAGS : 0;
        mr->alias = attr->mr_iov->iov_base;
        mr->address = (uintptr_t)attr->mr_iov->iov_base;
        mr->nbytes = attr->mr_iov->iov_len;
    } else {
        ret = fake_register_gpu(mr, attr, flags);
    }
    if (ret) {
        free(mr);
        return ret;
    }
    mr->fid.fid = (struct fid){FI_CLASS_MR, attr->context, &mr_fid_ops};
    mr->fid.mem_desc = mr;
    pthread_mutex_lock(&fake_lock);
    ret = take_share(mr->domain, mr->nbytes);
    if (ret) {
        pthread_mutex_unlock(&fake_lock);
        if (mr->mapped) munmap(mr->mapped, mr->mapped_nbytes);
        free(mr);
        return ret;
    }
    next_key = next_key * 2654435761u + 97;
    mr->fid.key = next_key;
    mr->next = fake_regions;
    fake_regions = mr;
    mr->domain->objects++;
    pthread_mutex_unlock(&fake_lock);
    *out = &mr->fid;
    return 0;
}

/* ---- endpoint ---- */

static int ep_bind(struct fid *fid, struct fid *to, uint64_t flags) {
    fake_ep *ep = (fake_ep *)fid;
    if (to->fclass == FI_CLASS_AV)
        ep->av = (fake_av *)to;
    else if (to->fclass == FI_CLASS_CQ && flags == (FI_TRANSMIT | FI_RECV))
        ep->cq = (fake_cq *)to;
    else if (to->fclass == FI_CLASS_EQ)
        ep->eq = (fake_eq *)to;
    else
        return -FI_EINVAL;
    return 0;
}

static bool is_since(int minor) { return FI_VERSION_GE(fi_version(), FI_VERSION(1, (uint32_t)minor)); }

/* Without CUDA there is nothing to forbid, which it calls an error; and with it, all that can't do without. */
static int forbid_cuda(fake_ep *ep, bool permitted) {
    ep->no_cuda = !permitted;
    if (!getenv("FAKE_EFA_CUDA")) return -FI_EINVAL;
    return permitted || fake_number("FAKE_EFA_P2P", 1) ? 0 : -FI_EOPNOTSUPP;
}

static int set_p2p(fake_ep *ep, const void *value, size_t nbytes) {
    if (nbytes != sizeof(int) || *(const int *)value != FI_HMEM_P2P_REQUIRED || !getenv("FAKE_EFA_CUDA"))
        return -FI_EINVAL;
    ep->p2p = fake_number("FAKE_EFA_P2P", 1);
    return ep->p2p ? 0 : -FI_EOPNOTSUPP;
}

static int ep_control(struct fid *fid, int command, void *arg) {
    fake_ep *ep = (fake_ep *)fid;
    (void)arg;
    if (command != FI_ENABLE) return -FI_ENOSYS;
    if (!ep->av || !ep->cq) return -FI_ENOCQ;
    if (!ep->eq || (is_since(19) && !ep->no_shm) || (is_since(18) && !ep->no_cuda)) {
        complain(!ep->eq ? "no event queue is bound: the real library would abort() at a fatal error"
                         : "FI_OPT_SHARED_MEMORY_PERMITTED or FI_OPT_CUDA_API_PERMITTED was not set to false");
        return -FI_EINVAL;
    }
    if (ep->domain->hmem && !ep->p2p) {
        complain("FI_OPT_FI_HMEM_P2P was not set to FI_HMEM_P2P_REQUIRED");
        return -FI_EINVAL;
    }
    pthread_mutex_lock(&fake_lock);
    ep->enabled = true;
    pthread_mutex_unlock(&fake_lock);
    return 0;
}

static int ep_setopt(fid_t fid, int level, int name, const void *value, size_t nbytes) {
    fake_ep *ep = (fake_ep *)fid;
    if (level != FI_OPT_ENDPOINT || ep->enabled) return -FI_EINVAL;
    if (name == FI_OPT_FI_HMEM_P2P) return set_p2p(ep, value, nbytes);
    if (nbytes != sizeof(bool)) return -FI_EINVAL;
    bool permitted = *(const bool *)value;
    if (name == OPT_SHARED_MEMORY_PERMITTED && is_since(19))
        ep->no_shm = !permitted;
    else if (name == OPT_CUDA_API_PERMITTED && is_since(18))
        return forbid_cuda(ep, permitted);
    else
        return -FI_ENOPROTOOPT;
    return 0;
}

static int ep_getname(fid_t fid, void *address, size_t *nbytes) {
    size_t capacity = *nbytes;
    *nbytes = sizeof(fake_address);
    if (capacity < sizeof(fake_address)) return -FI_ETOOSMALL;
    memcpy(address, &((fake_ep *)fid)->address, sizeof(fake_address));
    return 0;
}

static int ep_close(struct fid *fid) {
    fake_ep *ep = (fake_ep *)fid, **link = &fake_endpoints;
    pthread_mutex_lock(&fake_lock);
    while (*link != ep) link = &(*link)->next;
    *link = ep->next;
    fake_forget(ep);
    ep->domain->objects--;
    pthread_mutex_unlock(&fake_lock);
    free(ep);
    return 0;
}

static struct fi_ops ep_fid_ops = {
    .size = sizeof(struct fi_ops), .close = ep_close, .bind = ep_bind, .control = ep_control};
static struct fi_ops_ep ep_ops = {.size = sizeof(struct fi_ops_ep), .cancel = fake_cancel, .setopt = ep_setopt};
static struct fi_ops_cm cm_ops = {.size = sizeof(struct fi_ops_cm), .getname = ep_getname};

static int ep_open(struct fid_domain *fid, struct fi_info *info, struct fid_ep **out, void *context) {
    fake_ep *ep = calloc(1, sizeof *ep);
    if (!ep) return -FI_ENOMEM;
    ep->fid.fid = (struct fid){FI_CLASS_EP, context, &ep_fid_ops};
    ep->fid.ops = &ep_ops;
    ep->fid.cm = &cm_ops;
    ep->fid.msg = &fake_msg_ops;
    ep->fid.rma = &fake_rma_ops;
    ep->domain = (fake_domain *)fid;
    memcpy(&ep->address, info->src_addr, sizeof ep->address);
    pthread_mutex_lock(&fake_lock);
    ep->address.qpn = next_qpn++;
    ep->address.qkey = (uint32_t)fake_random(ep->domain);
    ep->next = fake_endpoints;
    fake_endpoints = ep;
    ep->domain->objects++;
    pthread_mutex_unlock(&fake_lock);
    *out = &ep->fid;
    return 0;
}

/* ---- domain ---- */

/* xorshift64*; under fake_lock once the domain is open. */
uint64_t fake_random(fake_domain *domain) {
    uint64_t x = domain->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    domain->random = x;
    return x * 0x2545f4914f6cdd1dull;
}

static int domain_close(struct fid *fid) {
    fake_domain *domain = (fake_domain *)fid;
    pthread_mutex_lock(&fake_lock);
    int objects = domain->objects;
    pthread_mutex_unlock(&fake_lock);
    if (objects) {
        complain("a domain was closed before what belongs to it");
        return -FI_EBUSY;
    }
    free(domain);
    return 0;
}

static struct fi_ops domain_fid_ops = {.size = sizeof(struct fi_ops), .close = domain_close};
static struct fi_ops_domain domain_ops = {
    .size = sizeof(struct fi_ops_domain), .av_open = av_open, .cq_open = cq_open, .endpoint = ep_open};
static struct fi_ops_mr mr_ops = {.size = sizeof(struct fi_ops_mr), .regattr = mr_regattr};

int fake_domain_open(struct fid_fabric *fabric, struct fi_info *info, struct fid_domain **out, void *context) {
    fake_domain *domain = calloc(1, sizeof *domain);
    if (!domain) return -FI_ENOMEM;
    domain->fid.fid = (struct fid){FI_CLASS_DOMAIN, context, &domain_fid_ops};
    domain->fid.ops = &domain_ops;
    domain->fid.mr = &mr_ops;
    domain->nic = ((fake_address *)info->src_addr)->gid[15];
    domain->random = (uint64_t)fake_number("FAKE_EFA_SEED", 1) * 0x9e3779b97f4a7c15ull + domain->nic;
    domain->tx_size = (size_t)fake_number("FAKE_EFA_TX_SIZE", FAKE_TX_SIZE);
    domain->again = fake_number("FAKE_EFA_AGAIN", -1);
    domain->regions = fake_number("FAKE_EFA_REGIONS", -1);
    domain->pins = fake_number("FAKE_EFA_PINS", 0) != 0;
    domain->fatal_after = fake_number("FAKE_EFA_FATAL_AFTER", -1);
    domain->api = fabric->api_version;
    domain->hmem = info->caps & FI_HMEM;
    *out = &domain->fid;
    return 0;
}
