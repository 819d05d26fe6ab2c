/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs over the ipc provider, where it is about moments: what is under way when somebody closes, and what
 * fails. On the tests' own libcuda, with which memory of a GPU is memory of the host at another address; and within
 * one process, since what is between two is tested in tests/gpu. */
#include <limits.h>

#include "fake_cuda_calls.h"
#include "gates_held.h"
#include "ipc_cuda.h"
#include "ipc_sides.h"

enum { GPU = 64 << 10, LARGE = 3 << 20 };

typedef struct device {
    unsigned char *shows; /* what lies there */
    uint64_t address, nbytes;
    pplx_provider_mr *mr;
    pplx_remote_key key;
} device;

static char libcuda[PATH_MAX];
static int (*adopt)(uint64_t *, void *, size_t);
static int (*forget)(uint64_t);
static int (*run_kernel)(int ms);
static int (*queued)(void), (*opened)(void), (*retained)(void), (*launched)(void), (*batches)(void), (*stores)(void);
static int (*handles)(void), (*renew)(uint64_t);
static int (*open_own)(int yes), (*hold)(int yes), (*pinned)(void);
static int (*allocate)(uint64_t *, size_t), (*release)(uint64_t);
static int (*to_device)(uint64_t, const void *, size_t), (*from_device)(void *, uint64_t, size_t);
static int (*retain)(uintptr_t *, int), (*push)(uintptr_t);
static int (*stream_create)(void **, unsigned), (*stream_destroy)(void *);
static int (*wait_value)(void *, uint64_t, uint64_t, unsigned), (*waiting)(void);

/* It lies beside this program. */
static void load(void) {
    set("FAKE_CUDA_FAIL", "");
    set("FAKE_CUDA_COPY_US", "0");
    set("FAKE_CUDA_PIN_US", "0");
    find_fake_cuda(libcuda);
    static const fake_cuda_call calls[] = {
        {&adopt, "fake_cuda_adopt"},
        {&forget, "fake_cuda_forget"},
        {&run_kernel, "fake_cuda_run_kernel"},
        {&opened, "fake_cuda_opened"},
        {&retained, "fake_cuda_retained"},
        {&launched, "fake_cuda_launched"},
        {&open_own, "fake_cuda_open_own"},
        {&allocate, "cuMemAlloc_v2"},
        {&release, "cuMemFree_v2"},
        {&to_device, "cuMemcpyHtoD_v2"},
        {&from_device, "cuMemcpyDtoH_v2"},
        {&retain, "cuDevicePrimaryCtxRetain"},
        {&push, "cuCtxPushCurrent_v2"},
        {&queued, "fake_cuda_queued"},
        {&handles, "fake_cuda_handles"},
        {&batches, "fake_cuda_batches"},
        {&stores, "fake_cuda_stores"},
        {&renew, "fake_cuda_renew"},
        {&hold, "fake_cuda_hold"},
        {&pinned, "fake_cuda_pinned"},
        {&waiting, "fake_cuda_waiting"},
        {&stream_create, "cuStreamCreate"},
        {&stream_destroy, "cuStreamDestroy_v2"},
        {&wait_value, "cuStreamWaitValue64_v2"},
    };
    find_fake_cuda_calls(libcuda, calls, sizeof calls / sizeof *calls);
}

static void device_register(device *d, side *s) {
    pplx_error error = {0};
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = d->address, .nbytes = d->nbytes, .fd = -1};
    if (ipc->mr_open(s->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &d->mr, &d->key, &error) !=
        PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

static void device_open_of(device *d, side *s, uint64_t nbytes) {
    d->nbytes = nbytes;
    d->shows = calloc(1, nbytes);
    CHECK(d->shows && adopt(&d->address, d->shows, nbytes) == 0);
    device_register(d, s);
}

static void device_open(device *d, side *s) { device_open_of(d, s, GPU); }

static void device_close(device *d) {
    CHECK_EQ(ipc->mr_close(d->mr), PPLX_OK);
    CHECK_EQ(forget(d->address), 0);
    free(d->shows);
}

typedef struct pair {
    side a, b;
    device at_a, at_b;
} pair;

static void gpus_open(pair *p, const char *slots) {
    const pplx_option options[] = {{"libcuda", libcuda}, {"ring_slots", slots}};
    pair_open_with(&p->a, &p->b, options, 2);
    device_open(&p->at_a, &p->a);
    device_open(&p->at_b, &p->b);
}

static void gpus_close(pair *p) {
    if (p->a.endpoint) close_endpoint(&p->a, &p->b);
    if (p->b.endpoint) close_endpoint(&p->b, &p->a);
    device_close(&p->at_a);
    device_close(&p->at_b);
    pair_close(&p->a, &p->b);
}

static pplx_work_request write_of(pair *p, watched *w, uint64_t nbytes, uint32_t imm) {
    pplx_work_request request = request_of(&p->a, PLAIN, &p->b, PLAIN, w, PPLX_WRITE_IMM, 0, nbytes, imm);
    request.local_mr = p->at_a.mr;
    request.local_address = p->at_a.address;
    request.remote_key = p->at_b.key.key;
    return request;
}

/* The first write asks for the key, so it takes both. */
static void warm_up(pair *p) {
    watched w;
    pplx_work_request request = write_of(p, &w, 8, 0);
    CHECK_EQ(perform(&p->a, &p->b, &request), PPLX_OK);
    wait_imms(&p->b, &p->a, 1);
}

/* Written by a stream, and not yet seen when the receiver closes. */
static void test_late_immediates(void) {
    static pair p;
    static watched w[100];
    gpus_open(&p, "64");
    warm_up(&p);
    for (uint32_t i = 0; i < 100; i++) {
        pplx_work_request request = write_of(&p, &w[i], 8, i);
        CHECK_EQ(perform(&p.a, NULL, &request), PPLX_OK);
    }
    close_endpoint(&p.b, &p.a);
    wait_imms(&p.b, &p.a, 101);
    for (uint32_t i = 0; i < 100; i++) CHECK_EQ(p.b.imms[1 + i], i);
    gpus_close(&p);
}

/* A stream's ring holds more than the other one, and all of it counts when the sender has said goodbye. */
static void test_what_the_sender_has_left(void) {
    static pair p;
    static watched w[900];
    gpus_open(&p, "2");
    warm_up(&p);
    for (uint32_t i = 0; i < 900; i++) {
        pplx_work_request request = write_of(&p, &w[i], 8, i);
        CHECK_EQ(perform(&p.a, NULL, &request), PPLX_OK);
    }
    close_endpoint(&p.a, &p.b);
    wait_imms(&p.b, &p.a, 901);
    gpus_close(&p);
}

/* Who closes while its GPU still writes to the peer says goodbye afterwards. */
static void test_goodbye_comes_after_the_stream(void) {
    static pair p;
    static watched w;
    gpus_open(&p, "64");
    warm_up(&p);
    memset(p.at_a.shows, 0x5a, GPU);
    set("FAKE_CUDA_COPY_US", "1600000");
    pplx_work_request request = write_of(&p, &w, GPU, 1);
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    uint64_t start = check_now_ns();
    bool open_here = true, open_there = true;
    while (open_here || open_there) {
        if (open_here && ipc->endpoint_close(p.a.endpoint) == PPLX_OK) open_here = false;
        if (open_there && ipc->endpoint_close(p.b.endpoint) == PPLX_OK) {
            open_there = false;
            CHECK(memcmp(p.at_b.shows, p.at_a.shows, GPU) == 0); /* nothing is written there from now on */
        }
        poll_both(&p.a, &p.b);
        check_patience(start, PATIENCE);
    }
    p.a.endpoint = p.b.endpoint = NULL;
    set("FAKE_CUDA_COPY_US", "0");
    gpus_close(&p);
}

/* A region is closed while a peer's GPU works longer than we care to wait for: the peer says so later, stays, and
 * keeps nobody waiting meanwhile. */
static void test_a_revoke_that_takes_its_time(void) {
    static pair p;
    static watched w;
    gpus_open(&p, "64");
    warm_up(&p);
    memset(p.at_a.shows, 0x5a, GPU);
    set("FAKE_CUDA_COPY_US", "1600000");
    pplx_work_request request = write_of(&p, &w, GPU, 1);
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    uint64_t start = check_now_ns();
    int polls = 0;
    for (; ipc->mr_close(p.at_b.mr) == PPLX_UNRELEASED; polls++) {
        poll_both(&p.a, &p.b);
        check_patience(start, PATIENCE);
    }
    CHECK(polls > 20); /* were they to wait for the stream, it would be one or two */
    CHECK(memcmp(p.at_b.shows, p.at_a.shows, GPU) == 0);
    set("FAKE_CUDA_COPY_US", "0");
    CHECK_EQ(wait_for(&p.a, &p.b, &w), PPLX_OK);
    request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 2);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK); /* still connected */
    CHECK_EQ(forget(p.at_b.address), 0);
    free(p.at_b.shows);
    device_open(&p.at_b, &p.b);
    gpus_close(&p);
}

