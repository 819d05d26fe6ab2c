/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Words: how a stream of a GPU and the proxy hand over to each other, with nobody else in between.
 *
 * A stream writes 32 bits, and waits until 64 make a number that is large enough (cuStreamBatchMemOp; the tests' own
 * does the same). The proxy polls the words that are armed and answers in them. It never sleeps while there are any.
 *
 *   gate       stream: asks; waits for the answer
 *              proxy:  sees that; takes `eighths` from the counter, when they are there; answers
 *   doorbell   stream: (if it repeats: waits for the answer to the last one); asks
 *              proxy:  sees that; posts the request; answers
 *   watch      kernels: add to 64 bits of their own as they like; proxy: sees that they differ, and tells the owner
 *
 * A cell has a number, which goes up. A word takes the cell over at an even one, its turn. Its stream asks by turn + 1
 * and is answered by turn + 2, at which the next word takes it over. A stream waits for its answer or anything above,
 * so it goes on whenever it looks, though the cell may be another word's by then: a cell is free as soon as its stream
 * was answered, and no stream has to say that it has passed. A word that repeats goes back from answer to question.
 *
 * The stream itself asks before it waits, so that a gate that a graph has captured works each time that the graph is
 * launched: the proxy answers a question that it has seen, and what it has not taken stays in the counter. A doorbell
 * that repeats is answered when its request may be posted again; until then the stream waits.
 *
 * What NICs have written into memory of GPUs is flushed before a gate's answer, or by the wait itself: csrc/gpus.c.
 *
 * A gate that can't open any more (its peer is lost, its counter closed or broken, it is cancelled) lets the stream go
 * all the same, as `aborted` says, and what runs there has not what it waited for. So it poisons its lane, one engine's
 * view of one stream: all that was put there before, and all that comes until the owner heals it, is answered and not
 * done. `gone`, the upper half of the number, is for the end: nobody polls it any more, and no stream ever waits there.
 *
 * Life of a word: the owner fills it in, queues the stream's part, and arms it. The proxy retires it: it comes
 * through the done list (PPLX_NODE_WORD) with PPLX_WORD_RETIRED in its flags, and then is the owner's again. It may come
 * before that as well, as a counter does: see pplx_word_notify(). */
#ifndef PPLX_ASYNC_WORDS_H
#define PPLX_ASYNC_WORDS_H

#include "pplx_async/engine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Aligned memory that never moves, zeros at first. As one number of 64 bits: `gone` above `state`. */
typedef struct pplx_cell {
    uint32_t state;   /* the lower half of its number; atomic; stream and proxy by turns */
    uint32_t gone;    /* 0, then 1; atomic; proxy, or the owner when there is no proxy any more */
    uint32_t aborted; /* 1: it was answered without what its stream waits for; atomic; proxy. Kernels: device.cuh */
    uint32_t reserved;
    uint64_t watched; /* what kernels add to; atomic */
} pplx_cell;

/* What is added to a word's turn. */
enum pplx_cell_step { PPLX_CELL_ASKS = 1, PPLX_CELL_ANSWERED = 2 };

/* One stream, as an engine knows it. It is poisoned while the two differ. */
typedef struct pplx_lane {
    uint32_t poisons; /* atomic; proxy */
    uint32_t healed;  /* atomic; owner */
} pplx_lane;

enum pplx_word_kind { PPLX_WORD_GATE = 0, PPLX_WORD_DOORBELL = 1, PPLX_WORD_WATCH = 2 };

enum pplx_word_flags {
    PPLX_WORD_QUEUED = 1,  /* in the done list (proxy sets, owner takes off) */
    PPLX_WORD_RETIRED = 2, /* the proxy is done with it (proxy) */
    PPLX_WORD_ENDED = 4,   /* the owner called pplx_word_end (owner) */
    PPLX_WORD_CLOSED = 8   /* the owner called pplx_word_close (owner) */
};

