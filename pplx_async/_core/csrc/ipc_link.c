/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The connection of two endpoints: how they meet, what they tell each other, how it ends.
 *
 *   smaller token   connect, HELLO with its inbox ->
 *   the other       <- WELCOME with its inbox              both are UP
 *   either          MAP, MAPPED, REVOKE, REVOKED, WAKE
 *   the end         BYE ->  the other lets go of everything, <- BYE_ACK
 *                   or the end of the stream or of the process, which is a loss
 *
 * After the peer is gone what it left in our inbox is still delivered: the state is ENDING until it
 * is empty, then BROKEN. A peer that breaks the rules is broken with at once. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ipc_internal.h"

/* ------------------------------------------------------------------ meeting */

bool pplx_ipc_inbox_open(ipc_endpoint *endpoint) {
    const ipc_options *options = &endpoint->domain->options;
    size_t nbytes = ipc_inbox_nbytes(options->slots, options->staging);
    endpoint->inbox_fd = pplx_ipc_memfd("pplx-ipc-inbox", nbytes);
    if (endpoint->inbox_fd < 0) return false;
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, endpoint->inbox_fd, 0);
    if (memory == MAP_FAILED) return false;
    endpoint->inbox = ipc_inbox_at(memory, options->slots, options->staging);
    return true;
}

static bool say_hello(ipc_endpoint *endpoint, uint32_t kind) {
    ipc_hello hello = {.kind = kind,
                       .version = IPC_VERSION,
                       .slots = endpoint->inbox.slots,
                       .staging = endpoint->inbox.staging_nbytes,
                       .flags = endpoint->domain->options.vm_writev ? IPC_TRUSTS : 0};
    memcpy(hello.to, endpoint->peer.token, sizeof hello.to);
    memcpy(hello.from, endpoint->own.token, sizeof hello.from);
    return pplx_ipc_send(endpoint->socket, &hello, sizeof hello, endpoint->inbox_fd) == (ssize_t)sizeof hello;
}

