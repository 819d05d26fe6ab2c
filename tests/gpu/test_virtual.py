# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of virtual mappings (torch's expandable_segments) over ipc; what other kinds do, too, is told beside."""

import contextlib
import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.cuda import CHUNK
from helpers.process import helper
from pplx_async import CompletionError, RegistrationError, TransferEngine

pytestmark = pytest.mark.asyncio

# Nobody is to be lost here, on however busy a machine.
PATIENT = {"peer_timeout": 30.0, "drain_timeout": 20.0, "connect_timeout": 30.0}


@contextlib.asynccontextmanager
async def both(library, **there):
    """Open an engine here and have one in another process, to be opened by `meet`; that one is closed first."""
    async with (
        helper("gpu_peer", json.dumps({"library": library} | PATIENT | there)) as other,
        TransferEngine(fabric="ipc", cuda_library=library, **PATIENT) as engine,
    ):
        yield engine, other
        await other.ask("close")


@contextlib.asynccontextmanager
async def two_here(library):
    async with (
        TransferEngine(fabric="ipc", cuda_library=library, **PATIENT) as a,
        TransferEngine(fabric="ipc", cuda_library=library, **PATIENT) as b,
    ):
        yield a, b, await a.connect(b.address)


async def meet(engine, other, nbytes):
    peer = await engine.connect(await other.ask("open", nbytes=nbytes, kinds=["virtual"]))
    await other.ask("accept")
    return await peer.lookup("virtual"), await peer.lookup_counter("counter")


async def write_and_read(library, device, ordinal):
    """Between virtual mappings here and on that GPU in another process."""
    nbytes = 9 * CHUNK + 12345
    async with both(library, device=ordinal) as (engine, other):
        remote, counter = await meet(engine, other, nbytes)
        content = np.random.default_rng(1).bytes(nbytes)
        memory = device.virtual(nbytes, at=CHUNK - 512)
        memory.set(content)
        async with await engine.register(memory) as local:
            await engine.write(local, remote, counter=counter)
            assert await other.ask("wait", count=1, kind="virtual") == hashlib.sha256(content).hexdigest()
            digest = await other.ask("fill", kind="virtual", seed=2)
            await engine.read(remote, local)
            assert hashlib.sha256(memory.get()).hexdigest() == digest
        memory.free()


async def test_many_chunks_lie_in_a_row(library, device):
    await write_and_read(library, device, 0)


async def test_from_one_gpu_to_another(library, device, second):
    await write_and_read(library, device, second.ordinal)


async def test_a_peer_maps_every_chunk_and_lets_go_of_it(fake, device):
    driver = device.driver
    async with both(fake) as (engine, other):
        local = await engine.register(device.zeros(4 * CHUNK))
        before, imported = driver.fake_cuda_mapped(), driver.fake_cuda_imported()
        remote, _ = await meet(engine, other, 4 * CHUNK)
        await engine.write(local, remote)
        assert driver.fake_cuda_imported() == imported + 5
        assert driver.fake_cuda_mapped() == before + 5
        await other.ask("revoke", kind="virtual")
        assert driver.fake_cuda_mapped() == before


@pytest.mark.parametrize("call", ["cuMemExportToShareableHandle", "cuMemRetainAllocationHandle"])
async def test_whose_owner_can_not_share_it_copies(fake, device, monkeypatch, call):
    memory = device.virtual(CHUNK)
    async with both(fake) as (engine, other):
        counter = engine.counter()
        engine.publish("virtual", await engine.register(memory))
        engine.publish("counter", counter)
        await engine.connect(await other.ask("open", nbytes=CHUNK, kinds=["gpu"]))
        await other.ask("accept")
        digest = await other.ask("fill", kind="gpu", seed=3)
        monkeypatch.setenv("FAKE_CUDA_FAIL", f"{call}:999")
        await other.ask("write", kind="gpu", remote="virtual", counter="counter")
        await counter.wait(1)
        assert hashlib.sha256(memory.get()).hexdigest() == digest
        monkeypatch.setenv("FAKE_CUDA_FAIL", "")
    memory.free()


@pytest.mark.parametrize(
    "call", ["cuMemImportFromShareableHandle", "cuMemAddressReserve", "cuMemMap", "cuMemSetAccess"]
)
async def test_who_can_not_map_it_has_the_owner_copy(fake, device, monkeypatch, call):
    nbytes = 3 * CHUNK
    async with both(fake) as (engine, other):
        memory = device.zeros(nbytes)
        content = np.random.default_rng(1).bytes(nbytes)
        memory.set(content)
        local, mapped = await engine.register(memory), device.driver.fake_cuda_mapped()
        remote, counter = await meet(engine, other, nbytes)
        monkeypatch.setenv("FAKE_CUDA_FAIL", f"{call}:999")
        await engine.write(local, remote, counter=counter)
        assert await other.ask("wait", count=1, kind="virtual") == hashlib.sha256(content).hexdigest()
        assert device.driver.fake_cuda_mapped() == mapped


