# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A peer is killed, with the engine's defaults: all that names it ends in time and says why; nobody else notices."""

import asyncio
import time

import numpy as np
import pytest

from helpers.engines import SOON, eventually, open_pair
from helpers.survivor import NOTICED, SIZE, Ending, all_end, check_lost, open_survivor, stop
from pplx_async import BrokenResourceError, CompletionError, PeerLost

pytestmark = [pytest.mark.tcp, pytest.mark.asyncio(loop_scope="module")]

PROCESSES = pytest.mark.fabrics("tcp", "rxm", "ipc", "verbs")
# With verbs the NIC answers for a process that is stopped: what is written to it, and read from it, ends.
UNANSWERED = pytest.mark.fabrics("tcp", "rxm", "ipc")


def record(record_property, took):
    """Keep the figures where ``--junitxml`` shows them."""
    for name, seconds in took.items():
        record_property(f"{name}_ms", round(seconds * 1e3, 1))


async def endless(submit, turns, name):
    while True:
        await submit()
        turns[name] = turns.get(name, 0) + 1


@PROCESSES
@pytest.mark.parametrize("does", [(), ("writes", "reads")], ids=["we write and read", "and so does it"])
async def test_killed_in_mid_stream(survivor, does, record_property):
    engine = survivor.engine
    async with survivor.stream():
        pid, peer = await survivor.meet(*does)
        memory, plain = await peer.lookup("memory"), await peer.lookup("plain")
        counter = await peer.lookup_counter("counter")
        order = np.random.default_rng(1).permutation(SIZE // 4096)
        pages = {"page_nbytes": 4096, "local_pages": order, "remote_pages": order[::-1]}
        bound = engine.counter(peer=peer)
        turns = {}
        async with (
            await engine.register(np.ones(SIZE, dtype=np.uint8)) as source,
            await engine.register(np.zeros(SIZE, dtype=np.uint8)) as sink,
        ):
            streams = {
                "write": lambda: engine.write(source, memory, counter=counter),
                "write_pages": lambda: engine.write_pages(source, plain, **pages, counter=counter),
                "scatter": lambda: engine.scatter([(source, memory, counter), (source, plain)]),
                "read": lambda: engine.read(memory, sink),
                "notify": lambda: engine.notify(counter),
                "send": lambda: peer.send(bytes(1000)),
            }
            endings = {name: Ending(endless(submit, turns, name)) for name, submit in streams.items()}
            endings["wait"] = Ending(bound.wait(1))
            await eventually(lambda: len(turns) == len(streams), "each of them runs")
            if does:
                survivor.sink[-1] = 1
                await eventually(lambda: survivor.sink[-1] == 0, "it writes here")
            # Nobody reads the messages there: that one pends for want of a receive, the others run.
            assert not any(ending.done for ending in endings.values())
            took = await all_end(endings, await survivor.kill(pid))
            for name, ending in endings.items():
                # Refused at the call, a scatter has only got as far as one of its writes.
                operation = ending.failure.operation
                check_lost(ending.failure, peer, operation if (name, operation) == ("scatter", "write") else name)
            assert max(took.values()) < NOTICED, took
            record(record_property, took)
            for refused in (lambda: engine.write(source, memory), lambda: peer.send(b""), bound.wait(1).result):
                with pytest.raises(PeerLost):
                    refused()
    await survivor.bury(pid)
    await survivor.forget(peer)


@PROCESSES
async def test_killed_while_nothing_is_under_way(survivor, record_property):
    async with survivor.stream():
        pid, peer = await survivor.meet()
        ending = {"wait_closed": Ending(peer.wait_closed())}
        await asyncio.sleep(0.02)
        took = await all_end(ending, await survivor.kill(pid))
        check_lost(ending["wait_closed"].result, peer, None)
        assert took["wait_closed"] < NOTICED
        record(record_property, took)
    await survivor.bury(pid)
    await survivor.forget(peer)


def waits(survivor, peer, group, plain, region):
    """Everything that can be awaited and names one peer, which does nothing any more."""
    engine = survivor.engine
    bound = engine.counter(peer=peer)

    async def in_a_scope():
        async with engine.scope() as scope:
            scope.write(survivor.source, plain[0 : survivor.source.nbytes])

    async def last_send():
        while True:  # until it has no room left for one
            await peer.send(bytes(1000))

    return {
        "wait": bound.wait(1),
        "take": bound.take(1),
        "write": engine.write(survivor.source, plain[0 : survivor.source.nbytes]),
        "read": engine.read(plain, region),
        "scope": in_a_scope(),
        "send": last_send(),
        "lookup": peer.lookup("nothing"),
        "lookup_counter": peer.lookup_counter("nothing"),
        "barrier": engine.barrier(group),
        "group": engine.group("which it never joins", [peer]),
        "wait_closed": peer.wait_closed(),
        "revoke": region.revoke(),
    }


def check_waits(endings, peer):
    """Nobody is left whom a revoke would have to wait for; the others are told why there is no more to wait for."""
    assert endings["revoke"].failure is None
    check_lost(endings["wait_closed"].result, peer, None)
    (in_scope,) = endings["scope"].failure.exceptions
    check_lost(in_scope, peer, "write")
    check_lost(endings["lookup_counter"].failure, peer, "lookup")
    for name in ("wait", "take", "write", "read", "send", "lookup", "barrier", "group"):
        check_lost(endings[name].failure, peer, name)


@UNANSWERED
async def test_killed_while_everything_waits_for_it(survivor, record_property):
    """It was stopped, so nothing of this can have ended before it is killed."""
    async with survivor.stream():
        pid, peer = await survivor.meet("joins")
        group = await survivor.engine.group("of the doomed", [peer])
        plain = await peer.lookup("plain")
        region = await survivor.engine.register(np.zeros(SIZE, dtype=np.uint8))
        peer_knows_it = region.to_bytes()
        assert peer_knows_it
        await stop(pid)
        endings = {name: Ending(what) for name, what in waits(survivor, peer, group, plain, region).items()}
        await asyncio.sleep(0.1)
        assert [name for name, ending in endings.items() if ending.done] == []
        took = await all_end(endings, await survivor.kill(pid))
        check_waits(endings, peer)
        assert max(took.values()) < NOTICED, took
        record(record_property, took)
        await group.close()
    await survivor.bury(pid)
    await survivor.forget(peer)


@PROCESSES
async def test_killed_while_we_say_goodbye(survivor, record_property):
    async with survivor.stream():
        pid, peer = await survivor.meet()
        await stop(pid)
        ending = {"close": Ending(peer.close())}
        await asyncio.sleep(0.05)
        assert not ending["close"].done
        took = await all_end(ending, await survivor.kill(pid))
        assert ending["close"].failure is None
        assert took["close"] < NOTICED
        record(record_property, took)
    await survivor.bury(pid)
    await eventually(lambda: peer not in survivor.engine._peers, "its endpoints are closed")


@PROCESSES
@pytest.mark.parametrize("point", ["accept", "hello", "endpoints", "ready"])
async def test_killed_in_the_handshake(survivor, point, record_property, caplog):
    """Of whoever calls: we end connecting, and nothing is left of one who was connecting to us."""
    engine = survivor.engine
    before = engine.stats().counters
    async with survivor.stream():
        born = await survivor.nursery.ask("fork", dies=point)
        connecting = {"connect": Ending(engine.connect(born["address"]))}
        took = await all_end(connecting, await survivor.nursery.answer())
        failure = connecting["connect"].failure
        assert isinstance(failure, BrokenResourceError), repr(failure)
        assert born["address"] in str(failure)
        assert failure.hint
        await survivor.bury(born["pid"])

        born = await survivor.nursery.ask("fork", dies=point, address=engine.address)
        died = await survivor.nursery.answer()
        server = engine._connector.server
        await eventually(lambda: len(engine._peers) == 1 and not server._callers, "nothing is left of it")
        took["accept"] = time.monotonic() - died
        await survivor.bury(born["pid"])
        assert max(took.values()) < NOTICED, took
        record(record_property, took)
    assert any("closed a connection" in line or "no connection with" in line for line in caplog.messages)
    await eventually(lambda: engine.stats().counters == before, "its counters are closed")
    assert not engine._connector.accepted
    assert engine.stats().inflight == 0


@PROCESSES
async def test_restarted_peer_can_be_connected_again(survivor):
    engine, old = survivor.engine, None
    for _ in range(3):
        pid, peer = await survivor.meet()
        memory = await peer.lookup("memory")
        counter = await peer.lookup_counter("counter")
        part = memory[0 : survivor.source.nbytes]
        await engine.write(survivor.source, part, counter=counter)
        sink = np.zeros(survivor.source.nbytes, dtype=np.uint8)
        async with await engine.register(sink) as local:
            await engine.read(part, local)
        assert np.array_equal(sink, survivor.data)
        if old is not None:
            with pytest.raises(PeerLost):
                engine.write(survivor.source, old)
        await survivor.kill(pid)
        assert isinstance(await asyncio.wait_for(peer.wait_closed(), SOON), PeerLost)
        await survivor.bury(pid)
        await survivor.forget(peer)
        old = part


@PROCESSES
async def test_hundred_write_failures_after_a_death_are_all_told(survivor):
    pid, peer = await survivor.meet()
    plain = (await peer.lookup("plain"))[0 : survivor.source.nbytes]
    transfers = [survivor.engine.write(survivor.source, plain) for _ in range(100)]
    start = await survivor.kill(pid)
    results = await asyncio.gather(*transfers, return_exceptions=True)
    assert time.monotonic() - start < NOTICED
    failures = [result for result in results if isinstance(result, CompletionError)]
    assert len(failures) + results.count(survivor.source.nbytes) == 100
    for failure in failures:
        check_lost(failure, peer, "write")
    assert all(transfer.released for transfer in transfers)
    await survivor.bury(pid)
    await survivor.forget(peer)


@PROCESSES
async def test_region_that_a_dead_peer_was_writing_to_can_be_used_again(survivor):
    pid, peer = await survivor.meet("writes")
    engine = survivor.engine
    memory = np.ones(SIZE, dtype=np.uint8)
    region = await engine.register(memory)
    survivor.sink[-1] = 1
    await eventually(lambda: survivor.sink[-1] == 0, "it writes here")
    await survivor.kill(pid)
    await asyncio.wait_for(peer.wait_closed(), NOTICED)
    await asyncio.wait_for(region.revoke(), NOTICED)  # nobody is left who could hold it up
    await survivor.bury(pid)
    await survivor.forget(peer)
    survivor.sink[:] = 1
    await asyncio.sleep(0.05)
    assert survivor.sink.all()


async def test_waits_end_with_the_control_channel(fabric):
    """As if the process had died, on every fabric; nobody has answered, since no time has passed."""
    async with open_pair(fabric) as pair:
        engine, peer = pair.a, pair.ab
        group, _ = await asyncio.gather(engine.group("both", [peer]), pair.b.group("both", [pair.ba]))
        bound = engine.counter(peer=peer)
        endings = {
            "wait": Ending(bound.wait(1)),
            "take": Ending(bound.take(1)),
            "lookup": Ending(peer.lookup("nothing")),
            "barrier": Ending(engine.barrier(group)),
            "group": Ending(engine.group("which it never joins", [peer])),
            "wait_closed": Ending(peer.wait_closed()),
        }
        await asyncio.sleep(0)
        assert [name for name, ending in endings.items() if ending.done] == []
        pair.ba._channel._frames.fail("as if the process had died")
        took = await all_end(endings, time.monotonic())
        for name in ("wait", "take", "lookup", "barrier", "group"):
            check_lost(endings[name].failure, peer, name)
        check_lost(endings["wait_closed"].result, peer, None)
        assert max(took.values()) < NOTICED


async def test_waits_that_begin_between_death_and_loss(fabric):
    """The control channel has ended, and the proxy thread has not lost the peer yet: that is no error of its own."""
    async with open_pair(fabric) as pair:
        engine, peer = pair.a, pair.ab
        peer._channel._frames.fail("as if the process had died")
        assert peer.is_open
        endings = {
            "lookup": Ending(peer.lookup("nothing")),
            "group": Ending(engine.group("which it never joins", [peer])),
        }
        await all_end(endings, time.monotonic())
        for name, ending in endings.items():
            check_lost(ending.failure, peer, name)


@PROCESSES
async def test_killed_with_several_links_is_a_loss_of_the_peer(fabric):
    """Its links end one after the other: what was on the first of them must not hear of that link only."""
    async with open_survivor(fabric, domains=2) as survivor:
        engine, source = survivor.engine, survivor.source
        for _ in range(10):
            pid, peer = await survivor.meet()
            memory = (await peer.lookup("memory"))[0 : source.nbytes]
            counter = await peer.lookup_counter("counter")
            turns = {}
            streams = {
                "write": lambda memory=memory, counter=counter: engine.write(source, memory, counter=counter),
                "notify": lambda counter=counter: engine.notify(counter),
            }
            endings = {name: Ending(endless(submit, turns, name)) for name, submit in streams.items()}
            await eventually(lambda turns=turns: len(turns) == 2, "each of them runs")
            await all_end(endings, await survivor.kill(pid))
            for name, ending in endings.items():
                check_lost(ending.failure, peer, name)
            await asyncio.wait_for(peer.wait_closed(), SOON)
            await survivor.bury(pid)
            await survivor.forget(peer)
