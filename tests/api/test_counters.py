# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""ImmCounter and RemoteCounter: wait, take, value; early, cancelled, bound, closed and broken."""

import asyncio
import weakref

import pytest

from helpers.engines import connect, engine_on, eventually, open_pair
from pplx_async import BrokenResourceError, ClosedResourceError, ImmCounter, PeerLost, RemoteCounter
from pplx_async.testing import FaultPlan
from pplx_async.wire import CounterBroken

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_immediates_before_anyone_waits_are_counted(pair):
    counter, remote = pair.counter()
    assert counter.value == counter.available == 0
    for _ in range(5):
        await pair.a.notify(remote)
    await eventually(lambda: counter.value == 5, "five notifications are counted")
    assert await counter.wait(5) == 5
    assert await counter.wait(3) == 5


async def test_wait_of_zero_is_done_at_once(pair):
    counter, _ = pair.counter()
    wait = counter.wait(0)
    assert wait.done()
    assert await wait == 0


@pytest.mark.parametrize("count", [-1, -(2**40)])
async def test_negative_counts_are_refused(pair, count):
    counter, _ = pair.counter()
    with pytest.raises(ValueError, match="must not be negative"):
        counter.wait(count)
    with pytest.raises(ValueError, match="at least 1"):
        counter.take(count)
    with pytest.raises(ValueError, match="at least 1"):
        counter.take(0)


async def test_waits_compare_among_themselves_only(pair):
    counter, _ = pair.counter()
    one, two = counter.wait(1), counter.wait(2)
    assert one < two
    for other in (None, 5, counter, asyncio.Future()):
        with pytest.raises(TypeError, match="not supported"):
            one < other  # noqa: B015
    one.cancel()
    two.cancel()


async def test_wait_never_consumes(pair):
    counter, remote = pair.counter()
    waits = [counter.wait(2) for _ in range(4)]
    assert not any(wait.done() for wait in waits)
    await asyncio.gather(pair.a.notify(remote), pair.a.notify(remote))
    assert await asyncio.gather(*waits) == [2] * 4
    assert counter.available == 2


async def test_waits_end_in_the_order_of_their_counts(pair):
    counter, remote = pair.counter()
    ended = []
    waits = []
    for count in (4, 1, 3, 2):
        wait = counter.wait(count)
        wait.add_done_callback(lambda _, count=count: ended.append(count))
        waits.append(wait)
    for goal in range(1, 5):
        await pair.a.notify(remote)
        await counter.wait(goal)
    await asyncio.gather(*waits)
    assert ended == [1, 2, 3, 4]


async def test_take_is_first_come_first_served(pair):
    counter, remote = pair.counter()
    ended = []
    takes = []
    for name, count in (("first", 3), ("second", 1), ("third", 2)):
        take = counter.take(count)
        take.add_done_callback(lambda _, name=name: ended.append(name))
        takes.append(take)
    await pair.a.notify([remote, remote])
    await counter.wait(2)
    await asyncio.sleep(0.02)
    assert ended == []  # the second one could be served, and waits for the first
    assert counter.available == 2
    await pair.a.notify([remote] * 4)
    await asyncio.gather(*takes)
    assert ended == ["first", "second", "third"]
    assert counter.available == 0
    assert counter.value == 6


async def test_cancelled_take_takes_nothing_and_lets_the_next_one_on(pair):
    counter, remote = pair.counter()
    first, second = counter.take(5), counter.take(1)
    first.cancel()
    await pair.a.notify(remote)
    assert await second >= 1
    with pytest.raises(asyncio.CancelledError):
        await first
    assert counter.available == 0
    await pair.a.notify(remote)
    await counter.wait(2)
    assert counter.available == 1


