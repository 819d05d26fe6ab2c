# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Who holds what for how long; closing in any order; leaks, forks, and the end of the program."""

import asyncio
import gc
import re
import subprocess
import sys
import warnings
import weakref

import pytest

from helpers.engines import eventually
from helpers.low import Side, descriptors, open_domain, sides
from helpers.process import ROOT, environment
from pplx_async import ClosedResourceError, LeakWarning, WorkFlushed

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "efa")]


class Buffer(bytearray):
    """Memory that can be watched going away."""


def is_held(buffer):
    """Whether somebody has the buffer: a bytearray that is exported can't be resized."""
    try:
        buffer.append(0)
    except BufferError:
        return True
    buffer.pop()
    return False


async def test_memory_is_held_until_its_completion_is_read(fabric):
    async with sides(fabric) as (a, b):
        b.serve()
        to_b = a.meet(b)
        target, memory = b.memory(1 << 20)
        buffer = Buffer(bytes([5]) * (1 << 20))
        gone = weakref.ref(buffer)
        source = a.domain.register(buffer, access="none")
        await a.endpoint.write(source[:], to_b, memory.remote)
        source.close()  # the operation still has it
        assert not source.is_open
        assert is_held(buffer)
        with pytest.raises(ClosedResourceError, match="memory is closed"):
            a.endpoint.write_nowait(source[:10], to_b, memory.remote[:10])
        del buffer, source
        gc.collect()
        assert gone() is not None
        (await a.outcome()).raise_for_error()
        assert target == bytes([5]) * (1 << 20)
        assert gone() is None


async def test_memory_that_was_dropped_in_flight(fabric):
    """Without a close, too: the operation holds it, and its owner hears of the leak afterwards."""
    async with sides(fabric) as (a, b):
        b.serve()
        to_b = a.meet(b)
        target, memory = b.memory(1 << 20)
        source = a.domain.register(bytes([5]) * (1 << 20))
        await a.endpoint.write(source, to_b, memory.remote)
        del source
        gc.collect()
        with pytest.warns(LeakWarning, match="Memory of 1048576 B"):
            (await a.outcome()).raise_for_error()
        assert target == bytes([5]) * (1 << 20)


async def test_unread_completions_of_a_closed_endpoint_let_go_of_memory(fabric):
    async with sides(fabric) as (a, _):
        buffer, memory = a.memory(100)
        context = Buffer(b"context")
        gone = weakref.ref(context)
        await a.endpoint.recv(memory, context=context)
        del context
        memory.close()
        assert is_held(buffer)
        a.endpoint.close()
        assert not is_held(buffer)
        completion = await a.outcome()
        assert isinstance(completion.error, WorkFlushed)
        assert completion.context is gone()
        del completion
        assert gone() is None


async def test_closing_a_domain_closes_all(fabric):
    side = Side(open_domain(fabric))
    buffer, memory = side.memory(100)
    await side.endpoint.recv(memory)
    waiting = asyncio.create_task(side.queue.read())
    await asyncio.sleep(0)
    side.domain.close()
    side.domain.close()
    assert not any(thing.is_open for thing in (side.domain, side.queue, side.endpoint, memory))
    assert not is_held(buffer)
    with pytest.raises(ClosedResourceError):
        await waiting
    for thing in (side.endpoint, memory, side.queue):
        thing.close()


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
async def test_closing_in_any_order(fabric, order, capfd):
    """The native objects, without the care that the public ones take."""
    before = descriptors()
    side = Side(open_domain(fabric))
    buffer, memory = side.memory(100)
    await side.endpoint.recv(memory)
    cores = [side.domain._core, side.queue._core, side.endpoint._core]
    for index in order:
        cores[index].close()
        cores[index].close()
    memory._core.close()
    assert not is_held(buffer)
    assert descriptors() == before
    side.domain.close()
    assert capfd.readouterr().err == ""  # where the library would complain of the order


async def test_everything_closed_refuses(fabric):
    async with sides(fabric) as (a, b):
        to_b = a.meet(b)
        _, memory = a.memory(64)
        remote = b.memory(64)[1].remote
        posts = [
            lambda: a.endpoint.write_nowait(memory, to_b, remote),
            lambda: a.endpoint.read_nowait(memory, to_b, remote),
            lambda: a.endpoint.send_nowait(memory, to_b),
            lambda: a.endpoint.recv_nowait(memory),
        ]
        awaits = [
            lambda: a.endpoint.write(memory, to_b, remote),
            lambda: a.endpoint.read(memory, to_b, remote),
            lambda: a.endpoint.send(memory, to_b),
            lambda: a.endpoint.recv(memory),
        ]

        async def refused(what):
            for post in posts:
                with pytest.raises(ClosedResourceError, match=what):
                    post()
            for wait in awaits:
                with pytest.raises(ClosedResourceError, match=what):
                    await wait()

        a.domain.remove(to_b)
        with pytest.raises(ClosedResourceError, match="removed"):
            posts[0]()
        to_b = a.domain.insert(to_b.address)
        a.endpoint.close()
        await refused("endpoint is closed")
        a.queue.close()
        for call in (lambda: a.domain.endpoint(a.queue), a.queue.poll, a.queue.arm):
            with pytest.raises(ClosedResourceError, match="completion queue is closed"):
                call()
        a.domain.close()
        await refused("domain is closed")
        for call in (
            a.domain.completion_queue,
            lambda: a.domain.register(bytearray(1)),
            lambda: a.domain.insert(to_b.address),
            lambda: memory.remote,
        ):
            with pytest.raises(ClosedResourceError, match="domain is closed"):
                call()


