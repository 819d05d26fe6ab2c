/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A program for callgrind, which counts the instructions inside of the functions named count_*: two
 * engines of one process, joined by ipc, both driven by this thread; 8 B writes with a counter.
 *
 *   count_submit    hand a write in; it is cut, posted, copied, published and completed on this thread
 *   count_complete  take it out of the done list
 *   count_wake      the receiver's side: from its wait fd to its counter in the done list */
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine_helpers.h"

enum { ROUNDS = 500, NBYTES = 4096 };

extern const pplx_provider pplx_provider_ipc;

__attribute__((noinline)) static uint32_t count_submit(pplx_engine *engine, pplx_request *request) {
    return pplx_submit_here(engine, request);
}

__attribute__((noinline)) static bool count_complete(pplx_engine *engine) {
    pplx_node *node = pplx_reap(engine);
    return node && pplx_request_reaped((pplx_request *)node) && pplx_arm(engine);
}

__attribute__((noinline)) static bool count_wake(pplx_engine *engine, pplx_counter *counter) {
    if (!(pplx_drive(engine) & PPLX_DONE)) return false;
    pplx_node *node = pplx_reap(engine);
    pplx_counter_reaped(counter);
    return node == &counter->node && pplx_arm(engine);
}

/* Linked in place of syscall(): valgrind 3.19 knows no pidfd_open, for which ipc needs it. Nobody dies
 * here, so a descriptor that never gets readable does as well. */
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...) {
    CHECK_EQ(number, SYS_pidfd_open);
    return eventfd(0, EFD_CLOEXEC);
}

/* Memory that the peer maps and copies into, as TransferEngine.empty() makes it. */
static void map_target(pair *pair) {
    area_close(&pair->to);
    const int fd = memfd_create("count", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(fd >= 0 && ftruncate(fd, NBYTES) == 0);
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    pair->to.bytes = mmap(NULL, NBYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(pair->to.bytes != MAP_FAILED);
    pair->to.mr.memory.address = (uintptr_t)pair->to.bytes;
    pair->to.mr.memory.fd = fd;
    CHECK_EQ(call(&pair->b, PPLX_CALL_MR_OPEN, &pair->to.mr, NULL), PPLX_OK);
    pair->remote = remote_of(&pair->to, pair->ab);
}

/* Returns how often count_wake() was called: not if the proxy came first, awake for a reason of its own. */
static uint64_t one_round(pair *pair, uint64_t round) {
    struct pollfd fds[] = {{.fd = pplx_engine_wait_fd(pair->b.engine, 0), .events = POLLIN},
                           {.fd = pplx_engine_fd(pair->b.engine), .events = POLLIN}};
    transfer t = {.segment = {0, 0, 8, 1}};
    t.target = (pplx_target){.local = &pair->from.mr,
                             .remote = &pair->remote,
                             .peer = pair->ab,
                             .segments = &t.segment,
                             .nsegments = 1,
                             .counter = pair->counter.id};
    t.request = (pplx_request){
        .kind = PPLX_REQUEST_TRANSFER, .opcode = PPLX_WRITE, .cookie = &t.end, .targets = &t.target, .ntargets = 1};
    CHECK(!pplx_counter_notify(&pair->counter, (round + 1) * PPLX_EIGHTHS));
    CHECK(pplx_arm(pair->b.engine));
    CHECK_EQ(count_submit(pair->a.engine, &t.request), PPLX_DONE | PPLX_DROVE);
    CHECK(count_complete(pair->a.engine));
    CHECK_EQ(t.request.error.status, PPLX_OK);
    CHECK(poll(fds, 2, 10000) > 0);
    if (!fds[1].revents && count_wake(pair->b.engine, &pair->counter)) return 1;
    const uint64_t called = !fds[1].revents;
    WAIT(pplx_counter_value(&pair->counter) == (round + 1) * PPLX_EIGHTHS);
    pplx_counter_reaped(&pair->counter);
    reap_all(&pair->b);
    return called;
}

int main(void) {
    pair pair;
    pplx_engine_config config = default_config;
    config.owner_drives = 1;
    config.heartbeat_interval_ms = 0;
    host_provider = &pplx_provider_ipc;
    host_device = "host";
    pair_open_with(&pair, 1, 1, "", NBYTES, &config);
    map_target(&pair);
    pplx_listens(pair.a.engine, true);
    pplx_listens(pair.b.engine, true);
    write_now(&pair, 0, 8, true);
    pump_ms(100); /* the proxies sleep */
    reap_all(&pair.a);
    reap_all(&pair.b);
    CHECK(pplx_arm(pair.a.engine));
    const uint64_t before = pplx_counter_value(&pair.counter) / PPLX_EIGHTHS;
    uint64_t wakes = 0;
    for (uint64_t round = 0; round < ROUNDS; round++) wakes += one_round(&pair, before + round);
    printf("count_submit %d\ncount_complete %d\ncount_wake %llu\n", ROUNDS, ROUNDS, (unsigned long long)wakes);
    return 0; /* the process takes the rest with it */
}
