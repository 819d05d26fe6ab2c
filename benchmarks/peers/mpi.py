# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""mpi4py on MPICH: MPI_Put and MPI_Win_flush.

MPI has no put that notifies: the target spins on a counter, which a second put raises. There is no
asyncio API, and nothing to sleep on.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from mpi4py import MPI

from benchmarks.peers.driver import main
from benchmarks.peers.side import FLAG, TOTAL, Places, Side
from pplx_async.cli.bench.works import Work


class MpiSide(Side):
    """Variants: window (memory that MPI allocates, shared between ranks of a host), own (the user's)."""

    has_awaits = False

    def info(self) -> Any:
        self.provider = f"MPICH, {'its memory' if self.variant == 'window' else 'own memory'}"
        self.sequence, self.taken = np.zeros(1, np.int64), 0

    def connect(self, other: Any) -> None:
        # Collective, so both sides must have come here.
        if self.variant == "window":
            self.window = MPI.Win.Allocate(TOTAL, 1, comm=MPI.COMM_WORLD)
            self.dst = np.frombuffer(self.window.tomemory(), np.uint8)
            self.dst[:] = 0
        else:
            self.window = MPI.Win.Create(self.dst, 1, comm=MPI.COMM_WORLD)
        self.flag = self.dst[FLAG : FLAG + 8].view(np.int64)
        self.window.Lock_all()
        self.peer = 1 - self.rank

    def notify(self) -> None:
        self.sequence[0] += 1
        self.window.Put(self.sequence, self.peer, FLAG)
        self.window.Flush(self.peer)

    def take(self) -> None:
        self.taken += 1
        while self.flag[0] < self.taken:
            self.window.Sync()
            MPI.COMM_WORLD.Iprobe()  # makes progress where a transport needs that

    def write(self, nbytes: int) -> None:
        self.window.Put(self.src[:nbytes], self.peer, 0)
        self.window.Flush(self.peer)
        self.notify()

    def ping(self, nbytes: int, count: int) -> list[float]:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            self.write(nbytes)
            self.take()
            times.append(time.perf_counter() - began)
        return times

    def pong(self, nbytes: int, count: int) -> None:
        for _ in range(count):
            self.take()
            self.write(nbytes)

    def write_all(self, work: Work, places: Places) -> None:
        for number, (src, dst) in enumerate(places, 1):
            self.window.Put(self.src[src : src + work.nbytes], self.peer, dst)
            if number % work.inflight == 0:
                self.window.Flush(self.peer)
        self.window.Flush(self.peer)
        self.notify()
        self.take()

    def take_all(self, work: Work, places: Places) -> None:
        self.take()
        self.notify()

    def poke(self) -> None:
        self.notify()

    def take_poke(self) -> None:
        self.take()

    def close(self) -> None:
        self.window.Unlock_all()
        self.window.Free()
        MPI.Finalize()


if __name__ == "__main__":
    main(MpiSide)
