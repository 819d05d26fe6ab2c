/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* fabric_objects.h on a real libfabric, without Python: every work completes once, whatever is closed
 * under it, in any order and by any thread. Arguments: LIBRARY PROVIDER. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "check.h"
#include "fabric_objects.h"

extern const pplx_provider pplx_provider_fabric;

enum { PAGE = 4096, PAGES = 64, MOST = 20000, BATCH = 32 };

static const pplx_fabric_api *api;
static pplx_option options[2];
static char device[PPLX_NAME_BYTES];

typedef struct work {
    pplx_op op; /* first, so that a completion's op is a work */
    atomic_int completions;
    int status;
} work;

typedef struct side {
    pplx_fabric_domain *domain;
    pplx_fabric_limits limits;
    pplx_fabric_queue *queue;
    pplx_fabric_endpoint *endpoint;
    pplx_fabric_peer *peer; /* the other side */
    unsigned char address[PPLX_ADDRESS_BYTES];
    size_t address_nbytes;
    unsigned char *arena;
    pplx_provider_mr *mr;
    pplx_remote_key key;
    atomic_int done, imms;
} side;

static void open_side(side *s) {
    pplx_error error = {.status = PPLX_OK};
    memset(s, 0, sizeof *s);
    CHECK_EQ(api->domain_open(device, options, 2, &s->domain, &s->limits, &error), PPLX_OK);
    CHECK_EQ(api->queue_open(s->domain, &s->queue, &error), PPLX_OK);
    s->address_nbytes = sizeof s->address;
    CHECK_EQ(api->endpoint_open(s->queue, &s->endpoint, s->address, &s->address_nbytes, &error), PPLX_OK);
    s->arena = calloc(PAGES, PAGE);
    CHECK(s->arena);
    pplx_memory memory = {.device = -1, .address = (uintptr_t)s->arena, .nbytes = PAGES * PAGE, .fd = -1};
    CHECK_EQ(api->memory_open(s->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &s->mr, &s->key,
                              &error),
             PPLX_OK);
}

static void meet(side *a, side *b) {
    pplx_error error;
    CHECK_EQ(api->peer_insert(a->domain, b->address, b->address_nbytes, &a->peer, &error), PPLX_OK);
    CHECK_EQ(api->peer_insert(b->domain, a->address, a->address_nbytes, &b->peer, &error), PPLX_OK);
}

static void take(side *s, const pplx_completion *completions, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (completions[i].kind == PPLX_COMPLETION_IMM) {
            s->imms++;
            continue;
        }
        work *w = (work *)completions[i].op;
        w->status = completions[i].status;
        w->completions++;
        s->done++;
    }
}

static int32_t read_side(side *s) {
    pplx_completion completions[BATCH];
    uint64_t flags[BATCH];
    int32_t broken;
    take(s, completions, api->queue_read(s->queue, completions, flags, BATCH, &broken));
    return broken;
}

static void close_endpoint(side *s) {
    pplx_completion completions[BATCH];
    uint64_t flags[BATCH];
    pplx_error error;
    size_t count;
    CHECK_EQ(api->endpoint_close(s->endpoint, &error), PPLX_OK);
    while ((count = api->endpoint_flush(s->endpoint, completions, flags, BATCH)) > 0) take(s, completions, count);
}

static void free_side(side *s) {
    api->endpoint_free(s->endpoint);
    api->queue_free(s->queue);
    api->domain_free(s->domain);
    free(s->arena);
}

static void close_side(side *s) {
    close_endpoint(s);
    CHECK_EQ(api->memory_close(s->domain, s->mr), PPLX_OK);
    free_side(s);
}

static pplx_status post(side *from, const side *to, work *w, uint32_t opcode, uint32_t imm) {
    int32_t native;
    pplx_work_request request = {.op = &w->op,
                                 .local_address = (uintptr_t)from->arena,
                                 .nbytes = PAGE,
                                 .local_mr = from->mr,
                                 .opcode = opcode,
                                 .imm = imm};
    if (opcode != PPLX_RECV) {
        request.remote_address = to->key.base;
        request.remote_key = to->key.key;
    }
    return api->post(from->endpoint, opcode == PPLX_RECV ? NULL : from->peer, &request, &native);
}

