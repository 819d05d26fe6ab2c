/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* verbs_objects.h over the fake libibverbs, without Python: what each call does, how each failure is told, and that
 * nothing is left behind. */
#include <stdio.h>

#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>

#include "fake_verbs.h"
#include "verbs_objects.h"

static const char *const layouts[] = {
    "x0 roce gbps=100 ip=10.0.0.1; x1 roce gbps=25 ip=10.0.0.2",
    "x0 ib lid=3; x1 ib lid=9",
    "x0 ib grh lid=3; x1 ib pkey=0x7fff pkey=0xffff lid=3",
    "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2 mtu=4096 inline=0 reads=1 sge=1",
    "x0 roce ip=10.0.0.1 asks=2; x1 roce ip=10.0.0.2 reads=16 asks=1",
    "x0 roce ip=10.0.0.1 delay=20 stale; x1 roce ip=10.0.0.2 stale",
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0], ARENA = 1 << 17, DEPTH = 64, FLOOD = 20000 };

static const pplx_verbs_api *api;
static pplx_option options[1];

typedef struct side {
    pplx_verbs_context *context;
    pplx_verbs_port port;
    pplx_verbs_pd *pd;
    pplx_verbs_queue *queue;
    pplx_verbs_pair *pair;
    pplx_verbs_address address;
    pplx_verbs_mr *mr;
    unsigned char *arena;
    uint32_t lkey, rkey, entries;
    int fd;
} side;

static void open_side(side *s, const char *device) {
    pplx_error error = {.status = PPLX_OK};
    memset(s, 0, sizeof *s);
    options[0] = (pplx_option){"library", fake_path};
    CHECK_EQ(api->context_open(device, options, 1, &s->context, &s->port, &error), PPLX_OK);
    CHECK_EQ(api->pd_open(s->context, &s->pd, &error), PPLX_OK);
    s->entries = 2 * DEPTH;
    CHECK_EQ(api->queue_open(s->context, &s->entries, &s->queue, &s->fd, &error), PPLX_OK);
    CHECK(s->entries >= 2 * DEPTH);
    CHECK_EQ(api->pair_open(s->context, s->pd, s->queue, s->queue, DEPTH, DEPTH, &s->pair, &s->address, &error),
             PPLX_OK);
    s->arena = calloc(1, ARENA);
    CHECK(s->arena);
    CHECK_EQ(api->memory_open(s->context, s->pd, s->arena, ARENA, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE,
                              true, &s->mr, &s->lkey, &s->rkey, &error),
             PPLX_OK);
    CHECK_EQ(api->pair_state(s->pair), PPLX_VERBS_OPEN);
}

static void close_side(side *s) {
    pplx_error error;
    if (s->pair) CHECK_EQ(api->pair_close(s->pair, &error), PPLX_OK);
    CHECK_EQ(api->memory_close(s->context, s->mr, &error), PPLX_OK);
    CHECK_EQ(api->queue_close(s->queue, &error), PPLX_OK);
    CHECK_EQ(api->pd_close(s->context, s->pd, &error), PPLX_OK);
    api->context_close(s->context);
    free(s->arena);
}

static void meet(side *a, side *b) {
    const pplx_verbs_connection patience = {.timeout = 8, .retries = 1, .rnr_retries = 1};
    pplx_error error;
    CHECK_EQ(api->pair_connect(a->pair, &b->address, &patience, &error), PPLX_OK);
    CHECK_EQ(api->pair_connect(b->pair, &a->address, &patience, &error), PPLX_OK);
    CHECK_EQ(api->pair_state(a->pair), PPLX_VERBS_CONNECTED);
}

static void open_sides(side *a, side *b, const char *layout) {
    CHECK_EQ(fake.layout(layout), 0);
    open_side(a, "x0");
    open_side(b, strstr(layout, "x1") ? "x1" : "x0");
    meet(a, b);
}

static void close_sides(side *a, side *b) {
    close_side(a);
    close_side(b);
    const struct fake_counts counts = fake_now();
    CHECK_EQ(counts.objects, 0);
    CHECK_EQ(counts.contexts, 0);
    CHECK_EQ(counts.complaints, 0);
}

static pplx_verbs_request request(side *s, uint32_t opcode, uint64_t id, uint64_t nbytes, const side *to) {
    return (pplx_verbs_request){.id = id,
                                .opcode = opcode,
                                .local_address = (uintptr_t)s->arena,
                                .nbytes = nbytes,
                                .lkey = s->lkey,
                                .remote_address = to ? (uintptr_t)to->arena : 0,
                                .rkey = to ? to->rkey : 0};
}

static void post(side *s, pplx_verbs_request what) {
    int32_t native;
    CHECK_EQ(api->post(s->pair, &what, &native), PPLX_OK);
}

