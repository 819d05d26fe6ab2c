# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One of the two processes of ``pplx-async bench``: it does what it is ordered to, and says what it measured.

1. Both open an engine; the leader connects to the target.
2. Each allocates, registers, and sends the other the descriptors of its memory and counter (`Arena`).
3. For each order both meet, then the leader does and times its half (``lead.py``), the target the
   other (``follow.py``); both say what they found.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pplx_async import TransferEngine
from pplx_async.cli.bench.arena import Arena
from pplx_async.cli.bench.contents import clear, count_wrong
from pplx_async.cli.bench.follow import FOLLOW
from pplx_async.cli.bench.lead import LEAD
from pplx_async.cli.bench.order import Order
from pplx_async.cli.side_link import Done, Found, Job, Link, Listening, Role, describe

__all__ = ["ROLES"]

_NOTHING_ARRIVES = ("idle", "register")


async def _play(job: Job, link: Link) -> None:
    async with TransferEngine(job.options()) as engine:
        link.emit(Listening(engine.address))
        peer = await (engine.accept() if job.side == "target" else engine.connect(await link.hear()))
        arena = await Arena.open(engine, peer, job.arguments["buffers"])
        link.emit(Found({"engine": describe(engine.explain())}))
        while True:
            order = msgspec.json.decode(await link.hear(), type=Order)
            if order.work is None:
                break
            link.emit(Found(await _repeat(job.side, arena, order)))
    link.emit(Done({}))


async def _repeat(side: str, arena: Arena, order: Order) -> dict[str, Any]:
    """Do one repetition of a work; both sides do."""
    work = order.work
    assert work is not None
    # Pings go one way, pongs the other; all else goes to the target.
    verify = order.verify and work.name not in _NOTHING_ARRIVES and (side == "target" or work.name == "pingpong")
    if verify:
        clear(arena.dst, work)
    await arena.meet()
    result: dict[str, Any] = await (
        FOLLOW[work.name](arena, work) if side == "target" else LEAD[work.name](arena, work, order)
    )
    if verify:
        result["wrong"] = count_wrong(arena.src, arena.dst, work)
    return result


ROLES: dict[str, Role] = dict.fromkeys(("target", "leader"), _play)
