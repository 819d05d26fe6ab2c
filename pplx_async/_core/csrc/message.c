/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Two-sided messages, on the first link of a peer that lives.
 *
 * Each side keeps message_slots receives posted for the other and says so in its credits. A send
 * goes out when there is a credit for it, so no message ever waits in a fabric for a receive, where
 * it would hold up the writes behind it. When the owner gives a receive back it is posted again,
 * and the sender is told, several at a time, by an immediate alone: how many of its messages were
 * read in all, modulo PPLX_MAX_RUN. So one that is lost, comes twice or late does no harm. No more
 * are told than have arrived without a gap: all messages below that number are done with.
 *
 * Messages are numbered. Until a message is known to be done with its copy stays in its buffer, for
 * which there are as many as there may be messages under way, and the receiver takes each number
 * once. So a message may be sent again:
 *
 *   it failed, the peer lives       the number alone, or those behind it would wait for ever; of a peer with several
 *                                   links the message itself first, and nobody is told that it failed. A link that
 *                                   doesn't send so much as the number is lost
 *   the link is lost                both sides close their ends, tell each other by the control channel what has
 *                                   arrived, and go on with the next link: receives are posted there, and what hasn't
 *                                   arrived is sent again, even if the lost NIC had said that it has
 *
 * Neither sends on the next link before the other one uses it too (messages_held).
 *
 * One registered block per peer: message_slots buffers to receive, then as many to send from.
 * A message names its receiver-side peer by a token in its head, since on a fabric without
 * connections any of our receives may take it. Proxy thread. */
#include <stdlib.h>

#include "internal.h"

enum {
    RETRY_MS = 5,
    MOST_TRIES = 16, /* of a message, which in that time is known to fail on links that live */
    /* How far credits on their way may be apart, so that the last to come is not taken for a new one. */
    MOST_APART = PPLX_MAX_RUN - PPLX_MAX_SLOTS - 1
};

static const uint64_t number_only = UINT64_MAX; /* pplx_message_head.nbytes */

static uint64_t buffer_nbytes(const pplx_engine *engine) {
    return (sizeof(pplx_message_head) + engine->config.message_nbytes + 63) & ~UINT64_C(63);
}

static uint8_t *send_buffer(const pplx_peer *peer, uint32_t i) {
    return peer->buffers + (peer->engine->config.message_slots + i) * buffer_nbytes(peer->engine);
}

static pplx_link *message_link(pplx_peer *peer) { return &peer->links[peer->message_link]; }

/* Post what waits for it; what the provider says PPLX_AGAIN to goes on waiting. */
static pplx_status post_receives(pplx_peer *peer, int32_t *provider_error) {
    pplx_link *link = message_link(peer);
    pplx_status status = link->endpoint ? PPLX_OK : PPLX_AGAIN; /* AGAIN: all links are lost */
    while (peer->unposted && status == PPLX_OK) {
        pplx_work_request requests[PPLX_BATCH];
        size_t count = 0, posted = 0;
        for (pplx_receive *r = peer->unposted; r && count < PPLX_BATCH; r = r->next) {
            r->slot.link = link;
            requests[count++] = (pplx_work_request){
                .op = &r->slot.op,
                .opcode = PPLX_RECV,
                .local_address = (uintptr_t)r->buffer,
                .nbytes = buffer_nbytes(peer->engine),
                .local_mr = peer->buffers_mr.handles[link->domain->index],
            };
        }
        status = pplx_link_receive(link, requests, count, &posted, provider_error);
        for (; posted--; peer->unposted = peer->unposted->next) peer->unposted->posted = true;
    }
    return status;
}

static void want_receive(pplx_receive *receive) {
    pplx_peer *owner = receive->owner;
    receive->posted = false;
    if (owner->state >= PPLX_PEER_CLOSED) return; /* it may be given back any time */
    receive->next = owner->unposted;
    owner->unposted = receive;
    pplx_peer_busy(owner);
}

