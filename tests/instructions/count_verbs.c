/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A program for callgrind, which counts the instructions inside of the functions named count_*: 8 B writes, one at
 * a time and 32 at a time, from a list of them to the completion of the last,
 *
 *   count_plain_*   by loops over ibv_post_send() and ibv_poll_cq(), as one would write them for this alone
 *   count_verbs_*   by the provider's post() and poll()
 *
 * on the same queue pair. Its device is one in memory whose driver does the least that one can do: it writes a
 * descriptor of 64 B for each request and rings once, reads an entry of 64 B for each completion. */
#include <arpa/inet.h>

#include "../c/verbs_sides.h"
#include "verbs_internal.h"

enum { ROUNDS = 200, MOST = 32, SLOTS = 1024 };

/* What the least of drivers and its device share: both queues, in big-endian as devices have it. */
static struct {
    struct {
        uint32_t opcode, qpn, flags, imm;
        uint64_t remote;
        uint32_t rkey, length;
        union {
            struct {
                uint64_t address;
                uint32_t lkey;
            };
            uint8_t inlined[32];
        };
    } sends[SLOTS];
    struct {
        uint32_t owner, qpn, index, length, reserved[12];
    } ends[SLOTS];
    uint64_t ids[SLOTS];
    uint32_t posted, freed, ended, polled;
    volatile uint32_t doorbell;
} device;

static int tiny_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad) {
    static const uint8_t opcodes[] = {[IBV_WR_RDMA_WRITE] = 8, [IBV_WR_RDMA_WRITE_WITH_IMM] = 9};
    uint32_t at = device.posted;
    for (; wr; wr = wr->next, at++) {
        const uint32_t slot = at % SLOTS;
        if (at - device.freed == SLOTS || wr->opcode > IBV_WR_RDMA_WRITE_WITH_IMM) {
            *bad = wr;
            break;
        }
        device.sends[slot].opcode = htonl(at << 8 | opcodes[wr->opcode]);
        device.sends[slot].qpn = htonl(qp->qp_num);
        device.sends[slot].flags = wr->send_flags;
        device.sends[slot].imm = wr->imm_data;
        device.sends[slot].remote = __builtin_bswap64(wr->wr.rdma.remote_addr);
        device.sends[slot].rkey = htonl(wr->wr.rdma.rkey);
        device.sends[slot].length = htonl(wr->sg_list->length);
        if (wr->send_flags & IBV_SEND_INLINE) {
            memcpy(device.sends[slot].inlined, (void *)(uintptr_t)wr->sg_list->addr, wr->sg_list->length);
        } else {
            device.sends[slot].address = __builtin_bswap64(wr->sg_list->addr);
            device.sends[slot].lkey = htonl(wr->sg_list->lkey);
        }
        device.ids[slot] = wr->wr_id;
    }
    device.posted = at;
    device.doorbell = htonl(at);
    return wr ? ENOMEM : 0;
}

static int tiny_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wcs) {
    int taken = 0;
    (void)cq;
    for (; taken < n && device.polled != device.ended; taken++, device.polled++) {
        const uint32_t slot = device.polled % SLOTS;
        const uint32_t index = ntohl(device.ends[slot].index);
        device.freed = index + 1;
        wcs[taken].wr_id = device.ids[index % SLOTS];
        wcs[taken].status = IBV_WC_SUCCESS;
        wcs[taken].opcode = IBV_WC_RDMA_WRITE;
        wcs[taken].qp_num = ntohl(device.ends[slot].qpn);
        wcs[taken].byte_len = ntohl(device.ends[slot].length);
        wcs[taken].wc_flags = 0;
    }
    return taken;
}

/* The device itself: it is not counted. */
static void execute(void) {
    static uint32_t executed;
    for (; executed != device.posted; executed++) {
        if (!(device.sends[executed % SLOTS].flags & IBV_SEND_SIGNALED)) continue;
        const uint32_t slot = device.ended++ % SLOTS;
        device.ends[slot].qpn = device.sends[executed % SLOTS].qpn;
        device.ends[slot].index = htonl(executed);
        device.ends[slot].length = device.sends[executed % SLOTS].length;
    }
}

