# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Transfers with structure: after the block, none of them touches memory any more."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pplx_async._core.memory import LocalSlice, RemoteSlice
from pplx_async._core.transfer import Transfer
from pplx_async.errors import UnreleasedMemory

if TYPE_CHECKING:
    from pplx_async.counters import RemoteCounter
    from pplx_async.engine import TransferEngine
    from pplx_async.group import PeerGroup

__all__ = ["TransferScope"]


class TransferScope:
    """A task group for transfers; made by `TransferEngine.scope`, used with ``async with``.

    The block is left when every transfer that was submitted through the scope is released: its
    local memory may be reused then, whatever happened. Leaving normally waits for them. An
    exception in the block, a cancellation, or the failure of one of them cancels the others: what
    is not posted is dropped, the rest drains. A transfer that was cancelled by itself is no failure,
    unless the provider doesn't let go of it in time.

    Raises
    ------
    ExceptionGroup
        On leaving: what the transfers failed with, and what the block raised, as with
        `asyncio.TaskGroup`.
    UnreleasedMemory
        In that group: the provider hasn't let go within ``EngineOptions.drain_timeout``. The
        memory stays registered and alive, but must not be reused.
    RuntimeError
        Something is submitted before the block is entered, or after it was left. Nothing is sent.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._open: set[Transfer] = set()
        self._failures: list[BaseException] = []
        self._parent: asyncio.Task[Any] | None = None
        self._parent_cancelled = False
        self._aborting = False
        self._entered = False
        self._changed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        self._engine._check_open()
        if self._entered:
            raise RuntimeError("a scope is entered once")
        self._entered = True
        self._parent = asyncio.current_task()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        parent = self._parent
        cancelled = exc if isinstance(exc, asyncio.CancelledError) else None
        # Our own doing (a transfer failed and we ended the block), and nobody else's?
        if self._parent_cancelled and parent is not None and parent.uncancel() == 0:
            cancelled = None
        if exc is not None:
            self._abort()
        cancelled = await self._drain(cancelled)
        self._parent = None
        if isinstance(exc, (KeyboardInterrupt, SystemExit)):
            self._failures = []
            return False  # as it is, as with TaskGroup: in a group nobody would take it for the end
        if cancelled is not None and not self._failures:
            if cancelled is exc:
                return False
            raise cancelled
        if exc is not None and not isinstance(exc, asyncio.CancelledError):
            self._failures.append(exc)
        if self._failures:
            # Someone else cancels us as well, and hears of the failures instead. As in TaskGroup the
            # cancellation comes again at the next await. Before 3.13 it could not be taken back by
            # the `asyncio.timeout` that it is of: there it only stays in the count, as with TaskGroup.
            if sys.version_info >= (3, 13) and parent is not None and parent.cancelling():
                parent.uncancel()
                parent.cancel()
            try:
                raise BaseExceptionGroup("failures in a transfer scope", self._failures) from None
            finally:
                self._failures = []
        # A cancellation of ours without a failure cannot be: it was raised for one.
        return isinstance(exc, asyncio.CancelledError) and cancelled is None

    async def _drain(self, cancelled: asyncio.CancelledError | None) -> asyncio.CancelledError | None:
        """Wait for released, whoever cancels us meanwhile; after an abort, no longer than drain_timeout."""
        loop = self._engine._loop
        deadline: float | None = None
        while self._open:
            if self._aborting and deadline is None:
                deadline = loop.time() + self._engine.options.drain_timeout
            self._changed = loop.create_future()
            wake = None if deadline is None else loop.call_at(deadline, self._notice)
            try:
                await self._changed
            except asyncio.CancelledError as error:
                # Never ours: what we did to the task, __aexit__ has undone, and here it isn't done.
                cancelled = error
                self._abort()
            finally:
                self._changed = None
                if wake is not None:
                    wake.cancel()
            if deadline is not None and loop.time() >= deadline and self._open:
                stuck = ", ".join(transfer._describe() for transfer in self._open)
                self._engine._quarantine(self._open)
                # One error for all of them.
                self._failures = [failure for failure in self._failures if not isinstance(failure, UnreleasedMemory)]
                self._failures.append(
                    UnreleasedMemory(f"not released within {self._engine.options.drain_timeout} s: {stuck}")
                )
                self._open.clear()
        return cancelled

    def _notice(self) -> None:
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    def _abort(self) -> None:
        if not self._aborting:
            self._aborting = True
            for transfer in list(self._open):
                transfer.cancel()
            self._notice()  # _drain has a deadline from now on

    def add(self, transfer: Transfer) -> Transfer:
        """Put a transfer under the scope; the methods below do it for what they submit."""
        self._check_entered()
        self._engine._check_open()
        if not isinstance(transfer, Transfer):
            raise TypeError(f"a transfer is what engine.write() returns, for example, not {type(transfer).__name__}")
        return self._add(transfer)

    def _add(self, transfer: Transfer) -> Transfer:
        self._open.add(transfer)
        transfer.add_done_callback(self._on_done)
        transfer.add_release_callback(self._on_released)
        if self._aborting:
            transfer.cancel()
        return transfer

    def _check_entered(self) -> None:
        # Before anything is submitted: nobody would wait for it.
        if self._parent is None:
            raise RuntimeError("the scope is not entered, or has been left")

    def _on_done(self, transfer: Transfer) -> None:
        if transfer.cancelled():
            return
        failure = transfer.exception()
        if failure is None:
            return
        if self._aborting and isinstance(failure, UnreleasedMemory):
            return  # _drain has the same deadline, and one error for all
        self._failures.append(failure)
        if not self._aborting:
            self._abort()
            # End the block too, as TaskGroup does, unless it is at its end already.
            if self._changed is None and self._parent is not None and not self._parent_cancelled:
                self._parent_cancelled = True
                self._parent.cancel()

    def _on_released(self, transfer: Transfer) -> None:
        self._open.discard(transfer)
        self._notice()

    # ---- the engine's operations, under the scope ----

    def write(self, local: LocalSlice, remote: RemoteSlice, *, counter: RemoteCounter | None = None) -> Transfer:
        """As `TransferEngine.write`."""
        self._check_entered()
        return self._add(self._engine.write(local, remote, counter=counter))

    def write_pages(self, local: LocalSlice, remote: RemoteSlice, **pages: Any) -> Transfer:
        """As `TransferEngine.write_pages`."""
        self._check_entered()
        return self._add(self._engine.write_pages(local, remote, **pages))

    def scatter(self, targets: Sequence[Any]) -> Transfer:
        """As `TransferEngine.scatter`."""
        self._check_entered()
        return self._add(self._engine.scatter(targets))

    def read(self, remote: RemoteSlice, local: LocalSlice) -> Transfer:
        """As `TransferEngine.read`."""
        self._check_entered()
        return self._add(self._engine.read(remote, local))

    def notify(self, targets: RemoteCounter | PeerGroup | Sequence[RemoteCounter]) -> Transfer:
        """As `TransferEngine.notify`."""
        self._check_entered()
        return self._add(self._engine.notify(targets))
