# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of GPUs over ipc, between two processes: every call, from and to memory of every kind."""

import asyncio
import contextlib
import ctypes
import hashlib
import json

import numpy as np
import pytest

from helpers.boards import PAGE, check_shuffled_pages
from helpers.cuda import Device, DeviceStream
from helpers.engines import SOON
from helpers.process import helper
from helpers.require import find_fabric
from pplx_async import (
    BrokenResourceError,
    CompletionError,
    PeerLost,
    RegistrationError,
    RemoteAccessError,
    TransferEngine,
)

pytestmark = pytest.mark.asyncio

NBYTES = 3 << 20
KINDS = ("gpu", "virtual", "mapped", "staged")
ON_DEVICE = ("gpu", "virtual")


class Sides:
    """An engine here, with a region of each kind, and a process that we are connected to."""

    def __init__(self, engine, device, other):
        self.engine, self.device, self.other = engine, device, other
        self.memory, self.regions = {}, {}

    async def open(self, kinds):
        for kind in kinds:
            if kind in ON_DEVICE:
                self.memory[kind] = (self.device.zeros if kind == "gpu" else self.device.virtual)(NBYTES)
            else:
                self.memory[kind] = self.engine.empty(NBYTES) if kind == "mapped" else np.zeros(NBYTES, dtype=np.uint8)
            self.regions[kind] = await self.engine.register(self.memory[kind])
            self.engine.publish(kind, self.regions[kind])

    async def connect(self, kinds):
        self.peer = await self.engine.connect(await self.other.ask("open", nbytes=NBYTES, kinds=list(kinds)))
        await self.other.ask("accept")
        self.remote = {kind: await self.peer.lookup(kind) for kind in kinds}
        self.counter = await self.peer.lookup_counter("counter")

    def fill(self, kind, seed):
        content = np.random.default_rng(seed).bytes(NBYTES)
        if kind in ON_DEVICE:
            self.memory[kind].set(content)
        else:
            self.memory[kind][:] = np.frombuffer(content, dtype=np.uint8)
        return content

    def content(self, kind):
        return self.memory[kind].get() if kind in ON_DEVICE else self.memory[kind].tobytes()


@contextlib.asynccontextmanager
async def sides(library, device, ours=KINDS, theirs=KINDS, **options):
    async with (
        helper("gpu_peer", json.dumps({"library": library} | options)) as other,
        TransferEngine(fabric="ipc", cuda_library=library, **options) as engine,
    ):
        both = Sides(engine, device, other)
        await both.open(ours)
        await both.connect(theirs)
        yield both
        await both.other.ask("close")


@pytest.mark.parametrize("wakeup", ["eventfd", "spin"])
async def test_every_kind_of_memory_is_written_and_read(library, device, wakeup):
    async with sides(library, device, wakeup=wakeup) as x:
        count = 0
        for source in KINDS:
            for target in KINDS:
                content = x.fill(source, count)
                assert await x.engine.write(x.regions[source], x.remote[target], counter=x.counter) == NBYTES
                count += 1
                assert await x.other.ask("wait", count=count, kind=target) == hashlib.sha256(content).hexdigest()
        for source in KINDS:
            digest = await x.other.ask("fill", kind=source, seed=50)
            for target in KINDS:
                x.fill(target, 51)
                await x.engine.read(x.remote[source], x.regions[target])
                assert hashlib.sha256(x.content(target)).hexdigest() == digest


async def test_the_other_side_writes_here(library, device):
    async with sides(library, device) as x:
        counter = x.engine.counter(peer=x.peer)
        x.engine.publish("here", counter)
        for number, kind in enumerate(KINDS, 1):
            digest = await x.other.ask("fill", kind="gpu", seed=number)
            await x.other.ask("write", kind="gpu", remote=kind, counter="here")
            await counter.wait(number)
            assert hashlib.sha256(x.content(kind)).hexdigest() == digest


async def test_who_has_no_memory_on_a_gpu_reaches_that_of_others(library, device):
    async with sides(library, device, ours=("staged",)) as x:
        content = x.fill("staged", 1)
        await x.engine.write(x.regions["staged"], x.remote["gpu"], counter=x.counter)
        assert await x.other.ask("wait", count=1) == hashlib.sha256(content).hexdigest()
        digest = await x.other.ask("fill", kind="gpu", seed=2)
        await x.engine.read(x.remote["gpu"], x.regions["staged"])
        assert hashlib.sha256(x.content("staged")).hexdigest() == digest


