# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Scopes that are cancelled: afterwards the memory is ours again, and the peer's holds nothing else."""

from __future__ import annotations

import asyncio

import numpy as np

from pplx_async import BrokenResourceError, TransferScope
from tests.soak.content import check, check_either
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["Cancels"]

_QUIET_S = 0.01
_STAMP = 0xA5


class _Ended(Exception):
    """Raised in a block, to end its scope."""


class Cancels(Exercise):
    """Writes and reads under a scope, ended by a time-out, an exception, or one by one; or not at all."""

    name = "scope, cancelled"
    weight = 6

    async def act(self, stage: Stage) -> int:
        slices = stage.slices(stage.nbytes, 64)
        array, local = await stage.target(stage.nbytes, "none")
        array[:] = stage.expected(stage.nbytes)
        back, back_local = await stage.target(stage.nbytes, "none")
        region, counter = await stage.talk.hear("offer")
        remote, remote_counter = stage.peer.region(region), stage.peer.counter(counter)
        counted = []
        try:
            async with asyncio.timeout(stage.own.choice((0.0, 0.001, 0.005, 0.05, None))):
                async with stage.engine.scope() as scope:
                    for part in slices:
                        counted.append(scope.write(local[part], remote[part], counter=remote_counter))
                        if stage.own.random() < 0.2:
                            scope.read(remote[part], back_local[part])
                    await self._end(stage, scope, counted)
        except TimeoutError:
            pass
        except ExceptionGroup as failures:
            _, others = failures.split(_Ended)
            if others is not None:
                raise others from None
        # Nobody reads this any more, or writes there: what we do to it now must be seen by no one else.
        np.invert(array, out=array)
        back[:] = _STAMP
        whole = sum(not transfer.cancelled() for transfer in counted)
        await stage.talk.say("left", whole.to_bytes(4))
        await stage.talk.hear("right")
        check(back, _STAMP, "the target of cancelled reads")
        return stage.nbytes

    async def _end(self, stage: Stage, scope: TransferScope, counted: list) -> None:
        await asyncio.sleep(stage.own.choice((0, 0, 0.001, 0.01)))
        how = stage.own.random()
        if how < 0.3:
            raise _Ended
        if how < 0.6:
            for transfer in stage.own.sample(counted, len(counted) // 2):
                transfer.cancel()

    async def host(self, stage: Stage) -> None:
        count = len(stage.slices(stage.nbytes, 64))
        array, region = await stage.target(stage.nbytes, "both")
        counter = await stage.counter()
        await stage.talk.say("offer", region.to_bytes(), counter.to_bytes())
        (whole,) = await stage.talk.hear("left")
        check_either(array, stage.expected(stage.nbytes), 0, "what a cancelled scope left")
        try:
            await counter.wait(int.from_bytes(whole))
            if counter.value > count:
                stage.same_count(counter.value, count, "counts of a cancelled scope, of at most")
        except BrokenResourceError:
            pass  # a part of a write was posted
        array[:] = _STAMP
        await asyncio.sleep(_QUIET_S)
        check(array, _STAMP, "memory that a cancelled scope has left")
        await stage.talk.say("right")
