/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs between processes of this host: over NVLink or PCIe, without a byte through the host.
 *
 * Whose work it is. Each engine that registers memory of a GPU opens that of its peers (CUDA IPC) and copies, by
 * streams of its own that wait for nobody and that no program knows. A peer without such memory has us copy, a
 * piece at a time through the staging area: ipc_serve.c.
 *
 * A write from GPU to GPU is three things on one stream: the copy; then, if there is an immediate, a store of it
 * into a slot in the peer's inbox, which the GPU reaches like any pinned memory; then a store into a word of ours.
 * So no code of the host's runs between data and immediate, and the peer's thread sees the slot turn as it would
 * see any other. (cuStreamWriteValue64 comes after what the stream did before, for every reader:
 * CUDA Driver API, "Stream Memory Operations".) Our own word tells that a record has ended; while a stream works nobody
 * here sleeps.
 *
 * Batches. A store keeps a stream from copying for 1.4 us, a copy of 1 MiB takes 2.7, and to begin one costs 2 to 5 (two
 * H200s). So what is begun together has its copies before two stores: of the first immediate, behind which the others
 * lie already, and of our word. Many small ones are copied by one kernel, others by one call. While the streams have
 * enough to do what comes is left in the queue, and makes the next batch.
 *
 * Between GPU and host, and where a peer's memory can't be opened, the thread has a part in it: ipc_cuda_host.c.
 *
 * Letting go. Who is asked for it begins nothing more there, and confirms when its streams have done what they had
 * for that peer: they wait for nothing, so this ends, unless the GPU is lost. Then it doesn't confirm, and the owner's
 * memory stays unreleased: memory of a GPU can't be moved. When a process ends, its driver's file is closed, with what
 * its streams do, before its pidfd tells; its socket may tell before, so that alone isn't believed.
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
 * can't be had, for want of open files, say, the owner copies.
 *
 * Threads. The thread that calls the domain, and those two, which touch an ipc_opened from when it is given until `done`
 * is set, an ipc_plug from when the endpoint has left it, and of ipc_cuda what its comments say. Each call makes the
 * context current and then that of before again. */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "aside.h"
#include "cuda_copy.h"
#include "gates_held.h"
#include "ipc_internal.h"

enum {
    BATCH = CUDA_PIECES, /* records begun together */
    BATCH_NBYTES = 8 << 20, /* and no more than so much, or one record */
    MOST_BEGUN = 2,     /* batches on a stream */
    FEW = 4,            /* from so many on by one kernel, if each is */
    SMALL = 256 << 10,  /* no larger than this */
    KERNEL_BLOCK = 16 << 10, /* bytes of a block of it */
    LARGE = 1 << 20,    /* bytes from which on a record doesn't keep the small ones waiting: it has other streams */
    ASK_NS = 10000000   /* between questions to the driver if a stream still works */
};

struct ipc_cuda {
    const pplx_libcuda *api;
    cu_device device;
    int ordinal;
    cu_context context;
    cu_stream streams[IPC_STREAMS];
    cu_module module;          /* the patient thread's, like the next calls */
    pplx_aside_call load, shut;
    _Atomic(cu_function) kernel; /* the patient thread's; NULL: not there yet, or this GPU's driver doesn't take it */
    pplx_aside aside;          /* what passes streams in gates */
    pplx_aside patient;        /* what waits for them */
    cuda_shared *allocations; /* of ours: struct ipc_allocation */
    ipc_opened *under_way; /* opened or closed by it */
    atomic_bool news;      /* the other threads: one of them is done; after that they ring */
    int bell;              /* an eventfd in the domain's epoll set; -1: there is none, and we don't sleep */
    ipc_watch watch;
    _Atomic uint64_t *done;    /* a pinned page: how far each stream has come */
    cu_pointer done_at;        /* as the GPU sees it */
    uint64_t begun[IPC_STREAMS];
    ipc_list working[IPC_STREAMS]; /* oldest first */
    uint32_t records;          /* on them */
    uint64_t asked_ns;
    cu_result lost; /* the driver has given the context up */
    bool stuck;     /* somebody has waited for it in vain: the next one doesn't */
    ipc_hops *hops;
    /* The batch that is gathered. */
    int stream;
    uint32_t count;
    uint32_t slots;
    uint64_t nbytes;
    bool apart; /* some of it can be copied alone only */
    struct {
        ipc_record *record;
        cu_pointer remote;
    } batch[BATCH];
};

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

