# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Every public call with what it cannot take: refused at once, by the right type, in words of the public API."""

import asyncio
import inspect
import re

import numpy as np
import pytest
import pytest_asyncio

from helpers.engines import SOON, engine_on
from helpers.things import EVERY_CALL, PAGES, Things, public_calls
from pplx_async import ClosedResourceError, EngineOptions, Transfer, TransferEngine, lowlevel

on_one_loop = pytest.mark.asyncio(loop_scope="module")

HUGE = 2**70
# What no message may say: it is not in the documentation.
PRIVATE = re.compile(
    r"_core|\w+Core\b|\w*Record\b|\bRegistration\b|CounterWait|Cython|attribute|unpack|C (unsigned )?long"
)

LOCAL = "local must be a MemoryRegion, .* or a slice of one, not "
REMOTE = "remote must be a RemoteRegion, .* or a slice of one, not "
COUNTER = "counter must be a RemoteCounter, .* not "
NOT_BOOL = "must be True or False, not "
NAME_TYPE = "a name is a str, not "
NAME_LENGTH = "a name has 1 to 128 characters, not "
DESCRIPTOR = "descriptor: expected bytes, got "


def pages(**changes):
    return PAGES | changes


def write_like(call):
    """What is wrong of (local, remote, counter) however they are given."""
    return [
        (lambda x: call(x, 1, x.remote, None), TypeError, LOCAL + "int"),
        (lambda x: call(x, None, x.remote, None), TypeError, LOCAL + "NoneType"),
        (lambda x: call(x, bytearray(100), x.remote, None), TypeError, LOCAL + "bytearray"),
        (lambda x: call(x, x.remote, x.local, None), TypeError, LOCAL + "RemoteRegion"),
        (lambda x: call(x, x.local.view(1), x.remote, None), TypeError, LOCAL + "ElementView"),
        (lambda x: call(x, x.local, x.local, None), TypeError, REMOTE + "MemoryRegion"),
        (lambda x: call(x, x.local, None, None), TypeError, REMOTE + "NoneType"),
        (lambda x: call(x, x.local, x.descriptor, None), TypeError, REMOTE + "bytes"),
        (lambda x: call(x, x.local, x.remote, x.counter), TypeError, COUNTER + "ImmCounter"),
        (lambda x: call(x, x.local, x.remote, 5), TypeError, COUNTER + "int"),
        (lambda x: call(x, x.other.local, x.remote, None), ValueError, "registered with another engine"),
        (lambda x: call(x, x.local, x.other.remote, None), ValueError, "peer b .* belongs to another engine"),
        (lambda x: call(x, x.local, x.remote, x.other.remote_counter), ValueError, "the counter belongs to peer"),
        (lambda x: call(x, x.local, x.unwritable, None), ValueError, "did not allow writes"),
        (lambda x: call(x, x.closed_region, x.remote, None), ClosedResourceError, "local region is closed"),
    ]


def lengths(call):
    return [(lambda x: call(x, x.local[0:5], x.remote[0:6], None), ValueError, "lengths differ: 5 B here, 6 B at peer")]


def detach(call):
    return [
        (lambda x: call(x, "no"), TypeError, "detach " + NOT_BOOL + "str"),
        (lambda x: call(x, None), TypeError, "detach " + NOT_BOOL + "NoneType"),
        (lambda x: call(x, 1), TypeError, "detach " + NOT_BOOL + "int"),
    ]


