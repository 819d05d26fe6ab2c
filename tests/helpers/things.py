# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One of everything that a program can hold, and every call that it can make with them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from helpers.engines import Pair, connect, engine_on
from helpers.require import Fabric
from pplx_async import (
    Batch,
    ImmCounter,
    MemoryRegion,
    Peer,
    PeerGroup,
    RemoteCounter,
    RemoteRegion,
    TransferEngine,
    TransferScope,
)
from pplx_async.testing import HostStream

CLASSES = (
    TransferEngine,
    MemoryRegion,
    RemoteRegion,
    ImmCounter,
    RemoteCounter,
    Peer,
    PeerGroup,
    Batch,
    TransferScope,
)


class Things:
    """Two connected engines, and what ``a`` has of its own and of ``b``."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.a, self.b, self.ab, self.ba = pair.a, pair.b, pair.ab, pair.ba

    @classmethod
    async def open(cls, fabric: Fabric) -> Things:
        """Open the engines and make everything; `close` ends it."""
        a, b = engine_on(fabric, name="a"), engine_on(fabric, name="b")
        await a.open()
        await b.open()
        things = cls(Pair(fabric, a, b, *await connect(a, b)))
        await things._make()
        return things

    async def _make(self) -> None:
        self.address = self.b.address
        self.local = await self.a.register(bytearray(100))
        self.target = await self.b.register(bytearray(100))
        self.descriptor = self.target.to_bytes()
        self.remote = self.ab.region(self.descriptor)
        self.counter = self.a.counter()
        self.counter_of_b = self.b.counter()
        self.gated = self.a.counter()
        self.host_stream = HostStream()
        self.remote_counter = self.ab.counter(self.counter_of_b.to_bytes())
        # What peer.counter() has not seen yet.
        self.counter_descriptor = self.b.counter().to_bytes()
        self.group, self.group_of_b = await asyncio.gather(
            self.a.group("things", [self.ab]), self.b.group("things", [self.ba])
        )
        self.batch = self.a.batch()
        self.stream = self.a.messages()
        self.scope = await self.a.scope().__aenter__()
        self.done = self.a.write(self.local, self.remote)
        await self.done

    async def close(self) -> None:
        """Leave the scope and close the engines."""
        self.host_stream.close()
        await self.scope.__aexit__(None, None, None)
        await self.a.close()
        await self.b.close()


PAGES: dict[str, Any] = {"page_nbytes": 10, "local_pages": [0, 1], "remote_pages": [2, 3]}

# Every call that needs the engine, each of them right. What it returns may have to be awaited.
EVERY_CALL: dict[str, Callable[[Things], Any]] = {
    "TransferEngine.empty": lambda x: x.a.empty(10),
    "TransferEngine.register": lambda x: x.a.register(bytearray(10)),
    "TransferEngine.publish": lambda x: x.a.publish("name", x.local),
    "TransferEngine.unpublish": lambda x: x.a.unpublish("name"),
    "TransferEngine.counter": lambda x: x.a.counter(peer=x.ab),
    "TransferEngine.connect": lambda x: x.a.connect(x.address),
    "TransferEngine.accept": lambda x: x.a.accept(),
    "TransferEngine.remote_region": lambda x: x.a.remote_region(x.descriptor),
    "TransferEngine.write": lambda x: x.a.write(x.local, x.remote),
    "TransferEngine.read": lambda x: x.a.read(x.remote, x.local),
    "TransferEngine.write_pages": lambda x: x.a.write_pages(x.local, x.remote, **PAGES),
    "TransferEngine.scatter": lambda x: x.a.scatter([(x.local, x.remote)]),
    "TransferEngine.batch": lambda x: x.a.batch(),
    "TransferEngine.notify": lambda x: x.a.notify(x.remote_counter),
    "TransferEngine.notify a group": lambda x: x.a.notify(x.group),
    "TransferEngine.group": lambda x: x.a.group("other", [x.ab]),
    "TransferEngine.barrier": lambda x: x.a.barrier(x.group),
    "TransferEngine.scope": lambda x: x.a.scope(),
    "TransferEngine.drain": lambda x: x.a.drain(),
    "TransferEngine.write after a stream": lambda x: x.a.write(x.local, x.remote, after=x.host_stream),
    "TransferEngine.reached": lambda x: x.a.reached(x.host_stream),
    "TransferEngine.rearm": lambda x: x.a.rearm(x.host_stream),
    "TransferEngine.watch": lambda x: x.a.watch(),
    "TransferEngine.messages": lambda x: anext(x.a.messages()),
    "TransferEngine.messages of before": lambda x: anext(x.stream),
    "TransferEngine.stats": lambda x: x.a.stats(),
    "TransferEngine.explain": lambda x: x.a.explain(),
    "MemoryRegion.to_bytes": lambda x: x.local.to_bytes(),
    "MemoryRegion.revoke": lambda x: x.local.revoke(),
    "MemoryRegion.close": lambda x: x.local.close(),
    "ImmCounter.wait": lambda x: x.counter.wait(1),
    "ImmCounter.take": lambda x: x.counter.take(1),
    "ImmCounter.gate": lambda x: x.gated.gate(x.host_stream, 1),
    "ImmCounter.to_bytes": lambda x: x.counter.to_bytes(),
    "ImmCounter.close": lambda x: x.counter.close(),
    "Peer.region": lambda x: x.ab.region(x.descriptor),
    "Peer.counter": lambda x: x.ab.counter(x.counter_descriptor),
    "Peer.lookup": lambda x: x.ab.lookup("name"),
    "Peer.lookup_counter": lambda x: x.ab.lookup_counter("name"),
    "Peer.wait_closed": lambda x: x.ab.wait_closed(),
    "Peer.send": lambda x: x.ab.send(b"data"),
    "Peer.stats": lambda x: x.ab.stats(),
    "Peer.close": lambda x: x.ab.close(),
    "PeerGroup.close": lambda x: x.group.close(),
    "Batch.write": lambda x: x.batch.write(x.local, x.remote),
    "Batch.write_pages": lambda x: x.batch.write_pages(x.local, x.remote, **PAGES),
    "Batch.notify": lambda x: x.batch.notify(x.remote_counter),
    "Batch.submit": lambda x: x.batch.submit(),
    "TransferScope.write": lambda x: x.scope.write(x.local, x.remote),
    "TransferScope.write_pages": lambda x: x.scope.write_pages(x.local, x.remote, **PAGES),
    "TransferScope.scatter": lambda x: x.scope.scatter([(x.local, x.remote)]),
    "TransferScope.read": lambda x: x.scope.read(x.remote, x.local),
    "TransferScope.notify": lambda x: x.scope.notify(x.remote_counter),
    "TransferScope.add": lambda x: x.scope.add(x.done),
}


def public_calls() -> set[str]:
    """Name every public method of the classes that a program is given objects of."""
    return {
        f"{cls.__name__}.{name}"
        for cls in CLASSES
        for name, value in inspect.getmembers(cls, callable)
        if not name.startswith("_") and name not in INTERNAL
    }


# Public to the package's own modules only.
INTERNAL = {"break_", "check_gate", "lose", "end_waits", "end_gates", "tell_idle"}
