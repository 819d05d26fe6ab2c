/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The provider contract on verbs, over the fake libibverbs: what works. What fails is in
 * test_provider_verbs_failures.c. */
#include <stdio.h>

#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>

#include "verbs_sides.h"

/* Devices of many kinds: all of the contract holds on each. */
static const char *const layouts[] = {
    "x0 roce gbps=100 ip=10.0.0.1; x1 roce gbps=25 ip=10.0.0.2",
    "x0 ib lid=3; x1 ib lid=9",
    "x0 ib grh lid=3; x1 ib grh lid=3",                                  /* two virtual functions of a port */
    "x0 ib lid=3; x1 ib grh lid=9",                                      /* one of them */
    "x0 ib pkey=0x7fff pkey=0x8001; x1 ib pkey=0 pkey=0x7fff pkey=0x8001", /* full members of the second one */
    "x0 ib pkey=0x7fff; x1 ib",                                          /* a limited member and a full one */
    "x0 roce td ip=10.0.0.1", /* to itself */
    "x0 roce ip=10.0.0.1 inline=0 reads=1 sge=1; x1 roce ip=10.0.0.2 mtu=4096",
    "x0 roce ip=10.0.0.1 delay=20 stale; x1 roce v2=2001:db8::1 ip=10.0.0.2 stale",
    "x0 roce ip=10.0.0.1 wr=64 srq=32 cqe=256; x1 roce ip=10.0.0.2 wr=32 srq=16 cqe=128",
};
enum { LAYOUTS = sizeof layouts / sizeof layouts[0] };

static const uint64_t sizes[] = {0, 1, 8, 64, 65, 220, 221, 4096, 65536, 65537, ARENA};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

static void misspelt_and_senseless_options_are_refused(void) {
    static const char *const bad[] = {"prot=1",
                                      "port=0",
                                      "port=255",
                                      "port=x",
                                      "port=",
                                      "gid_index=-1",
                                      "timeout=0",
                                      "timeout=32",
                                      "retry_count=8",
                                      "service_level=16",
                                      "traffic_class=256",
                                      "relaxed_ordering=2",
                                      "message_nbytes=0",
                                      "pkey_index=99999",
                                      "gid_index=256"}; /* a queue pair names it by 8 bits */
    pplx_device devices[4];
    pplx_error error;
    layout_is("x0 roce ip=10.0.0.1");
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        option_list list;
        side s;
        size_t count = 9;
        char key[32];
        option_list_of(&list, bad[i]);
        error = (pplx_error){0};
        CHECK_EQ(verbs->discover(list.options, list.count, devices, 4, &count, &error), PPLX_INVALID);
        CHECK_EQ(error.status, PPLX_INVALID);
        snprintf(key, sizeof key, "%.*s", (int)strcspn(bad[i], "="), bad[i]);
        CHECK(strstr(error.text, key));
        CHECK_EQ(count, 0);
        CHECK_EQ(try_open(&s, "x0", bad[i], &error), PPLX_INVALID);
        CHECK(!s.domain);
    }
    const pplx_option elsewhere = {"library", "/nowhere/libibverbs.so.1"};
    size_t count = 9;
    CHECK_EQ(verbs->discover(&elsewhere, 1, devices, 4, &count, &error), PPLX_UNAVAILABLE);
    CHECK(strstr(error.text, elsewhere.value));
    check_clean();
}

static void bytes_are_written_and_read(void) {
    for (int layout = 0; layout < LAYOUTS; layout++) {
        side a, b;
        pair_open(&a, &b, layouts[layout], "");
        for (size_t i = 0; i < SIZES; i++) {
            const uint64_t nbytes = sizes[i], offset = ARENA - nbytes < 13 ? 0 : 13;
            fill(a.arena, ARENA, i);
            memset(b.arena, 0, ARENA);
            CHECK_EQ(perform(&a, &b, PPLX_WRITE, offset, nbytes, 0), PPLX_OK);
            CHECK(memcmp(a.arena + offset, b.arena + offset, nbytes) == 0);
            for (uint64_t at = 0; at < offset; at++) CHECK_EQ(b.arena[at], 0);
            if (offset + nbytes < ARENA) CHECK_EQ(b.arena[offset + nbytes], 0);
            fill(b.arena, ARENA, i + 50);
            CHECK_EQ(perform(&a, &b, PPLX_READ, offset, nbytes, 0), PPLX_OK);
            CHECK(memcmp(a.arena + offset, b.arena + offset, nbytes) == 0);
        }
        CHECK_EQ(a.nimms + b.nimms, 0);
        pair_close(&a, &b);
    }
}

