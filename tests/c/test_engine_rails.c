/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The engine over loopback with several links: of different weight, and when one of them is lost. */
#include "engine_helpers.h"

/* ------------------------------------------------------------------ weights */

/* What each link has carried, of a and in thousandths of all. */
static void parts_of(const pair *pair, uint64_t *thousandths) {
    uint64_t carried[PPLX_MAX_LINKS], total = 0;
    const size_t n = pplx_peer_links(pair->ab);
    for (size_t i = 0; i < n; i++) {
        pplx_link_stats stats;
        pplx_link_read_stats(pair->ab, i, &stats);
        carried[i] = stats.nbytes[PPLX_WRITE] + stats.nbytes[PPLX_WRITE_IMM];
        total += carried[i];
    }
    CHECK(total > 0);
    for (size_t i = 0; i < n; i++) thousandths[i] = carried[i] * 1000 / total;
}

static void writes_are_cut_by_weight(void) {
    static const uint32_t weights[] = {800, 100, 100};
    uint64_t parts[PPLX_MAX_LINKS], seed = 5;
    pair pair;
    link_weights = weights;
    pair_open(&pair, 3, 3, "reorder=16", 1 << 20);
    for (int i = 0; i < 60; i++) {
        const uint64_t nbytes = 65536 + check_random(&seed) % (1000000 - 65536);
        const uint64_t offset = check_random(&seed) % ((1 << 20) - nbytes);
        area_fill(&pair.from, seed);
        write_now(&pair, offset, nbytes, i % 3 != 0);
        CHECK(pair_equal(&pair, offset, nbytes));
    }
    CHECK_COUNT(&pair, 40 * PPLX_EIGHTHS);
    parts_of(&pair, parts);
    CHECK(parts[0] > 780 && parts[0] < 820);
    CHECK(parts[1] > 80 && parts[1] < 120 && parts[2] > 80 && parts[2] < 120);
    pair_close(&pair);
    link_weights = NULL;
}

static void what_is_not_cut_goes_where_least_was(void) {
    static const uint32_t weights[] = {300, 100};
    uint64_t parts[PPLX_MAX_LINKS];
    pair pair;
    link_weights = weights;
    pair_open(&pair, 2, 2, "", 1 << 20);
    for (int i = 0; i < 400; i++) write_now(&pair, 0, 4000, true);
    CHECK_COUNT(&pair, 400 * PPLX_EIGHTHS);
    parts_of(&pair, parts);
    CHECK(parts[0] > 740 && parts[0] < 760);
    pair_close(&pair);
    link_weights = NULL;
}

static void limits_of_a_message_hold(void) {
    static const uint32_t weights[] = {1000, 1, 300};
    uint64_t parts[PPLX_MAX_LINKS], seed = 9;
    pair pair;
    link_weights = weights;
    pair_open(&pair, 3, 3, "max_message=20000 reorder=8", 1 << 20); /* one that is longer ends with TOO_LARGE */
    for (int i = 0; i < 60; i++) {
        const uint64_t nbytes = 1 + check_random(&seed) % 200000;
        area_fill(&pair.from, seed);
        write_now(&pair, 7, nbytes, i % 2);
        CHECK(pair_equal(&pair, 7, nbytes));
    }
    CHECK_COUNT(&pair, 30 * PPLX_EIGHTHS);
    parts_of(&pair, parts);
    CHECK(parts[0] > 700 && parts[1] < 30 && parts[2] > 150);
    pair_close(&pair);
    link_weights = NULL;
}

static void runs_of_pages_are_cut_by_weight(void) {
    static const uint32_t weights[] = {900, 100};
    uint64_t parts[PPLX_MAX_LINKS];
    pair pair;
    transfer t;
    link_weights = weights;
    pair_open(&pair, 2, 2, "", 1 << 20);
    area_fill(&pair.from, 3);
    for (int i = 0; i < 10; i++) {
        memset(&t, 0, sizeof t);
        t.segment = (pplx_segment){0, 0, 1 << 20, 1 << 10};
        t.target = (pplx_target){.local = &pair.from.mr,
                                 .remote = &pair.remote,
                                 .peer = pair.ab,
                                 .segments = &t.segment,
                                 .nsegments = 1,
                                 .counter = pair.counter.id};
        transfer_submit(&pair.a, &t, PPLX_WRITE);
        WAIT(t.end.released);
        CHECK_EQ(t.request.error.status, PPLX_OK);
    }
    CHECK(pair_equal(&pair, 0, 1 << 20));
    CHECK_COUNT(&pair, UINT64_C(10240) * PPLX_EIGHTHS);
    parts_of(&pair, parts);
    CHECK(parts[0] > 870 && parts[0] < 930);
    pair_close(&pair);
    link_weights = NULL;
}

