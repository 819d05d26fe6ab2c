/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Rings and wake protocol of the ipc provider between two processes, for as long as you like:
 *
 *     stress_ipc_wake [SECONDS]        2 without an argument, as in the test run
 *
 * ThreadSanitizer can't see across processes, and a model knows no cache: this is the real thing. */
#include <sys/mman.h>
#include <sys/wait.h>

#include "ipc_wake_game.h"

int main(int argc, char **argv) {
    const double seconds = argc > 1 ? atof(argv[1]) : 2.0;
    const size_t nbytes = 2 * ipc_inbox_nbytes(GAME_SLOTS, GAME_STAGING);
    check_case = "stress_ipc_wake";
    CHECK(seconds > 0);
    char *memory = mmap(NULL, nbytes + IPC_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    player players[2];
    game_set_up(players, memory, (atomic_bool *)(void *)(memory + nbytes), seconds);
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
    printf("# %llu numbers received, %llu sleeps, %llu rings in %.0f s\n", (unsigned long long)players[0].received,
           (unsigned long long)players[0].sleeps, (unsigned long long)players[0].rings, seconds);
    return 0;
}