static void an_immediate_comes_after_its_bytes_and_once(void) {
    for (int layout = 0; layout < LAYOUTS; layout++) {
        side a, b;
        pair_open(&a, &b, layouts[layout], "");
        for (uint32_t i = 0; i < SIZES; i++) {
            watched w;
            fill(a.arena, sizes[i], i);
            memset(b.arena, 0, sizes[i]);
            const pplx_work_request one = request(&a, &b, &w, PPLX_WRITE_IMM, 0, sizes[i], 0xfedcba98u + i);
            CHECK_EQ(post(&a, &one), PPLX_OK);
            WAIT(b.nimms == i + 1);
            CHECK_EQ(b.imms[i], 0xfedcba98u + i);
            CHECK(b.source == b.endpoint);
            CHECK(memcmp(a.arena, b.arena, sizes[i]) == 0);
            WAIT(w.completions);
            CHECK_EQ(w.status, PPLX_OK);
        }
        CHECK_EQ(perform(&b, &a, PPLX_WRITE_IMM, 0, 8, 5), PPLX_OK);
        WAIT(a.nimms);
        poll_ms(2);
        CHECK_EQ(a.nimms, 1);
        CHECK_EQ(b.nimms, SIZES);
        pair_close(&a, &b);
    }
}

/* Its retries are few for what it takes for losses, and what is overtaken holds up all behind it. Messages can't be
 * cut, and are not. */
static void soft_roce_gets_short_writes_few_of_them_and_whole_messages(void) {
    enum { MESSAGE = 8256 };
    side a, b;
    watched receive, send, w;
    pair_open(&a, &b, "x0 roce soft mtu=1024 ip=10.0.0.1; x1 roce soft mtu=1024 ip=10.0.0.2", "message_nbytes=8256");
    CHECK_EQ(a.caps.max_message, 4096);
    CHECK_EQ(a.caps.max_inflight, 32);
    CHECK_EQ(a.caps.max_inflight_bytes, 32 << 10);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 4096, 0), PPLX_OK);
    pplx_work_request one = request(&a, &b, &w, PPLX_WRITE, 0, 4097, 0);
    CHECK_EQ(post(&a, &one), PPLX_TOO_LARGE);
    fill(a.arena, MESSAGE, 3);
    one = request(&b, NULL, &receive, PPLX_RECV, 0, MESSAGE, 0);
    CHECK_EQ(post(&b, &one), PPLX_OK);
    one = request(&a, NULL, &send, PPLX_SEND, 0, MESSAGE, 0);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    WAIT(receive.completions && send.completions);
    CHECK_EQ(receive.status, PPLX_OK);
    CHECK_EQ(receive.nbytes, MESSAGE);
    CHECK(memcmp(a.arena, b.arena, MESSAGE) == 0);
    pair_close(&a, &b);
}

static void a_write_that_has_ended_is_visible(void) {
    side a, b;
    pair_open(&a, &b, "x0 roce ip=10.0.0.1 delay=300", "");
    for (uint64_t i = 1; i < 50; i++) {
        *(uint64_t *)(void *)a.arena = i;
        CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
        CHECK_EQ(*(uint64_t *)(void *)b.arena, i);
    }
    pair_close(&a, &b);
}

enum { FLOOD = 2000 };

/* More than any queue holds; a batch is taken in parts. */
static void all_of_a_flood_end_once(void) {
    static watched w[FLOOD];
    static pplx_work_request requests[FLOOD];
    for (int layout = 0; layout < LAYOUTS; layout++) {
        static bool seen[FLOOD];
        side a, b;
        pair_open(&a, &b, layouts[layout], "");
        memset(seen, 0, sizeof seen);
        fill(a.arena, FLOOD * 8, 3);
        for (uint32_t i = 0; i < FLOOD; i++)
            requests[i] = request(&a, &b, &w[i], i % 3 ? PPLX_WRITE_IMM : PPLX_WRITE, i * 8u, 8, i);
        CHECK_EQ(post_all(&a, requests, FLOOD), PPLX_OK);
        for (uint32_t i = 0; i < FLOOD; i++) {
            WAIT(w[i].completions);
            CHECK_EQ(w[i].status, PPLX_OK);
        }
        WAIT(b.nimms == FLOOD - (FLOOD + 2) / 3);
        for (uint32_t i = 0; i < b.nimms; i++) {
            CHECK(b.imms[i] < FLOOD && b.imms[i] % 3 && !seen[b.imms[i]]);
            seen[b.imms[i]] = true;
        }
        CHECK(memcmp(a.arena, b.arena, FLOOD * 8) == 0);
        pair_close(&a, &b);
    }
}

