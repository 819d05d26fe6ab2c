/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Our work requests: taken by post(), begun in order, ended in any.
 *
 *   post()  small ones are done at once if none waits; an immediate alone overtakes what waits
 *   queue   writes and reads. Into a mapping: copied here, in pieces, then the immediate
 *           Addressed: the same, by the kernel
 *           Staged: a command for each piece; a read's piece is copied here when it is acknowledged
 *           From GPU to GPU: a stream's, ipc_cuda_batch.c; between GPU and host piece by piece: ipc_cuda_host.c
 *           Of several segments: one after the other, and the immediate behind the last; a stream's at once
 *   sends   messages, which need a RECV at the peer before they are begun
 *   waiting all commands are out; ends with the last acknowledgement
 *
 * What is at the head of a list and can't go on says in `*_blocked` what it needs. */
#include <string.h>

#include "ipc_internal.h"

typedef enum verdict {
    ENDED,  /* record->status says how */
    NEXT,   /* it has come to its next segment */
    ISSUED, /* commands do the rest */
    STREAMED, /* a stream does all of it */
    MORE,   /* this turn's bytes are used up */
    BLOCKED
} verdict;

static uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

void pplx_ipc_finish(ipc_list *from, ipc_record *record, pplx_status status) {
    ipc_domain *domain = record->endpoint->domain;
    if (from) ipc_list_remove(from, record);
    record->status = status;
    record->parked = record->hopped && !pplx_ipc_hop_drop(record->endpoint, record);
    if (!record->parked) ipc_list_append(&domain->done, record);
}

void pplx_ipc_end_all(ipc_endpoint *endpoint, pplx_status status) {
    ipc_list *lists[] = {&endpoint->waiting, &endpoint->queue, &endpoint->sends, &endpoint->receives};
    if (endpoint->receiving) pplx_ipc_finish(NULL, endpoint->receiving, status);
    endpoint->receiving = NULL;
    pplx_ipc_hop_drop(endpoint, NULL);
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++)
        while (lists[i]->head) pplx_ipc_finish(lists[i], lists[i]->head, status);
}

/* ------------------------------------------------------------------ immediates */

static bool has_slot(ipc_endpoint *endpoint) {
    if (endpoint->immediates_free > 0) return true;
    uint64_t free = ipc_immediates_free(&endpoint->outbox, endpoint->immediate_tail + endpoint->held);
    if (free == UINT64_MAX)
        endpoint->garbage = true;
    else
        endpoint->immediates_free = free;
    return endpoint->immediates_free > 0;
}

/* To publish costs as much as to copy a few hundred bytes, since the peer is looking at the slot. So
 * those of small writes are published a few at a time, the first of them last: it hides the others. */
static void publish_immediates(ipc_endpoint *endpoint) {
    if (endpoint->held == 0) return;
    ipc_push_immediate(&endpoint->outbox, endpoint->immediate_tail, endpoint->first_held);
    endpoint->immediate_tail += endpoint->held;
    endpoint->held = 0;
    endpoint->held_nbytes = 0;
    pplx_ipc_wake_peer(endpoint, IPC_WAKE_ARRIVAL);
}

/* Published here, or by run_list() when it ends. */
static bool push_immediate(ipc_endpoint *endpoint, const pplx_work_request *request) {
    if (!has_slot(endpoint)) return false;
    endpoint->immediates_free--;
    if (endpoint->held == 0)
        endpoint->first_held = request->imm;
    else
        ipc_put_immediate(&endpoint->outbox, endpoint->immediate_tail + endpoint->held, request->imm);
    endpoint->held++;
    endpoint->held_nbytes += request->nbytes;
    if (endpoint->held == IPC_HELD || endpoint->held_nbytes >= IPC_HELD_BYTES) publish_immediates(endpoint);
    return true;
}

/* ------------------------------------------------------------------ commands */

static uint64_t piece_nbytes(const ipc_endpoint *endpoint) {
    return least(IPC_PIECE, endpoint->outbox.staging_nbytes / 4);
}

