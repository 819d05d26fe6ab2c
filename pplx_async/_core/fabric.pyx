# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""libfabric's objects, owned: domain, peer addresses, memory, completion queue, endpoint.

Nothing here waits. Each object holds what it was made from. A posted `Work` holds its memory, its
peer and its endpoint, and is itself held by the library until it comes out of the queue: so whatever
Python code does meanwhile, the library never touches anything that is gone.

The C side has a lock for each domain, so calls release the GIL and any thread may make them.
"""

import struct
from collections import deque

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, uint32_t, uint64_t

from pplx_async._core.completion cimport Completion
from pplx_async._core.includes.fabric cimport (
    PPLX_COMPLETION_IMM,
    PPLX_RECV,
    PPLX_WRITE_IMM,
    pplx_completion,
    pplx_fabric_api,
    pplx_work_request,
)
from pplx_async._core.includes.pplx cimport (
    PPLX_ADDRESS_BYTES,
    PPLX_AGAIN,
    PPLX_MEMORY_HOST,
    PPLX_OK,
    PPLX_READ,
    pplx_error,
    pplx_memory,
)
from pplx_async._core.memory cimport bounds
from pplx_async._core.rt cimport Options, api, check, fabric_objects

from pplx_async import errors
from pplx_async.errors import BrokenResourceError, ClosedResourceError

__all__ = [
    "Domain",
    "Endpoint",
    "LocalMemory",
    "PeerAddress",
    "Queue",
    "Region",
    "RemoteMemory",
    "forget_after_fork",
]

cdef enum:
    BATCH = 64  # completions that are taken from the library at a time

cdef const pplx_fabric_api *fabric_api = <const pplx_fabric_api *>fabric_objects
cdef tuple names = ("write", "write", "read", "send", "recv")  # by enum pplx_opcode
cdef unsigned int forks = 0  # above this process; what was opened before the last belongs to the parent
cdef list quarantined = []  # regions that the library would not close: it may touch them, they stay


def forget_after_fork() -> None:
    """In the child of a fork: what was opened before is the parent's, and must not be touched."""
    global forks
    forks += 1


# no_gc_clear, here and below: what is needed to close an object must outlive it, in a cycle too.
@cython.no_gc_clear
cdef class Domain:
    """A device, opened. Parameters are those of `lowlevel.discover`, and the name of the device."""

    def __init__(self, str device, dict options) -> None:
        cdef pplx_error error
        cdef Options c_options = Options(options)
        cdef bytes name = device.encode()
        cdef const char *c_name = name
        self.forks = forks
        with nogil:
            error.status = fabric_api.domain_open(
                c_name, c_options.items, c_options.count, &self.ptr, &self.limits, &error
            )
        check(&error, f"open device {device}", "fabric")
        self.opened = True

    cdef bint lives(self):
        return self.forks == forks

    cdef int require(self, bint opened, str what) except -1:
        if not self.lives():
            raise ClosedResourceError(f"the {what} belongs to the parent: this process is the child of a fork")
        if not opened or not self.opened:
            raise ClosedResourceError(f"the {what if self.opened else 'domain'} is closed")
        return 0

    @property
    def is_open(self) -> bool:
        return self.opened and self.lives()

    @property
    def max_message(self) -> int:
        return self.limits.max_message

    @property
    def tx_size(self) -> int:
        return self.limits.tx_size

    @property
    def rx_size(self) -> int:
        return self.limits.rx_size

    def close(self) -> None:
        if self.is_open:
            with nogil:
                fabric_api.domain_close(self.ptr)
        self.opened = False

    def __dealloc__(self):
        if self.ptr != NULL and self.lives():
            with nogil:
                fabric_api.domain_free(self.ptr)


