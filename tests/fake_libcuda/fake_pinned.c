/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of the host that the device reaches. */
#include "fake_cuda.h"

typedef struct pinned {
    uint64_t host, nbytes;
    uintptr_t context;
} pinned;

static pinned pins[MOST_RANGES]; /* guarded by fake_lock */

bool fake_is_pinned(uint64_t host, uint64_t nbytes) {
    for (int i = 0; i < MOST_RANGES; i++)
        if (pins[i].nbytes && host >= pins[i].host && host - pins[i].host + nbytes <= pins[i].nbytes) return true;
    return false;
}

void fake_unpin(uintptr_t context) {
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MOST_RANGES; i++)
        if (pins[i].context == context) pins[i] = (pinned){0};
    pthread_mutex_unlock(&fake_lock);
}

API fake_cuda_pinned(void) {
    int count = 0;
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MOST_RANGES; i++) count += pins[i].nbytes > 0;
    pthread_mutex_unlock(&fake_lock);
    return count;
}

API cuMemHostRegister_v2(void *memory, size_t nbytes, unsigned flags) {
    NEED_CONTEXT();
    fake_wait_for_the_driver();
    if (fake_forbidden()) return CAPTURE_UNSUPPORTED;
    if (!nbytes || (uintptr_t)memory % 4096 || flags > 15) return INVALID_VALUE;
    int result = OUT_OF_MEMORY;
    fake_nap_us(fake_env("FAKE_CUDA_PIN_US", 0));
    pthread_mutex_lock(&fake_lock);
    const uint64_t host = (uintptr_t)memory;
    for (int i = 0; i < MOST_RANGES; i++)
        if (pins[i].nbytes && host < pins[i].host + pins[i].nbytes && pins[i].host < host + nbytes)
            result = ALREADY_REGISTERED;
    for (int i = 0; i < MOST_RANGES && result == OUT_OF_MEMORY; i++) {
        if (pins[i].nbytes) continue;
        pins[i] = (pinned){host, nbytes, fake_context()};
        result = OK;
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

API cuMemHostUnregister(void *memory) {
    NEED_CONTEXT();
    fake_wait_for_all();
    int result = NOT_REGISTERED;
    pthread_mutex_lock(&fake_lock);
    for (int i = 0; i < MOST_RANGES; i++) {
        if (!pins[i].nbytes || pins[i].host != (uintptr_t)memory) continue;
        pins[i] = (pinned){0};
        result = OK;
    }
    pthread_mutex_unlock(&fake_lock);
    return result;
}

API cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *memory, unsigned flags) {
    REFUSE();
    *pointer = (uintptr_t)memory + PINNED;
    return flags == 0 && fake_translate(*pointer, 1, true) ? OK : INVALID_VALUE;
}
