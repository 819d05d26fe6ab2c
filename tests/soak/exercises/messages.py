# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Messages: more of them than there are slots, in any order, each once."""

from __future__ import annotations

import asyncio

import numpy as np

from tests.soak.content import Bytes, Wrong, check
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage
from tests.soak.talk import ROOM

__all__ = ["Messages"]

_MOST = 60


def _contents(stage: Stage) -> list[Bytes]:
    sizes = [stage.plan.randrange(1, ROOM - 100) for _ in range(stage.plan.randint(1, _MOST))]
    return [stage.pool.piece(stage.seed + number, size) for number, size in enumerate(sizes)]


class Messages(Exercise):
    """Each message is numbered, and has bytes of its own."""

    name = "send"
    largest = _MOST * ROOM

    async def act(self, stage: Stage) -> int:
        contents = _contents(stage)
        await stage.talk.hear("ready")
        await asyncio.gather(
            *(stage.talk.say("data", number.to_bytes(4), piece.tobytes()) for number, piece in enumerate(contents))
        )
        await stage.talk.hear("right")
        return sum(map(len, contents))

    async def host(self, stage: Stage) -> None:
        waiting = dict(enumerate(_contents(stage)))
        await stage.talk.say("ready")
        while waiting:
            head, data = await stage.talk.hear("data")
            number = int.from_bytes(head)
            expected = waiting.pop(number, None)
            if expected is None:
                raise Wrong(f"message {number} came twice, or was never sent")
            stage.same_count(len(data), len(expected), f"bytes of message {number}")
            check(np.frombuffer(data, dtype=np.uint8), expected, f"message {number}")
        await stage.talk.say("right")
