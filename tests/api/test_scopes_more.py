# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Scopes whose memory is not let go, outer cancellations, and scopes that are used outside of their block."""

import asyncio
import contextlib
import sys
import time

import numpy as np
import pytest
import uvloop

from helpers.engines import connect, engine_on, eventually
from helpers.process import run_program
from helpers.require import find_fabric
from pplx_async import ClosedResourceError, PeerLost, UnreleasedMemory, _loop
from pplx_async.testing import FaultPlan

pytestmark = pytest.mark.asyncio(loop_scope="module")

DRAIN = 0.5


@contextlib.asynccontextmanager
async def open_silent(**options):
    """Yield (engine, source, remote): what is written hangs, its memory is never let go; soon the peer is lost."""
    loopback = find_fabric("loopback")
    options = {"heartbeat_interval": 0.05, "peer_timeout": 1.0, "drain_timeout": DRAIN} | options
    a = engine_on(loopback, faults=FaultPlan(drop_after=40, release=False), **options)
    async with engine_on(loopback, **options) as b:
        await a.open()
        ab, _ = await connect(a, b)
        source = await a.register(bytearray(100))
        target = await b.register(bytearray(100))
        remote = ab.region(target.to_bytes())
        while True:
            transfer = a.write(source, remote)
            done, _ = await asyncio.wait({transfer}, timeout=0.25)
            if not done:
                break
        yield a, source, remote
        with pytest.raises(PeerLost):
            await transfer
        with pytest.raises(UnreleasedMemory):
            await a.close()


async def test_drain_ends_when_the_engine_gives_memory_up():
    """Nothing comes back any more that could make room: who waits for room hears that."""
    async with open_silent() as (engine, _, _):
        room = asyncio.ensure_future(_loop.room(engine._core, 0))
        await asyncio.sleep(0)
    with pytest.raises(ClosedResourceError):
        await asyncio.wait_for(room, 5)


def only_unreleased(group):
    return [error for error in group.exceptions if isinstance(error, UnreleasedMemory)]


async def test_scope_ends_though_a_lost_peers_memory_is_not_let_go():
    """The block is over already when the peer is lost: the deadline counts from then."""
    async with open_silent() as (engine, source, remote):
        start = time.monotonic()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(8), engine.scope() as scope:
                scope.write(source, remote)
        assert caught.group_contains(PeerLost)
        assert len(only_unreleased(caught.value)) == 1
        assert DRAIN <= time.monotonic() - start < 8


async def test_scope_ends_though_a_cancelled_transfer_is_not_let_go():
    """The user cancels one transfer; the scope itself has no reason to abort before that fails."""
    async with open_silent() as (engine, source, remote):
        start = time.monotonic()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(8), engine.scope() as scope:
                transfer = scope.write(source, remote)
                await asyncio.sleep(0.02)  # it is posted
                assert transfer.cancel()
        assert len(caught.value.exceptions) == len(only_unreleased(caught.value)) == 1
        assert time.monotonic() - start < 5


async def test_transfer_that_is_not_let_go_ends_the_block():
    async with open_silent() as (engine, source, remote):
        start = time.monotonic()
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(8), engine.scope() as scope:
                transfer = scope.write(source, remote)
                await asyncio.sleep(0.02)
                transfer.cancel()
                await asyncio.sleep(3600)
        assert len(caught.value.exceptions) == len(only_unreleased(caught.value)) == 1
        assert time.monotonic() - start < 5
        assert asyncio.current_task().cancelling() == 0


async def test_outer_cancellation_while_a_failed_scope_drains_is_not_lost():
    async with open_silent() as (engine, source, remote):
        scopes, counts = [], []

        async def user():
            try:
                async with engine.scope() as scope:
                    scopes.append(scope)
                    scope.write(source, remote)
                    await asyncio.sleep(3600)
            except* PeerLost:
                counts.append(asyncio.current_task().cancelling())
            except* UnreleasedMemory:
                pass
            await asyncio.sleep(0)
            return "went on"

        task = asyncio.create_task(user())
        await eventually(lambda: scopes and scopes[0]._changed is not None, "the failed scope drains")
        task.cancel()
        if sys.version_info >= (3, 13):
            with pytest.raises(asyncio.CancelledError):
                await task
        else:  # as with TaskGroup
            assert await task == "went on"
        assert counts == [1]


