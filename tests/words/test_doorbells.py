# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A transfer that is prepared now goes out when the stream gets there: once, or each time that a graph is launched."""

import asyncio
import threading

import numpy as np
import pytest

from helpers.engines import SOON, eventually, open_pair
from pplx_async import (
    BrokenResourceError,
    CapturedTransfer,
    ClosedResourceError,
    CompletionError,
    QueueFull,
    RemoteAccessError,
    WorkFlushed,
)
from pplx_async.testing import FaultPlan, HostStream

REPLAYS = 1000


class Held:
    """Something on a stream that runs until it is told to end."""

    def __init__(self, stream):
        self._go = threading.Event()
        stream.run(self._go.wait, SOON)

    def release(self):
        self._go.set()


async def test_posted_when_the_stream_gets_there(board):
    stream = board.stream()
    held = Held(stream)
    stream.run(board.memory.fill, 7)
    writing = board.write(after=stream)
    await eventually(lambda: board.a.stats().words == 1, "it is armed")
    turns = board.a.stats().turns
    await eventually(lambda: board.a.stats().turns > turns + 1000, "the proxy looks")
    assert (writing.done(), board.counter.value, board.array.max()) == (False, 0, 0)
    held.release()
    assert await writing == board.source.nbytes
    await board.counter.wait(1)
    assert board.array.min() == board.array.max() == 7
    await board.no_words()


async def test_every_operation_can_wait_for_a_stream(board):
    stream = board.stream()
    held = Held(stream)
    pages = {"page_nbytes": 1024, "local_pages": [0, 1, 2], "remote_pages": [3, 1, 0]}
    sink = await board.pair.source(np.zeros(board.source.nbytes, dtype=np.uint8))
    batch = board.a.batch()
    batch.write(board.source, board.target.remote, counter=board.remote_counter)
    batch.notify(board.remote_counter, 2)
    transfers = [
        board.write(after=stream),
        board.a.write_pages(board.source, board.target.remote, **pages, counter=board.remote_counter, after=stream),
        board.a.scatter([(board.source, board.target.remote, board.remote_counter)], after=stream),
        batch.submit(after=stream),
        board.a.read(board.target.remote, sink, after=stream),
    ]
    assert not any(transfer.done() for transfer in transfers)
    assert board.counter.value == 0
    held.release()
    n = board.source.nbytes
    assert await asyncio.gather(*transfers) == [n, 3072, n, n, n]
    assert await board.counter.wait(1 + 3 + 1 + 3) == 8


async def test_a_chain_through_one_stream(board):
    """What a function writes after a doorbell has rung is not what that transfer carries, if it waits for it."""
    stream = board.stream()
    arrived = board.counter
    for value in range(1, 30):
        stream.run(board.memory.fill, value)
        writing = board.write(after=stream)
        await writing
        await arrived.wait(value)
        assert board.array.min() == board.array.max() == value


async def test_refused_at_the_call_nothing_is_queued(board):
    stream = board.stream()
    before = stream.is_idle
    with pytest.raises(ValueError, match="lengths differ"):
        board.a.write(board.source[0:10], board.target.remote, after=stream)
    with pytest.raises(IndexError):
        board.a.write_pages(
            board.source,
            board.target.remote,
            page_nbytes=4096,
            local_pages=[1],
            remote_pages=[0],
            after=stream,
        )
    stream.close()
    with pytest.raises(RuntimeError, match="stream is closed"):
        board.write(after=stream)
    assert before
    assert (board.a.stats().inflight, board.a.stats().words) == (0, 0)
    # The memory is nobody's: it can be closed.
    async with asyncio.timeout(SOON):
        await board.source.close()


async def test_unrung_ones_count_as_in_flight():
    async with open_pair("loopback", max_pending=4) as pair:
        source, target = await pair.source(64), await pair.target(64)
        with HostStream() as stream:
            held = Held(stream)
            waiting = [pair.a.write(source, target.remote, after=stream) for _ in range(4)]
            with pytest.raises(QueueFull):
                pair.a.write(source, target.remote, after=stream)
            await eventually(lambda: pair.a.stats().words == 4, "all are armed")
            held.release()
            await asyncio.gather(*waiting)
            await pair.a.write(source, target.remote, after=stream)


async def test_replays_post_it_each_time(board):
    stream, values = board.stream(), iter(range(1, REPLAYS + 1))
    with stream.capture() as graph:
        stream.run(lambda: board.memory[0:8].view(np.uint64).fill(next(values)))
        writing = board.write(after=stream)
    assert isinstance(writing, CapturedTransfer)
    assert (writing.posted, writing.completed) == (0, 0)
    for n in range(1, 11):
        graph.launch()
        assert await writing.wait(n) == n
        await board.counter.wait(n)
        assert board.array[0:8].view(np.uint64)[0] == n
    for _ in range(REPLAYS - 10):
        graph.launch()
    assert await writing.wait(REPLAYS) == REPLAYS
    assert await board.counter.wait(REPLAYS) == REPLAYS
    assert (writing.posted, writing.completed) == (REPLAYS, REPLAYS)
    assert board.array[0:8].view(np.uint64)[0] == REPLAYS
    assert board.a.stats().inflight == 1
    late = writing.wait(REPLAYS + 1)
    await writing.close()
    with pytest.raises(ClosedResourceError, match="captured transfer was closed"):
        await late
    assert await writing == REPLAYS
    assert board.a.stats().inflight == 0
    await board.no_words()


