/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Two-sided messages, on the first link of a peer.
 *
 * Each side keeps message_slots receives posted for the other and says so in its credits. A send
 * goes out when there is a credit for it, so no message ever waits in a fabric for a receive, where
 * it would hold up the writes behind it. When the owner gives a receive back it is posted again,
 * and the credit returns as an immediate alone, several at a time, its weight is how many.
 *
 * One registered block per peer: message_slots buffers to receive, then as many to send from.
 * A message names its receiver-side peer by a token in its head, since on a fabric without
 * connections any of our receives may take it. Proxy thread. */
#include <stdlib.h>

#include "internal.h"

enum { RETRY_MS = 5 };

static uint64_t buffer_nbytes(const pplx_engine *engine) {
    return (sizeof(pplx_message_head) + engine->config.message_nbytes + 63) & ~UINT64_C(63);
}

static uint8_t *send_buffer(const pplx_peer *peer, uint32_t i) {
    return peer->buffers + (peer->engine->config.message_slots + i) * buffer_nbytes(peer->engine);
}

/* Post what waits for it; what the provider says PPLX_AGAIN to goes on waiting. */
static pplx_status post_receives(pplx_peer *peer, int32_t *provider_error) {
    pplx_link *link = &peer->links[0];
    pplx_status status = PPLX_OK;
    while (peer->unposted && status == PPLX_OK) {
        pplx_work_request requests[PPLX_BATCH];
        size_t count = 0, posted = 0;
        for (pplx_receive *r = peer->unposted; r && count < PPLX_BATCH; r = r->next)
            requests[count++] = (pplx_work_request){
                .op = &r->slot.op,
                .opcode = PPLX_RECV,
                .local_address = (uintptr_t)r->buffer,
                .nbytes = buffer_nbytes(peer->engine),
                .local_mr = peer->buffers_mr.handles[link->domain->index],
            };
        status = pplx_link_receive(link, requests, count, &posted, provider_error);
        while (posted--) peer->unposted = peer->unposted->next;
    }
    return status;
}

