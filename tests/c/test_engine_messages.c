/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Two-sided messages over loopback: contents, credits, slow receivers, and messages that outlive
 * the peer. */
#include "engine_helpers.h"

typedef struct note {
    pplx_request request;
    ending end;
    uint8_t payload[300];
} note;

/* Number, then bytes that follow from it. */
static void start_send(host *host, pplx_peer *peer, note *note, uint32_t number, uint32_t nbytes) {
    uint64_t seed = number;
    memset(note, 0, sizeof *note);
    memcpy(note->payload, &number, sizeof number);
    for (uint32_t i = sizeof number; i < nbytes; i++) note->payload[i] = (uint8_t)check_random(&seed);
    note->request = (pplx_request){
        .kind = PPLX_REQUEST_SEND, .subject = peer, .payload = note->payload, .nbytes = nbytes, .cookie = &note->end};
    pplx_submit(host->engine, &note->request);
}

/* What a host has received; messages are held until more than `hold` are. */
typedef struct inbox {
    uint8_t *seen; /* by number */
    uint32_t room;
    uint32_t hold, nheld;
    pplx_message *held[64];
} inbox;

static void read_message(host *host, pplx_message *message) {
    inbox *inbox = host->context;
    uint32_t number;
    CHECK(message->nbytes >= sizeof number);
    memcpy(&number, message->data, sizeof number);
    CHECK(number < inbox->room);
    CHECK_EQ(inbox->seen[number], 0);
    inbox->seen[number] = 1;
    uint64_t seed = number;
    for (uint64_t i = sizeof number; i < message->nbytes; i++) CHECK_EQ(message->data[i], (uint8_t)check_random(&seed));
}

static void release_held(host *host) {
    inbox *inbox = host->context;
    for (uint32_t i = 0; i < inbox->nheld; i++) pplx_message_release(host->engine, inbox->held[i]);
    inbox->nheld = 0;
}

static void hold_message(host *host, pplx_message *message) {
    inbox *inbox = host->context;
    read_message(host, message);
    CHECK(inbox->nheld < 64);
    inbox->held[inbox->nheld++] = message;
    if (inbox->nheld > inbox->hold) release_held(host);
}

static void inbox_open(inbox *inbox, host *host, uint32_t room, uint32_t hold) {
    *inbox = (struct inbox){.seen = calloc(room, 1), .room = room, .hold = hold};
    host->context = inbox;
    host->on_message = hold_message;
}

static void exchange(const char *faults, const pplx_engine_config *config, uint32_t domains, uint32_t count,
                     uint32_t hold) {
    pair pair;
    inbox at_a, at_b;
    note *there = calloc(count, sizeof *there), *back = calloc(count, sizeof *back);
    pair_open_with(&pair, domains, 1, faults, 4096, config);
    inbox_open(&at_a, &pair.a, count, 0);
    inbox_open(&at_b, &pair.b, count, hold);
    for (uint32_t i = 0; i < count; i++) {
        start_send(&pair.a, pair.ab, &there[i], i, 4 + i % 253);
        start_send(&pair.b, pair.ba, &back[i], i, 256 - i % 253);
    }
    for (uint32_t i = 0; i < count; i++) {
        WAIT(there[i].end.released && back[i].end.released);
        CHECK_EQ(there[i].request.error.status, PPLX_OK);
        CHECK_EQ(back[i].request.error.status, PPLX_OK);
    }
    WAIT(pair.a.messages == count && pair.b.messages == count);
    release_held(&pair.b);
    pair_close(&pair);
    free(there);
    free(back);
    free(at_a.seen);
    free(at_b.seen);
}

static void ten_thousand_both_ways(void) { exchange("", &default_config, 1, 10000, 0); }

static void through_faults(void) {
    exchange("reorder=8 again=0.2", &default_config, 2, 2000, 3);
    exchange("delay_us=0:200", &default_config, 1, 500, 0);
}

static void one_slot(void) {
    pplx_engine_config config = default_config;
    config.message_slots = 1;
    exchange("", &config, 1, 1000, 0);
}

/* More receives than the fabric takes: what waits for a place holds up nothing else. */
static void more_slots_than_the_fabric_takes(void) {
    pplx_engine_config config = default_config;
    config.message_slots = 64;
    exchange("max_inflight=8", &config, 1, 1000, 7);
}

