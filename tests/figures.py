# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measure how soon a death is noticed, memory is taken back, and a stranger refused, for docs/reliability.md.

    python -m tests.figures [--rounds 20] [--json FILE]

Engines have their default options. A line for each figure: median and longest of the rounds, in milliseconds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import platform
import random
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

sys.path.append(str(Path(__file__).parent))

from helpers.engines import Pair, engine_on, eventually, open_pair
from helpers.process import Helper, helper
from helpers.require import Fabric, find_fabric
from helpers.survivor import Ending, Survivor, open_survivor
from pplx_async import BrokenResourceError, MemoryRegion, RemoteRegion, TransferEngine

SIZE = 1 << 20
FEWER = 3  # rounds of what takes seconds: one in so many
SECRET = "one secret"
CHOICES = random.Random(1)


class Figures:
    """What was measured, by name: seconds."""

    def __init__(self) -> None:
        self.all: dict[str, list[float]] = {}

    def add(self, name: str, seconds: list[float]) -> None:
        """Keep and print a row."""
        self.all[name] = seconds
        median, longest = (round(1e3 * value, 2) for value in (statistics.median(seconds), max(seconds)))
        print(f"{name:52} {median:9.2f} ms (median) {longest:9.2f} ms (longest of {len(seconds)})", flush=True)


# ---- a kill ----


async def _endless(survivor: Survivor, part: RemoteRegion) -> None:
    while True:
        await survivor.engine.write(survivor.source, part)


async def noticed(fabric: Fabric, rounds: int, *, busy: bool) -> list[float]:
    """From the kill until the peer is lost; with a stream of writes to it, until that has ended."""
    took = []
    async with open_survivor(fabric) as survivor:
        for _ in range(rounds):
            pid, peer = await survivor.meet()
            part = (await peer.lookup("memory"))[0 : survivor.source.nbytes]
            ending = Ending(_endless(survivor, part) if busy else peer.wait_closed())
            await asyncio.sleep(CHOICES.uniform(0.0, 0.3))  # at any moment between two heartbeats
            killed = await survivor.kill(pid)
            await ending.task
            await peer.wait_closed()
            took.append(ending.at - killed)
            await survivor.bury(pid)
            await survivor.forget(peer)
    return took


async def noticed_inside(rounds: int) -> list[float]:
    """Loopback does not leave its process: the other end of the control channel ends as with its process."""
    took = []
    for _ in range(rounds):
        async with open_pair("loopback") as pair:
            ending = Ending(pair.ab.wait_closed())
            await asyncio.sleep(CHOICES.uniform(0.0, 0.3))
            began = time.monotonic()
            pair.ba._channel._frames.fail("as if the process had died")
            await ending.task
            took.append(ending.at - began)
    return took


# ---- a revoke ----


@contextlib.asynccontextmanager
async def sender_to(fabric: Fabric) -> AsyncIterator[tuple[TransferEngine, Helper]]:
    """An engine, and a process that can write to it."""
    given = json.dumps({"fabric": fabric.name, **fabric.options})
    async with engine_on(fabric, name="receiver") as engine, helper("sender", given) as process:
        process.post("open", address=engine.address, nbytes=SIZE, value=7)
        await engine.accept()
        await process.answer()
        yield engine, process


async def revoked(fabric: Fabric, rounds: int, how: str) -> list[float]:
    """Until revoke() is back: the peer has written there once, or writes all the time, or stands still."""
    took = []
    while len(took) < rounds:
        async with sender_to(fabric) as (engine, process):
            for _ in range(1 if how == "stopped" else rounds):
                array = engine.empty(SIZE)
                region = await engine.register(array)
                descriptor = region.to_bytes().hex()
                if how == "idle":
                    await process.ask("write", region=descriptor)
                else:
                    await process.ask("flood", regions=[descriptor], writers=4)
                    await eventually(array.all, "it writes")
                if how == "stopped":
                    os.kill(process.pid, signal.SIGSTOP)
                    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
                began = time.monotonic()
                await region.revoke()
                took.append(time.monotonic() - began)
                if how == "stopped":
                    process.kill()
                elif how == "stream":
                    await process.ask("outcomes")
    return took


async def revoked_inside(rounds: int, how: str) -> list[float]:
    """The same on loopback."""
    took = []
    async with open_pair("loopback") as pair:
        source = await pair.source(SIZE)
        for _ in range(rounds):
            target = await pair.target(SIZE)
            await pair.a.write(source, target.remote)
            writing = [asyncio.ensure_future(_write(pair, source, target.remote)) for _ in range(4 * (how == "stream"))]
            await asyncio.sleep(0.01)
            began = time.monotonic()
            await target.region.revoke()
            took.append(time.monotonic() - began)
            await asyncio.gather(*writing)
    return took


