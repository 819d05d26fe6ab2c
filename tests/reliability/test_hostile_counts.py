# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Immediates for counters that are not the sender's to count: what is one peer's own, no other peer can hit.

A counter's id is a small number, which a peer can name without having been told. (EFA does not say whom an
immediate is from, so it is not among these fabrics.)
"""

import asyncio

import pytest
import pytest_asyncio

from helpers.engines import SOON, connect, engine_on, eventually, open_pair
from pplx_async import ClosedResourceError, wire

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.fabrics("loopback", "ipc", "tcp", "rxm", "verbs"),
]


@pytest_asyncio.fixture(loop_scope="module")
async def three(fabric):
    """A pair of friends, and a third engine that is connected to their b: how it sees b, and b it."""
    async with open_pair(fabric) as pair, engine_on(fabric, name="hostile") as hostile:
        yield pair, *await connect(hostile, pair.b)


def forge(peer, counter_id):
    """A remote counter of a peer, of which it was told nothing."""
    return peer.counter(wire.encode_counter(wire.CounterDescriptor(engine=peer.id, counter=99 << 20 | counter_id)))


async def hit(peer, counter_id, times=3):
    async with asyncio.timeout(SOON):
        for _ in range(times):
            await peer.engine.notify(forge(peer, counter_id))


async def dropped(engine, before, times=3):
    await eventually(lambda: engine.stats().stray_imms - before >= times, "they are counted as strays")


async def test_counter_of_one_peer_counts_no_other(three):
    pair, there, _ = three
    before = pair.b.stats().stray_imms
    counter, remote = pair.counter()  # bound to a
    await hit(there, counter.id)
    await dropped(pair.b, before)
    assert counter.value == 0
    await pair.a.notify(remote)
    assert await counter.wait(1) == 1
    assert pair.b.stats().stray_imms - before == 3


async def test_counter_of_nobody_counts_every_peer(three):
    """It is for whoever was told of it, and whoever guesses: each peer's own is what to trust."""
    pair, there, _ = three
    counter, remote = pair.counter(bound=False)
    await hit(there, counter.id, 1)
    await pair.a.notify(remote)
    async with asyncio.timeout(SOON):
        assert await counter.wait(2) == 2


@pytest.mark.parametrize("which", ["heartbeat_counter", "credit_counter"])
async def test_heartbeats_and_credits_of_another_peer(three, which):
    """No peer keeps another one alive, or lets us send it more than it takes."""
    pair, there, _ = three
    before = pair.b.stats().stray_imms
    await hit(there, pair.ba._record.endpoints()[which])
    await dropped(pair.b, before)
    await pair.ba.send(b"to a")
    async with asyncio.timeout(SOON):
        assert (await anext(pair.a.messages())).data == b"to a"
    await pair.write(4096)


async def test_nobody_comes_to_a_barrier_for_another(three):
    pair, there, _ = three
    async with asyncio.timeout(SOON):
        mine, theirs = await asyncio.gather(pair.b.group("g", [pair.ba]), pair.a.group("g", [pair.ab]))
    before = pair.b.stats().stray_imms
    coming = asyncio.ensure_future(pair.b.barrier(mine))
    await hit(there, mine._members[0].came.id)
    await dropped(pair.b, before)
    assert not coming.done()
    there._post(wire.CounterBroken(mine._members[0].came.id, 8, "as if a had failed"))
    with pytest.raises(KeyError):
        await there.lookup("has b come this far?")
    assert not coming.done()
    async with asyncio.timeout(SOON):
        await asyncio.gather(coming, pair.a.barrier(theirs))


async def test_counter_of_a_peer_that_is_gone(three):
    """Nobody counts there any more, whoever has the peer's place meanwhile; what it had counted stays."""
    pair, there, _ = three
    counter, remote = pair.counter()
    await pair.a.notify(remote)
    assert await counter.wait(1) == 1
    await pair.ab.close()
    await eventually(lambda: pair.ba not in pair.b._peers, "it is gone")
    before = pair.b.stats().stray_imms
    await hit(there, counter.id)
    await dropped(pair.b, before)
    again, _ = await connect(pair.a, pair.b)
    await hit(again, counter.id)
    await dropped(pair.b, before, 6)
    assert counter.value == 1


async def test_own_counter_after_the_peer_has_said_goodbye(three):
    """What it wrote last is counted, though its endpoint is closed when that is read."""
    pair, _, _ = three
    counters = [pair.counter() for _ in range(20)]
    notified = [pair.a.notify(remote) for _ in range(50) for _, remote in counters]
    await pair.ab.close()
    await asyncio.gather(*notified)
    async with asyncio.timeout(SOON):
        assert [await counter.wait(50) for counter, _ in counters] == [50] * 20
    with pytest.raises(ClosedResourceError):
        await asyncio.wait_for(counters[0][0].wait(51), SOON)
