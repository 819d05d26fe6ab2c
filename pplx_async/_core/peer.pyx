# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The core's peer as its owner sees it: its endpoints are opened, connected and closed here.

Transfers know it as a `PeerRecord`. What the proxy has to tell of it, that it is lost for one, comes
through the done list (``engine.pyx``).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pplx_async._core.engine cimport Engine
from pplx_async._core.includes.pplx cimport (
    PPLX_ADDRESS_BYTES,
    PPLX_CALL_PEER_CLOSE,
    PPLX_CALL_PEER_CONNECT,
    PPLX_CALL_PEER_LOST,
    PPLX_CALL_PEER_OPEN,
    PPLX_CALL_RAIL_LOST,
    PPLX_LATENCY_BUCKETS,
    PPLX_MAX_LINKS,
    PPLX_OPCODES,
    pplx_link_address,
    pplx_link_stats,
    pplx_peer,
    pplx_peer_config,
    pplx_rail_notice,
    pplx_remote_key,
    pplx_route,
)
from pplx_async._core.memory cimport PeerRecord
from pplx_async._core.rt cimport api
from pplx_async._core.transfer cimport Transfer

__all__ = ["PeerCore"]


cdef class PeerCore(PeerRecord):
    """A peer that is not open yet.

    Parameters
    ----------
    engine : Engine
        Ours.
    label : str
        How errors call it.
    remote_domains : int
        How many it has.
    routes : sequence of (int, int)
        Domain of ours and domain of its, of each link.
    owner : object
        Whom the engine's callbacks are told of.
    weights : sequence of int
        The share of each link in the bytes, as ``routes.weigh`` gives it; all the same if there are none.
    """

    def __init__(
        self, Engine engine not None, str label, uint32_t remote_domains, routes, owner, weights=()
    ) -> None:
        cdef pplx_route c_routes[<int>PPLX_MAX_LINKS]
        cdef uint32_t nroutes = 0
        engine.check_usable()
        if not 1 <= len(routes) <= PPLX_MAX_LINKS:
            raise ValueError(f"a peer has 1 to {PPLX_MAX_LINKS} links, not {len(routes)}")
        for domain, remote_domain in routes:
            c_routes[nroutes].domain = domain
            c_routes[nroutes].remote_domain = remote_domain
            c_routes[nroutes].weight = weights[nroutes] if weights else 1
            nroutes += 1
        PeerRecord.__init__(self, engine, label, remote_domains)
        self.owner = owner
        self.domain = engine.domain_names[c_routes[0].domain]
        self.ptr = api.peer_new(engine.ptr, <void *>self, remote_domains, c_routes, nroutes)
        if self.ptr == NULL:
            raise MemoryError("no memory or no counter for another peer")
        self.key = <size_t>self.ptr
        self.max_message = api.peer_max_message(<pplx_peer *>self.ptr)
        self.fences = all(engine.fences[domain] for domain, _ in routes)
        engine.peers[self.key] = self

    cdef Engine not_freed(self):
        """Its engine, as long as the core has it."""
        cdef Engine engine = <Engine?>self.engine
        engine.check_not_freed(self)
        return engine

    def open(self) -> Transfer:
        """Submit the opening of its endpoints."""
        return self.not_freed().call(PPLX_CALL_PEER_OPEN, self.ptr, "open endpoints", self, None)

    def endpoints(self) -> dict[str, object]:
        """What the other side must know, once the endpoints are open."""
        cdef Engine engine = self.not_freed()
        cdef pplx_link_address address
        cdef pplx_remote_key key
        cdef pplx_peer *ptr = <pplx_peer *>self.ptr
        addresses = []
        landing = []
        cdef size_t i
        for i in range(api.peer_links(ptr)):
            api.peer_address(ptr, i, &address)
            addresses.append(bytes(address.bytes[: address.nbytes]))
        for i in range(api.engine_domains(engine.ptr)):
            api.engine_landing(engine.ptr, i, &key)
            landing.append((key.key, key.base))
        return {
            "addresses": addresses,
            "landing": landing,
            "heartbeat_counter": api.peer_heartbeat_counter(ptr),
            "credit_counter": api.peer_credit_counter(ptr),
            "token": api.peer_token(ptr),
        }

    def connect(
        self,
        addresses,
        landing,
        uint32_t heartbeat_counter,
        uint32_t credit_counter,
        uint32_t credits,
        uint64_t token,
        uint64_t message_nbytes,
    ) -> Transfer:
        """Submit the connecting: it settles when every link has carried a heartbeat both ways.

        Whether it is open then is for the caller to say: ``is_open``.
        """
        cdef Engine engine = self.not_freed()
        cdef pplx_peer_config config
        memset(&config, 0, sizeof(config))
        cdef bytes address
        cdef size_t i
        cdef size_t nlinks = api.peer_links(<pplx_peer *>self.ptr)
        if len(addresses) != nlinks:
            raise ValueError(f"peer {self.label} gave {len(addresses)} addresses for {nlinks} links")
        if len(landing) != self.domains:
            raise ValueError(f"peer {self.label} gave {len(landing)} landing keys for {self.domains} domains")
        config.domains = <uint32_t>len(landing)
        config.heartbeat_counter = heartbeat_counter
        config.credit_counter = credit_counter
        config.credits = credits
        config.token = token
        config.message_nbytes = message_nbytes
        for i in range(<size_t>len(landing)):
            config.landing[i].key, config.landing[i].base = landing[i]
        for i in range(nlinks):
            address = addresses[i]
            if len(address) > PPLX_ADDRESS_BYTES:
                raise ValueError(f"peer {self.label} gave an address of {len(address)} B")
            config.links[i].nbytes = <uint32_t>len(address)
            memcpy(config.links[i].bytes, <const char *>address, len(address))
        api.peer_configure(<pplx_peer *>self.ptr, &config)
        return engine.call(PPLX_CALL_PEER_CONNECT, self.ptr, "connect", self, None)

    def close(self) -> Transfer:
        """Submit its end; it settles when every endpoint is closed. Then `free`."""
        cdef Engine engine = self.not_freed()
        self.is_open = False
        return engine.call(PPLX_CALL_PEER_CLOSE, self.ptr, "close a peer", None, None)

    def lose(self, str why) -> Transfer:
        """Submit that it is lost, which the core could not know; ``why`` goes into every PeerLost."""
        cdef Engine engine = self.not_freed()
        cdef bytes text = why.encode()
        cdef Transfer transfer = engine.call_later(PPLX_CALL_PEER_LOST, self.ptr, "drop a peer")
        transfer.payload = text
        transfer.request.payload = <const char *>text
        transfer.submit()
        return transfer

    def lose_rail(self, uint32_t link, str why, uint64_t prefix, bytes arrived) -> Transfer:
        """Submit that the other side has closed its end of a link, and which messages had arrived there."""
        cdef Engine engine = self.not_freed()
        cdef pplx_rail_notice notice
        cdef bytes text = why.encode()[: sizeof(notice.why) - 1]
        if len(arrived) > <int>sizeof(notice.arrived):
            raise ValueError(f"peer {self.label} tells of {len(arrived)} B of messages")
        memset(&notice, 0, sizeof(notice))
        notice.link = link
        notice.prefix = prefix
        memcpy(notice.arrived, <const char *>arrived, len(arrived))
        memcpy(notice.why, <const char *>text, len(text))
        cdef bytes payload = (<const char *>&notice)[: sizeof(notice)]
        cdef Transfer transfer = engine.call_later(PPLX_CALL_RAIL_LOST, self.ptr, "drop a link")
        transfer.payload = payload
        transfer.request.payload = <const char *>payload
        transfer.submit()
        return transfer

    def free(self) -> None:
        """Free the core's part, after `close` has settled."""
        cdef Engine engine = <Engine?>self.engine
        cdef pplx_peer *ptr = <pplx_peer *>self.ptr
        if ptr != NULL and engine.ptr != NULL:
            self.why = engine.lost_reason(self)
            engine.peers.pop(self.key, None)
            if self.fences:
                # Without a fence a late heartbeat could still come, and be counted by who has the id next.
                api.counter_recycle(engine.ptr, api.peer_heartbeat_counter(ptr))
                api.counter_recycle(engine.ptr, api.peer_credit_counter(ptr))
            api.peer_free(ptr)
        self.ptr = NULL

    def link_stats(self) -> list[dict[str, object]]:
        """Counts of each of its links; lists are by opcode (write, write_imm, read, send, recv)."""
        cdef Engine engine = <Engine?>self.engine
        cdef pplx_link_stats stats
        cdef size_t i
        cdef int op, bucket
        engine.check_owner()
        result = []
        if self.ptr == NULL or engine.ptr == NULL:
            return result
        for i in range(api.peer_links(<pplx_peer *>self.ptr)):
            api.link_read_stats(<pplx_peer *>self.ptr, i, &stats)
            result.append(
                {
                    "domain": stats.domain,
                    "remote_domain": stats.remote_domain,
                    "lost": self.lost_links.get(i),
                    "posted": [stats.posted[op] for op in range(PPLX_OPCODES)],
                    "completed": [stats.completed[op] for op in range(PPLX_OPCODES)],
                    "failed": [stats.failed[op] for op in range(PPLX_OPCODES)],
                    "nbytes": [stats.nbytes[op] for op in range(PPLX_OPCODES)],
                    "again": stats.again,
                    "inflight": stats.inflight,
                    "inflight_nbytes": stats.inflight_nbytes,
                    "latency": [
                        [stats.latency[op][bucket] for bucket in range(PPLX_LATENCY_BUCKETS)]
                        for op in range(PPLX_OPCODES)
                    ],
                }
            )
        return result
