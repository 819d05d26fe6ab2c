# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whoever reaches a port of an engine and is no peer of it: what it learns, what it costs, whom it disturbs.

Strangers in the handshake of the control channel are in tests/unit/test_control.py.
"""

import asyncio
import contextlib
import os
import resource
import socket
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from helpers.engines import SOON, connect, engine_on, eventually, open_pair
from helpers.limits import open_descriptors
from pplx_async import BrokenResourceError, RemoteAccessError, _connector, listen, wire
from pplx_async.control import connect_channel

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a shared secret of these tests"
LATER = 5.0  # on a busy machine; half of what a handshake is given


async def works(pair):
    async with asyncio.timeout(SOON):
        await pair.write(4096)


def own_address():
    """An address of this host that others can reach, and strangers on it with another source."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("198.51.100.1", 9))  # sends nothing
        address = probe.getsockname()[0]
        if not address.startswith("127."):
            return address
    pytest.skip("this host has no address beyond loopback")


# ---- who is let in, and says nothing ----


@contextlib.asynccontextmanager
async def silent_guests(engine, count, *, endpoints):
    """So many who are through the handshake. With endpoints: they begin to connect, and never do."""
    async with contextlib.AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                await connect_channel(engine.address, engine._identity, secret=engine.options.secret_bytes)
            )
            for _ in range(count)
        ]
        if endpoints:
            for port, channel in enumerate(channels, 1):
                theirs = await channel.receive()
                fields = {name: getattr(theirs, name) for name in theirs.__struct_fields__}
                fields["addresses"] = tuple(item[:2] + struct.pack(">H", port) + item[4:] for item in theirs.addresses)
                channel.post(wire.Endpoints(**fields))
        yield channels


async def refusal_of(guest):
    while not isinstance(message := await guest.receive(), wire.Refused):
        pass
    return message.reason


@pytest.mark.fabrics("tcp")
@pytest.mark.parametrize("endpoints", [False, True])
async def test_who_connects_and_says_nothing_keeps_nobody_out(fabric, endpoints, monkeypatch, caplog):
    """All places are taken, for 10 s each: who comes next waits for a patience, which is much less."""
    monkeypatch.setattr(listen, "_MEETING_PATIENCE", listen._FIRST_PATIENCE)
    places = _connector._MOST_MEETINGS
    async with (
        engine_on(fabric, name="engine", secret=SECRET) as engine,
        engine_on(fabric, name="friend", secret=SECRET) as friend,
        silent_guests(engine, places, endpoints=endpoints) as guests,
    ):
        await eventually(lambda: len(engine._connector._meetings._guests) == places, "all places are taken")
        started = time.monotonic()
        for _ in range(3):
            await (await friend.connect(engine.address)).close()
        assert time.monotonic() - started < 3 * (listen._FIRST_PATIENCE + LATER)
        refusals = [asyncio.create_task(refusal_of(guest)) for guest in guests]
        await asyncio.wait(refusals, return_when=asyncio.FIRST_COMPLETED)
        told = [refusal.result() for refusal in refusals if refusal.done()]
        for refusal in refusals:
            refusal.cancel()
        assert all("nothing was heard of it for" in reason for reason in told)
        assert "others wait" in caplog.text


@pytest.mark.fabrics("loopback")
async def test_who_comes_when_nobody_waits_has_its_time(fabric):
    async with engine_on(fabric) as engine, silent_guests(engine, 3, endpoints=False) as guests:
        await asyncio.sleep(listen._FIRST_PATIENCE + 0.3)
        assert all(guest.reason is None for guest in guests)


@pytest.mark.fabrics("loopback")
async def test_too_many_who_wait_are_refused(fabric, monkeypatch, caplog):
    monkeypatch.setattr(_connector, "_MOST_MEETINGS", 1)
    async with engine_on(fabric) as engine:
        engine._connector._meetings._most_waiting = 2
        async with silent_guests(engine, 3, endpoints=False):
            await eventually(lambda: engine._connector._meetings._waiting == 2, "two of them wait")
            async with engine_on(fabric) as one_more:
                with pytest.raises(BrokenResourceError, match="too many others connect"):
                    await one_more.connect(engine.address)


