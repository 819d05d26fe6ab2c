# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured: the same sizes, counts and places for everyone. Needs the standard library alone.

Two processes; side 0 is timed, side 1 is its target. Each has a source and a destination of ``ARENA``
bytes. A write carries a notification wherever the transport has one. The works:

- *pingpong*: half of a round trip of write and notification, in us.
- *stream*: writes of slots, ``inflight`` at a time, round and round, in GB/s.
- *pages*: pages from random to random places; where that exists in one call, in k/s.
- *scatter*: a row of messages to each of ``targets`` regions, in k/s.
- *awaits*: small writes, ``inflight`` at a time, each acknowledged, in k/s.
- *idle*: processor time of a target that waits for one write, in percent of a core.
- *sparse*: processor time of a target that gets a write each millisecond and waits for each, in percent
  of a core: what polling after something has come costs. Only `pplx-async bench` does it, as
- *register*: time to register memory that is filled already, in ms.

A work of many writes ends when the target has noticed all of them and its answer is back. Data is
verified in a repetition that is not timed. ``benchmarks/c/works.c`` does the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["ARENA", "IDLE_SECONDS", "OUR_WORKS", "RUNS", "WORKS", "Work", "find", "key_of", "places"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

ARENA = 256 * MIB
RUNS = 5
IDLE_SECONDS = 10
_SLOT_ALIGNMENT = 64


@dataclass(frozen=True)
class Work:
    """One column of the tables.

    Attributes
    ----------
    name : str
        What is done, see the module.
    nbytes : int
        Of one write.
    count : int
        Writes in a repetition.
    unit : str
        Of the value.
    inflight : int
        Writes that are under way at a time.
    targets : int
        Regions of equal size that the destination consists of.
    """

    name: str
    nbytes: int
    count: int
    unit: str
    inflight: int = 1
    targets: int = 1

    @property
    def key(self) -> str:
        """What it is called in commands and results."""
        return key_of(self.name, self.nbytes, self.inflight)

    @property
    def lower_is_better(self) -> bool:
        """Whether it is a time, or a use of something."""
        return self.unit in ("us", "ms", "%")


def key_of(name: str, nbytes: int, inflight: int) -> str:
    """Name a work by what tells it from others of the same sort."""
    if name in ("idle", "sparse"):
        return name
    if name == "awaits":
        return f"{name}-{inflight}"
    for unit, size in (("G", GIB), ("M", MIB), ("K", KIB)):
        if nbytes % size == 0:
            return f"{name}-{nbytes // size}{unit}"
    return f"{name}-{nbytes}"


WORKS = (
    Work("pingpong", 8, 2000, "us"),
    Work("pingpong", 4 * KIB, 2000, "us"),
    Work("awaits", 8, 20_000, "k/s", inflight=1),
    Work("awaits", 8, 20_000, "k/s", inflight=64),
    Work("awaits", 8, 20_000, "k/s", inflight=1024),
    Work("idle", 8, 1, "%"),
    Work("stream", 64 * KIB, 1024, "GB/s", inflight=16),
    Work("stream", 1 * MIB, 128, "GB/s", inflight=16),
    Work("stream", 16 * MIB, 32, "GB/s", inflight=16),
    Work("pages", 64 * KIB, 1024, "k/s", inflight=256),
    Work("pages", 1 * KIB, 100_000, "k/s", inflight=256),
    Work("scatter", 7 * KIB, 8 * 256, "k/s", inflight=256, targets=8),
)

OUR_WORKS = (*WORKS, Work("sparse", 8, 2000, "%"), Work("register", GIB, 1, "ms"))


def find(key: str, works: Sequence[Work] = WORKS) -> Work:
    """Find a work by its key."""
    for work in works:
        if work.key == key:
            return work
    raise ValueError(f"no work {key}; one of: {', '.join(work.key for work in works)}")


def scramble(number: int, bits: int, seed: int) -> int:
    """Permute the numbers below ``2**bits``: looks random, and ``benchmarks/c/works.c`` has the same."""
    mask = (1 << bits) - 1
    for _ in range(3):
        number = (number * 0x9E3779B1 + seed) & mask
        number ^= number >> (bits // 2 + 1)
    return number


def places(work: Work) -> list[tuple[int, int]]:
    """Say where each write of a work comes from and goes to: offsets in source and destination."""
    if work.name == "pages":
        bits = (ARENA // work.nbytes).bit_length() - 1
        return [(scramble(i, bits, 1) * work.nbytes, scramble(i, bits, 2) * work.nbytes) for i in range(work.count)]
    if work.name == "scatter":
        region = ARENA // work.targets
        return [
            (i * work.nbytes, i % work.targets * region + i // work.targets * work.nbytes) for i in range(work.count)
        ]
    stride = -(-work.nbytes // _SLOT_ALIGNMENT) * _SLOT_ALIGNMENT
    return [(i % work.inflight * stride,) * 2 for i in range(work.count)]
