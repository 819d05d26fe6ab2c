/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The ipc provider between processes: this program run again as "--serve FD ROLE", and what becomes
 * of us when that one sleeps, stops, is killed, or says goodbye. */
#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>

#include "ipc_processes.h"
#include "ipc_wire.h"

enum { SLEEPING_COUNT = 1000000 / SLOW };

/* ------------------------------------------------------------------ roles */

/* Answers each immediate with one more than it, and sleeps between. */
static void echo(int fd, side *s, const side *peer) {
    static watched answers[256];
    size_t answered = 0;
    for (;;) {
        side_poll(s);
        if (answered < s->nimms) {
            size_t posted;
            int32_t native;
            watched *w = &answers[answered % 256];
            pplx_work_request request = request_of(s, PLAIN, peer, PLAIN, w, PPLX_WRITE_IMM, 0, 0,
                                                   s->imms[answered % MAX_IMMS] + 1);
            pplx_status status = ipc->post(s->endpoint, &request, 1, &posted, &native);
            answered += posted;
            CHECK(status == PPLX_OK || status == PPLX_AGAIN);
            if (posted) continue;
        }
        struct pollfd fds[] = {{.fd = fd, .events = POLLIN}, {.fd = ipc->wait_fd(s->domain), .events = POLLIN}};
        if (ipc->arm(s->domain) == PPLX_OK) {
            poll(fds, 2, 1000);
            if (fds[0].revents) return;
        }
    }
}

/* Counts immediates, each of which comes once, and sleeps between. Confirms each thousand. */
static void count(int fd, side *s, const side *peer) {
    static bool came[SLEEPING_COUNT];
    size_t seen = 0;
    while (!told_to_end(fd)) {
        side_poll(s);
        for (; seen < s->nimms; seen++) {
            const uint32_t imm = s->imms[seen % MAX_IMMS];
            CHECK(imm < SLEEPING_COUNT && !came[imm]);
            came[imm] = true;
            if ((seen + 1) % 1000 != 0) continue;
            static watched w;
            pplx_work_request request = request_of(s, PLAIN, peer, PLAIN, &w, PPLX_WRITE_IMM, 0, 0, (uint32_t)seen + 1);
            CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
        }
        doze(s, 20);
    }
}

static void serve(int fd, const char *role) {
    static side s, peer;
    side_open(&s);
    side_listen(&s);
    exchange(fd, &s, &peer);
    if (strcmp(role, "echo") == 0)
        echo(fd, &s, &peer);
    else if (strcmp(role, "count") == 0)
        count(fd, &s, &peer);
    else
        stream(fd, &s, &peer, strcmp(role, "stream") == 0 ? MAPPED : PLAIN);
    side_close(&s);
}

/* ------------------------------------------------------------------ tests */

static void ping(side *s, const side *peer, uint32_t imm) {
    static watched w;
    s->nimms = 0;
    pplx_work_request request = request_of(s, PLAIN, peer, PLAIN, &w, PPLX_WRITE_IMM, 0, 8, imm);
    CHECK_EQ(perform(s, NULL, &request), PPLX_OK);
    wait_imms(s, NULL, 1);
    CHECK_EQ(s->imms[0], imm + 1);
}

static void test_there_and_back(void) {
    static side s, peer;
    child c;
    side_open(&s);
    meet_child(&c, "echo", &s, &peer);
    /* An engine with nothing else to do sleeps until the connection stands. */
    size_t posted = 0;
    int32_t native;
    watched w;
    uint64_t start = check_now_ns();
    pplx_work_request request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_WRITE, 0, 8, 0);
    while (ipc->post(s.endpoint, &request, 1, &posted, &native) == PPLX_AGAIN) {
        doze(&s, 1000);
        side_poll(&s);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(wait_for(&s, NULL, &w), PPLX_OK);
    for (uint32_t i = 0; i < 200; i++) ping(&s, &peer, i * 10);
    static const uint64_t sizes[] = {1, 8, 4096, 65537, 1 << 20, ARENA};
    unsigned char *copy = malloc(ARENA);
    CHECK(copy);
    for (int into = 0; into < KINDS; into++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            fill(s.arena[PLAIN], sizes[i], (unsigned)i);
            memcpy(copy, s.arena[PLAIN], sizes[i]);
            for (uint32_t opcode = PPLX_WRITE; opcode <= PPLX_READ; opcode += 2) {
                request = request_of(&s, PLAIN, &peer, (enum kind)into, &w, opcode, 0, sizes[i], 0);
                CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
                if (opcode == PPLX_WRITE) memset(s.arena[PLAIN], 0, sizes[i]);
            }
            CHECK(memcmp(copy, s.arena[PLAIN], sizes[i]) == 0);
        }
        request = request_of(&s, PLAIN, &peer, (enum kind)into, &w, PPLX_WRITE, 64, ARENA, 0);
        request.local_address -= 64;
        CHECK_EQ(perform(&s, NULL, &request), PPLX_REMOTE_ACCESS);
    }
    free(copy);
    ping(&s, &peer, 7);
    end_child(&c, &s);
    /* It has said goodbye: what is posted from now on is refused, and nobody is lost. */
    start = check_now_ns();
    request = request_of(&s, PLAIN, &peer, PLAIN, &w, PPLX_WRITE_IMM, 0, 0, 0);
    pplx_status status;
    while ((status = (pplx_status)perform(&s, NULL, &request)) == PPLX_OK) {
        memset(&w, 0, sizeof w);
        check_patience(start, PATIENCE);
    }
    CHECK_EQ(status, PPLX_CONNECTION);
    side_close(&s);
}

