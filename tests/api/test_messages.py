# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Peer.send and TransferEngine.messages: two-sided, both ways, flow control included."""

import asyncio
import contextlib

import pytest

from helpers.engines import SOON, eventually, open_pair
from pplx_async import ClosedResourceError, Message, PeerLost

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def receive(engine, count):
    got = []
    async with asyncio.timeout(SOON):
        async with contextlib.aclosing(engine.messages()) as messages:
            async for message in messages:
                got.append(message)
                if len(got) == count:
                    return got
    raise AssertionError("the messages ended early")


async def test_one_message(pair):
    transfer = pair.ab.send(b"hello")
    assert transfer.operation == "send"
    assert await transfer == 5
    (message,) = await receive(pair.b, 1)
    assert message == Message(pair.ba, b"hello")
    assert message.peer is pair.ba


@pytest.mark.parametrize("data", [b"", b"\0", bytearray(b"abc"), memoryview(b"12345"), bytes(8192)], ids=len)
async def test_kinds_and_sizes(pair, data):
    assert await pair.ab.send(data) == len(data)
    (message,) = await receive(pair.b, 1)
    assert message.data == bytes(data)
    assert type(message.data) is bytes


async def test_data_is_copied_at_the_call(pair):
    data = bytearray(b"before")
    transfer = pair.ab.send(data)
    data[:] = b"after!"
    await transfer
    assert (await receive(pair.b, 1))[0].data == b"before"


async def test_too_long_is_refused(pair):
    with pytest.raises(ValueError, match=r"8193 B is longer than peer .* takes \(8192 B\)"):
        pair.ab.send(bytes(8193))
    with pytest.raises(TypeError):
        pair.ab.send("text")
    with pytest.raises(TypeError):
        pair.ab.send(5)


async def test_many_both_ways(pair):
    # Many more than there are slots: credits come back, nobody waits for ever, nothing is lost.
    count = 500
    sends = [pair.ab.send(f"a{i}".encode()) for i in range(count)]
    sends += [pair.ba.send(f"b{i}".encode()) for i in range(count)]
    at_b, at_a, *lengths = await asyncio.gather(receive(pair.b, count), receive(pair.a, count), *sends)
    assert sum(lengths) == 2 * sum(len(f"a{i}") for i in range(count))
    assert sorted(message.data for message in at_b) == sorted(f"a{i}".encode() for i in range(count))
    assert sorted(message.data for message in at_a) == sorted(f"b{i}".encode() for i in range(count))
    assert {message.peer for message in at_b} == {pair.ba}


async def test_messages_wait_for_whoever_reads_later(pair):
    # Half of the 16 slots are sure to be free: credits come back in halves.
    await asyncio.gather(*(pair.ab.send(bytes([i])) for i in range(8)))
    await asyncio.sleep(0.02)
    assert sorted(message.data for message in await receive(pair.b, 8)) == [bytes([i]) for i in range(8)]


async def test_sends_wait_for_room_at_a_program_that_does_not_read(fabric):
    async with open_pair(fabric, message_slots=4) as pair:
        sends = [pair.ab.send(bytes([i])) for i in range(20)]
        await eventually(lambda: sum(send.done() for send in sends) == 4, "there is room for four")
        await asyncio.sleep(0.1)
        assert sum(send.done() for send in sends) == 4
        sends[-1].cancel()
        got = await receive(pair.b, 19)
        assert sorted(message.data for message in got) == [bytes([i]) for i in range(19)]
        assert await asyncio.gather(*sends[:-1]) == [1] * 19
        assert sends[-1].cancelled()


async def test_several_iterators_share_the_stream(pair):
    async def take(into):
        async for message in pair.b.messages():
            into.append(message.data)

    one, two = [], []
    tasks = [asyncio.create_task(take(into)) for into in (one, two)]
    await asyncio.gather(*(pair.ab.send(bytes([i])) for i in range(50)))
    await eventually(lambda: len(one) + len(two) == 50, "all messages are read")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(one + two) == [bytes([i]) for i in range(50)]


async def test_cancelled_reader_loses_nothing(pair):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            async for _ in pair.b.messages():
                raise AssertionError("nobody sent anything")
    await pair.ab.send(b"later")
    assert (await receive(pair.b, 1))[0].data == b"later"


async def test_iterator_survives_a_timeout(pair):
    messages = pair.b.messages()
    for i in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(messages), 0.01)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await anext(messages)
        await pair.ab.send(bytes([i]))
        assert (await asyncio.wait_for(anext(messages), SOON)).data == bytes([i])
    await messages.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(messages)


@pytest.mark.parametrize(("ours", "theirs"), [(64, 4096), (4096, 64)])
async def test_the_smaller_limit_holds(fabric, ours, theirs):
    async with open_pair(fabric, message_nbytes=ours, b={"message_nbytes": theirs}) as pair:
        for sender, receiver in ((pair.ab, pair.b), (pair.ba, pair.a)):
            assert await sender.send(bytes(64)) == 64
            assert (await receive(receiver, 1))[0].data == bytes(64)
            with pytest.raises(ValueError, match="longer"):
                sender.send(bytes(65))


async def test_one_slot_is_enough(fabric):
    async with open_pair(fabric, message_slots=1) as pair:
        sends = [pair.ab.send(bytes([i])) for i in range(40)]
        got = await receive(pair.b, 40)
        await asyncio.gather(*sends)
        assert sorted(message.data for message in got) == [bytes([i]) for i in range(40)]


async def test_end_of_the_engine_ends_the_iterator(fabric):
    async with open_pair(fabric) as pair:
        got = []
        reader = asyncio.create_task(receive_all(pair.b, got))
        await pair.ab.send(b"last")
        await eventually(lambda: got, "it is read")
        messages = pair.b.messages()
        await pair.b.close()
        await asyncio.wait_for(reader, SOON)
        assert got == [b"last"]
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(messages)
        with pytest.raises((ClosedResourceError, PeerLost)):
            await pair.ab.send(b"too late")


async def receive_all(engine, into):
    async for message in engine.messages():
        into.append(message.data)
