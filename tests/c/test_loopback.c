/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The loopback provider against the contract in provider.h. One thread drives both domains, so that
 * every step is known; test_loopback_threads.c has a thread for each, test_loopback_faults.c the
 * options and fault plans. */
#include "loopback_sides.h"

/* ------------------------------------------------------------------ devices */

static void discovers_eight_devices(void) {
    pplx_device devices[10];
    pplx_error error = {0};
    size_t count = 0;
    CHECK_EQ(provider->discover(NULL, 0, NULL, 0, &count, &error), PPLX_OK);
    CHECK_EQ(count, 8);
    CHECK_EQ(provider->discover(NULL, 0, devices, 10, &count, &error), PPLX_OK);
    CHECK_EQ(count, 8);
    CHECK(strcmp(devices[7].name, "loop7") == 0 && strcmp(devices[0].provider, "loopback") == 0);
    pplx_option misspelt = {"sead", "1"};
    CHECK_EQ(provider->discover(&misspelt, 1, devices, 10, &count, &error), PPLX_INVALID);
    CHECK(strstr(error.text, "sead"));

    pplx_provider_domain *domain;
    const char *no_devices[] = {"", "loop", "loop8", "loop10", "lo", "loop/"};
    for (size_t i = 0; i < sizeof no_devices / sizeof *no_devices; i++) {
        error = (pplx_error){0};
        CHECK_EQ(provider->domain_open(no_devices[i], NULL, 0, &domain, &error), PPLX_UNAVAILABLE);
        CHECK_EQ(error.status, PPLX_UNAVAILABLE);
        CHECK(error.text[0] != '\0');
    }
}

/* ------------------------------------------------------------------ the operations */

static void write_read_and_immediates(void) {
    side a, b;
    pair_open(&a, &b, "", 1 << 20);
    pplx_op ops[4];
    pplx_completion done;
    fill(a.buffer, a.nbytes, 1);

    const size_t sizes[] = {1, 8, 4096, 16384, 16385, 100000, (1 << 20) - 64};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        memset(b.buffer, 0, b.nbytes);
        pplx_work_request write = request(&a, &b, PPLX_WRITE, &ops[0], 64, 32, sizes[i]);
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        CHECK_EQ(b.buffer[32], 0); /* deferred: post() copies nothing */
        wait_op(&a, &ops[0], PPLX_OK);
        CHECK(memcmp(b.buffer + 32, a.buffer + 64, sizes[i]) == 0);
        CHECK(all(b.buffer, 32, 0) && all(b.buffer + 32 + sizes[i], b.nbytes - 32 - sizes[i], 0));
        CHECK_EQ(provider->poll(b.domain, &done, 1), 0); /* one-sided: nothing is told there */

        memset(b.buffer, 0, b.nbytes);
        write = request(&a, &b, PPLX_WRITE_IMM, &ops[1], 64, 32, sizes[i]);
        write.imm = 0xfedcba98u + (uint32_t)i;
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        wait_op(&a, &ops[1], PPLX_OK);
        CHECK(memcmp(b.buffer + 32, a.buffer + 64, sizes[i]) == 0);
        CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
        CHECK_EQ(done.kind, PPLX_COMPLETION_IMM);
        CHECK_EQ(done.imm, 0xfedcba98u + (uint32_t)i);
        CHECK(done.op == NULL && done.status == PPLX_OK);

        memset(b.buffer, 0, b.nbytes);
        pplx_work_request read = request(&b, &a, PPLX_READ, &ops[2], 7, 64, sizes[i]);
        CHECK_EQ(post_one(&b, &read), PPLX_OK);
        wait_op(&b, &ops[2], PPLX_OK);
        CHECK(memcmp(b.buffer + 7, a.buffer + 64, sizes[i]) == 0);
        CHECK_EQ(provider->poll(a.domain, &done, 1), 0);
    }
    /* An immediate alone, at the region's last byte and right behind it. */
    for (uint32_t i = 0; i < 2; i++) {
        pplx_work_request only = request(&a, &b, PPLX_WRITE_IMM, &ops[3], 0, b.nbytes - 1 + i, 0);
        only.imm = i;
        CHECK_EQ(post_one(&a, &only), PPLX_OK);
        wait_op(&a, &ops[3], PPLX_OK);
        CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
        CHECK_EQ(done.imm, i);
    }
    pair_close(&a, &b);
}

