/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */
#include "gpu_bench.h"

#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { LINE = 64, PAGE = 4096, TURNS_BEFORE_YIELD = 1 << 14 };

static const char usage[] =
    "usage: gpu_bench WORK [options]\n"
    "works: write gated gate doorbell watch compute stream burst pages\n"
    "  --nbytes N --count N --inflight N   of one repetition\n"
    "  --arena N       bytes of memory on each GPU\n"
    "  --rounds N      of the kernel of `compute`\n"
    "  --gpus N        1: from a GPU to itself\n"
    "  --kernels FILE  PTX of kernels.cu\n"
    "  --library FILE  the libcuda (default: libcuda.so.1)\n"
    "  --timeout N     seconds that a repetition may take (default: 60)\n"
    "  --step          a repetition for each line of standard input, after one that is not reported\n";

gpu_bench bench;

static unsigned char *words;
static CUdeviceptr words_address;

double gpu_now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e6 + (double)time.tv_nsec / 1e3;
}

void gpu_use(const gpu *gpu) { CU(cuCtxSetCurrent(gpu->context)); }

static uint64_t *word_of(enum gpu_word word) { return (uint64_t *)(void *)(words + word * LINE); }

uint64_t gpu_load(enum gpu_word word) { return __atomic_load_n(word_of(word), __ATOMIC_ACQUIRE); }

void gpu_set(enum gpu_word word, uint64_t value) { __atomic_store_n(word_of(word), value, __ATOMIC_RELEASE); }

CUdeviceptr gpu_address(enum gpu_word word) { return words_address + (CUdeviceptr)word * LINE; }

void gpu_await(enum gpu_word word, uint64_t value) {
    unsigned turns = 0;
    while (gpu_load(word) < value)
        if (++turns % TURNS_BEFORE_YIELD == 0) sched_yield();
}

uint64_t gpu_next(void) {
    static uint64_t last;
    return ++last;
}

void gpu_launch(CUfunction function, unsigned blocks, unsigned threads, CUstream stream, void **arguments) {
    CU(cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, NULL));
}

/* ---- opening ---- */

static char *read_file(const char *path) {
    FILE *file = fopen(path, "r");
    char *text = calloc(1, 1 << 20);
    if (!file || !text) gpu_die("%s: %s", path, strerror(errno));
    if (fread(text, 1, (1 << 20) - 1, file) == 0) gpu_die("%s is empty", path);
    fclose(file);
    return text;
}

static void open_gpu(gpu *gpu, int ordinal, const char *kernels) {
    CUdevice device;
    CUmodule module;
    CU(cuDeviceGet(&device, ordinal));
    CU(cuDeviceGetAttribute(&gpu->processors, CU_MULTIPROCESSOR_COUNT, device));
    CU(cuDevicePrimaryCtxRetain(&gpu->context, device));
    gpu_use(gpu);
    for (int i = 0; i < GPU_STREAMS; i++) CU(cuStreamCreate(&gpu->streams[i], CU_STREAM_NON_BLOCKING));
    CU(cuMemAlloc_v2(&gpu->memory, bench.arena_nbytes));
    CU(cuModuleLoadData(&module, kernels));
    CU(cuModuleGetFunction(&gpu->store, module, "bench_store"));
    CU(cuModuleGetFunction(&gpu->count, module, "bench_count"));
    CU(cuModuleGetFunction(&gpu->gather, module, "bench_gather"));
    CU(cuModuleGetFunction(&gpu->compute, module, "bench_compute"));
}

/* Run each kernel once: at its first launch the driver loads it, and may wait for streams that wait for us. */
static void warm_up(const gpu *gpu) {
    CUdeviceptr word = gpu_address(WORD_STAMP), memory = gpu->memory;
    uint64_t none = 0;
    unsigned nothing = 0;
    void *store[] = {&word, &none}, *count[] = {&word, &word, &none}, *compute[] = {&memory, &nothing};
    void *gather[] = {&memory, &memory, &memory, &nothing};
    gpu_use(gpu);
    gpu_launch(gpu->store, 1, 1, gpu->streams[0], store);
    gpu_launch(gpu->count, 1, 1, gpu->streams[0], count);
    gpu_launch(gpu->compute, 1, 1, gpu->streams[0], compute);
    gpu_launch(gpu->gather, 1, 1, gpu->streams[0], gather);
    CU(cuStreamSynchronize(gpu->streams[0]));
}

