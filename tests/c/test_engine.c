/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The engine over loopback: writes and reads, how they are cut, and what they count. */
#include <stdatomic.h>
#include <sys/resource.h>

#include "engine_helpers.h"

/* ------------------------------------------------------------------ one write */

static void connects_and_closes(void) {
    pair pair;
    pair_open(&pair, 1, 1, "", 4096);
    pair_close(&pair);
}

static void write_lands_and_counts(void) {
    pair pair;
    pair_open(&pair, 1, 1, "", 4096);
    write_now(&pair, 100, 1000, true);
    CHECK(pair_equal(&pair, 100, 1000));
    CHECK_EQ(pair.to.bytes[99], 0);
    CHECK_EQ(pair.to.bytes[1100], 0);
    CHECK_COUNT(&pair, PPLX_EIGHTHS);
    write_now(&pair, 2000, 1000, false);
    CHECK(pair_equal(&pair, 2000, 1000));
    CHECK_COUNT(&pair, PPLX_EIGHTHS);
    pair_close(&pair);
}

static void write_of_nothing_counts(void) {
    pair pair;
    transfer t;
    pair_open(&pair, 2, 2, "", 4096);
    write_now(&pair, 17, 0, true);
    write_now(&pair, 4096, 0, true); /* the end of a region is in it */
    CHECK_COUNT(&pair, 2 * PPLX_EIGHTHS);
    /* Without regions: from landing page to landing page, as notify() does. */
    memset(&t, 0, sizeof t);
    t.segment.pages = 1;
    t.target = (pplx_target){.peer = pair.ab, .segments = &t.segment, .nsegments = 1, .counter = pair.counter.id};
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    CHECK_COUNT(&pair, 3 * PPLX_EIGHTHS);
    for (size_t i = 0; i < pair.to.nbytes; i++) CHECK_EQ(pair.to.bytes[i], 0);
    pair_close(&pair);
}

static void request_of_nothing_settles(void) {
    pair pair;
    transfer t;
    pair_open(&pair, 1, 1, "", 4096);
    memset(&t, 0, sizeof t);
    t.target = (pplx_target){.peer = pair.ab, .counter = pair.counter.id}; /* no segments */
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    memset(&t, 0, sizeof t);
    t.request.targets = &t.target; /* no targets */
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    CHECK_EQ(pplx_counter_value(&pair.counter), 0);
    pair_close(&pair);
}

static void reads(void) {
    pair pair;
    transfer t;
    pair_open(&pair, 2, 3, "reorder=4 max_message=65536", 1 << 20);
    area_fill(&pair.to, 5);
    memset(&t, 0, sizeof t);
    t.segment = (pplx_segment){10, 10, (1 << 20) - 20, 1};
    t.target = (pplx_target){.local = &pair.from.mr,
                             .remote = &pair.remote,
                             .peer = pair.ab,
                             .segments = &t.segment,
                             .nsegments = 1,
                             .counter = PPLX_NO_COUNTER};
    transfer_submit(&pair.a, &t, PPLX_READ);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    CHECK(pair_equal(&pair, 10, (1 << 20) - 20));
    CHECK(!pair_equal(&pair, 0, 10));
    pair_close(&pair);
}

static void polls_on_a_timer_without_wait_fd(void) {
    pair pair;
    pair_open(&pair, 2, 1, "wait_fd=0", 1 << 20);
    for (int i = 0; i < 20; i++) {
        write_now(&pair, 0, (uint64_t)1 << i, true);
        pump_ms(1);
    }
    CHECK_COUNT(&pair, 20 * PPLX_EIGHTHS);
    pair_close(&pair);
}

/* ------------------------------------------------------------------ many segments */

enum { PAGES = 100000, PAGE = 64 };

/* Local pages in order; at the target runs of 1 to `longest` pages, the runs in reverse order. */
static uint32_t runs(pplx_segment *segments, uint32_t longest, uint64_t seed) {
    uint32_t n = 0;
    for (uint64_t page = 0; page < PAGES; n++) {
        uint64_t pages = 1 + check_random(&seed) % longest;
        if (pages > PAGES - page) pages = PAGES - page;
        segments[n] = (pplx_segment){page * PAGE, (PAGES - page - pages) * PAGE, pages * PAGE, pages};
        page += pages;
    }
    return n;
}

