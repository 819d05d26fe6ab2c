# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of words: gates, doorbells with their transfers, and watches."""

cimport cython

from cpython.ref cimport Py_INCREF
from libc.stdint cimport int32_t, uint32_t, uint64_t

from pplx_async._core.arguments cimport whole
from pplx_async._core.counters cimport CounterCore
from pplx_async._core.includes.pplx cimport (
    PPLX_CELL_ANSWERED,
    PPLX_CELL_ASKS,
    PPLX_CLOSED,
    PPLX_EIGHTHS,
    PPLX_NATIVE,
    PPLX_PEER_LOST,
    PPLX_POISONED,
    PPLX_STEP_WAIT,
    PPLX_STEP_WAIT_FLUSH,
    PPLX_STEP_WRITE,
    PPLX_WORD_DOORBELL,
    PPLX_WORD_GATE,
    PPLX_WORD_WATCH,
)
from pplx_async._core.memory cimport Used
from pplx_async._core.promise cimport fresh
from pplx_async._core.rt cimport api
from pplx_async._core.transfer cimport Transfer
from pplx_async._core.waker cimport Waker
from pplx_async._core.words cimport Lane, Word, Words, WordWait

from pplx_async.errors import ClosedResourceError, completion_error

__all__ = ["BellCore", "CapturedTransfer", "GateCore", "WatchCore"]

cdef uint64_t NEVER = <uint64_t>-1
cdef uint64_t MOST = <uint64_t>1 << 60


cdef class GateCore(Word):
    """A stream waits until a counter has ``count`` that nobody else took, and takes them."""

    def __init__(self, Words home, Lane lane, CounterCore counter not None, count, bint repeats) -> None:
        cdef uint64_t c_count = whole(count, "n", 1, MOST)
        counter.check_gate()
        self.take_cell(home, lane, repeats)
        self.counter = counter
        self.word.kind = PPLX_WORD_GATE
        self.word.counter = &counter.counter
        self.word.eighths = c_count * PPLX_EIGHTHS

    def steps(self) -> tuple[tuple[int, int], ...]:
        """What the stream does: (a step's kind, its number) each."""
        return (
            (PPLX_STEP_WRITE, self.word.turn + PPLX_CELL_ASKS),
            (PPLX_STEP_WAIT_FLUSH if self.home.flushes else PPLX_STEP_WAIT, self.word.turn + PPLX_CELL_ANSWERED),
        )

    def arm(self) -> None:
        """As of every word."""
        self.counter._gates.add(self)
        Word.arm(self)

    cdef int give_up(self) except -1:
        """As of every word: the stream is let go, and poisoned."""
        self.close()
        return 0

    cdef bint holds(self) noexcept:
        """As of every word; where a stream comes again and again: it waits now."""
        cdef uint32_t since = self.word.cell.state - self.word.turn  # the stream may write there meanwhile
        if self.word.gpu == 0:
            return False
        return since == PPLX_CELL_ASKS or (since == 0 and not self.word.repeats)

    @property
    def opened(self) -> int:
        """How often it has opened."""
        return api.word_count(&self.word)

    @property
    def aborted(self) -> bool:
        """Whether it has last let its stream go without what that waited for; any thread."""
        cdef bint now = api.cell_aborted(self.word.cell)
        return now if self.index >= 0 else self.was_aborted

    def wait(self, n=1) -> WordWait:
        """Wait until it has opened ``n`` times in all."""
        return self.wait_for(whole(n, "n", 0, MOST))

    def __await__(self):
        return self.wait_for(1).__await__()

    cdef int told(self, int32_t status) except -1:
        if status == PPLX_PEER_LOST and self.reason is None:
            if self.counter._lost is None:
                self.in_vain = True  # it is about to hear why
                return 0
            self.reason = fresh(self.counter._lost, "gate")
            self.final = True
        elif self.reason is None and status == PPLX_NATIVE:
            self.reason = completion_error(
                "NATIVE",
                "what NICs have written into memory of GPUs can't be flushed",
                operation="gate",
                provider_error=self.word.native,
                provider="cuda",
            )
        elif self.reason is None:
            self.reason = self.lane.failure()
        if self.lane.reason is None and status != PPLX_POISONED:
            self.lane.reason = self.reason
        return self.fail_waits(self.reason)

    def lost(self, exception) -> None:
        """Nothing more will be counted: what is there may still be taken."""
        if self.in_vain:
            self.in_vain = False
            self.told(PPLX_PEER_LOST)
        if self.index < 0:
            self.counter._gates.discard(self)

    def end(self, exception) -> None:
        """It opens no more; a stream that waits there is let go."""
        if self.retired or self.final:
            return
        self.final = True
        self.reason = exception
        if self.home.engine.running:
            self.word.end_status = PPLX_CLOSED
            api.word_end(self.home.engine.ptr, &self.word)
        self.fail_waits(exception)

    def close(self) -> None:
        """Let go of the stream if it waits here, or will; captured: no graph that holds it is launched again.

        A stream that is let go is poisoned: see `TransferEngine.rearm`. Idempotent; nothing happens to one that has
        opened, and was not captured.
        """
        cdef Waker engine = self.home.engine
        engine.check_owner()
        if self.closed or not engine.running:
            return
        self.closed = True
        if not self.word.repeats:
            if api.word_count(&self.word) == 0:
                self.end(ClosedResourceError("the gate was closed"))
        elif self.retired:
            self.give_back()
        else:
            if self.reason is None:
                self.reason = ClosedResourceError("the gate was closed")
            self.final = True
            api.word_close(engine.ptr, &self.word)
            self.fail_waits(self.reason)

    cdef int on_retired(self) except -1:
        if self.in_vain and not self.word.repeats:  # waits go on, and new ones may come, until it has heard why
            self.retired = False
            return self.give_back()
        self.counter._gates.discard(self)
        return Word.on_retired(self)

    def __repr__(self) -> str:
        captured = ", captured" if self.word.repeats else ""
        n = self.word.eighths // PPLX_EIGHTHS
        return f"<Gate of {n} at {self.counter!r}, opened {self.opened} times{captured}>"


