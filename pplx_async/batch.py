# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Many writes in one request: one entry in the ring, one await."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pplx_async._core.memory import LocalSlice, RemoteSlice
from pplx_async._core.transfer import Transfer

if TYPE_CHECKING:
    from pplx_async._streams import Streamlike
    from pplx_async._typing import PageIndices
    from pplx_async.counters import RemoteCounter
    from pplx_async.engine import TransferEngine

__all__ = ["Batch"]


class Batch:
    """Collects writes, pages and notifications to any peers; `submit` sends them as one request.

    Everything is checked when it is added. Nothing is posted before `submit`, and a batch that is
    dropped has no effect. Made by `TransferEngine.batch`.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._plan = engine._core.plan()

    @property
    def nbytes(self) -> int:
        """Bytes added so far."""
        return self._plan.total_nbytes

    def write(self, local: LocalSlice, remote: RemoteSlice, *, counter: RemoteCounter | None = None) -> None:
        """Add a write; arguments and errors as for `TransferEngine.write`."""
        self._plan.add_write(local, remote, counter)

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
    ) -> int:
        """Add pages, and return how many; arguments and errors as for `TransferEngine.write_pages`."""
        return self._plan.add_pages(
            local,
            remote,
            page_nbytes,
            local_pages,
            remote_pages,
            counter,
            local_stride,
            remote_stride,
            local_offset,
            remote_offset,
        )

    def notify(self, counter: RemoteCounter, times: int = 1) -> None:
        """Add an immediate alone: the peer's counter counts ``times`` more."""
        self._plan.add_notify(counter, times)

    def submit(self, *, detach: bool = False, after: Streamlike | None = None) -> Transfer:
        """Submit everything; the batch is empty afterwards.

        Parameters
        ----------
        detach, after
            As for `TransferEngine.write`.

        Returns
        -------
        Transfer
            Awaited: the bytes written, all visible at their peers.

        Raises
        ------
        QueueFull
            ``max_pending`` requests are in flight: await `drain`, then submit again.
        ClosedResourceError, BrokenResourceError, PeerLost
            Something was closed, revoked or lost since it was added. Nothing is posted, and the batch is as it was.
        """
        return self._submit("batch", detach, after)

    def _submit(self, operation: str, detach: bool, after: Streamlike | None = None) -> Transfer:
        core = self._engine._core
        if after is None:
            transfer = core.submit(self._plan, operation, detach)
        else:
            transfer = self._engine._after(after, core.submit, self._plan, operation, detach)
        self._plan = core.plan()
        return transfer