static void send_waits_for_a_receive(void) {
    side a, b;
    pair_open(&a, &b, "", 1 << 20);
    pplx_op sends[3], receives[3];
    pplx_completion done;
    fill(a.buffer, a.nbytes, 2);
    const size_t sizes[] = {0, 100, 200000};
    for (size_t i = 0; i < 3; i++) {
        pplx_work_request send = request(&a, NULL, PPLX_SEND, &sends[i], 10, 0, sizes[i]);
        CHECK_EQ(post_one(&a, &send), PPLX_OK);
        for (int turn = 0; turn < 10; turn++) CHECK_EQ(provider->poll(a.domain, &done, 1), 0);
        pplx_work_request receive = request(&b, NULL, PPLX_RECV, &receives[i], 50, 0, 300000);
        CHECK_EQ(post_one(&b, &receive), PPLX_OK);
        wait_op(&a, &sends[i], PPLX_OK);
        CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
        CHECK(done.op == &receives[i] && done.kind == PPLX_COMPLETION_OP && done.status == PPLX_OK);
        CHECK_EQ(done.nbytes, sizes[i]);
        CHECK(memcmp(b.buffer + 50, a.buffer + 10, sizes[i]) == 0);
    }
    /* Too large: the receiver is told, and nothing is written. A RECV may be posted first. */
    memset(b.buffer, 0, b.nbytes);
    pplx_work_request receive = request(&b, NULL, PPLX_RECV, &receives[0], 0, 0, 99);
    pplx_work_request send = request(&a, NULL, PPLX_SEND, &sends[0], 0, 0, 100);
    CHECK_EQ(post_one(&b, &receive), PPLX_OK);
    CHECK_EQ(post_one(&a, &send), PPLX_OK);
    wait_op(&a, &sends[0], PPLX_OK);
    wait_op(&b, &receives[0], PPLX_TRUNCATED);
    CHECK(all(b.buffer, b.nbytes, 0));
    pair_close(&a, &b);
}

static void nothing_passes_before_both_sides_connect(void) {
    side a, b;
    pplx_op op, receive_op;
    pplx_error error;
    side_open(&a, "loop0", "", 4096);
    side_open(&b, "loop1", "", 4096);
    pplx_work_request write = request(&a, &b, PPLX_WRITE, &op, 0, 0, 8);
    pplx_work_request receive = request(&a, NULL, PPLX_RECV, &receive_op, 0, 0, 8);
    CHECK_EQ(post_one(&a, &receive), PPLX_OK); /* accepted from the start */
    CHECK_EQ(post_one(&a, &write), PPLX_AGAIN);
    CHECK_EQ(provider->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_OK);
    CHECK_EQ(post_one(&a, &write), PPLX_AGAIN);

    /* The other side's connect rings, so that a refused post is tried again at once. */
    pplx_completion done;
    CHECK_EQ(provider->poll(a.domain, &done, 1), 0);
    CHECK_EQ(provider->arm(a.domain), PPLX_OK);
    CHECK(!readable(&a, 0));
    CHECK_EQ(provider->endpoint_connect(b.endpoint, a.address, a.naddress, &error), PPLX_OK);
    CHECK(readable(&a, 1000));
    CHECK_EQ(post_one(&a, &write), PPLX_OK);
    wait_op(&a, &op, PPLX_OK);

    error = (pplx_error){0};
    CHECK_EQ(provider->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_INVALID); /* twice */
    CHECK(error.text[0] != '\0');
    pair_close(&a, &b);
}

