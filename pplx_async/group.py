# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Peer groups: notify all of them, and wait until all have come this far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pplx_async import wire
from pplx_async.counters import ImmCounter, RemoteCounter

if TYPE_CHECKING:
    from pplx_async._core.transfer import Transfer
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Peer

__all__ = ["PeerGroup"]


class PeerGroup:
    """Peers that formed a group under one name; made by `TransferEngine.group`.

    Attributes
    ----------
    name : str
        Its name, the same at every member.
    peers : tuple of Peer
        The other members.
    counter : ImmCounter
        Counts the notifications of the others (`TransferEngine.notify`).
    """

    def __init__(self, engine: TransferEngine, name: str, peers: Sequence[Peer]) -> None:
        self._engine = engine
        self.name = name
        self.peers = tuple(peers)
        self.counter = ImmCounter(engine, None)
        self._barrier_counter = ImmCounter(engine, None)
        engine._open_counter(self.counter)
        engine._open_counter(self._barrier_counter)
        for peer in self.peers:
            peer._bound.add(self.counter)
            peer._bound.add(self._barrier_counter)
        self._notify_remotes: list[RemoteCounter] = []
        self._barrier_remotes: list[RemoteCounter] = []
        self._generation = 0

    def __repr__(self) -> str:
        return f"<PeerGroup {self.name!r} of {len(self.peers)} peers>"

    async def _form(self) -> None:
        """Tell every peer our counters, and wait for theirs."""
        for peer in self.peers:
            peer._check_open()
            await peer._channel.send(wire.GroupJoin(self.name, self.counter.id, self._barrier_counter.id))
        for peer in self.peers:
            join = await peer._join(self.name)
            peer._joins.pop(self.name, None)  # the name may be used for another group afterwards
            self._notify_remotes.append(peer._remote_counter(join.notify_counter))
            self._barrier_remotes.append(peer._remote_counter(join.barrier_counter))

    def _notify(self) -> Transfer:
        batch = self._engine.batch()
        for remote in self._notify_remotes:
            batch.notify(remote)
        return batch._submit("notify", False)

    async def _barrier(self) -> None:
        # A member that is already in the next barrier may be counted in this one. That is no
        # mistake: it left this barrier, so it had heard from everyone that they had come.
        self._generation += 1
        goal = self._generation * len(self.peers)
        batch = self._engine.batch()
        for remote in self._barrier_remotes:
            batch.notify(remote)
        await batch._submit("barrier", False)
        await self._barrier_counter.wait(goal)

    async def close(self) -> None:
        """Close its counters. The peers stay connected."""
        await self.counter.close()
        await self._barrier_counter.close()
