# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""PeerGroup, notify to a group, and barrier among three engines."""

import asyncio
import contextlib
import random

import pytest
import pytest_asyncio

from helpers.engines import connect, engine_on, eventually, open_pair
from pplx_async import BrokenResourceError, ClosedResourceError, PeerGroup, PeerLost, wire
from pplx_async.peer import MAX_UNREAD_JOINS

pytestmark = pytest.mark.asyncio(loop_scope="module")


@contextlib.asynccontextmanager
async def open_mesh(fabric, count=3):
    """Open engines, each connected to each other; yields (engine, peers) of each."""
    async with contextlib.AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(engine_on(fabric, name=f"member {i}")) for i in range(count)]
        peers = [[] for _ in engines]
        for i in range(count):
            for j in range(i):
                ij, ji = await connect(engines[i], engines[j])
                peers[i].append(ij)
                peers[j].append(ji)
        yield list(zip(engines, peers, strict=True))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(fabric):
    async with open_mesh(fabric) as members:
        yield members


async def form(mesh, name):
    return await asyncio.gather(*(engine.group(name, peers) for engine, peers in mesh))


async def test_forming_and_notifying(mesh):
    groups = await form(mesh, "first")
    assert all(isinstance(group, PeerGroup) and group.name == "first" and len(group.peers) == 2 for group in groups)
    await mesh[0][0].notify(groups[0])
    for group in groups[1:]:
        assert await group.counter.wait(1) == 1
    await asyncio.gather(*(engine.notify(group) for (engine, _), group in zip(mesh, groups, strict=True)))
    assert await groups[0].counter.wait(2) == 2
    for group in groups[1:]:
        assert await group.counter.wait(3) == 3
    for group in groups:
        await group.close()


async def test_nobody_leaves_a_barrier_before_all_have_come(mesh):
    rounds = 100
    groups = await form(mesh, "barrier")
    come = [0] * len(mesh)
    rng = random.Random(5)

    async def member(index):
        engine, _ = mesh[index]
        for number in range(1, rounds + 1):
            if rng.random() < 0.3:
                await asyncio.sleep(rng.random() * 0.003)
            come[index] = number
            await engine.barrier(groups[index])
            assert min(come) >= number

    async with asyncio.TaskGroup() as tasks:
        for index in range(len(mesh)):
            tasks.create_task(member(index))
    assert come == [rounds] * len(mesh)
    for group in groups:
        await group.close()


async def test_barrier_waits_for_the_last_one(mesh):
    groups = await form(mesh, "late")
    early = [asyncio.create_task(mesh[i][0].barrier(groups[i])) for i in (0, 1)]
    _, pending = await asyncio.wait(early, timeout=0.05)
    assert len(pending) == 2
    await mesh[2][0].barrier(groups[2])
    await asyncio.gather(*early)
    for group in groups:
        await group.close()


async def test_name_can_be_used_again(mesh):
    for _ in range(3):
        groups = await form(mesh, "again")
        await asyncio.gather(*(engine.barrier(group) for (engine, _), group in zip(mesh, groups, strict=True)))
        for group in groups:
            await group.close()


async def test_two_groups_side_by_side(mesh):
    one, two = await asyncio.gather(form(mesh, "one"), form(mesh, "two"))
    await mesh[0][0].notify(one[0])
    await one[1].counter.wait(1)
    assert two[1].counter.value == 0
    for group in (*one, *two):
        await group.close()


async def test_what_is_refused(mesh):
    engine, peers = mesh[0]
    with pytest.raises(ValueError, match="at least one other member"):
        await engine.group("nobody", [])
    with pytest.raises(ValueError, match="only once"):
        await engine.group("twice", [peers[0], peers[0]])
    with pytest.raises(ValueError, match="another engine"):
        await engine.group("strangers", [mesh[1][1][0]])


async def test_cancelled_forming_leaves_no_counter(mesh):
    engine, peers = mesh[0]
    before = engine.stats().counters
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await engine.group("nobody comes", peers)
    await eventually(lambda: engine.stats().counters == before, "its counters are closed")


async def test_member_that_leaves_ends_the_barrier_of_the_others(fabric):
    async with open_mesh(fabric) as mesh:
        groups = await form(mesh, "doomed")
        waiting = [asyncio.create_task(mesh[i][0].barrier(groups[i])) for i in (0, 1)]
        await asyncio.sleep(0.02)
        await mesh[2][0].close()
        for task in waiting:
            with pytest.raises((PeerLost, ClosedResourceError)):
                await asyncio.wait_for(task, 5)
        with pytest.raises((PeerLost, ClosedResourceError)):
            await mesh[0][0].barrier(groups[0])


