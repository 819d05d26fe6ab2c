/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The provider contract, over one libfabric and one of its providers:
 *
 *     test_fabric LIBRARY PROVIDER        e.g. libfabric.so.1 "tcp;ofi_rxm"
 *
 * Prints "ok NAME" for each test, "skip NAME: why", and "# ..." for what was seen; the first
 * failure ends it with status 1. Here are the tests with all ends in this process. */
#include "fabric_processes.h"
#include "fabric_sides.h"

/* ---- one process ---- */

static void test_options(const char *library) {
    pplx_error error = {0};
    pplx_device devices[4];
    size_t count = 9;
    pplx_option bad[] = {{"library", library}, {"provder", "tcp"}};
    REQUIRE(fabric->discover(bad, 2, devices, 4, &count, &error) == PPLX_INVALID && strstr(error.text, "provder"), "%s",
            error.text);
    bad[1] = (pplx_option){"provider", "udp"};
    REQUIRE(fabric->discover(bad, 2, devices, 4, &count, &error) == PPLX_INVALID, "%s", error.text);
    bad[0] = (pplx_option){"library", "/nowhere/libfabric.so.1"};
    REQUIRE(fabric->discover(bad, 1, devices, 4, &count, &error) == PPLX_UNAVAILABLE, "%s", error.text);
    REQUIRE(strstr(error.text, "/nowhere/libfabric.so.1"), "%s", error.text);
    pplx_option elsewhere[] = {options[0], options[1], {"node", "192.0.2.1"}};
    if (!efa)
        REQUIRE(fabric->discover(elsewhere, 3, devices, 4, &count, &error) == PPLX_UNAVAILABLE && count == 0,
                "an address that is not ours: %s", devices[0].name);
    pplx_provider_domain *domain = NULL;
    REQUIRE(fabric->domain_open("no such device", options, 2, &domain, &error) == PPLX_UNAVAILABLE && !domain, "%s",
            error.text);
    ok("options");
}

static void test_external_provider(const char *library) {
    pplx_error error = {0};
    const pplx_provider *provider = NULL;
    REQUIRE(pplx_provider_load("/nowhere/provider.so", &provider, &error) == PPLX_UNAVAILABLE, "%s", error.text);
    REQUIRE(pplx_provider_load(library, &provider, &error) == PPLX_UNAVAILABLE &&
                strstr(error.text, PPLX_PROVIDER_ENTRY),
            "%s", error.text);
    ok("external provider");
}

static void test_discover(void) {
    pplx_error error = {0};
    pplx_device devices[8];
    size_t count = 0;
    pplx_status status = fabric->discover(options, 2, devices, 8, &count, &error);
    REQUIRE(status == PPLX_OK && count >= 1, "%s", error.text);
    snprintf(device, sizeof device, "%s", devices[0].name);
    printf("# %s %s %s: %s\n", devices[0].name, devices[0].provider, devices[0].address, devices[0].description);
    REQUIRE(strcmp(devices[0].provider, options[1].value) == 0, "%s", devices[0].provider);
    status = fabric->discover(options, 1, devices, 8, &count, &error); /* any provider */
    REQUIRE(status == PPLX_OK && count >= 1, "%s", error.text);
    for (size_t i = 0; i < count && i < 8; i++)
        printf("# without a provider: %s %s\n", devices[i].name, devices[i].provider);
    ok("discover");
}

static void test_hostile_address(void) {
    side a;
    pplx_error error;
    side_open(&a);
    side_listen(&a);
    unsigned char bytes[PPLX_ADDRESS_BYTES] = {0};
    REQUIRE(fabric->endpoint_connect(a.endpoint, bytes, a.address_nbytes, &error) == PPLX_INVALID, "zeros");
    memset(bytes, 0xa5, sizeof bytes);
    REQUIRE(fabric->endpoint_connect(a.endpoint, bytes, a.address_nbytes - 1, &error) == PPLX_INVALID, "short");
    REQUIRE(fabric->endpoint_connect(a.endpoint, bytes, sizeof bytes, &error) == PPLX_INVALID, "long");
    REQUIRE(fabric->endpoint_connect(a.endpoint, bytes, 0, &error) == PPLX_INVALID, "empty");
    if (!efa) {
        REQUIRE(fabric->endpoint_connect(a.endpoint, bytes, a.address_nbytes, &error) == PPLX_INVALID, "family");
        REQUIRE(fabric->endpoint_connect(a.endpoint, a.address, a.address_nbytes, &error) == PPLX_INVALID, "itself");
        struct sockaddr_in address;
        REQUIRE(a.address_nbytes == sizeof address, "%zu", a.address_nbytes);
        memcpy(&address, a.address, sizeof address);
        REQUIRE(address.sin_addr.s_addr == htonl(INADDR_LOOPBACK) && address.sin_port, "bound to the node");
        address.sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1 */
        REQUIRE(fabric->endpoint_connect(a.endpoint, &address, sizeof address, &error) == PPLX_INVALID, "beyond");
    }
    side_close(&a);
    ok("hostile address");
}

