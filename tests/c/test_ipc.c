/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The provider contract on ipc, with both ends in this process. */
#include <sched.h>

#include "ipc_sides.h"

static const uint64_t sizes[] = {1, 8, 63, 64, 4096, 65536, 65537, 262144, 262145, 1 << 20, ARENA};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void test_options(void) {
    pplx_error error = {0};
    pplx_device device;
    size_t count = 9;
    CHECK_EQ(ipc->discover(NULL, 0, &device, 1, &count, &error), PPLX_OK);
    CHECK_EQ(count, 1);
    CHECK(strcmp(device.name, "host") == 0 && strcmp(device.provider, "ipc") == 0);
    static const pplx_option bad[] = {{"ring_slotz", "64"},
                                      {"ring_slots", "63"},
                                      {"ring_slots", ""},
                                      {"ring_slots", "-64"},
                                      {"ring_slots", "1"},
                                      {"staging_nbytes", "65537"},
                                      {"staging_nbytes", "4096"},
                                      {"staging_nbytes", "1e6"},
                                      {"ring_slots", "4294967296"},
                                      {"vm_writev", "yes"},
                                      {"vm_writev", ""},
                                      {"holders_ms", "-1"},
                                      {"gpu_ms", "-1"},
                                      {"gpu_ms", ""},
                                      {"gpu_ms", "1s"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        pplx_provider_domain *domain = NULL;
        CHECK_EQ(ipc->discover(&bad[i], 1, &device, 1, &count, &error), PPLX_INVALID);
        CHECK(strstr(error.text, bad[i].key));
        CHECK_EQ(ipc->domain_open("host", &bad[i], 1, &domain, &error), PPLX_INVALID);
        CHECK(!domain);
    }
    pplx_provider_domain *domain = NULL;
    CHECK_EQ(ipc->domain_open("lo", NULL, 0, &domain, &error), PPLX_UNAVAILABLE);
}

static void test_addresses(void) {
    side a;
    pplx_error error = {0};
    unsigned char bytes[PPLX_ADDRESS_BYTES];
    side_open(&a);
    size_t few = 8;
    CHECK_EQ(ipc->endpoint_open(a.domain, &a.endpoint, a.address, &few, &error), PPLX_INVALID);
    side_listen(&a);
    memset(bytes, 0xa5, sizeof bytes);
    CHECK_EQ(ipc->endpoint_connect(a.endpoint, bytes, a.address_nbytes, &error), PPLX_INVALID);
    memcpy(bytes, a.address, a.address_nbytes);
    CHECK_EQ(ipc->endpoint_connect(a.endpoint, bytes, a.address_nbytes, &error), PPLX_INVALID); /* itself */
    for (size_t n = 0; n < sizeof bytes; n++)
        if (n != a.address_nbytes) CHECK_EQ(ipc->endpoint_connect(a.endpoint, bytes, n, &error), PPLX_INVALID);
    bytes[8]++; /* version */
    CHECK_EQ(ipc->endpoint_connect(a.endpoint, bytes, a.address_nbytes, &error), PPLX_INVALID);
    bytes[8]--;
    bytes[a.address_nbytes - 1] ^= 1; /* another endpoint of the same domain, which does not exist */
    CHECK_EQ(ipc->endpoint_connect(a.endpoint, bytes, a.address_nbytes, &error), PPLX_OK);
    run_for(&a, NULL, 0.02);
    side_close(&a);

    /* Nobody listens there. Who has the smaller token calls, and knows at once. */
    side b;
    watched w;
    size_t posted;
    int32_t native;
    side_open(&b);
    side_listen(&b);
    memset(bytes + 16, 0xff, 32); /* the listener's name, and the largest token */
    CHECK_EQ(ipc->endpoint_connect(b.endpoint, bytes, b.address_nbytes, &error), PPLX_OK);
    pplx_work_request request = request_of(&b, MAPPED, &b, MAPPED, &w, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(ipc->post(b.endpoint, &request, 1, &posted, &native), PPLX_PEER_LOST);
    side_close(&b);
}

static void check_write_and_read(side *a, side *b, enum kind into) {
    for (size_t i = 0; i < SIZES; i++) {
        watched w;
        const uint64_t nbytes = sizes[i];
        fill(a->arena[PLAIN], nbytes, (unsigned)i + 1);
        memset(b->arena[into], 0, ARENA);
        pplx_work_request request = request_of(a, PLAIN, b, into, &w, PPLX_WRITE, 0, nbytes, 0);
        CHECK_EQ(perform(a, b, &request), PPLX_OK);
        CHECK(memcmp(a->arena[PLAIN], b->arena[into], nbytes) == 0);
        for (uint64_t at = nbytes; at < ARENA && at < nbytes + 4096; at++) CHECK(b->arena[into][at] == 0);
        fill(b->arena[into], nbytes, (unsigned)i + 77);
        request = request_of(a, PLAIN, b, into, &w, PPLX_READ, 0, nbytes, 0);
        CHECK_EQ(perform(a, b, &request), PPLX_OK);
        CHECK(memcmp(a->arena[PLAIN], b->arena[into], nbytes) == 0);
    }
    CHECK_EQ(a->nimms + b->nimms, 0);
}

static void test_write_and_read(void) {
    side a, b;
    pair_open(&a, &b);
    for (int into = 0; into < KINDS; into++) {
        check_write_and_read(&a, &b, (enum kind)into);
        check_write_and_read(&b, &a, (enum kind)into);
    }
    pair_close(&a, &b);
}

/* Large writes, and those of large requests, go past the cache, in lines: any start, any end, on both sides. */
static void test_odd_places(void) {
    side a, b;
    uint64_t random = 4;
    pair_open(&a, &b);
    fill(a.arena[PLAIN], ARENA, 1);
    for (int i = 0; i < 400; i++) {
        watched w;
        const bool bulk = i % 2 != 0; /* past the cache too, however small */
        const uint64_t nbytes = (bulk ? 0 : (256 << 10) - 70) + check_random(&random) % 140;
        const uint64_t from = check_random(&random) % 130, to = check_random(&random) % 130;
        memset(b.arena[MAPPED], 0, nbytes + 512);
        pplx_work_request request = request_of(&a, PLAIN, &b, MAPPED, &w, PPLX_WRITE, from, nbytes, 0);
        request.remote_address = b.key[MAPPED].base + to;
        request.flags = bulk ? PPLX_WORK_BULK : 0;
        CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
        CHECK(memcmp(b.arena[MAPPED] + to, a.arena[PLAIN] + from, nbytes) == 0);
        for (uint64_t at = 0; at < to; at++) CHECK(b.arena[MAPPED][at] == 0);
        for (uint64_t at = to + nbytes; at < nbytes + 512; at++) CHECK(b.arena[MAPPED][at] == 0);
    }
    pair_close(&a, &b);
}

static void test_immediates(void) {
    side a, b;
    pair_open(&a, &b);
    for (int into = 0; into < KINDS; into++) {
        for (size_t i = 0; i <= SIZES; i++) {
            watched w;
            const uint64_t nbytes = i == SIZES ? 0 : sizes[i];
            const uint32_t imm = 0xfedcba98u + (uint32_t)i;
            fill(a.arena[MAPPED], nbytes, (unsigned)i + 3);
            memset(b.arena[into], 0, nbytes);
            b.nimms = 0;
            pplx_work_request request = request_of(&a, MAPPED, &b, (enum kind)into, &w, PPLX_WRITE_IMM, 0, nbytes, imm);
            CHECK_EQ(post(&a, &b, &request), PPLX_OK);
            wait_imms(&b, &a, 1);
            CHECK_EQ(b.imms[0], imm);
            CHECK(memcmp(a.arena[MAPPED], b.arena[into], nbytes) == 0); /* the bytes came before */
            CHECK_EQ(wait_for(&a, &b, &w), PPLX_OK);
        }
        run_for(&a, &b, 0.005);
        CHECK_EQ(b.nimms, 1);
    }
    pair_close(&a, &b);
}

/* Who is woken learns on which CPU that happened. */
static void test_woken_from(void) {
    side a, b;
    watched w;
    pair_open(&a, &b);
    pplx_work_request request = request_of(&a, PLAIN, &b, MAPPED, &w, PPLX_WRITE_IMM, 0, 8, 1);
    CHECK_EQ(perform(&a, &b, &request), PPLX_OK); /* now it is mapped */
    wait_imms(&b, &a, 1);
    for (int tries = 0;; tries++) { /* the kernel may move us meanwhile */
        b.nimms = 0;
        while (ipc->arm(b.domain) != PPLX_OK) side_poll(&b);
        const int before = sched_getcpu();
        request = request_of(&a, PLAIN, &b, MAPPED, &w, PPLX_WRITE_IMM, 0, 8, 1);
        CHECK_EQ(perform(&a, NULL, &request), PPLX_OK);
        const int after = sched_getcpu(), told = ipc->woken_from(b.domain);
        wait_imms(&b, &a, 1);
        if (told == before || told == after) break;
        CHECK(tries < 10);
    }
    /* Nobody woke it: it is armed, so there is nothing to tell. */
    while (ipc->arm(b.domain) != PPLX_OK) side_poll(&b);
    CHECK_EQ(ipc->woken_from(b.domain), -1);
    pair_close(&a, &b);
}

/* Several segments are one work request, whichever way the bytes go: all are there when its immediate is. */
static void check_segments(side *a, side *b, enum kind into, uint32_t opcode, uint32_t count, uint64_t room) {
    static unsigned char before[ARENA];
    static uint64_t random = 7;
    pplx_segment segments[MOST_SEGMENTS];
    watched w;
    unsigned char *from = opcode == PPLX_READ ? b->arena[into] : a->arena[PLAIN];
    unsigned char *to = opcode == PPLX_READ ? a->arena[PLAIN] : b->arena[into];
    fill(from, ARENA, count);
    fill(to, ARENA, 100 + count);
    memcpy(before, to, ARENA);
    b->nimms = 0;
    pplx_work_request request = request_of(a, PLAIN, b, into, &w, opcode, 0, 0, count);
    scatter(&request, segments, count, room, &random);
    CHECK_EQ(post(a, b, &request), PPLX_OK);
    if (opcode == PPLX_WRITE_IMM) {
        wait_imms(b, a, 1);
        CHECK_EQ(b->imms[0], count);
        check_scattered(&request, from, to, before, ARENA);
    }
    CHECK_EQ(wait_for(a, b, &w), PPLX_OK);
    check_scattered(&request, from, to, before, ARENA);
    run_for(a, b, 0.001);
    CHECK_EQ(w.completions, 1);
    CHECK_EQ(b->nimms, opcode == PPLX_WRITE_IMM);
}

static void test_segments(void) {
    static const pplx_option ways[][2] = {{{"vm_writev", "0"}, {"staging_nbytes", "65536"}},
                                          {{"vm_writev", "1"}, {"staging_nbytes", "65536"}}};
    static const uint32_t opcodes[] = {PPLX_WRITE, PPLX_WRITE_IMM, PPLX_READ};
    static const uint64_t rooms[] = {1, 100, 4096, ARENA / MOST_SEGMENTS};
    side a, b;
    for (size_t way = 0; way < 2; way++) {
        pair_open_with(&a, &b, ways[way], 2);
        for (int i = 0; i < KINDS * 3 * 4; i++)
            for (uint32_t count = 2; count <= MOST_SEGMENTS; count *= 2)
                check_segments(&a, &b, (enum kind)(i % KINDS), opcodes[i / KINDS % 3], count, rooms[i / KINDS / 3]);
        pair_close(&a, &b);
    }
}

/* One of them that may not be: nothing is told, and what came before it may be there. */
static void test_segments_out_of_bounds(void) {
    pplx_segment segments[MOST_SEGMENTS];
    uint64_t random = 9;
    side a, b;
    watched w;
    pair_open(&a, &b);
    for (int into = 0; into < KINDS; into++) {
        for (uint32_t which = 0; which < 8; which++) {
            pplx_work_request request = request_of(&a, PLAIN, &b, (enum kind)into, &w, PPLX_WRITE_IMM, 0, 0, 1);
            scatter(&request, segments, 8, 4096, &random);
            if (which == 0) request.remote_address += ARENA; /* the first is where the request says */
            segments[which].remote += ARENA;
            CHECK_EQ(perform(&a, &b, &request), PPLX_REMOTE_ACCESS);
            request = request_of(&a, PLAIN, &b, (enum kind)into, &w, PPLX_WRITE_IMM, 0, 0, 1);
            scatter(&request, segments, 8, 4096, &random);
            if (which == 0) request.local_address += ARENA;
            segments[which].local += ARENA;
            CHECK_EQ(perform(&a, &b, &request), PPLX_LOCAL_ACCESS);
        }
    }
    pplx_work_request request = request_of(&a, PLAIN, &b, MAPPED, &w, PPLX_WRITE, 0, 0, 1);
    scatter(&request, segments, MOST_SEGMENTS, 64, &random);
    request.nsegments++;
    CHECK_EQ(post(&a, &b, &request), PPLX_INVALID);
    run_for(&a, &b, 0.002);
    CHECK_EQ(b.nimms, 0);
    pair_close(&a, &b);
}

/* More than fits, in batches, on small rings: everything completes once. */
static void test_many(void) {
    enum { COUNT = 8000, SIZE = 256 };
    static const pplx_option small[] = {{"ring_slots", "16"}, {"staging_nbytes", "65536"}};
    static watched ops[COUNT];
    static pplx_work_request requests[COUNT];
    static bool seen[COUNT];
    side a, b;
    pair_open_with(&a, &b, small, 2);
    for (int into = 0; into < KINDS; into++) {
        size_t done = 0, agains = 0;
        uint64_t start = check_now_ns();
        b.nimms = 0;
        memset(seen, 0, sizeof seen);
        fill(a.arena[PLAIN], COUNT * SIZE, 11);
        memset(b.arena[into], 0, COUNT * SIZE);
        for (size_t i = 0; i < COUNT; i++)
            requests[i] = request_of(&a, PLAIN, &b, (enum kind)into, &ops[i], PPLX_WRITE_IMM, i * SIZE, SIZE,
                                     (uint32_t)i);
        while (done < COUNT) {
            size_t posted = 0;
            int32_t native = 0;
            pplx_status status = ipc->post(a.endpoint, requests + done, COUNT - done, &posted, &native);
            CHECK(status == PPLX_OK || status == PPLX_AGAIN);
            done += posted;
            agains += status == PPLX_AGAIN;
            poll_both(&a, &b);
            check_patience(start, PATIENCE);
        }
        CHECK(agains > 0);
        wait_imms(&b, &a, COUNT);
        for (size_t i = 0; i < COUNT; i++) CHECK_EQ(wait_for(&a, &b, &ops[i]), PPLX_OK);
        for (size_t i = 0; i < COUNT; i++) {
            CHECK(b.imms[i] < COUNT && !seen[b.imms[i]]);
            seen[b.imms[i]] = true;
        }
        CHECK(memcmp(a.arena[PLAIN], b.arena[into], COUNT * SIZE) == 0);
        run_for(&a, &b, 0.005);
        CHECK_EQ(b.nimms, COUNT);
    }
    pair_close(&a, &b);
}

/* Full of data: a few immediates alone are taken all the same, and overtake it. */
static void test_reserved_immediates(void) {
    pplx_caps caps;
    side a, b;
    static watched ops[2048];
    pair_open(&a, &b);
    ipc->domain_caps(a.domain, &caps);
    watched warm;
    pplx_work_request request = request_of(&a, PLAIN, &b, PLAIN, &warm, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
    size_t count = 0, posted = 1;
    int32_t native;
    while (posted && count < 2048) { /* nobody polls, so nothing ends meanwhile */
        request = request_of(&a, PLAIN, &b, PLAIN, &ops[count], PPLX_WRITE, 0, 65536, 0);
        CHECK(ipc->post(a.endpoint, &request, 1, &posted, &native) <= PPLX_AGAIN);
        count += posted;
    }
    CHECK_EQ(count, caps.max_inflight);
    posted = 1;
    while (posted && count < 2048) {
        request = request_of(&a, PLAIN, &b, PLAIN, &ops[count], PPLX_WRITE_IMM, 0, 0, 7);
        CHECK(ipc->post(a.endpoint, &request, 1, &posted, &native) <= PPLX_AGAIN);
        count += posted;
    }
    CHECK_EQ(count, caps.max_inflight + PPLX_RESERVED_IMMS);
    side_poll(&b);
    CHECK_EQ(b.nimms, PPLX_RESERVED_IMMS);
    for (size_t i = 0; i < count; i++) CHECK_EQ(wait_for(&a, &b, &ops[i]), PPLX_OK);
    pair_close(&a, &b);
}

static void test_messages(void) {
    static const uint64_t lengths[] = {0, 1, 8192, 300000, 1 << 20};
    enum { COUNT = sizeof lengths / sizeof *lengths };
    side a, b;
    watched receives[COUNT], sends[COUNT];
    pair_open(&a, &b);
    /* Sent before there is a RECV: it waits, and nothing behind it does. */
    fill(a.arena[PLAIN], 1 << 20, 50);
    for (size_t i = 0; i < COUNT; i++) {
        pplx_work_request request = request_of(&a, PLAIN, NULL, PLAIN, &sends[i], PPLX_SEND, 0, lengths[i], 0);
        CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    }
    for (int into = 0; into < KINDS; into++) {
        watched w;
        pplx_work_request request = request_of(&a, PLAIN, &b, (enum kind)into, &w, PPLX_WRITE_IMM, 0, 100, 1);
        CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
    }
    CHECK_EQ(sends[0].completions, 0);
    for (size_t i = 0; i < COUNT; i++) {
        memset(b.arena[PLAIN], 0, ARENA);
        pplx_work_request request = request_of(&b, PLAIN, NULL, PLAIN, &receives[i], PPLX_RECV, 0, 1 << 20, 0);
        CHECK_EQ(post(&b, &a, &request), PPLX_OK);
        CHECK_EQ(wait_for(&b, &a, &receives[i]), PPLX_OK);
        CHECK_EQ(wait_for(&a, &b, &sends[i]), PPLX_OK);
        CHECK_EQ(receives[i].nbytes, lengths[i]);
        CHECK(memcmp(a.arena[PLAIN], b.arena[PLAIN], lengths[i]) == 0);
        CHECK(b.arena[PLAIN][lengths[i]] == 0);
    }
    /* Too long for its RECV: truncated there, and the next one is right again. */
    pplx_work_request request = request_of(&b, PLAIN, NULL, PLAIN, &receives[0], PPLX_RECV, 0, 4096, 0);
    CHECK_EQ(post(&b, &a, &request), PPLX_OK);
    request = request_of(&b, PLAIN, NULL, PLAIN, &receives[1], PPLX_RECV, 0, 4096, 0);
    CHECK_EQ(post(&b, &a, &request), PPLX_OK);
    request = request_of(&a, PLAIN, NULL, PLAIN, &sends[0], PPLX_SEND, 0, 300000, 0);
    CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    request = request_of(&a, PLAIN, NULL, PLAIN, &sends[1], PPLX_SEND, 0, 4096, 0);
    CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    CHECK_EQ(wait_for(&b, &a, &receives[0]), PPLX_TRUNCATED);
    CHECK_EQ(wait_for(&b, &a, &receives[1]), PPLX_OK);
    CHECK_EQ(wait_for(&a, &b, &sends[0]), PPLX_OK);
    CHECK_EQ(wait_for(&a, &b, &sends[1]), PPLX_OK);
    pair_close(&a, &b);
}

static void test_refused_posts(void) {
    side a, b;
    watched w;
    pair_open(&a, &b);
    pplx_work_request request = request_of(&a, PLAIN, &b, PLAIN, &w, PPLX_WRITE, ARENA - 64, 128, 0);
    CHECK_EQ(perform(&a, &b, &request), PPLX_LOCAL_ACCESS);
    request = request_of(&a, PLAIN, &b, PLAIN, &w, PPLX_READ, 0, 8, 0);
    request.local_address -= 8;
    CHECK_EQ(perform(&a, &b, &request), PPLX_LOCAL_ACCESS);
    request = request_of(&a, PLAIN, &b, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, 0);
    request.local_mr = NULL;
    CHECK_EQ(perform(&a, &b, &request), PPLX_LOCAL_ACCESS);
    request = request_of(&a, PLAIN, &b, PLAIN, &w, PPLX_WRITE, 0, 8, 0);
    request.local_mr = b.mr[PLAIN];
    CHECK_EQ(perform(&a, &b, &request), PPLX_LOCAL_ACCESS);
    request = request_of(&a, PLAIN, &b, PLAIN, &w, PPLX_WRITE, 0, (UINT64_C(1) << 40) + 1, 0);
    CHECK_EQ(post(&a, &b, &request), PPLX_TOO_LARGE);
    request = request_of(&a, PLAIN, &b, PLAIN, &w, 99, 0, 8, 0);
    CHECK_EQ(post(&a, &b, &request), PPLX_INVALID);
    request = request_of(&a, PLAIN, &b, PLAIN, &w, PPLX_WRITE, 0, 8, 0);
    request.op = NULL;
    CHECK_EQ(post(&a, &b, &request), PPLX_INVALID);
    pair_close(&a, &b);
}

/* What the target refuses fails at the source, leaves the target alone, and the next one works. */
static void must_fail(side *a, side *b, enum kind into, pplx_work_request request) {
    static unsigned char before[ARENA];
    memcpy(before, b->arena[into], ARENA);
    b->nimms = 0;
    CHECK_EQ(perform(a, b, &request), PPLX_REMOTE_ACCESS);
    run_for(a, b, 0.002);
    CHECK(memcmp(before, b->arena[into], ARENA) == 0);
    CHECK_EQ(b->nimms, 0);
    watched w;
    pplx_work_request next = request_of(a, MAPPED, b, into, &w, PPLX_WRITE_IMM, 8192, 4096, 3);
    CHECK_EQ(perform(a, b, &next), PPLX_OK);
    wait_imms(b, a, 1);
}

static void test_remote_errors(void) {
    side a, b;
    watched w;
    pair_open(&a, &b);
    fill(a.arena[MAPPED], ARENA, 9);
    for (int i = 0; i < KINDS; i++) {
        const enum kind into = (enum kind)i;
        static const uint32_t opcodes[] = {PPLX_WRITE, PPLX_WRITE_IMM, PPLX_READ};
        for (size_t o = 0; o < 3; o++) {
            pplx_work_request request = request_of(&a, MAPPED, &b, into, &w, opcodes[o], 0, 4096, 5);
            request.remote_key ^= 0x55;
            must_fail(&a, &b, into, request);
            request = request_of(&a, MAPPED, &b, into, &w, opcodes[o], 0, 4096, 5);
            request.remote_address += ARENA - 64;
            must_fail(&a, &b, into, request);
            request = request_of(&a, MAPPED, &b, into, &w, opcodes[o], 0, 4096, 5);
            request.remote_address -= 64; /* wraps round */
            must_fail(&a, &b, into, request);
        }
        pplx_work_request request = request_of(&a, MAPPED, &b, into, &w, PPLX_WRITE_IMM, 0, 0, 5);
        request.remote_key ^= 0x55;
        must_fail(&a, &b, into, request);
    }

    /* Regions that give one right, and none; then they are closed. */
    static const uint32_t rights[] = {PPLX_ACCESS_REMOTE_READ, PPLX_ACCESS_REMOTE_WRITE, PPLX_ACCESS_LOCAL};
    for (int i = 0; i < KINDS * 3; i++) {
        const enum kind into = (enum kind)(i % KINDS);
        const uint32_t access = rights[i / KINDS];
        pplx_remote_key key;
        pplx_provider_mr *mr = register_memory(&b, b.arena[into] + 4096, 8192, into == MAPPED ? b.memfd : -1, 4096,
                                               access, &key);
        for (int closed = 0; closed < 2; closed++) {
            if (closed) CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
            for (uint32_t opcode = PPLX_WRITE; opcode <= PPLX_READ; opcode++) {
                const uint32_t needs = opcode == PPLX_READ ? PPLX_ACCESS_REMOTE_READ : PPLX_ACCESS_REMOTE_WRITE;
                pplx_work_request request = request_of(&a, MAPPED, &b, into, &w, opcode, 0, 4096, 5);
                request.remote_key = key.key;
                request.remote_address = key.base + 100;
                if (!closed && access & needs) {
                    CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
                    CHECK(memcmp(a.arena[MAPPED], b.arena[into] + 4196, 4096) == 0);
                } else {
                    must_fail(&a, &b, into, request);
                }
            }
        }
    }
    pair_close(&a, &b);
}

/* Closed without a word to anybody in between: the very next write must not land. */
static void test_closed_region(void) {
    side a, b;
    pair_open(&a, &b);
    for (int i = 0; i < 200; i++) {
        watched w;
        pplx_remote_key key;
        const enum kind into = (enum kind)(i % KINDS);
        pplx_provider_mr *mr = register_memory(&b, b.arena[into], 8192, into == MAPPED ? b.memfd : -1, 0,
                                               PPLX_ACCESS_REMOTE_WRITE, &key);
        pplx_work_request request = request_of(&a, MAPPED, &b, into, &w, PPLX_WRITE, 0, 4096, 0);
        request.remote_key = key.key;
        CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
        memset(b.arena[into], 0, 4096);
        memset(a.arena[MAPPED], 1, 4096);
        CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
        memset(&w, 0, sizeof w);
        CHECK_EQ(perform(&a, &b, &request), PPLX_REMOTE_ACCESS);
        for (int at = 0; at < 4096; at++) CHECK(b.arena[into][at] == 0);
    }
    pair_close(&a, &b);
}

/* Our own region closed under what uses it. */
static void test_closed_local_region(void) {
    side a, b;
    watched write, read, receive;
    pplx_remote_key key;
    pair_open(&a, &b);
    pplx_provider_mr *mr = register_memory(&a, a.arena[PLAIN], ARENA, -1, 0, PPLX_ACCESS_LOCAL, &key);
    pplx_work_request request = request_of(&a, PLAIN, &b, PLAIN, &write, PPLX_WRITE, 0, ARENA, 0);
    request.local_mr = mr;
    CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    request = request_of(&a, PLAIN, &b, PLAIN, &read, PPLX_READ, 0, ARENA, 0);
    request.local_mr = mr;
    CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    request = request_of(&a, PLAIN, NULL, PLAIN, &receive, PPLX_RECV, 0, 64, 0);
    request.local_mr = mr;
    CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    for (int i = 0; i < 3; i++) side_poll(&a);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    CHECK_EQ(wait_for(&a, &b, &write), PPLX_LOCAL_ACCESS);
    CHECK_EQ(wait_for(&a, &b, &read), PPLX_LOCAL_ACCESS);
    CHECK_EQ(wait_for(&a, &b, &receive), PPLX_LOCAL_ACCESS);
    pair_close(&a, &b);
}

static void test_bad_registrations(void) {
    side a;
    pplx_error error = {0};
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    side_open(&a);
    int plain = memfd_create("pplx-test-unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(plain >= 0 && ftruncate(plain, ARENA) == 0);
    const uint64_t at = (uintptr_t)a.arena[MAPPED];
    const pplx_memory bad[] = {
        {.address = at, .nbytes = 4096, .fd = plain},
        {.address = at, .nbytes = 4096, .fd = 9999},
        {.address = at, .nbytes = ARENA + 1, .fd = a.memfd},
        {.address = at, .nbytes = 4096, .fd = a.memfd, .fd_offset = ARENA},
        {.address = at, .nbytes = 4096, .fd = a.memfd, .fd_offset = 8},    /* would begin within a page */
        {.address = at, .nbytes = 4096, .fd = a.memfd, .fd_offset = 4096}, /* is mapped elsewhere already */
        {.address = at, .nbytes = 0, .fd = -1},
        {.address = 0, .nbytes = 4096, .fd = -1},
        {.address = UINT64_MAX - 8, .nbytes = 4096, .fd = -1},
        {.kind = PPLX_MEMORY_CUDA, .address = at, .nbytes = 4096, .fd = -1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(ipc->mr_open(a.domain, &bad[i], PPLX_ACCESS_REMOTE_WRITE, &mr, &key, &error) != PPLX_OK);
        CHECK(error.text[0] && !mr);
    }
    close(plain);
    side_close(&a);
}

/* Closing ends what is under way on both sides; what was sent is delivered. */
static void test_goodbye(void) {
    for (int into = 0; into < KINDS; into++) {
        side a, b;
        watched done, mine, theirs, receive, late;
        pair_open(&a, &b);
        pplx_work_request request = request_of(&a, MAPPED, &b, (enum kind)into, &done, PPLX_WRITE_IMM, 0, 8, 77);
        CHECK_EQ(post(&a, &b, &request), PPLX_OK);
        CHECK_EQ(wait_for(&a, &b, &done), PPLX_OK);
        b.nimms = 0;
        request = request_of(&a, MAPPED, &b, (enum kind)into, &done, PPLX_WRITE_IMM, 0, 0, 78);
        CHECK_EQ(perform(&a, NULL, &request), PPLX_OK); /* not polled there yet */
        request = request_of(&a, MAPPED, &b, (enum kind)into, &mine, PPLX_WRITE, 0, ARENA, 0);
        CHECK_EQ(post(&a, NULL, &request), PPLX_OK);
        request = request_of(&b, MAPPED, &a, (enum kind)into, &theirs, PPLX_WRITE, 0, ARENA, 0);
        CHECK_EQ(post(&b, NULL, &request), PPLX_OK);
        request = request_of(&b, PLAIN, NULL, PLAIN, &receive, PPLX_RECV, 0, 64, 0);
        CHECK_EQ(post(&b, NULL, &request), PPLX_OK);
        close_endpoint(&a, &b);
        CHECK(mine.completions <= 1); /* taken as flushed, if it was not reported */
        int completions = mine.completions;
        wait_for(&b, &a, &theirs);
        wait_for(&b, &a, &receive);
        CHECK_EQ(receive.status, PPLX_CONNECTION);
        CHECK(theirs.status == PPLX_CONNECTION || theirs.status == PPLX_OK);
        CHECK_EQ(b.nimms, 1);
        CHECK_EQ(b.imms[0], 78);
        request = request_of(&b, MAPPED, &a, MAPPED, &late, PPLX_WRITE, 0, 8, 0);
        CHECK_EQ(post(&b, &a, &request), PPLX_CONNECTION);
        run_for(&a, &b, 0.01);
        CHECK_EQ(mine.completions, completions);
        pair_close(&a, &b);
    }
}

/* An immediate that lies in our inbox when we close counts all the same. */
static void test_late_immediates(void) {
    side a, b;
    watched w[100];
    pair_open(&a, &b);
    pplx_work_request request = request_of(&a, MAPPED, &b, MAPPED, &w[0], PPLX_WRITE_IMM, 0, 8, 1);
    CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
    wait_imms(&b, &a, 1);
    for (uint32_t i = 0; i < 100; i++) {
        request = request_of(&a, MAPPED, &b, MAPPED, &w[i], PPLX_WRITE_IMM, 0, 8, i);
        CHECK_EQ(perform(&a, NULL, &request), PPLX_OK);
    }
    close_endpoint(&b, &a);
    wait_imms(&b, &a, 101);
    for (uint32_t i = 0; i < 100; i++) CHECK_EQ(b.imms[1 + i], i);
    pair_close(&a, &b);
}

/* One domain, many endpoints, in pairs to the same other domain. */
static void test_many_endpoints(void) {
    enum { COUNT = 40 };
    static side a, b;
    static pplx_provider_endpoint *ours[COUNT], *theirs[COUNT];
    static watched ops[COUNT];
    side_open(&a);
    side_open(&b);
    for (int i = 0; i < COUNT; i++) {
        side_listen(&a);
        side_listen(&b);
        side_connect(&a, &b);
        if (i % 2) run_for(&a, &b, 0.002); /* some are early */
        side_connect(&b, &a);
        ours[i] = a.endpoint;
        theirs[i] = b.endpoint;
    }
    for (int i = 0; i < COUNT; i++) {
        a.endpoint = ours[i];
        pplx_work_request request = request_of(&a, PLAIN, &b, (enum kind)(i % KINDS), &ops[i], PPLX_WRITE_IMM, 0, ARENA,
                                               (uint32_t)i);
        CHECK_EQ(post(&a, &b, &request), PPLX_OK);
    }
    for (int i = 0; i < COUNT; i++) CHECK_EQ(wait_for(&a, &b, &ops[i]), PPLX_OK);
    wait_imms(&b, &a, COUNT);
    CHECK_EQ(b.nimms, COUNT);
    for (int i = 0; i < COUNT; i++) {
        a.endpoint = ours[i];
        b.endpoint = theirs[i];
        close_endpoint(i % 3 ? &a : &b, i % 3 ? &b : &a);
        close_endpoint(i % 3 ? &b : &a, i % 3 ? &a : &b);
    }
    side_close(&a);
    side_close(&b);
}

int main(void) {
    RUN(test_options);
    RUN(test_addresses);
    RUN(test_write_and_read);
    RUN(test_odd_places);
    RUN(test_immediates);
    RUN(test_woken_from);
    RUN(test_segments);
    RUN(test_segments_out_of_bounds);
    RUN(test_many);
    RUN(test_reserved_immediates);
    RUN(test_messages);
    RUN(test_refused_posts);
    RUN(test_remote_errors);
    RUN(test_closed_region);
    RUN(test_closed_local_region);
    RUN(test_bad_registrations);
    RUN(test_goodbye);
    RUN(test_late_immediates);
    RUN(test_many_endpoints);
    return check_done();
}
