# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Frames: whatever the stream is cut into, the same frames come out of it, up to the first that is too long.

The input: when the handshake is over, sizes of the pieces that arrive, the stream.
"""

from __future__ import annotations

from pplx_async import wire
from pplx_async._frames import HANDSHAKE_NBYTES, HEAD, Frames
from tests.fuzz.transport import Transport, run

__all__ = ["check"]


def check(data: bytes) -> None:
    """Send the stream in pieces, and compare with what a simple reader makes of it."""
    if len(data) < 2:
        return
    handshake, pieces = data[0] % 4, data[1] % 8
    sizes, stream = data[2 : 2 + pieces], _stretch(data[2 + pieces :])
    run(_check(handshake, sizes, stream))


def _stretch(stream: bytes) -> bytes:
    """Let one byte stand for thousands, so that small inputs can make large frames."""
    head, mark, tail = stream.partition(b"\xfe\xfe")
    return head + bytes(40_000) * len(mark[:1]) + tail


def _expected(stream: bytes, handshake: int) -> tuple[list[bytes], bool]:
    """Read frames the simple way; say whether one was too long."""
    found: list[bytes] = []
    while len(stream) >= HEAD:
        nbytes = int.from_bytes(stream[:HEAD], "big")
        limit = HANDSHAKE_NBYTES if len(found) < handshake else wire.MAX_MESSAGE_NBYTES
        if nbytes > limit:
            return found, True
        if len(stream) < HEAD + nbytes:
            break
        found.append(stream[HEAD : HEAD + nbytes])
        stream = stream[HEAD + nbytes :]
    return found, False


async def _check(handshake: int, sizes: bytes, stream: bytes) -> None:
    frames = Frames()
    transport = Transport(frames)
    expected, too_long = _expected(stream, handshake)
    got: list[bytes] = []
    at = turn = 0
    if handshake == 0:
        frames.limit = wire.MAX_MESSAGE_NBYTES
    while at < len(stream) and not transport.closed:
        size = 1 + (sizes[turn % len(sizes)] * 64 if sizes else len(stream))
        turn += 1
        taken = transport.feed(stream[at : at + size])
        at += taken
        # One is read for each piece, or all: the reader is slower than the peer, or not.
        while (frames._front() or transport.paused) and not transport.closed:
            frame = await frames.read()
            if frame is None:
                break
            got.append(frame)
            if len(got) == handshake:
                frames.limit = wire.MAX_MESSAGE_NBYTES
            if turn % 2 and not transport.paused:
                break
    frames.eof_received()
    while (frame := await frames.read()) is not None:
        got.append(frame)
        if len(got) == handshake:
            frames.limit = wire.MAX_MESSAGE_NBYTES
    assert got == expected[: len(got)], "other frames than were sent"
    if too_long:
        # Those before it may be lost: a peer that breaks the rules has no claim to them.
        assert transport.closed
        assert frames.reason is not None
    else:
        assert got == expected
    assert transport.written == b""
