# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A cable that is pulled out: every await that needs it ends typed and in time, and it can be used again."""

import asyncio
import time

import numpy as np
import pytest

from helpers.engines import connect, engine_on, open_pair, pattern
from helpers.survivor import Ending, all_end
from pplx_async import CompletionError, PeerLost

pytestmark = [pytest.mark.fabrics("verbs"), pytest.mark.deadline(60)]

LIMIT = 3.0  # peer_timeout, and so the worst case; the NIC is quicker
SIZE = 1 << 20


async def endless(submit):
    while True:
        await submit()


async def pending(pair):
    """What can be awaited of a peer, under way both ways."""
    source, target = await pair.source(SIZE), await pair.target(SIZE)
    sink = await pair.source(np.zeros(SIZE, np.uint8))
    bound, _ = pair.a.counter(peer=pair.ab), None
    order = np.random.default_rng(1).permutation(SIZE // 4096)
    pages = {"page_nbytes": 4096, "local_pages": order, "remote_pages": order[::-1].copy()}
    return {
        "write": Ending(endless(lambda: pair.a.write(source, target.remote))),
        "write_pages": Ending(endless(lambda: pair.a.write_pages(source, target.remote, **pages))),
        "read": Ending(endless(lambda: pair.a.read(target.remote, sink))),
        "wait": Ending(bound.wait(1)),
        "wait_closed": Ending(pair.ab.wait_closed()),
    }


async def test_cable_that_is_pulled_loses_the_peer_in_time(fabric, cable, record_property):
    async with open_pair(fabric, b={"devices": cable.devices[1:]}, devices=cable.devices[:1]) as pair:
        endings = await pending(pair)
        await asyncio.sleep(0.2)
        assert not any(ending.done for ending in endings.values())
        cable.pull()
        took = await all_end(endings, time.monotonic())
        assert isinstance(endings["wait_closed"].result, PeerLost), endings["wait_closed"].result
        for name, ending in endings.items():
            if name != "wait_closed":
                assert isinstance(ending.failure, PeerLost), (name, ending.failure)
                assert ending.failure.hint
        # rdma_rxe keeps a queue pair for 3 s more, until its packets' address is given up; a thread waits for that.
        assert max(took.values()) < LIMIT, took
        record_property("noticed_ms", {name: round(seconds * 1e3) for name, seconds in took.items()})


async def test_new_peers_meet_over_a_cable_that_is_back(fabric, cable):
    cable.pull()
    cable.mend()
    async with (
        engine_on(fabric, devices=cable.devices[:1]) as a,
        engine_on(fabric, devices=cable.devices[1:]) as b,
    ):
        ab, _ = await connect(a, b)
        data, target = pattern(SIZE), np.zeros(SIZE, np.uint8)
        async with await a.register(data) as source, await b.register(target) as region:
            await a.write(source, ab.region(region.to_bytes()))
            assert np.array_equal(target, data)


async def test_cable_that_says_nothing_loses_the_peer_in_time(fabric, cable, record_property):
    """It is pulled out behind the next switch: all packets are lost, and the port knows nothing of it."""
    async with open_pair(fabric, b={"devices": cable.devices[1:]}, devices=cable.devices[:1]) as pair:
        endings = await pending(pair)
        await asyncio.sleep(0.2)
        cable.hurt("loss 100%")
        took = await all_end(endings, time.monotonic())
        assert all(isinstance(each.failure or each.result, PeerLost) for each in endings.values())
        assert max(took.values()) < LIMIT, took
        record_property("noticed_ms", {name: round(seconds * 1e3) for name, seconds in took.items()})


async def test_one_of_two_rails_goes_down(fabric, cables):
    """What was on it ends typed; the data of what succeeds is right; nothing hangs."""
    options = {"domains": 2, "shard_nbytes": 4096}
    ours, theirs = [tuple(cable.devices[end] for cable in cables) for end in (0, 1)]
    async with open_pair(fabric, b={"devices": theirs}, devices=ours, **options) as pair:
        data = pattern(SIZE)
        source, target = await pair.source(data), await pair.target(SIZE)
        await pair.a.write(source, target.remote)
        assert np.array_equal(target.array, data)

        async def write():
            for _ in range(500):
                await pair.a.write(source, target.remote)

        writing = Ending(write())
        await asyncio.sleep(0.2)
        cables[1].pull()
        await all_end({"write": writing}, time.monotonic(), timeout=40)
        if writing.failure is not None:
            assert isinstance(writing.failure, CompletionError), writing.failure
            assert writing.failure.hint
        if pair.ab.is_open:  # over the rail that is left
            target.array[:] = 0
            await pair.a.write(source, target.remote)
            assert np.array_equal(target.array, data)
