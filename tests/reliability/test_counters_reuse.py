# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Ids of counters go round while others count at them: none shows what was not sent to it."""

import asyncio
import contextlib
import json
import random

import pytest
import uvloop

from helpers.counting import LARGE
from helpers.engines import SOON, engine_on, eventually
from helpers.process import helper

pytestmark = [pytest.mark.fabrics("tcp", "ipc", "verbs"), pytest.mark.tcp]

SLOTS = 4  # counters that a process may count at, at a time
OPENED = 250  # counters in all, for each process
UNTOLD = 3  # counters that are open meanwhile, and that nobody knows


class Owner:
    """Our engine; closes its counters under the hands of those who count there, and remembers what they showed."""

    def __init__(self, engine, seed):
        self.engine = engine
        self.random = random.Random(seed)
        self.shown = {}  # by key, when it was closed
        self.descriptors = {}
        self.ids = set()
        self.opened = 0

    def open(self, name, peer):
        counter = self.engine.counter(peer=peer)
        self.opened += 1
        self.ids.add(counter.id)
        if name is not None:
            self.descriptors[counter._key] = counter.to_bytes().hex()
            self.engine.publish(name, counter)
        return counter

    async def close(self, counter):
        self.shown[counter._key] = counter.value
        await counter.close()

    async def turn(self, name, peer, count):
        """Let the process have one counter after the other; what nobody has been told of stays 0."""
        for _ in range(count):
            counter = self.open(name, self.random.choice([peer, None]) if peer.is_open else None)
            untold = [self.open(None, None) for _ in range(UNTOLD)]
            await asyncio.sleep(self.random.random() * 0.006)
            for each in untold:
                assert each.value == 0, f"counter {each.id} shows {each.value}, and nobody knows it"
                await self.close(each)
            await self.close(counter)

    def check(self, allowed, descriptors):
        """Whether what counters showed is what was sent to them; `allowed` is [least, most] by key."""
        for key in descriptors:
            most = allowed.get(str(key), (0, 0))[1]
            assert self.shown[key] <= most, f"counter {key} showed {self.shown[key]}, {most} were sent"


@contextlib.asynccontextmanager
async def counting(fabric, owner, names, seed):
    """A process that counts, and our side of it."""
    given = {"fabric": fabric.name, **fabric.options}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    async with (
        await owner.engine.register(owner.engine.empty(LARGE)) as region,
        helper("counting", json.dumps(given)) as process,
    ):
        process.post("open", address=owner.engine.address, region=region.to_bytes().hex(), names=names, seed=seed)
        peer = await owner.engine.accept()
        await process.answer()
        yield process, peer


async def test_no_counter_shows_what_was_not_sent_to_it(fabric, tmp_path):
    """Two processes count without end while their counters are closed and the ids go round."""
    async with engine_on(fabric, name="owner") as engine:
        owner = Owner(engine, 1)
        names = [[f"{side}{slot}" for slot in range(SLOTS)] for side in "ab"]
        async with counting(fabric, owner, names[0], 2) as a, counting(fabric, owner, names[1], 3) as b:
            async with asyncio.TaskGroup() as group:
                for (_, peer), side in ((a, names[0]), (b, names[1])):
                    for name in side:
                        group.create_task(owner.turn(name, peer, OPENED // SLOTS))
            stray = engine.stats().stray_imms
            # What is open now is not closed before all has arrived.
            last = [owner.open(name, None) for name in (*names[0], *names[1])]
            await eventually(lambda: all(counter.value > 3 for counter in last), "they count at the last ones too")
            allowed = {}
            for number, (process, _) in enumerate((a, b)):
                path = tmp_path / f"{number}.json"
                await process.ask("stop", path=str(path))
                assert await process.ask("failures") == []
                for key, (least, most) in json.loads(path.read_text()).items():
                    allowed[key] = [sum(pair) for pair in zip(allowed.get(key, (0, 0)), (least, most))]
            for counter in last:
                least, most = allowed[str(counter._key)]
                # A write that has ended has landed; our proxy thread counts it when it has a core.
                await eventually(lambda c=counter, n=least: c.value >= n, "what has landed is counted")
                assert counter.value <= most
                await owner.close(counter)
            owner.check(allowed, owner.descriptors)
            # It was put to the test: ids went round, and immediates came for counters that were closed.
            assert owner.opened > 4 * len(owner.ids)
            assert stray > 0


async def test_processes_that_start_again_count_at_no_counter_of_before(fabric, tmp_path):
    """Each is killed in the midst; the next one also tries the descriptors that were given to those before it."""
    async with engine_on(fabric, name="owner") as engine:
        owner = Owner(engine, 4)
        names = [f"c{slot}" for slot in range(SLOTS)]
        told = []
        for life in range(4):
            async with counting(fabric, owner, names, life) as (process, peer):
                before = dict(owner.descriptors)
                assert await process.ask("refused", descriptors=list(before.values())[-300:]) == min(len(before), 300)
                turns = [asyncio.create_task(owner.turn(name, peer, OPENED // SLOTS // 2)) for name in names]
                if life < 3:
                    await asyncio.sleep(owner.random.random() * 0.2)
                    process.kill()
                    await eventually(lambda p=peer: p.lost is not None, "it is lost")
                await asyncio.wait_for(asyncio.gather(*turns), SOON)
                told = [key for key in owner.descriptors if key not in before]
                if life == 3:
                    path = tmp_path / "last.json"
                    await process.ask("stop", path=str(path))
                    assert await process.ask("failures") == []
                    owner.check(json.loads(path.read_text()), told)
        assert owner.opened > 4 * len(owner.ids)
