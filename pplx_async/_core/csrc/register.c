/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Registering memory, where that takes long: beside the proxy.
 *
 * A NIC's driver pins every page, a tenth of a second or more for each GiB and NIC. A proxy that waits for that sends no
 * heartbeats, and its peers take it for dead. So large memory goes to a thread (aside.h), for the domains that let any
 * thread register (PPLX_CAP_REGISTER_APART), and so does all memory of GPUs for those with PPLX_CAP_CUDA_APART, whose
 * driver may wait for kernels. The others have it from the proxy. What the thread has done comes back to the proxy
 * through the submit ring, as a call of our own, and settles there.
 *
 * Between the two a request is the thread's: the proxy has written all that it will (its opcode says what comes back)
 * and reads nothing of it but what a cancel asks for, which the thread does not write. */
#include <stdlib.h>

#include "internal.h"

enum { LARGE = 16 << 20 };

static bool is_apart(const pplx_domain *domain, const pplx_mr *mr) {
    const bool host = mr->memory.kind == PPLX_MEMORY_HOST, cuda = mr->memory.kind == PPLX_MEMORY_CUDA;
    const uint32_t needed = host ? PPLX_CAP_REGISTER_APART : PPLX_CAP_REGISTER_APART | PPLX_CAP_CUDA_APART;
    return (host || cuda) && (domain->caps.flags & needed) == needed;
}

static bool is_long(const pplx_engine *engine, const pplx_mr *mr) {
    if (mr->memory.kind == PPLX_MEMORY_HOST && mr->memory.nbytes < LARGE) return false;
    for (uint32_t i = 0; i < engine->ndomains; i++)
        if (is_apart(&engine->domains[i], mr)) return true;
    return false;
}

/* At the domains that are apart, or at the others. PPLX_OK is also of memory that those don't reach and others may:
 * then the text of `error` says why not: that of a NIC, if there is one, for the apart come last. */
static pplx_status open_at(pplx_engine *engine, pplx_mr *mr, bool apart, pplx_error *error) {
    const uint64_t start = pplx_now_ns();
    for (uint32_t i = 0; i < engine->ndomains; i++) {
        pplx_error refused = {0};
        if (is_apart(&engine->domains[i], mr) != apart) continue;
        const pplx_status status = pplx_mr_open_at(engine, i, mr, &refused);
        if (status == PPLX_OK) continue;
        const bool decides = !pplx_may_lack(mr, status);
        mr->handles[i] = NULL;
        mr->keys[i] = (pplx_remote_key){.key = PPLX_NO_KEY};
        *error = refused;
        if (decides) return status;
    }
    mr->register_ns += pplx_now_ns() - start;
    return PPLX_OK;
}

static bool is_open(const pplx_mr *mr) {
    for (uint32_t i = 0; i < mr->domains; i++)
        if (mr->handles[i]) return true;
    return false;
}

/* What fails stays in `handles`; the first failure is returned. */
static pplx_status close_at(pplx_engine *engine, pplx_mr *mr, bool apart, pplx_status first) {
    for (uint32_t i = 0; i < mr->domains; i++) {
        if (!mr->handles[i] || is_apart(&engine->domains[i], mr) != apart) continue;
        const pplx_status status = engine->domains[i].provider->mr_close(mr->handles[i]);
        if (status == PPLX_OK)
            mr->handles[i] = NULL;
        else if (first == PPLX_OK)
            first = status;
    }
    return first;
}

/* ---- the thread, as a call of it ---- */

typedef struct registration {
    pplx_aside_call call;
    pplx_engine *engine;
    pplx_request *request;
} registration;

static void run_apart(pplx_engine *engine, pplx_request *request) {
    pplx_error *error = &request->error;
    if (request->opcode == PPLX_CALL_MR_OPENED)
        error->status = open_at(engine, request->subject, true, error);
    else
        error->status = close_at(engine, request->subject, true, error->status);
    pplx_submit_node(engine, &request->node);
}

static void make(pplx_aside_call *call) {
    const registration *given = (const registration *)(const void *)call;
    run_apart(given->engine, given->request);
    free(call);
}

/* ---- the proxy ---- */

static void hand_over(pplx_engine *engine, pplx_request *request, uint32_t comes_back) {
    registration *given = malloc(sizeof *given);
    request->opcode = comes_back;
    if (!given) { /* then by us, as where there is no thread to be had */
        run_apart(engine, request);
        return;
    }
    *given = (registration){{.make = make}, engine, request};
    pplx_aside_make(&engine->registrar, &given->call);
}

static void open_long(pplx_engine *engine, pplx_request *request) {
    pplx_mr *mr = request->subject;
    pplx_error *error = &request->error;
    mr->domains = engine->ndomains;
    mr->register_ns = 0;
    *error = (pplx_error){0};
    memset(mr->handles, 0, sizeof mr->handles);
    error->status = open_at(engine, mr, false, error);
    if (error->status == PPLX_OK)
        hand_over(engine, request, PPLX_CALL_MR_OPENED);
    else
        pplx_registered(engine, request);
}

static void close_long(pplx_engine *engine, pplx_request *request) {
    request->error.status = close_at(engine, request->subject, false, PPLX_OK);
    hand_over(engine, request, PPLX_CALL_MR_CLOSED);
}

void pplx_register_run(pplx_engine *engine, pplx_request *request) {
    pplx_mr *mr = request->subject;
    const bool opens = request->opcode == PPLX_CALL_MR_OPEN;
    if (is_long(engine, mr)) {
        if (opens)
            open_long(engine, request);
        else
            close_long(engine, request);
        return;
    }
    request->error.status = opens ? pplx_mr_open_all(engine, mr, &request->error) : pplx_mr_close_all(engine, mr);
    pplx_settle(engine, request);
}

/* What failed to open somewhere is open nowhere. What was to be closed and is open nowhere is closed. */
void pplx_registered(pplx_engine *engine, pplx_request *request) {
    pplx_mr *mr = request->subject;
    const bool opened = request->opcode == PPLX_CALL_MR_OPENED || request->opcode == PPLX_CALL_MR_OPEN;
    if (opened) {
        PPLX_COUNT(engine->stats.registrations, 1);
        PPLX_COUNT(engine->stats.register_ns, mr->register_ns);
        if (request->error.status == PPLX_OK && !is_open(mr)) request->error.status = PPLX_REGISTRATION;
    }
    if (opened != (request->error.status == PPLX_OK)) pplx_mr_close_all(engine, mr);
    pplx_settle(engine, request);
}
