# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The other side: in this process, where there is one GPU, or in a process of its own on the other one.

Two processes that share a GPU take turns on it, 0.2 ms each, which would be all that is measured. A process of its own
runs this module, and is asked in lines of JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Awaitable
from typing import Any, Protocol

from benchmarks.gpu.side import Given, Side

__all__ = ["Here", "Target", "TargetFailed", "There"]

_PR_SET_PDEATHSIG = 1
_LINE = 64 << 20


class TargetFailed(Exception):
    """The other side could not do what it was asked for."""


class Target(Protocol):
    """The other side."""

    def ask(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """Have it do something, from now on, and return the result."""

    async def close(self) -> None:
        """End it."""


class Here:
    """In this process."""

    def __init__(self, given: Given) -> None:
        self._side = Side(given)

    def ask(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """As of every target."""
        return asyncio.ensure_future(getattr(self._side, method)(*arguments))

    async def close(self) -> None:
        """As of every target."""
        await self._side.close()


class There:
    """In a process of its own."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, given: Given) -> There:
        """Start the process."""
        command = [sys.executable, "-m", __spec__.name, json.dumps(dataclasses.asdict(given))]
        return cls(await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, limit=_LINE))

    def ask(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """As of every target; one question at a time."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, *arguments]).encode() + b"\n")
        return asyncio.ensure_future(self._answer(method))

    async def _answer(self, method: str) -> Any:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise TargetFailed(f"{method}: the other process has ended")
        answer = json.loads(line)
        if "failed" in answer:
            raise TargetFailed(f"{method}: {answer['failed']}")
        return answer["result"]

    async def close(self) -> None:
        """As of every target."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(10):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()


async def _serve(given: Given) -> None:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(limit=_LINE)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    side = Side(given)
    try:
        while line := await reader.readline():
            method, *arguments = json.loads(line)
            try:
                answer = {"result": await getattr(side, method)(*arguments)}
            except Exception as error:  # told to whoever has asked
                answer = {"failed": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), flush=True)
    finally:
        await side.close()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # it does not outlive who started it
    asyncio.run(_serve(Given(**json.loads(sys.argv[1]))))
