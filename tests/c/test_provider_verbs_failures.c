/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What fails on verbs, over the fake libibverbs: refused posts, wrong keys and what is made new after them, peers
 * that die or break the rules, ports and devices, closing with work under way. */
#include <stdio.h>

#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "verbs_sides.h"

static const char two_nics[] = "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2";
/* A peer is given up after 2 x 2 ms. */
static const char impatient[] = "timeout=9 retry_count=1";

/* ---- posts that are not taken whole ---- */

static void a_part_of_a_batch_is_counted_right_wherever_it_ends(void) {
    enum { BATCH = 40 };
    side a, b;
    pair_open(&a, &b, two_nics, "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    uint32_t imms = 0;
    for (uint32_t after = 0; after <= BATCH; after++) {
        static watched w[BATCH];
        pplx_work_request requests[BATCH];
        for (uint32_t i = 0; i < BATCH; i++)
            requests[i] = request(&a, &b, &w[i], PPLX_WRITE_IMM, i * 8u, 8, after * 100 + i);
        CHECK_EQ(fake.refuse("x0", after, 3, ENOMEM), 0);
        size_t posted = 99;
        int32_t native = 0;
        const pplx_status status = verbs->post(a.endpoint, requests, BATCH, &posted, &native);
        CHECK_EQ(status, after < BATCH ? PPLX_AGAIN : PPLX_OK);
        CHECK_EQ(posted, after);
        for (uint32_t i = 0; i < posted; i++) { /* although the one that was to be signalled wasn't taken */
            WAIT(w[i].completions);
            CHECK_EQ(w[i].status, PPLX_OK);
        }
        for (uint32_t i = after; i < BATCH; i++) CHECK_EQ(w[i].completions, 0);
        CHECK_EQ(fake.refuse("x0", 0, 0, 0), 0);
        CHECK_EQ(post_all(&a, requests + posted, BATCH - posted), PPLX_OK);
        for (uint32_t i = 0; i < BATCH; i++) WAIT(w[i].completions);
        imms += BATCH;
        WAIT(b.nimms == imms);
        for (uint32_t i = 0; i < BATCH; i++) CHECK_EQ(b.imms[imms - BATCH + i], after * 100 + i);
    }
    /* any other errno says that it never will be taken */
    watched w;
    const pplx_work_request one = request(&a, &b, &w, PPLX_WRITE, 0, 8, 0);
    size_t posted = 99;
    int32_t native = 0;
    CHECK_EQ(fake.refuse("x0", 0, 1, EFAULT), 0);
    CHECK_EQ(verbs->post(a.endpoint, &one, 1, &posted, &native), PPLX_NATIVE);
    CHECK_EQ(native, EFAULT);
    CHECK_EQ(posted, 0);
    pair_close(&a, &b);
}

static void what_no_device_would_take_is_refused_before(void) {
    side a, b;
    watched w;
    pair_open(&a, &b, two_nics, "message_nbytes=4096");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    pplx_work_request one = request(&a, &b, &w, PPLX_WRITE, 0, ARENA + 1, 0);
    CHECK_EQ(post(&a, &one), PPLX_LOCAL_ACCESS);
    one = request(&a, &b, &w, PPLX_WRITE, 0, 8, 0);
    one.local_address -= 1;
    CHECK_EQ(post(&a, &one), PPLX_LOCAL_ACCESS);
    one = request(&a, &b, &w, PPLX_WRITE, 0, 8, 0);
    one.local_mr = b.mr; /* of another domain */
    CHECK_EQ(post(&a, &one), PPLX_LOCAL_ACCESS);
    one = request(&a, &b, &w, PPLX_WRITE, 0, a.caps.max_message + 1, 0);
    CHECK_EQ(post(&a, &one), PPLX_TOO_LARGE);
    one = request(&a, NULL, &w, PPLX_SEND, 0, 4097, 0);
    CHECK_EQ(post(&a, &one), PPLX_TOO_LARGE);
    one = request(&a, &b, &w, 99, 0, 8, 0);
    CHECK_EQ(post(&a, &one), PPLX_INVALID);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    pair_close(&a, &b);
}

/* ---- wrong keys ---- */

enum wrong { KEY, RANGE, ABOVE, REVOKED, READ_ONLY, WRITE_ONLY, WRONGS };

/* Only it fails, nothing is touched, and the peer lives on. */
static void a_wrong_key_fails_one_op_and_no_peer(void) {
    for (int which = 0; which < WRONGS; which++) {
        side a, b;
        pplx_error error = {0};
        pplx_provider_mr *mr = NULL;
        pplx_remote_key key;
        watched w;
        static uint8_t other[64];
        pair_open(&a, &b, two_nics, "");
        const uint32_t access = which == READ_ONLY    ? PPLX_ACCESS_REMOTE_READ
                                : which == WRITE_ONLY ? PPLX_ACCESS_REMOTE_WRITE
                                                      : PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
        const pplx_memory memory = {.device = -1, .address = (uintptr_t)other, .nbytes = sizeof other, .fd = -1};
        CHECK_EQ(verbs->mr_open(b.domain, &memory, access, &mr, &key, &error), PPLX_OK);
        memset(other, 0, sizeof other);
        memset(a.arena, 9, sizeof other);
        pplx_work_request one = request(&a, &b, &w, which == WRITE_ONLY ? PPLX_READ : PPLX_WRITE_IMM, 0, 8, 77);
        one.remote_key = key.key;
        one.remote_address = key.base;
        if (which == KEY) one.remote_key ^= 1;
        if (which == RANGE) one.remote_address += sizeof other - 7;
        if (which == ABOVE) one.remote_address = UINT64_MAX - 3;
        if (which == REVOKED) {
            CHECK_EQ(verbs->mr_close(mr), PPLX_OK);
            mr = NULL;
        }
        for (int again = 0; again < 3; again++) {
            w.completions = 0;
            CHECK_EQ(post(&a, &one), PPLX_OK);
            WAIT(w.completions);
            CHECK_EQ(w.status, PPLX_REMOTE_ACCESS);
            CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 64, 8, 5), PPLX_OK);
            CHECK_EQ(perform(&b, &a, PPLX_WRITE_IMM, 64, 8, 6), PPLX_OK);
            WAIT(b.nimms == (uint32_t)again + 1 && a.nimms == (uint32_t)again + 1);
        }
        for (size_t i = 0; i < sizeof other; i++) CHECK_EQ(other[i], 0);
        if (mr) CHECK_EQ(verbs->mr_close(mr), PPLX_OK);
        pair_close(&a, &b);
    }
}

