/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The ipc provider against a peer that says and writes whatever the input makes it: addresses, hellos,
 * notes and descriptors on the socket, slots and heads in shared memory.
 *
 * What must hold: memory that the peer may not reach is neither changed nor shown; an operation ends once
 * at most, with a status that it can have; a hello is taken if it is right, and only then; closing comes to
 * its end; no descriptor is left. And the rings give back what was put into them. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sanitizer/asan_interface.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "clock.h"
#include "fuzz.h"
#include "ipc_internal.h"

extern const pplx_provider pplx_provider_ipc;
static const pplx_provider *const ipc = &pplx_provider_ipc;

enum {
    SLOTS = 4, /* of both inboxes: few, so that positions go round */
    STAGING = IPC_MIN_STAGING,
    REGION = 2 * IPC_PAGE,
    GUARD = IPC_PAGE,
    OPS = 64,
    MOST_STEPS = 200,
    PATIENCE = 200 /* turns */
};

/* What the victim has registered, and what a peer may do with it. */
enum kind { MAPPED, PLAIN, READABLE, WRITABLE, SECRET, KINDS };
static const uint32_t accesses[KINDS] = {PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE,
                                         PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE, PPLX_ACCESS_REMOTE_READ,
                                         PPLX_ACCESS_REMOTE_WRITE, 0};

static unsigned char memory[KINDS][GUARD + REGION + GUARD]; /* MAPPED lies elsewhere */

typedef struct watched {
    pplx_op op;
    uint64_t nbytes;
    int completions;
} watched;

typedef struct victim {
    pplx_provider_domain *domain;
    pplx_provider_endpoint *endpoint;
    ipc_address address;
    int memfd;
    unsigned char *reserved; /* a guard, MAPPED, a guard */
    unsigned char *arena[KINDS];
    pplx_provider_mr *mr[KINDS];
    uint64_t key[KINDS];
    watched ops[OPS];
    pplx_segment segments[OPS][IPC_MAX_SEGMENTS];
    uint32_t nops;
} victim;

typedef struct attacker {
    uint8_t name[IPC_TOKEN_BYTES];
    ipc_address address;
    int listener, socket;
    bool calls; /* it connects; else the victim does */
    ipc_inbox inbox;  /* its own: the victim's outbox */
    ipc_inbox outbox; /* the victim's inbox, once it is told */
    uint64_t commands, immediates; /* pushed */
    uint64_t acknowledged;         /* of the victim's commands */
    uint64_t message;              /* bytes of one that has not ended */
} attacker;

/* Descriptors that an attacker can pass. */
enum fd_kind { FD_INBOX, FD_NONE, FD_SMALL, FD_UNSEALED, FD_SOCKET, FD_READABLE, FD_KINDS };
static int fds[FD_KINDS];
static void *attackers_inbox;
static size_t inbox_nbytes;
static const unsigned char secret[16] = "what nobody sees";

