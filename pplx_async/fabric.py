# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""libfabric itself, awaitable: what an engine of one's own is made of.

    async with fabric.open(provider="tcp") as domain, domain.completion_queue() as queue:
        endpoint = domain.endpoint(queue)
        memory = domain.register(array)
        peer = domain.insert(their_address)
        await endpoint.write(memory[0:4096], peer, remote[0:4096], imm=7, context="page 0")
        async for completion in queue: ...

Nothing runs behind one's back: no thread, no engine, no control channel. A completion says that the
bytes are visible at the peer, or why not. What libfabric leaves to its users is left here too: both
sides know the other's address, and both read their queue, or nothing moves; there is no order; closing
memory is no fence; and a dead peer shows only in what was sent to it.
"""

from __future__ import annotations

import operator
import os
import socket
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pplx_async._core import fabric as native
from pplx_async._core import rt
from pplx_async._core.fabric import LocalMemory, PeerAddress, RemoteMemory
from pplx_async._resource import Resource
from pplx_async.completion import POLL_INTERVAL, CompletionQueue
from pplx_async.errors import RegistrationError
from pplx_async.libraries import libfabric_files
from pplx_async.memory import ACCESS, check_buffer
from pplx_async.options import EngineOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from pplx_async._typing import AccessName, Buffer

__all__ = [
    "AGAIN_TIMEOUT",
    "Domain",
    "Endpoint",
    "Info",
    "LocalMemory",
    "Memory",
    "PeerAddress",
    "RemoteMemory",
    "infos",
    "open",
]

#: Seconds that a post waits for room, or for the way to its peer.
AGAIN_TIMEOUT = 10.0

_WRITE, _READ, _SEND, _RECV = 0, 2, 3, 4  # enum pplx_opcode

os.register_at_fork(after_in_child=native.forget_after_fork)


@dataclass(frozen=True)
class Info:
    """A device that libfabric offers; made by `infos`.

    Attributes
    ----------
    device : str
        Its name: a network interface for tcp.
    provider : str
        ``"efa"``, ``"tcp"`` or ``"tcp;ofi_rxm"``.
    node : str
        Where endpoints of tcp are bound to.
    library : str
        The file that offers it.
    address, description : str
        For humans.
    bits_per_second : int
        0 if unknown.
    """

    device: str
    provider: str
    node: str
    library: str
    address: str
    description: str
    bits_per_second: int


def infos(*, provider: str | None = None, node: str = "127.0.0.1", library: str | None = None) -> list[Info]:
    """List the devices there are, best first.

    Parameters
    ----------
    provider : {"efa", "tcp", "tcp;ofi_rxm"}, optional
        Only this one's.
    node : str
        The address of this host that endpoints of tcp bind to. Bound to loopback, they reach loopback
        only.
    library : str, optional
        The libfabric to load. By default ``PPLX_ASYNC_LIBRARY``, else the first that is found. A process
        loads one, ever; an engine in it uses the same.

    Raises
    ------
    ProviderUnavailable
        There are none; the text says why, and what to install.
    ValueError
        There is no such provider.
    """
    file = libfabric_files(EngineOptions.from_env().library if library is None else library)[0]
    options = {"library": file.path, "node": node} | ({} if provider is None else {"provider": provider})
    return [
        Info(
            device=str(found["name"]),
            provider=str(found["provider"]),
            node=node,
            library=file.path,
            address=str(found["address"]),
            description=str(found["description"]),
            bits_per_second=int(found["bits_per_second"]),
        )
        for found in rt.discover("fabric", options)
    ]


def open(
    info: Info | None = None, *, provider: str | None = None, node: str = "127.0.0.1", library: str | None = None
) -> Domain:
    """Open a device. Takes milliseconds, on some NICs more: it is a call, and no coroutine.

    Parameters
    ----------
    info : Info, optional
        Which; by default the first of `infos`, which the other arguments are for.

    Raises
    ------
    ProviderUnavailable, FabricError
        It is not there, or cannot be opened; then nothing is.
    """
    if info is None:
        info = infos(provider=provider, node=node, library=library)[0]
    elif not isinstance(info, Info):
        raise TypeError(f"info must be one of fabric.infos(), not {type(info).__name__}")
    options = {"library": info.library, "node": info.node, "provider": info.provider}
    return Domain(info, native.Domain(info.device, options))


class Domain(Resource):
    """A device, opened: it owns the keys, and the addresses of peers. Made by `open`.

    Attributes
    ----------
    info : Info
        What was opened.
    max_message : int
        Bytes that one operation can move.
    tx_size, rx_size : int
        Writes, reads and sends, and receives, that one endpoint may have in flight.

    Threads
    -------
    Calls on a domain, and on what was made from it, may come from any thread; the await belongs to the
    loop that waits for the queue.
    """

    _core: native.Domain

    def __init__(self, info: Info, core: native.Domain) -> None:
        super().__init__(core)
        self.info = info
        self.max_message: int = core.max_message
        self.tx_size: int = core.tx_size
        self.rx_size: int = core.rx_size
        self._peers: dict[bytes, PeerAddress] = {}

    def completion_queue(self, *, poll_interval: float = POLL_INTERVAL) -> CompletionQueue:
        """Open a completion queue.

        Parameters
        ----------
        poll_interval : float
            Seconds between two looks where the provider has no wait fd (EFA), and between two attempts
            to post.
        """
        return CompletionQueue(native.Queue(self._core), self, poll_interval=poll_interval)

    def endpoint(self, queue: CompletionQueue) -> Endpoint:
        """Open an endpoint, which completes on ``queue``."""
        return Endpoint(self, queue)

    def register(self, buffer: Buffer, *, access: AccessName | None = None) -> Memory:
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
            if error.hint == RegistrationError.default_hint:  # which speaks of an engine
                error.hint = "Check `ulimit -l` (locked memory)."
            raise
        return Memory(self, region, access)

    def insert(self, address: bytes) -> PeerAddress:
        """Make an endpoint of a peer known, by its `Endpoint.address`; the same for the same address.

        Both sides must, before either posts: on EFA a write from an unknown peer fails. Nothing is sent.

        Raises
        ------
        ValueError
            That is no address of this fabric, or it leads out of loopback, where this domain is bound.
        """
        if not isinstance(address, (bytes, bytearray, memoryview)):
            raise TypeError(f"an address is bytes, not {type(address).__name__}")
        address = bytes(address)
        peer = self._peers.get(address)
        if peer is None or not self.is_open:
            peer = self._peers[address] = PeerAddress(self._core, address, _label(address))
        return peer

    def remove(self, peer: PeerAddress) -> None:
        """Forget a peer. Idempotent; what is in flight to it ends as it may."""
        if not isinstance(peer, PeerAddress):
            raise TypeError(f"a peer is what insert() gave, not {type(peer).__name__}")
        if self._peers.get(peer.address) is peer:
            del self._peers[peer.address]
            peer.forget()

    def __repr__(self) -> str:
        return f"<Domain {self.info.device} of {self.info.provider}>"


class Memory(Resource, LocalMemory):
    """Registered memory; made by `Domain.register`. Slicing is by bytes and free: ``memory[0:4096]``.

    Attributes
    ----------
    nbytes : int
        Its size.
    access : {"none", "read", "write", "both"}
        What peers may do.
    """

    _core: native.Region

    def __init__(self, domain: Domain, region: native.Region, access: AccessName) -> None:
        LocalMemory.__init__(self, region, 0, region.nbytes, self)
        Resource.__init__(self, region, domain)
        self.access: AccessName = access

    @property
    def remote(self) -> RemoteMemory:
        """What a peer needs to reach it: to be sent as `RemoteMemory.to_bytes`, by any means."""
        if self.access == "none":
            raise ValueError('the memory was registered with access="none": peers may not reach it')
        return self._core.remote()

    def close(self) -> None:
        """Take it from the device; operations of ours that use it end first. Idempotent.

        It is no fence: what peers have under way may still land. Close the endpoint first where that
        matters.
        """
        super().close()


class Endpoint(Resource):
    """Where operations are posted; made by `Domain.endpoint`. It talks to any number of peers.

    Each operation comes in two forms, like those of `asyncio.Queue`. ``write_nowait`` posts or raises
    `QueueFull`; ``await write`` waits for room, and, the first time, for the way to the peer. Both end
    when the operation is *posted*: its outcome is a `Completion` of the queue, with the ``context`` that
    was given here. Until then the memory must not change, and is held.

    Attributes
    ----------
    address : bytes
        What peers insert.
    """

    _core: native.Endpoint

    def __init__(self, domain: Domain, queue: CompletionQueue) -> None:
        source = getattr(queue, "_source", None)
        if not isinstance(source, native.Queue):
            raise TypeError("an endpoint completes on a completion queue of its domain")
        if source.domain is not domain._core:
            raise ValueError("the completion queue is of another domain")
        super().__init__(native.Endpoint(source), domain, queue)
        self._queue = queue
        self.address: bytes = self._core.address
        self._receives = SimpleNamespace(line=None)

    def write_nowait(
        self,
        local: LocalMemory,
        peer: PeerAddress,
        remote: RemoteMemory,
        *,
        imm: int | None = None,
        context: Any = None,
    ) -> None:
        """Post a write of ``local`` into ``remote``, or raise what keeps it from being posted.

        Parameters
        ----------
        local : Memory or slice of one
            Source. It may be empty: an immediate alone still needs a valid source and target.
        peer : PeerAddress
            Whose memory ``remote`` is.
        remote : RemoteMemory or slice of one
            Destination, of the same length.
        imm : int, optional
            32 bits that the peer's queue gives, once the bytes are in place there.
        context : object
            Comes back in the completion.

        Raises
        ------
        QueueFull
            There is no room, or no way to the peer yet. Nothing was posted; read the queue and try again.
        ValueError, TypeError
            Lengths differ, objects of different domains, more than `Domain.max_message`.
        ClosedResourceError
            The endpoint, its queue, its domain or the memory is closed.
        CompletionError
            It was refused at once.
        """
        if imm is not None and not 0 <= (imm := operator.index(imm)) < 2**32:
            raise ValueError(f"imm={imm}: expected 32 bits without a sign")
        self._post(_WRITE, local, _required(peer), _required(remote), imm, context)

    async def write(
        self,
        local: LocalMemory,
        peer: PeerAddress,
        remote: RemoteMemory,
        *,
        imm: int | None = None,
        context: Any = None,
    ) -> None:
        """Post a write as soon as there is room for it. Otherwise as `write_nowait`.

        Raises
        ------
        TimeoutError
            There was no room for `AGAIN_TIMEOUT` seconds: nobody reads the queue, or the peer doesn't
            answer.

        Cancelling
        ----------
        Nothing was posted.
        """
        await self._when_room(lambda: self.write_nowait(local, peer, remote, imm=imm, context=context), peer)

    def read_nowait(self, local: LocalMemory, peer: PeerAddress, remote: RemoteMemory, *, context: Any = None) -> None:
        """Post a read of ``remote`` into ``local``, which is writable. Otherwise as `write_nowait`."""
        self._post(_READ, local, _required(peer), _required(remote), None, context)

    async def read(self, local: LocalMemory, peer: PeerAddress, remote: RemoteMemory, *, context: Any = None) -> None:
        """Post a read as soon as there is room for it. As `write`."""
        await self._when_room(lambda: self.read_nowait(local, peer, remote, context=context), peer)

    def send_nowait(self, local: LocalMemory, peer: PeerAddress, *, context: Any = None) -> None:
        """Post a message, which goes to the oldest receive of the peer's endpoint. As `write_nowait`."""
        self._post(_SEND, local, _required(peer), None, None, context)

    async def send(self, local: LocalMemory, peer: PeerAddress, *, context: Any = None) -> None:
        """Post a message as soon as there is room for it. As `write`."""
        await self._when_room(lambda: self.send_nowait(local, peer, context=context), peer)

    def recv_nowait(self, local: LocalMemory, *, context: Any = None) -> None:
        """Post a writable buffer for the next message, from anyone. Otherwise as `write_nowait`."""
        self._post(_RECV, local, None, None, None, context)

    async def recv(self, local: LocalMemory, *, context: Any = None) -> None:
        """Post a buffer as soon as there is room for it. As `write`."""
        await self._when_room(lambda: self.recv_nowait(local, context=context), self._receives)

    def close(self) -> None:
        """Close it. Idempotent.

        Then no operation of it touches memory any more, and nothing lands through it. What had not
        completed does so now, as `WorkFlushed`: the queue still gives the completions.

        Raises
        ------
        FabricError
            The library does not close it; it is still open.
        """
        super().close()

    def _let_go(self) -> None:
        super()._let_go()
        self._queue._changed()  # whoever waits is to hear of what was flushed

    def _post(
        self,
        opcode: int,
        local: LocalMemory,
        peer: PeerAddress | None,
        remote: RemoteMemory | None,
        imm: int | None,
        context: Any,
    ) -> None:
        self._core.post(opcode, local, peer, remote, imm, context)
        self._queue._changed()

    async def _when_room(self, post: Callable[[], None], place: PeerAddress | SimpleNamespace) -> None:
        why = ": nobody reads the completion queue, or the peer does not answer"
        # Nobody waits behind those who want another peer.
        await self._queue._when_room(place, post, AGAIN_TIMEOUT, why)

    def __repr__(self) -> str:
        return f"<Endpoint {_label(self.address)}>"


def _required(value: Any) -> Any:
    if value is None:
        raise TypeError("the peer and its memory must not be None")
    return value


def _label(address: bytes) -> str:
    """Write an address for humans."""
    family = int.from_bytes(address[:2], "little")
    port = int.from_bytes(address[2:4], "big")
    if family == socket.AF_INET and len(address) == 16:
        return f"{socket.inet_ntop(socket.AF_INET, address[4:8])}:{port}"
    if family == socket.AF_INET6 and len(address) == 28:
        return f"[{socket.inet_ntop(socket.AF_INET6, address[8:24])}]:{port}"
    return address.hex()