pplx_status pplx_messages_open(pplx_peer *peer, pplx_error *error) {
    pplx_engine *engine = peer->engine;
    uint32_t slots = engine->config.message_slots;
    uint64_t nbytes = 2 * slots * buffer_nbytes(engine);
    peer->receives = calloc(slots, sizeof *peer->receives);
    peer->sent = calloc(slots, sizeof *peer->sent);
    peer->arrived = calloc(slots / 64 + 1, sizeof *peer->arrived);
    if (!peer->receives || !peer->sent || !peer->arrived || posix_memalign((void **)&peer->buffers, 4096, nbytes)) {
        peer->buffers = NULL;
        return pplx_fail(error, PPLX_NO_MEMORY, 0, "no memory for %u messages", slots);
    }
    peer->buffers_mr.memory = (pplx_memory){
        .kind = PPLX_MEMORY_HOST, .device = -1, .address = (uintptr_t)peer->buffers, .nbytes = nbytes, .fd = -1};
    pplx_status status = pplx_mr_open_all(engine, &peer->buffers_mr, error);
    if (status != PPLX_OK) return status;
    for (uint32_t i = slots; i-- > 0;) {
        pplx_receive *receive = &peer->receives[i];
        receive->slot.opcode = PPLX_RECV;
        receive->slot.role = PPLX_SLOT_RECEIVE;
        receive->owner = peer;
        receive->buffer = peer->buffers + i * buffer_nbytes(engine);
        receive->message.node.kind = PPLX_NODE_MESSAGE;
        want_receive(receive);
    }
    int32_t provider_error = 0;
    status = post_receives(peer, &provider_error);
    if (status == PPLX_OK || status == PPLX_AGAIN) return PPLX_OK; /* AGAIN: the rest a little later */
    return pplx_fail(error, status, provider_error, "posting a receive failed: %s", pplx_status_text((int)status));
}

/* After the endpoints are closed: nothing receives or sends any more. The buffers stay until the
 * peer is given back, since the owner may still be reading messages in them. */
void pplx_messages_close(pplx_peer *peer) {
    /* Still registered: a NIC may write there, so they are never freed. A leak, and meant. */
    if (pplx_mr_close_all(peer->engine, &peer->buffers_mr) != PPLX_OK) peer->buffers = NULL;
    peer->unposted = NULL;
}

/* ---- sending ---- */

/* Ours are not larger than theirs must be, whatever the peer said of itself. */
static pplx_status check_send(const pplx_peer *peer, const pplx_request *request) {
    if (peer->state != PPLX_PEER_UP) return peer->reason.status == PPLX_OK ? PPLX_CLOSED : peer->reason.status;
    bool fits = request->nbytes <= peer->engine->config.message_nbytes &&
                request->nbytes <= peer->config.message_nbytes;
    return fits ? PPLX_OK : PPLX_TOO_LARGE;
}

void pplx_message_submit(pplx_peer *peer, pplx_request *request) {
    request->submitted_ns = peer->engine->now_ns;
    pplx_status status = check_send(peer, request);
    if (status != PPLX_OK) {
        request->error.status = status;
        pplx_settle(peer->engine, request);
        return;
    }
    request->node.next = NULL;
    if (peer->sends_tail)
        peer->sends_tail->node.next = &request->node;
    else
        peer->sends_head = request;
    peer->sends_tail = request;
    pplx_peer_busy(peer);
}

static pplx_request *next_send(const pplx_request *request) {
    return request->node.next ? PPLX_CONTAINER(pplx_request, node, request->node.next) : NULL;
}

/* It has arrived, or failed; who waits for it hears that. */
static void settle(const pplx_peer *peer, pplx_sent *sent, pplx_status status) {
    pplx_request *request = sent->request;
    sent->request = NULL;
    if (!request) return;
    request->error.status = status;
    pplx_settle(peer->engine, request);
}

static void change(pplx_peer *peer, pplx_sent *sent, uint32_t state) {
    if (sent->state == PPLX_SENT_WAITING) peer->nwaiting--;
    sent->state = state;
    if (state != PPLX_SENT_WAITING) return;
    peer->nwaiting++;
    pplx_peer_busy(peer);
}

static pplx_sent *sent_of(const pplx_peer *peer, uint64_t sequence) {
    return &peer->sent[sequence % peer->engine->config.message_slots];
}

static bool may_send_again(const pplx_peer *peer) {
    return peer->nwaiting && !peer->messages_held && peer->engine->now_ns >= peer->retry_ns;
}