async def test_replays_of_every_operation(board):
    stream = board.stream()
    pages = {"page_nbytes": 1024, "local_pages": [0, 1, 2], "remote_pages": [3, 1, 0]}
    sink = await board.pair.source(np.zeros(board.source.nbytes, dtype=np.uint8))
    with stream.capture() as graph:
        captured = [
            board.write(after=stream),
            board.a.write_pages(board.source, board.target.remote, **pages, counter=board.remote_counter, after=stream),
            board.a.scatter([(board.source, board.target.remote, board.remote_counter)] * 2, after=stream),
            board.a.read(board.target.remote, sink, after=stream),
        ]
    for _ in range(100):
        graph.launch()
    await asyncio.gather(*(each.wait(100) for each in captured))
    assert await board.counter.wait(600) == 600
    await asyncio.gather(*(each.close() for each in captured))
    assert board.a.stats().inflight == 0


async def test_closed_while_a_posting_is_under_way(board):
    big = await board.pair.source(16 << 20)
    target = await board.pair.target(16 << 20)
    stream = board.stream()
    with stream.capture() as graph:
        writing = board.a.write(big, target.remote, counter=board.remote_counter, after=stream)
    graph.launch()
    await eventually(lambda: writing.posted == 1, "it is posted")
    await writing.close()  # returns when the memory is free
    assert await writing == writing.completed == 1
    await board.counter.wait(1)
    assert target.array.any()
    await big.close()


async def test_what_is_launched_after_a_close_posts_nothing(board):
    stream = board.stream()
    with stream.capture() as graph:
        writing = board.write(after=stream)
    await writing.close()
    for _ in range(10):
        graph.launch()
    await board.idle(stream)
    await board.a.drain()
    assert (writing.posted, board.counter.value) == (0, 0)
    await board.b.write(board.target.region, board.pair.ba.region(board.source.to_bytes()))  # the pair works


async def test_cancelled_capture(board):
    stream = board.stream()
    with stream.capture() as graph:
        writing = board.write(after=stream)
    graph.launch()
    await writing.wait(1)
    assert writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert not writing.cancel()
    assert writing.released
    await board.no_words()


async def test_a_scope_closes_what_was_captured_in_it(board):
    stream = board.stream()
    with pytest.raises(ExceptionGroup):
        async with board.a.scope() as scope:
            with stream.capture() as graph:
                scope.add(board.write(after=stream))
            graph.launch()
            await board.counter.wait(1)
            raise ValueError("the block fails")
    assert board.a.stats().inflight == 0
    await board.no_words()


async def test_cancelled_before_the_stream_gets_there(board):
    stream = board.stream()
    held = Held(stream)
    writing = board.write(after=stream)
    kept = board.write(after=stream)
    assert writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert writing.released
    await eventually(lambda: board.a.stats().words == 2, "both are armed until the stream has come by")
    held.release()
    await kept
    await board.no_words()
    assert await board.counter.wait(1) == 1
    await board.write()
    assert await board.counter.wait(2) == 2


async def test_cancelled_task_drops_it(board):
    stream = board.stream()
    held = Held(stream)

    async def write():
        await board.write(after=stream)

    task = asyncio.ensure_future(write())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    held.release()
    await board.idle(stream)
    await board.no_words()
    assert board.counter.value == 0


async def test_a_posting_that_fails_is_the_last_one(board):
    """The peer revokes the region: the posting after that is refused, or the captured transfer ends before."""
    stream = board.stream()
    with stream.capture() as graph:
        writing = board.write(after=stream)
    graph.launch()
    await writing.wait(1)
    async with asyncio.timeout(SOON):
        await board.target.region.revoke()  # it does not wait for what may be launched some day
    with pytest.raises(BrokenResourceError, match="revoked"):
        await writing
    with pytest.raises(BrokenResourceError, match="revoked"):
        await writing.wait(2)
    graph.launch()
    await board.idle(stream)
    assert writing.posted == 1
    await board.no_words()


async def test_unrung_transfer_ends_with_its_target(board):
    stream = board.stream()
    held = Held(stream)
    writing = board.write(after=stream)
    async with asyncio.timeout(SOON):
        await board.target.region.revoke()
    with pytest.raises(BrokenResourceError, match="revoked"):
        await writing
    held.release()
    await board.idle(stream)
    await board.no_words()
    assert board.counter.value == 0


