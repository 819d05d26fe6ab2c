# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What operations do, and what their completions say, on every libfabric."""

import asyncio
import random

import pytest

from helpers.low import sides
from pplx_async import CompletionError, QueueFull, WorkFlushed
from pplx_async import fabric as low

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "efa")]

FI_MSG, FI_REMOTE_WRITE = 1 << 1, 1 << 13


@pytest.fixture
async def pair(fabric):
    """Two sides; b reads its queue in the background, a's is the test's."""
    async with sides(fabric) as (a, b):
        b.serve()
        a.to_b = a.meet(b)
        yield a, b


async def arrived(side, count):
    while len(side.arrived) < count:
        await asyncio.sleep(0.001)


async def test_write_with_immediate(pair):
    a, b = pair
    _, source = a.memory(10_000, 7)
    target, memory = b.memory(10_000)
    await a.endpoint.write(source, a.to_b, memory.remote, imm=2**32 - 1, context="my write")
    done = await a.outcome()
    assert (done.operation, done.context, done.nbytes, done.imm, done.error) == (
        "write",
        "my write",
        10_000,
        None,
        None,
    )
    assert target == bytes([7]) * 10_000
    await arrived(b, 1)
    (landed,) = b.arrived
    assert (landed.operation, landed.context, landed.imm, landed.error) == ("remote_write", None, 2**32 - 1, None)
    assert landed.flags & FI_REMOTE_WRITE


async def test_write_without_immediate_says_nothing_at_the_peer(pair):
    a, b = pair
    _, source = a.memory(100, 7)
    target, memory = b.memory(100)
    await a.endpoint.write(source[10:20], a.to_b, memory.remote[50:60])
    assert (await a.outcome()).raise_for_error().nbytes == 10
    assert target == bytes(50) + bytes([7]) * 10 + bytes(40)
    await a.endpoint.write(source[:0], a.to_b, memory.remote[:0], imm=1)  # an immediate alone
    (await a.outcome()).raise_for_error()
    await arrived(b, 1)
    assert [completion.imm for completion in b.arrived] == [1]


async def test_read(pair):
    a, b = pair
    buffer, target = a.memory(5000)
    async with b.domain.register(bytes(range(250)) * 20) as source:
        assert source.access == "read"
        await a.endpoint.read(target, a.to_b, source.remote, context=9)
        done = await a.outcome()
    assert (done.operation, done.context, done.nbytes, done.error) == ("read", 9, 5000, None)
    assert buffer == bytes(range(250)) * 20


async def test_messages(pair):
    a, b = pair
    buffer, memory = b.memory(1000)
    _, source = a.memory(300, 5)
    await b.endpoint.recv(memory, context="inbox")
    await a.endpoint.send(source, a.to_b)
    assert (await a.outcome()).operation == "send"
    await arrived(b, 1)
    (got,) = b.arrived
    assert (got.operation, got.context, got.nbytes) == ("recv", "inbox", 300)
    assert got.flags & FI_MSG
    assert buffer[:301] == bytes([5]) * 300 + bytes(1)


async def test_message_that_does_not_fit(pair):
    a, b = pair
    _, small = b.memory(10)
    _, source = a.memory(300, 5)
    await b.endpoint.recv(small, context="inbox")
    await a.endpoint.send(source, a.to_b)
    assert (await a.outcome()).operation == "send"
    await arrived(b, 1)
    assert b.arrived[0].context == "inbox"
    assert isinstance(b.arrived[0].error, CompletionError)
    assert b.arrived[0].error.status == "TRUNCATED"


async def test_one_endpoint_and_several_peers(fabric):
    async with sides(fabric, 4) as (a, *others):
        _, source = a.memory(100, 3)
        peers = [a.domain.insert(other.endpoint.address) for other in others]
        memories = []
        for other in others:
            other.serve()
            memories.append(other.memory(100))
        for number, (peer, (_, memory)) in enumerate(zip(peers, memories)):
            await a.endpoint.write(source, peer, memory.remote, imm=number)
        for _ in others:
            (await a.outcome()).raise_for_error()
        for number, (other, (buffer, _)) in enumerate(zip(others, memories)):
            await arrived(other, 1)
            assert other.arrived[0].imm == number
            assert buffer == bytes([3]) * 100