@cython.no_gc_clear
cdef class PeerAddress:
    """A peer's endpoint, as the domain knows it; made by `Domain.insert`.

    Attributes
    ----------
    address : bytes
        `Endpoint.address` at the peer.
    label : str
        The same for humans.
    is_known : bool
        False once it was removed: nothing can be posted to it.
    """

    def __init__(self, Domain domain not None, bytes address not None, str label not None) -> None:
        cdef pplx_error error
        cdef const char *c_address = address
        cdef size_t nbytes = len(address)
        domain.require(True, "domain")
        self.domain = domain
        self.address = address
        self.label = label
        with nogil:
            error.status = fabric_api.peer_insert(domain.ptr, c_address, nbytes, &self.ptr, &error)
        check(&error, "insert an address", "fabric")
        self.is_known = True

    def forget(self) -> None:
        """Take no more posts. The library forgets it with the last reference: operations in flight hold one."""
        self.is_known = False

    def __repr__(self) -> str:
        return f"<PeerAddress {self.label}>"

    def __dealloc__(self):
        if self.ptr != NULL and self.domain.lives():
            with nogil:
                fabric_api.peer_remove(self.domain.ptr, self.ptr)


@cython.no_gc_clear
cdef class Region:
    """A buffer that the domain's device may touch, held until it is closed and no operation uses it."""

    def __init__(self, Domain domain not None, buffer, uint32_t access, bint writable) -> None:
        cdef pplx_error error
        cdef pplx_memory memory
        domain.require(True, "domain")
        PyObject_GetBuffer(buffer, &self.view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
        self.has_view = True
        self.domain = domain
        self.nbytes = <uint64_t>self.view.len
        self.writable = writable
        memory.kind = PPLX_MEMORY_HOST
        memory.device = -1
        memory.fd = -1
        memory.address = <uint64_t>self.view.buf
        memory.nbytes = self.nbytes
        with nogil:
            error.status = fabric_api.memory_open(domain.ptr, &memory, access, &self.mr, &self.key, &error)
        check(&error, "register memory", "fabric")
        self.opened = True

    @property
    def is_open(self) -> bool:
        return self.opened and self.domain.is_open

    def remote(self) -> RemoteMemory:
        self.domain.require(self.opened, "memory")
        return RemoteMemory(self.key.base, self.key.key, self.nbytes)

    def close(self) -> None:
        self.opened = False
        if self.uses == 0:
            self.end()

    cdef int release(self) except -1:
        """An operation that used it has ended."""
        self.uses -= 1
        if self.uses == 0 and not self.opened:
            self.end()
        return 0

    cdef int end(self) except -1:
        cdef int status = PPLX_OK
        if self.mr != NULL and self.domain.lives():
            with nogil:
                status = fabric_api.memory_close(self.domain.ptr, self.mr)
        if status != PPLX_OK:
            quarantined.append(self)
            return 0
        self.mr = NULL
        if self.has_view:
            self.has_view = False
            PyBuffer_Release(&self.view)
        return 0

    def __dealloc__(self):
        if self.mr != NULL and self.domain.lives():
            with nogil:
                fabric_api.memory_close(self.domain.ptr, self.mr)
        if self.has_view:
            PyBuffer_Release(&self.view)


cdef class LocalMemory:
    """A range of registered memory: a `Memory`, or a slice of one. Keeps the memory of it registered."""

    def __init__(self, Region region not None, uint64_t offset, uint64_t nbytes, owner) -> None:
        self.region = region
        self.offset = offset
        self.nbytes = nbytes
        if owner is not self:  # a memory is its own largest slice, and no cycle
            self.owner = owner

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, index) -> "LocalMemory":
        offset, nbytes = bounds(index, self.nbytes, "a memory")
        owner = self if self.owner is None else self.owner
        return LocalMemory(self.region, self.offset + <uint64_t>offset, nbytes, owner)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.nbytes} B at offset {self.offset}>"