cdef class BellCore(Word):
    """A stream rings, and a transfer is posted; or nothing, where only its coming there matters."""

    def __init__(self, Words home, Lane lane, bint repeats) -> None:
        self.take_cell(home, lane, repeats)
        self.word.kind = PPLX_WORD_DOORBELL

    def steps(self) -> tuple[tuple[int, int], ...]:
        """As of every word. What rings once need not wait."""
        ring = (PPLX_STEP_WRITE, self.word.turn + PPLX_CELL_ASKS)
        return ((PPLX_STEP_WAIT, self.word.turn + PPLX_CELL_ANSWERED), ring) if self.word.repeats else (ring,)

    cdef int hold(self, Transfer transfer) except -1:
        """Not submitted now: when the stream gets there."""
        self.transfer = transfer
        transfer.bell_lane = self.lane
        transfer.request.cookie = <void *>transfer
        transfer.request.nbytes = transfer.nbytes
        self.word.request = &transfer.request
        return 0

    cdef int give_up(self) except -1:
        """As of every word."""
        if self.transfer is not None:
            self.transfer.cancel()
        return 0

    cdef int undo(self) except -1:
        """As of every word; and the transfer is as if it had not been made."""
        if self.transfer is not None:
            self.home.engine.inflight -= 1
            self.transfer._release()
        return Word.undo(self)

    def arm(self) -> None:
        """As of every word; what rings once gives its transfer over to the core."""
        if self.transfer is not None and not self.word.repeats:
            Py_INCREF(self.transfer)  # as Transfer.submit does
        Word.arm(self)

    def wait(self) -> WordWait:
        """Wait until the stream has been there."""
        return self.wait_for(1)

    cdef int told(self, int32_t status) except -1:
        if self.reason is None and status == PPLX_POISONED:
            self.reason = self.lane.failure()
        elif self.reason is None and self.transfer is not None:
            self.final = True
            self.reason = self.transfer._failure()
            self.transfer._report_missing(str(self.reason))
            self.transfer.fail(self.reason)
        return self.fail_waits(self.reason)

    cdef int end_for(self, Used used, exception, bint repeating_only) except -1:
        """As of every word: the transfer may not be posted any more."""
        if self.transfer is None or used not in self.transfer.all_used():
            return 0
        if self.word.repeats:
            exception = fresh(exception, self.transfer.operation)
            self.transfer.fail(exception)
            self.stop(exception)
        elif not repeating_only and not self.final:
            self.final = True
            self.transfer.ended_by = exception
            self.word.end_status = PPLX_CLOSED
            api.word_end(self.home.engine.ptr, &self.word)

    cdef int stop(self, exception) except -1:
        """Of one that repeats: it is posted no more, and retires when what is under way of it has ended."""
        if self.stopped or self.retired or not self.home.engine.running:
            return 0
        self.stopped = self.final = True
        if self.reason is None:
            self.reason = exception
        self.fail_waits(self.reason)
        api.word_close(self.home.engine.ptr, &self.word)
        return 0

    cdef int on_retired(self) except -1:
        cdef Transfer transfer = self.transfer
        try:
            return Word.on_retired(self)
        finally:
            self.transfer = None
            if transfer is not None and self.word.repeats:
                # What rings once comes back from the core by itself.
                self.home.engine.inflight -= 1
                transfer.settled = transfer.released = True
                transfer._release()
                transfer.fulfil(api.word_count(&self.word))


