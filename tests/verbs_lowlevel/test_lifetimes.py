# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What is closed, dropped or forgotten leaves nothing behind, and no thread is in another's way."""

import asyncio
import ctypes
import gc
import os
import re
import select
import subprocess
import sys
import threading
import time
import warnings

import pytest

from helpers.process import ROOT, environment
from helpers.verbs_low import Side, names, sides
from pplx_async import ClosedResourceError, LeakWarning, QueueFull, verbs

pytestmark = pytest.mark.fabrics("verbs", "verbs-fake")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("careful", [True, False], ids=["closed", "dropped"])
async def test_nothing_is_left_open(fabric, careful):
    """The number of descriptors stays what it was, also where everything was dropped without a close."""

    async def once():
        opened = [Side(fabric, device) for device in names(fabric)]
        a, b = opened
        a.pair.connect(b.pair.address)
        b.pair.connect(a.pair.address)
        source, target = a.memory(64)[1], b.memory(64)[1]
        b.pair.recv_nowait()
        b.pair.recv_nowait(target)  # is still there at the end
        reading = asyncio.create_task(b.queue.poll(1))
        await a.pair.write(source, target.remote, imm=1)
        (await a.outcome()).raise_for_error()
        await reading
        if careful:
            for side in opened:
                side.context.close()
            return
        del source, target, a, b, reading
        told = []
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            # Not pytest's recorder, which would hold what was dropped.
            warnings.showwarning = lambda message, kind, *_: told.append((kind, re.match(r"<(\w+)", str(message))[1]))
            opened.clear()
            gc.collect()
        everything = ("CompletionQueue", "Context", "ProtectionDomain", "QueuePair", "RegisteredMemory")
        assert sorted(name for _, name in told) == sorted(everything * 2)
        assert {kind for kind, _ in told} == {LeakWarning}

    await once()
    before = descriptors()
    for _ in range(5):
        await once()
    assert descriptors() <= before


async def test_failing_to_open_leaves_nothing(fabric):
    async with sides(fabric) as (a, _):
        before = descriptors()
        for _ in range(3):
            with pytest.raises(ValueError, match="empty"):
                a.pd.register(b"")
            with pytest.raises(ValueError, match="entries"):
                a.context.completion_queue(10**9)
        assert descriptors() <= before


