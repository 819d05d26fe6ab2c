/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A peer: its links, whether it lives, and its end.
 *
 *   NEW -> OPEN        endpoints and receives are there; our addresses go over the control channel
 *   -> CONNECTING      the peer's addresses are known; heartbeats go out on every link
 *   -> UP              every link has carried one in both directions
 *   -> CLOSED          goodbye, or lost; endpoints close, at once or when the provider lets go
 *   -> GONE            they are closed, and what had arrived by then is counted; PEER_CLOSE settles
 *
 * Liveness is ours, not the event loop's. A heartbeat is an immediate alone into a counter that the
 * peer keeps for us, its weight says on which link (1 + index). A link is lost when nothing has been
 * heard on it for heartbeat_timeout_ms, when its NIC says so, or when it takes nothing for
 * again_timeout_ms; a peer with its last link, or when the control channel says so
 * (PPLX_CALL_PEER_LOST). A transport error alone is only a suspicion, since one bad request breaks a
 * software provider's connection: the next heartbeat on that link decides, and if none gets through
 * for heartbeat_timeout_ms the link is lost. Losing never happens inside a poll: it is noted, and done
 * by pplx_peer_tick().
 *
 * A link that is lost while others live (drop_link):
 *   here    its endpoint is closed; the owner is told, and tells the other side's
 *   there   the same, if it hasn't noticed itself: PPLX_CALL_RAIL_LOST
 *   both    what the link had in flight and may be done twice goes over the others (parked, transfer.c); so
 *           do messages (message.c)
 * What can't be done twice fails with PPLX_RAIL_LOST, as a suspicion: another link has to show that the peer lives, and
 * both ends be closed.
 *
 * A turn costs nothing for a peer that has nothing to do: those with something to post are in the
 * engine's busy list, and ticks come at tick_ns, when the first of all peers' deadlines is due. */
#include <stdlib.h>
#include <sys/random.h>

#include "internal.h"

enum { PROBES_LOST = 3, RETRY_MS = 5, SOON_MS = 1 };

/* ---- owner ---- */

static bool are_routes(const pplx_engine *engine, uint32_t remote_domains, const pplx_route *routes, uint32_t n) {
    bool valid = n >= 1 && n <= PPLX_MAX_LINKS && remote_domains <= PPLX_MAX_DOMAINS;
    for (uint32_t i = 0; i < n && valid; i++)
        valid = routes[i].domain < engine->ndomains && routes[i].remote_domain < remote_domains;
    return valid;
}

static void open_route(pplx_peer *peer, uint32_t index, const pplx_route *route) {
    pplx_link *link = &peer->links[index];
    link->peer = peer;
    link->index = index;
    link->domain = &peer->engine->domains[route->domain];
    link->remote_domain = route->remote_domain;
    link->down_node.kind = PPLX_NODE_RAIL;
    link->weight = route->weight ? route->weight : 1;
    link->stats.domain = route->domain;
    link->stats.remote_domain = route->remote_domain;
    if (index == 0 || link->domain->max_message < peer->max_message) peer->max_message = link->domain->max_message;
}

pplx_peer *pplx_peer_new(pplx_engine *engine, void *cookie, uint32_t remote_domains, const pplx_route *routes,
                         uint32_t nroutes) {
    if (!are_routes(engine, remote_domains, routes, nroutes)) return NULL;
    uint32_t index = 0; /* an empty place, looked for from where the last one was found */
    for (uint32_t tried = 0;; tried++) {
        if (tried == PPLX_MAX_PEERS) return NULL;
        index = (engine->next_index + tried) % PPLX_MAX_PEERS;
        if (!atomic_load_explicit(&engine->by_index[index], memory_order_acquire)) break;
    }
    pplx_peer *peer = calloc(1, sizeof *peer);
    if (!peer) return NULL;
    peer->engine = engine;
    peer->cookie = cookie;
    peer->index = index;
    peer->lost_node.kind = PPLX_NODE_PEER;
    peer->nlinks = nroutes;
    peer->lost_domain = routes[0].domain;
    peer->config.domains = remote_domains;
    for (uint32_t i = 0; i < nroutes; i++) open_route(peer, i, &routes[i]);
    pplx_transfer_divide(peer);
    peer->max_piece = peer->max_message;
    peer->heartbeat.peer = peer->credit.peer = peer;
    peer->heartbeat.role = PPLX_COUNTER_HEARTBEAT;
    peer->credit.role = PPLX_COUNTER_CREDIT;
    if (getrandom(&peer->token, sizeof peer->token, 0) != (ssize_t)sizeof peer->token ||
        pplx_counter_open(engine, &peer->heartbeat) != PPLX_OK) {
        free(peer);
        return NULL;
    }
    if (pplx_counter_open(engine, &peer->credit) != PPLX_OK) {
        /* Nobody has its id: it may be forgotten by this thread too. */
        pplx_counter_forget(engine, &peer->heartbeat);
        pplx_counter_recycle(engine, peer->heartbeat.id);
        free(peer);
        return NULL;
    }
    peer->token = peer->token << 16 | index;
    engine->next_index = index + 1;
    /* release: pairs with the acquire in pplx_message_received(); the peer is complete */
    atomic_store_explicit(&engine->by_index[index], peer, memory_order_release);
    return peer;
}

