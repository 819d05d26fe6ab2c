/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Virtual mappings of memory of GPUs, and a hostile peer. It shows some: descriptors of chunks that are none, too many
 * or too few, and of what the driver doesn't know. And it asks for ours. On the tests' own libcuda, which lies beside
 * this program. */
#include <limits.h>
#include <linux/capability.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "fake_cuda_calls.h"
#include "ipc_attacker.h"

enum { KEY = 77, CHUNK = 2 << 20, GPU = 4096 };

static char libcuda[PATH_MAX];
static const pplx_libcuda *cuda;
static int (*adopt)(uint64_t *, void *, size_t), (*forget)(uint64_t), (*mapped)(void), (*imported)(void);
static int (*create)(uint64_t *, size_t, const void *, unsigned long long);

static void load(void) {
    pplx_error error;
    find_fake_cuda(libcuda);
    CHECK_EQ(pplx_cuda_load(libcuda, &cuda, &error), PPLX_OK);
    static const fake_cuda_call calls[] = {
        {&adopt, "fake_cuda_adopt"},       {&forget, "fake_cuda_forget"}, {&mapped, "fake_cuda_mapped"},
        {&imported, "fake_cuda_imported"}, {&create, "cuMemCreate"},
    };
    find_fake_cuda_calls(libcuda, calls, sizeof calls / sizeof *calls);
}

/* A victim with memory on a GPU, so that it opens that of its peers. */
typedef struct target {
    side side;
    uint64_t address;
    unsigned char *shows;
    pplx_provider_mr *mr;
} target;

static void target_open(target *t) {
    const pplx_option options[] = {{"libcuda", libcuda}};
    pplx_error error = {0};
    pplx_remote_key key;
    side_open_with(&t->side, options, 1);
    t->shows = calloc(1, GPU);
    CHECK(t->shows && adopt(&t->address, t->shows, GPU) == 0);
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = t->address, .nbytes = GPU, .fd = -1};
    if (ipc->mr_open(t->side.domain, &memory, PPLX_ACCESS_LOCAL, &t->mr, &key, &error) != PPLX_OK)
        check_failed(__FILE__, __LINE__, error.text);
}

static void target_close(target *t) {
    CHECK_EQ(ipc->mr_close(t->mr), PPLX_OK);
    side_close(&t->side);
    CHECK_EQ(forget(t->address), 0);
    free(t->shows);
}

static ipc_endpoint *inside(const target *t) { return (ipc_endpoint *)t->side.endpoint; }

static cu_memory_handle physical(uint64_t nbytes) {
    static const int properties[8] = {1, 1, 1, 0}; /* pinned, by descriptor, on a device, the first */
    cu_memory_handle handle;
    CHECK_EQ(create(&handle, nbytes, properties, 0), 0);
    return handle;
}

static int chunk_of(uint64_t nbytes) {
    const cu_memory_handle handle = physical(nbytes);
    int fd;
    CHECK_EQ(cuda->memory_export(&fd, handle, CU_HANDLE_POSIX_FD, 0), CU_OK);
    CHECK_EQ(cuda->memory_release(handle), CU_OK);
    return fd;
}

/* The victim asks for a key, and hears this. It takes the attacker for another process. */
static void answer(target *t, attacker *a, const ipc_note *note, const int *fds, size_t count, watched *w) {
    pplx_work_request request = request_of(&t->side, PLAIN, NULL, PLAIN, w, PPLX_WRITE_IMM, 0, 64, 0);
    request.remote_key = KEY;
    attacker_connects(a, &t->side);
    side_poll(&t->side);
    inside(t)->pid = 1;
    CHECK_EQ(post(&t->side, NULL, &request), PPLX_OK);
    CHECK(pplx_ipc_send_with(a->socket, note, sizeof *note, fds, count) == sizeof *note);
}

/* What became of it. */
static const ipc_key *key_of(target *t) {
    const uint64_t start = check_now_ns();
    const ipc_key *key;
    while ((key = pplx_ipc_key_find(inside(t), KEY)) &&
           (key->state == IPC_KEY_ASKED || key->state == IPC_KEY_OPENING)) {
        side_poll(&t->side);
        check_patience(start, PATIENCE);
    }
    CHECK(key);
    return key;
}

static ipc_note chunks_of(uint32_t chunks, uint64_t nbytes) {
    return (ipc_note){.kind = IPC_MAPPED,
                      .extent = IPC_CHUNKED,
                      .access = 3,
                      .chunks = chunks,
                      .key = KEY,
                      .nbytes = 4096,
                      .device = {.nbytes = chunks * nbytes, .address = 4096}};
}

