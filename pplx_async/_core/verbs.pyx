# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""libibverbs' objects, owned: context, protection domain, memory, completion queue, queue pair.

Nothing here waits. Each object holds what it was made from, and counts what the library has made
from it: closing marks it, and the library's side ends with the last of these, whatever the order.

A posted `Work` is held by its completion queue, under the number that the completion will name,
and holds its memory: so the device never touches memory that is gone, and a completion that
outlives its queue pair (rdma_rxe leaves them in the queue) names nothing and is dropped.

The GIL guards all of it. It is released only where the library may take long: opening, closing,
registering, connecting. Posting and reading don't wait, and an object in use can't be closed meanwhile.
So it is while a queue pair is connected, though others run then: closing it is refused.
"""

from collections import deque

cimport cython
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pplx_async._core.completion cimport Completion
from pplx_async._core.includes.fabric cimport PPLX_RECV
from pplx_async._core.includes.pplx cimport PPLX_AGAIN, PPLX_OK, PPLX_READ, pplx_error
from pplx_async._core.includes.verbs cimport (
    pplx_verbs_address,
    pplx_verbs_api,
    pplx_verbs_completion,
    pplx_verbs_connection,
    pplx_verbs_mr,
    pplx_verbs_pair,
    pplx_verbs_pd,
    pplx_verbs_queue,
    pplx_verbs_request,
)
from pplx_async._core.memory cimport bounds
from pplx_async._core.rt cimport Options, api, check, verbs_objects

from pplx_async import errors
from pplx_async.errors import BrokenResourceError, ClosedResourceError

__all__ = [
    "Context",
    "MemoryRange",
    "ProtectionDomain",
    "Queue",
    "QueuePair",
    "Region",
    "forget_after_fork",
    "status_error",
]

cdef enum:
    BATCH = 32  # completions that are taken from the library at a time
    TRANSPORT = 15  # pplx_status
    FLUSHED = 13
    WC_WR_FLUSH_ERR = 5  # ibv_wc_status
    WC_FATAL_ERR = 19

cdef const pplx_verbs_api *verbs = <const pplx_verbs_api *>verbs_objects
cdef tuple names = ("write", "write", "read", "send", "recv")  # by enum pplx_opcode
cdef tuple states = ("open", "connected", "broken")  # by enum pplx_verbs_state
cdef unsigned int forks = 0  # above this process; what was opened before the last belongs to the parent
cdef uint64_t next_id = 1  # of a work: unique in the process
cdef list quarantined = []  # what the library would not close: it may touch it, it stays


def forget_after_fork() -> None:
    """In the child of a fork: what was opened before is the parent's, and must not be touched."""
    global forks
    forks += 1


# The statuses of libibverbs (enum ibv_wc_status) that mean more than "it failed".
cdef dict _STATUS = {
    1: "TRUNCATED",
    4: "LOCAL_ACCESS",
    5: "FLUSHED",
    9: "TRUNCATED",
    10: "REMOTE_ACCESS",
    12: "PEER_LOST",
}


def status_error(int native, str operation, *, peer=None, nbytes=None):
    """Make the exception for an ``ibv_wc_status``, or None for success."""
    if native == 0:
        return None
    return errors.completion_error(
        _STATUS.get(native, "TRANSPORT"),
        verbs.status_text(native).decode(),
        operation=operation,
        peer=peer,
        nbytes=nbytes,
        provider_error=native,
        hint="",
    )


