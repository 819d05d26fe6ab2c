/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the files of the loopback provider share.
 *
 *   provider_loopback.c  the fabric (which endpoints exist), domains, endpoints, the ops table
 *   loopback_memory.c    registered memory and its keys
 *   loopback_run.c       post, execute, poll
 *   loopback_wake.c      wait fd, arm, poke
 *   loopback_plan.c      options
 *
 * A write's way. post() copies the request into a record and queues it on its own domain, the
 * source. The source's poll() executes it: it takes the target domain's lock, looks up endpoint and
 * key there, copies, puts the immediate into the target's ring, and rings the target if it is
 * armed. The record moves to the source's `done` list, and a later line of the same poll() reports
 * it. So the only thread that works for an operation is the source's, as with a NIC's DMA engine.
 *
 * Threads. A domain's plain fields belong to the thread that calls it (the holder of the progress
 * token); what peers touch is in `shared`, under `shared.lock`. Locks: the fabric's, then one
 * domain's; never two domains'. So two domains that write to each other, or one that writes to
 * itself, can't deadlock.
 *
 * Fences. Up to SMALL_COPY bytes are copied under the target's lock. More is copied in slices
 * without it, so that the target's thread isn't held up: the slice pins endpoint and region
 * (`users`), and mr_close() and endpoint_close() unlink first and then wait until the pins are
 * gone. Who holds a pin waits for nothing but that domain's lock, which a closer waiting on
 * `unpinned` has let go. Our own side needs no pin: operations out of it run on the thread that
 * closes, so close just takes them off the lists.
 *
 * Waiting. What can't go on (no RECV is posted there, its completion ring is full) moves to
 * `blocked` after saying so in the peer endpoint's `waited_for`, in the same critical section.
 * Whoever removes the reason sees the flag and pokes the source's domain, which rings like an
 * immediate does. A silent domain (drop_after) never pokes anybody: that is the point of it. */
#ifndef PPLX_CSRC_LOOPBACK_INTERNAL_H
#define PPLX_CSRC_LOOPBACK_INTERNAL_H

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>

#include "loopback_plan.h"
#include "pplx_async/provider.h"

enum {
    LOOPBACK_DEVICES = 8,
    LOOPBACK_IMM_RING = 8192,        /* immediates that have arrived and were not polled yet */
    LOOPBACK_SMALL_COPY = 16 << 10,  /* bytes copied under the target's lock */
    LOOPBACK_SLICE = 256 << 10,      /* bytes copied per pin */
    LOOPBACK_TURN_BYTES = 1 << 20,   /* bytes copied per poll(), so that it returns soon */
    LOOPBACK_TURN_OPS = 256          /* operations executed per poll() */
};

typedef struct loopback_domain loopback_domain;
typedef struct loopback_endpoint loopback_endpoint;

/* Registered memory. Constant after mr_open(), but for what is marked. */
typedef struct loopback_mr {
    loopback_domain *domain;
    struct loopback_mr *next; /* in its bucket; domain's shared.lock */
    uint64_t key, address, nbytes;
    uint32_t access;
    uint32_t users; /* slices being copied into or out of it by peers; domain's shared.lock */
} loopback_mr;

/* A work request that was taken. It is on one list at a time, or on its endpoint's free list. */
typedef struct loopback_record {
    struct loopback_record *next, *prev;
    loopback_endpoint *endpoint;
    pplx_work_request request;
    uint64_t moved;  /* bytes copied so far; RECV: bytes received */
    uint64_t due_ns; /* not executed before; 0 in a domain that isn't timed */
    pplx_status status; /* how it ends; other than PPLX_OK before it runs: it won't run */
} loopback_record;

typedef struct loopback_list {
    loopback_record *head, *tail;
    size_t count;
} loopback_list;

/* Records, of which `used` were ever handed out: the rest isn't touched before. */
typedef struct loopback_pool {
    loopback_record *all, *free;
    uint32_t used, size;
    uint32_t taken; /* now */
} loopback_pool;

struct loopback_endpoint {
    loopback_domain *domain; /* constant; counted in domain->references */
    loopback_endpoint *fabric_next, *fabric_prev; /* fabric lock */
    uint64_t token;                               /* constant; names it in addresses */
    atomic_uint references; /* its owner, and each endpoint whose `peer` it is */
    /* The owner's thread. */
    loopback_endpoint *domain_next, *domain_prev;
    loopback_pool records;  /* all but RECVs: max_inflight, and PPLX_RESERVED_IMMS for immediates alone */
    loopback_pool receives; /* RECVs: max_inflight */
    uint32_t outstanding; /* taken by post(), not reported by poll() */
    bool established;     /* both sides named each other at some time, or the peer is gone */
    bool closing;         /* endpoint_close() said PPLX_UNRELEASED */
    /* Written by the owner's thread under fabric lock and domain's shared.lock; so the owner reads
     * it without, others with either lock. */
    loopback_endpoint *peer;
    /* domain's shared.lock */
    loopback_list posted; /* RECVs, oldest first */
    uint32_t users;       /* slices being copied through it by the peer */
    bool closed;          /* written by the owner */
    bool waited_for;      /* written true by the peer: something of it is blocked by us */
};

/* An immediate that has arrived. */
typedef struct loopback_imm {
    const loopback_endpoint *through; /* of this domain; for comparing only */
    uint32_t imm;
} loopback_imm;

