# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A peer: another engine that this one is connected to.

Two engines meet on the control channel. Both do the same, whoever called:

1. open endpoints for this peer, send `Endpoints`
2. take the other's `Endpoints`, connect; this ends when every link carried a heartbeat both ways
3. say which counters are open (`OpenCounters`), send `Ready`, wait for the other's

Who can't go on sends `Refused` with the reason. The channel then carries fences, broken counters,
groups and look-ups. When it ends without a `Goodbye`, the peer is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import weakref
from array import array
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from pplx_async import _loop, wire
from pplx_async._core.memory import RemoteRecord
from pplx_async._core.peer import PeerCore
from pplx_async._frames import say
from pplx_async.counters import ImmCounter, RemoteCounter
from pplx_async.errors import BrokenResourceError, ClosedResourceError, PeerLost, PplxAsyncError
from pplx_async.memory import RemoteRegion
from pplx_async.routes import describe_nic, fabric_of, find_route, weigh
from pplx_async.stats import LinkStats, PeerStats

if TYPE_CHECKING:
    from pplx_async._core.transfer import Transfer
    from pplx_async._typing import Buffer
    from pplx_async.control import ControlChannel
    from pplx_async.engine import TransferEngine
    from pplx_async.group import Member

__all__ = ["Message", "Peer"]

# Groups that a peer may have told us of and that nobody here has formed yet.
MAX_UNREAD_JOINS = 1024

_ID_MASK = (1 << 20) - 1  # of a counter's key: its id
# What a peer may make us remember or do at a time. Of revoked regions the last so many: the key of an older
# one is withdrawn long since. Of fences that we have not confirmed yet the ids in them, and so much for each
# fence itself: beyond that the peer is cut off.
_MOST_REVOKED = 1 << 16
_MOST_FENCING = 1 << 17
_A_FENCE = 32
_MESSAGES_A_TURN = 32
_IDS_A_MESSAGE = 512  # so many take as long as a message


@dataclass(frozen=True)
class Message:
    """A two-sided message that arrived; see `TransferEngine.messages`.

    Attributes
    ----------
    peer : Peer
        Who sent it.
    data : bytes
        What it says.
    """

    peer: Peer
    data: bytes


class _Joined(NamedTuple):
    """What the peer told us of a group that it wants to form: its counters, which are its attempt's name too."""

    notify: RemoteCounter
    barrier: RemoteCounter
    key: int  # of `barrier`
    answers: int | None  # key of ours that it has heard of


def _ids_in(message: wire.Message) -> int:
    return len(message.regions) + len(message.counters) if isinstance(message, wire.Fence) else 0


class _Revoked:
    """Regions that the peer has revoked or closed, the latest of them."""

    def __init__(self) -> None:
        self._ids: set[int] = set()
        self._order: deque[int] = deque()

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, region: int) -> bool:
        return region in self._ids

    def add(self, region: int) -> None:
        if region in self._ids:
            return
        self._ids.add(region)
        self._order.append(region)
        if len(self._order) > _MOST_REVOKED:
            self._ids.discard(self._order.popleft())


class _ClosedCounters:
    """Keys of counters that the peer has closed.

    Before we met: all but those that it named then. Since: all of an id up to the last one. Up to 8 B for each
    id in use, and 16 B for each run of serial numbers that were open when we met.
    """

    def __init__(self) -> None:
        self._serials = array("Q")  # by id, of the first key that is not closed
        self._before = 0  # serials up to this one are older than our meeting ...
        self._firsts, self._lasts = array("Q"), array("Q")  # ... and of those these runs are open

    def __contains__(self, key: int) -> bool:
        counter, serial = key & _ID_MASK, key >> 20
        if serial <= self._before:
            run = bisect_right(self._firsts, serial) - 1
            if run < 0 or serial > self._lasts[run]:
                return True
        return counter < len(self._serials) and serial < self._serials[counter]

    def open_before(self, runs: tuple[tuple[int, int], ...]) -> None:
        """Take runs that were open when we met; ValueError if they don't rise, or are more than there can be."""
        for first, last in runs:
            if (self._lasts and first <= self._lasts[-1]) or last < first:
                raise ValueError("it names open counters out of order")
            if len(self._lasts) == wire.MAX_COUNTERS:
                raise ValueError("it names more open counters than there can be")
            self._firsts.append(first)
            self._lasts.append(last)

    def close_before(self, serial: int) -> None:
        """Take all others up to this serial number for closed."""
        self._before = serial

    def add(self, key: int) -> None:
        counter, known = key & _ID_MASK, len(self._serials)
        if counter >= known:
            self._serials.frombytes(bytes(8 * (max(counter + 1, min(2 * known, _ID_MASK + 1)) - known)))
        self._serials[counter] = max(self._serials[counter], (key >> 20) + 1)


