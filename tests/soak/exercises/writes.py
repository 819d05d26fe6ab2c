# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Writes: one that is awaited, and several that are counted."""

from __future__ import annotations

import asyncio

from tests.soak.content import check
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["CountedWrites", "Writes"]

_MOST_MARGIN = 5000


class Writes(Exercise):
    """One write, into the middle of a region: the margins stay as they are."""

    name = "write"

    async def act(self, stage: Stage) -> int:
        margin = stage.plan.randrange(_MOST_MARGIN)
        source = await stage.source(stage.nbytes)
        (descriptor,) = await stage.talk.hear("offer")
        remote = stage.peer.region(descriptor)
        written = await stage.engine.write(source, remote[margin : margin + stage.nbytes])
        stage.same_count(written, stage.nbytes, "bytes that a write returned")
        await stage.talk.say("written")
        await stage.talk.hear("right")
        return stage.nbytes

    async def host(self, stage: Stage) -> None:
        margin = stage.plan.randrange(_MOST_MARGIN)
        array, region = await stage.target(stage.nbytes + 2 * margin)
        await stage.talk.say("offer", region.to_bytes())
        await stage.talk.hear("written")
        stage.spoil(array)
        check(array[margin : margin + stage.nbytes], stage.expected(stage.nbytes), "a write")
        check(array[:margin], 0, "what lies before a write")
        check(array[margin + stage.nbytes :], 0, "what lies behind a write")
        await stage.talk.say("right")


class CountedWrites(Exercise):
    """Many writes side by side, which the receiver knows of by its counter alone."""

    name = "write, counted"
    weight = 6

    async def act(self, stage: Stage) -> int:
        slices = stage.slices(stage.nbytes, 64)
        source = await stage.source(stage.nbytes)
        region, counter = await stage.talk.hear("offer")
        remote, remote_counter = stage.peer.region(region), stage.peer.counter(counter)
        if stage.own.random() < 0.3:
            for part in slices:
                await stage.engine.write(source[part], remote[part], counter=remote_counter)
                await stage.engine.drain()
        else:
            detach = stage.own.random() < 0.3
            await asyncio.gather(
                *(
                    stage.engine.write(source[part], remote[part], counter=remote_counter, detach=detach)
                    for part in slices
                )
            )
        await stage.talk.hear("right")
        return stage.nbytes

    async def host(self, stage: Stage) -> None:
        slices = stage.slices(stage.nbytes, 64)
        array, region = await stage.target(stage.nbytes, "both")
        counter = await stage.counter()
        await stage.talk.say("offer", region.to_bytes(), counter.to_bytes())
        await (counter.take if stage.own.random() < 0.3 else counter.wait)(len(slices))
        check(array, stage.expected(stage.nbytes), f"{len(slices)} counted writes")
        stage.same_count(counter.value, len(slices), "counted writes")
        await stage.talk.say("right")
