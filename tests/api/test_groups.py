# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""PeerGroup, notify to a group, and barrier among three engines."""

import asyncio
import contextlib
import random

import pytest
import pytest_asyncio

from helpers.engines import connect, engine_on
from pplx_async import ClosedResourceError, PeerGroup, PeerLost

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


@pytest.mark.deadline(30)
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
    for _ in range(500):
        if engine.stats().counters == before:
            break
        await asyncio.sleep(0.005)
    assert engine.stats().counters == before


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
