/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A domain of the ipc provider: its descriptors, all in one epoll set that is also the wait fd, and
 * when they are looked at. The rest of the time a domain lives on shared memory alone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ipc_internal.h"

enum { MOST_EVENTS = 32 };

bool pplx_ipc_watch_fd(ipc_domain *domain, int fd, ipc_watch *watch) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};
    return epoll_ctl(domain->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

pplx_status pplx_ipc_domain_open(const ipc_options *options, ipc_domain **out, pplx_error *error) {
    ipc_domain *domain = calloc(1, sizeof *domain);
    if (!domain) return ipc_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for an ipc domain");
    domain->options = *options;
    domain->listener = domain->epoll_fd = -1;
    domain->listener_watch = (ipc_watch){IPC_WATCH_LISTENER, domain};
    pplx_ipc_visitors_open(domain);
    bool open = pplx_ipc_random(domain->listener_name, sizeof domain->listener_name);
    if (open) domain->listener = pplx_ipc_listen(domain->listener_name);
    if (open && domain->listener >= 0) domain->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (domain->epoll_fd >= 0 && pplx_ipc_watch_fd(domain, domain->listener, &domain->listener_watch)) {
        *out = domain;
        return PPLX_OK;
    }
    int native = errno;
    pplx_ipc_domain_close(domain);
    return ipc_fail(error, PPLX_NATIVE, native, "no socket to listen on inside this host: %s", strerror(native));
}

void pplx_ipc_domain_close(ipc_domain *domain) {
    pplx_ipc_visitors_close(domain);
    if (domain->listener >= 0) close(domain->listener);
    if (domain->epoll_fd >= 0) close(domain->epoll_fd);
    for (ipc_region *region = domain->unfenced, *next; region; region = next) { /* the last endpoints are closed */
        next = region->next;
        free(region);
    }
    pplx_ipc_cuda_close(domain);
    free(domain->buckets);
    free(domain->late);
    free(domain);
}

/* ------------------------------------------------------------------ looking */

static void look_at(ipc_domain *domain, const ipc_watch *watch, uint64_t now_ns) {
    switch (watch->kind) {
    case IPC_WATCH_LISTENER: pplx_ipc_accept_visitors(domain, now_ns); break;
    case IPC_WATCH_VISITOR: pplx_ipc_visitor_readable(domain, watch->subject); break;
    case IPC_WATCH_SOCKET: pplx_ipc_read_notes(watch->subject); break;
    case IPC_WATCH_PEER: pplx_ipc_peer_died(watch->subject); break;
    case IPC_WATCH_CUDA: pplx_ipc_cuda_hear(watch->subject); break;
    }
}

/* Endpoints are not freed in here, nor are visitors: an event of something that has ended meanwhile
 * finds that out. */
void pplx_ipc_look(ipc_domain *domain, uint64_t now_ns) {
    struct epoll_event events[MOST_EVENTS];
    domain->looked_ns = now_ns;
    domain->look_again = false;
    pplx_ipc_hear_visitors(domain, now_ns);
    int count = epoll_wait(domain->epoll_fd, events, MOST_EVENTS, 0);
    for (int i = 0; i < count; i++) look_at(domain, events[i].data.ptr, now_ns);
    if (count == MOST_EVENTS) domain->look_again = true;
    pplx_ipc_visitors_expire(domain, now_ns);
    for (ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next) {
        if (endpoint->state == IPC_MEETING) pplx_ipc_meet(endpoint);
        if (endpoint->unwanted) pplx_ipc_send_revokes(endpoint);
    }
}

/* ------------------------------------------------------------------ sleeping */

static bool reads_inbox(const ipc_endpoint *endpoint) {
    return endpoint->state == IPC_UP || endpoint->state == IPC_ENDING;
}

/* True: look at the descriptors. Mostly there is no need, which saves system calls: who rang took `wake`
 * off, so a bell lies in its socket, or soon will; whatever else becomes readable is found a little later. */
bool pplx_ipc_awake(ipc_domain *domain) {
    bool look = false;
    domain->slept = false;
    for (ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next) {
        if (reads_inbox(endpoint) && !ipc_clear_wake(&endpoint->inbox)) endpoint->note_due = true;
        look |= endpoint->state != IPC_UP;
        if (endpoint->note_due && endpoint->state == IPC_UP) pplx_ipc_take_bell(endpoint);
    }
    return look;
}

/* Whoever took `wake` off, if several did: it is a hint. */
int pplx_ipc_woken_from(pplx_provider_domain *handle) {
    for (const ipc_endpoint *endpoint = ((ipc_domain *)handle)->endpoints; endpoint; endpoint = endpoint->next) {
        if (!reads_inbox(endpoint)) continue;
        const ipc_head *head = endpoint->inbox.head;
        if (atomic_load_explicit(&head->wake, memory_order_relaxed) == 0) /* relaxed: a hint, and hostile */
            return (int)atomic_load_explicit(&head->waker, memory_order_relaxed) - 1; /* relaxed: as above */
    }
    return -1;
}

/* Is there anything to do, looked for after `wake` was set? What isn't in shared memory makes the
 * wait fd readable: answers, notes, death. */
static bool busy(const ipc_endpoint *endpoint) {
    if (endpoint->state == IPC_MEETING) return endpoint->retry;
    if (endpoint->state == IPC_ENDING) return true;
    if (endpoint->state != IPC_UP) return false;
    return pplx_ipc_has_news(endpoint) || pplx_ipc_arrived(endpoint) || pplx_ipc_own_work(endpoint);
}

static unsigned wants(const ipc_endpoint *endpoint) {
    bool room = (endpoint->queue.head && endpoint->queue_blocked == IPC_NEEDS_SLOT) ||
                (endpoint->sends.head && endpoint->sends_blocked == IPC_NEEDS_RECEIVE);
    return IPC_WAKE_ARRIVAL | (room ? IPC_WAKE_ROOM : 0);
}

pplx_status pplx_ipc_arm(pplx_provider_domain *handle) {
    ipc_domain *domain = (ipc_domain *)handle;
    if (domain->done.head || (domain->cuda && pplx_ipc_cuda_busy(domain)) || domain->look_again ||
        domain->late_head < domain->late_count)
        return PPLX_AGAIN;
    for (ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
        if (reads_inbox(endpoint)) ipc_set_wake(&endpoint->inbox, wants(endpoint));
    domain->slept = true;
    for (const ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next) {
        if (!busy(endpoint)) continue;
        pplx_ipc_awake(domain);
        return PPLX_AGAIN;
    }
    return PPLX_OK;
}