/* Post as soon as there is room; both sides make progress. */
static void post_some(side *from, side *to, work *works, int count) {
    uint64_t start = check_now_ns();
    for (int i = 0; i < count;) {
        pplx_status status = post(from, to, &works[i], PPLX_WRITE_IMM, (uint32_t)i);
        CHECK(status == PPLX_OK || status == PPLX_AGAIN);
        i += status == PPLX_OK;
        read_side(from);
        read_side(to);
        check_patience(start, 20);
    }
}

static void test_writes(void) {
    static side a, b;
    static work works[1000];
    open_side(&a);
    open_side(&b);
    meet(&a, &b);
    memset(a.arena, 7, PAGE);
    post_some(&a, &b, works, 1000);
    for (uint64_t start = check_now_ns(); a.done < 1000 || b.imms < 1000; check_patience(start, 20)) {
        read_side(&a);
        read_side(&b);
    }
    for (int i = 0; i < 1000; i++) CHECK(works[i].completions == 1 && works[i].status == PPLX_OK);
    CHECK(memcmp(a.arena, b.arena, PAGE) == 0);
    close_side(&a);
    close_side(&b);
}

static void test_full(void) {
    static side a, b;
    static work works[MOST];
    open_side(&a);
    open_side(&b);
    meet(&a, &b);
    post_some(&a, &b, works, 1);
    int posted = 1;
    pplx_status status = PPLX_OK;
    while (posted < MOST && (status = post(&a, &b, &works[posted], PPLX_WRITE, 0)) == PPLX_OK) posted++;
    CHECK_EQ(status, PPLX_AGAIN);
    CHECK(posted <= (int)a.limits.tx_size + 1);
    for (uint64_t start = check_now_ns(); a.done < posted; check_patience(start, 20)) {
        read_side(&a);
        read_side(&b);
    }
    close_side(&a);
    close_side(&b);
}

/* Memory of the works is freed right after: the library may know nothing of them any more. */
static void test_close_with_works_in_flight(void) {
    for (int round = 0; round < 10; round++) {
        static side a, b;
        work *works = calloc(40, sizeof *works);
        CHECK(works);
        open_side(&a);
        open_side(&b);
        meet(&a, &b);
        post_some(&a, &b, works, 20 + round);
        for (int i = 30; i < 40;) i += post(&a, &b, &works[i], PPLX_RECV, 0) == PPLX_OK;
        close_endpoint(&a);
        for (int i = 0; i < 40; i++) CHECK_EQ(works[i].completions, i < 20 + round || i >= 30);
        for (int i = 30; i < 40; i++) CHECK_EQ(works[i].status, PPLX_FLUSHED);
        CHECK_EQ(post(&a, &b, &works[0], PPLX_WRITE, 0), PPLX_CLOSED);
        free(works);
        CHECK_EQ(api->memory_close(a.domain, a.mr), PPLX_OK);
        read_side(&a);
        read_side(&b);
        free_side(&a);
        close_side(&b);
    }
}

static void close_part(side *s, int part) {
    if (part == 0) api->domain_close(s->domain);
    if (part == 1) api->queue_close(s->queue);
    if (part == 2) close_endpoint(s);
    if (part == 3) CHECK_EQ(api->memory_close(s->domain, s->mr), PPLX_OK);
}

static void test_close_in_any_order(void) {
    for (int order = 0; order < 256; order++) {
        int parts[4] = {order & 3, order >> 2 & 3, order >> 4 & 3, order >> 6};
        if ((1 << parts[0] | 1 << parts[1] | 1 << parts[2] | 1 << parts[3]) != 15) continue;
        static side a;
        pplx_error error;
        static work w;
        open_side(&a);
        w.completions = 0;
        while (post(&a, &a, &w, PPLX_RECV, 0) == PPLX_AGAIN) {
        }
        for (int i = 0; i < 4; i++) close_part(&a, parts[i]);
        CHECK_EQ(w.completions, 1);
        CHECK(!api->queue_arm(a.queue));
        CHECK_EQ(read_side(&a), 0);
        CHECK_EQ(api->queue_open(a.domain, &(pplx_fabric_queue *){NULL}, &error), PPLX_CLOSED);
        CHECK_EQ(api->peer_insert(a.domain, a.address, a.address_nbytes, &a.peer, &error), PPLX_CLOSED);
        free_side(&a);
    }
}

