/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Native libraries at run time: the only place that calls dlopen, dlsym and dlvsym.
 *
 * The extension links to no fabric library: one wheel runs everywhere, and a missing library makes
 * its provider unavailable, with a reason, instead of breaking the import. A library is described
 * by a table (function, symbol version, required or not); pplx_library_load() fills a struct of
 * function pointers from it, once per file. Loaded files stay loaded for the life of the process:
 * they start threads and register exit handlers, so unloading them is not safe. */
#ifndef PPLX_ASYNC_DYNLOAD_H
#define PPLX_ASYNC_DYNLOAD_H

#include <stdbool.h>

#include "pplx_async/provider.h"

#if PPLX_HAVE_LIBFABRIC
#include <rdma/fabric.h>
#endif
#if PPLX_HAVE_LIBIBVERBS
#include <infiniband/verbs.h>
#endif

/* One row: the function `name` goes to the pointer at byte `offset` of the library's struct. */
typedef struct pplx_symbol {
    const char *name;
    const char *version; /* NULL: the default one, or the library has no versions */
    bool required;       /* otherwise the pointer is NULL where the library lacks it */
    size_t offset;
} pplx_symbol;

typedef struct pplx_library {
    const char *soname; /* what is opened without a path */
    const char *remedy; /* how to get it: "; install X", ends the error text if no file was named */
    const pplx_symbol *symbols;
    size_t nsymbols;
    size_t nbytes; /* of the struct of function pointers */
} pplx_library;

/* Load `path` (NULL: library->soname) and give its function pointers, which live for ever; the same
 * struct for the same path. `file`, if not NULL, becomes the file that was really loaded. A second
 * file of one library is refused: PPLX_UNAVAILABLE. Any thread may call it.
 *
 * A bare soname means whatever of that soname the process has loaded already, by anyone, and only
 * then the system's search path (glibc 2.36): give a path wherever it matters which file it is. */
pplx_status pplx_library_load(const pplx_library *library, const char *path, const void **functions, const char **file,
                              pplx_error *error);

/* Load a provider from outside the tree and check that it fits this build. `*provider` lives for
 * ever. PPLX_UNAVAILABLE: no such file or no entry. PPLX_UNSUPPORTED: built for another ABI. */
pplx_status pplx_provider_load(const char *path, const pplx_provider **provider, pplx_error *error);

#if PPLX_HAVE_LIBFABRIC

/* What libfabric exports; all else goes through the function tables of its objects. */
typedef struct pplx_libfabric {
    int (*getinfo)(uint32_t version, const char *node, const char *service, uint64_t flags, const struct fi_info *hints,
                   struct fi_info **info);
    void (*freeinfo)(struct fi_info *info);
    struct fi_info *(*dupinfo)(const struct fi_info *info); /* of NULL: allocates, as fi_allocinfo() does */
    int (*fabric)(struct fi_fabric_attr *attr, struct fid_fabric **fabric, void *context);
    uint32_t (*version)(void);
    const char *(*strerror)(int errnum);
    char *(*tostr)(const void *data, enum fi_type datatype);
} pplx_libfabric;

extern const pplx_library pplx_library_libfabric;

#endif

#if PPLX_HAVE_LIBIBVERBS

/* What libibverbs exports. What moves data (ibv_post_send, ibv_poll_cq ...) is not among them: it is inline, and
 * goes through the tables of a context. */
typedef struct pplx_libibverbs {
    struct ibv_device **(*get_device_list)(int *count);
    void (*free_device_list)(struct ibv_device **list);
    const char *(*get_device_name)(struct ibv_device *device);
    struct ibv_context *(*open_device)(struct ibv_device *device);
    int (*close_device)(struct ibv_context *context);
    int (*query_device)(struct ibv_context *context, struct ibv_device_attr *attr);
    int (*query_port)(struct ibv_context *context, uint8_t port, struct ibv_port_attr *attr); /* its first fields */
    int (*query_gid)(struct ibv_context *context, uint8_t port, int index, union ibv_gid *gid);
    int (*query_pkey)(struct ibv_context *context, uint8_t port, int index, __be16 *pkey);
    /* NULL before rdma-core 32 */
    int (*query_gid_ex)(struct ibv_context *context, uint32_t port, uint32_t index, struct ibv_gid_entry *entry,
                        uint32_t flags, size_t entry_nbytes);
    struct ibv_pd *(*alloc_pd)(struct ibv_context *context);
    int (*dealloc_pd)(struct ibv_pd *pd);
    struct ibv_mr *(*reg_mr)(struct ibv_pd *pd, void *address, size_t nbytes, int access);
    /* NULL before 24: takes the optional access flags */
    struct ibv_mr *(*reg_mr_iova2)(struct ibv_pd *pd, void *address, size_t nbytes, uint64_t iova, unsigned access);
    /* NULL before 34 */
    struct ibv_mr *(*reg_dmabuf_mr)(struct ibv_pd *pd, uint64_t offset, size_t nbytes, uint64_t iova, int fd,
                                    int access);
    int (*dereg_mr)(struct ibv_mr *mr);
    struct ibv_comp_channel *(*create_comp_channel)(struct ibv_context *context);
    int (*destroy_comp_channel)(struct ibv_comp_channel *channel);
    struct ibv_cq *(*create_cq)(struct ibv_context *context, int entries, void *cookie,
                                struct ibv_comp_channel *channel, int vector);
    int (*destroy_cq)(struct ibv_cq *cq);
    int (*get_cq_event)(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cookie);
    void (*ack_cq_events)(struct ibv_cq *cq, unsigned count);
    struct ibv_srq *(*create_srq)(struct ibv_pd *pd, struct ibv_srq_init_attr *attr);
    int (*destroy_srq)(struct ibv_srq *srq);
    struct ibv_qp *(*create_qp)(struct ibv_pd *pd, struct ibv_qp_init_attr *attr);
    int (*modify_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask);
    int (*query_qp)(struct ibv_qp *qp, struct ibv_qp_attr *attr, int mask, struct ibv_qp_init_attr *init_attr);
    int (*destroy_qp)(struct ibv_qp *qp);
    int (*get_async_event)(struct ibv_context *context, struct ibv_async_event *event);
    void (*ack_async_event)(struct ibv_async_event *event);
} pplx_libibverbs;

extern const pplx_library pplx_library_libibverbs;

#endif
#endif
