# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""torch.distributed with gloo: isend and irecv of CPU tensors, of which the target knows the order.

There is no asyncio API.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.peers.driver import main
from benchmarks.peers.side import Places, Side
from pplx_async.cli.bench.works import Work


class GlooSide(Side):
    """Variants: tcp."""

    provider = "gloo tcp"
    wait = "thread"
    has_awaits = False

    def info(self) -> Any:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        torch.set_num_threads(1)
        if self.rank == 0:
            return None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        return self.port

    def connect(self, other: Any) -> None:
        # Collective, so both sides must have come here.
        address = f"tcp://127.0.0.1:{self.port if self.rank else other}"
        dist.init_process_group("gloo", init_method=address, rank=self.rank, world_size=2)
        self.source, self.target = torch.from_numpy(self.src), torch.from_numpy(self.dst)
        self.one = torch.zeros(8, dtype=torch.uint8)
        self.peer = 1 - self.rank

    def ping(self, nbytes: int, count: int) -> list[float]:
        source, target, times = self.source[:nbytes], self.target[:nbytes], []
        for _ in range(count):
            began = time.perf_counter()
            dist.send(source, self.peer)
            dist.recv(target, self.peer)
            times.append(time.perf_counter() - began)
        return times

    def pong(self, nbytes: int, count: int) -> None:
        source, target = self.source[:nbytes], self.target[:nbytes]
        for _ in range(count):
            dist.recv(target, self.peer)
            dist.send(source, self.peer)

    def write_all(self, work: Work, places: Places) -> None:
        self.run_all(work, [src for src, _ in places], self.source, dist.isend)
        dist.recv(self.one, self.peer)

    def take_all(self, work: Work, places: Places) -> None:
        self.run_all(work, [dst for _, dst in places], self.target, dist.irecv)
        dist.send(self.one, self.peer)

    def run_all(self, work: Work, offsets: list[int], tensor: torch.Tensor, start: Callable[..., Any]) -> None:
        live: list[Any] = []
        for offset in offsets:
            if len(live) == work.inflight:
                live.pop(0).wait()
            live.append(start(tensor[offset : offset + work.nbytes], self.peer))
        for operation in live:
            operation.wait()

    def poke(self) -> None:
        dist.send(self.one, self.peer)

    def take_poke(self) -> None:
        dist.recv(self.one, self.peer)


if __name__ == "__main__":
    main(GlooSide)
