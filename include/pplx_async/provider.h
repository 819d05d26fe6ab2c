/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A provider moves bytes. This header is all that one needs: fill a `struct pplx_provider`, export
 * it from a shared object as `pplx_provider_entry`, and name the file in EngineOptions.fabric.
 *
 * The contract, which nothing above relaxes:
 *   1. Operations may complete, and immediates arrive, in any order.
 *   2. An immediate arrives after the bytes of its own write are in memory, and exactly once.
 *   3. A write completes at its source when its bytes are visible at the target, or fails.
 *   4. `post` never blocks: what does not fit now is not taken, and the call says PPLX_AGAIN.
 *   5. Every work request taken by `post` completes once, or its endpoint is closed.
 *   6. Memory is touched only between `post` and the completion (or `endpoint_close`).
 *   7. A bad key or range never touches the target's memory: PPLX_REMOTE_ACCESS at the source. A
 *      provider that only sees the connection break, whatever the cause, says PPLX_CONNECTION: the
 *      engine finds out whether the peer lives, and takes the oldest of them for the one refused.
 *
 * Threads: `discover` may be called by any thread. All other calls on one domain and what belongs
 * to it are made by one thread at a time, the holder of the engine's progress token; a provider
 * needs no lock for them (but see PPLX_CAP_REGISTER_APART). No call may block, apart from discover, domain_open, mr_open and the
 * close calls. */
#ifndef PPLX_ASYNC_PROVIDER_H
#define PPLX_ASYNC_PROVIDER_H

#include "pplx_async/types.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PPLX_PROVIDER_ABI 2
#define PPLX_PROVIDER_ENTRY "pplx_provider_entry" /* const struct pplx_provider *(*)(void) */

/* Opaque to the engine; a provider casts its own structs to these. */
typedef struct pplx_provider_domain pplx_provider_domain;     /* a NIC, with its completion queue */
typedef struct pplx_provider_endpoint pplx_provider_endpoint; /* our side of the way to one peer */
typedef struct pplx_provider_mr pplx_provider_mr;             /* registered memory */

enum pplx_capability {
    PPLX_CAP_READ = 1,    /* PPLX_READ works */
    PPLX_CAP_WAIT_FD = 2, /* wait_fd() and arm() work; otherwise the engine polls on a timer */
    PPLX_CAP_FENCE = 4,   /* endpoint_close() returns only when the endpoint's memory is let go */
    PPLX_CAP_CUDA = 8,    /* mr_open() takes PPLX_MEMORY_CUDA */
    PPLX_CAP_DMABUF = 16, /* mr_open() takes PPLX_MEMORY_DMABUF */
    PPLX_CAP_STACKED = 32, /* its wait fd is a stack of epolls, and no epoll should take it on top: ppoll() only */
    PPLX_CAP_PROMPT = 64,  /* what is posted mostly ends at once, and to poll() for it costs no system call */
    PPLX_CAP_STREAM = 128, /* an endpoint's work requests leave in turn: a long one holds up the others */
    PPLX_CAP_DEATH = 256,  /* PPLX_PEER_LOST says that the peer's process has ended, and not only this way to it */
    PPLX_CAP_REGISTER_APART = 512, /* mr_open() and mr_close() may be called by any thread, beside all other calls */
    PPLX_CAP_CUDA_APART = 1024, /* with PPLX_CAP_REGISTER_APART: for PPLX_MEMORY_CUDA, too, and better so */
    PPLX_CAP_GPU_FLUSH = 2048 /* besides CUDA: a GPU may hold back what it has written there from work that was queued
                               * before, and the engine flushes it before it lets a stream go */
};

/* Heartbeats and returned credits may not wait until data has left: for so many immediates alone
 * there is room on an endpoint that is full of data. */
enum { PPLX_RESERVED_IMMS = 4 };

/* Limits and preferences of a domain; the engine plans by them. */
typedef struct pplx_caps {
    uint32_t flags;             /* enum pplx_capability */
    uint32_t max_inflight;      /* work requests in flight on one endpoint: our own cap. Up to
                                 * PPLX_RESERVED_IMMS immediates alone should be taken beyond it */
    uint64_t max_inflight_bytes; /* bytes in flight on one endpoint: keeps heartbeats timely */
    uint64_t max_message;       /* bytes of one work request */
    uint32_t eager_posts;       /* work requests to post at once for a new request */
    uint32_t posts_per_turn;    /* ... and per turn of the proxy's loop afterwards */
    uint32_t max_segments;      /* of one work request; 0: it takes one address each */
    uint64_t bits_per_second;   /* link speed, 0 if unknown */
    char description[PPLX_TEXT_BYTES]; /* provider, library, version, quirks in force */
    char subnets[PPLX_TEXT_BYTES]; /* whom it reaches, as words with blanks between: "ipv4:10.1.0.0/16". Domains that
                                    * share a word are joined first; without any, those that share what stands
                                    * before a colon, for a router may join them; others never. Empty: it reaches
                                    * every domain of its provider, for all that is known */
} pplx_caps;

