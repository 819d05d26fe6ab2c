# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A gate opens when what it waits for has landed, and not before; by itself, launched again and again."""

import asyncio
import contextlib
import ctypes
import time

import numpy as np
import pytest

from helpers.engines import SOON, eventually
from pplx_async import BrokenResourceError, ClosedResourceError

REPLAYS = 1000


async def test_opens_after_n_and_not_before(board):
    stream, seen = board.stream(), []
    gate = board.counter.gate(stream, 3)
    stream.run(lambda: seen.append((board.counter.value, gate.aborted)))
    for _ in range(2):
        await board.write()
    await board.counter.wait(2)
    # The proxy has looked at it many times by now: it turns as long as there is a word.
    turns = board.b.stats().turns
    await eventually(lambda: board.b.stats().turns > turns + 1000, "the proxy turns")
    assert (seen, gate.opened, stream.is_idle) == ([], 0, False)
    await board.write()
    await gate
    await board.idle(stream)
    assert seen == [(3, False)]
    assert (gate.opened, board.counter.value, board.counter.available) == (1, 3, 0)
    await board.no_words()


async def test_bytes_are_there_when_it_opens(board):
    stream, sums = board.stream(), []
    for i in range(1, 50):
        board.counter.gate(stream, 1)
        stream.run(lambda: sums.append(int(board.array.min())))
        board.memory[:] = i
        await board.write()
        await eventually(lambda i=i: len(sums) == i, "the function behind the gate has run")
        assert sums[-1] == i


async def test_needs_nobody_at_the_event_loop(board):
    """The loop stands still while a write that a stream rings for lands, and opens a gate."""
    sender, receiver, seen = board.stream(), board.stream(), []
    board.counter.gate(receiver, 1)
    receiver.run(lambda: seen.append(time.monotonic()))
    start = time.monotonic()
    writing = board.write(after=sender)
    while not seen and time.monotonic() < start + SOON:
        time.sleep(0.001)
    assert seen
    await writing


async def test_surplus_stays_in_the_counter(board):
    stream = board.stream()
    for _ in range(5):
        await board.write()
    await board.counter.wait(5)
    await board.counter.gate(stream, 2)
    assert (board.counter.value, board.counter.available) == (5, 3)
    await board.counter.gate(stream, 3)
    assert board.counter.available == 0
    late = board.counter.gate(stream, 1)
    await board.write()
    await late


async def test_gates_of_two_streams_take_each_its_own(board):
    streams = [board.stream(), board.stream()]
    gates = [board.counter.gate(stream, n) for stream in streams for n in (1, 2, 3) * 10]
    for _ in range(121):
        await board.write()
    await board.idle(*streams)
    await board.counter.wait(121)
    assert [gate.opened for gate in gates] == [1] * 60
    assert board.counter.available == 1


async def asked(board, *gates):
    """Wait until streams wait in these, and b's proxy has seen it."""
    for gate in gates:
        state = ctypes.c_uint32.from_address(gate.address)
        await eventually(lambda state=state: state.value % 2, "its stream waits")
    turns = board.b.stats().turns
    await eventually(lambda: board.b.stats().turns > turns + 10, "the proxy has seen it")


async def test_who_came_first_is_served_first(board):
    """A large gate is not starved by small ones that came after it."""
    large, small = board.stream(), board.stream()
    big = board.counter.gate(large, 4)
    await asked(board, big)
    little = board.counter.gate(small, 1)
    for _ in range(4):
        await board.write()
    await big
    await board.counter.wait(4)
    assert little.opened == 0
    await board.write()
    await little


async def test_who_stands_behind_a_closed_gate_is_served(board):
    """What the large one waited for is there for the small one: nothing more has to be counted."""
    large, small = board.stream(), board.stream()
    big = board.counter.gate(large, 4)
    await asked(board, big)
    little = board.counter.gate(small, 1)
    await board.write()
    await board.counter.wait(1)
    await asked(board, little)
    assert little.opened == 0
    big.close()
    assert await little == 1
    assert board.counter.available == 0


async def test_who_comes_after_the_last_one_was_closed_is_served(board):
    """The queue of a counter ends where it did before that one."""
    streams = [board.stream() for _ in range(3)]
    first = board.counter.gate(streams[0], 2)
    await asked(board, first)
    last = board.counter.gate(streams[1], 1)
    await asked(board, last)
    last.close()
    await board.idle(streams[1])
    later = board.counter.gate(streams[2], 1)
    await asked(board, first, later)
    for _ in range(3):
        await board.write()
    await asyncio.gather(first.wait(), later.wait())
    assert board.counter.available == 0
    await board.no_words()


async def test_replays_take_their_share_each_time(board):
    stream, sums = board.stream(), []
    with stream.capture() as graph:
        gate = board.counter.gate(stream, 2)
        stream.run(lambda: sums.append(board.counter.value))
    assert gate.opened == 0
    for _ in range(REPLAYS):
        graph.launch()
    for _ in range(2 * REPLAYS + 1):
        await board.write()
        await board.a.drain()
    assert await gate.wait(REPLAYS) == REPLAYS
    await board.counter.wait(2 * REPLAYS + 1)
    await board.idle(stream)
    assert gate.opened == REPLAYS
    # Each saw at least what it and those before it have taken.
    assert len(sums) == REPLAYS
    assert all(value >= 2 * (i + 1) for i, value in enumerate(sums))
    assert board.counter.available == 1
    gate.close()
    await board.no_words()


