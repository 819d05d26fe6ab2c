# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What is refused, what is found, and how a queue is waited for: fd, timer, threads, loops."""

import asyncio
import select
import socket
import struct
import threading
import time

import pytest

from helpers.engines import open_pair
from helpers.low import Side, open_domain, sides
from helpers.require import find_fabric
from pplx_async import BrokenResourceError, CompletionError, ProviderUnavailable, QueueFull
from pplx_async import fabric as low
from pplx_async.completion import CompletionQueue

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "efa")]


async def test_infos(fabric):
    found = low.infos(provider=fabric.name, library=fabric.options["library"])
    assert {info.provider for info in found} == {fabric.name}
    assert {info.library for info in found} == {fabric.options["library"]}
    async with low.open(found[-1]) as domain:
        assert domain.info == found[-1]
        assert domain.tx_size > 0
        assert domain.rx_size > 0
        assert domain.max_message >= 1 << 20
        assert found[-1].device in repr(domain)
    with pytest.raises(ValueError, match="not supported"):
        low.infos(provider="sockets", library=fabric.options["library"])
    with pytest.raises(ValueError, match="not supported"):
        low.open(provider="sockets", library=fabric.options["library"])
    with pytest.raises(TypeError, match=r"fabric\.infos"):
        low.open("tcp")


async def test_library_that_is_not_there(fabric):
    with pytest.raises(ProviderUnavailable, match=r"nowhere/libfabric\.so\.1"):
        low.open(library="/nowhere/libfabric.so.1")


async def test_one_libfabric_a_process(fabric):
    other = find_fabric("efa" if fabric.id != "efa" else "tcp")
    async with open_domain(fabric):
        if other.missing is None:
            pytest.fail("a second libfabric was loaded")
        assert "two of them do not get along" in other.missing or "not available" in other.missing


async def test_beside_an_engine(fabric):
    """Both use the library that is loaded, and neither is in the other's way."""
    async with open_pair(fabric) as pair, sides(fabric) as (a, b):
        b.serve()
        to_b = a.meet(b)
        _, source = a.memory(64, 1)
        _, memory = b.memory(64)
        for _ in range(10):
            await pair.write(1000)
            await a.endpoint.write(source, to_b, memory.remote)
            (await a.outcome()).raise_for_error()


async def test_misuse(fabric):
    async with sides(fabric) as (a, b):
        to_b = a.meet(b)
        _, memory = a.memory(64)
        _, target = b.memory(64)
        remote = target.remote
        readonly = a.domain.register(bytes(64))
        private = a.domain.register(bytearray(64), access="none")
        write, recv = a.endpoint.write_nowait, a.endpoint.recv_nowait
        wrong = [
            (TypeError, lambda: write(b"bytes", to_b, remote)),
            (TypeError, lambda: write(None, to_b, remote)),
            (TypeError, lambda: write(memory, None, remote)),
            (TypeError, lambda: write(memory, b.endpoint.address, remote)),
            (TypeError, lambda: write(memory, to_b, None)),
            (TypeError, lambda: write(memory, to_b, memory)),
            (TypeError, lambda: write(memory, to_b, remote, imm="1")),
            (TypeError, lambda: write(memory, to_b, remote, imm=1.5)),
            (ValueError, lambda: write(memory, to_b, remote, imm=-1)),
            (ValueError, lambda: write(memory, to_b, remote, imm=2**32)),
            (ValueError, lambda: write(memory[:10], to_b, remote)),
            (ValueError, lambda: write(target, to_b, remote)),  # of another domain
            (ValueError, lambda: write(memory, b.meet(a), remote)),
            (ValueError, lambda: recv(readonly)),
            (ValueError, lambda: a.endpoint.read_nowait(readonly, to_b, remote)),
            (ValueError, lambda: private.remote),
            (IndexError, lambda: memory[:65]),
            (IndexError, lambda: remote[:65]),
            (ValueError, lambda: memory[::2]),
            (TypeError, lambda: memory[0]),
            (TypeError, lambda: a.domain.register(None)),
            (TypeError, lambda: a.domain.register("text")),
            (ValueError, lambda: a.domain.register(b"")),
            (ValueError, lambda: a.domain.register(bytes(4), access="write")),
            (ValueError, lambda: a.domain.register(bytearray(4), access="all")),
            (ValueError, lambda: a.domain.register(memoryview(bytearray(8))[::2])),
            (TypeError, lambda: a.domain.endpoint(None)),
            (ValueError, lambda: a.domain.endpoint(b.queue)),
            (ValueError, lambda: a.domain.completion_queue(poll_interval=0)),
            (ValueError, lambda: low.RemoteMemory(-1, 0, 0)),
            (ValueError, lambda: low.RemoteMemory(2**64 - 1, 0, 2)),
            (TypeError, lambda: low.RemoteMemory("0", 0, 0)),
            (ValueError, lambda: low.RemoteMemory.from_bytes(bytes(23))),
            (ValueError, lambda: low.RemoteMemory.from_bytes(b"\xff" * 24)),
            (TypeError, lambda: low.RemoteMemory.from_bytes("text")),
        ]
        for error, call in wrong:
            with pytest.raises(error):
                call()
        for error, call in (
            (TypeError, lambda: a.endpoint.write(memory, None, remote)),
            (TypeError, lambda: a.endpoint.write(memory, "peer", remote)),
            (ValueError, lambda: a.endpoint.write(memory[:1], to_b, remote)),
            (TypeError, lambda: a.endpoint.recv(None)),
        ):
            with pytest.raises(error):
                await call()
        assert a.queue.poll() == []
        readonly.close()
        private.close()


