/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Copies from GPU to GPU, begun in batches.
 *
 * A store keeps a stream from copying for 1.4 us, a copy of 1 MiB takes 2.7, and to begin one costs 2 to 5 (two H200s). So
 * what is begun together has its copies before two stores: of the first immediate, behind which the others lie already,
 * and of our word. Many small ones are copied by one kernel, others by one call. While the streams have enough to do what
 * comes is left in the queue, and makes the next batch. */
#include "ipc_cuda.h"

enum {
    BATCH_NBYTES = 10 << 20, /* of IPC_CUDA_BATCH records; or one record */
    MOST_BEGUN = 2,     /* batches on a stream */
    FEW = 4,            /* from so many on by one kernel, if each is */
    SMALL = 256 << 10,  /* no larger than this */
    KERNEL_BLOCK = 16 << 10, /* bytes of a block of it */
    LARGE = 1 << 20,    /* bytes from which on a record doesn't keep the small ones waiting: it has other streams */
    ASK_NS = 10000000   /* between questions to the driver if a stream still works */
};

static bool has_room(ipc_endpoint *endpoint, int stream, uint32_t slots) {
    const uint64_t free = ipc_stream_free(&endpoint->outbox, stream, endpoint->stream_tail[stream]);
    if (free == UINT64_MAX) endpoint->garbage = true;
    return free != UINT64_MAX && free > slots;
}

bool pplx_ipc_cuda_room(const ipc_endpoint *endpoint) {
    for (int i = 0; i < IPC_STREAMS; i++)
        if (ipc_stream_free(&endpoint->outbox, i, endpoint->stream_tail[i]) == 0) return false;
    return true;
}

/* Batches that it was given and has not done. */
static uint64_t on_stream(const ipc_cuda *cuda, int stream) {
    /* relaxed: what it has copied is seen by pplx_ipc_cuda_finish() */
    return cuda->begun[stream] - atomic_load_explicit(&cuda->done[stream], memory_order_relaxed);
}

/* Two for what is small, two for what is large: one stores while the other one copies. But kernels of two streams end at
 * the same time, and the GPU has nothing to copy while both store, 5 us of 60: so what is small takes the other two as
 * well, as long as they have nothing. -1: all have enough to do. */
static int pick_stream(const ipc_cuda *cuda, uint64_t nbytes) {
    const int first = nbytes < LARGE ? 0 : IPC_STREAMS / 2, second = first + 1;
    int stream = on_stream(cuda, second) < on_stream(cuda, first) ? second : first;
    for (int i = IPC_STREAMS / 2; i < IPC_STREAMS && nbytes < LARGE && on_stream(cuda, stream); i++)
        if (on_stream(cuda, i) == 0) stream = i;
    return on_stream(cuda, stream) < MOST_BEGUN || nbytes >= BATCH_NBYTES ? stream : -1;
}

static bool joins(const ipc_cuda *cuda, uint32_t count, uint64_t nbytes, uint64_t longest) {
    const bool large = cuda->longest >= LARGE;
    return cuda->count + count <= IPC_CUDA_BATCH && large == (longest >= LARGE) &&
           cuda->nbytes + nbytes <= BATCH_NBYTES;
}

/* Whether what was posted begins at once: the streams have nothing to do, or it is a batch. Else poll() begins it, with
 * what is posted until then. */
bool pplx_ipc_cuda_begins(const ipc_endpoint *endpoint) {
    return endpoint->domain->cuda->nworking == 0 || endpoint->unbegun >= IPC_CUDA_BATCH ||
           endpoint->unbegun_nbytes >= BATCH_NBYTES;
}

enum ipc_blocked pplx_ipc_cuda_gather(ipc_endpoint *endpoint, ipc_record *record, const ipc_key *key) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    const pplx_work_request *request = &record->request;
    const ipc_region *local = (const ipc_region *)(const void *)request->local_mr;
    const uint32_t count = 1 + record->following;
    uint64_t nbytes = 0, longest = 0;
    for (uint32_t i = 0; i < count; i++) {
        const ipc_part part = ipc_part_of(record, i);
        nbytes += part.nbytes;
        if (part.nbytes > longest) longest = part.nbytes;
    }
    if (cuda->count && !joins(cuda, count, nbytes, longest)) pplx_ipc_cuda_start(endpoint);
    if (cuda->count == 0) cuda->stream = pick_stream(cuda, longest);
    if (cuda->stream < 0) return IPC_NEEDS_GPU;
    if (request->opcode == PPLX_WRITE_IMM) {
        if (!has_room(endpoint, cuda->stream, cuda->slots)) return IPC_NEEDS_SLOT;
        cuda->slots++;
    }
    for (uint32_t i = 0; i < count; i++) {
        const ipc_part part = ipc_part_of(record, i);
        const cu_pointer here = part.local, there = key->device + part.remote;
        cuda->pieces.of[cuda->count++] = request->opcode == PPLX_READ ? (cuda_piece){here, there, part.nbytes}
                                                                      : (cuda_piece){there, here, part.nbytes};
    }
    cuda->apart |= !local->near || !key->near;
    cuda->nbytes += nbytes;
    if (longest > cuda->longest) cuda->longest = longest;
    cuda->records[cuda->nrecords++] = record;
    return IPC_RUNNABLE;
}

