/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A whole provider in one file, built outside the core from <pplx_async/provider.h> alone: proof
 * that the header is enough, and a start for one's own. One device, "tiny0", reaches whatever
 * is in the process. post() copies at once, so nothing but a SEND is ever in flight. No wait fd: the
 * engine polls it on a timer. One lock for everything; a pointer to an endpoint is its address. */
#include <pplx_async/provider.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

enum { QUEUE = 256, INFLIGHT = 128 }; /* QUEUE: completions of one endpoint that were not polled yet */

typedef struct queue {
    uint32_t head, count;
    pplx_completion slots[QUEUE];
} queue;

typedef struct mr {
    struct mr *next;
    struct domain *domain;
    uint64_t key, address, nbytes;
    uint32_t access;
} mr;

typedef struct works {
    uint32_t head, count;
    pplx_work_request slots[INFLIGHT];
} works;

typedef struct endpoint {
    struct endpoint *next, *peer; /* peer stays NULL until named */
    struct domain *domain;
    works sends, receives; /* SENDs that wait for a RECV, RECVs that wait for a SEND */
    queue queue;
    int lost; /* its peer was closed */
} endpoint;

typedef struct domain {
    int unused;
} domain;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static endpoint *endpoints; /* all of the process; under the lock, as everything is */
static mr *mrs;

static pplx_status fail(pplx_error *error, pplx_status status, const char *text) {
    *error = (pplx_error){.status = status};
    snprintf(error->text, sizeof error->text, "%s", text);
    return status;
}

static pplx_status tiny_discover(const pplx_option *options, size_t noptions, pplx_device *devices, size_t capacity,
                                 size_t *count, pplx_error *error) {
    for (size_t i = 0; i < noptions; i++)
        if (strcmp(options[i].key, "node") != 0) return fail(error, PPLX_INVALID, "tiny has no option but 'node'");
    if (capacity > 0) devices[0] = (pplx_device){"tiny0", "tiny", "in-process", "the smallest provider", 0};
    *count = 1;
    return PPLX_OK;
}

static pplx_status tiny_domain_open(const char *device, const pplx_option *options, size_t noptions,
                                    pplx_provider_domain **out, pplx_error *error) {
    size_t count;
    pplx_status status = tiny_discover(options, noptions, NULL, 0, &count, error);
    if (status != PPLX_OK) return status;
    if (strcmp(device, "tiny0") != 0) return fail(error, PPLX_UNAVAILABLE, "tiny has one device, tiny0");
    *out = calloc(1, sizeof(domain));
    return *out ? PPLX_OK : fail(error, PPLX_NO_MEMORY, "no memory for a domain");
}

static void tiny_domain_close(pplx_provider_domain *handle) { free(handle); }

static void tiny_domain_caps(pplx_provider_domain *handle, pplx_caps *caps) {
    (void)handle;
    *caps = (pplx_caps){.flags = PPLX_CAP_READ | PPLX_CAP_FENCE,
                        .max_inflight = INFLIGHT,
                        .max_inflight_bytes = 1 << 30,
                        .max_message = 1 << 20,
                        .eager_posts = 8,
                        .posts_per_turn = 32,
                        .description = "tiny, in process"};
}

static pplx_status tiny_endpoint_open(pplx_provider_domain *handle, pplx_provider_endpoint **out, void *address,
                                      size_t *nbytes, pplx_error *error) {
    if (*nbytes < sizeof(endpoint *)) return fail(error, PPLX_INVALID, "no room for an address");
    endpoint *self = calloc(1, sizeof *self);
    if (!self) return fail(error, PPLX_NO_MEMORY, "no memory for an endpoint");
    self->domain = (domain *)handle;
    pthread_mutex_lock(&lock);
    self->next = endpoints;
    endpoints = self;
    pthread_mutex_unlock(&lock);
    memcpy(address, &self, sizeof self);
    *nbytes = sizeof self;
    *out = (pplx_provider_endpoint *)self;
    return PPLX_OK;
}

static pplx_status tiny_endpoint_connect(pplx_provider_endpoint *handle, const void *address, size_t nbytes,
                                         pplx_error *error) {
    endpoint *self = (endpoint *)handle, *named, *peer;
    if (nbytes != sizeof named) return fail(error, PPLX_INVALID, "not an address");
    memcpy(&named, address, sizeof named);
    pthread_mutex_lock(&lock);
    int connected = self->peer || self->lost;
    for (peer = endpoints; peer && peer != named; peer = peer->next) continue; /* hostile: compare, never follow */
    if (!connected) self->peer = peer;
    pthread_mutex_unlock(&lock);
    if (connected) return fail(error, PPLX_INVALID, "the endpoint is connected already");
    return peer ? PPLX_OK : fail(error, PPLX_PEER_LOST, "there is no such endpoint");
}

