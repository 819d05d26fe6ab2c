# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Descriptors and control messages: what goes in comes out, and nothing else gets in."""

import contextlib
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_async import wire

U64 = st.integers(0, 2**64 - 1)
COUNTER = st.integers(0, wire.MAX_COUNTERS - 1)
KEYS = st.lists(st.builds(wire.RemoteKey, U64, st.integers(0, 2**63)), min_size=1, max_size=8).map(tuple)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=wire.MAX_NAME)
WORD = TEXT.filter(bool)
SUBNET = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
ID = st.binary(min_size=16, max_size=16)
BYTES32 = st.binary(min_size=32, max_size=32)

REGIONS = st.builds(wire.RegionDescriptor, ID, U64, st.integers(0, 2**63), st.integers(1, 3), KEYS)
COUNTERS = st.builds(wire.CounterDescriptor, ID, COUNTER)
HELLOS = st.builds(
    wire.Hello,
    magic=st.just("pplx_async"),
    version=st.integers(0, 65535),
    engine=ID,
    nonce=BYTES32,
    networks=st.lists(WORD, min_size=1, max_size=9).map(tuple),
    host=WORD,
    name=TEXT,
    auth=st.booleans(),
    nics=st.just(()),
)
HELLOS_WITH_NICS = st.integers(1, 9).flatmap(
    lambda n: st.builds(
        wire.Hello,
        magic=st.just("pplx_async"),
        version=st.integers(0, 65535),
        engine=ID,
        nonce=BYTES32,
        networks=st.lists(WORD, min_size=n, max_size=n).map(tuple),
        host=WORD,
        name=TEXT,
        auth=st.booleans(),
        nics=st.lists(st.builds(wire.Nic, U64, st.lists(SUBNET, max_size=8).map(tuple)), min_size=n, max_size=n).map(
            tuple
        ),
    )
)
ENDPOINTS = st.builds(
    wire.Endpoints,
    addresses=st.lists(st.binary(min_size=1, max_size=128), min_size=1, max_size=8).map(tuple),
    landing=KEYS,
    heartbeat_counter=COUNTER,
    credit_counter=COUNTER,
    credits=st.integers(1, 65536),
    token=U64,
    message_nbytes=st.integers(1, 1 << 30),
)
FENCES = st.builds(wire.Fence, U64, st.lists(U64, max_size=99).map(tuple), st.lists(COUNTER, max_size=99).map(tuple))
MESSAGES = st.one_of(
    HELLOS,
    HELLOS_WITH_NICS,
    ENDPOINTS,
    FENCES,
    st.builds(wire.Proof, BYTES32),
    st.builds(wire.Refused, TEXT),
    st.builds(wire.OpenCounters, st.lists(st.tuples(U64, U64), max_size=wire.MAX_OPEN_RUNS).map(tuple)),
    st.builds(wire.Ready, U64),
    st.just(wire.Goodbye()),
    st.builds(wire.Fenced, U64),
    st.builds(wire.RailLost, st.integers(0, 7), TEXT, U64, st.binary(max_size=250)),
    st.builds(wire.CounterBroken, COUNTER, U64, TEXT),
    st.builds(wire.GroupJoin, WORD, COUNTER, COUNTER, st.none() | COUNTER),
    st.builds(wire.Lookup, U64, WORD),
    st.builds(wire.Found, U64, st.none() | st.binary(max_size=wire.MAX_DESCRIPTOR_NBYTES)),
)
REGION = wire.RegionDescriptor(b"e" * 16, 7, 4096, 3, (wire.RemoteKey(5, 1 << 40),) * 8)


def encoded(message):
    return wire.encode_message(message)


@st.composite
def damaged(draw, encodings):
    """A valid encoding with bits flipped, bytes cut out or put in."""
    data = bytearray(draw(encodings))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["flip", "cut", "drop", "insert"])):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "drop":
                del data[at : at + 1]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=9))
    return bytes(data)