/* Room for a command and its piece, which lies in one run. False: not before an acknowledgement. */
static bool reserve(const ipc_endpoint *endpoint, uint64_t nbytes, uint64_t *at, uint64_t *end) {
    const uint64_t size = endpoint->outbox.staging_nbytes, tail = endpoint->staging_tail;
    if (endpoint->command_tail - endpoint->command_acked == IPC_COMMANDS) return false;
    uint64_t start = tail % size + nbytes > size ? tail + size - tail % size : tail;
    *at = start % size;
    *end = start + ipc_round_up(nbytes, IPC_LINE);
    return *end - endpoint->staging_head <= size;
}

static bool is_device(const ipc_record *record) {
    return ((const ipc_region *)(const void *)record->request.local_mr)->device;
}

/* Of a transfer from the GPU, what there is room for now. */
static uint64_t follow_out(const ipc_record *record, uint64_t nbytes) {
    uint64_t at, end;
    return reserve(record->endpoint, 2 * nbytes, &at, &end) ? record->request.nbytes - record->moved - nbytes : 0;
}

/* To the GPU: the next piece, if it is acknowledged, too. */
static uint64_t follow_in(const ipc_endpoint *endpoint, const ipc_issued *issued) {
    const uint64_t position = endpoint->command_acked + 1;
    const ipc_issued *next = &endpoint->issued[position % IPC_COMMANDS];
    const uint64_t since = ipc_acknowledged(&endpoint->outbox, position, endpoint->command_tail);
    if (since == 0 || since == UINT64_MAX || ipc_result(&endpoint->outbox, position) != PPLX_OK) return 0;
    return next->record == issued->record && next->local == issued->local + issued->nbytes &&
                   next->staging == issued->staging + issued->nbytes && next->nbytes <= issued->nbytes
               ? next->nbytes
               : 0;
}

/* A piece to or from the staging area; PPLX_AGAIN: not yet. */
static pplx_status stage(ipc_record *record, const ipc_issued *issued) {
    const bool outward = record->request.opcode != PPLX_READ;
    unsigned char *staging = record->endpoint->outbox.staging + issued->staging;
    void *local = (void *)(uintptr_t)issued->local;
    if (issued->nbytes == 0) return PPLX_OK; /* its region may be closed by now: not to be looked at */
    if (is_device(record)) {
        const ipc_hop hop = {.endpoint = record->endpoint,
                             .record = record,
                             .region = (const ipc_region *)(const void *)record->request.local_mr,
                             .gpu = issued->local,
                             .host = staging,
                             .nbytes = issued->nbytes,
                             .follow = outward ? follow_out(record, issued->nbytes)
                                               : follow_in(record->endpoint, issued),
                             .outward = outward};
        return pplx_ipc_hop(&hop, &record->native);
    }
    pplx_ipc_copy(outward ? staging : local, outward ? local : staging, issued->nbytes);
    return PPLX_OK;
}

/* Hand the next piece of the record to the peer, or find out that it can't be had: record->status. Else what it needs
 * for that. */
static enum ipc_blocked issue(ipc_endpoint *endpoint, ipc_record *record, ipc_command command, uint64_t nbytes) {
    const pplx_work_request *request = &record->request;
    ipc_issued issued = {.record = record, .local = request->local_address + record->moved, .nbytes = nbytes};
    if (!reserve(endpoint, nbytes, &issued.staging, &issued.end)) return IPC_NEEDS_ACK;
    if (command.kind != IPC_COPY_OUT) {
        const pplx_status staged = stage(record, &issued);
        if (staged == PPLX_AGAIN) return IPC_NEEDS_GPU;
        if (staged != PPLX_OK) {
            record->status = staged;
            if (command.kind == IPC_COPY_IN)
                return IPC_RUNNABLE; /* what lies there instead goes nowhere, nor does the immediate */
            nbytes = 0; /* of a message: a last command, and short */
        }
    }
    command.nbytes = nbytes;
    command.staging = issued.staging;
    record->moved += nbytes;
    if ((record->moved == request->nbytes && record->following == 0) || record->status != PPLX_OK)
        command.flags = request->opcode == PPLX_WRITE_IMM ? IPC_LAST | IPC_IMMEDIATE : IPC_LAST;
    record->pending++;
    endpoint->staging_tail = issued.end;
    endpoint->issued[endpoint->command_tail % IPC_COMMANDS] = issued;
    ipc_push_command(&endpoint->outbox, endpoint->command_tail++, &command);
    return IPC_RUNNABLE;
}

