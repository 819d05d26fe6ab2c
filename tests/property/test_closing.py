# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Engines that close at any moment of anything: all that runs ends soon, in typed errors, and nothing is left."""

import asyncio
import contextlib
import gc
import logging
import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers.engines import SOON, engine_on, eventually, open_pair, patience
from helpers.limits import open_descriptors, proxy_threads
from pplx_async import PplxAsyncError

SIZE = 64 << 10
ENDINGS = ["close", "close a cancelled one", "cancel all first", "lose some first"]
# What may come of anything that was begun in vain; of a group, also that another task forms or has it.
EXPECTED = (PplxAsyncError, KeyError, TimeoutError, StopAsyncIteration)

EXAMPLES = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.generate],  # the threads' times differ from run to run: a smaller example need not fail
)


class Program:
    """A task that does one thing after the other with an engine, at random, each for as long as it has patience."""

    def __init__(self, rng, engine, others):
        self.rng, self.engine, self.others = rng, engine, others

    async def run(self):
        while self.engine.is_open:
            act = self.rng.choice([self.register, self.connect, self.listen, *[self.with_a_peer] * 6])
            with contextlib.suppress(*EXPECTED):
                try:
                    async with asyncio.timeout(self.rng.choice([None, None, 0, 0.001, 0.01])):
                        await act()
                except ExceptionGroup as group:
                    _, unexpected = group.split(EXPECTED)
                    if unexpected is not None:
                        raise unexpected from None
            await asyncio.sleep(self.rng.choice([0, 0, 0.001]))

    async def register(self):
        async with await self.engine.register(bytearray(1000)):
            pass

    async def connect(self):
        await self.engine.connect(self.rng.choice(self.others).address)

    async def listen(self):
        await anext(self.engine.messages())

    async def with_a_peer(self):
        if peers := self.engine.peers:
            acts = [self.write, self.read, self.scope, self.revoke, self.meet, self.send, self.count, self.part]
            await self.rng.choice(acts)(self.rng.choice(peers))

    @contextlib.asynccontextmanager
    async def memory(self, peer):
        remote = await peer.lookup("memory")
        async with await self.engine.register(bytearray(SIZE)) as local:
            yield local, remote

    async def write(self, peer):
        async with self.memory(peer) as (local, remote):
            await self.engine.write(local, remote, counter=await peer.lookup_counter("counter"))

    async def read(self, peer):
        async with self.memory(peer) as (local, remote):
            await self.engine.read(remote, local)

    async def scope(self, peer):
        async with self.memory(peer) as (local, remote), self.engine.scope() as scope:
            for _ in range(20):
                scope.write(local, remote)

    async def revoke(self, peer):
        region = await self.engine.register(bytearray(1000))
        assert region.to_bytes()
        await region.revoke()

    async def meet(self, peer):
        try:
            group = await self.engine.group(f"group {self.rng.randrange(3)}", [peer])
        except ValueError:  # another task of ours forms it, or has it
            return
        try:
            await self.engine.barrier(group)
        finally:
            await group.close()

    async def send(self, peer):
        await peer.send(b"anything")

    async def count(self, peer):
        async with self.engine.counter(peer=peer) as counter:
            await counter.wait(1)

    async def part(self, peer):
        if self.rng.random() < 0.1:
            await peer.close()


def left_behind(before):
    """Whether descriptors or threads of the process are more than before, or anything else runs on this loop."""
    gc.collect()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return bool(tasks) or any(now > then for now, then in zip(held(), before, strict=True))


def held():
    return open_descriptors(), proxy_threads()


async def close_in_the_midst(fabric, rng, ending, stack):
    """Three engines, a few programs of each, and their end; `stack` closes them, should we not get there."""
    engines = [engine_on(fabric, revoke_timeout=1.0, connect_timeout=SOON) for _ in range(3)]
    for engine in engines:
        await engine.open()
        stack.push_async_callback(engine.close)
        engine.publish("memory", await engine.register(rng.choice([engine.empty, bytearray])(SIZE)))
        engine.publish("counter", engine.counter())
    for engine in engines:
        for other in engines:
            if engine is not other and rng.random() < 0.5:
                await engine.connect(other.address)
    for engine in engines:
        patience(engine, 2.0)
    programs = [
        asyncio.create_task(Program(rng, engine, [other for other in engines if other is not engine]).run())
        for engine in engines
        for _ in range(rng.randrange(1, 6))
    ]
    await asyncio.sleep(rng.random() * 0.03)
    if ending == "lose some first":
        for peer in [peer for engine in engines for peer in engine.peers if rng.random() < 0.5]:
            peer._channel._frames.fail("as if its process had died")
        await asyncio.sleep(rng.random() * 0.02)
    if ending == "cancel all first":
        for task in programs:
            task.cancel()
    rng.shuffle(engines)
    closes = [asyncio.create_task(engine.close()) for engine in engines]
    if ending == "close a cancelled one":
        await asyncio.sleep(0)
        closes[0].cancel()  # it goes on by itself
        closes.append(asyncio.create_task(engines[0].close()))
    ends = await asyncio.wait_for(asyncio.gather(*closes, return_exceptions=True), SOON)
    assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends), ends
    for end in await asyncio.wait_for(asyncio.gather(*programs, return_exceptions=True), SOON):
        if end is not None and not isinstance(end, asyncio.CancelledError):
            raise end


@EXAMPLES
@given(seed=st.integers(0, 2**32), ending=st.sampled_from(ENDINGS))
@pytest.mark.deadline(240)
async def test_engines_that_close_in_the_midst_of_anything(fabric, caplog, seed, ending):
    caplog.set_level(logging.CRITICAL, "pplx_async.control")  # that somebody gave up connecting is meant here
    async with open_pair(fabric):  # what is loaded at first use is loaded
        pass
    before = held()
    async with contextlib.AsyncExitStack() as stack:
        await close_in_the_midst(fabric, random.Random(seed), ending, stack)
    await eventually(lambda: not left_behind(before), "nothing is left")
    assert not any("background task" in message for message in caplog.messages)
    caplog.clear()
