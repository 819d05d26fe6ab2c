/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Which devices there are: options, hints for fi_getinfo() and its answers. */
#if PPLX_HAVE_LIBFABRIC

#include <arpa/inet.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fabric_quirks.h"

pplx_status fabric_fail(pplx_error *error, pplx_status status, int native, const char *format, ...) {
    if (error) {
        va_list arguments;
        error->status = status;
        error->provider_error = native;
        va_start(arguments, format);
        vsnprintf(error->text, sizeof error->text, format, arguments);
        va_end(arguments);
    }
    return status;
}

static const fabric_quirks *find_quirks(const char *name) {
    for (size_t i = 0; i < FABRIC_NQUIRKS; i++)
        if (strcmp(fabric_quirk_table[i].name, name) == 0) return &fabric_quirk_table[i];
    return NULL;
}

pplx_status fabric_options_parse(const pplx_option *options, size_t noptions, fabric_options *out, pplx_error *error) {
    *out = (fabric_options){.node = "127.0.0.1"};
    for (size_t i = 0; i < noptions; i++) {
        const char *key = options[i].key, *value = options[i].value;
        if (!key || !value) return fabric_fail(error, PPLX_INVALID, 0, "option %zu has no key or no value", i);
        if (strcmp(key, "library") == 0) {
            out->library = value;
        } else if (strcmp(key, "node") == 0) {
            out->node = value;
        } else if (strcmp(key, "provider") == 0) {
            out->provider = find_quirks(value);
            if (!out->provider)
                return fabric_fail(error, PPLX_INVALID, 0,
                                   "libfabric provider \"%s\" is not supported; one of: efa, tcp, tcp;ofi_rxm", value);
        } else if (strcmp(key, "libcuda") == 0) {
            out->libcuda = value;
        } else if (strcmp(key, "hmem") == 0) {
            if (strcmp(value, "cuda") != 0)
                return fabric_fail(error, PPLX_INVALID, 0, "option hmem: \"%s\" is not supported; one of: cuda", value);
            out->cuda = true;
        } else {
            return fabric_fail(error, PPLX_INVALID, 0,
                               "unknown option \"%s\"; one of: library, provider, node, hmem, libcuda", key);
        }
    }
    return PPLX_OK;
}

/* EFA goes by the API that it is asked for (by its source): it writes and reads by RDMA on all devices that have it
 * since 1.18, and takes dma-bufs of our making since 1.20. Nothing else of 1.20's concerns us, and what newer ones bring
 * is not asked for. */
uint32_t fabric_api(const pplx_libfabric *lib, const fabric_quirks *quirks) {
    const uint32_t wanted = FI_VERSION(1, 20), has = lib->version();
    const uint32_t newer = FI_VERSION_LT(has, wanted) ? has : wanted;
    return quirks->newer_api && FI_VERSION_LT(FABRIC_API, newer) ? newer : FABRIC_API;
}

/* What we can live with. The library answers with what it will insist on: mr_mode of the answer
 * says whether keys are its own and whether remote addresses are virtual. */
static struct fi_info *make_hints(const pplx_libfabric *lib, const fabric_quirks *quirks, bool cuda) {
    struct fi_info *hints = lib->dupinfo(NULL);
    if (!hints) return NULL;
    hints->caps = FI_MSG | FI_RMA | FI_SEND | FI_RECV | FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE |
                  quirks->extra_caps;
    hints->mode = FI_CONTEXT; /* four words; FI_CONTEXT2 would leave none for us (fabric_op) */
    hints->ep_attr->type = FI_EP_RDM;
    hints->domain_attr->threading = FI_THREAD_DOMAIN;
    hints->domain_attr->control_progress = FI_PROGRESS_MANUAL; /* no threads behind our back */
    hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
    hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
    hints->domain_attr->mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
    if (cuda) {
        hints->caps |= FI_HMEM;
        hints->domain_attr->mr_mode |= FI_MR_HMEM;
    }
    /* The library frees it with the hints, by free(). */
    hints->fabric_attr->prov_name = strdup(quirks->name);
    if (!hints->fabric_attr->prov_name) {
        lib->freeinfo(hints);
        return NULL;
    }
    return hints;
}

