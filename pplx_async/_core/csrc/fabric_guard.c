/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* Who may connect to the port of an endpoint: the host of its peer.
 *
 * An endpoint of tcp listens, and the library takes whoever comes: it asks for no proof, waits for ever for
 * who says nothing, and one message that it does not expect ends the process (2.5.1). It can't be told whom
 * to expect. The kernel can: a filter on the listening socket drops what does not come from the peer's
 * address before there is a connection. (The connections inherit it; it lets all of theirs through.)
 *
 * Not on loopback, where all have the same address: who is on this host gets there.
 *
 * Who has connected, but has not said yet who it is when the endpoint closes, is forgotten by the library (1.17, 2.5.1).
 * Of tcp the domain still looks at the socket, and once the request comes it reads what it has freed with the endpoint.
 * Of rxm nobody looks any more, and the descriptor stays. So we hang up: tcp finds an end in place of a request before
 * the endpoint is closed, and closes the socket; for rxm we close it, afterwards. */
#if PPLX_HAVE_LIBFABRIC

#include <dirent.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <rdma/fi_cm.h>

#include "fabric_internal.h"

typedef union ip_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
} ip_address;

enum {
    MOST_INSTRUCTIONS = 10,
    SOURCE_V4 = 12, /* offsets in the IP header */
    SOURCE_V6 = 8,
    MOST_ROUNDS = 64 /* in which the library hears of those that we have hung up on: many in each */
};

/* An IPv4 address in the clothes of IPv6 has the packets of IPv4: nobody is told to bind to one, and it is
 * left alone. */
static bool is_guardable(const ip_address *address) {
    if (address->any.sa_family == AF_INET6)
        return !IN6_IS_ADDR_LOOPBACK(&address->v6.sin6_addr) && !IN6_IS_ADDR_V4MAPPED(&address->v6.sin6_addr);
    return address->any.sa_family == AF_INET && ntohl(address->v4.sin_addr.s_addr) >> 24 != 127;
}

/* 32 bits of the sender's address after the other, each of which must be the peer's. */
static int let_only(int fd, const ip_address *peer) {
    const bool six = peer->any.sa_family == AF_INET6;
    const unsigned char *wanted = six ? peer->v6.sin6_addr.s6_addr : (const unsigned char *)&peer->v4.sin_addr;
    const uint8_t nwords = six ? 4 : 1;
    struct sock_filter code[MOST_INSTRUCTIONS];
    uint8_t n = 0;
    for (uint8_t i = 0; i < nwords; i++) {
        uint32_t word;
        memcpy(&word, wanted + 4 * i, sizeof word);
        const uint8_t to_refusal = (uint8_t)(2 * (nwords - i) - 1); /* behind what is left, and the acceptance */
        code[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                                 (uint32_t)SKF_NET_OFF + (six ? SOURCE_V6 : SOURCE_V4) + 4u * i);
        code[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ntohl(word), 0, to_refusal);
    }
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, UINT32_MAX);
    code[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
    const struct sock_fprog program = {.len = n, .filter = code};
    return setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof program) ? errno : 0;
}

static bool is_at(int fd, const ip_address *own) {
    ip_address bound;
    socklen_t nbytes = sizeof bound;
    memset(&bound, 0, sizeof bound);
    if (getsockname(fd, &bound.any, &nbytes) || bound.any.sa_family != own->any.sa_family) return false;
    if (bound.any.sa_family == AF_INET6)
        return bound.v6.sin6_port == own->v6.sin6_port && IN6_ARE_ADDR_EQUAL(&bound.v6.sin6_addr, &own->v6.sin6_addr);
    return bound.v4.sin_port == own->v4.sin_port && bound.v4.sin_addr.s_addr == own->v4.sin_addr.s_addr;
}

static bool listens(int fd) {
    int yes = 0;
    socklen_t nbytes = sizeof yes;
    return getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &yes, &nbytes) == 0 && yes;
}

