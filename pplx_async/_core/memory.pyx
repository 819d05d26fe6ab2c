# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory on both sides: what keeps it alive, what may be done with it, and its slices.

A `Registration` holds the exporter's buffer for as long as a NIC may touch it; a `RemoteRecord` is
what a descriptor said of a peer's memory. Slices only point into them. Everything that a transfer
uses counts its users (`Used`), so that closing can wait until nobody is left.
"""

import struct

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.number cimport PyIndex_Check
from libc.stdint cimport uint32_t, uint64_t

from pplx_async._core.allocation cimport Allocation, find_allocation
from pplx_async._core.arguments cimport integer, whole
from pplx_async._core.includes.pplx cimport (
    PPLX_MAX_DOMAINS,
    PPLX_MEMORY_CUDA,
    PPLX_MEMORY_HOST,
    PPLX_NO_KEY,
    pplx_peer,
)

__all__ = [
    "ElementView",
    "LocalSlice",
    "PeerRecord",
    "Registration",
    "RemoteCounterRecord",
    "RemoteRecord",
    "RemoteSlice",
    "Used",
]


cdef class Used:
    """Something that transfers use; tells when the last of them has let go.

    Attributes
    ----------
    uses : int
        Transfers that use it.
    stuck : int
        Those of them that have settled, but whose memory the provider still holds.
    """

    cdef int acquire(self) except -1:
        self.uses += 1
        return 0

    cdef int release(self) except -1:
        self.uses -= 1
        if self.uses == 0 and self._idle is not None:
            idle, self._idle = self._idle, None
            for future in idle:
                if not future.done():
                    future.set_result(None)
        return 0

    def tell_idle(self, future) -> None:
        """Resolve a future when no transfer uses it, now or at the last release."""
        if self.uses == 0:
            future.set_result(None)
        elif self._idle is None:
            self._idle = [future]
        else:
            self._idle.append(future)


# no_gc_clear: the collector would drop the view's owner, and free memory that a NIC still knows.
@cython.no_gc_clear
cdef class Registration(Used):
    """The buffer of one region, registered with every domain of an engine.

    Parameters
    ----------
    engine : Engine
        Where it is registered.
    memory : Memory
        As `pplx_async._intake.take` found it.
    access : int
        What peers may do: 1 read, 2 write, 3 both, 0 nothing.
    """

    def __init__(self, engine, memory, uint32_t access) -> None:
        self.engine = engine
        self.access = access
        self.writable = not memory.readonly
        self.mr.memory.fd = -1
        self.mr.access = access
        if memory.address is None:
            PyObject_GetBuffer(memory.owner, &self.view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if self.writable else 0))
            self.has_view = True
            self.mr.memory.address = <uint64_t>self.view.buf
            self.nbytes = <uint64_t>self.view.len
        else:
            self.owner = memory.owner
            self.mr.memory.address = memory.address
            self.nbytes = memory.nbytes
        self.mr.memory.device = memory.device
        self.on_gpu = memory.device >= 0
        self.mr.memory.kind = PPLX_MEMORY_CUDA if self.on_gpu else PPLX_MEMORY_HOST
        self.mr.memory.nbytes = self.nbytes
        cdef Allocation allocation = find_allocation(self.mr.memory.address, self.nbytes)
        if allocation is not None:
            self.mr.memory.fd = allocation.fd
            self.mr.memory.fd_offset = self.mr.memory.address - <uint64_t><size_t>allocation.start

    @property
    def address(self) -> int:
        """Where the memory starts."""
        return self.mr.memory.address

    @property
    def keys(self) -> list[tuple[int, int]]:
        """(key, base) of each domain, for the descriptor."""
        return [(self.mr.keys[i].key, self.mr.keys[i].base) for i in range(self.mr.domains)]

    @property
    def register_ns(self) -> int:
        """What registering took, in nanoseconds."""
        return self.mr.register_ns

    cdef int opened(self) except -1:
        """It is registered, with every domain that reaches it."""
        cdef size_t i
        self.lacks = False
        for i in range(self.mr.domains):
            self.lacks |= self.mr.handles[i] == NULL
        return 0

    cdef size_t agreed(self):
        """How many domains gave a key: while registering they are asked in turn, until one refuses."""
        cdef size_t i = 0
        while (
            i < PPLX_MAX_DOMAINS
            and (self.mr.keys[i].key or self.mr.keys[i].base)
            and self.mr.keys[i].key != PPLX_NO_KEY
        ):
            i += 1
        return i

    def let_go(self) -> None:
        """Give the exporter its buffer back. No NIC may know it any more."""
        if self.has_view:
            self.has_view = False
            PyBuffer_Release(&self.view)
        self.owner = None

    def __dealloc__(self):
        # Still registered: the engine keeps every open registration alive, so this is not reached
        # for one. Without an engine there was never a NIC.
        if self.has_view:
            PyBuffer_Release(&self.view)


cdef object end_of(object given, uint64_t default, uint64_t size):
    """One end of a slice, counted from the start."""
    if given is None:
        return default
    if not PyIndex_Check(given):
        raise TypeError(f"the ends of a slice are integers, not {type(given).__name__}")
    end = given.__index__()
    return end + size if end < 0 else end


cdef tuple bounds(object index, uint64_t size, str what, str unit="bytes"):
    """Start and length of a slice of ``size`` bytes or elements, or a helpful error."""
    if not isinstance(index, slice):
        raise TypeError(f"slice {what} by {unit}, as in [0:4096], not with {type(index).__name__}")
    if index.step is not None and index.step != 1:
        raise ValueError(f"a slice of {what} is contiguous: no step ({index.step})")
    start, stop = end_of(index.start, 0, size), end_of(index.stop, size, size)
    # Unlike a list's, a slice that reaches past the end is an error: lengths decide what is moved.
    if not 0 <= start <= stop <= size:
        short = "B" if unit == "bytes" else unit
        raise IndexError(f"[{index.start}:{index.stop}] is not inside {what} of {size} {short}")
    return start, stop - start


cdef object itemsize_of(object dtype):
    """Bytes of an element: of a number, a type code of `struct`, or what NumPy takes for a type."""
    if dtype is None or isinstance(dtype, bool):
        raise TypeError(f"an element's type is bytes of it, a type code or a dtype, not {dtype}")
    if PyIndex_Check(dtype):
        return integer(dtype, "the size of an element")
    itemsize = getattr(dtype, "itemsize", None)
    if isinstance(itemsize, int):
        return itemsize
    if isinstance(dtype, str) and len(dtype) == 1:
        try:
            return struct.calcsize(dtype)  # sizes of this machine, as array and NumPy have them
        except struct.error:
            raise ValueError(f"{dtype!r} is no type code of struct") from None
    # NumPy's scalar types and its strings, such as numpy.float32 and "f4", are NumPy's to read.
    try:
        import numpy
    except ImportError:
        raise TypeError(f"{dtype!r} is a type of NumPy's, if of anyone's, and NumPy is not installed") from None
    return int(numpy.dtype(dtype).itemsize)


class ElementView:
    """A slice that is sliced in elements instead of bytes; made by its ``view``."""

    def __init__(self, memory, itemsize: int) -> None:
        if not isinstance(memory, (LocalSlice, RemoteSlice)):
            raise TypeError(f"a view is of a region or a slice of one, not of {type(memory).__name__}")
        if integer(itemsize, "the size of an element") < 1:
            raise ValueError(f"an element has at least 1 B, not {itemsize}")
        if memory.nbytes % itemsize:
            raise ValueError(f"{memory.nbytes} B are no whole number of elements of {itemsize} B")
        self._memory = memory
        self.itemsize = itemsize

    def __len__(self) -> int:
        return self._memory.nbytes // self.itemsize

    def __getitem__(self, index):
        start, count = bounds(index, len(self), "a view", "elements")
        return self._memory[start * self.itemsize : (start + count) * self.itemsize]


cdef class LocalSlice:
    """A range of registered local memory. Free to make; keeps the region that it is of alive."""

    def __init__(self, registration, offset, nbytes, owner) -> None:
        if not isinstance(registration, Registration):
            raise TypeError(f"a slice is of registered memory, not of {type(registration).__name__}: slice a region")
        self.registration = registration
        self.nbytes = whole(nbytes, "nbytes", 0, self.registration.nbytes)
        self.offset = whole(offset, "offset", 0, self.registration.nbytes - self.nbytes)
        if owner is not self:  # a region is its own largest slice, and no cycle
            self.owner = owner

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, index) -> "LocalSlice":
        offset, nbytes = bounds(index, self.nbytes, "a region")
        cdef LocalSlice piece = LocalSlice.__new__(LocalSlice)
        piece.registration = self.registration
        piece.offset = self.offset + <uint64_t>offset
        piece.nbytes = nbytes
        piece.owner = self if self.owner is None else self.owner
        return piece

    def view(self, dtype) -> ElementView:
        """Slice in elements: ``region.view("f4")[i:j]``.

        Parameters
        ----------
        dtype : int, str, or anything with ``itemsize``
            Bytes of an element, or its type as `struct` or NumPy name it.
        """
        return ElementView(self, itemsize_of(dtype))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.nbytes} B at offset {self.offset}>"


cdef class PeerRecord(Used):
    """The core's peer, as transfers see it. ``ptr`` is NULL once the core has freed it."""

    def __init__(self, engine, str label, uint32_t domains) -> None:
        self.engine = engine
        self.label = label
        self.domains = domains
        self.lost_links = {}