async def test_remote_memory_travels(fabric):
    async with sides(fabric) as (a, _):
        remote = a.memory(100)[1].remote
        assert low.RemoteMemory.from_bytes(remote.to_bytes()) == remote
        assert len({remote, low.RemoteMemory.from_bytes(remote.to_bytes()), remote[:10]}) == 2
        assert (remote[10:20].address, remote[10:20].key, len(remote[10:20])) == (remote.address + 10, remote.key, 10)
        assert remote != "text"


async def test_hostile_addresses(fabric):
    async with sides(fabric) as (a, b):
        good = b.endpoint.address
        bad = [b"", b"x", bytes(len(good)), good[:-1], good + b"x", good * 100]
        if fabric.name != "efa":
            bad.append(struct.pack("=H", socket.AF_INET6) + good[2:])
            bad.append(good[:4] + socket.inet_aton("10.1.2.3") + good[8:])  # leads out of loopback
        for address in bad:
            with pytest.raises(ValueError, match=r"address|loopback"):
                a.domain.insert(address)
        for wrong in ("127.0.0.1:1", 16, None):
            with pytest.raises(TypeError):
                a.domain.insert(wrong)
        with pytest.raises(TypeError):
            a.domain.remove(good)


async def test_waiting_costs_no_processor_time(fabric):
    """A queue with a wait fd sleeps; one without looks at its interval, which is documented."""
    async with sides(fabric) as (a, b):
        assert (a.queue.fd < 0) == (fabric.name == "efa")
        b.serve()
        to_b = a.meet(b)
        source, target = a.memory(64)[1], b.memory(64)[1]
        await a.endpoint.write(source, to_b, target.remote)  # with a connection, whose sockets are watched too
        (await a.outcome()).raise_for_error()
        reading = asyncio.create_task(a.queue.read())
        await asyncio.sleep(0.2)
        started = time.process_time()
        await asyncio.sleep(0.5)
        used = time.process_time() - started
        assert used < (0.2 if fabric.name != "efa" else 0.4)  # who spins takes half a second
        await a.endpoint.write(source, to_b, target.remote, context="awake")
        assert (await reading)[0].context == "awake"


@pytest.mark.fabrics("tcp", "rxm")
async def test_event_loop_of_ones_own(fabric):
    """fd, arm and poll are enough for any loop: here it is poll(2), in another thread."""
    async with sides(fabric) as (a, b):
        to_b = a.meet(b)
        source, target = a.memory(64)[1], b.memory(64)[1]
        seen = []

        def serve():
            poller = select.poll()
            poller.register(b.queue.fd, select.POLLIN)
            while len(seen) < 100:
                found = b.queue.poll()
                seen.extend(completion.imm for completion in found)
                if not found and b.queue.arm():
                    poller.poll(1000)

        thread = threading.Thread(target=serve)
        thread.start()
        for number in range(100):
            await a.endpoint.write(source, to_b, target.remote, imm=number)
            (await a.outcome()).raise_for_error()
        await asyncio.to_thread(thread.join)
        assert seen == list(range(100))


async def test_posts_from_other_threads(fabric):
    async with sides(fabric) as (a, b):
        b.serve()
        to_b = a.meet(b)
        source, target = a.memory(64)[1], b.memory(64)[1]
        await a.endpoint.write(source, to_b, target.remote)
        (await a.outcome()).raise_for_error()

        def post(first):
            posted = 0
            while posted < 200:
                try:
                    a.endpoint.write_nowait(source, to_b, target.remote, context=first + posted)
                    posted += 1
                except QueueFull:
                    time.sleep(0.0005)

        threads = [asyncio.create_task(asyncio.to_thread(post, first)) for first in (0, 200, 400)]
        seen = []
        while len(seen) < 600:
            seen += [completion.raise_for_error().context for completion in await a.queue.read()]
        await asyncio.gather(*threads)
        assert sorted(seen) == list(range(600))


def test_one_loop_after_another(fabric):
    """Objects outlive the loop on which they were awaited first."""
    a, b = Side(open_domain(fabric)), Side(open_domain(fabric))
    to_b = a.meet(b)
    source, target = a.memory(64)[1], b.memory(64)[1]

    async def write(number):
        reading = asyncio.create_task(b.queue.read(1))
        await a.endpoint.write(source, to_b, target.remote, imm=number)
        (await a.outcome()).raise_for_error()
        (landed,) = await reading
        return landed.imm

    assert [asyncio.run(write(number)) for number in range(3)] == [0, 1, 2]
    a.domain.close()
    b.domain.close()


@pytest.mark.fabrics("efa")
async def test_device_that_dies(fabric, monkeypatch):
    """Everything that was posted ends, then the queue says that it is broken, to those who wait as well."""
    monkeypatch.setenv("FAKE_EFA_FATAL_AFTER", "5")
    async with sides(fabric) as (a, b):
        to_b = a.meet(b)
        source, target = a.memory(64)[1], b.memory(64)[1]
        for number in range(50):
            await a.endpoint.write(source, to_b, target.remote, context=number)
        done = []
        with pytest.raises(BrokenResourceError, match="ended the completion queue"):
            while True:
                done += await a.queue.read()
        assert sorted(completion.context for completion in done) == list(range(50))
        failed = [completion.error for completion in done if completion.error is not None]
        assert failed
        assert {error.status for error in failed} == {"TRANSPORT"}
        with pytest.raises(BrokenResourceError):
            async for _ in a.queue:
                pass
        with pytest.raises(CompletionError):
            await a.endpoint.write(source, to_b, target.remote)


async def test_endpoint_needs_a_queue_of_libfabric(fabric):
    class Other:
        is_open, fd = True, -1

        def close(self):
            self.is_open = False

    async with open_domain(fabric) as domain, CompletionQueue(Other()) as queue:
        with pytest.raises(TypeError, match="completion queue of its domain"):
            domain.endpoint(queue)
