# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""TransferEngine: the NICs of one GPU or NUMA node, its memory, counters and peers.

The way of a write through the code: ``operations.py`` -> ``_core/engine.pyx`` (checks, fills a request) ->
``csrc/engine.c`` (ring) -> ``csrc/proxy.c`` and ``csrc/transfer.c`` (proxy thread: cuts, posts) ->
``csrc/provider_*.c`` (the NIC); and back: completion queue -> proxy -> done list ->
``_core/engine.pyx`` (event loop) -> whoever awaits.

How it comes by its peers is in ``_connector.py``, how its regions and counters end in ``_endings.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import warnings
from collections import deque
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pplx_async import _endings, _loop, control, listen, topology
from pplx_async._checks import check_name, check_timeout
from pplx_async._connector import Connector
from pplx_async._core.engine import Engine as CoreEngine
from pplx_async._core.memory import Registration
from pplx_async._core.transfer import Transfer
from pplx_async._frames import Throttle
from pplx_async._intake import take
from pplx_async._messages import MessageStream
from pplx_async.counters import ImmCounter
from pplx_async.errors import (
    BrokenResourceError,
    CleanupWarning,
    ClosedResourceError,
    LeakWarning,
    NativeCallError,
    UnreleasedMemory,
)
from pplx_async.gpu import StreamOperations
from pplx_async.memory import ACCESS, MemoryRegion, RemoteRegion, check_access, shared_array
from pplx_async.operations import Operations
from pplx_async.options import EngineOptions, join_address, split_address
from pplx_async.peer import Message, Peer
from pplx_async.stats import EngineStats
from pplx_async.wire import CounterBroken, Nic, clip, decode_region

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pplx_async._typing import AccessName, Buffer

__all__ = ["TransferEngine"]

_log = logging.getLogger("pplx_async.engine")
_T = TypeVar("_T")

_ENTER_IT = "Enter it with `async with` first."

# Engines whose memory a provider never let go of: kept, with all they hold, until the process ends.
_quarantined: list[CoreEngine] = []


