/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The completion queue: polling, errors, waiting, and draining it when an endpoint closes. */
#if PPLX_HAVE_LIBFABRIC

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>

#include "fabric_internal.h"

enum { BATCH = 32 }; /* CQ entries read at a time: 40 B each, on the stack */

/* EFA's own numbers in prov_errno (efa_errno.h; the device's completion statuses are below 4096). */
enum { EFA_INVALID_LKEY = 5, EFA_BAD_REMOTE_ADDRESS = 7, EFA_EMULATED_RMA_ADDRESS = 4111 };

pplx_status fabric_status(int native) {
    switch (native) {
    case 0: return PPLX_OK;
    case FI_EAGAIN: return PPLX_AGAIN;
    case FI_ENOMEM: return PPLX_NO_MEMORY;
    case FI_EINVAL: return PPLX_INVALID;
    case FI_EMSGSIZE:
    case FI_ETOOSMALL: return PPLX_TOO_LARGE;
    case FI_ETRUNC: return PPLX_TRUNCATED;
    case FI_ENOSYS:
    case FI_EOPNOTSUPP: return PPLX_UNSUPPORTED;
    case FI_EACCES:
    case FI_EPERM:
    case FI_EKEYREJECTED: return PPLX_REMOTE_ACCESS;
    case FI_ECANCELED:
    case FI_ENOTCONN:
    case FI_ECONNRESET:
    case FI_ECONNABORTED:
    case FI_ESHUTDOWN: return PPLX_CONNECTION;
    default: return PPLX_TRANSPORT;
    }
}

/* tcp and tcp;ofi_rxm (1.17, 2.5.1) end an operation with ECANCELED whether the target refused its
 * key or range, died, or closed its endpoint: the target answers a bad write by dropping the
 * connection, which takes with it all that was in flight (tcp;ofi_rxm may say ENOTCONN of these).
 * So all that can be said is CONNECTION. EFA says what it knows in prov_errno. */
static pplx_status completion_status(const fabric_domain *domain, const fabric_op *op,
                                     const struct fi_cq_err_entry *entry) {
    if (entry->err == FI_ECANCELED && op->opcode == PPLX_RECV) return PPLX_FLUSHED;
    if (domain->quirks->efa_options) {
        if (entry->prov_errno == EFA_BAD_REMOTE_ADDRESS || entry->prov_errno == EFA_EMULATED_RMA_ADDRESS)
            return PPLX_REMOTE_ACCESS;
        if (entry->prov_errno == EFA_INVALID_LKEY) return PPLX_LOCAL_ACCESS;
    }
    pplx_status status = fabric_status(entry->err);
    /* Without connections (EFA) none can break: what ends like this failed by itself. */
    const bool no_connection = status == PPLX_CONNECTION && !domain->quirks->endpoint_per_peer;
    return no_connection || status == PPLX_OK || status == PPLX_AGAIN ? PPLX_TRANSPORT : status;
}

void fabric_finish(fabric_op *op, pplx_completion *completion, pplx_status status, int32_t provider_error,
                   uint64_t nbytes) {
    fabric_endpoint *endpoint = op->endpoint;
    fabric_list_remove(&op->link);
    if (endpoint->domain->last.op == op) endpoint->domain->unrung = false;
    if (op->opcode == PPLX_RECV) {
        endpoint->receives--;
    } else {
        endpoint->domain->inflight--;
        endpoint->inflight--;
        endpoint->inflight_bytes -= op->nbytes;
    }
    *completion = (pplx_completion){.op = (pplx_op *)op,
                                    .kind = PPLX_COMPLETION_OP,
                                    .status = status,
                                    .provider_error = provider_error,
                                    .nbytes = op->opcode == PPLX_RECV ? nbytes : 0};
}

/* Our own write of no bytes, see fabric_ring(): it has done its work, well or badly. */
static bool is_doorbell(fabric_domain *domain, const void *op) {
    if (op != &domain->doorbell) return false;
    domain->doorbell_out = false;
    return true;
}

/* tcp lets anyone connect who reaches an endpoint's port, and counts an immediate without data for a write
 * that names no key (2.5.1). So one that comes from no peer's address is nobody's. */
static void name_source(const fabric_domain *domain, fi_addr_t from, pplx_completion *completion) {
    if (from < domain->naddresses) completion->source = (const pplx_provider_endpoint *)domain->by_address[from];
    if (!completion->source) completion->status = PPLX_CONNECTION;
}

