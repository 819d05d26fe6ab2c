# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How slow the machine is that tests run on: ``TESTS_SLOWNESS=3`` for an emulated one.

Limits of time that only keep a test from hanging grow by it, and long tests do less: `fewer`. What a test
asserts of time is the product's own promise, and stays.
"""

import os

SLOWNESS = float(os.environ.get("TESTS_SLOWNESS") or 1.0)


def fewer(count: int, least: int = 1) -> int:
    """Return what is left of a count that only makes a test long."""
    return max(least, int(count / SLOWNESS))