async def test_the_kernel_is_not_asked_for_what_it_can_not_reach(library, device):
    """With process_vm_writev allowed on both sides, memory of a GPU goes through the staging area all the same."""
    async with sides(library, device, ours=("gpu",), theirs=("staged",), ipc_vm_writev=True) as x:
        content = x.fill("gpu", 1)
        await x.engine.write(x.regions["gpu"], x.remote["staged"], counter=x.counter)
        assert await x.other.ask("wait", count=1, kind="staged") == hashlib.sha256(content).hexdigest()
        digest = await x.other.ask("fill", kind="staged", seed=2)
        await x.engine.read(x.remote["staged"], x.regions["gpu"])
        assert hashlib.sha256(x.content("gpu")).hexdigest() == digest


async def test_two_gpus_of_one_process(library, device):
    """A copy reaches both; a kernel of one would end with a fault at the other, and so isn't taken."""
    try:
        second = Device(1, library)
    except RuntimeError:
        pytest.skip("this machine has one GPU")
    content = np.random.default_rng(1).bytes(32 * PAGE)
    try:
        here, there = second.array(content), second.zeros(len(content))
    finally:
        second.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
    near, back = device.array(content), device.zeros(len(content))
    # The engine works on the GPU of what it has registered first.
    await check_shuffled_pages(library, near, content, [(near, there), (here, back), (here, there)])


@pytest.mark.parametrize("page", [16, 4000, 4096, 65536])
async def test_pages_land_where_they_belong(library, device, page):
    async with sides(library, device, ours=("gpu",), theirs=("gpu",)) as x:
        pages = NBYTES // page if page > 4000 else 700
        order = np.random.default_rng(1).permutation(pages)
        content = np.frombuffer(x.fill("gpu", 1), dtype=np.uint8)
        await x.engine.write_pages(
            x.regions["gpu"],
            x.remote["gpu"],
            page_nbytes=page,
            local_pages=order,
            remote_pages=order[::-1],
            counter=x.counter,
        )
        expected = np.zeros(NBYTES, dtype=np.uint8)
        for here, there in zip(order, order[::-1], strict=True):
            expected[there * page : (there + 1) * page] = content[here * page : (here + 1) * page]
        assert await x.other.ask("wait", count=pages) == hashlib.sha256(expected.tobytes()).hexdigest()
        assert await x.other.ask("counted") == pages


async def test_many_small_writes_are_counted_exactly(library, device):
    """More than a stream's ring has slots, most of them while the other side is not told to look."""
    async with sides(library, device, ours=("gpu",), theirs=("gpu",)) as x:
        content = x.fill("gpu", 1)
        local, remote = x.regions["gpu"], x.remote["gpu"]
        pieces = [slice(at, at + 64) for at in range(0, 5000 * 64, 64)]
        writes = [x.engine.write(local[piece], remote[piece], counter=x.counter) for piece in pieces]
        await asyncio.gather(*writes)
        expected = content[: 5000 * 64] + bytes(NBYTES - 5000 * 64)
        assert await x.other.ask("wait", count=5000) == hashlib.sha256(expected).hexdigest()
        assert await x.other.ask("counted") == 5000


