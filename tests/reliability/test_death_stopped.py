# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Who stands still: a stopped process is lost after `peer_timeout` and no sooner, a blocked event loop never."""

import asyncio
import contextlib
import time

import numpy as np
import pytest
import pytest_asyncio

from helpers.doomed import BLOCKED_WRITES, HELD
from helpers.engines import SOON, eventually, open_pair
from helpers.require import find_fabric
from helpers.survivor import NOTICED, Ending, all_end, check_lost, open_survivor, resume, stop

pytestmark = [pytest.mark.tcp, pytest.mark.asyncio(loop_scope="module")]

PROCESSES = pytest.mark.fabrics("tcp", "rxm", "ipc", "verbs")
# With verbs the NIC answers for a process that is stopped: what is written to it, and read from it, ends.
UNANSWERED = pytest.mark.fabrics("tcp", "rxm", "ipc")

LIMIT = 2.0
SHORT = 0.3  # and so much less than the limit that a busy machine makes no loss of it
INTERVAL = 0.1


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(fabric):
    """Survivor and others with a short limit."""
    async with open_survivor(fabric, heartbeat_interval=INTERVAL, peer_timeout=LIMIT) as survivor:
        yield survivor


@PROCESSES
async def test_stopped_for_less_than_the_limit_loses_nobody(hasty):
    pid, peer = await hasty.meet()
    async with hasty.stream():
        plain = (await peer.lookup("plain"))[0 : hasty.source.nbytes]
        counter = await peer.lookup_counter("counter")
        await stop(pid)
        write = Ending(hasty.engine.write(hasty.source, plain, counter=counter))
        lookup = Ending(peer.lookup("memory"))
        await asyncio.sleep(SHORT)
        assert not lookup.done
        resume(pid)
        await all_end({"write": write, "lookup": lookup}, time.monotonic())
        assert write.result == hasty.source.nbytes
        assert lookup.failure is None
        # Neither side has lost the other.
        await asyncio.sleep(2 * INTERVAL)
        assert peer.is_open
        await peer.lookup("memory")
        sink = np.zeros(hasty.source.nbytes, dtype=np.uint8)
        async with await hasty.engine.register(sink) as local:
            await hasty.engine.read(plain, local)
        assert np.array_equal(sink, hasty.data)
    await hasty.kill(pid)
    await asyncio.wait_for(peer.wait_closed(), SOON)
    await hasty.bury(pid)
    await hasty.forget(peer)


@UNANSWERED
async def test_stopped_for_longer_than_the_limit_counts_as_lost(hasty, record_property):
    pid, peer = await hasty.meet()
    async with hasty.stream():
        plain = (await peer.lookup("plain"))[0 : hasty.source.nbytes]
        await stop(pid)
        endings = {
            "read": Ending(hasty.engine.read(plain, hasty.source)),
            "wait": Ending(hasty.engine.counter(peer=peer).wait(1)),
            "lookup": Ending(peer.lookup("memory")),
        }
        took = await all_end(endings, time.monotonic())
        for name, ending in endings.items():
            check_lost(ending.failure, peer, name)
            assert "heartbeat" in ending.failure.reason
        assert min(took.values()) > LIMIT / 2  # its last heartbeat may have been late
        assert max(took.values()) < LIMIT + NOTICED
        record_property("noticed_ms", round(max(took.values()) * 1e3, 1))
    # When it goes on it finds itself cut off; another one is welcome.
    resume(pid)
    await hasty.forget(peer)
    again, new = await hasty.meet()
    await new.lookup("memory")
    for each in (pid, again):
        await hasty.kill(each)
        await hasty.bury(each)
    await asyncio.wait_for(new.wait_closed(), SOON)


@contextlib.asynccontextmanager
async def held(hasty, holders):
    """Regions that each of these has written to, and keeps, where the fabric has that; and who they are."""
    engine = hasty.engine
    async with contextlib.AsyncExitStack() as stack:
        counter = await stack.enter_async_context(engine.counter())
        regions = [await stack.enter_async_context(await engine.register(engine.empty(4096))) for _ in range(HELD)]
        engine.publish("holds", counter)
        for i, region in enumerate(regions):
            engine.publish(f"held {i}", region)
        met = [await hasty.meet("holds") for _ in range(holders)]
        await asyncio.wait_for(counter.wait(holders), SOON)
        yield regions, met


@PROCESSES
async def test_closing_what_a_stopped_peer_holds_disturbs_nobody(hasty):
    """Each region that ends is fenced. Who waits for that in vain, once for each, is lost to the others."""
    async with held(hasty, 1) as (regions, [(pid, peer)]), hasty.stream():
        await stop(pid)
        await asyncio.wait_for(asyncio.gather(*(region.close() for region in regions)), SOON)
        await asyncio.wait_for(peer.wait_closed(), SOON)
    await hasty.kill(pid)
    await hasty.bury(pid)
    await hasty.forget(peer)


@PROCESSES
async def test_stopped_for_a_moment_while_another_is_given_up(hasty):
    """Both hold the same memory. That one has to lose it is no reason to lose the other, nor to hold up a third."""
    async with held(hasty, 2) as (_, [(given_up, gone), (pid, peer)]), hasty.stream():
        await stop(given_up)
        await asyncio.wait_for(gone.wait_closed(), SOON)
        await stop(pid)
        await asyncio.sleep(SHORT)
        resume(pid)
        await eventually(lambda: gone not in hasty.engine._peers, "its endpoints are closed")
        assert peer.is_open
        await peer.lookup("memory")
    for each in (given_up, pid):
        await hasty.kill(each)
        await hasty.bury(each)
    await asyncio.wait_for(peer.wait_closed(), SOON)
    await hasty.forget(peer)