def page_like(call):
    """What is wrong of a list of pages."""
    rows = [
        ({"page_nbytes": 1.5}, TypeError, "page_nbytes must be an integer, not float"),
        ({"page_nbytes": "4"}, TypeError, "page_nbytes must be an integer, not str"),
        ({"page_nbytes": None}, TypeError, "page_nbytes must be an integer, not NoneType"),
        ({"page_nbytes": True}, TypeError, "page_nbytes must be an integer, not bool"),
        ({"page_nbytes": 0}, ValueError, "page_nbytes must be at least 1, not 0"),
        ({"page_nbytes": -1}, ValueError, "page_nbytes must be at least 1, not -1"),
        ({"page_nbytes": HUGE}, ValueError, "page_nbytes must be at most"),
        ({"page_nbytes": 1000}, IndexError, "the local slice has 0 pages"),
        ({"local_stride": -5}, ValueError, "local_stride must be at least 1, not -5"),
        ({"local_stride": 9}, ValueError, "does not fit the stride of 9 B"),
        ({"local_stride": HUGE}, ValueError, "local_stride must be at most"),
        ({"local_stride": 10.0}, TypeError, "local_stride must be an integer, not float"),
        ({"remote_stride": -5}, ValueError, "remote_stride must be at least 1, not -5"),
        ({"remote_stride": HUGE}, ValueError, "remote_stride must be at most"),
        ({"remote_stride": "10"}, TypeError, "remote_stride must be an integer, not str"),
        ({"local_offset": -1}, ValueError, "local_offset must not be negative, not -1"),
        ({"local_offset": HUGE}, ValueError, "local_offset must be at most"),
        ({"local_offset": None}, TypeError, "local_offset must be an integer, not NoneType"),
        ({"remote_offset": -1}, ValueError, "remote_offset must not be negative, not -1"),
        ({"remote_offset": 2**64 - 1}, ValueError, "does not fit the stride"),
        ({"remote_offset": 0.0}, TypeError, "remote_offset must be an integer, not float"),
        ({"local_pages": [0]}, ValueError, "1 local pages but 2 remote pages"),
        ({"local_pages": [0, -1]}, IndexError, "local page -1 at position 1"),
        ({"local_pages": [0, 10]}, IndexError, "local page 10 at position 1: the local slice has 10 pages"),
        ({"local_pages": [0, HUGE]}, ValueError, "local_pages cannot be read"),
        ({"local_pages": [0, 0.5]}, TypeError, "local_pages must be integers"),
        ({"local_pages": ["a", "b"]}, TypeError, "local_pages must be integers"),
        ({"local_pages": "ab"}, TypeError, "local_pages must be integers"),
        ({"local_pages": None}, TypeError, "local_pages must be integers"),
        ({"local_pages": 5}, TypeError, "local_pages must be integers"),
        (
            {"local_pages": np.zeros(2)},
            TypeError,
            "local_pages must be a one-dimensional buffer of integers, not 1-d 'd'",
        ),
        ({"local_pages": np.array([])}, TypeError, "makes an empty array of floats unless it is given a dtype"),
        ({"local_pages": np.zeros((1, 2), int)}, TypeError, "one-dimensional buffer of integers, not 2-d"),
        ({"local_pages": np.array([True, False])}, TypeError, "integers, not 1-d '?'"),
        ({"remote_pages": np.array([], dtype=np.float32)}, TypeError, "remote_pages must be .* not 1-d 'f'"),
        ({"remote_pages": [0, 10]}, IndexError, "remote page 10"),
        ({"remote_pages": object()}, TypeError, "remote_pages must be integers"),
    ]
    return [(lambda x, c=c: call(x, **pages(**c)), error, message) for c, error, message in rows]


def name_like(call):
    return [
        (lambda x: call(x, 5), TypeError, NAME_TYPE + "int"),
        (lambda x: call(x, None), TypeError, NAME_TYPE + "NoneType"),
        (lambda x: call(x, b"name"), TypeError, NAME_TYPE + "bytes"),
        (lambda x: call(x, ["name"]), TypeError, NAME_TYPE + "list"),
        (lambda x: call(x, ""), ValueError, NAME_LENGTH + "0"),
        (lambda x: call(x, "x" * 129), ValueError, NAME_LENGTH + "129"),
        (lambda x: call(x, "\ud800"), ValueError, "text that UTF-8 can encode"),
    ]


def slice_like(memory, what):
    return [
        (lambda x: memory(x)[5], TypeError, "slice .* by bytes, as in .* not with int"),
        (lambda x: memory(x)["a"], TypeError, "not with str"),
        (lambda x: memory(x)[None], TypeError, "not with NoneType"),
        (lambda x: memory(x)[0.0:1.0], TypeError, "the ends of a slice are integers, not float"),
        (lambda x: memory(x)["a":"b"], TypeError, "the ends of a slice are integers, not str"),
        (lambda x: memory(x)[0:8:2], ValueError, "contiguous: no step"),
        (lambda x: memory(x)[::-1], ValueError, "contiguous: no step"),
        (lambda x: memory(x)[0:101], IndexError, rf"\[0:101\] is not inside {what} of 100 B"),
        (lambda x: memory(x)[8:4], IndexError, "not inside"),
        (lambda x: memory(x)[-101:], IndexError, "not inside"),
        (lambda x: memory(x)[0:HUGE], IndexError, "not inside"),
    ]