async def test_member_that_dies_while_another_is_awaited_ends_the_forming(fabric):
    async with open_mesh(fabric) as mesh:
        engine, peers = mesh[0]
        forming = asyncio.create_task(engine.group("doomed", peers))
        await asyncio.sleep(0.05)
        await mesh[2][0].close()  # the other one has not joined yet
        with pytest.raises((PeerLost, ClosedResourceError)):
            await asyncio.wait_for(forming, 5)
        with pytest.raises((PeerLost, ClosedResourceError)):
            await engine.group("doomed", peers)


async def test_member_that_has_joined_and_dies_ends_the_forming(fabric):
    async with open_mesh(fabric) as mesh:
        joined = asyncio.create_task(mesh[2][0].group("doomed", mesh[2][1]))
        forming = asyncio.create_task(mesh[0][0].group("doomed", mesh[0][1]))
        await eventually(lambda: "doomed" in mesh[0][1][1]._joined, "its join is here")
        await mesh[2][0].close()
        for task in (joined, forming):
            with pytest.raises((PeerLost, ClosedResourceError)):
                await asyncio.wait_for(task, 5)


async def give_up(pair, name):
    """Try to form a group at b while a doesn't, and give up."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await pair.b.group(name, [pair.ba])


async def meet(pair, first, second):
    """Check that two groups are one and the same."""
    async with asyncio.timeout(5):
        one, two = await asyncio.gather(first, second)
        for _ in range(2):
            await asyncio.gather(pair.a.barrier(one), pair.b.barrier(two))
        await asyncio.gather(one.close(), two.close())


async def test_forming_again_after_a_timeout(fabric):
    async with open_pair(fabric) as pair:
        for _ in range(3):
            await give_up(pair, "retried")
            await eventually(lambda: "retried" in pair.ab._joined, "a knows of it")
        last = asyncio.create_task(pair.b.group("retried", [pair.ba]))
        _, pending = await asyncio.wait({last}, timeout=0.1)
        assert pending, "it awaits a, and was not ended with the attempts before"
        await meet(pair, pair.a.group("retried", [pair.ab]), last)
        assert not pair.ab._joins
        assert not pair.ba._joins


async def test_forming_again_before_the_other_side_knows(fabric):
    async with open_pair(fabric) as pair:
        for _ in range(3):
            await give_up(pair, "at once")
            # b's first join is still unread at a, and a cannot know yet that b has given it up.
            await meet(pair, pair.a.group("at once", [pair.ab]), pair.b.group("at once", [pair.ba]))
        await eventually(lambda: not pair.ab._joined and not pair.ba._joined, "no join is left over")


async def test_attempt_that_was_given_up_does_not_count(fabric):
    async with open_pair(fabric) as pair:
        await give_up(pair, "stale")
        await eventually(lambda: pair.ab._unread_join("stale") is None, "a knows that b gave up")
        forming = asyncio.create_task(pair.a.group("stale", [pair.ab]))
        _, pending = await asyncio.wait({forming}, timeout=0.1)
        assert pending, "it was formed with closed counters"
        # a's join is not of the attempt that b gave up: it stays valid.
        await meet(pair, forming, pair.b.group("stale", [pair.ba]))


async def test_attempt_that_is_given_up_while_another_member_is_awaited(fabric):
    async with open_mesh(fabric) as mesh:
        forming = asyncio.create_task(mesh[0][0].group("slow", mesh[0][1]))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await mesh[1][0].group("slow", mesh[1][1])
        for seen in (mesh[0][1][0], mesh[2][1][1]):
            await eventually(lambda seen=seen: "slow" in seen._joined and not seen._unread_join("slow"), "it is known")
        last = asyncio.create_task(mesh[2][0].group("slow", mesh[2][1]))
        _, pending = await asyncio.wait({forming, last}, timeout=0.1)
        assert len(pending) == 2, "it was formed with closed counters"
        async with asyncio.timeout(5):
            groups = await asyncio.gather(forming, mesh[1][0].group("slow", mesh[1][1]), last)
            await asyncio.gather(*(engine.barrier(group) for (engine, _), group in zip(mesh, groups, strict=True)))


async def test_name_that_is_being_formed_is_refused(fabric):
    async with open_pair(fabric) as pair:
        forming = asyncio.create_task(pair.a.group("twice", [pair.ab]))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="being formed already"):
            await pair.a.group("twice", [pair.ab])
        await meet(pair, forming, pair.b.group("twice", [pair.ba]))


async def test_barrier_and_notify_of_a_group_that_a_member_closed(fabric):
    async with open_pair(fabric) as pair:
        async with asyncio.timeout(5):
            one, two = await asyncio.gather(pair.a.group("left", [pair.ab]), pair.b.group("left", [pair.ba]))
        await two.close()
        await eventually(lambda: all(member.barrier.closed for member in one._members), "a knows")
        for _ in range(2):
            with pytest.raises(BrokenResourceError, match="closed by peer"):
                await asyncio.wait_for(pair.a.barrier(one), 5)
        with pytest.raises(BrokenResourceError, match="closed by peer"):
            pair.a.notify(one)
        await one.close()


async def test_barrier_ends_when_a_member_closes_the_group(fabric):
    async with open_mesh(fabric) as mesh:
        groups = await form(mesh, "left")
        waiting = [asyncio.create_task(mesh[i][0].barrier(groups[i])) for i in (0, 1)]
        _, pending = await asyncio.wait(waiting, timeout=0.05)
        assert len(pending) == 2
        await groups[2].close()
        for task in waiting:
            with pytest.raises(BrokenResourceError, match=r"group 'left' was closed by peer member 2"):
                await asyncio.wait_for(task, 5)
        for i in (0, 1):
            with pytest.raises(BrokenResourceError, match="closed by peer member 2"):
                await mesh[i][0].barrier(groups[i])
        with pytest.raises(ClosedResourceError, match="'left' is closed"):
            await mesh[2][0].barrier(groups[2])
        # The peers are connected as before.
        await asyncio.gather(groups[0].close(), groups[1].close())
        again = await form(mesh, "left")
        await asyncio.gather(*(engine.barrier(group) for (engine, _), group in zip(mesh, again, strict=True)))


@pytest.mark.parametrize("closes", ["group", "engine"])
async def test_barrier_that_all_have_come_to_does_not_fail(fabric, closes):
    async with open_mesh(fabric) as mesh:
        (a, _), (b, _), (c, _) = mesh
        one, two, three = await form(mesh, "passed")
        waiting = asyncio.create_task(a.barrier(one))
        passing = asyncio.create_task(b.barrier(two))
        # c has come as well, but a has not heard of it yet when b, who has, is gone already.
        to_a, to_b = three._members
        await c.notify(to_b.barrier)
        await asyncio.wait_for(passing, 5)
        await asyncio.wait_for(two.close() if closes == "group" else b.close(), 5)
        await eventually(lambda: one._members[0].barrier.closed or not one.peers[0].is_open, "a knows")
        _, pending = await asyncio.wait({waiting}, timeout=0.1)
        assert pending
        await c.notify(to_a.barrier)
        await asyncio.wait_for(waiting, 5)
        with pytest.raises((BrokenResourceError, ClosedResourceError)):
            await a.barrier(one)


async def test_leaving_right_after_a_barrier(mesh):
    for _ in range(50):
        groups = await form(mesh, "short")

        async def member(index, groups=groups):
            await mesh[index][0].barrier(groups[index])
            await groups[index].close()

        await asyncio.gather(*(member(index) for index in range(len(mesh))))


async def test_cancelled_barrier_has_come_all_the_same(fabric):
    async with open_pair(fabric) as pair:
        async with asyncio.timeout(5):
            one, two = await asyncio.gather(pair.a.group("in", [pair.ab]), pair.b.group("in", [pair.ba]))
        cancelled = asyncio.create_task(pair.b.barrier(two))
        await eventually(lambda: one._members[0].came.value, "b has come")
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        coming = asyncio.create_task(pair.a.barrier(one))
        await asyncio.wait_for(two.close(), 5)
        await asyncio.wait_for(coming, 5)  # b had come before it left
        await one.close()


async def test_peer_cannot_name_groups_without_end(fabric):
    async with open_pair(fabric) as pair:
        async with asyncio.timeout(15):
            for round in range(1, 3):  # the same names again take no more room
                for i in range(MAX_UNREAD_JOINS):
                    await pair.ba._channel.send(
                        wire.GroupJoin(f"group {i}", (round << 20) + 2, (round << 20) + 3, None)
                    )
            await eventually(lambda: len(pair.ab._joined) == MAX_UNREAD_JOINS, "all are there")
            await asyncio.sleep(0.05)
            assert pair.ab.is_open
            await pair.ba._channel.send(wire.GroupJoin("one more", 3 << 20, 3 << 20 | 1, None))
            await eventually(lambda: not pair.ab.is_open, "the peer is cut off")
            assert len(pair.ab._joined) == MAX_UNREAD_JOINS
