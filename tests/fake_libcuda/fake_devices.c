/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Devices, contexts, and what a test has fail. */
#include "fake_cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_CONTEXTS = 64, MOST_OWN = 16 };

atomic_bool fake_initialised;
atomic_bool fake_peers[MOST_DEVICES][MOST_DEVICES];
__thread int fake_depth;
static __thread uintptr_t contexts[MOST_CONTEXTS]; /* device + 1 of a primary one; others more, in the higher bits */
static atomic_uint own_ids[MOST_OWN]; /* of those that a program has made; 0: there is none */
static atomic_int retained[MOST_DEVICES];

int fake_env(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int devices(void) {
    const int n = fake_env("FAKE_CUDA_DEVICES", 2);
    return n < MOST_DEVICES ? n : MOST_DEVICES;
}

int fake_refused(const char *call) {
    const char *text = getenv("FAKE_CUDA_FAIL"), *colon = text ? strchr(text, ':') : NULL;
    if (!colon || strlen(call) != (size_t)(colon - text) || strncmp(call, text, strlen(call)) != 0) return OK;
    return atoi(colon + 1);
}

uintptr_t fake_context(void) { return contexts[fake_depth - 1]; }
int fake_device(void) { return (int)(fake_context() & 0xff) - 1; }

API fake_cuda_retained(void) {
    int sum = 0;
    for (int i = 0; i < MOST_DEVICES; i++) sum += atomic_load(&retained[i]);
    return sum;
}

API cuInit(unsigned flags) {
    const int code = fake_refused(__func__);
    if (code != OK) return code;
    fake_initialised = true;
    return flags ? INVALID_VALUE : devices() ? OK : NO_DEVICE;
}

API cuDriverGetVersion(int *version) {
    *version = 13000;
    return OK;
}

API cuGetErrorName(int error, const char **text) {
    switch (error) {
    case OK: *text = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NO_DEVICE: *text = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_CONTEXT: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case 700: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    default: *text = "CUDA_ERROR_UNKNOWN"; break;
    }
    return OK;
}

API cuDeviceGetCount(int *count) {
    REFUSE();
    *count = devices();
    return OK;
}

API cuDeviceGet(int *device, int ordinal) {
    REFUSE();
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? OK : INVALID_DEVICE;
}

API cuDeviceGetUuid_v2(unsigned char uuid[16], int device) {
    REFUSE();
    memset(uuid, 0, 16);
    memcpy(uuid, "fake gpu", 8);
    uuid[15] = (unsigned char)device;
    return OK;
}

API cuDeviceGetAttribute(int *value, int attribute, int device) {
    REFUSE();
    switch (attribute) {
    case 16: *value = 2; break; /* multiprocessors */
    case 98: *value = (fake_env("FAKE_CUDA_FLUSH", BY_CALL) & BY_WAIT) != 0; break;
    case 117: *value = fake_env("FAKE_CUDA_FLUSH", BY_CALL); break;
    case 118: *value = fake_ordering(); break;
    case 122: *value = fake_env("FAKE_CUDA_WORDS", 1); break;
    case 124: *value = fake_env("FAKE_CUDA_DMABUF", 1); break;
    default: *value = 0; break;
    }
    return device < devices() ? OK : INVALID_DEVICE;
}

API cuDeviceGetName(char *name, int nbytes, int device) {
    REFUSE();
    snprintf(name, (size_t)nbytes, "the tests' own");
    return device < devices() ? OK : INVALID_DEVICE;
}

API cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    REFUSE();
    *flags = 0;
    *active = device < devices() && atomic_load(&retained[device]) > 0;
    return device < devices() ? OK : INVALID_DEVICE;
}

API cuDevicePrimaryCtxRetain(uintptr_t *context, int device) {
    REFUSE();
    if (device < 0 || device >= devices()) return INVALID_DEVICE;
    *context = (uintptr_t)device + 1;
    atomic_fetch_add(&retained[device], 1);
    return OK;
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    REFUSE();
    if (device < 0 || device >= devices()) return INVALID_DEVICE;
    atomic_fetch_sub(&retained[device], 1);
    return OK;
}

API cuCtxPushCurrent_v2(uintptr_t context) {
    REFUSE();
    if (context == 0 || fake_depth == MOST_CONTEXTS) return INVALID_CONTEXT;
    contexts[fake_depth++] = context;
    return OK;
}

/* Another one than the primary one, and current. It has the address of one that is gone, if there is one. */
API cuCtxCreate_v2(uintptr_t *context, unsigned flags, int device) {
    static atomic_uint made;
    unsigned place = 0;
    REFUSE();
    if (flags || device < 0 || device >= devices()) return INVALID_VALUE;
    while (place < MOST_OWN && atomic_load(&own_ids[place])) place++;
    if (place == MOST_OWN) return OUT_OF_MEMORY;
    atomic_store(&own_ids[place], MOST_DEVICES + 1 + atomic_fetch_add(&made, 1));
    *context = (uintptr_t)(place + 1) << 8 | (uintptr_t)(device + 1);
    return cuCtxPushCurrent_v2(*context);
}

/* What was pinned there isn't any more. */
API cuCtxDestroy_v2(uintptr_t context) {
    REFUSE();
    if (context <= MOST_DEVICES) return INVALID_CONTEXT;
    fake_unpin(context);
    atomic_store(&own_ids[(context >> 8) - 1], 0);
    if (fake_depth && contexts[fake_depth - 1] == context) fake_depth--;
    return OK;
}

API cuCtxSetCurrent(uintptr_t context) {
    REFUSE();
    if (fake_depth == 0) return cuCtxPushCurrent_v2(context);
    contexts[fake_depth - 1] = context;
    return context ? OK : INVALID_CONTEXT;
}

API cuCtxEnablePeerAccess(uintptr_t peer, unsigned flags) {
    NEED_CONTEXT();
    const uintptr_t ours = fake_context();
    if (flags || !peer || peer > MOST_DEVICES || peer == ours) return INVALID_VALUE;
    return atomic_exchange(&fake_peers[ours - 1][peer - 1], true) ? PEER_ACCESS_ALREADY_ENABLED : OK;
}

unsigned fake_context_id(uintptr_t context) {
    return context <= MOST_DEVICES ? (unsigned)context : atomic_load(&own_ids[(context >> 8) - 1]);
}

API cuCtxGetId(uintptr_t context, unsigned long long *id) {
    REFUSE();
    *id = fake_context_id(context);
    return *id ? OK : INVALID_CONTEXT;
}

API cuCtxGetDevice(int *device) {
    NEED_CONTEXT();
    *device = fake_device();
    return OK;
}

API cuCtxPopCurrent_v2(uintptr_t *context) {
    REFUSE();
    if (fake_depth == 0) return INVALID_CONTEXT;
    *context = contexts[--fake_depth];
    return OK;
}
