# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How an engine comes by its peers: it calls them, or they call it.

`Connector.call` is the one way: a control channel to the other engine. The other begins at
`Connector.listen`: who has proved itself there comes to `Connector._on_channel`, where it waits for a
place. Both end in `Connector._meet`: the channel becomes a peer, and the two engines connect their NICs
(``peer.py``).
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from pplx_async import control, listen
from pplx_async._frames import say
from pplx_async.errors import BrokenResourceError, PeerLost, PplxAsyncError
from pplx_async.peer import Peer
from pplx_async.wire import clip

if TYPE_CHECKING:
    from pplx_async.engine import TransferEngine

__all__ = ["Connector"]

# Peers that may be in the middle of connecting to us at a time; the others wait for their turn, if there
# would be descriptors for them all.
_MOST_MEETINGS = 32
_DESCRIPTORS_A_PEER = 4
# What peers that are gone may have left unread.
_MOST_UNREAD = 1 << 14
_MOST_UNREAD_NBYTES = 64 << 20


class Connector:
    """Calls peers, and listens for those that call; an engine makes it as it opens.

    Attributes
    ----------
    server : ControlServer or None
        Where we listen.
    calls : set of asyncio.Task
        Of ours, to those who may never answer.
    accepted : deque of Peer
        Those that called, and that `TransferEngine.accept` has not returned yet.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self.server: listen.ControlServer | None = None
        self.calls: set[asyncio.Task[Any]] = set()
        self.accepted: deque[Peer] = deque()
        self._meetings = listen.Meetings(_MOST_MEETINGS, _most_waiting())

    async def listen(self, host: str, port: int) -> None:
        """Let peers call us there."""
        options = self._engine.options
        self.server = await listen.ControlServer.start(
            host,
            port,
            self._engine._identity,
            self._on_channel,
            secret=options.secret_bytes,
            ssl=options.ssl_server,
            allow_insecure=options.allow_insecure,
            handshake_timeout=options.connect_timeout,
        )

    async def call(self, address: str, seconds: float) -> Peer:
        """Call the engine that listens there, and meet it."""
        engine, options = self._engine, self._engine.options
        deadline = engine._loop.time() + seconds
        calling = engine._loop.create_task(
            control.connect_channel(
                address,
                engine._identity,
                secret=options.secret_bytes,
                ssl=options.ssl_client,
                allow_insecure=options.allow_insecure,
                timeout=seconds,
            )
        )
        self.calls.add(calling)
        try:
            channel = await calling
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if engine._closing and current is not None and not current.cancelling():
                engine._check_open()  # it was the engine that ended the call; else our caller has
            raise
        finally:
            self.calls.discard(calling)
        return await self._meet(channel, deadline)

    async def _on_channel(self, channel: control.ControlChannel) -> None:
        """Meet somebody who called; not all at once, since each takes endpoints and memory."""
        engine, seconds = self._engine, self._engine.options.connect_timeout
        deadline = engine._loop.time() + seconds
        try:
            self._check_unread()
            async with asyncio.timeout_at(deadline) as turn, self._meetings.place(channel):
                turn.reschedule(None)  # the meeting has the same deadline, and says what it waited for
                peer = await self._meet(channel, deadline)
        except (PplxAsyncError, TimeoutError, MemoryError) as error:
            why = str(error) or f"too many others connect: it had no turn in {seconds} s"
            channel.refuse(why)
            if not engine._closing:
                engine._complain("no connection with %s: %s", channel.peername, clip(why))
            return
        self.accepted.append(peer)
        engine._news.set()

    def _check_unread(self) -> None:
        """Let nobody in who may leave still more, if those that are gone left more than we should hold."""
        gone = [message for message, token in self._engine._messages if not token]
        if len(gone) > _MOST_UNREAD or sum(len(message.data) for message in gone) > _MOST_UNREAD_NBYTES:
            raise BrokenResourceError(
                f"{len(gone)} messages of peers that are gone have not been read here",
                hint="Its program has to read messages() before others can connect.",
            )

    async def _meet(self, channel: control.ControlChannel, deadline: float) -> Peer:
        """Make a peer of a channel, and connect our NICs with its."""
        engine = self._engine
        try:
            engine._check_open()
            peer = Peer(engine, channel)
        except BaseException as error:
            channel.refuse(say(error))
            raise
        engine._peers.add(peer)
        try:
            async with asyncio.timeout_at(deadline):
                await peer._establish()
        except BaseException as error:
            peer._record.is_open = False
            peer._met.set()
            bare = {TimeoutError: "it took too long", asyncio.CancelledError: "the attempt was cancelled"}
            channel.refuse(bare.get(type(error)) or say(error))
            if peer._closing is None:
                peer._closing = engine._spawn(peer._free())
            if isinstance(error, TimeoutError):
                raise TimeoutError(
                    f"peer {peer.label} answers on the control channel, but the NICs did not connect in time: "
                    "do both engines listen on the same network, does a firewall drop the fabric's ports?"
                ) from error
            if isinstance(error, PeerLost):
                raise BrokenResourceError(
                    f"peer {peer.label} was lost while connecting: {error.reason}", hint="Connect again."
                ) from error
            raise
        engine._servers[peer] = engine._loop.create_task(peer._serve())
        peer._met.set()
        engine._messages.extend(peer._early)
        engine._news.set()
        return peer

    async def close(self) -> None:
        """Call nobody any more, and let nobody in."""
        engine = self._engine
        for call in self.calls:
            call.cancel()
        # Who has our Ready may write already: the handshake goes to its end, or its goodbye would cut those short.
        if meeting := [engine._loop.create_task(peer._met.wait()) for peer in engine._peers if peer._said_ready]:
            await asyncio.wait(meeting, timeout=engine.options.drain_timeout)
            for task in meeting:
                task.cancel()
        if self.server is not None:
            await self.server.aclose()


def _most_waiting() -> int:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit // _DESCRIPTORS_A_PEER
