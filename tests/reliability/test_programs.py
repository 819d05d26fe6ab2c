# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Programs with bugs: what raises, dies, submits where it should not, or goes to another thread hurts only itself."""

import asyncio
import contextlib
import contextvars
import gc
import signal
import threading
import time
import warnings

import numpy as np
import pytest
import uvloop

from helpers.engines import SOON, engine_on, eventually, open_pair, pattern
from helpers.things import Things
from pplx_async import CleanupWarning, ClosedResourceError, LeakWarning

SIZE = 4096
LARGE = 128 << 10  # the proxy's

wakeups = pytest.mark.parametrize("wakeup", ["eventfd", "spin"])


class Mine(Exception):
    """What the programs of these tests fail with."""


class Worse(BaseException):
    """No Exception, and no interrupt either."""


@contextlib.contextmanager
def problems():
    """Collect what the loop's exception handler is told, instead of failing the test for it."""
    loop, told = asyncio.get_running_loop(), []
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: told.append(context.get("exception")))
    try:
        yield told
    finally:
        loop.set_exception_handler(before)


def fail(*_):
    raise Mine


def fail_worse(*_):
    raise Worse


# ---- what raises ----


@wakeups
@pytest.mark.parametrize("nbytes", [SIZE, LARGE])
async def test_callback_that_raises_hurts_only_itself(fabric, wakeup, nbytes):
    async with open_pair(fabric, wakeup=wakeup) as pair:
        data = pattern(nbytes)
        source, target = await pair.source(data), await pair.target(nbytes)
        counter, remote = pair.counter()
        called = []
        with problems() as told:
            transfers = [pair.a.write(source, target.remote, counter=remote) for _ in range(30)]
            waits = [counter.wait(number + 1) for number in range(30)]
            for number, promise in enumerate([*transfers, *waits]):
                promise.add_done_callback(lambda _, number=number: called.append(number))
                if number % 3 == 0:
                    promise.add_done_callback(fail)
                if number % 5 == 0:
                    promise.add_done_callback(fail_worse)
                promise.add_done_callback(lambda _, number=number: called.append(number))
            for transfer in transfers[::7]:
                transfer.add_release_callback(fail)
            async with asyncio.timeout(SOON):
                assert await asyncio.gather(*transfers) == [nbytes] * 30
                await asyncio.gather(*waits)
                await eventually(lambda: len(called) == 120, "every other callback is called")
                await eventually(lambda: len(told) == 20 + 12 + 5, "the loop is told of those that raised")
        assert {type(problem) for problem in told} == {Mine, Worse}
        assert sorted(called) == sorted([*range(60), *range(60)])
        assert np.array_equal(target.array, data)
        assert counter.value == 30
        await pair.write(SIZE)


@wakeups
async def test_task_that_raises_takes_nobody_with_it(fabric, wakeup):
    """Of many tasks that are woken together some raise, some are cancelled, some raise what is no Exception."""
    async with open_pair(fabric, wakeup=wakeup) as pair:
        source, target = await pair.source(pattern(SIZE)), await pair.target(SIZE)
        counter, remote = pair.counter()

        async def work(number):
            await (pair.a.write(source, target.remote, counter=remote) if number % 2 else counter.wait(10))
            if number % 5 == 0:
                raise Mine
            if number % 7 == 0:
                raise asyncio.CancelledError
            if number % 11 == 0:
                raise Worse
            return number

        tasks = [asyncio.create_task(work(number)) for number in range(60)]
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), SOON)
        for number, end in enumerate(ends):
            expected = Mine if number % 5 == 0 else asyncio.CancelledError if number % 7 == 0 else Worse
            assert end == number or type(end) is expected
        assert await asyncio.wait_for(counter.wait(30), SOON) == 30
        assert pair.a.stats().inflight == 0
        await pair.write(SIZE)


