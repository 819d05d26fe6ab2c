/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The proxy thread: the one that touches NICs.
 *
 *   turn   take what was submitted, post the first work request of each at once
 *          look at the words that streams of GPUs write, if any is armed
 *          fill the pipelines of every peer
 *          poll every completion queue; nudge the GPUs of gates that have opened (cuda_nudge.h)
 *          heartbeats and verdicts
 *   It turns as long as there is something to do, and for a moment after, twice spin_us at most. Then it
 *   blocks in ppoll on the submit eventfd and the providers' wait fds, until the next deadline. A word rings
 *   nothing: as long as one is armed it does not block.
 *
 * No Python, no allocation and no system call while busy. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* ppoll, thread names, CPU sets */
#endif
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "internal.h"

enum { MOST_TAKEN = 256, MOST_DRAIN_POLLS = 1024, GAP_MS = 1000, IDLE_TURNS = 64, SPIN_STEPS = 16, MOVE_NS = 1000000 };

/* ---- taking ---- */

static void run_call(pplx_engine *engine, pplx_request *request) {
    pplx_error *error = &request->error;
    switch (request->opcode) {
    case PPLX_CALL_COUNTER_CLOSE:
        pplx_drain(engine); /* what is in our queues already is still for this counter, or for none */
        pplx_counter_forget(engine, request->subject);
        break;
    case PPLX_CALL_DRAIN: pplx_drain(engine); break;
    case PPLX_CALL_WORDS_CLOSE: pplx_words_run_close(engine); break;
    /* These settle the request themselves, some of them later. */
    case PPLX_CALL_MR_OPEN:
    case PPLX_CALL_MR_CLOSE: pplx_register_run(engine, request); return;
    case PPLX_CALL_MR_OPENED:
    case PPLX_CALL_MR_CLOSED: pplx_registered(engine, request); return;
    case PPLX_CALL_PEER_OPEN: pplx_peer_run_open(request->subject, request); return;
    case PPLX_CALL_PEER_CONNECT: pplx_peer_run_connect(request->subject, request); return;
    case PPLX_CALL_PEER_CLOSE: pplx_peer_run_close(request->subject, request); return;
    case PPLX_CALL_PEER_LOST: pplx_peer_run_lost(request->subject, request); return;
    case PPLX_CALL_RAIL_LOST: pplx_peer_run_rail_lost(request->subject, request); return;
    default: pplx_fail(error, PPLX_INVALID, 0, "no call has number %u", request->opcode);
    }
    pplx_settle(engine, request);
}

static void cancel(pplx_engine *engine, pplx_request *request) {
    request->cancel_seen = 1;
    /* acquire is not needed: SETTLED is written by this thread */
    if (__atomic_load_n(&request->state, __ATOMIC_RELAXED) & PPLX_STATE_SETTLED) {
        pplx_finish(engine, &request->node); /* pplx_settle() left it to us */
    } else if (request->bell) {
        pplx_bell_cancel(engine, request);
    } else if (request->kind == PPLX_REQUEST_TRANSFER) {
        pplx_transfer_cancel(engine, request);
    } else if (request->kind == PPLX_REQUEST_SEND) {
        pplx_message_cancel(request->subject, request);
    } else if (request->opcode == PPLX_CALL_PEER_CONNECT) {
        ((pplx_peer *)request->subject)->connecting = NULL;
        pplx_fail(&request->error, PPLX_CANCELLED, 0, "connecting was cancelled");
        pplx_settle(engine, request);
    } /* the other calls end by themselves */
}

static void dispatch(pplx_engine *engine, pplx_node *node) {
    if (node->kind == PPLX_NODE_MESSAGE) {
        pplx_message_repost(engine, PPLX_CONTAINER(pplx_message, node, node));
    } else if (node->kind == PPLX_NODE_CANCEL) {
        cancel(engine, PPLX_CONTAINER(pplx_request, cancel_node, node));
    } else if (node->kind == PPLX_NODE_PEER) {
        pplx_peer_give_back(PPLX_CONTAINER(pplx_peer, lost_node, node));
    } else if (node->kind >= PPLX_NODE_WORD) {
        pplx_word_take(engine, node);
    } else {
        pplx_request *request = PPLX_CONTAINER(pplx_request, node, node);
        PPLX_COUNT(engine->stats.requests, 1);
        if (request->kind == PPLX_REQUEST_TRANSFER)
            pplx_transfer_start(engine, request);
        else if (request->kind == PPLX_REQUEST_SEND)
            pplx_message_submit(request->subject, request);
        else
            run_call(engine, request);
    }
}

