# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Engines on verbs, over devices that tests make up: which are chosen, several of them, and what their failures say."""

import asyncio
import ctypes
import errno
import time

import numpy as np
import pytest

from helpers.engines import Pair, connect, engine_on, eventually, pattern
from helpers.require import find_fabric
from pplx_async import (
    BrokenResourceError,
    NativeCallError,
    PeerLost,
    ProviderUnavailable,
    RailLost,
    RegistrationError,
    verbs,
)

PORT_ERR, DEVICE_FATAL = 10, 8  # of enum ibv_event_type
BOTH = {"devices": ("x0", "x1"), "domains": 2}


class Counts(ctypes.Structure):
    """The struct fake_counts of tests/fake_ibverbs/fake_control.h."""

    _fields_ = [
        ("contexts", ctypes.c_uint64),
        ("objects", ctypes.c_uint64),
        ("doorbells", ctypes.c_uint64),
        ("requests", ctypes.c_uint64),
        ("signalled", ctypes.c_uint64),
        ("arms", ctypes.c_uint64),
        ("events", ctypes.c_uint64),
        ("polls", ctypes.c_uint64),
        ("refused", ctypes.c_uint64),
        ("complaints", ctypes.c_uint64),
        ("cut_short", ctypes.c_uint64),
    ]


class Devices:
    """The fake libibverbs, and what tests ask of it."""

    def __init__(self, path):
        self.library = ctypes.CDLL(path)

    def layout(self, text):
        assert self.library.fake_ibv_layout(text.encode()) == 0, text

    def event(self, device, port, kind):
        assert self.library.fake_ibv_event(device.encode(), port, kind) == 0

    def cut(self, device, lost=True):
        assert self.library.fake_ibv_cut(device.encode(), 1, int(lost)) == 0

    def linger(self, device, ms):
        assert self.library.fake_ibv_linger(device.encode(), ms) == 0

    def change(self, device, words):
        assert self.library.fake_ibv_change(device.encode(), words.encode()) == 0

    def route(self, device):
        """The service level and the traffic class of its newest queue pair."""
        level, traffic_class = ctypes.c_int(), ctypes.c_int()
        assert self.library.fake_ibv_route(device.encode(), ctypes.byref(level), ctypes.byref(traffic_class)) == 0
        return level.value, traffic_class.value

    def counts(self):
        counts = Counts()
        self.library.fake_ibv_counts(ctypes.byref(counts))
        return counts


@pytest.fixture(scope="module")
def fake():
    found = find_fabric("verbs-fake")
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


@pytest.fixture
def devices(fake):
    """Nothing stays open, and nothing was misused."""
    made = Devices(fake.options["library"])
    before = made.counts()
    yield made
    after = made.counts()
    assert (after.contexts, after.objects) == (0, 0)
    assert after.complaints == before.complaints
    made.layout("fake0 roce gbps=100 ip=10.77.0.1")


async def check(fake, a, b, nbytes):
    ab, ba = await connect(a, b)
    pair = Pair(fake, a, b, ab, ba)
    await pair.write(nbytes)
    await pair.forget()
    return ab


async def test_a_peer_is_reached_over_nics_of_different_speed(fake, devices):
    devices.layout("x0 roce gbps=100 ip=10.0.0.1; x1 roce gbps=25 ip=10.0.0.2")
    async with (
        engine_on(fake, **BOTH) as a,
        engine_on(fake, **BOTH) as b,
    ):
        await check(fake, a, b, 3 << 20)
        (peer,) = a.stats().peers
        assert all(link.posted["write_imm"] for link in peer.links)
        assert len(peer.links) == 2
        assert "25 Gb/s" in str(a.explain())


async def test_peers_may_have_different_numbers_of_nics(fake, devices):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2; x2 roce ip=10.0.0.3")
    async with engine_on(fake, **BOTH) as a, engine_on(fake, devices=("x2",)) as b:
        await check(fake, a, b, 1 << 20)
        await check(fake, b, a, 1 << 20)


# Two rails, which do not reach each other.
RAILS = "x0 roce ip=10.0.0.1; x1 roce ip=10.0.1.1 net=1; y0 roce ip=10.0.0.2; y1 roce ip=10.0.1.2 net=1"


