/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The loopback provider at work: post() judges and queues, poll() executes and reports. The way of
 * an operation and the rules for locks and pins are in loopback_internal.h.
 *
 * All draws of the fault plan but two are made in post(), in the order of the posts, so that a seed
 * gives the same faults whatever the threads do. The other two, how many operations a poll()
 * executes and the order in which it reports, only permute. */
#include <string.h>

#include "loopback_internal.h"

/* ------------------------------------------------------------------ post */

static bool local_memory_valid(const loopback_endpoint *endpoint, const pplx_work_request *request) {
    const loopback_mr *mr = (const loopback_mr *)request->local_mr;
    return mr && mr->domain == endpoint->domain && loopback_covers(mr, request->local_address, request->nbytes);
}

static loopback_record *take_record(loopback_endpoint *endpoint, const pplx_work_request *request) {
    const bool alone = request->opcode == PPLX_WRITE_IMM && request->nbytes == 0;
    loopback_record *record = request->opcode == PPLX_RECV
                                  ? loopback_pool_take(&endpoint->receives, 0)
                                  : loopback_pool_take(&endpoint->records, alone ? 0 : PPLX_RESERVED_IMMS);
    if (!record) return NULL;
    record->endpoint = endpoint;
    record->request = *request;
    record->moved = 0;
    record->due_ns = 0;
    record->status = local_memory_valid(endpoint, request) ? PPLX_OK : PPLX_LOCAL_ACCESS;
    endpoint->outstanding++;
    return record;
}

/* True: the peer waited for it. */
static bool post_receive(loopback_endpoint *endpoint, loopback_record *record) {
    loopback_domain *domain = endpoint->domain;
    bool waited_for = false;
    pthread_mutex_lock(&domain->shared.lock);
    if (record->status == PPLX_OK) {
        loopback_list_insert(&endpoint->posted, record, NULL);
        waited_for = endpoint->waited_for;
        endpoint->waited_for = false;
    } else {
        loopback_list_insert(&domain->shared.received, record, NULL);
        atomic_fetch_or_explicit(&domain->attention, LOOPBACK_ARRIVED, memory_order_relaxed); /* relaxed: a hint */
    }
    pthread_mutex_unlock(&domain->shared.lock);
    return waited_for;
}

static void plan_record(loopback_domain *domain, loopback_record *record, uint64_t now_ns) {
    const loopback_plan *plan = &domain->plan;
    bool unlucky = loopback_chance(&domain->random, plan->fail);
    if (++domain->posted_ops == plan->fail_after || unlucky) record->status = plan->fail_status;
    if (!domain->timed) return;
    record->due_ns = now_ns;
    if (plan->bits_per_second > 0) {
        if (domain->link_free_ns < now_ns) domain->link_free_ns = now_ns;
        /* long double: nbytes * 8e9 may need 73 bits. An hour at most: more is no speed of a link. */
        long double ns = (long double)record->request.nbytes * 8e9L / (long double)plan->bits_per_second;
        domain->link_free_ns += ns < 3600e9L ? (uint64_t)ns : UINT64_C(3600000000000);
        record->due_ns = domain->link_free_ns;
    }
    if (plan->delay_max_ns > 0)
        record->due_ns += plan->delay_min_ns +
                          loopback_below(&domain->random, plan->delay_max_ns - plan->delay_min_ns + 1);
}

/* Up to `reorder` places before the end of the queue. */
static void queue_record(loopback_domain *domain, loopback_record *record) {
    loopback_record *at = NULL;
    if (domain->plan.reorder > 0) {
        for (uint64_t places = loopback_below(&domain->random, (uint64_t)domain->plan.reorder + 1); places > 0;
             places--) {
            loopback_record *before = at ? at->prev : domain->queue.tail;
            if (!before) break;
            at = before;
        }
    }
    loopback_list_insert(&domain->queue, record, at);
}

