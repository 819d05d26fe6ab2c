# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A peer that has been let in, and breaks every rule of the control channel and of counting.

The hostile one is an engine of ours, of which the test takes the control channel into its own hands.
"""

import asyncio
import contextlib
import json
import random
from pathlib import Path

import pytest
import pytest_asyncio

from helpers.engines import SOON, connect, engine_on, eventually, open_pair, patience
from helpers.limits import is_sanitized
from helpers.process import helper
from pplx_async import BrokenResourceError, ClosedResourceError, PeerLost, _frames, wire
from pplx_async import peer as peer_module
from pplx_async.control import connect_channel

pytestmark = pytest.mark.asyncio(loop_scope="module")

# What the control channel does, it does on any fabric.
ONE_FABRIC = pytest.mark.fabrics("loopback")

LONG = tuple(range(2**63, 2**63 + wire.MAX_FENCED))
KEY = wire.RemoteKey(1, 0)
ENDPOINTS = wire.Endpoints(
    addresses=(b"x" * 16,),
    landing=(KEY,),
    heartbeat_counter=0,
    credit_counter=1,
    credits=1,
    token=1,
    message_nbytes=1,
)
HELLO = wire.Hello(
    magic="pplx_async",
    version=wire.PROTOCOL_VERSION,
    engine=b"h" * 16,
    nonce=b"n" * 32,
    networks=("tcp",),
    host="host",
    name="",
    auth=False,
)
# One of each kind.
MESSAGES = {
    type(message).__name__: message
    for message in (
        HELLO,
        ENDPOINTS,
        wire.Proof(b"m" * 32),
        wire.OpenCounters(((1, 2),)),
        wire.Ready(),
        wire.Refused("no"),
        wire.Goodbye(),
        wire.Fence(1, (1, 2), (3,)),
        wire.Fenced(2**63),
        wire.CounterBroken(2**20 - 1, 8, "not mine to break"),
        wire.GroupJoin("group", 2**64 - 1, 0, 7),
        wire.Lookup(5, "name"),
        wire.Found(2**63, b"descriptor"),
    )
}
# Those that may come at any time once the peers are connected; with ids that nobody knows they do nothing.
DUE = ("Fence", "Fenced", "CounterBroken", "GroupJoin", "Lookup", "Found")
END = ("Refused", "Goodbye")


def put(peer, *frames):
    """Send bytes as frames, unchecked."""
    transport = peer._channel._frames.transport
    if transport is not None:
        transport.write(b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames))


async def works(pair):
    """Another pair is not disturbed: a write, in good time."""
    async with asyncio.timeout(SOON):
        await pair.write(4096)


@pytest_asyncio.fixture(loop_scope="module")
async def three(fabric):
    """A pair of friends, and a third engine that is connected to their b: how it sees b, and b it."""
    async with open_pair(fabric, drain_timeout=1.0) as pair, engine_on(fabric, name="hostile") as hostile:
        yield pair, *await connect(hostile, pair.b)


# ---- at a wrong time ----


@ONE_FABRIC
@pytest.mark.parametrize("kind", MESSAGES)
async def test_message_at_a_wrong_time(three, kind, caplog):
    """After the handshake: it is answered, ignored, or the end of that peer; nobody else notices."""
    pair, there, here = three
    put(there, wire.encode_message(MESSAGES[kind]))
    if kind in DUE:
        there._post(wire.Lookup(77, "a question behind it"))
        with pytest.raises(KeyError):
            await there.lookup("another one")
        assert here.is_open
    else:
        await eventually(lambda: here not in pair.b._peers, "b has parted with it")
        assert (here.lost is None) == (kind == "Goodbye")
        assert kind in END or (kind in str(here.lost) and kind in caplog.text)
    await works(pair)


@ONE_FABRIC
@pytest.mark.parametrize(
    "frame",
    [b"", b"\xc0", b"\x91" * 100_000, bytes(1 << 20), b"\x92\xa5proof\xc6\xff\xff\xff\xff", b"\x91\xa5later"],
    ids=["empty", "nil", "nested", "zeros", "bomb", "unknown kind"],
)
async def test_garbage_ends_the_peer(three, frame, caplog):
    pair, there, here = three
    put(there, frame)
    await eventually(lambda: here not in pair.b._peers, "b has parted with it")
    assert "broke the protocol" in str(here.lost)
    assert "closed the control channel to" in caplog.text
    await works(pair)


@ONE_FABRIC
async def test_too_long_a_frame_ends_the_peer_before_it_has_come(three):
    pair, there, here = three
    there._channel._frames.transport.write((2**32 - 1).to_bytes(4, "big") + b"the rest never comes")
    await eventually(lambda: here not in pair.b._peers, "b has parted with it")
    assert "4294967295 B" in str(here.lost)
    await works(pair)


@ONE_FABRIC
async def test_damaged_messages_end_the_peer_or_do_nothing(fabric):
    """Bits flipped in each kind of message, on one connection after the other."""
    rng = random.Random(5)
    async with open_pair(fabric) as pair, engine_on(fabric, name="hostile") as hostile:
        for _ in range(12):
            there, here = await connect(hostile, pair.b)
            for _ in range(50):
                data = bytearray(wire.encode_message(rng.choice([MESSAGES[kind] for kind in DUE])))
                for _ in range(rng.randrange(3)):
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
                put(there, bytes(data))
            with contextlib.suppress(PeerLost, ClosedResourceError):
                await there.lookup("answered, or it is cut off")
            await there.close()
            await eventually(lambda here=here: here not in pair.b._peers, "b has parted with it")
        await works(pair)


# ---- while it connects ----


@contextlib.asynccontextmanager
async def meeting(engine):
    """A channel to it that is through the handshake, with its Endpoints."""
    async with await connect_channel(engine.address, engine._identity) as channel:
        yield channel, await channel.receive()


@ONE_FABRIC
@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind not in ("Endpoints", "Hello", "Proof")])
async def test_message_that_is_not_endpoints(fabric, kind, caplog):
    async with open_pair(fabric) as pair:
        async with meeting(pair.b) as (channel, _):
            channel.post(MESSAGES[kind])
            with pytest.raises(BrokenResourceError):
                assert isinstance(await channel.receive(), wire.Refused)
                await channel.receive()
        await eventually(lambda: len(pair.b._peers) == 1, "b has nothing of it left")
        assert kind in caplog.text or kind == "Refused"
        await works(pair)


def forged(theirs, how):
    """Endpoints that can't be used, of the right form all the same."""
    address = theirs.addresses[0]
    change = {
        "no such address": {"addresses": tuple(bytes(len(item)) for item in theirs.addresses)},
        "short address": {"addresses": tuple(item[:-1] for item in theirs.addresses)},
        "long address": {"addresses": tuple(item + bytes(128 - len(item)) for item in theirs.addresses)},
        "its own address": {},  # as b told it
        "random address": {"addresses": tuple(random.Random(3).randbytes(len(address)) for _ in theirs.addresses)},
        "too many addresses": {"addresses": (address,) * 9},
        "too many keys": {"landing": (KEY,) * 9},
        "nobody there": {"addresses": tuple(item[:2] + b"\0\1" + item[4:] for item in theirs.addresses)},
    }[how]
    fields = {name: getattr(theirs, name) for name in theirs.__struct_fields__} | change
    return wire.Endpoints(**fields)


