/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Plain structs that providers, the engine and other C or C++ code share. */
#ifndef PPLX_ASYNC_TYPES_H
#define PPLX_ASYNC_TYPES_H

#include <stddef.h>
#include <stdint.h>

#include "pplx_async/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PPLX_MAX_DOMAINS = 9,    /* of one engine: 8 NICs and the host itself */
    PPLX_MAX_LINKS = 8,      /* of one peer: a write is counted in eighths */
    PPLX_ADDRESS_BYTES = 128, /* longest endpoint address */
    PPLX_TEXT_BYTES = 256,   /* messages and descriptions, terminating zero included */
    PPLX_NAME_BYTES = 64
};

/* Why a call failed, for humans. Filled by the callee whenever it returns anything but PPLX_OK or
 * PPLX_AGAIN; `provider_error` is the native code (errno, fi_errno, ibv_wc_status), 0 if none. */
typedef struct pplx_error {
    pplx_status status;
    int32_t provider_error;
    char text[PPLX_TEXT_BYTES];
} pplx_error;

/* Provider options as text, so that a provider outside the tree needs no struct of ours.
 * Unknown keys are an error (PPLX_INVALID): a misspelt option never passes silently. */
typedef struct pplx_option {
    const char *key;
    const char *value;
} pplx_option;

/* One NIC, as `discover` finds it. */
typedef struct pplx_device {
    char name[PPLX_NAME_BYTES];        /* what domain_open takes: "lo", "rdmap0s6", "mlx5_0" */
    char provider[PPLX_NAME_BYTES];    /* what moves the bytes: "tcp", "efa", "loopback" */
    char address[PPLX_NAME_BYTES];     /* where it listens, readable: "127.0.0.1" */
    char description[PPLX_TEXT_BYTES]; /* library, version, why it was chosen or refused */
    uint64_t bits_per_second;          /* link speed, 0 if unknown */
} pplx_device;

enum pplx_access {
    PPLX_ACCESS_LOCAL = 0, /* source of writes and target of reads of our own */
    PPLX_ACCESS_REMOTE_READ = 1,
    PPLX_ACCESS_REMOTE_WRITE = 2
};

enum pplx_memory_kind {
    PPLX_MEMORY_HOST = 0,
    PPLX_MEMORY_CUDA = 1,  /* `address` is a device pointer */
    PPLX_MEMORY_DMABUF = 2 /* `fd` and `fd_offset`; `address` as the GPU sees it */
};

/* Memory to be registered.
 *
 * Host memory may lie in a memfd, sealed against shrinking and growing, that is mapped whole with
 * byte `fd_offset` at `address`: then `fd` names it, else it is -1. Peers of the same host may get a
 * descriptor of it, and with that all of the memfd, so it holds one allocation. The descriptor stays
 * open as long as the memory is registered. A provider that has to take the pages away from a peer
 * maps them privately, in place, and makes `fd` a descriptor of an empty memfd. */
typedef struct pplx_memory {
    uint32_t kind; /* enum pplx_memory_kind */
    int32_t device; /* CUDA ordinal; -1 for host memory */
    uint64_t address;
    uint64_t nbytes;
    int32_t fd;
    uint32_t reserved;
    uint64_t fd_offset;
} pplx_memory;

/* What a peer needs to reach registered memory through one domain. */
typedef struct pplx_remote_key {
    uint64_t key;  /* rkey */
    uint64_t base; /* remote address of byte 0: a virtual address, or 0 where the provider wants offsets */
} pplx_remote_key;

/* In place of the key of a NIC that does not reach the memory; no provider makes such a key. */
static const uint64_t PPLX_NO_KEY = UINT64_MAX;

/* An operation in flight, as the provider sees it. `scratch` belongs to the provider from post to
 * completion (libfabric's fi_context2 lives there); the engine's own part follows behind it. */
typedef struct pplx_op {
    void *scratch[8];
} pplx_op;

enum pplx_opcode {
    PPLX_WRITE = 0,     /* one-sided; completes here when the bytes are visible at the peer */
    PPLX_WRITE_IMM = 1, /* the same, and delivers `imm` there, after its own bytes */
    PPLX_READ = 2,      /* one-sided; remote -> local */
    PPLX_SEND = 3,      /* two-sided: into the oldest RECV of the peer's endpoint */
    PPLX_RECV = 4
};