@cython.auto_pickle(False)
cdef class CapturedTransfer(Transfer):
    """A transfer that a graph has captured: it is posted each time that the graph gets there.

    Made by ``engine.write(..., after=stream)`` and its like while the stream is being captured. It uses its memory
    until it is closed. Awaited as any transfer, it ends then, or when one of its postings fails, which is the last
    one. Cancelling closes it. A graph that holds it is not launched again afterwards: it would run, and post nothing.

    Attributes
    ----------
    posted : int
        How often it was posted.
    completed : int
        How often it has ended well; the result of the await, once it is closed.
    """

    @property
    def posted(self) -> int:
        """How often it was posted."""
        return api.word_posted(&self.bell.word)

    @property
    def completed(self) -> int:
        """How often it has ended well."""
        return api.word_count(&self.bell.word)

    def wait(self, n=1) -> WordWait:
        """Wait until it has ended well ``n`` times in all."""
        return self.bell.wait_for(whole(n, "n", 0, MOST))

    def close(self):
        """Post it no more, whatever is launched. Awaited: nothing of it is under way, its memory is free. Idempotent.

        What waits for more of it fails with ClosedResourceError.
        """
        cdef Waker engine = self.waker
        engine.check_owner()
        ended = self.loop.create_future()
        if not self.bell.closed:
            self.bell.closed = True
            if self.bell.retired:
                self.bell.give_back()
        self.bell.stop(ClosedResourceError("the captured transfer was closed"))
        if engine.running:
            self.add_release_callback(lambda _: ended.done() or ended.set_result(None))
        else:
            ended.set_result(None)
        return ended

    def cancel(self, msg=None) -> bool:
        """Close it; it is cancelled when its memory is free."""
        if self.released or self.done():
            return False
        self._cancel_message = msg
        if self.engine.forked:
            self.become_cancelled()
            return True
        self.engine.check_owner()
        self.cancel_requested = True
        self.bell.closed = True
        self.bell.stop(ClosedResourceError("the captured transfer was cancelled"))
        return True

    def __repr__(self) -> str:
        return f"<CapturedTransfer {self.operation} of {self.nbytes} B, posted {self.posted} times>"


cdef class WatchCore(Word):
    """A number that kernels increase."""

    def __init__(self, Words home) -> None:
        self.take_cell(home, None, True)
        self.place = <size_t>&self.word.cell.watched  # who had the cell before may still look at its number
        self.word.kind = PPLX_WORD_WATCH

    @property
    def value(self) -> int:
        """What it is now."""
        return api.cell_value(self.word.cell)

    cdef int serve(self) except -1:
        cdef uint64_t value = api.cell_value(self.word.cell)
        if value != self.last:
            waits, self.waits = self.waits, []
            for wait in waits:
                (<WordWait>wait).fulfil(value)
        return 0

    def change(self) -> WordWait:
        """Wait until it is another than `saw` was told last."""
        return self.wait_for(NEVER)

    def saw(self, uint64_t value) -> int:
        """That this is known; return what was before."""
        cdef uint64_t last = self.last
        self.last = value
        return last

    def finish(self) -> None:
        """No kernel uses it any more."""
        cdef Waker engine = self.home.engine
        engine.check_owner()
        if self.closed:
            return
        self.closed = self.final = True
        self.reason = ClosedResourceError("the watch has ended")
        self.fail_waits(self.reason)
        if self.retired:
            self.give_back()
        elif engine.running:
            api.word_close(engine.ptr, &self.word)
