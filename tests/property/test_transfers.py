# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Random pages, slices and counts against a model in NumPy, under faults."""

import asyncio

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.engines import SOON, eventually, open_pair, pattern
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 20_000
EXAMPLES = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)

PLANS = {
    "plain": ({}, {}),
    "rough": ({"faults": FaultPlan(seed=9, reorder=64, again=0.3, delay_us=(0, 100))}, {}),
    "small messages": ({"faults": FaultPlan(seed=9, reorder=64, max_message=300)}, {}),
    "sharded": ({"domains": 4, "shard_nbytes": 4096, "faults": FaultPlan(reorder=32)}, {}),
    "different domains": ({"domains": 2, "shard_nbytes": 4096}, {"domains": 8}),
}


class Model:
    """A pair, its memory, and what the memory must look like."""

    def __init__(self, pair, source, target, counter):
        self.pair, self.source, self.target = pair, source, target
        self.counter, self.remote = counter
        self.data = pattern(SIZE, 1)
        self.expected = np.zeros(SIZE, dtype=np.uint8)
        self.count = 0

    async def check(self):
        async with asyncio.timeout(SOON):
            assert await self.counter.wait(self.count) == self.count
        assert np.array_equal(self.target.array, self.expected)

    def clear(self):
        self.target.array[:] = 0
        self.expected[:] = 0


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PLANS)
async def model(request):
    ours, theirs = PLANS[request.param]
    async with open_pair("loopback", b=theirs, **ours) as pair:
        source, target = await pair.source(pattern(SIZE, 1)), await pair.target(SIZE)
        yield Model(pair, source, target, pair.counter())


@st.composite
def pages(draw):
    page = draw(st.integers(1, 700))
    strides = [page + draw(st.integers(0, 50)) for _ in range(2)]
    offsets = [draw(st.integers(0, stride - page)) for stride in strides]
    limits = [(SIZE - offset - page) // stride + 1 for stride, offset in zip(strides, offsets, strict=True)]
    count = draw(st.integers(0, min(60, *limits)))
    # Runs are likely, and no page of the target twice: which would be last, nobody promises.
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        theirs = rng.permutation(limits[1])[:count]
    else:
        theirs = np.arange(count) + rng.integers(0, limits[1] - count + 1)
    ours = rng.integers(0, limits[0], count)
    if count and draw(st.booleans()):
        ours = np.minimum(np.arange(count) + rng.integers(0, limits[0]), limits[0] - 1)
    dtype = draw(st.sampled_from(["int16", "uint16", "int32", "uint32", "int64", "uint64"]))
    return page, strides, offsets, ours.astype(dtype), theirs.astype(dtype)


@EXAMPLES
@given(pages=pages())
async def test_pages(model, pages):
    page, strides, offsets, ours, theirs = pages
    model.clear()
    for p, q in zip(ours, theirs, strict=True):
        at, to = int(p) * strides[0] + offsets[0], int(q) * strides[1] + offsets[1]
        model.expected[to : to + page] = model.data[at : at + page]
    nbytes = await model.pair.a.write_pages(
        model.source,
        model.target.remote,
        page_nbytes=page,
        local_pages=ours,
        remote_pages=theirs,
        counter=model.remote,
        local_stride=strides[0],
        remote_stride=strides[1],
        local_offset=offsets[0],
        remote_offset=offsets[1],
    )
    assert nbytes == page * len(ours)
    model.count += len(ours)
    await model.check()


@st.composite
def copies(draw):
    """Triples (from, to, length) that overlap nowhere at the target: of two writes to one place either may be last."""
    taken = np.zeros(SIZE, dtype=bool)
    triples = []
    for _ in range(draw(st.integers(0, 12))):
        length = draw(st.integers(0, SIZE // 4))
        to = draw(st.integers(0, SIZE - length))
        at = draw(st.integers(0, SIZE - length))
        if not taken[to : to + length].any():
            taken[to : to + length] = True
            triples.append((at, to, length))
    return triples


@EXAMPLES
@given(triples=copies())
async def test_slices(model, triples):
    model.clear()
    transfers = []
    for at, to, length in triples:
        model.expected[to : to + length] = model.data[at : at + length]
        piece = model.source[at:][:length]
        transfers.append(model.pair.a.write(piece, model.target.remote[to : to + length], counter=model.remote))
    await asyncio.gather(*transfers)
    model.count += len(transfers)
    await model.check()


@EXAMPLES
@given(parts=st.lists(st.tuples(st.sampled_from(["write", "pages", "notify"]), st.integers(1, 40)), max_size=10))
async def test_weights_add_up(model, parts):
    """Whatever was coalesced, cut or sharded: the counter shows the sum of logical writes, exactly."""
    batch = model.pair.a.batch()
    for kind, amount in parts:
        if kind == "write":
            batch.write(model.source[: amount * 400], model.target.remote[: amount * 400], counter=model.remote)
            model.count += 1
        elif kind == "pages":
            indices = range(amount)
            batch.write_pages(
                model.source,
                model.target.remote,
                page_nbytes=410,
                local_pages=indices,
                remote_pages=indices,
                counter=model.remote,
            )
            model.count += amount
        else:
            batch.notify(model.remote, amount)
            model.count += amount
    await batch.submit()
    async with asyncio.timeout(SOON):
        assert await model.counter.wait(model.count) == model.count
    await asyncio.sleep(0)
    assert model.counter.value == model.count


@EXAMPLES
@given(steps=st.lists(st.tuples(st.sampled_from(["take", "wait", "cancel", "notify"]), st.integers(1, 5)), max_size=40))
async def test_counter_against_a_model(model, steps):
    """Takes are served in order, each whole; waits never consume; the cancelled take nothing."""
    counter, remote = model.pair.counter()
    total = taken = 0
    takes, waits, pending = [], [], []
    for kind, amount in steps:
        if kind == "notify":
            batch = model.pair.a.batch()
            batch.notify(remote, amount)
            await batch.submit()
            total += amount
            async with asyncio.timeout(SOON):
                await counter.wait(total)
        elif kind == "take":
            takes.append(counter.take(amount))
            pending.append((takes[-1], amount))
        elif kind == "wait":
            waits.append((counter.wait(total + amount - 2 if total + amount >= 2 else 0), total + amount - 2))
        elif pending:
            promise, _ = pending.pop(amount % len(pending))
            promise.cancel()
            assert promise.cancelled()
        served = []
        while pending and taken + pending[0][1] <= total:
            promise, need = pending.pop(0)
            taken += need
            served.append(promise)
        # The value shows at once, those who wait are told in one of the loop's next turns.
        due = served + [wait for wait, goal in waits if goal <= total]
        await eventually(lambda due=due: all(promise.done() for promise in due), "those whose count is there are told")
        assert not any(promise.cancelled() for promise in due)
        assert counter.value == total
        assert counter.available == total - taken
        assert not any(promise.done() for promise, _ in pending)
        for wait, goal in waits:
            assert wait.done() == (goal <= total)
    for promise, _ in pending:
        promise.cancel()
    for wait, _ in waits:
        wait.cancel()
    await counter.close()