/* Both sides sleep whenever they may; a lost wake-up shows as a second of silence. */
static void test_sleeping(void) {
    enum { COUNT = SLEEPING_COUNT };
    static side s, peer;
    static watched ops[1024];
    child c;
    uint32_t next = 0, begun = 0;
    size_t sleeps = 0;
    side_open(&s);
    meet_child(&c, "count", &s, &peer);
    uint64_t start = check_now_ns(), random = 1;
    while (s.nimms < COUNT / 1000) {
        size_t posted = 0;
        int32_t native;
        watched *w = &ops[next % 1024];
        bool may = next < COUNT && (next < 1024 || w->completions || next - begun < 1024);
        if (may) {
            pplx_work_request request = request_of(&s, PLAIN, &peer, PLAIN, w, PPLX_WRITE_IMM, 0, 0, next);
            CHECK(ipc->post(s.endpoint, &request, 1, &posted, &native) <= PPLX_AGAIN);
            next += (uint32_t)posted;
        }
        side_poll(&s);
        while (begun < next && ops[begun % 1024].completions) begun++;
        if (!posted || check_random(&random) % 512 == 0) sleeps += doze(&s, posted ? 0 : 1000);
        check_patience(start, 2 * PATIENCE);
    }
    printf("# %d immediates in %.2f s, %zu sleeps\n", COUNT, 1e-9 * (double)(check_now_ns() - start), sleeps);
    end_child(&c, &s);
    side_close(&s);
}

/* Every op in flight ends once, soon after the peer was killed. Returns how long it takes then to close the
 * endpoint. */
