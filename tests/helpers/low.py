# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Both ends of the low layer in one process, and an end in a process of its own.

``python -m helpers.low`` is the second process of `helpers.process`; requests are the methods of `Remote`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

from helpers.process import serve
from helpers.require import Fabric
from pplx_async import fabric as low
from pplx_async.completion import Completion


def open_domain(fabric: Fabric) -> low.Domain:
    return low.open(provider=fabric.name, library=fabric.options["library"])


class Side:
    """A domain with one queue and one endpoint."""

    def __init__(self, domain: low.Domain) -> None:
        self.domain = domain
        self.queue = domain.completion_queue()
        self.endpoint = domain.endpoint(self.queue)
        self.arrived: list[Completion] = []
        self.memories: list[low.Memory] = []
        self.serving: asyncio.Task[None] | None = None

    def memory(self, nbytes: int, fill: int = 0, **options: Any) -> tuple[bytearray, low.Memory]:
        """Register so many bytes, until the side is closed."""
        buffer = bytearray([fill]) * nbytes
        self.memories.append(self.domain.register(buffer, **options))
        return buffer, self.memories[-1]

    def meet(self, other: Side) -> low.PeerAddress:
        """Make the two known to each other; the other one as this one posts to it."""
        other.domain.insert(self.endpoint.address)
        return self.domain.insert(other.endpoint.address)

    def serve(self) -> None:
        """Read the queue in the background, as whoever is written to must."""

        async def collect() -> None:
            async for completion in self.queue:
                self.arrived.append(completion)

        self.serving = asyncio.create_task(collect())

    async def outcome(self) -> Completion:
        """The next completion, alone."""
        (completion,) = await self.queue.read(1)
        return completion

    async def stop(self) -> None:
        if self.serving is not None:
            self.queue.close()
            await self.serving
        self.domain.close()


@contextlib.asynccontextmanager
async def sides(fabric: Fabric, count: int = 2) -> AsyncIterator[list[Side]]:
    opened = [Side(open_domain(fabric)) for _ in range(count)]
    known = [side.meet(other) for side in opened for other in opened if side is not other]
    try:
        yield opened
    finally:
        del known
        for side in opened:
            await side.stop()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Remote:
    """The other end."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.side = Side(low.open(**options))

    async def open(self, nbytes: int) -> dict[str, str]:
        self.buffer, self.memory = self.side.memory(nbytes)
        self.side.serve()
        return {"address": self.side.endpoint.address.hex(), "memory": self.memory.remote.to_bytes().hex()}

    async def meet(self, address: str) -> None:
        self.peer = self.side.domain.insert(bytes.fromhex(address))

    async def wait(self, count: int) -> dict[str, Any]:
        """Wait for so many immediates; their sum, and what is in memory."""
        while len(self.side.arrived) < count:
            await asyncio.sleep(0.001)
        imms = [completion.imm for completion in self.side.arrived]
        return {"count": len(imms), "sum": sum(imms), "sha256": hashlib.sha256(self.buffer).hexdigest()}

    async def write(self, memory: str, fill: int, imm: int) -> None:
        """Write into the memory of the first one."""
        remote = low.RemoteMemory.from_bytes(bytes.fromhex(memory))
        self.source = self.side.domain.register(bytearray([fill]) * remote.nbytes)
        await self.side.endpoint.write(self.source, self.peer, remote, imm=imm)

    async def close(self) -> None:
        await self.side.stop()


if __name__ == "__main__":
    serve(Remote)