size_t pplx_peer_links(const pplx_peer *peer) { return peer->nlinks; }
uint64_t pplx_peer_max_message(const pplx_peer *peer) { return peer->max_message; }

void pplx_peer_address(const pplx_peer *peer, size_t link, pplx_link_address *address) {
    *address = peer->links[link].local_address;
}

uint32_t pplx_peer_heartbeat_counter(const pplx_peer *peer) { return peer->heartbeat.id; }
uint32_t pplx_peer_credit_counter(const pplx_peer *peer) { return peer->credit.id; }
uint64_t pplx_peer_token(const pplx_peer *peer) { return peer->token; }
void *pplx_peer_cookie(const pplx_peer *peer) { return peer->cookie; }
pplx_peer *pplx_node_rail(pplx_node *node, uint32_t *index) {
    const pplx_link *link = PPLX_CONTAINER(pplx_link, down_node, node);
    *index = link->index;
    return link->peer;
}

void pplx_link_reason(const pplx_peer *peer, size_t link, pplx_error *error) { *error = peer->links[link].reason; }

void pplx_link_notice(const pplx_peer *peer, size_t link, pplx_rail_notice *notice) {
    *notice = peer->links[link].notice;
}

pplx_peer *pplx_node_peer(pplx_node *node) { return PPLX_CONTAINER(pplx_peer, lost_node, node); }
void pplx_peer_reason(const pplx_peer *peer, pplx_error *error) { *error = peer->reason; }
uint32_t pplx_peer_lost_domain(const pplx_peer *peer) { return peer->lost_domain; }
void pplx_peer_configure(pplx_peer *peer, const pplx_peer_config *config) { peer->config = *config; }

void pplx_link_read_stats(const pplx_peer *peer, size_t link, pplx_link_stats *stats) {
    const pplx_link_stats *from = &peer->links[link].stats;
    const uint64_t *words = (const uint64_t *)(const void *)from;
    size_t nwords = offsetof(pplx_link_stats, domain) / sizeof *words;
    for (size_t i = 0; i < nwords; i++) ((uint64_t *)(void *)stats)[i] = __atomic_load_n(&words[i], __ATOMIC_RELAXED);
    stats->domain = from->domain;
    stats->remote_domain = from->remote_domain;
}

/* ---- opening and connecting ---- */

static void join_engine(pplx_peer *peer) {
    peer->next = peer->engine->peers;
    if (peer->next) peer->next->prev = peer;
    peer->engine->peers = peer;
    pplx_tick_at(peer->engine, 0); /* it may be lost already */
}

static void leave_engine(pplx_peer *peer) {
    if (peer->prev)
        peer->prev->next = peer->next;
    else
        peer->engine->peers = peer->next;
    if (peer->next) peer->next->prev = peer->prev;
    pplx_peer **at = &peer->engine->busy;
    while (*at && *at != peer) at = &(*at)->next_busy;
    if (*at) *at = peer->next_busy;
}

