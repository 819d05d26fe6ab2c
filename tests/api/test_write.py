# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""TransferEngine.write: bytes arrive, are counted once, and mistakes are told before anything moves."""

import asyncio

import numpy as np
import pytest

from helpers.engines import open_pair, pattern
from pplx_async import ClosedResourceError, QueueFull, TransferEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
LARGE = 128 << 10  # not posted where it is submitted


@pytest.mark.parametrize("nbytes", [1, 2, 7, 63, 64, 65, 4095, 4097, 100_003, 262_144, 8 * MIB])
async def test_bytes_arrive_and_count_once(pair, nbytes):
    data = pattern(nbytes, nbytes)
    source, target = await pair.source(data), await pair.target(nbytes)
    counter, remote = pair.counter()
    transfer = pair.a.write(source, target.remote, counter=remote)
    assert transfer.nbytes == nbytes
    assert transfer.operation == "write"
    assert await transfer == nbytes
    assert transfer.settled
    assert transfer.released
    assert await counter.wait(1) == 1
    assert np.array_equal(target.array, data)
    assert counter.value == 1


async def test_awaited_write_is_visible_without_a_counter(pair):
    data = pattern(70_001)
    source, target = await pair.source(data), await pair.target(70_001)
    assert await pair.a.write(source, target.remote) == 70_001
    assert np.array_equal(target.array, data)


async def test_zero_bytes_count_and_change_nothing(pair):
    source, target = await pair.source(16), await pair.target(16)
    counter, remote = pair.counter()
    assert await pair.a.write(source[3:3], target.remote[16:16], counter=remote) == 0
    assert await counter.wait(1) == 1
    assert await pair.a.write(source[0:0], target.remote[0:0]) == 0
    assert not target.array.any()


async def test_slices_hit_exactly_their_range(pair):
    data = pattern(1000)
    source, target = await pair.source(data), await pair.target(1000)
    await pair.a.write(source[10:77], target.remote[933:])
    expected = np.zeros(1000, dtype=np.uint8)
    expected[933:] = data[10:77]
    assert np.array_equal(target.array, expected)


async def test_slice_of_a_slice(pair):
    data = pattern(1000)
    source, target = await pair.source(data), await pair.target(1000)
    await pair.a.write(source[100:900][50:60], target.remote[500:][1:12][0:10])
    expected = np.zeros(1000, dtype=np.uint8)
    expected[501:511] = data[150:160]
    assert np.array_equal(target.array, expected)


async def test_many_writes_in_flight_at_once(pair):
    count, size = 500, 1000
    data = pattern(count * size)
    source, target = await pair.source(data), await pair.target(count * size)
    counter, remote = pair.counter()
    transfers = [
        pair.a.write(source[i * size : (i + 1) * size], target.remote[i * size : (i + 1) * size], counter=remote)
        for i in range(count)
    ]
    assert await asyncio.gather(*transfers) == [size] * count
    assert await counter.wait(count) == count
    assert np.array_equal(target.array, data)


async def test_both_directions_at_once(pair):
    ours, theirs = pattern(3 * MIB, 1), pattern(3 * MIB, 2)
    source, target = await pair.source(ours), await pair.target(3 * MIB)
    back_array = np.zeros(3 * MIB, dtype=np.uint8)
    async with await pair.b.register(theirs) as b_source, await pair.a.register(back_array) as a_target:
        back = pair.ba.region(a_target.to_bytes())
        await asyncio.gather(pair.a.write(source, target.remote), pair.b.write(b_source, back))
    assert np.array_equal(target.array, ours)
    assert np.array_equal(back_array, theirs)


async def test_detached_write_finishes_although_its_await_was_cancelled(pair):
    data = pattern(4 * MIB)
    source, target = await pair.source(data), await pair.target(4 * MIB)
    counter, remote = pair.counter()
    transfer = pair.a.write(source, target.remote, counter=remote, detach=True)
    assert transfer.detached
    transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert await counter.wait(1) == 1
    assert np.array_equal(target.array, data)


