# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What EFA has written into memory of a GPU that does not order it, and a stream that waits for it in a gate."""

import ctypes

import numpy as np
import pytest

from helpers.cuda import Device, DeviceStream
from helpers.engines import eventually, open_pair
from helpers.require import FAKE_CUDA_LIBRARY

pytestmark = [pytest.mark.fabrics("efa-gpu")]

NBYTES = 1 << 16


@pytest.mark.parametrize(("flush", "rule"), [(1, "proxy"), (3, "stream")])
async def test_what_is_behind_a_gate_sees_what_it_waited_for(fabric, monkeypatch, flush, rule):
    monkeypatch.setenv("FAKE_CUDA_ORDERING", "0")
    monkeypatch.setenv("FAKE_CUDA_FLUSH", str(flush))
    device = Device(0, str(FAKE_CUDA_LIBRARY))
    content = np.random.default_rng(1).bytes(NBYTES)
    ours, theirs, copy = device.array(content), device.zeros(NBYTES), device.zeros(NBYTES)
    stream = DeviceStream(device)
    calls = device.driver.fake_cuda_flushes()
    async with open_pair(fabric) as pair:
        source, target = await pair.a.register(ours), await pair.b.register(theirs)
        counter, remote = pair.counter()
        assert pair.b.explain().domains[0]["gpu_flush"] == {0: rule}
        gate = counter.gate(stream, 1)
        stream.copy(copy, theirs)
        await pair.a.write(source, pair.ab.region(target.to_bytes()), counter=remote)
        await gate
        await eventually(lambda: stream.is_idle, "the stream comes to rest")
        assert copy.get() == content
        await source.close()
        await target.close()
    assert device.driver.fake_cuda_flushes() - calls == (1 if rule == "proxy" else 0)
    stream.close()
    device.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
