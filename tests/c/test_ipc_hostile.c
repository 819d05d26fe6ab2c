/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The ipc provider against a peer that breaks every rule. The attacker is played by this program: it
 * has the victim's address, as a peer has, and speaks the wire by hand. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "ipc_attacker.h"

enum { GUARD = 4096 };

/* What the victim's next write ends with, or post() says. */
static int try_write(side *victim, uint64_t key, double seconds) {
    static watched w;
    size_t posted;
    int32_t native;
    uint64_t end = check_now_ns() + (uint64_t)(seconds * 1e9);
    pplx_work_request request = request_of(victim, PLAIN, NULL, PLAIN, &w, PPLX_WRITE_IMM, 0, 64, 0);
    request.remote_key = key;
    pplx_status status;
    while ((status = ipc->post(victim->endpoint, &request, 1, &posted, &native)) == PPLX_AGAIN && check_now_ns() < end)
        side_poll(victim);
    if (status != PPLX_OK) return status;
    while (!w.completions && check_now_ns() < end) side_poll(victim);
    return w.completions ? w.status : PPLX_AGAIN;
}

/* Of huge pages: with the seals that are asked for, and yet it raises SIGBUS once its owner has punched a
 * hole and the pool of such pages is empty. */
static int huge_memfd(size_t nbytes) {
    int fd = memfd_create("attacker", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    CHECK(fd >= 0 || errno == ENOSYS || errno == EINVAL || errno == ENOENT); /* a kernel without them */
    if (fd < 0) return open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(ftruncate(fd, (off_t)ipc_round_up(nbytes, 1u << 30)) == 0); /* of whatever size the pages are */
    CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    return fd;
}

static int plain_file(const char *folder, size_t nbytes) {
    int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)nbytes) == 0);
    return fd;
}

static int other_way(int fd, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    fd = open(path, flags | O_CLOEXEC);
    CHECK(fd >= 0);
    return fd;
}