async def test_several_queues_of_one_domain(fabric):
    """Each endpoint's completions are in its own queue, and each queue wakes its own reader."""
    async with sides(fabric) as (a, b):
        b.serve()
        to_b = a.meet(b)
        _, source = a.memory(64, 1)
        _, memory = b.memory(64)
        async with a.domain.completion_queue() as second, a.domain.endpoint(second) as endpoint:
            b.domain.insert(endpoint.address)
            on_first = asyncio.create_task(a.queue.read())
            on_second = asyncio.create_task(second.read())
            await a.endpoint.write(source, to_b, memory.remote, context="first")
            await endpoint.write(source, to_b, memory.remote, context="second")
            assert [completion.context for completion in await on_first] == ["first"]
            assert [completion.context for completion in await on_second] == ["second"]


@pytest.mark.parametrize("readers", [1, 4])
async def test_ten_thousand_completions(fabric, readers):
    """Each comes once, at both ends, with several iterators and with waits that are cancelled."""
    count = 10_000
    async with sides(fabric) as (a, b):
        to_b = a.meet(b)
        _, source = a.memory(64, 1)
        _, memory = b.memory(64)
        done, imms = [], []

        async def collect(queue, into, key):
            async for completion in queue:
                into.append(key(completion.raise_for_error()))

        async def impatient(queue, into, key):
            while True:
                task = asyncio.create_task(queue.read(3))
                await asyncio.sleep(random.random() * 0.001)
                task.cancel()
                for result in await asyncio.gather(task, return_exceptions=True):
                    if not isinstance(result, asyncio.CancelledError):
                        into += [key(completion.raise_for_error()) for completion in result]

        tasks = [asyncio.create_task(collect(b.queue, imms, lambda c: c.imm)) for _ in range(readers)]
        tasks += [asyncio.create_task(collect(a.queue, done, lambda c: c.context)) for _ in range(readers)]
        if readers > 1:
            tasks.append(asyncio.create_task(impatient(a.queue, done, lambda c: c.context)))
        for number in range(count):
            await a.endpoint.write(source, to_b, memory.remote, imm=number, context=number)
        while len(done) < count or len(imms) < count:
            await asyncio.sleep(0.001)
        assert sorted(done) == sorted(imms) == list(range(count))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_many_writers_at_once(pair):
    """More tasks than there is room for: each gets its turn."""
    a, b = pair
    _, source = a.memory(64, 1)
    _, memory = b.memory(64)
    seen = []

    async def collect():
        async for completion in a.queue:
            seen.append(completion.raise_for_error().context)

    reading = asyncio.create_task(collect())
    count = 4 * a.domain.tx_size if a.domain.tx_size < 1000 else a.domain.tx_size + 100
    await asyncio.gather(*(a.endpoint.write(source, a.to_b, memory.remote, imm=i, context=i) for i in range(count)))
    while len(seen) < count:
        await asyncio.sleep(0.001)
    assert sorted(seen) == list(range(count))
    a.queue.close()
    await reading


async def test_full_queue_says_so(pair):
    a, b = pair
    _, source = a.memory(64, 1)
    _, memory = b.memory(64)
    await a.endpoint.write(source, a.to_b, memory.remote, context=-1)  # the way stands from here on
    (await a.outcome()).raise_for_error()
    posted = 0
    with pytest.raises(QueueFull, match="write of 64 B to peer"):
        while posted <= a.domain.tx_size:
            a.endpoint.write_nowait(source, a.to_b, memory.remote, context=posted)
            posted += 1
    assert posted <= a.domain.tx_size
    seen = [(await a.outcome()).raise_for_error().context for _ in range(posted)]
    assert sorted(seen) == list(range(posted))
    await a.endpoint.write(source, a.to_b, memory.remote)
    (await a.outcome()).raise_for_error()


async def test_post_that_never_finds_room_ends(pair, monkeypatch):
    """Nobody reads the queue of the sender: no hang, and the text says what is missing."""
    a, b = pair
    monkeypatch.setattr(low, "AGAIN_TIMEOUT", 0.3)
    _, source = a.memory(64, 1)
    _, memory = b.memory(64)
    posted = 0
    with pytest.raises(TimeoutError, match="nobody reads the completion queue"):
        while posted < 20_000:
            await a.endpoint.write(source, a.to_b, memory.remote)
            posted += 1
    for _ in range(posted):
        (await a.outcome()).raise_for_error()
    await a.endpoint.write(source, a.to_b, memory.remote)
    (await a.outcome()).raise_for_error()