cdef class RemoteMemory:
    """A range of a peer's registered memory, sliced like a local one. Three numbers, checked by nobody.

    Parameters
    ----------
    address : int
        Where it starts, as operations name it: a virtual address, or an offset.
    key : int
        The key of the registration.
    nbytes : int
        Its size.
    """

    def __init__(self, address: int, key: int, nbytes: int) -> None:
        for what, number in (("address", address), ("key", key), ("nbytes", nbytes)):
            if not isinstance(number, int):
                raise TypeError(f"{what} must be an int, not {type(number).__name__}")
            if not 0 <= number < 2**64:
                raise ValueError(f"{what}={number}: expected 64 bits without a sign")
        if address + nbytes > 2**64:
            raise ValueError(f"{nbytes} B at address {address} reach beyond 64 bits")
        self.address = address
        self.key = key
        self.nbytes = nbytes

    def to_bytes(self) -> bytes:
        """Return the 24 bytes that `from_bytes` reads, to be sent by any means: who has them may use it."""
        return struct.pack("<QQQ", self.address, self.key, self.nbytes)

    @staticmethod
    def from_bytes(data) -> RemoteMemory:
        """Read what `to_bytes` gave; ValueError for anything else."""
        view = memoryview(data)
        if view.nbytes != 24:
            raise ValueError(f"a remote memory is described by 24 B, not {view.nbytes}")
        return RemoteMemory(*struct.unpack("<QQQ", view))

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, index) -> "RemoteMemory":
        offset, nbytes = bounds(index, self.nbytes, "a remote memory")
        return RemoteMemory(self.address + <uint64_t>offset, self.key, nbytes)

    def __eq__(self, other) -> bool:
        if not isinstance(other, RemoteMemory):
            return NotImplemented
        return self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash((self.address, self.key, self.nbytes))

    def __repr__(self) -> str:
        return f"<RemoteMemory of {self.nbytes} B at address {self.address:#x}>"


# ---- completions ----


@cython.freelist(256)
@cython.final
cdef class Work:
    """A posted operation. The library holds a reference to it, from `Endpoint.post` to `completed`."""


cdef Completion completed(const pplx_completion *entry, uint64_t flags):
    """Make what the user sees, and give back what the library held. Runs no code of the user's."""
    cdef Completion completion = Completion.__new__(Completion)
    cdef Work work
    completion.flags = flags
    if entry.kind == PPLX_COMPLETION_IMM:
        completion.operation = "remote_write"
        completion.imm = entry.imm
        return completion
    work = <Work>(<fabric_work *>entry.op).owner
    completion.operation = names[work.opcode]
    completion.context = work.context
    completion.status = entry.status
    completion.provider_error = entry.provider_error
    completion.asked = work.local.nbytes
    if work.peer is not None:
        completion.peer = work.peer.label
    if entry.status == PPLX_OK:
        completion.nbytes = entry.nbytes if work.opcode == PPLX_RECV else work.local.nbytes
    work.local.region.release()
    Py_DECREF(work)
    return completion


@cython.no_gc_clear
cdef class Queue:
    """A completion queue: the source of a `pplx_async.completion.CompletionQueue`."""

    def __init__(self, Domain domain not None) -> None:
        cdef pplx_error error
        domain.require(True, "domain")
        self.domain = domain
        self.kept = deque()  # found when an endpoint was closed
        with nogil:
            error.status = fabric_api.queue_open(domain.ptr, &self.ptr, &error)
        check(&error, "open a completion queue", "fabric")
        self.opened = True

    @property
    def is_open(self) -> bool:
        return self.opened and self.domain.is_open

    @property
    def fd(self) -> int:
        """What turns readable after `arm`; -1 if the provider has none."""
        return fabric_api.queue_fd(self.ptr)

    def arm(self) -> bool:
        """True: the fd turns readable as soon as there is something to do. False: poll first."""
        cdef bint armed
        self.domain.require(self.opened, "completion queue")
        if self.kept:
            return False
        with nogil:
            armed = fabric_api.queue_arm(self.ptr)
        return armed

    def poll(self, Py_ssize_t most) -> list[Completion]:
        """Take up to ``most`` completions, and make progress."""
        cdef pplx_completion entries[BATCH]
        cdef uint64_t flags[BATCH]
        cdef size_t wanted, count, i
        cdef int32_t broken = 0
        cdef list found = []
        self.domain.require(self.opened, "completion queue")
        while self.kept and len(found) < most:
            found.append(self.kept.popleft())
        while len(found) < most:
            wanted = min(most - len(found), BATCH)
            with nogil:
                count = fabric_api.queue_read(self.ptr, entries, flags, wanted, &broken)
            for i in range(count):
                found.append(completed(&entries[i], flags[i]))
            if count < wanted:
                break
        if broken and not found:
            raise BrokenResourceError(f"the provider has ended the completion queue [provider error {broken}]")
        return found

    def close(self) -> None:
        """Close it; completions that nobody has read are dropped."""
        if self.opened and self.domain.lives():
            with nogil:
                fabric_api.queue_close(self.ptr)
        self.opened = False
        self.kept.clear()

    def __dealloc__(self):
        if self.ptr != NULL and self.domain.lives():
            with nogil:
                fabric_api.queue_free(self.ptr)