def view_like(memory):
    return [
        (lambda x: memory(x).view(None), TypeError, "not None"),
        (lambda x: memory(x).view(True), TypeError, "not True"),
        (lambda x: memory(x).view(1.5), TypeError, None),
        (lambda x: memory(x).view(object()), TypeError, None),
        (lambda x: memory(x).view("junk"), TypeError, "junk"),
        (lambda x: memory(x).view("z"), ValueError, "'z' is no type code"),
        (lambda x: memory(x).view(0), ValueError, "an element has at least 1 B, not 0"),
        (lambda x: memory(x).view(-4), ValueError, "an element has at least 1 B, not -4"),
        (lambda x: memory(x).view(3), ValueError, "100 B are no whole number of elements of 3 B"),
        (lambda x: memory(x).view(2**40), ValueError, "no whole number of elements"),
        (lambda x: memory(x).view(HUGE), ValueError, "no whole number of elements"),
        (lambda x: memory(x).view(np.dtype("S0")), ValueError, "at least 1 B"),
        (lambda x: memory(x).view("f4")[3], TypeError, "slice a view by elements, as in .* not with int"),
        (lambda x: memory(x).view("f4")[0:4:2], ValueError, "no step"),
        (lambda x: memory(x).view("f4")[0.0:1], TypeError, "the ends of a slice are integers"),
        (lambda x: memory(x).view("f4")[0:26], IndexError, r"\[0:26\] is not inside a view of 25 elements"),
    ]


def count_like(call, least):
    too_few = "count must not be negative, not -1" if least == 0 else "count must be at least 1, not -1"
    return [
        (lambda x: call(x, 1.5), TypeError, "count must be an integer, not float"),
        (lambda x: call(x, 1.0), TypeError, "count must be an integer, not float"),
        (lambda x: call(x, "1"), TypeError, "count must be an integer, not str"),
        (lambda x: call(x, None), TypeError, "count must be an integer, not NoneType"),
        (lambda x: call(x, True), TypeError, "count must be an integer, not bool"),
        (lambda x: call(x, -1), ValueError, too_few),
        (lambda x: call(x, 2**60 + 1), ValueError, "count must be at most"),
        (lambda x: call(x, 2**64), ValueError, "count must be at most"),
        (lambda x: call(x, HUGE), ValueError, "count must be at most"),
    ]


def descriptor_like(call):
    return [
        (lambda x: call(x, None), TypeError, DESCRIPTOR + "NoneType"),
        (lambda x: call(x, 5), TypeError, DESCRIPTOR + "int"),
        (lambda x: call(x, "text"), TypeError, DESCRIPTOR + "str"),
        (lambda x: call(x, x.target), TypeError, DESCRIPTOR + "MemoryRegion"),
        (lambda x: call(x, b""), ValueError, "not a pplx_async descriptor"),
        (lambda x: call(x, b"junk"), ValueError, "not a pplx_async descriptor"),
        (lambda x: call(x, bytes(1000)), ValueError, "the longest has"),
    ]


def notify_like(call):
    several = "notify a RemoteCounter, several of them, or a PeerGroup, not "
    return [
        (lambda x: call(x, None), TypeError, several + "NoneType"),
        (lambda x: call(x, 5), TypeError, several + "int"),
        (lambda x: call(x, x.counter), TypeError, several + "ImmCounter"),
        (lambda x: call(x, x.ab), TypeError, several + "Peer"),
        (lambda x: call(x, [x.counter]), TypeError, COUNTER + "ImmCounter"),
        (lambda x: call(x, [x.remote_counter, None]), TypeError, COUNTER + "NoneType"),
        (lambda x: call(x, "ab"), TypeError, COUNTER + "str"),
        (lambda x: call(x, x.other.remote_counter), ValueError, "belongs to another engine"),
        (lambda x: call(x, x.other.group), ValueError, "group 'things' belongs to another engine"),
    ]


def scatter_like(call):
    return [
        (lambda x: call(x, None), TypeError, "scatter takes any number of .* not NoneType"),
        (lambda x: call(x, 5), TypeError, "scatter takes any number of .* not int"),
        (lambda x: call(x, [5]), TypeError, "each target is a tuple, not int"),
        (lambda x: call(x, [None]), TypeError, "each target is a tuple, not NoneType"),
        (lambda x: call(x, "ab"), TypeError, "each target is a tuple, not str"),
        (lambda x: call(x, (x.local, x.remote)), TypeError, "each target is a tuple, not MemoryRegion"),
        (lambda x: call(x, [()]), ValueError, "each target is .* not 0 things"),
        (lambda x: call(x, [(x.local,)]), ValueError, "each target is .* not 1 things"),
        (lambda x: call(x, [(x.local, x.remote, None, None)]), ValueError, "each target is .* not 4 things"),
    ]


def write(x, local, remote, counter):
    return x.a.write(local, remote, counter=counter)


def read(x, local, remote):
    return x.a.read(remote, local)


def scatter(x, local, remote, counter):
    return x.a.scatter([(x.local, x.remote), (local, remote, counter)])


def write_pages(x, local, remote, counter):
    return x.a.write_pages(local, remote, counter=counter, **PAGES)


def batch_write(x, local, remote, counter):
    return x.batch.write(local, remote, counter=counter)


def scope_write(x, local, remote, counter):
    return x.scope.write(local, remote, counter=counter)


def batch_pages(x, local, remote, counter):
    return x.batch.write_pages(local, remote, counter=counter, **PAGES)