/* Entries of a peer's writes are told by FI_REMOTE_WRITE; their op_context, len and buf mean
 * nothing (2.5.1 leaves old values there). FI_REMOTE_CQ_DATA alone may also adorn a RECV. */
static size_t take_entry(fabric_domain *domain, const struct fi_cq_data_entry *entry, fi_addr_t from,
                         pplx_completion *completion) {
    if (entry->flags & FI_REMOTE_WRITE) {
        if (!(entry->flags & FI_REMOTE_CQ_DATA)) return 0;
        *completion = (pplx_completion){.kind = PPLX_COMPLETION_IMM, .imm = (uint32_t)entry->data};
        if (domain->tells_source) name_source(domain, from, completion);
        return 1;
    }
    if (!entry->op_context || is_doorbell(domain, entry->op_context)) return 0;
    fabric_finish(entry->op_context, completion, PPLX_OK, 0, entry->len);
    return 1;
}

static size_t take_error(fabric_domain *domain, struct fid_cq *cq, pplx_completion *completion, uint64_t *flags) {
    fabric_cq_error error = {.room = {0}}; /* err_data_size 0: the library lends its own buffer */
    const struct fi_cq_err_entry *entry = &error.entry;
    ssize_t ret = fi_cq_readerr(cq, &error.entry, 0);
    if (ret < 0) {
        if (ret != -FI_EAGAIN) domain->broken = (int32_t)-ret;
        return 0;
    }
    if (!entry->op_context || (entry->flags & FI_REMOTE_WRITE))
        return 0; /* a peer's operation that failed here: the peer hears of it */
    if (is_doorbell(domain, entry->op_context)) return 0;
    fabric_op *op = entry->op_context;
    /* prov_errno is EFA's own code; tcp leaves there whatever errno happened to be (2.5.1). */
    int native = domain->quirks->efa_options && entry->prov_errno ? entry->prov_errno : entry->err;
    pplx_status status = completion_status(domain, op, entry);
    if (status == PPLX_TRANSPORT || status == PPLX_CONNECTION) fabric_unsettle(op->endpoint);
    fabric_finish(op, completion, status, native, entry->len);
    *flags = entry->flags;
    return 1;
}

/* An error there ends the fabric endpoint; EFA reports it nowhere else. */
static void check_events(fabric_domain *domain) {
    uint32_t event = 0;
    struct fi_eq_entry entry;
    ssize_t ret = fi_eq_read(domain->eq, &event, &entry, sizeof entry, 0);
    if (ret != -FI_EAVAIL) return;
    struct fi_eq_err_entry error;
    memset(&error, 0, sizeof error);
    if (fi_eq_readerr(domain->eq, &error, 0) > 0) domain->broken = error.err ? error.err : FI_EOTHER;
}

size_t fabric_cq_read(fabric_domain *domain, struct fid_cq *cq, pplx_completion *completions, uint64_t *flags,
                      size_t capacity, bool *empty) {
    struct fi_cq_data_entry entries[BATCH];
    fi_addr_t from[BATCH] = {0};
    size_t count = 0;
    uint64_t unwanted;
    *empty = false;
    while (count < capacity && !domain->broken) {
        size_t wanted = capacity - count < BATCH ? capacity - count : BATCH;
        ssize_t got = domain->tells_source ? fi_cq_readfrom(cq, entries, wanted, from)
                                           : fi_cq_read(cq, entries, wanted);
        if (got > 0) {
            for (ssize_t i = 0; i < got; i++) {
                if (flags) flags[count] = entries[i].flags; /* room for it: count + got - i <= capacity */
                count += take_entry(domain, &entries[i], from[i], &completions[count]);
            }
            if ((size_t)got < wanted) break;
        } else if (got == -FI_EAVAIL) {
            count += take_error(domain, cq, &completions[count], flags ? &flags[count] : &unwanted);
        } else if (got == 0 || got == -FI_EAGAIN) {
            *empty = true;
            break;
        } else {
            domain->broken = (int32_t)-got;
        }
    }
    if (*empty && domain->eq) check_events(domain);
    return count;
}

void fabric_keep(fabric_domain *domain, fabric_op *op, pplx_status status, int32_t provider_error, uint64_t nbytes) {
    op->state.done.status = status;
    op->state.done.provider_error = provider_error;
    op->state.done.nbytes = nbytes;
    fabric_list_append(&domain->kept, &op->link);
}

