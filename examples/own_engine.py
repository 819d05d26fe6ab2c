# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A miniature engine of one's own, on libfabric's queue alone, between two processes.

Writes are awaited; the receiver counts what has landed, by the immediates.

Run: python examples/own_engine.py [provider]     (default: tcp; it needs a libfabric)
"""

import asyncio
import collections
import subprocess
import sys

from pplx_async import fabric

PROVIDER = sys.argv[1] if len(sys.argv) > 1 else "tcp"
PAGE, PAGES, COUNTER = 4096, 1000, 7


class Engine:
    """One task reads the queue, and wakes whoever waits for what it finds there."""

    async def __aenter__(self):
        self.domain = fabric.open(provider=PROVIDER)
        self.queue = self.domain.completion_queue()
        self.endpoint = self.domain.endpoint(self.queue)
        self.counts, self.counted = collections.Counter(), asyncio.Condition()
        self.reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *_):
        self.queue.close()  # which ends the iteration
        await self.reading
        self.domain.close()  # ... and everything that was made from it

    async def _read(self):
        async for completion in self.queue:
            if completion.operation == "remote_write":
                async with self.counted:
                    self.counts[completion.imm] += 1
                    self.counted.notify_all()
            elif not completion.context.done():  # it is if the await was cancelled
                if completion.error is None:
                    completion.context.set_result(completion.nbytes)
                else:
                    completion.context.set_exception(completion.error)

    async def write(self, local, peer, remote, counter):
        """Write, and wait until it is visible at the peer, whose counter then counts 1."""
        done = asyncio.get_running_loop().create_future()
        await self.endpoint.write(local, peer, remote, imm=counter, context=done)
        return await done

    async def wait(self, counter, count):
        """Wait until so many writes have landed here."""
        async with self.counted:
            await self.counted.wait_for(lambda: self.counts[counter] >= count)


async def send(address, memory):
    """The second process: write pages of 0, 1, 2 ... into the memory of the first one, all at once."""
    async with Engine() as engine:
        print(engine.endpoint.address.hex(), flush=True)
        sys.stdin.readline()  # both know the other's address from here on
        peer, remote = engine.domain.insert(address), fabric.RemoteMemory.from_bytes(memory)
        local = engine.domain.register(b"".join(bytes([page % 256]) * PAGE for page in range(PAGES)))
        pages = [slice(page * PAGE, (page + 1) * PAGE) for page in range(PAGES)]
        await asyncio.gather(*(engine.write(local[page], peer, remote[page], COUNTER) for page in pages))


async def receive():
    """The first process: offer memory, start the other one, count."""
    async with Engine() as engine:
        buffer = bytearray(PAGES * PAGE)
        memory = engine.domain.register(buffer, access="write")
        command = [sys.executable, __file__, PROVIDER, engine.endpoint.address.hex(), memory.remote.to_bytes().hex()]
        sender = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        engine.domain.insert(bytes.fromhex((await sender.stdout.readline()).decode()))
        await asyncio.gather(sender.communicate(b"go\n"), engine.wait(COUNTER, PAGES))
        assert all(buffer[page * PAGE : (page + 1) * PAGE] == bytes([page % 256]) * PAGE for page in range(PAGES))
        print(f"{PAGES} awaited writes from another process over {PROVIDER}, all counted and in place")


asyncio.run(send(*map(bytes.fromhex, sys.argv[2:])) if len(sys.argv) > 2 else receive())