/* All that this provider has; PPLX_UNAVAILABLE if nothing. */
static pplx_status get_infos(const pplx_libfabric *lib, const fabric_options *options, const fabric_quirks *quirks,
                             bool cuda, struct fi_info **infos) {
    struct fi_info *hints = make_hints(lib, quirks, cuda);
    *infos = NULL;
    if (!hints) return PPLX_NO_MEMORY;
    const char *node = quirks->takes_node ? options->node : NULL;
    int ret = lib->getinfo(fabric_api(lib, quirks), node, NULL, node ? FI_SOURCE : 0, hints, infos);
    lib->freeinfo(hints);
    return ret ? PPLX_UNAVAILABLE : PPLX_OK;
}

/* The library says that there is nothing also where it had no descriptor to look with. True: so it is. */
static bool had_no_descriptor(pplx_error *error) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int native = fd < 0 ? errno : 0;
    if (fd >= 0) close(fd);
    if (native != EMFILE && native != ENFILE) return false;
    fabric_fail(error, PPLX_NATIVE, native, "no descriptor to look for devices with: %s", strerror(native));
    return true;
}

/* Given an address that no interface has, the library makes up a device called "tcp" whose endpoints
 * can't be opened (1.17, 2.5.1). */
static bool is_ours(const struct fi_info *info) {
    const struct sockaddr *address = info->src_addr;
    if (!address || (info->addr_format != FI_SOCKADDR_IN && info->addr_format != FI_SOCKADDR_IN6)) return true;
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return false;
    bool bound = bind(fd, address, (socklen_t)info->src_addrlen) == 0;
    close(fd);
    return bound;
}

/* Asking for "tcp" may be answered by "tcp;ofi_rxm" (1.17), and the immediate is 32 bits wide. */
static bool fits(const struct fi_info *info, const fabric_quirks *quirks) {
    return info->fabric_attr->prov_name && strcmp(info->fabric_attr->prov_name, quirks->name) == 0 &&
           info->domain_attr->name && info->domain_attr->cq_data_size >= 4 && !(info->mode & ~FI_CONTEXT) &&
           is_ours(info);
}

static void format_address(const struct fi_info *info, char *text, size_t nbytes) {
    const struct sockaddr *address = info->src_addr;
    text[0] = 0;
    if (address && info->addr_format == FI_SOCKADDR_IN && info->src_addrlen >= sizeof(struct sockaddr_in))
        inet_ntop(AF_INET, &((const struct sockaddr_in *)info->src_addr)->sin_addr, text, (socklen_t)nbytes);
    else if (address && info->addr_format == FI_SOCKADDR_IN6 && info->src_addrlen >= sizeof(struct sockaddr_in6))
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)info->src_addr)->sin6_addr, text, (socklen_t)nbytes);
    else if (info->nic && info->nic->link_attr && info->nic->link_attr->address)
        snprintf(text, nbytes, "%s", info->nic->link_attr->address);
}

static void fill_device(const pplx_libfabric *lib, const char *file, const struct fi_info *info, pplx_device *device) {
    uint32_t version = lib->version();
    memset(device, 0, sizeof *device);
    snprintf(device->name, sizeof device->name, "%s", info->domain_attr->name);
    snprintf(device->provider, sizeof device->provider, "%s", info->fabric_attr->prov_name);
    format_address(info, device->address, sizeof device->address);
    snprintf(device->description, sizeof device->description, "libfabric %u.%u (%s)", FI_MAJOR(version),
             FI_MINOR(version), file);
    if (info->nic && info->nic->link_attr) device->bits_per_second = info->nic->link_attr->speed;
}

/* The library lists a device once for each variant of it (address format, protocol): the first is
 * the one that it would choose itself. */
static bool listed_before(const struct fi_info *infos, const struct fi_info *info, const fabric_quirks *quirks) {
    for (; infos != info; infos = infos->next)
        if (fits(infos, quirks) && strcmp(infos->domain_attr->name, info->domain_attr->name) == 0) return true;
    return false;
}