static void write_pages(const char *faults, uint32_t domains_a, uint32_t domains_b, uint32_t longest) {
    pair pair;
    transfer t;
    pplx_segment *segments = calloc(PAGES, sizeof *segments);
    pair_open(&pair, domains_a, domains_b, faults, (size_t)PAGES * PAGE);
    memset(&t, 0, sizeof t);
    t.target = (pplx_target){.local = &pair.from.mr,
                             .remote = &pair.remote,
                             .peer = pair.ab,
                             .segments = segments,
                             .nsegments = runs(segments, longest, longest),
                             .counter = pair.counter.id};
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    CHECK_EQ(t.target.total, PAGES * PPLX_EIGHTHS);
    CHECK_EQ(t.target.posted, t.target.total);
    CHECK_EQ(t.target.delivered, t.target.total);
    CHECK_COUNT(&pair, (uint64_t)PAGES * PPLX_EIGHTHS);
    for (uint32_t i = 0; i < t.target.nsegments; i++)
        CHECK(memcmp(pair.from.bytes + segments[i].local, pair.to.bytes + segments[i].remote, segments[i].nbytes) == 0);
    pair_close(&pair);
    free(segments);
}

static void hundred_thousand_pages(void) { write_pages("", 1, 1, 1); }
static void pages_in_runs(void) { write_pages("reorder=8 again=0.05", 2, 2, 12); }
static void runs_longer_than_a_weight(void) { write_pages("", 1, 1, 30000); }
static void runs_cut_by_the_message_limit(void) { write_pages("max_message=1000", 3, 2, 500); }

