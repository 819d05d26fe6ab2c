# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever ended a scope, whenever: after it, its memory is nobody's but ours, here and at the peer."""

import asyncio
import json
import signal

import numpy as np
import pytest
import pytest_asyncio
import uvloop
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from helpers.blocks import ENDINGS, KINDS, Area, Block, Runner, count
from helpers.engines import engine_on, eventually, open_pair
from helpers.process import helper
from pplx_async import BrokenResourceError, CompletionError, PeerLost
from pplx_async.testing import FaultPlan

SIZE = 64 << 10  # of an area
LARGE = 512 << 10  # where there is no plan that delays
WATCH = 0.006  # seconds; four times the longest delay of a plan

EXAMPLES = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
    phases=[Phase.generate],  # the threads' times differ from run to run: a smaller example need not fail
)


def blocks(size):
    """Blocks of up to two inside of each, three deep."""
    operation = st.tuples(st.sampled_from(KINDS), st.integers(0, size - 1), st.integers(1, size))

    def made(inner):
        return st.builds(
            Block,
            operations=st.lists(operation, min_size=1, max_size=12).map(tuple),
            ending=st.sampled_from(ENDINGS),
            after=st.floats(0, 0.004),
            inner=inner,
            swallow=st.booleans(),
        )

    innermost = made(st.just(()))
    middle = made(st.lists(innermost, max_size=2).map(tuple))
    return made(st.lists(middle, max_size=2).map(tuple))


PLANS = st.builds(
    FaultPlan,
    seed=st.integers(0, 2**32),
    reorder=st.sampled_from([0, 16]),
    delay_us=st.sampled_from([(0, 0), (0, 1500), (1000, 1500)]),
    again=st.sampled_from([0.0, 0.3]),
    fail=st.sampled_from([0.0, 0.0, 0.02]),
    fail_status=st.sampled_from(["INTERNAL", "REMOTE_ACCESS", "CONNECTION"]),
    max_message=st.sampled_from([None, 16 << 10, 1 << 10]),
    max_inflight=st.sampled_from([None, 4]),
    posts_per_turn=st.sampled_from([None, 1]),
)


class Memory:
    """Areas of both sides, and what is in those that are ours again."""

    MINE, SINK, THEIRS = 0x33, 0x5A, 0xA5  # what we put there then: nobody reads the first, or writes the others

    def __init__(self, pair, size, repeat=1):
        self.pair, self.size, self.repeat = pair, size, repeat
        self.counters = []
        self.reused = set()

    async def open(self, areas, shared):
        nbytes = areas * self.size
        empty = self.pair.b.empty if shared else lambda nbytes: np.zeros(nbytes, dtype=np.uint8)
        self.mine = np.full(nbytes, 1, dtype=np.uint8)
        self.sunk = np.zeros(nbytes, dtype=np.uint8)
        self.source, self.sink = await self.pair.source(self.mine), await self.pair.source(self.sunk)
        self.target = await self.pair.target(empty(nbytes))
        return self

    def areas(self):
        for number in range(self.mine.size // self.size):
            part = self.part(number)
            counter, remote = self.pair.counter()
            area = Area(number, self.source[part], self.sink[part], self.target.remote[part], remote)
            self.counters.append((counter, area))
            yield area

    def part(self, number):
        return slice(number * self.size, (number + 1) * self.size)

    def reuse(self, area):
        part = self.part(area.number)
        self.mine[part] = self.MINE
        self.sunk[part] = self.SINK
        self.target.array[part] = self.THEIRS
        self.reused.add(area.number)

    def check(self):
        for number in self.reused:
            part = self.part(number)
            assert (self.target.array[part] == self.THEIRS).all()
            assert (self.sunk[part] == self.SINK).all()

    async def run(self, block):
        """Run a block, watch what is ours again, and look at what was counted."""
        await Runner(self.pair.a, self.areas(), self.reuse, self.repeat).run(block)
        self.check()
        await asyncio.sleep(WATCH)
        self.check()
        assert self.pair.a.stats().inflight == 0
        for counter, area in self.counters:
            # Each of them counts: what scatters and pages did before they were cancelled comes on top.
            whole = sum(
                transfer.operation == "notify" and not transfer.cancelled() and transfer.exception() is None
                for transfer in area.transfers
            )
            # What has landed is counted when the proxy thread has a core.
            await eventually(lambda c=counter, n=whole: c.broken is not None or c.value >= n, "it counts")
            event(f"a transfer was cancelled: {any(transfer.cancelled() for transfer in area.transfers)}")


@settings(EXAMPLES, max_examples=60)
@given(block=blocks(SIZE), plan=PLANS, domains=st.sampled_from([1, 2]))
async def test_nothing_changes_the_pages_after_a_scope(block, plan, domains):
    async with open_pair(
        "loopback", faults=plan, domains=domains, shard_nbytes=4096, message_slots=2, b={"faults": FaultPlan()}
    ) as pair:
        memory = await Memory(pair, SIZE).open(count(block), shared=False)
        await memory.run(block)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected(fabric):
    async with open_pair(fabric, domains=2, shard_nbytes=128 << 10) as pair:
        yield pair


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.fabrics("ipc", "tcp", "verbs")
@settings(EXAMPLES, max_examples=40)
@given(block=blocks(LARGE), shared=st.booleans())
async def test_nothing_changes_the_pages_after_a_scope_without_a_plan(connected, block, shared):
    """Cancelled at random moments; and peers map the memory, or not."""
    memory = await Memory(connected, LARGE, repeat=10).open(count(block), shared)
    await memory.run(block)
    await connected.forget()


@pytest.mark.fabrics("ipc", "tcp", "verbs")
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "ordinary"])
async def test_nothing_changes_the_pages_after_a_scope_of_another_process(fabric, shared):
    """The memory is ours, the scopes are those of another process."""
    areas, size = 40, 256 << 10
    # No fence reaches a peer that is lost, nor what is given up as unreleased: no busy machine may make us either.
    patient = {"peer_timeout": 60.0, "drain_timeout": 60.0}
    given = {"fabric": fabric.name, **fabric.options, **patient}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with engine_on(fabric, name="owner", **patient) as engine, helper("scopes", json.dumps(given)) as process:
        memory = engine.empty(areas * size) if shared else np.zeros(areas * size, dtype=np.uint8)
        async with await engine.register(memory) as region, engine.counter() as counter:
            descriptors = {"region": region.to_bytes().hex(), "counter": counter.to_bytes().hex()}
            await process.ask("open", address=engine.address, size=size, areas=areas, **descriptors)
            cancelled = 0
            for number in range(areas):
                cancelled += await process.ask("run", number=number, repeat=20)
                memory[number * size : (number + 1) * size] = Memory.THEIRS
            await asyncio.sleep(WATCH)
            assert await process.ask("connected")
            assert (memory == Memory.THEIRS).all()
            assert await process.ask("check")
            assert cancelled > 0
            await process.ask("close")