@pytest.mark.parametrize("careful", [True, False], ids=["closed", "dropped"])
async def test_nothing_is_left_open(fabric, careful):
    """The number of descriptors stays what it was, also where everything was dropped without a close."""

    async def once():
        opened = [Side(open_domain(fabric)) for _ in range(2)]
        a, b = opened
        to_b = a.meet(b)
        b.meet(a)
        source, target = a.memory(64)[1], b.memory(64)[1]
        reading = asyncio.create_task(b.queue.read(1))
        await a.endpoint.write(source, to_b, target.remote, imm=1)
        (await a.outcome()).raise_for_error()
        await reading
        if careful:
            for side in opened:
                await side.stop()
            return
        del source, target, to_b, a, b, reading
        told = []
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            # Not pytest's recorder, which would hold what was dropped.
            warnings.showwarning = lambda message, kind, *_: told.append((kind, re.match(r"<(\w+)", str(message))[1]))
            opened.clear()
            gc.collect()
        everything = ("CompletionQueue", "Domain", "Endpoint", "Memory")
        assert sorted(name for _, name in told) == sorted(everything * 2)
        assert {kind for kind, _ in told} == {LeakWarning}

    await once()
    before = descriptors()
    for _ in range(5):
        await once()
    # tcp;ofi_rxm lets go of the far end of a connection in its own time.
    await eventually(lambda: descriptors() <= before, "all descriptors are closed")


async def test_failing_to_open_leaves_nothing(fabric):
    async with sides(fabric) as (a, _):
        before = descriptors()
        for _ in range(3):
            with pytest.raises(ValueError, match="not an address"):
                a.domain.insert(b"nonsense")
            with pytest.raises(ValueError, match="empty"):
                a.domain.register(b"")
        assert descriptors() == before


PROGRAM = """
import asyncio, os, sys
from pplx_async import ClosedResourceError, fabric

async def main():
    domain = fabric.open(provider=sys.argv[1], library=sys.argv[2])
    queue = domain.completion_queue()
    endpoint = domain.endpoint(queue)
    memory = domain.register(bytearray(100))
    await endpoint.recv(memory, context=(memory, endpoint))
    task = asyncio.create_task(queue.read())
    await asyncio.sleep(0.01)
    {end}

if sys.argv[3] == "uvloop":
    import uvloop
    asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
else:
    asyncio.run(main())
"""


def run_program(fabric, end, loop_name):
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", PROGRAM.format(end=end)]
    command += [fabric.name, fabric.options["library"], loop_name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT, env=environment())
    assert result.returncode == 0, result.stderr
    return [line for line in result.stderr.splitlines() if not line.startswith((" ", "Object allocated"))]


FORK = """
    calls = [
        lambda: endpoint.recv_nowait(memory),
        queue.poll,
        queue.arm,
        domain.completion_queue,
        lambda: domain.register(bytearray(1)),
        lambda: domain.insert(endpoint.address),
    ]
    pid = os.fork()
    if pid == 0:
        status = 0
        for call in calls:
            try:
                call()
            except ClosedResourceError as error:
                status |= "fork" not in str(error)
            else:
                status |= 2
        domain.close()
        os._exit(status | domain.is_open << 2)
    assert os.waitpid(pid, 0)[1] == 0
    queue.poll()
    await endpoint.recv(memory)
    domain.close()
    await asyncio.gather(task, return_exceptions=True)
"""


def test_child_of_a_fork_is_refused(fabric, loop_name):
    assert run_program(fabric, FORK, loop_name) == []


@pytest.mark.parametrize(
    ("end", "complaints"),
    [
        ("domain.close(); await asyncio.gather(task, return_exceptions=True)", set()),
        ("globals().update(locals())", None),  # alive at the very end: nothing to say, or a leak
        ("pass", None),
    ],
    ids=["closed", "alive at exit", "dropped"],
)
def test_program_ends(fabric, end, complaints, loop_name):
    told = run_program(fabric, end, loop_name)
    if complaints is not None:
        assert told == []
    for line in told:
        assert re.search(r"LeakWarning: <.*> was never closed", line)