static void close_fd(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* The peer's HELLO or WELCOME. Takes inbox_fd. */
static bool map_outbox(ipc_endpoint *endpoint, const ipc_hello *hello, int inbox_fd) {
    void *memory = NULL;
    if (ipc_inbox_sizes_valid(hello->slots, hello->staging) &&
        memcmp(hello->from, endpoint->peer.token, IPC_TOKEN_BYTES) == 0 &&
        memcmp(hello->to, endpoint->own.token, IPC_TOKEN_BYTES) == 0)
        memory = pplx_ipc_map_foreign(inbox_fd, 0, ipc_inbox_nbytes(hello->slots, hello->staging), true);
    close_fd(&inbox_fd);
    if (!memory) return false;
    endpoint->outbox = ipc_inbox_at(memory, hello->slots, hello->staging);
    endpoint->trusting = endpoint->domain->options.vm_writev && hello->flags & IPC_TRUSTS;
    return true;
}

/* Watch the peer's life. Without a pidfd (another pid namespace) the socket alone tells of its death. */
static void watch_peer(ipc_endpoint *endpoint) {
    pid_t pid;
    if (pplx_ipc_same_user(endpoint->socket, &pid) && pid > 0) endpoint->pidfd = pplx_ipc_pidfd(pid);
    if (endpoint->pidfd < 0) return;
    endpoint->pid = pid;
    pplx_ipc_watch_fd(endpoint->domain, endpoint->pidfd, &endpoint->peer_watch);
}

static void stand(ipc_endpoint *endpoint) {
    endpoint->state = IPC_UP;
    close_fd(&endpoint->inbox_fd);
    watch_peer(endpoint);
}

void pplx_ipc_accept(ipc_endpoint *endpoint, int fd, const ipc_hello *hello, int inbox_fd) {
    endpoint->socket = fd;
    if (map_outbox(endpoint, hello, inbox_fd) && say_hello(endpoint, IPC_WELCOME) &&
        pplx_ipc_watch_fd(endpoint->domain, fd, &endpoint->socket_watch))
        stand(endpoint);
    else
        pplx_ipc_break(endpoint, PPLX_CONNECTION);
}

/* 0, or the errno of what makes it hopeless. */
static int call(ipc_endpoint *endpoint) {
    pid_t pid;
    endpoint->socket = pplx_ipc_connect(endpoint->peer.listener);
    const int native = endpoint->socket < 0 ? errno : 0;
    endpoint->retry = native == EAGAIN; /* its backlog is full */
    if (endpoint->retry) return 0;
    if (native) {
        /* nobody listens there any more; or no descriptor is to be had */
        pplx_ipc_break(endpoint, native == ECONNREFUSED ? PPLX_PEER_LOST : PPLX_CONNECTION);
    } else if (pplx_ipc_same_user(endpoint->socket, &pid) && say_hello(endpoint, IPC_HELLO) &&
               pplx_ipc_watch_fd(endpoint->domain, endpoint->socket, &endpoint->socket_watch)) {
        endpoint->state = IPC_GREETED;
    } else {
        pplx_ipc_break(endpoint, PPLX_CONNECTION);
    }
    return native;
}

int pplx_ipc_meet(ipc_endpoint *endpoint) {
    if (memcmp(endpoint->own.token, endpoint->peer.token, IPC_TOKEN_BYTES) < 0) return call(endpoint);
    pplx_ipc_visitor_for(endpoint);
    return 0;
}

/* ------------------------------------------------------------------ telling */

/* Who has hung up need not hear it, and breaks no rule: what it said last, a goodbye mostly, is still to be read. */
static bool say(ipc_endpoint *endpoint, const ipc_note *note, const ipc_fds *fds) {
    if (endpoint->socket < 0) return false;
    const ssize_t n = pplx_ipc_send_with(endpoint->socket, note, sizeof *note, fds ? fds->of : NULL,
                                         fds ? fds->count : 0);
    return n == (ssize_t)sizeof *note || errno == EPIPE || errno == ECONNRESET;
}

void pplx_ipc_wake_peer(ipc_endpoint *endpoint, unsigned what) {
    static const ipc_note note = {.kind = IPC_WAKE};
    if (!ipc_take_wake(&endpoint->outbox, what)) return;
    /* relaxed: the message orders it; -1 + 1 where there is no telling */
    atomic_store_explicit(&endpoint->outbox.head->waker, (unsigned)(sched_getcpu() + 1), memory_order_relaxed);
    say(endpoint, &note, NULL); /* no room: it is readable */
}

static void announce(ipc_endpoint *endpoint) {
    if (endpoint->state != IPC_UP) return;
    /* seq_cst: pairs with the load in pplx_ipc_has_news(); "Waking" in ipc_ring.h */
    atomic_fetch_add_explicit(&endpoint->inbox.head->news, 1, memory_order_seq_cst);
    pplx_ipc_wake_peer(endpoint, IPC_WAKE_ARRIVAL);
}

/* The peer looks at its socket now and then only: `news` tells it at once, awake or not. */
bool pplx_ipc_say(ipc_endpoint *endpoint, const ipc_note *note, const ipc_fds *fds) {
    const bool said = say(endpoint, note, fds);
    announce(endpoint);
    return said;
}

bool pplx_ipc_has_news(const ipc_endpoint *endpoint) {
    /* seq_cst: pairs with the add in announce() */
    return atomic_load_explicit(&endpoint->outbox.head->news, memory_order_seq_cst) != endpoint->news_seen;
}

void pplx_ipc_heed_news(ipc_endpoint *endpoint) {
    if (endpoint->state != IPC_UP || !pplx_ipc_has_news(endpoint)) return;
    endpoint->news_seen = atomic_load_explicit(&endpoint->outbox.head->news,
                                               memory_order_seq_cst); /* seq_cst: as above */
    pplx_ipc_read_notes(endpoint);
}

/* ------------------------------------------------------------------ listening */

static void fall_silent(ipc_endpoint *endpoint);

/* Let go of the peer's memory, and say so, as soon as our GPU does nothing more for the peer and what was opened is
 * closed: tried again in each poll(), for to wait would keep us from all others. Nothing is begun there meanwhile, see
 * pplx_ipc_key_use(). */
void pplx_ipc_answer(ipc_endpoint *endpoint) {
    const bool broken = endpoint->state == IPC_BROKEN; /* a socket that ends doesn't say that we have let go */
    const ipc_note note = {.kind = broken ? IPC_BYE : IPC_BYE_ACK};
    if (!endpoint->owing) return;
    pplx_ipc_cuda_finish(endpoint->domain);
    if (!pplx_ipc_cuda_idle(endpoint)) return;
    if (!broken && !endpoint->heard_bye) {
        endpoint->owing = !pplx_ipc_keys_yield(endpoint);
        return;
    }
    pplx_ipc_keys_close(endpoint);
    if (endpoint->aside && endpoint->socket >= 0) return;
    endpoint->owing = false;
    pplx_ipc_say(endpoint, &note, NULL);
    if (broken)
        fall_silent(endpoint);
    else
        pplx_ipc_peer_gone(endpoint, PPLX_CONNECTION);
}

/* The peer closes, and has let go of our memory. So do we of its. */
static void take_bye(ipc_endpoint *endpoint) {
    endpoint->heard_bye = endpoint->let_go = endpoint->owing = true;
    pplx_ipc_answer(endpoint);
}

static void take_revoke(ipc_endpoint *endpoint, uint64_t key) {
    const ipc_note note = {.kind = IPC_REVOKED, .key = key};
    ipc_key *found = pplx_ipc_key_find(endpoint, key);
    if (found && (found->device || found->state == IPC_KEY_OPENING)) {
        if (found->state == IPC_KEY_CLOSING)
            endpoint->garbage = true; /* it has asked before */
        else
            found->unwanted = endpoint->owing = true;
        pplx_ipc_answer(endpoint);
        return;
    }
    if (found && found->state == IPC_KEY_KNOWN) pplx_ipc_key_drop(endpoint, found);
    if (!pplx_ipc_say(endpoint, &note, NULL)) endpoint->garbage = true; /* it asks and asks, and reads no answer */
}

/* Exactly those descriptors that it says; or none of them, where no more may be opened. */
static bool brings(const ipc_note *note, const ipc_fds *fds) {
    uint32_t wanted = 0;
    if (note->kind == IPC_MAPPED && note->extent == IPC_MAPPABLE) wanted = 1;
    if (note->kind == IPC_MAPPED && note->extent == IPC_CHUNKED) wanted = note->chunks;
    return fds->dropped ? wanted > 0 : fds->count == wanted;
}

/* False: it is not one of those that may come, or not whole. Takes fds. */
static bool take_note(ipc_endpoint *endpoint, const ipc_note *note, size_t nbytes, ipc_fds *fds) {
    if (nbytes != sizeof *note || !brings(note, fds)) {
        pplx_ipc_close_fds(fds);
        return false;
    }
    switch (note->kind) {
    case IPC_MAP: pplx_ipc_answer_map(endpoint, note->key); break;
    case IPC_MAPPED: pplx_ipc_key_mapped(endpoint, note, fds); break;
    case IPC_REVOKE: take_revoke(endpoint, note->key); break;
    case IPC_REVOKED: pplx_ipc_revoked(endpoint, note->key); break;
    case IPC_WAKE: break;
    case IPC_BYE: take_bye(endpoint); break;
    case IPC_BYE_ACK:
        if (!endpoint->said_bye) return false;
        endpoint->let_go = true;
        break;
    default: return false;
    }
    return !endpoint->garbage;
}

/* Takes fd. */
static bool take_welcome(ipc_endpoint *endpoint, const ipc_hello *hello, size_t nbytes, int fd) {
    if (nbytes != sizeof *hello || hello->kind != IPC_WELCOME || hello->version != IPC_VERSION) {
        close_fd(&fd);
        return false;
    }
    if (!map_outbox(endpoint, hello, fd)) return false;
    stand(endpoint);
    return true;
}

typedef union message {
    ipc_hello hello;
    ipc_note note;
} message;

/* False: nothing is there, or nothing will come any more. */
static bool read_one(ipc_endpoint *endpoint, message *message) {
    ipc_fds fds;
    if (endpoint->socket < 0) return false;
    ssize_t n = pplx_ipc_receive_with(endpoint->socket, message, sizeof *message, &fds);
    if (n < 0 && errno == EAGAIN) return false;
    endpoint->note_due = false;
    if (n <= 0) {
        if (endpoint->pidfd < 0) endpoint->let_go = true; /* nothing else would tell of its death */
        endpoint->hung_up = true;
        pplx_ipc_peer_gone(endpoint, PPLX_PEER_LOST);
        return false;
    }
    if (endpoint->state == IPC_BROKEN) { /* only its letting go is still of interest */
        endpoint->let_go |= n == (ssize_t)sizeof message->note && message->note.kind == IPC_BYE;
        pplx_ipc_close_fds(&fds);
        return true;
    }
    bool fine = endpoint->state == IPC_GREETED
                    ? take_welcome(endpoint, &message->hello, (size_t)n, pplx_ipc_first_fd(&fds))
                    : take_note(endpoint, &message->note, (size_t)n, &fds);
    if (!fine) pplx_ipc_break(endpoint, PPLX_CONNECTION);
    return fine;
}

void pplx_ipc_read_notes(ipc_endpoint *endpoint) {
    message message;
    for (int i = 0; i < IPC_MAX_NOTES; i++)
        if (!read_one(endpoint, &message)) return;
    endpoint->domain->look_again = true;
}

/* One system call: what is behind a bell is announced by `news`, or can wait. */
void pplx_ipc_take_bell(ipc_endpoint *endpoint) {
    message message;
    for (int i = 0; i < IPC_MAX_NOTES; i++)
        if (!read_one(endpoint, &message) || message.note.kind == IPC_WAKE) return;
    endpoint->domain->look_again = true;
}

/* ------------------------------------------------------------------ the end */

static void unwatch(const ipc_domain *domain, int *fd) {
    if (*fd < 0) return;
    epoll_ctl(domain->epoll_fd, EPOLL_CTL_DEL, *fd, NULL); /* a child that was forked may hold it open */
    close_fd(fd);
}

/* Not of the peer: whether that lives is still of interest when the endpoint closes. */
static void hang_up(ipc_endpoint *endpoint) {
    unwatch(endpoint->domain, &endpoint->socket);
    close_fd(&endpoint->inbox_fd);
}

/* After a break. Only its hanging up says that the peer has let go of memory that we can't move: see reaches() in
 * ipc_fence.c. */
static void fall_silent(ipc_endpoint *endpoint) {
    if (endpoint->socket >= 0 && pplx_ipc_reached(endpoint))
        shutdown(endpoint->socket, SHUT_WR);
    else
        hang_up(endpoint);
}

void pplx_ipc_peer_gone(ipc_endpoint *endpoint, pplx_status why) {
    if (endpoint->heard_bye) why = PPLX_CONNECTION; /* no loss, though it may be gone before it was answered */
    hang_up(endpoint);
    if (endpoint->state < IPC_UP) {
        pplx_ipc_break(endpoint, why);
    } else if (endpoint->state == IPC_UP) {
        endpoint->state = IPC_ENDING;
        endpoint->why = why;
        endpoint->ending_ns = ipc_now_ns();
        endpoint->last_arrivals = (uint64_t)endpoint->inbox.slots + IPC_COMMANDS + IPC_STREAMS * IPC_STREAM_SLOTS;
    }
}

/* What it said last is read first: it may have been a goodbye. */
void pplx_ipc_peer_died(ipc_endpoint *endpoint) {
    if (endpoint->pidfd < 0) return;
    if (endpoint->socket >= 0) pplx_ipc_read_notes(endpoint);
    unwatch(endpoint->domain, &endpoint->pidfd);
    endpoint->pid = 0;
    endpoint->let_go = true;
    pplx_ipc_peer_gone(endpoint, PPLX_PEER_LOST);
}

void pplx_ipc_break(ipc_endpoint *endpoint, pplx_status why) {
    if (endpoint->state == IPC_BROKEN) return;
    const bool settled = pplx_ipc_cuda_settle(endpoint); /* what the GPU has done so far is done */
    endpoint->why = endpoint->state < IPC_UP ? PPLX_PEER_LOST : why; /* they meet once, or never */
    endpoint->state = IPC_BROKEN;
    endpoint->retry = false;
    pplx_ipc_end_all(endpoint, why);
    if (settled) pplx_ipc_keys_close(endpoint);
    endpoint->owing = endpoint->shown && endpoint->socket >= 0;
    if (endpoint->owing)
        pplx_ipc_answer(endpoint);
    else
        fall_silent(endpoint);
}

void pplx_ipc_disconnect(ipc_endpoint *endpoint) {
    hang_up(endpoint);
    unwatch(endpoint->domain, &endpoint->pidfd);
    pplx_ipc_keys_close(endpoint);
    pplx_ipc_cuda_forget(endpoint);
    pplx_ipc_cuda_unplug(endpoint);
    if (endpoint->outbox.head) munmap(endpoint->outbox.head, endpoint->outbox.nbytes);
    if (endpoint->inbox.head) munmap(endpoint->inbox.head, endpoint->inbox.nbytes);
    endpoint->outbox = endpoint->inbox = (ipc_inbox){0};
}