enum loopback_attention {
    LOOPBACK_ARRIVED = 1, /* `imms` or `received` is not empty */
    LOOPBACK_POKED = 2    /* what was blocked may go on, or a connection may stand */
};

struct loopback_domain {
    loopback_plan plan; /* constant */
    uint32_t device;    /* constant */
    int fd;             /* constant until domain_close(): wait fd, -1 without */
    bool timed;         /* constant: fd is a timerfd and records have a due time */
    atomic_uint references; /* its owner, and each endpoint struct that points to it */
    /* The owner's thread. */
    uint64_t random;      /* state of loopback_random() */
    loopback_list queue;  /* to be executed */
    loopback_list blocked; /* waiting for a peer */
    loopback_list done;   /* ended, to be reported */
    loopback_endpoint *endpoints;
    uint64_t posted_ops, executed_ops, registrations, deregistrations; /* counts for the plan's n-ths */
    uint64_t link_free_ns; /* when the line has sent what was posted; bits_per_second */
    bool slept;            /* armed since the last clearing of fd */
    bool refused;          /* the plan made post() say PPLX_AGAIN: nothing will ring for that */
    bool arrivals_first;   /* whose turn it is in poll() */
    /* enum loopback_attention. Written under shared.lock. The owner's unlocked look is a hint that
     * saves the lock on an idle poll; arm() looks again under the lock. */
    atomic_uint attention;
    struct {
        pthread_mutex_t lock;
        pthread_cond_t unpinned; /* some `users` became 0 */
        bool silent;             /* drop_after is reached; written by the owner */
        bool armed;              /* the owner may block on fd: ring it */
        bool waited_for;         /* some endpoint's waited_for may be set because `imms` was full */
        uint32_t closers;        /* threads waiting on unpinned */
        loopback_mr **buckets;   /* registered memory by key */
        size_t nbuckets, nregions;
        loopback_list received; /* RECVs that ended */
        loopback_imm *imms;     /* ring of LOOPBACK_IMM_RING */
        size_t imms_head, imms_count;
    } shared;
};

extern const pplx_provider pplx_provider_loopback;

/* provider_loopback.c */
bool pplx_loopback_connected(loopback_endpoint *self); /* both sides have named each other, or the peer is gone */

/* loopback_wake.c */
bool pplx_loopback_wake_open(loopback_domain *domain);
void pplx_loopback_wake_close(loopback_domain *domain);
void pplx_loopback_wake(loopback_domain *domain);  /* ring it if it is armed; holding its lock */
void pplx_loopback_poke(loopback_domain *domain);  /* take its lock, set POKED, ring */
void pplx_loopback_clear(loopback_domain *domain); /* after arm(): disarm, make fd unreadable */
pplx_status pplx_loopback_arm(pplx_provider_domain *domain);
int pplx_loopback_wait_fd(pplx_provider_domain *domain);

/* loopback_memory.c */
pplx_status pplx_loopback_mr_open(pplx_provider_domain *domain, const pplx_memory *memory, uint32_t access,
                                  pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error);
pplx_status pplx_loopback_mr_close(pplx_provider_mr *mr);
loopback_mr *pplx_loopback_mr_find(loopback_domain *domain, uint64_t key); /* holding its lock */
bool pplx_loopback_random_key(uint64_t *key);
void pplx_loopback_unpin(loopback_domain *domain, uint32_t *users); /* holding its lock */
void pplx_loopback_wait_unpinned(loopback_domain *domain, const uint32_t *users); /* holding its lock */

/* loopback_run.c */
pplx_status pplx_loopback_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                               size_t *posted, int32_t *provider_error);
size_t pplx_loopback_poll(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity);
void pplx_loopback_silence(loopback_domain *domain); /* drop_after: from now on like a dead NIC */

static inline bool loopback_covers(const loopback_mr *mr, uint64_t address, uint64_t nbytes) {
    return address >= mr->address && nbytes <= mr->nbytes && address - mr->address <= mr->nbytes - nbytes;
}

static inline uint64_t loopback_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Before `at`; at the end for NULL. */
static inline void loopback_list_insert(loopback_list *list, loopback_record *record, loopback_record *at) {
    record->next = at;
    record->prev = at ? at->prev : list->tail;
    *(record->prev ? &record->prev->next : &list->head) = record;
    *(at ? &at->prev : &list->tail) = record;
    list->count++;
}

static inline void loopback_list_remove(loopback_list *list, loopback_record *record) {
    *(record->prev ? &record->prev->next : &list->head) = record->next;
    *(record->next ? &record->next->prev : &list->tail) = record->prev;
    list->count--;
}

static inline void loopback_list_move(loopback_list *from, loopback_list *to, loopback_record *record) {
    loopback_list_remove(from, record);
    loopback_list_insert(to, record, NULL);
}

/* NULL: as many are in flight as may be, and `reserved` are not for the caller. */
static inline loopback_record *loopback_pool_take(loopback_pool *pool, uint32_t reserved) {
    if (pool->taken + reserved >= pool->size) return NULL;
    pool->taken++;
    loopback_record *record = pool->free;
    if (!record) return &pool->all[pool->used++];
    pool->free = record->next;
    return record;
}

static inline void loopback_pool_give(loopback_pool *pool, loopback_record *record) {
    pool->taken--;
    record->next = pool->free;
    pool->free = record;
}

__attribute__((format(printf, 4, 5))) static inline pplx_status loopback_fail(pplx_error *error, pplx_status status,
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