static void messages_go_to_the_oldest_receive(void) {
    enum { MESSAGES = 40 };
    for (int layout = 0; layout < LAYOUTS; layout++) {
        static watched received[MESSAGES], sent[MESSAGES];
        side a, b;
        pair_open(&a, &b, layouts[layout], "");
        for (uint32_t i = 0; i < MESSAGES; i++) {
            const uint64_t nbytes = i % 4 ? i * 100u : 0;
            fill(a.arena + i * 8192u, nbytes, i);
            const pplx_work_request receive = request(&b, NULL, &received[i], PPLX_RECV, i * 8192u, 8192, 0);
            const pplx_work_request send = request(&a, NULL, &sent[i], PPLX_SEND, i * 8192u, nbytes, 0);
            if (i % 2) CHECK_EQ(post(&b, &receive), PPLX_OK);
            CHECK_EQ(post(&a, &send), PPLX_OK);
            WAIT(sent[i].completions);
            poll_all();
            if (!(i % 2)) CHECK_EQ(post(&b, &receive), PPLX_OK); /* too late */
            WAIT(received[i].completions);
            CHECK_EQ(received[i].status, PPLX_OK);
            CHECK_EQ(received[i].nbytes, nbytes);
            CHECK(memcmp(a.arena + i * 8192u, b.arena + i * 8192u, nbytes) == 0);
        }
        /* longer than its receive: that one fails, the next one gets the next */
        pplx_work_request receive = request(&b, NULL, &received[0], PPLX_RECV, 0, 16, 0);
        pplx_work_request send = request(&a, NULL, &sent[0], PPLX_SEND, 0, 17, 0);
        CHECK_EQ(post(&b, &receive), PPLX_OK);
        CHECK_EQ(post(&a, &send), PPLX_OK);
        WAIT(received[0].completions && sent[0].completions);
        CHECK_EQ(received[0].status, PPLX_TRUNCATED);
        receive = request(&b, NULL, &received[0], PPLX_RECV, 0, 16, 0);
        send = request(&a, NULL, &sent[0], PPLX_SEND, 0, 16, 0);
        CHECK_EQ(post(&b, &receive), PPLX_OK);
        CHECK_EQ(post(&a, &send), PPLX_OK);
        WAIT(received[0].completions && sent[0].completions);
        CHECK_EQ(received[0].status, PPLX_OK);
        pair_close(&a, &b);
    }
}

