/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Two loopback domains, a thread each: what the engine does with two engines in one process. Meant
 * for ThreadSanitizer as much as for its own checks. Lost wake-ups show as time-outs. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "loopback_sides.h"

/* ------------------------------------------------------------------ random traffic
 *
 * Each side has a list of operations, made from the seed before the threads start. Operation i has a
 * range of its own in each buffer that it touches, so that every byte is checked:
 *
 *   WRITE_IMM  checked by the receiver when immediate i arrives (its bytes are there by then)
 *   SEND       carries i; checked by the receiver
 *   READ       checked by the reader when it completes
 *   WRITE      checked at the end
 *
 * An operation that fails by the plan is posted again until it succeeds, so in the end all are
 * there, each once. */

enum { MAX_OPS = 1200, RECVS = 8, RECV_BYTES = 40000, SOURCE_BYTES = 1 << 20 };

typedef struct planned {
    pplx_op op; /* first: a completion's op is the planned operation */
    uint32_t opcode;
    uint32_t nbytes;
    size_t remote; /* offset in the peer's buffer, or for READ in ours */
    size_t source; /* offset in [0, SOURCE_BYTES), the constant part of each buffer */
    bool ended, posted;
    uint8_t arrived; /* written by the peer's thread, read after both have ended */
} planned;

typedef struct receive {
    pplx_op op;
    size_t offset;
} receive;

typedef struct traffic {
    side side;
    struct traffic *peer;
    planned *operations;
    size_t noperations, nimms, nsends;
    receive receives[RECVS];
    uint64_t random;
    bool waits; /* on the wait fd; otherwise polls */
    size_t failures, sleeps;
} traffic;

static pthread_barrier_t barrier;
static const uint32_t size_choices[] = {0, 1, 8, 64, 1000, 4096, 16384, 16385, 39000};

/* Contents of every buffer's constant part: depends on the side and the position. */
static uint8_t source_byte(const traffic *of, size_t position) {
    return (uint8_t)(position * 167 + (position >> 9) + (of->side.key.key & 0xff));
}

static bool holds(const traffic *of, const uint8_t *bytes, size_t source, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++)
        if (bytes[i] != source_byte(of, source + i)) return false;
    return true;
}

/* Buffer: constant part, RECV buffers, what the peer writes, what our READs bring. */
static void plan_traffic(traffic *a, traffic *b, size_t noperations, uint64_t seed, const char *options) {
    size_t at[2] = {SOURCE_BYTES + RECVS * RECV_BYTES, SOURCE_BYTES + RECVS * RECV_BYTES};
    traffic *both[2] = {a, b};
    pplx_error error;
    for (int s = 0; s < 2; s++) {
        traffic *self = both[s];
        *self = (traffic){.peer = both[1 - s], .noperations = noperations, .random = seed * 2 + (uint64_t)s};
        self->operations = calloc(noperations, sizeof *self->operations);
        CHECK(self->operations);
        for (size_t i = 0; i < noperations; i++) {
            planned *planned = &self->operations[i];
            uint64_t draw = check_random(&self->random);
            planned->opcode = (uint32_t)(draw % 4); /* WRITE, WRITE_IMM, READ, SEND */
            planned->nbytes = size_choices[(draw >> 8) % (sizeof size_choices / sizeof *size_choices)];
            if (planned->opcode == PPLX_SEND && planned->nbytes < 8) planned->nbytes = 8;
            planned->source = (draw >> 16) % (SOURCE_BYTES - 40000);
            size_t *where = &at[planned->opcode == PPLX_READ ? s : 1 - s];
            planned->remote = *where;
            if (planned->opcode != PPLX_SEND) *where += planned->nbytes;
            self->nimms += planned->opcode == PPLX_WRITE_IMM;
            self->nsends += planned->opcode == PPLX_SEND;
        }
    }
    side_open(&a->side, "loop0", options, at[0]);
    side_open(&b->side, "loop1", options, at[1]);
    side_connect(&a->side, &b->side, &error);
    for (int s = 0; s < 2; s++)
        for (size_t i = 0; i < SOURCE_BYTES; i++) both[s]->side.buffer[i] = source_byte(both[s], i);
}

