/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Checks for C tests. A test program is a row of RUN(case) in main(), which returns check_done().
 * Each case prints "ok name". The first failed check prints where, what and in which case, and ends
 * the process with status 1, from whichever thread. */
#ifndef PPLX_TESTS_CHECK_H
#define PPLX_TESTS_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *check_case = "(outside a case)";
static int check_cases;

__attribute__((noreturn, unused)) static void check_failed(const char *file, int line, const char *what) {
    fflush(stdout);
    fprintf(stderr, "%s:%d: not ok %s: %s\n", file, line, check_case, what);
    fflush(stderr);
    _exit(1); /* not exit(): other threads are still at work */
}

#define CHECK(condition) ((condition) ? (void)0 : check_failed(__FILE__, __LINE__, #condition))

/* Integers of any type; prints both sides. */
#define CHECK_EQ(left, right)                                                                                          \
    do {                                                                                                               \
        long long check_left = (long long)(left), check_right = (long long)(right);                                    \
        if (check_left != check_right) {                                                                               \
            char check_text[256];                                                                                      \
            snprintf(check_text, sizeof check_text, "%s is %lld, %s is %lld", #left, check_left, #right, check_right); \
            check_failed(__FILE__, __LINE__, check_text);                                                              \
        }                                                                                                              \
    } while (0)

#define RUN(function) check_run(#function, function)

__attribute__((unused)) static void check_run(const char *name, void (*function)(void)) {
    check_case = name;
    function();
    check_cases++;
    printf("ok %s\n", name);
    fflush(stdout);
}

/* For `return check_done();` at the end of main(): a program that ran nothing has failed. */
__attribute__((unused)) static int check_done(void) {
    printf("%d cases\n", check_cases);
    return check_cases > 0 ? 0 : 1;
}

__attribute__((unused)) static uint64_t check_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* A loop that waits for something calls this with when it began: nothing hangs. */
__attribute__((unused)) static void check_patience(uint64_t start_ns, double seconds) {
    if ((double)(check_now_ns() - start_ns) > seconds * 1e9)
        check_failed(__FILE__, __LINE__, "what it waited for did not come in time");
}

/* splitmix64, for randomized cases. */
__attribute__((unused)) static uint64_t check_random(uint64_t *state) {
    uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

#endif
