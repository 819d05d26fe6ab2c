# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Calls of the driver that wait for the program's kernels, and copies that take long: nobody else waits for them, and
nobody is lost."""

import asyncio
import ctypes
import hashlib
import json

import pytest

from helpers.engines import SOON
from helpers.process import helper
from pplx_async import TransferEngine

pytestmark = pytest.mark.asyncio

NBYTES = 1 << 20
KERNEL = 8.0
# The kernel takes longer than silence may, and far less than memory is waited for.
TIMES = {"heartbeat_interval": 0.2, "peer_timeout": 4.0, "drain_timeout": 60.0}


class Here:
    """An engine with memory of a GPU, connected to one in another process and to one in ours."""

    def __init__(self, library, device, engine, other, third):
        self.driver = ctypes.CDLL(library)
        self.device, self.engine, self.other, self.third = device, engine, other, third

    async def open(self):
        self.memory = self.device.zeros(NBYTES)
        self.gpu = await self.engine.register(self.memory)
        self.host = await self.engine.register(bytearray(NBYTES))
        self.peer = await self.engine.connect(
            await self.other.ask("open", nbytes=NBYTES, kinds=["gpu", "mapped", "staged"])
        )
        await self.other.ask("accept")
        self.remote = await self.peer.lookup("gpu")
        self.remote_host = [await self.peer.lookup(kind) for kind in ("mapped", "staged")]
        self.counter = await self.peer.lookup_counter("counter")
        self.their_host = await self.third.register(self.third.empty(NBYTES))
        self.neighbour = await self.engine.connect(self.third.address)
        self.near = self.neighbour.region(self.their_host.to_bytes())

    def hold_copies(self, hold):
        self.driver.fake_cuda_hold(int(hold))

    def run_kernel(self, seconds):
        self.driver.fake_cuda_run_kernel(int(seconds * 1000))

    def opened(self):
        return self.driver.fake_cuda_opened()

    async def others_get_on_until(self, task):
        """Write to the third engine until the task is done; how often that was."""
        count = 0
        async with asyncio.timeout(SOON):
            while not task.done():
                await self.engine.write(self.host, self.near)
                count += 1
                await asyncio.sleep(0.01)
        return count

    async def everybody_is_there(self):
        await self.engine.write(self.gpu, self.remote, counter=self.counter)
        await self.peer.send(b"still connected")
        await self.engine.write(self.host, self.near)


@pytest.fixture
async def here(fake, device):
    async with (
        helper("gpu_peer", json.dumps({"library": fake} | TIMES)) as other,
        TransferEngine(fabric="ipc", cuda_library=fake, **TIMES) as engine,
        TransferEngine(fabric="ipc", **TIMES) as third,
    ):
        sides = Here(fake, device, engine, other, third)
        await sides.open()
        try:
            yield sides
        finally:
            sides.run_kernel(0)
            sides.hold_copies(False)
        await other.ask("close")


async def test_the_first_transfer_waits_for_a_kernel_and_nobody_is_lost(here):
    here.memory.set(b"\x5a" * NBYTES)
    here.run_kernel(KERNEL)
    start = asyncio.get_running_loop().time()
    first = asyncio.ensure_future(here.engine.write(here.gpu, here.remote, counter=here.counter))
    assert await here.others_get_on_until(first) > 5
    assert asyncio.get_running_loop().time() - start >= KERNEL
    await first
    await here.other.ask("wait", count=1)
    await here.everybody_is_there()


async def test_a_revoke_waits_for_a_kernel_of_the_peer_and_nobody_is_lost(here):
    await here.engine.write(here.gpu, here.remote, counter=here.counter)
    assert here.opened() == 1
    here.run_kernel(KERNEL)
    revoked = asyncio.ensure_future(here.other.ask("revoke", kind="gpu"))
    assert await here.others_get_on_until(revoked) > 5
    await revoked
    assert here.opened() == 0
    await here.peer.send(b"still connected")


async def test_an_engine_closes_while_a_kernel_keeps_the_peers_memory_open(here):
    await here.engine.write(here.gpu, here.remote, counter=here.counter)
    here.run_kernel(KERNEL / 4)
    async with asyncio.timeout(SOON):
        await here.engine.close()
    assert here.opened() == 0  # the goodbye was said after that


async def test_copies_between_gpu_and_host_that_take_long_keep_nobody_waiting(here):
    content = bytes(range(256)) * (NBYTES // 256)
    here.memory.set(content)
    here.hold_copies(True)
    writes = [here.engine.write(here.gpu, remote, counter=here.counter) for remote in here.remote_host]
    longer_than_silence_may_be = asyncio.ensure_future(asyncio.sleep(TIMES["peer_timeout"] * 1.5))
    assert await here.others_get_on_until(longer_than_silence_may_be) > 5
    assert not any(write.done() for write in writes)
    assert await here.other.ask("counted") == 0
    here.hold_copies(False)
    for write in writes:
        assert await write == NBYTES
    for kind in ("mapped", "staged"):
        assert await here.other.ask("wait", count=2, kind=kind) == hashlib.sha256(content).hexdigest()
    await here.everybody_is_there()