pplx_status fabric_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                            size_t *count, pplx_error *error) {
    fabric_options parsed;
    const void *functions = NULL;
    const char *file = NULL;
    *count = 0;
    pplx_status status = fabric_options_parse(options, noptions, &parsed, error);
    if (status == PPLX_OK)
        status = pplx_library_load(&pplx_library_libfabric, parsed.library, &functions, &file, error);
    if (status != PPLX_OK) return status;
    const pplx_libfabric *lib = functions;

    for (size_t i = 0; i < FABRIC_NQUIRKS; i++) {
        const fabric_quirks *quirks = &fabric_quirk_table[i];
        struct fi_info *infos = NULL;
        if (parsed.provider && parsed.provider != quirks) continue;
        if (get_infos(lib, &parsed, quirks, parsed.cuda, &infos) == PPLX_NO_MEMORY)
            return fabric_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
        for (struct fi_info *info = infos; info; info = info->next) {
            if (!fits(info, quirks) || listed_before(infos, info, quirks)) continue;
            if (*count < capacity) fill_device(lib, file, info, &devices[*count]);
            ++*count;
        }
        if (infos) lib->freeinfo(infos);
    }
    if (*count) return PPLX_OK;
    if (had_no_descriptor(error)) return PPLX_NATIVE;
    return fabric_fail(error, PPLX_UNAVAILABLE, FI_ENODATA,
                       "%s (libfabric %u.%u) offers no device of %s at %s%s: name another library, provider or node, "
                       "or pip install 'pplx_async[fabric]'",
                       file, FI_MAJOR(lib->version()), FI_MINOR(lib->version()),
                       parsed.provider ? parsed.provider->name : "efa, tcp or tcp;ofi_rxm", parsed.node,
                       parsed.cuda ? " for CUDA memory" : "");
}

/* *info: ours to free; NULL where there is none. */
static pplx_status find_device(const pplx_libfabric *lib, const fabric_options *options, const fabric_quirks *quirks,
                               bool cuda, const char *device, struct fi_info **info) {
    struct fi_info *infos = NULL, *found;
    *info = NULL;
    if (get_infos(lib, options, quirks, cuda, &infos) == PPLX_NO_MEMORY) return PPLX_NO_MEMORY;
    for (found = infos; found; found = found->next)
        if (fits(found, quirks) && strcmp(found->domain_attr->name, device) == 0) break;
    if (found) *info = lib->dupinfo(found);
    if (infos) lib->freeinfo(infos);
    return found && !*info ? PPLX_NO_MEMORY : PPLX_OK;
}

pplx_status fabric_find(const pplx_libfabric *lib, const char *file, const fabric_options *options, const char *device,
                        struct fi_info **info, const fabric_quirks **quirks, pplx_error *error) {
    for (size_t i = 0; i < FABRIC_NQUIRKS; i++) {
        const fabric_quirks *candidate = &fabric_quirk_table[i];
        const bool cuda = options->cuda || (options->cuda_too && candidate->gpus);
        if (options->provider && options->provider != candidate) continue;
        pplx_status status = find_device(lib, options, candidate, cuda, device, info);
        if (status == PPLX_OK && !*info && cuda && !options->cuda)
            status = find_device(lib, options, candidate, false, device, info);
        if (status != PPLX_OK) return fabric_fail(error, status, 0, "out of memory");
        if (*info) {
            *quirks = candidate;
            return PPLX_OK;
        }
    }
    if (had_no_descriptor(error)) return PPLX_NATIVE;
    return fabric_fail(error, PPLX_UNAVAILABLE, FI_ENODATA, "%s has no device \"%s\" of %s at %s%s", file, device,
                       options->provider ? options->provider->name : "efa, tcp or tcp;ofi_rxm", options->node,
                       options->cuda ? " for CUDA memory" : "");
}

#else
typedef int pplx_fabric_discover_left_out; /* ISO C wants something in every file */
#endif