static size_t take_kept(fabric_domain *domain, pplx_completion *completions, size_t capacity) {
    size_t count = 0;
    for (; count < capacity && !fabric_list_empty(&domain->kept); count++) {
        fabric_op *op = fabric_op_of(domain->kept.next);
        fabric_list_remove(&op->link);
        completions[count] = (pplx_completion){.op = (pplx_op *)op,
                                               .kind = PPLX_COMPLETION_OP,
                                               .status = op->state.done.status,
                                               .provider_error = op->state.done.provider_error,
                                               .nbytes = op->state.done.nbytes};
    }
    for (; count < capacity && domain->imms_count; count++) {
        const fabric_imm *kept = &domain->imms[domain->imms_first];
        completions[count] = (pplx_completion){
            .kind = PPLX_COMPLETION_IMM, .status = kept->status, .imm = kept->imm, .source = kept->source};
        domain->imms_first = (domain->imms_first + 1) % domain->imms_capacity;
        domain->imms_count--;
    }
    return count;
}

/* The queue is gone, and with it every completion that was to come: report them as lost. */
static size_t take_lost(fabric_domain *domain, pplx_completion *completions, size_t capacity) {
    size_t count = 0;
    for (fabric_link *link = domain->endpoints.next; link != &domain->endpoints; link = link->next) {
        fabric_endpoint *endpoint = fabric_endpoint_of(link);
        while (count < capacity && !fabric_list_empty(&endpoint->posted))
            fabric_finish(fabric_op_of(endpoint->posted.next), &completions[count++], PPLX_TRANSPORT, domain->broken,
                          0);
        while (count < capacity && !fabric_list_empty(&endpoint->waiting)) {
            fabric_finish(fabric_op_of(endpoint->waiting.next), &completions[count++], PPLX_TRANSPORT, domain->broken,
                          0);
            domain->waiting--;
        }
    }
    return count;
}

static void post_all_waiting(fabric_domain *domain) {
    for (fabric_link *link = domain->endpoints.next; link != &domain->endpoints; link = link->next)
        fabric_post_waiting(fabric_endpoint_of(link));
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void fabric_unsettle(fabric_endpoint *endpoint) {
    if (endpoint->domain->quirks->settle_ms)
        endpoint->settled_ns = now_ns() + endpoint->domain->quirks->settle_ms * 1000000ull;
}

/* A CQ of its own says whose immediates these are.
 *
 * It is settled by a read that began late enough: time alone is not, the library notices a broken
 * connection inside of reads only. */
size_t fabric_cq_read_own(fabric_endpoint *endpoint, pplx_completion *completions, uint64_t *flags, size_t capacity) {
    bool empty, due = endpoint->settled_ns && now_ns() >= endpoint->settled_ns;
    size_t count = fabric_cq_read(endpoint->domain, endpoint->cq, completions, flags, capacity, &empty);
    for (size_t i = 0; i < count; i++)
        if (completions[i].kind == PPLX_COMPLETION_IMM)
            completions[i].source = (const pplx_provider_endpoint *)endpoint;
    if (due && empty) endpoint->settled_ns = 0;
    return count;
}

/* A CQ for each endpoint: another one comes first each time, so that none starves the others. */
static size_t read_all(fabric_domain *domain, pplx_completion *completions, size_t capacity) {
    size_t count = 0;
    bool empty;
    if (domain->cq) return fabric_cq_read(domain, domain->cq, completions, NULL, capacity, &empty);
    for (fabric_link *link = domain->endpoints.next; link != &domain->endpoints; link = link->next)
        count += fabric_cq_read_own(fabric_endpoint_of(link), completions + count, NULL, capacity - count);
    if (!fabric_list_empty(&domain->endpoints)) {
        fabric_link *first = domain->endpoints.next;
        fabric_list_remove(first);
        fabric_list_append(&domain->endpoints, first);
    }
    return count;
}

size_t fabric_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity) {
    fabric_domain *domain = (fabric_domain *)handle;
    size_t count = take_kept(domain, completions, capacity);
    count += read_all(domain, completions + count, capacity - count);
    if (domain->broken)
        count += take_lost(domain, completions + count, capacity - count);
    else if (domain->waiting)
        post_all_waiting(domain);
    if (domain->unrung) fabric_ring(domain);
    return count;
}

bool fabric_may_sleep(const fabric_domain *domain, struct fid_cq *cq) {
    struct fid *fids[] = {&cq->fid};
    return fi_trywait(domain->fabric, fids, 1) == 0;
}

/* Its ops end in take_lost(); after that poll() has nothing to do for good. The fds of its queues may
 * stay readable, so our epoll does not listen to them any more (a shared queue's fd is the engine's). */