/* One that waits; else a new one, if there are a credit and a buffer for it. */
static pplx_sent *next_sent(pplx_peer *peer) {
    const uint64_t slots = peer->engine->config.message_slots, credits = peer->config.credits;
    if (may_send_again(peer))
        for (uint64_t n = peer->acked; n < peer->next_sequence; n++)
            if (sent_of(peer, n)->state == PPLX_SENT_WAITING) return sent_of(peer, n);
    pplx_request *send = peer->sends_head;
    pplx_sent *sent = sent_of(peer, peer->next_sequence);
    if (!send || peer->messages_held || peer->next_sequence - peer->acked >= (credits < slots ? credits : slots) ||
        sent->state != PPLX_SENT_FREE || !pplx_link_has_room(message_link(peer), send->nbytes))
        return NULL;
    *sent = (pplx_sent){.request = send, .nbytes = send->nbytes, .sequence = peer->next_sequence++};
    change(peer, sent, PPLX_SENT_WAITING);
    if (send->nbytes)
        memcpy(send_buffer(peer, (uint32_t)(sent - peer->sent)) + sizeof(pplx_message_head), send->payload,
               send->nbytes);
    peer->sends_head = next_send(send);
    if (!peer->sends_head) peer->sends_tail = NULL;
    return sent;
}

static bool post_sends(pplx_peer *peer) {
    pplx_link *link = message_link(peer);
    bool any = false;
    for (;;) {
        if (link->nstaged == PPLX_BATCH) pplx_link_flush(link);
        pplx_sent *sent = next_sent(peer);
        if (!sent) break;
        const uint32_t index = (uint32_t)(sent - peer->sent);
        uint8_t *buffer = send_buffer(peer, index);
        const pplx_message_head head = {
            .token = peer->config.token, .nbytes = sent->nbytes, .sequence = sent->sequence};
        pplx_work_request request = {
            .opcode = PPLX_SEND,
            .local_address = (uintptr_t)buffer,
            .nbytes = sizeof head + (sent->nbytes == number_only ? 0 : sent->nbytes),
            .local_mr = peer->buffers_mr.handles[link->domain->index],
        };
        if (!pplx_link_has_room(link, request.nbytes)) break;
        memcpy(buffer, &head, sizeof head);
        pplx_slot *slot = pplx_link_stage(link, PPLX_SLOT_SEND, &request);
        slot->eighths = index; /* a message counts nothing */
        change(peer, sent, PPLX_SENT_FLYING);
        any = true;
    }
    if (any) pplx_link_flush(link);
    return any;
}

static void send_failed(pplx_peer *peer, pplx_sent *sent, pplx_status status, const pplx_slot *slot,
                        int32_t provider_error) {
    const bool up = peer->state == PPLX_PEER_UP, suspicious = pplx_suspicious(status);
    if (up && suspicious && status != PPLX_RAIL_LOST)
        pplx_peer_suspect(peer, 1u << slot->link->index, slot->link->domain->index, provider_error);
    const bool worn_out = status != PPLX_RAIL_LOST && ++sent->tries % MOST_TRIES == 0;
    if (up && !sent->request) { /* nobody could be told, and without it those behind it would wait for ever */
        if (worn_out) pplx_link_lose(slot->link, status, provider_error, "it sends no messages");
        change(peer, sent, PPLX_SENT_WAITING);
        return;
    }
    if (up && suspicious && peer->nlinks > 1 && !worn_out) { /* by this link or another one */
        change(peer, sent, PPLX_SENT_WAITING);
        return;
    }
    pplx_request *request = sent->request;
    sent->request = NULL;
    sent->nbytes = number_only;
    sent->tries = 0;
    change(peer, sent, up ? PPLX_SENT_WAITING : PPLX_SENT_FREE);
    if (!request) return;
    request->error.status = status;
    request->error.provider_error = provider_error;
    if (up && suspicious) {
        request->node.next = peer->suspect_sends ? &peer->suspect_sends->node : NULL;
        peer->suspect_sends = request;
    } else {
        pplx_settle(peer->engine, request);
    }
}

