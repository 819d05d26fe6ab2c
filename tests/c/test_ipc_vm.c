/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The ipc provider's option vm_writev between processes: who uses it, what arrives, and that what was
 * told to a peer is not reported closed before the peer has let go. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "ipc_internal.h"
#include "ipc_processes.h"

static const pplx_option trust[] = {{"vm_writev", "1"}};

static const uint64_t sizes[] = {1, 8, 4096, 65537, IPC_PIECE + 1, ARENA};
enum { SIZES = sizeof sizes / sizeof *sizes };

/* What went through the staging area is counted by its commands. */
static uint64_t commands(const side *s) { return ((const ipc_endpoint *)(const void *)s->endpoint)->command_tail; }

static bool was_refused(const side *s) { return ((const ipc_endpoint *)(const void *)s->endpoint)->refused; }

/* ------------------------------------------------------------------ roles */

/* An immediate says what should lie in our memory by now; the answer is whether it does. */
static uint32_t what(size_t size, unsigned seed) { return (uint32_t)size << 8 | (seed & 0xff); }

static void judge(int fd, side *s, const side *peer) {
    static unsigned char expected[ARENA];
    for (size_t seen = 0; !told_to_end(fd);) {
        side_poll(s);
        if (seen == s->nimms) {
            doze(s, 20);
            continue;
        }
        const uint32_t imm = s->imms[seen++ % MAX_IMMS];
        fill(expected, sizes[imm >> 8], imm & 0xff);
        const bool right = memcmp(expected, s->arena[PLAIN], sizes[imm >> 8]) == 0;
        watched w;
        pplx_work_request request = request_of(s, PLAIN, peer, PLAIN, &w, PPLX_WRITE_IMM, 0, 0, right);
        CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
    }
}

/* As under Yama, whoever we are. */
static void refuse_vm(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_writev, 1, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {.len = sizeof code / sizeof *code, .filter = code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0, 0) == 0);
}

/* Writes once, reads it back, and is refused the one copy for both. */
static void denied(int fd, side *s, const side *peer) {
    pplx_caps caps;
    watched w;
    refuse_vm();
    fill(s->arena[PLAIN], ARENA, 5);
    pplx_work_request request = request_of(s, PLAIN, peer, PLAIN, &w, PPLX_WRITE_IMM, 0, ARENA, 5);
    CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
    request = request_of(s, MAPPED, peer, PLAIN, &w, PPLX_READ, 0, ARENA, 0);
    CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
    CHECK(memcmp(s->arena[PLAIN], s->arena[MAPPED], ARENA) == 0);
    CHECK(was_refused(s) && commands(s) > 0);
    ipc->domain_caps(s->domain, &caps);
    CHECK(strstr(caps.description, "refused"));
    while (!told_to_end(fd)) {
        side_poll(s);
        doze(s, 20);
    }
}

static void serve(int fd, const char *role) {
    static side s, peer;
    char word;
    if (strcmp(role, "idle") == 0) {
        CHECK(recv(fd, &word, 1, 0) >= 0);
        return;
    }
    side_open_with(&s, trust, strcmp(role, "judge-untrusting") != 0);
    side_listen(&s);
    exchange(fd, &s, &peer);
    if (strcmp(role, "denied") == 0)
        denied(fd, &s, &peer);
    else if (strcmp(role, "stream") == 0)
        stream(fd, &s, &peer, PLAIN);
    else
        judge(fd, &s, &peer);
    if (strcmp(role, "another") == 0) { /* becomes another program, with the same pid */
        CHECK(recv(fd, &word, 1, 0) == 1);
        char text[16];
        snprintf(text, sizeof text, "%d", fd);
        execl("/proc/self/exe", "test_ipc", "--serve", text, "idle", (char *)NULL);
        _exit(127);
    }
    side_close(&s);
}

/* ------------------------------------------------------------------ data */

