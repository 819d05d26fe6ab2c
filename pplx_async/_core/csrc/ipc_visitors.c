/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Connections that have not found their endpoint: strangers, and peers that are early.
 *
 * Any process of this user can connect to us, so they are bounded in number and in time. Who says
 * HELLO with an endpoint's random name knows it from us, so such early ones are kept before those
 * that say nothing; among equals the oldest goes. A correct peer says HELLO in one go with its
 * connect, so it is never among the silent when it is accepted. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* accept4 */
#endif
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc_internal.h"

enum { MOST_ACCEPTS = 64 };

void pplx_ipc_visitors_open(ipc_domain *domain) {
    for (int i = 0; i < IPC_VISITORS; i++)
        domain->visitors[i] = (ipc_visitor){
            .watch = {IPC_WATCH_VISITOR, &domain->visitors[i]}, .fd = -1, .inbox_fd = -1};
}

/* Hand on its descriptors, or close them. */
static void forget(ipc_domain *domain, ipc_visitor *visitor, bool close_fds) {
    if (visitor->fd >= 0) {
        epoll_ctl(domain->epoll_fd, EPOLL_CTL_DEL, visitor->fd, NULL);
        domain->nvisitors--;
    }
    if (close_fds && visitor->fd >= 0) close(visitor->fd);
    if (close_fds && visitor->inbox_fd >= 0) close(visitor->inbox_fd);
    visitor->fd = visitor->inbox_fd = -1;
    visitor->greeted = false;
}

void pplx_ipc_visitors_close(ipc_domain *domain) {
    for (int i = 0; i < IPC_VISITORS; i++) forget(domain, &domain->visitors[i], true);
}

void pplx_ipc_visitors_expire(ipc_domain *domain, uint64_t now_ns) {
    for (int i = 0; i < IPC_VISITORS && domain->nvisitors; i++) { /* nearly always there is none */
        ipc_visitor *visitor = &domain->visitors[i];
        uint64_t limit = visitor->greeted ? IPC_EARLY_NS : IPC_VISIT_NS;
        if (visitor->fd >= 0 && now_ns - visitor->since_ns > limit) forget(domain, visitor, true);
    }
}

static ipc_visitor *make_room(ipc_domain *domain) {
    ipc_visitor *oldest = NULL;
    for (int i = 0; i < IPC_VISITORS; i++) {
        ipc_visitor *visitor = &domain->visitors[i];
        if (visitor->fd < 0) return visitor;
        if (!oldest || visitor->greeted < oldest->greeted ||
            (visitor->greeted == oldest->greeted && visitor->since_ns < oldest->since_ns))
            oldest = visitor;
    }
    forget(domain, oldest, true);
    return oldest;
}

/* Who calls waits in the backlog, and would keep the wait fd readable: we don't look there for a while. */
static void turn_away(ipc_domain *domain, uint64_t now_ns) {
    epoll_ctl(domain->epoll_fd, EPOLL_CTL_DEL, domain->listener, NULL);
    domain->deaf_until_ns = now_ns + IPC_DEAF_NS;
}

void pplx_ipc_hear_visitors(ipc_domain *domain, uint64_t now_ns) {
    if (domain->deaf_until_ns && now_ns >= domain->deaf_until_ns &&
        pplx_ipc_watch_fd(domain, domain->listener, &domain->listener_watch))
        domain->deaf_until_ns = 0;
}

void pplx_ipc_accept_visitors(ipc_domain *domain, uint64_t now_ns) {
    for (int i = 0; i < MOST_ACCEPTS; i++) {
        int fd = accept4(domain->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno != EAGAIN && errno != EINTR) turn_away(domain, now_ns); /* out of descriptors, or memory */
            return;
        }
        pid_t pid;
        if (!pplx_ipc_same_user(fd, &pid)) {
            close(fd);
            continue;
        }
        ipc_visitor *visitor = make_room(domain);
        visitor->fd = fd;
        visitor->since_ns = now_ns;
        domain->nvisitors++;
        if (!pplx_ipc_watch_fd(domain, fd, &visitor->watch)) {
            forget(domain, visitor, true);
            continue;
        }
        pplx_ipc_visitor_readable(domain, visitor);
    }
    domain->look_again = true;
}

/* Give it to its endpoint, if that knows its peer. False: it does not yet. */
static bool hand_over(ipc_domain *domain, ipc_visitor *visitor, ipc_endpoint *endpoint) {
    if (endpoint->state == IPC_OPEN) return false;
    bool meant = endpoint->state == IPC_MEETING &&
                 memcmp(endpoint->peer.token, visitor->hello.from, IPC_TOKEN_BYTES) == 0 &&
                 memcmp(endpoint->own.token, endpoint->peer.token, IPC_TOKEN_BYTES) > 0;
    if (meant) {
        int fd = visitor->fd, inbox_fd = visitor->inbox_fd;
        const ipc_hello hello = visitor->hello;
        forget(domain, visitor, false);
        pplx_ipc_accept(endpoint, fd, &hello, inbox_fd);
    } else {
        forget(domain, visitor, true);
    }
    return true;
}

void pplx_ipc_visitor_readable(ipc_domain *domain, ipc_visitor *visitor) {
    if (visitor->fd < 0) return;
    ipc_hello hello;
    int inbox_fd;
    ssize_t n = pplx_ipc_receive(visitor->fd, &hello, sizeof hello, &inbox_fd);
    if (n < 0 && errno == EAGAIN) return;
    ipc_endpoint *endpoint = NULL;
    /* One HELLO, with an inbox: whatever else it says, or if it goes away, is the end of it. */
    if (n == (ssize_t)sizeof hello && hello.kind == IPC_HELLO && hello.version == IPC_VERSION && inbox_fd >= 0 &&
        !visitor->greeted)
        for (endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
            if (memcmp(endpoint->own.token, hello.to, IPC_TOKEN_BYTES) == 0) break;
    if (!endpoint) {
        if (inbox_fd >= 0) close(inbox_fd);
        forget(domain, visitor, true);
        return;
    }
    visitor->hello = hello;
    visitor->inbox_fd = inbox_fd;
    visitor->greeted = true;
    hand_over(domain, visitor, endpoint);
}

void pplx_ipc_visitor_for(ipc_endpoint *endpoint) {
    ipc_domain *domain = endpoint->domain;
    for (int i = 0; i < IPC_VISITORS && endpoint->state == IPC_MEETING; i++) {
        ipc_visitor *visitor = &domain->visitors[i];
        if (visitor->fd >= 0 && visitor->greeted &&
            memcmp(visitor->hello.to, endpoint->own.token, IPC_TOKEN_BYTES) == 0)
            hand_over(domain, visitor, endpoint);
    }
}
