/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs over the verbs provider: on the tests' own libibverbs, whose devices take any descriptor that can be
 * mapped for a dma-buf, and their own libcuda, which gives such ones. */
#include <sys/mman.h>

#include "cuda_driver.h"
#include "verbs_sides.h"

enum { GPU = 64 << 10 };

static char libcuda[PATH_MAX], given[PATH_MAX + 16];
static struct {
    int (*init)(unsigned);
    int (*retain)(uintptr_t *, int);
    int (*push)(uintptr_t);
    int (*allocate)(uint64_t *, size_t);
    int (*release)(uint64_t);
    int (*to_device)(uint64_t, const void *, size_t);
    int (*from_device)(void *, uint64_t, size_t);
    int (*exported)(void);
    int (*renew)(uint64_t);
} gpu;

static void load_cuda(void) {
    uintptr_t context;
    snprintf(libcuda, sizeof libcuda, "%s", fake_path);
    strcpy(strrchr(libcuda, '/'), "/libcuda_fake.so.1");
    snprintf(given, sizeof given, "libcuda=%s", libcuda);
    void *library = dlopen(libcuda, RTLD_NOW | RTLD_LOCAL);
    CHECK(library);
    *(void **)&gpu.init = fake_symbol(library, "cuInit");
    *(void **)&gpu.retain = fake_symbol(library, "cuDevicePrimaryCtxRetain");
    *(void **)&gpu.push = fake_symbol(library, "cuCtxPushCurrent_v2");
    *(void **)&gpu.allocate = fake_symbol(library, "cuMemAlloc_v2");
    *(void **)&gpu.release = fake_symbol(library, "cuMemFree_v2");
    *(void **)&gpu.to_device = fake_symbol(library, "cuMemcpyHtoD_v2");
    *(void **)&gpu.from_device = fake_symbol(library, "cuMemcpyDtoH_v2");
    *(void **)&gpu.exported = fake_symbol(library, "fake_cuda_exported");
    *(void **)&gpu.renew = fake_symbol(library, "fake_cuda_renew");
    CHECK(gpu.init(0) == 0 && gpu.retain(&context, 0) == 0 && gpu.push(context) == 0);
}

static uint64_t allocate(void) {
    uint64_t address = 0;
    CHECK_EQ(gpu.allocate(&address, GPU), 0);
    return address;
}

static pplx_status registers(side *s, uint64_t address, uint64_t nbytes, uint32_t access, pplx_provider_mr **mr,
                             pplx_remote_key *key, pplx_error *error) {
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = address, .nbytes = nbytes, .fd = -1};
    *error = (pplx_error){0};
    return verbs->mr_open(s->domain, &memory, access, mr, key, error);
}

static const char two_that_take_it[] = "x0 roce ip=10.0.0.1 dmabuf; x1 roce ip=10.0.0.2 dmabuf";

/* From the middle of an allocation into the middle of one, and back by READ. */
static void memory_of_a_gpu_is_registered_as_a_dmabuf(void) {
    side a, b;
    watched w;
    pplx_error error;
    pplx_provider_mr *here, *there;
    pplx_remote_key key, remote;
    static uint8_t bytes[GPU], back[GPU];
    const uint64_t at_a = allocate(), at_b = allocate();
    pair_open(&a, &b, two_that_take_it, given);
    CHECK(a.caps.flags & PPLX_CAP_CUDA);
    CHECK(strstr(a.caps.description, "GPUs by dma-buf"));
    const int open = dup(0);
    close(open);
    const uint32_t both = PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
    CHECK_EQ(registers(&a, at_a + 4100, 9000, both, &here, &key, &error), PPLX_OK);
    CHECK_EQ(registers(&b, at_b + 100, 9000, both, &there, &remote, &error), PPLX_OK);
    const int then = dup(0);
    CHECK_EQ(then, open); /* the descriptors are closed again */
    close(then);
    fill(bytes, GPU, 1);
    CHECK_EQ(gpu.to_device(at_a, bytes, GPU), 0);
    pplx_work_request one = request(&a, &b, &w, PPLX_WRITE_IMM, 0, 8000, 7);
    one.local_mr = here;
    one.local_address = at_a + 4100 + 500;
    one.remote_key = remote.key;
    one.remote_address = remote.base + 1000;
    CHECK_EQ(post(&a, &one), PPLX_OK);
    WAIT(w.completions && b.nimms);
    CHECK_EQ(w.status, PPLX_OK);
    CHECK_EQ(gpu.from_device(back, at_b, GPU), 0);
    CHECK(memcmp(back + 100 + 1000, bytes + 4100 + 500, 8000) == 0);
    for (int i = 0; i < 1100; i++) CHECK_EQ(back[i], 0);
    for (int i = 1100 + 8000; i < GPU; i++) CHECK_EQ(back[i], 0);
    one = request(&a, &b, &w, PPLX_READ, 0, 8, 0); /* a few bytes: never by the processor */
    one.local_mr = here;
    one.local_address = at_a + 4100;
    one.remote_key = remote.key;
    one.remote_address = remote.base + 1000;
    CHECK_EQ(post(&a, &one), PPLX_OK);
    WAIT(w.completions);
    CHECK_EQ(w.status, PPLX_OK);
    CHECK_EQ(gpu.from_device(back, at_a, GPU), 0);
    CHECK(memcmp(back + 4100, bytes + 4100 + 500, 8) == 0);
    CHECK_EQ(verbs->mr_close(here), PPLX_OK);
    CHECK_EQ(verbs->mr_close(there), PPLX_OK);
    pair_close(&a, &b);
    CHECK(gpu.release(at_a) == 0 && gpu.release(at_b) == 0);
}

