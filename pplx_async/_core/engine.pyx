# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The core's engine on one event loop: submit on the one side, drain the done list on the other.

Nothing here waits. What takes time is a `Transfer`; the public classes decide what to do with it.
Whatever the core points into (transfers, registrations, counters, peers) is held here until the
core has let go.
"""

import os
import weakref
from asyncio import get_running_loop

from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint32_t, uint64_t

from pplx_async._core.arguments cimport flag
from pplx_async._core.counters cimport CounterCore
from pplx_async._core.gates cimport BellCore, CapturedTransfer
from pplx_async._core.includes.pplx cimport (
    PPLX_CALL_COUNTER_CLOSE,
    PPLX_CALL_DRAIN,
    PPLX_CALL_MR_CLOSE,
    PPLX_CALL_MR_OPEN,
    PPLX_CALL_PEER_CLOSE,
    PPLX_CALL_PEER_LOST,
    PPLX_CALL_RAIL_LOST,
    PPLX_CALL_WORDS_CLOSE,
    PPLX_CAP_CUDA,
    PPLX_CAP_DMABUF,
    PPLX_CAP_FENCE,
    PPLX_CAP_GPU_FLUSH,
    PPLX_CAP_READ,
    PPLX_CAP_WAIT_FD,
    PPLX_MAX_GPUS,
    PPLX_NO_COUNTER,
    PPLX_NODE_COUNTER,
    PPLX_NODE_MESSAGE,
    PPLX_NODE_PEER,
    PPLX_NODE_RAIL,
    PPLX_NODE_REQUEST,
    PPLX_NODE_WORD,
    PPLX_OK,
    PPLX_READ,
    PPLX_REQUEST_CALL,
    PPLX_REQUEST_SEND,
    PPLX_WRITE,
    pplx_caps,
    pplx_counter,
    pplx_engine,
    pplx_engine_config,
    pplx_engine_stats,
    pplx_error,
    pplx_gpu_told,
    pplx_message,
    pplx_node,
    pplx_peer,
    pplx_provider,
    pplx_rail_notice,
    pplx_request,
    pplx_word,
)
from pplx_async._core.memory cimport (
    LocalSlice,
    PeerRecord,
    Registration,
    RemoteCounterRecord,
    RemoteRecord,
    RemoteSlice,
)
from pplx_async._core.plan cimport (
    Plan,
    check_counter,
    check_lengths,
    check_peer,
    check_read,
    check_write,
    counter_for,
    local_of,
    remote_of,
)
from pplx_async._core.promise cimport elsewhere
from pplx_async._core.rt cimport Options, api, check, find_provider
from pplx_async._core.transfer cimport Transfer
from pplx_async._core.waker cimport Waker
from pplx_async._core.words cimport Word, Words

from pplx_async.errors import BrokenResourceError, ClosedResourceError, PeerLost, QueueFull

__all__ = ["Engine", "forget_after_fork", "running_engines"]

_running = weakref.WeakSet()
# What could not be deregistered: a NIC may still know the memory, which is kept until the process ends.
_quarantined = []


def running_engines() -> list["Engine"]:
    """Return the engines of this process whose proxy thread runs."""
    return list(_running)


def forget_after_fork() -> None:
    """In the child of a fork: no engine has a proxy thread here; each refuses to work."""
    cdef Engine engine
    for engine in list(_running):
        engine.running = False
        engine.forked = True
        engine.ptr = NULL  # the parent's; nothing of it may be touched or freed here
    _running.clear()


cdef int check_open(object engine, object used, str operation) except -1:
    """Once more for what was put into a plan some time ago: the core must not see what is closed."""
    if isinstance(used, PeerRecord):
        check_peer(engine, used, operation)
    elif isinstance(used, Registration):
        if not (<Registration>used).is_open:
            raise ClosedResourceError("a local region was closed after it was added")
    elif isinstance(used, RemoteRecord):
        if (<RemoteRecord>used).revoked:
            raise BrokenResourceError(f"a region was revoked by peer {(<RemoteRecord>used).peer.label}")
    else:
        check_counter(<RemoteCounterRecord?>used)
    return 0


cdef class Engine(Waker):
    """A started core engine.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
        The loop whose thread owns the engine.
    config : dict
        The fields of ``pplx_engine_config``.
    parts : sequence of (str, sequence of str, dict of str)
        A built-in provider or the path of one, its devices, of which one domain each is opened, and
        its options.
    max_pending : int
        Requests in flight at which submitting raises QueueFull.
    drain_timeout : float
        Seconds that a cancelled transfer has to be released.
    spins : bool
        Low-latency mode, see `Waker`.

    Raises
    ------
    ProviderUnavailable, NativeCallError, ValueError
        The engine does not exist then.
    """

    def __init__(
        self,
        loop,
        dict config,
        parts,
        Py_ssize_t max_pending,
        double drain_timeout,
        bint spins=False,
    ) -> None:
        cdef pplx_engine_config c_config
        cdef pplx_error error
        c_config.ring_entries = config["ring_entries"]
        c_config.spin_us = config["spin_us"]
        c_config.poll_interval_us = config["poll_interval_us"]
        c_config.heartbeat_interval_ms = config["heartbeat_interval_ms"]
        c_config.heartbeat_timeout_ms = config["heartbeat_timeout_ms"]
        c_config.again_timeout_ms = config["again_timeout_ms"]
        c_config.shard_nbytes = config["shard_nbytes"]
        c_config.message_nbytes = config["message_nbytes"]
        c_config.message_slots = config["message_slots"]
        c_config.cpu = config["cpu"]
        c_config.owner_drives = config["owner_drives"]
        c_config.rail_failover = config["rail_failover"]
        cdef bytes libcuda = None if config["libcuda"] is None else config["libcuda"].encode()
        c_config.libcuda = NULL if libcuda is None else <const char *>libcuda
        self.loop = loop
        self.loop_runs = loop.is_running
        self.spins = spins
        self.alone = spins and config["owner_drives"]
        self.patience_ns = self.window_ns = config["spin_us"] * 1000 if spins or config["owner_drives"] else 0
        self.max_pending = max_pending
        self.drain_timeout = drain_timeout
        self.peers = {}
        self.counters = {}
        self.registrations = set()
        self.room_waiters = []
        self.domain_names = []
        error.status = api.engine_open(&c_config, &self.ptr, &error)
        check(&error, "open an engine")
        try:
            for provider, devices, options in parts:
                self._open_domains(find_provider(provider), devices, Options(options))
            self._start()
        except BaseException:
            self.close()
            raise

    cdef int _open_domains(self, const pplx_provider *c_provider, object devices, Options c_options) except -1:
        cdef pplx_error error
        cdef pplx_engine *ptr = self.ptr
        cdef bytes device
        cdef const char *name
        for text in devices:
            device = text.encode()
            name = device
            with nogil:
                error.status = api.engine_add_domain(ptr, c_provider, name, c_options.items, c_options.count, &error)
            check(&error, f"open device {text}")
            self.domain_names.append(f"{text}#{len(self.domain_names)}")
        return 0

    cdef int _start(self) except -1:
        """Start the proxy thread."""
        cdef pplx_error error
        cdef pplx_engine *ptr = self.ptr
        with nogil:
            error.status = api.engine_start(ptr, &error)
        check(&error, "start the engine")
        self.thread = PyThread_get_thread_ident()
        self.pid = os.getpid()
        self.running = True
        self.fences = [caps["fence"] for caps in self.caps()]
        _running.add(self)
        api.arm(self.ptr)
        return 0

    # ---- the loop's side ----

    cdef int reap(self) except -1:
        cdef pplx_node *node = api.reap(self.ptr)
        cdef pplx_node *next_node
        last_words = None  # raised when everyone else got theirs: an interrupt, for example
        while node != NULL:
            next_node = node.next  # what handles it may free it
            try:
                self.handle(node)
            except (KeyboardInterrupt, SystemExit) as exception:
                last_words = exception
            except BaseException as exception:
                # An error here is the engine's own or a callback's; the others still get theirs.
                try:
                    self.loop.call_exception_handler(
                        {"message": "handling a completion failed", "exception": exception}
                    )
                except BaseException as another:
                    if last_words is None:
                        last_words = another
            node = next_node
        if self.room_waiters:
            waiters, self.room_waiters = self.room_waiters, []
            for limit, waiter in waiters:
                if self.inflight > limit:
                    self.room_waiters.append((limit, waiter))
                elif not waiter.done():
                    waiter.set_result(None)
        if last_words is not None:
            raise last_words
        return 0

    cdef int handle(self, void *address) except -1:
        cdef pplx_node *node = <pplx_node *>address
        cdef pplx_message *message
        cdef Transfer transfer
        cdef PeerRecord peer
        if node.kind == PPLX_NODE_REQUEST:
            transfer = <Transfer>(<pplx_request *>node).cookie
            try:
                transfer.reaped()
            finally:
                if transfer.released:
                    self.inflight -= 1
                    self.theirs -= transfer.theirs
                    Py_DECREF(transfer)
        elif node.kind == PPLX_NODE_COUNTER:
            (<CounterCore>(<pplx_counter *>node).cookie).reaped()
        elif node.kind == PPLX_NODE_MESSAGE:
            message = <pplx_message *>node
            peer = self.peers.get(<size_t>message.peer)
            if peer is not None and self.on_message is not None:
                self.on_message(peer.owner, message.data[: message.nbytes], <size_t>message)
            else:
                api.message_release(self.ptr, message)
        elif node.kind == PPLX_NODE_PEER:
            peer = self.peers.get(<size_t>api.node_peer(node))
            if peer is not None:
                self._lost(peer)
        elif node.kind == PPLX_NODE_RAIL:
            self._rail_lost(node)
        elif node.kind == PPLX_NODE_WORD:
            (<Word>(<pplx_word *>node).cookie).reaped()
        return 0

    cdef int _rail_lost(self, void *address) except -1:
        cdef pplx_node *node = <pplx_node *>address
        cdef pplx_error error
        cdef pplx_rail_notice notice
        cdef uint32_t link
        cdef pplx_peer *ptr = api.node_rail(node, &link)
        cdef PeerRecord peer = self.peers.get(<size_t>ptr)
        if peer is None:
            return 0
        api.link_reason(ptr, link, &error)
        api.link_notice(ptr, link, &notice)
        peer.lost_links[link] = error.text.decode(errors="replace")
        if self.on_rail_lost is not None:
            arrived = bytes(notice.arrived[: sizeof(notice.arrived)])
            self.on_rail_lost(peer.owner, link, notice.prefix, arrived.rstrip(b"\0"))
        return 0

    cdef int _lost(self, PeerRecord peer) except -1:
        cdef pplx_error error
        api.peer_reason(<pplx_peer *>peer.ptr, &error)
        peer.is_open = False
        peer.why = self.lost_reason(peer)
        peer.domain = self.domain_names[api.peer_lost_domain(<pplx_peer *>peer.ptr)]
        peer.reason = PeerLost(
            peer.why, peer=peer.label, domain=peer.domain, provider_error=error.provider_error
        )
        if self.on_peer_lost is not None:
            self.on_peer_lost(peer.owner, peer.reason)
        return 0

    def lost_reason(self, PeerRecord peer not None):
        """Why a peer is lost, as the core says it, or said it before the peer was freed."""
        cdef pplx_error error
        if peer.why is not None or peer.ptr == NULL or self.ptr == NULL:
            return peer.why
        api.peer_reason(<pplx_peer *>peer.ptr, &error)
        return error.text.decode(errors="replace")

    def missing(self, PeerRecord peer, uint32_t counter, uint64_t eighths, str reason) -> None:
        """A counted transfer failed in part: tell the receiver, by whoever can, if it is still there."""
        if peer is not None and peer.ptr != NULL and self.on_missing is not None:
            self.on_missing(peer.owner, counter, eighths, reason)

    # ---- submitting ----

    cdef int check_running(self) except -1:
        if self.forked:
            raise ClosedResourceError(
                f"the engine was opened in process {self.pid}, and this is a fork of it",
                hint="Open a new one after the fork.",
            )
        if not self.running:
            raise ClosedResourceError("the engine is closed")
        return 0

    cdef int check_loop(self) except -1:
        if PyThread_get_thread_ident() == self.thread:
            if self.loop_runs():
                return 0
            # Between two runs of it nothing is under way on its thread, so calls do no harm.
            # (Not asked first: it is a system call before Python 3.12.)
            try:
                get_running_loop()
            except RuntimeError:
                if not self.loop.is_closed():
                    return 0
        raise elsewhere(self.loop)

    cdef int check_usable(self) except -1:
        self.check_running()
        return self.check_loop()

    cdef int check_not_freed(self, PeerRecord peer) except -1:
        self.check_running()
        if peer.ptr == NULL:
            raise ClosedResourceError(f"peer {peer.label} is closed")
        return 0

    def check_owner(self) -> None:
        """Refuse a call from another loop, thread or process than the engine's; a closed one is anybody's."""
        if self.forked:
            self.check_running()
        if self.running:
            self.check_loop()

    cdef Transfer new_transfer(self, str operation, unsigned int opcode, BellCore bell=None):
        self.check_running()
        if PyThread_get_thread_ident() != self.thread:
            raise elsewhere(self.loop)
        # Another loop on our thread: a write takes 0.4 us, to ask a loop whether it runs a tenth of that.
        # While none runs nothing is reaped, so it is found here, or by asyncio when the transfer is awaited.
        if self.inflight == 0:
            self.check_loop()
        if self.inflight >= self.max_pending:
            raise QueueFull(f"{self.inflight} requests are in flight, max_pending is {self.max_pending}")
        cdef Transfer transfer
        if bell is None or not bell.word.repeats:
            transfer = Transfer.__new__(Transfer)
        else:
            transfer = CapturedTransfer.__new__(CapturedTransfer)
            (<CapturedTransfer>transfer).bell = bell
        transfer.loop = self.loop
        transfer.waker = self
        transfer.engine = self
        transfer.c_engine = self.ptr
        transfer.operation = operation
        transfer.request.opcode = opcode
        return transfer

    cdef Transfer submit_plan(self, str operation, Plan plan, bint detached, BellCore bell):
        cdef Transfer transfer = self.new_transfer(operation, PPLX_WRITE, bell)
        for used in plan.used:
            check_open(self, used, operation)
        plan.finish()
        transfer.owned_targets = plan.targets
        transfer.owned_segments = plan.segments
        plan.targets = NULL
        plan.segments = NULL
        transfer.request.targets = transfer.owned_targets
        transfer.request.ntargets = <uint32_t>plan.ntargets
        transfer.nbytes = plan.nbytes
        transfer.copied = plan.copied
        transfer.detached = detached
        for used in plan.used:
            transfer.use(used)
        return self._hand_in(transfer, bell)

    cdef Transfer _hand_in(self, Transfer transfer, BellCore bell):
        """It is complete: now, or when a stream rings."""
        self.inflight += 1
        if bell is None:
            transfer.submit()
        else:
            bell.hold(transfer)
        return transfer

    cdef Transfer call(self, unsigned int opcode, void *subject, str operation, object used, object finisher):
        cdef Transfer transfer = self.call_later(opcode, subject, operation)
        transfer.finisher = finisher
        if used is not None:
            transfer.use(used)
        transfer.submit()
        return transfer

    cdef Transfer call_later(self, unsigned int opcode, void *subject, str operation):
        """A call that the caller completes and submits."""
        self.check_running()
        cdef Transfer transfer = Transfer.__new__(Transfer)
        transfer.loop = self.loop
        transfer.waker = self
        transfer.engine = self
        transfer.c_engine = self.ptr
        transfer.operation = operation
        transfer.request.kind = PPLX_REQUEST_CALL
        transfer.request.opcode = opcode
        transfer.request.subject = subject
        # An end cannot be called back: a task that is cancelled need not wait for it, which is for
        # ever where a provider doesn't let go.
        transfer.detached = opcode in (
            PPLX_CALL_COUNTER_CLOSE,
            PPLX_CALL_MR_CLOSE,
            PPLX_CALL_PEER_CLOSE,
            PPLX_CALL_PEER_LOST,
            PPLX_CALL_RAIL_LOST,
        )
        self.inflight += 1
        return transfer

    def write(self, local, remote, counter=None, detached=False, BellCore bell=None) -> Transfer:
        """Submit one write; with a ``bell``, leave that to it."""
        cdef LocalSlice source = local_of(local)
        cdef RemoteSlice sink = remote_of(remote)
        cdef bint c_detached = flag(detached, "detach")
        check_write(self, source, sink)
        check_lengths(source, sink)
        cdef uint32_t c_counter = counter_for(sink.record.peer, counter)
        cdef Transfer transfer = self.new_transfer("write", PPLX_WRITE, bell)
        if counter is not None:
            transfer.use(counter)
        return self._submit_one(transfer, source, sink, c_counter, c_detached, bell)

    def read(self, remote, local, detached=False, BellCore bell=None) -> Transfer:
        """Submit one read; with a ``bell``, leave that to it."""
        cdef RemoteSlice source = remote_of(remote)
        cdef LocalSlice sink = local_of(local)
        cdef bint c_detached = flag(detached, "detach")
        check_read(self, sink, source)
        check_lengths(sink, source)
        cdef Transfer transfer = self.new_transfer("read", PPLX_READ, bell)
        return self._submit_one(transfer, sink, source, <uint32_t>PPLX_NO_COUNTER, c_detached, bell)

    cdef Transfer _submit_one(
        self,
        Transfer transfer,
        LocalSlice local,
        RemoteSlice remote,
        uint32_t counter,
        bint detached,
        BellCore bell,
    ):
        transfer.segment.local = local.offset
        transfer.segment.remote = remote.offset
        transfer.segment.nbytes = local.nbytes
        transfer.segment.pages = 1
        transfer.target.local = &local.registration.mr
        transfer.target.remote = &remote.record.remote
        transfer.target.peer = remote.record.remote.peer
        transfer.target.segments = &transfer.segment
        transfer.target.nsegments = 1
        transfer.target.counter = counter
        transfer.request.targets = &transfer.target
        transfer.request.ntargets = 1
        transfer.nbytes = local.nbytes
        transfer.copied = 0 if local.registration.on_gpu else local.nbytes
        transfer.detached = detached
        transfer.use(local.registration)
        transfer.use(remote.record)
        transfer.use(remote.record.peer)
        return self._hand_in(transfer, bell)

    def plan(self) -> Plan:
        """Start a request of many writes."""
        self.check_usable()
        return Plan(self, self.thread)

    def submit(self, Plan plan not None, str operation, detached=False, BellCore bell=None) -> Transfer:
        """Submit a plan, or leave that to a ``bell``; it is used up."""
        return self.submit_plan(operation, plan, flag(detached, "detach"), bell)

    def send(self, PeerRecord peer not None, data) -> Transfer:
        """Submit a two-sided message; ``data`` is copied now."""
        check_peer(self, peer, "send")
        self.check_not_freed(peer)
        cdef Transfer transfer = self.new_transfer("send", 0)
        cdef bytes payload = bytes(data)
        transfer.payload = payload
        transfer.nbytes = transfer.copied = <uint64_t>len(payload)
        transfer.request.kind = PPLX_REQUEST_SEND
        transfer.request.subject = peer.ptr
        transfer.request.payload = <const void *><const char *>payload
        transfer.use(peer)
        self.inflight += 1
        transfer.submit()
        return transfer

    def message_release(self, size_t message) -> None:
        """Give a message's buffer back to receive again: only then may its sender send another."""
        if self.ptr != NULL:
            api.message_release(self.ptr, <pplx_message *>message)

    def tell_room(self, limit, future) -> None:
        """Resolve a future when at most ``limit`` requests are in flight."""
        if self.inflight > limit:
            self.room_waiters.append((limit, future))
        else:
            future.set_result(None)

    # ---- memory ----

    def register(self, Registration registration not None) -> Transfer:
        """Submit the registration with every domain."""
        self.check_usable()

        def finish(bint ok):
            registration.is_open = ok
            if ok:
                registration.opened()
                self.registrations.add(registration)
            else:
                registration.let_go()
            return registration

        return self.call(PPLX_CALL_MR_OPEN, &registration.mr, "register", registration, finish)

    def open_registrations(self) -> list[Registration]:
        """What is registered now."""
        return list(self.registrations)

    def deregister(self, Registration registration not None) -> Transfer:
        """Submit its end; no transfer uses it any more. Then the caller lets go of the buffer.

        One that failed stays registered, as far as anyone knows: it is kept for good, and so is its
        buffer. It may be submitted once more: a peer may let go later.
        """
        registration.is_open = False

        def finish(bint ok):
            self.registrations.discard(registration)
            kept = registration in _quarantined
            if ok and kept:
                _quarantined.remove(registration)
            elif not ok and not kept:
                _quarantined.append(registration)

        return self.call(PPLX_CALL_MR_CLOSE, &registration.mr, "deregister", registration, finish)

    # ---- counters ----

    def counter_open(self, CounterCore counter not None) -> None:
        """Give a counter its id."""
        self.check_usable()
        if api.counter_open(self.ptr, &counter.counter) != PPLX_OK:
            raise MemoryError("all 2**20 counters are in use: close some")
        counter.is_open = True
        self.counters[counter.counter.id] = counter

    def counter_close(self, CounterCore counter not None) -> Transfer:
        """Submit the end of a counter. Its id stays reserved until `counter_recycle`."""
        counter.is_open = False
        counter.end_waits(ClosedResourceError("the counter was closed"))

        def finish(bint ok):
            self.counters.pop(counter.counter.id, None)

        return self.call(PPLX_CALL_COUNTER_CLOSE, &counter.counter, "close a counter", None, finish)

    def counter_recycle(self, uint32_t counter) -> None:
        """Let an id be used again: no immediate for it can come any more."""
        if self.ptr != NULL:
            api.counter_recycle(self.ptr, counter)

    def count_arrived(self) -> Transfer:
        """Submit a look into every completion queue: what has arrived by now is counted then."""
        return self.call(PPLX_CALL_DRAIN, NULL, "count what has arrived", None, None)

    # ---- words ----

    @property
    def words(self) -> Words:
        """What streams and the proxy hand over with; made when it is first needed."""
        self.check_usable()
        if self._words is None:
            self._words = Words(self)
        return self._words

    def words_end(self, used, exception, repeating_only=False) -> None:
        """What uses this is to end: so do transfers of it that wait for a stream."""
        if self._words is not None and self.running:
            self._words.end(used, exception, repeating_only)

    def words_close(self) -> None:
        """Submit the end of all words."""
        if self._words is not None:
            self.call(PPLX_CALL_WORDS_CLOSE, NULL, "let streams go", None, None)

    # ---- telling ----

    def gpu_flush(self) -> dict[int, str]:
        """How a stream comes to see what NICs have written into its GPU's memory, by the GPU's number."""
        cdef pplx_gpu_told gpus[PPLX_MAX_GPUS]
        cdef size_t i, count = api.engine_gpus(self.ptr, gpus, PPLX_MAX_GPUS)
        return {
            gpus[i].ordinal: "none" if gpus[i].ordered >= 100 else "stream" if gpus[i].by_wait else "proxy"
            for i in range(count)
        }

    def caps(self) -> list[dict[str, object]]:
        """What each domain can do, and its limits."""
        cdef pplx_caps caps
        cdef size_t i
        self.check_usable()
        result = []
        for i in range(api.engine_domains(self.ptr)):
            api.engine_caps(self.ptr, i, &caps)
            result.append(
                {
                    "name": self.domain_names[i],
                    "description": caps.description.decode(errors="replace"),
                    "max_message": caps.max_message,
                    "max_inflight": caps.max_inflight,
                    "max_inflight_nbytes": caps.max_inflight_bytes,
                    "eager_posts": caps.eager_posts,
                    "posts_per_turn": caps.posts_per_turn,
                    "max_segments": max(caps.max_segments, 1),
                    "bits_per_second": caps.bits_per_second,
                    "subnets": tuple(caps.subnets.decode(errors="replace").split()),
                    "read": bool(caps.flags & PPLX_CAP_READ),
                    "wait_fd": bool(caps.flags & PPLX_CAP_WAIT_FD),
                    "fence": bool(caps.flags & PPLX_CAP_FENCE),
                    "cuda": bool(caps.flags & PPLX_CAP_CUDA),
                    "dmabuf": bool(caps.flags & PPLX_CAP_DMABUF),
                    "gpu_flush": self.gpu_flush() if caps.flags & PPLX_CAP_GPU_FLUSH else {},
                }
            )
        return result

    def stats(self) -> dict[str, int]:
        """Counts of the whole engine."""
        cdef pplx_engine_stats stats
        self.check_usable()
        api.engine_read_stats(self.ptr, &stats)
        return {
            "turns": stats.turns,
            "sleeps": stats.sleeps,
            "spin_ns": stats.spin_ns,
            "wakes": stats.wakes,
            "requests": stats.requests,
            "overflowed": stats.overflowed,
            "stray_imms": stats.stray_imms,
            "stray_messages": stats.stray_messages,
            "registrations": stats.registrations,
            "register_ns": stats.register_ns,
            "words": stats.words,
        }

    # ---- the end ----

    def close(self) -> None:
        """Stop the proxy thread and close the domains. Every peer and registration is closed."""
        self.running = False
        _running.discard(self)
        cdef pplx_engine *ptr = self.ptr
        self.ptr = NULL
        if ptr != NULL:
            with nogil:
                api.engine_close(ptr)
        if self._words is not None:
            self._words.let_go()

    def stop(self) -> None:
        """Stop the proxy thread only: nothing is freed, for NICs may still know the memory."""
        self.running = False
        _running.discard(self)
        cdef pplx_engine *ptr = self.ptr
        if ptr != NULL:
            with nogil:
                api.engine_stop(ptr)
        if self._words is not None and not self.forked:
            self._words.let_go()
        waiters, self.room_waiters = self.room_waiters, []
        for _, waiter in waiters:  # nothing comes back any more that could make room
            if not waiter.done() and not self.loop.is_closed():
                waiter.set_exception(ClosedResourceError("the engine was closed with requests in flight"))