async def test_what_is_closed_refuses(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(64)
        remote = b.memory(64)[1].remote
        calls = {
            "queue pair": [
                lambda: a.pair.write_nowait(source, remote),
                lambda: a.pair.read_nowait(source, remote),
                lambda: a.pair.send_nowait(source),
                lambda: a.pair.recv_nowait(source),
                lambda: a.pair.connect(b.pair.address),
                a.pair.abort,
                lambda: a.pair.state,
            ],
            "completion queue": [a.queue.poll_nowait, a.queue.arm, lambda: a.pd.queue_pair(a.queue)],
            "context": [
                a.context.protection_domain,
                a.context.completion_queue,
                lambda: a.pd.register(bytearray(1)),
                lambda: source.remote,
            ],
        }
        for what, close in (("queue pair", a.pair), ("completion queue", a.queue), ("context", a.context)):
            close.close()
            close.close()
            assert not close.is_open
            for call in calls[what]:
                with pytest.raises(ClosedResourceError, match=what):
                    call()


async def test_event_loop_of_ones_own(fabric):
    """fd, arm and poll_nowait are enough for any loop: here it is poll(2), in another thread."""
    async with sides(fabric) as (a, b):
        seen = []

        def serve():
            poller = select.poll()
            poller.register(b.queue.fd, select.POLLIN)
            while len(seen) < 100:
                found = b.queue.poll_nowait()
                seen.extend(completion.imm for completion in found)
                if not found and b.queue.arm():
                    poller.poll(10_000)

        for _ in range(100):
            b.pair.recv_nowait()
        thread = threading.Thread(target=serve)
        thread.start()
        for number in range(100):
            await a.pair.send(None, imm=number)
            (await a.outcome()).raise_for_error()
        await asyncio.to_thread(thread.join)
        assert seen == list(range(100))


@pytest.mark.fabrics("verbs-fake")
async def test_a_queue_pair_that_another_thread_connects_is_left_alone(fabric):
    """The kernel asks the network for the way, and others run meanwhile."""
    library = ctypes.CDLL(fabric.options["library"])
    a, b = (Side(fabric, device) for device in names(fabric))
    device = names(fabric)[0].encode()
    try:
        assert library.fake_ibv_search(device, 1) == 0
        connecting = asyncio.create_task(asyncio.to_thread(a.pair.connect, b.pair.address))
        while library.fake_ibv_search(device, 1) == 0:
            await asyncio.sleep(0.001)
        with pytest.raises(RuntimeError, match="is being connected by another thread"):
            a.pair.connect(b.pair.address)
        with pytest.raises(RuntimeError, match="close it afterwards"):
            a.pair.close()
        library.fake_ibv_search(device, 0)
        await connecting
        b.pair.connect(a.pair.address)
        source, target = a.memory(64, fill=7)[1], b.memory(64)
        await a.pair.write(source, target[1].remote)
        (await a.outcome()).raise_for_error()
        assert target[0] == bytes([7]) * 64
        a.pair.close()
    finally:
        library.fake_ibv_search(device, 0)
        for side in (a, b):
            side.context.close()


async def test_posts_from_other_threads(fabric):
    async with sides(fabric, send_depth=16) as (a, b):
        _, source = a.memory(64)
        remote = b.memory(64)[1].remote

        def post(first):
            posted = 0
            while posted < 200:
                try:
                    a.pair.write_nowait(source, remote, context=first + posted)
                    posted += 1
                except QueueFull:
                    time.sleep(0.0005)

        threads = [asyncio.create_task(asyncio.to_thread(post, first)) for first in (0, 200, 400)]
        seen = []
        while len(seen) < 600:
            seen += [completion.raise_for_error().context for completion in await a.queue.poll()]
        await asyncio.gather(*threads)
        assert sorted(seen) == list(range(600))


def test_one_loop_after_another(fabric):
    context = verbs.open(names(fabric)[0], library=fabric.options.get("library"))
    queue = context.completion_queue()
    pair = context.protection_domain().queue_pair(queue)

    async def once(number):
        pair.recv_nowait(context=number)
        waiting = asyncio.create_task(queue.poll())
        await asyncio.sleep(0)
        if number:
            pair.close()
            assert [completion.context for completion in await waiting] == [0, 1]

    asyncio.run(once(0))  # which ends with somebody waiting
    asyncio.run(once(1))
    context.close()


PROGRAM = """
import asyncio, sys
from pplx_async import verbs

async def main():
    context = verbs.open(sys.argv[1])
    queue, domain = context.completion_queue(), context.protection_domain()
    pair, memory = domain.queue_pair(queue), domain.register(bytearray(100))
    pair.recv_nowait(memory, context=(memory, pair))
    task = asyncio.create_task(queue.poll())
    await asyncio.sleep(0.01)
    {end}

factory = None
if sys.argv[2] == "uvloop":
    import uvloop
    factory = uvloop.new_event_loop
with asyncio.Runner(loop_factory=factory) as runner:
    runner.run(main())
"""


@pytest.mark.parametrize(
    ("end", "complaints"),
    [
        ("context.close(); await asyncio.gather(task, return_exceptions=True)", False),
        ("globals().update(locals())", True),  # alive at the very end: nothing to say, or a leak
        ("pass", True),
    ],
    ids=["closed", "alive at exit", "dropped"],
)
@pytest.mark.deadline(60)
def test_program_ends(fabric, end, complaints, loop_name):
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", PROGRAM.format(end=end)]
    command += [names(fabric)[0], loop_name]
    library = fabric.options.get("library")
    extra = {} if library is None else {"PPLX_ASYNC_LIBRARY": library}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment(extra))
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.splitlines() if not line.startswith(" ") and "tracemalloc" not in line]
    assert complaints or told == []
    for line in told:
        assert re.search(r"LeakWarning: <.*> was never closed", line)