/* The ring was found full: take the list behind it. Its turn comes when the ring has been popped up
 * to where its end is now, so that each thread's order holds.
 *
 * Whoever is in the list pushed to the ring before, so below `tail` as it is read under the lock.
 * Whoever finds npending 0 again pushes behind that. And whoever pushed behind it and then finds
 * npending not 0 waits in the next list: this one was taken with the same lock held. */
static void take_pending(pplx_engine *engine) {
    pthread_mutex_lock(&engine->pending_lock);
    engine->taken_at = atomic_load_explicit(&engine->ring.tail, memory_order_relaxed); /* relaxed: the lock orders it */
    engine->taken = engine->pending_head;
    engine->pending_head = engine->pending_tail = NULL;
    PPLX_COUNT(engine->stats.overflowed, atomic_load_explicit(&engine->npending, memory_order_relaxed));
    /* release: pairs with the acquire in pplx_submit_node() (engine.c) */
    atomic_store_explicit(&engine->npending, 0, memory_order_release);
    pthread_mutex_unlock(&engine->pending_lock);
}

/* NULL: nothing, or nothing yet (a cell that is claimed and will be published soon). */
static pplx_node *next_node(pplx_engine *engine) {
    /* relaxed: looked at again next turn, and by block() */
    if (!engine->taken && atomic_load_explicit(&engine->npending, memory_order_relaxed)) take_pending(engine);
    if (!engine->taken || engine->ring.head != engine->taken_at) return pplx_ring_pop(&engine->ring);
    pplx_node *node = engine->taken;
    engine->taken = node->next;
    return node;
}

static bool take(pplx_engine *engine) {
    bool any = false;
    for (int i = 0; i < MOST_TAKEN; i++) { /* busy producers may not keep us from the NICs */
        pplx_node *node = next_node(engine);
        if (!node) break;
        dispatch(engine, node);
        any = true;
    }
    return any;
}

/* ---- one turn ---- */

static bool post_all(pplx_engine *engine) {
    bool any = false;
    pplx_peer *peer = engine->busy;
    engine->busy = NULL;
    while (peer) {
        pplx_peer *next = peer->next_busy;
        peer->busy = false;
        any |= pplx_peer_post(peer);
        if (pplx_peer_has_work(peer)) pplx_peer_busy(peer);
        peer = next;
    }
    return any;
}

static size_t poll_domain(pplx_engine *engine, const pplx_domain *domain) {
    pplx_completion completions[PPLX_POLL_BATCH];
    size_t n = domain->provider->poll(domain->handle, completions, PPLX_POLL_BATCH);
    if (n && pplx_gpus_any(engine) && domain->caps.flags & PPLX_CAP_GPU_FLUSH) engine->landed = true;
    for (size_t i = 0; i < n; i++) {
        const pplx_completion *c = &completions[i];
        if (c->kind == PPLX_COMPLETION_IMM)
            pplx_counter_hit(engine, c);
        else
            pplx_link_completed((pplx_slot *)c->op, (pplx_status)c->status, c->provider_error, c->nbytes);
    }
    return n;
}

static bool poll_all(pplx_engine *engine, bool briefly) {
    bool any = false;
    for (uint32_t d = 0; d < engine->ndomains; d++) {
        const pplx_domain *domain = &engine->domains[d];
        if (briefly && !(domain->caps.flags & PPLX_CAP_PROMPT)) continue;
        /* Without a peer there is nothing urgent: who asks for a connection, at most. */
        if (domain->nendpoints || engine->stats.turns % IDLE_TURNS == 0) any |= poll_domain(engine, domain) != 0;
    }
    return any;
}

/* What arrived so far is counted when this returns; not from within a poll. The bound is above the
 * length of any completion queue: nobody's traffic keeps us here. */
void pplx_drain(pplx_engine *engine) {
    for (uint32_t d = 0; d < engine->ndomains; d++)
        for (int polls = 0; polls < MOST_DRAIN_POLLS; polls++)
            if (poll_domain(engine, &engine->domains[d]) == 0) break;
}

static bool tick(pplx_engine *engine) {
    bool any = false;
    if (engine->now_ns < engine->tick_ns) return false;
    engine->tick_ns = UINT64_MAX; /* what a tick asks for comes on top of the deadlines */
    for (pplx_peer *peer = engine->peers, *next; peer; peer = next) {
        next = peer->next; /* a tick may close it */
        any |= pplx_peer_tick(peer);
    }
    for (const pplx_peer *peer = engine->peers; peer; peer = peer->next) pplx_tick_at(engine, pplx_peer_deadline(peer));
    return any;
}