# ---- many ----


@pytest.mark.fabrics("tcp")
async def test_a_thousand_connections_at_once(fabric):
    """They say nothing, and stay. Two that are connected work on; a third gets in."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"the limit of open files is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    async with open_pair(fabric) as pair, engine_on(fabric, name="friend") as friend:
        loop = asyncio.get_running_loop()
        host, port = pair.b.address.rsplit(":", 1)
        sockets = [socket.socket() for _ in range(1000)]
        try:
            tracemalloc.start()
            for stranger in sockets:
                stranger.setblocking(False)
                await loop.sock_connect(stranger, (host, int(port)))
            for _ in range(10):
                await works(pair)
            started = time.monotonic()
            await (await friend.connect(pair.b.address)).close()
            waited = time.monotonic() - started
            held = tracemalloc.get_traced_memory()[0]
            print(f"a friend waited {waited:.2f} s; {held >> 10} KiB")
            assert waited < LATER
            assert held < 16 << 20
            assert len(pair.b._connector.server._callers) <= 64
        finally:
            tracemalloc.stop()
            for stranger in sockets:
                stranger.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await works(pair)


async def test_what_peers_that_are_gone_left_unread_is_bounded(fabric, monkeypatch):
    """All of it can be read; until then nobody comes who could leave more."""
    monkeypatch.setattr(_connector, "_MOST_UNREAD", 2)
    async with engine_on(fabric) as engine, engine_on(fabric, name="guest") as guest:
        for number in range(3):
            peer = await guest.connect(engine.address)
            await peer.send(b"%d" % number)
            await eventually(lambda count=number + 1: len(engine._messages) == count, "it is here")
            await peer.close()
            await eventually(lambda: not engine._peers, "the guest is gone")
        assert [token for _, token in engine._messages] == [0, 0, 0]  # their buffers are given back
        with pytest.raises(BrokenResourceError, match="3 messages of peers that are gone have not been read"):
            await guest.connect(engine.address)
        messages = engine.messages()
        assert [(await anext(messages)).data for _ in range(3)] == [b"0", b"1", b"2"]
        await (await guest.connect(engine.address)).close()


# ---- the ports of the NICs ----


def data_ports(engine, peer):
    """Where our endpoints for that peer listen."""
    for address in peer._record.endpoints()["addresses"]:
        family, port, host = struct.unpack("=H", address[:2])[0], struct.unpack(">H", address[2:4])[0], address[4:8]
        assert family == socket.AF_INET
        yield socket.inet_ntoa(host), port


@contextlib.asynccontextmanager
async def at_the_port(address, count, data=b""):
    """So many connections to a port, each of which sends something."""
    opened = [await asyncio.open_connection(*address) for _ in range(count)]
    try:
        for _, writer in opened:
            writer.write(data)
        yield opened
    finally:
        for _, writer in opened:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@pytest.mark.fabrics("tcp", "rxm")
@pytest.mark.parametrize(
    "data", [b"", b"\x03", b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000)], ids=["silent", "byte", "http", "garbage"]
)
async def test_strangers_at_a_port_of_the_fabric(fabric, data):
    """They cost a descriptor each, until they go; nobody is disturbed."""
    async with open_pair(fabric) as pair:
        (address,) = data_ports(pair.b, pair.ba)
        before = len(os.listdir("/proc/self/fd"))
        async with at_the_port(address, 100, data):
            for _ in range(10):
                await works(pair)
        await works(pair)
        assert pair.ab.is_open
        assert pair.ba.is_open
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before + 2, "their descriptors are closed")


# The protocol of libfabric's tcp (2.5.1), as far as a stranger needs it.
HELLO_LENGTH, CONNECT = 8, 0


def tcp_hello(port):
    return (
        struct.pack(">BBHIQQ", 3, CONNECT, HELLO_LENGTH, 0, 0, 0)
        + struct.pack("<Q", 1)
        + struct.pack(">BBHI", 1, 0, port, os.getpid() + 1)
    )


def tcp_immediate(imm):
    """A write of nothing to nowhere, which names no key, with an immediate."""
    return struct.pack("<BBHBBBBQQ", 3, 4, 1, 0, 0, 24, 0, 24, imm)


def tcp_message(nbytes):
    return struct.pack("<BBHBBBBQ", 3, 0, 0, 0, 0, 16, 0, 16 + nbytes) + bytes(nbytes)


@pytest.mark.fabrics("tcp")
async def test_stranger_that_speaks_tcp_of_libfabric_counts_nothing(fabric):
    """libfabric connects whoever asks, and takes an immediate without a key: it counts for no counter."""
    async with open_pair(fabric) as pair:
        (address,) = data_ports(pair.b, pair.ba)
        bound, _ = pair.counter()
        free, _ = pair.counter(bound=False)
        told = pair.ba._record.endpoints()
        ids = [bound.id, free.id, told["heartbeat_counter"], told["credit_counter"]]
        before = pair.b.stats()
        async with at_the_port(address, 1, tcp_hello(1)) as ((reader, writer),):
            assert (await reader.readexactly(32))[1] == 1  # it was let in
            for counter in ids:
                writer.write(tcp_immediate(counter << 12 | 1) * 5)
            writer.write(tcp_message(64) * 5)
            await eventually(lambda: pair.b.stats().stray_imms - before.stray_imms == 20, "all are strays")
            await eventually(lambda: pair.b.stats().stray_messages - before.stray_messages == 5, "so are messages")
            assert (bound.value, free.value) == (0, 0)
            await works(pair)


@pytest.mark.fabrics("tcp", "rxm")
async def test_who_has_not_said_who_it_is_when_an_endpoint_closes_is_hung_up_on(fabric):
    """libfabric forgets it: tcp reads freed memory once it speaks, which ends the process; rxm keeps the descriptor."""
    async with open_pair(fabric):  # what is loaded at first use is loaded
        pass
    before = open_descriptors()
    async with open_pair(fabric) as pair, engine_on(fabric, name="friend") as friend:
        _, theirs = await connect(friend, pair.b)  # so the domain goes on
        (address,) = data_ports(pair.b, pair.ba)
        alone = open_descriptors()
        async with at_the_port(address, 20) as strangers:
            await eventually(lambda: open_descriptors() == alone + 40, "they are connected")
            await pair.ab.close()
            async with asyncio.timeout(SOON):
                assert [await reader.read() for reader, _ in strangers] == [b""] * 20
            for _, writer in strangers:
                writer.write(tcp_hello(1))
            await theirs.send(b"all is well")
            assert theirs.is_open
    await eventually(lambda: open_descriptors() == before, "no descriptor is left")


@pytest.mark.fabrics("tcp", "rxm")
async def test_only_the_peers_host_reaches_a_port_of_the_fabric(fabric):
    """Beyond loopback: the kernel drops what comes from elsewhere. Here, from another address of this host."""
    host = own_address()
    async with open_pair(fabric, listen=f"{host}:0", secret=SECRET) as pair:
        assert "ports for the peers' hosts only" in pair.b.explain().domains[0]["description"]
        loop = asyncio.get_running_loop()
        for engine, peer in ((pair.a, pair.ab), (pair.b, pair.ba)):
            (address,) = data_ports(engine, peer)
            assert address[0] == host
            with socket.socket() as stranger:
                stranger.setblocking(False)
                stranger.bind(("127.0.0.1", 0))
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.3):
                        await loop.sock_connect(stranger, address)
        with socket.socket() as stranger:  # it would have reached it
            stranger.setblocking(False)
            stranger.bind(("127.0.0.1", 0))
            async with asyncio.timeout(SOON):
                await loop.sock_connect(stranger, (host, pair.b._connector.server.port))
        await works(pair)
        # A bad key breaks the connection, and the next write makes another one.
        target = await pair.target(4096)
        forged = wire.decode_region(target.region.to_bytes())
        keys = tuple(wire.RemoteKey(key ^ 1, base) for key, base in forged.keys)
        fields = {name: getattr(forged, name) for name in forged.__struct_fields__} | {"keys": keys, "region": 2**60}
        source = await pair.source(4096)
        with pytest.raises(RemoteAccessError):
            await pair.a.write(source, pair.ab.region(wire.encode_region(wire.RegionDescriptor(**fields))))
        await works(pair)


# ---- where an engine listens ----


def listening():
    """Every address at which this process listens, IPv4 and IPv6, as in /proc/net/tcp."""
    ours = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            ours.add(os.readlink(f"/proc/self/fd/{fd}"))
    found = []
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(FileNotFoundError):
            for line in Path("/proc/self/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in ours:
                    words = bytes.fromhex(fields[1].split(":")[0])
                    address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                    found.append(socket.inet_ntop(family, address))
    return found


@pytest.mark.fabrics("loopback", "ipc", "tcp", "rxm")
async def test_listens_on_loopback_only_unless_told(fabric):
    others = listening()
    async with open_pair(fabric) as pair:
        await works(pair)
        found = listening()
        for address in others:
            found.remove(address)
        ports = 2 if fabric.id in ("loopback", "ipc") else 4  # two control channels, and an endpoint for each peer
        assert found == ["127.0.0.1"] * ports


@pytest.mark.fabrics("tcp", "rxm")
async def test_listens_where_it_is_told_and_nowhere_else(fabric):
    host, others = own_address(), listening()
    async with open_pair(fabric, listen=f"{host}:0", secret=SECRET) as pair:
        await works(pair)
        found = listening()
        for address in others:
            found.remove(address)
        assert found == [host] * 4


@pytest.mark.fabrics("tcp", "rxm")
async def test_beyond_loopback_a_secret_is_required(fabric):
    with pytest.raises(ValueError, match=r"Set EngineOptions\.secret"):
        await engine_on(fabric, listen=f"{own_address()}:0").open()


# ---- keys ----


async def test_keys_are_unguessable(fabric):
    """64 random bits, in any domain: neither numbers that count up nor addresses."""
    async with engine_on(fabric) as engine:
        regions = [await engine.register(bytearray(64)) for _ in range(100)]
        keys = [key for region in regions for key, _ in region.registration.keys]
        assert len(set(keys)) == 100
        for bit in range(64):
            assert 20 <= sum(key >> bit & 1 for key in keys) <= 80, f"bit {bit} of the keys is not random"
        for region in regions:
            await region.close()


async def test_key_of_nobody_writes_nothing(fabric):
    async with open_pair(fabric) as pair:
        target, source = await pair.target(4096), await pair.source(4096)
        mine = wire.decode_region(target.region.to_bytes())
        for region, flipped in enumerate((1, 1 << 63), 2**60):  # under a number that is not known yet
            keys = tuple(wire.RemoteKey(key ^ flipped, base) for key, base in mine.keys)
            fields = {name: getattr(mine, name) for name in mine.__struct_fields__} | {"keys": keys, "region": region}
            with pytest.raises(RemoteAccessError):
                await pair.a.write(source, pair.ab.region(wire.encode_region(wire.RegionDescriptor(**fields))))
        assert not target.array.any()
        await works(pair)


async def test_region_is_private_until_it_is_handed_out(fabric):
    async with open_pair(fabric) as pair:
        region = await pair.b.register(bytearray(64))
        for name in ("region", "0", str(region._id)):
            with pytest.raises(KeyError):
                await pair.ab.lookup(name)
        pair.b.publish("region", region)
        assert (await pair.ab.lookup("region")).nbytes == 64
        pair.b.unpublish("region")
        with pytest.raises(KeyError):
            await pair.ab.lookup("region")
        await region.close()


async def test_whoever_is_refused_learns_nothing_of_what_is_published(fabric):
    async with engine_on(fabric, secret=SECRET) as engine, engine_on(fabric) as stranger:
        region = await engine.register(bytearray(64))
        engine.publish("region", region)
        with pytest.raises(BrokenResourceError, match="secret"):
            await stranger.connect(engine.address)
        reader, writer = await asyncio.open_connection(*engine.address.rsplit(":", 1))
        hello = wire.encode_message(engine._identity.hello(True))
        lookup = wire.encode_message(wire.Lookup(1, "region"))
        for frame in (hello, lookup):
            writer.write(len(frame).to_bytes(4, "big") + frame)
        answer = await reader.read()
        assert b"Lookup where Proof is due" in answer
        assert region.to_bytes()[:40] not in answer
        writer.close()
        await writer.wait_closed()
        await region.close()