def scope_pages(x, local, remote, counter):
    return x.scope.write_pages(local, remote, counter=counter, **PAGES)


PEER = r"a peer is what connect\(\) and accept\(\) return, not "
READS = [
    (lambda x: read(x, x.remote, x.local), TypeError, REMOTE + "MemoryRegion"),
    (lambda x: read(x, None, x.remote), TypeError, LOCAL + "NoneType"),
    (lambda x: read(x, x.local, None), TypeError, REMOTE + "NoneType"),
    (lambda x: read(x, bytearray(100), x.remote), TypeError, LOCAL + "bytearray"),
    (lambda x: read(x, x.other.local, x.remote), ValueError, "registered with another engine"),
    (lambda x: read(x, x.local, x.other.remote), ValueError, "belongs to another engine"),
    (lambda x: read(x, x.read_only, x.remote), ValueError, "the local region is read-only"),
    (lambda x: read(x, x.local, x.unreadable), ValueError, "did not allow reads"),
    (lambda x: read(x, x.local[0:5], x.remote[0:6]), ValueError, "lengths differ"),
    (lambda x: read(x, x.closed_region, x.remote), ClosedResourceError, "the local region is closed"),
]

MISUSE = {
    "TransferEngine": [
        (lambda x: TransferEngine("tcp"), TypeError, 'options must be an EngineOptions, not str: .*fabric="tcp"'),
        (lambda x: TransferEngine({"fabric": "tcp"}), TypeError, "options must be an EngineOptions, not dict"),
        (lambda x: TransferEngine(EngineOptions(), fabric="tcp"), TypeError, "not both"),
        (lambda x: TransferEngine(fabrik="tcp"), TypeError, "fabrik"),
        (lambda x: TransferEngine(domains="1"), TypeError, "domains='1': expected an integer"),
        (lambda x: TransferEngine(domains=9), ValueError, "domains=9: expected 1 to 8"),
    ],
    "TransferEngine.open": [(lambda x: x.a.open(), RuntimeError, "an engine is opened once")],
    "TransferEngine.empty": [
        (lambda x: x.a.empty(0), ValueError, "an array of shape 0 .* is empty"),
        (lambda x: x.a.empty((3, -1)), ValueError, "is empty"),
        (lambda x: x.a.empty(1.5), TypeError, "a shape is an integer"),
        (lambda x: x.a.empty("10"), TypeError, "a shape is an integer or a tuple of integers, not '10'"),
        (lambda x: x.a.empty(None), TypeError, "a shape is an integer"),
        (lambda x: x.a.empty(2**63), ValueError, "an allocation has 1 B to"),
        (lambda x: x.a.empty(10, object), TypeError, "holds references"),
        (lambda x: x.a.empty(10, "no such type"), TypeError, "no such type"),
    ],
    "TransferEngine.register": [
        *(
            (lambda x, bad=bad: x.a.register(bad), TypeError, f"buffer must be memory .* not {type(bad).__name__}")
            for bad in ("text", 5, None, [1, 2], object())
        ),
        (lambda x: x.a.register(x.local), TypeError, "buffer must be memory .* not MemoryRegion"),
        (lambda x: x.a.register(b""), ValueError, "the buffer is empty"),
        (lambda x: x.a.register(np.zeros(100)[::2]), ValueError, "not C-contiguous"),
        (lambda x: x.a.register(b"abc", access="write"), ValueError, "the buffer is read-only"),
        (lambda x: x.a.register(bytearray(4), access="rw"), ValueError, "access='rw': expected one of none, read"),
        (lambda x: x.a.register(bytearray(4), access=3), TypeError, "access is one of none, .* not of type int"),
        (lambda x: x.a.register(bytearray(4), access=["read"]), TypeError, "access is one of .* not of type list"),
    ],
    "TransferEngine.publish": [
        *name_like(lambda x, name: x.a.publish(name, x.local)),
        (lambda x: x.a.publish("name", None), TypeError, "publish a MemoryRegion or an ImmCounter, not NoneType"),
        (lambda x: x.a.publish("name", x.local[0:5]), TypeError, "publish a MemoryRegion .* not LocalSlice"),
        (lambda x: x.a.publish("name", x.remote), TypeError, "publish a MemoryRegion .* not RemoteRegion"),
        (lambda x: x.a.publish("name", x.remote_counter), TypeError, "publish a MemoryRegion .* not RemoteCounter"),
        (lambda x: x.a.publish("name", x.descriptor), TypeError, "publish a MemoryRegion .* not bytes"),
        (lambda x: x.a.publish("name", x.target), ValueError, "it belongs to another engine"),
        (lambda x: x.a.publish("name", x.counter_of_b), ValueError, "it belongs to another engine"),
        (lambda x: x.a.publish("name", x.own_only), ValueError, 'access="none"'),
        (lambda x: x.a.publish("name", x.closed_region), ClosedResourceError, "it is closed"),
        (lambda x: x.a.publish("name", x.closed_counter), ClosedResourceError, "it is closed"),
    ],
    "TransferEngine.unpublish": name_like(lambda x, name: x.a.unpublish(name)),
    "TransferEngine.counter": [
        (lambda x: x.a.counter(peer=5), TypeError, PEER + "int"),
        (lambda x: x.a.counter(peer="b"), TypeError, PEER + "str"),
        (lambda x: x.a.counter(peer=x.b), TypeError, PEER + "TransferEngine"),
        (lambda x: x.a.counter(peer=x.ba), ValueError, "peer a .* belongs to another engine"),
        (lambda x: x.a.counter(peer=x.closed_peer), ClosedResourceError, "is closed"),
    ],
    "TransferEngine.connect": [
        *(
            (lambda x, bad=bad: x.a.connect(bad), TypeError, f"address must be a str, .* not {type(bad).__name__}")
            for bad in (5, None, b"127.0.0.1:1", ("127.0.0.1", 1))
        ),
        (lambda x: x.a.connect(""), ValueError, "expected 'host:port'"),
        (lambda x: x.a.connect("junk"), ValueError, "expected 'host:port'"),
        (lambda x: x.a.connect("127.0.0.1:99999"), ValueError, "the port is 0 to 65535"),
        (lambda x: x.a.connect("127.0.0.1:1", timeout="1"), TypeError, "timeout is a number of seconds, not str"),
        (lambda x: x.a.connect("127.0.0.1:1", timeout=True), TypeError, "timeout is a number of seconds, not bool"),
        (lambda x: x.a.connect("127.0.0.1:1", timeout=[1]), TypeError, "timeout is a number of seconds, not list"),
        (lambda x: x.a.connect("127.0.0.1:1", timeout=-1), ValueError, "timeout is 0 to 86400 seconds, not -1"),
        (lambda x: x.a.connect("127.0.0.1:1", timeout=float("nan")), ValueError, "not nan"),
        (lambda x: x.a.connect("127.0.0.1:1", timeout=float("inf")), ValueError, "not inf"),
    ],
    "TransferEngine.remote_region": [
        *descriptor_like(lambda x, data: x.a.remote_region(data)),
        (lambda x: x.a.remote_region(x.counter_descriptor), ValueError, "descriptor of a counter"),
        (lambda x: x.a.remote_region(x.other.descriptor), ValueError, "not connected"),
    ],
    "TransferEngine.write": [
        *write_like(write),
        *lengths(write),
        *detach(lambda x, flag: x.a.write(x.local, x.remote, detach=flag)),
    ],
    "TransferEngine.read": [*READS, *detach(lambda x, flag: x.a.read(x.remote, x.local, detach=flag))],
    "TransferEngine.write_pages": [
        *write_like(write_pages),
        *page_like(lambda x, **given: x.a.write_pages(x.local, x.remote, **given)),
        *detach(lambda x, flag: x.a.write_pages(x.local, x.remote, detach=flag, **PAGES)),
    ],
    "TransferEngine.scatter": [
        *scatter_like(lambda x, targets: x.a.scatter(targets)),
        *write_like(scatter),
        *lengths(scatter),
        *detach(lambda x, flag: x.a.scatter([(x.local, x.remote)], detach=flag)),
    ],
    "TransferEngine.notify": notify_like(lambda x, targets: x.a.notify(targets)),
    "TransferEngine.group": [
        *name_like(lambda x, name: x.a.group(name, [x.ab])),
        (lambda x: x.a.group("g", None), TypeError, "peers are the other members, not NoneType"),
        (lambda x: x.a.group("g", x.ab), TypeError, "peers are the other members, not Peer"),
        (lambda x: x.a.group("g", [5]), TypeError, PEER + "int"),
        (lambda x: x.a.group("g", [[]]), TypeError, PEER + "list"),
        (lambda x: x.a.group("g", "ab"), TypeError, PEER + "str"),
        (lambda x: x.a.group("g", []), ValueError, "at least one other member"),
        (lambda x: x.a.group("g", [x.ab, x.ab]), ValueError, "each only once"),
        (lambda x: x.a.group("g", [x.ba]), ValueError, "belongs to another engine"),
        (lambda x: x.a.group("g", [x.closed_peer]), ClosedResourceError, "is closed"),
    ],
    "TransferEngine.barrier": [
        (lambda x: x.a.barrier(None), TypeError, r"a group is what engine.group\(\) returns, not NoneType"),
        (lambda x: x.a.barrier([x.ab]), TypeError, "not list"),
        (lambda x: x.a.barrier(x.group_of_b), ValueError, "group 'things' belongs to another engine"),
    ],
    "MemoryRegion": slice_like(lambda x: x.local, "a region"),
    "MemoryRegion.view": view_like(lambda x: x.local),
    "MemoryRegion.to_bytes": [
        (lambda x: x.own_only.to_bytes(), ValueError, 'access="none"'),
        (lambda x: x.closed_region.to_bytes(), ClosedResourceError, "the region is closed"),
    ],
    "RemoteRegion": slice_like(lambda x: x.remote, "a remote region"),
    "RemoteRegion.view": view_like(lambda x: x.remote),
    "ImmCounter.wait": [
        *count_like(lambda x, count: x.counter.wait(count), 0),
        (lambda x: x.closed_counter.wait(1), ClosedResourceError, "the counter is closed"),
    ],
    "ImmCounter.take": [
        *count_like(lambda x, count: x.counter.take(count), 1),
        (lambda x: x.counter.take(0), ValueError, "count must be at least 1, not 0"),
        (lambda x: x.closed_counter.take(1), ClosedResourceError, "the counter is closed"),
    ],
    "Peer.region": [
        *descriptor_like(lambda x, data: x.ab.region(data)),
        (lambda x: x.ab.region(x.counter_descriptor), ValueError, "descriptor of a counter"),
        (lambda x: x.ab.region(x.other.descriptor), ValueError, "connect to that engine"),
    ],
    "Peer.counter": [
        *descriptor_like(lambda x, data: x.ab.counter(data)),
        (lambda x: x.ab.counter(x.descriptor), ValueError, "descriptor of a region"),
        (lambda x: x.ab.counter(x.counter.to_bytes()), ValueError, "connect to that engine"),
    ],
    "Peer.lookup": name_like(lambda x, name: x.ab.lookup(name)),
    "Peer.lookup_counter": name_like(lambda x, name: x.ab.lookup_counter(name)),
    "Peer.send": [
        (lambda x: x.ab.send("text"), TypeError, "bytes-like object is required"),
        (lambda x: x.ab.send(None), TypeError, "bytes-like object is required"),
        (lambda x: x.ab.send(5), TypeError, "bytes-like object is required"),
        (lambda x: x.ab.send(bytes(8193)), ValueError, "use a write"),
        (lambda x: x.closed_peer.send(b"x"), ClosedResourceError, "is closed"),
    ],
    "Batch.write": [*write_like(batch_write), *lengths(batch_write)],
    "Batch.write_pages": [
        *write_like(batch_pages),
        *page_like(lambda x, **given: x.batch.write_pages(x.local, x.remote, **given)),
    ],
    "Batch.notify": [
        (lambda x: x.batch.notify(x.counter), TypeError, COUNTER + "ImmCounter"),
        (lambda x: x.batch.notify(None), TypeError, COUNTER + "NoneType"),
        (lambda x: x.batch.notify([x.remote_counter]), TypeError, COUNTER + "list"),
        (lambda x: x.batch.notify(x.other.remote_counter), ValueError, "belongs to another engine"),
        (lambda x: x.batch.notify(x.remote_counter, -1), ValueError, "times must not be negative, not -1"),
        (lambda x: x.batch.notify(x.remote_counter, 2**32), ValueError, "times must be at most"),
        (lambda x: x.batch.notify(x.remote_counter, HUGE), ValueError, "times must be at most"),
        (lambda x: x.batch.notify(x.remote_counter, 1.0), TypeError, "times must be an integer, not float"),
        (lambda x: x.batch.notify(x.remote_counter, None), TypeError, "times must be an integer, not NoneType"),
    ],
    "Batch.submit": detach(lambda x, flag: x.batch.submit(detach=flag)),
    "TransferScope.write": [*write_like(scope_write), *lengths(scope_write)],
    "TransferScope.write_pages": [
        *write_like(scope_pages),
        *page_like(lambda x, **given: x.scope.write_pages(x.local, x.remote, **given)),
    ],
    "TransferScope.scatter": scatter_like(lambda x, targets: x.scope.scatter(targets)),
    "TransferScope.read": [
        (lambda x: x.scope.read(x.local, x.remote), TypeError, REMOTE + "MemoryRegion"),
        (lambda x: x.scope.read(x.remote, None), TypeError, LOCAL + "NoneType"),
    ],
    "TransferScope.notify": notify_like(lambda x, targets: x.scope.notify(targets)),
    "TransferScope.add": [
        (lambda x: x.scope.add(None), TypeError, r"a transfer is what engine.write\(\) returns, .* not NoneType"),
        (lambda x: x.scope.add(asyncio.Future()), TypeError, "a transfer is what"),
        (lambda x: x.a.scope().add(x.done), RuntimeError, "the scope is not entered"),
    ],
    "Transfer": [
        (lambda x: Transfer(), TypeError, "a transfer is made by"),
        (lambda x: Transfer(asyncio.get_running_loop()), TypeError, "a transfer is made by"),
        (lambda x: x.done.add_release_callback(None), TypeError, "a callback is called, and NoneType cannot be"),
    ],
    "lowlevel": [
        (lambda x: lowlevel.discover(5, {}), TypeError, "provider"),
        (lambda x: lowlevel.discover("nothing", {}), ValueError, "no provider is called 'nothing'"),
        (lambda x: lowlevel.discover("loopback", {1: 2}), TypeError, "provider options are .* text"),
        (lambda x: lowlevel.discover("loopback", {"seed": 2}), TypeError, "provider options are .* text"),
        (lambda x: lowlevel.discover("loopback", None), TypeError, "options"),
        (lambda x: lowlevel.status_text("OK"), TypeError, "status"),
        (lambda x: lowlevel.status_text(-1), ValueError, "status must not be negative"),
        (lambda x: lowlevel.status_text(HUGE), ValueError, "status must be at most"),
        (lambda x: lowlevel.LocalSlice(None, 0, 1, None), TypeError, "slice a region"),
        (lambda x: lowlevel.LocalSlice(5, 0, 1, None), TypeError, "slice a region"),
        (lambda x: lowlevel.LocalSlice(x.local.registration, 0, 101, None), ValueError, "nbytes must be at most 100"),
        (lambda x: lowlevel.LocalSlice(x.local.registration, 1, 100, None), ValueError, "offset must be at most 0"),
        (lambda x: lowlevel.RemoteSlice(None, 0, 1), TypeError, "slice a remote region"),
        (lambda x: lowlevel.RemoteSlice(x.remote.record, -1, 1), ValueError, "offset must not be negative"),
        # Made past their constructors, and as far as a call.
        (lambda x: write(x, lowlevel.LocalSlice.__new__(lowlevel.LocalSlice), x.remote, None), TypeError, LOCAL),
        (lambda x: write(x, x.local, lowlevel.RemoteSlice.__new__(lowlevel.RemoteSlice), None), TypeError, REMOTE),
    ],
}
# Calls without arguments.
# Whatever takes a stream.
for name, call in {
    "TransferEngine.reached": lambda x, bad: x.a.reached(bad),
    "TransferEngine.rearm": lambda x, bad: x.a.rearm(bad),
    "ImmCounter.gate": lambda x, bad: x.gated.gate(bad, 1),
    "TransferEngine.write": lambda x, bad: x.a.write(x.local, x.remote, after=bad),
    "TransferEngine.read": lambda x, bad: x.a.read(x.remote, x.local, after=bad),
    "Batch.submit": lambda x, bad: x.a.batch().submit(after=bad),
}.items():
    MISUSE.setdefault(name, []).extend(
        (lambda x, bad=bad, call=call: call(x, bad), TypeError, f"a stream is .*not {type(bad).__name__}")
        for bad in ("stream", 1.5, True, object())
    )