static pplx_status status_of(uint64_t result) {
    switch (result) { /* hostile: only what a peer may find */
    case PPLX_OK: return PPLX_OK;
    case PPLX_REMOTE_ACCESS: return PPLX_REMOTE_ACCESS;
    default: return PPLX_TRANSPORT;
    }
}

void pplx_ipc_take_acknowledgements(ipc_endpoint *endpoint, ipc_turn *turn) {
    if (endpoint->command_acked == endpoint->command_tail) return;
    uint64_t count = ipc_acknowledged(&endpoint->outbox, endpoint->command_acked, endpoint->command_tail);
    if (count == UINT64_MAX) {
        endpoint->garbage = true;
        return;
    }
    for (; count > 0 && turn->nbytes > 0; count--) {
        const uint64_t position = endpoint->command_acked;
        const ipc_issued *issued = &endpoint->issued[position % IPC_COMMANDS];
        ipc_record *record = issued->record;
        pplx_status result = status_of(ipc_result(&endpoint->outbox, position));
        if (record->status == PPLX_OK) record->status = result;
        if (record->request.opcode == PPLX_READ && record->status == PPLX_OK) {
            const pplx_status staged = stage(record, issued);
            if (staged == PPLX_AGAIN) return;
            record->status = staged;
            turn->nbytes -= least(turn->nbytes, issued->nbytes);
        }
        endpoint->command_acked++;
        endpoint->staging_head = issued->end;
        /* What is not all issued is still at the head of its list, which looks at the status. */
        if (--record->pending == 0 && record->issued) pplx_ipc_finish(&endpoint->waiting, record, record->status);
        if (endpoint->queue_blocked == IPC_NEEDS_ACK) endpoint->queue_blocked = IPC_RUNNABLE;
        if (endpoint->sends_blocked == IPC_NEEDS_ACK) endpoint->sends_blocked = IPC_RUNNABLE;
    }
}

/* ------------------------------------------------------------------ writes, reads */

static verdict end(ipc_record *record, pplx_status status) {
    if (record->status == PPLX_OK) record->status = status;
    return record->pending ? ISSUED : ENDED;
}

static verdict block(enum ipc_blocked *blocked, enum ipc_blocked why) {
    *blocked = why;
    return BLOCKED;
}

static verdict go_on(ipc_record *record) {
    pplx_work_request *request = &record->request;
    const ipc_part next = ipc_part_of(record, 1);
    request->segments++;
    request->local_address = next.local;
    request->remote_address = next.remote;
    request->nbytes = next.nbytes;
    record->moved = 0;
    record->following--;
    return NEXT;
}

/* All of a segment is there. */
static verdict finish_with_immediate(ipc_endpoint *endpoint, ipc_record *record) {
    if (record->following) return go_on(record);
    if (record->request.opcode == PPLX_WRITE_IMM && !push_immediate(endpoint, &record->request))
        return block(&endpoint->queue_blocked, IPC_NEEDS_SLOT);
    return end(record, PPLX_OK);
}

/* Between the host and a GPU: of the two addresses one is the host's. */
static verdict run_device(ipc_endpoint *endpoint, ipc_record *record, uint64_t remote, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    const bool ours = is_device(record);
    while (record->moved < request->nbytes) {
        if (*nbytes == 0) return MORE;
        const uint64_t local = request->local_address + record->moved, there = remote + record->moved;
        const uint64_t left = request->nbytes - record->moved, piece = least(left, IPC_PIECE);
        const ipc_hop hop = {.endpoint = endpoint,
                             .record = record,
                             .region = ours ? (const ipc_region *)(const void *)request->local_mr : NULL,
                             .gpu = ours ? local : there,
                             .host = (unsigned char *)(uintptr_t)(ours ? there : local),
                             .nbytes = piece,
                             .follow = left - piece,
                             .outward = ours == (request->opcode != PPLX_READ)};
        const pplx_status status = pplx_ipc_hop(&hop, &record->native);
        if (status == PPLX_AGAIN) return block(&endpoint->queue_blocked, IPC_NEEDS_GPU);
        if (status != PPLX_OK) return end(record, status);
        record->moved += piece;
        *nbytes -= least(*nbytes, piece);
    }
    if (pplx_ipc_has_news(endpoint)) return MORE; /* as in run_mapped() */
    return finish_with_immediate(endpoint, record);
}

