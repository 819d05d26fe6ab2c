# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The owner's side of words (``pplx_async/words.h``): cells, lanes, and who waits for what a stream did.

What kinds of words there are: `gates`.

A word is armed after its part was queued on the stream. From then on the core points into it, and it is held until it
comes back retired. Its cell is used again once the stream has been answered there, whether or not it has seen that.

Cells that somebody may still ask for, though, are used when there are no others: one that says that a gate was aborted,
to a kernel that has not run yet, and one of a captured word that was closed, to a graph that is launched all the same.

So streams may look at a page for as long as they like, and its memory is never given back: when its engine ends it
goes to the next one. Nor is it unpinned, for that waits until no stream is in a gate, of whichever engine. One with a
cell that a stream may still write to, for it has not come there yet or may come again, is nobody's any more.
"""

cimport cython

import mmap
import os
import weakref
from collections import deque
from heapq import heapify, heappop, heappush

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint32_t, uint64_t

from pplx_async._core.includes.pplx cimport (
    PPLX_CAP_GPU_FLUSH,
    PPLX_OK,
    pplx_caps,
    pplx_cell,
    pplx_error,
    pplx_pinned,
    pplx_step,
    pplx_stream_identity,
)
from pplx_async._core.memory cimport Used
from pplx_async._core.promise cimport PENDING, Promise, fresh
from pplx_async._core.rt cimport api, check
from pplx_async._core.waker cimport Waker

from pplx_async.errors import BrokenResourceError, ClosedResourceError

__all__ = [
    "Lane",
    "Page",
    "Word",
    "WordWait",
    "Words",
    "cuda_identify",
    "run_step",
]

cdef int CELLS = 1024
cdef int LANES = 64  # more are looked through for those that nobody needs
cdef int CELL_NBYTES = 64  # a cache line: what a GPU writes to one doesn't slow down the next
cdef uint64_t NEVER = <uint64_t>-1
cdef uint32_t LAST_TURN = <uint32_t>-16  # of a cell: its number may not begin anew

_pages = []  # of engines that have ended; the child of a fork shares their memory, and takes others
_kept = []
os.register_at_fork(after_in_child=_pages.clear)


def run_step(int kind, uint64_t value, uint64_t address, unsigned int us) -> bool:
    """Do a step of a stream of the host's (see `Word.steps`) without the GIL; False: it waits, for so long by now."""
    cdef pplx_step step
    cdef bint done
    step.kind = kind
    step.value = <unsigned int>(value & 0xffffffff)
    step.least = value
    step.address = address
    with nogil:
        done = api.step_run(&step, us)
    return done


cdef const char *path_of(bytes library) noexcept:
    return NULL if library is None else <const char *>library


def cuda_identify(str library, uint64_t stream) -> tuple[int, int, bool]:
    """Which stream of CUDA's a handle is now: its context; its id, 0 if unknown; and whether it is being captured."""
    cdef pplx_error error
    cdef bytes path = None if library is None else library.encode()
    cdef const char *c_path = path_of(path)
    cdef pplx_stream_identity identity
    with nogil:  # beside a thread that waits in the driver it may wait as well
        error.status = api.cuda_identify(c_path, stream, &identity, &error)
    check(&error, "look at a stream", "cuda")
    return identity.context, identity.id, bool(identity.capturing)