static void scatter_to_several_peers(void) {
    enum { PEERS = 5, PER_PEER = 40, NBYTES = 1000 };
    host a, b[PEERS];
    pplx_peer *ab[PEERS], *ba[PEERS];
    area from, to[PEERS];
    pplx_remote remotes[PEERS];
    pplx_counter counters[PEERS];
    pplx_target targets[PEERS];
    pplx_segment segments[PEERS][PER_PEER];
    host_open(&a, 2, "reorder=8");
    area_open(&from, &a, PEERS * PER_PEER * NBYTES, PPLX_ACCESS_LOCAL);
    area_fill(&from, 1);
    memset(targets, 0, sizeof targets);
    memset(counters, 0, sizeof counters);
    for (int i = 0; i < PEERS; i++) {
        host_open(&b[i], 1 + (uint32_t)i % 3, "reorder=8");
        join(&a, &b[i], &ab[i], &ba[i]);
        area_open(&to[i], &b[i], PER_PEER * NBYTES, PPLX_ACCESS_REMOTE_WRITE);
        remotes[i] = remote_of(&to[i], ab[i]);
        CHECK_EQ(pplx_counter_open(b[i].engine, &counters[i]), PPLX_OK);
        for (uint64_t j = 0; j < PER_PEER; j++)
            segments[i][j] = (pplx_segment){((uint64_t)i * PER_PEER + j) * NBYTES, j * NBYTES, NBYTES, 1};
        targets[i] = (pplx_target){.local = &from.mr,
                                   .remote = &remotes[i],
                                   .peer = ab[i],
                                   .segments = segments[i],
                                   .nsegments = PER_PEER,
                                   .counter = counters[i].id};
    }
    transfer t;
    memset(&t, 0, sizeof t);
    t.request.targets = targets;
    t.request.ntargets = PEERS;
    transfer_submit(&a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    for (int i = 0; i < PEERS; i++) {
        WATCH(pplx_counter_value(&counters[i]) == PER_PEER * PPLX_EIGHTHS);
        CHECK(memcmp(from.bytes + i * PER_PEER * NBYTES, to[i].bytes, PER_PEER * NBYTES) == 0);
        part(&a, ab[i]);
        part(&b[i], ba[i]);
        area_close(&to[i]);
        host_close(&b[i]);
    }
    area_close(&from);
    host_close(&a);
}

/* ------------------------------------------------------------------ how writes are cut */

static void each_write_counts_one(uint32_t domains_a, uint32_t domains_b, const char *faults) {
    static const uint64_t sizes[] = {1, 63, 64, 4095, 65535, 65536, 65537, 100003, 262144, 300001};
    enum { SIZES = sizeof sizes / sizeof *sizes };
    pair pair;
    pair_open(&pair, domains_a, domains_b, faults, 300001);
    for (uint64_t i = 0; i < SIZES; i++) {
        memset(pair.to.bytes, 0, pair.to.nbytes);
        write_now(&pair, 300001 - sizes[i], sizes[i], true);
        CHECK(pair_equal(&pair, 300001 - sizes[i], sizes[i]));
        CHECK_COUNT(&pair, (i + 1) * PPLX_EIGHTHS);
    }
    pair_close(&pair);
}

static void shards_count_one(void) {
    static const uint32_t domains[][2] = {{1, 1}, {2, 2}, {4, 4}, {8, 8}, {1, 4}, {2, 8}, {3, 1}, {3, 2}, {5, 7}};
    for (size_t i = 0; i < sizeof domains / sizeof *domains; i++) {
        each_write_counts_one(domains[i][0], domains[i][1], "");
        each_write_counts_one(domains[i][1], domains[i][0], "reorder=16 again=0.2");
    }
}

static void fragments_count_one(void) {
    each_write_counts_one(1, 1, "max_message=65536 reorder=8"); /* up to 5 pieces */
    each_write_counts_one(1, 1, "max_message=37501 reorder=8"); /* 300001 B just need 8, and 9 would be aligned */
    each_write_counts_one(1, 1, "max_message=37500 reorder=8"); /* 9: only the last counts */
    each_write_counts_one(2, 2, "max_message=100 reorder=32 again=0.1");
    each_write_counts_one(4, 2, "max_message=4096 reorder=4 delay_us=0:200");
}

/* More than 8 fragments: when the count shows, every byte is there, whatever the fabric reorders. */
static void last_fragment_comes_last(void) {
    enum { FRAGMENTS = 20, ROUNDS = 20 };
    pair pair;
    pair_open(&pair, 1, 2, "max_message=65536 reorder=32 delay_us=0:300 seed=3", FRAGMENTS * 65536 - 7);
    for (uint64_t i = 0; i < ROUNDS; i++) {
        transfer t;
        memset(pair.to.bytes, 0, pair.to.nbytes);
        start_write(&pair, &t, 0, pair.to.nbytes, true);
        for (uint64_t start = check_now_ns(); pplx_counter_value(&pair.counter) < (i + 1) * PPLX_EIGHTHS;)
            check_patience(start, PATIENCE_S); /* spins: the moment it shows is what matters */
        CHECK(pair_equal(&pair, 0, pair.to.nbytes));
        WAIT(t.end.released);
    }
    pair_close(&pair);
}

/* Two such writes and small ones share the peer: nobody's wait is held up by another's. */
static void waiting_fragments_take_turns(void) {
    enum { LARGE = 2 * 65536, SMALL = 32 };
    pair pair;
    transfer large[4], small[SMALL];
    pair_open(&pair, 1, 1, "max_message=4096 delay_us=0:100 max_inflight=8", 4 * LARGE);
    for (uint64_t i = 0; i < 4; i++) start_write(&pair, &large[i], i * LARGE, LARGE, true);
    for (uint64_t i = 0; i < SMALL; i++) start_write(&pair, &small[i], i * 1000, 1000, true);
    for (int i = 0; i < SMALL; i++) WAIT(small[i].end.released);
    for (int i = 0; i < 4; i++) WAIT(large[i].end.released);
    CHECK(pair_equal(&pair, 0, 4 * LARGE));
    CHECK_COUNT(&pair, (4 + SMALL) * PPLX_EIGHTHS);
    pair_close(&pair);
}

static void little_inflight(pplx_provider_domain *domain, pplx_caps *caps) {
    pplx_provider_loopback.domain_caps(domain, caps);
    caps->max_inflight_bytes = 65536;
}

/* A large write finds room although small ones never cease to come. */
static void small_writes_starve_no_large_one(void) {
    enum { LARGE = 1 << 20, WINDOW = 64, SMALL = 4000 };
    pair pair;
    transfer large, small[WINDOW];
    pplx_provider provider = pplx_provider_loopback;
    provider.domain_caps = little_inflight;
    host_provider = &provider;
    pair_open(&pair, 1, 1, "delay_us=2000:6000", LARGE); /* always some in flight when the next one comes */
    host_provider = &pplx_provider_loopback;
    CHECK_EQ(pplx_peer_max_message(pair.ab), 65536); /* no piece is larger than what may be in flight */
    for (int i = 0; i < WINDOW; i++) start_write(&pair, &small[i], 0, SMALL, false);
    start_write(&pair, &large, 0, LARGE, true);
    uint64_t before = nsettled;
    while (!large.end.released) {
        CHECK(nsettled - before < 5000); /* a few hundred get past it */
        for (int i = 0; i < WINDOW; i++)
            if (small[i].end.released) start_write(&pair, &small[i], 0, SMALL, false);
        pump_for(1);
    }
    CHECK_EQ(large.request.error.status, PPLX_OK);
    for (int i = 0; i < WINDOW; i++) WAIT(small[i].end.released);
    CHECK(pair_equal(&pair, 0, LARGE));
    CHECK_COUNT(&pair, PPLX_EIGHTHS);
    pair_close(&pair);
}

extern const pplx_provider pplx_provider_ipc;
static atomic_uint pages_before_small;
static atomic_bool small_is_here, small_was_posted;

static pplx_status counting_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                                 size_t *posted, int32_t *provider_error) {
    const pplx_status status = pplx_provider_ipc.post(endpoint, requests, count, posted, provider_error);
    for (size_t i = 0; i < *posted; i++) {
        if (requests[i].nsegments == 0 && requests[i].nbytes == 8) atomic_store(&small_was_posted, true);
        if (requests[i].nsegments == 0 || atomic_load(&small_was_posted)) continue;
        atomic_fetch_add(&pages_before_small, requests[i].nsegments);
        while (!atomic_load(&small_is_here)) poll(NULL, 0, 1); /* from here on it waits for its turn */
    }
    return status;
}

