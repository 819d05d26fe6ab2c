/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the files of the ipc provider share.
 *
 *   provider_ipc.c  options, discover, endpoints, the ops table
 *   ipc_domain.c    a domain: its listener and descriptors, when they are looked at, arm
 *   ipc_link.c      the connection of two endpoints: handshake, notes, death, goodbye
 *   ipc_visitors.c  connections whose endpoint isn't known yet
 *   ipc_socket.c    system calls: sockets, memfds, descriptors in messages
 *   ipc_memory.c    our regions, and who of the peers knows them
 *   ipc_segment.c   the memfds behind them, and how their pages move
 *   ipc_keys.c      the peers' regions, as we have them mapped
 *   ipc_fence.c     closing an endpoint so that its peer writes no more
 *   ipc_direct.c    memory of a peer that trusts us, by process_vm_writev
 *   ipc_cuda.c      memory of GPUs: ipc_cuda.h has the map
 *   ipc_post.c      our work requests: post, copy, acknowledgements
 *   ipc_serve.c     the peer's: immediates, commands
 *   ipc_run.c       poll: whose turn it is
 *   ipc_copy.c      copying
 *   ipc_wire.h, ipc_ring.h, ipc_records.h
 *
 * A write's way. The peer's region is looked up by its key; the first time, the peer is asked over
 * the socket. If it is *mappable* (a memfd of the engine's) its pages are mapped here, and a write
 * is a copy by this thread. Otherwise it is *staged*: pieces are copied into the staging area of the
 * peer's inbox with a command each, and the peer's poll() copies them to where they belong. If both
 * opted in it is *addressed* instead: the kernel copies, at this thread's call. Whichever way, the
 * immediate comes after the bytes.
 *
 * Threads. One thread calls a domain; there are no others but those that open and close memory of GPUs
 * (ipc_cuda.h), and one lock only, round the list of the process's memfds (ipc_segment.c). What two processes (or two
 * domains of one process) share is in ipc_wire.h.
 *
 * Looking at descriptors costs a system call. poll() does it when the thread may have slept, and
 * else once in LOOK_NS; a message that can't wait is announced by the word `news` in shared memory. */
#ifndef PPLX_CSRC_IPC_INTERNAL_H
#define PPLX_CSRC_IPC_INTERNAL_H

#include <stdarg.h>
#include <stdio.h>
#include <sys/types.h>
#include <time.h>

#include "aside.h"
#include "cuda_virtual.h"
#include "ipc_records.h"
#include "ipc_ring.h"

enum {
    IPC_MAX_INFLIGHT = 1024,
    IPC_MAX_SEGMENTS = 32,       /* of one work request */
    IPC_SMALL_COPY = 64 << 10,   /* bytes that post() copies at once */
    IPC_LARGE_COPY = 256 << 10,  /* bytes of a write from which on it goes past the cache */
    IPC_DIRECT_REGION = 8 << 10, /* bytes of a region from which on peers are told where it is: ipc_direct.c */
    IPC_HELD = 8,                /* immediates published together at most */
    IPC_HELD_BYTES = 16 << 10,   /* ... and bytes of their writes */
    IPC_PIECE = 256 << 10,       /* bytes of a command, and of a copy between looks at anything else */
    IPC_POST_BYTES = 256 << 10,  /* bytes that a post() copies at most */
    IPC_TURN_BYTES = 1 << 20,    /* bytes copied in a poll(), over all endpoints */
    IPC_TURN_OPS = 256,          /* work requests of one endpoint begun in a poll() */
    IPC_VISITORS = 64,
    IPC_LOOK_NS = 1000000,       /* between looks at descriptors while busy */
    IPC_VISIT_NS = 2000000000,   /* a connection that does not say who it is by then is dropped */
    IPC_MAP_NOW = 64 << 20,      /* regions up to this size are mapped page by page at once */
    IPC_DEAF_NS = 20000000,      /* between tries to accept where there are no descriptors */
    IPC_FENCE_NS = 100000000     /* a peer that doesn't let go of our memory by then loses it */
};

