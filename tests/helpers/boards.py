# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two engines, a counter, and a stream of CUDA's on each side."""

from __future__ import annotations

import numpy as np

from helpers.cuda import DeviceStream
from helpers.engines import eventually
from pplx_async import TransferEngine

__all__ = ["NBYTES", "PAGE", "Board", "HostBoard", "check_shuffled_pages"]

NBYTES = 1 << 16
PAGE = 4096


class Board:
    """a writes GPU memory into GPU memory of b, counted; a stream of each side."""

    def __init__(self, pair, device):
        self.pair, self.device = pair, device
        self.a, self.b = pair.a, pair.b

    async def open(self):
        device = self.device
        self.ours, self.theirs, self.copy = device.zeros(NBYTES), device.zeros(NBYTES), device.zeros(NBYTES)
        self.source = await self.a.register(self.ours)
        self.target = await self.b.register(self.theirs)
        self.remote = self.pair.ab.region(self.target.to_bytes())
        self.counter, self.remote_counter = self.pair.counter()
        self.sends, self.receives = DeviceStream(device), DeviceStream(device)
        return self

    def write(self, **options):
        return self.a.write(self.source, self.remote, counter=self.remote_counter, **options)

    async def hand_over(self):
        """Have one stream wait in a gate for what is written after the other one."""
        gate = self.counter.gate(self.receives, 1)
        await self.write(after=self.sends)
        await gate
        await self.idle(self.receives, self.sends)

    async def idle(self, *streams):
        for stream in streams:
            await eventually(lambda stream=stream: stream.is_idle, "the stream comes to rest")

    def close(self):
        self.sends.close()
        self.receives.close()


class HostBoard(Board):
    """The same with regions of the host's: the streams are CUDA's all the same."""

    async def open(self):
        self.source = await self.pair.source(64)
        target = await self.pair.target(64)
        self.array, self.remote = target.array, target.remote
        self.counter, self.remote_counter = self.pair.counter()
        self.sends, self.receives = DeviceStream(self.device), DeviceStream(self.device)
        return self


async def check_shuffled_pages(library, first, content, pairs):
    """Write ``content`` from one array to another, in another order, each pair by two engines of this process.

    ``first`` lies on the GPU and in the context where they work.
    """
    pages = len(content) // PAGE
    order = np.random.default_rng(2).permutation(pages)
    expected = np.frombuffer(content, dtype=np.uint8).reshape(pages, PAGE)[order].tobytes()
    async with (
        TransferEngine(fabric="ipc", cuda_library=library) as a,
        TransferEngine(fabric="ipc", cuda_library=library) as b,
    ):
        peer = await a.connect(b.address)
        for source, target in pairs:
            async with await a.register(first), await a.register(source) as local, await b.register(target) as region:
                target.set(bytes(len(content)))
                await a.write_pages(
                    local,
                    peer.region(region.to_bytes()),
                    page_nbytes=PAGE,
                    local_pages=order,
                    remote_pages=np.arange(pages),
                )
                assert target.get() == expected