/* ------------------------------------------------------------------ a link is lost */

enum { MANY = 300, PIECE = 2048 };

static transfer many[MANY];
static ending told[8];
static pplx_request tellings[8];
static uint32_t ntold;
static pair *rails;

/* As the control channel would. */
static void tell_other(host *host, pplx_peer *peer, uint32_t link) {
    (void)peer;
    struct host *other = host == &rails->a ? &rails->b : &rails->a;
    CHECK(ntold < 8);
    told[ntold] = (ending){0};
    tellings[ntold] = (pplx_request){.kind = PPLX_REQUEST_CALL,
                                     .opcode = PPLX_CALL_RAIL_LOST,
                                     .subject = host == &rails->a ? rails->ba : rails->ab,
                                     .nbytes = link,
                                     .cookie = &told[ntold]};
    pplx_submit(other->engine, &tellings[ntold++]);
}

/* Each engine with its own faults; b's are of its domain 1 only, if they say so. */
static void rails_open(pair *pair, uint32_t domains, const char *faults_a, const char *faults_b, bool failover,
                       uint32_t timeout_ms) {
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = 20;
    config.heartbeat_timeout_ms = timeout_ms;
    config.shard_nbytes = 16384;
    config.rail_failover = failover;
    memset(pair, 0, sizeof *pair);
    host_open_with(&pair->a, domains, faults_a, &config);
    host_open_with(&pair->b, domains, faults_b, &config);
    pair->a.on_rail = pair->b.on_rail = tell_other;
    rails = pair;
    ntold = 0;
    pair_fill(pair, MANY * PIECE);
    area_fill(&pair->from, 11);
}

static void rails_close(pair *pair) {
    for (uint32_t i = 0; i < ntold; i++) WAIT(told[i].released);
    pair_close(pair);
}

static void start_one(pair *pair, uint32_t i, uint32_t opcode, bool counted) {
    memset(&many[i], 0, sizeof many[i]);
    many[i].segment = (pplx_segment){i * PIECE, i * PIECE, PIECE, 1};
    many[i].target = (pplx_target){.local = &pair->from.mr,
                                   .remote = &pair->remote,
                                   .peer = pair->ab,
                                   .segments = &many[i].segment,
                                   .nsegments = 1,
                                   .counter = counted ? pair->counter.id : PPLX_NO_COUNTER};
    transfer_submit(&pair->a, &many[i], opcode);
}

static uint32_t ended(pplx_status status) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < MANY; i++) n += many[i].end.released && many[i].request.error.status == status;
    return n;
}

static void run_many(pair *pair, uint32_t opcode, bool counted) {
    for (uint32_t i = 0; i < MANY; i++) start_one(pair, i, opcode, counted);
    for (uint32_t i = 0; i < MANY; i++) WAIT(many[i].end.released);
    (void)pair;
}

static void check_lost_rail(pair *pair, uint32_t link) {
    WAIT(pair->a.rails == 1 && pair->b.rails == 1);
    CHECK_EQ(pair->a.last_rail, link);
    CHECK_EQ(pair->b.last_rail, link);
    CHECK_EQ(pair->a.lost + pair->b.lost, 0);
}

/* Those that were in flight there fail typed, the others succeed, and what comes later does not notice. */
static void a_silent_link_is_lost_and_the_peer_lives(void) {
    pair pair;
    rails_open(&pair, 3, "", "device=1 drop_after=30", false, 1000);
    WAIT(pair.a.rails || pair.b.rails); /* b says nothing there after its 30th heartbeat */
    check_lost_rail(&pair, 1);
    run_many(&pair, PPLX_WRITE, true);
    CHECK_EQ(ended(PPLX_OK), MANY);
    CHECK_COUNT(&pair, MANY * PPLX_EIGHTHS);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    write_now(&pair, 0, MANY * PIECE, true); /* sharded */
    CHECK_COUNT(&pair, (MANY + 1) * PPLX_EIGHTHS);
    rails_close(&pair);
}

