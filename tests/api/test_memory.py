# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""register, slices, views, descriptors, publish and lookup."""

import array
import asyncio
import gc
import mmap
import random

import msgspec
import numpy as np
import pytest

from helpers.engines import eventually, open_pair, pattern
from pplx_async import BrokenResourceError, ClosedResourceError, LeakWarning, MemoryRegion, RemoteRegion, wire

pytestmark = pytest.mark.asyncio(loop_scope="module")


BUFFERS = {
    "bytearray": lambda: bytearray(pattern(4096)),
    "memoryview": lambda: memoryview(bytearray(pattern(4096)))[:],
    "memoryview part": lambda: memoryview(bytearray(pattern(5000)))[77 : 77 + 4096],
    "mmap": lambda: _mmap(pattern(4096)),
    "array": lambda: array.array("I", pattern(4096).tobytes()),
    "numpy 1-d": lambda: pattern(4096),
    "numpy 3-d float": lambda: pattern(4096).view(np.float32).reshape(4, 16, 16).copy(),
    "numpy part": lambda: pattern(10_000)[1000:5096],
    "numpy complex": lambda: pattern(4096).view(np.uint8).reshape(64, 64),
}


def _mmap(data):
    mapped = mmap.mmap(-1, len(data))
    mapped[:] = data.tobytes()
    return mapped


@pytest.mark.parametrize("kind", BUFFERS)
async def test_every_kind_of_buffer_as_source_and_target(pair, kind):
    buffer = BUFFERS[kind]()
    before = bytes(memoryview(buffer).cast("B"))
    region = await pair.source(buffer)
    assert isinstance(region, MemoryRegion)
    assert region.nbytes == len(region) == 4096
    assert region.access == "both"
    assert region.is_open
    assert region.register_seconds > 0
    target = await pair.target(4096)
    await pair.a.write(region, target.remote)
    assert target.array.tobytes() == before
    back = await pair.target(BUFFERS[kind]())
    data = pattern(4096, 9)
    source = await pair.source(data)
    await pair.a.write(source, back.remote)
    assert bytes(memoryview(back.array).cast("B")) == data.tobytes()


@pytest.mark.parametrize("buffer", [b"immutable", memoryview(b"x"), np.frombuffer(b"abcdef", dtype=np.uint8)])
async def test_read_only_buffers(pair, buffer):
    region = await pair.source(buffer)
    assert region.access == "read"
    for access in ("write", "both"):
        with pytest.raises(ValueError, match="the buffer is read-only"):
            await pair.a.register(buffer, access=access)
    target = await pair.target(region.nbytes)
    await pair.a.write(region, target.remote)
    assert target.array.tobytes() == bytes(buffer)


@pytest.mark.parametrize(
    ("buffer", "error", "message"),
    [
        (bytearray(), ValueError, "empty"),
        (np.zeros((10, 0)), ValueError, "empty"),
        (np.zeros(100)[::2], ValueError, "not C-contiguous"),
        (np.zeros((5, 5)).T[1:], ValueError, "not C-contiguous"),
        (np.asfortranarray(np.zeros((5, 6))), ValueError, "not C-contiguous"),
        ("text", TypeError, None),
        (5, TypeError, None),
        (None, TypeError, None),
        ([1, 2], TypeError, None),
    ],
    ids=repr,
)
async def test_what_cannot_be_registered(pair, buffer, error, message):
    before = pair.a.stats().regions
    with pytest.raises(error, match=message):
        await pair.a.register(buffer)
    assert pair.a.stats().regions == before


@pytest.mark.parametrize("access", ["rw", "", 3, "BOTH"])
async def test_unknown_access_is_refused(pair, access):
    with pytest.raises((ValueError, TypeError)):
        await pair.a.register(bytearray(5), access=access)


async def test_access_none_is_for_our_own_operations(pair):
    region = await pair.source(bytearray(b"secret"), access="none")
    with pytest.raises(ValueError, match='access="none"'):
        region.to_bytes()
    with pytest.raises(ValueError, match='access="none"'):
        pair.a.publish("secret", region)
    target = await pair.target(6)
    await pair.a.write(region, target.remote)
    assert target.array.tobytes() == b"secret"


async def test_region_holds_its_buffer(pair):
    buffer = bytearray(100)
    region = await pair.a.register(buffer)
    with pytest.raises(BufferError):
        buffer.extend(b"more")
    await region.close()
    buffer.extend(b"more")
    assert not region.is_open
    await region.close()
    async with await pair.a.register(buffer) as region:
        assert region.is_open
    assert not region.is_open
    with pytest.raises(ClosedResourceError, match="the region is closed"):
        region.to_bytes()


