# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""RDMA devices: there, within reach of this process, their ports up, addressed, and as fast as they could be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from pplx_async.cli.doctor.finding import Finding, ok, problem, warning
from pplx_async.cli.doctor.system import RdmaDevice, System

__all__ = ["devices", "gids", "mtu", "partitions", "pci_links", "ports"]

_MELLANOX = 0x15B3
_FULL_MEMBER = 0x8000  # in a P_Key
# A RoCE packet of 4096 B and its heads; with less, packets are halved, and so on.
_WHOLE_MTU = 4200


def devices(system: System) -> Iterator[Finding]:
    """Look whether each device has its file below ``/dev/infiniband``, and this user may open it."""
    found = system.rdma
    for name in system.options.devices if system.options.fabric == "verbs" else ():
        if name.partition(":")[0] not in [device.name for device in found]:
            yield problem(f"EngineOptions.devices names {name}, which is not there", "ls /sys/class/infiniband")
    silent = [nic for nic in system.machine.devices if nic.model[0] == _MELLANOX and not nic.rdma]
    for nic in silent:
        yield warning(f"the NIC at {nic.address} is one for RDMA, but shows no RDMA device", "sudo modprobe mlx5_ib")
    if not found and system.options.fabric == "verbs":
        yield problem('fabric="verbs" was asked for, and there is no RDMA device', "lspci -d 15b3:")
    elif not found and not silent:
        yield ok("no RDMA device: peers on other hosts are reached over tcp")
    if not found:
        return
    verbs = {system.text(f"sys/class/infiniband_verbs/{name}/ibdev"): name for name in _uverbs(system)}
    for device in found:
        node = verbs.get(device.name)
        if node is None:
            yield problem(f"{device.name} has no interface for programs (ib_uverbs)", "sudo modprobe ib_uverbs")
        elif not system.exists(f"dev/infiniband/{node}"):
            yield problem(
                f"{device.name} is there, but not its file /dev/infiniband/{node}",
                "in a container: docker run --device=/dev/infiniband ...; else: sudo udevadm trigger",
            )
        elif not system.may_open(f"dev/infiniband/{node}"):
            yield problem(f"this user may not open /dev/infiniband/{node}", f"sudo chmod a+rw /dev/infiniband/{node}")
        else:
            yield ok(f"{device.name} ({device.driver or 'software'}), /dev/infiniband/{node}")


def ports(system: System) -> Iterator[Finding]:
    """Look whether each port is up."""
    for device in system.rdma:
        for port in device.ports:
            state = _word(device.text(f"ports/{port}/state"))
            layer = device.text(f"ports/{port}/link_layer") or "unknown link layer"
            if state == "ACTIVE":
                yield ok(f"{device.name} port {port}: active, {device.text(f'ports/{port}/rate')}, {layer}")
            else:
                physical = _word(device.text(f"ports/{port}/phys_state"))
                text = f"{device.name} port {port} is {state or 'in an unknown state'} ({layer}, link: {physical})"
                yield _grade(system, device)(text, _raise_port(system, device, state, physical, layer))


def gids(system: System) -> Iterator[Finding]:
    """Look whether each active RoCE port has an address that routers pass on."""
    for device in system.rdma:
        for port in _roce_ports(device):
            routable = [gid for gid in device.gids(port) if _is_routable(gid)]
            if routable:
                gid = routable[0]
                yield ok(f"{device.name} port {port}: GID {gid['index']}, {gid['gid']}, RoCE v2")
                continue
            link = next(iter(device.interfaces), "INTERFACE")
            text = f"{device.name} port {port} has no routable GID of RoCE v2: its interface {link} has no IP address"
            yield _grade(system, device)(
                text, f"sudo ip address add 10.0.0.1/24 dev {link}  # an address of your network"
            )


def partitions(system: System) -> Iterator[Finding]:
    """Look whether each InfiniBand port is a full member of a partition: two limited ones don't hear each other."""
    for device in system.rdma:
        for port in device.ports:
            active = _word(device.text(f"ports/{port}/state")) == "ACTIVE"
            keys = device.partitions(port)
            if not active or not keys or device.text(f"ports/{port}/link_layer") != "InfiniBand":
                continue
            index, key = next((pair for pair in keys if pair[1] & _FULL_MEMBER), keys[0])
            if key & _FULL_MEMBER:
                yield ok(f"{device.name} port {port}: P_Key {key:#06x} (entry {index}), full member")
            else:
                yield warning(
                    f"{device.name} port {port} is a limited member only of its partition (P_Key {key:#06x}): it does "
                    "not hear others such",
                    "have the subnet manager make it a full one (opensm: its GUID with =full in partitions.conf)",
                )