/* We did not run for a while (stopped, or no core for us): nobody's silence in that time counts.
 * The time that the proxy meant to sleep is no gap: only what goes beyond it. */
static void forgive_gap(pplx_engine *engine, uint64_t now) {
    uint64_t meant = engine->sleep_until_ns < now ? engine->sleep_until_ns : now;
    uint64_t gap = now - (engine->now_ns > meant ? engine->now_ns : meant);
    uint32_t interval = engine->config.heartbeat_interval_ms;
    if (gap <= pplx_ms(interval ? interval : GAP_MS)) return;
    for (pplx_peer *peer = engine->peers; peer; peer = peer->next) {
        for (uint32_t i = 0; i < peer->nlinks; i++) {
            peer->links[i].answer_by_ns += gap;
            peer->links[i].heard_ns += gap;
            peer->links[i].parked_until += gap;
            if (peer->links[i].again_ns) peer->links[i].again_ns += gap;
        }
    }
}

static bool turn(pplx_engine *engine, pplx_node *first, bool briefly) {
    uint64_t now = pplx_now_ns();
    forgive_gap(engine, now);
    engine->now_ns = now;
    PPLX_COUNT(engine->stats.turns, 1);
    if (first) dispatch(engine, first);
    bool any = take(engine);
    if (pplx_words_armed(engine)) any |= pplx_words_poll(engine); /* what a stream rings for is posted right below */
    any |= post_all(engine);
    any |= poll_all(engine, briefly);
    any |= tick(engine);
    pplx_nudge_rest(engine);
    return any;
}

/* `first` goes before what is in the ring; NULL: nothing does. True: there was something to do. */
bool pplx_turn(pplx_engine *engine, pplx_node *first) { return turn(engine, first, false); }

/* The next turn comes soon, by this thread: more may be posted until then, and what has completed is
 * read at once. */
void pplx_turn_briefly(pplx_engine *engine, pplx_node *first) { turn(engine, first, true); }

/* ---- blocking ---- */

/* UINT64_MAX: until something happens. */
uint64_t pplx_next_deadline(const pplx_engine *engine) {
    uint64_t deadline = engine->tick_ns;
    for (const pplx_peer *peer = engine->busy; peer; peer = peer->next_busy) {
        uint64_t wants = pplx_peer_deadline(peer);
        if (wants < deadline) deadline = wants;
    }
    return deadline;
}

/* True: a wait fd has something. */
static bool sleep_until(const pplx_engine *engine, uint64_t deadline) {
    uint64_t now = pplx_now_ns(), left = deadline > now ? deadline - now : 0;
    struct timespec limit = {.tv_sec = (time_t)(left / 1000000000), .tv_nsec = (long)(left % 1000000000)};
    /* Not an epoll of ours: it counts in milliseconds, and the fds may be epolls themselves, of which
     * the kernel lets us stack few (fabric_quirks.h). */
    struct pollfd readable[1 + PPLX_MAX_DOMAINS] = {{.fd = engine->submit_fd, .events = POLLIN}};
    for (uint32_t d = 0; d < engine->ndomains; d++) /* ppoll() leaves out those below 0 */
        readable[1 + d] = (struct pollfd){.fd = engine->domains[d].wait_fd, .events = POLLIN};
    int n = ppoll(readable, 1 + engine->ndomains, deadline == UINT64_MAX ? NULL : &limit, NULL);
    uint64_t rung; /* the providers clear their own fds in poll() */
    while (n > 0 && readable[0].revents && read(engine->submit_fd, &rung, sizeof rung) < 0 && errno == EINTR) {
    }
    return n > 0 && !readable[0].revents;
}

/* What woke us would have been seen by spinning a little longer: then twice as long is worth it, up to twice what is
 * configured, for where peers sleep between their answers it is the waking that makes these late. A longer sleep says
 * that the spin before it was for nothing. */
static void adapt_spin(pplx_engine *engine, uint64_t slept_ns) {
    const uint64_t configured = engine->config.spin_us * UINT64_C(1000);
    uint64_t spin_ns = engine->stats.spin_ns;
    if (slept_ns >= configured)
        spin_ns /= 2;
    else if (spin_ns < configured / SPIN_STEPS)
        spin_ns = configured / SPIN_STEPS;
    else
        spin_ns = spin_ns < configured ? spin_ns * 2 : configured * 2;
    PPLX_TELL(engine->stats.spin_ns, spin_ns);
}

/* The kernel may wake us on the core of the peer that rang, though another one is idle. That peer goes
 * on, filling our queue: then each of us spins or copies for nothing but to keep the other waiting. */
