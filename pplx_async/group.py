# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Peer groups: notify all of them, and wait until all have come this far."""

from __future__ import annotations

import asyncio
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
            other = peer._joins.get(self.name)
            if other is not None and not other.cancelled():
                # Both would take the same answer.
                raise ValueError(f"a group {self.name!r} with peer {peer.label} is being formed already")
        news = self._await_news()
        try:
            for peer in self.peers:
                await peer._channel.send(wire.GroupJoin(self.name, self.counter._key, self._barrier_counter._key))
            while True:
                for peer in self.peers:
                    peer._check_open()  # whose answer is here, too: it would never come to a barrier
                if all(peer._unread_join(self.name) for peer in self.peers):
                    break
                self._end_news(news)
                news = self._await_news()
                await news
        finally:
            self._end_news(news)
        # All at once and only now: until all have come, one may give its attempt up and try again.
        for peer in self.peers:
            notify, barrier = peer._joined.pop(self.name)  # the name may be used for another group afterwards
            self._notify_remotes.append(notify)
            self._barrier_remotes.append(barrier)

    def _await_news(self) -> asyncio.Future[None]:
        """Return a future that ends when any of the peers joins, or is gone."""
        news: asyncio.Future[None] = self._engine._loop.create_future()
        for peer in self.peers:
            peer._joins[self.name] = news
        return news

    def _end_news(self, news: asyncio.Future[None]) -> None:
        for peer in self.peers:
            if peer._joins.get(self.name) is news:
                del peer._joins[self.name]

    def _notify(self) -> Transfer:
        batch = self._engine.batch()
        for remote in self._notify_remotes:
            batch.notify(remote)
        return batch._submit("notify", False)

    async def _barrier(self) -> None:
        # A member that is already in the next barrier may be counted in this one. That is no
        # mistake: it left this barrier, so it had heard from everyone that they had come.
        batch = self._engine.batch()
        for remote in self._barrier_remotes:
            batch.notify(remote)  # raises if the member is gone, or has closed the group
        coming = batch._submit("barrier", False)
        self._generation += 1  # not before the others can hear of it
        goal = self._generation * len(self.peers)
        await coming
        await self._barrier_counter.wait(goal)

    async def close(self) -> None:
        """Close its counters. The peers stay connected."""
        await self.counter.close()
        await self._barrier_counter.close()
