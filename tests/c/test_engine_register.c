/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory that takes long to register: two domains of loopback, the first of which lets any thread register, and holds
 * large memory at a gate that the case opens. */
#include <unistd.h>

#include "engine_helpers.h"

enum { LARGE = 32 << 20, SMALL = 4096, MANY = 12 };

static pplx_provider gated;
static pplx_provider_domain *apart; /* the first domain that was opened */

/* The gate, and what came by. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool closed;
    int waiting, opened;
    pplx_status refusal;
    pthread_t last; /* who called mr_open() of the first domain */
} gate = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static pthread_t proxy; /* who polls */
static int handles;     /* stand for large memory; nothing else is known of it */

static void set_gate(bool closed) {
    pthread_mutex_lock(&gate.lock);
    gate.closed = closed;
    pthread_cond_broadcast(&gate.changed);
    pthread_mutex_unlock(&gate.lock);
}

static pplx_status pass(void) {
    pthread_mutex_lock(&gate.lock);
    gate.waiting++;
    gate.last = pthread_self();
    while (gate.closed) pthread_cond_wait(&gate.changed, &gate.lock);
    gate.waiting--;
    const pplx_status refusal = gate.refusal;
    pthread_mutex_unlock(&gate.lock);
    return refusal;
}

static int waiting(void) {
    pthread_mutex_lock(&gate.lock);
    const int n = gate.waiting;
    pthread_mutex_unlock(&gate.lock);
    return n;
}

static pplx_status domain_open(const char *device, const pplx_option *options, size_t noptions,
                               pplx_provider_domain **domain, pplx_error *error) {
    const pplx_status status = pplx_provider_loopback.domain_open(device, options, noptions, domain, error);
    if (!apart) apart = *domain;
    return status;
}

static void domain_caps(pplx_provider_domain *domain, pplx_caps *caps) {
    pplx_provider_loopback.domain_caps(domain, caps);
    if (domain == apart) caps->flags |= PPLX_CAP_REGISTER_APART | PPLX_CAP_CUDA | PPLX_CAP_CUDA_APART;
}

static size_t poll_it(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity) {
    pthread_mutex_lock(&gate.lock);
    proxy = pthread_self();
    pthread_mutex_unlock(&gate.lock);
    return pplx_provider_loopback.poll(domain, completions, capacity);
}

static pplx_status mr_open(pplx_provider_domain *domain, const pplx_memory *memory, uint32_t access,
                           pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error) {
    if (domain != apart || (memory->nbytes < LARGE && memory->kind == PPLX_MEMORY_HOST))
        return pplx_provider_loopback.mr_open(domain, memory, access, mr, key, error);
    const pplx_status status = pass();
    *error = (pplx_error){.status = status, .text = "the gate"};
    if (status != PPLX_OK) return status;
    __atomic_fetch_add(&gate.opened, 1, __ATOMIC_RELAXED);
    *mr = (pplx_provider_mr *)&handles;
    key->key = 5;
    return PPLX_OK;
}

static pplx_status mr_close(pplx_provider_mr *mr) {
    if ((void *)mr != (void *)&handles) return pplx_provider_loopback.mr_close(mr);
    const pplx_status status = pass();
    if (status == PPLX_OK) __atomic_fetch_sub(&gate.opened, 1, __ATOMIC_RELAXED);
    return status;
}

static void open_host(host *host) {
    gated = pplx_provider_loopback;
    gated.domain_open = domain_open;
    gated.domain_caps = domain_caps;
    gated.poll = poll_it;
    gated.mr_open = mr_open;
    gated.mr_close = mr_close;
    apart = NULL;
    gate.refusal = PPLX_OK;
    host_provider = &gated;
    host_open(host, 2, "");
}

static void close_host(host *host) {
    host_close(host);
    CHECK_EQ(gate.opened, 0);
}

/* A call that has been submitted. */
typedef struct pending {
    ending end;
    pplx_request request;
    pplx_mr mr;
} pending;

