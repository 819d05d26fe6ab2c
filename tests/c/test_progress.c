/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The owner makes progress itself: what is submitted in any way ends, while proxy and owner take the
 * token from each other; nobody's wake-up is lost; and when the owner stays away, the proxy turns. The
 * owner blocks in poll() on what it was told to watch and on nothing else. */
#include <sched.h>

#include "engine_helpers.h"

enum { NBYTES = 1 << 20 };

static bool listening[MAX_HOSTS];

static void listen_to(int i, bool listens) {
    listening[i] = listens;
    pplx_listens(hosts[i]->engine, listens);
}

static void drive(int i) {
    const uint32_t flags = pplx_drive(hosts[i]->engine);
    if (!(flags & PPLX_DROVE)) listen_to(i, false);
    if (flags & PPLX_DONE) reap_all(hosts[i]);
}

/* As a loop that watches the done fds, and the wait fds while it is told to. */
static void turn_loop(int timeout_ms) {
    struct pollfd fds[2 * MAX_HOSTS];
    bool idle = true;
    for (int i = 0; i < nhosts; i++) {
        if (reap_all(hosts[i])) idle = false;
        fds[2 * i] = (struct pollfd){.fd = pplx_engine_fd(hosts[i]->engine), .events = POLLIN};
        fds[2 * i + 1] = (struct pollfd){.fd = listening[i] ? pplx_engine_wait_fd(hosts[i]->engine, 0) : -1,
                                         .events = POLLIN};
    }
    for (int i = 0; i < nhosts && idle; i++) idle = pplx_arm(hosts[i]->engine);
    if (!idle || poll(fds, (nfds_t)nhosts * 2, timeout_ms) <= 0) return;
    for (int i = 0; i < nhosts; i++) {
        if (fds[2 * i].revents) {
            pplx_clear(hosts[i]->engine);
            listen_to(i, true);
        }
        if (fds[2 * i + 1].revents) drive(i);
    }
}

