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
deadline for the whole handshake, TLS included, about 50 KiB each, with TLS 300 KiB more, and a few
lines of log a second. They can't keep others out: who has been silent longest makes room for who
comes next. Until its NICs are connected, a peer is held to the same short frames.
"""

from __future__ import annotations

import asyncio
import logging
from ssl import SSLContext
from typing import Any, Self

from pplx_async import wire
from pplx_async._frames import Frames, peer_name, say
from pplx_async._handshake import Identity, PeerGone, PeerRefused, WeRefuse, handshake, host_identity, refuse
from pplx_async._users import is_loopback
from pplx_async.errors import BrokenResourceError, ClosedResourceError
from pplx_async.options import split_address

__all__ = ["ControlChannel", "Identity", "connect_channel", "host_identity"]

_log = logging.getLogger("pplx_async.control")


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
    heard, heard_at : bool, float
        Whether it has said anything since the handshake, and when it has said something last, by the
        loop's clock.

    Threads
    -------
    Loop thread only. Any number of tasks may send, one may receive.
    """

    def __init__(self, frames: Frames, remote_hello: wire.Hello) -> None:
        self._frames = frames
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.heard = False
        self.heard_at = self._loop.time()
        self.remote_hello = remote_hello
        self.peername = peer_name(frames.peername)
        self.local_host = str((frames.sockname or ("",))[0])

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
        self.heard = True
        self.heard_at = self._loop.time()
        return message

    def expect_long(self) -> None:
        """Take messages of any length from now on; until then, none that is longer than those of a handshake."""
        self._frames.limit = wire.MAX_MESSAGE_NBYTES

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> wire.Message:
        """Receive until the channel ends, by whatever means; `reason` then says by which."""
        try:
            return await self.receive()
        except (ClosedResourceError, BrokenResourceError):
            raise StopAsyncIteration from None

    def refuse(self, reason: str) -> None:
        """Tell the peer why we won't go on, and close; if the channel has ended, nothing."""
        if self._frames.reason is None:
            self._frames.write(wire.Refused(wire.clip(reason)))
            self.close()

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
    allow_insecure: bool = False,
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
    allow_insecure : bool
        Without it, a secret or TLS only a process of our own user is taken for a peer on this host.
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
    frames = Frames()
    tls: dict[str, Any] = {} if ssl is None else {"ssl": ssl, "server_hostname": host, "ssl_handshake_timeout": timeout}
    try:
        async with asyncio.timeout(timeout):
            await asyncio.get_running_loop().create_connection(lambda: frames, host, port, **tls)
            same_user = not (secret or ssl or allow_insecure) and is_loopback(frames.peername[0])
            theirs = await handshake(frames, hello, secret, connecting=True, same_user=same_user)
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
        raise BrokenResourceError(f"connect to {address} failed: {say(error)}", hint=hint) from error
    except WeRefuse as refusal:
        await refuse(frames, str(refusal))
        raise BrokenResourceError(f"connect to {address} failed: {refusal}", hint="") from refusal.__cause__
    except PeerRefused as refused:
        frames.fail("refused")
        raise BrokenResourceError(f"connect to {address} failed: it refused: {refused}", hint="") from None
    except PeerGone as gone:
        frames.fail("handshake failed")
        hint = "Is it a pplx_async engine, do both sides use TLS or neither, is it flooded with connections?"
        raise BrokenResourceError(
            f"connect to {address} failed: {gone}, during the handshake", hint=hint
        ) from gone.__cause__
    except BaseException:
        frames.fail("cancelled")
        raise