void pplx_message_sent(pplx_slot *slot, pplx_status status, int32_t provider_error) {
    pplx_peer *peer = slot->link->peer;
    pplx_sent *sent = &peer->sent[slot->eighths];
    if (slot->orphaned) return; /* (link.c): that was told before */
    if (status == PPLX_OK || sent->sequence < peer->acked) { /* its credit may be here before its completion */
        change(peer, sent, sent->sequence < peer->acked ? PPLX_SENT_FREE : PPLX_SENT_ARRIVED);
        settle(peer, sent, PPLX_OK);
        if (peer->sends_head) pplx_peer_busy(peer);
        return;
    }
    peer->retry_ns = peer->engine->now_ns + pplx_ms(RETRY_MS);
    send_failed(peer, sent, status, slot, provider_error);
}

void pplx_message_judge(pplx_peer *peer, pplx_status verdict) {
    pplx_request *request = peer->suspect_sends;
    peer->suspect_sends = NULL;
    while (request) {
        pplx_request *next = next_send(request);
        if (verdict == PPLX_PEER_LOST) request->error.status = PPLX_PEER_LOST;
        pplx_settle(peer->engine, request);
        request = next;
    }
}

/* Not posted yet: out of the queue. Posted: it cannot be called back, and settles as it will. */
void pplx_message_cancel(pplx_peer *peer, pplx_request *request) {
    pplx_request *before = NULL;
    for (pplx_request *send = peer->sends_head; send; before = send, send = next_send(send)) {
        if (send != request) continue;
        if (before)
            before->node.next = request->node.next;
        else
            peer->sends_head = next_send(request);
        if (peer->sends_tail == request) peer->sends_tail = before;
        request->error.status = PPLX_CANCELLED;
        pplx_settle(peer->engine, request);
        return;
    }
}

void pplx_message_flush(pplx_peer *peer, pplx_status status) {
    while (peer->sends_head) {
        pplx_request *request = peer->sends_head;
        peer->sends_head = next_send(request);
        request->error.status = status;
        request->error.provider_error = peer->reason.provider_error;
        pplx_settle(peer->engine, request);
    }
    peer->sends_tail = NULL;
    for (uint32_t i = 0; peer->sent && i < peer->engine->config.message_slots; i++) {
        pplx_sent *sent = &peer->sent[i];
        if (sent->state != PPLX_SENT_WAITING) continue; /* those in flight end with their link */
        if (sent->request) sent->request->error.provider_error = peer->reason.provider_error;
        change(peer, sent, PPLX_SENT_FREE);
        settle(peer, sent, status);
    }
}

/* An older number, which is so by MOST_APART at most, is far ahead of what can be, modulo so much, since no more than
 * PPLX_MAX_SLOTS are under way; and no number can be more than we have sent: a hostile one gains nothing. */
void pplx_message_credited(pplx_peer *peer, uint32_t read) {
    if (read == 0 || read > PPLX_MAX_RUN) return;
    const uint64_t more = (read - 1 + PPLX_MAX_RUN - peer->acked % PPLX_MAX_RUN) % PPLX_MAX_RUN;
    if (more > peer->next_sequence - peer->acked) return;
    for (const uint64_t end = peer->acked + more; peer->acked < end; peer->acked++) {
        pplx_sent *sent = sent_of(peer, peer->acked);
        if (sent->state == PPLX_SENT_FLYING) continue;
        change(peer, sent, PPLX_SENT_FREE);
        settle(peer, sent, PPLX_OK);
    }
    if (peer->sends_head) pplx_peer_busy(peer);
}

_Static_assert((int)MOST_APART > (int)PPLX_MAX_SLOTS, "half of what may be under way is told at a time");

/* ---- receiving ---- */

/* Who sent it; NULL: malformed, or nobody we know. */
static pplx_peer *sender_of(pplx_engine *engine, const pplx_message_head *head) {
    /* acquire: pairs with the release in pplx_peer_new() */
    pplx_peer *sender = atomic_load_explicit(&engine->by_index[head->token % PPLX_MAX_PEERS], memory_order_acquire);
    return sender && sender->token == head->token ? sender : NULL;
}

enum arrival { NEW, AGAIN, STRAY };

