# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Batch, scatter and notify: many targets, one request, one await."""

import asyncio

import numpy as np
import pytest

from helpers.engines import connect, engine_on, open_pair, pattern
from pplx_async import ClosedResourceError, QueueFull

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_batch_of_everything(pair):
    data = pattern(10_000)
    source, one, two = await pair.source(data), await pair.target(10_000), await pair.target(10_000)
    (first, remote_first), (second, remote_second) = pair.counter(), pair.counter()
    batch = pair.a.batch()
    assert batch.nbytes == 0
    batch.write(source[0:100], one.remote[50:150], counter=remote_first)
    batch.write(source[100:101], two.remote[0:1])
    pages = batch.write_pages(
        source,
        two.remote,
        page_nbytes=1000,
        local_pages=[3, 4, 9],
        remote_pages=[5, 6, 1],
        counter=remote_second,
    )
    assert pages == 3
    batch.notify(remote_first)
    batch.notify(remote_second, 4)
    assert batch.nbytes == 3101
    assert not one.array.any()
    transfer = batch.submit()
    assert transfer.operation == "batch"
    assert transfer.nbytes == 3101
    assert batch.nbytes == 0
    assert await transfer == 3101
    assert await first.wait(2) == 2
    assert await second.wait(7) == 7
    expected = np.zeros(10_000, dtype=np.uint8)
    expected[50:150] = data[0:100]
    assert np.array_equal(one.array, expected)
    expected = np.zeros(10_000, dtype=np.uint8)
    expected[0] = data[100]
    expected[5000:7000] = data[3000:5000]
    expected[1000:2000] = data[9000:]
    assert np.array_equal(two.array, expected)


async def test_batch_is_one_request(pair):
    source, target = await pair.source(1000), await pair.target(1000)
    before = pair.a.stats().requests
    batch = pair.a.batch()
    for i in range(500):
        batch.write(source[i : i + 1], target.remote[i : i + 1])
    assert await batch.submit() == 500
    assert pair.a.stats().requests == before + 1
    assert np.array_equal(target.array[:500], pattern(1000, 1)[:500])


async def test_batch_can_be_used_again(pair):
    source, target = await pair.source(100), await pair.target(100)
    batch = pair.a.batch()
    for offset in (0, 40):
        batch.write(source[offset : offset + 40], target.remote[offset : offset + 40])
        assert await batch.submit() == 40
    assert await batch.submit() == 0
    assert np.array_equal(target.array[:80], pattern(100, 1)[:80])


async def test_what_is_refused_is_not_added(pair):
    source, target = await pair.source(100), await pair.target(100)
    counter, remote = pair.counter()
    batch = pair.a.batch()
    batch.write(source[0:10], target.remote[0:10], counter=remote)
    with pytest.raises(ValueError, match="lengths differ"):
        batch.write(source[10:20], target.remote[10:21], counter=remote)
    with pytest.raises(IndexError):
        batch.write_pages(
            source, target.remote, page_nbytes=10, local_pages=[1, 50], remote_pages=[1, 2], counter=remote
        )
    with pytest.raises(TypeError):
        batch.notify(None)
    foreign = pair.a.counter()
    with pytest.raises(ValueError, match="the counter belongs"):
        batch.write(source[0:10], target.remote[0:10], counter=pair.ba.counter(foreign.to_bytes()))
    await foreign.close()
    assert batch.nbytes == 10
    assert await batch.submit() == 10
    assert await counter.wait(1) == 1
    await asyncio.sleep(0.01)
    assert counter.value == 1
    assert not target.array[10:].any()


async def test_refused_pages_do_not_disturb_what_follows(pair):
    # A first entry that fails leaves an empty target behind, or takes it back: both must work.
    source, target = await pair.source(100), await pair.target(100)
    counter, remote = pair.counter()
    batch = pair.a.batch()
    with pytest.raises(IndexError):
        batch.write_pages(source, target.remote, page_nbytes=10, local_pages=[99], remote_pages=[0], counter=remote)
    batch.notify(remote, 3)
    batch.write(source[0:5], target.remote[0:5], counter=remote)
    assert await batch.submit() == 5
    assert await counter.wait(4) == 4


