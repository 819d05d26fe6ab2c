# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A cable between two hosts that is pulled out in mid-stream, and plugged in again."""

import asyncio
import time

import pytest
import pytest_asyncio

from helpers.networks import open_cable

pytestmark = [
    pytest.mark.fabrics("tcp", "rxm"),
    pytest.mark.tcp,
    pytest.mark.asyncio(loop_scope="module"),
]

LIMIT = 2.5
MOMENT = 0.4
SOONER = LIMIT / 2  # the last heartbeat before the cut may have been late
LATER = 3.0  # on a busy machine
CUT, PLUG = ["link set cable down"], ["link set cable up"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cable(networks, fabric):
    async with open_cable(fabric, peer_timeout=LIMIT, heartbeat_interval=0.1) as ends:
        yield ends


async def check_exchange(ends):
    """Write and read both ways at once, and check what has arrived."""
    told = await ends.both("exchange", seed=1, nbytes=1 << 20, rounds=2)
    seen = await ends.both("memory", nbytes=1 << 20)
    assert [side["digest"] for side in told] == seen[::-1]


async def test_cable_that_is_out_for_a_moment(cable):
    """TCP sends again, at longer and longer intervals: half the limit is what it can make up for."""
    await cable.connect()
    await cable.both("stream")
    await cable.a.ask("ip", commands=CUT)
    await asyncio.sleep(MOMENT)
    await cable.a.ask("ip", commands=PLUG)
    before = await cable.both("state")
    await asyncio.sleep(LIMIT)
    for old, new in zip(before, await cable.both("state"), strict=True):
        assert new["lost"] is None
        assert new["turns"] > old["turns"], "it does not go on"
    await cable.a.ask("close_peer")
    for side in await cable.both("ended"):
        assert {name: facts["error"] for name, facts in side.items()} == dict.fromkeys(side, "ClosedResourceError")


async def test_cable_that_stays_out(cable, record_property):
    await cable.connect()
    await check_exchange(cable)
    await cable.both("stream")
    cut = await cable.a.ask("ip", commands=CUT)
    ended, states = await cable.both("ended"), await cable.both("state")
    noticed = []
    for side, state in zip(ended, states, strict=True):
        assert set(side) == {"write", "read", "wait"}
        for name, facts in side.items():
            assert facts["error"] == "PeerLost", facts
            assert facts["operation"] == name
            assert facts["peer"] == state["peer"]
            assert facts["domain"]
            assert facts["hint"]
            assert "in time" in facts["reason"]
            noticed.append(facts["at"] - cut)
        assert not state["open"]
        assert state["lost"]
    assert min(noticed) > LIMIT - SOONER, noticed
    assert max(noticed) < LIMIT + LATER, noticed
    record_property("noticed_ms", round(max(noticed) * 1e3, 1))
    await cable.both("gone")

    # Whoever tries meanwhile hears that it is no use, in time.
    start = time.monotonic()
    refused = await cable.a.ask("failing_connect", address=cable.addresses[1], timeout=0.5)
    assert refused["error"] in ("TimeoutError", "BrokenResourceError"), refused
    assert time.monotonic() - start < 0.5 + LATER

    await cable.a.ask("ip", commands=PLUG)
    await cable.connect()
    await check_exchange(cable)
    for took in await cable.both("close"):
        assert took < LATER
