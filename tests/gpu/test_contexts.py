# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Contexts that a program makes for itself, and streams that come and go: nothing of one is taken for another's."""

import asyncio
import gc

import numpy as np
import pytest

from helpers.boards import PAGE, HostBoard, check_shuffled_pages
from helpers.cuda import DeviceStream
from helpers.engines import open_pair
from helpers.require import FAKE_CUDA_LIBRARY
from pplx_async import BrokenResourceError, _streams
from pplx_async._core.words import Lane

pytestmark = pytest.mark.gpu


def renew_stream(library, board):
    """Have the stream that receives be another one, with the handle of the one that it was."""
    first, handle = board.receives, board.receives.ptr
    if library == str(FAKE_CUDA_LIBRARY):
        assert board.device.driver.fake_cuda_renew_stream(board.receives.handle) == 0
        return
    board.receives.close()
    for made in [DeviceStream(board.device) for _ in range(64)]:
        if made.ptr == handle:
            board.receives = made
        else:
            made.close()
    if board.receives is first:
        pytest.skip("this driver has given out no handle twice")


async def test_words_outlast_the_context_whose_stream_came_first(library, device, new_pages):
    for context in (device.own_context(), device.current()):  # one engine after the other, on the same pages
        with context:
            async with open_pair("loopback", cuda_library=library) as pair:
                board = await HostBoard(pair, device).open()
                await board.hand_over()
                board.close()


async def test_memory_of_another_context(library, device):
    """A copy reaches it; a kernel of ours may not, and so isn't taken."""
    content = np.random.default_rng(1).bytes(32 * PAGE)
    ours, back = device.array(content), device.zeros(len(content))
    with device.own_context():
        here, there = device.array(content), device.zeros(len(content))
        await check_shuffled_pages(library, ours, content, [(ours, there), (here, back), (here, there)])


async def test_a_stream_is_not_taken_for_one_that_had_its_handle(library, device):
    async with open_pair("loopback", cuda_library=library) as pair:
        board = await HostBoard(pair, device).open()
        board.counter.gate(board.receives, 1).close()
        await board.idle(board.receives)
        with pytest.raises(BrokenResourceError, match="was let go by a gate"):
            board.b.reached(board.receives)
        renew_stream(library, board)
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


async def test_streams_that_were_used_once_leave_nothing(library, device):
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
