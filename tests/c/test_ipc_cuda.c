/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs over the ipc provider, where it is about moments: what is under way when somebody closes, and what
 * fails. On the tests' own libcuda, with which memory of a GPU is memory of the host at another address; and within
 * one process, since what is between two is tested in tests/gpu. */
#include <dlfcn.h>
#include <limits.h>

#include "ipc_internal.h"
#include "ipc_sides.h"

enum { GPU = 64 << 10 };

typedef struct device {
    unsigned char *shows; /* what lies there */
    uint64_t address;
    pplx_provider_mr *mr;
    pplx_remote_key key;
} device;

static char libcuda[PATH_MAX];
static int (*adopt)(uint64_t *, void *, size_t);
static int (*forget)(uint64_t);
static int (*run_kernel)(int ms);
static int (*queued)(void), (*opened)(void), (*retained)(void), (*launched)(void);
static int (*handles)(void), (*renew)(uint64_t);
static int (*open_own)(int yes);
static int (*allocate)(uint64_t *, size_t), (*release)(uint64_t);
static int (*to_device)(uint64_t, const void *, size_t), (*from_device)(void *, uint64_t, size_t);
static int (*retain)(uintptr_t *, int), (*push)(uintptr_t);

/* It lies beside this program. */
static void load(void) {
    const ssize_t length = readlink("/proc/self/exe", libcuda, sizeof libcuda - 32);
    CHECK(length > 0);
    libcuda[length] = 0;
    strcpy(strrchr(libcuda, '/'), "/libcuda_fake.so.1");
    void *library = dlopen(libcuda, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    static const struct {
        void *function;
        const char *name;
    } functions[] = {
        {&adopt, "fake_cuda_adopt"},       {&forget, "fake_cuda_forget"},     {&run_kernel, "fake_cuda_run_kernel"},
        {&opened, "fake_cuda_opened"},     {&retained, "fake_cuda_retained"}, {&launched, "fake_cuda_launched"},
        {&open_own, "fake_cuda_open_own"}, {&allocate, "cuMemAlloc_v2"},      {&release, "cuMemFree_v2"},
        {&to_device, "cuMemcpyHtoD_v2"},   {&from_device, "cuMemcpyDtoH_v2"}, {&retain, "cuDevicePrimaryCtxRetain"},
        {&push, "cuCtxPushCurrent_v2"},    {&queued, "fake_cuda_queued"},     {&handles, "fake_cuda_handles"},
        {&renew, "fake_cuda_renew"},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        void *function = dlsym(library, functions[i].name);
        CHECK(function);
        memcpy(functions[i].function, &function, sizeof function);
    }
}

static void device_register(device *d, side *s) {
    pplx_error error = {0};
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = d->address, .nbytes = GPU, .fd = -1};
    if (ipc->mr_open(s->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &d->mr, &d->key, &error) !=
        PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

static void device_open(device *d, side *s) {
    d->shows = calloc(1, GPU);
    CHECK(d->shows && adopt(&d->address, d->shows, GPU) == 0);
    device_register(d, s);
}

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
    setenv("FAKE_CUDA_COPY_US", "1600000", 1);
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
    unsetenv("FAKE_CUDA_COPY_US");
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
    setenv("FAKE_CUDA_COPY_US", "1600000", 1);
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
    unsetenv("FAKE_CUDA_COPY_US");
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
    setenv("FAKE_CUDA_FAIL", "cuMemcpyAsync:719", 1);
    for (uint64_t nbytes = 4096; nbytes <= GPU; nbytes += GPU - 4096) {
        request = write_of(&p, &w, nbytes, 8);
        request.remote_key = p.b.key[PLAIN].key;
        CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_LOCAL_ACCESS);
    }
    unsetenv("FAKE_CUDA_FAIL");
    run_for(&p.a, &p.b, 0.05);
    CHECK_EQ(p.b.nimms, 2);
    for (size_t i = 0; i < ARENA; i++) CHECK(p.b.arena[PLAIN][i] == 0);
    gpus_close(&p);
}

/* A copy between GPU and host that takes 1.5 s. */
static pplx_status copy_slowly(const char *gpu_ms) {
    static pair p;
    static watched w;
    const pplx_option options[] = {{"libcuda", libcuda}, {"gpu_ms", gpu_ms}};
    pair_open_with(&p.a, &p.b, options, 2);
    device_open(&p.at_a, &p.a);
    device_open(&p.at_b, &p.b);
    setenv("FAKE_CUDA_COPY_US", "1500000", 1);
    pplx_work_request request = write_of(&p, &w, 4096, 8);
    request.remote_key = p.b.key[PLAIN].key;
    const pplx_status status = perform(&p.a, &p.b, &request);
    unsetenv("FAKE_CUDA_COPY_US");
    gpus_close(&p);
    return status;
}