@pytest.mark.parametrize(
    ("ours", "theirs", "links"),
    [
        (("x0", "x1"), ("y1", "y0"), [(0, 1), (1, 0)]),
        (("x0",), ("y0", "y1", "y0", "y1"), [(0, 0), (0, 2)]),
        (("x1", "x0", "x1"), ("y0",), [(1, 0)]),
        (("x0", "x1", "x0", "x1"), ("y0", "y1"), [(0, 0), (1, 1), (2, 0), (3, 1)]),
    ],
)
async def test_rails_in_two_subnets_are_joined_where_they_reach(fake, devices, ours, theirs, links):
    devices.layout(RAILS)
    async with (
        engine_on(fake, devices=ours, domains=len(ours)) as a,
        engine_on(fake, devices=theirs, domains=len(theirs)) as b,
    ):
        ab = await check(fake, a, b, 3 << 20)
        await check(fake, b, a, 3 << 20)
        assert [(link.domain, link.remote_domain) for link in ab.stats().links] == links
        assert "10.0.0.0/24" in str(a.explain())


async def test_nics_that_cannot_meet_are_named_on_both_sides(fake, devices):
    devices.layout("x0 roce ip=10.0.0.1; x1 ib lid=5")
    async with engine_on(fake, devices=("x0",)) as a, engine_on(fake, devices=("x1",)) as b:
        with pytest.raises(BrokenResourceError, match=r"(?=.*ipv4:10.0.0.0/24)(?=.*ib:fe80::/64)"):
            await a.connect(b.address)
        with pytest.raises(BrokenResourceError, match=r"no NIC of one side reaches one of the other"):
            await b.connect(a.address)


async def test_bytes_are_shared_out_by_speed(fake, devices):
    devices.layout("x0 roce gbps=100 ip=10.0.0.1; x1 roce gbps=25 ip=10.0.0.2")
    async with engine_on(fake, **BOTH) as a, engine_on(fake, **BOTH) as b:
        ab, ba = await connect(a, b)
        pair = Pair(fake, a, b, ab, ba)
        for nbytes in (256 << 10, 1 << 20, 3 << 20, 12345):
            await pair.write(nbytes)
        pages = 2000
        source, target = await pair.source(pages * 1024), await pair.target(pages * 1024)
        await a.write_pages(
            source, target.remote, page_nbytes=1024, local_pages=range(pages), remote_pages=range(pages)
        )
        await pair.forget()
        links = ab.stats().links
        carried = [link.nbytes["write"] + link.nbytes["write_imm"] for link in links]
        assert [link.domain for link in links] == [0, 1]
        assert 0.75 < carried[0] / sum(carried) < 0.85
        assert "80%" in str(a.explain())
        assert "20%" in str(a.explain())


async def test_infiniband_needs_no_address(fake, devices):
    devices.layout("x0 ib lid=4 gbps=400; x1 ib lid=5 gbps=400")
    async with engine_on(fake, devices=("x0",)) as a, engine_on(fake, devices=("x1",)) as b:
        await check(fake, a, b, 1 << 16)
        assert "InfiniBand" in str(a.explain())


# Two virtual functions of one port: they share its LID, and take no packet without a global route. Of the second
# partition both are full members.
FUNCTIONS = "x0 ib grh lid=3 pkey=0x7fff pkey=0x8001; x1 ib grh lid=3 pkey=0x8001"


async def test_virtual_functions_meet_in_their_partition(fake, devices):
    devices.layout(FUNCTIONS)
    marks = {"verbs_service_level": 3, "verbs_traffic_class": 106}
    async with engine_on(fake, devices=("x0",), **marks) as a, engine_on(fake, devices=("x1",)) as b:
        await check(fake, a, b, 1 << 16)
        assert "P_Key 0x8001 (entry 1)" in str(a.explain())
        assert devices.route("x0") == (3, 106)


async def test_the_low_layer_meets_as_the_engine_does(fake, devices):
    devices.layout(FUNCTIONS)
    library = fake.options["library"]
    async with (
        verbs.open("x0", service_level=3, traffic_class=106, library=library) as here,
        verbs.open("x1", library=library) as there,
    ):
        assert (here.port.pkey, here.port.pkey_index) == (0x8001, 1)
        queues = [context.completion_queue() for context in (here, there)]
        domains = [context.protection_domain() for context in (here, there)]
        pairs = [domain.queue_pair(queue) for domain, queue in zip(domains, queues, strict=True)]
        pairs[0].connect(pairs[1].address.to_bytes(), timeout=8)
        pairs[1].connect(pairs[0].address)
        target = bytearray(4)
        source, memory = domains[0].register(b"data"), domains[1].register(target)
        await pairs[0].write(source, memory.remote)
        (done,) = await queues[0].poll()
        assert (done.error, target) == (None, b"data")
        assert devices.route("x0") == (3, 106)
    for wrong in ({"service_level": 16}, {"traffic_class": 256}, {"gid_index": 256}, {"pkey_index": -2}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            verbs.open("x0", library=library, **wrong)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("none", "no RDMA device"),
        ("nosys", "no RDMA device"),
        ("x0 roce down ip=10.0.0.1", "x0: port 1 is down"),
        ("x0 roce", "give its interface an IP address"),
        ("x0 iwarp ip=10.0.0.1", "iWARP"),
    ],
)
async def test_what_cannot_be_used_is_said_with_its_reason(fake, devices, layout, reason):
    devices.layout(layout)
    with pytest.raises(ProviderUnavailable, match=reason):
        async with engine_on(fake):
            pass


