# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The listening side of the control channel: accepting, and what strangers may cost."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from ssl import CERT_REQUIRED, SSLContext
from typing import Any, Final, Self

from pplx_async import wire
from pplx_async._frames import Frames, Throttle, peer_name, say
from pplx_async._handshake import Identity, PeerGone, PeerRefused, WeRefuse, handshake, refuse
from pplx_async._users import is_loopback
from pplx_async.control import ControlChannel
from pplx_async.errors import BrokenResourceError, PplxAsyncError
from pplx_async.options import join_address

__all__ = ["ControlServer", "Meetings", "check_bind"]

_log = logging.getLogger("pplx_async.control")

_BACKLOG: Final = 1024
_ACCEPTS: Final = 16  # in one turn of the loop: a flood must not hold it
_ACCEPT_AGAIN: Final = 0.1  # seconds after an accept that failed
# Seconds that a caller has to itself, before it must make room for one that waits to be accepted. Ours
# speak at once. One that has spoken has longer: it may be far away.
_SILENT_PATIENCE: Final = 0.1
_HEARD_PATIENCE: Final = 1.0
# The same for peers that connect: to say the first thing, which ours do at once; and after that to connect
# their NICs, with time for a packet that was lost.
_FIRST_PATIENCE: Final = 1.0
_MEETING_PATIENCE: Final = 3.0