static void test_bad_inboxes(void) {
    static side victim;
    const size_t right = ipc_inbox_nbytes(SLOTS, STAGING);
    int ends[2];
    side_open(&victim);
    for (int how = 0; how < 18; how++) {
        attacker a;
        attacker_named(&a, &victim);
        ipc_hello hello = hello_of(&a);
        int fd = -1;
        switch (how) {
        case 0: /* can be truncated later */
            fd = memfd_create("attacker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
            CHECK(fd >= 0 && ftruncate(fd, (off_t)right) == 0);
            break;
        case 1: fd = pplx_ipc_memfd("attacker", right - 4096); break; /* too short */
        case 2: fd = open("/dev/zero", O_RDWR | O_CLOEXEC); break;
        case 3: fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0); break;
        case 4: hello.slots = 63, fd = dup(a.inbox_fd); break;
        case 5: hello.slots = 1u << 31, fd = dup(a.inbox_fd); break;
        case 6: hello.staging = UINT32_MAX, fd = dup(a.inbox_fd); break;
        case 7: hello.staging = 4097, fd = dup(a.inbox_fd); break;
        case 8: fd = -1; break; /* none */
        case 9: fd = plain_file("/tmp", right); break;
        case 10: fd = plain_file("/dev/shm", right); break;
        case 11: fd = open("/tmp", O_RDONLY | O_DIRECTORY | O_CLOEXEC); break;
        case 12: fd = huge_memfd(right); break;
        case 13: fd = other_way(a.inbox_fd, O_RDONLY); break;
        case 14: fd = other_way(a.inbox_fd, O_PATH); break;
        case 15: /* nobody may write there */
            fd = memfd_create("attacker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
            CHECK(fd >= 0 && ftruncate(fd, (off_t)right) == 0);
            CHECK(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
            break;
        case 16:
            CHECK(pipe2(ends, O_CLOEXEC) == 0);
            close(ends[1]);
            fd = ends[0];
            break;
        case 17: fd = epoll_create1(EPOLL_CLOEXEC); break;
        }
        CHECK(how == 8 || fd >= 0);
        CHECK(pplx_ipc_send(a.socket, &hello, sizeof hello, fd) == sizeof hello);
        int status = try_write(&victim, 1, how == 8 ? 0.02 : PATIENCE);
        CHECK(status == PPLX_PEER_LOST || (how == 8 && status == PPLX_AGAIN)); /* that one wasn't a hello */
        if (fd >= 0) close(fd);
        attacker_leaves(&a);
        close_endpoint(&victim, NULL);
    }
    side_close(&victim);
}

/* Hellos of strangers: to nobody, from nobody, of another version, too short, too long, two. */
static void test_strangers(void) {
    static side victim;
    side_open(&victim);
    attacker a;
    attacker_named(&a, &victim);
    for (int how = 0; how < 6; how++) {
        int fd = pplx_ipc_connect(a.victim.listener);
        CHECK(fd >= 0);
        struct {
            ipc_hello hello;
            char more[64];
        } message = {.hello = hello_of(&a)};
        size_t nbytes = sizeof message.hello;
        if (how == 0) message.hello.to[3] ^= 1;
        if (how == 1) message.hello.from[3] ^= 1;
        if (how == 2) message.hello.version++;
        if (how == 3) nbytes--;
        if (how == 4) nbytes += 64;
        if (how == 5) message.hello.kind = IPC_WELCOME;
        CHECK(pplx_ipc_send(fd, &message, nbytes, a.inbox_fd) == (ssize_t)nbytes);
        char end;
        ssize_t n = -1;
        for (int turn = 0; turn < 1000 && n < 0; turn++) { /* a busy machine may not let it run in one of them */
            run_for(&victim, NULL, 0.005);
            n = recv(fd, &end, 1, MSG_DONTWAIT);
            if (n < 0 && errno != EAGAIN) n = 0;
        }
        CHECK(n == 0); /* shown the door */
        close(fd);
    }
    CHECK_EQ(try_write(&victim, 1, 0.005), PPLX_AGAIN); /* still waits for its peer */
    attacker_leaves(&a);
    side_close(&victim);
}

/* The victim connects, and is answered by anything but a WELCOME: it keeps nothing of what came with it. */
static void test_bad_welcomes(void) {
    static side victim;
    side_open(&victim);
    const int before = descriptors();
    for (int how = 0; how < 8; how++) {
        uint8_t name[IPC_TOKEN_BYTES];
        CHECK(pplx_ipc_random(name, sizeof name));
        const int listener = pplx_ipc_listen(name),
                  inbox_fd = pplx_ipc_memfd("attacker", ipc_inbox_nbytes(SLOTS, STAGING));
        CHECK(listener >= 0 && inbox_fd >= 0);
        attacker a = {0};
        pplx_error error;
        side_listen(&victim);
        memcpy(&a.victim, victim.address, sizeof a.victim);
        a.address = a.victim;
        memset(a.address.token, 0xff, sizeof a.address.token); /* the smaller one connects */
        memcpy(a.address.listener, name, sizeof name);
        CHECK_EQ(ipc->endpoint_connect(victim.endpoint, &a.address, sizeof a.address, &error), PPLX_OK);
        const int fd = accept(listener, NULL, NULL);
        CHECK(fd >= 0);
        struct {
            ipc_hello hello;
            char more[8];
        } message = {.hello = hello_of(&a)};
        size_t nbytes = sizeof message.hello;
        message.hello.kind = IPC_WELCOME;
        if (how == 0) message.hello.kind = IPC_HELLO;
        if (how == 1) message.hello.version++;
        if (how == 2) nbytes--;
        if (how == 3) nbytes += 8;
        if (how == 4) message.hello.slots = 63;
        if (how == 5) message.hello.from[3] ^= 1;
        if (how == 7) nbytes = 0;
        CHECK(pplx_ipc_send(fd, &message, nbytes, how == 6 ? -1 : inbox_fd) == (ssize_t)nbytes);
        CHECK_EQ(try_write(&victim, 1, PATIENCE), PPLX_PEER_LOST);
        close(fd);
        close(listener);
        close(inbox_fd);
        close_endpoint(&victim, NULL);
        CHECK_EQ(descriptors(), before);
    }
    side_close(&victim);
}

static void test_garbage_on_the_socket(void) {
    static side victim;
    uint64_t random = 3;
    side_open(&victim);
    for (int round = 0; round < 300; round++) {
        attacker a;
        attacker_connects(&a, &victim);
        for (int i = 0; i < 4; i++) {
            uint64_t bytes[16];
            for (int j = 0; j < 16; j++) bytes[j] = check_random(&random);
            size_t nbytes = 1 + check_random(&random) % sizeof bytes;
            if (check_random(&random) % 4) nbytes = sizeof(ipc_note);
            ipc_note note = {.kind = (uint32_t)(check_random(&random) % 12),
                             .extent = (uint32_t)(check_random(&random) % 5),
                             .key = check_random(&random) % 2 ? victim.key[MAPPED].key : bytes[0]};
            if (check_random(&random) % 4) memcpy(bytes, &note, sizeof note);
            pplx_ipc_send(a.socket, bytes, nbytes, check_random(&random) % 3 ? -1 : a.inbox_fd);
        }
        run_for(&victim, NULL, 0.0015);
        attacker_leaves(&a);
        /* It closes at once, or after the attacker's pages are taken away: the victim's are moved. */
        close_endpoint(&victim, NULL);
    }
    side_close(&victim);
}

/* It asks and asks, and never reads. */
static void test_flood_of_questions(void) {
    static side victim;
    attacker a;
    side_open(&victim);
    attacker_connects(&a, &victim);
    const ipc_note note = {.kind = IPC_MAP, .key = victim.key[PLAIN].key};
    uint64_t start = check_now_ns();
    size_t asked = 0;
    for (int silent = 0; silent < 100;) {
        ssize_t n = pplx_ipc_send(a.socket, &note, sizeof note, -1);
        if (n < 0 && errno != EAGAIN) break;
        silent = n < 0 ? silent + 1 : 0;
        asked += n > 0;
        side_poll(&victim);
        check_patience(start, PATIENCE);
    }
    CHECK(asked > 100 && asked < 100000);
    CHECK_EQ(try_write(&victim, 1, PATIENCE), PPLX_CONNECTION);
    attacker_leaves(&a);
    close_endpoint(&victim, NULL);
    side_close(&victim);
}

/* The victim asks for a key; the answer is a lie. */
static void test_lies_about_memory(void) {
    static side victim;
    side_open(&victim);
    for (int how = 0; how < 13; how++) {
        attacker a;
        attacker_connects(&a, &victim);
        int huge = huge_memfd(4096), file = plain_file("/tmp", 4096);
        int unsealed = memfd_create("attacker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        int small = pplx_ipc_memfd("attacker", 4096);
        CHECK(unsealed >= 0 && ftruncate(unsealed, 1 << 20) == 0 && small >= 0);
        ipc_note note = {.kind = IPC_MAPPED, .extent = IPC_MAPPABLE, .access = 3, .key = 77, .nbytes = 4096};
        int fd = small;
        switch (how) {
        case 0: fd = unsealed; break;
        case 1: note.nbytes = 4097; break;
        case 2: note.nbytes = UINT64_MAX; break;
        case 3: note.offset = 4096; break;
        case 4: note.offset = UINT64_MAX - 100; break;
        case 5: note.nbytes = 0; break;
        case 6: note.extent = 77; break;
        case 7: fd = -1; break;
        case 8: note.key = 78; break;
        case 9: /* an address, for which the victim has asked nobody */
        case 10:
            note.extent = IPC_ADDRESSED;
            note.offset = how == 9 ? (uintptr_t)&a : UINT64_MAX;
            fd = -1;
            break;
        case 11: fd = huge; break;
        case 12: fd = file; break;
        }
        static watched w;
        size_t posted;
        int32_t native;
        pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &w, PPLX_WRITE_IMM, 0, 64, 0);
        request.remote_key = 77;
        CHECK_EQ(ipc->post(victim.endpoint, &request, 1, &posted, &native), PPLX_OK);
        CHECK(pplx_ipc_send(a.socket, &note, sizeof note, fd) == sizeof note);
        CHECK_EQ(wait_for(&victim, NULL, &w), PPLX_CONNECTION);
        close(huge);
        close(file);
        close(unsealed);
        close(small);
        attacker_leaves(&a);
        close_endpoint(&victim, NULL);
    }
    side_close(&victim);
}

/* No attack, but a peer that is slow: it answers a question when we are about to close, and lets go after that. Its
 * memory can't be moved, so nothing else would release it as long as the peer lives. */
static void test_an_answer_after_the_goodbye(void) {
    static side victim;
    static watched w;
    const pplx_option trusting = {"vm_writev", "1"};
    attacker a;
    size_t posted;
    int32_t native;
    side_open_with(&victim, &trusting, 1);
    attacker_flags = IPC_TRUSTS;
    attacker_connects(&a, &victim);
    attacker_flags = 0;
    ipc_note question = {.kind = IPC_MAP, .key = victim.key[PLAIN].key}, answer = {0};
    CHECK(pplx_ipc_send(a.socket, &question, sizeof question, -1) == sizeof question);
    uint64_t start = check_now_ns();
    while (answer.kind != IPC_MAPPED) {
        int fd = -1;
        side_poll(&victim);
        pplx_ipc_receive(a.socket, &answer, sizeof answer, &fd);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(answer.extent, IPC_ADDRESSED);
    pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &w, PPLX_WRITE_IMM, 0, 64, 0);
    request.remote_key = 77;
    CHECK_EQ(ipc->post(victim.endpoint, &request, 1, &posted, &native), PPLX_OK);
    CHECK_EQ(ipc->endpoint_close(victim.endpoint), PPLX_UNRELEASED);
    const ipc_note late[] = {{.kind = IPC_MAPPED, .extent = IPC_STAGED, .access = 3, .key = 77, .nbytes = 4096},
                             {.kind = IPC_BYE_ACK}};
    for (int i = 0; i < 2; i++) CHECK(pplx_ipc_send(a.socket, &late[i], sizeof late[i], -1) == sizeof late[i]);
    close_endpoint(&victim, NULL);
    attacker_leaves(&a);
    side_close(&victim);
}

/* ------------------------------------------------------------------ rings */

/* Heads that can't be true end the connection, at the next look at them. */
static void test_lying_heads(void) {
    static side victim;
    static watched ops[2 * SLOTS];
    side_open(&victim);
    for (int how = 0; how < 4; how++) {
        const bool immediates = how < 2;
        const uint64_t lie = how % 2 ? UINT64_MAX - 1000 : 1000; /* far behind, and ahead of what was sent */
        attacker a;
        size_t posted, count = 0;
        int32_t native;
        pplx_status status = PPLX_OK;
        attacker_connects(&a, &victim);
        atomic_store(immediates ? &a.inbox.head->immediates : &a.inbox.head->commands, lie);
        const ipc_note note = {.kind = IPC_MAPPED, .extent = IPC_STAGED, .access = 3, .key = 77, .nbytes = 4096};
        uint64_t start = check_now_ns();
        for (bool told = false; count < 2 * SLOTS && (status == PPLX_OK || status == PPLX_AGAIN); told = true) {
            pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &ops[count], PPLX_WRITE_IMM, 0,
                                                   immediates ? 0 : 64, 0);
            request.remote_key = 77;
            status = ipc->post(victim.endpoint, &request, 1, &posted, &native);
            count += posted;
            if (!told) CHECK(pplx_ipc_send(a.socket, &note, sizeof note, -1) == sizeof note);
            run_for(&victim, NULL, 0.0002);
            check_patience(start, PATIENCE);
        }
        CHECK_EQ(status, PPLX_CONNECTION);
        for (size_t i = 0; i < count; i++) CHECK(ops[i].completions == 1);
        attacker_leaves(&a);
        close_endpoint(&victim, NULL);
    }
    side_close(&victim);
}

/* What the victim says to one command: a pplx_status, or that it has broken with the attacker. */
enum { BROKEN = -1 };
static int say_of(side *victim, const ipc_command *command) {
    attacker a;
    int said = BROKEN;
    attacker_connects(&a, victim);
    memset(a.outbox.staging, 0x66, a.outbox.staging_nbytes);
    ipc_push_command(&a.outbox, 0, command);
    uint64_t start = check_now_ns();
    for (char end;;) {
        side_poll(victim);
        if (atomic_load(&a.outbox.head->commands) == 1) {
            said = (int)ipc_result(&a.outbox, 0);
            break;
        }
        if (recv(a.socket, &end, 1, MSG_DONTWAIT | MSG_PEEK) == 0) break;
        check_patience(start, PATIENCE);
    }
    attacker_leaves(&a);
    close_endpoint(victim, NULL);
    return said;
}

/* A command is refused, or the end of who sent it; memory is touched by the right one only. */
static void test_commands_out_of_range(void) {
    static side victim, other;
    static unsigned char memory[GUARD + ARENA + GUARD];
    const uint32_t both = PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
    pplx_remote_key key, readable, writable, closed;
    side_open(&victim);
    side_open(&other);
    memset(memory, 0xc3, sizeof memory);
    pplx_provider_mr *mr = register_memory(&victim, memory + GUARD, ARENA, -1, 0, both, &key);
    pplx_provider_mr *ro = register_memory(&victim, memory, 64, -1, 0, PPLX_ACCESS_REMOTE_READ, &readable);
    pplx_provider_mr *wo = register_memory(&victim, memory, 64, -1, 0, PPLX_ACCESS_REMOTE_WRITE, &writable);
    CHECK_EQ(ipc->mr_close(register_memory(&victim, memory, 64, -1, 0, both, &closed)), PPLX_OK);
    const ipc_command in = {.kind = IPC_COPY_IN, .flags = IPC_LAST, .key = key.key, .nbytes = 64};
    const ipc_command out = {.kind = IPC_COPY_OUT, .flags = IPC_LAST, .key = key.key, .nbytes = 64};
    const ipc_command message = {.kind = IPC_MESSAGE, .flags = IPC_LAST, .key = 64, .nbytes = 64};
#define WITH(command, ...)             \
    ({                                 \
        ipc_command changed = command; \
        changed.__VA_ARGS__;           \
        changed;                       \
    })
    const struct {
        ipc_command command;
        int said;
    } cases[] = {
        {WITH(in, key = 1), PPLX_REMOTE_ACCESS},
        {WITH(in, key ^= 1), PPLX_REMOTE_ACCESS},
        {WITH(in, key = 0), PPLX_REMOTE_ACCESS},
        {WITH(in, key = other.key[PLAIN].key), PPLX_REMOTE_ACCESS}, /* of another engine of this process */
        {WITH(in, key = closed.key), PPLX_REMOTE_ACCESS},
        {WITH(in, key = readable.key), PPLX_REMOTE_ACCESS},
        {WITH(out, key = writable.key), PPLX_REMOTE_ACCESS},
        {WITH(in, offset = ARENA - 63), PPLX_REMOTE_ACCESS},
        {WITH(in, offset = UINT64_MAX), PPLX_REMOTE_ACCESS},
        {WITH(in, offset = UINT64_MAX - 63), PPLX_REMOTE_ACCESS},
        {WITH(in, offset = (uint64_t)-GUARD), PPLX_REMOTE_ACCESS},
        {WITH(out, offset = ARENA), PPLX_REMOTE_ACCESS},
        {WITH(in, nbytes = IPC_PIECE + 1), BROKEN},
        {WITH(in, nbytes = UINT64_MAX), BROKEN},
        {WITH(out, nbytes = 1u << 31), BROKEN},
        {WITH(in, staging = 1u << 30), BROKEN},
        {WITH(in, staging = UINT64_MAX), BROKEN},
        {WITH(out, staging = UINT64_MAX - 63), BROKEN},
        {WITH(in, kind = 0), BROKEN},
        {WITH(in, kind = 4), BROKEN},
        {WITH(in, kind = UINT32_MAX), BROKEN},
        {WITH(message, offset = 1), BROKEN}, /* the middle of one that has not begun */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        CHECK_EQ(say_of(&victim, &cases[i].command), cases[i].said);
    for (size_t i = 0; i < sizeof memory; i++) CHECK(memory[i] == 0xc3);
    CHECK_EQ(say_of(&victim, &in), PPLX_OK);
    CHECK(memory[GUARD - 1] == 0xc3 && memory[GUARD] == 0x66 && memory[GUARD + 63] == 0x66 &&
          memory[GUARD + 64] == 0xc3);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    CHECK_EQ(ipc->mr_close(ro), PPLX_OK);
    CHECK_EQ(ipc->mr_close(wo), PPLX_OK);
    side_close(&other);
    side_close(&victim);
}

static _Atomic bool over;

static void *punch(void *argument) {
    const int *fds = argument;
    while (!atomic_load(&over))
        for (int i = 0; i < 3; i++)
            fallocate(fds[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20); /* the start of it, at least */
    return NULL;
}

/* Pages can't be cut off, but holes can be punched, into both inboxes and into the memory that the victim has
 * mapped: what was there reads as zeros, and is nobody's end. */
static void test_holes(void) {
    static side victim;
    side_open(&victim);
    for (int round = 0; round < 20; round++) {
        static watched ops[64];
        attacker a;
        pthread_t thread;
        attacker_connects(&a, &victim);
        const int memfd = pplx_ipc_memfd("attacker", 1 << 20);
        int fds[3] = {memfd, a.inbox_fd, a.victim_fd};
        CHECK(memfd >= 0);
        atomic_store(&over, false);
        CHECK(pthread_create(&thread, NULL, punch, fds) == 0);
        const ipc_note note = {.kind = IPC_MAPPED, .extent = IPC_MAPPABLE, .access = 3, .key = 77, .nbytes = 1 << 20};
        const uint64_t end = check_now_ns() + 15000000;
        for (int i = 0; check_now_ns() < end; i++) {
            size_t posted;
            int32_t native;
            pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &ops[i % 64],
                                                   i % 3 ? PPLX_WRITE_IMM : PPLX_READ, 0, 1 << 18, 0);
            request.remote_key = 77;
            if (i < 64) ipc->post(victim.endpoint, &request, 1, &posted, &native);
            if (i == 1) pplx_ipc_send(a.socket, &note, sizeof note, memfd);
            side_poll(&victim);
        }
        atomic_store(&over, true);
        pthread_join(thread, NULL);
        close(memfd);
        attacker_leaves(&a);
        close_endpoint(&victim, NULL);
    }
    side_close(&victim);
}

/* ------------------------------------------------------------------ news without end */

static _Atomic uint64_t held_up; /* polls of the victim that came back, and the copy had not ended */

/* Says over and over that there is news. If a poll() does not come back for that, it is this thread that tells. */
static void *cry_wolf(void *argument) {
    const attacker *a = argument;
    uint64_t start = check_now_ns(), known = 0;
    for (unsigned i = 0; !atomic_load(&over); i++) {
        atomic_fetch_add(&a->inbox.head->news, 1);
        if (i % 4096 != 0) continue;
        const uint64_t now = atomic_load(&held_up);
        if (now != known) start = check_now_ns();
        known = now;
        check_patience(start, PATIENCE);
    }
    return NULL;
}

/* A copy into the peer's memory has ended when there is no news of the peer: where that never ends, the copy does
 * not either, but all others have their turns. */
static void test_news_without_end(void) {
    static side victim;
    static watched w;
    attacker a;
    pthread_t thread;
    size_t posted;
    int32_t native;
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2) {
        printf("# skipped: one core, so nobody says anything while a poll() runs\n");
        return;
    }
    side_open(&victim);
    attacker_connects(&a, &victim);
    const int memfd = pplx_ipc_memfd("attacker", 1 << 20);
    CHECK(memfd >= 0);
    const ipc_note note = {.kind = IPC_MAPPED, .extent = IPC_MAPPABLE, .access = 3, .key = 77, .nbytes = 1 << 20};
    pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &w, PPLX_WRITE, 0, 64, 0);
    request.remote_key = note.key;
    CHECK_EQ(ipc->post(victim.endpoint, &request, 1, &posted, &native), PPLX_OK);
    side_poll(&victim); /* it asks */
    CHECK(pplx_ipc_send(a.socket, &note, sizeof note, memfd) == sizeof note);
    CHECK_EQ(wait_for(&victim, NULL, &w), PPLX_OK);
    atomic_store(&over, false);
    atomic_store(&held_up, 0);
    CHECK(pthread_create(&thread, NULL, cry_wolf, &a) == 0);
    while (atomic_load(&held_up) < 100) {
        if (w.completions) { /* it ends where the other thread has no core at the moment */
            CHECK_EQ(w.status, PPLX_OK);
            w.completions = 0;
            CHECK_EQ(ipc->post(victim.endpoint, &request, 1, &posted, &native), PPLX_OK);
        }
        side_poll(&victim);
        if (!w.completions) atomic_fetch_add(&held_up, 1);
    }
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    close(memfd);
    attacker_leaves(&a);
    close_endpoint(&victim, NULL);
    side_close(&victim);
}

