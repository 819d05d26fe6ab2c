# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Contexts that a program makes for itself, and streams that come and go: nothing of one is taken for another's."""

import asyncio
import gc

import numpy as np
import pytest

from helpers.boards import HostBoard
from helpers.cuda import DeviceStream
from helpers.engines import open_pair
from pplx_async import BrokenResourceError, TransferEngine, _streams
from pplx_async._core.words import Lane

pytestmark = pytest.mark.gpu


async def test_words_outlast_the_context_whose_stream_came_first(library, device, new_pages):
    with device.own_context():
        async with open_pair("loopback", cuda_library=library) as pair:
            board = await HostBoard(pair, device).open()
            gate = board.counter.gate(board.receives, 1)
            await board.write(after=board.sends)
            await gate
            await board.idle(board.receives, board.sends)
            board.close()
    async with open_pair("loopback", cuda_library=library) as pair:  # the same pages
        board = await HostBoard(pair, device).open()
        gate = board.counter.gate(board.receives, 1)
        await board.write(after=board.sends)
        await gate
        await board.idle(board.receives, board.sends)
        board.close()


async def test_memory_of_another_context(library, device):
    """A copy reaches it; a kernel of ours may not, and so isn't taken."""
    page, pages = 4096, 32
    content = np.random.default_rng(1).bytes(page * pages)
    order = np.random.default_rng(2).permutation(pages)
    expected = np.frombuffer(content, dtype=np.uint8).reshape(pages, page)[order].tobytes()
    ours, back = device.array(content), device.zeros(page * pages)
    with device.own_context():
        here, there = device.array(content), device.zeros(page * pages)
        async with (
            TransferEngine(fabric="ipc", cuda_library=library) as a,
            TransferEngine(fabric="ipc", cuda_library=library) as b,
        ):
            peer = await a.connect(b.address)
            for source, target in ((ours, there), (here, back), (here, there)):
                async with await a.register(ours), await a.register(source) as local, await b.register(target) as to:
                    target.set(bytes(page * pages))
                    await a.write_pages(
                        local,
                        peer.region(to.to_bytes()),
                        page_nbytes=page,
                        local_pages=order,
                        remote_pages=np.arange(pages),
                    )
                    assert target.get() == expected


async def test_a_stream_is_not_taken_for_one_that_had_its_handle(fake, device):
    async with open_pair("loopback", cuda_library=fake) as pair:
        board = await HostBoard(pair, device).open()
        board.counter.gate(board.receives, 1).close()
        await board.idle(board.receives)
        with pytest.raises(BrokenResourceError, match="was let go by a gate"):
            board.b.reached(board.receives)
        assert device.driver.fake_cuda_renew_stream(board.receives.handle) == 0
        await board.b.reached(board.receives)
        board.close()


async def test_a_capture_of_another_stream_is_not_disturbed(library, device):
    """Nor does it keep anybody from knowing which stream that is."""
    async with open_pair("loopback", cuda_library=library) as pair:
        board = await HostBoard(pair, device).open()
        with board.receives.capture() as graph:
            gate = board.counter.gate(board.receives, 1)
            assert _streams.find(board.sends, library).id != 0
            await board.a.reached(board.sends)
        graph.launch()
        await board.write()
        await gate.wait(1)
        gate.close()
        await board.idle(board.receives)
        board.close()


async def test_default_streams_of_two_gpus_are_two(library, device, second):
    ours = _streams.find(0, library)
    assert _streams.find(1, library).key == ours.key  # the legacy default stream has two handles
    with second.current():
        theirs = _streams.find(0, library)
    assert ours.key != theirs.key
    assert ours.context
    assert theirs.context


async def test_streams_that_are_gone_leave_nothing(library, device):
    def lanes():
        return sum(isinstance(each, Lane) for each in gc.get_objects())

    async with open_pair("loopback", cuda_library=library) as pair:
        board = await HostBoard(pair, device).open()
        board.counter.gate(board.receives, 1).close()  # it is let go, and that stays known
        await board.idle(board.receives)
        before, kept = lanes(), []
        for _ in range(300):
            stream = DeviceStream(device)
            await board.b.reached(stream)
            kept.append(stream)
        assert lanes() - before < 150
        with pytest.raises(BrokenResourceError):
            board.b.reached(board.receives)
        board.b.rearm(board.receives)
        for stream in kept:
            stream.close()
        board.close()


async def test_each_gpu_has_queues_of_its_own(library, device, second, monkeypatch, recwarn):
    monkeypatch.setenv(_streams.QUEUES, "3")
    monkeypatch.setattr(_streams, "_queues", None)
    ours = [DeviceStream(device) for _ in range(2)]
    with second.current():
        theirs = [DeviceStream(second) for _ in range(2)]
    async with open_pair("loopback", cuda_library=library) as pair:
        board = await HostBoard(pair, device).open()
        gates = [board.counter.gate(stream, 1) for stream in (*ours, *theirs)]
        assert [warning.category for warning in recwarn if warning.category is RuntimeWarning] == []
        for _ in gates:
            await board.write()
        await asyncio.gather(*gates)
        await board.idle(*ours, *theirs)
        board.close()
    for stream in (*ours, *theirs):
        stream.close()
