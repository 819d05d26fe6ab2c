# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Ping-pong between two queue pairs, on libibverbs alone: each player is ``async for completion in queue``.

A hit is a write with an immediate into the other one's memory, which tells nobody but that queue.

Run: python examples/verbs_ping_pong.py [device [other device]]    (default: the first, and itself)
"""

import asyncio
import sys

from pplx_async import verbs

ROUNDS = 100
NUMBERS = [number.to_bytes(8, "little") for number in range(2 * ROUNDS + 1)]


class Player:
    """One end: memory that the other one writes to, and a queue pair to write to his."""

    def __init__(self, device):
        self.context = verbs.open(device)
        domain = self.context.protection_domain()
        self.queue = self.context.completion_queue()
        self.pair = domain.queue_pair(self.queue)
        self.court = bytearray(8)
        self.landing = domain.register(self.court)
        self.balls = domain.register(b"".join(NUMBERS))  # one for each hit: none may change while it is on its way
        self.pair.recv_nowait()  # an immediate takes a receive, that has to be there before

    def invite(self):
        """What the other one has to know, as bytes that travel by any means."""
        return self.pair.address.to_bytes(), self.landing.remote.to_bytes()

    def meet(self, address, landing):
        self.pair.connect(address)
        self.target = verbs.RemoteMemory.from_bytes(landing)

    async def hit(self, number):
        await self.pair.write(self.balls[number * 8 : number * 8 + 8], self.target, imm=number)

    async def play(self):
        """Return what comes until the last one has passed here."""
        async for completion in self.queue:
            completion.raise_for_error()
            if completion.operation == "remote_write":
                number = completion.imm
                assert bytes(self.court) == NUMBERS[number]
                if number < 2 * ROUNDS:
                    self.pair.recv_nowait()
                    await self.hit(number + 1)
                if number >= 2 * ROUNDS - 1:
                    break
        return number


async def main(one, other):
    a, b = Player(one), Player(other)
    async with a.context, b.context:
        a.meet(*b.invite())
        b.meet(*a.invite())
        await a.hit(1)
        assert sorted(await asyncio.gather(a.play(), b.play())) == [2 * ROUNDS - 1, 2 * ROUNDS]
    print(f"{ROUNDS} rounds of ping-pong over verbs between {a.context.device} and {b.context.device}")


devices = sys.argv[1:] or verbs.devices()[:1]
asyncio.run(main(devices[0], devices[-1]))
