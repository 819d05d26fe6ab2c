# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two real processes: writes, goodbye, an end without one, fork. Those that are killed: tests/reliability."""

import asyncio
import contextlib
import hashlib
import json

import numpy as np
import pytest
import uvloop

from helpers.engines import SOON, engine_on, pattern
from helpers.process import helper
from pplx_async import ClosedResourceError, PeerLost

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "ipc", "verbs"), pytest.mark.tcp]

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
