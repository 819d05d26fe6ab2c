/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The stream's side of words, on streams of CUDA: theirs, not ours, whichever library made them.
 *
 * All steps of a word go into one cuStreamBatchMemOp, which a graph captures as one node. Without such operations
 * a kernel of one thread does the same, and takes a place on the GPU while it waits.
 *
 * A stream that is being captured forbids calls that are unsafe then, registering memory for one, to every thread that
 * has not said that it knows better (CUDA Driver API, cuThreadExchangeStreamCaptureMode): we do, for ours depend on
 * nothing that is captured. */
#include <pthread.h>
#include <string.h>

#include "cuda_driver.h"
#include "cuda_nudge.h"
#include "cuda_words.h"
#include "internal.h"

enum { MOST_CONTEXTS = 64 };

/* The kernel is loaded once into each context, and stays; into more of them than that again and again. One that a program
 * destroys takes it along, and another one may get its address: so they go by their ids. */
static pthread_mutex_t kernels_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf of ours; the driver is called under it */
static struct {
    unsigned long long context;
    cu_function function;
} kernels[MOST_CONTEXTS];
static unsigned kernels_made;

static pplx_status failed(const pplx_libcuda *cuda, cu_result result, const char *what, pplx_error *error) {
    return pplx_fail(error, PPLX_NATIVE, result, "%s: %s", what, pplx_cuda_error(cuda, result));
}

static cu_result enter(const pplx_libcuda *cuda, cu_stream stream, cu_context *context, int *mode) {
    const cu_result result = cuda->stream_context(stream, context);
    return result == CU_OK ? pplx_cuda_enter(cuda, *context, mode) : result;
}

/* To ask for it is unsafe while anything is captured, and would break that. */
static cu_result ask_id(const pplx_libcuda *cuda, cu_stream stream, unsigned long long *id) {
    int mode = CU_CAPTURE_MODE_RELAXED;
    cu_result result = cuda->capture_mode(&mode);
    if (result != CU_OK) return result;
    result = cuda->stream_id(stream, id);
    cuda->capture_mode(&mode);
    return result;
}

pplx_status pplx_cuda_identify(const char *path, uint64_t stream, pplx_stream_identity *identity, pplx_error *error) {
    const pplx_libcuda *cuda;
    const cu_stream handle = (cu_stream)(uintptr_t)stream;
    cu_context context;
    unsigned long long id = 0;
    int state = 0;
    pplx_status status = pplx_cuda_load(path, &cuda, error);
    if (status != PPLX_OK) return status;
    cu_result result = cuda->stream_is_capturing(handle, &state);
    if (result != CU_OK) return failed(cuda, result, "no stream of CUDA", error);
    result = cuda->stream_context(handle, &context);
    if (result != CU_OK) return failed(cuda, result, "no context of that stream", error);
    if (state || ask_id(cuda, handle, &id) != CU_OK) id = 0;
    *identity = (pplx_stream_identity){.context = (uintptr_t)context, .id = id, .capturing = state != 0};
    return PPLX_OK;
}

pplx_status pplx_cuda_capturing(const char *path, uint64_t stream, bool *capturing, pplx_error *error) {
    pplx_stream_identity identity = {0};
    const pplx_status status = pplx_cuda_identify(path, stream, &identity, error);
    *capturing = identity.capturing;
    return status;
}

/* The primary context of the stream's device, for the caller to release: the stream's own may be the program's, who takes
 * with it what is pinned there. */
static cu_result retain_primary(const pplx_libcuda *cuda, cu_stream stream, cu_device *device, cu_context *primary) {
    cu_context context;
    int mode;
    cu_result result = enter(cuda, stream, &context, &mode);
    if (result != CU_OK) return result;
    result = cuda->context_device(device);
    if (result == CU_OK) result = cuda->primary_retain(primary, *device);
    pplx_cuda_leave(cuda, mode);
    return result;
}

pplx_status pplx_cuda_pin(const char *path, uint64_t stream, void *memory, size_t nbytes, pplx_pinned *pinned,
                          pplx_error *error) {
    const pplx_libcuda *cuda;
    cu_device device;
    cu_context context;
    int mode;
    pplx_status status = pplx_cuda_load(path, &cuda, error);
    if (status != PPLX_OK) return status;
    cu_result result = retain_primary(cuda, (cu_stream)(uintptr_t)stream, &device, &context);
    if (result != CU_OK) return failed(cuda, result, "no context of that stream", error);
    result = pplx_cuda_enter(cuda, context, &mode);
    if (result == CU_OK) {
        result = pplx_cuda_pin_pages(cuda, memory, nbytes, &pinned->address);
        pplx_cuda_leave(cuda, mode);
    }
    if (result != CU_OK) {
        cuda->primary_release(device);
        return failed(cuda, result, "the words can't be pinned", error);
    }
    pinned->context = (uintptr_t)context;
    return PPLX_OK;
}

