/* SPDX-FileCopyrightText: 2026 The pplx_async authors
 * SPDX-License-Identifier: Apache-2.0 */

/* The devices, from a text: fake_ibverbs.h describes it. */
#include "fake_ibverbs.h"

#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char default_layout[] = "fake0 roce gbps=100 ip=10.77.0.1";

fake_device fake_devices[FAKE_MAX_DEVICES];
int fake_ndevices;
static bool was_read, nosys;

bool fake_layout_nosys(void) { return nosys; }

static void add_gid(fake_port *port, const union ibv_gid *gid, uint32_t type) {
    for (int i = 0; i < FAKE_MAX_GIDS; i++) {
        if (port->gids[i].used) continue;
        port->gids[i] = (fake_gid){*gid, type, true};
        return;
    }
}

/* fe80:: and the device's GUID. */
static union ibv_gid link_local(int device, int port) {
    union ibv_gid gid = {.raw = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0, 0x5e, 0xff, 0xfe, 0}};
    gid.raw[14] = (uint8_t)(device + 1);
    gid.raw[15] = (uint8_t)port;
    return gid;
}

static bool read_gid(const char *text, union ibv_gid *gid) {
    memset(gid, 0, sizeof *gid);
    gid->raw[10] = gid->raw[11] = 0xff;
    if (inet_pton(AF_INET, text, gid->raw + 12) == 1) return true;
    return inet_pton(AF_INET6, text, gid->raw) == 1;
}

static void begin_port(fake_device *device, int index, int number) {
    fake_port *port = &device->ports[number - 1];
    const bool ib = number > 1 && device->ports[0].attr.link_layer == IBV_LINK_LAYER_INFINIBAND;
    port->attr = (struct ibv_port_attr){.state = IBV_PORT_ACTIVE,
                                        .max_mtu = IBV_MTU_4096,
                                        .active_mtu = ib ? IBV_MTU_4096 : IBV_MTU_1024,
                                        .gid_tbl_len = FAKE_MAX_GIDS,
                                        .max_msg_sz = 1u << 30,
                                        .pkey_tbl_len = FAKE_MAX_PKEYS,
                                        .active_width = 2,
                                        .active_speed = 32,
                                        .phys_state = 5,
                                        .link_layer = ib ? IBV_LINK_LAYER_INFINIBAND : IBV_LINK_LAYER_ETHERNET};
    port->pkeys[0] = 0xffff;
    device->attr.phys_port_cnt = (uint8_t)number;
    const union ibv_gid own = link_local(index, number);
    if (ib) {
        add_gid(port, &own, IBV_GID_TYPE_IB);
    } else {
        add_gid(port, &own, IBV_GID_TYPE_ROCE_V1);
        add_gid(port, &own, IBV_GID_TYPE_ROCE_V2);
    }
}

static void become_ib(fake_device *device, int index, fake_port *port) {
    const union ibv_gid own = link_local(index, device->attr.phys_port_cnt);
    memset(port->gids, 0, sizeof port->gids);
    add_gid(port, &own, IBV_GID_TYPE_IB);
    port->attr.link_layer = IBV_LINK_LAYER_INFINIBAND;
    port->attr.active_mtu = IBV_MTU_4096;
    port->attr.lid = (uint16_t)(index + 1);
}

