# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Several NICs, one of which dies: what it had in flight fails typed or is sent again, and the peer lives on."""

import asyncio

import numpy as np
import pytest

from helpers.engines import SOON, drop_link, eventually, open_pair, pattern
from pplx_async import BrokenResourceError, Peer, RailLost
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")

NBYTES = 4096
QUICK = {
    "devices": ("loop0", "loop1", "loop2"),
    "heartbeat_interval": 0.05,
    "peer_timeout": 1.0,
    "shard_nbytes": 64 << 10,
}
DYING = {"faults": FaultPlan(device=1, drop_after=60)}


async def write_all(pair, source, target, counter=None, many=200):
    """Start them all at once; what each ended with."""
    writes = [
        pair.a.write(source[i * NBYTES :][:NBYTES], target.remote[i * NBYTES :][:NBYTES], counter=counter)
        for i in range(many)
    ]
    async with asyncio.timeout(SOON):
        return await asyncio.gather(*writes, return_exceptions=True)


async def lost_on_both_sides(pair, link):
    await eventually(
        lambda: all(peer.stats().links[link].lost for peer in (pair.ab, pair.ba)), "both sides know of the lost link"
    )


async def test_a_rail_that_falls_silent_fails_what_it_had_and_the_peer_lives():
    async with open_pair("loopback", domains=2, b={"faults": None}, **QUICK, **DYING) as pair:
        data = pattern(200 * NBYTES)
        source, target = await pair.source(data), await pair.target(data.nbytes)
        ended = await write_all(pair, source, target)
        failed = [error for error in ended if isinstance(error, Exception)]
        assert failed
        assert all(isinstance(error, RailLost) for error in failed)
        error = failed[0]
        assert (error.link, error.domain, error.operation, error.nbytes) == (1, "loop1#1", "write", NBYTES)
        assert error.status == "RAIL_LOST"
        assert "link 1 is lost" in str(error)
        assert "Submit it again" in str(error)
        await lost_on_both_sides(pair, 1)
        # Everything goes on over the other one.
        counter, remote = pair.counter()
        assert await write_all(pair, source, target, remote) == [NBYTES] * 200
        assert await counter.wait(200) == 200
        assert np.array_equal(target.array, data)
        await pair.ab.send(b"still there")
        assert (await anext(pair.b.messages())).data == b"still there"
        assert "lost: " in str(pair.a.explain())
        assert pair.ab.is_open and pair.ba.is_open  # noqa: PT018
        await pair.forget()


async def test_with_failover_writes_and_reads_do_not_notice():
    async with open_pair("loopback", domains=3, b={"faults": None}, rail_failover=True, **QUICK, **DYING) as pair:
        data = pattern(200 * NBYTES)
        source, target = await pair.source(data), await pair.target(data.nbytes)
        assert await write_all(pair, source, target) == [NBYTES] * 200
        await lost_on_both_sides(pair, 1)
        assert np.array_equal(target.array, data)
        await pair.forget()


async def test_with_failover_a_counted_write_still_fails_typed_and_its_counter_is_exact():
    async with open_pair("loopback", domains=2, b={"faults": None}, rail_failover=True, **QUICK, **DYING) as pair:
        data = pattern(200 * NBYTES)
        source, target = await pair.source(data), await pair.target(data.nbytes)
        counter, remote = pair.counter()
        ended = await write_all(pair, source, target, remote)
        failed = sum(isinstance(error, RailLost) for error in ended)
        assert 0 < failed < 200
        with pytest.raises(BrokenResourceError):
            await counter.wait(200)
        assert counter.value == 200 - failed
        await pair.forget()


async def test_reconnecting_uses_the_rail_again():
    plan = FaultPlan(device=1, fail_after=60, fail_status="PEER_LOST")
    async with open_pair("loopback", domains=2, b={"faults": None}, faults=plan, **QUICK) as pair:
        data = pattern(200 * NBYTES)
        source, target = await pair.source(data), await pair.target(data.nbytes)
        await write_all(pair, source, target)
        await lost_on_both_sides(pair, 1)
        again = await pair.a.connect(pair.b.address)
        assert [link.lost for link in again.stats().links] == [None, None]
        await again.close()
        await pair.forget()


