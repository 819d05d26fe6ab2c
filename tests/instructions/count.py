# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""So many writes of 64 bytes in one process, for counting instructions: many tasks, one await after another.

The event loop turns the engine itself and never spins, so that nothing depends on times or other threads; and
no garbage is collected, since whom that falls on depends on what was allocated long before.
"""

import asyncio
import gc
import sys

from pplx_async import TransferEngine

TASKS, WRITES = 1024, int(sys.argv[1])


async def main():
    options = {"fabric": "loopback", "progress": "loop", "spin": 0, "heartbeat_interval": 0, "peer_timeout": 999}
    async with TransferEngine(**options) as a, TransferEngine(**options) as b:
        accepting = asyncio.create_task(b.accept())
        to_b, to_a = await a.connect(b.address), await accepting
        for engine in (a, b):
            engine._core.at_once_ns = 1 << 60  # counted instructions take far longer than others
        source = await a.register(bytearray(64), access="none")
        target = await b.register(bytearray(64), access="write")
        counter = b.counter(peer=to_a)
        remote, remote_counter = to_b.region(target.to_bytes()), to_b.counter(counter.to_bytes())

        async def write_some():
            for _ in range(WRITES // TASKS):
                await a.write(source, remote, counter=remote_counter)

        await asyncio.gather(*(write_some() for _ in range(TASKS)))
        await counter.wait(WRITES)


gc.disable()
asyncio.run(main())
