/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The engine over loopback with several links: of different weight, and when one of them is lost. */
#include "engine_helpers.h"
#include "internal.h"

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
static pplx_rail_notice notices[8];
static uint32_t ntold;
static pair *rails;

/* As the control channel would. */
static void tell_other(host *host, pplx_peer *peer, uint32_t link) {
    struct host *other = host == &rails->a ? &rails->b : &rails->a;
    CHECK(ntold < 8);
    told[ntold] = (ending){0};
    tellings[ntold] = (pplx_request){.kind = PPLX_REQUEST_CALL,
                                     .opcode = PPLX_CALL_RAIL_LOST,
                                     .subject = host == &rails->a ? rails->ba : rails->ab,
                                     .payload = &notices[ntold],
                                     .cookie = &told[ntold]};
    pplx_link_notice(peer, link, &notices[ntold]);
    CHECK_EQ(notices[ntold].link, link);
    pplx_submit(other->engine, &tellings[ntold++]);
}

static uint32_t interval_ms = 20;

/* Each engine with its own faults; b's are of its domain 1 only, if they say so. */
static void rails_open(pair *pair, uint32_t domains, const char *faults_a, const char *faults_b, bool failover,
                       uint32_t timeout_ms) {
    pplx_engine_config config = default_config;
    config.heartbeat_interval_ms = interval_ms;
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

static uint32_t released(uint32_t count) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < count; i++) n += many[i].end.released;
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
    rails_open(&pair, 3, "", "device=1 drop_after=30", false, 1500);
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

/* One of the links is overdue first, by a moment: that is no word about the link. */
static void a_peer_that_is_silent_on_every_link_is_lost_with_all_of_them(void) {
    pair pair;
    rails_open(&pair, 2, "device=0 drop_after=40", "device=1 drop_after=30", false, 4000); /* 0.2 s later */
    WAIT(pair.a.lost && pair.b.lost);
    CHECK_EQ(pair.a.rails + pair.b.rails, 0);
    rails_close(&pair);
}

static void what_was_in_flight_fails_typed(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", false, 1500);
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
    rails_open(&pair, 3, "device=1 drop_after=60", "", true, 1500);
    run_many(&pair, PPLX_WRITE, false);
    check_lost_rail(&pair, 1);
    CHECK_EQ(ended(PPLX_OK), MANY);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    rails_close(&pair);
}

static void reads_are_sent_again(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 1500);
    area_fill(&pair.to, 12);
    run_many(&pair, PPLX_READ, false);
    check_lost_rail(&pair, 1);
    CHECK_EQ(ended(PPLX_OK), MANY);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    rails_close(&pair);
}

static void counted_writes_are_not_sent_again(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 1500);
    run_many(&pair, PPLX_WRITE, true);
    check_lost_rail(&pair, 1);
    CHECK(ended(PPLX_RAIL_LOST) > 0);
    CHECK_COUNT(&pair, ended(PPLX_OK) * PPLX_EIGHTHS);
    rails_close(&pair);
}

/* Its end may still be open: something late could land on what the user has written since. */
static void nothing_is_sent_again_before_the_other_side_has_closed(void) {
    pair pair;
    rails_open(&pair, 2, "device=1 drop_after=60", "", true, 1500);
    pair.b.on_rail = NULL;
    run_many(&pair, PPLX_WRITE, false);
    check_lost_rail(&pair, 1);
    CHECK(ended(PPLX_RAIL_LOST) > 0);
    CHECK_EQ(ended(PPLX_RAIL_LOST) + ended(PPLX_OK), MANY);
    rails_close(&pair);
}

