/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* How things end over loopback: failed work requests, closed and lost peers, memory that a provider
 * lets go of later. */
#include <stdatomic.h>

#include "engine_helpers.h"

enum { MANY = 200, NBYTES = 4000 };

static transfer many[MANY];

static void start_many(pair *pair) {
    for (uint64_t i = 0; i < MANY; i++) start_write(pair, &many[i], i * NBYTES, NBYTES, true);
}

static uint64_t settled_many(void) {
    uint64_t n = 0;
    for (int i = 0; i < MANY; i++) n += many[i].end.settled;
    return n;
}

static void wait_many(void) {
    for (int i = 0; i < MANY; i++) WAIT(many[i].end.released);
}

static uint64_t count_many(pplx_status status) {
    uint64_t n = 0;
    for (int i = 0; i < MANY; i++) n += many[i].request.error.status == status;
    return n;
}

static void start_call(host *host, pplx_request *request, ending *end, enum pplx_call opcode, void *subject) {
    *end = (ending){0};
    *request = (pplx_request){.kind = PPLX_REQUEST_CALL, .opcode = opcode, .subject = subject, .cookie = end};
    pplx_submit(host->engine, request);
}

/* Whatever was in flight: the memory is ours again, nothing changes it. */
static void check_quiet(pair *pair) {
    memset(pair->from.bytes, 1, pair->from.nbytes);
    memset(pair->to.bytes, 2, pair->to.nbytes);
    pump_ms(5);
    for (size_t i = 0; i < pair->to.nbytes; i++) CHECK_EQ(pair->to.bytes[i], 2);
}

/* Faults for b alone, which is the one that goes silent. */
static void pair_open_apart(pair *pair, const char *faults_a, const pplx_engine_config *config_a, const char *faults_b,
                            const pplx_engine_config *config_b) {
    memset(pair, 0, sizeof *pair);
    host_open_with(&pair->a, 1, faults_a, config_a);
    host_open_with(&pair->b, 1, faults_b, config_b);
    pair_fill(pair, MANY * NBYTES);
}

/* ------------------------------------------------------------------ failures */

static void expect_failure(pair *pair, pplx_remote *remote, pplx_segment segment, pplx_status status) {
    transfer t;
    memset(&t, 0, sizeof t);
    t.segment = segment;
    t.target = (pplx_target){.local = &pair->from.mr,
                             .remote = remote,
                             .peer = pair->ab,
                             .segments = &t.segment,
                             .nsegments = 1,
                             .counter = pair->counter.id};
    transfer_submit(&pair->a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, status);
    CHECK_EQ(t.target.status, status);
    CHECK_EQ(t.target.delivered, 0);
}

static void access_errors(void) {
    pair pair;
    area read_only;
    pair_open(&pair, 1, 1, "", 4096);
    area_open(&read_only, &pair.b, 4096, PPLX_ACCESS_REMOTE_READ);
    pplx_remote wrong = pair.remote, forbidden = remote_of(&read_only, pair.ab);
    wrong.keys[0].key ^= 1;
    expect_failure(&pair, &wrong, (pplx_segment){0, 0, 100, 1}, PPLX_REMOTE_ACCESS);
    expect_failure(&pair, &forbidden, (pplx_segment){0, 0, 100, 1}, PPLX_REMOTE_ACCESS);
    expect_failure(&pair, &pair.remote, (pplx_segment){0, 4000, 100, 1}, PPLX_REMOTE_ACCESS);
    expect_failure(&pair, &pair.remote, (pplx_segment){0, UINT64_MAX - 10, 100, 1}, PPLX_REMOTE_ACCESS);
    expect_failure(&pair, &pair.remote, (pplx_segment){4000, 0, 100, 1}, PPLX_LOCAL_ACCESS);
    for (size_t i = 0; i < 4096; i++) CHECK_EQ(pair.to.bytes[i], 0);
    write_now(&pair, 0, 4096, true); /* nothing else has suffered */
    CHECK_COUNT(&pair, PPLX_EIGHTHS);
    area_close(&read_only);
    pair_close(&pair);
}

