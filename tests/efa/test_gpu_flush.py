# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What EFA has written into memory of a GPU, and streams that wait for it in gates.

The tests' own libcuda holds it back from them until it is flushed. What a gate does then is told in full by
``tests/verbs/test_gpu_flush.py``: here, that it does so on EFA.
"""

import asyncio
import contextlib
import ctypes

import numpy as np
import pytest

from helpers.cuda import Device, DeviceStream, Flushing
from helpers.engines import connect, eventually
from helpers.require import FAKE_CUDA_LIBRARY, FAKE_LIBRARY, find_fabric
from pplx_async import CudaError, RegistrationError, TransferEngine

pytestmark = pytest.mark.asyncio

NBYTES = 1 << 20
NONE, OWNER = 0, 100  # whose work the GPU orders what NICs write for
BY_CALL, BY_BOTH = 1, 3  # how else it is seen

RULES = [
    pytest.param(NONE, BY_CALL, "proxy", id="by a call of the proxy's"),
    pytest.param(NONE, BY_BOTH, "stream", id="by the stream's wait"),
    pytest.param(OWNER, BY_BOTH, "none", id="not where the GPU orders it"),
]


@pytest.fixture(scope="module")
def device():
    if (missing := find_fabric("efa-gpu").missing) is not None:
        pytest.skip(missing)
    return Device(1, str(FAKE_CUDA_LIBRARY))


@pytest.fixture
def gpu(device, monkeypatch):
    return Flushing(str(FAKE_CUDA_LIBRARY), monkeypatch.setenv)


@pytest.fixture
def stream(device):
    stream = DeviceStream(device)
    yield stream
    stream.close()


def engine(**options):
    return TransferEngine(fabric="efa", library=str(FAKE_LIBRARY), cuda_library=str(FAKE_CUDA_LIBRARY), **options)


@contextlib.asynccontextmanager
async def board(device, domains=1):
    """Of two engines, the first of which writes into memory of the other's GPU, counted."""
    content = np.random.default_rng(1).bytes(NBYTES)
    async with engine(domains=domains) as a, engine(domains=domains) as b:
        peer, _ = await connect(a, b)
        ours, theirs = device.array(content), device.zeros(NBYTES)
        async with await a.register(ours, access="none") as local, await b.register(theirs) as region:
            remote, counter = peer.region(region.to_bytes()), b.counter()
            there = peer.counter(counter.to_bytes())
            yield b, theirs, content, counter, lambda part: a.write(local[part], remote[part], counter=there)


async def check_gate(device, stream, theirs, content, counter, write):
    """A copy that stands behind a gate has what the gate waited for, of which the first half has come before."""
    copy = device.zeros(NBYTES)
    theirs.set(bytes(NBYTES))
    gate = counter.gate(stream, 2)
    stream.copy(copy, theirs)
    await write(slice(0, NBYTES // 2))
    await counter.wait(1)
    await write(slice(NBYTES // 2, NBYTES))
    await gate
    await eventually(lambda: stream.is_idle, "the stream comes to rest")
    assert copy.get() == content


@pytest.mark.parametrize("domains", [1, 2])
@pytest.mark.parametrize(("ordering", "flush", "rule"), RULES)
async def test_what_is_behind_a_gate_sees_what_efa_wrote(device, gpu, stream, ordering, flush, rule, domains):
    gpu.behaves(ordering, flush)
    async with board(device, domains) as (b, *written):
        assert [domain["gpu_flush"] for domain in b.explain().domains] == [{1: rule}] * domains
        await check_gate(device, stream, *written)
        assert (gpu.calls, gpu.waits) == (int(rule == "proxy"), int(rule == "stream"))


async def test_so_it_is_where_efa_has_the_address(device, gpu, stream, monkeypatch):
    monkeypatch.setenv("FAKE_EFA_VERSION", "17")
    gpu.behaves(NONE, BY_CALL)
    async with board(device) as (_, *written):
        await check_gate(device, stream, *written)
        assert gpu.calls == 1


def zeros_on(ordinal):
    device = Device(ordinal, str(FAKE_CUDA_LIBRARY))
    array = device.zeros(4096)
    device.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    return array


async def test_gpus_are_added_while_gates_open(device, gpu, stream, monkeypatch):
    """The thread that registers adds them, beside the proxy."""
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "8")
    gpu.behaves(NONE, BY_CALL)
    async with board(device) as (b, *written):
        arrays = [zeros_on(n) for n in range(8)]
        registering = [asyncio.create_task(b.register(array)) for array in arrays]
        while not all(task.done() for task in registering):
            await check_gate(device, stream, *written)
        for task in registering:
            await (await task).close()
        await check_gate(device, stream, *written)
        assert b.explain().domains[0]["gpu_flush"] == dict.fromkeys([*range(8)], "proxy")


async def test_gate_whose_flush_fails_fails(device, gpu, stream, monkeypatch):
    gpu.behaves(NONE, BY_CALL)
    async with board(device) as (_, _, _, counter, write):
        monkeypatch.setenv("FAKE_CUDA_FAIL", "cuFlushGPUDirectRDMAWrites:719")
        gate = counter.gate(stream, 1)
        await write(slice(0, NBYTES))
        with pytest.raises(CudaError, match="flushed") as caught:
            await gate
        assert caught.value.errno == 719
        assert gate.aborted


async def test_memory_that_can_not_be_flushed_is_refused(device, gpu):
    gpu.behaves(NONE, 0)
    async with engine() as a:
        for access in ("none", "both"):
            with pytest.raises(RegistrationError, match="no way to flush it"):
                await a.register(device.zeros(4096), access=access)
        assert a.explain().domains[0]["gpu_flush"] == {}


async def test_explain_says_how(device, gpu):
    gpu.behaves(NONE, BY_CALL)
    retained = gpu.driver.fake_cuda_retained()
    async with engine(domains=2) as a:
        assert [domain["gpu_flush"] for domain in a.explain().domains] == [{}, {}]
        regions = [await a.register(device.zeros(4096)) for _ in range(2)]
        assert len(regions) == 2
        assert "GPU 1 is flushed of what NICs have written there by the proxy thread" in str(a.explain())
        assert gpu.driver.fake_cuda_retained() == retained + 1
    assert gpu.driver.fake_cuda_retained() == retained
