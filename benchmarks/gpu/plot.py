# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The plot of a result: times and rates, bars of ours beside those of C."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from benchmarks.gpu.lines import NAMES
from pplx_async.cli.bench.rows import key
from pplx_async.cli.bench.table import digits

__all__ = ["plot"]

_COLOURS = {"c": "#8d99ae", "spin": "#0b6e4f", "eventfd": "#e3b23c"}
_PANELS = {"us": "microseconds, median (lower is better)", "GB/s": "GB/s"}


def plot(result: dict[str, Any], path: Path) -> None:
    """Write it as a PNG; says so and writes none where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure  # draws into files alone: no display, no global state
    except ModuleNotFoundError:
        print("no plot: matplotlib is not installed")
        return
    figure = Figure(figsize=(11, 7), layout="constrained")
    cards = f"{result['gpus']} x {result['cards'][0]}"
    figure.suptitle(f"pplx_async between GPUs beside plain CUDA C ({cards}, {result['date']})")
    panels = [unit for unit in _PANELS if any(row["unit"] == unit for row in result["rows"])]
    for number, unit in enumerate(panels, 1):
        axes = figure.add_subplot(len(panels), 1, number)
        axes.set_title(_PANELS[unit], loc="left", fontsize="medium")
        if unit == "us":
            axes.set_yscale("log")
        rows = [row for row in result["rows"] if row["unit"] == unit]
        works = list(dict.fromkeys(key(row) for row in rows))
        for place, name in enumerate(NAMES):
            values = {key(row): row["value"] for row in rows if row["name"] == name}
            heights = [values.get(work, math.nan) for work in works]
            bars = axes.bar(
                [i + (place - 1) * 0.27 for i in range(len(works))], heights, 0.27, label=name, color=_COLOURS[name]
            )
            texts = ["" if math.isnan(height) else digits(height) for height in heights]
            axes.bar_label(bars, texts, fontsize="x-small")
        axes.set_xticks(range(len(works)), works)
        axes.margins(y=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    if panels:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(NAMES), frameon=False)
    figure.savefig(path, dpi=120, format="png")
