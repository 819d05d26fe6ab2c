# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A connected peer that sends any control message at any time, while we use it.

Two engines on loopback meet for each input. The input says what the peer sends, and what we do meanwhile:
look up, form groups, revoke, write. In the end the peer is gone. Then every call of ours must have ended
with what it has, or with an error that its documentation names; and the engine must be as it was before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from pplx_async import (
    BrokenResourceError,
    ClosedResourceError,
    MemoryRegion,
    Peer,
    PeerGroup,
    PeerLost,
    TransferEngine,
    wire,
)
from tests.fuzz.features import note
from tests.fuzz.transport import run

__all__ = ["check"]

_MOST_STEPS = 40
_MOST_CALLS = 12
_PATIENCE_S = 4.0
_EXPECTED = (PeerLost, ClosedResourceError, BrokenResourceError)


class _Problems(logging.Handler):
    """What the engines log as errors, and what reaches the loop's exception handler."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(self.format(record))

    def on_loop(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.heard.append(repr(context))


_problems = _Problems()
_engines: list[TransferEngine] = []


async def _open() -> None:
    """Open the two engines; they stay."""
    asyncio.get_running_loop().set_exception_handler(_problems.on_loop)
    logging.getLogger("pplx_async").addHandler(_problems)
    logging.getLogger("pplx_async").propagate = False
    for name in ("ours", "theirs"):
        engine = TransferEngine(fabric="loopback", name=name, drain_timeout=1.0, revoke_timeout=0.2)
        await engine.open()
        _engines.append(engine)


async def close() -> None:
    """Close them, for a test."""
    while _engines:
        await _engines.pop().close()
    logging.getLogger("pplx_async").removeHandler(_problems)
    logging.getLogger("pplx_async").propagate = True


class _Meeting:
    """Our engine, the peer as we see it, and what we have of each other's."""

    def __init__(self, data: bytes, peer: Peer, region: MemoryRegion, remote: Any, counter: Any) -> None:
        self._data = data
        self.peer = peer
        self.engine = peer.engine
        self.region = region
        self.remote = remote
        self.counter = counter
        self._region_id = wire.decode_region(remote[1]).region
        self._counter_key = wire.decode_counter(counter[1]).counter
        self._later_key = ((self._counter_key >> 20) + 1) << 20  # of counters that they may open yet
        self.groups: list[PeerGroup] = []
        self.calls: list[asyncio.Future[Any]] = []

    @property
    def has_more(self) -> bool:
        return bool(self._data) and self.peer.is_open

    def take(self) -> int:
        byte, self._data = self._data[:1], self._data[1:]
        return int.from_bytes(byte)

    def take_key(self, theirs: int, others: int = 0) -> int:
        """Name a region or a counter: the one that we have of theirs, or any other."""
        what = self.take()
        if what < 64:
            return theirs
        return others + what % 8 if what < 128 else (what % 8) << 20 | self.take() % 16

    def take_counter(self) -> int:
        return self.take_key(self._counter_key, self._later_key)

    # ---- what the peer sends ----

    def message(self, what: int) -> wire.Message:
        match what:
            case 0:
                regions = tuple(self.take_key(self._region_id) for _ in range(self.take() % 3))
                counters = tuple(self.take_counter() for _ in range(self.take() % 3))
                return wire.Fence(self.take(), regions, counters)
            case 1:
                return wire.Fenced(self.take() % 8)
            case 2:
                return wire.CounterBroken(self.take() % 16, self.take(), "it says so")
            case 3 | 4:
                answers = self._own_barrier() if what == 3 else self.take()
                notify, barrier = self.take_counter(), self.take_counter()
                return wire.GroupJoin(f"g{self.take() % 2}", notify, barrier, answers)
            case 5:
                return wire.Lookup(self.take(), "published" if self.take() % 2 else "unknown")
            case 6:
                descriptors = (None, b"", self.remote[1], self.counter[1], b"PPLX\x01")
                return wire.Found(self.take() % 8, descriptors[self.take() % len(descriptors)])
            case 7:
                ends = (wire.Goodbye(), wire.Ready(), wire.Refused("no more"), wire.Proof(bytes(32)))
                which = self.take()
                return ends[which % 4] if which < 128 else wire.OpenCounters(((1, 2),))
            case _:
                raise AssertionError(what)

    def _own_barrier(self) -> int | None:
        """What a member that answers us would say: the key of our latest attempt, if there is one."""
        waiting = [counter for counter in self.engine._counters.values() if counter.peer is self.peer]
        return waiting[-1]._key if waiting else None

    # ---- what we do ----

    def call(self, what: int) -> None:
        if len(self.calls) >= _MOST_CALLS:
            return
        match what:
            case 8:
                work = self.peer.lookup("theirs")
            case 9:
                work = self._group(f"g{self.take() % 2}")
            case 10:
                work = self.region.revoke()
            case 11:
                work = self._use()
            case 12:
                work = self._wait(self.take() % 3)
            case _:
                work = self._leave()
        self.calls.append(asyncio.ensure_future(work))

    async def _group(self, name: str) -> None:
        self.groups.append(await self.engine.group(name, [self.peer]))
        note("a group was formed")

    async def _use(self) -> None:
        await self.engine.write(self.region, self.remote[0], counter=self.counter[0])

    async def _wait(self, count: int) -> None:
        async with self.engine.counter(peer=self.peer) as counter:
            await counter.wait(count)

    async def _leave(self) -> None:
        while self.groups:
            group = self.groups.pop()
            try:
                await self.engine.barrier(group)
            finally:
                await group.close()


