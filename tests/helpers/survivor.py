# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Who survives: an engine with peers that are killed, and one that must not notice; how its waits end, and when."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, Self

import numpy as np
import uvloop

from helpers.engines import SOON, engine_on, eventually, pattern
from helpers.process import Helper, helper
from helpers.require import Fabric
from helpers.slowness import SLOWNESS
from helpers.told import check_told
from pplx_async import Peer, PeerLost, TransferEngine

# Whatever names a peer that was killed has ended within this, with the engine's defaults: the promise. At a load
# of 11 on two cores the longest was 0.52 s. On an emulated machine more, but less than the three seconds of who waits
# for heartbeats.
NOTICED = min(1.0 * SLOWNESS, 2.0)
# Other peers see no longer pause than this: half of the shortest limit that a test gives; an emulated machine has more.
PAUSE = 1.0 * SLOWNESS
# How it was noticed, in the words of the reason.
NOTICED_BY = ("control channel", "NIC", "endpoint", "heartbeat", "did not answer in time")

SIZE = 4 << 20


def as_here(fabric: Fabric, **options: Any) -> str:
    """Make the argument of a helper process: an engine on this fabric, on the kind of loop that runs here."""
    given = {"fabric": fabric.name} | fabric.options | options
    return json.dumps(given | {"uvloop": isinstance(asyncio.get_running_loop(), uvloop.Loop)})


class Ending:
    """How and when something that is awaited ends.

    Attributes
    ----------
    result : object
        What it returned, if it did.
    failure : BaseException or None
        What it raised.
    at : float
        When, by the monotonic clock, which is the same in all processes of a host.
    """

    def __init__(self, awaitable: Awaitable[Any]) -> None:
        self.result: Any = None
        self.failure: BaseException | None = None
        self.at = float("inf")
        self.task = asyncio.ensure_future(self._watch(awaitable))

    async def _watch(self, awaitable: Awaitable[Any]) -> None:
        try:
            self.result = await awaitable
        except Exception as failure:
            self.failure = failure
        self.at = time.monotonic()

    @property
    def done(self) -> bool:
        return self.task.done()


async def all_end(endings: dict[str, Ending], since: float, timeout: float = SOON) -> dict[str, float]:
    """Wait until all have ended; how long each took, in seconds."""
    await asyncio.wait([ending.task for ending in endings.values()], timeout=timeout)
    pending = [name for name, ending in endings.items() if not ending.done]
    assert not pending, f"not ended within {timeout} s: {pending}"
    return {name: ending.at - since for name, ending in endings.items()}


def check_lost(failure: BaseException | None, peer: Peer, operation: str | None) -> None:
    """Check that a failure says all that there is to say of a peer that is lost."""
    check_told(failure, PeerLost, peer, operation)
    assert isinstance(failure, PeerLost)
    assert any(word in failure.reason for word in NOTICED_BY), failure.reason


class Stream:
    """Counted writes to a third process, one after the other, as long as the block lasts.

    At its end every byte is there, and no two of them were longer apart than `PAUSE`.
    """

    NBYTES = 64 << 10
    SLOTS = 16

    def __init__(self, survivor: Survivor) -> None:
        self._survivor = survivor
        self.longest = 0.0

    async def __aenter__(self) -> Self:
        self._stop = False
        self._running = asyncio.ensure_future(self._run())
        return self

    async def __aexit__(self, exc_type: object, *_: object) -> None:
        self._stop = True
        await self._running
        if exc_type is None:
            survivor = self._survivor
            digest = await survivor.third.ask("wait", count=survivor.sent)
            assert digest == hashlib.sha256(survivor.expected).hexdigest()
            assert survivor.third_peer.is_open
            assert self.longest < PAUSE, f"a pause of {self.longest:.3f} s in the stream to another peer"

    async def _run(self) -> None:
        survivor = self._survivor
        last = time.monotonic()
        while not self._stop:
            start = survivor.sent * 4099 % (len(survivor.data) - self.NBYTES)
            at = survivor.sent % self.SLOTS * self.NBYTES
            source, target = slice(start, start + self.NBYTES), slice(at, at + self.NBYTES)
            await survivor.engine.write(
                survivor.source[source], survivor.third_memory[target], counter=survivor.third_counter
            )
            survivor.expected[target] = survivor.data[source]
            survivor.sent += 1
            now = time.monotonic()
            self.longest = max(self.longest, now - last)
            last = now
            await asyncio.sleep(0.001)


class Survivor:
    """An engine that has a third process for a peer, and others to be killed; made by `open_survivor`.

    It publishes ``sink`` and ``shared sink`` to be written to, and ``source`` to be read from.
    """

    def __init__(self, engine: TransferEngine, nursery: Helper, third: Helper) -> None:
        self.engine, self.nursery, self.third = engine, nursery, third
        self.sent = 0
        self.data = pattern(1 << 20, 7)
        self.expected = np.zeros(Stream.SLOTS * Stream.NBYTES, dtype=np.uint8)

    async def start(self) -> None:
        engine = self.engine
        self.source = await engine.register(self.data)
        self.sink = np.zeros(SIZE, dtype=np.uint8)
        engine.publish("source", self.source)
        engine.publish("sink", await engine.register(self.sink))
        engine.publish("shared sink", await engine.register(engine.empty(SIZE)))
        address = await self.third.ask("open", nbytes=len(self.expected))
        self.third.post("accept")
        self.third_peer = await engine.connect(address)
        answer = await self.third.answer()
        self.third_memory = self.third_peer.region(bytes.fromhex(answer["region"]))
        self.third_counter = self.third_peer.counter(bytes.fromhex(answer["counter"]))

    @property
    def is_alone(self) -> bool:
        """Whether nobody is connected but the third process."""
        return self.engine.peers == (self.third_peer,)

    def stream(self) -> Stream:
        return Stream(self)

    async def meet(self, *does: str, **values: Any) -> tuple[int, Peer]:
        """Have a process forked that connects here and does this; its process id, and the peer that it is."""
        born = await self.nursery.ask("fork", address=self.engine.address, does=does, **values)
        async with asyncio.timeout(SOON):
            return born["pid"], await self.engine.accept()

    async def kill(self, pid: int) -> float:
        """Kill a process, and return when."""
        at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return at

    async def bury(self, pid: int) -> None:
        """Take the exit status of one that was killed."""
        assert await self.nursery.ask("reap", pid=pid) == -signal.SIGKILL

    async def forget(self, peer: Peer) -> None:
        """Check that nothing of a lost peer is left, but that it is lost."""
        assert isinstance(peer.lost, PeerLost)
        assert not peer.is_open
        await eventually(lambda: peer not in self.engine._peers, "its endpoints are closed")
        assert self.is_alone
        await eventually(lambda: self.engine.stats().inflight == 0, "nothing is under way")


async def stop(pid: int) -> None:
    """Stop a process, and wait until every thread of it stands still."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")

    def stands() -> bool:
        return all((thread / "stat").read_text().rpartition(")")[2].split()[0] == "T" for thread in threads.iterdir())

    await eventually(stands, "the process has stopped")


def resume(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


@contextlib.asynccontextmanager
async def open_survivor(fabric: Fabric, **options: Any) -> AsyncIterator[Survivor]:
    """Open the engine, its third process, and the one that forks the others; all with these options."""
    given = as_here(fabric, **options)
    async with (
        helper("receiver", given) as third,
        helper("doomed", given) as nursery,
        engine_on(fabric, name="survivor", **options) as engine,
    ):
        survivor = Survivor(engine, nursery, third)
        await survivor.start()
        yield survivor
