# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from pplx_async._core.includes.pplx cimport pplx_counter
from pplx_async._core.promise cimport Promise
from pplx_async._core.waker cimport Waker


cdef class CounterCore


cdef class CounterWait(Promise):
    cdef readonly uint64_t count
    cdef readonly uint64_t order
    cdef CounterCore counter
    cdef Waker engine
    cdef bint granted  # a take that was served, and whose result nobody has seen


cdef class CounterCore:
    cdef pplx_counter counter
    cdef readonly object engine
    cdef public bint is_open
    cdef object _broken, _lost
    cdef list _waits
    cdef object _takes
    cdef uint64_t _taken
    cdef uint64_t _order
    cdef Py_ssize_t _cancelled  # of those in _waits and _takes
    cdef object _gates          # that may still take from it
    cdef bint _taken_from       # by take(): then gates may not, and the other way round
    cdef bint _gated

    cdef int reaped(self) except -1
    cdef int _rearm(self) except -1
    cdef int _serve(self) except -1
    cdef int _drop(self, CounterWait promise) except -1
    cdef int _give_back(self, CounterWait promise) except -1
    cdef int _end_promises(self, exception) except -1
