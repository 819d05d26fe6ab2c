/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Calls that may take long, made by a thread beside the one that has no time for them.
 *
 * They are made one after the other, in the order in which they were given. The thread comes with the first of them
 * and goes with the last; where there is none to be had they are made at once, by who gives them. How they end is
 * theirs to tell.
 *
 * Who frees what they are about waits for them, for a while: pplx_aside_end(). Then it leaves that to the thread,
 * which does it when the last one is made; nothing of the caller's may be needed for it. */
#ifndef PPLX_CSRC_ASIDE_H
#define PPLX_CSRC_ASIDE_H

#include <pthread.h>
#include <stdbool.h>

typedef struct pplx_aside_call {
    struct pplx_aside_call *next;
    void (*make)(struct pplx_aside_call *call); /* may free it */
} pplx_aside_call;

typedef struct pplx_aside {
    const char *name;            /* of the thread, 15 letters at most */
    void (*free_owner)(void *owner);
    void *owner;
    pthread_t thread;            /* the caller's, with the next */
    bool has_thread;             /* to be joined */
    pthread_mutex_t lock;        /* round what follows */
    pthread_cond_t done;
    pplx_aside_call *first, *last;
    bool runs;                   /* the thread has not ended, and will look at the list again */
    bool left;                   /* it calls free_owner() */
} pplx_aside;

void pplx_aside_init(pplx_aside *aside, const char *name, void (*free_owner)(void *owner), void *owner);

/* One thread at a time, like all that follows. */
void pplx_aside_make(pplx_aside *aside, pplx_aside_call *call);

/* Wait until all that were given are made, however long that takes. */
void pplx_aside_join(pplx_aside *aside);

/* Whether a call is made here by a thread beside, and not at once. Any thread. */
bool pplx_aside_is_here(void);

/* No call will be given any more. True: all are made, and the owner is the caller's to free. False: it was left to
 * the thread. */
bool pplx_aside_end(pplx_aside *aside);

#endif