typedef struct pplx_word {
    pplx_node node;
    pplx_node end_node, close_node;
    void *cookie; /* owner's */
    /* owner, before it is armed */
    uint32_t kind;
    uint32_t repeats; /* a graph has captured it: it is used until it is closed */
    uint32_t poisons; /* pplx_lane_poisons() before the stream's part was queued */
    int32_t end_status;    /* before pplx_word_end */
    pplx_cell *cell;
    pplx_lane *lane;       /* NULL: a watch */
    pplx_counter *counter; /* gate; open for as long as the gate has not ended */
    uint64_t eighths;      /* gate: what it takes; at least 1 */
    pplx_request *request; /* doorbell: a transfer; NULL: it only tells */
    /* shared */
    uint32_t flags;     /* enum pplx_word_flags; atomic */
    uint64_t count;     /* proxy, atomic: times opened; times that what was rung for has ended well */
    uint64_t notify_at; /* owner, atomic: come through the done list once `count` has reached it */
    uint64_t posted;    /* proxy, atomic: times that a doorbell was answered by posting */
    int32_t status;     /* proxy puts it there, the owner takes it off; atomic: what a stream was last let go for, or
                         * not posted; PPLX_OK */
    uint32_t spent;     /* proxy, before it retires: its stream has asked and was answered, and does not write there
                         * again: the cell is free */
    /* proxy */
    uint32_t phase;     /* enum phase in words.c */
    int32_t dead;       /* it is ended, and why */
    uint32_t busy;      /* a doorbell that repeats: its request is under way */
    uint32_t closing;   /* ... and then it retires */
    uint32_t end_seen, close_seen; /* those nodes have come */
    uint64_t seen;      /* watch: the number that the owner was told of last */
    struct pplx_word *next, *prev; /* all that are armed */
    struct pplx_word *next_gate;   /* of those that wait for the same counter */
    /* later ones */
    uint32_t gpu;   /* owner, before it is armed: the stream's, as pplx_cuda_queue() says; 0: it is the host's */
    int32_t native; /* proxy, before `status`: of PPLX_NATIVE, CUDA's code */
    uint32_t turn;  /* owner, before it is armed: pplx_cell_take() */
    uint32_t holds; /* owner, until it arms it, then proxy: it counts in csrc/gates_held.h */
    uint32_t nudge; /* owner, before it is armed: of a gate, whom csrc/cuda_nudge.h nudges when it opens; 0: nobody */
} pplx_word;

/* Take a free cell over; returns the word's turn. */
uint32_t pplx_cell_take(pplx_cell *cell);

/* Hand it to the proxy; whether the stream comes first does not matter. */
void pplx_word_arm(pplx_engine *engine, pplx_word *word);

/* A gate opens no more, a doorbell posts no more: each is answered as on a poisoned lane. Once a word; returns
 * at once. A request that was not rung for settles with `end_status`. A word that does not repeat is retired when the
 * stream has come. */
void pplx_word_end(pplx_engine *engine, pplx_word *word);

/* For a watch, and for what repeats: no stream or kernel uses it from now on. It retires when nothing of it is in
 * flight, without an end of its own: one that waits is let go by `gone`. Once a word. */
void pplx_word_close(pplx_engine *engine, pplx_word *word);

uint64_t pplx_cell_value(const pplx_cell *cell); /* any thread: of a watch */

/* Nobody polls it any more, as after pplx_engine_stop(): whoever waits there is let go. */
void pplx_word_let_go(pplx_cell *cell);

/* For one that came through the done list: call this first, then look at its fields. True: it is retired. */
bool pplx_word_reaped(pplx_word *word);

/* Ask to be told once `count` has reached this; true: it has already (then nothing may come). */
bool pplx_word_notify(pplx_word *word, uint64_t count);
uint64_t pplx_word_count(const pplx_word *word);  /* any thread */
uint64_t pplx_word_posted(const pplx_word *word); /* any thread */
int32_t pplx_word_take_status(pplx_word *word);   /* owner */

