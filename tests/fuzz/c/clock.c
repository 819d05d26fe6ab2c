/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Time and waiting as the target says, so that an input does the same each time, and nothing waits. The
 * linker puts these in the place of clock_gettime() and poll(). */
#include "clock.h"

#include <poll.h>
#include <time.h>

enum { STEP_NS = 200000 };

static uint64_t now_ns = 1000000000;

void clock_advance(uint64_t ns) { now_ns += ns; }

int __wrap_clock_gettime(clockid_t id, struct timespec *time);
int __wrap_clock_gettime(clockid_t id, struct timespec *time) {
    (void)id;
    now_ns += STEP_NS;
    time->tv_sec = (time_t)(now_ns / 1000000000);
    time->tv_nsec = (long)(now_ns % 1000000000);
    return 0;
}

int __real_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms);
int __wrap_poll(struct pollfd *fds, nfds_t count, int timeout_ms) {
    const int ready = __real_poll(fds, count, 0);
    if (ready == 0 && timeout_ms > 0) clock_advance((uint64_t)timeout_ms * 1000000);
    return ready;
}
