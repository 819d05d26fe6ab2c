# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's side of an immediate counter: who waits for which count."""

cimport cython

from collections import deque
from heapq import heapify, heappop, heappush

from libc.stdint cimport uint64_t

from pplx_async._core.arguments cimport whole
from pplx_async._core.includes.pplx cimport PPLX_EIGHTHS, pplx_peer
from pplx_async._core.memory cimport PeerRecord
from pplx_async._core.promise cimport CANCELLED, PENDING, Promise, fresh
from pplx_async._core.rt cimport api
from pplx_async._core.waker cimport Waker

from pplx_async.errors import ClosedResourceError

__all__ = ["CounterCore", "CounterWait"]

cdef uint64_t NEVER = <uint64_t>-1
cdef uint64_t MOST = <uint64_t>1 << 60  # so that neither eighths nor a sum of two wraps

# Takes are served by the loop and gates by the proxy: who came first, nobody could say.
_ONE_KIND = "a counter serves takes or gates, not both: make one for each"


@cython.auto_pickle(False)
cdef class CounterWait(Promise):
    """A wait for a count, or for a share of it. Cancelling it takes nothing from the counter."""

    def __init__(self) -> None:
        raise TypeError("a wait is made by a counter: counter.wait(n), counter.take(n)")

    def __lt__(self, other) -> bool:
        if not isinstance(other, CounterWait):
            return NotImplemented
        return (self.count, self.order) < (other.count, other.order)

    def __hash__(self) -> int:
        # An order takes the inherited hash away, and asyncio keeps awaitables in sets.
        return id(self)

    cdef object outcome(self):
        result = Promise.outcome(self)
        self.granted = False
        return result

    def cancel(self, msg=None) -> bool:
        """Ask to cancel; return False if it is done already.

        A take that was served while nobody has seen its result yet can still be cancelled: its
        writes go back.
        """
        if (self.granted or self.state == PENDING) and not self.engine.forked and not self.loop.is_closed():
            self.engine.check_owner()  # where nothing can be under way any more it is anybody's
        if not self.granted:
            return Promise.cancel(self, msg)
        # Whoever awaits it is about to ask for the result, and finds this.
        self._cancel_message = msg
        self._result = None
        self.state = CANCELLED
        self.counter._give_back(self)
        return True

    cdef int _schedule(self) except -1:
        self.engine.waiting -= 1
        return Promise._schedule(self)

    cdef bint become_cancelled(self) except -1:
        if not Promise.become_cancelled(self):
            return False
        if self.counter is not None:
            self.counter._drop(self)
        return True


