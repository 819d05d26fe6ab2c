/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Which devices there are: options, and why each can be used or can't. */
#if PPLX_HAVE_LIBIBVERBS

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "verbs_internal.h"

enum { MOST_FOUND = 64, WHY_BYTES = 128 };

pplx_status verbs_fail(pplx_error *error, pplx_status status, int native, const char *format, ...) {
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

/* Not ibv_fork_init(): it keeps the pages that a device holds from a child, whole, with all else that lies there. A
 * child of Python's then dies where it touches an object of its own. Kernels copy such pages for it since 5.12. */
pplx_status verbs_load(const verbs_options *options, const pplx_libibverbs **lib, const char **file,
                       pplx_error *error) {
    const void *functions = NULL;
    pplx_status status = pplx_library_load(&pplx_library_libibverbs, options->library, &functions, file, error);
    if (status != PPLX_OK) return status;
    *lib = functions;
    return PPLX_OK;
}

/* The options that are numbers, with their range; -1 of a `low` of -1 is said by leaving it out. */
static const struct number_option {
    const char *key;
    size_t offset;
    long low, high;
} number_options[] = {
    {"port", offsetof(verbs_options, port), 1, 254},
    {"gid_index", offsetof(verbs_options, gid_index), 0, VERBS_GID_ENTRIES - 1},
    {"pkey_index", offsetof(verbs_options, pkey_index), 0, 65535},
    {"traffic_class", offsetof(verbs_options, traffic_class), 0, 255},
    {"service_level", offsetof(verbs_options, service_level), 0, 15},
    {"timeout", offsetof(verbs_options, timeout), 1, 31},
    {"retry_count", offsetof(verbs_options, retry_count), 0, 7},
    {"relaxed_ordering", 0, 0, 1},
    {"message_nbytes", 0, 1, 1 << 24},
};

static pplx_status parse_number(const char *key, const char *value, verbs_options *out, pplx_error *error) {
    const struct number_option *found = NULL;
    for (size_t i = 0; i < sizeof number_options / sizeof number_options[0]; i++)
        if (strcmp(number_options[i].key, key) == 0) found = &number_options[i];
    if (!found)
        return verbs_fail(error, PPLX_INVALID, 0,
                          "unknown option \"%s\"; one of: library, node, port, gid_index, pkey_index, traffic_class, "
                          "service_level, timeout, retry_count, relaxed_ordering, message_nbytes",
                          key);
    char *end = NULL;
    errno = 0;
    const long number = strtol(value, &end, 10);
    if (errno || end == value || *end || number < found->low || number > found->high)
        return verbs_fail(error, PPLX_INVALID, 0, "option %s: \"%s\" is not a number from %ld to %ld", key, value,
                          found->low, found->high);
    if (strcmp(key, "relaxed_ordering") == 0)
        out->relaxed_ordering = number != 0;
    else if (strcmp(key, "message_nbytes") == 0)
        out->message_nbytes = (uint32_t)number;
    else
        *(int *)(void *)((char *)out + found->offset) = (int)number;
    return PPLX_OK;
}

/* 2^14 * 4.096 us, seven times: a peer that is dead is noticed after half a second, and a packet may be lost six
 * times in a row. Not eight times: for rdma_rxe that is for ever. */
pplx_status verbs_options_parse(const pplx_option *options, size_t noptions, verbs_options *out, pplx_error *error) {
    *out = (verbs_options){.port = -1,
                           .gid_index = -1,
                           .pkey_index = -1,
                           .timeout = 14,
                           .retry_count = 6,
                           .message_nbytes = 16 << 10,
                           .relaxed_ordering = true};
    for (size_t i = 0; i < noptions; i++) {
        const char *key = options[i].key, *value = options[i].value;
        if (!key || !value) return verbs_fail(error, PPLX_INVALID, 0, "option %zu has no key or no value", i);
        if (strcmp(key, "library") == 0) {
            out->library = value;
        } else if (strcmp(key, "libcuda") == 0) {
            out->libcuda = value;
        } else if (strcmp(key, "node") == 0) {
            out->node = value;
        } else {
            pplx_status status = parse_number(key, value, out, error);
            if (status != PPLX_OK) return status;
        }
    }
    return PPLX_OK;
}

/* A port of a device that can be used. */
typedef struct found {
    pplx_device device;
    bool at_node;
} found;

static int by_preference(const void *a, const void *b) {
    const found *x = a, *y = b;
    if (x->at_node != y->at_node) return x->at_node ? -1 : 1;
    if (x->device.bits_per_second != y->device.bits_per_second)
        return x->device.bits_per_second > y->device.bits_per_second ? -1 : 1;
    return strcmp(x->device.name, y->device.name);
}

static void fill_device(const char *file, const char *name, bool only_port, const verbs_port *port, found *out) {
    pplx_device *device = &out->device;
    memset(out, 0, sizeof *out);
    out->at_node = port->at_node;
    if (only_port)
        snprintf(device->name, sizeof device->name, "%s", name);
    else
        snprintf(device->name, sizeof device->name, "%.50s:%u", name, port->number);
    snprintf(device->provider, sizeof device->provider, "verbs");
    if (port->ethernet)
        verbs_gid_format(&port->gids[0].gid, device->address, sizeof device->address);
    else
        snprintf(device->address, sizeof device->address, "LID %u", port->attr.lid);
    snprintf(device->description, sizeof device->description, "libibverbs (%s), port %u: %s, GID %d%s, MTU %u", file,
             port->number, port->ethernet ? "RoCE v2" : "InfiniBand", port->gids[0].index,
             port->at_node ? ", the address that the engine listens on" : "",
             verbs_mtu_nbytes((uint8_t)port->attr.active_mtu));
    const size_t used = strlen(device->description);
    verbs_pkey_format(port, device->description + used, sizeof device->description - used);
    device->bits_per_second = port->bits_per_second;
}

/* What no port of the device can help. NULL: nothing. */
static const char *unfit(const struct ibv_device *device) {
    if (device->transport_type == IBV_TRANSPORT_IWARP) return "iWARP, which has no immediates";
    if (device->transport_type != IBV_TRANSPORT_IB) return "neither InfiniBand nor RoCE (EFA is libfabric's)";
    if (device->node_type != IBV_NODE_CA) return "a switch or a router";
    return NULL;
}

static void say(char *reasons, size_t nbytes, const char *device, const char *why) {
    const size_t used = strlen(reasons);
    snprintf(reasons + used, nbytes - used, "%s%s: %s", used ? "; " : "", device, why);
}

/* *native: why it can't be opened just now, which says nothing of the device. */
static size_t look_at(const pplx_libibverbs *lib, const char *file, struct ibv_device *device,
                      const verbs_options *options, found *out, size_t capacity, char *reasons, size_t nbytes,
                      int *native) {
    const char *name = lib->get_device_name(device);
    size_t count = 0;
    if (unfit(device)) {
        say(reasons, nbytes, name, unfit(device));
        return 0;
    }
    struct ibv_context *context = lib->open_device(device);
    struct ibv_device_attr attr;
    if (!context || lib->query_device(context, &attr)) {
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM) *native = errno;
        say(reasons, nbytes, name, strerror(errno));
        if (context) lib->close_device(context);
        return 0;
    }
    for (int p = 1; p <= attr.phys_port_cnt && count < capacity; p++) {
        verbs_port port;
        char why[WHY_BYTES];
        if (options->port > 0 && options->port != p) continue;
        if (verbs_port_choose(lib, context, (uint8_t)p, options, &port, why, sizeof why))
            fill_device(file, name, p == 1, &port, &out[count++]);
        else
            say(reasons, nbytes, name, why);
    }
    lib->close_device(context);
    return count;
}