async def test_a_graph_of_gates_and_transfers_goes_round(board):
    """b's graph waits for a's write and answers by one of its own, which a's waits for: no Python in between."""
    back = await board.b.register(np.zeros(8, dtype=np.uint8))
    here = await board.a.register(np.zeros(8, dtype=np.uint8))
    answers = board.a.counter(peer=board.pair.ab)
    remote = board.pair.ba.region(here.to_bytes())
    remote_answers = board.pair.ba.counter(answers.to_bytes())
    ping, pong = board.stream(), board.stream()
    rounds = []
    with ping.capture() as pings:
        there = board.write(after=ping)
        waits = answers.gate(ping, 1)
        ping.run(lambda: rounds.append(board.array[0]))
    with pong.capture() as pongs:
        waits_too = board.counter.gate(pong, 1)
        answer = board.b.write(back, remote, counter=remote_answers, after=pong)
    for _ in range(REPLAYS):
        pings.launch()
        pongs.launch()
    await waits.wait(REPLAYS)
    await there.wait(REPLAYS)
    await answer.wait(REPLAYS)
    await board.idle(ping, pong)
    assert len(rounds) == REPLAYS
    assert (there.posted, answer.posted, waits_too.opened) == (REPLAYS, REPLAYS, REPLAYS)
    assert (answers.available, board.counter.available) == (0, 0)
    for gate in (waits, waits_too):
        gate.close()
    await asyncio.gather(there.close(), answer.close())
    await board.no_words()
    await asyncio.gather(back.close(), here.close())


async def test_takes_and_gates_do_not_share_a_counter(board):
    stream = board.stream()
    taken = board.b.counter(peer=board.pair.ba)
    taking = taken.take(1)
    with pytest.raises(ValueError, match="not both"):
        taken.gate(stream, 1)
    taking.cancel()
    gate = board.counter.gate(stream, 1)
    with pytest.raises(ValueError, match="not both"):
        await board.counter.take(1)
    await board.write()
    await gate
    assert await board.counter.wait(1) == 1  # waits consume nothing, and are welcome
    assert stream.is_idle or await eventually(lambda: stream.is_idle, "refused at the call, nothing was queued") is None


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)])
async def test_n_is_a_positive_number(loopback_board, n, error):
    board = loopback_board
    stream = board.stream()
    with pytest.raises(error):
        board.counter.gate(stream, n)
    assert stream.is_idle
    assert board.b.stats().words == 0


@pytest.mark.parametrize("what", [None, 1.5, True, "stream", object()])
async def test_something_else_is_no_stream(loopback_board, what):
    board = loopback_board
    with pytest.raises(TypeError, match="stream"):
        board.counter.gate(what, 1)
    if what is not None:  # after=None: at once
        with pytest.raises(TypeError, match="stream"):
            board.write(after=what)
    assert board.a.stats().inflight == 0


async def test_closed_gate_lets_its_stream_go_and_poisons_it(board):
    stream, other, seen = board.stream(), board.stream(), []
    gate = board.counter.gate(stream, 1)
    behind = board.counter.gate(stream, 1)
    stream.run(lambda: seen.append((gate.aborted, behind.aborted)))
    waiting = asyncio.ensure_future(gate.wait())
    await asyncio.sleep(0)
    gate.close()
    gate.close()
    with pytest.raises(ClosedResourceError, match="gate was closed"):
        await waiting
    # The one behind it is on a poisoned stream; it takes nothing.
    with pytest.raises(BrokenResourceError, match="let go") as caught:
        await behind
    assert isinstance(caught.value.__cause__, ClosedResourceError)
    await board.idle(stream)
    assert seen == [(True, True)]
    with pytest.raises(BrokenResourceError, match="rearm"):
        board.counter.gate(stream, 1)
    with pytest.raises(BrokenResourceError, match="rearm"):
        board.b.reached(stream)
    # Other streams of the engine are as they were.
    await board.write()
    await board.counter.gate(other, 1)
    board.b.rearm(stream)
    again = board.counter.gate(stream, 1)
    await board.write()
    await again
    await board.no_words()


async def test_one_that_opens_after_it_was_let_go_says_both(board):
    stream, said = board.stream(), []
    with stream.capture() as graph:
        gate = board.counter.gate(stream, 1)
        stream.run(lambda: said.append(gate.aborted))
    board.counter.gate(stream, 1).close()
    graph.launch()
    await board.idle(stream)
    assert said == [True]
    board.b.rearm(stream)
    await board.write()
    graph.launch()
    assert await gate == 1
    await board.idle(stream)
    assert said == [True, False]
    gate.close()
    await board.no_words()


