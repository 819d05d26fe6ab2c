/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The fabric provider: libfabric's reliable datagrams (FI_EP_RDM) under our contract.
 *
 *   dynload.c          finds libfabric and binds its few exported functions
 *   fabric_discover.c  options -> hints -> fi_getinfo(): which devices there are
 *   fabric_quirks.h    what differs between efa, tcp and tcp;ofi_rxm, in one table
 *   fabric_domain.c    a NIC: fabric, domain, completion queue, address vector
 *   fabric_memory.c    memory and keys
 *   fabric_cuda.c      memory of GPUs
 *   fabric_endpoint.c  the way to one peer; closing it
 *   fabric_guard.c     who may connect to its port
 *   fabric_post.c      work requests -> fi_*msg()
 *   fabric_cq.c        completions, errors, waiting; draining for a close
 *   fabric_objects.c   the same library without the engine, on top of all these
 *
 * Two shapes, by quirk. With an endpoint per peer (tcp) each pplx endpoint is a fid_ep of its own,
 * with its own listening port, on the domain's AV and CQ (tcp;ofi_rxm: a CQ of its own): closing
 * the fid_ep closes its sockets, so it is a fence. With one for all (EFA) a pplx endpoint is only an address in the AV,
 * RECVs are directed (FI_DIRECTED_RECV), and closing waits for what is out.
 *
 * A connection: both sides endpoint_open(), exchange the addresses by other means, both
 * endpoint_connect(). On tcp the first post starts the handshake and says "again" until it is
 * through; both sides must poll for that, as for everything: progress is manual.
 *
 * An op's life: post() writes its fabric_op into pplx_op.scratch, hands libfabric the address as
 * context and links it into its endpoint's list; the CQ entry brings the address back. Nothing is
 * allocated between. The lists make it possible to end a closing endpoint's ops, and those of a
 * broken queue.
 *
 * Compiled without libfabric's headers (PPLX_HAVE_LIBFABRIC not 1) this is a stub that says so. */
#include "pplx_async/provider.h"

extern const pplx_provider pplx_provider_fabric;

#if PPLX_HAVE_LIBFABRIC

#include "fabric_internal.h"

const pplx_provider pplx_provider_fabric = {
    .size = sizeof(pplx_provider),
    .abi = PPLX_PROVIDER_ABI,
    .name = "fabric",
    .discover = fabric_discover,
    .domain_open = fabric_domain_open,
    .domain_close = fabric_domain_close,
    .domain_caps = fabric_domain_caps,
    .endpoint_open = fabric_endpoint_open,
    .endpoint_connect = fabric_endpoint_connect,
    .endpoint_close = fabric_endpoint_close,
    .mr_open = fabric_mr_open,
    .mr_close = fabric_mr_close,
    .post = fabric_post,
    .poll = fabric_poll,
    .arm = fabric_arm,
    .wait_fd = fabric_wait_fd,
};

#else

#define PPLX_STUB_TEXT                                                                             \
    "this build has no fabric provider: libfabric's headers were not found when it was compiled; " \
    "apt-get install libfabric-dev and rebuild, or install a wheel"
#include "provider_stub.h"

const pplx_provider pplx_provider_fabric = PPLX_STUB("fabric");

#endif
