# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A hundred peers are killed, one after the other: nothing of them is left in the survivor, nor on the host."""

import asyncio
import contextlib
import gc
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from helpers.engines import SOON, eventually
from helpers.limits import is_sanitized
from helpers.survivor import open_survivor
from pplx_async import PeerLost

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "ipc", "verbs"), pytest.mark.tcp]

ROUNDS = 100
WARM_UP = 20  # rounds until every pool has its size
GROWTH = 1 << 20  # bytes in the 80 rounds after that: less than 14 KB a peer, whose buffers alone are 256 KiB


class Footprint(NamedTuple):
    """What this process holds, but for its memory."""

    descriptors: int
    sockets: int
    memfds: int
    mapped_memfds: int
    threads: int


def open_files(pid: int | str) -> list[str]:
    names = []
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            names.append(os.readlink(f"/proc/{pid}/fd/{descriptor}"))
    return names


def footprint() -> tuple[Footprint, int]:
    """Return what this process holds, and its resident memory in bytes."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = open_files("self")
    threads = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
    held = Footprint(
        descriptors=len(names),
        sockets=sum(name.startswith("socket:") for name in names),
        memfds=sum(name.startswith("/memfd:") for name in names),
        mapped_memfds=sum("/memfd:" in line for line in Path("/proc/self/maps").read_text().splitlines()),
        threads=sum(not name.startswith("iou-") for name in threads),  # the kernel's, for uvloop's io_uring
    )
    return held, int(status["VmRSS"].split()[0]) << 10


def local_sockets() -> dict[str, str]:
    """Return the name of each socket of the host that has one, by its inode."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return {f"socket:[{line[6]}]": line[7] for line in lines if len(line) > 7}


def sockets_of(pid: int) -> set[str]:
    named = local_sockets()
    return {named[file] for file in open_files(pid) if file in named}


async def one_round(survivor, pid, peer):
    """Use a peer, and kill it in mid-stream."""
    engine, nbytes = survivor.engine, survivor.source.nbytes
    memory, plain = (await peer.lookup("memory"))[0:nbytes], (await peer.lookup("plain"))[0:nbytes]
    counter = await peer.lookup_counter("counter")
    sink = np.zeros(nbytes, dtype=np.uint8)
    await engine.write(survivor.source, memory, counter=counter)
    async with await engine.register(sink) as local, engine.counter(peer=peer) as bound:
        await engine.read(memory, local)
        assert np.array_equal(sink, survivor.data)
        transfers = [engine.write(survivor.source, each, counter=counter) for each in (memory, plain) * 4]
        wait = bound.wait(1)
        await survivor.kill(pid)
        *written, waited = await asyncio.gather(*transfers, wait, return_exceptions=True)
        assert isinstance(waited, PeerLost)
        assert all(what == nbytes or isinstance(what, PeerLost) for what in written)
        assert isinstance(await asyncio.wait_for(peer.wait_closed(), SOON), PeerLost)
    await eventually(lambda: peer not in engine._peers, "its endpoints are closed")
    await survivor.bury(pid)


@pytest.mark.deadline(180)
async def test_hundred_deaths_leave_nothing(fabric, record_property):
    async with open_survivor(fabric) as survivor:
        pids, sockets = set(), set()
        for number in range(ROUNDS):
            if number == WARM_UP:
                before, resident = footprint()
            pid, peer = await survivor.meet()
            pids.add(pid)
            sockets |= sockets_of(pid)
            await one_round(survivor, pid, peer)
            del peer
        await eventually(lambda: footprint()[0] == before, "everything is given back")
        # Memory of the last round goes back to the system when the allocator likes to give it.
        if not is_sanitized():
            await eventually(lambda: footprint()[1] < resident + GROWTH, f"at most {resident + GROWTH} B are resident")
        after, resident_after = footprint()
        assert bool(sockets) == (survivor.third_peer.fabric == "ipc")
        assert sockets & set(local_sockets().values()) == set()
        assert [name for name in os.listdir("/dev/shm") if any(str(pid) in name for pid in pids)] == []
        for name, value in [*after._asdict().items(), ("rss_before", resident), ("rss_after", resident_after)]:
            record_property(name, value)
    if is_sanitized():
        pytest.skip("all but resident memory was checked: AddressSanitizer keeps what was freed")
