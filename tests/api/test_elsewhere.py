# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Calls from where the engine is not: other threads, other loops, after its loop's end, in a fork."""

import asyncio
import contextlib
import gc
import inspect
import json
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvloop

from helpers.engines import SOON, engine_on, eventually
from helpers.process import run_program
from helpers.things import EVERY_CALL, Things, public_calls
from pplx_async import CleanupWarning, LeakWarning

HERE = "this engine belongs to the event loop that it was opened on"
on_one_loop = pytest.mark.asyncio(loop_scope="module")

# What needs no engine, or may be called where there is none any more.
ANYWHERE = {
    "TransferEngine.open",
    "TransferEngine.close",
    "MemoryRegion.view",
    "RemoteRegion.view",
}


def test_every_public_call_is_tried():
    assert {name.split(" ")[0] for name in EVERY_CALL} | ANYWHERE == public_calls()


async def outcome(call, things):
    """Call, await what there is to await, and say how it ended."""
    try:
        result = call(things)
        if inspect.isawaitable(result):
            async with asyncio.timeout(SOON):
                await result
    except Exception as error:
        return error
    return None


async def refused(things):
    """Check that every call is refused at once, with the one error that says why."""
    for name, call in EVERY_CALL.items():
        error = await outcome(call, things)
        assert type(error) is RuntimeError, f"{name}: {error!r}"
        assert str(error).startswith(HERE), f"{name}: {error}"
        yield str(error)


async def all_refused(things):
    (message,) = {message async for message in refused(things)}
    return message


def close(loop):
    """Close a loop, and with it the threads that it looked names up in."""
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def home(request):
    """The loop that the engines are opened on; it runs only when told to."""
    loop = request.param()
    yield loop
    if not loop.is_closed():
        close(loop)


def test_another_loop_on_the_same_thread(home, fabric):
    things = home.run_until_complete(Things.open(fabric))
    assert "asyncio.run_coroutine_threadsafe" in asyncio.run(all_refused(things))
    error = asyncio.run(outcome(lambda x: x.a.close(), things))
    assert type(error) is RuntimeError
    assert str(error).startswith(HERE)
    assert things.a.address
    home.run_until_complete(things.pair.write(100))
    home.run_until_complete(meet(things))
    home.run_until_complete(things.close())


async def meet(things):
    async with asyncio.timeout(SOON):
        await asyncio.gather(things.a.barrier(things.group), things.b.barrier(things.group_of_b))


async def test_another_thread(fabric):
    things = await Things.open(fabric)
    try:
        assert "loop.call_soon_threadsafe" in await asyncio.to_thread(asyncio.run, all_refused(things))
        # Calls that are none of asyncio's are no better.
        for name in ("write", "notify", "counter", "stats", "publish", "scope", "batch"):
            with pytest.raises(RuntimeError, match=HERE):
                await asyncio.to_thread(EVERY_CALL[f"TransferEngine.{name}"], things)
        await things.pair.write(100)
        await meet(things)
    finally:
        await things.close()


@on_one_loop
async def test_cancelling_from_another_thread_is_refused(pair):
    source, target = await pair.source(1 << 20), await pair.target(1 << 20)
    transfer = pair.a.write(source, target.remote)
    with ThreadPoolExecutor(1) as elsewhere, pytest.raises(RuntimeError, match=HERE):
        elsewhere.submit(transfer.cancel).result()  # meanwhile our loop stands, so it is not done
    assert await transfer == 1 << 20


@on_one_loop
async def test_what_is_only_read_may_be_read_anywhere(pair):
    source = await pair.source(100)
    counter = pair.a.counter()

    def look():
        return (
            pair.a.address,
            pair.a.peers,
            pair.a.is_open,
            pair.ab.label,
            pair.ab.is_open,
            source[10:20].nbytes,
            source.view(4)[1:2].offset,
            counter.value,
            counter.available,
        )

    assert await asyncio.to_thread(look) == look()
    await counter.close()


@on_one_loop
async def test_the_way_in_from_another_thread(pair):
    source, target = await pair.source(100), await pair.target(100)
    loop = asyncio.get_running_loop()

    async def write():
        return await pair.a.write(source, target.remote)

    def elsewhere():
        return asyncio.run_coroutine_threadsafe(write(), loop).result(SOON)

    assert await asyncio.to_thread(elsewhere) == 100


def test_between_two_runs_of_its_loop(home, fabric):
    things = home.run_until_complete(Things.open(fabric))
    transfer = things.a.write(things.local, things.remote)
    things.a.publish("name", things.local)
    assert home.run_until_complete(transfer) == 100
    assert home.run_until_complete(things.ba.lookup("name")).nbytes == 100
    home.run_until_complete(things.close())


# ---- the loop ended first ----