void pplx_peer_run_open(pplx_peer *peer, pplx_request *request) {
    pplx_error *error = &request->error;
    pplx_status status = PPLX_OK;
    if (peer->state != PPLX_PEER_NEW) {
        pplx_fail(error, PPLX_INVALID, 0, "the peer was opened before");
        pplx_settle(peer->engine, request);
        return;
    }
    for (uint32_t i = 0; i < peer->nlinks && status == PPLX_OK; i++) status = pplx_link_open(&peer->links[i], error);
    if (status == PPLX_OK) status = pplx_messages_open(peer, error);
    error->status = status;
    peer->state = PPLX_PEER_OPEN;
    join_engine(peer); /* also after a failure: PEER_CLOSE undoes what was done */
    pplx_settle(peer->engine, request);
}

static pplx_status connect_links(pplx_peer *peer, pplx_error *error) {
    if (peer->state != PPLX_PEER_OPEN)
        return pplx_fail(error, peer->state >= PPLX_PEER_CLOSED ? PPLX_CLOSED : PPLX_INVALID, 0,
                         "the peer is closed, not open yet, or was connected before");
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        const pplx_link *link = &peer->links[i];
        const pplx_link_address *remote = &peer->config.links[i];
        if (!link->endpoint) return pplx_fail(error, PPLX_CLOSED, 0, "opening the peer has failed");
        pplx_status status = link->domain->provider->endpoint_connect(link->endpoint, remote->bytes, remote->nbytes,
                                                                      error);
        if (status != PPLX_OK) return status;
    }
    return PPLX_OK;
}

void pplx_peer_run_connect(pplx_peer *peer, pplx_request *request) {
    request->error.status = connect_links(peer, &request->error);
    if (request->error.status != PPLX_OK) {
        pplx_settle(peer->engine, request);
        return;
    }
    peer->state = PPLX_PEER_CONNECTING;
    peer->connecting = request; /* pplx_peer_tick() goes on */
    pplx_tick_at(peer->engine, 0);
}

static uint32_t all_links(const pplx_peer *peer) { return (1u << peer->nlinks) - 1; }

static bool connected(pplx_peer *peer) {
    if (peer->heard_links != all_links(peer) || peer->acked_links != all_links(peer)) return false;
    peer->state = PPLX_PEER_UP;
    for (uint32_t i = 0; i < peer->nlinks; i++) peer->links[i].heard_ns = peer->engine->now_ns;
    pplx_request *request = peer->connecting;
    peer->connecting = NULL;
    if (request) pplx_settle(peer->engine, request);
    return true;
}

/* ---- heartbeats ---- */

static void send_heartbeat(pplx_link *link) {
    pplx_peer *peer = link->peer;
    const pplx_engine *engine = peer->engine;
    const pplx_remote_key *key = &peer->config.landing[link->remote_domain];
    pplx_work_request request = {
        .opcode = PPLX_WRITE_IMM,
        .imm = pplx_imm_encode(peer->config.heartbeat_counter, (link->index + 1) * PPLX_EIGHTHS),
        .local_address = engine->landing.memory.address,
        .local_mr = engine->landing.handles[link->domain->index],
        .remote_address = key->base,
        .remote_key = key->key,
    };
    uint32_t interval = engine->config.heartbeat_interval_ms; /* 0: only connecting and suspicion need them */
    link->heartbeat_ns = engine->now_ns + pplx_ms(interval ? interval : RETRY_MS);
    if (pplx_link_stage(link, PPLX_SLOT_HEARTBEAT, &request)) {
        link->heartbeat_inflight = true;
        pplx_link_flush(link);
    } else {
        link->heartbeat_ns = engine->now_ns + pplx_ms(SOON_MS); /* the batch is full */
    }
}

/* PPLX_OK: it lives. That of other links is not known yet keeps nobody else waiting: where some fail again and again
 * there is always one. */
static void judge(pplx_peer *peer, pplx_status verdict) {
    if (verdict != PPLX_OK) peer->suspect_links = 0;
    peer->suspected = peer->suspect_links != 0;
    pplx_transfer_judge(peer, verdict);
    pplx_message_judge(peer, verdict);
}

static bool lives(const pplx_link *link) { return link->endpoint && link->reason.status == PPLX_OK; }

static uint32_t living_links(const pplx_peer *peer) {
    uint32_t links = 0;
    for (uint32_t i = 0; i < peer->nlinks; i++) links |= (uint32_t)lives(&peer->links[i]) << i;
    return links;
}

