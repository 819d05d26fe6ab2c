# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Both sides, and the timed half of each work: when its clock starts and stops is that of ``c/works.c``."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import dataclasses
import time
from collections import deque
from collections.abc import Awaitable, Sequence

import numpy as np

from benchmarks.gpu.side import LANDED, OUTGOING, Given, Side, pause
from benchmarks.gpu.target import Here, Target, There
from benchmarks.gpu.works import AT_ONCE, AWAITS, REST_SECONDS, ROUNDS, WARM_UP_PAGES, summary
from pplx_async import RemoteCounter
from pplx_async.cli.bench.works import Work, scramble

__all__ = ["Pair"]

Result = dict[str, float]
_COMPUTE_THREADS = 1024
_OPEN_SECONDS = 20
# Of the words that both sides and the stamps use.
_STAMP, _GO, _SEEN = 0, 1, 2


def _microseconds(began: Sequence[int], ended: Sequence[int]) -> Result:
    return summary([(end - begin) / 1e3 for begin, end in zip(began, ended, strict=True)])


class Pair:
    """A leader in this process and its target, connected.

    Parameters
    ----------
    given : Given
        Of the leader, whose GPU is the first.
    gpus : int
        1: both are on it, in this process. 2: the target is on the second one, in a process of its own.
    """

    def __init__(self, given: Given, gpus: int) -> None:
        self._given, self._gpus = given, gpus
        self._answers = 0
        self._checked: set[str] = set()

    async def open(self) -> None:
        """Make both sides, and connect them."""
        theirs = dataclasses.replace(self._given, ordinal=self._gpus - 1)
        async with asyncio.timeout(_OPEN_SECONDS), contextlib.AsyncExitStack() as stack:
            self._target: Target = Here(theirs) if self._gpus == 1 else await There.start(theirs)
            stack.push_async_callback(self._target.close)
            self._side = Side(self._given)
            await self._side.open()
            stack.push_async_callback(self._side.close)
            address = await self._target.ask("open")
            accepting = self._target.ask("accept")
            await self._side.connect(address)
            await accepting
            self._stack = stack.pop_all()

    async def close(self) -> None:
        """Close both."""
        async with asyncio.timeout(_OPEN_SECONDS):
            await self._stack.aclose()

    async def step(self, work: Work) -> Result:
        """Do one repetition; the first one of a work checks the bytes that have arrived, too."""
        self._side.gpu.use()
        return await getattr(self, f"_{work.name}")(work)

    async def _answered(self) -> None:
        self._answers += 1
        await self._side.counter.wait(self._answers)

    # ---- one at a time ----

    async def _write(self, work: Work) -> Result:
        side, began = self._side, []
        local, remote = side.region[: work.nbytes], side.remote[: work.nbytes]
        taking = self._target.ask("take_each", work.count)
        await self._answered()
        for _ in range(work.count):
            began.append(time.monotonic_ns())
            transfer = side.engine.write(local, remote, counter=side.remote_counter)
            await self._answered()
            await transfer
        return _microseconds(began, await taking)

    async def _gated(self, work: Work) -> Result:
        side = self._side
        running = self._target.ask("run_gated", work.count)
        began = await self._open_gates(work, side.region[: work.nbytes], side.remote[: work.nbytes])
        return _microseconds(began, await running)

    async def _gate(self, work: Work) -> Result:
        running = self._target.ask("run_gate", work.count)
        await self._open_gates(work, self._side.host[OUTGOING], self._side.remote_host[OUTGOING])
        return _microseconds(*await running)

    async def _open_gates(self, work: Work, local, remote) -> list[int]:
        side, began = self._side, []
        outgoing = side.page[OUTGOING].view(np.uint64)
        for number in range(1, work.count + 1):
            await self._answered()
            outgoing[0] = number
            pause()  # here, where it is decided when the gate opens
            began.append(time.monotonic_ns())
            await side.engine.write(local, remote, counter=side.remote_gates)
        return began

    async def _doorbell(self, work: Work) -> Result:
        side = self._side
        outgoing = side.page[OUTGOING].view(np.uint64)
        local, remote = side.host[OUTGOING], side.remote_host[LANDED]
        seeing = self._target.ask("see_landed", work.count)
        await self._answered()
        side.words[_STAMP] = side.words[_GO] = 0
        stamps = side.stamps(side.words.address(_STAMP), work.count)
        for number in range(1, work.count + 1):
            outgoing[0] = number
            # The stream waits until all is queued: it may not come to the doorbell before there is one.
            go = side.words.device_address(_GO)
            side.cuda("cuStreamWaitValue64_v2", side.stream, go, number, 0)
            side.queue_store(_STAMP, number, side.stream)
            transfer = side.engine.write(local, remote, after=side.stream)
            pause()
            side.words[_GO] = number
            await transfer
        return _microseconds(await stamps.wait(), await seeing)

    async def _watch(self, work: Work) -> Result:
        side, samples = self._side, []
        side.words[_SEEN] = 0
        async with side.engine.watch() as watch:
            addresses = [ctypes.c_uint64(each) for each in (watch.device_address, side.words.device_address(_SEEN))]
            side.gpu.count.launch(1, 1, side.stream, *addresses, ctypes.c_uint64(work.count))
            began = None
            async for _, new in watch:
                now = time.monotonic_ns()
                if began is not None:  # the first one has the launch in it
                    samples.append((now - began) / 1e3)
                began = now
                side.words[_SEEN] = new
                if new == work.count:
                    break
            side.gpu.synchronize(side.stream)
        return summary(samples)

    async def _compute(self, work: Work) -> Result:
        side, samples = self._side, []
        gate = side.gates.gate(side.other_stream, 1)
        pause()
        out, rounds = ctypes.c_uint64(side.memory.address), ctypes.c_uint32(ROUNDS)
        for _ in range(work.count):
            began = time.monotonic_ns()
            side.gpu.compute.launch(side.gpu.processors, _COMPUTE_THREADS, side.stream, out, rounds)
            side.gpu.synchronize(side.stream)
            samples.append((time.monotonic_ns() - began) / 1e3)
        if gate.opened:
            raise AssertionError("the gate did not wait")
        await self._target.ask("open_gate")
        await gate
        return summary(samples)

    # ---- many bytes ----

    async def _stream(self, work: Work) -> Result:
        side = self._side
        pieces = [slice(i * work.nbytes, (i + 1) * work.nbytes) for i in range(work.inflight)]
        slots = [(side.region[piece], side.remote[piece]) for piece in pieces]
        write, counter = side.engine.write, side.remote_counter

        async def write_all() -> None:
            window: deque[Awaitable[int]] = deque()
            for i in range(work.count):
                if len(window) == work.inflight:
                    await window.popleft()
                local, remote = slots[i % work.inflight]
                window.append(write(local, remote, counter=counter))
            for transfer in window:
                await transfer

        starts = [piece.start for piece in pieces][: work.count]
        return await self._bulk(work, write_all, starts, starts)

    async def _burst(self, work: Work) -> Result:
        return await self._pages(work)

    async def _pages(self, work: Work) -> Result:
        side = self._side
        bits = (side.memory.nbytes // work.nbytes).bit_length() - 1
        ours, theirs = (np.array([scramble(i, bits, seed) for i in range(work.count)]) for seed in (1, 2))

        def write(some: slice, counter: RemoteCounter | None = None) -> Awaitable[int]:
            return side.engine.write_pages(
                side.region,
                side.remote,
                page_nbytes=work.nbytes,
                local_pages=ours[some],
                remote_pages=theirs[some],
                counter=counter,
            )

        async def write_all() -> None:
            window: deque[Awaitable[int]] = deque()
            for first in range(0, work.count, AT_ONCE):
                if len(window) == AWAITS:
                    await window.popleft()
                window.append(write(slice(first, first + AT_ONCE), side.remote_counter))
            for transfer in window:
                await transfer

        await write(slice(WARM_UP_PAGES))
        await asyncio.sleep(REST_SECONDS)
        return await self._bulk(work, write_all, (ours * work.nbytes).tolist(), (theirs * work.nbytes).tolist())

    async def _bulk(self, work: Work, write_all, local: Sequence[int], remote: Sequence[int]) -> Result:
        side = self._side
        first = work.key not in self._checked
        if first:
            self._checked.add(work.key)
            await side.fill(len(self._checked))
        taking = self._target.ask("take_all", work.count)
        began = time.monotonic_ns()
        await write_all()
        seconds = (time.monotonic_ns() - began) / 1e9
        await taking
        if first:
            ours = await side.checksum([(start, work.nbytes) for start in local])
            if ours != await self._target.ask("checksum", [(start, work.nbytes) for start in remote]):
                raise AssertionError(f"{work.key}: other bytes have arrived than were sent")
        return {"value": work.count * work.nbytes / seconds / 1e9}
