/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The fake libibverbs itself, by the calls that its users make: what it lets pass, and what it refuses as a
 * device does. Linked into this program. */
#include <stdio.h>

#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>

#include <infiniband/verbs.h>

#include "../fake_ibverbs/fake_control.h"
#include "check.h"

enum { NBYTES = 4096, SENDS = 4, RECEIVES = 4, CQES = 32, KEEPS = 8 };
enum {
    TO_INIT = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS,
    TO_RTR = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
        IBV_QP_MIN_RNR_TIMER,
    TO_RTS = IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
        IBV_QP_MAX_QP_RD_ATOMIC
};

typedef struct end {
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_comp_channel *channel;
    struct ibv_cq *cq;
    struct ibv_srq *srq;
    struct ibv_qp *qp;
    struct ibv_mr *mr;
    unsigned char bytes[NBYTES];
} end;

static end a, b;

static void open_end(end *e, const char *name, int cqes) {
    int n = 0;
    struct ibv_device **list = ibv_get_device_list(&n);
    CHECK(list);
    for (int i = 0; i < n; i++)
        if (strcmp(ibv_get_device_name(list[i]), name) == 0) e->context = ibv_open_device(list[i]);
    ibv_free_device_list(list);
    CHECK(e->context);
    CHECK((e->pd = ibv_alloc_pd(e->context)));
    CHECK((e->channel = ibv_create_comp_channel(e->context)));
    CHECK((e->cq = ibv_create_cq(e->context, cqes, e, e->channel, 0)));
    struct ibv_srq_init_attr srq = {.attr = {.max_wr = RECEIVES, .max_sge = 1}};
    CHECK((e->srq = ibv_create_srq(e->pd, &srq)));
    struct ibv_qp_init_attr attr = {.send_cq = e->cq,
                                    .recv_cq = e->cq,
                                    .srq = e->srq,
                                    .cap = {.max_send_wr = SENDS, .max_send_sge = 1, .max_inline_data = 64},
                                    .qp_type = IBV_QPT_RC};
    CHECK((e->qp = ibv_create_qp(e->pd, &attr)));
    const int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ;
    CHECK((e->mr = ibv_reg_mr(e->pd, e->bytes, NBYTES, access)));
    CHECK(fcntl(e->channel->fd, F_SETFL, O_NONBLOCK) == 0 && fcntl(e->context->async_fd, F_SETFL, O_NONBLOCK) == 0);
}

static void drop_events(end *e) {
    struct ibv_async_event event;
    while (ibv_get_async_event(e->context, &event) == 0) ibv_ack_async_event(&event);
    CHECK_EQ(errno, EAGAIN);
}

static void close_end(end *e) {
    drop_events(e);
    CHECK_EQ(ibv_dereg_mr(e->mr), 0);
    CHECK_EQ(ibv_destroy_qp(e->qp), 0);
    CHECK_EQ(ibv_destroy_srq(e->srq), 0);
    CHECK_EQ(ibv_destroy_cq(e->cq), 0);
    CHECK_EQ(ibv_destroy_comp_channel(e->channel), 0);
    CHECK_EQ(ibv_dealloc_pd(e->pd), 0);
    CHECK_EQ(ibv_close_device(e->context), 0);
    memset(e, 0, sizeof *e);
}

static struct ibv_qp_attr init_attr(void) {
    return (struct ibv_qp_attr){
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ};
}

static struct ibv_qp_attr rtr_attr(const end *to, uint32_t psn) {
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RTR,
                               .path_mtu = IBV_MTU_1024,
                               .dest_qp_num = to->qp->qp_num,
                               .rq_psn = psn,
                               .max_dest_rd_atomic = 4,
                               .min_rnr_timer = 1,
                               .ah_attr = {.is_global = 1, .port_num = 1, .grh = {.sgid_index = 3, .hop_limit = 64}}};
    CHECK_EQ(ibv_query_gid(to->context, 1, 3, &attr.ah_attr.grh.dgid), 0);
    return attr;
}

static struct ibv_qp_attr rts_attr(uint32_t psn) {
    return (struct ibv_qp_attr){.qp_state = IBV_QPS_RTS,
                                .timeout = 10, /* 4 ms, twice */
                                .retry_cnt = 1,
                                .rnr_retry = 7,
                                .sq_psn = psn,
                                .max_rd_atomic = 4};
}

