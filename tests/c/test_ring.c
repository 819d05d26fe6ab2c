/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The two queues between the owner thread and the proxy: ring.h (in) and done_list.h (out). The
 * stress cases block on an eventfd as the engine does: a lost wake-up shows as a time-out. */
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>

#include "check.h"
#include "done_list.h"
#include "ring.h"

enum { PRODUCERS = 3, PER_PRODUCER = 100000, PATIENCE_MS = 20000 };

/* ------------------------------------------------------------------ ring */

static void ring_refuses_bad_capacities(void) {
    pplx_ring ring;
    CHECK(!pplx_ring_init(&ring, 0));
    CHECK(!pplx_ring_init(&ring, 1));
    CHECK(!pplx_ring_init(&ring, 3));
    CHECK(!pplx_ring_init(&ring, 100));
    CHECK(pplx_ring_init(&ring, 2));
    pplx_ring_free(&ring);
}

static void ring_is_fifo_and_bounded(void) {
    pplx_ring ring;
    int values[8];
    CHECK(pplx_ring_init(&ring, 4));
    for (int lap = 0; lap < 100; lap++) {
        CHECK(pplx_ring_empty(&ring));
        CHECK(pplx_ring_pop(&ring) == NULL);
        for (int i = 0; i < 4; i++) CHECK(pplx_ring_push(&ring, &values[i]));
        CHECK(!pplx_ring_push(&ring, &values[4]));
        CHECK(!pplx_ring_empty(&ring));
        CHECK(pplx_ring_pop(&ring) == &values[0]);
        CHECK(pplx_ring_push(&ring, &values[4]));
        CHECK(!pplx_ring_push(&ring, &values[5]));
        for (int i = 1; i < 5; i++) CHECK(pplx_ring_pop(&ring) == &values[i]);
        if (lap % 3 == 0) { /* shifts the laps against the cells */
            CHECK(pplx_ring_push(&ring, &values[7]));
            CHECK(pplx_ring_pop(&ring) == &values[7]);
        }
    }
    pplx_ring_free(&ring);
}

typedef struct item {
    pplx_node node;
    uint32_t producer;
    uint32_t number;
} item;

typedef struct ring_stress {
    pplx_ring ring;
    atomic_uint asleep;
    atomic_uint failed_pushes;
    int fd;
    item *items;
} ring_stress;

typedef struct producer {
    void *shared;
    uint32_t index;
} producer;

static void ring_bell(int fd) {
    uint64_t one = 1;
    CHECK(write(fd, &one, sizeof one) == sizeof one);
}

static void wait_bell(int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    CHECK_EQ(poll(&entry, 1, PATIENCE_MS), 1);
    uint64_t count;
    CHECK(read(fd, &count, sizeof count) == sizeof count);
}

static void *ring_producer(void *argument) {
    const producer *self = argument;
    ring_stress *stress = self->shared;
    for (uint32_t i = 0; i < PER_PRODUCER; i++) {
        item *value = &stress->items[self->index * PER_PRODUCER + i];
        value->producer = self->index;
        value->number = i; /* plain: the ring must publish it */
        while (!pplx_ring_push(&stress->ring, value)) {
            atomic_fetch_add_explicit(&stress->failed_pushes, 1, memory_order_relaxed);
            sched_yield();
        }
        /* seq_cst: pairs with the store in ring_many_producers(); protocol in ring.h */
        if (atomic_load_explicit(&stress->asleep, memory_order_seq_cst) &&
            atomic_exchange_explicit(&stress->asleep, 0, memory_order_acq_rel))
            ring_bell(stress->fd);
        if (i % 1024 == 0) sched_yield();
    }
    return NULL;
}

static void ring_many_producers(void) {
    static ring_stress stress;
    pthread_t threads[PRODUCERS];
    producer producers[PRODUCERS];
    uint32_t next[PRODUCERS] = {0};
    CHECK(pplx_ring_init(&stress.ring, 64));
    atomic_init(&stress.asleep, 0);
    stress.fd = eventfd(0, 0);
    stress.items = calloc((size_t)PRODUCERS * PER_PRODUCER, sizeof *stress.items);
    CHECK(stress.fd >= 0 && stress.items);
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        producers[i] = (producer){&stress, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, ring_producer, &producers[i]), 0);
    }
    unsigned sleeps = 0;
    for (uint32_t taken = 0; taken < PRODUCERS * PER_PRODUCER;) {
        item *value = pplx_ring_pop(&stress.ring);
        if (value) {
            CHECK(value->producer < PRODUCERS);
            CHECK_EQ(value->number, next[value->producer]);
            next[value->producer]++;
            taken++;
            continue;
        }
        /* seq_cst: pairs with the load in ring_producer() */
        atomic_store_explicit(&stress.asleep, 1, memory_order_seq_cst);
        if (pplx_ring_empty(&stress.ring)) {
            wait_bell(stress.fd);
            sleeps++;
        } else if (!atomic_exchange_explicit(&stress.asleep, 0, memory_order_acq_rel)) {
            wait_bell(stress.fd); /* somebody took the flag off and rings */
        }
    }
    for (uint32_t i = 0; i < PRODUCERS; i++) pthread_join(threads[i], NULL);
    CHECK(pplx_ring_empty(&stress.ring));
    printf("   %u sleeps, %u pushes found it full\n", sleeps, atomic_load(&stress.failed_pushes));
    close(stress.fd);
    free(stress.items);
    pplx_ring_free(&stress.ring);
}

