# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which NICs and which CPU an engine takes: those nearest its GPU or NUMA node, and a fair share of them.

GPU and NIC are paired by the first thing that they have in common: a PCI switch, the deeper the better,
then a root complex, then a NUMA node. NICs that are equally near several GPUs are split among these
evenly and in order, so that eight processes with a GPU each share the NICs of a machine without a word
between them. Of NICs that are equally near, the model that the machine has most of comes first: the
odd one is for storage or for users.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TypeVar

from pplx_async.pci import Device, Distance, Kind, Machine, distance, read_machine

__all__ = ["Share", "arrange", "choose_cpu", "find_near", "pair", "place_thread"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Share:
    """What belongs to one GPU.

    Attributes
    ----------
    gpu : Device
        The GPU.
    nics : tuple of Device
        Its NICs; empty where the machine has none.
    distance : Distance or None
        How far they are.
    """

    gpu: Device
    nics: tuple[Device, ...]
    distance: Distance | None


def pair(machine: Machine) -> list[Share]:
    """Give each GPU its NICs.

    Returns
    -------
    list of Share
        In the order of the GPUs.
    """
    nearest = {gpu.address: _nearest(machine, gpu) for gpu in machine.gpus}
    shares = []
    for gpu in machine.gpus:
        nics = nearest[gpu.address]
        rivals = [address for address, others in nearest.items() if others == nics]
        shares.append(
            Share(
                gpu,
                _slice(nics, rivals.index(gpu.address), len(rivals)),
                distance(gpu, nics[0])[0] if nics else None,
            )
        )
    return shares


def find_near(machine: Machine, near: str) -> Device | int:
    """Find what `EngineOptions.near` names.

    Returns
    -------
    Device or int
        A GPU, or the number of a NUMA node.

    Raises
    ------
    ValueError
        The machine does not have it; the text says what it has.
    """
    if match := re.fullmatch(r"numa(\d+)", near):
        if int(match[1]) in machine.nodes:
            return int(match[1])
    elif match := re.fullmatch(r"gpu(\d+)", near):
        if int(match[1]) < len(machine.gpus):
            return machine.gpus[int(match[1])]
    else:
        # CUDA writes capitals, nvidia-smi a domain of eight digits.
        address = near.lower().removeprefix("0000") if len(near) == len("00000000:00:00.0") else near.lower()
        for gpu in machine.gpus:
            if gpu.address == address:
                return gpu
    there = [f"gpu{i} ({gpu.address})" for i, gpu in enumerate(machine.gpus)] + [f"numa{i}" for i in machine.nodes]
    raise ValueError(f"near={near!r}: this machine has {', '.join(there) or 'neither GPUs nor NUMA nodes to see'}")


def arrange(
    names: Sequence[str], near: str | None, machine: Machine | None = None, mask: AbstractSet[int] | None = None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Order the devices that a provider offers by how near they are.

    Parameters
    ----------
    names : sequence of str
        As the provider calls them: an RDMA device (libfabric adds ``-rdm``, a port is behind a colon), or
        a network interface. What is at no known place keeps its order, behind the others.
    near : str, optional
        What `EngineOptions.near` says. None: the NUMA node whose CPUs alone this process may use, if
        it is one of several.
    machine : Machine, optional
        Instead of this one.
    mask : set of int, optional
        CPUs to use, instead of this process's.

    Returns
    -------
    (tuple of str, tuple of str)
        The names, nearest first, and the reason, if there is one.

    Raises
    ------
    ValueError
        The machine has no such GPU or node.
    """
    if near is None and len(names) < 2:
        return tuple(names), ()  # nothing to choose: leave /sys alone
    machine = read_machine() if machine is None else machine
    place = find_near(machine, near) if near is not None else _own_node(machine, _mask(mask))
    if place is None:
        return tuple(names), ()
    share = next((share for share in pair(machine) if share.gpu == place), None)
    models = _models(machine)
    ranks: dict[str, tuple[int, ...]] = {}
    for name in names:
        nic = _device_of(machine, name)
        if nic is not None:
            own = share is not None and nic in share.nics
            ranks[name] = (not own, *_distance(place, nic), -models[nic.model])
    if not ranks:
        why = f"near={near!r} says nothing about {', '.join(names)}: at no known place, so in the order in which found"
        return tuple(names), (why,) if near is not None else ()
    ordered = sorted(names, key=lambda name: (name not in ranks, ranks.get(name, ())))  # stable
    far = Distance(ranks[ordered[0]][1])
    word = _word(place, near)
    at = f"on {word}" if isinstance(place, int) and far is Distance.NODE else f"{far.words} with {word}"
    because = "" if near is not None else ", the one whose CPUs this process may use"
    return tuple(ordered), (f"{ordered[0]} first: {at}{because}",)


def place_thread(
    near: str | None, machine: Machine | None = None, mask: AbstractSet[int] | None = None
) -> tuple[int | None, tuple[str, ...]]:
    """Choose the CPU of the proxy thread, where `EngineOptions.near` says near what.

    Returns
    -------
    (int or None, tuple of str)
        The CPU, None for any; and the reason, if there is one.

    Raises
    ------
    ValueError
        The machine has no such GPU or node.
    """
    if near is None:
        return None, ()
    machine = read_machine() if machine is None else machine
    place = find_near(machine, near)
    cpu = choose_cpu(machine, place, _mask(mask))
    if cpu is None:
        return None, (f"the proxy thread on any CPU: near {_word(place, near)} none is to spare",)
    return cpu, (f"the proxy thread on CPU {cpu}, near {_word(place, near)}",)


def choose_cpu(machine: Machine, place: Device | int, mask: AbstractSet[int]) -> int | None:
    """Choose a CPU near a GPU or of a NUMA node, for one thread that polls.

    The cores of a node are split among its GPUs, and the last core of a share is taken: the first ones
    of a machine are those that interrupts and other programs meet.

    Returns
    -------
    int or None
        None: no CPU of that node may be used, there is but one core, or fewer than two for each GPU.
    """
    node = place.node if isinstance(place, Device) else place
    if node is None and len(machine.nodes) == 1:
        node = next(iter(machine.nodes))
    if node is None:
        return None
    cores = _first_of_cores(machine, machine.nodes.get(node, frozenset()) & mask)
    if isinstance(place, Device):
        neighbours = [gpu for gpu in machine.gpus if gpu.node == place.node]
        if len(cores) < 2 * len(neighbours):
            return None
        cores = list(_slice(cores, neighbours.index(place), len(neighbours)))
    return cores[-1] if len(cores) > 1 else None


def _mask(mask: AbstractSet[int] | None) -> AbstractSet[int]:
    return os.sched_getaffinity(0) if mask is None else mask


def _word(place: Device | int, near: str | None) -> str:
    if isinstance(place, int):
        return f"NUMA node {place}"
    return place.address if near is None or ":" in near else f"{near} ({place.address})"


def _nearest(machine: Machine, gpu: Device) -> tuple[Device, ...]:
    """Return the NICs that are as near as any, those of the most common model only."""
    nics = machine.rdma_nics
    if not nics:
        return ()
    least = min(distance(gpu, nic) for nic in nics)
    near = [nic for nic in nics if distance(gpu, nic) == least]
    models = _models(machine)
    most = max(models[nic.model] for nic in near)
    return tuple(nic for nic in near if models[nic.model] == most)


def _models(machine: Machine) -> Counter[tuple[int, int]]:
    return Counter(nic.model for nic in machine.rdma_nics)


def _slice(items: Sequence[_T], number: int, of: int) -> tuple[_T, ...]:
    """Cut in even parts; fewer items than parts are taken in turns."""
    if not items:
        return ()
    if len(items) < of:
        return (items[number % len(items)],)
    return tuple(items[number * len(items) // of : (number + 1) * len(items) // of])


def _device_of(machine: Machine, name: str) -> Device | None:
    plain = re.sub(r"(:\d+|-rdm|-dgrm|-direct)$", "", name)
    for device in machine.devices:
        if device.kind is Kind.NIC and (plain in device.rdma or plain in device.interfaces):
            return device
    return None


def _distance(place: Device | int, nic: Device) -> tuple[Distance, int]:
    if isinstance(place, Device):
        return distance(place, nic)
    return (Distance.NODE if nic.node == place else Distance.SYSTEM), 0


def _own_node(machine: Machine, mask: AbstractSet[int]) -> int | None:
    if len([cpus for cpus in machine.nodes.values() if cpus]) < 2:
        return None
    return next((node for node, cpus in machine.nodes.items() if mask <= cpus), None)


def _first_of_cores(machine: Machine, cpus: AbstractSet[int]) -> list[int]:
    """Of each core the first CPU that may be used."""
    seen: dict[int, int] = {}
    for cpu in sorted(cpus):
        seen.setdefault(machine.cores.get(cpu, cpu), cpu)
    return sorted(seen.values())
