# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A rail dies at any moment of any load: data right or a typed error, counters exact, messages once; scopes fence."""

import asyncio
import contextlib

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from helpers.engines import open_pair, pattern
from pplx_async import RailLost, TransferScope
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 600_000
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

    def __init__(self, pair, kinds):
        self.pair, self.kinds = pair, kinds
        step = SIZE // len(kinds) // PAGE * PAGE
        self.parts = [slice(i * step, (i + 1) * step) for i in range(len(kinds))]
        self.counters = [pair.counter() for _ in kinds]
        self.data, self.kept = pattern(SIZE, 1), pattern(SIZE, 2)
        self.sink = np.zeros(SIZE, dtype=np.uint8)
        self.heard = []

    async def open(self):
        self.source, self.local_sink = await self.pair.source(self.data), await self.pair.source(self.sink)
        self.target, self.other = await self.pair.target(SIZE), await self.pair.target(self.kept)
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
        for i, (kind, part, (counter, _), result) in enumerate(
            zip(kinds, load.parts, load.counters, ended, strict=True)
        ):
            if isinstance(result, Exception):
                assert isinstance(result, RailLost), result
                assert kind != "send"
                assert not (failover and kind in ("write", "read"))
                assert counter.value <= load.count(i)
                continue
            assert await counter.wait(load.count(i)) == load.count(i)
            if kind == "read":
                assert np.array_equal(load.sink[part], load.kept[part])
            elif kind != "send":
                assert np.array_equal(load.target.array[part], load.data[part])
        lost = sum(isinstance(result, RailLost) for result in ended)
        event(f"lost: {lost and 'some'}, rail {[link.lost for link in pair.ab.stats().links]}")
        # The peer lives; if the rail dies only now, then by the first of these.
        with contextlib.suppress(RailLost):
            await pair.write(100_000)
        if any(link.lost for link in pair.ab.stats().links):
            await pair.write(100_000)
        sent = [i for i, kind in enumerate(kinds) if kind == "send"]
        while len(load.heard) < len(sent):
            await asyncio.sleep(0.001)
        assert sorted(load.heard) == sent
        for i, (counter, _) in enumerate(load.counters):
            assert counter.value <= load.count(i)
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
        with contextlib.suppress(BaseExceptionGroup, TimeoutError):
            async with asyncio.timeout(after), TransferScope(pair.a) as scope:
                for i in range(len(kinds)):
                    load.start(scope, i)
        # Sends are the engine's own, and of no memory of ours.
        load.target.array[:] = 0xA5
        load.sink[:] = 0x5A
        load.data[:] = 0x33
        await asyncio.sleep(WATCH)
        assert (load.target.array == 0xA5).all()
        assert (load.sink == 0x5A).all()
        await pair.forget()
