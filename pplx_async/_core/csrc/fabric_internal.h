/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the files of the fabric provider share. provider_fabric.c tells how they work together. */
#ifndef PPLX_ASYNC_FABRIC_INTERNAL_H
#define PPLX_ASYNC_FABRIC_INTERNAL_H

#include <stdbool.h>

#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>

#include "cuda_driver.h"
#include "dynload.h"
#include "pplx_async/provider.h"

/* The API that we speak to the library: that of the headers. With some providers a newer one, fabric_api(): the layout
 * of what fi_getinfo() gives is fixed by the version of its symbol and not by this (dynload.c), but other structs grow
 * with it at their ends. Those of them that we use are unions here, with room and with zeros where none is known of. */
#define FABRIC_API FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION)

typedef union fabric_mr_attr {
    struct fi_mr_attr attr;
    unsigned char room[256];
} fabric_mr_attr;

typedef union fabric_cq_error {
    struct fi_cq_err_entry entry;
    unsigned char room[256];
} fabric_cq_error;

typedef struct fabric_quirks {
    const char *name;         /* fi_fabric_attr.prov_name, all of it */
    bool endpoint_per_peer;   /* a fid_ep for each peer: closing it is a fence */
    bool cq_per_endpoint;     /* and a CQ for each of these */
    bool abandons;            /* who connects: when the fid_ep is closed nobody looks at those sockets any more */
    bool wait_fd;             /* a CQ can be opened with FI_WAIT_FD */
    uint32_t max_wait_fds;    /* so many of a domain's; 0: any number */
    bool more;                /* FI_MORE on all posts of a batch but the last */
    bool event_queue;         /* wants an event queue bound to its endpoint */
    bool efa_options;         /* FI_OPT_SHARED_MEMORY_PERMITTED and FI_OPT_CUDA_API_PERMITTED to be false */
    bool newer_api;           /* the API that is asked for decides what it does: see fabric_api() */
    bool gpus;                /* the NIC itself reaches memory of GPUs: ask for FI_HMEM where there are some */
    bool register_apart;      /* see PPLX_CAP_REGISTER_APART */
    bool warm_up;             /* post once when the domain is opened */
    bool takes_node;          /* is told the address to bind to */
    bool stream;              /* what a peer is sent goes through one connection */
    uint32_t settle_ms; /* say "again" for so long after a failure; only with cq_per_endpoint */
    uint64_t extra_caps;      /* beyond those of every fabric */
    uint32_t max_inflight;    /* our caps, see pplx_caps */
    uint64_t max_inflight_bytes;
    uint64_t max_message; /* where less than the provider's own limit is better; 0: that limit */
    uint32_t eager_posts;
    uint32_t posts_per_turn;
} fabric_quirks;

/* The options, as domain_open() and discover() get them. */
typedef struct fabric_options {
    const char *library;
    const char *node;
    const fabric_quirks *provider; /* NULL: any of the table */
    const char *libcuda;           /* NULL: as the system finds it */
    bool cuda;                     /* nothing that has no FI_HMEM */
    bool cuda_too;                 /* with FI_HMEM where the quirks say so and the library has it, else without */
} fabric_options;

/* A list without allocation: a ring through its head. */
typedef struct fabric_link {
    struct fabric_link *next, *prev;
} fabric_link;

static inline void fabric_list_init(fabric_link *head) { head->next = head->prev = head; }
static inline bool fabric_list_empty(const fabric_link *head) { return head->next == head; }
static inline void fabric_list_append(fabric_link *head, fabric_link *link) {
    link->next = head;
    link->prev = head->prev;
    head->prev->next = link;
    head->prev = link;
}
static inline void fabric_list_remove(fabric_link *link) {
    link->next->prev = link->prev;
    link->prev->next = link->next;
}

typedef struct fabric_peer fabric_peer;
typedef struct fabric_domain fabric_domain;