async def test_cancelled_waits_leave_the_others(pair):
    counter, remote = pair.counter()
    waits = [counter.wait(n % 3 + 1) for n in range(30)]
    for wait in waits[::2]:
        wait.cancel()
    await pair.a.notify([remote] * 3)
    counts = await asyncio.gather(*waits[1::2])
    assert all(count >= n % 3 + 1 for n, count in zip(range(1, 30, 2), counts, strict=True))
    assert all(wait.cancelled() for wait in waits[::2])
    assert counter.value == 3


async def test_cancelled_waits_do_not_pile_up(pair):
    counter, remote = pair.counter()
    kept = counter.wait(2)
    dropped = []
    for number in range(1000):
        promise = counter.wait(10**6 + number) if number % 2 else counter.take(10**6)
        dropped.append(weakref.ref(promise))
        promise.cancel()
    del promise
    assert sum(reference() is not None for reference in dropped) < 100
    await pair.a.notify([remote, remote])
    assert await kept == 2


async def test_timed_out_wait_takes_nothing(pair):
    counter, remote = pair.counter()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await counter.take(1)
    await pair.a.notify(remote)
    await counter.wait(1)
    assert counter.available == 1
    await counter.take(1)
    assert counter.available == 0


async def test_many_counters_do_not_mix(pair):
    counters = [pair.counter() for _ in range(50)]
    assert len({counter.id for counter, _ in counters}) == 50
    batch = pair.a.batch()
    for number, (_, remote) in enumerate(counters):
        batch.notify(remote, number)
    await batch.submit()
    for number, (counter, _) in enumerate(counters):
        assert await counter.wait(number) == number


async def test_counter_by_hand_over_a_descriptor(pair):
    counter = pair.b.counter()
    assert isinstance(counter, ImmCounter)
    descriptor = counter.to_bytes()
    assert len(descriptor) < 64
    for form in (bytes, bytearray, memoryview):
        remote = pair.ab.counter(form(descriptor))
        assert isinstance(remote, RemoteCounter)
        assert remote.counter == counter.id
        assert remote.owner is pair.ab
    await counter.close()


async def test_closed_counter(pair):
    async with pair.b.counter() as counter:
        wait, take = counter.wait(1), counter.take(1)
    for promise in (wait, take, counter.wait(0), counter.take(1)):
        with pytest.raises(ClosedResourceError):
            await promise
    await counter.close()


async def test_writes_to_a_closed_counter_end_with_an_error_once_it_is_fenced(pair):
    counter, remote = pair.counter()
    await counter.close()

    def refused():
        try:
            pair.a.notify(remote)
        except BrokenResourceError as error:
            return "closed by peer" in str(error)
        return False

    await eventually(refused, "the peer has heard that the counter is closed")


async def test_ids_are_used_again_and_old_descriptors_count_nothing(pair):
    first, remote = pair.counter()
    await first.close()
    await eventually(lambda: remote.closed, "the peer has heard that the counter is closed")
    for _ in range(20):
        counter, new_remote = pair.counter()
        assert counter.value == 0
        await pair.a.notify(new_remote)
        assert await counter.wait(1) == 1
        await counter.close()
        await eventually(lambda used=new_remote: used.closed, "fenced")
    with pytest.raises(BrokenResourceError):
        pair.a.notify(remote)
    # The oldest free id comes first: sooner or later it is this one's.
    later = []
    while not any(counter.id == first.id for counter in later):
        later.append(pair.counter()[0])
        assert len(later) < 5000
    with pytest.raises(BrokenResourceError, match="closed"):
        pair.ab.counter(first.to_bytes())
    for counter in later:
        await counter.close()