static bool fits(const ipc_key *key, uint64_t address, uint64_t nbytes) {
    return nbytes <= key->nbytes && address <= key->nbytes - nbytes;
}

/* From GPU to GPU, all segments at once. */
static verdict run_streamed(ipc_endpoint *endpoint, ipc_record *record, const ipc_key *key) {
    for (uint32_t i = 1; i <= record->following; i++) {
        const ipc_part part = ipc_part_of(record, i);
        if (!fits(key, part.remote, part.nbytes)) return end(record, PPLX_REMOTE_ACCESS);
    }
    const enum ipc_blocked needs = pplx_ipc_cuda_gather(endpoint, record, key);
    return needs == IPC_RUNNABLE ? STREAMED : block(&endpoint->queue_blocked, needs);
}

static verdict run_mapped(ipc_endpoint *endpoint, ipc_record *record, const ipc_key *key, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    while (record->moved < request->nbytes) {
        if (*nbytes == 0) return MORE;
        uint64_t piece = least(request->nbytes - record->moved, *nbytes);
        void *local = (void *)(uintptr_t)(request->local_address + record->moved);
        void *remote = key->memory + request->remote_address + record->moved;
        if (request->opcode == PPLX_READ)
            pplx_ipc_copy(local, remote, piece);
        else if (request->nbytes >= IPC_LARGE_COPY || request->flags & PPLX_WORK_BULK)
            pplx_ipc_stream(remote, local, piece);
        else
            pplx_ipc_copy(remote, local, piece);
        record->moved += piece;
        *nbytes -= piece;
    }
    /* What the peer has said meanwhile goes first: if it gave us up in the middle of the copy (we were
     * stopped, say), its memory is elsewhere by now, and this is no success. */
    if (pplx_ipc_has_news(endpoint)) return MORE;
    return finish_with_immediate(endpoint, record);
}

static verdict run_staged(ipc_endpoint *endpoint, ipc_record *record, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    /* Nothing to move; or it went direct and waits for a slot, and meanwhile that was refused to another. */
    if (record->moved == request->nbytes) return finish_with_immediate(endpoint, record);
    verdict verdict = ISSUED;
    const uint64_t before = record->moved;
    while (record->moved < request->nbytes && verdict == ISSUED && record->status == PPLX_OK) {
        const ipc_command command = {.kind = request->opcode == PPLX_READ ? IPC_COPY_OUT : IPC_COPY_IN,
                                     .key = request->remote_key,
                                     .offset = request->remote_address + record->moved,
                                     .imm = request->imm};
        uint64_t piece = least(request->nbytes - record->moved, piece_nbytes(endpoint));
        if (*nbytes == 0) {
            verdict = MORE;
            break;
        }
        const enum ipc_blocked needs = issue(endpoint, record, command, piece);
        if (needs == IPC_RUNNABLE)
            *nbytes -= least(*nbytes, piece);
        else
            verdict = block(&endpoint->queue_blocked, needs);
    }
    if (record->moved > before) pplx_ipc_wake_peer(endpoint, IPC_WAKE_ARRIVAL);
    if (record->status != PPLX_OK) return end(record, record->status);
    return verdict == ISSUED && record->following ? go_on(record) : verdict;
}

/* What is refused before the end goes on through the staging area, from where it is. */
static verdict run_direct(ipc_endpoint *endpoint, ipc_record *record, const ipc_key *key, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    while (record->moved < request->nbytes) {
        if (*nbytes == 0) return MORE;
        uint64_t piece = least(request->nbytes - record->moved, *nbytes);
        switch (pplx_ipc_direct(endpoint, request->opcode == PPLX_READ,
                                (void *)(uintptr_t)(request->local_address + record->moved),
                                key->address + request->remote_address + record->moved, piece)) {
        case IPC_DIRECT_DONE: break;
        case IPC_DIRECT_FAULT: return end(record, PPLX_REMOTE_ACCESS);
        case IPC_DIRECT_REFUSED: return run_staged(endpoint, record, nbytes);
        case IPC_DIRECT_ENDED: /* the look that comes next finds out how, and ends everything */
            endpoint->domain->look_again = true;
            return BLOCKED;
        }
        record->moved += piece;
        *nbytes -= piece;
    }
    return finish_with_immediate(endpoint, record);
}

