# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One of a peer's two processes. Rank 0 leads, and prints a line of JSON for each repetition.

    python -m benchmarks.peers.NAME --variant VARIANT --rank 0 --control ADDRESS

The two talk over a control connection, never inside a timed span: an abstract unix socket, which leaves
nothing behind, with the key that is in the environment. ``processes.py`` starts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import numpy as np

from benchmarks.peers.registry import KEY_VARIABLE
from benchmarks.peers.side import Side, call
from pplx_async.cli.bench.quiet import PAUSE, Load, Samples
from pplx_async.cli.bench.rows import make_line
from pplx_async.cli.bench.works import WORKS, Work, find, places

__all__ = ["main"]

Runner = Callable[[Coroutine[Any, Any, None]], None]

_CONNECT_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1


class PartnerEnded(Exception):
    """The other process is gone; why, it has said itself."""


class Control:
    """The connection between the two."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def send(self, value: object) -> None:
        """Send any value that can be pickled."""
        try:
            self._connection.send(value)
        except ConnectionError:
            raise PartnerEnded from None

    def receive(self) -> Any:
        """Wait for a value."""
        try:
            return self._connection.recv()
        except (EOFError, ConnectionError):
            raise PartnerEnded from None

    async def receive_while_running(self) -> Any:
        """Wait for a value, in a thread: the event loop may still have something to send."""
        return await asyncio.get_running_loop().run_in_executor(None, self.receive)


class Target:
    """Rank 1: does what rank 0 asks for."""

    def __init__(self, side: Side, control: Control) -> None:
        self.side, self.control = side, control

    async def run(self) -> None:
        """Serve requests until there are no more."""
        self.control.send((os.getpid(), await call(self.side.info)))
        await call(self.side.connect, self.control.receive())
        while True:
            method, arguments = await self.control.receive_while_running()
            if method == "close":
                break
            self.control.send("ready")
            if method == "measure_wait":
                self.control.send(await self.measure_wait())
            else:
                self.control.send(await call(getattr(self.side, method), *arguments))
        await call(self.side.close)

    async def measure_wait(self) -> float:
        """Wait for one message; return the processor time of this process, in percent of a core."""
        began, used = time.perf_counter(), time.process_time()
        await call(self.side.take_poke)
        return (time.process_time() - used) / (time.perf_counter() - began) * 100


class Leader:
    """Rank 0: does the works, and reports."""

    def __init__(self, side: Side, control: Control, options: argparse.Namespace) -> None:
        self.side, self.control, self.options = side, control, options

    async def run(self, works: Iterable[Work]) -> None:
        """Do every work that this peer can."""
        pid, other = self.control.receive()
        self.control.send(await call(self.side.info))
        await call(self.side.connect, other)
        self.load = Load([os.getpid(), pid])
        for work in works:
            if work.name != "awaits" or self.side.has_awaits:
                await getattr(self, work.name)(work)
        self.control.send(("close", ()))
        await call(self.side.close)

    async def both(self, mine: str, theirs: str, *arguments: Any) -> tuple[Any, float]:
        """Have both sides do their half; return our result, and how long our half took."""
        self.control.send((theirs, arguments))
        self.control.receive()
        began = time.perf_counter()
        result = await call(getattr(self.side, mine), *arguments)
        seconds = time.perf_counter() - began
        await self.control.receive_while_running()
        return result, seconds

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have rank 1 do something that is not timed."""
        self.control.send((method, arguments))
        self.control.receive()
        return self.control.receive()

    async def repeat(self, work: Work, once: Callable[[], Coroutine[Any, Any, dict[str, float]]]) -> None:
        """Measure repetitions, and print them."""
        samples: Samples[dict[str, float]] = Samples(self.options.runs, self.options.patience)
        while samples.wanted:
            if samples.disturbed:
                await asyncio.sleep(PAUSE)
            self.load.start()
            measured = await once()
            samples.add(self.load.cores(), measured)
        self.report(work, samples.best)

    def report(self, work: Work, samples: list[tuple[float, dict[str, float]]]) -> None:
        """Print a line for each repetition."""
        about = {"name": self.options.name, "provider": self.side.provider, "wait": self.side.wait}
        for run, (others, measured) in enumerate(samples, 1):
            counted = about | {"run": run, "runs": len(samples)}
            print(json.dumps(make_line(work, counted, {"others": round(others, 3), **measured})), flush=True)

    async def verified(self, work: Work, mine: str, theirs: str, *arguments: Any) -> None:
        """Do it once, untimed, and check what arrived."""
        self.ask("clear")
        await self.both(mine, theirs, *arguments)
        if not self.ask("verify", work):
            raise AssertionError(f"{work.key}: other bytes arrived than were sent")

    async def pingpong(self, work: Work) -> None:
        """Measure half round trips."""
        arguments = ("ping", "pong", work.nbytes, work.count)
        await self.verified(work, "ping", "pong", work.nbytes, min(work.count, 100))

        async def once() -> dict[str, float]:
            round_trips, _ = await self.both(*arguments)
            p50, p99 = (float(np.percentile(round_trips, p)) / 2 * 1e6 for p in (50, 99))
            return {"value": p50, "p50": p50, "p99": p99}

        await self.repeat(work, once)

    async def bulk(self, work: Work) -> None:
        """Measure many writes."""
        arguments = ("write_all", "take_all", work, places(work))
        await self.verified(work, *arguments)

        async def once() -> dict[str, float]:
            _, seconds = await self.both(*arguments)
            rate = work.count / seconds
            return {"value": rate * work.nbytes / 1e9 if work.unit == "GB/s" else rate / 1e3}

        await self.repeat(work, once)

    stream = pages = scatter = bulk

    async def awaits(self, work: Work) -> None:
        """Measure awaits a second."""
        arguments = ("await_all", "serve_awaits", work.inflight)
        await self.both(*arguments, max(64, work.inflight))

        async def once() -> dict[str, float]:
            _, seconds = await self.both(*arguments, work.count)
            return {"value": work.count / seconds / 1e3}

        await self.repeat(work, once)

    async def idle(self, work: Work) -> None:
        """Measure what waiting costs rank 1."""
        self.control.send(("measure_wait", ()))
        self.control.receive()
        self.load.start()
        await asyncio.sleep(self.options.idle_seconds)
        others = self.load.cores()
        await call(self.side.poke)
        self.report(work, [(others, {"value": await self.control.receive_while_running()})])


