# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from collections.abc import Callable
from typing import Any

from typing_extensions import disjoint_base

from pplx_async._core.promise import Promise

__all__ = ["Transfer"]

@disjoint_base
class Transfer(Promise):
    @property
    def operation(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def detached(self) -> bool: ...
    @property
    def settled(self) -> bool: ...
    @property
    def released(self) -> bool: ...
    def cancel(self, msg: Any = None) -> bool: ...
    def _give_up(self) -> None: ...
    def add_release_callback(self, callback: Callable[[Transfer], object]) -> None: ...
