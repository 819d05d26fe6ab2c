# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One side of a demo or of the benchmark, in a process: ``python -m pplx_async.cli.side_child JOB``.

The job comes as JSON in the argument; events go to stdout, one JSON line each; what the side hears,
such as the address of the other one, comes on stdin. When stdin ends, whoever started us is gone, and
so are we.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Callable

import msgspec

from pplx_async.cli.failures import CommandError, ExitCode, Failure, is_expected
from pplx_async.cli.side_link import Event, Job, Role

__all__ = ["load_role", "loop_factory", "main"]


# The module of each task, and the extra of this package that brings what it needs.
_TASKS = {
    "weights": ("pplx_async.cli.demo_weights", "demo"),
    "pages": ("pplx_async.cli.demo_pages", "demo"),
    "bench": ("pplx_async.cli.bench.side", "bench"),
}


def load_role(job: Job) -> Role:
    """Find what a side does.

    Raises
    ------
    CommandError
        A package that it needs is not installed.
    """
    name, extra = _TASKS[job.task]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this needs the package {error.name}, which is not installed",
            hint=f"`pip install 'pplx_async[{extra}]'` brings it.",
            code=ExitCode.UNAVAILABLE,
        ) from error
    role: Role = module.ROLES[job.side]
    return role


def loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Find an event loop by name; None is asyncio's own.

    Raises
    ------
    CommandError
        uvloop is wanted and not installed.
    """
    if name != "uvloop":
        return None
    try:
        import uvloop
    except ModuleNotFoundError as error:
        raise CommandError(
            "uvloop is not installed",
            hint="`pip install 'pplx_async[uvloop]'` brings it.",
            code=ExitCode.UNAVAILABLE,
        ) from error
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


class _PipeLink:
    """A Link over a pipe to whoever started this process."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lines: asyncio.Queue[str] = asyncio.Queue()

    def emit(self, event: Event) -> None:
        line = msgspec.json.encode(event) + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    async def hear(self) -> str:
        return await self._lines.get()

    async def listen(self, side: asyncio.Task[None]) -> None:
        """Take lines until the end of stdin, then end the side."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := await reader.readline():
                self._lines.put_nowait(line.decode().strip())
            side.cancel()
        finally:
            transport.close()


async def _run(job: Job, fd: int) -> int:
    link = _PipeLink(fd)
    try:
        side = asyncio.create_task(load_role(job)(job, link))
        listening = asyncio.create_task(link.listen(side))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, side.cancel)
        try:
            await side
        finally:
            listening.cancel()
            await asyncio.wait({listening})
    except Exception as error:
        if not is_expected(error):
            raise
        link.emit(Failure.of(error))
        return ExitCode.FAILED
    except asyncio.CancelledError:
        return ExitCode.TERMINATED
    return ExitCode.OK


def main() -> None:
    """Run the side that the argument describes."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    # Events keep stdout to themselves: what a library prints there goes to stderr from now on.
    fd = os.dup(1)
    os.dup2(2, 1)
    with asyncio.Runner(loop_factory=loop_factory(job.loop)) as runner:
        code = runner.run(_run(job, fd))
    sys.exit(code)


if __name__ == "__main__":
    main()