@pytest.mark.parametrize("end", [SystemExit(3), KeyboardInterrupt()], ids=repr)
async def test_end_of_the_program_leaves_a_scope_as_it_is(fabric, end):
    """Not in a group, where nobody would take it for one; and when the memory is released, as always."""
    async with open_pair(fabric) as pair:
        source, target = await pair.source(pattern(LARGE)), await pair.target(LARGE)
        transfers = []
        with pytest.raises(type(end)) as caught:
            async with pair.a.scope() as scope:
                transfers += [scope.write(source, target.remote) for _ in range(20)]
                raise end
        assert caught.value is end
        assert all(transfer.released for transfer in transfers)
        await pair.write(SIZE)


async def test_callback_may_do_anything(fabric):
    """Submit, cancel, await elsewhere, close: from within the engine's own settling."""
    async with open_pair(fabric) as pair:
        source, target = await pair.source(pattern(SIZE)), await pair.target(SIZE)
        extra = await pair.a.register(bytearray(100))
        counter, remote = pair.counter()
        rounds, ended, tasks, victims = 300, asyncio.Event(), [], []

        def go_on(transfer):
            nonlocal rounds
            assert transfer.result() == SIZE
            rounds -= 1
            if rounds == 0:
                return ended.set()
            following = pair.a.write(source, target.remote, counter=remote)
            following.add_done_callback(go_on)
            if not following.done():
                following.add_done_callback(fail)
                assert following.remove_done_callback(fail) == 1
            if rounds % 50 == 0:
                victims.append(pair.a.write(source, target.remote))
                victims[-1].cancel()
                tasks.append(asyncio.ensure_future(pair.a.register(bytearray(100))))
            if rounds == 100:
                tasks.append(asyncio.ensure_future(extra.close()))
                transfer.add_done_callback(lambda _: victims.append(pair.a.notify(remote)))

        pair.a.write(source, target.remote, counter=remote).add_done_callback(go_on)
        await asyncio.wait_for(ended.wait(), SOON)
        regions = [done for done in await asyncio.gather(*tasks) if done is not None]
        await asyncio.gather(*(region.close() for region in regions))
        await asyncio.gather(*victims, return_exceptions=True)
        assert await asyncio.wait_for(counter.wait(301), SOON) == 301
        await pair.write(SIZE)


async def test_callback_in_a_context_that_is_entered_already(fabric):
    """It can't be called there: that is told, and the others are called."""
    async with open_pair(fabric) as pair:
        source, target = await pair.source(pattern(LARGE)), await pair.target(LARGE)
        context, called = contextvars.copy_context(), []
        with problems() as told:
            transfers = [pair.a.write(source, target.remote) for _ in range(3)]

            def nest(_):
                transfers[1].add_done_callback(called.append, context=context)
                # As long as this one runs nobody else can.
                context.run(pair.a._core.drain_done_list)

            transfers[0].add_done_callback(nest, context=context)
            transfers[2].add_done_callback(called.append)
            async with asyncio.timeout(SOON):
                await asyncio.wait(transfers)
                await eventually(lambda: transfers[2] in called, "the others are called")
            await asyncio.sleep(0)
        assert all(isinstance(problem, RuntimeError) for problem in told)
        assert told
        await pair.write(SIZE)


async def test_consumer_of_messages_that_raises_loses_one_message_at_most(fabric):
    async with open_pair(fabric) as pair:
        for number in range(5):
            await pair.ab.send(bytes([number]))
        got = []

        async def consume():
            async for message in pair.b.messages():
                got.append(message.data)
                if len(got) == 2:
                    raise Mine
                if len(got) == 5:
                    return

        async with asyncio.timeout(SOON):
            with pytest.raises(Mine):
                await consume()
            await consume()
        assert sorted(got) == [bytes([number]) for number in range(5)]


