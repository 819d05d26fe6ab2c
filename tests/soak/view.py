# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The progress of a run: a bar on a terminal, a line for each cycle elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from pplx_async.cli.output import size
from tests.soak.events import Totals

__all__ = ["View"]


class View:
    """Used with ``with``.

    Parameters
    ----------
    console : Console
        Where.
    seconds : float
        What the run is to take.
    """

    def __init__(self, console: Console, seconds: float) -> None:
        self._console = console
        self._seconds = seconds
        self._progress = Progress(
            TextColumn("{task.fields[second]:>5.0f} s"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=seconds, second=0.0, text="connecting")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, second: float, totals: dict[str, Totals], kills: int) -> None:
        """Draw how far it is."""
        done = sum(each.done for each in totals.values())
        nbytes = sum(each.nbytes for each in totals.values())
        text = f"{done} exercises, {size(nbytes)}, {kills} kills"
        self._progress.update(self._task, completed=min(second, self._seconds), second=second, text=text)

    def log(self, second: float, text: str) -> None:
        """Print a line, where there is no bar."""
        if not self._console.is_terminal:
            self._console.print(f"[{second:5.0f} s] {text}", markup=False)
