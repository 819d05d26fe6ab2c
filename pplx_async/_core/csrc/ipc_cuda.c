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
 * Between GPU and host, and where a peer's memory can't be opened, the thread has a part in it: ipc_cuda_host.c.
 *
 * Letting go. Who is asked for it begins nothing more there, and confirms when its streams have done what they had
 * for that peer: they wait for nothing, so this ends, unless the GPU is lost. Then it doesn't confirm, and the owner's
 * memory stays unreleased: memory of a GPU can't be moved. When a process ends, its driver's file is closed, with what
 * its streams do, before its pidfd tells; its socket may tell before, so that alone isn't believed. */
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gates_held.h"
#include "ipc_cuda.h"

static size_t page_nbytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }

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
    if (ipc_cuda_enter(cuda, &mode) != CU_OK) return;
    pplx_outlast_gates();
    if (api->module_load(&cuda->module, pplx_cuda_copy_ptx) != CU_OK) cuda->module = NULL;
    pplx_gates_may_come();
    if (cuda->module && api->module_function(&kernel, cuda->module, pplx_cuda_copy_name) == CU_OK)
        atomic_store_explicit(&cuda->kernel, kernel, memory_order_release); /* release: pairs with copy_together()'s */
    ipc_cuda_leave(cuda, mode);
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
    const bool entered = cuda->context && ipc_cuda_enter(cuda, &mode) == CU_OK;
    if (entered) pplx_ipc_cuda_close_opened(cuda);
    if (entered) close_streams(cuda);
    pplx_ipc_hops_close(cuda->hops, entered);
    if (entered) ipc_cuda_leave(cuda, mode);
    if (cuda->context) cuda->api->primary_release(cuda->device);
    pplx_gates_may_come();
}

static void take_bell_down(ipc_cuda *cuda) {
    if (cuda->bell >= 0) close(cuda->bell);
    cuda->bell = -1;
}

static void free_cuda(void *handle) {
    ipc_cuda *cuda = handle;
    pplx_ipc_cuda_free_opened(cuda);
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
    /* Nobody rings any more; else who frees it takes it down. Acquire: pairs with the last touch of tell(). */
    if (!cuda->under_way && atomic_load_explicit(&cuda->telling, memory_order_acquire) == 0) take_bell_down(cuda);
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
    if (result == CU_OK && cuda->context && cuda->done && (result = ipc_cuda_enter(cuda, &mode)) == CU_OK) {
        result = open_streams(cuda);
        ipc_cuda_leave(cuda, mode);
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
    cu_result result = ipc_cuda_enter(cuda, &mode);
    if (result == CU_OK) {
        result = cuda->api->ipc_get(&handle, range->start);
        ipc_cuda_leave(cuda, mode);
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
    region->near = ipc_cuda_is_near(domain->cuda, &range) &&
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
        if (ipc_cuda_enter(cuda, &mode) != CU_OK) return false;
        if (pplx_cuda_chunks_export(cuda->api, &allocation->chunks, fds->of)) fds->count = chunks;
        ipc_cuda_leave(cuda, mode);
        if (fds->count == 0) return false;
    }
    note->extent = chunks ? IPC_CHUNKED : IPC_DEVICE;
    note->chunks = chunks;
    note->device = allocation->told;
    note->offset = region->address - allocation->told.address;
    return true;
}