static pplx_status tiny_endpoint_close(pplx_provider_endpoint *handle) {
    endpoint *self = (endpoint *)handle;
    pthread_mutex_lock(&lock);
    for (endpoint **at = &endpoints; *at;) {
        endpoint *other = *at;
        if (other->peer == self) other->peer = NULL, other->lost = 1;
        if (other == self)
            *at = self->next;
        else
            at = &other->next;
    }
    pthread_mutex_unlock(&lock);
    free(self); /* with its completions: none is reported any more */
    return PPLX_OK;
}

static pplx_status tiny_mr_open(pplx_provider_domain *handle, const pplx_memory *memory, uint32_t access,
                                pplx_provider_mr **out, pplx_remote_key *key, pplx_error *error) {
    if (memory->kind != PPLX_MEMORY_HOST) return fail(error, PPLX_UNSUPPORTED, "tiny registers host memory only");
    mr *self = malloc(sizeof *self);
    uint64_t random;
    if (!self || getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random) {
        free(self);
        return fail(error, PPLX_NO_MEMORY, "no memory for a region, or no random key");
    }
    *self = (mr){NULL, (domain *)handle, random, memory->address, memory->nbytes, access};
    pthread_mutex_lock(&lock);
    self->next = mrs;
    mrs = self;
    pthread_mutex_unlock(&lock);
    *key = (pplx_remote_key){self->key, self->address};
    *out = (pplx_provider_mr *)self;
    return PPLX_OK;
}

static pplx_status tiny_mr_close(pplx_provider_mr *handle) {
    pthread_mutex_lock(&lock); /* copies are made under it, so none is running */
    mr **at = &mrs;
    while (*at != (mr *)handle) at = &(*at)->next;
    *at = (*at)->next;
    pthread_mutex_unlock(&lock);
    free(handle);
    return PPLX_OK;
}

static int covers(const mr *region, uint64_t address, uint64_t nbytes) {
    return region && address >= region->address && nbytes <= region->nbytes &&
           address - region->address <= region->nbytes - nbytes;
}

/* NULL once closed: a SEND or RECV that waited must not follow a dangling pointer. */
static const mr *find_mr(const pplx_provider_mr *handle) {
    mr *region = mrs;
    while (region && region != (const mr *)handle) region = region->next;
    return region;
}

static int local_valid(const endpoint *self, const pplx_work_request *request) {
    const mr *region = find_mr(request->local_mr);
    return covers(region, request->local_address, request->nbytes) && region->domain == self->domain;
}

static void complete(endpoint *self, pplx_op *op, pplx_status status, uint32_t imm, uint64_t nbytes) {
    queue *queue = &self->queue;
    queue->slots[(queue->head + queue->count++) % QUEUE] = (pplx_completion){
        .op = op,
        .kind = op ? PPLX_COMPLETION_OP : PPLX_COMPLETION_IMM,
        .status = (int32_t)status,
        .imm = imm,
        .nbytes = nbytes,
        .source = op ? NULL : (const pplx_provider_endpoint *)self};
}

static void copy(uint64_t to, uint64_t from, uint64_t nbytes) {
    if (nbytes > 0) memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, (size_t)nbytes);
}

static pplx_work_request take(works *works) {
    pplx_work_request request = works->slots[works->head];
    works->head = (works->head + 1) % INFLIGHT;
    works->count--;
    return request;
}

/* SENDs of ours meet RECVs of the peer's. */
static void match(endpoint *from, endpoint *to) {
    while (from->sends.count > 0 && to->receives.count > 0 && from->queue.count < QUEUE / 2 &&
           to->queue.count < QUEUE / 2) {
        pplx_work_request send = take(&from->sends);
        if (!local_valid(from, &send)) {
            complete(from, send.op, PPLX_LOCAL_ACCESS, 0, 0);
            continue;
        }
        pplx_work_request receive = take(&to->receives);
        pplx_status status = !local_valid(to, &receive)     ? PPLX_LOCAL_ACCESS
                             : send.nbytes > receive.nbytes ? PPLX_TRUNCATED
                                                            : PPLX_OK;
        if (status == PPLX_OK) copy(receive.local_address, send.local_address, send.nbytes);
        complete(to, receive.op, status, 0, status == PPLX_OK ? send.nbytes : 0);
        complete(from, send.op, PPLX_OK, 0, 0);
    }
}