pplx_status pplx_loopback_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count,
                               size_t *posted, int32_t *provider_error) {
    loopback_endpoint *endpoint = (loopback_endpoint *)handle;
    loopback_domain *domain = endpoint->domain;
    *posted = 0;
    *provider_error = 0;
    if (endpoint->closing) return PPLX_CLOSED;
    size_t allowed = count;
    if (count > 0 && loopback_chance(&domain->random, domain->plan.again))
        allowed = (size_t)loopback_below(&domain->random, count);
    uint64_t now_ns = domain->timed ? loopback_now_ns() : 0;
    pplx_status status = PPLX_OK;
    bool waited_for = false;
    size_t i = 0;
    for (; i < count; i++) {
        const pplx_work_request *request = &requests[i];
        status = PPLX_AGAIN; /* unless it turns out to be taken, or worse */
        if (i == allowed) {
            domain->refused = true;
            break;
        }
        bool receive = request->opcode == PPLX_RECV;
        if (!request->op || request->opcode > PPLX_RECV)
            status = PPLX_INVALID;
        else if (!receive && request->nbytes > domain->plan.max_message)
            status = PPLX_TOO_LARGE;
        if (status != PPLX_AGAIN) break;
        if (!receive && !endpoint->established) {
            endpoint->established = pplx_loopback_connected(endpoint);
            if (!endpoint->established) break;
        }
        loopback_record *record = take_record(endpoint, request);
        if (!record) break;
        if (receive) {
            waited_for |= post_receive(endpoint, record);
        } else {
            plan_record(domain, record, now_ns);
            queue_record(domain, record);
        }
        status = PPLX_OK;
    }
    *posted = i;
    if (waited_for) pplx_loopback_poke(endpoint->peer->domain);
    if (domain->slept && i > 0) pplx_loopback_poke(domain); /* armed before it posted: poll() has work now */
    return status;
}

/* ------------------------------------------------------------------ execute */

typedef enum verdict {
    ENDED,   /* record->status says how */
    MORE,    /* this turn's bytes are used up */
    BLOCKED, /* the peer can't take it now */
} verdict;

static verdict end(loopback_record *record, pplx_status status) {
    record->status = status;
    return ENDED;
}

/* memmove: a domain may write to itself, over its own source. */
static void copy(uint64_t to, uint64_t from, uint64_t nbytes) {
    if (nbytes > 0) memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, (size_t)nbytes);
}

static void copy_slice(const loopback_record *record, uint64_t nbytes) {
    uint64_t local = record->request.local_address + record->moved;
    uint64_t remote = record->request.remote_address + record->moved;
    if (record->request.opcode == PPLX_READ)
        copy(local, remote, nbytes);
    else
        copy(remote, local, nbytes);
}

static void arrive(loopback_domain *target) {
    atomic_fetch_or_explicit(&target->attention, LOOPBACK_ARRIVED, memory_order_relaxed); /* relaxed: a hint */
    pplx_loopback_wake(target);
}

/* Holding the target's lock, on return too; lets go of it while it copies much. */
static verdict run_one_sided(loopback_record *record, loopback_endpoint *there, uint64_t *turn_bytes) {
    loopback_domain *target = there->domain;
    const pplx_work_request *request = &record->request;
    uint32_t access = request->opcode == PPLX_READ ? PPLX_ACCESS_REMOTE_READ : PPLX_ACCESS_REMOTE_WRITE;
    for (;;) {
        /* All of it again for each slice: what was revoked meanwhile is not touched any more. */
        if (target->shared.silent) return BLOCKED;
        if (there->closed) return end(record, PPLX_PEER_LOST);
        loopback_mr *mr = pplx_loopback_mr_find(target, request->remote_key);
        if (!mr || !(mr->access & access) || !loopback_covers(mr, request->remote_address, request->nbytes))
            return end(record, PPLX_REMOTE_ACCESS);

        uint64_t left = request->nbytes - record->moved;
        if (left <= LOOPBACK_SMALL_COPY) {
            if (request->opcode == PPLX_WRITE_IMM) {
                if (target->shared.imms_count == LOOPBACK_IMM_RING) {
                    there->waited_for = target->shared.waited_for = true;
                    return BLOCKED;
                }
                copy_slice(record, left);
                size_t at = (target->shared.imms_head + target->shared.imms_count++) % LOOPBACK_IMM_RING;
                target->shared.imms[at] = (loopback_imm){there, request->imm};
                arrive(target);
            } else {
                copy_slice(record, left);
            }
            *turn_bytes -= left < *turn_bytes ? left : *turn_bytes;
            return end(record, PPLX_OK);
        }
        if (*turn_bytes == 0) return MORE;
        uint64_t slice = left < LOOPBACK_SLICE ? left : LOOPBACK_SLICE;
        if (slice > *turn_bytes) slice = *turn_bytes;
        mr->users++;
        there->users++;
        pthread_mutex_unlock(&target->shared.lock);
        copy_slice(record, slice);
        pthread_mutex_lock(&target->shared.lock);
        pplx_loopback_unpin(target, &mr->users);
        pplx_loopback_unpin(target, &there->users);
        record->moved += slice;
        *turn_bytes -= slice;
    }
}

