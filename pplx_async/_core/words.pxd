# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from cpython.buffer cimport Py_buffer
from libc.stdint cimport int32_t, uint64_t

from pplx_async._core.includes.pplx cimport pplx_cell, pplx_lane, pplx_word
from pplx_async._core.memory cimport Used
from pplx_async._core.promise cimport Promise
from pplx_async._core.waker cimport Waker


cdef class Page:
    cdef object memory
    cdef Py_buffer view
    cdef uint64_t start
    cdef object free  # indices, the one that was given back first comes first
    cdef object late  # ... when there are no others
    cdef readonly bint kept  # no other engine gets it
    cdef uint64_t pinned  # where it starts for GPUs; 0: it is not, by this engine
    cdef dict places      # where that is for those of a library that know it

    cdef pplx_cell *cell(self, int index) noexcept


cdef class Lane:
    cdef pplx_lane lane
    cdef readonly str stream
    cdef uint64_t context  # of CUDA's; 0: the stream is the host's
    cdef uint64_t id       # no other stream has had it, or will; 0: not known yet
    cdef object reason  # of its poisoning; None: not known yet
    cdef object words   # weak: what was queued there


cdef class Words:
    cdef Waker engine
    cdef readonly Page page
    cdef readonly bint flushes  # what NICs have written into memory of GPUs
    cdef dict lanes
    cdef Py_ssize_t swept  # so many of them were needed when last looked through
    cdef set armed
    cdef bint ended

    cdef int sweep(self) except -1
    cdef int forget(self, Word word) except -1


cdef class WordWait(Promise):
    cdef readonly uint64_t count
    cdef readonly uint64_t order
    cdef Word word


cdef class Word:
    cdef object __weakref__
    cdef pplx_word word
    cdef Words home
    cdef Lane lane
    cdef readonly int index
    cdef uint64_t place    # its address; a watch's is within the cell
    cdef object reason     # why it counts no more; or not until its lane is healed
    cdef bint final        # ... for good
    cdef bint queued, armed, retired, closed
    cdef bint was_aborted  # its cell says no more
    cdef list waits        # a heap
    cdef uint64_t order

    cdef int take_cell(self, Words home, Lane lane, bint repeats) except -1
    cdef int give_back(self) except -1
    cdef int give_up(self) except -1
    cdef bint holds(self) noexcept
    cdef int end_for(self, Used used, exception, bint repeating_only) except -1
    cdef int undo(self) except -1
    cdef int reaped(self) except -1
    cdef int serve(self) except -1
    cdef int fail_waits(self, object reason) except -1
    cdef int told(self, int32_t status) except -1
    cdef int on_retired(self) except -1
    cdef WordWait wait_for(self, uint64_t count)
