/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A libibverbs.so.1 of our own: reliable connections (RC) between queue pairs of one process, so that tests see
 * what a user of InfiniBand or RoCE sees on a machine that has neither. Built by
 *
 *     gcc -std=gnu11 -fPIC -shared -Wl,--version-script=libibverbs.map -o libibverbs_fake.so.1 fake_*.c -lpthread
 *
 * with the real headers. With libibverbs_old.map it lacks what came after rdma-core 23.
 *
 * A work request is executed when it is posted, by the thread that posts it, unless it has to wait: for the one
 * before it, for the peer's queue pair or receive, or for its time. Who waits is tried again when what he waits for
 * comes, and by a thread that is there as long as somebody has a deadline.
 *
 * What it insists on, since a device does:
 *   - modify_qp: the states in turn, exactly the attributes that each step takes, values within the device's
 *   - packets are numbered: where sq_psn of one side isn't rq_psn of the other, nothing arrives; no more does
 *     what comes from another queue pair than the one that was named
 *   - a place in the send queue is free once a completion of it, or of one after it, was read; else ENOMEM
 *   - a local key covers its range, in the queue pair's protection domain; the memory of what isn't inlined is read
 *     late, when it leaves
 *   - a bad remote key breaks both queue pairs; what is left in them is flushed
 *   - no receive: it is tried again rnr_retry times; no answer: retry_cnt times, with the timeout; 7 is for ever
 *   - a completion queue that overflows is lost, and so are the queue pairs that use it
 *   - of a failed completion only wr_id, status, qp_num and vendor_err mean something; the rest is nonsense
 *   - an event comes once for each ibv_req_notify_cq, and only for what arrives after it
 *   - whoever has read events acknowledges them before he destroys what they were of, or while he does; here destroying
 *     fails after a while, with a complaint, where the real one waits for ever
 *   - what is destroyed has nothing left that uses it: EBUSY
 * A queue pair that is destroyed or reset takes its completions out of the queue.
 *
 * FAKE_IBV_LAYOUT, or fake_ibv_layout(): the devices, separated by `;`, each a name and words:
 *     roce | ib | iwarp | efa   what it is; RoCE has link-local GIDs at 0 (v1) and 1 (v2), `bare` none
 *     ip=ADDRESS                GIDs of that address, v1 and v2; v1=, v2=: one; gid=: one without a type, for ib
 *     gbps=N mtu=N lid=N net=N  of the port; ports of different nets don't reach each other
 *     pkey=N                    the first takes the place of 0xffff, each other one that of an empty entry
 *     grh                       the port takes no packet without a global route, as that of a virtual function
 *     down | init               the port's state; active otherwise
 *     port                      what follows is of the next port
 *     cqe=N wr=N srq=N inline=N qps=N mrs=N sge=N   limits of the device
 *     reads=N asks=N            READs at a time: that it answers and asks for; that it asks for
 *     td, dmabuf                it has thread domains, takes dma-bufs
 *     soft                      it says that it is soft-RoCE
 *     sticky                    as rdma_rxe: if a queue pair breaks in the middle of a READ, then RESET does not help: what
 *                               is oldest afterwards succeeds without being done, unless it is a READ of one packet, and
 *                               the queue pair breaks again
 *     noopen                    it is listed, and can't be opened
 *     delay=N                   microseconds that a work request takes, after the one before
 *     reg=N                     milliseconds that it takes to register memory, and to take it back
 *     retry=N                   milliseconds until an answer is missed, whatever the queue pair says
 *     stale                     completions of a queue pair outlive it
 *     late                      in ERR and RESET nothing is flushed, until the queue pair is destroyed
 *   Without devices: `none`; `nosys`, the kernel has no RDMA at all.
 * FAKE_IBV_SYSFS: the folder that a device's ibdev_path names instead of /sys/class/infiniband.
 *
 * One lock guards everything, so contexts may be used by different threads. */
#ifndef FAKE_IBVERBS_H
#define FAKE_IBVERBS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default) /* all that these headers declare is exported, by way of the map */
#include <infiniband/verbs.h>

#include "fake_control.h"
#pragma GCC visibility pop
#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova

enum { FAKE_MAX_DEVICES = 16, FAKE_MAX_PORTS = 4, FAKE_MAX_GIDS = 32, FAKE_MAX_PKEYS = 8, FAKE_MAX_SGE = 4 };
enum { FAKE_MAX_INLINE = 256 };

typedef struct fake_gid {
    union ibv_gid gid;
    uint32_t type; /* enum ibv_gid_type */
    bool used;
} fake_gid;

typedef struct fake_port {
    struct ibv_port_attr attr;
    fake_gid gids[FAKE_MAX_GIDS];
    uint16_t pkeys[FAKE_MAX_PKEYS];
    int npkeys; /* of them, those that the layout names */
    int net;
    bool cut; /* loses all packets */
} fake_port;

typedef struct fake_device {
    struct ibv_device device;
    struct ibv_device_attr attr;
    fake_port ports[FAKE_MAX_PORTS]; /* from 0 on */
    int max_inline;
    int delay_us, retry_ms, register_ms;
    bool thread_domains, dmabuf, no_open, stale, late, sticky;
    int linger_ms;
    bool dead, held, searches;
    int searching; /* threads in ibv_modify_qp */
    uint64_t refuse_after, refuse_count; /* of work requests to come */
    int refuse_native;
    uint64_t break_after;
    int break_status; /* 0: none */
} fake_device;

/* What a descriptor tells of: a completion channel's events, or a context's. */
typedef struct fake_event {
    struct fake_event *next;
    struct ibv_cq *cq;
    struct ibv_async_event async;
    void *of; /* what can't go before it is read */
} fake_event;