@pytest.mark.fabrics("ipc")
@pytest.mark.parametrize(("drain_timeout", "still"), [(0.1, 1), (0.1, 2), (1.0, 2)])
async def test_holders_that_stand_still_cost_none_that_moves(fabric, drain_timeout, still):
    """However short the time for a drain is: who lets go when it is asked has time to do so."""
    options = {"heartbeat_interval": INTERVAL, "peer_timeout": LIMIT, "drain_timeout": drain_timeout}
    async with (
        open_survivor(fabric, **options) as survivor,
        held(survivor, still + 1) as (_, [*lost, (pid, peer)]),
        survivor.stream(),
    ):
        for each, _ in lost:
            await stop(each)
        for _, gone in lost:
            await asyncio.wait_for(gone.wait_closed(), SOON)
            await eventually(lambda gone=gone: gone not in survivor.engine._peers, "its endpoints are closed")
        plain = (await peer.lookup("plain"))[0 : survivor.source.nbytes]
        await survivor.engine.write(survivor.source, plain)
        await asyncio.sleep(2 * INTERVAL)  # and so it hears of us, and we of it
        assert peer.is_open
        for each in (*(each for each, _ in lost), pid):
            await survivor.kill(each)
            await survivor.bury(each)
        await asyncio.wait_for(peer.wait_closed(), SOON)


@PROCESSES
async def test_killed_while_our_loop_stands_still(hasty, record_property):
    """The proxy threads do without the loop: it is the NIC that says so, with its own code where it has any."""
    pid, peer = await hasty.meet()
    part = (await peer.lookup("plain"))[0 : hasty.source.nbytes]

    async def endless():
        while True:
            await hasty.engine.write(hasty.source, part)

    await stop(pid)  # or no write may be under way when it dies, and there is nothing for the NIC to say
    endings = {"write": Ending(endless()), "wait": Ending(hasty.engine.counter(peer=peer).wait(1))}
    await asyncio.sleep(0.02)
    await hasty.kill(pid)
    deadline = time.monotonic() + SOON
    while not hasty.engine._core.lost_reason(peer._record) and time.monotonic() < deadline:
        time.sleep(0.01)  # the loop stands still
    took = await all_end(endings, time.monotonic())
    for name, ending in endings.items():
        check_lost(ending.failure, peer, name)
        assert "control channel" not in ending.failure.reason
        assert (ending.failure.provider_error != 0) == (peer.fabric != "ipc")
    assert max(took.values()) < NOTICED, took
    await hasty.bury(pid)
    await hasty.forget(peer)


class Blocked:
    """Both loops are going to stand still, with transfers under way both ways: of two processes, or of one."""

    def __init__(self, engine, peer, source, target, counter):
        self.engine, self.peer, self.source, self.target, self.counter = engine, peer, source, target, counter

    def start(self):
        part = self.source[0 : self.target.nbytes]
        self.transfers = [self.engine.write(part, self.target, counter=self.counter) for _ in range(BLOCKED_WRITES)]


async def blocked_processes(stack, fabric, seconds):
    survivor = await stack.enter_async_context(open_survivor(fabric))
    engine = survivor.engine
    landed, back = engine.counter(), engine.counter()
    engine.publish("landed", landed)
    engine.publish("back", back)
    _, peer = await survivor.meet("blocks", seconds=seconds)
    await back.wait(1)
    memory, counter = await peer.lookup("memory"), await peer.lookup_counter("counter")
    blocked = Blocked(engine, peer, survivor.source, memory[0 : survivor.source.nbytes], counter)
    await engine.notify(counter)
    return blocked, landed, back


async def test_blocked_loops_lose_nobody():
    """Ten seconds, more than three times the limit, on each fabric at once; liveness is the proxy threads' business."""
    seconds = 10.0
    tcp = find_fabric("tcp")
    async with contextlib.AsyncExitStack() as stack:
        processes = [
            await blocked_processes(stack, fabric, seconds)
            for fabric in (find_fabric("ipc"), tcp)
            if fabric.missing is None
        ]
        pair = await stack.enter_async_context(open_pair("loopback"))
        source, target = await pair.source(1 << 20), await pair.target(1 << 20)
        counter, remote = pair.counter()
        everybody = [blocked for blocked, *_ in processes]
        everybody.append(Blocked(pair.a, pair.ab, source, target.remote, remote))
        for blocked in everybody:
            blocked.start()
        time.sleep(seconds)
        # Nothing of this has needed the loop.
        assert counter.value == BLOCKED_WRITES
        for _, landed, _ in processes:
            assert landed.value == BLOCKED_WRITES
        for blocked in everybody:
            assert await asyncio.gather(*blocked.transfers) == [blocked.target.nbytes] * BLOCKED_WRITES
        for _, _, back in processes:
            await asyncio.wait_for(back.wait(2), SOON)  # their loops turn again, and find us open
        for blocked in everybody:
            assert blocked.peer.is_open
            assert blocked.peer.lost is None
    if tcp.missing is not None:
        pytest.skip(f"done on ipc and loopback: {tcp.missing}")