/* Out of the way of all others. Memory of a GPU goes by staging at last: the kernel, which copies between processes,
 * knows nothing of it. */
__attribute__((noinline)) static verdict run_with_device(ipc_endpoint *endpoint, ipc_record *record, ipc_key *key,
                                                         uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    if (key->device && is_device(record) && request->nbytes > 0) return run_streamed(endpoint, record, key);
    if (key->device) return run_device(endpoint, record, key->device + request->remote_address, nbytes);
    if (key->memory) return run_device(endpoint, record, (uintptr_t)key->memory + request->remote_address, nbytes);
    return run_staged(endpoint, record, nbytes);
}

static verdict run_one_sided(ipc_endpoint *endpoint, ipc_record *record, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    const uint32_t access = request->opcode == PPLX_READ ? PPLX_ACCESS_REMOTE_READ : PPLX_ACCESS_REMOTE_WRITE;
    if (record->status != PPLX_OK) return end(record, record->status); /* a piece of it was refused */
    ipc_key *key = pplx_ipc_key_use(endpoint, request->remote_key);
    if (!key) return block(&endpoint->queue_blocked, IPC_NEEDS_ANSWER);
    if (key->state == IPC_KEY_NONE) {
        pplx_ipc_key_drop(endpoint, key);
        return end(record, PPLX_REMOTE_ACCESS);
    }
    if (!(key->access & access) || !fits(key, request->remote_address, request->nbytes))
        return end(record, PPLX_REMOTE_ACCESS);
    /* Begun when there was no other way: what is in commands lands later than what we would copy, and the immediate. */
    if (record->pending) return run_staged(endpoint, record, nbytes);
    if (endpoint->domain->cuda && (key->device || is_device(record)))
        return run_with_device(endpoint, record, key, nbytes);
    if (key->memory) return run_mapped(endpoint, record, key, nbytes);
    return pplx_ipc_goes_direct(endpoint, key) ? run_direct(endpoint, record, key, nbytes)
                                               : run_staged(endpoint, record, nbytes);
}

/* ------------------------------------------------------------------ messages */

static bool receive_posted(const ipc_endpoint *endpoint) {
    /* seq_cst: pairs with the store in count_receive(); "Waking" in ipc_ring.h. Hostile: then a
     * message waits in the command ring for its RECV. */
    return endpoint->sends_begun != atomic_load_explicit(&endpoint->outbox.head->receives, memory_order_seq_cst);
}

static verdict run_send(ipc_endpoint *endpoint, ipc_record *record, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    bool begun = record->pending || record->moved;
    if (!begun && !receive_posted(endpoint)) return block(&endpoint->sends_blocked, IPC_NEEDS_RECEIVE);
    verdict verdict = ISSUED;
    do {
        const ipc_command command = {.kind = IPC_MESSAGE, .key = request->nbytes, .offset = record->moved};
        uint64_t piece = least(request->nbytes - record->moved, piece_nbytes(endpoint));
        if (record->status != PPLX_OK) piece = 0; /* its memory is gone: a last command, and short */
        if (*nbytes == 0) return MORE;
        const enum ipc_blocked needs = issue(endpoint, record, command, piece);
        if (needs != IPC_RUNNABLE) {
            verdict = block(&endpoint->sends_blocked, needs);
        } else {
            if (!begun) endpoint->sends_begun++;
            begun = true;
            *nbytes -= least(*nbytes, piece);
            pplx_ipc_wake_peer(endpoint, IPC_WAKE_ARRIVAL);
        }
    } while (record->moved < request->nbytes && verdict == ISSUED && record->status == PPLX_OK);
    return verdict;
}

/* ------------------------------------------------------------------ a turn */

typedef verdict (*run_fn)(ipc_endpoint *, ipc_record *, uint64_t *);

/* It waits, and not for the GPU. A read's in commands are asked for when those are acknowledged. */
static void give_up_slots(const ipc_endpoint *endpoint, const ipc_record *record) {
    const bool send = record->request.opcode == PPLX_SEND, read = record->request.opcode == PPLX_READ;
    if ((send ? endpoint->sends_blocked : endpoint->queue_blocked) != IPC_NEEDS_GPU && !(read && record->pending))
        pplx_ipc_hop_drop(endpoint, record);
}