static void test_writes(side *a, side *b) {
    static const uint64_t sizes[] = {8, 1, 63, 64, 128, 4096, 65536, 65537, 1 << 20, 32 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const uint64_t nbytes = sizes[i] < a->caps.max_message ? sizes[i] : a->caps.max_message;
        fill(a->arena, nbytes, (unsigned)i + 1);
        memset(b->arena, 0, nbytes + 1);
        must(a, b, PPLX_WRITE, 0, nbytes, 0);
        REQUIRE(memcmp(a->arena, b->arena, nbytes) == 0, "%llu B", (unsigned long long)nbytes);
        REQUIRE(b->arena[nbytes] == 0, "wrote too far");
        fill(b->arena, nbytes, (unsigned)i + 77);
        must(a, b, PPLX_READ, 0, nbytes, 0);
        REQUIRE(memcmp(a->arena, b->arena, nbytes) == 0, "read of %llu B", (unsigned long long)nbytes);
    }
    REQUIRE(a->nimms == 0 && b->nimms == 0, "nobody sent an immediate");
    ok("write and read");
}

static void test_immediates(side *a, side *b) {
    static const uint64_t sizes[] = {0, 8, 4096, 1 << 20, 32 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const uint64_t nbytes = sizes[i] < a->caps.max_message ? sizes[i] : a->caps.max_message;
        watched w;
        uint32_t imm = 0xfedcba98u + (uint32_t)i;
        fill(a->arena, nbytes, (unsigned)i + 3);
        memset(b->arena, 0, nbytes);
        b->nimms = 0;
        pplx_work_request request = request_of(a, b, &w, PPLX_WRITE_IMM, 0, nbytes, imm);
        REQUIRE(post(a, b, &request) == PPLX_OK, "post");
        wait_imms(b, a, 1);
        REQUIRE(b->imms[0] == imm, "%x", b->imms[0]);
        REQUIRE(memcmp(a->arena, b->arena, nbytes) == 0, "the immediate came before its bytes");
        wait_for(a, b, &w);
        REQUIRE(w.status == PPLX_OK, "%d", w.status);
    }
    run_for(a, b, 0.02);
    REQUIRE(b->nimms == 1, "once");
    b->nimms = 0;
    ok("immediates");
}

static void test_messages(side *a, side *b) {
    watched receives[4], send;
    for (size_t i = 0; i < 4; i++) {
        pplx_work_request request = request_of(b, NULL, &receives[i], PPLX_RECV, (1 << 20) + i * 8192, 8192, 0);
        REQUIRE(post(b, a, &request) == PPLX_OK, "post of RECV");
    }
    for (size_t i = 0; i < 4; i++) {
        uint64_t nbytes = i == 3 ? 8192 : i * 100;
        fill(a->arena, nbytes, (unsigned)i + 50);
        pplx_work_request request = request_of(a, NULL, &send, PPLX_SEND, 0, nbytes, 0);
        REQUIRE(post(a, b, &request) == PPLX_OK, "post of SEND");
        wait_for(a, b, &send);
        wait_for(b, a, &receives[i]);
        REQUIRE(receives[i].status == PPLX_OK && receives[i].nbytes == nbytes, "%d, %llu B", receives[i].status,
                (unsigned long long)receives[i].nbytes);
        REQUIRE(memcmp(a->arena, b->arena + (1 << 20) + i * 8192, nbytes) == 0, "message %zu", i);
    }
    ok("messages");
}

/* More than fits, in batches: "again" takes a part, everything completes once, in any order. */
static void test_many(side *a, side *b) {
    enum { COUNT = 4000, SIZE = 1024 };
    watched *ops = calloc(COUNT, sizeof *ops);
    pplx_work_request *requests = calloc(COUNT, sizeof *requests);
    REQUIRE(ops && requests, "memory");
    b->nimms = 0;
    fill(a->arena, COUNT * SIZE, 11);
    memset(b->arena, 0, COUNT * SIZE);
    for (size_t i = 0; i < COUNT; i++)
        requests[i] = request_of(a, b, &ops[i], PPLX_WRITE_IMM, i * SIZE, SIZE, (uint32_t)i);
    size_t done = 0, agains = 0;
    double end = now() + PATIENCE;
    while (done < COUNT) {
        size_t posted = 0;
        int32_t native = 0;
        pplx_status status = fabric->post(a->endpoint, requests + done, COUNT - done, &posted, &native);
        REQUIRE(status == PPLX_OK || status == PPLX_AGAIN, "%d", status);
        REQUIRE(posted <= a->caps.max_inflight, "%zu", posted);
        done += posted;
        agains += status == PPLX_AGAIN;
        side_poll(a);
        side_poll(b);
        REQUIRE(now() < end, "stuck at %zu", done);
    }
    REQUIRE(agains, "our own cap on what is in flight");
    wait_imms(b, a, COUNT);
    for (size_t i = 0; i < COUNT; i++) wait_for(a, b, &ops[i]);
    bool *seen = calloc(COUNT, 1);
    size_t unordered = 0;
    REQUIRE(seen, "memory");
    for (size_t i = 0; i < COUNT; i++) {
        REQUIRE(b->imms[i] < COUNT && !seen[b->imms[i]], "an immediate came twice");
        seen[b->imms[i]] = true;
        unordered += b->imms[i] != i;
    }
    REQUIRE(memcmp(a->arena, b->arena, COUNT * SIZE) == 0, "bytes");
    printf("# %d writes, %zu times \"again\", %zu out of place\n", COUNT, agains, unordered);
    REQUIRE(!efa || unordered, "the fake EFA reorders");
    b->nimms = 0;
    free(seen);
    free(requests);
    free(ops);
    ok("many writes");
}

