# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Give transfers a structure: one fails, the scope cancels the others, and all memory is free again.

Run: python examples/scope.py [fabric]     (default: loopback, which needs no library)
"""

import asyncio
import sys

from pplx_async import BrokenResourceError, RemoteAccessError, TransferEngine

FABRIC = sys.argv[1] if len(sys.argv) > 1 else "loopback"
PART = 64 << 10


async def main():
    async with TransferEngine(fabric=FABRIC, name="from") as source, TransferEngine(fabric=FABRIC, name="to") as target:
        peer = await source.connect(target.address)
        data = bytearray(b"x" * 4 * PART)
        region = await source.register(data, access="none")
        parts = [region[n * PART : (n + 1) * PART] for n in range(4)]
        memory = [bytearray(PART) for _ in parts]
        regions = [await target.register(part, access="write") for part in memory]
        remotes = [peer.region(one.to_bytes()) for one in regions]

        # All is well: the block is left when every write has landed.
        async with source.scope() as scope:
            for part, remote in zip(parts, remotes, strict=True):
                scope.write(part, remote)
        assert all(part == b"x" * PART for part in memory)

        # The target takes one region back. Its writes are refused, here or by the peer's NIC.
        await regions[2].revoke()
        failures = []
        try:
            async with source.scope() as scope:
                for part, remote in zip(parts, remotes, strict=True):
                    scope.write(part, remote)
        except* (BrokenResourceError, RemoteAccessError) as group:
            failures = group.exceptions

        # However the block ended, no NIC reads `data` any more: it may be changed or freed.
        data[:] = b"y" * len(data)
        assert len(failures) == 1
        assert memory[2] == b"x" * PART
        print(f"4 writes landed; then 1 of 4 failed over {source.explain().fabric}: {type(failures[0]).__name__}")


asyncio.run(main())
