# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Several domains: writes are cut over them, and still count once."""

import asyncio

import numpy as np
import pytest

from helpers.engines import open_pair, pattern

pytestmark = pytest.mark.asyncio(loop_scope="module")

# (domains of a, domains of b)
SAME = [(1, 1), (2, 2), (4, 4), (8, 8)]
DIFFERENT = [(1, 4), (4, 1), (4, 2), (2, 8), (8, 2), (3, 2)]


@pytest.mark.parametrize("domains", SAME + DIFFERENT, ids=lambda d: f"{d[0]}x{d[1]}")
async def test_everything_over_several_domains(fabric, domains):
    ours, theirs = domains
    size = 300_001
    async with open_pair(fabric, domains=ours, b={"domains": theirs}, shard_nbytes=4096) as pair:
        data = pattern(size)
        source, target = await pair.source(data), await pair.target(size)
        counter, remote = pair.counter()
        for nbytes in (0, 1, 7, 4095, 4096, 4097, 65_537, size):
            target.array[:] = 0
            before = counter.value
            assert await pair.a.write(source[0:nbytes], target.remote[size - nbytes :], counter=remote) == nbytes
            assert await counter.wait(before + 1) == before + 1
            assert np.array_equal(target.array[size - nbytes :], data[:nbytes])
            assert not target.array[: size - nbytes].any()
        # Many at once: fractions of different writes never make one too many.
        done = counter.value
        await asyncio.gather(*(pair.a.write(source, target.remote, counter=remote) for _ in range(8)))
        assert await counter.wait(done + 8) == done + 8
        # Pages, and a read.
        order = np.random.default_rng(1).permutation(300)
        target.array[:] = 0
        await pair.a.write_pages(
            source, target.remote, page_nbytes=1000, local_pages=order, remote_pages=order, counter=remote
        )
        assert await counter.wait(done + 308) == done + 308
        assert np.array_equal(target.array[:300_000], data[:300_000])
        sink = np.zeros(size, dtype=np.uint8)
        local = await pair.source(sink)
        await pair.a.read(target.remote[0:300_000], local[1:])
        assert np.array_equal(sink[1:], data[:300_000])
        # And the other way round.
        back = np.zeros(size, dtype=np.uint8)
        async with await pair.a.register(back) as a_region:
            a_counter = pair.a.counter(peer=pair.ab)
            await pair.b.write(
                target.region, pair.ba.region(a_region.to_bytes()), counter=pair.ba.counter(a_counter.to_bytes())
            )
            assert await a_counter.wait(1) == 1
        assert np.array_equal(back, target.array)


@pytest.mark.parametrize("domains", [2, 4, 8])
async def test_every_domain_carries_its_part(fabric, domains):
    size = 4 << 20
    async with open_pair(fabric, domains=domains) as pair:
        source, target = await pair.source(size), await pair.target(size)
        counter, remote = pair.counter()
        for _ in range(4):
            await pair.a.write(source, target.remote, counter=remote)
        assert await counter.wait(4) == 4
        stats = pair.a.stats()
        # In more than eight pieces, as on a stream that may be a slow one, only the last has an immediate.
        carried = [
            sum(link.nbytes["write"] + link.nbytes["write_imm"] for link in stats.domain(i)) for i in range(domains)
        ]
        assert sum(carried) == 4 * size
        assert min(carried) > 0
        assert len(pair.a.explain().domains) == domains


async def test_small_writes_are_not_cut(fabric):
    async with open_pair(fabric, domains=4) as pair:
        # Not more than the 4 packets that a work request has on soft-RoCE.
        source, target = await pair.source(4000), await pair.target(4000)
        before = sum(link.completed["write"] for link in pair.ab.stats().links)
        await pair.a.write(source, target.remote)
        assert sum(link.completed["write"] for link in pair.ab.stats().links) == before + 1