void pplx_cuda_unpin(const char *path, void *memory, const pplx_pinned *pinned) {
    const pplx_libcuda *cuda;
    cu_device device;
    int mode;
    pplx_error error;
    if (pplx_cuda_load(path, &cuda, &error) != PPLX_OK) return;
    if (pplx_cuda_enter(cuda, (cu_context)(uintptr_t)pinned->context, &mode) != CU_OK) return; /* it went before us */
    const bool known = cuda->context_device(&device) == CU_OK;
    cuda->host_unregister(memory);
    pplx_cuda_leave(cuda, mode);
    if (known) cuda->primary_release(device);
}

static cu_result find_kernel(const pplx_libcuda *cuda, cu_context context, cu_function *function) {
    cu_module module;
    unsigned long long id;
    unsigned i = 0;
    cu_result result = cuda->context_id(context, &id);
    if (result != CU_OK) return result;
    pthread_mutex_lock(&kernels_lock);
    const unsigned used = kernels_made < MOST_CONTEXTS ? kernels_made : MOST_CONTEXTS;
    while (i < used && kernels[i].context != id) i++;
    if (i < used) {
        *function = kernels[i].function;
    } else {
        result = cuda->module_load(&module, pplx_cuda_words_ptx);
        if (result == CU_OK) result = cuda->module_function(function, module, pplx_cuda_words_name);
        if (result == CU_OK) {
            i = kernels_made++ % MOST_CONTEXTS;
            kernels[i].context = id;
            kernels[i].function = *function;
        }
    }
    pthread_mutex_unlock(&kernels_lock);
    return result;
}

static cu_result launch(const pplx_libcuda *cuda, cu_context context, cu_stream stream, const pplx_step *steps,
                        size_t count) {
    cuda_steps all = {.count = (uint32_t)count};
    void *arguments[] = {&all};
    cu_function function;
    memcpy(all.of, steps, count * sizeof *steps);
    cu_result result = find_kernel(cuda, context, &function);
    return result == CU_OK ? cuda->launch(function, 1, 1, 1, 1, 1, 1, 0, stream, arguments, NULL) : result;
}

static cu_result queue(const pplx_libcuda *cuda, cu_context context, cu_stream stream, const pplx_step *steps,
                       size_t count, pplx_word *word) {
    cu_memory_op ops[CUDA_STEPS] = {0};
    cu_device device;
    cuda_rdma rdma = {0};
    int has_words = 0;
    cu_result result = cuda->context_device(&device);
    if (result == CU_OK) result = cuda->device_attribute(&has_words, CU_CAN_USE_64_BIT_STREAM_MEM_OPS, device);
    for (size_t i = 0; i < count && result == CU_OK; i++)
        if (steps[i].kind == PPLX_STEP_WAIT_FLUSH) result = pplx_cuda_rdma(cuda, device, &rdma);
    if (result != CU_OK) return result;
    word->gpu = (uint32_t)device + 1;
    if (!has_words) return launch(cuda, context, stream, steps, count); /* which looks all the time */
    if (word->kind == PPLX_WORD_GATE) word->nudge = pplx_nudge_find(cuda, context);
    const uint32_t flush = rdma.by_wait && rdma.ordered < CU_RDMA_OWNER ? CU_WAIT_VALUE_FLUSH : 0;
    for (size_t i = 0; i < count; i++) {
        const bool write = steps[i].kind == PPLX_STEP_WRITE;
        ops[i].word.operation = write ? CU_WRITE_VALUE_32 : CU_WAIT_VALUE_64;
        ops[i].word.address = steps[i].address;
        ops[i].word.value = write ? steps[i].value : steps[i].least;
        ops[i].word.flags = write ? 0 : CU_WAIT_VALUE_GEQ | (steps[i].kind == PPLX_STEP_WAIT_FLUSH ? flush : 0);
    }
    return cuda->stream_batch(stream, (unsigned)count, ops, 0);
}

pplx_status pplx_cuda_queue(const char *path, uint64_t stream, const pplx_step *steps, size_t count, pplx_word *word,
                            pplx_error *error) {
    const pplx_libcuda *cuda;
    cu_context context;
    int mode;
    if (count > CUDA_STEPS) return pplx_fail(error, PPLX_INVALID, 0, "%zu steps at once", count);
    pplx_status status = pplx_cuda_load(path, &cuda, error);
    if (status != PPLX_OK) return status;
    pplx_word_hold(word); /* first: gates_held.h */
    const char *what = "no context of that stream";
    cu_result result = enter(cuda, (cu_stream)(uintptr_t)stream, &context, &mode);
    if (result == CU_OK) {
        what = "the stream takes no words";
        result = queue(cuda, context, (cu_stream)(uintptr_t)stream, steps, count, word);
        pplx_cuda_leave(cuda, mode);
    }
    if (result == CU_OK) return PPLX_OK;
    pplx_word_undo(word);
    return failed(cuda, result, what, error);
}

pplx_status pplx_cuda_push(const char *path, uint64_t stream, const pplx_step *steps, size_t count, uint32_t *gpu,
                           pplx_error *error) {
    pplx_word word = {.kind = PPLX_WORD_DOORBELL};
    const pplx_status status = pplx_cuda_queue(path, stream, steps, count, &word, error);
    *gpu = word.gpu;
    return status;
}
