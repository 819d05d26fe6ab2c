# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Rails die at any moment of any load: data right or a typed error, counters exact, messages once; scopes fence."""

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from helpers.engines import Pair, drop_link, eventually, open_pair, pattern
from pplx_async import PplxAsyncError, RailLost, TransferScope
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 600_000
LARGE = 2_000_000  # takes a millisecond or two over ipc
PAGE = 1000
KINDS = ["write", "counted", "pages", "scatter", "read", "send"]
RAILS = {"domains": 3, "devices": ("loop0", "loop1", "loop2"), "shard_nbytes": 16 << 10}
LIMIT = 15.0  # of one example, on a machine that does much else
WATCH = 0.006

# The provider says that the link is gone; or, as it takes its time, seldom: nothing is heard of it any more.
_counts = st.integers(8, 60)  # the first few connect
deaths = st.one_of(
    *[st.builds(lambda n: {"fail_after": n, "fail_status": "PEER_LOST"}, _counts)] * 4,
    st.builds(lambda n: {"drop_after": n}, _counts),
)
plans = st.builds(
    lambda death, device, seed, reorder, delay, again, most: FaultPlan(
        device=device, seed=seed, reorder=reorder, delay_us=(0, delay), again=again, max_message=most, **death
    ),
    deaths,
    st.integers(0, 2),
    st.integers(0, 999),
    st.sampled_from([0, 16]),
    st.sampled_from([0, 200]),
    st.sampled_from([0.0, 0.2]),
    st.sampled_from([None, 8 << 10, 2 << 10]),
)
loads = st.lists(st.sampled_from(KINDS), min_size=6, max_size=60)
EXAMPLES = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)