def mtu(system: System) -> Iterator[Finding]:
    """Look whether each RoCE interface lets packets of 4096 B through."""
    for device in system.rdma:
        if not list(_roce_ports(device)):
            continue
        for link in device.interfaces:
            nbytes = system.number(f"sys/class/net/{link}/mtu")
            if nbytes is None:
                continue
            if nbytes < _WHOLE_MTU:
                most = max((size for size in (256, 512, 1024, 2048) if size + 104 <= nbytes), default=256)
                yield warning(
                    f"{device.name}: the MTU of {link} is {nbytes}: packets of RoCE have {most} B at most, not 4096",
                    f"sudo ip link set dev {link} mtu {_WHOLE_MTU}  # on both hosts, and on the switch",
                )
            else:
                yield ok(f"{device.name}: the MTU of {link} is {nbytes}")


def pci_links(system: System) -> Iterator[Finding]:
    """Look whether each NIC has all lanes, and all of their speed."""
    for nic in system.machine.rdma_nics:
        folder = f"sys/bus/pci/devices/{nic.address}"
        now, most = ([system.text(f"{folder}/{which}_link_{what}") for what in ("speed", "width")] for which in _WHICH)
        numbers = [[_first_number(text) for text in texts] for texts in (now, most)]
        if None in (*numbers[0], *numbers[1]) or 0.0 in (*numbers[0], *numbers[1]):
            continue  # a virtual function does not know
        name = ", ".join(nic.rdma)
        if numbers[0] < numbers[1] or numbers[0][1] < numbers[1][1]:  # type: ignore[operator]
            yield warning(
                f"{name} ({nic.address}) has {now[0]} x{now[1]} of PCI, and could have {most[0]} x{most[1]}",
                f"sudo lspci -s {nic.address} -vv | grep LnkSta  # another slot, or seat it anew",
            )
        else:
            yield ok(f"{name} ({nic.address}): PCI {now[0]} x{now[1]}")


_WHICH = ("current", "max")


def _grade(system: System, device: RdmaDevice) -> Callable[[str, str], Finding]:
    """Choose a problem where it is the device that was asked for, or no other one is better off, else a warning."""
    named = [name.partition(":")[0] for name in system.options.devices]
    if device.name in named or not any(_is_usable(other) for other in system.rdma):
        return problem
    return warning


def _is_usable(device: RdmaDevice) -> bool:
    for port in device.ports:
        if _word(device.text(f"ports/{port}/state")) == "ACTIVE" and (
            device.text(f"ports/{port}/link_layer") != "Ethernet" or any(map(_is_routable, device.gids(port)))
        ):
            return True
    return False


def _roce_ports(device: RdmaDevice) -> Iterator[int]:
    for port in device.ports:
        active = _word(device.text(f"ports/{port}/state")) == "ACTIVE"
        if active and device.text(f"ports/{port}/link_layer") == "Ethernet":
            yield port


def _is_routable(gid: dict[str, object]) -> bool:
    return gid["type"] == "RoCE v2" and not str(gid["gid"]).startswith("fe80:")


def _raise_port(system: System, device: RdmaDevice, state: str, physical: str, layer: str) -> str:
    if layer == "InfiniBand":
        if state in ("INIT", "ARMED"):
            return "sudo systemctl start opensm  # one subnet manager in the network, on a host or a switch"
        return f"ibstat {device.name}  # a cable? the port of the switch?"
    link = next(iter(device.interfaces), "INTERFACE")
    flags = system.number(f"sys/class/net/{link}/flags")
    if physical == "Disabled" or (flags is not None and not flags & 1):
        return f"sudo ip link set dev {link} up"
    return f"ethtool {link}  # a cable? the port of the switch?"


def _uverbs(system: System) -> list[str]:
    return [name for name in system.names("sys/class/infiniband_verbs") if name.startswith("uverbs")]


def _word(text: str | None) -> str:
    """Take the word of ``"4: ACTIVE"``."""
    return (text or "").partition(": ")[2]


def _first_number(text: str | None) -> float | None:
    match = re.match(r"[\d.]+", text or "")
    return float(match[0]) if match else None
