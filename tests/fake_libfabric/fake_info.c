/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* What libfabric.so.1 exports: fi_getinfo and its like by version, fi_fabric, fi_version. */
#include "fake_efa.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if FI_MAJOR_VERSION > 1
#define INFO_VERSION "FABRIC_1.8"
#elif FI_MINOR_VERSION >= 20
#define INFO_VERSION "FABRIC_1.7"
#else
#define INFO_VERSION "FABRIC_1.3"
#endif

#define SYMVER(function, name, version) __asm__(".symver " #function "," #name version)
#define EXPORT __attribute__((visibility("default"), used))

static const uint64_t capabilities = FI_MSG | FI_RMA | FI_SEND | FI_RECV | FI_READ | FI_WRITE | FI_REMOTE_READ |
                                     FI_REMOTE_WRITE | FI_DIRECTED_RECV | FI_SOURCE | FI_LOCAL_COMM | FI_REMOTE_COMM;
static const int mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;

/* Info structs are allocated here only, so the parts are always there. */
EXPORT void fake_freeinfo(struct fi_info *info) {
    while (info) {
        struct fi_info *next = info->next;
        free(info->src_addr);
        free(info->dest_addr);
        free(info->tx_attr);
        free(info->rx_attr);
        free(info->ep_attr);
        if (info->domain_attr) free(info->domain_attr->name);
        free(info->domain_attr);
        if (info->fabric_attr) {
            free(info->fabric_attr->name);
            free(info->fabric_attr->prov_name);
        }
        free(info->fabric_attr);
        if (info->nic) {
            free(info->nic->link_attr->address);
            free(info->nic->link_attr);
            free(info->nic);
        }
        free(info);
        info = next;
    }
}

static void *copy_of(const void *bytes, size_t nbytes) {
    void *copy = bytes && nbytes ? malloc(nbytes) : NULL;
    return copy ? memcpy(copy, bytes, nbytes) : NULL;
}

static char *text_of(const char *text) { return text ? strdup(text) : NULL; }

static struct fid_nic *make_nic(const char *address) {
    struct fid_nic *nic = calloc(1, sizeof *nic);
    struct fi_link_attr *link = calloc(1, sizeof *link);
    if (!nic || !link) abort();
    link->address = text_of(address);
    link->speed = 100ull * 1000 * 1000 * 1000;
    link->mtu = 8928;
    link->state = FI_LINK_UP;
    nic->fid.fclass = FI_CLASS_NIC;
    nic->link_attr = link;
    return nic;
}

/* A test's library: running out of memory may end the process. */
EXPORT struct fi_info *fake_dupinfo(const struct fi_info *info) {
    struct fi_info *copy = calloc(1, sizeof *copy);
    if (!copy) abort();
    if (!info) {
        copy->tx_attr = calloc(1, sizeof *copy->tx_attr);
        copy->rx_attr = calloc(1, sizeof *copy->rx_attr);
        copy->ep_attr = calloc(1, sizeof *copy->ep_attr);
        copy->domain_attr = calloc(1, sizeof *copy->domain_attr);
        copy->fabric_attr = calloc(1, sizeof *copy->fabric_attr);
        return copy;
    }
    *copy = *info;
    copy->next = NULL;
    copy->src_addr = copy_of(info->src_addr, info->src_addrlen);
    copy->dest_addr = copy_of(info->dest_addr, info->dest_addrlen);
    copy->tx_attr = copy_of(info->tx_attr, sizeof *info->tx_attr);
    copy->rx_attr = copy_of(info->rx_attr, sizeof *info->rx_attr);
    copy->ep_attr = copy_of(info->ep_attr, sizeof *info->ep_attr);
    copy->domain_attr = copy_of(info->domain_attr, sizeof *info->domain_attr);
    copy->fabric_attr = copy_of(info->fabric_attr, sizeof *info->fabric_attr);
    copy->domain_attr->name = text_of(info->domain_attr->name);
    copy->fabric_attr->name = text_of(info->fabric_attr->name);
    copy->fabric_attr->prov_name = text_of(info->fabric_attr->prov_name);
    if (info->nic) copy->nic = make_nic(info->nic->link_attr->address);
    return copy;
}

static struct fi_info *make_info(unsigned nic, uint32_t version) {
    char text[64];
    struct fi_info *info = fake_dupinfo(NULL);
    fake_address *address = calloc(1, sizeof *address);
    if (!address) abort();
    address->gid[0] = 0xfe;
    address->gid[1] = 0x80;
    address->gid[15] = (uint8_t)(nic + 1);
    info->caps = capabilities;
    info->addr_format = FI_ADDR_EFA;
    info->src_addr = address;
    info->src_addrlen = sizeof *address;
    info->tx_attr->caps = capabilities;
    info->tx_attr->size = FAKE_TX_SIZE;
    info->tx_attr->iov_limit = info->tx_attr->rma_iov_limit = 1;
    info->rx_attr->caps = capabilities;
    info->rx_attr->size = FAKE_TX_SIZE;
    info->rx_attr->iov_limit = 1;
    info->ep_attr->type = FI_EP_RDM;
    info->ep_attr->protocol = FI_PROTO_EFA;
    info->ep_attr->max_msg_size = UINT64_MAX;
    info->domain_attr->threading = FI_THREAD_DOMAIN;
    info->domain_attr->control_progress = info->domain_attr->data_progress = FI_PROGRESS_MANUAL;
    info->domain_attr->resource_mgmt = FI_RM_ENABLED;
    info->domain_attr->av_type = FI_AV_TABLE;
    info->domain_attr->mr_mode = mr_mode;
    info->domain_attr->mr_key_size = 4;
    info->domain_attr->cq_data_size = 4;
    snprintf(text, sizeof text, "fakeefa%u-rdm", nic);
    info->domain_attr->name = text_of(text);
    info->fabric_attr->name = text_of("efa");
    info->fabric_attr->prov_name = text_of("efa");
    info->fabric_attr->api_version = version;
    snprintf(text, sizeof text, "EFA-fe80::%u", nic + 1);
    info->nic = make_nic(text);
    return info;
}