static cu_result enter(const ipc_cuda *cuda, int *mode) { return pplx_cuda_enter(cuda->api, cuda->context, mode); }

static void leave(const ipc_cuda *cuda, int mode) { pplx_cuda_leave(cuda->api, mode); }

static size_t page_nbytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static void close_opened(const ipc_cuda *cuda, const ipc_opened *opened) {
    if (opened->chunks.count)
        pplx_cuda_chunks_unmap(cuda->api, &opened->chunks);
    else
        cuda->api->ipc_close(opened->allocation);
}

/* ------------------------------------------------------------------ opening */

static cu_result open_streams(ipc_cuda *cuda) {
    const pplx_libcuda *api = cuda->api;
    cu_result result = CU_OK;
    for (int i = 0; result == CU_OK && i < IPC_STREAMS; i++) result = pplx_cuda_stream(api, &cuda->streams[i]);
    if (result == CU_OK)
        result = api->host_register(cuda->done, page_nbytes(), CU_HOST_REGISTER_PORTABLE | CU_HOST_REGISTER_DEVICEMAP);
    return result == CU_OK ? api->host_device_pointer(&cuda->done_at, cuda->done, 0) : result;
}

static void load_kernel(pplx_aside_call *call) {
    ipc_cuda *cuda = (ipc_cuda *)(void *)((char *)call - offsetof(ipc_cuda, load));
    const pplx_libcuda *api = cuda->api;
    cu_function kernel = NULL;
    int mode;
    pplx_outlast_gates();
    if (enter(cuda, &mode) != CU_OK) return;
    if (api->module_load(&cuda->module, pplx_cuda_copy_ptx) != CU_OK)
        cuda->module = NULL;
    else if (api->module_function(&kernel, cuda->module, pplx_cuda_copy_name) == CU_OK)
        atomic_store_explicit(&cuda->kernel, kernel, memory_order_release); /* release: pairs with copy_together()'s */
    leave(cuda, mode);
}

static void close_streams(ipc_cuda *cuda) {
    if (cuda->done_at) cuda->api->host_unregister(cuda->done);
    for (int i = 0; i < IPC_STREAMS; i++)
        if (cuda->streams[i]) cuda->api->stream_destroy(cuda->streams[i]);
    if (cuda->module) cuda->api->module_unload(cuda->module);
}

/* The last of the calls: what of the end is the driver's. */
static void shut(pplx_aside_call *call) {
    ipc_cuda *cuda = (ipc_cuda *)(void *)((char *)call - offsetof(ipc_cuda, shut));
    int mode;
    pplx_outlast_gates();
    const bool entered = cuda->context && enter(cuda, &mode) == CU_OK;
    for (const ipc_opened *opened = cuda->under_way; entered && opened; opened = opened->next)
        if (opened->allocation && !opened->closing) close_opened(cuda, opened);
    if (entered) close_streams(cuda);
    pplx_ipc_hops_close(cuda->hops, entered);
    if (entered) leave(cuda, mode);
    if (cuda->context) cuda->api->primary_release(cuda->device);
}

static void take_bell_down(ipc_cuda *cuda) {
    if (cuda->bell >= 0) close(cuda->bell);
    cuda->bell = -1;
}

static void free_cuda(void *handle) {
    ipc_cuda *cuda = handle;
    for (ipc_opened *opened = cuda->under_way, *next; opened; opened = next) {
        next = opened->next;
        free(opened);
    }
    for (cuda_shared *shared = cuda->allocations, *next; shared; shared = next) { /* of regions that were never free */
        next = shared->next;
        free(shared);
    }
    if (cuda->done) munmap(cuda->done, page_nbytes());
    take_bell_down(cuda);
    free(cuda);
}

