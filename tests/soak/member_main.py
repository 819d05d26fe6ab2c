# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The process of a member: ``python -m tests.soak.member_main JOB``.

Orders come on stdin, events go to stdout, a line of JSON each. When stdin ends, whoever started us is
gone, and so are we.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import signal
import sys
import warnings
from typing import Any

import msgspec

from tests.soak.events import Event, Job, Order, Trouble
from tests.soak.member import Member

__all__ = ["main"]


class _Pipe:
    """Both ways to the command."""

    def __init__(self) -> None:
        # Events keep stdout to themselves: what a library prints there goes to stderr.
        self._fd = os.dup(1)
        os.dup2(2, 1)
        self.orders: asyncio.Queue[Order] = asyncio.Queue()

    def emit(self, event: Event) -> None:
        line = msgspec.json.encode(event) + b"\n"
        while line:
            line = line[os.write(self._fd, line) :]

    async def listen(self) -> None:
        """Take orders; at the end of stdin, end."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        try:
            while line := await reader.readline():
                self.orders.put_nowait(msgspec.json.decode(line, type=Order))
        finally:
            transport.close()
        os._exit(1)


def _tell_what_nobody_raises(pipe: _Pipe) -> None:
    """Failures of destructors, and warnings of what was left open, count like any other."""

    def unraisable(args: Any) -> None:
        pipe.emit(Trouble(f"nobody could be told of {args.exc_value!r}: {args.err_msg} {args.object!r}", "", []))

    def warn(message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
        pipe.emit(Trouble(f"{category.__name__}: {message}", "", []))

    sys.unraisablehook = unraisable
    warnings.simplefilter("always")
    warnings.showwarning = warn


async def _run(job: Job, pipe: _Pipe) -> None:
    listening = asyncio.create_task(pipe.listen())
    member = Member(job, pipe.emit)
    asyncio.get_running_loop().set_exception_handler(lambda _, context: member.on_loop_error(context))
    await member.run(pipe.orders)
    listening.cancel()
    await asyncio.wait({listening})


def main() -> None:
    """Be the member that the argument describes."""
    job = msgspec.json.decode(sys.argv[1], type=Job)
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level=logging.ERROR)  # that a killed peer breaks a connection is nothing to warn of
    pipe = _Pipe()
    _tell_what_nobody_raises(pipe)
    factory = None
    if job.loop == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_run(job, pipe))


if __name__ == "__main__":
    main()