static void test_a_slow_copy_is_waited_for_as_long_as_we_are_told(void) {
    CHECK_EQ(copy_slowly("10"), PPLX_LOCAL_ACCESS);
    CHECK_EQ(copy_slowly("60000"), PPLX_OK);
}

/* A context that is gone fails what it was to do; nothing is taken for done. */
static void test_a_lost_context(void) {
    static pair p;
    static watched w, slow;
    gpus_open(&p, "64");
    warm_up(&p);
    const uint64_t start = check_now_ns();
    setenv("FAKE_CUDA_COPY_US", "6000000", 1);
    pplx_work_request request = write_of(&p, &slow, 8, 1);
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    run_for(&p.a, &p.b, 0.05);
    CHECK_EQ(slow.completions, 0);
    setenv("FAKE_CUDA_FAIL", "cuCtxPushCurrent_v2:709", 1);
    request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 2);
    request.remote_key = p.at_b.key.key; /* from the host */
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_LOCAL_ACCESS);
    CHECK_EQ(wait_for(&p.a, &p.b, &slow), PPLX_LOCAL_ACCESS);
    CHECK(check_now_ns() - start < UINT64_C(5000000000)); /* it didn't wait for the copy */
    unsetenv("FAKE_CUDA_FAIL");
    unsetenv("FAKE_CUDA_COPY_US");
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

/* Memory that another process could open. */
static void device_allocate(device *d, side *s) {
    uintptr_t context;
    if (retained() == 0) CHECK(retain(&context, 0) == 0 && push(context) == 0); /* this thread's, for good */
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

/* ------------------------------------------------------------------ what a peer has us do */

/* Who asks for many copies of a byte, each of which costs as much as one of many, doesn't keep others waiting: in one
 * poll() everybody has as much of it. */
static void test_small_copies_for_one_peer_keep_no_other_waiting(void) {
    static pair p;
    static side a[2], b[2];
    enum { MANY = 64 };
    static watched w[2][MANY];
    strangers_open_with(&p, false);
    a[0] = a[1] = p.a;
    b[0] = b[1] = p.b;
    side_listen(&a[1]);
    side_listen(&b[1]);
    side_connect(&a[1], &b[1]);
    side_connect(&b[1], &a[1]);
    watched first;
    for (int i = 0; i < 2; i++) { /* so that both know the key */
        pplx_work_request request = request_of(&a[i], PLAIN, &b[i], PLAIN, &first, PPLX_WRITE, 0, 1, 0);
        request.remote_key = p.at_b.key.key;
        CHECK_EQ(perform(&a[i], &b[i], &request), PPLX_OK);
    }
    uint64_t before[2];
    for (int i = 0; i < 2; i++) {
        before[i] = inside(&b[i])->command_head;
        for (int j = 0; j < MANY; j++) {
            pplx_work_request request = request_of(&a[i], PLAIN, &b[i], PLAIN, &w[i][j], PPLX_WRITE, 0, 1, 0);
            request.remote_key = p.at_b.key.key;
            CHECK_EQ(post(&a[i], NULL, &request), PPLX_OK);
        }
    }
    side_poll(&p.b);
    for (int i = 0; i < 2; i++) {
        const uint64_t served = inside(&b[i])->command_head - before[i];
        CHECK(served >= 4 && served <= 12);
    }
    for (int i = 0; i < 2; i++)
        for (int j = 0; j < MANY; j++) CHECK_EQ(wait_for(&a[i], &b[i], &w[i][j]), PPLX_OK);
    close_endpoint(&a[1], &b[1]);
    close_endpoint(&b[1], &a[1]);
    strangers_close(&p);
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
        if (fails) setenv("FAKE_CUDA_FAIL", "cuMemcpyAsync:719", 1);
        const int status = wait_for(&p.b, &p.a, &received);
        unsetenv("FAKE_CUDA_FAIL");
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
    RUN(test_a_slow_copy_is_waited_for_as_long_as_we_are_told);
    RUN(test_a_lost_context);
    RUN(test_a_message_whose_region_is_closed);
    RUN(test_small_pieces_do_without_the_kernel_until_it_is_there);
    RUN(test_opening_keeps_nobody_waiting);
    RUN(test_a_revoke_is_confirmed_when_the_allocation_is_closed);
    RUN(test_a_revoke_while_the_allocation_is_being_opened);
    RUN(test_goodbye_comes_when_the_allocation_is_closed);
    RUN(test_a_break_tells_when_the_allocation_is_closed);
    RUN(test_nothing_waits_for_a_dead_peers_allocation);
    RUN(test_a_first_gpu_region_comes_late);
    RUN(test_a_first_gpu_region_comes_in_the_middle);
    RUN(test_regions_of_one_allocation_share_its_handle);
    RUN(test_a_region_for_nobody_has_no_handle);
    RUN(test_small_copies_for_one_peer_keep_no_other_waiting);
    RUN(test_messages_between_gpus);
    return check_done();
}
