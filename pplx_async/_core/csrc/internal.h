/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the files of the core share and nobody else sees.
 *
 * A field is the proxy thread's own unless its comment says otherwise. Public structs may not have
 * C11 atomics (C++ includes them), so their shared words go through the __atomic builtins. */
#ifndef PPLX_CSRC_INTERNAL_H
#define PPLX_CSRC_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <time.h>

#include "aside.h"
#include "done_list.h"
#include "pplx_async/engine.h"
#include "pplx_async/words.h"
#include "ring.h"

enum {
    PPLX_BATCH = 32,       /* work requests per doorbell */
    PPLX_POLL_BATCH = 64,  /* completions per poll */
    PPLX_QUANTUM = 64,     /* work requests of one target before the next one's turn */
    PPLX_MAX_PEERS = 65536, /* the low 16 bits of a message token are the peer's index */
    PPLX_CHUNK = 1024      /* counters per chunk of the table */
};

/* Single writer, any reader: a plain store that a reader can't see half of. */
#define PPLX_TELL(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELAXED)
#define PPLX_COUNT(word, n) PPLX_TELL(word, (word) + (n))

#define PPLX_CONTAINER(type, member, pointer) ((type *)(void *)((char *)(pointer) - offsetof(type, member)))

typedef struct pplx_domain {
    const pplx_provider *provider;
    pplx_provider_domain *handle;
    pplx_caps caps;
    uint32_t index;
    int wait_fd; /* -1: polled on a timer */
    uint32_t nendpoints;  /* open ones */
    uint64_t max_message; /* what it takes at once, and still lets heartbeats through in time */
    _Atomic uint32_t timed; /* proxy writes, anyone reads: polled on a timer, now at least */
} pplx_domain;

typedef struct pplx_link pplx_link;

enum pplx_slot_role { PPLX_SLOT_TRANSFER, PPLX_SLOT_SEND, PPLX_SLOT_RECEIVE, PPLX_SLOT_HEARTBEAT, PPLX_SLOT_CREDIT };

/* One work request in flight. The op comes first, so a completion's op is the slot. */
typedef struct pplx_slot {
    pplx_op op;
    struct pplx_slot *next; /* free list */
    pplx_link *link;
    pplx_target *target;   /* TRANSFER */
    pplx_request *request; /* SEND */
    uint64_t nbytes;
    uint64_t local, remote; /* TRANSFER: offsets in the target's regions: it may be sent again on another link */
    uint64_t posted_ns;
    uint32_t order;   /* among all of the peer's, from 1 */
    uint32_t eighths; /* what its immediate counts at the peer */
    uint8_t opcode;
    uint8_t role;
    bool whole;    /* stands for whole writes: may be taken back as long as it is only staged */
    bool posted;   /* the provider has it */
    bool orphaned; /* its request has settled without it; only its release still matters */
    bool several;  /* segments of its target, which no other link takes */
} pplx_slot;

/* Our side of one (our NIC, peer's NIC) pair. */
struct pplx_link {
    pplx_peer *peer;
    pplx_domain *domain;
    pplx_provider_endpoint *endpoint; /* NULL: not open, or closed */
    pplx_provider_endpoint *fading;   /* closed, but the provider has not let go yet */
    const pplx_provider_endpoint *source; /* what names it in immediates; until all that came on it is counted */
    pplx_slot *slots;
    pplx_slot *free_slots;
    uint32_t nslots;
    uint32_t room; /* slots for data; 0: it is lost, and takes no more */
    uint32_t index;
    uint32_t remote_domain;
    uint32_t weight; /* its share of the peer's bytes, beside the others' */
    uint32_t cost;   /* of a byte: the inverse of that */
    uint64_t served; /* the cost of all that was staged: the link that has least is next, see transfer.c */
    uint32_t nstaged;
    pplx_work_request staged[PPLX_BATCH]; /* cut, not taken by the provider yet */
    uint64_t window;    /* bytes that may be in flight, see adapt_window() */
    uint64_t window_ns; /* since when it is that */
    uint64_t again_ns;                    /* since when it says PPLX_AGAIN; 0: it doesn't */
    uint64_t heartbeat_ns;                /* when the next one is due */
    uint64_t heard_ns;                    /* when the peer's last one arrived */
    uint32_t probe_failures;              /* heartbeats that failed in a row */
    bool heartbeat_inflight;
    uint64_t suspect_ns;   /* suspected: an answer counts if it is to a heartbeat of after this ... */
    uint64_t answer_by_ns; /* ... and it is lost if none has come by then */
    /* Lost while the peer lives: see peer.c. */
    pplx_error reason;     /* OK: it isn't. Proxy, before down_node is pushed */
    bool down;             /* it is closed, and the owner was told */
    bool closed_there;     /* the other side has closed its end */
    pplx_slot *parked;     /* what is sent again when it has, linked by next */
    uint64_t parked_until; /* ... or fails then: it is not waited for any more */
    pplx_node down_node;
    pplx_rail_notice notice; /* for the other side. Proxy, before down_node is pushed */
    pplx_link_address local_address;
    pplx_link_stats stats; /* read by any thread */
};

