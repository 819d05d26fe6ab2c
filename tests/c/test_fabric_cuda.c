/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Memory of GPUs over the fabric provider: on the tests' own libfabric, which speaks EFA and knows what it is given, and
 * their own libcuda, whose memory the processor can't touch. */
#include <dlfcn.h>
#include <limits.h>
#include <pthread.h>
#include <rdma/fi_domain.h>

#include "check.h"
#include "cuda_driver.h"
#include "fabric_sides.h"

enum { GPU = 64 << 10, ON = 1 /* the device */ };
static const uint64_t DMABUF = UINT64_C(1) << 40; /* FI_MR_DMABUF */

static char folder[PATH_MAX], libfabric[PATH_MAX + 32], libcuda[PATH_MAX + 32];

/* As in fake_efa.h. */
typedef struct registration {
    uint64_t flags, address, nbytes, offset;
    int iface, device, taken, refused;
} registration;

static void (*ask_registered)(registration *out);
static struct {
    int (*init)(unsigned);
    int (*count)(int *);
    int (*retain)(uintptr_t *, int);
    int (*push)(uintptr_t);
    int (*allocate)(uint64_t *, size_t);
    int (*release)(uint64_t);
    int (*to_device)(uint64_t, const void *, size_t);
    int (*from_device)(void *, uint64_t, size_t);
} gpu;

static void *find(void *library, const char *name) {
    void *symbol = dlsym(library, name);
    REQUIRE(symbol, "%s", name);
    return symbol;
}

static void load_libraries(void) {
    void *cuda = dlopen(libcuda, RTLD_NOW | RTLD_LOCAL), *nics = dlopen(libfabric, RTLD_NOW | RTLD_LOCAL);
    REQUIRE(cuda && nics, "%s", dlerror());
    *(void **)&ask_registered = find(nics, "fake_efa_registered");
    *(void **)&gpu.init = find(cuda, "cuInit");
    *(void **)&gpu.count = find(cuda, "cuDeviceGetCount");
    *(void **)&gpu.retain = find(cuda, "cuDevicePrimaryCtxRetain");
    *(void **)&gpu.push = find(cuda, "cuCtxPushCurrent_v2");
    *(void **)&gpu.allocate = find(cuda, "cuMemAlloc_v2");
    *(void **)&gpu.release = find(cuda, "cuMemFree_v2");
    *(void **)&gpu.to_device = find(cuda, "cuMemcpyHtoD_v2");
    *(void **)&gpu.from_device = find(cuda, "cuMemcpyDtoH_v2");
    options[0] = (pplx_option){"library", libfabric};
    options[1] = (pplx_option){"provider", "efa"};
    options[2] = (pplx_option){"libcuda", libcuda};
    noptions = 3;
    efa = true;
    snprintf(device, sizeof device, "fakeefa0-rdm");
    setenv("FAKE_EFA_CUDA", libcuda, 1);
}

static registration registered(void) {
    registration last;
    ask_registered(&last);
    return last;
}

static uint64_t allocate(void) {
    uint64_t address = 0;
    CHECK_EQ(gpu.allocate(&address, GPU), 0);
    return address;
}

static pplx_status registers(const side *s, uint64_t address, uint64_t nbytes, pplx_provider_mr **mr,
                             pplx_remote_key *key, pplx_error *error) {
    /* the ordinal is that of the driver, whatever the caller believes */
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .device = 0, .address = address, .nbytes = nbytes, .fd = -1};
    *error = (pplx_error){0};
    return fabric->mr_open(s->domain, &memory, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, mr, key, error);
}

/* A region of the middle of an allocation. */
typedef struct part {
    uint64_t allocation, address, nbytes;
    pplx_provider_mr *mr;
    pplx_remote_key key;
} part;

static part part_open(const side *s, uint64_t at, uint64_t nbytes) {
    pplx_error error;
    part p = {.allocation = allocate(), .nbytes = nbytes};
    p.address = p.allocation + at;
    REQUIRE(registers(s, p.address, nbytes, &p.mr, &p.key, &error) == PPLX_OK, "%s", error.text);
    CHECK_EQ(p.key.base, p.address);
    return p;
}

static void part_close(const part *p) {
    CHECK_EQ(fabric->mr_close(p->mr), PPLX_OK);
    CHECK_EQ(gpu.release(p->allocation), 0);
}

