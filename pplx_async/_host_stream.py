# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A stream without a GPU: a thread that does what is queued, in order, with graphs that can be launched again."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pplx_async._core.words import run_step
from pplx_async._streams import Stream

if TYPE_CHECKING:
    from pplx_async._core.gates import BellCore, GateCore
    from pplx_async._core.words import Page

__all__ = ["HostGraph", "HostStream"]

_numbers = itertools.count()

# A step that waits looks up so often whether the stream is being closed.
_LOOK_US = 20_000


class HostStream(Stream):
    """Runs callables in order on a thread of its own, and waits for words as a stream of a GPU does.

    Where a GPU would run kernels it runs functions, on NumPy arrays for example. Gates, doorbells and graphs
    behave as on a GPU, so that programs and tests that use them run on any machine.

    Attributes
    ----------
    failure : BaseException or None
        What the first function raised. Those behind it are not run; steps of gates and doorbells are.

    Examples
    --------
    >>> with HostStream() as stream:
    ...     stream.run(print, "first")
    ...     stream.synchronize()
    first
    """

    def __init__(self) -> None:
        self.key = ("host", next(_numbers))
        self.label = f"{self!r}"
        self.failure: BaseException | None = None
        self._changed = threading.Condition()
        self._queue: deque[Callable[[], object]] = deque()
        self._running = False
        self._closed = False
        self._captured: list[Callable[[], object]] | None = None
        self._thread = threading.Thread(target=self._work, name="host stream", daemon=True)
        self._thread.start()

    def __pplx_stream__(self) -> Stream:
        """Say that it is a stream."""
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<HostStream {id(self):#x}>"

    def run(self, function: Callable[..., object], *arguments: Any) -> None:
        """Queue a call, or have a graph capture it."""
        self._add([lambda: self._call(function, arguments)])

    def synchronize(self, timeout: float | None = None) -> None:
        """Wait until everything that is queued has run; it blocks, so not from an event loop that the stream waits for.

        Raises
        ------
        TimeoutError
            It has not within ``timeout`` seconds.
        BaseException
            What a function raised: `failure`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._closed or not (self._queue or self._running), timeout):
                raise TimeoutError(f"{len(self._queue) + self._running} calls or steps have not run")
        if self.failure is not None:
            raise self.failure

    @property
    def is_idle(self) -> bool:
        """Whether everything that was queued has run."""
        return not (self._queue or self._running)

    @contextlib.contextmanager
    def capture(self) -> Iterator[HostGraph]:
        """Have a graph capture what is queued in this block, in place of running it."""
        if self._captured is not None:
            raise RuntimeError("the stream is being captured already")
        graph = HostGraph(self)
        self._captured = graph._operations
        try:
            yield graph
        finally:
            self._captured = None

    def close(self) -> None:
        """End its thread; what it waits for, and what is behind that, is given up. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # ---- as a Stream ----

    def is_capturing(self) -> bool:
        """Whether what is queued now becomes part of a graph."""
        return self._captured is not None

    def push(self, page: Page, word: GateCore | BellCore) -> None:
        """Queue the steps of a word."""
        self._add([self._step(page, word.offset, kind, value) for kind, value in word.steps()])

    # ---- the thread ----

    def _step(self, page: Page, offset: int, kind: int, value: int) -> Callable[[], object]:
        def do() -> None:
            while not run_step(kind, value, page.address + offset, _LOOK_US) and not self._closed:
                pass

        return do

    def _call(self, function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        if self.failure is None:
            try:
                function(*arguments)
            except BaseException as error:
                self.failure = error

    def _add(self, operations: list[Callable[[], object]]) -> None:
        if self._captured is not None:
            self._captured += operations
            return
        with self._changed:
            if self._closed:
                raise RuntimeError("the stream is closed")
            self._queue += operations
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closed)
                if self._closed:
                    self._queue.clear()
                    return
                operation = self._queue.popleft()
                self._running = True
            operation()
            del operation  # it may hold memory


class HostGraph:
    """What a `HostStream` captured."""

    def __init__(self, stream: HostStream) -> None:
        self._stream = stream
        self._operations: list[Callable[[], object]] = []

    def launch(self) -> None:
        """Queue all of it on its stream once more."""
        self._stream._add(list(self._operations))