/* Who has to answer for what failed on these: they do. For those that are lost another one does. */
static uint32_t links_to_ask(const pplx_peer *peer, uint32_t links) {
    const uint32_t living = living_links(peer);
    return links & living ? links & living : living & -living;
}

/* Something failed that may mean that the peer is dead: ask it now. */
void pplx_peer_suspect(pplx_peer *peer, uint32_t links, uint32_t domain, int32_t provider_error) {
    const uint32_t asked = links_to_ask(peer, links) & ~peer->suspect_links;
    if (peer->suspected && !asked) return;
    const uint64_t now = peer->engine->now_ns;
    if (!peer->suspected) {
        peer->suspected = true;
        peer->suspect_domain = domain;
        peer->suspect_error = provider_error;
    }
    peer->suspect_links |= asked;
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        if (!(asked >> i & 1)) continue;
        peer->links[i].heartbeat_ns = 0;
        peer->links[i].probe_failures = 0;
        peer->links[i].suspect_ns = now;
        peer->links[i].answer_by_ns = now + pplx_ms(peer->engine->config.heartbeat_timeout_ms);
    }
    pplx_tick_at(peer->engine, 0);
}

static void answered(pplx_link *link, uint64_t asked_ns) {
    pplx_peer *peer = link->peer;
    const uint32_t bit = 1u << link->index;
    if (!(peer->suspect_links & bit) || asked_ns < link->suspect_ns) return;
    peer->suspect_links &= ~bit;
    judge(peer, PPLX_OK);
}

/* It is lost, and one of its ends may be open: what failed there may yet be done. */
static bool may_come_late(const pplx_link *link) {
    return link->reason.status != PPLX_OK && !(link->down && link->closed_there) &&
           link->peer->engine->now_ns <= link->parked_until;
}

/* Whoever is told that it failed does it again, over another link: the first one may not come after that. */
bool pplx_peer_has_answered(const pplx_peer *peer, uint32_t links) {
    for (uint32_t i = 0; i < peer->nlinks; i++)
        if (links >> i & 1 && may_come_late(&peer->links[i])) return false;
    return !(links_to_ask(peer, links) & peer->suspect_links);
}

void pplx_heartbeat_completed(pplx_slot *slot, pplx_status status, int32_t provider_error) {
    pplx_link *link = slot->link;
    pplx_peer *peer = link->peer;
    link->heartbeat_inflight = false;
    if (status == PPLX_OK) {
        peer->acked_links |= 1u << link->index;
        link->probe_failures = 0;
        answered(link, slot->posted_ns);
        pplx_tick_at(peer->engine, peer->state == PPLX_PEER_CONNECTING ? 0 : link->heartbeat_ns);
        return;
    }
    link->heartbeat_ns = peer->engine->now_ns + pplx_ms(RETRY_MS);
    pplx_tick_at(peer->engine, link->heartbeat_ns);
    if (peer->state != PPLX_PEER_UP) return; /* while connecting the other side may not be ready */
    if (++link->probe_failures >= PROBES_LOST) pplx_link_lose(link, status, provider_error, "its NIC does not answer");
}

void pplx_peer_heard(pplx_peer *peer, uint32_t link) {
    if (link >= peer->nlinks) return; /* hostile */
    peer->links[link].heard_ns = peer->engine->now_ns;
    peer->heard_links |= 1u << link;
    if (peer->state == PPLX_PEER_CONNECTING) pplx_tick_at(peer->engine, 0);
}

/* ---- the end ---- */

/* Note it; pplx_peer_tick() does it, outside of any poll. The first reason stays. */
void pplx_peer_lose(pplx_peer *peer, uint32_t domain, pplx_status provider_status, int32_t provider_error,
                    const char *why) {
    if (peer->state >= PPLX_PEER_CLOSED || peer->reason.status != PPLX_OK) return;
    if (provider_status == PPLX_OK)
        pplx_fail(&peer->reason, PPLX_PEER_LOST, provider_error, "%s", why);
    else
        pplx_fail(&peer->reason, PPLX_PEER_LOST, provider_error, "%s (%s)", why,
                  pplx_status_text((int)provider_status));
    peer->lost_domain = domain;
    pplx_tick_at(peer->engine, 0);
}