#define AWAIT(condition)                                                   \
    do {                                                                   \
        const uint64_t await_start = check_now_ns();                       \
        while (!(condition)) {                                             \
            turn_loop(PATIENCE_S * 1000);                                  \
            if ((double)(check_now_ns() - await_start) > PATIENCE_S * 1e9) \
                check_failed(__FILE__, __LINE__, "in vain: " #condition);  \
        }                                                                  \
    } while (0)

static void open_driving(pair *pair, const char *faults) {
    pplx_engine_config config = default_config;
    config.owner_drives = 1;
    pair_open_with(pair, 1, 1, faults, NBYTES, &config);
    CHECK(pplx_engine_wait_fd(pair->a.engine, 0) >= 0);
    for (int i = 0; i < nhosts; i++) listen_to(i, true);
}

static void prepare(pair *pair, transfer *t, uint64_t nbytes) {
    memset(t, 0, sizeof *t);
    t->segment = (pplx_segment){0, 0, nbytes, 1};
    t->target = (pplx_target){.local = &pair->from.mr,
                              .remote = &pair->remote,
                              .peer = pair->ab,
                              .segments = &t->segment,
                              .nsegments = 1,
                              .counter = pair->counter.id};
    t->request = (pplx_request){
        .kind = PPLX_REQUEST_TRANSFER, .opcode = PPLX_WRITE, .cookie = &t->end, .targets = &t->target, .ntargets = 1};
}

static void submit_somehow(pair *pair, transfer *t, uint64_t how) {
    pplx_engine *engine = pair->a.engine;
    prepare(pair, t, how % 4 == 2 ? 100000 : 64);
    uint32_t flags = 0;
    switch (how % 4) {
    case 0: pplx_submit(engine, &t->request); break;
    case 1: flags = pplx_submit_here(engine, &t->request); break;
    case 2: pplx_submit_there(engine, &t->request); break;
    default: flags = pplx_submit_spinning(engine, &t->request); break;
    }
    if (flags & PPLX_DONE) reap_all(&pair->a);
}

/* Every way of submitting and of waiting, in any order; each wait is for the end of all. */
static void every_way(const char *faults, uint64_t rounds) {
    enum { WINDOW = 16 };
    pair pair;
    transfer transfers[WINDOW];
    uint64_t seed = 7, sent = 0;
    open_driving(&pair, faults);
    for (uint64_t round = 0; round < rounds; round++) {
        const uint64_t n = 1 + check_random(&seed) % WINDOW;
        for (uint64_t i = 0; i < n; i++) submit_somehow(&pair, &transfers[i], check_random(&seed));
        sent += n;
        for (uint64_t spins = check_random(&seed) % 4; spins > 0; spins--) {
            host *spinner = check_random(&seed) % 2 ? &pair.a : &pair.b;
            if (pplx_spin(spinner->engine, (uint32_t)(check_random(&seed) % 30)) & PPLX_DONE) reap_all(spinner);
        }
        /* A lease that is not ended ends by itself: both must do. */
        if (check_random(&seed) % 2) {
            pplx_spin_end(pair.a.engine);
            pplx_spin_end(pair.b.engine);
        }
        const bool told = pplx_counter_notify(&pair.counter, sent * PPLX_EIGHTHS);
        for (uint64_t i = 0; i < n; i++) AWAIT(transfers[i].end.released);
        for (uint64_t i = 0; i < n; i++) CHECK_EQ(transfers[i].request.error.status, PPLX_OK);
        /* Not until b is told: that may be of the round before, whose count was seen before its node was taken. */
        if (!told) AWAIT(pplx_counter_value(&pair.counter) >= sent * PPLX_EIGHTHS);
    }
    CHECK_EQ(pplx_counter_value(&pair.counter), sent * PPLX_EIGHTHS);
    pair_close(&pair);
}

static void in_order(void) { every_way("", 3000); }
static void in_disorder(void) { every_way("reorder=16 delay_us=0:200 again=0.3", 1000); }

/* A small write on an idle engine needs no proxy, and what it does is done when the call is back. */
static void posted_where_it_is_submitted(void) {
    pair pair;
    transfer t;
    pplx_engine_stats before, after;
    open_driving(&pair, "");
    const uint64_t start = check_now_ns();
    for (bool here = false; !here; check_patience(start, PATIENCE_S)) { /* the proxy may be at a heartbeat just then */
        pump_ms(20); /* the proxies sleep */
        reap_all(&pair.a);
        if (!pplx_arm(pair.a.engine)) continue;
        pplx_engine_read_stats(pair.a.engine, &before);
        prepare(&pair, &t, 64);
        const uint32_t flags = pplx_submit_here(pair.a.engine, &t.request);
        pplx_engine_read_stats(pair.a.engine, &after);
        here = (flags & PPLX_DROVE) && after.turns == before.turns + 1 && after.requests == before.requests + 1;
        AWAIT(t.end.released);
    }
    pair_close(&pair);
}

/* The owner takes a lease, and then computes: what comes meanwhile is the proxy's to do. */
static void owner_that_stays_away(void) {
    pair pair;
    transfer t;
    open_driving(&pair, "");
    for (int i = 0; i < 50; i++) {
        pplx_spin(pair.b.engine, 0); /* leaves b unarmed, under its lease */
        const uint64_t had = pplx_counter_value(&pair.counter);
        prepare(&pair, &t, 64);
        /* By turns a has a lease too, and nobody looks at its queue but its proxy, when that has run out. */
        uint32_t flags = i % 2 ? pplx_submit_spinning(pair.a.engine, &t.request)
                               : pplx_submit_here(pair.a.engine, &t.request);
        if (flags & PPLX_DONE) reap_all(&pair.a);
        const uint64_t start = check_now_ns();
        while (pplx_counter_value(&pair.counter) == had) check_patience(start, PATIENCE_S); /* no call of b's */
        AWAIT(t.end.released);
    }
    pair_close(&pair);
}

/* What isn't for this thread, a call for example, is taken at once though we have the lease. */
static void call_under_a_lease(void) {
    pair pair;
    open_driving(&pair, "");
    for (int i = 0; i < 20; i++) {
        area extra;
        pplx_spin(pair.a.engine, 0);
        area_open(&extra, &pair.a, 4096, PPLX_ACCESS_LOCAL);
        area_close(&extra);
    }
    pair_close(&pair);
}

static uint64_t spin_ns(const pplx_engine *engine) {
    pplx_engine_stats stats;
    pplx_engine_read_stats(engine, &stats);
    return stats.spin_ns;
}

/* Requests that come too far apart are not spun for any more; those that come close are, again. A busy
 * machine makes pauses longer, and then it takes more of them. */
static void spinning_that_pays(void) {
    enum { MOST_MS = 20 };
    const uint64_t most = MOST_MS * UINT64_C(1000000), start = check_now_ns();
    pair pair;
    transfer t;
    pplx_engine_config config = default_config;
    config.spin_us = MOST_MS * 1000;
    config.heartbeat_interval_ms = 1000; /* else they are what comes, in pauses of their own */
    pair_open_with(&pair, 1, 1, "", NBYTES, &config);
    pplx_engine *engine = pair.a.engine;
    CHECK(spin_ns(engine) <= most); /* it adapts from the first moment */
    for (bool gave_up = false; !gave_up || spin_ns(engine) < 2 * most;) {
        CHECK(spin_ns(engine) <= 2 * most);
        check_patience(start, PATIENCE_S);
        pump_ms(gave_up ? spin_ns(engine) / 1000000 + 2 : 3 * MOST_MS); /* it has just fallen asleep, or long ago */
        prepare(&pair, &t, 64);
        pplx_submit_there(engine, &t.request);
        AWAIT(t.end.released);
        if (spin_ns(engine) <= most / 16) gave_up = true;
    }
    pair_close(&pair);
}

/* ------------------------------------------------------------------ a proxy that turns all the time */

static uint64_t turns_of(const pplx_engine *engine) {
    pplx_engine_stats stats;
    pplx_engine_read_stats(engine, &stats);
    return stats.turns;
}

/* Without a pause: whoever turns on another core is at it right now. */
static void await_turns(const pplx_engine *engine, uint64_t n) {
    const uint64_t before = turns_of(engine), start = check_now_ns();
    while (turns_of(engine) < before + n) check_patience(start, PATIENCE_S);
}

/* The last ones of `cpus`, at most `room`; how many. */
static int list_cpus(const cpu_set_t *cpus, int *list, int room) {
    int n = 0;
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0 && n < room; cpu--)
        if (CPU_ISSET((size_t)cpu, cpus)) list[n++] = cpu;
    return n;
}