static void the_last_link_takes_the_peer_along(void) {
    pair pair;
    rails_open(&pair, 3, "drop_after=100", "", true, 1500);
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

/* ------------------------------------------------------------------ messages */

enum { NOTES = 400 };

typedef struct note {
    pplx_request request;
    ending end;
    uint32_t number;
} note;

static uint8_t seen[2][NOTES];

/* At a or at b: each number once. */
static void take_note(host *host, pplx_message *message) {
    uint32_t number;
    CHECK_EQ(message->nbytes, sizeof number);
    memcpy(&number, message->data, sizeof number);
    CHECK(number < NOTES);
    CHECK_EQ(seen[host == &rails->b][number], 0);
    seen[host == &rails->b][number] = 1;
    pplx_message_release(host->engine, message);
}

static void start_notes(host *host, pplx_peer *peer, note *notes, uint32_t first, uint32_t end) {
    for (uint32_t i = first; i < end; i++) {
        notes[i] = (note){.number = i};
        notes[i].request = (pplx_request){.kind = PPLX_REQUEST_SEND,
                                          .subject = peer,
                                          .payload = &notes[i].number,
                                          .nbytes = sizeof notes[i].number,
                                          .cookie = &notes[i].end};
        pplx_submit(host->engine, &notes[i].request);
    }
}

static void move_messages(const char *faults_a, const char *faults_b, uint32_t domains) {
    pair pair;
    note *there = calloc(NOTES, sizeof *there), *back = calloc(NOTES, sizeof *back);
    rails_open(&pair, domains, faults_a, faults_b, false, 1500);
    memset(seen, 0, sizeof seen);
    pair.a.on_message = pair.b.on_message = take_note;
    for (uint32_t first = 0; first < NOTES; first += NOTES / 4) {
        start_notes(&pair.a, pair.ab, there, first, first + NOTES / 4);
        start_notes(&pair.b, pair.ba, back, first, first + NOTES / 4);
        for (uint32_t i = first; i < first + NOTES / 4; i++) {
            WAIT(there[i].end.released && back[i].end.released);
            CHECK_EQ(there[i].request.error.status, PPLX_OK);
            CHECK_EQ(back[i].request.error.status, PPLX_OK);
        }
    }
    WAIT(pair.a.messages == NOTES && pair.b.messages == NOTES);
    CHECK(pair.a.rails >= 1 && pair.a.lost + pair.b.lost == 0);
    rails_close(&pair);
    free(there);
    free(back);
}

static void messages_move_to_the_next_link(void) {
    move_messages("device=0 drop_after=60", "", 2);
    move_messages("device=0 drop_after=45 reorder=16", "", 3);
    move_messages("", "device=0 drop_after=100 delay_us=0:300", 2);
    move_messages("device=0 fail_after=70 fail_status=PEER_LOST", "", 2);
}

static void messages_move_twice(void) { move_messages("device=0 drop_after=50", "device=1 drop_after=150", 3); }

/* Its end has to be closed by both before the next link is used: else they would arrive where nobody receives. */
static void messages_wait_for_the_other_side(void) {
    pair pair;
    note *notes = calloc(NOTES, sizeof *notes);
    rails_open(&pair, 2, "device=0 drop_after=45", "", false, 1500);
    memset(seen, 0, sizeof seen);
    pair.b.on_message = take_note;
    pair.b.on_rail = NULL;
    start_notes(&pair.a, pair.ab, notes, 0, NOTES);
    WAIT(pair.a.rails == 1 && pair.b.rails == 1);
    pump_ms(50);
    const uint64_t before = pair.b.messages;
    CHECK(before < NOTES);
    write_now(&pair, 0, PIECE, true); /* others need not */
    CHECK_EQ(pair.b.messages, before);
    tell_other(&pair.b, pair.ba, 0);
    for (uint32_t i = 0; i < NOTES; i++) WAIT(notes[i].end.released && notes[i].request.error.status == PPLX_OK);
    WAIT(pair.b.messages == NOTES);
    rails_close(&pair);
    free(notes);
}

static void messages_that_wait_end_with_the_peer(void) {
    pair pair;
    note *notes = calloc(NOTES, sizeof *notes);
    rails_open(&pair, 2, "device=0 drop_after=45", "", false, 1500);
    memset(seen, 0, sizeof seen);
    pair.b.on_message = take_note;
    pair.b.on_rail = NULL;
    start_notes(&pair.a, pair.ab, notes, 0, NOTES);
    WAIT(pair.a.rails == 1 && pair.b.rails == 1);
    rails_close(&pair);
    for (uint32_t i = 0; i < NOTES; i++) CHECK(notes[i].end.released);
    free(notes);
}

/* ---- a NIC that says one thing and does another */

static pplx_provider_domain *opened[6]; /* those of a, as many of b */
static uint32_t nopened, nrails;
static atomic_uint lies; /* enum lie */
static atomic_uint early; /* messages of b on its second link before a receives there */
static atomic_bool receives_there;
static _Atomic(const pplx_provider_endpoint *) forged; /* an immediate comes to b through it */
static uint32_t forged_imm;
enum lie {
    NONE,
    SENDS_FAIL = 1,
    SENDS_ARE_LOST = 2,
    RECEIVES_VANISH = 4,
    WRITES_ARE_LOST = 8,   /* on a's second link */
    WRITES_ARE_REFUSED = 16, /* on a's last link: it says that the peer is gone */
    WRITES_FAIL = 32,
    HEARTBEATS_VANISH = 64, /* on a's second link */
    MESSAGES_ARE_REFUSED = 128, /* by all links of a; a number alone isn't */
    NUMBERS_ARE_REFUSED = 256,
    CREDIT_IS_LATE = 512 /* the first one to a */
};
static pplx_completion late[2]; /* at a, at b */
static atomic_bool is_late[2];
static uint32_t credit_counter; /* a's */

static pplx_status lying_open(const char *device, const pplx_option *options, size_t noptions,
                              pplx_provider_domain **domain, pplx_error *error) {
    const pplx_status status = pplx_provider_loopback.domain_open(device, options, noptions, domain, error);
    opened[nopened++ % 6] = *domain;
    return status;
}

static bool is_of_a(const pplx_provider_domain *domain) {
    for (uint32_t i = 0; i < nrails; i++)
        if (opened[i] == domain) return true;
    return false;
}

static pplx_status lying_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                              size_t *posted, int32_t *provider_error) {
    const pplx_provider_domain *domain = ((pplx_slot *)requests[0].op)->link->domain->handle;
    const uint32_t lie = atomic_load(&lies);
    pplx_status refusal = PPLX_PEER_LOST;
    size_t n = 0;
    for (; n < count; n++) {
        const uint32_t role = ((pplx_slot *)requests[n].op)->role;
        const bool number = requests[n].nbytes == sizeof(pplx_message_head);
        if (role == PPLX_SLOT_SEND && is_of_a(domain) && lie & (number ? NUMBERS_ARE_REFUSED : MESSAGES_ARE_REFUSED)) {
            refusal = PPLX_TRANSPORT;
            break;
        }
        if (role == PPLX_SLOT_RECEIVE && domain == opened[1]) atomic_store(&receives_there, true);
        if (role == PPLX_SLOT_SEND && domain == opened[nrails + 1] && !atomic_load(&receives_there))
            atomic_fetch_add(&early, 1);
        if (role == PPLX_SLOT_TRANSFER && domain == opened[nrails - 1] && lie & WRITES_ARE_REFUSED) break;
    }
    const pplx_status status = pplx_provider_loopback.post(endpoint, requests, n, posted, provider_error);
    return status == PPLX_OK && n < count ? refusal : status;
}