static void hostile_addresses_are_refused(void) {
    side a, b;
    pplx_error error;
    uint64_t random = 5;
    uint8_t bytes[PPLX_ADDRESS_BYTES];
    side_open(&a, "loop0", "", 4096);
    side_open(&b, "loop1", "", 4096);
    for (int i = 0; i < 20000; i++) {
        size_t n = check_random(&random) % (sizeof bytes + 1);
        for (size_t j = 0; j < sizeof bytes; j++) bytes[j] = (uint8_t)check_random(&random);
        if (i % 2) { /* near misses: the true address with a byte or the length changed */
            memcpy(bytes, b.address, b.naddress);
            n = b.naddress - (i % 4 == 1 ? 0 : 1 + check_random(&random) % b.naddress);
            bytes[check_random(&random) % b.naddress] ^= (uint8_t)(1 + check_random(&random) % 255);
        }
        error = (pplx_error){0};
        pplx_status status = provider->endpoint_connect(a.endpoint, bytes, n, &error);
        CHECK(status == PPLX_INVALID || status == PPLX_PEER_LOST);
        CHECK(error.status == status && error.text[0] != '\0');
    }
    size_t small = 3;
    pplx_provider_endpoint *endpoint;
    CHECK_EQ(provider->endpoint_open(a.domain, &endpoint, bytes, &small, &error), PPLX_INVALID);
    CHECK_EQ(provider->endpoint_close(b.endpoint), PPLX_OK);
    CHECK_EQ(provider->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_PEER_LOST);
    b.endpoint = NULL;
    side_close(&b);
    side_close(&a);
}

static void keys_ranges_and_access_are_checked(void) {
    side a, b;
    pair_open(&a, &b, "", 8192);
    pplx_op op;
    pplx_error error;
    pplx_completion done;
    fill(a.buffer, a.nbytes, 3);
    memset(b.buffer, 0, b.nbytes);
    const uint32_t opcodes[] = {PPLX_WRITE, PPLX_WRITE_IMM, PPLX_READ};
    for (size_t i = 0; i < 3; i++) {
        pplx_work_request good = request(&a, &b, opcodes[i], &op, 0, 0, 64), bad;
        bad = good, bad.remote_key ^= 1;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
        bad = good, bad.remote_key = a.key.key; /* ours, not the peer's */
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
        bad = good, bad.remote_address = b.key.base - 1;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
        bad = good, bad.remote_address = b.key.base + b.nbytes - 63;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
        bad = good, bad.remote_address = UINT64_MAX - 10; /* wraps */
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
        bad = good, bad.nbytes = 0, bad.remote_key = 0; /* no target-less immediate */
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
        bad = good, bad.nbytes = 0, bad.remote_address = b.key.base + b.nbytes + 1;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
    }
    CHECK(all(b.buffer, b.nbytes, 0));
    CHECK_EQ(provider->poll(b.domain, &done, 1), 0);

    /* Each access bit opens its own direction only. */
    for (uint32_t access = 0; access < 4; access++) {
        pplx_provider_mr *mr;
        pplx_remote_key key;
        pplx_memory memory = {.device = -1, .address = (uint64_t)(uintptr_t)b.buffer, .nbytes = 4096};
        CHECK_EQ(provider->mr_open(b.domain, &memory, access, &mr, &key, &error), PPLX_OK);
        pplx_work_request write = request(&a, &b, PPLX_WRITE, &op, 0, 0, 8);
        write.remote_key = key.key;
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        wait_op(&a, &op, access & PPLX_ACCESS_REMOTE_WRITE ? PPLX_OK : PPLX_REMOTE_ACCESS);
        write.opcode = PPLX_READ;
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        wait_op(&a, &op, access & PPLX_ACCESS_REMOTE_READ ? PPLX_OK : PPLX_REMOTE_ACCESS);
        CHECK_EQ(provider->mr_close(mr), PPLX_OK);
        CHECK_EQ(post_one(&a, &write), PPLX_OK); /* the key is dead */
        wait_op(&a, &op, PPLX_REMOTE_ACCESS);
    }
    pair_close(&a, &b);
}

