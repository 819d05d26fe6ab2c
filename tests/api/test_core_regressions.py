# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What once went wrong between the C core and the event loop."""

import asyncio
import gc
import os
import traceback
import weakref

import numpy as np
import pytest

from helpers.engines import SOON, engine_on, eventually, open_pair, pattern
from helpers.process import run_program
from pplx_async import ClosedResourceError, PeerLost, ProviderUnavailable, _loop
from pplx_async._core.memory import Registration
from pplx_async._intake import take

pytestmark = pytest.mark.asyncio(loop_scope="module")


def depth(error):
    return len(traceback.extract_tb(error.__traceback__))


# ---- takes ----


async def grant(pair, counter, remote):
    """Let one more write be counted, in a turn of the loop in which nobody looks at the result."""
    goal = counter.value + 1
    granted = asyncio.Event()
    counter.wait(goal).add_done_callback(lambda _: granted.set())
    await pair.a.notify(remote)
    await eventually(lambda: counter.value == goal, "the notification is counted")
    await asyncio.wait_for(granted.wait(), SOON)


async def test_take_that_was_served_can_be_cancelled_until_its_result_is_seen(pair):
    counter, remote = pair.counter()
    take, following = counter.take(1), counter.take(1)
    await grant(pair, counter, remote)
    assert take.done()
    assert take.exception() is None  # a look, as gather's, which does not take anything home
    assert take.cancel("changed my mind")
    assert take.cancelled()
    assert not take.cancel()
    with pytest.raises(asyncio.CancelledError, match="changed my mind"):
        await take
    assert await asyncio.wait_for(following, SOON) == 1  # the next one in line has it
    assert not following.cancel()
    assert counter.available == 0


async def test_cancelled_task_leaves_the_take_that_was_served_meanwhile(pair):
    counter, remote = pair.counter()

    async def taking():
        await counter.take(1)

    task = asyncio.create_task(taking())
    await asyncio.sleep(0)
    served = counter.wait(1)
    # This callback runs in the turn in which the task is woken, and before it.
    served.add_done_callback(lambda _: task.cancel())
    await pair.a.notify(remote)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert counter.available == 1
    assert await asyncio.wait_for(counter.take(1), SOON) == 1


async def test_cancelled_gather_gives_all_of_its_takes_back(pair):
    counter, remote = pair.counter()
    both = asyncio.gather(counter.take(1), counter.take(5))
    await grant(pair, counter, remote)
    await asyncio.sleep(0.01)
    both.cancel()
    with pytest.raises(asyncio.CancelledError):
        await both
    assert counter.available == 1


async def test_counts_that_would_wrap_are_refused(pair):
    counter, _ = pair.counter()
    for count in (2**60 + 1, 2**61, 2**64, 2**80):
        with pytest.raises(ValueError, match="at most"):
            counter.wait(count)
        with pytest.raises(ValueError, match="at most"):
            counter.take(count)
    for wait in (counter.wait(2**60), counter.take(2**60)):
        await asyncio.sleep(0)
        assert not wait.done()
        assert wait.cancel()


