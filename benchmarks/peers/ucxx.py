# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""UCXX's asyncio API: tagged messages, for its Python layer has no one-sided put.

The target knows what comes, and posts receives in the right places; both sides use ``inflight``
tasks. What is awaited is a message out and another one back.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import ucxx

from benchmarks.peers.driver import main
from benchmarks.peers.side import Places, Side, run_workers
from pplx_async.cli.bench.works import Work


class UcxxSide(Side):
    """Variants: shm-polling, tcp-polling, tcp-thread; which transport UCX takes is in the environment."""

    def __init__(self, rank: int, variant: str) -> None:
        super().__init__(rank, variant)
        self.transport, mode = variant.split("-")
        self.provider = f"UCX {self.transport}"
        self.wait = "thread" if mode == "thread" else "poll"
        self.one = np.zeros(8, np.uint8)

    def info(self) -> Any:
        # With a thread, futures that it sets: otherwise UCXX waits by sleep(0) all the same.
        ucxx.init(progress_mode=self.variant.split("-")[1], enable_python_future=self.wait == "thread")
        if self.transport == "shm":
            return bytes(ucxx.get_worker_address())
        if self.rank == 0:
            return None
        self.accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.listener = ucxx.create_listener(self.accepted.set_result)
        return self.listener.port

    async def connect(self, other: Any) -> None:
        options: dict[str, Any] = {}
        if self.transport == "shm":
            # A listener's endpoints never use shared memory; those of worker addresses with a tag do.
            address = ucxx.get_ucx_address_from_buffer(other)
            endpoint = await ucxx.create_endpoint_from_worker_address(address, endpoint_error_handling=False)
            options = {"tag": ucxx.types.Tag(7), "force_tag": True}
        else:
            endpoint = await (ucxx.create_endpoint("127.0.0.1", other) if other else self.accepted)
        self.send = lambda array: endpoint.send(array, **options)
        self.receive = lambda array: endpoint.recv(array, **options)
        await (self.receive(self.one) if self.rank else self.send(self.one))

    async def ping(self, nbytes: int, count: int) -> list[float]:
        source, target, times = self.src[:nbytes], self.dst[:nbytes], []
        for _ in range(count):
            began = time.perf_counter()
            await self.send(source)
            await self.receive(target)
            times.append(time.perf_counter() - began)
        return times

    async def pong(self, nbytes: int, count: int) -> None:
        source, target = self.src[:nbytes], self.dst[:nbytes]
        for _ in range(count):
            await self.receive(target)
            await self.send(source)

    async def write_all(self, work: Work, places: Places) -> None:
        left = iter(places)

        async def write() -> None:
            src, _ = next(left)
            await self.send(self.src[src : src + work.nbytes])

        await run_workers(work.inflight, len(places), write)
        await self.receive(self.one)

    async def take_all(self, work: Work, places: Places) -> None:
        left = iter(places)

        async def take() -> None:
            _, dst = next(left)
            await self.receive(self.dst[dst : dst + work.nbytes])

        await run_workers(work.inflight, len(places), take)
        await self.send(self.one)

    async def await_all(self, inflight: int, count: int) -> None:
        source = self.src[:8]
        buffers = [self.dst[64 * slot : 64 * slot + 8] for slot in range(inflight)]

        async def write() -> None:
            buffer = buffers.pop()
            await self.send(source)
            await self.receive(buffer)
            buffers.append(buffer)

        await run_workers(inflight, count, write)

    async def serve_awaits(self, inflight: int, count: int) -> None:
        inflight = min(inflight, 64)
        buffers = [self.dst[64 * slot : 64 * slot + 8] for slot in range(inflight)]

        async def answer() -> None:
            buffer = buffers.pop()
            await self.receive(buffer)
            await self.send(buffer)
            buffers.append(buffer)

        await run_workers(inflight, count, answer)

    async def poke(self) -> None:
        await self.send(self.one)

    async def take_poke(self) -> None:
        await self.receive(self.one)


if __name__ == "__main__":
    main(UcxxSide)
