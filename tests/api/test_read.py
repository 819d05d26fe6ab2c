# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""TransferEngine.read: a peer's memory comes here, and only where it may."""

import asyncio

import numpy as np
import pytest

from helpers.engines import pattern
from pplx_async import ClosedResourceError

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("nbytes", [0, 1, 63, 64, 4097, 100_003, 8 << 20])
async def test_bytes_come_here(pair, nbytes):
    data, sink = pattern(nbytes + 20, 1), np.zeros(nbytes + 20, dtype=np.uint8)
    target, local = await pair.target(data, access="read"), await pair.source(sink)
    transfer = pair.a.read(target.remote[7 : 7 + nbytes], local[11 : 11 + nbytes])
    assert transfer.operation == "read"
    assert await transfer == nbytes
    expected = np.zeros(nbytes + 20, dtype=np.uint8)
    expected[11 : 11 + nbytes] = data[7 : 7 + nbytes]
    assert np.array_equal(sink, expected)


async def test_many_reads_at_once(pair):
    data, sink = pattern(300 * 100), np.zeros(300 * 100, dtype=np.uint8)
    target, local = await pair.target(data), await pair.source(sink)
    order = np.random.default_rng(2).permutation(300)
    await asyncio.gather(
        *(pair.a.read(target.remote[i * 100 : i * 100 + 100], local[i * 100 : i * 100 + 100]) for i in map(int, order))
    )
    assert np.array_equal(sink, data)


async def test_what_was_written_is_read_back(pair):
    data, back = pattern(5000), np.zeros(5000, dtype=np.uint8)
    source, target, local = await pair.source(data), await pair.target(5000), await pair.source(back)
    await pair.a.write(source, target.remote)
    await pair.a.read(target.remote, local)
    assert np.array_equal(back, data)


async def test_read_from_immutable_memory(pair):
    data, sink = pattern(1000).tobytes(), bytearray(1000)
    target, local = await pair.target(data), await pair.source(sink)
    assert target.region.access == "read"
    await pair.a.read(target.remote, local)
    assert sink == data


async def test_what_is_refused(pair):
    target, write_only = await pair.target(100), await pair.target(100, access="write")
    sink = bytearray(100)
    local, immutable = await pair.source(sink), await pair.source(bytes(100))
    with pytest.raises(ValueError, match="lengths differ"):
        pair.a.read(target.remote[0:5], local[0:6])
    with pytest.raises(ValueError, match="did not allow reads"):
        pair.a.read(write_only.remote, local)
    with pytest.raises(ValueError, match="read-only"):
        pair.a.read(target.remote, immutable)
    with pytest.raises(ValueError, match="another engine"):
        pair.b.read(target.remote, target.region)
    with pytest.raises(ValueError, match="another engine"):
        pair.a.read(target.remote, target.region)
    with pytest.raises(TypeError):
        pair.a.read(local, target.remote)
    await local.close()
    with pytest.raises(ClosedResourceError):
        pair.a.read(target.remote, local)
    assert sink == bytes(100)


async def test_local_region_that_peers_may_only_read_takes_our_own_reads(pair):
    # access says what peers may do, not what we may.
    data, sink = pattern(100), np.zeros(100, dtype=np.uint8)
    target, local = await pair.target(data), await pair.source(sink, access="none")
    await pair.a.read(target.remote, local)
    assert np.array_equal(sink, data)
