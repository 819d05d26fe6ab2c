# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Awaiting a completion queue, on a source that does exactly what each test says: no library in play."""

import asyncio
import contextlib
import os
import random
import threading
import time

import pytest

from helpers.engines import SOON, eventually
from pplx_async import BrokenResourceError, ClosedResourceError, CompletionError, LeakWarning
from pplx_async.completion import Completion, CompletionQueue


class Source:
    """A queue whose fd rings, as a library's does, only for what comes after it was armed."""

    def __init__(self, *, fd=True):
        self.has = []
        self.before_arm = []  # what comes between a look and the arming
        self.armed = False
        self.polls = self.arms = 0
        self.is_open = True
        self.failure = None
        self.bell = os.eventfd(0, os.EFD_NONBLOCK) if fd else -1

    @property
    def fd(self):
        return self.bell

    def put(self, *contexts):
        self.has += [Completion("write", context=context) for context in contexts]
        if self.armed:
            self.armed = False
            os.eventfd_write(self.bell, 1)

    def poll(self, most):
        if not self.is_open:
            raise ClosedResourceError("the source is closed")
        if self.failure is not None and not self.has:
            raise self.failure
        self.polls += 1
        taken, self.has = self.has[:most], self.has[most:]
        return taken

    def arm(self):
        self.arms += 1
        if self.before_arm:
            self.put(*self.before_arm)
            self.before_arm.clear()
        if self.has or self.bell < 0:
            return False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.bell)
        self.armed = True
        return True

    def close(self):
        if self.is_open and self.bell >= 0:
            os.close(self.bell)
        self.is_open = False


@pytest.fixture
def source():
    return Source()


@pytest.fixture
def queue(source):
    queue = CompletionQueue(source)
    yield queue
    queue.close()


def contexts(completions):
    return [completion.context for completion in completions]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


async def test_read_takes_what_is_there(source, queue):
    source.put(1, 2, 3)
    assert contexts(await queue.read(2)) == [1, 2]
    assert contexts(await queue.read()) == [3]


async def test_read_waits_for_the_fd(source, queue):
    reading = asyncio.create_task(queue.read())
    await settle()
    assert source.armed
    polls = source.polls
    await asyncio.sleep(0.02)
    assert source.polls == polls  # it sleeps: nobody looks
    source.put("late")
    assert contexts(await reading) == ["late"]


async def test_what_comes_between_look_and_arm_is_seen(source, queue):
    """The fd does not tell of it: only looking again does."""
    source.before_arm = ["between"]
    async with asyncio.timeout(SOON):
        assert contexts(await queue.read()) == ["between"]


async def test_without_an_fd_it_looks_at_intervals():
    source = Source(fd=False)
    async with CompletionQueue(source, poll_interval=0.01) as queue:
        reading = asyncio.create_task(queue.read())
        began = time.monotonic()
        await eventually(lambda: source.polls >= 10, "it has looked ten times")
        assert source.polls <= (time.monotonic() - began) / 0.01 + 2
        source.put(1)
        assert contexts(await reading) == [1]


async def test_line_is_served_in_order(source, queue):
    order = []

    async def read(name):
        order.append((name, contexts(await queue.read(1))))

    tasks = [asyncio.create_task(read(name)) for name in range(5)]
    await settle()
    source.put(*"abcde")
    await asyncio.gather(*tasks)
    assert order == [(0, ["a"]), (1, ["b"]), (2, ["c"]), (3, ["d"]), (4, ["e"])]


async def test_newcomer_does_not_overtake(source, queue):
    """Something comes for the one who waits, and before it runs another one reads."""
    first = asyncio.create_task(queue.read(1))
    await settle()
    source.put("first", "second")
    second = asyncio.create_task(queue.read(1))
    assert contexts(await first) == ["first"]
    assert contexts(await second) == ["second"]


async def test_poll_does_not_wait_and_goes_ahead_of_the_line(source, queue):
    assert queue.poll() == []
    reading = asyncio.create_task(queue.read())
    await settle()
    source.put(1)
    assert contexts(queue.poll()) == [1]
    await settle()
    assert not reading.done()
    source.put(2)
    assert contexts(await reading) == [2]


async def test_cancelled_wait_takes_nothing(source, queue):
    reading = asyncio.create_task(queue.read())
    await settle()
    source.put(1)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert contexts(await queue.read()) == [1]


async def test_cancelled_after_it_was_woken(source, queue):
    """Cancelled in the very moment between the wake and its run: the next in line gets it."""
    first, second = (asyncio.create_task(queue.read(1)) for _ in range(2))
    await settle()
    source.put("x")
    queue._look()  # what the fd's callback does: the first one is woken, and has not run
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    async with asyncio.timeout(SOON):
        assert contexts(await second) == ["x"]


async def test_head_of_the_line_leaves_and_the_next_is_watched_for(source, queue):
    first, second = (asyncio.create_task(queue.read(1)) for _ in range(2))
    await settle()
    first.cancel()
    await settle()
    source.put("x")
    async with asyncio.timeout(SOON):
        assert contexts(await second) == ["x"]


