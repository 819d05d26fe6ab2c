# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Real second processes: a Python module in this folder, spoken to in lines of JSON.

A helper process runs ``serve(make)``: what it makes has a coroutine for each request, and the answer is
one line. Whatever happens to the test, the process is killed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from helpers.slowness import SLOWNESS

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
TIMEOUT = 40.0 * SLOWNESS


def take_interrupts() -> None:
    """In a child before it starts: a test run in the background of a shell ignores Ctrl-C, and so would it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Our environment without PPLX_ASYNC_*, with the checkout and the helpers on the path."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PPLX_ASYNC_")}
    paths = [str(ROOT), str(TESTS), kept.get("PYTHONPATH", "")]
    kept["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return kept | {"PYTHONFAULTHANDLER": "1"} | dict(extra or {})


def run_program(program: str, *arguments: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a program text in a new interpreter, to its end."""
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
    )


class Helper:
    """A running helper process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.pid = process.pid

    async def ask(self, action: str, **values: Any) -> Any:
        """Send one request and return the answer's result."""
        self.post(action, **values)
        return await self.answer()

    def post(self, action: str, **values: Any) -> None:
        """Send a request whose answer is fetched later, or never."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": action} | values).encode() + b"\n")

    async def answer(self) -> Any:
        """Return the next answer's result."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT)
        if not line:
            raise AssertionError(f"the helper process ended, exit status {await self.process.wait()}")
        answer = json.loads(line)
        assert "error" not in answer, f"the helper process failed:\n{answer['error']}"
        return answer["result"]

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.send_signal(signal.SIGKILL)

    async def finish(self) -> int:
        """Close its input and return its exit status."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await asyncio.wait_for(self.process.wait(), TIMEOUT)


@contextlib.asynccontextmanager
async def helper(module: str, *arguments: str) -> AsyncIterator[Helper]:
    """Start ``python -m helpers.MODULE``; kill it at the end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        f"helpers.{module}",
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        env=environment(),
    )
    try:
        yield Helper(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await asyncio.wait_for(process.wait(), TIMEOUT)
        # The pipe's transport is closed when its end has been read.
        assert process.stdin is not None
        process.stdin.close()
        process._transport.close()  # type: ignore[attr-defined]
        await asyncio.sleep(0)


def serve(make: Callable[[dict[str, Any]], Any]) -> None:
    """In the helper process: answer requests with the methods of what ``make`` makes of the first argument."""
    given = json.loads(sys.argv[1])
    factory = None
    if given.pop("uvloop", False):
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_answer(make, given))


async def _answer(make: Callable[[dict[str, Any]], Any], given: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    helped = make(given)
    while line := await lines.readline():
        request = json.loads(line)
        action = getattr(helped, request.pop("do"))
        try:
            answer = {"result": await action(**request)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)
