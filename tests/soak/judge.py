# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whether what a member holds stays flat: resident memory and descriptors, while nothing is under way.

The first samples of a process are not judged: libraries are loaded and allocators fill up. Of the
others, the median of the first third is compared with that of the last third.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from tests.soak.events import Sampled

__all__ = ["DESCRIPTORS", "RSS", "WARM_UP_S", "Flatness", "judge"]

WARM_UP_S = 20.0
RSS = 24 << 20  # bytes that it may grow by
DESCRIPTORS = 2  # as many may be open more


@dataclass(frozen=True)
class Flatness:
    """What one process held after its warm-up, and at the end.

    Attributes
    ----------
    samples : list of tuple
        That were judged: second, resident bytes, descriptors.
    seconds : float
        From the first of them to the last.
    rss, descriptors : tuple of int
        Before and after.
    """

    samples: list[tuple[float, int, int]]
    seconds: float
    rss: tuple[int, int]
    descriptors: tuple[int, int]

    @property
    def complaint(self) -> str | None:
        """What has grown beyond its bound."""
        grown = self.rss[1] - self.rss[0]
        if grown > RSS:
            return f"resident memory has grown by {grown >> 20} MiB in {self.seconds:.0f} s, more than {RSS >> 20} MiB"
        more = self.descriptors[1] - self.descriptors[0]
        if more > DESCRIPTORS:
            return f"{more} descriptors more are open than {self.seconds:.0f} s before: {self.descriptors[1]}"
        return None


def judge(samples: list[tuple[float, Sampled]], began: float, warm_up: float) -> Flatness | None:
    """Judge a process that began at a time; None if there are fewer than three samples after its warm-up."""
    warm = [(second, sample) for second, sample in samples if second >= began + warm_up]
    if len(warm) < 3:
        return None
    third = len(warm) // 3
    first, last = warm[:third], warm[-third:]

    def median(part: list[tuple[float, Sampled]], what: str) -> int:
        return round(statistics.median(getattr(sample, what) for _, sample in part))

    return Flatness(
        [(round(second, 1), sample.rss, sample.descriptors) for second, sample in warm],
        warm[-1][0] - warm[0][0],
        (median(first, "rss"), median(last, "rss")),
        (median(first, "descriptors"), median(last, "descriptors")),
    )