# no_gc_clear, here and below: what is needed to close an object must outlive it, in a cycle too.
@cython.no_gc_clear
cdef class Context:
    """A device, opened, and one of its ports. Options are those of the provider."""

    def __init__(self, str device, dict options) -> None:
        cdef pplx_error error
        cdef Options c_options = Options(options)
        cdef bytes name = device.encode()
        cdef const char *c_name = name
        self.forks = forks
        with nogil:
            error.status = verbs.context_open(
                c_name, c_options.items, c_options.count, &self.ptr, &self.c_port, &error
            )
        check(&error, f"open device {device}", "verbs")
        self.opened = True

    cdef bint lives(self):
        return self.forks == forks

    cdef int require(self, bint opened, str what) except -1:
        if not self.lives():
            raise ClosedResourceError(f"the {what} belongs to the parent: this process is the child of a fork")
        if not opened or not self.opened:
            raise ClosedResourceError(f"the {what if self.opened else 'context'} is closed")
        return 0

    @property
    def is_open(self) -> bool:
        return self.opened and self.lives()

    @property
    def port(self) -> dict[str, object]:
        return {
            "port": self.c_port.number,
            "link_layer": "Ethernet" if self.c_port.ethernet else "InfiniBand",
            "gid": self.c_port.gid.decode(),
            "gid_index": self.c_port.gid_index,
            "pkey": self.c_port.pkey,
            "pkey_index": self.c_port.pkey_index,
            "lid": self.c_port.lid,
            "mtu": self.c_port.mtu,
            "bits_per_second": self.c_port.bits_per_second,
            "max_message": self.c_port.max_message,
            "max_entries": self.c_port.max_entries,
            "max_depth": self.c_port.max_work,
        }

    def close(self) -> None:
        self.opened = False
        if self.uses == 0:
            self.end()

    cdef int release(self) except -1:
        self.uses -= 1
        if self.uses == 0 and not self.opened:
            self.end()
        return 0

    cdef int end(self) except -1:
        ptr, self.ptr = self.ptr, NULL
        if ptr != NULL and self.lives():
            with nogil:
                verbs.context_close(ptr)
        return 0

    def __dealloc__(self):
        if self.ptr != NULL and self.uses == 0:
            self.end()


@cython.no_gc_clear
cdef class ProtectionDomain:
    """What memory and queue pairs have in common that may use each other."""

    def __init__(self, Context context not None) -> None:
        cdef pplx_error error
        cdef pplx_verbs_pd *pd = NULL
        context.require(True, "context")
        self.context = context
        context.uses += 1
        with nogil:
            error.status = verbs.pd_open(context.ptr, &pd, &error)
        if error.status != PPLX_OK:
            context.release()
        check(&error, "open a protection domain", "verbs")
        self.ptr = pd
        self.opened = True

    @property
    def is_open(self) -> bool:
        return self.opened and self.context.is_open

    def close(self) -> None:
        self.opened = False
        if self.uses == 0:
            self.end()

    cdef int release(self) except -1:
        self.uses -= 1
        if self.uses == 0 and not self.opened:
            self.end()
        return 0

    cdef int end(self) except -1:
        cdef pplx_error error
        cdef pplx_verbs_pd *pd = self.ptr
        self.ptr = NULL
        if pd == NULL or not self.context.lives():
            return 0
        with nogil:
            error.status = verbs.pd_close(self.context.ptr, pd, &error)
        if error.status != PPLX_OK:
            self.ptr = pd
            quarantined.append(self.context)  # which can't be closed then
            check(&error, "close a protection domain", "verbs")
        self.context.release()
        return 0

    def __dealloc__(self):
        if self.ptr != NULL and self.uses == 0:
            self.end()


