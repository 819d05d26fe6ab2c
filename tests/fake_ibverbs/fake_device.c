/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Devices: listed, opened, asked; and what tests ask of them. */
#include "fake_ibverbs.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
fake_context *fake_contexts;
struct fake_counts fake_count;

void fake_complain(const char *text) {
    fake_count.complaints++;
    fprintf(stderr, "fake libibverbs: %s\n", text);
}

uint64_t fake_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- waiting ---- */

static pthread_cond_t woken;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_condition(void) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&woken, &attr);
    pthread_condattr_destroy(&attr);
}

void fake_wait_until(uint64_t ns) {
    const struct timespec until = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    pthread_once(&once, make_condition);
    pthread_cond_timedwait(&woken, &fake_lock, &until);
}

void fake_wake(void) {
    pthread_once(&once, make_condition);
    pthread_cond_broadcast(&woken);
}

/* ---- the list ---- */

struct ibv_device **ibv_get_device_list(int *count) {
    pthread_mutex_lock(&fake_lock);
    fake_layout_need();
    struct ibv_device **list = NULL;
    if (fake_layout_nosys())
        errno = ENOSYS;
    else
        list = calloc((size_t)fake_ndevices + 1, sizeof *list);
    for (int i = 0; list && i < fake_ndevices; i++) list[i] = &fake_devices[i].device;
    if (count) *count = list ? fake_ndevices : 0;
    pthread_mutex_unlock(&fake_lock);
    return list;
}

void ibv_free_device_list(struct ibv_device **list) { free(list); }

const char *ibv_get_device_name(struct ibv_device *device) { return device->name; }

__be64 ibv_get_device_guid(struct ibv_device *device) { return ((fake_device *)device)->attr.node_guid; }

/* ---- contexts ---- */

static int query_port(struct ibv_context *context, uint8_t number, struct ibv_port_attr *attr, size_t nbytes) {
    fake_device *device = fake_device_of(context);
    if (number < 1 || number > device->attr.phys_port_cnt) return EINVAL;
    pthread_mutex_lock(&fake_lock);
    const struct ibv_port_attr copy = device->ports[number - 1].attr;
    pthread_mutex_unlock(&fake_lock);
    memset(attr, 0, nbytes);
    memcpy(attr, &copy, nbytes < sizeof copy ? nbytes : sizeof copy);
    return 0;
}

/* As much as there was before the struct grew; its name is a macro's by now. */
int ibv_query_port(struct ibv_context *context, uint8_t number, struct _compat_ibv_port_attr *attr) {
    return query_port(context, number, (struct ibv_port_attr *)attr, offsetof(struct ibv_port_attr, port_cap_flags2));
}

static struct ibv_td *alloc_td(struct ibv_context *context, struct ibv_td_init_attr *attr) {
    if (attr->comp_mask || !fake_device_of(context)->thread_domains) return errno = EOPNOTSUPP, NULL;
    fake_td *td = calloc(1, sizeof *td);
    if (!td) return NULL;
    td->td.context = context;
    pthread_mutex_lock(&fake_lock);
    fake_context_of(context)->objects++;
    fake_count.objects++;
    pthread_mutex_unlock(&fake_lock);
    return &td->td;
}

static int dealloc_td(struct ibv_td *handle) {
    fake_td *td = (fake_td *)handle;
    pthread_mutex_lock(&fake_lock);
    const bool busy = td->objects != 0;
    if (!busy) {
        fake_context_of(handle->context)->objects--;
        fake_count.objects--;
    }
    pthread_mutex_unlock(&fake_lock);
    if (busy) return EBUSY;
    free(td);
    return 0;
}

static struct ibv_pd *alloc_parent_domain(struct ibv_context *context, struct ibv_parent_domain_init_attr *attr) {
    if (!attr->pd || attr->comp_mask) return errno = EINVAL, NULL;
    fake_pd *pd = (fake_pd *)ibv_alloc_pd(context);
    if (!pd) return NULL;
    pthread_mutex_lock(&fake_lock);
    pd->of = (fake_pd *)attr->pd;
    pd->of->objects++;
    pd->td = attr->td;
    if (attr->td) ((fake_td *)attr->td)->objects++;
    pthread_mutex_unlock(&fake_lock);
    return &pd->pd;
}

