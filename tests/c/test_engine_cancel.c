/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Cancelling over loopback. What must hold, at whatever moment the cancel comes:
 *   - the request ends once; when it is released its memory is touched no more, on either side
 *   - each write happened whole or not at all
 *   - the receiver counted what was delivered, and never more than was posted */
#include "engine_helpers.h"

enum { SLOT = 20000, SEGMENTS = 12, MOST = 24 };

/* One request of up to SEGMENTS writes inside a slot of its own. */
typedef struct work {
    transfer t;
    pplx_segment segments[SEGMENTS];
    uint8_t before[SLOT]; /* the source, as it was */
    uint64_t at;
    bool counted, is_read, overwritten;
} work;

enum { EMPTY = 0, TRASH = 0xee };

static bool all_are(const uint8_t *bytes, uint64_t n, uint8_t value) {
    for (uint64_t i = 0; i < n; i++)
        if (bytes[i] != value) return false;
    return true;
}

static void start_work(pair *pair, work *w, uint64_t at, uint64_t *seed) {
    memset(w, 0, sizeof *w);
    w->at = at;
    w->is_read = check_random(seed) % 4 == 0;
    w->counted = !w->is_read && check_random(seed) % 3 != 0;
    area *source = w->is_read ? &pair->to : &pair->from, *sink = w->is_read ? &pair->from : &pair->to;
    for (uint64_t i = 0; i < SLOT; i++)
        w->before[i] = (uint8_t)(1 + check_random(seed) % 200); /* never EMPTY or TRASH */
    memcpy(source->bytes + at, w->before, SLOT);
    memset(sink->bytes + at, EMPTY, SLOT);
    uint32_t n = 0;
    for (uint64_t offset = 0; n < SEGMENTS && offset < SLOT; n++) {
        uint64_t pages = 1 + (check_random(seed) % 3 == 0 ? check_random(seed) % 8 : 0);
        uint64_t page = 1 + check_random(seed) % 3000;
        while (pages > 1 && pages * page > SLOT - offset) pages--;
        if (page > SLOT - offset) page = SLOT - offset;
        w->segments[n] = (pplx_segment){at + offset, at + offset, pages * page, pages};
        offset += pages * page;
    }
    w->t.target = (pplx_target){.local = &pair->from.mr,
                                .remote = &pair->remote,
                                .peer = pair->ab,
                                .segments = w->segments,
                                .nsegments = n,
                                .counter = w->counted ? pair->counter.id : PPLX_NO_COUNTER};
    transfer_submit(&pair->a, &w->t, w->is_read ? PPLX_READ : PPLX_WRITE);
}

/* Each page whole or not at all; how many are there. */
static uint64_t pages_landed(const work *w, const uint8_t *sink) {
    uint64_t landed = 0;
    for (uint32_t s = 0; s < SEGMENTS && w->segments[s].pages; s++) {
        const pplx_segment *segment = &w->segments[s];
        uint64_t page = segment->nbytes / segment->pages;
        for (uint64_t p = 0; p < segment->pages; p++) {
            const uint8_t *bytes = sink + segment->remote + p * page;
            if (memcmp(bytes, w->before + segment->local - w->at + p * page, page) == 0)
                landed++;
            else
                CHECK(all_are(bytes, page, EMPTY));
        }
    }
    return landed;
}

/* It is released: judge what it did, then use its memory for something else. */
static uint64_t finish_work(pair *pair, work *w) {
    const area *sink = w->is_read ? &pair->from : &pair->to;
    int status = (int)w->t.request.error.status;
    CHECK(status == PPLX_OK || status == PPLX_CANCELLED);
    uint64_t delivered = w->t.target.delivered;
    if (!w->is_read) {
        uint64_t landed = pages_landed(w, sink->bytes), all = 0;
        for (uint32_t s = 0; s < SEGMENTS; s++) all += w->segments[s].pages;
        if (status == PPLX_OK) CHECK_EQ(landed, all);
        if (w->counted) CHECK_EQ(delivered, landed * PPLX_EIGHTHS);
        if (w->counted && w->t.target.posted == 0) CHECK_EQ(landed, 0);
        CHECK_EQ(w->t.target.posted, delivered);
    }
    memset(pair->from.bytes + w->at, TRASH, SLOT);
    memset(pair->to.bytes + w->at, TRASH, SLOT);
    w->overwritten = true;
    return delivered;
}

static uint64_t cancelled_in_all;

static void random_round(const char *faults, uint32_t domains_a, uint32_t domains_b, uint64_t seed) {
    pair pair;
    static work works[MOST];
    pplx_engine_config config = default_config;
    config.shard_nbytes = 1500;
    char text[160];
    snprintf(text, sizeof text, "%s seed=%llu", faults, (unsigned long long)seed);
    pair_open_with(&pair, domains_a, domains_b, text, MOST * SLOT, &config);
    uint32_t n = 4 + (uint32_t)(check_random(&seed) % (MOST - 3)), started = 0, finished = 0;
    uint64_t delivered = 0;
    memset(works, 0, sizeof works);
    while (finished < n) {
        uint64_t dice = check_random(&seed) % 8;
        if (started < n && dice < 4) {
            start_work(&pair, &works[started], started * (uint64_t)SLOT, &seed);
            started++;
        } else if (started && dice < 6) {
            work *w = &works[check_random(&seed) % started]; /* perhaps for the second time, or too late */
            if (!w->t.end.released) pplx_cancel(pair.a.engine, &w->t.request);
        } else if (started == n || dice == 6) {
            pump_for(dice == 6 ? 0 : 1);
        } else {
            for (volatile uint64_t spin = check_random(&seed) % 3000; spin > 0; spin--) {
            }
        }
        for (uint32_t i = 0; i < started; i++) {
            if (works[i].overwritten || !works[i].t.end.released) continue;
            if (works[i].t.request.error.status == PPLX_CANCELLED) cancelled_in_all++;
            delivered += finish_work(&pair, &works[i]);
            finished++;
        }
    }
    CHECK_COUNT(&pair, delivered);
    pump_ms(2);
    for (uint32_t i = 0; i < n; i++) {
        CHECK(all_are(pair.from.bytes + works[i].at, SLOT, TRASH));
        CHECK(all_are(pair.to.bytes + works[i].at, SLOT, TRASH));
    }
    CHECK_EQ(pplx_counter_value(&pair.counter), delivered);
    pair_close(&pair);
}

