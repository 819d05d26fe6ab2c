# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A second process with an engine of its own; see `helpers.process`. Requests are its methods."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import Any

import numpy as np

from helpers.process import serve
from pplx_async import PeerLost, TransferEngine


class Receiver:
    """Does what the test asks, with one engine, one region and one counter."""

    def __init__(self, options: dict[str, Any]) -> None:
        if "devices" in options:
            options["devices"] = tuple(options["devices"])  # JSON has lists only
        self.engine = TransferEngine(name="second process", **options)
        self.array = np.zeros(0, dtype=np.uint8)
        self.background: asyncio.Task[Any] | None = None

    async def open(self, nbytes: int) -> str:
        await self.engine.open()
        self.array = np.zeros(nbytes, dtype=np.uint8)
        self.region = await self.engine.register(self.array)
        self.engine.publish("memory", self.region)
        return self.engine.address

    async def accept(self) -> dict[str, str]:
        self.peer = await self.engine.accept()
        self.counter = self.engine.counter(peer=self.peer)
        return {"region": self.region.to_bytes().hex(), "counter": self.counter.to_bytes().hex()}

    async def wait(self, count: int) -> str:
        await self.counter.wait(count)
        return hashlib.sha256(self.array).hexdigest()

    async def fill(self, value: int) -> None:
        self.array[:] = value

    async def revoke(self) -> None:
        await self.region.revoke()

    async def holds(self, value: int) -> bool:
        return bool((self.array == value).all())

    async def notify(self, counter: str) -> None:
        await self.engine.notify(self.peer.counter(bytes.fromhex(counter)))

    async def flood(self, region: str) -> None:
        """Write without end into a region of the other side."""
        remote = self.peer.region(bytes.fromhex(region))

        async def write() -> None:
            while True:
                await self.engine.write(self.region[0 : remote.nbytes], remote)

        self.background = asyncio.ensure_future(write())

    async def wait_for_loss(self) -> str:
        """Wait for a count that never comes; how it ended."""
        try:
            await self.counter.wait(10**9)
        except PeerLost as error:
            return f"PeerLost: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "counted"

    async def close_peer(self) -> None:
        await self.peer.close()

    async def fork(self) -> dict[str, Any]:
        """Fork in mid-use: the child gets a clear error and exits; what the child saw."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            seen = {}
            for name, call in (
                ("notify", lambda: self.engine.notify([])),
                ("counter", lambda: self.engine.counter()),
                ("batch", lambda: self.engine.batch()),
                ("send", lambda: self.peer.send(b"x")),
                ("write", lambda: self.engine.write(self.region, self.region)),
            ):
                try:
                    call()
                    seen[name] = "no error"
                except BaseException as error:
                    seen[name] = f"{type(error).__name__}: {error}"
            os.write(write, json.dumps(seen).encode())
            os._exit(0)
        os.close(write)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        with os.fdopen(read) as pipe:
            return {"status": status, "seen": json.loads(pipe.read())}

    async def close(self) -> None:
        if self.background is not None:
            self.background.cancel()
            await asyncio.gather(self.background, return_exceptions=True)
        await self.engine.close()


if __name__ == "__main__":
    serve(Receiver)