/* The first credit of b's comes to a later, and until then b doesn't see that it has ended. */
static bool comes_later(uint32_t side, const pplx_completion *c, uint32_t role) {
    if (!(atomic_load(&lies) & CREDIT_IS_LATE) || is_late[side]) return false;
    const bool credit = side ? role == PPLX_SLOT_CREDIT
                             : c->kind == PPLX_COMPLETION_IMM && pplx_imm_counter(c->imm) == credit_counter;
    if (!credit) return false;
    late[side] = *c;
    is_late[side] = true;
    return true;
}

/* What has arrived is said to have failed at a, or isn't told of at b; on the first link. */
static size_t lying_poll(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity) {
    static uint32_t sends;
    const uint32_t lie = atomic_load(&lies);
    const size_t n = pplx_provider_loopback.poll(domain, completions, capacity);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        pplx_completion *c = &completions[i];
        const uint32_t role = c->op ? ((pplx_slot *)c->op)->role : PPLX_SLOT_TRANSFER;
        if (role == PPLX_SLOT_RECEIVE && domain == opened[nrails] && lie & RECEIVES_VANISH) continue;
        if ((domain == opened[0] || domain == opened[nrails]) && comes_later(domain != opened[0], c, role)) continue;
        if (c->op && role == PPLX_SLOT_TRANSFER && domain == opened[1] && lie & WRITES_ARE_LOST)
            c->status = PPLX_PEER_LOST;
        if (c->op && role == PPLX_SLOT_TRANSFER && is_of_a(domain) && lie & WRITES_FAIL) c->status = PPLX_TRANSPORT;
        if (role == PPLX_SLOT_HEARTBEAT && domain == opened[1] && lie & HEARTBEATS_VANISH) continue;
        if (role == PPLX_SLOT_SEND && domain == opened[0]) {
            if (lie & SENDS_FAIL && sends++ % 3 == 0) c->status = PPLX_TRANSPORT;
            if (lie & SENDS_ARE_LOST) c->status = PPLX_PEER_LOST;
        }
        completions[kept++] = *c;
    }
    for (uint32_t side = 0; side < 2; side++) {
        if (domain != opened[side * nrails] || !is_late[side] || lie & CREDIT_IS_LATE || kept == capacity) continue;
        is_late[side] = false;
        completions[kept++] = late[side];
    }
    const pplx_provider_endpoint *source = domain == opened[nrails] ? atomic_exchange(&forged, NULL) : NULL;
    if (source && kept < capacity)
        completions[kept++] = (pplx_completion){.kind = PPLX_COMPLETION_IMM, .imm = forged_imm, .source = source};
    return kept;
}