static void at_random_moments(void) {
    static const char *const faults[] = {
        "",
        "delay_us=0:300",
        "again=0.5 reorder=16",
        "max_inflight=2 posts_per_turn=1 eager_posts=1",
        "max_message=512 reorder=8 delay_us=0:50 max_inflight=4",
        "max_message=100 again=0.3 max_inflight=8",
        "release=0 delay_us=0:300 reorder=4",
    };
    for (uint64_t seed = 1; seed <= 20; seed++)
        for (size_t i = 0; i < sizeof faults / sizeof *faults; i++)
            random_round(faults[i], 1 + (uint32_t)(seed % 3), 1 + (uint32_t)(seed / 3 % 3), seed * 100 + i);
    CHECK(cancelled_in_all > 100);
}

/* The pipeline is full and slow; what waits behind it and is cancelled leaves no trace. */
static void before_posting_leaves_no_trace(void) {
    enum { WRITES = 40 };
    pair pair;
    transfer t[WRITES];
    pair_open(&pair, 1, 1, "max_inflight=2 delay_us=300000:300000", WRITES * 1000);
    for (uint64_t i = 0; i < WRITES; i++) start_write(&pair, &t[i], i * 1000, 1000, true);
    for (int i = 4; i < WRITES; i++) CHECK(pplx_cancel(pair.a.engine, &t[i].request));
    for (int i = 4; i < WRITES; i++) {
        WAIT(t[i].end.released);
        CHECK_EQ(t[i].request.error.status, PPLX_CANCELLED);
        CHECK_EQ(t[i].target.posted, 0);
    }
    for (int i = 0; i < 4; i++) {
        WAIT(t[i].end.released);
        CHECK_EQ(t[i].request.error.status, PPLX_OK);
    }
    CHECK_COUNT(&pair, 4 * PPLX_EIGHTHS);
    CHECK(all_are(pair.to.bytes + 4000, (WRITES - 4) * 1000, EMPTY));
    pair_close(&pair);
}

/* In the middle of a page of a long run: that page is posted to its end, those behind it are not. The
 * whole run would take seconds. */
static void within_a_run_stops_at_a_page(void) {
    enum { PAGES = 100, PAGE = 3000 };
    pair pair;
    transfer t;
    pplx_link_stats stats;
    pair_open(&pair, 1, 1, "max_message=1000 max_inflight=2 delay_us=20000:20000", PAGES * PAGE);
    memset(&t, 0, sizeof t);
    t.segment = (pplx_segment){0, 0, PAGES * PAGE, PAGES};
    t.target = (pplx_target){.local = &pair.from.mr,
                             .remote = &pair.remote,
                             .peer = pair.ab,
                             .segments = &t.segment,
                             .nsegments = 1,
                             .counter = pair.counter.id};
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    do {
        pump_for(1);
        pplx_link_read_stats(pair.ab, 0, &stats);
    } while (stats.inflight_nbytes == 0);
    pplx_cancel(pair.a.engine, &t.request);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_CANCELLED);
    CHECK(t.target.posted > 0 && t.target.posted < t.target.total);
    CHECK_EQ(t.target.posted % PPLX_EIGHTHS, 0);
    CHECK_EQ(t.target.delivered, t.target.posted);
    const size_t landed = t.target.posted / PPLX_EIGHTHS * PAGE;
    CHECK(pair_equal(&pair, 0, landed));
    CHECK(all_are(pair.to.bytes + landed, PAGES * PAGE - landed, EMPTY));
    CHECK_COUNT(&pair, t.target.posted);
    pair_close(&pair);
}

static void after_the_end_is_refused(void) {
    pair pair;
    transfer t;
    pair_open(&pair, 1, 1, "", 4096);
    start_write(&pair, &t, 0, 100, true);
    WAIT(t.end.released);
    CHECK(!pplx_cancel(pair.a.engine, &t.request));
    CHECK_EQ(t.request.error.status, PPLX_OK);
    pair_close(&pair);
}

/* A cancel that crosses the settling on its way: the request still comes through the list once. */
static void racing_the_end(void) {
    pair pair;
    transfer t;
    uint64_t seed = 9;
    pair_open(&pair, 1, 1, "", 4096);
    for (int i = 0; i < 3000; i++) {
        start_write(&pair, &t, 0, 100, false);
        for (volatile uint64_t spin = check_random(&seed) % 4000; spin > 0; spin--) {
        }
        pplx_cancel(pair.a.engine, &t.request);
        pplx_cancel(pair.a.engine, &t.request);
        WAIT(t.end.released);
    }
    pair_close(&pair);
}

int main(void) {
    RUN(at_random_moments);
    RUN(before_posting_leaves_no_trace);
    RUN(within_a_run_stops_at_a_page);
    RUN(after_the_end_is_refused);
    RUN(racing_the_end);
    return check_done();
}