/* The last one takes the peer along. Done by drop_link() in the tick, like the loss of a peer. */
void pplx_link_lose(pplx_link *link, pplx_status provider_status, int32_t provider_error, const char *why) {
    pplx_peer *peer = link->peer;
    const uint32_t others = living_links(peer) & ~(1u << link->index);
    if (link->reason.status != PPLX_OK) return;
    if (peer->state != PPLX_PEER_UP || !others) {
        pplx_peer_lose(peer, link->domain->index, provider_status, provider_error, why);
        return;
    }
    if (provider_status == PPLX_OK)
        pplx_fail(&link->reason, PPLX_RAIL_LOST, provider_error, "%s", why);
    else
        pplx_fail(&link->reason, PPLX_RAIL_LOST, provider_error, "%s (%s)", why,
                  pplx_status_text((int)provider_status));
    link->parked_until = peer->engine->now_ns + pplx_ms(peer->engine->config.heartbeat_timeout_ms);
    link->room = 0; /* those that are parked have left its flight, and not its slots: there may be none */
    pplx_tick_at(peer->engine, 0);
}

/* End all that is queued or in flight. True when every endpoint is closed. */
static bool close_links(pplx_peer *peer, pplx_status status) {
    bool closed = true;
    for (uint32_t i = 0; i < peer->nlinks; i++) closed &= pplx_link_close(&peer->links[i], status) != PPLX_UNRELEASED;
    return closed;
}

static void end_requests(pplx_peer *peer, pplx_status status) {
    peer->state = PPLX_PEER_CLOSED;
    judge(peer, status);
    pplx_transfer_flush(peer, status);
    pplx_message_flush(peer, status);
    if (!peer->connecting) return;
    pplx_request *request = peer->connecting;
    peer->connecting = NULL;
    if (status == PPLX_PEER_LOST)
        request->error = peer->reason;
    else
        pplx_fail(&request->error, status, 0, "closed while connecting");
    pplx_settle(peer->engine, request);
}

/* The links around it go on. What it had in flight is parked, or fails when another one shows that the peer lives. */
static void drop_link(pplx_link *link) {
    pplx_peer *peer = link->peer;
    pplx_drain(peer->engine); /* what it has finished or brought before counts as such */
    const pplx_status closed = pplx_link_close(link, PPLX_RAIL_LOST);
    const uint32_t bit = 1u << link->index;
    if (peer->suspect_links & bit) {
        peer->suspect_links &= ~bit;
        pplx_peer_suspect(peer, bit, link->domain->index, link->reason.provider_error);
    }
    if (closed == PPLX_UNRELEASED) return;
    pplx_drain(peer->engine); /* nothing more comes on it: what has, the other side is told */
    link->source = NULL;      /* another peer's endpoint may come to lie there, and would count as this one's */
    pplx_message_note(peer, &link->notice);
    link->notice.link = link->index;
    memcpy(link->notice.why, link->reason.text, sizeof link->notice.why);
    link->down = true;
    pplx_message_link_dropped(peer);
    pplx_finish(peer->engine, &link->down_node);
    if (link->closed_there) pplx_transfer_unpark(link, true);
}

static bool drop_links(pplx_peer *peer) {
    bool any = false, lost = false;
    for (uint32_t i = 0; i < peer->nlinks && peer->reason.status == PPLX_OK; i++) {
        pplx_link *link = &peer->links[i];
        if (link->reason.status == PPLX_OK) continue;
        lost = true;
        if (!link->down) {
            drop_link(link);
            any |= link->down;
        }
        if (link->parked && peer->engine->now_ns > link->parked_until) pplx_transfer_unpark(link, false);
    }
    if (lost && peer->suspects) pplx_transfer_judge(peer, PPLX_OK); /* what waited for both ends to be closed */
    return any;
}

static void lose(pplx_peer *peer) {
    pplx_drain(peer->engine); /* what it has finished or sent before counts as such */
    end_requests(peer, PPLX_PEER_LOST);
    close_links(peer, PPLX_PEER_LOST);
    pplx_drain(peer->engine); /* what it has written counts, before its waits end */
    pplx_finish(peer->engine, &peer->lost_node);
}