static pplx_provider liar;

static bool streams; /* a's second link is one, of which little is in flight at first */

static void lying_caps(pplx_provider_domain *domain, pplx_caps *caps) {
    pplx_provider_loopback.domain_caps(domain, caps);
    if (streams && nopened <= nrails && domain == opened[1]) caps->flags |= PPLX_CAP_STREAM;
}

static uint32_t liar_timeout_ms = 20000;

static void liar_open_with(pair *pair, uint32_t domains, const char *faults_a, bool failover) {
    liar = pplx_provider_loopback;
    liar.domain_caps = lying_caps;
    liar.domain_open = lying_open;
    liar.post = lying_post;
    liar.poll = lying_poll;
    host_provider = &liar;
    nopened = 0;
    nrails = domains;
    atomic_store(&early, 0);
    atomic_store(&receives_there, false);
    rails_open(pair, domains, faults_a, "", failover, liar_timeout_ms);
    host_provider = &pplx_provider_loopback;
    memset(seen, 0, sizeof seen);
    pair->a.on_message = pair->b.on_message = take_note;
}

static void liar_open(pair *pair) { liar_open_with(pair, 2, "", false); }

static void check_notes(pair *pair, note *notes) {
    for (uint32_t i = 0; i < NOTES; i++) {
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_OK);
    }
    WAIT(pair->b.messages == NOTES); /* take_note(): each once */
    pump_ms(20);
    CHECK_EQ(pair->b.messages, NOTES);
    atomic_store(&lies, NONE);
    rails_close(pair);
    free(notes);
}

/* The link lives: they are sent again there, and the receiver knows their numbers. */
static void messages_that_seem_to_have_failed_come_once(void) {
    pair pair;
    note *notes = calloc(NOTES, sizeof *notes);
    liar_open(&pair);
    atomic_store(&lies, SENDS_FAIL);
    start_notes(&pair.a, pair.ab, notes, 0, NOTES);
    check_notes(&pair, notes);
}

/* The other side says that they have arrived. */
static void messages_that_seem_to_be_lost_come_once(void) {
    pair pair;
    note *notes = calloc(NOTES, sizeof *notes);
    liar_open(&pair);
    start_notes(&pair.a, pair.ab, notes, 0, NOTES / 2);
    WAIT(notes[NOTES / 2 - 1].end.released);
    atomic_store(&lies, SENDS_ARE_LOST);
    start_notes(&pair.a, pair.ab, notes, NOTES / 2, NOTES);
    WAIT(pair.a.rails == 1 && pair.b.rails == 1);
    check_notes(&pair, notes);
}