typedef struct ipc_domain ipc_domain;
typedef struct ipc_endpoint ipc_endpoint;
typedef struct ipc_region ipc_region;

typedef struct ipc_options {
    uint32_t slots;
    uint32_t staging;
    uint32_t holders_ms; /* who has to let go because of another peer is waited for so long */
    uint32_t gpu_ms;     /* a GPU that works for a peer that goes is waited for so long */
    bool vm_writev;      /* trust the peers that say the same: ipc_direct.c */
    char libcuda[4096]; /* a path; "": as the system finds it */
} ipc_options;

typedef struct ipc_cuda ipc_cuda;
typedef struct ipc_hops ipc_hops;
typedef struct ipc_opened ipc_opened;
typedef struct ipc_allocation ipc_allocation;
typedef struct ipc_plug ipc_plug;

/* Descriptors that go with a message, or come. */
enum { IPC_MAX_FDS = CUDA_MAX_CHUNKS };
typedef struct ipc_fds {
    int of[IPC_MAX_FDS];
    uint32_t count;
    bool dropped; /* received: there were some, but too many files are open */
} ipc_fds;

static const uint64_t IPC_MAX_MESSAGE = UINT64_C(1) << 40;

/* An early peer is waited for as long as a connect may take. */
static const uint64_t IPC_EARLY_NS = UINT64_C(10000000000);

/* What an epoll event points to. */
enum ipc_watch_kind { IPC_WATCH_LISTENER, IPC_WATCH_VISITOR, IPC_WATCH_SOCKET, IPC_WATCH_PEER, IPC_WATCH_CUDA };
typedef struct ipc_watch {
    enum ipc_watch_kind kind;
    void *subject;
} ipc_watch;

/* A memfd of the engine's. It is mapped whole, once, at `address`. */
typedef struct ipc_segment {
    struct ipc_segment *next;         /* of the same domain */
    struct ipc_segment *process_next; /* of all domains */
    dev_t device;
    ino_t inode;
    int fd;       /* ours */
    int owner_fd; /* the engine's, as the last registration named it */
    unsigned char *address;
    uint64_t nbytes;
    uint32_t regions, exports; /* that point here */
    bool moving;               /* nobody gets it until its pages have moved */
} ipc_segment;

/* A region that a peer was told of. It outlives the region until the peer has confirmed that. */
typedef struct ipc_export {
    struct ipc_export *region_next;   /* of the same region */
    struct ipc_export *endpoint_next; /* of the same endpoint */
    ipc_endpoint *endpoint;
    ipc_region *region;   /* NULL: closed */
    ipc_segment *segment; /* NULL: the peer got no descriptor */
    bool addressed;       /* the peer was told where it lies */
    uint32_t opened;      /* so often was the peer told how to open it: memory of a GPU */
    uint64_t key;
    enum { IPC_EXPORT_HELD, IPC_EXPORT_UNWANTED, IPC_EXPORT_REVOKED } state; /* .., REVOKE is to be sent, is sent */
} ipc_export;

struct ipc_region {
    ipc_domain *domain;
    ipc_region *next; /* in its bucket */
    uint64_t key, address, nbytes;
    uint32_t access;
    ipc_segment *segment; /* NULL: staged, or addressed */
    bool ordinary;        /* no memfd of the engine's: its pages never move */
    bool device;          /* memory of a GPU */
    bool near;            /* device: a kernel of ours may touch it */
    ipc_allocation *allocation; /* device: what it lies in; NULL where no peer may reach it */
    ipc_export *exports;
};

/* A peer's region, as we know it. */
typedef struct ipc_key {
    struct ipc_key *next; /* in its bucket */
    uint64_t key, nbytes;
    uint32_t access;
    enum { IPC_KEY_ASKED, IPC_KEY_OPENING, IPC_KEY_KNOWN, IPC_KEY_CLOSING, IPC_KEY_NONE } state;
    unsigned char *memory; /* byte 0 of the region; NULL: not mapped */
    uint64_t address;      /* of byte 0 in the peer's process; 0: it didn't say */
    cu_pointer device;     /* as `memory`, for the GPU; 0: not opened */
    ipc_opened *opened;    /* OPENING, CLOSING, or to be closed; NULL: nothing */
    bool near;             /* a kernel of ours may touch it */
    bool later;            /* memory of a GPU, which we had no use for: to be opened when we have */
    bool unwanted;         /* its owner has asked for it, and our GPU may be at work there */
    void *mapping;
    size_t mapping_nbytes;
} ipc_key;

