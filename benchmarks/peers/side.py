# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a peer has to do: one class, of which each of the two processes makes one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pplx_async.cli.bench.contents import count_wrong, fill
from pplx_async.cli.bench.works import ARENA, Work

__all__ = ["FLAG", "TOTAL", "Places", "Side", "call", "run_workers"]

Places = Sequence[tuple[int, int]]

# A page behind the arena, for counters of peers that have no notifications.
FLAG = ARENA
TOTAL = ARENA + 4096


class Side:
    """One of two processes: rank 0 is timed, rank 1 is its target.

    Every method may be a plain function or a coroutine function. Rank 0 is asked to ``ping``,
    ``write_all``, ``await_all`` and ``poke``; at the same time rank 1 is asked to ``pong``,
    ``take_all``, ``serve_awaits`` and ``take_poke``.

    Attributes
    ----------
    src, dst : array of uint8
        ``TOTAL`` bytes each. Both sides hold the same source, so the target knows what must arrive.
    provider, wait : str
        What moves the bytes, and how this side waits: for the results.
    """

    provider = "?"
    wait = "poll"
    has_awaits = True

    def __init__(self, rank: int, variant: str) -> None:
        self.rank = rank
        self.variant = variant
        self.src = np.empty(TOTAL, np.uint8)
        fill(self.src)
        self.dst = np.zeros(TOTAL, np.uint8)
        self.dst[::4096] = 0  # have the pages now

    # ---- what a peer fills in ----

    def info(self) -> Any:
        """Open; return what the other side must know."""

    def connect(self, other: Any) -> Any:
        """Connect, knowing what the other side's `info` returned."""

    def ping(self, nbytes: int, count: int) -> Any:
        """Write and notify, wait for the answer; return the seconds of each round trip."""
        raise NotImplementedError

    def pong(self, nbytes: int, count: int) -> Any:
        """Answer each write by one of as many bytes."""
        raise NotImplementedError

    def write_all(self, work: Work, places: Places) -> Any:
        """Do the writes; return when the target has said that it knows of all."""
        raise NotImplementedError

    def take_all(self, work: Work, places: Places) -> Any:
        """Notice all writes, and say so."""
        raise NotImplementedError

    def await_all(self, inflight: int, count: int) -> Any:
        """Await ``count`` acknowledged writes of 8 B, ``inflight`` at a time."""
        raise NotImplementedError

    def serve_awaits(self, inflight: int, count: int) -> Any:
        """Be their target."""
        raise NotImplementedError

    def poke(self) -> Any:
        """Send one small message."""
        raise NotImplementedError

    def take_poke(self) -> Any:
        """Wait for it, as a Python user of this peer would."""
        raise NotImplementedError

    def close(self) -> Any:
        """Close what needs it."""

    # ---- what the driver asks for ----

    def clear(self) -> None:
        """Forget what arrived."""
        self.dst[:ARENA] = 0

    def verify(self, work: Work) -> bool:
        """Say whether every write arrived."""
        return count_wrong(self.src, self.dst, work) == 0


async def call(method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method that may or may not be a coroutine function."""
    result = method(*arguments)
    return await result if inspect.isawaitable(result) else result


async def run_workers(inflight: int, count: int, operation: Callable[[], Awaitable[object]]) -> None:
    """Await an operation ``count`` times, in ``inflight`` tasks."""

    async def work(turns: Iterable[int]) -> None:
        for _ in turns:
            await operation()

    turns = iter(range(count))
    if inflight == 1:
        await work(turns)
    else:
        await asyncio.gather(*(work(turns) for _ in range(inflight)))