async def test_closing_one_that_has_opened_changes_nothing(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    await board.write()
    await gate
    gate.close()
    assert await gate == 1
    await board.b.reached(stream)


async def test_one_that_is_closed_before_the_stream_comes(board):
    stream, event = board.stream(), asyncio.Event()
    hold = board.counter.gate(stream, 1)
    gate = board.counter.gate(stream, 1)
    gate.close()
    with pytest.raises(ClosedResourceError):
        await gate
    assert hold.opened == 0
    event.set()
    await board.write()
    await hold
    await board.idle(stream)
    with pytest.raises(BrokenResourceError):
        await board.b.reached(stream)
    await board.no_words()


async def test_closed_counter_lets_streams_go(board):
    counter = board.b.counter(peer=board.pair.ba)
    stream, captured = board.stream(), board.stream()
    with captured.capture() as graph:
        again = counter.gate(captured, 1)
    gate = counter.gate(stream, 1)
    waiting = asyncio.ensure_future(gate.wait())
    await asyncio.sleep(0)
    await counter.close()
    with pytest.raises(ClosedResourceError, match="counter was closed"):
        await waiting
    await board.idle(stream)
    with pytest.raises(ClosedResourceError):
        counter.gate(stream, 1)
    # What a graph holds of it lets go at each launch, and poisons: nobody gave a promise for the graph.
    for _ in range(3):
        graph.launch()
        await board.idle(captured)
        await eventually(lambda: board.b._lane(captured).is_poisoned, "its stream is poisoned")
        board.b.rearm(captured)
    assert again.opened == 0
    with pytest.raises(ClosedResourceError):
        await again.wait(1)
    again.close()
    await board.no_words()


async def test_broken_counter_lets_streams_go(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    waiting = asyncio.ensure_future(gate.wait())
    await asyncio.sleep(0)
    board.counter.break_(BrokenResourceError("it misses a part"))
    with pytest.raises(BrokenResourceError, match="misses a part"):
        await waiting
    await board.idle(stream)
    with pytest.raises(BrokenResourceError):
        board.counter.gate(board.stream(), 1)
    await board.no_words()


async def test_cancelled_await_leaves_the_gate(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    waiting = asyncio.ensure_future(gate.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await gate
    await board.write()
    assert await gate == 1
    await board.b.reached(stream)


async def test_waits_for_several_counts_end_in_order(board):
    stream, ended = board.stream(), []
    with stream.capture() as graph:
        gate = board.counter.gate(stream, 1)
    waits = [gate.wait(n) for n in (3, 1, 2, 3)]
    for n, wait in zip((3, 1, 2, 3), waits):
        wait.add_done_callback(lambda _, n=n: ended.append(n))
    for n in range(1, 4):
        graph.launch()
        await board.write()
        await gate.wait(n)
    await eventually(lambda: len(ended) == 4, "all waits have ended")
    assert ended == [1, 2, 3, 3]
    gate.close()


async def test_words_run_out_and_come_back(loopback_board):
    board = loopback_board
    stream = board.stream()
    gates = []
    with pytest.raises(MemoryError, match="words"):
        while True:
            gates.append(board.counter.gate(stream, 1))
    assert len(gates) == 1024
    await eventually(lambda: board.b.stats().words == 1024, "all are armed")
    for _ in gates:
        await board.write()
        await board.a.drain()
    await gates[-1]
    assert [gate.opened for gate in gates] == [1] * len(gates)
    await board.no_words()
    # Each is used again.
    for _ in range(3):
        gates = [board.counter.gate(stream, 1) for _ in range(1024)]
        for _ in gates:
            await board.write()
            await board.a.drain()
        await gates[-1]
        await board.no_words()


async def test_word_of_a_closed_gate_is_used_as_a_new_one(loopback_board):
    """What let go whoever might have waited in the old one lets nobody through the new one."""
    board = loopback_board
    stream = board.stream()
    with stream.capture():
        gates = [board.counter.gate(stream, 1) for _ in range(1024)]  # all that there are
    for gate in gates:
        gate.close()
    made = []

    def make():
        with contextlib.suppress(MemoryError):
            made.append(board.counter.gate(stream, 1))
        return made

    await eventually(make, "one has come back")
    gate = made[0]
    await asked(board, gate)
    assert (gate.opened, gate.aborted) == (0, False)
    await board.write()
    await gate
    await board.idle(stream)


async def test_proxy_does_not_sleep_while_a_word_is_armed(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    await eventually(lambda: not stream.is_idle, "it waits")
    notes = " ".join(board.b.explain().notes)
    assert "1 words" in notes
    assert "does not sleep" in notes
    sleeps, turns = board.b.stats().sleeps, board.b.stats().turns
    await eventually(lambda: board.b.stats().turns > turns + 10_000, "the proxy turns")
    assert board.b.stats().sleeps == sleeps
    await board.write()
    await gate
    await board.no_words()
    assert "does not sleep" not in " ".join(board.b.explain().notes)
    await eventually(lambda: board.b.stats().sleeps > sleeps, "then it sleeps again")