/* In the midst of others, from both sides at once, again and again: each op ends once and as it should, each
 * immediate of a right one arrives exactly once, and none of a wrong one. */
enum { OPS = 150, ROUNDS = 12 };

static void one_round(side *s, uint64_t *seed) {
    static watched w[2][OPS];
    static pplx_work_request requests[2][OPS];
    static bool wrong[2][OPS];
    uint32_t done[2] = {0, 0}, expected[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        s[i].nimms = 0;
        for (uint32_t op = 0; op < OPS; op++) {
            static const uint32_t opcodes[] = {PPLX_WRITE, PPLX_WRITE_IMM, PPLX_WRITE_IMM, PPLX_READ};
            const uint32_t opcode = opcodes[check_random(seed) % 4];
            requests[i][op] = request(&s[i], &s[!i], &w[i][op], opcode, 8192u * (unsigned)i + op * 8u, 8, op);
            wrong[i][op] = check_random(seed) % 24 == 0;
            if (wrong[i][op])
                requests[i][op].remote_key ^= 0x40;
            else
                expected[!i] += opcode == PPLX_WRITE_IMM;
        }
    }
    while (done[0] < OPS || done[1] < OPS) {
        const int i = done[0] == OPS || (done[1] < OPS && check_random(seed) % 2);
        uint32_t n = 1 + (uint32_t)(check_random(seed) % 20);
        if (n > OPS - done[i]) n = OPS - done[i];
        CHECK_EQ(post_all(&s[i], requests[i] + done[i], n), PPLX_OK);
        done[i] += n;
    }
    for (int i = 0; i < 2; i++)
        for (uint32_t op = 0; op < OPS; op++) {
            WAIT(w[i][op].completions);
            CHECK_EQ(w[i][op].status, wrong[i][op] ? PPLX_REMOTE_ACCESS : PPLX_OK);
        }
    WAIT(s[0].nimms >= expected[0] && s[1].nimms >= expected[1]);
    for (int i = 0; i < 2; i++) {
        bool seen[OPS] = {0};
        CHECK_EQ(s[i].nimms, expected[i]);
        for (uint32_t n = 0; n < s[i].nimms; n++) {
            const uint32_t op = s[i].imms[n];
            CHECK(op < OPS && requests[!i][op].opcode == PPLX_WRITE_IMM && !wrong[!i][op] && !seen[op]);
            seen[op] = true;
        }
    }
}

