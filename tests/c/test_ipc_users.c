/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The ipc provider and the other users of this host: they are told apart by the kernel, whatever they know
 * and say. The other user is a child of this program, so that takes root. */
#include <errno.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "ipc_internal.h"
#include "ipc_sides.h"

enum { SLOTS = 64, STAGING = 65536, NOBODY = 65534 };

static void become_nobody(void) {
    CHECK(setresgid(NOBODY, NOBODY, NOBODY) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0);
}

static void wait_child(pid_t pid, side *victim) {
    uint64_t start = check_now_ns();
    int status;
    while (waitpid(pid, &status, WNOHANG) == 0) {
        side_poll(victim);
        check_patience(start, PATIENCE);
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static ipc_address address_of(const side *s, int smaller) {
    ipc_address address;
    memcpy(&address, s->address, sizeof address);
    memset(address.token, smaller ? 0 : 0xff, sizeof address.token);
    return address;
}

/* It knows all that a peer knows, and says the right HELLO with a right inbox. */
static void test_visitor_of_another_user(void) {
    for (int other = 0; other < 2; other++) {
        static side victim;
        pplx_error error;
        side_open(&victim);
        side_listen(&victim);
        const ipc_address peer = address_of(&victim, 1);
        ipc_address own;
        memcpy(&own, victim.address, sizeof own);
        CHECK_EQ(ipc->endpoint_connect(victim.endpoint, &peer, sizeof peer, &error), PPLX_OK);
        pid_t pid = fork();
        if (pid == 0) {
            if (other) become_nobody();
            int fd = pplx_ipc_connect(own.listener), passed;
            int inbox = pplx_ipc_memfd("visitor", ipc_inbox_nbytes(SLOTS, STAGING));
            ipc_hello hello = {.kind = IPC_HELLO, .version = IPC_VERSION, .slots = SLOTS, .staging = STAGING}, answer;
            memcpy(hello.to, own.token, sizeof hello.to);
            memcpy(hello.from, peer.token, sizeof hello.from);
            CHECK(fd >= 0 && inbox >= 0);
            ssize_t n = pplx_ipc_send(fd, &hello, sizeof hello, inbox);
            CHECK(n == sizeof hello || errno == EPIPE); /* it may be shown the door before */
            uint64_t start = check_now_ns();
            while ((n = pplx_ipc_receive(fd, &answer, sizeof answer, &passed)) < 0 && errno == EAGAIN) {
                usleep(1000);
                check_patience(start, PATIENCE);
            }
            CHECK(other ? n <= 0 : n == sizeof answer && answer.kind == IPC_WELCOME); /* no word, no descriptor */
            _exit(0);
        }
        CHECK(pid > 0);
        wait_child(pid, &victim);
        side_close(&victim);
    }
}

/* It listens under the name that our peer is said to have. */
static void test_listener_of_another_user(void) {
    for (int other = 0; other < 2; other++) {
        static side victim;
        pplx_error error;
        int ready[2];
        char byte;
        side_open(&victim);
        side_listen(&victim);
        ipc_address peer = address_of(&victim, 0); /* the larger token: we connect */
        CHECK(pplx_ipc_random(peer.listener, sizeof peer.listener) && pipe(ready) == 0);
        pid_t pid = fork();
        if (pid == 0) {
            if (other) become_nobody();
            int listener = pplx_ipc_listen(peer.listener), fd, passed = -1;
            ipc_hello hello;
            CHECK(listener >= 0 && write(ready[1], "r", 1) == 1);
            uint64_t start = check_now_ns();
            while ((fd = accept(listener, NULL, NULL)) < 0) {
                usleep(1000);
                check_patience(start, PATIENCE);
            }
            ssize_t n;
            while ((n = pplx_ipc_receive(fd, &hello, sizeof hello, &passed)) < 0 && errno == EAGAIN) {
                usleep(1000);
                check_patience(start, PATIENCE);
            }
            CHECK(other ? n == 0 && passed < 0 : n == sizeof hello && passed >= 0); /* no descriptor of ours */
            _exit(0);
        }
        CHECK(pid > 0 && read(ready[0], &byte, 1) == 1);
        close(ready[0]);
        close(ready[1]);
        CHECK_EQ(ipc->endpoint_connect(victim.endpoint, &peer, sizeof peer, &error), PPLX_OK);
        wait_child(pid, &victim);
        if (other) {
            watched w;
            size_t posted;
            int32_t native;
            pplx_work_request request = request_of(&victim, PLAIN, NULL, PLAIN, &w, PPLX_WRITE, 0, 8, 0);
            CHECK_EQ(ipc->post(victim.endpoint, &request, 1, &posted, &native), PPLX_PEER_LOST);
        }
        side_close(&victim);
    }
}

int main(void) {
    if (geteuid() != 0) {
        printf("needs root, to be another user as well\n");
        return 77;
    }
    RUN(test_visitor_of_another_user);
    RUN(test_listener_of_another_user);
    return check_done();
}
