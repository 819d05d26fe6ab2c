# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""torch.distributed with NCCL: send and recv between two ranks, each on a GPU of its own.

python -m benchmarks.gpu.nccl RANK STORE [--quick] [--on cpu]

Rank 0 prints a line of JSON for each repetition. There is no one-sided write and no asyncio API: a time is half of a
round trip, until the host knows; a rate is that of a batch of sends. ``--on cpu`` is gloo, to try this file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from benchmarks.gpu.rank import KEYS, parse
from benchmarks.gpu.works import find, shrink, summary
from pplx_async.cli.bench.rows import make_line
from pplx_async.cli.bench.works import Work


class Rank:
    """One of the two."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rank, self.on = options.rank, options.on
        if self.on == "cuda":
            torch.cuda.set_device(self.rank)
        backend = "nccl" if self.on == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{options.store}", rank=self.rank, world_size=2)

    def synchronize(self) -> None:
        """Wait until the host knows that all is done."""
        if self.on == "cuda":
            torch.cuda.synchronize()

    def write(self, work: Work) -> dict[str, float]:
        """Half round trips."""
        buffer = torch.full((work.nbytes,), self.rank, dtype=torch.uint8, device=self.on)
        samples = []
        for _ in range(work.count):
            began = time.monotonic_ns()
            first, second = (dist.send, dist.recv) if self.rank == 0 else (dist.recv, dist.send)
            first(buffer, 1 - self.rank)
            second(buffer, 1 - self.rank)
            self.synchronize()
            samples.append((time.monotonic_ns() - began) / 2e3)
        return summary(samples)

    def stream(self, work: Work) -> dict[str, float]:
        """Send from one to the other, ``inflight`` buffers in a batch."""
        buffers = [torch.empty(work.nbytes, dtype=torch.uint8, device=self.on) for _ in range(work.inflight)]
        call = dist.isend if self.rank == 0 else dist.irecv
        dist.barrier()
        self.synchronize()
        began = time.monotonic_ns()
        for _ in range(work.count // work.inflight):
            for request in dist.batch_isend_irecv([dist.P2POp(call, buffer, 1 - self.rank) for buffer in buffers]):
                request.wait()
        self.synchronize()
        seconds = (time.monotonic_ns() - began) / 1e9
        return {"value": work.count // work.inflight * work.inflight * work.nbytes / seconds / 1e9}


def main() -> None:
    """Do all works."""
    options = parse(__doc__, "a file that both can write, and that does not exist yet")
    rank = Rank(options)
    for work in (shrink(find(key)) if options.quick else find(key) for key in KEYS):
        do: Callable[[Work], dict[str, float]] = getattr(rank, work.name)
        do(work)
        for run in range(1, options.runs + 1):
            measured = do(work)
            about = {"name": "nccl", "provider": "nccl", "wait": "poll", "run": run, "runs": options.runs}
            if rank.rank == 0:
                print(json.dumps(make_line(work, about, measured)), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
