# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Move scattered pages, as of a KV cache, in one request: page i here to page j there.

Run: python examples/pages.py [fabric]     (default: loopback, which needs no library)
"""

import asyncio
import random
import sys

from pplx_async import TransferEngine

FABRIC = sys.argv[1] if len(sys.argv) > 1 else "loopback"
PAGE, SLOTS, MOVED = 1024, 4096, 3000
HEADER = 64  # the receiver keeps a header of its own before each page


async def main():
    random.seed(1)
    async with TransferEngine(fabric=FABRIC, name="from") as source, TransferEngine(fabric=FABRIC, name="to") as target:
        peer = await source.connect(target.address)
        pages = random.randbytes(SLOTS * PAGE)
        cache = bytearray(SLOTS * (HEADER + PAGE))
        region = await source.register(pages, access="none")
        cache_region = await target.register(cache, access="write")
        counter = target.counter(peer=await target.accept())

        # Any integer buffers will do for indices: lists, array.array, NumPy arrays.
        here = random.sample(range(SLOTS), MOVED)
        there = random.sample(range(SLOTS), MOVED)
        transfer = source.write_pages(
            region,
            peer.region(cache_region.to_bytes()),
            page_nbytes=PAGE,
            local_pages=here,
            remote_pages=there,
            remote_stride=HEADER + PAGE,
            remote_offset=HEADER,
            counter=peer.counter(counter.to_bytes()),
        )

        await counter.wait(MOVED)  # the counter counts pages, however few writes carried them
        expected = bytearray(len(cache))
        for i, j in zip(here, there, strict=True):
            start = j * (HEADER + PAGE) + HEADER
            expected[start : start + PAGE] = pages[i * PAGE : (i + 1) * PAGE]
        assert cache == expected
        print(
            f"{MOVED} pages, {await transfer} B, one await over {source.explain().fabric}; headers and gaps untouched"
        )


asyncio.run(main())
