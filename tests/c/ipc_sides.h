/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the tests of the ipc provider stand on: an end with two regions, one that peers can map and
 * one of ordinary memory; ops that remember what became of them; loops that poll both ends until
 * something has happened, or fail. */
#ifndef PPLX_TESTS_IPC_SIDES_H
#define PPLX_TESTS_IPC_SIDES_H

#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/mman.h>

#include "check.h"
#include "pplx_async/provider.h"

extern const pplx_provider pplx_provider_ipc;
static const pplx_provider *const ipc = &pplx_provider_ipc;

enum { ARENA = 4 << 20, MAX_IMMS = 1 << 14, KINDS = 2 };
enum kind { MAPPED = 0, PLAIN = 1 }; /* which of a side's two regions */
static const double PATIENCE = 30.0; /* seconds: long enough for a busy machine under a sanitizer */

typedef struct side {
    pplx_provider_domain *domain;
    pplx_provider_endpoint *endpoint;
    unsigned char address[PPLX_ADDRESS_BYTES];
    size_t address_nbytes;
    int memfd;
    unsigned char *arena[KINDS];
    pplx_provider_mr *mr[KINDS];
    pplx_remote_key key[KINDS];
    uint32_t imms[MAX_IMMS];
    size_t nimms;
} side;

/* An op with what became of it. */
typedef struct watched {
    pplx_op op; /* first, so that a completion's op is a watched */
    int completions;
    int status;
    uint64_t nbytes;
} watched;