@cython.no_gc_clear
cdef class Region:
    """A buffer that the device may touch, held until it is closed and no operation uses it."""

    def __init__(self, ProtectionDomain pd not None, buffer, uint32_t access, bint writable) -> None:
        cdef pplx_error error
        cdef pplx_verbs_mr *mr = NULL
        pd.context.require(pd.opened, "protection domain")
        PyObject_GetBuffer(buffer, &self.view, PyBUF_C_CONTIGUOUS | (PyBUF_WRITABLE if writable else 0))
        self.has_view = True
        self.pd = pd
        self.nbytes = <uint64_t>self.view.len
        self.address = <uint64_t>self.view.buf
        self.writable = writable
        pd.uses += 1
        with nogil:
            error.status = verbs.memory_open(
                pd.context.ptr, pd.ptr, self.view.buf, self.nbytes, access, writable, &mr, &self.lkey, &self.rkey,
                &error,
            )
        if error.status != PPLX_OK:
            pd.release()
        check(&error, "register memory", "verbs")
        self.mr = mr
        self.opened = True

    @property
    def is_open(self) -> bool:
        return self.opened and self.pd.is_open

    def require(self) -> None:
        """Raise if it is closed."""
        self.pd.context.require(self.opened and self.pd.opened, "memory")

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
        cdef pplx_error error
        cdef pplx_verbs_mr *mr = self.mr
        self.mr = NULL
        if mr != NULL and self.pd.context.lives():
            with nogil:
                error.status = verbs.memory_close(self.pd.context.ptr, mr, &error)
            if error.status != PPLX_OK:
                quarantined.append(self)
                return 0
            self.pd.release()
        if self.has_view:
            self.has_view = False
            PyBuffer_Release(&self.view)
        return 0

    def __dealloc__(self):
        cdef pplx_error error
        cdef int status = PPLX_OK
        if self.mr != NULL and self.pd.context.lives():
            with nogil:
                status = verbs.memory_close(self.pd.context.ptr, self.mr, &error)
            if status != PPLX_OK:
                return  # the device may touch it still: it is never given back
            self.pd.release()
        if self.has_view:
            PyBuffer_Release(&self.view)


cdef class MemoryRange:
    """A range of registered memory: a `Memory`, or a slice of one. Keeps the memory of it registered."""

    def __init__(self, Region region not None, uint64_t offset, uint64_t nbytes, owner) -> None:
        self.region = region
        self.offset = offset
        self.nbytes = nbytes
        if owner is not self:  # a memory is its own largest slice, and no cycle
            self.owner = owner

    def __len__(self) -> int:
        return self.nbytes

    def __getitem__(self, index) -> "MemoryRange":
        offset, nbytes = bounds(index, self.nbytes, "a memory")
        owner = self if self.owner is None else self.owner
        return MemoryRange(self.region, self.offset + <uint64_t>offset, nbytes, owner)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.nbytes} B at offset {self.offset}>"


# ---- completions ----


@cython.freelist(256)
@cython.final
@cython.no_gc_clear
cdef class Work:
    """A posted operation."""


cdef Completion ended(Work work, int status, int native):
    """Make what the user sees, and let go of the memory. Runs no code of the user's."""
    cdef Completion completion = Completion.__new__(Completion)
    completion.operation = names[work.opcode]
    completion.context = work.context
    completion.status = status
    completion.provider_error = native
    completion.peer = work.peer
    if work.local is not None:
        completion.asked = work.local.nbytes
        if status == PPLX_OK:
            completion.nbytes = work.local.nbytes
        work.local.region.release()
    if status != PPLX_OK:
        completion._error = status_error(
            native, completion.operation, peer=work.peer, nbytes=completion.asked
        )
    if work.opcode == PPLX_RECV:
        work.pair.receives -= 1
    else:
        work.pair.sends -= 1
    return completion


