# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever ends, no stream waits for ever, and nothing goes out that it did not wait for: peers, engines, processes."""

import asyncio
import os
import threading
import time
import warnings

import numpy as np
import pytest

from helpers.engines import SOON, engine_on, eventually, open_pair
from helpers.process import run_program
from helpers.require import find_fabric
from helpers.survivor import open_survivor
from pplx_async import BrokenResourceError, ClosedResourceError, PeerLost, WorkFlushed

PROCESSES = pytest.mark.fabrics("ipc", "tcp")


@PROCESSES
@pytest.mark.tcp
@pytest.mark.parametrize("captured", [False, True], ids=["queued", "captured"])
async def test_killed_peer_lets_the_stream_go_and_nothing_goes_on(fabric, streams, captured):
    """It is killed while a stream waits for its writes; what is behind that, for somebody else, is not posted."""
    stream, ran = streams(), []
    async with open_survivor(fabric) as survivor:
        engine = survivor.engine
        pid, peer = await survivor.meet()
        counter = engine.counter(peer=peer)
        source = survivor.source[0:64]

        def queue():
            gate = counter.gate(stream, 1)
            stream.run(ran.append, time.monotonic)
            return gate, engine.write(source, survivor.third_memory[0:64], counter=survivor.third_counter, after=stream)

        if captured:
            with stream.capture() as graph:
                gate, writing = queue()
            graph.launch()
        else:
            gate, writing = queue()
        waits = asyncio.ensure_future(gate.wait())
        posting = writing.wait(1) if captured else writing
        await eventually(lambda: not stream.is_idle, "the stream waits")
        assert ran == []
        await survivor.kill(pid)
        with pytest.raises(PeerLost) as lost:
            await waits
        assert (lost.value.operation, lost.value.peer) == ("gate", peer.label)
        with pytest.raises(BrokenResourceError, match="let go") as caught:
            await posting
        assert isinstance(caught.value.__cause__, PeerLost)
        await eventually(lambda: stream.is_idle, "it was let go")
        assert len(ran) == 1
        with pytest.raises(BrokenResourceError, match="rearm"):
            engine.write(source, survivor.third_memory[0:64], after=stream)
        # Launched again, after it was rearmed: the gate still can't open, so nothing goes out this time either.
        engine.rearm(stream)
        if captured:
            graph.launch()
            with pytest.raises(BrokenResourceError, match="let go"):
                await writing.wait(1)
            await eventually(lambda: stream.is_idle, "it was let go")
            assert writing.posted == 0
            engine.rearm(stream)
            gate.close()
            await writing.close()
        # Nothing has arrived at the third process but what is sent now.
        await engine.write(source, survivor.third_memory[0:64], counter=survivor.third_counter, after=stream)
        await survivor.third.ask("wait", count=1)
        await survivor.bury(pid)
        await eventually(lambda: engine.stats().words == 0, "no word is armed")


@PROCESSES
@pytest.mark.tcp
async def test_what_a_killed_peer_has_written_opens_gates_all_the_same(fabric, streams):
    stream = streams()
    async with open_survivor(fabric) as survivor:
        engine = survivor.engine
        counter = engine.counter()
        engine.publish("holds", counter)  # the process counts there once it has written what it holds
        held = [await engine.register(np.zeros(64, dtype=np.uint8)) for _ in range(20)]
        for i, region in enumerate(held):
            engine.publish(f"held {i}", region)
        pid, peer = await survivor.meet("holds")
        await counter.wait(1)
        await survivor.kill(pid)
        await peer.wait_closed()
        await counter.gate(stream, 1)
        await engine.reached(stream)
        await survivor.bury(pid)


async def test_lost_peer_ends_what_waits_for_a_stream(board):
    stream, go = board.stream(), threading.Event()
    other = board.stream()
    with other.capture() as graph:
        captured = board.write(after=other)
    stream.run(go.wait, SOON)
    writing = board.write(after=stream)
    board.pair.ab._lose("the test says so")
    with pytest.raises(PeerLost, match="the test says so") as lost:
        await writing
    assert lost.value.operation == "write"
    with pytest.raises(PeerLost):
        await captured
    with pytest.raises(PeerLost):
        await captured.wait(1)
    go.set()
    graph.launch()
    await board.idle(stream, other)
    await eventually(lambda: board.a.stats().words == 0, "no word is armed")
    assert (captured.posted, board.counter.value) == (0, 0)
    # The peer's own part can be freed, although nobody closed what was captured.
    await eventually(lambda: board.pair.ab not in board.a._peers, "the peer is freed")
    await captured.close()


async def test_goodbye_of_the_peer_lets_streams_go(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 2)
    waiting = asyncio.ensure_future(gate.wait())
    await board.write()
    await board.pair.ab.close()
    with pytest.raises(ClosedResourceError):
        await waiting
    await board.idle(stream)
    assert board.counter.available == 1
    await eventually(lambda: board.b.stats().words == 0, "no word is armed")


