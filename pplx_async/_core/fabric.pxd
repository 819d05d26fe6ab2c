# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint32_t, uint64_t

from pplx_async._core.includes.fabric cimport (
    pplx_fabric_domain,
    pplx_fabric_endpoint,
    pplx_fabric_limits,
    pplx_fabric_peer,
    pplx_fabric_queue,
    pplx_op,
    pplx_provider_mr,
)
from pplx_async._core.includes.pplx cimport pplx_remote_key


cdef class Domain:
    cdef pplx_fabric_domain *ptr
    cdef pplx_fabric_limits limits
    cdef unsigned int forks
    cdef bint opened

    cdef bint lives(self)
    cdef int require(self, bint opened, str what) except -1


cdef class PeerAddress:
    cdef pplx_fabric_peer *ptr
    cdef readonly Domain domain
    cdef readonly bytes address
    cdef readonly str label
    cdef readonly bint is_known
    cdef public object line


cdef class Region:
    cdef pplx_provider_mr *mr
    cdef pplx_remote_key key
    cdef Py_buffer view
    cdef bint has_view
    cdef bint opened
    cdef Py_ssize_t uses
    cdef readonly Domain domain
    cdef readonly uint64_t nbytes
    cdef readonly bint writable

    cdef int release(self) except -1
    cdef int end(self) except -1


cdef class LocalMemory:
    cdef readonly Region region
    cdef readonly uint64_t offset
    cdef readonly uint64_t nbytes
    cdef object owner


cdef class RemoteMemory:
    cdef readonly uint64_t address
    cdef readonly uint64_t key
    cdef readonly uint64_t nbytes


cdef class Queue:
    cdef pplx_fabric_queue *ptr
    cdef bint opened
    cdef object kept
    cdef readonly Domain domain


cdef class Endpoint:
    cdef pplx_fabric_endpoint *ptr
    cdef bint opened
    cdef readonly Queue queue
    cdef readonly bytes address

    cdef int end(self) except -1


# As the library sees it; `owner` leads back to the Work that it is part of.
ctypedef struct fabric_work:
    pplx_op op
    void *owner


cdef class Work:
    cdef fabric_work work
    cdef uint32_t opcode
    cdef object context
    cdef LocalMemory local
    cdef PeerAddress peer
    cdef Endpoint endpoint