async def lose(fake, break_it):
    """Write until the peer is lost, and return how long that took."""
    async with engine_on(fake, devices=("x0",), name="a") as a, engine_on(fake, devices=("x1",), name="b") as b:
        ab, _ = await connect(a, b)
        source = await a.register(pattern(4096))
        target = np.zeros(4096, dtype=np.uint8)
        region = await b.register(target)
        remote = ab.region(region.to_bytes())
        assert await a.write(source, remote) == 4096
        break_it()
        start = time.monotonic()
        with pytest.raises(PeerLost):
            async with asyncio.timeout(10):
                while True:
                    try:
                        await a.write(source, remote)
                    except NativeCallError as error:
                        if error.errno != errno.EIO:  # a device that has failed takes no work, and says so first
                            raise
                        await asyncio.sleep(0)
        return time.monotonic() - start


async def test_a_cable_that_is_cut_loses_the_peer_within_a_second(fake, devices):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2")
    assert await lose(fake, lambda: devices.cut("x1")) < 2


async def test_a_port_that_goes_down_loses_the_peer_within_a_second(fake, devices):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2")
    assert await lose(fake, lambda: devices.event("x0", 1, PORT_ERR)) < 2


async def test_a_device_that_fails_loses_the_peer_at_once(fake, devices):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2")
    assert await lose(fake, lambda: devices.event("x0", 0, DEVICE_FATAL)) < 1


async def broken_rail(fake, devices, failover, counted):
    """Two rails, and four large writes; the second one's cable is cut under them. Return what they ended with."""
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2")
    async with (
        engine_on(fake, **BOTH, rail_failover=failover) as a,
        engine_on(fake, **BOTH, rail_failover=failover) as b,
    ):
        ab, ba = await connect(a, b)
        pair = Pair(fake, a, b, ab, ba)
        source, target = await pair.source(pattern(4 << 20)), await pair.target(4 << 20)
        _, remote = pair.counter()
        devices.cut("x1")
        async with asyncio.timeout(10):
            writes = [a.write(source, target.remote, counter=remote if counted else None) for _ in range(4)]
            ended = await asyncio.gather(*writes, return_exceptions=True)
            await eventually(lambda: ab.stats().links[1].lost and ba.stats().links[1].lost, "both know")
            # The peer lives, over the other one.
            assert await a.write(source, target.remote) == 4 << 20
            await ab.send(b"here")
            assert (await anext(b.messages())).data == b"here"
        assert np.array_equal(target.array, pattern(4 << 20))
        await pair.forget()
        return ended


async def test_one_of_two_nics_that_loses_its_cable_ends_transfers_typed(fake, devices):
    ended = await broken_rail(fake, devices, failover=False, counted=True)
    lost = [error for error in ended if isinstance(error, Exception)]
    assert lost
    assert all(isinstance(error, RailLost) for error in lost)
    assert (lost[0].link, lost[0].domain) == (1, "x1#1")


async def test_with_failover_the_other_nic_carries_what_it_had(fake, devices):
    assert await broken_rail(fake, devices, failover=True, counted=False) == [4 << 20] * 4


@pytest.mark.parametrize("kind", [PORT_ERR, DEVICE_FATAL])
async def test_one_of_two_nics_that_fails_leaves_the_peer_to_the_other(fake, devices, kind):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2; y0 roce ip=10.0.0.3; y1 roce ip=10.0.0.4")
    async with engine_on(fake, **BOTH) as a, engine_on(fake, devices=("y0", "y1"), domains=2) as b:
        ab, ba = await connect(a, b)
        pair = Pair(fake, a, b, ab, ba)
        source, target = await pair.source(pattern(1 << 20)), await pair.target(1 << 20)
        devices.event("x1", 0 if kind == DEVICE_FATAL else 1, kind)
        await eventually(lambda: ab.stats().links[1].lost and ba.stats().links[1].lost, "both know")
        assert await a.write(source, target.remote) == 1 << 20
        assert np.array_equal(target.array, pattern(1 << 20))
        await pair.forget()