static void stay_on(int cpu) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET((size_t)cpu, &cpus);
    CHECK_EQ(sched_setaffinity(0, sizeof cpus, &cpus), 0);
}

/* The proxy of a stays on that core and spins so long after a request; that of b does neither. */
static void open_turning(pair *pair, int cpu, uint32_t spin_us) {
    pplx_engine_config config = default_config;
    memset(pair, 0, sizeof *pair);
    host_open_with(&pair->b, 1, "", &config);
    config.cpu = cpu;
    config.spin_us = spin_us;
    host_open_with(&pair->a, 1, "", &config);
    pair_fill(pair, NBYTES);
}

/* As often as not it is in the middle of a turn when a request comes. Others on the machine may keep it there, or the
 * owner from its core; not all the time. */
static void await_token(pair *pair) {
    enum { REQUESTS = 32, MOST = REQUESTS * 3 / 4 };
    const uint64_t start = check_now_ns();
    for (int here = 0; here < MOST; check_patience(start, PATIENCE_S)) {
        here = 0;
        for (int i = 0; i < REQUESTS; i++) {
            transfer t;
            prepare(pair, &t, 64);
            t.target.counter = PPLX_NO_COUNTER;
            await_turns(pair->a.engine, 2);
            here += (pplx_submit_here(pair->a.engine, &t.request) & PPLX_DROVE) != 0;
            AWAIT(t.end.released);
        }
    }
}

