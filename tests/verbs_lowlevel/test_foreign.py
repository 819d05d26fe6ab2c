# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Awaiting the completion queues of other bindings, on stand-ins for their objects.

Those of the bindings themselves need devices: `test_programs.py`.
"""

import asyncio
import collections
import ctypes
import gc
import os
import select
import struct
from types import SimpleNamespace

import pytest

from pplx_async import (
    ClosedResourceError,
    CompletionError,
    PeerLost,
    RemoteAccessError,
    WorkFlushed,
    _foreign_cq,
    verbs,
)


class Channel(float):
    """A completion channel on an eventfd, with an event for each time that an armed queue was told.

    A float, for then the first word of the object can be any: what the kernel's structure of that name is found by.
    """

    def __new__(cls, pointer=0):
        channel = float.__new__(cls, struct.unpack("d", struct.pack("Q", pointer))[0])
        channel._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE)
        return channel

    def __del__(self):
        os.close(self._fd)

    def get_cq_event(self, *queue):
        os.eventfd_read(self._fd)  # BlockingIOError: a device's would wait for ever
        self.queue.unacknowledged += 1
        assert queue == self.expected


class Queue(float):
    def __new__(cls, channel, pointer=0):
        queue = float.__new__(cls, struct.unpack("d", struct.pack("Q", pointer))[0])
        queue.done, queue.armed, queue.unacknowledged = collections.deque(), False, 0
        queue.on_arming = lambda: None
        channel.queue = queue
        return queue

    def complete(self, *numbers, status=0):
        self.done.extend(SimpleNamespace(wr_id=number, status=status) for number in numbers)
        if self.armed:
            self.armed = False
            os.eventfd_write(self.its._fd, 1)

    def req_notify(self):
        self.on_arming()
        self.armed = True

    def ack_events(self, count):
        self.unacknowledged -= count

    def _poll(self, most):
        return [self.done.popleft() for _ in range(min(most, len(self.done)))]


class WheelChannel(Channel):
    __module__ = "ibverbs._ibverbs"
    expected = ()
    fd = property(lambda self: self._fd)


class WheelQueue(Queue):
    __module__ = "ibverbs._ibverbs"
    channel = property(lambda self: self.its)
    poll = Queue._poll


class PyverbsChannel(Channel):
    __module__ = "pyverbs.cq"
    expected = property(lambda self: (self.queue,))


class PyverbsQueue(Queue):
    __module__ = "pyverbs.cq"
    comp_channel = property(lambda self: self.its)

    def poll(self, most):
        taken = self._poll(most)
        return len(taken), taken


def make(kind):
    channel = {"ibverbs": WheelChannel, "pyverbs": PyverbsChannel}[kind]()
    queue = {"ibverbs": WheelQueue, "pyverbs": PyverbsQueue}[kind](channel)
    queue.its = channel
    return queue, channel


@pytest.fixture(params=["ibverbs", "pyverbs"])
def theirs(request):
    return make(request.param)


def awaitable(queue, channel):
    return verbs.AsyncCQ(queue, channel, fd=channel._fd)


async def test_poll_sleeps_until_the_event(theirs):
    queue, channel = theirs
    async with awaitable(queue, channel) as completions:
        for number in range(20):
            waiting = asyncio.create_task(completions.poll())
            await asyncio.sleep(0)
            assert queue.armed
            queue.complete(number)
            (got,) = await waiting
            assert got.wr_id == number
        assert queue.unacknowledged <= 1  # the last one is acknowledged when it is armed again
        assert completions.arm()
    assert queue.unacknowledged == 0


async def test_what_came_before_it_was_armed_is_seen(theirs):
    queue, channel = theirs
    async with awaitable(queue, channel) as completions:
        queue.on_arming = lambda: queue.complete(7)
        (got,) = await completions.poll()
        assert got.wr_id == 7


async def test_iteration_gives_each_in_order(theirs):
    queue, channel = theirs
    completions = awaitable(queue, channel)
    seen = []

    async def iterate():
        async for wc in completions:
            seen.append(wc.wr_id)

    task = asyncio.create_task(iterate())
    for start in range(0, 300, 30):
        await asyncio.sleep(0)
        queue.complete(*range(start, start + 30))
    while len(seen) < 300:
        await asyncio.sleep(0)
    completions.close()
    await task
    assert seen == list(range(300))


async def test_cancelled_wait_takes_nothing(theirs):
    queue, channel = theirs
    async with awaitable(queue, channel) as completions:
        waiting = asyncio.create_task(completions.poll())
        await asyncio.sleep(0)
        queue.complete(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert [wc.wr_id for wc in await completions.poll()] == [1]


async def test_closing_ends_waits_and_leaves_the_queue_to_its_owner(theirs):
    queue, channel = theirs
    completions = awaitable(queue, channel)
    waiting = asyncio.create_task(completions.poll())
    await asyncio.sleep(0)
    completions.close()
    completions.close()
    with pytest.raises(ClosedResourceError):
        await waiting
    queue.complete(3)
    os.eventfd_read(channel._fd)  # the event is there for who comes next
    assert [wc.wr_id for wc in queue._poll(9)] == [3]


def is_watched(fd):
    return asyncio.get_running_loop().remove_reader(fd)


async def test_closed_it_touches_the_queue_no_more(theirs):
    """Its owner may destroy it then, and what pyverbs does with a queue that is gone is to crash."""
    queue, channel = theirs
    completions = awaitable(queue, channel)
    waiting = asyncio.create_task(completions.poll())
    await asyncio.sleep(0)
    completions.close()
    assert not is_watched(channel._fd)
    with pytest.raises(ClosedResourceError):
        await waiting
    os.eventfd_write(channel._fd, 1)
    queue.done = queue.on_arming = None  # to touch it is an AttributeError or a TypeError now
    for call in (completions.poll_nowait, completions.arm):
        with pytest.raises(ClosedResourceError):
            call()
    with pytest.raises(ClosedResourceError):
        await completions.poll()
    assert [wc async for wc in completions] == []
    assert not completions.is_open


async def test_what_was_found_when_it_was_closed_is_not_given_out_later(theirs):
    queue, channel = theirs
    completions = awaitable(queue, channel)
    queue.on_arming = lambda: queue.complete(7)
    assert not completions.arm()
    completions.close()
    with pytest.raises(ClosedResourceError):
        completions.poll_nowait()


async def test_dropped_it_is_watched_no_more(theirs):
    queue, channel = theirs
    completions = awaitable(queue, channel)
    waiting = asyncio.create_task(completions.poll())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    del completions, waiting
    gc.collect()
    assert not is_watched(channel._fd)


async def test_all_events_that_were_are_taken_and_acknowledged(theirs):
    """Else the fd stays readable, and the loop spins; and destroying the queue waits for ever."""
    queue, channel = theirs
    async with awaitable(queue, channel) as completions:
        for number in range(3):  # its owner had armed it before
            queue.armed = True
            queue.complete(number)
        assert [wc.wr_id for wc in completions.poll_nowait()] == [0, 1, 2]
        assert completions.arm()
        assert queue.unacknowledged == 0
        assert not select.select([channel._fd], [], [], 0)[0]


def test_dropping_it_is_no_leak(theirs):
    queue, channel = theirs
    verbs.AsyncCQ(queue, channel, fd=channel._fd)  # a LeakWarning would be an error


def test_the_wheel_tells_channel_and_fd():
    queue, channel = make("ibverbs")
    assert verbs.AsyncCQ(queue).fd == channel._fd


def native(context, fd):
    """What `struct ibv_comp_channel` and `struct ibv_cq` begin with, in memory."""
    channel = ctypes.create_string_buffer(struct.pack("QiiQQ", context, fd, 1, 0, 0))
    queue = ctypes.create_string_buffer(struct.pack("QQQ", context, ctypes.addressof(channel), 0))
    return queue, channel


@pytest.fixture
def found(monkeypatch):
    """Objects of pyverbs that point to structures in memory; the kernel calls our fd by another name."""
    monkeypatch.setattr(_foreign_cq, "_EVENTS", "anon_inode:[eventfd]")
    kept = []

    def make(context=0x1000, its_context=None, fd=None):
        bare = PyverbsChannel()
        queue_memory, channel_memory = native(context, bare._fd if fd is None else fd)
        if its_context is not None:
            ctypes.memmove(channel_memory, struct.pack("Q", its_context), 8)
        kept.append((bare, queue_memory, channel_memory))
        channel = PyverbsChannel(ctypes.addressof(channel_memory))
        queue = PyverbsQueue(channel, ctypes.addressof(queue_memory))
        queue.its = channel
        return queue, channel, bare._fd

    return make


def test_fd_of_pyverbs_is_found(found):
    queue, channel, fd = found()
    before = os.listdir("/proc/self/fd")
    assert verbs.AsyncCQ(queue, channel).fd == fd
    assert verbs.AsyncCQ(queue).fd == fd
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("wrong", [{"its_context": 0x2000}, {"fd": 0}, {"fd": -1}, {"context": 0}])
def test_fd_that_does_not_fit_is_not_taken(found, wrong):
    queue, channel, _ = found(**wrong)
    with pytest.raises(ValueError, match="fd="):
        verbs.AsyncCQ(queue, channel)


def test_channel_of_another_queue_is_refused(found):
    queue, _, _ = found()
    _, other, _ = found()
    with pytest.raises(ValueError, match="another channel"):
        verbs.AsyncCQ(queue, other)


def test_what_is_no_queue_is_refused(theirs):
    queue, _ = theirs
    with pytest.raises(TypeError, match="completion queue of pyverbs or ibverbs"):
        verbs.AsyncCQ(object())
    with pytest.raises(TypeError, match="completion channel"):
        verbs.AsyncCQ(queue, object())
    queue.its = None
    with pytest.raises(ValueError, match="no completion channel"):
        verbs.AsyncCQ(queue)


@pytest.mark.parametrize(
    ("status", "error"), [(5, WorkFlushed), (10, RemoteAccessError), (12, PeerLost), (13, CompletionError)]
)
def test_error_of_their_completions(status, error):
    found = verbs.error_of(SimpleNamespace(wr_id=17, status=status))
    assert type(found) is error
    assert found.provider_error == status
    assert "17" in str(found)
    assert verbs.error_of(SimpleNamespace(wr_id=17, status=0)) is None
