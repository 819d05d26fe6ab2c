# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""UCXX's asyncio API between two processes, each with a GPU of its own, which UCX reaches by cuda_ipc.

python -m benchmarks.gpu.ucxx RANK STORE [--quick] [--on cpu]

Rank 0 prints a line of JSON for each repetition. Its Python layer has no one-sided put: a time is half of a round trip
of tagged messages, a rate that of ``inflight`` tasks which send. ``--on cpu`` takes arrays of the host's, to try this
file. STORE is where rank 1 leaves the port that it listens on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import ucxx

from benchmarks.gpu.cuda import Array, Cuda
from benchmarks.gpu.rank import KEYS, parse
from benchmarks.gpu.works import find, shrink, summary
from benchmarks.peers.side import run_workers
from pplx_async.cli.bench.rows import make_line
from pplx_async.cli.bench.works import Work

_PORT_SECONDS = 30


class Rank:
    """One of the two."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.rank, self.store, self.cuda = options.rank, Path(options.store), None
        if options.on == "cuda":
            self.cuda = Cuda()
            self.cuda("cuCtxSetCurrent", self.cuda.pointer("cuDevicePrimaryCtxRetain", self.rank))

    def buffer(self, nbytes: int) -> Any:
        """Memory to send from or to receive into."""
        return Array(self.cuda, nbytes) if self.cuda else np.zeros(nbytes, np.uint8)

    async def connect(self) -> None:
        """Meet the other one."""
        if self.rank == 1:
            accepted = asyncio.get_running_loop().create_future()
            self._listener = ucxx.create_listener(accepted.set_result)
            unfinished = self.store.with_suffix(".part")
            unfinished.write_text(str(self._listener.port))
            os.replace(unfinished, self.store)
            self._endpoint = await accepted
        else:
            self._endpoint = await ucxx.create_endpoint("127.0.0.1", await asyncio.to_thread(self._find_port))

    def _find_port(self) -> int:
        end = time.monotonic() + _PORT_SECONDS
        while not self.store.exists():
            if time.monotonic() > end:
                raise TimeoutError("rank 1 does not listen")
            time.sleep(0.01)
        return int(self.store.read_text())

    async def write(self, work: Work) -> dict[str, float]:
        """Half round trips."""
        outgoing, incoming, samples = self.buffer(work.nbytes), self.buffer(work.nbytes), []
        for _ in range(work.count):
            began = time.monotonic_ns()
            if self.rank == 0:
                await self._endpoint.send(outgoing)
                await self._endpoint.recv(incoming)
            else:
                await self._endpoint.recv(incoming)
                await self._endpoint.send(outgoing)
            samples.append((time.monotonic_ns() - began) / 2e3)
        return summary(samples)

    async def stream(self, work: Work) -> dict[str, float]:
        """Send from one to the other, and have the end of it told."""
        buffers, end = [self.buffer(work.nbytes) for _ in range(work.inflight)], self.buffer(8)
        call = self._endpoint.send if self.rank == 0 else self._endpoint.recv

        async def move() -> None:
            buffer = buffers.pop()
            await call(buffer)
            buffers.append(buffer)

        began = time.monotonic_ns()
        await run_workers(work.inflight, work.count, move)
        await (self._endpoint.recv(end) if self.rank == 0 else self._endpoint.send(end))
        return {"value": work.count * work.nbytes / ((time.monotonic_ns() - began) / 1e9) / 1e9}


async def run(options: argparse.Namespace) -> None:
    """Do all works."""
    ucxx.init(progress_mode="polling")
    rank = Rank(options)
    await rank.connect()
    for work in (shrink(find(key)) if options.quick else find(key) for key in KEYS):
        do = getattr(rank, work.name)
        await do(work)
        for number in range(1, options.runs + 1):
            measured = await do(work)
            about = {"name": "ucxx", "provider": f"UCX {options.on}", "wait": "poll"}
            about |= {"run": number, "runs": options.runs}
            if rank.rank == 0:
                print(json.dumps(make_line(work, about, measured)), flush=True)


def main() -> None:
    """Read the command line, and run."""
    options = parse(__doc__, "a file that both can write, and that does not exist yet")
    asyncio.run(run(options))
    os._exit(0)  # UCX may hang or crash in its exit handlers, when all is measured


if __name__ == "__main__":
    main()
