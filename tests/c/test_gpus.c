/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What NICs write into memory of GPUs, and streams that wait for it in gates: on the tests' own libibverbs and libcuda,
 * which holds it back from streams until it is flushed. */
#include "cuda_driver.h"
#include "engine_helpers.h"
#include "fake_verbs.h"

extern const pplx_provider pplx_provider_verbs;

enum { NBYTES = 4096, ROUNDS = 50, PAGE = 4096 };

static char libcuda[PATH_MAX], options[256];
static const pplx_libcuda *cuda;
static cu_context context;
static int (*allocate)(uint64_t *, size_t);
static int (*release)(uint64_t);
static int (*to_host)(void *, uint64_t, size_t);
static int (*flushes)(void);
static int (*flushing_waits)(void);

static _Alignas(PAGE) uint8_t page[PAGE]; /* whose beginning is the gate's cell */

static void load_cuda(void) {
    pplx_error error;
    snprintf(libcuda, sizeof libcuda, "%s", fake_path);
    strcpy(strrchr(libcuda, '/'), "/libcuda_fake.so.1");
    const int length = snprintf(options, sizeof options, "library=%s libcuda=%s", fake_path, libcuda);
    CHECK(length < (int)sizeof options);
    void *library = dlopen(libcuda, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    *(void **)&allocate = fake_symbol(library, "cuMemAlloc_v2");
    *(void **)&release = fake_symbol(library, "cuMemFree_v2");
    *(void **)&to_host = fake_symbol(library, "cuMemcpyDtoH_v2");
    *(void **)&flushes = fake_symbol(library, "fake_cuda_flushes");
    *(void **)&flushing_waits = fake_symbol(library, "fake_cuda_flushing_waits");
    CHECK_EQ(pplx_cuda_load(libcuda, &cuda, &error), PPLX_OK);
    CHECK_EQ(cuda->primary_retain(&context, 0), CU_OK);
    CHECK_EQ(cuda->context_push(context), CU_OK);
}

static void behaves(const char *ordering, const char *flush) {
    CHECK(setenv("FAKE_CUDA_ORDERING", ordering, 1) == 0 && setenv("FAKE_CUDA_FLUSH", flush, 1) == 0);
}

/* a's writes go into memory of b's GPU. */
typedef struct gpu_pair {
    pair pair;
    pplx_mr mr;
    cu_stream stream;
    pplx_pinned pinned;
    uint64_t landing, copy;
} gpu_pair;

static uint64_t gpu_bytes(void) {
    uint64_t address = 0;
    CHECK_EQ(allocate(&address, NBYTES), 0);
    return address;
}

static void gpu_pair_open(gpu_pair *g) {
    pplx_engine_config config = default_config;
    pplx_error error;
    memset(g, 0, sizeof *g);
    config.libcuda = libcuda;
    pair_open_with(&g->pair, 1, 1, options, NBYTES, &config);
    g->landing = gpu_bytes();
    g->copy = gpu_bytes();
    g->mr.memory = (pplx_memory){.kind = PPLX_MEMORY_CUDA, .address = g->landing, .nbytes = NBYTES, .fd = -1};
    g->mr.access = PPLX_ACCESS_REMOTE_WRITE;
    CHECK_EQ(call(&g->pair.b, PPLX_CALL_MR_OPEN, &g->mr, &error), PPLX_OK);
    memcpy(g->pair.remote.keys, g->mr.keys, sizeof g->pair.remote.keys);
    CHECK_EQ(cuda->stream_create(&g->stream, CU_STREAM_NON_BLOCKING), CU_OK);
    CHECK_EQ(pplx_cuda_pin(libcuda, (uintptr_t)g->stream, page, PAGE, &g->pinned, &error), PPLX_OK);
}

static void gpu_pair_close(gpu_pair *g) {
    pplx_cuda_unpin(libcuda, page, &g->pinned);
    CHECK_EQ(cuda->stream_destroy(g->stream), CU_OK);
    CHECK_EQ(call(&g->pair.b, PPLX_CALL_MR_CLOSE, &g->mr, NULL), PPLX_OK);
    pair_close(&g->pair);
    CHECK(release(g->landing) == 0 && release(g->copy) == 0);
}

/* Once more: the stream waits in a gate, and copies what has landed then. `native`: what that fails with. */
static void gate_and_copy(gpu_pair *g, uint64_t round, int32_t native) {
    static uint8_t bytes[NBYTES];
    pplx_cell *cell = (pplx_cell *)(void *)page;
    pplx_lane lane = {0};
    pplx_error error;
    bool retired = false;
    pplx_word gate = {.kind = PPLX_WORD_GATE,
                      .cookie = &retired,
                      .cell = cell,
                      .lane = &lane,
                      .counter = &g->pair.counter,
                      .eighths = PPLX_EIGHTHS,
                      .notify_at = UINT64_MAX};
    const pplx_step steps[] = {
        {.kind = PPLX_STEP_WRITE, .value = PPLX_CELL_REQUEST, .address = g->pinned.address},
        {.kind = PPLX_STEP_WAIT_FLUSH, .mask = PPLX_CELL_ANSWERED, .address = g->pinned.address},
        {.kind = PPLX_STEP_WRITE, .value = PPLX_CELL_PASSED, .address = g->pinned.address},
    };
    *cell = (pplx_cell){0};
    CHECK_EQ(pplx_cuda_push(libcuda, (uintptr_t)g->stream, steps, 3, &gate.gpu, &error), PPLX_OK);
    CHECK_EQ(gate.gpu, 1);
    CHECK_EQ(cuda->copy(g->copy, g->landing, NBYTES, g->stream), CU_OK);
    pplx_word_arm(g->pair.b.engine, &gate);
    area_fill(&g->pair.from, round);
    write_now(&g->pair, 0, NBYTES, true);
    WAIT(retired);
    WATCH(cuda->stream_query(g->stream) == CU_OK);
    CHECK_EQ(pplx_word_count(&gate), native ? 0 : 1);
    CHECK_EQ(pplx_word_take_status(&gate), native ? PPLX_NATIVE : PPLX_OK);
    CHECK_EQ(gate.native, native);
    CHECK_EQ(pplx_lane_poisoned(&lane), native != 0);
    if (native) return;
    CHECK_EQ(to_host(bytes, g->copy, NBYTES), 0);
    CHECK(memcmp(bytes, g->pair.from.bytes, NBYTES) == 0);
}

static void rounds(const char *ordering, const char *flush, int calls, int waits) {
    gpu_pair g;
    pplx_gpu_told told;
    behaves(ordering, flush);
    gpu_pair_open(&g);
    CHECK_EQ(pplx_engine_gpus(g.pair.a.engine, &told, 1), 0);
    CHECK_EQ(pplx_engine_gpus(g.pair.b.engine, &told, 1), 1);
    CHECK_EQ(told.ordinal, 0);
    CHECK_EQ((int)told.ordered, atoi(ordering));
    const int called = flushes(), waited = flushing_waits();
    for (uint64_t round = 1; round <= ROUNDS; round++) gate_and_copy(&g, round, 0);
    CHECK_EQ(flushes() - called, calls);
    CHECK_EQ(flushing_waits() - waited, waits);
    gpu_pair_close(&g);
}

static void a_gate_is_flushed_by_a_call(void) { rounds("0", "1", ROUNDS, 0); }

static void a_gate_is_flushed_by_its_wait(void) { rounds("0", "3", 0, ROUNDS); }

static void a_gate_is_not_flushed_where_the_gpu_orders_it(void) { rounds("100", "3", 0, 0); }

static void a_flush_that_fails_lets_the_stream_go_in_vain(void) {
    gpu_pair g;
    behaves("0", "1");
    gpu_pair_open(&g);
    gate_and_copy(&g, 1, 0);
    setenv("FAKE_CUDA_FAIL", "cuFlushGPUDirectRDMAWrites:719", 1);
    gate_and_copy(&g, 2, 719);
    unsetenv("FAKE_CUDA_FAIL");
    gate_and_copy(&g, 3, 0);
    gpu_pair_close(&g);
}

static void memory_that_can_not_be_flushed_is_refused(void) {
    gpu_pair g;
    pplx_error error;
    pplx_mr mr = {0};
    behaves("0", "1");
    gpu_pair_open(&g);
    behaves("0", "0");
    mr.memory = g.mr.memory;
    CHECK_EQ(call(&g.pair.b, PPLX_CALL_MR_OPEN, &mr, &error), PPLX_OK); /* of a GPU that is known */
    CHECK_EQ(call(&g.pair.b, PPLX_CALL_MR_CLOSE, &mr, NULL), PPLX_OK);
    CHECK_EQ(call(&g.pair.a, PPLX_CALL_MR_OPEN, &mr, &error), PPLX_REGISTRATION);
    CHECK(strstr(error.text, "no way to flush it"));
    gpu_pair_close(&g);
}

int main(void) {
    fake_load(false);
    load_cuda();
    host_provider = &pplx_provider_verbs;
    host_device = "x%u";
    CHECK_EQ(fake.layout("x0 roce ip=10.0.0.1 dmabuf"), 0);
    RUN(a_gate_is_flushed_by_a_call);
    RUN(a_gate_is_flushed_by_its_wait);
    RUN(a_gate_is_not_flushed_where_the_gpu_orders_it);
    RUN(a_flush_that_fails_lets_the_stream_go_in_vain);
    RUN(memory_that_can_not_be_flushed_is_refused);
    CHECK_EQ(cuda->primary_release(0), CU_OK);
    return check_done();
}