struct ibv_context *ibv_open_device(struct ibv_device *handle) {
    fake_device *device = (fake_device *)handle;
    fake_context *context = calloc(1, sizeof *context);
    if (!context) return NULL;
    errno = device->no_open ? EACCES : fake_channel_open(&context->async);
    if (errno) return free(context), NULL;
    context->device = device;
    context->verbs.sz = sizeof context->verbs;
    context->verbs.query_port = query_port;
    context->verbs.alloc_td = alloc_td;
    context->verbs.dealloc_td = dealloc_td;
    context->verbs.alloc_parent_domain = alloc_parent_domain;
    struct ibv_context *common = &context->verbs.context;
    common->device = handle;
    common->ops.poll_cq = fake_poll_cq;
    common->ops.req_notify_cq = fake_req_notify_cq;
    common->ops.post_srq_recv = fake_post_srq_recv;
    common->ops.post_send = fake_post_send;
    common->ops.post_recv = fake_post_recv;
    common->cmd_fd = -1;
    common->async_fd = context->async.fd;
    common->num_comp_vectors = 1;
    common->abi_compat = __VERBS_ABI_IS_EXTENDED;
    pthread_mutex_init(&common->mutex, NULL);
    pthread_mutex_lock(&fake_lock);
    context->next = fake_contexts;
    fake_contexts = context;
    fake_count.contexts++;
    pthread_mutex_unlock(&fake_lock);
    return common;
}

int ibv_close_device(struct ibv_context *handle) {
    fake_context *context = fake_context_of(handle), **link = &fake_contexts;
    pthread_mutex_lock(&fake_lock);
    const int objects = context->objects;
    if (objects) {
        fake_complain("a device was closed before what belongs to it");
    } else {
        while (*link != context) link = &(*link)->next;
        *link = context->next;
        fake_count.contexts--;
    }
    pthread_mutex_unlock(&fake_lock);
    if (objects) return EBUSY;
    fake_channel_close(&context->async);
    pthread_mutex_destroy(&handle->mutex);
    free(context);
    return 0;
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr) {
    *attr = fake_device_of(context)->attr;
    return 0;
}

int ibv_query_gid(struct ibv_context *context, uint8_t number, int index, union ibv_gid *gid) {
    const fake_device *device = fake_device_of(context);
    if (number < 1 || number > device->attr.phys_port_cnt || index < 0 || index >= FAKE_MAX_GIDS)
        return errno = EINVAL, -1;
    *gid = device->ports[number - 1].gids[index].gid; /* zeros where there is none, as sysfs has it */
    return 0;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t number, uint32_t index, struct ibv_gid_entry *entry,
                      uint32_t flags, size_t nbytes) {
    const fake_device *device = fake_device_of(context);
    if (flags || nbytes != sizeof *entry) return EINVAL;
    if (number < 1 || number > device->attr.phys_port_cnt || index >= FAKE_MAX_GIDS) return EINVAL;
    const fake_gid *gid = &device->ports[number - 1].gids[index];
    if (!gid->used) return ENODATA;
    *entry = (struct ibv_gid_entry){gid->gid, index, number, gid->type, 0};
    return 0;
}

int ibv_query_pkey(struct ibv_context *context, uint8_t number, int index, __be16 *pkey) {
    const fake_device *device = fake_device_of(context);
    if (number < 1 || number > device->attr.phys_port_cnt || index < 0 || index >= FAKE_MAX_PKEYS)
        return errno = EINVAL, -1;
    *pkey = (__be16)__builtin_bswap16(device->ports[number - 1].pkeys[index]);
    return 0;
}

const char *ibv_wc_status_str(enum ibv_wc_status status) {
    static const char *const names[] = {[IBV_WC_SUCCESS] = "success",
                                        [IBV_WC_LOC_LEN_ERR] = "local length error",
                                        [IBV_WC_LOC_PROT_ERR] = "local protection error",
                                        [IBV_WC_WR_FLUSH_ERR] = "Work Request Flushed Error",
                                        [IBV_WC_REM_INV_REQ_ERR] = "remote invalid request error",
                                        [IBV_WC_REM_ACCESS_ERR] = "remote access error",
                                        [IBV_WC_RETRY_EXC_ERR] = "transport retry counter exceeded",
                                        [IBV_WC_RNR_RETRY_EXC_ERR] = "RNR retry counter exceeded"};
    const size_t i = (size_t)status;
    return i < sizeof names / sizeof names[0] && names[i] ? names[i] : "unknown";
}