/* Our side of the way to one peer. All fields belong to the domain's thread. */
typedef struct fabric_endpoint {
    fabric_domain *domain;
    fabric_link in_domain;
    struct fid_ep *ep;       /* its own, or the domain's shared one; NULL once closed */
    struct fid_cq *cq;       /* its own, or the domain's */
    bool wakes;              /* that CQ has a wait fd */
    fabric_peer *peer;       /* NULL until connected */
    fabric_link posted;      /* fabric_ops that the library holds */
    fabric_link waiting;     /* RECVs that it is not offered yet */
    uint32_t inflight;       /* of `posted`: all but RECVs */
    uint32_t receives;       /* RECVs, posted and waiting */
    uint64_t inflight_bytes;
    uint64_t settled_ns; /* CLOCK_MONOTONIC: no posts before a CQ read after it; 0 for none */
    bool closing;
} fabric_endpoint;

typedef struct fabric_mr {
    struct fid_mr *mr;
    void *desc; /* with each work request: who has FI_MR_LOCAL or FI_MR_HMEM knows by it whose memory that is */
    uint64_t address, nbytes;
    fabric_domain *domain;
} fabric_mr;

/* What lies in pplx_op.scratch from post to completion. libfabric is given the address as its
 * context and owns `context` while the op is posted (mode FI_CONTEXT); FI_CONTEXT2, which would
 * take all eight words, is not offered to it. An op is always on exactly one list. */
typedef struct __attribute__((may_alias)) fabric_op {
    union {
        struct fi_context context; /* while on fabric_endpoint.posted */
        struct {                   /* while on fabric_endpoint.waiting */
            uint64_t local_address;
            fabric_mr *local_mr;
        } receive;
        struct { /* while on fabric_domain.kept */
            int32_t status, provider_error;
            uint64_t nbytes;
        } done;
    } state;
    fabric_endpoint *endpoint;
    fabric_link link;
    uint64_t opcode : 8, nbytes : 56;
} fabric_op;

_Static_assert(sizeof(fabric_op) <= sizeof(((pplx_op *)0)->scratch), "fabric_op must fit in pplx_op.scratch");
_Static_assert(offsetof(pplx_op, scratch) == 0, "an op is found from its scratch");

static inline fabric_endpoint *fabric_endpoint_of(fabric_link *link) {
    return (fabric_endpoint *)(void *)((char *)link - offsetof(fabric_endpoint, in_domain));
}

static inline fabric_op *fabric_op_of(fabric_link *link) {
    return (fabric_op *)(void *)((char *)link - offsetof(fabric_op, link));
}

/* An immediate that was found while an endpoint was closed; as in pplx_completion. */
typedef struct fabric_imm {
    const pplx_provider_endpoint *source;
    uint32_t imm;
    int32_t status;
} fabric_imm;

struct fabric_domain {
    const pplx_libfabric *lib;
    const fabric_quirks *quirks;
    struct fi_info *info;
    struct fid_fabric *fabric;
    struct fid_domain *domain;
    struct fid_av *av;
    struct fid_cq *cq;        /* NULL with cq_per_endpoint */
    struct fid_eq *eq;
    struct fid_ep *shared_ep; /* NULL with endpoint_per_peer */
    int wait_fd;              /* of `cq`; with cq_per_endpoint an epoll of ours over theirs; or -1 */
    uint32_t wait_fds;        /* in that epoll */
    int32_t broken; /* the native error that ended the CQ; 0 as long as it works */
    uint32_t waiting; /* length of all fabric_endpoint.waiting together */
    bool guarded; /* only the host of its peer may connect to an endpoint */

    const pplx_libcuda *cuda; /* found, and not initialised before there is memory of a GPU to register; or NULL */
    char no_gpus[160];        /* why it takes no memory of GPUs, if there are some and it might */

    fabric_link endpoints;
    fabric_peer *peers;

    /* Which endpoint leads to the sender of an immediate, by its address in the AV, a small number. Only where
     * the library tells that (FI_SOURCE), and nothing else does: with a CQ for each endpoint that is known. */
    bool tells_source;
    const fabric_endpoint **by_address;
    size_t naddresses;

    /* Completions found while an endpoint was closed, for later polls. Those of ops are linked
     * through the ops, immediates are a ring. */
    fabric_link kept;
    fabric_imm *imms;
    size_t imms_first, imms_count, imms_capacity;

