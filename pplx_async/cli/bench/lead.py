# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The timed halves of the works: when their clocks start and stop is that of ``benchmarks/c/works.c``.

What a program has at hand before it writes is made before the clock starts: slices, lists of pages.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import numpy as np

from pplx_async.cli.bench.arena import Arena, allocate
from pplx_async.cli.bench.contents import fill
from pplx_async.cli.bench.order import Order
from pplx_async.cli.bench.works import Work, places

__all__ = ["LEAD", "percentile"]

Result = dict[str, float]


def percentile(values: Sequence[float], p: int) -> float:
    """Find the p-th percentile, by the nearest rank."""
    return sorted(values)[max(0, math.ceil(len(values) * p / 100) - 1)]


async def _pingpong(arena: Arena, work: Work, order: Order) -> Result:
    ((local, remote),) = arena.slots(work)
    write, counter, arrived, pongs = arena.engine.write, arena.remote_counter, arena.arrived, arena.counter
    halves, pings = [], []
    before = time.perf_counter()
    for number in range(1, work.count + 1):
        # The pong says that the ping has landed: its own completion can wait.
        pings.append(write(local, remote, counter=counter))
        await pongs.wait(arrived + number)
        now = time.perf_counter()
        halves.append((now - before) / 2 * 1e6)
        before = now
    arena.arrived += work.count
    for ping in pings:
        await ping
    p50 = percentile(halves, 50)
    return {"value": p50, "p50": p50, "p99": percentile(halves, 99)}


async def _timed(arena: Arena, work: Work, writes: Awaitable[object]) -> Result:
    """Time many writes, until the target has said that all have landed."""
    began = time.perf_counter()
    await writes
    await arena.wait(1)
    rate = work.count / (time.perf_counter() - began)
    return {"value": rate * work.nbytes / 1e9 if work.unit == "GB/s" else rate / 1e3}


async def _stream(arena: Arena, work: Work, order: Order) -> Result:
    slots = arena.slots(work)
    write, counter = arena.engine.write, arena.remote_counter

    async def write_all() -> None:
        window: deque[Awaitable[int]] = deque()
        for i in range(work.count):
            if len(window) == work.inflight:
                await window.popleft()
            local, remote = slots[i % work.inflight]
            window.append(write(local, remote, counter=counter))
        for transfer in window:
            await transfer

    return await _timed(arena, work, write_all())


async def _awaits(arena: Arena, work: Work, order: Order) -> Result:
    slots = arena.slots(work)
    write, counter = arena.engine.write, arena.remote_counter

    async def write_some(first: int) -> None:
        local, remote = slots[first]
        for _ in range(first, work.count, work.inflight):
            await write(local, remote, counter=counter)

    async def write_all() -> None:
        if len(slots) == 1:
            await write_some(0)
        else:
            await asyncio.gather(*(write_some(first) for first in range(len(slots))))

    return await _timed(arena, work, write_all())


async def _pages(arena: Arena, work: Work, order: Order) -> Result:
    local_pages, remote_pages = np.array(places(work)).T // work.nbytes
    return await _timed(arena, work, _write_pages(arena, work, local_pages.copy(), remote_pages.copy()))


async def _write_pages(arena: Arena, work: Work, local_pages: np.ndarray, remote_pages: np.ndarray) -> None:
    await arena.engine.write_pages(
        arena.local,
        arena.remote,
        page_nbytes=work.nbytes,
        local_pages=local_pages,
        remote_pages=remote_pages,
        counter=arena.remote_counter,
    )


async def _scatter(arena: Arena, work: Work, order: Order) -> Result:
    targets = arena.scattered(work)

    async def write_all() -> None:
        await arena.engine.scatter(targets)

    return await _timed(arena, work, write_all())


async def _idle(arena: Arena, work: Work, order: Order) -> Result:
    await asyncio.sleep(order.idle_seconds)
    await arena.write(arena.slots(work)[0])
    return {}  # the other side knows


async def _sparse(arena: Arena, work: Work, order: Order) -> Result:
    (slot,) = arena.slots(work)
    for _ in range(work.count):
        await arena.write(slot)
        await asyncio.sleep(0.001)
    return {}  # the other side knows


async def _register(arena: Arena, work: Work, order: Order) -> Result:
    memory = allocate(arena.engine, arena.buffers, work.nbytes)
    fill(memory)
    resident = _resident_nbytes()
    began = time.perf_counter()
    region = await arena.engine.register(memory)
    seconds = time.perf_counter() - began
    grown = _resident_nbytes() - resident
    await region.close()
    return {"value": seconds * 1e3, "memory_nbytes": grown}


def _resident_nbytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# By the name of the work.
LEAD: dict[str, Callable[[Arena, Work, Order], Awaitable[Result]]] = {
    "pingpong": _pingpong,
    "stream": _stream,
    "awaits": _awaits,
    "pages": _pages,
    "scatter": _scatter,
    "idle": _idle,
    "sparse": _sparse,
    "register": _register,
}
