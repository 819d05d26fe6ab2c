# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two engines write 8 bytes into each other in turn, and time the round trip.

Run: python examples/ping_pong.py [fabric]     (default: loopback, which needs no library)
"""

import asyncio
import statistics
import struct
import sys
import time

from pplx_async import TransferEngine

FABRIC = sys.argv[1] if len(sys.argv) > 1 else "loopback"
ROUNDS = 1000


class Side:
    """One player: a ball to write from, a ball that is written, and a counter of its arrivals."""

    def __init__(self, engine, peer):
        self.engine, self.peer = engine, peer
        self.outgoing, self.incoming = bytearray(8), bytearray(8)
        self.counter = engine.counter(peer=peer)

    async def open(self):
        self.source = await self.engine.register(self.outgoing, access="none")
        self.target = await self.engine.register(self.incoming, access="write")

    def meet(self, other):
        self.remote = self.peer.region(other.target.to_bytes())
        self.remote_counter = self.peer.counter(other.counter.to_bytes())

    async def hit(self, number):
        struct.pack_into("<Q", self.outgoing, 0, number)
        await self.engine.write(self.source, self.remote, counter=self.remote_counter)

    async def catch(self, number):
        await self.counter.wait(number)
        return struct.unpack_from("<Q", self.incoming)[0]


async def answer(side):
    for number in range(1, ROUNDS + 1):
        await side.hit(await side.catch(number))


async def main():
    async with TransferEngine(fabric=FABRIC, name="ping") as ping, TransferEngine(fabric=FABRIC, name="pong") as pong:
        a = Side(ping, await ping.connect(pong.address))
        b = Side(pong, await pong.accept())
        await asyncio.gather(a.open(), b.open())
        a.meet(b)
        b.meet(a)

        answering = asyncio.create_task(answer(b))
        times = []
        for number in range(1, ROUNDS + 1):
            started = time.perf_counter()
            await a.hit(number)
            assert await a.catch(number) == number
            times.append(time.perf_counter() - started)
        await answering
        median = statistics.median(times) * 1e6
        print(f"{ROUNDS} round trips over {ping.explain().fabric}, every ball came back; median {median:.0f} us")


asyncio.run(main())