@dataclass(eq=False)
class _Caller:
    """A connection in the handshake."""

    name: str
    since: float
    frames: Frames = field(default_factory=Frames)
    task: asyncio.Task[None] | None = None

    @property
    def patience_ends(self) -> float:
        return self.since + (_HEARD_PATIENCE if self.frames.heard else _SILENT_PATIENCE)


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
        same_user: bool,
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
        self._same_user = same_user
        self._tls = tls
        self._handshake_timeout = handshake_timeout
        self._max_pending = max_pending
        self._callers: set[_Caller] = set()
        self._flood = Throttle(_log)
        self._failures = Throttle(_log)
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
            As for `check_bind`, which is asked about the address that `host` turns out to be. Without it,
            a secret or certificates only processes of our own user are let in.
        handshake_timeout : float
            Seconds for a peer's handshake, TLS included.
        max_pending : int
            Connections in the handshake at once. For one more, the one that has been silent longest
            is closed; so silence keeps nobody out.

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
            same_user=not (_is_protected(secret, ssl) or allow_insecure),
            tls=tls,
            handshake_timeout=handshake_timeout,
            max_pending=max_pending,
        )

    async def aclose(self) -> None:
        """Stop listening, drop handshakes, cancel `on_channel` tasks that still run. Idempotent.

        Channels that an `on_channel` has kept after its return stay open.
        """
        self.stop_listening()
        # Tasks begin in the order they were made: after this turn each serving task has begun, and
        # owns its socket. One that is cancelled before it begins would leave it open.
        await asyncio.sleep(0)
        serving = self._serving - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)

    def stop_listening(self) -> None:
        """Take no further connections. Idempotent."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener)
            self._listener.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _accept(self) -> None:
        # A callback, not a task in sock_accept(): cancelling that may lose a socket just accepted.
        for accepted in range(_ACCEPTS):
            if len(self._callers) >= self._max_pending and (accepted or not self._make_room()):
                return  # if more wait, we are called again
            try:
                connection, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # Out of descriptors or memory, as a rule. Who waits in the backlog is not lost.
                self._flood.warning("cannot accept a connection on %s: %s", self.address, error)
                self._pause(_ACCEPT_AGAIN)
                return
            connection.setblocking(False)
            caller = _Caller(peer_name(address), self._loop.time())
            caller.task = self._loop.create_task(
                self._serve(connection, caller), name=f"pplx_async control {caller.name}"
            )
            self._callers.add(caller)
            self._serving.add(caller.task)
            caller.task.add_done_callback(self._serving.discard)

    def _make_room(self) -> bool:
        """Close who has had its time and is not through; if there is none, wait for one."""
        caller = min(self._callers, key=lambda caller: caller.patience_ends)
        now = self._loop.time()
        if caller.patience_ends > now:
            self._pause(caller.patience_ends - now)
            return False
        self._flood.warning(
            "closed a connection from %s to make room for another: %d were in the handshake, this one for %.1f s",
            caller.name,
            len(self._callers),
            now - caller.since,
        )
        self._callers.discard(caller)
        assert caller.task is not None  # it has begun: its time is longer than one turn of the loop
        caller.task.cancel()
        return True

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._retry = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            self._loop.add_reader(self._listener, self._accept)

    async def _serve(self, connection: socket.socket, caller: _Caller) -> None:
        try:
            channel = await self._shake(connection, caller)
        finally:
            self._callers.discard(caller)
            # A task that was cancelled has its frames, and those have the caller: a flood is not to be
            # left to the garbage collector, 256 KiB for each with TLS.
            caller.task = None
            self._resume()
        if channel is None:
            return
        try:
            await self._on_channel(channel)
        except asyncio.CancelledError:
            channel.close()
            raise
        except Exception:
            _log.exception("closed the control channel to %s: its handler failed", caller.name)
            channel.close()

    async def _shake(self, connection: socket.socket, caller: _Caller) -> ControlChannel | None:
        frames = caller.frames
        hello = self._identity.hello(self._secret is not None)
        try:
            async with asyncio.timeout(self._handshake_timeout):
                await self._loop.connect_accepted_socket(lambda: frames, connection, **self._tls)
                theirs = await handshake(frames, hello, self._secret, connecting=False, same_user=self._same_user)
            return ControlChannel(frames, theirs)
        except TimeoutError:
            frames.fail("timed out")
            why = f"no complete handshake in {self._handshake_timeout} s"
        except WeRefuse as refusal:
            why = str(refusal)
            await refuse(frames, why)
        except PeerRefused as refused:
            frames.fail("refused")
            why = f"it refused: {refused}"
        except (PeerGone, OSError) as error:
            frames.fail("handshake failed")
            why = f"{say(error)}, during the handshake"
            error.__traceback__ = None  # asyncio's TLS keeps the error, which would keep this frame
        except BaseException:
            frames.fail("cancelled")
            raise
        self._failures.warning("closed a connection from %s: %s", caller.name, wire.clip(why))
        return None


class Meetings:
    """Places for peers that are through the handshake and connect: each takes endpoints and memory.

    The others wait for their turn, in the order in which they came. As long as any do, who has been
    silent longest makes room: who is let in and says nothing keeps nobody out.

    Parameters
    ----------
    places : int
        Peers that may connect at a time.
    most_waiting : int
        Beyond them; further ones are refused.

    Threads
    -------
    Loop thread only.
    """

    def __init__(self, places: int, most_waiting: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._most_waiting = most_waiting
        self._waiting = 0
        self._guests: set[ControlChannel] = set()
        self._sent_off: dict[ControlChannel, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.asynccontextmanager
    async def place(self, channel: ControlChannel) -> AsyncIterator[None]:
        """Wait for a place, and have it.

        Raises
        ------
        BrokenResourceError
            Too many wait already; or it had to make room: the peer was refused, so what is done with
            its channel fails, and this is raised instead.

        Cancelling
        ----------
        The place is given to the next one.
        """
        if self._waiting >= self._most_waiting:
            raise BrokenResourceError("too many others connect", hint="Connect again a little later.")
        self._waiting += 1
        try:
            if self._places.locked():
                self._plan()
            await self._places.acquire()
        finally:
            self._waiting -= 1
            if self._timer is not None and not self._waiting:
                self._timer.cancel()
                self._timer = None
        channel.heard_at = asyncio.get_running_loop().time()  # from here on it is its turn to speak
        self._guests.add(channel)
        self._plan()
        try:
            yield
        except PplxAsyncError:
            if channel not in self._sent_off:
                raise
            raise BrokenResourceError(self._sent_off[channel], hint="") from None
        finally:
            self._guests.discard(channel)
            self._sent_off.pop(channel, None)
            self._places.release()

    def _plan(self) -> None:
        """Have room made when the first patience ends, if anyone waits for it."""
        if self._waiting and self._guests and self._timer is None:
            ends = min(map(self._patience_ends, self._guests))
            self._timer = asyncio.get_running_loop().call_at(ends, self._make_room)

    @staticmethod
    def _patience_ends(channel: ControlChannel) -> float:
        return channel.heard_at + (_MEETING_PATIENCE if channel.heard else _FIRST_PATIENCE)

    def _make_room(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        silent = sorted((guest for guest in self._guests if self._patience_ends(guest) <= now), key=self._patience_ends)
        for guest in silent[: self._waiting]:
            self._guests.discard(guest)
            self._sent_off[guest] = f"nothing was heard of it for {now - guest.heard_at:.1f} s, and others wait"
            guest.refuse(self._sent_off[guest])
        self._plan()


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
    if _is_protected(secret, ssl) or allow_insecure or all(map(is_loopback, addresses)):
        return
    raise ValueError(
        f"listening on {host!r} would let everyone in who can reach it. Set EngineOptions.secret "
        "(PPLX_ASYNC_SECRET) to the same random bytes on all engines, or ssl_server to a context that requires "
        "client certificates; or listen on 127.0.0.1; or say allow_insecure=True if the network is all yours"
    )


def _is_protected(secret: bytes | None, ssl: SSLContext | None) -> bool:
    """Whether who connects must prove more than that it can."""
    return bool(secret) or (ssl is not None and ssl.verify_mode == CERT_REQUIRED)
