# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory that other processes of this host can map: each allocation is a memfd of its own.

A peer gets a descriptor of it from the ipc provider and writes there by plain copies. The memfd is
sealed, so nobody can resize it under the other's mapping; it has no name in any file system, and goes
when its last holder does.
"""

import weakref
from bisect import bisect_right, insort

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport uint64_t

from pplx_async.errors import NativeCallError

__all__ = ["Allocation"]

cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char *name, unsigned int flags)
    void *mmap(void *address, size_t nbytes, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t nbytes)
    unsigned int MFD_CLOEXEC, MFD_ALLOW_SEALING
    int PROT_READ, PROT_WRITE, MAP_SHARED
    void *MAP_FAILED

cdef extern from "<fcntl.h>" nogil:
    int fcntl(int fd, int command, ...)
    int F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL

cdef extern from "<unistd.h>" nogil:
    int ftruncate(int fd, long nbytes)
    int close(int fd)

# By address: which allocation a buffer lies in is asked at every registration.
_starts = []
_allocations = weakref.WeakValueDictionary()


cdef class Allocation:
    """Zeroed shared memory with the buffer protocol; freed when nothing refers to it any more.

    Parameters
    ----------
    nbytes : int
        At least 1.

    Raises
    ------
    NativeCallError
        No memory, or too many open files.
    """

    def __cinit__(self):
        self.fd = -1

    def __init__(self, nbytes: int) -> None:
        if self.fd >= 0:
            raise RuntimeError("an allocation is made once")
        if not 1 <= nbytes <= 1 << 62:
            raise ValueError(f"an allocation has 1 B to 2**62 B, not {nbytes}")
        self.nbytes = nbytes
        self.fd = memfd_create("pplx_async", MFD_CLOEXEC | MFD_ALLOW_SEALING)
        if self.fd < 0:
            raise failed("memfd_create")
        if ftruncate(self.fd, <long>nbytes):
            raise failed("ftruncate")
        if fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL):
            raise failed("fcntl F_ADD_SEALS")
        cdef void *start = mmap(NULL, <size_t>nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, self.fd, 0)
        if start == MAP_FAILED:
            raise failed("mmap")
        self.start = start
        insort(_starts, self.address)
        _allocations[self.address] = self

    @property
    def address(self) -> int:
        """Where it starts."""
        return <size_t>self.start

    def __len__(self) -> int:
        return self.nbytes

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.start, <Py_ssize_t>self.nbytes, False, flags)

    def __dealloc__(self):
        if self.start != NULL:
            _starts.remove(<size_t>self.start)
            munmap(self.start, <size_t>self.nbytes)
        if self.fd >= 0:
            close(self.fd)


cdef object failed(str operation):
    return NativeCallError(f"{operation} for shared memory", operation=operation, errno=errno)


cdef Allocation find_allocation(uint64_t address, uint64_t nbytes):
    """The allocation that this range lies in, or None."""
    cdef Allocation found
    cdef Py_ssize_t at = bisect_right(_starts, address)
    if at == 0:
        return None
    found = _allocations.get(_starts[at - 1])
    if found is None or address + nbytes > <uint64_t><size_t>found.start + found.nbytes:
        return None
    return found