def is_refusal(error):
    """On tcp the peer can only break the connection, which takes with it what was behind."""
    return isinstance(error, CompletionError) and error.status in ("REMOTE_ACCESS", "CONNECTION")


@pytest.mark.parametrize("what", ["key", "range"])
async def test_refused_write_is_a_completion_among_others(pair, what):
    a, b = pair
    _, source = a.memory(64, 9)
    buffer, memory = b.memory(64)
    good = memory.remote
    bad = (
        low.RemoteMemory(good.address, good.key ^ 0x5A5A, 64)
        if what == "key"
        else low.RemoteMemory(good.address + (1 << 30), good.key, 64)
    )
    await a.endpoint.write(source, a.to_b, good, context="before")
    assert (await a.outcome()).raise_for_error().context == "before"
    buffer[:] = bytes(64)
    await a.endpoint.write(source, a.to_b, bad, context="bad")
    done = await a.outcome()
    assert (done.context, done.nbytes) == ("bad", 0)
    assert is_refusal(done.error), done
    assert done.error.peer == a.to_b.label
    assert done.error.operation == "write"
    assert buffer == bytes(64)
    with pytest.raises(CompletionError):
        done.raise_for_error()
    # It goes on; what falls into the moment in which the connection is made anew may fail as well.
    for _ in range(100):
        await a.endpoint.write(source, a.to_b, good, context="after")
        done = await a.outcome()
        assert done.context == "after"
        if not done.error:
            break
    assert buffer == bytes([9]) * 64


async def test_closing_an_endpoint_completes_what_it_had_posted(pair):
    a, b = pair
    _, source = a.memory(1 << 20, 1)
    _, memory = b.memory(1 << 20)
    await a.endpoint.write(source, a.to_b, memory.remote)
    (await a.outcome()).raise_for_error()
    for number in range(8):
        await a.endpoint.write(source, a.to_b, memory.remote, context=number)
    for number in range(8, 12):
        await a.endpoint.recv(source[:64], context=number)
    reading = asyncio.create_task(a.queue.read(1))
    await asyncio.sleep(0)
    a.endpoint.close()
    a.endpoint.close()
    done = await reading  # somebody who waits is told as well
    while len(done) < 12:
        done += await a.queue.read()
    assert sorted(completion.context for completion in done) == list(range(12))
    for completion in done:
        assert completion.error is None or isinstance(completion.error, CompletionError)
    flushed = [completion for completion in done if isinstance(completion.error, WorkFlushed)]
    assert {8, 9, 10, 11} <= {completion.context for completion in flushed}
    assert a.queue.poll() == []


async def test_closing_an_endpoint_leaves_another_ones_completions(fabric):
    async with sides(fabric) as (a, b):
        b.serve()
        to_b = a.meet(b)
        _, source = a.memory(64, 1)
        _, memory = b.memory(64)
        async with a.domain.endpoint(a.queue) as second:
            b.domain.insert(second.address)
            await a.endpoint.write(source, to_b, memory.remote, context="mine")
            await second.write(source, to_b, memory.remote, context="its")
            await asyncio.sleep(0.05)
        done = [await a.outcome() for _ in range(2)]
        assert sorted(completion.context for completion in done) == ["its", "mine"]
        assert next(completion for completion in done if completion.context == "mine").error is None
        await a.endpoint.write(source, to_b, memory.remote)
        (await a.outcome()).raise_for_error()


async def test_peer_that_was_removed_and_inserted_again(pair):
    a, b = pair
    _, source = a.memory(64, 1)
    buffer, memory = b.memory(64)
    await a.endpoint.write(source, a.to_b, memory.remote)
    (await a.outcome()).raise_for_error()
    address = a.to_b.address
    assert a.domain.insert(address) is a.to_b
    a.domain.remove(a.to_b)
    a.domain.remove(a.to_b)
    assert not a.to_b.is_known
    a.to_b = a.domain.insert(address)
    buffer[:] = bytes(64)
    await a.endpoint.write(source, a.to_b, memory.remote)
    (await a.outcome()).raise_for_error()
    assert buffer == bytes([1]) * 64
