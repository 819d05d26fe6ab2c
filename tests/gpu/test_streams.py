# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of CUDA wait for transfers and start them: on a GPU if there is one, else on the tests' own libcuda."""

import asyncio
import ctypes
import types

import numpy as np
import pytest
import pytest_asyncio

from helpers.boards import NBYTES, Board, HostBoard
from helpers.cuda import DeviceStream
from helpers.engines import eventually, open_pair
from helpers.require import FAKE_CUDA_LIBRARY
from pplx_async import BrokenResourceError, CapturedTransfer, ClosedResourceError, CudaError, Gate, _streams, gpu

REPLAYS = 200


@pytest.fixture(params=["stream operations", "kernel"])
def words(request, library, without_words, monkeypatch):
    """With stream memory operations, and without: the tests' own libcuda has and lacks them by turns."""
    if library == str(FAKE_CUDA_LIBRARY):
        monkeypatch.setenv("FAKE_CUDA_WORDS", str(int(request.param != "kernel")))
    elif (request.param == "kernel") != without_words:
        pytest.skip(f"this GPU {'is to do without' if without_words else 'has'} stream memory operations")
    return request.param


@pytest_asyncio.fixture
async def board(library, device):
    async with open_pair("ipc", cuda_library=library) as pair:
        board = await Board(pair, device).open()
        yield board
        board.close()


@pytest_asyncio.fixture
async def host_board(library, device, words):
    async with open_pair("loopback", cuda_library=library) as pair:
        board = await HostBoard(pair, device).open()
        yield board
        board.close()


async def test_stream_runs_on_when_its_writes_have_landed(board):
    content = np.random.default_rng(1).bytes(NBYTES)
    board.ours.set(content)
    gate = board.counter.gate(board.receives, 2)
    board.receives.copy(board.copy, board.theirs)
    await board.write()
    await board.counter.wait(1)
    assert (gate.opened, board.receives.is_idle) == (0, False)
    await board.write()
    await gate
    await board.idle(board.receives)
    assert board.copy.get() == content


async def test_what_a_stream_has_computed_goes_out_by_itself(board):
    content = np.random.default_rng(2).bytes(NBYTES)
    made = board.device.array(content)
    board.sends.copy(board.ours, made)
    writing = board.write(after=board.sends)
    assert await writing == NBYTES
    await board.counter.wait(1)
    assert board.theirs.get() == content


