/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Two processes, a control channel between them, and the repetitions of one work:
 *
 *     side 0, timed                         side 1, its target
 *     reads a line of stdin (--step)        blocks
 *     go        ------------------------->
 *               <-------------------------  ready
 *     the work: its clock runs here         its half of the work
 *     done      <------------------------>  done      both poll until they have heard it
 *
 * Nothing outlives the program: side 1 is killed when side 0 ends, however it does; side 0 ends when the
 * channel does; and a repetition that takes longer than --timeout ends both. Neither touches the disk. */
#include "bench.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "options.h"

enum { TURNS_PER_LOOK = 1 << 16 }; /* empty turns of a busy wait between looks at the other side */

bench_side bench;

static const bench_work *work;
static int channel = -1;    /* to the other side: single bytes, and what bench_exchange() sends */
static int wakers = -1;     /* the epoll set of bench_sleep() */
static pid_t target = -1;   /* side 1's process; side 0 knows it */
static double *told = NULL; /* memory of both */

double bench_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void bench_die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "%s, side %u: ", transport_program, bench.rank);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    fflush(stdout);
    _exit(1);
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_percentile(double *values, size_t count, unsigned p) {
    qsort(values, count, sizeof *values, by_value);
    size_t rank = (count * p + 99) / 100;
    return values[rank ? rank - 1 : 0];
}

void bench_tell(double value) { *told = value; }
double bench_told(void) { return *told; }

/* ---- the other side ---- */

static _Noreturn void partner_ended(void) { bench_die("the other side has ended"); }

static void look_after_partner(void) {
    char byte;
    if (recv(channel, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0) partner_ended();
}

void bench_wake_on(int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(wakers, EPOLL_CTL_ADD, fd, &event)) bench_die("epoll_ctl: %s", strerror(errno));
}

void bench_sleep(void) {
    struct epoll_event event;
    if (epoll_wait(wakers, &event, 1, -1) == 1 && event.data.fd == channel) partner_ended();
}

void bench_pause(unsigned seconds) {
    struct pollfd partner = {.fd = channel, .events = POLLRDHUP};
    if (poll(&partner, 1, (int)seconds * 1000) == 1) partner_ended();
}

void bench_turn(void) {
    static unsigned empty_turns;
    if (transport_poll()) return;
    if (bench.options.wait == BENCH_EPOLL)
        transport_sleep();
    else if (++empty_turns % TURNS_PER_LOOK == 0)
        look_after_partner();
}

void bench_post(const bench_write *write, uint32_t imm) {
    for (unsigned tries = 1; !transport_write(write, imm); tries++) {
        transport_poll();
        if (tries % TURNS_PER_LOOK == 0) look_after_partner();
    }
    bench.posted++;
}

static void send_bytes(const void *bytes, size_t nbytes) {
    if (send(channel, bytes, nbytes, MSG_NOSIGNAL) != (ssize_t)nbytes) partner_ended();
}

/* false: the other side has ended. */
static bool receive_bytes(void *bytes, size_t nbytes) {
    return recv(channel, bytes, nbytes, MSG_WAITALL) == (ssize_t)nbytes;
}

void bench_exchange(const void *mine, void *theirs, size_t nbytes) {
    send_bytes(mine, nbytes);
    if (!receive_bytes(theirs, nbytes)) partner_ended();
}

/* Both sides come here; the one that waits makes progress for the other. */
static void meet(void) {
    struct pollfd partner = {.fd = channel, .events = POLLIN};
    char byte = 'd';
    while (bench.completed < bench.posted) bench_turn();
    send_bytes(&byte, 1);
    while (poll(&partner, 1, transport_poll() ? 0 : 1) == 0) {
    }
    if (!receive_bytes(&byte, 1)) partner_ended();
}

static void on_timeout(int signal) {
    static const char text[] = "a repetition took longer than --timeout\n";
    (void)signal;
    if (write(STDERR_FILENO, text, sizeof text - 1) < 0) {
    } /* nobody left to tell */
    _exit(1);
}

static void fork_target(void) {
    int ends[2];
    pid_t parent = getpid();
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) bench_die("socketpair: %s", strerror(errno));
    target = fork();
    if (target < 0) bench_die("fork: %s", strerror(errno));
    bench.rank = target == 0;
    if (bench.rank == 1) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent) _exit(1);
        signal(SIGINT, SIG_IGN); /* it is side 0 that is interrupted */
    }
    channel = ends[bench.rank];
    close(ends[!bench.rank]);
    wakers = epoll_create1(EPOLL_CLOEXEC);
    if (wakers < 0) bench_die("epoll_create1: %s", strerror(errno));
    bench_wake_on(channel, EPOLLRDHUP); /* its bytes are for meet() */
}