/* Every size, with and without an immediate, and back. */
static void check_data(side *s, side *peer) {
    for (size_t i = 0; i < 2 * SIZES; i++) {
        const uint64_t nbytes = sizes[i / 2];
        const bool immediate = i % 2;
        watched w;
        s->nimms = 0;
        fill(s->arena[PLAIN], nbytes, (unsigned)i);
        pplx_work_request request = request_of(s, PLAIN, peer, PLAIN, &w, immediate ? PPLX_WRITE_IMM : PPLX_WRITE, 0,
                                               nbytes, what(i / 2, (unsigned)i));
        CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
        if (immediate) {
            wait_imms(s, NULL, 1);
            CHECK_EQ(s->imms[0], 1);
        }
        memset(s->arena[MAPPED], 0, nbytes);
        request = request_of(s, MAPPED, peer, PLAIN, &w, PPLX_READ, 0, nbytes, 0);
        CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
        CHECK(memcmp(s->arena[MAPPED], s->arena[PLAIN], nbytes) == 0);
    }
}

static void test_both(void) {
    static side s, peer;
    child c;
    watched w;
    side_open_with(&s, trust, 1);
    meet_child(&c, "judge", &s, &peer);
    check_data(&s, &peer);
    CHECK(!was_refused(&s));

    /* The peer has no part in it: it stands still. */
    kill(c.pid, SIGSTOP);
    CHECK(waitpid(c.pid, NULL, WUNTRACED) == c.pid);
    s.nimms = 0;
    fill(s.arena[PLAIN], ARENA, 99);
    pplx_work_request request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_WRITE_IMM, 0, ARENA, what(SIZES - 1, 99));
    CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
    kill(c.pid, SIGCONT);
    wait_imms(&s, NULL, 1);
    CHECK_EQ(s.imms[0], 1);
    CHECK_EQ(commands(&s), 0);

    /* Memory of the engine's is still mapped, and the range of a region is still one. */
    static unsigned char before[ARENA];
    memcpy(before, s.arena[PLAIN], ARENA);
    memset(s.arena[PLAIN], 0, ARENA);
    static const uint64_t bad[][2] = {{ARENA, 1}, {ARENA - 63, 64}, {1, ARENA}, {UINT64_MAX - 63, 64}, {UINT64_MAX, 8}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_WRITE_IMM, 0, bad[i][1], what(0, 0));
        request.remote_address = bad[i][0];
        CHECK_EQ(perform(&s, NULL, &request), PPLX_REMOTE_ACCESS);
    }
    request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_READ, 0, ARENA, 0);
    CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
    CHECK(memcmp(before, s.arena[PLAIN], ARENA) == 0);
    request = request_of(&s, PLAIN, &peer, MAPPED, &w, PPLX_WRITE, 0, ARENA, 0);
    CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
    CHECK_EQ(commands(&s), 0);
    CHECK_EQ(s.nimms, 1); /* nor has an immediate come of what was refused */
    end_child(&c, &s);
    side_close(&s);
}

static void test_one_side_only(void) {
    static side s, peer;
    for (int ours = 0; ours < 2; ours++) {
        child c;
        side_open_with(&s, trust, (size_t)ours);
        meet_child(&c, ours ? "judge-untrusting" : "judge", &s, &peer);
        check_data(&s, &peer);
        CHECK(commands(&s) > 2 * SIZES);
        CHECK(!was_refused(&s)); /* it was not even tried */
        end_child(&c, &s);
        side_close(&s);
    }
}

/* What the kernel refuses goes through the staging area. */
static void test_denied(void) {
    static side s, peer;
    static unsigned char expected[ARENA];
    child c;
    side_open_with(&s, trust, 1);
    meet_child(&c, "denied", &s, &peer);
    wait_imms(&s, NULL, 1);
    fill(expected, ARENA, 5);
    CHECK(s.imms[0] == 5 && memcmp(expected, s.arena[PLAIN], ARENA) == 0);
    end_child(&c, &s);
    side_close(&s);
}

