/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The tests of test_fabric.c that need a second process: this program run again with "--serve FD", so
 * that no library is open when it forks. */
#ifndef FABRIC_PROCESSES_H
#define FABRIC_PROCESSES_H

#include "fabric_sides.h"

typedef struct greeting {
    unsigned char address[PPLX_ADDRESS_BYTES];
    size_t address_nbytes;
    pplx_remote_key key;
} greeting;

static void exchange(int fd, side *s, side *other) {
    greeting mine = {.address_nbytes = s->address_nbytes, .key = s->key}, theirs;
    memcpy(mine.address, s->address, sizeof mine.address);
    REQUIRE(send(fd, &mine, sizeof mine, MSG_NOSIGNAL) == sizeof mine, "send");
    REQUIRE(recv(fd, &theirs, sizeof theirs, MSG_WAITALL) == sizeof theirs, "recv");
    memset(other, 0, sizeof *other);
    memcpy(other->address, theirs.address, sizeof other->address);
    other->address_nbytes = theirs.address_nbytes;
    other->key = theirs.key;
    side_connect(s, other);
}

/* The other process: answers each immediate with one, sleeping in poll(2) between where it can. */
static void serve(int fd) {
    static side s, peer;
    size_t answered = 0;
    side_open(&s);
    side_listen(&s);
    exchange(fd, &s, &peer);
    int wait_fd = fabric->wait_fd(s.domain);
    static watched answers[64];
    for (;;) {
        side_poll(&s);
        if (answered < s.nimms) {
            size_t posted;
            int32_t native;
            watched *w = &answers[answered % 64];
            pplx_work_request request = request_of(&s, &peer, w, PPLX_WRITE_IMM, 0, 0, s.imms[answered] + 1);
            pplx_status status = fabric->post(s.endpoint, &request, 1, &posted, &native);
            answered += posted;
            REQUIRE(status == PPLX_OK || status == PPLX_AGAIN, "%d", status);
            continue;
        }
        struct pollfd pollfds[] = {{.fd = fd, .events = POLLIN}, {.fd = wait_fd, .events = POLLIN}};
        if (fabric->arm(s.domain) == PPLX_OK) {
            poll(pollfds, 2, 1000);
            if (pollfds[0].revents) /* the end of the test */
                break;
        }
    }
    side_close(&s);
    exit(0);
}

