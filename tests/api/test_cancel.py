# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Cancelling: what isn't posted is dropped, CancelledError comes when the memory is released; scopes fence."""

import asyncio
import contextlib

import numpy as np
import pytest

from helpers.engines import eventually, pattern
from pplx_async import BrokenResourceError, TransferScope

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20


async def test_cancelled_await_is_released_before_cancelled_error(pair):
    size = 8 * MIB
    source, target = await pair.source(size), await pair.target(size)

    async def waiting(transfer):
        try:
            await transfer
        except asyncio.CancelledError:
            assert transfer.released
            raise

    cancelled = 0
    while not cancelled:  # all may be done by then, where this thread has waited for a core
        transfers = [pair.a.write(source, target.remote) for _ in range(8)]
        tasks = [asyncio.create_task(waiting(transfer)) for transfer in transfers]
        await asyncio.sleep(0)  # each task has begun to wait
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
        assert all(transfer.released for transfer in transfers)
    # Nothing of them is under way: what is written now stays.
    target.array[:] = 0xAB
    await asyncio.sleep(0.05)
    assert (target.array == 0xAB).all()


async def test_write_is_dropped_whole_or_counted(pair):
    size = MIB
    source, target = await pair.source(size), await pair.target(size)
    counter, remote = pair.counter()
    transfers = [pair.a.write(source, target.remote, counter=remote) for _ in range(40)]
    for transfer in transfers[10:]:
        transfer.cancel()
    results = await asyncio.gather(*transfers, return_exceptions=True)
    whole = sum(result == size for result in results)
    assert whole >= 10
    assert all(result == size or isinstance(result, asyncio.CancelledError) for result in results)
    # Posted writes drain, and count: at least those that say so, at most all. Then it is quiet.
    await counter.wait(whole)
    await pair.a.notify(remote)
    await counter.wait(whole + 1)
    await asyncio.sleep(0.05)
    seen = counter.value
    assert whole + 1 <= seen <= 41
    await asyncio.sleep(0.05)
    assert counter.value == seen
    assert counter.broken is None


async def test_pages_are_dropped_each_whole_or_not(pair):
    page, pages = 4096, 4000
    source, target = await pair.source(pattern(page, 4)), await pair.target(page * pages)
    counter, remote = pair.counter()
    transfer = pair.a.write_pages(
        source, target.remote, page_nbytes=page, local_pages=[0] * pages, remote_pages=range(pages), counter=remote
    )
    await asyncio.sleep(0)
    transfer.cancel()
    cancelled = False
    try:
        await transfer
    except asyncio.CancelledError:
        cancelled = True
    assert transfer.released
    rows = target.array.reshape(pages, page)
    landed = int((rows == pattern(page, 4)).all(axis=1).sum())
    assert int(rows.any(axis=1).sum()) == landed
    assert cancelled == (landed < pages) or landed == pages
    with contextlib.suppress(BrokenResourceError):  # it may be told of those that are missing before it has counted all
        await counter.wait(landed)
    while counter.value < landed:
        await asyncio.sleep(0.001)
    assert counter.value == landed


async def test_cancel_is_asked_for_once(pair):
    source, target = await pair.source(8 * MIB), await pair.target(8 * MIB)
    transfer = pair.a.write(source, target.remote)
    assert transfer.cancel("enough")
    assert not transfer.done()
    assert transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transfer
    assert transfer.cancelled()
    assert not transfer.cancel()
    with pytest.raises(asyncio.CancelledError):
        transfer.result()
    with pytest.raises(asyncio.CancelledError):
        transfer.exception()


async def test_cancelled_read_leaves_its_memory_alone(pair):
    size = 8 * MIB
    target, sink = await pair.target(pattern(size)), np.zeros(size, dtype=np.uint8)
    local = await pair.source(sink)
    transfer = pair.a.read(target.remote, local)
    await asyncio.sleep(0.001)
    transfer.cancel()
    with contextlib.suppress(asyncio.CancelledError):  # it may have been done
        assert await transfer == size
    assert transfer.released
    sink[:] = 7
    await asyncio.sleep(0.05)
    assert (sink == 7).all()


# ---- scopes ----


