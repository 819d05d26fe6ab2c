/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The CUDA driver (libcuda.so.1), as far as it is used here.
 *
 * Its types are declared here and not taken from cuda.h: the driver's interface is a stable ABI, so who builds
 * this needs no CUDA, and one wheel serves machines with and without GPUs. Names follow the driver's, in the
 * style of this tree: CUdeviceptr is cu_pointer. (CUDA Driver API reference, "Data types used by CUDA driver".) */
#ifndef PPLX_CSRC_CUDA_DRIVER_H
#define PPLX_CSRC_CUDA_DRIVER_H

#include <stdint.h>

#include "dynload.h"

typedef int32_t cu_result; /* 0: success */
typedef int32_t cu_device;
typedef uint64_t cu_pointer;
typedef struct cu_context_object *cu_context;
typedef struct cu_stream_object *cu_stream;
typedef struct cu_module_object *cu_module;
typedef struct cu_function_object *cu_function;

typedef uint64_t cu_memory_handle; /* of physical memory */

typedef struct cu_ipc_handle {
    uint8_t bytes[64];
} cu_ipc_handle;

enum { CU_OK = 0, CU_ERROR_NOT_READY = 600, CU_ERROR_ALREADY_REGISTERED = 712, CU_ERROR_NOT_SUPPORTED = 801 };

enum cu_device_attribute {
    CU_CAN_FLUSH_REMOTE_WRITES = 98,
    CU_GPU_DIRECT_RDMA_FLUSH_WRITES_OPTIONS = 117,
    CU_GPU_DIRECT_RDMA_WRITES_ORDERING = 118, /* enum cu_rdma_scope */
    CU_CAN_USE_64_BIT_STREAM_MEM_OPS = 122, /* of the interface of CUDA 12 */
    CU_DMA_BUF_SUPPORTED = 124
};

/* Whose work sees what NICs have written into a device's memory. */
enum cu_rdma_scope { CU_RDMA_NOBODY = 0, CU_RDMA_OWNER = 100, CU_RDMA_ALL_DEVICES = 200 };

enum { CU_RDMA_FLUSH_BY_CALL = 1, CU_RDMA_CURRENT_CONTEXT = 0 };

enum cu_range_handle { CU_RANGE_DMA_BUF_FD = 1 };

enum cu_pointer_attribute {
    CU_POINTER_CONTEXT = 1,       /* cu_context; NULL: of a pool, or a mapping, which are of no context */
    CU_POINTER_MEMORY_TYPE = 2,   /* uint32_t, enum cu_memory_type */
    CU_POINTER_BUFFER_ID = 7,     /* uint64_t, of the allocation; none is given twice in a process */
    CU_POINTER_IS_MANAGED = 8,    /* uint32_t */
    CU_POINTER_DEVICE_ORDINAL = 9, /* int32_t */
    CU_POINTER_IS_LEGACY_CUDA_IPC_CAPABLE = 10, /* int32_t */
    CU_POINTER_RANGE_START = 11,  /* cu_pointer */
    CU_POINTER_RANGE_SIZE = 12,   /* size_t; of a virtual mapping these two are of all addresses that were reserved */
    CU_POINTER_ALLOWED_HANDLE_TYPES = 14, /* uint32_t, enum cu_handle_type */
    CU_POINTER_MAPPING_SIZE = 18, /* size_t */
    CU_POINTER_MAPPING_START = 19 /* cu_pointer */
};

enum cu_memory_type { CU_MEMORY_DEVICE = 2 };

enum cu_handle_type { CU_HANDLE_POSIX_FD = 1 };

enum { CU_LOCATION_DEVICE = 1, CU_ACCESS_READ_WRITE = 3 };

/* Whose work may do what with mapped memory. */
typedef struct cu_access {
    struct {
        int32_t type, id;
    } location;
    int32_t flags;
} cu_access;

enum {
    CU_HOST_REGISTER_PORTABLE = 1,
    CU_HOST_REGISTER_DEVICEMAP = 2,
    CU_STREAM_NON_BLOCKING = 1,
    CU_IPC_LAZY_ENABLE_PEER_ACCESS = 1
};

/* One of an array for cuStreamBatchMemOp; the driver's union, as far as it is used. */
enum cu_memory_operation { CU_WRITE_VALUE_32 = 2, CU_WAIT_VALUE_64 = 4, CU_WRITE_VALUE_64 = 5 };

enum { CU_WAIT_VALUE_GEQ = 0, CU_WAIT_VALUE_FLUSH = 1 << 30, CU_CAPTURE_MODE_RELAXED = 2 };

