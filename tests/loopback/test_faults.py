# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Faults of every kind that FaultPlan makes: nothing hangs, nothing is lost, nothing counts twice."""

import asyncio
import contextlib
import errno
import time

import numpy as np
import pytest

from helpers.engines import SOON, eventually, open_pair, pattern
from pplx_async import (
    BrokenResourceError,
    ClosedResourceError,
    CompletionError,
    PeerLost,
    PplxAsyncError,
    RegistrationError,
    RemoteAccessError,
    TransferEngine,
    UnreleasedMemory,
    WorkFlushed,
)
from pplx_async.testing import FaultPlan

ROUGH = FaultPlan(seed=5, reorder=64, delay_us=(0, 300), again=0.3, max_inflight=32)


@pytest.mark.parametrize(
    "plan",
    [
        FaultPlan(seed=1, reorder=256),
        FaultPlan(seed=2, delay_us=(100, 3000)),
        FaultPlan(seed=3, again=0.9),
        FaultPlan(seed=4, max_inflight=2),
        FaultPlan(seed=4, wait_fd=False),
        FaultPlan(seed=4, eager_posts=1, posts_per_turn=1),
        ROUGH,
    ],
    ids=["reorder", "delay", "again", "two in flight", "no wait fd", "one post a turn", "all"],
)
@pytest.mark.parametrize("domains", [1, 4])
async def test_everything_arrives_once(plan, domains):
    size = 200_000
    async with open_pair(faults=plan, domains=domains, shard_nbytes=4096, message_slots=2) as pair:
        data = pattern(size)
        source, target = await pair.source(data), await pair.target(size)
        counter, remote = pair.counter()
        step = 5000
        transfers = [
            pair.a.write(source[i : i + step], target.remote[i : i + step], counter=remote)
            for i in range(0, size, step)
        ]
        assert sum(await asyncio.gather(*transfers)) == size
        assert await counter.wait(len(transfers)) == len(transfers)
        assert np.array_equal(target.array, data)
        target.array[:] = 0
        order = np.random.default_rng(1).permutation(2000)
        await pair.a.write_pages(
            source, target.remote, page_nbytes=100, local_pages=order, remote_pages=order, counter=remote
        )
        assert await counter.wait(len(transfers) + 2000) == len(transfers) + 2000
        assert np.array_equal(target.array, data)
        sends = [pair.ab.send(bytes([i])) for i in range(60)]
        got = set()
        async with asyncio.timeout(SOON):
            async for message in pair.b.messages():
                got.add(message.data)
                if len(got) == 60:
                    break
        await asyncio.gather(*sends)
        if plan.again:
            assert sum(link.again for link in pair.ab.stats().links) > 0


@pytest.mark.parametrize("size", [65_536, 65_537, 8 * 65_536, 8 * 65_536 + 1, 1_000_003, 4 << 20])
@pytest.mark.parametrize("domains", [1, 2, 8])
async def test_writes_above_the_message_limit_count_once_and_last(size, domains):
    """More than 8 fragments: the counted one is posted when the others are visible."""
    plan = FaultPlan(max_message=64 << 10, seed=size, reorder=64, delay_us=(0, 200))
    async with open_pair(faults=plan, domains=domains) as pair:
        data = pattern(size)
        source, target = await pair.source(data), await pair.target(size)
        counter, remote = pair.counter()
        for number in range(1, 4):
            target.array[:] = 0
            transfer = pair.a.write(source, target.remote, counter=remote)
            await counter.wait(number)
            assert np.array_equal(target.array, data)  # before the sender's own await
            assert await transfer == size
            assert counter.value == number
        sink = np.zeros(size, dtype=np.uint8)
        local = await pair.source(sink)
        await pair.a.read(target.remote, local)
        assert np.array_equal(sink, data)


async def test_pages_above_the_message_limit():
    page, pages = 150_000, 12
    async with open_pair(faults=FaultPlan(max_message=16 << 10, seed=3, reorder=64)) as pair:
        data = pattern(page * pages)
        source, target = await pair.source(data), await pair.target(page * pages)
        counter, remote = pair.counter()
        order = np.random.default_rng(1).permutation(pages)
        await pair.a.write_pages(
            source, target.remote, page_nbytes=page, local_pages=order, remote_pages=order, counter=remote
        )
        assert await counter.wait(pages) == pages
        assert np.array_equal(target.array, data)