static cu_memory_op store(cu_pointer address, uint64_t value) {
    return (cu_memory_op){.word = {.operation = CU_WRITE_VALUE_64, .address = address, .value = value}};
}

/* Where the stream stores it; of those behind the first one, which hides them, it is there before. */
static cu_memory_op store_immediate(ipc_endpoint *endpoint, int stream, uint32_t imm) {
    const uint64_t position = endpoint->stream_tail[stream]++;
    const char *slot = (const char *)ipc_stream_slot(&endpoint->outbox, stream, position);
    return store(endpoint->stream_slots + (uint64_t)(slot - (const char *)endpoint->outbox.streams),
                 ipc_immediate_slot(position, imm));
}

static void put_immediate(ipc_endpoint *endpoint, int stream, uint32_t imm) {
    ipc_put_streamed(&endpoint->outbox, stream, endpoint->stream_tail[stream]++, imm);
}

/* The whole batch by one kernel. False: it isn't worth it, or the driver says no. */
static bool copy_by_kernel(ipc_cuda *cuda) {
    /* acquire: pairs with the store in load_kernel() */
    cu_function kernel = atomic_load_explicit(&cuda->kernel, memory_order_acquire);
    void *arguments[] = {&cuda->pieces};
    if (!kernel || cuda->count < FEW || cuda->longest > SMALL) return false;
    return cuda->api->launch(kernel, (unsigned)((cuda->longest + KERNEL_BLOCK - 1) / KERNEL_BLOCK), cuda->count, 1,
                             CUDA_PIECE_THREADS, 1, 1, 0, cuda->streams[cuda->stream], arguments, NULL) == CU_OK;
}

/* By one call. False: the driver has none, or says no. */
static bool copy_by_call(const ipc_cuda *cuda) {
    cu_pointer to[IPC_CUDA_BATCH], from[IPC_CUDA_BATCH];
    size_t nbytes[IPC_CUDA_BATCH], first = 0;
    cu_copy_attributes attributes = {.order = CU_COPY_IN_STREAM_ORDER};
    if (!cuda->api->copy_batch || cuda->count == 1) return false;
    for (uint32_t i = 0; i < cuda->count; i++) {
        to[i] = cuda->pieces.of[i].to;
        from[i] = cuda->pieces.of[i].from;
        nbytes[i] = cuda->pieces.of[i].nbytes;
    }
    return cuda->api->copy_batch(to, from, nbytes, cuda->count, &attributes, &first, 1, cuda->streams[cuda->stream]) ==
           CU_OK;
}

/* A record's pieces, one call each. Returns how many the driver has taken; fewer: it is a failure. */
static uint32_t copy_apart(const ipc_cuda *cuda, ipc_record *record, const cuda_piece *pieces, uint32_t count) {
    uint32_t taken = 0;
    while (taken < count && record->native == CU_OK) {
        const cuda_piece *piece = &pieces[taken];
        record->native = cuda->api->copy(piece->to, piece->from, piece->nbytes, cuda->streams[cuda->stream]);
        taken += record->native == CU_OK;
    }
    return taken;
}

/* Not if some of it is another GPU's memory, and not opened as a peer's: the copy engines reach that, one copy at a
 * time, but a kernel would end with a fault, which takes the program's own context along. */
static bool copy_together(ipc_cuda *cuda) { return !cuda->apart && (copy_by_kernel(cuda) || copy_by_call(cuda)); }

/* Copies, then immediates, then our word. A record of which the driver refuses a copy ends when those before that are
 * done, or at once. */
void pplx_ipc_cuda_start(ipc_endpoint *endpoint) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    if (!cuda || cuda->count == 0) return;
    const int stream = cuda->stream;
    const pplx_libcuda *api = cuda->api;
    cu_memory_op ops[2];
    uint32_t nops = 0;
    int mode;
    const cu_result entered = ipc_cuda_enter(cuda, &mode);
    const bool ready = entered == CU_OK && pplx_ipc_cuda_plug(endpoint);
    const bool copied = ready && !cuda->lost && copy_together(cuda);
    const cuda_piece *pieces = cuda->pieces.of;
    for (uint32_t i = 0; i < cuda->nrecords; i++) {
        ipc_record *record = cuda->records[i];
        const pplx_work_request *request = &record->request;
        const uint32_t count = 1 + record->following;
        uint32_t taken = copied ? count : 0;
        record->native = entered == CU_OK ? cuda->lost : entered;
        if (ready && !copied) taken = copy_apart(cuda, record, pieces, count);
        pieces += count;
        if (taken < count) record->status = PPLX_LOCAL_ACCESS;
        if (taken == 0) {
            pplx_ipc_finish(NULL, record, PPLX_LOCAL_ACCESS);
            continue;
        }
        if (request->opcode == PPLX_WRITE_IMM && taken == count) {
            if (nops == 0)
                ops[nops++] = store_immediate(endpoint, stream, request->imm);
            else
                put_immediate(endpoint, stream, request->imm);
        }
        record->turn = cuda->begun[stream] + 1;
        ipc_list_append(&cuda->working[stream], record);
        endpoint->streaming++;
        cuda->nworking++;
    }
    cuda->count = cuda->nrecords = cuda->slots = 0;
    cuda->nbytes = cuda->longest = 0;
    cuda->apart = false;
    if (cuda->working[stream].tail && cuda->working[stream].tail->turn > cuda->begun[stream]) {
        ops[nops++] = store(cuda->done_at + (uint64_t)stream * sizeof(uint64_t), ++cuda->begun[stream]);
        const cu_result result = api->stream_batch(cuda->streams[stream], nops, ops, 0);
        if (result != CU_OK) cuda->lost = result; /* what is copied is never told */
    }
    if (entered == CU_OK) ipc_cuda_leave(cuda, mode);
}

