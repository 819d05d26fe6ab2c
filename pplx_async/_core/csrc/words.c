/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Words: the proxy's answers to streams (pplx_async/words.h says what a stream does, and what it is promised).
 *
 * `state` is written by stream and proxy by turns: each writes what only the other one answers, and then waits for
 * that. So there is one writer at any time, and what it wrote before it wrote the state is seen by who reads the state:
 * release on the one side, acquire on the other. For the stream that is what its operations do by themselves; for the
 * count of a gate it means that what has landed is there when it opens.
 *
 *   gate, as the proxy sees it      ASLEEP    --(it asks)-->  WAITING, or at once:
 *                                   WAITING   --(enough has been counted, or never will)-->  ANSWERED
 *                                   ANSWERED  --(at once)-->  ASLEEP; it retires in the next look at the words
 *
 * A stream that has been answered need not have seen it yet when its cell is given out again. It only looks there any
 * more, and what is written there from then on is not below its answer. That a word which repeats goes back to its
 * question hurts nobody: its stream has seen the answer by then, for launches of a graph come one after the other, and
 * who had the cell before waits for less than that.
 *
 * WAITING gates stand in the queue of their counter, in the order in which the proxy saw them, and are served by
 * whoever counts: the store of the answer comes right after that of the count, whichever thread turns.
 *
 * No garbage is sent on. A stream that is let go has been waiting for our answer, and its lane is poisoned before
 * that answer is stored; so whatever it rings for afterwards is seen on a poisoned lane. Healing a lane (the owner, when
 * the stream has come to rest) does not revive what was queued before: a word that doesn't repeat keeps the number
 * of poisonings that it was queued under.
 *
 * Owner and proxy, in `flags`, read-modify-writes only. QUEUED keeps a word from being linked twice: the owner takes it
 * off before it looks at the counts, so what it misses is pushed again. A word that retires does so in one step with its
 * last push, or with the push that is on its way; afterwards the proxy doesn't touch it. If the owner has called
 * pplx_word_end() or pplx_word_close() before, that node is still coming, and the word retires when it has come.
 * `count` and `notify_at` are a pair as those of a counter are: counter.c. */
#include "gates_held.h"
#include "internal.h"

enum phase { ASLEEP, WAITING, ANSWERED, RETIRING };

/* One number of 64 bits, for streams that wait. */
typedef uint64_t __attribute__((may_alias)) whole_cell;

static bool asks(const pplx_word *word) {
    /* acquire: see the head */
    return __atomic_load_n(&word->cell->state, __ATOMIC_ACQUIRE) == word->turn + PPLX_CELL_ASKS;
}

static void answer(const pplx_word *word) {
    /* release: see the head */
    __atomic_store_n(&word->cell->state, word->turn + PPLX_CELL_ANSWERED, __ATOMIC_RELEASE);
}

uint32_t pplx_cell_take(pplx_cell *cell) {
    /* A question that `gone` has answered is behind us, too. Relaxed: nobody else writes there. */
    const uint32_t turn = (__atomic_load_n(&cell->state, __ATOMIC_RELAXED) + 1) & ~UINT32_C(1);
    __atomic_store_n(&cell->watched, 0, __ATOMIC_RELAXED); /* relaxed: no kernel knows it yet */
    __atomic_store_n(&cell->aborted, 0, __ATOMIC_RELEASE); /* release: pairs with pplx_cell_aborted() */
    __atomic_store_n(&cell->state, turn, __ATOMIC_RELEASE); /* before `gone` goes: somebody may look there */
    __atomic_store_n(&cell->gone, 0, __ATOMIC_RELEASE);     /* release: see the line above */
    return turn;
}

uint64_t pplx_cell_value(const pplx_cell *cell) {
    return __atomic_load_n(&cell->watched, __ATOMIC_ACQUIRE); /* acquire: pairs with whoever adds to it */
}

bool pplx_cell_aborted(const pplx_cell *cell) {
    /* acquire: pairs with let_through(), pplx_word_let_go() */
    return __atomic_load_n(&cell->aborted, __ATOMIC_ACQUIRE) || __atomic_load_n(&cell->gone, __ATOMIC_ACQUIRE);
}

void pplx_word_let_go(pplx_cell *cell) {
    __atomic_store_n(&cell->gone, 1, __ATOMIC_RELEASE); /* release: as answer() */
}

/* ---- lanes ---- */

uint32_t pplx_lane_poisons(const pplx_lane *lane) {
    return __atomic_load_n(&lane->poisons, __ATOMIC_ACQUIRE); /* acquire: pairs with poison() */
}

