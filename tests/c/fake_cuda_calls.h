/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The tests' own libcuda (tests/fake_libcuda), which lies beside each test program: where, and its functions. */
#ifndef PPLX_TESTS_FAKE_CUDA_CALLS_H
#define PPLX_TESTS_FAKE_CUDA_CALLS_H

#include <dlfcn.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

typedef struct fake_cuda_call {
    void *function; /* a pointer to one */
    const char *name;
} fake_cuda_call;

/* What its threads look at, at any time, is set before it is loaded: what is added to the environment may move it. */
__attribute__((unused)) static void set(const char *name, const char *value) { CHECK(setenv(name, value, 1) == 0); }

static void find_fake_cuda(char path[PATH_MAX]) {
    static const char name[] = "/libcuda_fake.so.1";
    const ssize_t length = readlink("/proc/self/exe", path, PATH_MAX - sizeof name);
    CHECK(length > 0);
    path[length] = 0;
    strcpy(strrchr(path, '/'), name);
}

static void find_fake_cuda_calls(const char *path, const fake_cuda_call *calls, size_t count) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    for (size_t i = 0; i < count; i++) {
        void *function = dlsym(library, calls[i].name);
        CHECK(function);
        memcpy(calls[i].function, &function, sizeof function);
    }
}

#endif