static void after_wrong_keys_among_others_each_immediate_arrives_once(void) {
    static const char *const where[] = {"x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2",
                                        "x0 roce ip=10.0.0.1 delay=15; x1 roce ip=10.0.0.2 delay=40",
                                        "x0 roce ip=10.0.0.1 stale; x1 roce ip=10.0.0.2 stale delay=10",
                                        "x0 ib lid=1 srq=24 wr=40 cqe=160; x1 ib lid=2 srq=24 wr=40 cqe=160"};
    for (size_t i = 0; i < sizeof where / sizeof where[0]; i++) {
        uint64_t seed = 7 + i;
        side s[2];
        pair_open(&s[0], &s[1], where[i], "");
        for (int round = 0; round < ROUNDS; round++) one_round(s, &seed);
        pair_close(&s[0], &s[1]);
    }
}

/* Any other failure of the queue of writes is mended likewise. */
static void a_queue_that_breaks_by_itself_is_made_new(void) {
    static const int statuses[] = {IBV_WC_GENERAL_ERR, IBV_WC_REM_OP_ERR, IBV_WC_LOC_QP_OP_ERR,
                                   IBV_WC_RNR_RETRY_EXC_ERR, IBV_WC_REM_INV_REQ_ERR};
    side a, b;
    watched w;
    pair_open(&a, &b, two_nics, "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        const pplx_work_request one = request(&a, &b, &w, PPLX_WRITE, 0, 8, 0);
        CHECK_EQ(fake.breaks("x0", 0, statuses[i]), 0);
        CHECK_EQ(post(&a, &one), PPLX_OK);
        WAIT(w.completions);
        CHECK_EQ(w.status, PPLX_TRANSPORT);
        CHECK_EQ(w.native, statuses[i]);
        CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 0, 8, 5), PPLX_OK);
    }
    WAIT(b.nimms == sizeof statuses / sizeof statuses[0]);
    pair_close(&a, &b);
}

/* ---- peers that are gone ---- */

/* rdma_rxe remembers it, and would say of what is posted again first that it has succeeded. */
static void a_queue_that_broke_in_the_middle_of_a_read_reads_and_writes_all_the_same(void) {
    enum { READS = 3, NBYTES = 4096 };
    for (int kind = 0; kind < 2; kind++) {
        side a, b;
        watched wrong, read[READS], w;
        pair_open(&a, &b, "x0 roce soft sticky mtu=1024 ip=10.0.0.1; x1 roce soft sticky mtu=1024 ip=10.0.0.2", "");
        fill(b.arena, ARENA, 5);
        pplx_work_request one;
        CHECK_EQ(perform(&a, &b, PPLX_WRITE, ARENA - 8, 8, 0), PPLX_OK); /* they have met */
        CHECK_EQ(perform(&b, &a, PPLX_WRITE, ARENA - 8, 8, 0), PPLX_OK);
        CHECK_EQ(fake.hold("x0", 1), 0);
        for (unsigned i = 0; i < READS; i++) {
            one = request(&a, &b, &read[i], PPLX_READ, i * NBYTES, NBYTES, 0);
            CHECK_EQ(post(&a, &one), PPLX_OK);
        }
        one = request(&a, &b, &w, kind ? PPLX_WRITE_IMM : PPLX_WRITE, READS * NBYTES, NBYTES, 7);
        memset(a.arena + READS * NBYTES, 9, NBYTES);
        CHECK_EQ(post(&a, &one), PPLX_OK);
        one = request(&b, &a, &wrong, PPLX_WRITE, 0, 8, 0);
        one.remote_key ^= 1;
        CHECK_EQ(post(&b, &one), PPLX_OK);
        CHECK_EQ(fake.hold("x0", 0), 0);
        WAIT(read[0].completions && read[1].completions && read[2].completions && w.completions && wrong.completions);
        CHECK_EQ(wrong.status, PPLX_REMOTE_ACCESS);
        for (int i = 0; i < READS; i++) CHECK_EQ(read[i].status, PPLX_OK);
        CHECK_EQ(w.status, PPLX_OK);
        CHECK(memcmp(a.arena, b.arena, (READS + 1) * NBYTES) == 0);
        poll_ms(5);
        CHECK_EQ(b.nimms, (unsigned)kind);
        pair_close(&a, &b);
    }
}

