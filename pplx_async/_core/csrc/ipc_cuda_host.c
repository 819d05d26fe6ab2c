/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Pieces between memory of a GPU and of the host, for which this thread waits for nobody.
 *
 * The driver copies asynchronously from and to pinned memory alone, and to pin takes long. So a piece goes through a
 * slot, one of a few that are pinned once: a stream copies between GPU and slot, and stores a word behind that; this
 * thread copies between slot and the host's memory, which no driver has to know.
 *
 * Who moves a piece asks for it, in each of its turns, by pplx_ipc_hop(), and is told PPLX_AGAIN until it is there.
 * Nothing else remembers that it is wanted: between two questions its owner looks at regions, keys and peers as always,
 * and whoever may not go on doesn't ask any more. The host's memory is touched in a question only, so nobody who unmaps
 * or frees some has to think of this file. A GPU's memory is touched as long as a stream copies, so who lets go of it
 * waits for that (pplx_ipc_hops_of, pplx_ipc_hops_in), and a record does not end before.
 *
 * A slot is held for no longer than the GPU takes, and until its owner's next turn: who has to wait for something else
 * gives it up (pplx_ipc_hop_drop), or a peer that stands still would keep those of all others. If there is none, who has
 * asked first is next.
 *
 * Threads. The one that calls the domain; the one beside (aside.h), which pins; and at the end the one that waits for
 * streams in gates, which unpins. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ipc_internal.h"

enum {
    SLOTS = 8,
    ASK_NS = 10000000,    /* between questions to the driver if the stream still works */
    PATIENCE_NS = 1000000 /* who is next and doesn't ask for so long isn't any more */
};

typedef struct slot {
    bool used;
    bool dropped;             /* nobody wants what comes */
    const ipc_endpoint *endpoint;
    ipc_record *record;
    const ipc_region *region;
    cu_pointer gpu;
    uint64_t nbytes;
    bool outward;
    uint64_t turn;            /* it is done when the stream has come so far */
    cu_result result;         /* CU_ERROR_NOT_READY: the stream copies */
} slot;

struct ipc_hops {
    pplx_aside_call pin; /* first: the other thread gets it */
    ipc_domain *domain;
    pplx_aside *aside;
    const pplx_libcuda *api;
    cu_context context;
    bool asked;               /* the other thread pins, or has pinned */
    atomic_bool answered;     /* the other thread: release, after the next four */
    cu_result refused;
    bool pinned;              /* the other thread's */
    cu_pointer memory_at;     /* as the GPU sees it */
    cu_stream stream;
    unsigned char *memory;    /* SLOTS pieces, then the word */
    uint64_t begun;           /* copies so far */
    uint32_t copying;         /* slots of which that isn't done */
    uint64_t asked_ns;
    cu_result lost;           /* the driver has given the context up */
    const void *next;         /* who gets the next slot; for comparing only */
    uint64_t next_ns;         /* when it has asked last */
    slot slots[SLOTS];
};

static size_t page_nbytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static size_t memory_nbytes(void) { return SLOTS * (size_t)IPC_PIECE + page_nbytes(); }

static cu_result enter(const ipc_hops *hops, int *mode) { return pplx_cuda_enter(hops->api, hops->context, mode); }

/* How far the stream has come. */
static _Atomic uint64_t *word(const ipc_hops *hops) {
    return (_Atomic uint64_t *)(void *)(hops->memory + SLOTS * (size_t)IPC_PIECE);
}

/* ------------------------------------------------------------------ opening, closing */

/* By the thread that has to wait: the driver does, for streams in gates. */
static void unpin(ipc_hops *hops) {
    if (hops->stream) hops->api->stream_destroy(hops->stream);
    if (hops->pinned) hops->api->host_unregister(hops->memory);
}