/* A message can't carry its number in the constant part, so the receiver finds it by content. */
static void check_message(traffic *self, const receive *receive, uint64_t nbytes) {
    traffic *peer = self->peer;
    const uint8_t *bytes = self->side.buffer + receive->offset;
    for (size_t i = 0; i < peer->noperations; i++) {
        planned *planned = &peer->operations[i]; /* opcode, nbytes and source are constant by now */
        if (planned->opcode != PPLX_SEND || planned->nbytes != nbytes || planned->arrived) continue;
        if (!holds(peer, bytes, planned->source, nbytes)) continue;
        planned->arrived = 1;
        return;
    }
    CHECK(!"a message that nobody sent");
}

static void completed(traffic *self, const pplx_completion *done, size_t *left, size_t *imms, size_t *messages) {
    traffic *peer = self->peer;
    if (done->kind == PPLX_COMPLETION_IMM) {
        CHECK(done->imm < peer->noperations);
        planned *planned = &peer->operations[done->imm];
        CHECK_EQ(planned->opcode, PPLX_WRITE_IMM);
        CHECK_EQ(planned->arrived, 0);
        planned->arrived = 1;
        CHECK(holds(peer, self->side.buffer + planned->remote, planned->source, planned->nbytes));
        (*imms)--;
        return;
    }
    if (done->op >= &self->receives[0].op && done->op <= &self->receives[RECVS - 1].op) {
        receive *receive = (struct receive *)done->op;
        CHECK_EQ(done->status, PPLX_OK);
        check_message(self, receive, done->nbytes);
        (*messages)--;
        return;
    }
    planned *planned = (struct planned *)done->op;
    CHECK(planned->posted && !planned->ended);
    planned->posted = false;
    if (done->status != PPLX_OK) {
        CHECK_EQ(done->status, PPLX_TRANSPORT);
        self->failures++;
        return;
    }
    planned->ended = true;
    (*left)--;
    if (planned->opcode == PPLX_READ)
        CHECK(holds(peer, self->side.buffer + planned->remote, planned->source, planned->nbytes));
}

static void *run_traffic(void *argument) {
    traffic *self = argument, *peer = self->peer;
    size_t left = self->noperations, imms = peer->nimms, messages = peer->nsends, next = 0;
    bool free_receives[RECVS];
    memset(free_receives, 1, sizeof free_receives);
    for (size_t i = 0; i < RECVS; i++) self->receives[i].offset = SOURCE_BYTES + i * RECV_BYTES;
    pthread_barrier_wait(&barrier);
    for (uint64_t start = check_now_ns(); left > 0 || imms > 0 || messages > 0;) {
        check_patience(start, 60);
        for (size_t i = 0; i < RECVS; i++) {
            if (!free_receives[i]) continue;
            pplx_work_request post = request(&self->side, NULL, PPLX_RECV, &self->receives[i].op,
                                             self->receives[i].offset, 0, RECV_BYTES);
            if (post_one(&self->side, &post) == PPLX_OK) free_receives[i] = false;
        }
        pplx_work_request batch[8];
        planned *chosen[8];
        size_t count = 0, posted = 0;
        int32_t native;
        for (size_t tried = 0; tried < self->noperations && count < 1 + check_random(&self->random) % 8; tried++) {
            planned *planned = &self->operations[next++ % self->noperations];
            if (planned->ended || planned->posted) continue;
            bool reads = planned->opcode == PPLX_READ;
            chosen[count] = planned;
            batch[count] = request(&self->side, &peer->side, planned->opcode, &planned->op,
                                   reads ? planned->remote : planned->source, reads ? planned->source : planned->remote,
                                   planned->nbytes);
            batch[count++].imm = (uint32_t)(planned - self->operations);
        }
        pplx_status status = provider->post(self->side.endpoint, batch, count, &posted, &native);
        CHECK(status == PPLX_OK || status == PPLX_AGAIN);
        for (size_t i = 0; i < posted; i++) chosen[i]->posted = true;
        next += self->noperations - (count - posted); /* step back over what was not taken */

        pplx_completion done[16];
        size_t n = provider->poll(self->side.domain, done, 1 + check_random(&self->random) % 16);
        for (size_t i = 0; i < n; i++) {
            completed(self, &done[i], &left, &imms, &messages);
            if (done[i].op >= &self->receives[0].op && done[i].op <= &self->receives[RECVS - 1].op)
                free_receives[(receive *)done[i].op - self->receives] = true;
        }
        if (self->waits && n == 0 && posted == 0 && provider->arm(self->side.domain) == PPLX_OK) {
            self->sleeps++;
            CHECK(readable(&self->side, 20000));
        }
    }
    pthread_barrier_wait(&barrier);
    return NULL;
}