/* What the GPU does not give for the staging area goes nowhere, and isn't counted. */
static void test_what_can_not_be_staged(void) {
    static pair p;
    static watched w;
    gpus_open(&p, "64");
    warm_up(&p);
    memset(p.a.arena[PLAIN], 0x11, ARENA);
    pplx_work_request request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 4096, 7);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK); /* this lies in the staging area now */
    wait_imms(&p.b, &p.a, 2);
    memset(p.b.arena[PLAIN], 0, ARENA);
    set("FAKE_CUDA_FAIL", "cuMemcpyAsync:719");
    for (uint64_t nbytes = 4096; nbytes <= GPU; nbytes += GPU - 4096) {
        request = write_of(&p, &w, nbytes, 8);
        request.remote_key = p.b.key[PLAIN].key;
        CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_LOCAL_ACCESS);
    }
    set("FAKE_CUDA_FAIL", "");
    run_for(&p.a, &p.b, 0.05);
    CHECK_EQ(p.b.nimms, 2);
    for (size_t i = 0; i < ARENA; i++) CHECK(p.b.arena[PLAIN][i] == 0);
    gpus_close(&p);
}

/* A context that is gone fails what it was to do; nothing is taken for done. */
static void test_a_lost_context(void) {
    static pair p;
    static watched w, slow;
    gpus_open(&p, "64");
    warm_up(&p);
    const uint64_t start = check_now_ns();
    set("FAKE_CUDA_COPY_US", "6000000");
    pplx_work_request request = write_of(&p, &slow, 8, 1);
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    run_for(&p.a, &p.b, 0.05);
    CHECK_EQ(slow.completions, 0);
    set("FAKE_CUDA_FAIL", "cuCtxPushCurrent_v2:709");
    request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 2);
    request.remote_key = p.at_b.key.key; /* from the host */
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_LOCAL_ACCESS);
    CHECK_EQ(wait_for(&p.a, &p.b, &slow), PPLX_LOCAL_ACCESS);
    CHECK(check_now_ns() - start < UINT64_C(5000000000)); /* it didn't wait for the copy */
    set("FAKE_CUDA_FAIL", "");
    set("FAKE_CUDA_COPY_US", "0");
    while (queued()) usleep(1000); /* this libcuda's stream knows nothing of that, and copies */
    gpus_close(&p);
}

/* Our own region is closed in the middle of a message from it. */
static void test_a_message_whose_region_is_closed(void) {
    static pair p;
    static watched sent, received;
    pplx_remote_key key;
    gpus_open(&p, "64");
    pplx_provider_mr *mr = register_memory(&p.a, p.a.arena[PLAIN], ARENA, -1, 0, PPLX_ACCESS_LOCAL, &key);
    pplx_work_request request = request_of(&p.b, PLAIN, NULL, PLAIN, &received, PPLX_RECV, 0, ARENA, 0);
    CHECK_EQ(post(&p.b, &p.a, &request), PPLX_OK);
    request = request_of(&p.a, PLAIN, NULL, PLAIN, &sent, PPLX_SEND, 0, ARENA, 0);
    request.local_mr = mr;
    CHECK_EQ(post(&p.a, &p.b, &request), PPLX_OK);
    side_poll(&p.a);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    CHECK_EQ(wait_for(&p.a, &p.b, &sent), PPLX_LOCAL_ACCESS);
    CHECK(wait_for(&p.b, &p.a, &received) != PPLX_OK);
    gpus_close(&p);
}

/* ------------------------------------------------------------------ what waits for kernels in the driver */

/* A kernel that runs for longer than any case may take, until the case ends it: whoever waits for it is found out, and
 * no time is measured, which a busy machine would make long. */
enum { FOR_LONG_MS = 120000, ROUNDS = 300 };

static ipc_endpoint *inside(const side *s) { return (ipc_endpoint *)s->endpoint; }

/* This thread's, for good. */
static void make_context(void) {
    static bool made;
    uintptr_t context;
    if (!made) CHECK(retain(&context, 0) == 0 && push(context) == 0);
    made = true;
}

/* Memory that another process could open. */
static void device_allocate(device *d, side *s) {
    make_context();
    d->nbytes = GPU;
    CHECK_EQ(allocate(&d->address, GPU), 0);
    device_register(d, s);
}

/* As if each were another process. Nothing of a GPU's is known to the other side yet. */
static void strangers_open_with(pair *p, bool gpu_at_a) {
    const pplx_option options[] = {{"libcuda", libcuda}, {"staging_nbytes", "65536"}};
    watched w;
    pair_open_with(&p->a, &p->b, options, 2);
    if (gpu_at_a) device_allocate(&p->at_a, &p->a);
    device_allocate(&p->at_b, &p->b);
    pplx_work_request request = request_of(&p->a, PLAIN, &p->b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 0);
    CHECK_EQ(perform(&p->a, &p->b, &request), PPLX_OK);
    wait_imms(&p->b, &p->a, 1);
    inside(&p->a)->pid = inside(&p->b)->pid = 1;
    CHECK_EQ(open_own(1), 0);
}

static void strangers_open(pair *p) { strangers_open_with(p, true); }

static void strangers_close(pair *p) {
    const uint64_t start = check_now_ns();
    if (p->a.endpoint) close_endpoint(&p->a, &p->b);
    if (p->b.endpoint) close_endpoint(&p->b, &p->a);
    if (p->at_a.mr) CHECK_EQ(ipc->mr_close(p->at_a.mr), PPLX_OK);
    if (p->at_b.mr) CHECK_EQ(ipc->mr_close(p->at_b.mr), PPLX_OK);
    pair_close(&p->a, &p->b);
    while (opened() || retained() > 1) { /* this thread's own */
        usleep(1000);
        check_patience(start, PATIENCE);
    }
    CHECK(!p->at_a.address || release(p->at_a.address) == 0);
    CHECK_EQ(release(p->at_b.address), 0);
}

static void check_content(const pair *p, unsigned char expected) {
    static unsigned char bytes[GPU];
    CHECK_EQ(from_device(bytes, p->at_b.address, GPU), 0);
    for (size_t i = 0; i < GPU; i++) CHECK_EQ(bytes[i], expected);
}

static void set_content(const pair *p, unsigned char value) {
    static unsigned char bytes[GPU];
    memset(bytes, value, GPU);
    CHECK_EQ(to_device(p->at_a.address, bytes, GPU), 0);
}

/* The first transfer into an allocation waits for it to be opened; heartbeats, which are immediates alone, do not, and
 * the thread stands still for nobody. */
static void test_opening_keeps_nobody_waiting(void) {
    static pair p;
    static watched w, heartbeat;
    strangers_open(&p);
    set_content(&p, 0x5a);
    CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
    pplx_work_request request = write_of(&p, &w, GPU, 1);
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    for (int i = 0; i < ROUNDS; i++) {
        request = request_of(&p.a, PLAIN, &p.b, PLAIN, &heartbeat, PPLX_WRITE_IMM, 0, 0, 7);
        CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK);
    }
    CHECK(inside(&p.a)->aside && !w.completions && opened() == 0);
    CHECK_EQ(run_kernel(0), 0);
    CHECK_EQ(wait_for(&p.a, &p.b, &w), PPLX_OK);
    check_content(&p, 0x5a);
    strangers_close(&p);
}

static void open_from_a(pair *p) {
    static watched w;
    pplx_work_request request = write_of(p, &w, GPU, 1);
    CHECK_EQ(perform(&p->a, &p->b, &request), PPLX_OK);
    CHECK_EQ(opened(), 1);
}

/* The kernel ends after a while; not before that, and then, the region of b's is closed. */
static void close_region_of_b(pair *p) {
    const uint64_t start = check_now_ns();
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(ipc->mr_close(p->at_b.mr), PPLX_UNRELEASED);
        poll_both(&p->a, &p->b);
    }
    CHECK_EQ(run_kernel(0), 0);
    while (ipc->mr_close(p->at_b.mr) == PPLX_UNRELEASED) {
        poll_both(&p->a, &p->b);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(opened(), 0);
    p->at_b.mr = NULL;
}

/* A region is revoked: the peer confirms when it has closed the allocation, and not before. */
static void test_a_revoke_is_confirmed_when_the_allocation_is_closed(void) {
    static pair p;
    static watched w;
    strangers_open(&p);
    open_from_a(&p);
    CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
    close_region_of_b(&p);
    pplx_work_request request = write_of(&p, &w, GPU, 2);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_REMOTE_ACCESS);
    request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 2);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK); /* still connected */
    strangers_close(&p);
}

