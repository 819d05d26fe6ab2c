/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Streams: a thread each, with a queue. */
#include "fake_cuda.h"

#include <stdlib.h>
#include <time.h>

static atomic_int queued, flushing_waits, batches, stores;
static atomic_bool held, stores_held;
static atomic_int waiting[MOST_DEVICES]; /* for a word: streams of each device */

API fake_cuda_waiting(void) {
    int count = 0;
    for (int i = 0; i < MOST_DEVICES; i++) count += atomic_load(&waiting[i]);
    return count;
}

static atomic_int waits_for_all;
static atomic_bool together;

API fake_cuda_wait_together(int yes) {
    atomic_store(&together, yes);
    return OK;
}

void fake_wait_for_all(void) {
    atomic_fetch_add(&waits_for_all, 1);
    fake_wait_for_kernels();
    while (fake_depth && atomic_load(&waiting[fake_device()])) fake_nap_us(100);
    atomic_fetch_sub(&waits_for_all, 1);
}

void fake_wait_for_the_driver(void) {
    while (atomic_load(&together) && atomic_load(&waits_for_all)) fake_nap_us(100);
}

API fake_cuda_queued(void) { return atomic_load(&queued); }

API fake_cuda_flushing_waits(void) { return atomic_load(&flushing_waits); }

API fake_cuda_batches(void) { return atomic_load(&batches); }

API fake_cuda_stores(void) { return atomic_load(&stores); }

API fake_cuda_hold(int yes) {
    atomic_store(&held, yes);
    return OK;
}

API fake_cuda_hold_stores(int yes) {
    atomic_store(&stores_held, yes);
    return OK;
}

void fake_nap_us(int us) {
    const struct timespec time = {us / 1000000, us % 1000000 * 1000L};
    if (us > 0) nanosleep(&time, NULL);
}

/* An atomic word that another process may look at. */
static bool waited(uint64_t value, uint64_t wanted, uint64_t flags) {
    switch (flags & 3) {
    case 0: return (int64_t)(value - wanted) >= 0;
    case 1: return value == wanted;
    case 2: return (value & wanted) != 0;
    default: return ~(value | wanted) != 0;
    }
}

/* A kernel reaches the memory of its own context and of its peers, and what was opened of others'; a copy reaches all. */
static bool kernel_reaches(const stream *stream, uint64_t pointer) {
    pthread_mutex_lock(&fake_lock);
    const range *range = fake_find(pointer);
    const bool reaches = !range || range->reserved || range->opened ||
                         (range->device == stream->device && (!range->context || range->context == stream->context)) ||
                         atomic_load(&fake_peers[stream->device][range->device]);
    pthread_mutex_unlock(&fake_lock);
    return reaches && fake_may_reach(stream->device, pointer, 1);
}

/* benchmarks/gpu/kernels.cu: add 1 to a word, and wait until another one says that this was seen; `count` times. */
static int count_up(stream *stream, _Atomic uint64_t *word, _Atomic uint64_t *seen, uint64_t count) {
    if (!word || !seen) return 700;
    for (uint64_t i = 1; i <= count && !stream->ended; i++) {
        atomic_fetch_add(word, 1);
        while (!stream->ended && atomic_load(seen) < i) fake_nap_us(20);
    }
    return OK;
}

/* Streams that wait, while they doze: a GPU looks at each now and then, and at all of a context when it takes a stream
 * memory operation of another one. */
typedef struct dozing {
    struct dozing *next;
    const stream *stream;
    const _Atomic uint64_t *word;
    const op *op;
    bool seen; /* it may go on */
} dozing;

static pthread_mutex_t doze_lock = PTHREAD_MUTEX_INITIALIZER;
static dozing *all_dozing;
static atomic_int doze_ms;

API fake_cuda_doze(int ms) {
    atomic_store(&doze_ms, ms);
    return OK;
}

static void look(dozing *dozing) {
    dozing->seen |= waited(atomic_load(dozing->word), dozing->op->from, dozing->op->nbytes);
}

