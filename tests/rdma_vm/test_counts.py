# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Many small writes: each is counted, once, and lies where it belongs."""

import asyncio

import numpy as np
import pytest

from helpers.cables import ends
from helpers.engines import open_pair, pattern

pytestmark = pytest.mark.fabrics("verbs", "verbs-fake")

PAGE, PAGES, ROUNDS = 8, 10_000, 10


@pytest.mark.deadline(180)
async def test_hundred_thousand_small_writes_are_counted_exactly(fabric):
    ours, theirs = ends(fabric)
    async with open_pair(fabric, b=theirs, **ours) as pair:
        data = pattern(PAGE * PAGES, 1)
        source, target = await pair.source(data), await pair.target(PAGE * PAGES)
        counter, remote = pair.counter()
        for number in range(ROUNDS):
            order = np.random.default_rng(number).permutation(PAGES)  # no two that could go as one
            pages = {"page_nbytes": PAGE, "local_pages": order[::-1].copy(), "remote_pages": order}
            data[:] = pattern(PAGE * PAGES, number)
            await pair.a.write_pages(source, target.remote, **pages, counter=remote)
            assert await counter.wait(PAGES * (number + 1)) == PAGES * (number + 1)
            moved = data.reshape(PAGES, PAGE)[order[::-1]]
            assert np.array_equal(target.array.reshape(PAGES, PAGE)[order], moved)
        assert pair.b.stats().stray_imms == 0


@pytest.mark.deadline(120)
async def test_awaited_writes_of_many_tasks_are_counted_exactly(fabric):
    ours, theirs = ends(fabric)
    async with open_pair(fabric, b=theirs, **ours) as pair:
        tasks, each, nbytes = 40, 50, 16
        data = pattern(tasks * each * nbytes, 1)
        source, target = await pair.source(data), await pair.target(len(data))
        counter, remote = pair.counter()

        async def write(task):
            for number in range(each):
                place = slice((task * each + number) * nbytes, (task * each + number + 1) * nbytes)
                await pair.a.write(source[place], target.remote[place], counter=remote)

        await asyncio.gather(*map(write, range(tasks)))
        assert await counter.wait(tasks * each) == tasks * each
        assert np.array_equal(target.array, data)
