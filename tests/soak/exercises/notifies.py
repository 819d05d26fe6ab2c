# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Notifications: counts that carry no bytes."""

from __future__ import annotations

from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["Notifies"]


class Notifies(Exercise):
    """Two counters, counted together and apart; each must show exactly what was sent."""

    name = "notify"
    largest = 1

    async def act(self, stage: Stage) -> int:
        first, second = _counts(stage)
        counters = [stage.peer.counter(descriptor) for descriptor in await stage.talk.hear("offer")]
        for _ in range(first):
            await stage.engine.notify(counters)
        batch = stage.engine.batch()
        batch.notify(counters[1], second)
        await batch.submit()
        await stage.talk.hear("right")
        return 0

    async def host(self, stage: Stage) -> None:
        first, second = _counts(stage)
        counters = [await stage.counter(), await stage.counter()]
        await stage.talk.say("offer", *(counter.to_bytes() for counter in counters))
        for counter, count in zip(counters, (first, first + second)):
            await counter.wait(count)
            stage.same_count(counter.value, count, "notifications")
        await stage.talk.say("right")


def _counts(stage: Stage) -> tuple[int, int]:
    return stage.plan.randint(1, 30), stage.plan.randint(1, 10_000)