/* The last thing done for a peer: then the owner may give it back. */
static bool finish_closing(pplx_peer *peer) {
    pplx_status status = peer->reason.status == PPLX_OK ? PPLX_FLUSHED : PPLX_PEER_LOST;
    if (!close_links(peer, status)) return false;
    pplx_engine *engine = peer->engine;
    pplx_drain(engine); /* afterwards no immediate of this peer comes any more: ids may be used again */
    pplx_messages_close(peer);
    pplx_counter_forget(engine, &peer->heartbeat);
    pplx_counter_forget(engine, &peer->credit);
    leave_engine(peer);
    peer->state = PPLX_PEER_GONE;
    /* release: pairs with the acquire in pplx_peer_new(): the place is empty */
    atomic_store_explicit(&engine->by_index[peer->index], NULL, memory_order_release);
    pplx_request *request = peer->closing;
    peer->closing = NULL;
    pplx_settle(engine, request);
    return true;
}

void pplx_peer_run_close(pplx_peer *peer, pplx_request *request) {
    if (peer->closing || peer->state == PPLX_PEER_GONE) {
        pplx_fail(&request->error, PPLX_INVALID, 0, "the peer was closed before");
        pplx_settle(peer->engine, request);
        return;
    }
    peer->closing = request;
    if (peer->state == PPLX_PEER_NEW) join_engine(peer); /* never opened: the same way out */
    pplx_drain(peer->engine); /* messages that are here are not dropped with their endpoint */
    if (peer->state != PPLX_PEER_CLOSED) end_requests(peer, PPLX_FLUSHED);
    if (!finish_closing(peer)) pplx_tick_at(peer->engine, 0);
}

void pplx_peer_run_lost(pplx_peer *peer, pplx_request *request) {
    const char *why = request->payload ? request->payload : "its owner says so";
    pplx_peer_lose(peer, peer->lost_domain, PPLX_OK, 0, why);
    pplx_settle(peer->engine, request);
}

void pplx_peer_run_rail_lost(pplx_peer *peer, pplx_request *request) {
    const pplx_rail_notice *notice = request->payload;
    if (notice->link < peer->nlinks && peer->state == PPLX_PEER_UP) {
        pplx_link *link = &peer->links[notice->link];
        link->closed_there = true;
        peer->notice = *notice;
        pplx_link_lose(link, PPLX_OK, 0, notice->why);
        pplx_tick_at(peer->engine, 0);
        if (link->down) {
            pplx_transfer_unpark(link, true);
            pplx_message_link_dropped(peer);
        }
    }
    pplx_settle(peer->engine, request);
}

void pplx_peer_give_back(pplx_peer *peer) {
    peer->given_back = true;
    if (peer->messages_out) return; /* pplx_message_repost() comes back to it */
    free(peer->receives);
    free(peer->sent);
    free(peer->arrived);
    free(peer->buffers);
    free(peer);
}

/* ---- posting ---- */

bool pplx_peer_has_work(const pplx_peer *peer) {
    bool any = peer->queue_head || peer->resends || peer->sends_head || pplx_message_wants(peer);
    for (uint32_t i = 0; i < peer->nlinks && !any; i++) any = peer->links[i].nstaged != 0;
    return any;
}

/* One turn for a peer: true if anything was posted. */
bool pplx_peer_post(pplx_peer *peer) {
    bool any = false;
    if (peer->sends_head || pplx_message_wants(peer)) any |= pplx_message_post(peer);
    if (peer->queue_head || peer->resends) return any | pplx_transfer_post(peer);
    for (uint32_t i = 0; i < peer->nlinks; i++)
        if (peer->links[i].nstaged) any |= pplx_link_flush(&peer->links[i]) != 0;
    return any;
}

/* ---- time ---- */

/* An error that came before its silence says more than that it is silent. */
static const char *why_silent(const pplx_peer *peer) {
    return peer->suspected ? "after an error it did not answer in time" : "no heartbeat came in time";
}

static void lose_silent(pplx_link *link) {
    const pplx_peer *peer = link->peer;
    pplx_link_lose(link, PPLX_OK, peer->suspected ? peer->suspect_error : 0, why_silent(peer));
}

/* A peer that stands still is heard on no link, and one of them is the first to be overdue. That says nothing of the
 * link: it is lost if another one was heard long after it was. Else it is the peer that is silent, or it will be in a
 * moment. */