/* Holding the target's lock, on return too. A message is copied in one go: it is small, and its
 * RECV can't be given back half filled. */
static verdict run_send(loopback_record *record, loopback_endpoint *there) {
    loopback_domain *target = there->domain;
    const pplx_work_request *request = &record->request;
    if (target->shared.silent) return BLOCKED;
    if (there->closed) return end(record, PPLX_PEER_LOST);
    loopback_record *receive = there->posted.head;
    if (!receive) {
        there->waited_for = true;
        return BLOCKED;
    }
    loopback_list_remove(&there->posted, receive);
    if (request->nbytes > receive->request.nbytes) {
        receive->status = PPLX_TRUNCATED;
    } else if (request->nbytes <= LOOPBACK_SMALL_COPY) {
        copy(receive->request.local_address, request->local_address, request->nbytes);
        receive->moved = request->nbytes;
    } else {
        loopback_mr *mr = (loopback_mr *)receive->request.local_mr;
        mr->users++;
        there->users++;
        pthread_mutex_unlock(&target->shared.lock);
        copy(receive->request.local_address, request->local_address, request->nbytes);
        pthread_mutex_lock(&target->shared.lock);
        pplx_loopback_unpin(target, &mr->users);
        pplx_loopback_unpin(target, &there->users);
        receive->moved = request->nbytes;
    }
    loopback_list_insert(&target->shared.received, receive, NULL);
    arrive(target);
    return end(record, PPLX_OK);
}

static verdict run_record(loopback_record *record, uint64_t *turn_bytes) {
    if (record->status != PPLX_OK) return ENDED; /* planned, or its own memory is not valid */
    loopback_endpoint *there = record->endpoint->peer;
    loopback_domain *target = there->domain;
    pthread_mutex_lock(&target->shared.lock);
    verdict verdict = record->request.opcode == PPLX_SEND ? run_send(record, there)
                                                          : run_one_sided(record, there, turn_bytes);
    pthread_mutex_unlock(&target->shared.lock);
    return verdict;
}

void pplx_loopback_silence(loopback_domain *domain) {
    pthread_mutex_lock(&domain->shared.lock);
    domain->shared.silent = true;
    atomic_store_explicit(&domain->attention, 0, memory_order_relaxed); /* relaxed: a hint */
    pthread_mutex_unlock(&domain->shared.lock);
}

static void execute(loopback_domain *domain) {
    uint64_t turn_bytes = LOOPBACK_TURN_BYTES;
    uint64_t turn_ops = LOOPBACK_TURN_OPS;
    /* Not all at once, or operations of two posts would never be out of order. */
    if (domain->plan.reorder > 0) turn_ops = 1 + loopback_below(&domain->random, domain->plan.reorder);
    uint64_t now_ns = domain->timed ? loopback_now_ns() : 0;
    for (loopback_record *record = domain->queue.head, *next; record && turn_ops > 0; record = next) {
        next = record->next;
        if (record->due_ns > now_ns) continue;
        verdict verdict = run_record(record, &turn_bytes);
        if (verdict == MORE) return;
        loopback_list_move(&domain->queue, verdict == BLOCKED ? &domain->blocked : &domain->done, record);
        turn_ops--;
        if (verdict == ENDED && ++domain->executed_ops == domain->plan.drop_after) {
            pplx_loopback_silence(domain);
            return;
        }
    }
}

/* ------------------------------------------------------------------ poll */

static void report(loopback_record *record, pplx_completion *completion) {
    loopback_endpoint *endpoint = record->endpoint;
    bool receive = record->request.opcode == PPLX_RECV;
    *completion = (pplx_completion){
        .op = record->request.op,
        .kind = PPLX_COMPLETION_OP,
        .status = (int32_t)record->status,
        .nbytes = receive ? record->moved : 0,
    };
    endpoint->outstanding--;
    loopback_pool_give(receive ? &endpoint->receives : &endpoint->records, record);
}

