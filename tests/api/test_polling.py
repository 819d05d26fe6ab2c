# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""In the default mode on few cores the loop polls for a moment after something has come, as long as that pays."""

import asyncio

import pytest

from helpers.engines import SOON, open_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Polls:
    """Counts the polls that an engine asks its loop for."""

    def __init__(self, engine, monkeypatch):
        self.count = 0
        loop = asyncio.get_running_loop()
        if not isinstance(loop, asyncio.BaseEventLoop):
            pytest.skip(f"call_soon of a {type(loop).__module__} loop cannot be watched")
        call_soon = loop.call_soon

        def watched(callback, *args, **kwargs):
            self.count += callback == engine._core.poll
            return call_soon(callback, *args, **kwargs)

        monkeypatch.setattr(loop, "call_soon", watched)


async def ping(pair, counter, remote, times, pause):
    for _ in range(times):
        wait = counter.wait(counter.value + 1)
        await pair.a.notify(remote)
        async with asyncio.timeout(SOON):
            await wait
        await asyncio.sleep(pause)


async def test_it_is_given_up_where_it_brings_nothing(fabric, monkeypatch):
    async with open_pair(fabric, progress="loop", spin=50e-6) as pair:
        counter, remote = pair.counter()
        for_ever = counter.wait(1 << 40)  # something pends all the time
        await ping(pair, counter, remote, 100, pause=0.001)  # much longer than it polls
        polls = Polls(pair.b, monkeypatch)
        await ping(pair, counter, remote, 20, pause=0.001)
        monkeypatch.undo()
        assert polls.count < 20 * 2
        for_ever.cancel()


async def test_none_without_spin(fabric, monkeypatch):
    async with open_pair(fabric, progress="loop", spin=0) as pair:
        counter, remote = pair.counter()
        polls = Polls(pair.b, monkeypatch)
        await ping(pair, counter, remote, 50, pause=0)
        monkeypatch.undo()
        assert polls.count == 0