async def test_queue_pairs_that_take_long_to_destroy_hold_up_nobody(fake, devices):
    """As on soft-RoCE without its cable: the kernel keeps them for 3 s."""
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2; x2 roce ip=10.0.0.3")
    async with engine_on(fake, devices=("x1",)) as b, engine_on(fake, devices=("x2",)) as c:
        async with engine_on(fake, devices=("x0",)) as a:
            ab, _ = await connect(a, b)
            ac, _ = await connect(a, c)
            source = await a.register(pattern(4096))
            region_b, region_c = [await one.register(np.zeros(4096, dtype=np.uint8)) for one in (b, c)]
            to_b, to_c = ab.region(region_b.to_bytes()), ac.region(region_c.to_bytes())
            assert await a.write(source, to_b) == 4096
            devices.linger("x0", 60_000)
            devices.cut("x1")
            start = time.monotonic()
            with pytest.raises(PeerLost):
                await asyncio.wait_for(a.write(source, to_b), 10)
            assert time.monotonic() - start < 2
            for _ in range(50):
                assert await asyncio.wait_for(a.write(source, to_c), 10) == 4096
            start = time.monotonic()
        assert time.monotonic() - start < 10
        assert devices.counts().contexts == 3
        devices.linger("x0", 0)
        async with asyncio.timeout(10):
            while devices.counts().contexts == 3:
                await asyncio.sleep(0.01)


LARGE = 32 << 20
# A peer that is silent for as long as registering takes would be lost.
WATCHFUL = {"heartbeat_interval": 0.1, "peer_timeout": 0.8}


async def writing_until(task, write):
    """Write again and again until the task is done; return how often, and the longest that one took."""
    count, longest = 0, 0.0
    while not task.done():
        start = time.monotonic()
        await asyncio.wait_for(write(), 10)
        count, longest = count + 1, max(longest, time.monotonic() - start)
        await asyncio.sleep(0.01)
    return count, longest


@pytest.mark.parametrize("nics", [("x0",), ("x0", "x1")])
async def test_memory_that_takes_long_to_register_holds_up_nobody(fake, devices, nics):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2; x2 roce ip=10.0.0.3")
    async with (
        engine_on(fake, devices=nics, domains=len(nics), **WATCHFUL) as a,
        engine_on(fake, devices=("x2",), **WATCHFUL) as b,
    ):
        ab, ba = await connect(a, b)
        pair = Pair(fake, a, b, ab, ba)
        source, target = await pair.source(4096), await pair.target(4096)
        large = np.full(LARGE, 7, dtype=np.uint8)
        for nic in nics:
            devices.change(nic, "reg=1500")
        registering = asyncio.create_task(a.register(large))
        count, longest = await writing_until(registering, lambda: a.write(source, target.remote))
        region = await registering
        assert count > 10
        assert longest < 1
        closing = asyncio.create_task(region.close())
        count, longest = await writing_until(closing, lambda: a.write(source, target.remote))
        await closing
        assert count > 10
        assert longest < 1
        assert (ab.lost, ba.lost) == (None, None)
        for nic in nics:
            devices.change(nic, "reg=0")
        await pair.forget()


async def test_large_memory_is_registered_like_any(fake, devices):
    devices.layout("x0 roce ip=10.0.0.1; x1 roce ip=10.0.0.2")
    async with engine_on(fake, devices=("x0",)) as a, engine_on(fake, devices=("x1",)) as b:
        ab, _ = await connect(a, b)
        arrays = [np.full(LARGE, number, dtype=np.uint8) for number in range(4)]
        regions = await asyncio.gather(*(a.register(array) for array in arrays))
        target = np.zeros(LARGE, dtype=np.uint8)
        remote = ab.region((landing := await b.register(target)).to_bytes())
        for number, region in enumerate(regions):
            await a.write(region, remote)
            assert target[-1] == target[0] == number
        devices.change("x0", "mrs=0")
        with pytest.raises(RegistrationError, match="ulimit -l"):
            await a.register(arrays[0])
        devices.change("x0", "mrs=1000")
        await asyncio.gather(*(region.close() for region in regions))
        await (await a.register(arrays[0])).close()
        await landing.close()


async def test_an_engine_may_be_closed_while_it_registers(fake, devices):
    """And the wait may be cancelled. Nothing stays open, as the fixture sees."""
    devices.layout("x0 roce ip=10.0.0.1")
    async with engine_on(fake, devices=("x0",)) as a:
        devices.change("x0", "reg=300")
        waits = [asyncio.create_task(a.register(np.zeros(LARGE, dtype=np.uint8))) for _ in range(3)]
        await asyncio.sleep(0.1)
        waits[1].cancel()
    ended = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(ended[1], asyncio.CancelledError)
    assert all(task.done() for task in waits)
    devices.change("x0", "reg=0")
