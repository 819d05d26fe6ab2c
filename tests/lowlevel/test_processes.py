# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The low layer between two real processes: counted writes both ways, and a peer that is killed."""

import asyncio
import hashlib
import json
import time

import pytest
import uvloop

from helpers.engines import SOON
from helpers.low import Side, open_domain
from helpers.process import helper
from pplx_async import CompletionError
from pplx_async import fabric as low

pytestmark = [pytest.mark.fabrics("tcp", "rxm"), pytest.mark.tcp]

SIZE = 1 << 20


def second_process(fabric):
    given = {"provider": fabric.name, "library": fabric.options["library"]}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    return helper("low", json.dumps(given))


@pytest.fixture
async def side(fabric):
    side = Side(open_domain(fabric))
    yield side
    await side.stop()


async def meet(side, other, nbytes=SIZE):
    told = await other.ask("open", nbytes=nbytes)
    await other.ask("meet", address=side.endpoint.address.hex())
    peer = side.domain.insert(bytes.fromhex(told["address"]))
    return peer, low.RemoteMemory.from_bytes(bytes.fromhex(told["memory"]))


async def test_counted_writes(fabric, side):
    async with second_process(fabric) as other:
        peer, remote = await meet(side, other)
        buffer, source = side.memory(SIZE)
        buffer[:] = bytes(number % 251 for number in range(SIZE))
        page = 4096
        for number in range(SIZE // page):
            part = slice(number * page, (number + 1) * page)
            await side.endpoint.write(source[part], peer, remote[part], imm=number, context=number)
        done = []
        while len(done) < SIZE // page:
            done += [completion.raise_for_error().context for completion in await side.queue.read()]
        assert sorted(done) == list(range(SIZE // page))
        answer = await other.ask("wait", count=SIZE // page)
        assert answer == {
            "count": SIZE // page,
            "sum": sum(range(SIZE // page)),
            "sha256": hashlib.sha256(buffer).hexdigest(),
        }
        # And the other way.
        mine, memory = side.memory(SIZE)
        reading = asyncio.create_task(side.queue.read(1))
        await other.ask("write", memory=memory.remote.to_bytes().hex(), fill=9, imm=77)
        assert [completion.imm for completion in await reading] == [77]
        assert mine == bytes([9]) * SIZE
        await other.ask("close")
        assert await other.finish() == 0


@pytest.mark.parametrize("nbytes", [64, SIZE], ids=["small", "large"])
async def test_peer_that_is_killed(fabric, side, nbytes, monkeypatch):
    """What is in flight ends with errors, what is posted afterwards ends too, and nothing hangs."""
    monkeypatch.setattr(low, "AGAIN_TIMEOUT", 1.0)
    async with second_process(fabric) as other:
        peer, remote = await meet(side, other, nbytes)
        _, source = side.memory(nbytes)
        await side.endpoint.write(source, peer, remote)
        (await side.outcome()).raise_for_error()
        posted = failed = 0
        other.kill()
        started = time.monotonic()
        async with asyncio.timeout(SOON):
            while not failed:
                try:
                    await side.endpoint.write(source, peer, remote, context=posted)
                    posted += 1
                    (completion,) = await side.queue.read(1)
                except (TimeoutError, CompletionError):
                    break  # refused at the post: it was noticed by then
                if completion.error is not None:
                    assert isinstance(completion.error, CompletionError)
                    assert completion.error.peer == peer.label
                    failed += 1
        assert time.monotonic() - started < 5
        with pytest.raises((TimeoutError, CompletionError)):
            for _ in range(1000):  # some are taken, and fail in their turn
                await side.endpoint.write(source, peer, remote)
                for completion in await side.queue.read():
                    completion.raise_for_error()
        side.endpoint.close()


async def test_other_peers_go_on_when_one_is_killed(fabric, side, monkeypatch):
    monkeypatch.setattr(low, "AGAIN_TIMEOUT", 1.0)
    async with second_process(fabric) as doomed, second_process(fabric) as healthy:
        lost, lost_memory = await meet(side, doomed)
        peer, remote = await meet(side, healthy)
        _, source = side.memory(SIZE)
        for to, memory in ((lost, lost_memory), (peer, remote)):
            await side.endpoint.write(source, to, memory)
            (await side.outcome()).raise_for_error()
        for number in range(20):
            await side.endpoint.write(source, lost, lost_memory, context=("lost", number))
        doomed.kill()
        waiting = asyncio.create_task(side.endpoint.write(source, lost, lost_memory, context=("lost", 20)))
        for number in range(20):
            await side.endpoint.write(source, peer, remote, imm=number, context=("healthy", number))
        outcomes = {}
        async with asyncio.timeout(SOON):
            while len([kind for kind, _ in outcomes if kind == "healthy"]) < 20 or len(outcomes) < 40:
                for completion in await side.queue.read():
                    outcomes[completion.context] = completion.error
        assert all(outcomes["healthy", number] is None for number in range(20))
        assert (await healthy.ask("wait", count=20))["sum"] == sum(range(20))
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
