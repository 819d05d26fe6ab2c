# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Groups: whoever is past a barrier finds what all others did before it."""

from __future__ import annotations

from pplx_async import BrokenResourceError, PeerLost
from tests.soak.content import Bytes, Wrong
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage
from tests.soak.talk import Refused, try_to_say

__all__ = ["Groups"]


class Groups(Exercise):
    """Before each barrier every member writes its stamp at every other one; after it all must be there."""

    name = "group, barrier"
    weight = 2
    with_all = True
    largest = 1

    async def act(self, stage: Stage) -> int:
        for talk in stage.talks:
            await talk.hear("ready")
        for talk in stage.talks:
            await talk.say("go")
        nbytes = await _attend(stage, await _publish(stage))
        for talk in stage.talks:
            await talk.hear("right")
        return nbytes

    async def host(self, stage: Stage) -> None:
        if any(stage.find(name) is None for name in _others(stage)):
            raise Refused
        stamps = await _publish(stage)
        await stage.talk.say("ready")
        await stage.talk.hear("go")
        try:
            await _attend(stage, stamps)
        except (PeerLost, BrokenResourceError, KeyError):
            await try_to_say(stage.talk, "elsewhere")
            raise
        await stage.talk.say("right")


def _others(stage: Stage) -> list[str]:
    return [name for name in stage.names if name != stage.name]


def _name(stage: Stage) -> str:
    return f"group {stage.names[0]} {stage.seed:x}"


async def _publish(stage: Stage) -> Bytes:
    """Let the others find where their stamps go: a byte for each member, in the order of the names."""
    stamps, region = await stage.target(len(stage.names))
    # Who leaves because one is lost may be written to by a third, which has not heard of that yet.
    stage.push_async_callback(region.revoke)
    stage.engine.publish(_name(stage), region)
    stage.callback(stage.engine.unpublish, _name(stage))
    return stamps


async def _attend(stage: Stage, stamps: Bytes) -> int:
    """Be a member; return how many bytes were written here and there."""
    others, rounds = _others(stage), stage.plan.randint(1, 10)
    peers = [stage.find(name) for name in others]
    if None in peers:
        raise Refused  # it was lost since we looked
    place = stage.names.index(stage.name)
    mine, local = await stage.target(1, "none")
    group = await stage.engine.group(_name(stage), peers)
    try:
        remotes = [await peer.lookup(_name(stage)) for peer in peers]
        for number in range(1, rounds + 1):
            mine[0] = number
            await stage.engine.scatter([(local, remote[place : place + 1]) for remote in remotes])
            await stage.engine.barrier(group)
            early = [name for name, stamp in zip(stage.names, stamps) if name in others and stamp < number]
            if early:
                raise Wrong(f"past barrier {number} without {', '.join(early)}: stamps {stamps.tolist()}")
        await stage.engine.notify(group)
        await group.counter.wait(len(others))
        await stage.engine.barrier(group)
        stage.same_count(group.counter.value, len(others), "notifications of a group")
    finally:
        await group.close()
    return rounds * len(others)