/* The first write asks for the key, and has the allocation opened. */
static void begin_to_open(pair *p, watched *w) {
    const uint64_t start = check_now_ns();
    CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
    pplx_work_request request = write_of(p, w, GPU, 1);
    CHECK_EQ(post(&p->a, &p->b, &request), PPLX_OK);
    while (!inside(&p->a)->aside) {
        poll_both(&p->a, &p->b);
        check_patience(start, PATIENCE);
    }
}

/* The same while it is being opened: it is closed again first, and what waited for it is refused. */
/* That call would wait in the driver until the stream goes on, and copies of others with it. So it is not made before. */
static void test_nothing_is_closed_while_a_stream_is_in_a_gate(void) {
    static pair p;
    static watched w;
    const uint64_t start = check_now_ns();
    strangers_open(&p);
    open_from_a(&p);
    pplx_gate_holds();
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(ipc->mr_close(p.at_b.mr), PPLX_UNRELEASED);
        poll_both(&p.a, &p.b);
    }
    pplx_work_request request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 2);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK);
    CHECK_EQ(opened(), 1);
    pplx_gate_lets_go();
    while (ipc->mr_close(p.at_b.mr) == PPLX_UNRELEASED) {
        poll_both(&p.a, &p.b);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(opened(), 0);
    p.at_b.mr = NULL;
    strangers_close(&p);
}

static void test_a_revoke_while_the_allocation_is_being_opened(void) {
    static pair p;
    static watched w;
    strangers_open(&p);
    begin_to_open(&p, &w);
    close_region_of_b(&p);
    CHECK_EQ(wait_for(&p.a, &p.b, &w), PPLX_REMOTE_ACCESS);
    strangers_close(&p);
}

/* Who closes says goodbye when the allocation is closed; the owner's memory is not free before. */
static void test_goodbye_comes_when_the_allocation_is_closed(void) {
    for (int owner_first = 0; owner_first < 2; owner_first++) {
        static pair p;
        strangers_open(&p);
        open_from_a(&p);
        CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
        for (int i = 0; i < ROUNDS; i++) {
            CHECK_EQ(ipc->endpoint_close(owner_first ? p.b.endpoint : p.a.endpoint), PPLX_UNRELEASED);
            poll_both(&p.a, &p.b);
        }
        CHECK_EQ(run_kernel(0), 0);
        if (owner_first) {
            close_endpoint(&p.b, &p.a);
            CHECK_EQ(opened(), 0);
        }
        strangers_close(&p);
    }
}

/* Who breaks with a peer says so all the same, or the peer's memory would never be free. */
static void test_a_break_tells_when_the_allocation_is_closed(void) {
    static pair p;
    strangers_open(&p);
    open_from_a(&p);
    CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
    pplx_ipc_break(inside(&p.a), PPLX_CONNECTION);
    close_region_of_b(&p);
    strangers_close(&p);
}

/* The peer dies, and the engine closes, while something is being opened (or closed) yet: nobody waits for that, and
 * nothing of it is left when it is over. */
static void test_nothing_waits_for_a_dead_peers_allocation(void) {
    for (int closing = 0; closing < 2; closing++) {
        static pair p;
        static watched w;
        const uint64_t start = check_now_ns();
        strangers_open(&p);
        if (closing) {
            open_from_a(&p);
            CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
        } else {
            begin_to_open(&p, &w);
        }
        pplx_ipc_peer_died(inside(&p.a));
        if (!closing) CHECK_EQ(wait_for(&p.a, NULL, &w), PPLX_PEER_LOST);
        close_endpoint(&p.a, NULL);
        CHECK_EQ(ipc->mr_close(p.at_a.mr), PPLX_OK);
        p.at_a.mr = NULL;
        side_close(&p.a);
        CHECK_EQ(retained(), 3); /* one more than ours and the peer's: the thread has it yet */
        CHECK_EQ(run_kernel(0), 0);
        if (p.b.endpoint) pplx_ipc_peer_died(inside(&p.b));
        close_endpoint(&p.b, NULL);
        CHECK_EQ(ipc->mr_close(p.at_b.mr), PPLX_OK);
        side_close(&p.b);
        while (opened() || retained() > 1) {
            usleep(1000);
            check_patience(start, 2 * PATIENCE);
        }
        CHECK(release(p.at_a.address) == 0 && release(p.at_b.address) == 0);
    }
}

/* A stream of the program's, which waits as in a gate. Who waits for it in the driver, on the thread that calls us, is
 * ended by the alarm. */
typedef struct gate {
    uint64_t word;
    void *stream;
} gate;

static void gate_shut(gate *g) {
    make_context();
    const uint64_t start = check_now_ns();
    CHECK_EQ(allocate(&g->word, 4096), 0);
    CHECK_EQ(stream_create(&g->stream, 1), 0);
    CHECK_EQ(wait_value(g->stream, g->word, 1, 0), 0);
    while (waiting() == 0) check_patience(start, PATIENCE);
    alarm(2 * (unsigned)PATIENCE);
}

static void gate_open(const gate *g) {
    const uint64_t start = check_now_ns(), one = 1;
    CHECK_EQ(to_device(g->word, &one, sizeof one), 0);
    while (waiting()) check_patience(start, PATIENCE);
    alarm(0);
    CHECK(stream_destroy(g->stream) == 0 && release(g->word) == 0);
}

/* A peer goes: its rings stay pinned until the stream has gone on, and nobody waits for that. */
static void test_a_peer_goes_while_a_stream_waits_in_a_gate(void) {
    static pair p;
    static gate g;
    gpus_open(&p, "64");
    warm_up(&p);
    const int before = pinned();
    gate_shut(&g);
    close_endpoint(&p.a, &p.b);
    CHECK_EQ(pinned(), before);
    gate_open(&g);
    const uint64_t start = check_now_ns();
    while (pinned() == before) check_patience(start, PATIENCE);
    CHECK_EQ(pinned(), before - 1);
    gpus_close(&p);
}

/* All is closed: what the driver keeps is free when the stream has gone on, and nobody waits for that. */
static void test_an_engine_closes_while_a_stream_waits_in_a_gate(void) {
    static pair p;
    static gate g;
    gpus_open(&p, "64");
    warm_up(&p);
    gate_shut(&g);
    const int before = pinned();
    gpus_close(&p);
    CHECK_EQ(retained(), 3);
    CHECK_EQ(pinned(), before);
    gate_open(&g);
    const uint64_t start = check_now_ns();
    while (retained() > 1 || pinned()) check_patience(start, PATIENCE);
}

/* What waits for the stream, loading the kernel here, keeps no transfer waiting: the gate may need it. */
static void test_a_transfer_passes_what_waits_for_a_gate(void) {
    static pair p;
    static gate g;
    static watched w;
    gate_shut(&g);
    strangers_open(&p);
    set_content(&p, 0x5a);
    pplx_work_request request = write_of(&p, &w, GPU, 1);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK);
    check_content(&p, 0x5a);
    CHECK_EQ(waiting(), 1);
    gate_open(&g);
    strangers_close(&p);
}

/* Who registers its first memory of a GPU after the peer's has been in use lets its GPU copy from then on. */
static void test_a_first_gpu_region_comes_late(void) {
    static pair p;
    static watched w;
    strangers_open_with(&p, false);
    fill(p.a.arena[PLAIN], GPU, 1);
    pplx_work_request request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, GPU, 1);
    request.remote_key = p.at_b.key.key;
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK);
    CHECK_EQ(opened(), 0);
    device_allocate(&p.at_a, &p.a);
    set_content(&p, 0x77);
    request = write_of(&p, &w, GPU, 2);
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK);
    CHECK_EQ(opened(), 1);
    check_content(&p, 0x77);
    strangers_close(&p);
}

/* It comes in the middle of a transfer that goes by staging, which ends as it began: the immediate after the bytes. */
static void test_a_first_gpu_region_comes_in_the_middle(void) {
    static pair p;
    static watched w;
    static unsigned char bytes[GPU];
    strangers_open_with(&p, false);
    fill(p.a.arena[PLAIN], GPU, 1);
    pplx_work_request request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 1);
    request.remote_key = p.at_b.key.key;
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_OK);
    wait_imms(&p.b, &p.a, 2);
    request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, GPU, 2);
    request.remote_key = p.at_b.key.key;
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    side_poll(&p.a);
    CHECK(inside(&p.a)->queue.head && inside(&p.a)->queue.head->pending); /* the staging area does not hold all of it */
    device_allocate(&p.at_a, &p.a);
    const uint64_t start = check_now_ns();
    for (const ipc_key *key = NULL; !key || !key->device; key = pplx_ipc_key_find(inside(&p.a), p.at_b.key.key)) {
        pplx_ipc_look((ipc_domain *)p.b.domain, check_now_ns()); /* it answers, and serves nothing yet */
        side_poll(&p.a);
        check_patience(start, PATIENCE);
    }
    side_poll(&p.a);
    uint32_t imm;
    CHECK(!ipc_peek_immediate(&inside(&p.b)->inbox, inside(&p.b)->immediate_head, &imm));
    wait_imms(&p.b, &p.a, 3);
    CHECK_EQ(from_device(bytes, p.at_b.address, GPU), 0);
    CHECK(memcmp(bytes, p.a.arena[PLAIN], GPU) == 0);
    CHECK_EQ(wait_for(&p.a, &p.b, &w), PPLX_OK);
    strangers_close(&p);
}

