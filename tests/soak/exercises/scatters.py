# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One request to all peers; who is killed meanwhile keeps it from nobody else."""

from __future__ import annotations

import asyncio

from pplx_async import PeerLost
from tests.soak.content import check
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["Scatters"]


class Scatters(Exercise):
    """The same bytes to every peer, each counted there."""

    name = "scatter"
    with_all = True
    largest = 16 << 20

    async def act(self, stage: Stage) -> int:
        source = await stage.source(stage.nbytes)
        offers = [await talk.hear("offer") for talk in stage.talks]
        targets = [
            (source, talk.peer.region(region), talk.peer.counter(counter))
            for talk, (region, counter) in zip(stage.talks, offers)
        ]
        scattering = stage.engine.scatter(targets)
        try:
            written = await scattering
        except PeerLost:
            # One of them; the others got theirs.
            for heard in await asyncio.gather(*(talk.hear("right") for talk in stage.talks), return_exceptions=True):
                if isinstance(heard, BaseException) and not isinstance(heard, PeerLost):
                    raise heard from None
            raise
        stage.same_count(written, stage.nbytes * len(targets), "bytes that scatter returned")
        for talk in stage.talks:
            await talk.hear("right")
        return written

    async def host(self, stage: Stage) -> None:
        array, region = await stage.target(stage.nbytes)
        counter = await stage.counter()
        await stage.talk.say("offer", region.to_bytes(), counter.to_bytes())
        counted = asyncio.ensure_future(counter.wait(1))
        called_off = asyncio.ensure_future(stage.talk.hear("never mind"))
        try:
            await asyncio.wait({counted, called_off}, return_when=asyncio.FIRST_COMPLETED)
            if not counted.done():
                await called_off
                return
            await counted
        finally:
            counted.cancel()
            called_off.cancel()
            await asyncio.gather(counted, called_off, return_exceptions=True)
        check(array, stage.expected(stage.nbytes), "a scatter")
        stage.same_count(counter.value, 1, "counted scatters")
        await stage.talk.say("right")