async def test_stats_count_regions(pair):
    before = pair.a.stats()
    regions = await asyncio.gather(*(pair.a.register(bytearray(1000)) for _ in range(20)))
    assert pair.a.stats().regions == before.regions + 20
    assert pair.a.stats().registered_nbytes == before.registered_nbytes + 20_000
    await asyncio.gather(*(region.close() for region in regions))
    assert pair.a.stats().regions == before.regions


async def test_forgotten_region_warns_and_is_deregistered(pair):
    before = pair.a.stats().regions
    buffer = bytearray(10)
    region = await pair.a.register(buffer)
    assert region.is_open
    with pytest.warns(LeakWarning, match="never closed"):  # noqa: PT031
        del region
        gc.collect()
    await eventually(lambda: pair.a.stats().regions == before, "it is deregistered")
    buffer.extend(b"free again")


async def test_slice_keeps_the_region_alive(pair):
    data = pattern(100)
    piece = (await pair.a.register(data))[10:20]
    gc.collect()
    target = await pair.target(10)
    await pair.a.write(piece, target.remote)
    assert np.array_equal(target.array, data[10:20])
    with pytest.warns(LeakWarning):  # noqa: PT031
        del piece
        gc.collect()
    await asyncio.sleep(0.02)


# ---- slices and views ----


async def test_slices_are_checked(pair):
    region, target = await pair.source(100), await pair.target(100)
    for memory in (region, target.remote):
        assert memory[:].nbytes == 100
        assert memory[10:].nbytes == 90
        assert memory[-10:].nbytes == 10
        assert memory[:-1].nbytes == 99
        assert memory[100:].nbytes == memory[0:0].nbytes == 0
        assert memory[np.int64(3) : np.uint8(9)].nbytes == 6
        assert memory[20:60][10:20].offset == 30
        for bad in (
            slice(0, 101),
            slice(101, None),
            slice(5, 4),
            slice(-101, None),
            slice(0, 2**64),
            slice(2**64, None),
        ):
            with pytest.raises(IndexError, match="not inside"):
                memory[bad]
        with pytest.raises(IndexError):
            memory[20:60][0:41]
        with pytest.raises(ValueError, match="no step"):
            memory[0:10:2]
        with pytest.raises(TypeError, match="slice"):
            memory[5]
        with pytest.raises(TypeError):
            memory["a"]
        with pytest.raises((TypeError, AttributeError)):
            memory[0.0:1.0]