static void ends_well(side *a, side *b, pplx_work_request one, watched *w) {
    CHECK_EQ(post(a, b, &one), PPLX_OK);
    wait_for(a, b, w);
    CHECK_EQ(w->status, PPLX_OK);
}

static pplx_work_request from_to(const part *here, uint64_t at, const part *there, uint64_t to, uint64_t nbytes,
                                 uint32_t opcode, watched *w) {
    memset(w, 0, sizeof *w);
    return (pplx_work_request){.op = &w->op,
                               .local_address = here->address + at,
                               .nbytes = nbytes,
                               .local_mr = here->mr,
                               .remote_address = there ? there->key.base + to : 0,
                               .remote_key = there ? there->key.key : 0,
                               .opcode = opcode,
                               .imm = 7};
}

/* Into the middle of one, with an immediate, back by READ, and an immediate alone. */
static void move_both_ways(side *a, side *b, const part *here, const part *there) {
    static uint8_t bytes[GPU], back[GPU];
    watched w;
    fill(bytes, GPU, 1);
    CHECK_EQ(gpu.to_device(here->allocation, bytes, GPU), 0);
    b->nimms = 0;
    ends_well(a, b, from_to(here, 500, there, 1000, 8000, PPLX_WRITE_IMM, &w), &w);
    wait_imms(b, a, 1);
    CHECK_EQ(b->imms[0], 7);
    CHECK_EQ(gpu.from_device(back, there->allocation, GPU), 0);
    const uint64_t from = here->address - here->allocation + 500, to = there->address - there->allocation + 1000;
    CHECK(memcmp(back + to, bytes + from, 8000) == 0);
    for (uint64_t i = 0; i < GPU; i++)
        if (i < to || i >= to + 8000) CHECK_EQ(back[i], 0);
    ends_well(a, b, from_to(here, 0, there, 1000, 8, PPLX_READ, &w), &w);
    CHECK_EQ(gpu.from_device(back, here->allocation, GPU), 0);
    CHECK(memcmp(back + from - 500, bytes + from, 8) == 0);
    ends_well(a, b, from_to(here, 0, there, 0, 0, PPLX_WRITE_IMM, &w), &w);
    wait_imms(b, a, 2);
}

static void check_registered(const part *p, uint64_t flags) {
    const registration last = registered();
    CHECK_EQ(last.iface, FI_HMEM_CUDA);
    CHECK_EQ(last.device, ON);
    CHECK_EQ(last.flags, flags);
    CHECK_EQ(last.address, p->address);
    CHECK_EQ(last.nbytes, p->nbytes);
    CHECK_EQ(last.offset, flags ? p->address - p->allocation : 0);
}

/* First of all: afterwards it is. */
static void the_driver_is_not_initialised_before_there_is_memory_of_a_gpu(void) {
    side a;
    int count = 0;
    pplx_error error;
    pplx_provider_mr *mr;
    pplx_remote_key key;
    side_open(&a);
    CHECK(a.caps.flags & PPLX_CAP_CUDA);
    CHECK_EQ(gpu.count(&count), 3); /* CUDA_ERROR_NOT_INITIALIZED */
    CHECK_EQ(registers(&a, 4096, 4096, &mr, &key, &error), PPLX_INVALID);
    CHECK_EQ(gpu.count(&count), 0);
    side_close(&a);
}

static void memory_of_a_gpu_is_registered_as_a_dmabuf(void) {
    side a, b;
    pair_open(&a, &b);
    CHECK(a.caps.flags & PPLX_CAP_CUDA && a.caps.flags & PPLX_CAP_CUDA_APART);
    if (!strstr(a.caps.description, "GPUs by dma-buf")) check_failed(__FILE__, __LINE__, a.caps.description);
    const int open = dup(0);
    close(open);
    const part here = part_open(&a, 4100, 9000);
    check_registered(&here, DMABUF);
    const part there = part_open(&b, 100, 9000);
    check_registered(&there, DMABUF);
    const int then = dup(0);
    CHECK_EQ(then, open + 2); /* of the two allocations themselves: those of the dma-bufs are closed again */
    close(then);
    move_both_ways(&a, &b, &here, &there);
    part_close(&here);
    part_close(&there);
    pair_close(&a, &b);
}

static void check_by_address(const char *variable, const char *value, const char *way) {
    side a, b;
    setenv(variable, value, 1);
    pair_open(&a, &b);
    if (!strstr(a.caps.description, way)) check_failed(__FILE__, __LINE__, a.caps.description);
    const part here = part_open(&a, 4100, 9000);
    check_registered(&here, 0);
    const part there = part_open(&b, 100, 9000);
    check_registered(&there, 0);
    move_both_ways(&a, &b, &here, &there);
    part_close(&here);
    part_close(&there);
    pair_close(&a, &b);
    unsetenv(variable);
}