/* Whoever sends other descriptors than he says breaks the rules, as does who counts wrong; none is kept. */
static void test_descriptors_that_do_not_fit_the_answer(void) {
    static target t;
    target_open(&t);
    int fds[3];
    for (int i = 0; i < 3; i++) fds[i] = chunk_of(CHUNK);
    const int before = descriptors(), maps = mapped();
    for (int how = 0; how < 12; how++) {
        static watched w;
        attacker a;
        ipc_note note = chunks_of(2, CHUNK);
        size_t count = 2;
        switch (how) {
        case 0: count = 0; break;
        case 1: count = 1; break;
        case 2: count = 3; break;
        case 3: note.chunks = 0, count = 0; break;
        case 4: note.chunks = 254; break;
        case 5: note.chunks = UINT32_MAX; break;
        case 6: note.chunks = count = 3; break; /* the bytes of two */
        case 7: note.offset = note.device.nbytes; break;
        case 8: note.nbytes = note.device.nbytes + 1; break;
        case 9: note.device.nbytes = 0, note.nbytes = 0; break;
        case 10: note.extent = IPC_DEVICE; break;
        case 11: note.extent = IPC_STAGED; break;
        }
        answer(&t, &a, &note, fds, count, &w);
        CHECK_EQ(wait_for(&t.side, NULL, &w), PPLX_CONNECTION);
        attacker_leaves(&a);
        close_endpoint(&t.side, NULL);
        CHECK_EQ(descriptors(), before);
        CHECK_EQ(mapped(), maps);
    }
    for (int i = 0; i < 3; i++) close(fds[i]);
    target_close(&t);
}

/* What the driver doesn't take isn't opened, nor kept: the owner is asked to copy. It breaks no rule, for a GPU that
 * this process may not use looks the same. */
static void test_descriptors_that_the_driver_does_not_take(void) {
    static target t;
    target_open(&t);
    int pipes[2], junk[IPC_MAX_FDS];
    CHECK(pipe(pipes) == 0);
    const int memfd = pplx_ipc_memfd("attacker", CHUNK), chunk = chunk_of(CHUNK), large = chunk_of(2 * CHUNK);
    for (int i = 0; i < IPC_MAX_FDS; i++) junk[i] = i % 2 ? memfd : chunk;
    const int before = descriptors(), maps = mapped();
    const struct {
        const int *fds;
        uint32_t count;
    } hows[] = {{&memfd, 1}, {&pipes[0], 1}, {&t.side.memfd, 1}, {&large, 1}, {junk, 2}, {junk, IPC_MAX_FDS}};
    for (size_t how = 0; how < sizeof hows / sizeof *hows; how++) {
        static watched w;
        attacker a;
        const ipc_note note = chunks_of(hows[how].count, CHUNK);
        answer(&t, &a, &note, hows[how].fds, hows[how].count, &w);
        CHECK_EQ(key_of(&t)->device, 0);
        CHECK_EQ(inside(&t)->state, IPC_UP);
        CHECK_EQ(mapped(), maps);
        attacker_leaves(&a);
        CHECK(wait_for(&t.side, NULL, &w) != PPLX_OK);
        close_endpoint(&t.side, NULL);
        CHECK_EQ(descriptors(), before);
    }
    close(pipes[0]);
    close(pipes[1]);
    close(memfd);
    close(chunk);
    close(large);
    target_close(&t);
}

/* It lets go when it is asked to, when the attacker is gone, and of what was to be opened when it was. */
static void test_chunks_are_let_go_of(void) {
    static target t;
    target_open(&t);
    int fds[IPC_MAX_FDS];
    for (int i = 0; i < IPC_MAX_FDS; i++) fds[i] = chunk_of(CHUNK);
    const int before = descriptors(), maps = mapped();
    for (int how = 0; how < 4; how++) {
        static watched w;
        attacker a;
        const uint32_t count = how % 2 ? IPC_MAX_FDS : 1;
        const ipc_note note = chunks_of(count, CHUNK), revoke = {.kind = IPC_REVOKE, .key = KEY};
        const int so_far = imported();
        answer(&t, &a, &note, fds, count, &w);
        if (how < 2) {
            CHECK(key_of(&t)->device != 0);
            CHECK_EQ(mapped(), maps + (int)count);
            CHECK_EQ(imported(), so_far + (int)count);
        }
        if (how % 2 == 0) {
            const uint64_t start = check_now_ns();
            ipc_note said = {0};
            int fd;
            CHECK(pplx_ipc_send(a.socket, &revoke, sizeof revoke, -1) == sizeof revoke);
            while (pplx_ipc_receive(a.socket, &said, sizeof said, &fd) < 0 || said.kind != IPC_REVOKED) {
                side_poll(&t.side);
                check_patience(start, PATIENCE);
            }
            CHECK_EQ(mapped(), maps);
        }
        attacker_leaves(&a);
        close_endpoint(&t.side, NULL);
        const uint64_t start = check_now_ns();
        while (mapped() != maps || descriptors() != before) {
            side_poll(&t.side);
            check_patience(start, PATIENCE);
        }
    }
    for (int i = 0; i < IPC_MAX_FDS; i++) close(fds[i]);
    target_close(&t);
}

