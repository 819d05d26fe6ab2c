# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Put the figures of ``results/gpu-*.json`` into ``docs/gpu.md``, between its two marks; without any, leave it alone.

python -m benchmarks.gpu.figures
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from benchmarks.figures import RESULTS, ROOT, insert
from benchmarks.gpu.lines import NAMES, TITLES, Line, lines_of
from pplx_async.cli.bench.rows import key
from pplx_async.cli.bench.table import digits

__all__ = ["MARKS", "PAGE", "main", "render", "render_peers"]

PAGE = ROOT / "docs" / "gpu.md"
MARKS = ("<!-- figures: written by make bench-gpu -->", "<!-- end of figures -->")
_HEADS = {"c": "C", "spin": '`wakeup="spin"`', "eventfd": '`wakeup="eventfd"`'}
_MET = {True: "yes", False: "no", None: "?"}


def render(result: dict[str, Any]) -> str:
    """Write a result of `measure` as Markdown."""
    quick = ", **quick: not to be quoted**" if result["quick"] else ""
    lines = [
        "### One GPU" if result["gpus"] == 1 else "### Two GPUs",
        "",
        f"{_about(result)}, medians of {result['runs']} repetitions{quick}.",
        "",
        _row(["", "unit", *(_HEADS[name] for name in NAMES), "aim"]),
        _row(["---"] * (len(NAMES) + 3)),
        *(_row(_cells(line)) for line in lines_of(result["rows"])),
        *_notes(result["failed"], "failed"),
    ]
    return "\n".join([*lines, ""])


def render_peers(result: dict[str, Any]) -> str:
    """Write a result of `peers` as Markdown: a line for each work, and why who isn't there is not."""
    rows = {(row["name"], key(row)): row for row in result["rows"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    works = list(dict.fromkeys(work for _, work in rows))
    lines = [f"#### Beside others, {'one GPU' if result['gpus'] == 1 else 'two GPUs'}", ""]
    if rows:
        lines += [f"{_about(result)}.", "", _row(["", "unit", *names]), _row(["---"] * (len(names) + 2))]
    for work in works:
        found = [rows.get((name, work)) for name in names]
        unit = next(row["unit"] for row in found if row)
        lines.append(_row([TITLES.get(work, work).split(",")[0], unit, *(_times(row) for row in found)]))
    return "\n".join([*lines, *_notes(result["absent"], "is absent"), *_notes(result["failed"], "failed"), ""])


def _times(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    return digits(row["value"]) + (f" ({digits(row['p99'])})" if row.get("p99") is not None else "")


def _about(result: dict[str, Any]) -> str:
    cards = ", ".join(dict.fromkeys(result["cards"]))
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    driver = f", driver {result['driver']}" if result["driver"] else ""
    return f"{cards}{driver}, CUDA {result['cuda']}, {versions}, {result['date']}"


def _cells(line: Line) -> list[str]:
    figures = ["-" if (value := line.figures[name]) is None else digits(value) for name in NAMES]
    met = [f"{name}: {_MET[verdict]}" for name, verdict in line.met.items()]
    aim = f"`{line.aim}`" + (f" ({', '.join(met)})" if met else "") if line.aim else ""
    return [line.title.strip(), line.unit, *figures, aim]


def _notes(reasons: dict[str, str], what: str) -> list[str]:
    return ["", *(f"- `{name}` {what}: {reason}" for name, reason in reasons.items())] if reasons else []


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Read the results, and write the page."""
    sections = []
    for gpus in (2, 1):
        for path, write in ((f"gpu-{gpus}.json", render), (f"gpu-{gpus}-peers.json", render_peers)):
            if (RESULTS / path).exists():
                sections.append(write(json.loads((RESULTS / path).read_text())))
    if sections:
        PAGE.write_text(insert(PAGE.read_text(), "\n".join(sections), MARKS))
    print(f"{len(sections)} tables written into {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
