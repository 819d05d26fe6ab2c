/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Chunks of virtual mappings: found, shared, mapped, and all that may be wrong with them. On the tests' own libcuda,
 * which lies beside this program; tests/gpu/test_virtual_driver.py holds that to what a driver says. */
#include <dirent.h>
#include <limits.h>
#include <sys/mman.h>

#include "check.h"
#include "cuda_virtual.h"
#include "fake_cuda_calls.h"

enum { CHUNK = 2 << 20, BY_FD = 1 };

static const pplx_libcuda *cuda;
static int (*create)(uint64_t *, size_t, const void *, unsigned long long), (*mapped)(void), (*reserved)(void),
    (*exist)(void);
static int (*to_device)(uint64_t, const void *, size_t), (*from_device)(void *, uint64_t, size_t);

static void load(void) {
    char path[PATH_MAX];
    pplx_error error;
    cu_context context;
    set("FAKE_CUDA_FAIL", "");
    find_fake_cuda(path);
    CHECK_EQ(pplx_cuda_load(path, &cuda, &error), PPLX_OK);
    CHECK(cuda->primary_retain(&context, 0) == CU_OK && cuda->context_push(context) == CU_OK);
    const fake_cuda_call calls[] = {{&create, "cuMemCreate"},          {&mapped, "fake_cuda_mapped"},
                                    {&reserved, "fake_cuda_reserved"}, {&exist, "fake_cuda_chunks"},
                                    {&to_device, "cuMemcpyHtoD_v2"},   {&from_device, "cuMemcpyDtoH_v2"}};
    find_fake_cuda_calls(path, calls, sizeof calls / sizeof *calls);
}

static int descriptors(void) {
    int n = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory);
    while (readdir(directory)) n++;
    closedir(directory);
    return n;
}

/* ---- a mapping of the program's */

static cu_pointer reserve(uint64_t nbytes) {
    cu_pointer start;
    CHECK_EQ(cuda->address_reserve(&start, nbytes, 0, 0, 0), CU_OK);
    return start;
}

static void map_chunk_of(int device, cu_pointer at, uint64_t nbytes, int handle_types) {
    const int properties[8] = {1, handle_types, 1, device}; /* pinned, on a device */
    const cu_access access = {.location = {.type = CU_LOCATION_DEVICE, .id = 0}, .flags = CU_ACCESS_READ_WRITE};
    cu_memory_handle handle;
    CHECK_EQ(create(&handle, nbytes, properties, 0), CU_OK);
    CHECK_EQ(cuda->memory_map(at, nbytes, 0, handle, 0), CU_OK);
    CHECK_EQ(cuda->memory_release(handle), CU_OK);
    CHECK_EQ(cuda->memory_access(at, nbytes, &access, 1), CU_OK);
}

static void map_chunk(cu_pointer at, uint64_t nbytes, int handle_types) { map_chunk_of(0, at, nbytes, handle_types); }

static cu_pointer map_chunks(uint32_t count) {
    const cu_pointer start = reserve((uint64_t)count * CHUNK);
    for (uint32_t i = 0; i < count; i++) map_chunk(start + (uint64_t)i * CHUNK, CHUNK, BY_FD);
    return start;
}

static void unmap(cu_pointer start, uint64_t nbytes) { CHECK_EQ(cuda->memory_unmap(start, nbytes), CU_OK); }

static void release(cu_pointer start, uint64_t nbytes) {
    unmap(start, nbytes);
    CHECK_EQ(cuda->address_free(start, nbytes), CU_OK);
}

/* ---- */

static void test_a_region_lies_in_the_chunks_that_it_touches(void) {
    const cu_pointer start = map_chunks(4);
    const struct {
        uint64_t offset, nbytes;
        uint32_t first, count;
    } hows[] = {{0, 4 * CHUNK, 0, 4},     {0, 1, 0, 1},
                {CHUNK - 1, 1, 0, 1},     {CHUNK - 1, 2, 0, 2},
                {4 * CHUNK - 1, 1, 3, 1}, {CHUNK, 2 * CHUNK, 1, 2}};
    for (size_t i = 0; i < sizeof hows / sizeof *hows; i++) {
        cuda_chunks chunks;
        CHECK(!pplx_cuda_chunks_find(cuda, start + hows[i].offset, hows[i].nbytes, &chunks));
        CHECK_EQ(chunks.start, start + hows[i].first * (uint64_t)CHUNK);
        CHECK_EQ(chunks.nbytes, CHUNK);
        CHECK_EQ(chunks.count, hows[i].count);
    }
    release(start, 4 * CHUNK);
}