static void all_work_for_a_peer_that_is_gone_ends(void) {
    enum { OPS_OUT = 30 };
    static watched w[OPS_OUT], receive, send;
    side a, b;
    pair_open(&a, &b, two_nics, impatient);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    pplx_work_request one = request(&a, NULL, &receive, PPLX_RECV, 0, 8, 0);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    side_shut(&b);
    for (uint32_t i = 0; i < OPS_OUT; i++) {
        one = request(&a, &b, &w[i], i % 2 ? PPLX_WRITE_IMM : PPLX_READ, 0, 8, i);
        CHECK_EQ(post(&a, &one), PPLX_OK);
    }
    one = request(&a, NULL, &send, PPLX_SEND, 0, 8, 0);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    for (uint32_t i = 0; i < OPS_OUT; i++) {
        WAIT(w[i].completions);
        CHECK_EQ(w[i].status, PPLX_PEER_LOST);
    }
    WAIT(receive.completions && send.completions);
    CHECK_EQ(receive.status, PPLX_PEER_LOST);
    CHECK_EQ(send.status, PPLX_PEER_LOST);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_PEER_LOST);
    /* and it can come again */
    side_shut(&a);
    side_listen(&a);
    side_listen(&b);
    connect_sides(&a, &b);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 0, 8, 0), PPLX_OK);
    pair_close(&a, &b);
}

