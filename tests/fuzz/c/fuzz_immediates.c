/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Immediates from hostile peers, against a model of what they count.
 *
 * The engine has no thread here: this one is owner and proxy in turn. */
#include "fuzz.h"
#include "internal.h"

extern const pplx_provider pplx_provider_loopback;

enum { USERS = 4, LINKS = 3, CREDITS = 5 };

static pplx_sent sent[2 * CREDITS];

static pplx_engine *engine;
static pplx_peer *peer;

/* What a counter of ours must show. */
typedef struct model {
    pplx_counter counter;
    uint64_t value;
    uint64_t notify_at;
    bool queued;
} model;

void fuzz_open(void) {
    static const pplx_route routes[LINKS] = {{0, 0, 0}, {0, 1, 0}, {0, 2, 0}};
    const pplx_engine_config config = {.ring_entries = 16,
                                       .heartbeat_interval_ms = 100,
                                       .heartbeat_timeout_ms = 1000,
                                       .again_timeout_ms = 1000,
                                       .shard_nbytes = 65536,
                                       .message_nbytes = 256,
                                       .message_slots = 2 * CREDITS,
                                       .cpu = -1};
    pplx_error error;
    HOLDS(pplx_engine_open(&config, &engine, &error) == PPLX_OK);
    HOLDS(pplx_engine_add_domain(engine, &pplx_provider_loopback, "loop0", NULL, 0, &error) == PPLX_OK);
    peer = pplx_peer_new(engine, NULL, LINKS, routes, LINKS);
    HOLDS(peer);
    peer->config.credits = CREDITS;
}

/* decode(encode(x)) == x, and the other way round, for every word. */
static void check_coding(uint32_t imm) {
    const uint32_t counter = pplx_imm_counter(imm), eighths = pplx_imm_eighths(imm);
    HOLDS(counter < PPLX_MAX_COUNTERS);
    HOLDS(eighths == 1 || eighths == 2 || eighths == 4 || (eighths % PPLX_EIGHTHS == 0 && eighths > 0));
    HOLDS(eighths <= PPLX_MAX_RUN * PPLX_EIGHTHS);
    HOLDS(pplx_imm_encode(counter, eighths) == imm);
}

/* At the least one more than can be had must not wrap round; UINT64_MAX as a threshold means never. */
static void model_hit(model *m, uint32_t eighths) {
    const uint64_t most = UINT64_MAX - 1;
    m->value = m->value > most - eighths ? most : m->value + eighths;
    if (m->value >= m->notify_at) m->queued = true;
}

static void reap(model *models) {
    for (pplx_node *node = pplx_reap(engine); node; node = node->next) {
        model *m = (model *)(void *)node; /* its counter is first, and the counter's node is first in that */
        HOLDS(node->kind == PPLX_NODE_COUNTER && m >= models && m < models + USERS);
        HOLDS(m->queued);
        m->queued = false;
        pplx_counter_reaped(&m->counter);
    }
    for (int i = 0; i < USERS; i++) HOLDS(!models[i].queued);
}

static void hit(model *models, uint32_t imm) {
    const uint64_t strays = engine->stats.stray_imms;
    bool known = pplx_imm_counter(imm) == peer->heartbeat.id || pplx_imm_counter(imm) == peer->credit.id;
    for (int i = 0; i < USERS; i++) {
        if (models[i].counter.id != pplx_imm_counter(imm)) continue;
        model_hit(&models[i], pplx_imm_eighths(imm));
        known = true;
    }
    const pplx_completion arrived = {.kind = PPLX_COMPLETION_IMM, .imm = imm}; /* of nobody knows whom */
    pplx_counter_hit(engine, &arrived);
    HOLDS(engine->stats.stray_imms - strays == !known);
    HOLDS(peer->acked <= peer->next_sequence && peer->heard_links < 1u << LINKS);
}

void fuzz_one(const uint8_t *data, size_t nbytes) {
    input in = {data, nbytes};
    model models[USERS] = {0};
    peer->acked = peer->heard_links = 0;
    peer->next_sequence = CREDITS;
    peer->sent = sent; /* with what is still flying: nobody waits for its end here */
    for (int i = 0; i < CREDITS; i++) sent[i].state = PPLX_SENT_FLYING;
    for (int i = 0; i < USERS; i++) {
        model *m = &models[i];
        HOLDS(pplx_counter_open(engine, &m->counter) == PPLX_OK);
        m->notify_at = UINT64_MAX;
        m->counter.value = m->value = take_u8(&in) & 1 ? UINT64_MAX - 2 - take_u32(&in) : 0;
    }
    while (in.left) {
        const uint8_t what = take_u8(&in);
        model *m = &models[what % USERS];
        switch (what >> 5) {
        case 0: { /* any word */
            const uint32_t imm = take_u32(&in);
            check_coding(imm);
            hit(models, imm);
            break;
        }
        case 1:
        case 2:
        case 3: /* one of ours, any weight */
            hit(models, m->counter.id << 12 | (take_u32(&in) & PPLX_WEIGHT_MASK));
            break;
        case 4: hit(models, peer->heartbeat.id << 12 | (take_u32(&in) & PPLX_WEIGHT_MASK)); break;
        case 5: hit(models, peer->credit.id << 12 | (take_u32(&in) & PPLX_WEIGHT_MASK)); break;
        case 6:
            m->notify_at = take_number(&in);
            HOLDS(pplx_counter_notify(&m->counter, m->notify_at) == (m->value >= m->notify_at));
            break;
        default: reap(models);
        }
        for (int i = 0; i < USERS; i++) HOLDS(pplx_counter_value(&models[i].counter) == models[i].value);
    }
    reap(models);
    for (int i = 0; i < USERS; i++) {
        pplx_counter_forget(engine, &models[i].counter);
        hit((model[USERS]){{.counter.id = UINT32_MAX},
                           {.counter.id = UINT32_MAX},
                           {.counter.id = UINT32_MAX},
                           {.counter.id = UINT32_MAX}},
            models[i].counter.id << 12 | 1); /* it counts no more */
        pplx_counter_recycle(engine, models[i].counter.id);
    }
}
