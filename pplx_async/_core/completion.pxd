# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport int32_t, uint64_t


cdef class Completion:
    cdef readonly str operation
    cdef readonly object context
    cdef readonly uint64_t flags
    cdef readonly object imm
    cdef readonly uint64_t nbytes
    cdef object _error
    # What `error` is made of, when somebody looks at it.
    cdef int status
    cdef int32_t provider_error
    cdef uint64_t asked
    cdef str peer
