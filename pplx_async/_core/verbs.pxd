# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from cpython.buffer cimport Py_buffer
from libc.stdint cimport uint32_t, uint64_t

from pplx_async._core.includes.verbs cimport (
    pplx_verbs_context,
    pplx_verbs_mr,
    pplx_verbs_pair,
    pplx_verbs_pd,
    pplx_verbs_port,
    pplx_verbs_queue,
)


cdef class Context:
    cdef pplx_verbs_context *ptr
    cdef pplx_verbs_port c_port
    cdef unsigned int forks
    cdef bint opened
    cdef Py_ssize_t uses  # protection domains and queues that the library knows

    cdef bint lives(self)
    cdef int require(self, bint opened, str what) except -1
    cdef int release(self) except -1
    cdef int end(self) except -1


cdef class ProtectionDomain:
    cdef pplx_verbs_pd *ptr
    cdef bint opened
    cdef Py_ssize_t uses  # memories and queue pairs
    cdef readonly Context context

    cdef int release(self) except -1
    cdef int end(self) except -1


cdef class Region:
    cdef pplx_verbs_mr *mr
    cdef Py_buffer view
    cdef bint has_view
    cdef bint opened
    cdef Py_ssize_t uses  # operations in flight
    cdef readonly ProtectionDomain pd
    cdef readonly uint64_t nbytes
    cdef readonly uint64_t address
    cdef readonly uint32_t lkey
    cdef readonly uint32_t rkey
    cdef readonly bint writable

    cdef int release(self) except -1
    cdef int end(self) except -1


cdef class MemoryRange:
    cdef readonly Region region
    cdef readonly uint64_t offset
    cdef readonly uint64_t nbytes
    cdef object owner


cdef class Queue:
    cdef pplx_verbs_queue *ptr
    cdef bint opened
    cdef bint broken
    cdef Py_ssize_t uses  # queue pairs that complete here
    cdef int c_fd
    cdef dict works  # by their id: posted, and no completion of it was read
    cdef object kept
    cdef readonly Context context
    cdef readonly uint32_t entries

    cdef int take(self, list into, Py_ssize_t most) except -1
    cdef int fail_all(self, QueuePair pair, int status, int native) except -1
    cdef int release(self) except -1
    cdef int end(self) except -1


cdef class QueuePair:
    cdef pplx_verbs_pair *ptr
    cdef bint opened
    cdef uint32_t sends
    cdef uint32_t receives
    cdef readonly uint32_t send_depth
    cdef readonly uint32_t receive_depth
    cdef readonly ProtectionDomain pd
    cdef readonly Queue send_queue
    cdef readonly Queue receive_queue
    cdef readonly dict address
    cdef bint connecting  # by a thread that has let go of the GIL
    cdef str peer

    cdef int end(self) except -1


cdef class Work:
    cdef uint32_t opcode
    cdef object context
    cdef MemoryRange local
    cdef QueuePair pair
    cdef str peer
