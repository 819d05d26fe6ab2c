# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Rows of results as tables: a line for each name, a column for each work, ratios to one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table
from rich.text import Text

from pplx_async.cli.bench.quiet import QUIET
from pplx_async.cli.bench.rows import Row, key
from pplx_async.cli.bench.works import WORKS, Work

__all__ = ["digits", "ratio", "tables"]


class _Column(NamedTuple):
    title: str
    work: Work
    field: str = "value"


_BY_KEY = {work.key: work for work in WORKS}
_LATENCY = (
    _Column("8 B p50\nus", _BY_KEY["pingpong-8"]),
    _Column("8 B p99\nus", _BY_KEY["pingpong-8"], "p99"),
    _Column("4 KiB p50\nus", _BY_KEY["pingpong-4K"]),
    _Column("4 KiB p99\nus", _BY_KEY["pingpong-4K"], "p99"),
    _Column("1 await\nk/s", _BY_KEY["awaits-1"]),
    _Column("64\nk/s", _BY_KEY["awaits-64"]),
    _Column("1024\nk/s", _BY_KEY["awaits-1024"]),
    _Column("waiting\n% CPU", _BY_KEY["idle"]),
)
_BULK = (
    _Column("64 KiB\nGB/s", _BY_KEY["stream-64K"]),
    _Column("1 MiB\nGB/s", _BY_KEY["stream-1M"]),
    _Column("16 MiB\nGB/s", _BY_KEY["stream-16M"]),
    _Column("pages 64 KiB\nk/s", _BY_KEY["pages-64K"]),
    _Column("pages 1 KiB\nk/s", _BY_KEY["pages-1K"]),
    _Column("scatter 7 KiB\nk/s", _BY_KEY["scatter-7K"]),
)


def ratio(row: Row, base: Row, work: Work, field: str = "value") -> float | None:
    """Say how many times as good as the row the base is; None where there is nothing to divide."""
    ours: float | None = base.get(field)
    theirs: float | None = row.get(field)
    if not ours or not theirs:
        return None
    return theirs / ours if work.lower_is_better else ours / theirs


def tables(rows: Sequence[Row], base: str) -> list[Table]:
    """Make the tables; ``base`` is the name that all others are compared with."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    found = {(row["name"], key(row)): row for row in rows}
    notes = [f"in brackets: how many times as good {base} is"] if base in names else []
    if any((row.get("others") or 0.0) >= QUIET for row in rows):
        notes.append("~: others used the machine meanwhile")
    caption = "; ".join(notes) or None
    return [
        _table(title, columns, names, found, base, caption)
        for title, columns in (("Latency, awaits, idle", _LATENCY), ("Throughput", _BULK))
    ]


def _table(
    title: str,
    columns: Sequence[_Column],
    names: Sequence[str],
    found: dict[tuple[str, str], Row],
    base: str,
    caption: str | None,
) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.title, justify="right", no_wrap=True)
    for name in names:
        cells = [
            _cell(found.get((name, column.work.key)), found.get((base, column.work.key)), column, name == base)
            for column in columns
        ]
        table.add_row(Text(name, style="bold" if name == base else ""), *cells)
    return table


def _cell(row: Row | None, base: Row | None, column: _Column, is_base: bool) -> Text:
    if row is None or row.get(column.field) is None:
        return Text("-", style="dim")
    value = row[column.field]
    # A processor that sleeps is not worth a ratio, and neither are we beside ourselves.
    factor = ratio(row, base, column.work, column.field) if base and not is_base and column.work.unit != "%" else None
    parts: list[str | tuple[str, str]] = [(digits(value), "bold" if is_base else "")]
    if (row.get("others") or 0.0) >= QUIET:
        parts.append(("~", "yellow"))
    if factor is not None:
        parts.append((f" ({digits(factor, 2)})", "dim"))
    return Text.assemble(*parts)


def digits(value: float, wanted: int = 3) -> str:
    """Write a figure: so many significant digits, but no more than four behind the point, and no exponent."""
    if value >= 10 ** (wanted - 1):
        return f"{value:.0f}"
    return f"{value:.{wanted}g}" if value >= 0.001 else f"{value:.4f}".rstrip("0").rstrip(".")