static pid_t start_server(int *fd) {
    int fds[2];
    char text[16];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0, "socketpair");
    pid_t pid = fork();
    REQUIRE(pid >= 0, "fork");
    if (pid == 0) {
        fcntl(fds[1], F_SETFD, 0);
        snprintf(text, sizeof text, "%d", fds[1]);
        execl("/proc/self/exe", program[0], program[1], program[2], "--serve", text, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    *fd = fds[0];
    return pid;
}

static void kill_server(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void ping(side *s, side *peer, uint32_t imm) {
    watched w;
    s->nimms = 0;
    pplx_work_request request = request_of(s, peer, &w, PPLX_WRITE_IMM, 0, 8, imm);
    REQUIRE(post(s, NULL, &request) == PPLX_OK, "post");
    wait_imms(s, NULL, 1);
    wait_for(s, NULL, &w);
    REQUIRE(w.status == PPLX_OK && s->imms[0] == imm + 1, "status %d, immediate %u", w.status, s->imms[0]);
}

/* The first post says "again" until the connection stands. An engine with nothing else to do sleeps
 * on the wait fd meanwhile: that must be enough to get there. */
static void connect_by_waiting(side *s, side *peer) {
    watched w;
    size_t posted = 0;
    int32_t native;
    int sleeps = 0;
    double start = now(), slept = 0;
    pplx_work_request request = request_of(s, peer, &w, PPLX_WRITE, 0, 8, 0);
    while (fabric->post(s->endpoint, &request, 1, &posted, &native) == PPLX_AGAIN) {
        REQUIRE(now() < start + PATIENCE, "never connected");
        if (fabric->arm(s->domain) == PPLX_OK) {
            struct pollfd pollfd = {.fd = fabric->wait_fd(s->domain), .events = POLLIN};
            double begin = now();
            poll(&pollfd, 1, 1000);
            slept += now() - begin;
            sleeps++;
        }
        side_poll(s);
    }
    REQUIRE(posted == 1, "refused, native %d", native);
    printf("# connected in %.1f ms, %d sleeps of together %.1f ms\n", 1e3 * (now() - start), sleeps, 1e3 * slept);
    wait_for(s, NULL, &w);
    REQUIRE(w.status == PPLX_OK, "%d", w.status);
}

static void test_two_processes(void) {
    static side s, peer;
    int fd, status = 0;
    pid_t pid = start_server(&fd);
    side_open(&s);
    side_listen(&s);
    exchange(fd, &s, &peer);
    connect_by_waiting(&s, &peer);
    for (uint32_t i = 0; i < 200; i++) ping(&s, &peer, i * 10);
    static const uint64_t sizes[] = {8, 4096, 1 << 20, 32 << 20};
    for (size_t i = 0; i < 4; i++) {
        const uint64_t nbytes = sizes[i] < s.caps.max_message ? sizes[i] : s.caps.max_message;
        watched w;
        unsigned char *copy = malloc(nbytes);
        REQUIRE(copy, "memory");
        fill(s.arena, nbytes, (unsigned)i);
        memcpy(copy, s.arena, nbytes);
        for (int read = 0; read < 2; read++) {
            pplx_work_request request = request_of(&s, &peer, &w, read ? PPLX_READ : PPLX_WRITE, 0, nbytes, 0);
            REQUIRE(post(&s, NULL, &request) == PPLX_OK, "post");
            wait_for(&s, NULL, &w);
            REQUIRE(w.status == PPLX_OK, "%d", w.status);
            if (!read) memset(s.arena, 0, nbytes);
        }
        REQUIRE(memcmp(copy, s.arena, nbytes) == 0, "there and back: %llu B", (unsigned long long)nbytes);
        free(copy);
    }
    static const char *const names[] = {"write, bad key", "read, bad key", "write out of bounds"};
    for (size_t i = 0; i < 3; i++) {
        watched w;
        pplx_work_request request = request_of(&s, &peer, &w, i == 1 ? PPLX_READ : PPLX_WRITE, 0, 4096, 0);
        if (i < 2)
            request.remote_key ^= 0x55;
        else
            request.remote_address += ARENA - 8;
        REQUIRE(post(&s, NULL, &request) == PPLX_OK, "post");
        wait_for(&s, NULL, &w);
        printf("# %s, two processes: status %d, native %d\n", names[i], w.status, w.provider_error);
        REQUIRE(w.status == PPLX_CONNECTION || w.status == PPLX_REMOTE_ACCESS, "%d", w.status);
        ping(&s, &peer, 7);
    }
    REQUIRE(send(fd, "", 1, 0) == 1 && waitpid(pid, &status, 0) == pid && status == 0, "the server: %x", status);
    close(fd);
    side_close(&s);
    ok("two processes");
}

/* A killed peer ends what is in flight; closing works; a new peer can be met in the same domain. */
static void test_peer_killed(uint64_t nbytes, const char *name) {
    enum { COUNT = 16 };
    static side s, peer;
    static watched ops[COUNT];
    int fd;
    pid_t pid = start_server(&fd);
    side_open(&s);
    side_listen(&s);
    exchange(fd, &s, &peer);
    ping(&s, &peer, 0);
    kill(pid, SIGSTOP); /* so that something is surely in flight */
    for (size_t i = 0; i < COUNT; i++) {
        pplx_work_request request = request_of(&s, &peer, &ops[i], PPLX_WRITE, 0, nbytes, 0);
        size_t posted;
        int32_t native;
        REQUIRE(fabric->post(s.endpoint, &request, 1, &posted, &native) == PPLX_OK, "post");
    }
    run_for(&s, NULL, 0.05);
    double start = now();
    kill_server(pid);
    int native = 0;
    for (size_t i = 0; i < COUNT; i++) {
        wait_for(&s, NULL, &ops[i]);
        REQUIRE(ops[i].status == PPLX_CONNECTION || ops[i].status == PPLX_PEER_LOST, "%d", ops[i].status);
        native = ops[i].provider_error;
    }
    printf("# peer killed: %d writes of %llu B failed after %.1f ms, native %d\n", COUNT, (unsigned long long)nbytes,
           1e3 * (now() - start), native);
    watched late;
    size_t posted;
    int32_t late_native = 0;
    pplx_status status = PPLX_AGAIN;
    pplx_work_request request = request_of(&s, &peer, &late, PPLX_WRITE, 0, nbytes, 0);
    start = now();
    while (status == PPLX_AGAIN && now() < start + 0.3) {
        status = fabric->post(s.endpoint, &request, 1, &posted, &late_native);
        side_poll(&s);
    }
    printf("# a post to the dead: status %d, native %d\n", status, late_native);
    close_endpoint(&s, NULL);
    close(fd);

    pid = start_server(&fd);
    side_listen(&s);
    exchange(fd, &s, &peer);
    ping(&s, &peer, 40);
    /* Killed while nothing is under way: the next write must not succeed. */
    kill_server(pid);
    run_for(&s, NULL, 0.05);
    start = now();
    status = PPLX_AGAIN;
    request = request_of(&s, &peer, &late, PPLX_WRITE, 0, nbytes, 0);
    while (status == PPLX_AGAIN && now() < start + 0.3) {
        status = fabric->post(s.endpoint, &request, 1, &posted, &late_native);
        side_poll(&s);
    }
    if (status == PPLX_OK) {
        wait_for(&s, NULL, &late);
        REQUIRE(late.status != PPLX_OK, "a write to the dead succeeded");
    }
    printf("# an idle peer killed: post %d, completion %d\n", status, status == PPLX_OK ? late.status : -1);
    close_endpoint(&s, NULL);
    close(fd);
    side_close(&s);
    ok(name);
}

#endif