static void proxy_that_turns_gives_the_owner_the_token(void) {
    cpu_set_t all;
    int cpus[2];
    pair pair;
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    if (list_cpus(&all, cpus, 2) < 2) {
        printf("# skipped: one core, so nobody turns while the owner waits\n");
        return;
    }
    open_turning(&pair, cpus[0], 1000000);
    stay_on(cpus[1]);
    await_token(&pair);
    CHECK_EQ(sched_setaffinity(0, sizeof all, &all), 0);
    pair_close(&pair);
}

static _Alignas(8) pplx_cell watched;

static void open_watch(const pair *pair, pplx_word *watch, bool *retired) {
    watched = (pplx_cell){0};
    *watch = (pplx_word){.kind = PPLX_WORD_WATCH, .cookie = retired, .cell = &watched, .notify_at = UINT64_MAX};
    pplx_word_arm(pair->a.engine, watch);
}

static void write_watched(void) { __atomic_fetch_add(&watched.watched, 1, __ATOMIC_RELEASE); }

/* For words it turns without end. Between two turns it lets an owner run that is on its core: then that can turn. */
static void proxy_that_yields_its_core_yields_the_token(void) {
    cpu_set_t all;
    int cpu;
    pair pair;
    pplx_word watch;
    bool retired = false;
    CHECK_EQ(sched_getaffinity(0, sizeof all, &all), 0);
    CHECK_EQ(list_cpus(&all, &cpu, 1), 1);
    open_turning(&pair, cpu, 0);
    stay_on(cpu);
    open_watch(&pair, &watch, &retired);
    await_token(&pair);
    pplx_word_close(pair.a.engine, &watch);
    AWAIT(retired);
    CHECK_EQ(sched_setaffinity(0, sizeof all, &all), 0);
    pair_close(&pair);
}

static void *write_while_it_spins(void *engine) {
    await_turns(engine, 200);
    write_watched();
    return NULL;
}

/* Its lease says that it turns for minutes yet, but it computes: what a stream writes meanwhile the proxy sees. */
static void word_is_seen_under_a_lease(void) {
    enum { LONG_US = 4 * PATIENCE_S * 1000000 };
    pair pair;
    pplx_word watch;
    bool retired = false;
    pair_open(&pair, 1, 1, "", NBYTES);
    open_watch(&pair, &watch, &retired);
    for (int i = 0; i < 20; i++) {
        pthread_t stream;
        CHECK_EQ(pthread_create(&stream, NULL, write_while_it_spins, pair.a.engine), 0);
        CHECK(pplx_spin(pair.a.engine, LONG_US) & PPLX_DONE);
        CHECK_EQ(pthread_join(stream, NULL), 0);
        reap_all(&pair.a);
        const uint64_t told = pair.a.words, start = check_now_ns();
        write_watched();
        while (pair.a.words == told) { /* no call that turns */
            check_patience(start, PATIENCE_S);
            sched_yield();
            reap_all(&pair.a);
        }
        pplx_spin_end(pair.a.engine);
    }
    pplx_word_close(pair.a.engine, &watch);
    AWAIT(retired);
    pair_close(&pair);
}

int main(void) {
    RUN(in_order);
    RUN(in_disorder);
    RUN(posted_where_it_is_submitted);
    RUN(owner_that_stays_away);
    RUN(call_under_a_lease);
    RUN(spinning_that_pays);
    RUN(proxy_that_turns_gives_the_owner_the_token);
    RUN(proxy_that_yields_its_core_yields_the_token);
    RUN(word_is_seen_under_a_lease);
    return check_done();
}