static void connect_end(end *e, const end *to, uint32_t own_psn, uint32_t psn) {
    struct ibv_qp_attr attr = init_attr();
    CHECK_EQ(ibv_modify_qp(e->qp, &attr, TO_INIT), 0);
    attr = rtr_attr(to, psn);
    CHECK_EQ(ibv_modify_qp(e->qp, &attr, TO_RTR), 0);
    attr = rts_attr(own_psn);
    CHECK_EQ(ibv_modify_qp(e->qp, &attr, TO_RTS), 0);
}

static void open_pair(const char *layout, int cqes) {
    CHECK_EQ(fake_ibv_layout(layout), 0);
    open_end(&a, "x0", cqes);
    open_end(&b, strstr(layout, "x1") ? "x1" : "x0", cqes);
    connect_end(&a, &b, 100, 200);
    connect_end(&b, &a, 200, 100);
}

static void close_pair(void) {
    struct fake_counts counts;
    close_end(&a);
    close_end(&b);
    fake_ibv_counts(&counts);
    CHECK_EQ(counts.objects, 0);
    CHECK_EQ(counts.contexts, 0);
}

static int post_receive(end *e, uint64_t id) {
    struct ibv_sge sge = {(uintptr_t)e->bytes, NBYTES, e->mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = id, .sg_list = &sge, .num_sge = 1}, *bad;
    return ibv_post_srq_recv(e->srq, &wr, &bad);
}

static int post(enum ibv_wr_opcode opcode, uint64_t id, uint64_t offset, uint32_t nbytes, uint32_t rkey,
                unsigned flags) {
    struct ibv_sge sge = {(uintptr_t)a.bytes + offset, nbytes, a.mr->lkey};
    struct ibv_send_wr wr = {.wr_id = id,
                             .sg_list = &sge,
                             .num_sge = nbytes != 0,
                             .opcode = opcode,
                             .send_flags = flags,
                             .imm_data = 0x12345678},
                       *bad = NULL;
    wr.wr.rdma.remote_addr = (uintptr_t)b.bytes + offset;
    wr.wr.rdma.rkey = rkey;
    const int native = ibv_post_send(a.qp, &wr, &bad);
    CHECK(!native || bad == &wr);
    return native;
}

/* The next completion of this end; waits for it. */
static struct ibv_wc next(end *e) {
    struct ibv_wc wc;
    const uint64_t start = check_now_ns();
    while (ibv_poll_cq(e->cq, 1, &wc) == 0) check_patience(start, 10);
    return wc;
}

static void expect(end *e, uint64_t id, enum ibv_wc_status status) {
    const struct ibv_wc wc = next(e);
    CHECK_EQ(wc.wr_id, id);
    CHECK_EQ(wc.status, status);
    CHECK_EQ(wc.qp_num, e->qp->qp_num);
}

static bool is_empty(end *e) {
    struct ibv_wc wc;
    return ibv_poll_cq(e->cq, 1, &wc) == 0;
}

static enum ibv_qp_state state_of(end *e) {
    struct ibv_qp_attr attr;
    struct ibv_qp_init_attr init;
    CHECK_EQ(ibv_query_qp(e->qp, &attr, IBV_QP_STATE, &init), 0);
    return attr.qp_state;
}

/* ---- what works ---- */

