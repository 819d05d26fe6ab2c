# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Running the two sides of a demo: in processes of their own, or, on loopback, both in this one.

Every wait has an end. A side that fails or dies ends the other; so does a time in which nothing
moves; Ctrl-C and SIGTERM end both. No process is left behind: each ends when its stdin does, which
the kernel sees to should this process be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.text import Text

import pplx_async
from pplx_async.cli.demo_child import load_role, loop_factory
from pplx_async.cli.demo_link import Done, Event, Job, Listening
from pplx_async.cli.demo_progress import ProgressView
from pplx_async.cli.failures import CommandError, ExitCode, Failure, is_expected
from pplx_async.cli.output import Output

__all__ = ["run"]

# How long a side may take to end: first by itself, since the other failed; then after SIGTERM.
_GRACE_S = 2.0
_LINE_LIMIT = 1 << 24

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
        return runner.run(_until_stopped(body(jobs, output, view), view, timeout))


async def _until_stopped(work: Coroutine[Any, Any, Results], view: ProgressView, timeout: float) -> Results:
    """End the work on SIGTERM, and when nothing has moved for too long. Ctrl-C is the Runner's."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work)
    terminated = asyncio.Event()
    stop = asyncio.create_task(terminated.wait())
    loop.add_signal_handler(signal.SIGTERM, terminated.set)
    try:
        while not task.done():
            left = view.changed + timeout - time.monotonic()
            if terminated.is_set():
                raise CommandError("terminated", code=ExitCode.TERMINATED)
            if left <= 0:
                raise CommandError(
                    f"nothing moved for {timeout:g} s ({view.where()})",
                    hint="A busy machine may need a longer --timeout.",
                )
            await asyncio.wait({task, stop}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return task.result()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
        stop.cancel()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # we are leaving for another reason; asyncio need not report this one


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

    async def address(self) -> str:
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
        raise _most_telling(failures) from None
    return results


# ---- a process for each ----


class _Process:
    """The process of one side, and what is known of it."""

    def __init__(self, job: Job, process: asyncio.subprocess.Process) -> None:
        self.side = job.side
        self.process = process
        self.result: dict[str, Any] | None = None
        self.failure: Failure | None = None
        self.is_ended = False  # by us, before it ended by itself

    @classmethod
    async def start(cls, job: Job) -> _Process:
        """Start it, in a process group of its own, so that Ctrl-C at the terminal is for us to handle."""
        # -P keeps the user's working directory out of the module search, unless it is where we come from.
        here = Path(pplx_async.__file__).parents[1] == Path.cwd()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *([] if here else ["-P"]),
            "-m",
            "pplx_async.cli.demo_child",
            msgspec.json.encode(job).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            process_group=0,
        )
        return cls(job, process)

    def tell_address(self, address: str) -> None:
        """Tell it where the other side listens."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it is gone: its end says so
            self.process.stdin.write(address.encode() + b"\n")

    async def follow(self, on_event: Callable[[_Process, Event], None], output: Output) -> None:
        """Take its events until it has ended; then know how."""
        errors = asyncio.create_task(self._forward_stderr(output))
        assert self.process.stdout is not None
        try:
            async for line in self.process.stdout:
                event = msgspec.json.decode(line, type=Event)
                if isinstance(event, Done):
                    self.result = event.result
                elif isinstance(event, Failure):
                    self.failure = event
                on_event(self, event)
            code = await self.process.wait()
            await errors
        finally:
            errors.cancel()
        if self.failure is None and not self.is_ended and (code != 0 or self.result is None):
            through = "after it was through" if self.result is not None else "before it was through"
            self.failure = Failure("ProcessEnded", f"its process was ended by {_name(code)} {through}")

    async def _forward_stderr(self, output: Output) -> None:
        """Show what it writes there, such as warnings and the last words of a crash."""
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            output.err.print(Text(f"{self.side}: {line.decode(errors='replace').rstrip()}", style="dim"))

    async def end(self) -> None:
        """Make it end: its stdin first, then signals."""
        assert self.process.stdin is not None
        self.is_ended = self.process.returncode is None
        self.process.stdin.close()
        for send in (self.process.terminate, self.process.kill):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await self.process.wait()
            if self.process.returncode is None:
                send()
        await self.process.wait()


async def _run_processes(jobs: Sequence[Job], output: Output, view: ProgressView) -> Results:
    sides: list[_Process] = []

    def on_event(side: _Process, event: Event) -> None:
        view.on_event(side.side, event)
        if isinstance(event, Listening) and side is sides[0]:
            for other in sides[1:]:
                other.tell_address(event.address)

    followers: set[asyncio.Task[None]] = set()
    try:
        for job in jobs:
            sides.append(await _Process.start(job))
        followers = {asyncio.create_task(side.follow(on_event, output)) for side in sides}
        pending = followers
        while pending and not any(side.failure for side in sides):
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for follower in done:
                follower.result()
        if pending:
            # One failed. The other hears of it over the fabric; what it says may be the reason.
            await asyncio.wait(pending, timeout=_GRACE_S)
    finally:
        ends = [asyncio.create_task(side.end()) for side in sides]
        if ends:
            await asyncio.wait([*ends, *followers])
    failures = {side.side: side.failure for side in sides if side.failure is not None}
    if failures:
        raise _most_telling(failures)
    return {side.side: side.result for side in sides if side.result is not None}


def _most_telling(failures: dict[str, Failure]) -> CommandError:
    """Pick the failure that is not only the echo of another one."""
    side = min(failures, key=lambda name: (failures[name].is_echo, failures[name].kind == "ProcessEnded"))
    failure = failures[side]
    return CommandError(
        f"{side}: {failure.message}",
        hint=failure.hint,
        code=ExitCode(failure.code),
        kind=failure.kind,
        traceback=failure.traceback,
    )


def _name(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
