/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Ordinary memory of a peer, by one copy: the kernel's, at a call of ours (process_vm_writev(2),
 * process_vm_readv(2)). For pairs that trust each other, so both have to opt in: a peer that may do
 * this may read and write all of our memory, and nothing but its own check keeps it within a region.
 * Who opted in says so in its HELLO or WELCOME, and tells such a peer the addresses of its regions.
 *
 * Whose memory. The call takes a pid, not a pidfd, and a pid may be somebody else's by now. The
 * pidfd was opened by the pid that the socket's other end had. An address is the answer to a
 * question asked after that, so the process of the pidfd lived then, and is the peer. Before each
 * piece both are looked at: as long as the pidfd says that the peer has not ended the pid is not
 * free, and a socket that is closed says that another program runs there (execve). What is left are
 * moments: a peer that ends, and whose pid comes round again, between these two system calls; and one
 * in the middle of execve, whose memory changes a little before its sockets close.
 *
 * What the kernel doesn't allow goes through the staging area, for that peer for good: Yama, where
 * only a parent may do this (EPERM), another user namespace (EPERM), a filter (EPERM, ENOSYS), or a
 * process whose first thread has ended (ESRCH). If it was the peer's death that comes out as well.
 *
 * Measured between engines of two processes, ordinary numpy arrays of 64 MiB, 2 cores, best of 3, GB/s:
 *
 *                               4 KiB       64 KiB        1 MiB
 *                            1      32     1      32     1      4   in flight
 *   staged                  0.15   0.79   1.98   7.52   4.50   6.15
 *   process_vm_writev       0.80   0.67   6.15   5.39   7.50   9.11
 *
 * One at a time it is faster at every size, since nobody has to be woken. Only small ones in numbers are
 * faster staged, where two cores share the work, by less than the half, and for a core of the peer's. So
 * there is no least size of a write. There is one of a region: nobody need let go of small ones, such as
 * the one that an engine registers for immediates alone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* process_vm_writev, POLLRDHUP */
#endif
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

#include "ipc_internal.h"

bool pplx_ipc_may_address(const ipc_region *region, const ipc_endpoint *endpoint) {
    return endpoint->trusting && region->ordinary && !region->device && region->access != 0 &&
           region->nbytes >= IPC_DIRECT_REGION;
}

bool pplx_ipc_goes_direct(const ipc_endpoint *endpoint, const ipc_key *key) {
    return key->address != 0 && endpoint->pid > 0 && !endpoint->refused;
}

/* Or it can't be told. */
static bool has_ended(const ipc_endpoint *endpoint) {
    struct pollfd signs[] = {{.fd = endpoint->pidfd, .events = POLLIN}, {.fd = endpoint->socket, .events = POLLRDHUP}};
    return poll(signs, 2, 0) != 0;
}

/* One piece. FAULT: some of it may be copied, and some of the range is not there, at either side. */
enum ipc_direct pplx_ipc_direct(ipc_endpoint *endpoint, bool read, void *local, uint64_t remote, uint64_t nbytes) {
    const struct iovec ours = {.iov_base = local, .iov_len = nbytes};
    const struct iovec theirs = {.iov_base = (void *)(uintptr_t)remote, .iov_len = nbytes};
    if (has_ended(endpoint)) return IPC_DIRECT_ENDED;
    ssize_t n = read ? process_vm_readv(endpoint->pid, &ours, 1, &theirs, 1, 0)
                     : process_vm_writev(endpoint->pid, &ours, 1, &theirs, 1, 0);
    if (n == (ssize_t)nbytes) return IPC_DIRECT_DONE;
    const int native = errno;
    if (has_ended(endpoint)) return IPC_DIRECT_ENDED;
    if (n >= 0 || native == EFAULT) return IPC_DIRECT_FAULT;
    endpoint->refused = true;
    endpoint->domain->refused = native;
    return IPC_DIRECT_REFUSED;
}

/* 0: there is no Yama, or it has no objection. */
static int ptrace_scope(void) {
    int scope = 0;
    FILE *file = fopen("/proc/sys/kernel/yama/ptrace_scope", "re");
    if (!file) return 0;
    if (fscanf(file, "%d", &scope) != 1) scope = 0;
    fclose(file);
    return scope;
}

/* For the domain's description. */
void pplx_ipc_describe_direct(const ipc_domain *domain, char *text, size_t capacity) {
    static const char route[] = ", or by process_vm_writev for peers that opted in";
    const int scope = ptrace_scope();
    if (!domain->options.vm_writev)
        *text = 0;
    else if (domain->refused)
        snprintf(text, capacity, "%s (refused: %s; staged instead)", route, strerror(domain->refused));
    else if (scope > 0)
        snprintf(text, capacity, "%s (kernel.yama.ptrace_scope is %d: mostly refused, and staged instead)", route,
                 scope);
    else
        snprintf(text, capacity, "%s", route);
}
