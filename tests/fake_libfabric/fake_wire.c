/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The wire: posting, and progress, which happens when the source's CQ is read.
 *
 * An operation lands (bytes, then immediate, in one step under the lock, so that an immediate
 * never precedes its bytes) and later completes at its source. Each progress call picks some of
 * all that is in flight at random and moves it one step, so neither landings nor completions keep
 * the order of posting. Messages land in random order, too, each in the oldest RECV that fits. */
#include "fake_efa.h"

#include <stdlib.h>
#include <string.h>

enum { STEPS = 12, EAGAIN_ONE_IN = 9 };
enum { ENTRY_OF_1_17 = offsetof(struct fi_cq_err_entry, err_data_size) + sizeof(size_t) };

void fake_push(fake_cq *cq, void *context, uint64_t flags, uint64_t nbytes, uint64_t data, int err, int status) {
    fake_entry *entry = calloc(1, sizeof *entry);
    if (!entry) abort();
    entry->entry.op_context = context;
    entry->entry.flags = flags;
    entry->entry.len = nbytes;
    entry->entry.data = data;
    entry->entry.err = err;
    entry->entry.prov_errno = status;
    *cq->last = entry;
    cq->last = &entry->next;
}

static int error_of(int status) {
    switch (status) {
    case FAKE_OK: return 0;
    case FAKE_FLUSHED: return FI_ECANCELED;
    case FAKE_BAD_DEST_QPN:
    case FAKE_UNKNOWN_PEER: return FI_ENOTCONN;
    default: return FI_EINVAL;
    }
}

static bool knows(const fake_av *av, const fake_address *address) {
    for (size_t i = 0; i < FAKE_MAX_PEERS; i++)
        if (av->used[i] && memcmp(&av->peers[i], address, sizeof *address) == 0) return true;
    return false;
}

static fake_ep *find_endpoint(const fake_address *address) {
    fake_ep *ep = fake_endpoints;
    while (ep && !(ep->enabled && memcmp(&ep->address, address, sizeof *address) == 0)) ep = ep->next;
    return ep;
}

static bool covers(const fake_mr *mr, uint64_t address, uint64_t nbytes) {
    return address >= mr->address && nbytes <= mr->nbytes && address - mr->address <= mr->nbytes - nbytes;
}

static unsigned char *bytes_of(const fake_mr *mr, uint64_t address) { return mr->alias + (address - mr->address); }

/* The bytes that the key and the range name at the target, also if there are none of them; NULL: they name nothing. */
static unsigned char *find_remote(const fake_ep *target, const fake_op *op) {
    uint64_t access = op->kind == FAKE_READ ? FI_REMOTE_READ : FI_REMOTE_WRITE;
    for (const fake_mr *mr = fake_regions; mr; mr = mr->next)
        if (mr->domain == target->domain && mr->fid.key == op->key)
            return (mr->access & access) && covers(mr, op->remote, op->nbytes) ? bytes_of(mr, op->remote) : NULL;
    return NULL;
}

static void append(fake_op **list, fake_op *op) {
    while (*list) list = &(*list)->next;
    op->next = NULL;
    *list = op;
}

static bool wanted_by(const fake_ep *ep, const fake_op *receive, const fake_op *message) {
    return receive->from == FI_ADDR_UNSPEC ||
           (ep->av->used[receive->from] &&
            memcmp(&ep->av->peers[receive->from], &message->target, sizeof message->target) == 0);
}

static void deliver(fake_ep *ep, fake_op *receive, fake_op *message) {
    bool fits = message->nbytes <= receive->nbytes;
    if (fits && message->nbytes) memcpy(receive->local, message->local, message->nbytes);
    fake_push(ep->cq, receive->context, FI_MSG | FI_RECV, message->nbytes, 0, fits ? 0 : FI_ETRUNC, 0);
    free(message->local);
    free(message);
    free(receive);
}

/* Pair what can be paired, oldest RECV and oldest message first. */
static void match(fake_ep *ep) {
    for (fake_op **message = &ep->unexpected; *message;) {
        fake_op **receive = &ep->receives;
        while (*receive && !wanted_by(ep, *receive, *message)) receive = &(*receive)->next;
        if (!*receive) {
            message = &(*message)->next;
            continue;
        }
        fake_op *m = *message, *r = *receive;
        *message = m->next;
        *receive = r->next;
        deliver(ep, r, m);
    }
}

static int land(fake_ep *source, fake_op *op) {
    fake_ep *target = find_endpoint(&op->target);
    if (!target) return FAKE_BAD_DEST_QPN;
    if (!knows(target->av, &source->address)) return FAKE_UNKNOWN_PEER;
    if (op->kind == FAKE_SEND) {
        fake_op *message = calloc(1, sizeof *message);
        if (!message) abort();
        message->nbytes = op->nbytes;
        message->target = source->address;
        message->local = malloc(op->nbytes + 1);
        if (!message->local) abort();
        memcpy(message->local, op->local, op->nbytes);
        append(&target->unexpected, message);
        match(target);
        return FAKE_OK;
    }
    unsigned char *remote = find_remote(target, op);
    if (!remote) return FAKE_BAD_ADDRESS;
    if (op->nbytes)
        memcpy(op->kind == FAKE_READ ? op->local : remote, op->kind == FAKE_READ ? remote : op->local, op->nbytes);
    if (op->flags & FI_REMOTE_CQ_DATA) /* op_context and len mean nothing there, so they are nonsense */
        fake_push(target->cq, (void *)(uintptr_t)0xdead, FI_RMA | FI_REMOTE_WRITE | FI_REMOTE_CQ_DATA, 0xdead, op->data,
                  0, 0);
    return FAKE_OK;
}