/* One of several targets: the others arrive, the request says which failed. */
static void one_target_fails(void) {
    pair pair;
    transfer t;
    pplx_target targets[3];
    pplx_segment segments[3] = {{0, 0, 1000, 1}, {1000, 1000, 1000, 1}, {2000, 2000, 1000, 1}};
    pair_open(&pair, 1, 1, "", 4096);
    pplx_remote wrong = pair.remote;
    wrong.keys[0].key ^= 1;
    for (int i = 0; i < 3; i++)
        targets[i] = (pplx_target){.local = &pair.from.mr,
                                   .remote = i == 1 ? &wrong : &pair.remote,
                                   .peer = pair.ab,
                                   .segments = &segments[i],
                                   .nsegments = 1,
                                   .counter = pair.counter.id};
    memset(&t, 0, sizeof t);
    t.request.targets = targets;
    t.request.ntargets = 3;
    transfer_submit(&pair.a, &t, PPLX_WRITE);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_REMOTE_ACCESS);
    CHECK_EQ(t.request.failed_target, 1);
    CHECK_EQ(targets[0].status, PPLX_OK);
    CHECK_EQ(targets[2].status, PPLX_OK);
    CHECK_COUNT(&pair, 2 * PPLX_EIGHTHS);
    CHECK(pair_equal(&pair, 0, 1000) && pair_equal(&pair, 2000, 1000));
    pair_close(&pair);
}

/* Some work requests fail in a way that may mean a dead peer. The heartbeats say that it lives, so
 * those requests fail, and the engine goes on. */
static void errors_of_a_living_peer(const char *faults, pplx_status status) {
    pair pair;
    pair_open(&pair, 2, 2, faults, MANY * NBYTES);
    start_many(&pair);
    wait_many();
    CHECK(count_many(status) > 0);
    CHECK_EQ(count_many(status) + count_many(PPLX_OK), MANY);
    uint64_t delivered = 0;
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(many[i].target.total, PPLX_EIGHTHS);
        delivered += many[i].target.delivered;
    }
    CHECK_EQ(delivered, count_many(PPLX_OK) * PPLX_EIGHTHS);
    CHECK_COUNT(&pair, delivered);
    CHECK_EQ(pair.a.lost + pair.b.lost, 0);
    check_quiet(&pair);
    pair_close(&pair);
}

static void transport_errors_of_a_living_peer(void) {
    errors_of_a_living_peer("fail=0.03 seed=5 reorder=8", PPLX_TRANSPORT);
    errors_of_a_living_peer("fail=0.03 seed=6 fail_status=FLUSHED", PPLX_FLUSHED);
}

/* A sharded write of which one shard fails: less than one is counted, and the sender knows it. */
static void a_shard_fails(void) {
    pair pair;
    pair_open(&pair, 4, 4, "fail=0.05 seed=2", MANY * NBYTES);
    uint64_t delivered = 0, fractions = 0;
    for (int i = 0; i < 100; i++) {
        transfer t;
        start_write(&pair, &t, 0, 70000, true);
        WAIT(t.end.released);
        delivered += t.target.delivered;
        fractions += t.target.delivered % PPLX_EIGHTHS != 0;
        CHECK_EQ(t.target.delivered == t.target.total, t.request.error.status == PPLX_OK);
    }
    CHECK(fractions > 0);
    CHECK_COUNT(&pair, delivered);
    pair_close(&pair);
}

/* Nearly everything fails, heartbeats too: sooner or later the peer counts as lost, and what failed
 * because of it says so. */
static void transport_errors_of_a_dead_peer(void) {
    pair pair;
    transfer t;
    uint64_t n = 0;
    pair_open_apart(&pair, "fail=0.8 seed=1", &default_config, "", &default_config);
    do {
        start_write(&pair, &t, 0, 100, true);
        WAIT(t.end.released);
        CHECK(t.request.error.status == PPLX_OK || t.request.error.status == PPLX_TRANSPORT ||
              t.request.error.status == PPLX_PEER_LOST);
    } while (t.request.error.status != PPLX_PEER_LOST && ++n < 10000);
    CHECK_EQ(t.request.error.status, PPLX_PEER_LOST);
    WAIT(pair.a.lost == 1);
    CHECK(pair.a.last_lost == pair.ab);
    pair_close(&pair);
}

/* ------------------------------------------------------------------ goodbye */

static uint64_t posted_writes(const pair *pair) {
    uint64_t sum = 0;
    for (size_t i = 0; i < pplx_peer_links(pair->ab); i++) {
        pplx_link_stats stats;
        pplx_link_read_stats(pair->ab, i, &stats);
        sum += stats.posted[PPLX_WRITE_IMM];
    }
    return sum;
}