async def test_dropped_batch_has_no_effect(pair):
    source, target = await pair.source(100), await pair.target(100)
    batch = pair.a.batch()
    batch.write(source, target.remote)
    del batch
    await pair.write(10)
    assert not target.array.any()
    await source.close()  # nothing holds it


async def test_region_closed_between_adding_and_submitting(pair):
    source, target = await pair.source(100), await pair.target(100)
    batch = pair.a.batch()
    batch.write(source, target.remote)
    await source.close()
    with pytest.raises(ClosedResourceError):
        await batch.submit()
    assert not target.array.any()


async def test_peer_closed_between_adding_and_submitting(fabric):
    async with open_pair(fabric) as pair:
        source, target = await pair.source(100), await pair.target(100)
        batch = pair.a.batch()
        batch.write(source, target.remote)
        await pair.ab.close()
        with pytest.raises(ClosedResourceError):
            await batch.submit()


async def test_batch_counts_for_queue_full(fabric):
    async with open_pair(fabric, max_pending=1) as pair:
        source, target = await pair.source(1 << 20), await pair.target(1 << 20)
        batch = pair.a.batch()
        batch.write(source[0:10], target.remote[0:10])
        first = pair.a.write(source, target.remote)
        with pytest.raises(QueueFull):
            batch.submit()
        await first
        assert batch.nbytes == 10  # it is as it was
        assert await batch.submit() == 10


async def test_scatter_to_several_peers(fabric):
    count = 3
    async with open_pair(fabric) as pair:
        data = pattern(1000 * count)
        source = await pair.source(data)
        engines, targets, counters = [], [], []
        try:
            for number in range(count):
                engine = engine_on(fabric, name=f"receiver {number}")
                await engine.open()
                engines.append(engine)
                peer, back = await connect(pair.a, engine)
                array = np.zeros(1000 + number, dtype=np.uint8)
                region = await engine.register(array)
                counter = engine.counter(peer=back)
                remote = peer.counter(counter.to_bytes()) if number else None
                targets.append((array, peer.region(region.to_bytes()), remote))
                counters.append((counter, region))
            transfer = pair.a.scatter(
                (source[i * 1000 : (i + 1) * 1000], remote[i:], *([] if counter is None else [counter]))
                for i, (_, remote, counter) in enumerate(targets)
            )
            assert transfer.operation == "scatter"
            assert await transfer == 1000 * count
            for number, (array, _, remote) in enumerate(targets):
                assert np.array_equal(array[number:], data[number * 1000 : (number + 1) * 1000])
                assert not array[:number].any()
                counter, _ = counters[number]
                if remote is not None:
                    assert await counter.wait(1) == 1
                assert counter.value == (remote is not None)
            # One peer is gone: the others get theirs, and the await says who did not.
            await engines[1].close()
            with pytest.raises(Exception, match="receiver 1"):
                await pair.a.scatter([(source[0:1], remote[0:1]) for _, remote, _ in targets])
        finally:
            for engine in engines:
                await engine.close()


async def test_scatter_refuses_all_or_nothing(pair):
    source, target = await pair.source(100), await pair.target(100)
    with pytest.raises(ValueError, match="lengths differ"):
        pair.a.scatter([(source[0:10], target.remote[0:10]), (source[0:10], target.remote[0:11])])
    with pytest.raises((ValueError, TypeError)):
        pair.a.scatter([(source,)])
    await pair.write(10)
    assert not target.array.any()
    assert await pair.a.scatter([]) == 0


async def test_notify_one_and_several(pair):
    (one, remote_one), (two, remote_two) = pair.counter(), pair.counter()
    transfer = pair.a.notify(remote_one)
    assert transfer.operation == "notify"
    assert await transfer == 0
    await pair.a.notify([remote_one, remote_two, remote_one])
    assert await one.wait(3) == 3
    assert await two.wait(1) == 1
    with pytest.raises(TypeError):
        pair.a.notify(None)
    with pytest.raises(TypeError):
        pair.a.notify([1])
