/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What fabric_bench and shm_bench are made of. Each is bench.c (two processes, and what they measure)
 * and works.c (what is done), linked with one transport: fabric_bench.c or shm_bench.c. */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BENCH_MAX_TARGETS = 64 };
#define BENCH_ARENA ((size_t)256 << 20) /* bytes of each side's memory, sources and destinations */

typedef enum bench_wait { BENCH_POLL, BENCH_EPOLL } bench_wait;

typedef struct bench_options {
    const char *work;
    const char *provider, *library; /* of libfabric */
    bench_wait wait;
    size_t nbytes;     /* of one write */
    size_t count;      /* writes in a repetition */
    unsigned inflight; /* writes that are posted and not completed */
    unsigned targets;  /* regions of equal size that the destination arena is registered as */
    unsigned runs;     /* repetitions, after one that is not reported */
    unsigned seconds;  /* that the work `idle` lasts */
    unsigned timeout;  /* seconds that a repetition may take */
    bool step;         /* a repetition for each line of stdin */
} bench_options;

/* One write: `options.nbytes` bytes. */
typedef struct bench_write {
    size_t src;      /* offset in the source arena */
    unsigned target; /* which region of the destination arena */
    size_t dst;      /* offset in that region */
} bench_write;

/* One process. Side 0 is timed and reports; side 1 is its target. */
typedef struct bench_side {
    bench_options options;
    unsigned rank;
    char *src, *dst; /* BENCH_ARENA bytes each; `dst` is the transport's */
    const bench_write *writes;
    uint64_t posted, completed; /* our own writes */
    uint64_t arrived;           /* immediates of the other side's writes */
    uint32_t imm;               /* the last of them */
} bench_side;

extern bench_side bench;

/* A bijection of the numbers below 2^bits that looks random; `scramble` of works.py is the same. */
static inline uint32_t bench_scramble(uint32_t i, unsigned bits, uint32_t seed) {
    const uint32_t mask = (uint32_t)((UINT64_C(1) << bits) - 1);
    for (unsigned round = 0; round < 3; round++) {
        i = (i * UINT32_C(0x9E3779B1) + seed) & mask;
        i ^= i >> (bits / 2 + 1);
    }
    return i;
}

/* What side 0 found out in a repetition. */
typedef struct bench_result {
    double value, p50, p99; /* p50 and p99: of a latency, else NAN */
} bench_result;

/* ---- works.c ---- */

typedef struct bench_work {
    const char *name, *unit;
    size_t nbytes, count; /* if not said otherwise */
    unsigned inflight, targets;
    bool both_ways; /* side 0 is written to as well */
    bench_write (*place)(size_t i);
    void (*initiate)(bench_result *result);
    void (*serve)(void);
} bench_work;

extern const bench_work bench_works[]; /* ends with a nameless one */

/* ---- bench.c ---- */

double bench_now(void); /* seconds */
_Noreturn void bench_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Sort `values` and return the p-th percentile, by the nearest rank. */
double bench_percentile(double *values, size_t count, unsigned p);

/* One turn of a wait: poll, and when nothing came sleep or look after the other side. */
void bench_turn(void);
/* Post a write, polling as long as the transport has no room. */
void bench_post(const bench_write *write, uint32_t imm);

/* Do nothing for so long. */
void bench_pause(unsigned seconds);
/* Send `mine` to the other side and receive as many bytes from it. */
void bench_exchange(const void *mine, void *theirs, size_t nbytes);
/* Have bench_sleep() wait for `fd`; `events` as for epoll_ctl(2). */
void bench_wake_on(int fd, uint32_t events);
/* Block until such an fd is ready. */
void bench_sleep(void);
/* A number that side 1 wants side 0 to read after the repetition. */
void bench_tell(double value);
double bench_told(void);

/* ---- the transport ---- */

extern const char *const transport_program;
const char *transport_provider(void);
/* Before the fork: what both sides are to share. */
void transport_prepare(void);
/* After it: set bench.dst to memory that the other side can write, and connect. */
void transport_open(void);
/* Post a write with its immediate. false: no room, poll first. */
bool transport_write(const bench_write *write, uint32_t imm);
/* Make progress, and count in bench.completed and bench.arrived. false: nothing came. */
bool transport_poll(void);
/* bench_sleep() until there may be something to poll, unless there is already. */
void transport_sleep(void);
void transport_close(void);

#endif
