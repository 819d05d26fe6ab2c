/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What the tests of the verbs provider share: sides, which are domains of the fake libibverbs with an endpoint and
 * registered memory; ops that remember what became of them; and WAIT, which polls all sides until something holds. */
#ifndef TESTS_VERBS_SIDES_H
#define TESTS_VERBS_SIDES_H

#include <poll.h>
#include <stdbool.h>

#include "fake_verbs.h"
#include "pplx_async/provider.h"

extern const pplx_provider pplx_provider_verbs;
static const pplx_provider *const verbs = &pplx_provider_verbs;

#define UNUSED __attribute__((unused))

enum { ARENA = 1 << 20, MAX_IMMS = 1 << 16, MAX_SIDES = 80 };
static const double PATIENCE = 20; /* seconds: also for a busy machine and a sanitizer */

/* An op with what became of it. */
typedef struct watched {
    pplx_op op; /* first: a completion's op is a watched */
    int completions;
    int32_t status, native;
    uint64_t nbytes;
} watched;

typedef struct side {
    pplx_provider_domain *domain;
    pplx_caps caps;
    pplx_provider_endpoint *endpoint; /* NULL: the case has closed it */
    uint8_t address[PPLX_ADDRESS_BYTES];
    size_t naddress;
    uint8_t *arena;
    pplx_provider_mr *mr;
    pplx_remote_key key;
    uint32_t *imms;
    uint32_t nimms;
    const void *source; /* of the last immediate */
    bool deaf;          /* isn't polled */
} side;

static side *sides[MAX_SIDES];
static int nsides;

/* "key=value key=value", and the fake library. */
typedef struct option_list {
    char text[256];
    pplx_option options[16];
    size_t count;
} option_list;

