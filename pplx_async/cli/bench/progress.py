# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a benchmark is at, while it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from pplx_async.cli.bench.rows import Row
from pplx_async.cli.bench.table import digits
from pplx_async.cli.bench.works import Work

__all__ = ["BenchView"]


class BenchView:
    """A bar over the works, and a line for each that is through; used with ``with``.

    Parameters
    ----------
    console : Console
        Where.
    works : int
        How many there will be.

    Attributes
    ----------
    changed : float
        When the last repetition began, on the clock of `time.monotonic`.
    """

    def __init__(self, console: Console, works: int) -> None:
        columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task("opening", total=works)
        self._where = "opening"
        self.changed = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_step(self, work: Work, name: str) -> None:
        """Take in that somebody begins something."""
        self.changed = time.monotonic()
        self._where = f"{work.key}: {name}"
        self._progress.update(self._task, description=self._where)

    def on_rows(self, rows: Sequence[Row], work: Work) -> None:
        """Take in the results of a work."""
        figures = ", ".join(f"{row['name']} {digits(row['value'])}" for row in rows)
        self._progress.console.print(Text(f"{work.key:14} {work.unit:5} {figures}", style="dim"))
        self._progress.advance(self._task)

    def where(self) -> str:
        """Say what is going on, for an error."""
        return self._where