static void closing_flushes(const char *faults, uint32_t domains, bool fences) {
    pair pair;
    pplx_request close;
    ending end;
    pair_open(&pair, domains, 1, faults, MANY * NBYTES);
    start_many(&pair);
    WATCH(posted_writes(&pair) >= 30);
    start_call(&pair.a, &close, &end, PPLX_CALL_PEER_CLOSE, pair.ab);
    WAIT(settled_many() == MANY);
    CHECK(count_many(PPLX_FLUSHED) > 0);
    CHECK_EQ(count_many(PPLX_FLUSHED) + count_many(PPLX_OK), MANY);
    uint64_t unreleased = 0, posted = 0;
    for (int i = 0; i < MANY; i++) {
        unreleased += !many[i].end.released;
        posted += many[i].target.posted;
    }
    CHECK_EQ(unreleased > 0, !fences); /* settled at once all the same */
    wait_many();
    WAIT(end.released);
    CHECK_EQ(close.error.status, PPLX_OK);
    CHECK_EQ(pair.a.lost, 0); /* a goodbye is no loss */
    check_quiet(&pair);
    CHECK(pplx_counter_value(&pair.counter) <= posted);
    start_many(&pair);
    wait_many();
    CHECK_EQ(count_many(PPLX_CLOSED), MANY);
    pplx_peer_free(pair.ab);
    pair.ab = NULL;
    pair_close(&pair);
}

static void closing_with_a_fence(void) {
    closing_flushes("delay_us=50000:50000", 1, true);
    closing_flushes("delay_us=0:50000 reorder=8 max_inflight=16", 3, true);
}

static void closing_without_a_fence(void) {
    closing_flushes("delay_us=50000:50000 release=0", 1, false);
    closing_flushes("delay_us=40000:80000 release=0 reorder=8 max_inflight=16", 3, false);
}

/* A peer that says goodbye while we write: its side is closed, ours learns it from the fabric. */
static void the_peer_closes_first(void) {
    pair pair;
    pair_open(&pair, 1, 1, "delay_us=0:50000", MANY * NBYTES);
    start_many(&pair);
    WAIT(settled_many() > MANY / 4);
    part(&pair.b, pair.ba);
    pair.ba = NULL;
    uint64_t counted = pplx_counter_value(&pair.counter);
    wait_many();
    CHECK_EQ(count_many(PPLX_OK) + count_many(PPLX_PEER_LOST), MANY);
    CHECK(count_many(PPLX_PEER_LOST) > 0);
    WAIT(pair.a.lost == 1);
    check_quiet(&pair);
    CHECK_EQ(pplx_counter_value(&pair.counter), counted); /* all it wrote was counted before the close settled */
    pair_close(&pair);
}

static void closing_at_any_stage(void) {
    pair pair;
    pplx_request connect, close;
    ending connected, closed;
    memset(&pair, 0, sizeof pair);
    host_open(&pair.a, 2, "");
    host_open(&pair.b, 1, "");
    pplx_peer *peer = peer_new(pair.a.engine, NULL, (uint32_t)pplx_engine_domains(pair.a.engine), 3); /* never opened */
    CHECK(peer && pplx_peer_links(peer) == 3);
    part(&pair.a, peer);
    const pplx_route none = {0}, beyond = {.domain = PPLX_MAX_DOMAINS}, theirs_beyond = {.remote_domain = 1};
    CHECK(pplx_peer_new(pair.a.engine, NULL, 1, &none, 0) == NULL);
    CHECK(pplx_peer_new(pair.a.engine, NULL, 1, &beyond, 1) == NULL);
    CHECK(pplx_peer_new(pair.a.engine, NULL, 1, &theirs_beyond, 1) == NULL);
    CHECK(pplx_peer_new(pair.a.engine, NULL, PPLX_MAX_DOMAINS + 1, &none, 1) == NULL);
    introduce(&pair.a, &pair.b, &pair.ab, &pair.ba);
    CHECK_EQ(call(&pair.a, PPLX_CALL_PEER_OPEN, pair.ab, NULL), PPLX_INVALID);
    start_call(&pair.a, &connect, &connected, PPLX_CALL_PEER_CONNECT, pair.ab); /* b doesn't */
    pump_ms(5);
    CHECK(!connected.settled);
    start_call(&pair.a, &close, &closed, PPLX_CALL_PEER_CLOSE, pair.ab);
    WAIT(connected.released && closed.released);
    CHECK_EQ(connect.error.status, PPLX_FLUSHED);
    CHECK_EQ(close.error.status, PPLX_OK);
    CHECK_EQ(call(&pair.a, PPLX_CALL_PEER_CLOSE, pair.ab, NULL), PPLX_INVALID);
    CHECK_EQ(call(&pair.a, PPLX_CALL_PEER_CONNECT, pair.ab, NULL), PPLX_CLOSED);
    pplx_peer_free(pair.ab);
    start_call(&pair.b, &connect, &connected, PPLX_CALL_PEER_CONNECT, pair.ba); /* to nobody */
    WAIT(connected.released);
    CHECK_EQ(connect.error.status, PPLX_PEER_LOST);
    part(&pair.b, pair.ba); /* open, not connected */
    introduce(&pair.a, &pair.b, &pair.ab, &pair.ba);
    start_call(&pair.a, &connect, &connected, PPLX_CALL_PEER_CONNECT, pair.ab);
    pplx_cancel(pair.a.engine, &connect);
    WAIT(connected.released);
    CHECK_EQ(connect.error.status, PPLX_CANCELLED);
    part(&pair.a, pair.ab);
    part(&pair.b, pair.ba);
    host_close(&pair.a);
    host_close(&pair.b);
}

