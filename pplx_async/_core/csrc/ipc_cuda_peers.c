/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs between processes, the other side: what peers share with us, and the rings in which our GPU leaves
 * immediates to them.
 *
 * Some calls take long, and are made by threads beside (aside.h). To open a peer's memory waits in the driver for the
 * kernels that run in this process's context, and to pin memory takes its time; a stream that waits in a gate holds up
 * neither. To close a peer's memory, to unpin, and to load and unload the kernel wait for such streams as well: measured
 * on an H200. Such a gate may need what is to be opened, so these are another thread's, each one after the other, and
 * not made while a gate of the process holds a stream: our copies would wait in the driver, too (gates_held.h). A
 * transfer that needs an allocation waits for it; who is asked to let go confirms when it is closed; the rings of a peer
 * that is gone are unmapped when they are unpinned, and nobody waits for that; small pieces are the copy engine's until
 * the kernel is there.
 *
 * Memory of virtual mappings, which CUDA IPC doesn't open, is opened by descriptors of its chunks instead
 * (cuda_virtual.h): they are made when a peer asks, come with the answer, and are the opening thread's to map. Where they
 * can't be had, for want of open files, say, the owner copies. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gates_held.h"
#include "ipc_cuda.h"

/* A peer's allocation. */
struct ipc_opened {
    pplx_aside_call call;
    struct ipc_opened *next; /* under way */
    ipc_cuda *cuda;
    ipc_endpoint *endpoint; /* NULL: it is closed */
    ipc_key *key;           /* NULL: it was let go meanwhile */
    cu_ipc_handle handle;
    uint64_t offset, nbytes; /* where the region lies in it */
    cu_pointer allocation;   /* 0: it can't be opened */
    bool fits;               /* it is as long as the peer says */
    bool closing;
    cuda_chunks chunks; /* count 0: it is opened by the handle */
    atomic_bool done; /* the thread that has it: release, after all else */
    int fds[];        /* of the chunks, until it is opened */
};

/* A peer's rings, which our GPU knows. */
struct ipc_plug {
    pplx_aside_call call;
    ipc_cuda *cuda;
    ipc_inbox outbox; /* the endpoint's, which has left it to us */
};

static void close_opened(const ipc_cuda *cuda, const ipc_opened *opened) {
    if (opened->chunks.count)
        pplx_cuda_chunks_unmap(cuda->api, &opened->chunks);
    else
        cuda->api->ipc_close(opened->allocation);
}

/* ------------------------------------------------------------------ their memory */

/* The other thread's last touch. What has rung is found, and what is news has rung: see pplx_ipc_cuda_hear(). */
static void tell(ipc_opened *opened) {
    ipc_cuda *cuda = opened->cuda;
    const uint64_t one = 1;
    atomic_fetch_add_explicit(&cuda->telling, 1, memory_order_relaxed); /* relaxed: who sees `done` sees it, too */
    atomic_store_explicit(&opened->done, true, memory_order_release); /* release: pairs with the load in hear() */
    const bool rung = cuda->bell >= 0 && write(cuda->bell, &one, sizeof one) == sizeof one;
    (void)rung; /* it can't fail: nobody rings that often */
    atomic_store_explicit(&cuda->news, true, memory_order_release); /* release: pairs with the exchange there */
    atomic_fetch_sub_explicit(&cuda->telling, 1,
                              memory_order_release); /* release: pairs with pplx_ipc_cuda_close()'s */
}

void pplx_ipc_cuda_close_opened(const ipc_cuda *cuda) {
    for (const ipc_opened *opened = cuda->under_way; opened; opened = opened->next)
        if (opened->allocation && !opened->closing) close_opened(cuda, opened);
}

void pplx_ipc_cuda_free_opened(const ipc_cuda *cuda) {
    for (ipc_opened *opened = cuda->under_way, *next; opened; opened = next) {
        next = opened->next;
        free(opened);
    }
}

