# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One of two engines, on a GPU of its own or on the same one; and what the target does while the leader measures.

Each has memory on its GPU, a page of the host's that the other one writes in place, and two counters: of what was
written, and of what is for gates alone, since a gate takes what it waits for. A target that is ready, or has seen
something, says so by a write of 8 B that counts at the leader.
"""

from __future__ import annotations

import ctypes
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu.cuda import Cuda, Gpu, Words
from benchmarks.gpu.stamps import Stamps
from pplx_async import Peer, TransferEngine

__all__ = ["ANSWER", "LANDED", "OUTGOING", "Given", "Side", "pause"]

# Bytes of the page: what a doorbell sends, where it lands, where answers do.
OUTGOING, LANDED, ANSWER = slice(0, 8), slice(64, 72), slice(128, 136)
_PAGE = 4096
_PAUSES_NS = 20_000, 60_000
_random = random.Random(1)


@dataclass(frozen=True)
class Given:
    """What a side is made of.

    Attributes
    ----------
    library : str
        The libcuda.
    kernels, stamps : str
        Files that ``build.sh`` makes.
    ordinal : int
        Of the GPU.
    wakeup : str
        As in `EngineOptions`.
    arena_nbytes : int
        Memory on the GPU.
    """

    library: str
    kernels: str
    stamps: str
    ordinal: int
    wakeup: str
    arena_nbytes: int


def pause() -> None:
    """Until a stream has come to where it waits: without the loop, for a timer of its takes a millisecond."""
    # And then for a random time: a GPU looks at a stream that waits only now and then, so after pauses of one length it
    # would always be as soon, by luck. In c/works.c as well.
    end = time.monotonic_ns() + _random.uniform(*_PAUSES_NS)
    while time.monotonic_ns() < end:
        pass


class Side:
    """An engine with its memory; `open` first, then one of a pair calls `connect` and the other one `accept`."""

    def __init__(self, given: Given) -> None:
        self.cuda = Cuda(given.library)
        self.gpu = Gpu(self.cuda, given.ordinal, Path(given.kernels))
        self.words = Words(self.cuda)
        self.stream, self.other_stream = self.gpu.streams
        self.memory = self.gpu.array(given.arena_nbytes)
        self.engine = TransferEngine(fabric="ipc", wakeup=given.wakeup, cuda_library=given.library, drain_timeout=5.0)
        self._stamps = Path(given.stamps)
        self._stamping: list[Stamps] = []
        self.written = self.gated = 0

    async def open(self) -> str:
        """Open the engine; return its address."""
        await self.engine.open()
        self.page = self.engine.empty(_PAGE)
        # Which pins the words that streams and the engine share: no call may do that while a stream waits.
        for stream in (self.stream, self.other_stream):
            await self.engine.reached(stream)
        self.region, self.host = await self.engine.register(self.memory), await self.engine.register(self.page)
        self.counter, self.gates = self.engine.counter(), self.engine.counter()
        for name in ("region", "host", "counter", "gates"):
            self.engine.publish(name, getattr(self, name))
        return self.engine.address

    async def connect(self, address: str) -> None:
        """Connect to the other one."""
        await self._meet(await self.engine.connect(address))

    async def accept(self) -> None:
        """Be connected to."""
        await self._meet(await self.engine.accept())

    async def _meet(self, peer: Peer) -> None:
        self.remote, self.remote_host = await peer.lookup("region"), await peer.lookup("host")
        self.remote_counter = await peer.lookup_counter("counter")
        self.remote_gates = await peer.lookup_counter("gates")

    async def close(self) -> None:
        """Close the engine."""
        for stamps in self._stamping:
            stamps.stop()
        await self.engine.close()

    def stamps(self, address: int, count: int) -> Stamps:
        """Have a word of the host's watched."""
        (stamps,) = self.stamp_all([address], count)
        return stamps

    def stamp_all(self, addresses: Sequence[int], count: int) -> Sequence[Stamps]:
        """Have several watched, each by a thread of its own."""
        self._stamping = [Stamps(self._stamps, address, count) for address in addresses]
        return self._stamping

    def queue_store(self, word: int, value: int, stream: int) -> None:
        """Queue the kernel that writes one of `words`."""
        address = ctypes.c_uint64(self.words.device_address(word))
        self.gpu.store.launch(1, 1, stream, address, ctypes.c_uint64(value))

    # ---- what the target is asked for ----

    async def answer(self) -> None:
        """Count 1 at the leader."""
        await self.engine.write(self.host[ANSWER], self.remote_host[ANSWER], counter=self.remote_counter)

    async def open_gate(self) -> None:
        """Count 1 at the leader's counter for gates."""
        await self.engine.write(self.host[ANSWER], self.remote_host[ANSWER], counter=self.remote_gates)

    async def take_each(self, count: int) -> list[int]:
        """See so many writes, one at a time, and answer each; return when, in nanoseconds."""
        stamps = []
        await self.answer()
        for number in range(self.written + 1, self.written + count + 1):
            await self.counter.wait(number)
            stamps.append(time.monotonic_ns())
            await self.answer()
        self.written += count
        return stamps

    async def take_all(self, count: int) -> None:
        """See so many writes."""
        self.written += count
        await self.counter.wait(self.written)

    async def run_gated(self, count: int) -> list[int]:
        """Run a kernel behind a gate, so many times; return when the host saw its store."""
        self.words[0] = 0
        stamps = self.stamps(self.words.address(0), count)
        await self._open_gates(count)
        return await stamps.wait()

    async def run_gate(self, count: int) -> tuple[list[int], list[int]]:
        """Do the same; return when it saw the bytes of each write, the numbers 1, 2, ..., and then when that store."""
        self.words[0] = 0
        self.page[OUTGOING] = 0
        places = int(self.page.ctypes.data) + OUTGOING.start, self.words.address(0)
        landed, stored = self.stamp_all(places, count)
        await self._open_gates(count)
        return await landed.wait(), await stored.wait()

    async def _open_gates(self, count: int) -> None:
        for number in range(1, count + 1):
            gate = self.gates.gate(self.stream, 1)
            self.queue_store(0, number, self.stream)
            await self.answer()
            await gate

    async def see_landed(self, count: int) -> list[int]:
        """See the numbers that a doorbell sends; return when."""
        self.page[LANDED] = 0
        stamps = self.stamps(int(self.page.ctypes.data) + LANDED.start, count)
        await self.answer()
        return await stamps.wait()

    async def checksum(self, pieces: Sequence[tuple[int, int]]) -> int:
        """Sum up what lies in these (start, number of bytes) on the GPU."""
        total = 0
        for start, nbytes in pieces:
            total = zlib.crc32(self.memory.get(start, nbytes).data, total)
        return total

    async def fill(self, seed: int) -> None:
        """Put bytes on the GPU that differ from place to place and from seed to seed."""
        numbers = np.arange(seed, seed + self.memory.nbytes // 8, dtype=np.uint64)
        self.memory.set(numbers * np.uint64(0x9E3779B97F4A7C15))