/* Heartbeats may not wait behind data: an endpoint that is full of writes takes a few immediates alone. */
static void test_reserved_immediates(side *a, side *b) {
    const size_t most = a->caps.max_inflight + PPLX_RESERVED_IMMS + 1;
    watched *ops = calloc(most, sizeof *ops);
    REQUIRE(ops, "memory");
    size_t count = 0, posted = 1, data;
    int32_t native;
    b->nimms = 0;
    while (posted && count < most) { /* nobody polls, so nothing ends meanwhile */
        pplx_work_request request = request_of(a, b, &ops[count], PPLX_WRITE, 0, 8, 0);
        REQUIRE(fabric->post(a->endpoint, &request, 1, &posted, &native) <= PPLX_AGAIN, "post of data");
        count += posted;
    }
    data = count;
    posted = 1;
    while (posted && count < most) {
        pplx_work_request request = request_of(a, b, &ops[count], PPLX_WRITE_IMM, 0, 0, 7);
        REQUIRE(fabric->post(a->endpoint, &request, 1, &posted, &native) <= PPLX_AGAIN, "post of an immediate");
        count += posted;
    }
    printf("# %zu writes in flight, and %zu immediates behind them\n", data, count - data);
    REQUIRE(data <= a->caps.max_inflight && count < most, "more than said");
    REQUIRE(data < a->caps.max_inflight || count - data == PPLX_RESERVED_IMMS, "no room behind data");
    for (size_t i = 0; i < count; i++) wait_for(a, b, &ops[i]);
    wait_imms(b, a, count - data);
    b->nimms = 0;
    free(ops);
    ok("reserved immediates");
}

static void test_refused_posts(side *a, side *b) {
    watched w;
    pplx_work_request request = request_of(a, b, &w, PPLX_WRITE, ARENA - 64, 128, 0);
    REQUIRE(post(a, b, &request) == PPLX_LOCAL_ACCESS, "beyond the region");
    request = request_of(a, b, &w, PPLX_WRITE, 0, 8, 0);
    request.local_address -= 8;
    REQUIRE(post(a, b, &request) == PPLX_LOCAL_ACCESS, "before the region");
    request = request_of(a, b, &w, PPLX_WRITE, 0, a->caps.max_message + 1, 0);
    REQUIRE(post(a, b, &request) == PPLX_TOO_LARGE, "too large");
    request = request_of(a, b, &w, PPLX_WRITE, 0, 8, 0);
    request.local_mr = NULL;
    REQUIRE(post(a, b, &request) == PPLX_INVALID, "no region");
    request = request_of(a, b, &w, 99, 0, 8, 0);
    REQUIRE(post(a, b, &request) == PPLX_INVALID, "opcode");
    REQUIRE(!w.completions, "what is refused does not complete");
    ok("refused posts");
}

/* What the target refuses fails at the source, leaves the target alone, and the next works. */
static void must_fail(side *a, side *b, const char *what, pplx_work_request request, watched *w) {
    double start = now();
    pplx_status status = post(a, b, &request);
    REQUIRE(status == PPLX_OK, "post: %d", status);
    wait_for(a, b, w);
    printf("# %s: status %d, native %d, %.1f ms\n", what, w->status, w->provider_error, 1e3 * (now() - start));
    if (efa)
        REQUIRE(w->status == PPLX_REMOTE_ACCESS, "%d", w->status);
    else
        REQUIRE(w->status == PPLX_REMOTE_ACCESS || w->status == PPLX_CONNECTION, "%d", w->status);
    for (size_t i = 0; i < 4096; i++) REQUIRE(b->arena[i] == 0, "the target was touched");
    REQUIRE(b->nimms == 0, "no immediate of a refused write");
    must(a, b, PPLX_WRITE, 8192, 4096, 0);
}

