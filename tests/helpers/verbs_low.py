# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Both ends of the low layer over libibverbs in one process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from helpers.require import Fabric
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