/* Arrays of a pool that no peer may reach are one registration, for as long as the allocation is the same one. */
static void regions_for_nobody_share_the_registration_of_their_allocation(void) {
    side a, b;
    watched w;
    pplx_error error;
    pplx_provider_mr *parts[4], *other, *open;
    pplx_remote_key keys[4], key;
    static uint8_t bytes[GPU];
    const uint64_t pool = allocate();
    pair_open(&a, &b, two_that_take_it, given);
    const int exported = gpu.exported(), objects = (int)fake_now().objects;
    for (uint64_t i = 0; i < 4; i++)
        CHECK_EQ(registers(&a, pool + 256 * i, 256, PPLX_ACCESS_LOCAL, &parts[i], &keys[i], &error), PPLX_OK);
    CHECK_EQ(gpu.exported(), exported + 1);
    CHECK_EQ((int)fake_now().objects, objects + 1);
    fill(bytes, GPU, 3);
    CHECK_EQ(gpu.to_device(pool, bytes, GPU), 0);
    pplx_work_request one = request(&a, &b, &w, PPLX_WRITE, 0, 256, 0);
    one.local_mr = parts[3];
    one.local_address = pool + 256 * 3;
    CHECK_EQ(post(&a, &one), PPLX_OK);
    WAIT(w.completions);
    CHECK_EQ(w.status, PPLX_OK);
    CHECK(memcmp(b.arena, bytes + 256 * 3, 256) == 0);
    one = request(&b, &a, &w, PPLX_WRITE, 0, 8, 0); /* its key is good for nothing */
    one.remote_key = keys[1].key;
    one.remote_address = pool;
    CHECK_EQ(post(&b, &one), PPLX_OK);
    WAIT(w.completions);
    CHECK(w.status != PPLX_OK);
    /* one that peers may reach has keys of its own */
    CHECK_EQ(registers(&a, pool, 256, PPLX_ACCESS_REMOTE_WRITE, &open, &key, &error), PPLX_OK);
    CHECK_EQ(gpu.exported(), exported + 2);
    CHECK_EQ(verbs->mr_close(open), PPLX_OK);
    /* freed, and given out again: what was registered is gone */
    CHECK_EQ(gpu.renew(pool), 0);
    CHECK_EQ(registers(&a, pool, 256, PPLX_ACCESS_LOCAL, &other, &key, &error), PPLX_OK);
    CHECK_EQ(gpu.exported(), exported + 3);
    for (int i = 0; i < 4; i++) CHECK_EQ(verbs->mr_close(parts[i]), PPLX_OK);
    CHECK_EQ(verbs->mr_close(other), PPLX_OK);
    CHECK_EQ((int)fake_now().objects, objects);
    pair_close(&a, &b);
    CHECK_EQ(gpu.release(pool), 0);
}

static void check_refused(const char *layout, const char *options, uint64_t address, const char *why) {
    side a;
    pplx_error error;
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    layout_is(layout);
    side_open(&a, "x0", options);
    CHECK_EQ(registers(&a, address, 4096, PPLX_ACCESS_REMOTE_WRITE, &mr, &key, &error), PPLX_REGISTRATION);
    CHECK_EQ(registers(&a, address, 4096, PPLX_ACCESS_LOCAL, &mr, &key, &error), PPLX_REGISTRATION);
    if (!strstr(error.text, why) || !strstr(error.text, "nvidia_peermem")) check_failed(__FILE__, __LINE__, error.text);
    side_close(&a);
    check_clean();
}

