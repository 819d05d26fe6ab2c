# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding that may fail in one way only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.fuzz.features import note

__all__ = ["attempt"]


def attempt(decode: Callable[[Any], Any], data: Any) -> Any:
    """Return what is decoded, or None if that raises ValueError; whatever else is raised is a finding."""
    try:
        return decode(data)
    except ValueError as error:
        refusal = error
    # Not one of those that are ValueErrors too, such as UnicodeDecodeError: nobody has looked at it.
    assert type(refusal) is ValueError, refusal
    note(str(refusal))
    return None
