# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""asyncio protocols on uvloop, the fastest that sockets offer: the loop receives right into our buffer.

A write is a head of 16 B and the payload; the target acknowledges each by 8 B.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import socket
import struct
import time
from collections import deque
from typing import Any

import uvloop

from benchmarks.peers.driver import main
from benchmarks.peers.side import Places, Side, run_workers
from pplx_async.cli.bench.works import Work

_HEAD, _ACK = struct.Struct("<QII"), struct.Struct("<Q")


class _Channel(asyncio.BufferedProtocol):
    """Messages one way, acknowledgements the other."""

    def __init__(self, destination: memoryview) -> None:
        self._destination = destination
        self._head = memoryview(bytearray(_HEAD.size))
        self._got: deque[int] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self.expect(_HEAD.size)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def expect(self, nbytes: int) -> None:
        """From here on messages come in (the size of a head) or acknowledgements."""
        self._buffer, self._filled, self._number = self._head[:nbytes], 0, -1

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled < len(self._buffer):
            return
        self._filled = 0
        if self._number >= 0:  # that was a payload
            self._arrived(self._number)
            self._buffer, self._number = self._head, -1
        elif len(self._buffer) == _ACK.size:
            self._arrived(_ACK.unpack(self._buffer)[0])
        else:
            offset, length, self._number = _HEAD.unpack(self._buffer)
            self._buffer = self._destination[offset : offset + length]

    def _arrived(self, number: int) -> None:
        self._got.append(number)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def receive(self) -> int:
        """Return the number of the next message or acknowledgement."""
        while not self._got:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        return self._got.popleft()

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None:
            self._room.set_result(None)
            self._room = None

    async def send(self, offset: int, payload: memoryview, number: int) -> None:
        if self._room is not None:
            await self._room
        self._transport.writelines((_HEAD.pack(offset, len(payload), number), payload))

    def acknowledge(self, number: int) -> None:
        self._transport.write(_ACK.pack(number))


class UvloopSide(Side):
    """Variants: unix, tcp."""

    wait = "epoll"

    def __init__(self, rank: int, variant: str) -> None:
        super().__init__(rank, variant)
        self.provider = f"uvloop {variant}"
        self.family = {"unix": socket.AF_UNIX, "tcp": socket.AF_INET}[variant]
        self.source = memoryview(self.src)

    def info(self) -> Any:
        if self.rank == 0:
            return None
        self.listener = socket.socket(self.family)
        self.listener.bind(f"\0pplx-bench-{secrets.token_hex(8)}" if self.variant == "unix" else ("127.0.0.1", 0))
        self.listener.listen()
        return self.listener.getsockname()

    async def connect(self, other: Any) -> None:
        if self.rank == 1:
            sock, _ = self.listener.accept()
        else:
            sock = socket.socket(self.family)
            sock.connect(other)
        sock.setblocking(False)
        if self.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        if self.variant == "unix":
            made = await loop.create_unix_connection(lambda: _Channel(memoryview(self.dst)), sock=sock)
        else:
            made = await loop.create_connection(lambda: _Channel(memoryview(self.dst)), sock=sock)
        self.channel = made[1]

    async def ping(self, nbytes: int, count: int) -> list[float]:
        channel, payload, times = self.channel, self.source[:nbytes], []
        channel.expect(_HEAD.size)
        for number in range(count):
            began = time.perf_counter()
            await channel.send(0, payload, number)
            await channel.receive()
            times.append(time.perf_counter() - began)
        return times

    async def pong(self, nbytes: int, count: int) -> None:
        channel, payload = self.channel, self.source[:nbytes]
        channel.expect(_HEAD.size)
        for number in range(count):
            await channel.receive()
            await channel.send(0, payload, number)

    async def write_all(self, work: Work, places: Places) -> None:
        channel, room = self.channel, asyncio.Semaphore(work.inflight)
        channel.expect(_ACK.size)

        async def take_acknowledgements() -> None:
            for _ in places:
                await channel.receive()
                room.release()

        acknowledged = asyncio.ensure_future(take_acknowledgements())
        for number, (src, dst) in enumerate(places):
            await room.acquire()
            await channel.send(dst, self.source[src : src + work.nbytes], number)
        await acknowledged

    async def take_all(self, work: Work, places: Places) -> None:
        await self.serve_awaits(work.inflight, len(places))

    async def await_all(self, inflight: int, count: int) -> None:
        channel, payload, loop = self.channel, self.source[:8], asyncio.get_running_loop()
        waiters: dict[int, asyncio.Future[None]] = {}
        numbers = itertools.count()
        channel.expect(_ACK.size)

        async def take_acknowledgements() -> None:
            for _ in range(count):
                waiters.pop(await channel.receive()).set_result(None)

        async def write() -> None:
            number = next(numbers)
            waiter = waiters[number] = loop.create_future()
            await channel.send(0, payload, number)
            await waiter

        acknowledged = asyncio.ensure_future(take_acknowledgements())
        await run_workers(inflight, count, write)
        await acknowledged

    async def serve_awaits(self, inflight: int, count: int) -> None:
        channel = self.channel
        channel.expect(_HEAD.size)
        for _ in range(count):
            channel.acknowledge(await channel.receive())

    async def poke(self) -> None:
        await self.channel.send(0, self.source[:8], 0)

    async def take_poke(self) -> None:
        self.channel.expect(_HEAD.size)
        await self.channel.receive()


if __name__ == "__main__":
    main(UvloopSide, uvloop.run)
