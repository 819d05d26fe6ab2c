/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* dlvsym, dlinfo */
#endif

#include "dynload.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if PPLX_HAVE_LIBFABRIC

/* The structs that fi_getinfo() fills grew with the years, and the library translates by the
 * version of the symbol that the caller bound. So it must be the version that belongs to the
 * headers of this build, whatever the library at run time (fabric(7), "ABI CHANGES"):
 * 1.9 to 1.19 FABRIC_1.3, 1.20 to 1.22 FABRIC_1.7, 2.0 FABRIC_1.8. FABRIC_1.9 (seen in 2.5) only
 * adds fields behind those of 1.8 that we don't use, so 1.8 remains right for the headers of 2.x
 * as long as structs are allocated by the library. */
#if FI_MAJOR_VERSION > 1
#define INFO_VERSION "FABRIC_1.8"
#elif FI_MINOR_VERSION >= 20
#define INFO_VERSION "FABRIC_1.7"
#elif FI_MINOR_VERSION >= 9
#define INFO_VERSION "FABRIC_1.3"
#else
#error "libfabric headers 1.9 or newer are needed"
#endif

#define SYMBOL(field, version, required) {"fi_" #field, version, required, offsetof(pplx_libfabric, field)}
static const pplx_symbol libfabric_symbols[] = {
    SYMBOL(getinfo, INFO_VERSION, true), SYMBOL(freeinfo, INFO_VERSION, true), SYMBOL(dupinfo, INFO_VERSION, true),
    SYMBOL(fabric, "FABRIC_1.1", true),  SYMBOL(version, "FABRIC_1.0", true),  SYMBOL(strerror, "FABRIC_1.0", true),
    SYMBOL(tostr, "FABRIC_1.0", false),
};
#undef SYMBOL

const pplx_library pplx_library_libfabric = {
    .soname = "libfabric.so.1",
    .remedy = "; pip install 'pplx_async[fabric]' or apt-get install libfabric1",
    .symbols = libfabric_symbols,
    .nsymbols = sizeof libfabric_symbols / sizeof libfabric_symbols[0],
    .nbytes = sizeof(pplx_libfabric),
};

#endif

#if PPLX_HAVE_LIBIBVERBS

/* The default versions of the symbols: those of 1.0 are for programs of before 2007. */
#define SYMBOL(field, required) {"ibv_" #field, NULL, required, offsetof(pplx_libibverbs, field)}
static const pplx_symbol libibverbs_symbols[] = {
    SYMBOL(get_device_list, true),
    SYMBOL(free_device_list, true),
    SYMBOL(get_device_name, true),
    SYMBOL(open_device, true),
    SYMBOL(close_device, true),
    SYMBOL(query_device, true),
    SYMBOL(query_port, true),
    SYMBOL(query_gid, true),
    SYMBOL(query_pkey, true),
    {"_ibv_query_gid_ex", NULL, false, offsetof(pplx_libibverbs, query_gid_ex)},
    SYMBOL(alloc_pd, true),
    SYMBOL(dealloc_pd, true),
    SYMBOL(reg_mr, true),
    SYMBOL(reg_mr_iova2, false),
    SYMBOL(reg_dmabuf_mr, false),
    SYMBOL(dereg_mr, true),
    SYMBOL(create_comp_channel, true),
    SYMBOL(destroy_comp_channel, true),
    SYMBOL(create_cq, true),
    SYMBOL(destroy_cq, true),
    SYMBOL(get_cq_event, true),
    SYMBOL(ack_cq_events, true),
    SYMBOL(create_srq, true),
    SYMBOL(destroy_srq, true),
    SYMBOL(create_qp, true),
    SYMBOL(modify_qp, true),
    SYMBOL(query_qp, true),
    SYMBOL(destroy_qp, true),
    SYMBOL(get_async_event, true),
    SYMBOL(ack_async_event, true),
};
#undef SYMBOL

const pplx_library pplx_library_libibverbs = {
    .soname = "libibverbs.so.1",
    .remedy = "; apt-get install libibverbs1 ibverbs-providers",
    .symbols = libibverbs_symbols,
    .nsymbols = sizeof libibverbs_symbols / sizeof libibverbs_symbols[0],
    .nbytes = sizeof(pplx_libibverbs),
};

#endif

/* A loaded file. The list only grows; `next` and the rest never change once it is on it. */
typedef struct loaded {
    struct loaded *next;
    const pplx_library *library;
    char *path; /* as asked for */
    char *file; /* as found */
    void *functions;
} loaded;

static pthread_mutex_t loaded_lock = PTHREAD_MUTEX_INITIALIZER;
static loaded *loaded_list; /* guarded by loaded_lock */