static void begin_device(fake_device *device, int index, const char *name) {
    const char *sysfs = getenv("FAKE_IBV_SYSFS");
    memset(device, 0, sizeof *device);
    device->device.node_type = IBV_NODE_CA;
    device->device.transport_type = IBV_TRANSPORT_IB;
    snprintf(device->device.name, sizeof device->device.name, "%s", name);
    snprintf(device->device.dev_name, sizeof device->device.dev_name, "uverbs%d", index);
    snprintf(device->device.dev_path, sizeof device->device.dev_path, "/sys/class/infiniband_verbs/uverbs%d", index);
    snprintf(device->device.ibdev_path, sizeof device->device.ibdev_path, "%s/%s",
             sysfs ? sysfs : "/sys/class/infiniband", name);
    device->attr = (struct ibv_device_attr){.fw_ver = "1.0",
                                            .max_mr_size = UINT64_MAX,
                                            .page_size_cap = 0xfffff000,
                                            .max_qp = 4096,
                                            .max_qp_wr = 8192,
                                            .max_sge = FAKE_MAX_SGE,
                                            .max_sge_rd = FAKE_MAX_SGE,
                                            .max_cq = 4096,
                                            .max_cqe = 1 << 17,
                                            .max_mr = 1 << 20,
                                            .max_pd = 4096,
                                            .max_qp_rd_atom = 16,
                                            .max_qp_init_rd_atom = 16,
                                            .max_srq = 4096,
                                            .max_srq_wr = 1 << 15,
                                            .max_srq_sge = FAKE_MAX_SGE,
                                            .max_pkeys = FAKE_MAX_PKEYS,
                                            .local_ca_ack_delay = 15};
    device->max_inline = 220;
    device->retry_ms = -1;
    const union ibv_gid guid = link_local(index, 0);
    device->attr.node_guid = device->attr.sys_image_guid = guid.global.interface_id;
    begin_port(device, index, 1);
}

/* Of a port: lanes and speed, as codes. */
static bool set_speed(struct ibv_port_attr *attr, long gbps) {
    static const struct {
        int gbps;
        uint8_t width, speed;
    } known[] = {{1, 1, 1},   {2, 1, 1},   {10, 2, 1},   {20, 2, 2},   {25, 1, 32},  {40, 2, 4},
                 {50, 1, 64}, {56, 2, 16}, {100, 2, 32}, {200, 2, 64}, {400, 2, 128}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (known[i].gbps != gbps) continue;
        attr->active_width = known[i].width;
        attr->active_speed = known[i].speed;
        return true;
    }
    return false;
}

static bool set_number(fake_device *device, fake_port *port, const char *key, long n) {
    const struct {
        const char *key;
        int *value;
    } limits[] = {{"cqe", &device->attr.max_cqe},    {"wr", &device->attr.max_qp_wr},
                  {"srq", &device->attr.max_srq_wr}, {"inline", &device->max_inline},
                  {"qps", &device->attr.max_qp},     {"mrs", &device->attr.max_mr},
                  {"sge", &device->attr.max_sge},    {"delay", &device->delay_us},
                  {"retry", &device->retry_ms},      {"net", &port->net},
                  {"reg", &device->register_ms}};
    for (size_t i = 0; i < sizeof limits / sizeof limits[0]; i++) {
        if (strcmp(limits[i].key, key) != 0) continue;
        *limits[i].value = (int)n;
        return true;
    }
    if (strcmp(key, "gbps") == 0) return set_speed(&port->attr, n);
    if (strcmp(key, "lid") == 0) return port->attr.lid = (uint16_t)n, true;
    if (strcmp(key, "reads") == 0) return device->attr.max_qp_rd_atom = device->attr.max_qp_init_rd_atom = (int)n, true;
    if (strcmp(key, "asks") == 0) return device->attr.max_qp_init_rd_atom = (int)n, true;
    if (strcmp(key, "pkey") == 0) {
        if (port->npkeys == FAKE_MAX_PKEYS) return false;
        port->pkeys[port->npkeys++] = (uint16_t)n;
        return true;
    }
    if (strcmp(key, "mtu") == 0) {
        for (unsigned mtu = IBV_MTU_256; mtu <= IBV_MTU_4096; mtu++)
            if (n == 128l << mtu) return port->attr.active_mtu = (enum ibv_mtu)mtu, true;
    }
    return false;
}