/* Pages of the host's memory, many in a work request, keep a small write to the same peer from its turn no longer than
 * one by one: what was on its way when it came, and one more turn. */
static void pages_together_take_turns(void) {
    enum { FLOOD = 8192, QUANTUM = 64 /* PPLX_QUANTUM, and ipc's posts_per_turn */ };
    static pplx_segment pages[FLOOD];
    pair pair;
    transfer flood, small;
    pplx_provider provider = pplx_provider_ipc;
    provider.post = counting_post;
    host_provider = &provider;
    host_device = "host";
    pair_open(&pair, 1, 1, "", 2 * PAGE * FLOOD);
    host_provider = &pplx_provider_loopback;
    host_device = "loop%u";
    for (uint64_t i = 0; i < FLOOD; i++) pages[i] = (pplx_segment){2 * i * PAGE, 2 * i * PAGE, PAGE, 1};
    memset(&flood, 0, sizeof flood);
    flood.target = (pplx_target){.local = &pair.from.mr,
                                 .remote = &pair.remote,
                                 .peer = pair.ab,
                                 .segments = pages,
                                 .nsegments = FLOOD,
                                 .counter = pair.counter.id};
    transfer_submit(&pair.a, &flood, PPLX_WRITE);
    WATCH(atomic_load(&pages_before_small) > 0);
    start_write(&pair, &small, PAGE, 8, true);
    atomic_store(&small_is_here, true);
    WAIT(small.end.released && flood.end.released);
    CHECK_EQ(small.request.error.status, PPLX_OK);
    CHECK_EQ(flood.request.error.status, PPLX_OK);
    CHECK(atomic_load(&small_was_posted));
    CHECK(atomic_load(&pages_before_small) <= 2 * QUANTUM);
    CHECK(pair_equal(&pair, PAGE, 8));
    CHECK(pair_equal(&pair, 2 * (FLOOD - 1) * PAGE, PAGE));
    CHECK_COUNT(&pair, (FLOOD + 1) * PPLX_EIGHTHS);
    pair_close(&pair);
}