/* ---- what tests ask ---- */

static fake_device *find(const char *name) {
    fake_layout_need();
    for (int i = 0; i < fake_ndevices; i++)
        if (strcmp(fake_devices[i].device.name, name) == 0) return &fake_devices[i];
    return NULL;
}

static fake_port *find_port(const char *name, int number) {
    fake_device *device = find(name);
    return device && number >= 1 && number <= device->attr.phys_port_cnt ? &device->ports[number - 1] : NULL;
}

int fake_ibv_layout(const char *text) {
    pthread_mutex_lock(&fake_lock);
    const int ret = fake_contexts ? -1 : fake_layout_read(text);
    pthread_mutex_unlock(&fake_lock);
    return ret;
}

int fake_ibv_event(const char *name, int number, int type) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    fake_port *port = find_port(name, number);
    const bool of_port = type == IBV_EVENT_PORT_ERR || type == IBV_EVENT_PORT_ACTIVE;
    const int ret = device && (port || !of_port) ? 0 : -1;
    if (ret == 0 && of_port) port->attr.state = type == IBV_EVENT_PORT_ERR ? IBV_PORT_DOWN : IBV_PORT_ACTIVE;
    if (ret == 0 && type == IBV_EVENT_DEVICE_FATAL) device->dead = true;
    for (fake_context *context = fake_contexts; ret == 0 && context; context = context->next)
        if (context->device == device)
            fake_tell(&context->verbs.context, (enum ibv_event_type)type, (void *)(intptr_t)number);
    fake_pump_all();
    pthread_mutex_unlock(&fake_lock);
    return ret;
}

int fake_ibv_route(const char *name, int *service_level, int *traffic_class) {
    pthread_mutex_lock(&fake_lock);
    const fake_device *device = find(name);
    const fake_qp *qp = fake_qps;
    while (qp && qp->device != device) qp = qp->next;
    if (qp) {
        *service_level = qp->attr.ah_attr.sl;
        *traffic_class = qp->attr.ah_attr.grh.traffic_class;
    }
    pthread_mutex_unlock(&fake_lock);
    return qp ? 0 : -1;
}

int fake_ibv_change(const char *name, const char *words) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    const bool known = device && fake_layout_change(device, words);
    pthread_mutex_unlock(&fake_lock);
    return known ? 0 : -1;
}

int fake_ibv_cut(const char *name, int number, int lost) {
    pthread_mutex_lock(&fake_lock);
    fake_port *port = find_port(name, number);
    if (port) port->cut = lost != 0;
    fake_pump_all();
    pthread_mutex_unlock(&fake_lock);
    return port ? 0 : -1;
}

int fake_ibv_linger(const char *name, int ms) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    if (device) device->linger_ms = ms;
    fake_wake();
    pthread_mutex_unlock(&fake_lock);
    return device ? 0 : -1;
}

int fake_ibv_search(const char *name, int set) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    if (device) device->searches = set != 0;
    const int searching = device ? device->searching : -1;
    fake_wake();
    pthread_mutex_unlock(&fake_lock);
    return searching;
}

int fake_ibv_hold(const char *name, int held) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    if (device) device->held = held != 0;
    fake_pump_all();
    pthread_mutex_unlock(&fake_lock);
    return device ? 0 : -1;
}

int fake_ibv_refuse(const char *name, uint64_t after, uint64_t count, int native) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    if (device) {
        device->refuse_after = after;
        device->refuse_count = count;
        device->refuse_native = native;
    }
    pthread_mutex_unlock(&fake_lock);
    return device ? 0 : -1;
}

int fake_ibv_break(const char *name, uint64_t after, int status) {
    pthread_mutex_lock(&fake_lock);
    fake_device *device = find(name);
    if (device) {
        device->break_after = after;
        device->break_status = status;
    }
    pthread_mutex_unlock(&fake_lock);
    return device ? 0 : -1;
}

void fake_ibv_counts(struct fake_counts *counts) {
    pthread_mutex_lock(&fake_lock);
    *counts = fake_count;
    pthread_mutex_unlock(&fake_lock);
}
