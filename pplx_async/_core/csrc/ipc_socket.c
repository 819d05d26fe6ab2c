/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The system calls of the ipc provider: unix sockets, descriptors in messages, memfds. None of them
 * waits, whatever the other side does: sockets are used with MSG_DONTWAIT, since the flag O_NONBLOCK
 * of a descriptor that was passed on is not ours alone. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* memfd_create, struct ucred */
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "ipc_internal.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u /* since Linux 6.3; without it those warn in the kernel's log */
#endif

enum { BACKLOG = 4096 };

/* In the abstract namespace: nothing on disk, and gone with its last descriptor. */
static socklen_t socket_name(struct sockaddr_un *address, const uint8_t *name) {
    static const char prefix[] = "pplx-ipc-", digits[] = "0123456789abcdef";
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    char *at = address->sun_path + 1;
    memcpy(at, prefix, sizeof prefix - 1);
    at += sizeof prefix - 1;
    for (int i = 0; i < IPC_TOKEN_BYTES; i++) {
        *at++ = digits[name[i] >> 4];
        *at++ = digits[name[i] & 15];
    }
    return (socklen_t)(at - (char *)address);
}

int pplx_ipc_listen(const uint8_t *name) {
    struct sockaddr_un address;
    socklen_t nbytes = socket_name(&address, name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (bind(fd, (const struct sockaddr *)&address, nbytes) == 0 && listen(fd, BACKLOG) == 0) return fd;
    int native = errno;
    close(fd);
    errno = native;
    return -1;
}

int pplx_ipc_connect(const uint8_t *name) {
    struct sockaddr_un address;
    socklen_t nbytes = socket_name(&address, name);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    if (connect(fd, (const struct sockaddr *)&address, nbytes) == 0) return fd;
    int native = errno;
    close(fd);
    errno = native;
    return -1;
}

bool pplx_ipc_same_user(int fd, pid_t *pid) {
    struct ucred who;
    socklen_t nbytes = sizeof who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &nbytes) != 0) return false;
    *pid = who.pid;
    return who.uid == geteuid();
}

int pplx_ipc_pidfd(pid_t pid) {
#ifdef SYS_pidfd_open
    return (int)syscall(SYS_pidfd_open, pid, 0u);
#else
    (void)pid;
    errno = ENOSYS;
    return -1;
#endif
}

ssize_t pplx_ipc_send_with(int fd, const void *message, size_t nbytes, const int *fds, size_t count) {
    struct iovec piece = {.iov_base = (void *)(uintptr_t)message, .iov_len = nbytes};
    union {
        char bytes[CMSG_SPACE(IPC_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr header = {.msg_iov = &piece, .msg_iovlen = 1};
    if (count) {
        header.msg_control = control.bytes;
        header.msg_controllen = CMSG_SPACE(count * sizeof(int));
        memset(control.bytes, 0, header.msg_controllen);
        struct cmsghdr *part = CMSG_FIRSTHDR(&header);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(count * sizeof(int));
        memcpy(CMSG_DATA(part), fds, count * sizeof(int));
    }
    ssize_t n;
    do n = sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n;
}

ssize_t pplx_ipc_send(int fd, const void *message, size_t nbytes, int passed_fd) {
    return pplx_ipc_send_with(fd, message, nbytes, &passed_fd, passed_fd >= 0);
}

void pplx_ipc_close_fds(ipc_fds *fds) {
    while (fds->count) close(fds->of[--fds->count]);
}

/* All of them or none: the kernel drops those that this process may not open any more. */
static void take_fds(struct msghdr *header, ipc_fds *fds) {
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (fds->count < IPC_MAX_FDS)
                fds->of[fds->count++] = fd;
            else
                close(fd);
        }
    }
    fds->dropped = header->msg_flags & MSG_CTRUNC;
    if (fds->dropped) pplx_ipc_close_fds(fds);
}

ssize_t pplx_ipc_receive_with(int fd, void *message, size_t capacity, ipc_fds *fds) {
    struct iovec piece = {.iov_base = message, .iov_len = capacity};
    union {
        char bytes[CMSG_SPACE(IPC_MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct msghdr header = {
        .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
    ssize_t n;
    bool reset = false; /* told once, before what was sent earlier: the peer closed it with messages of ours unread */
    do {
        n = recvmsg(fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n >= 0 || (errno != EINTR && (errno != ECONNRESET || reset))) break;
        reset |= errno == ECONNRESET;
    } while (true);
    fds->count = 0;
    fds->dropped = false;
    if (n >= 0) take_fds(&header, fds);
    if (n == 0) pplx_ipc_close_fds(fds); /* an empty message counts as the end, whatever comes with it */
    return n >= 0 && header.msg_flags & MSG_TRUNC ? (ssize_t)capacity + 1 : n;
}

int pplx_ipc_first_fd(ipc_fds *fds) {
    const int first = fds->count ? fds->of[0] : -1;
    while (fds->count > 1) close(fds->of[--fds->count]);
    fds->count = 0;
    return first;
}

ssize_t pplx_ipc_receive(int fd, void *message, size_t capacity, int *passed_fd) {
    ipc_fds fds;
    const ssize_t n = pplx_ipc_receive_with(fd, message, capacity, &fds);
    *passed_fd = pplx_ipc_first_fd(&fds);
    return n;
}

int pplx_ipc_memfd(const char *name, uint64_t nbytes) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    if (ftruncate(fd, (off_t)nbytes) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0)
        return fd;
    int native = errno;
    close(fd);
    errno = native;
    return -1;
}

/* A descriptor of a peer's. What can't shrink any more, and is long enough, can't raise SIGBUS. Only
 * memfds have seals, so nothing but a memfd gets through; and none of huge pages: into those its owner can
 * punch a hole that nothing is left to fill. */
void *pplx_ipc_map_foreign(int fd, uint64_t offset, uint64_t nbytes, bool writable) {
    struct statfs system;
    struct stat file;
    int seals = fcntl(fd, F_GET_SEALS);
    errno = EPROTO;
    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW)) return NULL;
    if (fstatfs(fd, &system) != 0 || system.f_type != TMPFS_MAGIC) return NULL;
    if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode) || file.st_size < 0) return NULL;
    if (nbytes == 0 || nbytes > SIZE_MAX || nbytes > (uint64_t)file.st_size || offset > (uint64_t)file.st_size - nbytes)
        return NULL;
    errno = 0;
    /* Faults one by one cost several times the copy that they interrupt. Not for what takes long to map:
     * nobody may write to all of it. */
    const int now = nbytes <= IPC_MAP_NOW ? MAP_POPULATE : 0;
    void *memory = mmap(NULL, (size_t)nbytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED | now, fd,
                        (off_t)offset);
    return memory == MAP_FAILED ? NULL : memory;
}

bool pplx_ipc_random(void *bytes, size_t nbytes) {
    ssize_t n;
    do n = getrandom(bytes, nbytes, 0);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)nbytes;
}