typedef struct fake_channel {
    int fd; /* an eventfd that counts them */
    fake_event *first, **last;
} fake_channel;

typedef struct fake_context {
    struct fake_context *next; /* of all that are open */
    fake_device *device;
    fake_channel async;
    int objects;
    struct verbs_context verbs; /* last: the library's own struct ends with what users see */
} fake_context;

typedef struct fake_pd {
    struct ibv_pd pd;
    struct fake_pd *of; /* a parent domain's */
    struct ibv_td *td;
    int objects;
} fake_pd;

typedef struct fake_td {
    struct ibv_td td;
    int objects;
} fake_td;

typedef struct fake_mr {
    struct ibv_mr mr;
    struct fake_mr *next; /* of all */
    fake_pd *pd;
    uint64_t iova;
    unsigned char *bytes;
    unsigned access;
    bool mapped; /* a dma-buf: `bytes` are a mapping of ours */
} fake_mr;

typedef struct fake_comp_channel {
    struct ibv_comp_channel channel;
    fake_channel events;
} fake_comp_channel;

typedef struct fake_qp fake_qp;

typedef struct fake_entry {
    struct ibv_wc wc;
    fake_qp *qp;         /* whose place is freed; NULL: it is gone */
    uint32_t sequence;   /* of a send: those up to it are freed */
    bool is_send;
    struct fake_rq *rq; /* of a receive */
} fake_entry;

typedef struct fake_cq {
    struct ibv_cq cq;
    fake_entry *entries; /* a ring of cq.cqe */
    uint32_t first, count;
    bool armed, solicited_only, overrun;
    uint32_t told; /* events that were read */
    int objects;
} fake_cq;

typedef struct fake_receive {
    uint64_t wr_id;
    int num_sge;
    struct ibv_sge sges[FAKE_MAX_SGE];
} fake_receive;

/* A receive queue, of a queue pair or shared. */
typedef struct fake_rq {
    fake_receive *receives; /* a ring of `capacity` */
    uint32_t capacity, first, count;
    uint32_t unread; /* used, and their completion wasn't read */
    int max_sge;
    fake_pd *pd;
} fake_rq;

typedef struct fake_srq {
    struct ibv_srq srq;
    fake_rq rq;
    int objects;
} fake_srq;

typedef struct fake_send {
    uint64_t wr_id;
    enum ibv_wr_opcode opcode;
    unsigned flags;
    uint32_t imm, rkey;
    uint64_t remote;
    int num_sge;
    struct ibv_sge sges[FAKE_MAX_SGE];
    unsigned char inlined[FAKE_MAX_INLINE];
    uint32_t inlined_nbytes;
    uint64_t posted_ns;
} fake_send;

struct fake_qp {
    struct ibv_qp qp;
    fake_qp *next; /* of all */
    fake_device *device;
    fake_pd *pd;
    struct ibv_qp_attr attr;
    struct ibv_qp_cap cap;
    bool signal_all;
    fake_send *sends; /* a ring of cap.max_send_wr */
    uint32_t freed, executed, posted; /* sequence numbers of sends */
    fake_rq *rq;                      /* own_rq or a shared one's */
    fake_rq own_rq;
    uint32_t psn, expected_psn; /* of the next packet, out and in */
    uint64_t executed_ns;       /* when the last one was, if they take time */
    uint64_t waiting_since_ns;  /* of the oldest send that isn't executed; 0: it wasn't tried */
    uint64_t deadline_ns;       /* ... and it is given up then; 0: never */
    bool waits_for_receive;
    bool lingers;   /* it went to ERR with work under way */
    bool stuck;     /* of a sticky device: it broke in the middle of a READ */
    bool last_told; /* IBV_EVENT_QP_LAST_WQE_REACHED was told */
    uint32_t told, acked; /* events of it */
};

extern pthread_mutex_t fake_lock;
/* Guarded by it: */
extern fake_device fake_devices[FAKE_MAX_DEVICES];
extern int fake_ndevices;
extern fake_context *fake_contexts;
extern fake_qp *fake_qps;
extern fake_mr *fake_mrs;
extern struct fake_counts fake_count;

static inline fake_context *fake_context_of(struct ibv_context *context) {
    return (fake_context *)((char *)context - offsetof(fake_context, verbs.context));
}

static inline fake_device *fake_device_of(struct ibv_context *context) { return fake_context_of(context)->device; }

void fake_complain(const char *text); /* under fake_lock */
uint64_t fake_now_ns(void);
void fake_wait_until(uint64_t ns); /* under fake_lock, which others have meanwhile; or until fake_wake() */
void fake_wake(void);

/* fake_layout.c; under fake_lock */
int fake_layout_read(const char *text);
void fake_layout_need(void);
bool fake_layout_nosys(void);
bool fake_layout_change(fake_device *device, const char *words);

/* fake_events.c; under fake_lock */
int fake_channel_open(fake_channel *channel);
void fake_channel_close(fake_channel *channel);
void fake_channel_put(fake_channel *channel, const fake_event *event);
void fake_channel_forget(fake_channel *channel, const void *of);
void fake_tell(struct ibv_context *context, enum ibv_event_type type, void *of);

/* fake_wire.c: what moves bytes; under fake_lock but for the first four, which users call */
int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad);
int fake_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
int fake_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad);
void fake_pump(fake_qp *qp);
void fake_pump_all(void);
void fake_fail_qp(fake_qp *qp); /* to IBV_QPS_ERR, and flush it */
void fake_flush(fake_qp *qp);

/* fake_cq.c */
int fake_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wcs);
int fake_req_notify_cq(struct ibv_cq *cq, int solicited_only);
void fake_cq_put(fake_cq *cq, const fake_entry *entry, bool solicited);
void fake_cq_clean(fake_cq *cq, fake_qp *qp, bool stale);

#endif