static void check_heartbeats(pplx_peer *peer) {
    const uint64_t now = peer->engine->now_ns, limit = pplx_ms(peer->engine->config.heartbeat_timeout_ms);
    const pplx_link *last = NULL;
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        const pplx_link *link = &peer->links[i];
        if (lives(link) && (!last || link->heard_ns > last->heard_ns)) last = link;
    }
    if (!last || now <= last->heard_ns) return;
    if (now - last->heard_ns > limit)
        pplx_peer_lose(peer, last->domain->index, PPLX_OK, peer->suspected ? peer->suspect_error : 0, why_silent(peer));
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        pplx_link *link = &peer->links[i];
        if (lives(link) && now > link->heard_ns && now - link->heard_ns > limit &&
            last->heard_ns - link->heard_ns > limit / 2)
            lose_silent(link);
    }
}

static void check_silence(pplx_peer *peer) {
    const pplx_engine *engine = peer->engine;
    uint64_t now = engine->now_ns;
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        pplx_link *link = &peer->links[i];
        if (!lives(link)) continue;
        /* Also where no heartbeats are asked for: what waits for the verdict must settle. */
        if (peer->suspect_links >> i & 1 && now > link->answer_by_ns) lose_silent(link);
        if (link->again_ns && now - link->again_ns > pplx_ms(engine->config.again_timeout_ms))
            pplx_link_lose(link, PPLX_OK, 0, "it takes no more work requests");
    }
    if (engine->config.heartbeat_interval_ms) check_heartbeats(peer);
}

static bool wants_heartbeats(const pplx_peer *peer) {
    return peer->state == PPLX_PEER_CONNECTING ||
           (peer->state == PPLX_PEER_UP && (peer->engine->config.heartbeat_interval_ms || peer->suspected));
}

/* True: something was done that makes another turn worth while. */
bool pplx_peer_tick(pplx_peer *peer) {
    if (peer->state == PPLX_PEER_CLOSED) return peer->closing && finish_closing(peer);
    if (peer->reason.status != PPLX_OK) {
        lose(peer);
        return true;
    }
    if (peer->state == PPLX_PEER_CONNECTING && connected(peer)) return true;
    for (uint32_t i = 0; i < peer->nlinks && wants_heartbeats(peer); i++) {
        pplx_link *link = &peer->links[i];
        if (lives(link) && !link->heartbeat_inflight && peer->engine->now_ns >= link->heartbeat_ns)
            send_heartbeat(link);
    }
    if (peer->state == PPLX_PEER_UP) check_silence(peer);
    return drop_links(peer) || peer->reason.status != PPLX_OK;
}

/* When the proxy may sleep till, as far as this peer goes. What a provider's wait fd tells is not
 * in here; what was refused for now, or failed and is tried again, is. */
uint64_t pplx_peer_deadline(const pplx_peer *peer) {
    const pplx_engine_config *config = &peer->engine->config;
    const uint64_t soon = peer->engine->now_ns + pplx_ms(SOON_MS);
    if (peer->state == PPLX_PEER_CLOSED) return peer->closing ? soon : UINT64_MAX;
    if (peer->reason.status != PPLX_OK) return 0;
    if (peer->state == PPLX_PEER_CONNECTING || pplx_message_wants(peer)) return soon;
    uint64_t deadline = UINT64_MAX;
    for (uint32_t i = 0; i < peer->nlinks; i++) {
        const pplx_link *link = &peer->links[i];
        if (link->nstaged) return soon;
        if (link->fading) return soon;
        if ((link->parked || (peer->suspects && may_come_late(link))) && link->parked_until < deadline)
            deadline = link->parked_until + 1;
        if (peer->state != PPLX_PEER_UP || !lives(link)) continue;
        if (peer->suspect_links >> i & 1 && link->answer_by_ns < deadline) deadline = link->answer_by_ns + 1;
        uint64_t silence = link->heard_ns + pplx_ms(config->heartbeat_timeout_ms) + 1;
        /* One that is overdue waits for another one's word, or silence. */
        if (config->heartbeat_interval_ms && silence > peer->engine->now_ns && silence < deadline) deadline = silence;
        if (wants_heartbeats(peer) && !link->heartbeat_inflight && link->heartbeat_ns < deadline)
            deadline = link->heartbeat_ns;
    }
    return deadline;
}
