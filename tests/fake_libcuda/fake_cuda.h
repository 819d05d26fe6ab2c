/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A libcuda for tests, without a GPU: what it has of the driver's interface behaves as the manual says, strictly.
 *
 * Memory of a device is a memfd. Its address is reserved and can't be touched by the processor, as that of a GPU
 * can't; copies go through a second mapping. Another process opens it by /proc, its own can't, as with CUDA. A
 * stream is a thread with a queue. What the device sees of pinned host memory has another address, so that
 * who gives a host address to a stream is found out. Calls that need a context refuse without one. A copy from or to
 * memory of the host that is not pinned has the caller wait for it. To unpin, to free, to close what is another
 * process's, to load a module and to unload it wait for kernels, and until no stream of the context waits for a word, as
 * was measured on an H200; to open what is another process's waits for kernels alone, and the rest for neither. To unmap
 * waits for all, too, which was not measured: it is the worst that a driver may do.
 *
 * Physical memory (cuMemCreate) is a memfd, too, and its name says so. It is mapped whole, into reserved addresses,
 * and reached by the devices that cuMemSetAccess names. tests/gpu/test_virtual_driver.py holds it to what a
 * driver says.
 *
 *   FAKE_CUDA_DEVICES=2        how many there are; 0: none, as on a machine whose driver finds no GPU
 *   FAKE_CUDA_COPY_US=0        each copy takes so long
 *   FAKE_CUDA_SKIP_COPIES=1    none is done, and nobody told
 *   FAKE_CUDA_PIN_US=0         so long it takes to pin memory
 *   FAKE_CUDA_LOAD_US=0        ... to load a module, before it waits
 *   FAKE_CUDA_DMABUF=0         it gives none
 *   FAKE_CUDA_ORDERING=100     for whom it orders what a NIC writes: nobody (0), its own work, all devices (200)
 *   FAKE_CUDA_FLUSH=1          how that is flushed: 1, by a call, 2, by waits of streams, 3, by both, 0, not at all
 *   FAKE_CUDA_WORDS=0          it has no stream memory operations of 64 bit
 *   FAKE_CUDA_POOL=1           its memory is of a pool: no other process opens it
 *   FAKE_CUDA_FAIL=NAME:CODE   that call fails
 *
 * and functions of its own, for tests alone, whose names begin with fake_cuda.
 *
 * What a NIC has written into a dma-buf, and the device does not order, is seen by work on streams when it was flushed,
 * and not before; or, as the manual has it, when the program submits work or waits for some.
 *
 * One lock guards what memory there is; each stream has one of its own. */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define API __attribute__((visibility("default"))) int
enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    UNKNOWN = 999,
    PEER_ACCESS_ALREADY_ENABLED = 704,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713
};
enum { MOST_RANGES = 4096, MOST_DEVICES = 8, MOST_OPS = 16384, MOST_CAPTURED = 256, GRANULARITY = 2 << 20 };
enum { NOBODY = 0, OWNER = 100, ALL_DEVICES = 200 }; /* FAKE_CUDA_ORDERING, and how far a flush goes */
enum { BY_CALL = 1, BY_WAIT = 2 };                   /* FAKE_CUDA_FLUSH */
enum { FLUSH = 1 << 30 };                            /* a flag of a wait */
enum { POLLS = 1 << 29 };                            /* likewise: it is a kernel's, which looks all the time */
static const uint64_t PINNED = UINT64_C(1) << 62; /* added to a host address: as the device sees it */

#define REFUSE()                                       \
    do {                                               \
        const int code = fake_refused(__func__);       \
        if (code != OK) return code;                   \
        if (!fake_initialised) return NOT_INITIALIZED; \
    } while (0)
#define NEED_CONTEXT()                               \
    do {                                             \
        REFUSE();                                    \
        if (fake_depth == 0) return INVALID_CONTEXT; \
    } while (0)

/* What is mapped at an address. */
typedef struct chunk {
    uint64_t start, nbytes, id;
    int device, handle_types; /* how others may open it */
} chunk;

typedef struct mapping mapping;

typedef struct range {
    uint64_t start, nbytes; /* as the program knows it */
    unsigned char *alias;   /* as this library reads it, and as a NIC does */
    unsigned char *near, *far; /* as work of its own device and of others' reads it; NULL: as it is */
    int fd, device;
    uintptr_t context; /* 0: of none, as what is mapped */
    bool opened;
    int opens;
    ino_t inode;
    uint64_t id;
    bool reserved; /* addresses alone, for cuMemMap(): what is mapped there */
    mapping *mappings;
} range;

typedef struct op {
    enum { COPY, KERNEL, WRITE, WRITE_32, WAIT, COUNT, NAP } kind;
    uint64_t to, from, nbytes; /* or: address, value, flags; or: address, another one, count; or: -, -, us */
} op;

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
    uintptr_t context;
    unsigned long long id;
} stream;