cdef class CounterCore:
    """Counts logical writes in eighths; `wait` never consumes, `take` does, first come first served.

    With a ``peer``, only those of that one, where the provider tells its peers apart.

    Threads: the loop's own thread only, but for ``value``.
    """

    def __init__(self, engine, PeerRecord peer=None) -> None:
        self.engine = engine
        if peer is not None:
            if peer.ptr == NULL:
                raise ClosedResourceError(f"peer {peer.label} is closed")
            self.counter.owner = api.peer_token(<const pplx_peer *>peer.ptr)
        self.counter.cookie = <void *>self
        self._waits = []
        self._takes = deque()
        self._gates = set()

    @property
    def id(self) -> int:
        """The 20-bit id."""
        return self.counter.id

    @property
    def value(self) -> int:
        """Whole writes that have landed since it was made, taken ones included."""
        return api.counter_value(&self.counter) // PPLX_EIGHTHS

    @property
    def available(self) -> int:
        """Whole writes that have landed and are not taken."""
        return self.value - self._taken - api.counter_gated(&self.counter) // PPLX_EIGHTHS

    @property
    def broken(self):
        """Why its waits raise, or None."""
        return self._broken

    def wait(self, count) -> CounterWait:
        """Wait until ``count`` writes in all have landed."""
        cdef CounterWait promise = self._promise(whole(count, "count", 0, MOST))
        if promise.state == PENDING and self.value >= promise.count:
            promise.fulfil(self.value)
        if promise.state == PENDING and self._lost is not None:
            promise.fail(fresh(self._lost, "wait"))
        if promise.state == PENDING:
            heappush(self._waits, promise)
            self._rearm()
        return promise

    def take(self, count) -> CounterWait:
        """Wait until ``count`` writes have landed that nobody took, and take them."""
        cdef CounterWait promise = self._promise(whole(count, "count", 1, MOST))
        if self._gated:
            promise.fail(ValueError(_ONE_KIND))
        self._taken_from = True
        if promise.state == PENDING:
            self._takes.append(promise)
            self._rearm()
        if promise.state == PENDING and self._lost is not None:
            promise.fail(fresh(self._lost, "take"))
        return promise

    def _promise(self, uint64_t count):
        self.engine.check_owner()
        cdef Waker waker = self.engine
        cdef CounterWait promise = CounterWait.__new__(CounterWait)
        promise.loop = waker.loop
        waker.waiting += 1
        promise.engine = waker
        promise.waker = waker
        promise.counter = self
        promise.count = count
        promise.order = self._order
        self._order += 1
        if self._broken is not None:
            promise.fail(fresh(self._broken))
        elif not self.is_open:
            promise.fail(ClosedResourceError("the counter is closed"))
        elif not self.engine.running:
            promise.fail(ClosedResourceError("the engine is closed"))
        return promise

    def check_gate(self) -> None:
        """Refuse another gate where it could not open; the others take from this counter as well."""
        self.engine.check_owner()
        if self._broken is not None:
            raise fresh(self._broken)
        if not self.is_open:
            raise ClosedResourceError("the counter is closed")
        if self._taken_from:
            raise ValueError(_ONE_KIND)
        self._gated = True

    def break_(self, exception) -> None:
        """Make every wait, now and later, raise ``exception``. The first reason stays."""
        if self._broken is None:
            self._broken = exception
        self.end_waits(self._broken)

    def lose(self, exception) -> None:
        """Nothing more will be counted: fail the waits that are short, now and later."""
        if self._lost is None:
            self._lost = exception
        self._serve()
        self._end_promises(self._lost)
        for gate in list(self._gates):
            gate.lost(self._lost)

    def end_waits(self, exception) -> None:
        """Fail everyone who waits, streams included."""
        self._end_promises(exception)
        self.end_gates(exception)

    def end_gates(self, exception) -> None:
        """Fail the streams that wait."""
        for gate in list(self._gates):
            gate.end(fresh(exception, "gate"))

    cdef int _end_promises(self, exception) except -1:
        waits, self._waits = self._waits, []
        takes, self._takes = self._takes, deque()
        self._cancelled = 0
        for operation, promises in (("wait", waits), ("take", takes)):
            for promise in promises:
                if not promise.done():
                    (<CounterWait>promise).fail(fresh(exception, operation))
        return 0

    cdef int reaped(self) except -1:
        api.counter_reaped(&self.counter)
        self._rearm()
        return 0

    cdef int _rearm(self) except -1:
        """Serve who can be served and ask to be told of the next; once more if it is there already."""
        cdef uint64_t next_count
        while True:
            self._serve()
            next_count = NEVER
            if self._waits:
                next_count = (<CounterWait>self._waits[0]).count
            if self._takes:
                next_count = min(next_count, self._taken + (<CounterWait>self._takes[0]).count)
            if next_count > 2 * MOST - 1:
                # Or one that cannot come: all that can be counted ends before it.
                api.counter_notify(&self.counter, NEVER)
                return 0
            if not api.counter_notify(&self.counter, next_count * PPLX_EIGHTHS):
                return 0

    cdef int _serve(self) except -1:
        cdef uint64_t value = api.counter_value(&self.counter) // PPLX_EIGHTHS
        cdef CounterWait promise
        while self._waits:
            promise = self._waits[0]
            if promise.state == PENDING and promise.count > value:
                break
            heappop(self._waits)
            self._cancelled -= promise.state == CANCELLED
            promise.fulfil(value)
        while self._takes:
            promise = self._takes[0]
            if promise.state == PENDING:
                if self._taken + promise.count > value:
                    break
                self._taken += promise.count
                promise.granted = True
            self._takes.popleft()
            self._cancelled -= promise.state == CANCELLED
            promise.fulfil(value)
        return 0

    cdef int _drop(self, CounterWait promise) except -1:
        """One was cancelled: who stood behind it may be served, and many such must not pile up."""
        self._cancelled += 1
        if self._cancelled > 16 and 2 * self._cancelled > len(self._waits) + len(self._takes):
            self._waits = [wait for wait in self._waits if not wait.done()]
            heapify(self._waits)
            self._takes = deque(take for take in self._takes if not take.done())
            self._cancelled = 0
        self._rearm()
        return 0

    cdef int _give_back(self, CounterWait promise) except -1:
        """A take that was served was cancelled all the same: the next one in line may have it."""
        promise.granted = False
        self._taken -= promise.count
        if self.is_open and self.engine.running:
            self._rearm()
        return 0