static struct ibv_qp *qp;
static struct ibv_cq *cq;

/* Plain loops. They are told what the provider is told. */
__attribute__((noinline)) static bool count_plain_post(const pplx_work_request *requests, uint32_t count,
                                                       uint32_t lkey) {
    static struct ibv_send_wr wrs[MOST];
    static struct ibv_sge sges[MOST];
    struct ibv_send_wr *bad;
    for (uint32_t i = 0; i < count; i++) {
        sges[i] = (struct ibv_sge){requests[i].local_address, (uint32_t)requests[i].nbytes, lkey};
        wrs[i] = (struct ibv_send_wr){.wr_id = (uintptr_t)requests[i].op,
                                      .next = i + 1 < count ? &wrs[i + 1] : NULL,
                                      .sg_list = &sges[i],
                                      .num_sge = 1,
                                      .opcode = IBV_WR_RDMA_WRITE,
                                      .send_flags = IBV_SEND_SIGNALED | IBV_SEND_INLINE};
        wrs[i].wr.rdma.remote_addr = requests[i].remote_address;
        wrs[i].wr.rdma.rkey = (uint32_t)requests[i].remote_key;
    }
    return ibv_post_send(qp, wrs, &bad) == 0;
}

__attribute__((noinline)) static bool count_plain_poll(uint32_t count) {
    struct ibv_wc wcs[MOST];
    for (uint32_t done = 0; done < count;) {
        const int n = ibv_poll_cq(cq, MOST, wcs);
        for (int i = 0; i < n; i++) {
            if (wcs[i].status != IBV_WC_SUCCESS) return false;
            ((watched *)(uintptr_t)wcs[i].wr_id)->completions++;
        }
        done += (uint32_t)n;
    }
    return true;
}

__attribute__((noinline)) static bool count_verbs_post(const side *s, const pplx_work_request *requests,
                                                       uint32_t count) {
    size_t posted;
    int32_t native;
    return verbs->post(s->endpoint, requests, count, &posted, &native) == PPLX_OK;
}

__attribute__((noinline)) static bool count_verbs_poll(const side *s, uint32_t count) {
    pplx_completion completions[MOST];
    for (uint32_t done = 0; done < count;) {
        const size_t n = verbs->poll(s->domain, completions, MOST);
        for (size_t i = 0; i < n; i++) {
            if (completions[i].status != PPLX_OK) return false;
            ((watched *)completions[i].op)->completions++;
        }
        done += (uint32_t)n;
    }
    return true;
}

/* count_verbs PATH-OF-THE-FAKE SIZE-OF-A-BATCH */
int main(int argc, char **argv) {
    static watched w[MOST];
    pplx_work_request requests[MOST];
    side a, b;
    CHECK_EQ(argc, 3);
    const uint32_t batch = (uint32_t)atoi(argv[2]);
    CHECK(batch >= 1 && batch <= MOST);
    fake_load_from(argv[1]);
    pair_open(&a, &b, "x0 roce ip=10.0.0.1", "");
    CHECK_EQ(perform(&a, &b, PPLX_WRITE, 0, 8, 0), PPLX_OK);
    qp = ((verbs_endpoint *)a.endpoint)->queues[VERBS_WRITES].qp;
    cq = ((verbs_domain *)a.domain)->cq;
    qp->context->ops.post_send = tiny_post_send;
    qp->context->ops.poll_cq = tiny_poll_cq;
    for (uint32_t i = 0; i < batch; i++) requests[i] = request(&a, &b, &w[i], PPLX_WRITE, i * 8u, 8, 0);
    for (int round = 0; round < ROUNDS; round++) {
        CHECK(count_plain_post(requests, batch, ((verbs_mr *)a.mr)->lkey));
        execute();
        CHECK(count_plain_poll(batch));
        CHECK(count_verbs_post(&a, requests, batch));
        execute();
        CHECK(count_verbs_poll(&a, batch));
        for (uint32_t i = 0; i < batch; i++) CHECK_EQ(w[i].completions, 2 * (round + 1));
    }
    printf("count_plain %u\ncount_verbs %u\n", ROUNDS * batch, ROUNDS * batch);
    return 0; /* the process takes the rest with it */
}