static void an_older_library_gets_its_address(void) {
    const registration before = registered();
    check_by_address("FAKE_EFA_VERSION", "17", "GPUs by address");
    check_by_address("FAKE_EFA_VERSION", "19", "GPUs by address");
    CHECK_EQ(registered().refused, before.refused); /* it is not even offered a dma-buf */
}

static void what_can_not_be_a_dmabuf_goes_by_its_address(void) {
    check_by_address("FAKE_CUDA_DMABUF", "0", "GPUs by dma-buf");
    const registration before = registered();
    check_by_address("FAKE_EFA_DMABUF", "0", "GPUs by dma-buf");
    CHECK_EQ(registered().refused, before.refused + 2);
}

/* Also in many posts with one doorbell, which may be left for us to ring. */
static void batches_and_messages_of_gpus_arrive(void) {
    enum { N = 16, EACH = 512 };
    static uint8_t bytes[GPU], back[GPU];
    side a, b;
    watched w[N], sent;
    pplx_work_request batch[N];
    pair_open(&a, &b);
    const part here = part_open(&a, 0, GPU), there = part_open(&b, 0, GPU);
    fill(bytes, GPU, 3);
    CHECK_EQ(gpu.to_device(here.allocation, bytes, GPU), 0);
    for (int i = 0; i < N; i++)
        batch[i] = from_to(&here, (uint64_t)i * EACH, &there, (uint64_t)(N - 1 - i) * EACH, EACH, PPLX_WRITE_IMM,
                           &w[i]);
    const double end = now() + PATIENCE;
    for (size_t done = 0; done < N;) {
        size_t posted = 0;
        int32_t native;
        const pplx_status status = fabric->post(a.endpoint, batch + done, N - done, &posted, &native);
        CHECK(status == PPLX_OK || status == PPLX_AGAIN);
        done += posted;
        side_poll(&a);
        side_poll(&b);
        REQUIRE(now() < end, "posted %zu", done);
    }
    for (int i = 0; i < N; i++) wait_for(&a, &b, &w[i]);
    wait_imms(&b, &a, N);
    CHECK_EQ(gpu.from_device(back, there.allocation, GPU), 0);
    for (int i = 0; i < N; i++) CHECK(memcmp(back + (N - 1 - i) * EACH, bytes + i * EACH, EACH) == 0);
    pplx_work_request receive = from_to(&there, 30000, NULL, 0, 4096, PPLX_RECV, &w[0]);
    CHECK_EQ(post(&b, &a, &receive), PPLX_OK);
    ends_well(&a, &b, from_to(&here, 7, NULL, 0, 1000, PPLX_SEND, &sent), &sent);
    wait_for(&b, &a, &w[0]);
    CHECK_EQ(w[0].status, PPLX_OK);
    CHECK_EQ(w[0].nbytes, 1000);
    CHECK_EQ(gpu.from_device(back, there.allocation, GPU), 0);
    CHECK(memcmp(back + 30000, bytes + 7, 1000) == 0);
    part_close(&here);
    part_close(&there);
    pair_close(&a, &b);
}

/* An error entry of 1.20 is longer than the headers of 1.17 say. */
static void a_wrong_key_is_told(void) {
    side a, b;
    watched w;
    pair_open(&a, &b);
    const part here = part_open(&a, 0, GPU), there = part_open(&b, 0, GPU);
    pplx_work_request one = from_to(&here, 0, &there, 0, 64, PPLX_WRITE, &w);
    one.remote_key ^= 1;
    CHECK_EQ(post(&a, &b, &one), PPLX_OK);
    wait_for(&a, &b, &w);
    CHECK_EQ(w.status, PPLX_REMOTE_ACCESS);
    part_close(&here);
    part_close(&there);
    pair_close(&a, &b);
}