@pytest.mark.parametrize("seed", range(3))
async def test_random_cancelling_loses_and_doubles_nothing(source, queue, seed):
    chance = random.Random(seed)
    taken, tasks, put = [], [], 0

    async def read():
        taken.extend(contexts(await queue.read(chance.randint(1, 4))))

    while put < 2000:
        if len(tasks) < 6:
            tasks.append(asyncio.create_task(read()))
        if chance.random() < 0.6:
            more = chance.randint(1, 5)
            source.put(*range(put, put + more))
            put += more
        if chance.random() < 0.3:
            chance.choice(tasks).cancel()
        if chance.random() < 0.5:
            await asyncio.sleep(0)
        tasks = [task for task in tasks if not task.done()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    taken += contexts(queue.poll(10_000))
    assert sorted(taken) == list(range(put))


async def test_several_iterators_share(source, queue):
    seen = []

    async def iterate(name):
        async for completion in queue:
            seen.append((name, completion.context))
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(iterate(name)) for name in range(3)]
    for start in range(0, 900, 9):
        source.put(*range(start, start + 9))
        await asyncio.sleep(0)
    while len(seen) < 900:
        await asyncio.sleep(0.001)
    assert sorted(context for _, context in seen) == list(range(900))
    assert {name for name, _ in seen} == {0, 1, 2}
    queue.close()
    await asyncio.gather(*tasks)  # closing ends the iterations


async def test_reading_without_end_leaves_the_loop_its_turns(source, queue):
    """Reads that find something don't wait; a flood must not starve everybody else."""
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for i in range(5000):
        source.put(i)
        await queue.read(1)
    assert turns >= 10
    task.cancel()


async def test_timeout(queue):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await queue.read()


async def test_closing_ends_waits(source):
    queue = CompletionQueue(source)
    tasks = [asyncio.create_task(queue.read()) for _ in range(3)]
    await settle()
    queue.close()
    queue.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, ClosedResourceError)
    with pytest.raises(ClosedResourceError):
        await queue.read()
    with pytest.raises(ClosedResourceError):
        queue.poll()
    assert [completion async for completion in queue] == []


async def test_broken_source_ends_every_wait_once_it_is_dry(source, queue):
    tasks = [asyncio.create_task(queue.read(1)) for _ in range(3)]
    await settle()
    source.failure = BrokenResourceError("the NIC is gone")
    source.put("last words")
    first, *others = await asyncio.gather(*tasks, return_exceptions=True)
    assert contexts(first) == ["last words"]
    assert [type(other) for other in others] == [BrokenResourceError] * 2
    with pytest.raises(BrokenResourceError):
        await queue.read()


async def test_failure_is_a_completion_among_others(source, queue):
    error = CompletionError("broken", status="TRANSPORT")
    source.put(1)
    source.has.append(Completion("write", context=2, error=error))
    source.put(3)
    one, two, three = await queue.read()
    assert one.raise_for_error() is one
    assert (two.error, three.error) == (error, None)
    with pytest.raises(CompletionError, match="broken"):
        two.raise_for_error()
    assert "failed" in repr(two)


def test_another_loop_when_the_first_is_closed(source):
    queue = CompletionQueue(source)

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(queue.read(), 0.01)

    async def read():
        asyncio.get_running_loop().call_later(0.01, source.put, 1)
        return contexts(await queue.read())

    asyncio.run(give_up())
    assert asyncio.run(read()) == [1]
    queue.close()


def test_loop_that_is_closed_over_a_wait(source):
    """The task is destroyed while it waits; the queue stays usable."""
    queue = CompletionQueue(source)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    task = loop.create_task(queue.read())
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    source.put(1)
    assert contexts(asyncio.run(queue.read())) == [1]
    del task
    queue.close()


async def test_two_loops_at_once_are_refused(source, queue):
    reading = asyncio.create_task(queue.read())
    await settle()

    def elsewhere():
        with pytest.raises(RuntimeError, match="another event loop"):
            asyncio.run(queue.read())
        with pytest.raises(RuntimeError, match="another thread"):
            queue.close()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    source.put(1)
    await reading


async def test_dropped_while_open(source):
    queue = CompletionQueue(source)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.read(), 0.01)
    with pytest.warns(LeakWarning, match="never closed"):
        del queue
    assert not source.is_open
    # The loop has forgotten the fd: another file of that number can be watched.
    read, write = os.pipe()
    rung = asyncio.Event()
    asyncio.get_running_loop().add_reader(read, rung.set)
    os.write(write, b"x")
    await rung.wait()
    asyncio.get_running_loop().remove_reader(read)
    os.close(read)
    os.close(write)


async def test_idle_queue_is_not_watched_for_ever(source, queue):
    """After a wait that was given up the fd may ring once, for nobody."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.read(), 0.01)
    source.put(1)
    started = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - started < 0.25
    assert contexts(await queue.read()) == [1]


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)])
async def test_misuse(queue, count, error):
    with pytest.raises(error):
        await queue.read(count)
    with pytest.raises(error):
        queue.poll(count)


@pytest.mark.parametrize("interval", [0, -1, 2, float("nan")])
def test_poll_interval_in_range(source, interval):
    with pytest.raises(ValueError, match="poll_interval"):
        CompletionQueue(source, poll_interval=interval)
    source.close()
