# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Arguments of calls that never get to the core: TypeError for another kind, ValueError for out of range."""

from __future__ import annotations

from typing import Any

from pplx_async.wire import MAX_NAME

__all__ = ["check_name", "check_timeout"]

_LONGEST = 86400.0  # as of EngineOptions.connect_timeout


def check_name(name: object) -> None:
    """Whether a peer can be asked for it: 1 to `wire.MAX_NAME` characters that UTF-8 has."""
    if not isinstance(name, str):
        raise TypeError(f"a name is a str, not {type(name).__name__}")
    if not 1 <= len(name) <= MAX_NAME:
        raise ValueError(f"a name has 1 to {MAX_NAME} characters, not {len(name)}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a name is text that UTF-8 can encode, not {name!r}") from None


def check_timeout(timeout: Any) -> float:
    """Return a number of seconds; 0 of them have passed already."""
    try:
        if isinstance(timeout, (bool, str, bytes)):  # float() would take them
            raise TypeError
        seconds = float(timeout)
    except TypeError:
        raise TypeError(f"timeout is a number of seconds, not {type(timeout).__name__}") from None
    if not 0 <= seconds <= _LONGEST:  # false for NaN too
        raise ValueError(f"timeout is 0 to {_LONGEST:g} seconds, not {timeout}")
    return seconds
