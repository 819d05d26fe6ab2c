# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of GPUs over EFA, as far as the tests' own libfabric is one."""

import asyncio
import contextlib
import ctypes

import numpy as np
import pytest

from helpers.cuda import Device
from helpers.require import FAKE_CUDA_LIBRARY, FAKE_LIBRARY, find_fabric
from pplx_async import RegistrationError, TransferEngine

pytestmark = pytest.mark.asyncio

NBYTES = 1 << 20
DMABUF = 1 << 40  # FI_MR_DMABUF


class Registration(ctypes.Structure):
    """``fake_registration`` of ``fake_efa.h``."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("flags", "address", "nbytes", "offset")),
        *((name, ctypes.c_int) for name in ("iface", "device", "taken", "refused")),
    )


def registered():
    """Say what the library was given last for memory of a GPU."""
    last = Registration()
    ctypes.CDLL(str(FAKE_LIBRARY)).fake_efa_registered(ctypes.byref(last))
    return last


@pytest.fixture
def device():
    if (missing := find_fabric("efa-gpu").missing) is not None:
        pytest.skip(missing)
    return Device(1, str(FAKE_CUDA_LIBRARY))


def engine(**options):
    return TransferEngine(fabric="efa", library=str(FAKE_LIBRARY), cuda_library=str(FAKE_CUDA_LIBRARY), **options)


@contextlib.asynccontextmanager
async def moved(a, b, ours, theirs, **how):
    peer = await a.connect(b.address)
    async with await a.register(ours, **how) as local, await b.register(theirs) as region:
        remote, counter = peer.region(region.to_bytes()), b.counter()
        await a.write(local, remote, counter=peer.counter(counter.to_bytes()))
        await counter.wait(1)
        yield local, remote


@pytest.mark.parametrize(("domains", "where"), [(1, "a GPU"), (2, "a GPU"), (1, "the host")])
async def test_memory_of_a_gpu_goes_over_efa_as_a_dma_buf(device, domains, where):
    gpu = where == "a GPU"
    source = np.random.default_rng(1).bytes(NBYTES)
    ours, theirs = device.array(source), device.zeros(NBYTES) if gpu else bytearray(NBYTES)
    before = registered()
    async with engine(domains=domains) as a, engine(domains=domains) as b:
        domain = a.explain().domains[0]
        assert domain["cuda"]
        assert "GPUs by dma-buf" in domain["description"]
        async with moved(a, b, ours, theirs, access="none") as (local, remote):
            last = registered()
            assert (last.taken - before.taken, last.refused) == (domains * (2 if gpu else 1), before.refused)
            assert (last.flags, last.iface, last.device, last.nbytes, last.offset) == (DMABUF, 1, 1, NBYTES, 0)
            assert (theirs.get() if gpu else bytes(theirs)) == source
            ours.set(bytes(NBYTES))
            await a.read(remote, local)
            assert ours.get() == source


async def test_transfers_go_on_while_it_is_registered(device):
    library = ctypes.CDLL(str(FAKE_LIBRARY))
    async with (
        engine() as a,
        engine() as b,
        moved(a, b, bytearray(NBYTES), bytearray(NBYTES)) as (local, remote),
    ):
        library.fake_efa_hold(1)
        try:
            registering = asyncio.create_task(a.register(device.zeros(4096)))
            for _ in range(20):
                await a.write(local, remote)
            assert not registering.done()
        finally:
            library.fake_efa_hold(0)
        await (await registering).close()


async def test_many_are_registered_and_given_back(device):
    async with engine(domains=2) as a:
        before = registered().taken
        many = await asyncio.gather(*(a.register(device.zeros(4096)) for _ in range(20)))
        assert registered().taken == before + 40
        assert all(one.register_seconds > 0 for one in many)
        await asyncio.gather(*(one.close() for one in many))


async def test_an_older_libfabric_gets_the_address(device, monkeypatch):
    monkeypatch.setenv("FAKE_EFA_VERSION", "17")
    source = np.random.default_rng(2).bytes(NBYTES)
    ours, theirs = device.array(source), device.zeros(NBYTES)
    async with engine() as a, engine() as b:
        assert "GPUs by address" in a.explain().domains[0]["description"]
        async with moved(a, b, ours, theirs):
            last = registered()
            assert (last.flags, last.iface, last.device, last.nbytes) == (0, 1, 1, NBYTES)
            assert theirs.get() == source


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"FAKE_EFA_CUDA": None}, "built without CUDA"),
        ({"FAKE_EFA_P2P": "0"}, "FI_OPT_CUDA_API_PERMITTED"),
        ({"FAKE_EFA_DMABUF": "0", "FAKE_EFA_PEER": "0"}, "as a dma-buf: .*; by its address: .*efa_nv_peermem"),
    ],
)
async def test_a_nic_that_can_not_reach_it_says_why(device, monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    async with engine() as a, engine() as b:
        with pytest.raises(RegistrationError, match=said):
            await a.register(device.zeros(4096))
        theirs = bytearray(NBYTES)
        async with moved(a, b, bytearray(b"x" * NBYTES), theirs):  # that of the host goes all the same
            assert theirs == b"x" * NBYTES
