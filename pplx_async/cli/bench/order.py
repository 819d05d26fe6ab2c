# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What the process of the command has the two sides do, one order after the other."""

from __future__ import annotations

import msgspec

from pplx_async.cli.bench.works import Work

__all__ = ["Order"]


class Order(msgspec.Struct, frozen=True):
    """One repetition of a work, for both sides.

    Attributes
    ----------
    work : Work or None
        What is done; None: nothing any more.
    verify : bool
        Check every byte that arrived; such a repetition is not timed.
    idle_seconds : float
        Length of the work ``idle``.
    """

    work: Work | None = None
    verify: bool = False
    idle_seconds: float = 0.0