/* The stream is given an operation. */
static void look_at_others(const stream *stream) {
    if (!stream || stream->capturing || !atomic_load(&doze_ms)) return;
    pthread_mutex_lock(&doze_lock);
    for (dozing *at = all_dozing; at; at = at->next)
        if (at->stream != stream && at->stream->device == stream->device) look(at);
    pthread_mutex_unlock(&doze_lock);
}

static void doze(const stream *stream, const _Atomic uint64_t *word, const op *op) {
    dozing self = {.stream = stream, .word = word, .op = op}, **at = &all_dozing;
    bool seen = false;
    pthread_mutex_lock(&doze_lock);
    self.next = all_dozing;
    all_dozing = &self;
    look(&self);
    pthread_mutex_unlock(&doze_lock);
    for (int looks = 0; !seen && !stream->ended; looks++) {
        fake_nap_us(100);
        pthread_mutex_lock(&doze_lock);
        if (looks >= 10 * atomic_load(&doze_ms)) look(&self);
        seen = self.seen;
        pthread_mutex_unlock(&doze_lock);
    }
    pthread_mutex_lock(&doze_lock);
    while (*at != &self) at = &(*at)->next;
    *at = self.next;
    pthread_mutex_unlock(&doze_lock);
}

static void wait_for_word(stream *stream, const _Atomic uint64_t *word, const op *op) {
    atomic_fetch_add(&waiting[stream->device], 1);
    if (atomic_load(&doze_ms) && !(op->nbytes & POLLS)) doze(stream, word, op);
    while (!stream->ended && !waited(atomic_load(word), op->from, op->nbytes)) fake_nap_us(20);
    atomic_fetch_sub(&waiting[stream->device], 1);
}

static int execute(stream *stream, const op *op) {
    if (op->kind == NAP) {
        fake_nap_us((int)op->nbytes);
        return OK;
    }
    if (op->kind == COUNT)
        return count_up(stream, (_Atomic uint64_t *)(void *)fake_translate(op->to, 8, true),
                        (_Atomic uint64_t *)(void *)fake_translate(op->from, 8, true), op->nbytes);
    if (op->kind == KERNEL && !(kernel_reaches(stream, op->to) && kernel_reaches(stream, op->from))) return 700;
    if (op->kind == COPY || op->kind == KERNEL) {
        unsigned char *to = fake_translate(op->to, op->nbytes, false),
                      *from = fake_translate(op->from, op->nbytes, false);
        if (!to || !from) return 700;
        fake_nap_us(fake_env("FAKE_CUDA_COPY_US", 0));
        while (atomic_load(&held)) fake_nap_us(100);
        if (!fake_env("FAKE_CUDA_SKIP_COPIES", 0)) fake_move(to, op->to, from, op->from, op->nbytes, stream->device);
        return OK;
    }
    _Atomic uint64_t *word = (_Atomic uint64_t *)(void *)fake_translate(op->to, 8, true);
    if (!word) return 700;
    while (op->kind == WRITE && atomic_load(&stores_held)) fake_nap_us(100);
    if (op->kind == WRITE)
        atomic_store(word, op->from);
    else if (op->kind == WRITE_32)
        atomic_store((_Atomic uint32_t *)(void *)word, (uint32_t)op->from);
    else
        wait_for_word(stream, word, op);
    if (op->kind == WAIT && op->nbytes & FLUSH) fake_flush(stream->device, OWNER);
    return OK;
}

static void *run(void *argument) {
    stream *stream = argument;
    pthread_mutex_lock(&stream->lock);
    while (true) {
        while (stream->head == stream->tail && !stream->ended) pthread_cond_wait(&stream->changed, &stream->lock);
        if (stream->head == stream->tail) break;
        const op op = stream->ops[stream->head % MOST_OPS];
        pthread_mutex_unlock(&stream->lock);
        const int result = stream->failed ? stream->failed : execute(stream, &op);
        pthread_mutex_lock(&stream->lock);
        stream->failed = result;
        stream->head++;
        atomic_fetch_sub(&queued, 1);
        pthread_cond_broadcast(&stream->changed);
    }
    pthread_mutex_unlock(&stream->lock);
    return NULL;
}