MISUSE["ImmCounter.gate"] += [
    (lambda x: x.gated.gate(x.host_stream, 0), ValueError, "n must be at least 1, not 0"),
    (lambda x: x.gated.gate(x.host_stream, "1"), TypeError, "n must be an integer, not str"),
    (lambda x: x.closed_counter.gate(x.host_stream, 1), ClosedResourceError, "the counter is closed"),
]

NOTHING_TO_MISUSE = {
    "TransferEngine.watch",
    "TransferEngine.accept",
    "TransferEngine.batch",
    "TransferEngine.close",
    "TransferEngine.drain",
    "TransferEngine.explain",
    "TransferEngine.messages",
    "TransferEngine.scope",
    "TransferEngine.stats",
    "MemoryRegion.close",
    "MemoryRegion.revoke",
    "ImmCounter.close",
    "ImmCounter.to_bytes",
    "Peer.close",
    "Peer.stats",
    "Peer.wait_closed",
    "PeerGroup.close",
}
ROWS = [
    pytest.param(call, error, message, id=f"{name}-{number}")
    for name, rows in MISUSE.items()
    for number, (call, error, message) in enumerate(rows)
]


def test_every_public_call_is_tried():
    assert public_calls() - set(MISUSE) == NOTHING_TO_MISUSE


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def x(fabric):
    """What the calls are given, right and wrong."""
    things, things.other = await Things.open(fabric), await Things.open(fabric)
    things.own_only = await things.a.register(bytearray(100), access="none")
    things.read_only = await things.a.register(bytes(100))
    things.unwritable = things.ab.region((await _target(things, "read")).to_bytes())
    things.unreadable = things.ab.region((await _target(things, "write")).to_bytes())
    things.closed_region = await things.a.register(bytearray(100))
    await things.closed_region.close()
    things.closed_counter = things.a.counter()
    await things.closed_counter.close()
    async with engine_on(fabric) as gone:
        things.closed_peer = await things.a.connect(gone.address)
        await things.closed_peer.close()
    yield things
    await things.other.close()
    await things.close()