def check(data: bytes) -> None:
    """Go through one meeting."""
    run(_check(data))


async def _check(data: bytes) -> None:
    if not _engines:
        await _open()
    ours, theirs = _engines
    async with asyncio.timeout(_PATIENCE_S):
        peer = await ours.connect(theirs.address)
        back = await theirs.accept()
    region = await ours.register(bytearray(64))
    ours.publish("published", region)
    their_region = await theirs.register(bytearray(64))
    their_counter = theirs.counter(peer=back)
    remote = (peer.region(their_region.to_bytes()), their_region.to_bytes())
    counter = (peer.counter(their_counter.to_bytes()), their_counter.to_bytes())
    region.to_bytes()  # somebody has it: so a revoke asks for a fence
    meeting = _Meeting(data, peer, region, remote, counter)
    for _ in range(_MOST_STEPS):
        if not meeting.has_more:
            break
        what = meeting.take() % 16
        if what < 8:
            message = meeting.message(what)
            peer._on_control(wire.decode_message(wire.encode_message(message)))
        elif what < 14:
            meeting.call(what)
        else:
            await asyncio.sleep(0)
    for _ in range(3):
        await asyncio.sleep(0)
    back._channel._frames.fail("it dies")
    async with asyncio.timeout(_PATIENCE_S):
        await peer.wait_closed()
        await back.wait_closed()
        for call in meeting.calls:
            await _judge(call)
        for group in meeting.groups:
            await group.close()
        with contextlib.suppress(*_EXPECTED):
            await region.revoke()
        await their_region.close()
        await their_counter.close()
        while (left := _left(ours)) or _left(theirs):
            await asyncio.sleep(0.001)
    assert not left
    assert not _problems.heard, _problems.heard
    assert ours.is_open


async def _judge(call: asyncio.Future[Any]) -> None:
    """Wait for a call of ours, and see how it ended."""
    try:
        await call
    except _EXPECTED as error:
        note(type(error).__name__)
    except (KeyError, ValueError) as error:
        # What the peer says is at a name may be nothing, or no descriptor; one group of a name is formed at a time.
        note(str(error))


def _left(engine: TransferEngine) -> str:
    """Say what is still open."""
    stats = engine.stats()
    held = {"transfers": stats.inflight, "regions": stats.regions, "counters": stats.counters}
    return ", ".join(f"{count} {what}" for what, count in held.items() if count)