async def test_timeout_while_a_failed_scope_drains_leaves_nothing_behind():
    async with open_silent() as (engine, source, remote):
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(None) as limit:
                async with engine.scope() as scope:
                    scope.write(source, remote)
                    try:
                        await asyncio.sleep(3600)
                    finally:
                        limit.reschedule(asyncio.get_running_loop().time() + DRAIN / 4)
        assert caught.group_contains(PeerLost)
        assert limit.expired()
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)  # and no cancellation comes out of nowhere


# ---- quarantine ----


async def test_revoke_ends_though_the_provider_never_lets_go():
    """Neither confirmed nor cut off: it says so, in bounded time, and the memory stays what it is."""
    async with open_silent(revoke_timeout=0.1) as (engine, source, _):
        start = time.monotonic()
        with pytest.raises(UnreleasedMemory):
            await source.revoke()
        assert time.monotonic() - start < 5
        assert engine.stats().regions == 1


QUARANTINE = """
import asyncio, gc, logging, sys, weakref
import uvloop
from pplx_async import PeerLost, TransferEngine, UnreleasedMemory
from pplx_async.testing import FaultPlan

logging.getLogger("pplx_async").addHandler(logging.NullHandler())  # what is logged is not our concern

class Buffer(bytearray):
    pass

async def main():
    options = {"fabric": "loopback", "heartbeat_interval": 0.05, "peer_timeout": 1.0}
    options |= {"drain_timeout": 0.2, "revoke_timeout": 0.1}
    a = TransferEngine(faults=FaultPlan(drop_after=40, release=False), **options)
    await a.open()
    b = TransferEngine(**options)
    await b.open()
    peer = await a.connect(b.address)
    mine, sunk, theirs = Buffer(b"m" * 4096), Buffer(4096), bytearray(b"t" * 8192)
    buffers = [weakref.ref(mine), weakref.ref(sunk)]
    source, sink, target = await a.register(mine), await a.register(sunk), await b.register(theirs)
    remote = peer.region(target.to_bytes())
    try:
        async with a.scope() as scope:
            while True:
                scope.write(source, remote[:4096])
                scope.read(remote[4096:], sink)
                await asyncio.sleep(0.001)
    except* PeerLost:
        pass
    except* UnreleasedMemory as group:
        print("scope", len(group.exceptions))
    for close in (source.close, sink.revoke, a.close):
        try:
            await close()
        except UnreleasedMemory:
            print("unreleased")
    registered = {registration.nbytes for registration in a._core.open_registrations()}
    print("registered", registered)
    await b.close()
    del a, b, peer, source, sink, target, remote, mine, sunk, scope, close
    for _ in range(3):
        gc.collect()
    print("alive", [bytes(buffer()[:2]) for buffer in buffers])
    try:
        buffers[1]().extend(b"x")
    except BufferError:
        print("held")

with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[1] == "uvloop" else None) as runner:
    runner.run(main())
print("end")
"""


async def test_quarantined_memory_outlives_its_engine_and_the_process_ends_cleanly():
    """The provider never lets go of what it writes from and reads into: nobody may free it before the end."""
    name = "uvloop" if isinstance(asyncio.get_running_loop(), uvloop.Loop) else "asyncio"
    ended = await asyncio.to_thread(run_program, QUARANTINE, name)
    assert ended.stdout.splitlines() == [
        "scope 1",
        "unreleased",
        "unreleased",
        "unreleased",
        "registered {4096}",
        "alive [b'mm', b'tt']",
        "held",
        "end",
    ]
    assert ended.returncode == 0
    assert ended.stderr == ""


# ---- outside of the block ----


@pytest.mark.parametrize("when", ["before", "after"])
async def test_scope_outside_of_its_block_sends_nothing(pair, when):
    source, target = await pair.source(100), await pair.target(100)
    sink = np.zeros(100, dtype=np.uint8)
    local = await pair.source(sink)
    counter, remote = pair.counter()
    target.array[:] = 7
    scope = pair.a.scope()
    if when == "after":
        async with scope:
            pass
    for submit in (
        lambda: scope.write(source, target.remote),
        lambda: scope.write_pages(source, target.remote, page_nbytes=10, local_pages=[0], remote_pages=[0]),
        lambda: scope.scatter([(source[0:10], target.remote[0:10])]),
        lambda: scope.read(target.remote, local),
        lambda: scope.notify(remote),
    ):
        with pytest.raises(RuntimeError, match="not entered, or has been left"):
            submit()
        assert pair.a.stats().inflight == 0
    await asyncio.sleep(0.02)
    assert (target.array == 7).all()
    assert not sink.any()
    assert counter.value == 0