    /* Work posted with FI_MORE whose successor the library did not take: nothing has told the NIC
     * of it yet. fabric_ring() does, by a write of no bytes to the same target. */
    bool unrung, doorbell_out;
    uint32_t inflight; /* of all endpoints: what is in the library's queue, where they share one, but the doorbell */
    fabric_op doorbell;
    struct fabric_last {
        const fabric_op *op; /* has rung, or somebody has for it, when it completes */
        fi_addr_t peer;
        uint64_t local_address, remote_address, remote_key;
        void *desc;
    } last;

    pplx_caps caps;
};

/* fabric_discover.c: options and discovery */
pplx_status fabric_options_parse(const pplx_option *options, size_t noptions, fabric_options *out, pplx_error *error);
pplx_status fabric_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                            size_t *count, pplx_error *error);
/* The fi_info for `device`, ours to free; quirks say which provider it is of. */
pplx_status fabric_find(const pplx_libfabric *lib, const char *file, const fabric_options *options, const char *device,
                        struct fi_info **info, const fabric_quirks **quirks, pplx_error *error);
pplx_status fabric_fail(pplx_error *error, pplx_status status, int native, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
uint32_t fabric_api(const pplx_libfabric *lib, const fabric_quirks *quirks);

/* fabric_domain.c */
pplx_status fabric_domain_open(const char *device, const pplx_option *options, size_t noptions,
                               pplx_provider_domain **domain, pplx_error *error);
void fabric_domain_close(pplx_provider_domain *handle);
void fabric_domain_caps(pplx_provider_domain *handle, pplx_caps *caps);
/* Fabric, domain, address vector and event queue of a device: no completion queue and no endpoint
 * yet. *file: the library's. fabric_domain_close() closes it. */
pplx_status fabric_domain_open_bare(const char *device, const pplx_option *options, size_t noptions,
                                    fabric_domain **domain, const char **file, pplx_error *error);
/* A CQ: with a wait fd (*fd, else -1) where the provider has it, without one otherwise. */
int fabric_cq_open(fabric_domain *domain, struct fid_cq **cq, int *fd);
/* A CQ whose wait fd is in an epoll set of ours, if there may be one more; -1: without one. */
int fabric_cq_open_in(fabric_domain *domain, int set, struct fid_cq **cq);
void fabric_cq_close_in(fabric_domain *domain, int set, struct fid_cq *cq);
/* A fid_ep that completes on this CQ. */
pplx_status fabric_ep_open_on(fabric_domain *domain, struct fid_cq *cq, struct fid_ep **ep, pplx_error *error);
/* A fid_ep and the CQ that it uses: the domain's, or a new one. */
pplx_status fabric_ep_open(fabric_domain *domain, struct fid_ep **ep, struct fid_cq **cq, pplx_error *error);
/* Whether it has a wait fd. */
bool fabric_cq_wakes(struct fid_cq *cq);
/* Close such a CQ; the domain's stays open. */
void fabric_cq_close(fabric_domain *domain, struct fid_cq *cq);

/* fabric_memory.c */
pplx_status fabric_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                           pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error);
pplx_status fabric_mr_close(pplx_provider_mr *handle);
/* fi_mr_regattr(), with a key that nobody can guess where the library lets us choose. 0, or the negative error. */
int fabric_register(fabric_domain *domain, fabric_mr_attr *attr, uint64_t flags, struct fid_mr **mr);

/* fabric_cuda.c */
/* Whether memory of GPUs is registered as dma-bufs. */
bool fabric_cuda_by_dmabuf(const fabric_domain *domain);
/* Register it, with `access`: libfabric's. */
pplx_status fabric_cuda_register(fabric_domain *domain, const pplx_memory *memory, uint64_t access, struct fid_mr **mr,
                                 pplx_error *error);

/* fabric_endpoint.c */
pplx_status fabric_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **endpoint, void *address,
                                 size_t *nbytes, pplx_error *error);
pplx_status fabric_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                    pplx_error *error);
int fabric_ep_close(fabric_endpoint *endpoint); /* fi_close() of it */
pplx_status fabric_endpoint_close(pplx_provider_endpoint *handle);
/* The bytes come from a stranger: nothing may reach the library that it would read beyond, take
 * for another family, or that leads out of loopback when we were told to stay there. `own`: where
 * we are bound. */