@cython.no_gc_clear
cdef class Queue:
    """A completion queue with a channel of its own: the source of a `CompletionQueue`."""

    def __init__(self, Context context not None, uint32_t entries) -> None:
        cdef pplx_error error
        cdef pplx_verbs_queue *queue = NULL
        cdef int fd = -1
        context.require(True, "context")
        self.context = context
        self.works = {}
        self.kept = deque()
        self.c_fd = -1
        context.uses += 1
        with nogil:
            error.status = verbs.queue_open(context.ptr, &entries, &queue, &fd, &error)
        if error.status != PPLX_OK:
            context.release()
        check(&error, "open a completion queue", "verbs")
        self.ptr = queue
        self.c_fd = fd
        self.entries = entries
        self.opened = True

    @property
    def is_open(self) -> bool:
        return self.opened and self.context.is_open

    @property
    def fd(self) -> int:
        """What turns readable after `arm`."""
        return self.c_fd

    def arm(self) -> bool:
        """True: the fd turns readable as soon as there is something to read. False: poll first."""
        cdef list found = []
        self.context.require(self.opened, "completion queue")
        if self.kept or self.broken:
            return False
        cdef int native = verbs.queue_arm(self.ptr)
        if native != 0:
            raise errors.VerbsError(
                "the device does not arm the queue", operation="ibv_req_notify_cq", errno=abs(native), provider="verbs"
            )
        # The event tells of what comes after it was asked for; what came before is only seen by looking again.
        self.take(found, BATCH)
        self.kept.extend(found)
        return not self.kept and not self.broken

    def poll(self, Py_ssize_t most) -> list[Completion]:
        """Take up to ``most`` completions."""
        cdef list found = []
        self.context.require(self.opened, "completion queue")
        while self.kept and len(found) < most:
            found.append(self.kept.popleft())
        self.take(found, most)
        while self.kept and len(found) < most:  # what a broken queue has left
            found.append(self.kept.popleft())
        if self.broken and not found:
            raise BrokenResourceError("the completion queue was overrun, or its device is gone")
        return found

    cdef int take(self, list into, Py_ssize_t most) except -1:
        cdef pplx_verbs_completion entries[BATCH]
        cdef pplx_verbs_completion *entry
        cdef Completion completion
        cdef Work work
        cdef int wanted, count = 0, i
        while len(into) < most and not self.broken:
            wanted = <int>min(most - len(into), <Py_ssize_t>BATCH)
            count = verbs.queue_read(self.ptr, entries, wanted)
            if count < 0:
                self.broken = True
                self.fail_all(None, TRANSPORT, WC_FATAL_ERR)
                break
            for i in range(count):
                entry = &entries[i]
                work = self.works.pop(entry.id, None)
                if work is None:
                    continue  # of a queue pair that was closed: it was reported then
                completion = ended(work, entry.status, entry.native)
                completion.flags = entry.flags
                if work.opcode == PPLX_RECV and entry.status == PPLX_OK:
                    completion.nbytes = entry.nbytes
                    if entry.remote_write:
                        completion.operation = "remote_write"
                    if entry.has_imm:
                        completion.imm = entry.imm
                into.append(completion)
            if count < wanted:
                break
        return 0

    cdef int fail_all(self, QueuePair pair, int status, int native) except -1:
        """End what will never complete, of one queue pair or of all."""
        cdef Work work
        for number, work in list(self.works.items()):
            if pair is None or work.pair is pair:
                del self.works[number]
                self.kept.append(ended(work, status, native))
        return 0

    def close(self) -> None:
        """Close it; completions that nobody has read are dropped."""
        self.opened = False
        self.kept.clear()
        if self.uses == 0:
            self.end()

    cdef int release(self) except -1:
        """A queue pair that completed here is closed."""
        self.uses -= 1
        if self.uses == 0 and not self.opened:
            self.kept.clear()
            self.end()
        return 0

    cdef int end(self) except -1:
        cdef pplx_error error
        cdef pplx_verbs_queue *queue = self.ptr
        self.ptr = NULL
        if queue == NULL or not self.context.lives():
            return 0
        with nogil:
            error.status = verbs.queue_close(queue, &error)
        if error.status != PPLX_OK:
            quarantined.append(self.context)
            check(&error, "close a completion queue", "verbs")
        self.context.release()
        return 0

    def __dealloc__(self):
        if self.ptr != NULL and self.uses == 0:
            self.end()


# ---- queue pair ----


