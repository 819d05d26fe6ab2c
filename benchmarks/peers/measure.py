# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measure one line of the tables: a plain C program, or a peer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.peers.processes import run_peer
from benchmarks.peers.registry import Peer
from pplx_async.cli.bench.c_program import CProgram, CRow, program_path
from pplx_async.cli.bench.quiet import PAUSE, Load, Samples, await_quiet
from pplx_async.cli.bench.rows import Row, numbered
from pplx_async.cli.bench.works import Work

__all__ = ["Settings", "measure_c", "measure_peer"]


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes
    ----------
    works : sequence of Work
        What is done.
    runs : int
        Repetitions that are kept.
    patience : float
        Seconds to wait for a quiet machine, before each line and again for each work.
    idle_seconds : int
        Length of the work ``idle``.
    timeout : float
        Seconds that a whole peer may take.
    library, provider : str
        For ``fabric_bench``.
    """

    works: Sequence[Work]
    runs: int
    patience: float
    idle_seconds: int
    timeout: float
    library: str
    provider: str


def measure_c(row: CRow, settings: Settings, on_line: Callable[[Row], None]) -> None:
    """Run a C program through all works."""
    arguments = [f"--wait={row.wait}", f"--seconds={settings.idle_seconds}"]
    if row.program == "fabric_bench":
        arguments += [f"--library={settings.library}", f"--provider={settings.provider}"]
    await_quiet(settings.patience)
    for work in settings.works:
        runs = 1 if work.name == "idle" else settings.runs
        samples: Samples[Row] = Samples(runs, settings.patience)
        with CProgram(program_path(row.program), work, arguments) as program:
            load = Load(program.find_pids())
            while samples.wanted:
                if samples.disturbed:
                    time.sleep(PAUSE)
                load.start()
                line = program.step()
                samples.add(load.cores(), line)
        for line in numbered(samples.best):
            on_line(line)


def measure_peer(peer: Peer, settings: Settings, on_line: Callable[[Row], None]) -> None:
    """Run a peer, whose environment is there, through all works."""
    await_quiet(settings.patience)
    options = {
        "works": ",".join(work.key for work in settings.works),
        "runs": settings.runs,
        "patience": settings.patience,
        "idle-seconds": settings.idle_seconds,
    }
    run_peer(peer, [f"--{name}={value}" for name, value in options.items()], settings.timeout, on_line)