async def test_pages_whose_runs_are_cut_at_the_message_limit():
    page, pages = 1000, 500
    async with open_pair(faults=FaultPlan(max_message=16 << 10)) as pair:
        data = pattern(page * pages)
        source, target = await pair.source(data), await pair.target(page * pages)
        counter, remote = pair.counter()
        await pair.a.write_pages(
            source, target.remote, page_nbytes=page, local_pages=range(pages), remote_pages=range(pages), counter=remote
        )
        assert await counter.wait(pages) == pages
        assert np.array_equal(target.array, data)


# ---- failures ----


async def fail_one(pair, plan_hits, write):
    """Write until the planned failure hits; return the exceptions."""
    failures = []
    for _ in range(plan_hits):
        try:
            await write()
        except (CompletionError, ValueError, MemoryError) as failure:
            failures.append(failure)
    return failures


@pytest.mark.parametrize("status", ["REMOTE_ACCESS", "LOCAL_ACCESS", "INTERNAL"])
async def test_failed_completion_says_everything_and_hurts_nothing_else(status):
    # Heartbeats are operations too: with none, the 30th operation is one of ours.
    plan = FaultPlan(fail_after=30, fail_status=status)
    async with open_pair(faults=plan, b={"faults": FaultPlan()}, heartbeat_interval=0.0) as pair:
        source, target = await pair.source(1000), await pair.target(1000)
        failures = await fail_one(pair, 60, lambda: pair.a.write(source, target.remote))
        assert len(failures) == 1
        (failure,) = failures
        assert isinstance(failure, CompletionError)
        assert isinstance(failure, RemoteAccessError) == (status == "REMOTE_ACCESS")
        assert failure.status == status
        assert failure.operation == "write"
        assert failure.nbytes == 1000
        assert failure.peer == pair.ab.label
        assert failure.domain == "loop0#0"
        assert failure.hint
        for word in ("write of 1000 B", pair.ab.label, "failed"):
            assert word in str(failure)
        assert sum(link.failed["write"] for link in pair.ab.stats().links) == 1
        assert pair.is_healthy
        assert np.array_equal(target.array, pattern(1000, 1))


async def test_transport_error_is_judged_by_the_next_heartbeat():
    """A software provider breaks its connection for one bad request: the peer is not lost for that."""
    async with open_pair(faults=FaultPlan(fail_after=30), b={"faults": FaultPlan()}, heartbeat_interval=0.0) as pair:
        source, target = await pair.source(1000), await pair.target(1000)
        failures = await fail_one(pair, 60, lambda: pair.a.write(source, target.remote))
        assert [type(failure) for failure in failures] == [CompletionError]
        assert failures[0].status == "TRANSPORT"
        assert pair.is_healthy


async def test_failure_of_an_uncounted_write_breaks_no_counter():
    async with open_pair(faults=FaultPlan(fail_after=30), b={"faults": FaultPlan()}, heartbeat_interval=0.0) as pair:
        source, target = await pair.source(1000), await pair.target(1000)
        counter, _ = pair.counter()
        assert await fail_one(pair, 60, lambda: pair.a.write(source, target.remote))
        await asyncio.sleep(0.05)
        assert counter.broken is None


async def test_failed_part_of_a_sharded_write_breaks_the_counter():
    """Fractions of two failures never make a success: the counter says so instead."""
    for seed in range(6):
        plan = FaultPlan(fail=0.15, seed=seed, fail_status="INTERNAL", reorder=8)
        async with open_pair(faults=plan, b={"faults": FaultPlan()}, domains=4, shard_nbytes=4096) as pair:
            source, target = await pair.source(100_000), await pair.target(100_000)
            counter, remote = pair.counter()
            ok = failed = 0
            refused = False
            while not refused:
                transfers = []
                try:
                    transfers.extend(pair.a.write(source, target.remote, counter=remote) for _ in range(2))
                except BrokenResourceError:  # once it has failed, the counter is not written to any more
                    refused = True
                for result in await asyncio.gather(*transfers, return_exceptions=True):
                    assert result == 100_000 or isinstance(result, CompletionError), repr(result)
                    ok += result == 100_000
                    failed += result != 100_000
            assert failed
            # It shows no more than what succeeded, or it is broken: then nobody is told a number.
            await eventually(lambda c=counter: c.broken is not None, "the failure is reported")
            with pytest.raises(BrokenResourceError, match="misses"):
                await counter.wait(1)
            with pytest.raises(BrokenResourceError):
                await counter.take(1)
            fresh, _ = pair.counter()
            assert fresh.broken is None