async def test_who_connects_later_cannot_count_by_an_old_descriptor(fabric):
    """The counter was closed before that peer came, and its id is another one's by now."""
    async with engine_on(fabric, name="owner") as owner, engine_on(fabric, name="late") as late:
        closed, open_ones = owner.counter(), [owner.counter()]
        descriptor = closed.to_bytes()
        await closed.close()
        await eventually(lambda: closed.id not in owner._counters, "its id is free")
        while open_ones[-1].id != closed.id:
            open_ones.append(owner.counter())
        peer, _ = await connect(late, owner)
        with pytest.raises(BrokenResourceError, match="closed"):
            peer.counter(descriptor)
        await late.notify([peer.counter(counter.to_bytes()) for counter in open_ones])
        for counter in open_ones:
            assert await counter.wait(1) == counter.value == 1


async def test_id_is_free_only_when_what_has_arrived_is_counted():
    """The peer's last immediate is acknowledged, and unread: our NIC wakes nobody, and is looked at now and then."""
    quiet = {"faults": FaultPlan(wait_fd=False), "poll_interval": 1.0, "heartbeat_interval": 0.0, "progress": "proxy"}
    async with open_pair("loopback", faults=FaultPlan(), heartbeat_interval=0.0, b=quiet) as pair:
        last, asked = asyncio.Event(), asyncio.Event()
        answer = pair.ab._answer_fence

        async def answer_behind_the_last(fence):
            asked.set()
            await last.wait()
            await answer(fence)

        pair.ab._answer_fence = answer_behind_the_last
        stray = pair.b.stats().stray_imms
        counter, remote = pair.counter()
        await counter.close()  # it does not count any more; that the peer has stopped goes on in the background
        await asked.wait()
        await pair.a.notify(remote)
        last.set()
        others = []
        while not any(other.id == counter.id for other in others):
            await asyncio.sleep(0)
            others.append(pair.b.counter())
        await eventually(lambda: pair.b.stats().stray_imms == stray + 1, "it is dropped")
        assert [other.value for other in others] == [0] * len(others)


async def test_broken_counter_raises_now_and_later_and_says_what_is_missing(pair):
    counter, remote = pair.counter()
    wait, take = counter.wait(1), counter.take(2)
    # What a sender reports whose counted write failed after a part of it was posted.
    pair.ab._post(CounterBroken(counter.id, 12, "the NIC caught fire"))
    for promise in (wait, take):
        with pytest.raises(BrokenResourceError, match=r"misses 1\.5 write.* the NIC caught fire"):
            await promise
    assert isinstance(counter.broken, BrokenResourceError)
    with pytest.raises(BrokenResourceError):
        await counter.wait(0)
    # Others are as they were.
    other, other_remote = pair.counter()
    await pair.a.notify(other_remote)
    assert await other.wait(1) == 1
    await pair.a.notify(remote)  # counted for nothing, and no error


async def test_report_about_an_unknown_counter_is_ignored(pair):
    pair.ab._post(CounterBroken(2**20 - 1, 8, "no such thing"))
    await pair.write(100)
    assert pair.is_healthy


async def test_bound_waits_end_when_the_peer_leaves(fabric):
    async with open_pair(fabric) as pair:
        bound, remote = pair.counter()
        free = pair.b.counter()
        await pair.a.notify(remote)
        await bound.wait(1)
        short, take, other = bound.wait(2), bound.take(2), free.wait(1)
        await pair.ab.close()
        for promise in (short, take):
            with pytest.raises((ClosedResourceError, PeerLost)):
                await asyncio.wait_for(asyncio.shield(promise), 5)
        assert await bound.wait(1) == 1  # what has landed has landed
        with pytest.raises((ClosedResourceError, PeerLost)):
            await bound.wait(2)
        assert not other.done()
        await free.close()
        with pytest.raises(ClosedResourceError):
            await other


async def test_stray_immediate_is_dropped_and_shows_in_stats(pair):
    counter, remote = pair.counter()
    before = pair.b.stats().stray_imms
    await pair.b._core.counter_close(counter)  # without telling the peer
    await pair.a.notify(remote)
    await eventually(lambda: pair.b.stats().stray_imms == before + 1, "the stray immediate shows in stats")
    counter.is_open = True  # let the fixture close it as usual