static void complete(fake_ep *ep, fake_op *op) {
    uint64_t flags = op->kind == FAKE_SEND ? FI_MSG | FI_SEND : FI_RMA | (op->kind == FAKE_READ ? FI_READ : FI_WRITE);
    fake_push(ep->cq, op->context, flags, 0, 0, error_of(op->status), op->status);
    ep->ninflight--;
    free(op);
}

static bool is_dead(fake_domain *domain, fake_ep *ep) {
    if (domain->fatal_after > 0 || domain->fatal_after < -1) return domain->fatal_after < -1;
    if (domain->fatal_after == 0) {
        ep->eq->fatal = FI_EIO;
        domain->fatal_after = -2;
        return true;
    }
    return false;
}

static void progress(fake_domain *domain) {
    for (fake_ep *ep = fake_endpoints; ep; ep = ep->next) {
        if (ep->domain != domain || is_dead(domain, ep)) continue;
        for (int step = 0; step < STEPS && ep->ninflight; step++) {
            size_t skip = fake_random(domain) % ep->ninflight;
            fake_op **link = &ep->inflight;
            while (skip--) link = &(*link)->next;
            fake_op *op = *link;
            if (!op->rung) continue;
            if (!op->landed) {
                if (!op->status) op->status = land(ep, op);
                op->landed = true;
                continue;
            }
            *link = op->next;
            complete(ep, op);
            if (domain->fatal_after > 0) domain->fatal_after--;
        }
    }
}

/* ---- completion queue ---- */

static ssize_t cq_read(struct fid_cq *fid, void *buffer, size_t n) {
    fake_cq *cq = (fake_cq *)fid;
    struct fi_cq_data_entry *out = buffer;
    ssize_t got = 0;
    pthread_mutex_lock(&fake_lock);
    progress(cq->domain);
    while (cq->first && !cq->first->entry.err && (size_t)got < n) {
        fake_entry *entry = cq->first;
        out[got++] = (struct fi_cq_data_entry){.op_context = entry->entry.op_context,
                                               .flags = entry->entry.flags,
                                               .len = entry->entry.len,
                                               .data = entry->entry.data};
        cq->first = entry->next;
        if (!cq->first) cq->last = &cq->first;
        free(entry);
    }
    if (!got) got = cq->first && cq->first->entry.err ? -FI_EAVAIL : -FI_EAGAIN;
    pthread_mutex_unlock(&fake_lock);
    return got;
}

static ssize_t cq_readerr(struct fid_cq *fid, struct fi_cq_err_entry *out, uint64_t flags) {
    fake_cq *cq = (fake_cq *)fid;
    ssize_t got = -FI_EAGAIN;
    (void)flags;
    pthread_mutex_lock(&fake_lock);
    fake_entry *entry = cq->first;
    if (entry && entry->entry.err) {
        *out = entry->entry;
        if (FI_VERSION_GE(cq->domain->api, FI_VERSION(1, 20))) /* src_addr, newer than some headers */
            memset((char *)out + ENTRY_OF_1_17, 0xff, sizeof(fi_addr_t));
        cq->first = entry->next;
        if (!cq->first) cq->last = &cq->first;
        free(entry);
        got = 1;
    }
    pthread_mutex_unlock(&fake_lock);
    return got;
}

static const char *cq_strerror(struct fid_cq *fid, int status, const void *data, char *buffer, size_t nbytes) {
    (void)fid, (void)status, (void)data, (void)buffer, (void)nbytes;
    return "(fake)";
}

struct fi_ops_cq fake_cq_ops = {
    .size = sizeof(struct fi_ops_cq), .read = cq_read, .readerr = cq_readerr, .strerror = cq_strerror};

/* ---- posting ---- */

/* The bytes that an iov and its descriptor name; NULL: they name nothing. */
static unsigned char *find_local(const fake_ep *ep, const struct iovec *iov, void **desc) {
    const fake_mr *mr = desc ? desc[0] : NULL;
    const fake_mr *known = fake_regions;
    while (known && known != mr) known = known->next;
    if (!known || mr->domain != ep->domain || !covers(mr, (uintptr_t)iov->iov_base, iov->iov_len)) return NULL;
    return bytes_of(mr, (uintptr_t)iov->iov_base);
}

static bool is_busy(fake_domain *domain) {
    const uint64_t drawn = fake_random(domain);
    return domain->again < 0 ? drawn % EAGAIN_ONE_IN == 0 : drawn % 100 < (uint64_t)domain->again;
}

