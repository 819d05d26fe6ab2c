/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What two processes of the ipc provider share: an address, messages over a unix socket, and an
 * inbox in shared memory. All of it is hostile input for the side that reads it.
 *
 * An inbox belongs to the endpoint that receives through it, and is mapped by its peer:
 *
 *   head       what the owner tells: is it asleep, has it news on the socket, how far has it read
 *   immediates a ring of 64-bit slots; see ipc_ring.h
 *   commands   a ring of 64-byte slots: what the owner is asked to copy, and how that went
 *   streams    rings of 64-bit slots as well, one for each stream of a GPU that copies for the peer and then
 *              stores the immediate itself; see ipc_cuda.c
 *   staging    bytes on their way, named by commands, used as a ring too
 *
 * Nothing in it is a pointer, and a reader never trusts a value twice: it copies a slot out, then
 * checks the copy. */
#ifndef PPLX_CSRC_IPC_WIRE_H
#define PPLX_CSRC_IPC_WIRE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    IPC_VERSION = 5,
    IPC_TOKEN_BYTES = 16,
    IPC_LINE = 64,          /* cache line: what different threads write is kept apart by it */
    IPC_PAGE = 4096,        /* alignment inside an inbox */
    IPC_COMMANDS = 256,     /* slots of the command ring */
    IPC_STREAMS = 4,
    IPC_STREAM_SLOTS = 1024, /* of one stream's ring */
    IPC_MIN_SLOTS = 2,
    IPC_MAX_SLOTS = 1 << 20,
    IPC_MIN_STAGING = 64 << 10,
    IPC_MAX_STAGING = 1 << 30
};

/* An endpoint's address. Both names are random: who knows them was told, and nobody can take them first. */
typedef struct ipc_address {
    char magic[8];
    uint32_t version;
    uint32_t reserved;
    uint8_t listener[IPC_TOKEN_BYTES]; /* of the domain's socket, in the abstract namespace */
    uint8_t token[IPC_TOKEN_BYTES];    /* of the endpoint; the smaller of the two connects */
} ipc_address;

/* ---- over the socket (SOCK_SEQPACKET: a message is received whole or not at all) ---- */

enum ipc_kind {
    IPC_HELLO = 1, /* ipc_hello with the sender's inbox: the side that connects, first of all */
    IPC_WELCOME,   /* ipc_hello with the sender's inbox: the answer; the connection stands */
    IPC_MAP,       /* what is `key`? */
    IPC_MAPPED,    /* the answer: `extent`, and for IPC_MAPPABLE the memfd, for IPC_CHUNKED all descriptors */
    IPC_REVOKE,    /* let go of `key` */
    IPC_REVOKED,   /* the answer: it is not mapped any more */
    IPC_WAKE,      /* you were asleep: look at your inbox */
    IPC_BYE,       /* the endpoint closes: it has let go of everything, and so should you */
    IPC_BYE_ACK    /* the answer */
};

enum ipc_extent {
    IPC_NO_KEY = 0,   /* no such region */
    IPC_STAGED = 1,   /* reached by commands only */
    IPC_MAPPABLE = 2, /* a piece of the memfd that comes with it */
    IPC_LATER = 3,    /* let go of it first, as told: ask again */
    IPC_ADDRESSED = 4, /* `offset` is its address in the sender's process: ipc_direct.c */
    IPC_DEVICE = 5,    /* memory of a GPU, `offset` from where `device` starts: ipc_cuda.c */
    IPC_CHUNKED = 6    /* the same, and `device` is `chunks` pieces of one size, in a row: cuda_virtual.h */
};

enum {
    IPC_MAX_ASKED = 16, /* unanswered MAPs of one endpoint, and unanswered REVOKEs: with these limits
                         * a socket's buffer holds all that a peer may send, and nobody waits for room */
    IPC_MAX_NOTES = 64  /* messages read at one look */
};

enum ipc_hello_flags {
    IPC_TRUSTS = 1 /* the sender takes part in what ipc_direct.c does, if the other does too */
};

typedef struct ipc_hello {
    uint32_t kind;
    uint32_t version;
    uint32_t slots;   /* of the immediate ring in the sender's inbox */
    uint32_t staging; /* bytes of its staging area */
    uint32_t flags;   /* enum ipc_hello_flags */
    uint32_t reserved;
    uint8_t to[IPC_TOKEN_BYTES];
    uint8_t from[IPC_TOKEN_BYTES];
} ipc_hello;

/* An allocation on a GPU, as another process opens it. */
typedef struct ipc_device_memory {
    uint8_t handle[64];  /* CUipcMemHandle */
    uint64_t nbytes;     /* of the allocation */
    uint64_t address;    /* of its first byte in the process that has it */
} ipc_device_memory;

typedef struct ipc_note {
    uint32_t kind;
    uint32_t extent;
    uint32_t access; /* enum pplx_access */
    uint32_t chunks; /* MAPPED, IPC_CHUNKED: so many descriptors come along */
    uint64_t key;
    uint64_t offset; /* in the memfd; IPC_ADDRESSED: in the process */
    uint64_t nbytes;
    ipc_device_memory device; /* MAPPED, IPC_DEVICE; IPC_CHUNKED, without a handle */
} ipc_note;

/* ---- in shared memory ---- */