/* A buffer that receives; its slot is the RECV in flight. */
typedef struct pplx_receive {
    pplx_slot slot;
    pplx_message message; /* message.peer: who sent it */
    bool posted;          /* the provider has it */
    struct pplx_receive *next; /* waiting to be posted */
    pplx_peer *owner;
    uint8_t *buffer;
} pplx_receive;

/* The head of every two-sided message. */
typedef struct pplx_message_head {
    uint64_t token; /* the receiver gave it to the sender: names it, and proves it */
    uint64_t nbytes; /* UINT64_MAX: in place of one that failed, for its number only */
    uint64_t sequence; /* of the sender's to this peer, from 0 */
} pplx_message_head;

enum pplx_sent_state { PPLX_SENT_FREE, PPLX_SENT_WAITING, PPLX_SENT_FLYING, PPLX_SENT_ARRIVED };

/* A message of ours that is not known to have been read; its copy lies in the send buffer of the same index. */
typedef struct pplx_sent {
    pplx_request *request; /* NULL: it has settled */
    uint64_t nbytes;       /* as in the head */
    uint64_t sequence;
    uint32_t tries; /* that failed */
    uint32_t state; /* WAITING: to be sent, or sent again. ARRIVED: as far as the NIC says */
} pplx_sent;

/* In this order. CLOSED: all is over, but the provider may not have let go yet. GONE: it has. */
enum pplx_peer_state {
    PPLX_PEER_NEW,
    PPLX_PEER_OPEN,
    PPLX_PEER_CONNECTING,
    PPLX_PEER_UP,
    PPLX_PEER_CLOSED,
    PPLX_PEER_GONE
};