uint32_t pplx_lane_poisons(const pplx_lane *lane);
bool pplx_cell_aborted(const pplx_cell *cell); /* any thread: as pplx_aborted() in a kernel */

bool pplx_lane_poisoned(const pplx_lane *lane); /* any thread */
void pplx_lane_heal(pplx_lane *lane);           /* owner: what is queued from now on is done again */

/* ---- the stream's side ----------------------------------------------------------------------- */

/* WAIT_FLUSH: what NICs have written before into memory of its GPU is seen by what is behind it, if a wait can do that
 * there; else the proxy has to see to it (csrc/gpus.c). */
enum pplx_step_kind { PPLX_STEP_WRITE = 0, PPLX_STEP_WAIT = 1, PPLX_STEP_WAIT_FLUSH = 2 };

/* What a stream does in its turn. */
typedef struct pplx_step {
    uint32_t kind;
    uint32_t value;   /* WRITE: into the first 32 bits there */
    uint64_t least;   /* WAITs: until the 64 bits there are at least this */
    uint64_t address; /* of the cell, as the stream sees it */
} pplx_step;

/* A stream of the host's: any thread. False: not yet, after looking for `us` at most. */
bool pplx_step_run(const pplx_step *step, uint32_t us);

/* Streams of CUDA, by their handles; 0, 1 and 2 are the default ones, of the context that is current. `libcuda`: a
 * path, or NULL for the one that the system finds; it is loaded at the first call. Any thread. */
pplx_status pplx_cuda_capturing(const char *libcuda, uint64_t stream, bool *capturing, pplx_error *error);

typedef struct pplx_stream_identity {
    uint64_t context;
    uint64_t id; /* no other stream of the process has it, ever; 0: the driver doesn't say, as while it is captured */
    bool capturing;
    uint8_t reserved[7];
} pplx_stream_identity;

/* Which stream that is now: handles are given out again. */
pplx_status pplx_cuda_identify(const char *libcuda, uint64_t stream, pplx_stream_identity *identity, pplx_error *error);

typedef struct pplx_pinned {
    uint64_t address; /* as every GPU sees it */
    uint64_t context; /* the primary one of the stream's device, which lasts */
} pplx_pinned;

/* Let GPUs see the cells: whole pages of the host's; once more does no harm. The device's primary context is made, if
 * there was none, and kept. */
pplx_status pplx_cuda_pin(const char *libcuda, uint64_t stream, void *memory, size_t nbytes, pplx_pinned *pinned,
                          pplx_error *error);

/* No stream looks there any more. The driver waits until no stream of the context is in a gate, whoever's: so the engine
 * itself leaves its words pinned, for the next one. */
void pplx_cuda_unpin(const char *libcuda, void *memory, const pplx_pinned *pinned);

/* Queue up to four steps: all of them or none. `gpu`: whose stream it is, for pplx_word. */
pplx_status pplx_cuda_push(const char *libcuda, uint64_t stream, const pplx_step *steps, size_t count, uint32_t *gpu,
                           pplx_error *error);

/* The same for a word, of which `kind` and `repeats` are known: fills in its `gpu`, and a gate's `nudge`. A gate that does
 * not repeat may wait first, for a second at most, for calls of the driver's that it would hold up (csrc/gates_held.h). */
pplx_status pplx_cuda_queue(const char *libcuda, uint64_t stream, const pplx_step *steps, size_t count, pplx_word *word,
                            pplx_error *error);

/* Owner: it is about to be queued on a stream of CUDA's, which does this if it was not done. Waits for a call of the
 * driver's that waits for gates, for a second at most: csrc/gates_held.h. */
void pplx_word_hold(pplx_word *word);

/* It is not to be armed: nothing waits for it. */
void pplx_word_undo(pplx_word *word);

#ifdef __cplusplus
}
#endif
#endif
