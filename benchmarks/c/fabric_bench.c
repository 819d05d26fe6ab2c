/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Plain C on libfabric, posting as the product's provider does (csrc/fabric_post.c): fi_writemsg() with
 * FI_DELIVERY_COMPLETE and remote CQ data, so that a completion means "visible at the target". Manual
 * progress, hence both sides read their queue. Only the way to load the library is the product's. */
#include "bench.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include "dynload.h"

enum { BATCH = 16, ADDRESS_NBYTES = 64 };

const char *const transport_program = "fabric_bench";

static const pplx_libfabric *lib;
static struct fi_info *info;
static struct fid_fabric *fabric;
static struct fid_domain *domain;
static struct fid_av *av;
static struct fid_cq *cq;
static struct fid_ep *ep;
static struct fid_mr *src_mr, *dst_mr[BENCH_MAX_TARGETS];
static fi_addr_t peer;

/* What each side tells the other. */
typedef struct hello {
    char address[ADDRESS_NBYTES];
    uint64_t key[BENCH_MAX_TARGETS], base[BENCH_MAX_TARGETS];
} hello;

static hello theirs;

const char *transport_provider(void) { return bench.options.provider; }

static void need(int ret, const char *call) {
    if (ret) bench_die("%s (%s): %s", call, bench.options.provider, lib->strerror(-ret));
}

static void close_fid(void *object) {
    if (object) fi_close(object);
}

/* ---- opening ---- */

void transport_prepare(void) {} /* no library may be open when a process forks */

static void load_library(void) {
    const void *functions = NULL;
    pplx_error error;
    if (pplx_library_load(&pplx_library_libfabric, bench.options.library, &functions, NULL, &error) != PPLX_OK)
        bench_die("%s", error.text);
    lib = functions;
}

static void find_provider(void) {
    struct fi_info *hints = lib->dupinfo(NULL);
    if (!hints) bench_die("out of memory");
    hints->caps = FI_MSG | FI_RMA | FI_WRITE | FI_REMOTE_WRITE;
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
    hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
    hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
    hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    hints->fabric_attr->prov_name = strdup(bench.options.provider);
    need(lib->getinfo(FI_VERSION(FI_MAJOR_VERSION, FI_MINOR_VERSION), "127.0.0.1", NULL, FI_SOURCE, hints, &info),
         "fi_getinfo");
    lib->freeinfo(hints);
    /* 1.17 answers "tcp" by "tcp;ofi_rxm". */
    if (strcmp(info->fabric_attr->prov_name, bench.options.provider) != 0)
        bench_die("this libfabric has %s instead of %s", info->fabric_attr->prov_name, bench.options.provider);
}

static void open_cq(void) {
    struct fi_cq_attr attr = {.format = FI_CQ_FORMAT_DATA, .wait_obj = FI_WAIT_NONE};
    int fd = -1;
    if (bench.options.wait == BENCH_EPOLL) attr.wait_obj = FI_WAIT_FD;
    need(fi_cq_open(domain, &attr, &cq, NULL), "fi_cq_open");
    if (bench.options.wait == BENCH_POLL) return;
    need(fi_control(&cq->fid, FI_GETWAIT, &fd), "fi_control");
    bench_wake_on(fd, EPOLLIN);
}

static void open_endpoint(void) {
    need(lib->fabric(info->fabric_attr, &fabric, NULL), "fi_fabric");
    need(fi_domain(fabric, info, &domain, NULL), "fi_domain");
    need(fi_av_open(domain, &(struct fi_av_attr){.type = FI_AV_TABLE}, &av, NULL), "fi_av_open");
    open_cq();
    need(fi_endpoint(domain, info, &ep, NULL), "fi_endpoint");
    need(fi_ep_bind(ep, &av->fid, 0), "fi_ep_bind");
    need(fi_ep_bind(ep, &cq->fid, FI_TRANSMIT | FI_RECV), "fi_ep_bind");
    need(fi_enable(ep), "fi_enable");
}