async def _target(things, access):
    region = await things.b.register(bytearray(100), access=access)
    things.kept = [*getattr(things, "kept", ()), region]
    return region


async def failure(call, things):
    with pytest.raises(Exception) as caught:
        result = call(things)
        if inspect.isawaitable(result):
            await asyncio.wait_for(result, SOON)
    return caught.value


@pytest.mark.parametrize(("call", "error", "message"), ROWS)
@on_one_loop
async def test_misuse(x, call, error, message):
    raised = await failure(call, x)
    assert type(raised) is error, repr(raised)
    assert message is None or re.search(message, str(raised)), str(raised)
    assert not PRIVATE.search(str(raised)), str(raised)


@on_one_loop
async def test_misuse_has_done_nothing(x):
    assert x.batch.nbytes == 0
    assert x.counter.value == x.counter_of_b.value == x.group.counter.value == 0
    assert x.a.stats().inflight == 0
    # Nothing was posted but the one good write of `Things`, which wrote zeros.
    assert [(link.posted["write"], link.posted["read"]) for link in x.ab.stats().links] == [(1, 0)]
    sink = bytearray(b"x" * 100)
    async with await x.a.register(sink) as local:
        await x.a.read(x.remote, local)
    assert sink == bytes(100)
    with pytest.raises(KeyError):
        await x.ba.lookup("name")
    await x.pair.write(100)
    await asyncio.wait_for(asyncio.gather(x.a.barrier(x.group), x.b.barrier(x.group_of_b)), SOON)


