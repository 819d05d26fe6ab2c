# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in the middle of what has finished, in a program that goes on: who waits is still woken."""

import asyncio

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


async def _result(wait):
    with pytest.raises(ClosedResourceError):
        await wait


async def _send(peer):
    await peer.send(b"x")


async def _notify(engine, counter):
    await engine.notify(counter)
