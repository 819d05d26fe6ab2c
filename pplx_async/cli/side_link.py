# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a side of a demo or of the benchmark is told, and what it tells: one JSON line each.

A job and what `Link.hear` returns go in, events come out. Only this crosses between the process of
the command and the two that move the bytes. What the two have for each other goes over the fabric:
messages with descriptors, then one-sided writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import msgspec

from pplx_async import EngineOptions, Explanation, Peer, TransferEngine
from pplx_async.cli.failures import CommandError, Failure

__all__ = [
    "Done",
    "Event",
    "Found",
    "Job",
    "Link",
    "Listening",
    "Moved",
    "Phase",
    "Regions",
    "Role",
    "Talk",
    "describe",
    "split_in_messages",
    "watch_progress",
]

_M = TypeVar("_M", bound=msgspec.Struct)
_T = TypeVar("_T")

# Between reports of progress. More often would show nothing more, and cost the transfer.
_REPORT_S = 0.05


class Job(msgspec.Struct, frozen=True):
    """What one side is to do.

    Attributes
    ----------
    task : str
        ``"weights"``, ``"pages"`` or ``"bench"``.
    side : str
        Which of its two sides, such as ``"sender"``.
    engine : dict
        Fields of EngineOptions that were given on the command line; the environment has the others.
    arguments : dict
        The task's own.
    loop : str
        ``"asyncio"`` or ``"uvloop"``.
    """

    task: str
    side: str
    engine: dict[str, Any]
    arguments: dict[str, Any]
    loop: str = "asyncio"

    def options(self) -> EngineOptions:
        """Make the options of this side's engine."""
        return EngineOptions.from_env(**self.engine, name=self.side)


class Listening(msgspec.Struct, tag=True, frozen=True):
    """An engine is open; the other side connects to this address."""

    address: str


class Phase(msgspec.Struct, tag=True, frozen=True):
    """Something new begins, and moves so many bytes."""

    name: str
    nbytes: int = 0


class Moved(msgspec.Struct, tag=True, frozen=True):
    """So many bytes of the phase are through, in all."""

    nbytes: int


class Found(msgspec.Struct, tag=True, frozen=True):
    """What a side found on its way."""

    result: dict[str, Any]


class Done(msgspec.Struct, tag=True, frozen=True):
    """A side is through; what it found."""

    result: dict[str, Any]


Event = Listening | Phase | Moved | Found | Done | Failure


class Link(Protocol):
    """How a side reaches the process of the command."""

    def emit(self, event: Event) -> None:
        """Tell something."""
        ...

    async def hear(self) -> str:
        """Wait for the next line; the first is the address of the side that listens, for the other one."""
        ...


Role = Callable[[Job, Link], Coroutine[Any, Any, None]]


class Regions(msgspec.Struct, tag=True, frozen=True):
    """A message: where the other side may write, and count."""

    part: int
    parts: int
    descriptors: list[bytes]


def split_in_messages(items: list[_T], wrap: Callable[[int, int, list[_T]], msgspec.Struct], limit: int) -> list[bytes]:
    """Encode a list as messages of at most ``limit`` bytes each.

    Parameters
    ----------
    items : list
        What to send.
    wrap : callable
        Makes a message of (part, parts, items).
    limit : int
        Bytes, of ``EngineOptions.message_nbytes``.

    Returns
    -------
    list of bytes
        At least one message. Parts are numbered, since messages may arrive in another order.

    Raises
    ------
    CommandError
        One item alone is too long.
    """
    encode = msgspec.msgpack.encode
    # The largest part numbers that can be, so that the real ones fit too.
    room = limit - len(encode(wrap(len(items), len(items) + 1, []))) - 8
    parts: list[list[_T]] = [[]]
    used = 0
    for item in items:
        nbytes = len(encode(item))
        if nbytes > room:
            raise CommandError(
                f"an item of {nbytes} B does not fit a message of {limit} B", hint="Raise PPLX_ASYNC_MESSAGE_NBYTES."
            )
        if used + nbytes > room:
            parts.append([])
            used = 0
        parts[-1].append(item)
        used += nbytes
    return [encode(wrap(number, len(parts), part)) for number, part in enumerate(parts)]


class Talk:
    """Messages with one peer, typed; every wait ends when the peer is lost.

    Parameters
    ----------
    engine : TransferEngine
        Ours.
    peer : Peer
        The other one.
    """

    def __init__(self, engine: TransferEngine, peer: Peer) -> None:
        self._engine = engine
        self._peer = peer
        # Nobody counts here: its wait only ends when the peer does.
        self._alive = engine.counter(peer=peer)

    @property
    def limit(self) -> int:
        """Bytes of the longest message; both sides were started with the same options."""
        return self._engine.options.message_nbytes

    async def send(self, messages: list[bytes]) -> None:
        """Send messages, and wait until they are there."""
        for message in messages:
            await self._peer.send(message)

    async def receive(self, kind: type[_M]) -> list[_M]:
        """Wait for all parts of one kind of message, and put them in order.

        Raises
        ------
        PeerLost, ClosedResourceError
            The peer is gone before all have come.
        msgspec.ValidationError
            It sent something else.
        """
        parts: dict[int, _M] = {}
        message: Any = None
        while message is None or len(parts) < message.parts:
            message = msgspec.msgpack.decode(await self._next(), type=kind)
            parts[message.part] = message
        return [parts[number] for number in sorted(parts)]

    async def exchange(self, descriptors: list[bytes]) -> list[bytes]:
        """Send ours, and receive the peer's."""
        await self.send(split_in_messages(descriptors, Regions, self.limit))
        return [item for part in await self.receive(Regions) for item in part.descriptors]

    async def _next(self) -> bytes:
        lost = asyncio.ensure_future(self._alive.wait(1))
        news = asyncio.ensure_future(self._message())
        try:
            await asyncio.wait({lost, news}, return_when=asyncio.FIRST_COMPLETED)
            if not news.done():
                lost.result()  # raises why
            return await news
        finally:
            lost.cancel()
            news.cancel()

    async def _message(self) -> bytes:
        async with contextlib.aclosing(self._engine.messages()) as messages:
            async for message in messages:
                return message.data
        raise CommandError("the engine was closed while waiting for a message")


@contextlib.asynccontextmanager
async def watch_progress(link: Link, moved: Callable[[], int]) -> AsyncIterator[None]:
    """Tell how many bytes are through, again and again while the block runs, and once at its end."""

    async def tell() -> None:
        while True:
            await asyncio.sleep(_REPORT_S)
            link.emit(Moved(moved()))

    teller = asyncio.create_task(tell())
    try:
        yield
    finally:
        teller.cancel()
    link.emit(Moved(moved()))


def describe(explanation: Explanation) -> dict[str, Any]:
    """Give what a report says of an engine that has one peer: the fabric that this peer goes by, and why."""
    fabric = explanation.peers[0]["fabric"] if explanation.peers else explanation.fabric
    beside = len(explanation.domains) > 1 and "ipc" in explanation.fabric
    return {
        "fabric": fabric,
        "why": [why for why in explanation.why if not beside or ("(ipc)" in why) == (fabric == "ipc")],
        "domains": [domain["name"] for domain in explanation.domains],
    }
