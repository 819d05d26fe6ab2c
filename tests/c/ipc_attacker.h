/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A peer that breaks every rule of the ipc provider. It is played by the test's program: it has the victim's address,
 * as a peer has, and speaks the wire by hand. */
#ifndef IPC_ATTACKER_H
#define IPC_ATTACKER_H

#include <dirent.h>

#include "ipc_internal.h"
#include "ipc_sides.h"

enum { SLOTS = 64, STAGING = 65536 };

typedef struct attacker {
    ipc_address address, victim;
    int socket;
    int inbox_fd;
    ipc_inbox inbox;  /* its own: the victim's outbox */
    int victim_fd;    /* the victim's inbox, as it was passed */
    ipc_inbox outbox; /* the victim's inbox */
} attacker;

static uint32_t attacker_flags; /* of its HELLO */

/* The attacker has the smallest token, so it is the one that connects. */
__attribute__((unused)) static void attacker_named(attacker *a, side *victim) {
    memset(a, 0, sizeof *a);
    side_listen(victim);
    memcpy(&a->victim, victim->address, sizeof a->victim);
    a->address = a->victim;
    memset(a->address.token, 0, sizeof a->address.token);
    pplx_error error;
    CHECK_EQ(ipc->endpoint_connect(victim->endpoint, &a->address, sizeof a->address, &error), PPLX_OK);
    a->socket = pplx_ipc_connect(a->victim.listener);
    CHECK(a->socket >= 0);
    a->inbox_fd = pplx_ipc_memfd("attacker", ipc_inbox_nbytes(SLOTS, STAGING));
    CHECK(a->inbox_fd >= 0);
    void *memory = mmap(NULL, ipc_inbox_nbytes(SLOTS, STAGING), PROT_READ | PROT_WRITE, MAP_SHARED, a->inbox_fd, 0);
    CHECK(memory != MAP_FAILED);
    a->inbox = ipc_inbox_at(memory, SLOTS, STAGING);
    a->victim_fd = -1;
}

__attribute__((unused)) static ipc_hello hello_of(const attacker *a) {
    ipc_hello hello = {
        .kind = IPC_HELLO, .version = IPC_VERSION, .slots = SLOTS, .staging = STAGING, .flags = attacker_flags};
    memcpy(hello.to, a->victim.token, sizeof hello.to);
    memcpy(hello.from, a->address.token, sizeof hello.from);
    return hello;
}

__attribute__((unused)) static void attacker_connects(attacker *a, side *victim) {
    attacker_named(a, victim);
    ipc_hello hello = hello_of(a), welcome;
    CHECK(pplx_ipc_send(a->socket, &hello, sizeof hello, a->inbox_fd) == sizeof hello);
    uint64_t start = check_now_ns();
    while (pplx_ipc_receive(a->socket, &welcome, sizeof welcome, &a->victim_fd) != sizeof welcome) {
        side_poll(victim);
        check_patience(start, PATIENCE);
    }
    CHECK(welcome.kind == IPC_WELCOME && a->victim_fd >= 0);
    void *memory = pplx_ipc_map_foreign(a->victim_fd, 0, ipc_inbox_nbytes(welcome.slots, welcome.staging), true);
    CHECK(memory);
    a->outbox = ipc_inbox_at(memory, welcome.slots, welcome.staging);
}

__attribute__((unused)) static void attacker_leaves(attacker *a) {
    if (a->socket >= 0) close(a->socket);
    if (a->inbox_fd >= 0) close(a->inbox_fd);
    if (a->victim_fd >= 0) close(a->victim_fd);
    if (a->inbox.head) munmap(a->inbox.head, a->inbox.nbytes);
    if (a->outbox.head) munmap(a->outbox.head, a->outbox.nbytes);
}

/* The victim's answer to an IPC_MAP, and the descriptor that comes with it. */
__attribute__((unused)) static int ask(attacker *a, side *victim, uint64_t key, ipc_note *note) {
    const ipc_note question = {.kind = IPC_MAP, .key = key};
    uint64_t start = check_now_ns();
    int fd;
    CHECK(pplx_ipc_send(a->socket, &question, sizeof question, -1) == sizeof question);
    for (;;) {
        if (pplx_ipc_receive(a->socket, note, sizeof *note, &fd) == sizeof *note && note->kind == IPC_MAPPED) return fd;
        side_poll(victim);
        check_patience(start, PATIENCE);
    }
}

/* That this process has open. */
__attribute__((unused)) static int descriptors(void) {
    int n = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory);
    while (readdir(directory)) n++;
    closedir(directory);
    return n;
}

#endif