typedef struct ipc_keys {
    ipc_key **buckets;
    size_t nbuckets, count;
    uint32_t asked; /* MAPs without an answer */
} ipc_keys;

enum ipc_state {
    IPC_OPEN,     /* has an address */
    IPC_MEETING,  /* the peer is named; post() says AGAIN */
    IPC_GREETED,  /* we said HELLO and wait for the WELCOME */
    IPC_UP,
    IPC_ENDING,   /* the peer is gone; what it left in our inbox is still delivered */
    IPC_BROKEN    /* all has ended, with `why` */
};

enum ipc_blocked { IPC_RUNNABLE, IPC_NEEDS_GPU, IPC_NEEDS_SLOT, IPC_NEEDS_ANSWER, IPC_NEEDS_ACK, IPC_NEEDS_RECEIVE };

/* A command of ours that is not acknowledged. */
typedef struct ipc_issued {
    ipc_record *record;
    uint64_t local; /* READ: where the piece goes */
    uint64_t nbytes;
    uint64_t staging; /* where it lies */
    uint64_t end;     /* of the staging area up to it, as a position */
} ipc_issued;

struct ipc_endpoint {
    ipc_domain *domain;
    ipc_endpoint *next, *prev;
    enum ipc_state state;
    bool retry; /* MEETING: the peer's backlog was full */
    pplx_status why;        /* ENDING, BROKEN: how work requests end */
    uint64_t last_arrivals; /* ENDING: more than these can't have been left */
    uint64_t ending_ns;     /* ENDING: since then */
    ipc_address own, peer;
    int socket, pidfd, inbox_fd;
    pid_t pid;      /* whom pidfd names; 0: there is none */
    bool trusting;  /* both sides opted in */
    bool refused;   /* the kernel said no to process_vm_writev: staged from then on */
    bool hung_up;   /* the peer has closed its socket, after the last of its copies */
    ipc_watch socket_watch, peer_watch;
    uint32_t news_seen;
    bool note_due; /* a note of the peer's is on its way to the socket, or there */
    ipc_inbox inbox, outbox; /* ours; the peer's, when it is UP */
    /* Immediates: received up to here, sent up to here, and how many are known to fit. */
    uint64_t immediate_head, immediate_tail, immediates_free;
    uint32_t held, first_held; /* from immediate_tail on: not published yet; the first is not in its slot */
    uint64_t held_nbytes;      /* of their writes */
    /* The same, of each stream of a GPU: ours, the peer's. */
    uint64_t stream_head[IPC_STREAMS], stream_tail[IPC_STREAMS];
    cu_pointer stream_slots; /* of the outbox, as our GPU knows them; 0: not yet */
    ipc_plug *plug;          /* ... and what unpins them again */
    bool shown;              /* we were told how to open memory of a GPU, whose owner waits for our goodbye */
    uint32_t unbegun;        /* segments posted since the queue was looked at, from a GPU's memory or into it */
    uint64_t unbegun_nbytes; /* of these */
    uint32_t streaming;      /* records that a stream works for */
    uint32_t aside;          /* allocations of the peer's that are being opened or closed */
    /* Commands: executed up to here; sent, and acknowledged, up to here. */
    uint64_t command_head, command_tail, command_acked;
    uint64_t staging_head, staging_tail; /* of the peer's staging area, as positions */
    ipc_issued issued[IPC_COMMANDS];
    uint64_t receives_posted, sends_begun;
    ipc_record *receiving; /* RECV that a message in pieces goes into */
    uint64_t received;     /* bytes of that message so far */
    bool in_message;       /* there is more to come, with or without a RECV to take it */
    ipc_keys keys;
    ipc_export *exports;
    uint32_t unwanted, revoking; /* of them, in these states */
    bool garbage;                /* the peer breaks the rules: break with it when nothing is under way */
    ipc_pool records, receive_records;
    ipc_list queue;    /* writes and reads that are not all begun */
    ipc_list sends;    /* the same */
    ipc_list waiting;  /* all of it is in commands */
    ipc_list receives; /* RECVs, oldest first */
    enum ipc_blocked queue_blocked, sends_blocked;
    /* Closing. */
    bool closing, let_go; /* endpoint_close() was called; the peer has confirmed that it touches nothing */
    bool said_bye, heard_bye;
    bool owing; /* the peer is to be told that we have let go of its memory: pplx_ipc_answer() */
    bool mute; /* a fence waited for it in vain, and it has answered none since: ipc_fence.c */
    uint64_t fence_ns; /* 0: it was not told goodbye */
    bool moving; /* the peer didn't let go: waiting for the others, so that pages can be moved */
};