async def test_regions_may_share_a_chunk(library, device):
    """As small tensors do; each is closed for itself."""
    nbytes = CHUNK // 2 - 4096
    memory = device.virtual(2 * nbytes, at=0)
    parts = {
        name: SimpleNamespace(
            __cuda_array_interface__={"version": 3, "shape": (nbytes,), "typestr": "|u1", "data": (address, False)}
        )
        for name, address in (("left", memory.address), ("right", memory.address + nbytes))
    }
    async with both(library) as (engine, other):
        counter = engine.counter()
        engine.publish("counter", counter)
        regions = {name: await engine.register(part) for name, part in parts.items()}
        for name, region in regions.items():
            engine.publish(name, region)
        await engine.connect(await other.ask("open", nbytes=nbytes, kinds=["gpu"]))
        await other.ask("accept")
        digests = {}
        for count, name in enumerate(parts, 1):
            digests[name] = await other.ask("fill", kind="gpu", seed=count)
            await other.ask("write", kind="gpu", remote=name, counter="counter")
            await counter.wait(count)
        content = memory.get()
        assert hashlib.sha256(content[:nbytes]).hexdigest() == digests["left"]
        assert hashlib.sha256(content[nbytes:]).hexdigest() == digests["right"]
        await regions["left"].close()
        digest = await other.ask("fill", kind="gpu", seed=9)
        await other.ask("write", kind="gpu", remote="right", counter="counter")
        await counter.wait(3)
        assert hashlib.sha256(memory.get()[nbytes:]).hexdigest() == digest
    memory.free()


async def test_two_engines_of_one_process(library, device):
    content = np.random.default_rng(1).bytes(3 * CHUNK)
    here, there = device.virtual(len(content)), device.virtual(len(content))
    here.set(content)
    async with two_here(library) as (a, b, peer):
        local, region = await a.register(here), await b.register(there)
        await a.write(local, peer.region(region.to_bytes()))
        assert there.get() == content
    here.free()
    there.free()


async def test_other_gpus_chunks_are_no_peers_and_ours_where_we_have_access(library, device, second):
    content = np.random.default_rng(1).bytes(CHUNK)
    near, far = device.virtual(CHUNK, at=0), second.virtual(CHUNK, at=0)
    with second.current():  # the first GPU has no access
        far.set(content)
    async with two_here(library) as (a, b, peer):
        region = await b.register(near)
        async with await a.register(device.zeros(4096)):
            with pytest.raises(RegistrationError, match="does not all lie on GPU 0"):
                await a.register(far)
            async with await a.register(far, access="none") as local:
                with pytest.raises(CompletionError):
                    await a.write(local, peer.region(region.to_bytes()))
                device.give_access(far.start, CHUNK)
                await a.write(local, peer.region(region.to_bytes()))
                assert near.get() == content
    near.free()
    far.free()


async def test_no_kernel_copies_what_lies_on_two_gpus(fake, device, second):
    """It would end with a fault where this GPU has no access to one of the chunks."""
    page, pages = 4096, 2 * CHUNK // 4096
    here, there = device.virtual(2 * CHUNK, at=0, owners=[device, second]), device.virtual(2 * CHUNK, at=0)
    content = np.random.default_rng(1).bytes(2 * CHUNK)
    here.set(content)
    order = np.random.default_rng(2).permutation(pages)
    async with two_here(fake) as (a, b, peer):
        region = await b.register(there)
        with pytest.raises(RegistrationError, match="does not all lie on GPU 0"):
            await a.register(here)
        launched = device.driver.fake_cuda_launched()
        async with await a.register(here, access="none") as local:
            await a.write_pages(
                local,
                peer.region(region.to_bytes()),
                page_nbytes=page,
                local_pages=order,
                remote_pages=np.arange(pages),
            )
        assert device.driver.fake_cuda_launched() == launched
        assert there.get() == np.frombuffer(content, dtype=np.uint8).reshape(pages, page)[order].tobytes()
    here.free()
    there.free()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"nbytes": CHUNK, "handle_types": 0}, "cudaMallocAsync.*POSIX_FILE_DESCRIPTOR.*expandable_segments"),
        ({"nbytes": 3 * CHUNK, "at": 0, "chunks": [CHUNK, 2 * CHUNK]}, "differ in size"),
        (
            {"nbytes": 3 * CHUNK, "at": 0, "chunks": [CHUNK, CHUNK], "reserved": 8 * CHUNK},
            "nothing is mapped in a part",
        ),
        ({"nbytes": 254 * CHUNK, "at": 0}, "more than 253 chunks; register it in parts"),
    ],
    ids=["made for nobody else", "chunks of two sizes", "not all mapped", "too many chunks"],
)
async def test_what_can_not_be_shared_is_refused_unless_no_peer_may_reach_it(library, device, options, why):
    async with TransferEngine(fabric="ipc", cuda_library=library) as engine:
        memory = device.virtual(**options)
        with pytest.raises(RegistrationError, match=why):
            await engine.register(memory)
        async with await engine.register(memory, access="none"):
            pass
    memory.free()
