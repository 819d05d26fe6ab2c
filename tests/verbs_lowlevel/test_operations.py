# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What each operation of the low layer over libibverbs does, and how each failure is told."""

import asyncio

import pytest

from helpers.verbs_low import IMPATIENT, sides
from pplx_async import CompletionError, PeerLost, QueueFull, RemoteAccessError, WorkFlushed, verbs

pytestmark = pytest.mark.fabrics("verbs", "verbs-fake")


@pytest.mark.parametrize("nbytes", [1, 64, 65, 4096, 100_000])
async def test_write_lands(fabric, nbytes):
    async with sides(fabric) as (a, b):
        _, source = a.memory(nbytes, 5)
        target, memory = b.memory(nbytes + 2)
        await a.pair.write(source, memory.remote[1:-1], context="mine")
        done = await a.outcome()
        assert (done.operation, done.nbytes, done.context, done.error) == ("write", nbytes, "mine", None)
        assert target == b"\0" + bytes([5]) * nbytes + b"\0"
        assert b.queue.poll_nowait() == []  # one-sided


async def test_immediate_takes_a_receive_and_brings_its_context(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(100, 5)
        target, memory = b.memory(100)
        b.pair.recv_nowait(context="a receive")
        await a.pair.write(source, memory.remote, imm=0xFEDCBA98)
        landed = await b.outcome()
        assert (landed.operation, landed.imm, landed.nbytes, landed.context) == (
            "remote_write",
            0xFEDCBA98,
            100,
            "a receive",
        )
        assert target == bytes([5]) * 100
        assert (await a.outcome()).imm is None


async def test_read_fetches(fabric):
    async with sides(fabric) as (a, b):
        target, memory = a.memory(1000)
        _, source = b.memory(1000, 7)
        await a.pair.read(memory, source.remote)
        done = await a.outcome()
        assert (done.operation, done.nbytes) == ("read", 1000)
        assert target == bytes([7]) * 1000


@pytest.mark.parametrize("imm", [None, 0, 17])
async def test_message_meets_its_receive(fabric, imm):
    async with sides(fabric) as (a, b):
        _, source = a.memory(30, 5)
        buffer, memory = b.memory(100)
        await b.pair.recv(memory, context=1)
        await a.pair.send(source, imm=imm)
        got = await b.outcome()
        assert (got.operation, got.nbytes, got.imm, got.context) == ("recv", 30, imm, 1)
        assert buffer[:31] == bytes([5]) * 30 + b"\0"
        assert (await a.outcome()).operation == "send"


async def test_empty_message(fabric):
    async with sides(fabric) as (a, b):
        b.pair.recv_nowait()
        a.pair.send_nowait(None, imm=3)
        got = await b.outcome()
        assert (got.nbytes, got.imm) == (0, 3)


async def test_operations_complete_in_order(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(64)
        memory = b.memory(64)[1]
        for i in range(100):
            a.pair.write_nowait(source, memory.remote, context=i)
        seen = []
        while len(seen) < 100:
            seen += [completion.context for completion in await a.queue.poll()]
        assert seen == list(range(100))


async def test_wrong_key_fails_typed_and_flushes_what_is_behind(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(64, 5)
        target, memory = b.memory(64)
        forged = verbs.RemoteMemory(memory.remote.address, memory.remote.key ^ 0x5A5A00, 64)
        await a.pair.write(source, forged, context="forged")
        refused = await a.outcome()
        assert refused.context == "forged"
        assert isinstance(refused.error, RemoteAccessError)
        assert refused.error.provider_error == 10
        assert refused.error.nbytes == 64
        with pytest.raises(RemoteAccessError, match="key is wrong"):
            refused.raise_for_error()
        assert a.pair.state == "broken"
        await a.pair.write(source, memory.remote)
        assert isinstance((await a.outcome()).error, WorkFlushed)
        assert target == bytes(64)


async def test_range_outside_is_refused(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(65)
        remote = b.memory(64)[1].remote
        await a.pair.write(source, verbs.RemoteMemory(remote.address, remote.key, 65))
        assert isinstance((await a.outcome()).error, RemoteAccessError)


async def test_memory_for_reading_is_not_written(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(64, 5)
        target, memory = b.memory(64, access="read")
        await a.pair.write(source, memory.remote)
        assert isinstance((await a.outcome()).error, RemoteAccessError)
        assert target == bytes(64)


async def test_message_that_is_too_long(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(65)
        memory = b.memory(64)[1]
        b.pair.recv_nowait(memory)
        a.pair.send_nowait(source)
        got = await b.outcome()
        assert isinstance(got.error, CompletionError)
        # A length error (1); rdma_rxe of Linux 6.1 calls it an operation error (2), and its length is lost.
        assert (got.error.provider_error, got.error.status) in ((1, "TRUNCATED"), (2, "TRANSPORT"))
        assert (await a.outcome()).error is not None


async def test_peer_that_is_gone_is_lost(fabric):
    async with sides(fabric, connection=IMPATIENT) as (a, b):
        _, source = a.memory(64)
        remote = b.memory(64)[1].remote
        b.pair.close()
        for i in range(3):
            a.pair.write_nowait(source, remote, context=i)
        first = await a.outcome()
        assert isinstance(first.error, PeerLost)
        rest = [await a.outcome() for _ in range(2)]
        assert [type(completion.error) for completion in rest] == [WorkFlushed] * 2
        assert [completion.context for completion in (first, *rest)] == [0, 1, 2]


async def test_message_without_a_receive(fabric):
    async with sides(fabric, connection={"rnr_retry": 1}) as (a, _):
        a.pair.send_nowait(None)
        error = (await a.outcome()).error
        assert (type(error), error.provider_error) == (CompletionError, 13)
        assert "posted no receive" in str(error)


async def test_abort_flushes_receives(fabric):
    async with sides(fabric) as (a, _):
        a.pair.recv_nowait(context=1)
        a.pair.abort()
        flushed = await a.outcome()
        assert flushed.context == 1
        assert isinstance(flushed.error, WorkFlushed)


async def test_no_room_is_queue_full_and_awaiting_gets_through(fabric):
    async with sides(fabric, send_depth=4) as (a, b):
        _, source = a.memory(64)
        remote = b.memory(64)[1].remote
        with pytest.raises(QueueFull):
            for _ in range(5):
                a.pair.write_nowait(source, remote)
        count = 4

        async def post(number):
            await a.pair.write(source, remote, context=number)

        posts = [asyncio.create_task(post(number)) for number in range(40)]
        seen = []
        while len(seen) < 40 + count:
            seen += await a.queue.poll()
        await asyncio.gather(*posts)
        assert [completion.context for completion in seen] == [None] * 4 + list(range(40))


async def test_queue_is_never_overrun(fabric):
    """Each operation in flight has a place in the completion queue, whatever the depths of queue pairs."""
    async with sides(fabric, entries=4, receive_depth=64) as (a, _):
        posted = 0
        with pytest.raises(QueueFull, match="completion queue"):
            while posted < 64:
                a.pair.recv_nowait()
                posted += 1
        assert posted == a.queue._queue._source.entries
        a.pair.abort()
        flushed = []
        while len(flushed) < posted:
            flushed += await a.queue.poll()


async def test_no_room_for_long_is_a_timeout(fabric, monkeypatch):
    monkeypatch.setattr(verbs, "ROOM_TIMEOUT", 0.05)
    async with sides(fabric, receive_depth=1) as (a, _):
        await a.pair.recv()
        with pytest.raises(TimeoutError, match="receives are posted"):
            await a.pair.recv()


async def test_misuse(fabric):
    async with sides(fabric) as (a, b):
        _, source = a.memory(64)
        remote = b.memory(64)[1].remote
        constant = a.pd.register(b"constant", access="read")
        alone = a.pd.queue_pair(a.queue)
        for call, error in (
            (lambda: a.pair.write_nowait(source, remote[1:]), ValueError),
            (lambda: a.pair.write_nowait(source, remote, imm=2**32), ValueError),
            (lambda: a.pair.write_nowait(source, remote, imm=-1), ValueError),
            (lambda: a.pair.write_nowait(source, None), TypeError),
            (lambda: a.pair.write_nowait(b.memories[0], remote), ValueError),
            (lambda: a.pair.write_nowait(source, verbs.RemoteMemory(0, 2**40, 64)), ValueError),
            (lambda: a.pair.recv_nowait(constant), ValueError),
            (lambda: a.pd.queue_pair(b.queue), ValueError),
            (lambda: a.pd.queue_pair(None), TypeError),
            (lambda: a.pd.queue_pair(a.queue, send_depth=0), ValueError),
            (lambda: alone.write_nowait(source, remote), ValueError),
            (lambda: a.context.completion_queue(0), ValueError),
            (lambda: a.pd.register(b""), ValueError),
            (lambda: a.pair.connect(b"nonsense"), ValueError),
            (lambda: a.pair.connect(b.pair.address, timeout=32), ValueError),
        ):
            with pytest.raises(error):
                call()
        assert a.queue.poll_nowait() == []


@pytest.mark.parametrize(
    "data", [b"", b"PVA1", bytes(36), b"PVA1" + b"\xff" * 32, b"PVA1" + bytes(32), b"PVA1" + bytes(33)]
)
def test_hostile_addresses(data):
    with pytest.raises(ValueError, match=r"address|expected"):
        verbs.Address.from_bytes(data)


def test_address_travels():
    address = verbs.Address(bytes(range(16)), 2**24 - 1, 5, 4096, 7, 16)
    assert verbs.Address.from_bytes(address.to_bytes()) == address