static void exchange(const char *options, size_t noperations, uint64_t seed, bool waits) {
    static traffic a, b;
    pthread_t threads[2];
    plan_traffic(&a, &b, noperations, seed, options);
    a.waits = b.waits = waits;
    CHECK_EQ(pthread_barrier_init(&barrier, NULL, 2), 0);
    CHECK_EQ(pthread_create(&threads[0], NULL, run_traffic, &a), 0);
    CHECK_EQ(pthread_create(&threads[1], NULL, run_traffic, &b), 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    traffic *both[2] = {&a, &b};
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < noperations; i++) {
            planned *planned = &both[s]->operations[i];
            CHECK(planned->ended);
            if (planned->opcode == PPLX_WRITE_IMM || planned->opcode == PPLX_SEND) CHECK_EQ(planned->arrived, 1);
            if (planned->opcode <= PPLX_WRITE_IMM)
                CHECK(holds(both[s], both[1 - s]->side.buffer + planned->remote, planned->source, planned->nbytes));
        }
        free(both[s]->operations);
    }
    printf("   %s, seed %llu: %zu failed and repeated, %zu sleeps\n", options, (unsigned long long)seed,
           a.failures + b.failures, a.sleeps + b.sleeps);
    pthread_barrier_destroy(&barrier);
    pair_close(&a.side, &b.side);
}

static void both_ways_polling(void) {
    for (uint64_t seed = 1; seed <= 3; seed++) exchange("", MAX_OPS, seed, false);
}

static void both_ways_sleeping(void) {
    for (uint64_t seed = 4; seed <= 6; seed++) exchange("max_inflight=16", MAX_OPS, seed, true);
}

static void both_ways_with_faults(void) {
    for (uint64_t seed = 7; seed <= 10; seed++) {
        char options[128];
        snprintf(options, sizeof options, "seed=%llu reorder=32 again=0.2 fail=0.1", (unsigned long long)seed);
        exchange(options, MAX_OPS / 2, seed, seed % 2 == 0);
        snprintf(options, sizeof options, "seed=%llu reorder=8 delay_us=0:500 fail=0.05 max_inflight=64",
                 (unsigned long long)seed);
        exchange(options, MAX_OPS / 2, seed, seed % 2 == 1);
    }
}

/* ------------------------------------------------------------------ ping-pong
 *
 * One immediate at a time, each side asleep until the other's: every hop needs its wake-up. */

enum { HOPS = 4000 };

static void *ping_pong(void *argument) {
    traffic *self = argument;
    bool ours = self < self->peer; /* whose turn it is */
    int64_t heard = -1;            /* the newest hop that arrived here */
    pplx_op op;
    for (uint32_t hop = 0; hop < HOPS; hop++, ours = !ours) {
        bool ended = !ours;
        if (ours) {
            pplx_work_request write = request(&self->side, &self->peer->side, PPLX_WRITE_IMM, &op, 64, 0, sizeof hop);
            write.imm = hop;
            memcpy(self->side.buffer + 64, &hop, sizeof hop);
            CHECK_EQ(post_one(&self->side, &write), PPLX_OK);
        }
        while (!ended || (!ours && heard < hop)) {
            pplx_completion done;
            if (provider->poll(self->side.domain, &done, 1) > 0) {
                CHECK_EQ(done.status, PPLX_OK);
                if (done.kind == PPLX_COMPLETION_IMM) {
                    CHECK_EQ(done.imm, hop + ours); /* the answer may come before our completion */
                    CHECK(memcmp(self->side.buffer, &done.imm, sizeof done.imm) == 0);
                    heard = done.imm;
                } else {
                    ended = true;
                }
            } else if (provider->arm(self->side.domain) == PPLX_OK) {
                CHECK(readable(&self->side, 20000));
            }
        }
    }
    return NULL;
}

static void sleepers_wake_each_other(void) {
    static traffic sides[2];
    pthread_t threads[2];
    const char *options[] = {"", "delay_us=0:20"};
    for (int i = 0; i < 2; i++) {
        pair_open(&sides[0].side, &sides[1].side, options[i], 4096);
        sides[0].peer = &sides[1], sides[1].peer = &sides[0];
        uint64_t start = check_now_ns();
        for (int s = 0; s < 2; s++) CHECK_EQ(pthread_create(&threads[s], NULL, ping_pong, &sides[s]), 0);
        for (int s = 0; s < 2; s++) pthread_join(threads[s], NULL);
        printf("   '%s': %.1f us per hop, asleep\n", options[i], (double)(check_now_ns() - start) / 1e3 / HOPS);
        pair_close(&sides[0].side, &sides[1].side);
    }
}

