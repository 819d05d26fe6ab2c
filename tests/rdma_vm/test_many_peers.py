# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Many peers of one engine, and many that come and go at once."""

import asyncio
import contextlib

import numpy as np
import pytest

from helpers.cables import ends
from helpers.engines import engine_on, eventually, pattern
from helpers.slowness import SLOWNESS

pytestmark = pytest.mark.fabrics("verbs", "verbs-fake")

PEERS, NBYTES = 64, 4096


@pytest.mark.deadline(180)
async def test_sixty_four_peers_write_to_one(fabric):
    ours, theirs = ends(fabric)
    patient = {"connect_timeout": 60.0 * SLOWNESS, "peer_timeout": 20.0 * SLOWNESS}
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(engine_on(fabric, **patient, **ours))
        target = np.zeros(PEERS * NBYTES, np.uint8)
        hub.publish("target", await hub.register(target))
        counter = hub.counter()
        hub.publish("counter", counter)
        engines = [await stack.enter_async_context(engine_on(fabric, **patient, **theirs)) for _ in range(PEERS)]

        # Who connects when too many do is turned away if it is slow: that is the storm's matter, below.
        doors = asyncio.Semaphore(8)

        async def visit(number, engine):
            async with doors:
                peer = await engine.connect(hub.address)
            remote, remote_counter = await peer.lookup("target"), await peer.lookup_counter("counter")
            async with await engine.register(pattern(NBYTES, number)) as source:
                for _ in range(3):
                    place = slice(number * NBYTES, (number + 1) * NBYTES)
                    await engine.write(source, remote[place], counter=remote_counter)

        async with asyncio.TaskGroup() as group:
            for number, engine in enumerate(engines):
                group.create_task(visit(number, engine))
            for _ in engines:
                await hub.accept()
        assert await counter.wait(3 * PEERS) == 3 * PEERS
        for number in range(PEERS):
            assert np.array_equal(target[number * NBYTES : (number + 1) * NBYTES], pattern(NBYTES, number)), number


@pytest.mark.deadline(120)
async def test_storm_of_connects_leaves_nothing_behind(fabric):
    ours, theirs = ends(fabric)
    patient = {"connect_timeout": 60.0 * SLOWNESS, "peer_timeout": 20.0 * SLOWNESS}
    engines, turns = 16, 3
    async with contextlib.AsyncExitStack() as stack:
        hub = await stack.enter_async_context(engine_on(fabric, **patient, **ours))
        target = np.zeros(engines, np.uint8)
        hub.publish("target", await hub.register(target))
        visitors = [await stack.enter_async_context(engine_on(fabric, **patient, **theirs)) for _ in range(engines)]

        async def come_and_go(number, engine):
            async with await engine.register(np.full(1, number + 1, np.uint8)) as source:
                for _ in range(turns):
                    peer = await engine.connect(hub.address)
                    await engine.write(source, (await peer.lookup("target"))[number : number + 1])
                    await peer.close()

        async with asyncio.TaskGroup() as group:
            for number, engine in enumerate(visitors):
                group.create_task(come_and_go(number, engine))
            for _ in range(engines * turns):
                await hub.accept()
        assert list(target) == list(range(1, engines + 1))
        await eventually(lambda: not hub._peers and not any(engine._peers for engine in visitors), "all have gone")
        assert hub.stats().inflight == 0