static void peers_come_and_go(void) {
    host a, b;
    host_open(&a, 1, "");
    host_open(&b, 2, "again=0.2");
    for (int i = 0; i < 200; i++) {
        pplx_peer *ab, *ba;
        join(&a, &b, &ab, &ba);
        part(&a, ab);
        part(&b, ba);
    }
    CHECK_EQ(a.messages + b.messages, 0);
    host_close(&a);
    host_close(&b);
}

static void registration_failures(void) {
    host host;
    pplx_error error;
    uint8_t bytes[100];
    pplx_mr mr = {.memory = {.address = (uintptr_t)bytes, .nbytes = sizeof bytes, .device = -1, .fd = -1}};
    host_open(&host, 3, "fail_registration=2"); /* the first is the landing page, in each domain */
    CHECK_EQ(call(&host, PPLX_CALL_MR_OPEN, &mr, &error), PPLX_REGISTRATION);
    CHECK(strstr(error.text, "fail_registration"));
    CHECK_EQ(mr.domains, 0);
    CHECK_EQ(call(&host, PPLX_CALL_MR_OPEN, &mr, NULL), PPLX_REGISTRATION); /* number 2 of the second domain */
    CHECK_EQ(call(&host, PPLX_CALL_MR_OPEN, &mr, NULL), PPLX_REGISTRATION);
    CHECK_EQ(call(&host, PPLX_CALL_MR_OPEN, &mr, NULL), PPLX_OK);
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &mr, NULL), PPLX_OK);
    CHECK_EQ(call(&host, (enum pplx_call)99, &mr, NULL), PPLX_INVALID);
    host_close(&host);
}

static int closes, close_refused; /* which mr_close fails, from 1 */

static pplx_status failing_mr_close(pplx_provider_mr *mr) {
    return ++closes == close_refused ? PPLX_NATIVE : pplx_provider_loopback.mr_close(mr);
}

/* What did not close stays known, and a second call closes that and nothing else. */
static void closing_a_region_again(void) {
    host host;
    uint8_t bytes[100];
    pplx_provider provider = pplx_provider_loopback;
    pplx_mr mr = {.memory = {.address = (uintptr_t)bytes, .nbytes = sizeof bytes, .device = -1, .fd = -1}};
    provider.mr_close = failing_mr_close;
    host_provider = &provider;
    host_open(&host, 3, "");
    host_provider = &pplx_provider_loopback;
    CHECK_EQ(call(&host, PPLX_CALL_MR_OPEN, &mr, NULL), PPLX_OK);
    closes = 0;
    close_refused = 2;
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &mr, NULL), PPLX_NATIVE);
    CHECK_EQ(closes, 3);
    CHECK_EQ(mr.domains, 3);
    CHECK(!mr.handles[0] && mr.handles[1] && !mr.handles[2]);
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &mr, NULL), PPLX_OK);
    CHECK_EQ(closes, 4);
    CHECK_EQ(mr.domains, 0);
    host_close(&host);
}

/* ------------------------------------------------------------------ lost */