/* The NIC has taken them, and the endpoint was closed before anybody saw that. */
static void messages_that_seem_to_have_arrived_are_sent_again(void) {
    pair pair;
    note *notes = calloc(NOTES, sizeof *notes);
    liar_open(&pair);
    atomic_store(&lies, RECEIVES_VANISH);
    start_notes(&pair.a, pair.ab, notes, 0, NOTES);
    WAIT(notes[0].end.released && notes[0].request.error.status == PPLX_OK);
    CHECK_EQ(pair.b.messages, 0);
    notices[7] = (pplx_rail_notice){.link = 0, .why = "as if a had lost it"};
    ending end = {0};
    pplx_request lost = {.kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_RAIL_LOST, .subject = pair.ba, .cookie = &end};
    lost.payload = &notices[7];
    pplx_submit(pair.b.engine, &lost);
    WAIT(end.released && pair.a.rails == 1 && pair.b.rails == 1);
    check_notes(&pair, notes);
}

/* The other side sends there as soon as it is told, and a NIC keeps few messages for which there is no receive. */
static void receives_are_there_before_the_other_side_is_told(void) {
    pair pair;
    note *there = calloc(NOTES, sizeof *there), *back = calloc(NOTES, sizeof *back);
    liar_open(&pair);
    start_notes(&pair.b, pair.ba, back, 0, NOTES);
    atomic_store(&lies, SENDS_ARE_LOST);
    start_notes(&pair.a, pair.ab, there, 0, NOTES);
    for (uint32_t i = 0; i < NOTES; i++) WAIT(back[i].end.released);
    WAIT(pair.a.messages == NOTES);
    CHECK_EQ(atomic_load(&early), 0);
    CHECK(atomic_load(&receives_there));
    check_notes(&pair, there);
    free(back);
}

/* The links live, and none of them sends it: it fails, and those behind it need not wait for it. */
static void a_message_that_no_link_sends_ends_typed(void) {
    pair pair;
    note *notes = calloc(NOTES, sizeof *notes);
    liar_open(&pair);
    start_notes(&pair.a, pair.ab, notes, 0, 40);
    for (uint32_t i = 0; i < 40; i++) WAIT(notes[i].end.released);
    atomic_store(&lies, MESSAGES_ARE_REFUSED);
    start_notes(&pair.a, pair.ab, notes, 40, 45);
    for (uint32_t i = 40; i < 45; i++) {
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_TRANSPORT);
    }
    atomic_store(&lies, NONE);
    start_notes(&pair.a, pair.ab, notes, 45, NOTES);
    for (uint32_t i = 45; i < NOTES; i++) {
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_OK);
    }
    WAIT(pair.b.messages == NOTES - 5);
    CHECK_EQ(pair.a.rails + pair.a.lost, 0);
    rails_close(&pair);
    free(notes);
}

/* Nor its number: one link after the other is lost, the peer with the last of them. */
static void links_that_send_no_messages_are_lost(void) {
    for (uint32_t links = 1; links <= 3; links++) {
        pair pair;
        note *notes = calloc(NOTES, sizeof *notes);
        liar_open_with(&pair, links, "", false);
        atomic_store(&lies, MESSAGES_ARE_REFUSED | NUMBERS_ARE_REFUSED);
        start_notes(&pair.a, pair.ab, notes, 0, NOTES);
        WAIT(pair.a.lost == 1);
        CHECK_EQ(pair.a.rails, links - 1);
        for (uint32_t i = 0; i < NOTES; i++) {
            WAIT(notes[i].end.released);
            CHECK(notes[i].request.error.status == PPLX_TRANSPORT || notes[i].request.error.status == PPLX_PEER_LOST);
        }
        atomic_store(&lies, NONE);
        rails_close(&pair);
        free(notes);
    }
}

/* Credits are numbers modulo PPLX_MAX_RUN. One that comes after so many others that it looks like the next one would
 * have a send more than b has room for. */