static void test_remote_errors(side *a, side *b) {
    watched w;
    pplx_work_request request;
    memset(a->arena, 1, 8192);
    memset(b->arena, 0, 8192);
    b->nimms = 0;
    request = request_of(a, b, &w, PPLX_WRITE, 0, 4096, 0);
    request.remote_key ^= 0x55;
    must_fail(a, b, "write, bad key", request, &w);
    request = request_of(a, b, &w, PPLX_WRITE_IMM, 0, 4096, 5);
    request.remote_key ^= 0x55;
    must_fail(a, b, "write with immediate, bad key", request, &w);
    request = request_of(a, b, &w, PPLX_WRITE, 0, 4096, 0);
    request.remote_address += ARENA - 64;
    must_fail(a, b, "write out of bounds", request, &w);
    request = request_of(a, b, &w, PPLX_WRITE_IMM, 0, 4096, 5);
    request.remote_address -= 64;
    must_fail(a, b, "write before the region", request, &w);
    request = request_of(a, b, &w, PPLX_READ, 0, 4096, 0);
    request.remote_key ^= 0x55;
    must_fail(a, b, "read, bad key", request, &w);
    request = request_of(a, b, &w, PPLX_READ, 0, 4096, 0);
    request.remote_address += ARENA - 64;
    must_fail(a, b, "read out of bounds", request, &w);

    /* A region that gives no remote right, and one that is gone. */
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    pplx_error error;
    pplx_memory memory = {.device = -1, .address = (uintptr_t)b->arena, .nbytes = 4096, .fd = -1};
    REQUIRE(fabric->mr_open(b->domain, &memory, PPLX_ACCESS_REMOTE_READ, &mr, &key, &error) == PPLX_OK, "%s",
            error.text);
    REQUIRE(key.key != b->key.key, "a key of its own");
    request = request_of(a, b, &w, PPLX_WRITE, 0, 4096, 0);
    request.remote_key = key.key;
    request.remote_address = key.base;
    must_fail(a, b, "write to a region for reading", request, &w);
    REQUIRE(fabric->mr_close(mr) == PPLX_OK, "mr_close");
    request = request_of(a, b, &w, PPLX_READ, 0, 4096, 0);
    request.remote_key = key.key;
    request.remote_address = key.base;
    must_fail(a, b, "read of a closed region", request, &w);

    /* An immediate alone needs a valid target, too. On tcp the target must refuse it as any other. */
    request = request_of(a, b, &w, PPLX_WRITE_IMM, 0, 0, 7);
    request.remote_key ^= 0x55;
    if (efa) {
        must_fail(a, b, "immediate alone, bad key", request, &w);
    } else {
        REQUIRE(post(a, b, &request) == PPLX_OK, "post");
        wait_for(a, b, &w);
        run_for(a, b, 0.05);
        REQUIRE(w.status != PPLX_OK && !b->nimms, "a refused immediate");
        printf("# immediate alone, bad key: status %d, native %d, %zu arrived\n", w.status, w.provider_error, b->nimms);
        must(a, b, PPLX_WRITE, 8192, 4096, 0);
    }
    b->nimms = 0;
    ok("remote errors");
}

/* Ops behind and before a bad one: each completes once, whatever the library tears down. */
static void test_bad_among_good(side *a, side *b) {
    enum { COUNT = 64 };
    watched ops[COUNT];
    int counts[32] = {0};
    for (size_t i = 0; i < COUNT; i++) {
        pplx_work_request request = request_of(a, b, &ops[i], PPLX_WRITE, i * 16384, 16384, 0);
        if (i == COUNT / 2) request.remote_key ^= 0x55;
        REQUIRE(post(a, b, &request) == PPLX_OK, "post");
    }
    for (size_t i = 0; i < COUNT; i++) {
        wait_for(a, b, &ops[i]);
        counts[ops[i].status & 31]++;
    }
    REQUIRE(ops[COUNT / 2].status != PPLX_OK, "a false success");
    printf("# one bad write among %d: %d succeeded, %d transport, %d remote access\n", COUNT, counts[PPLX_OK],
           counts[PPLX_CONNECTION], counts[PPLX_REMOTE_ACCESS]);
    must(a, b, PPLX_WRITE, 8192, 4096, 0);
    ok("bad among good");
}

static void test_wait_fd(side *a, side *b) {
    int fd = fabric->wait_fd(b->domain);
    if (!(b->caps.flags & PPLX_CAP_WAIT_FD)) {
        REQUIRE(fd == -1 && fabric->arm(b->domain) == PPLX_UNSUPPORTED, "no wait fd");
        printf("skip wait fd: the provider has none\n");
        return;
    }
    REQUIRE(fd >= 0 && fd == fabric->wait_fd(b->domain), "the same fd");
    run_for(a, b, 0.02);
    b->nimms = 0;
    for (int round = 0; round < 50; round++) {
        watched w;
        struct pollfd pollfd = {.fd = fd, .events = POLLIN};
        double end = now() + PATIENCE;
        while (fabric->arm(b->domain) == PPLX_AGAIN) side_poll(b);
        if (round % 10 == 0) REQUIRE(poll(&pollfd, 1, 20) == 0, "the fd is readable with nothing to do");
        pplx_work_request request = request_of(a, b, &w, PPLX_WRITE_IMM, 0, 8, (uint32_t)round);
        REQUIRE(post(a, NULL, &request) == PPLX_OK, "post");
        while (b->nimms <= (size_t)round) {
            REQUIRE(now() < end, "never woken");
            side_poll(a); /* the sender keeps its progress going, the receiver sleeps */
            if (fabric->arm(b->domain) == PPLX_OK && poll(&pollfd, 1, 1) == 0) continue;
            side_poll(b);
        }
        wait_for(a, b, &w);
        REQUIRE(w.status == PPLX_OK, "%d", w.status);
    }
    b->nimms = 0;
    ok("wait fd");
}