/* As whoever waits does: arm, look again, sleep. */
static pplx_verbs_completion next(side *s) {
    pplx_verbs_completion completion;
    struct pollfd readable = {.fd = s->fd, .events = POLLIN};
    for (;;) {
        if (api->queue_read(s->queue, &completion, 1) == 1) return completion;
        CHECK_EQ(api->queue_arm(s->queue), 0);
        if (api->queue_read(s->queue, &completion, 1) == 1) return completion;
        CHECK_EQ(poll(&readable, 1, 20000), 1);
    }
}

static void expect(side *s, uint64_t id, int status, int native) {
    const pplx_verbs_completion got = next(s);
    CHECK_EQ(got.id, id);
    CHECK_EQ(got.native, native);
    CHECK_EQ(got.status, status);
}

static void bytes_are_moved_by_each_operation(void) {
    static const uint64_t sizes[] = {0, 1, 64, 65, 4096, ARENA};
    for (int l = 0; l < LAYOUTS; l++) {
        side a, b;
        open_sides(&a, &b, layouts[l]);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            const uint64_t n = sizes[i];
            memset(a.arena, (int)i + 1, ARENA);
            memset(b.arena, 0, ARENA);
            post(&a, request(&a, PPLX_WRITE, 1, n, &b));
            expect(&a, 1, PPLX_OK, 0);
            CHECK(memcmp(a.arena, b.arena, n) == 0 && (n == ARENA || b.arena[n] == 0));

            post(&b, request(&b, PPLX_RECV, 2, 0, NULL)); /* which the immediate uses up */
            pplx_verbs_request with_imm = request(&a, PPLX_WRITE, 3, n, &b);
            with_imm.has_imm = true;
            with_imm.imm = 0xFEDCBA98;
            post(&a, with_imm);
            const pplx_verbs_completion landed = next(&b);
            CHECK(landed.id == 2 && landed.remote_write && landed.has_imm);
            CHECK_EQ(landed.imm, 0xFEDCBA98);
            CHECK_EQ(landed.nbytes, n);
            expect(&a, 3, PPLX_OK, 0);

            memset(a.arena, 0, ARENA);
            post(&a, request(&a, PPLX_READ, 4, n, &b));
            expect(&a, 4, PPLX_OK, 0);
            CHECK(memcmp(a.arena, b.arena, n) == 0);

            memset(a.arena, 9, ARENA);
            post(&b, request(&b, PPLX_RECV, 5, ARENA, NULL));
            post(&a, request(&a, PPLX_SEND, 6, n, NULL));
            const pplx_verbs_completion message = next(&b);
            CHECK(message.id == 5 && !message.remote_write && !message.has_imm);
            CHECK_EQ(message.nbytes, n);
            CHECK(memcmp(a.arena, b.arena, n) == 0);
            expect(&a, 6, PPLX_OK, 0);
        }
        close_sides(&a, &b);
    }
}

static void failures_are_told_by_what_they_mean(void) {
    side a, b;
    open_sides(&a, &b, layouts[0]);
    pplx_verbs_request forged = request(&a, PPLX_WRITE, 1, 64, &b);
    forged.rkey ^= 0x5A5A00;
    post(&a, forged);
    post(&a, request(&a, PPLX_WRITE, 2, 64, &b));
    expect(&a, 1, PPLX_REMOTE_ACCESS, 10);
    expect(&a, 2, PPLX_FLUSHED, 5);
    CHECK_EQ(api->pair_state(a.pair), PPLX_VERBS_BROKEN);
    CHECK(strstr(api->status_text(10), "key is wrong"));
    close_sides(&a, &b);

    open_sides(&a, &b, layouts[0]);
    post(&b, request(&b, PPLX_RECV, 1, 10, NULL));
    post(&a, request(&a, PPLX_SEND, 2, 11, NULL));
    expect(&b, 1, PPLX_TRUNCATED, 1);
    CHECK(next(&a).status != PPLX_OK);
    close_sides(&a, &b);

    open_sides(&a, &b, layouts[0]);
    post(&a, request(&a, PPLX_SEND, 3, 11, NULL)); /* no receive is posted */
    expect(&a, 3, PPLX_TRANSPORT, 13);
    close_sides(&a, &b);

    pplx_error error;
    open_sides(&a, &b, layouts[0]);
    CHECK_EQ(api->pair_close(b.pair, &error), PPLX_OK);
    b.pair = NULL;
    post(&a, request(&a, PPLX_WRITE, 4, 64, &b));
    expect(&a, 4, PPLX_PEER_LOST, 12);
    close_sides(&a, &b);

    open_sides(&a, &b, layouts[0]);
    post(&a, request(&a, PPLX_RECV, 5, 64, NULL));
    CHECK_EQ(api->pair_break(a.pair, &error), PPLX_OK);
    expect(&a, 5, PPLX_FLUSHED, 5);
    close_sides(&a, &b);
}