static void check_refused(const char *variable, const char *value, bool takes, const char *why, const char *and) {
    side a;
    pplx_error error;
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    const uint64_t address = allocate();
    if (value)
        setenv(variable, value, 1);
    else
        unsetenv(variable);
    side_open(&a);
    CHECK_EQ(!!(a.caps.flags & PPLX_CAP_CUDA), takes);
    if (!takes && !strstr(a.caps.description, "no GPUs (")) check_failed(__FILE__, __LINE__, a.caps.description);
    CHECK_EQ(registers(&a, address, 4096, &mr, &key, &error), PPLX_REGISTRATION);
    if (!strstr(error.text, why) || !strstr(error.text, and)) check_failed(__FILE__, __LINE__, error.text);
    side_close(&a);
    if (value) unsetenv(variable);
    CHECK_EQ(gpu.release(address), 0);
}

/* What can't reach it opens all the same, and says why when it is asked to. */
static void what_keeps_a_nic_from_it_is_said(void) {
    check_refused("FAKE_EFA_P2P", "0", false, "FI_OPT_CUDA_API_PERMITTED", "ipc does");
    setenv("FAKE_EFA_VERSION", "17", 1);
    check_refused("FAKE_EFA_P2P", "0", false, "no FI_HMEM", "ipc does");
    unsetenv("FAKE_EFA_VERSION");
    check_refused("FAKE_EFA_CUDA", NULL, false, "built without CUDA", "ipc does");
    setenv("FAKE_EFA_CUDA", libcuda, 1);
    setenv("FAKE_EFA_PEER", "0", 1);
    check_refused("FAKE_EFA_DMABUF", "0", true, strerror(EOPNOTSUPP), "Bad address");
    check_refused("FAKE_CUDA_DMABUF", "0", true, "11.7", "efa_nv_peermem");
    check_refused("FAKE_CUDA_FAIL", "cuMemGetHandleForAddressRange:2", true, "CUDA_ERROR_OUT_OF_MEMORY", "Bad address");
    check_refused("FAKE_EFA_VERSION", "18", true, "libfabric 1.18 takes none", "Bad address");
    unsetenv("FAKE_EFA_PEER");
}

/* Without a GPU nobody asks for FI_HMEM, whose library could initialise one. */
static void without_a_gpu_nothing_is_asked_for(void) {
    side a;
    noptions = 2;
    setenv("FAKE_EFA_P2P", "0", 1); /* which would be told, had it been asked for */
    side_open(&a);
    CHECK(!(a.caps.flags & PPLX_CAP_CUDA));
    CHECK(!strstr(a.caps.description, "GPUs"));
    side_close(&a);
    unsetenv("FAKE_EFA_P2P");
    noptions = 3;
}

static void who_must_have_it_is_refused_a_domain_without(void) {
    pplx_error error = {0};
    pplx_provider_domain *domain = NULL;
    options[3] = (pplx_option){"hmem", "cuda"};
    setenv("FAKE_EFA_P2P", "0", 1);
    CHECK_EQ(fabric->domain_open(device, options, 4, &domain, &error), PPLX_NATIVE);
    CHECK(strstr(error.text, "FI_OPT_CUDA_API_PERMITTED") && !domain);
    unsetenv("FAKE_EFA_P2P");
    unsetenv("FAKE_EFA_CUDA");
    CHECK_EQ(fabric->domain_open(device, options, 4, &domain, &error), PPLX_UNAVAILABLE);
    CHECK(strstr(error.text, "for CUDA memory") && !domain);
    setenv("FAKE_EFA_CUDA", libcuda, 1);
    CHECK_EQ(fabric->domain_open(device, options, 4, &domain, &error), PPLX_OK);
    fabric->domain_close(domain);
}

static void what_is_no_memory_of_a_gpu_is_refused(void) {
    side a;
    pplx_error error;
    pplx_provider_mr *mr = NULL;
    pplx_remote_key key;
    const uint64_t address = allocate();
    side_open(&a);
    CHECK_EQ(registers(&a, (uintptr_t)a.arena, 4096, &mr, &key, &error), PPLX_INVALID);
    CHECK_EQ(registers(&a, address + GPU - 8, 16, &mr, &key, &error), PPLX_INVALID);
    side_close(&a);
    CHECK_EQ(gpu.release(address), 0);
}

/* What is left without a doorbell is rung for, by a write to where it went; but not when it has completed, so somebody
 * has rung: its region may be closed, by any thread. */