async def test_what_uses_other_regions_goes_out_all_the_same(board):
    stream, other = board.stream(), board.stream()
    revoked = await board.pair.target(board.source.nbytes)
    with other.capture() as graph:
        captured = board.write(after=other)
    held = Held(stream)
    writing = board.write(after=stream)
    ended = board.a.write(board.source, revoked.remote, after=stream)
    async with asyncio.timeout(SOON):
        await revoked.region.revoke()
    with pytest.raises(BrokenResourceError, match="revoked"):
        await ended
    held.release()
    assert await writing == board.source.nbytes
    graph.launch()
    assert await captured.wait(1) == 1
    await captured.close()
    assert await board.counter.wait(2) == 2


async def test_completion_error_of_a_replay():
    plan = FaultPlan(seed=1, fail_after=40, fail_status="LOCAL_ACCESS")
    async with open_pair("loopback", faults=plan) as pair:
        source, target = await pair.source(64), await pair.target(64)
        with HostStream() as stream:
            with stream.capture() as graph:
                writing = pair.a.write(source, target.remote, after=stream)
            for _ in range(100):
                graph.launch()
            with pytest.raises((CompletionError, RemoteAccessError)) as caught:
                await writing.wait(100)
            assert caught.value.operation == "write"
            with pytest.raises(CompletionError):
                await writing
            posted = writing.posted
            graph.launch()
            await eventually(lambda: stream.is_idle, "it runs through")
            assert writing.posted == posted
            await writing.close()


async def test_poisoned_stream_sends_nothing_on(board):
    """A gate that can't open lets the stream go, and what it rings for behind that is not posted, until rearmed."""
    stream = board.stream()
    answers = board.a.counter(peer=board.pair.ab)
    gate = answers.gate(stream, 1)
    writing = board.write(after=stream)
    reached = board.a.reached(stream)
    gate.close()
    for waiting in (writing, reached):
        with pytest.raises(BrokenResourceError, match="let go") as caught:
            await waiting
        assert isinstance(caught.value.__cause__, ClosedResourceError)
    await board.idle(stream)
    with pytest.raises(BrokenResourceError, match="rearm"):
        board.write(after=stream)
    await board.no_words()
    assert board.counter.value == 0
    board.a.rearm(stream)
    await board.write(after=stream)
    assert await board.counter.wait(1) == 1


async def test_rearming_does_not_revive_what_was_queued_before(board):
    stream = board.stream()
    answers = board.a.counter(peer=board.pair.ab)
    gate = answers.gate(stream, 1)
    held = Held(stream)
    writing = board.write(after=stream)
    gate.close()
    await eventually(lambda: board.a._lane(stream).is_poisoned, "it is poisoned")
    board.a.rearm(stream)
    later = board.write(after=stream)
    held.release()
    with pytest.raises(BrokenResourceError, match="let go"):
        await writing
    await later
    assert await board.counter.wait(1) == 1
    await board.no_words()


async def test_captured_transfer_on_a_poisoned_stream(board):
    stream = board.stream()
    answers = board.a.counter(peer=board.pair.ab)
    with stream.capture() as graph:
        gate = answers.gate(stream, 1)
        writing = board.write(after=stream)
    waiting = writing.wait(1)
    graph.launch()
    answers.break_(BrokenResourceError("it misses a part"))
    with pytest.raises(BrokenResourceError, match="let go"):
        await waiting
    for _ in range(5):  # each time anew: the gate never opens again
        await board.idle(stream)
        board.a.rearm(stream)
        graph.launch()
        with pytest.raises(BrokenResourceError, match="let go"):
            await writing.wait(1)
    await board.idle(stream)
    assert (writing.posted, board.counter.value) == (0, 0)
    gate.close()
    await writing.close()
    await board.no_words()


async def test_closing_the_peer_waits_for_what_was_rung_for(board):
    stream = board.stream()
    writing = board.write(after=stream)
    await board.pair.ab.close()
    assert await writing == board.source.nbytes


async def test_closing_the_peer_ends_what_nobody_rings_for(fabric):
    async with open_pair(fabric, drain_timeout=0.2) as pair:
        source, target = await pair.source(64), await pair.target(64)
        with HostStream() as stream, HostStream() as other:
            with other.capture():
                captured = pair.a.write(source, target.remote, after=other)
            held = Held(stream)
            writing = pair.a.write(source, target.remote, after=stream)
            async with asyncio.timeout(SOON):
                await pair.ab.close()
            with pytest.raises((ClosedResourceError, WorkFlushed)):
                await writing
            with pytest.raises(ClosedResourceError):
                await captured
            held.release()
            await eventually(lambda: stream.is_idle, "the stream goes on")
            assert pair.a.stats().inflight == 0
            assert not target.array.any()