/* An allocation as an engine makes it. */
__attribute__((unused)) static unsigned char *sealed_memory(size_t nbytes, int *fd) {
    *fd = memfd_create("pplx-test", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(*fd >= 0 && ftruncate(*fd, (off_t)nbytes) == 0);
    CHECK(fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
    CHECK(memory != MAP_FAILED);
    return memory;
}

__attribute__((unused)) static pplx_provider_mr *register_memory(side *s, void *address, size_t nbytes, int fd,
                                                                 uint64_t fd_offset, uint32_t access,
                                                                 pplx_remote_key *key) {
    pplx_error error = {0};
    pplx_provider_mr *mr = NULL;
    pplx_memory memory = {
        .device = -1, .address = (uintptr_t)address, .nbytes = nbytes, .fd = fd, .fd_offset = fd_offset};
    if (ipc->mr_open(s->domain, &memory, access, &mr, key, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
    return mr;
}

__attribute__((unused)) static void side_open_with(side *s, const pplx_option *options, size_t noptions) {
    const uint32_t access = PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
    pplx_error error = {0};
    memset(s, 0, sizeof *s);
    if (ipc->domain_open("host", options, noptions, &s->domain, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
    s->arena[MAPPED] = sealed_memory(ARENA, &s->memfd);
    s->arena[PLAIN] = calloc(1, ARENA);
    CHECK(s->arena[PLAIN]);
    s->mr[MAPPED] = register_memory(s, s->arena[MAPPED], ARENA, s->memfd, 0, access, &s->key[MAPPED]);
    s->mr[PLAIN] = register_memory(s, s->arena[PLAIN], ARENA, -1, 0, access, &s->key[PLAIN]);
}

__attribute__((unused)) static void side_open(side *s) { side_open_with(s, NULL, 0); }

__attribute__((unused)) static void side_listen(side *s) {
    pplx_error error = {0};
    s->address_nbytes = sizeof s->address;
    if (ipc->endpoint_open(s->domain, &s->endpoint, s->address, &s->address_nbytes, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

__attribute__((unused)) static void side_connect(side *s, const side *to) {
    pplx_error error = {0};
    if (ipc->endpoint_connect(s->endpoint, to->address, to->address_nbytes, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

__attribute__((unused)) static size_t side_poll(side *s) {
    pplx_completion completions[16];
    size_t count = ipc->poll(s->domain, completions, 16);
    for (size_t i = 0; i < count; i++) {
        if (completions[i].kind == PPLX_COMPLETION_IMM) {
            CHECK(completions[i].op == NULL);
            s->imms[s->nimms++ % MAX_IMMS] = completions[i].imm;
            continue;
        }
        watched *w = (watched *)completions[i].op;
        w->completions++;
        w->status = completions[i].status;
        w->nbytes = completions[i].nbytes;
    }
    return count;
}

static inline void poll_both(side *a, side *b) {
    side_poll(a);
    if (b) side_poll(b);
}

__attribute__((unused)) static void close_endpoint(side *s, side *other) {
    uint64_t start = check_now_ns();
    pplx_status status;
    while ((status = ipc->endpoint_close(s->endpoint)) == PPLX_UNRELEASED) {
        poll_both(s, other);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(status, PPLX_OK);
    s->endpoint = NULL;
}

__attribute__((unused)) static void side_close(side *s) {
    if (s->endpoint) close_endpoint(s, NULL);
    for (int i = 0; i < KINDS; i++)
        if (s->mr[i]) CHECK_EQ(ipc->mr_close(s->mr[i]), PPLX_OK);
    ipc->domain_close(s->domain);
    munmap(s->arena[MAPPED], ARENA);
    close(s->memfd);
    free(s->arena[PLAIN]);
}

/* From the side's memory of one kind into the peer's of the other, or of the same. */
__attribute__((unused)) static pplx_work_request request_of(side *s, enum kind from, const side *to, enum kind into,
                                                            watched *w, uint32_t opcode, uint64_t offset,
                                                            uint64_t nbytes, uint32_t imm) {
    memset(w, 0, sizeof *w);
    return (pplx_work_request){.op = &w->op,
                               .local_address = (uintptr_t)s->arena[from] + offset,
                               .nbytes = nbytes,
                               .local_mr = s->mr[from],
                               .remote_address = to ? to->key[into].base + offset : 0,
                               .remote_key = to ? to->key[into].key : 0,
                               .opcode = opcode,
                               .imm = imm};
}

enum { MOST_SEGMENTS = 32 };

/* Segments in places of `room` bytes each, all over both sides, none twice. Makes one request of them, if there are
 * two or more. */
__attribute__((unused)) static void scatter(pplx_work_request *request, pplx_segment *segments, uint32_t count,
                                            uint64_t room, uint64_t *random) {
    request->nbytes = 0;
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t nbytes = 1 + check_random(random) % room, slack = room - nbytes + 1;
        segments[i] = (pplx_segment){.local = room * (i * 7 % MOST_SEGMENTS) + check_random(random) % slack,
                                     .remote = room * ((count - i) * 5 % MOST_SEGMENTS) + check_random(random) % slack,
                                     .nbytes = nbytes,
                                     .pages = 1};
        request->nbytes += nbytes;
    }
    request->local_address += segments[0].local;
    request->remote_address += segments[0].remote;
    request->nsegments = (uint16_t)count;
    request->segments = segments;
}

/* `to` is what it was before, but for the segments. */
__attribute__((unused)) static void check_scattered(const pplx_work_request *request, const unsigned char *from,
                                                    const unsigned char *to, unsigned char *before, uint64_t nbytes) {
    const bool read = request->opcode == PPLX_READ;
    for (uint32_t i = 0; i < request->nsegments; i++) {
        const pplx_segment *segment = &request->segments[i];
        memcpy(before + (read ? segment->local : segment->remote), from + (read ? segment->remote : segment->local),
               segment->nbytes);
    }
    CHECK(memcmp(before, to, nbytes) == 0);
}

/* Post one, retrying "again" as an engine would. PPLX_OK, or why not. */
__attribute__((unused)) static pplx_status post(side *s, side *other, const pplx_work_request *request) {
    uint64_t start = check_now_ns();
    for (;;) {
        size_t posted = 9;
        int32_t native = 9;
        pplx_status status = ipc->post(s->endpoint, request, 1, &posted, &native);
        CHECK_EQ(posted, status == PPLX_OK);
        if (status != PPLX_AGAIN) return status;
        poll_both(s, other);
        check_patience(start, PATIENCE);
    }
}

__attribute__((unused)) static int wait_for(side *s, side *other, const watched *w) {
    uint64_t start = check_now_ns();
    while (!w->completions) {
        poll_both(s, other);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(w->completions, 1);
    return w->status;
}

__attribute__((unused)) static void wait_imms(side *s, side *other, size_t count) {
    uint64_t start = check_now_ns();
    while (s->nimms < count) {
        poll_both(s, other);
        check_patience(start, PATIENCE);
    }
}

__attribute__((unused)) static void run_for(side *a, side *b, double seconds) {
    uint64_t end = check_now_ns() + (uint64_t)(seconds * 1e9);
    do poll_both(a, b); /* once at least, however long we were kept from it */
    while (check_now_ns() < end);
}

/* Do it, wait for it, say how it ended. */
__attribute__((unused)) static int perform(side *s, side *other, const pplx_work_request *request) {
    pplx_status status = post(s, other, request);
    return status == PPLX_OK ? wait_for(s, other, (const watched *)request->op) : (int)status;
}

__attribute__((unused)) static void fill(unsigned char *bytes, size_t nbytes, unsigned seed) {
    for (size_t i = 0; i < nbytes; i++) bytes[i] = (unsigned char)(seed + i * 7 + (i >> 8));
}

__attribute__((unused)) static void pair_open_with(side *a, side *b, const pplx_option *options, size_t noptions) {
    side_open_with(a, options, noptions);
    side_open_with(b, options, noptions);
    side_listen(a);
    side_listen(b);
    side_connect(a, b);
    side_connect(b, a);
}

__attribute__((unused)) static void pair_open(side *a, side *b) { pair_open_with(a, b, NULL, 0); }

__attribute__((unused)) static void pair_close(side *a, side *b) {
    if (a->endpoint) close_endpoint(a, b);
    if (b->endpoint) close_endpoint(b, NULL);
    side_close(a);
    side_close(b);
}

/* Sleep as an engine does: arm, and block for at most `ms` if that is allowed. True: it slept. */
__attribute__((unused)) static bool doze(side *s, int ms) {
    if (ipc->arm(s->domain) != PPLX_OK) return false;
    struct pollfd fd = {.fd = ipc->wait_fd(s->domain), .events = POLLIN};
    poll(&fd, 1, ms);
    return true;
}

#endif