static void refused(cu_pointer start, uint64_t nbytes, const char *why) {
    cuda_chunks chunks;
    const char *said = pplx_cuda_chunks_find(cuda, start, nbytes, &chunks);
    CHECK(said);
    if (!strstr(said, why)) check_failed(__FILE__, __LINE__, said);
}

static void test_what_no_peer_could_map_is_refused(void) {
    const cu_pointer start = reserve(8 * CHUNK), many = map_chunks(CUDA_MAX_CHUNKS + 1);
    cuda_chunks chunks;
    refused(start, CHUNK, "nothing is mapped");
    map_chunk(start, CHUNK, BY_FD);
    refused(start, CHUNK + 1, "nothing is mapped");
    map_chunk(start + CHUNK, 2 * CHUNK, BY_FD);
    refused(start, CHUNK + 1, "differ in size");
    map_chunk(start + 3 * CHUNK, 2 * CHUNK, 0);
    refused(start + CHUNK, 2 * CHUNK + 1, "POSIX_FILE_DESCRIPTOR");
    CHECK(!pplx_cuda_chunks_find(cuda, start + CHUNK, 2 * CHUNK, &chunks));
    refused(many, (CUDA_MAX_CHUNKS + 1) * (uint64_t)CHUNK, "more than 253");
    CHECK(!pplx_cuda_chunks_find(cuda, many, CUDA_MAX_CHUNKS * (uint64_t)CHUNK, &chunks));
    unmap(start, 5 * CHUNK);
    CHECK_EQ(cuda->address_free(start, 8 * CHUNK), CU_OK);
    release(many, (CUDA_MAX_CHUNKS + 1) * (uint64_t)CHUNK);
}

/* A kernel that touches memory of another device, or none, ends with a fault, and the context with it. */
static void test_memory_lies_on_a_device_if_each_chunk_does(void) {
    const cu_pointer start = reserve(4 * CHUNK);
    map_chunk(start, CHUNK, 0);
    map_chunk(start + CHUNK, CHUNK, BY_FD);
    map_chunk_of(1, start + 2 * CHUNK, CHUNK, BY_FD);
    CHECK(pplx_cuda_lies_on(cuda, 0, start, 2 * CHUNK));
    CHECK(!pplx_cuda_lies_on(cuda, 1, start, 2 * CHUNK));
    CHECK(!pplx_cuda_lies_on(cuda, 0, start, 2 * CHUNK + 1));
    CHECK(pplx_cuda_lies_on(cuda, 1, start + 2 * CHUNK, CHUNK));
    CHECK(!pplx_cuda_lies_on(cuda, 1, start + 2 * CHUNK, CHUNK + 1));
    unmap(start, 3 * CHUNK);
    CHECK_EQ(cuda->address_free(start, 4 * CHUNK), CU_OK);
}

static void close_all(const int *fds, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) close(fds[i]);
}

/* In the order in which they lie, and nothing is kept. */
static void test_who_has_the_descriptors_maps_the_same_memory(void) {
    const cu_pointer start = map_chunks(3);
    const int before = descriptors(), maps = mapped(), addresses = reserved();
    int fds[3];
    cuda_chunks chunks, theirs;
    CHECK(!pplx_cuda_chunks_find(cuda, start, 3 * CHUNK, &chunks));
    CHECK(pplx_cuda_chunks_export(cuda, &chunks, fds));
    CHECK_EQ(descriptors(), before + 3);
    theirs = (cuda_chunks){.nbytes = chunks.nbytes, .count = chunks.count};
    CHECK(pplx_cuda_chunks_map(cuda, 0, fds, &theirs));
    close_all(fds, 3);
    CHECK(theirs.start != start);
    for (uint64_t i = 0; i < 3; i++) {
        uint64_t word = 0;
        const uint64_t number = 100 + i;
        CHECK_EQ(to_device(theirs.start + i * CHUNK + 8, &number, sizeof number), CU_OK);
        CHECK_EQ(from_device(&word, start + i * CHUNK + 8, sizeof word), CU_OK);
        CHECK_EQ(word, number);
    }
    CHECK_EQ(mapped(), maps + 3);
    pplx_cuda_chunks_unmap(cuda, &theirs);
    CHECK_EQ(mapped(), maps);
    CHECK_EQ(reserved(), addresses);
    CHECK_EQ(descriptors(), before);
    release(start, 3 * CHUNK);
    CHECK_EQ(exist(), 0);
}