async def test_two_half_failed_writes_never_count_as_one():
    half_failed = 0
    for nth in range(24, 60, 3):
        plan = FaultPlan(fail_after=nth, fail_status="INTERNAL")
        async with open_pair(
            faults=plan, b={"faults": FaultPlan()}, domains=2, shard_nbytes=4096, heartbeat_interval=0.0
        ) as pair:
            source, target = await pair.source(8192), await pair.target(8192)
            counter, remote = pair.counter()
            succeeded = 0
            failures = []
            for _ in range(60):
                try:
                    await pair.a.write(source, target.remote, counter=remote)
                    succeeded += 1
                except CompletionError as failure:
                    failures.append(failure)
                    # Halves that landed so far: whole writes shown are at most those that succeeded ...
                    if counter.broken is None:
                        assert counter.value <= succeeded
                    await eventually(lambda c=counter: c.broken is not None, "the counter is broken")
                    half_failed += 1
                except BrokenResourceError:
                    break  # a second try could stand in for what is missing
            assert len(failures) == 1
            with pytest.raises(BrokenResourceError):
                await counter.wait(0)
    assert half_failed >= 12


async def test_scatter_with_one_failing_target_serves_the_others():
    async with open_pair(
        faults=FaultPlan(fail_after=40, fail_status="INTERNAL"), b={"faults": FaultPlan()}, heartbeat_interval=0.0
    ) as pair:
        source = await pair.source(1000)
        targets = [await pair.target(1000) for _ in range(60)]
        counters = [pair.counter() for _ in targets]
        with pytest.raises(CompletionError, match="scatter of 60000 B"):
            await pair.a.scatter([(source, t.remote, c) for t, (_, c) in zip(targets, counters, strict=True)])
        good = [np.array_equal(t.array, pattern(1000, 1)) for t in targets]
        assert good.count(False) == 1
        for fine, (counter, _) in zip(good, counters, strict=True):
            if fine:
                assert await counter.wait(1) == 1


@pytest.mark.parametrize("domains", [1, 4])
async def test_refused_registration_is_typed_and_leaves_nothing(domains):
    # The first two of each domain are the engine's own: landing place and message buffers.
    plan = FaultPlan(fail_registration=3)
    async with open_pair(faults=plan, b={"faults": FaultPlan()}, domains=domains) as pair:
        before = pair.a.stats().regions
        buffer = bytearray(5000)
        for domain in pair.a.explain().domains:  # each of them refuses its third one
            with pytest.raises(RegistrationError, match=f"register of 5000 B failed: .* on {domain['name']}") as caught:
                await pair.a.register(buffer)
            assert caught.value.nbytes == 5000
            assert caught.value.domain == domain["name"]
            assert caught.value.provider_error == errno.ENOMEM
            assert caught.value.hint
            assert pair.a.stats().regions == before
        buffer.extend(b"not held")
        async with await pair.a.register(buffer) as region:
            assert region.nbytes == 5008
        await pair.write(100)


async def test_memory_that_cannot_be_deregistered_is_kept():
    """The provider still knows it: it must not be freed, whatever its owner does, and it is said."""
    async with TransferEngine(fabric="loopback", faults=FaultPlan(fail_deregistration=1)) as engine:
        buffer, other = bytearray(100), bytearray(100)
        region = await engine.register(buffer)
        with pytest.raises(PplxAsyncError, match="deregister"):
            await region.close()
        with pytest.raises(BufferError):
            buffer.extend(b"it is still the NIC's")
        async with await engine.register(other):
            pass
        other.extend(b"not held")
    with pytest.raises(BufferError):
        buffer.extend(b"nor is it let go with the engine")


async def test_every_target_of_a_failed_scatter_hears_what_it_misses():
    """Two halves fail in two places, one request: each receiver's wait ends, counted or broken."""
    plan = FaultPlan(seed=3, max_message=64, fail=0.2, fail_status="REMOTE_ACCESS")
    both_broken = 0
    async with open_pair(faults=plan, b={"faults": FaultPlan()}, heartbeat_interval=5.0, peer_timeout=10.0) as pair:
        source = await pair.source(1024)
        targets = [await pair.target(512), await pair.target(512)]  # eight pieces each
        for _ in range(20):
            counters = [pair.counter(), pair.counter()]
            with contextlib.suppress(RemoteAccessError):
                await pair.a.scatter(
                    (source[0:512], target.remote, remote)
                    for target, (_, remote) in zip(targets, counters, strict=True)
                )
            ends = await asyncio.wait_for(
                asyncio.gather(*(counter.wait(1) for counter, _ in counters), return_exceptions=True), SOON
            )
            assert all(end == 1 or isinstance(end, BrokenResourceError) for end in ends), ends
            both_broken += all(isinstance(end, BrokenResourceError) for end in ends)
    assert both_broken > 3