async def test_graphs_on_both_sides(board):
    """Launched again and again: the one sends what it has copied, the other copies what it has got."""
    made = board.device.array(np.random.default_rng(3).bytes(NBYTES))
    with board.sends.capture() as sending:
        board.sends.copy(board.ours, made)
        writing = board.write(after=board.sends)
    with board.receives.capture() as receiving:
        gate = board.counter.gate(board.receives, 1)
        board.receives.copy(board.copy, board.theirs)
    assert isinstance(writing, CapturedTransfer)
    for n in range(1, REPLAYS + 1):
        sending.launch()
        receiving.launch()
        if n % 50 == 0:
            content = np.random.default_rng(n).bytes(NBYTES)
            await writing.wait(n)
            await board.idle(board.sends, board.receives)
            made.set(content)
            sending.launch()
            receiving.launch()
            await gate.wait(n + n // 50)
            await board.idle(board.receives)
            assert board.copy.get() == content
            await writing.wait(n + n // 50)
    total = REPLAYS + REPLAYS // 50
    assert (gate.opened, writing.completed, board.counter.available) == (total, total, 0)
    gate.close()
    await writing.close()


async def test_gate_doorbell_and_reached(host_board):
    board = host_board
    gate = board.counter.gate(board.receives, 1)
    reached = board.b.reached(board.receives)
    await asyncio.sleep(0.01)
    assert (gate.opened, reached.done(), board.receives.is_idle) == (0, False, False)
    await board.write(after=board.sends)
    await gate
    await reached
    await board.idle(board.receives, board.sends)
    assert board.array.any()


async def test_replays_on_either_kind_of_words(host_board):
    board = host_board
    with board.sends.capture() as sending:
        writing = board.write(after=board.sends)
    with board.receives.capture() as receiving:
        gate = board.counter.gate(board.receives, 1)
    for _ in range(REPLAYS):
        sending.launch()
        receiving.launch()
    await writing.wait(REPLAYS)
    await gate.wait(REPLAYS)
    await board.idle(board.sends, board.receives)
    assert board.counter.available == 0
    gate.close()
    await writing.close()


async def test_gates_open_at_once_though_a_gpu_looks_at_them_now_and_then(host_board, library):
    """The tests' own does so every minute, and when another stream is given something: the proxy sees to that."""
    board, driver = host_board, ctypes.CDLL(library)
    is_fake = hasattr(driver, "fake_cuda_doze")
    with board.receives.capture() as graph:
        captured = board.counter.gate(board.receives, 1)
    if is_fake:
        driver.fake_cuda_doze(60_000)
    try:
        for n in range(1, 11):
            gate = board.counter.gate(board.receives, 1)
            await asyncio.sleep(0.01)
            await board.write()
            await gate
            await board.idle(board.receives)
            graph.launch()
            await asyncio.sleep(0.01)
            await board.write()
            await captured.wait(n)
            await board.idle(board.receives)
            if is_fake:
                await eventually(lambda: driver.fake_cuda_queued() == 0, "what nudges it comes to rest")
    finally:
        if is_fake:
            driver.fake_cuda_doze(0)
    captured.close()


async def test_first_words_are_pinned_while_a_capture_is_under_way(new_pages, host_board):
    """Which forbids it to everyone who does not say that it knows better."""
    board = host_board
    assert board.b._core.words.page.device_address == board.b._core.words.page.address
    with board.receives.capture() as graph:
        gate = board.counter.gate(board.receives, 1)
    graph.launch()
    await board.write()
    await gate.wait(1)
    gate.close()
    await board.idle(board.receives)


async def test_contexts_that_come_and_go(library, device, words):
    """Each has what an engine loads there for itself, though it lies where another one did."""
    for _ in range(3):
        with device.own_context():
            async with open_pair("loopback", cuda_library=library) as pair:
                board = await HostBoard(pair, device).open()
                await board.hand_over()
                board.close()


async def test_aborted_gate_poisons_the_stream(host_board):
    board = host_board
    answers = board.a.counter(peer=board.pair.ab)
    gate = answers.gate(board.sends, 1)
    writing = board.write(after=board.sends)
    gate.close()
    with pytest.raises(ClosedResourceError):
        await gate
    with pytest.raises(BrokenResourceError, match="let go"):
        await writing
    await board.idle(board.sends)
    with pytest.raises(BrokenResourceError, match=f"CUDA stream {board.sends.ptr:#x} was let go"):
        board.write(after=board.sends)
    board.a.rearm(board.sends)
    await board.write(after=board.sends)
    assert await board.counter.wait(1) == 1


async def test_engine_closes_with_streams_that_wait(library, device, words):
    async with open_pair("loopback", cuda_library=library, drain_timeout=0.2) as pair:
        board = await HostBoard(pair, device).open()
        with board.sends.capture() as graph:
            writing = board.write(after=board.sends)
        gate = board.counter.gate(board.receives, 1)
        await board.a.close()
        await board.b.close()
        with pytest.raises(ClosedResourceError):
            await gate
        with pytest.raises(ClosedResourceError):
            await writing
        for _ in range(3):
            graph.launch()
        await board.idle(board.sends, board.receives)
        board.close()


async def test_engines_that_follow_each_other_pin_their_words_once(fake, device):
    """Unpinning would wait for whatever stream is in a gate, of any engine: nothing is, and nothing adds up."""
    pinned, counts = ctypes.CDLL(fake).fake_cuda_pinned, []
    for _ in range(5):
        async with open_pair("loopback", cuda_library=fake) as pair:
            board = await HostBoard(pair, device).open()
            await board.hand_over()
            board.close()
        counts.append(pinned())
    assert counts == counts[:1] * 5


async def test_streams_of_every_library(host_board):
    board = host_board
    handle = board.receives.ptr
    streams = [
        handle,
        types.SimpleNamespace(ptr=handle),
        types.SimpleNamespace(cuda_stream=handle),
        types.SimpleNamespace(__cuda_stream__=(0, handle)),
        type("Protocol", (), {"__cuda_stream__": lambda self: (0, handle)})(),
    ]
    for n, stream in enumerate(streams, 1):
        gate = board.counter.gate(stream, 1)
        await board.write()
        await gate
        assert board.counter.value == n
    for bad in (-1, 1 << 64):
        with pytest.raises(ValueError, match="handle"):
            board.counter.gate(bad, 1)


async def test_watch_has_an_address_for_kernels(host_board):
    board = host_board
    async with board.b.watch() as watch:
        assert watch.device_address % 8 == 0
        value = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_uint64 * 1).from_address(watch.address))
        value[0] = 7
        assert await anext(watch) == (0, 7)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("cuStreamBatchMemOp_v2", 801),
        ("cuMemHostRegister_v2", 2),
        ("cuStreamGetCtx", 400),
        ("cuStreamIsCapturing", 400),
    ],
)
async def test_what_the_driver_refuses_leaves_nothing(fake, device, new_pages, monkeypatch, call, code):
    async with open_pair("loopback", cuda_library=fake) as pair:
        board = await HostBoard(pair, device).open()
        monkeypatch.setenv("FAKE_CUDA_FAIL", f"{call}:{code}")
        for refused in (
            lambda: board.counter.gate(board.receives, 1),
            lambda: board.write(after=board.sends),
            lambda: board.b.reached(board.receives),
        ):
            with pytest.raises(CudaError) as caught:
                refused()
            assert caught.value.errno == code
        monkeypatch.setenv("FAKE_CUDA_FAIL", "")
        assert pair.a.stats().words == pair.b.stats().words == pair.a.stats().inflight == 0
        await board.hand_over()
        board.close()


