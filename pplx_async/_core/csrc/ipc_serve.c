/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The peer's work requests, as far as they need us: immediates are counted, commands executed in
 * their order. A command is judged by the copy that ipc_peek_command() made; a hostile peer can
 * change the slot afterwards, and the bytes in the staging area at any time, but not what is done
 * with them. */
#include "ipc_internal.h"

/* What a peer left when it was gone is bounded, even if a hostile one still writes. */
static bool may_take(const ipc_endpoint *endpoint) {
    return endpoint->state != IPC_ENDING || endpoint->last_arrivals > 0;
}

static void count_taken(ipc_endpoint *endpoint) {
    if (endpoint->state == IPC_ENDING) endpoint->last_arrivals--;
}

static void take_stream(ipc_endpoint *endpoint, int stream, ipc_turn *turn) {
    uint64_t *head = &endpoint->stream_head[stream];
    const uint64_t before = *head;
    uint32_t imm;
    while (turn->count < turn->capacity && ipc_peek_stream(&endpoint->inbox, stream, *head, &imm) &&
           may_take(endpoint)) {
        count_taken(endpoint);
        ++*head;
        ipc_report_imm(turn, endpoint, imm);
    }
    if (*head == before) return;
    ipc_free_stream(&endpoint->inbox, stream, *head);
    if (endpoint->state == IPC_UP) pplx_ipc_wake_peer(endpoint, IPC_WAKE_ROOM);
}

/* Of the peer's GPU. */
__attribute__((noinline)) static void take_streams(ipc_endpoint *endpoint, ipc_turn *turn) {
    for (int i = 0; i < IPC_STREAMS; i++) take_stream(endpoint, i, turn);
}

__attribute__((noinline)) static bool streamed(const ipc_endpoint *endpoint) {
    uint32_t imm;
    for (int i = 0; i < IPC_STREAMS; i++)
        if (ipc_peek_stream(&endpoint->inbox, i, endpoint->stream_head[i], &imm)) return true;
    return false;
}

void pplx_ipc_take_immediates(ipc_endpoint *endpoint, ipc_turn *turn) {
    const uint64_t before = endpoint->immediate_head;
    uint32_t imm;
    if (ipc_streaming(&endpoint->inbox)) take_streams(endpoint, turn);
    while (turn->count < turn->capacity && ipc_peek_immediate(&endpoint->inbox, endpoint->immediate_head, &imm) &&
           may_take(endpoint)) {
        count_taken(endpoint);
        endpoint->immediate_head++;
        ipc_report_imm(turn, endpoint, imm);
    }
    if (endpoint->immediate_head == before) return;
    ipc_free_immediates(&endpoint->inbox, endpoint->immediate_head);
    if (endpoint->state == IPC_UP) pplx_ipc_wake_peer(endpoint, IPC_WAKE_ROOM);
}

/* ------------------------------------------------------------------ commands */

typedef enum verdict { DONE, STALLED, GARBAGE } verdict;

/* The next command goes on where this one ends, as those of a large transfer do: bytes of it. `limit`: of what lies at
 * offset 0. */
static uint64_t follow(const ipc_endpoint *endpoint, const ipc_command *command, uint64_t limit) {
    ipc_command next;
    const uint64_t offset = command->offset + command->nbytes, staging = command->staging + command->nbytes;
    const bool goes_on = ipc_peek_command(&endpoint->inbox, endpoint->command_head + 1, &next) &&
                         next.kind == command->kind && next.key == command->key && next.offset == offset &&
                         next.staging == staging && next.nbytes <= command->nbytes && next.nbytes <= limit - offset &&
                         next.nbytes <= endpoint->inbox.staging_nbytes - staging;
    return goes_on ? next.nbytes : 0;
}

/* The result of the copy that the peer is told; PPLX_AGAIN: it is under way. */
static pplx_status copy_for_peer(ipc_endpoint *endpoint, const ipc_command *command) {
    const bool out = command->kind == IPC_COPY_OUT;
    const ipc_region *region = pplx_ipc_region_find(endpoint->domain, command->key);
    if (!region || !(region->access & (out ? PPLX_ACCESS_REMOTE_READ : PPLX_ACCESS_REMOTE_WRITE)) ||
        command->nbytes > region->nbytes || command->offset > region->nbytes - command->nbytes) {
        pplx_ipc_hop_drop(endpoint, NULL); /* the region was there when that began */
        return PPLX_REMOTE_ACCESS;
    }
    const uint64_t address = region->address + command->offset;
    unsigned char *memory = (unsigned char *)(uintptr_t)address;
    unsigned char *staging = endpoint->inbox.staging + command->staging;
    int32_t native;
    if (region->device) {
        const ipc_hop hop = {.endpoint = endpoint,
                             .region = region,
                             .gpu = address,
                             .host = staging,
                             .nbytes = command->nbytes,
                             .follow = follow(endpoint, command, region->nbytes),
                             .outward = out};
        return pplx_ipc_hop(&hop, &native); /* the peer finds PPLX_TRANSPORT: it is our GPU that failed */
    }
    if (out)
        pplx_ipc_copy(staging, memory, command->nbytes);
    else
        pplx_ipc_copy(memory, staging, command->nbytes);
    return PPLX_OK;
}