/* ------------------------------------------------------------------ done list */

static void done_list_order_and_arming(void) {
    pplx_done_list list;
    pplx_node nodes[4] = {{0}};
    pplx_done_init(&list);
    CHECK(pplx_done_take(&list) == NULL);
    for (int round = 0; round < 3; round++) {
        CHECK(!pplx_done_push(&list, &nodes[0])); /* not armed */
        CHECK(!pplx_done_arm(&list));             /* something is there */
        CHECK(!pplx_done_push(&list, &nodes[1]));
        CHECK(pplx_done_take(&list) == &nodes[0]);
        CHECK(nodes[0].next == &nodes[1] && nodes[1].next == NULL);
        CHECK(pplx_done_arm(&list));
        CHECK(pplx_done_arm(&list)); /* twice does no harm */
        CHECK(pplx_done_push(&list, &nodes[2]));  /* rings ... */
        CHECK(!pplx_done_push(&list, &nodes[3])); /* ... once */
        CHECK(!pplx_done_arm(&list));
        CHECK(pplx_done_take(&list) == &nodes[2]);
        CHECK(nodes[2].next == &nodes[3] && nodes[3].next == NULL);
        CHECK(pplx_done_arm(&list));
        CHECK(pplx_done_take(&list) == NULL); /* takes the arm off */
    }
}

typedef struct done_stress {
    pplx_done_list list;
    atomic_uint rings;
    int fd;
    item *items;
} done_stress;

static void *done_producer(void *argument) {
    const producer *self = argument;
    done_stress *stress = self->shared;
    for (uint32_t i = 0; i < PER_PRODUCER; i++) {
        item *value = &stress->items[self->index * PER_PRODUCER + i];
        value->producer = self->index;
        value->number = i;
        if (pplx_done_push(&stress->list, &value->node)) {
            atomic_fetch_add_explicit(&stress->rings, 1, memory_order_relaxed);
            ring_bell(stress->fd);
        }
        if (i % 64 == 0) sched_yield();
    }
    return NULL;
}

static void done_list_stress(void) {
    static done_stress stress;
    pthread_t threads[PRODUCERS];
    producer producers[PRODUCERS];
    uint32_t next[PRODUCERS] = {0};
    pplx_done_init(&stress.list);
    stress.fd = eventfd(0, 0);
    stress.items = calloc((size_t)PRODUCERS * PER_PRODUCER, sizeof *stress.items);
    CHECK(stress.fd >= 0 && stress.items);
    for (uint32_t i = 0; i < PRODUCERS; i++) {
        producers[i] = (producer){&stress, i};
        CHECK_EQ(pthread_create(&threads[i], NULL, done_producer, &producers[i]), 0);
    }
    unsigned waits = 0;
    for (uint32_t taken = 0; taken < PRODUCERS * PER_PRODUCER;) {
        pplx_node *node = pplx_done_take(&stress.list);
        if (!node && pplx_done_arm(&stress.list)) {
            wait_bell(stress.fd);
            waits++;
            continue;
        }
        for (pplx_node *after; node; node = after, taken++) {
            after = node->next;
            item *value = (item *)node;
            CHECK(value->producer < PRODUCERS);
            CHECK_EQ(value->number, next[value->producer]);
            next[value->producer]++;
            node->next = (pplx_node *)value; /* ours now: nobody else may look at it */
        }
    }
    for (uint32_t i = 0; i < PRODUCERS; i++) pthread_join(threads[i], NULL);
    CHECK_EQ(atomic_load(&stress.rings), waits); /* one ring per arm: none lost, none too many */
    printf("   %u waits\n", waits);
    close(stress.fd);
    free(stress.items);
}

int main(void) {
    RUN(ring_refuses_bad_capacities);
    RUN(ring_is_fifo_and_bounded);
    RUN(ring_many_producers);
    RUN(done_list_order_and_arming);
    RUN(done_list_stress);
    return check_done();
}