typedef struct scribbler {
    attacker *attacker;
    uint64_t keys[2]; /* real ones */
    bool wild;        /* else it keeps to what isn't an obvious breach, and so gets further */
} scribbler;

static uint64_t some_number(uint64_t *random) {
    switch (check_random(random) % 5) {
    case 0: return check_random(random) % 64;
    case 1: return ARENA - check_random(random) % 64;
    case 2: return IPC_PIECE + 1 - check_random(random) % 3;
    case 3: return UINT64_MAX - check_random(random) % 64;
    default: return check_random(random);
    }
}

/* Commands that are taken for such, some of them nearly right; wrong heads; noise everywhere. */
static void *scribble(void *argument) {
    const scribbler *s = argument;
    attacker *a = s->attacker;
    uint64_t random = check_now_ns(), position = 0, imm = 0;
    while (!atomic_load(&over)) {
        ipc_command command = {.kind = (uint32_t)(check_random(&random) % 5),
                               .flags = (uint32_t)check_random(&random) % 4,
                               .key = check_random(&random) % 8 ? s->keys[check_random(&random) % 2]
                                                                : some_number(&random),
                               .offset = check_random(&random) % 2 ? 0 : some_number(&random),
                               .nbytes = check_random(&random) % 2 ? 64 : some_number(&random),
                               .staging = check_random(&random) % 2 ? 0 : some_number(&random)};
        if (!s->wild) {
            const uint64_t staging = a->outbox.staging_nbytes;
            command.kind = 1 + command.kind % 2;
            command.nbytes %= IPC_PIECE + 1;
            command.staging %= staging;
            if (command.nbytes > staging - command.staging) command.nbytes = staging - command.staging;
        }
        ipc_push_command(&a->outbox, position, &command);
        if (!s->wild) { /* changed while it is being judged */
            ipc_slot *slot = &a->outbox.commands[position % IPC_COMMANDS];
            __atomic_store_n(&slot->words[2], some_number(&random), __ATOMIC_RELAXED);
            __atomic_store_n(&slot->words[2], 0, __ATOMIC_RELAXED);
        }
        position = atomic_load(&a->outbox.head->commands);
        ipc_push_immediate(&a->outbox, imm, (uint32_t)imm);
        imm = atomic_load(&a->outbox.head->immediates);
        uint64_t *words = (uint64_t *)(void *)a->outbox.head;
        const uint64_t nwords = ipc_inbox_staging_at(a->outbox.slots) / sizeof *words;
        if (s->wild && check_random(&random) % 16 == 0)
            __atomic_store_n(&words[check_random(&random) % nwords], some_number(&random), __ATOMIC_RELAXED);
        words = (uint64_t *)(void *)a->inbox.head;
        if (s->wild && check_random(&random) % 64 == 0)
            __atomic_store_n(&words[check_random(&random) % (sizeof(ipc_head) / sizeof *words)], some_number(&random),
                             __ATOMIC_RELAXED);
    }
    return NULL;
}