/* The same once another endpoint of the sleeper's domain has come and gone. tcp;ofi_rxm leaves a closed
 * endpoint in the wait set of its CQ, and fi_trywait() then reads freed memory (1.17, 2.5.1). */
static void test_wait_fd_after_close(void) {
    side a, b, c, other;
    pair_open(&a, &b);
    must(&a, &b, PPLX_WRITE, 0, 8, 0);
    for (int round = 0; round < 3; round++) {
        side_open(&c);
        side_listen(&c);
        other = b;
        side_listen(&other);
        side_connect(&other, &c);
        side_connect(&c, &other);
        must(&c, &other, PPLX_WRITE, 0, 8, 0);
        close_endpoint(&other, &c);
        side_close(&c);
        if (b.caps.flags & PPLX_CAP_WAIT_FD) test_wait_fd(&a, &b);
        must(&a, &b, PPLX_WRITE, 0, 8, 0);
    }
    pair_close(&a, &b);
    ok("wait fd after close");
}

/* RECVs posted before the peer is known, flushed when the endpoint closes. */
static void test_early_receives(void) {
    side a, b;
    watched receives[3], send;
    side_open(&a);
    side_open(&b);
    side_listen(&a);
    side_listen(&b);
    for (size_t i = 0; i < 3; i++) {
        pplx_work_request request = request_of(&b, NULL, &receives[i], PPLX_RECV, i * 4096, 4096, 0);
        REQUIRE(post(&b, NULL, &request) == PPLX_OK, "RECV before connect");
    }
    watched early;
    size_t posted;
    int32_t native;
    pplx_work_request request = request_of(&a, &b, &early, PPLX_WRITE, 0, 8, 0);
    REQUIRE(fabric->post(a.endpoint, &request, 1, &posted, &native) == PPLX_AGAIN && posted == 0, "before connect");
    side_connect(&a, &b);
    side_connect(&b, &a);
    fill(a.arena + 65536, 1000, 9);
    request = request_of(&a, NULL, &send, PPLX_SEND, 65536, 1000, 0);
    REQUIRE(post(&a, &b, &request) == PPLX_OK, "post of SEND");
    wait_for(&b, &a, &receives[0]);
    wait_for(&a, &b, &send);
    REQUIRE(receives[0].nbytes == 1000 && memcmp(b.arena, a.arena + 65536, 1000) == 0, "the message");
    close_endpoint(&b, &a);
    run_for(&b, &a, 0.02);
    for (size_t i = 1; i < 3; i++) {
        if (b.caps.flags & PPLX_CAP_FENCE)
            REQUIRE(receives[i].completions == 0, "a closed endpoint's op was reported");
        else
            REQUIRE(receives[i].completions == 1 && receives[i].status == PPLX_FLUSHED, "%d", receives[i].status);
    }
    close_endpoint(&a, &b);
    side_close(&a);
    side_close(&b);
    ok("early receives");
}

/* Closing at the source: nothing of it is reported afterwards (its ops are freed at once, which
 * AddressSanitizer watches), and completions of another endpoint of the domain are not lost. */
