/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What NICs write into memory of GPUs, and who sees it when.
 *
 * A NIC says that a write has landed when the GPU has taken it in, and the GPU may still hold it back from its own
 * kernels. What CUDA promises (GPUDirect RDMA, "Synchronization and Memory Ordering"; Driver API):
 *
 *   - Work that the program submits, or waits for, after the NIC said so sees it. So whoever awaits a counter, or a
 *     READ, and launches a kernel then needs nothing more; neither does a copy of the ipc provider's.
 *   - Work that was submitted before that, behind a gate for example, or runs already, doesn't have to. That is what
 *     is dealt with here: before a gate lets a stream go.
 *   - Except where the device orders it: for its own work (OWNER), or for that of other devices, too (ALL_DEVICES).
 *   - A wait of a stream with CU_STREAM_WAIT_VALUE_FLUSH (where the device has it) flushes what has reached that
 *     stream's device before the wait ended, for the work behind it: the gate does so by itself then, cuda_stream.c.
 *   - cuFlushGPUDirectRDMAWrites() (where the device has it) flushes what was written there, for the owner or for
 *     all devices, and blocks until that is done. The proxy calls it before it opens a gate; once for all that one
 *     poll has brought, and not at all as long as no gate opens. Of kernels that run meanwhile the manual says nothing.
 *   - Where there is none of these NICs don't get the memory: pplx_gpus_add() refuses it.
 *
 * So a stream of the device that owns the memory needs OWNER, one of another device ALL_DEVICES. Both by the primary
 * context of the owner, which is kept until the engine closes.
 *
 * A GPU is added by whoever registers the first memory of it, before the NIC is given that, and stays; what it is, is
 * constant from then on. On verbs that is the holder, on EFA the thread of register.c, beside the holder's gates. They
 * need not know of it at once: nobody has a key of that memory, nor may post with it, before the holder has settled the
 * registration, and that it does after the thread has handed it in through the ring. So a gate that does not see the GPU
 * yet waits for nothing there; one that does finds it with nothing to flush (`seen`), and `landed` stays the holder's. */
#include "cuda_driver.h"
#include "internal.h"

/* Under the lock. */
static pplx_status add(pplx_engine *engine, const pplx_libcuda *cuda, int32_t ordinal, pplx_error *error) {
    const uint32_t count = atomic_load_explicit(&engine->ngpus, memory_order_relaxed); /* relaxed: the lock orders it */
    cuda_rdma rdma;
    cu_device device;
    cu_context context;
    for (uint32_t i = 0; i < count; i++)
        if (engine->gpus[i].told.ordinal == ordinal) return PPLX_OK;
    if (count == PPLX_MAX_GPUS)
        return pplx_fail(error, PPLX_REGISTRATION, 0, "NICs write into memory of %d GPUs at most", PPLX_MAX_GPUS);
    cu_result result = cuda->device_get(&device, ordinal);
    if (result == CU_OK) result = pplx_cuda_rdma(cuda, device, &rdma);
    if (result == CU_OK && rdma.ordered < CU_RDMA_OWNER && !rdma.by_wait && !rdma.by_call)
        return pplx_fail(error, PPLX_REGISTRATION, 0,
                         "GPU %d does not order what a NIC writes into its memory, and has no way to flush it: streams "
                         "that wait in a gate would see what was there before",
                         ordinal);
    if (result == CU_OK) result = cuda->primary_retain(&context, device);
    if (result != CU_OK)
        return pplx_fail(error, PPLX_REGISTRATION, result, "GPU %d: %s", ordinal, pplx_cuda_error(cuda, result));
    engine->gpus[count] = (pplx_gpu){
        .told = {.ordinal = ordinal,
                 .ordered = (uint32_t)rdma.ordered,
                 .by_wait = rdma.by_wait,
                 .by_call = rdma.by_call},
        .driver = cuda,
        .context = context,
        .device = device,
        .seen = (uint32_t)rdma.ordered,
    };
    atomic_store_explicit(&engine->ngpus, count + 1, memory_order_release); /* release: pairs with those that read */
    return PPLX_OK;
}

pplx_status pplx_gpus_add(pplx_engine *engine, const pplx_memory *memory, pplx_error *error) {
    const pplx_libcuda *cuda;
    cuda_range range;
    if (pplx_cuda_load(engine->libcuda, &cuda, error) != PPLX_OK) return error->status = PPLX_REGISTRATION;
    const cu_result result = pplx_cuda_look_up(cuda, memory->address, &range);
    if (result != CU_OK || range.type != CU_MEMORY_DEVICE) return PPLX_OK; /* the provider says what it is */
    pthread_mutex_lock(&engine->gpus_lock);
    const pplx_status status = add(engine, cuda, range.ordinal, error);
    pthread_mutex_unlock(&engine->gpus_lock);
    return status;
}

static cu_result flush(const pplx_gpu *gpu, uint32_t scope) {
    const pplx_libcuda *cuda = gpu->driver;
    int mode;
    if (!gpu->told.by_call) return CU_ERROR_NOT_SUPPORTED;
    cu_result result = pplx_cuda_enter(cuda, gpu->context, &mode);
    if (result != CU_OK) return result;
    result = cuda->flush_rdma(CU_RDMA_CURRENT_CONTEXT, (int)scope);
    pplx_cuda_leave(cuda, mode);
    return result;
}

int32_t pplx_gpus_flush(pplx_engine *engine, uint32_t gpu) {
    /* acquire: pairs with add() */
    const uint32_t count = atomic_load_explicit(&engine->ngpus, memory_order_acquire);
    const int32_t device = (int32_t)gpu - 1;
    if (gpu == 0) return CU_OK; /* functions of the host's: CUDA's calls in them see it */
    for (uint32_t i = 0; i < count; i++) {
        pplx_gpu *owner = &engine->gpus[i];
        const uint32_t scope = owner->device == device ? CU_RDMA_OWNER : CU_RDMA_ALL_DEVICES;
        if (engine->landed) owner->seen = owner->told.ordered;
        if (owner->seen >= scope || (owner->device == device && owner->told.by_wait)) continue;
        const cu_result result = flush(owner, scope);
        if (result != CU_OK) return result;
        owner->seen = scope;
    }
    engine->landed = false;
    return CU_OK;
}

void pplx_gpus_close(pplx_engine *engine) {
    const uint32_t count = atomic_load_explicit(&engine->ngpus,
                                                memory_order_relaxed); /* relaxed: nobody adds any more */
    for (uint32_t i = 0; i < count; i++) engine->gpus[i].driver->primary_release(engine->gpus[i].device);
}

size_t pplx_engine_gpus(const pplx_engine *engine, pplx_gpu_told *told, size_t capacity) {
    /* acquire: pairs with add(); those below do not change any more */
    const uint32_t count = atomic_load_explicit(&engine->ngpus, memory_order_acquire);
    for (uint32_t i = 0; i < count && i < capacity; i++) told[i] = engine->gpus[i].told;
    return count;
}
