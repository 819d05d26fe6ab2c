# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The plot of ``pplx-async bench``: a panel for each sort of work, bars of ours beside those of C."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pplx_async.cli.bench.rows import Row, key
from pplx_async.cli.bench.table import digits
from pplx_async.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_plotting", "plot"]

_PANELS = {
    "Ping-pong, half a round trip (lower is better)": (("pingpong",), "us"),
    "Stream": (("stream",), "GB/s"),
    "Pages and scatter": (("pages", "scatter"), "thousands a second"),
    "Awaits": (("awaits",), "thousands a second"),
}
# The others have values of several orders of magnitude side by side.
_LINEAR = "Stream"
# Told apart by those who see fewer colours too, and in print.
_COLOURS = ("#0b6e4f", "#8d99ae", "#c9cfdb", "#e3b23c")


def check_plotting() -> None:
    """Find out that there is nothing to plot with before anything is measured.

    Raises
    ------
    CommandError
        matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise CommandError(
            f"--plot needs the package {error.name}, which is not installed",
            hint="`pip install 'pplx_async[bench]'` brings it.",
            code=ExitCode.UNAVAILABLE,
        ) from error


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write the figures as a PNG."""
    from matplotlib.figure import Figure  # draws into files alone: no display, no global state

    shown = [name for name, (works, _) in _PANELS.items() if any(row["work"] in works for row in rows)]
    figure = Figure(figsize=(10, 0.6 + 2.6 * max(1, (len(shown) + 1) // 2)), layout="constrained")
    figure.suptitle(title)
    names = list(dict.fromkeys(row["name"] for row in rows))
    for number, name in enumerate(shown, 1):
        works, unit = _PANELS[name]
        axes = figure.add_subplot((len(shown) + 1) // 2, min(2, len(shown)), number)
        axes.set_title(name, loc="left", fontsize="medium")
        if name == _LINEAR:
            axes.set_ylabel(unit, fontsize="small")
        else:
            axes.set_yscale("log")
            axes.set_ylabel(f"{unit}, logarithmic", fontsize="small")
        _bars(axes, [row for row in rows if row["work"] in works], names)
    if shown:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path, dpi=120, format="png")


def _bars(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    keys = list(dict.fromkeys(key(row) for row in rows))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        values = {key(row): row["value"] for row in rows if row["name"] == name}
        places = [i + (number - (len(names) - 1) / 2) * width for i in range(len(keys))]
        heights = [values.get(work, math.nan) for work in keys]
        bars = axes.bar(places, heights, width, label=name, color=_COLOURS[number % len(_COLOURS)])
        axes.bar_label(bars, ["" if math.isnan(value) else digits(value) for value in heights], fontsize="x-small")
    axes.set_xticks(range(len(keys)), keys)
    axes.margins(y=0.15)
    axes.spines[["top", "right"]].set_visible(False)