/* A run whose pages are above the message limit: each counts one all the same. */
static void large_pages_in_a_run(void) {
    static const char *const faults[] = {"max_message=65536 reorder=8", "max_message=2000 reorder=8"};
    enum { NPAGES = 7, NBYTES = 100000 };
    for (int i = 0; i < 2; i++) {
        pair pair;
        transfer t;
        pair_open(&pair, 1 + (uint32_t)i, 2, faults[i], NPAGES * NBYTES);
        memset(&t, 0, sizeof t);
        t.segment = (pplx_segment){0, 0, NPAGES * NBYTES, NPAGES};
        t.target = (pplx_target){.local = &pair.from.mr,
                                 .remote = &pair.remote,
                                 .peer = pair.ab,
                                 .segments = &t.segment,
                                 .nsegments = 1,
                                 .counter = pair.counter.id};
        transfer_submit(&pair.a, &t, PPLX_WRITE);
        WAIT(t.end.released);
        CHECK_EQ(t.request.error.status, PPLX_OK);
        CHECK(pair_equal(&pair, 0, NPAGES * NBYTES));
        CHECK_COUNT(&pair, NPAGES * PPLX_EIGHTHS);
        pair_close(&pair);
    }
}

/* ------------------------------------------------------------------ counters */

static void immediates_before_anyone_looks(void) {
    pair pair;
    transfer t;
    pair_open(&pair, 1, 1, "", 4096);
    for (uint64_t i = 0; i < 10; i++) write_now(&pair, i, 1, true);
    CHECK_COUNT(&pair, 10 * PPLX_EIGHTHS);
    CHECK_EQ(pair.b.told, 0); /* nobody asked */
    CHECK(pplx_counter_notify(&pair.counter, 10 * PPLX_EIGHTHS)); /* no need to be told */
    CHECK(!pplx_counter_notify(&pair.counter, 11 * PPLX_EIGHTHS));
    start_write(&pair, &t, 0, 1, true);
    WAIT(pair.b.told == 1 && t.end.released);
    CHECK_EQ(pplx_counter_value(&pair.counter), 11 * PPLX_EIGHTHS);
    pair_close(&pair);
}

/* Random thresholds while writes come in: a lost notification ends in "in vain". */
static void notifications_are_not_lost(void) {
    enum { WRITES = 30000, WINDOW = 64 };
    pair pair;
    uint64_t seed = 11, started = 0, wanted = 0;
    transfer *t = calloc(WINDOW, sizeof *t);
    pair_open(&pair, 1, 1, "", 4096);
    while (wanted < WRITES) {
        pump_for(0);
        for (; started < WRITES && (started < WINDOW || t[started % WINDOW].end.released); started++)
            start_write(&pair, &t[started % WINDOW], 0, 8, true);
        uint64_t value = pplx_counter_value(&pair.counter) / PPLX_EIGHTHS;
        wanted = value + check_random(&seed) % (started - value + 1);
        if (wanted < started - WINDOW / 2 && started > WINDOW) wanted = started - WINDOW / 2;
        if (started == WRITES) wanted = WRITES;
        uint64_t told = pair.b.told;
        if (!pplx_counter_notify(&pair.counter, wanted * PPLX_EIGHTHS))
            WAIT(pair.b.told > told && pplx_counter_value(&pair.counter) >= wanted * PPLX_EIGHTHS);
    }
    for (int i = 0; i < WINDOW; i++) WAIT(t[i].end.released);
    CHECK_COUNT(&pair, (uint64_t)WRITES * PPLX_EIGHTHS);
    pair_close(&pair);
    free(t);
}