static void bytes_move_and_completions_tell_of_it(void) {
    open_pair("x0 roce gbps=100 ip=10.0.0.1; x1 roce gbps=25 ip=10.0.0.2", CQES);
    memset(a.bytes, 7, NBYTES);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 16, 3000, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    expect(&a, 1, IBV_WC_SUCCESS);
    CHECK(b.bytes[15] == 0 && b.bytes[16] == 7 && b.bytes[3015] == 7 && b.bytes[3016] == 0);

    CHECK_EQ(post_receive(&b, 50), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE_WITH_IMM, 2, 0, 16, b.mr->rkey, 0), 0); /* unsignalled */
    CHECK(is_empty(&a));
    struct ibv_wc wc = next(&b);
    CHECK_EQ(wc.wr_id, 50);
    CHECK_EQ(wc.opcode, IBV_WC_RECV_RDMA_WITH_IMM);
    CHECK(wc.wc_flags & IBV_WC_WITH_IMM);
    CHECK_EQ(wc.imm_data, 0x12345678);
    CHECK_EQ(b.bytes[0], 7);

    memset(b.bytes, 9, NBYTES);
    CHECK_EQ(post(IBV_WR_RDMA_READ, 3, 0, NBYTES, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    expect(&a, 3, IBV_WC_SUCCESS);
    CHECK(a.bytes[0] == 9 && a.bytes[NBYTES - 1] == 9);

    CHECK_EQ(post_receive(&b, 51), 0);
    memset(a.bytes, 5, 64);
    CHECK_EQ(post(IBV_WR_SEND, 4, 0, 64, 0, IBV_SEND_SIGNALED | IBV_SEND_INLINE), 0);
    wc = next(&b);
    CHECK_EQ(wc.opcode, IBV_WC_RECV);
    CHECK_EQ(wc.byte_len, 64);
    CHECK(b.bytes[63] == 5 && b.bytes[64] == 9);
    expect(&a, 4, IBV_WC_SUCCESS);
    close_pair();
}

static void infiniband_goes_by_lid(void) {
    CHECK_EQ(fake_ibv_layout("x0 ib lid=5; x1 ib lid=6"), 0);
    open_end(&a, "x0", CQES);
    open_end(&b, "x1", CQES);
    end *ends[] = {&a, &b};
    for (int i = 0; i < 2; i++) {
        struct ibv_qp_attr attr = init_attr();
        CHECK_EQ(ibv_modify_qp(ends[i]->qp, &attr, TO_INIT), 0);
        attr = (struct ibv_qp_attr){.qp_state = IBV_QPS_RTR,
                                    .path_mtu = IBV_MTU_4096,
                                    .dest_qp_num = ends[!i]->qp->qp_num,
                                    .max_dest_rd_atomic = 4,
                                    .ah_attr = {.port_num = 1}};
        CHECK_EQ(ibv_modify_qp(ends[i]->qp, &attr, TO_RTR), EINVAL); /* to nowhere */
        attr.ah_attr.dlid = i ? 5 : 6;
        CHECK_EQ(ibv_modify_qp(ends[i]->qp, &attr, TO_RTR), 0);
        attr = rts_attr(0);
        CHECK_EQ(ibv_modify_qp(ends[i]->qp, &attr, TO_RTS), 0);
    }
    CHECK_EQ(a.qp->qp_num, b.qp->qp_num); /* each device counts for itself */
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    expect(&a, 1, IBV_WC_SUCCESS);
    close_pair();
}

static void an_event_comes_once_for_what_arrives_after_the_call(void) {
    struct ibv_cq *cq;
    void *cookie;
    open_pair("x0 roce ip=10.0.0.1", CQES);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    CHECK_EQ(ibv_req_notify_cq(a.cq, 0), 0);
    CHECK(ibv_get_cq_event(a.channel, &cq, &cookie) == -1 && errno == EAGAIN); /* it was there before */
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 2, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 3, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    struct pollfd readable = {.fd = a.channel->fd, .events = POLLIN};
    CHECK_EQ(poll(&readable, 1, 0), 1);
    CHECK_EQ(ibv_get_cq_event(a.channel, &cq, &cookie), 0);
    CHECK(cq == a.cq && cookie == &a);
    CHECK(ibv_get_cq_event(a.channel, &cq, &cookie) == -1);
    struct fake_counts before, after;
    fake_ibv_counts(&before);
    CHECK_EQ(ibv_destroy_qp(a.qp), 0);
    CHECK_EQ(ibv_destroy_cq(a.cq), EBUSY); /* the real one waits for the acknowledgement */
    fake_ibv_counts(&after);
    CHECK_EQ(after.complaints - before.complaints, 1);
    ibv_ack_cq_events(a.cq, 1);
    struct ibv_qp_init_attr attr = {
        .send_cq = a.cq, .recv_cq = a.cq, .srq = a.srq, .cap = {.max_send_wr = 1}, .qp_type = IBV_QPT_RC};
    CHECK((a.qp = ibv_create_qp(a.pd, &attr)));
    close_pair();
}

/* ---- what doesn't ---- */

static void states_take_their_attributes_and_no_others(void) {
    CHECK_EQ(fake_ibv_layout("x0 roce ip=10.0.0.1 mtu=1024 net=1; x1 roce ip=10.0.0.2 net=2"), 0);
    open_end(&a, "x0", CQES);
    open_end(&b, "x0", CQES);
    struct ibv_qp_attr attr = init_attr();
    for (int bit = 0; bit < 24; bit++) { /* one less, or one more */
        if (1 << bit == IBV_QP_STATE) continue;
        CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_INIT ^ 1 << bit), EINVAL);
    }
    attr.port_num = 2;
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_INIT), EINVAL);
    attr = init_attr();
    attr.pkey_index = 1;
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_INIT), EINVAL);
    attr = rtr_attr(&b, 0);
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), EINVAL); /* from RESET */
    attr = init_attr();
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_INIT), 0);
    const struct ibv_qp_attr right = rtr_attr(&b, 0);
    for (int bit = 0; bit < 24; bit++) {
        const int allowed = IBV_QP_ACCESS_FLAGS | IBV_QP_PKEY_INDEX;
        attr = right;
        if (1 << bit != IBV_QP_STATE && !(1 << bit & allowed))
            CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR ^ 1 << bit), EINVAL);
    }
    attr = right;
    attr.path_mtu = IBV_MTU_2048; /* beyond the port's */
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), EINVAL);
    attr = right;
    attr.ah_attr.is_global = 0; /* RoCE has nothing else */
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), EINVAL);
    attr = right;
    attr.ah_attr.grh.sgid_index = 9; /* an empty place */
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), EINVAL);
    attr = right;
    attr.ah_attr.grh.sgid_index = 1; /* IPv6 to IPv4 */
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), EINVAL);
    attr = right;
    attr.ah_attr.grh.dgid.raw[15] = 2; /* there, but in another net */
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), ETIMEDOUT);
    attr = right;
    attr.max_dest_rd_atomic = 17;
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), EINVAL);
    attr = right;
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, 0), EINVAL); /* not in RTS */
    attr = rts_attr(0);
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTS & ~IBV_QP_TIMEOUT), EINVAL);
    attr.retry_cnt = 8;
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTS), EINVAL);
    attr = rts_attr(1 << 24);
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTS), EINVAL);
    attr = rts_attr(0);
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTS), 0);
    close_pair();
}