/* 0, 1 and 2: no streams that somebody made; those of the current context. What they are told to do is not modelled. */
static inline bool fake_is_default(const stream *stream) { return (uintptr_t)stream <= 2; }

extern pthread_mutex_t fake_lock;
extern range fake_ranges[MOST_RANGES]; /* guarded by fake_lock */
extern atomic_bool fake_initialised;
extern atomic_bool fake_peers[MOST_DEVICES][MOST_DEVICES]; /* the first may use memory of the second */
extern __thread int fake_depth; /* of the thread's contexts; 0: none is current */

int fake_env(const char *name, int otherwise);
int fake_refused(const char *call); /* what FAKE_CUDA_FAIL has it say */
uintptr_t fake_context(void);       /* the current one */
unsigned fake_context_id(uintptr_t context);
int fake_device(void);              /* ... its */

/* With fake_lock held; fake_translate() takes it. */
range *fake_find(uint64_t pointer);
int fake_map(int fd, uint64_t nbytes, int device, bool opened, uint64_t *out);
int fake_reserve(uint64_t nbytes, uint64_t *out);
void fake_unmap(range *range);
bool fake_is_mapped(const range *range, uint64_t pointer, uint64_t nbytes, int device); /* -1: for any device */
bool fake_may_reach(int device, uint64_t pointer, uint64_t nbytes); /* takes the lock */
bool fake_chunk(const range *range, uint64_t pointer, chunk *found);
uint64_t fake_new_id(void);
bool fake_is_pinned(uint64_t host, uint64_t nbytes);
void fake_unpin(uintptr_t context); /* takes the lock */
unsigned char *fake_translate(uint64_t pointer, uint64_t nbytes, bool device_only);

int fake_ordering(void);
void fake_share_with_nics(range *range); /* with fake_lock held */
void fake_flush(int device, int scope);
void fake_submit(void);
void fake_move(unsigned char *to, uint64_t at, const unsigned char *from, uint64_t source, uint64_t nbytes, int device);

int fake_enqueue(stream *stream, op op);
void fake_nap_us(int us);
bool fake_forbidden(void); /* by a capture, to this thread */
void fake_wait_for_kernels(void);
void fake_wait_for_all(void); /* and for streams of the context that wait for a word */
void fake_wait_for_the_driver(void); /* fake_cuda_wait_together() */

/* A kernel of the program's runs for so long from now on (0: no more). Some calls of the driver wait for it. */
API fake_cuda_run_kernel(int ms);
API fake_cuda_opened(void);   /* allocations of other processes */
API fake_cuda_imported(void); /* chunks of other processes, so far */
API fake_cuda_chunks(void);   /* that have a handle or a mapping */
API fake_cuda_mapped(void);   /* ... and these, each time that they are mapped */
API fake_cuda_reserved(void); /* addresses for them: how often, and not given back */
API fake_cuda_retained(void); /* primary contexts */
API fake_cuda_launched(void); /* kernels so far */
API fake_cuda_loads(void);    /* of modules, begun so far */
API fake_cuda_handles(void);  /* made so far, for other processes */
API fake_cuda_queued(void);   /* of all streams, and not done */
API fake_cuda_waiting(void);  /* streams that wait for a word */
API fake_cuda_pinned(void);   /* ranges of the host's memory */
API fake_cuda_batches(void);  /* of copies, by one call each, so far */
API fake_cuda_stores(void);   /* of 64 bits by streams, queued so far */
API fake_cuda_hold(int yes);  /* no copy of a stream ends until it is taken back */
API fake_cuda_hold_stores(int yes); /* ... nor store of 64 bits */
/* Streams that wait look every so many ms; and when another one of the context is given a stream memory operation. */
API fake_cuda_doze(int ms);
/* While a thread waits for kernels and streams, copies, launches, pinning and new streams of all others wait with it. */
API fake_cuda_wait_together(int yes);
API fake_cuda_exported(void); /* dma-bufs made so far */
API fake_cuda_flushes(void);  /* of what NICs have written: by calls, so far */
API fake_cuda_flushing_waits(void); /* ... and waits of streams that flush, queued so far */
API fake_cuda_renew(uint64_t pointer); /* as if it had been freed, and given out again */
API fake_cuda_renew_stream(stream *stream); /* likewise: destroyed, and another one made under its handle */
API fake_cuda_open_own(int yes); /* take handles of this process as if they were another's */
API fake_cuda_alias(uint64_t pointer, size_t nbytes, int device, void **alias); /* where a NIC finds that memory */
API fake_cuda_adopt(uint64_t *pointer, void *memory, size_t nbytes); /* the host's is the device's from now on */
API fake_cuda_forget(uint64_t pointer); /* that, once more */

#endif
