# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One operation in flight: the C request and what awaits it are one object.

Life: an engine method fills the request in and submits it; from then on the core points into this
object, so the engine holds a reference until the core has let go. It comes back through the done
list when it has settled (the outcome is known) and when it is released (the memory is free), which
nearly always is the same moment.
"""

cimport cython

from libc.stdint cimport uint64_t
from libc.stdlib cimport free

from pplx_async._core.includes.pplx cimport (
    PPLX_CANCELLED,
    PPLX_MAX_LINKS,
    PPLX_MEMORY_CUDA,
    PPLX_NO_COUNTER,
    PPLX_OK,
    PPLX_PEER_LOST,
    PPLX_POISONED,
    PPLX_RAIL_LOST,
    PPLX_REGISTRATION,
    PPLX_REMOTE_ACCESS,
    PPLX_REQUEST_CALL,
    PPLX_REQUEST_SEND,
    PPLX_REQUEST_TRANSFER,
    pplx_error,
    pplx_target,
)
from pplx_async._core.memory cimport PeerRecord, Registration, Used
from pplx_async._core.promise cimport Promise, fresh
from pplx_async._core.rt cimport api
from pplx_async._core.waker cimport Waker
from cpython.ref cimport Py_INCREF

from pplx_async import errors

__all__ = ["Transfer"]

# Bytes to copy up to which a transfer is posted where it is submitted; and what a GPU copies in some ten microseconds.
cdef uint64_t SMALL = 64 << 10
cdef uint64_t SOON = 4 << 20


@cython.auto_pickle(False)
cdef class Transfer(Promise):
    """An operation that was submitted; await it for its outcome.

    Attributes
    ----------
    operation : str
        ``"write"``, ``"read"``, ``"write_pages"`` ...
    nbytes : int
        Bytes that it moves in all; the result of the await.
    settled : bool
        The outcome is known.
    released : bool
        The provider has let go of the memory.
    detached : bool
        Cancelling an await ends that await only.
    """

    def __init__(self, *args, **kwargs) -> None:
        raise TypeError("a transfer is made by what it is of: engine.write(), for example")

    cdef int use(self, Used used) except -1:
        used.acquire()
        if self.used0 is None:
            self.used0 = used
        elif self.used1 is None:
            self.used1 = used
        elif self.used2 is None:
            self.used2 = used
        else:
            if self.used_more is None:
                self.used_more = []
            self.used_more.append(used)
        return 0

    cdef list all_used(self):
        return [used for used in (self.used0, self.used1, self.used2, *(self.used_more or ())) if used is not None]

    cdef PeerRecord peer_of(self, pplx_target *target):
        """Whose target it is. Where it points to may be freed, once another target has held the rest up."""
        for used in self.all_used():
            if isinstance(used, PeerRecord) and (<PeerRecord>used).key == <size_t>target.peer:
                return used
        return None

    cdef int submit(self) except -1:
        self.request.cookie = <void *>self
        self.request.nbytes = self.nbytes
        Py_INCREF(self)  # the core's; given back by Engine.reap when the request is released
        # What takes long, a call or a large copy, is not for the loop's thread. Where this thread spins it has a GPU
        # begin what is the first or second, for to wake the proxy takes longer, and sees it end if that is soon.
        cdef Waker waker = self.engine
        cdef bint call = self.request.kind == PPLX_REQUEST_CALL
        cdef bint first = waker.spins and waker.inflight <= 2
        cdef bint here = self.copied <= SMALL and (self.nbytes <= SMALL or first)
        self.theirs = not call and not waker.alone and (not here or self.nbytes > SOON)
        waker.theirs += self.theirs
        waker.hand_in(&self.request, not call and (here or waker.alone), self.theirs)
        return 0

    cdef bint reaped(self) except -1:
        cdef bint released = api.request_reaped(&self.request)
        cdef bint was_stuck = self.settled
        cdef Used used
        try:
            if not self.settled:
                self.settled = True
                try:
                    self._settle()
                except BaseException as exception:
                    # Nobody may wait for ever, whatever went wrong.
                    if self.cancel_requested and not self.detached:
                        raise  # it is cancelled when the memory is released: _release
                    if not self.fail(exception) or not isinstance(exception, Exception):
                        raise
        finally:
            if not released or was_stuck:
                # The rare case that settling and release are two events.
                for used in self.all_used():
                    used.stuck += -1 if released else 1
            if released:
                self.released = True
                self._release()
        return released

    cdef int _settle(self) except -1:
        cdef int status = self.request.error.status
        failure = None
        if self.finisher is not None:
            # A call: what it gives back, or an exception of its own.
            finisher, self.finisher = self.finisher, None
            result = finisher(status == PPLX_OK)
        else:
            result = self.nbytes
        if status != PPLX_OK:
            failure = self._failure()
        if self.cancel_requested and not self.detached:
            pass  # when the memory is released: _release
        elif status == PPLX_OK:
            self.fulfil(result)
        elif status == PPLX_CANCELLED:
            self.become_cancelled()
        else:
            self.fail(failure)
        if status != PPLX_OK and self.request.kind == PPLX_REQUEST_TRANSFER:
            self._report_missing(str(failure) or "the transfer was cancelled")
        return 0

    cdef int _release(self) except -1:
        if self.used0 is not None:
            self.used0.release()
        if self.used1 is not None:
            self.used1.release()
        if self.used2 is not None:
            self.used2.release()
        if self.used_more is not None:
            for used in self.used_more:
                (<Used>used).release()
        self.used0 = self.used1 = self.used2 = None
        self.used_more = None
        self.payload = None
        free(self.owned_targets)
        free(self.owned_segments)
        self.owned_targets = NULL
        self.owned_segments = NULL
        if self.give_up_timer is not None:
            self.give_up_timer.cancel()
            self.give_up_timer = None
        if self.cancel_requested:
            self.become_cancelled()
        callbacks, self.release_callbacks = self.release_callbacks, None
        if callbacks is not None:
            for callback in callbacks:
                self.loop.call_soon(callback, self)
        return 0

    cdef object _failure(self):
        """The exception for a request that failed."""
        cdef const pplx_error *error = &self.request.error
        cdef pplx_target *target = NULL
        cdef PeerRecord record = None
        if self.ended_by is not None:
            return fresh(self.ended_by, self.operation)
        if error.status == PPLX_POISONED:
            return self.bell_lane.failure()
        domain = nbytes = hint = None
        if self.request.kind != PPLX_REQUEST_CALL:
            nbytes = self.nbytes
        if self.request.kind == PPLX_REQUEST_TRANSFER and self.request.ntargets:
            target = &self.request.targets[self.request.failed_target]
            record = self.peer_of(target)
            domain = self.engine.domain_names[target.domain]
        elif self.used0 is not None and isinstance(self.used0, PeerRecord):
            record = self.used0
            domain = record.domain if self.request.kind == PPLX_REQUEST_SEND else None
        elif error.status == PPLX_REGISTRATION and isinstance(self.used0, Registration):
            nbytes = (<Registration>self.used0).nbytes
            names = self.engine.domain_names[(<Registration>self.used0).agreed() :]
            domain = names[0] if names else None
            if (<Registration>self.used0).mr.memory.kind == PPLX_MEMORY_CUDA:
                hint = errors.GPU_HINT
        status = api.status_name(error.status)
        text = error.text.decode(errors="replace") or api.status_text(error.status).decode()
        if error.status == PPLX_REMOTE_ACCESS and target != NULL and target.failed:
            text = "refused, as it seems: the connection broke under it, and the peer lives (rkey revoked?)"
        if error.status == PPLX_PEER_LOST:
            why = self.engine.lost_reason(record) if record is not None else None
            text = why or text
        link = None
        if error.status == PPLX_RAIL_LOST and target != NULL and record is not None:
            lost = [i for i in range(PPLX_MAX_LINKS) if target.links >> i & 1]
            link = lost[0] if lost else None
            text = f"link {link} is lost, and the peer is reached over others"
            if link in record.lost_links:
                text += f" ({record.lost_links[link]})"
        failure = errors.completion_error(
            status.decode() if status != NULL else "INTERNAL",
            text,
            operation=self.operation,
            peer=record.label if record is not None else None,
            domain=domain,
            nbytes=nbytes,
            provider_error=error.provider_error,
            hint=hint,
        )
        if isinstance(failure, errors.RailLost):
            failure.link = link
        return failure

    cdef int _report_missing(self, str reason) except -1:
        """Tell each receiver whose counter got a part of what did not succeed as a whole."""
        cdef pplx_target *target
        cdef size_t i
        cdef dict peers = {(<PeerRecord>used).key: used for used in self.all_used() if isinstance(used, PeerRecord)}
        for i in range(self.request.ntargets):
            target = &self.request.targets[i]
            if target.counter == <unsigned int>PPLX_NO_COUNTER or target.status == PPLX_OK:
                continue
            if target.status == PPLX_PEER_LOST or target.posted == 0 or target.delivered == target.total:
                continue
            self.engine.missing(peers.get(<size_t>target.peer), target.counter, target.total - target.delivered, reason)
        return 0

    def cancel(self, msg=None) -> bool:
        """Drop what is not posted; the transfer is cancelled once the rest has drained.

        Until then whoever awaits it keeps waiting: the memory is in use. A detached transfer only
        lets its awaiters go, and goes on.
        """
        if self.released or self.done():
            return False  # the core has let go of the request: nothing there may be told of it
        self._cancel_message = msg
        if self.engine.forked:
            self.become_cancelled()  # it is under way in another process, whose memory this no longer is
            return True
        self.engine.check_owner()
        if self.detached:
            self.become_cancelled()
        elif not self.cancel_requested:
            if self.request.kind == PPLX_REQUEST_CALL and self.operation != "connect":
                # It ends by itself, and uses no memory of a user's: whoever waits may go.
                self.become_cancelled()
                return True
            self.cancel_requested = True
            api.cancel(self.c_engine, &self.request)
            if self.request.kind != PPLX_REQUEST_CALL:
                self.give_up_timer = self.loop.call_later(self.engine.drain_timeout, self._give_up)
        return True

    def _give_up(self) -> None:
        """The memory was not released in time after a cancel: whoever waits hears that instead."""
        self.give_up_timer = None
        if not self.done():
            self.fail(
                errors.UnreleasedMemory(
                    f"{self._describe()} was cancelled, and the provider has not let go of its "
                    f"memory within {self.engine.drain_timeout} s"
                )
            )

    def _describe(self) -> str:
        """Say what it is, and with whom."""
        peers = sorted({(<PeerRecord>used).label for used in self.all_used() if isinstance(used, PeerRecord)})
        return f"{self.operation} of {self.nbytes} B" + (f" with peer {', '.join(peers)}" if peers else "")

    def add_release_callback(self, callback) -> None:
        """Call ``callback(self)`` from the loop once the memory is released."""
        if not callable(callback):
            raise TypeError(f"a callback is called, and {type(callback).__name__} cannot be")
        if self.released:
            self.loop.call_soon(callback, self)
        elif self.release_callbacks is None:
            self.release_callbacks = [callback]
        else:
            self.release_callbacks.append(callback)

    def __repr__(self) -> str:
        state = "released" if self.released else "settled" if self.settled else "in flight"
        return f"<Transfer {self.operation} of {self.nbytes} B, {state}>"

    def __dealloc__(self):
        free(self.owned_targets)
        free(self.owned_segments)