@given(REGIONS)
def test_region_round_trip(region):
    data = wire.encode_region(region)
    assert len(data) <= wire.MAX_DESCRIPTOR_NBYTES
    holes = memoryview(b"".join(bytes([byte, 0]) for byte in data))[::2]
    for form in (data, bytearray(data), memoryview(data), holes):
        assert wire.decode_region(form) == region


@given(COUNTERS)
def test_counter_round_trip(counter):
    assert wire.decode_counter(wire.encode_counter(counter)) == counter


@given(MESSAGES)
def test_message_round_trip(message):
    assert wire.decode_message(wire.encode_message(message)) == message


@given(damaged(REGIONS.map(wire.encode_region) | COUNTERS.map(wire.encode_counter)))
def test_damaged_descriptors_give_value_error_or_a_descriptor_in_range(data):
    for decode, encode in ((wire.decode_region, wire.encode_region), (wire.decode_counter, wire.encode_counter)):
        try:
            descriptor = decode(data)
        except ValueError:
            continue
        # Flipped bits can make another valid descriptor; encoding it checks each range again.
        assert decode(encode(descriptor)) == descriptor


@given(damaged(MESSAGES.map(encoded)))
def test_damaged_messages_give_value_error_or_a_message_in_range(data):
    wire.hello_version(data)
    try:
        message = wire.decode_message(data)
    except ValueError:
        return
    assert wire.decode_message(wire.encode_message(message)) == message


@given(st.binary(max_size=400))
def test_random_bytes_give_value_error(data):
    for decode in (wire.decode_region, wire.decode_counter):
        for head in (b"", b"PPLX\x01"):
            with pytest.raises(ValueError):
                decode(head + data)
    wire.hello_version(data)
    with contextlib.suppress(ValueError):
        wire.decode_message(data)


@pytest.mark.parametrize("cut", range(len(wire.encode_region(REGION))))
def test_truncated_descriptor(cut):
    with pytest.raises(ValueError):
        wire.decode_region(wire.encode_region(REGION)[:cut])


def test_trailing_bytes():
    with pytest.raises(ValueError):
        wire.decode_region(wire.encode_region(REGION) + b"\0")
    with pytest.raises(ValueError):
        wire.decode_message(wire.encode_message(wire.Ready()) + b"\0")


def test_newer_version_says_so():
    data = bytearray(wire.encode_region(REGION))
    data[4] = 2
    with pytest.raises(ValueError, match=r"version 2.*install the same pplx_async on both sides"):
        wire.decode_region(data)


def test_kinds_are_not_confused():
    counter = wire.encode_counter(wire.CounterDescriptor(b"e" * 16, 1))
    with pytest.raises(ValueError, match="descriptor of a counter"):
        wire.decode_region(counter)
    with pytest.raises(ValueError, match="descriptor of a region"):
        wire.decode_counter(wire.encode_region(REGION))


@pytest.mark.parametrize("data", ["text", None, 5, [1, 2], object()])
def test_other_types_give_type_error(data):
    for decode in (wire.decode_region, wire.decode_counter, wire.decode_message):
        with pytest.raises(TypeError, match="expected bytes"):
            decode(data)


@pytest.mark.parametrize(
    "change",
    [
        {"engine": b"short"},
        {"engine": "e" * 16},
        {"region": -1},
        {"region": 2**64},
        {"nbytes": -1},
        {"nbytes": 2**64 - 4096},  # with a base of 2**40 it wraps
        {"access": 0},
        {"access": 4},
        {"keys": ()},
        {"keys": REGION.keys + REGION.keys},
        {"keys": ((1, 2, 3),)},
    ],
)
def test_region_ranges(change):
    """Neither encoded nor, written by someone else's encoder, decoded."""
    fields = msgspec.structs.asdict(REGION) | change
    with pytest.raises(ValueError):
        wire.encode_region(wire.RegionDescriptor(**fields))
    if change.get("region", 0) < 2**64:
        forged = b"PPLX\x01" + msgspec.msgpack.encode(["region", *fields.values()])
        with pytest.raises(ValueError):
            wire.decode_region(forged)


