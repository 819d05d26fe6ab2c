# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a check says."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

__all__ = ["Finding", "Level", "ok", "problem", "warning"]


class Level(enum.StrEnum):
    """How bad it is: a problem keeps something from working, a warning makes it slower or may do so later."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """One sentence about one thing.

    Attributes
    ----------
    level : Level
        How bad it is.
    text : str
        What is so, with the name of the thing.
    fix : str
        A line for a shell that mends it, or, where no line can, what to do; empty if all is well.
    """

    level: Level
    text: str
    fix: str = ""

    def to_dict(self, check: str) -> dict[str, Any]:
        """Give what ``--json`` shows of it."""
        return {"check": check, "level": str(self.level), "text": self.text, "fix": self.fix}


def ok(text: str) -> Finding:
    """Say that all is well, or that there is nothing to be well."""
    return Finding(Level.OK, text)


def warning(text: str, fix: str) -> Finding:
    """Say that it works, but not as well as it could."""
    return Finding(Level.WARNING, text, fix)


def problem(text: str, fix: str) -> Finding:
    """Say that something does not work."""
    return Finding(Level.PROBLEM, text, fix)
