# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a NIC has written into memory of a GPU, and streams that were waiting for it.

The tests' own libcuda holds it back from them until it is flushed, where a test says that the GPU does not order it.
"""

import asyncio
import contextlib
import ctypes

import numpy as np
import pytest
import pytest_asyncio

from helpers.cuda import Device, DeviceStream, Flushing
from helpers.engines import connect, eventually
from helpers.require import FAKE_CUDA_LIBRARY, FAKE_VERBS_LIBRARY, find_fabric
from pplx_async import BrokenResourceError, CudaError, RegistrationError, TransferEngine
from pplx_async.testing import HostStream

NBYTES = 1 << 16
PIECE = 1 << 12
NONE, OWNER, ALL_DEVICES = 0, 100, 200  # whose work the GPU orders what NICs write for
BY_CALL, BY_WAIT, BY_BOTH = 1, 2, 3  # how else it is seen

# The attributes of a GPU, whether it has stream memory operations, and what is done by that.
RULES = [
    pytest.param(NONE, BY_CALL, True, "proxy", id="by a call of the proxy's"),
    pytest.param(NONE, BY_WAIT, True, "stream", id="by the stream's wait"),
    pytest.param(NONE, BY_BOTH, True, "stream", id="by the wait rather than by a call"),
    pytest.param(NONE, BY_BOTH, False, "proxy", id="by a call where a kernel waits"),
    pytest.param(OWNER, BY_BOTH, True, "none", id="not where the GPU orders it"),
    pytest.param(ALL_DEVICES, 0, True, "none", id="not where it orders it for all"),
]


@pytest.fixture(scope="module")
def nics():
    for fabric in ("verbs-fake", "ipc-gpu"):
        if (missing := find_fabric(fabric).missing) is not None:
            pytest.skip(missing)
    nics = ctypes.CDLL(str(FAKE_VERBS_LIBRARY))
    assert nics.fake_ibv_layout(b"x0 roce ip=127.0.0.1 dmabuf; x1 roce ip=127.0.0.1 dmabuf") == 0
    yield nics
    assert nics.fake_ibv_layout(b"fake0 roce gbps=100 ip=10.77.0.1") == 0


@pytest.fixture(scope="module")
def device(nics):
    return Device(0, str(FAKE_CUDA_LIBRARY))


@pytest.fixture
def gpu(device, monkeypatch):
    return Flushing(str(FAKE_CUDA_LIBRARY), monkeypatch.setenv)


@pytest.fixture
def streams(device):
    """Make streams, of GPU 0 if nothing else is said."""
    made = []

    def make(ordinal=0):
        owner = Device(ordinal, str(FAKE_CUDA_LIBRARY))
        made.append(DeviceStream(owner))
        owner.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
        return made[-1]

    yield make
    for stream in made:
        stream.close()


def engine(nic="x0", fabric="verbs", **options):
    if fabric == "verbs":
        options |= {"library": str(FAKE_VERBS_LIBRARY), "devices": (nic,)}
    return TransferEngine(fabric=fabric, cuda_library=str(FAKE_CUDA_LIBRARY), **options)


class Board:
    """a writes GPU memory into GPU memory of b, counted; what it had at first are zeros."""

    def __init__(self, device):
        self.content = np.random.default_rng(1).bytes(NBYTES)
        self.ours, self.theirs = device.array(self.content), device.zeros(NBYTES)
        self.copy = device.zeros(NBYTES)

    async def open(self, a, b):
        self.a, self.b = a, b
        self.peer, _ = await connect(a, b)
        self.source = await a.register(self.ours, access="none")
        self.region = await b.register(self.theirs)
        self.remote = self.peer.region(self.region.to_bytes())
        self.counter = b.counter()
        self.remote_counter = self.peer.counter(self.counter.to_bytes())
        return self

    def write(self, start=0, stop=NBYTES):
        return self.a.write(self.source[start:stop], self.remote[start:stop], counter=self.remote_counter)

    async def idle(self, stream):
        await eventually(lambda: stream.is_idle, "the stream comes to rest")


@pytest_asyncio.fixture
async def open_board(device):
    """Open a board once it is said what the GPU does."""
    async with contextlib.AsyncExitStack() as opened:
        boards = []

        async def open_it(fabric="verbs"):
            a, b = [await opened.enter_async_context(engine(nic, fabric)) for nic in ("x0", "x1")]
            boards.append(await Board(device).open(a, b))
            return boards[-1]

        yield open_it


@pytest.mark.parametrize(("ordering", "flush", "words", "rule"), RULES)
async def test_what_is_behind_a_gate_sees_what_it_waited_for(open_board, gpu, streams, ordering, flush, words, rule):
    gpu.behaves(ordering, flush, words)
    board, stream = await open_board(), streams()
    assert board.b.explain().domains[0]["gpu_flush"] == {0: rule}
    gate = board.counter.gate(stream, 2)
    stream.copy(board.copy, board.theirs)
    await board.write(0, PIECE)
    await board.counter.wait(1)
    await board.write(PIECE)
    await gate
    await board.idle(stream)
    assert board.copy.get() == board.content
    assert (gpu.calls, gpu.waits) == (int(rule == "proxy"), int(rule == "stream"))


@pytest.mark.parametrize(("ordering", "flush", "words", "rule"), RULES)
async def test_so_does_every_launch_of_a_graph(open_board, gpu, streams, ordering, flush, words, rule):
    gpu.behaves(ordering, flush, words)
    board, stream = await open_board(), streams()
    with stream.capture() as graph:
        gate = board.counter.gate(stream, 1)
        stream.copy(board.copy, board.theirs)
    for n in range(1, 11):
        content = np.random.default_rng(n).bytes(NBYTES)
        board.ours.set(content)
        graph.launch()
        await board.write()
        await gate.wait(n)
        await board.idle(stream)
        assert board.copy.get() == content
    assert gpu.calls == (10 if rule == "proxy" else 0)
    gate.close()


async def test_one_flush_is_for_all_that_one_poll_brings(open_board, gpu, streams, nics):
    gpu.behaves(NONE, BY_CALL)
    board = await open_board()
    waiting = [streams() for _ in range(4)]
    gates = [board.counter.gate(stream, 1) for stream in waiting]
    assert nics.fake_ibv_hold(b"x0", 1) == 0
    writes = [board.write(n * PIECE, (n + 1) * PIECE) for n in range(4)]
    posted = "all of them are posted"
    await eventually(lambda: sum(board.peer.stats().links[0].posted.values()) >= 4, posted)
    assert nics.fake_ibv_hold(b"x0", 0) == 0
    for gate in gates:
        await gate
    await asyncio.gather(*writes)
    assert gpu.calls == 1


async def test_nothing_is_flushed_for_who_awaits_a_counter_or_a_read(open_board, gpu, streams):
    """What the program submits afterwards sees it: so CUDA has it."""
    gpu.behaves(NONE, BY_CALL)
    board, stream = await open_board(), streams()
    await board.write()
    await board.counter.wait(1)
    stream.copy(board.copy, board.theirs)
    await board.idle(stream)
    assert board.copy.get() == board.content
    board.ours.set(bytes(NBYTES))
    async with await board.a.register(board.ours) as back:
        assert await board.a.read(board.remote, back) == NBYTES
    stream.copy(board.copy, board.ours)
    await board.idle(stream)
    assert board.copy.get() == board.content
    assert gpu.calls == 0


async def test_nothing_is_flushed_for_a_stream_of_the_host(open_board, gpu):
    gpu.behaves(NONE, BY_CALL)
    board, stream = await open_board(), HostStream()
    gate = board.counter.gate(stream, 1)
    await board.write()
    await gate
    stream.close()
    assert gpu.calls == 0


async def test_an_engine_without_such_nics_flushes_nothing(open_board, gpu, streams):
    gpu.behaves(NONE, BY_BOTH)
    board, stream = await open_board("ipc"), streams()
    gate = board.counter.gate(stream, 1)
    stream.copy(board.copy, board.theirs)
    await board.write()
    await gate
    await board.idle(stream)
    assert board.copy.get() == board.content
    assert (gpu.calls, gpu.waits, board.b.explain().domains[0]["gpu_flush"]) == (0, 0, {})


async def test_a_stream_of_another_gpu_needs_a_flush_for_all(open_board, gpu, streams):
    """Though the GPU that has the memory orders it for its own."""
    gpu.behaves(OWNER, BY_CALL)
    board, stream = await open_board(), streams(1)
    gate = board.counter.gate(stream, 1)
    stream.copy(board.copy, board.theirs)
    await board.write()
    await gate
    await board.idle(stream)
    assert board.copy.get() == board.content
    assert gpu.calls == 1


async def fails(board, stream, code):
    """A gate lets its stream go in vain, and says why."""
    gate = board.counter.gate(stream, 1)
    behind = board.b.reached(stream)
    await board.write()
    with pytest.raises(CudaError, match="flushed") as caught:
        await gate
    assert caught.value.errno == code
    assert gate.aborted
    with pytest.raises(BrokenResourceError) as caught:
        await behind
    with pytest.raises(BrokenResourceError) as caught:
        board.counter.gate(stream, 1)
    assert isinstance(caught.value.__cause__, CudaError)
    board.b.rearm(stream)


@pytest.mark.parametrize(("ordering", "flush"), [(NONE, BY_WAIT), (OWNER, 0)])
async def test_without_one_for_all_such_a_gate_fails(open_board, gpu, streams, ordering, flush):
    gpu.behaves(ordering, flush)
    board = await open_board()
    await fails(board, streams(1), 801)


async def test_gate_whose_flush_fails_fails(open_board, gpu, streams, monkeypatch):
    gpu.behaves(NONE, BY_CALL)
    board, stream = await open_board(), streams()
    monkeypatch.setenv("FAKE_CUDA_FAIL", "cuFlushGPUDirectRDMAWrites:719")
    await fails(board, stream, 719)
    monkeypatch.delenv("FAKE_CUDA_FAIL")
    gate = board.counter.gate(stream, 1)
    stream.copy(board.copy, board.theirs)
    await board.write()
    await gate
    await board.idle(stream)
    assert board.copy.get() == board.content


async def test_flush_while_a_graph_is_captured(open_board, gpu, streams):
    """Which forbids unsafe calls to everyone who does not say that it knows better."""
    gpu.behaves(NONE, BY_CALL)
    board, stream, captured = await open_board(), streams(), streams()
    gate = board.counter.gate(stream, 1)
    with captured.capture():
        await board.write()
        await gate
    assert gpu.calls == 1


async def test_memory_that_can_not_be_flushed_is_refused(gpu, device):
    gpu.behaves(NONE, 0)
    async with engine() as a:
        with pytest.raises(RegistrationError, match="no way to flush it"):
            await a.register(device.zeros(NBYTES))
        with pytest.raises(RegistrationError, match="no way to flush it"):
            await a.register(device.zeros(NBYTES), access="none")
        assert a.explain().domains[0]["gpu_flush"] == {}
        gpu.behaves(NONE, BY_CALL)
        async with await a.register(device.zeros(NBYTES)):
            pass


async def test_explain_says_how(gpu, device):
    gpu.behaves(NONE, BY_CALL)
    async with engine() as a:
        assert a.explain().domains[0]["gpu_flush"] == {}
        retained = gpu.driver.fake_cuda_retained()
        regions = [await a.register(device.zeros(NBYTES)) for _ in range(2)]
        assert len(regions) == 2
        assert "GPU 0 is flushed of what NICs have written there by the proxy thread" in str(a.explain())
        assert gpu.driver.fake_cuda_retained() == retained + 1
    assert gpu.driver.fake_cuda_retained() == retained
