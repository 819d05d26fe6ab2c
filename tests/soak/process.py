# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The process of a member, as the command has it: started, followed, killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from tests.soak.events import Event, Job, Order, Sampled, Totals

__all__ = ["MemberProcess"]

_ROOT = Path(__file__).parents[2]
_LINE_LIMIT = 1 << 24


class MemberProcess:
    """One start of a member.

    Attributes
    ----------
    label : str
        Its name, and how often it was started.
    address : str
        Of its engine, once that is open.
    links : set of str
        Labels of those that it is connected with.
    totals : dict
        As it told last.
    samples : list of (float, Sampled)
        What it held, and when, in seconds since the run began.
    killed : bool
        By us: nobody need wonder.
    given_up : bool
        It was stopped for longer than its peers bear: they lose it, and it loses them.
    is_done : bool
        It has closed its engine.
    """

    def __init__(self, job: Job, process: asyncio.subprocess.Process) -> None:
        self.job = job
        self.label = job.name
        self.process = process
        self.address = ""
        self.links: set[str] = set()
        self.totals: dict[str, Totals] = {}
        self.samples: list[tuple[float, Sampled]] = []
        self.paused = False
        self.killed = False
        self.given_up = False
        self.is_done = False
        self.recent: list[str] = []
        self.stderr: list[str] = []
        self.follower: asyncio.Task[None]

    @classmethod
    async def start(
        cls, job: Job, on_event: Callable[[MemberProcess, Event], None], on_end: Callable[[MemberProcess, int], None]
    ) -> MemberProcess:
        """Start it, in a process group of its own: Ctrl-C at the terminal is for us to handle."""
        paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.soak.member_main",
            msgspec.json.encode(job).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_LIMIT,
            process_group=0,
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        member = cls(job, process)
        member.follower = asyncio.create_task(member._follow(on_event, on_end))
        return member

    async def _follow(
        self, on_event: Callable[[MemberProcess, Event], None], on_end: Callable[[MemberProcess, int], None]
    ) -> None:
        errors = asyncio.create_task(self._keep_stderr())
        assert self.process.stdout is not None
        try:
            async for line in self.process.stdout:
                if not line.endswith(b"\n"):
                    break  # it was killed in the middle of a word
                on_event(self, msgspec.json.decode(line, type=Event))
            code = await self.process.wait()
            await errors
            on_end(self, code)
        finally:
            errors.cancel()

    async def _keep_stderr(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.stderr.append(line.decode(errors="replace").rstrip())

    def tell(self, order: Order) -> None:
        """Give an order; one that is dead hears nothing."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self.process.stdin.write(msgspec.json.encode(order) + b"\n")

    def kill(self) -> None:
        """End it as a crash does."""
        self.killed = True
        self.process.send_signal(signal.SIGKILL)

    def stop(self) -> None:
        """Have all of its threads stand still, in the middle of whatever they do."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self.process.send_signal(signal.SIGCONT)

    def dump_stacks(self) -> None:
        """Have it write the stacks of its threads to stderr."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGUSR1)
            self.resume()  # it may have been stopped

    async def end(self) -> None:
        """End it, whatever it does."""
        if self.process.returncode is None:
            self.kill()
        await asyncio.wait({self.follower})
        assert self.process.stdin is not None
        self.process.stdin.close()
