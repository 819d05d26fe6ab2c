# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the middle of what has finished, in a program that goes on: who waits is still woken."""

import asyncio
import contextlib

import pytest

from pplx_async import ClosedResourceError, TransferEngine

SOON = 10


@pytest.mark.parametrize("wakeup", ["eventfd", "spin"])
def test_interrupt_leaves_nobody_asleep(wakeup):
    options = {"fabric": "loopback", "progress": "proxy"}
    loop = asyncio.new_event_loop()
    a, b = TransferEngine(wakeup=wakeup, **options), TransferEngine(**options)

    async def connect():
        await a.open()
        await b.open()
        peer = await b.connect(a.address)
        await a.accept()
        return peer

    def interrupt(*_):
        raise KeyboardInterrupt

    async def wait(counter):
        return await counter.wait(1)

    peer = loop.run_until_complete(connect())
    counter = a.counter()
    waiting = loop.create_task(wait(counter))  # in low-latency mode: it spins, or the loop polls, when "x" comes
    on_message, a._core.on_message = a._core.on_message, interrupt
    sending = loop.create_task(_send(peer))
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(SOON))
    a._core.on_message = on_message
    loop.run_until_complete(sending)
    loop.run_until_complete(_notify(b, peer.counter(counter.to_bytes())))
    done, _ = loop.run_until_complete(asyncio.wait({waiting}, timeout=SOON))
    assert done
    assert waiting.result() == 1
    loop.run_until_complete(b.close())
    loop.run_until_complete(a.close())
    loop.close()


@pytest.mark.parametrize("wakeup", ["eventfd", "spin"])
def test_interrupt_by_one_awaiter_leaves_the_others_awake(wakeup):
    """They are woken by one call of the loop's: that one of them ends it must not lose the rest."""
    loop = asyncio.new_event_loop()
    engine = TransferEngine(fabric="loopback", wakeup=wakeup)
    waiting = []

    def interrupt(_):
        raise KeyboardInterrupt

    async def prepare():
        await engine.open()
        counter = engine.counter()
        waits = [counter.wait(1) for _ in range(5)]
        waits[2].add_done_callback(interrupt)
        waiting.extend(loop.create_task(_result(wait)) for wait in waits)
        await asyncio.sleep(0)  # all of them wait
        await counter.close()  # which ends the waits together

    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(prepare())
        loop.run_until_complete(asyncio.sleep(SOON))
    _, asleep = loop.run_until_complete(asyncio.wait(waiting, timeout=SOON))
    assert not asleep
    assert [task.exception() for task in waiting] == [None] * 5
    loop.run_until_complete(engine.close())
    loop.close()


@pytest.mark.parametrize("progress", ["loop", "proxy"])
@pytest.mark.parametrize("wakeup", ["eventfd", "spin"])
@pytest.mark.parametrize("late", [False, True])
def test_interrupt_while_the_loop_is_asked_to_call_us_loses_no_wake_up(wakeup, progress, late):
    """asyncio's call_soon() is Python: a signal's handler may raise in there, before or after it has done its work."""
    loop = asyncio.new_event_loop()
    a, b = (TransferEngine(fabric="loopback", wakeup=wakeup, progress=progress) for _ in range(2))
    call_soon, countdown = loop.call_soon, -1

    def interrupted(callback, *args, **kwargs):
        nonlocal countdown
        ours = getattr(callback, "__self__", None) in (a._core, b._core)
        countdown -= ours
        if ours and countdown == 0 and not late:
            raise KeyboardInterrupt
        handle = call_soon(callback, *args, **kwargs)
        if ours and countdown == 0:
            raise KeyboardInterrupt
        return handle

    async def prepare():
        await a.open()
        await b.open()
        ab = await a.connect(b.address)
        source, target = await a.register(bytearray(1 << 18)), await b.register(bytearray(1 << 18))
        counter = b.counter()
        return source, target, ab.region(target.to_bytes()), counter, ab.counter(counter.to_bytes())

    source, target, remote, counter, remote_counter = loop.run_until_complete(prepare())
    done = interrupts = 0

    async def write():
        nonlocal done
        while True:
            for size in (1 << 18, 64):
                await a.write(source[:size], remote[:size], counter=remote_counter)
                done += 1

    async def follow():
        while True:
            await counter.wait(counter.value + 1)

    async def goes_on(before):
        while done < before + 10:
            await asyncio.sleep(0.001)

    loop.call_soon = interrupted
    try:
        for number in range(1, 40):
            tasks = [loop.create_task(each) for each in (write(), follow(), follow())]
            countdown = number
            try:
                loop.run_until_complete(asyncio.sleep(0.02))
            except KeyboardInterrupt:
                interrupts += 1
            countdown = -1
            # asyncio's own stop is left over where the sleep had just ended: it would end the next run.
            with contextlib.suppress(RuntimeError):
                loop.run_until_complete(asyncio.sleep(0))
            tasks.append(loop.create_task(write()))  # in place of one that was hit itself
            loop.run_until_complete(asyncio.wait_for(goes_on(done), SOON))
            for task in tasks:
                task.cancel()
            _, asleep = loop.run_until_complete(asyncio.wait(tasks, timeout=SOON))
            assert not asleep
            assert all(task.cancelled() or isinstance(task.exception(), KeyboardInterrupt) for task in tasks)
        assert interrupts or progress == "proxy"  # which leaves the loop little to be asked for
    finally:
        loop.call_soon = call_soon
        for closing in (source.close(), target.close(), b.close(), a.close()):
            loop.run_until_complete(asyncio.wait_for(closing, SOON))
        loop.close()


async def _result(wait):
    with pytest.raises(ClosedResourceError):
        await wait


async def _send(peer):
    await peer.send(b"x")


async def _notify(engine, counter):
    await engine.notify(counter)