/* For a second or more: the victim reads, posts, sleeps. It may break with the attacker, which comes
 * back; what is registered may be written to, what lies round it may not. */
static void test_garbage_in_the_rings(void) {
    static side victim;
    static unsigned char memory[GUARD + ARENA + GUARD];
    const char *seconds = getenv("PPLX_HOSTILE_SECONDS");
    const uint64_t end = check_now_ns() + (uint64_t)(1e9 * (seconds ? atof(seconds) : 2.0));
    size_t broken = 0, rounds = 0;
    uint64_t random = 11;
    side_open(&victim);
    memset(memory, 0xc3, sizeof memory);
    pplx_remote_key key, readable;
    pplx_provider_mr *mr = register_memory(&victim, memory + GUARD, ARENA, -1, 0,
                                           PPLX_ACCESS_REMOTE_WRITE | PPLX_ACCESS_REMOTE_READ, &key);
    pplx_provider_mr *ro = register_memory(&victim, memory, 64, -1, 0, PPLX_ACCESS_REMOTE_READ, &readable);
    while (check_now_ns() < end) {
        attacker a;
        pthread_t thread;
        static watched ops[64];
        attacker_connects(&a, &victim);
        scribbler s = {&a, {key.key, readable.key}, rounds % 8 != 0};
        atomic_store(&over, false);
        CHECK(pthread_create(&thread, NULL, scribble, &s) == 0);
        const uint64_t round_end = check_now_ns() + 20000000;
        for (int i = 0; check_now_ns() < round_end; i++) {
            size_t posted;
            int32_t native;
            const uint32_t opcode = (uint32_t)(check_random(&random) % 5);
            pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &ops[i % 64], opcode, 0,
                                                   check_random(&random) % 100000, 0);
            request.remote_key = 5;
            pplx_status status = i < 64 ? ipc->post(victim.endpoint, &request, 1, &posted, &native) : PPLX_OK;
            broken += status == PPLX_CONNECTION;
            side_poll(&victim);
            if (check_random(&random) % 8 == 0) doze(&victim, 1);
            if (status == PPLX_CONNECTION) break;
        }
        rounds++;
        atomic_store(&over, true);
        pthread_join(thread, NULL);
        attacker_leaves(&a);
        close_endpoint(&victim, NULL);
        for (size_t i = 0; i < GUARD; i++) CHECK(memory[i] == 0xc3 && memory[GUARD + ARENA + i] == 0xc3);
    }
    printf("# %zu attacks, %zu of them seen while it posted\n", rounds, broken);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    CHECK_EQ(ipc->mr_close(ro), PPLX_OK);
    side_close(&victim);
}

