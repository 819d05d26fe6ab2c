# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a run has come to: for humans a table, for programs a dict."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import msgspec
from rich.table import Table

from pplx_async.cli.output import Output, size, span
from tests.soak.events import Totals
from tests.soak.judge import DESCRIPTORS, RSS
from tests.soak.run import Plan, Result

__all__ = ["show", "to_dict"]

_WIDTH = 100


def show(output: Output, plan: Plan, result: Result) -> None:
    """Print the table, and below it what was killed and what is held."""
    table = Table("exercise", box=None, pad_edge=False)
    for column in ("verified", "bytes", "ended by a loss", "refused", "longest"):
        table.add_column(column, justify="right")
    total = Totals()
    for kind, totals in result.totals.items():
        _add(table, kind, totals)
        total.done += totals.done
        total.nbytes += totals.nbytes
        total.ended += totals.ended
        total.refused += totals.refused
        total.longest = max(total.longest, totals.longest)
    table.add_section()
    _add(table, "all", total)
    output.table(table, _WIDTH)
    noticed = result.noticed or [0.0]
    output.line(
        ("kills     ", "bold"),
        f"{result.kills} of {result.starts} processes; all others knew within {span(statistics.median(noticed))} "
        f"(median), {span(max(noticed))} (longest)",
    )
    if result.outlasted:
        shortest, longest = span(min(result.outlasted)), span(max(result.outlasted))
        output.line(
            ("stops     ", "bold"),
            f"{len(result.outlasted)} for {shortest} to {longest}: nobody was lost",
        )
    if result.given_up:
        output.line(
            ("          ", "bold"),
            f"{len(result.given_up)} for longer than the limit: lost within {span(statistics.median(result.given_up))} "
            f"(median), {span(max(result.given_up))} (longest), and back as new peers",
        )
    for label, flat in result.flat.items():
        output.line(
            ("held      ", "bold"),
            f"{label}: resident {size(flat.rss[0])} -> {size(flat.rss[1])}, descriptors {flat.descriptors[0]} -> "
            f"{flat.descriptors[1]}, in {flat.seconds:.0f} s, {len(flat.samples)} samples",
        )
    output.line(("bounds    ", "bold"), f"resident + {size(RSS)}, descriptors + {DESCRIPTORS}, after the warm-up")
    output.line(("stray     ", "bold"), f"{result.stray} immediates or messages belonged to nothing any more")
    output.line(
        ("result    ", "bold"),
        ("wrong", "bold red") if result.complaints else ("all right", "bold green"),
        f" in {result.seconds:.0f} s on {plan.fabric}, seed {plan.seed}",
    )


def _add(table: Table, kind: str, totals: Totals) -> None:
    table.add_row(
        kind, str(totals.done), size(totals.nbytes), str(totals.ended), str(totals.refused), span(totals.longest)
    )


def to_dict(plan: Plan, result: Result) -> dict[str, Any]:
    """Give all of it."""
    return {
        "ok": True,
        **dataclasses.asdict(plan),
        "seconds": result.seconds,
        "exercises": {kind: msgspec.structs.asdict(totals) for kind, totals in result.totals.items()},
        "starts": result.starts,
        "kills": result.kills,
        "noticed": result.noticed,
        "outlasted": result.outlasted,
        "given_up": result.given_up,
        "stray": result.stray,
        "held": {label: dataclasses.asdict(flat) for label, flat in result.flat.items()},
    }