/* A connection that hasn't found its endpoint. */
typedef struct ipc_visitor {
    ipc_watch watch;
    int fd; /* -1: none */
    uint64_t since_ns;
    bool greeted;    /* it said HELLO to an endpoint that doesn't know its peer yet */
    ipc_hello hello;
    int inbox_fd;
} ipc_visitor;

/* An immediate whose endpoint is closed; that is for comparing only. */
typedef struct ipc_late {
    const ipc_endpoint *through;
    uint32_t imm;
} ipc_late;

struct ipc_domain {
    ipc_options options;
    uint8_t listener_name[IPC_TOKEN_BYTES];
    int listener, epoll_fd;
    ipc_watch listener_watch;
    ipc_visitor visitors[IPC_VISITORS];
    uint32_t nvisitors;
    ipc_endpoint *endpoints;
    ipc_endpoint *turn; /* whose turn is first in the next poll() */
    ipc_list done;      /* ended, to be reported */
    ipc_late *late;     /* immediates of endpoints that are closed */
    size_t late_count, late_capacity, late_head;
    ipc_region **buckets;
    size_t nbuckets, nregions;
    ipc_cuda *cuda; /* NULL: no memory of a GPU is registered */
    ipc_hops *hops; /* there whenever `cuda` is, which it is a part of */
    ipc_region *unfenced; /* closed, but a peer that knows the address has not let go */
    int refused;          /* errno of the last process_vm_writev that the kernel did not allow */
    ipc_segment *segments;
    uint64_t looked_ns;
    uint64_t deaf_until_ns; /* not 0: the listener is not in the epoll set, for want of descriptors */
    bool slept;      /* armed since the last look */
    bool look_again; /* not all of what is readable was read */
    bool arrivals_first;
};

/* What one poll() may still do. */
typedef struct ipc_turn {
    pplx_completion *completions;
    size_t count, capacity;
    uint64_t nbytes;
} ipc_turn;

static inline void ipc_report_imm(ipc_turn *turn, const ipc_endpoint *through, uint32_t imm) {
    turn->completions[turn->count++] = (pplx_completion){
        .kind = PPLX_COMPLETION_IMM, .imm = imm, .source = (const pplx_provider_endpoint *)through};
}

extern const pplx_provider pplx_provider_ipc;

/* ipc_domain.c */
pplx_status pplx_ipc_domain_open(const ipc_options *options, ipc_domain **domain, pplx_error *error);
void pplx_ipc_domain_close(ipc_domain *domain);
void pplx_ipc_look(ipc_domain *domain, uint64_t now_ns);
pplx_status pplx_ipc_arm(pplx_provider_domain *domain);
int pplx_ipc_woken_from(pplx_provider_domain *domain);
bool pplx_ipc_awake(ipc_domain *domain);
bool pplx_ipc_watch_fd(ipc_domain *domain, int fd, ipc_watch *watch);