static bool run_some(ipc_endpoint *endpoint, ipc_list *list, run_fn run, uint64_t *nbytes) {
    for (int i = 0; i < IPC_TURN_OPS; i++) {
        ipc_record *record = list->head;
        if (!record || endpoint->garbage) return false;
        verdict verdict = run(endpoint, record, nbytes);
        if (verdict == BLOCKED) {
            if (record->hopped) give_up_slots(endpoint, record);
            return false;
        }
        if (verdict == NEXT) continue;
        if (verdict == MORE) return true;
        if (verdict == ENDED) {
            pplx_ipc_finish(list, record, record->status);
        } else if (verdict == STREAMED) {
            ipc_list_remove(list, record);
        } else {
            record->issued = true;
            ipc_list_move(list, &endpoint->waiting, record);
        }
    }
    return true;
}

static bool run_list(ipc_endpoint *endpoint, ipc_list *list, run_fn run, uint64_t *nbytes) {
    const bool more = run_some(endpoint, list, run, nbytes);
    publish_immediates(endpoint); /* before what has ended is reported */
    return more;
}

static bool run_queue(ipc_endpoint *endpoint, uint64_t *nbytes) {
    endpoint->unbegun = 0;
    endpoint->unbegun_nbytes = 0;
    return run_list(endpoint, &endpoint->queue, run_one_sided, nbytes);
}

bool pplx_ipc_run_own(ipc_endpoint *endpoint, ipc_turn *turn) {
    const uint64_t quantum = least(turn->nbytes, IPC_PIECE);
    uint64_t left = quantum;
    endpoint->queue_blocked = endpoint->sends_blocked = IPC_RUNNABLE; /* tried again, it says so again */
    bool more = run_list(endpoint, &endpoint->sends, run_send, &left);
    more |= run_queue(endpoint, &left);
    if (endpoint->domain->cuda) pplx_ipc_cuda_start(endpoint);
    turn->nbytes -= quantum - left;
    return more;
}

bool pplx_ipc_acknowledged(const ipc_endpoint *endpoint) {
    return endpoint->command_acked != endpoint->command_tail &&
           ipc_acknowledged(&endpoint->outbox, endpoint->command_acked, endpoint->command_tail) != 0;
}

/* Who waits for a GPU asks again. */
static bool goes_on(enum ipc_blocked blocked) { return blocked == IPC_RUNNABLE || blocked == IPC_NEEDS_GPU; }

bool pplx_ipc_own_work(const ipc_endpoint *endpoint) {
    if (pplx_ipc_acknowledged(endpoint)) return true;
    if (endpoint->sends.head && (goes_on(endpoint->sends_blocked) ||
                                 (endpoint->sends_blocked == IPC_NEEDS_RECEIVE && receive_posted(endpoint))))
        return true;
    return endpoint->queue.head && (goes_on(endpoint->queue_blocked) ||
                                    (endpoint->queue_blocked == IPC_NEEDS_SLOT &&
                                     ipc_immediates_free(&endpoint->outbox, endpoint->immediate_tail) != 0 &&
                                     (!endpoint->domain->cuda || pplx_ipc_cuda_room(endpoint))));
}

/* ------------------------------------------------------------------ post */

static bool alone(const pplx_work_request *request) {
    return request->opcode == PPLX_WRITE_IMM && request->nbytes == 0;
}

static bool local_memory_valid(const ipc_endpoint *endpoint, const pplx_work_request *request) {
    const ipc_region *region = (const ipc_region *)request->local_mr;
    const pplx_segment *segments = request->segments;
    if (!region || region->domain != endpoint->domain) return false;
    if (request->nsegments == 0) return ipc_covers(region, request->local_address, request->nbytes);
    for (uint32_t i = 0; i < request->nsegments; i++)
        if (!ipc_covers(region, request->local_address + segments[i].local - segments[0].local, segments[i].nbytes))
            return false;
    return true;
}

