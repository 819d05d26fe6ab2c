# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from pplx_async._core.counters cimport CounterCore
from pplx_async._core.transfer cimport Transfer
from pplx_async._core.words cimport Word


cdef class GateCore(Word):
    cdef CounterCore counter
    cdef bint in_vain      # its peer is gone, and the counter has not heard of it yet


cdef class BellCore(Word):
    cdef Transfer transfer
    cdef bint stopped      # posted no more: captured, and closed or in want of what it uses

    cdef int hold(self, Transfer transfer) except -1
    cdef int stop(self, exception) except -1


cdef class CapturedTransfer(Transfer):
    cdef BellCore bell


cdef class WatchCore(Word):
    cdef uint64_t last
