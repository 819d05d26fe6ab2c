# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Recorded hosts for ``pplx-async doctor``: whole ones, for tests to break."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.machines import LAPTOP, build, write

# A GPU and two NICs of a socket, and two CPUs of each of two sockets: enough to be near or far.
SMALL = """
node 0 cpus 0-3 siblings 4
node 1 cpus 4-7 siblings 4
root 0000:15 node 0
  bridge 0000:15:01.0
    gpu 0000:1b:00.0
    nic 0000:18:00.0 mlx5_0
root 0000:26 node 0
  bridge 0000:26:01.0
    nic 0000:29:00.0 mlx5_1
"""
AWS = """
node 0 cpus 0-7 siblings 0
root 0000:15 node 0
  bridge 0000:15:01.0
    gpu 0000:1b:00.0
    nic 0000:18:00.0 rdmap24s0 model=efa
"""
PROBES = {
    "environ": {"CUDA_DEVICE_MAX_CONNECTIONS": "32"},
    "built": {"fabric": None, "verbs": None},
    "libfabric": [{"library": "/usr/lib/libfabric.so.1", "version": "2.1", "providers": ["tcp"], "reason": None}],
    "libibverbs": {"library": "/usr/lib/libibverbs.so.1.14.50.0", "version": "1.14.50.0", "reason": None},
    "libcuda": {"library": "/usr/lib/libcuda.so.580", "version": "13.0", "reason": None, "dma_buf": True},
    "shm": {"total": 64 << 30, "free": 64 << 30},
    "calls": {"pidfd_open": None, "memfd_create": None},
}


def host(root: Path, layout: str = SMALL) -> Path:
    """Make a host on which all is well: a server with RoCE, one with EFA, or a laptop."""
    build(layout, root)
    write(root, "proc/sys/kernel/osrelease", "6.8.0-45-generic")
    write(root, "proc/sys/kernel/yama/ptrace_scope", "1")
    write(root, "proc/sys/vm/nr_hugepages", "5128")
    write(root, "proc/self/status", "CapEff:\t0000000000000000\nCpus_allowed_list:\t0-7")
    limits(root)
    gpus = layout != LAPTOP
    probes(root, **({} if gpus else {"libcuda": {"reason": "no such file"}, "libibverbs": {"reason": "no such file"}}))
    if layout == SMALL:
        roce(root, "mlx5_0", "0000:18:00.0", "eth0", "10.0.0.1")
        roce(root, "mlx5_1", "0000:29:00.0", "eth1", "10.0.1.1")
    elif layout == AWS:
        probes(root, libfabric=[PROBES["libfabric"][0] | {"providers": ["efa", "tcp"]}])
        device(root, "rdmap24s0", "0000:18:00.0", "efa", "Unspecified", "100 Gb/sec (4X EDR)")
    return root


def probes(root: Path, **changes: object) -> None:
    """Record what only the machine itself can say."""
    file = root / "probes.json"
    known = json.loads(file.read_text()) if file.exists() else PROBES
    write(root, "probes.json", json.dumps(known | changes))


def limits(root: Path, memlock: str = "unlimited", files: str = "1048576", hard: str | None = None) -> None:
    """Record the limits of a process."""
    lines = ["Limit                     Soft Limit           Hard Limit           Units"]
    for name, soft in {"Max locked memory": memlock, "Max open files": files}.items():
        lines.append(f"{name:25} {soft:20} {hard or soft:20} bytes")
    write(root, "proc/self/limits", "\n".join(lines))


def device(root: Path, name: str, address: str, driver: str, layer: str, rate: str) -> None:
    """Record an RDMA device with one active port."""
    number = len(list((root / "sys/class/infiniband").glob("*")))
    pci = (root / "sys/bus/pci/devices" / address).resolve()
    driver_folder = root / "sys/bus/pci/drivers" / driver
    driver_folder.mkdir(parents=True, exist_ok=True)
    (pci / "driver").symlink_to(driver_folder)
    for which in ("current", "max"):
        write(pci, f"{which}_link_speed", "32.0 GT/s PCIe")
        write(pci, f"{which}_link_width", "16")
    folder = f"sys/class/infiniband/{name}"
    (root / folder).mkdir(parents=True)
    (root / folder / "device").symlink_to(pci)
    for file, text in {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": rate, "link_layer": layer}.items():
        write(root, f"{folder}/ports/1/{file}", text)
    write(root, f"sys/class/infiniband_verbs/uverbs{number}/ibdev", name)
    write(root, f"dev/infiniband/uverbs{number}", "")


def roce(root: Path, name: str, address: str, interface: str, ip: str) -> None:
    """Record a ConnectX-7 with its interface and GIDs: link-local and routable, of RoCE v1 and v2."""
    device(root, name, address, "mlx5_core", "Ethernet", "400 Gb/sec (4X NDR)")
    (root / "sys/bus/pci/devices" / address / "net" / interface).mkdir(parents=True)
    write(root, f"sys/class/net/{interface}/mtu", "9000")
    write(root, f"sys/class/net/{interface}/flags", "0x1003")
    mapped = "0000:0000:0000:0000:0000:ffff:{:02x}{:02x}:{:02x}{:02x}".format(*map(int, ip.split(".")))
    link_local = "fe80:0000:0000:0000:5054:00ff:fe12:3456"
    for index, gid in enumerate((link_local, link_local, mapped, mapped)):
        add_gid(root, name, index, gid, ("IB/RoCE v1", "RoCE v2")[index % 2], interface)
    add_gid(root, name, 4, "0000:0000:0000:0000:0000:0000:0000:0000", "", "")


def add_gid(root: Path, name: str, index: int, gid: str, kind: str, interface: str) -> None:
    """Record one entry of a GID table."""
    port = f"sys/class/infiniband/{name}/ports/1"
    for file, text in {"gids": gid, "gid_attrs/types": kind, "gid_attrs/ndevs": interface}.items():
        write(root, f"{port}/{file}/{index}", text)