@pytest.mark.fabrics("ipc", "tcp", "verbs")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_nothing_changes_our_pages_after_a_scope_whose_peer_is_lost(fabric, how):
    """Writes and reads are under way when the peer dies, or stops until it is lost; that one goes on in the end.

    What it has received by then lands as it goes on, for no fence of ours reaches it: its own revoke does.
    """
    given = {"fabric": fabric.name, **fabric.options, "peer_timeout": 1.5}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with helper("receiver", json.dumps(given)) as process, engine_on(fabric, peer_timeout=1.5) as engine:
        address = await process.ask("open", nbytes=LARGE)
        process.post("accept")
        peer = await engine.connect(address)
        remote = peer.region(bytes.fromhex((await process.answer())["region"]))
        await process.ask("fill", value=7)
        mine, sunk = np.full(LARGE, 1, dtype=np.uint8), np.zeros(LARGE, dtype=np.uint8)
        async with await engine.register(mine) as source, await engine.register(sunk) as sink:
            transfers = []
            with pytest.raises(ExceptionGroup) as caught:
                async with engine.scope() as scope:
                    for _ in range(200):
                        transfers += [scope.write(source, remote), scope.read(remote, sink)]
                    process.process.send_signal(how)
                    await asyncio.sleep(60)
            assert caught.group_contains(PeerLost)
            assert all(transfer.released for transfer in transfers)
            mine[:], sunk[:] = Memory.MINE, Memory.SINK
            if how == signal.SIGSTOP:
                process.process.send_signal(signal.SIGCONT)
                await process.ask("revoke")
                await process.ask("fill", value=Memory.THEIRS)
                assert (await process.ask("wait_for_loss")).startswith("PeerLost")  # it has seen the end as well
            await asyncio.sleep(WATCH)
            assert (sunk == Memory.SINK).all()
            if how == signal.SIGSTOP:
                assert await process.ask("holds", value=Memory.THEIRS)


@settings(EXAMPLES, max_examples=10)
@given(seed=st.integers(0, 1000), after=st.floats(0, 0.01), size=st.integers(1, SIZE))
async def test_nothing_changes_the_pages_after_a_revoke(seed, after, size):
    plan = FaultPlan(seed=seed, reorder=16, delay_us=(0, 1500), again=0.2)
    async with open_pair("loopback", faults=plan) as pair:
        source, target = await pair.source(size), await pair.target(size)

        async def write():
            while True:
                try:
                    await pair.a.write(source, target.remote)
                except (BrokenResourceError, CompletionError):
                    return

        tasks = [asyncio.create_task(write()) for _ in range(6)]
        await asyncio.sleep(after)
        await target.region.revoke()
        target.array[:] = 0xA5
        await asyncio.sleep(WATCH)
        assert (target.array == 0xA5).all()
        await asyncio.gather(*tasks)
