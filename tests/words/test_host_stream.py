# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The stream without a GPU: in order, on its own thread, with graphs."""

import asyncio
import threading

import pytest

from helpers.engines import SOON, eventually
from pplx_async.testing import HostStream


def test_runs_in_order_on_one_thread(streams):
    stream, seen = streams(), []
    for i in range(100):
        stream.run(lambda i=i: seen.append((i, threading.current_thread())))
    stream.synchronize(20)
    assert [i for i, _ in seen] == list(range(100))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] is not threading.current_thread()
    assert stream.is_idle


def test_graph_runs_only_when_it_is_launched(streams):
    stream, seen = streams(), []
    with stream.capture() as graph:
        assert stream.is_capturing()
        stream.run(seen.append, 1)
        stream.run(seen.append, 2)
    stream.synchronize(20)
    assert seen == []
    assert not stream.is_capturing()
    for _ in range(3):
        graph.launch()
    stream.synchronize(20)
    assert seen == [1, 2] * 3


def test_captures_do_not_nest(streams):
    stream = streams()
    with stream.capture(), pytest.raises(RuntimeError, match="captured already"), stream.capture():
        pass


def test_failure_is_raised_by_synchronize_and_ends_what_runs(streams):
    stream, seen = streams(), []
    stream.run(seen.append, 1)
    stream.run(lambda: 1 / 0)
    stream.run(seen.append, 2)
    with pytest.raises(ZeroDivisionError):
        stream.synchronize(20)
    assert isinstance(stream.failure, ZeroDivisionError)
    assert seen == [1]


def test_synchronize_gives_up(streams):
    stream, event = streams(), threading.Event()
    stream.run(event.wait, 20)
    with pytest.raises(TimeoutError):
        stream.synchronize(0.01)
    event.set()
    stream.synchronize(20)


def test_closed_one_takes_nothing():
    with HostStream() as stream:
        pass
    stream.close()
    with pytest.raises(RuntimeError, match="closed"):
        stream.run(print)


async def test_gates_and_doorbells_go_on_behind_a_failure(loopback_board):
    """Their steps run, what is computed does not: or whoever shares a gate's counter would wait for this one."""
    board, failing = loopback_board, loopback_board.stream()
    failing.run(lambda: 1 / 0)
    gate, reached = board.counter.gate(failing, 1), board.b.reached(failing)
    writing = board.write(after=failing)
    await eventually(lambda: board.b.stats().words == 2, "they are armed")
    assert (reached.done(), writing.done()) == (False, False)
    await board.write()
    async with asyncio.timeout(SOON):
        await asyncio.gather(gate.wait(), reached, writing)
    assert isinstance(failing.failure, ZeroDivisionError)


async def test_words_are_captured_as_functions_are(loopback_board):
    """Neither waits nor rings before the launch."""
    board, stream = loopback_board, loopback_board.stream()
    with stream.capture() as graph:
        gate = board.counter.gate(stream, 1)
    stream.synchronize(SOON)
    assert stream.is_idle
    await board.write()
    await board.counter.wait(1)
    assert board.counter.available == 1
    graph.launch()
    assert await gate == 1
    gate.close()


def test_first_failure_is_the_one_that_is_told(streams):
    stream = streams()
    stream.run(lambda: 1 / 0)
    stream.run([].pop)
    with pytest.raises(ZeroDivisionError):
        stream.synchronize(SOON)


def test_is_not_idle_while_the_last_one_runs(streams):
    stream, runs, event = streams(), threading.Event(), threading.Event()
    stream.run(runs.set)
    stream.run(event.wait, SOON)
    assert runs.wait(SOON)
    assert not stream.is_idle
    event.set()
    stream.synchronize(SOON)
    assert stream.is_idle


def test_capture_ends_with_its_block_however_that_ends(streams):
    stream, seen = streams(), []
    with pytest.raises(ZeroDivisionError), stream.capture():
        raise ZeroDivisionError
    stream.run(seen.append, 1)
    stream.synchronize(SOON)
    assert seen == [1]


async def test_close_gives_up_what_waits_and_what_is_behind(loopback_board):
    board, stream, seen = loopback_board, loopback_board.stream(), []
    with stream.capture() as graph:
        stream.run(seen.append, 1)
    gate = board.counter.gate(stream, 1)
    stream.run(seen.append, 2)
    await eventually(lambda: board.b.stats().words == 1, "it is armed")
    async with asyncio.timeout(SOON):
        await asyncio.to_thread(stream.close)
        await asyncio.to_thread(stream.synchronize, SOON)
    assert (seen, gate.opened) == ([], 0)
    with pytest.raises(RuntimeError, match="closed"):
        graph.launch()