struct pplx_peer {
    pplx_engine *engine;
    void *cookie; /* owner's */
    uint32_t index;
    uint32_t nlinks;
    uint64_t max_message; /* constant: of the link that takes least */
    uint64_t max_piece;   /* the same, or less as long as a link is slow, see adapt_window() */
    uint32_t state;
    uint32_t next_link; /* where the next work request is tried first */
    /* How a write is cut over the links, constant. */
    bool weighted;    /* they are not all of one weight */
    uint32_t nshards; /* pieces, a power of two */
    uint32_t nruns;   /* pieces of a run of pages */
    uint8_t shard_links[PPLX_MAX_LINKS]; /* weighted: which link each piece is for */
    uint32_t shard_ends[PPLX_MAX_LINKS]; /* ... and where it ends, in 2^-16 of the whole */
    uint32_t most_shard;               /* ... and how large the largest is, likewise */
    pplx_peer *next, *prev; /* all open peers */
    pplx_peer *next_busy;   /* peers that may have something to post */
    bool busy;
    /* Transfers: targets that still have something to cut, in turn. */
    pplx_target *queue_head, *queue_tail;
    bool no_room; /* ... and the first of them found no link with room: new ones queue up behind it */
    /* Failed so that the peer may be dead or not (pplx_suspicious): they settle when that is known. */
    bool suspected;
    uint32_t suspect_links;  /* bit per link: it has to answer; one that lives in place of lost ones */
    uint32_t suspect_domain; /* which NIC said so, and by which code of its own */
    int32_t suspect_error;
    pplx_target *suspects;
    pplx_request *suspect_sends; /* linked by node.next */
    pplx_slot *resends;          /* of lost links, to be staged on others; linked by next */
    uint32_t staged;             /* work requests so far: gives each its order */
    /* Messages. */
    pplx_request *sends_head, *sends_tail; /* linked by node.next */
    pplx_sent *sent;                       /* by sequence number modulo message_slots */
    uint64_t next_sequence, acked;         /* of ours: the next, and all below it were read there */
    uint32_t nwaiting;                     /* entries of `sent` in that state */
    uint64_t prefix, consumed, returned;   /* of its messages: all below have arrived, so many were read and told */
    uint64_t *arrived;                     /* bit per sequence number modulo message_slots: from prefix on */
    bool credit_again;                     /* what was told was lost perhaps */
    uint32_t credits_inflight;
    uint64_t credit_floor;                 /* ... none of which says less than this */
    uint32_t message_link;                 /* the first that lives */
    bool messages_held;                    /* until the other side uses that one too */
    pplx_rail_notice notice;               /* the last one of the other side */
    uint32_t messages_out;                 /* receives of this peer that are with the owner */
    uint64_t retry_ns;                     /* receives and credits: not before, after a failure */
    uint8_t *buffers;
    pplx_mr buffers_mr;
    pplx_receive *receives;
    pplx_receive *unposted;
    /* Liveness. */
    uint32_t heard_links; /* bit per link: its heartbeats arrive here */
    uint32_t acked_links; /* bit per link: our heartbeats arrive there */
    pplx_counter heartbeat;
    pplx_counter credit;
    uint64_t token;
    pplx_peer_config config; /* owner, before PEER_CONNECT */
    pplx_request *connecting; /* the PEER_CONNECT to settle */
    pplx_request *closing;    /* the PEER_CLOSE to settle */
    bool given_back;          /* by the owner; freed when its receives have come back too */
    /* Lost. */
    pplx_node lost_node;
    pplx_error reason;    /* written before lost_node is pushed */
    uint32_t lost_domain; /* the same; until then that of the first link */
    pplx_link links[PPLX_MAX_LINKS];
};

/* A GPU whose memory NICs write into, see gpus.c. */
typedef struct pplx_gpu {
    pplx_gpu_told told; /* constant */
    const struct pplx_libcuda *driver;
    struct cu_context_object *context; /* the primary one, retained */
    int32_t device;
    uint32_t seen; /* for whom what has come is flushed, enum cu_rdma_scope; as long as nothing has landed since */
} pplx_gpu;

/* Calls that the thread of register.c hands in. */
enum { PPLX_CALL_MR_OPENED = 1 << 16, PPLX_CALL_MR_CLOSED };

struct pplx_engine {
    pplx_engine_config config;
    pplx_domain domains[PPLX_MAX_DOMAINS]; /* owner until start, constant after */
    uint32_t ndomains;
    pplx_mr landing; /* where immediates without data land; also a source of zero bytes */
    uint8_t *landing_page;

    /* Owner to proxy. */
    pplx_ring ring;
    pthread_mutex_t pending_lock;
    pplx_node *pending_head, *pending_tail; /* under pending_lock */
    _Atomic uint32_t npending;              /* written under pending_lock, read by anyone */
    pplx_node *taken;                       /* proxy: the list as it was taken last, what is left of it */
    size_t taken_at;                        /* proxy: ... its turn is when the ring has been popped up to here */
    _Atomic uint32_t asleep; /* the proxy is about to block, or blocks; taken off by whoever rings it */
    int submit_fd;

    /* Proxy to owner. */
    pplx_done_list done;
    int done_fd;