enum { UNREAD = 8, READ = PPLX_MAX_RUN + 7 };

static pplx_message *kept_notes[UNREAD];
static uint32_t nkept;

static void keep_the_last(host *host, pplx_message *message) {
    if (host->messages <= READ)
        pplx_message_release(host->engine, message);
    else
        kept_notes[nkept++] = message;
}

static uint64_t turns_of(const host *host) {
    pplx_engine_stats stats;
    pplx_engine_read_stats(host->engine, &stats);
    return stats.turns;
}

/* Two whole turns: what arrives in the first is answered in the second. */
static void let_turn(host *host) {
    for (const uint64_t end = turns_of(host) + 3; turns_of(host) < end;)
        CHECK_EQ(call(host, PPLX_CALL_DRAIN, NULL, NULL), PPLX_OK);
    reap_all(host);
}

/* Until no message comes to b any more, however slow this machine is. */
static void come_to_rest(pair *pair) {
    uint64_t before;
    do {
        before = pair->b.messages;
        let_turn(&pair->b); /* credits */
        let_turn(&pair->a); /* messages for them */
        let_turn(&pair->b);
    } while (pair->b.messages != before);
}

static void a_late_credit_is_not_taken_for_a_new_one(void) {
    pair pair;
    note *notes = calloc(READ + UNREAD, sizeof *notes);
    liar_open(&pair);
    credit_counter = pplx_peer_credit_counter(pair.ab);
    nkept = 0;
    pair.b.on_message = keep_the_last;
    atomic_store(&lies, CREDIT_IS_LATE);
    /* Half of what a may send. A first credit for all of it would leave a with none, and no other would come. */
    const uint32_t first = default_config.message_slots / 2;
    start_notes(&pair.a, pair.ab, notes, 0, first);
    WATCH(is_late[0] && is_late[1]);
    start_notes(&pair.a, pair.ab, notes, first, READ + UNREAD);
    WAIT(pair.b.messages > READ / 2);
    come_to_rest(&pair); /* b waits for its first credit to come before it tells of more */
    atomic_store(&lies, NONE);
    WAIT(pair.b.messages == READ + UNREAD);
    CHECK_EQ(call(&pair.a, PPLX_CALL_DRAIN, NULL, NULL), PPLX_OK);
    CHECK(!is_late[0]); /* it has come */
    CHECK(pair.ab->acked <= READ);
    for (uint32_t i = 0; i < UNREAD; i++) pplx_message_release(pair.b.engine, kept_notes[i]);
    for (uint32_t i = 0; i < READ + UNREAD; i++) {
        WAIT(notes[i].end.released);
        CHECK_EQ(notes[i].request.error.status, PPLX_OK);
    }
    rails_close(&pair);
    free(notes);
}

/* ---- ... and writes */

static pplx_segment pieces[MANY];

/* All in one request, so that the first turn of the proxy cuts them all. */
static void start_pieces(pair *pair, transfer *t, bool counted) {
    for (uint32_t i = 0; i < MANY; i++) pieces[i] = (pplx_segment){i * PIECE, i * PIECE, PIECE, 1};
    memset(t, 0, sizeof *t);
    t->target = (pplx_target){.local = &pair->from.mr,
                              .remote = &pair->remote,
                              .peer = pair->ab,
                              .segments = pieces,
                              .nsegments = MANY,
                              .counter = counted ? pair->counter.id : PPLX_NO_COUNTER};
    transfer_submit(&pair->a, t, PPLX_WRITE);
}

/* Both links are asked, the first one again and again, and the second one does not answer. */
static void ask_both(pair *pair) {
    interval_ms = 0;
    liar_open(pair);
    interval_ms = 20;
    atomic_store(&lies, WRITES_FAIL | HEARTBEATS_VANISH);
}

