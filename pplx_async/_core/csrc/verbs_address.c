/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* An endpoint's address: what the peer needs to connect its queue pairs to ours. It comes from the peer, so
 * every field is in range after verbs_address_read(), or it is refused.
 *
 *   0  'p' 'v'    4  link layer   8   LID        12  QP numbers, two   28  bytes of the largest message
 *   2  version    5  MTU          10  GIDs, 0-4  20  first PSNs, two   32  the GIDs, 16 B each
 *   3  1: GRH     6  P_Key        11  READs          all numbers little-endian */
#if PPLX_HAVE_LIBIBVERBS

#include <string.h>

#include "verbs_internal.h"

enum { VERSION = 2, HEAD_BYTES = 32, MOST_24 = (1 << 24) - 1 };

_Static_assert(HEAD_BYTES + VERBS_MAX_GIDS * 16 <= PPLX_ADDRESS_BYTES, "an address must fit");

static void put(unsigned char *at, uint32_t value, size_t nbytes) {
    for (size_t i = 0; i < nbytes; i++) at[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t get(const unsigned char *at, size_t nbytes) {
    uint32_t value = 0;
    for (size_t i = 0; i < nbytes; i++) value |= (uint32_t)at[i] << (8 * i);
    return value;
}

size_t verbs_address_write(const verbs_address *address, unsigned char *bytes, size_t capacity) {
    const size_t nbytes = HEAD_BYTES + (size_t)address->ngids * 16;
    if (capacity < nbytes) return 0;
    memset(bytes, 0, HEAD_BYTES);
    bytes[0] = 'p';
    bytes[1] = 'v';
    bytes[2] = VERSION;
    bytes[3] = address->grh;
    bytes[4] = address->ethernet;
    bytes[5] = address->mtu;
    put(bytes + 6, address->pkey, 2);
    put(bytes + 8, address->lid, 2);
    bytes[10] = (unsigned char)address->ngids;
    bytes[11] = address->read_depth;
    for (size_t i = 0; i < 2; i++) {
        put(bytes + 12 + 4 * i, address->qpn[i], 4);
        put(bytes + 20 + 4 * i, address->psn[i], 4);
    }
    put(bytes + 28, address->message_nbytes, 4);
    for (size_t i = 0; i < address->ngids; i++) memcpy(bytes + HEAD_BYTES + 16 * i, address->gids[i].raw, 16);
    return nbytes;
}

/* Somebody's, and of one host. */
static bool is_unicast(const union ibv_gid *gid) {
    static const union ibv_gid none;
    return memcmp(gid, &none, sizeof none) != 0 && gid->raw[0] != 0xff;
}

bool verbs_address_read(verbs_address *address, const unsigned char *bytes, size_t nbytes) {
    memset(address, 0, sizeof *address);
    if (nbytes < HEAD_BYTES || bytes[0] != 'p' || bytes[1] != 'v' || bytes[2] != VERSION || bytes[4] > 1) return false;
    address->grh = bytes[3] & 1;
    address->ethernet = bytes[4] == 1;
    address->mtu = bytes[5];
    address->pkey = (uint16_t)get(bytes + 6, 2);
    address->lid = (uint16_t)get(bytes + 8, 2);
    address->ngids = bytes[10];
    address->read_depth = bytes[11];
    address->message_nbytes = get(bytes + 28, 4);
    bool valid = address->ngids <= VERBS_MAX_GIDS && nbytes == HEAD_BYTES + (size_t)address->ngids * 16 &&
                 verbs_mtu_nbytes(address->mtu) && (address->ethernet ? address->ngids > 0 : address->lid != 0);
    for (size_t i = 0; i < 2 && valid; i++) {
        address->qpn[i] = get(bytes + 12 + 4 * i, 4);
        address->psn[i] = get(bytes + 20 + 4 * i, 4);
        /* 0 and 1 are the queue pairs of management, the last one is all multicast */
        valid = address->qpn[i] > 1 && address->qpn[i] < MOST_24 && address->psn[i] <= MOST_24;
    }
    for (size_t i = 0; i < address->ngids && valid; i++) {
        memcpy(address->gids[i].raw, bytes + HEAD_BYTES + 16 * i, 16);
        valid = is_unicast(&address->gids[i]);
    }
    return valid && address->qpn[0] != address->qpn[1];
}

static uint32_t common_bits(const union ibv_gid *a, const union ibv_gid *b) {
    for (uint32_t i = 0; i < 16; i++) {
        const unsigned differ = a->raw[i] ^ b->raw[i];
        if (differ) return 8 * i + (uint32_t)__builtin_clz(differ) - 24;
    }
    return 128;
}

/* An IPv4 address reaches IPv4 addresses: all of them begin with the same 96 bits. */
static bool reaches(const union ibv_gid *a, const union ibv_gid *b) {
    static const unsigned char mapped[12] = {[10] = 0xff, [11] = 0xff};
    return (memcmp(a->raw, mapped, sizeof mapped) == 0) == (memcmp(b->raw, mapped, sizeof mapped) == 0);
}

static const union ibv_gid *smaller(const union ibv_gid *a, const union ibv_gid *b) {
    return memcmp(a, b, sizeof *a) <= 0 ? a : b;
}

/* The longest common prefix; of several such pairs that with the smallest GID, and then the smallest other one:
 * nothing in that depends on whose they are. */
bool verbs_gids_match(const union ibv_gid *ours, uint32_t nours, const union ibv_gid *theirs, uint32_t ntheirs,
                      uint32_t *our, uint32_t *their) {
    const union ibv_gid *low = NULL, *high = NULL;
    uint32_t most = 0;
    for (uint32_t i = 0; i < nours; i++) {
        for (uint32_t j = 0; j < ntheirs; j++) {
            const union ibv_gid *a = smaller(&ours[i], &theirs[j]), *b = a == &ours[i] ? &theirs[j] : &ours[i];
            const uint32_t common = common_bits(a, b);
            if (!reaches(a, b) || (low && common < most)) continue;
            if (low && common == most) {
                const int order = memcmp(a, low, sizeof *a);
                if (order > 0 || (order == 0 && memcmp(b, high, sizeof *b) >= 0)) continue;
            }
            most = common;
            low = a;
            high = b;
            *our = i;
            *their = j;
        }
    }
    return low != NULL;
}

#else
typedef int pplx_verbs_address_left_out;
#endif