typedef union cu_memory_op {
    struct {
        uint32_t operation; /* enum cu_memory_operation */
        cu_pointer address;
        uint64_t value;
        uint32_t flags;
        cu_pointer alias;
    } word;
    uint64_t pad[6];
} cu_memory_op;

enum { CU_COPY_IN_STREAM_ORDER = 1 };

typedef struct cu_copy_attributes {
    int32_t order; /* when the source is read */
    int32_t from_hint[2], to_hint[2];
    uint32_t flags;
} cu_copy_attributes;

typedef struct pplx_libcuda {
    cu_result (*init)(unsigned flags);
    cu_result (*error_name)(cu_result error, const char **text);
    cu_result (*device_count)(int *count);
    cu_result (*device_get)(cu_device *device, int ordinal);
    cu_result (*device_attribute)(int *value, int attribute, cu_device device);
    cu_result (*primary_state)(cu_device device, unsigned *flags, int *active);
    cu_result (*primary_retain)(cu_context *context, cu_device device); /* not active: it is made, which takes long */
    cu_result (*primary_release)(cu_device device);
    cu_result (*context_push)(cu_context context);
    cu_result (*context_pop)(cu_context *context);
    cu_result (*context_device)(cu_device *device);
    cu_result (*context_id)(cu_context context, unsigned long long *id); /* no other one has had it, or will */
    cu_result (*pointer_attributes)(unsigned count, const int *attributes, void **data, cu_pointer pointer);
    cu_result (*range_handle)(void *handle, cu_pointer pointer, size_t nbytes, int type, unsigned long long flags);
    cu_result (*ipc_get)(cu_ipc_handle *handle, cu_pointer pointer);
    cu_result (*ipc_open)(cu_pointer *pointer, cu_ipc_handle handle, unsigned flags);
    cu_result (*ipc_close)(cu_pointer pointer);
    cu_result (*memory_retain)(cu_memory_handle *handle, void *address); /* what is mapped there */
    cu_result (*memory_release)(cu_memory_handle handle);
    cu_result (*memory_export)(void *out, cu_memory_handle handle, int type, unsigned long long flags);
    cu_result (*memory_import)(cu_memory_handle *handle, void *from, int type);
    cu_result (*memory_map)(cu_pointer at, size_t nbytes, size_t offset, cu_memory_handle handle,
                            unsigned long long flags);
    cu_result (*memory_unmap)(cu_pointer at, size_t nbytes);
    cu_result (*memory_access)(cu_pointer at, size_t nbytes, const cu_access *access, size_t count);
    cu_result (*address_reserve)(cu_pointer *start, size_t nbytes, size_t alignment, cu_pointer hint,
                                 unsigned long long flags);
    cu_result (*address_free)(cu_pointer start, size_t nbytes);
    cu_result (*priorities)(int *least, int *greatest); /* of streams; the greatest is the smallest number */
    cu_result (*stream_create)(cu_stream *stream, unsigned flags, int priority);
    cu_result (*stream_destroy)(cu_stream stream);
    cu_result (*stream_query)(cu_stream stream);
    cu_result (*stream_context)(cu_stream stream, cu_context *context);
    /* No other stream has had it, or will; of one that is being captured the driver doesn't tell. */
    cu_result (*stream_id)(cu_stream stream, unsigned long long *id);
    cu_result (*stream_is_capturing)(cu_stream stream, int *state); /* 0: it isn't */
    cu_result (*capture_mode)(int *mode);                           /* of this thread; the one of before comes back */
    cu_result (*stream_batch)(cu_stream stream, unsigned count, cu_memory_op *ops, unsigned flags);
    cu_result (*stream_write)(cu_stream stream, cu_pointer address, uint64_t value, unsigned flags);
    cu_result (*copy)(cu_pointer to, cu_pointer from, size_t nbytes, cu_stream stream);
    /* Of several pieces, in any order among them; all of them have the first attributes. NULL before 13.0. */
    cu_result (*copy_batch)(cu_pointer *to, cu_pointer *from, size_t *nbytes, size_t count,
                            cu_copy_attributes *attributes, size_t *first, size_t nattributes, cu_stream stream);
    cu_result (*flush_rdma)(int target, int scope); /* NULL before 11.3 */
    cu_result (*host_register)(void *memory, size_t nbytes, unsigned flags);
    cu_result (*host_unregister)(void *memory);
    cu_result (*host_device_pointer)(cu_pointer *pointer, void *memory, unsigned flags);
    cu_result (*module_load)(cu_module *module, const void *image);
    cu_result (*module_function)(cu_function *function, cu_module module, const char *name);
    cu_result (*module_unload)(cu_module module);
    cu_result (*launch)(cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_nbytes, cu_stream stream, void **arguments,
                        void **extra);
} pplx_libcuda;

