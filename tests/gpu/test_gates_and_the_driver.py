# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of the driver that wait for every stream that waits in a gate: nobody whom a gate may need waits for them."""

import asyncio
import ctypes
import json

import pytest

from helpers.cuda import DeviceStream
from helpers.engines import SOON, eventually
from helpers.process import helper, run_program
from pplx_async import ClosedResourceError, CudaError, TransferEngine

NBYTES = 1 << 16
TIMES = {"heartbeat_interval": 0.1, "peer_timeout": 2.0, "drain_timeout": 60.0}


@pytest.mark.asyncio
async def test_a_dead_peer_is_cleared_away_while_a_stream_waits_for_another(fake, device):
    """Its rings stay pinned until the gate has opened, and what opens it is counted by the same proxy."""
    driver, stream = ctypes.CDLL(fake), DeviceStream(device)
    async with (
        helper("gpu_peer", json.dumps({"library": fake} | TIMES)) as other,
        TransferEngine(fabric="ipc", cuda_library=fake, **TIMES) as engine,
        TransferEngine(fabric="ipc", **TIMES) as third,
    ):
        peer = await engine.connect(await other.ask("open", nbytes=NBYTES, kinds=["gpu"]))
        await other.ask("accept")
        region = await engine.register(device.zeros(NBYTES))
        await engine.write(region, await peer.lookup("gpu"))
        neighbour = await engine.connect(third.address)
        there = await third.accept()
        counter, target = engine.counter(peer=neighbour), await engine.register(bytearray(8))
        source, remote = await third.register(bytearray(8)), there.region(target.to_bytes())
        gate = counter.gate(stream, 1)
        await eventually(driver.fake_cuda_waiting, "the stream waits")
        pinned = driver.fake_cuda_pinned()
        other.process.kill()
        await eventually(lambda: peer not in engine._peers, "the dead one is cleared away")
        async with asyncio.timeout(SOON):
            for _ in range(15):  # longer than silence may be
                await neighbour.send(b"here")
                await asyncio.sleep(TIMES["peer_timeout"] / 10)
            assert (gate.opened, driver.fake_cuda_pinned()) == (0, pinned)
            await third.write(source, remote, counter=there.counter(counter.to_bytes()))
            await gate
        await eventually(lambda: driver.fake_cuda_pinned() == pinned - 1, "its rings are given back")
    stream.close()


@pytest.mark.asyncio
async def test_an_engine_closes_while_a_stream_of_its_own_waits_for_whoever_comes(fake, device):
    """The peer's memory is open until the stream has gone on, and no peer's end lets it."""
    driver, stream = ctypes.CDLL(fake), DeviceStream(device)
    async with helper("gpu_peer", json.dumps({"library": fake} | TIMES)) as other, asyncio.timeout(SOON):
        async with TransferEngine(fabric="ipc", cuda_library=fake, **TIMES) as engine:
            peer = await engine.connect(await other.ask("open", nbytes=NBYTES, kinds=["gpu"]))
            await other.ask("accept")
            region = await engine.register(device.zeros(NBYTES))
            await engine.write(region, await peer.lookup("gpu"))
            assert driver.fake_cuda_opened() == 1
            gate = engine.counter().gate(stream, 1)
            await eventually(driver.fake_cuda_waiting, "the stream waits")
        assert (gate.opened, gate.aborted, driver.fake_cuda_opened()) == (0, True, 0)
        with pytest.raises(ClosedResourceError):
            await gate
    stream.close()


