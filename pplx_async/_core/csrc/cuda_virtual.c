/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#include "cuda_virtual.h"

#include <unistd.h>

typedef struct chunk {
    cu_pointer start;
    size_t nbytes;
    uint32_t handle_types; /* bits of enum cu_handle_type: how others may open it */
    int32_t ordinal;
} chunk;

/* The one that an address lies in. False: nothing is mapped there. */
static bool look_up(const pplx_libcuda *cuda, cu_pointer address, chunk *found) {
    const int attributes[] = {CU_POINTER_MAPPING_START, CU_POINTER_MAPPING_SIZE, CU_POINTER_ALLOWED_HANDLE_TYPES,
                              CU_POINTER_DEVICE_ORDINAL};
    void *data[] = {&found->start, &found->nbytes, &found->handle_types, &found->ordinal};
    *found = (chunk){0};
    return cuda->pointer_attributes(sizeof data / sizeof *data, attributes, data, address) == CU_OK &&
           address >= found->start && address - found->start < found->nbytes;
}

bool pplx_cuda_lies_on(const pplx_libcuda *cuda, int ordinal, cu_pointer address, uint64_t nbytes) {
    const cu_pointer end = address + nbytes;
    chunk chunk;
    for (cu_pointer at = address; at < end; at = chunk.start + chunk.nbytes)
        if (!look_up(cuda, at, &chunk) || chunk.ordinal != ordinal) return false;
    return true;
}

const char *pplx_cuda_chunks_find(const pplx_libcuda *cuda, cu_pointer address, uint64_t nbytes, cuda_chunks *chunks) {
    const cu_pointer end = address + nbytes;
    chunk chunk;
    *chunks = (cuda_chunks){0};
    for (cu_pointer at = address; at < end; at = chunk.start + chunk.nbytes) {
        if (!look_up(cuda, at, &chunk)) return "it is a virtual mapping, and nothing is mapped in a part of it";
        if (!(chunk.handle_types & CU_HANDLE_POSIX_FD))
            return "it is of a pool (cudaMallocAsync), or a virtual mapping that was not made with "
                   "CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR; take it from cudaMalloc, as CuPy's own pool does, and "
                   "torch without expandable_segments";
        if (chunks->count == CUDA_MAX_CHUNKS)
            return "it is a virtual mapping of more than 253 chunks; register it in parts, or take it from cudaMalloc, "
                   "as torch does without expandable_segments";
        if (chunks->count == 0) *chunks = (cuda_chunks){.start = chunk.start, .nbytes = chunk.nbytes};
        if (chunk.nbytes != chunks->nbytes)
            return "it is a virtual mapping of chunks that differ in size; register each of them for itself";
        chunks->count++;
    }
    return NULL;
}

/* -1: there is none. */
static int export_one(const pplx_libcuda *cuda, cu_pointer at, uint64_t nbytes) {
    cu_memory_handle handle;
    chunk chunk;
    int fd = -1;
    if (!look_up(cuda, at, &chunk) || chunk.start != at || chunk.nbytes != nbytes) return -1;
    if (cuda->memory_retain(&handle, (void *)(uintptr_t)at) != CU_OK) return -1;
    if (cuda->memory_export(&fd, handle, CU_HANDLE_POSIX_FD, 0) != CU_OK) fd = -1;
    cuda->memory_release(handle);
    return fd;
}

bool pplx_cuda_chunks_export(const pplx_libcuda *cuda, const cuda_chunks *chunks, int *fds) {
    for (uint32_t i = 0; i < chunks->count; i++) {
        fds[i] = export_one(cuda, chunks->start + i * chunks->nbytes, chunks->nbytes);
        if (fds[i] >= 0) continue;
        while (i) close(fds[--i]);
        return false;
    }
    return true;
}

/* A mapping holds on to what it is of. */
static bool map_one(const pplx_libcuda *cuda, cu_pointer at, uint64_t nbytes, int fd) {
    cu_memory_handle handle;
    if (cuda->memory_import(&handle, (void *)(intptr_t)fd, CU_HANDLE_POSIX_FD) != CU_OK) return false;
    const bool mapped = cuda->memory_map(at, (size_t)nbytes, 0, handle, 0) == CU_OK;
    cuda->memory_release(handle);
    return mapped;
}

bool pplx_cuda_chunks_map(const pplx_libcuda *cuda, cu_device device, const int *fds, cuda_chunks *chunks) {
    const cu_access access = {.location = {.type = CU_LOCATION_DEVICE, .id = device}, .flags = CU_ACCESS_READ_WRITE};
    const uint64_t nbytes = chunks->nbytes;
    const size_t all = (size_t)(chunks->count * nbytes);
    cu_pointer start;
    uint32_t mapped = 0;
    if (cuda->address_reserve(&start, all, 0, 0, 0) != CU_OK) return false;
    while (mapped < chunks->count && map_one(cuda, start + mapped * nbytes, nbytes, fds[mapped])) mapped++;
    chunks->start = start;
    if (mapped == chunks->count && cuda->memory_access(start, all, &access, 1) == CU_OK) return true;
    if (mapped) cuda->memory_unmap(start, (size_t)(mapped * nbytes));
    cuda->address_free(start, all);
    return false;
}

void pplx_cuda_chunks_unmap(const pplx_libcuda *cuda, const cuda_chunks *chunks) {
    const size_t all = (size_t)(chunks->count * chunks->nbytes);
    cuda->memory_unmap(chunks->start, all);
    cuda->address_free(chunks->start, all);
}
