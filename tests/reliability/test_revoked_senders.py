# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Revoke, while another process writes, and is busy, slow, stuck, stopped or dead: the pages are ours afterwards."""

import asyncio
import contextlib
import json
import os
import re
import signal
import time

import numpy as np
import pytest
import uvloop

from helpers import gap
from helpers.engines import engine_on, eventually, pattern
from helpers.process import helper
from helpers.slowness import SLOWNESS, fewer
from pplx_async import PeerLost, UnreleasedMemory

pytestmark = [pytest.mark.fabrics("tcp", "ipc", "verbs"), pytest.mark.tcp]

SIZE = 4 << 20
THEIRS, OURS = 0x77, 0xA5
# Silence is no reason here to lose anyone: it is the revoke that cuts off.
OPTIONS = {"peer_timeout": 60.0, "drain_timeout": 10.0}
QUICK = 0.3  # revoke_timeout of those who will be cut off
MARGIN = 3.0  # for what comes after it, on a busy machine
REFUSED = {"BrokenResourceError", "RemoteAccessError", "CompletionError"}
CUT_OFF = {"PeerLost", "BrokenResourceError", "CompletionError", "WorkFlushed", "ClosedResourceError"}


class Receiver:
    """Our engine and its memory, the process that sends to it, and what it is to us."""

    def __init__(self, engine, process):
        self.engine, self.process = engine, process
        self.memory, self.regions = [], []

    async def add(self, array):
        """Let the sender have an array; the descriptor."""
        region = await self.engine.register(array)
        self.memory.append(array)
        self.regions.append(region)
        return region.to_bytes().hex()

    async def add_both(self):
        """Memory that peers can map, where the fabric has that, and ordinary memory."""
        return [await self.add(self.engine.empty(SIZE)), await self.add(np.zeros(SIZE, dtype=np.uint8))]

    async def written(self):
        await eventually(lambda: all((array == THEIRS).any() for array in self.memory), "the sender is at it")

    async def take_back(self):
        """Revoke everything and use the memory for something else; how long the revoke took."""
        start = time.monotonic()
        await asyncio.gather(*(region.revoke() for region in self.regions))
        took = time.monotonic() - start
        for array in self.memory:
            array[:] = OURS
        return took

    def check(self):
        for array in self.memory:
            assert (array == OURS).all()


@contextlib.asynccontextmanager
async def connected(fabric, **options):
    options = OPTIONS | options
    given = {"fabric": fabric.name, **fabric.options, **options}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with (
        engine_on(fabric, name="receiver", **options) as engine,
        helper("sender", json.dumps(given)) as process,
    ):
        receiver = Receiver(engine, process)
        process.post("open", address=engine.address, nbytes=SIZE, value=THEIRS)
        receiver.peer = await engine.accept()
        await process.answer()
        yield receiver


