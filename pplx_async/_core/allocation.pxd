# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint64_t


cdef class Allocation:
    cdef object __weakref__
    cdef void *start
    cdef readonly uint64_t nbytes
    cdef int fd


cdef Allocation find_allocation(uint64_t address, uint64_t nbytes)