# What has a process hang is in one of its own.
CLOSING = """
import asyncio, ctypes, sys
from helpers.cuda import Device, DeviceStream
from helpers.engines import eventually
from pplx_async import TransferEngine

async def main(library, fabric):
    driver, device = ctypes.CDLL(library), Device(0, library)
    waits, other = DeviceStream(device), DeviceStream(device)
    async with TransferEngine(fabric="loopback", cuda_library=library) as engine:
        gate = engine.counter().gate(waits, 1)
        await eventually(driver.fake_cuda_waiting, "the stream waits")
        async with TransferEngine(fabric=fabric, cuda_library=library) as closes:
            if fabric == "ipc":
                await closes.register(device.zeros(4096))
            await closes.reached(other)
        assert (gate.opened, driver.fake_cuda_waiting()) == (0, 1)
        assert fabric == "loopback" or driver.fake_cuda_retained() > 4  # the driver does not let go yet
        gate.close()
        await eventually(lambda: engine.stats().words == 0, "the stream has gone on")
    del gate
    # The words of both engines stay, for the next ones: a stream may look there yet. And that of the stream that
    # nudges the GPU. The context is this program's, both pages', and that stream's.
    await eventually(lambda: driver.fake_cuda_pinned() == 3, "all else is unpinned")
    await eventually(lambda: driver.fake_cuda_retained() == 4, "all is free")
    print("closed")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("other", ["loopback", "ipc"])
def test_an_engine_closes_while_a_stream_of_another_waits_in_a_gate(fake, other):
    result = run_program(CLOSING, fake, other)
    assert result.stdout == "closed\n", result.stderr
    assert (result.returncode, result.stderr) == (0, "")


LOADING = """
import asyncio, ctypes, os, sys
from helpers.cuda import Device, DeviceStream
from helpers.engines import eventually, open_pair

async def main(library):
    os.environ["FAKE_CUDA_LOAD_US"] = "300000"  # as long as a sanitizer makes it
    driver, device = ctypes.CDLL(library), Device(0, library)
    driver.fake_cuda_wait_together(1)
    stream, content = DeviceStream(device), bytes(range(256)) * 16
    async with open_pair("ipc", cuda_library=library) as pair:
        ours, theirs, copy = device.array(content), device.zeros(4096), device.zeros(4096)
        source = await pair.a.register(ours)
        target = await pair.b.register(theirs)
        remote, (counter, remote_counter) = pair.ab.region(target.to_bytes()), pair.counter()
        await eventually(lambda: driver.fake_cuda_loads() == 2, "both begin to load the kernel that copies")
        gate = counter.gate(stream, 1)
        stream.copy(copy, theirs)
        await asyncio.sleep(0.6)  # it is loaded, or waits
        await pair.a.write(source, remote, counter=remote_counter)
        await gate
        await eventually(lambda: stream.is_idle, "the stream goes on")
        assert copy.get() == content
        stream.close()
    print("landed")

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_gate_is_not_queued_while_a_call_that_waits_for_gates_is_under_way(fake):
    """It would hold up the call, the call the copies, and the copies the gate."""
    result = run_program(LOADING, fake)
    assert result.stdout == "landed\n", result.stderr
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.asyncio
async def test_a_gate_that_is_refused_holds_nothing_up(fake, device, monkeypatch):
    driver = ctypes.CDLL(fake)
    stream = DeviceStream(device)
    async with TransferEngine(fabric="ipc", cuda_library=fake, **TIMES) as engine:
        monkeypatch.setenv("FAKE_CUDA_FAIL", "cuStreamBatchMemOp_v2:801")
        with pytest.raises(CudaError):
            engine.counter().gate(stream, 1)
        monkeypatch.setenv("FAKE_CUDA_FAIL", "")
        loads = driver.fake_cuda_loads()
        async with await engine.register(device.zeros(NBYTES)):
            await eventually(lambda: driver.fake_cuda_loads() > loads, "what waits for gates is called")
    stream.close()


LEAVING = """
import asyncio, ctypes, sys
from helpers.cuda import Device, DeviceStream
from helpers.engines import eventually
from pplx_async import TransferEngine

async def main(library):
    driver, device = ctypes.CDLL(library), Device(0, library)
    waits, other, word = DeviceStream(device), DeviceStream(device), device.zeros(8)
    device.call("cuStreamWaitValue64_v2", waits.handle, ctypes.c_uint64(word.address), ctypes.c_uint64(1), 0)
    await eventually(driver.fake_cuda_waiting, "the stream waits")
    async with TransferEngine(fabric="ipc", cuda_library=library) as engine:
        async with await engine.register(word):
            await engine.reached(other)
    print("closed")

asyncio.run(main(*sys.argv[1:]))
"""


def test_a_process_ends_while_the_driver_keeps_threads_of_the_engine_waiting(fake):
    result = run_program(LEAVING, fake)
    assert result.stdout == "closed\n", result.stderr
    assert (result.returncode, result.stderr) == (0, "")