@contextlib.contextmanager
def stopped(process):
    os.kill(process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # all of its threads
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


async def test_busy_sender_confirms_and_stays(fabric):
    async with connected(fabric) as receiver:
        await receiver.process.ask("flood", regions=await receiver.add_both(), writers=8)
        await receiver.written()
        assert await receiver.take_back() < OPTIONS["drain_timeout"]
        assert set(await receiver.process.ask("outcomes")) <= REFUSED
        receiver.check()
        assert receiver.peer.is_open
        # It is as good as before for other memory.
        assert await receiver.process.ask("write", region=await receiver.add(np.zeros(SIZE, dtype=np.uint8))) == SIZE
        assert (receiver.memory[-1] == THEIRS).all()


async def test_slow_sender_is_waited_for(fabric, tmp_path):
    """Its event loop computes for a while: it neither hears nor confirms, and its proxy thread goes on writing."""
    async with connected(fabric, revoke_timeout=10.0 * SLOWNESS) as receiver:
        through = tmp_path / "through"
        await receiver.process.ask("queue", regions=await receiver.add_both(), count=fewer(100), until=str(through))
        await receiver.written()
        asyncio.get_running_loop().call_later(0.5, through.touch)
        await receiver.take_back()
        receiver.check()
        assert set(await receiver.process.ask("outcomes")) == {"written"}  # all of it before the revoke ended
        receiver.check()
        assert receiver.peer.is_open


async def test_stuck_sender_is_cut_off(fabric, tmp_path):
    """As above, but for longer than we wait, with more under way than it can write in that time."""
    async with connected(fabric, revoke_timeout=QUICK) as receiver:
        through = tmp_path / "through"
        await receiver.process.ask("queue", regions=await receiver.add_both(), count=4000, until=str(through))
        await receiver.written()
        took = await receiver.take_back()
        through.touch()
        assert QUICK <= took < QUICK + MARGIN
        assert isinstance(receiver.peer.lost, PeerLost)
        ends = await receiver.process.ask("outcomes")
        assert set(ends) <= CUT_OFF | {"written"}
        assert set(ends) & CUT_OFF
        receiver.check()


async def test_killed_sender_is_not_waited_for(fabric):
    async with connected(fabric) as receiver:
        await receiver.process.ask("flood", regions=await receiver.add_both(), writers=8)
        await receiver.written()
        receiver.process.kill()
        assert await receiver.take_back() < MARGIN
        await receiver.process.process.wait()
        receiver.check()
        assert isinstance(receiver.peer.lost, PeerLost)


async def test_stopped_sender_is_cut_off(fabric):
    """In full swing, wherever that is: when it goes on, nothing changes."""
    async with connected(fabric, revoke_timeout=QUICK) as receiver:
        await receiver.process.ask("flood", regions=await receiver.add_both(), writers=8)
        await receiver.written()
        with stopped(receiver.process):
            took = await receiver.take_back()
        assert QUICK <= took < QUICK + MARGIN
        assert isinstance(receiver.peer.lost, PeerLost)
        assert set(await receiver.process.ask("outcomes")) <= CUT_OFF
        receiver.check()


async def test_many_revokes_of_one_that_is_stopped_are_a_few_lines_in_the_log(fabric, caplog):
    async with connected(fabric, revoke_timeout=QUICK) as receiver:
        for _ in range(50):
            await receiver.add(receiver.engine.empty(PAGE))
        with stopped(receiver.process):
            await receiver.take_back()
        told = [message for message in caplog.messages if "did not confirm a revoke" in message]
        assert 1 <= len(told) <= 10
        assert receiver.peer.label in told[0]


@pytest.mark.fabrics("ipc")
async def test_stopped_sender_that_has_the_kernel_copy_is_cut_off_or_it_is_said(fabric):
    """It knows where ordinary memory lies, which can't be taken elsewhere; unless this system keeps it from that."""
    options = {"revoke_timeout": QUICK, "drain_timeout": 0.5, "ipc_vm_writev": True}
    async with connected(fabric, **options) as receiver:
        buffer = bytearray(SIZE)
        region = await receiver.add(buffer)
        receiver.memory = [np.frombuffer(buffer, dtype=np.uint8)]
        await receiver.process.ask("flood", regions=[region], writers=4)
        await receiver.written()
        start = time.monotonic()
        with stopped(receiver.process):
            (end,) = await asyncio.gather(receiver.take_back(), return_exceptions=True)
        released = isinstance(end, float)
        if not released:
            assert isinstance(end, UnreleasedMemory)
            assert receiver.peer.label in str(end)
            assert end.hint
        assert QUICK <= time.monotonic() - start < QUICK + 0.5 + MARGIN
        assert isinstance(receiver.peer.lost, PeerLost)
        assert set(await receiver.process.ask("outcomes")) <= CUT_OFF
        receiver.memory.clear()
        if released:
            assert buffer == bytes([OURS]) * SIZE
        else:
            with pytest.raises(BufferError):
                buffer.clear()


# ---- between the check of a key and the copy ----

# The event loop may stand still nowhere: the proxy thread copies.
PROXY = {"progress": "proxy"}

PAGE = 4096
FIRST, MIDDLE, LAST = 0, SIZE // PAGE // 2, SIZE // PAGE - 1


@pytest.fixture
def held_up():
    if why := gap.refusal():
        pytest.skip(f"no copy can be held up here: {why}")


@pytest.mark.usefixtures("held_up")
@pytest.mark.fabrics("ipc")
@pytest.mark.parametrize(
    ("memory", "page", "how"),
    [
        ("mapped", FIRST, "stopped"),
        ("mapped", LAST, "stopped"),
        ("mapped", LAST, "stuck"),
        ("staged", FIRST, "stopped"),
        ("staged", LAST, "stuck"),
    ],
)
async def test_copy_that_goes_on_after_the_revoke_changes_nothing(fabric, memory, page, how):
    """The sender has checked the key, and copies up to this page; it stands still there until our pages are reused."""
    shared = memory == "mapped"
    async with connected(fabric, revoke_timeout=QUICK, **PROXY) as receiver:
        array = receiver.engine.empty(SIZE) if shared else np.zeros(SIZE, dtype=np.uint8)
        await receiver.process.ask("write_with_gap", region=await receiver.add(array), page=page)
        if shared:
            assert (array[: page * PAGE] == THEIRS).all()
            assert not array[page * PAGE :].any()
        with stopped(receiver.process) if how == "stopped" else contextlib.nullcontext():
            took = await receiver.take_back()
        assert QUICK <= took < QUICK + MARGIN
        assert isinstance(receiver.peer.lost, PeerLost)
        await receiver.process.ask("go_on")
        # It has landed nowhere, and does not say that it has.
        assert set(await receiver.process.ask("outcomes")) <= CUT_OFF
        receiver.check()


@pytest.mark.fabrics("tcp")
@pytest.mark.parametrize("page", [MIDDLE, LAST])
async def test_message_of_which_a_part_is_here_goes_no_further_after_the_revoke(fabric, page):
    """The receiver has checked the key, and has the first pages; the sender's kernel is held up before the others."""
    if why := gap.refusal(kernel=True):
        pytest.skip(f"no copy of the kernel's can be held up here: {why}")
    async with connected(fabric, revoke_timeout=QUICK, **PROXY) as receiver:
        array = np.zeros(SIZE, dtype=np.uint8)
        await receiver.process.ask("write_with_gap", region=await receiver.add(array), page=page, kernel=True)
        await receiver.written()
        assert not array[(page + 1) * PAGE :].any()
        took = await receiver.take_back()
        assert QUICK <= took < QUICK + MARGIN
        assert isinstance(receiver.peer.lost, PeerLost)
        await receiver.process.ask("go_on")
        assert set(await receiver.process.ask("outcomes")) <= CUT_OFF
        receiver.check()


@pytest.mark.fabrics("ipc")
@pytest.mark.parametrize("stays", [True, False])
async def test_copy_of_the_kernels_that_goes_on_after_the_revoke_is_said(fabric, stays):
    """Nobody can take that memory elsewhere: it is not given back before the copy has ended, in time or not."""
    if why := gap.refusal(kernel=True):
        pytest.skip(f"no copy of the kernel's can be held up here: {why}")
    options = {"revoke_timeout": QUICK, "drain_timeout": 1.0 if stays else 30.0, "ipc_vm_writev": True}
    async with connected(fabric, **options, **PROXY) as receiver:
        buffer = bytearray(SIZE)
        theirs = await receiver.add(buffer)
        await receiver.process.ask("write_with_gap", region=theirs, page=LAST, kernel=True)
        revoke = asyncio.ensure_future(receiver.regions[0].revoke())
        await eventually(lambda: receiver.peer.lost, "the sender is cut off")
        if stays:
            with pytest.raises(UnreleasedMemory, match=re.escape(receiver.peer.label)):
                await revoke
            with pytest.raises(BufferError):
                buffer.clear()
        else:
            await asyncio.sleep(0.3)
            assert not revoke.done()
        await receiver.process.ask("go_on")
        assert set(await receiver.process.ask("outcomes")) <= CUT_OFF | {"written"}
        if not stays:
            await revoke
            buffer[:] = bytes([OURS]) * SIZE
            await receiver.process.ask("outcomes")
            assert buffer == bytes([OURS]) * SIZE
            buffer.clear()


@pytest.mark.usefixtures("held_up")
@pytest.mark.fabrics("ipc")
async def test_sender_that_is_killed_in_a_copy_is_not_waited_for(fabric):
    async with connected(fabric, **PROXY) as receiver:
        array = receiver.engine.empty(SIZE)
        await receiver.process.ask("write_with_gap", region=await receiver.add(array), page=MIDDLE)
        receiver.process.kill()
        assert await receiver.take_back() < MARGIN
        await receiver.process.process.wait()
        receiver.check()


@pytest.mark.usefixtures("held_up")
@pytest.mark.fabrics("ipc")
async def test_cut_off_in_a_copy_disturbs_no_other_peer(fabric):
    """Another peer writes to the same allocation, of which the pages move, and to the other half of it afterwards."""
    async with (
        connected(fabric, revoke_timeout=QUICK, **PROXY) as receiver,
        engine_on(fabric, name="bystander", **OPTIONS) as bystander,
    ):
        near = await bystander.connect(receiver.engine.address)
        array = receiver.engine.empty(2 * SIZE)
        half, data = array[SIZE:], pattern(SIZE)
        theirs = await receiver.add(array[:SIZE])
        async with await receiver.engine.register(half) as region, await bystander.register(data) as source:
            remote = near.region(region.to_bytes())
            await bystander.write(source, remote)
            await receiver.process.ask("write_with_gap", region=theirs, page=MIDDLE)
            with stopped(receiver.process):
                await receiver.take_back()
                assert np.array_equal(half, data)
            await receiver.process.ask("go_on")
            await receiver.process.ask("outcomes")
            receiver.check()
            half[:] = 0
            await bystander.write(source, remote)
            assert np.array_equal(half, data)
            assert near.is_open
