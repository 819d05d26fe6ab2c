# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Frames over one TCP connection: a length (u32, big endian) and that many bytes."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Final, cast

from pplx_async import wire
from pplx_async.options import join_address

__all__ = ["CHUNK", "HEAD", "HIGH_WATER", "Frames", "Throttle", "peer_name", "say"]

HANDSHAKE_NBYTES: Final = 4 << 10  # largest frame of a handshake, and until the peers are connected
MAX_OUTGOING: Final = 4 << 20  # bytes queued for a peer that doesn't take them
CLOSE_TIMEOUT: Final = 1.0  # for what is queued, and TLS's goodbye, to go out
HEAD: Final = 4  # bytes
CHUNK: Final = 16 << 10
HIGH_WATER: Final = 64 << 10
SHORT_FRAMES: Final = 4  # so many of the handshake's size may wait to be read until then


class Frames(asyncio.BufferedProtocol):
    """Frames over one transport. Buffers at most one frame, or `HIGH_WATER`, and one chunk more.

    A BufferedProtocol, since with the other kind a stranger's bytes arrive 256 KiB at a time.
    """

    def __init__(self) -> None:
        self.limit = HANDSHAKE_NBYTES
        self.closing = False  # by us
        self.heard = False  # anything of the peer
        self.reason: str | None = None  # why nothing more will come; the first reason stays
        self.cause: BaseException | None = None
        self.lost = asyncio.Event()
        self.writable = asyncio.Event()
        self.writable.set()
        self.transport: asyncio.Transport | None = None  # gone once it is lost: TLS has us in it
        self.peername: Any = None
        self.sockname: Any = None
        self._loop = asyncio.get_running_loop()
        self._chunk = memoryview(bytearray(CHUNK))
        self._buffer = bytearray()
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.peername, self.sockname = map(transport.get_extra_info, ("peername", "sockname"))
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        if self.closing:
            self.transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._chunk

    def buffer_updated(self, nbytes: int) -> None:
        if self.closing:
            return
        self.heard = True
        self._buffer += self._chunk[:nbytes]
        self._judge()
        if self.reason is None and len(self._buffer) > self._high and self._front() and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._end("the peer closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(f"the connection broke: {say(exc)}" if exc else "the connection was closed", exc)
        if self._linger is not None:
            self._linger.cancel()
        self.transport = None
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
            self.transport.write(len(payload).to_bytes(HEAD, "big") + payload)

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

    @property
    def _high(self) -> int:
        return min(HIGH_WATER, SHORT_FRAMES * self.limit)

    def _front(self) -> int | None:
        """End of the first frame in the buffer, if it is here whole."""
        end = HEAD + int.from_bytes(self._buffer[:HEAD], "big")
        return end if len(self._buffer) >= max(end, HEAD) else None

    def _judge(self) -> None:
        """Break the connection if the first frame is above the limit, long before it is here whole."""
        nbytes = int.from_bytes(self._buffer[:HEAD], "big")
        if len(self._buffer) >= HEAD and nbytes > self.limit:
            tls = self._buffer[:2] == b"\x16\x03" and self.limit == HANDSHAKE_NBYTES
            self.fail("it speaks TLS, this side does not" if tls else f"a frame of {nbytes} B, over {self.limit} B")

    def _take(self) -> bytes | None:
        # Judged here and not when the frame before it left: the limit may rise in between.
        self._judge()
        end = self._front()
        if end is None:
            return None
        frame = bytes(self._buffer[HEAD:end])
        del self._buffer[:end]
        if self._paused and self.reason is None and (len(self._buffer) <= self._high or self._front() is None):
            self._paused = False
            if self.transport is not None:
                self.transport.resume_reading()
        return frame


class Throttle:
    """Logs a few lines a second, and how many it left out: what others do must not fill the disk."""

    LINES: Final = 5

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._second = 0
        self._lines = 0

    def warning(self, text: str, *args: object) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._lines > self.LINES:
                self._log.warning("left out %d more lines like the last ones", self._lines - self.LINES)
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= self.LINES:
            self._log.warning(text, *args)


def say(error: BaseException) -> str:
    """Describe an error; asyncio's TLS raises some without a word."""
    return str(error) or type(error).__name__


def peer_name(address: Any) -> str:
    """Write a socket's address as ``"host:port"``; it is None once the socket is gone."""
    return join_address(*address[:2]) if address else "an unknown address"