async def test_task_that_dies_with_transfers_under_way(fabric):
    """Nobody is left who knows of them, nor of their memory: they go on to the end, and nothing is kept."""
    async with open_pair(fabric) as pair:
        target = await pair.target(LARGE)
        counter, remote = pair.counter()

        async def die():
            region = await pair.a.register(pattern(LARGE))
            for _ in range(20):
                pair.a.write(region, target.remote, counter=remote)
            raise Mine

        with pytest.warns(LeakWarning, match="never closed"):  # noqa: PT031
            with contextlib.suppress(Mine):  # its traceback holds what the task had
                await die()
            assert await asyncio.wait_for(counter.wait(20), SOON) == 20
            gc.collect()
        assert np.array_equal(target.array, pattern(LARGE))
        await eventually(lambda: pair.a.stats().regions == 0, "the region is given back")
        await pair.write(SIZE)


# ---- what ends too early ----


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_loop_closed_with_transfers_pending(fabric, new_loop):
    """A NIC may go on with what is pending: the memory stays where it is, whatever the program does."""
    loop, buffers = new_loop(), [bytearray(1 << 20), bytearray(1 << 20)]

    async def begin():
        things = await Things.open(fabric)
        source, region = await things.a.register(buffers[0]), await things.b.register(buffers[1])
        return things, source, region, things.ab.region(region.to_bytes())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # what is left of the connections is asyncio's
        things, source, region, remote = loop.run_until_complete(begin())
        loop.run_until_complete(loop.shutdown_default_executor())
        transfers, wait = [things.a.write(source, remote) for _ in range(50)], things.counter.wait(10)
        loop.close()
        del source, region, remote
        assert any(not transfer.done() for transfer in transfers)
        for buffer in buffers:
            with pytest.raises(BufferError):
                buffer.extend(b"it may still be the NIC's")
        for transfer in transfers:
            if not transfer.done():
                with pytest.raises(RuntimeError, match="that loop is closed"):
                    transfer.cancel()
                break
        assert wait.cancel()
        del transfers, transfer, wait
        gc.collect()
        for engine in (things.a, things.b):
            with pytest.warns(CleanupWarning, match="event loop of .* was closed before it"):
                asyncio.run(engine.close())
        del things, engine
        gc.collect()
    for buffer in buffers:
        with pytest.raises(BufferError):
            buffer.extend(b"nor is it let go with the engine")


@wakeups
async def test_thousands_of_signals_disturb_nothing(fabric, wakeup):
    """System calls that are interrupted, and Python's handlers in the midst of everything."""
    heard = 0

    def hear(*_):
        nonlocal heard
        heard += 1

    async with open_pair(fabric, wakeup=wakeup) as pair:
        data = pattern(200 * SIZE)
        source, target = await pair.source(data), await pair.target(len(data))
        counter, remote = pair.counter()
        before = signal.signal(signal.SIGALRM, hear)
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        try:
            done = 0
            async with asyncio.timeout(SOON):
                while heard < 500:
                    pieces = [slice(at, at + SIZE) for at in range(0, len(data), SIZE)]
                    await asyncio.gather(*(pair.a.write(source[p], target.remote[p], counter=remote) for p in pieces))
                    await pair.a.write(source, target.remote)
                    done += len(pieces)
                    assert await counter.wait(done) == done
                    async with await pair.a.register(bytearray(100)):
                        pass
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert np.array_equal(target.array, data)
        assert counter.value == done
        assert pair.is_healthy


async def test_register_that_is_cancelled_as_the_engine_closes(fabric):
    """What it takes back is under way then: it is waited for, and not taken for memory that a NIC keeps."""
    for _ in range(10):
        buffers = [bytearray(100) for _ in range(3)]
        async with engine_on(fabric) as engine:
            registers = [asyncio.create_task(engine.register(buffer)) for buffer in buffers]
            await asyncio.sleep(0)  # they have begun
            for task in registers:
                task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*registers, return_exceptions=True)
        )
        for buffer in buffers:
            buffer.extend(b"it is free")


# ---- other threads ----


