# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""TransferEngine.empty: ordinary arrays, which peers of this host may write to without a copy between."""

import gc
import os

import numpy as np
import pytest

from helpers.engines import pattern

pytestmark = pytest.mark.asyncio(loop_scope="module")


def memfds():
    """How many memfds of ours this process has open."""
    links = (
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    )
    return sum("memfd:pplx_async" in link for link in links)


async def test_array_is_zeros_of_the_shape_and_type(pair):
    array = pair.a.empty((3, 5), "f4")
    assert array.shape == (3, 5)
    assert array.dtype == np.float32
    assert not array.any()
    array[:] = 1.5
    assert array.sum() == 22.5


@pytest.mark.parametrize("nbytes", [1, 4096, 100_003, 4 << 20])
async def test_written_and_read_like_any_other(pair, nbytes):
    data = pattern(nbytes, nbytes)
    array = pair.b.empty(nbytes)
    target = await pair.target(array)
    source = await pair.source(data)
    counter, remote = pair.counter()
    await pair.a.write(source, target.remote, counter=remote)
    assert await counter.wait(1) == 1
    assert np.array_equal(array, data)
    back = pair.a.empty(nbytes)
    sink = await pair.source(back)
    await pair.a.read(target.remote, sink)
    assert np.array_equal(back, data)


async def test_part_of_an_array_is_a_region_of_its_own(pair):
    array = pair.b.empty(10_000)
    part = array[1000:3000]
    target = await pair.target(part)
    source = await pair.source(2000)
    await pair.a.write(source, target.remote)
    assert np.array_equal(part, pattern(2000, 1))
    assert not array[:1000].any()
    assert not array[3000:].any()


async def test_memory_goes_with_its_last_user(pair):
    gc.collect()
    before = memfds()
    array = pair.b.empty(1 << 20)
    region = await pair.b.register(array)
    assert memfds() > before
    del array
    assert memfds() > before  # the region holds it
    await region.close()
    del region
    gc.collect()
    assert memfds() == before
