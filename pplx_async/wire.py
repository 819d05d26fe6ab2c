# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that crosses between processes, as bytes: descriptors and control messages.

A *descriptor* is what one process publishes and another one uses: a region that a peer may touch,
a counter that a peer may raise. It is small and travels by any means: a queue, a file, an HTTP
header. A *control message* travels on the control channel of two engines (:mod:`.control`).

Both are msgpack, read into one struct per kind, and both are hostile input. Decoding is total: it
returns a struct whose every field is in its documented range, or raises :exc:`ValueError`.
msgspec checks the length of an array before it allocates for it, so a few bytes can't ask for
gigabytes. Encoding decodes again what it wrote, so nothing leaves that a peer would refuse.

Versions. A descriptor begins with magic and version byte. `Hello` begins with them as well, and
what makes a refusal readable never changes: the first fields of `Hello`, and all of `Refused`. A
later version may append to `Hello`; every other struct refuses fields that it does not know.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

__all__ = [
    "ACCESS_READ",
    "ACCESS_WRITE",
    "MAX_COUNTERS",
    "MAX_DESCRIPTOR_NBYTES",
    "MAX_DOMAINS",
    "MAX_FENCED",
    "MAX_LINKS",
    "MAX_MESSAGE_NBYTES",
    "MAX_NAME",
    "MAX_OPEN_RUNS",
    "MAX_REASON",
    "PROTOCOL_VERSION",
    "CounterBroken",
    "CounterDescriptor",
    "Endpoints",
    "Fence",
    "Fenced",
    "Found",
    "Goodbye",
    "GroupJoin",
    "Hello",
    "Lookup",
    "Message",
    "Nic",
    "OpenCounters",
    "Proof",
    "RailLost",
    "Ready",
    "Refused",
    "RegionDescriptor",
    "RemoteKey",
    "clip",
    "decode_counter",
    "decode_message",
    "decode_region",
    "encode_counter",
    "encode_message",
    "encode_region",
    "hello_version",
]

PROTOCOL_VERSION: Final = 1
MAX_DOMAINS: Final = 9  # PPLX_MAX_DOMAINS
MAX_LINKS: Final = 8  # PPLX_MAX_LINKS
MAX_COUNTERS: Final = 1 << 20  # PPLX_MAX_COUNTERS
MAX_DESCRIPTOR_NBYTES: Final = 256  # a region of 9 domains takes 222
MAX_MESSAGE_NBYTES: Final = 1 << 20
MAX_FENCED: Final = 16384  # regions, or counters, in one Fence: 300 KB of a message
MAX_OPEN_RUNS: Final = 128  # in one OpenCounters: a frame of a handshake holds them
MAX_NAME: Final = 128  # characters
MAX_REASON: Final = 512  # characters

ACCESS_READ: Final = 1  # PPLX_ACCESS_REMOTE_READ
ACCESS_WRITE: Final = 2  # PPLX_ACCESS_REMOTE_WRITE

_MAGIC: Final = b"PPLX"
_PREFIX: Final = _MAGIC + bytes([PROTOCOL_VERSION])
_SAME_VERSION: Final = "install the same pplx_async on both sides"
_HELLO_MAGIC: Final = "pplx_async"
_U64_END: Final = 1 << 64

# msgpack has no integer above 2**64 - 1, so a lower bound makes a u64.
_U64: TypeAlias = Annotated[int, Meta(ge=0)]
_Counter: TypeAlias = Annotated[int, Meta(ge=0, lt=MAX_COUNTERS)]
_EngineId: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Bytes32: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Address: TypeAlias = Annotated[bytes, Meta(min_length=1, max_length=128)]  # PPLX_ADDRESS_BYTES
_Word: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
# Shown in errors, logs and explain(): printable, and no blank, which stands between two.
_Subnet: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"\A[!-~]+\Z")]
_Name: TypeAlias = Annotated[str, Meta(max_length=MAX_NAME)]
_Reason: TypeAlias = Annotated[str, Meta(max_length=MAX_REASON)]


class RemoteKey(NamedTuple):
    """What a peer needs to reach registered memory through one domain."""

    key: _U64
    base: _U64