static uint64_t check_killed(enum kind into, bool asleep) {
    enum { COUNT = 32 };
    static side s, peer;
    static watched ops[COUNT], receive;
    child c;
    side_open(&s);
    meet_child(&c, "echo", &s, &peer);
    ping(&s, &peer, 0);
    kill(c.pid, SIGSTOP); /* so that something is surely in flight */
    pplx_work_request request = request_of(&s, PLAIN, NULL, PLAIN, &receive, PPLX_RECV, 0, 64, 0);
    CHECK_EQ(post(&s, NULL, &request), PPLX_OK);
    for (size_t i = 0; i < COUNT; i++) {
        request = request_of(&s, PLAIN, &peer, into, &ops[i], PPLX_WRITE, 0, ARENA, 0);
        CHECK_EQ(post(&s, NULL, &request), PPLX_OK);
    }
    run_for(&s, NULL, 0.005);
    uint64_t start = check_now_ns();
    kill(c.pid, SIGKILL);
    for (size_t i = 0; i < COUNT; i++) {
        while (!ops[i].completions) {
            if (asleep) doze(&s, 1000);
            side_poll(&s);
            check_patience(start, PATIENCE);
        }
    }
    while (!receive.completions) side_poll(&s);
    double took = 1e-9 * (double)(check_now_ns() - start);
    CHECK(took < 0.7 * SLOW); /* and not when a doze has ended */
    for (size_t i = 0; i < COUNT; i++)
        CHECK(ops[i].completions == 1 && (ops[i].status == PPLX_PEER_LOST || (into == MAPPED && !ops[i].status)));
    CHECK(receive.completions == 1 && receive.status == PPLX_PEER_LOST);
    CHECK_EQ(ops[COUNT - 1].status, PPLX_PEER_LOST);
    watched late;
    request = request_of(&s, PLAIN, &peer, into, &late, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(post(&s, NULL, &request), PPLX_PEER_LOST);
    run_for(&s, NULL, 0.005);
    for (size_t i = 0; i < COUNT; i++) CHECK_EQ(ops[i].completions, 1);
    start = check_now_ns();
    close_endpoint(&s, NULL);
    const uint64_t closing = check_now_ns() - start;
    kill_child(&c);
    side_close(&s);
    return closing;
}

static void test_killed(void) {
    uint64_t quickest = UINT64_MAX; /* a busy machine holds some of them up, not all */
    for (int i = 0; i < 8; i++) {
        const uint64_t closing = check_killed(i % 2 ? MAPPED : PLAIN, i % 4 > 1);
        if (closing < quickest) quickest = closing;
    }
    CHECK(quickest < 50000000); /* the dead need not confirm, for which the living have 100 ms */
}

/* A writer is killed at any moment: what it had sent is delivered, then its end is seen. */
static void test_killed_writer(void) {
    uint64_t random = 5;
    for (int round = 0; round < 24 / SLOW; round++) {
        static side s, peer;
        watched receive;
        child c;
        side_open(&s);
        meet_child(&c, round % 2 ? "stream" : "stream-plain", &s, &peer);
        pplx_work_request request = request_of(&s, PLAIN, NULL, PLAIN, &receive, PPLX_RECV, 0, 64, 0);
        CHECK_EQ(post(&s, NULL, &request), PPLX_OK);
        wait_imms(&s, NULL, 1);
        run_for(&s, NULL, 1e-6 * (double)(check_random(&random) % 3000));
        kill(c.pid, SIGKILL);
        CHECK_EQ(wait_for(&s, NULL, &receive), PPLX_PEER_LOST);
        kill_child(&c);
        side_close(&s);
    }
}

/* Until the peer has mapped our memory, and writes there. */
static void wait_written(side *s) {
    const uint64_t start = check_now_ns();
    for (size_t at = 0; s->arena[MAPPED][at] == 0; at = (at + 1) % (8 * 4096)) {
        side_poll(s);
        check_patience(start, PATIENCE);
    }
}

/* A stopped peer doesn't let go of our memory. It loses it: when it goes on, nothing changes here.
 * Another peer, which is alive, has no part in that. */
static void test_stopped(void) {
    uint64_t random = 7;
    static unsigned char before[ARENA];
    for (int round = 0; round < 20 / SLOW; round++) {
        static side s, peer, healthy;
        child c, good;
        side_open(&s);
        meet_child(&good, "stream-ends", &s, &healthy); /* into PLAIN memory, first */
        pplx_provider_endpoint *alive = s.endpoint;
        meet_child(&c, "stream", &s, &peer);
        s.nimms = 0;
        wait_imms(&s, NULL, 20);
        wait_written(&s);
        run_for(&s, NULL, 1e-6 * (double)(check_random(&random) % 3000));
        kill(c.pid, SIGSTOP);
        CHECK(waitpid(c.pid, NULL, WUNTRACED) == c.pid); /* it has stopped, in a copy or not */
        uint64_t start = check_now_ns();
        close_endpoint(&s, NULL);
        double took = 1e-9 * (double)(check_now_ns() - start);
        CHECK(took > 0.05 && took < 2 * SLOW);
        memcpy(before, s.arena[MAPPED], ARENA);
        s.endpoint = alive;
        kill(c.pid, SIGCONT);
        run_for(&s, NULL, 0.03);
        CHECK(memcmp(before, s.arena[MAPPED], ARENA) == 0);
        end_child(&c, &s);
        end_child(&good, &s);
        run_for(&s, NULL, 0.002);
        side_close(&s);
    }
}

/* Two that hold the same memory stand still, and one is closed. The other is waited for as long as the domain was
 * told, and loses our memory then, too. */
static void test_both_stopped(void) {
    static const pplx_option hasty[] = {{"holders_ms", "300"}};
    static unsigned char before[ARENA];
    static side s, peer, other;
    child c, second;
    watched w;
    side_open_with(&s, hasty, 1);
    meet_child(&second, "stream", &s, &other);
    wait_written(&s);
    kill(second.pid, SIGSTOP);
    CHECK(waitpid(second.pid, NULL, WUNTRACED) == second.pid);
    memset(s.arena[MAPPED], 0, ARENA);
    pplx_provider_endpoint *held = s.endpoint;
    meet_child(&c, "stream", &s, &peer);
    wait_written(&s);
    kill(c.pid, SIGSTOP);
    CHECK(waitpid(c.pid, NULL, WUNTRACED) == c.pid);
    const uint64_t start = check_now_ns();
    close_endpoint(&s, NULL);
    const double took = 1e-9 * (double)(check_now_ns() - start);
    CHECK(took >= 0.3 && took < 3); /* by default it is 4 s */
    memcpy(before, s.arena[MAPPED], ARENA);
    s.endpoint = held;
    pplx_work_request request = request_of(&s, PLAIN, &other, PLAIN, &w, PPLX_WRITE, 0, 8, 0);
    CHECK_EQ(post(&s, NULL, &request), PPLX_CONNECTION);
    kill(c.pid, SIGCONT);
    kill(second.pid, SIGCONT);
    run_for(&s, NULL, 0.03);
    CHECK(memcmp(before, s.arena[MAPPED], ARENA) == 0);
    kill_child(&c);
    kill_child(&second);
    close_endpoint(&s, NULL);
    side_close(&s);
}

/* A region that was closed is fenced, whoever had it mapped and stands still now: its pages have moved. */
static void test_closed_region(void) {
    uint64_t random = 11;
    static const unsigned char zeros[ARENA];
    for (int round = 0; round < 20 / SLOW; round++) {
        static side s, peer;
        child c;
        side_open(&s);
        meet_child(&c, "stream", &s, &peer);
        wait_written(&s);
        run_for(&s, NULL, 1e-6 * (double)(check_random(&random) % 3000));
        kill(c.pid, SIGSTOP);
        CHECK(waitpid(c.pid, NULL, WUNTRACED) == c.pid); /* it has stopped, in a copy or not */
        CHECK_EQ(ipc->mr_close(s.mr[MAPPED]), PPLX_OK);
        s.mr[MAPPED] = NULL;
        memset(s.arena[MAPPED], 0, ARENA); /* the memory is ours again */
        kill(c.pid, SIGCONT);
        run_for(&s, NULL, 0.03);
        CHECK(memcmp(zeros, s.arena[MAPPED], ARENA) == 0);
        end_child(&c, &s);
        side_close(&s);
    }
}

/* Writes to each page of the memory, over and over; the shadow says what it wrote last. */
typedef struct scribbler {
    unsigned char *memory;
    _Atomic bool stop;
    uint64_t shadow[ARENA / 4096];
} scribbler;

static void *scribble(void *argument) {
    scribbler *own = argument;
    uint64_t n = 0;
    do { /* once at least, however late this thread runs */
        n++;
        for (size_t page = 0; page < ARENA / 4096; page++) {
            own->shadow[page] = n;
            __atomic_store_n((uint64_t *)(void *)(own->memory + page * 4096 + 4088), n, __ATOMIC_RELAXED);
        }
    } while (!atomic_load(&own->stop));
    return NULL;
}

/* What our own threads write while the pages move is all there afterwards. */
static void test_own_writes(void) {
    for (int round = 0; round < 20 / SLOW; round++) {
        static side s, peer;
        static scribbler own;
        pthread_t thread;
        child c;
        side_open(&s);
        meet_child(&c, "stream", &s, &peer);
        wait_written(&s);
        kill(c.pid, SIGSTOP);
        CHECK(waitpid(c.pid, NULL, WUNTRACED) == c.pid);
        own = (scribbler){.memory = s.arena[MAPPED]};
        CHECK_EQ(pthread_create(&thread, NULL, scribble, &own), 0);
        run_for(&s, NULL, 0.001);
        close_endpoint(&s, NULL);
        atomic_store(&own.stop, true);
        pthread_join(thread, NULL);
        for (size_t page = 0; page < ARENA / 4096; page++)
            CHECK_EQ(*(uint64_t *)(void *)(s.arena[MAPPED] + page * 4096 + 4088), own.shadow[page]);
        kill_child(&c);
        side_close(&s);
    }
}

/* Two peers have the same memory mapped. One stops and is closed; the other goes on with the pages
 * that have moved, and so does who maps them afterwards. */
static void test_moved_pages(void) {
    static side s, stopped, friend;
    side_open(&s);
    side_open(&friend);
    side_listen(&s);
    side_listen(&friend);
    side_connect(&s, &friend);
    side_connect(&friend, &s);
    watched w;
    fill(friend.arena[PLAIN], ARENA, 3);
    pplx_work_request request = request_of(&friend, PLAIN, &s, MAPPED, &w, PPLX_WRITE, 0, ARENA / 2, 0);
    CHECK_EQ(perform(&friend, &s, &request), PPLX_OK);
    pplx_provider_endpoint *to_friend = s.endpoint;

    child c;
    meet_child(&c, "stream", &s, &stopped);
    s.nimms = 0;
    wait_imms(&s, &friend, 3);
    kill(c.pid, SIGSTOP);
    CHECK(waitpid(c.pid, NULL, WUNTRACED) == c.pid);
    memset(s.arena[MAPPED], 0x5a, ARENA);
    close_endpoint(&s, &friend);
    for (int at = 0; at < ARENA; at++) CHECK(s.arena[MAPPED][at] == 0x5a);
    kill(c.pid, SIGCONT);

    s.endpoint = to_friend;
    request = request_of(&friend, PLAIN, &s, MAPPED, &w, PPLX_WRITE_IMM, 0, ARENA / 2, 9);
    CHECK_EQ(perform(&friend, &s, &request), PPLX_OK);
    CHECK(memcmp(friend.arena[PLAIN], s.arena[MAPPED], ARENA / 2) == 0);
    CHECK(s.arena[MAPPED][ARENA / 2] == 0x5a);

    /* The engine's descriptor is of the new pages: it registers them again. */
    pplx_remote_key key;
    pplx_provider_mr *mr = register_memory(&s, s.arena[MAPPED], ARENA, s.memfd, 0, PPLX_ACCESS_REMOTE_WRITE, &key);
    memset(s.arena[MAPPED], 0, ARENA);
    request = request_of(&friend, PLAIN, &s, MAPPED, &w, PPLX_WRITE, 0, ARENA, 9);
    request.remote_key = key.key;
    CHECK_EQ(perform(&friend, &s, &request), PPLX_OK);
    CHECK(memcmp(friend.arena[PLAIN], s.arena[MAPPED], ARENA) == 0);
    CHECK_EQ(ipc->mr_close(mr), PPLX_OK);
    end_child(&c, &s);
    close_endpoint(&s, &friend);
    close_endpoint(&friend, NULL);
    side_close(&friend);
    side_close(&s);
}

static int entries(const char *path) {
    int n = 0;
    DIR *directory = opendir(path);
    CHECK(directory);
    while (readdir(directory)) n++;
    closedir(directory);
    return n;
}

/* Is the socket at which this peer listens bound on this host? Its name is random: no other program's is it. */
static bool listens(const ipc_address *peer) {
    char name[2 * IPC_TOKEN_BYTES + 1], line[512];
    bool found = false;
    for (int i = 0; i < IPC_TOKEN_BYTES; i++) snprintf(name + 2 * i, 3, "%02x", peer->listener[i]);
    FILE *file = fopen("/proc/net/unix", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file)) found |= strstr(line, name) != NULL;
    fclose(file);
    return found;
}