/* ------------------------------------------------------------------ fences
 *
 * The peer writes into and reads out of a region, large and small, while its owner closes it. After
 * the close the owner unmaps the memory: a copy that came later would be a crash. */

enum { FENCE_BYTES = 4 << 20 };

typedef struct fence {
    side target, source;
    _Atomic(uint64_t) key, base; /* of the region to hit now; 0: none yet */
    atomic_bool stop;
    size_t succeeded, refused, lost;
} fence;

static void *hit(void *argument) {
    fence *fence = argument;
    pplx_op ops[16];
    uint64_t random = 3, start = check_now_ns();
    size_t inflight = 0;
    bool used[16] = {false};
    while (!atomic_load(&fence->stop) || inflight > 0) {
        check_patience(start, 60);
        uint64_t key = atomic_load(&fence->key), base = atomic_load(&fence->base);
        for (size_t i = 0; i < 16 && !atomic_load(&fence->stop); i++) {
            if (used[i] || key == 0) continue;
            static const size_t sizes[] = {8, 16384, 300000, FENCE_BYTES};
            pplx_work_request post = request(&fence->source, NULL, (uint32_t)(check_random(&random) % 3), &ops[i], 0, 0,
                                             sizes[check_random(&random) % 4]);
            post.remote_key = key;
            post.remote_address = base;
            if (post_one(&fence->source, &post) != PPLX_OK) break;
            used[i] = true;
            inflight++;
        }
        pplx_completion done[16];
        size_t n = provider->poll(fence->source.domain, done, 16);
        for (size_t i = 0; i < n; i++) {
            used[done[i].op - ops] = false;
            inflight--;
            if (done[i].status == PPLX_OK)
                fence->succeeded++;
            else if (done[i].status == PPLX_REMOTE_ACCESS)
                fence->refused++;
            else if (done[i].status == PPLX_PEER_LOST)
                fence->lost++;
            else
                CHECK_EQ(done[i].status, PPLX_OK);
        }
    }
    return NULL;
}

