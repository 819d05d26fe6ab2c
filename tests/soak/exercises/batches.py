# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Batches: writes, pages and notifications in one request."""

from __future__ import annotations

from tests.soak.content import check
from tests.soak.exercises.base import Exercise
from tests.soak.exercises.pages import PageMap
from tests.soak.stage import Stage

__all__ = ["Batches"]


class Batches(Exercise):
    """Slices into the front of a region, pages into its back, and a few counts more."""

    name = "batch"
    largest = 16 << 20

    async def act(self, stage: Stage) -> int:
        pages, slices, times = _plan(stage)
        source = await stage.source(pages.nbytes + stage.nbytes)
        region, counter = await stage.talk.hear("offer")
        remote, remote_counter = stage.peer.region(region), stage.peer.counter(counter)
        batch = stage.engine.batch()
        for part in slices:
            batch.write(source[part], remote[part], counter=remote_counter)
        batch.notify(remote_counter, times)
        batch.write_pages(source[stage.nbytes :], remote[stage.nbytes :], counter=remote_counter, **pages.arguments())
        nbytes = stage.nbytes + pages.count * pages.page_nbytes
        stage.same_count(await batch.submit(), nbytes, "bytes that a batch returned")
        await stage.talk.hear("right")
        return nbytes

    async def host(self, stage: Stage) -> None:
        pages, slices, times = _plan(stage)
        array, region = await stage.target(pages.nbytes + stage.nbytes)
        counter = await stage.counter()
        count = len(slices) + times + pages.count
        await stage.talk.say("offer", region.to_bytes(), counter.to_bytes())
        await counter.wait(count)
        expected = stage.expected(len(array))
        check(array[: stage.nbytes], expected[: stage.nbytes], "the writes of a batch")
        check(array[stage.nbytes :], pages.apply(expected[stage.nbytes :]), "the pages of a batch")
        stage.same_count(counter.value, count, "counts of a batch")
        await stage.talk.say("right")


def _plan(stage: Stage) -> tuple[PageMap, list[slice], int]:
    return PageMap(stage, max(1, stage.nbytes // 2)), stage.slices(stage.nbytes, 32), stage.plan.randint(1, 100)
