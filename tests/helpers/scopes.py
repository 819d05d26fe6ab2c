# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A second process that runs scopes at random, over memory of the test's; see `helpers.process`."""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from helpers.blocks import Area, Runner, random_block
from helpers.process import serve
from pplx_async import TransferEngine


class Scopes:
    """One engine, connected to the test's; each scope has an area of its own, here and there."""

    SINK = 0x5A

    def __init__(self, options: dict[str, Any]) -> None:
        self.engine = TransferEngine(name="scopes", **options)

    async def open(self, address: str, region: str, counter: str, size: int, areas: int) -> None:
        await self.engine.open()
        self.peer = await self.engine.connect(address)
        self.size = size
        self.mine = np.ones(size * areas, dtype=np.uint8)
        self.sunk = np.zeros(size * areas, dtype=np.uint8)
        self.source, self.sink = await self.engine.register(self.mine), await self.engine.register(self.sunk)
        self.target = self.peer.region(bytes.fromhex(region))
        self.counter = self.peer.counter(bytes.fromhex(counter))
        self.over: list[slice] = []

    async def run(self, number: int, repeat: int) -> int:
        """Run a scope in an area; when it is over, the memory of ours is reused. How many transfers were cancelled."""
        part = slice(number * self.size, (number + 1) * self.size)
        area = Area(number, self.source[part], self.sink[part], self.target[part], self.counter)

        def reuse(area: Area) -> None:
            self.mine[part] = 0x33
            self.sunk[part] = self.SINK
            self.over.append(part)

        await Runner(self.engine, iter([area]), reuse, repeat).run(random_block(random.Random(number), self.size))
        return sum(transfer.cancelled() for transfer in area.transfers)

    async def check(self) -> bool:
        """Whether what was reused here is as it was left."""
        return all((self.sunk[part] == self.SINK).all() for part in self.over)

    async def connected(self) -> bool:
        return self.peer.is_open

    async def close(self) -> None:
        await self.engine.close()


if __name__ == "__main__":
    serve(Scopes)