static void open_all(const char *library, const char *kernels, int gpus) {
    int count = 0;
    driver_open(library);
    CU(cuDeviceGetCount(&count));
    if (count < gpus) gpu_die("there are %d GPUs", count);
    char *image = read_file(kernels);
    open_gpu(&bench.from, 0, image);
    open_gpu(&bench.to, gpus - 1, image);
    free(image);
    if (gpus > 1) {
        CU(cuCtxEnablePeerAccess(bench.from.context, 0));
        gpu_use(&bench.from);
        CU(cuCtxEnablePeerAccess(bench.to.context, 0));
    }
    words = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (words == MAP_FAILED) gpu_die("mmap: %s", strerror(errno));
    CU(cuMemHostRegister_v2(words, PAGE, CU_MEMHOSTREGISTER_PORTABLE | CU_MEMHOSTREGISTER_DEVICEMAP));
    CU(cuMemHostGetDevicePointer_v2(&words_address, words, 0));
    warm_up(&bench.to);
    warm_up(&bench.from);
    bench.samples = calloc(bench.count, sizeof *bench.samples);
    if (!bench.samples) gpu_die("out of memory");
}

/* ---- repetitions ---- */

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of sorted ones, by the nearest rank. */
static double percentile(double p) {
    const double rank = (double)bench.count * p / 100;
    size_t above = (size_t)rank + ((double)(size_t)rank < rank);
    return bench.samples[above ? above - 1 : 0];
}

static void report(const gpu_work *work, double value) {
    printf("{\"work\": \"%s\", \"provider\": \"cuda\", \"wait\": \"poll\", \"nbytes\": %zu, \"count\": %zu, "
           "\"inflight\": %u, \"targets\": 1, \"unit\": \"%s\"",
           work->name, bench.nbytes, bench.count, bench.inflight, work->unit);
    if (value >= 0) {
        printf(", \"value\": %.6g, \"p50\": null, \"p99\": null}\n", value);
    } else {
        qsort(bench.samples, bench.count, sizeof *bench.samples, by_value);
        printf(", \"value\": %.6g, \"p50\": %.6g, \"p99\": %.6g, \"p999\": %.6g, \"max\": %.6g}\n", percentile(50),
               percentile(50), percentile(99), percentile(99.9), percentile(100));
    }
    fflush(stdout);
}

static const gpu_work *find_work(const char *name) {
    for (const gpu_work *work = gpu_works; work->name; work++)
        if (strcmp(work->name, name) == 0) return work;
    gpu_die("no such work: %s; --help says more", name);
}

int main(int argc, char **argv) {
    static const struct option known[] = {
        {"nbytes", required_argument, NULL, 'n'},   {"count", required_argument, NULL, 'c'},
        {"inflight", required_argument, NULL, 'i'}, {"targets", required_argument, NULL, 'T'},
        {"arena", required_argument, NULL, 'a'},    {"rounds", required_argument, NULL, 'r'},
        {"gpus", required_argument, NULL, 'g'},     {"kernels", required_argument, NULL, 'k'},
        {"library", required_argument, NULL, 'l'},  {"timeout", required_argument, NULL, 't'},
        {"step", no_argument, NULL, 's'},           {NULL, 0, NULL, 0},
    };
    const char *library = "libcuda.so.1", *kernels = "build/bench/gpu_kernels.ptx";
    unsigned timeout = 60;
    int gpus = 1, option;
    char line[64];
    if (argc < 2 || strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return argc < 2 ? 2 : 0;
    }
    const gpu_work *work = find_work(argv[1]);
    bench = (gpu_bench){.nbytes = 8, .count = 100, .inflight = 1, .rounds = 1 << 20, .arena_nbytes = 256 << 20};
    while ((option = getopt_long(argc - 1, argv + 1, "", known, NULL)) != -1) {
        switch (option) {
        case 'n': bench.nbytes = strtoull(optarg, NULL, 10); break;
        case 'c': bench.count = strtoull(optarg, NULL, 10); break;
        case 'i': bench.inflight = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'T': break; /* one, always */
        case 'a': bench.arena_nbytes = strtoull(optarg, NULL, 10); break;
        case 'r': bench.rounds = (unsigned)strtoul(optarg, NULL, 10); break;
        case 'g': gpus = (int)strtol(optarg, NULL, 10); break;
        case 'k': kernels = optarg; break;
        case 'l': library = optarg; break;
        case 't': timeout = (unsigned)strtoul(optarg, NULL, 10); break;
        case 's': break; /* always */
        default: return 2; /* getopt has said why */
        }
    }
    if (!bench.count || !bench.inflight || bench.nbytes * bench.inflight > bench.arena_nbytes || gpus < 1)
        gpu_die("this does not fit: --help says more");
    alarm(timeout);
    open_all(library, kernels, gpus);
    work->run();
    if (work->check) work->check();
    alarm(0);
    while (fgets(line, sizeof line, stdin)) {
        alarm(timeout);
        report(work, work->run());
        alarm(0);
    }
    return 0;
}