def _parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="peer", help="what the lines are to say")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--rank", type=int, default=int(os.environ.get("PMI_RANK", "0")))
    parser.add_argument("--control", required=True, help="name of the abstract socket, without its zero byte")
    parser.add_argument("--works", default=",".join(work.key for work in WORKS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--patience", type=float, default=2.0, help="seconds a work may take longer to be undisturbed")
    parser.add_argument("--idle-seconds", type=float, default=2.0)
    return parser.parse_args()


def _connect(address: str) -> Connection:
    """Reach rank 0, which may start later than we do."""
    end = time.monotonic() + _CONNECT_SECONDS
    while True:
        try:
            return Client(address, authkey=os.environ[KEY_VARIABLE].encode())
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def main(make_side: Callable[[int, str], Side], run: Runner = asyncio.run) -> None:
    """Run this process's side, on the event loop that ``run`` brings."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # whoever started us may not outlive us
    options = _parse()
    with contextlib.suppress(PartnerEnded):
        _serve(make_side, run, options)
        # Some peers hang or crash in their exit handlers, when all is measured.
        os._exit(0)
    os._exit(1)


def _serve(make_side: Callable[[int, str], Side], run: Runner, options: argparse.Namespace) -> None:
    address = "\0" + options.control
    if options.rank == 1:
        control = Control(_connect(address))
        run(Target(make_side(1, options.variant), control).run())
        return
    with Listener(address, authkey=os.environ[KEY_VARIABLE].encode()) as listener:
        control = Control(listener.accept())
    leader = Leader(make_side(0, options.variant), control, options)
    run(leader.run([find(key) for key in options.works.split(",")]))