async def test_a_rail_that_dies_after_our_goodbye_is_told():
    """Until it is, the other side keeps its messages for the next link, and can't say goodbye."""
    many = 100
    async with open_pair("loopback", domains=2, drain_timeout=SOON, **QUICK) as pair:
        sends = [pair.ba.send(b"%d" % i) for i in range(many)]
        closing = asyncio.create_task(pair.ab.close())
        await eventually(lambda: pair.ab._said_goodbye, "a says goodbye")
        drop_link(pair.ab, 0)
        await lost_on_both_sides(pair, 0)
        assert not all(send.done() for send in sends)
        async with asyncio.timeout(SOON / 2):
            assert sorted(await read_until(pair.a, many)) == list(range(many))
            await asyncio.gather(*sends)
            await closing
        assert (pair.ab.lost, pair.ba.lost) == (None, None)


async def test_a_rail_that_dies_before_we_say_ready_is_told_afterwards(monkeypatch):
    real, both = Peer._say_ready, asyncio.Barrier(2)

    async def say_ready(self, connecting):
        await connecting
        await both.wait()
        if self.engine.options.name == "a":
            drop_link(self, 1)
            await eventually(lambda: self.stats().links[1].lost, "a has lost the link")
        await real(self, connecting)

    monkeypatch.setattr(Peer, "_say_ready", say_ready)
    async with open_pair("loopback", domains=2, **QUICK) as pair:
        await lost_on_both_sides(pair, 1)
        await pair.write(100_000)
        await pair.ba.send(b"hello")
        assert (await anext(pair.a.messages())).data == b"hello"


async def read_until(engine, last):
    """Read messages until the last one has come; each is a number."""
    numbers = []
    async for message in engine.messages():
        numbers.append(int(message.data))
        if len(numbers) == last:
            return numbers


@pytest.mark.parametrize("after", [40, 60, 90, 150])
@pytest.mark.parametrize("plan", [{}, {"reorder": 16}, {"delay_us": (0, 300)}], ids=str)
async def test_messages_move_to_another_rail_and_none_is_lost_or_doubled(after, plan):
    faults = FaultPlan(device=0, drop_after=after, **plan)
    async with open_pair("loopback", domains=3, b={"faults": None}, **QUICK, faults=faults) as pair:
        many = 300
        async with asyncio.timeout(SOON):
            reading = [asyncio.create_task(read_until(engine, many)) for engine in (pair.a, pair.b)]
            sends = [peer.send(b"%d" % i) for i in range(many) for peer in (pair.ab, pair.ba)]
            await asyncio.gather(*sends)
            for task in reading:
                assert sorted(await task) == list(range(many))
        await lost_on_both_sides(pair, 0)
        # And credits come back on that one.
        async with asyncio.timeout(SOON):
            for i in range(100):
                await pair.ba.send(b"%d" % i)
                assert int((await anext(pair.a.messages())).data) == i
        await pair.forget()


async def test_messages_move_twice():
    a = FaultPlan(device=0, drop_after=60)
    b = FaultPlan(device=1, drop_after=200)
    async with open_pair("loopback", domains=3, faults=a, b={"faults": b}, **QUICK) as pair:
        many = 1000
        async with asyncio.timeout(SOON):
            reading = [asyncio.create_task(read_until(engine, many)) for engine in (pair.a, pair.b)]
            for first in range(0, many, 50):
                sends = [peer.send(b"%d" % i) for i in range(first, first + 50) for peer in (pair.ab, pair.ba)]
                await asyncio.gather(*sends)
            for task in reading:
                assert sorted(await task) == list(range(many))
        await lost_on_both_sides(pair, 0)
        await lost_on_both_sides(pair, 1)
        await pair.forget()