pplx_status verbs_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                           size_t *count, pplx_error *error) {
    verbs_options parsed;
    const pplx_libibverbs *lib = NULL;
    const char *file = NULL;
    char reasons[PPLX_TEXT_BYTES] = "";
    *count = 0;
    pplx_status status = verbs_options_parse(options, noptions, &parsed, error);
    if (status == PPLX_OK) status = verbs_load(&parsed, &lib, &file, error);
    if (status != PPLX_OK) return status;

    int n = 0, native = 0;
    struct ibv_device **list = lib->get_device_list(&n);
    if (!list && errno != ENOSYS)
        return verbs_fail(error, PPLX_NATIVE, errno, "ibv_get_device_list: %s", strerror(errno));
    found *all = calloc(MOST_FOUND, sizeof *all);
    size_t nall = 0;
    for (int i = 0; list && all && i < n; i++)
        nall += look_at(lib, file, list[i], &parsed, all + nall, MOST_FOUND - nall, reasons, sizeof reasons, &native);
    if (list) lib->free_device_list(list);
    if (!all) return verbs_fail(error, PPLX_NO_MEMORY, 0, "out of memory");
    qsort(all, nall, sizeof *all, by_preference);
    for (size_t i = 0; i < nall && i < capacity; i++) devices[i] = all[i].device;
    free(all);
    *count = nall;
    if (nall) return PPLX_OK;
    if (native) return verbs_fail(error, PPLX_NATIVE, native, "ibv_open_device: %s", reasons);
    if (reasons[0]) return verbs_fail(error, PPLX_UNAVAILABLE, 0, "no RDMA device can be used: %s", reasons);
    return verbs_fail(error, PPLX_UNAVAILABLE, 0,
                      "this machine has no RDMA device (none under /sys/class/infiniband): a NIC and its driver, or "
                      "soft-RoCE (rdma link add rxe0 type rxe netdev eth0), and the package ibverbs-providers");
}

pplx_status verbs_find(const pplx_libibverbs *lib, const char *file, const verbs_options *options, const char *device,
                       struct ibv_context **context, verbs_port *port, pplx_error *error) {
    const char *colon = strchr(device, ':');
    const size_t length = colon ? (size_t)(colon - device) : strlen(device);
    const long number = colon ? strtol(colon + 1, NULL, 10) : options->port > 0 ? options->port : 1;
    char why[WHY_BYTES];
    int n = 0;
    struct ibv_device **list = lib->get_device_list(&n), *found = NULL;
    *context = NULL;
    for (int i = 0; list && i < n && !found; i++) {
        const char *name = lib->get_device_name(list[i]);
        if (strlen(name) == length && memcmp(name, device, length) == 0) found = list[i];
    }
    pplx_status status = PPLX_OK;
    if (!found || number < 1 || number > 254)
        status = verbs_fail(error, PPLX_UNAVAILABLE, 0, "libibverbs (%s) has no device %s", file, device);
    else if (unfit(found))
        status = verbs_fail(error, PPLX_UNAVAILABLE, 0, "%s: %s", device, unfit(found));
    else if (!(*context = lib->open_device(found)))
        status = verbs_fail(error, PPLX_NATIVE, errno, "ibv_open_device of %s: %s", device, strerror(errno));
    if (list) lib->free_device_list(list);
    if (status != PPLX_OK) return status;
    if (verbs_port_choose(lib, *context, (uint8_t)number, options, port, why, sizeof why)) return PPLX_OK;
    lib->close_device(*context);
    *context = NULL;
    return verbs_fail(error, PPLX_UNAVAILABLE, 0, "%s: %s", device, why);
}

#else
typedef int pplx_verbs_discover_left_out;
#endif