int fake_enqueue(stream *stream, op op) {
    if (!stream) return INVALID_VALUE; /* the tests use none of the default ones */
    if (stream->capturing) {
        if (stream->capturing->count == MOST_CAPTURED) return OUT_OF_MEMORY;
        stream->capturing->ops[stream->capturing->count++] = op;
        return OK;
    }
    fake_submit();
    pthread_mutex_lock(&stream->lock);
    while (stream->tail - stream->head == MOST_OPS) pthread_cond_wait(&stream->changed, &stream->lock);
    const int failed = stream->failed;
    if (!failed) {
        stream->ops[stream->tail++ % MOST_OPS] = op;
        atomic_fetch_add(&queued, 1);
    }
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    return failed;
}

API fake_cuda_renew_stream(stream *stream) {
    static atomic_uint made;
    stream->id = MOST_DEVICES + 1 + atomic_fetch_add(&made, 1); /* after those of the default ones */
    return OK;
}

API cuStreamCreate(stream **out, unsigned flags) {
    NEED_CONTEXT();
    fake_wait_for_the_driver();
    if (flags > 1) return INVALID_VALUE;
    stream *stream = calloc(1, sizeof *stream);
    if (!stream) return OUT_OF_MEMORY;
    stream->device = fake_device();
    stream->context = fake_context();
    fake_cuda_renew_stream(stream);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    if (pthread_create(&stream->thread, NULL, run, stream)) {
        free(stream);
        return OUT_OF_MEMORY;
    }
    *out = stream;
    return OK;
}

enum { GREATEST_PRIORITY = -5 };

API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    NEED_CONTEXT();
    *least = 0;
    *greatest = GREATEST_PRIORITY;
    return OK;
}

API cuStreamCreateWithPriority(stream **out, unsigned flags, int priority) {
    NEED_CONTEXT();
    if (priority > 0 || priority < GREATEST_PRIORITY) return INVALID_VALUE; /* the driver takes the nearest one */
    return cuStreamCreate(out, flags);
}

API cuStreamDestroy_v2(stream *stream) {
    NEED_CONTEXT();
    pthread_mutex_lock(&stream->lock);
    stream->ended = true;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
    pthread_join(stream->thread, NULL);
    free(stream);
    return OK;
}

API cuStreamQuery(stream *stream) {
    REFUSE();
    if (fake_forbidden()) return CAPTURE_UNSUPPORTED;
    pthread_mutex_lock(&stream->lock);
    const int result = stream->failed ? stream->failed : stream->head == stream->tail ? OK : NOT_READY;
    pthread_mutex_unlock(&stream->lock);
    return result;
}

API cuStreamSynchronize(stream *stream) {
    REFUSE();
    pthread_mutex_lock(&stream->lock);
    while (stream->head != stream->tail) pthread_cond_wait(&stream->changed, &stream->lock);
    const int result = stream->failed;
    pthread_mutex_unlock(&stream->lock);
    fake_submit();
    return result;
}

/* Memory of the host as the system may move it. */
static bool is_pageable(uint64_t pointer) {
    pthread_mutex_lock(&fake_lock);
    const bool pageable = !(pointer & PINNED) && !fake_find(pointer) && !fake_is_pinned(pointer, 1);
    pthread_mutex_unlock(&fake_lock);
    return pageable;
}

API cuMemcpyAsync(uint64_t to, uint64_t from, size_t nbytes, stream *stream) {
    NEED_CONTEXT();
    fake_wait_for_the_driver();
    if (!stream || !fake_may_reach(stream->device, to, nbytes) || !fake_may_reach(stream->device, from, nbytes))
        return INVALID_VALUE;
    const int result = fake_enqueue(stream, (op){COPY, to, from, nbytes});
    if (result != OK || stream->capturing || !(is_pageable(to) || is_pageable(from))) return result;
    return cuStreamSynchronize(stream);
}

typedef struct copy_attributes {
    int32_t order, hints[4];
    uint32_t flags;
} copy_attributes;