static void test_close_source(void) {
    enum { COUNT = 64, SIZE = 256 << 10 };
    side a, b, c, other;
    pair_open(&a, &b);
    side_open(&c);
    side_listen(&c);
    other = a; /* a second endpoint of a's domain */
    side_listen(&other);
    side_connect(&other, &c);
    side_connect(&c, &other);
    must(&a, &b, PPLX_WRITE, 0, 8, 0);
    watched warm;
    pplx_work_request request = request_of(&other, &c, &warm, PPLX_WRITE, 0, 8, 0);
    REQUIRE(post(&other, &c, &request) == PPLX_OK, "post");
    wait_for(&other, &c, &warm);

    watched *doomed = calloc(COUNT, sizeof *doomed), kept[COUNT];
    REQUIRE(doomed, "memory");
    size_t nkept = 0;
    int32_t native;
    for (size_t i = 0; i < COUNT; i++) {
        size_t posted;
        request = request_of(&a, &b, &doomed[i], PPLX_WRITE_IMM, 0, SIZE, 1);
        fabric->post(a.endpoint, &request, 1, &posted, &native);
        request = request_of(&other, &c, &kept[nkept], PPLX_WRITE_IMM, 0, 4096, 2);
        pplx_status status = fabric->post(other.endpoint, &request, 1, &posted, &native);
        REQUIRE(status == PPLX_OK || status == PPLX_AGAIN, "%d", status);
        nkept += posted;
        side_poll(&c);
        if (i % 8 == 0) side_poll(&b);
    }
    if (a.caps.flags & PPLX_CAP_FENCE) {
        REQUIRE(fabric->endpoint_close(a.endpoint) == PPLX_OK, "a fence closes at once");
    } else {
        pplx_status status = fabric->endpoint_close(a.endpoint);
        REQUIRE(status == PPLX_UNRELEASED, "without a fence it waits: %d", status);
        close_endpoint(&a, &b);
    }
    a.endpoint = NULL;
    memset(doomed, 0xee, COUNT * sizeof *doomed);
    free(doomed);
    for (size_t i = 0; i < nkept; i++) {
        wait_for(&other, &c, &kept[i]);
        REQUIRE(kept[i].status == PPLX_OK, "the other endpoint's write %zu: %d", i, kept[i].status);
    }
    wait_imms(&c, &other, nkept);
    run_for(&a, &b, 0.05);
    REQUIRE(nkept > 0, "the other endpoint was busy");
    close_endpoint(&other, &c);
    close_endpoint(&c, NULL);
    close_endpoint(&b, NULL);
    side_close(&a);
    side_close(&b);
    side_close(&c);
    ok("close at the source");
}

/* Closing at the target: from then on nobody writes there, and the source hears of it. */
static void test_close_target(void) {
    enum { COUNT = 32, SIZE = 1 << 20 };
    side a, b;
    watched ops[COUNT];
    size_t nops = 0;
    pair_open(&a, &b);
    if (!(b.caps.flags & PPLX_CAP_FENCE)) {
        pair_close(&a, &b);
        printf("skip close at the target: no fence\n");
        return;
    }
    must(&a, &b, PPLX_WRITE, 0, 8, 0);
    memset(a.arena, 1, ARENA);
    for (size_t i = 0; i < COUNT; i++) {
        size_t posted;
        int32_t native;
        pplx_work_request request = request_of(&a, &b, &ops[nops], PPLX_WRITE, i * SIZE, SIZE, 0);
        fabric->post(a.endpoint, &request, 1, &posted, &native);
        nops += posted;
    }
    for (int i = 0; i < 20; i++) {
        side_poll(&a);
        side_poll(&b);
    }
    REQUIRE(fabric->endpoint_close(b.endpoint) == PPLX_OK, "close");
    b.endpoint = NULL;
    memset(b.arena, 0, ARENA);
    run_for(&a, &b, 0.2);
    for (size_t i = 0; i < ARENA; i++) REQUIRE(b.arena[i] == 0, "written after the fence");
    double end = now() + PATIENCE;
    int failed = 0, native = 0;
    for (size_t i = 0; i < nops; i++) {
        while (!ops[i].completions) {
            REQUIRE(now() < end, "write %zu never ended", i);
            side_poll(&a);
        }
        if (ops[i].status != PPLX_OK) {
            failed++;
            native = ops[i].provider_error;
            REQUIRE(ops[i].status == PPLX_CONNECTION, "%d, native %d", ops[i].status, native);
        }
    }
    REQUIRE(failed, "the source heard nothing");
    printf("# target closed: %d of %zu writes failed, native %d\n", failed, nops, native);

    /* Both open a new endpoint: it works again, in the same domains. */
    close_endpoint(&a, &b);
    side_listen(&a);
    side_listen(&b);
    side_connect(&a, &b);
    side_connect(&b, &a);
    must(&a, &b, PPLX_WRITE, 0, SIZE, 0);
    REQUIRE(memcmp(a.arena, b.arena, SIZE) == 0, "after the reconnection");
    pair_close(&a, &b);
    ok("close at the target and reconnect");
}

/* A message longer than its RECV fails there; what follows is not disturbed. */
static void test_truncation(side *a, side *b) {
    watched receive, send;
    pplx_work_request request = request_of(b, NULL, &receive, PPLX_RECV, 0, 64, 0);
    REQUIRE(post(b, a, &request) == PPLX_OK, "RECV");
    memset(b->arena, 0, 2000);
    request = request_of(a, NULL, &send, PPLX_SEND, 0, 1000, 0);
    REQUIRE(post(a, b, &request) == PPLX_OK, "SEND");
    wait_for(b, a, &receive);
    wait_for(a, b, &send);
    REQUIRE(receive.status == PPLX_TRUNCATED, "status %d, native %d", receive.status, receive.provider_error);
    for (size_t i = 64; i < 2000; i++) REQUIRE(b->arena[i] == 0, "wrote beyond the RECV");
    run_for(a, b, 0.05); /* tcp drops the connection, and what is posted before it notices is lost */
    must(a, b, PPLX_WRITE, 0, 8, 0);
    ok("truncation");
}

