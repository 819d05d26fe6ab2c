# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""NIXL agents with the UCX backend: writes from memory to memory, with notifications.

Requests are prepared once and posted again where the API has that, which is its best case; a
notification leaves only when its initiator polls the request's state. There is no asyncio API: what
a user can write is a loop of polls.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from nixl_cu12._api import nixl_agent, nixl_agent_config

from benchmarks.peers.driver import main
from benchmarks.peers.side import TOTAL, Places, Side, run_workers
from pplx_async.cli.bench.works import Work


class NixlSide(Side):
    """Variants: shm, tcp; which of the two UCX takes is in the environment."""

    def info(self) -> Any:
        self.provider = f"UCX {self.variant}"
        self.agent = nixl_agent(f"rank{self.rank}", nixl_agent_config(enable_prog_thread=False, backends=[]))
        # With the default, "peer", UCX refuses shared memory.
        self.agent.create_backend("UCX", {"ucx_error_handling_mode": "none"} if self.variant == "shm" else {})
        buffers = [(array.ctypes.data, TOTAL, 0, "") for array in (self.src, self.dst)]
        self.registered = self.agent.register_memory(buffers, "DRAM")
        return self.agent.get_agent_metadata(), self.dst.ctypes.data

    def connect(self, other: Any) -> None:
        metadata, self.remote = other
        peer = self.agent.add_remote_agent(metadata)
        self.peer = peer.decode() if isinstance(peer, bytes) else peer
        self.agent.make_connection(self.peer)
        self.lists: dict[Any, Any] = {}

    def request(self, nbytes: int, places: Places, notification: bytes = b"") -> Any:
        """Prepare a transfer. Lists of descriptors live long in real use, so they are kept."""
        key = nbytes, len(places), *places[:2]
        if key not in self.lists:
            local = [(self.src.ctypes.data + src, nbytes, 0) for src, _ in places]
            remote = [(self.remote + dst, nbytes, 0) for _, dst in places]
            self.lists[key] = (
                self.agent.prep_xfer_dlist("NIXL_INIT_AGENT", local, "DRAM"),
                self.agent.prep_xfer_dlist(self.peer, remote, "DRAM"),
                np.arange(len(places), dtype=np.int32),
            )
        local_list, remote_list, all_of_it = self.lists[key]
        return self.agent.make_prepped_xfer("WRITE", local_list, all_of_it, remote_list, all_of_it, notification)

    def finish(self, request: Any) -> None:
        while (state := self.agent.check_xfer_state(request)) == "PROC":
            pass
        if state != "DONE":
            raise RuntimeError(f"a transfer ended as {state}")

    def take_notifications(self, count: int = 1) -> None:
        while count > 0:
            count -= sum(len(messages) for messages in self.agent.get_new_notifs().values())

    def ping(self, nbytes: int, count: int) -> list[float]:
        request, times = self.request(nbytes, [(0, 0)], b"ping"), []
        for _ in range(count):
            began = time.perf_counter()
            self.agent.transfer(request)
            self.finish(request)
            self.take_notifications()
            times.append(time.perf_counter() - began)
        request.release()
        return times

    def pong(self, nbytes: int, count: int) -> None:
        request = self.request(nbytes, [(0, 0)], b"pong")
        for _ in range(count):
            self.take_notifications()
            self.agent.transfer(request)
            self.finish(request)
        request.release()

    def write_all(self, work: Work, places: Places) -> None:
        if work.name == "stream":
            self.stream(work, places)
        else:
            # As its users do: one request for each region, of many descriptors.
            requests = [
                self.request(work.nbytes, places[first :: work.targets], b"all") for first in range(work.targets)
            ]
            for request in requests:
                self.agent.transfer(request)
            for request in requests:
                self.finish(request)
                request.release()
        self.take_notifications()

    def stream(self, work: Work, places: Places) -> None:
        """Post one request for each slot again and again."""
        requests = [self.request(work.nbytes, [place]) for place in places[: work.inflight]]
        states = [self.agent.transfer(request) for request in requests]
        posted, left = len(requests), len(requests)
        while left:
            for slot, request in enumerate(requests):
                if states[slot] == "PROC":
                    states[slot] = self.agent.check_xfer_state(request)
                if states[slot] == "ERR":
                    raise RuntimeError("a transfer failed")
                if states[slot] != "DONE":
                    continue
                if posted < len(places):
                    states[slot] = self.agent.transfer(request)
                    posted += 1
                else:
                    states[slot] = ""
                    left -= 1
        self.agent.send_notif(self.peer, b"all")
        for request in requests:
            request.release()

    def take_all(self, work: Work, places: Places) -> None:
        self.take_notifications(work.targets)
        self.agent.send_notif(self.peer, b"known")

    async def await_all(self, inflight: int, count: int) -> None:
        agent = self.agent
        requests = [self.request(8, [(64 * slot, 64 * slot)]) for slot in range(inflight)]
        free = list(requests)

        async def write() -> None:
            request = free.pop()
            state = agent.transfer(request)
            while state == "PROC":
                await asyncio.sleep(0)
                state = agent.check_xfer_state(request)
            if state != "DONE":
                raise RuntimeError(f"a transfer ended as {state}")
            free.append(request)

        await run_workers(inflight, count, write)
        for request in requests:
            request.release()
        agent.send_notif(self.peer, b"all")

    def serve_awaits(self, inflight: int, count: int) -> None:
        self.take_notifications()

    def poke(self) -> None:
        self.agent.send_notif(self.peer, b"poke")

    def take_poke(self) -> None:
        self.take_notifications()


if __name__ == "__main__":
    main(NixlSide)