/* The cap is ours; immediates alone go beyond it. */
static void no_more_is_in_flight_than_the_caps_say(void) {
    static watched w[1024];
    side a, b;
    size_t posted;
    int32_t native;
    pair_open(&a, &b, "x0 roce ip=10.0.0.1", "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(fake.hold("x0", 1), 0);
    const uint32_t most = a.caps.max_inflight;
    CHECK(most < 1000);
    for (uint32_t i = 0; i < most; i++) {
        const pplx_work_request one = request(&a, &b, &w[i], PPLX_WRITE, 0, 8, 0);
        CHECK_EQ(verbs->post(a.endpoint, &one, 1, &posted, &native), PPLX_OK);
    }
    for (uint32_t i = most; i < most + PPLX_RESERVED_IMMS; i++) {
        pplx_work_request one = request(&a, &b, &w[i], PPLX_WRITE, 0, 8, 0);
        CHECK_EQ(verbs->post(a.endpoint, &one, 1, &posted, &native), PPLX_AGAIN);
        CHECK_EQ(posted, 0);
        one = request(&a, &b, &w[i], PPLX_WRITE_IMM, 0, 0, i);
        CHECK_EQ(verbs->post(a.endpoint, &one, 1, &posted, &native), PPLX_OK);
    }
    poll_ms(2);
    for (uint32_t i = 0; i < most; i++) CHECK_EQ(w[i].completions, 0);
    CHECK_EQ(fake.hold("x0", 0), 0);
    for (uint32_t i = 0; i < most + PPLX_RESERVED_IMMS; i++) WAIT(w[i].completions);
    WAIT(b.nimms == PPLX_RESERVED_IMMS);
    pair_close(&a, &b);
}

static void work_is_chained_and_seldom_signalled(void) {
    static watched w[32];
    pplx_work_request requests[32];
    side a, b;
    size_t posted;
    int32_t native;
    pair_open(&a, &b, "x0 roce ip=10.0.0.1", "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    for (uint32_t i = 0; i < 32; i++) requests[i] = request(&a, &b, &w[i], PPLX_WRITE, i * 8u, 8, 0);
    const struct fake_counts before = fake_now();
    CHECK_EQ(verbs->post(a.endpoint, requests, 32, &posted, &native), PPLX_OK);
    const struct fake_counts after = fake_now();
    CHECK_EQ(after.doorbells - before.doorbells, 1);
    CHECK_EQ(after.requests - before.requests, 32);
    CHECK(after.signalled - before.signalled <= 4);
    for (uint32_t i = 0; i < 32; i++) WAIT(w[i].completions);
    pair_close(&a, &b);
}

/* What the receiver hasn't read comes later, and is lost no more than it holds up who polls. */
static void a_receiver_that_does_not_poll_is_waited_for(void) {
    enum { IMMS = 300 };
    static watched w[IMMS];
    side a, b;
    pair_open(&a, &b, "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2 srq=16", "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    b.deaf = true;
    for (uint32_t i = 0; i < 200; i++) {
        const pplx_work_request one = request(&a, &b, &w[i], PPLX_WRITE_IMM, 0, 8, i);
        CHECK_EQ(post(&a, &one), PPLX_OK);
    }
    poll_ms(20);
    CHECK_EQ(w[199].completions, 0);
    b.deaf = false;
    WAIT(b.nimms == 200);
    for (uint32_t i = 0; i < 200; i++) {
        WAIT(w[i].completions);
        CHECK_EQ(w[i].status, PPLX_OK);
    }
    pair_close(&a, &b);
}

/* ---- sleeping ---- */

static bool is_readable(const side *s, int ms) {
    struct pollfd fd = {.fd = verbs->wait_fd(s->domain), .events = POLLIN};
    return poll(&fd, 1, ms) == 1;
}

/* ... and what the device had to tell by itself is read, too. */
static void arm(side *s) {
    const uint64_t start = check_now_ns();
    while (verbs->arm(s->domain) != PPLX_OK || is_readable(s, 0)) {
        poll_all();
        check_patience(start, PATIENCE);
    }
}

static void who_sleeps_is_woken_by_what_comes(void) {
    side a, b;
    watched w;
    pair_open(&a, &b, "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2", "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    for (uint32_t i = 0; i < 200; i++) {
        arm(&b);
        const pplx_work_request one = request(&a, &b, &w, PPLX_WRITE_IMM, 0, 8, i);
        CHECK_EQ(post(&a, &one), PPLX_OK);
        CHECK(is_readable(&b, 1000));
        WAIT(b.nimms == i + 1 && w.completions);
    }
    /* what came before arm() is called is not slept over */
    const pplx_work_request one = request(&a, &b, &w, PPLX_WRITE_IMM, 0, 8, 7);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    CHECK_EQ(verbs->arm(b.domain), PPLX_AGAIN);
    WAIT(b.nimms == 201 && w.completions);
    pair_close(&a, &b);
}

/* Two threads that sleep whenever they may: a wake that is lost stops the game. */
static struct {
    side *sides[2];
    uint32_t rounds;
} game;

static void *play(void *which) {
    side *own = game.sides[which != NULL], *peer = game.sides[which == NULL];
    const uint64_t start = check_now_ns();
    uint32_t sent = 0;
    watched w = {.completions = 1};
    while (sent < game.rounds || own->nimms < game.rounds || !w.completions) {
        const bool turn = which ? own->nimms > sent : own->nimms == sent;
        if (sent < game.rounds && turn && w.completions) {
            const pplx_work_request one = request(own, peer, &w, PPLX_WRITE_IMM, 0, 8, sent);
            size_t posted;
            int32_t native;
            const pplx_status status = verbs->post(own->endpoint, &one, 1, &posted, &native);
            CHECK(status == PPLX_OK || status == PPLX_AGAIN);
            if (status == PPLX_OK)
                sent++;
            else
                w.completions = 1;
        }
        const uint32_t nimms = own->nimms;
        const int ended = w.completions;
        side_poll(own);
        if (own->nimms != nimms || w.completions != ended) continue;
        const pplx_status status = verbs->arm(own->domain);
        if (status == PPLX_AGAIN) continue;
        struct pollfd fd = {.fd = verbs->wait_fd(own->domain), .events = POLLIN};
        if (poll(&fd, 1, status == PPLX_OK ? 10000 : 1) == 0 && status == PPLX_OK)
            check_failed(__FILE__, __LINE__, "nobody woke it");
        check_patience(start, 60);
    }
    return NULL;
}

static void no_wake_is_lost_between_threads(void) {
    static const char *const where[] = {"x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2",
                                        "x0 roce ip=10.0.0.1 delay=5; x1 roce ip=10.0.0.2 delay=3"};
    for (int i = 0; i < 2; i++) {
        side a, b;
        pthread_t thread;
        pair_open(&a, &b, where[i], "");
        game.sides[0] = &a;
        game.sides[1] = &b;
        game.rounds = 1500;
        CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
        CHECK_EQ(pthread_create(&thread, NULL, play, &game), 0);
        play(NULL);
        CHECK_EQ(pthread_join(thread, NULL), 0);
        CHECK_EQ(a.nimms, game.rounds);
        CHECK_EQ(b.nimms, game.rounds);
        pair_close(&a, &b);
    }
}

/* ---- which device, which GID ---- */

static void devices_and_gids_are_chosen_by_rule(void) {
    static const struct {
        const char *layout, *options;
        const char *devices; /* by preference; or, with a `!`, what the error says */
        const char *address; /* of the first */
    } cases[] = {
        {"x0 roce ip=10.0.0.1", "", "x0", "10.0.0.1"},
        {"x0 roce gbps=25 ip=10.0.0.1; x1 roce gbps=100 ip=10.0.0.2", "", "x1 x0", "10.0.0.2"},
        {"x0 roce gbps=25 ip=10.0.0.1; x1 roce gbps=100 ip=10.0.0.2", "node=10.0.0.1", "x0 x1", "10.0.0.1"},
        {"x0 roce v1=10.0.0.1", "", "!no routable GID of RoCE v2", NULL},
        {"x0 roce", "", "!give its interface an IP address", NULL},
        {"x0 roce", "gid_index=1", "x0", "fe80::200:5eff:fe00:101"}, /* said outright */
        {"x0 roce", "gid_index=9", "!no GID 9", NULL},
        {"x0 roce v2=2001:db8::5", "", "x0", "2001:db8::5"},
        {"x0 roce v2=2001:db8::5 ip=10.0.0.1", "", "x0", "10.0.0.1"}, /* IPv4 before IPv6 */
        {"x0 roce v2=2001:db8::5 ip=10.0.0.1", "node=2001:db8::5", "x0", "2001:db8::5"},
        {"x0 roce ip=10.0.0.1 ip=10.0.0.2", "node=10.0.0.2", "x0", "10.0.0.2"},
        {"x0 ib lid=12", "", "x0", "LID 12"},
        {"x0 ib pkey=0x7fff pkey=0x8001", "pkey_index=2", "!no P_Key 2", NULL},
        {"x0 ib pkey=0", "", "!in no partition", NULL},
        {"x0 ib lid=12 down", "", "!down", NULL},
        {"x0 ib init lid=1", "", "!subnet manager", NULL},
        {"x0 roce down ip=10.0.0.1 port ip=10.0.0.2", "", "x0:2", "10.0.0.2"},
        {"x0 roce ip=10.0.0.1 port ip=10.0.0.2", "port=2", "x0:2", "10.0.0.2"},
        {"x0 iwarp ip=10.0.0.1", "", "!iWARP", NULL},
        {"x0 efa", "", "!EFA", NULL},
        {"x0 roce noopen ip=10.0.0.1", "", "!ermission", NULL},
        {"x0 roce noopen ip=10.0.0.1; x1 roce ip=10.0.0.2", "", "x1", "10.0.0.2"},
        {"none", "", "!no RDMA device", NULL},
        {"nosys", "", "!no RDMA device", NULL},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pplx_device devices[8];
        pplx_error error = {0};
        option_list list;
        size_t count = 9;
        char names[256] = "";
        layout_is(cases[i].layout);
        option_list_of(&list, cases[i].options);
        const pplx_status status = verbs->discover(list.options, list.count, devices, 8, &count, &error);
        check_clean();
        if (cases[i].devices[0] == '!') {
            if (status != PPLX_UNAVAILABLE || !strstr(error.text, cases[i].devices + 1))
                check_failed(cases[i].layout, (int)i, error.text);
            continue;
        }
        if (status != PPLX_OK) check_failed(cases[i].layout, (int)i, error.text);
        for (size_t d = 0; d < count; d++) {
            strcat(names, d ? " " : "");
            strcat(names, devices[d].name);
        }
        if (strcmp(names, cases[i].devices) != 0 || strcmp(devices[0].address, cases[i].address) != 0)
            check_failed(cases[i].layout, (int)i, devices[0].address);
    }
}

static void speed_is_the_ports(void) {
    static const struct {
        const char *layout;
        uint64_t gbps;
    } cases[] = {{"x0 roce ip=10.0.0.1 gbps=10", 10},
                 {"x0 roce ip=10.0.0.1 gbps=25", 25},
                 {"x0 roce ip=10.0.0.1 gbps=100", 100},
                 {"x0 ib gbps=200", 200},
                 {"x0 ib gbps=400", 400}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        side a;
        layout_is(cases[i].layout);
        side_open(&a, "x0", "");
        CHECK_EQ(a.caps.bits_per_second, cases[i].gbps * 1000000000u);
        CHECK(strstr(a.caps.description, "MTU"));
        side_close(&a);
        check_clean();
    }
}

/* Both sides have several addresses; each chooses for itself, and both the same pair. */
static void sides_of_many_addresses_meet(void) {
    static const char *const where[] = {
        "x0 roce ip=10.0.0.1 ip=192.168.7.1; x1 roce ip=172.16.0.9 ip=192.168.7.2",
        "x0 roce v2=2001:db8::1 ip=10.0.0.1; x1 roce v2=2001:db8::2",
        "x0 roce v2=2001:db8::1; x1 roce ip=10.9.9.9 v2=2001:db8::2",
        "x0 roce ip=10.0.0.1 ip=10.0.0.3; x1 roce ip=10.0.0.2 ip=10.0.0.4",
    };
    for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
        side a, b;
        pair_open(&a, &b, where[i], "");
        CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
        CHECK_EQ(perform(&b, &a, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
        pair_close(&a, &b);
    }
    side a, b;
    pplx_error error = {0};
    layout_is("x0 roce v2=2001:db8::1; x1 roce ip=10.0.0.1; x2 ib");
    side_open(&a, "x0", "");
    side_open(&b, "x1", "");
    CHECK_EQ(verbs->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_INVALID);
    CHECK(strstr(error.text, "IPv6"));
    side_close(&b);
    side_open(&b, "x2", "");
    CHECK_EQ(verbs->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_INVALID);
    CHECK(strstr(error.text, "InfiniBand"));
    pair_close(&a, &b);
}

/* Of the P_Keys the first that makes a full member, and that is said. Two limited members would not hear each other,
 * nor those of two partitions: both know that before they try. */
static void partitions_are_chosen_by_rule_and_must_be_shared(void) {
    side a, b;
    pplx_error error = {0};
    layout_is("x0 ib pkey=0x7fff pkey=0x8001 pkey=0x8002; x1 ib pkey=0x8002");
    side_open(&a, "x0", "");
    side_open(&b, "x1", "");
    CHECK(strstr(a.caps.description, "P_Key 0x8001 (entry 1)"));
    CHECK_EQ(verbs->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_INVALID);
    CHECK(strstr(error.text, "0x8002") && strstr(error.text, "0x8001") && strstr(error.text, "verbs_pkey_index"));
    side_close(&a);
    side_open(&a, "x0", "pkey_index=2");
    connect_sides(&a, &b);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
    pair_close(&a, &b);
    layout_is("x0 ib pkey=0x7fff; x1 ib pkey=0x7fff");
    side_open(&a, "x0", "");
    side_open(&b, "x1", "");
    CHECK_EQ(verbs->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_INVALID);
    CHECK(strstr(error.text, "limited"));
    pair_close(&a, &b);
}

/* What is changed while the device is open, as whoever connects next meets it. */
static void who_connects_later_takes_the_port_as_it_is_then(void) {
    static const struct {
        const char *layout, *change;
    } cases[] = {
        {"x0 ib lid=3; x1 ib lid=9", "lid=77"},
        {"x0 roce mtu=4096 ip=10.0.0.1; x1 roce mtu=4096 ip=10.0.0.2", "mtu=1024"},
        {"x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2", "bare v1=10.0.0.1 ip=10.9.0.1 ip=10.0.0.1"}, /* elsewhere */
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        side a, b;
        pair_open(&a, &b, cases[i].layout, "");
        CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 1), PPLX_OK);
        side_shut(&a);
        side_shut(&b);
        CHECK_EQ(fake.change("x0", cases[i].change), 0);
        side_listen(&a);
        side_listen(&b);
        connect_sides(&a, &b);
        fill(a.arena, 9000, i);
        CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 9000, 1), PPLX_OK);
        CHECK(memcmp(a.arena, b.arena, 9000) == 0);
        pair_close(&a, &b);
    }
    side a, b;
    pplx_error error = {0};
    pair_open(&a, &b, "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2", "");
    side_shut(&a);
    CHECK_EQ(fake.change("x0", "bare v1=10.0.0.1 ip=10.9.0.1"), 0);
    a.naddress = sizeof a.address;
    CHECK_EQ(verbs->endpoint_open(a.domain, &a.endpoint, a.address, &a.naddress, &error), PPLX_NATIVE);
    CHECK(strstr(error.text, "lost the address"));
    pair_close(&a, &b);
}

