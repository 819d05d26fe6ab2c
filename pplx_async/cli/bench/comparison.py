# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The table of ``pplx-async bench``: a line for each work; ours, C's, our value over C's, and the aim."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from pplx_async.cli.bench.aims import judge
from pplx_async.cli.bench.quiet import QUIET
from pplx_async.cli.bench.rows import Row, key
from pplx_async.cli.bench.table import digits

__all__ = ["Line", "comparison", "lines_of"]

_TITLES = {
    "pingpong": "ping-pong {size}, half a round trip",
    "stream": "stream {size}, {inflight} in flight",
    "pages": "{count} pages of {size} in one await",
    "scatter": "scatter {each} x {size} to each of {targets}",
    "awaits": "awaits a second, {inflight} in flight",
    "idle": "processor time of a waiting engine",
    "sparse": "processor time, a write each ms",
    "register": "register {size}",
}


class Line(NamedTuple):
    """One line of the table, for humans.

    Attributes
    ----------
    title, unit : str
        What was measured.
    ours : tuple of (float, bool)
        Our figure, and whether others disturbed it.
    c : list of (float, bool) or None
        That of each C program, None where it has none.
    aim : str
        Empty without one.
    met : bool or None
        None where it cannot be told.
    """

    title: str
    unit: str
    ours: tuple[float, bool]
    c: list[tuple[float, bool] | None]
    aim: str
    met: bool | None

    def ratio(self, number: int) -> float | None:
        """Divide ours by that of a C program; a processor that sleeps is not worth it."""
        other = self.c[number]
        return self.ours[0] / other[0] if other and other[0] and self.unit != "%" else None


def lines_of(rows: Sequence[Row], ours: str) -> tuple[list[str], list[Line]]:
    """Put rows side by side; return the names of the C programs, and a line for each figure of ours."""
    names = list(dict.fromkeys(row["name"] for row in rows if row["name"] != ours))
    found = {(row["name"], key(row)): row for row in rows}
    verdicts = {verdict["work"]: verdict for verdict in judge(rows, ours)}
    lines = []
    for row in (row for row in rows if row["name"] == ours):
        others = [found.get((name, key(row))) for name in names]
        verdict = verdicts.get(key(row), {"aim": "", "met": None})
        title = _TITLES[row["work"]].format(**row, size=_size(row["nbytes"]), each=row["count"] // row["targets"])
        if row["work"] == "register":
            title += f", {row['memory_nbytes'] / (1 << 20):.1f} MiB more memory"
        lines.append(_line(title, row["unit"], "value", row, others, verdict["aim"], verdict["met"]))
        if row.get("p99") is not None:
            lines.append(_line("  99th percentile", row["unit"], "p99", row, others, "", None))
    return names, lines


def _line(
    title: str, unit: str, field: str, row: Row, others: Sequence[Row | None], aim: str, met: bool | None
) -> Line:
    def figure(row: Row) -> tuple[float, bool]:
        return row[field], (row.get("others") or 0.0) >= QUIET

    return Line(title, unit, figure(row), [figure(other) if other else None for other in others], aim, met)


def _size(nbytes: int) -> str:
    for unit, one in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if nbytes % one == 0:
            return f"{nbytes // one} {unit}"
    return f"{nbytes} B"


def comparison(rows: Sequence[Row], ours: str) -> Table:
    """Make the table."""
    names, lines = lines_of(rows, ours)
    notes = ["x: ours divided by that of C"] if names else []
    if any(disturbed for line in lines for _, disturbed in [line.ours, *filter(None, line.c)]):
        notes.append("~: others used the machine meanwhile")
    table = Table(caption="; ".join(notes) or None, caption_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column(ours, justify="right", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
        table.add_column("x", justify="right", no_wrap=True, style="dim")
    table.add_column("aim", no_wrap=True)
    for line in lines:
        cells = [_figure(line.ours, "bold")]
        for number, other in enumerate(line.c):
            ratio = line.ratio(number)
            cells += [_figure(other), Text("" if ratio is None else digits(ratio, 2))]
        style = {True: "green", False: "red", None: "dim"}[line.met]
        mark = {True: "yes: ", False: "no: ", None: ""}[line.met]
        table.add_row(line.title, line.unit, *cells, Text(mark + line.aim if line.aim else "", style=style))
    return table


def _figure(figure: tuple[float, bool] | None, style: str = "") -> Text:
    if figure is None:
        return Text("-", style="dim")
    value, disturbed = figure
    return Text.assemble((digits(value), style), ("~", "yellow") if disturbed else "")
