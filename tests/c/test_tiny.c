/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A provider outside the core, loaded as users load theirs. usage: test_tiny PATH/tiny_provider.so */
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#define PPLX_TESTS_DEVICE "tiny0"
#include "loopback_sides.h"

static void it_describes_itself(void) {
    CHECK_EQ(provider->size, sizeof(pplx_provider));
    CHECK_EQ(provider->abi, PPLX_PROVIDER_ABI);
    CHECK(strcmp(provider->name, "tiny") == 0);
    pplx_device device;
    pplx_error error = {0};
    pplx_caps caps;
    size_t count = 0;
    CHECK_EQ(provider->discover(NULL, 0, &device, 1, &count, &error), PPLX_OK);
    CHECK(count == 1 && strcmp(device.name, "tiny0") == 0);
    pplx_option unknown = {"colour", "red"};
    pplx_provider_domain *domain;
    CHECK_EQ(provider->domain_open("tiny0", &unknown, 1, &domain, &error), PPLX_INVALID);
    CHECK_EQ(provider->domain_open("tiny1", NULL, 0, &domain, &error), PPLX_UNAVAILABLE);
    CHECK(error.text[0] != '\0');
    side a;
    side_open(&a, "tiny0", "node=1", 64);
    provider->domain_caps(a.domain, &caps);
    CHECK_EQ(caps.flags, PPLX_CAP_READ | PPLX_CAP_FENCE); /* no wait fd */
    CHECK_EQ(provider->wait_fd(a.domain), -1);
    side_close(&a);
}

static void it_writes_reads_and_sends(void) {
    side a, b;
    pplx_op ops[2];
    pplx_error error;
    pplx_completion done;
    side_open(&a, "tiny0", "", 100000);
    side_open(&b, "tiny0", "", 100000);
    fill(a.buffer, a.nbytes, 1);
    pplx_work_request write = request(&a, &b, PPLX_WRITE_IMM, &ops[0], 5, 9, 50000);
    write.imm = 0xdeadbeef;
    CHECK_EQ(post_one(&a, &write), PPLX_AGAIN); /* not connected */
    CHECK_EQ(provider->endpoint_connect(a.endpoint, "hostile", 8, &error), PPLX_PEER_LOST);
    CHECK_EQ(provider->endpoint_connect(a.endpoint, "", 0, &error), PPLX_INVALID);
    side_connect(&a, &b, &error);
    CHECK_EQ(post_one(&a, &write), PPLX_OK);
    wait_op(&a, &ops[0], PPLX_OK);
    CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
    CHECK(done.kind == PPLX_COMPLETION_IMM && done.imm == 0xdeadbeef && !done.op);
    CHECK(memcmp(b.buffer + 9, a.buffer + 5, 50000) == 0);
    pplx_work_request read = request(&b, &a, PPLX_READ, &ops[0], 0, 0, 100000);
    CHECK_EQ(post_one(&b, &read), PPLX_OK);
    wait_op(&b, &ops[0], PPLX_OK);
    CHECK(memcmp(a.buffer, b.buffer, 100000) == 0);

    pplx_work_request send = request(&a, NULL, PPLX_SEND, &ops[0], 0, 0, 300);
    pplx_work_request receive = request(&b, NULL, PPLX_RECV, &ops[1], 0, 0, 400);
    for (int order = 0; order < 2; order++) {
        CHECK_EQ(order ? post_one(&a, &send) : post_one(&b, &receive), PPLX_OK);
        CHECK_EQ(provider->poll(a.domain, &done, 1), 0);
        CHECK_EQ(order ? post_one(&b, &receive) : post_one(&a, &send), PPLX_OK);
        wait_op(&a, &ops[0], PPLX_OK);
        CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
        CHECK(done.op == &ops[1] && done.nbytes == 300 && done.status == PPLX_OK);
    }
    receive.nbytes = 299;
    CHECK_EQ(post_one(&b, &receive), PPLX_OK);
    CHECK_EQ(post_one(&a, &send), PPLX_OK);
    wait_op(&b, &ops[1], PPLX_TRUNCATED);
    wait_op(&a, &ops[0], PPLX_OK);
    pair_close(&a, &b);
}

