# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Shards that fail at random: what a counter shows was sent whole, or the counter says that it is broken."""

import asyncio

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from helpers.engines import eventually, open_pair, pattern
from pplx_async import BrokenResourceError, CompletionError, PeerLost
from pplx_async.testing import FaultPlan

SIZE = 24 << 10  # of a write: above shard_nbytes
EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    phases=[Phase.generate],  # the threads' times differ from run to run: a smaller example need not fail
)


class Write:
    """A write that the receiver expects, from its own bytes into its own place."""

    def __init__(self, pair, source, target, at, remote):
        self.pair, self.source, self.target = pair, source, target
        self.at, self.remote = slice(at, at + SIZE), remote
        self.least = self.most = 0  # what it has counted

    @property
    def is_whole(self):
        return np.array_equal(self.target.array[self.at], pattern(SIZE, self.at.start))

    def submit(self):
        return self.pair.a.write(self.source[self.at], self.target.remote[self.at], counter=self.remote)

    async def run(self, tries, patience):
        """Write, and write again if it fails, as long as the counter takes it."""
        for _ in range(tries):
            try:
                async with asyncio.timeout(patience):
                    await self.submit()
            except PeerLost:
                return
            except CompletionError:
                continue  # it counts nothing, or the counter is broken
            except BrokenResourceError:
                return  # ask for a new one
            except TimeoutError:
                self.most = 1  # whole, or not at all
                return
            self.least = self.most = 1
            return


def delay_reports(peer, delay):
    """Let what the sender says of broken counters come late: the NIC is quicker than the control channel."""
    loop = asyncio.get_running_loop()
    tell = peer._engine._break_counter
    peer._engine._break_counter = lambda *told: loop.call_later(delay, tell, *told)


async def check_fractions(pair, expected, tries, patience, late):
    """Write to a counter for each of the numbers in `expected`, so often, through what fails or dies."""
    nbytes = SIZE * sum(expected)
    source = await pair.source(np.concatenate([pattern(SIZE, at) for at in range(0, nbytes, SIZE)]))
    target = await pair.target(nbytes)
    delay_reports(pair.ba, late)
    at, groups = 0, []
    for count in expected:
        counter, remote = pair.counter()
        writes = [Write(pair, source, target, at + i * SIZE, remote) for i in range(count)]
        at += count * SIZE
        groups.append((counter, writes))

    async def receive(counter, writes):
        try:
            assert await counter.wait(len(writes)) == len(writes)
        except (BrokenResourceError, PeerLost):
            return False
        assert all(write.is_whole for write in writes)
        return True

    receiving = [asyncio.create_task(receive(counter, writes)) for counter, writes in groups]
    await asyncio.gather(*(write.run(tries, patience) for _, writes in groups for write in writes))
    if pair.ab.is_open:
        # The answer comes behind all reports.
        with pytest.raises((KeyError, PeerLost)):
            await pair.ab.lookup("nothing")
    await asyncio.sleep(late)
    for (counter, writes), task in zip(groups, receiving, strict=True):
        least, most = (sum(getattr(write, name) for write in writes) for name in ("least", "most"))
        if pair.is_healthy and counter.broken is None:
            await eventually(lambda c=counter, n=least: c.value >= n, "what has landed is counted")
            assert counter.value <= most
            if counter.value < len(writes):
                task.cancel()
        await asyncio.wait({task})
        told = not task.cancelled() and task.result()
        assert not told or counter.broken is None
        event(f"lost: {not pair.is_healthy}, broken: {counter.broken is not None}, told that all is there: {told}")