class TransferEngine(Operations, StreamOperations):
    """Moves memory one-sided between this process and its peers; use it with ``async with``.

    Parameters
    ----------
    options : EngineOptions, optional
        How it is set up; by default `EngineOptions.from_env`.
    **overrides
        Fields of `EngineOptions`, instead of those of the environment.

    Attributes
    ----------
    options : EngineOptions
        As given.
    id : bytes
        16 random bytes that name it; descriptors carry them.
    address : str
        ``"host:port"`` for `connect`, once it is open.
    peers : tuple of Peer
        Everyone who is connected, whoever called.

    Raises
    ------
    ProviderUnavailable
        On entering: the fabric isn't there; the text says what is missing and how to get it.
    NativeCallError
        On entering: a NIC can't be opened, or the address not be listened on; too many open files, for example.
    ValueError
        It would listen beyond loopback without a secret.

    Threads
    -------
    Everything on the event loop that entered it: from another one, or from another thread, each
    call raises RuntimeError. Attributes may be read anywhere.
    """

    def __init__(self, options: EngineOptions | None = None, **overrides: Any) -> None:
        if options is not None and not isinstance(options, EngineOptions):
            raise TypeError(
                f"options must be an EngineOptions, not {type(options).__name__}: "
                'give single ones by name, as in TransferEngine(fabric="tcp")'
            )
        if options is not None and overrides:
            raise TypeError("give an EngineOptions or single options, not both: dataclasses.replace() makes one of two")
        self.options = options if options is not None else EngineOptions.from_env(**overrides)
        self.id = secrets.token_bytes(16)
        self.host = control.host_identity()
        self._choice: topology.Choice | None = None
        self._nics: tuple[Nic, ...] = ()
        self._peers: set[Peer] = set()
        self._servers: dict[Peer, asyncio.Task[None]] = {}
        self._messages: deque[tuple[Message, int]] = deque()
        self._complaints = Throttle(_log)
        self._news = asyncio.Event()  # an accepted peer or a message came, or the end
        self._tasks: set[asyncio.Task[Any]] = set()
        self._publications: dict[str, tuple[MemoryRegion | ImmCounter, bytes]] = {}
        self._counters: dict[int, ImmCounter] = {}
        self._next_region = 1
        self._serial = 0  # of counters
        self._closing = False
        self._closed: asyncio.Task[None] | None = None
        self._open = False

    # ---- life ----

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Open the NICs and listen for peers; ``async with`` does it."""
        if self._open or self._closing:
            raise RuntimeError("an engine is opened once")
        options = self.options
        host, port = split_address(options.listen)
        listen.check_bind(host, options.secret_bytes, options.ssl_server, options.allow_insecure)
        self._loop = asyncio.get_running_loop()
        self._choice = topology.choose(options)
        cores = len(os.sched_getaffinity(0))
        self._core = CoreEngine(
            self._loop,
            {
                "ring_entries": options.ring_entries,
                "spin_us": round(options.spin * 1e6) if cores > 1 else 0,  # on one, a peer could not answer meanwhile
                "poll_interval_us": max(1, round(options.poll_interval * 1e6)),
                "heartbeat_interval_ms": round(options.heartbeat_interval * 1e3),
                "heartbeat_timeout_ms": round(options.peer_timeout * 1e3),
                "again_timeout_ms": round(options.again_timeout * 1e3),
                "shard_nbytes": options.shard_nbytes,
                "message_nbytes": options.message_nbytes,
                "message_slots": options.message_slots,
                "rail_failover": options.rail_failover,
                "libcuda": options.cuda_library,
                "owner_drives": options.progress == "loop" or (options.progress == "auto" and cores < 4),
                "cpu": -1 if self._choice.cpu is None else self._choice.cpu,
            },
            [(part.provider, part.devices, part.options) for part in self._choice.parts],
            options.max_pending,
            options.drain_timeout,
            options.wakeup == "spin",
        )
        domains = self._core.caps()
        self._nics = tuple(Nic(domain["bits_per_second"], domain["subnets"]) for domain in domains)
        most = min(domain["max_inflight"] for domain in domains)
        if options.message_slots > most:
            self._core.close()
            raise ValueError(f"message_slots={options.message_slots}: {self._choice.fabric} takes at most {most}")
        self._core.on_message = self._on_message
        self._core.on_peer_lost = Peer._on_lost
        self._core.on_rail_lost = Peer._on_rail_lost
        self._core.on_missing = self._on_missing
        self._core.on_left_open = self._warn_left_open
        _loop.attach(self._loop, self._core)
        self._connector = Connector(self)
        self._open = True
        try:
            await self._connector.listen(host, port)
        except OSError as error:
            await self.close()
            why = error.strerror or str(error)
            raise NativeCallError(f"{options.listen}: {why}", operation="listen", errno=error.errno or 0) from error
        except BaseException:
            await self.close()
            raise

    def __getattr__(self, name: str) -> Any:
        # What open() makes is missing before it: say that, and not which attribute.
        if name in ("_core", "_loop", "_connector"):
            raise ClosedResourceError("the engine is not open yet", hint=_ENTER_IT)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def _identity(self) -> control.Identity:
        assert self._choice is not None
        return control.Identity(
            engine=self.id,
            networks=self._choice.networks,
            nics=self._nics,
            host=self.host,
            name=self.options.name,
        )

    @property
    def is_open(self) -> bool:
        """Whether operations may be submitted."""
        return self._open and not self._closing and self._core.running

    @property
    def address(self) -> str:
        """``"host:port"`` that peers connect to."""
        if not self.is_open:
            self._check_open()
        server = self._connector.server
        assert server is not None
        if self.options.advertise is None:
            return server.address
        if ":" in self.options.advertise.rpartition("]")[2]:
            return self.options.advertise
        return join_address(self.options.advertise.strip("[]"), server.port)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """Everyone who is connected."""
        return tuple(peer for peer in self._peers if peer.is_open)

    def _check_here(self) -> None:
        """Refuse a call from another event loop, thread or process than ours, while there is anything to guard."""
        self._core.check_owner()

    def _check_name(self, name: str) -> None:
        """Whether something may be published, or looked up, under a name, and here."""
        self._check_here()
        check_name(name)

    def _check_open(self) -> None:
        if not self._open and not self._closing:
            raise ClosedResourceError("the engine is not open yet", hint=_ENTER_IT)
        if self._open:
            self._check_here()
        if not self.is_open:
            raise ClosedResourceError("the engine is closed")

    def _spawn(self, coroutine: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        """Run something of ours in the background; what it fails with is logged."""
        try:
            self._check_here()
            if self._loop.is_closed():
                raise ClosedResourceError("the engine is closed")
        except BaseException:
            coroutine.close()  # or Python complains that nobody awaited it
            raise
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self._closing:
            _log.error("a background task of the engine failed", exc_info=task.exception())

    async def close(self) -> None:
        """Finish what is under way, say goodbye to every peer, close the NICs. Idempotent.

        What isn't finished within ``EngineOptions.drain_timeout`` ends with WorkFlushed.

        An engine whose event loop was closed before it can be closed from any other: its thread is
        stopped, and that is all; there is a CleanupWarning.

        Raises
        ------
        UnreleasedMemory
            A provider hasn't let go of memory; it stays registered and alive until the process ends.

        Cancelling
        ----------
        The close goes on in the background. Where the loop ends before it (Ctrl-C once more), the engine is stopped
        at once; its peers hear no goodbye.
        """
        if not self._open or (self._closed is None and not self._core.running):
            self._closing = True  # never opened, or the child of a fork: nothing here is ours to close
            return
        if self._core.running and self._loop.is_closed():
            self._closing = True
            self._stop()
            warnings.warn(
                f"the event loop of {self!r} was closed before it: its peers have heard no goodbye, and memory that "
                "was registered stays so until the process ends",
                CleanupWarning,
                stacklevel=2,
            )
            return
        if self._closed is None:
            self._check_here()
            self._closing = True
            self._closed = self._loop.create_task(self._close())
            self._closed.add_done_callback(self._on_close_ended)
        if not self._closed.done():
            self._check_here()
        await asyncio.shield(self._closed)

    async def _wait(self, task: asyncio.Task[_T]) -> _T:
        """Wait for something of ours in the background; being cancelled ends the wait only."""
        if not task.done():
            self._check_here()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if task.cancelled() and current is not None and not current.cancelling():
                raise ClosedResourceError("the engine was closed meanwhile") from None
            raise

    async def _close(self) -> None:
        timeout = self.options.drain_timeout
        await self._connector.close()
        deadline = self._loop.time() + 2 * timeout
        # Who is in the middle of connecting ends too, and then is closed like the others.
        while self._peers and self._loop.time() < deadline:
            for peer in self._peers:
                if peer._closing is None:
                    peer._closing = self._spawn(peer._close("the engine closes"))
            closing = [peer._closing for peer in self._peers if peer._closing is not None and not peer._closing.done()]
            if not closing:
                break  # one of them failed
            await asyncio.wait(closing, timeout=deadline - self._loop.time())
        if self._tasks:  # with the peers gone, fences and revokes have an end
            await asyncio.wait(self._tasks, timeout=timeout)
        for task in [*self._servers.values(), *self._tasks]:
            task.cancel()
        for counter in self._counters.values():
            counter.is_open = False
            counter.end_waits(ClosedResourceError("the engine was closed"))
        self._core.words_close()
        self._news.set()
        while self._messages:
            self._next_message()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for _ in range(2):  # what was being registered meanwhile is open now
                    for registration in self._core.open_registrations():
                        if registration.uses:
                            continue  # the peers are gone, and still a NIC holds it: it stays registered
                        _endings.deregister_soon(self, registration)
                    while self._core.inflight:  # a register() that was cancelled takes its memory back as it ends
                        await _loop.room(self._core, 0)
        if self._core.inflight or self._peers:
            # Freeing anything now could free what a NIC still writes to.
            self._core.stop()
            _loop.detach(self._loop, self._core)
            _quarantined.append(self._core)
            for peer in list(self._peers):
                peer._end_waits(ClosedResourceError("the engine was closed"))
            whom = f" for peer {', '.join(sorted(peer.label for peer in self._peers))}" if self._peers else ""
            raise UnreleasedMemory(
                f"closing the engine: its provider did not let go{whom} within {timeout} s; its memory stays allocated"
            )
        _loop.detach(self._loop, self._core)
        self._core.close()
        # The loop gets one turn, so that everyone who waited for us hears the end.
        await asyncio.sleep(0)

    async def _end_gates(self) -> None:
        """Let streams go when the last peer has said goodbye.

        Nobody else ends the gates of a counter that is bound to no peer, and as long as a stream waits there the driver
        closes no memory of peers.
        """
        if self._closing and all(peer._freeing for peer in self._peers):
            await self._core.count_arrived()
            for counter in self._counters.values():
                counter.end_gates(ClosedResourceError("the engine was closed"))

    def _on_close_ended(self, closing: asyncio.Task[None]) -> None:
        """Stop at once where the loop ends before our close does: asyncio.run() cancels all that is left on it."""
        if not closing.cancelled() or not self._core.running:
            return
        _log.info("%r was cancelled in its close: its peers have heard no goodbye", self)
        _loop.detach(self._loop, self._core)
        if self._connector.server is not None:
            self._connector.server.stop_listening()
        for peer in self._peers:
            peer._channel.close()
        self._stop()

    def _quarantine(self, transfers: Iterable[Transfer]) -> None:
        """Memory that was not let go in time. The core holds it; say so."""
        held = list(transfers)
        if held:
            _log.error(
                "%r, one of %d: its memory is quarantined, since the provider has not let go", held[0], len(held)
            )

    def _stop(self) -> None:
        """End the proxy thread where no coroutine of ours can run any more, and keep what a NIC may still know."""
        core = self._core
        core.stop()
        if self._connector.server is not None:
            self._connector.server._listener.close()
        for counter in self._counters.values():
            counter.is_open = False
        for peer in self._peers:
            peer._record.is_open = False
            with contextlib.suppress(RuntimeError):  # who waits there waits on the loop that is closed
                peer._ended.set()
        if core.inflight or self._peers or core.open_registrations():
            _quarantined.append(core)
        else:
            core.close()

    def __del__(self) -> None:
        if getattr(self, "_open", False) and self._core.running:
            self._warn_left_open()
            self._stop()

    def _warn_left_open(self) -> None:
        warnings.warn(f"{self!r} was never closed", LeakWarning, stacklevel=3, source=self)

    def __repr__(self) -> str:
        state = "closed" if self._closing else "open" if self._open else "not open"
        fabric = self._choice.fabric if self._choice is not None else self.options.fabric
        name = f" {self.options.name!r}" if self.options.name else ""
        return f"<TransferEngine{name} {self.id[:3].hex()} on {fabric}, {state}>"

    # ---- memory ----

    def empty(self, shape: int | tuple[int, ...], dtype: Any = "u1") -> NDArray[Any]:
        """Make a NumPy array in memory that peers of this host can write to by plain copies.

        Any buffer can be registered; shared memory (ipc) reaches the others by one copy more
        (`EngineOptions.ipc_vm_writev`).

        Parameters
        ----------
        shape : int or tuple of int
            As for `numpy.empty`; at least one element.
        dtype : data type
            Of an element, by default a byte.

        Returns
        -------
        numpy.ndarray
            Zeros. Freed as any array is, once it is no longer registered.

        Raises
        ------
        NativeCallError
            No memory, or too many open files: it takes a descriptor.

        Source
        ------
        memfd_create(2).
        """
        self._check_open()
        return shared_array(shape, dtype)

    async def register(self, buffer: Buffer, *, access: AccessName | None = None) -> MemoryRegion:
        """Register memory with every NIC of the engine.

        Parameters
        ----------
        buffer : object with the buffer protocol, ``__cuda_array_interface__`` or DLPack
            C-contiguous memory of at least 1 B: numpy array, bytearray, mmap, array, bytes; or on a GPU: CuPy
            array, torch tensor, JAX array. It is held, and must not be resized, until the region is closed.
            Nothing waits for the streams that use it.
        access : {"none", "read", "write", "both"}, optional
            What peers that hold the descriptor may do. By default ``"both"``, or ``"read"`` if the
            buffer is read-only. ``"none"``: source and target of our own operations only.

        Returns
        -------
        MemoryRegion
            Keep it open while transfers, ours or peers', use it.

        Raises
        ------
        RegistrationError
            The provider refuses: a limit, or memory that this fabric cannot reach.
        ValueError, TypeError, BufferError
            No buffer, not contiguous, empty, or read-only where peers may write.

        Cancelling
        ----------
        The memory is taken from the NICs again.

        Source
        ------
        fi_mr(3), fi_mr_regattr; ibv_reg_mr(3); CUDA Driver API, cuIpcGetMemHandle.
        """
        self._check_open()
        memory = take(buffer)
        access = check_access(memory, access)
        registration = Registration(self._core, memory, ACCESS[access])
        opening = self._core.register(registration)
        try:
            await opening
        except asyncio.CancelledError:
            opening.add_release_callback(lambda _: self._undo_register(registration))
            raise
        self._next_region += 1
        return MemoryRegion(self, registration, access, self._next_region - 1)

    def _undo_register(self, registration: Registration) -> None:
        """Take back what was registered for nobody."""
        if registration.is_open and self._core.running:
            _endings.deregister_soon(self, registration)

    def publish(self, name: str, what: MemoryRegion | ImmCounter) -> None:
        """Let peers find a region or a counter by name, for as long as it is open.

        They ask with `Peer.lookup` and `Peer.lookup_counter`. It is held until then, or until it
        is unpublished.

        Raises
        ------
        ValueError
            It belongs to another engine, or is a region that peers may not reach; or the name has
            other than 1 to 128 characters.
        TypeError
            It is neither region nor counter: a slice, for example.
        ClosedResourceError
            It is closed.
        """
        self._check_name(name)
        if not isinstance(what, (MemoryRegion, ImmCounter)):
            raise TypeError(f"publish a MemoryRegion or an ImmCounter, not {type(what).__name__}")
        if what._engine is not self:
            raise ValueError("it belongs to another engine")
        self._check_open()
        if not what.is_open:
            raise ClosedResourceError("it is closed")
        self._publications[name] = (what, what.to_bytes())

    def unpublish(self, name: str) -> None:
        """Let nobody find it any more. Who has the descriptor keeps it: see `MemoryRegion.revoke`."""
        self._check_name(name)
        self._publications.pop(name, None)

    def _published(self, name: str) -> bytes | None:
        what, descriptor = self._publications.get(name, (None, None))
        if what is not None and not what.is_open:
            del self._publications[name]
            return None
        return descriptor

    # ---- counters ----

    def counter(self, *, peer: Peer | None = None) -> ImmCounter:
        """Make a counter.

        Parameters
        ----------
        peer : Peer, optional
            Whose writes it counts: other peers' do not count here, where the fabric tells its peers
            apart (EFA doesn't). If that peer is lost, waits that are still short end with PeerLost;
            without it they would wait for whoever else may count.

        Raises
        ------
        MemoryError
            All 2**20 counters are in use.
        """
        self._check_open()
        if peer is not None:
            self._check_peer(peer, "counter")
        counter = ImmCounter(self, peer)
        self._open_counter(counter)
        if peer is not None:
            peer._bound.add(counter)
        return counter

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _open_counter(self, counter: ImmCounter) -> None:
        self._core.counter_open(counter)
        self._counters[counter.id] = counter

    def _open_counters(self) -> tuple[list[tuple[int, int]], int]:
        """Return the serial numbers of those that are open, as runs (first, last), and the newest of all."""
        runs: list[tuple[int, int]] = []
        for serial in sorted(counter._serial for counter in self._counters.values() if counter.is_open):
            first = runs.pop()[0] if runs and runs[-1][1] == serial - 1 else serial
            runs.append((first, serial))
        return runs, self._serial

    def _break_counter(self, peer: Peer, message: CounterBroken) -> None:
        counter = self._counters.get(message.counter)
        # Another peer's counter is none of its business.
        if counter is not None and (counter.peer is None or counter.peer is peer):
            missing = message.missing_eighths / 8
            counter.break_(
                BrokenResourceError(
                    f"counter {counter.id} misses {missing:g} write(s) of peer {peer.label}: {clip(message.reason)}"
                )
            )

    def _on_missing(self, peer: Peer, counter: int, eighths: int, reason: str) -> None:
        peer._break_counter(counter)
        peer._post(CounterBroken(counter, eighths, clip(reason)))

    # ---- peers ----

    async def connect(self, address: str, *, timeout: float | None = None) -> Peer:
        """Connect to the engine that listens at an address.

        Parameters
        ----------
        address : str
            ``"host:port"``, its `TransferEngine.address`.
        timeout : float, optional
            Seconds for all of it; by default ``EngineOptions.connect_timeout``.

        Returns
        -------
        Peer
            Connected on every link: the first write does not have to wait for anything.

        Raises
        ------
        BrokenResourceError
            Nobody listens there, the handshake was refused, or the NICs don't reach each other.
        ValueError, TypeError
            It is no address, or no number of seconds.
        TimeoutError
            It took too long; the text says what was being waited for.

        Cancelling
        ----------
        Nothing is left of it.
        """
        self._check_open()
        if not isinstance(address, str):
            raise TypeError(f'address must be a str, "host:port", not {type(address).__name__}')
        seconds = self.options.connect_timeout if timeout is None else check_timeout(timeout)
        peer = await self._connector.call(address, seconds)
        self._check_open()  # closed meanwhile: that took the peer with it
        return peer

    async def accept(self) -> Peer:
        """Wait for the next peer that connects to us.

        Peers need not be accepted to be served; this is how a program learns of them.

        Raises
        ------
        ClosedResourceError
            The engine was closed.

        Cancelling
        ----------
        No peer is lost from the queue.
        """
        self._check_here()
        while not self._connector.accepted:
            await self._wait_for_news()
        return self._connector.accepted.popleft()

    def _complain(self, text: str, *args: object) -> None:
        """Log what peers do wrong, a few lines a second."""
        self._complaints.warning(text, *args)

    async def _wait_for_news(self) -> None:
        self._check_open()
        self._news.clear()
        await self._news.wait()

    def _peer_gone(self, peer: Peer) -> None:
        """Forget a peer whose endpoints are closed; what it left to read stays, but not its buffers."""
        for place, (message, token) in enumerate(self._messages):
            if message.peer is peer and token:
                self._core.message_release(token)
                self._messages[place] = (message, 0)
        self._peers.discard(peer)
        self._servers.pop(peer, None)
        if peer in self._connector.accepted:
            self._connector.accepted.remove(peer)

    def _check_peer(self, peer: Peer, operation: str) -> None:
        if not isinstance(peer, Peer):
            raise TypeError(f"a peer is what connect() and accept() return, not {type(peer).__name__}")
        if peer._engine is not self:
            raise ValueError(f"peer {peer.label} belongs to another engine")
        peer._check_open(operation)

    def remote_region(self, descriptor: bytes | bytearray | memoryview) -> RemoteRegion:
        """Make a remote region of a descriptor, of whichever connected peer it is.

        Raises
        ------
        ValueError
            The bytes are no descriptor, or no connected peer owns them.
        """
        self._check_open()
        owner = decode_region(descriptor).engine
        owners = [peer for peer in self.peers if peer.id == owner]
        if len(owners) > 1:
            raise ValueError(f"{len(owners)} peers are engine {owner[:3].hex()}…: call region() of the one you mean")
        for peer in owners:
            return peer.region(descriptor)
        raise ValueError(f"the region belongs to engine {owner[:3].hex()}…, which is not connected: connect first")

    # ---- messages ----

    def _on_message(self, peer: Peer, data: bytes, token: int) -> None:
        # The other side may be connected before we know that we are: nobody could answer it yet.
        queue = self._messages if peer._met.is_set() else peer._early
        queue.append((Message(peer, data), token))
        self._news.set()

    def _next_message(self) -> Message:
        # Its buffer goes back only now: a program that does not read stops its senders, not us.
        message, token = self._messages.popleft()
        if token:
            self._core.message_release(token)
        return message

    def messages(self) -> MessageStream:
        """Iterate over the messages that peers send (`Peer.send`), until the engine is closed.

        Several iterators share one stream: each message goes to one of them. One may be given up
        and asked again, as by a time-out: that loses nothing. Who does not read makes its peers
        wait: each may have ``EngineOptions.message_slots`` messages unread here.
        """
        return MessageStream(self)

    # ---- telling ----

    def stats(self) -> EngineStats:
        """Return what has been counted so far."""
        self._check_open()
        raw = self._core.stats()
        return EngineStats(
            **raw,
            inflight=self._core.inflight,
            regions=len(self._core.open_registrations()),
            counters=len(self._counters),
            registered_nbytes=sum(registration.nbytes for registration in self._core.open_registrations()),
            peers=tuple(peer.stats() for peer in self._peers),
        )

    def explain(self) -> topology.Explanation:
        """Say what the engine chose, and why: fabric, library, NICs, limits, and each peer's route."""
        self._check_open()
        assert self._choice is not None
        domains = self._core.caps()
        notes = []
        if not all(domain["wait_fd"] for domain in domains):
            interval = f"{self.options.poll_interval * 1e3:g} ms"
            notes.append(f"a NIC cannot wake the proxy thread: it is polled every {interval}")
        if words := self._core.stats()["words"]:
            notes.append(f"{words} words that streams or kernels write are armed: the proxy thread does not sleep")
        if self.options.listen.startswith(("127.", "localhost", "[::1]")):
            notes.append("listens on loopback only: EngineOptions.listen (and a secret) let others reach it")
        peers = [
            {
                "peer": peer.label,
                "state": "open" if peer.is_open else "closing",
                "links": len(peer.stats().links),
                "fabric": peer.fabric,
                "route": peer._describe_route(),
            }
            for peer in self._peers
        ]
        return topology.Explanation(self._choice.fabric, self._choice.why, domains, peers, tuple(notes))
