# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A second process in a network of its own; see `helpers.process`. Requests are the methods of `Networked`."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable
from typing import Any

import numpy as np

from helpers import namespaces
from helpers.engines import eventually, pattern
from helpers.process import serve
from pplx_async import CompletionError, TransferEngine


class Networked:
    """An engine that listens on an address of its own network, and what it does with one peer."""

    def __init__(self, options: dict[str, Any]) -> None:
        namespaces.leave()  # before anything here has a thread
        self.options = options
        self.endings: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self.turns = 0  # of what runs without end

    async def ip(self, commands: list[str]) -> float:
        """Run commands of ip(8) in this network, and return when that was done."""
        for command in commands:
            namespaces.ip(command)
        return time.monotonic()

    async def open(self, listen: str, nbytes: int, options: dict[str, Any]) -> str:
        self.engine = TransferEngine(listen=listen, **(self.options | options))
        self.sent = 0
        await self.engine.open()
        self.array = np.zeros(nbytes, dtype=np.uint8)
        self.engine.publish("memory", await self.engine.register(self.array))
        self.counter = self.engine.counter()
        self.engine.publish("counter", self.counter)
        return self.engine.address

    async def connect(self, address: str, timeout: float | None = None) -> None:
        self.peer = await self.engine.connect(address, timeout=timeout)

    async def accept(self) -> None:
        self.peer = await self.engine.accept()

    async def failing_connect(self, address: str, timeout: float) -> dict[str, Any]:
        """Connect where that can't work; how it fails."""
        return await self._watch(self.engine.connect(address, timeout=timeout))

    # ---- transfers ----

    async def exchange(self, seed: int, nbytes: int, rounds: int) -> dict[str, Any]:
        """Write new data into the peer's memory, as one write and as shuffled pages, and read it back.

        What comes back is checked here. What is left there is what ``digest`` says.
        """
        remote, counter = (await self.peer.lookup("memory"))[0:nbytes], await self.peer.lookup_counter("counter")
        page = 4096
        data, sink = np.zeros(nbytes, dtype=np.uint8), np.zeros(nbytes, dtype=np.uint8)
        start = time.monotonic()
        async with await self.engine.register(data) as source, await self.engine.register(sink) as local:
            for number in range(rounds):
                data[:] = pattern(nbytes, seed + number)
                order = np.random.default_rng(number).permutation(nbytes // page)
                if number % 2:
                    pages = {"page_nbytes": page, "local_pages": order, "remote_pages": order}
                    await self.engine.write_pages(source, remote, **pages, counter=counter)
                else:
                    await self.engine.write(source, remote, counter=counter)
                await self.engine.read(remote, local)
                assert np.array_equal(sink, data), f"other bytes came back in round {number}"
        self.sent += sum(nbytes // page if number % 2 else 1 for number in range(rounds))
        return {
            "seconds": time.monotonic() - start,
            "nbytes": 2 * nbytes * rounds,
            "digest": hashlib.sha256(data).hexdigest(),
        }

    async def memory(self, nbytes: int) -> str:
        """Wait for as much to be counted here as we have counted there: both do the same. What is in memory then."""
        await self.counter.wait(self.sent)
        assert self.counter.value == self.sent
        return hashlib.sha256(self.array[:nbytes]).hexdigest()

    # ---- what ends ----

    async def stream(self) -> None:
        """Begin to write and to read without end, and to wait for what never comes."""
        remote = await self.peer.lookup("memory")
        source = await self.engine.register(pattern(remote.nbytes, 1))
        sink = await self.engine.register(np.zeros(remote.nbytes, dtype=np.uint8))

        async def writes() -> None:
            while True:
                await self.engine.write(source, remote)
                self.turns += 1

        async def reads() -> None:
            while True:
                await self.engine.read(remote, sink)
                self.turns += 1

        bound = self.engine.counter(peer=self.peer)
        what = {"write": writes(), "read": reads(), "wait": bound.wait(1)}
        self.endings = {name: asyncio.ensure_future(self._watch(each)) for name, each in what.items()}

    async def ended(self) -> dict[str, dict[str, Any]]:
        """Wait until all of that has ended; how, and when."""
        return {name: await ending for name, ending in self.endings.items()}

    async def _watch(self, awaitable: Awaitable[Any]) -> dict[str, Any]:
        try:
            await awaitable
        except Exception as error:
            facts = {"error": type(error).__name__, "text": str(error), "at": time.monotonic()}
            if isinstance(error, CompletionError):
                facts |= {name: getattr(error, name) for name in ("operation", "peer", "domain", "hint", "reason")}
            return facts
        return {"error": None, "at": time.monotonic()}

    async def gone(self) -> None:
        """Wait until nothing of the peer is left, or under way: the regions of `stream` go by themselves."""
        await eventually(lambda: self.peer not in self.engine._peers, "its endpoints are closed")
        await eventually(lambda: self.engine.stats().inflight == 0, "nothing is in flight")

    async def state(self) -> dict[str, Any]:
        """Whether the peer is there, and what is under way."""
        return {
            "turns": self.turns,
            "open": self.peer.is_open,
            "lost": None if self.peer.lost is None else self.peer.lost.reason,
            "peer": self.peer.label,
            "inflight": self.engine.stats().inflight,
        }

    async def close_peer(self) -> None:
        await self.peer.close()

    async def close(self) -> float:
        """Close the engine; how long that took."""
        start = time.monotonic()
        await self.engine.close()
        return time.monotonic() - start


if __name__ == "__main__":
    serve(Networked)