async def test_what_a_capture_forbids_disturbs_neither_it_nor_the_first_writes(fake, device):
    """For them memory is pinned, and while they take long streams are asked how far they are."""
    stream, driver = DeviceStream(device), ctypes.CDLL(fake)
    async with sides(fake, device, ours=("gpu",)) as x:
        expected = hashlib.sha256(x.fill("gpu", 1)).hexdigest()
        with stream.capture():
            driver.fake_cuda_hold(1)
            writes = [x.engine.write(x.regions["gpu"], x.remote[kind], counter=x.counter) for kind in KINDS]
            await asyncio.sleep(0.1)
            assert not any(write.done() for write in writes)
            driver.fake_cuda_hold(0)
            await asyncio.gather(*writes)
        assert await x.other.ask("wait", count=len(KINDS)) == expected
    stream.close()


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_written_after_a_revoke(library, device, kind):
    async with sides(library, device, ours=("gpu",), theirs=(kind,)) as x:
        failed = 0

        async def stream():
            nonlocal failed
            try:
                while True:
                    await asyncio.gather(*(x.engine.write(x.regions["gpu"], x.remote[kind]) for _ in range(4)))
            except (RemoteAccessError, BrokenResourceError):
                failed += 1

        streams = [asyncio.create_task(stream()) for _ in range(3)]
        await asyncio.sleep(0.2)
        await x.other.ask("revoke", kind=kind)
        async with asyncio.timeout(SOON):
            await asyncio.gather(*streams)
        assert failed == 3
        await x.peer.send(b"and still connected")


@pytest.mark.parametrize("kind", KINDS)
async def test_death_ends_what_is_under_way(library, device, kind):
    async with (
        helper("gpu_peer", json.dumps({"library": library})) as other,
        TransferEngine(fabric="ipc", cuda_library=library) as engine,
    ):
        x = Sides(engine, device, other)
        await x.open(("gpu",))
        await x.connect((kind,))

        async def stream():
            while True:
                await x.engine.write(x.regions["gpu"], x.remote[kind])

        tasks = [asyncio.create_task(stream()) for _ in range(4)]
        await asyncio.sleep(0.1)
        other.kill()
        async with asyncio.timeout(SOON):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(end) for end in ends} == {PeerLost}


async def test_memory_is_free_when_both_are_gone(library, device):
    """In any order: close waits for whoever can still write."""
    for first in ("here", "there"):
        async with helper("gpu_peer", json.dumps({"library": library})) as other:
            engine = TransferEngine(fabric="ipc", cuda_library=library)
            await engine.open()
            x = Sides(engine, device, other)
            await x.open(("gpu",))
            await x.connect(("gpu",))
            await x.engine.write(x.regions["gpu"], x.remote["gpu"], counter=x.counter)
            async with asyncio.timeout(SOON):
                if first == "here":
                    await engine.close()
                    await other.ask("close")
                else:
                    await other.ask("close")
                    await engine.close()


async def test_a_lost_gpu_fails_what_is_written(fake, device, monkeypatch):
    async with sides(fake, device, ours=("gpu", "staged"), theirs=("gpu",)) as x:
        await x.engine.write(x.regions["gpu"], x.remote["gpu"])
        monkeypatch.setenv("FAKE_CUDA_FAIL", "cuMemcpyAsync:719")
        with pytest.raises(CompletionError, match="719"):
            await x.engine.write(x.regions["gpu"], x.remote["gpu"])
        with pytest.raises(CompletionError, match="719"):
            await x.engine.write(x.regions["staged"], x.remote["gpu"])
        monkeypatch.setenv("FAKE_CUDA_FAIL", "")
        await x.engine.write(x.regions["gpu"], x.remote["gpu"], counter=x.counter)
        await x.other.ask("wait", count=1)


async def test_routes_that_reach_no_gpu_are_refused_before_anything_is_posted(library, device):
    """An engine with more than one way registers where it can; a transfer that goes another way says so at once."""
    if (missing := find_fabric("tcp").missing) is not None:
        pytest.skip(missing)
    options = {"fabric": "auto", "cuda_library": library}
    async with (
        TransferEngine(**options) as a,
        TransferEngine(fabric="tcp") as b,
        TransferEngine(**options) as c,
    ):
        ours = await a.register(device.zeros(4096))
        far, near = await a.connect(b.address), await a.connect(c.address)
        assert (far.fabric, near.fabric) == ("tcp", "ipc")
        plain = await b.register(bytearray(4096))
        theirs = await c.register(device.zeros(4096))
        await a.write(ours, near.region(theirs.to_bytes()))
        for call in (a.write, lambda local, remote: a.read(remote, local)):
            with pytest.raises(RegistrationError, match="don't reach"):
                call(ours, far.region(plain.to_bytes()))
        # The other way round, by its descriptor.
        back = await b.accept()
        with pytest.raises(RemoteAccessError):
            await b.write(plain, back.region(ours.to_bytes()))