static side busy, target;
static work busy_works[MOST];
static atomic_int posted, stop;

static void *post_many(void *unused) {
    (void)unused;
    int i = 0;
    for (; i < MOST && !stop;) {
        pplx_status status = post(&busy, &target, &busy_works[i], PPLX_WRITE_IMM, 1);
        if (status == PPLX_CLOSED) break;
        CHECK(status == PPLX_OK || status == PPLX_AGAIN);
        i += status == PPLX_OK;
        if (status == PPLX_AGAIN) sched_yield();
    }
    posted = i;
    return NULL;
}

static void *read_many(void *which) {
    while (!stop) {
        read_side(which);
        api->queue_arm(((side *)which)->queue);
        sched_yield();
    }
    return NULL;
}

/* One posts, two read the same queue, one the other; a fifth closes the endpoint under all of them. */
static void test_threads(void) {
    pthread_t threads[4];
    open_side(&busy);
    open_side(&target);
    meet(&busy, &target);
    CHECK_EQ(pthread_create(&threads[0], NULL, post_many, NULL), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, read_many, &busy), 0);
    CHECK_EQ(pthread_create(&threads[2], NULL, read_many, &busy), 0);
    CHECK_EQ(pthread_create(&threads[3], NULL, read_many, &target), 0);
    for (uint64_t start = check_now_ns(); target.imms < 500; check_patience(start, 20)) usleep(100);
    close_endpoint(&busy);
    stop = 1;
    for (int i = 0; i < 4; i++) CHECK_EQ(pthread_join(threads[i], NULL), 0);
    CHECK_EQ(busy.done, posted);
    for (int i = 0; i < MOST; i++) CHECK_EQ(busy_works[i].completions, i < posted);
    CHECK_EQ(api->memory_close(busy.domain, busy.mr), PPLX_OK);
    free_side(&busy);
    close_side(&target);
}

/* The fake library's own: after so many completions its NIC is dead. */
static void test_broken_queue(void) {
    static side a, b;
    static work works[20];
    setenv("FAKE_EFA_FATAL_AFTER", "5", 1);
    open_side(&a);
    unsetenv("FAKE_EFA_FATAL_AFTER");
    open_side(&b);
    meet(&a, &b);
    for (int i = 0; i < 20;) i += post(&a, &b, &works[i], PPLX_WRITE, 0) == PPLX_OK;
    int32_t broken = 0;
    for (uint64_t start = check_now_ns(); !broken; check_patience(start, 20)) broken = read_side(&a);
    CHECK_EQ(a.done, 20);
    int failed = 0;
    for (int i = 0; i < 20; i++) failed += works[i].status == PPLX_TRANSPORT;
    CHECK(failed > 0 && failed < 20);
    CHECK_EQ(post(&a, &b, &works[0], PPLX_WRITE, 0), PPLX_TRANSPORT);
    CHECK(!api->queue_arm(a.queue));
    close_side(&a);
    close_side(&b);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s LIBRARY PROVIDER\n", argv[0]);
        return 2;
    }
    api = pplx_fabric_objects();
    options[0] = (pplx_option){"library", argv[1]};
    options[1] = (pplx_option){"provider", argv[2]};
    pplx_device found;
    pplx_error error;
    size_t count;
    pplx_status status = pplx_provider_fabric.discover(options, 2, &found, 1, &count, &error);
    if (status == PPLX_UNAVAILABLE) {
        printf("%s\n", error.text);
        return 77;
    }
    CHECK_EQ(status, PPLX_OK);
    snprintf(device, sizeof device, "%s", found.name);
    RUN(test_writes);
    RUN(test_full);
    RUN(test_close_with_works_in_flight);
    RUN(test_close_in_any_order);
    RUN(test_threads);
    if (strcmp(argv[2], "efa") == 0) RUN(test_broken_queue);
    return check_done();
}
