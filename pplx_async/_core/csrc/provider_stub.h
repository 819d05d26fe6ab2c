/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A provider that was compiled without the headers of its library: it says so. Nothing of it can be opened, so only
 * `discover` and `domain_open` are ever called; the others keep the table whole.
 *
 *   #define PPLX_STUB_TEXT "why, and what to do"
 *   #include "provider_stub.h"
 *   const pplx_provider pplx_provider_name = PPLX_STUB("name"); */
#ifndef PPLX_ASYNC_PROVIDER_STUB_H
#define PPLX_ASYNC_PROVIDER_STUB_H

#include <stdio.h>

#include "pplx_async/provider.h"

static pplx_status stub_unavailable(pplx_error *error) {
    if (error) {
        *error = (pplx_error){.status = PPLX_UNAVAILABLE};
        snprintf(error->text, sizeof error->text, "%s", PPLX_STUB_TEXT);
    }
    return PPLX_UNAVAILABLE;
}

static pplx_status stub_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                                 size_t *count, pplx_error *error) {
    (void)options, (void)noptions, (void)devices, (void)capacity;
    *count = 0;
    return stub_unavailable(error);
}

static pplx_status stub_domain_open(const char *device, const pplx_option *options, size_t noptions,
                                    pplx_provider_domain **domain, pplx_error *error) {
    (void)device, (void)options, (void)noptions, (void)domain;
    return stub_unavailable(error);
}

static void stub_domain_close(pplx_provider_domain *domain) { (void)domain; }

static void stub_domain_caps(pplx_provider_domain *domain, pplx_caps *caps) {
    (void)domain;
    *caps = (pplx_caps){0};
}

static pplx_status stub_endpoint_open(pplx_provider_domain *domain, pplx_provider_endpoint **endpoint, void *address,
                                      size_t *nbytes, pplx_error *error) {
    (void)domain, (void)endpoint, (void)address, (void)nbytes;
    return stub_unavailable(error);
}

static pplx_status stub_endpoint_connect(pplx_provider_endpoint *endpoint, const void *address, size_t nbytes,
                                         pplx_error *error) {
    (void)endpoint, (void)address, (void)nbytes;
    return stub_unavailable(error);
}

static pplx_status stub_endpoint_close(pplx_provider_endpoint *endpoint) {
    (void)endpoint;
    return PPLX_OK;
}

static pplx_status stub_mr_open(pplx_provider_domain *domain, const pplx_memory *memory, uint32_t access,
                                pplx_provider_mr **mr, pplx_remote_key *key, pplx_error *error) {
    (void)domain, (void)memory, (void)access, (void)mr, (void)key;
    return stub_unavailable(error);
}

static pplx_status stub_mr_close(pplx_provider_mr *mr) {
    (void)mr;
    return PPLX_OK;
}

static pplx_status stub_post(pplx_provider_endpoint *endpoint, const pplx_work_request *requests, size_t count,
                             size_t *posted, int32_t *provider_error) {
    (void)endpoint, (void)requests, (void)count;
    *posted = 0;
    *provider_error = 0;
    return PPLX_UNAVAILABLE;
}

static size_t stub_poll(pplx_provider_domain *domain, pplx_completion *completions, size_t capacity) {
    (void)domain, (void)completions, (void)capacity;
    return 0;
}

static pplx_status stub_arm(pplx_provider_domain *domain) {
    (void)domain;
    return PPLX_UNSUPPORTED;
}

static int stub_wait_fd(pplx_provider_domain *domain) {
    (void)domain;
    return -1;
}

#define PPLX_STUB(provider_name)                   \
    {                                              \
        .size = sizeof(pplx_provider),             \
        .abi = PPLX_PROVIDER_ABI,                  \
        .name = (provider_name),                   \
        .discover = stub_discover,                 \
        .domain_open = stub_domain_open,           \
        .domain_close = stub_domain_close,         \
        .domain_caps = stub_domain_caps,           \
        .endpoint_open = stub_endpoint_open,       \
        .endpoint_connect = stub_endpoint_connect, \
        .endpoint_close = stub_endpoint_close,     \
        .mr_open = stub_mr_open,                   \
        .mr_close = stub_mr_close,                 \
        .post = stub_post,                         \
        .poll = stub_poll,                         \
        .arm = stub_arm,                           \
        .wait_fd = stub_wait_fd,                   \
    }

#endif
