# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of GPUs and transfers hand over to each other, with no Python and no waiting host in between.

A stream is whatever says that it is one: a CuPy or torch stream, an object with ``__cuda_stream__``, the handle as an
int, or a `testing.HostStream`, which needs no GPU. None of their libraries is imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from pplx_async import _streams
from pplx_async._core.gates import BellCore, GateCore, WatchCore
from pplx_async._core.transfer import Transfer
from pplx_async._core.words import Lane, WordWait
from pplx_async.errors import ClosedResourceError

if TYPE_CHECKING:
    from pplx_async._core.engine import Engine as CoreEngine
    from pplx_async._streams import Stream, Streamlike
    from pplx_async.counters import ImmCounter
    from pplx_async.engine import TransferEngine

__all__ = ["Gate", "StreamOperations", "Watcher"]


class StreamOperations:
    """What a `TransferEngine` does with streams."""

    _core: CoreEngine

    @property
    def _engine_of_streams(self) -> TransferEngine:
        return cast("TransferEngine", self)

    def _find(self, stream: Streamlike) -> Stream:
        return _streams.find(stream, self._engine_of_streams.options.cuda_library)

    def _lane(self, stream: Stream) -> Lane:
        return self._core.words.lane(stream)

    def _after(self, stream: Streamlike, submit: Callable[..., Transfer], *arguments: Any) -> Transfer:
        """Prepare a transfer now, and have it posted when the stream gets there: what submits it takes a bell, last.

        (Arguments and no closure: its cells would be made by every call, with a stream or without.)
        """
        self._engine_of_streams._check_open()
        target = self._find(stream)
        bell = BellCore(self._core.words, self._lane(target), target.is_capturing())
        try:
            transfer = submit(*arguments, bell)
            target.push(self._core.words.page, bell)
            bell.arm()
        except BaseException:
            bell.take_back()
            raise
        return transfer

    def _put(self, target: Stream, word: GateCore | BellCore) -> None:
        """Queue the stream's part of a word, then have the proxy look at it."""
        try:
            target.push(self._core.words.page, word)
            word.arm()
        except BaseException:
            word.take_back()
            raise

    def reached(self, stream: Streamlike) -> WordWait:
        """Wait until a stream has done what is queued on it now.

        Parameters
        ----------
        stream : stream
            As for `write`; not one that is being captured.

        Returns
        -------
        awaitable
            Queued at the call.

        Raises
        ------
        BrokenResourceError
            At the call or from the await: the stream was let go by a gate that could not open.
        ValueError
            It is being captured: what is captured has not been reached by anyone.
        ClosedResourceError
            The engine was closed.
        MemoryError
            All words of the engine are in use.
        CudaError, ProviderUnavailable
            The driver takes nothing for this stream, or there is none.
        TypeError
            It is no stream.

        Cancelling
        ----------
        Ends the await only.
        """
        self._engine_of_streams._check_open()
        target = self._find(stream)
        if target.is_capturing():
            raise ValueError(f"{target.label} is being captured: nobody can wait for it now")
        bell = BellCore(self._core.words, self._lane(target), False)
        self._put(target, bell)
        return bell.wait()

    def rearm(self, stream: Streamlike) -> None:
        """Use a stream again that a gate has let go.

        Call it when the stream has come to rest, and before it is destroyed: what was queued there before is not
        revived. Without effect on one that is in order.

        Raises
        ------
        ClosedResourceError
            The engine was closed.
        CudaError, ProviderUnavailable
            The driver knows no such stream, or there is none.
        TypeError, ValueError
            It is no stream.
        """
        self._engine_of_streams._check_open()
        lane = self._core.words.find_lane(self._find(stream))
        if lane is not None:
            lane.heal()

    def watch(self) -> Watcher:
        """Watch a number that kernels increase: ``async with engine.watch() as w: async for old, new in w``."""
        self._engine_of_streams._check_open()
        return Watcher(self._engine_of_streams)


class Gate(GateCore):
    """A stream waits in it for writes to land; made by `ImmCounter.gate`.

    Awaiting it is not needed: it ends when the gate has opened.

    Attributes
    ----------
    opened : int
        How often it has opened. One that a graph captured opens each time that the graph is launched.
    aborted : bool
        It has last let its stream go without what that waited for. For functions on a `testing.HostStream`; kernels
        ask ``pplx_aborted()``. Any thread.
    address, device_address : int
        Of its word, as the host and the GPU see it.
    """

    def __init__(self, counter: ImmCounter, stream: Streamlike, n: int) -> None:
        engine = counter._engine
        target = engine._find(stream)
        words, lane = engine._core.words, engine._lane(target)
        if isinstance(target, _streams.CudaStream):
            _streams.check_queues(words, lane, stacklevel=3)
        super().__init__(words, lane, counter, n, target.is_capturing())
        engine._put(target, self)


class Watcher:
    """A number of 64 bits, 0 at first, that kernels increase; made by `TransferEngine.watch`.

    Iterating gives ``(old, new)`` each time that it has changed; values between may have been skipped. It ends with the
    block, or the engine. No kernel may touch the number after the block.

    Attributes
    ----------
    address, device_address : int
        Where it lies, for the host and for kernels.
    value : int
        What it is now.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._core: WatchCore | None = None

    async def __aenter__(self) -> Self:
        self._engine._check_open()
        if self._core is not None:
            raise RuntimeError("a watch is entered once")
        self._core = WatchCore(self._engine._core.words)
        self._core.arm()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._entered().finish()

    def _entered(self) -> WatchCore:
        if self._core is None:
            raise RuntimeError("enter the watch with `async with` first")
        return self._core

    @property
    def address(self) -> int:
        """Where it lies, for the host."""
        return self._entered().address

    @property
    def device_address(self) -> int:
        """Where it lies, for kernels: of any device, and from now on. A context must be current."""
        core = self._entered()
        self._engine._core.words.page.pin(self._engine.options.cuda_library, 0)
        return core.device_address

    @property
    def value(self) -> int:
        """What it is now."""
        return self._entered().value

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, int]:
        core = self._entered()
        try:
            new = await core.change()
        except ClosedResourceError:
            raise StopAsyncIteration from None
        return core.saw(new), new
