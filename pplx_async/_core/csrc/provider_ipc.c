/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The ipc provider: between processes of one host and one user, over shared memory. This file:
 * options, discover, endpoints, the ops table. The map of the rest is in ipc_internal.h. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ipc_internal.h"

static const char device_name[] = "host";
static const char address_magic[8] = {'P', 'P', 'L', 'X', '-', 'I', 'P', 'C'};

/* ------------------------------------------------------------------ options */

/* Decimal digits and nothing else; strtoul() would take signs and blanks. */
static bool read_number(const char *text, uint32_t *value) {
    uint64_t sum = 0;
    if (!*text) return false;
    for (; *text; text++) {
        if (*text < '0' || *text > '9' || sum > UINT32_MAX) return false;
        sum = sum * 10 + (uint64_t)(*text - '0');
    }
    *value = (uint32_t)sum;
    return sum <= UINT32_MAX;
}

static pplx_status read_options(ipc_options *options, const pplx_option *given, size_t count, pplx_error *error) {
    *options = (ipc_options){.slots = 4096, .staging = 4 << 20, .holders_ms = 4000, .gpu_ms = 1000};
    for (size_t i = 0; i < count; i++) {
        const char *key = given[i].key ? given[i].key : "", *value = given[i].value ? given[i].value : "";
        if (strcmp(key, "ring_slots") == 0) {
            if (!read_number(value, &options->slots) || !ipc_inbox_sizes_valid(options->slots, IPC_MIN_STAGING))
                return ipc_fail(error, PPLX_INVALID, 0,
                                "ipc option 'ring_slots' takes a power of two, %d to %d, not '%.60s'", IPC_MIN_SLOTS,
                                IPC_MAX_SLOTS, value);
        } else if (strcmp(key, "staging_nbytes") == 0) {
            if (!read_number(value, &options->staging) || !ipc_inbox_sizes_valid(IPC_MIN_SLOTS, options->staging))
                return ipc_fail(error, PPLX_INVALID, 0,
                                "ipc option 'staging_nbytes' takes a multiple of %d, %d to %d, not '%.60s'", IPC_PAGE,
                                IPC_MIN_STAGING, IPC_MAX_STAGING, value);
        } else if (strcmp(key, "holders_ms") == 0) {
            if (!read_number(value, &options->holders_ms))
                return ipc_fail(error, PPLX_INVALID, 0, "ipc option 'holders_ms' takes a number, not '%.60s'", value);
        } else if (strcmp(key, "gpu_ms") == 0) {
            if (!read_number(value, &options->gpu_ms))
                return ipc_fail(error, PPLX_INVALID, 0, "ipc option 'gpu_ms' takes a number, not '%.60s'", value);
        } else if (strcmp(key, "vm_writev") == 0) {
            if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
                return ipc_fail(error, PPLX_INVALID, 0, "ipc option 'vm_writev' takes 0 or 1, not '%.60s'", value);
            options->vm_writev = value[0] == '1';
        } else if (strcmp(key, "libcuda") == 0) {
            if (strlen(value) >= sizeof options->libcuda)
                return ipc_fail(error, PPLX_INVALID, 0, "ipc option 'libcuda' takes a path, not '%.60s ...'", value);
            memcpy(options->libcuda, value, strlen(value) + 1);
        } else {
            return ipc_fail(error, PPLX_INVALID, 0, "ipc has no option '%.60s'", key);
        }
    }
    return PPLX_OK;
}

/* ------------------------------------------------------------------ discover, domain */

/* What there is none of now is not missing: nobody should do without ipc for that. */
static pplx_status missing(int native) {
    const bool now = native == EMFILE || native == ENFILE || native == ENOMEM;
    return now ? PPLX_NATIVE : PPLX_UNAVAILABLE;
}