/* ------------------------------------------------------------------ what it holds */

/* A memfd that two domains have registered is mapped through the first only: when its pages move, the
 * second could not tell its peers. Both work, and do after the move. */
static void test_two_domains(void) {
    static side first, second;
    const uint32_t access = PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
    attacker a, b;
    ipc_note note;
    pplx_remote_key key;
    side_open(&first);
    side_open(&second);
    pplx_provider_mr *mr = register_memory(&second, first.arena[MAPPED], ARENA, first.memfd, 0, access, &key);
    attacker_connects(&b, &second);
    CHECK_EQ(ask(&b, &second, key.key, &note), -1);
    CHECK_EQ(note.extent, IPC_STAGED);
    attacker_connects(&a, &first);
    int fd = ask(&a, &first, first.key[MAPPED].key, &note);
    CHECK(fd >= 0);
    close_endpoint(&first, NULL); /* it doesn't let go: the pages move */
    const ipc_command command = {.kind = IPC_COPY_IN, .flags = IPC_LAST, .key = key.key, .nbytes = 4096};
    memset(b.outbox.staging, 0x77, 4096);
    ipc_push_command(&b.outbox, 0, &command);
    run_for(&second, NULL, 0.005);
    CHECK(first.arena[MAPPED][0] == 0x77 && first.arena[MAPPED][4095] == 0x77);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    close(fd);
    attacker_leaves(&a);
    attacker_leaves(&b);
    close_endpoint(&second, NULL);
    side_close(&second);
    side_close(&first);
}