/* Registered memory that is not there: an error of that request alone. Two domains of one process. */
static void test_holes(void) {
    enum { LENGTH = 16 * 4096 };
    static side a, b;
    watched w;
    pplx_remote_key key, read_only;
    pair_open_with(&a, &b, trust, 1);
    unsigned char *memory = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED && mprotect(memory + LENGTH / 2, 4096, PROT_NONE) == 0);
    const uint32_t access = PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
    pplx_provider_mr *mr = register_memory(&b, memory, LENGTH, -1, 0, access, &key);
    pplx_provider_mr *other = register_memory(&b, memory, LENGTH / 2, -1, 0, PPLX_ACCESS_REMOTE_READ, &read_only);
    fill(a.arena[PLAIN], LENGTH, 1);
    for (uint32_t opcode = PPLX_WRITE; opcode <= PPLX_READ; opcode++) {
        pplx_work_request request = request_of(&a, PLAIN, &b, PLAIN, &w, opcode, 0, LENGTH, 3);
        request.remote_key = key.key;
        CHECK_EQ(perform(&a, &b, &request), PPLX_REMOTE_ACCESS);
        request = request_of(&a, PLAIN, &b, PLAIN, &w, opcode, 0, LENGTH / 2, 4);
        request.remote_key = key.key;
        CHECK_EQ(perform(&a, &b, &request), PPLX_OK);
        CHECK(memcmp(a.arena[PLAIN], memory, LENGTH / 2) == 0);
        request = request_of(&a, PLAIN, &b, PLAIN, &w, opcode, 0, LENGTH / 2, 5);
        request.remote_key = read_only.key;
        CHECK_EQ(perform(&a, &b, &request), opcode == PPLX_READ ? PPLX_OK : PPLX_REMOTE_ACCESS);
    }
    wait_imms(&b, &a, 1);
    CHECK(b.nimms == 1 && b.imms[0] == 4);
    CHECK_EQ(commands(&a), 0);
    close_endpoint(&a, &b);
    close_endpoint(&b, NULL);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    CHECK_EQ(ipc->mr_close(other), PPLX_OK);
    munmap(memory, LENGTH);
    pair_close(&a, &b);
}

/* ------------------------------------------------------------------ fences */

static void stop(const child *c, uint64_t *random, side *s) {
    wait_imms(s, NULL, 4);
    run_for(s, NULL, 1e-6 * (double)(check_random(random) % 3000));
    kill(c->pid, SIGSTOP);
    CHECK(waitpid(c->pid, NULL, WUNTRACED) == c->pid);
}

/* A peer that stands still may go on writing: the region is closed when it has let go, or is dead. */
static void test_closed_region(void) {
    enum { TRIES = 20 };
    static side s, peer;
    static const unsigned char zeros[ARENA];
    uint64_t random = 3;
    for (int round = 0; round < 10; round++) {
        const bool dies = round % 2;
        child c;
        side_open_with(&s, trust, 1);
        meet_child(&c, "stream", &s, &peer);
        stop(&c, &random, &s);
        CHECK_EQ(ipc->mr_close(s.mr[PLAIN]), PPLX_UNRELEASED);
        uint64_t start = check_now_ns();
        for (int i = 0; i < TRIES; i++) {
            CHECK_EQ(ipc->mr_close(s.mr[PLAIN]), PPLX_UNRELEASED);
            run_for(&s, NULL, 0.001);
        }
        CHECK(check_now_ns() - start < TRIES * (uint64_t)IPC_FENCE_NS / 2); /* it waits the first time only */
        if (dies)
            kill_child(&c);
        else
            kill(c.pid, SIGCONT);
        start = check_now_ns();
        while (ipc->mr_close(s.mr[PLAIN]) == PPLX_UNRELEASED) {
            side_poll(&s);
            check_patience(start, PATIENCE);
        }
        s.mr[PLAIN] = NULL;
        memset(s.arena[PLAIN], 0, ARENA); /* the memory is ours again */
        run_for(&s, NULL, 0.03);
        CHECK(memcmp(zeros, s.arena[PLAIN], ARENA) == 0);
        if (!dies) end_child(&c, &s);
        side_close(&s);
    }
}

/* The same for an endpoint; and what it leaves of regions that were never fenced goes with the domain. */
static void test_closed_endpoint(void) {
    static side s, peer;
    static unsigned char before[ARENA];
    uint64_t random = 4;
    for (int round = 0; round < 9; round++) {
        child c;
        side_open_with(&s, trust, 1);
        meet_child(&c, "stream", &s, &peer);
        stop(&c, &random, &s);
        if (round % 3 == 2) CHECK_EQ(ipc->mr_close(s.mr[PLAIN]), PPLX_UNRELEASED);
        uint64_t start = check_now_ns();
        while (check_now_ns() - start < 3 * (uint64_t)IPC_FENCE_NS) {
            CHECK_EQ(ipc->endpoint_close(s.endpoint), PPLX_UNRELEASED);
            side_poll(&s);
        }
        if (round % 3 == 0)
            kill_child(&c);
        else
            kill(c.pid, SIGCONT);
        close_endpoint(&s, NULL);
        memcpy(before, s.arena[PLAIN], ARENA);
        run_for(&s, NULL, 0.03);
        CHECK(memcmp(before, s.arena[PLAIN], ARENA) == 0);
        if (round % 3 != 0) end_child(&c, &s);
        if (round % 3 == 2) s.mr[PLAIN] = NULL;
        side_close(&s);
    }
}