static ipc_record *take_record(ipc_endpoint *endpoint, const pplx_work_request *request) {
    ipc_record *record = request->opcode == PPLX_RECV
                             ? ipc_pool_take(&endpoint->receive_records, 0)
                             : ipc_pool_take(&endpoint->records, alone(request) ? 0 : PPLX_RESERVED_IMMS);
    if (!record) return NULL;
    record->endpoint = endpoint;
    record->request = *request;
    record->following = 0;
    if (request->nsegments) {
        record->request.nbytes = request->segments[0].nbytes;
        record->following = request->nsegments - 1u;
    }
    record->moved = 0;
    record->pending = 0;
    record->issued = false;
    record->status = PPLX_OK;
    record->native = 0;
    record->hopped = false;
    return record;
}

/* Tell the peer, which may have a message for it. */
static void count_receive(ipc_endpoint *endpoint) {
    endpoint->receives_posted++;
    /* seq_cst: pairs with the load in receive_posted() */
    atomic_store_explicit(&endpoint->inbox.head->receives, endpoint->receives_posted, memory_order_seq_cst);
    if (endpoint->state == IPC_UP) pplx_ipc_wake_peer(endpoint, IPC_WAKE_ROOM);
}

/* Do it now, or leave it to poll(). */
static void start(ipc_endpoint *endpoint, ipc_record *record, uint64_t nbytes_posted, uint64_t *nbytes) {
    const pplx_work_request *request = &record->request;
    const bool send = request->opcode == PPLX_SEND;
    ipc_list *list = send ? &endpoint->sends : &endpoint->queue;
    bool first = !list->head, overtakes = false;
    if (!first && alone(request)) {
        const ipc_key *key = pplx_ipc_key_find(endpoint, request->remote_key);
        overtakes = key && key->state == IPC_KEY_KNOWN;
    }
    if (overtakes) {
        enum ipc_blocked blocked = endpoint->queue_blocked;
        verdict verdict = run_one_sided(endpoint, record, nbytes);
        publish_immediates(endpoint);
        endpoint->queue_blocked = blocked;
        if (verdict == ENDED) {
            pplx_ipc_finish(NULL, record, record->status);
            return;
        }
    }
    ipc_list_append(list, record);
    const bool of_gpu = endpoint->domain->cuda && is_device(record);
    if (of_gpu && !send) { /* together, at the end of post(), or in poll() */
        endpoint->unbegun += 1 + record->following;
        endpoint->unbegun_nbytes += nbytes_posted;
    }
    if (!first) return;
    *(send ? &endpoint->sends_blocked : &endpoint->queue_blocked) = IPC_RUNNABLE;
    if (of_gpu && !send) return;
    if (nbytes_posted <= least(IPC_SMALL_COPY, *nbytes) || of_gpu)
        run_list(endpoint, list, send ? run_send : run_one_sided, nbytes);
}

pplx_status pplx_ipc_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count,
                          size_t *posted, int32_t *provider_error) {
    ipc_endpoint *endpoint = (ipc_endpoint *)handle;
    uint64_t nbytes = IPC_POST_BYTES;
    pplx_status status = PPLX_OK;
    size_t i = 0;
    *provider_error = 0;
    pplx_ipc_heed_news(endpoint);
    for (; i < count; i++) {
        const pplx_work_request *request = &requests[i];
        const bool receive = request->opcode == PPLX_RECV;
        if (endpoint->closing)
            status = PPLX_CLOSED;
        else if (endpoint->state >= IPC_ENDING)
            status = endpoint->why;
        else if (!request->op || request->opcode > PPLX_RECV || request->nsegments > IPC_MAX_SEGMENTS)
            status = PPLX_INVALID;
        else if (!receive && request->nbytes > IPC_MAX_MESSAGE)
            status = PPLX_TOO_LARGE;
        else if (!receive && endpoint->state != IPC_UP)
            status = PPLX_AGAIN;
        if (status != PPLX_OK) break;
        ipc_record *record = take_record(endpoint, request);
        if (!record) {
            status = PPLX_AGAIN;
            break;
        }
        if (!local_memory_valid(endpoint, request)) {
            pplx_ipc_finish(NULL, record, PPLX_LOCAL_ACCESS);
        } else if (receive) {
            ipc_list_append(&endpoint->receives, record);
            count_receive(endpoint);
        } else {
            start(endpoint, record, request->nbytes, &nbytes);
        }
    }
    if (endpoint->unbegun && pplx_ipc_cuda_begins(endpoint)) {
        run_queue(endpoint, &nbytes);
        pplx_ipc_cuda_start(endpoint);
    }
    *posted = i;
    return status;
}
