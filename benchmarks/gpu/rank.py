# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What the peers that are measured here have in common: two ranks, which do the same works."""

from __future__ import annotations

import argparse

__all__ = ["KEYS", "parse"]

KEYS = ("write-8", "write-64K", "write-1M", "stream-1M", "stream-64M")


def parse(description: str | None, store: str) -> argparse.Namespace:
    """Read the command line of a rank; ``store`` says what that argument is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rank", type=int, choices=[0, 1])
    parser.add_argument("store", help=store)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--on", choices=["cuda", "cpu"], default="cuda")
    return parser.parse_args()
