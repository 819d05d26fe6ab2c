/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The rings of the ipc provider by themselves. The game is played by two threads here, at one
 * address, so that ThreadSanitizer sees both ends; stress_ipc_wake.c has two processes. */
#include <pthread.h>
#include <sys/mman.h>

#include "ipc_wake_game.h"

static ipc_inbox open_inbox(uint32_t slots) {
    void *memory = mmap(NULL, ipc_inbox_nbytes(slots, IPC_MIN_STAGING), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    return ipc_inbox_at(memory, slots, IPC_MIN_STAGING);
}

static void close_inbox(ipc_inbox *inbox) { munmap(inbox->head, inbox->nbytes); }

static void test_layout(void) {
    for (uint32_t slots = IPC_MIN_SLOTS; slots <= IPC_MAX_SLOTS; slots *= 2) {
        ipc_inbox inbox = ipc_inbox_at(NULL, slots, IPC_MIN_STAGING);
        CHECK((uintptr_t)inbox.immediates >= sizeof(ipc_head));
        CHECK((uintptr_t)inbox.commands >= (uintptr_t)(inbox.immediates + slots));
        CHECK((uintptr_t)inbox.commands % IPC_LINE == 0);
        CHECK((uintptr_t)inbox.staging >= (uintptr_t)(inbox.commands + IPC_COMMANDS));
        CHECK((uintptr_t)inbox.staging % IPC_PAGE == 0);
        CHECK_EQ(inbox.nbytes, (uintptr_t)inbox.staging + IPC_MIN_STAGING);
    }
    CHECK(ipc_inbox_sizes_valid(2, IPC_MIN_STAGING) && ipc_inbox_sizes_valid(IPC_MAX_SLOTS, IPC_MAX_STAGING));
    CHECK(!ipc_inbox_sizes_valid(0, IPC_MIN_STAGING) && !ipc_inbox_sizes_valid(3, IPC_MIN_STAGING));
    CHECK(!ipc_inbox_sizes_valid(2, IPC_MIN_STAGING - IPC_PAGE) && !ipc_inbox_sizes_valid(2, IPC_MIN_STAGING + 1));
}

/* Full, empty, laps, and positions beyond 2^32. */
static void test_immediates(void) {
    static const uint64_t starts[] = {0, UINT32_MAX - 5, UINT64_C(1) << 40};
    for (size_t s = 0; s < 3; s++) {
        ipc_inbox inbox = open_inbox(4);
        uint64_t head = starts[s], tail = starts[s];
        uint32_t imm;
        ipc_free_immediates(&inbox, head);
        for (int lap = 0; lap < 10; lap++) {
            CHECK(!ipc_peek_immediate(&inbox, head, &imm));
            for (uint32_t i = 4; i > 0; i--) {
                CHECK_EQ(ipc_immediates_free(&inbox, tail), i);
                ipc_push_immediate(&inbox, tail++, ~i);
            }
            CHECK_EQ(ipc_immediates_free(&inbox, tail), 0);
            for (uint32_t i = 4; i > 0; i--) {
                CHECK(ipc_peek_immediate(&inbox, head, &imm));
                CHECK_EQ(imm, ~i);
                head++;
            }
            ipc_free_immediates(&inbox, head);
        }
        close_inbox(&inbox);
    }
}

/* What is put behind a slot is seen when that one is pushed, and not before. */
static void test_immediates_published_together(void) {
    ipc_inbox inbox = open_inbox(4);
    uint64_t head = 2; /* across the end */
    uint32_t imm;
    ipc_free_immediates(&inbox, head);
    for (uint32_t i = 1; i < 4; i++) ipc_put_immediate(&inbox, head + i, i);
    CHECK(!ipc_peek_immediate(&inbox, head, &imm));
    ipc_push_immediate(&inbox, head, 0);
    for (uint32_t i = 0; i < 4; i++) {
        CHECK(ipc_peek_immediate(&inbox, head++, &imm));
        CHECK_EQ(imm, i);
    }
    CHECK(!ipc_peek_immediate(&inbox, head, &imm));
    close_inbox(&inbox);
}

static void test_commands(void) {
    ipc_inbox inbox = open_inbox(4);
    uint64_t head = 0, tail = 0, acked = 0;
    for (int lap = 0; lap < 3; lap++) {
        for (uint64_t i = 0; i < IPC_COMMANDS; i++) {
            const ipc_command command = {.kind = IPC_COPY_IN, .key = i, .offset = tail, .imm = 7};
            ipc_push_command(&inbox, tail++, &command);
        }
        for (uint64_t i = 0; i < IPC_COMMANDS; i++) {
            ipc_command command;
            CHECK(ipc_peek_command(&inbox, head, &command));
            CHECK(command.kind == IPC_COPY_IN && command.key == i && command.offset == head && command.imm == 7);
            ipc_acknowledge(&inbox, head, head % 3);
            head++;
            CHECK_EQ(ipc_acknowledged(&inbox, acked, tail), 1);
            CHECK_EQ(ipc_result(&inbox, acked), acked % 3);
            acked++;
        }
        ipc_command command;
        CHECK(!ipc_peek_command(&inbox, head, &command));
    }
    close_inbox(&inbox);
}

/* Heads that can't be true: behind what they said, or ahead of what was produced. */
static void test_lying_heads(void) {
    ipc_inbox inbox = open_inbox(4);
    static const uint64_t heads[] = {10, 11, 14, 15, 5, 0, UINT64_MAX};
    static const uint64_t room[] = {0, 1, 4, UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        atomic_store(&inbox.head->immediates, heads[i]);
        CHECK_EQ(ipc_immediates_free(&inbox, 14), room[i]);
        atomic_store(&inbox.head->commands, heads[i]);
        CHECK_EQ(ipc_acknowledged(&inbox, 10, 14), i < 3 ? heads[i] - 10 : UINT64_MAX);
    }
    close_inbox(&inbox);
}

static void test_wake_once(void) {
    ipc_inbox inbox = open_inbox(4);
    CHECK(!ipc_take_wake(&inbox, IPC_WAKE_ARRIVAL));
    ipc_set_wake(&inbox, IPC_WAKE_ARRIVAL);
    CHECK(!ipc_take_wake(&inbox, IPC_WAKE_ROOM));
    CHECK(ipc_take_wake(&inbox, IPC_WAKE_ARRIVAL));
    CHECK(!ipc_take_wake(&inbox, IPC_WAKE_ARRIVAL));
    ipc_set_wake(&inbox, IPC_WAKE_ARRIVAL | IPC_WAKE_ROOM);
    CHECK(ipc_take_wake(&inbox, IPC_WAKE_ROOM));
    CHECK(!ipc_take_wake(&inbox, IPC_WAKE_ARRIVAL));
    close_inbox(&inbox);
}

static void *play(void *argument) {
    game_play(argument);
    return NULL;
}

static void test_two_threads(void) {
    static atomic_bool over;
    player players[2];
    pthread_t threads[2];
    const size_t nbytes = 2 * ipc_inbox_nbytes(GAME_SLOTS, GAME_STAGING);
    void *memory = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    game_set_up(players, memory, &over, 1.0);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, play, &players[i]) == 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    CHECK(players[0].received > 1000 && players[0].sleeps + players[1].sleeps > 0);
    munmap(memory, nbytes);
}

int main(void) {
    RUN(test_layout);
    RUN(test_immediates);
    RUN(test_immediates_published_together);
    RUN(test_commands);
    RUN(test_lying_heads);
    RUN(test_wake_once);
    RUN(test_two_threads);
    return check_done();
}
