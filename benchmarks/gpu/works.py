# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What is measured between GPUs: sizes, counts and aims. ``c/works.c`` does the same in plain CUDA C.

- *write*: from the call to the count at the receiver.
- *gated*: from the call to the first instruction of a kernel behind a gate at the receiver. (In C the host polls for
  the store behind the copy, and then lets the stream go: counting is the host's.)
- *gate*: from the last immediate, of a write of 8 B in shared memory of the host, to that kernel. The clock starts when
  the receiver's host sees those bytes, which come right before the immediate. (In C it starts at the store that lets
  the stream go: what is left is the GPU's own part.)
- *doorbell*: from a kernel's store, which the host sees, to bytes of the host that arrive because the stream has come
  to the doorbell behind that kernel.
- *watch*: the host says that it saw a number, a kernel adds to it, a coroutine sees that.
- *compute*: a kernel that needs the whole GPU, while a stream waits in a gate.
- *stream*: writes of slots, ``inflight`` at a time, until the last await is over.
- *burst*: pages from random to random places in one await, from rest. (In C one kernel.)
- *pages*: the same, `AT_ONCE` to an await, of which some are under way. (In C one kernel for all of them.)

Before *burst* and *pages* a few go by themselves, with us as in C: see `WARM_UP_PAGES`.

A stream that is to be let go has waited for 20 to 60 us by then, with us as in C: see `side.pause`.

What the host sees of a GPU's store is seen by a thread that polls for it in C, for ours as for C's; what that takes, 1
to 2 us, is in the figures of both.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from pplx_async.cli.bench.aims import Aim
from pplx_async.cli.bench.works import KIB, MIB, Work

__all__ = [
    "AIMS",
    "AT_ONCE",
    "AWAITS",
    "FIELDS",
    "REST_SECONDS",
    "ROUNDS",
    "WARM_UP_PAGES",
    "WORKS",
    "arena_nbytes",
    "find",
    "shrink",
    "summary",
]

WORKS = (
    Work("write", 8, 2000, "us"),
    Work("write", 64 * KIB, 2000, "us"),
    Work("write", MIB, 1000, "us"),
    Work("gated", 8, 1000, "us"),
    Work("gate", 8, 1000, "us"),
    Work("doorbell", 8, 5000, "us"),
    Work("watch", 8, 20_000, "us"),
    Work("compute", 8, 20, "us"),
    Work("stream", 64 * KIB, 16384, "GB/s", inflight=64),
    Work("stream", MIB, 4096, "GB/s", inflight=16),
    Work("stream", 64 * MIB, 256, "GB/s", inflight=16),
    Work("burst", 64 * KIB, 1024, "GB/s"),
    Work("pages", 64 * KIB, 16384, "GB/s"),
)
# Of the kernel of `compute`: some milliseconds on an H200.
ROUNDS = 1 << 20
# Of `pages`: in one await, and how many of these at a time.
AT_ONCE, AWAITS = 1024, 4
# A GPU takes some 130 us to turn to kernels of another process: without one before, whoever comes behind C would pay.
# Then all rest, since `burst` is from there. In c/works.c as well.
WARM_UP_PAGES, REST_SECONDS = 4, 0.001

# Bounds: of which figure, and which. The published watcher has 6.2 us, and 19.4 at 99.9 %.
AIMS: dict[str, tuple[tuple[str, Aim], ...]] = {
    "write-8": (("p50", Aim(1.0, 15.0, at_least=False)),),
    "gated-8": (("p50", Aim(1.0, 3.0, at_least=False)),),
    "gate-8": (("p50", Aim(0.0, 8.0, at_least=False)), ("p99", Aim(0.0, 20.0, at_least=False))),
    "doorbell-8": (("p50", Aim(0.0, 6.0, at_least=False)), ("p999", Aim(0.0, 20.0, at_least=False))),
    "watch-8": (("p50", Aim(0.0, 12.0, at_least=False)), ("max", Aim(0.0, 500.0, at_least=False))),
    "compute-8": (("p50", Aim(1.01, 0.0, at_least=False)),),
    "stream-1M": (("value", Aim(0.9, 0.0, at_least=True)),),
    "stream-64M": (("value", Aim(0.97, 0.0, at_least=True)),),
    "burst-64K": (("value", Aim(0.85, 0.0, at_least=True)),),
    "pages-64K": (("value", Aim(0.85, 0.0, at_least=True)),),
}

# The figures of a time, and the percentile that each of them is.
FIELDS = {"p50": 50.0, "p99": 99.0, "p999": 99.9, "max": 100.0}


def arena_nbytes(works: Sequence[Work]) -> int:
    """Memory that each side needs on its GPU: a power of two, as the places of pages want it."""
    most = max(work.nbytes * (work.count if work.name in ("burst", "pages") else work.inflight) for work in works)
    return 1 << (most - 1).bit_length()


def find(key: str) -> Work:
    """Find a work by its key."""
    for work in WORKS:
        if work.key == key:
            return work
    raise ValueError(f"no work {key}; one of: {', '.join(work.key for work in WORKS)}")


def shrink(work: Work) -> Work:
    """Make little of it, to see that it works: a hundredth, and the largest pieces not as large."""
    nbytes = work.nbytes // 16 if work.nbytes > MIB else work.nbytes
    return dataclasses.replace(work, count=max(4, work.inflight, work.count // 100), nbytes=nbytes)


def summary(samples_us: Sequence[float]) -> dict[str, float]:
    """Percentiles, by the nearest rank; ``value`` is the median."""
    ordered = sorted(samples_us)
    figures = {field: ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] for field, p in FIELDS.items()}
    return {"value": figures["p50"], **figures}