static size_t report_done(loopback_domain *domain, pplx_completion *completions, size_t capacity) {
    size_t n = 0;
    for (loopback_record *record; n < capacity && (record = domain->done.head); n++) {
        loopback_list_remove(&domain->done, record);
        report(record, &completions[n]);
    }
    return n;
}

/* The oldest immediate, or under a plan one of the `reorder` next. */
static loopback_imm take_imm(loopback_domain *domain) {
    loopback_imm *imms = domain->shared.imms;
    size_t head = domain->shared.imms_head;
    if (domain->plan.reorder > 0) {
        size_t window = domain->plan.reorder < domain->shared.imms_count ? domain->plan.reorder
                                                                         : domain->shared.imms_count;
        size_t other = (head + (size_t)loopback_below(&domain->random, window)) % LOOPBACK_IMM_RING;
        loopback_imm imm = imms[other];
        imms[other] = imms[head];
        imms[head] = imm;
    }
    domain->shared.imms_head = (head + 1) % LOOPBACK_IMM_RING;
    domain->shared.imms_count--;
    return imms[head];
}

/* Whoever found our ring full may go on. Not under our lock: a poke takes the other one. */
static void poke_waiting(loopback_domain *domain) {
    for (loopback_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->domain_next) {
        pthread_mutex_lock(&domain->shared.lock);
        bool waited_for = endpoint->waited_for;
        endpoint->waited_for = false;
        pthread_mutex_unlock(&domain->shared.lock);
        if (waited_for) pplx_loopback_poke(endpoint->peer->domain);
    }
}

static size_t report_arrived(loopback_domain *domain, pplx_completion *completions, size_t capacity) {
    /* relaxed: a hint. What it announces is read under the lock, and arm() looks there again. */
    if (!(atomic_load_explicit(&domain->attention, memory_order_relaxed) & LOOPBACK_ARRIVED)) return 0;
    size_t n = 0;
    pthread_mutex_lock(&domain->shared.lock);
    for (loopback_record *record; n < capacity && (record = domain->shared.received.head); n++) {
        loopback_list_remove(&domain->shared.received, record);
        report(record, &completions[n]);
    }
    for (; n < capacity && domain->shared.imms_count > 0; n++) {
        const loopback_imm arrived = take_imm(domain);
        completions[n] = (pplx_completion){
            .kind = PPLX_COMPLETION_IMM, .imm = arrived.imm, .source = (const pplx_provider_endpoint *)arrived.through};
    }
    if (domain->shared.received.count == 0 && domain->shared.imms_count == 0)
        atomic_fetch_and_explicit(&domain->attention, ~(unsigned)LOOPBACK_ARRIVED, memory_order_relaxed);
    bool room = domain->shared.waited_for && domain->shared.imms_count <= LOOPBACK_IMM_RING / 2;
    if (room) domain->shared.waited_for = false;
    pthread_mutex_unlock(&domain->shared.lock);
    if (room) poke_waiting(domain);
    return n;
}

size_t pplx_loopback_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity) {
    loopback_domain *domain = (loopback_domain *)handle;
    if (domain->slept) pplx_loopback_clear(domain);
    if (domain->shared.silent) return report_done(domain, completions, capacity); /* own thread writes `silent` */

    /* relaxed: a hint, as in report_arrived(). Taken off before the records move: a poke that comes
     * in between leaves it set for the next poll(). */
    if (atomic_load_explicit(&domain->attention, memory_order_relaxed) & LOOPBACK_POKED) {
        atomic_fetch_and_explicit(&domain->attention, ~(unsigned)LOOPBACK_POKED, memory_order_relaxed);
        while (domain->blocked.head) loopback_list_move(&domain->blocked, &domain->queue, domain->blocked.head);
    }
    execute(domain);

    size_t n = 0;
    domain->arrivals_first = !domain->arrivals_first; /* so that neither keeps the other from being reported */
    if (domain->arrivals_first) n += report_arrived(domain, completions, capacity);
    n += report_done(domain, completions + n, capacity - n);
    if (!domain->arrivals_first) n += report_arrived(domain, completions + n, capacity - n);
    for (size_t i = 0; domain->plan.reorder > 0 && i + 1 < n; i++) {
        size_t window = domain->plan.reorder < n - i ? domain->plan.reorder : n - i;
        size_t other = i + (size_t)loopback_below(&domain->random, window);
        pplx_completion swapped = completions[i];
        completions[i] = completions[other];
        completions[other] = swapped;
    }
    return n;
}
