# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A second process that counts at counters of the test's, as fast as it can; see `helpers.process`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from helpers.process import serve
from pplx_async import BrokenResourceError, TransferEngine, wire

SMALL, LARGE = 64, 512 << 10


class Counting:
    """One engine, connected to the test's, which publishes one counter after the other under each of some names."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.engine = TransferEngine(name="counting", **options)
        self.begun: Counter[int] = Counter()  # by key of the counter: what it may show at most ...
        self.ended: Counter[int] = Counter()  # ... and what it must
        self.tasks: list[asyncio.Task[None]] = []

    async def open(self, address: str, region: str, names: list[str], seed: int) -> None:
        await self.engine.open()
        self.peer = await self.engine.connect(address)
        self.remote = self.peer.region(bytes.fromhex(region))
        self.source = await self.engine.register(bytearray(LARGE))
        self.random = random.Random(seed)
        self.tasks = [asyncio.ensure_future(self._count(name)) for name in names]

    async def _count(self, name: str) -> None:
        while True:
            with contextlib.suppress(KeyError, BrokenResourceError):  # between two counters, or closed meanwhile
                descriptor = await self.peer._lookup(name)
                key = wire.decode_counter(descriptor).counter
                await self._count_at(self.peer.counter(descriptor), key)

    async def _count_at(self, counter: Any, key: int) -> None:
        """Some of each, some of them cancelled, until the counter is closed."""
        for _ in range(self.random.randrange(1, 12)):
            kind = self.random.randrange(4)
            pages = 1
            if kind == 0:
                transfer = self.engine.notify(counter)
            elif kind == 1:
                pages = 5
                transfer = self.engine.write_pages(
                    self.source,
                    self.remote,
                    page_nbytes=SMALL,
                    local_pages=range(pages),
                    remote_pages=range(0, 2 * pages, 2),
                    counter=counter,
                )
            else:
                nbytes = SMALL if kind == 2 else LARGE
                transfer = self.engine.write(self.source[0:nbytes], self.remote[0:nbytes], counter=counter)
            self.begun[key] += pages
            if self.random.random() < 0.3:
                asyncio.get_running_loop().call_soon(transfer.cancel)
            if self.random.random() < 0.5:
                await asyncio.sleep(0)
            try:
                await transfer
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():
                    raise
            else:
                self.ended[key] += pages

    async def refused(self, descriptors: list[str]) -> int:
        """Count at each of these, which somebody had before us; how many were refused."""
        refused = 0
        for descriptor in descriptors:
            try:
                await self.engine.notify(self.peer.counter(bytes.fromhex(descriptor)))
            except BrokenResourceError:
                refused += 1
            else:
                self.begun[wire.decode_counter(bytes.fromhex(descriptor)).counter] += 1
        return refused

    async def stop(self, path: str) -> None:
        """Stop, and write what each counter may show, [least, most] by key, to a file."""
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        await self.engine.drain()
        while self.engine.stats().inflight:
            await asyncio.sleep(0.001)
        Path(path).write_text(json.dumps({key: [self.ended[key], most] for key, most in self.begun.items()}))

    async def failures(self) -> list[str]:
        """What tasks have ended with."""
        return [repr(task.exception()) for task in self.tasks if task.done() and not task.cancelled()]

    async def close(self) -> None:
        await self.engine.close()


if __name__ == "__main__":
    serve(Counting)