static void refused_posts_say_whether_to_try_again(void) {
    side a, b;
    int32_t native;
    open_sides(&a, &b, layouts[0]);
    const pplx_verbs_request write = request(&a, PPLX_WRITE, 1, 64, &b);
    fake.refuse("x0", 0, 1, ENOMEM);
    CHECK_EQ(api->post(a.pair, &write, &native), PPLX_AGAIN);
    CHECK_EQ(native, ENOMEM);
    fake.refuse("x0", 0, 1, EINVAL);
    CHECK_EQ(api->post(a.pair, &write, &native), PPLX_INVALID);
    fake.refuse("x0", 0, 1, EIO);
    CHECK_EQ(api->post(a.pair, &write, &native), PPLX_TRANSPORT);
    post(&a, write);
    expect(&a, 1, PPLX_OK, 0);
    close_sides(&a, &b);
}

static void an_event_tells_only_of_what_comes_after_arming(void) {
    side a, b;
    pplx_verbs_completion completion;
    struct pollfd readable = {.events = POLLIN};
    open_sides(&a, &b, layouts[0]);
    readable.fd = a.fd;
    post(&a, request(&a, PPLX_WRITE, 1, 64, &b));
    CHECK_EQ(poll(&readable, 1, 0), 0); /* it was not armed */
    CHECK_EQ(api->queue_arm(a.queue), 0);
    CHECK_EQ(poll(&readable, 1, 0), 0); /* it was there before */
    CHECK_EQ(api->queue_read(a.queue, &completion, 1), 1);
    post(&a, request(&a, PPLX_WRITE, 2, 64, &b));
    CHECK_EQ(poll(&readable, 1, 20000), 1);
    CHECK_EQ(api->queue_arm(a.queue), 0); /* takes the event, and acknowledges it: closing would complain */
    CHECK_EQ(poll(&readable, 1, 0), 0);
    CHECK_EQ(api->queue_read(a.queue, &completion, 1), 1);
    close_sides(&a, &b);
}

static void what_cannot_be_opened_leaves_nothing_behind(void) {
    pplx_error error = {.status = PPLX_OK};
    side s, other;
    pplx_verbs_queue *queue;
    pplx_verbs_mr *mr;
    uint32_t entries = 1 << 30, lkey, rkey;
    int fd;
    open_sides(&s, &other, layouts[0]);
    CHECK_EQ(api->context_open("nothing", options, 1, &other.context, &other.port, &error), PPLX_UNAVAILABLE);
    CHECK(strstr(error.text, "nothing"));
    CHECK_EQ(api->queue_open(s.context, &entries, &queue, &fd, &error), PPLX_NATIVE);
    CHECK(strstr(error.text, "ibv_create_cq"));
    CHECK_EQ(api->memory_open(s.context, s.pd, NULL, 0, PPLX_ACCESS_REMOTE_READ, true, &mr, &lkey, &rkey, &error),
             PPLX_REGISTRATION);
    const pplx_verbs_connection patience = {.timeout = 8, .retries = 1, .rnr_retries = 1};
    CHECK_EQ(api->pair_connect(s.pair, &other.address, &patience, &error), PPLX_NATIVE); /* it is already */
    CHECK(strstr(error.text, "ibv_modify_qp"));
    close_sides(&s, &other);
}

typedef struct flood {
    side *s;
    const side *to;
} flood;

static void *post_flood(void *given) {
    const flood *of = given;
    int32_t native;
    for (uint64_t id = 0; id < FLOOD;) {
        const pplx_verbs_request write = request(of->s, PPLX_WRITE, id, 8, of->to);
        const pplx_status status = api->post(of->s->pair, &write, &native);
        if (status == PPLX_OK)
            id++;
        else
            CHECK_EQ(status, PPLX_AGAIN); /* until the other thread has read */
        if (status != PPLX_OK) sched_yield();
    }
    return NULL;
}

static void one_thread_posts_and_another_reads(void) {
    side a, b;
    pthread_t thread;
    open_sides(&a, &b, layouts[0]);
    flood of = {&a, &b};
    CHECK_EQ(pthread_create(&thread, NULL, post_flood, &of), 0);
    for (uint64_t id = 0; id < FLOOD; id++) expect(&a, id, PPLX_OK, 0);
    CHECK_EQ(pthread_join(thread, NULL), 0);
    close_sides(&a, &b);
}

int main(void) {
    fake_load(false);
    api = pplx_verbs_objects();
    RUN(bytes_are_moved_by_each_operation);
    RUN(failures_are_told_by_what_they_mean);
    RUN(refused_posts_say_whether_to_try_again);
    RUN(an_event_tells_only_of_what_comes_after_arming);
    RUN(what_cannot_be_opened_leaves_nothing_behind);
    RUN(one_thread_posts_and_another_reads);
    return check_done();
}

#else

int main(void) {
    puts("libibverbs's headers are not installed (package libibverbs-dev)");
    return 77;
}

#endif