/* ------------------------------------------------------------------ the end of them */

bool pplx_ipc_cuda_busy(const ipc_domain *domain) {
    const ipc_cuda *cuda = domain->cuda;
    return cuda && (cuda->nworking || pplx_ipc_hops_busy(cuda->hops) || (cuda->under_way && cuda->bell < 0));
}

static void end_record(ipc_cuda *cuda, int stream, pplx_status status, int32_t native) {
    ipc_record *record = cuda->working[stream].head;
    ipc_endpoint *endpoint = record->endpoint;
    ipc_list_remove(&cuda->working[stream], record);
    cuda->nworking--;
    endpoint->streaming--;
    if (status == PPLX_OK) cuda->stuck = false;
    if (record->status == PPLX_OK && status != PPLX_OK) {
        record->status = status;
        record->native = native;
    }
    /* Its end may have been told already; the copy into the memory of who is gone is no success. */
    if (record->status == PPLX_OK && endpoint->state >= IPC_ENDING) record->status = endpoint->why;
    pplx_ipc_finish(NULL, record, record->status);
    if (record->request.opcode == PPLX_WRITE_IMM && endpoint->state == IPC_UP)
        pplx_ipc_wake_peer(endpoint, IPC_WAKE_ARRIVAL);
}

/* The driver is asked now and then whether it has given up. */
static void ask(ipc_cuda *cuda) {
    const uint64_t now_ns = ipc_now_ns();
    int mode;
    if (now_ns - cuda->asked_ns < ASK_NS) return;
    cuda->asked_ns = now_ns;
    const cu_result entered = ipc_cuda_enter(cuda,
                                             &mode); /* if there is no context any more, the streams are gone with it */
    for (int i = 0; i < IPC_STREAMS; i++) {
        if (!cuda->working[i].head) continue;
        const cu_result result = entered == CU_OK ? cuda->api->stream_query(cuda->streams[i]) : entered;
        if (result == CU_ERROR_NOT_READY) continue;
        if (result != CU_OK) cuda->lost = result;
        while (cuda->lost && cuda->working[i].head) end_record(cuda, i, PPLX_LOCAL_ACCESS, cuda->lost);
    }
    if (entered == CU_OK) ipc_cuda_leave(cuda, mode);
}

void pplx_ipc_cuda_finish(ipc_domain *domain) {
    ipc_cuda *cuda = domain->cuda;
    pplx_ipc_cuda_hear(domain);
    if (!cuda) return;
    pplx_ipc_hops_finish(cuda->hops);
    if (cuda->nworking == 0) return;
    for (int i = 0; i < IPC_STREAMS; i++) {
        /* acquire: pairs with the store of the stream, after what it has copied to us */
        const uint64_t done = atomic_load_explicit(&cuda->done[i], memory_order_acquire);
        while (cuda->working[i].head && cuda->working[i].head->turn <= done) end_record(cuda, i, PPLX_OK, 0);
    }
    if (cuda->nworking) ask(cuda);
}

bool pplx_ipc_cuda_idle(const ipc_endpoint *endpoint) {
    return endpoint->streaming == 0 && !pplx_ipc_hops_of(endpoint, true);
}

/* A stream without anything to wait for has had its time. Our peers hear nothing of us meanwhile, so this is a part of
 * what makes a peer lost. */
static bool is_late(const ipc_domain *domain, uint64_t start_ns) {
    return ipc_now_ns() - start_ns >= domain->options.gpu_ms * UINT64_C(1000000);
}

/* Records that the streams have done end as they should; pieces between GPU and host can wait. A GPU that works on is
 * waited for once: peers would take us for dead, were each of them to have us wait. */
bool pplx_ipc_cuda_settle(const ipc_endpoint *endpoint) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    const uint64_t start_ns = ipc_now_ns();
    if (endpoint->streaming == 0) return pplx_ipc_cuda_idle(endpoint);
    for (bool late = cuda->stuck;; late = is_late(endpoint->domain, start_ns)) { /* before the look: we may stop */
        pplx_ipc_cuda_finish(endpoint->domain);
        if (endpoint->streaming == 0) return pplx_ipc_cuda_idle(endpoint);
        if (late) break;
    }
    cuda->stuck = true;
    return false;
}
