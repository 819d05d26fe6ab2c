/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Closing endpoints and domains on verbs, over the fake libibverbs, when the device is slow to let go: nobody waits
 * for it, and nothing that comes late is taken for another's. */
#include <stdio.h>

#if PPLX_HAVE_LIBIBVERBS

#include "verbs_internal.h"
#include "verbs_sides.h"

/* `a`, with `b` for a peer, and on another endpoint of the same domain `c`. */
typedef struct three {
    side a, b, c, other; /* other: that endpoint; what completes there is seen by polling a */
} three;

enum { LONG_MS = 60000, SOON_MS = 15000 }; /* what takes long, and what a busy machine may need for what doesn't */

static const char three_nics[] = "x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2; x2 roce ip=10.0.0.3";

static void three_open(three *t, const char *layout) {
    pplx_error error = {0};
    layout_is(layout);
    side_open(&t->a, "x0", "");
    side_open(&t->b, "x1", "");
    side_open(&t->c, "x2", "");
    t->other = t->a;
    t->other.naddress = sizeof t->other.address;
    CHECK_EQ(verbs->endpoint_open(t->a.domain, &t->other.endpoint, t->other.address, &t->other.naddress, &error),
             PPLX_OK);
    connect_sides(&t->a, &t->b);
    connect_sides(&t->other, &t->c);
    CHECK_EQ(perform(&t->a, &t->b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    CHECK_EQ(perform(&t->other, &t->c, PPLX_WRITE, 0, 8, 0), PPLX_OK);
}

static void three_close(three *t) {
    CHECK_EQ(verbs->endpoint_close(t->other.endpoint), PPLX_OK);
    side_close(&t->a);
    side_close(&t->b);
    side_close(&t->c);
}

/* The device takes long for the queue pairs of a's endpoint to b, which has work under way. */
static void close_what_lingers(three *t) {
    static watched w[8];
    CHECK_EQ(fake.cut("x1", 1, 1), 0);
    for (uint32_t i = 0; i < 8; i++) {
        const pplx_work_request one = request(&t->a, &t->b, &w[i], i % 2 ? PPLX_WRITE_IMM : PPLX_READ, 0, 8, i);
        CHECK_EQ(post(&t->a, &one), PPLX_OK);
    }
    CHECK_EQ(fake.linger("x0", LONG_MS), 0);
    const uint64_t start = check_now_ns();
    side_shut(&t->a);
    CHECK(check_now_ns() - start < SOON_MS * UINT64_C(1000000));
}

static void a_queue_pair_that_takes_long_to_destroy_holds_up_nobody(void) {
    three t;
    three_open(&t, three_nics);
    const uint64_t all = fake_now().objects;
    for (int round = 0; round < 3; round++) { /* the second finds the thread at work, the third finds none */
        close_what_lingers(&t);
        for (uint32_t i = 0; i < 50; i++) CHECK_EQ(perform(&t.other, &t.c, PPLX_WRITE_IMM, 0, 8, i), PPLX_OK);
        CHECK(fake_now().objects > all - 2);
        /* and the peer can come again meanwhile */
        CHECK_EQ(fake.cut("x1", 1, 0), 0);
        side_shut(&t.b);
        side_listen(&t.a);
        side_listen(&t.b);
        connect_sides(&t.a, &t.b);
        CHECK_EQ(perform(&t.a, &t.b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
        if (round == 0) continue;
        CHECK_EQ(fake.linger("x0", 0), 0);
        WAIT(fake_now().objects == all);
    }
    three_close(&t);
    check_clean();
}

static void a_domain_whose_queue_pairs_take_long_is_closed_when_they_are_gone(void) {
    three t;
    three_open(&t, three_nics);
    close_what_lingers(&t);
    const uint64_t start = check_now_ns();
    three_close(&t);
    CHECK(check_now_ns() - start < SOON_MS * UINT64_C(1000000));
    CHECK_EQ(fake_now().contexts, 1);
    CHECK_EQ(fake.linger("x0", 0), 0);
    WAIT(fake_now().contexts == 0);
    check_clean();
}

/* Its queue pairs are destroyed, as a fence, by who closes it: with no device there is no RESET. */
static void a_failed_device_is_closed_all_the_same(void) {
    three t;
    watched w;
    three_open(&t, three_nics);
    CHECK_EQ(fake.hold("x0", 1), 0);
    const pplx_work_request one = request(&t.a, &t.b, &w, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(post(&t.a, &one), PPLX_OK);
    CHECK_EQ(fake.event("x0", 1, IBV_EVENT_DEVICE_FATAL), 0);
    WAIT(w.completions || verbs->arm(t.a.domain) == PPLX_INTERNAL);
    CHECK_EQ(w.status, PPLX_PEER_LOST);
    three_close(&t);
    check_clean();
}

/* A device may put what it flushes into the completion queue after its queue pair is gone. By then another endpoint
 * may have the slot. */
static void what_an_endpoint_leaves_behind_is_not_taken_for_anothers(void) {
    enum { LEFT = 6 };
    static watched w[LEFT];
    three t;
    three_open(&t, "x0 roce ip=10.0.0.1 late stale; x1 roce ip=10.0.0.2; x2 roce ip=10.0.0.3");
    verbs_domain *domain = (verbs_domain *)t.a.domain;
    const uint32_t slot = ((verbs_endpoint *)t.a.endpoint)->slot;
    const uint64_t before = fake_now().objects;
    CHECK_EQ(fake.hold("x0", 1), 0);
    for (uint32_t i = 0; i < LEFT; i++) {
        const pplx_work_request one = request(&t.a, &t.b, &w[i], PPLX_WRITE, 0, 8, 0);
        CHECK_EQ(post(&t.a, &one), PPLX_OK);
    }
    t.a.deaf = true;
    side_shut(&t.a);
    WAIT(fake_now().objects == before - 2); /* what it left lies in the completion queue */
    side_shut(&t.b);
    domain->next_slot = slot + VERBS_MAX_ENDPOINTS; /* so many endpoints later */
    side_listen(&t.a);
    side_listen(&t.b);
    CHECK_EQ(((verbs_endpoint *)t.a.endpoint)->slot, slot);
    connect_sides(&t.a, &t.b);
    t.a.deaf = false;
    CHECK_EQ(fake.hold("x0", 0), 0);
    for (uint32_t i = 0; i < LEFT; i++) CHECK_EQ(perform(&t.a, &t.b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    for (uint32_t i = 0; i < LEFT; i++) CHECK_EQ(w[i].completions, 0);
    three_close(&t);
    check_clean();
}

int main(void) {
    fake_load(false);
    RUN(a_queue_pair_that_takes_long_to_destroy_holds_up_nobody);
    RUN(a_domain_whose_queue_pairs_take_long_is_closed_when_they_are_gone);
    RUN(a_failed_device_is_closed_all_the_same);
    RUN(what_an_endpoint_leaves_behind_is_not_taken_for_anothers);
    return check_done();
}

#else

int main(void) {
    puts("libibverbs's headers are not installed (package libibverbs-dev)");
    return 77;
}

#endif
