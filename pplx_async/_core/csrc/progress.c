/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Who makes progress: the proxy, or the owner in its stead.
 *
 * One thread at a time turns (proxy.c), the holder of the progress token. To wake another thread costs
 * a system call and the time that a core takes to wake up, several times what a small write costs. So
 * the owner may turn by itself:
 *
 *   here    pplx_submit_here(): a small request is posted by the owner if the proxy is not turning and
 *           nothing is queued before it.
 *   drive   pplx_drive(): the owner listens to the wait fds too, and is woken by the NIC, not by the
 *           proxy. That pays on few cores (pplx_engine_config.owner_drives): one wake-up for each
 *           message and nobody spins. What is large, or more than the owner can arm the providers
 *           after, goes to the proxy.
 *   spin    pplx_spin(): the owner turns until something comes, again and again; what it submits
 *           meanwhile, by pplx_submit_spinning(), is posted at once. Providers stay unarmed, so that
 *           no peer needs to ring us.
 *
 * In the last two the owner has a lease: until a moment after its last call the proxy stands by. If the
 * owner doesn't come back (its program computes), the lease runs out and the proxy turns: liveness stays
 * the proxy's.
 *
 * The token is one word, taken by compare-and-swap with acquire, given with release: what one holder
 * wrote, the next one sees. It is held for a turn or a bounded spin, never across the owner's own
 * code. `lease_ns` says who should take it next. The proxy looks at it again with the token in hand,
 * so it never turns under a lease; who ends a lease rings, for the proxy may be standing by.
 *
 * A proxy that turns gives the token and takes it again within nanoseconds, and the owner would hardly
 * ever come in between. So it says that it wants it (`wanted`), and the proxy, giving it, leaves it alone
 * for a moment. That is a hint, and both wait for a bounded time only: the other may be off its core,
 * and then the proxy turns on, and the owner queues what it has. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* ppoll */
#endif
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <unistd.h>

#include "internal.h"

enum {
    LEASE_NS = 2000000,
    NAP_NS = 1000000,
    MOST_TURNS = 4,
    MOST_TRIES = 100,
    MOST_YIELDS = 4,
    MOST_UNSEEN = 4,
    MOST_DRIVE_NS = 200000
};

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

void pplx_ring_fd(int fd) {
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) {
    }
}

bool pplx_token_take(pplx_engine *engine) {
    uint32_t given = 0;
    /* acquire: pairs with the release in pplx_token_give() */
    return atomic_compare_exchange_strong_explicit(&engine->token, &given, 1, memory_order_acquire,
                                                   memory_order_relaxed);
}

void pplx_token_give(pplx_engine *engine) {
    atomic_store_explicit(&engine->token, 0, memory_order_release); /* release: pairs with pplx_token_take() */
}

/* The proxy, between two turns. It yields rather than spins, for the owner may be waiting for this core. */
void pplx_token_offer(pplx_engine *engine) {
    pplx_token_give(engine);
    /* relaxed: a hint, and nothing else is handed over by it */
    for (int i = 0; i < MOST_YIELDS && atomic_load_explicit(&engine->wanted, memory_order_relaxed); i++) sched_yield();
}

/* Whether the proxy may block, as far as this domain is concerned. */
static bool arm(pplx_domain *domain) {
    if (domain->wait_fd < 0) return true;
    pplx_status status = domain->provider->arm(domain->handle);
    atomic_store_explicit(&domain->timed, status == PPLX_UNSUPPORTED, memory_order_relaxed); /* relaxed: for humans */
    return status == PPLX_OK || status == PPLX_UNSUPPORTED;
}

/* Holder. True: nothing is left to do, and whoever sleeps on the wait fds will hear of what comes, but
 * for domains that are polled on a timer. */
bool pplx_arm_domains(pplx_engine *engine) {
    bool may = !pplx_words_armed(engine) && !engine->taken && pplx_ring_empty(&engine->ring) &&
               atomic_load_explicit(&engine->npending, memory_order_seq_cst) == 0 &&
               atomic_load_explicit(&engine->stop, memory_order_seq_cst) == 0;
    for (uint32_t d = 0; d < engine->ndomains && may; d++) may = arm(&engine->domains[d]);
    return may;
}