static void closes_are_fences(void) {
    static fence fence;
    pplx_error error;
    pthread_t thread;
    pair_open(&fence.target, &fence.source, "", FENCE_BYTES);
    atomic_init(&fence.stop, false);
    CHECK_EQ(pthread_create(&thread, NULL, hit, &fence), 0);
    uint64_t random = 11;
    pplx_completion done[64];
    for (int round = 0; round < 60; round++) {
        void *memory = mmap(NULL, FENCE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(memory != MAP_FAILED);
        pplx_provider_mr *mr;
        pplx_remote_key key;
        pplx_memory wanted = {.device = -1, .address = (uint64_t)(uintptr_t)memory, .nbytes = FENCE_BYTES};
        CHECK_EQ(provider->mr_open(fence.target.domain, &wanted, PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE,
                                   &mr, &key, &error),
                 PPLX_OK);
        atomic_store(&fence.base, key.base);
        atomic_store(&fence.key, key.key);
        for (uint64_t until = check_now_ns() + check_random(&random) % 5000000; check_now_ns() < until;)
            provider->poll(fence.target.domain, done, 64);
        CHECK_EQ(provider->mr_close(mr), PPLX_OK);
        memset(memory, 0x5a, FENCE_BYTES); /* ours alone now; ThreadSanitizer would see the other */
        CHECK(all(memory, FENCE_BYTES, 0x5a));
        munmap(memory, FENCE_BYTES);
    }
    /* The endpoint's turn, with a region that stays: no write through it after its close. */
    atomic_store(&fence.base, fence.target.key.base);
    atomic_store(&fence.key, fence.target.key.key);
    for (uint64_t until = check_now_ns() + 3000000; check_now_ns() < until;)
        provider->poll(fence.target.domain, done, 64);
    CHECK_EQ(provider->endpoint_close(fence.target.endpoint), PPLX_OK);
    fence.target.endpoint = NULL;
    memset(fence.target.buffer, 0x5a, FENCE_BYTES);
    for (uint64_t until = check_now_ns() + 20000000; check_now_ns() < until;) {
        while (provider->poll(fence.target.domain, done, 64) > 0) continue;
    }
    CHECK(all(fence.target.buffer, FENCE_BYTES, 0x5a));
    atomic_store(&fence.stop, true);
    pthread_join(thread, NULL);
    printf("   %zu done, %zu refused, %zu lost\n", fence.succeeded, fence.refused, fence.lost);
    CHECK(fence.succeeded > 0 && fence.refused > 0 && fence.lost > 0);
    pair_close(&fence.target, &fence.source);
}

/* Both sides open, connect, write, close, over and over. They wait for each other to exchange
 * addresses, and then close with no regard for what the other is doing. */
typedef struct churn {
    pthread_mutex_t lock;
    uint8_t address[2][PPLX_ADDRESS_BYTES]; /* the newest of each; under lock */
    size_t naddress[2];
    int round[2];
    pplx_remote_key key[2];
    atomic_size_t succeeded, lost;
} churn;

static churn churning = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void *churn_side(void *argument) {
    size_t me = (size_t)(uintptr_t)argument;
    side self;
    side_open(&self, "loop5", "", 600000); /* what we send, and what the peer writes */
    uint64_t random = me + 40;
    pthread_mutex_lock(&churning.lock);
    churning.key[me] = self.key;
    pthread_mutex_unlock(&churning.lock);
    for (int round = 0; round < 2000; round++) {
        pplx_error error;
        if (round > 0) {
            self.naddress = PPLX_ADDRESS_BYTES;
            CHECK_EQ(provider->endpoint_open(self.domain, &self.endpoint, self.address, &self.naddress, &error),
                     PPLX_OK);
        }
        pthread_mutex_lock(&churning.lock);
        memcpy(churning.address[me], self.address, self.naddress);
        churning.naddress[me] = self.naddress;
        churning.round[me] = round + 1;
        for (uint64_t start = check_now_ns(); churning.round[1 - me] <= round; check_patience(start, 20)) {
            pthread_mutex_unlock(&churning.lock);
            sched_yield();
            pthread_mutex_lock(&churning.lock);
        }
        uint8_t address[PPLX_ADDRESS_BYTES];
        size_t naddress = churning.naddress[1 - me];
        memcpy(address, churning.address[1 - me], naddress);
        pplx_remote_key key = churning.key[1 - me];
        pthread_mutex_unlock(&churning.lock);
        pplx_status status = provider->endpoint_connect(self.endpoint, address, naddress, &error);
        CHECK(status == PPLX_OK || status == PPLX_PEER_LOST);
        pplx_op ops[64];
        pplx_completion done[64];
        for (uint64_t i = 0, turns = 8 + check_random(&random) % 56; i < turns; i++) {
            pplx_work_request write = request(&self, NULL, i % 8 == 7 ? PPLX_SEND : PPLX_WRITE_IMM, &ops[i], 0, 0,
                                              i % 4 == 3 ? 250000 : 100);
            write.remote_key = key.key;
            write.remote_address = key.base + 300000;
            status = post_one(&self, &write);
            CHECK(status == PPLX_OK || status == PPLX_AGAIN);
            if (status == PPLX_AGAIN) sched_yield(); /* the peer has not named us yet */
            size_t n = provider->poll(self.domain, done, 64);
            for (size_t j = 0; j < n; j++) {
                CHECK(done[j].status == PPLX_OK || done[j].status == PPLX_PEER_LOST);
                atomic_fetch_add(done[j].status == PPLX_OK ? &churning.succeeded : &churning.lost, 1);
            }
        }
        if (round % 7 == 0 && provider->arm(self.domain) == PPLX_OK) readable(&self, 0);
        CHECK_EQ(provider->endpoint_close(self.endpoint), PPLX_OK);
        self.endpoint = NULL;
        while (provider->poll(self.domain, done, 1) > 0) CHECK_EQ(done[0].kind, PPLX_COMPLETION_IMM);
    }
    side_close(&self);
    return NULL;
}

static void endpoints_come_and_go(void) {
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++) CHECK_EQ(pthread_create(&threads[i], NULL, churn_side, (void *)i), 0);
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    printf("   %zu done, %zu lost\n", atomic_load(&churning.succeeded), atomic_load(&churning.lost));
    CHECK(atomic_load(&churning.succeeded) > 0 && atomic_load(&churning.lost) > 0);
}

int main(void) {
    RUN(both_ways_polling);
    RUN(both_ways_sleeping);
    RUN(both_ways_with_faults);
    RUN(sleepers_wake_each_other);
    RUN(closes_are_fences);
    RUN(endpoints_come_and_go);
    return check_done();
}