/* ipc_link.c */
bool pplx_ipc_inbox_open(ipc_endpoint *endpoint);
int pplx_ipc_meet(ipc_endpoint *endpoint); /* MEETING: try to get on; errno, if it can't ever */
void pplx_ipc_accept(ipc_endpoint *endpoint, int fd, const ipc_hello *hello, int inbox_fd); /* takes both fds */
void pplx_ipc_read_notes(ipc_endpoint *endpoint);
void pplx_ipc_take_bell(ipc_endpoint *endpoint);
void pplx_ipc_heed_news(ipc_endpoint *endpoint);
void pplx_ipc_answer(ipc_endpoint *endpoint); /* what could not be answered at once */
void pplx_ipc_wake_peer(ipc_endpoint *endpoint, unsigned what);
bool pplx_ipc_say(ipc_endpoint *endpoint, const ipc_note *note, const ipc_fds *fds); /* NULL: none go along */
bool pplx_ipc_has_news(const ipc_endpoint *endpoint);
void pplx_ipc_peer_gone(ipc_endpoint *endpoint, pplx_status why);
void pplx_ipc_peer_died(ipc_endpoint *endpoint);
void pplx_ipc_break(ipc_endpoint *endpoint, pplx_status why); /* at once, nothing more is read */
void pplx_ipc_disconnect(ipc_endpoint *endpoint);

/* ipc_visitors.c */
void pplx_ipc_visitors_open(ipc_domain *domain);
void pplx_ipc_visitors_close(ipc_domain *domain);
void pplx_ipc_accept_visitors(ipc_domain *domain, uint64_t now_ns);
void pplx_ipc_hear_visitors(ipc_domain *domain, uint64_t now_ns);
void pplx_ipc_visitor_readable(ipc_domain *domain, ipc_visitor *visitor);
void pplx_ipc_visitors_expire(ipc_domain *domain, uint64_t now_ns);
void pplx_ipc_visitor_for(ipc_endpoint *endpoint);

/* ipc_socket.c */
int pplx_ipc_listen(const uint8_t *name);
int pplx_ipc_connect(const uint8_t *name); /* -1: errno; EAGAIN: later */
bool pplx_ipc_same_user(int fd, pid_t *pid);
int pplx_ipc_pidfd(pid_t pid);
ssize_t pplx_ipc_send(int fd, const void *message, size_t nbytes, int passed_fd);
ssize_t pplx_ipc_receive(int fd, void *message, size_t capacity, int *passed_fd); /* 0: the end. The first, or -1 */
/* The same with all descriptors that come along. */
ssize_t pplx_ipc_send_with(int fd, const void *message, size_t nbytes, const int *fds, size_t count);
ssize_t pplx_ipc_receive_with(int fd, void *message, size_t capacity, ipc_fds *fds);
void pplx_ipc_close_fds(ipc_fds *fds);
int pplx_ipc_first_fd(ipc_fds *fds); /* for the caller to close; the others are closed. -1: none */
int pplx_ipc_memfd(const char *name, uint64_t nbytes); /* sealed against resizing */
void *pplx_ipc_map_foreign(int fd, uint64_t offset, uint64_t nbytes, bool writable); /* checked; NULL: no */
bool pplx_ipc_random(void *bytes, size_t nbytes);

/* ipc_memory.c */
pplx_status pplx_ipc_mr_open(pplx_provider_domain *domain, const pplx_memory *memory, uint32_t access,
                             pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error);
pplx_status pplx_ipc_mr_close(pplx_provider_mr *mr);
ipc_region *pplx_ipc_region_find(const ipc_domain *domain, uint64_t key);
void pplx_ipc_answer_map(ipc_endpoint *endpoint, uint64_t key);
void pplx_ipc_revoked(ipc_endpoint *endpoint, uint64_t key);
void pplx_ipc_unwant(ipc_export *export); /* then, for its endpoint: */
void pplx_ipc_send_revokes(ipc_endpoint *endpoint);
void pplx_ipc_drop_exports(ipc_endpoint *endpoint);

/* ipc_segment.c */
pplx_status pplx_ipc_segment_find(ipc_domain *domain, const pplx_memory *memory, ipc_segment **segment,
                                  pplx_error *error);