static void slow_receiver_holds_the_sender_back(void) {
    enum { MESSAGES = 100 };
    pair pair;
    inbox inbox;
    note *notes = calloc(MESSAGES, sizeof *notes);
    pair_open(&pair, 1, 1, "", 4096);
    inbox_open(&inbox, &pair.b, MESSAGES, 64);
    for (uint32_t i = 0; i < MESSAGES; i++) start_send(&pair.a, pair.ab, &notes[i], i, 100);
    WAIT(inbox.nheld == 16);
    pump_ms(20);
    CHECK_EQ(inbox.nheld, 16); /* message_slots, and not one more */
    for (int i = 0; i < 16; i++) CHECK(notes[i].end.released);
    for (int i = 16; i < MESSAGES; i++) CHECK(!notes[i].end.settled);
    write_now(&pair, 0, 4096, true); /* writes go past them */
    while (pair.b.messages < MESSAGES) {
        release_held(&pair.b);
        WAIT(inbox.nheld > 0);
    }
    release_held(&pair.b);
    for (int i = 0; i < MESSAGES; i++) WAIT(notes[i].end.released && notes[i].request.error.status == PPLX_OK);
    pair_close(&pair);
    free(inbox.seen);
    free(notes);
}

static void sizes(void) {
    pair pair;
    note empty, largest, larger;
    pair_open(&pair, 1, 1, "", 4096);
    start_send(&pair.a, pair.ab, &empty, 0, 0);
    start_send(&pair.a, pair.ab, &largest, 0, 256);
    start_send(&pair.a, pair.ab, &larger, 0, 257);
    WAIT(empty.end.released && largest.end.released && larger.end.released);
    CHECK_EQ(empty.request.error.status, PPLX_OK);
    CHECK_EQ(largest.request.error.status, PPLX_OK);
    CHECK_EQ(larger.request.error.status, PPLX_TOO_LARGE);
    WAIT(pair.b.messages == 2);
    pair_close(&pair);
}

/* The domain takes less than a message: refused when posted. That costs no credit: the small ones
 * still go. */
static void failures_cost_no_credits(void) {
    pair pair;
    note notes[40];
    pair_open(&pair, 1, 1, "max_message=100", 4096);
    for (uint32_t i = 0; i < 40; i++) {
        start_send(&pair.a, pair.ab, &notes[i], i, 200);
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_TOO_LARGE);
    }
    for (uint32_t i = 0; i < 40; i++) {
        start_send(&pair.a, pair.ab, &notes[i], i, 20);
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_OK);
    }
    WAIT(pair.b.messages == 40);
    pair_close(&pair);
}

/* Some sends and some credits fail on the way; nothing stops for good. */
static void unlucky_credits_are_sent_again(void) {
    enum { MESSAGES = 2000 };
    pair pair;
    note *notes = calloc(MESSAGES, sizeof *notes);
    uint32_t arrived = 0;
    pair_open(&pair, 1, 1, "fail=0.02 seed=4", 4096);
    for (uint32_t i = 0; i < MESSAGES; i++) start_send(&pair.a, pair.ab, &notes[i], i, 50);
    for (uint32_t i = 0; i < MESSAGES; i++) {
        WAIT(notes[i].end.released);
        if (notes[i].request.error.status == PPLX_OK)
            arrived++;
        else
            CHECK_EQ(notes[i].request.error.status, PPLX_TRANSPORT); /* the peer lives */
    }
    CHECK(arrived < MESSAGES && arrived > MESSAGES / 2);
    WAIT(pair.b.messages == arrived);
    CHECK_EQ(pair.a.lost, 0);
    pair_close(&pair);
    free(notes);
}

