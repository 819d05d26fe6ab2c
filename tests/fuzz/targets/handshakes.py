# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The handshake against a peer that may say anything, repeat what it hears, or know the secret.

The input: which side we are and who has a secret, then what the peer does, one thing after the other.
"""

from __future__ import annotations

import asyncio

import msgspec

from pplx_async import wire
from pplx_async._frames import HANDSHAKE_NBYTES, HEAD, Frames
from pplx_async._handshake import Identity, PeerGone, PeerRefused, WeRefuse, _mac, handshake
from tests.fuzz.features import note
from tests.fuzz.transport import Transport, run

__all__ = ["check"]

_SECRET = b"the secret of these engines"
_ours = Identity(engine=b"o" * 16, networks=("tcp", "ipc@here"), host="here", name="ours")
_theirs = Identity(engine=b"t" * 16, networks=("tcp",), host="there", name="theirs")
_MOST = 12  # things that the peer does
_TURNS = 8  # of the loop, for ours to react


class _Peer:
    """The other side. It may have the secret, and does not have to use it."""

    def __init__(self, transport: Transport, data: bytes) -> None:
        self._transport = transport
        self._data = data
        self.hello = b""
        self.has_proved = False  # rightly

    def take(self, nbytes: int) -> bytes:
        taken, self._data = self._data[:nbytes], self._data[nbytes:]
        return taken

    def take_byte(self) -> int:
        return int.from_bytes(self.take(1))

    @property
    def has_more(self) -> bool:
        return bool(self._data)

    def heard(self) -> list[bytes]:
        """Read what ours has written so far."""
        frames, stream = [], bytes(self._transport.written)
        while stream:
            end = HEAD + int.from_bytes(stream[:HEAD])
            frames.append(stream[HEAD:end])
            stream = stream[end:]
        return frames

    def send(self, frame: bytes) -> None:
        stream = len(frame).to_bytes(HEAD) + frame
        while stream and (taken := self._transport.feed(stream)):
            stream = stream[taken:]

    def act(self, connecting: bool) -> None:
        """Do one thing; `connecting`: ours is the side that connects."""
        what = self.take_byte()
        heard = self.heard()
        match what % 8:
            case 0:
                self.send(self.take(self.take_byte()))
            case 1 if heard:
                self.send(heard[what % len(heard)])
            case 2 | 3:
                self._greet(what)
            case 4 if heard and self.hello:
                self._prove(what, heard[0], connecting)
            case 5:
                self.send(wire.encode_message(wire.Refused("no " + self.take(5).hex())))
            case 6:
                self._transport.feed(self.take(self.take_byte()))  # no frame, or a part of one
            case _:
                self._transport.frames.eof_received()

    def _greet(self, what: int) -> None:
        hello = _theirs.hello(bool(what & 8))
        if what & 16:
            hello = msgspec.structs.replace(hello, networks=("elsewhere",))
        if what & 32:
            hello = msgspec.structs.replace(hello, version=self.take_byte())
        data = bytearray(msgspec.msgpack.encode(hello))
        if what & 64:
            data[self.take_byte() % len(data)] ^= self.take_byte()
        if what & 128:
            data += self.take(4)
        if not self.hello:
            self.hello = bytes(data)
        self.send(bytes(data))

    def _prove(self, what: int, ours: bytes, connecting: bool) -> None:
        hellos = (ours, self.hello) if connecting else (self.hello, ours)
        role = b"listening" if connecting == (not what & 8) else b"connecting"
        secret = _SECRET if not what & 16 else _SECRET[:-1]
        mac = bytearray(_mac(secret, role, *hellos))
        if what & 32:
            mac[self.take_byte() % len(mac)] ^= self.take_byte()
        right = bytes(mac) == _mac(_SECRET, b"listening" if connecting else b"connecting", *hellos)
        self.has_proved = self.has_proved or right
        self.send(wire.encode_message(wire.Proof(bytes(mac))))


def check(data: bytes) -> None:
    """Go through one handshake."""
    if data:
        run(_check(data[0], data[1:]))


async def _check(how: int, data: bytes) -> None:
    connecting, secret = bool(how & 1), _SECRET if how & 2 else None
    frames = Frames()
    transport = Transport(frames)
    hello = _ours.hello(secret is not None)
    task = asyncio.ensure_future(handshake(frames, hello, secret, connecting=connecting))
    peer = _Peer(transport, data)
    for _ in range(_MOST):
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        if task.done() or not peer.has_more:
            break
        peer.act(connecting)
        _check_said(peer, secret, connecting)
    frames.fail("the end of the input")
    try:
        theirs = await asyncio.wait_for(task, 5)
    except (WeRefuse, PeerRefused, PeerGone) as error:
        note(f"{type(error).__name__} {error}")
        wire.encode_message(wire.Refused(wire.clip(str(error))))
        return
    note("they met")
    assert theirs.version == wire.PROTOCOL_VERSION
    assert theirs.auth == (secret is not None)
    assert set(theirs.networks) & set(hello.networks)
    assert secret is None or peer.has_proved, "it let someone in who did not show the secret"
    assert frames.limit == HANDSHAKE_NBYTES, "who is not connected yet has nothing long to say"
    _check_said(peer, secret, connecting)


def _check_said(peer: _Peer, secret: bytes | None, connecting: bool) -> None:
    """Nothing but a Hello and a Proof of ours; and who listens proves nothing to whom has proved nothing."""
    kinds = [type(wire.decode_message(frame)) for frame in peer.heard()]
    assert kinds in ([], [wire.Hello], [wire.Hello, wire.Proof]), kinds
    if wire.Proof in kinds:
        assert secret is not None
        assert connecting or peer.has_proved
