# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Put the figures of ``results/*.json`` into ``docs/benchmarks.md``, between its two marks.

python -m benchmarks.figures
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pplx_async.cli.bench.comparison import Line, lines_of
from pplx_async.cli.bench.quiet import QUIET
from pplx_async.cli.bench.rows import key
from pplx_async.cli.bench.table import digits
from pplx_async.cli.bench.works import WORKS

__all__ = ["insert", "render", "render_peers"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"


def render(results: Sequence[dict[str, Any]]) -> str:
    """Write results as Markdown, a table each."""
    return "\n".join(line for result in results for line in _section(result))


def _section(result: dict[str, Any]) -> list[str]:
    about = result["machine"]
    names, lines = lines_of(result["rows"], result["name"])
    columns = ["", "unit", f"`{result['name']}`", *(column for name in names for column in (f"`{name}`", "x")), "aim"]
    quick = ", **quick: not to be quoted**" if result["quick"] else ""
    return [
        f"### {result['name']}",
        "",
        f"{about['cores']} cores of {about['processor']}, {about['memory_gib']} GiB, {about['system']}, "
        f"Python {about['python']}, {result['loop']}, {result['runs']} runs{quick}.",
        "",
        _row(columns),
        _row(["---"] * len(columns)),
        *(_row(_cells(line)) for line in lines),
        "",
    ]


def _cells(line: Line) -> list[str]:
    cells = [line.title.strip(), line.unit, _figure(line.ours)]
    for number, other in enumerate(line.c):
        ratio = line.ratio(number)
        cells += [_figure(other), "" if ratio is None else digits(ratio, 2)]
    said = {True: " (yes)", False: " (no)", None: ""}[line.met]
    return [*cells, f"`{line.aim}`{said}" if line.aim else ""]


def render_peers(result: dict[str, Any]) -> str:
    """Write what `make bench-peers` has measured as one table in Markdown: a line for each name."""
    rows = {(row["name"], key(row)): row for row in result["rows"]}
    names = list(dict.fromkeys(name for name, _ in rows))
    units = {key(row): row["unit"] for row in result["rows"]}
    works = [work.key for work in WORKS if work.key in units]
    lines = [
        "### Beside others",
        "",
        f"{result['machine']['cores']} cores of {result['machine']['processor']}, one run of `make bench-peers`.",
        "",
        _row(["", *(f"{work}, {units[work]}" for work in works)]),
        _row(["---"] * (len(works) + 1)),
    ]
    for name in names:
        found = [rows.get((name, work)) for work in works]
        cells = [_figure((row["value"], (row.get("others") or 0.0) >= QUIET)) if row else "-" for row in found]
        lines.append(_row([f"`{name}`", *cells]))
    return "\n".join([*lines, ""])


def _figure(figure: tuple[float, bool] | None) -> str:
    return "-" if figure is None else digits(figure[0]) + ("~" if figure[1] else "")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def insert(page: str, figures: str, marks: tuple[str, str] = (BEGIN, END)) -> str:
    """Replace what is between the marks."""
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"the page has no place between {marks[0]!r} and {marks[1]!r}")
    return f"{before}{begin}\n\n{figures}\n{end}{after}"


def main() -> None:
    """Read the results, and write the page."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("bench-*.json"))]
    beside = [render_peers(json.loads(path.read_text())) for path in sorted(RESULTS.glob("peers-*.json"))]
    PAGE.write_text(insert(PAGE.read_text(), "\n".join([render(results), *beside])))
    print(f"{len(results)} tables written into {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