static void open_allocation(pplx_aside_call *call) {
    ipc_opened *opened = (ipc_opened *)(void *)call;
    const ipc_cuda *cuda = opened->cuda;
    cuda_range range;
    int mode;
    opened->fits = true;
    if (ipc_cuda_enter(cuda, &mode) == CU_OK) {
        if (opened->chunks.count)
            opened->allocation = pplx_cuda_chunks_map(cuda->api, cuda->device, opened->fds, &opened->chunks)
                                     ? opened->chunks.start
                                     : 0;
        else if (cuda->api->ipc_open(&opened->allocation, opened->handle, CU_IPC_LAZY_ENABLE_PEER_ACCESS) == CU_OK)
            opened->fits = pplx_cuda_look_up(cuda->api, opened->allocation, &range) == CU_OK &&
                           cuda_holds(&range, opened->allocation + opened->offset, opened->nbytes);
        else
            opened->allocation = 0;
        ipc_cuda_leave(cuda, mode);
    }
    for (uint32_t i = 0; i < opened->chunks.count; i++) close(opened->fds[i]);
    tell(opened);
}

static void close_allocation(pplx_aside_call *call) {
    ipc_opened *opened = (ipc_opened *)(void *)call;
    int mode;
    pplx_outlast_gates();
    if (ipc_cuda_enter(opened->cuda, &mode) == CU_OK) {
        close_opened(opened->cuda, opened);
        ipc_cuda_leave(opened->cuda, mode);
    }
    pplx_gates_may_come();
    tell(opened);
}

static void give_aside(ipc_opened *opened, void (*make)(pplx_aside_call *call)) {
    ipc_cuda *cuda = opened->cuda;
    const bool closing = make == close_allocation;
    opened->next = cuda->under_way;
    cuda->under_way = opened;
    if (opened->endpoint) opened->endpoint->aside++;
    opened->call.make = make;
    opened->closing = closing;
    atomic_store_explicit(&opened->done, false, memory_order_relaxed); /* relaxed: given under a lock */
    pplx_aside_make(closing ? &cuda->patient : &cuda->aside, &opened->call);
}

/* Whoever can't open it has the owner copy. False: it can't be what the peer says. */
bool pplx_ipc_cuda_open(ipc_endpoint *endpoint, ipc_key *key, const ipc_note *note, ipc_fds *fds) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    const ipc_device_memory *memory = &note->device;
    cuda_range range;
    const uint32_t chunks = note->extent == IPC_CHUNKED ? note->chunks : 0;
    if (note->nbytes > memory->nbytes || note->offset > memory->nbytes - note->nbytes) return false;
    if (note->extent == IPC_CHUNKED && (chunks == 0 || memory->nbytes == 0 || memory->nbytes % chunks)) return false;
    key->later = !cuda;
    if (!cuda) return true;
    if (endpoint->pid == getpid()) { /* our own: CUDA doesn't open what is open */
        if (pplx_cuda_look_up(cuda->api, memory->address, &range) == CU_OK &&
            (chunks ? range.ordinal == cuda->ordinal && cuda_holds(&range, memory->address, memory->nbytes)
                    : range.start == memory->address && range.nbytes == memory->nbytes)) {
            key->device = memory->address + note->offset;
            key->near = ipc_cuda_is_near(cuda, &range);
        }
        return true;
    }
    if (fds->dropped) return true;
    ipc_opened *opened = calloc(1, sizeof *opened + chunks * sizeof opened->fds[0]);
    if (!opened) return true;
    if (chunks) {
        opened->chunks = (cuda_chunks){.nbytes = memory->nbytes / chunks, .count = chunks};
        memcpy(opened->fds, fds->of, chunks * sizeof opened->fds[0]);
        fds->count = 0; /* ours now */
    }
    memcpy(opened->handle.bytes, memory->handle, sizeof opened->handle.bytes);
    opened->cuda = cuda;
    opened->endpoint = endpoint;
    opened->key = key;
    opened->offset = note->offset;
    opened->nbytes = note->nbytes;
    key->opened = opened;
    key->state = IPC_KEY_OPENING;
    give_aside(opened, open_allocation);
    return true;
}

/* Nothing works with it any more: the streams are idle. */
bool pplx_ipc_cuda_yield(ipc_key *key) {
    if (!key->opened) return false;
    give_aside(key->opened, close_allocation);
    return true;
}

void pplx_ipc_cuda_drop(ipc_key *key) {
    ipc_opened *opened = key->opened;
    if (!opened) return;
    opened->key = NULL;
    if (key->state == IPC_KEY_KNOWN) give_aside(opened, close_allocation);
}

