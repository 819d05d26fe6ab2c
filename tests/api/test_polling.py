# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Who polls, and for how long: as long as that pays, and never instead of making progress."""

import asyncio
import time

import pytest

from helpers.engines import SOON, open_pair
from pplx_async import TransferEngine
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Polls:
    """Counts the polls that an engine asks its loop for."""

    def __init__(self, engine, monkeypatch):
        self.count = 0
        loop = asyncio.get_running_loop()
        call_soon = loop.call_soon

        def watched(callback, *args, **kwargs):
            self.count += callback == engine._core.poll
            return call_soon(callback, *args, **kwargs)

        monkeypatch.setattr(loop, "call_soon", watched)


def skip_where_unwatchable():
    loop = asyncio.get_running_loop()
    if not isinstance(loop, asyncio.BaseEventLoop):
        pytest.skip(f"call_soon of a {type(loop).__module__} loop cannot be watched")


async def ping(pair, counter, remote, times, pause):
    for _ in range(times):
        wait = counter.wait(counter.value + 1)
        await pair.a.notify(remote)
        async with asyncio.timeout(SOON):
            await wait
        await asyncio.sleep(pause)


async def test_it_is_given_up_where_it_brings_nothing(fabric, monkeypatch):
    skip_where_unwatchable()
    async with open_pair(fabric, progress="loop", spin=50e-6) as pair:
        counter, remote = pair.counter()
        for_ever = counter.wait(1 << 40)  # something pends all the time
        await ping(pair, counter, remote, 100, pause=0.001)  # much longer than it polls
        counts = []
        while not counts or (counts[-1] >= 20 * 2 and len(counts) < 10):
            # One that finds something by chance, since we were held up, pays: it is tried again for a while.
            polls = Polls(pair.b, monkeypatch)
            await ping(pair, counter, remote, 20, pause=0.001)
            monkeypatch.undo()
            counts.append(polls.count)
        assert counts[-1] < 20 * 2, counts
        for_ever.cancel()


async def test_none_without_spin(fabric, monkeypatch):
    skip_where_unwatchable()
    async with open_pair(fabric, progress="loop", spin=0) as pair:
        counter, remote = pair.counter()
        polls = Polls(pair.b, monkeypatch)
        await ping(pair, counter, remote, 50, pause=0)
        monkeypatch.undo()
        assert polls.count == 0


@pytest.mark.parametrize("progress", ["loop", "proxy"])
@pytest.mark.parametrize("wakeup", ["eventfd", "spin"])
async def test_a_call_that_pends_holds_nobody_up(wakeup, progress):
    async with (
        open_pair("loopback", wakeup=wakeup, progress=progress) as pair,
        TransferEngine(fabric="loopback", faults=FaultPlan(drop_after=0)) as silent,
    ):
        counter, remote = pair.counter()
        connecting = asyncio.create_task(pair.a.connect(silent.address))
        await asyncio.sleep(0.1)
        pending = await median_of_pings(pair, counter, remote)
        assert not connecting.done()
        connecting.cancel()
        await asyncio.wait({connecting})
        # A lease of the owner's is 2 ms; and what this machine takes without a call, it takes with one.
        alone = await median_of_pings(pair, counter, remote)
        assert pending < 0.001 + 2 * alone, (pending, alone)


async def median_of_pings(pair, counter, remote):
    times = []
    for _ in range(200):
        began = time.perf_counter()
        await ping(pair, counter, remote, 1, pause=0)
        times.append(time.perf_counter() - began)
    return sorted(times)[100]
