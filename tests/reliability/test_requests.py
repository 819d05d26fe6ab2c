# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Requests that only the target can refuse: told at the source, nothing changed there, and both go on as before.

What can be known at the call is refused there: ``tests/api/test_misuse.py``. What is in here comes from
descriptors that a flipped bit, an old message or a liar has made.
"""

import asyncio
import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pytest

from helpers.engines import SOON, connect, engine_on, open_pair, pattern
from helpers.told import check_told
from pplx_async import BrokenResourceError, RemoteAccessError, wire
from pplx_async._core.counters import CounterCore
from pplx_async.testing import FaultPlan

SIZE = 4096
PAGE = 256

# How memory of b is reached: the ways of ipc; other fabrics have one.
WAYS = {"ipc": ("staged", "mapped", "addressed")}

# No region has such an id: what is known of one goes by it.
UNUSED = itertools.count(10**9)


@dataclass
class Sides:
    """A pair, a source of a's, and a region of b's in the middle of an array of which nothing may change."""

    pair: Any
    source: Any
    sink: np.ndarray
    whole: np.ndarray
    region: Any
    before: np.ndarray

    @classmethod
    async def make(cls, pair, way, access="both", size=SIZE):
        whole = pair.b.empty(3 * size) if way == "mapped" else np.zeros(3 * size, dtype=np.uint8)
        whole[:] = pattern(3 * size, 7)
        target = await pair.target(whole[size : 2 * size], access=access)
        sink = pattern(size, 8)
        return cls(pair, await pair.source(sink), sink, whole, target.region, whole.copy())

    def unchanged(self, but_for=slice(0, 0)):
        """Whether no byte of either side has changed, but for these of the array."""
        changed = self.whole != self.before
        changed[but_for] = False
        return not changed.any() and np.array_equal(self.sink, pattern(len(self.sink), 8))

    def forged(self, descriptor, **changes):
        """What a makes of a descriptor of b's that says something else than b said."""
        parsed = wire.decode_region(descriptor)
        changes = {"region": next(UNUSED), "access": 3, **changes}
        return self.pair.ab.region(wire.encode_region(msgspec.structs.replace(parsed, **changes)))


async def each_way(fabric, check):
    """Run a check for each way, with a pair of its own."""
    for way in WAYS.get(fabric.name, ("staged",)):
        direct = {"ipc_vm_writev": True} if way == "addressed" else {}
        async with open_pair(fabric, **direct) as pair:
            await check(pair, way)


# ---- what a descriptor may say ----


def keys(change):
    return lambda parsed: {"keys": tuple(change(*key) for key in parsed.keys)}


