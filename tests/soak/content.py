# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What the bytes are: a pool of random ones, the same in every process of a run, and pieces of it by seed.

So a receiver knows every byte that it must find, and nothing about contents has to be sent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["LARGEST", "Pool", "Wrong", "check", "check_either"]

Bytes = NDArray[np.uint8]

LARGEST = 64 << 20  # bytes of one exercise
_SPARE = 1 << 20  # so that pieces of the largest size differ too
_CHUNK = 1 << 20  # compared at a time, so that comparing takes no memory


class Wrong(AssertionError):
    """Bytes are not what was sent, or a count is not what was counted."""


class Pool:
    """Random bytes to take pieces of; read-only.

    Parameters
    ----------
    seed : int
        The run's.
    """

    def __init__(self, seed: int) -> None:
        self.bytes: Bytes = np.frombuffer(np.random.default_rng(seed).bytes(LARGEST + _SPARE), dtype=np.uint8)

    def place(self, seed: int, nbytes: int) -> int:
        """Say where the piece of a seed begins."""
        return seed * 0x9E3779B1 % (len(self.bytes) - nbytes + 1)

    def piece(self, seed: int, nbytes: int) -> Bytes:
        """Give the bytes of a seed; no copy."""
        start = self.place(seed, nbytes)
        return self.bytes[start : start + nbytes]


def _chunks(nbytes: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK, nbytes)) for start in range(0, nbytes, _CHUNK)]


def check(found: Bytes, expected: Bytes | int, what: str) -> None:
    """Compare every byte, with others or with one value; say where the first wrong ones are."""
    for part in _chunks(len(found)):
        wanted = expected if isinstance(expected, int) else expected[part]
        wrong = np.flatnonzero(found[part] != wanted)
        if len(wrong):
            first = int(wrong[0])
            want = wanted if isinstance(wanted, int) else int(wanted[first])
            raise Wrong(
                f"{what}: byte {part.start + first} of {len(found)} is {int(found[part][first]):#04x}, not {want:#04x} "
                f"({len(wrong)} wrong in the {part.stop - part.start} B from {part.start})"
            )


def check_either(found: Bytes, expected: Bytes, other: int, what: str) -> None:
    """Compare every byte with what it may be: that of `expected`, or one other value."""
    for part in _chunks(len(found)):
        here, wanted = found[part], expected[part]
        wrong = np.flatnonzero((here != wanted) & (here != other))
        if len(wrong):
            first = int(wrong[0])
            raise Wrong(
                f"{what}: byte {part.start + first} of {len(found)} is {int(here[first]):#04x}, neither "
                f"{int(wanted[first]):#04x} nor {other:#04x} ({len(wrong)} wrong in the {_CHUNK} B from {part.start})"
            )
