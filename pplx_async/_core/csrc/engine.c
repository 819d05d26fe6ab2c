/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The engine as its owner sees it: open and close, submit, reap.
 *
 * Submitting: the ring; when it is full, an ordered list under a lock. Once one request waits in
 * the list, later ones queue behind it, until the proxy has taken ring and list, in this order and
 * under the lock: so the requests of one thread are taken in the order of its calls.
 *
 * Settled and released are two moments of a request (engine.h). It comes through the done list
 * when it settles, and again when it is released, if that is later:
 *   proxy  sets RELEASED; if the owner had set REAPED before, it pushes the request again
 *   owner  sets REAPED;   if the proxy had set RELEASED before, it is done with the request
 * One word, read-modify-writes only: one of the two always sees the other. The same holds for
 * CANCELLED (owner) and SETTLED (proxy): a cancel that comes first travels to the proxy as a node
 * of its own, and the request does not settle before that node has arrived. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

enum { LANDING_BYTES = 4096, LEAST_TIMELY = 64 << 10 };

pplx_status pplx_fail(pplx_error *error, pplx_status status, int32_t provider_error, const char *format, ...) {
    error->status = status;
    error->provider_error = provider_error;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    return status;
}

/* ---- open and close ---- */

pplx_status pplx_engine_open(const pplx_engine_config *config, pplx_engine **out, pplx_error *error) {
    *out = NULL;
    pplx_engine *engine = calloc(1, sizeof *engine);
    if (!engine) return pplx_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for an engine");
    engine->config = *config;
    engine->config.libcuda = NULL; /* the caller's */
    engine->submit_fd = engine->done_fd = -1;
    pthread_mutex_init(&engine->pending_lock, NULL);
    pthread_mutex_init(&engine->gpus_lock, NULL);
    pplx_aside_init(&engine->registrar, "pplx-register", NULL, NULL);
    pplx_done_init(&engine->done);
    if (config->libcuda && !(engine->libcuda = strdup(config->libcuda))) {
        pplx_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for an engine");
        goto fail;
    }
    if (!pplx_ring_valid(config->ring_entries)) {
        pplx_fail(error, PPLX_INVALID, 0, "ring_entries must be a power of two, at least 2, not %u",
                  config->ring_entries);
        goto fail;
    }
    if (config->message_slots == 0 || config->message_slots > PPLX_MAX_SLOTS) {
        pplx_fail(error, PPLX_INVALID, 0, "message_slots must be 1 to %d, not %u", PPLX_MAX_SLOTS,
                  config->message_slots);
        goto fail;
    }
    if (!pplx_ring_init(&engine->ring, config->ring_entries)) {
        pplx_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for a ring of %u entries", config->ring_entries);
        goto fail;
    }
    engine->landing_page = mmap(NULL, LANDING_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (engine->landing_page == MAP_FAILED) {
        engine->landing_page = NULL;
        pplx_fail(error, PPLX_NO_MEMORY, errno, "mmap of the landing page: %s", strerror(errno));
        goto fail;
    }
    engine->submit_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    engine->done_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (engine->submit_fd < 0 || engine->done_fd < 0) {
        pplx_fail(error, PPLX_NATIVE, errno, "eventfd: %s (is the limit of open files reached?)", strerror(errno));
        goto fail;
    }
    *out = engine;
    return PPLX_OK;
fail:
    pplx_engine_close(engine);
    return error->status;
}

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

static uint64_t most_message(const pplx_engine *engine, const pplx_caps *caps) {
    /* A piece that has to wait until nothing else is in flight might wait for ever. */
    uint64_t most = least(caps->max_message, caps->max_inflight_bytes);
    /* Heartbeats wait behind a piece that is on its way: on a slow link no piece may be large. */
    const uint64_t bytes_per_ms = caps->bits_per_second / 8000;
    const uint64_t timely = bytes_per_ms * engine->config.heartbeat_timeout_ms / 8;
    return bytes_per_ms ? least(most, timely > LEAST_TIMELY ? timely : LEAST_TIMELY) : most;
}

pplx_status pplx_engine_add_domain(pplx_engine *engine, const pplx_provider *provider, const char *device,
                                   const pplx_option *options, size_t noptions, pplx_error *error) {
    if (engine->started || engine->ndomains == PPLX_MAX_DOMAINS)
        return pplx_fail(error, PPLX_INVALID, 0, "an engine has at most %d domains, opened before it starts",
                         PPLX_MAX_DOMAINS);
    pplx_domain *domain = &engine->domains[engine->ndomains];
    pplx_status status = provider->domain_open(device, options, noptions, &domain->handle, error);
    if (status != PPLX_OK) return status;
    domain->provider = provider;
    domain->index = engine->ndomains;
    provider->domain_caps(domain->handle, &domain->caps);
    domain->wait_fd = domain->caps.flags & PPLX_CAP_WAIT_FD ? provider->wait_fd(domain->handle) : -1;
    atomic_init(&domain->timed, domain->wait_fd < 0);
    engine->ndomains++;
    domain->max_message = most_message(engine, &domain->caps);
    return PPLX_OK;
}

pplx_status pplx_engine_start(pplx_engine *engine, pplx_error *error) {
    engine->landing.memory = (pplx_memory){.kind = PPLX_MEMORY_HOST,
                                           .device = -1,
                                           .address = (uintptr_t)engine->landing_page,
                                           .nbytes = LANDING_BYTES,
                                           .fd = -1};
    engine->landing.access = PPLX_ACCESS_REMOTE_WRITE;
    /* No proxy yet: this thread is the one holder of the progress token. */
    pplx_status status = pplx_mr_open_all(engine, &engine->landing, error);
    if (status != PPLX_OK) return status;
    engine->now_ns = pplx_now_ns();
    engine->drives = engine->config.owner_drives != 0;
    for (uint32_t i = 0; i < engine->ndomains; i++)
        if (engine->domains[i].wait_fd < 0 || engine->domains[i].caps.flags & PPLX_CAP_STACKED) engine->drives = false;
    int code = pthread_create(&engine->thread, NULL, pplx_proxy_main, engine);
    if (code) return pplx_fail(error, PPLX_NATIVE, code, "pthread_create: %s", strerror(code));
    engine->started = true;
    return PPLX_OK;
}

void pplx_engine_stop(pplx_engine *engine) {
    if (!engine->started) return;
    engine->started = false;
    atomic_store_explicit(&engine->stop, 1, memory_order_seq_cst);
    pplx_ring_fd(engine->submit_fd);
    pthread_join(engine->thread, NULL);
    pplx_words_stop(engine);
}

void pplx_engine_close(pplx_engine *engine) {
    pplx_engine_stop(engine);
    pplx_mr_close_all(engine, &engine->landing);
    for (uint32_t i = 0; i < engine->ndomains; i++)
        engine->domains[i].provider->domain_close(engine->domains[i].handle);
    pplx_gpus_close(engine);
    if (engine->submit_fd >= 0) close(engine->submit_fd);
    if (engine->done_fd >= 0) close(engine->done_fd);
    if (engine->landing_page) munmap(engine->landing_page, LANDING_BYTES);
    pplx_counters_free(engine);
    pplx_ring_free(&engine->ring);
    pthread_mutex_destroy(&engine->pending_lock);
    pthread_mutex_destroy(&engine->gpus_lock);
    free(engine->libcuda);
    free(engine);
}

size_t pplx_engine_domains(const pplx_engine *engine) { return engine->ndomains; }

void pplx_engine_caps(const pplx_engine *engine, size_t domain, pplx_caps *caps) {
    *caps = engine->domains[domain].caps;
    /* relaxed: what it says may change at once */
    if (atomic_load_explicit(&engine->domains[domain].timed, memory_order_relaxed))
        caps->flags &= ~(uint32_t)PPLX_CAP_WAIT_FD;
}

void pplx_engine_landing(const pplx_engine *engine, size_t domain, pplx_remote_key *key) {
    *key = engine->landing.keys[domain];
}

/* ---- owner to proxy ---- */

void pplx_submit_node(pplx_engine *engine, pplx_node *node) {
    /* acquire: pairs with the release in take_pending() (proxy.c): what it took went before us */
    if (atomic_load_explicit(&engine->npending, memory_order_acquire) || !pplx_ring_push(&engine->ring, node)) {
        pthread_mutex_lock(&engine->pending_lock);
        node->next = NULL;
        if (engine->pending_tail)
            engine->pending_tail->next = node;
        else
            engine->pending_head = node;
        engine->pending_tail = node;
        /* seq_cst: like the ring's publishing store, it goes before the look at `asleep` */
        atomic_store_explicit(&engine->npending, engine->npending + 1, memory_order_seq_cst);
        pthread_mutex_unlock(&engine->pending_lock);
    }
    /* seq_cst: pairs with the store in block() (proxy.c); the argument is in ring.h, "Sleeping".
     * Whoever takes `asleep` off rings, so it is rung once per sleep, not by every submit until it
     * runs. The others need not: awake, it looks at everything before it sets `asleep` again. */
    if (atomic_load_explicit(&engine->asleep, memory_order_seq_cst) &&
        atomic_exchange_explicit(&engine->asleep, 0, memory_order_seq_cst))
        pplx_ring_fd(engine->submit_fd);
}

void pplx_submit(pplx_engine *engine, pplx_request *request) {
    request->node.kind = PPLX_NODE_REQUEST;
    request->cancel_node.kind = PPLX_NODE_CANCEL;
    pplx_submit_node(engine, &request->node);
}

bool pplx_cancel(pplx_engine *engine, pplx_request *request) {
    uint32_t before = __atomic_fetch_or(&request->state, PPLX_STATE_CANCELLED, __ATOMIC_ACQ_REL); /* see the head */
    if (before & (PPLX_STATE_SETTLED | PPLX_STATE_CANCELLED)) return !(before & PPLX_STATE_SETTLED);
    pplx_hand_in(engine, &request->cancel_node);
    return true;
}

void pplx_message_release(pplx_engine *engine, pplx_message *message) { pplx_hand_in(engine, &message->node); }

void pplx_peer_free(pplx_peer *peer) { pplx_hand_in(peer->engine, &peer->lost_node); }

/* ---- proxy to owner ---- */

int pplx_engine_fd(const pplx_engine *engine) { return engine->done_fd; }

int pplx_engine_wait_fd(const pplx_engine *engine, size_t domain) {
    return engine->drives ? engine->domains[domain].wait_fd : -1;
}

bool pplx_arm(pplx_engine *engine) { return pplx_done_arm(&engine->done); }

void pplx_clear(pplx_engine *engine) {
    uint64_t rung;
    while (read(engine->done_fd, &rung, sizeof rung) < 0 && errno == EINTR) {
    }
}

pplx_node *pplx_reap(pplx_engine *engine) { return pplx_done_take(&engine->done); }

void pplx_finish(pplx_engine *engine, pplx_node *node) {
    if (pplx_done_push(&engine->done, node)) {
        PPLX_COUNT(engine->stats.wakes, 1);
        pplx_ring_fd(engine->done_fd);
    }
}

void pplx_settle(pplx_engine *engine, pplx_request *request) {
    if (request->bell) { /* it may be posted again, and nobody else looks at its state */
        request->state = PPLX_STATE_SETTLED;
        if (!request->unreleased) pplx_bell_ended(engine, request->bell);
        return;
    }
    uint32_t state = PPLX_STATE_SETTLED | (request->unreleased ? 0 : PPLX_STATE_RELEASED);
    uint32_t before = __atomic_fetch_or(&request->state, state, __ATOMIC_ACQ_REL); /* see the head */
    if (before & PPLX_STATE_CANCELLED && !request->cancel_seen) return; /* when its node arrives */
    pplx_finish(engine, &request->node);
}

/* `count` more of its work requests have been let go. */
void pplx_release(pplx_engine *engine, pplx_request *request, uint32_t count) {
    request->unreleased -= count;
    uint32_t state = __atomic_load_n(&request->state, __ATOMIC_RELAXED); /* SETTLED is ours */
    if (request->unreleased || !(state & PPLX_STATE_SETTLED)) return;
    if (request->bell) {
        pplx_bell_ended(engine, request->bell);
        return;
    }
    uint32_t before = __atomic_fetch_or(&request->state, PPLX_STATE_RELEASED, __ATOMIC_ACQ_REL); /* see the head */
    if (before & PPLX_STATE_REAPED) pplx_finish(engine, &request->node);
}

bool pplx_request_reaped(pplx_request *request) {
    uint32_t before = __atomic_fetch_or(&request->state, PPLX_STATE_REAPED, __ATOMIC_ACQ_REL); /* see the head */
    return before & PPLX_STATE_RELEASED;
}

void pplx_engine_read_stats(const pplx_engine *engine, pplx_engine_stats *stats) {
    const uint64_t *from = (const uint64_t *)&engine->stats;
    uint64_t *to = (uint64_t *)stats;
    for (size_t i = 0; i < sizeof *stats / sizeof *to; i++) to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