/* What fails is tried again from there: to take back what was done could take long. */
static cu_result pin(ipc_hops *hops) {
    const pplx_libcuda *api = hops->api;
    cu_result result = CU_OK;
    if (!hops->pinned)
        result = api->host_register(hops->memory, memory_nbytes(),
                                    CU_HOST_REGISTER_PORTABLE | CU_HOST_REGISTER_DEVICEMAP);
    if (result != CU_OK) return result;
    hops->pinned = true;
    result = api->host_device_pointer(&hops->memory_at, hops->memory, 0);
    return result == CU_OK ? pplx_cuda_stream(api, &hops->stream) : result;
}

static void pin_aside(pplx_aside_call *call) {
    ipc_hops *hops = (ipc_hops *)(void *)call;
    int mode;
    hops->refused = enter(hops, &mode);
    if (hops->refused == CU_OK) {
        hops->refused = pin(hops);
        pplx_cuda_leave(hops->api, mode);
    }
    atomic_store_explicit(&hops->answered, true,
                          memory_order_release); /* release: pairs with the load in open_slots() */
}

/* CU_OK, CU_ERROR_NOT_READY, or why there is nothing to copy by; the next one tries again. */
static cu_result open_slots(ipc_hops *hops) {
    if (!hops->asked) {
        hops->asked = true;
        pplx_aside_make(hops->aside, &hops->pin);
    }
    /* acquire: pairs with the store in pin_aside() */
    if (!atomic_load_explicit(&hops->answered, memory_order_acquire)) return CU_ERROR_NOT_READY;
    if (hops->refused == CU_OK) return CU_OK;
    hops->asked = false;
    atomic_store_explicit(&hops->answered, false, memory_order_relaxed); /* relaxed: the next is given under a lock */
    return hops->refused;
}

