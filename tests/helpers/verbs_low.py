# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Both ends of the low layer over libibverbs in one process, and an end in a process of its own.

``python -m helpers.verbs_low`` is the second process of `helpers.process`; requests are the methods of `Remote`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from helpers.process import serve
from helpers.require import Fabric, find_fabric
from pplx_async import verbs

# Half a second until a peer that is gone is noticed, 20 ms where a test waits for that; soft-RoCE in a
# machine that is emulated answers within 17 ms only while nothing else runs there.
IMPATIENT = {"timeout": 12, "retry_count": 1}


def names(fabric: Fabric) -> tuple[str, str]:
    """Two devices that reach each other: the ends of a soft-RoCE cable, or one device and itself."""
    found = verbs.devices(library=fabric.options.get("library"))
    ends = [name for name in found if name + "p" in found]
    return (ends[0], ends[0] + "p") if ends else (found[0], found[0])


class Side:
    """A context with one protection domain, one queue and one queue pair."""

    def __init__(self, fabric: Fabric, device: str, *, entries: int = 256, **depths: int) -> None:
        self.context = verbs.open(device, library=fabric.options.get("library"))
        self.pd = self.context.protection_domain()
        self.queue = self.context.completion_queue(entries)
        self.pair = self.pd.queue_pair(self.queue, **depths)
        self.memories: list[verbs.RegisteredMemory] = []

    def memory(self, nbytes: int, fill: int = 0, **options: Any) -> tuple[bytearray, verbs.RegisteredMemory]:
        """Register so many bytes, until the side is closed."""
        buffer = bytearray([fill]) * nbytes
        self.memories.append(self.pd.register(buffer, **options))
        return buffer, self.memories[-1]

    async def outcome(self) -> Any:
        """The next completion, alone."""
        (completion,) = await self.queue.poll(1)
        return completion


@contextlib.asynccontextmanager
async def sides(
    fabric: Fabric, *, connection: dict[str, int] | None = None, **options: int
) -> AsyncIterator[list[Side]]:
    """Two of them, connected."""
    opened = [Side(fabric, device, **options) for device in names(fabric)]
    a, b = opened
    a.pair.connect(b.pair.address, **(connection or {}))
    b.pair.connect(a.pair.address.to_bytes(), **(connection or {}))
    try:
        yield opened
    finally:
        for side in opened:
            side.context.close()


class Remote:
    """The other end, in a process of its own; requests are its methods."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.side = Side(find_fabric("verbs"), options["device"], receive_depth=512, entries=1024)
        self.arrived: list[Any] = []

    async def open(self, nbytes: int) -> dict[str, str]:
        self.buffer, memory = self.side.memory(nbytes)
        for _ in range(512):
            self.side.pair.recv_nowait()
        return {"address": self.side.pair.address.to_bytes().hex(), "memory": memory.remote.to_bytes().hex()}

    async def connect(self, address: str, **connection: int) -> None:
        self.side.pair.connect(bytes.fromhex(address), **connection)

    async def wait(self, count: int) -> dict[str, Any]:
        """Wait for so many immediates; their sum, and what is in memory."""
        while len(self.arrived) < count:
            self.arrived += [completion.raise_for_error() for completion in await self.side.queue.poll()]
        imms = [completion.imm for completion in self.arrived]
        return {"count": len(imms), "sum": sum(imms), "sha256": hashlib.sha256(self.buffer).hexdigest()}


if __name__ == "__main__":
    serve(Remote)