/* Sizes that peers are told are those of what they get. */
static void test_what_was_mapped_anew_is_shared_only_if_it_lies_as_before(void) {
    int fds[3];
    for (int how = 0; how < 4; how++) {
        const cu_pointer start = reserve(5 * CHUNK);
        cuda_chunks chunks;
        for (uint64_t i = 0; i < 3; i++) map_chunk(start + i * CHUNK, CHUNK, BY_FD);
        CHECK(!pplx_cuda_chunks_find(cuda, start, 3 * CHUNK, &chunks));
        unmap(start + 2 * CHUNK, CHUNK);
        if (how == 1) map_chunk(start + 2 * CHUNK, CHUNK, BY_FD);
        if (how == 2) map_chunk(start + 2 * CHUNK, 2 * CHUNK, BY_FD);
        if (how == 3) map_chunk(start + 2 * CHUNK, CHUNK, 0);
        const int before = descriptors();
        const bool shared = pplx_cuda_chunks_export(cuda, &chunks, fds);
        CHECK_EQ(shared, how == 1);
        if (shared) close_all(fds, 3);
        CHECK_EQ(descriptors(), before);
        unmap(start, 2 * CHUNK);
        if (how) unmap(start + 2 * CHUNK, how == 2 ? 2 * CHUNK : CHUNK);
        CHECK_EQ(cuda->address_free(start, 5 * CHUNK), CU_OK);
    }
}

/* Wherever it fails: no mapping and no address is kept, and descriptors are the caller's as before. */
static void test_what_is_not_mapped_whole_is_not_mapped(void) {
    static const char *const calls[] = {
        "", "", "cuMemAddressReserve:2", "cuMemImportFromShareableHandle:999", "cuMemMap:1", "cuMemSetAccess:1"};
    const cu_pointer start = map_chunks(3);
    const int memfd = memfd_create("no chunk", MFD_CLOEXEC);
    cuda_chunks chunks;
    int fds[3];
    CHECK(memfd >= 0 && !pplx_cuda_chunks_find(cuda, start, 3 * CHUNK, &chunks));
    CHECK(pplx_cuda_chunks_export(cuda, &chunks, fds));
    const int before = descriptors(), maps = mapped(), addresses = reserved();
    for (size_t how = 0; how < sizeof calls / sizeof *calls; how++) {
        const int given[3] = {fds[0], fds[1], how == 0 ? memfd : fds[2]};
        cuda_chunks theirs = {.nbytes = how == 1 ? 2 * CHUNK : CHUNK, .count = 3};
        set("FAKE_CUDA_FAIL", calls[how]);
        const bool fine = pplx_cuda_chunks_map(cuda, 0, given, &theirs);
        set("FAKE_CUDA_FAIL", "");
        CHECK(!fine);
        CHECK_EQ(mapped(), maps);
        CHECK_EQ(reserved(), addresses);
        CHECK_EQ(descriptors(), before);
    }
    close_all(fds, 3);
    close(memfd);
    release(start, 3 * CHUNK);
}

int main(void) {
    load();
    RUN(test_a_region_lies_in_the_chunks_that_it_touches);
    RUN(test_what_no_peer_could_map_is_refused);
    RUN(test_memory_lies_on_a_device_if_each_chunk_does);
    RUN(test_who_has_the_descriptors_maps_the_same_memory);
    RUN(test_what_was_mapped_anew_is_shared_only_if_it_lies_as_before);
    RUN(test_what_is_not_mapped_whole_is_not_mapped);
    return check_done();
}