async def test_lengths_must_be_equal(pair):
    source, target = await pair.source(100), await pair.target(100)
    with pytest.raises(ValueError, match=r"lengths differ: 10 B here, 11 B at peer"):
        pair.a.write(source[0:10], target.remote[0:11])
    assert not target.array.any()


@pytest.mark.parametrize("bad", [None, b"bytes", 5])
async def test_arguments_must_be_slices(pair, bad):
    source, target = await pair.source(10), await pair.target(10)
    with pytest.raises(TypeError):
        pair.a.write(bad, target.remote)
    with pytest.raises(TypeError):
        pair.a.write(source, bad)
    with pytest.raises(TypeError):
        pair.a.write(source, target.remote, counter=5)


async def test_read_only_region_refuses_writes(pair):
    source, target = await pair.source(10), await pair.target(10, access="read")
    with pytest.raises(ValueError, match="did not allow writes"):
        pair.a.write(source, target.remote)


async def test_region_of_another_engine_is_refused(pair):
    source, target = await pair.source(10), await pair.target(10)
    with pytest.raises(ValueError, match="another engine"):
        pair.b.write(source, target.remote)
    with pytest.raises(ValueError, match="another engine"):
        pair.a.write(target.region, target.remote)


async def test_counter_of_another_peer_is_refused(pair):
    source, target = await pair.source(10), await pair.target(10)
    counter = pair.a.counter()
    with pytest.raises(ValueError, match="the counter belongs to peer"):
        pair.a.write(source, target.remote, counter=pair.ba.counter(counter.to_bytes()))
    await counter.close()


async def test_closed_source_is_refused(pair):
    source, target = await pair.source(10), await pair.target(10)
    piece = source[0:5]
    await source.close()
    with pytest.raises(ClosedResourceError, match="the local region is closed"):
        pair.a.write(piece, target.remote[0:5])


async def test_source_closed_in_mid_flight_waits_for_the_write(pair):
    data = pattern(4 * MIB)
    source, target = await pair.source(data), await pair.target(4 * MIB)
    transfer = pair.a.write(source, target.remote)
    await source.close()
    assert transfer.released
    assert await transfer == 4 * MIB
    assert np.array_equal(target.array, data)


async def test_closed_engine_is_refused(fabric):
    async with open_pair(fabric) as pair:
        source, target = await pair.source(10), await pair.target(10)
        await pair.a.close()
        with pytest.raises(ClosedResourceError):
            pair.a.write(source, target.remote)
        with pytest.raises(ClosedResourceError):
            await pair.a.register(bytearray(5))
        with pytest.raises(ClosedResourceError):
            pair.a.stats()


async def test_engine_before_it_is_opened_is_refused():
    engine = TransferEngine(fabric="loopback")
    with pytest.raises(ClosedResourceError, match="not open yet"):
        await engine.connect("127.0.0.1:1")
    with pytest.raises(ClosedResourceError, match="not open yet"):
        engine.batch()
    await engine.close()
    with pytest.raises(RuntimeError, match="opened once"):
        await engine.open()


async def test_queue_full_and_drain(fabric):
    async with open_pair(fabric, max_pending=8) as pair:
        source, target = await pair.source(LARGE), await pair.target(LARGE)
        transfers = []
        with pytest.raises(QueueFull, match="max_pending is 8"):
            for _ in range(1000):
                transfers.append(pair.a.write(source, target.remote))
        assert len(transfers) == 8
        await pair.a.drain()
        assert pair.a.stats().inflight <= 4
        transfers.append(pair.a.write(source, target.remote))
        assert await asyncio.gather(*transfers) == [LARGE] * 9
        await pair.a.drain()


async def test_drain_between_writes_never_fails(fabric):
    async with open_pair(fabric, max_pending=16, ring_entries=4) as pair:
        source, target = await pair.source(64), await pair.target(64)
        counter, remote = pair.counter()
        for _ in range(300):
            pair.a.write(source, target.remote, counter=remote)
            await pair.a.drain()
        assert await counter.wait(300) == 300