    /* The progress token, see progress.c. Fields below belong to whoever holds it. */
    _Atomic uint32_t token;    /* it is held; written by who takes and gives it */
    _Atomic bool wanted;       /* the owner waits for it; written by the owner */
    _Atomic uint64_t lease_ns; /* until when the owner makes progress and the proxy stands by; owner */
    bool drives;               /* constant after start: the owner listens to the wait fds too */
    _Atomic bool listens;      /* ... and does so now; written by the owner */
    uint32_t unseen;           /* turns of the owner in a row that did something, but nothing that it is told of */
    bool spinning;             /* the owner left the providers unarmed, under its lease */
    uint64_t sleep_until_ns;   /* when the sleeping proxy means to wake up; 0: it doesn't sleep */
    pthread_t thread;
    pplx_aside registrar; /* the proxy gives it calls, and joins it before it ends */
    bool started;         /* owner */
    _Atomic uint32_t stop; /* owner */
    uint64_t now_ns; /* read once a turn */
    uint64_t active_ns;
    uint64_t moved_ns; /* when the proxy last left a core that it shared with a peer */
    pplx_peer *peers;
    pplx_peer *busy;  /* those that may have something to post: a turn costs nothing for the others */
    uint64_t tick_ns; /* when the first of the peers wants a tick */
    pplx_word *words; /* that are armed, see words.c */
    pplx_word *next_word; /* to be looked at after this one */
    _Atomic uint32_t nwords; /* of them; holder writes, anyone reads */
    uint64_t nudged, nudge_again; /* a bit for each context with a stream that was let go in this turn: cuda_nudge.c */
    pplx_engine_stats stats;

    /* gpus.c */
    char *libcuda; /* constant */
    pthread_mutex_t gpus_lock;
    pplx_gpu gpus[PPLX_MAX_GPUS]; /* who registers adds to them, under gpus_lock; the rest of each is the holder's */
    _Atomic uint32_t ngpus; /* written under gpus_lock, read by anyone */
    bool landed; /* NICs may have written there since the last flush */

    /* Tables: owner writes on open, proxy on close and reads. */
    _Atomic(pplx_counter *) *_Atomic chunks[PPLX_MAX_COUNTERS / PPLX_CHUNK];
    uint32_t counters_used; /* owner: ids below it were given out */
    uint32_t *free_counters; /* owner: ring of ids that may be used again, oldest first */
    uint32_t first_free_counter, nfree_counters, free_counters_room;
    _Atomic(pplx_peer *) by_index[PPLX_MAX_PEERS];
    uint32_t next_index; /* owner */
};

static inline uint64_t pplx_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A tick is due at `ns`, 0: in this turn. */
static inline void pplx_tick_at(pplx_engine *engine, uint64_t ns) {
    if (ns < engine->tick_ns) engine->tick_ns = ns;
}

/* Something to post has come up for it, or may be posted now. */
static inline void pplx_peer_busy(pplx_peer *peer) {
    if (peer->busy) return;
    peer->busy = true;
    peer->next_busy = peer->engine->busy;
    peer->engine->busy = peer;
}

/* After this the peer's fate is not known yet. FLUSHED: a connection that breaks fails one work
 * request and flushes the rest, on verbs for example. */
static inline bool pplx_suspicious(int32_t status) {
    return status == PPLX_TRANSPORT || status == PPLX_CONNECTION || status == PPLX_FLUSHED || status == PPLX_RAIL_LOST;
}

static inline uint64_t pplx_ms(uint32_t ms) { return (uint64_t)ms * 1000000u; }