/* The library has its socket, and tells nobody which; it is ours as long as the endpoint is open. -1: errno. */
static int find_listener(const ip_address *own) {
    DIR *directory = opendir("/proc/self/fd");
    int found = -1;
    if (!directory) return -1;
    for (const struct dirent *entry; found < 0 && (entry = readdir(directory)) != NULL;) {
        const int fd = atoi(entry->d_name); /* "." and "..": 0, which is looked at as well */
        if (is_at(fd, own) && listens(fd)) found = fd;
    }
    closedir(directory);
    if (found < 0) errno = ENOENT;
    return found;
}

bool fabric_guard_wanted(const struct fi_info *info) {
    const bool is_ip = info->addr_format == FI_SOCKADDR_IN || info->addr_format == FI_SOCKADDR_IN6 ||
                       info->addr_format == FI_SOCKADDR;
    return is_ip && info->src_addr && is_guardable(info->src_addr);
}

bool fabric_guard_works(void) {
    const ip_address anyone = {.v4 = {.sin_family = AF_INET}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool works = fd >= 0 && let_only(fd, &anyone) == 0 && access("/proc/self/fd", R_OK | X_OK) == 0;
    if (fd >= 0) close(fd);
    return works;
}

static void copy_address(ip_address *to, const void *bytes, size_t nbytes) {
    memset(to, 0, sizeof *to);
    memcpy(to, bytes, nbytes < sizeof *to ? nbytes : sizeof *to);
}

pplx_status fabric_guard(const fabric_endpoint *endpoint, pplx_error *error) {
    unsigned char name[PPLX_ADDRESS_BYTES];
    size_t nbytes = sizeof name;
    ip_address own, peer;
    int native = -fi_getname(&endpoint->ep->fid, name, &nbytes);
    if (!native) {
        copy_address(&own, name, nbytes);
        copy_address(&peer, endpoint->peer->raw, endpoint->peer->nbytes);
        const int fd = find_listener(&own);
        native = fd < 0 ? errno : let_only(fd, &peer);
    }
    if (!native) return PPLX_OK;
    return fabric_fail(error, PPLX_NATIVE, native, "others can't be kept from the endpoint's port: %s",
                       strerror(native));
}

/* The library has accepted it, and not answered: a byte of its own is the first that it sends. */
static bool is_unanswered(int fd) {
    struct tcp_info info = {.tcpi_data_segs_out = 1};
    socklen_t nbytes = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &nbytes) == 0 && info.tcpi_data_segs_out == 0;
}

static void hang_up(int fd) {
    char data[4096];
    shutdown(fd, SHUT_RDWR); /* nothing is taken in from here on */
    while (recv(fd, data, sizeof data, MSG_DONTWAIT) > 0) {
    }
}

/* Returns whether there was anyone. */
static bool hang_up_all(const ip_address *own, int listener, bool closes) {
    DIR *directory = opendir("/proc/self/fd");
    bool any = false;
    if (!directory) return false;
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        const int fd = atoi(entry->d_name);
        if (fd == listener || !is_at(fd, own) || listens(fd) || !is_unanswered(fd)) continue;
        hang_up(fd);
        if (closes) close(fd);
        any = true;
    }
    closedir(directory);
    return any;
}

int fabric_guard_close(const fabric_endpoint *endpoint) {
    const fabric_quirks *quirks = endpoint->domain->quirks;
    unsigned char name[PPLX_ADDRESS_BYTES];
    size_t nbytes = sizeof name;
    ip_address own;
    const bool named = quirks->takes_node && fi_getname(&endpoint->ep->fid, name, &nbytes) == 0;
    if (named) copy_address(&own, name, nbytes);
    if (named && !quirks->abandons) {
        const int listener = find_listener(&own);
        if (listener >= 0) shutdown(listener, SHUT_RDWR); /* nobody else is accepted */
        for (int i = 0; i < MOST_ROUNDS && hang_up_all(&own, listener, false); i++) fi_cq_read(endpoint->cq, NULL, 0);
    }
    const int ret = fi_close(&endpoint->ep->fid);
    if (ret == 0 && named && quirks->abandons) hang_up_all(&own, -1, true);
    return ret;
}

#else
typedef int pplx_fabric_guard_left_out;
#endif
