/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Words between streams and the proxy, by threads for streams: what a gate lets through has landed, every ring is
 * posted, whatever ends in between ends everywhere, and nothing goes out that was waiting for what did not come. */
#include <sched.h>
#include <stdatomic.h>

#include "aside.h"
#include "engine_helpers.h"
#include "gates_held.h"
#include "internal.h"

enum { ROUNDS = 400, NBYTES = 64, MOST_STEPS = 8, ASKED_NS = 200000000 };

/* ------------------------------------------------------------------ streams and words */

typedef struct stream {
    pthread_t thread;
    pplx_step steps[MOST_STEPS];
    uint32_t nsteps;
    uint32_t rounds;
    void (*between)(void *argument, uint32_t round); /* after the steps */
    void *argument;
} stream;

static void *run_stream(void *argument) {
    stream *stream = argument;
    for (uint32_t round = 0; round < stream->rounds; round++) {
        for (uint32_t i = 0; i < stream->nsteps; i++)
            while (!pplx_step_run(&stream->steps[i], 1000)) {
            }
        if (stream->between) stream->between(stream->argument, round);
    }
    return NULL;
}

static void stream_start(stream *stream, uint32_t rounds) {
    stream->rounds = rounds;
    CHECK_EQ(pthread_create(&stream->thread, NULL, run_stream, stream), 0);
}

static void stream_end(stream *stream) { CHECK_EQ(pthread_join(stream->thread, NULL), 0); }

static void add_step(stream *stream, uint32_t kind, uint32_t number, const pplx_word *word) {
    CHECK(stream->nsteps < MOST_STEPS);
    stream->steps[stream->nsteps++] = (pplx_step){
        .kind = kind, .value = number, .least = number, .address = (uintptr_t)word->cell};
}

static void add_gate(stream *stream, const pplx_word *word) {
    add_step(stream, PPLX_STEP_WRITE, word->turn + PPLX_CELL_ASKS, word);
    add_step(stream, PPLX_STEP_WAIT, word->turn + PPLX_CELL_ANSWERED, word);
}

static void add_ring(stream *stream, const pplx_word *word) {
    add_step(stream, PPLX_STEP_WAIT, word->turn + PPLX_CELL_ANSWERED, word);
    add_step(stream, PPLX_STEP_WRITE, word->turn + PPLX_CELL_ASKS, word);
}

/* In lines of their own; each case takes over what those before it have left. */
static struct {
    _Alignas(64) pplx_cell cell;
} cells[4];

static pplx_word gate_of(int cell, pplx_lane *lane, pplx_counter *counter, uint64_t n, bool repeats, bool *retired) {
    return (pplx_word){.kind = PPLX_WORD_GATE,
                       .cookie = retired,
                       .repeats = repeats,
                       .cell = &cells[cell].cell,
                       .turn = pplx_cell_take(&cells[cell].cell),
                       .lane = lane,
                       .poisons = pplx_lane_poisons(lane),
                       .counter = counter,
                       .eighths = n * PPLX_EIGHTHS,
                       .notify_at = UINT64_MAX};
}

/* ------------------------------------------------------------------ a transfer that is rung for */

typedef struct rung {
    pplx_word word;
    pplx_request request;
    pplx_target target;
    pplx_segment segment;
    ending end;
    bool retired;
} rung;

static void rung_fill(rung *rung, pair *pair, int cell, pplx_lane *lane, bool repeats) {
    memset(rung, 0, sizeof *rung);
    rung->segment = (pplx_segment){.nbytes = NBYTES, .pages = 1};
    rung->target = (pplx_target){.local = &pair->from.mr,
                                 .remote = &pair->remote,
                                 .peer = pair->ab,
                                 .segments = &rung->segment,
                                 .nsegments = 1,
                                 .counter = pair->counter.id};
    rung->request = (pplx_request){.kind = PPLX_REQUEST_TRANSFER,
                                   .opcode = PPLX_WRITE,
                                   .targets = &rung->target,
                                   .ntargets = 1,
                                   .cookie = &rung->end};
    rung->word = (pplx_word){.kind = PPLX_WORD_DOORBELL,
                             .cookie = &rung->retired,
                             .repeats = repeats,
                             .cell = &cells[cell].cell,
                             .turn = pplx_cell_take(&cells[cell].cell),
                             .lane = lane,
                             .poisons = pplx_lane_poisons(lane),
                             .request = &rung->request,
                             .notify_at = UINT64_MAX};
}

