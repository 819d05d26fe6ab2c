# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Results side by side, for the table and the plot: what is compared with what, and whether an aim is met."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.gpu.works import AIMS
from pplx_async.cli.bench.rows import Row, key

__all__ = ["NAMES", "TITLES", "Line", "lines_of"]

#: Who takes turns.
NAMES = ("c", "spin", "eventfd")

TITLES = {
    "write-8": "write of 8 B, from the call to the count at the receiver",
    "write-64K": "of 64 KiB",
    "write-1M": "of 1 MiB",
    "gated-8": "write of 8 B, from the call to a kernel behind a gate at the receiver",
    "gate-8": "last immediate to that kernel",
    "doorbell-8": "doorbell: a kernel's store to data leaving behind it",
    "watch-8": "a kernel's number to a coroutine, and back",
    "compute-8": "a kernel on the whole GPU, while a stream waits in a gate",
    "stream-64K": "stream of 64 KiB, 64 in flight",
    "stream-1M": "stream of 1 MiB, 16 in flight",
    "stream-64M": "stream of 64 MiB, 16 in flight",
    "burst-64K": "1024 pages of 64 KiB in one await, from rest (C: one kernel)",
    "pages-64K": "16 times that, four awaits at a time (C: one kernel for all)",
}
_FIELDS = {"p50": "", "value": "", "p99": "99 %", "p999": "99.9 %", "max": "longest"}


class Line(NamedTuple):
    """One line: a figure of each of `NAMES`, None where there is none.

    Attributes
    ----------
    title, unit : str
        Of what.
    figures : dict
        By name.
    aim : str
        Empty without one.
    met : dict
        By name of ours; without C to compare with None.
    """

    title: str
    unit: str
    figures: dict[str, float | None]
    aim: str
    met: dict[str, bool | None]


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """Make the lines: of a time its median, its 99th percentile, and what else has an aim."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(key(row), {})[row["name"]] = row
    lines = []
    for work, by_name in found.items():
        unit = next(iter(by_name.values()))["unit"]
        aims = dict(AIMS.get(work, ()))
        fields = dict.fromkeys(["p50", "p99"] if unit == "us" else ["value"]) | dict.fromkeys(aims)
        for field in fields:
            title = f"  {_FIELDS[field]}" if _FIELDS[field] else TITLES.get(work, work)
            lines.append(_line(title, unit, field, by_name, aims.get(field)))
    return lines


def _line(title: str, unit: str, field: str, by_name: dict[str, Row], aim: Any) -> Line:
    figures = {name: by_name[name].get(field) if name in by_name else None for name in NAMES}
    met = {}
    for name in NAMES[1:]:
        ours = figures[name]
        if aim is not None and ours is not None:
            met[name] = aim.is_met(ours, figures["c"])
    return Line(title, unit, figures, str(aim) if aim is not None else "", met)
