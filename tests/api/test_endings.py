# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Endings that meet: closing, revoking and connecting at the same time, and what must hold after each."""

import asyncio

import pytest

from helpers.engines import engine_on, eventually, open_pair
from pplx_async import BrokenResourceError, ClosedResourceError, Peer, PeerLost, TransferEngine, wire
from pplx_async.testing import connected_pair

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_revoke_waits_for_the_same_fence(pair):
    """A second call may not say "nobody writes" before the first one can."""
    target = await pair.target(4096)
    release = asyncio.Event()
    answer = pair.ab._answer_fence

    async def slow(fence):
        await release.wait()
        await answer(fence)

    pair.ab._answer_fence = slow
    revokes = [asyncio.ensure_future(target.region.revoke()) for _ in range(3)]
    await asyncio.sleep(0.05)
    assert not any(revoke.done() for revoke in revokes)
    release.set()
    await asyncio.gather(*revokes)
    pair.ab._answer_fence = answer


@pytest.mark.parametrize("what", ["lookup", "group"])
async def test_peer_whose_channel_has_just_ended_is_lost_to_whoever_asks_it(fabric, what):
    """Between the end of the channel and the loss that follows from it there is a moment."""
    async with open_pair(fabric) as pair:
        pair.ab._channel._frames.eof_received()
        with pytest.raises(PeerLost) as caught:
            await (pair.ab.lookup("name") if what == "lookup" else pair.a.group("name", [pair.ab]))
        assert caught.value.peer == pair.ab.label


async def test_goodbye_that_is_read_late_is_no_loss(fabric):
    """Who has heard our goodbye closes its endpoints, and our NIC may notice that before we read its own."""
    async with open_pair(fabric, heartbeat_interval=0.01) as pair:
        bound = pair.a.counter(peer=pair.ab)
        wait = asyncio.ensure_future(bound.wait(1))
        lost = []
        on_lost, pair.a._core.on_peer_lost = (
            pair.a._core.on_peer_lost,
            lambda *given: (lost.append(given), on_lost(*given)),
        )
        pair.ab._channel._frames.transport.pause_reading()
        closing = asyncio.ensure_future(pair.ab.close())
        await eventually(lambda: lost, "our NIC notices that the endpoint is closed")
        await asyncio.sleep(0.01)
        assert not wait.done()
        pair.ab._channel._frames.transport.resume_reading()
        await closing
        assert pair.ab.lost is None
        assert await pair.ab.wait_closed() is None
        with pytest.raises(ClosedResourceError):
            await wait
        with pytest.raises(ClosedResourceError):
            pair.ab.send(b"late")


async def test_peer_that_says_no_goodbye_keeps_nobody_waiting(fabric):
    async with open_pair(fabric, heartbeat_interval=0.01) as pair:
        bound = pair.a.counter(peer=pair.ab)
        wait = asyncio.ensure_future(bound.wait(1))
        pair.ba._post = lambda message: None
        await pair.ab.close()
        with pytest.raises((PeerLost, ClosedResourceError)):
            await wait


async def test_revoke_after_close_fences_too(pair):
    target = await pair.target(4096)
    await target.region.close()
    await target.region.revoke()
    source = await pair.source(4096)
    with pytest.raises(BrokenResourceError):
        pair.a.write(source, target.remote)


async def test_closed_region_gives_its_buffer_back(pair):
    buffer = bytearray(4096)
    region = await pair.b.register(buffer)
    pair.ab.region(region.to_bytes())
    with pytest.raises(BufferError):
        buffer.extend(b"x")
    await region.close()
    buffer.extend(b"x")
    assert len(buffer) == 4097


async def test_old_descriptor_of_a_counter_counts_on_no_other(pair):
    counter, remote = pair.counter()
    old = counter.to_bytes()
    await counter.close()
    await eventually(lambda: remote.closed, "the peer has heard it")
    with pytest.raises(BrokenResourceError, match="closed"):
        pair.ab.counter(old)


async def test_nobody_breaks_a_counter_of_another_peer(fabric):
    async with open_pair(fabric) as pair, TransferEngine(pair.a.options) as third:
        stranger = await third.connect(pair.b.address)
        counter = pair.b.counter(peer=pair.ba)
        shared = pair.b.counter()
        stranger._post(wire.CounterBroken(counter.id, 8, "no business of mine"))
        stranger._post(wire.CounterBroken(shared.id, 8, "perhaps mine"))
        await eventually(lambda: shared.broken is not None, "the second report has arrived")
        assert counter.broken is None


