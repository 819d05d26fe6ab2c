# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a side has: its memory, and that of the other one that it may write to."""

from __future__ import annotations

from typing import Any

import numpy as np

from pplx_async import ImmCounter, MemoryRegion, Peer, PeerGroup, RemoteCounter, RemoteRegion, Transfer, TransferEngine
from pplx_async.cli.bench.contents import Bytes, fill
from pplx_async.cli.bench.works import ARENA, OUR_WORKS, Work, places
from pplx_async.cli.side_link import Talk

__all__ = ["Arena", "Slot", "allocate"]

# Regions that the destination is registered as besides the whole: targets of *scatter*.
_PARTS = max(work.targets for work in OUR_WORKS)

Slot = tuple[Any, Any]  # a slice of ours, and as long a one of the peer's


def allocate(engine: TransferEngine, buffers: str, nbytes: int) -> Bytes:
    """Make an array: ``"shared"``, which peers of the host can map, or an ordinary one of ``"numpy"``."""
    return engine.empty(nbytes) if buffers == "shared" else np.zeros(nbytes, np.uint8)


class Arena:
    """The memory of one side, registered, and what is known of the other's; made by `open`.

    Attributes
    ----------
    src, dst : array of uint8
        ``ARENA`` bytes each.
    local, remote : MemoryRegion, RemoteRegion
        Our source, and the peer's destination.
    parts : list of RemoteRegion
        The peer's destination once more, in regions of equal size.
    counter, remote_counter : ImmCounter, RemoteCounter
        Ours counts what has landed here.
    arrived : int
        How much of that is of earlier works.
    """

    def __init__(self, engine: TransferEngine, peer: Peer, buffers: str) -> None:
        self.engine = engine
        self.buffers = buffers
        self.src = allocate(engine, buffers, ARENA)
        self.dst = allocate(engine, buffers, ARENA)
        fill(self.src)
        self.counter: ImmCounter = engine.counter(peer=peer)
        self.arrived = 0
        self.local: MemoryRegion
        self.remote: RemoteRegion
        self.parts: list[RemoteRegion]
        self.remote_counter: RemoteCounter
        self._regions: list[MemoryRegion] = []
        self._group: PeerGroup

    @classmethod
    async def open(cls, engine: TransferEngine, peer: Peer, buffers: str) -> Arena:
        """Allocate, register, and exchange descriptors with the other side, which does the same."""
        self = cls(engine, peer, buffers)
        part = ARENA // _PARTS
        self.local = await engine.register(self.src, access="none")
        for start, nbytes in [(0, ARENA), *((i * part, part) for i in range(_PARTS))]:
            self._regions.append(await engine.register(self.dst[start : start + nbytes], access="write"))
        ours = [self.counter.to_bytes(), *(region.to_bytes() for region in self._regions)]
        counter, *regions = await Talk(engine, peer).exchange(ours)
        self.remote_counter = peer.counter(counter)
        self.remote, *self.parts = (peer.region(region) for region in regions)
        self._group = await engine.group("bench", [peer])
        return self

    async def meet(self) -> None:
        """Wait for the other side."""
        await self.engine.barrier(self._group)

    def write(self, slot: Slot) -> Transfer:
        """Write once, and count it there."""
        return self.engine.write(*slot, counter=self.remote_counter)

    async def wait(self, count: int) -> None:
        """Wait until so many more writes have landed here."""
        await self.counter.wait(self.arrived + count)
        self.arrived += count

    def slots(self, work: Work) -> list[Slot]:
        """Say where the writes of a work come from and go to; as many as may be under way."""
        n = work.nbytes
        return [(self.local[src : src + n], self.remote[dst : dst + n]) for src, dst in places(work)[: work.inflight]]

    def scattered(self, work: Work) -> list[tuple[Any, Any, RemoteCounter]]:
        """Say it for writes to regions of their own."""
        n, part = work.nbytes, ARENA // work.targets
        return [
            (self.local[src : src + n], self.parts[dst // part][dst % part : dst % part + n], self.remote_counter)
            for src, dst in places(work)
        ]
