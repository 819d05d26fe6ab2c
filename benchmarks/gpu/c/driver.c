/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */
#include "driver.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DRIVER_DEFINE(name, arguments) CUresult(*name) arguments;
DRIVER_CALLS(DRIVER_DEFINE)

void gpu_die(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "gpu_bench: ");
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    _Exit(1);
}

static void find(void *driver, const char *name, void *function) {
    void *found = dlsym(driver, name);
    if (!found) gpu_die("%s", dlerror());
    memcpy(function, &found, sizeof found); /* ISO C has no cast between the two */
}

void driver_open(const char *library) {
    void *driver = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!driver) gpu_die("%s", dlerror());
#define DRIVER_FIND(name, arguments) find(driver, #name, &name);
    DRIVER_CALLS(DRIVER_FIND)
    CU(cuInit(0));
}