/* ------------------------------------------------------------------ cases */

static _Atomic uint32_t looked;

/* b's stream, behind its gate: what was counted is there. */
static void look(void *argument, uint32_t round) {
    const pair *pair = argument;
    CHECK(memcmp(pair->from.bytes, pair->to.bytes, NBYTES) == 0);
    atomic_store_explicit(&looked, round + 1, memory_order_release); /* release: pairs with the acquire in prepare() */
}

/* a's stream: the next bytes, once those of before were looked at. */
static void prepare(void *argument, uint32_t round) {
    const pair *pair = argument;
    while (atomic_load_explicit(&looked, memory_order_acquire) <= round) sched_yield(); /* acquire: see look() */
    memset(pair->from.bytes, (int)(round + 2), NBYTES);
}

/* a rings, b's stream takes each write as it lands; both are threads of their own, and the owners only look on. */
static void ring_and_gate(const char *faults) {
    pair pair;
    pplx_lane lanes[2] = {{0}};
    stream rings = {0}, gates = {0};
    rung rung;
    bool retired = false;
    atomic_store(&looked, 0);
    pair_open(&pair, 1, 1, faults, NBYTES);
    rung_fill(&rung, &pair, 0, &lanes[0], true);
    pplx_word gate = gate_of(1, &lanes[1], &pair.counter, 1, true, &retired);
    pplx_word_arm(pair.a.engine, &rung.word);
    pplx_word_arm(pair.b.engine, &gate);
    add_ring(&rings, &rung.word);
    add_gate(&gates, &gate);
    rings.between = prepare;
    gates.between = look;
    rings.argument = gates.argument = &pair;
    stream_start(&gates, ROUNDS);
    stream_start(&rings, ROUNDS);
    const bool there = pplx_word_notify(&gate, ROUNDS);
    WAIT(there || pair.b.words > 0); /* it was told: nothing else ends this */
    WATCH(pplx_word_count(&rung.word) == ROUNDS);
    stream_end(&rings);
    stream_end(&gates);
    CHECK_EQ(pplx_word_count(&gate), ROUNDS);
    CHECK(pplx_word_notify(&gate, ROUNDS)); /* who asks too late to be told hears it at once */
    CHECK(!pplx_word_notify(&gate, ROUNDS + 1));
    CHECK_EQ(pplx_word_posted(&rung.word), ROUNDS);
    CHECK_EQ(pplx_counter_value(&pair.counter), UINT64_C(8) * ROUNDS);
    CHECK_EQ(pplx_counter_gated(&pair.counter), UINT64_C(8) * ROUNDS);
    pplx_word_close(pair.a.engine, &rung.word);
    pplx_word_close(pair.b.engine, &gate);
    WAIT(rung.retired && retired);
    CHECK(rung.word.spent && gate.spent);
    pair_close(&pair);
}

static void rings_and_gates(void) {
    ring_and_gate("");
    ring_and_gate("reorder=16 again=0.2 delay_us=0:50");
}

/* Two gates of one counter, on two streams, while its writes come: each write is taken once. */
static void two_gates(void) {
    pair pair;
    pplx_lane lanes[3] = {{0}};
    stream rings = {0}, gates[2] = {{0}};
    pplx_word words[2];
    bool retired[2] = {false};
    rung rung;
    pair_open(&pair, 1, 1, "reorder=16", NBYTES);
    rung_fill(&rung, &pair, 0, &lanes[0], true);
    pplx_word_arm(pair.a.engine, &rung.word);
    add_ring(&rings, &rung.word);
    for (int i = 0; i < 2; i++) {
        words[i] = gate_of(1 + i, &lanes[1 + i], &pair.counter, (uint64_t)(1 + 2 * i), true, &retired[i]);
        pplx_word_arm(pair.b.engine, &words[i]);
        add_gate(&gates[i], &words[i]);
        stream_start(&gates[i], ROUNDS / 4);
    }
    stream_start(&rings, ROUNDS);
    WATCH(pplx_word_count(&words[0]) == ROUNDS / 4 && pplx_word_count(&words[1]) == ROUNDS / 4);
    stream_end(&rings);
    for (int i = 0; i < 2; i++) stream_end(&gates[i]);
    CHECK_EQ(pplx_counter_gated(&pair.counter), UINT64_C(8) * ROUNDS);
    CHECK_EQ(call(&pair.b, PPLX_CALL_WORDS_CLOSE, NULL, NULL), PPLX_OK);
    CHECK_EQ(call(&pair.a, PPLX_CALL_WORDS_CLOSE, NULL, NULL), PPLX_OK);
    WAIT(retired[0] && retired[1] && rung.retired);
    CHECK(!words[0].spent); /* a graph may be launched yet, as far as anyone knows */
    CHECK(cells[1].cell.gone);
    pair_close(&pair);
}