# access of the region, what the descriptor says of it instead, where in that the request goes
FORGERIES = {
    "wrong key": ("both", keys(lambda key, base: wire.RemoteKey(key ^ 0x5A5A, base)), slice(0, SIZE)),
    "no key": ("both", keys(lambda key, base: wire.RemoteKey(0, base)), slice(0, SIZE)),
    "all ones": ("both", keys(lambda key, base: wire.RemoteKey(2**64 - 1, base)), slice(0, SIZE)),
    "behind the end": ("both", lambda parsed: {"nbytes": 2 * SIZE}, slice(SIZE, 2 * SIZE)),
    "across the end": ("both", lambda parsed: {"nbytes": 2 * SIZE}, slice(SIZE // 2, SIZE // 2 + SIZE)),
    "one byte too far": ("both", lambda parsed: {"nbytes": 2 * SIZE}, slice(1, 1 + SIZE)),
    "far away": ("both", lambda parsed: {"nbytes": 2**40}, slice(2**40 - SIZE, 2**40)),
    "before the start": ("both", keys(lambda key, base: wire.RemoteKey(key, (base - SIZE) % 2**64)), slice(0, SIZE)),
    "closed since": ("both", lambda parsed: {}, slice(0, SIZE)),
    "for reading only": ("read", lambda parsed: {}, slice(0, SIZE)),
    "for writing only": ("write", lambda parsed: {}, slice(0, SIZE)),
}


def operations(sides, remote):
    """Every kind of request into, or out of, the remote slice: name and how to submit it."""
    a = sides.pair.a
    order = np.random.default_rng(1).permutation(SIZE // PAGE)
    pages = {"page_nbytes": PAGE, "local_pages": order, "remote_pages": order}

    def batch():
        made = a.batch()
        made.write(sides.source, remote)
        made.write_pages(sides.source, remote, **pages)
        return made.submit()

    return {
        "write": lambda: a.write(sides.source, remote),
        "write_pages": lambda: a.write_pages(sides.source, remote, **pages),
        "scatter": lambda: a.scatter([(sides.source, remote)]),
        "batch": batch,
        "read": lambda: a.read(remote, sides.source),
    }


async def refused(transfer, sides, operation):
    with pytest.raises(RemoteAccessError) as caught:
        await asyncio.wait_for(transfer, SOON)
    check_told(caught.value, RemoteAccessError, sides.pair.ab, operation)
    assert caught.value.nbytes == transfer.nbytes
    assert transfer.released


async def both_go_on(pair):
    """On the same connection, whatever the fabric: nobody has to connect again."""
    assert pair.is_healthy
    await pair.write(SIZE)
    back = np.zeros(SIZE, dtype=np.uint8)
    async with await pair.a.register(back) as region, await pair.b.register(pattern(SIZE)) as source:
        await asyncio.wait_for(pair.b.write(source, pair.ba.region(region.to_bytes())), SOON)
    assert np.array_equal(back, pattern(SIZE))


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_target_refuses_and_both_go_on(fabric, forgery):
    access, change, where = FORGERIES[forgery]

    async def check(pair, way):
        sides = await Sides.make(pair, way, access)
        descriptor = sides.region.to_bytes()
        if forgery == "closed since":
            await sides.region.close()
        remote = sides.forged(descriptor, **change(wire.decode_region(descriptor)))[where]
        allowed = {"read": ("read",), "write": ("write", "write_pages", "scatter", "batch")}.get(access, ())
        for name, submit in operations(sides, remote).items():
            if name in allowed:
                continue
            await refused(submit(), sides, name)
            # Pages that lie inside of the region are none of the bad ones.
            in_part = name in ("write_pages", "batch") and where.start < SIZE < where.stop
            assert sides.unchanged(but_for=slice(SIZE, 2 * SIZE) if in_part else slice(0, 0)), name
            sides.whole[:] = sides.before
        await both_go_on(pair)
        assert sides.unchanged()

    await each_way(fabric, check)


@pytest.mark.parametrize("forgery", ["wrong key", "behind the end"])
async def test_refused_write_counts_nothing_and_who_waits_for_it_hears_that(fabric, forgery):
    """The counter can't know that a refused write will never count whole: it is broken, and says why."""
    _, change, where = FORGERIES[forgery]

    async def check(pair, way):
        sides = await Sides.make(pair, way)
        descriptor = sides.region.to_bytes()
        remote = sides.forged(descriptor, **change(wire.decode_region(descriptor)))[where]
        counter, remote_counter = pair.counter()
        other, remote_other = pair.counter()
        wait = counter.wait(1)
        await refused(pair.a.write(sides.source, remote, counter=remote_counter), sides, "write")
        with pytest.raises(BrokenResourceError, match=r"misses 1 write"):
            await asyncio.wait_for(wait, SOON)
        assert counter.value == 0
        assert sides.unchanged()
        await pair.a.notify(remote_other)
        assert await asyncio.wait_for(other.wait(1), SOON) == 1
        assert other.broken is None
        await both_go_on(pair)

    await each_way(fabric, check)


async def test_good_targets_of_a_refused_scatter_are_served(fabric):
    async with open_pair(fabric) as pair:
        sides = await Sides.make(pair, "staged")
        good = await pair.target(SIZE)
        forged = sides.forged(sides.region.to_bytes(), nbytes=2 * SIZE)[SIZE:]
        for _ in range(3):
            good.array[:] = 0
            counter, remote = pair.counter()
            with pytest.raises(RemoteAccessError):
                await asyncio.wait_for(
                    pair.a.scatter([(sides.source, good.remote, remote), (sides.source, forged)]), SOON
                )
            try:
                assert await asyncio.wait_for(counter.wait(1), SOON) == 1
                assert np.array_equal(good.array, sides.sink)
            except BrokenResourceError:
                # The one connection that both share broke under the bad one, and the good one fell with it.
                assert fabric.name == "tcp"
        assert sides.unchanged()
        await both_go_on(pair)


async def test_writes_of_nothing_by_a_wrong_key_change_nothing(fabric):
    """A NIC may look at the key of a write of no bytes, or not."""

    async def check(pair, way):
        sides = await Sides.make(pair, way)
        remote = sides.forged(sides.region.to_bytes(), keys=(wire.RemoteKey(0x5A5A, 0),))
        for at in (0, SIZE):
            for submit in (
                lambda at=at: pair.a.write(sides.source[:0], remote[at:at]),
                lambda at=at: pair.a.read(remote[at:at], sides.source[:0]),
            ):
                with contextlib.suppress(RemoteAccessError):
                    assert await asyncio.wait_for(submit(), SOON) == 0
        assert sides.unchanged()
        await both_go_on(pair)

    await each_way(fabric, check)


async def test_many_refused_at_once_hurt_no_good_one_for_good(fabric):
    """Bad ones among good ones, all in flight together; what fell with them can be sent again."""

    async def check(pair, way):
        sides = await Sides.make(pair, way)
        forged = sides.forged(sides.region.to_bytes(), nbytes=2 * SIZE)[SIZE:]
        good = await pair.target(SIZE)
        bad, fine = [], []
        for number in range(40):
            bad.append(pair.a.write(sides.source, forged))
            at = number * 100
            fine.append((at, pair.a.write(sides.source[at : at + 100], good.remote[at : at + 100])))
        ends = await asyncio.wait_for(asyncio.gather(*bad, return_exceptions=True), SOON)
        assert not any(end == SIZE for end in ends)
        again = []
        for at, transfer in fine:
            (end,) = await asyncio.gather(transfer, return_exceptions=True)
            if end != 100:  # only where one bad request breaks the connection that it shares with others
                assert fabric.name == "tcp", repr(end)
                again.append(at)
        for at in again:
            await asyncio.wait_for(pair.a.write(sides.source[at : at + 100], good.remote[at : at + 100]), SOON)
        assert np.array_equal(good.array[:4000], sides.sink[:4000])
        assert sides.unchanged()
        await both_go_on(pair)

    await each_way(fabric, check)


# ---- requests of many fragments ----

LIMIT = 64 << 10
LARGE = 16 * LIMIT  # more than 8 fragments


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("domains", [1, 2])
async def test_target_refuses_every_fragment(counted, domains):
    async with open_pair(faults=FaultPlan(max_message=LIMIT, reorder=16), domains=domains) as pair:
        sides = await Sides.make(pair, "staged", size=LARGE)
        parsed = wire.decode_region(sides.region.to_bytes())
        counter, remote_counter = pair.counter()
        wrong = tuple(wire.RemoteKey(key.key ^ 1, key.base) for key in parsed.keys)
        remote = sides.forged(sides.region.to_bytes(), keys=wrong)
        transfer = pair.a.write(sides.source, remote, counter=remote_counter if counted else None)
        await refused(transfer, sides, "write")
        assert sides.unchanged()
        assert counter.value == 0
        await both_go_on(pair)


async def test_fragments_beyond_the_end_are_refused_and_the_write_counts_nothing():
    """Those before it may land, as in any write that fails."""
    async with open_pair(faults=FaultPlan(max_message=LIMIT, reorder=16)) as pair:
        sides = await Sides.make(pair, "staged", size=LARGE)
        counter, remote_counter = pair.counter()
        remote = sides.forged(sides.region.to_bytes(), nbytes=2 * LARGE)
        for first in (LARGE // 2, LARGE - 1):
            transfer = pair.a.write(sides.source, remote[first : first + LARGE], counter=remote_counter)
            await refused(transfer, sides, "write")
            assert sides.unchanged(but_for=slice(LARGE, 2 * LARGE))
        # The fragment that counts goes last, when all others have landed: it was never posted.
        await pair.a.notify(remote_counter)
        assert await asyncio.wait_for(counter.wait(1), SOON) == 1
        # Only that one is refused.
        transfer = pair.a.write(sides.source, remote[1 : 1 + LARGE], counter=remote_counter)
        await refused(transfer, sides, "write")
        with pytest.raises(BrokenResourceError, match="misses 1 write"):
            await asyncio.wait_for(counter.wait(2), SOON)
        assert counter.value == 1
        assert sides.unchanged(but_for=slice(LARGE, 2 * LARGE))
        await both_go_on(pair)


# ---- the ends of the ranges ----


@pytest.mark.parametrize("pages", [4092, 4093, 4094, 4095, 4096, 2 * 4093, 2 * 4093 + 1])
async def test_runs_at_the_end_of_what_a_weight_can_say(fabric, pages):
    async with open_pair(fabric, heartbeat_interval=0.0) as pair:
        data = pattern(pages * 8)
        source, target = await pair.source(data), await pair.target(pages * 8)
        counter, remote = pair.counter()
        before = sum(link.completed["write_imm"] for link in pair.ab.stats().links)
        await pair.a.write_pages(
            source, target.remote, page_nbytes=8, local_pages=range(pages), remote_pages=range(pages), counter=remote
        )
        assert await asyncio.wait_for(counter.wait(pages), SOON) == pages
        assert counter.value == pages
        assert np.array_equal(target.array, data)
        posted = sum(link.completed["write_imm"] for link in pair.ab.stats().links) - before
        assert posted == -(-pages // 4093)


def take_counters(engine, left):
    """Take the ids of all counters but so many, as a program would that makes a million; return them."""
    core, filler = engine._core, CounterCore(engine._core)
    taken = []
    while not taken or taken[-1] != 2**20 - 1 - left:
        core.counter_open(filler)
        taken.append(filler.id)
    return taken


@pytest.mark.deadline(40)
async def test_last_counter_counts_and_there_is_no_other_until_one_is_closed(fabric):
    async with open_pair(fabric) as pair, engine_on(fabric, name="late") as late:
        taken = take_counters(pair.b, left=1)
        counter, remote = pair.counter()
        assert counter.id == 2**20 - 1
        pages = 4093
        data = pattern(pages * 8)
        source, target = await pair.source(data), await pair.target(pages * 8)
        await pair.a.write(source, target.remote, counter=remote)
        await pair.a.write_pages(
            source, target.remote, page_nbytes=8, local_pages=range(pages), remote_pages=range(pages), counter=remote
        )
        assert await asyncio.wait_for(counter.wait(1 + pages), SOON) == 1 + pages
        assert np.array_equal(target.array, data)

        # Every call that needs one, here and at who asks for a connection.
        with pytest.raises(MemoryError, match=r"all 2\*\*20 counters are in use"):
            pair.b.counter()
        with pytest.raises(MemoryError, match=r"all 2\*\*20 counters are in use"):
            await pair.b.group("too many", [pair.ba])
        with pytest.raises(MemoryError):
            await pair.b.connect(late.address)
        with pytest.raises(BrokenResourceError, match="no counter for another peer"):
            await late.connect(pair.b.address)
        assert len(pair.b.peers) == 1
        await pair.a.write(source, target.remote, counter=remote)
        assert await asyncio.wait_for(counter.wait(2 + pages), SOON) == 2 + pages

        # And once there are some again, all of it works.
        for id in taken[:20]:
            pair.b._core.counter_recycle(id)
        await connect(late, pair.b)
        groups = await asyncio.gather(pair.b.group("some", [pair.ba]), pair.a.group("some", [pair.ab]))
        await asyncio.wait_for(asyncio.gather(pair.b.barrier(groups[0]), pair.a.barrier(groups[1])), SOON)
        for group in groups:
            await group.close()
        await pair.write(SIZE)
