/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "aside.h"

#include <signal.h>
#include <stddef.h>
#include <time.h>

enum { PATIENCE_NS = 500000000 };

void pplx_aside_init(pplx_aside *aside, const char *name, void (*free_owner)(void *owner), void *owner) {
    pthread_condattr_t attr;
    *aside = (pplx_aside){.name = name, .free_owner = free_owner, .owner = owner};
    pthread_mutex_init(&aside->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&aside->done, &attr);
    pthread_condattr_destroy(&attr);
}

static _Thread_local bool is_here;

bool pplx_aside_is_here(void) { return is_here; }

/* Returns whether the owner was left to us. */
static bool make_all(pplx_aside *aside) {
    pthread_mutex_lock(&aside->lock);
    for (pplx_aside_call *call; (call = aside->first) != NULL;) {
        aside->first = call->next;
        pthread_mutex_unlock(&aside->lock);
        call->make(call);
        pthread_mutex_lock(&aside->lock);
    }
    aside->runs = false;
    const bool left = aside->left;
    pthread_cond_signal(&aside->done);
    pthread_mutex_unlock(&aside->lock);
    return left;
}

static void *aside_main(void *argument) {
    pplx_aside *aside = argument;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL); /* signals are for Python's threads */
    pthread_setname_np(pthread_self(), aside->name);
    is_here = true;
    if (make_all(aside)) aside->free_owner(aside->owner);
    return NULL;
}

void pplx_aside_join(pplx_aside *aside) {
    if (aside->has_thread) pthread_join(aside->thread, NULL);
    aside->has_thread = false;
}

/* False: there is no thread to be had. */
static bool start(pplx_aside *aside) {
    pplx_aside_join(aside); /* one before it, which has ended */
    aside->has_thread = pthread_create(&aside->thread, NULL, aside_main, aside) == 0;
    return aside->has_thread;
}

void pplx_aside_make(pplx_aside *aside, pplx_aside_call *call) {
    call->next = NULL;
    pthread_mutex_lock(&aside->lock);
    *(aside->first ? &aside->last->next : &aside->first) = call;
    aside->last = call;
    const bool runs = aside->runs;
    aside->runs = true;
    pthread_mutex_unlock(&aside->lock);
    if (!runs && !start(aside)) make_all(aside);
}

bool pplx_aside_end(pplx_aside *aside) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += PATIENCE_NS;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&aside->lock);
    while (aside->runs && pthread_cond_timedwait(&aside->done, &aside->lock, &until) == 0) {
    }
    aside->left = aside->runs;
    const bool left = aside->left;
    if (left) pthread_detach(aside->thread);
    pthread_mutex_unlock(&aside->lock);
    if (!left) pplx_aside_join(aside);
    return !left;
}