cdef class Page:
    """Memory for the words of an engine at a time; it never moves, and processes that are forked share it."""

    def __cinit__(self):
        self.memory = mmap.mmap(-1, CELLS * CELL_NBYTES)
        PyObject_GetBuffer(self.memory, &self.view, PyBUF_SIMPLE)
        self.start = <uint64_t><size_t>self.view.buf
        self.free = deque(range(CELLS))
        self.late = deque()
        self.places = {}

    cdef pplx_cell *cell(self, int index) noexcept:
        return <pplx_cell *><size_t>(self.start + <uint64_t>(index * CELL_NBYTES))

    @property
    def address(self) -> int:
        """Where it starts, for the host."""
        return self.start

    @property
    def nbytes(self) -> int:
        """Its size."""
        return CELLS * CELL_NBYTES

    def pin(self, str library, uint64_t stream) -> None:
        """Let GPUs see it, once; ``stream`` says which is the first."""
        cdef pplx_error error
        cdef pplx_pinned pinned
        cdef bytes path
        if self.pinned:
            return
        if library in self.places:  # by an engine before
            self.pinned = self.places[library]
            return
        path = None if library is None else library.encode()
        cdef const char *c_path = path_of(path)
        cdef void *start = <void *><size_t>self.start
        with nogil:  # it may wait in the driver as a launch does
            error.status = api.cuda_pin(c_path, stream, start, CELLS * CELL_NBYTES, &pinned, &error)
        check(&error, "pin the words of an engine", "cuda")
        self.pinned = self.places[library] = pinned.address

    @property
    def device_address(self) -> int:
        """Where it starts, for GPUs; for the host where no GPU knows of it."""
        return self.pinned or self.start

    def leave(self) -> None:
        """Its engine has ended. The next one pins it anew, for another library maybe."""
        self.pinned = 0
        self.kept |= len(self.free) + len(self.late) < CELLS
        for index in self.late:
            self.kept |= self.cell(index).gone
        self.free.extend(self.late)
        self.late.clear()
        (_kept if self.kept else _pages).append(self)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)


cdef class Lane:
    """One stream, as one engine knows it."""

    def __init__(self, str stream, uint64_t context, uint64_t id) -> None:
        self.stream = stream
        self.context = context
        self.id = id
        self.words = weakref.WeakSet()

    @property
    def is_poisoned(self) -> bool:
        """A gate let the stream go without what it waits for."""
        return api.lane_poisoned(&self.lane)

    def failure(self):
        """Why nothing is done there."""
        error = BrokenResourceError(
            f"{self.stream} was let go by a gate that could not open: what it holds is not what it should be",
            hint="Wait for the stream to come to rest, then call engine.rearm(stream).",
        )
        error.__cause__ = self.reason
        return error

    def check(self) -> None:
        """Refuse what is queued on a poisoned one."""
        if api.lane_poisoned(&self.lane):
            raise self.failure()

    def heal(self) -> None:
        """What is queued from now on is done again."""
        api.lane_heal(&self.lane)
        self.reason = None
        for word in self.words:
            if not (<Word>word).final:
                (<Word>word).reason = None


cdef bint flushes_gpus(Waker engine) noexcept:
    """Whether an engine has NICs whose writes a GPU may hold back."""
    cdef pplx_caps caps
    cdef size_t i
    for i in range(api.engine_domains(engine.ptr)):
        api.engine_caps(engine.ptr, i, &caps)
        if caps.flags & PPLX_CAP_GPU_FLUSH:
            return True
    return False


cdef class Words:
    """All words of an engine."""

    def __init__(self, Waker engine) -> None:
        self.engine = engine
        self.page = _pages.pop() if _pages else Page()
        self.flushes = flushes_gpus(engine)
        self.lanes = {}
        self.swept = 0
        self.armed = set()

    def lane(self, stream) -> Lane:
        """The lane of a stream, by its key; another one if that is another stream's by now."""
        cdef Lane lane = self.find_lane(stream)
        if lane is None:
            if len(self.lanes) >= max(2 * self.swept, LANES):
                self.sweep()
            lane = self.lanes[stream.key] = Lane(stream.label, stream.context, stream.id)
        elif lane.id == 0:
            lane.id = stream.id
        return lane

    def find_lane(self, stream):
        """The lane of a stream that has one, or None."""
        cdef Lane lane = self.lanes.get(stream.key)
        if lane is None or (lane.id and stream.id and lane.id != stream.id):
            return None
        return lane

    cdef int sweep(self) except -1:
        """Forget streams of which there is nothing to know: programs make them, and end them, without a word to us."""
        self.lanes = {key: lane for key, lane in self.lanes.items() if (<Lane>lane).words or lane.is_poisoned}
        self.swept = len(self.lanes)
        return 0

    def fills(self, Lane lane not None, Py_ssize_t queues) -> bool:
        """Whether as many streams of one GPU as that are in gates, or will be, with one on this lane."""
        cdef Lane other
        if len(self.lanes) < queues:
            return False
        held = {lane}
        for word in self.armed:
            other = (<Word>word).lane
            if other is not None and other.context == lane.context and (<Word>word).holds():
                held.add(other)
        return len(held) >= queues

    cdef int forget(self, Word word) except -1:
        self.armed.discard(word)
        return 0

    def end(self, Used used, exception, bint repeating_only=False) -> None:
        """What uses this is to end: fail the transfers that no stream has rung for yet."""
        for word in list(self.armed):
            (<Word>word).end_for(used, exception, repeating_only)

    def let_go(self) -> None:
        """The proxy has stopped: no stream may wait for it any more."""
        if self.ended:
            return
        self.ended = True
        for word in self.armed:
            api.word_let_go((<Word>word).word.cell)
        self.page.leave()