static bool set_word(fake_device *device, int index, const char *word) {
    fake_port *port = &device->ports[device->attr.phys_port_cnt - 1];
    const char *equals = strchr(word, '=');
    union ibv_gid gid;
    char key[16];
    if (equals) {
        snprintf(key, sizeof key, "%.*s", (int)(equals - word), word);
        const bool both = strcmp(key, "ip") == 0;
        if (both || strcmp(key, "v1") == 0 || strcmp(key, "v2") == 0 || strcmp(key, "gid") == 0) {
            if (!read_gid(equals + 1, &gid)) return false;
            if (strcmp(key, "gid") == 0) add_gid(port, &gid, IBV_GID_TYPE_IB);
            if (both || strcmp(key, "v1") == 0) add_gid(port, &gid, IBV_GID_TYPE_ROCE_V1);
            if (both || strcmp(key, "v2") == 0) add_gid(port, &gid, IBV_GID_TYPE_ROCE_V2);
            return true;
        }
        return set_number(device, port, key, strtol(equals + 1, NULL, 0));
    }
    if (strcmp(word, "roce") == 0) return true;
    if (strcmp(word, "ib") == 0) return become_ib(device, index, port), true;
    if (strcmp(word, "iwarp") == 0) {
        device->device.node_type = IBV_NODE_RNIC;
        device->device.transport_type = IBV_TRANSPORT_IWARP;
    } else if (strcmp(word, "efa") == 0) {
        device->device.node_type = IBV_NODE_UNSPECIFIED;
        device->device.transport_type = IBV_TRANSPORT_UNSPECIFIED;
    } else if (strcmp(word, "bare") == 0) {
        memset(port->gids, 0, sizeof port->gids);
    } else if (strcmp(word, "down") == 0) {
        port->attr.state = IBV_PORT_DOWN;
    } else if (strcmp(word, "init") == 0) {
        port->attr.state = IBV_PORT_INIT;
    } else if (strcmp(word, "port") == 0) {
        if (device->attr.phys_port_cnt == FAKE_MAX_PORTS) return false;
        begin_port(device, index, device->attr.phys_port_cnt + 1);
    } else if (strcmp(word, "grh") == 0) {
        port->attr.flags |= IBV_QPF_GRH_REQUIRED;
    } else if (strcmp(word, "td") == 0) {
        device->thread_domains = true;
    } else if (strcmp(word, "dmabuf") == 0) {
        device->dmabuf = true;
    } else if (strcmp(word, "noopen") == 0) {
        device->no_open = true;
    } else if (strcmp(word, "stale") == 0) {
        device->stale = true;
    } else if (strcmp(word, "soft") == 0) {
        device->attr.vendor_id = 0xffffff;
    } else if (strcmp(word, "sticky") == 0) {
        device->sticky = true;
    } else if (strcmp(word, "late") == 0) {
        device->late = true;
    } else {
        return false;
    }
    return true;
}

int fake_layout_read(const char *text) {
    char copy[4096], *next_device, *next_word;
    int n = 0, result = 0;
    snprintf(copy, sizeof copy, "%s", text);
    nosys = strcmp(text, "nosys") == 0;
    was_read = true;
    fake_ndevices = 0;
    if (nosys || strcmp(text, "none") == 0) return 0;
    for (char *device = strtok_r(copy, ";", &next_device); device; device = strtok_r(NULL, ";", &next_device)) {
        const char *word = strtok_r(device, " \t\n", &next_word);
        if (!word || n == FAKE_MAX_DEVICES) return -1;
        begin_device(&fake_devices[n], n, word);
        while ((word = strtok_r(NULL, " \t\n", &next_word))) {
            if (set_word(&fake_devices[n], n, word)) continue;
            fprintf(stderr, "fake libibverbs: the layout has an unknown word: %s\n", word);
            result = -1;
        }
        n++;
    }
    fake_ndevices = n;
    return n ? result : -1;
}

bool fake_layout_change(fake_device *device, const char *words) {
    char copy[256], *next;
    bool known = true;
    snprintf(copy, sizeof copy, "%s", words);
    for (const char *word = strtok_r(copy, " ", &next); word; word = strtok_r(NULL, " ", &next))
        known &= set_word(device, (int)(device - fake_devices), word);
    return known;
}

void fake_layout_need(void) {
    const char *text = getenv("FAKE_IBV_LAYOUT");
    if (!was_read && fake_layout_read(text ? text : default_layout)) fake_complain("FAKE_IBV_LAYOUT");
}
