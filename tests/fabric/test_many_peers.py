# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""More peers on tcp;ofi_rxm of a newer libfabric than the kernel's stacked epolls can tell of."""

import resource
import subprocess
import sys

import pytest

from helpers.process import ROOT, environment
from helpers.require import find_fabric

PEERS = 64

PROGRAM = """
import asyncio, sys
from helpers.engines import eventually
import pplx_async

def wakes(engine):
    return engine.explain().domains[0]["wait_fd"]

async def main(library, count):
    options = dict(fabric="tcp;ofi_rxm", library=library, connect_timeout=60, peer_timeout=20)
    async with pplx_async.TransferEngine(**options) as a, pplx_async.TransferEngine(**options) as b:
        peers = [await a.connect(b.address) for _ in range(20)]
        await eventually(lambda: wakes(a) and wakes(b), "a few peers wake the proxy thread")
        assert "wait fds for 25 peers" in str(a.explain())
        peers += await asyncio.gather(*(a.connect(b.address) for _ in range(count - 20)))
        await eventually(lambda: not wakes(a) and not wakes(b), "it is told that there is a timer")
        assert "cannot wake the proxy thread: it is polled every 1 ms" in str(a.explain())
        target = bytearray(8 * count)
        region, counter, local = await b.register(target), b.counter(), await a.register(b"8 bytes.")
        for round in (1, 2):  # the second time when everybody sleeps
            for index, peer in enumerate(peers):
                await a.write(
                    local,
                    peer.region(region.to_bytes())[8 * index : 8 * index + 8],
                    counter=peer.counter(counter.to_bytes()),
                )
            assert await counter.wait(round * count) == round * count
            assert target == b"8 bytes." * count
            target[:] = bytes(len(target))
            await asyncio.sleep(0.3)
        for peer in peers[-(count - 20):]:
            await peer.close()
        await eventually(lambda: wakes(a) and wakes(b), "what is left wakes it again")
        assert len(a.peers) == len(b.peers) == 20
        another = await a.connect(b.address)
        await a.write(local, another.region(region.to_bytes())[:8])
        assert wakes(a)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

# An endpoint of tcp;ofi_rxm has 150 MB of buffers unless it is told otherwise.
SMALL = {"FI_OFI_RXM_MSG_RX_SIZE": "16", "FI_OFI_RXM_BUFFER_SIZE": "256"}


@pytest.mark.fabric
@pytest.mark.deadline(320)
def test_more_peers_than_wait_fds():
    found = find_fabric("tcp")
    if found.missing is not None:
        pytest.skip(found.missing)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip(f"the limit of open files is {hard}: {PEERS} peers take 1500")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, found.options["library"], str(PEERS)],
        cwd=ROOT,
        env=environment(SMALL),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard)),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