static void registration_is_checked(void) {
    side a;
    pplx_error error;
    pplx_provider_mr *mr;
    pplx_remote_key key;
    side_open(&a, "loop0", "fail_registration=4", 4096); /* its own is the first */
    pplx_memory memory = {.device = -1, .address = (uint64_t)(uintptr_t)a.buffer, .nbytes = 64};
    pplx_memory bad = memory;
    bad.kind = PPLX_MEMORY_CUDA;
    CHECK_EQ(provider->mr_open(a.domain, &bad, 0, &mr, &key, &error), PPLX_REGISTRATION);
    bad = memory, bad.nbytes = 0;
    CHECK_EQ(provider->mr_open(a.domain, &bad, 0, &mr, &key, &error), PPLX_INVALID);
    bad = memory, bad.nbytes = UINT64_MAX;
    CHECK_EQ(provider->mr_open(a.domain, &bad, 0, &mr, &key, &error), PPLX_INVALID);
    CHECK_EQ(provider->mr_open(a.domain, &memory, 8, &mr, &key, &error), PPLX_INVALID);
    for (int i = 2; i <= 5; i++) { /* only the fourth is refused */
        error = (pplx_error){0};
        CHECK_EQ(provider->mr_open(a.domain, &memory, 0, &mr, &key, &error), i == 4 ? PPLX_REGISTRATION : PPLX_OK);
        if (i == 4) CHECK(strstr(error.text, "fail_registration"));
        if (i != 4) CHECK_EQ(provider->mr_close(mr), PPLX_OK);
    }
    side_close(&a);
}

static void many_regions_have_unlike_keys(void) {
    enum { REGIONS = 3000 };
    side a, b;
    pair_open(&a, &b, "", REGIONS * 8);
    static pplx_provider_mr *mrs[REGIONS];
    static pplx_remote_key keys[REGIONS];
    pplx_error error;
    pplx_op op;
    uint64_t value, ones = 0;
    for (size_t i = 0; i < REGIONS; i++) {
        pplx_memory memory = {.device = -1, .address = (uint64_t)(uintptr_t)b.buffer + 8 * i, .nbytes = 8};
        CHECK_EQ(provider->mr_open(b.domain, &memory, PPLX_ACCESS_REMOTE_WRITE, &mrs[i], &keys[i], &error), PPLX_OK);
        CHECK_EQ(keys[i].base, memory.address);
        ones += (uint64_t)__builtin_popcountll(keys[i].key);
    }
    CHECK(ones > REGIONS * 30ull && ones < REGIONS * 34ull); /* 64 random bits: 32 ones, give or take */
    for (size_t i = 0; i < REGIONS; i += 2) CHECK_EQ(provider->mr_close(mrs[i]), PPLX_OK);
    for (size_t i = 0; i < REGIONS; i++) {
        value = i;
        memcpy(a.buffer, &value, 8);
        pplx_work_request write = request(&a, &b, PPLX_WRITE, &op, 0, 8 * i, 8);
        write.remote_key = keys[i].key;
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        wait_op(&a, &op, i % 2 ? PPLX_OK : PPLX_REMOTE_ACCESS);
        if (i % 2) CHECK(memcmp(b.buffer + 8 * i, &value, 8) == 0);
    }
    for (size_t i = 1; i < REGIONS; i += 2) CHECK_EQ(provider->mr_close(mrs[i]), PPLX_OK);
    pair_close(&a, &b);
}

