/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of a GPU whose addresses and pages were made apart: cuMemCreate() and cuMemMap(), as torch's
 * expandable_segments do it. CUDA IPC doesn't open it. Each chunk of its pages has a descriptor instead, if it was made
 * with CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, and who has that can map it. (CUDA Driver API, "Virtual Memory
 * Management".) Nothing tells the size of what is imported, and the driver maps a chunk whole or not at all
 * (CUDA_ERROR_NOT_SUPPORTED): so chunks are of one size here, and whoever names a wrong one maps nothing. */
#ifndef PPLX_CSRC_CUDA_VIRTUAL_H
#define PPLX_CSRC_CUDA_VIRTUAL_H

#include "cuda_driver.h"

enum { CUDA_MAX_CHUNKS = 253 }; /* descriptors that come with one message: SCM_MAX_FD in the kernel */

/* Those that a region lies in, one after the other. */
typedef struct cuda_chunks {
    cu_pointer start; /* of the first */
    uint64_t nbytes;  /* of each */
    uint32_t count;
} cuda_chunks;

/* Whether all of this lies on that device. One allocation does, but addresses that were reserved may be mapped to memory
 * of several, or to none. No context is needed. */
bool pplx_cuda_lies_on(const pplx_libcuda *cuda, int ordinal, cu_pointer address, uint64_t nbytes);

/* NULL: they are found, and can be shared. Else why not, and what helps. No context is needed. */
const char *pplx_cuda_chunks_find(const pplx_libcuda *cuda, cu_pointer address, uint64_t nbytes, cuda_chunks *chunks);

/* A descriptor of each, for the caller to close. False: none; the driver says no, or the program has mapped something
 * else there since. The context is current. */
bool pplx_cuda_chunks_export(const pplx_libcuda *cuda, const cuda_chunks *chunks, int *fds);

/* Map a peer's in a row, for work of this device: all but `start` is given, and the descriptors are still the
 * caller's. False: nothing is mapped; the driver says no, also to a descriptor that is none of its own. The context is
 * current, also for unmapping all of them, when nothing works there any more. */
bool pplx_cuda_chunks_map(const pplx_libcuda *cuda, cu_device device, const int *fds, cuda_chunks *chunks);
void pplx_cuda_chunks_unmap(const pplx_libcuda *cuda, const cuda_chunks *chunks);

#endif