# ---- posting ----


@cython.no_gc_clear
cdef class Endpoint:
    """Where operations are posted, and what peers name. It completes on one queue."""

    def __init__(self, Queue queue not None) -> None:
        cdef pplx_error error
        cdef unsigned char address[PPLX_ADDRESS_BYTES]
        cdef size_t nbytes = PPLX_ADDRESS_BYTES
        queue.domain.require(queue.opened, "completion queue")
        self.queue = queue
        with nogil:
            error.status = fabric_api.endpoint_open(queue.ptr, &self.ptr, address, &nbytes, &error)
        check(&error, "open an endpoint", "fabric")
        self.address = address[:nbytes]
        self.opened = True

    @property
    def is_open(self) -> bool:
        return self.opened and self.queue.is_open

    def post(
        self, unsigned int opcode, LocalMemory local not None, PeerAddress peer, RemoteMemory remote, imm, context
    ) -> None:
        """Post an operation, or raise what keeps it from being posted."""
        cdef pplx_work_request request
        cdef pplx_error error
        cdef Domain domain = self.queue.domain
        cdef Work work
        domain.require(self.opened and self.queue.opened, "endpoint")
        domain.require(local.region.opened, "memory")
        if local.region.domain is not domain or (peer is not None and peer.domain is not domain):
            raise ValueError("the memory or the peer is of another domain than the endpoint")
        if peer is not None and not peer.is_known:
            raise ClosedResourceError(f"the peer {peer.label} was removed from the domain")
        if opcode in (PPLX_READ, PPLX_RECV) and not local.region.writable:
            raise ValueError(f"a {names[opcode]} needs a writable buffer, this one is read-only")
        request.opcode = opcode
        request.imm = 0
        request.remote_address = request.remote_key = 0
        if remote is not None:
            if remote.nbytes != local.nbytes:
                raise ValueError(f"the local range has {local.nbytes} B, the remote one {remote.nbytes} B")
            request.remote_address = remote.address
            request.remote_key = remote.key
        if imm is not None:
            request.opcode = PPLX_WRITE_IMM
            request.imm = imm
        work = Work.__new__(Work)
        work.work.owner = <void *>work
        work.opcode = opcode
        work.context = context
        work.local = local
        work.peer = peer
        work.endpoint = self
        request.op = &work.work.op
        request.local_mr = local.region.mr
        request.local_address = <uint64_t>local.region.view.buf + local.offset
        request.nbytes = local.nbytes
        Py_INCREF(work)  # the library's; given back by completed()
        local.region.uses += 1
        with nogil:
            error.status = fabric_api.post(
                self.ptr, NULL if peer is None else peer.ptr, &request, &error.provider_error
            )
        if error.status == PPLX_OK:
            return
        local.region.release()
        Py_DECREF(work)
        raise errors.completion_error(
            api.status_name(error.status).decode(),
            api.status_text(error.status).decode(),
            operation=names[opcode],
            peer=None if peer is None else peer.label,
            nbytes=local.nbytes,
            provider_error=error.provider_error,
            hint="Read the completion queue, and post it again." if error.status == PPLX_AGAIN else "",
        )

    def close(self) -> None:
        """Close it. What it had posted ends, with the completions that the library has or as flushed."""
        if self.opened and self.queue.domain.lives():
            self.end()
        self.opened = False

    cdef int end(self) except -1:
        cdef pplx_completion entries[BATCH]
        cdef uint64_t flags[BATCH]
        cdef pplx_error error
        cdef size_t count = 1, i
        with nogil:
            error.status = fabric_api.endpoint_close(self.ptr, &error)
        check(&error, "close an endpoint", "fabric")
        while count:
            with nogil:
                count = fabric_api.endpoint_flush(self.ptr, entries, flags, BATCH)
            for i in range(count):
                self.queue.kept.append(completed(&entries[i], flags[i]))
        return 0

    def __dealloc__(self):
        if self.ptr == NULL or not self.queue.domain.lives():
            return
        if self.opened:
            try:
                self.end()
            except errors.FabricError:
                return  # the library still knows it, and its struct stays
        with nogil:
            fabric_api.endpoint_free(self.ptr)