/* Takes the op, or says why not; a work request behind one with FI_MORE rings for both. */
static ssize_t post(fake_ep *ep, fake_op model, const struct iovec *iov, void **desc, fi_addr_t to) {
    ssize_t ret = 0;
    pthread_mutex_lock(&fake_lock);
    if (!ep->enabled || to >= FAKE_MAX_PEERS || !ep->av->used[to] || (model.flags & FI_INJECT) ||
        ((model.flags & FI_REMOTE_CQ_DATA) && model.data >> 32)) {
        ret = -FI_EINVAL;
    } else if (ep->ninflight >= ep->domain->tx_size || is_busy(ep->domain)) {
        ret = -FI_EAGAIN;
    } else {
        fake_op *op = malloc(sizeof *op);
        if (!op) abort();
        *op = model;
        op->local = find_local(ep, iov, desc);
        op->nbytes = iov->iov_len;
        op->target = ep->av->peers[to];
        op->status = op->local ? FAKE_OK : FAKE_INVALID_LKEY;
        op->next = ep->inflight;
        ep->inflight = op;
        ep->ninflight++;
        if (!(op->flags & FI_MORE) || fake_number("FAKE_EFA_RINGS", 0))
            for (; op; op = op->next) op->rung = true;
    }
    pthread_mutex_unlock(&fake_lock);
    return ret;
}

static ssize_t post_rma(struct fid_ep *fid, const struct fi_msg_rma *message, uint64_t flags, enum fake_kind kind) {
    if (message->iov_count != 1 || message->rma_iov_count != 1 || message->rma_iov->len != message->msg_iov->iov_len)
        return -FI_EINVAL;
    fake_op model = {.kind = kind,
                     .context = message->context,
                     .flags = flags,
                     .data = message->data,
                     .remote = message->rma_iov->addr,
                     .key = message->rma_iov->key};
    return post((fake_ep *)fid, model, message->msg_iov, message->desc, message->addr);
}

static ssize_t ep_writemsg(struct fid_ep *fid, const struct fi_msg_rma *message, uint64_t flags) {
    return post_rma(fid, message, flags, FAKE_WRITE);
}

static ssize_t ep_readmsg(struct fid_ep *fid, const struct fi_msg_rma *message, uint64_t flags) {
    return flags & FI_REMOTE_CQ_DATA ? -FI_EINVAL : post_rma(fid, message, flags, FAKE_READ);
}

static ssize_t ep_sendmsg(struct fid_ep *fid, const struct fi_msg *message, uint64_t flags) {
    if (message->iov_count != 1) return -FI_EINVAL;
    fake_op model = {.kind = FAKE_SEND, .context = message->context, .flags = flags};
    return post((fake_ep *)fid, model, message->msg_iov, message->desc, message->addr);
}

static ssize_t ep_recvmsg(struct fid_ep *fid, const struct fi_msg *message, uint64_t flags) {
    fake_ep *ep = (fake_ep *)fid;
    ssize_t ret = 0;
    (void)flags;
    pthread_mutex_lock(&fake_lock);
    unsigned char *local = message->iov_count == 1 ? find_local(ep, message->msg_iov, message->desc) : NULL;
    if (!local) {
        ret = -FI_EINVAL;
    } else if (is_busy(ep->domain)) {
        ret = -FI_EAGAIN;
    } else {
        fake_op *receive = calloc(1, sizeof *receive);
        if (!receive) abort();
        receive->context = message->context;
        receive->local = local;
        receive->nbytes = message->msg_iov->iov_len;
        receive->from = message->addr;
        append(&ep->receives, receive);
        match(ep);
    }
    pthread_mutex_unlock(&fake_lock);
    return ret;
}

struct fi_ops_msg fake_msg_ops = {.size = sizeof(struct fi_ops_msg), .recvmsg = ep_recvmsg, .sendmsg = ep_sendmsg};
struct fi_ops_rma fake_rma_ops = {.size = sizeof(struct fi_ops_rma), .readmsg = ep_readmsg, .writemsg = ep_writemsg};

/* RECVs only, as with the real one. */
ssize_t fake_cancel(fid_t fid, void *context) {
    fake_ep *ep = (fake_ep *)fid;
    ssize_t ret = -FI_ENOENT;
    pthread_mutex_lock(&fake_lock);
    for (fake_op **link = &ep->receives; *link; link = &(*link)->next) {
        fake_op *receive = *link;
        if (receive->context != context) continue;
        *link = receive->next;
        fake_push(ep->cq, context, FI_MSG | FI_RECV, 0, 0, FI_ECANCELED, FAKE_FLUSHED);
        free(receive);
        ret = 0;
        break;
    }
    pthread_mutex_unlock(&fake_lock);
    return ret;
}

static void free_all(fake_op **list, bool copies) {
    while (*list) {
        fake_op *op = *list;
        *list = op->next;
        if (copies) free(op->local);
        free(op);
    }
}

/* The queue pair is gone: what was in flight is never heard of again. */
void fake_forget(fake_ep *ep) {
    free_all(&ep->inflight, false);
    free_all(&ep->receives, false);
    free_all(&ep->unexpected, true);
}
