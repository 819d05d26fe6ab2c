# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Immediate counters: how a receiver knows that what it waits for has landed, in any order."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from pplx_async import _endings
from pplx_async._core.counters import CounterCore
from pplx_async._core.memory import PeerRecord, RemoteCounterRecord
from pplx_async.gpu import Gate
from pplx_async.wire import CounterDescriptor, encode_counter

if TYPE_CHECKING:
    from pplx_async._streams import Streamlike
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Peer

__all__ = ["ImmCounter", "RemoteCounter"]


class ImmCounter(CounterCore):
    """Counts logical writes that have landed here; made by `TransferEngine.counter`.

    A write counts 1 when all its bytes are in memory, however many NICs carried it, and whether or
    not anyone waits yet; `write_pages` counts its pages. The parts of a write that was cut over NICs
    are added as fractions: wait for everything that you expect, not for one of several writes that
    may be under way together.

    If a counted operation failed after a part of it may have been counted, the sender says so and
    the counter is broken: all its waits raise `BrokenResourceError`. Make a new one.

    Attributes
    ----------
    value : int
        Whole writes so far; only grows.
    available : int
        Those of them that nobody took.
    """

    def __init__(self, engine: TransferEngine, peer: Peer | None) -> None:
        super().__init__(engine._core, None if peer is None else peer._record)
        self._engine = engine
        self._serial = engine._next_serial()
        self.peer = peer

    @property
    def _key(self) -> int:
        """Its id, and above the id's 20 bits a serial number: an id is used again, a key never."""
        return self._serial << 20 | self.id

    def to_bytes(self) -> bytes:
        """Return the descriptor with which peers count here (`Peer.counter`)."""
        self._engine._check_here()
        return encode_counter(CounterDescriptor(engine=self._engine.id, counter=self._key))

    def gate(self, stream: Streamlike, n: int) -> Gate:
        """Have a stream wait until ``n`` writes have landed that no other gate took, and take them.

        What is queued on the stream behind it runs then, without any Python. While a graph is being captured, the gate
        becomes part of it, and waits anew each time that the graph is launched; what it has not taken stays in the
        counter.

        If it can't open any more it lets the stream go all the same: the peer that the counter is bound to is lost or
        has closed, the counter is broken or closed, the gate or the engine is closed, or what NICs have written into
        memory of a GPU can't be flushed. What runs behind it then has not what it waited for. So the stream is
        poisoned: transfers and gates that were queued there fail, and nothing of them is posted; those that are queued
        later raise, until `TransferEngine.rearm`.

        It blocks while the engine, on another thread, unpins memory or loads code, for a second at most: a gate and
        such a call would hold each other up. ``docs/gpu.md``, "What waits for a gate".

        A `RuntimeWarning` says, once a process, that with this gate as many streams wait as the GPU has queues, and
        nothing else will run there: ``docs/gpu.md``, "Streams".

        Parameters
        ----------
        stream : stream
            CuPy's or torch's, one with ``__cuda_stream__``, a handle, or a `testing.HostStream`.
        n : int
            Whole writes, at least 1.

        Returns
        -------
        Gate
            Queued at the call; it need not be awaited.

        Raises
        ------
        ValueError
            The counter is used by `take`: it serves the one or the other.
        BrokenResourceError
            The counter is broken, or the stream poisoned.
        ClosedResourceError
            The counter or the engine is closed.
        MemoryError
            All words of the engine are in use.
        CudaError, ProviderUnavailable
            The driver takes nothing for this stream, or there is none; from the await: what NICs have written can't be
            flushed.
        TypeError
            It is no stream.
        PeerLost
            From the await, as the others.

        Source
        ------
        CUDA Driver API, "Stream Memory Operations": cuStreamBatchMemOp.
        """
        self._engine._check_open()
        return Gate(self, stream, n)

    async def close(self) -> None:
        """Stop counting. Idempotent.

        Its id is used again only after every connected peer has confirmed that none of its writes
        can still count under it.
        """
        await _endings.close_counters(self._engine, self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<ImmCounter {self.id} at {self.value}>"


class RemoteCounter(RemoteCounterRecord):
    """A counter of a peer; pass it to ``write(..., counter=)``. Made by `Peer.counter`."""

    def __init__(self, peer: Peer, record: PeerRecord, counter: int) -> None:
        peer.engine._check_here()
        super().__init__(record, counter)
        self.owner = peer

    def __repr__(self) -> str:
        return f"<RemoteCounter {self.counter} of {self.owner}>"