class Nic(NamedTuple):
    """What is known of one domain's NIC: its speed, 0 if unknown, and the subnets it lies in (`pplx_caps.subnets`)."""

    bits_per_second: _U64
    subnets: Annotated[tuple[_Subnet, ...], Meta(max_length=8)]


_Keys: TypeAlias = Annotated[tuple[RemoteKey, ...], Meta(min_length=1, max_length=MAX_DOMAINS)]


class _Wire(msgspec.Struct, frozen=True, array_like=True, tag=str.lower, forbid_unknown_fields=True):
    """An array whose first element names the struct."""


# ---- descriptors --------------------------------------------------------------------------------


class RegionDescriptor(_Wire, frozen=True, tag="region"):
    """A region that a peer may touch.

    Attributes
    ----------
    engine : bytes
        Id of the engine that owns it, 16 bytes.
    region : int
        Id of the region in that engine, u64, never used twice.
    nbytes : int
        Its length; no key's ``base + nbytes`` goes beyond 2**64.
    access : int
        Sum of `ACCESS_READ` and `ACCESS_WRITE`, 1 to 3.
    keys : tuple of RemoteKey
        One for each of the owner's domains, 1 to `MAX_DOMAINS`.
    """

    engine: _EngineId
    region: _U64
    nbytes: _U64
    access: Annotated[int, Meta(ge=1, le=ACCESS_READ | ACCESS_WRITE)]
    keys: _Keys

    def __post_init__(self) -> None:
        """Refuse a range that wraps: the core adds offset to base in 64 bits."""
        if any(base + self.nbytes > _U64_END for _, base in self.keys):
            raise ValueError(f"region of {self.nbytes} B ends beyond the 64-bit address space")


class CounterDescriptor(_Wire, frozen=True, tag="counter"):
    """A counter that a peer may raise: id of its engine (16 bytes) and id in that engine."""

    engine: _EngineId
    counter: _U64


_descriptors: msgspec.msgpack.Decoder[RegionDescriptor | CounterDescriptor]
_descriptors = msgspec.msgpack.Decoder(RegionDescriptor | CounterDescriptor)
_encoder = msgspec.msgpack.Encoder()


def encode_region(descriptor: RegionDescriptor) -> bytes:
    """Encode a region's descriptor; ValueError if a field is out of range."""
    return _encode(descriptor, _PREFIX, decode_region)


def encode_counter(descriptor: CounterDescriptor) -> bytes:
    """Encode a counter's descriptor; ValueError if a field is out of range."""
    return _encode(descriptor, _PREFIX, decode_counter)


def decode_region(data: bytes | bytearray | memoryview) -> RegionDescriptor:
    """Decode a region's descriptor.

    Parameters
    ----------
    data : bytes, bytearray or memoryview
        At most `MAX_DESCRIPTOR_NBYTES`; hostile input.

    Raises
    ------
    ValueError
        It is no region's descriptor, or one of a newer version.
    TypeError
        `data` is of another type.
    """
    descriptor = _decode_descriptor(data)
    if isinstance(descriptor, RegionDescriptor):
        return descriptor
    raise ValueError("this is the descriptor of a counter; a region's is expected here")


def decode_counter(data: bytes | bytearray | memoryview) -> CounterDescriptor:
    """Decode a counter's descriptor; input and errors as for :func:`decode_region`."""
    descriptor = _decode_descriptor(data)
    if isinstance(descriptor, CounterDescriptor):
        return descriptor
    raise ValueError("this is the descriptor of a region; a counter's is expected here")


def _decode_descriptor(data: object) -> RegionDescriptor | CounterDescriptor:
    raw = _as_bytes(data, MAX_DESCRIPTOR_NBYTES, "descriptor")
    body = raw.removeprefix(_MAGIC)
    if len(body) == len(raw) or not body:
        raise ValueError(f"not a pplx_async descriptor: {len(raw)} B beginning with {raw[:8]!r}")
    if body[0] != PROTOCOL_VERSION:
        raise ValueError(f"descriptor of version {body[0]}, this pplx_async reads {PROTOCOL_VERSION}: {_SAME_VERSION}")
    try:
        return _descriptors.decode(body[1:])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"damaged descriptor: {error}") from error