static enum arrival take_number(pplx_peer *sender, uint64_t sequence) {
    const uint64_t slots = sender->engine->config.message_slots;
    uint64_t *words = sender->arrived, place = sequence % slots;
    if (sequence < sender->prefix) return AGAIN;
    if (sequence - sender->prefix >= slots) return STRAY;
    if (words[place / 64] >> place % 64 & 1) return AGAIN;
    words[place / 64] |= UINT64_C(1) << place % 64;
    for (place = sender->prefix % slots; words[place / 64] >> place % 64 & 1; place = sender->prefix % slots) {
        words[place / 64] &= ~(UINT64_C(1) << place % 64);
        sender->prefix++;
    }
    return NEW;
}

static void consumed(pplx_peer *sender) {
    sender->consumed++;
    pplx_peer_busy(sender);
}

/* NEW: it is with the owner now. AGAIN also for a number without a message. */
static enum arrival deliver(pplx_receive *receive, uint64_t nbytes) {
    pplx_engine *engine = receive->owner->engine;
    pplx_message_head head;
    if (nbytes < sizeof head) return STRAY;
    memcpy(&head, receive->buffer, sizeof head);
    pplx_peer *sender = sender_of(engine, &head);
    const uint64_t payload = head.nbytes == number_only ? 0 : head.nbytes;
    if (!sender || !sender->arrived || payload != nbytes - sizeof head) return STRAY;
    const enum arrival arrival = take_number(sender, head.sequence);
    if (arrival != NEW) return arrival;
    if (head.nbytes == number_only) {
        consumed(sender);
        return AGAIN;
    }
    receive->message.peer = sender;
    receive->message.data = receive->buffer + sizeof head;
    receive->message.nbytes = head.nbytes;
    receive->owner->messages_out++;
    pplx_finish(engine, &receive->message.node);
    return NEW;
}

void pplx_message_received(pplx_slot *slot, pplx_status status, uint64_t nbytes) {
    pplx_receive *receive = PPLX_CONTAINER(pplx_receive, slot, slot);
    pplx_peer *owner = receive->owner;
    receive->posted = false;
    const enum arrival arrival = status == PPLX_OK ? deliver(receive, nbytes) : STRAY;
    if (arrival == NEW) return;
    if (arrival == STRAY && (status == PPLX_OK || status == PPLX_TRUNCATED))
        PPLX_COUNT(owner->engine->stats.stray_messages, 1);
    else if (status != PPLX_OK)
        owner->retry_ns = owner->engine->now_ns + pplx_ms(RETRY_MS);
    want_receive(receive); /* posted again in the next turn, if the peer is still open then */
}