void fuzz_open(void) {
    inbox_nbytes = ipc_inbox_nbytes(SLOTS, STAGING);
    fds[FD_INBOX] = pplx_ipc_memfd("attacker", inbox_nbytes);
    fds[FD_NONE] = -1;
    fds[FD_SMALL] = pplx_ipc_memfd("attacker", IPC_PAGE);
    fds[FD_UNSEALED] = memfd_create("attacker", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    fds[FD_SOCKET] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    fds[FD_READABLE] = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    HOLDS(fds[FD_INBOX] >= 0 && fds[FD_SMALL] >= 0 && fds[FD_UNSEALED] >= 0 && fds[FD_READABLE] >= 0);
    HOLDS(ftruncate(fds[FD_UNSEALED], (off_t)inbox_nbytes) == 0);
    attackers_inbox = mmap(NULL, inbox_nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[FD_INBOX], 0);
    HOLDS(attackers_inbox != MAP_FAILED);
    for (int i = 0; i < KINDS; i++) {
        ASAN_POISON_MEMORY_REGION(memory[i], GUARD);
        ASAN_POISON_MEMORY_REGION(memory[i] + GUARD + REGION, GUARD);
    }
}

/* ------------------------------------------------------------------ copies */

static const ipc_endpoint *watching; /* the victim's, as long as it is open */

/* What begins in shared memory ends there. The sanitizer knows no mappings. */
static void check_inside(const void *start, uint64_t size, const void *from, size_t nbytes) {
    const unsigned char *first = start, *at = from;
    if (first && at >= first && at < first + size) HOLDS(nbytes <= (size_t)(first + size - at));
}

static void check_copy(const void *at, size_t nbytes) {
    if (!watching) return;
    check_inside(watching->inbox.staging, watching->inbox.staging_nbytes, at, nbytes);
    check_inside(watching->outbox.staging, watching->outbox.staging_nbytes, at, nbytes);
    for (size_t i = 0; i < watching->keys.nbuckets; i++)
        for (const ipc_key *key = watching->keys.buckets[i]; key; key = key->next)
            check_inside(key->mapping, key->mapping_nbytes, at, nbytes);
}

/* The linker puts these before every copy. */
void __real_pplx_ipc_copy(void *to, const void *from, size_t nbytes);
void __wrap_pplx_ipc_copy(void *to, const void *from, size_t nbytes);
void __wrap_pplx_ipc_copy(void *to, const void *from, size_t nbytes) {
    check_copy(to, nbytes);
    check_copy(from, nbytes);
    __real_pplx_ipc_copy(to, from, nbytes);
}

void __real_pplx_ipc_stream(void *to, const void *from, size_t nbytes);
void __wrap_pplx_ipc_stream(void *to, const void *from, size_t nbytes);
void __wrap_pplx_ipc_stream(void *to, const void *from, size_t nbytes) {
    check_copy(to, nbytes);
    check_copy(from, nbytes);
    __real_pplx_ipc_stream(to, from, nbytes);
}

/* ------------------------------------------------------------------ the victim */

static void fill_secret(unsigned char *at) {
    for (size_t i = 0; i < REGION; i += sizeof secret) memcpy(at + i, secret, sizeof secret);
}

/* As an engine allocates it, between pages that nobody may touch. */
static void map_arena(victim *v) {
    v->memfd = memfd_create("victim", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    HOLDS(v->memfd >= 0 && ftruncate(v->memfd, REGION) == 0);
    HOLDS(fcntl(v->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
    v->reserved = mmap(NULL, GUARD + REGION + GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    HOLDS(v->reserved != MAP_FAILED);
    v->arena[MAPPED] = v->reserved + GUARD;
    HOLDS(mmap(v->arena[MAPPED], REGION, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, v->memfd, 0) != MAP_FAILED);
}

static void victim_open(victim *v) {
    static const pplx_option options[] = {{"ring_slots", "4"}, {"staging_nbytes", "65536"}};
    pplx_error error;
    memset(v, 0, sizeof *v);
    HOLDS(ipc->domain_open("host", options, 2, &v->domain, &error) == PPLX_OK);
    map_arena(v);
    for (int i = 0; i < KINDS; i++) {
        pplx_remote_key key;
        if (i != MAPPED) v->arena[i] = memory[i] + GUARD;
        if (i == WRITABLE || i == SECRET)
            fill_secret(v->arena[i]);
        else
            memset(v->arena[i], 0x3c, REGION);
        const pplx_memory about = {
            .device = -1, .address = (uintptr_t)v->arena[i], .nbytes = REGION, .fd = i == MAPPED ? v->memfd : -1};
        HOLDS(ipc->mr_open(v->domain, &about, accesses[i], &v->mr[i], &key, &error) == PPLX_OK);
        v->key[i] = key.key;
    }
    size_t nbytes = sizeof v->address;
    HOLDS(ipc->endpoint_open(v->domain, &v->endpoint, &v->address, &nbytes, &error) == PPLX_OK);
    watching = (const ipc_endpoint *)v->endpoint;
}

static bool may_end_with(int status) {
    switch (status) {
    case PPLX_OK:
    case PPLX_REMOTE_ACCESS:
    case PPLX_LOCAL_ACCESS:
    case PPLX_TRANSPORT:
    case PPLX_CONNECTION:
    case PPLX_PEER_LOST:
    case PPLX_TRUNCATED:
    case PPLX_FLUSHED: return true;
    default: return false;
    }
}

/* What is counted is as much as there is. */
static void check_endpoint(const ipc_endpoint *endpoint) {
    size_t known = 0, asked = 0, unwanted = 0, revoking = 0;
    for (size_t i = 0; i < endpoint->keys.nbuckets; i++) {
        for (const ipc_key *key = endpoint->keys.buckets[i]; key; key = key->next) {
            known++;
            asked += key->state == IPC_KEY_ASKED;
            HOLDS(!key->memory || key->nbytes <= key->mapping_nbytes);
        }
    }
    for (const ipc_export *export = endpoint->exports; export; export = export->endpoint_next) {
        unwanted += export->state == IPC_EXPORT_UNWANTED;
        revoking += export->state == IPC_EXPORT_REVOKED;
    }
    HOLDS(endpoint->immediates_free <= endpoint->outbox.slots);
    HOLDS(endpoint->keys.count == known && endpoint->keys.asked == asked && asked <= IPC_MAX_ASKED);
    HOLDS(endpoint->unwanted == unwanted && endpoint->revoking == revoking && revoking <= IPC_MAX_ASKED);
}

static void victim_polls(victim *v) {
    pplx_completion completions[7];
    const size_t count = ipc->poll(v->domain, completions, 7);
    HOLDS(count <= 7);
    if (watching) check_endpoint(watching);
    for (size_t i = 0; i < count; i++) {
        if (completions[i].kind == PPLX_COMPLETION_IMM) {
            HOLDS(completions[i].op == NULL);
            continue;
        }
        watched *w = (watched *)(void *)completions[i].op;
        HOLDS(w >= v->ops && w < v->ops + v->nops && may_end_with(completions[i].status));
        HOLDS(completions[i].nbytes <= w->nbytes);
        HOLDS(++w->completions == 1);
    }
}

/* As the engine makes them: from two on, none of them empty. Where they lie is anybody's guess. */
static void take_segments(input *in, pplx_work_request *request, pplx_segment *segments) {
    request->nbytes = 0;
    request->nsegments = (uint16_t)(2 + take_u8(in) % (IPC_MAX_SEGMENTS - 1));
    request->segments = segments;
    for (uint32_t i = 0; i < request->nsegments; i++) {
        const uint8_t what = take_u8(in);
        segments[i] = (pplx_segment){.local = what & 0x80 ? take_number(in) : what,
                                     .remote = what & 0x40 ? take_number(in) : what,
                                     .nbytes = 1 + what,
                                     .pages = 1};
        request->nbytes += segments[i].nbytes;
    }
}

static void victim_posts(victim *v, input *in) {
    const uint8_t what = take_u8(in), where = take_u8(in);
    const enum kind from = where & 1 ? MAPPED : PLAIN;
    if (v->nops == OPS) return;
    pplx_work_request request = {
        .op = &v->ops[v->nops].op,
        .opcode = what % 6, /* the last is none */
        .flags = what & 0x40 ? PPLX_WORK_BULK : 0,
        .local_address = (uintptr_t)v->arena[from] + (where & 2 ? take_number(in) : 0),
        .nbytes = what & 0x80 ? take_number(in) : where,
        .local_mr = v->mr[from],
        .remote_address = where & 4 ? take_number(in) : 0,
        .remote_key = 1 + where % 4u,
        .imm = what,
    };
    if (where & 16 && request.opcode <= PPLX_READ) take_segments(in, &request, v->segments[v->nops]);
    if (where & 8 && request.nbytes <= REGION) /* at the very end of it */
        request.local_address = (uintptr_t)v->arena[from] + REGION - request.nbytes;
    v->ops[v->nops].nbytes = request.nbytes;
    size_t posted;
    int32_t native;
    const pplx_status status = ipc->post(v->endpoint, &request, 1, &posted, &native);
    HOLDS(posted == (status == PPLX_OK));
    v->nops += posted != 0;
}

static void victim_sleeps(victim *v) {
    if (ipc->arm(v->domain) == PPLX_OK) HOLDS(ipc->wait_fd(v->domain) >= 0);
}

/* A region that comes and goes: who was told of it has to let go. */
static void victim_registers(victim *v) {
    pplx_provider_mr *mr;
    pplx_remote_key key;
    pplx_error error;
    const pplx_memory about = {
        .device = -1, .address = (uintptr_t)v->arena[MAPPED], .nbytes = IPC_PAGE, .fd = v->memfd};
    if (ipc->mr_open(v->domain, &about, accesses[MAPPED], &mr, &key, &error) != PPLX_OK) return;
    victim_polls(v);
    HOLDS(ipc->mr_close(mr) == PPLX_OK);
}

/* ------------------------------------------------------------------ the attacker */

static void attacker_opens(attacker *a, const victim *v, uint8_t how) {
    memset(a, 0, sizeof *a);
    memset(attackers_inbox, 0, ipc_inbox_staging_at(SLOTS));
    a->inbox = ipc_inbox_at(attackers_inbox, SLOTS, STAGING);
    a->socket = -1;
    a->address = v->address;
    memset(a->address.token, how & 1 ? 0 : 0xff, sizeof a->address.token); /* the smaller one connects */
    HOLDS(pplx_ipc_random(a->name, sizeof a->name));
    a->listener = pplx_ipc_listen(a->name);
    HOLDS(a->listener >= 0);
    memcpy(a->address.listener, a->name, sizeof a->name);
}

/* An address as the control channel brings it. False: it was refused. */
static bool victim_connects(const victim *v, attacker *a, input *in, uint8_t how) {
    pplx_error error;
    ipc_address address = a->address;
    size_t nbytes = sizeof address;
    if (how & 2) {
        unsigned char *bytes = (unsigned char *)&address;
        const size_t at = take_u8(in) % sizeof address;
        bytes[at] ^= take_u8(in);
        if (take_u8(in) % 4 == 0) nbytes = take_u8(in) % sizeof address;
    }
    const bool right = nbytes == sizeof address && memcmp(address.magic, v->address.magic, sizeof address.magic) == 0 &&
                       address.version == IPC_VERSION && address.reserved == 0 &&
                       memcmp(address.token, v->address.token, sizeof address.token) != 0;
    const pplx_status status = ipc->endpoint_connect(v->endpoint, &address, nbytes, &error);
    HOLDS(status == (right ? PPLX_OK : PPLX_INVALID));
    a->address = address;
    a->calls = memcmp(address.token, v->address.token, sizeof address.token) < 0;
    return right;
}

/* By the victim's rules, written down once more. */
static bool is_right(const ipc_hello *hello, uint32_t kind, const attacker *a, const victim *v, size_t nbytes, int fd) {
    bool sizes = hello->slots >= 2 && hello->slots <= 1u << 20 && __builtin_popcount(hello->slots) == 1 &&
                 hello->staging >= 65536 && hello->staging <= 1u << 30 && hello->staging % 4096 == 0;
    const uint64_t needed = sizes ? (uint64_t)ipc_inbox_nbytes(hello->slots, hello->staging) : 0;
    const uint64_t has = fd == fds[FD_INBOX] ? inbox_nbytes : fd == fds[FD_SMALL] ? IPC_PAGE : 0;
    return nbytes == sizeof *hello && hello->kind == kind && hello->version == IPC_VERSION && sizes && fd >= 0 &&
           needed <= has && memcmp(hello->to, v->address.token, sizeof hello->to) == 0 &&
           memcmp(hello->from, a->address.token, sizeof hello->from) == 0;
}

static void alter_hello(ipc_hello *hello, input *in, size_t *nbytes, enum fd_kind *fd) {
    const uint8_t what = take_u8(in);
    if (what & 1) hello->kind = take_u8(in) % 12;
    if (what & 2) hello->version = take_u8(in) % 8;
    if (what & 4) hello->slots = (uint32_t)take_number(in);
    if (what & 8) hello->staging = (uint32_t)take_number(in);
    if (what & 16) hello->flags = take_u32(in);
    const size_t at = take_u8(in) % IPC_TOKEN_BYTES;
    if (what & 32) hello->to[at] ^= take_u8(in);
    if (what & 64) hello->from[at] ^= take_u8(in);
    if (what & 128) *nbytes = take_u8(in) % (sizeof *hello + 1);
    *fd = take_u8(in) % 16 < FD_KINDS ? (enum fd_kind)(take_u8(in) % FD_KINDS) : FD_INBOX;
}

/* They meet, as far as the attacker lets them. True: the victim took its hello. */
static bool meet(victim *v, attacker *a, input *in, uint8_t how) {
    a->socket = a->calls ? pplx_ipc_connect(v->address.listener) : accept(a->listener, NULL, NULL);
    if (a->socket < 0) return false; /* its address led elsewhere */
    struct {
        ipc_hello hello;
        char more[8];
    } message = {
        .hello = {
            .kind = a->calls ? IPC_HELLO : IPC_WELCOME, .version = IPC_VERSION, .slots = SLOTS, .staging = STAGING}};
    const uint32_t kind = message.hello.kind;
    memcpy(message.hello.to, v->address.token, sizeof message.hello.to);
    memcpy(message.hello.from, a->address.token, sizeof message.hello.from);
    size_t nbytes = sizeof message.hello;
    enum fd_kind fd = FD_INBOX;
    if (how & 4) alter_hello(&message.hello, in, &nbytes, &fd);
    if (how & 8) nbytes = sizeof message;
    pplx_ipc_send(a->socket, &message, nbytes, fds[fd]);
    for (int i = 0; i < 4; i++) victim_polls(v);
    const ipc_endpoint *endpoint = (const ipc_endpoint *)v->endpoint;
    const bool right = is_right(&message.hello, kind, a, v, nbytes, fds[fd]);
    HOLDS(right == (endpoint->state == IPC_UP));
    if (!right) return false;
    HOLDS(endpoint->outbox.slots == message.hello.slots && endpoint->outbox.staging_nbytes == message.hello.staging);
    a->outbox = endpoint->inbox; /* as it would map it itself */
    return true;
}

static uint64_t some_key(const victim *v, input *in) {
    const uint8_t which = take_u8(in) % 16;
    return which < KINDS ? v->key[which] : which < 15 ? 1 + which % 4u : take_number(in);
}

/* Say that something lies in the socket; else it is found when the victim next looks there. */
static void announce(const attacker *a) { atomic_fetch_add(&a->inbox.head->news, 1); }

static void send_note(const attacker *a, const victim *v, input *in) {
    const uint8_t what = take_u8(in);
    ipc_note note = {.kind = what % 12, .extent = take_u8(in) % 8, .access = take_u8(in), .key = some_key(v, in)};
    enum fd_kind fd = note.kind == IPC_MAPPED && note.extent == IPC_MAPPABLE ? FD_SMALL : FD_NONE;
    note.nbytes = what & 0x40 ? take_number(in) : IPC_PAGE;
    note.offset = what & 0x80 ? take_number(in) : 0;
    if (what & 0x20) fd = (enum fd_kind)(take_u8(in) % FD_KINDS);
    pplx_ipc_send(a->socket, &note, what & 0x10 ? take_u8(in) % (sizeof note + 1) : sizeof note, fds[fd]);
    announce(a);
}

static void push_command(attacker *a, const victim *v, input *in) {
    const uint8_t what = take_u8(in);
    const ipc_command command = {.kind = what & 0x80 ? take_u32(in) : 1 + what % 3u,
                                 .flags = (what >> 2) & 3,
                                 .key = what & 3 ? some_key(v, in) : take_number(in),
                                 .offset = take_number(in),
                                 .nbytes = take_number(in),
                                 .staging = take_number(in),
                                 .imm = what};
    ipc_push_command(&a->outbox, a->commands++, &command);
}

/* The next piece of a message; its length may be another each time it is named. */
static void push_piece(attacker *a, input *in) {
    const uint8_t what = take_u8(in);
    const ipc_command command = {.kind = IPC_MESSAGE,
                                 .flags = what & IPC_LAST,
                                 .key = what & 2 ? take_number(in) : a->message + take_u8(in),
                                 .offset = a->message,
                                 .nbytes = what >> 2};
    a->message = what & IPC_LAST ? 0 : a->message + command.nbytes;
    ipc_push_command(&a->outbox, a->commands++, &command);
}

static void poke(const ipc_inbox *inbox, size_t nwords, input *in) {
    uint64_t *words = (uint64_t *)(void *)inbox->head;
    uint16_t at;
    take(in, &at, sizeof at);
    __atomic_store_n(&words[at % nwords], take_number(in), __ATOMIC_SEQ_CST);
}

/* Answer whatever lies in its socket, honestly; what it is passed it gives back. */
static void answer(const attacker *a) {
    ipc_note note;
    int fd;
    for (int i = 0; i < IPC_MAX_NOTES; i++) {
        if (pplx_ipc_receive(a->socket, &note, sizeof note, &fd) <= 0) return;
        if (fd >= 0) close(fd);
        ipc_note reply = {.key = note.key};
        fd = -1;
        switch (note.kind) {
        case IPC_MAP:
            reply.kind = IPC_MAPPED;
            reply.extent = note.key % 2 ? IPC_MAPPABLE : IPC_STAGED;
            reply.access = PPLX_ACCESS_REMOTE_READ | PPLX_ACCESS_REMOTE_WRITE;
            reply.nbytes = IPC_PAGE;
            if (reply.extent == IPC_MAPPABLE) fd = fds[FD_SMALL];
            break;
        case IPC_REVOKE: reply.kind = IPC_REVOKED; break;
        case IPC_BYE: reply.kind = IPC_BYE_ACK; break;
        default: continue;
        }
        pplx_ipc_send(a->socket, &reply, sizeof reply, fd);
        announce(a);
    }
}

static void attack(victim *v, attacker *a, input *in) {
    const size_t rings = ipc_inbox_staging_at(SLOTS) / sizeof(uint64_t), head = sizeof(ipc_head) / sizeof(uint64_t);
    for (int step = 0; step < MOST_STEPS && in->left; step++) {
        const uint8_t what = take_u8(in) % 17;
        if (what < 3 && a->socket < 0) break;
        switch (what) {
        case 0:
        case 1: send_note(a, v, in); break;
        case 2: {
            unsigned char bytes[sizeof(ipc_note) + 8];
            const size_t nbytes = take_u8(in) % (sizeof bytes + 1);
            take(in, bytes, nbytes);
            pplx_ipc_send(a->socket, bytes, nbytes, fds[take_u8(in) % FD_KINDS]);
            break;
        }
        case 3: push_command(a, v, in); break;
        case 4: push_piece(a, in); break;
        case 5: ipc_push_immediate(&a->outbox, a->immediates++, take_u32(in)); break;
        case 6: poke(&a->outbox, rings, in); break;
        case 7: poke(&a->inbox, head, in); break;
        case 8:
            if (a->socket >= 0) answer(a);
            break;
        case 9:
        case 10: victim_polls(v); break;
        case 11:
        case 12: victim_posts(v, in); break;
        case 13: victim_sleeps(v); break;
        case 14: ipc_acknowledge(&a->inbox, a->acknowledged++, take_number(in)); break;
        case 15: clock_advance((uint64_t)take_u8(in) * 1000000); break;
        default:
            if (take_u8(in) % 8) {
                victim_registers(v);
            } else if (a->socket >= 0) {
                close(a->socket);
                a->socket = -1;
            }
        }
    }
}

/* ------------------------------------------------------------------ the end */

static void close_all(victim *v, attacker *a, bool honest) {
    pplx_status status;
    for (int i = 0; (status = ipc->endpoint_close(v->endpoint)) == PPLX_UNRELEASED; i++) {
        HOLDS(i < PATIENCE);
        if (honest && a->socket >= 0) answer(a);
        victim_polls(v);
        clock_advance(IPC_FENCE_NS / 16);
    }
    HOLDS(status == PPLX_OK);
    watching = NULL;
    for (uint32_t i = 0; i < v->nops; i++) v->ops[i].completions = 1; /* none of them comes any more */
    victim_polls(v);
    for (int i = 0; i < KINDS; i++) HOLDS(ipc->mr_close(v->mr[i]) == PPLX_OK);
    ipc->domain_close(v->domain);
    munmap(v->reserved, GUARD + REGION + GUARD);
    close(v->memfd);
    if (a->socket >= 0) close(a->socket);
    close(a->listener);
}

static void check_memory(const victim *v, const attacker *a) {
    for (size_t i = 0; i < REGION; i++) HOLDS(v->arena[READABLE][i] == 0x3c);
    for (size_t i = 0; i < REGION; i += sizeof secret) HOLDS(memcmp(v->arena[SECRET] + i, secret, sizeof secret) == 0);
    if (a->outbox.staging) HOLDS(!memmem(a->outbox.staging, a->outbox.staging_nbytes, secret, sizeof secret));
}

/* What is put into a ring comes out of it, once, and at its turn only. */
static void check_rings(input *in) {
    static _Alignas(IPC_PAGE) unsigned char bytes[IPC_PAGE * 16];
    memset(bytes, 0, sizeof bytes);
    const ipc_inbox inbox = ipc_inbox_at(bytes, 2u << take_u8(in) % 6, STAGING);
    HOLDS(ipc_inbox_staging_at(inbox.slots) <= sizeof bytes);
    const uint64_t at = take_number(in);
    ipc_command put, got;
    take(in, &put, sizeof put);
    ipc_push_command(&inbox, at, &put);
    HOLDS(ipc_peek_command(&inbox, at, &got) && memcmp(&put, &got, sizeof put) == 0);
    HOLDS(!ipc_peek_command(&inbox, at + IPC_COMMANDS, &got));
    uint32_t imm, seen;
    imm = take_u32(in);
    ipc_push_immediate(&inbox, at, imm);
    HOLDS(ipc_peek_immediate(&inbox, at, &seen) && seen == imm);
    HOLDS(!ipc_peek_immediate(&inbox, at + inbox.slots, &seen));
    const int stream = take_u8(in) % IPC_STREAMS;
    atomic_store_explicit(ipc_stream_slot(&inbox, stream, at), ipc_immediate_slot(at, imm), memory_order_relaxed);
    HOLDS(ipc_peek_stream(&inbox, stream, at, &seen) && seen == imm);
    HOLDS(!ipc_peek_stream(&inbox, stream, at + IPC_STREAM_SLOTS, &seen));
}

/* Of every size that passes, each part has room and is apart from the others. */
static void check_sizes(input *in) {
    const uint32_t slots = (uint32_t)take_number(in), staging = (uint32_t)take_number(in);
    if (!ipc_inbox_sizes_valid(slots, staging)) return;
    const ipc_inbox inbox = ipc_inbox_at((void *)IPC_PAGE, slots, staging);
    const uintptr_t start = IPC_PAGE;
    HOLDS((uintptr_t)inbox.immediates >= start + sizeof(ipc_head));
    HOLDS((uintptr_t)inbox.commands >= (uintptr_t)(inbox.immediates + slots));
    HOLDS((uintptr_t)inbox.commands % IPC_LINE == 0);
    HOLDS((uintptr_t)inbox.streams >= (uintptr_t)(inbox.commands + IPC_COMMANDS));
    HOLDS((uintptr_t)inbox.streams % IPC_PAGE == 0);
    HOLDS((uintptr_t)inbox.staging >= (uintptr_t)(inbox.streams + IPC_STREAMS * IPC_STREAM_SLOTS));
    HOLDS((uintptr_t)inbox.staging % IPC_PAGE == 0);
    HOLDS((uintptr_t)inbox.staging + staging == start + inbox.nbytes);
}

static int count_descriptors(void) {
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    HOLDS(directory);
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

void fuzz_one(const uint8_t *data, size_t nbytes) {
    static victim v;
    input in = {data, nbytes};
    attacker a;
    const uint8_t how = take_u8(&in);
    if (how >= 0xf0) {
        check_sizes(&in);
        check_rings(&in);
        return;
    }
    const int open = count_descriptors();
    victim_open(&v);
    attacker_opens(&a, &v, how);
    if (victim_connects(&v, &a, &in, how) && meet(&v, &a, &in, how)) attack(&v, &a, &in);
    victim_polls(&v);
    check_memory(&v, &a);
    close_all(&v, &a, how & 16);
    HOLDS(count_descriptors() == open);
}
