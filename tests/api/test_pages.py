# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""TransferEngine.write_pages: index types, strides, offsets, coalescing, and what is refused."""

import array
import asyncio
import contextlib
import math

import numpy as np
import pytest

from helpers.engines import pattern
from pplx_async import ClosedResourceError

pytestmark = pytest.mark.asyncio(loop_scope="module")


def model(source, target, page, local_pages, remote_pages, strides=(None, None), offsets=(0, 0)):
    """What the target must look like, by NumPy alone."""
    expected = target.copy()
    for p, q in zip(local_pages, remote_pages, strict=True):
        start = int(p) * (strides[0] or page) + offsets[0]
        end = int(q) * (strides[1] or page) + offsets[1]
        expected[end : end + page] = source[start : start + page]
    return expected


def posted(engine):
    """Work requests that carried data, so far."""
    links = [link for peer in engine.stats().peers for link in peer.links]
    # Heartbeats are immediates too, and carry nothing: tell them from data by bytes where it matters.
    return sum(link.completed["write"] for link in links), sum(link.completed["write_imm"] for link in links)


def expected(engine, pages):
    """How many work requests so many pages that are not adjacent may take."""
    (domain,) = engine.explain().domains
    together = domain["max_segments"]
    # A few are begun at once, and are fewer together than the others.
    return range(math.ceil(pages / together), pages // 4 + 1) if together > 1 else [pages]


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
async def test_every_integer_type(pair, dtype):
    data = pattern(100 * 16)
    source, target = await pair.source(data), await pair.target(100 * 16)
    rng = np.random.default_rng(3)
    ours, theirs = rng.permutation(100).astype(dtype), rng.permutation(100).astype(dtype)
    counter, remote = pair.counter()
    transfer = pair.a.write_pages(
        source, target.remote, page_nbytes=16, local_pages=ours, remote_pages=theirs, counter=remote
    )
    assert transfer.operation == "write_pages"
    assert await transfer == 1600
    assert await counter.wait(100) == 100
    assert np.array_equal(target.array, model(data, np.zeros_like(data), 16, ours, theirs))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([3, 1, 2], (0, 9, 4)),
        (range(5), range(4, 9)),
        (array.array("h", [7, 0]), [1, 2]),
        (bytes([1, 2, 3]), bytearray([4, 5, 6])),
        (memoryview(array.array("Q", [9, 8])), np.array([0, 1])),
    ],
    ids=["list", "range", "array", "bytes", "memoryview"],
)
async def test_every_kind_of_sequence(pair, ours, theirs):
    data = pattern(10 * 100)
    source, target = await pair.source(data), await pair.target(10 * 100)
    nbytes = await pair.a.write_pages(source, target.remote, page_nbytes=100, local_pages=ours, remote_pages=theirs)
    assert nbytes == 100 * len(ours)
    assert np.array_equal(target.array, model(data, np.zeros_like(data), 100, list(ours), list(theirs)))


@pytest.mark.parametrize("strides", [(None, None), (64, 48), (40, 100), (None, 41)])
@pytest.mark.parametrize("offsets", [(0, 0), (3, 0), (0, 7), (8, 5)])
async def test_strides_and_offsets(pair, strides, offsets):
    page = 33
    strides = tuple(s if s is None or s >= page + o else s + 8 for s, o in zip(strides, offsets, strict=True))
    if any(s is None and o for s, o in zip(strides, offsets, strict=True)):
        strides = tuple(s or page + o for s, o in zip(strides, offsets, strict=True))
    data = pattern(30 * 110)
    source, target = await pair.source(data), await pair.target(30 * 110)
    rng = np.random.default_rng(5)
    ours, theirs = rng.permutation(20), rng.permutation(20)
    counter, remote = pair.counter()
    await pair.a.write_pages(
        source,
        target.remote,
        page_nbytes=page,
        local_pages=ours,
        remote_pages=theirs,
        counter=remote,
        local_stride=strides[0],
        remote_stride=strides[1],
        local_offset=offsets[0],
        remote_offset=offsets[1],
    )
    assert await counter.wait(20) == 20
    assert np.array_equal(target.array, model(data, np.zeros_like(data), page, ours, theirs, strides, offsets))


async def test_pages_are_relative_to_their_slices(pair):
    data = pattern(1000)
    source, target = await pair.source(data), await pair.target(1000)
    await pair.a.write_pages(source[5:], target.remote[100:200], page_nbytes=10, local_pages=[2], remote_pages=[9])
    expected = np.zeros(1000, dtype=np.uint8)
    expected[190:200] = data[25:35]
    assert np.array_equal(target.array, expected)


