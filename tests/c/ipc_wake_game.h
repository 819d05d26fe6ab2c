/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A game that two players play over two inboxes and two bells, with the rings and the wake protocol
 * of ipc_ring.h. Each sends numbers to the other, and may be WINDOW ahead of what it has received; the
 * rings are smaller than that, so both find them full and empty all the time, and sleep. One of the
 * two can always go on, so a bell that does not ring for a second was lost.
 *
 * Each number has a plain copy in the staging area, written before it and read after it. */
#ifndef PPLX_TESTS_IPC_WAKE_GAME_H
#define PPLX_TESTS_IPC_WAKE_GAME_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>

#include "check.h"
#include "ipc_ring.h"

enum { GAME_SLOTS = 4, GAME_STAGING = 65536, GAME_WINDOW = 7, GAME_SILENCE_MS = 1000 };

typedef struct player {
    ipc_inbox own, to;
    int bell, other_bell; /* ends of a socket pair: read, send */
    atomic_bool *over;    /* shared: one of the two has played long enough */
    uint64_t end_ns;      /* 0: the other one decides */
    uint64_t random, sent, received, sleeps, rings;
} player;

static void game_ring(player *p, unsigned what) {
    if (!ipc_take_wake(&p->to, what)) return;
    p->rings++;
    CHECK(send(p->other_bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1 || errno == EAGAIN || errno == EPIPE);
}

static uint64_t *copy_of(const ipc_inbox *inbox, uint64_t position) {
    return (uint64_t *)(void *)(inbox->staging + position % GAME_SLOTS * IPC_LINE);
}

static bool game_receive(player *p) {
    const uint64_t before = p->received, most = 1 + check_random(&p->random) % GAME_SLOTS;
    uint32_t number;
    while (p->received - before < most && ipc_peek_immediate(&p->own, p->received, &number)) {
        CHECK_EQ(number, (uint32_t)p->received);
        CHECK_EQ(*copy_of(&p->own, p->received), p->received);
        p->received++;
    }
    if (p->received == before) return false;
    ipc_free_immediates(&p->own, p->received);
    game_ring(p, IPC_WAKE_ROOM);
    return true;
}

static bool game_wants(const player *p) { return p->sent < p->received + GAME_WINDOW; }

static bool game_room(const player *p) {
    uint64_t room = ipc_immediates_free(&p->to, p->sent);
    CHECK(room <= GAME_SLOTS);
    return room > 0;
}

static bool game_send(player *p) {
    const uint64_t before = p->sent, most = 1 + check_random(&p->random) % GAME_SLOTS;
    while (p->sent - before < most && game_wants(p) && game_room(p)) {
        const uint64_t first = p->sent, together = 1 + check_random(&p->random) % 4;
        *copy_of(&p->to, p->sent++) = first;
        for (; p->sent - first < together && game_wants(p) && game_room(p); p->sent++) {
            *copy_of(&p->to, p->sent) = p->sent;
            ipc_put_immediate(&p->to, p->sent, (uint32_t)p->sent);
        }
        ipc_push_immediate(&p->to, first, (uint32_t)first);
        if (check_random(&p->random) % 2) game_ring(p, IPC_WAKE_ARRIVAL);
    }
    if (p->sent == before) return false;
    game_ring(p, IPC_WAKE_ARRIVAL);
    return true;
}

static void game_sleep(player *p) {
    uint32_t number;
    char bytes[64];
    const bool wants = game_wants(p);
    ipc_set_wake(&p->own, IPC_WAKE_ARRIVAL | (wants ? IPC_WAKE_ROOM : 0));
    if (!ipc_peek_immediate(&p->own, p->received, &number) && !(wants && game_room(p))) {
        struct pollfd bell = {.fd = p->bell, .events = POLLIN};
        p->sleeps++;
        if (poll(&bell, 1, GAME_SILENCE_MS) == 0 && !atomic_load(p->over)) {
            printf("# sent %llu, received %llu, %s\n", (unsigned long long)p->sent, (unsigned long long)p->received,
                   ipc_peek_immediate(&p->own, p->received, &number) ? "something has come" : "nothing has come");
            check_failed(__FILE__, __LINE__, "a bell was lost");
        }
        while (recv(p->bell, bytes, sizeof bytes, MSG_DONTWAIT) > 0) {
        }
    }
    ipc_set_wake(&p->own, 0);
}

__attribute__((unused)) static void game_play(player *p) {
    while (!atomic_load(p->over)) {
        bool any = game_receive(p);
        any |= game_send(p);
        if (!any) game_sleep(p);
        if (p->end_ns && check_now_ns() > p->end_ns) atomic_store(p->over, true);
    }
    send(p->other_bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Two players, on memory for two inboxes that all who play share. */
__attribute__((unused)) static void game_set_up(player players[2], void *memory, atomic_bool *over, double seconds) {
    const size_t nbytes = ipc_inbox_nbytes(GAME_SLOTS, GAME_STAGING);
    int pairs[2][2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pairs[0]) == 0 &&
          socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pairs[1]) == 0);
    for (int i = 0; i < 2; i++)
        players[i] = (player){
            .own = ipc_inbox_at((char *)memory + (size_t)i * nbytes, GAME_SLOTS, GAME_STAGING),
            .to = ipc_inbox_at((char *)memory + (size_t)(1 - i) * nbytes, GAME_SLOTS, GAME_STAGING),
            .bell = pairs[i][0],
            .other_bell = pairs[1 - i][1],
            .over = over,
            .end_ns = i == 0 ? check_now_ns() + (uint64_t)(seconds * 1e9) : 0,
            .random = (uint64_t)i,
        };
}

#endif
