/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The engine over loopback with several links of different weight. */
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

int main(void) {
    RUN(writes_are_cut_by_weight);
    RUN(what_is_not_cut_goes_where_least_was);
    RUN(limits_of_a_message_hold);
    RUN(runs_of_pages_are_cut_by_weight);
    return check_done();
}