/* Keys of our choice must differ, and 0 is none: tcp drops such a write without a word. */
static struct fid_mr *register_memory(void *address, size_t nbytes, uint64_t access, uint64_t key) {
    struct fid_mr *mr = NULL;
    need(fi_mr_reg(domain, address, nbytes, access, 0, key, 0, &mr, NULL), "fi_mr_reg");
    return mr;
}

static void register_all(hello *mine) {
    const size_t nbytes = BENCH_ARENA / bench.options.targets;
    void *arena = mmap(NULL, BENCH_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) bench_die("no memory for the destination");
    bench.dst = arena;
    src_mr = register_memory(bench.src, BENCH_ARENA, FI_WRITE, 1);
    for (unsigned i = 0; i < bench.options.targets; i++) {
        char *region = bench.dst + i * nbytes;
        dst_mr[i] = register_memory(region, nbytes, FI_REMOTE_WRITE, i + 2);
        mine->key[i] = fi_mr_key(dst_mr[i]);
        mine->base[i] = info->domain_attr->mr_mode & FI_MR_VIRT_ADDR ? (uint64_t)(uintptr_t)region : 0;
    }
}

void transport_open(void) {
    hello mine = {0};
    size_t nbytes = sizeof mine.address;
    load_library();
    find_provider();
    open_endpoint();
    register_all(&mine);
    need(fi_getname(&ep->fid, mine.address, &nbytes), "fi_getname");
    bench_exchange(&mine, &theirs, sizeof mine);
    if (fi_av_insert(av, theirs.address, 1, &peer, 0, NULL) != 1) bench_die("fi_av_insert failed");
}

void transport_close(void) {
    close_fid(ep);
    for (unsigned i = 0; i < bench.options.targets; i++) close_fid(dst_mr[i]);
    close_fid(src_mr);
    close_fid(cq);
    close_fid(av);
    close_fid(domain);
    close_fid(fabric);
    lib->freeinfo(info);
}

/* ---- writing ---- */

bool transport_write(const bench_write *write, uint32_t imm) {
    struct iovec iov = {bench.src + write->src, bench.options.nbytes};
    struct fi_rma_iov remote = {theirs.base[write->target] + write->dst, bench.options.nbytes,
                                theirs.key[write->target]};
    void *desc = fi_mr_desc(src_mr);
    struct fi_msg_rma message = {.msg_iov = &iov,
                                 .desc = &desc,
                                 .iov_count = 1,
                                 .addr = peer,
                                 .rma_iov = &remote,
                                 .rma_iov_count = 1,
                                 .data = imm};
    ssize_t ret = fi_writemsg(ep, &message, FI_COMPLETION | FI_DELIVERY_COMPLETE | FI_REMOTE_CQ_DATA);
    if (ret == -FI_EAGAIN) return false; /* also until the connection stands */
    need((int)ret, "fi_writemsg");
    return true;
}

static _Noreturn void die_of_entry(void) {
    struct fi_cq_err_entry entry = {0};
    ssize_t ret = fi_cq_readerr(cq, &entry, 0);
    bench_die("a write failed: %s", lib->strerror(ret < 0 ? (int)-ret : entry.err));
}

bool transport_poll(void) {
    struct fi_cq_data_entry entries[BATCH];
    ssize_t got = fi_cq_read(cq, entries, BATCH);
    if (got == -FI_EAGAIN || got == 0) return false;
    if (got == -FI_EAVAIL) die_of_entry();
    if (got < 0) need((int)got, "fi_cq_read");
    for (ssize_t i = 0; i < got; i++) {
        if (entries[i].flags & FI_REMOTE_WRITE) {
            bench.imm = (uint32_t)entries[i].data;
            bench.arrived++;
        } else {
            bench.completed++;
        }
    }
    return true;
}

void transport_sleep(void) {
    struct fid *fids[] = {&cq->fid};
    if (fi_trywait(fabric, fids, 1) == 0) bench_sleep();
}
