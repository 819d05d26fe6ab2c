# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Numbers that kernels increase reach a coroutine; and a coroutine hears when a stream has got somewhere."""

import asyncio
import ctypes
import threading
import time

import pytest

from helpers.engines import SOON, eventually
from pplx_async import ClosedResourceError


def cell(watch):
    return ctypes.c_uint64.from_address(watch.address)


async def test_each_change_is_seen_and_the_last_one_in_any_case(board):
    stream, seen = board.stream(), []
    async with board.b.watch() as watch:
        word = cell(watch)
        assert watch.value == 0

        def count():
            for i in range(1, 5001):
                word.value = i
                if i % 100 == 0:
                    time.sleep(0.0001)

        stream.run(count)
        async with asyncio.timeout(SOON):
            async for old, new in watch:
                seen.append((old, new))
                if new == 5000:
                    break
        assert watch.value == 5000
    assert seen[0][0] == 0
    assert [old for old, _ in seen[1:]] == [new for _, new in seen[:-1]]
    assert all(new > old for old, new in seen)
    await board.no_words()


async def test_a_change_before_anyone_waits_is_seen(board):
    async with board.b.watch() as watch:
        cell(watch).value = 3
        await asyncio.sleep(0.01)
        cell(watch).value = 1 << 40  # all 64 bits of it
        async for old, new in watch:
            assert old == 0
            assert new in (3, 1 << 40)
            if new == 1 << 40:
                break


async def test_a_change_of_the_upper_half_alone_is_seen(board):
    async with board.b.watch() as watch:
        for old, new in ((0, 1 << 32), (1 << 32, 3 << 32)):
            waiting = asyncio.ensure_future(anext(watch))
            await asyncio.sleep(0)  # it waits: only the proxy can wake it
            cell(watch).value = new
            assert await waiting == (old, new)


async def test_ends_with_its_block(board):
    async with board.b.watch() as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert [pair async for pair in watch] == []
    await board.no_words()


async def test_ends_with_the_engine(board):
    async with board.b.watch() as watch:
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        await board.b.close()
        with pytest.raises(StopAsyncIteration):
            await waiting
    with pytest.raises(ClosedResourceError):
        board.b.watch()


async def test_must_be_entered_and_only_once(loopback_board):
    watch = loopback_board.b.watch()
    with pytest.raises(RuntimeError, match="async with"):
        await anext(watch)
    async with watch:
        with pytest.raises(RuntimeError, match="once"):
            await watch.__aenter__()


async def test_cancelled_iteration_loses_nothing(board):
    async with board.b.watch() as watch:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(watch)
        cell(watch).value = 9
        assert await anext(watch) == (0, 9)


async def test_many_watches_are_told_apart(board):
    async with board.b.watch() as first, board.b.watch() as second:
        cell(second).value = 2
        assert await anext(second) == (0, 2)
        assert first.value == 0
        cell(first).value = 1
        assert await anext(first) == (0, 1)
    assert first.address != second.address


async def test_reached_when_the_stream_gets_there(board):
    stream, go = board.stream(), threading.Event()
    stream.run(go.wait, SOON)
    reaching = board.b.reached(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await reaching
    reaching = board.b.reached(stream)
    go.set()
    await reaching
    await board.idle(stream)
    await board.no_words()
    for _ in range(200):
        await board.b.reached(stream)


async def test_reached_is_nothing_to_capture(board):
    stream = board.stream()
    with stream.capture() as graph, pytest.raises(ValueError, match="captured"):
        board.b.reached(stream)
    graph.launch()
    await board.b.reached(stream)


async def test_several_engines_share_a_stream(board):
    stream = board.stream()
    gate = board.counter.gate(stream, 1)
    there, here = board.a.reached(stream), board.b.reached(stream)
    await board.write()
    await asyncio.gather(gate.wait(), there, here)
    # A lane is one engine's: what poisons it there is none of the other's business.
    gate = board.counter.gate(stream, 1)
    gate.close()
    await eventually(lambda: board.b._lane(stream).is_poisoned, "b has let it go")
    await board.a.reached(stream)
