# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The operations of an engine. Each is checked and submitted at the call, and awaited afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

from pplx_async import _loop
from pplx_async._checks import check_name
from pplx_async._core.memory import LocalSlice, RemoteSlice
from pplx_async._core.transfer import Transfer
from pplx_async.batch import Batch
from pplx_async.counters import RemoteCounter
from pplx_async.group import PeerGroup
from pplx_async.scope import TransferScope

if TYPE_CHECKING:
    from pplx_async._core.engine import Engine as CoreEngine
    from pplx_async._streams import Streamlike
    from pplx_async._typing import PageIndices
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Peer

__all__ = ["Operations"]


class Operations:
    """What a `TransferEngine` does; its life, memory and peers are in ``engine.py``."""

    _core: CoreEngine

    @property
    def _engine(self) -> TransferEngine:
        """The whole of us, for those who need more than operations."""
        return cast("TransferEngine", self)

    def write(
        self,
        local: LocalSlice,
        remote: RemoteSlice,
        *,
        counter: RemoteCounter | None = None,
        detach: bool = False,
        after: Streamlike | None = None,
    ) -> Transfer:
        """Write a local region into a peer's memory, one-sided.

        Parameters
        ----------
        local : MemoryRegion or slice of one
            Source, ``nbytes`` bytes; must not change until the await ends.
        remote : RemoteRegion or slice of one
            Destination, exactly ``local.nbytes`` bytes.
        counter : RemoteCounter, optional
            The receiver's counter: it shows 1 more once all bytes have landed there.
        detach : bool
            Cancelling the await ends that await only; the write goes on.
        after : stream, optional
            Post it when this stream has done what is queued on it now, with no Python in between: a CuPy or torch
            stream, one with ``__cuda_stream__``, a handle, or a `testing.HostStream`. `local` must not change from
            then on. While a graph is being captured, the graph does so each time that it is launched.

        Returns
        -------
        Transfer
            Submitted at the call. Awaited: ``nbytes``, which are visible at the peer. A `CapturedTransfer` if `after`
            is being captured.

        Raises
        ------
        ValueError
            Lengths differ, a region of another engine or peer, no access; nothing is posted.
        ClosedResourceError, BrokenResourceError
            The engine, region or peer is closed; the region was revoked; the counter is broken. A gate has let the
            stream go (`rearm`); then from the await, too, and nothing was posted.
        QueueFull
            ``max_pending`` requests are in flight: await `drain`.
        RemoteAccessError, PeerLost, CompletionError
            From the await: the peer refused, is gone, or the NIC failed. Any part of the
            destination may have changed; the counter counts nothing, or is broken and says so.

        Cancelling
        ----------
        What is not posted is dropped, the write whole or not at all; CancelledError comes when
        the rest has drained and `local` is released.

        Threads
        -------
        Loop thread only. Two writes to one peer may land in either order.

        Source
        ------
        fi_rma(3), fi_writemsg with FI_REMOTE_CQ_DATA and FI_DELIVERY_COMPLETE; ibv_post_send(3),
        IBV_WR_RDMA_WRITE_WITH_IMM.
        """
        if after is None:
            return self._core.write(local, remote, counter, detach)
        return self._engine._after(after, self._core.write, local, remote, counter, detach)

    def read(
        self, remote: RemoteSlice, local: LocalSlice, *, detach: bool = False, after: Streamlike | None = None
    ) -> Transfer:
        """Read a peer's memory into a local region, one-sided.

        Parameters
        ----------
        remote : RemoteRegion or slice of one
            Source, registered by the peer with access ``"read"`` or ``"both"``.
        local : MemoryRegion or slice of one
            Destination, writable, exactly ``remote.nbytes`` bytes.
        detach, after
            As for `write`.

        Returns
        -------
        Transfer
            Awaited: ``nbytes``, which are in `local`.

        Raises
        ------
        ValueError, ClosedResourceError, BrokenResourceError, QueueFull
            As for `write`; nothing is posted.
        RemoteAccessError, PeerLost, CompletionError
            From the await; any part of `local` may have changed.

        Cancelling
        ----------
        CancelledError comes when nothing can change `local` any more.

        Source
        ------
        fi_rma(3), fi_readmsg; ibv_post_send(3), IBV_WR_RDMA_READ.
        """
        if after is None:
            return self._core.read(remote, local, detach)
        return self._engine._after(after, self._core.read, remote, local, detach)

    def write_pages(
        self,
        local: LocalSlice,
        remote: RemoteSlice,
        *,
        page_nbytes: int,
        local_pages: PageIndices,
        remote_pages: PageIndices,
        counter: RemoteCounter | None = None,
        local_stride: int | None = None,
        remote_stride: int | None = None,
        local_offset: int = 0,
        remote_offset: int = 0,
        detach: bool = False,
        after: Streamlike | None = None,
    ) -> Transfer:
        """Write pages: ``local_pages[i]`` into ``remote_pages[i]``, for all i, in one request.

        Page p of a side is the ``page_nbytes`` bytes at ``p * stride + offset`` of its slice.
        Pages that are adjacent on both sides go out as one write; inside a host, up to 32 that are not do, too.

        Parameters
        ----------
        local, remote : region or slice
            Where the pages are.
        page_nbytes : int
            Bytes of each page.
        local_pages, remote_pages : one-dimensional buffer of integers, or sequence of int
            Of equal length, up to 2**32 - 1. Copied at the call.
        counter : RemoteCounter, optional
            Shows 1 more for each page that has landed.
        local_stride, remote_stride : int, optional
            Bytes from one page to the next; by default ``page_nbytes``.
        local_offset, remote_offset : int
            Bytes from the start of a stride to its page.
        detach, after
            As for `write`.

        Returns
        -------
        Transfer
            Awaited: the bytes written.

        Raises
        ------
        IndexError
            A page is outside its slice; nothing is posted.
        ValueError
            Numbers of pages differ, or a page does not fit its stride.
        TypeError
            The indices are no integers.
        ClosedResourceError, BrokenResourceError, QueueFull, RemoteAccessError, PeerLost
            As for `write`.

        Cancelling
        ----------
        Pages that are not posted are dropped, each whole or not at all.
        """
        batch = Batch(self._engine)
        batch.write_pages(
            local,
            remote,
            page_nbytes=page_nbytes,
            local_pages=local_pages,
            remote_pages=remote_pages,
            counter=counter,
            local_stride=local_stride,
            remote_stride=remote_stride,
            local_offset=local_offset,
            remote_offset=remote_offset,
        )
        return batch._submit("write_pages", detach, after)

    def scatter(
        self,
        targets: Iterable[tuple[LocalSlice, RemoteSlice] | tuple[LocalSlice, RemoteSlice, RemoteCounter | None]],
        *,
        detach: bool = False,
        after: Streamlike | None = None,
    ) -> Transfer:
        """Write slices to many peers, in one request.

        Parameters
        ----------
        targets : iterable of (local, remote) or (local, remote, counter)
            As the arguments of `write`; each counts 1 at its own counter.
        detach, after
            As for `write`.

        Returns
        -------
        Transfer
            Awaited: the bytes written in all. If one target fails the others still go through;
            the await raises the first failure.

        Raises
        ------
        ValueError, ClosedResourceError, BrokenResourceError, QueueFull
            As for `write`; then nothing is posted to anyone.
        """
        if not isinstance(targets, Iterable):
            raise TypeError(f"scatter takes any number of (local, remote, counter), not {type(targets).__name__}")
        batch = Batch(self._engine)
        for target in targets:
            if not isinstance(target, (tuple, list)):
                raise TypeError(f"each target is a tuple, not {type(target).__name__}")
            if len(target) not in (2, 3):
                raise ValueError(
                    f"each target is (local, remote) or (local, remote, counter), not {len(target)} things"
                )
            local, remote, counter = target if len(target) == 3 else (*target, None)
            batch.write(local, remote, counter=counter)
        return batch._submit("scatter", detach, after)

    def batch(self) -> Batch:
        """Start a batch: many writes, page lists and notifications in one request."""
        self._engine._check_open()
        return Batch(self._engine)

    def notify(self, targets: RemoteCounter | PeerGroup | Sequence[RemoteCounter]) -> Transfer:
        """Count 1 at a counter of a peer, of several, or at every member of a group; no data moves.

        Returns
        -------
        Transfer
            Awaited: it is counted everywhere. A notification overtakes writes: await those first.
        """
        if isinstance(targets, PeerGroup):
            self._check_group(targets)
            return targets._notify()
        if isinstance(targets, RemoteCounter):
            targets = [targets]
        elif not isinstance(targets, Iterable):
            raise TypeError(f"notify a RemoteCounter, several of them, or a PeerGroup, not {type(targets).__name__}")
        batch = Batch(self._engine)
        for counter in targets:
            batch.notify(counter)
        return batch._submit("notify", False)

    async def group(self, name: str, peers: Sequence[Peer]) -> PeerGroup:
        """Form a group; every member calls this with the same name and the others as `peers`.

        Raises
        ------
        ValueError
            No peers, or one twice; or a group of this name is being formed with one of them.
        PeerLost, ClosedResourceError
            A member is gone.

        Cancelling
        ----------
        The others keep waiting for us.
        """
        self._engine._check_open()
        check_name(name)
        if not isinstance(peers, Iterable):
            raise TypeError(f"peers are the other members, not {type(peers).__name__}")
        peers = tuple(peers)
        for peer in peers:
            self._engine._check_peer(peer, "group")
        if not peers or len(set(peers)) != len(peers):
            raise ValueError("a group has at least one other member, and each only once")
        group = PeerGroup(self._engine, name, peers)
        try:
            await group._form()
        except BaseException:
            self._engine._spawn(group.close())
            raise
        return group

    async def barrier(self, group: PeerGroup) -> None:
        """Wait until every member of the group has called this as often as we have.

        Raises
        ------
        PeerLost, ClosedResourceError
            A member is gone: it will never come.
        BrokenResourceError
            A member has closed the group, and had not come before.

        Cancelling
        ----------
        We have come to the barrier all the same, and the group is out of step: close it.
        """
        self._check_group(group)
        await group._barrier()

    def _check_group(self, group: PeerGroup) -> None:
        if not isinstance(group, PeerGroup):
            raise TypeError(f"a group is what engine.group() returns, not {type(group).__name__}")
        if group._engine is not self:
            raise ValueError(f"group {group.name!r} belongs to another engine")

    def scope(self) -> TransferScope:
        """Start a scope: ``async with engine.scope() as scope: scope.write(...)``."""
        self._engine._check_open()
        return TransferScope(self._engine)

    async def drain(self) -> None:
        """Wait until at most half of ``max_pending`` requests are in flight; at once if it is so.

        Between writes in a long loop, as with `asyncio.StreamWriter.drain`.
        """
        self._engine._check_open()
        await _loop.room(self._core, self._engine.options.max_pending // 2)