/* A stream goes on whenever it looks, though its cell may be another one's by then, who waits there in vain. */
static void looks_late(void) {
    pair pair;
    pplx_lane lane = {0};
    stream late[2] = {{0}};
    uint32_t turn = 0;
    pair_open(&pair, 1, 1, "", NBYTES);
    for (uint32_t round = 0; round < ROUNDS / 4; round++) {
        stream *next = &late[round % 2], *last = &late[(round + 1) % 2];
        bool retired = false;
        pplx_word gate = gate_of(0, &lane, &pair.counter, 1, round % 4 == 3, &retired);
        CHECK(round == 0 || gate.turn == turn + PPLX_CELL_ANSWERED);
        turn = gate.turn;
        next->nsteps = 0;
        add_gate(next, &gate);
        CHECK(pplx_step_run(&next->steps[0], 0));
        CHECK(!pplx_step_run(&next->steps[1], 0));
        if (round > 0) {
            CHECK(pplx_step_run(&last->steps[1], 0)); /* who has not looked before */
            stream_end(last); /* who does all the time */
        }
        next->steps[0] = next->steps[1];
        stream_start(next, 1);
        pplx_word_arm(pair.b.engine, &gate);
        write_now(&pair, 0, NBYTES, true);
        WATCH(pplx_word_count(&gate) == 1);
        if (gate.repeats) pplx_word_close(pair.b.engine, &gate);
        WAIT(retired);
        CHECK(gate.spent);
    }
    stream_end(&late[1]);
    pair_close(&pair);
}

/* Ended while streams come and go: what is behind a gate that was aborted is not posted, whatever the timing. */
static void ends_at_random_moments(void) {
    for (uint64_t seed = 1; seed <= 40; seed++) {
        pair pair;
        uint64_t dice = seed;
        pplx_lane lane = {0};
        stream stream = {0};
        rung rung;
        pair_open(&pair, 1, 1, "", NBYTES);
        pplx_counter never = {0};
        CHECK_EQ(pplx_counter_open(pair.a.engine, &never), PPLX_OK);
        bool retired = false;
        pplx_word gate = gate_of(0, &lane, &never, 1, false, &retired);
        rung_fill(&rung, &pair, 1, &lane, false);
        add_gate(&stream, &gate);
        add_step(&stream, PPLX_STEP_WRITE, rung.word.turn + PPLX_CELL_ASKS, &rung.word);
        stream_start(&stream, 1);
        pplx_word_arm(pair.a.engine, &rung.word);
        pplx_word_arm(pair.a.engine, &gate);
        for (volatile uint64_t spin = check_random(&dice) % 20000; spin > 0; spin--) {
        }
        const bool cancels = check_random(&dice) % 2;
        if (cancels) pplx_cancel(pair.a.engine, &rung.request);
        gate.end_status = PPLX_CLOSED;
        pplx_word_end(pair.a.engine, &gate);
        stream_end(&stream);
        WAIT(rung.end.released);
        CHECK(rung.request.error.status == PPLX_POISONED || (cancels && rung.request.error.status == PPLX_CANCELLED));
        WAIT(retired && rung.retired);
        CHECK(gate.spent && rung.word.spent);
        CHECK(pplx_lane_poisoned(&lane));
        CHECK_EQ(pplx_word_posted(&rung.word), 0);
        CHECK_EQ(pplx_counter_value(&pair.counter), 0);
        CHECK_EQ(call(&pair.a, PPLX_CALL_COUNTER_CLOSE, &never, NULL), PPLX_OK);
        pair_close(&pair);
    }
}

/* A stream whose gate never opens, and its owner, who heals the lane each time. It looks at the lane all the time: so it
 * has an old number of it at hand when the answer comes, and would see that one if the answer came first. */
