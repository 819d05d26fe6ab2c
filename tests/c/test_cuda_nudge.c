/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Gates of streams that look now and then only, as a GPU's do: they open at once all the same, for their GPU is nudged;
 * and what there is to be said about that stream of ours. On the tests' own libcuda, which lies beside this program; each
 * case has a GPU of its own. */
#include <limits.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "cuda_nudge.h"
#include "engine_helpers.h"
#include "fake_cuda_calls.h"
#include "internal.h"

/* Streams look so rarely, and nobody's patience lasts that long. */
enum { PAGE = 4096, NBYTES = 64, DOZE_MS = 1000 * 2 * PATIENCE_S, GATES = 20, MANY = 2000, AT_MOST = 2 };

static char libcuda[PATH_MAX];
static const pplx_libcuda *cuda;
static int (*doze)(int), (*hold_stores)(int), (*stores)(void), (*pinned)(void), (*waiting)(void), (*queued)(void);
static int (*retained)(void), (*new_context)(cu_context *, unsigned, int), (*destroy_context)(cu_context);
static int (*begin_capture)(cu_stream, int), (*end_capture)(cu_stream, void **), (*destroy_graph)(void *);

static void load(void) {
    pplx_error error;
    set("FAKE_CUDA_FAIL", "");
    set("FAKE_CUDA_WORDS", "1");
    set("FAKE_CUDA_DEVICES", "8");
    find_fake_cuda(libcuda);
    CHECK_EQ(pplx_cuda_load(libcuda, &cuda, &error), PPLX_OK);
    const fake_cuda_call calls[] = {
        {&doze, "fake_cuda_doze"},
        {&hold_stores, "fake_cuda_hold_stores"},
        {&stores, "fake_cuda_stores"},
        {&pinned, "fake_cuda_pinned"},
        {&waiting, "fake_cuda_waiting"},
        {&queued, "fake_cuda_queued"},
        {&retained, "fake_cuda_retained"},
        {&new_context, "cuCtxCreate_v2"},
        {&destroy_context, "cuCtxDestroy_v2"},
        {&begin_capture, "cuStreamBeginCapture_v2"},
        {&end_capture, "cuStreamEndCapture"},
        {&destroy_graph, "cuGraphDestroy"},
    };
    find_fake_cuda_calls(libcuda, calls, sizeof calls / sizeof *calls);
}

/* ------------------------------------------------------------------ an engine whose stream waits */

/* b's stream waits for what a writes. */
typedef struct side {
    pair pair;
    cu_context context;
    cu_stream stream;
    uint8_t *page;
    pplx_pinned pinned;
    pplx_lane lane;
    pplx_word gate;
    bool retired;
} side;

static void side_open(side *s, int device) {
    pplx_error error;
    memset(s, 0, sizeof *s);
    pair_open(&s->pair, 1, 1, "", NBYTES);
    CHECK_EQ(cuda->primary_retain(&s->context, device), CU_OK);
    CHECK_EQ(cuda->context_push(s->context), CU_OK);
    CHECK_EQ(pplx_cuda_stream(cuda, &s->stream), CU_OK);
    CHECK_EQ(posix_memalign((void **)&s->page, PAGE, PAGE), 0);
    memset(s->page, 0, PAGE);
    CHECK_EQ(pplx_cuda_pin(libcuda, (uintptr_t)s->stream, s->page, PAGE, &s->pinned, &error), PPLX_OK);
}

static void side_close(side *s) {
    cu_context popped;
    pplx_cuda_unpin(libcuda, s->page, &s->pinned);
    free(s->page);
    CHECK_EQ(cuda->stream_destroy(s->stream), CU_OK);
    CHECK_EQ(cuda->context_pop(&popped), CU_OK);
    pair_close(&s->pair);
}

static pplx_status queue_gate(side *s, bool repeats) {
    pplx_cell *cell = (pplx_cell *)(void *)s->page;
    pplx_error error;
    s->retired = false;
    s->gate = (pplx_word){.kind = PPLX_WORD_GATE,
                          .cookie = &s->retired,
                          .repeats = repeats,
                          .cell = cell,
                          .turn = pplx_cell_take(cell),
                          .lane = &s->lane,
                          .poisons = pplx_lane_poisons(&s->lane),
                          .counter = &s->pair.counter,
                          .eighths = PPLX_EIGHTHS,
                          .end_status = PPLX_CLOSED,
                          .notify_at = UINT64_MAX};
    const pplx_step steps[] = {
        {.kind = PPLX_STEP_WRITE, .value = s->gate.turn + PPLX_CELL_ASKS, .address = s->pinned.address},
        {.kind = PPLX_STEP_WAIT, .least = s->gate.turn + PPLX_CELL_ANSWERED, .address = s->pinned.address},
    };
    return pplx_cuda_queue(libcuda, (uintptr_t)s->stream, steps, 2, &s->gate, &error);
}