/* Load it (`path` NULL: as the system finds it) and initialise it, once a process. PPLX_UNAVAILABLE: no such
 * library, too old a driver, or no GPU. Any thread. */
pplx_status pplx_cuda_load(const char *path, const pplx_libcuda **cuda, pplx_error *error);

/* The library, if it is there, and a GPU, if `path` doesn't name the library; else NULL. Nothing is initialised: that
 * takes long, and a process that was can't fork any more. Any thread. */
const pplx_libcuda *pplx_cuda_found(const char *path);

/* The second half of pplx_cuda_load(). */
pplx_status pplx_cuda_init(const pplx_libcuda *cuda, const char *file, pplx_error *error);

/* The context is this thread's until pplx_cuda_leave(), which gets the mode. Between them no capture forbids anything:
 * one of the program's that is under way anywhere forbids unsafe calls, to pin memory or to ask a stream how far it is,
 * to all who don't say that they touch nothing that is captured, and breaks if they are made. */
cu_result pplx_cuda_enter(const pplx_libcuda *cuda, cu_context context, int *mode);
void pplx_cuda_leave(const pplx_libcuda *cuda, int mode);

/* One that waits for nothing of the program's, and whose kernels go first where there is no room for all. */
cu_result pplx_cuda_stream(const pplx_libcuda *cuda, cu_stream *stream);

/* The allocation that a pointer points into. */
typedef struct cuda_range {
    uint32_t type, managed; /* enum cu_memory_type; cudaMallocManaged() */
    uint32_t shareable;     /* other processes can open it */
    int32_t ordinal;
    cu_pointer start;
    size_t nbytes;
    uint64_t id;
    cu_context context; /* whose work it is there for; NULL: its device's, of any context */
} cuda_range;

cu_result pplx_cuda_look_up(const pplx_libcuda *cuda, cu_pointer pointer, cuda_range *range);

/* Have every GPU see whole pages of the host's, until they are unregistered: where, as all of them see it. Once more does
 * no harm, but for tools that report what the driver says to it. */
cu_result pplx_cuda_pin_pages(const pplx_libcuda *cuda, void *memory, size_t nbytes, cu_pointer *address);

static inline bool cuda_holds(const cuda_range *range, cu_pointer address, uint64_t nbytes) {
    return address >= range->start && nbytes <= range->nbytes && address - range->start <= range->nbytes - nbytes;
}

/* A dma-buf of the allocation's pages, for the caller to close; `offset`: of the allocation's first byte in it. Not
 * CU_OK: the driver, the device or this memory has none. */
cu_result pplx_cuda_export(const pplx_libcuda *cuda, const cuda_range *range, int *fd, uint64_t *offset);

/* What a device does about writes of NICs. */
typedef struct cuda_rdma {
    int ordered;  /* enum cu_rdma_scope: for whom they need no flush */
    bool by_wait; /* a wait of its streams may flush them */
    bool by_call; /* flush_rdma() may */
} cuda_rdma;

cu_result pplx_cuda_rdma(const pplx_libcuda *cuda, cu_device device, cuda_rdma *rdma);

/* What the regions of one allocation have in common: the first of them makes it, the last one ends it. It is the first
 * field of whatever that is. An address that was freed and given out again is another allocation's: the id says so. */
typedef struct cuda_shared {
    struct cuda_shared *next;
    cu_pointer start;
    uint64_t id;
    uint32_t regions;
} cuda_shared;

/* One more region of it. NULL: there is none yet. */
static inline cuda_shared *cuda_shared_take(cuda_shared *list, const cuda_range *range) {
    while (list && !(list->start == range->start && list->id == range->id)) list = list->next;
    if (list) list->regions++;
    return list;
}

static inline void cuda_shared_add(cuda_shared **list, cuda_shared *shared, const cuda_range *range) {
    *shared = (cuda_shared){.next = *list, .start = range->start, .id = range->id, .regions = 1};
    *list = shared;
}

/* One less. True: that was the last one, and it is out of the list. */
static inline bool cuda_shared_give(cuda_shared **list, cuda_shared *shared) {
    if (--shared->regions) return false;
    while (*list != shared) list = &(*list)->next;
    *list = shared->next;
    return true;
}

/* "CUDA_ERROR_INVALID_VALUE" */
const char *pplx_cuda_error(const pplx_libcuda *cuda, cu_result result);

#endif
