# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""libibverbs itself, awaitable: what an engine of one's own is made of, on InfiniBand and RoCE.

    async with verbs.open("mlx5_0") as context:
        pd, queue = context.protection_domain(), context.completion_queue()
        memory = pd.register(array)
        pair = pd.queue_pair(queue)
        pair.connect(their_address)  # which is their pair.address, and came by any means
        await pair.write(memory[0:4096], remote[0:4096], imm=7, context="page 0")
        for completion in await queue.poll(): ...
        async for completion in queue: ...

Nothing runs behind one's back: no thread, no engine, no control channel. And `AsyncCQ` makes the
completion queues of other bindings awaitable, those of pyverbs and of the wheel ibverbs:

    async for completion in verbs.AsyncCQ(cq, channel): ...
"""

from __future__ import annotations

import operator
import os
import socket
import struct
from dataclasses import asdict, dataclass
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any, Self

from pplx_async._core import rt
from pplx_async._core import verbs as native
from pplx_async._core.fabric import RemoteMemory as RemoteMemory  # public in pplx_async.fabric
from pplx_async._core.verbs import MemoryRange
from pplx_async._foreign_cq import ForeignQueue
from pplx_async._resource import Resource
from pplx_async.completion import BATCH, CompletionQueue
from pplx_async.errors import RegistrationError
from pplx_async.memory import ACCESS, check_buffer
from pplx_async.options import EngineOptions

if TYPE_CHECKING:
    from pplx_async._typing import AccessName, Buffer

__all__ = [
    "ROOM_TIMEOUT",
    "Address",
    "AsyncCQ",
    "Context",
    "MemoryRange",
    "Port",
    "ProtectionDomain",
    "QueuePair",
    "RegisteredMemory",
    "devices",
    "error_of",
    "open",
]

#: Seconds that a post waits for room.
ROOM_TIMEOUT = 10.0

_WRITE, _READ, _SEND, _RECV = 0, 2, 3, 4  # enum pplx_opcode
_ADDRESS = struct.Struct("<4sIIIHB?16s")
_MAGIC = b"PVA1"

os.register_at_fork(after_in_child=native.forget_after_fork)


def devices(*, library: str | None = None) -> list[str]:
    """List the ports that can be used, best first, as `open` takes them: ``"mlx5_0"``, ``"mlx5_1:2"``.

    Parameters
    ----------
    library : str, optional
        The libibverbs to load, by default ``PPLX_ASYNC_LIBRARY``, else the system's. A process loads one, ever.

    Raises
    ------
    ProviderUnavailable
        There are none; the text says why, and what to install.
    """
    return [str(found["name"]) for found in rt.discover("verbs", _library(library))]


def open(
    device: str | None = None,
    *,
    gid_index: int | None = None,
    pkey_index: int | None = None,
    traffic_class: int = 0,
    service_level: int = 0,
    library: str | None = None,
) -> Context:
    """Open a device.

    Parameters
    ----------
    device : str, optional
        Its name, ``"mlx5_0:2"`` for its second port; by default the first of `devices`.
    gid_index : int, optional
        The entry of the port's GID table that peers know us by. By default one of RoCE v2 with an address
        that is routed, IPv4 before IPv6; on InfiniBand the first.
    pkey_index : int, optional
        The entry of the port's P_Key table. By default the first that makes it a full member of a partition.
    traffic_class : int
        Of RoCE's packets, by which networks tell lossless traffic; 8 bits, of which DSCP are the upper 6.
    service_level : int
        Of the queue pairs, 0 to 15: InfiniBand's, or RoCE's priority.
    library : str, optional
        As for `devices`.

    Raises
    ------
    ProviderUnavailable, VerbsError
        It is not there, or cannot be opened; then nothing is.
    """
    numbers = {
        "gid_index": gid_index,
        "pkey_index": pkey_index,
        "traffic_class": traffic_class,
        "service_level": service_level,
    }
    options = {key: str(operator.index(number)) for key, number in numbers.items() if number is not None}
    options |= _library(library)
    if device is None:
        device = devices(library=library)[0]
    elif not isinstance(device, str):
        raise TypeError(f"a device is opened by its name, not {type(device).__name__}")
    return Context(device, native.Context(device, options))


@dataclass(frozen=True)
class Port:
    """What was chosen of a device, and what it can do.

    Attributes
    ----------
    port : int
        Its number, from 1 on.
    link_layer : str
        ``"Ethernet"``, which is RoCE, or ``"InfiniBand"``.
    gid : str
        What peers know us by, for humans: an IP address.
    gid_index : int
        Its entry in the port's table.
    pkey, pkey_index : int
        The partition, with 0x8000 for a full member of it, and its entry in the port's table.
    lid : int
        The address of InfiniBand.
    mtu : int
        Bytes of payload in a packet.
    bits_per_second : int
        Of the link, 0 if unknown.
    max_message : int
        Bytes that one operation can move.
    max_entries : int
        Of one completion queue.
    max_depth : int
        Operations that one queue of a queue pair can hold.
    """

    port: int
    link_layer: str
    gid: str
    gid_index: int
    pkey: int
    pkey_index: int
    lid: int
    mtu: int
    bits_per_second: int
    max_message: int
    max_entries: int
    max_depth: int


@dataclass(frozen=True)
class Address:
    """What the other side needs to know of a queue pair; `to_bytes` travels by any means.

    Attributes
    ----------
    gid : bytes
        16 of them.
    number, psn : int
        Of the queue pair, and of its first packet: 24 bits each.
    mtu : int
        Bytes that its port takes in a packet.
    lid : int
        On InfiniBand.
    reads : int
        Reads that it answers at a time.
    grh : bool
        On InfiniBand: its port takes no packet without a global route.
    """

    gid: bytes
    number: int
    psn: int
    mtu: int
    lid: int = 0
    reads: int = 1
    grh: bool = False

    def __post_init__(self) -> None:
        if len(self.gid) != 16:
            raise ValueError("a GID is 16 bytes")
        for name, number, high in (
            ("number", self.number, 2**24),
            ("psn", self.psn, 2**24),
            ("lid", self.lid, 2**16),
            ("reads", self.reads, 2**8),
        ):
            if not 0 <= number < high:
                raise ValueError(f"{name}={number!r}: expected 0 to {high - 1}")
        if self.mtu not in (256, 512, 1024, 2048, 4096):
            raise ValueError(f"mtu={self.mtu!r}: expected a power of two from 256 to 4096")

    def to_bytes(self) -> bytes:
        """Return the 36 bytes that `from_bytes` reads."""
        return _ADDRESS.pack(_MAGIC, self.number, self.psn, self.mtu, self.lid, self.reads, self.grh, self.gid)

    @classmethod
    def from_bytes(cls, data: bytes) -> Address:
        """Read what `to_bytes` gave; ValueError for anything else."""
        data = bytes(data)
        if len(data) != _ADDRESS.size or data[:4] != _MAGIC:
            raise ValueError("not the address of a queue pair")
        _, number, psn, mtu, lid, reads, grh, gid = _ADDRESS.unpack(data)
        return cls(gid, number, psn, mtu, lid, reads, grh)


class Context(Resource):
    """A device, opened, and one of its ports. Made by `open`.

    Attributes
    ----------
    device : str
        Its name.
    port : Port
        What was chosen of it, and its limits.

    Threads
    -------
    Calls on a context, and on what was made from it, may come from any thread; the await belongs to the
    loop that waits for the queue.
    """

    _core: native.Context

    def __init__(self, device: str, core: native.Context) -> None:
        super().__init__(core)
        self.device = device
        self.port = Port(**core.port)

    def protection_domain(self) -> ProtectionDomain:
        """Open a protection domain."""
        return ProtectionDomain(self)

    def completion_queue(self, entries: int = 1024) -> AsyncCQ:
        """Open a completion queue, with a completion channel of its own.

        Parameters
        ----------
        entries : int
            Operations that may be in flight on all the queue pairs that complete here: there is a place for
            the completion of each, so that it is never overrun. At least; at most `Port.max_entries`.
        """
        entries = _ranged("entries", entries, 1, self.port.max_entries)
        return AsyncCQ._of(CompletionQueue(native.Queue(self._core, entries), self))

    def __repr__(self) -> str:
        return f"<Context {self.device}, {self.port.gid or self.port.lid}>"


class ProtectionDomain(Resource):
    """What memory and queue pairs share that may use each other; made by `Context.protection_domain`."""

    _core: native.ProtectionDomain

    def __init__(self, context: Context) -> None:
        super().__init__(native.ProtectionDomain(context._core), context)
        self.context = context

    def register(self, buffer: Buffer, *, access: AccessName | None = None) -> RegisteredMemory:
        """Register memory, for operations of our own and of peers.

        Parameters
        ----------
        buffer : object with the buffer protocol
            C-contiguous host memory of at least 1 B, which is held until the memory is closed and no
            operation of ours uses it.
        access : {"none", "read", "write", "both"}, optional
            What peers may do that know the key. By default ``"both"``, or ``"read"`` if the buffer is
            read-only.

        Raises
        ------
        RegistrationError
            The device refuses.
        ValueError, TypeError
            No such buffer.
        """
        access, writable = check_buffer(buffer, access)
        try:
            region = native.Region(self._core, buffer, ACCESS[access], writable)
        except RegistrationError as error:
            error.hint = "Check `ulimit -l` (locked memory)."
            raise
        return RegisteredMemory(self, region, access)

    def queue_pair(
        self, queue: AsyncCQ, receive_queue: AsyncCQ | None = None, *, send_depth: int = 128, receive_depth: int = 128
    ) -> QueuePair:
        """Open a queue pair (RC), for one peer. Receives can be posted at once, the rest after `QueuePair.connect`.

        Parameters
        ----------
        queue : AsyncCQ
            Where its operations complete.
        receive_queue : AsyncCQ, optional
            Where its receives do, and so the peer's writes with an immediate; by default the same.
        send_depth, receive_depth : int
            Operations, and receives, that it may have in flight.
        """
        return QueuePair(
            self,
            queue,
            queue if receive_queue is None else receive_queue,
            _ranged("send_depth", send_depth, 1, self.context.port.max_depth),
            _ranged("receive_depth", receive_depth, 1, self.context.port.max_depth),
        )

    def __repr__(self) -> str:
        return f"<ProtectionDomain of {self.context.device}>"


class RegisteredMemory(Resource, MemoryRange):
    """Registered memory; made by `ProtectionDomain.register`. Slicing is by bytes and free: ``memory[0:4096]``.

    Attributes
    ----------
    nbytes : int
        Its size.
    access : {"none", "read", "write", "both"}
        What peers may do.
    """

    _core: native.Region

    def __init__(self, pd: ProtectionDomain, region: native.Region, access: AccessName) -> None:
        MemoryRange.__init__(self, region, 0, region.nbytes, self)
        Resource.__init__(self, region, pd)
        self.access: AccessName = access

    @property
    def remote(self) -> RemoteMemory:
        """What a peer needs to reach it: to be sent as `RemoteMemory.to_bytes`, by any means."""
        if self.access == "none":
            raise ValueError('the memory was registered with access="none": peers may not reach it')
        self._core.require()
        return RemoteMemory(self._core.address, self._core.rkey, self._core.nbytes)

    def close(self) -> None:
        """Take it from the device; operations of ours that use it end first. Idempotent."""
        super().close()


class QueuePair(Resource):
    """A reliable connection to one peer; made by `ProtectionDomain.queue_pair`.

    Each operation comes in two forms, like those of `asyncio.Queue`. ``write_nowait`` posts or raises
    `QueueFull`; ``await write`` waits for room. Both end when the operation is *posted*: its outcome is a
    `Completion` of the queue, with the ``context`` that was given here. Until then the memory must not
    change, and is held. What is posted completes in order.

    A failure breaks the queue pair: what was posted behind it completes as `WorkFlushed`, and so does
    what is posted from then on. A new one takes its place.

    Attributes
    ----------
    address : Address
        What the peer connects to.
    """

    _core: native.QueuePair

    def __init__(
        self, pd: ProtectionDomain, queue: AsyncCQ, receive_queue: AsyncCQ, send_depth: int, receive_depth: int
    ) -> None:
        sends, receives = _own_source(queue), _own_source(receive_queue)
        core = native.QueuePair(pd._core, sends, receives, send_depth, receive_depth)
        super().__init__(core, pd, queue._queue, receive_queue._queue)
        self._queue = queue._queue
        self._receive_queue = receive_queue._queue
        self.address = Address(**core.address)
        self._sends, self._receives = SimpleNamespace(line=None), SimpleNamespace(line=None)

    def connect(self, peer: Address | bytes, *, timeout: int = 14, retry_count: int = 6, rnr_retry: int = 6) -> None:
        """Connect it to the peer's, which does the same. INIT to RTR to RTS; nothing is sent.

        Parameters
        ----------
        peer : Address or bytes
            `QueuePair.address` of the other side, or its `Address.to_bytes`.
        timeout : int
            An answer is missed after 4.096 us * 2^timeout (14: 67 ms); 0: never.
        retry_count : int
            So often it is asked for again before the peer is lost, 0 to 7. Some take 7 for "for ever".
        rnr_retry : int
            So often a message is sent again for which the peer has posted no receive; 7: for ever.

        Raises
        ------
        VerbsError
            The device refuses: it is connected already, or has no way to such an address.
        ValueError, TypeError
            That is no address.
        """
        if not isinstance(peer, Address):
            peer = Address.from_bytes(peer)
        self._core.connect(
            **asdict(peer),
            peer=f"{_ip(peer.gid) or peer.lid} QP {peer.number}",
            timeout=_ranged("timeout", timeout, 0, 31),
            retries=_ranged("retry_count", retry_count, 0, 7),
            rnr_retries=_ranged("rnr_retry", rnr_retry, 0, 7),
        )

    @property
    def state(self) -> str:
        """``"open"``, ``"connected"`` or ``"broken"``, as the device says."""
        return self._core.state

    def write_nowait(
        self, local: MemoryRange, remote: RemoteMemory, *, imm: int | None = None, context: Any = None
    ) -> None:
        """Post a write of ``local`` into ``remote``, or raise what keeps it from being posted.

        Parameters
        ----------
        local : RegisteredMemory or slice of one
            Source; it may be empty.
        remote : RemoteMemory or slice of one
            Destination, of the same length.
        imm : int, optional
            32 bits that the peer's queue gives, once the bytes are in place there. They take one of the
            receives that the peer has posted.
        context : object
            Comes back in the completion.

        Raises
        ------
        QueueFull
            There is no room. Nothing was posted; read the queue and try again.
        ValueError, TypeError
            Lengths differ, another protection domain, not connected.
        ClosedResourceError
            The queue pair, its queue or the memory is closed.
        """
        self._post(_WRITE, local, remote, imm, context)

    async def write(
        self, local: MemoryRange, remote: RemoteMemory, *, imm: int | None = None, context: Any = None
    ) -> None:
        """Post a write as soon as there is room for it. Otherwise as `write_nowait`.

        Raises
        ------
        TimeoutError
            There was no room for `ROOM_TIMEOUT` seconds.

        Cancelling
        ----------
        Nothing was posted.
        """
        await self._queue._when_room(
            self._sends, lambda: self.write_nowait(local, remote, imm=imm, context=context), ROOM_TIMEOUT
        )

    def read_nowait(self, local: MemoryRange, remote: RemoteMemory, *, context: Any = None) -> None:
        """Post a read of ``remote`` into ``local``, which is writable. Otherwise as `write_nowait`."""
        self._post(_READ, local, remote, None, context)

    async def read(self, local: MemoryRange, remote: RemoteMemory, *, context: Any = None) -> None:
        """Post a read as soon as there is room for it. As `write`."""
        await self._queue._when_room(
            self._sends, lambda: self.read_nowait(local, remote, context=context), ROOM_TIMEOUT
        )

    def send_nowait(self, local: MemoryRange | None, *, imm: int | None = None, context: Any = None) -> None:
        """Post a message, which goes to the oldest receive of the peer; None: an empty one. As `write_nowait`."""
        self._core.post(_SEND, local, 0, 0, _imm(imm), context)

    async def send(self, local: MemoryRange | None, *, imm: int | None = None, context: Any = None) -> None:
        """Post a message as soon as there is room for it. As `write`."""
        await self._queue._when_room(
            self._sends, lambda: self.send_nowait(local, imm=imm, context=context), ROOM_TIMEOUT
        )

    def recv_nowait(self, local: MemoryRange | None = None, *, context: Any = None) -> None:
        """Post a writable buffer for the next message, or none for an immediate. Otherwise as `write_nowait`."""
        self._core.post(_RECV, local, 0, 0, None, context)

    async def recv(self, local: MemoryRange | None = None, *, context: Any = None) -> None:
        """Post a receive as soon as there is room for it. As `write`."""
        await self._receive_queue._when_room(
            self._receives, lambda: self.recv_nowait(local, context=context), ROOM_TIMEOUT
        )

    def abort(self) -> None:
        """Break it: what is in flight, and what is posted from now on, completes as `WorkFlushed`."""
        self._core.break_()

    def close(self) -> None:
        """Close it. Idempotent.

        Then no operation of it touches memory any more, and nothing lands through it. What had not
        completed does so now, as `WorkFlushed`: the queue still gives the completions.

        Raises
        ------
        VerbsError
            The library does not close it; it is still open.
        """
        super().close()

    def _let_go(self) -> None:
        super()._let_go()
        for queue in (self._queue, self._receive_queue):
            queue._changed()  # whoever waits is to hear of what was flushed

    def _post(self, opcode: int, local: MemoryRange, remote: RemoteMemory, imm: int | None, context: Any) -> None:
        if None in (local, remote):
            raise TypeError("the memory on both sides must not be None")
        if local.nbytes != remote.nbytes:
            raise ValueError(f"the local range has {local.nbytes} B, the remote one {remote.nbytes} B")
        if remote.key >= 2**32:
            raise ValueError(f"the key {remote.key} is of another fabric: those of verbs have 32 bits")
        self._core.post(opcode, local, remote.address, remote.key, _imm(imm), context)

    def __repr__(self) -> str:
        return f"<QueuePair {self.address.number}>"


class AsyncCQ:
    """A completion queue that is awaited, iterated over, or polled.

    `Context.completion_queue` makes one. And around a queue of other bindings it makes that awaitable,
    on asyncio's loop and on uvloop; what it gives are then the library's own completions, as its own
    ``poll`` does, and `error_of` says what is wrong with one.

    Waiting is *arm, then look again*: the event tells only of what completes after it was asked for.
    Whoever waits takes nothing before it returns, so cancelling loses nothing.

    Parameters
    ----------
    cq : pyverbs.cq.CQ or ibverbs.CQ
        The queue.
    channel : pyverbs.cq.CompChannel or ibverbs.CompChannel, optional
        The channel that it was made with, which no other queue has; by default as the queue tells.
    fd : int, optional
        The channel's fd. The wheel ibverbs tells it, with pyverbs it is found.

    Raises
    ------
    TypeError
        These are no such objects.
    ValueError
        The queue has no channel, or another one.
    """

    def __init__(self, cq: Any, channel: Any = None, *, fd: int | None = None) -> None:
        self._queue: CompletionQueue = _Borrowed(ForeignQueue(cq, channel, fd))

    @classmethod
    def _of(cls, queue: CompletionQueue) -> AsyncCQ:
        made = cls.__new__(cls)
        made._queue = queue
        return made

    async def poll(self, max: int = BATCH) -> list[Any]:
        """Wait until something has completed, and take it.

        Parameters
        ----------
        max : int
            At most so many.

        Returns
        -------
        list of Completion
            At least one. Failures are among them, each with its ``error``: none hides the others. Of a
            queue of other bindings, their own completions.

        Raises
        ------
        ClosedResourceError
            The queue is closed, now or while this waits.
        BrokenResourceError
            The library has ended the queue; all that it still had to say has been read.

        Cancelling
        ----------
        Takes nothing: whoever polls next gets what came.
        """
        return await self._queue.read(max)

    def poll_nowait(self, max: int = BATCH) -> list[Any]:
        """Take what is there, perhaps nothing, ahead of all who wait. Raises as `poll` does."""
        return self._queue.poll(max)

    def __aiter__(self) -> Self:
        """Iterate until the queue is closed; of several iterators each completion goes to one."""
        return self

    async def __anext__(self) -> Any:
        return await self._queue.__anext__()

    @property
    def fd(self) -> int:
        """For an event loop of one's own: the channel's, which turns readable after `arm`."""
        return self._queue.fd

    def arm(self) -> bool:
        """For an event loop of one's own: whether one may sleep until `fd` is readable. False: poll first."""
        return self._queue.arm()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._queue.is_open

    def close(self) -> None:
        """Close it, and the queue pairs that complete on it. Idempotent.

        Waits end with ClosedResourceError, iterations just end. A queue of other bindings is only let go
        of; close this one first.

        Raises
        ------
        RuntimeError
            Its event loop runs in another thread.
        """
        self._queue.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return repr(self._queue).replace("CompletionQueue", "AsyncCQ").replace("_Borrowed", "AsyncCQ")


