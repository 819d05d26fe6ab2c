# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A bad wire between two network namespaces, in user space: it loses, delays, reorders and duplicates packets.

The kernel's netem does that too, where it is compiled in. ``python -m helpers.bad_wire`` is a second process of
`helpers.process`; its requests are the methods of `Wire`.

The wire is a tun device in each of the two namespaces, and this process, which holds both: what one kernel sends into
its device is read here and, some time later, written to the other one. Each packet is judged alone, by a random number
generator for each direction, seeded by the plan. So for the same packets in the same order the same happens; TCP, whose
timing is that of the machine, never sends quite the same ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import os
import random
import struct
from typing import Any

from helpers import namespaces
from helpers.process import serve

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TUN, IFF_NO_PI = 1, 0x1000
LARGEST = 65536
QUEUE = 0.1
TURN = 64  # packets that are taken at once, before the loop does something else


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to a packet.

    Attributes
    ----------
    seed : int
        Of both directions, which draw different numbers.
    loss : float
        Probability that it is lost.
    delay, jitter : float
        Seconds until it arrives: ``delay``, give or take ``jitter``, uniformly. Jitter alone reorders packets that
        follow each other closely.
    reorder : float
        Probability that it arrives at once, before others that were sent earlier.
    duplicate : float
        Probability that it arrives twice, each time after a delay of its own.
    rate : float
        Bytes per second that the wire carries each way; 0 is any number. Who finds more than `QUEUE` seconds' worth
        before him is lost.
    """

    seed: int = 0
    loss: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0
    rate: float = 0.0


class Direction:
    """One way along the wire: from one tun device to the other."""

    def __init__(self, source: int, sink: int) -> None:
        self.source, self.sink = source, sink
        self.loop = asyncio.get_running_loop()
        self.counts = {"sent": 0, "lost": 0, "duplicated": 0, "overtaking": 0, "arrived": 0}
        self.due = 0.0  # when the last one arrives that was sent so far
        self.busy = 0.0  # until when it carries those
        self.follow(Plan(), 0)
        self.loop.add_reader(source, self.take)

    def follow(self, plan: Plan, number: int) -> None:
        self.plan = plan
        self.random = random.Random(plan.seed * 2 + number)

    def take(self) -> None:
        for _ in range(TURN):
            try:
                packet = os.read(self.source, LARGEST)
            except BlockingIOError:
                return
            self.judge(packet)

    def judge(self, packet: bytes) -> None:
        plan, chance = self.plan, self.random.random
        self.counts["sent"] += 1
        now = self.loop.time()
        if chance() < plan.loss or self.busy > now + QUEUE:
            self.counts["lost"] += 1
            return
        if plan.rate:
            self.busy = max(self.busy, now) + len(packet) / plan.rate
        copies = 1
        if chance() < plan.duplicate:
            self.counts["duplicated"] += 1
            copies = 2
        for _ in range(copies):
            delay = 0.0 if chance() < plan.reorder else plan.delay + self.random.uniform(-plan.jitter, plan.jitter)
            due = max(now, self.busy) + delay
            self.counts["overtaking"] += due < self.due
            self.due = max(self.due, due)
            if due > now:
                self.loop.call_at(due, self.deliver, packet)
            else:
                self.deliver(packet)

    def deliver(self, packet: bytes) -> None:
        try:
            os.write(self.sink, packet)
        except OSError:
            return  # the device is down, or its queue is full: a wire may lose packets
        self.counts["arrived"] += 1


class Wire:
    """What a test asks of the process."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.directions: list[Direction] = []

    async def join(self, ends: list[tuple[int, str]], mtu: int) -> None:
        """Lay the wire between the networks of two processes, each with the address it is to have there."""
        # A wire has no wait for a core: tests beside this one would make it a slower one than its plan says.
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(os.sched_get_priority_min(os.SCHED_FIFO)))
        first, second = (self._device(pid, address, mtu) for pid, address in ends)
        self.directions = [Direction(first, second), Direction(second, first)]

    @staticmethod
    def _device(pid: int, address: str, mtu: int) -> int:
        with namespaces.inside(pid):
            device = os.open(namespaces.TUN, os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
            namespaces.ip(f"address add {address} dev wire")
            namespaces.ip(f"link set wire mtu {mtu} up")
        return device

    async def follow(self, **plan: float) -> None:
        """Treat packets by another plan from now on; counts start again."""
        for number, direction in enumerate(self.directions):
            direction.follow(Plan(**plan), number)
            direction.counts = dict.fromkeys(direction.counts, 0)

    async def counts(self) -> dict[str, int]:
        """What has happened under this plan, in both directions together."""
        return {name: sum(each.counts[name] for each in self.directions) for name in self.directions[0].counts}


if __name__ == "__main__":
    serve(Wire)
