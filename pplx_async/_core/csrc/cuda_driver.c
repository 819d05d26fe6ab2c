/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cuda_driver.h"

#include <glob.h>
#include <stdio.h>
#include <unistd.h>

/* Names with a suffix are what cuda.h makes of the plain ones: the interface since CUDA 12. */
#define SYMBOL(field, symbol) {"cu" symbol, NULL, true, offsetof(pplx_libcuda, field)}
static const pplx_symbol symbols[] = {
    SYMBOL(init, "Init"),
    SYMBOL(error_name, "GetErrorName"),
    SYMBOL(device_count, "DeviceGetCount"),
    SYMBOL(device_get, "DeviceGet"),
    SYMBOL(device_attribute, "DeviceGetAttribute"),
    SYMBOL(primary_state, "DevicePrimaryCtxGetState"),
    SYMBOL(primary_retain, "DevicePrimaryCtxRetain"),
    SYMBOL(primary_release, "DevicePrimaryCtxRelease_v2"),
    SYMBOL(context_push, "CtxPushCurrent_v2"),
    SYMBOL(context_pop, "CtxPopCurrent_v2"),
    SYMBOL(context_device, "CtxGetDevice"),
    SYMBOL(context_id, "CtxGetId"),
    SYMBOL(pointer_attributes, "PointerGetAttributes"),
    {"cuMemGetHandleForAddressRange", NULL, false, offsetof(pplx_libcuda, range_handle)}, /* since 11.7 */
    SYMBOL(ipc_get, "IpcGetMemHandle"),
    SYMBOL(ipc_open, "IpcOpenMemHandle_v2"),
    SYMBOL(ipc_close, "IpcCloseMemHandle"),
    SYMBOL(memory_retain, "MemRetainAllocationHandle"),
    SYMBOL(memory_release, "MemRelease"),
    SYMBOL(memory_export, "MemExportToShareableHandle"),
    SYMBOL(memory_import, "MemImportFromShareableHandle"),
    SYMBOL(memory_map, "MemMap"),
    SYMBOL(memory_unmap, "MemUnmap"),
    SYMBOL(memory_access, "MemSetAccess"),
    SYMBOL(address_reserve, "MemAddressReserve"),
    SYMBOL(address_free, "MemAddressFree"),
    SYMBOL(priorities, "CtxGetStreamPriorityRange"),
    SYMBOL(stream_create, "StreamCreateWithPriority"),
    SYMBOL(stream_destroy, "StreamDestroy_v2"),
    SYMBOL(stream_query, "StreamQuery"),
    SYMBOL(stream_context, "StreamGetCtx"),
    SYMBOL(stream_id, "StreamGetId"),
    SYMBOL(stream_is_capturing, "StreamIsCapturing"),
    SYMBOL(capture_mode, "ThreadExchangeStreamCaptureMode"),
    SYMBOL(stream_batch, "StreamBatchMemOp_v2"),
    SYMBOL(stream_write, "StreamWriteValue64_v2"),
    SYMBOL(copy, "MemcpyAsync"),
    {"cuMemcpyBatchAsync_v2", NULL, false, offsetof(pplx_libcuda, copy_batch)},
    {"cuFlushGPUDirectRDMAWrites", NULL, false, offsetof(pplx_libcuda, flush_rdma)},
    SYMBOL(host_register, "MemHostRegister_v2"),
    SYMBOL(host_unregister, "MemHostUnregister"),
    SYMBOL(host_device_pointer, "MemHostGetDevicePointer_v2"),
    SYMBOL(module_load, "ModuleLoadData"),
    SYMBOL(module_function, "ModuleGetFunction"),
    SYMBOL(module_unload, "ModuleUnload"),
    SYMBOL(launch, "LaunchKernel"),
};
#undef SYMBOL

static const pplx_library library = {
    .soname = "libcuda.so.1",
    .remedy = ": it comes with NVIDIA's driver (12.0 or newer), and in a container by its runtime",
    .symbols = symbols,
    .nsymbols = sizeof symbols / sizeof symbols[0],
    .nbytes = sizeof(pplx_libcuda),
};

const char *pplx_cuda_error(const pplx_libcuda *cuda, cu_result result) {
    const char *name = NULL;
    return cuda->error_name(result, &name) == CU_OK && name ? name : "an unknown error of CUDA";
}

cu_result pplx_cuda_look_up(const pplx_libcuda *cuda, cu_pointer pointer, cuda_range *range) {
    const int attributes[] = {
        CU_POINTER_MEMORY_TYPE,    CU_POINTER_IS_MANAGED,  CU_POINTER_IS_LEGACY_CUDA_IPC_CAPABLE,
        CU_POINTER_DEVICE_ORDINAL, CU_POINTER_RANGE_START, CU_POINTER_RANGE_SIZE,
        CU_POINTER_BUFFER_ID,      CU_POINTER_CONTEXT,
    };
    void *data[] = {&range->type,  &range->managed, &range->shareable, &range->ordinal,
                    &range->start, &range->nbytes,  &range->id,        &range->context};
    *range = (cuda_range){0};
    return cuda->pointer_attributes(sizeof data / sizeof *data, attributes, data, pointer);
}