/* Two endpoints of one domain that lead to each other. */
static void test_one_domain(void) {
    side a, other;
    watched w;
    side_open(&a);
    side_listen(&a);
    other = a;
    side_listen(&other);
    side_connect(&a, &other);
    side_connect(&other, &a);
    memset(a.arena, 7, 100);
    pplx_work_request request = request_of(&a, &other, &w, PPLX_WRITE, 0, 100, 0);
    request.remote_address += 4096;
    REQUIRE(post(&a, NULL, &request) == PPLX_OK, "post");
    wait_for(&a, NULL, &w);
    REQUIRE(w.status == PPLX_OK && memcmp(a.arena, a.arena + 4096, 100) == 0, "%d", w.status);
    close_endpoint(&other, &a);
    side_close(&a);
    ok("one domain");
}

/* Each endpoint has its own queue of RECVs, and a domain talks to several peers at once. */
static void test_two_peers(void) {
    side a, b, c, other;
    watched receive_b, receive_c, send;
    pair_open(&a, &b);
    side_open(&c);
    side_listen(&c);
    other = a;
    side_listen(&other);
    side_connect(&other, &c);
    side_connect(&c, &other);
    pplx_work_request request = request_of(&a, NULL, &receive_b, PPLX_RECV, 0, 4096, 0);
    REQUIRE(post(&a, &b, &request) == PPLX_OK, "RECV");
    request = request_of(&other, NULL, &receive_c, PPLX_RECV, 4096, 4096, 0);
    REQUIRE(post(&other, &c, &request) == PPLX_OK, "RECV");
    memset(c.arena, 'c', 100);
    request = request_of(&c, NULL, &send, PPLX_SEND, 0, 100, 0);
    REQUIRE(post(&c, &a, &request) == PPLX_OK, "SEND");
    wait_for(&other, &c, &receive_c);
    wait_for(&c, &other, &send);
    REQUIRE(receive_c.nbytes == 100 && a.arena[4096] == 'c' && !receive_b.completions, "the message of c");
    memset(b.arena, 'b', 200);
    request = request_of(&b, NULL, &send, PPLX_SEND, 0, 200, 0);
    REQUIRE(post(&b, &a, &request) == PPLX_OK, "SEND");
    wait_for(&a, &b, &receive_b);
    wait_for(&b, &a, &send);
    REQUIRE(receive_b.nbytes == 200 && a.arena[0] == 'b', "the message of b");
    must(&b, &a, PPLX_WRITE, 65536, 4096, 0);
    must(&c, &a, PPLX_WRITE, 65536 + 4096, 4096, 0);
    close_endpoint(&other, &c);
    close_endpoint(&c, NULL);
    must(&a, &b, PPLX_WRITE, 0, 4096, 0);
    pair_close(&a, &b);
    side_close(&c);
    ok("two peers");
}

/* A batch that the library takes in part is not left behind an unrung doorbell (FI_MORE), even if
 * nothing is posted ever after. */
static void test_part_of_a_batch(void) {
    enum { COUNT = 24, ROUNDS = 100 };
    side a, b;
    pair_open(&a, &b);
    must(&a, &b, PPLX_WRITE, 0, 8, 0);
    size_t parts = 0;
    for (int round = 0; round < ROUNDS; round++) {
        watched ops[COUNT];
        pplx_work_request requests[COUNT];
        size_t posted = 0;
        int32_t native;
        for (size_t i = 0; i < COUNT; i++) requests[i] = request_of(&a, &b, &ops[i], PPLX_WRITE, i * 64, 64, 0);
        pplx_status status = fabric->post(a.endpoint, requests, COUNT, &posted, &native);
        REQUIRE(status == PPLX_OK || status == PPLX_AGAIN, "%d", status);
        parts += posted < COUNT;
        for (size_t i = 0; i < posted; i++) wait_for(&a, &b, &ops[i]);
    }
    printf("# %zu of %d batches taken in part\n", parts, ROUNDS);
    REQUIRE(!efa || parts, "the fake EFA says \"again\" now and then");
    pair_close(&a, &b);
    ok("part of a batch");
}

/* Nor is a queue that is full of those: then there would be no room for the one that rings. An immediate alone, which may
 * be posted beyond it, follows on the last one. */
static void test_full_queue(void) {
    enum { DEPTH = 256, COUNT = DEPTH + 1, TRIES = 1000 };
    static watched ops[COUNT];
    static pplx_work_request requests[COUNT];
    side a, b;
    size_t done = 0, posted;
    int32_t native;
    pair_open(&a, &b);
    must(&a, &b, PPLX_WRITE, 0, 8, 0);
    for (size_t i = 0; i < DEPTH; i++) requests[i] = request_of(&a, &b, &ops[i], PPLX_WRITE, i * 64, 64, 0);
    requests[DEPTH] = request_of(&a, &b, &ops[DEPTH], PPLX_WRITE_IMM, 0, 0, 7);
    for (int i = 0; i < TRIES && done < COUNT; i++, done += posted)
        fabric->post(a.endpoint, requests + done, COUNT - done, &posted, &native);
    REQUIRE(done >= DEPTH, "%zu posted", done);
    for (size_t i = 0; i < done; i++) {
        wait_for(&a, &b, &ops[i]);
        REQUIRE(ops[i].status == PPLX_OK, "%zu: status %d", i, ops[i].status);
    }
    pair_close(&a, &b);
    ok("full queue");
}

