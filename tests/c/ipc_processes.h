/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A second process for tests of the ipc provider: this program run again as "--serve FD ROLE", which
 * main() hands to a function of the test's. */
#ifndef PPLX_TESTS_IPC_PROCESSES_H
#define PPLX_TESTS_IPC_PROCESSES_H

#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "ipc_sides.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOW = 10 };
#else
enum { SLOW = 1 };
#endif

typedef struct greeting {
    unsigned char address[PPLX_ADDRESS_BYTES];
    size_t address_nbytes;
    pplx_remote_key key[KINDS];
} greeting;

__attribute__((unused)) static void exchange(int fd, side *s, side *other) {
    greeting mine = {.address_nbytes = s->address_nbytes}, theirs;
    memcpy(mine.address, s->address, sizeof mine.address);
    memcpy(mine.key, s->key, sizeof mine.key);
    CHECK(send(fd, &mine, sizeof mine, MSG_NOSIGNAL) == sizeof mine);
    CHECK(recv(fd, &theirs, sizeof theirs, MSG_WAITALL) == sizeof theirs);
    memset(other, 0, sizeof *other);
    memcpy(other->address, theirs.address, sizeof other->address);
    other->address_nbytes = theirs.address_nbytes;
    memcpy(other->key, theirs.key, sizeof other->key);
    side_connect(s, other);
}

typedef struct child {
    pid_t pid;
    int fd; /* a word on it ends the child in an orderly way */
} child;

__attribute__((unused)) static child start_child(const char *role) {
    int fds[2];
    char text[16];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        fcntl(fds[1], F_SETFD, 0);
        snprintf(text, sizeof text, "%d", fds[1]);
        execl("/proc/self/exe", "test_ipc", "--serve", text, role, (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    return (child){pid, fds[0]};
}

__attribute__((unused)) static void kill_child(child *c) {
    kill(c->pid, SIGKILL);
    CHECK(waitpid(c->pid, NULL, 0) == c->pid);
    close(c->fd);
}

/* It may need us to end what it has begun. */
__attribute__((unused)) static void end_child(child *c, side *s) {
    int status;
    pid_t pid;
    uint64_t start = check_now_ns();
    CHECK(send(c->fd, "", 1, MSG_NOSIGNAL) == 1);
    while ((pid = waitpid(c->pid, &status, WNOHANG)) == 0) {
        side_poll(s);
        check_patience(start, PATIENCE);
    }
    CHECK(pid == c->pid);
    CHECK_EQ(status, 0);
    close(c->fd);
}

__attribute__((unused)) static void meet_child(child *c, const char *role, side *s, side *peer) {
    *c = start_child(role);
    side_listen(s);
    exchange(c->fd, s, peer);
}

__attribute__((unused)) static bool told_to_end(int fd) {
    char word;
    return recv(fd, &word, 1, MSG_DONTWAIT | MSG_PEEK) >= 0;
}

/* Writes into the peer's memory, large and small, until something says that it can't. */
__attribute__((unused)) static void stream(int fd, side *s, const side *peer, enum kind into) {
    enum { COUNT = 16 };
    static watched ops[COUNT];
    bool broken = false;
    memset(s->arena[PLAIN], 0xff, ARENA); /* whatever lands where it should not shows */
    for (uint32_t i = 0; !told_to_end(fd) && !broken; i++) {
        watched *w = &ops[i % COUNT];
        if (i >= COUNT) {
            uint64_t start = check_now_ns();
            while (!w->completions) {
                side_poll(s);
                check_patience(start, PATIENCE);
            }
            broken = w->status != PPLX_OK;
        }
        const uint64_t nbytes = i % 3 ? 4096 : ARENA;
        memset(s->arena[PLAIN] + (i % 7) * 4096, (int)i, 4096);
        pplx_work_request request = request_of(s, PLAIN, peer, into, w, PPLX_WRITE_IMM, 0, nbytes, i);
        if (!broken) broken = post(s, NULL, &request) != PPLX_OK;
    }
    char word;
    if (broken) CHECK(recv(fd, &word, 1, 0) >= 0); /* until the test has looked */
}

#endif
