# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""From the arguments of a call to targets and segments; everything is checked here, nothing later.

A target is one (local region, remote region, counter) triple, a segment one contiguous piece of it.
Pages that are adjacent on both sides become one segment: the NIC sees one write, and the counter
still counts pages.
"""

from array import array

from cpython.buffer cimport (
    PyBUF_FORMAT,
    PyBUF_STRIDES,
    Py_buffer,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from pplx_async._core.arguments cimport whole
from pplx_async._core.includes.pplx cimport (
    PPLX_ACCESS_REMOTE_READ,
    PPLX_ACCESS_REMOTE_WRITE,
    PPLX_NO_COUNTER,
    pplx_peer,
    pplx_segment,
    pplx_target,
)
from pplx_async._core.memory cimport LocalSlice, PeerRecord, RemoteCounterRecord, RemoteSlice
from pplx_async._core.promise cimport fresh
from pplx_async._core.rt cimport api

from pplx_async.errors import GPU_HINT, BrokenResourceError, ClosedResourceError, RegistrationError

__all__ = ["Plan"]

_ASK_AGAIN = "Ask the peer for the descriptor of another region."
_NEW_COUNTER = "Ask the peer for a new counter."


cdef uint64_t MOST_BYTES = <uint64_t>-1
# Bytes that a thread copies in the time that a work request takes it; and a page, where many share a work request.
cdef uint64_t AS_MUCH = 1024
cdef uint64_t AS_MUCH_A_PAGE = 64


# ---- what was given ----

cdef LocalSlice local_of(object memory):
    if not isinstance(memory, LocalSlice) or (<LocalSlice>memory).registration is None:
        raise TypeError(
            "local must be a MemoryRegion, which engine.register() makes, or a slice of one, "
            f"not {type(memory).__name__}"
        )
    return <LocalSlice>memory


cdef RemoteSlice remote_of(object memory):
    if not isinstance(memory, RemoteSlice) or (<RemoteSlice>memory).record is None:
        raise TypeError(
            "remote must be a RemoteRegion, which peer.region() makes, or a slice of one, "
            f"not {type(memory).__name__}"
        )
    return <RemoteSlice>memory


cdef RemoteCounterRecord counter_of(object counter):
    if not isinstance(counter, RemoteCounterRecord) or (<RemoteCounterRecord>counter).peer is None:
        raise TypeError(
            f"counter must be a RemoteCounter, which peer.counter() makes, not {type(counter).__name__}"
        )
    return <RemoteCounterRecord>counter


# ---- whether it may be used ----

cdef int check_peer(object engine, PeerRecord peer, str operation) except -1:
    if peer.engine is not engine:
        raise ValueError(f"peer {peer.label} belongs to another engine")
    if not peer.is_open:
        # A lost peer is the more useful thing to say than a closed one.
        if peer.reason is not None:
            raise fresh(peer.reason, operation)
        raise ClosedResourceError(f"peer {peer.label} is closed")
    return 0


cdef int check_local(object engine, LocalSlice local) except -1:
    if local.registration.engine is not engine:
        raise ValueError("the local region is registered with another engine")
    if not local.registration.is_open:
        raise ClosedResourceError("the local region is closed")
    return 0


cdef int check_not_revoked(RemoteSlice remote) except -1:
    if remote.record.revoked:
        raise BrokenResourceError(
            f"the region was closed or revoked by peer {remote.record.peer.label}", hint=_ASK_AGAIN
        )
    return 0


cdef int check_write(object engine, LocalSlice local, RemoteSlice remote) except -1:
    check_local(engine, local)
    check_peer(engine, remote.record.peer, "write")
    check_not_revoked(remote)
    check_reach(local, remote.record.peer)
    if not remote.record.access & PPLX_ACCESS_REMOTE_WRITE:
        raise ValueError(f"peer {remote.record.peer.label} did not allow writes into this region")
    return 0


cdef int check_read(object engine, LocalSlice local, RemoteSlice remote) except -1:
    check_peer(engine, remote.record.peer, "read")
    check_local(engine, local)
    if not local.registration.writable:
        raise ValueError("the local region is read-only: nothing can be read into it")
    check_not_revoked(remote)
    check_reach(local, remote.record.peer)
    if not remote.record.access & PPLX_ACCESS_REMOTE_READ:
        raise ValueError(f"peer {remote.record.peer.label} did not allow reads from this region")
    return 0


cdef int check_reach(LocalSlice local, PeerRecord peer) except -1:
    """Memory of a GPU may lie where the NICs on the way to the peer don't reach."""
    if local.registration.lacks and not api.reaches(&local.registration.mr, <const pplx_peer *>peer.ptr):
        raise RegistrationError(
            f"memory of a GPU that the NICs on the way to peer {peer.label} don't reach",
            nbytes=local.nbytes,
            hint=GPU_HINT,
        )
    return 0