/* After a loss: it came once, it says why, everything has ended, and nothing new begins. */
static void check_lost(pair *pair, const char *why) {
    pplx_error reason;
    WAIT(pair->a.lost == 1);
    CHECK(pair->a.last_lost == pair->ab);
    wait_many();
    CHECK_EQ(count_many(PPLX_PEER_LOST) + count_many(PPLX_OK), MANY);
    CHECK(count_many(PPLX_PEER_LOST) > 0);
    pplx_peer_reason(pair->ab, &reason);
    CHECK_EQ(reason.status, PPLX_PEER_LOST);
    CHECK(strstr(reason.text, why));
    start_many(pair);
    wait_many();
    CHECK_EQ(count_many(PPLX_PEER_LOST), MANY);
    CHECK_EQ(call(&pair->a, PPLX_CALL_PEER_LOST, pair->ab, NULL), PPLX_OK); /* no news */
    pump_ms(5);
    CHECK_EQ(pair->a.lost, 1);
}

static void lost_by_call(const char *faults, const char *why) {
    pair pair;
    ending end = {0};
    pplx_request lost = {.kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_PEER_LOST, .payload = why, .cookie = &end};
    pair_open(&pair, 2, 1, faults, MANY * NBYTES);
    start_many(&pair);
    lost.subject = pair.ab;
    pplx_submit(pair.a.engine, &lost);
    WAIT(end.released);
    check_lost(&pair, why ? why : "owner");
    check_quiet(&pair);
    pair_close(&pair);
}

static void lost_because_the_owner_says_so(void) {
    lost_by_call("delay_us=50000:50000", "its control channel ended");
    lost_by_call("delay_us=50000:50000 release=0", NULL);
}

static void lost_by_silence(void) {
    pair pair;
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = 20;
    config.heartbeat_timeout_ms = 1000;
    pair_open_apart(&pair, "", &config, "drop_after=50",
                    &config); /* b: the handshake takes a few, heartbeats the rest */
    uint64_t start = check_now_ns();
    while (pair.a.lost == 0) {
        start_many(&pair);
        WATCH(settled_many() == MANY);
        check_patience(start, PATIENCE_S);
    }
    check_lost(&pair, "no heartbeat");
    WAIT(pair.b.lost == 1); /* it hears nothing either */
    pair_close(&pair);
}

static atomic_bool refusing;

static pplx_status refusing_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                                 size_t *posted, int32_t *provider_error) {
    if (!atomic_load(&refusing)) return pplx_provider_loopback.post(endpoint, requests, count, posted, provider_error);
    *posted = 0;
    *provider_error = 0;
    return PPLX_AGAIN;
}

/* Our NIC takes nothing any more: the clock for PPLX_AGAIN runs out long before the one for silence. */
static void lost_by_refusal(void) {
    pair pair;
    pplx_provider provider = pplx_provider_loopback;
    pplx_engine_config config = default_config;
    config.again_timeout_ms = 200;
    provider.post = refusing_post;
    atomic_store(&refusing, false);
    memset(&pair, 0, sizeof pair);
    host_provider = &provider;
    host_open_with(&pair.a, 1, "", &config);
    host_provider = &pplx_provider_loopback;
    host_open(&pair.b, 1, "");
    pair_fill(&pair, MANY * NBYTES);
    atomic_store(&refusing, true);
    start_many(&pair);
    check_lost(&pair, "takes no more");
    pair_close(&pair);
}

/* A NIC full of data takes heartbeats all the same. A heartbeat is out for 300 ms of each 400; the
 * writes begin when one has just come back, so the next is due while they fill the pipeline. One that
 * is refused shows in `again`. */
static void a_full_pipeline_takes_heartbeats(void) {
    pair pair;
    transfer writes[8];
    pplx_link_stats before, after;
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = 400;
    pair_open_with(&pair, 1, 1, "max_inflight=8 delay_us=300000:300000", 4096, &config);
    for (int out = 1; out >= 0; out--) {
        do {
            pump_for(1);
            pplx_link_read_stats(pair.ab, 0, &before);
        } while (before.inflight != (uint64_t)out);
    }
    for (int i = 0; i < 8; i++) start_write(&pair, &writes[i], 0, 8, false);
    for (int i = 0; i < 8; i++) WAIT(writes[i].end.released);
    pplx_link_read_stats(pair.ab, 0, &after);
    CHECK_EQ(after.again, before.again);
    CHECK_EQ(pair.a.lost + pair.b.lost, 0);
    pair_close(&pair);
}