/* What this kernel, or a sandbox round us, may lack. */
static pplx_status probe(pplx_error *error) {
    uint8_t name[IPC_TOKEN_BYTES];
    int memory = pplx_ipc_memfd("pplx-ipc-probe", IPC_PAGE);
    if (memory < 0)
        return ipc_fail(error, missing(errno), errno, "no shared memory: memfd_create: %s", strerror(errno));
    close(memory);
    int process = pplx_ipc_pidfd(getpid());
    if (process < 0)
        return ipc_fail(error, missing(errno), errno, "a peer's death can't be seen: pidfd_open: %s (Linux 5.3 has it)",
                        strerror(errno));
    close(process);
    int listener = pplx_ipc_random(name, sizeof name) ? pplx_ipc_listen(name) : -1;
    if (listener < 0) return ipc_fail(error, missing(errno), errno, "no unix sockets: %s", strerror(errno));
    close(listener);
    return PPLX_OK;
}

static pplx_status ipc_discover(const pplx_option *given, size_t noptions, pplx_device *devices, size_t capacity,
                                size_t *count, pplx_error *error) {
    ipc_options options;
    *count = 0;
    pplx_status status = read_options(&options, given, noptions, error);
    if (status == PPLX_OK) status = probe(error);
    if (status != PPLX_OK) return status;
    if (capacity > 0) {
        devices[0] = (pplx_device){.provider = "ipc", .address = "this host"};
        memcpy(devices[0].name, device_name, sizeof device_name);
        snprintf(devices[0].description, sizeof devices[0].description,
                 "shared memory: reaches processes of this host and user");
    }
    *count = 1;
    return PPLX_OK;
}

static pplx_status ipc_domain_open(const char *device, const pplx_option *given, size_t noptions,
                                   pplx_provider_domain **out, pplx_error *error) {
    ipc_options options;
    pplx_status status = read_options(&options, given, noptions, error);
    if (status != PPLX_OK) return status;
    if (strcmp(device, device_name) != 0)
        return ipc_fail(error, PPLX_UNAVAILABLE, ENODEV, "ipc has no device '%.60s': it has '%s'", device, device_name);
    status = probe(error);
    ipc_domain *domain = NULL;
    if (status == PPLX_OK) status = pplx_ipc_domain_open(&options, &domain, error);
    if (status == PPLX_OK) *out = (pplx_provider_domain *)domain;
    return status;
}

static void ipc_domain_close(pplx_provider_domain *domain) { pplx_ipc_domain_close((ipc_domain *)domain); }

static void ipc_domain_caps(pplx_provider_domain *handle, pplx_caps *caps) {
    const ipc_domain *domain = (const ipc_domain *)handle;
    const bool cuda = pplx_cuda_found(pplx_ipc_libcuda(domain)) != NULL;
    *caps = (pplx_caps){
        .flags = PPLX_CAP_READ | PPLX_CAP_WAIT_FD | PPLX_CAP_FENCE | PPLX_CAP_PROMPT | PPLX_CAP_DEATH |
                 (cuda ? PPLX_CAP_CUDA : 0),
        .max_inflight = IPC_MAX_INFLIGHT,
        .max_inflight_bytes = 256u << 20,
        .max_message = IPC_MAX_MESSAGE,
        .eager_posts = 16,
        .posts_per_turn = 64,
        .max_segments = IPC_MAX_SEGMENTS,
    };
    char direct[sizeof caps->description / 2];
    pplx_ipc_describe_direct(domain, direct, sizeof direct);
    snprintf(caps->description, sizeof caps->description,
             "shared memory of this host: mapped where the engine allocated it, else through %u KiB of staging%s%s",
             domain->options.staging >> 10, direct, cuda ? "; GPU memory by CUDA IPC" : "");
}

/* ------------------------------------------------------------------ endpoints */

