# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Completion queues as awaitables and async iterators, on whatever library has such a queue.

Waiting for a queue has one rule: *arm, then look again*. An fd tells only of what comes after it was
armed, so who finds the queue empty arms it, and sleeps only if the library agrees that it is still
empty. And one idea makes cancelling safe: a completion leaves the queue in the same step in which
its reader returns. Who waits is only woken, and looks for itself; who is cancelled took nothing.

Those who wait stand in line. Only the first of them is ever woken, and on leaving, whichever way,
sees to it that the next one is.
"""

from __future__ import annotations

import asyncio
import operator
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, Self

from pplx_async._core.completion import Completion
from pplx_async._resource import Core, Resource
from pplx_async.errors import BrokenResourceError, ClosedResourceError, QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BATCH", "POLL_INTERVAL", "Completion", "CompletionQueue", "CompletionSource"]

#: Completions that are taken from the library at a time, and that a read returns unless told.
BATCH = 64
#: Seconds between two looks at a queue that has no fd.
POLL_INTERVAL = 0.001

# So many are handed out without a pause before the loop's other work gets a turn.
_WITHOUT_PAUSE = 256
# Who waits for room to post takes so many completions for others, who should come and read them.
_HOARD = 4096


class CompletionSource(Core, Protocol):
    """The native queue below a `CompletionQueue`."""

    @property
    def fd(self) -> int:
        """What the event loop watches; -1: there is none, and the queue is looked at on a timer."""

    def poll(self, most: int) -> list[Completion]:
        """Take up to ``most`` completions, without waiting; give the library a turn."""

    def arm(self) -> bool:
        """Say whether one may sleep: the fd turns readable as soon as `poll` has something to do."""


class _Waiter:
    """A place in the line."""

    __slots__ = ("future", "most")

    future: asyncio.Future[None]

    def __init__(self, most: int) -> None:
        self.most = most


class CompletionQueue(Resource):
    """Await it, iterate over it, or poll it.

    Libraries make progress, incoming writes included, only while somebody reads one of their queues.

    Parameters
    ----------
    source : CompletionSource
        The native queue.
    *parents : Resource
        What it was made from.
    poll_interval : float
        Seconds between two looks, if the source has no fd.

    Threads
    -------
    One event loop at a time: another one may follow when it is closed. `poll` and `arm` may be
    called by any thread while nobody waits.
    """

    def __init__(self, source: CompletionSource, *parents: Resource, poll_interval: float = POLL_INTERVAL) -> None:
        if not 0 < poll_interval <= 1:
            raise ValueError(f"poll_interval={poll_interval!r}: expected seconds, more than 0 and at most 1")
        super().__init__(source, *parents)
        self._source = source
        self._poll_interval = poll_interval
        self._ready: deque[Completion] = deque()  # out of the library, not read yet
        self._line: deque[_Waiter] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # that waits, or waited last
        self._thread = 0  # ... in this thread
        self._watched_by = 0  # the process whose loop watches the fd: a child of it must not end that
        self._next_look: asyncio.Handle | None = None
        self._since_pause = 0
        self._failure: Exception | None = None

    # ---- reading ----

    async def read(self, max: int = BATCH) -> list[Completion]:
        """Wait until something has completed, and take it.

        Parameters
        ----------
        max : int
            At most so many.

        Returns
        -------
        list of Completion
            At least one. Failures are among them, each with its ``error``: a read raises for none, so
            that none hides the others.

        Raises
        ------
        ClosedResourceError
            The queue is closed, now or while this waits.
        BrokenResourceError
            The library has ended the queue; all that it still had to say has been read.

        Cancelling
        ----------
        Takes nothing: whoever reads next gets what came.
        """
        most = _positive(max)
        if self._since_pause >= _WITHOUT_PAUSE:
            # Reads that find something don't wait. Without this, a peer that sends without end
            # would keep the loop from everything else.
            self._since_pause = 0
            await asyncio.sleep(0)
        if self._ready and not self._line:
            return self._take(most)
        return await self._wait(most)

    def poll(self, max: int = BATCH) -> list[Completion]:
        """Take what is there, perhaps nothing, without waiting and ahead of all who wait.

        For who would rather spin than sleep. Raises as `read` does.
        """
        most = _positive(max)
        if len(self._ready) < most:
            self._fill(most - len(self._ready))
        return self._take(most)

    def __aiter__(self) -> Self:
        """Iterate until the queue is closed; of several iterators each completion goes to one."""
        return self

    async def __anext__(self) -> Completion:
        try:
            (completion,) = await self.read(1)
        except ClosedResourceError:
            raise StopAsyncIteration from None
        return completion

    def _take(self, most: int) -> list[Completion]:
        taken = [self._ready.popleft() for _ in range(min(most, len(self._ready)))]
        self._since_pause += len(taken)
        return taken

    def _fill(self, most: int) -> bool:
        self._ready.extend(self._source.poll(max(most, BATCH)))
        return bool(self._ready)

    # ---- waiting ----

    async def _wait(self, most: int) -> list[Completion]:
        loop = self._join(asyncio.get_running_loop())
        waiter = _Waiter(most)
        self._line.append(waiter)
        try:
            while True:
                waiter.future = loop.create_future()
                if self._line[0] is waiter:
                    self._look()
                if not waiter.future.done():
                    self._since_pause = 0
                await waiter.future
                if not self.is_open:
                    raise ClosedResourceError("the completion queue is closed")
                if self._ready:  # `poll` may have taken it
                    return self._take(most)
                if self._failure is not None:
                    raise BrokenResourceError(str(self._failure)) from self._failure
        finally:
            if waiter in self._line:  # it is not if its loop was closed and another one has followed
                self._line.remove(waiter)
                self._look()

    def _join(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Wait on this loop from now on."""
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("the completion queue is awaited on another event loop, which is not closed")
            # Those who waited ended with their loop.
            self._line.clear()
            self._watched_by = 0
            self._next_look = None
            self._loop = loop
        self._thread = threading.get_ident()
        return loop

    def _look(self) -> None:
        """Wake the first in line if there is something for it, else see to it that we look again."""
        if not self._line or self._line[0].future.done():
            return  # ... and if it was cancelled, its leave brings us here once more
        if self._loop is None or self._loop.is_closed():
            return  # with all who wait
        first = self._line[0]
        try:
            if self._ready or not self.is_open or self._failure is not None or self._fill(first.most):
                first.future.set_result(None)
                return
            armed = self._source.arm()
        except Exception as failure:
            self._failure = failure
            first.future.set_result(None)
            return
        if armed:
            self._watch()
        else:
            # There is no fd, or something came between.
            self._look_later(self._poll_interval if self._source.fd < 0 else 0.0)

    def _look_later(self, seconds: float) -> None:
        if self._next_look is None and self._loop is not None:
            self._next_look = self._loop.call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._next_look = None
        self._look()

    def _changed(self) -> None:
        """Something was posted or closed, and what was armed before may not tell of it: look once more."""
        if self._line and self._loop is not None and not self._loop.is_closed():
            if self._is_elsewhere():
                self._loop.call_soon_threadsafe(self._look)
            else:
                self._look_later(0.0)

    async def _when_room(self, place: Any, post: Callable[[], None], seconds: float, why: str = "") -> None:
        """Post as soon as there is room. Those of one place stand in a line, which it holds: `place.line`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        line: asyncio.Lock | None = getattr(place, "line", None)
        if line is None or not line.locked():
            try:
                return post()
            except QueueFull:
                line = place.line = asyncio.Lock()
        async with line:  # first come, first served
            while True:
                try:
                    return post()
                except QueueFull as full:
                    if loop.time() >= deadline:
                        raise TimeoutError(f"{full.reason}, for {seconds} s{why}") from full
                await self._progress()

    async def _progress(self) -> None:
        """Give the library and the other tasks a turn: for who waits until there is room to post."""
        self._join(asyncio.get_running_loop())
        before = len(self._ready)
        if before < _HOARD:
            self._fill(BATCH)
            self._look()
        await asyncio.sleep(0 if len(self._ready) > before else self._poll_interval)

    # ---- the fd ----

    @property
    def fd(self) -> int:
        """For an event loop of one's own: what turns readable after `arm`; -1 if there is none."""
        return self._source.fd

    def arm(self) -> bool:
        """For an event loop of one's own: say whether one may sleep until `fd` turns readable.

        Call it when `poll` gave nothing. False: poll again first.
        """
        return not self._ready and self._source.arm()

    def _watch(self) -> None:
        # Taken back only when it rings for nobody: adding and removing cost system calls. The loop
        # does not keep the queue alive.
        if not self._watched_by and self._loop is not None:
            self._loop.add_reader(self._source.fd, _readable, weakref.ref(self))
            self._watched_by = os.getpid()

    def _unwatch(self) -> None:
        if self._watched_by == os.getpid() and self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._source.fd)
        self._watched_by = 0

    # ---- the end ----

    def close(self) -> None:
        """Close it, and the endpoints that complete on it. Idempotent.

        Waits end with ClosedResourceError, iterations just end. Completions that nobody has read are
        dropped.

        Raises
        ------
        RuntimeError
            Its event loop runs in another thread: use ``loop.call_soon_threadsafe(queue.close)``.
        """
        if self._is_elsewhere():
            raise RuntimeError("the event loop of the completion queue runs in another thread: close it there")
        super().close()

    def _let_go(self) -> None:
        if self._watched_by and self._is_elsewhere() and self._loop is not None:
            # Dropped, and collected in another thread. The fd must be forgotten before it is closed.
            self._watched_by = 0
            self._loop.call_soon_threadsafe(_end, self._loop, self._source)
            return
        self._unwatch()
        self._source.close()
        self._ready.clear()
        for waiter in self._line:
            if not waiter.future.done() and not waiter.future.get_loop().is_closed():
                waiter.future.set_result(None)

    def __repr__(self) -> str:
        state = f"{len(self._ready)} to be read, {len(self._line)} waiting" if self.is_open else "closed"
        return f"<{type(self).__name__}, {state}>"

    def _is_elsewhere(self) -> bool:
        return self._loop is not None and self._loop.is_running() and self._thread != threading.get_ident()


def _readable(reference: weakref.ref[CompletionQueue]) -> None:
    queue = reference()
    if queue is not None:
        if queue._line:
            queue._look()
        else:
            queue._unwatch()


def _end(loop: asyncio.AbstractEventLoop, source: CompletionSource) -> None:
    loop.remove_reader(source.fd)
    source.close()


def _positive(count: int) -> int:
    count = operator.index(count)
    if count < 1:
        raise ValueError(f"max={count}: expected at least 1")
    return count
