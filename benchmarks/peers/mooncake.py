# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Mooncake's transfer engine, protocol tcp, with its notifications.

They are polled; between two polls the thread yields, as Mooncake's own examples sleep. There is no
asyncio API: what a user can write is a loop of polls.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mooncake import engine

from benchmarks.peers.driver import main
from benchmarks.peers.side import TOTAL, Places, Side, run_workers
from pplx_async.cli.bench.works import Work

# Longer ones end with EFAULT (0.3.13).
_MAX_BATCH = 1024


def _check(good: bool, call: str) -> None:
    if not good:
        raise RuntimeError(f"{call} failed")  # it gives no reason: -1 for all


class MooncakeSide(Side):
    """Variants: tcp."""

    def info(self) -> Any:
        self.provider = "Mooncake tcp"
        self.engine = engine.TransferEngine()
        _check(self.engine.initialize("127.0.0.1", "P2PHANDSHAKE", "tcp", "") == 0, "initialize")
        for array in (self.src, self.dst):
            _check(self.engine.register_memory(array.ctypes.data, TOTAL) == 0, "register_memory")
        return self.engine.get_rpc_port(), self.dst.ctypes.data

    def connect(self, other: Any) -> None:
        port, self.remote = other
        self.target = f"127.0.0.1:{port}"
        self.local = self.src.ctypes.data

    def write(self, nbytes: int, message: str) -> None:
        """Write and notify; return when it is done."""
        result = self.engine.transfer_sync(
            self.target,
            self.local,
            self.remote,
            nbytes,
            engine.TransferOpcode.Write,
            engine.TransferNotify("bench", message),
        )
        _check(result == 0, "transfer_sync")

    def take_notification(self) -> None:
        while not self.engine.get_notifies():
            time.sleep(0)

    def submit(self, src: int, dst: int, nbytes: int) -> int:
        batch = self.engine.transfer_submit_write(self.target, self.local + src, self.remote + dst, nbytes)
        _check(batch > 0, "transfer_submit_write")
        return int(batch)

    def ping(self, nbytes: int, count: int) -> list[float]:
        times = []
        for _ in range(count):
            began = time.perf_counter()
            self.write(nbytes, "ping")
            self.take_notification()
            times.append(time.perf_counter() - began)
        return times

    def pong(self, nbytes: int, count: int) -> None:
        for _ in range(count):
            self.take_notification()
            self.write(nbytes, "pong")

    def write_all(self, work: Work, places: Places) -> None:
        if work.name == "stream":
            self.stream(work, places)
        else:
            # A batch for each region.
            for first in range(work.targets):
                row = places[first :: work.targets]
                for start in range(0, len(row), _MAX_BATCH):
                    self.write_batch(work.nbytes, row[start : start + _MAX_BATCH])
        self.poke()
        self.take_notification()

    def write_batch(self, nbytes: int, places: Places) -> None:
        sources, targets = [self.local + src for src, _ in places], [self.remote + dst for _, dst in places]
        result = self.engine.batch_transfer_sync_write(self.target, sources, targets, [nbytes] * len(places))
        _check(result == 0, "batch_transfer_sync_write")

    def stream(self, work: Work, places: Places) -> None:
        live: list[int] = []
        left = iter(places)
        while True:
            while len(live) < work.inflight and (place := next(left, None)):
                live.append(self.submit(*place, work.nbytes))
            if not live:
                return
            states = [self.engine.transfer_check_status(batch) for batch in live]
            _check(min(states) >= 0, "a transfer")
            live = [batch for batch, state in zip(live, states, strict=True) if state == 0]

    def take_all(self, work: Work, places: Places) -> None:
        self.take_notification()
        self.poke()

    async def await_all(self, inflight: int, count: int) -> None:
        slots = list(range(inflight))

        async def write() -> None:
            slot = slots.pop()
            batch = self.submit(64 * slot, 64 * slot, 8)
            while (state := self.engine.transfer_check_status(batch)) == 0:  # noqa: ASYNC110 - it has nothing that wakes us
                await asyncio.sleep(0)
            _check(state == 1, "a transfer")
            slots.append(slot)

        await run_workers(inflight, count, write)
        self.poke()

    def serve_awaits(self, inflight: int, count: int) -> None:
        self.take_notification()

    def poke(self) -> None:
        self.write(8, "poke")

    def take_poke(self) -> None:
        self.take_notification()


if __name__ == "__main__":
    main(MooncakeSide)