static void a_full_send_queue_takes_a_part_and_says_so(void) {
    struct ibv_send_wr wrs[SENDS + 2] = {0}, *bad = NULL;
    open_pair("x0 roce ip=10.0.0.1", CQES);
    for (int i = 0; i < SENDS + 2; i++) {
        wrs[i].wr_id = (uint64_t)i;
        wrs[i].opcode = IBV_WR_RDMA_WRITE;
        wrs[i].next = i < SENDS + 1 ? &wrs[i + 1] : NULL;
        wrs[i].send_flags = i == SENDS - 1 ? IBV_SEND_SIGNALED : 0;
    }
    CHECK_EQ(ibv_post_send(a.qp, wrs, &bad), ENOMEM);
    CHECK(bad == &wrs[SENDS]);
    CHECK_EQ(ibv_post_send(a.qp, &wrs[SENDS + 1], &bad), ENOMEM); /* all are done, and nobody has read of it */
    expect(&a, SENDS - 1, IBV_WC_SUCCESS);
    CHECK_EQ(ibv_post_send(a.qp, &wrs[SENDS + 1], &bad), 0);
    CHECK_EQ(fake_ibv_refuse("x0", 1, 1, ENOMEM), 0);
    wrs[0].next = &wrs[1];
    wrs[1].next = NULL;
    CHECK_EQ(ibv_post_send(a.qp, wrs, &bad), ENOMEM);
    CHECK(bad == &wrs[1]);
    CHECK_EQ(post(IBV_WR_SEND, 1, 0, 65, 0, IBV_SEND_INLINE), EINVAL);
    CHECK_EQ(post(IBV_WR_RDMA_READ, 1, 0, 8, b.mr->rkey, IBV_SEND_INLINE), EINVAL);
    close_pair();
}