/* engine.c */
void pplx_submit_node(pplx_engine *engine, pplx_node *node); /* any thread */
void pplx_finish(pplx_engine *engine, pplx_node *node); /* to the owner, ringing it if it sleeps */
void pplx_settle(pplx_engine *engine, pplx_request *request);
void pplx_release(pplx_engine *engine, pplx_request *request, uint32_t count);
pplx_status pplx_fail(pplx_error *error, pplx_status status, int32_t provider_error, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* progress.c: the token */
bool pplx_token_take(pplx_engine *engine);
void pplx_token_give(pplx_engine *engine);
void pplx_token_offer(pplx_engine *engine); /* gives it, to the owner first if that waits for it */
bool pplx_leased(const pplx_engine *engine);
void pplx_stand_by(pplx_engine *engine);
void pplx_let_owner(pplx_engine *engine);
void pplx_hand_in(pplx_engine *engine, pplx_node *node); /* the owner's: turned here, or queued for the proxy */
bool pplx_arm_domains(pplx_engine *engine);
bool pplx_timed(const pplx_engine *engine);
void pplx_ring_fd(int fd);

/* proxy.c */
void *pplx_proxy_main(void *engine);
void pplx_turn_briefly(pplx_engine *engine, pplx_node *first);
bool pplx_turn(pplx_engine *engine, pplx_node *first); /* first: a node that is taken before the ring's; or NULL */
uint64_t pplx_next_deadline(const pplx_engine *engine);
void pplx_drain(pplx_engine *engine);

/* transfer.c: from a target to work requests and back */
void pplx_transfer_divide(pplx_peer *peer); /* by the weights of its links */
void pplx_transfer_start(pplx_engine *engine, pplx_request *request);
void pplx_transfer_cancel(pplx_engine *engine, pplx_request *request);
bool pplx_transfer_post(pplx_peer *peer);
void pplx_transfer_completed(pplx_slot *slot, pplx_status status, int32_t provider_error);
/* OK: those whose links have answered. Anything else: all of them; if it is not PEER_LOST they keep their status. */
void pplx_transfer_judge(pplx_peer *peer, pplx_status verdict);
void pplx_transfer_flush(pplx_peer *peer, pplx_status status); /* everything that is queued */
bool pplx_transfer_park(pplx_slot *slot); /* its link is lost: true if it is sent again */
void pplx_transfer_unpark(pplx_link *link, bool again); /* now; or it fails */

/* link.c: slots, staging, posting, completions of one link */
pplx_status pplx_link_open(pplx_link *link, pplx_error *error);
bool pplx_link_has_room(const pplx_link *link, uint64_t nbytes);
pplx_slot *pplx_link_stage(pplx_link *link, uint8_t role, const pplx_work_request *request);
size_t pplx_link_flush(pplx_link *link);
pplx_status pplx_link_receive(pplx_link *link, const pplx_work_request *requests, size_t count, size_t *posted,
                              int32_t *provider_error);
uint32_t pplx_link_unstage(pplx_link *link, const pplx_target *target, uint64_t *eighths);
void pplx_link_completed(pplx_slot *slot, pplx_status status, int32_t provider_error, uint64_t nbytes);
pplx_status pplx_link_close(pplx_link *link, pplx_status status); /* ends what is staged and in flight */

/* peer.c: opening, connecting, heartbeats, loss */
void pplx_peer_run_open(pplx_peer *peer, pplx_request *request);
void pplx_peer_run_connect(pplx_peer *peer, pplx_request *request);
void pplx_peer_run_close(pplx_peer *peer, pplx_request *request);
void pplx_peer_run_lost(pplx_peer *peer, pplx_request *request);
void pplx_peer_give_back(pplx_peer *peer); /* frees it, now or with its last message */
void pplx_peer_run_rail_lost(pplx_peer *peer, pplx_request *request);
void pplx_peer_suspect(pplx_peer *peer, uint32_t links, uint32_t domain, int32_t provider_error);
bool pplx_peer_has_answered(const pplx_peer *peer, uint32_t links); /* what failed on these may settle */
void pplx_link_lose(pplx_link *link, pplx_status provider_status, int32_t provider_error, const char *why);
void pplx_peer_lose(pplx_peer *peer, uint32_t domain, pplx_status provider_status, int32_t provider_error,
                    const char *why);
void pplx_peer_heard(pplx_peer *peer, uint32_t link);
void pplx_heartbeat_completed(pplx_slot *slot, pplx_status status, int32_t provider_error);
bool pplx_peer_post(pplx_peer *peer);
bool pplx_peer_has_work(const pplx_peer *peer);
bool pplx_peer_tick(pplx_peer *peer);
uint64_t pplx_peer_deadline(const pplx_peer *peer); /* when it next wants a tick */

/* message.c: two-sided messages and their credits */
pplx_status pplx_messages_open(pplx_peer *peer, pplx_error *error);
void pplx_messages_close(pplx_peer *peer);
void pplx_message_submit(pplx_peer *peer, pplx_request *request);
void pplx_message_cancel(pplx_peer *peer, pplx_request *request);
bool pplx_message_wants(const pplx_peer *peer); /* a call of pplx_message_post() may do something */
bool pplx_message_post(pplx_peer *peer);
void pplx_message_judge(pplx_peer *peer, pplx_status verdict);
void pplx_message_flush(pplx_peer *peer, pplx_status status);
void pplx_message_sent(pplx_slot *slot, pplx_status status, int32_t provider_error);
void pplx_credits_returned(pplx_slot *slot, pplx_status status);
void pplx_message_received(pplx_slot *slot, pplx_status status, uint64_t nbytes);
void pplx_message_repost(pplx_engine *engine, pplx_message *message);
void pplx_message_credited(pplx_peer *peer, uint32_t read); /* how many, modulo PPLX_MAX_RUN, and 1 */
void pplx_message_note(const pplx_peer *peer, pplx_rail_notice *notice); /* what has arrived here */
void pplx_message_link_dropped(pplx_peer *peer); /* one of its links, on this or on the other side */

/* counter.c */
void pplx_counter_hit(pplx_engine *engine, const pplx_completion *arrived);
void pplx_counter_forget(pplx_engine *engine, pplx_counter *counter);
void pplx_counters_free(pplx_engine *engine);

/* register.c */
void pplx_register_run(pplx_engine *engine, pplx_request *request); /* settles it, or it comes back */
void pplx_registered(pplx_engine *engine, pplx_request *request); /* it has come back: settles it */

/* words.c */
void pplx_word_take(pplx_engine *engine, pplx_node *node); /* from the owner: to arm, to end, to close */
bool pplx_words_poll(pplx_engine *engine); /* true: a stream has come somewhere, or gone on */
void pplx_words_run_close(pplx_engine *engine);
void pplx_words_stop(pplx_engine *engine); /* nobody turns any more; the owner lets its streams go */
void pplx_gates_serve(pplx_engine *engine, pplx_counter *counter); /* it has counted */
void pplx_bell_cancel(pplx_engine *engine, pplx_request *request); /* it was not rung for */
void pplx_bell_ended(pplx_engine *engine, pplx_word *word); /* its request has, and is released */

/* Then nobody who makes progress may sleep. */
static inline bool pplx_words_armed(const pplx_engine *engine) {
    /* relaxed: the holder's own; to others it says whether to leave the turns to the proxy, which an old value delays */
    return atomic_load_explicit(&engine->nwords, memory_order_relaxed) != 0;
}

/* gpus.c */
/* A NIC is to write there; any thread. REGISTRATION: that would not be seen by streams that wait in gates. */
pplx_status pplx_gpus_add(pplx_engine *engine, const pplx_memory *memory, pplx_error *error);
/* A stream of that one (as pplx_word has it) is let go next. CUDA's code if it would not see what has landed. */
int32_t pplx_gpus_flush(pplx_engine *engine, uint32_t gpu);
void pplx_gpus_close(pplx_engine *engine);

static inline bool pplx_gpus_any(const pplx_engine *engine) {
    /* relaxed: nothing lands there before the holder has settled the registration, which it had after that, by itself or
     * from the ring */
    return atomic_load_explicit(&engine->ngpus, memory_order_relaxed) != 0;
}

/* cuda_nudge.c */
enum { PPLX_MOST_NUDGES = 64 };
/* Gates have opened: have those GPUs look, bit i for number i + 1 of pplx_nudge_find(). Any thread; it waits for nobody. */
void pplx_nudge(uint64_t which);

/* The first gate of a turn is nudged at once; once more, at the turn's end, for all that came after it. */
static inline void pplx_nudge_now(pplx_engine *engine, uint64_t which) {
    if (engine->nudged & which) {
        engine->nudge_again |= which;
    } else {
        engine->nudged |= which;
        pplx_nudge(which);
    }
}

static inline void pplx_nudge_rest(pplx_engine *engine) {
    if (engine->nudge_again) pplx_nudge(engine->nudge_again);
    engine->nudged = engine->nudge_again = 0;
}

/* memory.c */
pplx_status pplx_mr_open_all(pplx_engine *engine, pplx_mr *mr, pplx_error *error);
pplx_status pplx_mr_open_at(pplx_engine *engine, uint32_t domain, pplx_mr *mr, pplx_error *error);
/* This failure of one NIC is none of the region. */
bool pplx_may_lack(const pplx_mr *mr, pplx_status status);
pplx_status pplx_mr_close_all(pplx_engine *engine, pplx_mr *mr);

#endif