def proxies():
    """Return the ids of the proxy threads that run in this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            if (task / "comm").read_text() == "pplx-proxy\n":
                found.add(task.name)
    return found


def have_ended(threads):
    """Wait until none of them runs: a thread that was joined is listed a little longer."""
    deadline = time.monotonic() + SOON
    while threads & proxies() and time.monotonic() < deadline:
        time.sleep(0.001)
    return not threads & proxies()


async def open_one(fabric, nbytes):
    """Open an engine without peers; with memory, it holds what cannot be given back without a loop."""
    engine = engine_on(fabric)
    await engine.open()
    await engine.counter().close()  # its thread has been through that, so it runs and has its name
    region = await engine.register(bytearray(nbytes)) if nbytes else None
    await eventually(lambda: not engine._tasks, "nothing is left to do")
    return engine, region


def run_and_close(loop, main):
    """Run it as `asyncio.run` does, but for the tasks that it leaves."""
    try:
        return loop.run_until_complete(main)
    finally:
        close(loop)


@pytest.mark.parametrize("nbytes", [0, 100])
def test_engine_whose_loop_is_closed_can_be_closed_on_another(home, fabric, nbytes):
    before = proxies()
    engine, region = run_and_close(home, open_one(fabric, nbytes))
    own = proxies() - before
    assert len(own) == 1

    async def elsewhere():
        for call in (engine.drain, engine.accept, lambda: engine.register(bytearray(5))):
            with pytest.raises(RuntimeError, match=f"{HERE}, and that loop is closed: close the engine"):
                await call()
        with pytest.warns(CleanupWarning, match="event loop of .* was closed before it"):
            await engine.close()
        assert not engine.is_open
        await engine.close()
        await anext(engine.messages(), None)
        with pytest.raises(Exception, match="the engine is closed"):
            await engine.drain()

    asyncio.run(elsewhere())
    assert have_ended(own)
    if region is not None:
        # It is still registered, as far as anyone knows: nothing may say that it is closed.
        assert region.is_open


@pytest.mark.parametrize("nbytes", [0, 100])
def test_engine_whose_loop_is_closed_ends_with_its_last_reference(home, fabric, nbytes):
    before = proxies()
    everything = [*run_and_close(home, open_one(fabric, nbytes))]
    own = proxies() - before
    assert len(own) == 1
    with pytest.warns(LeakWarning, match="TransferEngine.* was never closed"):  # noqa: PT031
        everything.clear()
        gc.collect()
    assert have_ended(own)


def test_engine_with_peers_whose_loop_is_closed(home, fabric):
    before = proxies()
    # What is left of the connections is asyncio's, and it says so.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        things = run_and_close(home, Things.open(fabric))
        own = proxies() - before
        assert len(own) == 2
        assert "that loop is closed" in asyncio.run(all_refused(things))
        for engine in (things.a, things.b):
            with pytest.warns(CleanupWarning):
                asyncio.run(engine.close())
        assert have_ended(own)
        ends = {type(asyncio.run(outcome(call, things))).__name__ for call in EVERY_CALL.values()}
        assert ends == {"NoneType", "StopAsyncIteration", "ClosedResourceError"}
        del things, engine
        gc.collect()


# ---- a fork ----

FORK = """
import asyncio, gc, inspect, json, os, sys, warnings
import pplx_async
from helpers.require import find_fabric
from helpers.things import EVERY_CALL, Things
from pplx_async.testing import connected_pair

warnings.simplefilter("error")

def outcome(call, things):
    try:
        result = call(things)
        if inspect.iscoroutine(result):
            result.send(None)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", repr(result)]

async def elsewhere():
    async with connected_pair() as (there, here):
        assert await there.send(b"from a new engine") == 17
    return True

async def main(parent):
    fabric = find_fabric(sys.argv[1])
    things = await Things.open(fabric)
    waiting = things.counter.wait(1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            told = {name: outcome(call, things) for name, call in EVERY_CALL.items()}
            told["core.fd"] = outcome(lambda x: x.a._core.fd, things)
            told["address"] = outcome(lambda x: x.a.address, things)
            asyncio.events._set_running_loop(None)
            asyncio.set_event_loop(None)
            told["close"] = asyncio.run(things.a.close())
            told["cancel"] = waiting.cancel()
            told["new"] = fabric.name != "loopback" or asyncio.run(elsewhere())
            # What is left there is nobody's: it goes quietly.
            del things, waiting
            gc.collect()
            told["parent"] = parent
            os.write(write, json.dumps(told).encode())
        finally:
            os._exit(0)
    os.close(write)
    told = b""
    while piece := await asyncio.to_thread(os.read, read, 1 << 16):
        told += piece
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    print(told.decode())
    assert os.waitstatus_to_exitcode(status) == 0
    await things.pair.write(100)
    await asyncio.gather(things.a.barrier(things.group), things.b.barrier(things.group_of_b))
    await things.pair.ab.send(b"x")
    await things.b.notify(things.ba.counter(things.counter.to_bytes()))
    assert await waiting == 1
    await things.close()

asyncio.run(main(os.getpid()))
"""


def test_in_the_child_of_a_fork_every_call_says_so(fabric):
    ended = run_program(FORK, fabric.id)
    assert (ended.returncode, ended.stderr) == (0, "")
    told = json.loads(ended.stdout)
    parent = told.pop("parent")
    assert told.pop("close") is None
    assert told.pop("cancel") is True
    assert told.pop("new") is True
    assert set(told) == {*EVERY_CALL, "core.fd", "address"}
    message = f"the engine was opened in process {parent}, and this is a fork of it. Open a new one after the fork."
    assert {name: said for name, said in told.items() if said != ["ClosedResourceError", message]} == {}