@pytest.mark.parametrize("nth", [1, 2])
async def test_refused_registration_of_the_engines_own(nth):
    """Opening or connecting fails, typed; what was opened is closed again."""
    async with TransferEngine(fabric="loopback") as other:
        with pytest.raises((RegistrationError, BrokenResourceError)) as caught:
            async with TransferEngine(fabric="loopback", faults=FaultPlan(fail_registration=nth)) as engine:
                await engine.connect(other.address, timeout=3)
        assert "registration" in str(caught.value)
        await eventually(lambda: other.peers == (), "nobody is connected")


async def test_peer_that_never_answers_ends_connecting():
    async with (
        TransferEngine(fabric="loopback", faults=FaultPlan(drop_after=0), connect_timeout=0.5) as mute,
        TransferEngine(fabric="loopback", connect_timeout=0.5) as engine,
    ):
        start = time.monotonic()
        with pytest.raises((TimeoutError, BrokenResourceError)):
            await engine.connect(mute.address)
        assert time.monotonic() - start < 5
        assert engine.peers == ()


@pytest.mark.parametrize("silent", ["a", "b"])
async def test_silent_nic_loses_the_peer_in_time(silent):
    """A NIC dies: no completion, no arrival. Heartbeats notice on both sides."""
    options = {"heartbeat_interval": 0.05, "peer_timeout": 1.0, "drain_timeout": 1.0}
    # What b does are heartbeats only.
    plans = {"a": FaultPlan(), "b": FaultPlan(), silent: FaultPlan(drop_after=60 if silent == "a" else 10)}
    async with open_pair(faults=plans["a"], b={"faults": plans["b"]}, **options) as pair:
        source, target = await pair.source(100), await pair.target(100)
        counter, remote = pair.counter()
        start = time.monotonic()
        with pytest.raises((PeerLost, WorkFlushed, ClosedResourceError)) as caught:
            while True:
                await pair.a.write(source, target.remote, counter=remote)
        with pytest.raises((PeerLost, ClosedResourceError)):
            await counter.wait(10**9)
        assert time.monotonic() - start < SOON
        assert isinstance(pair.ab.lost or pair.ba.lost, PeerLost)
        assert caught.value.hint
        await eventually(lambda: not pair.ab.is_open and not pair.ba.is_open, "both sides know")


async def test_memory_that_is_never_released_is_quarantined():
    """Neither a completion nor a closed endpoint lets go: the memory is kept, and it is said."""
    options = {"heartbeat_interval": 0.05, "peer_timeout": 1.0, "drain_timeout": 0.3}
    plan = FaultPlan(drop_after=40, release=False)
    a = TransferEngine(fabric="loopback", faults=plan, **options)
    async with TransferEngine(fabric="loopback", **options) as b:
        await a.open()
        ab = await a.connect(b.address)
        region = await b.register(bytearray(100))
        buffer = bytearray(100)
        source = await a.register(buffer)
        remote = ab.region(region.to_bytes())
        with pytest.raises(ExceptionGroup) as caught:
            async with a.scope() as scope:
                for _ in range(200):
                    scope.write(source, remote)
                    await asyncio.sleep(0.001)
                await asyncio.sleep(5)
        assert caught.group_contains(UnreleasedMemory)
        with pytest.raises(UnreleasedMemory):
            await a.close()
        with pytest.raises(BufferError):
            buffer.extend(b"it is still the NIC's")


async def test_write_that_failed_in_part_before_the_loss_was_known_is_lost():
    """Its first failure may only have been a connection that broke; what it was, the peer's end says."""
    plan = FaultPlan(seed=3, fail=0.3, fail_status="CONNECTION", delay_us=(0, 2_000_000))
    async with open_pair("loopback", faults=plan, b={"faults": FaultPlan()}) as pair:
        source, target = await pair.source(1 << 16), await pair.target(1 << 16)
        writing = pair.a.write_pages(
            source, target.remote, page_nbytes=256, local_pages=range(0, 256, 2), remote_pages=range(0, 256, 2)
        )
        await eventually(lambda: pair.ab.stats().links[0].failed["write"] > 5, "some of it has failed")
        assert not writing.done()
        pair.ab._lose("the test says so")
        with pytest.raises(PeerLost):
            await writing