/* Nothing that is passed can be made shorter, and what may be read only can't be written. */
static void test_what_is_passed(void) {
    static side victim;
    attacker a;
    ipc_note note;
    side_open(&victim);
    attacker_connects(&a, &victim);
    CHECK(ftruncate(a.victim_fd, 0) < 0);
    CHECK_EQ(ask(&a, &victim, victim.key[PLAIN].key, &note), -1); /* other memory is never passed */
    CHECK_EQ(note.extent, IPC_STAGED);
    CHECK_EQ(ask(&a, &victim, 12345, &note), -1);
    CHECK_EQ(note.extent, IPC_NO_KEY);
    pplx_remote_key key;
    pplx_provider_mr *mr = register_memory(&victim, victim.arena[MAPPED], 4096, victim.memfd, 0,
                                           PPLX_ACCESS_REMOTE_READ, &key);
    int fd = ask(&a, &victim, key.key, &note);
    CHECK(fd >= 0 && note.extent == IPC_MAPPABLE && ftruncate(fd, 0) < 0);
    CHECK(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED);
    void *memory = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    munmap(memory, 4096);
    close(fd);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    attacker_leaves(&a);
    close_endpoint(&victim, NULL);
    side_close(&victim);
}

/* It hangs up, or breaks a rule, and keeps what it has mapped: no goodbye, no death, no trust. */
static void test_keeps_the_mapping(void) {
    for (int how = 0; how < 3; how++) {
        static side victim;
        attacker a;
        ipc_note note;
        side_open(&victim);
        attacker_connects(&a, &victim);
        int fd = ask(&a, &victim, victim.key[MAPPED].key, &note);
        CHECK(fd >= 0);
        unsigned char *memory = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        CHECK(memory != MAP_FAILED);
        fill(memory, ARENA, 5);
        if (how == 0) close(a.socket), a.socket = -1;
        if (how == 1) pplx_ipc_send(a.socket, "?", 1, -1);
        run_for(&victim, NULL, 0.005); /* how == 2: it just says nothing */
        CHECK(victim.arena[MAPPED][1000] == memory[1000]);
        uint64_t start = check_now_ns();
        close_endpoint(&victim, NULL);
        CHECK(check_now_ns() - start < 3000000000); /* nobody else is waited for */
        unsigned char *before = malloc(ARENA);
        CHECK(before);
        memcpy(before, victim.arena[MAPPED], ARENA);
        CHECK(memcmp(before, memory, ARENA) == 0); /* nothing was lost */
        memset(memory, 0, ARENA);
        CHECK(memcmp(before, victim.arena[MAPPED], ARENA) == 0);
        free(before);
        munmap(memory, ARENA);
        close(fd);
        attacker_leaves(&a);
        side_close(&victim);
    }
}

