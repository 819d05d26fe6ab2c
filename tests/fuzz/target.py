# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One fuzz target: its program, its corpus, and what is known of its run."""

from __future__ import annotations

import asyncio
import collections
import importlib.util
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pplx_async.cli.failures import CommandError, ExitCode

__all__ = ["FOLDER", "ROOT", "Target", "engine_archive", "seeds"]

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "fuzz"
_SEEDS = Path(__file__).parent / "seeds"
# "#4096 NEW    cov: 12 ft: 340 corp: 17/2kb ...": inputs so far, what they reach, how many of them are kept.
_STATUS = re.compile(rb"#(\d+)\s.*?\bft: (\d+) corp: (\d+)")
_SLOW_S = 10  # one input that takes longer is a finding
_MEMORY_MB = 2048
_GRACE_S = 60.0  # beyond its time, for a program that does not end
_LAST_LINES = 80


def engine_archive() -> Path:
    """Find libFuzzer in the wheel of atheris.

    Raises
    ------
    CommandError
        It is not installed, or its wheel has no such archive.
    """
    spec = importlib.util.find_spec("atheris")
    archive = Path(spec.origin).parents[1] / "libclang_rt.fuzzer_no_main.a" if spec and spec.origin else None
    if archive is None or not archive.is_file():
        raise CommandError(
            "the package atheris, with the archive of libFuzzer, is not installed",
            hint="`make fuzz` installs it: there are wheels for Linux on x86-64, CPython 3.11 to 3.13.",
            code=ExitCode.UNAVAILABLE,
        )
    return archive


def seeds(name: str) -> list[bytes]:
    """Read a target's seeds: hex, a line for each; what follows a # is a comment."""
    lines = (_SEEDS / f"{name}.hex").read_text().splitlines()
    return [bytes.fromhex(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]


class Target:
    """A target, and its run.

    Attributes
    ----------
    name : str
        Of the module in ``targets/``, or of the file in ``c/``.
    inputs, features, corpus : int
        Tried; counted as reached; kept for reaching something new.
    findings : list of Path
        Inputs that break a property, hang or crash.
    """

    def __init__(self, name: str, *, longest: int, is_c: bool = False) -> None:
        self.name = name
        self.is_c = is_c
        self.inputs = self.features = self.corpus = 0
        self.seconds = 0.0
        self.code: int | None = None
        self._longest = longest
        self._older: set[Path] = set()
        self._last: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
        self._corpus_folder = FOLDER / "corpus" / name
        self._findings_folder = FOLDER / "findings" / name

    @property
    def findings(self) -> list[Path]:
        """Those of this run: what an earlier one found stays in the folder."""
        return sorted(set(self._findings_folder.glob("*")) - self._older)

    @property
    def failed(self) -> bool:
        """Whether its run did not end well: it found something, or could not run at all."""
        return self.code != 0

    def words(self) -> str:
        """Give the end of what the program said."""
        return "\n".join([f"--- {self.name}, exit status {self.code}", *self._last])

    def to_dict(self) -> dict[str, Any]:
        """Give what is known of the run."""
        return {
            "inputs": self.inputs,
            "seconds": self.seconds,
            "features": self.features,
            "corpus": self.corpus,
            "exit": self.code,
            "findings": [str(path.relative_to(ROOT)) for path in self.findings],
        }

    def _command(self) -> list[str]:
        if self.is_c:
            return [str(FOLDER / f"fuzz_{self.name}")]
        return [sys.executable, "-m", "tests.fuzz.python_main", self.name]

    def how_to_repeat(self) -> str:
        """Write the command that runs the first finding again."""
        found = [os.path.relpath(path) for path in self.findings[:1]]
        return shlex.join([os.path.relpath(part) if part.startswith("/") else part for part in self._command()] + found)

    def _lay_out(self) -> None:
        for folder in (self._corpus_folder, self._findings_folder):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(self.name)):
            (self._corpus_folder / f"seed-{number:03}").write_bytes(seed)
        self._older = set(self._findings_folder.iterdir())

    async def run(self, seconds: int, seed: int, show: Callable[[Target], None]) -> None:
        """Run it for so many seconds, and know what became of it."""
        self._lay_out()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
            "ASAN_OPTIONS": "detect_leaks=1:detect_stack_use_after_return=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        began = time.monotonic()
        process = await asyncio.create_subprocess_exec(
            *self._command(),
            f"-max_total_time={seconds}",
            f"-max_len={self._longest}",
            "-len_control=20",
            f"-timeout={_SLOW_S}",
            f"-rss_limit_mb={_MEMORY_MB}",
            f"-seed={seed}",
            f"-artifact_prefix={self._findings_folder}/",
            str(self._corpus_folder),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            process_group=0,
        )
        try:
            async with asyncio.timeout(seconds + _GRACE_S):
                await self._follow(process, began, show)
                self.code = await process.wait()
        except TimeoutError:
            self._last.append(f"it did not end {_GRACE_S:g} s after its time")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        show(self)

    async def _follow(self, process: asyncio.subprocess.Process, began: float, show: Callable[[Target], None]) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            self._last.append(line.decode(errors="replace").rstrip())
            if (status := _STATUS.match(line)) is not None:
                self.inputs, self.features, self.corpus = map(int, status.groups())
                self.seconds = time.monotonic() - began
                show(self)
