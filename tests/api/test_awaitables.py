# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Transfers and counter waits under every tool of asyncio."""

import asyncio
import contextvars
import gc
import threading

import pytest
import pytest_asyncio

from helpers.engines import SOON, connect, engine_on, open_pair
from pplx_async import ClosedResourceError, PeerLost, Transfer

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZE = 100_000


@pytest_asyncio.fixture(loop_scope="module")
async def ends(pair):
    source, target = await pair.source(SIZE), await pair.target(SIZE)
    return source, target.remote


async def test_gather(pair, ends):
    assert await asyncio.gather(*(pair.a.write(*ends) for _ in range(20))) == [SIZE] * 20


async def test_wait_for(pair, ends):
    assert await asyncio.wait_for(pair.a.write(*ends), SOON) == SIZE
    counter, _ = pair.counter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(counter.wait(1), 0.02)
    assert counter.value == 0


async def test_timeout(pair, ends):
    async with asyncio.timeout(SOON):
        assert await pair.a.write(*ends) == SIZE
    counter, _ = pair.counter()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await counter.wait(1)


async def test_shield(pair, ends):
    assert await asyncio.shield(pair.a.write(*ends)) == SIZE
    counter, remote = pair.counter()
    wait = counter.wait(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(wait), 0.02)
    assert not wait.done()
    await pair.a.notify(remote)
    assert await wait == 1


async def test_task_group(pair, ends):
    async def write():
        return await pair.a.write(*ends)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(write()) for _ in range(10)]
    assert [task.result() for task in tasks] == [SIZE] * 10


async def test_failing_task_group_cancels_a_wait(pair):
    counter, _ = pair.counter()
    wait = counter.wait(1)

    async def waiting():
        await wait

    async def failing():
        await asyncio.sleep(0.01)
        raise LookupError("this one")

    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(waiting())
            group.create_task(failing())
    assert [type(error) for error in caught.value.exceptions] == [LookupError]
    assert wait.cancelled()


async def test_as_completed(pair, ends):
    results = [await each for each in asyncio.as_completed([pair.a.write(*ends) for _ in range(10)], timeout=SOON)]
    assert results == [SIZE] * 10


async def test_wait(pair, ends):
    counter, remote = pair.counter()
    waits = {counter.wait(1), counter.wait(2)}
    await pair.a.notify(remote)
    done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=SOON)
    assert len(done) == len(pending) == 1
    await pair.a.notify(remote)
    await asyncio.wait(pending, timeout=SOON)
    assert all(wait.done() for wait in waits)


async def test_ensure_future_and_isfuture(pair, ends):
    transfer = pair.a.write(*ends)
    assert isinstance(transfer, Transfer)
    assert asyncio.isfuture(transfer)
    assert asyncio.ensure_future(transfer) is transfer
    assert transfer.get_loop() is asyncio.get_running_loop()
    await transfer


async def test_methods_of_a_future(pair, ends):
    transfer = pair.a.write(*ends)
    assert not transfer.done()
    for method in (transfer.result, transfer.exception):
        with pytest.raises(asyncio.InvalidStateError):
            method()
    called = []
    transfer.add_done_callback(called.append)
    transfer.add_done_callback(print)
    assert transfer.remove_done_callback(print) == 1
    assert "in flight" in repr(transfer)
    assert await transfer == SIZE
    await asyncio.sleep(0)
    assert called == [transfer]
    transfer.add_done_callback(called.append)
    await asyncio.sleep(0)
    assert called == [transfer] * 2
    assert transfer.done()
    assert not transfer.cancelled()
    assert transfer.result() == SIZE
    assert transfer.exception() is None
    assert not transfer.cancel()
    assert "released" in repr(transfer)


async def test_awaiting_a_done_transfer_does_not_suspend(pair, ends):
    transfer = pair.a.write(*ends)
    await transfer
    ran = []
    asyncio.get_running_loop().call_soon(ran.append, True)
    for _ in range(3):
        assert await transfer == SIZE
    assert ran == []
    await asyncio.sleep(0)
    assert ran == [True]


async def test_many_tasks_await_one_transfer(pair, ends):
    transfer = pair.a.write(*ends)

    async def waiting():
        return await transfer

    assert await asyncio.gather(*(waiting() for _ in range(10))) == [SIZE] * 10


async def test_callback_that_raises_hurts_only_itself(pair, ends):
    problems = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context["exception"]))

    def bad(_):
        raise LookupError("mine")

    transfers = [pair.a.write(*ends) for _ in range(5)]
    transfers[2].add_done_callback(bad)
    assert await asyncio.gather(*transfers) == [SIZE] * 5
    await asyncio.sleep(0)
    assert [type(problem) for problem in problems] == [LookupError]
    loop.set_exception_handler(None)


async def test_callbacks_are_called_in_order_each_in_its_context(pair, ends):
    variable = contextvars.ContextVar("variable", default="none")
    called = []

    def note(name):
        return lambda transfer: called.append((name, variable.get(), transfer.done()))

    transfers = [pair.a.write(*ends) for _ in range(3)]
    for number, transfer in enumerate(transfers):
        for name in ("first", "second", "third"):
            context = contextvars.copy_context()
            context.run(variable.set, number)
            transfer.add_done_callback(note(name), context=context)
        removed = note("removed")
        transfer.add_done_callback(removed)
        assert transfer.remove_done_callback(removed) == 1
        assert transfer.remove_done_callback(removed) == 0
    await asyncio.wait(transfers)
    await asyncio.sleep(0)
    for number in range(3):
        of_one = [name for name, value, done in called if value == number and done]
        assert of_one == ["first", "second", "third"]
    assert len(called) == 9