static void what_was_in_flight_fails_typed(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", false, 1000);
    run_many(&pair, PPLX_WRITE, true);
    check_lost_rail(&pair, 1);
    const uint32_t failed = ended(PPLX_RAIL_LOST);
    CHECK(failed > 0);
    CHECK_EQ(failed + ended(PPLX_OK), MANY);
    for (uint32_t i = 0; i < MANY; i++) {
        if (many[i].request.error.status != PPLX_OK) CHECK_EQ(many[i].target.links, 2);
        if (many[i].request.error.status == PPLX_OK) CHECK(pair_equal(&pair, i * PIECE, PIECE));
    }
    /* The silent one has written nothing after its 60th. */
    CHECK_COUNT(&pair, (MANY - failed) * PPLX_EIGHTHS);
    rails_close(&pair);
}

static void a_provider_that_says_so_loses_the_link(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 fail_after=60 fail_status=PEER_LOST", "", false, 20000);
    run_many(&pair, PPLX_WRITE, true);
    check_lost_rail(&pair, 1);
    CHECK(ended(PPLX_RAIL_LOST) > 0);
    CHECK_EQ(ended(PPLX_RAIL_LOST) + ended(PPLX_OK), MANY);
    rails_close(&pair);
}

static void writes_without_an_immediate_are_sent_again(void) {
    pair pair;
    rails_open(&pair, 3, "device=1 drop_after=60", "", true, 1000);
    run_many(&pair, PPLX_WRITE, false);
    check_lost_rail(&pair, 1);
    CHECK_EQ(ended(PPLX_OK), MANY);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    rails_close(&pair);
}

static void reads_are_sent_again(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 1000);
    area_fill(&pair.to, 12);
    run_many(&pair, PPLX_READ, false);
    check_lost_rail(&pair, 1);
    CHECK_EQ(ended(PPLX_OK), MANY);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    rails_close(&pair);
}

static void counted_writes_are_not_sent_again(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 1000);
    run_many(&pair, PPLX_WRITE, true);
    check_lost_rail(&pair, 1);
    CHECK(ended(PPLX_RAIL_LOST) > 0);
    CHECK_COUNT(&pair, ended(PPLX_OK) * PPLX_EIGHTHS);
    rails_close(&pair);
}

/* Its end may still be open: something late could land on what the user has written since. */
static void nothing_is_sent_again_before_the_other_side_has_closed(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 1000);
    pair.b.on_rail = NULL;
    run_many(&pair, PPLX_WRITE, false);
    check_lost_rail(&pair, 1);
    CHECK(ended(PPLX_RAIL_LOST) > 0);
    CHECK_EQ(ended(PPLX_RAIL_LOST) + ended(PPLX_OK), MANY);
    rails_close(&pair);
}

static void the_last_link_takes_the_peer_along(void) {
    pair pair;
    rails_open(&pair, 3, "drop_after=100", "", true, 1000);
    run_many(&pair, PPLX_WRITE, true);
    WAIT(pair.a.lost == 1 && pair.b.lost == 1);
    CHECK(ended(PPLX_PEER_LOST) > 0);
    CHECK_EQ(ended(PPLX_PEER_LOST) + ended(PPLX_RAIL_LOST) + ended(PPLX_OK), MANY);
    rails_close(&pair);
}

static void closing_ends_what_waits_to_be_sent_again(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 2000);
    pair.b.on_rail = NULL;
    for (uint32_t i = 0; i < MANY; i++) start_one(&pair, i, PPLX_WRITE, false);
    WAIT(pair.a.rails == 1);
    rails_close(&pair);
    for (uint32_t i = 0; i < MANY; i++) CHECK(many[i].end.released);
}

int main(void) {
    RUN(writes_are_cut_by_weight);
    RUN(what_is_not_cut_goes_where_least_was);
    RUN(limits_of_a_message_hold);
    RUN(runs_of_pages_are_cut_by_weight);
    RUN(a_silent_link_is_lost_and_the_peer_lives);
    RUN(what_was_in_flight_fails_typed);
    RUN(a_provider_that_says_so_loses_the_link);
    RUN(writes_without_an_immediate_are_sent_again);
    RUN(reads_are_sent_again);
    RUN(counted_writes_are_not_sent_again);
    RUN(nothing_is_sent_again_before_the_other_side_has_closed);
    RUN(the_last_link_takes_the_peer_along);
    RUN(closing_ends_what_waits_to_be_sent_again);
    return check_done();
}
