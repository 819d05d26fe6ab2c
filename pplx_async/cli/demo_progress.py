# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a demo, and the note of when something last moved."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from pplx_async.cli.output import size
from pplx_async.cli.side_link import Event, Moved, Phase

__all__ = ["ProgressView"]


class ProgressView:
    """Shows what the sides of a demo are at; used with ``with``.

    Sides that are in the same phase share a bar: both directions of ``demo pages`` are one.

    Parameters
    ----------
    console : Console
        Where; a file or a pipe gets one line for each phase, at the end.

    Attributes
    ----------
    changed : float
        When something last moved, on the clock of `time.monotonic`.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:>10}"),
            BarColumn(),
            DownloadColumn(),
            TextColumn("{task.fields[rate]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._phase: dict[str, Phase] = {}
        self._moved: dict[str, int] = {}
        self.changed = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_event(self, side: str, event: Event) -> None:
        """Take an event of one side in."""
        if not isinstance(event, Moved):
            self.changed = time.monotonic()
        if isinstance(event, Phase):
            self._phase[side] = event
            self._moved[side] = 0
            self._draw(event.name)
        elif isinstance(event, Moved) and event.nbytes > self._moved.get(side, 0):
            # A report that says the same again is no sign of life of the transfer.
            self.changed = time.monotonic()
            self._moved[side] = event.nbytes
            self._draw(self._phase[side].name)

    def _draw(self, name: str) -> None:
        sides = [side for side, phase in self._phase.items() if phase.name == name]
        total = sum(self._phase[side].nbytes for side in sides)
        if not total:
            return
        if name not in self._tasks:
            self._began[name] = time.monotonic()
            self._tasks[name] = self._progress.add_task(name, total=total, rate="")
        moved = sum(self._moved[side] for side in sides)
        # rich's own rate needs several reports, and a fast phase has only one.
        rate = moved / max(time.monotonic() - self._began[name], 1e-9)
        self._progress.update(self._tasks[name], total=total, completed=moved, rate=f"{size(rate)}/s")

    def where(self) -> str:
        """Say what each side is at, for an error."""
        states = []
        for side, phase in self._phase.items():
            through = f", {size(self._moved[side])} of {size(phase.nbytes)}" if phase.nbytes else ""
            states.append(f"{side}: {phase.name}{through}")
        return "; ".join(states) or "nothing had begun"
