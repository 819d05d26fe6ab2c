/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Destroying queue pairs, which may take long.
 *
 * A device gives a queue pair back when nothing of it is on its way any more. rdma_rxe waits for packets that wait for
 * the address of a neighbour, and that is 3 s when the cable is out: the proxy would do nothing for anybody meanwhile.
 * So an endpoint that had work under way is put into RESET, in which the device neither sends nor answers and has let
 * go of all memory, and a thread destroys its queue pairs: aside.h. A domain that is closed may be left to it.
 *
 * An event that names a queue pair is read by who polls, while the thread destroys it: that is good, since destroying
 * waits until all events that were read are acknowledged. */
#if PPLX_HAVE_LIBIBVERBS

#include <stddef.h>
#include <stdlib.h>

#include "verbs_internal.h"

/* What the device would not destroy it may still have events of: that memory stays. */
void verbs_queues_destroy(verbs_endpoint *endpoint) {
    bool gone = true;
    for (int i = 0; i < 2; i++) {
        struct ibv_qp *qp = endpoint->queues[i].qp;
        if (qp && endpoint->domain->lib->destroy_qp(qp)) gone = false;
    }
    if (gone) free(endpoint);
}

static void destroy(pplx_aside_call *call) {
    verbs_queues_destroy((verbs_endpoint *)(void *)((char *)call - offsetof(verbs_endpoint, retire)));
}

void verbs_queues_retire(verbs_endpoint *endpoint) {
    endpoint->retire.make = destroy;
    pplx_aside_make(&endpoint->domain->aside, &endpoint->retire);
}

#else
typedef int pplx_verbs_retire_left_out;
#endif
