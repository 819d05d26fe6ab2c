# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a member did last: for the report of a failure."""

from __future__ import annotations

import collections
import time

__all__ = ["History"]

_KEPT = 20


class History:
    """The last lines, and what is under way."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last: collections.deque[str] = collections.deque(maxlen=_KEPT)
        self._under_way: dict[int, str] = {}
        self._next = 0

    def _now(self) -> str:
        return f"{time.monotonic() - self._began:9.3f}"

    def note(self, text: str) -> None:
        """Remember a line."""
        self._last.append(f"{self._now()} {text}")

    def begin(self, text: str) -> int:
        """Remember that something has begun; its number is for `end`."""
        self._next += 1
        self._under_way[self._next] = f"{self._now()} {text}"
        return self._next

    def end(self, number: int, how: str) -> None:
        """Remember how it ended."""
        self._last.append(f"{self._under_way.pop(number)} ... {self._now().strip()} {how}")

    def lines(self) -> list[str]:
        """Give all that is remembered: what ended, then what has not."""
        return [*self._last, *(f"{line} ... under way" for line in self._under_way.values())]