static void write_small_ones(pair *p) {
    enum { MANY = 32 };
    static watched w[MANY];
    pplx_work_request requests[MANY];
    size_t posted;
    int32_t native;
    for (uint32_t i = 0; i < MANY; i++) {
        requests[i] = write_of(p, &w[i], 64, i);
        requests[i].local_address += 64 * i;
        requests[i].remote_address += 64 * i;
    }
    CHECK_EQ(ipc->post(p->a.endpoint, requests, MANY, &posted, &native), PPLX_OK);
    CHECK_EQ(posted, MANY);
    for (uint32_t i = 0; i < MANY; i++) CHECK_EQ(wait_for(&p->a, &p->b, &w[i]), PPLX_OK);
}

/* Until the kernel is loaded, which waits as well, the copy engine does what it is for. */
static void test_small_pieces_do_without_the_kernel_until_it_is_there(void) {
    static pair p;
    const uint64_t start = check_now_ns();
    const int before = launched();
    CHECK_EQ(run_kernel(FOR_LONG_MS), 0);
    gpus_open(&p, "64"); /* of one process, so that nothing has to be opened */
    warm_up(&p);
    write_small_ones(&p);
    CHECK_EQ(launched(), before);
    CHECK(check_now_ns() - start < FOR_LONG_MS * UINT64_C(1000000)); /* it runs yet */
    CHECK_EQ(run_kernel(0), 0);
    while (launched() == before) {
        write_small_ones(&p);
        check_patience(start, PATIENCE);
    }
    gpus_close(&p);
}

/* ------------------------------------------------------------------ batches */

enum { PIECE = 1 << 20, PIECES = 16 };

static void post_pieces(pair *p, watched *w, uint64_t nbytes) {
    pplx_work_request requests[PIECES];
    size_t posted;
    int32_t native;
    for (uint32_t i = 0; i < PIECES; i++) {
        requests[i] = write_of(p, &w[i], nbytes, i);
        requests[i].local_address += nbytes * i;
        requests[i].remote_address += nbytes * i;
    }
    CHECK_EQ(ipc->post(p->a.endpoint, requests, PIECES, &posted, &native), PPLX_OK);
    CHECK_EQ(posted, PIECES);
}

static void big_gpus_open(pair *p) {
    const pplx_option options[] = {{"libcuda", libcuda}, {"ring_slots", "64"}};
    pair_open_with(&p->a, &p->b, options, 2);
    device_open_of(&p->at_a, &p->a, PIECES * PIECE);
    device_open_of(&p->at_b, &p->b, PIECES * PIECE);
    for (size_t i = 0; i < PIECES * PIECE; i++) ((unsigned char *)p->at_a.shows)[i] = (unsigned char)(i >> 12 ^ i);
    warm_up(p);
    p->b.nimms = 0;
}

static void check_pieces(pair *p, watched *w, uint64_t nbytes) {
    bool came[PIECES] = {false};
    for (int i = 0; i < PIECES; i++) CHECK_EQ(wait_for(&p->a, &p->b, &w[i]), PPLX_OK);
    wait_imms(&p->b, &p->a, PIECES);
    for (int i = 0; i < PIECES; i++) {
        CHECK(p->b.imms[i] < PIECES && !came[p->b.imms[i]]);
        came[p->b.imms[i]] = true;
    }
    CHECK(memcmp(p->at_a.shows, p->at_b.shows, PIECES * nbytes) == 0);
    memset(p->at_b.shows, 0, PIECES * nbytes);
    p->b.nimms = 0;
}

/* A stream stores the first immediate, and that all is done: the others are there before, and nobody sees them. */
static void test_a_batch_takes_two_stores(void) {
    static pair p;
    static watched w[PIECES];
    big_gpus_open(&p);
    for (int round = 0; round < 100; round++) { /* around the ring */
        const int before = stores();
        CHECK_EQ(hold(1), 0);
        post_pieces(&p, w, 256);
        CHECK_EQ(stores() - before, 2);
        run_for(&p.b, &p.a, 0.001);
        CHECK_EQ(p.b.nimms, 0);
        CHECK_EQ(hold(0), 0);
        check_pieces(&p, w, 256);
    }
    gpus_close(&p);
}

enum { SCATTERED = 5 };

static void post_scattered(pair *p, uint32_t opcode, pplx_work_request *requests, watched *w, uint64_t room) {
    static pplx_segment segments[SCATTERED][MOST_SEGMENTS];
    static uint64_t random = 3;
    size_t posted;
    int32_t native;
    for (uint32_t i = 0; i < SCATTERED; i++) {
        requests[i] = write_of(p, &w[i], 0, i);
        requests[i].opcode = (uint8_t)opcode;
        scatter(&requests[i], segments[i], MOST_SEGMENTS, room, &random);
        for (uint32_t k = 0; k < MOST_SEGMENTS; k++) { /* to a place of its own */
            segments[i][k].local += i * MOST_SEGMENTS * room;
            segments[i][k].remote += i * MOST_SEGMENTS * room;
        }
        requests[i].local_address += i * MOST_SEGMENTS * room;
        requests[i].remote_address += i * MOST_SEGMENTS * room;
    }
    CHECK_EQ(ipc->post(p->a.endpoint, requests, SCATTERED, &posted, &native), PPLX_OK);
    CHECK_EQ(posted, SCATTERED);
}

/* Posts, waits, checks; each of them counts once. */
static void scatter_once(pair *p, uint32_t opcode, uint64_t room) {
    static watched w[SCATTERED];
    static unsigned char before[PIECES * PIECE];
    pplx_work_request requests[SCATTERED];
    unsigned char *from = opcode == PPLX_READ ? p->at_b.shows : p->at_a.shows;
    unsigned char *to = opcode == PPLX_READ ? p->at_a.shows : p->at_b.shows;
    memset(to, (int)room, PIECES * PIECE);
    memcpy(before, to, PIECES * PIECE);
    p->b.nimms = 0;
    post_scattered(p, opcode, requests, w, room);
    if (opcode == PPLX_WRITE_IMM) wait_imms(&p->b, &p->a, SCATTERED);
    for (int i = 0; i < SCATTERED; i++) {
        if (opcode != PPLX_WRITE_IMM) CHECK_EQ(wait_for(&p->a, &p->b, &w[i]), PPLX_OK);
        for (uint32_t k = 0; k < MOST_SEGMENTS; k++) {
            const pplx_segment *segment = &requests[i].segments[k];
            memcpy(before + (opcode == PPLX_READ ? segment->local : segment->remote),
                   from + (opcode == PPLX_READ ? segment->remote : segment->local), segment->nbytes);
        }
    }
    CHECK(memcmp(before, to, PIECES * PIECE) == 0);
    for (int i = 0; i < SCATTERED; i++) CHECK_EQ(wait_for(&p->a, &p->b, &w[i]), PPLX_OK);
    run_for(&p->a, &p->b, 0.001);
    CHECK_EQ(p->b.nimms, opcode == PPLX_WRITE_IMM ? SCATTERED : 0);
}

/* One kernel and two stores for 160 pages; with larger ones a call, or one for each. */
static void test_segments_are_copied_together(void) {
    static pair p;
    big_gpus_open(&p);
    const int kernels = launched(), stored = stores();
    scatter_once(&p, PPLX_WRITE_IMM, 1000);
    CHECK_EQ(launched() - kernels, 1);
    CHECK_EQ(stores() - stored, 2);
    scatter_once(&p, PPLX_WRITE, 4096);
    scatter_once(&p, PPLX_READ, 65536);
    set("FAKE_CUDA_FAIL", "cuLaunchKernel:801");
    const int together = batches();
    scatter_once(&p, PPLX_WRITE_IMM, 65536);
    CHECK(batches() > together);
    set("FAKE_CUDA_FAIL", "cuMemcpyBatchAsync_v2:801");
    const int before = launched();
    p.a.nimms = 0;
    ((ipc_domain *)p.a.domain)->cuda->apart = true; /* as with another GPU's memory: one call for each */
    scatter_once(&p, PPLX_WRITE_IMM, 65536);
    CHECK_EQ(launched(), before);
    set("FAKE_CUDA_FAIL", "");
    gpus_close(&p);
}