bool pplx_lane_poisoned(const pplx_lane *lane) {
    return pplx_lane_poisons(lane) != __atomic_load_n(&lane->healed, __ATOMIC_ACQUIRE); /* acquire: pairs with heal */
}

void pplx_lane_heal(pplx_lane *lane) {
    __atomic_store_n(&lane->healed, pplx_lane_poisons(lane), __ATOMIC_RELEASE); /* release: pairs with the load above */
}

static void poison(pplx_lane *lane) {
    if (!pplx_lane_poisoned(lane)) __atomic_store_n(&lane->poisons, lane->poisons + 1, __ATOMIC_RELEASE);
}

static bool is_poisoned(const pplx_word *word) {
    return pplx_lane_poisoned(word->lane) || (!word->repeats && word->poisons != pplx_lane_poisons(word->lane));
}

/* ---- to the owner ---- */

static void tell(pplx_engine *engine, pplx_word *word) {
    /* see the head */
    if (!(__atomic_fetch_or(&word->flags, PPLX_WORD_QUEUED, __ATOMIC_SEQ_CST) & PPLX_WORD_QUEUED))
        pplx_finish(engine, &word->node);
}

static void tell_status(pplx_engine *engine, pplx_word *word, int32_t status) {
    __atomic_store_n(&word->status, status, __ATOMIC_RELEASE); /* release: pairs with pplx_word_take_status() */
    tell(engine, word);
}

static void count(pplx_engine *engine, pplx_word *word) {
    __atomic_store_n(&word->count, word->count + 1, __ATOMIC_SEQ_CST); /* see the head */
    if (word->count >= __atomic_load_n(&word->notify_at, __ATOMIC_SEQ_CST)) tell(engine, word);
}