async def test_scope_waits_for_its_transfers(pair):
    size = 4 * MIB
    data = pattern(size)
    source, target = await pair.source(data), await pair.target(size)
    counter, remote = pair.counter()
    sink = np.zeros(1000, dtype=np.uint8)
    local = await pair.source(sink)
    await pair.a.write(source, target.remote)
    async with pair.a.scope() as scope:
        assert isinstance(scope, TransferScope)
        transfers = [
            scope.write(source, target.remote, counter=remote),
            scope.write_pages(source, target.remote, page_nbytes=100, local_pages=[1], remote_pages=[1]),
            scope.scatter([(source[0:10], target.remote[0:10])]),
            scope.read(target.remote[0:1000], local),
            scope.notify(remote),
        ]
        assert scope.add(pair.a.write(source[0:5], target.remote[0:5])).operation == "write"
    assert all(transfer.released and transfer.exception() is None for transfer in transfers)
    assert await counter.wait(2) == 2
    assert np.array_equal(target.array, data)
    assert np.array_equal(sink, data[:1000])


async def test_exception_in_the_block_cancels_the_others(pair):
    source, target = await pair.source(8 * MIB), await pair.target(8 * MIB)
    transfers = []
    while not any(transfer.cancelled() for transfer in transfers):  # all may be done, where we have waited for a core
        with pytest.raises(ExceptionGroup) as caught:
            async with pair.a.scope() as scope:
                transfers = [scope.write(source, target.remote) for _ in range(10)]
                raise LookupError("mine")
        assert [str(error) for error in caught.value.exceptions] == ["mine"]
        assert all(transfer.released for transfer in transfers)
    target.array[:] = 1
    await asyncio.sleep(0.05)
    assert (target.array == 1).all()


async def test_cancelled_scope_raises_cancelled_error_when_all_is_released(pair):
    source, target = await pair.source(8 * MIB), await pair.target(8 * MIB)
    transfers = []

    async def user():
        async with pair.a.scope() as scope:
            transfers.extend(scope.write(source, target.remote) for _ in range(10))
            await asyncio.sleep(3600)

    task = asyncio.create_task(user())
    await eventually(lambda: transfers, "the scope is under way")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert all(transfer.released for transfer in transfers)


async def test_timeout_around_a_scope(pair):
    source, target = await pair.source(8 * MIB), await pair.target(8 * MIB)
    transfers = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            async with pair.a.scope() as scope:
                while True:
                    transfers.append(scope.write(source, target.remote))
                    await asyncio.sleep(0.0005)
    assert transfers
    assert all(transfer.released for transfer in transfers)
    assert asyncio.current_task().cancelling() == 0


async def test_cancelled_while_leaving(pair):
    source, target = await pair.source(8 * MIB), await pair.target(8 * MIB)
    transfers = []

    async def user():
        async with pair.a.scope() as scope:
            transfers.extend(scope.write(source, target.remote) for _ in range(20))

    task = asyncio.create_task(user())
    await eventually(lambda: transfers, "the scope is being left")
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
    else:
        assert all(transfer.exception() is None for transfer in transfers)
    assert all(transfer.released for transfer in transfers)


async def test_nested_scopes(pair):
    source, target = await pair.source(MIB), await pair.target(MIB)
    outer_transfers, inner_transfers = [], []
    with pytest.raises(ExceptionGroup) as caught:
        async with pair.a.scope() as outer:
            outer_transfers.append(outer.write(source, target.remote))
            async with pair.a.scope() as inner:
                inner_transfers.append(inner.write(source, target.remote))
                raise KeyError("inner")
    assert caught.group_contains(KeyError)
    assert all(transfer.released for transfer in outer_transfers + inner_transfers)


async def test_scope_in_a_task_group_that_fails(pair):
    source, target = await pair.source(8 * MIB), await pair.target(8 * MIB)
    transfers = []

    async def user():
        async with pair.a.scope() as scope:
            transfers.extend(scope.write(source, target.remote) for _ in range(10))
            await asyncio.sleep(3600)

    async def failing():
        await eventually(lambda: transfers, "the scope is under way")
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(user())
            group.create_task(failing())
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError]
    assert all(transfer.released for transfer in transfers)


async def test_misuse_of_a_scope(pair):
    source, target = await pair.source(10), await pair.target(10)
    scope = pair.a.scope()
    with pytest.raises(RuntimeError, match="not entered"):
        scope.add(pair.a.write(source, target.remote))
    async with scope:
        with pytest.raises(ValueError, match="lengths differ"):
            scope.write(source, target.remote[0:5])
    with pytest.raises(RuntimeError, match="entered once"):
        async with scope:
            pass
    with pytest.raises(RuntimeError, match="has been left"):
        scope.add(pair.a.write(source, target.remote))


async def test_empty_scope(pair):
    async with pair.a.scope():
        pass
    with pytest.raises(ExceptionGroup):
        async with pair.a.scope():
            raise ValueError