static void want_receive(pplx_receive *receive) {
    pplx_peer *owner = receive->owner;
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
    peer->free_sends = calloc(slots, sizeof *peer->free_sends);
    if (!peer->receives || !peer->free_sends || posix_memalign((void **)&peer->buffers, 4096, nbytes)) {
        peer->buffers = NULL;
        return pplx_fail(error, PPLX_NO_MEMORY, 0, "no memory for %u messages", slots);
    }
    peer->buffers_mr.memory = (pplx_memory){
        .kind = PPLX_MEMORY_HOST, .device = -1, .address = (uintptr_t)peer->buffers, .nbytes = nbytes, .fd = -1};
    pplx_status status = pplx_mr_open_all(engine, &peer->buffers_mr, error);
    if (status != PPLX_OK) return status;
    for (uint32_t i = slots; i-- > 0;) {
        pplx_receive *receive = &peer->receives[i];
        receive->slot.link = &peer->links[0];
        receive->slot.opcode = PPLX_RECV;
        receive->slot.role = PPLX_SLOT_RECEIVE;
        receive->owner = peer;
        receive->buffer = peer->buffers + i * buffer_nbytes(engine);
        receive->message.node.kind = PPLX_NODE_MESSAGE;
        want_receive(receive);
        peer->free_sends[peer->nfree_sends++] = i;
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

static bool post_sends(pplx_peer *peer) {
    pplx_link *link = &peer->links[0];
    bool any = false;
    while (peer->sends_head && peer->credits && peer->nfree_sends) {
        pplx_request *send = peer->sends_head;
        uint32_t i = peer->free_sends[peer->nfree_sends - 1];
        uint8_t *buffer = send_buffer(peer, i);
        pplx_message_head head = {.token = peer->config.token, .nbytes = send->nbytes};
        pplx_work_request request = {
            .opcode = PPLX_SEND,
            .local_address = (uintptr_t)buffer,
            .nbytes = sizeof head + send->nbytes,
            .local_mr = peer->buffers_mr.handles[link->domain->index],
        };
        if (link->nstaged == PPLX_BATCH) pplx_link_flush(link);
        if (!pplx_link_has_room(link, request.nbytes)) break;
        memcpy(buffer, &head, sizeof head);
        if (send->nbytes) memcpy(buffer + sizeof head, send->payload, send->nbytes);
        pplx_slot *slot = pplx_link_stage(link, PPLX_SLOT_SEND, &request);
        peer->nfree_sends--;
        peer->credits--;
        peer->sends_head = next_send(send);
        if (!peer->sends_head) peer->sends_tail = NULL;
        slot->request = send;
        slot->eighths = i; /* which buffer; a message counts nothing */
        any = true;
    }
    if (any) pplx_link_flush(link);
    return any;
}

void pplx_message_sent(pplx_slot *slot, pplx_status status, int32_t provider_error) {
    pplx_peer *peer = slot->link->peer;
    pplx_request *request = slot->request;
    if (!request) return; /* orphaned (link.c): it has settled before */
    peer->free_sends[peer->nfree_sends++] = slot->eighths;
    /* Perhaps it arrived all the same, then this credit is one too many, and a later message waits
     * in the fabric for a receive: better than one too few for good. */
    if (status != PPLX_OK) pplx_message_credited(peer, 1);
    request->error.status = status;
    request->error.provider_error = provider_error;
    if (pplx_suspicious(status) && peer->state == PPLX_PEER_UP) {
        pplx_peer_suspect(peer, 1u << slot->link->index, slot->link->domain->index, provider_error);
        request->node.next = peer->suspect_sends ? &peer->suspect_sends->node : NULL;
        peer->suspect_sends = request;
        return;
    }
    pplx_settle(peer->engine, request);
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
}

/* The peer's credits are at most the slots it told us: a hostile one gains nothing by more. */
void pplx_message_credited(pplx_peer *peer, uint32_t credits) {
    uint32_t room = peer->config.credits - peer->credits;
    peer->credits += credits < room ? credits : room;
}

/* ---- receiving ---- */

/* Who sent it; NULL: malformed, or nobody we know. */
static pplx_peer *sender_of(pplx_engine *engine, const pplx_message_head *head) {
    /* acquire: pairs with the release in pplx_peer_new() */
    pplx_peer *sender = atomic_load_explicit(&engine->by_index[head->token % PPLX_MAX_PEERS], memory_order_acquire);
    return sender && sender->token == head->token ? sender : NULL;
}

static bool deliver(pplx_receive *receive, uint64_t nbytes) {
    pplx_engine *engine = receive->owner->engine;
    pplx_message_head head;
    if (nbytes < sizeof head) return false;
    memcpy(&head, receive->buffer, sizeof head);
    pplx_peer *sender = sender_of(engine, &head);
    if (!sender || head.nbytes != nbytes - sizeof head) return false;
    receive->message.peer = sender;
    receive->message.data = receive->buffer + sizeof head;
    receive->message.nbytes = head.nbytes;
    receive->owner->messages_out++;
    pplx_finish(engine, &receive->message.node);
    return true;
}

void pplx_message_received(pplx_slot *slot, pplx_status status, uint64_t nbytes) {
    pplx_receive *receive = PPLX_CONTAINER(pplx_receive, slot, slot);
    pplx_peer *owner = receive->owner;
    if (status == PPLX_OK && deliver(receive, nbytes)) return;
    if (status == PPLX_OK || status == PPLX_TRUNCATED)
        PPLX_COUNT(owner->engine->stats.stray_messages, 1);
    else
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
    if (sender) {
        sender->credits_owed++;
        pplx_peer_busy(sender);
    }
    want_receive(receive);
    owner->messages_out--;
    if (owner->given_back) pplx_peer_give_back(owner);
}

static bool owes_credits(const pplx_peer *peer) {
    return peer->credits_owed * 2 >= peer->engine->config.message_slots && peer->state == PPLX_PEER_UP;
}

static bool return_credits(pplx_peer *peer) {
    const pplx_engine *engine = peer->engine;
    pplx_link *link = &peer->links[0];
    const pplx_remote_key *key = &peer->config.landing[link->remote_domain];
    uint32_t credits = peer->credits_owed < PPLX_MAX_RUN ? peer->credits_owed : PPLX_MAX_RUN;
    pplx_work_request request = {
        .opcode = PPLX_WRITE_IMM,
        .imm = pplx_imm_encode(peer->config.credit_counter, credits * PPLX_EIGHTHS),
        .local_address = engine->landing.memory.address,
        .local_mr = engine->landing.handles[link->domain->index],
        .remote_address = key->base,
        .remote_key = key->key,
    };
    pplx_slot *slot = pplx_link_stage(link, PPLX_SLOT_CREDIT, &request);
    if (!slot) return false; /* next turn */
    slot->eighths = credits * PPLX_EIGHTHS;
    peer->credits_owed -= credits;
    pplx_link_flush(link);
    return true;
}

void pplx_credits_returned(pplx_slot *slot, pplx_status status) {
    pplx_peer *peer = slot->link->peer;
    if (status == PPLX_OK) return;
    peer->credits_owed += slot->eighths / PPLX_EIGHTHS;
    pplx_peer_busy(peer);
    peer->retry_ns = peer->engine->now_ns + pplx_ms(RETRY_MS);
}

/* ---- one turn ---- */

bool pplx_message_wants(const pplx_peer *peer) {
    return (peer->unposted && peer->state < PPLX_PEER_CLOSED) || owes_credits(peer);
}

/* True if anything was posted. */
bool pplx_message_post(pplx_peer *peer) {
    bool any = false;
    if (pplx_message_wants(peer) && peer->engine->now_ns >= peer->retry_ns) {
        pplx_status status = PPLX_OK;
        int32_t provider_error = 0;
        if (peer->unposted) status = post_receives(peer, &provider_error);
        if (status != PPLX_OK && status != PPLX_AGAIN)
            pplx_peer_lose(peer, peer->links[0].domain->index, status, provider_error,
                           "its link takes no more receives");
        /* After the receives: a credit says that one is there. */
        if (owes_credits(peer)) any |= return_credits(peer);
    }
    if (peer->sends_head) any |= post_sends(peer);
    return any;
}