static pplx_status fail(pplx_error *error, pplx_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static pplx_status fail(pplx_error *error, pplx_status status, const char *format, ...) {
    if (error) {
        va_list arguments;
        error->status = status;
        error->provider_error = 0;
        va_start(arguments, format);
        vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
    }
    return status;
}

/* It begins with the file's name. */
static const char *last_dlerror(const char *path) {
    const char *text = dlerror();
    return text ? text : path;
}

/* How to get one, for who has none; not for who named a file that is none. */
static const char *remedy(const pplx_library *library, const char *path) {
    return strchr(path, '/') ? "" : library->remedy;
}

static pplx_status bind_symbols(const pplx_library *library, const char *path, void *handle, void *functions,
                                pplx_error *error) {
    for (size_t i = 0; i < library->nsymbols; i++) {
        const pplx_symbol *symbol = &library->symbols[i];
        dlerror();
        void *address = symbol->version ? dlvsym(handle, symbol->name, symbol->version) : dlsym(handle, symbol->name);
        if (!address && symbol->required)
            return fail(error, PPLX_UNAVAILABLE, "%s (%s is needed)%s", last_dlerror(path), symbol->name,
                        remedy(library, path));
        /* POSIX gives functions as void pointers; copying the bytes is the portable conversion. */
        memcpy((char *)functions + symbol->offset, &address, sizeof address);
    }
    return PPLX_OK;
}

/* libfabric's plug-ins are found by name: a second libfabric takes those of the first, and at exit
 * both free the same memory (seen: 2.5 of a wheel beside 1.17 of Debian). So one file a process. */
static pplx_status refuse_second(const pplx_library *library, const char *path, pplx_error *error) {
    if (!strchr(path, '/')) return PPLX_OK; /* a bare name is the one that is loaded */
    char *wanted = realpath(path, NULL);
    pplx_status status = PPLX_OK;
    for (const loaded *entry = loaded_list; entry && wanted; entry = entry->next) {
        if (entry->library != library) continue;
        char *here = realpath(entry->file, NULL);
        bool same = here && strcmp(here, wanted) == 0;
        free(here);
        if (same) continue;
        status = fail(error, PPLX_UNAVAILABLE,
                      "%s: this process has loaded %s, and two of them do not get along; "
                      "use one for all engines of a process",
                      path, entry->file);
        break;
    }
    free(wanted);
    return status;
}

static pplx_status load_locked(const pplx_library *library, const char *path, loaded **out, pplx_error *error) {
    pplx_status status = PPLX_NO_MEMORY;
    struct link_map *map = NULL;
    if (refuse_second(library, path, error) != PPLX_OK) return error->status;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return fail(error, PPLX_UNAVAILABLE, "%s%s", last_dlerror(path), remedy(library, path));

    loaded *entry = calloc(1, sizeof *entry);
    if (!entry) goto fail;
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0 || !map->l_name || !*map->l_name) map = NULL;
    entry->library = library;
    entry->path = strdup(path);
    entry->file = strdup(map ? map->l_name : path);
    entry->functions = calloc(1, library->nbytes);
    if (!entry->path || !entry->file || !entry->functions) goto fail;
    status = bind_symbols(library, entry->file, handle, entry->functions, error);
    if (status != PPLX_OK) goto fail;
    entry->next = loaded_list;
    loaded_list = entry;
    *out = entry;
    return PPLX_OK;

fail:
    if (status == PPLX_NO_MEMORY) fail(error, status, "out of memory while loading %s", path);
    if (entry) {
        free(entry->functions);
        free(entry->file);
        free(entry->path);
        free(entry);
    }
    dlclose(handle);
    return status;
}

pplx_status pplx_library_load(const pplx_library *library, const char *path, const void **functions, const char **file,
                              pplx_error *error) {
    pplx_status status = PPLX_OK;
    if (!path || !*path) path = library->soname;

    pthread_mutex_lock(&loaded_lock);
    loaded *entry = loaded_list;
    while (entry && (entry->library != library || strcmp(entry->path, path) != 0)) entry = entry->next;
    if (!entry) status = load_locked(library, path, &entry, error);
    pthread_mutex_unlock(&loaded_lock);

    if (status != PPLX_OK) return status;
    *functions = entry->functions;
    if (file) *file = entry->file;
    return PPLX_OK;
}

/* Read no further into a foreign struct than it says it is long. */
static pplx_status check_provider(const pplx_provider *provider, const char *path, pplx_error *error) {
    if (!provider) return fail(error, PPLX_UNAVAILABLE, "%s: %s() gave no provider", path, PPLX_PROVIDER_ENTRY);
    if (provider->abi != PPLX_PROVIDER_ABI)
        return fail(error, PPLX_UNSUPPORTED, "%s was built for provider ABI %u, this is ABI %d: rebuild it", path,
                    provider->abi, PPLX_PROVIDER_ABI);
    if (provider->size < sizeof *provider)
        return fail(error, PPLX_UNSUPPORTED, "%s has a function table of %zu B, %zu B are needed: rebuild it", path,
                    provider->size, sizeof *provider);
    if (!provider->name || !*provider->name || !provider->discover || !provider->domain_open ||
        !provider->domain_close || !provider->domain_caps || !provider->endpoint_open || !provider->endpoint_connect ||
        !provider->endpoint_close || !provider->mr_open || !provider->mr_close || !provider->post || !provider->poll ||
        !provider->arm || !provider->wait_fd)
        return fail(error, PPLX_UNSUPPORTED, "%s leaves functions of its table empty", path);
    return PPLX_OK;
}

pplx_status pplx_provider_load(const char *path, const pplx_provider **provider, pplx_error *error) {
    pplx_status status = PPLX_UNAVAILABLE;
    pplx_provider_entry_fn entry = NULL;
    if (!path || !*path) return fail(error, PPLX_INVALID, "the path of a provider must not be empty");

    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return fail(error, PPLX_UNAVAILABLE, "provider: %s", last_dlerror(path));
    dlerror();
    void *address = dlsym(handle, PPLX_PROVIDER_ENTRY);
    if (!address) {
        fail(error, PPLX_UNAVAILABLE, "not a provider, it does not export %s: %s", PPLX_PROVIDER_ENTRY,
             last_dlerror(path));
        goto fail;
    }
    memcpy(&entry, &address, sizeof entry);
    const pplx_provider *table = entry();
    status = check_provider(table, path, error);
    if (status != PPLX_OK) goto fail;
    *provider = table;
    return PPLX_OK;

fail:
    dlclose(handle);
    return status;
}