static void cancelled_messages_are_not_sent(void) {
    enum { MESSAGES = 60 };
    pair pair;
    inbox inbox;
    note notes[MESSAGES];
    pair_open(&pair, 1, 1, "", 4096);
    inbox_open(&inbox, &pair.b, MESSAGES, 64);
    for (uint32_t i = 0; i < MESSAGES; i++) start_send(&pair.a, pair.ab, &notes[i], i, 100);
    WAIT(inbox.nheld == 16);
    for (uint32_t i = 0; i < MESSAGES; i++) { /* all of the posted ones, every second of the others */
        if (i >= 16 && i % 2) continue;
        pplx_cancel(pair.a.engine, &notes[i].request);
    }
    for (uint32_t i = 16; i < MESSAGES; i += 2) {
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_CANCELLED);
    }
    while (pair.b.messages < 16 + (MESSAGES - 16) / 2) {
        release_held(&pair.b);
        WAIT(inbox.nheld > 0);
    }
    for (uint32_t i = 0; i < MESSAGES; i++) {
        bool cancelled = i >= 16 && i % 2 == 0;
        WAIT(notes[i].end.released);
        CHECK_EQ(inbox.seen[i], !cancelled);
        CHECK_EQ(notes[i].request.error.status, cancelled ? PPLX_CANCELLED : PPLX_OK);
    }
    release_held(&pair.b);
    pair_close(&pair);
    free(inbox.seen);
}

/* Messages that the owner holds, or has not even seen, when the peer is closed and given back. */
static void messages_outlive_the_peer(void) {
    pair pair;
    inbox inbox;
    note notes[12];
    pair_open(&pair, 1, 1, "", 4096);
    inbox_open(&inbox, &pair.b, 12, 64);
    for (uint32_t i = 0; i < 12; i++) start_send(&pair.a, pair.ab, &notes[i], i, 100);
    WAIT(inbox.nheld >= 5);
    ending end = {0};
    pplx_request close = {
        .kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_PEER_CLOSE, .subject = pair.ba, .cookie = &end};
    pplx_submit(pair.b.engine, &close);
    WAIT(end.released);
    pplx_peer_free(pair.ba);
    pump_ms(5);
    uint64_t sum = 0;
    for (uint32_t i = 0; i < inbox.nheld; i++)
        for (uint64_t j = 0; j < inbox.held[i]->nbytes; j++) sum += inbox.held[i]->data[j]; /* still there */
    CHECK(sum > 0);
    release_held(&pair.b);
    pump_ms(5);
    pair.ba = NULL;
    for (uint32_t i = 0; i < 12; i++) WAIT(notes[i].end.released); /* however they ended */
    pair_close(&pair);
    free(inbox.seen);
}

/* A sender that names another peer's token, or none. */
static void strangers_are_dropped(void) {
    pair pair;
    pplx_engine_stats stats;
    note notes[40];
    memset(&pair, 0, sizeof pair);
    host_open(&pair.a, 1, "");
    host_open(&pair.b, 1, "");
    introduce(&pair.a, &pair.b, &pair.ab, &pair.ba);
    pplx_peer_config config;
    config_from(&pair.b, pair.ba, &config);
    config.token ^= UINT64_C(1) << 40;
    pplx_peer_configure(pair.ab, &config);
    ending ends[2] = {{0}};
    pplx_request there = {
        .kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_PEER_CONNECT, .subject = pair.ab, .cookie = &ends[0]};
    pplx_request back = there;
    back.subject = pair.ba;
    back.cookie = &ends[1];
    pplx_submit(pair.a.engine, &there);
    pplx_submit(pair.b.engine, &back);
    WAIT(ends[0].released && ends[1].released);
    for (uint32_t i = 0; i < 16; i++) start_send(&pair.a, pair.ab, &notes[i], i, 100);
    for (uint32_t i = 0; i < 16; i++) WAIT(notes[i].end.released);
    do {
        pump_ms(1);
        pplx_engine_read_stats(pair.b.engine, &stats);
    } while (stats.stray_messages < 16);
    CHECK_EQ(pair.b.messages, 0);
    part(&pair.a, pair.ab);
    part(&pair.b, pair.ba);
    host_close(&pair.a);
    host_close(&pair.b);
}

int main(void) {
    RUN(ten_thousand_both_ways);
    RUN(through_faults);
    RUN(one_slot);
    RUN(more_slots_than_the_fabric_takes);
    RUN(slow_receiver_holds_the_sender_back);
    RUN(sizes);
    RUN(failures_cost_no_credits);
    RUN(unlucky_credits_are_sent_again);
    RUN(cancelled_messages_are_not_sent);
    RUN(messages_outlive_the_peer);
    RUN(strangers_are_dropped);
    return check_done();
}
