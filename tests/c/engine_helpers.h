/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Engines over loopback for C tests: hosts (an engine and what its owner knows), an event loop that
 * this thread runs for all of them, the handshake that a control channel would do, regions, and
 * requests that know whether they have ended. Faults are loopback options in one string,
 * "reorder=8 again=0.1". */
#ifndef PPLX_TESTS_ENGINE_HELPERS_H
#define PPLX_TESTS_ENGINE_HELPERS_H

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>

#include "check.h"
#include "pplx_async/engine.h"
#include "pplx_async/words.h"

extern const pplx_provider pplx_provider_loopback;

enum { MAX_HOSTS = 8, PATIENCE_S = 60 };

typedef struct host {
    pplx_engine *engine;
    uint32_t ndomains;
    pplx_engine_config config;
    uint64_t messages; /* received */
    uint64_t lost;     /* peers */
    uint64_t told;     /* counters through the done list */
    uint64_t words;    /* likewise */
    pplx_peer *last_lost;
    uint64_t rails;    /* links that were lost, their peers not */
    uint32_t last_rail;
    /* The other side's owner is to be told; NULL: it isn't. */
    void (*on_rail)(struct host *host, pplx_peer *peer, uint32_t link);
    /* Gives the message back sooner or later; NULL: at once. */
    void (*on_message)(struct host *host, pplx_message *message);
    void *context;
} host;

static host *hosts[MAX_HOSTS];
static int nhosts;

/* The cookie of every request of these tests. */
typedef struct ending {
    bool settled, released;
    uint64_t order; /* settled as the how manieth, over all hosts */
} ending;

static uint64_t nsettled;

/* ------------------------------------------------------------------ the event loop */

static void take_node(host *host, pplx_node *node) {
    if (node->kind == PPLX_NODE_REQUEST) {
        pplx_request *request = (pplx_request *)node;
        ending *ending = request->cookie;
        CHECK(!ending->released);
        if (!ending->settled) ending->order = ++nsettled;
        bool again = ending->settled;
        ending->settled = true;
        ending->released = pplx_request_reaped(request);
        CHECK(!again || ending->released); /* the second time it is released */
    } else if (node->kind == PPLX_NODE_COUNTER) {
        pplx_counter_reaped((pplx_counter *)node);
        host->told++;
    } else if (node->kind == PPLX_NODE_MESSAGE) {
        host->messages++;
        if (host->on_message)
            host->on_message(host, (pplx_message *)node);
        else
            pplx_message_release(host->engine, (pplx_message *)node);
    } else if (node->kind == PPLX_NODE_RAIL) {
        pplx_peer *peer = pplx_node_rail(node, &host->last_rail);
        host->rails++;
        if (host->on_rail) host->on_rail(host, peer, host->last_rail);
    } else if (node->kind == PPLX_NODE_WORD) { /* its cookie: whether it has retired */
        pplx_word *word = (pplx_word *)node;
        host->words++;
        if (pplx_word_reaped(word)) *(bool *)word->cookie = true;
    } else {
        CHECK_EQ(node->kind, PPLX_NODE_PEER);
        host->lost++;
        host->last_lost = pplx_node_peer(node);
    }
}

static bool reap_all(host *host) {
    bool any = false;
    for (pplx_node *node = pplx_reap(host->engine), *next; node; node = next) {
        next = node->next;
        take_node(host, node);
        any = true;
    }
    return any;
}

/* One wake-up: everything that has come, for every host; blocks if nothing has. */
__attribute__((unused)) static void pump_for(int timeout_ms) {
    struct pollfd fds[MAX_HOSTS];
    bool idle = true;
    for (int i = 0; i < nhosts; i++) {
        if (reap_all(hosts[i])) idle = false;
        fds[i] = (struct pollfd){.fd = pplx_engine_fd(hosts[i]->engine), .events = POLLIN};
    }
    for (int i = 0; i < nhosts && idle; i++) idle = pplx_arm(hosts[i]->engine);
    if (!idle || poll(fds, (nfds_t)nhosts, timeout_ms) <= 0) return;
    for (int i = 0; i < nhosts; i++)
        if (fds[i].revents) pplx_clear(hosts[i]->engine);
}