@cython.auto_pickle(False)
cdef class WordWait(Promise):
    """A wait for what a stream does. Cancelling it changes nothing there."""

    def __init__(self) -> None:
        raise TypeError("a wait is made by what it waits for: gate.wait(n), for example")

    def __lt__(self, other) -> bool:
        if not isinstance(other, WordWait):
            return NotImplemented
        return (self.count, self.order) < (other.count, other.order)

    def __hash__(self) -> int:
        return id(self)  # an order takes the inherited one away

    cdef int _schedule(self) except -1:
        self.waker.waiting -= 1
        return Promise._schedule(self)

    cdef bint become_cancelled(self) except -1:
        if not Promise.become_cancelled(self):
            return False
        cdef Word word = self.word
        word.waits = [wait for wait in word.waits if not wait.done()]
        heapify(word.waits)
        return True


cdef class Word:
    """One word; base of those in `gates`."""

    cdef int take_cell(self, Words home, Lane lane, bint repeats) except -1:
        cdef pplx_cell *cell
        if not home.page.free and not home.page.late:
            raise MemoryError(f"all {CELLS} words of the engine are in use: await some, or close what was captured")
        if lane is not None:
            lane.check()
            self.word.lane = &lane.lane
            self.word.poisons = api.lane_poisons(&lane.lane)
            lane.words.add(self)
        self.home = home
        self.lane = lane
        self.waits = []
        self.index = (home.page.free or home.page.late).popleft()
        cell = home.page.cell(self.index)
        self.place = <size_t>cell
        home.page.kept |= cell.gone  # a graph may come there yet
        self.word.cell = cell
        self.word.turn = api.cell_take(cell)
        self.word.cookie = <void *>self
        self.word.notify_at = NEVER
        self.word.repeats = repeats
        return 0

    cdef int give_back(self) except -1:
        if self.index < 0:
            return 0
        self.was_aborted = api.cell_aborted(self.word.cell)
        if self.word.turn < LAST_TURN:
            (self.home.page.late if self.was_aborted else self.home.page.free).append(self.index)
        self.index = -1
        return 0

    @property
    def offset(self) -> int:
        """Of its cell in the page."""
        return self.index * CELL_NBYTES

    @property
    def address(self) -> int:
        """Of its cell, for the host."""
        return self.place

    @property
    def device_address(self) -> int:
        """Of its cell, for GPUs, once one knows of it."""
        return self.home.page.device_address + self.place - self.home.page.start

    @property
    def repeats(self) -> bool:
        """Whether a graph has captured it."""
        return bool(self.word.repeats)

    def take_back(self) -> None:
        """Something was raised before it was armed: by the driver, which queued nothing, or by a signal's handler."""
        if not self.queued and not self.armed:
            self.undo()
            return
        if not self.armed:  # its stream comes there, and is to go on
            self.arm()
        self.give_up()

    cdef int give_up(self) except -1:
        """Nobody waits for it."""
        return 0

    cdef bint holds(self) noexcept:
        """A stream of a GPU waits here, or is to."""
        return False

    cdef int end_for(self, Used used, exception, bint repeating_only) except -1:
        """What uses this is to end."""
        return 0

    cdef int undo(self) except -1:
        """It was not armed, and no stream knows of it."""
        api.word_undo(&self.word)
        return self.give_back()

    def hold(self) -> None:
        """Before the driver is called for it: wait while a thread beside is in a call that waits for gates.

        Without the GIL, and for a second at most. Its own step, for what a signal's handler raises after it comes
        before anything is queued.
        """
        with nogil:
            api.word_hold(&self.word)

    def queue(self, str library, uint64_t stream) -> None:
        """Queue its part on a stream of CUDA's: all of it, or none and raise."""
        cdef pplx_error error
        cdef bytes path = None if library is None else library.encode()
        cdef const char *c_path = path_of(path)
        cdef pplx_step c_steps[4]
        cdef size_t count = 0
        for kind, value in self.steps():
            c_steps[count].kind = kind
            c_steps[count].value = <unsigned int>(<uint64_t>value & 0xffffffff)
            c_steps[count].least = value
            c_steps[count].address = self.device_address
            count += 1
        with nogil:
            error.status = api.cuda_queue(c_path, stream, c_steps, count, &self.word, &error)
        check(&error, "queue on a stream", "cuda")
        self.queued = True

    def arm(self) -> None:
        """Its part is queued on the stream: let the proxy look at it."""
        self.armed = True
        self.home.armed.add(self)
        Py_INCREF(self)  # the core's; given back when it comes back retired
        api.word_arm(self.home.engine.ptr, &self.word)

    cdef int reaped(self) except -1:
        cdef bint retired = api.word_reaped(&self.word)
        cdef int32_t status = api.word_take_status(&self.word)
        if retired:
            self.retired = True
        try:
            self.serve()
            if status != PPLX_OK:
                self.told(status)
        finally:
            if retired:
                self.home.forget(self)
                try:
                    self.on_retired()
                finally:
                    Py_DECREF(self)
        return 0

    cdef int on_retired(self) except -1:
        if self.word.spent and (not self.word.repeats or self.closed):
            self.give_back()
        if self.waits:
            self.fail_waits(ClosedResourceError("it was closed before that"))
        return 0

    cdef int told(self, int32_t status) except -1:
        """The proxy has let a stream go, or done nothing for one."""
        return self.fail_waits(self.reason if self.reason is not None else self.lane.failure())

    cdef int fail_waits(self, object reason) except -1:
        waits, self.waits = self.waits, []
        for wait in waits:
            (<WordWait>wait).fail(fresh(reason))
        return 0

    cdef int serve(self) except -1:
        cdef uint64_t count
        cdef WordWait wait
        while True:
            count = api.word_count(&self.word)
            while self.waits:
                wait = self.waits[0]
                if wait.state == PENDING and wait.count > count:
                    break
                heappop(self.waits)
                wait.fulfil(count)
            if self.retired or not self.waits:
                return 0
            if not api.word_notify(&self.word, (<WordWait>self.waits[0]).count):
                return 0

    cdef WordWait wait_for(self, uint64_t count):
        cdef Waker engine = self.home.engine
        engine.check_owner()
        cdef WordWait wait = WordWait.__new__(WordWait)
        wait.loop = engine.loop
        wait.waker = engine
        engine.waiting += 1
        wait.word = self
        wait.count = count
        wait.order = self.order
        self.order += 1
        heappush(self.waits, wait)
        self.serve()
        if wait.state != PENDING:
            return wait
        if self.reason is not None:
            wait.fail(fresh(self.reason))
        elif self.retired:
            wait.fail(ClosedResourceError("it is closed"))
        elif not engine.running:
            wait.fail(ClosedResourceError("the engine is closed"))
        else:
            return wait
        self.waits.remove(wait)
        heapify(self.waits)
        return wait