/* That others are asked later gives it no more time. */
static void a_link_that_never_answers_is_lost_in_time(void) {
    pair pair;
    uint32_t n = 0;
    liar_timeout_ms = 400;
    ask_both(&pair);
    liar_timeout_ms = 20000;
    for (; n < MANY && !pair.a.rails; n++) {
        start_one(&pair, n, PPLX_WRITE, false);
        pump_ms(10);
    }
    CHECK(n < MANY);
    check_lost_rail(&pair, 1);
    for (uint32_t i = 0; i < n; i++) {
        WAIT(many[i].end.released);
        CHECK_EQ(many[i].request.error.status, many[i].target.links == 2 ? PPLX_RAIL_LOST : PPLX_TRANSPORT);
    }
    atomic_store(&lies, NONE);
    write_now(&pair, 0, PIECE, true);
    rails_close(&pair);
}

/* What failed on a link that has answered is not kept waiting by another one that has not. */
static void each_link_answers_for_itself(void) {
    enum { FEW = 40 };
    pair pair;
    ask_both(&pair);
    for (uint32_t i = 0; i < FEW; i++) start_one(&pair, i, PPLX_WRITE, false);
    WAIT(released(FEW) == FEW / 2);
    atomic_store(&lies, NONE);
    rails_close(&pair);
    for (uint32_t i = 0; i < FEW; i++) CHECK(many[i].end.released);
}

/* It has no more to do with them, and no more slots for others than it had. */
static void a_link_that_refuses_takes_no_more(void) {
    pair pair;
    transfer t;
    liar_open_with(&pair, 2, "max_inflight=64 eager_posts=65536", false);
    atomic_store(&lies, WRITES_ARE_REFUSED);
    start_pieces(&pair, &t, true);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    check_lost_rail(&pair, 1);
    CHECK_COUNT(&pair, MANY * PPLX_EIGHTHS);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    atomic_store(&lies, NONE);
    rails_close(&pair);
}

/* The second link has lost them, and the third one refuses when they are sent again. */
static void what_is_sent_again_may_be_refused(void) {
    pair pair;
    transfer t;
    liar_open_with(&pair, 3, "", true);
    pair.b.on_rail = NULL;
    atomic_store(&lies, WRITES_ARE_LOST);
    start_pieces(&pair, &t, false);
    WAIT(pair.a.rails == 1 && pair.b.rails == 1);
    pump_ms(20);
    CHECK(!t.end.settled);
    atomic_store(&lies, WRITES_ARE_REFUSED);
    tell_other(&pair.b, pair.ba, 1);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_OK);
    WAIT(pair.a.rails == 2 && pair.b.rails == 2);
    CHECK_EQ(pair.a.last_rail, 2);
    CHECK(pair_equal(&pair, 0, MANY * PIECE));
    atomic_store(&lies, NONE);
    rails_close(&pair);
}

/* Who does it again does not want the first one to come after that. */
static void what_failed_is_told_when_both_ends_are_closed(void) {
    pair pair;
    transfer t;
    liar_open(&pair);
    pair.b.on_rail = NULL;
    atomic_store(&lies, WRITES_ARE_LOST);
    start_pieces(&pair, &t, true);
    WAIT(pair.a.rails == 1 && pair.b.rails == 1);
    pump_ms(50);
    CHECK(!t.end.settled);
    tell_other(&pair.b, pair.ba, 1);
    WAIT(t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_RAIL_LOST);
    atomic_store(&lies, NONE);
    rails_close(&pair);
}

/* A provider that can't fence says of work requests that the peer is gone when they have ended long since. */
static void what_ends_after_its_link_is_only_released(void) {
    pair pair;
    transfer t;
    /* Some are still to end when b has closed its end, also where it takes a second to come to that. */
    rails_open(&pair, 2, "device=1 release=0 delay_us=1000:2000000", "", true, 20000);
    start_pieces(&pair, &t, false);
    notices[7] = (pplx_rail_notice){.link = 1, .why = "as if a had lost it"};
    ending end = {0};
    pplx_request lost = {.kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_RAIL_LOST, .subject = pair.ba, .cookie = &end};
    lost.payload = &notices[7];
    pplx_submit(pair.b.engine, &lost);
    WAIT(end.released && t.end.released);
    CHECK_EQ(t.request.error.status, PPLX_RAIL_LOST);
    check_lost_rail(&pair, 1);
    rails_close(&pair);
}

