/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What NICs write into memory of GPUs, and streams that wait for it in gates: on the tests' own libibverbs, libfabric and
 * libcuda, which holds it back from streams until it is flushed. */
#include "cuda_driver.h"
#include "engine_helpers.h"
#include "fake_verbs.h"
#include "internal.h"

extern const pplx_provider pplx_provider_verbs, pplx_provider_fabric;

enum { NBYTES = 4096, ROUNDS = 50, PAGE = 4096, GPUS = 8, ENGINES = 3 };

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

static void load_verbs(void) {
    const int length = snprintf(options, sizeof options, "library=%s libcuda=%s", fake_path, libcuda);
    CHECK(length < (int)sizeof options);
    host_provider = &pplx_provider_verbs;
    host_device = "x%u";
    CHECK_EQ(fake.layout("x0 roce ip=10.0.0.1 dmabuf"), 0);
}

static bool load_efa(void) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", libcuda);
    strcpy(strrchr(path, '/'), "/libfabric_fake.so.1");
    const int length = snprintf(options, sizeof options, "library=%s provider=efa libcuda=%s", path, libcuda);
    CHECK(length < (int)sizeof options);
    host_provider = &pplx_provider_fabric;
    host_device = "fakeefa%u-rdm";
    setenv("FAKE_EFA_CUDA", libcuda, 1);
    return access(path, F_OK) == 0;
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
    CHECK_EQ(pplx_cuda_stream(cuda, &g->stream), CU_OK);
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
                      .turn = pplx_cell_take(cell),
                      .lane = &lane,
                      .counter = &g->pair.counter,
                      .eighths = PPLX_EIGHTHS,
                      .notify_at = UINT64_MAX};
    const pplx_step steps[] = {
        {.kind = PPLX_STEP_WRITE, .value = gate.turn + PPLX_CELL_ASKS, .address = g->pinned.address},
        {.kind = PPLX_STEP_WAIT_FLUSH, .least = gate.turn + PPLX_CELL_ANSWERED, .address = g->pinned.address},
    };
    CHECK_EQ(pplx_cuda_push(libcuda, (uintptr_t)g->stream, steps, 2, &gate.gpu, &error), PPLX_OK);
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

static uint64_t bytes_of(int gpu) {
    cu_context its, popped;
    CHECK_EQ(cuda->primary_retain(&its, gpu), CU_OK);
    CHECK_EQ(cuda->context_push(its), CU_OK);
    const uint64_t address = gpu_bytes();
    CHECK_EQ(cuda->context_pop(&popped), CU_OK);
    CHECK_EQ(cuda->primary_release(gpu), CU_OK);
    return address;
}

/* On EFA by a thread beside the proxy, which opens gates meanwhile, and flushes for each all GPUs that there are. */
static void gpus_come_while_gates_open(void) {
    behaves("0", "1");
    for (int i = 0; i < ENGINES; i++) {
        gpu_pair g;
        pplx_gpu_told told[GPUS];
        pplx_mr others[GPUS - 1] = {0};
        uint64_t round = 0;
        gpu_pair_open(&g);
        for (int gpu = 1; gpu < GPUS; gpu++) {
            pplx_mr *mr = &others[gpu - 1];
            mr->memory = g.mr.memory;
            mr->memory.address = bytes_of(gpu);
            ending end = {0};
            pplx_request request = {
                .kind = PPLX_REQUEST_CALL, .opcode = PPLX_CALL_MR_OPEN, .subject = mr, .cookie = &end};
            pplx_submit(g.pair.b.engine, &request);
            do gate_and_copy(&g, ++round, 0);
            while (!end.released);
            CHECK_EQ(request.error.status, PPLX_OK);
            CHECK_EQ(pplx_engine_gpus(g.pair.b.engine, told, GPUS), gpu + 1);
            CHECK_EQ(told[gpu].ordinal, gpu);
        }
        for (int gpu = 1; gpu < GPUS; gpu++) {
            CHECK_EQ(call(&g.pair.b, PPLX_CALL_MR_CLOSE, &others[gpu - 1], NULL), PPLX_OK);
            CHECK_EQ(release(others[gpu - 1].memory.address), 0);
        }
        gpu_pair_close(&g);
    }
}

typedef struct adding {
    pplx_engine *engine;
    pplx_memory memory;
    pthread_t thread;
} adding;

static void *add_gpu(void *argument) {
    adding *a = argument;
    pplx_error error;
    CHECK_EQ(pplx_gpus_add(a->engine, &a->memory, &error), PPLX_OK);
    return NULL; /* at once: what it does afterwards could order it, and hide what doesn't */
}

/* Nothing else is between the two. */
static void who_opens_gates_finds_gpus_whole(void) {
    pplx_engine_config config = default_config;
    pplx_engine *engine;
    pplx_error error;
    adding all[GPUS];
    config.libcuda = libcuda;
    behaves("0", "1");
    CHECK_EQ(pplx_engine_open(&config, &engine, &error), PPLX_OK); /* ours, for it is not started */
    for (uint32_t gpu = 0; gpu < GPUS; gpu++) {
        const pplx_memory memory = {
            .kind = PPLX_MEMORY_CUDA, .address = bytes_of((int)gpu), .nbytes = NBYTES, .fd = -1};
        all[gpu] = (adding){.engine = engine, .memory = memory};
        const int called = flushes();
        engine->landed = true;
        CHECK_EQ(pthread_create(&all[gpu].thread, NULL, add_gpu, &all[gpu]), 0);
        for (const uint64_t start = check_now_ns(); flushes() < called + (int)gpu + 1;) {
            CHECK((double)(check_now_ns() - start) < PATIENCE_S * 1e9);
            CHECK_EQ(pplx_gpus_flush(engine, 1), CU_OK); /* a stream of GPU 0 */
        }
    }
    for (uint32_t gpu = 0; gpu < GPUS; gpu++) {
        pthread_join(all[gpu].thread, NULL);
        CHECK_EQ(release(all[gpu].memory.address), 0);
    }
    pplx_engine_close(engine);
}

static void run_all(void) {
    RUN(a_gate_is_flushed_by_a_call);
    RUN(a_gate_is_flushed_by_its_wait);
    RUN(a_gate_is_not_flushed_where_the_gpu_orders_it);
    RUN(a_flush_that_fails_lets_the_stream_go_in_vain);
    RUN(memory_that_can_not_be_flushed_is_refused);
    RUN(gpus_come_while_gates_open);
}

int main(void) {
    fake_load(false);
    setenv("FAKE_CUDA_DEVICES", "8", 1);
    load_cuda();
    RUN(who_opens_gates_finds_gpus_whole);
    printf("# on verbs\n");
    load_verbs();
    run_all();
    printf("# on EFA\n");
    if (load_efa())
        run_all();
    else
        printf("# not run: tests/fake_libfabric needs libfabric's headers (package libfabric-dev)\n");
    CHECK_EQ(cuda->primary_release(0), CU_OK);
    return check_done();
}
