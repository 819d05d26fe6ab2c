/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* A port, and the GIDs that peers may know it by.
 *
 * RoCE: only GIDs of RoCE v2, which routers pass on, and none that is link-local; the address that the engine
 * listens on before others, IPv4 before IPv6. Several are offered to the peer, and the pair in the same subnet
 * is taken (verbs_gids_match). InfiniBand: the LID, and GID 0 for what is behind a router, or for a port that takes
 * nothing without: a virtual function, that shares its LID with others.
 *
 * Of the partitions that an InfiniBand port is in the first one with full membership: two limited members of one
 * do not hear each other. */
#if PPLX_HAVE_LIBIBVERBS

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "verbs_internal.h"

enum { HOP_LIMIT = 64 };

static int query_port(const pplx_libibverbs *lib, struct ibv_context *context, uint8_t number,
                      struct ibv_port_attr *attr) {
    memset(attr, 0, sizeof *attr);
    const struct verbs_context *extended = verbs_get_ctx_op(context, query_port);
    if (extended) return extended->query_port(context, number, attr, sizeof *attr);
    return lib->query_port(context, number, attr); /* as much as there was before the struct grew */
}

uint32_t verbs_mtu_nbytes(uint8_t mtu) { return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0; }

/* Megabits of one lane, by the code of ibv_port_attr.active_speed, and lanes by that of active_width. */
static uint64_t bits_per_second(const struct ibv_port_attr *attr) {
    static const struct {
        unsigned code;
        uint64_t value;
    } lanes[] = {{1, 1}, {2, 4}, {4, 8}, {8, 12}, {16, 2}},
      speeds[] = {{1, 2500}, {2, 5000}, {4, 10000}, {8, 10000}, {16, 14000}, {32, 25000}, {64, 50000}, {128, 100000}};
    uint64_t width = 0, speed = 0;
    for (size_t i = 0; i < sizeof lanes / sizeof lanes[0]; i++)
        if (lanes[i].code == attr->active_width) width = lanes[i].value;
    for (size_t i = 0; i < sizeof speeds / sizeof speeds[0]; i++)
        if (speeds[i].code == attr->active_speed) speed = speeds[i].value;
    return width * speed * 1000000;
}

static const unsigned char mapped_prefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static bool is_ipv4(const union ibv_gid *gid) { return memcmp(gid->raw, mapped_prefix, sizeof mapped_prefix) == 0; }

void verbs_gid_format(const union ibv_gid *gid, char *text, size_t nbytes) {
    if (is_ipv4(gid))
        inet_ntop(AF_INET, gid->raw + 12, text, (socklen_t)nbytes);
    else
        inet_ntop(AF_INET6, gid->raw, text, (socklen_t)nbytes);
}

/* False: it is a name, or one of our own host only, which no NIC has. */
static bool node_gid(const char *node, union ibv_gid *gid) {
    memset(gid, 0, sizeof *gid);
    if (!node) return false;
    memcpy(gid->raw, mapped_prefix, sizeof mapped_prefix);
    if (inet_pton(AF_INET, node, gid->raw + 12) == 1) return gid->raw[12] != 127;
    return inet_pton(AF_INET6, node, gid->raw) == 1;
}

/* The library tells since rdma-core 32; before that the kernel does. */
static bool is_roce_v2(const pplx_libibverbs *lib, struct ibv_context *context, uint8_t port, int index) {
    struct ibv_gid_entry entry;
    char path[320], text[32] = "";
    if (lib->query_gid_ex && lib->query_gid_ex(context, port, (uint32_t)index, &entry, 0, sizeof entry) == 0)
        return entry.gid_type == IBV_GID_TYPE_ROCE_V2;
    snprintf(path, sizeof path, "%s/ports/%u/gid_attrs/types/%d", context->device->ibdev_path, port, index);
    FILE *file = fopen(path, "re");
    if (!file) return false;
    const char *line = fgets(text, sizeof text, file);
    fclose(file);
    return line && strstr(line, "v2");
}

/* 0: not routable. */
static int rank_of(const union ibv_gid *gid, const union ibv_gid *node) {
    static const union ibv_gid none;
    if (memcmp(gid, &none, sizeof none) == 0) return -1; /* an empty place */
    if (node && memcmp(gid, node, sizeof *node) == 0) return 4;
    if (is_ipv4(gid)) return gid->raw[12] == 169 && gid->raw[13] == 254 ? 1 : 3;
    return gid->raw[0] == 0xfe && (gid->raw[1] & 0xc0) == 0x80 ? 0 : 2;
}

static void insert(verbs_port *port, const union ibv_gid *gid, int index, int rank) {
    uint32_t at = 0;
    while (at < port->ngids && port->gids[at].rank >= rank) at++;
    if (at == VERBS_MAX_GIDS) return;
    if (port->ngids < VERBS_MAX_GIDS) port->ngids++;
    for (uint32_t i = port->ngids - 1; i > at; i--) port->gids[i] = port->gids[i - 1];
    port->gids[at] = (verbs_gid){*gid, index, rank};
}

