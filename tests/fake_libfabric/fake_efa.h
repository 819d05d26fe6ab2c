/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A libfabric.so.1 of our own that speaks EFA, so that tests on any machine see what an EFA user
 * sees. It moves bytes between endpoints of one process only. Built by
 *
 *     gcc -std=gnu11 -fPIC -shared -Wl,-soname,libfabric.so.1 -Wl,--version-script=libfabric.map \
 *         -o libfabric.so.1 fake_*.c -lpthread
 *
 * with the real headers. What it insists on, because EFA does:
 *   - operations land and complete in any order: a seeded shuffle of all that is in flight
 *   - posts say -FI_EAGAIN, now and then and when FAKE_EFA_TX_SIZE of them are out
 *   - both sides hold an address handle of the other, or a write ends as "unknown peer"
 *   - a write of no bytes names a valid key and address all the same
 *   - local memory has a descriptor of its own domain that covers it
 *   - 32-bit immediates; no wait object on the CQ; keys and addresses are the NIC's (mr_mode)
 *   - FI_OPT_SHARED_MEMORY_PERMITTED and FI_OPT_CUDA_API_PERMITTED set to false, FI_OPT_FI_HMEM_P2P to
 *     FI_HMEM_P2P_REQUIRED with FI_HMEM, and an event queue bound, or the endpoint can't be enabled
 *   - memory of GPUs: as fi_mr(3) has it and EFA's source. FI_HMEM and FI_MR_HMEM in the hints; FI_HMEM_CUDA, the
 *     right device; FI_MR_DMABUF only with an API of 1.20; zeros in what newer structs have at their ends
 *   - no FI_INJECT, which memory of GPUs forbids
 *   - work posted with FI_MORE stays where it is until a post without
 * Stricter than the real one: some of this it would let pass. fi_getinfo bound without its version
 * ends the process (the real one returns structs of another layout).
 *
 * Environment, read at fi_domain() or later:
 *   FAKE_EFA_SEED         of the shuffle, default 1
 *   FAKE_EFA_NICS         devices offered, default 2
 *   FAKE_EFA_TX_SIZE      posts in flight on an endpoint, default 256
 *   FAKE_EFA_AGAIN        of a hundred posts so many say -FI_EAGAIN, default one in nine
 *   FAKE_EFA_REGIONS      regions of a domain; one more is -FI_ENOSPC; default any number
 *   FAKE_EFA_PINS         1: memory is pinned, so beyond RLIMIT_MEMLOCK it is -FI_ENOMEM (as ordinary users
 *                         hear it, also where a privilege would let us pin more); default 0
 *   FAKE_EFA_CUDA         path of the tests' libcuda; without it this library was built without CUDA
 *   FAKE_EFA_P2P          0: the NIC can't reach memory of GPUs; default 1
 *   FAKE_EFA_DMABUF       0: nor take a dma-buf; default 1
 *   FAKE_EFA_PEER         0: no kernel module helps it with memory of a GPU by its address; default 1
 *   FAKE_EFA_VERSION      minor version of this libfabric 1, default 22
 *   FAKE_EFA_RINGS        1: FI_MORE or not, the NIC is told at once, as by a library whose batch is full; default 0
 *   FAKE_EFA_FATAL_AFTER  completions after which a domain's event queue reports a fatal error
 *                         and nothing completes any more; default never
 *
 * One lock guards everything, so domains may be driven by different threads. */
#ifndef FAKE_EFA_H
#define FAKE_EFA_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

enum { FAKE_ADDRESS_BYTES = 32, FAKE_MAX_PEERS = 1024, FAKE_MAX_NICS = 8, FAKE_TX_SIZE = 256 };

/* The device's completion statuses that we use, as fi_cq_err_entry.prov_errno. */
enum {
    FAKE_OK = 0,
    FAKE_FLUSHED = 1,
    FAKE_INVALID_LKEY = 5,
    FAKE_BAD_ADDRESS = 7,
    FAKE_BAD_DEST_QPN = 9,
    FAKE_UNKNOWN_PEER = 14
};

typedef struct fake_address {
    uint8_t gid[16];
    uint16_t qpn;
    uint16_t pad;
    uint32_t qkey;
    uint64_t reserved;
} fake_address;
_Static_assert(sizeof(fake_address) == FAKE_ADDRESS_BYTES, "as long as EFA's");

