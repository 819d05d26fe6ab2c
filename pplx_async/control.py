# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The control channel: how two engines meet, agree and stay in touch, over asyncio TCP.

A frame is a length (u32, big endian) and that many bytes: one message of :mod:`.wire`. A
connection begins with the handshake:

1. connecting -> listening: `Hello`. Its version, provider and ``auth`` must be the listener's, else
   the answer is `Refused`, with the reason, and the connection ends.
2. listening -> connecting: `Hello`.
3. With a secret: connecting -> listening: `Proof`, then listening -> connecting: `Proof`. Each is
   HMAC-SHA256, keyed with the secret, of the prover's role and both Hellos as they were sent.

Why this keeps strangers out: both Hellos hold a fresh nonce, so a proof is good for one connection;
the roles differ, so neither proof can be sent back as the other; and the listener, which anyone can
reach, shows its own only to who has shown theirs. What it does not do: hide or protect the messages
that follow. Only TLS does, and against who can alter packets, TLS is needed.

What strangers can cost, before they have proved themselves: `max_pending` connections at once, a
deadline for the whole handshake, TLS included, under 100 KiB each, and a few lines of log a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from ssl import CERT_REQUIRED, SSLContext
from typing import Any, Final, Self, TypeVar, cast

from pplx_async import wire
from pplx_async.errors import BrokenResourceError, ClosedResourceError
from pplx_async.options import join_address, split_address

__all__ = ["ControlChannel", "ControlServer", "Identity", "check_bind", "connect_channel", "host_identity"]

_log = logging.getLogger("pplx_async.control")

HANDSHAKE_NBYTES: Final = 4 << 10  # largest frame before the handshake is over
MAX_OUTGOING: Final = 4 << 20  # bytes queued for a peer that doesn't take them
CLOSE_TIMEOUT: Final = 1.0  # for what is queued, and TLS's goodbye, to go out
# A full backlog leaves friends waiting for the kernel's retransmissions, for seconds.
_BACKLOG: Final = 1024
_ACCEPTS: Final = 16  # in one turn of the loop: a flood must not hold it
_ACCEPT_AGAIN: Final = 0.1  # seconds after an accept that failed
_HEAD: Final = 4  # bytes
_CHUNK: Final = 16 << 10
_HIGH_WATER: Final = 64 << 10

_M = TypeVar("_M", bound=wire.Message)