@pytest.mark.parametrize("moment", ["queued", "armed"])
async def test_an_interrupt_after_it_is_queued_has_the_stream_go_on(fake, device, monkeypatch, moment):
    """A signal's handler raises as the driver returns: the stream waits in the gate by now, or will ring."""

    def interrupt(call):
        def interrupted(*arguments):
            call(*arguments)
            raise KeyboardInterrupt

        return interrupted

    async with open_pair("loopback", cuda_library=fake) as pair:
        board = await HostBoard(pair, device).open()
        with monkeypatch.context() as patch:
            if moment == "queued":
                patch.setattr(_streams.CudaStream, "push", interrupt(_streams.CudaStream.push))
            else:
                patch.setattr(Gate, "arm", interrupt(Gate.arm), raising=False)
                bell = type("Bell", (gpu.BellCore,), {"arm": interrupt(gpu.BellCore.arm)})
                patch.setattr(gpu, "BellCore", bell)
            with pytest.raises(KeyboardInterrupt):
                board.counter.gate(board.receives, 1)
            with pytest.raises(KeyboardInterrupt):
                board.write(after=board.sends)
            with pytest.raises(KeyboardInterrupt):
                board.a.reached(board.sends)
        await board.idle(board.receives, board.sends)
        await eventually(lambda: pair.a.stats().words == pair.b.stats().words == 0, "nobody waits for them")
        await eventually(lambda: pair.a.stats().inflight == 0, "nothing is under way")
        with pytest.raises(BrokenResourceError):
            board.counter.gate(board.receives, 1)
        board.b.rearm(board.receives)
        await board.hand_over()
        board.close()


async def test_without_a_driver_it_says_so():
    async with open_pair("loopback", cuda_library="/nowhere/libcuda.so.1") as pair:
        counter, _ = pair.counter()
        with pytest.raises(Exception, match="libcuda") as caught:
            counter.gate(1 << 20, 1)
        assert type(caught.value).__name__ == "ProviderUnavailable"
        assert pair.b.stats().words == 0


async def test_a_gate_that_takes_the_last_queue_of_the_gpu_warns_once(library, device, monkeypatch):
    monkeypatch.setattr(_streams, "_queues", None)
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "3")
    streams = [DeviceStream(device) for _ in range(5)]
    async with open_pair("loopback", cuda_library=library) as pair:
        board = await HostBoard(pair, device).open()
        captured = []
        for stream in streams:
            with stream.capture():
                captured.append(board.counter.gate(stream, 1))  # nobody waits there
        first = [board.counter.gate(streams[n], 1) for n in (0, 0, 1)]
        for _ in first:
            await board.write()
        await asyncio.gather(*first)
        gates = [board.counter.gate(streams[n], 1) for n in (2, 3, 3)]  # those before have gone on
        with pytest.warns(RuntimeWarning, match=r"3 queues there.* set CUDA_DEVICE_MAX_CONNECTIONS=32") as caught:
            gates.append(board.counter.gate(streams[4], 1))
        assert [warning.filename for warning in caught] == [__file__]
        gates.append(board.counter.gate(streams[0], 1))
        for _ in gates:
            await board.write()
        await asyncio.gather(*gates)
        for gate in captured:
            gate.close()
        await board.idle(*streams)
        board.close()
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(("value", "queues"), [(None, 8), ("1", 1), ("32", 32), ("64", 32), ("0", 1), ("many", 8)])
def test_how_many_queues_there_are(value, queues):
    assert _streams.read_queues({} if value is None else {_streams.QUEUES: value}) == queues
