/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The fake libibverbs, for tests in C: loaded from the folder that the test program lies in. */
#ifndef TESTS_FAKE_VERBS_H
#define TESTS_FAKE_VERBS_H

#include <dlfcn.h>
#include <limits.h>
#include <stdbool.h>

#include "../fake_ibverbs/fake_control.h"
#include "check.h"
#include "dynload.h"

static char fake_path[PATH_MAX];
static const pplx_libibverbs *fake_lib;

static struct {
    int (*layout)(const char *text);
    int (*event)(const char *device, int port, int type);
    int (*route)(const char *device, int *service_level, int *traffic_class);
    int (*change)(const char *device, const char *words);
    int (*cut)(const char *device, int port, int lost);
    int (*hold)(const char *device, int held);
    int (*linger)(const char *device, int ms);
    int (*refuse)(const char *device, uint64_t after, uint64_t count, int native);
    int (*breaks)(const char *device, uint64_t after, int status);
    void (*counts)(struct fake_counts *counts);
} fake;

static void *fake_symbol(void *library, const char *name) {
    void *symbol = dlsym(library, name);
    if (!symbol) check_failed(__FILE__, __LINE__, name);
    return symbol;
}

static void fake_load_from(const char *path) {
    pplx_error error = {0};
    const void *functions = NULL;
    const char *file = NULL;
    snprintf(fake_path, sizeof fake_path, "%s", path);
    if (pplx_library_load(&pplx_library_libibverbs, fake_path, &functions, &file, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
    fake_lib = functions;
    void *library = dlopen(fake_path, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    *(void **)&fake.layout = fake_symbol(library, "fake_ibv_layout");
    *(void **)&fake.event = fake_symbol(library, "fake_ibv_event");
    *(void **)&fake.route = fake_symbol(library, "fake_ibv_route");
    *(void **)&fake.change = fake_symbol(library, "fake_ibv_change");
    *(void **)&fake.cut = fake_symbol(library, "fake_ibv_cut");
    *(void **)&fake.hold = fake_symbol(library, "fake_ibv_hold");
    *(void **)&fake.linger = fake_symbol(library, "fake_ibv_linger");
    *(void **)&fake.refuse = fake_symbol(library, "fake_ibv_refuse");
    *(void **)&fake.breaks = fake_symbol(library, "fake_ibv_break");
    *(void **)&fake.counts = fake_symbol(library, "fake_ibv_counts");
}

/* `old`: the one without what came after rdma-core 23. */
__attribute__((unused)) static void fake_load(bool old) {
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path - 32);
    CHECK(length > 0);
    path[length] = 0;
    strcpy(strrchr(path, '/'), old ? "/libibverbs_fake_old.so.1" : "/libibverbs_fake.so.1");
    fake_load_from(path);
}

__attribute__((unused)) static struct fake_counts fake_now(void) {
    struct fake_counts counts;
    fake.counts(&counts);
    return counts;
}

#endif
