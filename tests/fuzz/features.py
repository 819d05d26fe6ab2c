# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Coverage of what is not Python: msgspec says in words where it stopped, and each new word is a new place.

The fuzzer sees which Python functions are called. So there is one for each text, of which digits are left
out; which of them was called says how far the decoder got.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["instrument", "note"]

_COUNT = 1024
_places: list[Callable[[], None]] = []


def instrument(wrap: Callable[[Any], Any]) -> None:
    """Make the functions; without it, `note` does nothing."""
    for _ in range(_COUNT):

        def place() -> None:
            return

        _places.append(wrap(place))


def note(text: str) -> None:
    """Go through the place of a text."""
    if _places:
        # The path to the field, `$[3]`, is what counts; lengths and values are not.
        words = re.sub(r"(?<!\[)\b\d+|b['\"].*|'[^']*'", "", text)[:200]
        _places[sum(words.encode(errors="replace")) * 31 % _COUNT]()
