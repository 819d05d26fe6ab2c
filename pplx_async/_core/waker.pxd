# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t, uint64_t

from pplx_async._core.includes.pplx cimport pplx_engine, pplx_request


cdef class Waker:
    cdef object __weakref__
    cdef pplx_engine *ptr
    cdef readonly object loop
    cdef unsigned long thread  # the loop's
    cdef readonly bint running
    cdef readonly Py_ssize_t inflight
    cdef Py_ssize_t waiting  # promises that wait for counters
    cdef Py_ssize_t theirs   # large transfers in flight, that the proxy is to do
    cdef readonly bint spins
    cdef bint alone          # few cores: in spin mode the proxy has none of its own, this thread copies large ones too
    cdef bint polling        # poll() is scheduled
    cdef bint leased         # the providers are not armed: it is, or go_on() is about to see to it
    cdef bint came           # something, since then
    cdef bint long_turn      # the last poll copied much: no more of them for now
    cdef uint64_t vain       # awaits in a row that spun in vain, or did not for that reason
    cdef int misses, skipped  # how often nothing did; and how often it wasn't tried for that reason
    cdef uint64_t patience_ns, window_ns  # how long the loop polls after something has come; and for now
    cdef bint reaping
    cdef int at_once         # awaits since the loop had a turn
    cdef int most_at_once
    cdef public uint64_t at_once_ns
    cdef uint64_t turn_ns    # when the first of them began
    cdef list ready          # (callback, argument, context), to be called by call_ready()
    cdef bint calls          # the loop has called us, and call_ready() comes before we return
    cdef bint listening      # to wait_fd
    cdef uint64_t active_ns  # of the last activity

    cdef int schedule(self, callback) except -1
    cdef int hand_in(self, pplx_request *request, bint here, bint theirs) except -1
    cdef bint is_fair(self) except -1
    cdef int spend(self, int awaits) except -1
    cdef int check_running(self) except -1
    cdef bint spin(self) except -1
    cdef bint spins_in_vain(self)
    cdef int keep_polling(self) except -1
    cdef int go_on(self, bint done, bint active) except -1
    cdef bint polls_on(self, bint done, bint active) except -1
    cdef int reap(self) except -1
    cdef int take_done(self) except -1
    cdef int drain(self) except -1
    cdef int serve(self, bint done, bint active) except -1
    cdef int arm(self) except -1
    cdef int call_soon(self, callback, argument, context) except -1