class Peer:
    """A connected engine; made by `TransferEngine.connect` and `TransferEngine.accept`.

    Attributes
    ----------
    id : bytes
        The other engine's id, 16 random bytes; another one after it restarts.
    name : str
        What the other engine calls itself (its word only).
    address : str
        Where its control channel comes from.
    fabric : str
        What moves the bytes to and from it: ``"ipc"``, ``"tcp"``, ``"efa"``.
    same_host : bool
        Whether it says that it runs on this host.
    """

    def __init__(self, engine: TransferEngine, channel: ControlChannel) -> None:
        hello = channel.remote_hello
        self._engine = engine
        self._channel = channel
        self.id = hello.engine
        self.name = hello.name
        self.address = channel.peername
        self.same_host = hello.host == engine.host
        self._domains = len(hello.networks)
        route = self._route = find_route(engine._identity.networks, hello.networks, engine._nics, hello.nics)
        self._weights = weigh(route, engine._nics, hello.nics)
        self.fabric = fabric_of(hello.networks[route[0][1]])
        self._record = PeerCore(engine._core, self._make_label(), self._domains, route, self, self._weights)
        self._regions: weakref.WeakValueDictionary[int, RemoteRecord] = weakref.WeakValueDictionary()
        self._counters: weakref.WeakValueDictionary[int, RemoteCounter] = weakref.WeakValueDictionary()
        self._revoked = _Revoked()
        self._closed_counters = _ClosedCounters()
        self._broken_counters: set[RemoteCounter] = set()  # by us; kept until the peer closes them
        self._serial = 0
        self._fences: dict[int, asyncio.Future[None]] = {}
        self._lookups: dict[int, asyncio.Future[bytes | None]] = {}
        # Groups: what the peer told us of each, the latest and not read yet, and who waits for more of it.
        self._joined: dict[str, _Joined] = {}
        self._joins: dict[str, asyncio.Future[None]] = {}
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()  # what it is in the groups that we formed
        self._bound: weakref.WeakSet[ImmCounter] = weakref.WeakSet()
        self._goodbye = asyncio.Event()
        self._said_goodbye = False
        self._closing: asyncio.Task[None] | None = None
        self._message_nbytes = 0
        self._freeing = False
        self._fencing = 0  # ids in fences that we have not confirmed yet, and _A_FENCE for each
        self._early: list[tuple[Message, int]] = []  # messages that came before that
        self._said_ready = False  # the other side may be connected, and write
        self._early_losses: list[wire.RailLost] = []  # of links, before that: it expects nothing else of us
        self._met = asyncio.Event()  # connected, or never to be
        self._ended = asyncio.Event()  # nobody can wait for it any more
        self._gone = asyncio.Event()  # every endpoint is closed: nothing comes from there any more

    def _make_label(self) -> str:
        short = f"{self.id[:1].hex()}:{self.id[1:3].hex()}…"
        name = wire.clip(self.name, 64)  # its own word for itself: it may hold anything
        return f"{name} ({short} at {self.address})" if name else f"{short} at {self.address}"

    def __repr__(self) -> str:
        return f"<Peer {self._record.label}{'' if self.is_open else ', closed'}>"

    @property
    def label(self) -> str:
        """How errors and statistics call it."""
        return self._record.label

    @property
    def engine(self) -> TransferEngine:
        """Our engine, that it is connected to."""
        return self._engine

    @property
    def is_open(self) -> bool:
        """Whether operations can name it; False once it is lost or closed."""
        return self._record.is_open

    @property
    def lost(self) -> PeerLost | None:
        """Why it is lost, or None."""
        return self._record.reason if isinstance(self._record.reason, PeerLost) else None

    async def wait_closed(self) -> PeerLost | None:
        """Wait until it is gone, by whatever means; beside `TransferEngine.messages`, for example.

        Returns
        -------
        PeerLost or None
            Why it is lost; None after an orderly goodbye.

        Cancelling
        ----------
        Changes nothing.
        """
        self._engine._check_here()
        await self._ended.wait()
        return self.lost

    # ---- what it lets us reach ----

    def region(self, descriptor: bytes | bytearray | memoryview) -> RemoteRegion:
        """Make a remote region of a descriptor (`MemoryRegion.to_bytes`) of this peer.

        Raises
        ------
        ValueError
            The bytes are no descriptor, or of another engine: that one must be connected.
        BrokenResourceError
            The peer has revoked the region.
        """
        parsed = wire.decode_region(descriptor)
        self._check_owner(parsed.engine, "region")
        if parsed.region in self._revoked:
            raise BrokenResourceError(
                f"the region was closed or revoked by peer {self.label}",
                hint="Ask the peer for the descriptor of another region.",
            )
        if len(parsed.keys) != self._domains:
            raise ValueError(f"a region of peer {self.label} has {self._domains} keys, not {len(parsed.keys)}")
        record = self._regions.get(parsed.region)
        if record is None:
            record = RemoteRecord(self._record, parsed.region, parsed.nbytes, parsed.access, parsed.keys)
            self._regions[parsed.region] = record
        elif not record.is_as_told(parsed.nbytes, parsed.access, parsed.keys):
            # Which of them is it? A damaged one that came first must not speak for this one.
            raise ValueError(f"another descriptor tells otherwise of this region of peer {self.label}: one is damaged")
        return RemoteRegion(self, record)

    def counter(self, descriptor: bytes | bytearray | memoryview) -> RemoteCounter:
        """Make a remote counter of a descriptor (`ImmCounter.to_bytes`) of this peer.

        Raises
        ------
        ValueError
            The bytes are no descriptor, or of another engine.
        BrokenResourceError
            The peer has closed the counter.
        """
        parsed = wire.decode_counter(descriptor)
        self._check_owner(parsed.engine, "counter")
        return self._remote_counter(parsed.counter)

    def _remote_counter(self, key: int) -> RemoteCounter:
        """By key (`ImmCounter._key`): the id may belong to another counter by now."""
        if key in self._closed_counters:
            raise BrokenResourceError(
                f"the counter was closed by peer {self.label}", hint="Ask the peer for a new one."
            )
        remote = self._counters.get(key)
        if remote is None:
            remote = RemoteCounter(self, self._record, key & _ID_MASK)
            self._counters[key] = remote
        return remote

    def _break_counter(self, counter: int) -> None:
        """Count nothing more there: a second try of what failed would stand in for what the peer misses."""
        for remote in self._counters.values():
            if remote.counter == counter and not remote.closed:
                remote.broken = True
                self._broken_counters.add(remote)

    def _check_owner(self, engine: bytes, what: str) -> None:
        if engine != self.id:
            raise ValueError(
                f"the {what} belongs to engine {engine[:3].hex()}…, not to peer {self.label}: connect to that engine"
            )

    async def lookup(self, name: str) -> RemoteRegion:
        """Ask for a region that the peer published by name (`TransferEngine.publish`).

        Raises
        ------
        KeyError
            It has published nothing of this name.
        PeerLost, ClosedResourceError
            The peer is gone.

        Cancelling
        ----------
        The answer is dropped.
        """
        return self.region(await self._lookup(name))

    async def lookup_counter(self, name: str) -> RemoteCounter:
        """Ask for a counter that the peer published by name; as `lookup`."""
        return self.counter(await self._lookup(name))

    async def _lookup(self, name: str) -> bytes:
        self._engine._check_name(name)
        self._check_open("lookup")
        self._serial += 1
        serial = self._serial
        future: asyncio.Future[bytes | None] = self._engine._loop.create_future()
        self._lookups[serial] = future
        try:
            await self._tell(wire.Lookup(serial, name))
            descriptor = await future
        finally:
            self._lookups.pop(serial, None)
        if descriptor is None:
            raise KeyError(f"peer {self.label} has published nothing called {name!r}")
        return descriptor

    # ---- messages ----

    def send(self, data: Buffer) -> Transfer:
        """Send a two-sided message over the fabric; the peer gets it from `TransferEngine.messages`.

        Messages may arrive in another order than they were sent.

        Parameters
        ----------
        data : bytes-like
            Copied at the call; up to what the peer takes (its ``EngineOptions.message_nbytes``).

        Returns
        -------
        Transfer
            Awaited: the message is in the peer's memory, read by its program or not.

        Raises
        ------
        ValueError
            The message is too long.
        PeerLost, ClosedResourceError
            The peer is gone.

        Cancelling
        ----------
        Not sent if it was still waiting for room at the peer; otherwise it is delivered all the same.
        """
        nbytes = memoryview(data).nbytes
        limit = min(self._message_nbytes, self._engine.options.message_nbytes)
        if nbytes > limit:
            raise ValueError(f"a message of {nbytes} B is longer than peer {self.label} takes ({limit} B): use a write")
        return self._engine._core.send(self._record, data)

    # ---- statistics ----

    def stats(self) -> PeerStats:
        """Return what its links have counted."""
        raw = self._record.link_stats()
        return PeerStats(self.label, tuple(LinkStats.from_core(link) for link in raw))

    def _describe_route(self) -> list[str]:
        """Say of each link which NICs it joins, and its share of the bytes."""
        lines: list[str] = []
        for (here, there), weight in zip(self._route, self._weights, strict=True):
            ends = [f"domain {self._engine._core.domain_names[here]}", f"its domain {there}"]
            about = [describe_nic(self._engine._nics, here), describe_nic(self._channel.remote_hello.nics, there)]
            left, right = (f"{end} ({text})" if text else end for end, text in zip(ends, about, strict=True))
            lost = self._record.lost_links.get(len(lines))
            share = f"{weight / sum(self._weights):.0%}" if lost is None else f"lost: {lost}"
            lines.append(f"{left} with {right}: {share}")
        return lines

    # ---- the handshake ----

    async def _establish(self) -> None:
        """Go through the steps at the head of this file; whoever calls has the deadline."""
        record, options = self._record, self._engine.options
        await record.open()
        # If the channel has ended, what it brought last says why: `_expect` finds that.
        self._post(
            wire.Endpoints(
                **record.endpoints(),
                credits=options.message_slots,
                message_nbytes=options.message_nbytes,
            )
        )
        theirs = await self._expect(wire.Endpoints)
        self._message_nbytes = theirs.message_nbytes
        try:
            connecting = record.connect(
                theirs.addresses,
                theirs.landing,
                theirs.heartbeat_counter,
                theirs.credit_counter,
                theirs.credits,
                theirs.token,
                theirs.message_nbytes,
            )
        except ValueError as error:
            raise BrokenResourceError(str(error), hint="") from error
        # The other side may fail while we connect: then its channel ends, and so does our attempt.
        ready = asyncio.ensure_future(self._expect(wire.Ready))
        connected = asyncio.ensure_future(self._say_ready(connecting))
        try:
            await asyncio.wait({ready, connected}, return_when=asyncio.FIRST_EXCEPTION)
            self._check_reason()  # that its channel ended only followed from it
            for task in (ready, connected):
                if task.done():
                    task.result()
        finally:
            # The transfer too: a task that is cancelled before its first step awaits nothing.
            for ending in (ready, connected, connecting):
                ending.cancel()
            await asyncio.gather(ready, connected, connecting, return_exceptions=True)
        self._check_reason()
        self._record.is_open = True

    def _check_reason(self, operation: str = "connect") -> None:
        if self._record.reason is not None:
            raise self._reason(self._record.reason, operation)

    @staticmethod
    def _reason(reason: Exception, operation: str) -> Exception:
        """Copy a reason for what it ends: its traceback is the raiser's, and one instance would collect them all."""
        again = copy.copy(reason)
        if isinstance(again, PeerLost):
            again.operation = operation
        return again

    async def _say_ready(self, connecting: Transfer) -> None:
        try:
            await connecting
        except ValueError as error:  # what it says of its endpoints is no address of this fabric
            raise BrokenResourceError(str(error), hint="") from error
        self._engine._check_open()
        self._channel.expect_long()  # once it knows that we are ready it may say anything
        # It may hold older descriptors: one of a counter that is closed would count on whoever has its id now.
        # What is open is less than all that was closed; and who closes any of it after this asks us for a fence.
        runs, newest = self._engine._open_counters()
        with contextlib.suppress(ClosedResourceError, BrokenResourceError):  # the channel has ended: `_expect` says so
            for first in range(0, len(runs), wire.MAX_OPEN_RUNS):
                await self._channel.send(wire.OpenCounters(tuple(runs[first : first + wire.MAX_OPEN_RUNS])))
            self._channel.post(wire.Ready(newest))
        self._said_ready = True
        for lost in self._early_losses:
            self._post(lost)

    async def _expect(self, kind: type[Any]) -> Any:
        message = await self._channel.receive()
        while kind is wire.Ready and isinstance(message, wire.OpenCounters):
            try:
                self._closed_counters.open_before(message.runs)
            except ValueError as error:
                raise BrokenResourceError(f"peer {self.label} breaks the rules: {error}", hint="") from error
            message = await self._channel.receive()
        if isinstance(message, wire.Refused):
            raise BrokenResourceError(
                f"peer {self.label} does not connect: {wire.clip(message.reason)}",
                hint="This is what failed on its side; its log has the same line.",
            )
        if not isinstance(message, kind):
            raise BrokenResourceError(f"peer {self.label} sent {type(message).__name__} where {kind.__name__} is due")
        if isinstance(message, wire.Ready):
            self._closed_counters.close_before(message.counters)
        return message

    # ---- the control channel ----

    async def _serve(self) -> None:
        """Answer the control channel until it ends."""
        taken = 0
        ended = True
        try:
            async for message in self._channel:
                self._on_control(message)
                taken += 1 + _ids_in(message) // _IDS_A_MESSAGE
                if taken >= _MESSAGES_A_TURN:
                    taken = 0
                    await asyncio.sleep(0)  # others of this loop go on, however much it asks
        except asyncio.CancelledError:
            ended = False  # the engine or the whole program ends: that says nothing of the peer
            raise
        finally:
            if ended and not self._goodbye.is_set() and not self._freeing:
                self._lose(f"its control channel ended: {self._channel.reason}")

    def _on_control(self, message: wire.Message) -> None:
        match message:
            case wire.Fence():
                self._on_fence(message)
            case wire.Fenced():
                self._resolve(self._fences.pop(message.serial, None), None)
            case wire.RailLost():
                if self._met.is_set() and not self._freeing and message.link < len(self._route):
                    reason = f"the other side: {wire.clip(message.reason)}"
                    self._record.lose_rail(message.link, reason, message.prefix, message.arrived)
            case wire.CounterBroken():
                self._engine._break_counter(self, message)
            case wire.GroupJoin():
                self._on_join(message)
            case wire.Lookup():
                self._post(wire.Found(message.serial, self._engine._published(message.name)))
            case wire.Found():
                self._resolve(self._lookups.pop(message.serial, None), message.descriptor)
            case wire.Goodbye():
                self._goodbye.set()
                if self._closing is None:
                    self._closing = self._engine._spawn(self._close("the peer said goodbye"))
            case wire.Refused():
                self._lose(f"it gave up connecting: {wire.clip(message.reason)}")
                self._channel.close()
            case _:
                self._cut_off(f"it sent {type(message).__name__}, which is not due")

    def _cut_off(self, why: str) -> None:
        """Part with a peer that breaks the rules, or asks for too much."""
        self._engine._complain("peer %s is cut off: %s", self.label, why)
        self._lose(f"cut off: {why}")
        self._channel.close()

    @staticmethod
    def _resolve(future: asyncio.Future[Any] | None, result: Any) -> None:
        if future is not None and not future.done():
            future.set_result(result)

    def _post(self, message: wire.Message) -> None:
        """Queue a control message; a channel that has ended has its own consequences."""
        try:
            self._channel.post(message)
        except PplxAsyncError:
            return

    async def _tell(self, message: wire.Message) -> None:
        """Queue a control message as soon as there is room; the same holds."""
        with contextlib.suppress(PplxAsyncError):
            await self._channel.send(message)

    def _on_join(self, join: wire.GroupJoin) -> None:
        try:
            # Kept as remote counters: the fence of an attempt that the peer gives up finds them.
            notify, barrier = self._remote_counter(join.notify_counter), self._remote_counter(join.barrier_counter)
        except BrokenResourceError:
            return  # it has given that attempt up
        if join.name not in self._joined and len(self._joined) >= MAX_UNREAD_JOINS:
            for name in list(self._joined):
                if self._unread_join(name) is None:
                    del self._joined[name]
            if len(self._joined) >= MAX_UNREAD_JOINS:
                self._cut_off(f"it joins more than {MAX_UNREAD_JOINS} groups that nobody here forms")
                return
        # In place of an earlier attempt.
        self._joined[join.name] = _Joined(notify, barrier, join.barrier_counter, join.answers)
        self._resolve(self._joins.get(join.name), None)

    def _unread_join(self, name: str) -> _Joined | None:
        """Return the peer's latest join of a group; None if it hasn't joined, or has given up since."""
        joined = self._joined.get(name)
        return None if joined is None or joined.notify.closed or joined.barrier.closed else joined

    def _on_fence(self, fence: wire.Fence) -> None:
        self._fencing += _A_FENCE + _ids_in(fence)
        if self._fencing > _MOST_FENCING:
            self._cut_off("it sends fences faster than they can be confirmed")
        else:
            self._engine._spawn(self._answer_fence(fence))

    async def _answer_fence(self, fence: wire.Fence) -> None:
        """Start nothing new into these regions and counters, wait for what is under way, confirm."""
        users: list[Any] = []
        for region in fence.regions:
            self._revoked.add(region)
            record = self._regions.get(region)
            if record is not None:
                record.revoked = True
                users.append(record)
        users += self._forget_counters(fence.counters)
        for member in list(self._members):
            member.on_fence()
        for used in users:
            self._engine._core.words_end(used, BrokenResourceError(f"peer {self.label} has closed or revoked it"))
            await _loop.idle(self._engine._loop, used)
        self._fencing -= _A_FENCE + _ids_in(fence)
        self._post(wire.Fenced(fence.serial))

    def _forget_counters(self, keys: tuple[int, ...]) -> list[RemoteCounter]:
        """Let nothing count there any more; those of them that we have."""
        known = []
        for key in keys:
            self._closed_counters.add(key)
            remote = self._counters.get(key)
            if remote is not None:
                remote.closed = True
                self._broken_counters.discard(remote)
                known.append(remote)
        return known

    async def _fence(self, regions: tuple[int, ...], counters: tuple[int, ...]) -> None:
        """Ask the peer to fence; return when it has confirmed, or is gone."""
        if self._ended.is_set():
            return
        self._serial += 1
        future: asyncio.Future[None] = self._engine._loop.create_future()
        self._fences[self._serial] = future
        self._post(wire.Fence(self._serial, regions, counters))
        await future

    # ---- the end ----

    def _check_open(self, operation: str) -> None:
        if not self.is_open:
            self._check_reason(operation)
            raise ClosedResourceError(f"peer {self.label} is closed")

    def _lose(self, why: str) -> None:
        """Tell the core that it is lost; that comes back as `_on_lost`."""
        # Not where we are only taken apart: after the loop's end, or in the child of a fork.
        core = self._engine._core
        if not self._gone.is_set() and core.running and not self._engine._loop.is_closed():
            self._record.lose(why)

    def _on_lost(self, reason: PeerLost) -> None:
        """Tell everyone who waits for it that the core has lost it."""
        if self._said_goodbye:
            return  # who has heard that closes its endpoints, maybe before we have read its own: see `_free`
        if not self._met.is_set():
            self._channel.refuse(say(reason))  # here, since our end of the channel goes before the attempt ends
        self._end_waits(reason)
        if self._closing is None:
            self._closing = self._engine._spawn(self._free())

    def _on_rail_lost(self, link: int, prefix: int, arrived: bytes) -> None:
        """Tell the other side that our end of a link is closed; unless all of them close, in good order."""
        if self._freeing:
            return
        reason = wire.clip(self._record.lost_links[link])
        lost = wire.RailLost(link, reason, prefix, arrived)
        if not self._said_goodbye:  # or it may be that good order, and its goodbye is still to be read
            self._engine._complain("link %d to peer %s is lost: %s", link, self.label, reason)
        if self._said_ready:
            self._post(lost)
        else:
            self._early_losses.append(lost)

    def _end_waits(self, reason: Exception) -> None:
        self._ended.set()
        for counter in list(self._bound):
            counter.lose(reason)
        self._engine._core.words_end(self._record, reason)
        for fence in self._fences.values():
            self._resolve(fence, None)  # who is gone writes nothing any more
        self._fences.clear()
        waiting: dict[str, list[asyncio.Future[Any]]] = {
            "lookup": list(self._lookups.values()),
            "group": list(self._joins.values()),
        }
        for operation, futures in waiting.items():
            for future in futures:
                if not future.done():
                    future.set_exception(self._reason(reason, operation))
                    future.exception()  # nobody may be waiting for it

    async def close(self) -> None:
        """Say goodbye: finish what is under way on both sides, then close. Idempotent.

        What isn't finished within ``EngineOptions.drain_timeout`` ends with WorkFlushed.

        Cancelling
        ----------
        The close goes on in the background.
        """
        if self._closing is None:
            self._closing = self._engine._spawn(self._close("closed here"))
        await self._engine._wait(self._closing)

    async def _close(self, why: str) -> None:
        loop, timeout = self._engine._loop, self._engine.options.drain_timeout
        self._record.is_open = False
        self._record.reason = closed = ClosedResourceError(f"peer {self.label} is closed: {why}")
        self._engine._core.words_end(self._record, closed, repeating_only=True)  # they are never under way for good
        try:
            async with asyncio.timeout(timeout):
                await _loop.idle(loop, self._record)
                self._said_goodbye = True
                self._post(wire.Goodbye())
                # It has nothing under way to us either when it says goodbye. If its channel ends
                # first, it does not matter any more how.
                ended = asyncio.ensure_future(self._channel_ended())
                said = asyncio.ensure_future(self._goodbye.wait())
                try:
                    await asyncio.wait({ended, said}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    ended.cancel()
                    said.cancel()
        except TimeoutError:
            pass  # what is left is flushed
        await self._free(closed)

    async def _channel_ended(self) -> None:
        task = self._engine._servers.get(self)
        if task is not None:
            await asyncio.wait({task})

    async def _free(self, closed: ClosedResourceError | None = None) -> None:
        """Close the endpoints, end what waits for the peer, and give the core's part back.

        With a goodbye of both sides it is `closed`, although our NIC may have seen its endpoints go before ours.
        """
        self._freeing = True
        self._channel.close()
        # First the endpoints: that counts what has arrived, and who waits for it hears that.
        closing = asyncio.ensure_future(self._close_endpoints())
        await self._engine._end_gates()
        await asyncio.wait({closing}, timeout=self._engine.options.drain_timeout)
        if closed is not None and self._goodbye.is_set():
            self._record.reason = closed
        self._end_waits(self._record.reason or ClosedResourceError(f"peer {self.label} is closed"))
        await closing
        await _loop.idle(self._engine._loop, self._record)
        self._record.free()
        self._gone.set()
        self._engine._peer_gone(self)

    async def _close_endpoints(self) -> None:
        await self._record.close()
