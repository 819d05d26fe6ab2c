# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Ask a service for data by message; it answers by writing into the asker's memory, one-sided.

Run: python examples/messages.py [fabric]     (default: loopback, which needs no library)
"""

import asyncio
import json
import sys

from pplx_async import TransferEngine

FABRIC = sys.argv[1] if len(sys.argv) > 1 else "loopback"
BOOKS = {"alpha": b"first letter " * 1000, "omega": b"last letter " * 2000}


async def serve(engine):
    """Answer requests until the engine is closed. A request says where its answer is to be written."""
    shelves = {name: await engine.register(text, access="none") for name, text in BOOKS.items()}
    async for message in engine.messages():
        request = json.loads(message.data)
        remote = message.peer.region(bytes.fromhex(request["region"]))
        counter = message.peer.counter(bytes.fromhex(request["counter"]))
        book = shelves[request["book"]]
        await engine.write(book, remote[: book.nbytes], counter=counter)


async def fetch(engine, service, name):
    """Ask for a book and wait until it is in our memory."""
    memory = bytearray(32_000)
    async with await engine.register(memory, access="write") as region, engine.counter(peer=service) as counter:
        request = {"book": name, "region": region.to_bytes().hex(), "counter": counter.to_bytes().hex()}
        await service.send(json.dumps(request).encode())
        await counter.wait(1)
    return bytes(memory).rstrip(b"\0")


async def main():
    async with TransferEngine(fabric=FABRIC, name="library") as library:
        serving = asyncio.create_task(serve(library))
        async with TransferEngine(fabric=FABRIC, name="reader") as reader:
            service = await reader.connect(library.address)
            alpha, omega = await asyncio.gather(fetch(reader, service, "alpha"), fetch(reader, service, "omega"))
            assert {"alpha": alpha, "omega": omega} == BOOKS
            print(
                f"asked by message, got {len(alpha) + len(omega)} B by write over {reader.explain().fabric}, all right"
            )
    await serving  # its loop over messages ended when the engine was closed


asyncio.run(main())
