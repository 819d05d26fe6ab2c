# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Packets that are lost, late, out of order and twice there: the data is right, and nobody is lost for it."""

import pytest
import pytest_asyncio

from helpers.networks import open_wire

pytestmark = [
    pytest.mark.fabrics("tcp", "rxm"),
    pytest.mark.tcp,
    pytest.mark.asyncio(loop_scope="module"),
]

NBYTES = 256 << 10
ALL = {"loss": 0.05, "delay": 0.02, "jitter": 0.01, "reorder": 0.05, "duplicate": 0.05}
PLANS = {
    "late": {"delay": 0.02, "jitter": 0.01},
    "out of order and twice": {"delay": 0.002, "jitter": 0.002, "reorder": 0.2, "duplicate": 0.2},
    "lost": {"loss": 0.05},
    "all of it": ALL,
}
SHOWS = {"loss": "lost", "jitter": "overtaking", "reorder": "overtaking", "duplicate": "duplicated"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(networks, fabric):
    """Two engines which meet over a wire that is as bad as it gets.

    They have more patience than the default of 3 s. A packet that is lost at 5 % four times in a row has TCP wait for
    longer than that, and a peer that says nothing for so long is rightly lost. For 10 s it is six times.
    """
    async with open_wire(fabric, peer_timeout=10.0) as (ends, wire):
        await wire.ask("follow", seed=1, **ALL)
        await ends.connect()
        yield ends, wire


@pytest.mark.parametrize("plan", PLANS)
async def test_data_is_right_and_nobody_is_lost(wire, plan, record_property):
    ends, wire = wire
    plan = PLANS[plan]
    await wire.ask("follow", seed=2, **plan)
    told = await ends.both("exchange", seed=len(plan), nbytes=NBYTES, rounds=2)
    seen = await ends.both("memory", nbytes=NBYTES)
    assert [side["digest"] for side in told] == seen[::-1]
    assert [(side["open"], side["lost"], side["inflight"]) for side in await ends.both("state")] == [
        (True, None, 0)
    ] * 2
    counts = await wire.ask("counts")
    for fault in plan.keys() & SHOWS.keys():
        assert counts[SHOWS[fault]] > 0, f"{fault}: {counts}"
    record_property("lost_packets", f"{counts['lost']} of {counts['sent']}")
    record_property("bytes_per_second", round(sum(side["nbytes"] / side["seconds"] for side in told)))


async def test_slow_wire_loses_nobody(wire):
    """All that was asked for takes longer than the limit: heartbeats must not stand behind that."""
    ends, wire = wire
    limit, rate, nbytes = 2.0, 1 << 20, 3 << 20
    await wire.ask("follow", seed=3)
    await ends.both("close")
    await ends.open(peer_timeout=limit, heartbeat_interval=0.1)
    await ends.connect()
    await wire.ask("follow", seed=3, rate=rate)
    told = await ends.both("exchange", seed=5, nbytes=nbytes, rounds=1)
    assert min(side["seconds"] for side in told) > 2 * limit  # each way, of 3 MiB
    assert [side["lost"] for side in await ends.both("state")] == [None, None]
