# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Engines, connected pairs of them, and what tests do with a pair."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from helpers.require import Fabric, find_fabric
from helpers.slowness import SLOWNESS
from pplx_async import ImmCounter, MemoryRegion, Peer, RemoteCounter, RemoteRegion, TransferEngine

# Waiting for something that must happen "soon" on a busy machine.
SOON = 20.0 * SLOWNESS


def pattern(nbytes: int, seed: int = 0) -> np.ndarray:
    """Make bytes that differ from place to place and from seed to seed."""
    return np.random.default_rng(seed).integers(1, 256, nbytes, dtype=np.uint8)


async def eventually(condition: Callable[[], Any], what: str, timeout: float = SOON) -> None:
    """Wait until something is true, and fail if it never is."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        await asyncio.sleep(0.002)


def engine_on(fabric: Fabric, **options: Any) -> TransferEngine:
    """Make an engine on a fabric; the environment has no say."""
    return TransferEngine(**({"fabric": fabric.name} | fabric.options | options))


def patience(engine: TransferEngine, seconds: float) -> None:
    """Have an engine that is open give so long to those that it connects with from now on."""
    engine.options = dataclasses.replace(engine.options, connect_timeout=seconds)


async def connect(a: TransferEngine, b: TransferEngine) -> tuple[Peer, Peer]:
    """Connect a to b; return how each sees the other."""
    async with asyncio.timeout(SOON):
        return await a.connect(b.address), await b.accept()


def drop_link(peer: Peer, link: int) -> None:
    """Lose a link of several at this end, as if the other one had said that it did; which hears of it from this one."""
    peer._record.lose_rail(link, "dropped by a test", 0, b"")


class Target:
    """Memory of b, as both sides see it."""

    def __init__(self, array: Any, region: MemoryRegion, remote: RemoteRegion) -> None:
        self.array = array
        self.region = region
        self.remote = remote


class Pair:
    """Two connected engines: ``a`` does things to memory of ``b``.

    Attributes
    ----------
    a, b : TransferEngine
        The two engines.
    ab, ba : Peer
        b as a sees it, and a as b sees it.
    """

    def __init__(self, fabric: Fabric, a: TransferEngine, b: TransferEngine, ab: Peer, ba: Peer) -> None:
        self.fabric = fabric
        self.a, self.b, self.ab, self.ba = a, b, ab, ba
        self._opened: list[MemoryRegion | ImmCounter] = []

    async def source(self, buffer: Any, **options: Any) -> MemoryRegion:
        """Register memory with a. An int: so many bytes of a pattern."""
        region = await self.a.register(
            self.fabric.wrap(pattern(buffer, 1) if isinstance(buffer, int) else buffer), **options
        )
        self._opened.append(region)
        return region

    async def target(self, buffer: Any, **options: Any) -> Target:
        """Register memory with b, and give a the descriptor. An int: so many zeros."""
        array = np.zeros(buffer, dtype=np.uint8) if isinstance(buffer, int) else buffer
        region = await self.b.register(self.fabric.wrap(array), **options)
        self._opened.append(region)
        return Target(array, region, self.ab.region(region.to_bytes()))

    def counter(self, *, bound: bool = True) -> tuple[ImmCounter, RemoteCounter]:
        """Make a counter of b, bound to a, and give a the descriptor."""
        counter = self.b.counter(peer=self.ba if bound else None)
        self._opened.append(counter)
        return counter, self.ab.counter(counter.to_bytes())

    async def write(self, nbytes: int, seed: int = 3) -> None:
        """Check that the pair works: one counted write, verified."""
        data = pattern(nbytes, seed)
        source, target = await self.source(data), await self.target(nbytes)
        counter, remote = self.counter()
        async with asyncio.timeout(SOON):
            assert await self.a.write(source, target.remote, counter=remote) == nbytes
            assert await counter.wait(1) == 1
        assert np.array_equal(target.array, data)

    async def forget(self) -> None:
        """Close what was opened through the pair, where its engine is still open."""
        opened, self._opened = self._opened, []
        async with asyncio.timeout(SOON):
            for each in opened:
                if each._engine.is_open:
                    await each.close()

    @property
    def is_healthy(self) -> bool:
        """Whether another test can use it."""
        return self.a.is_open and self.b.is_open and self.ab.is_open and self.ba.is_open


@contextlib.asynccontextmanager
async def open_pair(
    fabric: Fabric | str = "loopback", *, b: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Pair]:
    """Open two engines with the same options, but for those in `b`, connect them, and close them."""
    if isinstance(fabric, str):
        fabric = find_fabric(fabric)
    async with (
        engine_on(fabric, name="a", **options) as engine_a,
        engine_on(fabric, name="b", **(options | (b or {}))) as engine_b,
    ):
        ab, ba = await connect(engine_a, engine_b)
        pair = Pair(fabric, engine_a, engine_b, ab, ba)
        yield pair
        await pair.forget()