/* ------------------------------------------------------------------ many connections */

/* A thousand connections that say nothing, and a peer gets through all the same. */
static void test_many_connections(void) {
    enum { COUNT = 1000 };
    static int fds[COUNT];
    static side a, b;
    ipc_address address;
    side_open(&a);
    side_open(&b);
    side_listen(&a);
    memcpy(&address, a.address, sizeof address);
    int before = descriptors();
    for (int i = 0; i < COUNT; i++) {
        fds[i] = pplx_ipc_connect(address.listener);
        CHECK(fds[i] >= 0);
    }
    run_for(&a, NULL, 0.05);
    CHECK(descriptors() - before <= COUNT + IPC_VISITORS);
    side_listen(&b);
    side_connect(&a, &b);
    side_connect(&b, &a);
    uint64_t start = check_now_ns();
    watched w;
    for (int i = 0; i < KINDS; i++) {
        pplx_work_request request = request_of(&a, PLAIN, &b, (enum kind)i, &w, PPLX_WRITE, 0, ARENA, 0);
        CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
    }
    CHECK(check_now_ns() - start < COUNT / IPC_VISITORS / 2 * (uint64_t)IPC_VISIT_NS); /* it waits for none of them */
    for (int i = 0; i < COUNT; i++) close(fds[i]);
    run_for(&a, &b, 0.02);
    pair_close(&a, &b);
}

int main(void) {
    RUN(test_bad_inboxes);
    RUN(test_strangers);
    RUN(test_bad_welcomes);
    RUN(test_garbage_on_the_socket);
    RUN(test_flood_of_questions);
    RUN(test_lies_about_memory);
    RUN(test_an_answer_after_the_goodbye);
    RUN(test_lying_heads);
    RUN(test_commands_out_of_range);
    RUN(test_holes);
    RUN(test_news_without_end);
    RUN(test_garbage_in_the_rings);
    RUN(test_what_is_passed);
    RUN(test_keeps_the_mapping);
    RUN(test_two_domains);
    RUN(test_many_connections);
    return check_done();
}