/* The poll has no other reason to end than an engine's ring: a lost one is not papered over. */
#define WAIT(condition)                                                   \
    do {                                                                  \
        uint64_t wait_start = check_now_ns();                             \
        while (!(condition)) {                                            \
            pump_for(PATIENCE_S * 1000);                                  \
            if ((double)(check_now_ns() - wait_start) > PATIENCE_S * 1e9) \
                check_failed(__FILE__, __LINE__, "in vain: " #condition); \
        }                                                                 \
    } while (0)

/* Also for what nothing rings for, such as a counter's value. */
#define WATCH(condition)                                                  \
    do {                                                                  \
        uint64_t wait_start = check_now_ns();                             \
        while (!(condition)) {                                            \
            pump_for(1);                                                  \
            if ((double)(check_now_ns() - wait_start) > PATIENCE_S * 1e9) \
                check_failed(__FILE__, __LINE__, "in vain: " #condition); \
        }                                                                 \
    } while (0)

__attribute__((unused)) static void pump_ms(uint64_t ms) {
    for (uint64_t end = check_now_ns() + ms * 1000000; check_now_ns() < end;) pump_for(1);
}

/* ------------------------------------------------------------------ hosts */

static const pplx_engine_config default_config = {
    .ring_entries = 256,
    .spin_us = 20, /* a core for each engine is more than a test machine has */
    .poll_interval_us = 100,
    .heartbeat_interval_ms = 100,
    .heartbeat_timeout_ms = 20000, /* sanitizers and busy machines are slow */
    .again_timeout_ms = 20000,
    .shard_nbytes = 65536,
    .message_nbytes = 256,
    .message_slots = 16,
    .cpu = -1,
};

/* Of "key=value key=value"; the text is cut up. */
static size_t split_options(char *text, pplx_option *options, size_t room) {
    size_t n = 0;
    for (char *word = strtok(text, " "); word; word = strtok(NULL, " ")) {
        char *equals = strchr(word, '=');
        CHECK(equals && n < room);
        *equals = '\0';
        options[n++] = (pplx_option){word, equals + 1};
    }
    return n;
}

/* For hosts opened from now on: a case may put its own functions in. */
static const pplx_provider *host_provider = &pplx_provider_loopback;
static const char *host_device = "loop%u"; /* its domain i */

static void host_open_with(host *host, uint32_t ndomains, const char *faults, const pplx_engine_config *config) {
    pplx_error error = {0};
    char text[256];
    pplx_option options[16];
    *host = (struct host){.ndomains = ndomains, .config = *config};
    snprintf(text, sizeof text, "%s", faults);
    size_t noptions = split_options(text, options, 16);
    CHECK_EQ(pplx_engine_open(config, &host->engine, &error), PPLX_OK);
    for (uint32_t i = 0; i < ndomains; i++) {
        char device[16];
        snprintf(device, sizeof device, host_device, i % 8);
        CHECK_EQ(pplx_engine_add_domain(host->engine, host_provider, device, options, noptions, &error), PPLX_OK);
    }
    CHECK_EQ(pplx_engine_start(host->engine, &error), PPLX_OK);
    CHECK(nhosts < MAX_HOSTS);
    hosts[nhosts++] = host;
}

__attribute__((unused)) static void host_open(host *host, uint32_t ndomains, const char *faults) {
    host_open_with(host, ndomains, faults, &default_config);
}

static void host_close(host *host) {
    reap_all(host);
    for (int i = 0; i < nhosts; i++)
        if (hosts[i] == host) hosts[i] = hosts[--nhosts];
    pplx_engine_close(host->engine);
    host->engine = NULL;
}

/* A call, waited for. */
static pplx_status call(host *host, enum pplx_call opcode, void *subject, pplx_error *error) {
    ending end = {0};
    pplx_request request = {.kind = PPLX_REQUEST_CALL, .opcode = opcode, .subject = subject, .cookie = &end};
    pplx_submit(host->engine, &request);
    WAIT(end.released);
    if (error) *error = request.error;
    return request.error.status;
}

/* ------------------------------------------------------------------ peers */

static void config_from(host *here, const pplx_peer *peer, pplx_peer_config *config) {
    *config = (pplx_peer_config){
        .domains = here->ndomains,
        .heartbeat_counter = pplx_peer_heartbeat_counter(peer),
        .credit_counter = pplx_peer_credit_counter(peer),
        .credits = here->config.message_slots,
        .token = pplx_peer_token(peer),
        .message_nbytes = here->config.message_nbytes,
    };
    for (size_t i = 0; i < here->ndomains; i++) pplx_engine_landing(here->engine, i, &config->landing[i]);
    for (size_t i = 0; i < pplx_peer_links(peer); i++) pplx_peer_address(peer, i, &config->links[i]);
}

static const uint32_t *link_weights; /* of peers made from now on; NULL: all the same */

/* Link i joins domain i mod ours with domain i mod theirs. */
static pplx_peer *peer_new(pplx_engine *engine, void *cookie, uint32_t ours, uint32_t theirs) {
    pplx_route routes[PPLX_MAX_LINKS];
    const uint32_t n = ours > theirs ? ours : theirs;
    for (uint32_t i = 0; i < n; i++) routes[i] = (pplx_route){i % ours, i % theirs, link_weights ? link_weights[i] : 0};
    return pplx_peer_new(engine, cookie, theirs, routes, n);
}

/* Up to the point where only the two PEER_CONNECT are missing. */
static void introduce(host *a, host *b, pplx_peer **ab, pplx_peer **ba) {
    pplx_peer_config config;
    *ab = peer_new(a->engine, a, a->ndomains, b->ndomains);
    *ba = peer_new(b->engine, b, b->ndomains, a->ndomains);
    CHECK(*ab && *ba);
    CHECK_EQ(call(a, PPLX_CALL_PEER_OPEN, *ab, NULL), PPLX_OK);
    CHECK_EQ(call(b, PPLX_CALL_PEER_OPEN, *ba, NULL), PPLX_OK);
    config_from(b, *ba, &config);
    pplx_peer_configure(*ab, &config);
    config_from(a, *ab, &config);
    pplx_peer_configure(*ba, &config);
}

__attribute__((unused)) static void join(host *a, host *b, pplx_peer **ab, pplx_peer **ba) {
    introduce(a, b, ab, ba);
    ending ends[2] = {{0}};
    pplx_request there = {
        .kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_PEER_CONNECT, .subject = *ab, .cookie = &ends[0]};
    pplx_request back = there;
    back.subject = *ba;
    back.cookie = &ends[1];
    pplx_submit(a->engine, &there);
    pplx_submit(b->engine, &back);
    WAIT(ends[0].released && ends[1].released);
    CHECK_EQ(there.error.status, PPLX_OK);
    CHECK_EQ(back.error.status, PPLX_OK);
}

static void part(host *here, pplx_peer *peer) {
    CHECK_EQ(call(here, PPLX_CALL_PEER_CLOSE, peer, NULL), PPLX_OK);
    pplx_peer_free(peer);
}

/* ------------------------------------------------------------------ memory */

typedef struct area {
    host *host;
    uint8_t *bytes;
    size_t nbytes;
    pplx_mr mr;
} area;

static void area_open(area *area, host *host, size_t nbytes, uint32_t access) {
    *area = (struct area){.host = host, .nbytes = nbytes};
    area->bytes = calloc(1, nbytes);
    CHECK(area->bytes);
    area->mr.memory = (pplx_memory){
        .kind = PPLX_MEMORY_HOST, .device = -1, .address = (uintptr_t)area->bytes, .nbytes = nbytes, .fd = -1};
    area->mr.access = access;
    CHECK_EQ(call(host, PPLX_CALL_MR_OPEN, &area->mr, NULL), PPLX_OK);
}

static void area_close(area *area) {
    CHECK_EQ(call(area->host, PPLX_CALL_MR_CLOSE, &area->mr, NULL), PPLX_OK);
    free(area->bytes);
}

__attribute__((unused)) static void area_fill(area *area, uint64_t seed) {
    for (size_t i = 0; i < area->nbytes; i++) area->bytes[i] = (uint8_t)(check_random(&seed) >> 32);
}

/* What its descriptor would tell the other side, whose peer for our host is `peer`. */
static pplx_remote remote_of(const area *area, pplx_peer *peer) {
    pplx_remote remote = {.peer = peer, .nbytes = area->nbytes, .access = area->mr.access, .domains = area->mr.domains};
    memcpy(remote.keys, area->mr.keys, sizeof remote.keys);
    return remote;
}

/* ------------------------------------------------------------------ two hosts */

/* What most cases need: a writes into b. */
typedef struct pair {
    host a, b;
    pplx_peer *ab, *ba;
    area from, to; /* at a, at b */
    pplx_remote remote;
    pplx_counter counter; /* at b */
} pair;

static void pair_fill(pair *pair, size_t nbytes) {
    join(&pair->a, &pair->b, &pair->ab, &pair->ba);
    area_open(&pair->from, &pair->a, nbytes, PPLX_ACCESS_LOCAL);
    area_open(&pair->to, &pair->b, nbytes, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE);
    area_fill(&pair->from, nbytes);
    pair->remote = remote_of(&pair->to, pair->ab);
    CHECK_EQ(pplx_counter_open(pair->b.engine, &pair->counter), PPLX_OK);
}

__attribute__((unused)) static void pair_open_with(pair *pair, uint32_t domains_a, uint32_t domains_b,
                                                   const char *faults, size_t nbytes,
                                                   const pplx_engine_config *config) {
    memset(pair, 0, sizeof *pair);
    host_open_with(&pair->a, domains_a, faults, config);
    host_open_with(&pair->b, domains_b, faults, config);
    pair_fill(pair, nbytes);
}

__attribute__((unused)) static void pair_open(pair *pair, uint32_t domains_a, uint32_t domains_b, const char *faults,
                                              size_t nbytes) {
    pair_open_with(pair, domains_a, domains_b, faults, nbytes, &default_config);
}

__attribute__((unused)) static void pair_close(pair *pair) {
    if (pair->ab) part(&pair->a, pair->ab);
    if (pair->ba) part(&pair->b, pair->ba);
    CHECK_EQ(call(&pair->b, PPLX_CALL_COUNTER_CLOSE, &pair->counter, NULL), PPLX_OK);
    area_close(&pair->from);
    area_close(&pair->to);
    host_close(&pair->a);
    host_close(&pair->b);
}

/* The bytes of a range are the same on both sides. */
__attribute__((unused)) static bool pair_equal(const pair *pair, size_t offset, size_t nbytes) {
    return memcmp(pair->from.bytes + offset, pair->to.bytes + offset, nbytes) == 0;
}

/* ------------------------------------------------------------------ transfers */

/* A request of one target and one segment, or more of them of the caller's. */
typedef struct transfer {
    pplx_request request;
    pplx_target target;
    pplx_segment segment;
    ending end;
} transfer;

static void transfer_submit(host *host, transfer *transfer, uint32_t opcode) {
    transfer->request.kind = PPLX_REQUEST_TRANSFER;
    transfer->request.opcode = opcode;
    transfer->request.cookie = &transfer->end;
    if (!transfer->request.targets) {
        transfer->request.targets = &transfer->target;
        transfer->request.ntargets = 1;
    }
    pplx_submit(host->engine, &transfer->request);
}

/* From and to the same offset. */
__attribute__((unused)) static void start_write(pair *pair, transfer *t, uint64_t offset, uint64_t nbytes,
                                                bool counted) {
    memset(t, 0, sizeof *t);
    t->segment = (pplx_segment){offset, offset, nbytes, 1};
    t->target = (pplx_target){.local = &pair->from.mr,
                              .remote = &pair->remote,
                              .peer = pair->ab,
                              .segments = &t->segment,
                              .nsegments = 1,
                              .counter = counted ? pair->counter.id : PPLX_NO_COUNTER};
    transfer_submit(&pair->a, t, PPLX_WRITE);
}

__attribute__((unused)) static void write_now(pair *pair, uint64_t offset, uint64_t nbytes, bool counted) {
    transfer t;
    start_write(pair, &t, offset, nbytes, counted);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
}

/* A write that has completed at its source is not counted yet: the receiver's proxy adds when it
 * polls. So this waits; more than it waits for may not come. */
#define CHECK_COUNT(pair, eighths)                                 \
    do {                                                           \
        WATCH(pplx_counter_value(&(pair)->counter) >= (eighths));  \
        CHECK_EQ(pplx_counter_value(&(pair)->counter), (eighths)); \
    } while (0)

#endif
