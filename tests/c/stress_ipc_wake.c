/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Rings and wake protocol of the ipc provider between two processes, for as long as you like:
 *
 *     stress_ipc_wake [SECONDS]        2 without an argument, as in the test run
 *
 * First the game, then a litmus test: publish and look at `wake` on one side, set `wake` and look at
 * the ring on the other, at the same moment, over and over; never may both find nothing. (With
 * release stores instead of seq_cst ones it fails on x86 within seconds, given two cores.) ThreadSanitizer
 * can't see across processes, and a model knows no store buffer: this is the real thing. */
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "ipc_wake_game.h"

/* ------------------------------------------------------------------ litmus */

typedef struct litmus {
    _Atomic uint64_t last; /* round; both play it */
    char pad0[IPC_LINE];
    _Atomic uint64_t ready[2][8]; /* rounds begun by each player, a line for each */
    _Atomic uint64_t found[2][8]; /* (round << 1) | whether it found something */
} litmus;

/* Until the word of the other player says so much. Spins: what happens at the same moment is of interest. */
static uint64_t await_word(_Atomic uint64_t *word, uint64_t least) {
    const uint64_t start = check_now_ns();
    uint64_t value;
    for (unsigned spins = 1; (value = atomic_load(word)) < least; spins++) {
        if (spins % 4096 != 0) continue;
        sched_yield(); /* the other one may have no core */
        check_patience(start, 20);
    }
    return value;
}

static uint64_t litmus_play(litmus *l, int me, const ipc_inbox *inbox, uint64_t end_ns) {
    uint64_t round = 0;
    while (++round <= atomic_load(&l->last)) {
        uint32_t imm;
        bool found;
        atomic_store(&l->ready[me][0], round);
        await_word(&l->ready[1 - me][0], round);
        if (me == 0) {
            ipc_push_immediate(inbox, round, 1);
            found = ipc_take_wake(inbox, IPC_WAKE_ARRIVAL);
        } else {
            ipc_set_wake(inbox, IPC_WAKE_ARRIVAL);
            found = ipc_peek_immediate(inbox, round, &imm);
        }
        atomic_store(&l->found[me][0], round << 1 | found);
        const uint64_t theirs = await_word(&l->found[1 - me][0], round << 1);
        if (!(theirs & 1) && !found) check_failed(__FILE__, __LINE__, "neither saw the other");
        if (me == 0) continue;
        ipc_set_wake(inbox, 0);
        /* Said before this player is ready for it, so the other one knows in time. */
        if (round % 256 == 0 && check_now_ns() > end_ns) atomic_store(&l->last, round + 1);
    }
    return round - 1;
}

static void check_litmus(char *memory, double seconds) {
    litmus *l = (litmus *)(void *)memory;
    const ipc_inbox inbox = ipc_inbox_at(memory + IPC_PAGE, GAME_SLOTS, GAME_STAGING);
    const uint64_t end_ns = check_now_ns() + (uint64_t)(seconds * 1e9);
    memset(memory, 0, IPC_PAGE + sizeof(ipc_head) + GAME_SLOTS * sizeof(uint64_t));
    atomic_store(&l->last, UINT64_MAX);
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        litmus_play(l, 1, &inbox, end_ns);
        _exit(0);
    }
    uint64_t rounds = litmus_play(l, 0, &inbox, end_ns);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    printf("# %llu rounds of the litmus test\n", (unsigned long long)rounds);
}

int main(int argc, char **argv) {
    const double seconds = argc > 1 ? atof(argv[1]) : 2.0;
    const size_t nbytes = 2 * ipc_inbox_nbytes(GAME_SLOTS, GAME_STAGING);
    check_case = "stress_ipc_wake";
    CHECK(seconds > 0);
    char *memory = mmap(NULL, nbytes + IPC_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    player players[2];
    game_set_up(players, memory, (atomic_bool *)(void *)(memory + nbytes), seconds / 2);
    fflush(stdout);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        game_play(&players[1]);
        _exit(0);
    }
    game_play(&players[0]);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    CHECK(players[0].received > 1000 && players[0].sleeps > 10);
    printf("# %llu numbers received, %llu sleeps, %llu rings in %g s\n", (unsigned long long)players[0].received,
           (unsigned long long)players[0].sleeps, (unsigned long long)players[0].rings, seconds / 2);
    check_litmus(memory, seconds / 2);
    return 0;
}