pplx_status fabric_address_check(const struct fi_info *info, const void *own, size_t own_nbytes, const void *address,
                                 size_t nbytes, pplx_error *error);
/* The AV's entry for a checked address; an entry is removed as often as it was inserted. */
pplx_status fabric_peer_insert(fabric_domain *domain, const void *address, size_t nbytes, fabric_peer **peer,
                               pplx_error *error);
void fabric_peer_remove(fabric_domain *domain, fabric_peer *peer);

/* fabric_guard.c: who may connect to an endpoint's port */
bool fabric_guard_wanted(const struct fi_info *info); /* bound where others than this host get to */
bool fabric_guard_works(void);
pplx_status fabric_guard(const fabric_endpoint *endpoint, pplx_error *error); /* from now on its peer's host only */
/* fi_close() of it, and an end of those that have connected and not been answered yet. */
int fabric_guard_close(const fabric_endpoint *endpoint);

/* fabric_post.c */
pplx_status fabric_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count, size_t *posted,
                        int32_t *provider_error);
/* Refuse at once what can't succeed. */
pplx_status fabric_check(const fabric_endpoint *endpoint, const pplx_work_request *request);
/* Hand a checked request to the library; `peer` of a RECV may be FI_ADDR_UNSPEC. The op is ours from
 * here, the caller's again if the library does not take it: then its own, negative, code. */
ssize_t fabric_post_to(fabric_endpoint *endpoint, fi_addr_t peer, const pplx_work_request *request, uint64_t flags);
/* Tell the NIC of work that waits for a successor; from poll. */
void fabric_ring(fabric_domain *domain);
/* Offer the RECVs that came before the peer was known. */
void fabric_post_waiting(fabric_endpoint *endpoint);

/* fabric_cq.c */
size_t fabric_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity);
pplx_status fabric_arm(pplx_provider_domain *handle);
int fabric_wait_fd(pplx_provider_domain *handle);
/* Read one of the library's CQs; also drives its progress. `flags`, if not NULL, become those of each
 * entry. *empty: it said that it has no more, which is not asked after a batch that it did not fill:
 * each call costs system calls on tcp. */
size_t fabric_cq_read(fabric_domain *domain, struct fid_cq *cq, pplx_completion *completions, uint64_t *flags,
                      size_t capacity, bool *empty);
/* The same for an endpoint with a CQ of its own, which may settle it. */
size_t fabric_cq_read_own(fabric_endpoint *endpoint, pplx_completion *completions, uint64_t *flags, size_t capacity);
/* Whether the thread may sleep: the CQ's fd then turns readable for entries from here on, and for
 * sockets that need us, those of connections being set up among them. */
bool fabric_may_sleep(const fabric_domain *domain, struct fid_cq *cq);
/* The library is done with the op, or will never report it. */
void fabric_finish(fabric_op *op, pplx_completion *completion, pplx_status status, int32_t provider_error,
                   uint64_t nbytes);
/* After the endpoint's fid_ep is closed: take all that the CQ has, forget what is of this endpoint,
 * keep the rest for later polls. PPLX_AGAIN: no memory to keep it, call again. */
pplx_status fabric_cq_drain(fabric_endpoint *endpoint);
bool fabric_reserve_imms(fabric_domain *domain); /* false: no memory */
/* Something failed by the transport: hold further posts for quirks->settle_ms. */
void fabric_unsettle(fabric_endpoint *endpoint);
/* Put a finished op aside for the next poll. */
void fabric_keep(fabric_domain *domain, fabric_op *op, pplx_status status, int32_t provider_error, uint64_t nbytes);
/* The status for a failed post or completion; `native` positive. */
pplx_status fabric_status(int native);

/* A peer's address in the AV. Endpoints of one domain that lead to the same address share it. */
struct fabric_peer {
    fabric_peer *next;
    fi_addr_t address;
    uint32_t references;
    uint32_t nbytes;
    unsigned char raw[PPLX_ADDRESS_BYTES];
};

#endif
