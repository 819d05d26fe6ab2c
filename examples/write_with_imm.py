# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Write into a peer's memory while the peer only awaits its counter.

Run: python examples/write_with_imm.py [fabric]     (default: loopback, which needs no library)
"""

import asyncio
import os
import sys

import pplx_async

FABRIC = sys.argv[1] if len(sys.argv) > 1 else "loopback"
CHUNKS, CHUNK_NBYTES = 128, 4096


async def main():
    async with (
        pplx_async.TransferEngine(fabric=FABRIC, name="receiver") as receiver,
        pplx_async.TransferEngine(fabric=FABRIC, name="sender") as sender,
    ):
        to_receiver = await sender.connect(receiver.address)
        from_sender = await receiver.accept()

        # The receiver registers memory that its peers may write, and a counter of what has landed.
        # It is bound to the sender: should that die, the wait below ends with PeerLost.
        target = bytearray(CHUNKS * CHUNK_NBYTES)
        target_region = await receiver.register(target, access="write")
        counter = receiver.counter(peer=from_sender)

        # Two descriptors, plain bytes, are all that the sender needs. They may travel by any means.
        remote = to_receiver.region(target_region.to_bytes())
        remote_counter = to_receiver.counter(counter.to_bytes())

        # Each write carries an immediate that counts 1 at the receiver when its bytes have landed.
        source = os.urandom(len(target))
        region = await sender.register(source, access="none")
        for start in range(0, len(source), CHUNK_NBYTES):
            chunk = slice(start, start + CHUNK_NBYTES)
            sender.write(region[chunk], remote[chunk], counter=remote_counter)

        await counter.wait(CHUNKS)  # in whatever order they arrived
        assert target == source
        print(f"{counter.value} writes of {CHUNK_NBYTES} B have landed over {sender.explain().fabric}, all bytes right")


asyncio.run(main())