/* Where the closed endpoint lay another peer's may lie now. */
static void a_lost_link_counts_nothing_any_more(void) {
    pair pair;
    pplx_counter bound = {0};
    pplx_engine_stats stats;
    liar_open(&pair);
    bound.owner = pplx_peer_token(pair.ba);
    CHECK_EQ(pplx_counter_open(pair.b.engine, &bound), PPLX_OK);
    forged_imm = pplx_imm_encode(bound.id, PPLX_EIGHTHS);
    const pplx_provider_endpoint *source = pair.ba->links[1].source;
    atomic_store(&forged, source);
    WATCH(pplx_counter_value(&bound) == PPLX_EIGHTHS); /* while it is there */
    atomic_store(&lies, WRITES_ARE_LOST);
    run_many(&pair, PPLX_WRITE, false);
    check_lost_rail(&pair, 1);
    atomic_store(&forged, source);
    WATCH((pplx_engine_read_stats(pair.b.engine, &stats), stats.stray_imms > 0) ||
          pplx_counter_value(&bound) > PPLX_EIGHTHS);
    CHECK_EQ(pplx_counter_value(&bound), PPLX_EIGHTHS);
    CHECK_EQ(call(&pair.b, PPLX_CALL_COUNTER_CLOSE, &bound, NULL), PPLX_OK);
    atomic_store(&lies, NONE);
    rails_close(&pair);
}

/* No piece of a stream fills its window: once it is lost, they may be as long as the others take them. */
static void a_slow_link_that_is_lost_slows_nothing_down(void) {
    pair pair;
    streams = true;
    liar_open(&pair);
    streams = false;
    CHECK(pair.ab->max_piece < pair.ab->max_message);
    atomic_store(&lies, WRITES_ARE_LOST);
    run_many(&pair, PPLX_WRITE, false);
    check_lost_rail(&pair, 1);
    CHECK_EQ(pair.ab->max_piece, pair.ab->max_message);
    atomic_store(&lies, NONE);
    rails_close(&pair);
}

int main(void) {
    RUN(writes_are_cut_by_weight);
    RUN(what_is_not_cut_goes_where_least_was);
    RUN(limits_of_a_message_hold);
    RUN(runs_of_pages_are_cut_by_weight);
    RUN(a_silent_link_is_lost_and_the_peer_lives);
    RUN(a_peer_that_is_silent_on_every_link_is_lost_with_all_of_them);
    RUN(what_was_in_flight_fails_typed);
    RUN(a_provider_that_says_so_loses_the_link);
    RUN(writes_without_an_immediate_are_sent_again);
    RUN(reads_are_sent_again);
    RUN(counted_writes_are_not_sent_again);
    RUN(nothing_is_sent_again_before_the_other_side_has_closed);
    RUN(the_last_link_takes_the_peer_along);
    RUN(closing_ends_what_waits_to_be_sent_again);
    RUN(messages_move_to_the_next_link);
    RUN(messages_move_twice);
    RUN(messages_wait_for_the_other_side);
    RUN(messages_that_wait_end_with_the_peer);
    RUN(messages_that_seem_to_have_failed_come_once);
    RUN(messages_that_seem_to_be_lost_come_once);
    RUN(messages_that_seem_to_have_arrived_are_sent_again);
    RUN(receives_are_there_before_the_other_side_is_told);
    RUN(a_message_that_no_link_sends_ends_typed);
    RUN(links_that_send_no_messages_are_lost);
    RUN(a_late_credit_is_not_taken_for_a_new_one);
    RUN(a_link_that_never_answers_is_lost_in_time);
    RUN(each_link_answers_for_itself);
    RUN(a_link_that_refuses_takes_no_more);
    RUN(what_is_sent_again_may_be_refused);
    RUN(what_failed_is_told_when_both_ends_are_closed);
    RUN(what_ends_after_its_link_is_only_released);
    RUN(a_lost_link_counts_nothing_any_more);
    RUN(a_slow_link_that_is_lost_slows_nothing_down);
    return check_done();
}
