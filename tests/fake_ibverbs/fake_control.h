/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What tests ask of the fake libibverbs: found by dlsym, or by ctypes. A device is named as in the layout. */
#ifndef FAKE_CONTROL_H
#define FAKE_CONTROL_H

#include <stdint.h>

/* What there was since the library was loaded; `objects` and `contexts` are those open now. */
struct fake_counts {
    uint64_t contexts, objects;
    uint64_t doorbells, requests, signalled; /* calls of ibv_post_send, what they took, what of it tells of its end */
    uint64_t arms, events;                   /* ibv_req_notify_cq; what completion channels were told */
    uint64_t polls, refused;                 /* ibv_poll_cq; posts that were not taken whole */
    uint64_t complaints;                     /* misuse that a real device answers by hanging, or not at all */
    uint64_t cut_short;                      /* queue pairs destroyed in RTS */
};

/* Other devices from now on; the text is described in fake_ibverbs.h. -1: some are open, or it says nothing. */
int fake_ibv_layout(const char *text);

/* An event that the device tells by itself, to all who have it open. IBV_EVENT_PORT_ERR and _ACTIVE move the port,
 * after IBV_EVENT_DEVICE_FATAL nothing completes on it any more. -1: there is no such device or port. */
int fake_ibv_event(const char *device, int port, int type);

/* The route that the newest queue pair of a device takes; -1 if it has none. */
int fake_ibv_route(const char *device, int *service_level, int *traffic_class);

/* Words of the layout, for the last port of a device that may be open. -1: one of them is unknown. */
int fake_ibv_change(const char *device, const char *words);

/* The port loses all packets, and says nothing: a cable is pulled out behind the next switch. */
int fake_ibv_cut(const char *device, int port, int lost);

/* Work requests are taken, and stay where they are until they are let go. */
int fake_ibv_hold(const char *device, int held);

/* After `after` more work requests ibv_post_send refuses the next `count` with the errno `native`. */
int fake_ibv_refuse(const char *device, uint64_t after, uint64_t count, int native);

/* The work request after the next `after` ends with this status instead of what it asks for. */
int fake_ibv_break(const char *device, uint64_t after, int status);

/* From now on it takes ibv_destroy_qp so many milliseconds to get rid of work that was under way when the queue pair
 * went to ERR. Who is in it comes back at once if it is fewer now. */
int fake_ibv_linger(const char *device, int ms);

/* As long as this is set, who connects a queue pair waits, as where the kernel has to ask the network for the way.
 * Returns how many do. */
int fake_ibv_search(const char *device, int set);

void fake_ibv_counts(struct fake_counts *counts);

#endif