static void test_nothing_left(void) {
    enum { ROUNDS = 200 / SLOW };
    static side s, peer;
    static ipc_address met[ROUNDS];
    child c;
    int descriptors = 0;
    side_open(&s);
    for (int round = 0; round < ROUNDS; round++) {
        meet_child(&c, round % 2 ? "echo" : "stream", &s, &peer);
        memcpy(&met[round], peer.address, sizeof met[round]);
        CHECK(listens(&met[round]));
        watched w;
        pplx_work_request request = request_of(&s, PLAIN, &peer, (enum kind)(round % 3 == 0), &w, PPLX_WRITE, 0, 4096,
                                               0);
        CHECK_EQ(perform(&s, NULL, &request), PPLX_OK);
        kill_child(&c);
        close_endpoint(&s, NULL);
        if (round == 0) descriptors = entries("/proc/self/fd");
    }
    CHECK_EQ(entries("/proc/self/fd"), descriptors);
    side_close(&s);
    for (int round = 0; round < ROUNDS; round++) CHECK(!listens(&met[round]));
    DIR *shared = opendir("/dev/shm");
    CHECK(shared);
    for (struct dirent *entry; (entry = readdir(shared));) CHECK(!strstr(entry->d_name, "pplx"));
    closedir(shared);
}

int main(int argc, char **argv) {
    if (argc == 4 && strcmp(argv[1], "--serve") == 0) {
        check_case = argv[3];
        serve(atoi(argv[2]), argv[3]);
        return 0;
    }
    RUN(test_there_and_back);
    RUN(test_sleeping);
    RUN(test_killed);
    RUN(test_killed_writer);
    RUN(test_stopped);
    RUN(test_both_stopped);
    RUN(test_closed_region);
    RUN(test_own_writes);
    RUN(test_moved_pages);
    RUN(test_nothing_left);
    return check_done();
}