static void *ask_and_look(void *argument) {
    pplx_word *word = argument;
    const pplx_step asks = {.value = word->turn + PPLX_CELL_ASKS, .address = (uintptr_t)word->cell};
    const pplx_step waits = {
        .kind = PPLX_STEP_WAIT, .least = word->turn + PPLX_CELL_ANSWERED, .address = (uintptr_t)word->cell};
    const uint64_t until = check_now_ns() + ASKED_NS; /* not so many times: that would be long on one core */
    while (check_now_ns() < until) {
        CHECK(pplx_step_run(&asks, 0));
        do pplx_lane_poisoned(word->lane);
        while (!pplx_step_run(&waits, 0));
        CHECK(pplx_lane_poisoned(word->lane));
        CHECK(pplx_cell_aborted(word->cell));
        pplx_lane_heal(word->lane);
    }
    return NULL;
}

/* Whoever was let go finds its lane poisoned: so nothing that it rings for then is taken for more than it is. */
static void poisoned_before_it_is_let_go(void) {
    pair pair;
    pthread_t thread;
    static struct {
        _Alignas(64) pplx_lane lane;
    } alone;
    bool retired = false;
    pair_open(&pair, 1, 1, "", NBYTES);
    pplx_word gate = gate_of(0, &alone.lane, &pair.counter, 1, true, &retired);
    gate.end_status = PPLX_CLOSED;
    pplx_word_arm(pair.b.engine, &gate);
    pplx_word_end(pair.b.engine, &gate);
    CHECK_EQ(pthread_create(&thread, NULL, ask_and_look, &gate), 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    CHECK_EQ(pplx_word_count(&gate), 0);
    pplx_word_close(pair.b.engine, &gate);
    WAIT(retired);
    pair_close(&pair);
}

/* Gates of GPUs' streams are counted, those that come once from when they are armed, those that a graph has captured
 * while they wait; until they are answered, however. */
static void gates_that_hold(void) {
    pair pair;
    pplx_lane lanes[3] = {{0}};
    pplx_word words[3];
    stream asks = {0};
    bool retired[3] = {false};
    pair_open(&pair, 1, 1, "", NBYTES);
    for (int i = 0; i < 3; i++) {
        words[i] = gate_of(i, &lanes[i], &pair.counter, 1, i == 1, &retired[i]);
        words[i].gpu = i < 2;
        words[i].end_status = PPLX_CLOSED;
        pplx_word_arm(pair.b.engine, &words[i]);
    }
    CHECK_EQ(pplx_gates_held(), 1);
    add_gate(&asks, &words[1]);
    stream_start(&asks, 1);
    WATCH(pplx_gates_held() == 2);
    pplx_word_end(pair.b.engine, &words[1]);
    WATCH(pplx_gates_held() == 1);
    stream_end(&asks);
    CHECK_EQ(call(&pair.b, PPLX_CALL_WORDS_CLOSE, NULL, NULL), PPLX_OK);
    WAIT(retired[0] && retired[1] && retired[2]);
    CHECK_EQ(pplx_gates_held(), 0);
    pair_close(&pair);
}

/* ------------------------------------------------------------------ gates, and calls that wait for them */

enum { SIDES = 2, CALLS = 300 };

static _Atomic int32_t called, queued; /* under way: such calls; gates that are queued and not open */

typedef struct caller {
    pplx_aside_call call; /* the first */
    pplx_aside aside;
} caller;

static void many_calls(pplx_aside_call *call) {
    (void)call;
    for (int i = 0; i < CALLS; i++) {
        pplx_outlast_gates();
        atomic_fetch_add(&called, 1);
        CHECK_EQ(atomic_load(&queued), 0);
        const struct timespec moment = {.tv_nsec = 100000};
        nanosleep(&moment, NULL);
        CHECK_EQ(atomic_load(&queued), 0);
        atomic_fetch_sub(&called, 1);
        pplx_gates_may_come();
        sched_yield();
    }
}

static void *many_gates(void *argument) {
    uint64_t dice = (uintptr_t)argument;
    for (int i = 0; i < CALLS; i++) {
        pplx_word word = {.kind = PPLX_WORD_GATE, .gpu = 1};
        const uint64_t start = check_now_ns();
        pplx_word_hold(&word);
        CHECK(check_now_ns() - start < 900000000); /* it did not give up: what follows says nothing then */
        atomic_fetch_add(&queued, 1);
        CHECK_EQ(atomic_load(&called), 0);
        for (uint64_t n = check_random(&dice) % 4; n > 0; n--) sched_yield();
        CHECK_EQ(atomic_load(&called), 0);
        atomic_fetch_sub(&queued, 1);
        pplx_word_undo(&word);
        const struct timespec moment = {.tv_nsec = (long)(check_random(&dice) % 3000000)}; /* calls come in between */
        nanosleep(&moment, NULL);
    }
    return NULL;
}

static void gates_and_calls_are_never_under_way_at_once(void) {
    static caller callers[SIDES];
    pthread_t owners[SIDES];
    for (uintptr_t i = 0; i < SIDES; i++) {
        pplx_aside_init(&callers[i].aside, "calls", NULL, NULL);
        callers[i].call.make = many_calls;
        pplx_aside_make(&callers[i].aside, &callers[i].call);
        CHECK_EQ(pthread_create(&owners[i], NULL, many_gates, (void *)(i + 1)), 0);
    }
    for (int i = 0; i < SIDES; i++) {
        CHECK_EQ(pthread_join(owners[i], NULL), 0);
        pplx_aside_join(&callers[i].aside);
    }
    CHECK_EQ(pplx_gates_held(), 0);
}

/* A thread that is not beside anyone may be what opens gates: it does not wait for them, but they wait for its call; and
 * not for ever. */
static void a_gate_waits_for_a_call_for_a_second(void) {
    pplx_word words[2] = {{.kind = PPLX_WORD_GATE, .gpu = 1}, {.kind = PPLX_WORD_GATE, .repeats = 1, .gpu = 1}};
    pplx_word another = words[0];
    pplx_gate_holds();
    pplx_outlast_gates();
    pplx_gate_lets_go();
    uint64_t start = check_now_ns();
    pplx_word_hold(&words[0]);
    const double waited = (double)(check_now_ns() - start) * 1e-9;
    CHECK(waited >= 1 && waited < 5);
    CHECK_EQ(pplx_gates_held(), 1);
    start = check_now_ns();
    pplx_word_hold(&another); /* for this call nobody waits again */
    pplx_word_undo(&another);
    pplx_word_hold(&words[1]); /* captured: nobody knows when it is launched */
    CHECK(check_now_ns() - start < 500000000);
    pplx_gates_may_come();
    pplx_word_undo(&words[1]);
    CHECK_EQ(pplx_gates_held(), 1);
    pplx_word_undo(&words[0]);
    CHECK_EQ(pplx_gates_held(), 0);
}

static pplx_engine *_Atomic withheld_from;
static pplx_word *withheld; /* before that */

/* What has completed comes when the word before that one is looked at, and no sooner. */
static size_t poll_late(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity) {
    const pplx_engine *engine = atomic_load(&withheld_from);
    if (!engine) return pplx_provider_loopback.poll(domain, completions, capacity);
    size_t n = 0;
    while (engine->next_word == withheld && withheld->busy && n == 0)
        n = pplx_provider_loopback.poll(domain, completions, capacity);
    return n;
}

/* A gate in vain brings in what has completed, and with that a doorbell retires which is the next one to be looked at.
 * It was rung once more before it was closed, and must not be posted for that. */
static void the_next_one_retires_meanwhile(void) {
    pair pair;
    pplx_provider provider = pplx_provider_loopback;
    pplx_lane lanes[2] = {{0}};
    stream rings = {0}, asks = {0};
    pplx_counter counter;
    rung rung;
    bool retired = false;
    provider.poll = poll_late;
    memset(&pair, 0, sizeof pair);
    host_provider = &provider;
    host_open(&pair.a, 1, "");
    host_provider = &pplx_provider_loopback;
    host_open(&pair.b, 1, "");
    pair_fill(&pair, NBYTES);
    CHECK_EQ(pplx_counter_open(pair.a.engine, &counter), PPLX_OK);
    counter.owner = PPLX_MAX_PEERS; /* a peer that was and is no more */
    rung_fill(&rung, &pair, 0, &lanes[0], true);
    pplx_word gate = gate_of(1, &lanes[1], &counter, 1, false, &retired);
    withheld = &rung.word;
    atomic_store(&withheld_from, pair.a.engine);
    pplx_word_arm(pair.a.engine, &rung.word);
    pplx_word_arm(pair.a.engine, &gate); /* in front of it */
    add_ring(&rings, &rung.word);
    stream_start(&rings, 2); /* the first one is posted, and the second one there when that ends */
    stream_end(&rings);
    WATCH(pplx_word_posted(&rung.word) == 1);
    pplx_word_close(pair.a.engine, &rung.word);
    pump_ms(10);
    CHECK(!rung.retired);
    add_gate(&asks, &gate);
    stream_start(&asks, 1);
    stream_end(&asks);
    WAIT(rung.retired && retired);
    atomic_store(&withheld_from, NULL);
    CHECK_EQ(pplx_word_posted(&rung.word), 1);
    CHECK_EQ(pplx_word_count(&rung.word), 1);
    CHECK_EQ(pplx_word_count(&gate), 0);
    CHECK_EQ(atomic_load(&pair.a.engine->nwords), 0);
    CHECK_COUNT(&pair, PPLX_EIGHTHS);
    counter.owner = 0;
    CHECK_EQ(call(&pair.a, PPLX_CALL_COUNTER_CLOSE, &counter, NULL), PPLX_OK);
    pair_close(&pair);
}

/* The engine's end with a stream that waits, and one that has not come yet: both run through. */
static void closing_lets_go(void) {
    pair pair;
    pplx_lane lane = {0};
    stream waits = {0}, late = {0};
    rung rung;
    pair_open(&pair, 1, 1, "", NBYTES);
    bool retired[2] = {false};
    pplx_word gate = gate_of(0, &lane, &pair.counter, 1, false, &retired[0]);
    pplx_word other = gate_of(1, &lane, &pair.counter, 1, true, &retired[1]);
    rung_fill(&rung, &pair, 2, &lane, false);
    pplx_word_arm(pair.b.engine, &gate);
    pplx_word_arm(pair.b.engine, &other);
    pplx_word_arm(pair.a.engine, &rung.word);
    add_gate(&waits, &gate);
    add_gate(&late, &other);
    add_ring(&late, &rung.word);
    stream_start(&waits, 1);
    CHECK_EQ(call(&pair.b, PPLX_CALL_WORDS_CLOSE, NULL, NULL), PPLX_OK);
    CHECK_EQ(call(&pair.a, PPLX_CALL_WORDS_CLOSE, NULL, NULL), PPLX_OK);
    WAIT(rung.end.released);
    CHECK_EQ(rung.request.error.status, PPLX_FLUSHED);
    stream_end(&waits);
    stream_start(&late, 3);
    stream_end(&late);
    WAIT(retired[0] && retired[1] && rung.retired);
    CHECK(!other.spent);
    CHECK_EQ(pplx_counter_gated(&pair.counter), 0);
    pair_close(&pair);
}

static void *add_up(void *argument) {
    for (int i = 0; i < ROUNDS; i++) __atomic_fetch_add((uint64_t *)argument, 3, __ATOMIC_ACQ_REL);
    return NULL;
}

static void watches(void) {
    pair pair;
    pthread_t kernel;
    pair_open(&pair, 1, 1, "", NBYTES);
    bool retired = false;
    pplx_word watch = {.kind = PPLX_WORD_WATCH,
                       .cookie = &retired,
                       .repeats = 1,
                       .cell = &cells[0].cell,
                       .turn = pplx_cell_take(&cells[0].cell),
                       .notify_at = UINT64_MAX};
    pplx_word_arm(pair.b.engine, &watch);
    CHECK_EQ(pthread_create(&kernel, NULL, add_up, &watch.cell->watched), 0);
    WATCH(pplx_cell_value(watch.cell) == 3 * ROUNDS);
    CHECK_EQ(pthread_join(kernel, NULL), 0);
    WAIT(pair.b.words > 0); /* it was told */
    pplx_word_close(pair.b.engine, &watch);
    WAIT(retired);
    pair_close(&pair);
}

int main(void) {
    RUN(rings_and_gates);
    RUN(two_gates);
    RUN(looks_late);
    RUN(ends_at_random_moments);
    RUN(poisoned_before_it_is_let_go);
    RUN(gates_that_hold);
    RUN(gates_and_calls_are_never_under_way_at_once);
    RUN(a_gate_waits_for_a_call_for_a_second);
    RUN(the_next_one_retires_meanwhile);
    RUN(closing_lets_go);
    RUN(watches);
    return check_done();
}