static void local_memory_must_be_registered(void) {
    side a, b;
    pair_open(&a, &b, "", 8192);
    pplx_op ops[3];
    pplx_completion done;
    memset(b.buffer, 0, b.nbytes);
    memset(a.buffer, 1, a.nbytes);
    for (uint32_t opcode = PPLX_WRITE; opcode <= PPLX_RECV; opcode++) {
        pplx_work_request good = request(&a, &b, opcode, &ops[0], 0, 0, 64), bad;
        bad = good, bad.local_mr = NULL;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &ops[0], PPLX_LOCAL_ACCESS);
        bad = good, bad.local_mr = b.mr; /* another domain's */
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &ops[0], PPLX_LOCAL_ACCESS);
        bad = good, bad.local_address += a.nbytes - 63;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &ops[0], PPLX_LOCAL_ACCESS);
        bad = good, bad.local_address -= 1;
        CHECK_EQ(post_one(&a, &bad), PPLX_OK);
        wait_op(&a, &ops[0], PPLX_LOCAL_ACCESS);
    }
    CHECK(all(b.buffer, b.nbytes, 0));

    /* Closed while something waits to use it: that ends, and touches nothing. */
    pplx_error error;
    pplx_provider_mr *mr;
    pplx_remote_key key;
    pplx_memory memory = {.device = -1, .address = (uint64_t)(uintptr_t)a.buffer, .nbytes = 4096};
    CHECK_EQ(provider->mr_open(a.domain, &memory, 0, &mr, &key, &error), PPLX_OK);
    pplx_work_request requests[3] = {request(&a, &b, PPLX_SEND, &ops[0], 0, 0, 64),
                                     request(&a, &b, PPLX_WRITE_IMM, &ops[1], 0, 0, 64),
                                     request(&a, &b, PPLX_RECV, &ops[2], 0, 0, 64)};
    for (int i = 0; i < 3; i++) requests[i].local_mr = mr;
    CHECK_EQ(post_one(&a, &requests[0]), PPLX_OK);
    CHECK_EQ(provider->poll(a.domain, &done, 1), 0); /* the SEND is blocked now */
    CHECK_EQ(post_one(&a, &requests[1]), PPLX_OK);
    CHECK_EQ(post_one(&a, &requests[2]), PPLX_OK);
    CHECK_EQ(provider->mr_close(mr), PPLX_OK);
    unsigned seen = 0;
    for (int i = 0; i < 3; i++) {
        done = wait_any(&a);
        CHECK_EQ(done.status, PPLX_LOCAL_ACCESS);
        seen |= 1u << (done.op - ops);
    }
    CHECK_EQ(seen, 7);
    CHECK_EQ(provider->poll(b.domain, &done, 1), 0);
    CHECK(all(b.buffer, b.nbytes, 0));
    pair_close(&a, &b);
}

static void post_takes_what_fits(void) {
    side a, b;
    pair_open(&a, &b, "max_inflight=4 max_message=1000", 8192);
    pplx_op ops[8];
    pplx_work_request requests[8];
    pplx_completion done[16];
    size_t posted;
    int32_t native;
    for (size_t i = 0; i < 8; i++) requests[i] = request(&a, &b, PPLX_WRITE, &ops[i], 8 * i, 8 * i, 8);
    CHECK_EQ(provider->post(a.endpoint, requests, 8, &posted, &native), PPLX_AGAIN);
    CHECK_EQ(posted, 4);
    CHECK_EQ(provider->post(a.endpoint, requests + 4, 4, &posted, &native), PPLX_AGAIN);
    CHECK_EQ(posted, 0);
    CHECK_EQ(provider->poll(a.domain, done, 2), 2);
    CHECK_EQ(provider->post(a.endpoint, requests + 4, 4, &posted, &native), PPLX_AGAIN);
    CHECK_EQ(posted, 2);
    for (size_t n = 0; n < 4;) n += provider->poll(a.domain, done, 16);
    CHECK_EQ(provider->post(a.endpoint, requests, 0, &posted, &native), PPLX_OK);

    /* RECVs have as many places of their own. */
    for (size_t i = 0; i < 8; i++) requests[i].opcode = PPLX_RECV;
    CHECK_EQ(provider->post(b.endpoint, requests, 8, &posted, &native), PPLX_AGAIN);
    CHECK_EQ(posted, 4);

    /* Refused for good: says why, and what came before it is taken. */
    for (size_t i = 0; i < 8; i++) requests[i] = request(&a, &b, PPLX_WRITE, &ops[i], 8 * i, 8 * i, 8);
    requests[1].nbytes = 1001;
    CHECK_EQ(provider->post(a.endpoint, requests, 3, &posted, &native), PPLX_TOO_LARGE);
    CHECK_EQ(posted, 1);
    requests[1] = requests[2], requests[1].opcode = 9;
    CHECK_EQ(provider->post(a.endpoint, requests + 1, 2, &posted, &native), PPLX_INVALID);
    CHECK_EQ(posted, 0);
    requests[1] = requests[2], requests[1].op = NULL;
    CHECK_EQ(provider->post(a.endpoint, requests + 1, 2, &posted, &native), PPLX_INVALID);
    wait_op(&a, &ops[0], PPLX_OK);
    pair_close(&a, &b);
}