static bool is_idle(const side *s) { return cuda->stream_query(s->stream) == CU_OK; }

/* The stream waits, and the proxy has seen that. */
static void wait_in_gate(side *s) {
    CHECK_EQ(queue_gate(s, false), PPLX_OK);
    pplx_word_arm(s->pair.b.engine, &s->gate);
    WATCH(waiting() == 1);
}

/* Its word retires in the turn after, so the GPU has been nudged when this returns. */
static void open_gate(side *s) {
    write_now(&s->pair, 0, NBYTES, true);
    WAIT(s->retired);
    WATCH(is_idle(s));
}

/* And our stream has done what it was given. */
static void gate_opens(side *s) {
    wait_in_gate(s);
    open_gate(s);
    WATCH(queued() == 0);
}

/* ------------------------------------------------------------------ cases */

/* Nor is a primary one made to find that out. Who comes after them has the numbers that it would have had. */
static void contexts_of_the_programs_own_take_no_place(void) {
    cu_context context;
    const int before = retained();
    for (int i = 0; i < PPLX_MOST_NUDGES + 1; i++) {
        CHECK_EQ(new_context(&context, 0, i % 8), 0);
        CHECK_EQ(pplx_nudge_find(cuda, context), 0);
        CHECK_EQ(destroy_context(context), 0);
    }
    CHECK_EQ(retained(), before);
}

static void a_gate_opens_at_once(void) {
    side s;
    side_open(&s, 0);
    const int held = retained();
    doze(DOZE_MS);
    const int before = stores();
    for (int i = 0; i < GATES; i++) gate_opens(&s);
    CHECK_EQ(s.gate.nudge, 3);
    CHECK_EQ(retained() - held, 1); /* the context stays, for our stream is in it */
    CHECK_EQ(stores() - before, GATES); /* one each */
    doze(0);
    side_close(&s);
}

static void one_that_is_given_up_lets_go_at_once(void) {
    side s;
    side_open(&s, 0);
    doze(DOZE_MS);
    wait_in_gate(&s);
    pplx_word_end(s.pair.b.engine, &s.gate);
    WAIT(s.retired);
    WATCH(is_idle(&s));
    CHECK(pplx_lane_poisoned(&s.lane));
    pplx_lane_heal(&s.lane);
    wait_in_gate(&s);
    CHECK_EQ(call(&s.pair.b, PPLX_CALL_WORDS_CLOSE, NULL, NULL), PPLX_OK);
    WAIT(s.retired);
    WATCH(is_idle(&s));
    doze(0);
    side_close(&s);
}

static void engines_that_follow_each_other_have_one_stream_for_it(void) {
    int there = 0;
    for (int i = 0; i < 5; i++) {
        side s;
        side_open(&s, 1);
        gate_opens(&s);
        CHECK_EQ(s.gate.nudge, 4);
        side_close(&s);
        if (i > 0) CHECK_EQ(pinned(), there);
        there = pinned();
    }
}

/* It may share a queue of the GPU with one that waits. */
static void a_stream_that_stands_still_is_given_two_stores_at_most(void) {
    side s;
    side_open(&s, 2);
    gate_opens(&s);
    const int before = stores();
    hold_stores(true);
    for (int i = 0; i < GATES; i++) {
        wait_in_gate(&s);
        open_gate(&s);
    }
    CHECK_EQ(stores() - before, AT_MOST);
    hold_stores(false);
    WATCH(queued() == 0);
    doze(DOZE_MS);
    for (int i = 0; i < GATES; i++) gate_opens(&s);
    doze(0);
    side_close(&s);
}