static void immediates_for_nobody_are_dropped(void) {
    pair pair;
    transfer t;
    pplx_engine_stats stats;
    pplx_counter gone = {0};
    pair_open(&pair, 1, 1, "", 4096);
    CHECK_EQ(pplx_counter_open(pair.b.engine, &gone), PPLX_OK);
    CHECK_EQ(call(&pair.b, PPLX_CALL_COUNTER_CLOSE, &gone, NULL), PPLX_OK);
    const uint32_t ids[] = {gone.id, PPLX_MAX_COUNTERS - 1, gone.id + 1};
    for (int i = 0; i < 3; i++) {
        memset(&t, 0, sizeof t);
        t.segment.pages = 1;
        t.target = (pplx_target){.peer = pair.ab, .segments = &t.segment, .nsegments = 1, .counter = ids[i]};
        transfer_submit(&pair.a, &t, PPLX_WRITE);
        WAIT(t.end.released);
        CHECK_EQ(t.request.error.status, PPLX_OK);
    }
    do {
        pump_ms(1);
        pplx_engine_read_stats(pair.b.engine, &stats);
    } while (stats.stray_imms < 3);
    CHECK_EQ(stats.stray_imms, 3);
    /* The id is used again, and counts for its new counter. */
    pplx_counter_recycle(pair.b.engine, gone.id);
    pplx_counter again = {0};
    CHECK_EQ(pplx_counter_open(pair.b.engine, &again), PPLX_OK);
    CHECK_EQ(again.id, ids[0]);
    CHECK_EQ(pplx_counter_value(&again), 0);
    pair_close(&pair);
}

/* Closing a counter whose id is another's by now does not silence that one. */
static void closing_twice_silences_nobody(void) {
    pair pair;
    transfer t;
    pplx_counter old = {0}, young = {0}, never = {.id = PPLX_MAX_COUNTERS - 1};
    pair_open(&pair, 1, 1, "", 4096);
    CHECK_EQ(pplx_counter_open(pair.b.engine, &old), PPLX_OK);
    CHECK_EQ(call(&pair.b, PPLX_CALL_COUNTER_CLOSE, &old, NULL), PPLX_OK);
    pplx_counter_recycle(pair.b.engine, old.id);
    CHECK_EQ(pplx_counter_open(pair.b.engine, &young), PPLX_OK);
    CHECK_EQ(young.id, old.id);
    CHECK_EQ(call(&pair.b, PPLX_CALL_COUNTER_CLOSE, &old, NULL), PPLX_OK);
    CHECK_EQ(call(&pair.b, PPLX_CALL_COUNTER_CLOSE, &never, NULL), PPLX_OK); /* nor does one without a place */
    memset(&t, 0, sizeof t);
    t.segment.pages = 1;
    t.target = (pplx_target){.peer = pair.ab, .segments = &t.segment, .nsegments = 1, .counter = young.id};
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    WATCH(t.end.released && pplx_counter_value(&young) == PPLX_EIGHTHS);
    CHECK_EQ(call(&pair.b, PPLX_CALL_COUNTER_CLOSE, &young, NULL), PPLX_OK);
    pair_close(&pair);
}

/* Ids are used again in the order in which they were given back, also while the queue of them grows
 * and wraps around. */
static void counter_ids_come_back_oldest_first(void) {
    enum { COUNT = 1000, HELD = 40 };
    host host;
    pplx_counter *counters = calloc(COUNT, sizeof *counters);
    host_open(&host, 1, "");
    for (int i = 0; i < COUNT; i++) CHECK_EQ(pplx_counter_open(host.engine, &counters[i]), PPLX_OK);
    for (int i = 0; i < HELD; i++) pplx_counter_recycle(host.engine, counters[i].id);
    for (int i = HELD; i < COUNT; i++) { /* the oldest goes, two come for it until all have */
        pplx_counter again = {0};
        pplx_counter_recycle(host.engine, counters[i].id);
        if (i % 2) continue;
        CHECK_EQ(pplx_counter_open(host.engine, &again), PPLX_OK);
        CHECK_EQ(again.id, counters[(i - HELD) / 2].id);
    }
    host_close(&host);
    free(counters);
}