typedef struct pplx_provider {
    size_t size;  /* sizeof(struct pplx_provider) where the provider was compiled */
    uint32_t abi; /* PPLX_PROVIDER_ABI there */
    uint32_t reserved;
    const char *name;

    /* List the devices that `options` allow. Fills at most `capacity`, sets *count to how many
     * there are. None is PPLX_UNAVAILABLE, with the reason and the remedy in error->text. */
    pplx_status (*discover)(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                            size_t *count, pplx_error *error);

    /* Open a device by name. A device may be opened several times: each is a domain of its own. */
    pplx_status (*domain_open)(const char *device, const pplx_option *options, size_t noptions,
                               pplx_provider_domain **domain, pplx_error *error);

    /* Every endpoint and memory region of it is closed before. */
    void (*domain_close)(pplx_provider_domain *domain);
    void (*domain_caps)(pplx_provider_domain *domain, pplx_caps *caps);

    /* Open our side of the way to one peer, write the address that the peer connects to into
     * `address` (*nbytes: capacity in, length out). It accepts posts of RECV from now on. */
    pplx_status (*endpoint_open)(pplx_provider_domain *domain, pplx_provider_endpoint **endpoint, void *address,
                                 size_t *nbytes, pplx_error *error);

    /* Name the peer's side: the bytes that its endpoint_open() gave. They are hostile input.
     * Does not wait: until the connection stands, post() says PPLX_AGAIN. */
    pplx_status (*endpoint_connect)(pplx_provider_endpoint *endpoint, const void *address, size_t nbytes,
                                    pplx_error *error);

    /* Close it. With PPLX_CAP_FENCE: when this returns PPLX_OK, this side's memory is touched no
     * more, neither by the endpoint's work requests nor by what the peer writes through it, and
     * poll() will never report one of its ops: the engine takes them as flushed. PPLX_UNRELEASED
     * says that the peer has to let go first (bounded in time, unless an option made us trust it to
     * do so): its ops are done for and may come through poll() meanwhile, and the engine calls again.
     * Without: returns PPLX_UNRELEASED as long as some ops have not completed; they go on to complete
     * through poll(), and the engine calls again. Immediates that had arrived are reported either way. */
    pplx_status (*endpoint_close)(pplx_provider_endpoint *endpoint);

    /* Register memory. `access`: enum pplx_access. Keys are unguessable where the provider lets
     * us choose them. mr_close() may say PPLX_UNRELEASED: no peer gets at it any more, but one that did
     * has not let go, and may still write. It is called again, if only after the endpoints are closed;
     * if it never is, domain_close() takes the region with it. */
    pplx_status (*mr_open)(pplx_provider_domain *domain, const pplx_memory *memory, uint32_t access,
                           pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error);
    pplx_status (*mr_close)(pplx_provider_mr *mr);

    /* Post `count` work requests in order, as one batch (one doorbell). *posted says how many were
     * taken: all with PPLX_OK, fewer with PPLX_AGAIN. Any other status says why the one after
     * those was refused, and that it never will be taken; `provider_error` then has the native
     * code. `requests` need not outlive the call; each one's op must. */
    pplx_status (*post)(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                        size_t *posted, int32_t *provider_error);

    /* Take up to `capacity` completions; returns how many. Also makes progress. Never fails: a
     * broken queue reports through the completions of what it loses. */
    size_t (*poll)(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity);

    /* Before the thread blocks on wait_fd(), after all else that it does: PPLX_OK, it may, and the fd will turn readable as soon
     * as poll() has something to do; PPLX_AGAIN, poll again first; PPLX_UNSUPPORTED, at present the
     * fd can't tell of everything: it may block, and polls on a timer as well. */
    pplx_status (*arm)(pplx_provider_domain *domain);

    /* A descriptor for ppoll that stays the same and stays the provider's; -1 without one. */
    int (*wait_fd)(pplx_provider_domain *domain);

    /* Optional (NULL): after wait_fd() has become readable and before poll(), the CPU of the peer's thread
     * that made it so; -1 where that isn't known. */
    int (*woken_from)(pplx_provider_domain *domain);
} pplx_provider;

typedef const pplx_provider *(*pplx_provider_entry_fn)(void);

#ifdef __cplusplus
}
#endif
#endif