@functools.cache
def host_identity() -> str:
    """Name this host, in 32 hex digits: the same in all its processes until it boots again.

    Hashed, since machine-id(5) is not to be shown to strangers.
    """
    parts = [b"pplx_async host"]
    for file in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with contextlib.suppress(OSError):
            parts.append(Path(file).read_bytes().strip())
    if len(parts) == 1:
        parts.append(socket.gethostname().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What an engine says of itself in every `Hello`; fields as there."""

    engine: bytes
    provider: str
    domains: int = 1
    host: str = dataclasses.field(default_factory=host_identity)
    name: str = ""

    def hello(self, auth: bool) -> wire.Hello:
        """Make the Hello of one connection, with a fresh nonce."""
        return wire.Hello(
            magic="pplx_async",
            version=wire.PROTOCOL_VERSION,
            engine=self.engine,
            nonce=secrets.token_bytes(32),
            provider=self.provider,
            domains=self.domains,
            host=self.host,
            name=self.name,
            auth=auth,
        )


# ---- frames -------------------------------------------------------------------------------------


class _Frames(asyncio.BufferedProtocol):
    """Frames over one transport. Buffers at most one frame, or `_HIGH_WATER`, and one chunk more.

    A BufferedProtocol, since with the other kind a stranger's bytes arrive 256 KiB at a time.
    """

    def __init__(self) -> None:
        self.limit = HANDSHAKE_NBYTES
        self.closing = False  # by us
        self.reason: str | None = None  # why nothing more will come; the first reason stays
        self.cause: BaseException | None = None
        self.lost = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._chunk = memoryview(bytearray(_CHUNK))
        self._buffer = bytearray()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=_HIGH_WATER)
        if self.closing:
            self.transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        if self.closing:
            return
        self._buffer += self._chunk[:nbytes]
        self._judge()
        if self.reason is None and len(self._buffer) > _HIGH_WATER and self._front() and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._end("the peer closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection broke: {_say(exc)}" if exc else "the connection was closed", exc)
        if self._linger is not None:
            self._linger.cancel()
        self.lost.set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def _end(self, reason: str, cause: BaseException | None = None) -> None:
        if self.reason is None:
            self.reason, self.cause = reason, cause
        self.writable.set()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, reason: str, cause: BaseException | None = None) -> None:
        """Break the connection: nothing more is taken from the peer or sent to it."""
        self._end(reason, cause)
        self._buffer.clear()
        self.closing = True
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Send what is queued, within `CLOSE_TIMEOUT`, and close."""
        self._end("closed on this side")
        self._buffer.clear()
        if self.closing:
            return
        self.closing = True
        if self.transport is not None and not self.lost.is_set():
            self._linger = self._loop.call_later(CLOSE_TIMEOUT, self.transport.abort)
            self.transport.close()

    def write(self, message: wire.Message) -> None:
        """Queue a message, unless the connection has ended."""
        payload = wire.encode_message(message)
        if self.reason is not None or self.transport is None:
            return
        queued = self.transport.get_write_buffer_size()
        if queued + len(payload) > MAX_OUTGOING:
            self.fail(f"the peer leaves {queued} B unread")
        else:
            self.transport.write(len(payload).to_bytes(_HEAD, "big") + payload)

    async def read(self) -> bytes | None:
        """Return the next frame, or None after the last; only one task may read."""
        if self._waiter is not None:
            raise RuntimeError("two tasks receive from one control channel; let one of them do it")
        while (frame := self._take()) is None and self.reason is None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return frame

    def _front(self) -> int | None:
        """End of the first frame in the buffer, if it is here whole."""
        end = _HEAD + int.from_bytes(self._buffer[:_HEAD], "big")
        return end if len(self._buffer) >= max(end, _HEAD) else None

    def _judge(self) -> None:
        """Break the connection if the first frame is above the limit, long before it is here whole."""
        nbytes = int.from_bytes(self._buffer[:_HEAD], "big")
        if len(self._buffer) >= _HEAD and nbytes > self.limit:
            tls = self._buffer[:2] == b"\x16\x03" and self.limit == HANDSHAKE_NBYTES
            self.fail("it speaks TLS, this side does not" if tls else f"a frame of {nbytes} B, over {self.limit} B")

    def _take(self) -> bytes | None:
        # Judged here and not when the frame before it left: the limit rises in between.
        self._judge()
        end = self._front()
        if end is None:
            return None
        frame = bytes(self._buffer[_HEAD:end])
        del self._buffer[:end]
        if self._paused and self.reason is None and (len(self._buffer) <= _HIGH_WATER or self._front() is None):
            self._paused = False
            cast(asyncio.Transport, self.transport).resume_reading()
        return frame


# ---- handshake ----------------------------------------------------------------------------------


class _WeRefuse(Exception):
    """Our side refuses, and tells the peer why."""


class _PeerRefused(Exception):
    """The peer refused; its words."""


class _PeerGone(Exception):
    """The connection ended; how."""


async def _handshake(frames: _Frames, ours: wire.Hello, secret: bytes | None, *, connecting: bool) -> wire.Hello:
    """Go through the steps at the head of this file, and return the peer's Hello."""
    sent = wire.encode_message(ours)
    if connecting:
        frames.write(ours)
    got = await _next(frames)
    version = wire.hello_version(got)
    if version is not None and version != ours.version:
        side = "listening" if connecting else "connecting"
        raise _WeRefuse(
            f"protocol version {version} on the {side} side, {ours.version} on the other: "
            "install the same pplx_async on both"
        )
    theirs = _decode(got, wire.Hello)
    problem = _mismatch(ours, theirs) if connecting else _mismatch(theirs, ours)
    if problem:
        raise _WeRefuse(problem)
    if not connecting:
        frames.write(ours)
    if secret is not None:
        hellos = (sent, got) if connecting else (got, sent)
        mine, expected = _mac(secret, b"connecting", *hellos), _mac(secret, b"listening", *hellos)
        if connecting:
            frames.write(wire.Proof(mine))
        else:
            mine, expected = expected, mine
        proof = _decode(await _next(frames), wire.Proof)
        if not hmac.compare_digest(proof.mac, expected):
            raise _WeRefuse("the secrets differ: give both engines the same EngineOptions.secret")
        if not connecting:
            frames.write(wire.Proof(mine))
    # No await since the last frame: the next one, perhaps here already, is judged by this limit.
    frames.limit = wire.MAX_MESSAGE_NBYTES
    return theirs


async def _next(frames: _Frames) -> bytes:
    frame = await frames.read()
    if frame is None:
        raise _PeerGone(frames.reason) from frames.cause
    return frame


def _decode(frame: bytes, expected: type[_M]) -> _M:
    try:
        message = wire.decode_message(frame)
    except ValueError as error:
        raise _WeRefuse(f"not a pplx_async engine: {error}") from error
    if isinstance(message, wire.Refused):
        raise _PeerRefused(wire.clip(message.reason))
    if not isinstance(message, expected):
        raise _WeRefuse(f"{type(message).__name__} where {expected.__name__} is due")
    return message


def _mismatch(connecting: wire.Hello, listening: wire.Hello) -> str | None:
    if connecting.provider != listening.provider:
        return (
            f"fabric {connecting.provider!r} on the connecting side, {listening.provider!r} on the listening side: "
            "set EngineOptions.fabric (PPLX_ASYNC_FABRIC) to the same on both"
        )
    if connecting.auth != listening.auth:
        has, lacks = ("connecting", "listening") if connecting.auth else ("listening", "connecting")
        return f"the {has} side has a secret, the {lacks} side has none: set EngineOptions.secret on both or on neither"
    return None


def _mac(secret: bytes, role: bytes, connecting: bytes, listening: bytes) -> bytes:
    """Lengths go in as well: no other pair of Hellos makes the same input."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (b"pplx_async control", role, connecting, listening):
        mac.update(len(part).to_bytes(_HEAD, "big") + part)
    return mac.digest()


async def _refuse(frames: _Frames, reason: str) -> None:
    frames.write(wire.Refused(wire.clip(reason)))
    frames.close()
    await frames.lost.wait()


# ---- channel ------------------------------------------------------------------------------------


class ControlChannel:
    """Messages to and from one peer, after the handshake; made by `connect_channel` or `ControlServer`.

    Attributes
    ----------
    remote_hello : wire.Hello
        What the peer says of itself. Its secret is proved, its words are not: show their ``repr``.
    peername : str
        The peer's ``"host:port"``.
    local_host : str
        Our address that the peer reaches, as a number: where endpoints are to be bound.

    Threads
    -------
    Loop thread only. Any number of tasks may send, one may receive.
    """

    def __init__(self, frames: _Frames, remote_hello: wire.Hello) -> None:
        transport = cast(asyncio.Transport, frames.transport)
        self._frames = frames
        self._closed = False
        self.remote_hello = remote_hello
        self.peername = _name(transport.get_extra_info("peername"))
        self.local_host = str((transport.get_extra_info("sockname") or ("",))[0])

    @property
    def reason(self) -> str | None:
        """Why the channel has ended; None while it has not."""
        return self._frames.reason

    def post(self, message: wire.Message) -> None:
        """Queue a message and return at once. A peer that leaves too much unread breaks the channel.

        Raises
        ------
        ClosedResourceError, BrokenResourceError
            The channel was closed here, or has ended by other means; the message is not sent.
        ValueError
            A field of the message is out of range; the channel lives on.
        """
        if self._frames.reason is None:
            self._frames.write(message)
        if self._frames.reason is not None:
            raise self._error()

    async def send(self, message: wire.Message) -> None:
        """Wait until there is room, then queue a message; errors as for `post`.

        Cancelling
        ----------
        The message is not sent.
        """
        while not self._frames.writable.is_set() and self._frames.reason is None:
            await self._frames.writable.wait()
        self.post(message)

    async def receive(self) -> wire.Message:
        """Return the next message; what came before the end is returned before the end is raised.

        Raises
        ------
        ClosedResourceError, BrokenResourceError
            The channel was closed here, or has ended by other means: `reason` says how.

        Cancelling
        ----------
        No message is lost.
        """
        frame = await self._frames.read()
        if frame is None:
            raise self._error()
        try:
            message = wire.decode_message(frame)
            if isinstance(message, (wire.Hello, wire.Proof)):
                raise ValueError(f"{type(message).__name__} after the handshake")
        except ValueError as error:
            self._frames.fail(f"the peer broke the protocol: {error}", error)
            _log.warning("closed the control channel to %s: %s", self.peername, wire.clip(str(error)))
            raise self._error() from error
        return message

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> wire.Message:
        """Receive until the channel ends, by whatever means; `reason` then says by which."""
        try:
            return await self.receive()
        except (ClosedResourceError, BrokenResourceError):
            raise StopAsyncIteration from None

    def close(self) -> None:
        """Close at once for the caller; what is queued has `CLOSE_TIMEOUT` to go out. Idempotent."""
        self._closed = True
        self._frames.close()

    async def aclose(self) -> None:
        """Close, and wait until the socket is; that takes at most `CLOSE_TIMEOUT`."""
        self.close()
        await self._frames.lost.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _error(self) -> ClosedResourceError | BrokenResourceError:
        if self._closed:
            return ClosedResourceError(f"the control channel to {self.peername} is closed")
        error = BrokenResourceError(
            f"the control channel to {self.peername} ended: {self.reason}", hint="Connect to the peer again."
        )
        error.__cause__ = self._frames.cause
        return error


async def connect_channel(
    address: str,
    identity: Identity,
    *,
    secret: bytes | None = None,
    ssl: SSLContext | None = None,
    timeout: float = 10.0,
) -> ControlChannel:
    """Connect to the engine that listens at an address.

    Parameters
    ----------
    address : str
        ``"host:port"`` or ``"[ipv6]:port"``.
    identity : Identity
        Of our engine.
    secret : bytes, optional
        Shared with that engine; both have one, or neither has.
    ssl : ssl.SSLContext, optional
        A client's context; the certificate is checked against the host, as the context says.
    timeout : float
        Seconds for all of it.

    Raises
    ------
    BrokenResourceError
        Nobody listens there, or the handshake failed; ``__cause__`` is the OSError, if one was.
    TimeoutError
        There was no end to it in time.
    ValueError
        `address` or a field of `identity` is malformed.

    Cancelling
    ----------
    The connection is dropped.
    """
    host, port = split_address(address)
    hello = identity.hello(secret is not None)
    wire.encode_message(hello)
    frames = _Frames()
    tls: dict[str, Any] = {} if ssl is None else {"ssl": ssl, "server_hostname": host, "ssl_handshake_timeout": timeout}
    try:
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().create_connection(lambda: frames, host, port, **tls)
            theirs = await _handshake(frames, hello, secret, connecting=True)
        return ControlChannel(frames, theirs)
    except TimeoutError as error:
        frames.fail("timed out")
        raise TimeoutError(
            f"connect to {address}: no answer in {timeout} s. Is a pplx_async engine listening there, "
            "does a firewall drop packets, do both sides use TLS or neither?"
        ) from error
    except OSError as error:
        frames.fail("cannot connect")
        hint = "Check that the engine runs and that address and port are the ones it printed."
        if ssl is not None:
            hint += " The certificate must fit the host, and both sides use TLS or neither."
        raise BrokenResourceError(f"connect to {address} failed: {_say(error)}", hint=hint) from error
    except _WeRefuse as refusal:
        await _refuse(frames, str(refusal))
        raise BrokenResourceError(f"connect to {address} failed: {refusal}", hint="") from refusal.__cause__
    except _PeerRefused as refused:
        frames.fail("refused")
        raise BrokenResourceError(f"connect to {address} failed: it refused: {refused}", hint="") from None
    except _PeerGone as gone:
        frames.fail("handshake failed")
        hint = "Is it a pplx_async engine, do both sides use TLS or neither, is it flooded with connections?"
        raise BrokenResourceError(
            f"connect to {address} failed: {gone}, during the handshake", hint=hint
        ) from gone.__cause__
    except BaseException:
        frames.fail("cancelled")
        raise


# ---- server -------------------------------------------------------------------------------------


class _Throttle:
    """Logs a few lines a second, and how many it left out: strangers must not fill the disk."""

    LINES: Final = 5

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0

    def warning(self, text: str, *args: object) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._lines > self.LINES:
                _log.warning("left out %d more lines like the last ones", self._lines - self.LINES)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= self.LINES:
            _log.warning(text, *args)


class ControlServer:
    """Listens for peers; made by `start`.

    Attributes
    ----------
    host, port : str, int
        Where it listens, as numbers.
    address : str
        Both, as `connect_channel` takes them.

    Threads
    -------
    Loop thread only.
    """

    def __init__(
        self,
        listener: socket.socket,
        identity: Identity,
        on_channel: Callable[[ControlChannel], Awaitable[None]],
        *,
        secret: bytes | None,
        tls: dict[str, Any],
        handshake_timeout: float,
        max_pending: int,
    ) -> None:
        self.host, self.port = listener.getsockname()[:2]
        self.address = join_address(self.host, self.port)
        self._listener = listener
        self._identity = identity
        self._on_channel = on_channel
        self._secret = secret
        self._tls = tls
        self._handshake_timeout = handshake_timeout
        self._max_pending = max_pending
        self._pending = 0
        self._flood = _Throttle()
        self._failures = _Throttle()
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._retry: asyncio.TimerHandle | None = None
        self._loop.add_reader(listener, self._accept)

    @classmethod
    async def start(
        cls,
        host: str,
        port: int,
        identity: Identity,
        on_channel: Callable[[ControlChannel], Awaitable[None]],
        *,
        secret: bytes | None = None,
        ssl: SSLContext | None = None,
        allow_insecure: bool = False,
        handshake_timeout: float = 10.0,
        max_pending: int = 64,
    ) -> Self:
        """Listen, and give the channel of each peer to `on_channel`.

        Parameters
        ----------
        host, port : str, int
            Where to listen, the host's first address; port 0 takes a free one.
        identity : Identity
            Of our engine.
        on_channel : coroutine function
            Called in a task of its own, once the peer has proved itself. The channel is its to
            keep and to close; if it raises, that is logged and the channel closed.
        secret : bytes, optional
            Shared with the peers; each has it, or none has one.
        ssl : ssl.SSLContext, optional
            A server's context.
        allow_insecure : bool
            As for `check_bind`, which is asked about the address that `host` turns out to be.
        handshake_timeout : float
            Seconds for a peer's handshake, TLS included.
        max_pending : int
            Connections in the handshake at once; one more is closed at once.

        Raises
        ------
        ValueError
            A host beyond loopback without protection, an empty secret, or a malformed `identity`.
        OSError
            The host is unknown, the port is taken.
        """
        loop = asyncio.get_running_loop()
        wire.encode_message(identity.hello(secret is not None))
        if secret is not None and not secret:
            raise ValueError("the secret is empty: give None, or at least a few random bytes")
        found = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        _check_bound([str(address[0])], host, secret, ssl, allow_insecure)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
        tls: dict[str, Any] = {} if ssl is None else {"ssl": ssl, "ssl_handshake_timeout": handshake_timeout}
        return cls(
            listener,
            identity,
            on_channel,
            secret=secret,
            tls=tls,
            handshake_timeout=handshake_timeout,
            max_pending=max_pending,
        )

    async def aclose(self) -> None:
        """Stop listening, drop handshakes, cancel `on_channel` tasks that still run. Idempotent.

        Channels that an `on_channel` has kept after its return stay open.
        """
        if self._retry is not None:
            self._retry.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()
        # Tasks begin in the order they were made: after this turn each serving task has begun, and
        # owns its socket. One that is cancelled before it begins would leave it open.
        await asyncio.sleep(0)
        serving = self._serving - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _accept(self) -> None:
        # A callback, not a task in sock_accept(): cancelling that may lose a socket just accepted.
        for _ in range(_ACCEPTS):
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors or memory, as a rule. Who waits in the backlog is not lost.
                self._flood.warning("cannot accept a connection on %s: %s", self.address, error)
                self._loop.remove_reader(self._listener)
                self._retry = self._loop.call_later(_ACCEPT_AGAIN, self._loop.add_reader, self._listener, self._accept)
                return
            peer = _name(address)
            if self._pending >= self._max_pending:
                connection.close()
                self._flood.warning("closed a connection from %s: %d others are in the handshake", peer, self._pending)
                continue
            connection.setblocking(False)
            self._pending += 1
            task = self._loop.create_task(self._serve(connection, peer), name=f"pplx_async control {peer}")
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        try:
            channel = await self._shake(connection, peer)
        finally:
            self._pending -= 1
        if channel is None:
            return
        try:
            await self._on_channel(channel)
        except asyncio.CancelledError:
            channel.close()
            raise
        except Exception:
            _log.exception("closed the control channel to %s: its handler failed", peer)
            channel.close()

    async def _shake(self, connection: socket.socket, peer: str) -> ControlChannel | None:
        frames = _Frames()
        hello = self._identity.hello(self._secret is not None)
        try:
            async with asyncio.timeout(self._handshake_timeout):
                await self._loop.connect_accepted_socket(lambda: frames, connection, **self._tls)
                theirs = await _handshake(frames, hello, self._secret, connecting=False)
            return ControlChannel(frames, theirs)
        except TimeoutError:
            frames.fail("timed out")
            why = f"no complete handshake in {self._handshake_timeout} s"
        except _WeRefuse as refusal:
            why = str(refusal)
            await _refuse(frames, why)
        except _PeerRefused as refused:
            frames.fail("refused")
            why = f"it refused: {refused}"
        except (_PeerGone, OSError) as error:
            frames.fail("handshake failed")
            why = f"{_say(error)}, during the handshake"
        except BaseException:
            frames.fail("cancelled")
            raise
        self._failures.warning("closed a connection from %s: %s", peer, wire.clip(why))
        return None


# ---- hosts --------------------------------------------------------------------------------------


def check_bind(host: str, secret: bytes | None, ssl: SSLContext | None, allow_insecure: bool) -> None:
    """Refuse to listen beyond loopback where a stranger could come in.

    Parameters
    ----------
    host : str
        Name or address; a name is looked up, and each of its addresses must be loopback. Empty is
        every interface.
    secret : bytes, optional
        Keeps strangers out.
    ssl : ssl.SSLContext, optional
        Keeps strangers out if it requires certificates of its clients.
    allow_insecure : bool
        The user wants it so.

    Raises
    ------
    ValueError
        Neither holds; the text says what to do.
    OSError
        The name is unknown.

    Threads
    -------
    Any; looking up a name may block.
    """
    found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    _check_bound((str(address[0]) for *_, address in found), host, secret, ssl, allow_insecure)


def _check_bound(
    addresses: Iterable[str], host: str, secret: bytes | None, ssl: SSLContext | None, allow_insecure: bool
) -> None:
    certified = ssl is not None and ssl.verify_mode == CERT_REQUIRED
    if secret or certified or allow_insecure or all(map(_is_loopback, addresses)):
        return
    raise ValueError(
        f"listening on {host!r} would let everyone in who can reach it. Set EngineOptions.secret "
        "(PPLX_ASYNC_SECRET) to the same random bytes on all engines, or ssl_server to a context that requires "
        "client certificates; or listen on 127.0.0.1; or say allow_insecure=True if the network is all yours"
    )


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _say(error: BaseException) -> str:
    """Describe an error; asyncio's TLS raises some without a word."""
    return str(error) or type(error).__name__


def _name(address: Any) -> str:
    """Write a socket's address as ``"host:port"``; it is None once the socket is gone."""
    return join_address(*address[:2]) if address else "an unknown address"