async def test_repeated_pages(pair):
    data = pattern(40)
    source, target = await pair.source(data), await pair.target(400)
    counter, remote = pair.counter()
    await pair.a.write_pages(
        source, target.remote, page_nbytes=10, local_pages=[1] * 40, remote_pages=range(40), counter=remote
    )
    assert await counter.wait(40) == 40
    assert np.array_equal(target.array, np.tile(data[10:20], 40))


async def test_no_pages(pair):
    source, target = await pair.source(40), await pair.target(40)
    counter, remote = pair.counter()
    empty = np.array([], dtype=np.int64)
    transfer = pair.a.write_pages(
        source, target.remote, page_nbytes=10, local_pages=empty, remote_pages=[], counter=remote
    )
    assert await transfer == 0
    assert counter.value == 0
    assert not target.array.any()


async def test_adjacent_pages_go_out_as_one_and_count_as_many(pair):
    pages, page = 256, 64
    data = pattern(pages * page)
    source, target = await pair.source(data), await pair.target(pages * page)
    before = posted(pair.a)[0]
    await pair.a.write_pages(
        source, target.remote, page_nbytes=page, local_pages=range(pages), remote_pages=range(pages)
    )
    runs = posted(pair.a)[0] - before
    assert 1 <= runs <= 2  # two where a provider cuts it
    assert np.array_equal(target.array, data)
    # Adjacent on one side only: every page for itself, or as many as the fabric takes at once.
    before = posted(pair.a)[0]
    await pair.a.write_pages(
        source, target.remote, page_nbytes=page, local_pages=range(pages), remote_pages=range(pages - 1, -1, -1)
    )
    assert posted(pair.a)[0] - before in expected(pair.a, pages)
    counter, remote = pair.counter()
    before = posted(pair.a)[1]
    await pair.a.write_pages(
        source, target.remote, page_nbytes=page, local_pages=range(pages), remote_pages=range(pages), counter=remote
    )
    assert await counter.wait(pages) == pages
    assert posted(pair.a)[1] - before < pages // 4  # a heartbeat or two may be among them


async def test_pages_with_gaps_are_not_coalesced(pair):
    source, target = await pair.source(64 * 20), await pair.target(64 * 20)
    before = posted(pair.a)[0]
    await pair.a.write_pages(
        source,
        target.remote,
        page_nbytes=60,
        local_stride=64,
        remote_stride=64,
        local_pages=range(20),
        remote_pages=range(20),
    )
    assert posted(pair.a)[0] - before in expected(pair.a, 20)
    assert not target.array.reshape(20, 64)[:, 60:].any()


async def test_cancelled_pages_are_there_or_nothing_of_them_is(pair):
    pages, page = 8192, 16384
    source = await pair.source(np.full(pages * page, 7, dtype=np.uint8))
    target = await pair.target(pages * page)
    order = np.random.default_rng(7).permutation(pages)
    for seconds in (0, 0.001, 0.002):
        target.array[:] = 0
        transfer = pair.a.write_pages(
            source, target.remote, page_nbytes=page, local_pages=order, remote_pages=order[::-1]
        )
        await asyncio.sleep(seconds)
        transfer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await transfer
        written = target.array.reshape(pages, page)
        assert np.array_equal((written == 7).all(axis=1), written.any(axis=1))


async def test_more_pages_than_a_run_can_count(pair):
    # 12 bits of weight: a run of more than 4093 pages is cut.
    pages = 10_000
    data = pattern(pages * 8)
    source, target = await pair.source(data), await pair.target(pages * 8)
    counter, remote = pair.counter()
    await pair.a.write_pages(
        source, target.remote, page_nbytes=8, local_pages=range(pages), remote_pages=range(pages), counter=remote
    )
    assert await counter.wait(pages) == pages
    assert np.array_equal(target.array, data)


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([0, 10], [0, 1], r"local page 10 at position 1: the local slice has 10 pages"),
        ([0, 1], [10, 0], r"remote page 10 at position 0"),
        ([-1], [0], r"local page -1"),
        ([0], [-(2**63)], r"remote page"),
        (np.array([2**64 - 1], dtype=np.uint64), [0], r"local page"),
        (np.array([2**63], dtype=np.uint64), [0], r"local page"),
        ([2**62], [0], r"local page"),
    ],
)
async def test_pages_out_of_range_are_refused(pair, ours, theirs, message):
    source, target = await pair.source(100), await pair.target(100)
    with pytest.raises(IndexError, match=message):
        pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=ours, remote_pages=theirs)
    assert not target.array.any()