static void a_domain_may_write_to_itself(void) {
    side a;
    pplx_error error;
    pplx_op op, receive_op;
    side_open(&a, "loop3", "", 1 << 20);
    CHECK_EQ(provider->endpoint_connect(a.endpoint, a.address, a.naddress, &error), PPLX_OK); /* even an endpoint */
    fill(a.buffer, a.nbytes, 4);
    uint8_t expected[1000];
    memcpy(expected, a.buffer, sizeof expected);
    pplx_work_request write = request(&a, &a, PPLX_WRITE_IMM, &op, 0, 500000, 400000);
    CHECK_EQ(post_one(&a, &write), PPLX_OK);
    unsigned ends = 0;
    for (int i = 0; i < 2; i++) ends += 1 + wait_any(&a).kind;
    CHECK_EQ(ends, 3); /* its completion and the immediate */
    CHECK(memcmp(a.buffer, a.buffer + 500000, 400000) == 0);
    write = request(&a, &a, PPLX_WRITE, &op, 0, 1, sizeof expected); /* overlapping */
    CHECK_EQ(post_one(&a, &write), PPLX_OK);
    wait_op(&a, &op, PPLX_OK);
    CHECK(memcmp(a.buffer + 1, expected, sizeof expected) == 0);
    pplx_work_request receive = request(&a, NULL, PPLX_RECV, &receive_op, 0, 0, 64);
    pplx_work_request send = request(&a, NULL, PPLX_SEND, &op, 64, 0, 64);
    CHECK_EQ(post_one(&a, &send), PPLX_OK);
    pplx_completion done;
    CHECK_EQ(provider->poll(a.domain, &done, 1), 0);
    CHECK_EQ(post_one(&a, &receive), PPLX_OK);
    CHECK_EQ(wait_any(&a).status, PPLX_OK);
    CHECK_EQ(wait_any(&a).status, PPLX_OK);
    CHECK_EQ(post_one(&a, &send), PPLX_OK); /* in flight at the close */
    side_close(&a);

    side b; /* two endpoints of one domain */
    uint8_t address[PPLX_ADDRESS_BYTES];
    size_t naddress = sizeof address;
    pplx_provider_endpoint *other;
    side_open(&b, "loop3", "", 8192);
    CHECK_EQ(provider->endpoint_open(b.domain, &other, address, &naddress, &error), PPLX_OK);
    CHECK_EQ(provider->endpoint_connect(b.endpoint, address, naddress, &error), PPLX_OK);
    CHECK_EQ(provider->endpoint_connect(other, b.address, b.naddress, &error), PPLX_OK);
    write = request(&b, &b, PPLX_WRITE, &op, 0, 4096, 4096);
    CHECK_EQ(post_one(&b, &write), PPLX_OK);
    wait_op(&b, &op, PPLX_OK);
    CHECK_EQ(post_one(&b, &write), PPLX_OK);
    CHECK_EQ(provider->endpoint_close(other), PPLX_OK);
    wait_op(&b, &op, PPLX_PEER_LOST);
    side_close(&b);
}

