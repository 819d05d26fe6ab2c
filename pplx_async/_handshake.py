# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The handshake of the control channel: who may speak, and with which version and fabric.

The steps, and why they keep strangers out, are at the head of ``control.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import secrets
import socket
from typing import TypeVar

from pplx_async import wire
from pplx_async._frames import HEAD, Frames
from pplx_async._users import is_connected, stranger

__all__ = ["Identity", "PeerGone", "PeerRefused", "WeRefuse", "handshake", "host_identity", "refuse"]

_M = TypeVar("_M", bound=wire.Message)


@functools.cache
def host_identity() -> str:
    """Name this host, in 32 hex digits: the same in all its processes until it boots again.

    Hashed, since machine-id(5) is not to be shown to strangers.
    """
    parts = [b"pplx_async host"]
    for file in ("/proc/sys/kernel/random/boot_id", "/etc/machine-id"):
        with contextlib.suppress(OSError), open(file, "rb") as opened:
            parts.append(opened.read().strip())
    if len(parts) == 1:
        parts.append(socket.gethostname().encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What an engine says of itself in every `Hello`; fields as there."""

    engine: bytes
    networks: tuple[str, ...]
    nics: tuple[wire.Nic, ...] = ()
    host: str = dataclasses.field(default_factory=host_identity)
    name: str = ""

    def hello(self, auth: bool) -> wire.Hello:
        """Make the Hello of one connection, with a fresh nonce."""
        return wire.Hello(
            magic="pplx_async",
            version=wire.PROTOCOL_VERSION,
            engine=self.engine,
            nonce=secrets.token_bytes(32),
            networks=self.networks,
            nics=self.nics,
            host=self.host,
            name=self.name,
            auth=auth,
        )


class WeRefuse(Exception):
    """Our side refuses, and tells the peer why."""


class PeerRefused(Exception):
    """The peer refused; its words."""


class PeerGone(Exception):
    """The connection ended; how."""


async def handshake(
    frames: Frames, ours: wire.Hello, secret: bytes | None, *, connecting: bool, same_user: bool = False
) -> wire.Hello:
    """Go through the steps at the head of this file, and return the peer's Hello.

    With `same_user` the peer is a process of this host, and must be of our user.
    """
    sent = wire.encode_message(ours)
    if connecting:
        frames.write(ours)
    got = await _next(frames)
    version = wire.hello_version(got)
    if version is not None and version != ours.version:
        side = "listening" if connecting else "connecting"
        raise WeRefuse(
            f"protocol version {version} on the {side} side, {ours.version} on the other: "
            "install the same pplx_async on both"
        )
    theirs = _decode(got, wire.Hello)
    problem = _mismatch(ours, theirs) if connecting else _mismatch(theirs, ours)
    if problem is None and same_user:
        problem = stranger(frames.sockname, frames.peername)
        if problem and not is_connected(frames.sockname, frames.peername):
            _decode(await _next(frames), wire.Refused)  # it has gone: there may be a last word, and no user to name
    if problem:
        raise WeRefuse(problem)
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
            raise WeRefuse("the secrets differ: give both engines the same EngineOptions.secret")
        if not connecting:
            frames.write(wire.Proof(mine))
    return theirs


async def _next(frames: Frames) -> bytes:
    frame = await frames.read()
    if frame is None:
        raise PeerGone(frames.reason) from frames.cause
    return frame


def _decode(frame: bytes, expected: type[_M]) -> _M:
    try:
        message = wire.decode_message(frame)
    except ValueError as error:
        raise WeRefuse(f"not a pplx_async engine: {error}") from error
    if isinstance(message, wire.Refused):
        raise PeerRefused(wire.clip(message.reason))
    if not isinstance(message, expected):
        raise WeRefuse(f"{type(message).__name__} where {expected.__name__} is due")
    return message


def _mismatch(connecting: wire.Hello, listening: wire.Hello) -> str | None:
    if not set(connecting.networks) & set(listening.networks):
        return (
            f"fabric {_fabrics(connecting)} on the connecting side, {_fabrics(listening)} on the listening side: "
            "set EngineOptions.fabric (PPLX_ASYNC_FABRIC) to the same on both (ipc joins processes of one host, "
            "user and network namespace)"
        )
    if connecting.auth != listening.auth:
        has, lacks = ("connecting", "listening") if connecting.auth else ("listening", "connecting")
        return f"the {has} side has a secret, the {lacks} side has none: set EngineOptions.secret on both or on neither"
    return None


def _fabrics(hello: wire.Hello) -> str:
    return " and ".join(dict.fromkeys(repr(network.partition("@")[0]) for network in hello.networks))


def _mac(secret: bytes, role: bytes, connecting: bytes, listening: bytes) -> bytes:
    """Lengths go in as well: no other pair of Hellos makes the same input."""
    mac = hmac.new(secret, digestmod=hashlib.sha256)
    for part in (b"pplx_async control", role, connecting, listening):
        mac.update(len(part).to_bytes(HEAD, "big") + part)
    return mac.digest()


async def refuse(frames: Frames, reason: str) -> None:
    frames.write(wire.Refused(wire.clip(reason)))
    frames.close()
    await frames.lost.wait()