static void submit(host *host, pending *one, enum pplx_call opcode) {
    one->end = (ending){0};
    one->request = (pplx_request){
        .kind = PPLX_REQUEST_CALL, .opcode = opcode, .subject = &one->mr, .cookie = &one->end};
    pplx_submit(host->engine, &one->request);
}

static uint8_t *pages;

static void submit_open_of(host *host, pending *one, uint32_t kind, size_t nbytes) {
    memset(one, 0, sizeof *one);
    one->mr.memory = (pplx_memory){.kind = kind, .device = -1, .address = (uintptr_t)pages, .nbytes = nbytes, .fd = -1};
    one->mr.access = PPLX_ACCESS_REMOTE_WRITE;
    submit(host, one, PPLX_CALL_MR_OPEN);
}

static void submit_open(host *host, pending *one, size_t nbytes) {
    submit_open_of(host, one, PPLX_MEMORY_HOST, nbytes);
}

static void the_proxy_goes_on_while_memory_is_registered_and_given_back(void) {
    host host;
    pending large, small;
    open_host(&host);
    set_gate(true);
    submit_open(&host, &large, LARGE);
    for (int i = 0; i < 3; i++) CHECK_EQ(call(&host, PPLX_CALL_DRAIN, NULL, NULL), PPLX_OK);
    submit_open(&host, &small, SMALL); /* the proxy's own, and not behind the other one */
    WAIT(small.end.released);
    CHECK_EQ(small.request.error.status, PPLX_OK);
    WATCH(waiting() == 1);
    CHECK(!large.end.settled);
    pthread_mutex_lock(&gate.lock);
    CHECK(!pthread_equal(gate.last, proxy));
    pthread_mutex_unlock(&gate.lock);
    set_gate(false);
    WAIT(large.end.released);
    CHECK_EQ(large.request.error.status, PPLX_OK);
    CHECK_EQ(large.mr.domains, 2);
    CHECK_EQ(large.mr.keys[0].key, 5);
    CHECK(large.mr.handles[0] && large.mr.handles[1]);
    CHECK(large.mr.register_ns > 0);
    set_gate(true);
    submit(&host, &large, PPLX_CALL_MR_CLOSE);
    CHECK_EQ(call(&host, PPLX_CALL_DRAIN, NULL, NULL), PPLX_OK);
    WATCH(waiting() == 1);
    CHECK(!large.end.settled);
    set_gate(false);
    WAIT(large.end.released);
    CHECK_EQ(large.request.error.status, PPLX_OK);
    CHECK_EQ(large.mr.domains, 0);
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &small.mr, NULL), PPLX_OK);
    close_host(&host);
}

static void what_is_refused_at_one_domain_is_open_at_none(void) {
    host host;
    pending large;
    open_host(&host);
    gate.refusal = PPLX_REGISTRATION;
    submit_open(&host, &large, LARGE);
    WAIT(large.end.released);
    CHECK_EQ(large.request.error.status, PPLX_REGISTRATION);
    CHECK_EQ(large.mr.domains, 0);
    CHECK(!large.mr.handles[0] && !large.mr.handles[1]);
    gate.refusal = PPLX_OK;
    submit_open(&host, &large, LARGE);
    WAIT(large.end.released);
    gate.refusal = PPLX_NATIVE; /* it does not let go: it is as it was, and may be tried again */
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &large.mr, NULL), PPLX_NATIVE);
    CHECK_EQ(large.mr.domains, 2);
    gate.refusal = PPLX_OK;
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &large.mr, NULL), PPLX_OK);
    CHECK_EQ(large.mr.domains, 0);
    close_host(&host);
}

