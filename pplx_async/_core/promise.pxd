# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0

from pplx_async._core.waker cimport Waker


cdef enum PromiseState:
    PENDING
    DONE
    CANCELLED


cdef object fresh(object exception, str operation=*)
cdef object elsewhere(object loop)


cdef class Promise:
    cdef object __weakref__
    cdef object loop
    cdef Waker waker        # wakes those who await us, and may spin for us
    cdef object _result
    cdef object _exception
    cdef object _traceback  # that it came with; each raise adds to it anew
    cdef public object _cancel_message  # asyncio.gather reads it
    cdef object _callback, _context  # the first one, nearly always the only one
    cdef list _callbacks             # the others
    cdef PromiseState state
    cdef bint _retrieved
    cdef bint _blocking

    cdef bint _waits(self) except -1
    cdef object outcome(self)
    cdef bint fulfil(self, object result) except -1
    cdef bint fail(self, object exception) except -1
    cdef bint become_cancelled(self) except -1
    cdef int _schedule(self) except -1
    cdef int _call_soon(self, callback, context) except -1