static pplx_status ipc_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **out, void *address,
                                     size_t *nbytes, pplx_error *error) {
    ipc_domain *domain = (ipc_domain *)handle;
    if (*nbytes < sizeof(ipc_address))
        return ipc_fail(error, PPLX_INVALID, 0, "an address needs %zu bytes, there are %zu", sizeof(ipc_address),
                        *nbytes);
    ipc_endpoint *endpoint = calloc(1, sizeof *endpoint);
    if (!endpoint) return ipc_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for an endpoint");
    endpoint->domain = domain;
    endpoint->state = IPC_OPEN;
    endpoint->socket = endpoint->pidfd = endpoint->inbox_fd = -1;
    endpoint->socket_watch = (ipc_watch){IPC_WATCH_SOCKET, endpoint};
    endpoint->peer_watch = (ipc_watch){IPC_WATCH_PEER, endpoint};
    endpoint->records.size = IPC_MAX_INFLIGHT + PPLX_RESERVED_IMMS;
    endpoint->receive_records.size = IPC_MAX_INFLIGHT;
    endpoint->records.all = calloc(endpoint->records.size, sizeof(ipc_record));
    endpoint->receive_records.all = calloc(endpoint->receive_records.size, sizeof(ipc_record));
    endpoint->own.version = IPC_VERSION;
    memcpy(endpoint->own.magic, address_magic, sizeof address_magic);
    memcpy(endpoint->own.listener, domain->listener_name, IPC_TOKEN_BYTES);
    pplx_status status = PPLX_OK;
    if (!endpoint->records.all || !endpoint->receive_records.all)
        status = ipc_fail(error, PPLX_NO_MEMORY, ENOMEM, "no memory for an endpoint");
    else if (!pplx_ipc_random(endpoint->own.token, IPC_TOKEN_BYTES) || !pplx_ipc_inbox_open(endpoint))
        status = ipc_fail(error, PPLX_NATIVE, errno, "no shared memory for an endpoint: %s", strerror(errno));
    if (status != PPLX_OK) {
        pplx_ipc_disconnect(endpoint);
        free(endpoint->records.all);
        free(endpoint->receive_records.all);
        free(endpoint);
        return status;
    }
    endpoint->next = domain->endpoints;
    if (domain->endpoints) domain->endpoints->prev = endpoint;
    domain->endpoints = endpoint;
    memcpy(address, &endpoint->own, sizeof endpoint->own);
    *nbytes = sizeof endpoint->own;
    *out = (pplx_provider_endpoint *)endpoint;
    return PPLX_OK;
}

static pplx_status ipc_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                        pplx_error *error) {
    ipc_endpoint *endpoint = (ipc_endpoint *)handle;
    ipc_address peer;
    if (endpoint->state != IPC_OPEN || endpoint->closing)
        return ipc_fail(error, PPLX_INVALID, 0, "the endpoint is connected already");
    if (nbytes != sizeof peer)
        return ipc_fail(error, PPLX_INVALID, 0, "an ipc address has %zu bytes, not %zu", sizeof peer, nbytes);
    memcpy(&peer, address, sizeof peer);
    if (memcmp(peer.magic, address_magic, sizeof address_magic) != 0 || peer.reserved != 0)
        return ipc_fail(error, PPLX_INVALID, 0, "not an ipc address");
    if (peer.version != IPC_VERSION)
        return ipc_fail(error, PPLX_INVALID, 0, "an ipc address of version %u, this is version %d", peer.version,
                        IPC_VERSION);
    if (memcmp(peer.token, endpoint->own.token, IPC_TOKEN_BYTES) == 0)
        return ipc_fail(error, PPLX_INVALID, 0, "the endpoint's own address");
    endpoint->peer = peer;
    endpoint->state = IPC_MEETING;
    const int native = pplx_ipc_meet(endpoint);
    if (native == 0 || native == ECONNREFUSED) return PPLX_OK; /* of the latter the first post tells */
    return ipc_fail(error, PPLX_NATIVE, native, "no connection inside this host: %s", strerror(native));
}

static int ipc_wait_fd(pplx_provider_domain *domain) { return ((const ipc_domain *)domain)->epoll_fd; }

const pplx_provider pplx_provider_ipc = {
    .size = sizeof(pplx_provider),
    .abi = PPLX_PROVIDER_ABI,
    .name = "ipc",
    .discover = ipc_discover,
    .domain_open = ipc_domain_open,
    .domain_close = ipc_domain_close,
    .domain_caps = ipc_domain_caps,
    .endpoint_open = ipc_endpoint_open,
    .endpoint_connect = ipc_endpoint_connect,
    .endpoint_close = pplx_ipc_endpoint_close,
    .mr_open = pplx_ipc_mr_open,
    .mr_close = pplx_ipc_mr_close,
    .post = pplx_ipc_post,
    .poll = pplx_ipc_poll,
    .arm = pplx_ipc_arm,
    .woken_from = pplx_ipc_woken_from,
    .wait_fd = ipc_wait_fd,
};