cdef int check_lengths(LocalSlice local, RemoteSlice remote) except -1:
    if local.nbytes != remote.nbytes:
        raise ValueError(
            f"lengths differ: {local.nbytes} B here, {remote.nbytes} B at peer {remote.record.peer.label}"
        )
    return 0


cdef uint32_t counter_for(PeerRecord peer, object given) except? 0xfffffffe:
    if given is None:
        return <uint32_t>PPLX_NO_COUNTER
    cdef RemoteCounterRecord counter = counter_of(given)
    if counter.peer is not peer:
        raise ValueError(f"the counter belongs to peer {counter.peer.label}, the region to peer {peer.label}")
    check_counter(counter)
    return counter.counter


cdef int check_counter(RemoteCounterRecord counter) except -1:
    if counter.closed:
        raise BrokenResourceError(f"the counter was closed by peer {counter.peer.label}", hint=_NEW_COUNTER)
    if counter.broken:
        # The peer may not have heard yet that it is, and must not take a second try for what is missing.
        raise BrokenResourceError(
            f"the counter of peer {counter.peer.label} is broken: an earlier operation failed or was cancelled after a "
            "part of it may have been counted",
            hint=_NEW_COUNTER,
        )
    return 0


# ---- page indices ----

cdef class Indices:
    """Page indices: any one-dimensional buffer of integers, strided or not, or a sequence of them."""

    cdef Py_buffer view
    cdef bint held
    cdef size_t count
    cdef Py_ssize_t stride
    cdef bint signed
    cdef str what

    def __init__(self, pages, str what) -> None:
        self.what = what
        try:
            try:
                PyObject_GetBuffer(pages, &self.view, PyBUF_STRIDES | PyBUF_FORMAT)
            except TypeError:
                pages = array("q", pages)
                PyObject_GetBuffer(pages, &self.view, PyBUF_STRIDES | PyBUF_FORMAT)
        except TypeError as error:
            raise TypeError(f"{what} must be integers: {error}") from error
        except (BufferError, OverflowError, ValueError) as error:
            raise ValueError(f"{what} cannot be read: {error}") from error
        self.held = True
        kind = self.view.format.decode().lstrip("@=<") if self.view.format != NULL else "B"
        if self.view.ndim != 1 or kind not in tuple("bhilqnBHILQN"):
            hint = "" if self.view.len else ": NumPy makes an empty array of floats unless it is given a dtype"
            shape = f"{self.view.ndim}-d {kind!r}"
            raise TypeError(f"{what} must be a one-dimensional buffer of integers, not {shape}{hint}")
        self.signed = kind.islower()
        self.count = <size_t>(self.view.len // self.view.itemsize)
        self.stride = self.view.strides[0]

    cdef int64_t get(self, size_t i) noexcept nogil:
        """Index i; what does not fit 63 bits comes out negative and is refused like it."""
        cdef char *at = <char *>self.view.buf + <Py_ssize_t>i * self.stride
        if self.view.itemsize == 8:
            return (<int64_t *>at)[0]
        if self.view.itemsize == 4:
            return <int64_t>(<int32_t *>at)[0] if self.signed else <int64_t>(<uint32_t *>at)[0]
        if self.view.itemsize == 2:
            return <int64_t>(<int16_t *>at)[0] if self.signed else <int64_t>(<uint16_t *>at)[0]
        return <int64_t>(<int8_t *>at)[0] if self.signed else <int64_t>(<uint8_t *>at)[0]

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)


