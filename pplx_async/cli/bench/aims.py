# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What each work is meant to reach, most of it beside plain C on the same provider."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from pplx_async.cli.bench.rows import Row, key

__all__ = ["Aim", "aim_of", "judge", "partner"]

# Throughput, as a part of C's.
_PARTS = {"stream-64K": 0.85, "stream-1M": 0.95, "stream-16M": 0.95, "pages-64K": 0.95, "pages-1K": 0.8}
# Thousands of awaits a second, of ipc in spin mode.
_AWAITS = {"awaits-1": 150.0, "awaits-64": 300.0, "awaits-1024": 300.0}
_LATENCIES = ("pingpong-8", "pingpong-4K")
_LATENCY_MORE_US = 4.0  # than C that polls, in spin mode
_LATENCY_TIMES = 1.3  # what C in epoll takes, in the default mode
_IDLE_PERCENT = 0.5

# How C waits that a wake-up mode of ours is compared with. Who polls is beside the better of both: C
# that polls collapses when others want its cores.
_PARTNERS = {"spin": ("poll", "epoll"), "eventfd": ("epoll",)}


class Aim(NamedTuple):
    """A bound of a work's value: ``times`` what C has, and ``more``."""

    times: float
    more: float
    at_least: bool

    @property
    def needs_c(self) -> bool:
        """Whether it is beside C."""
        return self.times != 0

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        if not self.needs_c:
            return f"{sign} {self.more:g}"
        return f"{sign} {self.times:g} C" if not self.more else f"{sign} C + {self.more:g}"

    def is_met(self, ours: float, c: float | None) -> bool | None:
        """Say whether it is met; None without the C that it takes."""
        if self.needs_c and c is None:
            return None
        bound = self.times * (c or 0.0) + self.more
        return ours >= bound if self.at_least else ours <= bound


def partner(ours: Row, others: Iterable[Row]) -> Row | None:
    """Find the C program's row that ours is compared with."""
    waits = _PARTNERS.get(ours["wait"], ())
    rows = [row for row in others if row["wait"] in waits and key(row) == key(ours) and row["value"] is not None]
    best = min if ours["unit"] in ("us", "ms", "%") else max
    return best(rows, key=lambda row: row["value"], default=None)


def aim_of(row: Row) -> Aim | None:
    """Find the aim of a row of ours."""
    name = key(row)
    if name in _PARTS:
        return Aim(_PARTS[name], 0.0, at_least=True)
    if name in _LATENCIES:
        return Aim(1.0, _LATENCY_MORE_US, False) if row["wait"] == "spin" else Aim(_LATENCY_TIMES, 0.0, False)
    if name in _AWAITS and (row["provider"], row["wait"]) == ("ipc", "spin"):
        return Aim(0.0, _AWAITS[name], at_least=True)
    return Aim(0.0, _IDLE_PERCENT, at_least=False) if name == "idle" else None


def judge(rows: Sequence[Row], ours: str) -> list[dict[str, Any]]:
    """Say of each work of ours that has an aim whether it is met, for programs to read."""
    others = [row for row in rows if row["name"] != ours]
    verdicts = []
    for row in rows:
        aim = aim_of(row) if row["name"] == ours else None
        if aim is None:
            continue
        beside = partner(row, others) if aim.needs_c else None
        c = beside["value"] if beside else None
        verdicts.append(
            {"work": key(row), "aim": str(aim), "value": row["value"], "beside": beside and beside["name"], "c": c}
            | {"met": aim.is_met(row["value"], c)}
        )
    return verdicts
