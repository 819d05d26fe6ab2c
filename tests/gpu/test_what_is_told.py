# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What explain() says of memory of GPUs."""

import glob
import os

import pytest

from pplx_async import RegistrationError, TransferEngine

pytestmark = pytest.mark.asyncio


async def test_ipc_says_that_it_takes_memory_of_gpus(library, device):
    async with TransferEngine(fabric="ipc", cuda_library=library) as engine:
        domain = engine.explain().domains[0]
        assert domain["cuda"]
        assert "GPU memory by CUDA IPC" in domain["description"]
        async with await engine.register(device.zeros(4096)):
            pass


async def test_ipc_says_that_it_does_not_where_there_is_no_library(tmp_path):
    async with TransferEngine(fabric="ipc", cuda_library=str(tmp_path / "libcuda.so.1")) as engine:
        domain = engine.explain().domains[0]
        assert not domain["cuda"]
        assert "GPU" not in domain["description"]


async def test_ipc_says_that_it_does_not_where_there_is_no_gpu():
    if glob.glob("/dev/nvidia[0-9]*") or os.path.exists("/dev/dxg"):
        pytest.skip("this machine has a GPU")
    async with TransferEngine(fabric="ipc") as engine:
        assert not engine.explain().domains[0]["cuda"]


async def test_a_driver_without_a_gpu_is_found_out_at_the_first_registration(fake, device, monkeypatch):
    memory = device.zeros(4096)
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    async with TransferEngine(fabric="ipc", cuda_library=fake) as engine:
        with pytest.raises(RegistrationError, match="NO_DEVICE"):
            await engine.register(memory)


class Part:
    """A piece of an allocation, as a pool hands it out."""

    def __init__(self, whole, at, nbytes):
        self.whole, self.nbytes = whole, nbytes
        self.address = whole.address + at

    @property
    def __cuda_array_interface__(self):
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}


async def test_what_registering_costs_is_counted(fake, device):
    """Of one allocation the driver is asked for a handle once, however many regions lie in it."""
    pool = device.zeros(1 << 20)
    async with TransferEngine(fabric="ipc", cuda_library=fake) as engine:
        first = await engine.register(Part(pool, 0, 4096))
        before, handles = engine.stats(), device.driver.fake_cuda_handles()
        regions = [await engine.register(Part(pool, at, 4096)) for at in range(4096, 10 * 4096, 4096)]
        after = engine.stats()
        assert after.registrations - before.registrations == len(regions)
        cost = sum(region.register_seconds for region in regions)
        assert after.register_ns - before.register_ns == pytest.approx(cost * 1e9)
        assert device.driver.fake_cuda_handles() == handles
        for region in (first, *regions):
            await region.close()