@EXAMPLES
@given(
    seed=st.integers(0, 2**32),
    domains=st.sampled_from([(1, 1), (2, 2), (4, 4), (8, 8), (4, 2), (1, 4), (3, 2)]),
    expected=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    fail=st.sampled_from([0.05, 0.2, 0.5]),
    status=st.sampled_from(["INTERNAL", "REMOTE_ACCESS", "TRANSPORT", "CONNECTION"]),
    message=st.sampled_from([None, 8 << 10, 1 << 10]),
    tries=st.integers(1, 3),
    patience=st.sampled_from([None, None, 0.0, 0.0005]),
    late=st.sampled_from([0.0, 0.01]),
)
async def test_fractions_of_failed_writes_never_make_a_whole_one(
    seed, domains, expected, fail, status, message, tries, patience, late
):
    """Who waits for all that it expects of a counter is told when all of it is there, or that it fails."""
    plan = FaultPlan(
        seed=seed, fail=fail, fail_status=status, reorder=8, delay_us=(0, 300), again=0.1, max_message=message
    )
    async with open_pair(
        "loopback",
        faults=plan,
        domains=domains[0],
        shard_nbytes=4096,
        heartbeat_interval=0.0,
        b={"domains": domains[1], "faults": FaultPlan()},
    ) as pair:
        await check_fractions(pair, expected, tries, patience, late)


RAILS = {"domains": 3, "devices": ("loop0", "loop1", "loop2"), "shard_nbytes": 4096}


@EXAMPLES
@given(
    seed=st.integers(0, 2**32),
    device=st.integers(0, 2),
    death=st.one_of(
        *[st.builds(lambda n: {"fail_after": n, "fail_status": "PEER_LOST"}, st.integers(8, 30))] * 4,
        st.builds(lambda n: {"drop_after": n}, st.integers(8, 30)),
    ),
    expected=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    message=st.sampled_from([None, 8 << 10, 1 << 10]),
    tries=st.integers(1, 3),
    patience=st.sampled_from([None, None, 0.0, 0.0005]),
    late=st.sampled_from([0.0, 0.01]),
    failover=st.booleans(),
)
@pytest.mark.deadline(240)
async def test_fractions_of_writes_whose_rail_dies_never_make_a_whole_one(
    seed, device, death, expected, message, tries, patience, late, failover
):
    """Of three rails one dies, with any pieces of any writes on it; the peer lives on over the others."""
    plan = FaultPlan(device=device, seed=seed, reorder=8, delay_us=(0, 300), again=0.1, max_message=message, **death)
    options = {"faults": plan, "rail_failover": failover, "peer_timeout": 1.0, **RAILS}
    async with open_pair("loopback", b={"faults": None}, **options) as pair:
        await check_fractions(pair, expected, tries, patience, late)
        event(f"a rail is lost: {any(link.lost for link in pair.ab.stats().links)}")


@EXAMPLES
@given(
    seed=st.integers(0, 2**32),
    domains=st.sampled_from([1, 2, 4]),
    rounds=st.lists(st.tuples(st.integers(1, 5), st.floats(0, 0.003), st.booleans()), min_size=2, max_size=8),
)
async def test_ids_go_round_and_no_counter_shows_what_was_not_sent_to_it(seed, domains, rounds):
    """Counters are closed while writes to them are delayed, shuffled and cancelled; others have their ids soon."""
    plan = FaultPlan(seed=seed, reorder=16, delay_us=(0, 1500), again=0.2)
    async with open_pair("loopback", faults=plan, domains=domains, shard_nbytes=4096) as pair:
        source, target = await pair.source(SIZE), await pair.target(SIZE)
        untold, transfers = [], []
        for count, wait, cancel in rounds:
            counters = [pair.counter() for _ in range(count)]
            untold += [pair.b.counter() for _ in range(count)]
            for counter, remote in counters:
                sent = [pair.a.write(source, target.remote, counter=remote), pair.a.notify(remote)]
                transfers += sent
                assert counter.value <= len(sent)
            await asyncio.sleep(wait)
            for transfer in transfers[-count:] if cancel else ():
                transfer.cancel()
            for counter, _ in counters:
                assert counter.value <= 2
                await counter.close()
            assert not any(counter.value for counter in untold)
        await asyncio.gather(*transfers, return_exceptions=True)
        await eventually(lambda: pair.b.stats().counters == len(untold), "all ids that are closed are free")
        assert not any(counter.value for counter in untold)
        event(f"immediates for nobody: {pair.b.stats().stray_imms > 0}")
        event(f"ids went round: {len({counter.id for counter in untold}) < max(counter.id for counter in untold)}")
        for counter in untold:
            await counter.close()
