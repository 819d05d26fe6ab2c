# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How what has finished reaches the event loop.

Two ways:

``eventfd``
    The proxy thread rings an eventfd, which the loop watches, if the loop may be asleep. One ring
    settles everything that has finished. On few cores the loop watches the NICs too (`listen`): one
    wake-up instead of two. And for a moment after something has come it does not sleep, but polls
    between its other work: to wake an idle core takes longer than most answers. That is given up,
    for longer and longer, where it brings nothing.
``spin``
    This thread does the proxy's work while it waits: a bounded spin where something is awaited,
    then one turn in every turn of the loop as long as transfers or waits pend. After a moment
    without activity it is as above, until something comes.

On few cores this thread copies large writes as well in low-latency mode, for the proxy would take a
core from the peer. In both a small operation is posted right where it is submitted, if the proxy is not at work.

Whoever waits for what has finished is woken by one call of the loop's (`call_ready`): a loop's
``call_soon`` costs several times what waking a task does.
"""

from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport uint32_t, uint64_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from pplx_async._core.includes.pplx cimport PPLX_DONE, PPLX_DROVE
from pplx_async._core.rt cimport api

__all__ = ["Waker"]

# With more than so many pending an await does not spin, nor after so many that spun in vain.
cdef int FEW = 4
# What an await spins at a time, and how long the loop goes on polling with nothing happening.
cdef uint32_t SPIN_US = 30
cdef int SPIN_AWAITS = 16  # that might have been done at once meanwhile
# Where it has not paid so many times, only one in 2 ** misses is tried.
cdef int FEW_MISSES = 2
cdef int MOST_MISSES = 8
# A turn that takes longer, and ends nothing, copies much: that is for the proxy.
cdef uint64_t MOST_TURN_NS = 200_000
# Awaits in a row that need not suspend: as many as others are waiting for their turn, within these; and
# no longer than that, for some copy much. The clock is read after each so many.
cdef int LEAST_AT_ONCE = 128
cdef int MOST_AT_ONCE = 1024
cdef uint64_t AT_ONCE_NS = 300_000
cdef int CLOCK_AWAITS = 16
cdef int BYTES_AN_AWAIT = 32768  # copied by this thread, they count as one


cdef uint64_t now_ns() noexcept:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + <uint64_t>now.tv_nsec


cdef class Waker:
    """The event loop's side of a core engine; base of `Engine`.

    Attributes
    ----------
    loop : asyncio.AbstractEventLoop
        Whose thread owns the engine.
    running : bool
        The proxy thread runs.
    inflight : int
        Requests that are submitted and not released.
    spins : bool
        Low-latency mode.
    at_once_ns : int
        How long awaits that are done at once may keep the loop from its turn.
    """

    def __cinit__(self):
        self.ready = []
        self.most_at_once = LEAST_AT_ONCE
        self.at_once_ns = AT_ONCE_NS

    @property
    def fd(self) -> int:
        """The eventfd to watch; `on_readable` is what to call."""
        if self.ptr == NULL:
            self.check_running()
        return api.engine_fd(self.ptr)

    def listen(self, bint on) -> None:
        """Watch the NICs, or leave them to the proxy while that is at work."""
        cdef size_t domain
        cdef int fd
        if self.ptr == NULL or on == self.listening or self.loop.is_closed():
            return
        for domain in range(api.engine_domains(self.ptr)):
            fd = api.engine_wait_fd(self.ptr, domain)
            if fd < 0:
                return  # the proxy's alone
            if on:
                self.loop.add_reader(fd, self.on_nic)
            else:
                self.loop.remove_reader(fd)
        self.listening = on
        api.listens(self.ptr, on)

    def on_nic(self) -> None:
        """A NIC has something: do the proxy's work."""
        cdef pplx_engine *ptr = self.ptr
        cdef uint32_t flags
        if ptr == NULL or (self.polling and self.theirs == 0):
            return  # or in this very turn of the loop, by poll()
        with nogil:
            flags = api.drive(ptr)
        if not flags & PPLX_DROVE:
            self.listen(False)
        if flags & PPLX_DONE:
            self.serve(True, True)

    def on_readable(self) -> None:
        """Settle everything that has finished, and arm the wake-up again."""
        if self.ptr == NULL:
            return
        api.clear(self.ptr)
        try:
            self.listen(True)
        finally:
            self.serve(True, True)

    def drain_done_list(self) -> None:
        """As `on_readable`, when nobody rang."""
        self.serve(True, True)

    cdef int serve(self, bint done, bint active) except -1:
        """For what the loop itself calls: no task is running, so those who wait are woken here and now."""
        if self.ptr == NULL:
            return 0
        if active:
            self.active_ns = now_ns()
        self.calls = True
        try:
            if done:
                self.take_done()
            self.call_ready()
        finally:
            self.calls = False
            try:
                if self.ready:
                    self.schedule(self.call_ready)
            finally:
                self.go_on(done, active)
        return 0

    cdef int schedule(self, callback) except -1:
        """The loop's `call_soon`, for what must come: a signal's handler that raises meanwhile is heard, but later."""
        try:
            self.loop.call_soon(callback)
        except (KeyboardInterrupt, SystemExit):
            self.loop.call_soon(callback)  # nobody knows whether it was: once too often does no harm
            raise
        return 0

    cdef int drain(self) except -1:
        """For what a task has called: others are woken by the loop, later."""
        try:
            self.take_done()
        finally:
            if self.ptr == NULL or self.polling or self.calls:
                pass  # armed after the last poll
            elif self.spins and (self.inflight or self.waiting):
                self.keep_polling()
            else:
                self.arm()
        return 0

    cdef int arm(self) except -1:
        """Have the loop woken by what finishes next."""
        if not api.arm(self.ptr):
            # More came meanwhile. The loop's other work goes first, so that it stays responsive.
            self.schedule(self.drain_done_list)
        return 0

    cdef int take_done(self) except -1:
        self.reaping = True
        try:
            return self.reap()
        finally:
            self.reaping = False

    cdef int reap(self) except -1:
        raise NotImplementedError

    cdef int check_running(self) except -1:
        raise NotImplementedError

    cdef int hand_in(self, pplx_request *request, bint here, bint theirs) except -1:
        """Post it on this thread, if ``here``, and have the proxy go on with it, if ``theirs``."""
        cdef uint32_t flags
        if not here:
            api.submit_there(self.ptr, request)
            return 0
        cdef bint spinning = self.theirs == 0 and (self.spins or self.leased)
        cdef uint64_t nbytes = request.nbytes  # it may be gone afterwards
        if spinning:
            flags = api.submit_spinning(self.ptr, request)
        else:
            flags = api.submit_here(self.ptr, request)
            if theirs:
                api.spin_end(self.ptr)
        try:
            if spinning and self.spins:
                self.keep_polling()
            elif spinning:
                self.active_ns = now_ns()  # an answer may come
            if flags & PPLX_DROVE and not self.listening:
                self.listen(True)
            if nbytes >= BYTES_AN_AWAIT:
                self.spend(<int>min(nbytes // BYTES_AN_AWAIT, MOST_AT_ONCE))
        finally:
            if flags & PPLX_DONE and not self.reaping and self.is_fair():
                self.drain()
        return 0

    cdef bint is_fair(self) except -1:
        """What is done at once does not suspend its awaiter: now and then the loop's others get a turn."""
        if self.at_once >= self.most_at_once:
            return False  # until the loop has had its turn
        self.spend(1)
        return True

    cdef int spend(self, int awaits) except -1:
        """Of what may happen in one turn of the loop; an await that is done at once is the unit."""
        cdef int before = self.at_once
        if before >= self.most_at_once:
            return 0
        if before == 0:
            self.turn_ns = now_ns()
        self.at_once += awaits
        if before // CLOCK_AWAITS != self.at_once // CLOCK_AWAITS and now_ns() - self.turn_ns > self.at_once_ns:
            self.at_once = self.most_at_once
        if self.at_once >= self.most_at_once:
            self.schedule(self.take_turn)
        return 0

    def take_turn(self) -> None:
        """The loop has run everyone who was ready."""
        self.at_once = 0
        # Of many tasks each had one turn: then a run of awaits for one of them may take as long.
        self.most_at_once = <int>min(max(self.inflight, LEAST_AT_ONCE), MOST_AT_ONCE)
        self.serve(True, True)

    # ---- waking those who wait ----

    cdef int call_soon(self, callback, argument, context) except -1:
        """As the loop's, which is asked once for all that finish together: its call costs more than ours."""
        self.ready.append((callback, argument, context))
        if len(self.ready) == 1 and not self.calls:
            self.schedule(self.call_ready)
        return 0

    def call_ready(self) -> None:
        """Call whom `call_soon` was given, in that order, each in its own context."""
        if not self.ready:
            return
        ready, self.ready = self.ready, []
        called = 0
        try:
            for callback, argument, context in ready:
                called += 1
                try:
                    context.run(callback, argument)
                except (KeyboardInterrupt, SystemExit):
                    raise
                except BaseException as exception:
                    self.loop.call_exception_handler(
                        {"message": f"Exception in callback {callback!r}", "exception": exception, "future": argument}
                    )
        finally:
            if called < len(ready):  # an interrupt: the others still get their turn
                self.ready = ready[called:] + self.ready
                self.schedule(self.call_ready)

    # ---- spinning ----

    cdef bint spin(self) except -1:
        """Spin for a moment; True if anything came."""
        cdef pplx_engine *ptr = self.ptr
        cdef uint32_t flags
        cdef bint ours = self.theirs == 0
        cdef uint64_t began
        if ptr == NULL or self.reaping or not self.running or PyThread_get_thread_ident() != self.thread:
            return False
        if not self.is_fair():
            return False
        if self.inflight + self.waiting > FEW or self.spins_in_vain():
            self.keep_polling()
            return False  # others have something to do meanwhile
        began = now_ns()
        with nogil:
            flags = api.spin(ptr, SPIN_US) if ours else api.watch(ptr, SPIN_US)
        self.keep_polling()  # whatever handling what has come raises: it goes on, and arms in the end
        if flags & PPLX_DONE:
            self.vain = 0
            self.take_done()
        else:
            self.active_ns = began  # nothing has happened since: this was a part of the window
            self.vain += 1
            self.spend(SPIN_AWAITS)
        return flags & PPLX_DONE != 0

    cdef bint spins_in_vain(self):
        """Spinning has brought nothing several times: then one await in so many tries again."""
        if self.vain < FEW:
            return False
        self.vain += 1
        return self.vain % SPIN_AWAITS != 0

    cdef int keep_polling(self) except -1:
        self.active_ns = now_ns()
        self.leased = True
        if not self.polling:
            self.polling = True
            self.schedule(self.poll)
        return 0

    def poll(self) -> None:
        """One turn of ours in a turn of the loop; comes again as long as something may come soon."""
        cdef pplx_engine *ptr = self.ptr
        cdef bint ours = self.theirs == 0
        cdef uint32_t flags
        cdef uint64_t began
        self.polling = False
        if ptr == NULL or not self.running:
            return
        began = now_ns()
        with nogil:
            flags = api.spin(ptr, 0) if ours else api.watch(ptr, 0)
        if flags & PPLX_DONE:
            self.came = True
        self.long_turn = not self.spins and not flags & PPLX_DONE and now_ns() - began > MOST_TURN_NS
        self.serve(flags & PPLX_DONE, flags != 0 if self.spins else flags & PPLX_DONE)

    cdef int go_on(self, bint done, bint active) except -1:
        """Another poll soon; or armed, and asleep."""
        if self.ptr == NULL or self.polling:
            return 0
        if self.running and (self.inflight or self.waiting) and self.polls_on(done, active):
            self.leased = self.polling = True
            self.schedule(self.poll)
            return 0
        if self.leased:
            self.leased = False
            if self.long_turn:
                self.misses = MOST_MISSES
                self.window_ns = self.patience_ns
            elif not self.came:
                self.misses = min(self.misses + 1, MOST_MISSES)
                self.window_ns = self.patience_ns
            else:
                self.misses = 0
            self.came = self.long_turn = False
            api.spin_end(self.ptr)
        return self.arm()

    cdef bint polls_on(self, bint done, bint active) except -1:
        """Whether what comes next is worth polling for."""
        if self.long_turn:
            return False
        if self.spins or self.leased:
            return active or now_ns() - self.active_ns < self.window_ns
        # Asleep until now.
        if not done or self.patience_ns == 0 or self.theirs:
            return False
        if self.misses < FEW_MISSES:
            return True
        self.skipped += 1
        if self.skipped < 1 << self.misses:
            return False
        self.skipped = 0
        # Twice as long, and as long as that pays: for a peer that sleeps too, and does not know yet that it pays.
        self.window_ns = 2 * self.patience_ns
        return True