/* A region of which two peers were told, both alive and busy: closed at once, and they go on. */
static void test_revoked(void) {
    enum { PEERS = 2 };
    static side s, peers[PEERS];
    pplx_provider_endpoint *endpoints[PEERS];
    child c[PEERS];
    side_open_with(&s, trust, 1);
    for (int i = 0; i < PEERS; i++) {
        meet_child(&c[i], "stream", &s, &peers[i]);
        endpoints[i] = s.endpoint;
        s.nimms = 0;
        wait_imms(&s, NULL, 20);
    }
    uint64_t start = check_now_ns();
    pplx_status status;
    while ((status = ipc->mr_close(s.mr[PLAIN])) == PPLX_UNRELEASED) check_patience(start, PATIENCE);
    CHECK_EQ(status, PPLX_OK);
    s.mr[PLAIN] = NULL;
    memset(s.arena[PLAIN], 0, ARENA);
    run_for(&s, NULL, 0.05);
    for (int at = 0; at < ARENA; at++) CHECK(s.arena[PLAIN][at] == 0);
    for (int i = 0; i < PEERS; i++) {
        end_child(&c[i], &s);
        s.endpoint = endpoints[i];
        close_endpoint(&s, NULL);
    }
    side_close(&s);
}

/* b's PLAIN memory was told to a. */
static void tell_address(side *a, side *b) {
    watched w;
    pair_open_with(a, b, trust, 1);
    pplx_work_request request = request_of(a, PLAIN, b, PLAIN, &w, PPLX_WRITE, 0, ARENA, 0);
    CHECK_EQ(perform(a, b, &request), PPLX_OK);
    CHECK_EQ(commands(a), 0);
    CHECK_EQ(ipc->mr_close(b->mr[PLAIN]), PPLX_UNRELEASED); /* a does nothing */
}

static void check_let_go(side *a, side *b) {
    const uint64_t start = check_now_ns();
    while (ipc->mr_close(b->mr[PLAIN]) == PPLX_UNRELEASED) {
        poll_both(b, a);
        check_patience(start, PATIENCE);
    }
    b->mr[PLAIN] = NULL;
    close_endpoint(b, NULL); /* although a's process lives */
    pair_close(a, b);
}