async def test_waits_in_the_child_of_a_fork_fail():
    program = """
import asyncio, os, pplx_async
async def main():
    async with pplx_async.TransferEngine(fabric="loopback") as engine:
        counter = engine.counter()
        pid = os.fork()
        if pid == 0:
            told = 0
            for call in (counter.wait, counter.take):
                try:
                    call(1)
                except pplx_async.ClosedResourceError:
                    told += 1
            os._exit(40 + told)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
asyncio.run(main())
"""
    done = await asyncio.to_thread(run_program, program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["42"]


# ---- exceptions ----


async def test_tracebacks_do_not_grow(fabric):
    async with open_pair(fabric) as pair:
        counter, _ = pair.counter()
        wait = counter.wait(1)
        pair.ab._record.lose("killed")
        pair.ba._record.lose("killed")
        await pair.ab.wait_closed()
        await pair.ba.wait_closed()
        depths = set()
        for _ in range(5):
            with pytest.raises(PeerLost) as refused:
                pair.a._core.send(pair.ab._record, b"x")
            with pytest.raises(PeerLost) as short:
                await counter.wait(1)
            with pytest.raises(PeerLost) as repeated:
                wait.result()
            depths.add((depth(refused.value), depth(short.value), depth(repeated.value)))
            assert refused.value is not pair.ab.lost
            assert refused.value.__cause__ is pair.ab.lost
            assert refused.value.reason == pair.ab.lost.reason
        assert len(depths) == 1
        assert depth(pair.ab.lost) == 0


@pytest.mark.parametrize("by_handler", [True, False], ids=["handler", "callback"])
async def test_interrupt_loses_nothing_that_has_finished(fabric, by_handler):
    """Whether a callback raises it, or the loop's exception handler when a callback has failed."""

    def interrupt(*_):
        raise KeyboardInterrupt

    def fail(*_):
        raise LookupError("mine")

    loop = asyncio.get_running_loop()
    async with open_pair(fabric) as pair:
        core, before = pair.b._core, loop.get_exception_handler()
        counter, remote = pair.counter()
        wait = counter.wait(1)
        on_message = core.on_message
        core.on_message = fail if by_handler else interrupt
        loop.set_exception_handler(interrupt if by_handler else before)
        _loop.detach(loop, core)  # here it is drained by hand
        try:
            await pair.ab.send(b"x")
            await pair.a.notify(remote)
            await eventually(lambda: counter.value == 1, "the notification is counted")
            assert not wait.done()
            with pytest.raises(KeyboardInterrupt):
                core.drain_done_list()
        finally:
            loop.set_exception_handler(before)
            core.on_message = on_message
            _loop.attach(loop, core)
        assert await asyncio.wait_for(wait, SOON) == 1
        again = counter.wait(2)  # the wake-up was armed
        await pair.a.notify(remote)
        assert await asyncio.wait_for(again, SOON) == 2


class Unhashable(Registration):
    """Fails in the middle of what is done when it is registered."""

    failures = 1

    def __hash__(self):
        if self.failures:
            self.failures -= 1
            raise LookupError("mine")
        return id(self)


async def test_failure_while_a_call_settles_reaches_who_awaits_it(pair):
    core = pair.a._core
    registration = Unhashable(core, take(bytearray(100)), 0)
    with pytest.raises(LookupError, match="mine"):
        await asyncio.wait_for(core.register(registration), SOON)
    await core.deregister(registration)
    registration.let_go()
    await pair.write(100)


# ---- engines and peers ----


@pytest.mark.fabrics("loopback")
async def test_engine_that_fails_to_open_leaves_no_descriptors(fabric):
    async def fail():
        with pytest.raises(ProviderUnavailable):
            await engine_on(fabric, devices=("loop9",)).open()

    await fail()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        await fail()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_freed_peer_is_refused(fabric):
    async with open_pair(fabric) as pair:
        core, record = pair.a._core, pair.ab._record
        await pair.ab.close()
        for call in (
            record.open,
            record.endpoints,
            lambda: record.connect([], [], 0, 0, 0, 0, 0),
            record.close,
            lambda: record.lose("gone"),
        ):
            with pytest.raises(ClosedResourceError):
                call()
        record.is_open, record.reason = True, None
        with pytest.raises(ClosedResourceError):
            core.send(record, b"x")
        record.is_open = False
        core.missing(record, 1, 8, "nobody to tell")
        core.missing(None, 1, 8, "nobody to tell")
        assert isinstance(core.lost_reason(record), str)


async def test_released_transfer_cannot_be_cancelled(pair):
    source, target = await pair.source(1000), await pair.target(1000)
    transfer = pair.a.write(source, target.remote)
    await transfer
    assert transfer.released
    assert not transfer.cancel()


async def test_cancelled_transfer_is_not_kept_by_its_timer(pair):
    source, target = await pair.source(1 << 20), await pair.target(1 << 20)
    transfer = pair.a.write(source, target.remote)
    transfer.cancel()
    await asyncio.wait({transfer}, timeout=SOON)
    released = asyncio.Event()
    transfer.add_release_callback(lambda _: released.set())
    await asyncio.wait_for(released.wait(), SOON)
    reference = weakref.ref(transfer)
    del transfer
    await asyncio.sleep(0.01)
    gc.collect()
    assert reference() is None


# ---- page indices ----


async def test_strided_page_indices(pair):
    data = pattern(8 * 64)
    source, target = await pair.source(data), await pair.target(8 * 64)
    table = np.arange(16, dtype=np.int32).reshape(8, 2)  # a column of it has a stride, too
    theirs = np.arange(8)[::-2]
    for local, remote in ((np.arange(8)[::2], theirs), (table[:4, 1], theirs)):
        target.array[:] = 0
        await pair.a.write_pages(source, target.remote, page_nbytes=64, local_pages=local, remote_pages=remote)
        expected = np.zeros_like(data).reshape(8, 64)
        expected[remote] = data.reshape(8, 64)[local]
        assert np.array_equal(target.array, expected.reshape(-1))


@pytest.mark.parametrize("bad", [[1.5], ["x"], [2**70], None], ids=str)
async def test_refusal_of_page_indices_names_the_argument(pair, bad):
    source, target = await pair.source(64), await pair.target(64)
    for given in ({"local_pages": bad, "remote_pages": [0]}, {"local_pages": [0], "remote_pages": bad}):
        name = next(name for name, value in given.items() if value is bad)
        with pytest.raises((TypeError, ValueError), match=name):
            pair.a.write_pages(source, target.remote, page_nbytes=64, **given)