static bool choose_gids(const pplx_libibverbs *lib, struct ibv_context *context, const verbs_options *options,
                        verbs_port *port, char *why, size_t nbytes) {
    union ibv_gid wanted, gid;
    const bool has_node = node_gid(options->node, &wanted);
    uint32_t others = 0;
    for (int i = 0; i < port->attr.gid_tbl_len && i < VERBS_GID_ENTRIES; i++) {
        if (options->gid_index >= 0 && i != options->gid_index) continue;
        if (!port->ethernet && options->gid_index < 0 && i > 0) break;
        if (lib->query_gid(context, port->number, i, &gid)) continue;
        int rank = rank_of(&gid, has_node ? &wanted : NULL);
        if (rank < 0) continue;
        if (options->gid_index < 0 && port->ethernet && (rank == 0 || !is_roce_v2(lib, context, port->number, i)))
            others++;
        else
            insert(port, &gid, i, rank);
    }
    if (port->ngids && port->gids[0].rank == 4) {
        port->at_node = true;
        port->ngids = 1; /* it was asked for */
    }
    if (port->ngids || (!port->ethernet && options->gid_index < 0)) return true;
    if (options->gid_index >= 0)
        snprintf(why, nbytes, "port %u has no GID %d", port->number, options->gid_index);
    else
        snprintf(why, nbytes, "port %u has no routable GID of RoCE v2 (%u others): give its interface an IP address",
                 port->number, others);
    return false;
}

/* An address that went and came back may lie elsewhere in the table. */
static bool find_again(const pplx_libibverbs *lib, struct ibv_context *context, const verbs_port *port,
                       verbs_gid *known) {
    union ibv_gid gid;
    for (int i = -1; i < port->attr.gid_tbl_len && i < VERBS_GID_ENTRIES; i++) {
        const int index = i < 0 ? known->index : i; /* where it was, first */
        if (lib->query_gid(context, port->number, index, &gid) || memcmp(&gid, &known->gid, sizeof gid) != 0) continue;
        if (port->ethernet && !is_roce_v2(lib, context, port->number, index)) continue;
        known->index = index;
        return true;
    }
    return false;
}

/* The LID is the subnet manager's to change, the MTU the administrator's. */
bool verbs_port_refresh(const pplx_libibverbs *lib, struct ibv_context *context, const verbs_options *options,
                        verbs_port *port) {
    struct ibv_port_attr attr;
    bool found = port->ngids == 0 || options->gid_index >= 0;
    if (query_port(lib, context, port->number, &attr) == 0) port->attr = attr;
    for (uint32_t i = 0; i < port->ngids && options->gid_index < 0; i++)
        found |= find_again(lib, context, port, &port->gids[i]);
    return found;
}

/* The bits of a GID that its subnet has in common: what our interface with that address says. Where it is not to be
 * seen (a container has the device and not the interface) what is customary: as a preference that is good enough. */
static unsigned subnet_bits(const struct ifaddrs *interfaces, const union ibv_gid *gid) {
    for (const struct ifaddrs *at = interfaces; at; at = at->ifa_next) {
        if (!at->ifa_addr || !at->ifa_netmask) continue;
        unsigned char address[16] = {0}, mask[16];
        memcpy(address, mapped_prefix, sizeof mapped_prefix);
        memset(mask, 0xff, sizeof mask);
        if (at->ifa_addr->sa_family == AF_INET) {
            memcpy(address + 12, &((const struct sockaddr_in *)(const void *)at->ifa_addr)->sin_addr, 4);
            memcpy(mask + 12, &((const struct sockaddr_in *)(const void *)at->ifa_netmask)->sin_addr, 4);
        } else if (at->ifa_addr->sa_family == AF_INET6) {
            memcpy(address, &((const struct sockaddr_in6 *)(const void *)at->ifa_addr)->sin6_addr, 16);
            memcpy(mask, &((const struct sockaddr_in6 *)(const void *)at->ifa_netmask)->sin6_addr, 16);
        } else {
            continue;
        }
        if (memcmp(address, gid->raw, sizeof address) != 0) continue;
        unsigned bits = 0;
        while (bits < 128 && mask[bits / 8] >> (7 - bits % 8) & 1) bits++;
        return bits;
    }
    return is_ipv4(gid) ? 96 + 24 : 64;
}