@pytest.mark.parametrize("captured", [False, True], ids=["queued", "captured"])
async def test_engine_closes_with_armed_words(fabric, streams, captured):
    """Streams that wait are let go, at once and for good; what was not rung for is flushed."""
    waits, rings, go = streams(), streams(), threading.Event()
    ran = []
    async with open_pair(fabric, drain_timeout=1) as pair:
        source, target = await pair.source(64), await pair.target(64)
        counter, _ = pair.counter(bound=False)

        def queue():
            gate = counter.gate(waits, 1)
            waits.run(ran.append, 1)
            return gate, pair.b.write(target.region, pair.ba.region(source.to_bytes()), after=rings)

        if captured:
            with waits.capture() as graph, rings.capture() as other:
                gate, writing = queue()
            graph.launch()
        else:
            rings.run(go.wait, SOON)
            gate, writing = queue()
        gated = asyncio.ensure_future(gate.wait())
        watch = await pair.b.watch().__aenter__()
        watching = asyncio.ensure_future(anext(watch))
        await eventually(lambda: not waits.is_idle, "the stream waits")
        await pair.b.close()
        with pytest.raises(ClosedResourceError):
            await gated
        with pytest.raises((WorkFlushed, ClosedResourceError)):
            await writing
        with pytest.raises(StopAsyncIteration):
            await watching
        await eventually(lambda: waits.is_idle, "the stream was let go")
        assert ran == [1]
        go.set()
        for _ in range(3 if captured else 0):  # nobody polls any more, and still they run through
            graph.launch()
            other.launch()
        await eventually(lambda: waits.is_idle and rings.is_idle, "they run through")
        with pytest.raises(ClosedResourceError):
            counter.gate(waits, 1)
        with pytest.raises(ClosedResourceError):
            pair.b.reached(waits)
        assert gate.opened == 0


async def test_cell_of_a_stream_that_never_came_is_not_used_again(fabric, streams):
    """An engine ends while a stream has not got to its gate; a later engine's words lie elsewhere."""
    stream, go, fabric = streams(), threading.Event(), find_fabric("loopback")
    stream.run(go.wait, SOON)
    async with engine_on(fabric) as engine:
        engine.counter().gate(stream, 1)
        page = engine._core.words.page
        await eventually(lambda: engine.stats().words == 1, "it is armed")
    assert page.kept
    async with engine_on(fabric) as engine:
        other = streams()
        gate = engine.counter().gate(other, 1)
        await eventually(lambda: engine.stats().words == 1, "it is armed")
        go.set()
        await eventually(lambda: stream.is_idle, "the old one runs through")
        assert gate.opened == 0
        assert engine._core.words.page is not page


async def test_pages_are_given_back_when_streams_have_come_and_gone(streams):
    stream, fabric = streams(), find_fabric("loopback")
    async with engine_on(fabric) as engine:
        await engine.reached(stream)
        async with engine.watch():
            pass
        page = engine._core.words.page
    assert not page.kept


PROGRAM = """
import asyncio, gc, os, sys, warnings
from pplx_async import *
from pplx_async.testing import HostStream
warnings.simplefilter("ignore")

async def main():
    a, b = TransferEngine(fabric="loopback"), TransferEngine(fabric="loopback")
    await a.open(); await b.open()
    ab = await a.connect(b.address)
    counter = b.counter()
    stream = HostStream()
    with stream.capture() as graph:
        captured = counter.gate(stream, 1)
    graph.launch()
    gate = counter.gate(stream, 1)
    source, target = await a.register(bytearray(8)), await b.register(bytearray(8))
    ring = HostStream()
    gate_too = counter.gate(ring, 1)
    writing = a.write(source, ab.region(target.to_bytes()), after=ring)
    KEEP.extend([a, b, stream, ring, gate, captured, writing])
    END

KEEP = []
asyncio.run(main())
LAST
stream, ring = KEEP[2], KEEP[3]
stream.synchronize(20); ring.synchronize(20)
print("let go")
"""


@pytest.mark.parametrize(
    ("end", "last"),
    [
        ("return", "KEEP[0]._stop(); KEEP[1]._stop()"),
        ("await a.close(); await b.close()", "pass"),
        ("await b.close(); await a.close()", "pass"),
        ("return", "asyncio.run(KEEP[1].close()); asyncio.run(KEEP[0].close())"),
    ],
    ids=["stopped", "closed", "closed the other way round", "loop closed first"],
)
def test_no_stream_hangs_however_the_program_ends(end, last):
    result = run_program(PROGRAM.replace("END", end).replace("LAST", last))
    assert result.stdout == "let go\n", result.stderr
    assert result.returncode == 0, result.stderr


async def test_fork_has_no_words(board):
    """The child refuses, and what it does with the parent's words reaches nobody there."""
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    await eventually(lambda: not stream.is_idle, "it waits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for call in (lambda: board.counter.gate(stream, 1), lambda: board.b.reached(stream), gate.close):
                try:
                    call()
                except ClosedResourceError:
                    continue
                os._exit(2)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert gate.opened == 0
    await board.write()
    await gate


async def test_another_thread_and_another_loop_are_refused(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    with stream.capture():
        pass
    calls = [
        lambda: board.counter.gate(stream, 1),
        lambda: board.write(after=stream),
        lambda: board.b.reached(stream),
        lambda: board.b.rearm(stream),
        lambda: board.b.watch(),
        gate.wait,
        gate.close,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="event loop that it was opened on"):
            await asyncio.to_thread(call)
    assert board.b.stats().words == 1
    await board.write()
    await gate
