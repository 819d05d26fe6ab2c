/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Destroying queue pairs, which may take long.
 *
 * A device gives a queue pair back when nothing of it is on its way any more. rdma_rxe waits for packets that wait for
 * the address of a neighbour, and that is 3 s when the cable is out: the proxy would do nothing for anybody meanwhile.
 * So an endpoint that had work under way is put into RESET, in which the device neither sends nor answers and has let
 * go of all memory, and a thread destroys its queue pairs. It comes with the first of them and goes with the last.
 *
 * A domain that is closed waits for the thread for a while. Then it leaves itself to it: the thread closes the domain
 * when it is done, for which nothing of the caller's is needed.
 *
 * An event that names a queue pair is read by who polls, while the thread destroys it: that is good, since destroying
 * waits until all events that were read are acknowledged. */
#if PPLX_HAVE_LIBIBVERBS

#include <signal.h>
#include <stdlib.h>
#include <time.h>

#include "verbs_internal.h"

enum { PATIENCE_MS = 500 };

void verbs_retire_init(verbs_retire *retire) {
    pthread_condattr_t attr;
    pthread_mutex_init(&retire->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&retire->done, &attr);
    pthread_condattr_destroy(&attr);
}

/* What the device would not destroy it may still have events of: that memory stays. */
void verbs_queues_destroy(verbs_endpoint *endpoint) {
    bool gone = true;
    for (int i = 0; i < 2; i++) {
        struct ibv_qp *qp = endpoint->queues[i].qp;
        if (qp && endpoint->domain->lib->destroy_qp(qp)) gone = false;
    }
    if (gone) free(endpoint);
}

/* Returns whether the domain was left to us. */
static bool destroy_all(verbs_domain *domain) {
    verbs_retire *retire = &domain->retire;
    pthread_mutex_lock(&retire->lock);
    while (retire->endpoints) {
        verbs_endpoint *endpoint = retire->endpoints;
        retire->endpoints = endpoint->next;
        pthread_mutex_unlock(&retire->lock);
        verbs_queues_destroy(endpoint);
        pthread_mutex_lock(&retire->lock);
    }
    retire->runs = false;
    const bool left = retire->left;
    pthread_cond_signal(&retire->done);
    pthread_mutex_unlock(&retire->lock);
    return left;
}

static void *retire_main(void *domain) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* signals are for Python's threads */
    pthread_setname_np(pthread_self(), "pplx-verbs");
    if (destroy_all(domain)) verbs_domain_free(domain);
    return NULL;
}

/* False: there is no thread to be had. */
static bool start(verbs_domain *domain) {
    verbs_retire *retire = &domain->retire;
    if (retire->has_thread) pthread_join(retire->thread, NULL); /* one before it, which has ended */
    retire->has_thread = pthread_create(&retire->thread, NULL, retire_main, domain) == 0;
    return retire->has_thread;
}

void verbs_queues_retire(verbs_endpoint *endpoint) {
    verbs_domain *domain = endpoint->domain;
    verbs_retire *retire = &domain->retire;
    pthread_mutex_lock(&retire->lock);
    endpoint->next = retire->endpoints;
    retire->endpoints = endpoint;
    const bool runs = retire->runs;
    retire->runs = true;
    pthread_mutex_unlock(&retire->lock);
    if (!runs && !start(domain)) destroy_all(domain);
}

bool verbs_retire_end(verbs_domain *domain) {
    verbs_retire *retire = &domain->retire;
    const uint64_t until = verbs_now_ns() + PATIENCE_MS * UINT64_C(1000000);
    const struct timespec time = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    pthread_mutex_lock(&retire->lock);
    while (retire->runs && pthread_cond_timedwait(&retire->done, &retire->lock, &time) == 0) {
    }
    retire->left = retire->runs;
    const bool left = retire->left;
    if (left) pthread_detach(retire->thread);
    pthread_mutex_unlock(&retire->lock);
    if (!left && retire->has_thread) pthread_join(retire->thread, NULL);
    return !left;
}

#else
typedef int pplx_verbs_retire_left_out;
#endif
