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
#endif