class _Borrowed(CompletionQueue):
    """Around what others own: to drop it is no leak."""

    def __del__(self) -> None:
        if hasattr(self, "_core"):
            self._let_go()


def error_of(completion: Any) -> Exception | None:
    """Say why a completion of pyverbs or ibverbs failed, in this package's terms; None: it did not.

    Parameters
    ----------
    completion : pyverbs.cq.WC or ibverbs.WC
        Anything with a ``status`` of libibverbs.

    Returns
    -------
    CompletionError or None
        `RemoteAccessError`, `PeerLost`, `WorkFlushed`, or one with a ``status``; its ``provider_error`` is
        that of libibverbs.
    """
    error = getattr(completion, "error", None)  # one of ours
    if error is None and hasattr(completion, "status"):
        return native.status_error(int(completion.status), f"work request {completion.wr_id}")
    return error if isinstance(error, Exception) else None


def _library(named: str | None) -> dict[str, str]:
    named = EngineOptions.from_env().library if named is None else named
    return {} if named is None else {"library": named}


def _ranged(name: str, number: int, low: int, high: int) -> int:
    number = operator.index(number)
    if not low <= number <= high:
        raise ValueError(f"{name}={number}: expected {low} to {high}")
    return number


def _imm(imm: int | None) -> int | None:
    return None if imm is None else _ranged("imm", imm, 0, 2**32 - 1)


def _own_source(queue: AsyncCQ) -> native.Queue:
    source = getattr(getattr(queue, "_queue", None), "_source", None)
    if not isinstance(source, native.Queue):
        raise TypeError("a queue pair completes on a completion queue of its context")
    return source


def _ip(gid: bytes) -> str:
    if gid == bytes(16):
        return ""
    if gid[:12] == bytes(10) + b"\xff\xff":
        return socket.inet_ntop(socket.AF_INET, gid[12:])
    return socket.inet_ntop(socket.AF_INET6, gid)