/* Into the memory of a RECV, which is registered as long as that is not done. PPLX_AGAIN: it is under way. */
static pplx_status deliver(ipc_endpoint *endpoint, ipc_record *record, const ipc_command *command) {
    const pplx_work_request *request = &record->request;
    const ipc_region *region = (const ipc_region *)(const void *)request->local_mr;
    unsigned char *staging = endpoint->inbox.staging + command->staging;
    const uint64_t to = request->local_address + command->offset;
    if (command->nbytes > 0 && region->device) {
        const ipc_hop hop = {.endpoint = endpoint,
                             .record = record,
                             .region = region,
                             .gpu = to,
                             .host = staging,
                             .nbytes = command->nbytes,
                             .follow = follow(endpoint, command, request->nbytes)};
        return pplx_ipc_hop(&hop, &record->native);
    }
    pplx_ipc_copy((void *)(uintptr_t)to, staging, command->nbytes);
    return PPLX_OK;
}

/* A piece of a message: the first takes the oldest RECV, the last gives it back. */
static verdict take_message(ipc_endpoint *endpoint, const ipc_command *command) {
    if (!endpoint->in_message) {
        if (command->offset != 0) return GARBAGE;
        if (!endpoint->receives.head) return STALLED; /* until one is posted */
        endpoint->receiving = endpoint->receives.head;
        ipc_list_remove(&endpoint->receives, endpoint->receiving);
        endpoint->in_message = true;
        endpoint->received = 0;
        if (command->key > endpoint->receiving->request.nbytes) {
            pplx_ipc_finish(NULL, endpoint->receiving, PPLX_TRUNCATED);
            endpoint->receiving = NULL; /* the rest is dropped */
        }
    }
    if (command->offset != endpoint->received || command->nbytes > command->key ||
        endpoint->received > command->key - command->nbytes)
        return GARBAGE;
    ipc_record *record = endpoint->receiving;
    if (record) {
        /* Again: a hostile peer may name another length than in its first piece. */
        if (endpoint->received + command->nbytes > record->request.nbytes) return GARBAGE;
        const pplx_status status = deliver(endpoint, record, command);
        if (status == PPLX_AGAIN) return STALLED;
        if (status != PPLX_OK) {
            pplx_ipc_finish(NULL, record, status);
            endpoint->receiving = NULL; /* the rest is dropped */
        }
    }
    endpoint->received += command->nbytes;
    if (!(command->flags & IPC_LAST)) return DONE;
    endpoint->in_message = false;
    record = endpoint->receiving;
    endpoint->receiving = NULL;
    if (!record) return DONE;
    record->moved = endpoint->received;
    pplx_ipc_finish(NULL, record, endpoint->received == command->key ? PPLX_OK : PPLX_TRANSPORT);
    return DONE;
}

static verdict execute(ipc_endpoint *endpoint, const ipc_command *command, ipc_turn *turn) {
    const uint64_t size = endpoint->inbox.staging_nbytes;
    pplx_status result = PPLX_OK;
    if (command->nbytes > IPC_PIECE || command->staging > size || command->nbytes > size - command->staging)
        return GARBAGE;
    switch (command->kind) {
    case IPC_COPY_IN:
    case IPC_COPY_OUT: result = copy_for_peer(endpoint, command); break;
    case IPC_MESSAGE: {
        verdict verdict = take_message(endpoint, command);
        if (verdict != DONE) return verdict;
        break;
    }
    default: return GARBAGE;
    }
    if (result == PPLX_AGAIN) return STALLED;
    if (result == PPLX_OK && command->kind == IPC_COPY_IN && command->flags & IPC_IMMEDIATE)
        ipc_report_imm(turn, endpoint, command->imm);
    ipc_acknowledge(&endpoint->inbox, endpoint->command_head++, (uint64_t)result);
    return DONE;
}

/* Each takes at most one place in the completions. */
bool pplx_ipc_serve(ipc_endpoint *endpoint, ipc_turn *turn) {
    uint64_t left = turn->nbytes < IPC_PIECE ? turn->nbytes : IPC_PIECE;
    bool any = false, more = false;
    for (int i = 0; !more && turn->count < turn->capacity; i++) {
        ipc_command command;
        if (!ipc_peek_command(&endpoint->inbox, endpoint->command_head, &command)) break;
        if (!may_take(endpoint)) break;
        verdict verdict = execute(endpoint, &command, turn);
        if (verdict == GARBAGE) endpoint->garbage = true;
        if (verdict != DONE) break;
        any = true;
        count_taken(endpoint);
        turn->nbytes -= command.nbytes < turn->nbytes ? command.nbytes : turn->nbytes;
        left -= command.nbytes < left ? command.nbytes : left;
        more = left == 0 || i == IPC_TURN_OPS || turn->nbytes == 0;
    }
    if (any && endpoint->state == IPC_UP) pplx_ipc_wake_peer(endpoint, IPC_WAKE_ARRIVAL);
    return more;
}

bool pplx_ipc_arrived(const ipc_endpoint *endpoint) {
    uint32_t imm;
    ipc_command command;
    if (ipc_peek_immediate(&endpoint->inbox, endpoint->immediate_head, &imm)) return true;
    if (ipc_streaming(&endpoint->inbox) && streamed(endpoint)) return true;
    if (endpoint->closing || !ipc_peek_command(&endpoint->inbox, endpoint->command_head, &command)) return false;
    return command.kind != IPC_MESSAGE || endpoint->in_message || endpoint->receives.head != NULL;
}