static void packets_are_marked_as_the_network_wants(void) {
    static const char *const where[] = {"x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2", "x0 ib grh lid=3; x1 ib grh lid=3"};
    for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
        side a, b;
        int level = -1, class = -1;
        pair_open(&a, &b, where[i], "service_level=3 traffic_class=106");
        CHECK_EQ(fake.route("x0", &level, &class), 0);
        CHECK_EQ(level, 3);
        CHECK_EQ(class, 106);
        pair_close(&a, &b);
    }
}

/* ---- memory ---- */

static void memory_of_a_dmabuf_is_reached_where_the_device_takes_it(void) {
    side a, b;
    pplx_error error = {0};
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    watched w;
    const int fd = memfd_create("test", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, 65536) == 0);
    uint8_t *bytes = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(bytes != MAP_FAILED);
    pplx_memory memory = {
        .kind = PPLX_MEMORY_DMABUF, .address = 0x700000000000, .nbytes = 8192, .fd = fd, .fd_offset = 4096};
    pair_open(&a, &b, "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2 dmabuf", "");
    CHECK(!(a.caps.flags & PPLX_CAP_DMABUF));
    CHECK_EQ(verbs->mr_open(a.domain, &memory, PPLX_ACCESS_REMOTE_WRITE, &mr, &key, &error), PPLX_UNSUPPORTED);
    CHECK(b.caps.flags & PPLX_CAP_DMABUF);
    CHECK_EQ(verbs->mr_open(b.domain, &memory, PPLX_ACCESS_REMOTE_WRITE, &mr, &key, &error), PPLX_OK);
    fill(a.arena, 100, 1);
    pplx_work_request one = request(&a, &b, &w, PPLX_WRITE, 0, 100, 0);
    one.remote_key = key.key;
    one.remote_address = key.base + 8000;
    CHECK_EQ(post(&a, &one), PPLX_OK);
    WAIT(w.completions);
    CHECK_EQ(w.status, PPLX_OK);
    CHECK(memcmp(a.arena, bytes + 4096 + 8000, 100) == 0);
    /* as a source, and never inlined: the CPU has no address of it */
    one = request(&b, &a, &w, PPLX_WRITE, 0, 8, 0);
    one.local_mr = mr;
    one.local_address = memory.address;
    CHECK_EQ(post(&b, &one), PPLX_OK);
    WAIT(w.completions);
    CHECK_EQ(w.status, PPLX_OK);
    CHECK_EQ(verbs->mr_close(mr), PPLX_OK);
    pair_close(&a, &b);
    munmap(bytes, 65536);
    close(fd);
}

