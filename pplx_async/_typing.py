# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Types that only annotations need."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

__all__ = ["AccessName", "Buffer", "PageIndices"]

# Anything with the buffer protocol; typing has no name for it before Python 3.12.
Buffer: TypeAlias = Any
AccessName: TypeAlias = Literal["none", "read", "write", "both"]
# A one-dimensional buffer of any integer type, or a sequence of integers.
PageIndices: TypeAlias = Sequence[int] | Any
