# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What is in the memory of a benchmark: both sides hold the same source, so each knows what must arrive."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pplx_async.cli.bench.works import Work, places

__all__ = ["Bytes", "clear", "count_wrong", "fill"]

Bytes = NDArray[np.uint8]


def fill(source: Bytes) -> None:
    """Fill a source, a multiple of 8 bytes, as ``benchmarks/c/bench.c`` does."""
    words = source.view(np.uint64)
    np.multiply(np.arange(1, len(words) + 1, dtype=np.uint64), np.uint64(0x9E3779B97F4A7C15), out=words)


def clear(destination: Bytes, work: Work) -> None:
    """Forget what a work has written."""
    for _, start in set(places(work)):
        destination[start : start + work.nbytes] = 0


def count_wrong(source: Bytes, destination: Bytes, work: Work) -> int:
    """Count the writes of a work that have not arrived whole."""
    n = work.nbytes
    return sum(not np.array_equal(destination[dst : dst + n], source[src : src + n]) for src, dst in set(places(work)))