/* None of it is begun if one is out of bounds. */
static void test_segments_out_of_bounds(void) {
    static pair p;
    static watched w;
    pplx_segment segments[MOST_SEGMENTS];
    uint64_t random = 5;
    big_gpus_open(&p);
    for (uint32_t which = 0; which < MOST_SEGMENTS; which += 31) {
        pplx_work_request request = write_of(&p, &w, 0, 1);
        scatter(&request, segments, MOST_SEGMENTS, 4096, &random);
        if (which == 0) request.remote_address += PIECES * PIECE;
        segments[which].remote += PIECES * PIECE;
        CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_REMOTE_ACCESS);
    }
    for (size_t i = 0; i < PIECES * PIECE; i++) CHECK(p.at_b.shows[i] == 0 || i < 8);
    CHECK_EQ(p.b.nimms, 0);
    gpus_close(&p);
}

/* Between GPU and host, and where the owner copies, one after the other. */
static void test_segments_of_gpu_and_host(void) {
    static pair p;
    static watched w;
    static unsigned char before[ARENA];
    pplx_segment segments[MOST_SEGMENTS];
    uint64_t random = 11;
    big_gpus_open(&p);
    for (int into = 0; into < KINDS; into++) {
        for (uint64_t room = 100; room <= ARENA / MOST_SEGMENTS; room += 65486) {
            memset(p.b.arena[into], into, ARENA);
            memcpy(before, p.b.arena[into], ARENA);
            p.b.nimms = 0;
            pplx_work_request request = write_of(&p, &w, 0, 9);
            request.remote_key = p.b.key[into].key;
            request.remote_address = p.b.key[into].base;
            scatter(&request, segments, MOST_SEGMENTS, room, &random);
            CHECK_EQ(post(&p.a, &p.b, &request), PPLX_OK);
            wait_imms(&p.b, &p.a, 1);
            check_scattered(&request, p.at_a.shows, p.b.arena[into], before, ARENA);
            CHECK_EQ(wait_for(&p.a, &p.b, &w), PPLX_OK);
            CHECK_EQ(w.completions, 1);
        }
    }
    gpus_close(&p);
}

/* One call copies what waits together, if the driver has that call; else one for each. */
static void test_a_batch_is_copied_by_one_call(void) {
    static pair p;
    static watched w[PIECES];
    big_gpus_open(&p);
    int before = batches();
    post_pieces(&p, w, PIECE);
    CHECK(batches() > before);
    check_pieces(&p, w, PIECE);
    set("FAKE_CUDA_FAIL", "cuMemcpyBatchAsync_v2:801");
    before = batches();
    post_pieces(&p, w, PIECE);
    check_pieces(&p, w, PIECE);
    CHECK_EQ(batches(), before);
    set("FAKE_CUDA_FAIL", "");
    gpus_close(&p);
}

/* While the streams have enough to do: so that a store is rare, however few are written at a time. */
static void test_what_waits_for_the_streams_makes_a_batch(void) {
    static pair p;
    static watched w[PIECES];
    size_t posted;
    int32_t native;
    big_gpus_open(&p);
    const int before = stores();
    CHECK_EQ(hold(1), 0);
    for (uint32_t i = 0; i < PIECES; i++) { /* one at a time */
        pplx_work_request request = write_of(&p, &w[i], PIECE, i);
        request.local_address += i * PIECE;
        request.remote_address += i * PIECE;
        CHECK_EQ(ipc->post(p.a.endpoint, &request, 1, &posted, &native), PPLX_OK);
        run_for(&p.a, &p.b, 0.001);
    }
    CHECK(stores() - before <= PIECES);
    CHECK_EQ(hold(0), 0);
    check_pieces(&p, w, PIECE);
    CHECK(stores() - before < 2 * PIECES - 8);
    gpus_close(&p);
}

/* So that the GPU copies while some of them store; but nothing small gets behind what is large, and takes long. */
static void test_small_ones_have_all_streams_that_are_idle(void) {
    static const uint64_t under_way[][IPC_STREAMS] = {{0, 0, 1, 0}, {1, 0, 1, 0}, {1, 1, 1, 0}, {1, 1, 1, 1},
                                                      {2, 1, 1, 1}, {2, 2, 1, 1}, {2, 2, 1, 1}, {2, 2, 1, 1}};
    enum { POSTED = sizeof under_way / sizeof *under_way }; /* a large one, and then small ones */
    static pair p;
    static watched w[POSTED];
    size_t posted;
    int32_t native;
    big_gpus_open(&p);
    const ipc_cuda *cuda = ((ipc_domain *)p.a.domain)->cuda;
    CHECK_EQ(hold(1), 0);
    for (uint32_t i = 0; i < POSTED; i++) {
        pplx_work_request request = write_of(&p, &w[i], i ? 256 : PIECE, i);
        CHECK_EQ(ipc->post(p.a.endpoint, &request, 1, &posted, &native), PPLX_OK);
        run_for(&p.a, &p.b, 0.001);
        for (int k = 0; k < IPC_STREAMS; k++) CHECK_EQ(cuda->begun[k] - atomic_load(&cuda->done[k]), under_way[i][k]);
    }
    CHECK_EQ(hold(0), 0);
    for (int i = 0; i < POSTED; i++) CHECK_EQ(wait_for(&p.a, &p.b, &w[i]), PPLX_OK);
    wait_imms(&p.b, &p.a, POSTED);
    gpus_close(&p);
}

/* ------------------------------------------------------------------ several regions of one allocation */

static pplx_provider_mr *register_part(side *s, const device *d, uint64_t offset, uint32_t access) {
    pplx_error error = {0};
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = d->address + offset, .nbytes = 4096, .fd = -1};
    if (ipc->mr_open(s->domain, &memory, access, &mr, &key, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
    return mr;
}

/* As a pool hands them out: the driver is asked for a handle once for all of them, until the last one is closed; and
 * again if the allocation is another one, though it lies where the first did. */
static void test_regions_of_one_allocation_share_its_handle(void) {
    static pair p;
    pplx_provider_mr *parts[8];
    gpus_open(&p, "64");
    const int before = handles();
    for (uint64_t i = 0; i < 8; i++) parts[i] = register_part(&p.a, &p.at_a, 4096 * i, PPLX_ACCESS_REMOTE_WRITE);
    CHECK_EQ(handles(), before);
    CHECK_EQ(renew(p.at_a.address), 0);
    pplx_provider_mr *other = register_part(&p.a, &p.at_a, 0, PPLX_ACCESS_REMOTE_WRITE);
    pplx_provider_mr *again = register_part(&p.a, &p.at_a, 8192, PPLX_ACCESS_REMOTE_WRITE);
    CHECK_EQ(handles(), before + 1);
    CHECK_EQ(ipc->mr_close(other), PPLX_OK);
    CHECK_EQ(ipc->mr_close(again), PPLX_OK);
    again = register_part(&p.a, &p.at_a, 8192, PPLX_ACCESS_REMOTE_WRITE);
    CHECK_EQ(handles(), before + 2);
    CHECK_EQ(ipc->mr_close(again), PPLX_OK);
    for (int i = 0; i < 8; i++) CHECK_EQ(ipc->mr_close(parts[i]), PPLX_OK);
    gpus_close(&p);
}

/* No peer may reach it, so none is told how. */
static void test_a_region_for_nobody_has_no_handle(void) {
    static pair p;
    static watched w;
    gpus_open(&p, "64");
    const int before = handles();
    CHECK_EQ(renew(p.at_b.address), 0);
    pplx_provider_mr *mr = register_part(&p.b, &p.at_b, 0, PPLX_ACCESS_LOCAL);
    CHECK_EQ(handles(), before);
    pplx_work_request request = write_of(&p, &w, 8, 1);
    request.remote_key = ((ipc_region *)mr)->key; /* as if it had been guessed */
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_REMOTE_ACCESS);
    request.opcode = PPLX_READ;
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_REMOTE_ACCESS);
    for (const ipc_export *export = ((ipc_region *)mr)->exports; export; export = export->region_next)
        CHECK(!export->opened);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK); /* which nobody has to confirm */
    gpus_close(&p);
}

/* ------------------------------------------------------------------ between GPU and host */

/* A side with memory of a GPU, which has several peers without any. */
enum { PEERS = 12 };

typedef struct star {
    side a[PEERS], b[PEERS]; /* the first of each holds all that they have in common */
    int peers;
    device gpu;
} star;