static pplx_status arm_broken(const fabric_domain *domain) {
    for (fabric_link *link = domain->endpoints.next; link != &domain->endpoints; link = link->next) {
        const fabric_endpoint *endpoint = fabric_endpoint_of(link);
        int fd = -1;
        if (!fabric_list_empty(&endpoint->posted) || !fabric_list_empty(&endpoint->waiting)) return PPLX_AGAIN;
        if (endpoint->wakes && !domain->cq && fi_control(&endpoint->cq->fid, FI_GETWAIT, &fd) == 0)
            epoll_ctl(domain->wait_fd, EPOLL_CTL_DEL, fd, NULL);
    }
    return PPLX_OK;
}

pplx_status fabric_arm(pplx_provider_domain *handle) {
    fabric_domain *domain = (fabric_domain *)handle;
    if (domain->wait_fd < 0) return PPLX_UNSUPPORTED;
    if (!fabric_list_empty(&domain->kept) || domain->imms_count) return PPLX_AGAIN;
    if (domain->broken) return arm_broken(domain);
    if (domain->cq) return fabric_may_sleep(domain, domain->cq) ? PPLX_OK : PPLX_AGAIN;
    bool all_wake = true;
    for (fabric_link *link = domain->endpoints.next; link != &domain->endpoints; link = link->next) {
        const fabric_endpoint *endpoint = fabric_endpoint_of(link);
        if (endpoint->settled_ns || (endpoint->wakes && !fabric_may_sleep(domain, endpoint->cq))) return PPLX_AGAIN;
        all_wake &= endpoint->wakes;
    }
    return all_wake ? PPLX_OK : PPLX_UNSUPPORTED;
}

int fabric_wait_fd(pplx_provider_domain *handle) { return ((fabric_domain *)handle)->wait_fd; }

/* Room for one more batch of immediates, before anything is taken from the queue. Once when the domain opens:
 * to close an endpoint is to give memory back, and should need none. */
bool fabric_reserve_imms(fabric_domain *domain) {
    if (domain->imms_count + BATCH <= domain->imms_capacity) return true;
    size_t capacity = domain->imms_capacity ? 2 * domain->imms_capacity : 4 * BATCH;
    fabric_imm *imms = malloc(capacity * sizeof *imms);
    if (!imms) return false;
    for (size_t i = 0; i < domain->imms_count; i++)
        imms[i] = domain->imms[(domain->imms_first + i) % domain->imms_capacity];
    free(domain->imms);
    domain->imms = imms;
    domain->imms_first = 0;
    domain->imms_capacity = capacity;
    return true;
}

static void forget_kept(fabric_domain *domain, const fabric_endpoint *endpoint) {
    for (fabric_link *link = domain->kept.next, *next; link != &domain->kept; link = next) {
        next = link->next;
        if (fabric_op_of(link)->endpoint == endpoint) fabric_list_remove(link);
    }
}

/* Every op of a closed endpoint is either in the queue, and taken out here, or will never be: the
 * library's flush happens inside fi_close(). Both sorts are flushed, and the memory of their ops
 * is the engine's once we return, so an entry left behind would be a dangling pointer: always read
 * until the queue is empty, even if no op seems to be out. */
pplx_status fabric_cq_drain(fabric_endpoint *endpoint) {
    fabric_domain *domain = endpoint->domain;
    bool empty = false;
    while (!empty && !domain->broken) {
        pplx_completion completions[BATCH];
        if (!fabric_reserve_imms(domain)) return PPLX_AGAIN;
        size_t count = fabric_cq_read(domain, endpoint->cq, completions, NULL, BATCH, &empty);
        for (size_t i = 0; i < count; i++) {
            const pplx_completion *completion = &completions[i];
            if (completion->kind == PPLX_COMPLETION_IMM) {
                domain->imms[(domain->imms_first + domain->imms_count++) % domain->imms_capacity] = (fabric_imm){
                    .source = domain->cq ? completion->source : (const pplx_provider_endpoint *)endpoint,
                    .imm = completion->imm,
                    .status = completion->status};
            } else if (((fabric_op *)completion->op)->endpoint != endpoint) {
                fabric_keep(domain, (fabric_op *)completion->op, (pplx_status)completion->status,
                            completion->provider_error, completion->nbytes);
            }
        }
    }
    forget_kept(domain, endpoint);
    return PPLX_OK;
}

#else
typedef int pplx_fabric_cq_left_out;
#endif
