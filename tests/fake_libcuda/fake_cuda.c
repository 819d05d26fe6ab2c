/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A libcuda for tests, without a GPU: what it has of the driver's interface behaves as the manual says, strictly.
 *
 * Memory of a device is a memfd. Its address is reserved and can't be touched by the processor, as that of a GPU
 * can't; copies go through a second mapping. Another process opens it by /proc, its own can't, as with CUDA. A
 * stream is a thread with a queue. What the device sees of pinned host memory has another address, so that
 * who gives a host address to a stream is found out. Calls that need a context refuse without one. A copy from or to
 * memory of the host that is not pinned has the caller wait for it.
 *
 *   FAKE_CUDA_DEVICES=2        how many there are; 0: none, as on a machine whose driver finds no GPU
 *   FAKE_CUDA_COPY_US=0        each copy takes so long
 *   FAKE_CUDA_SKIP_COPIES=1    none is done, and nobody told
 *   FAKE_CUDA_PIN_US=0         so long it takes to pin memory
 *   FAKE_CUDA_DMABUF=0         it gives none
 *   FAKE_CUDA_ORDERING=100     for whom it orders what a NIC writes: nobody (0), its own work, all devices (200)
 *   FAKE_CUDA_FLUSH=1          how that is flushed: 1, by a call, 2, by waits of streams, 3, by both, 0, not at all
 *   FAKE_CUDA_FAIL=NAME:CODE   that call fails
 *
 * What a NIC has written into a dma-buf, and the device does not order, is seen by work on streams when it was flushed,
 * and not before; or, as the manual has it, when the program submits work or waits for some.
 *
 * and functions of its own, for tests alone, whose names begin with fake_cuda. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default"))) int
enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NOT_READY = 600,
    PEER_ACCESS_ALREADY_ENABLED = 704,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713
};
enum { MOST_RANGES = 4096, MOST_OPS = 16384, MOST_DEVICES = 8 };
enum { NOBODY = 0, OWNER = 100, ALL_DEVICES = 200 }; /* FAKE_CUDA_ORDERING, and how far a flush goes */
enum { BY_CALL = 1, BY_WAIT = 2 };                   /* FAKE_CUDA_FLUSH */
enum { FLUSH = 1 << 30 };                            /* a flag of a wait */
static const uint64_t PINNED = UINT64_C(1) << 62; /* added to a host address: as the device sees it */

typedef struct range {
    uint64_t start, nbytes; /* as the program knows it */
    unsigned char *alias;   /* as this file reads it, and as a NIC does */
    unsigned char *near, *far; /* as work of its own device and of others' reads it; NULL: as it is */
    int fd, device;
    bool opened;
    int opens;
    ino_t inode;
    uint64_t id;
} range;

typedef struct pinned {
    uint64_t host, nbytes;
} pinned;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static range ranges[MOST_RANGES];
static pinned pins[MOST_RANGES];
static atomic_bool initialised;
static __thread uintptr_t contexts[64]; /* device + 1 */
static __thread int depth;

static _Atomic uint64_t kernel_until_ns;
static atomic_int opened, retained, launched, handles, exported, queued, flushes, flushing_waits;
static _Atomic uint64_t last_id;
static atomic_bool opens_own, shared_with_nics, held;

/* A kernel of the program's runs for so long from now on (0: no more). Some calls of the driver wait for it. */
API fake_cuda_run_kernel(int ms);
API fake_cuda_opened(void);   /* allocations of other processes */
API fake_cuda_retained(void); /* primary contexts */
API fake_cuda_launched(void); /* kernels so far */
API fake_cuda_handles(void);  /* made so far, for other processes */
API fake_cuda_queued(void);   /* of all streams, and not done */
API fake_cuda_pinned(void);   /* ranges of the host's memory */
API fake_cuda_hold(int yes);  /* no copy of a stream ends until it is taken back */
API fake_cuda_exported(void); /* dma-bufs made so far */
API fake_cuda_flushes(void);  /* of what NICs have written: by calls, so far */
API fake_cuda_flushing_waits(void); /* ... and waits of streams that flush, queued so far */
API fake_cuda_renew(uint64_t pointer); /* as if it had been freed, and given out again */
API fake_cuda_open_own(int yes); /* take handles of this process as if they were another's */
API fake_cuda_alias(uint64_t pointer, size_t nbytes, int device, void **alias); /* where a NIC finds that memory */

