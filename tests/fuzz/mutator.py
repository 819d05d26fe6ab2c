# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Mutations of msgpack as msgpack: a field more, a field less, another type, a number at an end of its range.

Bit by bit, the fuzzer would mostly make what no decoder gets far into.
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

__all__ = ["mutate"]

_VALUES: tuple[Any, ...] = (
    *(sign * ((1 << bits) + step) for bits in (0, 7, 8, 16, 20, 31, 32, 63) for step in (-1, 0, 1) for sign in (1, -1)),
    (1 << 64) - 1,
    -(1 << 63),
    0.0,
    float("nan"),
    None,
    True,
    b"",
    b"x" * 16,
    b"x" * 32,
    "",
    "pplx_async",
    "x" * 129,
    [],
    [1, 2],
    {},
    "region",
    "counter",
    "hello",
    "fence",
    "endpoints",
    "groupjoin",
    "found",
)


def mutate(data: bytes, choices: random.Random) -> bytes | None:
    """Change one place of a message; None if it is none."""
    try:
        value = msgspec.msgpack.decode(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, list) or not value:
        return None
    where = value
    while (inner := [each for each in where if isinstance(each, list) and each]) and choices.random() < 0.5:
        where = choices.choice(inner)
    at = choices.randrange(len(where))
    match choices.randrange(6):
        case 0:
            del where[at]
        case 1:
            where.insert(at, choices.choice(_VALUES))
        case 2:
            where.append(where[at])
        case 3 if isinstance(where[at], int):
            where[at] += choices.choice((-1, 1, 255))
        case 4 if isinstance(where[at], (bytes, str)):
            where[at] = where[at] * choices.choice((0, 2, 9)) if choices.random() < 0.5 else where[at][:-1]
        case _:
            where[at] = choices.choice(_VALUES)
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, RecursionError, ValueError):
        return None