def hello_of(*nics):
    return wire.Hello(
        magic="pplx_async",
        version=wire.PROTOCOL_VERSION,
        engine=bytes(16),
        nonce=bytes(32),
        networks=("verbs",),
        host="here",
        name="",
        auth=False,
        nics=nics,
    )


def test_a_nic_says_where_it_lies():
    hello = hello_of(wire.Nic(10**11, ("ipv4:10.0.0.0/16", "ipv6:fd00::/64", "ib:fe80::/64", "ib")))
    assert wire.decode_message(wire.encode_message(hello)) == hello


@pytest.mark.parametrize(
    "message",
    [
        wire.CounterBroken(1 << 20, 1, ""),
        wire.CounterBroken(1, 1, "x" * 513),
        wire.Fence(1, (0,) * (wire.MAX_FENCED + 1), ()),
        wire.Fence(1, (), (1 << 64,)),
        wire.Fenced(2**64),
        wire.Proof(b"short"),
        wire.Lookup(1, ""),
        wire.Lookup(1, "\ud800"),
        wire.Found(1, b"x" * 257),
        wire.GroupJoin("x" * 129, 1, 1, None),
        wire.RailLost(8, ""),
        wire.RailLost(0, "", 0, b"x" * 251),
        *[hello_of(wire.Nic(0, (word,))) for word in ("", "x" * 65, "two words", "\x1b[2J", "line\n", "\u00e9t\u00e9")],
        hello_of(wire.Nic(0, ("x",) * 9)),
    ],
)
def test_message_ranges(message):
    with pytest.raises(ValueError):
        wire.encode_message(message)


def test_largest_messages_fit_a_frame():
    regions, counters = (2**64 - 1,) * wire.MAX_FENCED, (2**64 - 1,) * wire.MAX_FENCED
    assert len(wire.encode_message(wire.Fence(2**64 - 1, regions, counters))) < wire.MAX_MESSAGE_NBYTES
    with pytest.raises(ValueError, match="longest"):
        wire.decode_message(bytes(wire.MAX_MESSAGE_NBYTES + 1))


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x94\xa5fence\x01\xdd\xff\xff\xff\xff",  # an array that says it has 2**32 - 1 elements
        b"\xdd\xff\xff\xff\xff\xa5ready",
        b"\x92\xa7refused\xdb\xff\xff\xff\xff",
        b"\x92\xa5proof\xc6\xff\xff\xff\xff",
        b"\x9b\xa5hello\xaapplx_async\x01" + b"\x91" * 900_000,  # nested a million deep
        b"\x91" * 1_000_000,
    ],
)
def test_bombs_cost_nothing(bomb):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            wire.decode_message(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert wire.hello_version(bomb) in {None, 1}


@given(HELLOS)
def test_version_of_a_hello_from_the_future(hello):
    fields = msgspec.to_builtins(hello, builtin_types=(bytes,))
    later = msgspec.msgpack.encode([*fields[:2], 77, "what", {"ever": [1]}])
    assert wire.hello_version(later) == 77
    appended = wire.decode_message(msgspec.msgpack.encode([*fields, "one field more"]))
    assert appended == hello


def test_hello_of_another_protocol():
    assert wire.hello_version(msgspec.msgpack.encode(["hello", "other", 1])) is None
    assert wire.hello_version(wire.encode_message(wire.Ready())) is None


@given(st.text(max_size=600))
def test_clip_gives_one_printable_line_that_encodes(text):
    clipped = wire.clip(text)
    assert len(clipped) <= wire.MAX_REASON
    assert clipped.isprintable()
    assert wire.decode_message(wire.encode_message(wire.Refused(clipped))) == wire.Refused(clipped)