cdef uint64_t page_limit(uint64_t nbytes, uint64_t page, uint64_t stride, uint64_t offset, str side) except? 0:
    """How many pages the slice has room for."""
    if page > stride or offset > stride - page:  # in an order that cannot wrap
        raise ValueError(f"a {side} page of {page} B at offset {offset} does not fit the stride of {stride} B")
    if nbytes < offset + page:
        return 0
    return (nbytes - offset - page) // stride + 1


# ---- the plan ----

cdef class Plan:
    """Targets and segments of one request under construction. Handed to a `Transfer` in the end."""

    def __init__(self, engine, unsigned long thread) -> None:
        self.engine = engine
        self.thread = thread
        self.used = set()

    @property
    def total_nbytes(self) -> int:
        """Bytes planned so far."""
        return self.nbytes

    cdef int check_place(self) except -1:
        """Whether the engine is open and this its thread: another one's could grow the arrays under us."""
        # Whether its loop runs takes longer to find out, and is asked when something is begun.
        if self.nsegments == 0 or not self.engine.running or PyThread_get_thread_ident() != self.thread:
            self.engine.check_owner()
            if not self.engine.running:
                raise ClosedResourceError("the engine is closed")
        return 0

    cdef pplx_target *target(
        self, LocalSlice local, RemoteSlice remote, PeerRecord peer, object counter
    ) except NULL:
        """The target for this triple: the last one again if it is the same, otherwise a new one."""
        cdef pplx_target *targets
        cdef pplx_target wanted
        cdef size_t room
        memset(&wanted, 0, sizeof(wanted))
        wanted.peer = <pplx_peer *>peer.ptr
        wanted.counter = counter_for(peer, counter)
        wanted.local = &local.registration.mr if local is not None else NULL
        wanted.remote = &remote.record.remote if remote is not None else NULL
        if self.ntargets:
            last = &self.targets[self.ntargets - 1]
            if (
                last.peer == wanted.peer
                and last.counter == wanted.counter
                and last.local == wanted.local
                and last.remote == wanted.remote
            ):
                return last
        if self.ntargets == self.room_targets:
            room = max(8, 2 * self.room_targets)
            targets = <pplx_target *>realloc(self.targets, room * sizeof(pplx_target))
            if targets == NULL:
                raise MemoryError
            self.targets = targets
            self.room_targets = room
        self.targets[self.ntargets] = wanted
        self.ntargets += 1
        self.used.add(peer)
        if local is not None:
            self.used.add(local.registration)
        if remote is not None:
            self.used.add(remote.record)
        if counter is not None:
            self.used.add(counter)
        return &self.targets[self.ntargets - 1]

    cdef pplx_segment *room(self, size_t n) except NULL:
        """Room for n more segments."""
        cdef pplx_segment *segments
        cdef size_t room
        if self.nsegments + n > self.room_segments:
            room = max(self.nsegments + n, 2 * self.room_segments)
            segments = <pplx_segment *>realloc(self.segments, room * sizeof(pplx_segment))
            if segments == NULL:
                raise MemoryError
            self.segments = segments
            self.room_segments = room
        return &self.segments[self.nsegments]

    cdef int finish(self) except -1:
        """The arrays no longer move: let the targets point at their segments."""
        cdef size_t first = 0, i
        for i in range(self.ntargets):
            self.targets[i].segments = &self.segments[first]
            first += self.targets[i].nsegments
        return 0

    def add_write(self, local, remote, counter) -> None:
        """Add one write."""
        cdef LocalSlice source = local_of(local)
        cdef RemoteSlice sink = remote_of(remote)
        self.check_place()
        check_write(self.engine, source, sink)
        check_lengths(source, sink)
        cdef pplx_segment *segment = self.room(1)
        cdef pplx_target *target = self.target(source, sink, sink.record.peer, counter)
        segment.local = source.offset
        segment.remote = sink.offset
        segment.nbytes = source.nbytes
        segment.pages = 1
        target.nsegments += 1
        self.nsegments += 1
        self.nbytes += source.nbytes
        self.copied += AS_MUCH if source.registration.on_gpu else source.nbytes

    def add_notify(self, counter, times=1) -> None:
        """Add an immediate alone: the counter counts ``times`` more."""
        cdef PeerRecord peer = counter_of(counter).peer
        cdef uint64_t c_times = whole(times, "times", 0, 0xffffffff)
        cdef pplx_segment *segment
        cdef pplx_target *target
        self.check_place()
        check_peer(self.engine, peer, "notify")
        for _ in range(c_times):
            segment = self.room(1)
            target = self.target(None, None, peer, counter)
            segment.local = segment.remote = segment.nbytes = 0
            segment.pages = 1
            target.nsegments += 1
            self.nsegments += 1

    def add_pages(
        self,
        local,
        remote,
        page_nbytes,
        local_pages,
        remote_pages,
        counter,
        local_stride,
        remote_stride,
        local_offset,
        remote_offset,
    ) -> int:
        """Add page ``local_pages[i]`` to page ``remote_pages[i]``, for all i; return how many."""
        cdef LocalSlice here = local_of(local)
        cdef RemoteSlice there = remote_of(remote)
        cdef uint64_t page = whole(page_nbytes, "page_nbytes", 1, MOST_BYTES)
        cdef uint64_t from_stride = page, to_stride = page
        if local_stride is not None:
            from_stride = whole(local_stride, "local_stride", 1, MOST_BYTES)
        if remote_stride is not None:
            to_stride = whole(remote_stride, "remote_stride", 1, MOST_BYTES)
        cdef uint64_t from_offset = whole(local_offset, "local_offset", 0, MOST_BYTES)
        cdef uint64_t to_offset = whole(remote_offset, "remote_offset", 0, MOST_BYTES)
        self.check_place()
        check_write(self.engine, here, there)
        cdef uint64_t from_limit = page_limit(here.nbytes, page, from_stride, from_offset, "local")
        cdef uint64_t to_limit = page_limit(there.nbytes, page, to_stride, to_offset, "remote")
        cdef Indices sources = Indices(local_pages, "local_pages")
        cdef Indices sinks = Indices(remote_pages, "remote_pages")
        if sources.count != sinks.count:
            raise ValueError(f"{sources.count} local pages but {sinks.count} remote pages")
        if sources.count >= 2**32:
            raise ValueError(f"at most 2**32 - 1 pages in one call, not {sources.count}")
        if sources.count == 0:
            return 0
        cdef pplx_segment *segment = self.room(sources.count)
        cdef pplx_target *target = self.target(here, there, there.record.peer, counter)
        cdef bint adjacent = from_stride == page and to_stride == page and page <= there.record.peer.max_message
        cdef size_t bad = sources.count
        cdef size_t made = 0
        cdef size_t i
        cdef int64_t source, sink, last_source = 0, last_sink = 0
        with nogil:
            for i in range(sources.count):
                source = sources.get(i)
                sink = sinks.get(i)
                if source < 0 or sink < 0 or <uint64_t>source >= from_limit or <uint64_t>sink >= to_limit:
                    bad = i
                    break
                if adjacent and made and source == last_source + 1 and sink == last_sink + 1:
                    segment[made - 1].nbytes += page
                    segment[made - 1].pages += 1
                else:
                    segment[made].local = here.offset + from_offset + <uint64_t>source * from_stride
                    segment[made].remote = there.offset + to_offset + <uint64_t>sink * to_stride
                    segment[made].nbytes = page
                    segment[made].pages = 1
                    made += 1
                last_source = source
                last_sink = sink
        if bad < sources.count:
            side, index, limit = ("local", source, from_limit)
            if source >= 0 and <uint64_t>source < from_limit:
                side, index, limit = ("remote", sink, to_limit)
            if self.ntargets and target.nsegments == 0:
                self.ntargets -= 1
            raise IndexError(f"{side} page {index} at position {bad}: the {side} slice has {limit} pages")
        target.nsegments += <uint32_t>made
        self.nsegments += made
        self.nbytes += page * sources.count
        self.copied += AS_MUCH_A_PAGE * made if here.registration.on_gpu else page * sources.count
        return sources.count

    def __dealloc__(self):
        free(self.targets)
        free(self.segments)
