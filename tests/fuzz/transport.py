# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A transport that leads nowhere: what `Frames` does with one, seen from the other side."""

from __future__ import annotations

import asyncio

from pplx_async._frames import CHUNK, HEAD, HIGH_WATER, Frames

__all__ = ["Transport", "run"]

_LIMIT_S = 5.0  # nothing here waits for anything but the next turn
_loop: asyncio.AbstractEventLoop | None = None


def run(coroutine) -> None:
    """Run it on the one loop of this process: a new one for each input would be most of the time."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
    _loop.run_until_complete(asyncio.wait_for(coroutine, _LIMIT_S))


class Transport(asyncio.Transport):
    """Keeps what is written; delivers what it is told to, as far as the protocol takes it."""

    def __init__(self, frames: Frames) -> None:
        super().__init__()
        self.frames = frames
        self.written = bytearray()
        self.paused = False
        self.closed = False
        frames.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ours has none."""

    def get_write_buffer_size(self) -> int:
        return 0

    def write(self, data) -> None:
        assert not self.closed
        self.written += data

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def feed(self, data: bytes) -> int:
        """Deliver some of it; return how much was taken."""
        if self.paused or self.closed:
            return 0
        buffer = self.frames.get_buffer(-1)
        data = data[: len(buffer)]
        buffer[: len(data)] = data
        self.frames.buffer_updated(len(data))
        most = max(self.frames.limit + HEAD, HIGH_WATER) + CHUNK
        assert len(self.frames._buffer) <= most, "it buffers more than it says"
        return len(data)
