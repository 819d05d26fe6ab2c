/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* poll(): what arrived, what the peers want, what we want, in turns of bounded size, so that
 * heartbeats are timely however much is copied. Endpoints take turns, a piece each. */
#include "ipc_internal.h"

enum { BARREN_ROUNDS = 64 };

static void report(ipc_record *record, pplx_completion *completion) {
    const bool receive = record->request.opcode == PPLX_RECV;
    *completion = (pplx_completion){
        .op = record->request.op,
        .kind = PPLX_COMPLETION_OP,
        .status = (int32_t)record->status,
        .provider_error = record->native,
        .nbytes = receive && record->status == PPLX_OK ? record->moved : 0,
    };
    ipc_pool_give(receive ? &record->endpoint->receive_records : &record->endpoint->records, record);
}

static void report_done(ipc_domain *domain, ipc_turn *turn) {
    for (ipc_record *record; turn->count < turn->capacity && (record = domain->done.head);) {
        ipc_list_remove(&domain->done, record);
        report(record, &turn->completions[turn->count++]);
    }
}

static void report_late(ipc_domain *domain, ipc_turn *turn) {
    while (turn->count < turn->capacity && domain->late_head < domain->late_count) {
        const ipc_late *late = &domain->late[domain->late_head++];
        ipc_report_imm(turn, late->through, late->imm);
    }
    if (domain->late_head == domain->late_count) domain->late_head = domain->late_count = 0;
}

/* True: there is more that can be done. */
static bool run_endpoint(ipc_endpoint *endpoint, ipc_turn *turn) {
    bool more = false;
    pplx_ipc_heed_news(endpoint);
    if (endpoint->owing) pplx_ipc_answer(endpoint);
    if (endpoint->state != IPC_UP && endpoint->state != IPC_ENDING) return false;
    pplx_ipc_take_immediates(endpoint, turn);
    if (!endpoint->closing) {
        more |= pplx_ipc_serve(endpoint, turn);
        pplx_ipc_take_acknowledgements(endpoint, turn);
        if (endpoint->state == IPC_UP) more |= pplx_ipc_run_own(endpoint, turn);
    }
    if (endpoint->garbage)
        pplx_ipc_break(endpoint, PPLX_CONNECTION);
    else if (endpoint->state == IPC_ENDING && turn->count < turn->capacity &&
             (endpoint->last_arrivals == 0 || !pplx_ipc_arrived(endpoint)) && !pplx_ipc_acknowledged(endpoint))
        pplx_ipc_break(endpoint, endpoint->why); /* all that it left is delivered */
    return more;
}

static ipc_endpoint *following(const ipc_domain *domain, const ipc_endpoint *endpoint) {
    return endpoint->next ? endpoint->next : domain->endpoints;
}

/* A peer whose news never end makes rounds that move nothing: after a few of them everyone else has a turn. */
static void run(ipc_domain *domain, ipc_turn *turn) {
    if (!domain->endpoints) return;
    ipc_endpoint *first = domain->turn ? domain->turn : domain->endpoints;
    domain->turn = following(domain, first);
    bool more = true;
    for (int barren = 0; more && barren < BARREN_ROUNDS && turn->nbytes > 0 && turn->count < turn->capacity;) {
        const uint64_t nbytes = turn->nbytes;
        const size_t count = turn->count;
        ipc_endpoint *endpoint = first;
        more = false;
        do {
            more |= run_endpoint(endpoint, turn);
            endpoint = following(domain, endpoint);
        } while (endpoint != first);
        barren = turn->nbytes == nbytes && turn->count == count ? barren + 1 : 0;
    }
}

size_t pplx_ipc_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity) {
    ipc_domain *domain = (ipc_domain *)handle;
    ipc_turn turn = {.completions = completions, .capacity = capacity, .nbytes = IPC_TURN_BYTES};
    const uint64_t now_ns = ipc_now_ns();
    bool look = domain->slept && pplx_ipc_awake(domain);
    if (look || domain->look_again || now_ns - domain->looked_ns >= IPC_LOOK_NS) pplx_ipc_look(domain, now_ns);
    /* In turns, so that neither what ends nor what arrives keeps the other from being reported. */
    domain->arrivals_first = !domain->arrivals_first;
    if (!domain->arrivals_first) report_done(domain, &turn);
    report_late(domain, &turn);
    if (domain->cuda) pplx_ipc_cuda_finish(domain);
    run(domain, &turn);
    report_done(domain, &turn);
    return turn.count;
}
