/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Kernels, which the tests' own GPU knows by their names. */
#include "fake_cuda.h"

#include <string.h>
#include <time.h>

enum { MOST_IDS = 4096 };

static _Atomic uint64_t kernel_until_ns;
static atomic_int launched, loads;

API fake_cuda_loads(void) { return atomic_load(&loads); }

API fake_cuda_launched(void) { return atomic_load(&launched); }

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void fake_wait_for_kernels(void) {
    const struct timespec moment = {0, 1000000};
    while (now_ns() < atomic_load(&kernel_until_ns)) nanosleep(&moment, NULL);
}

API fake_cuda_run_kernel(int ms) {
    atomic_store(&kernel_until_ns, ms ? now_ns() + (uint64_t)ms * 1000000 : 0);
    return OK;
}

/* It knows some by name. What pplx_async's own do is done by copies, and by words; those of benchmarks/gpu/kernels.cu,
 * which are in one module, are below. */
static const char known_kernel[] = "pplx_copy", words_kernel[] = "pplx_words";
static atomic_bool has_words[MOST_IDS]; /* contexts that have loaded it, by their ids */
static const char bench_kernels[4][16] = {"bench_store", "bench_count", "bench_gather", "bench_compute"};

API cuModuleLoadData(void **module, const char *image) {
    NEED_CONTEXT();
    atomic_fetch_add(&loads, 1);
    fake_nap_us(fake_env("FAKE_CUDA_LOAD_US", 0));
    fake_wait_for_all();
    if (fake_forbidden()) return CAPTURE_UNSUPPORTED;
    const char *name = strstr(image, words_kernel)       ? words_kernel
                       : strstr(image, bench_kernels[0]) ? bench_kernels[0]
                                                         : known_kernel;
    *module = (void *)(uintptr_t)name;
    if (name == words_kernel) atomic_store(&has_words[fake_context_id(fake_context()) % MOST_IDS], true);
    return strstr(image, ".version") && strstr(image, name) ? OK : 218; /* no PTX */
}

API cuModuleGetFunction(void **function, void *module, const char *name) {
    REFUSE();
    *function = module;
    for (int i = 0; module == bench_kernels[0] && i < 4; i++)
        if (strcmp(name, bench_kernels[i]) == 0) *function = (void *)(uintptr_t)bench_kernels[i];
    return strcmp(name, *function) == 0 ? OK : 500;
}

API cuModuleUnload(void *module) {
    NEED_CONTEXT();
    fake_wait_for_all();
    return module == known_kernel || module == words_kernel || module == bench_kernels[0] ? OK : INVALID_VALUE;
}

static uint64_t argument(void **arguments, int i) {
    uint64_t value;
    memcpy(&value, arguments[i], sizeof value);
    return value;
}

/* A copy for each page; `pages`, which lies on the device, is looked at now. */
static int gather(stream *stream, void **arguments, unsigned count) {
    const uint64_t to = argument(arguments, 0), from = argument(arguments, 1), places = argument(arguments, 2);
    uint32_t nbytes, place[2];
    memcpy(&nbytes, arguments[3], sizeof nbytes);
    const unsigned char *table = fake_translate(places, count * sizeof place, true);
    if (!table) return INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        memcpy(place, table + i * sizeof place, sizeof place);
        const op copy = {KERNEL, to + (uint64_t)place[1] * nbytes, from + (uint64_t)place[0] * nbytes, nbytes};
        const int result = fake_enqueue(stream, copy);
        if (result != OK) return result;
    }
    return OK;
}

static int launch_bench(const char *name, stream *stream, void **arguments, unsigned blocks) {
    if (name == bench_kernels[0])
        return fake_enqueue(stream, (op){WRITE, argument(arguments, 0), argument(arguments, 1), 0});
    if (name == bench_kernels[1])
        return fake_enqueue(stream,
                            (op){COUNT, argument(arguments, 0), argument(arguments, 1), argument(arguments, 2)});
    if (name == bench_kernels[2]) return gather(stream, arguments, blocks);
    return fake_enqueue(stream, (op){NAP, 0, 0, 200});
}

API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, stream *stream, void **arguments, void **extra) {
    NEED_CONTEXT();
    fake_wait_for_the_driver();
    struct {
        uint64_t to, from, nbytes;
    } piece;
    struct {
        struct {
            uint32_t kind, value;
            uint64_t least, address;
        } of[4];
        uint32_t count, reserved;
    } steps;
    if (function == words_kernel) {
        if (!atomic_load(&has_words[fake_context_id(fake_context()) % MOST_IDS])) return INVALID_HANDLE;
        if (gx != 1 || gy != 1 || gz != 1 || bx != 1 || by != 1 || bz != 1 || shared || extra) return INVALID_VALUE;
        memcpy(&steps, arguments[0], sizeof steps);
        for (uint32_t i = 0; i < steps.count; i++) {
            const int result = fake_enqueue(stream, steps.of[i].kind
                                                        ? (op){WAIT, steps.of[i].address, steps.of[i].least, POLLS}
                                                        : (op){WRITE_32, steps.of[i].address, steps.of[i].value, 0});
            if (result != OK) return result;
        }
        return OK;
    }
    for (int i = 0; i < 4; i++)
        if (function == bench_kernels[i])
            return !gx || gy != 1 || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1 || shared || extra
                       ? INVALID_VALUE
                       : launch_bench(function, stream, arguments, gx);
    if (function != known_kernel || !gx || !gy || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1 || shared || extra)
        return INVALID_VALUE;
    atomic_fetch_add(&launched, 1);
    for (unsigned i = 0; i < gy; i++) {
        memcpy(&piece, (const char *)arguments[0] + i * sizeof piece, sizeof piece);
        const int result = fake_enqueue(stream, (op){KERNEL, piece.to, piece.from, piece.nbytes});
        if (result != OK) return result;
    }
    return OK;
}