/* It is in no list any more. After this it may be gone. */
static void hand_back(pplx_engine *engine, pplx_word *word) {
    uint32_t flags = __atomic_load_n(&word->flags, __ATOMIC_RELAXED), after;
    word->phase = RETIRING;
    do {
        if ((flags & PPLX_WORD_ENDED && !word->end_seen) || (flags & PPLX_WORD_CLOSED && !word->close_seen)) return;
        after = flags | PPLX_WORD_RETIRED | PPLX_WORD_QUEUED;
    } while (!__atomic_compare_exchange_n(&word->flags, &flags, after, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    if (!(flags & PPLX_WORD_QUEUED)) pplx_finish(engine, &word->node);
}

/* Of streams of GPUs: from before it is queued, if its stream comes once, else from when we see it there. */
static void hold(pplx_word *word) {
    if (!word->gpu || word->holds) return;
    pplx_gate_holds();
    word->holds = 1;
}

static void let_go(pplx_word *word) {
    if (word->holds) pplx_gate_lets_go();
    word->holds = 0;
}

static void retire(pplx_engine *engine, pplx_word *word, bool spent) {
    let_go(word);
    if (word->prev)
        word->prev->next = word->next;
    else
        engine->words = word->next;
    if (word->next) word->next->prev = word->prev;
    if (engine->next_word == word) engine->next_word = word->next;
    const uint32_t left = atomic_load_explicit(&engine->nwords, memory_order_relaxed) - 1; /* relaxed: ours */
    atomic_store_explicit(&engine->nwords, left, memory_order_relaxed); /* relaxed: see pplx_words_armed() */
    PPLX_TELL(engine->stats.words, left);
    word->spent = spent;
    hand_back(engine, word);
}

/* ---- gates ---- */

/* The stream goes on; how, its kernels may ask. */
static void let_through(pplx_engine *engine, pplx_word *word, bool aborted) {
    word->phase = word->repeats ? ASLEEP : ANSWERED;
    __atomic_store_n(&word->cell->aborted, aborted, __ATOMIC_RELEASE); /* release: pairs with pplx_cell_aborted() */
    answer(word);
    if (word->nudge) pplx_nudge_now(engine, UINT64_C(1) << (word->nudge - 1)); /* after the answer, which it is for */
    let_go(word);
}

/* Without what it waited for. */
static void give_up(pplx_engine *engine, pplx_word *word, int32_t status) {
    poison(word->lane); /* before the answer: see the head */
    let_through(engine, word, true);
    tell_status(engine, word, status);
}

static void open_gate(pplx_engine *engine, pplx_word *word) {
    const int32_t native = pplx_gpus_any(engine) ? pplx_gpus_flush(engine, word->gpu) : 0;
    if (native) {
        word->native = native;
        give_up(engine, word, PPLX_NATIVE);
        return;
    }
    let_through(engine, word, false);
    count(engine, word);
}

void pplx_gates_serve(pplx_engine *engine, pplx_counter *counter) {
    const uint64_t value = __atomic_load_n(&counter->value, __ATOMIC_RELAXED); /* relaxed: the holder's own */
    while (counter->gates && value - counter->gated >= counter->gates->eighths) {
        pplx_word *word = counter->gates;
        counter->gates = word->next_gate;
        PPLX_TELL(counter->gated, counter->gated + word->eighths);
        open_gate(engine, word);
    }
}

static void queue_gate(pplx_engine *engine, pplx_word *word) {
    pplx_counter *counter = word->counter;
    hold(word);
    word->phase = WAITING;
    word->next_gate = NULL;
    if (counter->gates)
        counter->last_gate->next_gate = word;
    else
        counter->gates = word;
    counter->last_gate = word;
    pplx_gates_serve(engine, counter);
}

static void unqueue_gate(pplx_word *word) {
    pplx_counter *counter = word->counter;
    pplx_word *before = NULL;
    for (pplx_word *gate = counter->gates; gate != word; gate = gate->next_gate) before = gate;
    if (before)
        before->next_gate = word->next_gate;
    else
        counter->gates = word->next_gate;
    if (counter->last_gate == word) counter->last_gate = before;
}

/* It has seen a request. Those behind it may be served now. */
static void abort_gate(pplx_engine *engine, pplx_word *word, int32_t status) {
    const bool queued = word->phase == WAITING;
    if (queued) unqueue_gate(word);
    give_up(engine, word, status);
    if (queued) pplx_gates_serve(engine, word->counter);
}

/* Whoever may count there is lost, or has said goodbye: what is not there now never comes. */
static bool is_in_vain(const pplx_engine *engine, const pplx_counter *counter) {
    if (counter->owner == 0) return false;
    /* acquire: pairs with pplx_peer_new() */
    const pplx_peer *peer = atomic_load_explicit(&engine->by_index[counter->owner % PPLX_MAX_PEERS],
                                                 memory_order_acquire);
    return !peer || peer->token != counter->owner || peer->state > PPLX_PEER_UP;
}

static bool poll_gate(pplx_engine *engine, pplx_word *word) {
    if (word->phase == ANSWERED) { /* here and not as it is answered, which may be while others are looked at */
        retire(engine, word, true);
        return true;
    }
    if (word->phase == ASLEEP && asks(word)) {
        if (word->dead || is_poisoned(word))
            abort_gate(engine, word, word->dead ? word->dead : PPLX_POISONED);
        else
            queue_gate(engine, word);
        return true;
    }
    if (word->phase == WAITING && is_in_vain(engine, word->counter)) {
        pplx_drain(engine); /* what it has brought counts */
        if (word->phase == WAITING) abort_gate(engine, word, PPLX_PEER_LOST);
        return true;
    }
    return false;
}

/* ---- doorbells ---- */

/* As it was before it was started: the fields behind those of the owner's are the proxy's, and begin as zeros. */
static void rewind_request(pplx_request *request) {
    for (uint32_t i = 0; i < request->ntargets; i++) {
        pplx_target *target = &request->targets[i];
        const size_t first = offsetof(pplx_target, next);
        memset((char *)target + first, 0, sizeof *target - first);
    }
    request->state = 0;
    request->error.status = PPLX_OK;
}

/* It settles and nothing of it was posted. */
static void settle_unrung(pplx_engine *engine, pplx_word *word, pplx_status status, const char *why) {
    pplx_request *request = word->request;
    word->request = NULL;
    request->bell = NULL;
    pplx_fail(&request->error, status, 0, "%s", why);
    pplx_settle(engine, request);
}

static void refuse(pplx_engine *engine, pplx_word *word) {
    if (word->request && !word->repeats)
        settle_unrung(engine, word, PPLX_POISONED, pplx_status_text(PPLX_POISONED));
    else if (!word->dead) /* who ended it knows */
        tell_status(engine, word, PPLX_POISONED);
}

static void post_request(pplx_engine *engine, pplx_word *word) {
    pplx_request *request = word->request;
    PPLX_TELL(word->posted, word->posted + 1);
    PPLX_COUNT(engine->stats.requests, 1);
    if (word->repeats) {
        word->busy = 1;
    } else { /* from here on it is a request like any other */
        word->request = NULL;
        request->bell = NULL;
    }
    pplx_transfer_start(engine, request);
}

static bool poll_bell(pplx_engine *engine, pplx_word *word) {
    if (word->busy || !asks(word)) return false;
    if (word->dead || is_poisoned(word))
        refuse(engine, word);
    else if (word->request)
        post_request(engine, word);
    else
        count(engine, word);
    answer(word);
    if (!word->repeats) retire(engine, word, true);
    return true;
}

void pplx_bell_ended(pplx_engine *engine, pplx_word *word) {
    pplx_request *request = word->request;
    word->busy = 0;
    if (request->error.status == PPLX_OK) {
        rewind_request(request);
        count(engine, word);
    } else { /* the owner looks at what there is of it */
        if (!word->dead) word->dead = request->error.status;
        tell_status(engine, word, request->error.status);
    }
    if (word->closing) retire(engine, word, word->spent);
}

void pplx_bell_cancel(pplx_engine *engine, pplx_request *request) {
    settle_unrung(engine, request->bell, PPLX_CANCELLED, "cancelled before the stream got there");
}

/* ---- all kinds ---- */

static bool poll_watch(pplx_engine *engine, pplx_word *word) {
    const uint64_t value = pplx_cell_value(word->cell);
    if (value == word->seen) return false;
    word->seen = value;
    tell(engine, word);
    return true;
}

bool pplx_words_poll(pplx_engine *engine) {
    bool any = false;
    for (pplx_word *word = engine->words; word; word = engine->next_word) {
        engine->next_word = word->next; /* it may retire, and with what comes back meanwhile others */
        switch (word->kind) {
        case PPLX_WORD_GATE: any |= poll_gate(engine, word); break;
        case PPLX_WORD_DOORBELL: any |= poll_bell(engine, word); break;
        default: any |= poll_watch(engine, word); break;
        }
    }
    return any;
}

static void start_word(pplx_engine *engine, pplx_word *word) {
    word->prev = NULL;
    word->next = engine->words;
    if (word->next) word->next->prev = word;
    engine->words = word;
    const uint32_t all = atomic_load_explicit(&engine->nwords, memory_order_relaxed) + 1; /* relaxed: ours */
    atomic_store_explicit(&engine->nwords, all, memory_order_relaxed); /* relaxed: see pplx_words_armed() */
    PPLX_TELL(engine->stats.words, all);
}

static void end_word(pplx_engine *engine, pplx_word *word) {
    word->dead = word->end_status;
    if (word->kind == PPLX_WORD_GATE) {
        if (word->phase == WAITING) abort_gate(engine, word, word->dead);
        word->counter = NULL; /* it may be closed from now on */
    } else if (word->request && word->request->bell && !word->repeats) {
        settle_unrung(engine, word, (pplx_status)word->dead, pplx_status_text(word->dead));
    }
}

/* The proxy looks at it no more, whatever the stream does. */
static void close_word(pplx_engine *engine, pplx_word *word, bool spent) {
    if (word->kind != PPLX_WORD_WATCH) {
        /* A stream may have come that was not seen yet. Who is answered goes on by that, and its cell is free. */
        const bool comes = word->kind == PPLX_WORD_GATE && word->phase == ASLEEP && asks(word);
        if (word->phase == WAITING || comes) abort_gate(engine, word, PPLX_CANCELLED);
        if (word->phase != ANSWERED) pplx_word_let_go(word->cell);
    }
    word->spent = spent || word->phase == ANSWERED;
    if (word->busy)
        word->closing = 1; /* then it retires with its request */
    else
        retire(engine, word, word->spent);
}

void pplx_words_run_close(pplx_engine *engine) {
    for (pplx_word *word = engine->words, *next; word; word = next) {
        next = word->next;
        if (word->request && !word->repeats) settle_unrung(engine, word, PPLX_FLUSHED, pplx_status_text(PPLX_FLUSHED));
        close_word(engine, word, word->kind == PPLX_WORD_WATCH);
    }
}

void pplx_words_stop(pplx_engine *engine) {
    for (pplx_word *word = engine->words; word; word = word->next) let_go(word);
}

void pplx_word_take(pplx_engine *engine, pplx_node *node) {
    pplx_word *word;
    if (node->kind == PPLX_NODE_WORD) {
        start_word(engine, PPLX_CONTAINER(pplx_word, node, node));
    } else if (node->kind == PPLX_NODE_WORD_END) {
        word = PPLX_CONTAINER(pplx_word, end_node, node);
        word->end_seen = 1;
        if (word->phase == RETIRING)
            hand_back(engine, word);
        else
            end_word(engine, word);
    } else {
        word = PPLX_CONTAINER(pplx_word, close_node, node);
        word->close_seen = 1;
        if (word->phase == RETIRING)
            hand_back(engine, word);
        else
            close_word(engine, word, true);
    }
}

/* ---- the owner's side ---- */

/* See gates_held.h. */
void pplx_word_hold(pplx_word *word) {
    if (word->kind != PPLX_WORD_GATE || word->repeats || word->holds) return;
    word->holds = 1;
    pplx_gate_comes();
}

void pplx_word_undo(pplx_word *word) { let_go(word); }

void pplx_word_arm(pplx_engine *engine, pplx_word *word) {
    word->node.kind = PPLX_NODE_WORD;
    word->end_node.kind = PPLX_NODE_WORD_END;
    word->close_node.kind = PPLX_NODE_WORD_CLOSE;
    if (word->request) {
        word->request->node.kind = PPLX_NODE_REQUEST;
        word->request->cancel_node.kind = PPLX_NODE_CANCEL;
        word->request->bell = word;
    }
    if (word->kind == PPLX_WORD_GATE && !word->repeats) hold(word);
    if (word->kind == PPLX_WORD_DOORBELL && word->repeats) answer(word); /* nothing is under way: it may be rung */
    pplx_hand_in(engine, &word->node);
}

/* Whoever retires it sees the flag and waits for the node, or we see that it has retired: see the head. */
static void send(pplx_engine *engine, pplx_word *word, uint32_t flag, pplx_node *node) {
    if (!(__atomic_fetch_or(&word->flags, flag, __ATOMIC_SEQ_CST) & PPLX_WORD_RETIRED)) pplx_hand_in(engine, node);
}

void pplx_word_end(pplx_engine *engine, pplx_word *word) { send(engine, word, PPLX_WORD_ENDED, &word->end_node); }

void pplx_word_close(pplx_engine *engine, pplx_word *word) { send(engine, word, PPLX_WORD_CLOSED, &word->close_node); }

bool pplx_word_reaped(pplx_word *word) {
    /* see the head */
    return __atomic_fetch_and(&word->flags, ~(uint32_t)PPLX_WORD_QUEUED, __ATOMIC_SEQ_CST) & PPLX_WORD_RETIRED;
}

bool pplx_word_notify(pplx_word *word, uint64_t wanted) {
    __atomic_store_n(&word->notify_at, wanted, __ATOMIC_SEQ_CST); /* seq_cst: see the head */
    return __atomic_load_n(&word->count, __ATOMIC_SEQ_CST) >= wanted;
}

uint64_t pplx_word_count(const pplx_word *word) {
    return __atomic_load_n(&word->count, __ATOMIC_ACQUIRE); /* acquire: pairs with count() */
}

uint64_t pplx_word_posted(const pplx_word *word) {
    return __atomic_load_n(&word->posted, __ATOMIC_RELAXED); /* relaxed: for humans */
}

int32_t pplx_word_take_status(pplx_word *word) {
    return __atomic_exchange_n(&word->status, PPLX_OK, __ATOMIC_ACQ_REL); /* acquire: pairs with tell_status() */
}

/* ---- the stream's side, on the host ---- */

enum { LOOKS = 100, LEAST_NAP_NS = 5000, MOST_NAP_NS = 100000 };

static void nap(uint64_t ns) {
    const struct timespec time = {.tv_nsec = (long)ns};
    nanosleep(&time, NULL);
}

bool pplx_step_run(const pplx_step *step, uint32_t us) {
    uint64_t ns = LEAST_NAP_NS;
    if (step->kind == PPLX_STEP_WRITE) {
        /* release: see the head */
        __atomic_store_n((uint32_t *)(uintptr_t)step->address, step->value, __ATOMIC_RELEASE);
        return true;
    }
    const pplx_cell *cell = (const pplx_cell *)(uintptr_t)step->address;
    const uint64_t until = pplx_now_ns() + us * UINT64_C(1000);
    for (int looks = 0;; looks++) {
        /* acquire: see the head */
        if (__atomic_load_n((const whole_cell *)cell, __ATOMIC_ACQUIRE) >= step->least) return true;
        if (looks < LOOKS) continue;
        if (pplx_now_ns() >= until) return false;
        nap(ns);
        ns = ns * 2 < MOST_NAP_NS ? ns * 2 : MOST_NAP_NS;
    }
}