static void a_bad_key_breaks_both_and_flushes_the_rest(void) {
    open_pair("x0 roce ip=10.0.0.1", CQES);
    CHECK_EQ(fake_ibv_hold("x0", 1), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, 0), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 2, 0, 8, b.mr->rkey + 1, 0), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 3, 0, 8, b.mr->rkey, 0), 0);
    CHECK(is_empty(&a));
    memset(a.bytes, 3, 8);
    CHECK_EQ(fake_ibv_hold("x0", 0), 0);
    expect(&a, 2, IBV_WC_REM_ACCESS_ERR);
    expect(&a, 3, IBV_WC_WR_FLUSH_ERR);
    CHECK(is_empty(&a));
    CHECK_EQ(b.bytes[0], 3); /* by the first */
    CHECK_EQ(state_of(&a), IBV_QPS_ERR);
    CHECK_EQ(state_of(&b), IBV_QPS_ERR);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 4, 0, 8, b.mr->rkey, 0), 0);
    expect(&a, 4, IBV_WC_WR_FLUSH_ERR);
    struct ibv_async_event event;
    CHECK_EQ(ibv_get_async_event(b.context, &event), 0);
    CHECK(event.event_type == IBV_EVENT_QP_ACCESS_ERR && event.element.qp == b.qp);
    CHECK_EQ(ibv_destroy_qp(b.qp), EBUSY);
    ibv_ack_async_event(&event);
    CHECK_EQ(ibv_get_async_event(b.context, &event), 0);
    CHECK_EQ(event.event_type, IBV_EVENT_QP_LAST_WQE_REACHED);
    ibv_ack_async_event(&event);

    /* made new, with other numbers */
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, IBV_QP_STATE), 0);
    CHECK_EQ(ibv_modify_qp(b.qp, &attr, IBV_QP_STATE), 0);
    connect_end(&a, &b, 0xffffff, 5);
    connect_end(&b, &a, 5, 0xffffff);
    for (uint64_t i = 0; i < 3; i++) {
        CHECK_EQ(post(IBV_WR_RDMA_WRITE, i, 0, NBYTES, b.mr->rkey, IBV_SEND_SIGNALED), 0);
        expect(&a, i, IBV_WC_SUCCESS);
    }
    close_pair();
}

static void ranges_and_access_are_the_regions(void) {
    static unsigned char other[64];
    open_pair("x0 roce ip=10.0.0.1", CQES);
    CHECK(!ibv_reg_mr(b.pd, other, sizeof other, IBV_ACCESS_REMOTE_WRITE) && errno == EINVAL);
    CHECK(!ibv_reg_mr(b.pd, (void *)4096, 4096, IBV_ACCESS_LOCAL_WRITE) && errno == EFAULT);
    CHECK(!ibv_reg_mr(b.pd, (void *)"constant", 8, IBV_ACCESS_LOCAL_WRITE) && errno == EFAULT);
    struct ibv_mr *mr = ibv_reg_mr(b.pd, b.bytes, 64, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
    CHECK(mr);
    CHECK_EQ(post(IBV_WR_RDMA_READ, 1, 0, 64, mr->rkey, IBV_SEND_SIGNALED), 0);
    expect(&a, 1, IBV_WC_SUCCESS);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 2, 0, 0, mr->rkey + 7, IBV_SEND_SIGNALED), 0); /* of no bytes: no key is asked */
    expect(&a, 2, IBV_WC_SUCCESS);
    CHECK_EQ(post(IBV_WR_RDMA_READ, 3, 1, 64, mr->rkey, IBV_SEND_SIGNALED), 0);
    expect(&a, 3, IBV_WC_REM_ACCESS_ERR);
    CHECK_EQ(ibv_dereg_mr(mr), 0);
    close_pair();
    open_pair("x0 roce ip=10.0.0.1", CQES);
    mr = ibv_reg_mr(b.pd, b.bytes, 64, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, mr->rkey, 0), 0);
    expect(&a, 1, IBV_WC_REM_ACCESS_ERR);
    CHECK_EQ(ibv_dereg_mr(mr), 0);
    close_pair();
}