/* No attack: where no more files may be opened the owner is asked to copy, and nothing is kept. */
static void test_without_room_for_descriptors_the_owner_copies(void) {
    static target t;
    static watched w;
    attacker a;
    struct rlimit limit, low;
    target_open(&t);
    const int fds[] = {chunk_of(CHUNK), chunk_of(CHUNK)}, maps = mapped();
    const ipc_note note = chunks_of(2, CHUNK);
    answer(&t, &a, &note, fds, 2, &w);
    const int before = descriptors(), first = dup(a.socket); /* room for this one, and not for two */
    CHECK(first >= 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    close(first);
    low = (struct rlimit){.rlim_cur = (rlim_t)first + 1, .rlim_max = limit.rlim_max};
    CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
    CHECK_EQ(key_of(&t)->device, 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK_EQ(inside(&t)->state, IPC_UP);
    CHECK_EQ(descriptors(), before);
    CHECK_EQ(mapped(), maps);
    attacker_leaves(&a);
    close_endpoint(&t.side, NULL);
    close(fds[0]);
    close(fds[1]);
    target_close(&t);
}

/* Who has no GPU has no use for it, and keeps none. */
static void test_without_a_gpu_no_descriptor_is_kept(void) {
    static target t;
    static watched w;
    attacker a;
    side_open(&t.side);
    const int fds[] = {chunk_of(CHUNK), chunk_of(CHUNK)}, maps = mapped();
    const ipc_note note = chunks_of(2, CHUNK);
    answer(&t, &a, &note, fds, 2, &w);
    const int before = descriptors();
    CHECK_EQ(key_of(&t)->device, 0);
    CHECK_EQ(inside(&t)->state, IPC_UP);
    CHECK_EQ(descriptors(), before);
    CHECK_EQ(mapped(), maps);
    attacker_leaves(&a);
    side_close(&t.side);
    close(fds[0]);
    close(fds[1]);
}

/* ---- the attacker asks */

/* Memory of the victim's, of so many chunks, and two regions of it. */
typedef struct shown {
    uint32_t chunks;
    cu_pointer start;
    pplx_provider_mr *mr[2];
    pplx_remote_key key[2];
} shown;

static void show(shown *s, target *t, uint32_t chunks) {
    const uint64_t nbytes = (uint64_t)chunks * CHUNK;
    const cu_access access = {.location = {.type = CU_LOCATION_DEVICE, .id = 0}, .flags = CU_ACCESS_READ_WRITE};
    pplx_error error = {0};
    s->chunks = chunks;
    CHECK_EQ(cuda->address_reserve(&s->start, nbytes, 0, 0, 0), CU_OK);
    for (uint32_t i = 0; i < chunks; i++) {
        const cu_memory_handle handle = physical(CHUNK);
        CHECK_EQ(cuda->memory_map(s->start + (uint64_t)i * CHUNK, CHUNK, 0, handle, 0), CU_OK);
        CHECK_EQ(cuda->memory_release(handle), CU_OK);
    }
    CHECK_EQ(cuda->memory_access(s->start, nbytes, &access, 1), CU_OK);
    const pplx_memory memory = {.kind = PPLX_MEMORY_CUDA, .address = s->start, .nbytes = nbytes, .fd = -1};
    for (int i = 0; i < 2; i++)
        CHECK_EQ(ipc->mr_open(t->side.domain, &memory, PPLX_ACCESS_REMOTE_READ, &s->mr[i], &s->key[i], &error),
                 PPLX_OK);
}

static void hide(shown *s) {
    const uint64_t nbytes = (uint64_t)s->chunks * CHUNK;
    for (int i = 0; i < 2; i++) CHECK_EQ(ipc->mr_close(s->mr[i]), PPLX_OK);
    CHECK_EQ(cuda->memory_unmap(s->start, nbytes), CU_OK);
    CHECK_EQ(cuda->address_free(s->start, nbytes), CU_OK);
}

static void ask_for(attacker *a, uint64_t key) {
    const ipc_note question = {.kind = IPC_MAP, .key = key};
    CHECK(pplx_ipc_send(a->socket, &question, sizeof question, -1) == sizeof question);
}

/* The next answer's extent; its descriptors are closed. */
static uint32_t told(attacker *a, target *t, uint32_t chunks) {
    const uint64_t start = check_now_ns();
    ipc_fds fds;
    ipc_note note;
    while (pplx_ipc_receive_with(a->socket, &note, sizeof note, &fds) != sizeof note || note.kind != IPC_MAPPED) {
        side_poll(&t->side);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(fds.count, note.extent == IPC_CHUNKED ? chunks : 0);
    pplx_ipc_close_fds(&fds);
    return note.extent;
}

/* It has let go of what it was told, or regions would never be closed. */
static void attacker_parts(attacker *a, target *t) {
    const ipc_note bye = {.kind = IPC_BYE};
    const uint64_t start = check_now_ns();
    CHECK(pplx_ipc_send(a->socket, &bye, sizeof bye, -1) == sizeof bye);
    while (!inside(t)->heard_bye) {
        side_poll(&t->side);
        check_patience(start, PATIENCE);
    }
    attacker_leaves(a);
    close_endpoint(&t->side, NULL);
}

/* Descriptors take long to make: a peer gets them once, and once more when it has a GPU. */
static void test_who_asks_on_and_on_is_copied_for(void) {
    static target t;
    attacker a;
    shown s;
    target_open(&t);
    show(&s, &t, 3);
    const int before = descriptors();
    attacker_connects(&a, &t.side);
    for (int i = 0; i < 10; i++) {
        ask_for(&a, s.key[0].key);
        CHECK_EQ(told(&a, &t, 3), i < 2 ? IPC_CHUNKED : IPC_STAGED);
    }
    ask_for(&a, s.key[1].key);
    CHECK_EQ(told(&a, &t, 3), IPC_CHUNKED);
    attacker_parts(&a, &t);
    CHECK_EQ(descriptors(), before);
    hide(&s);
    target_close(&t);
}

/* What is sent and not yet received counts, for each user, and only so many may be. Who must not be held back, as a
 * superuser isn't, drops that right for a while; it is a thread's. */
static void limit_what_is_under_way(bool yes) {
    static struct __user_cap_data_struct all[2];
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct few[2];
    if (yes) CHECK(syscall(SYS_capget, &header, all) == 0);
    memcpy(few, all, sizeof few);
    if (yes) few[0].effective &= ~(1u << CAP_SYS_RESOURCE | 1u << CAP_SYS_ADMIN);
    CHECK(syscall(SYS_capset, &header, few) == 0);
}

/* All four questions of the next test. */
static bool answered(const shown *s) {
    const ipc_export *export = ((const ipc_region *)(const void *)s->mr[1])->exports;
    return export && export->opened == 2;
}

/* No attack: where too many descriptors are under way the owner copies, and the connection stands. */
static void test_what_can_not_be_sent_is_copied(void) {
    static target t;
    attacker a;
    shown s;
    struct rlimit limit, low;
    int extents[4];
    target_open(&t);
    show(&s, &t, IPC_MAX_FDS);
    attacker_connects(&a, &t.side);
    const int before = descriptors();
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    low = (struct rlimit){.rlim_cur = (rlim_t)before + IPC_MAX_FDS + 8, .rlim_max = limit.rlim_max};
    CHECK(low.rlim_cur < 3 * IPC_MAX_FDS);
    const uint64_t start = check_now_ns();
    for (int i = 0; i < 4; i++) ask_for(&a, s.key[i / 2].key);
    limit_what_is_under_way(true);
    CHECK(setrlimit(RLIMIT_NOFILE, &low) == 0);
    while (!answered(&s)) {
        side_poll(&t.side);
        check_patience(start, PATIENCE);
    }
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit_what_is_under_way(false);
    CHECK_EQ(descriptors(), before);
    for (int i = 0; i < 4; i++) extents[i] = (int)told(&a, &t, IPC_MAX_FDS);
    CHECK_EQ(extents[0], IPC_CHUNKED);
    CHECK_EQ(extents[3], IPC_STAGED);
    CHECK_EQ(inside(&t)->state, IPC_UP);
    attacker_parts(&a, &t);
    hide(&s);
    target_close(&t);
}

int main(void) {
    load();
    RUN(test_descriptors_that_do_not_fit_the_answer);
    RUN(test_descriptors_that_the_driver_does_not_take);
    RUN(test_chunks_are_let_go_of);
    RUN(test_without_room_for_descriptors_the_owner_copies);
    RUN(test_without_a_gpu_no_descriptor_is_kept);
    RUN(test_who_asks_on_and_on_is_copied_for);
    RUN(test_what_can_not_be_sent_is_copied);
    return check_done();
}
