# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The other halves of the works: what their target does meanwhile, as ``benchmarks/c/works.c`` has it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from pplx_async.cli.bench.arena import Arena
from pplx_async.cli.bench.works import Work

__all__ = ["FOLLOW"]

Result = dict[str, float]


async def _pong(arena: Arena, work: Work) -> Result:
    ((local, remote),) = arena.slots(work)
    write, counter, arrived, pings = arena.engine.write, arena.remote_counter, arena.arrived, arena.counter
    pongs = []
    for number in range(1, work.count + 1):
        await pings.wait(arrived + number)
        pongs.append(write(local, remote, counter=counter))
    arena.arrived += work.count
    for pong in pongs:
        await pong
    return {}


async def _count_all(arena: Arena, work: Work) -> Result:
    answer = arena.local[: work.nbytes], arena.remote[: work.nbytes]
    await arena.wait(work.count)
    await arena.write(answer)
    return {}


async def _wait_idle(arena: Arena, work: Work) -> Result:
    """Measure the processor time of this process, its proxy thread included."""
    began, used = time.perf_counter(), time.process_time()
    await arena.wait(1)
    return {"value": (time.process_time() - used) / (time.perf_counter() - began) * 100}


async def _wait_for_each(arena: Arena, work: Work) -> Result:
    began, used = time.perf_counter(), time.process_time()
    for _ in range(work.count):
        await arena.wait(1)
    return {"value": (time.process_time() - used) / (time.perf_counter() - began) * 100}


async def _stand_by(arena: Arena, work: Work) -> Result:
    return {}


# By the name of the work.
FOLLOW: dict[str, Callable[[Arena, Work], Awaitable[Result]]] = {
    "pingpong": _pong,
    "stream": _count_all,
    "awaits": _count_all,
    "pages": _count_all,
    "scatter": _count_all,
    "idle": _wait_idle,
    "sparse": _wait_for_each,
    "register": _stand_by,
}