static void without_a_receive_it_waits_or_gives_up(void) {
    open_pair("x0 roce ip=10.0.0.1", CQES);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE_WITH_IMM, 1, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    CHECK(is_empty(&a) && is_empty(&b));
    CHECK_EQ(post_receive(&b, 60), 0);
    expect(&b, 60, IBV_WC_SUCCESS);
    expect(&a, 1, IBV_WC_SUCCESS);
    for (uint64_t i = 0; i < RECEIVES; i++) CHECK_EQ(post_receive(&b, i), 0);
    CHECK_EQ(post_receive(&b, 9), ENOMEM);
    close_pair();
    CHECK_EQ(fake_ibv_layout("x0 roce ip=10.0.0.1"), 0);
    open_end(&a, "x0", CQES);
    open_end(&b, "x0", CQES);
    struct ibv_qp_attr attr = init_attr();
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_INIT), 0);
    attr = rtr_attr(&b, 0);
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTR), 0);
    attr = rts_attr(0);
    attr.rnr_retry = 1;
    CHECK_EQ(ibv_modify_qp(a.qp, &attr, TO_RTS), 0);
    connect_end(&b, &a, 0, 0);
    CHECK_EQ(post(IBV_WR_SEND, 1, 0, 8, 0, 0), 0);
    expect(&a, 1, IBV_WC_RNR_RETRY_EXC_ERR);
    close_pair();
}

static void a_message_longer_than_its_receive_fails_on_both_sides(void) {
    open_pair("x0 roce ip=10.0.0.1", CQES);
    struct ibv_sge sge = {(uintptr_t)b.bytes, 32, b.mr->lkey};
    struct ibv_recv_wr wr = {.wr_id = 70, .sg_list = &sge, .num_sge = 1}, *bad;
    CHECK_EQ(ibv_post_srq_recv(b.srq, &wr, &bad), 0);
    CHECK_EQ(post(IBV_WR_SEND, 1, 0, 33, 0, 0), 0);
    expect(&b, 70, IBV_WC_LOC_LEN_ERR);
    expect(&a, 1, IBV_WC_REM_INV_REQ_ERR);
    close_pair();
}

static void nobody_answers_for_a_peer_that_is_gone(void) {
    open_pair("x0 roce ip=10.0.0.1", CQES);
    struct ibv_qp_attr attr = {.qp_state = IBV_QPS_RESET};
    CHECK_EQ(ibv_modify_qp(b.qp, &attr, IBV_QP_STATE), 0);
    const uint64_t start = check_now_ns();
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, 0), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 2, 0, 8, b.mr->rkey, 0), 0);
    expect(&a, 1, IBV_WC_RETRY_EXC_ERR);
    expect(&a, 2, IBV_WC_WR_FLUSH_ERR);
    CHECK(check_now_ns() - start >= 2 * (UINT64_C(4096) << 10)); /* (retry_cnt + 1) timeouts */
    close_pair();
}

static void packets_of_another_number_are_not_taken(void) {
    CHECK_EQ(fake_ibv_layout("x0 roce ip=10.0.0.1"), 0);
    open_end(&a, "x0", CQES);
    open_end(&b, "x0", CQES);
    connect_end(&a, &b, 100, 200);
    connect_end(&b, &a, 200, 101);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, 0), 0);
    expect(&a, 1, IBV_WC_RETRY_EXC_ERR);
    CHECK_EQ(b.bytes[0], 0);
    close_pair();
}

static void a_cable_and_a_port_lose_what_is_sent(void) {
    struct ibv_async_event event;
    open_pair("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2", CQES);
    CHECK_EQ(fake_ibv_cut("x1", 1, 1), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, 0), 0);
    expect(&a, 1, IBV_WC_RETRY_EXC_ERR);
    CHECK(ibv_get_async_event(b.context, &event) == -1);
    CHECK_EQ(fake_ibv_event("x0", 1, IBV_EVENT_PORT_ERR), 0);
    CHECK_EQ(ibv_get_async_event(a.context, &event), 0);
    CHECK_EQ(event.event_type, IBV_EVENT_QP_LAST_WQE_REACHED);
    ibv_ack_async_event(&event);
    CHECK_EQ(ibv_get_async_event(a.context, &event), 0);
    CHECK(event.event_type == IBV_EVENT_PORT_ERR && event.element.port_num == 1);
    ibv_ack_async_event(&event);
    struct ibv_port_attr attr;
    CHECK_EQ(ibv_query_port(a.context, 1, &attr), 0);
    CHECK_EQ(attr.state, IBV_PORT_DOWN);
    close_pair();
}

