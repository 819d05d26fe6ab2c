# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Who connects hears which counters are open, in few words, and counts at none of the others."""

import asyncio
import contextlib
import random

import pytest

from helpers.engines import SOON, connect, engine_on, eventually
from pplx_async import BrokenResourceError, wire
from pplx_async.control import ControlChannel
from pplx_async.peer import Peer, _ClosedCounters

# The control channel is the same on every fabric.
pytestmark = pytest.mark.fabrics("loopback", "ipc")


def knows(peer, descriptor):
    """Whether the peer's counter is open, as far as our side has heard."""
    with contextlib.suppress(BrokenResourceError):
        peer.counter(descriptor)
        return True
    return False


async def close_all(owner, counters):
    """Close them, and wait until their ids are free."""
    for counter in counters:
        await counter.close()
    await eventually(lambda: not any(owner._counters.get(c.id) is c for c in counters), "their ids are free")


@pytest.fixture
def told(monkeypatch):
    """What is said on the control channels about open counters."""
    messages = []
    post = ControlChannel.post

    def noted(channel, message):
        if isinstance(message, wire.OpenCounters):
            messages.append(message)
        post(channel, message)

    monkeypatch.setattr(ControlChannel, "post", noted)
    return messages


async def test_however_many_were_closed_little_is_said(fabric, told):
    """Thousands were closed, and ten are open: one short message says so."""
    async with engine_on(fabric, name="owner") as owner, engine_on(fabric, name="late") as late:
        closed, kept = [], []
        for _ in range(10):
            counters = [owner.counter() for _ in range(300)]
            kept.append(counters.pop(150))
            await close_all(owner, counters)
            closed += [counter.to_bytes() for counter in counters]
        assert len({wire.decode_counter(each).counter & 0xFFFFF for each in closed}) < len(closed) / 2
        peer, _ = await connect(late, owner)
        (message,) = told
        assert len(message.runs) == len(kept)
        assert len(wire.encode_message(message)) < 256
        assert not any(knows(peer, each) for each in closed)
        await late.notify([peer.counter(counter.to_bytes()) for counter in kept])
        for counter in kept:
            assert await counter.wait(1) == counter.value == 1


async def test_nothing_is_said_where_nothing_is_open(fabric, told):
    async with engine_on(fabric) as owner, engine_on(fabric) as late:
        counter = owner.counter()
        descriptor = counter.to_bytes()
        await close_all(owner, [counter])
        peer, _ = await connect(late, owner)
        assert told == []
        assert not knows(peer, descriptor)
        assert knows(peer, owner.counter().to_bytes())


async def test_more_runs_than_one_message_holds(fabric, told):
    async with engine_on(fabric) as owner, engine_on(fabric) as late:
        counters = [owner.counter() for _ in range(4 * wire.MAX_OPEN_RUNS + 6)]
        await close_all(owner, counters[::2])
        peer, _ = await connect(late, owner)
        assert [len(message.runs) for message in told] == [wire.MAX_OPEN_RUNS] * 2 + [3]
        assert [knows(peer, counter.to_bytes()) for counter in counters] == [False, True] * (len(counters) // 2)


async def test_what_opens_and_closes_while_peers_come(fabric):
    """At each moment each peer knows those that are open, and only those, however long it is there."""
    rng = random.Random(7)
    async with engine_on(fabric, name="owner") as owner:
        late = [engine_on(fabric, name=f"late {i}") for i in range(4)]
        peers, opened, closed = [], [], []
        try:
            for engine in late:
                for _ in range(20):
                    opened += [owner.counter() for _ in range(rng.randrange(8))]
                    rng.shuffle(opened)
                    gone = [opened.pop() for _ in range(rng.randrange(len(opened) + 1))]
                    await close_all(owner, gone)
                    closed += gone
                await engine.open()
                peers.append((await connect(engine, owner))[0])
                for peer in peers:
                    assert all(knows(peer, counter.to_bytes()) for counter in opened)
                    assert not any(knows(peer, counter.to_bytes()) for counter in closed)
        finally:
            for engine in late:
                await engine.close()


async def test_what_is_closed_after_it_was_told_open_is_fenced(fabric, monkeypatch):
    """The owner has told a peer of the counter, and closes it before that has heard: the id waits for its fence."""
    goes_on = asyncio.Event()
    expect = Peer._expect

    async def slow(self, kind):
        if kind is wire.Ready and self._engine is late:
            await goes_on.wait()
        return await expect(self, kind)

    monkeypatch.setattr(Peer, "_expect", slow)
    async with engine_on(fabric, name="owner") as owner, engine_on(fabric, name="late") as late:
        counter = owner.counter()
        connecting = asyncio.ensure_future(late.connect(owner.address))
        async with asyncio.timeout(SOON):
            here = await owner.accept()
        await counter.close()
        await eventually(lambda: here._fences, "the owner has asked for a fence")
        assert owner._counters[counter.id] is counter  # its id is not free
        goes_on.set()
        peer = await connecting
        await eventually(lambda: counter.id not in owner._counters, "its id is free")
        assert not knows(peer, counter.to_bytes())


@pytest.mark.fabrics("loopback")
@pytest.mark.parametrize("runs", [[(5, 6), (3, 4)], [(5, 5), (5, 5)], [(6, 5)]], ids=["falling", "twice", "backwards"])
async def test_who_names_them_out_of_order_is_refused(fabric, runs):
    async with engine_on(fabric, name="owner") as owner, engine_on(fabric, name="hostile") as hostile:
        hostile._open_counters = lambda: (runs, 9)
        peer = await hostile.connect(owner.address)  # the owner was ready before it heard that
        await eventually(lambda: not owner._peers, "nothing of it is left")
        assert "open counters out of order" in str(await peer.wait_closed())


def test_no_more_runs_are_kept_than_there_are_counters(monkeypatch):
    monkeypatch.setattr(wire, "MAX_COUNTERS", 3)
    counters = _ClosedCounters()
    counters.open_before(((1, 1), (3, 3), (5, 2**64 - 1)))
    with pytest.raises(ValueError, match="out of order"):
        counters.open_before(((2**64 - 1, 2**64 - 1),))
    counters = _ClosedCounters()
    counters.open_before(((1, 1), (3, 3), (5, 5)))
    with pytest.raises(ValueError, match="more open counters than there can be"):
        counters.open_before(((7, 7),))