static void star_open(star *s, int peers, const char *staging_nbytes) {
    const pplx_option options[] = {{"libcuda", libcuda}, {"staging_nbytes", staging_nbytes}, {"gpu_ms", "20"}};
    memset(s, 0, sizeof *s);
    s->peers = peers;
    pair_open_with(&s->a[0], &s->b[0], options, 3);
    for (int i = 1; i < peers; i++) {
        side_open_with(&s->b[i], options, 3);
        s->a[i] = s->a[0];
        s->a[i].nimms = 0;
        side_listen(&s->a[i]);
        side_listen(&s->b[i]);
        side_connect(&s->a[i], &s->b[i]);
        side_connect(&s->b[i], &s->a[i]);
    }
    device_open_of(&s->gpu, &s->a[0], LARGE);
    for (int i = 0; i < peers; i++) { /* each knows the keys */
        for (enum kind kind = MAPPED; kind <= PLAIN; kind++) {
            watched w;
            pplx_work_request request = request_of(&s->a[i], PLAIN, &s->b[i], kind, &w, PPLX_WRITE, 0, 8, 0);
            CHECK_EQ(perform(&s->a[i], &s->b[i], &request), PPLX_OK);
        }
    }
}

static void star_close(star *s) {
    for (int i = s->peers - 1; i >= 0; i--) {
        if (s->a[i].endpoint) close_endpoint(&s->a[i], &s->b[i]);
        if (s->b[i].endpoint) close_endpoint(&s->b[i], &s->a[i]);
        if (i) side_close(&s->b[i]);
    }
    if (s->gpu.mr) device_close(&s->gpu);
    pair_close(&s->a[0], &s->b[0]);
}

/* What there is between a GPU of a's and host memory of b's. */
enum { IMM = 77 };
enum way { WRITE_OUT, READ_IN, SEND_OUT, RECEIVE_IN, WRITTEN_BY_B, READ_BY_B, WAYS };

/* `bytes` of b's: what lies there is to be the same as on the GPU. */
static const unsigned char *begin_way(star *s, enum way way, enum kind kind, watched *w, watched *other) {
    const bool in = way == READ_IN || way == RECEIVE_IN || way == WRITTEN_BY_B;
    unsigned char *host = s->b[0].arena[kind];
    pplx_work_request request;
    fill(in ? host : s->gpu.shows, LARGE, 7 + way);
    memset(in ? s->gpu.shows : host, 0, LARGE);
    if (way == WRITE_OUT || way == READ_IN || way == SEND_OUT || way == RECEIVE_IN) {
        static const uint32_t opcodes[] = {PPLX_WRITE_IMM, PPLX_READ, PPLX_SEND, PPLX_RECV};
        request = request_of(&s->a[0], PLAIN, &s->b[0], kind, w, opcodes[way], 0, LARGE, IMM);
        request.local_mr = s->gpu.mr;
        request.local_address = s->gpu.address;
        CHECK_EQ(post(&s->a[0], &s->b[0], &request), PPLX_OK);
    }
    if (way >= SEND_OUT) {
        static const uint32_t opcodes[] = {PPLX_RECV, PPLX_SEND, PPLX_WRITE_IMM, PPLX_READ};
        request = request_of(&s->b[0], kind, &s->a[0], PLAIN, other, opcodes[way - SEND_OUT], 0, LARGE, IMM);
        request.remote_key = s->gpu.key.key;
        request.remote_address = s->gpu.key.base;
        CHECK_EQ(post(&s->b[0], &s->a[0], &request), PPLX_OK);
    } else {
        other->completions = 1;
        other->status = PPLX_OK;
    }
    if (way >= WRITTEN_BY_B) {
        w->completions = 1;
        w->status = PPLX_OK;
    }
    return host;
}

/* The GPU has a piece, and keeps it. */
static void wait_queued(star *s) {
    const uint64_t start = check_now_ns();
    while (queued() == 0) {
        poll_both(&s->a[0], &s->b[0]);
        check_patience(start, PATIENCE);
    }
}

static bool has_counted(const side *s, uint32_t imm) {
    for (size_t i = 0; i < s->nimms; i++)
        if (s->imms[i] == imm) return true;
    return false;
}

/* A GPU takes long: its own transfers wait, whichever way they go, and nobody else does. Nothing is counted before it
 * is there. */
static void test_a_slow_gpu_keeps_nobody_waiting(void) {
    static star s;
    static watched w, other, neighbour, heartbeat;
    star_open(&s, 2, "65536");
    for (int i = 0; i < WAYS * KINDS; i++) {
        const enum way way = i / KINDS;
        CHECK_EQ(hold(1), 0);
        const unsigned char *host = begin_way(&s, way, i % KINDS, &w, &other);
        wait_queued(&s);
        for (int round = 0; round < 100; round++) {
            pplx_work_request request = request_of(&s.a[1], PLAIN, &s.b[1], MAPPED, &neighbour, PPLX_WRITE_IMM, 0, 4096,
                                                   7);
            CHECK_EQ(perform(&s.a[1], &s.b[1], &request), PPLX_OK);
            request = request_of(&s.a[0], PLAIN, &s.b[0], PLAIN, &heartbeat, PPLX_WRITE_IMM, 0, 0, 9);
            CHECK_EQ(perform(&s.a[0], &s.b[0], &request), PPLX_OK);
        }
        CHECK(!(w.completions && other.completions));
        CHECK_EQ(queued(), 4); /* two pieces, each with a store behind it */
        CHECK(!has_counted(&s.a[0], IMM) && !has_counted(&s.b[0], IMM));
        CHECK_EQ(hold(0), 0);
        CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), PPLX_OK);
        CHECK_EQ(wait_for(&s.b[0], &s.a[0], &other), PPLX_OK);
        CHECK(memcmp(host, s.gpu.shows, LARGE) == 0);
        s.a[0].nimms = s.b[0].nimms = 0;
    }
    star_close(&s);
}

/* As much as ever may be under way, to a peer that counts: at each immediate its bytes are there. */
static void test_data_comes_before_its_immediate(void) {
    enum { MANY = 24, EACH = LARGE / MANY };
    static star s;
    static watched w[MANY];
    star_open(&s, 1, "65536");
    fill(s.gpu.shows, LARGE, 3);
    for (enum kind kind = MAPPED; kind <= PLAIN; kind++) {
        const uint64_t start = check_now_ns();
        s.b[0].nimms = 0;
        memset(s.b[0].arena[kind], 0, LARGE);
        for (uint32_t i = 0; i < MANY; i++) {
            pplx_work_request request = request_of(&s.a[0], PLAIN, &s.b[0], kind, &w[i], PPLX_WRITE_IMM,
                                                   (uint64_t)i * EACH, EACH, i);
            request.local_mr = s.gpu.mr;
            request.local_address = s.gpu.address + (uint64_t)i * EACH;
            CHECK_EQ(post(&s.a[0], NULL, &request), PPLX_OK);
        }
        for (size_t seen = 0; seen < MANY;) {
            poll_both(&s.a[0], &s.b[0]);
            for (; seen < s.b[0].nimms; seen++) {
                const size_t at = (size_t)s.b[0].imms[seen] * EACH;
                CHECK(memcmp(s.b[0].arena[kind] + at, s.gpu.shows + at, EACH) == 0);
            }
            check_patience(start, PATIENCE);
        }
        for (int i = 0; i < MANY; i++) CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w[i]), PPLX_OK);
    }
    star_close(&s);
}

/* The region is closed: nobody has it back as long as the GPU copies into it, for whomever. */
static void test_a_region_is_free_when_the_gpu_has_done(void) {
    static const enum way ways[] = {READ_IN, RECEIVE_IN, WRITTEN_BY_B};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        static star s;
        static watched w, other;
        star_open(&s, 1, "65536");
        CHECK_EQ(hold(1), 0);
        begin_way(&s, ways[i], PLAIN, &w, &other);
        wait_queued(&s);
        for (int round = 0; round < 20; round++) {
            CHECK_EQ(ipc->mr_close(s.gpu.mr), PPLX_UNRELEASED);
            poll_both(&s.a[0], &s.b[0]);
        }
        CHECK(ways[i] == WRITTEN_BY_B || !w.completions); /* nor has it ended */
        CHECK_EQ(hold(0), 0);
        const uint64_t start = check_now_ns();
        while (ipc->mr_close(s.gpu.mr) == PPLX_UNRELEASED) {
            poll_both(&s.a[0], &s.b[0]);
            check_patience(start, PATIENCE);
        }
        CHECK_EQ(queued(), 0);
        CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), ways[i] == WRITTEN_BY_B ? PPLX_OK : PPLX_LOCAL_ACCESS);
        if (ways[i] == WRITTEN_BY_B) CHECK_EQ(wait_for(&s.b[0], &s.a[0], &other), PPLX_REMOTE_ACCESS);
        CHECK_EQ(forget(s.gpu.address), 0);
        free(s.gpu.shows);
        s.gpu.mr = NULL;
        star_close(&s);
    }
}

/* An endpoint is closed, or its peer dies: what the GPU copies for it ends first, and the host's memory is not touched
 * any more. */
