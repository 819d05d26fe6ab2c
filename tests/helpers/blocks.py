# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Scopes at random: what is submitted in them, how they end, and which are inside of others."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pplx_async import PplxAsyncError, RemoteCounter, TransferEngine, TransferScope
from pplx_async._core.memory import LocalSlice, RemoteSlice
from pplx_async._core.transfer import Transfer

KINDS = ("write", "pages", "scatter", "read", "detached", "notify")
ENDINGS = ("none", "raise", "timeout", "cancelled", "some cancelled", "task group")

PAGE = 256


@dataclass
class Area:
    """Memory of one block, of the same size everywhere; ours again once the block is over."""

    number: int
    source: LocalSlice
    sink: LocalSlice
    target: RemoteSlice
    counter: RemoteCounter | None = None
    transfers: list[Transfer] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """A scope: (kind, first byte, bytes) of each operation; then the blocks inside; then, after seconds, its end."""

    operations: tuple[tuple[str, int, int], ...]
    ending: str
    after: float
    inner: tuple[Block, ...] = ()
    swallow: bool = True  # its failure is nothing to the block around it


def random_block(rng: random.Random, size: int, depth: int = 0) -> Block:
    """Draw a block for areas of `size` bytes."""
    operations = tuple(
        (rng.choice(KINDS), rng.randrange(size), rng.randrange(1, size + 1)) for _ in range(rng.randrange(1, 12))
    )
    inner = tuple(random_block(rng, size, depth - 1) for _ in range(rng.randrange(3))) if depth else ()
    return Block(operations, rng.choice(ENDINGS), rng.random() * 0.004, inner, rng.random() < 0.5)


def count(block: Block) -> int:
    """How many areas it takes."""
    return 1 + sum(count(inner) for inner in block.inner)


class Ended(Exception):
    """What ends a block from inside, or beside it."""


class Runner:
    """Runs blocks, each in an area of its own.

    Parameters
    ----------
    engine : TransferEngine
        Whose scopes they are.
    areas : iterator of Area
        The next one is the next block's.
    reuse : callable
        Called with an area as soon as its block is over.
    repeat : int
        How often each operation is submitted, so that there is something to cancel.
    """

    def __init__(
        self, engine: TransferEngine, areas: Iterator[Area], reuse: Callable[[Area], Any], repeat: int = 1
    ) -> None:
        self._engine = engine
        self._areas = areas
        self._reuse = reuse
        self._repeat = repeat

    async def run(self, block: Block) -> None:
        """Run one, whatever it ends with."""
        with contextlib.suppress(Ended, TimeoutError, PplxAsyncError, ExceptionGroup):
            await self._end(block)

    async def _end(self, block: Block) -> None:
        """Run it, and end it from outside."""
        if block.ending == "timeout":
            async with asyncio.timeout(block.after):
                await self._enter(block)
        elif block.ending in ("task group", "cancelled"):
            # A TaskGroup of Python 3.11 may leave behind the cancel by which it ended its own block: in a task of its
            # own that hits nobody else.
            await asyncio.create_task(self._end_group(block))
        else:
            await self._enter(block)

    async def _end_group(self, block: Block) -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self._enter(block))
            if block.ending == "task group":
                group.create_task(self._fail(block.after))
            else:
                await asyncio.sleep(block.after)
                task.cancel()

    @staticmethod
    async def _fail(after: float) -> None:
        await asyncio.sleep(after)
        raise Ended

    async def _enter(self, block: Block) -> None:
        area = next(self._areas)
        try:
            async with self._engine.scope() as scope:
                for operation in block.operations * self._repeat:
                    self._submit(scope, area, *operation)
                for inner in block.inner:
                    await (self.run(inner) if inner.swallow else self._end(inner))
                if block.ending in ("raise", "some cancelled"):
                    await asyncio.sleep(block.after)
                if block.ending == "raise":
                    raise Ended
                if block.ending == "some cancelled":
                    for transfer in area.transfers[::2]:
                        transfer.cancel()
                if block.ending in ("timeout", "task group", "cancelled"):
                    # A cancellation that a failure has overtaken stays in the count only, before Python 3.13.
                    while not asyncio.current_task().cancelling():
                        await asyncio.sleep(0.001)
        finally:
            assert all(transfer.released for transfer in area.transfers)
            self._reuse(area)

    def _submit(self, scope: TransferScope, area: Area, kind: str, start: int, length: int) -> None:
        size = area.source.nbytes
        stop = min(size, start + length)
        local, remote = area.source[start:stop], area.target[start:stop]
        counter = None if area.counter is None or area.counter.broken else area.counter
        if kind == "write":
            transfer = scope.write(local, remote, counter=counter)
        elif kind == "pages":
            pages = range(start // PAGE, (start + stop) // (2 * PAGE) + 1)
            transfer = scope.write_pages(
                area.source[0 : size // PAGE * PAGE],
                area.target[0 : size // PAGE * PAGE],
                page_nbytes=PAGE,
                local_pages=[page % (size // PAGE) for page in pages],
                remote_pages=[page % (size // PAGE) for page in reversed(pages)],
                counter=counter,
            )
        elif kind == "scatter":
            middle = (start + stop) // 2
            transfer = scope.scatter(
                [
                    (area.source[start:middle], area.target[start:middle], counter),
                    (area.source[middle:stop], area.target[middle:stop]),
                ]
            )
        elif kind == "read":
            transfer = scope.read(remote, area.sink[start:stop])
        elif kind == "notify" and counter is not None:
            transfer = scope.notify(counter)
        else:
            transfer = scope.add(self._engine.write(local, remote))
        area.transfers.append(transfer)


__all__ = ["ENDINGS", "KINDS", "Area", "Block", "Ended", "Runner", "count", "random_block"]