enum pplx_work_flag {
    PPLX_WORK_BULK = 1 /* a hint: of a request that is larger than a core's caches, so nobody reads it there */
};

/* One contiguous piece: a write, or a run of `pages` adjacent pages. */
typedef struct pplx_segment {
    uint64_t local;  /* offset in the local region */
    uint64_t remote; /* offset in the remote region */
    uint64_t nbytes;
    uint64_t pages; /* counts this much: 1 for a plain write */
} pplx_segment;

/* One unit of work for one NIC. An immediate alone is a PPLX_WRITE_IMM of 0 bytes, and like every
 * write it names valid local memory and a valid remote address and key (EFA insists).
 *
 * Of several segments (pplx_caps.max_segments at most) it says where the first one lies, and the others lie as far from
 * that as their offsets do; `nbytes` is the sum, and none of them is empty. */
typedef struct pplx_work_request {
    pplx_op *op; /* comes back in the completion; valid until then */
    uint64_t local_address;
    uint64_t nbytes;
    struct pplx_provider_mr *local_mr;
    uint64_t remote_address; /* pplx_remote_key.base + offset */
    uint64_t remote_key;
    uint8_t opcode;      /* enum pplx_opcode */
    uint8_t flags;       /* enum pplx_work_flag */
    uint16_t nsegments;  /* 0; or several, a write or read of each, which ends as one */
    uint32_t imm;
    const pplx_segment *segments; /* see above; valid until it ends */
} pplx_work_request;

enum pplx_completion_kind {
    PPLX_COMPLETION_OP = 0, /* a work request of ours ended; `op` says which */
    PPLX_COMPLETION_IMM = 1 /* a peer's immediate arrived; `op` is NULL, its bytes are in memory; a `status` other
                             * than PPLX_OK: it came from nobody that the provider knows */
};

typedef struct pplx_completion {
    pplx_op *op;
    uint32_t kind; /* enum pplx_completion_kind */
    int32_t status; /* pplx_status */
    int32_t provider_error; /* the native code behind `status` */
    uint32_t imm;
    uint64_t nbytes; /* RECV: bytes received; otherwise 0 */
    /* IMM: our endpoint to the peer that it came from, for comparing only, since that may be closed by now.
     * NULL: the provider can't tell. Then any peer could hit any counter. */
    const struct pplx_provider_endpoint *source;
} pplx_completion;

/* The 32-bit immediate: 20 bits of counter id, 12 bits of weight.
 *
 * The weight says how much of a logical write this immediate stands for, and the counter adds in
 * eighths, so that 1, 2, 4 or 8 shards add up to exactly one:
 *   code 1..4093  that many whole writes (a run of coalesced pages)
 *   code 4094     one half       code 4095  one quarter       code 0  one eighth
 *
 * A limit of it: a sender that dies in the middle of a sharded write leaves a fraction on the counter.
 * Where several senders share one, such fractions of different writes can add up to a whole that no
 * write has filled. With a counter for each sender they can't: it sends no more once it is dead. */
enum {
    PPLX_COUNTER_BITS = 20,
    PPLX_MAX_COUNTERS = 1 << PPLX_COUNTER_BITS,
    PPLX_WEIGHT_MASK = 0xfff,
    PPLX_MAX_RUN = 4093,
    PPLX_EIGHTHS = 8 /* of one logical write */
};

/* Immediate for `eighths` (8 m for m whole writes, m <= PPLX_MAX_RUN; or 4, 2, 1). */
static inline uint32_t pplx_imm_encode(uint32_t counter, uint32_t eighths) {
    uint32_t code = eighths == 4 ? 4094 : eighths == 2 ? 4095 : eighths == 1 ? 0 : eighths / PPLX_EIGHTHS;
    return counter << 12 | code;
}

static inline uint32_t pplx_imm_counter(uint32_t imm) { return imm >> 12; }

static inline uint32_t pplx_imm_eighths(uint32_t imm) {
    uint32_t code = imm & PPLX_WEIGHT_MASK;
    return code == 0 ? 1 : code == 4095 ? 2 : code == 4094 ? 4 : code * PPLX_EIGHTHS;
}

#ifdef __cplusplus
}
#endif
#endif
