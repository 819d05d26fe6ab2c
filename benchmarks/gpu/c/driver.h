/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The CUDA driver, as far as it is called here: names and types are cuda.h's, the functions come from a library that
 * is opened when the program runs. So it is built where there is no CUDA, and runs on the tests' own libcuda too. */
#ifndef GPU_DRIVER_H
#define GPU_DRIVER_H

#include <stddef.h>
#include <stdint.h>

typedef int CUresult; /* 0: success */
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUmod_st *CUmodule;
typedef struct CUfunc_st *CUfunction;

enum { CU_STREAM_NON_BLOCKING = 1, CU_STREAM_WAIT_VALUE_GEQ = 0, CU_MEMHOSTREGISTER_PORTABLE = 1 };
enum { CU_MEMHOSTREGISTER_DEVICEMAP = 2, CU_MULTIPROCESSOR_COUNT = 16 };

#define DRIVER_CALLS(X)                                                                                            \
    X(cuInit, (unsigned flags))                                                                                    \
    X(cuDeviceGetCount, (int *count))                                                                              \
    X(cuDeviceGet, (CUdevice * device, int ordinal))                                                               \
    X(cuDeviceGetAttribute, (int *value, int attribute, CUdevice device))                                          \
    X(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                            \
    X(cuCtxSetCurrent, (CUcontext context))                                                                        \
    X(cuCtxEnablePeerAccess, (CUcontext peer, unsigned flags))                                                     \
    X(cuMemAlloc_v2, (CUdeviceptr * pointer, size_t nbytes))                                                       \
    X(cuMemcpyHtoD_v2, (CUdeviceptr to, const void *from, size_t nbytes))                                          \
    X(cuMemcpyDtoH_v2, (void *to, CUdeviceptr from, size_t nbytes))                                                \
    X(cuMemcpyAsync, (CUdeviceptr to, CUdeviceptr from, size_t nbytes, CUstream stream))                           \
    X(cuMemHostRegister_v2, (void *memory, size_t nbytes, unsigned flags))                                         \
    X(cuMemHostGetDevicePointer_v2, (CUdeviceptr * pointer, void *memory, unsigned flags))                         \
    X(cuStreamCreate, (CUstream * stream, unsigned flags))                                                         \
    X(cuStreamSynchronize, (CUstream stream))                                                                      \
    X(cuStreamWaitValue64_v2, (CUstream stream, CUdeviceptr address, uint64_t value, unsigned flags))              \
    X(cuStreamWriteValue64_v2, (CUstream stream, CUdeviceptr address, uint64_t value, unsigned flags))             \
    X(cuModuleLoadData, (CUmodule * module, const void *image))                                                    \
    X(cuModuleGetFunction, (CUfunction * function, CUmodule module, const char *name))                             \
    X(cuLaunchKernel,                                                                                              \
      (CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, \
       unsigned block_z, unsigned shared_nbytes, CUstream stream, void **arguments, void **extra))

#define DRIVER_DECLARE(name, arguments) extern CUresult(*name) arguments;
DRIVER_CALLS(DRIVER_DECLARE)

/* Open the library and initialise it; what is missing ends the program. */
void driver_open(const char *library);

_Noreturn void gpu_die(const char *format, ...) __attribute__((format(printf, 1, 2)));

#define CU(call)                                                \
    do {                                                        \
        const CUresult cu_result = (call);                      \
        if (cu_result) gpu_die("%s says %d", #call, cu_result); \
    } while (0)

#endif
