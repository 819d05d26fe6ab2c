# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The plain C programs, one repetition at a time, so that others can be measured in between."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pplx_async.cli.bench.rows import Row, line_of
from pplx_async.cli.bench.works import Work
from pplx_async.cli.failures import CommandError

__all__ = ["C_FOLDER", "C_ROWS", "CProgram", "CRow", "ProgramFailed", "program_path"]

# Where `make bench-c` builds them in the checkout that this file is in, if it is in one.
C_FOLDER = Path(__file__).parents[3] / "build" / "bench"


class ProgramFailed(CommandError):
    """A program said no, or ended too early."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, kind="ProgramFailed")


@dataclass(frozen=True)
class CRow:
    """A plain C program in one of its ways to wait."""

    name: str
    program: str
    wait: str


C_ROWS = (
    CRow("c-shm-poll", "shm_bench", "poll"),
    CRow("c-shm-epoll", "shm_bench", "epoll"),
    CRow("c-tcp-poll", "fabric_bench", "poll"),
    CRow("c-tcp-epoll", "fabric_bench", "epoll"),
)


def program_path(name: str) -> Path:
    """Say where ``make bench-c`` puts a program."""
    return C_FOLDER / name


class CProgram:
    """A program and its target process, both open and idle between repetitions.

    Parameters
    ----------
    program : Path
        ``fabric_bench`` or ``shm_bench``.
    work : Work
        What it does.
    arguments : sequence of str
        More options, such as ``--provider``.
    """

    def __init__(self, program: Path, work: Work, arguments: Sequence[str] = ()) -> None:
        sizes = {"nbytes": work.nbytes, "count": work.count, "inflight": work.inflight, "targets": work.targets}
        options = [f"--{name}={value}" for name, value in sizes.items()]
        self._process = subprocess.Popen(
            [program, work.name, "--step", *options, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def find_pids(self) -> list[int]:
        """Find both processes; waits until there are two, or the program has ended."""
        pid = self._process.pid
        children: list[str] = []
        while not children and self._process.poll() is None:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            time.sleep(0.001)
        return [pid, *map(int, children)]

    def step(self) -> Row:
        """Run one repetition. The program itself limits how long that takes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # stdout says the same, and stderr why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        line = line_of(self._process.stdout.readline())
        if line is None:
            raise ProgramFailed(self._reason())
        return line

    def _reason(self) -> str:
        assert self._process.stderr is not None
        self._process.kill()
        said = self._process.stderr.read().strip().splitlines()
        return said[-1] if said else f"exit status {self._process.wait()}"

    def close(self) -> None:
        """End both processes."""
        try:
            self._process.communicate(timeout=10)  # the end of its stdin is the end of its work
        except subprocess.TimeoutExpired:
            self._process.kill()  # the target goes with it
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self._process.kill()  # so that a `step` which another thread waits in ends too
        self.close()
