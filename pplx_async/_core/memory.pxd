# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint32_t, uint64_t

from pplx_async._core.includes.pplx cimport pplx_mr, pplx_remote


cdef tuple bounds(object index, uint64_t nbytes, str what, str unit=*)


cdef class Used:
    cdef readonly Py_ssize_t uses
    cdef public Py_ssize_t stuck
    cdef list _idle

    cdef int acquire(self) except -1
    cdef int release(self) except -1


cdef class Registration(Used):
    cdef pplx_mr mr
    cdef Py_buffer view
    cdef bint has_view
    cdef object owner  # keeps memory alive that has no view
    cdef readonly object engine
    cdef readonly uint64_t nbytes
    cdef readonly uint32_t access
    cdef readonly bint writable
    cdef bint on_gpu
    cdef bint lacks  # a NIC of the engine doesn't reach it
    cdef public bint is_open

    cdef int opened(self) except -1
    cdef size_t agreed(self)


cdef class LocalSlice:
    cdef readonly Registration registration
    cdef readonly uint64_t offset
    cdef readonly uint64_t nbytes
    cdef object owner


cdef class PeerRecord(Used):
    cdef readonly object engine
    cdef readonly str label
    cdef readonly uint32_t domains
    cdef readonly uint64_t max_message  # bytes of one work request, on any of its links
    cdef bint fences  # closing its endpoints lets go of the memory
    cdef void *ptr
    cdef size_t key  # ptr as it was: what targets say it is after the core has freed it, too
    cdef str why  # it is lost, as the core said while it could
    cdef str domain  # that showed it; until then that of the first link, which has its messages
    cdef public object owner
    cdef public bint is_open
    cdef public object reason
    cdef readonly dict lost_links  # why, by link


cdef class RemoteRecord(Used):
    cdef object __weakref__
    cdef pplx_remote remote
    cdef readonly PeerRecord peer
    cdef readonly uint64_t region
    cdef readonly uint64_t nbytes
    cdef readonly uint32_t access
    cdef public bint revoked


cdef class RemoteSlice:
    cdef readonly RemoteRecord record
    cdef readonly uint64_t offset
    cdef readonly uint64_t nbytes


cdef class RemoteCounterRecord(Used):
    cdef readonly PeerRecord peer
    cdef readonly uint32_t counter
    cdef public bint closed
    cdef public bint broken  # it misses a part of what failed, as we have told the peer