/* Nothing is being opened any more. */
static void end_patiently(void *handle) {
    ipc_cuda *cuda = handle;
    cuda->shut.make = shut;
    pplx_aside_make(&cuda->patient, &cuda->shut);
    if (pplx_aside_end(&cuda->patient)) free_cuda(cuda);
}

/* As a rule all is free when this returns. Where the driver has us wait it is so later, by the threads beside; the
 * process may end before, and none that is forked has them. */
void pplx_ipc_cuda_close(ipc_domain *domain) {
    ipc_cuda *cuda = domain->cuda;
    domain->cuda = NULL;
    domain->hops = NULL;
    if (!cuda) return;
    if (!cuda->under_way) take_bell_down(cuda); /* nobody rings any more */
    if (pplx_aside_end(&cuda->aside)) end_patiently(cuda);
}

static void hang_bell(ipc_domain *domain, ipc_cuda *cuda) {
    cuda->watch = (ipc_watch){IPC_WATCH_CUDA, domain};
    cuda->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (cuda->bell < 0 || pplx_ipc_watch_fd(domain, cuda->bell, &cuda->watch)) return;
    close(cuda->bell);
    cuda->bell = -1;
}

/* On the GPU of the first region. Its streams copy for all others as well: addresses are unified. */
static pplx_status open_cuda(ipc_domain *domain, const pplx_libcuda *api, int ordinal, pplx_error *error) {
    ipc_cuda *cuda = calloc(1, sizeof *cuda);
    if (!cuda) return ipc_fail(error, PPLX_NO_MEMORY, 0, "no memory for the streams of a GPU");
    void *page = mmap(NULL, page_nbytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int has_words = 0, mode;
    domain->cuda = cuda;
    cuda->api = api;
    cuda->ordinal = ordinal;
    cuda->done = page == MAP_FAILED ? NULL : page;
    pplx_aside_init(&cuda->aside, "pplx-cuda", end_patiently, cuda);
    pplx_aside_init(&cuda->patient, "pplx-cuda-end", free_cuda, cuda);
    hang_bell(domain, cuda);
    cu_result result = api->device_get(&cuda->device, ordinal);
    if (result == CU_OK) result = api->device_attribute(&has_words, CU_CAN_USE_64_BIT_STREAM_MEM_OPS, cuda->device);
    if (result == CU_OK && has_words) result = api->primary_retain(&cuda->context, cuda->device);
    if (result == CU_OK && cuda->context && cuda->done && (result = enter(cuda, &mode)) == CU_OK) {
        result = open_streams(cuda);
        leave(cuda, mode);
        domain->hops = cuda->hops = pplx_ipc_hops_open(domain, &cuda->aside, api, cuda->context);
        if (result == CU_OK && cuda->hops) {
            cuda->load.make = load_kernel;
            pplx_aside_make(&cuda->patient, &cuda->load);
            for (ipc_endpoint *endpoint = domain->endpoints; endpoint; endpoint = endpoint->next)
                pplx_ipc_keys_ask_again(endpoint);
            return PPLX_OK;
        }
    }
    pplx_ipc_cuda_close(domain);
    if (!has_words && result == CU_OK)
        return ipc_fail(error, PPLX_REGISTRATION, 0, "GPU %d has no stream memory operations of 64 bit", ordinal);
    return ipc_fail(error, PPLX_NATIVE, result, "GPU %d gives no streams to copy with: %s", ordinal,
                    pplx_cuda_error(api, result));
}

/* An allocation of ours, as peers open it. */
struct ipc_allocation {
    cuda_shared shared;
    ipc_device_memory told;
    cuda_chunks chunks; /* count 0: CUDA IPC opens it */
};

const char *pplx_ipc_libcuda(const ipc_domain *domain) {
    return domain->options.libcuda[0] ? domain->options.libcuda : NULL;
}

/* One handle of each allocation, however many regions lie in it. */
static pplx_status share(ipc_cuda *cuda, ipc_region *region, const cuda_range *range, pplx_error *error) {
    cu_ipc_handle handle;
    int mode;
    region->allocation = (ipc_allocation *)(void *)cuda_shared_take(cuda->allocations, range);
    if (region->allocation) return PPLX_OK;
    ipc_allocation *allocation = calloc(1, sizeof *allocation);
    if (!allocation) return ipc_fail(error, PPLX_NO_MEMORY, 0, "no memory for an allocation of a GPU");
    cu_result result = enter(cuda, &mode);
    if (result == CU_OK) {
        result = cuda->api->ipc_get(&handle, range->start);
        leave(cuda, mode);
    }
    if (result != CU_OK) {
        free(allocation);
        return ipc_fail(error, PPLX_NATIVE, result, "no handle of the memory for other processes: %s",
                        pplx_cuda_error(cuda->api, result));
    }
    memcpy(allocation->told.handle, handle.bytes, sizeof handle.bytes);
    allocation->told.address = range->start;
    allocation->told.nbytes = range->nbytes;
    cuda_shared_add(&cuda->allocations, &allocation->shared, range);
    region->allocation = allocation;
    return PPLX_OK;
}

/* Each region for itself: a peer maps those chunks that it lies in. */
static pplx_status share_chunks(ipc_cuda *cuda, ipc_region *region, const cuda_range *range, const cuda_chunks *chunks,
                                pplx_error *error) {
    if (!region->near)
        return ipc_fail(error, PPLX_REGISTRATION, 0,
                        "a virtual mapping of memory that does not all lie on GPU %d, where the engine works, as its "
                        "first region does: take an engine for each GPU, or memory of cudaMalloc",
                        cuda->ordinal);
    ipc_allocation *allocation = calloc(1, sizeof *allocation);
    if (!allocation) return ipc_fail(error, PPLX_NO_MEMORY, 0, "no memory for an allocation of a GPU");
    allocation->chunks = *chunks;
    allocation->told.address = chunks->start;
    allocation->told.nbytes = chunks->count * chunks->nbytes;
    cuda_shared_add(&cuda->allocations, &allocation->shared, range);
    region->allocation = allocation;
    return PPLX_OK;
}

/* A region of a GPU's memory is about to be made. */
pplx_status pplx_ipc_cuda_region(ipc_region *region, const pplx_memory *memory, pplx_error *error) {
    ipc_domain *domain = region->domain;
    const pplx_libcuda *api;
    cuda_range range;
    cuda_chunks chunks = {0};
    pplx_status status = pplx_cuda_load(pplx_ipc_libcuda(domain), &api, error);
    if (status != PPLX_OK) return error->status = PPLX_REGISTRATION;
    cu_result result = pplx_cuda_look_up(api, memory->address, &range);
    if (result != CU_OK || range.type != CU_MEMORY_DEVICE || range.managed ||
        !cuda_holds(&range, memory->address, memory->nbytes))
        return ipc_fail(error, PPLX_INVALID, result, "%#llx, %llu bytes: no memory of one allocation on a GPU",
                        (unsigned long long)memory->address, (unsigned long long)memory->nbytes);
    if (!range.shareable && region->access) {
        const char *reason = pplx_cuda_chunks_find(api, memory->address, memory->nbytes, &chunks);
        if (reason) return ipc_fail(error, PPLX_REGISTRATION, 0, "other processes can't open this memory: %s", reason);
    }
    if (!domain->cuda) status = open_cuda(domain, api, range.ordinal, error);
    if (status != PPLX_OK) return status;
    region->device = region->ordinary = true;
    region->near = range.ordinal == domain->cuda->ordinal &&
                   (range.shareable || pplx_cuda_lies_on(api, range.ordinal, memory->address, memory->nbytes));
    if (chunks.count) return share_chunks(domain->cuda, region, &range, &chunks, error);
    return region->access ? share(domain->cuda, region, &range, error) : PPLX_OK;
}

void pplx_ipc_cuda_unshare(ipc_region *region) {
    if (region->allocation && cuda_shared_give(&region->domain->cuda->allocations, &region->allocation->shared))
        free(region->allocation);
}

bool pplx_ipc_cuda_tell(const ipc_region *region, ipc_note *note, ipc_fds *fds) {
    const ipc_cuda *cuda = region->domain->cuda;
    const ipc_allocation *allocation = region->allocation;
    const uint32_t chunks = allocation->chunks.count;
    int mode;
    if (chunks) {
        if (enter(cuda, &mode) != CU_OK) return false;
        if (pplx_cuda_chunks_export(cuda->api, &allocation->chunks, fds->of)) fds->count = chunks;
        leave(cuda, mode);
        if (fds->count == 0) return false;
    }
    note->extent = chunks ? IPC_CHUNKED : IPC_DEVICE;
    note->chunks = chunks;
    note->device = allocation->told;
    note->offset = region->address - allocation->told.address;
    return true;
}

/* ------------------------------------------------------------------ peers' memory */

/* The other thread's last touch. What has rung is found, and what is news has rung: see pplx_ipc_cuda_hear(). */
static void tell(ipc_opened *opened) {
    ipc_cuda *cuda = opened->cuda;
    const uint64_t one = 1;
    atomic_store_explicit(&opened->done, true, memory_order_release); /* release: pairs with the load in hear() */
    const bool rung = cuda->bell >= 0 && write(cuda->bell, &one, sizeof one) == sizeof one;
    (void)rung; /* it can't fail: nobody rings that often */
    atomic_store_explicit(&cuda->news, true, memory_order_release); /* release: pairs with the exchange there */
}

static void open_allocation(pplx_aside_call *call) {
    ipc_opened *opened = (ipc_opened *)(void *)call;
    const ipc_cuda *cuda = opened->cuda;
    cuda_range range;
    int mode;
    opened->fits = true;
    if (enter(cuda, &mode) == CU_OK) {
        if (opened->chunks.count)
            opened->allocation = pplx_cuda_chunks_map(cuda->api, cuda->device, opened->fds, &opened->chunks)
                                     ? opened->chunks.start
                                     : 0;
        else if (cuda->api->ipc_open(&opened->allocation, opened->handle, CU_IPC_LAZY_ENABLE_PEER_ACCESS) == CU_OK)
            opened->fits = pplx_cuda_look_up(cuda->api, opened->allocation, &range) == CU_OK &&
                           cuda_holds(&range, opened->allocation + opened->offset, opened->nbytes);
        else
            opened->allocation = 0;
        leave(cuda, mode);
    }
    for (uint32_t i = 0; i < opened->chunks.count; i++) close(opened->fds[i]);
    tell(opened);
}

static void close_allocation(pplx_aside_call *call) {
    ipc_opened *opened = (ipc_opened *)(void *)call;
    int mode;
    pplx_outlast_gates();
    if (enter(opened->cuda, &mode) == CU_OK) {
        close_opened(opened->cuda, opened);
        leave(opened->cuda, mode);
    }
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
            key->near = range.ordinal == cuda->ordinal;
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

/* ------------------------------------------------------------------ batches */

/* Once for each peer, its rings: at once, for this passes streams that wait, and takes a millisecond. */
static bool plug(ipc_endpoint *endpoint) {
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
    if (enter(plug->cuda, &mode) == CU_OK) {
        plug->cuda->api->host_unregister(plug->outbox.streams);
        leave(plug->cuda, mode);
    }
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

/* Two for what is small, two for what is large: one stores while the other one copies. -1: both have enough to do. */
static int pick_stream(const ipc_cuda *cuda, uint64_t nbytes) {
    const int first = nbytes < LARGE ? 0 : IPC_STREAMS / 2, second = first + 1;
    const int stream = on_stream(cuda, second) < on_stream(cuda, first) ? second : first;
    return on_stream(cuda, stream) < MOST_BEGUN || nbytes >= BATCH_NBYTES ? stream : -1;
}

static bool joins(const ipc_cuda *cuda, uint64_t nbytes) {
    const bool large = cuda->stream >= IPC_STREAMS / 2;
    return cuda->count < BATCH && large == (nbytes >= LARGE) && cuda->nbytes + nbytes <= BATCH_NBYTES;
}

/* Whether what was posted begins at once: the streams have nothing to do, or it is a batch. Else poll() begins it, with
 * what is posted until then. */
bool pplx_ipc_cuda_begins(const ipc_endpoint *endpoint) {
    return endpoint->domain->cuda->records == 0 || endpoint->unbegun >= BATCH ||
           endpoint->unbegun_nbytes >= BATCH_NBYTES;
}

enum ipc_blocked pplx_ipc_cuda_gather(ipc_endpoint *endpoint, ipc_record *record, const ipc_key *key) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    const ipc_region *local = (const ipc_region *)(const void *)record->request.local_mr;
    const uint64_t nbytes = record->request.nbytes;
    if (cuda->count && !joins(cuda, nbytes)) pplx_ipc_cuda_start(endpoint);
    if (cuda->count == 0) cuda->stream = pick_stream(cuda, nbytes);
    if (cuda->stream < 0) return IPC_NEEDS_GPU;
    if (record->request.opcode == PPLX_WRITE_IMM) {
        if (!has_room(endpoint, cuda->stream, cuda->slots)) return IPC_NEEDS_SLOT;
        cuda->slots++;
    }
    cuda->apart |= !local->near || !key->near;
    cuda->nbytes += nbytes;
    cuda->batch[cuda->count].record = record;
    cuda->batch[cuda->count++].remote = key->device + record->request.remote_address;
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

static cuda_piece piece_of(const ipc_cuda *cuda, uint32_t i) {
    const pplx_work_request *request = &cuda->batch[i].record->request;
    const bool read = request->opcode == PPLX_READ;
    const cu_pointer remote = cuda->batch[i].remote, local = request->local_address;
    return (cuda_piece){.to = read ? local : remote, .from = read ? remote : local, .nbytes = request->nbytes};
}

/* The whole batch by one kernel. False: it isn't worth it, or the driver says no. */
static bool copy_by_kernel(ipc_cuda *cuda) {
    cuda_pieces pieces;
    uint64_t longest = 0;
    /* acquire: pairs with the store in load_kernel() */
    cu_function kernel = atomic_load_explicit(&cuda->kernel, memory_order_acquire);
    if (!kernel || cuda->count < FEW) return false;
    for (uint32_t i = 0; i < cuda->count; i++) {
        pieces.of[i] = piece_of(cuda, i);
        if (pieces.of[i].nbytes > longest) longest = pieces.of[i].nbytes;
    }
    if (longest > SMALL) return false;
    void *arguments[] = {&pieces};
    return cuda->api->launch(kernel, (unsigned)(longest / KERNEL_BLOCK + 1), cuda->count, 1, CUDA_PIECE_THREADS, 1, 1,
                             0, cuda->streams[cuda->stream], arguments, NULL) == CU_OK;
}

/* By one call. False: the driver has none, or says no. */
static bool copy_by_call(const ipc_cuda *cuda) {
    cu_pointer to[BATCH], from[BATCH];
    size_t nbytes[BATCH], first = 0;
    cu_copy_attributes attributes = {.order = CU_COPY_IN_STREAM_ORDER};
    if (!cuda->api->copy_batch || cuda->count == 1) return false;
    for (uint32_t i = 0; i < cuda->count; i++) {
        const cuda_piece piece = piece_of(cuda, i);
        to[i] = piece.to;
        from[i] = piece.from;
        nbytes[i] = piece.nbytes;
    }
    return cuda->api->copy_batch(to, from, nbytes, cuda->count, &attributes, &first, 1, cuda->streams[cuda->stream]) ==
           CU_OK;
}

/* Not if some of it is another GPU's memory, and not opened as a peer's: the copy engines reach that, one copy at a
 * time, but a kernel would end with a fault, which takes the program's own context along. */
static bool copy_together(ipc_cuda *cuda) { return !cuda->apart && (copy_by_kernel(cuda) || copy_by_call(cuda)); }

/* Copies, then immediates, then our word: what the driver refuses of the copies ends at once. */
void pplx_ipc_cuda_start(ipc_endpoint *endpoint) {
    ipc_cuda *cuda = endpoint->domain->cuda;
    if (!cuda || cuda->count == 0) return;
    const int stream = cuda->stream;
    const pplx_libcuda *api = cuda->api;
    cu_memory_op ops[2];
    uint32_t nops = 0;
    int mode;
    const cu_result entered = enter(cuda, &mode);
    const bool ready = entered == CU_OK && plug(endpoint);
    const bool copied = ready && !cuda->lost && copy_together(cuda);
    for (uint32_t i = 0; i < cuda->count; i++) {
        ipc_record *record = cuda->batch[i].record;
        const pplx_work_request *request = &record->request;
        const cuda_piece piece = piece_of(cuda, i);
        record->native = entered == CU_OK ? cuda->lost : entered;
        if (ready && !copied && !cuda->lost)
            record->native = api->copy(piece.to, piece.from, piece.nbytes, cuda->streams[stream]);
        if (!ready || record->native != CU_OK) {
            pplx_ipc_finish(NULL, record, PPLX_LOCAL_ACCESS);
            continue;
        }
        if (request->opcode == PPLX_WRITE_IMM && nops == 0)
            ops[nops++] = store_immediate(endpoint, stream, request->imm);
        else if (request->opcode == PPLX_WRITE_IMM)
            put_immediate(endpoint, stream, request->imm);
        record->turn = cuda->begun[stream] + 1;
        ipc_list_append(&cuda->working[stream], record);
        endpoint->streaming++;
        cuda->records++;
    }
    cuda->count = cuda->slots = 0;
    cuda->nbytes = 0;
    cuda->apart = false;
    if (cuda->working[stream].tail && cuda->working[stream].tail->turn > cuda->begun[stream]) {
        ops[nops++] = store(cuda->done_at + (uint64_t)stream * sizeof(uint64_t), ++cuda->begun[stream]);
        const cu_result result = api->stream_batch(cuda->streams[stream], nops, ops, 0);
        if (result != CU_OK) cuda->lost = result; /* what is copied is never told */
    }
    if (entered == CU_OK) leave(cuda, mode);
}

/* ------------------------------------------------------------------ the end of them */

bool pplx_ipc_cuda_busy(const ipc_domain *domain) {
    const ipc_cuda *cuda = domain->cuda;
    return cuda && (cuda->records || pplx_ipc_hops_busy(cuda->hops) || (cuda->under_way && cuda->bell < 0));
}

static void end_record(ipc_cuda *cuda, int stream, pplx_status status, int32_t native) {
    ipc_record *record = cuda->working[stream].head;
    ipc_endpoint *endpoint = record->endpoint;
    ipc_list_remove(&cuda->working[stream], record);
    cuda->records--;
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
    const cu_result entered = enter(cuda, &mode); /* if there is no context any more, the streams are gone with it */
    for (int i = 0; i < IPC_STREAMS; i++) {
        if (!cuda->working[i].head) continue;
        const cu_result result = entered == CU_OK ? cuda->api->stream_query(cuda->streams[i]) : entered;
        if (result == CU_ERROR_NOT_READY) continue;
        if (result != CU_OK) cuda->lost = result;
        while (cuda->lost && cuda->working[i].head) end_record(cuda, i, PPLX_LOCAL_ACCESS, cuda->lost);
    }
    if (entered == CU_OK) leave(cuda, mode);
}

void pplx_ipc_cuda_finish(ipc_domain *domain) {
    ipc_cuda *cuda = domain->cuda;
    pplx_ipc_cuda_hear(domain);
    if (!cuda) return;
    pplx_ipc_hops_finish(cuda->hops);
    if (cuda->records == 0) return;
    for (int i = 0; i < IPC_STREAMS; i++) {
        /* acquire: pairs with the store of the stream, after what it has copied to us */
        const uint64_t done = atomic_load_explicit(&cuda->done[i], memory_order_acquire);
        while (cuda->working[i].head && cuda->working[i].head->turn <= done) end_record(cuda, i, PPLX_OK, 0);
    }
    if (cuda->records) ask(cuda);
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
