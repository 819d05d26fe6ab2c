# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Check an installed package, away from its checkout.

Import it, find its headers, and move bytes over loopback.
"""

import asyncio
import platform
from pathlib import Path

import pplx_async

CHECKOUT = Path(__file__).parents[1]


async def main() -> None:
    """Write 4 KiB from one engine to another, and look."""
    source, target = bytearray(b"pplx" * 1024), bytearray(4096)
    async with (
        pplx_async.TransferEngine(fabric="loopback") as sender,
        pplx_async.TransferEngine(fabric="loopback") as receiver,
    ):
        local = await sender.register(source)
        remote = await receiver.register(target)
        counter = receiver.counter()
        peer = await sender.connect(receiver.address)
        await sender.write(local, peer.region(remote.to_bytes()), counter=peer.counter(counter.to_bytes()))
        await counter.wait(1)
    assert target == source


assert not Path(pplx_async.__file__).is_relative_to(CHECKOUT), "the checkout itself was imported"
assert (Path(pplx_async.get_include()) / "pplx_async" / "provider.h").is_file()
asyncio.run(main())
print(f"smoke: pplx_async {pplx_async.__version__} on Python {platform.python_version()} moves bytes")
