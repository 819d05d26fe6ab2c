# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two sides in processes of their own: started together, followed, and ended whatever happens.

A side that fails or dies ends the other. No process is left behind: each ends when its stdin does,
which the kernel sees to should this process be killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec
from rich.text import Text

import pplx_async
from pplx_async.cli.failures import CommandError, ExitCode, Failure
from pplx_async.cli.output import Output
from pplx_async.cli.side_link import Done, Event, Job

__all__ = ["SideProcess", "View", "most_telling", "raise_failure", "started", "until_over", "until_stopped"]

_T = TypeVar("_T")

# How long a side may take to end: first by itself, since the other failed; then after SIGTERM.
_GRACE_S = 2.0
_LINE_LIMIT = 1 << 24


class View(Protocol):
    """Whoever shows the progress, and so knows when something last moved.

    Attributes
    ----------
    changed : float
        When that was, on the clock of `time.monotonic`.
    """

    changed: float

    def where(self) -> str:
        """Say what is going on, for an error."""
        ...


async def until_stopped(work: Coroutine[Any, Any, _T], view: View, timeout: float) -> _T:
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


class SideProcess:
    """The process of one side, and what is known of it.

    Attributes
    ----------
    name : str
        The side's.
    result : dict or None
        Of its Done.
    failure : Failure or None
        Why it is not through.
    follower : Task
        Takes its events; done when the process has ended.
    """

    follower: asyncio.Task[None]

    def __init__(self, job: Job, process: asyncio.subprocess.Process) -> None:
        self.name = job.side
        self.process = process
        self.result: dict[str, Any] | None = None
        self.failure: Failure | None = None
        self.is_ended = False  # by us, before it ended by itself

    @classmethod
    async def start(cls, job: Job, on_event: Callable[[SideProcess, Event], None], output: Output) -> SideProcess:
        """Start and follow it, in a process group of its own, so that Ctrl-C at the terminal is for us to handle."""
        # -P keeps the user's working directory out of the module search, unless it is where we come from.
        here = Path(pplx_async.__file__).parents[1] == Path.cwd()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *([] if here else ["-P"]),
            "-m",
            "pplx_async.cli.side_child",
            msgspec.json.encode(job).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            process_group=0,
        )
        side = cls(job, process)
        side.follower = asyncio.create_task(side._follow(on_event, output))
        return side

    def tell(self, line: str) -> None:
        """Let it hear a line."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it is gone: its end says so
            self.process.stdin.write(line.encode() + b"\n")

    async def _follow(self, on_event: Callable[[SideProcess, Event], None], output: Output) -> None:
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
            output.err.print(Text(f"{self.name}: {line.decode(errors='replace').rstrip()}", style="dim"))

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


@contextlib.asynccontextmanager
async def started(
    jobs: Sequence[Job], on_event: Callable[[SideProcess, Event], None], output: Output
) -> AsyncIterator[list[SideProcess]]:
    """Start a process for each job, and end all of them with the block.

    Raises
    ------
    CommandError
        One of them failed or died.
    """
    sides: list[SideProcess] = []
    try:
        for job in jobs:
            sides.append(await SideProcess.start(job, on_event, output))
        yield sides
    finally:
        ends = [asyncio.create_task(side.end()) for side in sides]
        if ends:
            await asyncio.wait([*ends, *(side.follower for side in sides)])
    raise_failure(sides)


async def until_over(sides: Sequence[SideProcess]) -> None:
    """Wait until all have ended; or one has failed, and the others had time to end too."""
    pending = {side.follower for side in sides}
    while pending and not any(side.failure for side in sides):
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for follower in done:
            follower.result()
    if pending:
        # One failed. The other hears of it over the fabric; what it says may be the reason.
        await asyncio.wait(pending, timeout=_GRACE_S)


def raise_failure(sides: Sequence[SideProcess]) -> None:
    """Raise the failure of a side that says most, if there is one."""
    failures = {side.name: side.failure for side in sides if side.failure is not None}
    if failures:
        raise most_telling(failures)


def most_telling(failures: dict[str, Failure]) -> CommandError:
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
