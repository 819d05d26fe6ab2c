# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Awaiting a completion queue of libibverbs: events, cancelling, closing. The line itself: tests/lowlevel."""

import asyncio
import os
import random
import select
import time

import pytest

from helpers.verbs_low import Side, names, sides
from pplx_async import ClosedResourceError, LeakWarning, WorkFlushed, verbs

pytestmark = pytest.mark.fabrics("verbs", "verbs-fake")


async def test_poll_sleeps_until_the_event(fabric):
    async with sides(fabric) as (a, b):
        waiting = asyncio.create_task(b.queue.poll())
        b.pair.recv_nowait(context="first")
        await asyncio.sleep(0.02)
        assert not waiting.done()
        a.pair.send_nowait(None)
        (got,) = await waiting
        assert got.context == "first"


async def test_every_event_wakes_once_more(fabric):
    """It is armed anew each time, and no event is left over that would keep the fd readable."""
    async with sides(fabric) as (a, b):
        for i in range(50):
            b.pair.recv_nowait(context=i)
            waiting = asyncio.create_task(b.queue.poll())
            await asyncio.sleep(0)
            a.pair.send_nowait(None)
            assert [completion.context for completion in await waiting] == [i]
            await a.outcome()
        assert b.queue.arm()
        assert select.select([b.queue.fd], [], [], 0)[0] == []


async def test_what_came_before_it_was_armed_is_seen(fabric):
    """No event tells of it: `arm` looks again, and says that one must not sleep."""
    async with sides(fabric) as (a, b):
        assert b.queue.poll_nowait() == []
        b.pair.recv_nowait()
        a.pair.send_nowait(None)
        await a.outcome()  # answered: so it is there
        assert not b.queue.arm()
        assert select.select([b.queue.fd], [], [], 0)[0] == []
        assert len(b.queue.poll_nowait()) == 1
        assert b.queue.arm()


async def test_iteration_ends_when_the_queue_is_closed(fabric):
    async with sides(fabric) as (a, b):
        seen = []

        async def iterate():
            async for completion in b.queue:
                seen.append(completion.context)

        task = asyncio.create_task(iterate())
        for i in range(20):
            b.pair.recv_nowait(context=i)
            a.pair.send_nowait(None)
        while len(seen) < 20:
            await asyncio.sleep(0.001)
        b.queue.close()
        await task
        assert seen == list(range(20))
        assert not b.pair.is_open


async def test_closing_ends_waits(fabric):
    async with sides(fabric) as (a, _):
        tasks = [asyncio.create_task(a.queue.poll()) for _ in range(3)]
        await asyncio.sleep(0.01)
        a.queue.close()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, ClosedResourceError)
        with pytest.raises(ClosedResourceError):
            await a.queue.poll()


async def test_closing_a_queue_pair_wakes_who_waits_for_it(fabric):
    async with sides(fabric) as (a, _):
        a.pair.recv_nowait(context="flushed")
        waiting = asyncio.create_task(a.queue.poll())
        await asyncio.sleep(0.01)
        a.pair.close()
        (got,) = await waiting
        assert (got.context, type(got.error)) == ("flushed", WorkFlushed)


@pytest.mark.parametrize("seed", range(2))
async def test_cancelling_at_random_loses_and_doubles_nothing(fabric, seed):
    chance = random.Random(seed)
    async with sides(fabric, receive_depth=64) as (a, b):
        sending = asyncio.create_task(_drain(a.queue))
        taken, tasks, sent = [], [], 0

        async def read():
            taken.extend(completion.context for completion in await b.queue.poll(chance.randint(1, 4)))

        while sent < 300:
            if len(tasks) < 5:
                tasks.append(asyncio.create_task(read()))
            if chance.random() < 0.7 and sent - len(taken) < 32:
                await b.pair.recv(context=sent)
                await a.pair.send(None)
                sent += 1
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
            await asyncio.sleep(0)
            tasks = [task for task in tasks if not task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while len(taken) < sent:
            await read()
        assert sorted(taken) == list(range(sent))
        a.queue.close()
        await sending


async def _drain(queue):
    async for completion in queue:
        completion.raise_for_error()


async def test_idle_wait_costs_nothing(fabric):
    async with sides(fabric) as (a, _):
        task = asyncio.create_task(a.queue.poll())
        await asyncio.sleep(0.05)
        started = time.process_time()
        await asyncio.sleep(0.3)
        assert time.process_time() - started < 0.15
        task.cancel()


class Buffer(bytearray):
    """Memory whose registration can be seen."""


def is_held(buffer):
    try:
        buffer.append(0)
    except BufferError:
        return True
    buffer.pop()
    return False


async def test_memory_is_held_until_its_completion_is_read(fabric):
    async with sides(fabric) as (a, _):
        buffer = Buffer(100)
        memory = a.pd.register(buffer)
        a.pair.recv_nowait(memory)
        memory.close()
        assert is_held(buffer)
        a.pair.abort()
        await a.outcome()
        assert not is_held(buffer)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 4, 0, 3, 1), (1, 0, 4, 2, 3)])
async def test_closing_in_any_order_of_the_native_objects(fabric, order):
    before = len(os.listdir("/proc/self/fd"))
    side = Side(fabric, names(fabric)[0])
    buffer = Buffer(100)
    memory = side.pd.register(buffer)
    side.pair.recv_nowait(memory)
    cores = [each._core for each in (side.context, side.pd, memory, side.queue._queue, side.pair)]
    for index in order:
        cores[index].close()
        cores[index].close()
    assert not is_held(buffer)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_dropped_while_open_is_told(fabric):
    context = verbs.open(names(fabric)[0], library=fabric.options.get("library"))
    with pytest.warns(LeakWarning, match="Context"):
        del context


async def test_child_of_a_fork_is_refused(fabric):
    async with sides(fabric) as (a, _):
        pid = os.fork()
        if pid == 0:
            refused = 0
            for call in (a.queue.poll_nowait, a.pair.recv_nowait, a.context.protection_domain):
                try:
                    call()
                except ClosedResourceError as error:
                    refused += "fork" in str(error)
            os._exit(refused)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
        a.pair.recv_nowait()