static void reap_target(void) {
    int status = 0;
    close(channel); /* which tells it to end */
    if (waitpid(target, &status, 0) != target || status != 0) bench_die("the target failed");
}

/* ---- memory ---- */

static void *map_arena(void) {
    void *arena = mmap(NULL, BENCH_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) bench_die("mmap: %s", strerror(errno));
    return arena;
}

static size_t offset_in_arena(const bench_write *write) {
    return write->target * (BENCH_ARENA / bench.options.targets) + write->dst;
}

static void plan_writes(void) {
    const size_t region = BENCH_ARENA / bench.options.targets;
    bench_write *writes = malloc(bench.options.count * sizeof *writes);
    if (!writes) bench_die("out of memory");
    for (size_t i = 0; i < bench.options.count; i++) {
        writes[i] = work->place(i);
        if (writes[i].src + bench.options.nbytes > BENCH_ARENA || writes[i].dst + bench.options.nbytes > region)
            bench_die("these writes do not fit into an arena of %zu bytes", BENCH_ARENA);
    }
    bench.writes = writes;
}

/* Both sides hold the same source, so the target knows what must arrive. What will be used is touched. */
static void fill_memory(void) {
    size_t src_end = 0, dst_end = 0;
    for (size_t i = 0; i < bench.options.count; i++) {
        size_t src = bench.writes[i].src, dst = offset_in_arena(&bench.writes[i]);
        if (src_end < src + bench.options.nbytes) src_end = src + bench.options.nbytes;
        if (dst_end < dst + bench.options.nbytes) dst_end = dst + bench.options.nbytes;
    }
    uint64_t *words = (uint64_t *)(void *)bench.src;
    for (size_t i = 0; i < (src_end + 7) / 8; i++) words[i] = (i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    memset(bench.dst, 0, dst_end);
}

static void verify_memory(void) {
    for (size_t i = 0; i < bench.options.count; i++) {
        const bench_write *write = &bench.writes[i];
        if (memcmp(bench.dst + offset_in_arena(write), bench.src + write->src, bench.options.nbytes) != 0)
            bench_die("write %zu brought other bytes than were sent", i);
    }
}

/* ---- repetitions ---- */

static void print_number(const char *key, double value) {
    if (isnan(value))
        printf(", \"%s\": null", key);
    else
        printf(", \"%s\": %.6g", key, value);
}

static void report(const bench_result *result, unsigned run) {
    printf("{\"program\": \"%s\", \"work\": \"%s\", \"provider\": \"%s\", \"wait\": \"%s\"", transport_program,
           work->name, transport_provider(), bench.options.wait == BENCH_EPOLL ? "epoll" : "poll");
    printf(", \"nbytes\": %zu, \"count\": %zu, \"inflight\": %u, \"targets\": %u, \"run\": %u, \"runs\": %u",
           bench.options.nbytes, bench.options.count, bench.options.inflight, bench.options.targets, run,
           bench.options.runs);
    print_number("value", isnan(result->value) ? bench_told() : result->value);
    printf(", \"unit\": \"%s\"", work->unit);
    print_number("p50", result->p50);
    print_number("p99", result->p99);
    printf("}\n");
    fflush(stdout);
}

static bool wants_another(unsigned run) {
    char line[64];
    if (!bench.options.step || run == 0) return run <= bench.options.runs;
    return fgets(line, sizeof line, stdin) != NULL;
}

static void lead(void) {
    char byte = 'g';
    for (unsigned run = 0; wants_another(run); run++) {
        bench_result result = {NAN, NAN, NAN};
        alarm(bench.options.timeout);
        send_bytes(&byte, 1);
        if (!receive_bytes(&byte, 1)) partner_ended();
        work->initiate(&result);
        meet();
        alarm(0);
        if (run == 0 && work->both_ways) verify_memory();
        if (run > 0) report(&result, run);
    }
}

static void follow(void) {
    char byte;
    for (unsigned run = 0; receive_bytes(&byte, 1); run++) {
        alarm(bench.options.timeout);
        send_bytes("r", 1);
        work->serve();
        if (run == 0) verify_memory();
        meet();
        alarm(0);
    }
}

int main(int argc, char **argv) {
    work = bench_parse(argc, argv, &bench.options);
    plan_writes();
    told = mmap(NULL, sizeof *told, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (told == MAP_FAILED) bench_die("mmap: %s", strerror(errno));
    transport_prepare();
    fork_target();
    signal(SIGALRM, on_timeout);
    alarm(bench.options.timeout);
    bench.src = map_arena();
    transport_open();
    fill_memory();
    alarm(0);
    if (bench.rank == 0)
        lead();
    else
        follow();
    alarm(bench.options.timeout);
    transport_close();
    if (bench.rank == 0) reap_target();
    return 0;
}