async def test_first_callback_can_be_removed(pair, ends):
    called = []
    transfer = pair.a.write(*ends)
    transfer.add_done_callback(print)
    transfer.add_done_callback(called.append)
    assert transfer.remove_done_callback(print) == 1
    await transfer
    await asyncio.sleep(0)
    assert called == [transfer]


async def test_it_steps_like_an_iterator(pair, ends):
    transfer = pair.a.write(*ends)
    await transfer
    with pytest.raises(StopIteration) as stopped:
        next(iter(transfer))
    assert stopped.value.value == SIZE

    async def through_a_generator():
        return await _Delegating(transfer)

    assert await through_a_generator() == SIZE


class _Delegating:
    def __init__(self, awaitable):
        self.awaitable = awaitable

    def __await__(self):
        return (yield from self.awaitable.__await__())


async def test_release_callbacks(pair, ends):
    transfer = pair.a.write(*ends)
    called = []
    transfer.add_release_callback(called.append)
    await transfer
    await asyncio.sleep(0)
    transfer.add_release_callback(called.append)
    await asyncio.sleep(0)
    assert called == [transfer, transfer]


async def test_unretrieved_failure_is_logged(fabric):
    async with open_pair(fabric) as pair:
        problems = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        counter = pair.b.counter(peer=pair.ba)
        forgotten, retrieved, awaited = counter.wait(1), counter.wait(1), counter.wait(1)
        await counter.close()
        assert isinstance(retrieved.exception(), ClosedResourceError)
        with pytest.raises(ClosedResourceError):
            await awaited
        await asyncio.sleep(0)
        assert problems == []
        del forgotten, retrieved, awaited
        gc.collect()
        assert [type(problem["exception"]) for problem in problems] == [ClosedResourceError]
        assert "nobody awaited it" in problems[0]["message"]


async def test_forgotten_transfer_finishes(pair, ends):
    counter, remote = pair.counter()
    pair.a.write(*ends, counter=remote)
    gc.collect()
    assert await asyncio.wait_for(counter.wait(1), SOON) == 1


async def test_wrong_thread_is_refused(pair, ends):
    source, remote = ends
    _, remote_counter = pair.counter()
    problems = []

    def elsewhere():
        for call in (
            lambda: pair.a.write(source, remote),
            lambda: pair.a.read(remote, source),
            lambda: pair.a.write_pages(source, remote, page_nbytes=1, local_pages=[0], remote_pages=[0]),
            lambda: pair.a.batch(),
            lambda: pair.a.notify(remote_counter),
            lambda: pair.ab.send(b"x"),
            lambda: pair.a.counter(),
        ):
            try:
                call()
            except RuntimeError as error:
                problems.append(str(error))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert len(problems) == 7
    assert all("thread" in problem for problem in problems)
    assert pair.a.stats().inflight == 0
    await pair.write(10)


async def test_value_may_be_read_on_another_thread(pair):
    counter, remote = pair.counter()
    await pair.a.notify([remote] * 3)
    await counter.wait(3)
    assert await asyncio.to_thread(lambda: counter.value) == 3


async def test_two_loops_in_two_threads(fabric):
    """An engine belongs to its loop; another loop has an engine of its own."""
    ready, done, failures = threading.Event(), threading.Event(), []
    addresses = []

    async def other():
        async with engine_on(fabric, name="other") as engine:
            addresses.append(engine.address)
            ready.set()
            await asyncio.wait_for(engine.accept(), SOON)
            async for message in engine.messages():
                assert message.data == b"from another loop"
                await message.peer.send(b"and back")
                break
            while not done.is_set():
                await asyncio.sleep(0.005)

    def thread():
        try:
            asyncio.run(other())
        except BaseException as error:
            failures.append(error)
            ready.set()

    worker = threading.Thread(target=thread)
    worker.start()
    try:
        assert await asyncio.to_thread(ready.wait, SOON)
        assert failures == []
        async with engine_on(fabric, name="ours") as engine:
            peer = await engine.connect(addresses[0])
            await peer.send(b"from another loop")
            async with asyncio.timeout(SOON):
                async for message in engine.messages():
                    assert message.data == b"and back"
                    break
            done.set()
            await asyncio.to_thread(worker.join, SOON)
    finally:
        done.set()
        worker.join(SOON)
    assert failures == []
    assert not worker.is_alive()


async def test_many_engines_in_one_loop(fabric):
    async with engine_on(fabric, name="0") as e0, engine_on(fabric, name="1") as e1, engine_on(fabric, name="2") as e2:
        peers = [await connect(a, b) for a, b in ((e0, e1), (e1, e2), (e2, e0))]
        for sender, _ in peers:
            assert await sender.send(b"round") == 5
        for engine in (e0, e1, e2):
            async with asyncio.timeout(SOON):
                async for message in engine.messages():
                    assert message.data == b"round"
                    break


async def test_engine_in_a_task_that_is_cancelled(fabric):
    opened = asyncio.Event()

    async def user():
        async with engine_on(fabric) as engine:
            region = await engine.register(bytearray(10))
            assert region.is_open
            opened.set()
            await engine.accept()

    task = asyncio.create_task(user())
    async with asyncio.timeout(SOON):
        await opened.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_failure_is_raised_by_every_await(fabric):
    async with open_pair(fabric) as pair:
        counter = pair.b.counter()
        wait = counter.wait(1)
        await counter.close()
        for _ in range(3):
            with pytest.raises(ClosedResourceError):
                await wait
        with pytest.raises(ClosedResourceError):
            wait.result()
        assert isinstance(wait.exception(), (ClosedResourceError, PeerLost))