void pplx_ipc_segment_release(ipc_domain *domain, ipc_segment *segment); /* if nothing points to it any more */
bool pplx_ipc_segment_move(ipc_segment *segment); /* false: it can't be done now, and nothing has changed */

/* ipc_keys.c */
ipc_key *pplx_ipc_key_find(const ipc_endpoint *endpoint, uint64_t key);
ipc_key *pplx_ipc_key_use(ipc_endpoint *endpoint, uint64_t key); /* NULL: asked, or can't be asked now */
void pplx_ipc_key_mapped(ipc_endpoint *endpoint, const ipc_note *note, ipc_fds *fds); /* takes them */
void pplx_ipc_key_drop(ipc_endpoint *endpoint, ipc_key *key);
void pplx_ipc_keys_close(ipc_endpoint *endpoint);
bool pplx_ipc_keys_yield(ipc_endpoint *endpoint); /* those that are unwanted; false: to be called again */
void pplx_ipc_keys_ask_again(ipc_endpoint *endpoint); /* of memory of GPUs: we have a GPU now */
void pplx_ipc_key_opened(ipc_endpoint *endpoint, ipc_key *key, bool fine);
void pplx_ipc_key_closed(ipc_endpoint *endpoint, ipc_key *key);

/* ipc_fence.c */
bool pplx_ipc_reached(const ipc_endpoint *endpoint); /* the peer may yet write to memory that can't be moved */
bool pplx_ipc_fence_region(const ipc_region *region, uint64_t patience_ns); /* false: a peer may still write there */
pplx_status pplx_ipc_endpoint_close(pplx_provider_endpoint *endpoint);

/* ipc_direct.c */
enum ipc_direct { IPC_DIRECT_DONE, IPC_DIRECT_FAULT, IPC_DIRECT_REFUSED, IPC_DIRECT_ENDED };
bool pplx_ipc_may_address(const ipc_region *region, const ipc_endpoint *endpoint);
bool pplx_ipc_goes_direct(const ipc_endpoint *endpoint, const ipc_key *key);
enum ipc_direct pplx_ipc_direct(ipc_endpoint *endpoint, bool read, void *local, uint64_t remote, uint64_t nbytes);
void pplx_ipc_describe_direct(const ipc_domain *domain, char *text, size_t capacity);

/* ipc_cuda.c */
const char *pplx_ipc_libcuda(const ipc_domain *domain); /* NULL: as the system finds it */
pplx_status pplx_ipc_cuda_region(ipc_region *region, const pplx_memory *memory, pplx_error *error);
void pplx_ipc_cuda_unshare(ipc_region *region); /* it is closed */
bool pplx_ipc_cuda_tell(const ipc_region *region, ipc_note *note, ipc_fds *fds); /* false: it can't be shared now */
void pplx_ipc_cuda_close(ipc_domain *domain);

/* ipc_cuda_peers.c */
/* False: it can't be true. Takes the descriptors that it needs. */
bool pplx_ipc_cuda_open(ipc_endpoint *endpoint, ipc_key *key, const ipc_note *note, ipc_fds *fds);
bool pplx_ipc_cuda_yield(ipc_key *key); /* false: there is nothing to be closed */
void pplx_ipc_cuda_drop(ipc_key *key);
void pplx_ipc_cuda_forget(ipc_endpoint *endpoint); /* what is still opened or closed for it has nobody to tell */
void pplx_ipc_cuda_hear(ipc_domain *domain);       /* what was opened and closed */
void pplx_ipc_cuda_unplug(ipc_endpoint *endpoint); /* if the GPU knows the outbox: take it, to be unmapped later */