# ---- control messages ---------------------------------------------------------------------------


class Hello(_Wire, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """First message of both sides: who is there, and what it speaks.

    Attributes
    ----------
    magic, version
        What makes it ours; first, in every version (see :func:`hello_version`).
    engine : bytes
        Random id of the engine, 16 bytes.
    nonce : bytes
        32 random bytes, fresh for each connection: a recorded proof proves nothing later.
    networks : tuple of str
        The network of each domain, 1 to `MAX_DOMAINS`; see ``routes.py``.
    host : str
        Identity of the host, not its name.
    name : str
        The engine's name in error messages, may be empty; hostile, so show its ``repr``.
    auth : bool
        Whether it has a secret; both sides have one or none has.
    nics : tuple of Nic
        The NIC of each domain, or none.
    """

    magic: str
    version: Annotated[int, Meta(ge=0, le=65535)]
    engine: _EngineId
    nonce: _Bytes32
    networks: Annotated[tuple[_Word, ...], Meta(min_length=1, max_length=MAX_DOMAINS)]
    host: _Word
    name: _Name
    auth: bool
    nics: Annotated[tuple[Nic, ...], Meta(max_length=MAX_DOMAINS)] = ()

    def __post_init__(self) -> None:
        """Refuse what is no Hello of ours."""
        if self.magic != _HELLO_MAGIC:
            raise ValueError("not a pplx_async engine")
        if self.nics and len(self.nics) != len(self.networks):
            raise ValueError(f"{len(self.nics)} NICs for {len(self.networks)} domains")


class Proof(_Wire, frozen=True):
    """Proof of knowing the shared secret, 32 bytes."""

    mac: _Bytes32


class Refused(_Wire, frozen=True):
    """The sender won't go on, or can't; the last message of a connection. The same in every version."""

    reason: _Reason


class Endpoints(_Wire, frozen=True, kw_only=True):
    """One side's endpoints and what the other side needs to use them (`pplx_peer_config`).

    Attributes
    ----------
    addresses : tuple of bytes
        Of the endpoints, by link, at most 128 bytes each.
    landing : tuple of RemoteKey
        Where writes without data land, by domain of the sender.
    heartbeat_counter, credit_counter : int
        Counters of the sender for the receiver's heartbeats and returned credits.
    credits : int
        Receives that the sender keeps posted.
    token : int
        u64 that heads each two-sided message to the sender.
    message_nbytes : int
        Largest two-sided message that the sender takes.
    """

    addresses: Annotated[tuple[_Address, ...], Meta(min_length=1, max_length=MAX_DOMAINS)]
    landing: _Keys
    heartbeat_counter: _Counter
    credit_counter: _Counter
    credits: Annotated[int, Meta(ge=1, le=65536)]
    token: _U64
    message_nbytes: Annotated[int, Meta(ge=1, le=1 << 30)]


class OpenCounters(_Wire, frozen=True):
    """Before `Ready`: counters of the sender that are open, first and last serial number of each run, rising."""

    runs: Annotated[tuple[tuple[_U64, _U64], ...], Meta(max_length=MAX_OPEN_RUNS)]


class Ready(_Wire, frozen=True):
    """The sender's endpoints have carried heartbeats both ways: the peers are connected.

    Of its counters with serial numbers up to `counters` those are closed that no `OpenCounters` named.
    """

    counters: _U64 = 0


class Goodbye(_Wire, frozen=True):
    """The sender closes in good order; the end of the connection is no loss."""


class RailLost(_Wire, frozen=True):
    """The sender has closed its end of a link, by its index: nothing of the receiver lands there any more.

    Of the receiver's messages those with numbers below `prefix` have arrived, and of the others those whose bit is set
    in `arrived` (bit 0 of the first byte: number `prefix`).
    """

    link: Annotated[int, Meta(ge=0, lt=MAX_LINKS)]
    reason: _Reason
    prefix: _U64 = 0
    arrived: Annotated[bytes, Meta(max_length=250)] = b""


class Fence(_Wire, frozen=True):
    """Stop using these regions and counters of mine, then answer `Fenced` with the serial."""

    serial: _U64
    regions: Annotated[tuple[_U64, ...], Meta(max_length=MAX_FENCED)]
    counters: Annotated[tuple[_U64, ...], Meta(max_length=MAX_FENCED)]


class Fenced(_Wire, frozen=True):
    """What `Fence` named is used no more, and nothing of it is in flight."""

    serial: _U64


class CounterBroken(_Wire, frozen=True):
    """A counted operation failed in part: this counter of yours will never show it whole."""

    counter: _Counter
    missing_eighths: _U64
    reason: _Reason


class GroupJoin(_Wire, frozen=True):
    """Counters of the sender for one member of a peer group.

    Attributes
    ----------
    name : str
        Of the group.
    notify_counter, barrier_counter : int
        Keys of two counters, u64. The second is the receiver's alone, and of this attempt to form the group.
    answers : int or None
        The receiver's own barrier counter, as its latest join told it.
    """

    name: _Word
    notify_counter: _U64
    barrier_counter: _U64
    answers: _U64 | None


class Lookup(_Wire, frozen=True):
    """Ask for the descriptor that the peer published under a name."""

    serial: _U64
    name: _Word


class Found(_Wire, frozen=True):
    """Answer to `Lookup`: an undecoded descriptor, or None."""

    serial: _U64
    descriptor: Annotated[bytes, Meta(max_length=MAX_DESCRIPTOR_NBYTES)] | None


Message: TypeAlias = (
    Hello
    | Proof
    | Refused
    | Endpoints
    | OpenCounters
    | Ready
    | Goodbye
    | RailLost
    | Fence
    | Fenced
    | CounterBroken
    | GroupJoin
    | Lookup
    | Found
)


class _HelloHead(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    magic: str
    version: Annotated[int, Meta(ge=0, le=65535)]


_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_hello_heads = msgspec.msgpack.Decoder(_HelloHead)


def encode_message(message: Message) -> bytes:
    """Encode a control message; ValueError if a field is out of range, so that the peer would refuse it."""
    return _encode(message, b"", decode_message)


def decode_message(data: bytes | bytearray | memoryview) -> Message:
    """Decode a control message of at most `MAX_MESSAGE_NBYTES`.

    Raises
    ------
    ValueError
        It is none.
    TypeError
        `data` is no bytes-like object.
    """
    try:
        return _messages.decode(_as_bytes(data, MAX_MESSAGE_NBYTES, "control message"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a control message of version {PROTOCOL_VERSION}: {error}") from error


def hello_version(data: bytes) -> int | None:
    """Read the version of a Hello of any version; None if it is no Hello of ours.

    Ask this before :func:`decode_message`, which reads Hellos of our own version.
    """
    try:
        head = _hello_heads.decode(data)
    except (ValueError, RecursionError):
        return None
    return head.version if head.magic == _HELLO_MAGIC else None


# ---- helpers ------------------------------------------------------------------------------------


def clip(text: str, limit: int = MAX_REASON) -> str:
    """Make text fit for a message's field and for one line of a log: printable, short."""
    if len(text) > limit:
        text = text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _encode(struct: _Wire, prefix: bytes, decode: Callable[[bytes], object]) -> bytes:
    try:
        data = prefix + _encoder.encode(struct)
        decode(data)
    except (TypeError, OverflowError, ValueError) as error:
        # msgspec counts: `$[2]` is the second field, since the tag comes first.
        fields = ("tag", *struct.__struct_fields__)
        text = re.sub(r"\$\[(\d+)\]", lambda match: fields[int(match[1])], str(error.__cause__ or error), count=1)
        raise ValueError(f"cannot encode {type(struct).__name__}: {text}") from error
    return data


def _as_bytes(data: object, limit: int, what: str) -> bytes:
    """Copy if need be: a bytearray could change, and a memoryview can have holes, while we read."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"{what}: expected bytes, got {type(data).__name__}")
    nbytes = data.nbytes if isinstance(data, memoryview) else len(data)
    if nbytes > limit:
        raise ValueError(f"{what} of {nbytes} B: the longest has {limit} B")
    return bytes(data)
