# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What an exercise has to be."""

from __future__ import annotations

import abc
from typing import ClassVar

from tests.soak.stage import Stage

__all__ = ["Exercise"]


class Exercise(abc.ABC):
    """Something that members do with each other.

    Attributes
    ----------
    name : str
        What the table calls it.
    weight : int
        How often it is chosen, beside the others.
    with_all : bool
        With all peers instead of one.
    largest : int or None
        Bytes, where it is less than any.
    fabrics : tuple of str or None
        Where it can be done, if not everywhere.
    """

    name: ClassVar[str]
    weight: ClassVar[int] = 4
    with_all: ClassVar[bool] = False
    largest: ClassVar[int | None] = None
    fabrics: ClassVar[tuple[str, ...] | None] = None

    @abc.abstractmethod
    async def act(self, stage: Stage) -> int:
        """Carry it out; return how many bytes were verified at their receivers."""

    @abc.abstractmethod
    async def host(self, stage: Stage) -> None:
        """Be the other side."""
