# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Reads: out of memory that the peer has published under a name."""

from __future__ import annotations

from tests.soak.content import check
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["Reads"]


class Reads(Exercise):
    """Many reads side by side, in a scope, into memory with margins."""

    name = "read"

    async def act(self, stage: Stage) -> int:
        slices = stage.slices(stage.nbytes, 16)
        margin = stage.own.randrange(100)
        array, local = await stage.target(stage.nbytes + 2 * margin, "none")
        inner = local[margin : margin + stage.nbytes]
        (name,) = await stage.talk.hear("offer")
        remote = await stage.peer.lookup(name.decode())
        async with stage.engine.scope() as scope:
            for part in slices:
                scope.read(remote[part], inner[part])
        check(array[margin : margin + stage.nbytes], stage.expected(stage.nbytes), f"{len(slices)} reads")
        check(array[:margin], 0, "what lies before a read")
        check(array[margin + stage.nbytes :], 0, "what lies behind a read")
        await stage.talk.say("read")
        await stage.talk.hear("closed")
        return stage.nbytes

    async def host(self, stage: Stage) -> None:
        array, region = await stage.target(stage.nbytes, "read")
        array[:] = stage.expected(stage.nbytes)
        name = f"{stage.name} {stage.own.getrandbits(64):x}"
        stage.engine.publish(name, region)
        stage.callback(stage.engine.unpublish, name)
        await stage.talk.say("offer", name.encode())
        await stage.talk.hear("read")
        await stage.talk.say("closed")
