# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measure each work in C, with ``wakeup="spin"`` and with ``"eventfd"``, by turns, and write down what there is so far.

python -m benchmarks.gpu.measure --results FOLDER [--gpus N] [--works KEY,KEY] [--quick]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import about
from benchmarks.gpu.cuda import Cuda
from benchmarks.gpu.pair import Pair
from benchmarks.gpu.plot import plot
from benchmarks.gpu.side import Given
from benchmarks.gpu.works import FIELDS, ROUNDS, WORKS, arena_nbytes, find, shrink
from pplx_async.cli.bench.c_program import C_FOLDER, CProgram, program_path
from pplx_async.cli.bench.rows import Row, make_line, make_row
from pplx_async.cli.bench.works import Work

__all__ = ["main", "row_of"]

WAKEUPS = ("spin", "eventfd")
STEP_SECONDS = 30


def row_of(lines: list[Row], name: str) -> Row:
    """Sum up the repetitions of a work: medians, but of what is the longest of all, the longest."""
    row = make_row(lines, name)
    for field in FIELDS:
        values = [line[field] for line in lines if line.get(field) is not None]
        if values:
            row[field] = max(values) if field == "max" else statistics.median(values)
    return row


class Measurement:
    """All works, one after the other; `result` is what is known by now."""

    def __init__(self, options: argparse.Namespace, cuda: Cuda, gpus: int) -> None:
        self._options, self._gpus = options, gpus
        self._arena = arena_nbytes(options.works)
        self._pairs: dict[str, Pair] = {}
        self._failed: dict[str, str] = {}
        self._rows: list[Row] = []
        self._about = about.describe(cuda, gpus, ["numpy", "Cython"])

    @property
    def result(self) -> dict[str, Any]:
        """As it goes into the file."""
        counted = {"quick": self._options.quick, "runs": self._options.runs}
        return self._about | counted | {"rows": self._rows, "failed": self._failed}

    async def run(self) -> int:
        """Measure all; return the exit status."""
        path = self._options.results / f"gpu-{self._gpus}.json"
        try:
            for work in self._options.works:
                for name, lines in (await self._measure(work)).items():
                    if lines:
                        self._rows.append(row_of(lines, name))
                        print(f"  {work.key:12} {name:8} {self._rows[-1]['value']:12.4g} {work.unit}", flush=True)
                about.write(path, self.result)
        finally:
            for name in WAKEUPS:
                await self._close(name)
        plot(self.result, path.with_suffix(".png"))
        return 1 if self._failed else 0

    def _fail(self, work: Work, name: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {error}"
        self._failed[f"{work.key} {name}"] = reason
        print(f"  {work.key:12} {name:8} failed: {reason}", flush=True)

    async def _measure(self, work: Work) -> dict[str, list[Row]]:
        """Have them take turns, one repetition each; who fails is left out from there on."""
        lines: dict[str, list[Row]] = {"c": [], **{wakeup: [] for wakeup in WAKEUPS}}
        with contextlib.ExitStack() as stack:
            program = stack.enter_context(self._program(work))
            for run in range(self._options.runs + 1):  # the first one is not counted
                for name in lines:
                    if f"{work.key} {name}" in self._failed:
                        continue
                    try:
                        line = await self._step(work, name, program)
                    except Exception as error:
                        self._fail(work, name, error)
                        continue
                    if run:
                        lines[name].append(line | {"name": name, "run": run, "runs": self._options.runs})
        return lines

    def _program(self, work: Work) -> CProgram:
        options = self._options
        arguments = [f"--library={options.library}", f"--kernels={options.kernels}", f"--gpus={self._gpus}"]
        arguments += [f"--arena={self._arena}", f"--rounds={ROUNDS}", f"--timeout={STEP_SECONDS}"]
        return CProgram(program_path("gpu_bench"), work, arguments)

    async def _step(self, work: Work, name: str, program: CProgram) -> Row:
        if name == "c":
            return await asyncio.to_thread(program.step)
        try:
            if name not in self._pairs:
                pair = Pair(self._given(name), self._gpus)
                await pair.open()
                self._pairs[name] = pair
            async with asyncio.timeout(STEP_SECONDS):
                measured = await self._pairs[name].step(work)
        except BaseException:
            await self._close(name)  # whatever is under way there: the next work has a new one
            raise
        return make_line(work, {"name": name, "provider": "ipc", "wait": name}, measured)

    async def _close(self, name: str) -> None:
        if pair := self._pairs.pop(name, None):
            with contextlib.suppress(Exception):
                await pair.close()

    def _given(self, wakeup: str) -> Given:
        options = self._options
        stamps = str(C_FOLDER / "gpu_stamps.so")
        return Given(options.library, str(options.kernels), stamps, 0, wakeup, self._arena)


def _works(text: str) -> Sequence[Work]:
    try:
        return [find(key) for key in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the files to write")
    parser.add_argument("--works", type=_works, default=WORKS, help="some of them, such as write-8,stream-1M")
    parser.add_argument("--gpus", type=int, choices=[1, 2], help="how many to use; by default 2, if there are")
    parser.add_argument("--runs", type=int, default=5, help="repetitions of each work")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--library", default="libcuda.so.1", help="the libcuda to use")
    parser.add_argument("--kernels", type=Path, default=C_FOLDER / "gpu_kernels.ptx", help="PTX of kernels.cu")
    options = parser.parse_args(arguments)
    if options.quick:
        options.works, options.runs = [shrink(work) for work in options.works], 1
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and return the exit status."""
    options = _parse(arguments)
    cuda = Cuda(options.library)
    measurement = Measurement(options, cuda, min(options.gpus or 2, cuda.gpus))
    return asyncio.run(measurement.run())


if __name__ == "__main__":
    sys.exit(main())
