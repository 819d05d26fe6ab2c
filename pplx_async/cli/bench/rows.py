# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""From the lines that programs print, one for each repetition, to the rows of a results file.

A *line* is what the C programs print, and the peers too: ``name``, ``work``, ``provider``, ``wait``,
``nbytes``, ``count``, ``inflight``, ``targets``, ``run``, ``runs``, ``value``, ``unit``, ``p50``,
``p99``; and ``others``, the cores that other processes took meanwhile, from whoever has looked.

A *row* has the same keys, but for ``run``: ``value``, ``p50`` and ``p99`` are the medians over the
repetitions, and ``runs`` is the list of their values. A file has ``{"rows": [...]}`` and whatever else
its writer wants to say.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplx_async.cli.bench.works import Work, key_of

__all__ = ["Row", "key", "line_of", "load_rows", "make_line", "make_row", "numbered"]

Row = dict[str, Any]
_NEEDED = ("name", "work", "provider", "wait", "nbytes", "inflight", "value", "unit")


def key(row: Row) -> str:
    """Name the work of a row or line."""
    return key_of(row["work"], row["nbytes"], row["inflight"])


def make_line(work: Work, about: Row, measured: Row) -> Row:
    """Describe one repetition.

    Parameters
    ----------
    work : Work
        What was done.
    about : dict
        ``name``, ``provider``, ``wait``, ``run`` and ``runs``.
    measured : dict
        ``value``, and what else is known.
    """
    sizes = {"work": work.name, "nbytes": work.nbytes, "count": work.count}
    sizes |= {"inflight": work.inflight, "targets": work.targets, "unit": work.unit}
    return about | sizes | {"p50": None, "p99": None} | measured


def line_of(text: str) -> Row | None:
    """Read a line that a program printed; None if it is something else, such as a log."""
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) and "work" in values and "value" in values else None


def numbered(samples: Sequence[tuple[float, Row]]) -> list[Row]:
    """Make lines of the repetitions that are kept, each with the cores that others took meanwhile."""
    runs = len(samples)
    return [line | {"run": i, "runs": runs, "others": round(others, 3)} for i, (others, line) in enumerate(samples, 1)]


def make_row(lines: list[Row], name: str) -> Row:
    """Sum up the repetitions of one work."""
    row = {field: value for field, value in lines[0].items() if field != "run"} | {"name": name}
    for field in ("value", "p50", "p99", "others"):
        values = [line[field] for line in lines if line.get(field) is not None]
        row[field] = statistics.median(values) if values else None
    row["runs"] = [line["value"] for line in lines]
    return row


def load_rows(path: Path) -> list[Row]:
    """Read the rows of a results file, such as another program has written."""
    rows: list[Row] = json.loads(path.read_text())["rows"]
    for row in rows:
        missing = [field for field in _NEEDED if field not in row]
        if missing:
            raise ValueError(f"{path}: a row without {', '.join(missing)}")
    return rows
