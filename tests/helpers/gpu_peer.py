# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A second process with an engine and memory on a GPU; see `helpers.process`. Requests are its methods."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np

from helpers.cuda import Device, DeviceArray
from helpers.process import serve
from pplx_async import MemoryRegion, PeerLost, TransferEngine


class GpuPeer:
    """Does what the test asks, with one engine, and memory of each kind."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.library = given.pop("library")
        self.ordinal = given.pop("device", 0)
        self.engine = TransferEngine(name="second process", cuda_library=self.library, fabric="ipc", **given)
        self.memory: dict[str, Any] = {}
        self.regions: dict[str, MemoryRegion] = {}

    async def open(self, nbytes: int, kinds: list[str]) -> str:
        await self.engine.open()
        for kind in kinds:
            memory: Any
            if kind in ("gpu", "virtual"):
                device = Device(self.ordinal, self.library)
                memory = device.zeros(nbytes) if kind == "gpu" else device.virtual(nbytes)
            else:
                memory = self.engine.empty(nbytes) if kind == "mapped" else np.zeros(nbytes, dtype=np.uint8)
            self.memory[kind] = memory
            self.regions[kind] = await self.engine.register(memory)
            self.engine.publish(kind, self.regions[kind])
        return self.engine.address

    async def accept(self) -> None:
        self.peer = await self.engine.accept()
        self.counter = self.engine.counter(peer=self.peer)
        self.engine.publish("counter", self.counter)

    def content(self, kind: str) -> bytes:
        memory = self.memory[kind]
        return memory.get() if isinstance(memory, DeviceArray) else memory.tobytes()

    async def wait(self, count: int, kind: str = "gpu") -> str:
        """Wait until so many writes have landed; what lies there then."""
        await self.counter.wait(count)
        return hashlib.sha256(self.content(kind)).hexdigest()

    async def counted(self) -> int:
        return self.counter.value

    async def fill(self, kind: str, seed: int) -> str:
        content = np.random.default_rng(seed).bytes(self.regions[kind].nbytes)
        memory = self.memory[kind]
        if isinstance(memory, DeviceArray):
            memory.set(content)
        else:
            memory[:] = np.frombuffer(content, dtype=np.uint8)
        return hashlib.sha256(content).hexdigest()

    async def write(self, kind: str, remote: str, counter: str) -> None:
        """Write into a region of the other side's, by name."""
        region, into = self.regions[kind], await self.peer.lookup(remote)
        await self.engine.write(region, into, counter=await self.peer.lookup_counter(counter))

    async def revoke(self, kind: str) -> str:
        """Revoke, overwrite, and say what lies there a moment later."""
        await self.regions[kind].revoke()
        digest = await self.fill(kind, 99)
        await asyncio.sleep(0.2)
        assert hashlib.sha256(self.content(kind)).hexdigest() == digest, "somebody wrote there after the revoke"
        return digest

    async def wait_for_loss(self) -> str:
        try:
            await self.counter.wait(10**9)
        except PeerLost as error:
            return f"PeerLost: {error}"
        return "counted"

    async def close(self) -> None:
        await self.engine.close()


if __name__ == "__main__":
    serve(GpuPeer)