/* What the caller must be ready for, and may not ask for. */
static bool acceptable(const struct fi_info *hints) {
    if (!hints) return true;
    const char *name = hints->fabric_attr->prov_name;
    if (name && strcmp(name, "efa") != 0) return false;
    if (hints->ep_attr->type != FI_EP_RDM || (hints->caps & ~(capabilities | FI_HMEM))) return false;
    return (hints->domain_attr->mr_mode & mr_mode) == mr_mode;
}

/* As EFA: FI_HMEM is claimed since 1.18 wherever there is CUDA, and before only if the NIC can reach it. */
static bool has_hmem(uint32_t version, const struct fi_info *hints) {
    return getenv("FAKE_EFA_CUDA") && (hints->domain_attr->mr_mode & FI_MR_HMEM) &&
           (FI_VERSION_GE(version, FI_VERSION(1, 18)) || fake_number("FAKE_EFA_P2P", 1));
}

EXPORT int fake_getinfo(uint32_t version, const char *node, const char *service, uint64_t flags,
                        const struct fi_info *hints, struct fi_info **out) {
    const char *text = getenv("FAKE_EFA_NICS");
    unsigned nics = text ? (unsigned)atoi(text) : 2;
    struct fi_info **last = out;
    (void)service, (void)flags;
    *out = NULL;
    if (FI_VERSION_LT(fi_version(), version)) return -FI_ENOSYS;
    if (FI_MAJOR(version) != FI_MAJOR_VERSION || node || !acceptable(hints)) /* a node would have to be a GID */
        return -FI_ENODATA;
    const bool hmem = hints && (hints->caps & FI_HMEM);
    if (hmem && !has_hmem(version, hints)) return -FI_ENODATA;
    for (unsigned nic = 0; nic < nics && nic < FAKE_MAX_NICS; nic++) {
        struct fi_info *info = make_info(nic, version);
        if (hints && hints->domain_attr->name && strcmp(hints->domain_attr->name, info->domain_attr->name) != 0) {
            fake_freeinfo(info);
            continue;
        }
        if (hints && hints->caps) info->caps = hints->caps;
        if (hmem) info->domain_attr->mr_mode |= FI_MR_HMEM;
        *last = info;
        last = &info->next;
    }
    return *out ? 0 : -FI_ENODATA;
}

SYMVER(fake_getinfo, fi_getinfo, "@" INFO_VERSION);
SYMVER(fake_freeinfo, fi_freeinfo, "@" INFO_VERSION);
SYMVER(fake_dupinfo, fi_dupinfo, "@" INFO_VERSION);

/* The default versions are of a layout that no header describes. */
static void wrong_version(void) {
    fprintf(stderr, "fake libfabric: fi_getinfo, fi_freeinfo or fi_dupinfo was bound without its version\n");
    abort();
}

EXPORT int newer_getinfo(uint32_t version, const char *node, const char *service, uint64_t flags,
                         const struct fi_info *hints, struct fi_info **out) {
    (void)version, (void)node, (void)service, (void)flags, (void)hints, (void)out;
    wrong_version();
    return -FI_ENOSYS;
}

EXPORT void newer_freeinfo(struct fi_info *info) {
    (void)info;
    wrong_version();
}

EXPORT struct fi_info *newer_dupinfo(const struct fi_info *info) {
    (void)info;
    wrong_version();
    return NULL;
}

SYMVER(newer_getinfo, fi_getinfo, "@@FABRIC_1.99");
SYMVER(newer_freeinfo, fi_freeinfo, "@@FABRIC_1.99");
SYMVER(newer_dupinfo, fi_dupinfo, "@@FABRIC_1.99");

static int fabric_close(struct fid *fid) {
    free(fid);
    return 0;
}

static struct fi_ops fabric_fid_ops = {.size = sizeof(struct fi_ops), .close = fabric_close};
static struct fi_ops_fabric fabric_ops = {
    .size = sizeof(struct fi_ops_fabric), .domain = fake_domain_open, .eq_open = fake_eq_open, .trywait = fake_trywait};

EXPORT int fi_fabric(struct fi_fabric_attr *attr, struct fid_fabric **out, void *context) {
    if (!attr->prov_name || strcmp(attr->prov_name, "efa") != 0) return -FI_ENODATA;
    struct fid_fabric *fabric = calloc(1, sizeof *fabric);
    if (!fabric) return -FI_ENOMEM;
    fabric->fid = (struct fid){FI_CLASS_FABRIC, context, &fabric_fid_ops};
    fabric->ops = &fabric_ops;
    fabric->api_version = attr->api_version;
    *out = fabric;
    return 0;
}

/* Recent enough that the options of EFA endpoints are known. */
EXPORT uint32_t fi_version(void) { return FI_VERSION(1, (uint32_t)fake_number("FAKE_EFA_VERSION", 22)); }

EXPORT const char *fi_strerror(int errnum) { return errnum < FI_ERRNO_OFFSET ? strerror(errnum) : "libfabric error"; }

EXPORT char *fi_tostr(const void *data, enum fi_type datatype) {
    static char text[] = "(fake)";
    (void)data, (void)datatype;
    return text;
}