/* Without heartbeats nobody is lost by silence... */
static void without_heartbeats(void) {
    pair pair;
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = 0;
    config.heartbeat_timeout_ms = 1;
    pair_open_with(&pair, 2, 2, "", MANY * NBYTES, &config);
    start_many(&pair);
    wait_many();
    CHECK_EQ(count_many(PPLX_OK), MANY);
    pump_ms(20);
    CHECK_EQ(pair.a.lost + pair.b.lost, 0);
    pair_close(&pair);
}

/* ... but a transport error is still asked about. */
static void errors_without_heartbeats(void) {
    pair pair;
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = 0;
    pair_open_with(&pair, 2, 2, "fail=0.03 seed=8", MANY * NBYTES, &config);
    start_many(&pair);
    wait_many();
    CHECK(count_many(PPLX_TRANSPORT) > 0);
    CHECK_EQ(count_many(PPLX_TRANSPORT) + count_many(PPLX_OK), MANY);
    CHECK_EQ(pair.a.lost + pair.b.lost, 0);
    pair_close(&pair);
}

static atomic_bool deaf;

/* Data fails, and immediates alone vanish: taken, and never heard of again. */
static pplx_status deaf_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                             size_t *posted, int32_t *provider_error) {
    if (!atomic_load(&deaf)) return pplx_provider_loopback.post(endpoint, requests, count, posted, provider_error);
    *provider_error = 0;
    for (*posted = 0; *posted < count; ++*posted)
        if (requests[*posted].nbytes) return PPLX_TRANSPORT;
    return PPLX_OK;
}

/* ... and if the question is never answered, the peer is lost in time, and what waits for the answer
 * ends. */
static void suspects_settle(uint32_t interval_ms) {
    pair pair;
    pplx_error reason;
    pplx_provider provider = pplx_provider_loopback;
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = interval_ms;
    config.heartbeat_timeout_ms = 300;
    provider.post = deaf_post;
    atomic_store(&deaf, false);
    memset(&pair, 0, sizeof pair);
    host_provider = &provider;
    host_open_with(&pair.a, 1, "", &config);
    host_provider = &pplx_provider_loopback;
    host_open(&pair.b, 1, ""); /* which goes on with its heartbeats */
    pair_fill(&pair, MANY * NBYTES);
    atomic_store(&deaf, true);
    start_many(&pair);
    wait_many();
    CHECK_EQ(count_many(PPLX_PEER_LOST), MANY);
    WAIT(pair.a.lost == 1);
    pplx_peer_reason(pair.ab, &reason);
    CHECK(strstr(reason.text, "did not answer"));
    pair_close(&pair);
}

static void suspects_settle_without_heartbeats(void) { suspects_settle(0); }

static atomic_bool stalled;

static size_t stalling_poll(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity) {
    while (atomic_load(&stalled)) usleep(1000);
    return pplx_provider_loopback.poll(domain, completions, capacity);
}

/* The process is stopped for longer than the timeout: nobody was silent, nobody was listening. */
static void a_stopped_process_loses_nobody(void) {
    pair pair;
    pplx_provider provider = pplx_provider_loopback;
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = 50;
    config.heartbeat_timeout_ms = 1000;
    config.again_timeout_ms = 1000;
    provider.poll = stalling_poll;
    host_provider = &provider;
    pair_open_with(&pair, 2, 1, "", 4096, &config);
    host_provider = &pplx_provider_loopback;
    for (int i = 0; i < 2; i++) {
        atomic_store(&stalled, true);
        usleep(1400000);
        atomic_store(&stalled, false);
        write_now(&pair, 0, 4096, true);
        pump_ms(20);
    }
    CHECK_EQ(pair.a.lost + pair.b.lost, 0);
    pair_close(&pair);
}

int main(void) {
    RUN(access_errors);
    RUN(one_target_fails);
    RUN(transport_errors_of_a_living_peer);
    RUN(a_shard_fails);
    RUN(transport_errors_of_a_dead_peer);
    RUN(closing_with_a_fence);
    RUN(closing_without_a_fence);
    RUN(the_peer_closes_first);
    RUN(closing_at_any_stage);
    RUN(peers_come_and_go);
    RUN(registration_failures);
    RUN(closing_a_region_again);
    RUN(lost_because_the_owner_says_so);
    RUN(lost_by_silence);
    RUN(lost_by_refusal);
    RUN(a_full_pipeline_takes_heartbeats);
    RUN(without_heartbeats);
    RUN(errors_without_heartbeats);
    RUN(suspects_settle_without_heartbeats);
    RUN(a_stopped_process_loses_nobody);
    return check_done();
}
