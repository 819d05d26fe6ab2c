# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int64_t, uint32_t, uint64_t

from pplx_async._core.includes.pplx cimport pplx_segment, pplx_target
from pplx_async._core.memory cimport LocalSlice, PeerRecord, RemoteCounterRecord, RemoteSlice


cdef class Plan:
    cdef pplx_target *targets
    cdef pplx_segment *segments
    cdef size_t ntargets, nsegments, room_targets, room_segments
    cdef uint64_t nbytes
    cdef uint64_t copied
    cdef unsigned long thread
    cdef object engine
    cdef set used

    cdef pplx_target *target(
        self, LocalSlice local, RemoteSlice remote, PeerRecord peer, object counter
    ) except NULL
    cdef int check_place(self) except -1
    cdef pplx_segment *room(self, size_t n) except NULL
    cdef int finish(self) except -1


cdef LocalSlice local_of(object memory)
cdef RemoteSlice remote_of(object memory)
cdef RemoteCounterRecord counter_of(object counter)

cdef int check_peer(object engine, PeerRecord peer, str operation) except -1
cdef int check_write(object engine, LocalSlice local, RemoteSlice remote) except -1
cdef int check_read(object engine, LocalSlice local, RemoteSlice remote) except -1
cdef int check_lengths(LocalSlice local, RemoteSlice remote) except -1
cdef int check_counter(RemoteCounterRecord counter) except -1
cdef uint32_t counter_for(PeerRecord peer, object counter) except? 0xfffffffe