UNUSED static void option_list_of(option_list *list, const char *text) {
    char *rest = NULL;
    CHECK(strlen(text) < sizeof list->text);
    strcpy(list->text, text);
    list->options[0] = (pplx_option){"library", fake_path};
    list->count = 1;
    for (char *word = strtok_r(list->text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        char *equals = strchr(word, '=');
        CHECK(equals && list->count < 16);
        *equals = 0;
        list->options[list->count++] = (pplx_option){word, equals + 1};
    }
}

UNUSED static void side_poll(side *self) {
    pplx_completion done[7]; /* few, so that an entry of the queue doesn't always fit */
    const size_t n = verbs->poll(self->domain, done, 7);
    for (size_t i = 0; i < n; i++) {
        if (done[i].kind == PPLX_COMPLETION_IMM) {
            CHECK(!done[i].op && done[i].source && self->nimms < MAX_IMMS);
            self->imms[self->nimms++] = done[i].imm;
            self->source = done[i].source;
            continue;
        }
        watched *w = (watched *)done[i].op;
        CHECK_EQ(++w->completions, 1);
        w->status = done[i].status;
        w->native = done[i].provider_error;
        w->nbytes = done[i].nbytes;
    }
}

UNUSED static void poll_all(void) {
    for (int i = 0; i < nsides; i++)
        if (!sides[i]->deaf) side_poll(sides[i]);
}

#define WAIT(condition)                                                    \
    do {                                                                   \
        const uint64_t wait_start = check_now_ns();                        \
        while (!(condition)) {                                             \
            poll_all();                                                    \
            if (check_now_ns() - wait_start > PATIENCE * 1e9)              \
                check_failed(__FILE__, __LINE__, "waits for " #condition); \
        }                                                                  \
    } while (0)

UNUSED static void poll_ms(unsigned ms) {
    for (const uint64_t start = check_now_ns(); check_now_ns() - start < ms * UINT64_C(1000000);) poll_all();
}

UNUSED static pplx_status try_open(side *self, const char *device, const char *options, pplx_error *error) {
    option_list list;
    option_list_of(&list, options);
    memset(self, 0, sizeof *self);
    return verbs->domain_open(device, list.options, list.count, &self->domain, error);
}

UNUSED static void side_listen(side *self) {
    pplx_error error = {0};
    self->naddress = sizeof self->address;
    if (verbs->endpoint_open(self->domain, &self->endpoint, self->address, &self->naddress, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

UNUSED static void side_open(side *self, const char *device, const char *options) {
    pplx_error error = {0};
    if (try_open(self, device, options, &error) != PPLX_OK) check_failed(__FILE__, __LINE__, error.text);
    verbs->domain_caps(self->domain, &self->caps);
    self->arena = calloc(1, ARENA);
    self->imms = calloc(MAX_IMMS, sizeof *self->imms);
    CHECK(self->arena && self->imms && nsides < MAX_SIDES);
    const pplx_memory memory = {.device = -1, .address = (uintptr_t)self->arena, .nbytes = ARENA, .fd = -1};
    CHECK_EQ(verbs->mr_open(self->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, &self->mr,
                            &self->key, &error),
             PPLX_OK);
    sides[nsides++] = self;
    side_listen(self);
}

/* A domain isn't polled while one of its endpoints is closed. */
UNUSED static void side_shut(side *self) {
    CHECK_EQ(verbs->endpoint_close(self->endpoint), PPLX_OK);
    self->endpoint = NULL;
}

UNUSED static void side_close(side *self) {
    int at = 0;
    if (self->endpoint) side_shut(self);
    CHECK_EQ(verbs->mr_close(self->mr), PPLX_OK);
    verbs->domain_close(self->domain);
    while (sides[at] != self) at++;
    sides[at] = sides[--nsides];
    free(self->arena);
    free(self->imms);
}

UNUSED static void connect_sides(side *a, side *b) {
    pplx_error error = {0};
    if (verbs->endpoint_connect(a->endpoint, b->address, b->naddress, &error) != PPLX_OK ||
        verbs->endpoint_connect(b->endpoint, a->address, a->naddress, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

/* Every case leaves nothing behind, and has misused nothing. */
static struct fake_counts at_start;

UNUSED static void layout_is(const char *text) {
    CHECK_EQ(fake.layout(text), 0);
    at_start = fake_now();
}

UNUSED static void check_clean(void) {
    const struct fake_counts counts = fake_now();
    CHECK_EQ(counts.objects, 0);
    CHECK_EQ(counts.contexts, 0);
    CHECK_EQ(counts.complaints, at_start.complaints);
    CHECK_EQ(counts.cut_short, at_start.cut_short); /* first they go to ERR */
    CHECK_EQ(nsides, 0);
}

UNUSED static void pair_open(side *a, side *b, const char *layout, const char *options) {
    layout_is(layout);
    side_open(a, "x0", options);
    side_open(b, strstr(layout, "x1") ? "x1" : "x0", options);
    connect_sides(a, b);
}

UNUSED static void pair_close(side *a, side *b) {
    side_close(a);
    side_close(b);
    check_clean();
}

/* The same offset on both sides. */
UNUSED static pplx_work_request request(const side *from, const side *to, watched *w, uint32_t opcode, uint64_t offset,
                                        uint64_t nbytes, uint32_t imm) {
    memset(w, 0, sizeof *w);
    return (pplx_work_request){.op = &w->op,
                               .local_address = (uintptr_t)from->arena + offset,
                               .nbytes = nbytes,
                               .local_mr = from->mr,
                               .remote_address = to ? to->key.base + offset : 0,
                               .remote_key = to ? to->key.key : 0,
                               .opcode = (uint16_t)opcode,
                               .imm = imm};
}

/* All of them, again and again as an engine would; PPLX_OK or what is said of one. */
UNUSED static pplx_status post_all(side *self, const pplx_work_request *requests, size_t count) {
    const uint64_t start = check_now_ns();
    for (size_t done = 0; done < count;) {
        size_t posted = 99;
        int32_t native = 0;
        const pplx_status status = verbs->post(self->endpoint, requests + done, count - done, &posted, &native);
        CHECK(posted <= count - done && (status != PPLX_OK || posted == count - done));
        done += posted;
        if (status == PPLX_OK) continue;
        if (status != PPLX_AGAIN) return status;
        check_patience(start, PATIENCE);
        poll_all();
    }
    return PPLX_OK;
}

UNUSED static pplx_status post(side *self, const pplx_work_request *one) { return post_all(self, one, 1); }

/* One, to its end. */
UNUSED static pplx_status perform(side *from, const side *to, uint32_t opcode, uint64_t offset, uint64_t nbytes,
                                  uint32_t imm) {
    watched w;
    const pplx_work_request one = request(from, to, &w, opcode, offset, nbytes, imm);
    const pplx_status status = post(from, &one);
    if (status != PPLX_OK) return status;
    WAIT(w.completions);
    return (pplx_status)w.status;
}

UNUSED static void fill(uint8_t *bytes, size_t n, uint64_t seed) {
    for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)(i * 131 + (i >> 8) * 7 + seed * 29 + 1);
}

#endif