/* A word for each GID: "ipv4:10.1.0.0/16", "ipv6:fd00::/64", "ib:fe80::/64" (the prefix of an InfiniBand subnet). */
void verbs_port_subnets(const verbs_port *port, char *text, size_t nbytes) {
    struct ifaddrs *interfaces = NULL;
    size_t used = 0;
    text[0] = '\0';
    if (!port->ethernet && port->ngids == 0) snprintf(text, nbytes, "ib");
    if (port->ethernet && getifaddrs(&interfaces)) interfaces = NULL;
    for (uint32_t i = 0; i < port->ngids && used < nbytes; i++) {
        union ibv_gid subnet = port->gids[i].gid;
        const unsigned bits = port->ethernet ? subnet_bits(interfaces, &subnet) : 64;
        for (unsigned bit = bits; bit < 128; bit++) subnet.raw[bit / 8] &= (uint8_t)~(0x80 >> bit % 8);
        const bool ipv4 = port->ethernet && is_ipv4(&port->gids[i].gid);
        char prefix[INET6_ADDRSTRLEN];
        inet_ntop(ipv4 ? AF_INET : AF_INET6, subnet.raw + (ipv4 ? 12 : 0), prefix, sizeof prefix);
        const int n = snprintf(text + used, nbytes - used, "%s%s:%s/%u", i ? " " : "",
                               ipv4             ? "ipv4"
                               : port->ethernet ? "ipv6"
                                                : "ib",
                               prefix, ipv4 ? bits - 96 : bits);
        used += n > 0 ? (size_t)n : nbytes;
    }
    freeifaddrs(interfaces);
}

/* Of an entry; 0: it is empty, or there is none. */
static uint16_t query_pkey(const pplx_libibverbs *lib, struct ibv_context *context, uint8_t number, int index) {
    __be16 pkey = 0;
    return lib->query_pkey(context, number, index, &pkey) == 0 && ntohs(pkey) & 0x7fff ? ntohs(pkey) : 0;
}

static bool choose_pkey(const pplx_libibverbs *lib, struct ibv_context *context, const verbs_options *options,
                        verbs_port *port, char *why, size_t nbytes) {
    const bool named = options->pkey_index >= 0;
    for (int i = named ? options->pkey_index : 0; i < port->attr.pkey_tbl_len; i++) {
        const uint16_t pkey = query_pkey(lib, context, port->number, i);
        if (pkey && (!port->pkey || pkey & 0x8000)) {
            port->pkey = pkey;
            port->pkey_index = (uint16_t)i;
        }
        if (named || pkey & 0x8000) break;
    }
    if (port->pkey) return true;
    if (named)
        snprintf(why, nbytes, "port %u has no P_Key %d", port->number, options->pkey_index);
    else
        snprintf(why, nbytes, "port %u is in no partition: all of its P_Keys are empty", port->number);
    return false;
}

void verbs_pkey_format(const verbs_port *port, char *text, size_t nbytes) {
    text[0] = '\0';
    if (!port->ethernet) snprintf(text, nbytes, ", P_Key 0x%04x (entry %u)", port->pkey, port->pkey_index);
}

void verbs_route(const verbs_port *port, const verbs_options *options, const verbs_gid *ours,
                 const union ibv_gid *theirs, uint16_t lid, bool grh, struct ibv_ah_attr *ah) {
    ah->port_num = port->number;
    ah->sl = (uint8_t)options->service_level;
    ah->dlid = lid;
    /* InfiniBand needs a global route only where a router lies between, or one of the ports says so. */
    ah->is_global = port->ethernet || (ours && theirs &&
                                       (grh || port->grh ||
                                        memcmp(ours->gid.raw, theirs->raw, sizeof theirs->global.subnet_prefix) != 0));
    if (!ah->is_global) return;
    ah->grh.dgid = *theirs;
    ah->grh.sgid_index = (uint8_t)ours->index;
    ah->grh.hop_limit = HOP_LIMIT;
    ah->grh.traffic_class = (uint8_t)options->traffic_class;
}

static const char *name_state(enum ibv_port_state state) {
    switch (state) {
    case IBV_PORT_DOWN: return "down";
    case IBV_PORT_INIT: return "being set up: is there a subnet manager";
    case IBV_PORT_ARMED: return "armed";
    case IBV_PORT_ACTIVE_DEFER: return "deferred";
    default: return "in an unknown state";
    }
}

bool verbs_port_choose(const pplx_libibverbs *lib, struct ibv_context *context, uint8_t number,
                       const verbs_options *options, verbs_port *port, char *why, size_t nbytes) {
    memset(port, 0, sizeof *port);
    port->number = number;
    if (query_port(lib, context, number, &port->attr)) {
        snprintf(why, nbytes, "it has no port %u", number);
        return false;
    }
    if (port->attr.state != IBV_PORT_ACTIVE) {
        snprintf(why, nbytes, "port %u is %s", number, name_state(port->attr.state));
        return false;
    }
    port->ethernet = port->attr.link_layer == IBV_LINK_LAYER_ETHERNET;
    port->grh = port->attr.flags & IBV_QPF_GRH_REQUIRED;
    port->bits_per_second = bits_per_second(&port->attr);
    return choose_pkey(lib, context, options, port, why, nbytes) &&
           choose_gids(lib, context, options, port, why, nbytes);
}

#else
typedef int pplx_verbs_port_left_out;
#endif