static void immediates_press_back_and_none_is_lost(void) {
    enum { WRITES = 20000 };
    side a, b;
    pair_open(&a, &b, "max_inflight=65536", 4096);
    static pplx_op ops[WRITES];
    static uint8_t seen[WRITES];
    pplx_completion done[64];
    size_t completed = 0, arrived = 0, n;
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < WRITES; i++) {
        pplx_work_request write = request(&a, &b, PPLX_WRITE_IMM, &ops[i], 0, 0, 0);
        write.imm = i;
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
    }
    for (int turn = 0; turn < 2000; turn++) completed += provider->poll(a.domain, done, 64);
    CHECK(completed > 1000 && completed < WRITES); /* the peer doesn't poll: it can't take them all */
    CHECK_EQ(provider->arm(a.domain), PPLX_OK);    /* what is held up needs no polling */
    CHECK(!readable(&a, 0));
    while (arrived < completed) {
        CHECK((n = provider->poll(b.domain, done, 64)) > 0);
        for (size_t i = 0; i < n; i++) seen[done[i].imm]++;
        arrived += n;
    }
    CHECK(readable(&a, 1000)); /* room again: rung */
    uint64_t start = check_now_ns();
    while (arrived < WRITES || completed < WRITES) {
        check_patience(start, 20);
        completed += provider->poll(a.domain, done, 64);
        n = provider->poll(b.domain, done, 64);
        for (size_t i = 0; i < n; i++) seen[done[i].imm]++;
        arrived += n;
    }
    CHECK(all(seen, WRITES, 1));
    pair_close(&a, &b);
}

/* ------------------------------------------------------------------ closing */

static void close_flushes_ours_and_loses_the_peers(void) {
    side a, b;
    pair_open(&a, &b, "", 1 << 20);
    pplx_op ops[6], receive_op;
    pplx_completion done;
    memset(b.buffer, 0, b.nbytes);
    memset(a.buffer, 1, a.nbytes);
    pplx_work_request receive = request(&a, NULL, PPLX_RECV, &receive_op, 0, 0, 64);
    pplx_work_request executed = request(&a, &b, PPLX_WRITE_IMM, &ops[0], 0, 0, 8);
    pplx_work_request other = request(&a, &b, PPLX_WRITE, &ops[4], 0, 0, 8);
    pplx_work_request queued = request(&a, &b, PPLX_WRITE, &ops[1], 0, 8, 8);
    pplx_work_request blocked = request(&b, NULL, PPLX_SEND, &ops[2], 0, 0, 65);
    pplx_work_request late = request(&b, &a, PPLX_WRITE, &ops[3], 0, 0, 8);
    CHECK_EQ(post_one(&a, &executed), PPLX_OK);
    CHECK_EQ(post_one(&a, &other), PPLX_OK);
    CHECK_EQ(provider->poll(a.domain, &done, 1), 1); /* both executed, one reported, one to be dropped */
    CHECK_EQ(post_one(&a, &queued), PPLX_OK);
    CHECK_EQ(post_one(&b, &blocked), PPLX_OK);
    CHECK_EQ(provider->poll(b.domain, &done, 1), 1); /* a's immediate; the SEND is blocked */
    CHECK_EQ(done.kind, PPLX_COMPLETION_IMM);
    CHECK_EQ(post_one(&a, &receive), PPLX_OK);
    CHECK_EQ(provider->poll(b.domain, &done, 1), 1); /* into a's RECV: truncated there */
    CHECK_EQ(post_one(&b, &blocked), PPLX_OK);
    CHECK_EQ(provider->poll(b.domain, &done, 1), 0);
    CHECK_EQ(provider->arm(b.domain), PPLX_OK);

    CHECK_EQ(provider->endpoint_close(a.endpoint), PPLX_OK);
    a.endpoint = NULL;
    for (int i = 0; i < 10; i++) CHECK_EQ(provider->poll(a.domain, &done, 1), 0); /* nothing of it is ever reported */
    CHECK(all(b.buffer + 8, 8, 0));
    CHECK(readable(&b, 1000)); /* b's blocked SEND ends without anybody polling b for it */
    wait_op(&b, &ops[2], PPLX_PEER_LOST);
    CHECK_EQ(post_one(&b, &late), PPLX_OK);
    wait_op(&b, &ops[3], PPLX_PEER_LOST);
    CHECK(all(a.buffer, a.nbytes, 1));
    pair_close(&a, &b);

    /* The peer goes before it has named us: still lost, not "again" for ever. */
    pplx_error error;
    side_open(&a, "loop0", "", 4096);
    side_open(&b, "loop1", "", 4096);
    CHECK_EQ(provider->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_OK);
    CHECK_EQ(provider->arm(a.domain), PPLX_OK);
    pplx_work_request write = request(&a, &b, PPLX_WRITE, &ops[0], 0, 0, 8);
    side_close(&b);
    CHECK(readable(&a, 1000));
    CHECK_EQ(post_one(&a, &write), PPLX_OK);
    wait_op(&a, &ops[0], PPLX_PEER_LOST);
    side_close(&a);
}

