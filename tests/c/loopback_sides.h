/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the provider tests share: a "side" is a domain with one endpoint and one registered buffer,
 * and two sides make a pair. `provider` is whichever provider the program tests. */
#ifndef PPLX_TESTS_LOOPBACK_SIDES_H
#define PPLX_TESTS_LOOPBACK_SIDES_H

#include <poll.h>
#include <stdbool.h>

#include "check.h"
#include "pplx_async/provider.h"

#ifdef PPLX_TESTS_DEVICE /* the program sets `provider` */
static const pplx_provider *provider;
static const char *const pair_devices[2] = {PPLX_TESTS_DEVICE, PPLX_TESTS_DEVICE};
#else
extern const pplx_provider pplx_provider_loopback;
static const pplx_provider *provider = &pplx_provider_loopback;
static const char *const pair_devices[2] = {"loop0", "loop1"};
#endif

#define UNUSED __attribute__((unused))

typedef struct side {
    pplx_provider_domain *domain;
    pplx_provider_endpoint *endpoint; /* NULL: the case has closed it */
    uint8_t address[PPLX_ADDRESS_BYTES];
    size_t naddress;
    uint8_t *buffer;
    size_t nbytes;
    pplx_provider_mr *mr; /* NULL: the case has closed it */
    pplx_remote_key key;
} side;

/* "key=value key=value" */
typedef struct option_text {
    char text[256];
    pplx_option options[16];
    size_t count;
} option_text;

UNUSED static void parse_options(option_text *parsed, const char *text) {
    parsed->count = 0;
    CHECK(strlen(text) < sizeof parsed->text);
    strcpy(parsed->text, text);
    char *rest = NULL;
    for (char *word = strtok_r(parsed->text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equals = strchr(word, '=');
        CHECK(equals && parsed->count < 16);
        *equals = '\0';
        parsed->options[parsed->count++] = (pplx_option){word, equals + 1};
    }
}

UNUSED static void side_open(side *self, const char *device, const char *options, size_t nbytes) {
    option_text parsed;
    pplx_error error = {0};
    parse_options(&parsed, options);
    *self = (side){.nbytes = nbytes, .naddress = PPLX_ADDRESS_BYTES, .buffer = calloc(1, nbytes)};
    CHECK(self->buffer);
    CHECK_EQ(provider->domain_open(device, parsed.options, parsed.count, &self->domain, &error), PPLX_OK);
    CHECK_EQ(provider->endpoint_open(self->domain, &self->endpoint, self->address, &self->naddress, &error), PPLX_OK);
    pplx_memory memory = {.device = -1, .address = (uint64_t)(uintptr_t)self->buffer, .nbytes = nbytes};
    CHECK_EQ(provider->mr_open(self->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &self->mr,
                               &self->key, &error),
             PPLX_OK);
}

UNUSED static void side_close(side *self) {
    if (self->endpoint) CHECK_EQ(provider->endpoint_close(self->endpoint), PPLX_OK);
    if (self->mr) CHECK_EQ(provider->mr_close(self->mr), PPLX_OK);
    provider->domain_close(self->domain);
    free(self->buffer);
}

UNUSED static void side_connect(side *a, side *b, pplx_error *error) {
    CHECK_EQ(provider->endpoint_connect(a->endpoint, b->address, b->naddress, error), PPLX_OK);
    CHECK_EQ(provider->endpoint_connect(b->endpoint, a->address, a->naddress, error), PPLX_OK);
}

UNUSED static void pair_open(side *a, side *b, const char *options, size_t nbytes) {
    pplx_error error = {0};
    side_open(a, pair_devices[0], options, nbytes);
    side_open(b, pair_devices[1], options, nbytes);
    side_connect(a, b, &error);
}

UNUSED static void pair_close(side *a, side *b) {
    side_close(a);
    side_close(b);
}

/* From `from`'s buffer at `local`, to or from `to`'s at `remote`; `to` is NULL for two-sided. */
UNUSED static pplx_work_request request(const side *from, const side *to, uint32_t opcode, pplx_op *op, size_t local,
                                        size_t remote, size_t nbytes) {
    return (pplx_work_request){
        .op = op,
        .local_address = (uint64_t)(uintptr_t)from->buffer + local,
        .nbytes = nbytes,
        .local_mr = from->mr,
        .remote_address = to ? to->key.base + remote : 0,
        .remote_key = to ? to->key.key : 0,
        .opcode = opcode,
    };
}

UNUSED static pplx_status post_one(side *self, const pplx_work_request *request) {
    size_t posted = 99;
    int32_t native = 0;
    pplx_status status = provider->post(self->endpoint, request, 1, &posted, &native);
    CHECK_EQ(posted, status == PPLX_OK);
    return status;
}

UNUSED static pplx_completion wait_any(side *self) {
    pplx_completion done;
    for (uint64_t start = check_now_ns(); provider->poll(self->domain, &done, 1) == 0;) check_patience(start, 10);
    return done;
}

UNUSED static void wait_op(side *self, const pplx_op *op, pplx_status status) {
    pplx_completion done = wait_any(self);
    CHECK_EQ(done.kind, PPLX_COMPLETION_OP);
    CHECK(done.op == op);
    CHECK_EQ(done.status, status);
}

/* Polls until `count` completions came, and then until none comes. */
UNUSED static void side_settle(side *self, size_t count) {
    pplx_completion done;
    for (size_t i = 0; i < count; i++) wait_any(self);
    CHECK_EQ(provider->poll(self->domain, &done, 1), 0);
}

UNUSED static bool readable(const side *self, int timeout_ms) {
    struct pollfd entry = {.fd = provider->wait_fd(self->domain), .events = POLLIN};
    return poll(&entry, 1, timeout_ms) == 1;
}

UNUSED static bool all(const uint8_t *bytes, size_t n, uint8_t value) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != value) return false;
    return true;
}

UNUSED static void fill(uint8_t *bytes, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 131 + (i >> 8) * 7 + seed * 29 + 1);
}

#endif