static pplx_status run_one_sided(endpoint *self, const pplx_work_request *request) {
    uint32_t access = request->opcode == PPLX_READ ? PPLX_ACCESS_REMOTE_READ : PPLX_ACCESS_REMOTE_WRITE;
    mr *remote = mrs;
    if (!local_valid(self, request)) return PPLX_LOCAL_ACCESS;
    while (remote && (remote->key != request->remote_key || remote->domain != self->peer->domain))
        remote = remote->next;
    if (!(covers(remote, request->remote_address, request->nbytes) && (remote->access & access)))
        return PPLX_REMOTE_ACCESS;
    if (request->opcode == PPLX_READ)
        copy(request->local_address, request->remote_address, request->nbytes);
    else
        copy(request->remote_address, request->local_address, request->nbytes);
    if (request->opcode == PPLX_WRITE_IMM) complete(self->peer, NULL, PPLX_OK, request->imm, 0);
    return PPLX_OK;
}

/* Holding the lock. */
static pplx_status post_one(endpoint *self, const pplx_work_request *request) {
    endpoint *peer = self->peer;
    int receive = request->opcode == PPLX_RECV;
    works *works = receive ? &self->receives : &self->sends;
    if (request->opcode > PPLX_RECV || !request->op) return PPLX_INVALID;
    if (!receive && request->nbytes > 1 << 20) return PPLX_TOO_LARGE;
    if (self->queue.count >= QUEUE / 2) return PPLX_AGAIN; /* half for what we post, half for what arrives */
    if (self->lost && !receive) {
        complete(self, request->op, PPLX_PEER_LOST, 0, 0);
        return PPLX_OK;
    }
    if (!receive && !(peer && peer->peer == self)) return PPLX_AGAIN;
    if (receive || request->opcode == PPLX_SEND) {
        if (works->count == INFLIGHT) return PPLX_AGAIN;
        works->slots[(works->head + works->count++) % INFLIGHT] = *request;
        return PPLX_OK; /* tiny_poll() matches */
    }
    if (request->opcode == PPLX_WRITE_IMM && peer->queue.count >= QUEUE / 2) return PPLX_AGAIN;
    complete(self, request->op, run_one_sided(self, request), 0, 0);
    return PPLX_OK;
}

static pplx_status tiny_post(pplx_provider_endpoint *handle, const pplx_work_request *requests, size_t count,
                             size_t *posted, int32_t *provider_error) {
    pplx_status status = PPLX_OK;
    *posted = 0;
    *provider_error = 0;
    pthread_mutex_lock(&lock);
    while (*posted < count && (status = post_one((endpoint *)handle, &requests[*posted])) == PPLX_OK) ++*posted;
    pthread_mutex_unlock(&lock);
    return status;
}

static size_t tiny_poll(pplx_provider_domain *handle, pplx_completion *completions, size_t capacity) {
    size_t n = 0;
    pthread_mutex_lock(&lock);
    for (endpoint *self = endpoints; self; self = self->next) {
        if (self->domain != (domain *)handle) continue;
        if (self->peer && self->peer->peer == self) {
            match(self, self->peer);
            match(self->peer, self);
        }
        while (self->lost && self->sends.count > 0 && self->queue.count < QUEUE)
            complete(self, take(&self->sends).op, PPLX_PEER_LOST, 0, 0);
        for (queue *queue = &self->queue; n < capacity && queue->count > 0; queue->count--, n++) {
            completions[n] = queue->slots[queue->head];
            queue->head = (queue->head + 1) % QUEUE;
        }
    }
    pthread_mutex_unlock(&lock);
    return n;
}

static pplx_status tiny_arm(pplx_provider_domain *handle) {
    (void)handle;
    return PPLX_UNSUPPORTED; /* never called: PPLX_CAP_WAIT_FD is not there */
}

static int tiny_wait_fd(pplx_provider_domain *handle) {
    (void)handle;
    return -1;
}

static const pplx_provider tiny = {
    .size = sizeof(pplx_provider),
    .abi = PPLX_PROVIDER_ABI,
    .name = "tiny",
    .discover = tiny_discover,
    .domain_open = tiny_domain_open,
    .domain_close = tiny_domain_close,
    .domain_caps = tiny_domain_caps,
    .endpoint_open = tiny_endpoint_open,
    .endpoint_connect = tiny_endpoint_connect,
    .endpoint_close = tiny_endpoint_close,
    .mr_open = tiny_mr_open,
    .mr_close = tiny_mr_close,
    .post = tiny_post,
    .poll = tiny_poll,
    .arm = tiny_arm,
    .wait_fd = tiny_wait_fd,
};

__attribute__((visibility("default"))) const pplx_provider *pplx_provider_entry(void);
const pplx_provider *pplx_provider_entry(void) { return &tiny; }
