/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What test_fabric.c stands on: an end of a connection with registered memory, ops that remember
 * what became of them, and loops that poll both ends until something has happened, or fail. */
#ifndef FABRIC_SIDES_H
#define FABRIC_SIDES_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "dynload.h"
#include "pplx_async/provider.h"

extern const pplx_provider pplx_provider_fabric;
static const pplx_provider *const fabric = &pplx_provider_fabric;

#define REQUIRE(condition, ...)                                           \
    do {                                                                  \
        if (!(condition)) {                                               \
            printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf("" __VA_ARGS__);                                       \
            printf("\n");                                                 \
            fflush(stdout);                                               \
            exit(1);                                                      \
        }                                                                 \
    } while (0)

enum { ARENA = 33 << 20, MAX_IMMS = 8192 };
static const double PATIENCE = 20.0; /* seconds: long enough for a busy machine under ASan */

static pplx_option options[4]; /* library, provider, more */
static size_t noptions = 2;
static char device[PPLX_NAME_BYTES];
static bool efa; /* the fake one: in this process only */
__attribute__((unused)) static char **program;

/* One end: a domain with registered memory, what it got, and up to two endpoints. */
typedef struct side {
    pplx_provider_domain *domain;
    pplx_caps caps;
    unsigned char *arena;
    pplx_provider_mr *mr;
    pplx_remote_key key;
    pplx_provider_endpoint *endpoint;
    unsigned char address[PPLX_ADDRESS_BYTES];
    size_t address_nbytes;
    uint32_t imms[MAX_IMMS];
    size_t nimms;
} side;

/* An op with what became of it. */
typedef struct watched {
    pplx_op op; /* first, so that a completion's op is a watched */
    int completions;
    int status;
    int provider_error;
    uint64_t nbytes;
} watched;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

__attribute__((unused)) static void ok(const char *name) {
    printf("ok %s\n", name);
    fflush(stdout);
}

static void side_open(side *s) {
    pplx_error error = {0};
    memset(s, 0, sizeof *s);
    REQUIRE(fabric->domain_open(device, options, noptions, &s->domain, &error) == PPLX_OK, "%s", error.text);
    fabric->domain_caps(s->domain, &s->caps);
    s->arena = calloc(1, ARENA);
    REQUIRE(s->arena, "memory");
    pplx_memory memory = {.device = -1, .address = (uintptr_t)s->arena, .nbytes = ARENA, .fd = -1};
    REQUIRE(fabric->mr_open(s->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &s->mr, &s->key,
                            &error) == PPLX_OK,
            "%s", error.text);
}

static void side_listen(side *s) {
    pplx_error error = {0};
    s->address_nbytes = sizeof s->address;
    REQUIRE(fabric->endpoint_open(s->domain, &s->endpoint, s->address, &s->address_nbytes, &error) == PPLX_OK, "%s",
            error.text);
}

static void side_connect(side *s, const side *to) {
    pplx_error error = {0};
    REQUIRE(fabric->endpoint_connect(s->endpoint, to->address, to->address_nbytes, &error) == PPLX_OK, "%s",
            error.text);
}

static size_t side_poll(side *s) {
    pplx_completion completions[16];
    size_t count = fabric->poll(s->domain, completions, 16);
    for (size_t i = 0; i < count; i++) {
        if (completions[i].kind == PPLX_COMPLETION_IMM) {
            REQUIRE(completions[i].op == NULL && s->nimms < MAX_IMMS, "an immediate has no op");
            s->imms[s->nimms++] = completions[i].imm;
            continue;
        }
        watched *w = (watched *)completions[i].op;
        w->completions++;
        w->status = completions[i].status;
        w->provider_error = completions[i].provider_error;
        w->nbytes = completions[i].nbytes;
    }
    return count;
}

static void close_endpoint(side *s, side *other) {
    double end = now() + PATIENCE;
    pplx_status status;
    while ((status = fabric->endpoint_close(s->endpoint)) == PPLX_UNRELEASED) {
        REQUIRE(!(s->caps.flags & PPLX_CAP_FENCE), "a fence does not say UNRELEASED");
        REQUIRE(now() < end, "the endpoint never closed");
        side_poll(s);
        if (other) side_poll(other);
    }
    REQUIRE(status == PPLX_OK, "status %d", status);
    s->endpoint = NULL;
}

static void side_close(side *s) {
    if (s->endpoint) close_endpoint(s, NULL);
    REQUIRE(fabric->mr_close(s->mr) == PPLX_OK, "mr_close");
    fabric->domain_close(s->domain);
    free(s->arena);
}

static pplx_work_request request_of(side *s, const side *to, watched *w, uint32_t opcode, uint64_t offset,
                                    uint64_t nbytes, uint32_t imm) {
    memset(w, 0, sizeof *w);
    return (pplx_work_request){.op = &w->op,
                               .local_address = (uintptr_t)s->arena + offset,
                               .nbytes = nbytes,
                               .local_mr = s->mr,
                               .remote_address = to ? to->key.base + offset : 0,
                               .remote_key = to ? to->key.key : 0,
                               .opcode = opcode,
                               .imm = imm};
}

/* Post one, retrying "again" as an engine would. PPLX_OK, or why not. */
static pplx_status post(side *s, side *other, const pplx_work_request *request) {
    double end = now() + PATIENCE;
    for (;;) {
        size_t posted = 9;
        int32_t native = 9;
        pplx_status status = fabric->post(s->endpoint, request, 1, &posted, &native);
        REQUIRE(posted == (status == PPLX_OK), "posted %zu with status %d", posted, status);
        if (status != PPLX_AGAIN) return status;
        REQUIRE(now() < end, "\"again\" for %g s", PATIENCE);
        side_poll(s);
        if (other) side_poll(other);
    }
}

static void wait_for(side *s, side *other, const watched *w) {
    double end = now() + PATIENCE;
    while (!w->completions) {
        REQUIRE(now() < end, "no completion");
        side_poll(s);
        if (other) side_poll(other);
    }
    REQUIRE(w->completions == 1, "completed twice");
}

static void wait_imms(side *s, side *other, size_t count) {
    double end = now() + PATIENCE;
    while (s->nimms < count) {
        REQUIRE(now() < end, "%zu of %zu immediates", s->nimms, count);
        side_poll(s);
        if (other) side_poll(other);
    }
}

__attribute__((unused)) static void run_for(side *a, side *b, double seconds) {
    for (double end = now() + seconds; now() < end;) {
        side_poll(a);
        if (b) side_poll(b);
    }
}

static void must(side *s, side *other, uint32_t opcode, uint64_t offset, uint64_t nbytes, uint32_t imm) {
    watched w;
    pplx_work_request request = request_of(s, other, &w, opcode, offset, nbytes, imm);
    pplx_status status = post(s, other, &request);
    REQUIRE(status == PPLX_OK, "post: %d", status);
    wait_for(s, other, &w);
    REQUIRE(w.status == PPLX_OK, "opcode %u of %llu B: status %d, native %d", opcode, (unsigned long long)nbytes,
            w.status, w.provider_error);
}

static void fill(unsigned char *bytes, size_t nbytes, unsigned seed) {
    for (size_t i = 0; i < nbytes; i++) bytes[i] = (unsigned char)(seed + i * 7 + (i >> 8));
}

static void pair_open(side *a, side *b) {
    side_open(a);
    side_open(b);
    side_listen(a);
    side_listen(b);
    side_connect(a, b);
    side_connect(b, a);
}

static void pair_close(side *a, side *b) {
    close_endpoint(a, b);
    close_endpoint(b, NULL);
    side_close(a);
    side_close(b);
}

#endif
