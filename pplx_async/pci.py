# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which GPUs and NICs hang where in this machine: PCI switches, root complexes, NUMA nodes, CPUs.

All of it is read from ``/sys``, or from a copy of another machine's: nothing is loaded and nothing is
opened. Where a file is missing, as in a container, what it would say is unknown, and no error.
"""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Device", "Distance", "Kind", "Machine", "distance", "parse_cpus", "read_machine"]

_ADDRESS = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HOST_BRIDGE = re.compile(r"pci[0-9a-f]{4,}:[0-9a-f]{2}")
# NVIDIA and AMD: other display controllers are screens, not something to move memory to.
_GPU_VENDORS = (0x10DE, 0x1002)
_DISPLAY, _NETWORK = 0x03, 0x02


class Kind(enum.StrEnum):
    """What a device is to us."""

    GPU = "gpu"
    NIC = "nic"


class Distance(enum.IntEnum):
    """How far two devices are apart, nearest first: what is the first thing they have in common."""

    SWITCH = 0
    ROOT = 1
    NODE = 2
    SYSTEM = 3

    @property
    def words(self) -> str:
        """For humans."""
        return ("by a common PCI switch", "by the same root complex", "on the same NUMA node", "across the machine")[
            self
        ]


@dataclass(frozen=True)
class Device:
    """A GPU or a NIC.

    Attributes
    ----------
    address : str
        Its PCI address, ``"0000:1b:00.0"``.
    kind : Kind
        What it is.
    model : tuple of (int, int)
        PCI vendor and device.
    node : int or None
        Its NUMA node; None where the firmware does not say, or the machine has none.
    path : tuple of str
        What it hangs below, from the host bridge (``"pci0000:15"``) down.
    rdma : tuple of str
        Its RDMA devices, such as ``"mlx5_0"``.
    interfaces : tuple of str
        Its network interfaces.
    """

    address: str
    kind: Kind
    model: tuple[int, int]
    node: int | None
    path: tuple[str, ...]
    rdma: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What was found.

    Attributes
    ----------
    devices : tuple of Device
        In the order of their PCI addresses, which is how ``nvidia-smi`` counts GPUs.
    nodes : dict of int to frozenset of int
        The CPUs of each NUMA node.
    cores : dict of int to int
        For each CPU the first one of its core: those of one core share what it can do.
    """

    devices: tuple[Device, ...] = ()
    nodes: dict[int, frozenset[int]] = field(default_factory=dict)
    cores: dict[int, int] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[Device, ...]:
        """The GPUs."""
        return tuple(device for device in self.devices if device.kind is Kind.GPU)

    @property
    def rdma_nics(self) -> tuple[Device, ...]:
        """The NICs that have an RDMA device."""
        return tuple(device for device in self.devices if device.rdma)


def distance(one: Device, other: Device) -> tuple[Distance, int]:
    """Say how far two devices are apart; compares with other such pairs, less is nearer.

    Returns
    -------
    (Distance, int)
        Of two pairs that are both below a switch, that which has more of its path in common is nearer.
    """
    common = 0
    for ours, theirs in zip(one.path, other.path, strict=False):
        if ours != theirs:
            break
        common += 1
    if common > 1:
        # Below a root port there is one link: what has a bridge in common meets in a switch.
        return Distance.SWITCH, -common
    if common == 1:
        return Distance.ROOT, 0
    return (Distance.NODE if one.node is not None and one.node == other.node else Distance.SYSTEM), 0


def read_machine(root: str | Path = "/") -> Machine:
    """Read what this machine has.

    Parameters
    ----------
    root : path
        Of a recorded tree, which has a ``sys`` as this machine's.
    """
    base = Path(root) / "sys"
    devices = [_device(base, address) for address in _names(base / "bus/pci/devices") if _ADDRESS.fullmatch(address)]
    nodes = {}
    for name in _names(base / "devices/system/node"):
        if re.fullmatch(r"node\d+", name):
            nodes[int(name[4:])] = frozenset(parse_cpus(_text(base / "devices/system/node" / name / "cpulist")))
    cores = {}
    for name in _names(base / "devices/system/cpu"):
        if re.fullmatch(r"cpu\d+", name):
            siblings = parse_cpus(_text(base / "devices/system/cpu" / name / "topology/thread_siblings_list"))
            cores[int(name[3:])] = min(siblings, default=int(name[3:]))
    return Machine(tuple(device for device in devices if device is not None), nodes, cores)


def parse_cpus(text: str) -> list[int]:
    """Read a list as the kernel writes it, ``"0-3,8"``; what is no such list is empty."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if match := re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part):
            cpus += range(int(match[1]), int(match[2] or match[1]) + 1)
    return cpus


def _device(base: Path, address: str) -> Device | None:
    folder = base / "bus/pci/devices" / address
    class_, vendor = _number(folder / "class") >> 16, _number(folder / "vendor")
    rdma, interfaces = tuple(_names(folder / "infiniband")), tuple(_names(folder / "net"))
    if class_ == _DISPLAY and vendor in _GPU_VENDORS:
        kind = Kind.GPU
    elif class_ == _NETWORK or rdma:
        kind = Kind.NIC
    else:
        return None
    node = _number(folder / "numa_node", default=-1)
    # The place in the tree is the place in the machine: ../pci0000:15/0000:15:01.0/0000:16:00.0/...
    parts = Path(os.path.realpath(folder)).parts[:-1]
    path = tuple(part for part in parts if _HOST_BRIDGE.fullmatch(part) or _ADDRESS.fullmatch(part))
    model = (vendor, _number(folder / "device"))
    return Device(address, kind, model, node if node >= 0 else None, path, rdma, interfaces)


def _names(folder: Path) -> Iterable[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return ()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, default: int = 0) -> int:
    try:
        return int(_text(path), 0)
    except ValueError:
        return default