void pplx_ipc_cuda_forget(ipc_endpoint *endpoint) {
    if (!endpoint->aside) return;
    for (ipc_opened *opened = endpoint->domain->cuda->under_way; opened; opened = opened->next)
        if (opened->endpoint == endpoint) opened->endpoint = NULL;
    endpoint->aside = 0;
}

static void take_opened(ipc_opened *opened) {
    ipc_key *key = opened->key;
    const bool fits = opened->fits;
    if (!key && opened->allocation) { /* nobody wants it any more */
        give_aside(opened, close_allocation);
        return;
    }
    if (key && opened->allocation && fits) {
        key->device = opened->allocation + opened->offset;
        key->near = true; /* as the flag says */
    }
    if (key && !opened->allocation) key->opened = NULL;
    if (key) pplx_ipc_key_opened(opened->endpoint, key, fits);
    if (!opened->allocation) free(opened);
}

static void take_closed(ipc_opened *opened) {
    if (opened->key) {
        opened->key->opened = NULL;
        pplx_ipc_key_closed(opened->endpoint, opened->key);
    }
    free(opened);
}

void pplx_ipc_cuda_hear(ipc_domain *domain) {
    ipc_cuda *cuda = domain->cuda;
    uint64_t rings;
    if (!cuda || !atomic_load_explicit(&cuda->news, memory_order_relaxed)) return; /* relaxed: mostly there are none */
    /* acquire: pairs with the store in tell(): the bell has rung */
    atomic_exchange_explicit(&cuda->news, false, memory_order_acquire);
    if (cuda->bell >= 0 && read(cuda->bell, &rings, sizeof rings) < 0) rings = 0; /* that was read with the last */
    for (ipc_opened **at = &cuda->under_way, *opened; (opened = *at) != NULL;) {
        if (!atomic_load_explicit(&opened->done, memory_order_acquire)) { /* acquire: pairs with the store in tell() */
            at = &opened->next;
            continue;
        }
        *at = opened->next;
        if (opened->endpoint) opened->endpoint->aside--;
        if (opened->closing)
            take_closed(opened);
        else
            take_opened(opened);
    }
}

/* ------------------------------------------------------------------ their rings */

/* Once for each peer, its rings: at once, for this passes streams that wait, and takes a millisecond. */
bool pplx_ipc_cuda_plug(ipc_endpoint *endpoint) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    if (endpoint->stream_slots) return true;
    if (!endpoint->plug) {
        ipc_plug *plug = calloc(1, sizeof *plug);
        if (!plug || cuda->api->host_register(endpoint->outbox.streams, IPC_STREAMS_NBYTES,
                                              CU_HOST_REGISTER_PORTABLE | CU_HOST_REGISTER_DEVICEMAP) != CU_OK) {
            free(plug);
            return false;
        }
        plug->cuda = cuda;
        endpoint->plug = plug;
    }
    if (cuda->api->host_device_pointer(&endpoint->stream_slots, endpoint->outbox.streams, 0) != CU_OK) {
        endpoint->stream_slots = 0;
        return false;
    }
    ipc_start_streaming(&endpoint->outbox);
    return true;
}

static void unplug(pplx_aside_call *call) {
    ipc_plug *plug = (ipc_plug *)(void *)call;
    int mode;
    pplx_outlast_gates();
    if (ipc_cuda_enter(plug->cuda, &mode) == CU_OK) {
        plug->cuda->api->host_unregister(plug->outbox.streams);
        ipc_cuda_leave(plug->cuda, mode);
    }
    pplx_gates_may_come();
    munmap(plug->outbox.head, plug->outbox.nbytes);
    free(plug);
}

void pplx_ipc_cuda_unplug(ipc_endpoint *endpoint) {
    ipc_plug *plug = endpoint->plug;
    if (!plug) return;
    plug->outbox = endpoint->outbox;
    plug->call.make = unplug;
    endpoint->plug = NULL;
    endpoint->stream_slots = 0;
    endpoint->outbox = (ipc_inbox){0};
    pplx_aside_make(&plug->cuda->patient, &plug->call);
}