/* UINT64_MAX means never, and a count that has come near it stays there. */
static void a_full_counter_stays_full(void) {
    pair pair;
    transfer t;
    pair_open(&pair, 1, 1, "", 4096);
    __atomic_store_n(&pair.counter.value, UINT64_MAX - 20, __ATOMIC_SEQ_CST);
    CHECK(!pplx_counter_notify(&pair.counter, UINT64_MAX));
    for (int i = 0; i < 5; i++) {
        start_write(&pair, &t, 0, 8, true);
        WAIT(t.end.released);
    }
    WATCH(pplx_counter_value(&pair.counter) == UINT64_MAX - 1);
    pump_ms(5);
    CHECK(pplx_counter_value(&pair.counter) == UINT64_MAX - 1);
    CHECK_EQ(pair.b.told, 0);
    pair_close(&pair);
}

/* ------------------------------------------------------------------ the ring */

typedef struct producer {
    pthread_t thread;
    pplx_engine *engine;
    pplx_request *requests;
    ending *ends;
    uint32_t count;
} producer;

static void *produce(void *argument) {
    producer *p = argument;
    for (uint32_t i = 0; i < p->count; i++) pplx_submit(p->engine, &p->requests[i]);
    return NULL;
}

/* Closing a region that isn't open settles in the moment it is taken: the order of settling is the
 * order of taking. A ring of 8 is full all the time. */
static void overflow_keeps_each_producers_order(void) {
    enum { PRODUCERS = 2, EACH = 10000 };
    static pplx_mr nothing;
    host host;
    producer producers[PRODUCERS];
    pplx_engine_config config = default_config;
    config.ring_entries = 8;
    host_open_with(&host, 1, "", &config);
    for (int p = 0; p < PRODUCERS; p++) {
        producers[p] = (producer){.engine = host.engine,
                                  .count = EACH,
                                  .requests = calloc(EACH, sizeof(pplx_request)),
                                  .ends = calloc(EACH, sizeof(ending))};
        for (int i = 0; i < EACH; i++)
            producers[p].requests[i] = (pplx_request){.kind = PPLX_REQUEST_CALL,
                                                      .opcode = PPLX_CALL_MR_CLOSE,
                                                      .subject = &nothing,
                                                      .cookie = &producers[p].ends[i]};
    }
    for (int p = 0; p < PRODUCERS; p++) CHECK_EQ(pthread_create(&producers[p].thread, NULL, produce, &producers[p]), 0);
    for (int p = 0; p < PRODUCERS; p++) {
        WAIT(producers[p].ends[EACH - 1].released);
        pthread_join(producers[p].thread, NULL);
        for (int i = 1; i < EACH; i++) CHECK(producers[p].ends[i].order > producers[p].ends[i - 1].order);
        free(producers[p].requests);
        free(producers[p].ends);
    }
    pplx_engine_stats stats;
    pplx_engine_read_stats(host.engine, &stats);
    CHECK_EQ(stats.requests, PRODUCERS * EACH);
    CHECK(stats.overflowed > 0);
    host_close(&host);
}

static void twenty_thousand_writes_at_once(void) {
    enum { WRITES = 20000 };
    pair pair;
    transfer *t = calloc(WRITES, sizeof *t);
    pplx_engine_config config = default_config;
    config.ring_entries = 8;
    pair_open_with(&pair, 2, 1, "again=0.01", WRITES * 8, &config);
    for (uint64_t i = 0; i < WRITES; i++) start_write(&pair, &t[i], i * 8, 8, true);
    for (int i = 0; i < WRITES; i++) {
        WAIT(t[i].end.released);
        CHECK_EQ(t[i].request.error.status, PPLX_OK);
    }
    CHECK(pair_equal(&pair, 0, WRITES * 8));
    CHECK_COUNT(&pair, (uint64_t)WRITES * PPLX_EIGHTHS);
    pair_close(&pair);
    free(t);
}

/* ------------------------------------------------------------------ numbers */