/* It asked for a region, closed in good order, and was not there any more for the answer. */
static void test_hung_up_before_the_answer(void) {
    static side a, b;
    watched w;
    size_t posted;
    int32_t native;
    tell_address(&a, &b);
    pplx_work_request request = request_of(&a, PLAIN, &b, MAPPED, &w, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(ipc->post(a.endpoint, &request, 1, &posted, &native), PPLX_OK);
    CHECK_EQ(ipc->endpoint_close(a.endpoint), PPLX_OK); /* b was told of nothing */
    a.endpoint = NULL;
    run_for(&b, NULL, 0.01);
    CHECK(((const ipc_endpoint *)(const void *)b.endpoint)->heard_bye); /* the goodbye came after the question */
    check_let_go(&a, &b);
}

/* Whoever is broken with learns that, and hangs up: until then it may write. */
static void test_broken_with(void) {
    static side a, b;
    tell_address(&a, &b);
    pplx_ipc_break((ipc_endpoint *)(void *)b.endpoint, PPLX_CONNECTION);
    run_for(&b, NULL, 0.01);
    CHECK_EQ(ipc->mr_close(b.mr[PLAIN]), PPLX_UNRELEASED);
    check_let_go(&a, &b);
}

/* ------------------------------------------------------------------ death */

/* The peer is killed while we write into it: all that is in flight ends, and nothing goes to whoever has
 * its pid. */
static void test_killed(void) {
    enum { COUNT = 64 };
    static side s, peer;
    static watched ops[COUNT];
    uint64_t random = 6, quickest = UINT64_MAX; /* a busy machine holds some of them up, not all */
    for (int round = 0; round < 16; round++) {
        child c;
        watched late;
        side_open_with(&s, trust, 1);
        meet_child(&c, "judge", &s, &peer);
        pplx_work_request request = request_of(&s, PLAIN, &peer, PLAIN, &late, PPLX_WRITE, 0, ARENA, 0);
        CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
        for (size_t i = 0; i < COUNT; i++) {
            request = request_of(&s, PLAIN, &peer, PLAIN, &ops[i], i % 3 ? PPLX_WRITE : PPLX_READ, 0, ARENA, 0);
            CHECK_EQ(post(&s, NULL, &request), PPLX_OK);
        }
        run_for(&s, NULL, 1e-6 * (double)(check_random(&random) % 5000));
        if (round % 2)
            kill_child(&c); /* and reaped: the pid is free */
        else
            kill(c.pid, SIGKILL);
        uint64_t start = check_now_ns();
        for (size_t i = 0; i < COUNT; i++) {
            while (!ops[i].completions) {
                if (round % 4 > 1) doze(&s, 1000);
                side_poll(&s);
                check_patience(start, PATIENCE);
            }
            CHECK(ops[i].completions == 1 && (ops[i].status == PPLX_OK || ops[i].status == PPLX_PEER_LOST));
        }
        CHECK_EQ(ops[COUNT - 1].status, PPLX_PEER_LOST);
        request = request_of(&s, PLAIN, &peer, PLAIN, &late, PPLX_WRITE, 0, 8, 0);
        CHECK_EQ(post(&s, NULL, &request), PPLX_PEER_LOST);
        start = check_now_ns();
        close_endpoint(&s, NULL);
        const uint64_t closing = check_now_ns() - start;
        if (closing < quickest) quickest = closing;
        if (round % 2 == 0) kill_child(&c);
        side_close(&s);
    }
    CHECK(quickest < IPC_FENCE_NS / 2); /* the dead needn't confirm */
}

/* The same pid, and another program, which is left alone: nobody writes there or waits for it to confirm. Its
 * socket closes a little after its memory has changed; what is tried meanwhile finds nothing at the address. */
static void test_another_program(void) {
    static side s, peer;
    child c;
    watched w;
    side_open_with(&s, trust, 1);
    meet_child(&c, "another", &s, &peer);
    s.nimms = 0;
    fill(s.arena[PLAIN], sizes[3], 1);
    pplx_work_request request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_WRITE_IMM, 0, sizes[3], what(3, 1));
    CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
    wait_imms(&s, NULL, 1);
    CHECK_EQ(s.imms[0], 1);
    CHECK(send(c.fd, "", 1, MSG_NOSIGNAL) == 1);
    uint64_t start = check_now_ns();
    int status;
    do {
        request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_WRITE, 0, 65536, 0);
        status = perform(&s, NULL, &request);
        check_patience(start, PATIENCE);
    } while (status == PPLX_OK || status == PPLX_REMOTE_ACCESS);
    CHECK_EQ(status, PPLX_PEER_LOST);
    CHECK(waitpid(c.pid, NULL, WNOHANG) == 0); /* it lives */
    for (int i = 0; i < KINDS; i++) CHECK_EQ(ipc->mr_close(s.mr[i]), PPLX_OK);
    s.mr[MAPPED] = s.mr[PLAIN] = NULL;
    close_endpoint(&s, NULL);
    close(c.fd); /* so it ends, as it would have */
    CHECK(waitpid(c.pid, &status, 0) == c.pid && status == 0);
    side_close(&s);
}

/* A writer is a child of ours. 0, or why it may not. */
static int refusal(void) {
    int status;
    char here = 0;
    const struct iovec byte = {&here, 1};
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) _exit(process_vm_readv(getppid(), &byte, 1, &byte, 1, 0) == 1 ? 0 : errno);
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status));
    return WEXITSTATUS(status);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "--serve") == 0) {
        check_case = argv[3];
        serve(atoi(argv[2]), argv[3]);
        return 0;
    }
    const int why = refusal();
    if (why) {
        printf("this system lets no process read another's memory: process_vm_readv: %s\n", strerror(why));
        return 77;
    }
    RUN(test_both);
    RUN(test_one_side_only);
    RUN(test_denied);
    RUN(test_holes);
    RUN(test_closed_region);
    RUN(test_closed_endpoint);
    RUN(test_revoked);
    RUN(test_hung_up_before_the_answer);
    RUN(test_broken_with);
    RUN(test_killed);
    RUN(test_another_program);
    return check_done();
}