/* However little it is. The second domain, which reaches memory of the host only, has no say. */
static void memory_of_a_gpu_is_registered_apart_where_it_can_be(void) {
    host host;
    pending one;
    open_host(&host);
    set_gate(true);
    submit_open_of(&host, &one, PPLX_MEMORY_CUDA, SMALL);
    CHECK_EQ(call(&host, PPLX_CALL_DRAIN, NULL, NULL), PPLX_OK);
    WATCH(waiting() == 1);
    CHECK(!one.end.settled);
    set_gate(false);
    WAIT(one.end.released);
    CHECK_EQ(one.request.error.status, PPLX_OK);
    CHECK(one.mr.handles[0] && !one.mr.handles[1]);
    CHECK(one.mr.keys[0].key == 5 && one.mr.keys[1].key == PPLX_NO_KEY);
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &one.mr, NULL), PPLX_OK);
    CHECK_EQ(one.mr.domains, 0);
    gate.refusal = PPLX_REGISTRATION; /* now nobody reaches it, and what the NIC says of that is heard */
    submit_open_of(&host, &one, PPLX_MEMORY_CUDA, SMALL);
    WAIT(one.end.released);
    CHECK_EQ(one.request.error.status, PPLX_REGISTRATION);
    CHECK(strstr(one.request.error.text, "the gate"));
    CHECK_EQ(one.mr.domains, 0);
    gate.refusal = PPLX_INVALID; /* it is none of anybody's */
    submit_open_of(&host, &one, PPLX_MEMORY_CUDA, SMALL);
    WAIT(one.end.released);
    CHECK_EQ(one.request.error.status, PPLX_INVALID);
    CHECK_EQ(one.mr.domains, 0);
    close_host(&host);
}

static void many_are_registered_one_after_the_other_again_and_again(void) {
    host host;
    static pending many[MANY];
    open_host(&host);
    for (int round = 0; round < 5; round++) {
        for (int i = 0; i < MANY; i++) submit_open(&host, &many[i], i % 3 ? LARGE : SMALL);
        for (int i = 0; i < MANY; i++) {
            WAIT(many[i].end.released);
            CHECK_EQ(many[i].request.error.status, PPLX_OK);
        }
        for (int i = 0; i < MANY; i++) submit(&host, &many[i], PPLX_CALL_MR_CLOSE);
        for (int i = 0; i < MANY; i++) {
            WAIT(many[i].end.released);
            CHECK_EQ(many[i].request.error.status, PPLX_OK);
        }
    }
    close_host(&host);
}

static void a_cancel_does_not_end_it_early(void) {
    host host;
    pending large;
    open_host(&host);
    set_gate(true);
    submit_open(&host, &large, LARGE);
    WATCH(waiting() == 1);
    CHECK(pplx_cancel(host.engine, &large.request));
    CHECK_EQ(call(&host, PPLX_CALL_DRAIN, NULL, NULL), PPLX_OK);
    CHECK(!large.end.settled);
    set_gate(false);
    WAIT(large.end.released);
    CHECK_EQ(large.request.error.status, PPLX_OK);
    CHECK_EQ(call(&host, PPLX_CALL_MR_CLOSE, &large.mr, NULL), PPLX_OK);
    close_host(&host);
}

static void *open_gate_later(void *nothing) {
    usleep(50000);
    set_gate(false);
    return nothing;
}

static void an_engine_that_stops_waits_for_what_is_being_registered(void) {
    host host;
    pending large[2];
    pthread_t later;
    open_host(&host);
    set_gate(true);
    submit_open(&host, &large[0], LARGE);
    submit_open(&host, &large[1], LARGE);
    WATCH(waiting() == 1);
    CHECK_EQ(pthread_create(&later, NULL, open_gate_later, NULL), 0);
    pplx_engine_stop(host.engine);
    pthread_join(later, NULL);
    reap_all(&host);
    for (int i = 0; i < 2; i++) {
        CHECK(large[i].end.released);
        CHECK_EQ(large[i].request.error.status, PPLX_OK);
        CHECK_EQ(pplx_provider_loopback.mr_close(large[i].mr.handles[1]), PPLX_OK);
    }
    gate.opened = 0;
    close_host(&host);
}

int main(void) {
    pages = calloc(1, LARGE);
    CHECK(pages);
    RUN(the_proxy_goes_on_while_memory_is_registered_and_given_back);
    RUN(what_is_refused_at_one_domain_is_open_at_none);
    RUN(memory_of_a_gpu_is_registered_apart_where_it_can_be);
    RUN(many_are_registered_one_after_the_other_again_and_again);
    RUN(a_cancel_does_not_end_it_early);
    RUN(an_engine_that_stops_waits_for_what_is_being_registered);
    free(pages);
    return check_done();
}
