# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Pages: random ones into random slots, with strides; slots that no page goes to stay as they are."""

from __future__ import annotations

import numpy as np

from tests.soak.content import Bytes, check
from tests.soak.exercises.base import Exercise
from tests.soak.stage import Stage

__all__ = ["PageMap", "Pages"]

_MOST_PAGES = 20_000


class PageMap:
    """Which page goes where, as the plan says."""

    def __init__(self, stage: Stage, nbytes: int) -> None:
        plan = stage.plan
        self.page_nbytes = min(nbytes, plan.choice((8, 100, 512, 4096, 4096, 5000, 65536)))
        self.count = max(1, min(_MOST_PAGES, nbytes // self.page_nbytes))
        self.slots = self.count + self.count // 4 + 1
        self.pad = plan.choice((0, 0, 0, 24))  # of a stride behind its page
        self.offset = plan.randint(0, self.pad)
        order = np.random.default_rng(plan.getrandbits(64))
        if plan.random() < 0.3:  # adjacent ones, which travel together
            self.local = np.arange(self.count)
            self.remote = np.arange(self.count) + plan.randrange(self.slots - self.count)
        else:
            self.local = order.permutation(self.slots)[: self.count]
            self.remote = order.permutation(self.slots)[: self.count]
        self.stride = self.page_nbytes + self.pad
        self.nbytes = self.slots * self.stride  # of a side

    def arguments(self) -> dict[str, object]:
        """As write_pages takes it."""
        return {
            "page_nbytes": self.page_nbytes,
            "local_pages": self.local,
            "remote_pages": self.remote,
            "local_stride": self.stride,
            "remote_stride": self.stride,
            "local_offset": self.offset,
            "remote_offset": self.offset,
        }

    def apply(self, source: Bytes) -> Bytes:
        """Do to zeros what the pages must have done to the target."""
        result = np.zeros((self.slots, self.stride), dtype=np.uint8)
        inside = slice(self.offset, self.offset + self.page_nbytes)
        result[self.remote, inside] = source.reshape(self.slots, self.stride)[self.local, inside]
        return result.reshape(-1)


class Pages(Exercise):
    """One request of up to thousands of pages; the receiver counts them."""

    name = "write_pages"
    weight = 6
    largest = 16 << 20

    async def act(self, stage: Stage) -> int:
        pages = PageMap(stage, stage.nbytes)
        source = await stage.source(pages.nbytes)
        region, counter = await stage.talk.hear("offer")
        remote, remote_counter = stage.peer.region(region), stage.peer.counter(counter)
        written = await stage.engine.write_pages(source, remote, counter=remote_counter, **pages.arguments())
        stage.same_count(written, pages.count * pages.page_nbytes, "bytes that write_pages returned")
        await stage.talk.hear("right")
        return written

    async def host(self, stage: Stage) -> None:
        pages = PageMap(stage, stage.nbytes)
        array, region = await stage.target(pages.nbytes)
        counter = await stage.counter()
        await stage.talk.say("offer", region.to_bytes(), counter.to_bytes())
        await counter.wait(pages.count)
        check(array, pages.apply(stage.expected(pages.nbytes)), f"{pages.count} pages of {pages.page_nbytes} B")
        stage.same_count(counter.value, pages.count, "counted pages")
        await stage.talk.say("right")
