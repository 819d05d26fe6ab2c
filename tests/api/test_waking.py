# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Every way of waking up: nothing is missed, nobody starves, and a thread that waits sleeps in the end."""

import asyncio
import time

import numpy as np
import pytest

from helpers.engines import SOON, open_pair, pattern

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.parametrize("wakeup", ["eventfd", "spin"]),
    pytest.mark.parametrize("progress", ["loop", "proxy"]),
]

SIZES = [0, 8, 4096, 64 << 10, (64 << 10) + 1, 3 << 20]


async def test_each_write_is_awaited_and_counted(fabric, wakeup, progress):
    async with open_pair(fabric, wakeup=wakeup, progress=progress) as pair:
        data = pattern(SIZES[-1])
        source, target = await pair.source(data), await pair.target(SIZES[-1])
        counter, remote = pair.counter()
        for count, nbytes in enumerate(SIZES * 5, 1):
            target.array[:] = 0
            assert await pair.a.write(source[:nbytes], target.remote[:nbytes], counter=remote) == nbytes
            async with asyncio.timeout(SOON):
                assert await counter.wait(count) >= count
            assert np.array_equal(target.array[:nbytes], data[:nbytes])


async def test_many_tasks_and_messages_at_once(fabric, wakeup, progress):
    async with open_pair(fabric, wakeup=wakeup, progress=progress) as pair:
        source, target = await pair.source(100_000), await pair.target(100_000)
        counter, remote = pair.counter()

        async def write(number):
            for turn in range(20):
                nbytes = 100_000 if (number + turn) % 7 == 0 else 8
                await pair.a.write(source[:nbytes], target.remote[:nbytes], counter=remote)

        async def send():
            for number in range(50):
                await pair.ab.send(b"%d" % number)

        async def receive():
            messages = pair.b.messages()
            return {int((await anext(messages)).data) for _ in range(50)}

        async with asyncio.timeout(SOON):
            *_, got = await asyncio.gather(*(write(number) for number in range(40)), send(), receive())
            assert await counter.wait(800) == 800
        assert got == set(range(50))


async def test_awaits_that_need_not_suspend_let_others_run(fabric, wakeup, progress):
    async with open_pair(fabric, wakeup=wakeup, progress=progress) as pair:
        source, target = await pair.source(8), await pair.target(8)
        ticks = awaits = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        while awaits < 4000:
            await pair.a.write(source, target.remote)
            awaits += 1
        ticking.cancel()
        assert awaits <= 200 * (ticks + 1)


async def test_waiting_costs_nothing_after_a_moment(fabric, wakeup, progress):
    async with open_pair(fabric, wakeup=wakeup, progress=progress) as pair:
        counter, remote = pair.counter()
        wait = counter.wait(1)
        await asyncio.sleep(0.1)
        before = time.process_time()
        await asyncio.sleep(1)
        # Who has no wait fd polls on a timer. Who spins takes a whole second.
        polled = not all(caps["wait_fd"] for engine in (pair.a, pair.b) for caps in engine._core.caps())
        assert time.process_time() - before < (0.5 if polled else 0.25)
        await pair.a.notify(remote)
        async with asyncio.timeout(SOON):
            assert await wait == 1


async def test_awaits_that_copy_much_let_others_run(fabric, wakeup, progress):
    """Others have a turn after a few of them, not after as many as small ones may be."""
    async with open_pair(fabric, wakeup=wakeup, progress=progress) as pair:
        source, target = await pair.source(1 << 20), await pair.target(1 << 20)
        ticks = awaits = 0

        async def tick():
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        end = time.monotonic() + 0.2
        while time.monotonic() < end or awaits < 64:
            await pair.a.write(source, target.remote)
            awaits += 1
        ticking.cancel()
        assert awaits <= 16 * (ticks + 1)