static void what_has_completed_is_not_rung_for(void) {
    side a, b;
    watched w[2];
    size_t posted = 0;
    int32_t native;
    setenv("FAKE_EFA_RINGS", "1", 1);
    setenv("FAKE_EFA_TX_SIZE", "1", 1);
    setenv("FAKE_EFA_AGAIN", "0", 1);
    pair_open(&a, &b);
    const part here = part_open(&a, 0, 4096), there = part_open(&b, 0, 4096);
    const pplx_work_request both[] = {from_to(&here, 0, &there, 0, 64, PPLX_WRITE, &w[0]),
                                      request_of(&a, &b, &w[1], PPLX_WRITE, 0, 64, 0)};
    CHECK_EQ(fabric->post(a.endpoint, both, 2, &posted, &native), PPLX_AGAIN);
    CHECK_EQ(posted, 1);
    wait_for(&a, &b, &w[0]);
    part_close(&here);
    CHECK_EQ(fabric->post(a.endpoint, &both[1], 1, &posted, &native), PPLX_OK); /* nothing else is out */
    wait_for(&a, &b, &w[1]);
    CHECK_EQ(w[1].status, PPLX_OK);
    part_close(&there);
    pair_close(&a, &b);
    unsetenv("FAKE_EFA_RINGS");
    unsetenv("FAKE_EFA_TX_SIZE");
    unsetenv("FAKE_EFA_AGAIN");
}

/* ---- beside the domain's thread ---- */

typedef struct beside {
    const side *side;
    pthread_t thread;
    bool stop;
    int rounds;
} beside;

static void *come_and_go(void *argument) {
    beside *b = argument;
    static uint8_t host[4096];
    uintptr_t context;
    CHECK(gpu.retain(&context, ON) == 0 && gpu.push(context) == 0);
    while (!__atomic_load_n(&b->stop, __ATOMIC_RELAXED)) {
        pplx_error error;
        pplx_provider_mr *mr;
        pplx_remote_key key;
        const part p = part_open(b->side, 4096, 4096);
        const pplx_memory memory = {.device = -1, .address = (uintptr_t)host, .nbytes = sizeof host, .fd = -1};
        CHECK_EQ(fabric->mr_open(b->side->domain, &memory, PPLX_ACCESS_LOCAL, &mr, &key, &error), PPLX_OK);
        CHECK_EQ(fabric->mr_close(mr), PPLX_OK);
        part_close(&p);
        __atomic_fetch_add(&b->rounds, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

static void regions_come_and_go_beside_transfers(void) {
    side a, b;
    pair_open(&a, &b);
    beside other = {.side = &a};
    CHECK_EQ(pthread_create(&other.thread, NULL, come_and_go, &other), 0);
    for (int i = 0; i < 300 || __atomic_load_n(&other.rounds, __ATOMIC_RELAXED) < 20; i++)
        must(&a, &b, i % 2 ? PPLX_WRITE : PPLX_READ, 0, 4096, 0);
    __atomic_store_n(&other.stop, true, __ATOMIC_RELAXED);
    CHECK_EQ(pthread_join(other.thread, NULL), 0);
    pair_close(&a, &b);
}

int main(void) {
    uintptr_t context;
    const ssize_t length = readlink("/proc/self/exe", folder, sizeof folder - 1);
    CHECK(length > 0);
    *strrchr(folder, '/') = 0;
    snprintf(libfabric, sizeof libfabric, "%s/libfabric_fake.so.1", folder);
    snprintf(libcuda, sizeof libcuda, "%s/libcuda_fake.so.1", folder);
    if (access(libfabric, F_OK) != 0) {
        printf("tests/fake_libfabric was not built: it needs libfabric's headers (package libfabric-dev)\n");
        return 77;
    }
    load_libraries();
    RUN(the_driver_is_not_initialised_before_there_is_memory_of_a_gpu);
    CHECK(gpu.init(0) == 0 && gpu.retain(&context, ON) == 0 && gpu.push(context) == 0);
    RUN(memory_of_a_gpu_is_registered_as_a_dmabuf);
    RUN(an_older_library_gets_its_address);
    RUN(what_can_not_be_a_dmabuf_goes_by_its_address);
    RUN(batches_and_messages_of_gpus_arrive);
    RUN(a_wrong_key_is_told);
    RUN(what_keeps_a_nic_from_it_is_said);
    if (pplx_cuda_found(NULL))
        printf("# without_a_gpu_nothing_is_asked_for: there is one here\n");
    else
        RUN(without_a_gpu_nothing_is_asked_for);
    RUN(who_must_have_it_is_refused_a_domain_without);
    RUN(what_is_no_memory_of_a_gpu_is_refused);
    RUN(what_has_completed_is_not_rung_for);
    RUN(regions_come_and_go_beside_transfers);
    return check_done();
}