static void test_an_endpoint_is_free_when_the_gpu_has_done(void) {
    for (int i = 0; i < 2 * WAYS; i++) {
        const bool dies = i % 2;
        static star s;
        static watched w, other;
        star_open(&s, 1, "65536");
        CHECK_EQ(hold(1), 0);
        begin_way(&s, i / 2, MAPPED, &w, &other);
        wait_queued(&s);
        if (dies) pplx_ipc_peer_died(inside(&s.a[0]));
        const uint64_t start = check_now_ns();
        while (dies && inside(&s.a[0])->state != IPC_BROKEN) { /* what it left is waited for a while */
            side_poll(&s.a[0]);
            check_patience(start, PATIENCE);
        }
        for (int round = 0; round < 20; round++) {
            CHECK_EQ(ipc->endpoint_close(s.a[0].endpoint), PPLX_UNRELEASED);
            poll_both(&s.a[0], &s.b[0]);
        }
        CHECK(i / 2 >= WRITTEN_BY_B || !w.completions);
        CHECK_EQ(hold(0), 0);
        if (i / 2 < WRITTEN_BY_B) CHECK_EQ(wait_for(&s.a[0], NULL, &w), dies ? PPLX_PEER_LOST : PPLX_FLUSHED);
        close_endpoint(&s.a[0], &s.b[0]);
        CHECK_EQ(queued(), 0);
        star_close(&s);
    }
}

/* The peer closes a region on its own GPU, into which ours copies from the host. */
static void test_a_peers_gpu_is_free_when_ours_has_done(void) {
    static pair p;
    static watched w;
    gpus_open(&p, "64");
    warm_up(&p);
    CHECK_EQ(hold(1), 0);
    pplx_work_request request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE, 0, GPU, 0);
    request.remote_key = p.at_b.key.key;
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    const uint64_t start = check_now_ns();
    while (queued() == 0) {
        poll_both(&p.a, &p.b);
        check_patience(start, PATIENCE);
    }
    for (int round = 0; round < 20; round++) {
        CHECK_EQ(ipc->mr_close(p.at_b.mr), PPLX_UNRELEASED);
        poll_both(&p.a, &p.b);
    }
    CHECK_EQ(hold(0), 0);
    while (ipc->mr_close(p.at_b.mr) == PPLX_UNRELEASED) {
        poll_both(&p.a, &p.b);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(queued(), 0);
    CHECK_EQ(wait_for(&p.a, &p.b, &w), PPLX_REMOTE_ACCESS); /* the last of it was not seen to be there */
    CHECK_EQ(forget(p.at_b.address), 0);
    free(p.at_b.shows);
    device_open(&p.at_b, &p.b);
    gpus_close(&p);
}

/* The peer takes its memory back in the middle: it has it at once, and the GPU's copy goes nowhere. */
static void test_a_peer_that_revokes_waits_for_no_gpu(void) {
    static star s;
    static watched w, other;
    star_open(&s, 1, "65536");
    CHECK_EQ(hold(1), 0);
    begin_way(&s, WRITE_OUT, MAPPED, &w, &other);
    wait_queued(&s);
    CHECK(queued() > 0);
    CHECK_EQ(ipc->mr_close(s.b[0].mr[MAPPED]), PPLX_OK);
    s.b[0].mr[MAPPED] = NULL;
    run_for(&s.a[0], &s.b[0], 0.01);
    CHECK(!w.completions); /* our memory is in use yet */
    CHECK_EQ(hold(0), 0);
    CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), PPLX_REMOTE_ACCESS);
    for (size_t i = 0; i < LARGE; i++) CHECK_EQ(s.b[0].arena[MAPPED][i], 0);
    star_close(&s);
}

/* The driver says that the GPU has failed: everything that waits for it ends so. */
static void test_a_gpu_that_fails_ends_what_it_copies(void) {
    for (int i = 0; i < WAYS; i++) {
        static star s;
        static watched w, other;
        star_open(&s, 1, "65536");
        CHECK_EQ(hold(1), 0);
        begin_way(&s, i, PLAIN, &w, &other);
        wait_queued(&s);
        set("FAKE_CUDA_FAIL", "cuStreamQuery:719");
        if (i < WRITTEN_BY_B) CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), PPLX_LOCAL_ACCESS);
        if (i >= WRITTEN_BY_B) CHECK_EQ(wait_for(&s.b[0], &s.a[0], &other), PPLX_TRANSPORT);
        CHECK(!has_counted(&s.a[0], IMM) && !has_counted(&s.b[0], IMM));
        set("FAKE_CUDA_FAIL", "");
        CHECK_EQ(hold(0), 0);
        while (queued()) usleep(1000); /* this libcuda's stream knows nothing of that, and copies */
        star_close(&s);
    }
}

/* To pin takes long, too, and is done once, when it is first needed; what fails is tried again. */
static void test_pinning_keeps_nobody_waiting(void) {
    static star s;
    static watched w, other, heartbeat;
    star_open(&s, 1, "65536");
    const int before = pinned();
    set("FAKE_CUDA_FAIL", "cuMemHostRegister_v2:2");
    begin_way(&s, WRITE_OUT, MAPPED, &w, &other);
    CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), PPLX_LOCAL_ACCESS);
    set("FAKE_CUDA_FAIL", "");
    set("FAKE_CUDA_PIN_US", "300000");
    begin_way(&s, WRITE_OUT, MAPPED, &w, &other);
    int beats = 0;
    for (; pinned() == before; beats++) {
        pplx_work_request request = request_of(&s.a[0], PLAIN, &s.b[0], PLAIN, &heartbeat, PPLX_WRITE_IMM, 0, 0, 9);
        CHECK_EQ(perform(&s.a[0], &s.b[0], &request), PPLX_OK);
    }
    set("FAKE_CUDA_PIN_US", "0");
    CHECK(beats > 5 && !w.completions);
    CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), PPLX_OK);
    for (int i = 0; i < WAYS; i++) {
        begin_way(&s, i, PLAIN, &w, &other);
        CHECK_EQ(wait_for(&s.a[0], &s.b[0], &w), PPLX_OK);
        CHECK_EQ(wait_for(&s.b[0], &s.a[0], &other), PPLX_OK);
        CHECK_EQ(pinned(), before + 1);
    }
    star_close(&s);
    CHECK_EQ(pinned(), 0);
}

static pplx_work_request large_write_to(star *s, int peer, enum kind kind, watched *w) {
    pplx_work_request request = request_of(&s->a[peer], PLAIN, &s->b[peer], kind, w, PPLX_WRITE, 0, LARGE, 0);
    request.local_mr = s->gpu.mr;
    request.local_address = s->gpu.address;
    return request;
}

/* Peers that stand still leave the pinned memory to the others: also where a message has taken the last room of their
 * staging areas after the GPU had begun. */
static void test_peers_that_are_stopped_keep_no_pinned_memory(void) {
    static star s;
    static watched written[PEERS], sent[PEERS], received[PEERS], w;
    const uint64_t start = check_now_ns();
    pplx_work_request request;
    star_open(&s, PEERS, "65536");
    CHECK_EQ(hold(1), 0);
    for (int i = 1; i < PEERS; i++) {
        request = request_of(&s.b[i], MAPPED, NULL, PLAIN, &received[i], PPLX_RECV, 0, ARENA, 0);
        CHECK_EQ(post(&s.b[i], NULL, &request), PPLX_OK);
        request = large_write_to(&s, i, PLAIN, &written[i]);
        CHECK_EQ(post(&s.a[i], NULL, &request), PPLX_OK);
    }
    while (queued() < 16) { /* all pieces are taken */
        side_poll(&s.a[0]);
        check_patience(start, PATIENCE);
    }
    for (int i = 1; i < PEERS; i++) {
        request = request_of(&s.a[i], PLAIN, NULL, PLAIN, &sent[i], PPLX_SEND, 0, ARENA, 0);
        CHECK_EQ(post(&s.a[i], NULL, &request), PPLX_OK);
    }
    run_for(&s.a[0], NULL, 0.02);
    CHECK_EQ(hold(0), 0);
    for (int i = 0; i < 3; i++) {
        request = large_write_to(&s, 0, i % KINDS, &w);
        CHECK_EQ(perform(&s.a[0], &s.b[0], &request), PPLX_OK);
    }
    for (int i = 1; i < PEERS; i++) CHECK(!written[i].completions && !sent[i].completions);
    for (int i = 1; i < PEERS; i++) {
        CHECK_EQ(wait_for(&s.a[i], &s.b[i], &written[i]), PPLX_OK);
        CHECK_EQ(wait_for(&s.a[i], &s.b[i], &sent[i]), PPLX_OK);
        CHECK_EQ(wait_for(&s.b[i], &s.a[i], &received[i]), PPLX_OK);
    }
    star_close(&s);
}