async def test_last_page_must_fit_whole(pair):
    source, target = await pair.source(105), await pair.target(109)
    await pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=[9], remote_pages=[9])
    with pytest.raises(IndexError):
        pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=[10], remote_pages=[0])
    with pytest.raises(IndexError):
        pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=[0], remote_pages=[10])
    # With a stride the last page needs its own bytes only, not the gap behind it.
    await pair.a.write_pages(source, target.remote, page_nbytes=5, local_stride=10, local_pages=[10], remote_pages=[0])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"local_pages": [0, 1], "remote_pages": [0]}, ValueError, "2 local pages but 1 remote pages"),
        ({"page_nbytes": 0}, ValueError, "page_nbytes must be at least 1"),
        ({"page_nbytes": -5}, ValueError, "page_nbytes must be at least 1"),
        ({"local_stride": 9}, ValueError, "a local page of 10 B at offset 0 does not fit the stride of 9 B"),
        ({"remote_stride": 12, "remote_offset": 3}, ValueError, "remote page"),
        ({"local_offset": 1}, ValueError, "does not fit the stride"),
        ({"local_offset": -1}, ValueError, "must not be negative"),
        ({"local_pages": [0.5]}, TypeError, None),
        ({"local_pages": np.array([0.0])}, TypeError, "integers"),
        ({"remote_pages": np.zeros((1, 1), dtype=np.int64)}, TypeError, "one-dimensional"),
        ({"remote_pages": "a"}, TypeError, None),
        ({"local_pages": None}, TypeError, None),
        ({"local_pages": np.array([True])}, TypeError, "integers"),
        ({"local_pages": np.array([1], dtype=">i4")}, TypeError, "integers"),
        ({"local_stride": 2**64}, (OverflowError, ValueError), None),
        ({"local_stride": -10}, (OverflowError, ValueError), None),
        ({"page_nbytes": 2**63, "local_offset": 2**63}, (OverflowError, ValueError), None),
        ({"local_stride": 2**64 - 1, "local_offset": 2**64 - 5}, (OverflowError, ValueError), None),
    ],
)
async def test_bad_arguments_are_refused(pair, options, error, message):
    source, target = await pair.source(100), await pair.target(100)
    with pytest.raises(error, match=message):
        pair.a.write_pages(
            source, target.remote, **({"page_nbytes": 10, "local_pages": [0], "remote_pages": [0]} | options)
        )
    assert not target.array.any()


async def test_indices_with_gaps(pair):
    data = pattern(100)
    source, target = await pair.source(data), await pair.target(100)
    ours, theirs = np.arange(10)[::3], [0, 1, 2, 3]
    await pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=ours, remote_pages=theirs)
    assert np.array_equal(target.array, model(data, np.zeros_like(data), 10, ours, theirs))


async def test_indices_are_copied_at_the_call(pair):
    data = pattern(64 * 1000)
    source, target = await pair.source(data), await pair.target(64 * 1000)
    ours = np.random.default_rng(1).permutation(1000)
    expected = model(data, np.zeros_like(data), 64, ours, range(1000))
    transfer = pair.a.write_pages(source, target.remote, page_nbytes=64, local_pages=ours, remote_pages=range(1000))
    ours[:] = 0
    await transfer
    assert np.array_equal(target.array, expected)


async def test_closed_source(pair):
    source, target = await pair.source(100), await pair.target(100)
    await source.close()
    with pytest.raises(ClosedResourceError):
        pair.a.write_pages(source, target.remote, page_nbytes=10, local_pages=[0], remote_pages=[0])


async def test_hundred_thousand_pages_in_one_await(pair):
    pages = 100_000
    data = pattern(1024 * 128)
    source, target = await pair.source(data), await pair.target(1024 * 128)
    rng = np.random.default_rng(7)
    ours = rng.integers(0, 1024, pages)
    counter, remote = pair.counter()
    nbytes = await pair.a.write_pages(
        source, target.remote, page_nbytes=128, local_pages=ours, remote_pages=ours, counter=remote
    )
    assert nbytes == 128 * pages
    assert await counter.wait(pages) == pages
    assert np.array_equal(target.array, model(data, np.zeros_like(data), 128, np.unique(ours), np.unique(ours)))


@pytest.mark.parametrize("page", [1000, 4096])
async def test_more_than_caches_hold(pair, page):
    """Large requests are copied in another way than small ones: every byte, and none beside."""
    pages = (6 << 20) // page
    data = pattern(pages * page)
    source, target = await pair.source(data), await pair.target(2 * pages * page)
    rng = np.random.default_rng(5)
    ours, theirs = rng.permutation(pages), rng.permutation(2 * pages)[:pages]
    counter, remote = pair.counter()
    await pair.a.write_pages(
        source, target.remote, page_nbytes=page, local_pages=ours, remote_pages=theirs, counter=remote
    )
    assert await counter.wait(pages) == pages
    assert np.array_equal(target.array, model(data, np.zeros(2 * pages * page, np.uint8), page, ours, theirs))
