# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What the objects of the low layers have in common: they are closed, and complain if they are not."""

from __future__ import annotations

import warnings
import weakref
from types import TracebackType
from typing import Protocol, Self

from pplx_async.errors import LeakWarning

__all__ = ["Core", "Resource"]


class Core(Protocol):
    """The native side of a resource; closing it is idempotent."""

    @property
    def is_open(self) -> bool: ...

    def close(self) -> None: ...


class Resource:
    """Something with a native side.

    It holds what it was made from. Closing it closes what was made from it first; what is dropped
    while it is open is closed then, and a `LeakWarning` says so.
    """

    def __init__(self, core: Core, *parents: Resource) -> None:
        self._core = core
        self._parents = parents
        self._children: weakref.WeakSet[Resource] = weakref.WeakSet()
        for parent in parents:
            parent._children.add(self)

    @property
    def is_open(self) -> bool:
        """Whether it can be used: neither it nor what it was made from is closed."""
        return self._core.is_open

    def close(self) -> None:
        """Close it, and what was made from it. Idempotent."""
        for child in list(self._children):
            child.close()
        self._let_go()

    def _let_go(self) -> None:
        self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_core"):
            return  # making it has failed
        left_open = self.is_open
        self._let_go()
        if left_open:
            warnings.warn(f"{self!r} was never closed", LeakWarning, stacklevel=2, source=self)
