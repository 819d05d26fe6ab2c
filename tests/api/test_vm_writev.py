# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``ipc_vm_writev``: ordinary arrays of another process by one copy, and when such a region is closed."""

import asyncio
import contextlib
import ctypes
import functools
import json
import os
import signal

import numpy as np
import pytest
import uvloop

from helpers.engines import SOON, engine_on, pattern
from helpers.process import helper, run_program
from pplx_async import UnreleasedMemory

pytestmark = pytest.mark.fabrics("ipc")

SIZE = 1 << 20
PATIENT = {"heartbeat_interval": 0.25, "peer_timeout": 30.0, "drain_timeout": 10.0}

# What a writer does: a child of ours reads a byte of us.
PROBE = """
import ctypes, os, sys
class iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("nbytes", ctypes.c_size_t)]
byte = ctypes.create_string_buffer(1)
here, there = iovec(ctypes.addressof(byte), 1), iovec(int(sys.argv[1]), 1)
call = ctypes.CDLL(None, use_errno=True).process_vm_readv
if call(os.getppid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0) != 1:
    print(os.strerror(ctypes.get_errno()))
"""


@functools.cache
def refusal():
    byte = ctypes.create_string_buffer(b"x", 1)
    return run_program(PROBE, str(ctypes.addressof(byte))).stdout.strip()


@pytest.fixture(autouse=True)
def allowed():
    if why := refusal():
        pytest.skip(f"this system lets no process read another's memory: process_vm_readv: {why}")


@contextlib.asynccontextmanager
async def connected(fabric, ours=True, theirs=True, **options):
    """Our engine, the other process, and its ordinary array of SIZE bytes as we see it."""
    options = PATIENT | options
    given = {"fabric": fabric.name, **options, "ipc_vm_writev": theirs}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with (
        helper("receiver", json.dumps(given)) as process,
        engine_on(fabric, **options, ipc_vm_writev=ours) as engine,
    ):
        address = await process.ask("open", nbytes=SIZE)
        process.post("accept")
        peer = await engine.connect(address)
        answer = await process.answer()
        yield engine, process, peer.region(bytes.fromhex(answer["region"]))


@contextlib.contextmanager
def stopped(process):
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # all of its threads
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def test_writes_and_reads(fabric):
    async with connected(fabric) as (engine, process, remote):
        assert "process_vm_writev" in str(engine.explain())
        sink = np.zeros(SIZE, dtype=np.uint8)
        async with await engine.register(pattern(SIZE)) as source, await engine.register(sink) as target:
            for nbytes in (1, 4096, 65537, SIZE):
                await engine.write(source[:nbytes], remote[:nbytes])
                sink[:] = 0
                await engine.read(remote[:nbytes], target[:nbytes])
                assert np.array_equal(sink[:nbytes], pattern(SIZE)[:nbytes])
            # The other process has no part in it. Staged, this would wait for it.
            with stopped(process):
                async with asyncio.timeout(SOON):
                    await engine.read(remote, target)
                    await engine.write(source, remote)
        await process.ask("close")


@pytest.mark.parametrize("ours", [True, False])
async def test_both_must_say_so(fabric, ours):
    async with connected(fabric, ours=ours, theirs=not ours) as (engine, process, remote):
        assert ("process_vm_writev" in str(engine.explain())) == ours
        sink = np.zeros(SIZE, dtype=np.uint8)
        async with await engine.register(pattern(SIZE)) as source, await engine.register(sink) as target:
            await engine.write(source, remote)
            with stopped(process):
                write = engine.write(source, remote)
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(asyncio.shield(write), 0.3)
            await write
            await engine.read(remote, target)
            assert np.array_equal(sink, pattern(SIZE))
        await process.ask("close")


@contextlib.asynccontextmanager
async def flooded(fabric, **options):
    """An ordinary region of ours into which the other process writes without end."""
    async with connected(fabric, **options) as (engine, process, _remote):
        memory = np.zeros(SIZE, dtype=np.uint8)
        region = await engine.register(memory)
        await process.ask("fill", value=7)
        await process.ask("flood", region=region.to_bytes().hex())
        async with asyncio.timeout(SOON):
            while not memory.all():
                await asyncio.sleep(0.002)
        yield process, region, memory


async def test_closed_when_the_peer_has_let_go(fabric):
    async with flooded(fabric) as (process, region, memory):
        with stopped(process):
            closing = asyncio.ensure_future(region.close())
            await asyncio.wait({closing}, timeout=0.5)
            assert not closing.done()
        async with asyncio.timeout(SOON):
            await closing
        memory[:] = 0
        await asyncio.sleep(0.05)
        assert not memory.any()
        process.kill()


async def test_not_closed_while_the_peer_may_write(fabric):
    async with flooded(fabric, drain_timeout=0.5) as (process, region, _memory):
        with stopped(process), pytest.raises(UnreleasedMemory):
            await region.close()
        process.kill()