/* Holder. A domain is polled on a timer, now at least. */
bool pplx_timed(const pplx_engine *engine) {
    for (uint32_t d = 0; d < engine->ndomains; d++)
        if (atomic_load_explicit(&engine->domains[d].timed, memory_order_relaxed)) return true; /* relaxed: ours */
    return false;
}

/* ---- the proxy's side ---- */

/* Words have to be looked at all the time, by a thread that does nothing else. */
bool pplx_leased(const pplx_engine *engine) {
    if (pplx_words_armed(engine)) return false;
    const uint64_t lease = atomic_load_explicit(&engine->lease_ns, memory_order_relaxed); /* relaxed: see the head */
    return lease && lease > pplx_now_ns();
}

/* Until it is rung, for `ns` at most. */
static void nap(const pplx_engine *engine, uint64_t ns) {
    struct timespec limit = {.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
    struct pollfd rung = {.fd = engine->submit_fd, .events = POLLIN};
    uint64_t count;
    if (ppoll(&rung, 1, &limit, NULL) > 0)
        while (read(engine->submit_fd, &count, sizeof count) < 0 && errno == EINTR) {
        }
}

/* Until the owner gives the token back, or its lease has run out. With words it comes back at once: nobody rings for
 * what a stream writes while the owner computes. */
void pplx_stand_by(pplx_engine *engine) {
    const uint64_t now = pplx_now_ns(), end = atomic_load_explicit(&engine->lease_ns, memory_order_relaxed);
    if (end > now && !pplx_words_armed(engine))
        nap(engine, end - now);
    else
        sched_yield(); /* the owner holds it for one turn */
}

/* A wait fd has woken the proxy, and the owner too, if it isn't computing: it goes first. */
void pplx_let_owner(pplx_engine *engine) {
    /* relaxed: an old value costs one nap, or one needless wake-up */
    if (atomic_load_explicit(&engine->listens, memory_order_relaxed)) nap(engine, NAP_NS);
}

/* ---- the owner's side ---- */

static void wake_proxy(pplx_engine *engine) {
    atomic_store_explicit(&engine->asleep, 0, memory_order_relaxed); /* relaxed: it is rung all the same */
    pplx_ring_fd(engine->submit_fd);
}

/* Holder, the owner: the proxy will see the lease run out. Asleep it would not. */
static bool stands_by(const pplx_engine *engine) {
    /* relaxed: it goes to sleep with the token only, which we have */
    return pplx_leased(engine) && !atomic_load_explicit(&engine->asleep, memory_order_relaxed);
}

static void lease(pplx_engine *engine, uint64_t until_ns) {
    atomic_store_explicit(&engine->lease_ns, until_ns, memory_order_relaxed); /* relaxed: see the head */
}

/* Holder, the owner: gives the token back such that nothing that comes from now on is missed. */
static void hand_over(pplx_engine *engine) {
    /* relaxed: if it has just woken up it turns anyway, and if it is just going to sleep it had the token
     * then, so we see that it did. Standing by, it is not asleep. */
    const bool asleep = atomic_load_explicit(&engine->asleep, memory_order_relaxed);
    bool ring;
    if (pplx_words_armed(engine)) {
        /* It turns, unless the first of them has just been armed by us. relaxed: ours */
        ring = asleep || atomic_load_explicit(&engine->lease_ns, memory_order_relaxed) != 0;
        lease(engine, 0);
    } else if (atomic_load_explicit(&engine->listens, memory_order_relaxed)) { /* ours */
        bool armed = !engine->busy && pplx_arm_domains(engine) && !pplx_timed(engine);
        ring = !armed || (asleep && pplx_next_deadline(engine) < engine->sleep_until_ns);
        lease(engine, armed ? engine->now_ns + LEASE_NS : 0);
    } else {
        /* relaxed: ours. Under a lease the proxy may be standing by, or be about to. */
        ring = atomic_load_explicit(&engine->lease_ns, memory_order_relaxed) != 0;
        if (asleep) ring |= !pplx_arm_domains(engine) || pplx_next_deadline(engine) < engine->sleep_until_ns;
        lease(engine, 0);
    }
    engine->spinning = false;
    pplx_token_give(engine);
    if (ring) wake_proxy(engine);
}

static uint32_t come_back(pplx_engine *engine, bool armed, uint32_t flags) {
    bool empty = armed ? pplx_done_arm(&engine->done) : pplx_done_empty(&engine->done);
    return empty ? flags : flags | PPLX_DONE;
}

/* A turn of the proxy's may end soon: worth waiting for, up to a point. */
static bool take_soon(pplx_engine *engine) {
    bool taken = pplx_token_take(engine);
    if (taken) return true;
    atomic_store_explicit(&engine->wanted, true, memory_order_relaxed); /* relaxed: see pplx_token_offer() */
    for (int tries = 1; tries < MOST_TRIES && !taken; tries++) {
        relax();
        /* relaxed: a look, which leaves the proxy's cache line where it is; the take acquires */
        taken = !atomic_load_explicit(&engine->token, memory_order_relaxed) && pplx_token_take(engine);
    }
    atomic_store_explicit(&engine->wanted, false, memory_order_relaxed); /* relaxed: as above */
    return taken;
}

static bool is_queued(pplx_engine *engine) {
    /* relaxed: only what this thread submitted before matters */
    return engine->taken || !pplx_ring_empty(&engine->ring) ||
           atomic_load_explicit(&engine->npending, memory_order_relaxed) != 0;
}

/* True: it has the token, and nothing waits that should go before what it is about to do. */
static bool take_for(pplx_engine *engine) {
    if (!take_soon(engine)) return false;
    if (!is_queued(engine)) return true;
    pplx_token_give(engine);
    return false;
}

/* For the proxy, at once: it may be standing by. */
static void queue(pplx_engine *engine, pplx_node *node) {
    /* relaxed: see the head */
    const bool leased = atomic_load_explicit(&engine->lease_ns, memory_order_relaxed) != 0;
    if (leased) lease(engine, 0);
    pplx_submit_node(engine, node);
    if (leased) wake_proxy(engine);
}

/* Holder, the owner: it comes back by itself, so nothing need be armed; until then the proxy stands by. */
static void keep(pplx_engine *engine) {
    engine->spinning = true;
    const bool asleep = !stands_by(engine) && !pplx_words_armed(engine); /* with words it turns, or was rung to do so */
    pplx_token_give(engine);
    if (asleep) wake_proxy(engine);
}

/* True: done on this thread. */
static bool turn_here(pplx_engine *engine, pplx_node *node) {
    if (!take_for(engine)) return false;
    pplx_turn(engine, node);
    if (engine->spinning && stands_by(engine))
        pplx_token_give(engine);
    else
        hand_over(engine);
    return true;
}

void pplx_hand_in(pplx_engine *engine, pplx_node *node) {
    if (!turn_here(engine, node)) queue(engine, node);
}

static void prepare(pplx_request *request) {
    request->node.kind = PPLX_NODE_REQUEST;
    request->cancel_node.kind = PPLX_NODE_CANCEL;
}

uint32_t pplx_submit_here(pplx_engine *engine, pplx_request *request) {
    const bool armed = pplx_done_disarm(&engine->done); /* we look ourselves: it need not be rung */
    prepare(request);
    bool here = turn_here(engine, &request->node);
    if (!here) queue(engine, &request->node);
    return come_back(engine, armed, here ? PPLX_DROVE : 0);
}

uint32_t pplx_submit_spinning(pplx_engine *engine, pplx_request *request) {
    prepare(request);
    pplx_done_disarm(&engine->done);
    if (!take_for(engine)) {
        queue(engine, &request->node);
        return come_back(engine, false, 0);
    }
    pplx_turn_briefly(engine, &request->node);
    lease(engine, engine->now_ns + LEASE_NS);
    keep(engine);
    return come_back(engine, false, PPLX_DROVE);
}

void pplx_submit_there(pplx_engine *engine, pplx_request *request) {
    prepare(request);
    queue(engine, &request->node);
}

void pplx_listens(pplx_engine *engine, bool listens) {
    atomic_store_explicit(&engine->listens, listens, memory_order_relaxed); /* relaxed: see pplx_let_owner() */
}

uint32_t pplx_drive(pplx_engine *engine) {
    const bool armed = pplx_done_disarm(&engine->done);
    if (!take_soon(engine)) return come_back(engine, armed, 0); /* the proxy is at work: it will ring us */
    const uint64_t start = pplx_now_ns();
    int turns = 0;
    while (turns < MOST_TURNS && pplx_turn(engine, NULL) && pplx_now_ns() - start < MOST_DRIVE_NS) turns++;
    const bool nothing_done = pplx_done_empty(&engine->done);
    const bool large = nothing_done && pplx_now_ns() - start >= MOST_DRIVE_NS; /* bytes by the megabyte */
    engine->unseen = turns && nothing_done ? engine->unseen + 1 : 0;
    if (engine->unseen < MOST_UNSEEN && !large) {
        hand_over(engine);
        return come_back(engine, armed, PPLX_DROVE);
    }
    /* Large, or traffic that this thread is not told of, shards or counts below what is waited for: the
     * proxy spins after each, and then nobody needs to be rung for the next. */
    engine->unseen = 0;
    lease(engine, 0);
    pplx_token_give(engine);
    wake_proxy(engine);
    return come_back(engine, armed, 0);
}

uint32_t pplx_watch(pplx_engine *engine, uint32_t us) {
    const uint64_t until = pplx_now_ns() + us * UINT64_C(1000);
    pplx_done_disarm(&engine->done);
    while (pplx_done_empty(&engine->done) && pplx_now_ns() < until) relax();
    return come_back(engine, false, 0);
}

/* Owners that spin, of all engines of the process: on few cores one is enough. */
static atomic_bool spins;

static uint32_t spin(pplx_engine *engine, uint32_t us) {
    pplx_done_disarm(&engine->done);
    uint32_t flags = 0;
    uint64_t now = pplx_now_ns();
    const uint64_t until = now + us * UINT64_C(1000);
    bool taken = take_soon(engine);
    lease(engine, until + LEASE_NS);
    if (!taken && us == 0) return come_back(engine, false, 0); /* the proxy ends its turn: the next time, then */
    while (!taken && !(taken = pplx_token_take(engine))) { /* the proxy ends its turn and sees the lease */
        relax();
        now = pplx_now_ns();
        if (!pplx_done_empty(&engine->done)) return PPLX_DONE;
        if (now >= until) return 0;
    }
    if (is_queued(engine)) { /* a call, for example, which may take long */
        lease(engine, 0);
        pplx_token_give(engine);
        wake_proxy(engine);
        return come_back(engine, false, 0);
    }
    do
        if (pplx_turn(engine, NULL)) flags = PPLX_DROVE;
    while (pplx_done_empty(&engine->done) && engine->now_ns < until);
    keep(engine);
    return come_back(engine, false, flags);
}

uint32_t pplx_spin(pplx_engine *engine, uint32_t us) {
    if (!engine->drives || us == 0) return spin(engine, us);
    /* relaxed: it protects nothing */
    const bool alone = !atomic_exchange_explicit(&spins, true, memory_order_relaxed);
    const uint32_t flags = spin(engine, alone ? us : 0);
    if (alone) atomic_store_explicit(&spins, false, memory_order_relaxed); /* relaxed: as above */
    return flags;
}

void pplx_spin_end(pplx_engine *engine) {
    if (pplx_token_take(engine)) {
        hand_over(engine);
    } else { /* the proxy turns; but it may have seen the lease, and stand by after that */
        lease(engine, 0);
        wake_proxy(engine);
    }
}