@cython.no_gc_clear
cdef class QueuePair:
    """A reliable connection: a send queue, a receive queue, and where each completes."""

    def __init__(
        self,
        ProtectionDomain pd not None,
        Queue send_queue not None,
        Queue receive_queue not None,
        uint32_t send_depth,
        uint32_t receive_depth,
    ) -> None:
        cdef pplx_error error
        cdef pplx_verbs_address address
        cdef pplx_verbs_pair *pair = NULL
        pd.context.require(pd.opened, "protection domain")
        pd.context.require(send_queue.opened and receive_queue.opened, "completion queue")
        if send_queue.context is not pd.context or receive_queue.context is not pd.context:
            raise ValueError("the completion queue is of another context than the protection domain")
        self.pd = pd
        self.send_queue = send_queue
        self.receive_queue = receive_queue
        self.send_depth = send_depth
        self.receive_depth = receive_depth
        pd.uses += 1
        send_queue.uses += 1
        receive_queue.uses += 1
        with nogil:
            error.status = verbs.pair_open(
                pd.context.ptr, pd.ptr, send_queue.ptr, receive_queue.ptr, send_depth, receive_depth, &pair, &address,
                &error,
            )
        if error.status != PPLX_OK:
            self.let_go()
        check(&error, "open a queue pair", "verbs")
        self.ptr = pair
        self.address = {
            "gid": (<unsigned char *>address.gid)[:16],
            "number": address.number,
            "psn": address.psn,
            "mtu": address.mtu,
            "lid": address.lid,
            "reads": address.reads,
            "grh": bool(address.grh),
        }
        self.opened = True

    def let_go(self) -> None:
        """Give back what was counted when it was opened."""
        self.receive_queue.release()
        self.send_queue.release()
        self.pd.release()

    @property
    def is_open(self) -> bool:
        return self.opened and self.pd.is_open and self.send_queue.is_open and self.receive_queue.is_open

    @property
    def state(self) -> str:
        self.pd.context.require(self.opened, "queue pair")
        return states[verbs.pair_state(self.ptr)]

    def require(self) -> None:
        """Raise if it, or what it was made from, is closed."""
        self.pd.context.require(self.opened, "queue pair")
        self.pd.context.require(self.send_queue.opened and self.receive_queue.opened, "completion queue")
        self.pd.context.require(self.pd.opened, "protection domain")

    def connect(
        self, bytes gid, uint32_t number, uint32_t psn, uint32_t mtu, uint32_t lid, uint32_t reads, bint grh, str peer,
        uint32_t timeout, uint32_t retries, uint32_t rnr_retries
    ) -> None:
        cdef pplx_error error
        cdef pplx_verbs_address address
        cdef pplx_verbs_connection connection
        self.require()
        memset(&address, 0, sizeof(address))
        memcpy(address.gid, <const unsigned char *>gid, 16)
        address.number, address.psn, address.mtu, address.lid, address.reads = number, psn, mtu, lid, reads
        address.grh = grh
        connection.timeout, connection.retries, connection.rnr_retries = timeout, retries, rnr_retries
        if self.connecting:
            raise RuntimeError("the queue pair is being connected by another thread")
        self.connecting = True
        with nogil:  # the kernel may have to ask the network for the way
            error.status = verbs.pair_connect(self.ptr, &address, &connection, &error)
        self.connecting = False
        check(&error, f"connect a queue pair to {peer}", "verbs")
        self.peer = peer

    def break_(self) -> None:
        """Move it to the state of errors: what is in it, and what is posted from now on, is flushed."""
        cdef pplx_error error
        self.require()
        error.status = verbs.pair_break(self.ptr, &error)
        check(&error, "break a queue pair", "verbs")

    def post(
        self, unsigned int opcode, MemoryRange local, uint64_t address, uint32_t rkey, imm, context
    ) -> None:
        """Post an operation, or raise what keeps it from being posted."""
        global next_id
        cdef pplx_verbs_request request
        cdef Queue queue = self.receive_queue if opcode == PPLX_RECV else self.send_queue
        cdef int32_t native = 0
        cdef int status
        cdef Work work
        self.require()
        memset(&request, 0, sizeof(request))
        if local is not None:
            local.region.require()
            if local.region.pd is not self.pd:
                raise ValueError("the memory is of another protection domain than the queue pair")
            if opcode in (PPLX_READ, PPLX_RECV) and not local.region.writable:
                raise ValueError(f"a {names[opcode]} needs a writable buffer, this one is read-only")
            if local.nbytes > self.pd.context.c_port.max_message:
                raise ValueError(
                    f"{local.nbytes} B are more than one work request can have ({self.pd.context.c_port.max_message} B)"
                )
            request.local_address = local.region.address + local.offset
            request.nbytes = local.nbytes
            request.lkey = local.region.lkey
        if self.peer is None and opcode != PPLX_RECV:
            raise ValueError("the queue pair is not connected: call connect() first")
        if opcode == PPLX_RECV:
            if self.receives >= self.receive_depth:
                raise errors.QueueFull(f"{self.receives} receives are posted", hint="Wait for some of them.")
        elif self.sends >= self.send_depth:
            raise errors.QueueFull(
                f"{self.sends} operations are in flight", hint="Read the completion queue, and post it again."
            )
        if len(queue.works) >= queue.entries:
            raise errors.QueueFull(
                f"the completion queue has {queue.entries} entries, and as much is in flight",
                hint="Open it with more entries, or read it.",
            )
        request.id = next_id
        request.opcode = opcode
        request.remote_address = address
        request.rkey = rkey
        if imm is not None:
            request.imm = imm
            request.has_imm = True
        work = Work.__new__(Work)
        work.opcode = opcode
        work.context = context
        work.local = local
        work.pair = self
        work.peer = self.peer
        status = verbs.post(self.ptr, &request, &native)
        if status != PPLX_OK:
            raise errors.completion_error(
                api.status_name(status).decode(),
                api.status_text(status).decode(),
                operation=names[opcode],
                peer=self.peer,
                nbytes=request.nbytes,
                provider_error=native,
                hint="Read the completion queue, and post it again." if status == PPLX_AGAIN else "",
            )
        queue.works[request.id] = work
        next_id += 1
        if local is not None:
            local.region.uses += 1
        if opcode == PPLX_RECV:
            self.receives += 1
        else:
            self.sends += 1

    def close(self) -> None:
        """Close it. What it had posted ends, with the completions that the library has or as flushed."""
        if not self.opened:
            return
        if self.connecting:
            raise RuntimeError("the queue pair is being connected by another thread: close it afterwards")
        self.opened = False  # first: the library is called without the GIL
        try:
            if self.pd.context.lives():
                self.end()
        except BaseException:
            self.opened = True
            raise

    cdef int end(self) except -1:
        cdef pplx_error error
        cdef pplx_verbs_pair *pair = self.ptr
        cdef list found
        cdef Queue queue
        if pair == NULL:
            return 0
        # Twice: some libraries take what the queue still holds away with the queue pair, others don't.
        for turn in range(2):
            for queue in {self.send_queue, self.receive_queue}:
                found = []
                if queue.ptr != NULL:
                    queue.take(found, <Py_ssize_t>queue.entries + 1)
                queue.kept.extend(found)
            if turn == 0:
                self.ptr = NULL
                with nogil:
                    error.status = verbs.pair_close(pair, &error)
                if error.status != PPLX_OK:
                    self.ptr = pair
                check(&error, "close a queue pair", "verbs")
        for queue in {self.send_queue, self.receive_queue}:
            queue.fail_all(self, FLUSHED, WC_WR_FLUSH_ERR)
        self.let_go()
        return 0

    def __dealloc__(self):
        if self.ptr == NULL or not self.pd.context.lives():
            return
        try:
            self.end()
        except errors.VerbsError:
            quarantined.append((self.pd, self.send_queue, self.receive_queue))