static void stats_add_up(void) {
    enum { WRITES = 500 };
    pair pair;
    transfer *t = calloc(WRITES, sizeof *t);
    pair_open(&pair, 2, 1, "again=0.5 reorder=4 fail=0.01 fail_status=REMOTE_ACCESS", 1 << 20);
    uint64_t failed = 0, completed = 0, nbytes = 0;
    for (uint64_t i = 0; i < WRITES; i++) start_write(&pair, &t[i], i * 1000, 1000, false);
    for (int i = 0; i < WRITES; i++) {
        WAIT(t[i].end.released);
        if (t[i].request.error.status == PPLX_OK)
            completed++;
        else
            failed++;
    }
    pplx_link_stats sum = {0}, stats;
    for (size_t i = 0; i < pplx_peer_links(pair.ab); i++) {
        pplx_link_read_stats(pair.ab, i, &stats);
        CHECK_EQ(stats.domain, i);
        CHECK_EQ(stats.remote_domain, 0);
        uint64_t latencies = 0;
        for (int b = 0; b < PPLX_LATENCY_BUCKETS; b++) latencies += stats.latency[PPLX_WRITE][b];
        CHECK_EQ(latencies, stats.completed[PPLX_WRITE] + stats.failed[PPLX_WRITE]);
        sum.posted[PPLX_WRITE] += stats.posted[PPLX_WRITE];
        sum.completed[PPLX_WRITE] += stats.completed[PPLX_WRITE];
        sum.failed[PPLX_WRITE] += stats.failed[PPLX_WRITE];
        sum.again += stats.again;
        nbytes += stats.nbytes[PPLX_WRITE];
    }
    CHECK(failed > 0);
    CHECK(sum.again > 0);
    CHECK_EQ(sum.posted[PPLX_WRITE], WRITES);
    CHECK_EQ(sum.completed[PPLX_WRITE], completed);
    CHECK_EQ(sum.failed[PPLX_WRITE], failed);
    CHECK_EQ(nbytes, completed * 1000);
    for (size_t i = 0; i < pplx_peer_links(pair.ab); i++) { /* heartbeats come and go */
        do {
            pump_ms(1);
            pplx_link_read_stats(pair.ab, i, &stats);
        } while (stats.inflight > 0);
        CHECK_EQ(stats.inflight_nbytes, 0);
    }
    pair_close(&pair);
    free(t);
}

static double cpu_seconds(void) {
    struct rusage usage;
    CHECK_EQ(getrusage(RUSAGE_SELF, &usage), 0);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

/* Two connected engines that have nothing to do, heartbeats included. */
static void idle_costs_nothing(void) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    const double most = 0.2; /* the sanitizers have threads of their own */
#else
    const double most = 0.05; /* it is a tenth of that; a slow machine takes more, and who spins all of it */
#endif
    pair pair;
    pair_open(&pair, 2, 2, "", 4096);
    write_now(&pair, 0, 4096, true);
    pump_ms(5);
    double before = cpu_seconds();
    usleep(500000);
    CHECK(cpu_seconds() - before < 0.5 * most);
    pair_close(&pair);
}

int main(void) {
    RUN(connects_and_closes);
    RUN(write_lands_and_counts);
    RUN(write_of_nothing_counts);
    RUN(request_of_nothing_settles);
    RUN(reads);
    RUN(polls_on_a_timer_without_wait_fd);
    RUN(hundred_thousand_pages);
    RUN(pages_in_runs);
    RUN(runs_longer_than_a_weight);
    RUN(runs_cut_by_the_message_limit);
    RUN(scatter_to_several_peers);
    RUN(shards_count_one);
    RUN(fragments_count_one);
    RUN(last_fragment_comes_last);
    RUN(waiting_fragments_take_turns);
    RUN(small_writes_starve_no_large_one);
    RUN(pages_together_take_turns);
    RUN(large_pages_in_a_run);
    RUN(immediates_before_anyone_looks);
    RUN(notifications_are_not_lost);
    RUN(immediates_for_nobody_are_dropped);
    RUN(closing_twice_silences_nobody);
    RUN(counter_ids_come_back_oldest_first);
    RUN(a_full_counter_stays_full);
    RUN(overflow_keeps_each_producers_order);
    RUN(twenty_thousand_writes_at_once);
    RUN(stats_add_up);
    RUN(idle_costs_nothing);
    return check_done();
}