static void what_cannot_be_registered_is_said_so(void) {
    side a;
    pplx_error error = {0};
    pplx_provider_mr *mr = NULL, *second = NULL;
    pplx_remote_key key;
    layout_is("x0 roce ip=10.0.0.1 mrs=3");
    side_open(&a, "x0", ""); /* its buffers and its arena */
    const uint8_t *constant = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pplx_memory memory = {.device = -1, .address = (uintptr_t)constant, .nbytes = 4096, .fd = -1};
    CHECK_EQ(verbs->mr_open(a.domain, &memory, PPLX_ACCESS_REMOTE_WRITE, &mr, &key, &error), PPLX_REGISTRATION);
    CHECK_EQ(verbs->mr_open(a.domain, &memory, PPLX_ACCESS_REMOTE_READ, &mr, &key, &error), PPLX_OK);
    CHECK_EQ(verbs->mr_open(a.domain, &memory, PPLX_ACCESS_REMOTE_READ, &second, &key, &error), PPLX_REGISTRATION);
    CHECK(!second && strstr(error.text, "memory"));
    CHECK_EQ(verbs->mr_close(mr), PPLX_OK);
    memory.nbytes = 0;
    CHECK_EQ(verbs->mr_open(a.domain, &memory, 0, &mr, &key, &error), PPLX_INVALID);
    memory = (pplx_memory){.device = -1, .address = 4096, .nbytes = 4096, .fd = -1};
    CHECK_EQ(verbs->mr_open(a.domain, &memory, 0, &mr, &key, &error), PPLX_REGISTRATION); /* nothing is there */
    memory.address = UINT64_MAX - 8;
    CHECK_EQ(verbs->mr_open(a.domain, &memory, 0, &mr, &key, &error), PPLX_INVALID);
    munmap((void *)(uintptr_t)constant, 4096);
    side_close(&a);
    check_clean();
}

