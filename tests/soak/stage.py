# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What an exercise is carried out on: memory, regions and counters of one side, and whom it talks to.

All that is opened here is closed with the stage, whatever happens.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pplx_async import ImmCounter, MemoryRegion, Peer, TransferEngine
from tests.soak.content import Bytes, Pool, Wrong
from tests.soak.talk import Refused, Talk

if TYPE_CHECKING:
    from pplx_async._core.memory import LocalSlice

__all__ = ["ROOM_NBYTES", "Home", "Stage"]

# Memory that the stages of one member may hold at a time.
ROOM_NBYTES = 256 << 20


@dataclass
class Home:
    """What all stages of one member have in common.

    Attributes
    ----------
    name : str
        The member's.
    engine : TransferEngine
        Its engine.
    pool, region : Pool, MemoryRegion
        All contents, and their registration.
    choices : Random
        For what is nobody else's business.
    find : callable
        Gives a connected peer by its name.
    sabotage : str
        What to do wrong.
    held : int
        Bytes that stages have allocated now.
    """

    name: str
    engine: TransferEngine
    pool: Pool
    region: MemoryRegion
    choices: random.Random
    find: Callable[[str], Peer | None]
    sabotage: str
    held: int = 0


class Stage(contextlib.AsyncExitStack):
    """One side of one exercise.

    Parameters
    ----------
    home : Home
        Whose side it is.
    seed, nbytes : int
        Of the exercise.
    talks : list of Talk
        With the others: of a host, with the one who acts.
    names : list of str
        Of all who take part, the one who acts first.

    Attributes
    ----------
    plan : Random
        Begun with the exercise's seed on every side: both know from it what there is to do. A side
        that draws from it draws the same, in the same order, as the other.
    own : Random
        For choices of this side alone.
    """

    def __init__(self, home: Home, seed: int, nbytes: int, talks: list[Talk], names: list[str]) -> None:
        super().__init__()
        self._home = home
        self.engine = home.engine
        self.pool = home.pool
        self.own = home.choices
        self.find = home.find
        self.name = home.name
        self.plan = random.Random(seed)
        self.seed = seed
        self.nbytes = nbytes
        self.talks = talks
        self.names = names

    @property
    def talk(self) -> Talk:
        """With the only other one."""
        (talk,) = self.talks
        return talk

    @property
    def peer(self) -> Peer:
        """The only other one."""
        return self.talk.peer

    # ---- memory ----

    def memory(self, nbytes: int) -> Bytes:
        """Make zeros: memory of the engine's own, or any other.

        Raises
        ------
        Refused
            There is no room now.
        """
        if self._home.held + nbytes > ROOM_NBYTES:
            raise Refused
        self._home.held += nbytes
        self.callback(self._give_back, nbytes)
        if self.own.random() < 0.5:
            return self.engine.empty(nbytes)
        return np.zeros(nbytes, dtype=np.uint8)

    def _give_back(self, nbytes: int) -> None:
        self._home.held -= nbytes

    async def region(self, buffer: Any, access: Any) -> MemoryRegion:
        """Register memory until the end of the stage."""
        return await self.enter_async_context(await self.engine.register(buffer, access=access))

    async def target(self, nbytes: int, access: str = "write") -> tuple[Bytes, MemoryRegion]:
        """Make zeros that the other side may reach."""
        array = self.memory(nbytes)
        return array, await self.region(array, access)

    async def source(self, nbytes: int) -> LocalSlice:
        """Find or make registered memory with the exercise's bytes: a piece of the pool's region, or a copy."""
        if nbytes > 1 << 20 or self.own.random() < 0.7:
            start = self.pool.place(self.seed, nbytes)
            return self._home.region[start : start + nbytes]
        array = self.memory(nbytes)
        array[:] = self.expected(nbytes)
        return await self.region(array, "none")

    def expected(self, nbytes: int) -> Bytes:
        """Give the exercise's bytes."""
        return self.pool.piece(self.seed, nbytes)

    async def counter(self) -> ImmCounter:
        """Make a counter for the other side, until the end of the stage."""
        return await self.enter_async_context(self.engine.counter(peer=self.peer))

    # ---- plans ----

    def slices(self, nbytes: int, most: int) -> list[slice]:
        """Cut a length into slices of random sizes, as the plan says."""
        count = self.plan.randint(1, min(most, nbytes))
        cuts = sorted({0, nbytes, *(self.plan.randrange(nbytes) for _ in range(count - 1))})
        slices = [slice(start, stop) for start, stop in itertools.pairwise(cuts)]
        self.plan.shuffle(slices)
        return slices

    def spoil(self, array: Bytes) -> None:
        """Do what the run was asked to do wrong, if it was, so that it must be found."""
        if self._home.sabotage == "byte":
            array[len(array) // 2] ^= 0x01

    @staticmethod
    def same_count(found: int, expected: int, what: str) -> None:
        """Compare a count."""
        if found != expected:
            raise Wrong(f"{what}: {found}, not {expected}")