async def _write(pair: Pair, source: MemoryRegion, remote: RemoteRegion) -> None:
    with contextlib.suppress(BrokenResourceError):
        while True:
            await pair.a.write(source, remote)


# ---- strangers ----


async def refused(rounds: int) -> list[float]:
    """Until a connect with another secret has failed, at who calls."""
    took = []
    async with TransferEngine(fabric="loopback", secret=SECRET) as engine:
        for _ in range(rounds):
            async with TransferEngine(fabric="loopback", secret="another one") as other:
                began = time.monotonic()
                with contextlib.suppress(BrokenResourceError):
                    await other.connect(engine.address)
                    raise AssertionError("it got in")
                took.append(time.monotonic() - began)
    return took


async def told_to_go(rounds: int, say: bytes, *, crowd: int = 0) -> list[float]:
    """From a connection, on which this is said, until it is closed; while so many others come after it."""
    took = []
    async with TransferEngine(fabric="loopback", secret=SECRET) as engine:
        host, port = engine.address.rsplit(":", 1)
        for _ in range(rounds):
            reader, writer = await asyncio.open_connection(host, int(port))
            began = time.monotonic()
            writer.write(say)
            others = await asyncio.gather(*(asyncio.open_connection(host, int(port)) for _ in range(crowd)))
            with contextlib.suppress(ConnectionError):
                while await reader.read(4096):
                    pass
            took.append(time.monotonic() - began)
            for _, each in [(reader, writer), *others]:
                each.close()
                with contextlib.suppress(OSError):
                    await each.wait_closed()
    return took


async def let_in(rounds: int, strangers: int) -> list[float]:
    """Until a friend is connected, while so many strangers have come and say nothing."""
    took = []
    async with TransferEngine(fabric="loopback", secret=SECRET) as engine:
        host, port = engine.address.rsplit(":", 1)
        for _ in range(rounds):
            crowd = [await asyncio.open_connection(host, int(port)) for _ in range(strangers)]
            async with TransferEngine(fabric="loopback", secret=SECRET) as friend:
                began = time.monotonic()
                await friend.connect(engine.address)
                took.append(time.monotonic() - began)
            for _, writer in crowd:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    return took


# ---- all of it ----


async def measure(rounds: int) -> Figures:
    """Go through it."""
    figures, few = Figures(), max(3, rounds // FEWER)
    fabrics = [find_fabric(name) for name in ("ipc", "tcp")]
    for fabric in fabrics:
        if fabric.missing is not None:
            print(f"{fabric.id}: not measured: {fabric.missing}")
    there = [fabric for fabric in fabrics if fabric.missing is None]
    for fabric in there:
        figures.add(f"kill noticed, idle, {fabric.id}", await noticed(fabric, rounds, busy=False))
        figures.add(f"kill noticed, in a stream of writes, {fabric.id}", await noticed(fabric, rounds, busy=True))
    figures.add("end noticed, idle, loopback", await noticed_inside(rounds))
    for how in ("idle", "stream"):
        for fabric in there:
            figures.add(f"revoked, {how}, {fabric.id}", await revoked(fabric, rounds, how))
        figures.add(f"revoked, {how}, loopback", await revoked_inside(rounds, how))
    for fabric in there:
        figures.add(f"revoked, sender stopped, {fabric.id}", await revoked(fabric, few, "stopped"))
    newer = msgspec.msgpack.encode(["hello", "pplx_async", 9])
    figures.add("wrong secret refused", await refused(rounds))
    figures.add("newer version refused", await told_to_go(rounds, len(newer).to_bytes(4, "big") + newer))
    figures.add("silent stranger closed, alone", await told_to_go(1, b""))
    figures.add("silent stranger closed, 64 others come", await told_to_go(few, b"", crowd=64))
    figures.add("friend let in, nobody else there", await let_in(rounds, 0))
    figures.add("friend let in, 1000 silent strangers there", await let_in(rounds, 1000))
    return figures


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.figures", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="seconds of each round, to this file")
    arguments = parser.parse_args()
    logging.getLogger("pplx_async").setLevel(logging.CRITICAL)  # what is refused and lost here is meant
    before = os.getloadavg()[0]
    figures = asyncio.run(measure(arguments.rounds))
    load = f"load {before:.1f} before, {os.getloadavg()[0]:.1f} after"
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {load}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures.all) + "\n")


if __name__ == "__main__":
    main()
