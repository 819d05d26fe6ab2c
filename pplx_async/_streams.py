# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of work that gates and doorbells are queued on, whoever's they are."""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pplx_async._core.words import Page

__all__ = ["Stream", "Streamlike", "find"]

#: What is taken for a stream; `find` tells them apart.
Streamlike = Any


class Stream(abc.ABC):
    """What the engine needs of one.

    Attributes
    ----------
    key : hashable
        Tells it from every other one.
    label : str
        How errors call it.
    """

    key: Hashable
    label: str

    @abc.abstractmethod
    def is_capturing(self) -> bool:
        """Whether what is queued now becomes part of a graph."""

    @abc.abstractmethod
    def push(self, page: Page, offset: int, steps: Sequence[tuple[int, int]]) -> None:
        """Queue steps (`Word.steps`) on the cell at an offset of a page: all of them, or none and raise."""


def find(stream: Streamlike) -> Stream:
    """Find out whose stream it is.

    Raises
    ------
    TypeError
        It is none.
    """
    ours = getattr(stream, "__pplx_stream__", None)
    if ours is not None:
        return ours()  # type: ignore[no-any-return]
    raise TypeError(f"a stream is a testing.HostStream, not {type(stream).__name__}")
