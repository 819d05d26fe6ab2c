# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two real processes: writes, death, restart, goodbye, fork."""

import asyncio
import contextlib
import hashlib
import json
import time

import numpy as np
import pytest
import uvloop

from helpers.engines import SOON, engine_on, eventually, pattern
from helpers.process import helper
from pplx_async import ClosedResourceError, CompletionError, PeerLost

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "ipc"), pytest.mark.tcp]

SIZE = 1 << 20


class Other:
    """The second process, connected to our engine."""

    def __init__(self, process, engine):
        self.process, self.engine = process, engine

    async def connect(self, nbytes=SIZE):
        address = await self.process.ask("open", nbytes=nbytes)
        self.process.post("accept")
        self.peer = await self.engine.connect(address)
        answer = await self.process.answer()
        self.remote = self.peer.region(bytes.fromhex(answer["region"]))
        self.counter = self.peer.counter(bytes.fromhex(answer["counter"]))
        return self


def second_process(fabric, **options):
    given = {"fabric": fabric.name, **fabric.options, **options}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    return helper("receiver", json.dumps(given))


@contextlib.asynccontextmanager
async def connected(fabric, **options):
    async with second_process(fabric, **options) as process, engine_on(fabric, name="test", **options) as engine:
        yield await Other(process, engine).connect()


@pytest.mark.parametrize("domains", [1, 4])
async def test_writes_into_another_process(fabric, domains):
    async with connected(fabric, domains=domains) as other:
        data = pattern(SIZE)
        async with await other.engine.register(data) as source:
            await other.engine.write(source, other.remote, counter=other.counter)
            assert await other.process.ask("wait", count=1) == hashlib.sha256(data).hexdigest()
            order = np.random.default_rng(1).permutation(SIZE // 4096)
            expected = np.zeros(SIZE, dtype=np.uint8)
            expected.reshape(-1, 4096)[:] = data.reshape(-1, 4096)[order]
            await other.engine.write_pages(
                source,
                other.remote,
                page_nbytes=4096,
                local_pages=order,
                remote_pages=range(len(order)),
                counter=other.counter,
            )
            assert await other.process.ask("wait", count=1 + len(order)) == hashlib.sha256(expected).hexdigest()
        sink = np.zeros(SIZE, dtype=np.uint8)
        async with await other.engine.register(sink) as local:
            await other.engine.read(await other.peer.lookup("memory"), local)
        assert np.array_equal(sink, expected)
        ours = other.engine.counter(peer=other.peer)
        await other.process.ask("notify", counter=ours.to_bytes().hex())
        assert await ours.wait(1) == 1
        await other.process.ask("close")
        assert await other.process.finish() == 0


async def test_killed_peer_ends_everything_that_names_it_in_time(fabric):
    async with connected(fabric) as other:
        engine = other.engine
        async with await engine.register(pattern(SIZE)) as source, await engine.register(bytearray(SIZE)) as sink:
            await engine.write(source, other.remote)
            bound = engine.counter(peer=other.peer)

            async def writes():
                while True:
                    await engine.write(source, other.remote, counter=other.counter)

            async def reads():
                while True:
                    await engine.read(other.remote, sink)

            async def sends():
                while True:
                    await other.peer.send(bytes(100))

            async def waits():
                await bound.wait(1)

            tasks = [asyncio.create_task(each()) for each in (writes, writes, reads, sends, waits)]
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in tasks), tasks
            other.process.kill()
            start = time.monotonic()
            done, pending = await asyncio.wait(tasks, timeout=SOON)
            took = time.monotonic() - start
            assert not pending
            assert took < 1.0
            for task in done:
                failure = task.exception()
                assert isinstance(failure, PeerLost), repr(failure)
                assert failure.peer == other.peer.label
                assert failure.hint
            assert isinstance(other.peer.lost, PeerLost)
            assert not other.peer.is_open
            assert engine.peers == ()
            with pytest.raises(PeerLost):
                engine.write(source, other.remote)
            with pytest.raises(PeerLost):
                await bound.wait(1)


