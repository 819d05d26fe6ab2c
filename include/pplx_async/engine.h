/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The engine: a proxy thread that drives providers, a ring into it, a done list out of it.
 *
 *   owner thread                          proxy thread
 *   pplx_submit(request)  -- ring -->     take, cut into work requests, post, poll
 *   pplx_reap()           <- done list -- request settled | counter moved | message | peer lost
 *   pplx_arm(), epoll     <- eventfd ---- one ring per sleep of the owner
 *
 * The owner's turn, in this order: pplx_clear() if the fd woke it, pplx_reap(), work, pplx_arm();
 * if that says false, from the reap on once more; then it may block on the fd.
 *
 * Memory: the caller allocates requests, memory regions and counters, and keeps each alive until
 * the core has handed it back through the done list. The core never allocates for a transfer.
 *
 * Threads: "owner" is the one thread that reaps (the event loop's). Every function is owner-only
 * unless its comment says otherwise. Fields say who writes them. */
#ifndef PPLX_ASYNC_ENGINE_H
#define PPLX_ASYNC_ENGINE_H

#include <stdbool.h>

#include "pplx_async/provider.h"
#include "pplx_async/types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pplx_engine pplx_engine;
typedef struct pplx_peer pplx_peer;
typedef struct pplx_request pplx_request;

/* Link in an intrusive list; the first member of everything that crosses between the threads. */
typedef struct pplx_node {
    struct pplx_node *next;
    uint32_t kind; /* enum pplx_node_kind */
} pplx_node;

enum pplx_node_kind {
    PPLX_NODE_REQUEST = 0, /* settled, released, or both: see pplx_request.state */
    PPLX_NODE_COUNTER = 1, /* reached its notify_at */
    PPLX_NODE_MESSAGE = 2, /* a peer's message; give it back with pplx_message_release */
    PPLX_NODE_PEER = 3,    /* pplx_node_peer() is lost; comes once */
    PPLX_NODE_CANCEL = 4,  /* owner to proxy only */
    PPLX_NODE_RAIL = 5,    /* pplx_node_rail() is lost, the peer is not; comes once for each link */
    PPLX_NODE_WORD = 6,    /* a word, see words.h: it has counted, failed, or retired */
    PPLX_NODE_WORD_END = 7,  /* owner to proxy only */
    PPLX_NODE_WORD_CLOSE = 8 /* owner to proxy only */
};

/* ---- engine ---------------------------------------------------------------------------------- */

typedef struct pplx_engine_config {
    uint32_t ring_entries;          /* power of two; what does not fit waits in an ordered list */
    uint32_t spin_us;               /* spin so long after the last activity at most; less where that brings nothing */
    uint32_t poll_interval_us;      /* between polls while idle, for providers without a wait fd */
    uint32_t heartbeat_interval_ms; /* 0: none */
    uint32_t heartbeat_timeout_ms;  /* silence that makes a peer lost */
    uint32_t again_timeout_ms;      /* PPLX_AGAIN without progress that makes a peer lost */
    uint64_t shard_nbytes;          /* cut writes of at least this size over the links of the peer */
    uint32_t message_nbytes;        /* largest two-sided message */
    uint32_t message_slots;         /* receives kept posted per peer, and sends in flight */
    int32_t cpu;                    /* pin the proxy thread to it; -1: don't */
    uint32_t owner_drives;          /* the owner listens to the NICs too, see pplx_engine_wait_fd() */
    uint32_t rail_failover;         /* what a lost link had in flight goes over others, where that is safe */
    const char *libcuda;            /* its path, which is copied; NULL: as the system finds it */
} pplx_engine_config;

pplx_status pplx_engine_open(const pplx_engine_config *config, pplx_engine **engine, pplx_error *error);

/* Add a NIC; before pplx_engine_start(). Its index counts up from 0. */
pplx_status pplx_engine_add_domain(pplx_engine *engine, const pplx_provider *provider, const char *device,
                                   const pplx_option *options, size_t noptions, pplx_error *error);
pplx_status pplx_engine_start(pplx_engine *engine, pplx_error *error);

/* Stop and join the thread; nothing is freed, for a NIC may still know the memory. The last resort at
 * the end of a process. May be called twice. */
void pplx_engine_stop(pplx_engine *engine);

/* Stop and join the thread, close domains and free everything. All peers and regions are closed
 * before. May block for one turn of the proxy. */
void pplx_engine_close(pplx_engine *engine);

size_t pplx_engine_domains(const pplx_engine *engine);
void pplx_engine_caps(const pplx_engine *engine, size_t domain, pplx_caps *caps);

/* Where immediates without data land, for the peers: one key per domain. */
void pplx_engine_landing(const pplx_engine *engine, size_t domain, pplx_remote_key *key);

/* The done list. fd: an eventfd to watch; it is rung once after pplx_arm() returned true. */
int pplx_engine_fd(const pplx_engine *engine);
void pplx_clear(pplx_engine *engine);      /* when the fd is readable, before reaping: it no longer is */
pplx_node *pplx_reap(pplx_engine *engine); /* everything since the last call, oldest first */
bool pplx_arm(pplx_engine *engine);        /* false: something came meanwhile, reap again */

/* Counts of the whole engine, any thread. */
typedef struct pplx_engine_stats {
    uint64_t turns;          /* of the proxy's loop */
    uint64_t sleeps;         /* times it blocked */
    uint64_t spin_ns;        /* no count: how long it now turns in vain before it blocks; adapts */
    uint64_t wakes;          /* times it rang the owner */
    uint64_t requests;       /* taken from the ring */
    uint64_t overflowed;     /* that found the ring full and went through the pending list */
    uint64_t stray_imms;     /* immediates for no counter, or for one that is not the sender's to count */
    uint64_t stray_messages; /* messages dropped: malformed or from nobody we know */
    uint64_t registrations;  /* so far, with the engine's own buffers */
    uint64_t register_ns;    /* what they cost, on all NICs */
    uint64_t words;          /* no count: armed now; the proxy does not sleep while there are any */
} pplx_engine_stats;
void pplx_engine_read_stats(const pplx_engine *engine, pplx_engine_stats *stats);

/* ---- memory ---------------------------------------------------------------------------------- */

/* Memory registered with every domain of the engine. */
typedef struct pplx_mr {
    pplx_memory memory;                          /* owner, before the call */
    uint32_t access;                             /* owner, before the call: enum pplx_access */
    uint32_t domains;                            /* proxy: how many of the arrays are valid */
    pplx_provider_mr *handles[PPLX_MAX_DOMAINS]; /* proxy */
    pplx_remote_key keys[PPLX_MAX_DOMAINS];      /* proxy; for the descriptor */
    uint64_t register_ns;                        /* proxy: what registering cost */
} pplx_mr;

/* Memory of a peer, as its descriptor tells. */
typedef struct pplx_remote {
    pplx_peer *peer;
    uint64_t nbytes;
    uint32_t access;
    uint32_t domains;                       /* of the peer's engine */
    pplx_remote_key keys[PPLX_MAX_DOMAINS]; /* by the peer's domain */
} pplx_remote;

/* Whether every link to the peer can use it: not every NIC reaches memory of a GPU. Owner; while the peer is there. */
bool pplx_reaches(const pplx_mr *local, const pplx_peer *peer);

/* A GPU whose memory NICs write into (PPLX_CAP_GPU_FLUSH), and what streams that wait in gates see of that. */
enum { PPLX_MAX_GPUS = 16 };

typedef struct pplx_gpu_told {
    int32_t ordinal;
    uint32_t ordered; /* 0: it orders nothing; 100: what its own streams see; 200: and those of other GPUs */
    uint32_t by_wait; /* the waits of its own streams flush what it doesn't order */
    uint32_t by_call; /* so may the proxy: for those that don't, and for streams of other GPUs */
} pplx_gpu_told;

/* Fills at most `capacity`, returns how many there are. Any thread. */
size_t pplx_engine_gpus(const pplx_engine *engine, pplx_gpu_told *told, size_t capacity);

/* ---- counters -------------------------------------------------------------------------------- */

/* Counts what lands here. `value` only grows. To be told, store a threshold with
 * pplx_counter_notify(): the counter comes through the done list once `value` has reached it. */
typedef struct pplx_counter {
    pplx_node node;
    void *cookie; /* owner's */
    uint32_t id;
    uint32_t role;      /* enum pplx_counter_role */
    pplx_peer *peer;    /* whose, for the engine's own roles */
    uint64_t value;     /* in eighths; proxy, atomic */
    uint64_t notify_at; /* in eighths; owner, atomic */
    uint32_t queued;    /* in the done list; atomic */
    uint32_t reserved;
    uint64_t owner; /* owner, before the counter is opened: pplx_peer_token() of the only peer that may count
                     * here, as far as the provider tells them apart; 0: any */
    uint64_t gated; /* in eighths: what gates took of it; proxy, atomic */
    struct pplx_word *gates, *last_gate; /* proxy: that wait here, see words.h */
} pplx_counter;

enum pplx_counter_role { PPLX_COUNTER_USER = 0, PPLX_COUNTER_HEARTBEAT = 1, PPLX_COUNTER_CREDIT = 2 };

/* Give a zeroed counter an id. PPLX_NO_MEMORY when all 2^20 are in use. */
pplx_status pplx_counter_open(pplx_engine *engine, pplx_counter *counter);
uint64_t pplx_counter_value(const pplx_counter *counter); /* any thread */
uint64_t pplx_counter_gated(const pplx_counter *counter); /* any thread */

/* Ask to be told at `eighths`; returns true if it is there already (then nothing will come). */
bool pplx_counter_notify(pplx_counter *counter, uint64_t eighths);

/* Call first for a counter that came through the done list; then read its value. */
void pplx_counter_reaped(pplx_counter *counter);

/* After PPLX_CALL_COUNTER_CLOSE is done nobody counts any more; after this the id is used again. */
void pplx_counter_recycle(pplx_engine *engine, uint32_t id);

/* ---- requests -------------------------------------------------------------------------------- */

#define PPLX_NO_COUNTER UINT32_MAX

/* The segments of one request that go from one region into one region. */
typedef struct pplx_target {
    /* owner, before submit */
    pplx_mr *local;        /* NULL: zero bytes, from the engine's landing page */
    pplx_remote *remote;   /* NULL: zero bytes, into the peer's landing page */
    pplx_peer *peer;
    pplx_segment *segments;
    uint32_t nsegments;
    uint32_t counter; /* id at the peer, or PPLX_NO_COUNTER */
    /* proxy */
    struct pplx_target *next, *prev; /* in the peer's queue */
    pplx_request *request;
    uint32_t cursor;      /* segment being cut */
    uint32_t piece;       /* next piece of it */
    uint32_t inflight;    /* work requests posted or staged, not completed */
    uint32_t queued;      /* in the peer's queue */
    uint64_t delivered;   /* eighths that are known to have been counted */
    uint64_t posted;      /* eighths that may have been counted */
    uint64_t total;       /* eighths of all segments */
    /* result: proxy, before the request settles */
    int32_t status;
    int32_t provider_error;
    uint32_t domain; /* of ours, that reported it */
    uint32_t failed; /* order in which what failed was handed to the peer's links */
    uint64_t most;   /* proxy: bytes of a piece of the segment that is being cut */
    uint32_t links;  /* proxy: bit per link of the peer's that failed it in such a way that the peer may be lost */
} pplx_target;

enum pplx_request_kind { PPLX_REQUEST_TRANSFER = 0, PPLX_REQUEST_SEND = 1, PPLX_REQUEST_CALL = 2 };

enum pplx_request_state {
    PPLX_STATE_SETTLED = 1,   /* outcome known, results valid (proxy) */
    PPLX_STATE_RELEASED = 2,  /* the provider has let go of the memory (proxy) */
    PPLX_STATE_REAPED = 4,    /* the owner saw SETTLED (owner) */
    PPLX_STATE_CANCELLED = 8  /* the owner called pplx_cancel (owner) */
};

enum pplx_call {
    PPLX_CALL_MR_OPEN = 0,      /* subject: pplx_mr */
    PPLX_CALL_MR_CLOSE = 1,     /* subject: pplx_mr */
    PPLX_CALL_PEER_OPEN = 2,    /* subject: pplx_peer: endpoints and receives; then the addresses are there */
    PPLX_CALL_PEER_CONNECT = 3, /* subject: pplx_peer: settles when every link has carried a heartbeat both ways */
    PPLX_CALL_PEER_CLOSE = 4,   /* subject: pplx_peer, an orderly goodbye: what is queued ends FLUSHED */
    PPLX_CALL_PEER_LOST = 5,    /* subject: pplx_peer; payload: why (text): all of it ends PEER_LOST */
    PPLX_CALL_COUNTER_CLOSE = 6, /* subject: pplx_counter */
    PPLX_CALL_DRAIN = 7,         /* no subject: what has arrived by now is counted when it settles */
    PPLX_CALL_WORDS_CLOSE = 9,   /* no subject: every word retires, now or with what it has in flight */
    PPLX_CALL_RAIL_LOST = 8      /* subject: pplx_peer; payload: pplx_rail_notice of the other side, which has closed
                                  * its end of that link: nothing of ours lands there any more */
};

struct pplx_request {
    pplx_node node;
    pplx_node cancel_node;
    void *cookie; /* owner's; the core never looks at it */
    uint32_t kind;  /* enum pplx_request_kind */
    uint32_t opcode; /* TRANSFER: PPLX_WRITE or PPLX_READ; CALL: enum pplx_call */
    uint32_t state; /* enum pplx_request_state; atomic */
    uint32_t cancel_seen; /* proxy */
    /* TRANSFER: targets; SEND: peer, payload; CALL: subject */
    pplx_target *targets;
    uint32_t ntargets;
    uint32_t open_targets; /* proxy: not finished */
    void *subject;
    const void *payload;
    uint64_t nbytes; /* SEND: of the payload; TRANSFER: of all targets together */
    uint64_t submitted_ns; /* proxy */
    /* result: proxy, before SETTLED. The first failure; each target has its own. */
    pplx_error error;
    uint32_t failed_target;
    uint32_t unreleased; /* proxy: work requests that may still touch memory */
    /* Proxy: the doorbell that it is for (words.h), which is armed in place of submitting this.
     * NULL: none, or it has rung, and rings but once. */
    struct pplx_word *bell;
};

/* Hand a request over; it comes back through the done list. Never blocks, never fails: a full
 * ring is followed by an ordered list. Any thread, but one request only once. */
void pplx_submit(pplx_engine *engine, pplx_request *request);

/* The same for a small transfer or message of the owner's: if the proxy sleeps it is posted on this
 * thread, and so is what a provider does at once. Or for a large one, which the proxy shall do. */
enum pplx_progress {
    PPLX_DONE = 1, /* something is in the done list: reap */
    PPLX_DROVE = 2 /* it was done on this thread; otherwise the proxy is at work */
};
uint32_t pplx_submit_here(pplx_engine *engine, pplx_request *request);
uint32_t pplx_submit_spinning(pplx_engine *engine, pplx_request *request); /* pplx_spin() is called soon */
void pplx_submit_there(pplx_engine *engine, pplx_request *request);

/* Where the owner listens to the NICs too (pplx_engine_config.owner_drives): when one of these fds is readable,
 * call pplx_drive(). -1: it doesn't, or a provider has no wait fd. If that says neither DONE nor DROVE
 * the proxy is at work: don't listen until it says DROVE again. */
int pplx_engine_wait_fd(const pplx_engine *engine, size_t domain);
uint32_t pplx_drive(pplx_engine *engine);
void pplx_listens(pplx_engine *engine, bool listens); /* whether the owner watches that fd */

/* Do the proxy's work on this thread until something is in the done list (DONE), for `us` at most; DROVE:
 * there was something to do. The proxy stands by from now until shortly after; with no further call it
 * takes over by itself. */
uint32_t pplx_spin(pplx_engine *engine, uint32_t us);
void pplx_spin_end(pplx_engine *engine); /* the owner is about to sleep */
uint32_t pplx_watch(pplx_engine *engine, uint32_t us); /* the same without the work: the proxy is to do it */

/* Drop what is not posted; the request settles as PPLX_CANCELLED unless all of it was posted.
 * Returns false if it has settled already. */
bool pplx_cancel(pplx_engine *engine, pplx_request *request);

/* Call for each request that came through the done list. Returns true when it is released and the
 * caller may free it; false: it will come through the list once more, released. */
bool pplx_request_reaped(pplx_request *request);

/* ---- peers ----------------------------------------------------------------------------------- */

/* What our side tells a peer, and what the peer's side told us. */
typedef struct pplx_link_address {
    uint8_t bytes[PPLX_ADDRESS_BYTES];
    uint32_t nbytes;
} pplx_link_address;

typedef struct pplx_peer_config {
    uint32_t domains;                          /* of the peer's engine */
    uint32_t heartbeat_counter;                /* at the peer: what our heartbeats hit */
    uint32_t credit_counter;                   /* at the peer: where we return credits */
    uint32_t credits;                          /* receives that the peer keeps posted for us */
    uint64_t token;                            /* goes in the head of each message we send */
    uint64_t message_nbytes;                   /* largest message that the peer takes */
    pplx_remote_key landing[PPLX_MAX_DOMAINS]; /* by the peer's domain */
    pplx_link_address links[PPLX_MAX_LINKS];   /* by link */
} pplx_peer_config;

/* One link: a domain of ours and one of the peer's engine, which name the same link to the peer the
 * other way round, in the same order. */
typedef struct pplx_route {
    uint32_t domain;
    uint32_t remote_domain;
    uint32_t weight; /* its share of the bytes, beside those of the other links; 0: as 1 */
} pplx_route;

/* NULL: no or too many routes, a domain that there isn't, or out of memory or counters. */
pplx_peer *pplx_peer_new(pplx_engine *engine, void *cookie, uint32_t remote_domains, const pplx_route *routes,
                         uint32_t nroutes);
uint64_t pplx_peer_max_message(const pplx_peer *peer); /* bytes of one work request, on any of its links */
void pplx_peer_free(pplx_peer *peer); /* after PEER_CLOSE has settled and been reaped */
size_t pplx_peer_links(const pplx_peer *peer);
void pplx_peer_address(const pplx_peer *peer, size_t link, pplx_link_address *address); /* after PEER_OPEN */
uint32_t pplx_peer_heartbeat_counter(const pplx_peer *peer); /* ids here, for the peer */
uint32_t pplx_peer_credit_counter(const pplx_peer *peer);
uint64_t pplx_peer_token(const pplx_peer *peer);
void pplx_peer_configure(pplx_peer *peer, const pplx_peer_config *config); /* before PEER_CONNECT */
void *pplx_peer_cookie(const pplx_peer *peer);
pplx_peer *pplx_node_peer(pplx_node *node);                       /* of a PPLX_NODE_PEER */
void pplx_peer_reason(const pplx_peer *peer, pplx_error *error); /* why it is lost; after its node has come */
uint32_t pplx_peer_lost_domain(const pplx_peer *peer); /* which NIC showed it, or the first one; likewise */

/* A link may be lost and the peer live on over the others. Our end of it is closed when its node comes; tell the other
 * side, whose owner makes a PPLX_CALL_RAIL_LOST of its notice. What a lost link had in flight is sent again, where it is, when
 * the other side has said the same. */
enum { PPLX_MAX_SLOTS = 2000 }; /* of pplx_engine_config.message_slots */

typedef struct pplx_rail_notice {
    uint32_t link;
    uint32_t reserved;
    uint64_t prefix; /* messages of the receiver of this below that number have arrived here ... */
    uint8_t arrived[PPLX_MAX_SLOTS / 8]; /* ... and of those from there on the ones with a bit */
    char why[PPLX_TEXT_BYTES];
} pplx_rail_notice;

pplx_peer *pplx_node_rail(pplx_node *node, uint32_t *link); /* of a PPLX_NODE_RAIL */
void pplx_link_reason(const pplx_peer *peer, size_t link, pplx_error *error); /* why it is lost; likewise */
void pplx_link_notice(const pplx_peer *peer, size_t link, pplx_rail_notice *notice); /* for the other side; likewise */

enum { PPLX_LATENCY_BUCKETS = 64, PPLX_OPCODES = 5 };

/* One link's counts, by opcode. Latency: post to completion, in buckets of half an octave:
 * bucket 2 k + h holds [2^k (1 + h/2), 2^k (1 + (h+1)/2)) nanoseconds. */
typedef struct pplx_link_stats {
    uint64_t posted[PPLX_OPCODES];
    uint64_t completed[PPLX_OPCODES];
    uint64_t failed[PPLX_OPCODES];
    uint64_t nbytes[PPLX_OPCODES];
    uint64_t again; /* posts refused for now */
    uint64_t inflight;
    uint64_t inflight_nbytes;
    uint64_t latency[PPLX_OPCODES][PPLX_LATENCY_BUCKETS];
    uint32_t domain; /* ours */
    uint32_t remote_domain; /* the peer's */
} pplx_link_stats;
void pplx_link_read_stats(const pplx_peer *peer, size_t link, pplx_link_stats *stats); /* any thread */

/* ---- messages -------------------------------------------------------------------------------- */

typedef struct pplx_message {
    pplx_node node;
    pplx_peer *peer;
    const uint8_t *data;
    uint64_t nbytes;
} pplx_message;

/* The data is read; its buffer may receive again. */
void pplx_message_release(pplx_engine *engine, pplx_message *message);

#ifdef __cplusplus
}
#endif
#endif
