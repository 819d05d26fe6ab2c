# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Scatter parts of one buffer to three workers in one request, then meet them all at a barrier.

Run: python examples/scatter_barrier.py [fabric]     (default: loopback, which needs no library)
"""

import asyncio
import sys
from contextlib import AsyncExitStack

from pplx_async import TransferEngine

FABRIC = sys.argv[1] if len(sys.argv) > 1 else "loopback"
WORKERS, PART = 3, 1000


async def work(engine, number, descriptors):
    """A worker: offer memory, wait for our part, turn it around, come to the barrier."""
    root = await engine.accept()
    memory = bytearray(PART)
    # access="both", the default: the root writes our part, and reads our result later.
    async with await engine.register(memory) as region, engine.counter(peer=root) as counter:
        descriptors[number].set_result((region.to_bytes(), counter.to_bytes()))
        group = await engine.group("workers", [root])
        await counter.wait(1)
        memory.reverse()
        await engine.barrier(group)  # says that we are through
        await engine.barrier(group)  # and this one, that the root has read what we made


async def main():
    async with AsyncExitStack() as stack:
        root = await stack.enter_async_context(TransferEngine(fabric=FABRIC, name="root"))
        engines = [
            await stack.enter_async_context(TransferEngine(fabric=FABRIC, name=f"worker {number}"))
            for number in range(WORKERS)
        ]
        offers = [asyncio.get_running_loop().create_future() for _ in engines]
        workers = [asyncio.create_task(work(engine, n, offers)) for n, engine in enumerate(engines)]
        peers = [await root.connect(engine.address) for engine in engines]
        groups = [await root.group("workers", [peer]) for peer in peers]

        data = bytearray(bytes(range(250)) * (WORKERS * PART // 250))
        region = await root.register(data)
        parts = [region[n * PART : (n + 1) * PART] for n in range(WORKERS)]
        targets = []
        for peer, part, offer in zip(peers, parts, offers, strict=True):
            remote, counter = await offer
            targets.append((part, peer.region(remote), peer.counter(counter)))
        await root.scatter(targets)

        await asyncio.gather(*(root.barrier(group) for group in groups))
        before = bytes(data)
        await asyncio.gather(*(root.read(remote, part) for part, remote, _ in targets))
        await asyncio.gather(*(root.barrier(group) for group in groups), *workers)
        for n in range(WORKERS):
            assert data[n * PART : (n + 1) * PART] == before[n * PART : (n + 1) * PART][::-1]
        print(f"{WORKERS} workers got {PART} B each over {root.explain().fabric} and turned them around, all right")


asyncio.run(main())