@pytest.mark.parametrize(
    ("dtype", "size"), [(4, 4), ("f", 4), ("d", 8), ("q", 8), ("B", 1), ("f4", 4), (np.float16, 2), (np.dtype("i8"), 8)]
)
async def test_views_count_in_elements(pair, dtype, size):
    region, target = await pair.source(400), await pair.target(400)
    for memory in (region, target.remote):
        view = memory.view(dtype)
        assert view.itemsize == size
        assert len(view) == 400 // size
        assert view[3:10].nbytes == 7 * size
        assert view[3:10].offset == 3 * size
        assert view[-2:].offset == 400 - 2 * size
        assert view[:].nbytes == 400
        with pytest.raises(IndexError):
            view[0 : 400 // size + 1]
        with pytest.raises(ValueError, match="no step"):
            view[::2]
        with pytest.raises(TypeError):
            view[1]
    await pair.a.write(region.view(dtype)[1:3], target.remote.view(dtype)[5:7])
    assert np.array_equal(target.array[5 * size : 7 * size], pattern(400, 1)[size : 3 * size])
    assert np.count_nonzero(target.array) == 2 * size


async def test_views_that_do_not_fit(pair):
    region = await pair.source(10)
    with pytest.raises(ValueError, match="no whole number"):
        region.view(4)
    for bad in (0, -1):
        with pytest.raises(ValueError, match="at least 1 B"):
            region.view(bad)
    with pytest.raises(TypeError):
        region.view("no such type")


# ---- descriptors ----


async def test_descriptor_crosses_as_bytes(pair):
    region = await pair.b.register(bytearray(100), access="write")
    descriptor = region.to_bytes()
    assert type(descriptor) is bytes
    assert len(descriptor) <= 256
    for form in (bytes, bytearray, memoryview):
        remote = pair.ab.region(form(descriptor))
        assert isinstance(remote, RemoteRegion)
        assert remote.nbytes == len(remote) == 100
        assert remote.peer is pair.ab
        assert pair.a.remote_region(form(descriptor)).nbytes == 100
    await region.close()


async def test_descriptor_of_somebody_else(pair):
    async with await pair.a.register(bytearray(10)) as region:
        with pytest.raises(ValueError, match="connect to that engine"):
            pair.ab.region(region.to_bytes())
        with pytest.raises(ValueError, match="not connected"):
            pair.a.remote_region(region.to_bytes())
    counter = pair.a.counter()
    with pytest.raises(ValueError, match="connect to that engine"):
        pair.ab.counter(counter.to_bytes())
    await counter.close()


async def test_descriptors_are_not_mixed_up(pair):
    counter, _ = pair.counter()
    target = await pair.target(10)
    with pytest.raises(ValueError, match="descriptor of a counter"):
        pair.ab.region(counter.to_bytes())
    with pytest.raises(ValueError, match="descriptor of a region"):
        pair.ab.counter(target.region.to_bytes())


async def test_hostile_descriptors_give_value_error_and_nothing_else(pair):
    target = await pair.target(100)
    counter, _ = pair.counter()
    rng = random.Random(11)
    region_bytes, counter_bytes = target.region.to_bytes(), counter.to_bytes()
    hostile = [b"", b"PPLX", b"PPLX\x01", b"PPLX\x02" + region_bytes[5:], bytes(256), bytes(300), b"\xff" * 100]
    for original in (region_bytes, counter_bytes):
        hostile += [original[:n] for n in range(len(original))]
        hostile += [original + b"\0", original * 2]
        for _ in range(300):
            changed = bytearray(original)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            hostile.append(bytes(changed))
    accepted = 0
    for data in hostile:
        for make in (pair.ab.region, pair.ab.counter, pair.a.remote_region):
            try:
                make(data)
            except (ValueError, BrokenResourceError):  # the latter: a flipped id of a region that was closed
                continue
            accepted += 1  # a flipped bit in a key or a number: the NIC's to refuse
    assert accepted < len(hostile)
    for bad in (None, 5, "text", [1]):
        with pytest.raises((TypeError, ValueError)):
            pair.ab.region(bad)
    await pair.write(10)


async def test_descriptor_with_another_number_of_keys_is_refused(pair):
    target = await pair.target(100)
    parsed = wire.decode_region(target.region.to_bytes())
    forged = wire.encode_region(
        wire.RegionDescriptor(
            engine=parsed.engine, region=parsed.region + 10**6, nbytes=100, access=3, keys=parsed.keys * 2
        )
    )
    with pytest.raises(ValueError, match="keys"):
        pair.ab.region(forged)


async def test_descriptor_that_tells_otherwise_of_a_known_region_is_refused(pair):
    target = await pair.target(100)
    parsed = wire.decode_region(target.region.to_bytes())
    (key, base), *others = parsed.keys
    for changed in ({"nbytes": 10}, {"access": 1}, {"keys": (wire.RemoteKey(key ^ 1, base), *others)}):
        forged = wire.encode_region(msgspec.structs.replace(parsed, **changed))
        with pytest.raises(ValueError, match="tells otherwise"):
            pair.ab.region(forged)
    assert pair.ab.region(target.region.to_bytes()).nbytes == 100


# ---- names ----


async def test_publish_and_lookup(pair):
    data = pattern(100)
    source, target = await pair.source(data), await pair.target(100)
    pair.b.publish("weights/0", target.region)
    remote = await pair.ab.lookup("weights/0")
    assert isinstance(remote, RemoteRegion)
    await pair.a.write(source, remote)
    assert np.array_equal(target.array, data)
    assert all(r.nbytes == 100 for r in await asyncio.gather(*(pair.ab.lookup("weights/0") for _ in range(50))))
    other = await pair.target(7)
    pair.b.publish("weights/0", other.region)
    assert (await pair.ab.lookup("weights/0")).nbytes == 7
    pair.b.unpublish("weights/0")
    pair.b.unpublish("never there")
    with pytest.raises(KeyError, match="weights/0"):
        await pair.ab.lookup("weights/0")


async def test_names_that_cannot_be(pair):
    for name in ("", "x" * 129):
        with pytest.raises(ValueError):
            await pair.ab.lookup(name)
    with pytest.raises(KeyError):
        await pair.ab.lookup("ü" * 100)
    await pair.write(10)


async def test_publishing_another_engines_region_is_refused(pair):
    source = await pair.source(10)
    with pytest.raises(ValueError, match="another engine"):
        pair.b.publish("x", source)


async def test_closed_region_is_no_longer_found(pair):
    target = await pair.target(10)
    pair.b.publish("short-lived", target.region)
    await target.region.close()
    with pytest.raises(KeyError):
        await pair.ab.lookup("short-lived")


async def test_lookup_at_a_peer_that_leaves(fabric):
    async with open_pair(fabric) as pair:
        await pair.ab.close()
        with pytest.raises(ClosedResourceError):
            await pair.ab.lookup("anything")