static int env(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

static int devices(void) {
    const int n = env("FAKE_CUDA_DEVICES", 2);
    return n < MOST_DEVICES ? n : MOST_DEVICES;
}

static int refused(const char *call) {
    const char *text = getenv("FAKE_CUDA_FAIL"), *colon = text ? strchr(text, ':') : NULL;
    if (!colon || strlen(call) != (size_t)(colon - text) || strncmp(call, text, strlen(call)) != 0) return OK;
    return atoi(colon + 1);
}

#define REFUSE()                                  \
    do {                                          \
        const int code = refused(__func__);       \
        if (code != OK) return code;              \
        if (!initialised) return NOT_INITIALIZED; \
    } while (0)
#define NEED_CONTEXT()                          \
    do {                                        \
        REFUSE();                               \
        if (depth == 0) return INVALID_CONTEXT; \
    } while (0)

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void wait_for_kernels(void) {
    const struct timespec moment = {0, 1000000};
    while (now_ns() < atomic_load(&kernel_until_ns)) nanosleep(&moment, NULL);
}

API fake_cuda_run_kernel(int ms) {
    atomic_store(&kernel_until_ns, ms ? now_ns() + (uint64_t)ms * 1000000 : 0);
    return OK;
}

API fake_cuda_opened(void) { return atomic_load(&opened); }

API fake_cuda_retained(void) { return atomic_load(&retained); }

API fake_cuda_launched(void) { return atomic_load(&launched); }

API fake_cuda_queued(void) { return atomic_load(&queued); }

API fake_cuda_exported(void) { return atomic_load(&exported); }

API fake_cuda_flushes(void) { return atomic_load(&flushes); }

API fake_cuda_flushing_waits(void) { return atomic_load(&flushing_waits); }

API fake_cuda_handles(void) { return atomic_load(&handles); }

API fake_cuda_hold(int yes) {
    atomic_store(&held, yes);
    return OK;
}

API fake_cuda_open_own(int yes) {
    atomic_store(&opens_own, yes);
    return OK;
}

/* ------------------------------------------------------------------ memory */

static range *find(uint64_t pointer) {
    for (int i = 0; i < MOST_RANGES; i++)
        if (ranges[i].start && pointer >= ranges[i].start && pointer < ranges[i].start + ranges[i].nbytes)
            return &ranges[i];
    return NULL;
}

/* What a stream reads or writes; NULL: a fault. `device_only`: host addresses are none. */
static unsigned char *translate(uint64_t pointer, uint64_t nbytes, bool device_only) {
    unsigned char *found = NULL;
    pthread_mutex_lock(&lock);
    const range *in = find(pointer);
    if (in) {
        if (nbytes <= in->nbytes - (pointer - in->start)) found = in->alias + (pointer - in->start);
    } else if (pointer & PINNED) {
        const uint64_t host = pointer - PINNED;
        for (int i = 0; i < MOST_RANGES && !found; i++)
            if (pins[i].nbytes && host >= pins[i].host && host - pins[i].host + nbytes <= pins[i].nbytes)
                found = (unsigned char *)(uintptr_t)host;
    } else if (!device_only) {
        found = (unsigned char *)(uintptr_t)pointer;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- what NICs have written, and who sees it */

static int ordering(void) { return env("FAKE_CUDA_ORDERING", OWNER); }

/* A NIC may write there from now on. */
static void share_with_nics(range *range) {
    if (range->near || ordering() == ALL_DEVICES) return;
    atomic_store(&shared_with_nics, true);
    range->near = malloc(range->nbytes);
    range->far = malloc(range->nbytes);
    if (!range->near || !range->far) abort();
    memcpy(range->near, range->alias, range->nbytes);
    memcpy(range->far, range->alias, range->nbytes);
}

/* As work on a stream of that device reads it. */
static const unsigned char *seen(const range *range, uint64_t pointer, int device) {
    const bool owns = range->device == device;
    const bool ordered = !range->near || ordering() >= (owns ? OWNER : ALL_DEVICES);
    return (ordered ? range->alias : owns ? range->near : range->far) + (pointer - range->start);
}

/* `device`: whose memory; -1: everybody's. */
static void flush(int device, int scope) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST_RANGES; i++) {
        const range *range = &ranges[i];
        if (!range->near || (device >= 0 && range->device != device)) continue;
        memcpy(range->near, range->alias, range->nbytes);
        if (scope == ALL_DEVICES) memcpy(range->far, range->alias, range->nbytes);
    }
    pthread_mutex_unlock(&lock);
}

/* Work that the program submits sees what came before, as does what it waits for. */
static void submit(void) {
    if (atomic_load(&shared_with_nics)) flush(-1, ALL_DEVICES);
}

/* What work on a stream of that device writes is seen by all. */
static void move(unsigned char *to, uint64_t at, const unsigned char *from, uint64_t source, uint64_t nbytes,
                 int device) {
    if (!atomic_load(&shared_with_nics)) {
        memcpy(to, from, nbytes);
        return;
    }
    pthread_mutex_lock(&lock);
    const range *target = find(at), *origin = find(source);
    if (origin) from = seen(origin, source, device);
    memcpy(to, from, nbytes);
    if (target && target->near) {
        memcpy(target->near + (at - target->start), to, nbytes);
        memcpy(target->far + (at - target->start), to, nbytes);
    }
    pthread_mutex_unlock(&lock);
}

static range *new_range(void) {
    for (int i = 0; i < MOST_RANGES; i++)
        if (!ranges[i].start) return &ranges[i];
    return NULL;
}

static int map_range(int fd, uint64_t nbytes, int device, bool opened, uint64_t *out) {
    struct stat stat;
    void *alias = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    void *address = mmap(NULL, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (alias == MAP_FAILED || address == MAP_FAILED || fstat(fd, &stat) != 0) return OUT_OF_MEMORY;
    range *range = new_range();
    if (!range) return OUT_OF_MEMORY;
    range->start = (uintptr_t)address;
    range->nbytes = nbytes;
    range->alias = alias;
    range->fd = fd;
    range->device = device;
    range->opened = opened;
    range->opens = 1;
    range->inode = stat.st_ino;
    range->id = atomic_fetch_add(&last_id, 1) + 1;
    *out = range->start;
    return OK;
}

static void unmap_range(range *range) {
    free(range->near);
    free(range->far);
    munmap(range->alias, range->nbytes);
    munmap((void *)(uintptr_t)range->start, range->nbytes);
    close(range->fd);
    memset(range, 0, sizeof *range);
}

API cuMemAlloc_v2(uint64_t *pointer, size_t nbytes) {
    NEED_CONTEXT();
    const size_t whole = (nbytes + 4095) / 4096 * 4096;
    int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
    if (nbytes == 0 || fd < 0 || ftruncate(fd, (off_t)whole) != 0) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    const int result = map_range(fd, whole, (int)contexts[depth - 1] - 1, false, pointer);
    pthread_mutex_unlock(&lock);
    return result;
}

API cuMemFree_v2(uint64_t pointer) {
    NEED_CONTEXT();
    pthread_mutex_lock(&lock);
    range *range = find(pointer);
    const bool fine = range && range->start == pointer && !range->opened;
    if (fine) unmap_range(range);
    pthread_mutex_unlock(&lock);
    return fine ? OK : INVALID_VALUE;
}

API cuPointerGetAttributes(unsigned count, const int *attributes, void **data, uint64_t pointer) {
    REFUSE();
    pthread_mutex_lock(&lock);
    const range *range = find(pointer);
    for (unsigned i = 0; i < count; i++) {
        const uint32_t type = range ? 2 : 0, no = 0, shareable = range && !range->opened && !env("FAKE_CUDA_POOL", 0);
        const int32_t device = range ? range->device : -2;
        const uint64_t start = range ? range->start : 0;
        const size_t nbytes = range ? range->nbytes : 0;
        const uint64_t id = range ? range->id : 0;
        switch (attributes[i]) {
        case 2: memcpy(data[i], &type, sizeof type); break;
        case 7: memcpy(data[i], &id, sizeof id); break;
        case 8: memcpy(data[i], &no, 1); break; /* the driver writes a byte here */
        case 9: memcpy(data[i], &device, sizeof device); break;
        case 10: memcpy(data[i], &shareable, sizeof shareable); break;
        case 11: memcpy(data[i], &start, sizeof start); break;
        case 12: memcpy(data[i], &nbytes, sizeof nbytes); break;
        default: pthread_mutex_unlock(&lock); return INVALID_VALUE;
        }
    }
    pthread_mutex_unlock(&lock);
    return OK;
}

/* For tests alone: memory of the host is memory of the device from now on, at another address. */
API fake_cuda_adopt(uint64_t *pointer, void *memory, size_t nbytes) {
    void *address = mmap(NULL, nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    pthread_mutex_lock(&lock);
    range *range = new_range();
    if (range && address != MAP_FAILED)
        *range = (struct range){.start = (uintptr_t)address,
                                .nbytes = nbytes,
                                .alias = memory,
                                .fd = -1,
                                .opens = 1,
                                .id = atomic_fetch_add(&last_id, 1) + 1};
    pthread_mutex_unlock(&lock);
    *pointer = range ? range->start : 0;
    return range && address != MAP_FAILED ? OK : OUT_OF_MEMORY;
}

API fake_cuda_alias(uint64_t pointer, size_t nbytes, int device, void **alias) {
    pthread_mutex_lock(&lock);
    range *range = find(pointer);
    const bool there = range && range->device == device;
    if (there) share_with_nics(range);
    pthread_mutex_unlock(&lock);
    *alias = there ? translate(pointer, nbytes, true) : NULL;
    return *alias ? OK : INVALID_VALUE;
}

API fake_cuda_renew(uint64_t pointer) {
    pthread_mutex_lock(&lock);
    range *range = find(pointer);
    if (range) range->id = atomic_fetch_add(&last_id, 1) + 1;
    pthread_mutex_unlock(&lock);
    return range ? OK : INVALID_VALUE;
}

API fake_cuda_forget(uint64_t pointer) {
    pthread_mutex_lock(&lock);
    range *range = find(pointer);
    if (range) {
        free(range->near);
        free(range->far);
        munmap((void *)(uintptr_t)range->start, range->nbytes);
        memset(range, 0, sizeof *range);
    }
    pthread_mutex_unlock(&lock);
    return range ? OK : INVALID_VALUE;
}

/* ------------------------------------------------------------------ between processes */

typedef struct handle {
    char magic[8];
    int32_t pid, fd, device;
    uint64_t nbytes, inode;
} handle;
typedef struct handle_bytes {
    unsigned char bytes[64];
} handle_bytes;
_Static_assert(sizeof(handle) <= sizeof(handle_bytes), "fits");

API cuIpcGetMemHandle(handle_bytes *out, uint64_t pointer) {
    NEED_CONTEXT();
    atomic_fetch_add(&handles, 1);
    handle handle = {.magic = "fakecuda", .pid = getpid()};
    pthread_mutex_lock(&lock);
    const range *range = find(pointer);
    const bool fine = range && !range->opened;
    if (fine)
        handle.fd = range->fd, handle.device = range->device, handle.nbytes = range->nbytes,
        handle.inode = range->inode;
    pthread_mutex_unlock(&lock);
    memset(out, 0, sizeof *out);
    memcpy(out, &handle, sizeof handle);
    return fine ? OK : INVALID_VALUE;
}

API cuIpcOpenMemHandle_v2(uint64_t *pointer, handle_bytes in, unsigned flags) {
    handle handle;
    struct stat stat;
    char path[64];
    NEED_CONTEXT();
    wait_for_kernels();
    memcpy(&handle, &in, sizeof handle);
    if (flags != 1 || memcmp(handle.magic, "fakecuda", 8) != 0) return INVALID_VALUE;
    if (handle.pid == getpid() && !atomic_load(&opens_own)) return INVALID_CONTEXT;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", handle.pid, handle.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return INVALID_VALUE;
    if (fstat(fd, &stat) != 0 || stat.st_ino != handle.inode || (uint64_t)stat.st_size != handle.nbytes) {
        close(fd);
        return INVALID_VALUE;
    }
    int result = OK;
    pthread_mutex_lock(&lock);
    range *known = NULL;
    for (int i = 0; i < MOST_RANGES && !known; i++)
        if (ranges[i].start && ranges[i].opened && ranges[i].inode == stat.st_ino) known = &ranges[i];
    if (known) {
        known->opens++;
        *pointer = known->start;
        close(fd);
    } else {
        result = map_range(fd, handle.nbytes, handle.device, true, pointer);
    }
    if (result == OK) atomic_fetch_add(&opened, 1);
    pthread_mutex_unlock(&lock);
    return result;
}

API cuIpcCloseMemHandle(uint64_t pointer) {
    NEED_CONTEXT();
    wait_for_kernels();
    pthread_mutex_lock(&lock);
    range *range = find(pointer);
    const bool fine = range && range->opened && range->start == pointer;
    if (fine && --range->opens == 0) unmap_range(range);
    if (fine) atomic_fetch_sub(&opened, 1);
    pthread_mutex_unlock(&lock);
    return fine ? OK : INVALID_VALUE;
}

/* A dma-buf is anything that can be mapped. Whole allocations only: a memfd has no part that begins elsewhere. */
API cuMemGetHandleForAddressRange(void *handle, uint64_t pointer, size_t nbytes, int type, unsigned long long flags) {
    NEED_CONTEXT();
    if (type != 1 || flags || pointer % 4096 || nbytes % 4096) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    range *range = find(pointer);
    const bool fine = range && !range->opened && range->fd >= 0 && pointer == range->start && nbytes == range->nbytes;
    const int fd = fine ? fcntl(range->fd, F_DUPFD_CLOEXEC, 0) : -1;
    if (fine) share_with_nics(range);
    pthread_mutex_unlock(&lock);
    memcpy(handle, &fd, sizeof fd);
    if (fd >= 0) atomic_fetch_add(&exported, 1);
    return fd >= 0 ? OK : INVALID_VALUE;
}

/* ------------------------------------------------------------------ pinned memory */

static atomic_int captures; /* under way, all of the kind that forbids unsafe calls to every thread */
static __thread int capture_mode; /* 0: global, 2: relaxed */

/* What a capture forbids: to pin memory, to load a module, to ask a stream how far it is. */
static bool forbidden(void) { return atomic_load(&captures) && capture_mode != 2; }
static void nap_us(int us);

static bool is_pinned(uint64_t host) {
    for (int i = 0; i < MOST_RANGES; i++)
        if (pins[i].nbytes && host >= pins[i].host && host - pins[i].host < pins[i].nbytes) return true;
    return false;
}

API fake_cuda_pinned(void) {
    int count = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST_RANGES; i++) count += pins[i].nbytes > 0;
    pthread_mutex_unlock(&lock);
    return count;
}

API cuMemHostRegister_v2(void *memory, size_t nbytes, unsigned flags) {
    NEED_CONTEXT();
    if (forbidden()) return CAPTURE_UNSUPPORTED;
    if (!nbytes || (uintptr_t)memory % 4096 || flags > 15) return INVALID_VALUE;
    int result = OUT_OF_MEMORY;
    nap_us(env("FAKE_CUDA_PIN_US", 0));
    pthread_mutex_lock(&lock);
    const uint64_t host = (uintptr_t)memory;
    for (int i = 0; i < MOST_RANGES; i++)
        if (pins[i].nbytes && host < pins[i].host + pins[i].nbytes && pins[i].host < host + nbytes)
            result = ALREADY_REGISTERED;
    for (int i = 0; i < MOST_RANGES && result == OUT_OF_MEMORY; i++) {
        if (pins[i].nbytes) continue;
        pins[i] = (pinned){host, nbytes};
        result = OK;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

API cuMemHostUnregister(void *memory) {
    NEED_CONTEXT();
    int result = NOT_REGISTERED;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MOST_RANGES; i++) {
        if (!pins[i].nbytes || pins[i].host != (uintptr_t)memory) continue;
        pins[i] = (pinned){0, 0};
        result = OK;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

API cuMemHostGetDevicePointer_v2(uint64_t *pointer, void *memory, unsigned flags) {
    REFUSE();
    *pointer = (uintptr_t)memory + PINNED;
    return flags == 0 && translate(*pointer, 1, true) ? OK : INVALID_VALUE;
}

/* ------------------------------------------------------------------ streams */

typedef struct op {
    enum { COPY, KERNEL, WRITE, WRITE_32, WAIT, COUNT, NAP } kind;
    uint64_t to, from, nbytes; /* or: address, value, flags; or: address, another one, count; or: -, -, us */
} op;

enum { MOST_CAPTURED = 256 };

typedef struct graph {
    op ops[MOST_CAPTURED];
    unsigned count;
} graph;

typedef struct stream {
    graph *capturing;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    op ops[MOST_OPS];
    uint64_t head, tail; /* done, queued */
    bool ended;
    int failed, device;
} stream;

static void nap_us(int us) {
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

static atomic_bool peers[MOST_DEVICES][MOST_DEVICES]; /* the first may use memory of the second */

/* A kernel reaches the memory of its own device and of its peers, and what was opened of others'; a copy reaches all. */
static bool kernel_reaches(const stream *stream, uint64_t pointer) {
    pthread_mutex_lock(&lock);
    const range *range = find(pointer);
    const bool reaches = !range || range->opened || range->device == stream->device ||
                         atomic_load(&peers[stream->device][range->device]);
    pthread_mutex_unlock(&lock);
    return reaches;
}

/* benchmarks/gpu/kernels.cu: add 1 to a word, and wait until another one says that this was seen; `count` times. */
static int count_up(stream *stream, _Atomic uint64_t *word, _Atomic uint64_t *seen, uint64_t count) {
    if (!word || !seen) return 700;
    for (uint64_t i = 1; i <= count && !stream->ended; i++) {
        atomic_fetch_add(word, 1);
        while (!stream->ended && atomic_load(seen) < i) nap_us(20);
    }
    return OK;
}

static int execute(stream *stream, const op *op) {
    if (op->kind == NAP) {
        nap_us((int)op->nbytes);
        return OK;
    }
    if (op->kind == COUNT)
        return count_up(stream, (_Atomic uint64_t *)(void *)translate(op->to, 8, true),
                        (_Atomic uint64_t *)(void *)translate(op->from, 8, true), op->nbytes);
    if (op->kind == KERNEL && !(kernel_reaches(stream, op->to) && kernel_reaches(stream, op->from))) return 700;
    if (op->kind == COPY || op->kind == KERNEL) {
        unsigned char *to = translate(op->to, op->nbytes, false), *from = translate(op->from, op->nbytes, false);
        if (!to || !from) return 700;
        nap_us(env("FAKE_CUDA_COPY_US", 0));
        while (atomic_load(&held)) nap_us(100);
        if (!env("FAKE_CUDA_SKIP_COPIES", 0)) move(to, op->to, from, op->from, op->nbytes, stream->device);
        return OK;
    }
    _Atomic uint64_t *word = (_Atomic uint64_t *)(void *)translate(op->to, 8, true);
    if (!word) return 700;
    if (op->kind == WRITE)
        atomic_store(word, op->from);
    else if (op->kind == WRITE_32)
        atomic_store((_Atomic uint32_t *)(void *)word, (uint32_t)op->from);
    else
        while (!stream->ended && !waited(atomic_load(word), op->from, op->nbytes)) nap_us(20);
    if (op->kind == WAIT && op->nbytes & FLUSH) flush(stream->device, OWNER);
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

static int enqueue(stream *stream, op op) {
    if (!stream) return INVALID_VALUE; /* the tests use none of the default ones */
    if (stream->capturing) {
        if (stream->capturing->count == MOST_CAPTURED) return OUT_OF_MEMORY;
        stream->capturing->ops[stream->capturing->count++] = op;
        return OK;
    }
    submit();
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

API cuStreamCreate(stream **out, unsigned flags) {
    NEED_CONTEXT();
    if (flags > 1) return INVALID_VALUE;
    stream *stream = calloc(1, sizeof *stream);
    if (!stream) return OUT_OF_MEMORY;
    stream->device = (int)contexts[depth - 1] - 1;
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->changed, NULL);
    if (pthread_create(&stream->thread, NULL, run, stream)) {
        free(stream);
        return OUT_OF_MEMORY;
    }
    *out = stream;
    return OK;
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
    if (forbidden()) return CAPTURE_UNSUPPORTED;
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
    submit();
    return result;
}

/* Memory of the host as the system may move it. */
static bool is_pageable(uint64_t pointer) {
    pthread_mutex_lock(&lock);
    const bool pageable = !(pointer & PINNED) && !find(pointer) && !is_pinned(pointer);
    pthread_mutex_unlock(&lock);
    return pageable;
}

API cuMemcpyAsync(uint64_t to, uint64_t from, size_t nbytes, stream *stream) {
    NEED_CONTEXT();
    const int result = enqueue(stream, (op){COPY, to, from, nbytes});
    if (result != OK || stream->capturing || !(is_pageable(to) || is_pageable(from))) return result;
    return cuStreamSynchronize(stream);
}

API cuStreamWriteValue64_v2(stream *stream, uint64_t address, uint64_t value, unsigned flags) {
    NEED_CONTEXT();
    if (flags > 1 || address % 8) return INVALID_VALUE;
    return enqueue(stream, (op){WRITE, address, value, 0});
}

API cuStreamWaitValue64_v2(stream *stream, uint64_t address, uint64_t value, unsigned flags) {
    NEED_CONTEXT();
    if (flags & ~3u || address % 8) return INVALID_VALUE;
    return enqueue(stream, (op){WAIT, address, value, flags});
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
        if (ops[i].word.flags & FLUSH && !(env("FAKE_CUDA_FLUSH", BY_CALL) & BY_WAIT)) return NOT_SUPPORTED;
        if (ops[i].word.flags & FLUSH) atomic_fetch_add(&flushing_waits, 1);
    }
    for (unsigned i = 0; i < count; i++) {
        const uint32_t operation = ops[i].word.operation;
        const int result = enqueue(stream, (op){operation == 4   ? WAIT
                                                : operation == 2 ? WRITE_32
                                                                 : WRITE,
                                                ops[i].word.address, ops[i].word.value, ops[i].word.flags});
        if (result != OK) return result;
    }
    return OK;
}

API cuStreamGetCtx(stream *stream, uintptr_t *context) {
    REFUSE();
    if (!stream && depth == 0) return INVALID_CONTEXT;
    *context = stream ? (uintptr_t)stream->device + 1 : contexts[depth - 1];
    return OK;
}

/* ------------------------------------------------------------------ graphs */

API cuThreadExchangeStreamCaptureMode(int *mode) {
    REFUSE();
    const int before = capture_mode;
    if (*mode < 0 || *mode > 2) return INVALID_VALUE;
    capture_mode = *mode;
    *mode = before;
    return OK;
}

API cuStreamBeginCapture_v2(stream *stream, int mode) {
    NEED_CONTEXT();
    if (!stream || stream->capturing || mode != 0) return INVALID_VALUE;
    stream->capturing = calloc(1, sizeof *stream->capturing);
    atomic_fetch_add(&captures, 1);
    return stream->capturing ? OK : OUT_OF_MEMORY;
}

API cuStreamIsCapturing(stream *stream, int *state) {
    REFUSE();
    *state = stream && stream->capturing;
    return OK;
}

API cuStreamEndCapture(stream *stream, graph **graph) {
    NEED_CONTEXT();
    if (!stream || !stream->capturing) return INVALID_VALUE;
    *graph = stream->capturing;
    stream->capturing = NULL;
    atomic_fetch_sub(&captures, 1);
    return OK;
}

API cuGraphInstantiateWithFlags(graph **executable, const graph *graph, unsigned long long flags) {
    NEED_CONTEXT();
    *executable = malloc(sizeof **executable);
    if (!*executable) return OUT_OF_MEMORY;
    **executable = *graph;
    return flags ? INVALID_VALUE : OK;
}

API cuGraphLaunch(const graph *executable, stream *stream) {
    NEED_CONTEXT();
    int result = OK;
    for (unsigned i = 0; i < executable->count && result == OK; i++) result = enqueue(stream, executable->ops[i]);
    return result;
}

API cuGraphExecDestroy(graph *executable) {
    free(executable);
    return OK;
}

API cuGraphDestroy(graph *graph) {
    free(graph);
    return OK;
}

/* Only what the tests themselves do: it waits for nobody's stream. */
static int copy_now(uint64_t to, uint64_t from, size_t nbytes) {
    unsigned char *target = translate(to, nbytes, false), *source = translate(from, nbytes, false);
    if (!target || !source) return INVALID_VALUE;
    submit();
    move(target, to, source, from, nbytes, -1);
    return OK;
}

API cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t nbytes) {
    NEED_CONTEXT();
    return copy_now(to, (uintptr_t)from, nbytes);
}

API cuMemcpyDtoH_v2(void *to, uint64_t from, size_t nbytes) {
    NEED_CONTEXT();
    return copy_now((uintptr_t)to, from, nbytes);
}

/* ------------------------------------------------------------------ devices, contexts */

API cuInit(unsigned flags) {
    const int code = refused(__func__);
    if (code != OK) return code;
    initialised = true;
    return flags ? INVALID_VALUE : devices() ? OK : NO_DEVICE;
}

API cuDriverGetVersion(int *version) {
    *version = 13000;
    return OK;
}

API cuGetErrorName(int error, const char **text) {
    switch (error) {
    case OK: *text = "CUDA_SUCCESS"; break;
    case INVALID_VALUE: *text = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *text = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case NO_DEVICE: *text = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_CONTEXT: *text = "CUDA_ERROR_INVALID_CONTEXT"; break;
    case 700: *text = "CUDA_ERROR_ILLEGAL_ADDRESS"; break;
    default: *text = "CUDA_ERROR_UNKNOWN"; break;
    }
    return OK;
}

API cuDeviceGetCount(int *count) {
    REFUSE();
    *count = devices();
    return OK;
}

API cuDeviceGet(int *device, int ordinal) {
    REFUSE();
    *device = ordinal;
    return ordinal >= 0 && ordinal < devices() ? OK : INVALID_DEVICE;
}

API cuDeviceGetUuid_v2(unsigned char uuid[16], int device) {
    REFUSE();
    memset(uuid, 0, 16);
    memcpy(uuid, "fake gpu", 8);
    uuid[15] = (unsigned char)device;
    return OK;
}

API cuDeviceGetAttribute(int *value, int attribute, int device) {
    REFUSE();
    switch (attribute) {
    case 16: *value = 2; break; /* multiprocessors */
    case 98: *value = (env("FAKE_CUDA_FLUSH", BY_CALL) & BY_WAIT) != 0; break;
    case 117: *value = env("FAKE_CUDA_FLUSH", BY_CALL); break;
    case 118: *value = ordering(); break;
    case 122: *value = env("FAKE_CUDA_WORDS", 1); break;
    case 124: *value = env("FAKE_CUDA_DMABUF", 1); break;
    default: *value = 0; break;
    }
    return device < devices() ? OK : INVALID_DEVICE;
}

API cuDeviceGetName(char *name, int nbytes, int device) {
    REFUSE();
    snprintf(name, (size_t)nbytes, "the tests' own");
    return device < devices() ? OK : INVALID_DEVICE;
}

API cuDevicePrimaryCtxRetain(uintptr_t *context, int device) {
    REFUSE();
    *context = (uintptr_t)device + 1;
    atomic_fetch_add(&retained, 1);
    return OK;
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    REFUSE();
    atomic_fetch_sub(&retained, 1);
    return device < devices() ? OK : INVALID_DEVICE;
}

API cuCtxPushCurrent_v2(uintptr_t context) {
    REFUSE();
    if (context == 0 || depth == 64) return INVALID_CONTEXT;
    contexts[depth++] = context;
    return OK;
}

API cuCtxSetCurrent(uintptr_t context) {
    REFUSE();
    if (depth == 0) return cuCtxPushCurrent_v2(context);
    contexts[depth - 1] = context;
    return context ? OK : INVALID_CONTEXT;
}

API cuCtxEnablePeerAccess(uintptr_t peer, unsigned flags) {
    NEED_CONTEXT();
    const uintptr_t ours = contexts[depth - 1];
    if (flags || !peer || peer > MOST_DEVICES || peer == ours) return INVALID_VALUE;
    return atomic_exchange(&peers[ours - 1][peer - 1], true) ? PEER_ACCESS_ALREADY_ENABLED : OK;
}

API cuCtxGetDevice(int *device) {
    NEED_CONTEXT();
    *device = (int)contexts[depth - 1] - 1;
    return OK;
}

/* Nobody says that a capture allows it. */
API cuFlushGPUDirectRDMAWrites(int target, int scope) {
    NEED_CONTEXT();
    if (forbidden()) return CAPTURE_UNSUPPORTED;
    if (target != 0 || (scope != OWNER && scope != ALL_DEVICES)) return INVALID_VALUE;
    if (!(env("FAKE_CUDA_FLUSH", BY_CALL) & BY_CALL)) return NOT_SUPPORTED;
    atomic_fetch_add(&flushes, 1);
    if (scope > ordering()) flush((int)contexts[depth - 1] - 1, scope);
    return OK;
}

API cuCtxPopCurrent_v2(uintptr_t *context) {
    REFUSE();
    if (depth == 0) return INVALID_CONTEXT;
    *context = contexts[--depth];
    return OK;
}

/* ------------------------------------------------------------------ kernels */

/* It knows some by name. What pplx_async's own do is done by copies, and by words; those of benchmarks/gpu/kernels.cu,
 * which are in one module, are below. */
static const char known_kernel[] = "pplx_copy", words_kernel[] = "pplx_words";
static const char bench_kernels[4][16] = {"bench_store", "bench_count", "bench_gather", "bench_compute"};

API cuModuleLoadData(void **module, const char *image) {
    NEED_CONTEXT();
    wait_for_kernels();
    if (forbidden()) return CAPTURE_UNSUPPORTED;
    const char *name = strstr(image, words_kernel)       ? words_kernel
                       : strstr(image, bench_kernels[0]) ? bench_kernels[0]
                                                         : known_kernel;
    *module = (void *)(uintptr_t)name;
    return strstr(image, ".version") && strstr(image, name) ? OK : 218; /* no PTX */
}

API cuModuleGetFunction(void **function, void *module, const char *name) {
    REFUSE();
    *function = module;
    for (int i = 0; module == bench_kernels[0] && i < 4; i++)
        if (strcmp(name, bench_kernels[i]) == 0) *function = (void *)(uintptr_t)bench_kernels[i];
    return strcmp(name, *function) == 0 ? OK : 500;
}

API cuModuleUnload(void *module) {
    REFUSE();
    return module == known_kernel || module == words_kernel || module == bench_kernels[0] ? OK : INVALID_VALUE;
}

static uint64_t argument(void **arguments, int i) {
    uint64_t value;
    memcpy(&value, arguments[i], sizeof value);
    return value;
}

/* A copy for each page; `pages`, which lies on the device, is looked at now. */
static int gather(stream *stream, void **arguments, unsigned count) {
    const uint64_t to = argument(arguments, 0), from = argument(arguments, 1), places = argument(arguments, 2);
    uint32_t nbytes, place[2];
    memcpy(&nbytes, arguments[3], sizeof nbytes);
    const unsigned char *table = translate(places, count * sizeof place, true);
    if (!table) return INVALID_VALUE;
    for (unsigned i = 0; i < count; i++) {
        memcpy(place, table + i * sizeof place, sizeof place);
        const op copy = {KERNEL, to + (uint64_t)place[1] * nbytes, from + (uint64_t)place[0] * nbytes, nbytes};
        const int result = enqueue(stream, copy);
        if (result != OK) return result;
    }
    return OK;
}

static int launch_bench(const char *name, stream *stream, void **arguments, unsigned blocks) {
    if (name == bench_kernels[0])
        return enqueue(stream, (op){WRITE, argument(arguments, 0), argument(arguments, 1), 0});
    if (name == bench_kernels[1])
        return enqueue(stream, (op){COUNT, argument(arguments, 0), argument(arguments, 1), argument(arguments, 2)});
    if (name == bench_kernels[2]) return gather(stream, arguments, blocks);
    return enqueue(stream, (op){NAP, 0, 0, 200});
}

API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, stream *stream, void **arguments, void **extra) {
    NEED_CONTEXT();
    struct {
        uint64_t to, from, nbytes;
    } piece;
    struct {
        struct {
            uint32_t kind, value;
            uint64_t mask, address;
        } of[4];
        uint32_t count, reserved;
    } steps;
    if (function == words_kernel) {
        if (gx != 1 || gy != 1 || gz != 1 || bx != 1 || by != 1 || bz != 1 || shared || extra) return INVALID_VALUE;
        memcpy(&steps, arguments[0], sizeof steps);
        for (uint32_t i = 0; i < steps.count; i++) {
            const int result = enqueue(stream, steps.of[i].kind
                                                   ? (op){WAIT, steps.of[i].address, steps.of[i].mask, 2}
                                                   : (op){WRITE_32, steps.of[i].address, steps.of[i].value, 0});
            if (result != OK) return result;
        }
        return OK;
    }
    for (int i = 0; i < 4; i++)
        if (function == bench_kernels[i])
            return !gx || gy != 1 || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1 || shared || extra
                       ? INVALID_VALUE
                       : launch_bench(function, stream, arguments, gx);
    if (function != known_kernel || !gx || !gy || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1 || shared || extra)
        return INVALID_VALUE;
    atomic_fetch_add(&launched, 1);
    for (unsigned i = 0; i < gy; i++) {
        memcpy(&piece, (const char *)arguments[0] + i * sizeof piece, sizeof piece);
        const int result = enqueue(stream, (op){KERNEL, piece.to, piece.from, piece.nbytes});
        if (result != OK) return result;
    }
    return OK;
}