static void it_checks_and_fences(void) {
    side a, b;
    pplx_op op;
    pair_open(&a, &b, "", 4096);
    memset(a.buffer, 1, a.nbytes);
    pplx_work_request good = request(&a, &b, PPLX_WRITE_IMM, &op, 0, 0, 64), bad;
    bad = good, bad.remote_key++;
    CHECK_EQ(post_one(&a, &bad), PPLX_OK);
    wait_op(&a, &op, PPLX_REMOTE_ACCESS);
    bad = good, bad.remote_address += 4096 - 63;
    CHECK_EQ(post_one(&a, &bad), PPLX_OK);
    wait_op(&a, &op, PPLX_REMOTE_ACCESS);
    bad = good, bad.local_mr = b.mr;
    CHECK_EQ(post_one(&a, &bad), PPLX_OK);
    wait_op(&a, &op, PPLX_LOCAL_ACCESS);
    bad = good, bad.nbytes = 2 << 20;
    CHECK_EQ(post_one(&a, &bad), PPLX_TOO_LARGE);
    CHECK_EQ(provider->mr_close(b.mr), PPLX_OK);
    b.mr = NULL;
    CHECK_EQ(post_one(&a, &good), PPLX_OK);
    wait_op(&a, &op, PPLX_REMOTE_ACCESS);
    pplx_work_request send = request(&a, NULL, PPLX_SEND, &op, 0, 0, 64);
    CHECK_EQ(post_one(&a, &send), PPLX_OK);
    CHECK_EQ(provider->endpoint_close(b.endpoint), PPLX_OK);
    b.endpoint = NULL;
    wait_op(&a, &op, PPLX_PEER_LOST);
    CHECK_EQ(post_one(&a, &good), PPLX_OK);
    wait_op(&a, &op, PPLX_PEER_LOST);
    CHECK(all(b.buffer, b.nbytes, 0));
    pair_close(&a, &b);
}

/* Immediates both ways, each side polling in a thread of its own: each arrives once. */
enum { WRITES = 50000 };

typedef struct half {
    side side;
    struct half *peer;
    uint8_t seen[WRITES];
} half;

static void *run_half(void *argument) {
    half *self = argument;
    pplx_op ops[8]; /* reused while in flight: this provider keeps nothing in them, and we match nothing */
    size_t posted = 0, completed = 0, arrived = 0;
    for (uint64_t start = check_now_ns(); completed < WRITES || arrived < WRITES;) {
        check_patience(start, 60);
        pplx_work_request batch[8];
        size_t count = WRITES - posted < 8 ? WRITES - posted : 8, taken;
        int32_t native;
        for (size_t i = 0; i < count; i++) {
            batch[i] = request(&self->side, &self->peer->side, PPLX_WRITE_IMM, &ops[i], 0, 64, 8);
            batch[i].imm = (uint32_t)(posted + i);
        }
        pplx_status status = provider->post(self->side.endpoint, batch, count, &taken, &native);
        CHECK(status == PPLX_OK ? taken == count : status == PPLX_AGAIN && taken < count);
        posted += taken;
        pplx_completion done[16];
        size_t n = provider->poll(self->side.domain, done, 16);
        for (size_t i = 0; i < n; i++) {
            CHECK_EQ(done[i].status, PPLX_OK);
            if (done[i].kind == PPLX_COMPLETION_IMM)
                self->seen[done[i].imm]++, arrived++;
            else
                completed++;
        }
        if (n == 0) sched_yield();
    }
    return NULL;
}

static void it_serves_two_threads(void) {
    static half halves[2];
    pthread_t threads[2];
    pair_open(&halves[0].side, &halves[1].side, "", 4096);
    halves[0].peer = &halves[1], halves[1].peer = &halves[0];
    for (int i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, run_half, &halves[i]), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK(all(halves[0].seen, WRITES, 1) && all(halves[1].seen, WRITES, 1));
    pair_close(&halves[0].side, &halves[1].side);
}

int main(int count, char **arguments) {
    if (count != 2) {
        printf("usage: test_tiny PATH/tiny_provider.so\n");
        return 77; /* skipped */
    }
    void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
    if (!library) check_failed(__FILE__, __LINE__, dlerror());
    pplx_provider_entry_fn entry = (pplx_provider_entry_fn)dlsym(library, PPLX_PROVIDER_ENTRY);
    CHECK(entry);
    provider = entry();
    RUN(it_describes_itself);
    RUN(it_writes_reads_and_sends);
    RUN(it_checks_and_fences);
    RUN(it_serves_two_threads);
    dlclose(library);
    return check_done();
}