static void a_peer_that_never_connects_is_given_up(void) {
    side a, b;
    pplx_error error = {0};
    layout_is(two_nics);
    for (int which = 0; which < 2; which++) { /* whichever of the two begins */
        side_open(&a, "x0", impatient);
        side_open(&b, "x1", impatient);
        side *waits = which ? &a : &b, *absent = which ? &b : &a;
        CHECK_EQ(verbs->endpoint_connect(waits->endpoint, absent->address, absent->naddress, &error), PPLX_OK);
        poll_ms(30);
        watched w;
        const pplx_work_request one = request(waits, absent, &w, PPLX_WRITE, 0, 8, 0);
        size_t posted;
        int32_t native;
        CHECK_EQ(verbs->post(waits->endpoint, &one, 1, &posted, &native), PPLX_AGAIN); /* it may come yet */
        CHECK_EQ(verbs->endpoint_connect(absent->endpoint, waits->address, waits->naddress, &error), PPLX_OK);
        CHECK_EQ(perform(waits, absent, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
        CHECK_EQ(perform(absent, waits, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
        side_close(&a);
        side_close(&b);
    }
    check_clean();
}

/* ---- closing as a fence ---- */

static void closing_lets_go_of_memory_and_ops(void) {
    enum { OPS_OUT = 60 };
    static watched w[OPS_OUT], receive;
    side a, b;
    pair_open(&a, &b, two_nics, "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(fake.hold("x0", 1), 0);
    pplx_work_request one = request(&a, NULL, &receive, PPLX_RECV, 0, 8, 0);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    memset(b.arena, 0, 4096);
    memset(a.arena, 1, 4096);
    for (uint32_t i = 0; i < OPS_OUT; i++) {
        one = request(&a, &b, &w[i], i % 2 ? PPLX_WRITE_IMM : PPLX_READ, i * 16u, 16, i);
        CHECK_EQ(post(&a, &one), PPLX_OK);
    }
    side_shut(&a);
    CHECK_EQ(fake.hold("x0", 0), 0);
    poll_ms(5);
    for (uint32_t i = 0; i < OPS_OUT; i++) CHECK_EQ(w[i].completions, 0);
    CHECK_EQ(receive.completions, 0);
    CHECK_EQ(b.nimms, 0);
    for (size_t i = 0; i < 1024; i++) CHECK(b.arena[i] == 0 && a.arena[i] == 1);
    pair_close(&a, &b);
}

/* What had arrived before is told, of an endpoint that is closed by then. */
static void immediates_that_had_arrived_are_told_after_closing(void) {
    side a, b;
    watched w[20];
    pair_open(&a, &b, two_nics, "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    b.deaf = true;
    for (uint32_t i = 0; i < 20; i++) {
        const pplx_work_request one = request(&a, &b, &w[i], PPLX_WRITE_IMM, 0, 8, i);
        CHECK_EQ(post(&a, &one), PPLX_OK);
        WAIT(w[i].completions);
    }
    const void *endpoint = b.endpoint;
    side_shut(&b);
    b.deaf = false;
    WAIT(b.nimms == 20);
    CHECK(b.source == endpoint);
    pair_close(&a, &b);
}

/* ---- ports and devices ---- */

static void a_port_that_goes_down_loses_its_peers_when_they_are_missed(void) {
    side a, b;
    pplx_error error = {0};
    pair_open(&a, &b, two_nics, impatient);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(fake.event("x0", 1, IBV_EVENT_PORT_ERR), 0);
    poll_ms(20); /* nobody is missed */
    CHECK_EQ(fake.event("x0", 1, IBV_EVENT_PORT_ACTIVE), 0);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(fake.event("x0", 1, IBV_EVENT_PORT_ERR), 0);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_PEER_LOST);
    side_shut(&a);
    size_t nbytes = sizeof a.address;
    /* the event is read when the descriptor says so */
    const uint64_t start = check_now_ns();
    while (verbs->endpoint_open(a.domain, &a.endpoint, a.address, &nbytes, &error) == PPLX_OK) {
        side_shut(&a);
        nbytes = sizeof a.address;
        CHECK(verbs->arm(a.domain) != PPLX_INTERNAL);
        poll_all();
        check_patience(start, PATIENCE);
    }
    CHECK(strstr(error.text, "port"));
    a.endpoint = NULL;
    pair_close(&a, &b);
}

static void a_cable_that_is_cut_loses_the_peer_in_time(void) {
    side a, b;
    pair_open(&a, &b, two_nics, ""); /* the timeouts that users get */
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(fake.cut("x1", 1, 1), 0);
    const uint64_t start = check_now_ns();
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_PEER_LOST);
    CHECK(check_now_ns() - start > 100000000u); /* a few losses are none */
    pair_close(&a, &b);
}

static void a_device_that_fails_loses_all_and_wakes_who_sleeps(void) {
    side a, b;
    watched w, receive;
    pair_open(&a, &b, two_nics, "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(fake.hold("x0", 1), 0);
    pplx_work_request one = request(&a, NULL, &receive, PPLX_RECV, 0, 8, 0);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    one = request(&a, &b, &w, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(post(&a, &one), PPLX_OK);
    const uint64_t start = check_now_ns();
    struct pollfd fd = {.fd = verbs->wait_fd(a.domain), .events = POLLIN};
    while (verbs->arm(a.domain) != PPLX_OK || poll(&fd, 1, 0) == 1) {
        poll_all();
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(fake.event("x0", 0, IBV_EVENT_DEVICE_FATAL), 0);
    CHECK_EQ(poll(&fd, 1, 1000), 1);
    WAIT(w.completions && receive.completions);
    CHECK_EQ(w.status, PPLX_PEER_LOST);
    CHECK_EQ(receive.status, PPLX_PEER_LOST);
    pplx_error error = {0};
    pplx_provider_endpoint *endpoint;
    uint8_t address[PPLX_ADDRESS_BYTES];
    size_t nbytes = sizeof address;
    CHECK_EQ(verbs->endpoint_open(a.domain, &endpoint, address, &nbytes, &error), PPLX_NATIVE);
    CHECK(strstr(error.text, "x0"));
    pair_close(&a, &b);
}

/* ---- hostile peers ---- */

static uint64_t random_state = 11;

static void any_address_is_refused_or_leads_nowhere(void) {
    side a, b;
    pplx_error error;
    layout_is(two_nics);
    side_open(&b, "x1", impatient);
    for (int round = 0; round < 3000; round++) {
        uint8_t bytes[PPLX_ADDRESS_BYTES];
        size_t nbytes = b.naddress;
        if (round == 0 || !a.endpoint) {
            if (round == 0)
                side_open(&a, "x0", impatient);
            else
                side_listen(&a);
        }
        memcpy(bytes, b.address, sizeof bytes);
        switch (round % 4) {
        case 0: bytes[check_random(&random_state) % nbytes] = (uint8_t)check_random(&random_state); break;
        case 1: bytes[check_random(&random_state) % nbytes] ^= (uint8_t)(1u << check_random(&random_state) % 8); break;
        case 2: nbytes = check_random(&random_state) % (sizeof bytes + 1); break;
        default:
            for (size_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)check_random(&random_state);
            if (round % 8 == 7) memcpy(bytes, b.address, 3);
        }
        error = (pplx_error){0};
        const pplx_status status = verbs->endpoint_connect(a.endpoint, bytes, nbytes, &error);
        if (nbytes < 32 || nbytes > b.naddress) CHECK_EQ(status, PPLX_INVALID);
        if (status == PPLX_OK) {
            poll_all();
            side_shut(&a);
        } else {
            CHECK_EQ(error.status, status);
            CHECK(error.text[0]);
            if (status != PPLX_INVALID) side_shut(&a); /* the device had begun with it */
        }
    }
    if (!a.endpoint) side_listen(&a);
    error = (pplx_error){0};
    CHECK_EQ(verbs->endpoint_connect(a.endpoint, a.address, a.naddress, &error), PPLX_INVALID); /* itself */
    connect_sides(&a, &b);
    CHECK_EQ(perform(&a, &b, PPLX_WRITE_IMM, 0, 8, 0), PPLX_OK);
    CHECK_EQ(verbs->endpoint_connect(a.endpoint, b.address, b.naddress, &error), PPLX_INVALID); /* again */
    pair_close(&a, &b);
}

/* A peer of its own making: it says whatever it likes, on queue pairs that are connected as they should be. */
typedef struct stranger {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_cq *cq;
    struct ibv_srq *srq;
    struct ibv_qp *qps[2];
    struct ibv_mr *mr;
    uint32_t taken; /* of what it said */
    uint8_t bytes[20000], address[48];
} stranger;

static void stranger_open(stranger *self) {
    int n = 0;
    struct ibv_device **list = fake_lib->get_device_list(&n);
    memset(self, 0, sizeof *self);
    CHECK((self->context = fake_lib->open_device(list[0])));
    fake_lib->free_device_list(list);
    CHECK((self->pd = fake_lib->alloc_pd(self->context)));
    CHECK((self->cq = fake_lib->create_cq(self->context, 4096, NULL, NULL, 0)));
    struct ibv_srq_init_attr srq = {.attr = {.max_wr = 256, .max_sge = 1}};
    CHECK((self->srq = fake_lib->create_srq(self->pd, &srq)));
    CHECK((self->mr = (fake_lib->reg_mr)(self->pd, self->bytes, sizeof self->bytes, IBV_ACCESS_LOCAL_WRITE)));
    for (int i = 0; i < 2; i++) {
        struct ibv_qp_init_attr attr = {.send_cq = self->cq,
                                        .recv_cq = self->cq,
                                        .srq = self->srq,
                                        .cap = {.max_send_wr = 256, .max_send_sge = 1},
                                        .qp_type = IBV_QPT_RC};
        CHECK((self->qps[i] = fake_lib->create_qp(self->pd, &attr)));
    }
    struct ibv_sge sge = {(uintptr_t)self->bytes, sizeof self->bytes, self->mr->lkey};
    struct ibv_recv_wr wr = {.sg_list = &sge, .num_sge = 1}, *bad;
    for (int i = 0; i < 200; i++) CHECK_EQ(ibv_post_srq_recv(self->srq, &wr, &bad), 0);
}

static void stranger_close(stranger *self) {
    for (int i = 0; i < 2; i++) {
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_ERR};
        CHECK_EQ(fake_lib->modify_qp(self->qps[i], &attr, IBV_QP_STATE), 0);
        CHECK_EQ(fake_lib->destroy_qp(self->qps[i]), 0);
    }
    CHECK_EQ(fake_lib->dereg_mr(self->mr), 0);
    CHECK_EQ(fake_lib->destroy_srq(self->srq), 0);
    CHECK_EQ(fake_lib->destroy_cq(self->cq), 0);
    CHECK_EQ(fake_lib->dealloc_pd(self->pd), 0);
    CHECK_EQ(fake_lib->close_device(self->context), 0);
}

static uint32_t number_at(const uint8_t *bytes) {
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

/* With the address of `to`, but for what is our own: the layout is that of verbs_address.c. */
static void stranger_connect(stranger *self, side *to) {
    pplx_error error = {0};
    memcpy(self->address, to->address, sizeof self->address);
    CHECK_EQ(to->naddress, sizeof self->address);
    union ibv_gid gid;
    CHECK_EQ(fake_lib->query_gid(self->context, 1, 3, &gid), 0);
    memcpy(self->address + 32, gid.raw, sizeof gid.raw);
    for (int i = 0; i < 2; i++) {
        for (int at = 0; at < 4; at++) {
            self->address[12 + 4 * i + at] = (uint8_t)(self->qps[i]->qp_num >> (8 * at));
            self->address[20 + 4 * i + at] = at == 0; /* PSN 1 */
        }
        struct ibv_qp_attr attr = {.qp_state = IBV_QPS_INIT, .port_num = 1};
        CHECK_EQ(fake_lib->modify_qp(self->qps[i], &attr,
                                     IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS),
                 0);
        attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR,
                                    .path_mtu = IBV_MTU_1024,
                                    .dest_qp_num = number_at(to->address + 12 + 4 * i),
                                    .rq_psn = number_at(to->address + 20 + 4 * i),
                                    .max_dest_rd_atomic = 4,
                                    .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = 3}}};
        memcpy(attr.ah_attr.grh.dgid.raw, to->address + 32, 16);
        CHECK_EQ(fake_lib->modify_qp(self->qps[i], &attr,
                                     IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                         IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER),
                 0);
        attr = (struct ibv_qp_attr){
            .qp_state = IBV_QPS_RTS, .timeout = 9, .retry_cnt = 1, .rnr_retry = 7, .sq_psn = 1, .max_rd_atomic = 4};
        CHECK_EQ(fake_lib->modify_qp(self->qps[i], &attr,
                                     IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                                         IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC),
                 0);
    }
    CHECK_EQ(verbs->endpoint_connect(to->endpoint, self->address, sizeof self->address, &error), PPLX_OK);
}

static void stranger_says(stranger *self, int which, enum ibv_wr_opcode opcode, uint32_t nbytes, uint32_t imm) {
    struct ibv_wc wcs[16];
    struct ibv_sge sge = {(uintptr_t)self->bytes, nbytes, self->mr->lkey};
    struct ibv_send_wr wr = {.sg_list = &sge,
                             .num_sge = nbytes != 0,
                             .opcode = opcode,
                             .send_flags = IBV_SEND_SIGNALED,
                             .imm_data = htonl(imm)},
                       *bad;
    ibv_post_send(self->qps[which], &wr, &bad); /* it may have broken */
    poll_all();
    for (int n; (n = ibv_poll_cq(self->cq, 16, wcs)) > 0;)
        for (int i = 0; i < n; i++) self->taken += wcs[i].status == IBV_WC_SUCCESS && !(wcs[i].opcode & IBV_WC_RECV);
}

/* Whatever a peer says, its own connection is all that it can break: others go on as before. */
static void a_peer_that_breaks_the_rules_harms_only_itself(void) {
    uint32_t taken = 0;
    for (int round = 0; round < 120; round++) {
        side a, victim, friend;
        stranger peer;
        layout_is(two_nics);
        side_open(&victim, "x1", impatient);
        side_open(&friend, "x1", impatient);
        uint8_t address[PPLX_ADDRESS_BYTES];
        pplx_error error = {0};
        /* the victim has two peers: a friend, and the stranger */
        a = victim;
        a.naddress = sizeof address;
        CHECK_EQ(verbs->endpoint_open(victim.domain, &a.endpoint, a.address, &a.naddress, &error), PPLX_OK);
        connect_sides(&victim, &friend);
        CHECK_EQ(perform(&friend, &victim, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
        stranger_open(&peer);
        stranger_connect(&peer, &a);
        if (round % 3) stranger_says(&peer, 0, IBV_WR_SEND_WITH_IMM, 0, 0); /* the greeting, or not */
        for (int i = 0; i < 24; i++) {
            const uint64_t random = check_random(&random_state);
            switch (round % 4) {
            case 0: /* words: what, epoch, count */
                stranger_says(&peer, 0, IBV_WR_SEND_WITH_IMM, 0,
                              (uint32_t)(random & 3) << 30 | (uint32_t)(random >> 2 & 1) << 16 |
                                  (uint32_t)(random >> 3 & 7));
                break;
            case 1: stranger_says(&peer, 0, IBV_WR_SEND_WITH_IMM, random & 1 ? 8 : 0, (uint32_t)(random >> 8)); break;
            case 2: stranger_says(&peer, 0, IBV_WR_SEND, (uint32_t)(random % 16385), 0); break; /* unasked */
            default:
                stranger_says(&peer, (int)(random & 1), random & 2 ? IBV_WR_SEND : IBV_WR_RDMA_WRITE_WITH_IMM,
                              (uint32_t)(random >> 2) % 20000, 7);
            }
        }
        poll_ms(1);
        for (int i = 0; i < 5; i++) {
            CHECK_EQ(perform(&friend, &victim, PPLX_WRITE_IMM, 0, 8, 1), PPLX_OK);
            CHECK_EQ(perform(&victim, &friend, PPLX_READ, 0, 8, 0), PPLX_OK);
        }
        watched receive, send;
        pplx_work_request one = request(&victim, NULL, &receive, PPLX_RECV, 0, 8, 0);
        CHECK_EQ(post(&victim, &one), PPLX_OK);
        one = request(&friend, NULL, &send, PPLX_SEND, 0, 8, 0);
        CHECK_EQ(post(&friend, &one), PPLX_OK);
        WAIT(receive.completions && send.completions);
        CHECK_EQ(receive.status, PPLX_OK);
        CHECK_EQ(verbs->endpoint_close(a.endpoint), PPLX_OK);
        taken += peer.taken;
        stranger_close(&peer);
        side_close(&victim);
        side_close(&friend);
        check_clean();
    }
    CHECK(taken > 240); /* it was heard */
}

/* What a peer counts decides which writes have happened. One that counts more than were sent is believed nothing. */
static void a_peer_that_counts_more_immediates_than_were_sent_is_lost(void) {
    static const uint32_t counts[] = {1, 0, 2, 99, UINT16_MAX}; /* one was sent: the first two may be */
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        static const uint32_t opcodes[] = {PPLX_WRITE, PPLX_WRITE_IMM, PPLX_WRITE};
        side victim;
        stranger peer;
        watched w[3];
        layout_is(two_nics);
        side_open(&victim, "x1", "");
        stranger_open(&peer);
        stranger_connect(&peer, &victim);
        stranger_says(&peer, 0, IBV_WR_SEND_WITH_IMM, 0, 0); /* the greeting */
        CHECK_EQ(fake.hold("x1", 1), 0);
        for (int op = 0; op < 3; op++) {
            const pplx_work_request one = request(&victim, &victim, &w[op], opcodes[op], 0, 8, 0);
            CHECK_EQ(post(&victim, &one), PPLX_OK);
        }
        stranger_says(&peer, 0, IBV_WR_SEND_WITH_IMM, 0, UINT32_C(1) << 30 | 1 << 16 | counts[i]); /* "reset" */
        if (i == 0) WAIT(w[0].completions && w[1].completions);
        if (i == 1) poll_ms(50);
        if (i >= 2) WAIT(w[0].completions && w[1].completions && w[2].completions);
        CHECK_EQ(w[0].completions, i != 1);
        CHECK_EQ(w[1].completions, i != 1);
        CHECK_EQ(w[2].completions, i >= 2);
        for (int op = 0; op < 3; op++)
            if (w[op].completions) CHECK_EQ(w[op].status, i >= 2 ? PPLX_PEER_LOST : PPLX_OK);
        CHECK_EQ(fake.hold("x1", 0), 0);
        stranger_close(&peer);
        side_close(&victim);
        check_clean();
    }
}

int main(void) {
    fake_load(false);
    RUN(a_part_of_a_batch_is_counted_right_wherever_it_ends);
    RUN(what_no_device_would_take_is_refused_before);
    RUN(a_wrong_key_fails_one_op_and_no_peer);
    RUN(after_wrong_keys_among_others_each_immediate_arrives_once);
    RUN(a_queue_that_breaks_by_itself_is_made_new);
    RUN(a_queue_that_broke_in_the_middle_of_a_read_reads_and_writes_all_the_same);
    RUN(all_work_for_a_peer_that_is_gone_ends);
    RUN(a_peer_that_never_connects_is_given_up);
    RUN(closing_lets_go_of_memory_and_ops);
    RUN(immediates_that_had_arrived_are_told_after_closing);
    RUN(a_port_that_goes_down_loses_its_peers_when_they_are_missed);
    RUN(a_cable_that_is_cut_loses_the_peer_in_time);
    RUN(a_device_that_fails_loses_all_and_wakes_who_sleeps);
    RUN(any_address_is_refused_or_leads_nowhere);
    RUN(a_peer_that_breaks_the_rules_harms_only_itself);
    RUN(a_peer_that_counts_more_immediates_than_were_sent_is_lost);
    return check_done();
}

#else

int main(void) {
    puts("libibverbs's headers are not installed (package libibverbs-dev)");
    return 77;
}

#endif