cdef class RemoteRecord(Used):
    """What a descriptor says of a peer's memory."""

    def __init__(self, PeerRecord peer not None, uint64_t region, uint64_t nbytes, uint32_t access, keys) -> None:
        if not 1 <= len(keys) <= PPLX_MAX_DOMAINS:
            raise ValueError(f"a region has 1 to {PPLX_MAX_DOMAINS} keys, not {len(keys)}")
        self.peer = peer
        self.region = region
        self.nbytes = nbytes
        self.access = access
        self.remote.peer = <pplx_peer *>peer.ptr
        self.remote.nbytes = nbytes
        self.remote.access = access
        self.remote.domains = <uint32_t>len(keys)
        for i, (key, base) in enumerate(keys):
            self.remote.keys[i].key = key
            self.remote.keys[i].base = base

    def is_as_told(self, uint64_t nbytes, uint32_t access, keys) -> bool:
        """Say whether a descriptor tells the same."""
        if nbytes != self.nbytes or access != self.access or len(keys) != self.remote.domains:
            return False
        return all(
            key == self.remote.keys[i].key and base == self.remote.keys[i].base for i, (key, base) in enumerate(keys)
        )


cdef class RemoteSlice:
    """A range of a peer's memory. Free to make; says nothing about what the peer thinks of it."""

    def __init__(self, record, offset, nbytes) -> None:
        if not isinstance(record, RemoteRecord):
            raise TypeError(f"a slice is of a peer's memory, not of {type(record).__name__}: slice a remote region")
        self.record = record
        self.nbytes = whole(nbytes, "nbytes", 0, self.record.nbytes)
        self.offset = whole(offset, "offset", 0, self.record.nbytes - self.nbytes)

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, index) -> "RemoteSlice":
        offset, nbytes = bounds(index, self.nbytes, "a remote region")
        cdef RemoteSlice piece = RemoteSlice.__new__(RemoteSlice)
        piece.record = self.record
        piece.offset = self.offset + <uint64_t>offset
        piece.nbytes = nbytes
        return piece

    def view(self, dtype) -> ElementView:
        """Slice in elements; see `LocalSlice.view`."""
        return ElementView(self, itemsize_of(dtype))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.nbytes} B at offset {self.offset} of peer {self.record.peer.label}>"


cdef class RemoteCounterRecord(Used):
    """A counter of a peer, as its descriptor tells."""

    def __init__(self, PeerRecord peer not None, uint32_t counter) -> None:
        self.peer = peer
        self.counter = counter