@wakeups
@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
async def test_awaiting_on_another_loop_is_refused(fabric, wakeup, new_loop):
    """Also where an await would do the NICs' work: that is for the thread of the engine's loop."""
    async with open_pair(fabric, wakeup=wakeup) as pair:
        source, target = await pair.source(pattern(LARGE)), await pair.target(LARGE)
        counter, remote = pair.counter()

        async def wait_for(promise):
            return await promise

        def elsewhere(promise):
            with contextlib.closing(new_loop()) as loop:
                return loop.run_until_complete(wait_for(promise))

        pending, count = [], 0
        while not pending:  # on a fast machine all may be done when the last is submitted
            transfers = [pair.a.write(source, target.remote, counter=remote) for _ in range(5)]
            count += 5
            waits = [counter.wait(count), counter.take(5)]
            # It is all there to be found, but by our loop, which stands.
            deadline = time.monotonic() + SOON
            while counter.value < count and time.monotonic() < deadline:
                time.sleep(0.001)
            pending = [promise for promise in [*transfers, *waits] if not promise.done()]
        for promise in pending:
            assert not promise.done()
            with pytest.raises(RuntimeError, match="attached to a different loop"):
                _standing(elsewhere, promise)
            assert not promise.done()
        async with asyncio.timeout(SOON):
            assert await asyncio.gather(*transfers, *waits) == [LARGE] * 5 + [count, count]
        assert await asyncio.wait_for(pair.a.write(source, target.remote), SOON) == LARGE
        await pair.write(SIZE)


def _standing(function, *arguments):
    """Run it in another thread while our loop stands, so that nothing ends meanwhile."""
    ended = []

    def run():
        try:
            ended.append((function(*arguments), None))
        except Exception as error:
            ended.append((None, error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(SOON)
    ((result, error),) = ended
    if error is not None:
        raise error
    return result


@wakeups
async def test_waits_can_only_be_cancelled_at_home(fabric, wakeup):
    async with open_pair(fabric, wakeup=wakeup) as pair:
        counter, remote = pair.counter()
        wait, take = counter.wait(1), counter.take(1)
        for promise in (wait, take):
            with pytest.raises(RuntimeError, match="this engine belongs to the event loop that it was opened on"):
                _standing(promise.cancel)
        await pair.a.notify(remote)
        async with asyncio.timeout(SOON):
            assert await wait == 1
            assert await take == 1


async def test_what_another_thread_drops_is_given_back(fabric):
    """The collector runs on any thread: regions, transfers that failed, half a batch, and what is of a peer."""
    async with open_pair(fabric) as pair:
        source, target = await pair.source(pattern(LARGE)), await pair.target(LARGE)
        dropped = []
        for _ in range(20):
            counter = pair.b.counter(peer=pair.ba)
            batch = pair.a.batch()
            batch.write(source, target.remote)
            forgotten = counter.wait(1)
            forgotten.cancel()
            written = pair.a.write(source, target.remote)
            dropped += [await pair.a.register(bytearray(100)), batch, pair.ab.counter(counter.to_bytes()), forgotten]
            dropped += [written, pair.ab.region(target.region.to_bytes()), source[10:20]]
            await counter.close()
        del counter, batch, forgotten, written

        def drop():
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                dropped.clear()
                gc.collect()
            return [warning.category for warning in caught]

        assert await asyncio.to_thread(drop) == [LeakWarning] * 20
        await eventually(lambda: pair.a.stats().regions == 1, "the regions are given back")
        await eventually(lambda: pair.a.stats().inflight == 0, "the transfers have ended")
        await pair.write(SIZE)


async def test_engine_of_a_thread_that_has_ended(fabric):
    """It was opened by a loop in a thread that is gone: like any engine whose loop is closed."""
    opened = []

    def run():
        with asyncio.Runner() as runner:
            engine = engine_on(fabric)
            opened.append(engine)
            runner.run(engine.open())

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(thread.join)
    (engine,) = opened
    with pytest.raises(RuntimeError, match="that loop is closed"):
        engine.counter()
    with pytest.warns(CleanupWarning):
        await engine.close()
    with pytest.raises(ClosedResourceError):
        engine.counter()