ipc_hops *pplx_ipc_hops_open(ipc_domain *domain, pplx_aside *aside, const pplx_libcuda *api, cu_context context) {
    ipc_hops *hops = calloc(1, sizeof *hops);
    void *memory = mmap(NULL, memory_nbytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (hops && memory != MAP_FAILED) {
        hops->pin.make = pin_aside;
        hops->domain = domain;
        hops->aside = aside;
        hops->api = api;
        hops->context = context;
        hops->memory = memory;
        return hops;
    }
    if (memory != MAP_FAILED) munmap(memory, memory_nbytes());
    free(hops);
    return NULL;
}

void pplx_ipc_hops_close(ipc_hops *hops, bool entered) {
    if (!hops) return;
    if (entered) unpin(hops);
    munmap(hops->memory, memory_nbytes());
    free(hops);
}

/* ------------------------------------------------------------------ what is on its way */

static bool copies(const slot *slot) { return slot->used && slot->result == CU_ERROR_NOT_READY; }

static bool copies_for(const ipc_hops *hops, const ipc_record *record) {
    for (int i = 0; i < SLOTS; i++)
        if (copies(&hops->slots[i]) && hops->slots[i].record == record) return true;
    return false;
}

bool pplx_ipc_hops_of(const ipc_endpoint *endpoint, bool theirs) {
    const ipc_hops *hops = endpoint->domain->hops;
    for (int i = 0; hops && i < SLOTS; i++)
        if (copies(&hops->slots[i]) && hops->slots[i].endpoint == endpoint && !(theirs && hops->slots[i].region))
            return true;
    return false;
}

bool pplx_ipc_hops_in(const ipc_region *region) {
    ipc_hops *hops = region->domain->hops;
    if (!hops || !region->device) return false;
    pplx_ipc_hops_finish(hops);
    for (int i = 0; i < SLOTS; i++)
        if (copies(&hops->slots[i]) && hops->slots[i].region == region) return true;
    return false;
}

bool pplx_ipc_hops_busy(const ipc_hops *hops) { return hops->copying > 0; }

static void end_slot(ipc_hops *hops, slot *slot, cu_result result) {
    ipc_record *record = slot->record;
    slot->result = result;
    slot->used = !slot->dropped;
    hops->copying--;
    if (slot->dropped && record && record->parked && !copies_for(hops, record))
        ipc_list_append(&hops->domain->done, record);
}

/* The driver is asked now and then whether it has given up. */
static void ask(ipc_hops *hops) {
    const uint64_t now_ns = ipc_now_ns();
    int mode;
    if (now_ns - hops->asked_ns < ASK_NS) return;
    hops->asked_ns = now_ns;
    cu_result result = enter(hops, &mode); /* if there is no context any more, the stream is gone with it */
    if (result == CU_OK) {
        result = hops->api->stream_query(hops->stream);
        pplx_cuda_leave(hops->api, mode);
    }
    if (result == CU_ERROR_NOT_READY) return;
    if (result != CU_OK) hops->lost = result;
    for (slot *slot = hops->slots; hops->lost && slot < hops->slots + SLOTS; slot++)
        if (copies(slot)) end_slot(hops, slot, hops->lost);
}

void pplx_ipc_hops_finish(ipc_hops *hops) {
    if (hops->copying == 0) return;
    const uint64_t done = atomic_load_explicit(word(hops), memory_order_acquire); /* acquire: pairs with the stream's */
    for (slot *slot = hops->slots; slot < hops->slots + SLOTS; slot++)
        if (copies(slot) && slot->turn <= done) end_slot(hops, slot, CU_OK);
    if (hops->copying) ask(hops);
}

bool pplx_ipc_hop_drop(const ipc_endpoint *endpoint, const ipc_record *record) {
    ipc_hops *hops = endpoint->domain->hops;
    bool all = true;
    for (slot *slot = hops ? hops->slots : NULL; slot && slot < hops->slots + SLOTS; slot++) {
        if (!slot->used || slot->endpoint != endpoint || slot->record != record) continue;
        slot->dropped = true;
        slot->used = copies(slot);
        all &= !slot->used;
    }
    return all;
}

/* ------------------------------------------------------------------ a piece */

static slot *find(ipc_hops *hops, const ipc_hop *hop) {
    for (slot *slot = hops->slots; slot < hops->slots + SLOTS; slot++)
        if (slot->used && !slot->dropped && slot->endpoint == hop->endpoint && slot->record == hop->record &&
            slot->gpu == hop->gpu && slot->nbytes == hop->nbytes && slot->outward == hop->outward)
            return slot;
    return NULL;
}

static slot *free_slot(ipc_hops *hops) {
    for (slot *slot = hops->slots; slot < hops->slots + SLOTS; slot++)
        if (!slot->used) return slot;
    return NULL;
}

/* NULL: there is none, or another one has waited for it. */
static slot *take(ipc_hops *hops, const ipc_hop *hop) {
    const void *owner = hop->record ? (const void *)hop->record : hop->endpoint;
    slot *free = free_slot(hops);
    if (free && !hops->next) return free;
    const uint64_t now_ns = ipc_now_ns();
    if (!hops->next || now_ns - hops->next_ns >= PATIENCE_NS) hops->next = owner;
    if (hops->next != owner) return NULL;
    hops->next_ns = now_ns;
    if (free) hops->next = NULL;
    return free;
}

static cu_result start(ipc_hops *hops, slot *slot, const ipc_hop *hop) {
    const pplx_libcuda *api = hops->api;
    const uint64_t at = (uint64_t)(slot - hops->slots) * IPC_PIECE;
    cu_memory_op told = {.word = {.operation = CU_WRITE_VALUE_64,
                                  .address = hops->memory_at + SLOTS * (uint64_t)IPC_PIECE,
                                  .value = hops->begun + 1}};
    int mode;
    cu_result result = enter(hops, &mode);
    if (result != CU_OK) return result;
    if (hop->outward)
        result = api->copy(hops->memory_at + at, hop->gpu, hop->nbytes, hops->stream);
    else
        result = api->copy(hop->gpu, hops->memory_at + at, hop->nbytes, hops->stream);
    if (result == CU_OK) {
        hops->begun++;
        hops->lost = api->stream_batch(hops->stream, 1, &told, 0); /* else it is never told: see ask() */
    }
    pplx_cuda_leave(api, mode);
    return result;
}

/* CU_ERROR_NOT_READY: it is on its way, or there is no slot for it yet. */
static cu_result begin_in(ipc_hops *hops, const ipc_hop *hop, slot *slot) {
    if (!slot) return CU_ERROR_NOT_READY;
    if (!hop->outward) pplx_ipc_copy(hops->memory + (slot - hops->slots) * IPC_PIECE, hop->host, hop->nbytes);
    const cu_result result = start(hops, slot, hop);
    if (result != CU_OK) return result;
    *slot = (struct slot){.used = true,
                          .endpoint = hop->endpoint,
                          .record = hop->record,
                          .region = hop->region,
                          .gpu = hop->gpu,
                          .nbytes = hop->nbytes,
                          .outward = hop->outward,
                          .turn = hops->begun,
                          .result = CU_ERROR_NOT_READY};
    if (hop->record) hop->record->hopped = true;
    hops->copying++;
    return CU_ERROR_NOT_READY;
}

static cu_result begin(ipc_hops *hops, const ipc_hop *hop) {
    const cu_result result = hops->lost ? hops->lost : open_slots(hops);
    return result == CU_OK ? begin_in(hops, hop, take(hops, hop)) : result;
}

/* So that the GPU copies the next piece while this thread copies the one before: if nobody waits for a slot. How it
 * ends is told when it is asked for. */
static void begin_next(ipc_hops *hops, const ipc_hop *hop) {
    ipc_hop next = *hop;
    next.gpu += hop->nbytes;
    next.host += hop->nbytes;
    if (hop->follow < hop->nbytes) next.nbytes = hop->follow;
    if (!hops->next && !hops->lost && !find(hops, &next)) begin_in(hops, &next, free_slot(hops));
}

/* A dead peer's last commands are waited for a while, for all else that has to end waits for them. */
static bool in_vain(const ipc_endpoint *endpoint) {
    return endpoint->state == IPC_ENDING &&
           ipc_now_ns() - endpoint->ending_ns >= endpoint->domain->options.gpu_ms * UINT64_C(1000000);
}

static void take_out(const ipc_hops *hops, slot *slot, const ipc_hop *hop) {
    const unsigned char *piece = hops->memory + (slot - hops->slots) * IPC_PIECE;
    slot->used = false;
    if (hop->outward && hop->nbytes >= IPC_LARGE_COPY)
        pplx_ipc_stream(hop->host, piece, hop->nbytes);
    else if (hop->outward)
        pplx_ipc_copy(hop->host, piece, hop->nbytes);
}

pplx_status pplx_ipc_hop(const ipc_hop *hop, int32_t *native) {
    ipc_hops *hops = hop->endpoint->domain->hops;
    cu_result result = CU_ERROR_NOT_READY;
    if (hop->nbytes == 0) return PPLX_OK;
    slot *slot = find(hops, hop);
    if (slot)
        result = slot->result;
    else if (pplx_ipc_hop_drop(hop->endpoint, hop->record)) /* what it has asked for before it doesn't want any more */
        result = begin(hops, hop);
    if (hop->follow && find(hops, hop)) begin_next(hops, hop);
    if (result == CU_OK) take_out(hops, slot, hop);
    if (result == CU_OK) return PPLX_OK;
    const bool later = result == CU_ERROR_NOT_READY;
    if (later && !in_vain(hop->endpoint)) return PPLX_AGAIN;
    pplx_ipc_hop_drop(hop->endpoint, hop->record);
    *native = later ? 0 : result;
    return later ? hop->endpoint->why : PPLX_LOCAL_ACCESS;
}