/* Nor do those that we have broken with, in the middle of what they had us do. */
static void test_peers_that_are_broken_with_keep_no_pinned_memory(void) {
    static star s;
    static watched w[PEERS];
    const uint64_t start = check_now_ns();
    star_open(&s, PEERS, "65536");
    CHECK_EQ(hold(1), 0);
    for (int i = 1; i < PEERS; i++) {
        pplx_work_request request = request_of(&s.b[i], PLAIN, &s.a[i], PLAIN, &w[i], PPLX_WRITE, 0, LARGE, 0);
        request.remote_key = s.gpu.key.key;
        CHECK_EQ(post(&s.b[i], NULL, &request), PPLX_OK);
    }
    while (queued() < 16) { /* all pieces are taken */
        for (int i = 1; i < PEERS; i++) side_poll(&s.b[i]);
        side_poll(&s.a[0]);
        check_patience(start, PATIENCE);
    }
    for (int i = 1; i < PEERS; i++) pplx_ipc_break(inside(&s.a[i]), PPLX_CONNECTION);
    CHECK_EQ(hold(0), 0);
    pplx_work_request request = large_write_to(&s, 0, MAPPED, &w[0]);
    CHECK_EQ(perform(&s.a[0], &s.b[0], &request), PPLX_OK);
    for (int i = 1; i < PEERS; i++) pplx_ipc_peer_died(inside(&s.a[i])); /* or our memory would be theirs for good */
    star_close(&s);
}

/* More peers than there are pinned pieces, each of which has the next write ready when one has ended: they have turns. */
static void test_peers_take_turns_at_the_pinned_memory(void) {
    enum { EACH = 64 };
    static star s;
    static watched w[PEERS][EACH];
    star_open(&s, PEERS, "65536");
    for (int i = 0; i < PEERS; i++) {
        for (int j = 0; j < EACH; j++) {
            pplx_work_request request = large_write_to(&s, i, MAPPED, &w[i][j]);
            request.nbytes = 64;
            CHECK_EQ(post(&s.a[i], NULL, &request), PPLX_OK);
        }
    }
    const uint64_t start = check_now_ns();
    for (bool ended = false; !ended;) {
        side_poll(&s.a[0]);
        for (int i = 0; i < PEERS; i++) ended |= w[i][EACH - 1].completions > 0;
        check_patience(start, PATIENCE);
    }
    for (int i = 0; i < PEERS; i++) CHECK(w[i][EACH / 2 - 1].completions);
    for (int i = 0; i < PEERS; i++)
        for (int j = 0; j < EACH; j++) CHECK_EQ(wait_for(&s.a[i], &s.b[i], &w[i][j]), PPLX_OK);
    star_close(&s);
}

/* ------------------------------------------------------------------ what a peer has us do */

/* Who asks for many copies of a byte, each of which costs as much as one of many, doesn't keep others waiting: they have
 * turns. */
static void test_small_copies_for_one_peer_keep_no_other_waiting(void) {
    enum { MANY = 64 };
    static star s;
    static watched w[2][MANY];
    uint64_t before[2], served[2] = {0};
    star_open(&s, 2, "65536");
    for (int j = 0; j < MANY; j++) { /* the first asks for the key */
        for (int i = 0; i < 2; i++) {
            pplx_work_request request = request_of(&s.b[i], PLAIN, NULL, PLAIN, &w[i][j], PPLX_WRITE, 0, 1, 0);
            request.remote_key = s.gpu.key.key;
            CHECK_EQ(post(&s.b[i], NULL, &request), PPLX_OK);
            if (j == 0) CHECK_EQ(wait_for(&s.b[i], &s.a[0], &w[i][j]), PPLX_OK);
            before[i] = inside(&s.a[i])->command_head;
        }
    }
    const uint64_t start = check_now_ns();
    while (served[0] + served[1] < MANY) {
        side_poll(&s.a[0]);
        for (int i = 0; i < 2; i++) served[i] = inside(&s.a[i])->command_head - before[i];
        check_patience(start, PATIENCE);
    }
    CHECK(served[0] > MANY / 4 && served[1] > MANY / 4);
    for (int i = 0; i < 2; i++)
        for (int j = 1; j < MANY; j++) CHECK_EQ(wait_for(&s.b[i], &s.a[0], &w[i][j]), PPLX_OK);
    star_close(&s);
}

/* A message is received into memory of a GPU, and sent from there. */
static void test_messages_between_gpus(void) {
    static pair p;
    static watched sent, received;
    for (int fails = 0; fails < 2; fails++) {
        gpus_open(&p, "64");
        warm_up(&p);
        fill(p.at_a.shows, GPU, 3);
        memset(p.at_b.shows, 0, GPU);
        pplx_work_request request = request_of(&p.b, PLAIN, NULL, PLAIN, &received, PPLX_RECV, 0, GPU, 0);
        request.local_mr = p.at_b.mr;
        request.local_address = p.at_b.address;
        CHECK_EQ(post(&p.b, &p.a, &request), PPLX_OK);
        request = request_of(&p.a, PLAIN, NULL, PLAIN, &sent, PPLX_SEND, 0, GPU - 100, 0);
        request.local_mr = p.at_a.mr;
        request.local_address = p.at_a.address;
        CHECK_EQ(post(&p.a, &p.b, &request), PPLX_OK);
        while (!sent.completions && inside(&p.a)->sends.head) side_poll(&p.a);
        if (fails) set("FAKE_CUDA_FAIL", "cuMemcpyAsync:719");
        const int status = wait_for(&p.b, &p.a, &received);
        set("FAKE_CUDA_FAIL", "");
        CHECK_EQ(status, fails ? PPLX_LOCAL_ACCESS : PPLX_OK);
        if (!fails) CHECK_EQ(received.nbytes, GPU - 100);
        CHECK((memcmp(p.at_a.shows, p.at_b.shows, GPU - 100) == 0) == !fails);
        CHECK_EQ(wait_for(&p.a, &p.b, &sent), PPLX_OK);
        gpus_close(&p);
    }
}

int main(void) {
    load();
    RUN(test_late_immediates);
    RUN(test_what_the_sender_has_left);
    RUN(test_goodbye_comes_after_the_stream);
    RUN(test_a_revoke_that_takes_its_time);
    RUN(test_what_can_not_be_staged);
    RUN(test_a_lost_context);
    RUN(test_a_message_whose_region_is_closed);
    RUN(test_small_pieces_do_without_the_kernel_until_it_is_there);
    RUN(test_opening_keeps_nobody_waiting);
    RUN(test_a_revoke_is_confirmed_when_the_allocation_is_closed);
    RUN(test_nothing_is_closed_while_a_stream_is_in_a_gate);
    RUN(test_a_revoke_while_the_allocation_is_being_opened);
    RUN(test_goodbye_comes_when_the_allocation_is_closed);
    RUN(test_a_break_tells_when_the_allocation_is_closed);
    RUN(test_nothing_waits_for_a_dead_peers_allocation);
    RUN(test_a_peer_goes_while_a_stream_waits_in_a_gate);
    RUN(test_an_engine_closes_while_a_stream_waits_in_a_gate);
    RUN(test_a_transfer_passes_what_waits_for_a_gate);
    RUN(test_a_first_gpu_region_comes_late);
    RUN(test_a_first_gpu_region_comes_in_the_middle);
    RUN(test_a_batch_takes_two_stores);
    RUN(test_a_batch_is_copied_by_one_call);
    RUN(test_segments_are_copied_together);
    RUN(test_segments_out_of_bounds);
    RUN(test_segments_of_gpu_and_host);
    RUN(test_what_waits_for_the_streams_makes_a_batch);
    RUN(test_small_ones_have_all_streams_that_are_idle);
    RUN(test_regions_of_one_allocation_share_its_handle);
    RUN(test_a_region_for_nobody_has_no_handle);
    RUN(test_a_slow_gpu_keeps_nobody_waiting);
    RUN(test_data_comes_before_its_immediate);
    RUN(test_a_region_is_free_when_the_gpu_has_done);
    RUN(test_an_endpoint_is_free_when_the_gpu_has_done);
    RUN(test_a_peers_gpu_is_free_when_ours_has_done);
    RUN(test_a_peer_that_revokes_waits_for_no_gpu);
    RUN(test_a_gpu_that_fails_ends_what_it_copies);
    RUN(test_pinning_keeps_nobody_waiting);
    RUN(test_peers_that_are_stopped_keep_no_pinned_memory);
    RUN(test_peers_that_are_broken_with_keep_no_pinned_memory);
    RUN(test_peers_take_turns_at_the_pinned_memory);
    RUN(test_small_copies_for_one_peer_keep_no_other_waiting);
    RUN(test_messages_between_gpus);
    return check_done();
}