cu_result pplx_cuda_pin_pages(const pplx_libcuda *cuda, void *memory, size_t nbytes, cu_pointer *address) {
    cu_result result = cuda->host_register(memory, nbytes, CU_HOST_REGISTER_PORTABLE | CU_HOST_REGISTER_DEVICEMAP);
    const bool is_new = result == CU_OK;
    if (is_new || result == CU_ERROR_ALREADY_REGISTERED) result = cuda->host_device_pointer(address, memory, 0);
    if (is_new && result != CU_OK) cuda->host_unregister(memory);
    return result;
}

cu_result pplx_cuda_rdma(const pplx_libcuda *cuda, cu_device device, cuda_rdma *rdma) {
    int waits = 0, words = 0, options = 0;
    *rdma = (cuda_rdma){0};
    cu_result result = cuda->device_attribute(&rdma->ordered, CU_GPU_DIRECT_RDMA_WRITES_ORDERING, device);
    if (result == CU_OK) result = cuda->device_attribute(&waits, CU_CAN_FLUSH_REMOTE_WRITES, device);
    if (result == CU_OK) result = cuda->device_attribute(&words, CU_CAN_USE_64_BIT_STREAM_MEM_OPS, device);
    if (result == CU_OK) result = cuda->device_attribute(&options, CU_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS, device);
    rdma->by_wait = waits && words;
    rdma->by_call = options & CU_RDMA_FLUSH_BY_CALL && cuda->flush_rdma;
    return result;
}

/* NVIDIA's device files; and that of WSL, where there are none of those. */
static bool has_device(void) {
    glob_t found;
    const bool any = glob("/dev/nvidia[0-9]*", GLOB_NOSORT, NULL, &found) == 0;
    if (any) globfree(&found);
    return any || access("/dev/dxg", F_OK) == 0;
}

const pplx_libcuda *pplx_cuda_found(const char *path) {
    const void *functions;
    if (!path && !has_device()) return NULL;
    return pplx_library_load(&library, path, &functions, NULL, NULL) == PPLX_OK ? functions : NULL;
}

pplx_status pplx_cuda_init(const pplx_libcuda *cuda, const char *file, pplx_error *error) {
    int count = 0;
    cu_result result = cuda->init(0); /* again costs nothing */
    if (result == CU_OK) result = cuda->device_count(&count);
    if (result == CU_OK && count > 0) return PPLX_OK;
    if (error) {
        *error = (pplx_error){.status = PPLX_UNAVAILABLE, .provider_error = result};
        snprintf(error->text, sizeof error->text, "%s: %s; see what nvidia-smi says", file,
                 result == CU_OK ? "it finds no GPU" : pplx_cuda_error(cuda, result));
    }
    return PPLX_UNAVAILABLE;
}

pplx_status pplx_cuda_load(const char *path, const pplx_libcuda **out, pplx_error *error) {
    const void *functions;
    const char *file;
    pplx_status status = pplx_library_load(&library, path, &functions, &file, error);
    if (status != PPLX_OK) return status;
    *out = functions;
    return pplx_cuda_init(*out, file, error);
}

cu_result pplx_cuda_enter(const pplx_libcuda *cuda, cu_context context, int *mode) {
    cu_context own;
    cu_result result = cuda->context_push(context);
    if (result != CU_OK) return result;
    *mode = CU_CAPTURE_MODE_RELAXED;
    result = cuda->capture_mode(mode);
    if (result != CU_OK) cuda->context_pop(&own);
    return result;
}

void pplx_cuda_leave(const pplx_libcuda *cuda, int mode) {
    cu_context own;
    cuda->capture_mode(&mode);
    cuda->context_pop(&own);
}

cu_result pplx_cuda_stream(const pplx_libcuda *cuda, cu_stream *stream) {
    int least, greatest;
    const cu_result result = cuda->priorities(&least, &greatest);
    return result == CU_OK ? cuda->stream_create(stream, CU_STREAM_NON_BLOCKING, greatest) : result;
}

/* The driver takes whole pages of the host's. */
cu_result pplx_cuda_export(const pplx_libcuda *cuda, const cuda_range *range, int *fd, uint64_t *offset) {
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), start = range->start / page * page;
    const uint64_t end = (range->start + range->nbytes + page - 1) / page * page;
    cu_device device;
    cu_context context;
    int supported = 0, mode;
    if (!cuda->range_handle) return CU_ERROR_NOT_SUPPORTED;
    cu_result result = cuda->device_get(&device, range->ordinal);
    if (result == CU_OK) result = cuda->device_attribute(&supported, CU_DMA_BUF_SUPPORTED, device);
    if (result == CU_OK && !supported) result = CU_ERROR_NOT_SUPPORTED;
    if (result == CU_OK) result = cuda->primary_retain(&context, device);
    if (result != CU_OK) return result;
    result = pplx_cuda_enter(cuda, context, &mode);
    if (result == CU_OK) {
        result = cuda->range_handle(fd, start, end - start, CU_RANGE_DMA_BUF_FD, 0);
        pplx_cuda_leave(cuda, mode);
    }
    cuda->primary_release(device);
    *offset = range->start - start;
    return result;
}