static void an_overrun_completion_queue_is_lost(void) {
    struct ibv_async_event event;
    open_pair("x0 roce ip=10.0.0.1", 2);
    for (uint64_t i = 0; i < 3; i++) CHECK_EQ(post(IBV_WR_RDMA_WRITE, i, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    CHECK_EQ(ibv_get_async_event(a.context, &event), 0);
    CHECK_EQ(event.event_type, IBV_EVENT_CQ_ERR);
    CHECK_EQ(state_of(&a), IBV_QPS_ERR);
    expect(&a, 0, IBV_WC_SUCCESS);
    expect(&a, 1, IBV_WC_SUCCESS);
    CHECK(is_empty(&a));
    close_pair();
}

static void after_a_fatal_event_nothing_ends(void) {
    struct ibv_async_event event;
    open_pair("x0 roce ip=10.0.0.1", CQES);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    CHECK_EQ(fake_ibv_event("x0", 0, IBV_EVENT_DEVICE_FATAL), 0);
    CHECK_EQ(ibv_get_async_event(a.context, &event), 0);
    CHECK_EQ(event.event_type, IBV_EVENT_DEVICE_FATAL);
    CHECK(is_empty(&a));
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 2, 0, 8, b.mr->rkey, 0), EIO);
    close_pair();
}

static void a_delayed_request_reads_its_memory_when_it_leaves(void) {
    open_pair("x0 roce ip=10.0.0.1 delay=2000", CQES);
    memset(a.bytes, 1, 16);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 1, 0, 8, b.mr->rkey, IBV_SEND_INLINE), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 2, 8, 8, b.mr->rkey, IBV_SEND_SIGNALED), 0);
    CHECK(is_empty(&a));
    memset(a.bytes, 2, 16);
    expect(&a, 2, IBV_WC_SUCCESS);
    CHECK(b.bytes[0] == 1 && b.bytes[8] == 2);
    CHECK_EQ(fake_ibv_break("x0", 0, IBV_WC_GENERAL_ERR), 0);
    CHECK_EQ(post(IBV_WR_RDMA_WRITE, 3, 8, 8, b.mr->rkey, 0), 0);
    expect(&a, 3, IBV_WC_GENERAL_ERR);
    close_pair();
}

static void what_is_in_use_is_not_destroyed(void) {
    open_pair("x0 roce ip=10.0.0.1", CQES);
    CHECK_EQ(ibv_close_device(a.context), EBUSY);
    CHECK_EQ(ibv_dealloc_pd(a.pd), EBUSY);
    CHECK_EQ(ibv_destroy_cq(a.cq), EBUSY);
    CHECK_EQ(ibv_destroy_srq(a.srq), EBUSY);
    CHECK_EQ(ibv_destroy_comp_channel(a.channel), EBUSY);
    CHECK_EQ(fake_ibv_layout("none"), -1);
    close_pair();
    int n = 9;
    struct ibv_device **list;
    CHECK_EQ(fake_ibv_layout("none"), 0);
    CHECK((list = ibv_get_device_list(&n)) && n == 0);
    ibv_free_device_list(list);
    CHECK_EQ(fake_ibv_layout("nosys"), 0);
    CHECK(!ibv_get_device_list(&n) && errno == ENOSYS);
}

int main(void) {
    RUN(bytes_move_and_completions_tell_of_it);
    RUN(infiniband_goes_by_lid);
    RUN(an_event_comes_once_for_what_arrives_after_the_call);
    RUN(states_take_their_attributes_and_no_others);
    RUN(a_full_send_queue_takes_a_part_and_says_so);
    RUN(a_bad_key_breaks_both_and_flushes_the_rest);
    RUN(ranges_and_access_are_the_regions);
    RUN(without_a_receive_it_waits_or_gives_up);
    RUN(a_message_longer_than_its_receive_fails_on_both_sides);
    RUN(nobody_answers_for_a_peer_that_is_gone);
    RUN(packets_of_another_number_are_not_taken);
    RUN(a_cable_and_a_port_lose_what_is_sent);
    RUN(an_overrun_completion_queue_is_lost);
    RUN(after_a_fatal_event_nothing_ends);
    RUN(a_delayed_request_reads_its_memory_when_it_leaves);
    RUN(what_is_in_use_is_not_destroyed);
    return check_done();
}

#else

int main(void) {
    puts("libibverbs's headers are not installed (package libibverbs-dev)");
    return 77;
}

#endif