/* ---- many ---- */

static void one_domain_has_many_peers(void) {
    enum { PEERS = 64 };
    static side peers[PEERS];
    static watched w[PEERS];
    side hub;
    pplx_error error = {0};
    pplx_provider_endpoint *ways[PEERS];
    layout_is("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2");
    side_open(&hub, "x0", "");
    for (int i = 0; i < PEERS; i++) {
        uint8_t address[PPLX_ADDRESS_BYTES];
        size_t nbytes = sizeof address;
        side_open(&peers[i], "x1", "");
        CHECK_EQ(verbs->endpoint_open(hub.domain, &ways[i], address, &nbytes, &error), PPLX_OK);
        CHECK_EQ(verbs->endpoint_connect(ways[i], peers[i].address, peers[i].naddress, &error), PPLX_OK);
        CHECK_EQ(verbs->endpoint_connect(peers[i].endpoint, address, nbytes, &error), PPLX_OK);
    }
    for (uint32_t i = 0; i < PEERS; i++) {
        pplx_work_request one = request(&peers[i], &hub, &w[i], PPLX_WRITE_IMM, i * 8u, 8, i);
        peers[i].arena[i * 8u] = (uint8_t)(i + 1);
        CHECK_EQ(post(&peers[i], &one), PPLX_OK);
        WAIT(hub.nimms == i + 1 && w[i].completions);
        CHECK(hub.source == ways[i]); /* whose it is */
        CHECK_EQ(hub.arena[i * 8u], i + 1);
    }
    for (int i = 0; i < PEERS; i += 2) CHECK_EQ(verbs->endpoint_close(ways[i]), PPLX_OK);
    for (int i = 1; i < PEERS; i += 2) CHECK_EQ(perform(&peers[i], &hub, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
    for (int i = 1; i < PEERS; i += 2) CHECK_EQ(verbs->endpoint_close(ways[i]), PPLX_OK);
    for (int i = 0; i < PEERS; i++) side_close(&peers[i]);
    side_close(&hub);
    check_clean();
}

int main(void) {
    fake_load(false);
    RUN(misspelt_and_senseless_options_are_refused);
    RUN(bytes_are_written_and_read);
    RUN(an_immediate_comes_after_its_bytes_and_once);
    RUN(soft_roce_gets_short_writes_few_of_them_and_whole_messages);
    RUN(a_write_that_has_ended_is_visible);
    RUN(all_of_a_flood_end_once);
    RUN(messages_go_to_the_oldest_receive);
    RUN(no_more_is_in_flight_than_the_caps_say);
    RUN(work_is_chained_and_seldom_signalled);
    RUN(a_receiver_that_does_not_poll_is_waited_for);
    RUN(who_sleeps_is_woken_by_what_comes);
    RUN(no_wake_is_lost_between_threads);
    RUN(devices_and_gids_are_chosen_by_rule);
    RUN(speed_is_the_ports);
    RUN(sides_of_many_addresses_meet);
    RUN(partitions_are_chosen_by_rule_and_must_be_shared);
    RUN(who_connects_later_takes_the_port_as_it_is_then);
    RUN(packets_are_marked_as_the_network_wants);
    RUN(memory_of_a_dmabuf_is_reached_where_the_device_takes_it);
    RUN(what_cannot_be_registered_is_said_so);
    RUN(one_domain_has_many_peers);
    return check_done();
}

#else

int main(void) {
    puts("libibverbs's headers are not installed (package libibverbs-dev)");
    return 77;
}

#endif
