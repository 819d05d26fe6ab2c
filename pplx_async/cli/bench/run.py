# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring: our two sides and the plain C programs take turns, a repetition each, until there are enough.

Whoever is not at work sleeps: the sides in epoll, the C programs at their standard input. Every wait
has an end: `until_stopped` ends a step that takes too long, and a side that fails or dies ends all.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pplx_async.cli.bench.c_program import CProgram, CRow
from pplx_async.cli.bench.order import Order
from pplx_async.cli.bench.progress import BenchView
from pplx_async.cli.bench.quiet import PAUSE, Load, Samples
from pplx_async.cli.bench.rows import Row, make_line, make_row, numbered
from pplx_async.cli.bench.works import Work
from pplx_async.cli.failures import CommandError
from pplx_async.cli.output import Output
from pplx_async.cli.side_link import Event, Found, Job, Listening
from pplx_async.cli.side_process import SideProcess, raise_failure, started, until_over, until_stopped

__all__ = ["Plan", "measure"]

_NOT_IN_C = ("sparse", "register")
# Of each of those who take turns, for a work of which repetitions are long.
_LIMIT_S = 8.0

Step = Callable[[], Awaitable[Row]]


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes
    ----------
    name, provider, wait : str
        What our rows are to say.
    jobs : sequence of Job
        The target and the leader.
    works : sequence of Work
        What is done.
    runs : int
        Repetitions that are kept.
    patience : float
        Seconds for each work that may go into replacing repetitions that others disturbed.
    idle_seconds : int
        Length of the work ``idle``.
    timeout : float
        Seconds that a repetition may take.
    c_rows : sequence of CRow
        The plain C programs to take turns with.
    c_folder : Path
        Where they are.
    c_arguments : sequence of str
        More options of theirs.
    """

    name: str
    provider: str
    wait: str
    jobs: Sequence[Job]
    works: Sequence[Work]
    runs: int
    patience: float
    idle_seconds: int
    timeout: float
    c_rows: Sequence[CRow]
    c_folder: Path
    c_arguments: Sequence[str]


def measure(plan: Plan, output: Output) -> tuple[list[Row], dict[str, Any]]:
    """Measure all works; return the rows, and what the engine says of itself.

    Raises
    ------
    CommandError
        A side or a C program failed or died, other bytes arrived than were sent, a repetition took
        too long, or SIGTERM came.
    """
    with BenchView(output.err, len(plan.works)) as view, asyncio.Runner() as runner:
        return runner.run(until_stopped(_measure(plan, output, view), view, plan.timeout + plan.idle_seconds))


async def _measure(plan: Plan, output: Output, view: BenchView) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    async with _opened(plan, output) as pair:
        engine = (await pair.answers())["leader"]["engine"]
        for work in plan.works:
            found = await _measure_work(plan, work, pair, view)
            view.on_rows(found, work)
            rows += found
        pair.tell(Order())
        await until_over(pair.sides)
    return rows, engine


# ---- our two sides ----


class _Pair:
    """The two sides, which get the same orders and both answer each."""

    def __init__(self, sides: Sequence[SideProcess], answers: dict[str, asyncio.Queue[dict[str, Any]]]) -> None:
        self.sides = sides
        self._answers = answers

    @property
    def pids(self) -> list[int]:
        return [side.process.pid for side in self.sides]

    def tell(self, order: Order) -> None:
        line = msgspec.json.encode(order).decode()
        for side in self.sides:
            side.tell(line)

    async def answers(self) -> dict[str, dict[str, Any]]:
        """Wait for an answer of each."""
        return {side.name: await self._answer(side) for side in self.sides}

    async def _answer(self, side: SideProcess) -> dict[str, Any]:
        answer = asyncio.create_task(self._answers[side.name].get())
        try:
            ends = {side.follower for side in self.sides}
            await asyncio.wait({answer, *ends}, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        await until_over(self.sides)
        raise_failure(self.sides)
        raise CommandError(f"{side.name}: it ended before it was through", kind="ProcessEnded")

    async def repeat(self, order: Order) -> Row:
        """Have one repetition done; return what was measured."""
        self.tell(order)
        measured: Row = {}
        for side, result in (await self.answers()).items():
            wrong = result.pop("wrong", 0)
            if wrong:
                assert order.work is not None
                raise CommandError(
                    f"{order.work.key}: {wrong} writes brought other bytes to the {side} than were sent",
                    hint="Please report it.",
                    kind="VerificationFailed",
                )
            measured |= result
        return measured


@contextlib.asynccontextmanager
async def _opened(plan: Plan, output: Output) -> AsyncIterator[_Pair]:
    answers: dict[str, asyncio.Queue[dict[str, Any]]] = {job.side: asyncio.Queue() for job in plan.jobs}

    def on_event(side: SideProcess, event: Event) -> None:
        if isinstance(event, Listening) and side is sides[0]:
            sides[1].tell(event.address)
        elif isinstance(event, Found):
            answers[side.name].put_nowait(event.result)

    async with started(plan.jobs, on_event, output) as sides:
        yield _Pair(sides, answers)


# ---- taking turns ----


def _programs(plan: Plan, work: Work) -> list[CRow]:
    """Say which C programs do this work too."""
    if work.name in _NOT_IN_C:
        return []
    # Who waits busily takes a whole core by definition: no use measuring it.
    return [row for row in plan.c_rows if work.name != "idle" or row.wait == "epoll"]


async def _measure_work(plan: Plan, work: Work, pair: _Pair, view: BenchView) -> list[Row]:
    about = {"name": plan.name, "provider": plan.provider, "wait": plan.wait}
    order = Order(work, idle_seconds=plan.idle_seconds)
    pids = [os.getpid(), *pair.pids]

    async def our_step() -> Row:
        return make_line(work, about, await pair.repeat(order))

    view.on_step(work, "verifying")
    if work.name != "idle":  # it has nothing to verify or to warm up
        await pair.repeat(msgspec.structs.replace(order, verify=True))
    steps: dict[str, Step] = {plan.name: our_step}
    with contextlib.ExitStack() as stack:
        for row in _programs(plan, work):
            arguments = [*plan.c_arguments, f"--wait={row.wait}", f"--seconds={plan.idle_seconds}"]
            program = stack.enter_context(CProgram(plan.c_folder / row.program, work, arguments))
            pids += await asyncio.to_thread(program.find_pids)
            steps[row.name] = functools.partial(asyncio.to_thread, program.step)
            # A program verifies when it starts: its first step comes after that, and for `idle` is long.
            view.on_step(work, f"{row.name}, starting")
            if work.name != "idle":
                await steps[row.name]()
        samples = await _take_turns(plan, work, steps, Load(pids), view)
    return [make_row(numbered(found.best), name) for name, found in samples.items()]


async def _take_turns(
    plan: Plan, work: Work, steps: dict[str, Step], load: Load, view: BenchView
) -> dict[str, Samples[Row]]:
    runs = 1 if work.name == "idle" else plan.runs
    samples = {name: Samples[Row](runs, plan.patience, _LIMIT_S * len(steps)) for name in steps}
    while any(found.wanted for found in samples.values()):
        for name, step in steps.items():
            if not samples[name].wanted:
                continue
            if samples[name].disturbed:
                await asyncio.sleep(PAUSE)
            view.on_step(work, name)
            load.start()
            line = await step()
            samples[name].add(load.cores(), line)
    return samples
