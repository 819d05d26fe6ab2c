# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from typing import Any, Self

from typing_extensions import disjoint_base

__all__ = ["Completion"]

@disjoint_base
class Completion:
    @property
    def operation(self) -> str: ...
    @property
    def context(self) -> Any: ...
    @property
    def flags(self) -> int: ...
    @property
    def imm(self) -> int | None: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def error(self) -> Exception | None: ...
    def __init__(
        self,
        operation: str,
        *,
        context: Any = None,
        flags: int = 0,
        imm: int | None = None,
        nbytes: int = 0,
        error: Exception | None = None,
    ) -> None: ...
    def raise_for_error(self) -> Self: ...
