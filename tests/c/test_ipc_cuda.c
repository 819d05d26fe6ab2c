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

/* It lies beside this program. */
static void load(void) {
    const ssize_t length = readlink("/proc/self/exe", libcuda, sizeof libcuda - 32);
    CHECK(length > 0);
    libcuda[length] = 0;
    strcpy(strrchr(libcuda, '/'), "/libcuda_fake.so.1");
    void *library = dlopen(libcuda, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    *(void **)&adopt = dlsym(library, "fake_cuda_adopt");
    *(void **)&forget = dlsym(library, "fake_cuda_forget");
    CHECK(adopt && forget);
}

static void device_open(device *d, side *s) {
    pplx_error error = {0};
    d->shows = calloc(1, GPU);
    CHECK(d->shows && adopt(&d->address, d->shows, GPU) == 0);
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = d->address, .nbytes = GPU, .fd = -1};
    if (ipc->mr_open(s->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &d->mr, &d->key, &error) !=
        PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
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
    uint64_t start = check_now_ns(), longest = 0;
    while (ipc->mr_close(p.at_b.mr) == PPLX_UNRELEASED) {
        const uint64_t before = check_now_ns();
        poll_both(&p.a, &p.b);
        const uint64_t took = check_now_ns() - before;
        if (took > longest) longest = took;
        check_patience(start, PATIENCE);
    }
    CHECK(memcmp(p.at_b.shows, p.at_a.shows, GPU) == 0);
    CHECK(longest < UINT64_C(500000000));
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

/* A context that is gone fails what it was to do; nothing is taken for done. */
static void test_a_lost_context(void) {
    static pair p;
    static watched w, slow;
    gpus_open(&p, "64");
    warm_up(&p);
    setenv("FAKE_CUDA_COPY_US", "1500000", 1);
    pplx_work_request request = write_of(&p, &slow, 8, 1);
    CHECK_EQ(post(&p.a, NULL, &request), PPLX_OK);
    run_for(&p.a, &p.b, 0.05);
    CHECK_EQ(slow.completions, 0);
    setenv("FAKE_CUDA_FAIL", "cuCtxPushCurrent_v2:709", 1);
    request = request_of(&p.a, PLAIN, &p.b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 2);
    request.remote_key = p.at_b.key.key; /* from the host */
    CHECK_EQ(perform(&p.a, &p.b, &request), PPLX_LOCAL_ACCESS);
    const uint64_t start = check_now_ns();
    CHECK_EQ(wait_for(&p.a, &p.b, &slow), PPLX_LOCAL_ACCESS);
    CHECK(check_now_ns() - start < UINT64_C(1000000000));
    unsetenv("FAKE_CUDA_FAIL");
    unsetenv("FAKE_CUDA_COPY_US");
    run_for(&p.a, &p.b, 1.7); /* this libcuda's stream knows nothing of that, and copies */
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

int main(void) {
    load();
    RUN(test_late_immediates);
    RUN(test_what_the_sender_has_left);
    RUN(test_goodbye_comes_after_the_stream);
    RUN(test_a_revoke_that_takes_its_time);
    RUN(test_what_can_not_be_staged);
    RUN(test_a_lost_context);
    RUN(test_a_message_whose_region_is_closed);
    return check_done();
}