@on_one_loop
async def test_what_is_no_misuse(x):
    """Nothing is a number of pages too, and whatever says that it is an integer is one."""
    for nothing in ([], (), np.array([], dtype=np.int32), range(0)):
        assert await x.a.write_pages(x.local, x.remote, page_nbytes=1, local_pages=nothing, remote_pages=[]) == 0
    assert await x.a.scatter([]) == await x.a.notify([]) == await x.a.batch().submit() == 0
    assert await x.a.scatter([[x.local, x.remote], (x.local, x.remote, None)]) == 200
    assert await x.counter.wait(np.int64(0)) == 0
    sizes = {"page_nbytes": np.uint16(10), "local_stride": np.int8(20), "remote_offset": np.int64(0)}
    assert await x.a.write_pages(x.local, x.remote, **pages(**sizes)) == 20
    assert x.local.view(np.int64(4)).itemsize == 4
    with pytest.raises(TimeoutError):
        await x.a.connect(x.address, timeout=0)
    name = "n" * 128
    x.b.publish(name, x.target)
    assert (await x.ab.lookup(name)).nbytes == 100
    x.b.unpublish(name)


@on_one_loop
async def test_calls_on_an_engine_that_is_not_open(fabric):
    engine = engine_on(fabric)
    things = type("Unopened", (), {"a": engine, "ab": None, "address": "127.0.0.1:1", "descriptor": b""})()
    for name in ("local", "remote", "remote_counter", "host_stream"):
        setattr(things, name, None)
    tried = 0
    for name, call in EVERY_CALL.items():
        if name.startswith("TransferEngine.") and " " not in name and name != "TransferEngine.barrier":
            raised = await failure(call, things)
            tried += 1
            if not isinstance(raised, TypeError):
                assert type(raised) is ClosedResourceError, (name, raised)
                assert str(raised) == "the engine is not open yet. Enter it with `async with` first."
    assert tried > 15


@on_one_loop
async def test_calls_after_the_engine_was_closed(fabric):
    things = await Things.open(fabric)
    await things.close()
    # What is closed with the engine is closed again without complaint.
    quiet = {name for name in EVERY_CALL if name.endswith(".close")}
    quiet |= {"MemoryRegion.revoke", "Peer.wait_closed", "Peer.stats", "ImmCounter.to_bytes"}
    quiet |= {"Peer.region", "Peer.counter", "TransferEngine.unpublish"}  # nothing is asked of the peer
    ended = {name for name in EVERY_CALL if "messages" in name}
    left = {"TransferScope." + name for name in ("write", "write_pages", "scatter", "read", "notify", "add")}
    for name, call in EVERY_CALL.items():
        if name in quiet:
            result = call(things)
            if inspect.isawaitable(result):
                await asyncio.wait_for(result, SOON)
            continue
        raised = await failure(call, things)
        expected = StopAsyncIteration if name in ended else RuntimeError if name in left else ClosedResourceError
        assert type(raised) is expected, (name, raised)