/* The owner has read it. */
void pplx_message_repost(pplx_engine *engine, pplx_message *message) {
    pplx_receive *receive = PPLX_CONTAINER(pplx_receive, message, message);
    pplx_peer *owner = receive->owner;
    pplx_message_head head;
    memcpy(&head, receive->buffer, sizeof head);
    pplx_peer *sender = sender_of(engine, &head);
    if (sender) consumed(sender);
    want_receive(receive);
    owner->messages_out--;
    if (owner->given_back) pplx_peer_give_back(owner);
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Half of what it may send. */
static bool owes_credits(const pplx_peer *peer) {
    const uint64_t owed = least(peer->consumed, peer->prefix) - peer->returned;
    return (peer->credit_again ||
            (owed && owed * 2 >= least(peer->engine->config.message_slots, peer->config.credits))) &&
           peer->state == PPLX_PEER_UP && !peer->messages_held;
}

static bool return_credits(pplx_peer *peer) {
    const pplx_engine *engine = peer->engine;
    pplx_link *link = message_link(peer);
    const pplx_remote_key *key = &peer->config.landing[link->remote_domain];
    const uint64_t read = least(peer->consumed, peer->prefix);
    if (peer->credits_inflight == 0) peer->credit_floor = read;
    if (read - peer->credit_floor > MOST_APART) return false; /* until those have come */
    pplx_work_request request = {
        .opcode = PPLX_WRITE_IMM,
        .imm = pplx_imm_encode(peer->config.credit_counter, (uint32_t)(read % PPLX_MAX_RUN + 1) * PPLX_EIGHTHS),
        .local_address = engine->landing.memory.address,
        .local_mr = engine->landing.handles[link->domain->index],
        .remote_address = key->base,
        .remote_key = key->key,
    };
    if (!pplx_link_stage(link, PPLX_SLOT_CREDIT, &request)) return false; /* next turn */
    peer->credits_inflight++;
    peer->returned = read;
    peer->credit_again = false;
    pplx_link_flush(link);
    return true;
}

void pplx_credits_returned(pplx_slot *slot, pplx_status status) {
    pplx_peer *peer = slot->link->peer;
    peer->credits_inflight--;
    if (status == PPLX_OK) return;
    peer->credit_again = true;
    pplx_peer_busy(peer);
    peer->retry_ns = peer->engine->now_ns + pplx_ms(RETRY_MS);
}

/* ---- the link is lost ---- */

void pplx_message_note(const pplx_peer *peer, pplx_rail_notice *notice) {
    const uint64_t slots = peer->engine->config.message_slots;
    memset(notice, 0, sizeof *notice);
    notice->prefix = peer->prefix;
    for (uint64_t i = 0; i < slots; i++) {
        const uint64_t place = (peer->prefix + i) % slots;
        if (peer->arrived[place / 64] >> place % 64 & 1) notice->arrived[i / 8] |= (uint8_t)(1 << i % 8);
    }
}

static bool has_arrived(const pplx_rail_notice *notice, uint64_t sequence) {
    if (sequence < notice->prefix) return true;
    const uint64_t i = sequence - notice->prefix;
    return i < PPLX_MAX_SLOTS && notice->arrived[i / 8] >> i % 8 & 1;
}

/* Both use the new link now. */
static void go_on(pplx_peer *peer) {
    for (uint64_t n = peer->acked; n < peer->next_sequence; n++) {
        pplx_sent *sent = sent_of(peer, n);
        const bool arrived = has_arrived(&peer->notice, n);
        if (sent->state == PPLX_SENT_WAITING && arrived) {
            change(peer, sent, PPLX_SENT_ARRIVED);
            settle(peer, sent, PPLX_OK);
        } else if (sent->state == PPLX_SENT_ARRIVED && !arrived) {
            change(peer, sent, PPLX_SENT_WAITING);
        }
    }
    peer->credit_again = true;
    peer->retry_ns = 0;
    pplx_peer_busy(peer);
}

static void renew_receives(pplx_peer *peer) {
    int32_t provider_error = 0;
    const pplx_status status = peer->unposted ? post_receives(peer, &provider_error) : PPLX_OK;
    if (status != PPLX_OK && status != PPLX_AGAIN)
        pplx_link_lose(message_link(peer), status, provider_error, "it takes no more receives");
}

/* The first link that neither side has lost. It is ours as soon as those before it are closed here, and the other
 * side's when they are closed there. Receives are posted now: the other side sends as soon as it is told, and a NIC
 * does not keep much for which there is none. */
void pplx_message_link_dropped(pplx_peer *peer) {
    uint32_t first = 0;
    bool held = false;
    while (first < peer->nlinks && (peer->links[first].reason.status != PPLX_OK || peer->links[first].closed_there)) {
        held |= !peer->links[first].down || !peer->links[first].closed_there;
        first++;
    }
    for (uint32_t i = 0; i < peer->engine->config.message_slots; i++)
        if (peer->receives[i].posted && peer->receives[i].slot.link->down) want_receive(&peer->receives[i]);
    if (first == peer->nlinks || (first == peer->message_link && held == peer->messages_held)) return;
    peer->message_link = first;
    peer->messages_held = held;
    renew_receives(peer);
    if (!held) go_on(peer);
}

/* ---- one turn ---- */

bool pplx_message_wants(const pplx_peer *peer) {
    return (peer->unposted && peer->state < PPLX_PEER_CLOSED) || owes_credits(peer) ||
           (peer->nwaiting && !peer->messages_held);
}

/* True if anything was posted. */
bool pplx_message_post(pplx_peer *peer) {
    bool any = false;
    if (pplx_message_wants(peer) && peer->engine->now_ns >= peer->retry_ns) {
        renew_receives(peer);
        /* After the receives: a credit says that one is there. */
        if (owes_credits(peer)) any |= return_credits(peer);
    }
    if (peer->sends_head || may_send_again(peer)) any |= post_sends(peer);
    return any;
}
