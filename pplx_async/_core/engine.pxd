# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
from libc.stdint cimport uint32_t

from pplx_async._core.gates cimport BellCore
from pplx_async._core.includes.pplx cimport pplx_provider
from pplx_async._core.memory cimport LocalSlice, PeerRecord, RemoteSlice
from pplx_async._core.plan cimport Plan
from pplx_async._core.rt cimport Options
from pplx_async._core.transfer cimport Transfer
from pplx_async._core.waker cimport Waker
from pplx_async._core.words cimport Words


cdef class Engine(Waker):
    cdef readonly Py_ssize_t max_pending
    cdef readonly double drain_timeout
    cdef readonly list domain_names
    cdef list fences  # of each domain
    cdef readonly bint forked  # this is a fork of the process that it runs in
    cdef object loop_runs
    cdef long pid
    cdef dict peers  # by key, while the core has them: see peer.pyx
    cdef dict counters
    cdef set registrations
    cdef list room_waiters
    cdef Words _words
    cdef public object on_message, on_peer_lost, on_rail_lost, on_missing, on_left_open

    cdef int _open_domains(self, const pplx_provider *c_provider, object devices, Options c_options) except -1
    cdef int _start(self) except -1
    cdef int check_loop(self) except -1
    cdef int check_usable(self) except -1
    cdef int check_not_freed(self, PeerRecord peer) except -1
    cdef Transfer new_transfer(self, str operation, unsigned int opcode, BellCore bell=*)
    cdef Transfer call(self, unsigned int opcode, void *subject, str operation, object used, object finisher)
    cdef Transfer call_later(self, unsigned int opcode, void *subject, str operation)
    cdef Transfer submit_plan(self, str operation, Plan plan, bint detached, BellCore bell)
    cdef Transfer _submit_one(
        self,
        Transfer transfer,
        LocalSlice local,
        RemoteSlice remote,
        uint32_t counter,
        bint detached,
        BellCore bell,
    )
    cdef Transfer _hand_in(self, Transfer transfer, BellCore bell)
    cdef int handle(self, void *address) except -1
    cdef int _lost(self, PeerRecord peer) except -1
    cdef int _rail_lost(self, void *node) except -1
