# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async doctor``: what is asked for, and what is reported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from pplx_async.cli.arguments import Debug, Fabric, Json, Library, engine_options
from pplx_async.cli.doctor.examine import examine
from pplx_async.cli.doctor.finding import Finding, Level
from pplx_async.cli.doctor.system import System
from pplx_async.cli.failures import ExitCode
from pplx_async.cli.output import Output

__all__ = ["doctor"]

_STYLES = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}
_WIDTH = 110

Root = Annotated[
    Path,
    typer.Option(
        exists=True,
        file_okay=False,
        help="A recorded tree with the sys, proc and dev of another machine, to look at instead of this one.",
    ),
]


def doctor(
    fabric: Fabric = None,
    library: Library = None,
    root: Root = Path("/"),
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check what transfers need here, say what is wrong, and show the line that mends it.

    The exit code is 1 if there is a problem: something that was asked for, or that this machine has, does
    not work. Warnings are about speed, and about what may go wrong later.
    """
    output = Output(json=json, debug=debug)
    with output.guard():
        options = engine_options(fabric=fabric, library=library)
        found = examine(System(root, options))
        counts = Counter(finding.level for _, finding in found)
        if json:
            output.result(
                {
                    "ok": not counts[Level.PROBLEM],
                    "problems": counts[Level.PROBLEM],
                    "warnings": counts[Level.WARNING],
                    "findings": [finding.to_dict(check) for check, finding in found],
                }
            )
        else:
            _show(output, found, counts)
        if counts[Level.PROBLEM]:
            raise typer.Exit(ExitCode.FAILED)


def _show(output: Output, found: list[tuple[str, Finding]], counts: Counter[Level]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    for width in (14, 7, None):
        table.add_column(width=width, overflow="fold")
    last = ""
    for check, finding in found:
        level = Text(str(finding.level), style=_STYLES[finding.level])
        table.add_row(Text(check if check != last else "", style="bold"), level, Text(finding.text))
        last = check
    output.table(table, _WIDTH)
    output.line()
    for check, finding in found:
        if finding.fix:
            # Unbroken, on a line of its own: to be copied.
            output.line((f"{check}: ", "bold"), (finding.text, _STYLES[finding.level]))
            output.line("    ", finding.fix)
    problems, warnings = (counts[level] for level in (Level.PROBLEM, Level.WARNING))
    summary = f"{problems} problem{'s'[: problems != 1]}, {warnings} warning{'s'[: warnings != 1]}"
    output.line((summary, _STYLES[_worst(counts)]))


def _worst(counts: Counter[Level]) -> Level:
    return next((level for level in (Level.PROBLEM, Level.WARNING) if counts[level]), Level.OK)
