# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two engines, a counter, and a stream of CUDA's on each side."""

from __future__ import annotations

from helpers.cuda import DeviceStream
from helpers.engines import eventually

__all__ = ["NBYTES", "Board", "HostBoard"]

NBYTES = 1 << 16


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