@pytest.mark.parametrize(
    "how",
    [
        "no such address",
        "short address",
        "long address",
        "its own address",
        "random address",
        "too many addresses",
        "too many keys",
        "nobody there",
    ],
)
async def test_endpoints_that_lie(fabric, how, caplog):
    """It is refused, or never connected; b goes on, and keeps nothing of it."""
    if fabric.id == "loopback" and how == "its own address":
        pytest.skip("loopback connects an endpoint with itself, where it reaches its own engine only")
    async with open_pair(fabric) as pair:
        patience(pair.b, 0.5)
        async with meeting(pair.b) as (channel, theirs):
            channel.post(forged(theirs, how))
            channel.post(wire.Ready())
            with pytest.raises(BrokenResourceError):
                while not isinstance(await channel.receive(), wire.Refused):
                    pass
                await channel.receive()
        await eventually(lambda: len(pair.b._peers) == 1, "b has nothing of it left")
        assert [record.levelname for record in caplog.records if record.exc_info] == []
        assert "no connection with" in caplog.text
        await works(pair)


@pytest.mark.fabrics("tcp")
async def test_nobody_takes_the_address_of_another_peer(fabric):
    """Else what the first one counts could be taken for the second one's."""
    async with open_pair(fabric) as pair:
        mine = pair.ab._record.endpoints()["addresses"]
        async with meeting(pair.b) as (channel, theirs):
            fields = {name: getattr(theirs, name) for name in theirs.__struct_fields__} | {"addresses": tuple(mine)}
            channel.post(wire.Endpoints(**fields))
            with pytest.raises(BrokenResourceError):
                refused = await channel.receive()
                assert "another peer has this address" in refused.reason
                await channel.receive()
        await works(pair)


@ONE_FABRIC
async def test_long_message_before_it_is_connected(fabric, caplog):
    async with open_pair(fabric) as pair:
        async with meeting(pair.b) as (channel, _):
            channel._frames.transport.write((4097).to_bytes(4, "big"))
            with pytest.raises(BrokenResourceError):
                await channel.receive()
        await eventually(lambda: len(pair.b._peers) == 1, "b has nothing of it left")
        assert "4097 B, over 4096 B" in caplog.text
        await works(pair)


# ---- floods ----


