# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from typing_extensions import disjoint_base

__all__ = ["Allocation"]

@disjoint_base
class Allocation:
    @property
    def nbytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    def __init__(self, nbytes: int) -> None: ...
    def __len__(self) -> int: ...
