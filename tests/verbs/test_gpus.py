# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of GPUs over NICs, as far as the tests' own libibverbs is one."""

import ctypes

import numpy as np
import pytest

from helpers.cuda import Device
from helpers.require import FAKE_CUDA_LIBRARY, FAKE_VERBS_LIBRARY, find_fabric
from pplx_async import RegistrationError, TransferEngine

pytestmark = pytest.mark.asyncio

NBYTES = 1 << 20


@pytest.fixture
def layout():
    """Say which NICs there are."""
    for fabric in ("verbs-fake", "ipc-gpu"):
        if (missing := find_fabric(fabric).missing) is not None:
            pytest.skip(missing)
    nics = ctypes.CDLL(str(FAKE_VERBS_LIBRARY))

    def set_layout(text):
        assert nics.fake_ibv_layout(text.encode()) == 0

    yield set_layout
    set_layout("fake0 roce gbps=100 ip=10.77.0.1")


@pytest.fixture
def device(layout):
    return Device(0, str(FAKE_CUDA_LIBRARY))


def engine():
    return TransferEngine(fabric="verbs", library=str(FAKE_VERBS_LIBRARY), cuda_library=str(FAKE_CUDA_LIBRARY))


async def test_memory_of_a_gpu_goes_over_a_nic_that_takes_dma_bufs(device, layout):
    layout("x0 roce ip=127.0.0.1 dmabuf")
    source = np.random.default_rng(1).bytes(NBYTES)
    ours, theirs = device.array(source), device.zeros(NBYTES)
    async with engine() as a, engine() as b:
        domain = a.explain().domains[0]
        assert domain["cuda"]
        assert "GPUs by dma-buf" in domain["description"]
        peer = await a.connect(b.address)
        local, remote = await a.register(ours, access="none"), await b.register(theirs)
        counter = b.counter()
        await a.write(local, peer.region(remote.to_bytes()), counter=peer.counter(counter.to_bytes()))
        await counter.wait(1)
        assert theirs.get() == source


async def test_a_nic_that_can_not_reach_it_says_what_would(device, layout):
    layout("x0 roce ip=127.0.0.1")
    async with engine() as a:
        assert not a.explain().domains[0]["cuda"]
        with pytest.raises(RegistrationError, match=r"dma-buf.*nvidia_peermem"):
            await a.register(device.zeros(4096))
