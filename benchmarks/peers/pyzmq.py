# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""pyzmq's asyncio sockets: head and payload as one message, which the receiver copies into place.

PAIR sockets, not copied while sending; the target acknowledges each message by 8 B.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import struct
import time
from typing import Any

import zmq
import zmq.asyncio

from benchmarks.peers.driver import main
from benchmarks.peers.side import Places, Side, run_workers
from pplx_async.cli.bench.works import Work

_HEAD, _ACK = struct.Struct("<QII"), struct.Struct("<Q")


class PyzmqSide(Side):
    """Variants: ipc, tcp."""

    wait = "epoll"

    def info(self) -> Any:
        self.provider = f"zmq {self.variant}"
        self.source, self.destination = memoryview(self.src), memoryview(self.dst)
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.PAIR)
        self.socket.set_hwm(0)
        if self.rank == 0:
            return None
        if self.variant == "tcp":
            return f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"
        address = f"ipc://@pplx-bench-{secrets.token_hex(8)}"
        self.socket.bind(address)
        return address

    def connect(self, other: Any) -> None:
        if other is not None:
            self.socket.connect(other)

    async def send(self, offset: int, payload: memoryview, number: int) -> None:
        await self.socket.send_multipart([_HEAD.pack(offset, len(payload), number), payload], copy=False)

    async def receive(self) -> int:
        head, payload = await self.socket.recv_multipart(copy=False)
        offset, length, number = _HEAD.unpack(head.buffer)
        self.destination[offset : offset + length] = payload.buffer
        return int(number)

    async def ping(self, nbytes: int, count: int) -> list[float]:
        payload, times = self.source[:nbytes], []
        for number in range(count):
            began = time.perf_counter()
            await self.send(0, payload, number)
            await self.receive()
            times.append(time.perf_counter() - began)
        return times

    async def pong(self, nbytes: int, count: int) -> None:
        for number in range(count):
            await self.receive()
            await self.send(0, self.source[:nbytes], number)

    async def write_all(self, work: Work, places: Places) -> None:
        room = asyncio.Semaphore(work.inflight)

        async def take_acknowledgements() -> None:
            for _ in places:
                await self.socket.recv()
                room.release()

        acknowledged = asyncio.ensure_future(take_acknowledgements())
        for number, (src, dst) in enumerate(places):
            await room.acquire()
            await self.send(dst, self.source[src : src + work.nbytes], number)
        await acknowledged

    async def take_all(self, work: Work, places: Places) -> None:
        await self.serve_awaits(work.inflight, len(places))

    async def await_all(self, inflight: int, count: int) -> None:
        payload, loop = self.source[:8], asyncio.get_running_loop()
        waiters: dict[int, asyncio.Future[None]] = {}
        numbers = itertools.count()

        async def take_acknowledgements() -> None:
            for _ in range(count):
                waiters.pop(_ACK.unpack(await self.socket.recv())[0]).set_result(None)

        async def write() -> None:
            number = next(numbers)
            waiter = waiters[number] = loop.create_future()
            await self.send(0, payload, number)
            await waiter

        acknowledged = asyncio.ensure_future(take_acknowledgements())
        await run_workers(inflight, count, write)
        await acknowledged

    async def serve_awaits(self, inflight: int, count: int) -> None:
        for _ in range(count):
            await self.socket.send(_ACK.pack(await self.receive()))

    async def poke(self) -> None:
        await self.send(0, self.source[:8], 0)

    async def take_poke(self) -> None:
        await self.receive()


if __name__ == "__main__":
    main(PyzmqSide)
