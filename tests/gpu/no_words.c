/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A GPU without stream memory operations of 64 bit: linked to the real libcuda, and asked in its place. */
#define _GNU_SOURCE
#include <dlfcn.h>

enum { CAN_USE_64_BIT_STREAM_MEM_OPS = 122 };

typedef int get_attribute(int *value, int attribute, int device);

get_attribute cuDeviceGetAttribute;

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    static get_attribute *real;
    if (!real) real = (get_attribute *)dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD), "cuDeviceGetAttribute");
    const int result = real(value, attribute, device);
    if (result == 0 && attribute == CAN_USE_64_BIT_STREAM_MEM_OPS) *value = 0;
    return result;
}
