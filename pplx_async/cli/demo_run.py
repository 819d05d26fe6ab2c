# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Running the two sides of a demo: in processes of their own, or, on loopback, both in this one.

Every wait has an end. A side that fails or dies ends the other; so does a time in which nothing
moves; Ctrl-C and SIGTERM end both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from pplx_async.cli.demo_progress import ProgressView
from pplx_async.cli.failures import Failure, is_expected
from pplx_async.cli.output import Output
from pplx_async.cli.side_child import load_role, loop_factory
from pplx_async.cli.side_link import Done, Event, Job, Listening
from pplx_async.cli.side_process import SideProcess, most_telling, started, until_over, until_stopped

__all__ = ["run"]

Results = dict[str, dict[str, Any]]


def run(jobs: Sequence[Job], output: Output, *, in_process: bool, timeout: float) -> Results:
    """Run the sides, show their progress, and return their results.

    Parameters
    ----------
    jobs : sequence of Job
        The side that listens first.
    output : Output
        Where progress is shown.
    in_process : bool
        Both sides in this process, for a fabric that goes no further.
    timeout : float
        Seconds without any progress after which the demo is ended.

    Returns
    -------
    dict
        The result of each side.

    Raises
    ------
    CommandError
        A side failed or died, nothing moved for too long, or SIGTERM came.
    """
    factory = loop_factory(jobs[0].loop)  # also for processes: better to hear here that it is missing
    body = _run_here if in_process else _run_processes
    with ProgressView(output.err) as view, asyncio.Runner(loop_factory=factory if in_process else None) as runner:
        return runner.run(until_stopped(body(jobs, output, view), view, timeout))


# ---- both sides in this process ----


class _LocalLink:
    """A Link to a view in the same process."""

    def __init__(self, side: str, address: asyncio.Future[str], tell: Callable[[str, Event], None]) -> None:
        self._side = side
        self._address = address
        self._tell = tell

    def emit(self, event: Event) -> None:
        if isinstance(event, Listening) and not self._address.done():
            self._address.set_result(event.address)
        self._tell(self._side, event)

    async def hear(self) -> str:
        return await self._address


async def _run_here(jobs: Sequence[Job], output: Output, view: ProgressView) -> Results:
    results: Results = {}
    failures: dict[str, Failure] = {}

    def tell(side: str, event: Event) -> None:
        view.on_event(side, event)
        if isinstance(event, Done):
            results[side] = event.result

    async def play(job: Job) -> None:
        try:
            await load_role(job)(job, _LocalLink(job.side, address, tell))
        except Exception as error:
            failures[job.side] = Failure.of(error)
            raise

    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    try:
        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(play(job))
    except ExceptionGroup as errors:
        if not all(is_expected(error) for error in errors.exceptions):
            raise
        raise most_telling(failures) from None
    return results


# ---- a process for each ----


async def _run_processes(jobs: Sequence[Job], output: Output, view: ProgressView) -> Results:
    def on_event(side: SideProcess, event: Event) -> None:
        view.on_event(side.name, event)
        if isinstance(event, Listening) and side is sides[0]:
            for other in sides[1:]:
                other.tell(event.address)

    async with started(jobs, on_event, output) as sides:
        await until_over(sides)
    return {side.name: side.result for side in sides if side.result is not None}