/* What a sleeping owner wants to be woken for. */
enum ipc_wake {
    IPC_WAKE_ARRIVAL = 1, /* an immediate, a command, an acknowledgement, news */
    IPC_WAKE_ROOM = 2     /* the peer has taken an immediate, or posted a receive */
};

typedef struct ipc_head {
    /* Changes rarely, is read at each post. */
    atomic_uint wake; /* enum ipc_wake: set by the owner before it sleeps, taken off by who wakes it */
    atomic_uint news; /* owner: grows when a message lies in the peer's socket that can't wait */
    atomic_uint waker; /* who took `wake` off: its CPU, counted from 1 */
    char pad0[IPC_LINE - 3 * sizeof(atomic_uint)];
    /* Owner: progress. */
    _Atomic uint64_t immediates; /* read so far: the slots before it are free again */
    _Atomic uint64_t commands;   /* executed so far: their results lie in their slots */
    _Atomic uint64_t receives;   /* RECVs ever posted: so many SENDs may come */
    char pad1[IPC_LINE - 3 * sizeof(_Atomic uint64_t)];
    _Atomic uint64_t streams[IPC_STREAMS]; /* owner: immediates read so far, as above */
    atomic_uint streaming;                 /* producer: not 0 once it has used one of them */
    char pad2[IPC_LINE - IPC_STREAMS * sizeof(_Atomic uint64_t) - sizeof(atomic_uint)];
} ipc_head;

enum ipc_command_kind { IPC_COPY_IN = 1, IPC_COPY_OUT = 2, IPC_MESSAGE = 3 };
enum ipc_command_flags {
    IPC_LAST = 1,     /* of its work request */
    IPC_IMMEDIATE = 2 /* `imm` is to be delivered after the copy */
};

typedef struct ipc_command {
    uint32_t kind;
    uint32_t flags;
    uint64_t key;     /* of the region; of a message: its bytes, all pieces */
    uint64_t offset;  /* in the region; of a message: of this piece in it */
    uint64_t nbytes;  /* of this piece */
    uint64_t staging; /* where the piece lies in the staging area, or is to be put */
    uint32_t imm;
    uint32_t reserved;
} ipc_command;

/* The command as words, since a slot is copied while a hostile peer may write to it. */
enum { IPC_COMMAND_WORDS = sizeof(ipc_command) / sizeof(uint64_t) };

typedef struct ipc_slot {
    _Atomic uint64_t turn; /* producer: position + 1 when the command is complete */
    _Atomic uint64_t words[IPC_COMMAND_WORDS]; /* producer */
    _Atomic uint64_t result;                   /* owner: pplx_status, before it moves head->commands */
} ipc_slot;

_Static_assert(sizeof(ipc_head) == 3 * IPC_LINE && sizeof(ipc_slot) == IPC_LINE, "laid out by cache lines");
_Static_assert(sizeof(ipc_command) == IPC_COMMAND_WORDS * sizeof(uint64_t), "a command is whole words");

/* An inbox as this process has it mapped. */
typedef struct ipc_inbox {
    ipc_head *head;
    _Atomic uint64_t *immediates;
    ipc_slot *commands;
    _Atomic uint64_t *streams; /* IPC_STREAMS times IPC_STREAM_SLOTS, whole pages */
    unsigned char *staging;
    uint32_t slots;
    uint32_t staging_nbytes;
    size_t nbytes;
} ipc_inbox;

static inline size_t ipc_round_up(size_t nbytes, size_t unit) { return (nbytes + unit - 1) / unit * unit; }

static const size_t IPC_STREAMS_NBYTES = IPC_STREAMS * IPC_STREAM_SLOTS * sizeof(uint64_t);

static inline size_t ipc_inbox_streams_at(uint32_t slots) {
    return ipc_round_up(sizeof(ipc_head) + slots * sizeof(uint64_t) + IPC_COMMANDS * sizeof(ipc_slot) + IPC_LINE,
                        IPC_PAGE);
}

static inline size_t ipc_inbox_staging_at(uint32_t slots) { return ipc_inbox_streams_at(slots) + IPC_STREAMS_NBYTES; }

static inline bool ipc_inbox_sizes_valid(uint32_t slots, uint32_t staging) {
    return slots >= IPC_MIN_SLOTS && slots <= IPC_MAX_SLOTS && (slots & (slots - 1)) == 0 &&
           staging >= IPC_MIN_STAGING && staging <= IPC_MAX_STAGING && staging % IPC_PAGE == 0;
}

static inline size_t ipc_inbox_nbytes(uint32_t slots, uint32_t staging) {
    return ipc_inbox_staging_at(slots) + staging;
}

static inline ipc_inbox ipc_inbox_at(void *memory, uint32_t slots, uint32_t staging) {
    unsigned char *bytes = memory;
    size_t commands_at = ipc_round_up(sizeof(ipc_head) + slots * sizeof(uint64_t), IPC_LINE);
    return (ipc_inbox){
        .head = (ipc_head *)memory,
        .immediates = (_Atomic uint64_t *)(void *)(bytes + sizeof(ipc_head)),
        .commands = (ipc_slot *)(void *)(bytes + commands_at),
        .streams = (_Atomic uint64_t *)(void *)(bytes + ipc_inbox_streams_at(slots)),
        .staging = bytes + ipc_inbox_staging_at(slots),
        .slots = slots,
        .staging_nbytes = staging,
        .nbytes = ipc_inbox_nbytes(slots, staging),
    };
}

#endif
