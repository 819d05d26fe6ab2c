# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Peer groups: notify all of them, and wait until all have come this far.

To form a group, each member tells each other its counters (`wire.GroupJoin`). A member may give its
attempt up and try again, so a join also says which of the receiver's attempts it answers: two
members are in one group when each has heard the other's answer to its own. Else one of them could
be in a group that the other has left for the next attempt.

A barrier counts each member at a counter of its own. So what one has counted still stands when
another leaves: a barrier that all have come to ends well, even for who is the last to hear of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pplx_async import _endings, _loop, wire
from pplx_async.counters import ImmCounter, RemoteCounter
from pplx_async.errors import BrokenResourceError, ClosedResourceError, PeerLost

if TYPE_CHECKING:
    from pplx_async._core.transfer import Transfer
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Peer

__all__ = ["Member", "PeerGroup"]


class Member:
    """Another member of a group, as we see it.

    Attributes
    ----------
    came : ImmCounter
        How often it has come to the barrier.
    notify, barrier : RemoteCounter
        Its counters for us; there once the group is formed.
    """

    notify: RemoteCounter
    barrier: RemoteCounter

    def __init__(self, group: PeerGroup, peer: Peer) -> None:
        self.peer = peer
        self.came = ImmCounter(group._engine, peer)
        self._group = group
        self._answered: int | None = None  # which join of it our latest one answers
        self._left = False

    async def join(self) -> None:
        """Tell it our counters, and which join of its own this answers."""
        theirs = self.peer._unread_join(self._group.name)
        self._answered = None if theirs is None else theirs.key
        join = wire.GroupJoin(self._group.name, self._group.counter._key, self.came._key, self._answered)
        await self.peer._tell(join)

    async def answer(self) -> None:
        """Join once more if it has: it waits for the answer to its latest attempt."""
        theirs = self.peer._unread_join(self._group.name)
        if theirs is not None and theirs.key != self._answered:
            await self.join()

    def has_met(self) -> bool:
        """Whether we have each other's counters, and each knows that of the other."""
        theirs = self.peer._unread_join(self._group.name)
        return theirs is not None and theirs.key == self._answered and theirs.answers == self.came._key

    def take(self) -> None:
        """Make it a member. The name may be used for another group afterwards."""
        theirs = self.peer._joined.pop(self._group.name)
        self.notify, self.barrier = theirs.notify, theirs.barrier
        self.peer._members.add(self)

    def on_fence(self) -> None:
        """See whether the counters that the peer has just closed were those of this group."""
        if self.barrier.closed and not self._left:
            self._left = True
            self._group._engine._spawn(self._leave())

    async def _leave(self) -> None:
        # It has come to a barrier before it leaves, or never will: what it counted has arrived.
        await self._group._engine._core.count_arrived()
        self.came.lose(
            BrokenResourceError(
                f"group {self._group.name!r} was closed by peer {self.peer.label}, which comes to no more barriers",
                hint="Close the group here as well; another one may be formed.",
            )
        )


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
        self._members = [Member(self, peer) for peer in self.peers]
        engine._open_counter(self.counter)
        for member in self._members:
            engine._open_counter(member.came)
            member.peer._bound.update((self.counter, member.came))
        self._generation = 0
        self._formed = False
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<PeerGroup {self.name!r} of {len(self.peers)} peers>"

    async def _form(self) -> None:
        """Tell every peer our counters, and wait until each has answered with its own."""
        for peer in self.peers:
            peer._check_open("group")
            other = peer._joins.get(self.name)
            if other is not None and not other.cancelled():
                # Both would take the same answer.
                raise ValueError(f"a group {self.name!r} with peer {peer.label} is being formed already")
        news = self._await_news()
        try:
            for member in self._members:
                await member.join()
            while not self._have_met():
                await news
                self._end_news(news)
                news = self._await_news()
                for member in self._members:
                    await member.answer()
        finally:
            self._end_news(news)
        # All at once and only now: until all have come, one may give its attempt up and try again.
        for member in self._members:
            member.take()
        self._formed = True

    def _have_met(self) -> bool:
        for peer in self.peers:
            peer._check_open("group")  # one whose answer is here, too: it would never come to a barrier
        return all(member.has_met() for member in self._members)

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
        for member in self._members:
            batch.notify(member.notify)
        return batch._submit("notify", False)

    async def _barrier(self) -> None:
        # A member that is in the next barrier already may be counted in this one. That is no
        # mistake: it left this barrier, so it had heard from everyone that they had come.
        if self._closing is not None:
            raise ClosedResourceError(f"group {self.name!r} is closed")
        batch = self._engine.batch()
        for member in self._members:
            batch.notify(member.barrier)  # raises if the member is gone, or has closed the group
        coming = batch._submit("barrier", False)
        self._generation += 1  # not before the others can hear of it
        goal = self._generation
        await coming
        waits = [member.came.wait(goal) for member in self._members]
        try:
            await asyncio.gather(*waits)
        except PeerLost as lost:
            lost.operation = "barrier"  # the wait for one member is a part of it
            raise
        finally:
            for wait in waits:
                wait.cancel()

    async def close(self) -> None:
        """Close its counters; the barriers of the others that we did not come to fail. The peers stay connected."""
        if self._closing is None:
            self._closing = self._engine._spawn(self._close())
        await self._engine._wait(self._closing)

    async def _close(self) -> None:
        if self._formed:
            # That we came goes before that we leave: the others rely on it.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._engine.options.drain_timeout):
                    for member in self._members:
                        await _loop.idle(self._engine._loop, member.barrier)
        await _endings.close_counters(self._engine, self.counter, *(member.came for member in self._members))