async def test_killed_while_it_writes_here_and_another_peer_goes_on(fabric):
    async with connected(fabric) as other, engine_on(fabric, name="bystander") as bystander:
        engine = other.engine
        near = await bystander.connect(engine.address)
        memory = np.zeros(SIZE, dtype=np.uint8)
        async with await engine.register(memory) as region:
            await other.process.ask("fill", value=7)
            await other.process.ask("flood", region=region.to_bytes().hex())
            await eventually(lambda: memory[-1] == 7, "the other process writes here")
            other.process.kill()
            start = time.monotonic()
            await eventually(lambda: other.peer.lost is not None, "the loss is noticed", 5)
            assert time.monotonic() - start < 1.0
            await region.revoke()  # nobody is left who could hold it up
            memory[:] = 1
            await asyncio.sleep(0.05)
            assert (memory == 1).all()
        async with (
            await engine.register(np.zeros(100, dtype=np.uint8)) as region,
            await bystander.register(pattern(100)) as source,
        ):
            assert await bystander.write(source, near.region(region.to_bytes())) == 100
        assert near.is_open


async def test_restarted_peer_can_be_connected_again(fabric):
    async with engine_on(fabric, name="test") as engine:
        data = pattern(SIZE)
        async with await engine.register(data) as source:
            old = None
            for _ in range(3):
                async with second_process(fabric) as process:
                    other = await Other(process, engine).connect()
                    await engine.write(source, other.remote, counter=other.counter)
                    assert await process.ask("wait", count=1) == hashlib.sha256(data).hexdigest()
                    if old is not None:
                        with pytest.raises(PeerLost):
                            engine.write(source, old.remote)
                    process.kill()
                    await eventually(lambda o=other: o.peer.lost is not None, "the loss is noticed", 2)
                    old = other
            assert engine.peers == ()


async def test_orderly_goodbye_is_no_loss(fabric):
    async with connected(fabric) as other:
        bound = other.engine.counter(peer=other.peer)
        wait = bound.wait(1)
        await other.process.ask("close")
        assert await other.process.finish() == 0
        with pytest.raises(ClosedResourceError):
            await asyncio.wait_for(wait, SOON)
        assert other.peer.lost is None
        assert not other.peer.is_open


async def test_exit_without_goodbye_is_a_loss(fabric):
    async with connected(fabric) as other:
        bound = other.engine.counter(peer=other.peer)
        assert await other.process.finish() == 0  # its engine was never closed
        with pytest.raises(PeerLost):
            await asyncio.wait_for(bound.wait(1), SOON)
        assert isinstance(other.peer.lost, PeerLost)


async def test_our_end_is_heard_over_there(fabric):
    async with connected(fabric) as other:
        other.process.post("wait_for_loss")
        await other.engine.close()
        assert (await other.process.answer()).startswith("ClosedResourceError")


async def test_fork_in_mid_use(fabric):
    async with connected(fabric) as other:
        async with await other.engine.register(pattern(SIZE)) as source:
            await other.engine.write(source, other.remote, counter=other.counter)
            forked = await other.process.ask("fork")
            assert forked["status"] == 0
            assert len(forked["seen"]) == 5
            for name, told in forked["seen"].items():
                assert "no error" not in told, name
                if name != "write":  # its arguments are looked at first
                    assert told.startswith("ClosedResourceError"), told
                    assert "fork" in told, told
            # The parent is unharmed.
            await other.engine.write(source, other.remote, counter=other.counter)
            await other.process.ask("wait", count=2)
            assert other.peer.is_open
        await other.process.ask("close")
        assert await other.process.finish() == 0


async def test_hundred_write_failures_after_a_death_are_all_told(fabric):
    async with connected(fabric) as other, await other.engine.register(pattern(SIZE)) as source:
        transfers = [other.engine.write(source, other.remote) for _ in range(100)]
        other.process.kill()
        start = time.monotonic()
        results = await asyncio.gather(*transfers, return_exceptions=True)
        assert time.monotonic() - start < 1.5
        assert all(result == SIZE or isinstance(result, CompletionError) for result in results)
        failures = [result for result in results if result != SIZE]
        assert all(isinstance(failure, PeerLost) for failure in failures)
        assert all(transfer.released for transfer in transfers)
