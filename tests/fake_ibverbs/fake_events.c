/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Descriptors and the events behind them: completion channels, and what a device tells by itself. */
#include "fake_ibverbs.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

int fake_channel_open(fake_channel *channel) {
    channel->first = NULL;
    channel->last = &channel->first;
    channel->fd = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE);
    return channel->fd < 0 ? errno : 0;
}

void fake_channel_close(fake_channel *channel) {
    while (channel->first) {
        fake_event *event = channel->first;
        channel->first = event->next;
        free(event);
    }
    close(channel->fd);
}

void fake_channel_put(fake_channel *channel, const fake_event *event) {
    const uint64_t one = 1;
    fake_event *copy = malloc(sizeof *copy);
    if (!copy) abort();
    *copy = *event;
    copy->next = NULL;
    *channel->last = copy;
    channel->last = &copy->next;
    if (write(channel->fd, &one, sizeof one) != sizeof one) abort();
}

/* What it is of goes away, and so do events of it that nobody has read. Their count stays in the descriptor if a
 * reader took it already; he finds nothing and reads again. */
void fake_channel_forget(fake_channel *channel, const void *of) {
    for (fake_event **link = &channel->first; *link;) {
        fake_event *event = *link;
        if (event->of != of) {
            link = &event->next;
            continue;
        }
        *link = event->next;
        free(event);
    }
    channel->last = &channel->first;
    while (*channel->last) channel->last = &(*channel->last)->next;
}

/* The oldest event; -1 and errno as read() gives them. */
static int take(fake_channel *channel, fake_event *out) {
    for (;;) {
        uint64_t one;
        if (read(channel->fd, &one, sizeof one) != sizeof one) return -1;
        pthread_mutex_lock(&fake_lock);
        fake_event *event = channel->first;
        if (event) {
            channel->first = event->next;
            if (!channel->first) channel->last = &channel->first;
            *out = *event;
            free(event);
            if (out->cq)
                ((fake_cq *)out->cq)->told++;
            else if (out->of)
                ((fake_qp *)out->of)->told++;
        }
        pthread_mutex_unlock(&fake_lock);
        if (event) return 0;
    }
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context) {
    fake_event event;
    if (take(&((fake_comp_channel *)channel)->events, &event)) return -1;
    *cq = event.cq;
    *cq_context = event.cq->cq_context;
    return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned n) {
    pthread_mutex_lock(&fake_lock);
    cq->comp_events_completed += n;
    if (cq->comp_events_completed > ((fake_cq *)cq)->told) fake_complain("more events acknowledged than were read");
    pthread_mutex_unlock(&fake_lock);
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *out) {
    fake_event event;
    if (take(&fake_context_of(context)->async, &event)) return -1;
    *out = event.async;
    return 0;
}

static bool is_of_qp(enum ibv_event_type type) {
    return type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_REQ_ERR || type == IBV_EVENT_QP_ACCESS_ERR ||
           type == IBV_EVENT_COMM_EST || type == IBV_EVENT_SQ_DRAINED || type == IBV_EVENT_QP_LAST_WQE_REACHED;
}

void ibv_ack_async_event(struct ibv_async_event *event) {
    if (!is_of_qp(event->event_type)) return;
    pthread_mutex_lock(&fake_lock);
    fake_qp *qp = fake_qps;
    while (qp && &qp->qp != event->element.qp) qp = qp->next;
    if (qp && qp->acked < qp->told)
        qp->acked++, fake_wake();
    else
        fake_complain("an event acknowledged that wasn't read");
    pthread_mutex_unlock(&fake_lock);
}

/* Of a queue pair or a completion queue, by its type; with neither it is the whole device's. */
void fake_tell(struct ibv_context *context, enum ibv_event_type type, void *of) {
    fake_event event = {.async.event_type = type};
    if (is_of_qp(type)) {
        event.of = of;
        event.async.element.qp = of;
    } else if (type == IBV_EVENT_CQ_ERR) {
        event.async.element.cq = of;
    } else {
        event.async.element.port_num = (int)(intptr_t)of;
    }
    fake_channel_put(&fake_context_of(context)->async, &event);
}