typedef struct fake_entry {
    struct fake_entry *next;
    struct fi_cq_err_entry entry; /* err 0: a success */
} fake_entry;

typedef struct fake_domain {
    struct fid_domain fid;
    uint32_t nic;
    uint64_t random;
    size_t tx_size;
    long again;       /* percent; -1: one in nine */
    long regions;     /* left; -1: any number */
    bool pins;
    long fatal_after; /* completions left; -1 for ever */
    uint32_t api;
    bool hmem;
    int objects;      /* open children: closing before them is refused */
} fake_domain;

typedef struct fake_av {
    struct fid_av fid;
    fake_domain *domain;
    fake_address peers[FAKE_MAX_PEERS];
    bool used[FAKE_MAX_PEERS];
} fake_av;

typedef struct fake_cq {
    struct fid_cq fid;
    fake_domain *domain;
    fake_entry *first, **last;
} fake_cq;

typedef struct fake_eq {
    struct fid_eq fid;
    int fatal; /* an error to be read */
} fake_eq;

typedef struct fake_mr {
    struct fid_mr fid;
    fake_domain *domain;
    struct fake_mr *next;
    uint64_t address, nbytes, access;
    unsigned char *alias; /* where these bytes are for us */
    void *mapped;         /* of a dma-buf, or NULL */
    size_t mapped_nbytes;
} fake_mr;

/* What fi_mr_regattr() was given last for memory of a GPU. */
typedef struct fake_registration {
    uint64_t flags, address, nbytes, offset;
    int iface, device, taken, refused; /* the last two: so far */
} fake_registration;

/* For tests: what was registered; and hold up who registers memory of a GPU, until told otherwise. */
__attribute__((visibility("default"))) void fake_efa_registered(fake_registration *out);
__attribute__((visibility("default"))) void fake_efa_hold(int yes);

enum fake_kind { FAKE_WRITE, FAKE_READ, FAKE_SEND };

/* An operation in flight, or a RECV, or a message that nobody has asked for yet. */
typedef struct fake_op {
    struct fake_op *next;
    enum fake_kind kind;
    void *context;
    uint64_t flags, data;
    unsigned char *local;
    uint64_t nbytes;
    uint64_t remote, key;
    fake_address target; /* of a message: where it came from */
    fi_addr_t from;      /* of a RECV: FI_ADDR_UNSPEC or the peer */
    bool rung;
    bool landed; /* done at the target; `status` is what the source will hear */
    int status;
} fake_op;

typedef struct fake_ep {
    struct fid_ep fid;
    struct fake_ep *next; /* of all endpoints of the process */
    fake_domain *domain;
    fake_av *av;
    fake_cq *cq;
    fake_eq *eq;
    fake_address address;
    bool no_shm, no_cuda, p2p, enabled;
    fake_op *inflight;
    size_t ninflight;
    fake_op *receives;   /* oldest first */
    fake_op *unexpected; /* oldest first; `local` is a copy of ours */
} fake_ep;

extern pthread_mutex_t fake_lock;
extern fake_ep *fake_endpoints; /* guarded by fake_lock */
extern fake_mr *fake_regions;   /* guarded by fake_lock */
extern uint64_t fake_pinned;    /* bytes; guarded by fake_lock */

extern struct fi_ops_msg fake_msg_ops;
extern struct fi_ops_rma fake_rma_ops;
extern struct fi_ops_cq fake_cq_ops;

long fake_number(const char *name, long otherwise);
uint64_t fake_random(fake_domain *domain);
int fake_register_gpu(fake_mr *mr, const struct fi_mr_attr *attr, uint64_t flags);
int fake_domain_open(struct fid_fabric *fabric, struct fi_info *info, struct fid_domain **domain, void *context);
int fake_eq_open(struct fid_fabric *fabric, struct fi_eq_attr *attr, struct fid_eq **eq, void *context);
int fake_trywait(struct fid_fabric *fabric, struct fid **fids, int count);
void fake_push(fake_cq *cq, void *context, uint64_t flags, uint64_t nbytes, uint64_t data, int err, int status);
ssize_t fake_cancel(fid_t fid, void *context);
void fake_forget(fake_ep *ep);

#endif
