# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The progress of fuzzing: a bar for each target on a terminal, a line when one has ended elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from tests.fuzz.target import Target

__all__ = ["View"]


class View:
    """Used with ``with``."""

    def __init__(self, console: Console, targets: list[Target], seconds: float) -> None:
        self._console = console
        self._seconds = seconds
        self._progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks = {target.name: self._progress.add_task(target.name, total=seconds, text="") for target in targets}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, target: Target) -> None:
        """Draw how far it is."""
        text = f"{target.inputs} inputs, {target.features} features"
        seconds = min(target.seconds, self._seconds)
        self._progress.update(self._tasks[target.name], completed=seconds, text=text)
        if target.code is not None and not self._console.is_terminal:
            how = "nothing found" if target.code == 0 else f"exit status {target.code}"
            self._console.print(f"{target.name}: {text}, {target.seconds:.0f} s: {how}", markup=False)