/* Only one side has connected: EFA's target has no address handle for the source and refuses it. */
static void test_unknown_peer(void) {
    side a, b;
    watched w;
    side_open(&a);
    side_open(&b);
    side_listen(&a);
    side_listen(&b);
    side_connect(&a, &b);
    pplx_work_request request = request_of(&a, &b, &w, PPLX_WRITE, 0, 8, 0);
    REQUIRE(post(&a, &b, &request) == PPLX_OK, "post");
    wait_for(&a, &b, &w);
    REQUIRE(w.status == PPLX_TRANSPORT && w.provider_error == 14, "status %d, native %d", w.status, w.provider_error);
    side_connect(&b, &a);
    must(&a, &b, PPLX_WRITE, 0, 8, 0);
    pair_close(&a, &b);
    ok("unknown peer");
}

/* A fatal error ends every operation, each once, and later posts at once. */
static void test_broken_queue(void) {
    enum { COUNT = 100 };
    side a, b;
    watched ops[COUNT], late;
    setenv("FAKE_EFA_FATAL_AFTER", "40", 1);
    pair_open(&a, &b);
    unsetenv("FAKE_EFA_FATAL_AFTER");
    int counts[32] = {0};
    for (size_t i = 0; i < COUNT; i++) {
        pplx_work_request request = request_of(&a, &b, &ops[i], PPLX_WRITE, 0, 8, 0);
        size_t posted = 0;
        int32_t native;
        while (!posted) REQUIRE(fabric->post(a.endpoint, &request, 1, &posted, &native) <= PPLX_AGAIN, "post");
    }
    for (size_t i = 0; i < COUNT; i++) {
        wait_for(&a, &b, &ops[i]);
        counts[ops[i].status & 31]++;
    }
    printf("# %d succeeded, %d lost\n", counts[PPLX_OK], counts[PPLX_TRANSPORT]);
    REQUIRE(counts[PPLX_OK] >= 40 && counts[PPLX_OK] + counts[PPLX_TRANSPORT] == COUNT, "what became of them");
    pplx_work_request request = request_of(&a, &b, &late, PPLX_WRITE, 0, 8, 0);
    REQUIRE(post(&a, &b, &request) == PPLX_TRANSPORT, "a post to the broken");
    /* All of it has been reported: nothing may keep the proxy awake for a queue that is dead. */
    pplx_status armed = fabric->arm(a.domain);
    REQUIRE(armed == (a.caps.flags & PPLX_CAP_WAIT_FD ? PPLX_OK : PPLX_UNSUPPORTED), "arm: %d", armed);
    pair_close(&a, &b);
    ok("broken queue");
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 5) {
        fprintf(stderr, "usage: %s LIBRARY PROVIDER\n", argv[0]);
        return 2;
    }
    program = argv;
    efa = strcmp(argv[2], "efa") == 0;
    options[0] = (pplx_option){"library", argv[1]};
    options[1] = (pplx_option){"provider", argv[2]};
    if (argc == 5) {
        pplx_device found;
        pplx_error error;
        size_t count;
        REQUIRE(fabric->discover(options, 2, &found, 1, &count, &error) == PPLX_OK, "%s", error.text);
        snprintf(device, sizeof device, "%s", found.name);
        serve(atoi(argv[4]));
    }

#if !PPLX_HAVE_LIBFABRIC
    puts("libfabric's headers are not installed (package libfabric-dev)");
    return 77;
#endif
    static side a, b;
    test_discover();
    test_options(argv[1]);
    test_external_provider(argv[1]);
    test_hostile_address();
    pair_open(&a, &b);
    printf("# %s\n", a.caps.description);
    test_writes(&a, &b);
    test_immediates(&a, &b);
    test_messages(&a, &b);
    test_truncation(&a, &b);
    test_many(&a, &b);
    test_reserved_immediates(&a, &b);
    test_refused_posts(&a, &b);
    test_wait_fd(&a, &b);
    test_remote_errors(&a, &b);
    test_bad_among_good(&a, &b);
    pair_close(&a, &b);
    test_wait_fd_after_close();
    test_early_receives();
    test_two_peers();
    test_one_domain();
    test_close_source();
    test_close_target();
    test_part_of_a_batch();
    test_full_queue();
    if (efa) {
        test_unknown_peer();
        test_broken_queue();
        printf("skip two processes: this EFA is a fake\n");
    } else {
        test_two_processes();
        test_peer_killed(64, "peer killed, small writes");
        test_peer_killed(1 << 20, "peer killed, large writes");
    }
    printf("done\n");
    return 0;
}
