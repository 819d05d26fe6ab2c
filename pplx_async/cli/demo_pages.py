# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``demo pages``: two processes write random pages into each other, both at once.

Each side has a pool of source pages and a pool for what comes in. Both are larger than the number
of pages that move, so that some slots must stay untouched. Which page goes where is a random map
of the writer. All of it follows from the seed, so each side computes what its peer must have
written, and compares every byte: nothing but descriptors is exchanged beforehand.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pplx_async import Peer, TransferEngine
from pplx_async.cli.side_link import (
    Done,
    Job,
    Link,
    Listening,
    Phase,
    Role,
    Talk,
    describe,
    watch_progress,
)

__all__ = ["ROLES"]

_SIDES = ("listener", "caller")
_CHECK_CHUNK = 16 << 20


class _Plan:
    """What one side writes: its source pages, and the map of them into the peer's slots."""

    def __init__(self, side: str, arguments: dict[str, Any]) -> None:
        self.pages = int(arguments["pages"])
        self.page_nbytes = int(arguments["page_nbytes"])
        # A quarter of the slots more than pages, so that what must not change can be checked too.
        self.slots = self.pages + self.pages // 4 + 1
        random = np.random.default_rng([int(arguments["seed"]), _SIDES.index(side)])
        content = np.frombuffer(random.bytes(self.slots * self.page_nbytes), dtype=np.uint8)
        self.source = content.reshape(self.slots, self.page_nbytes)
        self.local_pages = random.permutation(self.slots)[: self.pages]
        self.remote_pages = random.permutation(self.slots)[: self.pages]


async def _exchange(job: Job, link: Link) -> None:
    other = _SIDES[1 - _SIDES.index(job.side)]
    async with TransferEngine(job.options()) as engine:
        link.emit(Listening(engine.address))
        link.emit(Phase("making pages"))
        ours, theirs = await asyncio.to_thread(lambda: [_Plan(side, job.arguments) for side in (job.side, other)])
        target = engine.empty((ours.slots, ours.page_nbytes))
        target.fill(0)  # so that the kernel hands the pages out now
        link.emit(Phase("connecting"))
        peer = await (engine.accept() if job.side == "listener" else _connect(engine, link))
        talk = Talk(engine, peer)
        facts = describe(engine.explain())  # as long as the other side is there

        started = time.perf_counter()
        source_region = await engine.register(ours.source, access="none")
        target_region = await engine.register(target, access="write")
        register_seconds = time.perf_counter() - started
        counter = engine.counter(peer=peer)
        descriptors = await talk.exchange([target_region.to_bytes(), counter.to_bytes()])
        remote_region, remote_counter = peer.region(descriptors[0]), peer.counter(descriptors[1])

        group = await engine.group("demo pages", [peer])
        await engine.barrier(group)  # both directions at once
        total = ours.pages * ours.page_nbytes
        link.emit(Phase("writing", total))
        before = engine.stats().nbytes
        async with watch_progress(link, lambda: min(total, engine.stats().nbytes - before)):
            began = time.monotonic()
            await engine.write_pages(
                source_region,
                remote_region,
                page_nbytes=ours.page_nbytes,
                local_pages=ours.local_pages,
                remote_pages=ours.remote_pages,
                counter=remote_counter,
            )
            await counter.wait(theirs.pages)
            ended = time.monotonic()
        await engine.barrier(group)

        started = time.perf_counter()
        right, damaged = await _check(target, theirs, link)
        result = {
            "pages": ours.pages,
            "nbytes": total,
            # The clock is the machine's: the two sides' times can be compared.
            "began": began,
            "ended": ended,
            "register_seconds": register_seconds,
            "check_seconds": time.perf_counter() - started,
            "verified": right,
            "damaged": damaged,
            "engine": facts,
        }
    link.emit(Done(result))


async def _connect(engine: TransferEngine, link: Link) -> Peer:
    return await engine.connect(await link.hear())


async def _check(target: NDArray[np.uint8], plan: _Plan, link: Link) -> tuple[int, int]:
    """Count the pages that are right, and the slots that changed although no page goes there."""
    page_of_slot = np.full(plan.slots, -1)
    page_of_slot[plan.remote_pages] = plan.local_pages
    right = damaged = checked = 0

    def check(first: int, last: int) -> tuple[int, int]:
        pages = page_of_slot[first:last]
        written = pages >= 0
        expected = np.where(written[:, None], plan.source[pages], np.uint8(0))
        same = (target[first:last] == expected).all(axis=1)
        return int((same & written).sum()), int((~same & ~written).sum())

    link.emit(Phase("checking", target.nbytes))
    step = max(1, _CHECK_CHUNK // plan.page_nbytes)
    async with watch_progress(link, lambda: checked):
        for first in range(0, plan.slots, step):
            last = min(first + step, plan.slots)
            more_right, more_damaged = await asyncio.to_thread(check, first, last)
            right, damaged, checked = right + more_right, damaged + more_damaged, last * plan.page_nbytes
    return right, damaged


ROLES: dict[str, Role] = dict.fromkeys(_SIDES, _exchange)
