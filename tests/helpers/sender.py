# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A second process that writes into memory of the test's; see `helpers.process`. Requests are its methods."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from helpers.gap import Gap
from helpers.process import serve
from pplx_async import RemoteRegion, TransferEngine


class Sender:
    """One engine, connected to the test's; writes bytes of one value, which `open` names."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.engine = TransferEngine(name="sender", **options)
        self.writes: list[asyncio.Future[Any]] = []

    async def open(self, address: str, nbytes: int, value: int) -> None:
        await self.engine.open()
        self.peer = await self.engine.connect(address)
        self.value = value
        self.source = await self.engine.register(np.full(nbytes, value, dtype=np.uint8))

    async def write(self, region: str) -> int:
        """Write all of a region, once."""
        remote = self.peer.region(bytes.fromhex(region))
        return await self.engine.write(self.source[0 : remote.nbytes], remote)

    async def flood(self, regions: list[str], writers: int) -> None:
        """Write regions without end, in all sizes; the writers end when they are refused."""

        async def write(remote: RemoteRegion, nbytes: int) -> None:
            while True:
                await self.engine.write(self.source[0:nbytes], remote[remote.nbytes - nbytes :])

        for number in range(writers):
            remote = self.peer.region(bytes.fromhex(regions[number % len(regions)]))
            self.writes.append(asyncio.ensure_future(write(remote, remote.nbytes >> number)))

    async def queue(self, regions: list[str], count: int, until: str) -> None:
        """Queue so many writes to each, and then compute until this file is there: the event loop hears nothing."""
        remotes = [self.peer.region(bytes.fromhex(region)) for region in regions]
        self.writes = [
            self.engine.write(self.source[0 : remote.nbytes], remote) for _ in range(count) for remote in remotes
        ]
        asyncio.get_running_loop().call_later(0.01, self._compute, Path(until))  # when this has been answered

    def _compute(self, until: Path) -> None:
        while not until.exists():
            time.sleep(0.01)

    async def write_with_gap(self, region: str, page: int, kernel: bool = False) -> None:
        """Write a region out of memory that lacks a page; returns when the copy is held up there."""
        remote = self.peer.region(bytes.fromhex(region))
        self.gap = Gap(remote.nbytes, page, self.value, kernel)
        source = await self.engine.register(self.gap.array)
        self.writes = [self.engine.write(source, remote)]
        await self.gap.held_up()

    async def go_on(self) -> None:
        """Let the copy that is held up go on."""
        self.gap.fill()

    async def outcomes(self) -> dict[str, int]:
        """How the writes ended: how many are "written", and how many failed with which class of exception."""
        ends = await asyncio.gather(*self.writes, return_exceptions=True)
        return Counter(type(end).__name__ if isinstance(end, BaseException) else "written" for end in ends)

    async def close(self) -> None:
        await self.engine.close()


if __name__ == "__main__":
    serve(Sender)