/* ipc_cuda_batch.c */
/* IPC_RUNNABLE: it is a stream's now; else what it needs first. */
enum ipc_blocked pplx_ipc_cuda_gather(ipc_endpoint *endpoint, ipc_record *record, const ipc_key *key);
void pplx_ipc_cuda_start(ipc_endpoint *endpoint); /* what was gathered */
void pplx_ipc_cuda_finish(ipc_domain *domain); /* what the streams have done */
bool pplx_ipc_cuda_settle(const ipc_endpoint *endpoint); /* false: the GPU still works for it, after a while */
bool pplx_ipc_cuda_room(const ipc_endpoint *endpoint); /* all of its rings */
bool pplx_ipc_cuda_begins(const ipc_endpoint *endpoint);
bool pplx_ipc_cuda_busy(const ipc_domain *domain);
bool pplx_ipc_cuda_idle(const ipc_endpoint *endpoint); /* nothing works in its memory, as was seen last */

/* ipc_cuda_host.c */
typedef struct ipc_hop {
    ipc_endpoint *endpoint;
    ipc_record *record;       /* NULL: a command of the peer's */
    const ipc_region *region; /* in which the GPU's memory lies, if that is ours */
    cu_pointer gpu;
    unsigned char *host;
    uint64_t nbytes;          /* IPC_PIECE at most */
    uint64_t follow;          /* so many bytes follow on both sides, and the next piece may be begun */
    bool outward;             /* from the GPU */
} ipc_hop;

pplx_status pplx_ipc_hop(const ipc_hop *hop, int32_t *native); /* PPLX_AGAIN: ask once more, for the same */
bool pplx_ipc_hop_drop(const ipc_endpoint *endpoint, const ipc_record *record); /* false: a GPU yet copies for it */
bool pplx_ipc_hops_of(const ipc_endpoint *endpoint, bool theirs); /* one copies for it; in the peer's memory */
bool pplx_ipc_hops_in(const ipc_region *region);                  /* one copies there */
bool pplx_ipc_hops_busy(const ipc_hops *hops);
void pplx_ipc_hops_finish(ipc_hops *hops); /* what the stream has done */
ipc_hops *pplx_ipc_hops_open(ipc_domain *domain, pplx_aside *aside, const pplx_libcuda *api, cu_context context);
void pplx_ipc_hops_close(ipc_hops *hops, bool entered); /* in the context */

/* ipc_post.c */
pplx_status pplx_ipc_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                          size_t *posted, int32_t *provider_error);
bool pplx_ipc_run_own(ipc_endpoint *endpoint, ipc_turn *turn); /* true: there is more that can be done */
void pplx_ipc_take_acknowledgements(ipc_endpoint *endpoint, ipc_turn *turn);
void pplx_ipc_finish(ipc_list *from, ipc_record *record, pplx_status status); /* to the domain's `done` */
void pplx_ipc_end_all(ipc_endpoint *endpoint, pplx_status status);
bool pplx_ipc_acknowledged(const ipc_endpoint *endpoint); /* take_acknowledgements() would get on */
bool pplx_ipc_own_work(const ipc_endpoint *endpoint); /* or run_own() */

/* ipc_serve.c */
void pplx_ipc_take_immediates(ipc_endpoint *endpoint, ipc_turn *turn);
bool pplx_ipc_serve(ipc_endpoint *endpoint, ipc_turn *turn); /* true: there is more that can be done */
bool pplx_ipc_arrived(const ipc_endpoint *endpoint); /* take_immediates() or serve() would get on */

/* ipc_run.c */
size_t pplx_ipc_poll(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity);

/* ipc_copy.c */
void pplx_ipc_copy(void *to, const void *from, size_t nbytes);
void pplx_ipc_stream(void *to, const void *from, size_t nbytes); /* past the cache; done when it returns */

static inline bool ipc_covers(const ipc_region *region, uint64_t address, uint64_t nbytes) {
    return address >= region->address && nbytes <= region->nbytes &&
           address - region->address <= region->nbytes - nbytes;
}

static inline uint64_t ipc_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

__attribute__((format(printf, 4, 5))) static inline pplx_status ipc_fail(pplx_error *error, pplx_status status,
                                                                         int32_t native, const char *format, ...) {
    if (error) {
        *error = (pplx_error){.status = status, .provider_error = native};
        va_list arguments;
        va_start(arguments, format);
        vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
    }
    return status;
}

#endif