async def test_who_connects_while_the_engine_closes_is_refused(fabric):
    async with open_pair(fabric) as pair:
        connecting = [asyncio.ensure_future(pair.a.connect(pair.b.address)) for _ in range(3)]
        await asyncio.sleep(0)
        await pair.a.close()
        for outcome in await asyncio.gather(*connecting, return_exceptions=True):
            assert isinstance(outcome, (ClosedResourceError, BrokenResourceError)) or not outcome.is_open
        assert pair.a.peers == ()
        assert not pair.a._peers


async def test_peers_that_leave_are_not_kept(fabric):
    async with open_pair(fabric) as pair:
        for _ in range(5):
            async with TransferEngine(pair.a.options) as guest:
                await guest.connect(pair.b.address)
        await eventually(lambda: len(pair.b._peers) == 1, "the guests are gone")
        assert len(pair.b._connector.accepted) == 0


async def test_fence_flood_ends_the_peer_and_nothing_else(fabric):
    async with open_pair(fabric) as pair:
        release = asyncio.Event()

        async def busy(fence):
            await release.wait()

        pair.ab._answer_fence = busy
        for serial in range(10):
            pair.ba._post(wire.Fence(serial, tuple(range(wire.MAX_FENCED)), ()))
        await eventually(lambda: not pair.ab.is_open, "the peer is cut off")
        release.set()
        assert "fences faster than they can be confirmed" in str(pair.ab.lost)
        assert pair.a.is_open
        assert pair.b.is_open


async def test_wait_closed_tells_a_loss_from_a_goodbye(fabric):
    async with open_pair(fabric) as pair:
        waiting = asyncio.ensure_future(pair.ab.wait_closed())
        await asyncio.sleep(0)
        assert not waiting.done()
        await pair.b.close()
        assert await waiting is None
    async with open_pair(fabric) as pair:
        waiting = asyncio.ensure_future(pair.ab.wait_closed())
        pair.ba._channel._frames.fail("as if the process had died")
        lost = await waiting
        assert lost is not None
        assert "control channel" in str(lost)


async def test_engine_that_is_not_open_yet_says_so(fabric):
    engine = TransferEngine(fabric="loopback")
    for call in (lambda: engine.write(None, None), lambda: engine.notify([]), lambda: engine.counter()):
        with pytest.raises(ClosedResourceError, match="not open yet"):
            call()


async def test_name_of_a_peer_is_printable():
    async with connected_pair(name="bad\nname\x1b[31m") as (there, here):
        assert there.label.isprintable()
        assert here.label.isprintable()


async def test_close_waits_for_who_may_write_already(fabric, monkeypatch):
    """The side that connects has our Ready, we don't have its own yet, and close: its writes land."""
    establish = Peer._expect
    listener_goes_on = asyncio.Event()

    async def late(self, kind):
        if kind is wire.Ready and self._engine is b:
            await listener_goes_on.wait()
        return await establish(self, kind)

    monkeypatch.setattr(Peer, "_expect", late)
    async with engine_on(fabric) as a, engine_on(fabric) as b:
        ab = await a.connect(b.address)
        target = bytearray(1 << 20)
        source, region = await a.register(b"x" * len(target)), await b.register(target)
        writes = [a.write(source, ab.region(region.to_bytes())) for _ in range(8)]
        closing = asyncio.ensure_future(b.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        listener_goes_on.set()
        assert await asyncio.gather(*writes) == [len(target)] * 8
        await closing
        await ab.wait_closed()
        assert ab.lost is None
        assert target == b"x" * len(target)


async def test_close_ends_a_call_that_nobody_answers(fabric):
    async def listen(reader, writer):
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with silent, engine_on(fabric) as engine:
        port = silent.sockets[0].getsockname()[1]
        calling = asyncio.create_task(engine.connect(f"127.0.0.1:{port}"))
        await eventually(lambda: engine._connector.calls, "it calls")
        async with asyncio.timeout(5):  # half of its time to connect
            await engine.close()
            with pytest.raises(ClosedResourceError, match="the engine is closed"):
                await calling


async def test_call_that_is_cancelled_while_the_engine_closes_is_cancelled(fabric):
    async def listen(reader, writer):
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with silent, engine_on(fabric) as engine:
        port = silent.sockets[0].getsockname()[1]
        calling = asyncio.create_task(engine.connect(f"127.0.0.1:{port}"))
        await eventually(lambda: engine._connector.calls, "it calls")
        closing = asyncio.create_task(engine.close())
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await closing