/* A NIC that can't reach it says what would. */
static void what_keeps_a_device_from_it_is_said(void) {
    const uint64_t address = allocate();
    static const char takes_it[] = "x0 roce ip=10.0.0.1 dmabuf";
    check_refused("x0 roce ip=10.0.0.1", given, address, "takes none");
    setenv("FAKE_CUDA_DMABUF", "0", 1);
    check_refused(takes_it, given, address, "11.7");
    unsetenv("FAKE_CUDA_DMABUF");
    setenv("FAKE_CUDA_FAIL", "cuMemGetHandleForAddressRange:2", 1);
    check_refused(takes_it, given, address, "CUDA_ERROR_OUT_OF_MEMORY");
    unsetenv("FAKE_CUDA_FAIL");
    check_refused(takes_it, "libcuda=/nowhere/libcuda.so.1", address, "no libcuda.so.1");
    CHECK_EQ(gpu.release(address), 0);
}

static void what_is_no_memory_of_a_gpu_is_refused(void) {
    side a;
    pplx_error error;
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    const uint64_t address = allocate();
    layout_is("x0 roce ip=10.0.0.1 dmabuf");
    side_open(&a, "x0", given);
    CHECK_EQ(registers(&a, (uintptr_t)a.arena, 4096, 0, &mr, &key, &error), PPLX_INVALID);
    CHECK_EQ(registers(&a, address + GPU - 8, 16, 0, &mr, &key, &error), PPLX_INVALID);
    side_close(&a);
    check_clean();
    CHECK_EQ(gpu.release(address), 0);
}

/* Messages are copied by the processor, from a buffer: into memory of a GPU they are refused, out of it they go. */
static void a_message_is_sent_from_a_gpu_and_not_received_there(void) {
    side a, b;
    watched w, sent;
    pplx_error error;
    pplx_provider_mr *here, *there;
    pplx_remote_key key;
    static uint8_t bytes[GPU];
    const uint64_t address = allocate();
    pair_open(&a, &b, two_that_take_it, given);
    CHECK_EQ(registers(&a, address, GPU, PPLX_ACCESS_LOCAL, &here, &key, &error), PPLX_OK);
    CHECK_EQ(registers(&b, address, GPU, PPLX_ACCESS_LOCAL, &there, &key, &error), PPLX_OK);
    pplx_work_request one = request(&b, NULL, &w, PPLX_RECV, 0, 4096, 0);
    one.local_mr = there;
    one.local_address = address;
    CHECK_EQ(post(&b, &one), PPLX_UNSUPPORTED);
    one = request(&b, NULL, &w, PPLX_RECV, 0, 4096, 0);
    CHECK_EQ(post(&b, &one), PPLX_OK);
    fill(bytes, GPU, 5);
    CHECK_EQ(gpu.to_device(address, bytes, GPU), 0);
    one = request(&a, NULL, &sent, PPLX_SEND, 0, 1000, 0);
    one.local_mr = here;
    one.local_address = address;
    CHECK_EQ(post(&a, &one), PPLX_OK);
    WAIT(w.completions && sent.completions);
    CHECK(w.status == PPLX_OK && sent.status == PPLX_OK);
    CHECK(memcmp(b.arena, bytes, 1000) == 0);
    CHECK_EQ(verbs->mr_close(here), PPLX_OK);
    CHECK_EQ(verbs->mr_close(there), PPLX_OK);
    pair_close(&a, &b);
    CHECK_EQ(gpu.release(address), 0);
}

int main(void) {
    fake_load(false);
    load_cuda();
    if (access("/sys/module/nvidia_peermem", F_OK) == 0) {
        printf("nvidia_peermem is loaded: what happens without it can't be seen here\n");
        return 77;
    }
    RUN(memory_of_a_gpu_is_registered_as_a_dmabuf);
    RUN(regions_for_nobody_share_the_registration_of_their_allocation);
    RUN(what_keeps_a_device_from_it_is_said);
    RUN(what_is_no_memory_of_a_gpu_is_refused);
    RUN(a_message_is_sent_from_a_gpu_and_not_received_there);
    return check_done();
}