@contextlib.asynccontextmanager
async def flood(there, message):
    """Send a message over and over, as fast as the peer takes it, for as long as the block lasts."""

    payload = wire.encode_message(message)
    framed = len(payload).to_bytes(4, "big") + payload
    many = framed * max(1, 65536 // len(framed))
    frames = there._channel._frames

    async def send():
        while frames.transport is not None and not frames.transport.is_closing():
            frames.transport.write(many)
            await asyncio.sleep(0)
            await frames.writable.wait()

    task = asyncio.create_task(send())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        frames.fail("enough")


FLOODS = {
    "fences": wire.Fence(1, (1, 2), (3,)),
    "long fences": wire.Fence(1, LONG, ()),
    "fences of every counter": wire.Fence(1, (), tuple(range(2**20 - wire.MAX_FENCED, 2**20))),
    "confirmations": wire.Fenced(2**63),
    "broken counters": wire.CounterBroken(2**20 - 1, 8, "x" * 512),
    "answers": wire.Found(2**63, b"x" * 256),
    "questions": wire.Lookup(5, "n" * 128),
}


@ONE_FABRIC
@pytest.mark.parametrize("what", FLOODS)
async def test_flood_disturbs_nobody(three, what):
    pair, there, _ = three
    async with flood(there, FLOODS[what]):
        for _ in range(10):
            await works(pair)
    assert pair.ba.is_open


@ONE_FABRIC
async def test_questions_of_who_reads_no_answer(three, monkeypatch):
    """What waits to go out to it is bounded; by 4 MiB, but the kernel's share makes this long enough."""
    monkeypatch.setattr(_frames, "MAX_OUTGOING", 64 << 10)
    pair, there, here = three
    async with await pair.b.register(bytearray(100)) as region:
        pair.b.publish("n" * 128, region)
        there._channel._frames.transport.pause_reading()
        async with flood(there, FLOODS["questions"]):
            await eventually(lambda: not here.is_open, "b has parted with it")
    assert "B unread" in str(here.lost)
    await works(pair)


@ONE_FABRIC
async def test_groups_that_nobody_forms(three):
    pair, there, here = three
    for i in range(peer_module.MAX_UNREAD_JOINS + 1):
        there._post(wire.GroupJoin(f"group {i}", 1 << 20 | i, 2 << 20 | i, None))
    await eventually(lambda: not here.is_open, "b has parted with it")
    assert "joins more than 1024 groups" in str(here.lost)
    assert len(here._joined) <= peer_module.MAX_UNREAD_JOINS
    await works(pair)


@ONE_FABRIC
async def test_what_is_remembered_of_a_peer_is_bounded(three):
    """Regions without end, each once; and every counter that there can be."""
    pair, there, here = three
    for start in range(0, 2 * peer_module._MOST_REVOKED, wire.MAX_FENCED):
        there._post(wire.Fence(1, tuple(range(start, start + wire.MAX_FENCED)), ()))
    for start in range(0, wire.MAX_COUNTERS, wire.MAX_FENCED):
        there._post(wire.Fence(1, (), tuple(start + i | 5 << 20 for i in range(wire.MAX_FENCED))))
        with pytest.raises(KeyError):
            await there.lookup("has b come this far?")
    assert here.is_open
    assert len(here._revoked) == peer_module._MOST_REVOKED
    assert 2 * peer_module._MOST_REVOKED - 1 in here._revoked  # the latest are known
    assert 0 not in here._revoked
    assert len(here._closed_counters._serials) * 8 == 8 << 20
    assert (6 << 20 | 77) not in here._closed_counters
    assert (5 << 20 | 77) in here._closed_counters
    await works(pair)


@pytest.mark.fabrics("ipc")
async def test_memory_under_floods(fabric, loop_name):
    """Of a process of its own, flooded with all of it at once, while another peer writes to it."""
    options = {"fabric": "ipc", "uvloop": loop_name == "uvloop"}
    async with helper("receiver", json.dumps(options)) as victim:
        address = await victim.ask("open", nbytes=4096)

        def resident():
            return int(Path(f"/proc/{victim.pid}/statm").read_text().split()[1]) * 4096

        async with engine_on(fabric, name="friend") as friend, engine_on(fabric, name="hostile") as hostile:
            peer = await friend.connect(address)
            accepted = await victim.ask("accept")
            source = await friend.register(bytes(4096))
            target = peer.region(bytes.fromhex(accepted["region"]))
            attackers = [await hostile.connect(address) for _ in FLOODS]
            before = most = resident()
            async with contextlib.AsyncExitStack() as stack:
                for attacker, message in zip(attackers, FLOODS.values()):
                    await stack.enter_async_context(flood(attacker, message))
                for _ in range(200):
                    async with asyncio.timeout(SOON):
                        await friend.write(source, target)
                    most = max(most, resident())
            assert peer.is_open
            print(f"{(most - before) / 2**20:.1f} MiB more under floods")
            assert most - before < 32 << 20 or is_sanitized()
        assert await victim.finish() is not None
    if is_sanitized():
        pytest.skip("all but resident memory was checked: AddressSanitizer keeps what was freed")