/* ------------------------------------------------------------------ waking */

static void arm_sees_whatever_there_is(void) {
    side a, b;
    pair_open(&a, &b, "", 4096);
    pplx_op op, receive_op;
    pplx_completion done;
    pplx_work_request write = request(&a, &b, PPLX_WRITE_IMM, &op, 0, 0, 8);
    pplx_work_request receive = request(&b, NULL, PPLX_RECV, &receive_op, 0, 0, 8);
    pplx_work_request send = request(&a, NULL, PPLX_SEND, &op, 0, 0, 8);
    while (provider->poll(a.domain, &done, 1) + provider->poll(b.domain, &done, 1) > 0) continue;
    int fd = provider->wait_fd(b.domain);
    for (int round = 0; round < 3; round++) {
        CHECK_EQ(provider->arm(a.domain), PPLX_OK);
        CHECK_EQ(provider->arm(b.domain), PPLX_OK);
        CHECK(!readable(&a, 0) && !readable(&b, 0));
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        CHECK(readable(&a, 1000)); /* posted after arming: poll() has work */
        CHECK_EQ(provider->arm(a.domain), PPLX_AGAIN);
        wait_op(&a, &op, PPLX_OK);
        CHECK(readable(&b, 1000));
        CHECK_EQ(provider->arm(b.domain), PPLX_AGAIN); /* not polled yet */
        CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
        CHECK(!readable(&b, 0)); /* cleared */

        CHECK_EQ(post_one(&a, &send), PPLX_OK);
        CHECK_EQ(provider->poll(a.domain, &done, 1), 0);
        CHECK_EQ(provider->arm(a.domain), PPLX_OK); /* blocked by the peer: may sleep */
        CHECK_EQ(post_one(&b, &receive), PPLX_OK);
        CHECK(readable(&a, 1000)); /* which its RECV ends */
        CHECK_EQ(provider->arm(b.domain), PPLX_OK);
        wait_op(&a, &op, PPLX_OK);
        CHECK(readable(&b, 1000));
        wait_op(&b, &receive_op, PPLX_OK);
        CHECK_EQ(provider->wait_fd(b.domain), fd);

        /* Without an arm nobody is rung. */
        CHECK_EQ(post_one(&a, &write), PPLX_OK);
        wait_op(&a, &op, PPLX_OK);
        CHECK(!readable(&b, 0));
        CHECK_EQ(provider->poll(b.domain, &done, 1), 1);
    }
    pair_close(&a, &b);
}

int main(void) {
    RUN(discovers_eight_devices);
    RUN(write_read_and_immediates);
    RUN(send_waits_for_a_receive);
    RUN(nothing_passes_before_both_sides_connect);
    RUN(hostile_addresses_are_refused);
    RUN(keys_ranges_and_access_are_checked);
    RUN(registration_is_checked);
    RUN(many_regions_have_unlike_keys);
    RUN(local_memory_must_be_registered);
    RUN(post_takes_what_fits);
    RUN(a_domain_may_write_to_itself);
    RUN(immediates_press_back_and_none_is_lost);
    RUN(close_flushes_ours_and_loses_the_peers);
    RUN(arm_sees_whatever_there_is);
    return check_done();
}
