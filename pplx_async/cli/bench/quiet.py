# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Measuring on a machine that others use too: prefer the repetitions that nobody disturbed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

__all__ = ["PAUSE", "QUIET", "Load", "Samples", "await_quiet"]

Value = TypeVar("Value")

# Cores that others may take of the machine while it still counts as quiet.
QUIET = 0.15
# Seconds until a disturbed repetition is worth another try.
PAUSE = 0.25
# Below this the kernel's ticks are too coarse to say who used the processor.
_SHORTEST = 0.05
_TICK = 1 / os.sysconf("SC_CLK_TCK")


def _busy(pids: Sequence[int]) -> tuple[float, float]:
    """Processor time so far, in seconds: of the whole machine, stolen time included, and of ours."""
    with open("/proc/stat") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    ours = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/stat") as file:
                # The name before the bracket may hold anything.
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        ours += int(fields[11]) + int(fields[12])
    return (user + nice + system + irq + softirq + steal) * _TICK, ours * _TICK


class Load:
    """How many cores processes other than ours take.

    A span too short to tell stands for the time before it.
    """

    def __init__(self, pids: Sequence[int] = ()) -> None:
        self._pids = tuple(pids)
        self._last = 0.0
        self._begin()

    def _begin(self) -> None:
        self._began = time.monotonic()
        self._busy, self._ours = _busy(self._pids)

    def start(self) -> None:
        """Begin a span, if the last one was long enough."""
        if time.monotonic() - self._began >= _SHORTEST:
            self._last = self.cores()
            self._begin()

    def cores(self) -> float:
        """Return what others took in the span so far."""
        span = time.monotonic() - self._began
        if span < _SHORTEST:
            return self._last
        busy, ours = _busy(self._pids)
        return max(0.0, busy - self._busy - (ours - self._ours)) / span


def await_quiet(patience: float) -> float:
    """Wait until others leave the machine alone, at most ``patience`` seconds; return their load."""
    load, end = Load(), time.monotonic() + patience
    while True:
        load.start()
        time.sleep(PAUSE)
        if load.cores() < QUIET or time.monotonic() > end:
            return load.cores()


class Samples(Generic[Value]):
    """The repetitions of one work: as many as asked for, the quietest of those that there was time for.

    Parameters
    ----------
    runs : int
        How many to keep.
    patience : float
        Seconds that may go into replacing disturbed ones.
    limit : float
        Seconds after which three are enough.
    """

    def __init__(self, runs: int, patience: float, limit: float = 8.0) -> None:
        self._runs = runs
        self._began = time.monotonic()
        self._patience, self._limit = patience, limit
        self._got: list[tuple[float, Value]] = []

    def add(self, others: float, value: Value) -> None:
        """Note a repetition, and the cores that others took meanwhile."""
        self._got.append((others, value))

    @property
    def disturbed(self) -> bool:
        """Whether somebody was at work in the last repetition."""
        return bool(self._got) and self._got[-1][0] >= QUIET

    @property
    def wanted(self) -> bool:
        """Whether there should be another repetition."""
        spent = time.monotonic() - self._began
        if len(self._got) >= min(3, self._runs) and spent > self._limit:
            return False
        if len(self._got) < self._runs:
            return True
        quiet = sum(others < QUIET for others, _ in self._got)
        return quiet < self._runs and spent < self._patience

    @property
    def best(self) -> list[tuple[float, Value]]:
        """The cores that others took, and the value, of those that are kept."""
        return sorted(self._got, key=lambda sample: sample[0])[: self._runs]