class Load:
    """Operations of which each has a part of the memory for itself, and a counter."""

    def __init__(self, pair, kinds, size=SIZE):
        self.pair, self.kinds, self.size = pair, kinds, size
        step = size // len(kinds) // PAGE * PAGE
        self.parts = [slice(i * step, (i + 1) * step) for i in range(len(kinds))]
        self.counters = [pair.counter() for _ in kinds]
        self.data, self.kept = pattern(size, 1), pattern(size, 2)
        self.sink = np.zeros(size, dtype=np.uint8)
        self.heard = []

    async def open(self):
        self.source, self.local_sink = await self.pair.source(self.data), await self.pair.source(self.sink)
        self.target, self.other = await self.pair.target(self.size), await self.pair.target(self.kept)
        return self

    def start(self, engine, i):
        """Start the i-th, with the operations of an engine or a scope."""
        kind, part, remote = self.kinds[i], self.parts[i], self.counters[i][1]
        if kind == "send":
            return self.pair.ab.send(b"%d" % i)
        if kind == "read":
            return engine.read(self.other.remote[part], self.local_sink[part])
        if kind == "pages":
            pages = range(part.start // PAGE, part.stop // PAGE)
            return engine.write_pages(
                self.source, self.target.remote, page_nbytes=PAGE, local_pages=pages, remote_pages=pages, counter=remote
            )
        if kind == "scatter":
            middle = (part.start + part.stop) // 2
            halves = (slice(part.start, middle), slice(middle, part.stop))
            return engine.scatter([(self.source[half], self.target.remote[half], remote) for half in halves])
        return engine.write(self.source[part], self.target.remote[part], counter=remote if kind == "counted" else None)

    def count(self, i):
        part = self.parts[i]
        return {"counted": 1, "scatter": 2, "pages": (part.stop - part.start) // PAGE}.get(self.kinds[i], 0)

    def check(self, i, result, *, repeated):
        """An operation that has ended: whole, or typed where it may be. Return what its counter must show, or may."""
        if not isinstance(result, BaseException):
            return self.count(i)
        assert isinstance(result, RailLost), result
        assert self.kinds[i] != "send"
        assert not (repeated and self.kinds[i] in ("write", "read"))
        return None

    async def check_all(self, results, *, repeated):
        """Every byte, every count, every message."""
        for i, result in enumerate(results):
            counter, part, kind = self.counters[i][0], self.parts[i], self.kinds[i]
            expected = self.check(i, result, repeated=repeated)
            if expected is None:
                continue
            assert await counter.wait(expected) == expected
            if kind == "read":
                assert np.array_equal(self.sink[part], self.kept[part])
            elif kind != "send":
                assert np.array_equal(self.target.array[part], self.data[part])
        sent = [i for i, kind in enumerate(self.kinds) if kind == "send"]
        await eventually(lambda: len(self.heard) >= len(sent), "all messages have come", LIMIT)
        assert sorted(self.heard) == sent

    def check_counts(self, results):
        """Nothing was counted that has not been done, and nothing twice: when nothing can come any more."""
        for i, result in enumerate(results):
            if isinstance(result, BaseException):
                assert self.counters[i][0].value <= self.count(i)
            else:
                assert self.counters[i][0].value == self.count(i)

    async def check_fenced(self, after):
        """Start all of it in a scope that ends early, and see that nothing of it touches memory from then on."""
        try:
            async with asyncio.timeout(after), TransferScope(self.pair.a) as scope:
                for i in range(len(self.kinds)):  # sends are the engine's own, and of no memory of ours
                    self.start(scope, i)
        except TimeoutError:
            pass
        except BaseExceptionGroup as group:
            strange = group.split((PplxAsyncError, TimeoutError, asyncio.CancelledError))[1]
            if strange is not None:
                raise strange from None
        self.target.array[:] = 0xA5
        self.sink[:] = 0x5A
        self.data[:] = 0x33
        await asyncio.sleep(WATCH)
        assert (self.target.array == 0xA5).all()
        assert (self.sink == 0x5A).all()

    async def listen(self):
        async for message in self.pair.b.messages():
            self.heard.append(int(message.data))


@EXAMPLES
@given(plan=plans, kinds=loads, failover=st.booleans())
@pytest.mark.deadline(240)
async def test_each_operation_is_whole_or_ends_typed(plan, kinds, failover):
    async with (
        asyncio.timeout(LIMIT),
        open_pair(
            "loopback", faults=plan, b={"faults": None}, rail_failover=failover, peer_timeout=1.0, **RAILS
        ) as pair,
    ):
        load = await Load(pair, kinds).open()
        listening = asyncio.create_task(load.listen())
        ended = await asyncio.gather(*(load.start(pair.a, i) for i in range(len(kinds))), return_exceptions=True)
        lost = sum(isinstance(result, RailLost) for result in ended)
        event(f"lost: {lost and 'some'}, rail {[link.lost for link in pair.ab.stats().links]}")
        # The peer lives; if the rail dies only now, then by the first of these.
        with contextlib.suppress(RailLost):
            await pair.write(100_000)
        if any(link.lost for link in pair.ab.stats().links):
            await pair.write(100_000)
        await load.check_all(ended, repeated=failover)
        load.check_counts(ended)
        listening.cancel()
        await pair.forget()


@EXAMPLES
@given(plan=plans, kinds=loads, failover=st.booleans(), after=st.floats(0, 0.004))
@pytest.mark.deadline(240)
async def test_after_a_scope_nothing_changes_memory_any_more(plan, kinds, failover, after):
    async with (
        asyncio.timeout(LIMIT),
        open_pair(
            "loopback", faults=plan, b={"faults": None}, rail_failover=failover, peer_timeout=1.0, **RAILS
        ) as pair,
    ):
        load = await Load(pair, kinds).open()
        await load.check_fenced(after)
        await pair.forget()


# Which links, at which end, and when after the one before; one of the three is left.
a_drop = st.tuples(st.integers(0, 2), st.booleans(), st.floats(0, 0.001))
drops = st.lists(a_drop, min_size=1, max_size=2, unique_by=lambda drop: drop[0])
DROPS = settings(EXAMPLES, max_examples=20)
joined = pytest.mark.parametrize("rails", ["loopback", "ipc", "ipc_vm_writev"])


def open_rails(rails, failover):
    """No end has faults of its own; on loopback it takes its time."""
    if rails == "loopback":
        plan = FaultPlan(delay_us=(0, 2000), reorder=8)
        return open_pair(rails, faults=plan, rail_failover=failover, **RAILS)
    return open_pair(
        "ipc", rail_failover=failover, ipc_vm_writev=rails == "ipc_vm_writev", domains=3, shard_nbytes=16 << 10
    )


async def drop_all(pair, drops, *, here=True):
    for link, at_a, delay in drops:
        await asyncio.sleep(delay)
        drop_link(pair.ab if at_a and here else pair.ba, link)


@joined
@DROPS
@given(drops=drops, there=loads, back=loads, failover=st.booleans())
@pytest.mark.deadline(240)
async def test_rails_that_are_dropped_cost_no_byte_and_no_count(rails, drops, there, back, failover):
    async with asyncio.timeout(LIMIT), open_rails(rails, failover) as pair:
        other = Pair(pair.fabric, pair.b, pair.a, pair.ba, pair.ab)
        loads = [await Load(*each, LARGE).open() for each in ((pair, there), (other, back))]
        listening = [asyncio.create_task(load.listen()) for load in loads]
        dropping = asyncio.create_task(drop_all(pair, drops))
        ended = await asyncio.gather(
            *(
                asyncio.gather(*(load.start(load.pair.a, i) for i in range(len(load.kinds))), return_exceptions=True)
                for load in loads
            )
        )
        await dropping
        gone = {drop[0] for drop in drops}
        await eventually(
            lambda: all(
                {i for i, link in enumerate(peer.stats().links) if link.lost} == gone for peer in (pair.ab, pair.ba)
            ),
            "both sides have lost these links",
            LIMIT,
        )
        for load, results in zip(loads, ended, strict=True):
            # Over ipc the other side sees a connection that broke, before it hears that a link is lost.
            await load.check_all(results, repeated=failover and rails == "loopback")
            await load.pair.write(100_000)
            load.check_counts(results)
        event(f"lost: {sum(isinstance(result, RailLost) for results in ended for result in results) > 0}")
        for task in listening:
            task.cancel()
        await other.forget()
        await pair.forget()


@joined
@DROPS
@given(drops=drops, kinds=loads, failover=st.booleans(), after=st.floats(0, 0.004))
@pytest.mark.deadline(240)
async def test_after_a_scope_no_dropped_rail_changes_memory_any_more(rails, drops, kinds, failover, after):
    async with asyncio.timeout(LIMIT), open_rails(rails, failover) as pair:
        load = await Load(pair, kinds, LARGE).open()
        # At the other end: what it says is true then, and both ends are closed before anything fails here.
        dropping = asyncio.create_task(drop_all(pair, drops, here=False))
        await load.check_fenced(after)
        await dropping
        await pair.forget()