static void what_the_driver_refuses_is_not_asked_for_again(void) {
    side s;
    side_open(&s, 3);
    wait_in_gate(&s);
    set("FAKE_CUDA_FAIL", "cuStreamWriteValue64_v2:999");
    open_gate(&s);
    set("FAKE_CUDA_FAIL", "");
    const int before = stores();
    for (int i = 0; i < GATES; i++) gate_opens(&s);
    CHECK_EQ(stores(), before);
    side_close(&s);
}

static void without_a_stream_or_a_word_the_gate_opens_all_the_same(void) {
    static const char *const calls[] = {"cuMemHostGetDevicePointer_v2:1", "cuStreamCreateWithPriority:2"};
    for (int i = 0; i < 2; i++) {
        side s;
        side_open(&s, 4 + i);
        set("FAKE_CUDA_FAIL", calls[i]);
        wait_in_gate(&s);
        set("FAKE_CUDA_FAIL", "");
        const int before = stores();
        open_gate(&s);
        gate_opens(&s);
        CHECK_EQ(stores(), before);
        side_close(&s);
    }
}

static void without_stream_memory_operations_nobody_is_nudged(void) {
    side s;
    side_open(&s, 6);
    set("FAKE_CUDA_WORDS", "0");
    doze(DOZE_MS);
    const int before = stores();
    gate_opens(&s);
    CHECK_EQ(s.gate.nudge, 0);
    CHECK_EQ(stores(), before);
    doze(0);
    set("FAKE_CUDA_WORDS", "1");
    side_close(&s);
}

/* The first gate of its context is captured, while a capture forbids to pin memory to whoever doesn't know better. */
static void a_capture_is_not_disturbed(void) {
    side s;
    void *graph;
    side_open(&s, 6);
    CHECK_EQ(begin_capture(s.stream, 0), 0);
    CHECK_EQ(queue_gate(&s, true), PPLX_OK);
    CHECK_EQ(end_capture(s.stream, &graph), 0);
    CHECK_EQ(destroy_graph(graph), 0);
    CHECK(s.gate.nudge != 0);
    gate_opens(&s);
    side_close(&s);
}

/* Its number is of no use there, and its driver neither. (No thread of this libcuda has a lock when it is forked, which it
 * would find taken for ever: gate_opens().) */
__attribute__((unused)) static void a_child_makes_its_own(void) {
    side s;
    int status;
    side_open(&s, 7);
    gate_opens(&s);
    const uint32_t ours = s.gate.nudge;
    const pid_t child = fork();
    if (child == 0) _exit(pplx_nudge_find(cuda, s.context) == ours ? 1 : 0);
    CHECK(child > 0);
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    gate_opens(&s);
    CHECK_EQ(s.gate.nudge, ours);
    side_close(&s);
}

typedef struct nudging {
    pthread_t thread;
    uint64_t which;
} nudging;

static void *nudge_often(void *argument) {
    const nudging *nudging = argument;
    for (int i = 0; i < MANY; i++) pplx_nudge(nudging->which);
    return NULL;
}

/* Proxies of several engines. Whatever they do at once, it goes on afterwards. */
static void many_nudge_at_once(void) {
    side s;
    nudging all[4];
    side_open(&s, 7);
    gate_opens(&s);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        all[i].which = UINT64_C(1) << (s.gate.nudge - 1);
        CHECK_EQ(pthread_create(&all[i].thread, NULL, nudge_often, &all[i]), 0);
    }
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) CHECK_EQ(pthread_join(all[i].thread, NULL), 0);
    WATCH(queued() == 0);
    doze(DOZE_MS);
    for (int i = 0; i < GATES; i++) gate_opens(&s);
    doze(0);
    side_close(&s);
}

int main(void) {
    load();
    RUN(without_a_stream_or_a_word_the_gate_opens_all_the_same); /* first: nothing is pinned yet */
    RUN(contexts_of_the_programs_own_take_no_place);
    RUN(a_gate_opens_at_once);
    RUN(one_that_is_given_up_lets_go_at_once);
    RUN(engines_that_follow_each_other_have_one_stream_for_it);
    RUN(a_stream_that_stands_still_is_given_two_stores_at_most);
    RUN(what_the_driver_refuses_is_not_asked_for_again);
    RUN(without_stream_memory_operations_nobody_is_nudged);
    RUN(a_capture_is_not_disturbed);
#ifndef __SANITIZE_THREAD__ /* which takes no new threads in a child */
    RUN(a_child_makes_its_own);
#endif
    RUN(many_nudge_at_once);
    return check_done();
}
