# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measure the peers and the plain C programs, and show them beside each other.

    python -m benchmarks.peers.run [NAME ...] [--include FILE ...]

``--include`` adds the rows of another results file, for example of ``pplx-async bench --json FILE``:
``{"rows": [...]}`` with the keys of ``rows.py``. The first name found there is what all others are
compared with, unless ``--base`` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.peers import venvs
from benchmarks.peers.measure import Settings, measure_c, measure_peer
from benchmarks.peers.processes import PeerFailed
from benchmarks.peers.registry import PEERS, Peer
from pplx_async.cli.bench import machine, works
from pplx_async.cli.bench.c_program import C_ROWS, CRow, ProgramFailed
from pplx_async.cli.bench.rows import Row, key, load_rows, make_row
from pplx_async.cli.bench.table import tables
from pplx_async.libraries import libfabric_files

_BASE = "c-tcp-poll"
_FILE_WIDTH = 150
_RESULTS = Path(__file__).parents[1] / "results"
_ALL: dict[str, CRow | Peer] = {entry.name: entry for entry in (*C_ROWS, *PEERS)}


def _works(text: str) -> list[works.Work]:
    try:
        return [works.find(name) for name in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rows(text: str) -> list[Row]:
    try:
        return load_rows(Path(text))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"no file of results: {error!r}") from None


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"by default all: {', '.join(_ALL)}")
    parser.add_argument(
        "--works", type=_works, default=",".join(work.key for work in works.WORKS), help="default: %(default)s"
    )
    parser.add_argument("--runs", type=int, default=works.RUNS, help="repetitions (default: %(default)s)")
    parser.add_argument("--patience", type=float, default=2.0, help="seconds to wait for a quiet machine, each time")
    parser.add_argument("--idle-seconds", type=int, default=2, help="length of the work idle")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that a peer may take")
    parser.add_argument("--library", default=libfabric_files()[0].path, help="libfabric for the C program")
    parser.add_argument("--provider", default="tcp", help="and its provider")
    parser.add_argument("--include", action="extend", type=_rows, default=[], metavar="FILE", help="rows to add")
    parser.add_argument("--base", help=f"what to compare with (default: {_BASE}, or the first row included)")
    parser.add_argument("--check", action="store_true", help="measure nothing: only look at the arguments")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write (default: under benchmarks/results)")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in _ALL]
    if unknown:
        parser.error(f"no such name: {', '.join(unknown)}; one of: {', '.join(_ALL)}")
    return options


def _measure(entry: CRow | Peer, settings: Settings, console: Console, rows: list[Row]) -> str | None:
    """Measure one line of the tables, and add its rows; return why it did not get through.

    What was measured before it failed still counts.
    """
    lines: list[Row] = []

    def on_line(line: Row) -> None:
        lines.append(line)
        if line["run"] == line["runs"]:
            row = make_row(lines, entry.name)
            rows.append(row)
            lines.clear()
            console.print(f"  {key(row):14} {row['value']:10.4g} {row['unit']}")

    console.print(f"[bold]{entry.name}[/]")
    try:
        if isinstance(entry, CRow):
            measure_c(entry, settings, on_line)
        else:
            if not venvs.is_made(entry):
                console.print("  making its environment")
                venvs.make(entry)
            measure_peer(entry, settings, on_line)
    except (PeerFailed, ProgramFailed, venvs.EnvironmentFailed) as error:
        console.print(f"  failed: {error}", style="red", markup=False)
        return str(error)
    return None


def _versions(entries: Sequence[CRow | Peer], failed: dict[str, str]) -> dict[str, dict[str, str]]:
    return {
        entry.name: venvs.versions(entry) for entry in entries if isinstance(entry, Peer) and entry.name not in failed
    }


def main() -> int:
    """Measure, write and show; return the exit code."""
    options = _parse()
    if options.check:
        return 0
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_WIDTH)
    included: list[Row] = options.include
    entries = [_ALL[name] for name in options.names or _ALL]
    settings = Settings(
        works=options.works,
        runs=options.runs,
        patience=options.patience,
        idle_seconds=options.idle_seconds,
        timeout=options.timeout,
        library=options.library,
        provider=options.provider,
    )
    rows, failed = list(included), {}
    for entry in entries:
        reason = _measure(entry, settings, console, rows)
        if reason is not None:
            failed[entry.name] = reason

    about = machine.describe()
    path = options.json or _RESULTS / f"peers-{about['cores']}-cores.json"
    result = {"machine": about, "versions": _versions(entries, failed), "failed": failed, "rows": rows}
    path.write_text(json.dumps(result, indent=1) + "\n")

    for table in tables(rows, options.base or (included[0]["name"] if included else _BASE)):
        console.print()
        console.print(table)
    for name, reason in failed.items():
        console.print(f"{name} failed: {reason}", style="red", markup=False)
    console.print(f"\nwritten to {path}", markup=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
