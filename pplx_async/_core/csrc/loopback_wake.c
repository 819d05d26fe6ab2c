/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Waking a thread that blocks on a loopback domain.
 *
 *   owner  1. arm(): under the domain's lock look for anything to do, and set `armed` if there is
 *             nothing. 2. block in epoll on fd. 3. poll(): clear `armed` and fd, look.
 *   peer   put something in under the same lock; if `armed`, take it off and ring.
 *
 * One lock on both sides, so nothing comes between the look and the arm; and a ring costs a system
 * call only when somebody may sleep. The fd is an eventfd; in a domain whose operations may be due
 * later it is a timerfd, and ringing sets it to a time that has passed. */
#include <errno.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "loopback_internal.h"

bool pplx_loopback_wake_open(loopback_domain *domain) {
    domain->fd = -1;
    domain->timed = loopback_plan_timed(&domain->plan);
    if (!domain->plan.wait_fd) return true;
    domain->fd = domain->timed ? timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
                               : eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    return domain->fd >= 0;
}

/* Other threads may still hold references and poke: without `armed` they don't touch fd. */
void pplx_loopback_wake_close(loopback_domain *domain) {
    pthread_mutex_lock(&domain->shared.lock);
    domain->shared.armed = false;
    pthread_mutex_unlock(&domain->shared.lock);
    if (domain->fd >= 0) close(domain->fd);
    domain->fd = -1;
}

/* 0 disarms and forgets that it was due. */
static void set_timer(int fd, uint64_t at_ns) {
    struct itimerspec when = {
        .it_value = {.tv_sec = (time_t)(at_ns / 1000000000u), .tv_nsec = (long)(at_ns % 1000000000u)}};
    timerfd_settime(fd, TFD_TIMER_ABSTIME, &when, NULL);
}

void pplx_loopback_wake(loopback_domain *domain) {
    if (!domain->shared.armed) return;
    domain->shared.armed = false;
    if (domain->timed) {
        set_timer(domain->fd, 1);
    } else {
        uint64_t one = 1;
        /* fails only when it would overflow, and then it is readable */
        if (write(domain->fd, &one, sizeof one) < 0) return;
    }
}

void pplx_loopback_poke(loopback_domain *domain) {
    pthread_mutex_lock(&domain->shared.lock);
    if (!domain->shared.silent) {
        /* relaxed: a hint, see loopback_internal.h; arm() reads it under the lock */
        atomic_fetch_or_explicit(&domain->attention, LOOPBACK_POKED, memory_order_relaxed);
        pplx_loopback_wake(domain);
    }
    pthread_mutex_unlock(&domain->shared.lock);
}

void pplx_loopback_clear(loopback_domain *domain) {
    domain->slept = false;
    pthread_mutex_lock(&domain->shared.lock);
    domain->shared.armed = false;
    pthread_mutex_unlock(&domain->shared.lock);
    if (domain->timed) {
        set_timer(domain->fd, 0);
    } else {
        uint64_t count;
        if (read(domain->fd, &count, sizeof count) < 0) return; /* EAGAIN: it wasn't rung */
    }
}

/* When the first operation of the queue is due; 0: now, UINT64_MAX: there is none. */
static uint64_t next_due_ns(const loopback_domain *domain) {
    uint64_t first = UINT64_MAX;
    for (const loopback_record *record = domain->queue.head; record; record = record->next)
        if (record->due_ns < first) first = record->due_ns;
    return first;
}

pplx_status pplx_loopback_arm(pplx_provider_domain *handle) {
    loopback_domain *domain = (loopback_domain *)handle;
    if (domain->fd < 0) return PPLX_UNSUPPORTED;
    if (domain->done.count > 0) return PPLX_AGAIN;
    if (domain->refused) {
        domain->refused = false; /* nothing will ring for a refusal that had no cause */
        return PPLX_AGAIN;
    }
    uint64_t due_ns = UINT64_MAX;
    if (!domain->shared.silent) { /* own thread writes it */
        due_ns = next_due_ns(domain);
        if (due_ns == 0 || (due_ns != UINT64_MAX && due_ns <= loopback_now_ns())) return PPLX_AGAIN;
    }
    pplx_status status = PPLX_AGAIN;
    pthread_mutex_lock(&domain->shared.lock);
    if (atomic_load_explicit(&domain->attention, memory_order_relaxed) == 0) { /* relaxed: under the lock */
        status = PPLX_OK;
        domain->shared.armed = true;
        domain->slept = true;
        if (due_ns != UINT64_MAX) set_timer(domain->fd, due_ns);
    }
    pthread_mutex_unlock(&domain->shared.lock);
    return status;
}

int pplx_loopback_wait_fd(pplx_provider_domain *domain) { return ((loopback_domain *)domain)->fd; }