static bool shares_core(const pplx_engine *engine) {
    const int cpu = sched_getcpu();
    for (uint32_t d = 0; d < engine->ndomains; d++) {
        const pplx_domain *domain = &engine->domains[d];
        if (domain->provider->woken_from && cpu >= 0 && domain->provider->woken_from(domain->handle) == cpu)
            return true;
    }
    return false;
}

/* To another one of the cores that are ours, if there is one; which, the kernel says. */
static void leave_core(pplx_engine *engine) {
    const int cpu = sched_getcpu();
    const uint64_t now = pplx_now_ns();
    cpu_set_t all, others;
    if (cpu < 0 || now - engine->moved_ns < MOVE_NS || sched_getaffinity(0, sizeof all, &all)) return;
    engine->moved_ns = now;
    others = all;
    CPU_CLR((size_t)cpu, &others);
    if (CPU_COUNT(&others) == 0) return;
    sched_setaffinity(0, sizeof others, &others);
    sched_setaffinity(0, sizeof all, &all); /* where it goes from there is the kernel's business again */
}

static void take_token(pplx_engine *engine) {
    for (;;) {
        if (!pplx_leased(engine) && pplx_token_take(engine)) {
            /* Once more, now that what the last holder wrote is seen: a turn under its lease would
             * disarm what it has just armed, and nobody would hear of what comes. */
            if (!pplx_leased(engine)) return;
            pplx_token_give(engine);
        }
        pplx_stand_by(engine);
    }
}

/* Called and left with the token; without it while asleep. */
static void block(pplx_engine *engine) {
    uint64_t deadline = pplx_next_deadline(engine);
    const uint64_t next_poll = engine->now_ns + engine->config.poll_interval_us * UINT64_C(1000);
    /* seq_cst: pairs with the load in pplx_submit_node() (engine.c); argument in ring.h, "Sleeping" */
    atomic_store_explicit(&engine->asleep, 1, memory_order_seq_cst);
    if (!pplx_arm_domains(engine)) {
        atomic_store_explicit(&engine->asleep, 0, memory_order_relaxed); /* relaxed: an extra ring does no harm */
        return;
    }
    if (pplx_timed(engine) && engine->peers && next_poll < deadline) deadline = next_poll;
    PPLX_COUNT(engine->stats.sleeps, 1);
    engine->sleep_until_ns = deadline;
    pplx_token_give(engine);
    const uint64_t fell_asleep = pplx_now_ns();
    bool by_nic = sleep_until(engine, deadline);
    const uint64_t slept = pplx_now_ns() - fell_asleep;
    if (by_nic) pplx_let_owner(engine);
    atomic_store_explicit(&engine->asleep, 0, memory_order_relaxed); /* relaxed: as above */
    take_token(engine);
    if (by_nic && engine->config.cpu < 0 && shares_core(engine)) leave_core(engine);
    forgive_gap(engine, pplx_now_ns());
    engine->now_ns = pplx_now_ns();
    engine->sleep_until_ns = 0;
    adapt_spin(engine, slept);
}

/* There was nothing to do for a while. For words it stays awake, but not in the way of who is to write them. */
static void rest(pplx_engine *engine) {
    if (!pplx_words_armed(engine)) {
        block(engine);
        return;
    }
    pplx_token_give(engine); /* else an owner on this core would run only to find it taken */
    sched_yield();
    take_token(engine);
}

static void prepare_thread(const pplx_engine *engine) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* signals are for Python's threads */
    pthread_setname_np(pthread_self(), "pplx-proxy");
    if (engine->config.cpu >= 0) {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET((size_t)engine->config.cpu, &cpus);
        pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus); /* a wish: not every CPU may be ours */
    }
}

void *pplx_proxy_main(void *argument) {
    pplx_engine *engine = argument;
    prepare_thread(engine);
    engine->now_ns = engine->active_ns = pplx_now_ns();
    PPLX_TELL(engine->stats.spin_ns, engine->config.spin_us * UINT64_C(1000));
    take_token(engine);
    while (!atomic_load_explicit(&engine->stop, memory_order_relaxed)) { /* relaxed: block() looks again */
        if (pplx_turn(engine, NULL))
            engine->active_ns = engine->now_ns;
        else if (engine->now_ns - engine->active_ns >= engine->stats.spin_ns)
            rest(engine);
        pplx_token_offer(engine);
        take_token(engine);
    }
    do /* peers given back last are freed here, and memory that is being registered comes back */
        pplx_aside_join(&engine->registrar);
    while (take(engine));
    return NULL;
}
