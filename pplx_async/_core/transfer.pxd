# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t

from pplx_async._core.includes.pplx cimport pplx_engine, pplx_request, pplx_segment, pplx_target
from pplx_async._core.memory cimport PeerRecord, Used
from pplx_async._core.promise cimport Promise


cdef class Transfer(Promise):
    cdef pplx_request request
    cdef pplx_target target
    cdef pplx_segment segment
    cdef pplx_target *owned_targets
    cdef pplx_segment *owned_segments
    cdef pplx_engine *c_engine
    cdef object engine
    cdef Used used0, used1, used2
    cdef list used_more
    cdef object payload
    cdef object finisher
    cdef list release_callbacks
    cdef object give_up_timer
    cdef object bell_lane  # it waits for a stream there, or did; see words.pyx
    cdef object ended_by   # what ended it before that; else None
    cdef readonly str operation
    cdef readonly uint64_t nbytes
    cdef uint64_t copied  # of these, by threads of ours, at most
    cdef readonly bint detached
    cdef readonly bint settled
    cdef readonly bint released
    cdef bint cancel_requested
    cdef bint theirs  # copies much: the proxy is to do it, or to go on with it

    cdef int use(self, Used used) except -1
    cdef list all_used(self)
    cdef PeerRecord peer_of(self, pplx_target *target)
    cdef int submit(self) except -1
    cdef bint reaped(self) except -1
    cdef int _settle(self) except -1
    cdef int _release(self) except -1
    cdef object _failure(self)
    cdef int _report_missing(self, str reason) except -1
