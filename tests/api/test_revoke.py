# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""MemoryRegion.revoke: when it returns, no peer can touch the memory."""

import asyncio
import time

import numpy as np
import pytest

from helpers.engines import connect, engine_on, eventually, open_pair, pattern
from pplx_async import BrokenResourceError, ClosedResourceError, CompletionError, PeerLost
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_later_operations_are_refused_at_the_source(pair):
    source, target = await pair.source(100), await pair.target(100)
    other = await pair.target(100)
    await target.region.revoke()
    assert not target.region.is_open
    for refused in (
        lambda: pair.a.write(source, target.remote),
        lambda: pair.a.read(target.remote, source),
        lambda: pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=[0], remote_pages=[0]),
        lambda: pair.a.batch().write(source, target.remote),
    ):
        with pytest.raises(BrokenResourceError, match="revoked by peer"):
            refused()
    assert not target.array.any()
    await pair.a.write(source, other.remote)
    assert np.array_equal(other.array, pattern(100, 1))


async def test_descriptor_that_comes_after_the_revoke_is_refused(pair):
    region = await pair.b.register(bytearray(10))
    descriptor = region.to_bytes()
    await region.revoke()
    with pytest.raises(BrokenResourceError, match="revoked"):
        pair.ab.region(descriptor)
    with pytest.raises(ClosedResourceError):
        region.to_bytes()
    await region.revoke()
    await region.close()


async def test_batch_of_before_is_refused(pair):
    source, target = await pair.source(100), await pair.target(100)
    batch = pair.a.batch()
    batch.write(source, target.remote)
    await target.region.revoke()
    with pytest.raises(BrokenResourceError):
        batch.submit()
    assert not target.array.any()


async def test_writers_in_full_swing_change_nothing_afterwards(pair):
    size = 64 << 10
    data = pattern(size)
    source, target = await pair.source(data), await pair.target(size)
    stop = asyncio.Event()
    written = 0

    async def writer():
        nonlocal written
        while not stop.is_set():
            try:
                written += await pair.a.write(source, target.remote)
            except (BrokenResourceError, CompletionError):
                return

    tasks = [asyncio.create_task(writer()) for _ in range(8)]
    await eventually(lambda: written > 20 * size, "writers are at work")
    await target.region.revoke()
    target.array[:] = 0
    await asyncio.sleep(0.05)
    assert not target.array.any()
    stop.set()
    await asyncio.gather(*tasks)
    assert pair.is_healthy


async def test_own_operations_are_waited_for(pair):
    data = pattern(4 << 20)
    source, target = await pair.source(data), await pair.target(4 << 20)
    transfer = pair.a.write(source, target.remote)
    await source.revoke()
    assert transfer.released
    assert await transfer == 4 << 20


async def test_revoke_without_peers(fabric):
    async with engine_on(fabric) as engine:
        region = await engine.register(bytearray(10))
        await region.revoke()
        assert engine.stats().regions == 0


async def test_many_at_once(pair):
    regions = [await pair.b.register(bytearray(100)) for _ in range(50)]
    await asyncio.gather(*(region.revoke() for region in regions))
    assert pair.b.stats().regions == 0
    await pair.write(10)


async def test_peer_that_does_not_answer_is_cut_off(fabric):
    """Its engine lives and can still write; its program is stuck and doesn't confirm."""
    options = {"drain_timeout": 1.0, "b": {"revoke_timeout": 0.2}}
    async with open_pair(fabric, **options) as pair, engine_on(fabric, name="third") as third:
        cb, bc = await connect(third, pair.b)
        source, target = await pair.source(1000), await pair.target(1000)

        async def no_answer(fence):
            await asyncio.sleep(3600)

        pair.ab._answer_fence = no_answer
        start = time.monotonic()
        await target.region.revoke()
        assert 0.15 < time.monotonic() - start < 5
        target.array[:] = 0
        assert not pair.ba.is_open
        assert isinstance(pair.ba.lost, PeerLost)
        with pytest.raises((CompletionError, BrokenResourceError, ClosedResourceError)):
            await pair.a.write(source, target.remote)
        assert not target.array.any()
        # The others are undisturbed.
        assert cb.is_open
        assert bc.is_open
        digits = np.zeros(10, dtype=np.uint8)
        async with (
            await pair.b.register(digits) as region,
            await third.register(bytearray(b"0123456789")) as words,
        ):
            await third.write(words, cb.region(region.to_bytes()))
        assert digits.tobytes() == b"0123456789"


async def test_what_a_peer_has_in_flight_when_it_is_cut_off_never_lands():
    """It is delayed for longer than the revoke waits."""
    delayed = FaultPlan(delay_us=(1_000_000, 1_200_000))
    async with open_pair("loopback", faults=delayed, b={"faults": FaultPlan(), "revoke_timeout": 0.05}) as pair:
        source, target = await pair.source(4096), await pair.target(4096)
        transfers = [pair.a.write(source, target.remote) for _ in range(50)]
        await eventually(lambda: pair.ab.stats().links[0].inflight >= 50, "they are in flight")
        start = time.monotonic()
        await target.region.revoke()
        assert 0.05 <= time.monotonic() - start < 5
        assert not target.array.any()
        target.array[:] = 7
        for result in await asyncio.gather(*transfers, return_exceptions=True):
            assert isinstance(result, CompletionError), result
        await asyncio.sleep(1.3)
        assert (target.array == 7).all()
        assert isinstance(pair.ba.lost, PeerLost)


async def test_cancelled_revoke_goes_on(pair):
    source, target = await pair.source(100), await pair.target(100)
    task = asyncio.create_task(target.region.revoke())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: pair.b.stats().regions == 0, "the region is deregistered")
    with pytest.raises(BrokenResourceError):
        pair.a.write(source, target.remote)