/* `order` 1: the source is read when the stream comes to it, as by other copies. */
API cuMemcpyBatchAsync_v2(const uint64_t *to, const uint64_t *from, const size_t *nbytes, size_t count,
                          const copy_attributes *attributes, const size_t *first, size_t nattributes, stream *stream) {
    NEED_CONTEXT();
    fake_wait_for_the_driver();
    if (!stream || !count || nattributes != 1 || *first || attributes->order != 1 || attributes->flags)
        return INVALID_VALUE;
    if (stream->capturing) return CAPTURE_UNSUPPORTED;
    for (size_t i = 0; i < count; i++)
        if (!fake_may_reach(stream->device, to[i], nbytes[i]) || !fake_may_reach(stream->device, from[i], nbytes[i]))
            return INVALID_VALUE;
    atomic_fetch_add(&batches, 1);
    for (size_t i = 0; i < count; i++) {
        const int result = fake_enqueue(stream, (op){COPY, to[i], from[i], nbytes[i]});
        if (result != OK) return result;
    }
    return OK;
}

API cuStreamWriteValue64_v2(stream *stream, uint64_t address, uint64_t value, unsigned flags) {
    NEED_CONTEXT();
    if (flags > 1 || address % 8) return INVALID_VALUE;
    atomic_fetch_add(&stores, 1);
    look_at_others(stream);
    return fake_enqueue(stream, (op){WRITE, address, value, 0});
}

API cuStreamWaitValue64_v2(stream *stream, uint64_t address, uint64_t value, unsigned flags) {
    NEED_CONTEXT();
    if (flags & ~3u || address % 8) return INVALID_VALUE;
    return fake_enqueue(stream, (op){WAIT, address, value, flags});
}

typedef union memory_op {
    struct {
        uint32_t operation;
        uint64_t address, value;
        uint32_t flags;
        uint64_t alias;
    } word;
    uint64_t pad[6];
} memory_op;

API cuStreamBatchMemOp_v2(stream *stream, unsigned count, const memory_op *ops, unsigned flags) {
    NEED_CONTEXT();
    if (flags || count > 256) return INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        const uint32_t operation = ops[i].word.operation; /* 32-bit writes, 64-bit waits and writes */
        if (operation != 2 && operation != 4 && operation != 5) return INVALID_VALUE;
        if (ops[i].word.address % (operation == 2 ? 4 : 8)) return INVALID_VALUE;
        if (ops[i].word.flags & ~(operation == 4 ? 3u | FLUSH : 0)) return INVALID_VALUE;
        if (ops[i].word.flags & FLUSH && !(fake_env("FAKE_CUDA_FLUSH", BY_CALL) & BY_WAIT)) return NOT_SUPPORTED;
        if (ops[i].word.flags & FLUSH) atomic_fetch_add(&flushing_waits, 1);
    }
    look_at_others(stream);
    for (unsigned i = 0; i < count; i++) {
        const uint32_t operation = ops[i].word.operation;
        if (operation == 5) atomic_fetch_add(&stores, 1);
        const int result = fake_enqueue(stream, (op){operation == 4   ? WAIT
                                                     : operation == 2 ? WRITE_32
                                                                      : WRITE,
                                                     ops[i].word.address, ops[i].word.value, ops[i].word.flags});
        if (result != OK) return result;
    }
    return OK;
}

API cuStreamGetId(stream *stream, unsigned long long *id) {
    REFUSE();
    const bool own = !fake_is_default(stream);
    if (fake_forbidden()) return CAPTURE_UNSUPPORTED;
    if (!own && fake_depth == 0) return INVALID_CONTEXT;
    if (own && stream->capturing) return CAPTURE_UNSUPPORTED;
    *id = own ? stream->id : (unsigned long long)fake_device() + 1;
    return OK;
}

API cuStreamGetCtx(stream *stream, uintptr_t *context) {
    REFUSE();
    const bool own = !fake_is_default(stream);
    if (!own && fake_depth == 0) return INVALID_CONTEXT;
    *context = own ? stream->context : fake_context();
    return OK;
}
