# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Regions that are revoked, or closed, while the peer writes to them."""

from __future__ import annotations

import asyncio

from pplx_async import BrokenResourceError, RemoteAccessError, RemoteRegion
from pplx_async._core.memory import LocalSlice
from tests.soak.content import Wrong, check, check_either
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["Closes", "Revokes"]

_WRITERS = 4
_QUIET_S = 0.01
_STAMP = 0xA5


class _UnderFire(Exercise):
    """Writes without end, until they are refused."""

    largest = 4 << 20
    expected: tuple[type[Exception], ...] = (BrokenResourceError,)

    async def act(self, stage: Stage) -> int:
        source = await stage.source(stage.nbytes)
        (descriptor,) = await stage.talk.hear("offer")
        try:
            remote = stage.peer.region(descriptor)
        except BrokenResourceError:  # gone again before we looked
            await stage.talk.hear("right")
            return 0
        written = await asyncio.gather(*(self._write(stage, source, remote) for _ in range(_WRITERS)))
        await stage.talk.hear("right")
        try:
            stage.engine.write(source, remote)
        except BrokenResourceError:
            return sum(written)
        raise Wrong("a write to a region that is gone was taken")

    async def _write(self, stage: Stage, source: LocalSlice, remote: RemoteRegion) -> int:
        written = 0
        while True:
            try:
                written += await stage.engine.write(source, remote)
            except self.expected:
                return written

    async def _offer(self, stage: Stage):
        array, region = await stage.target(stage.nbytes)
        await stage.talk.say("offer", region.to_bytes())
        await asyncio.sleep(stage.own.choice((0, 0.001, 0.01, 0.05)))
        return array, region


class Revokes(_UnderFire):
    """After a revoke nobody writes there any more."""

    name = "revoke"

    async def host(self, stage: Stage) -> None:
        array, region = await self._offer(stage)
        await region.revoke()
        check_either(array, stage.expected(stage.nbytes), 0, "a region that was revoked")
        array[:] = _STAMP
        await asyncio.sleep(_QUIET_S)
        check(array, _STAMP, "memory that was revoked")
        await stage.talk.say("right")


class Closes(_UnderFire):
    """After a close the key is gone. Where that ends what is under way to other regions, too, it is not done."""

    name = "close"
    weight = 2
    expected = (BrokenResourceError, RemoteAccessError)
    fabrics = ("ipc",)  # libfabric's tcp drops the connection: docs/errors.md, CONNECTION

    async def host(self, stage: Stage) -> None:
        array, region = await self._offer(stage)
        await region.close()
        check_either(array, stage.expected(stage.nbytes), 0, "a region that was closed")
        await stage.talk.say("right")
