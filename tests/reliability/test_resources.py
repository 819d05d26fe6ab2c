# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""When something runs out: room in the ring, a NIC's patience, registrations, descriptors, memory.

Each time: what can't be done now waits, or says so by a typed error; nothing is lost, nothing is left behind; and
when there is room again, everything works.
"""

import asyncio
import errno
import json
import logging
import subprocess
import sys
import time

import numpy as np
import pytest

from helpers.engines import SOON, connect, engine_on, eventually, open_pair, patience, pattern
from helpers.limits import build_starver, descriptors, open_descriptors, proxy_threads
from helpers.process import ROOT, environment, run_program
from helpers.require import Fabric
from pplx_async import (
    BrokenResourceError,
    NativeCallError,
    RegistrationError,
    TransferEngine,
)
from pplx_async.testing import FaultPlan

SIZE = 4096
LARGE = 128 << 10  # the proxy's


# ---- the ring ----


@pytest.mark.parametrize("progress", ["loop", "proxy"])
async def test_thousands_of_requests_through_a_ring_of_two(fabric, progress):
    writes, size = 3000, 24
    async with open_pair(fabric, ring_entries=2, progress=progress) as pair:
        data, bulk = pattern(writes * size), pattern(LARGE)
        source, target = await pair.source(data), await pair.target(writes * size)
        large_source, large_target = await pair.source(bulk), await pair.target(LARGE)
        counter, remote = pair.counter()
        requests, registrations = [], []
        for number in range(writes):
            at = slice(number * size, (number + 1) * size)
            requests.append(pair.a.write(source[at], target.remote[at], counter=remote))
            if number % 30 == 0:  # these go through the ring in any case
                requests.append(pair.a.write(large_source, large_target.remote, counter=remote))
                registrations.append(asyncio.ensure_future(pair.a.register(bytearray(100))))
                await asyncio.sleep(0)
        count = writes + writes // 30
        async with asyncio.timeout(SOON):
            assert sum(await asyncio.gather(*requests)) == writes * size + writes // 30 * LARGE
            assert await counter.wait(count) == count
            for region in await asyncio.gather(*registrations):
                await region.close()
        assert np.array_equal(target.array, data)
        assert np.array_equal(large_target.array, bulk)
        async with asyncio.timeout(SOON):
            while not pair.a.stats().overflowed:  # a fast proxy has kept up so far
                await asyncio.gather(*(pair.a.write(large_source, large_target.remote) for _ in range(64)))
        stats = pair.a.stats()
        assert stats.inflight == 0
        assert counter.value == count


# ---- a NIC that says "again" ----


@pytest.mark.parametrize("domains", [1, 4])
async def test_storm_of_again_on_loopback(domains):
    """99 of a hundred times the NIC takes a part of a batch, or nothing."""
    plan = FaultPlan(again=0.99, max_inflight=16, seed=11)
    async with open_pair(faults=plan, domains=domains, shard_nbytes=4096) as pair:
        data = pattern(50_000)
        source, target = await pair.source(data), await pair.target(len(data))
        counter, remote = pair.counter()
        transfers = [
            pair.a.write(source[at : at + 500], target.remote[at : at + 500], counter=remote)
            for at in range(0, len(data), 500)
        ]
        sends = [pair.ab.send(bytes([number])) for number in range(10)]
        async with asyncio.timeout(SOON):
            assert sum(await asyncio.gather(*transfers)) == len(data)
            assert await counter.wait(100) == 100
            await asyncio.gather(*sends)
            got = {(await anext(pair.b.messages())).data for _ in range(10)}
        assert got == {bytes([number]) for number in range(10)}
        assert np.array_equal(target.array, data)
        assert counter.value == 100
        assert sum(link.again for link in pair.ab.stats().links) > 100
        assert pair.is_healthy


HEAD = """
import asyncio, contextlib, gc, json, logging, os, resource, sys
import numpy as np
from helpers.engines import SOON, connect, engine_on, eventually, open_pair, patience, pattern
from helpers.limits import Starver, open_descriptors, proxy_threads
from helpers.require import find_fabric
from pplx_async import *
from pplx_async import TransferEngine
logging.getLogger("pplx_async").setLevel(logging.ERROR)  # what is refused is logged, and meant here
fabric = find_fabric(sys.argv[1])

async def write_and_count(pair, nbytes, writes=1):
    data = pattern(nbytes)
    async with await pair.a.register(data) as source:
        target = np.zeros(nbytes, dtype=np.uint8)
        async with await pair.b.register(target) as region, pair.b.counter() as counter:
            remote, remote_counter = pair.ab.region(region.to_bytes()), pair.ab.counter(counter.to_bytes())
            step = nbytes // writes
            transfers = [
                pair.a.write(source[at : at + step], remote[at : at + step], counter=remote_counter)
                for at in range(0, nbytes, step)
            ]
            async with asyncio.timeout(SOON):
                assert sum(await asyncio.gather(*transfers)) == nbytes
                assert await counter.wait(writes) == writes
            assert np.array_equal(target, data)
            assert counter.value == writes

def run(main):
    factory = None
    if sys.argv[2] == "uvloop":
        import uvloop
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(), float(sys.argv[3])))
"""


def run_limited(program, fabric, loop_name, seconds=50, **variables):
    """Run it in a process of its own, whose limits are its own; what it prints is JSON."""
    ended = subprocess.run(
        [sys.executable, "-c", HEAD + program, fabric.id, loop_name, str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + 20,
        cwd=ROOT,
        env=environment(variables),
        stdin=subprocess.DEVNULL,
    )
    assert (ended.returncode, ended.stderr) == (0, ""), f"exit status {ended.returncode}:\n{ended.stderr}"
    return json.loads(ended.stdout)


@pytest.fixture(scope="module")
def efa():
    """The tests' own libfabric, which is looked for elsewhere: a process loads one."""
    told = run_program("from helpers.require import find_fabric; print(find_fabric('efa').missing or '')")
    assert told.returncode == 0, told.stderr
    if told.stdout.strip():
        pytest.skip(told.stdout.strip())
    return Fabric("efa", "efa")


STORM = """
async def main():
    async with open_pair(fabric, domains=2, shard_nbytes=4096) as pair:
        await write_and_count(pair, 50_000, 100)
        await write_and_count(pair, 200_000, 1)
        for number in range(30):
            await pair.ab.send(bytes([number]))
            assert (await anext(pair.b.messages())).data == bytes([number])
        again = sum(link.again for link in pair.ab.stats().links)
        assert pair.is_healthy
        print(json.dumps(again))
run(main)
"""


@pytest.mark.fabric
@pytest.mark.parametrize(("storm", "least"), [({"FAKE_EFA_AGAIN": "95"}, 100), ({"FAKE_EFA_TX_SIZE": "1"}, 1)])
def test_storm_of_again_of_libfabric(efa, loop_name, storm, least):
    assert run_limited(STORM, efa, loop_name, **storm) > least


# ---- registrations ----

PINNED = """
async def main():
    limit = 1 << 20
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    async with open_pair(fabric) as pair:
        before = pair.a.stats()
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, hard))
        regions, told = [], []
        for _ in range(20):
            buffer = bytearray(100_000)
            try:
                regions.append(await pair.a.register(buffer))
            except RegistrationError as error:
                told.append(error)
                buffer.extend(b"not held")
        assert regions and told
        for error in told:
            assert error.nbytes == 100_000
            assert "ulimit -l" in str(error)
        assert pair.a.stats().regions == before.regions + len(regions)
        # A connection needs some for its messages: who can't have it says so, to both.
        async with engine_on(fabric) as third:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (1000, hard))
            try:
                await third.connect(pair.b.address)
            except (RegistrationError, BrokenResourceError) as error:
                told.append(error)
            assert third.peers == ()
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
            await connect(third, pair.b)
        regions.append(await pair.a.register(bytearray(100_000)))
        for region in regions:
            await region.close()
        assert pair.a.stats().regions == before.regions
        await write_and_count(pair, 100_000)
        print(json.dumps([type(error).__name__ for error in told]))
run(main)
"""


@pytest.mark.fabric
def test_more_locked_memory_than_the_limit(efa, loop_name):
    told = run_limited(PINNED, efa, loop_name, FAKE_EFA_PINS="1")
    assert set(told[:-1]) == {"RegistrationError"}
    assert told[-1] in ("RegistrationError", "BrokenResourceError")


FULL = """
async def main():
    async with open_pair(fabric) as pair:
        regions, told = [], []
        for number in range(200):
            try:
                regions.append(await pair.a.register(bytearray(100)))
            except RegistrationError as error:
                told.append(str(error))
        assert pair.a.stats().regions == len(regions)
        for region in regions[::2]:
            await region.close()
        again = [await pair.a.register(bytearray(100)) for _ in regions[::2]]
        for region in [*regions[1::2], *again]:
            await region.close()
        await write_and_count(pair, 1000)
        print(json.dumps([len(regions), told]))
run(main)
"""


@pytest.mark.fabric
def test_more_regions_than_the_nic_has_room_for(efa, loop_name):
    count, told = run_limited(FULL, efa, loop_name, FAKE_EFA_REGIONS="100")
    assert 90 < count < 100  # some are the engine's own
    assert len(told) == 200 - count
    assert all("fi_mr_regattr" in text and "No space left" in text for text in told)


# ---- descriptors ----

# More than any of these needs.
MOST = 60


async def test_open_without_descriptors(fabric):
    async with engine_on(fabric) as engine:  # what is loaded at first use is loaded
        usual = engine.explain().domains
    before, threads = open_descriptors(), proxy_threads()
    refused = []
    for more in range(MOST):
        engine = engine_on(fabric)
        with descriptors(more):
            try:
                await engine.open()
            except NativeCallError as error:
                refused.append(error)
            else:
                assert engine.explain().domains == usual  # nothing was left out silently
                await engine.close()
                break
        assert not engine.is_open
        await engine.close()
        assert open_descriptors() == before, more
        assert proxy_threads() == threads, more
    else:
        pytest.fail("it never opened")
    assert len(refused) >= 3
    assert all(error.errno == errno.EMFILE and error.operation for error in refused), refused
    assert open_descriptors() == before
    async with open_pair(fabric) as pair:
        await pair.write(SIZE)


@pytest.mark.fabrics("tcp")
async def test_open_of_all_that_there_is_without_descriptors(fabric):
    """Left to choose, it does without what this machine hasn't got, not without what can't be opened just now."""
    options = {"fabric": "auto", **fabric.options}
    async with TransferEngine(**options) as engine:
        usual = engine.explain()
    assert usual.fabric == "tcp and ipc"
    refused = []
    for more in range(MOST):
        engine = TransferEngine(**options)
        with descriptors(more):
            try:
                await engine.open()
            except NativeCallError as error:
                refused.append(error)
            else:
                assert engine.explain() == usual
                await engine.close()
                break
    else:
        pytest.fail("it never opened")
    assert len(refused) >= 3
    assert all(error.errno == errno.EMFILE for error in refused), refused


async def test_connect_without_descriptors(fabric, caplog):
    caplog.set_level(logging.WARNING, "pplx_async")
    async with open_pair(fabric) as pair, engine_on(fabric, name="third") as third:
        await connect(third, pair.b)  # what is loaded at first use is loaded
        await third.peers[0].close()
        await eventually(lambda: len(pair.b._peers) == 1 and not third._peers, "the third one is gone")
        data = pattern(SIZE)
        source, target = await pair.source(data), await pair.target(SIZE)
        counter, remote = pair.counter()
        for engine in (pair.a, pair.b, third):
            patience(engine, 0.5)
        before = open_descriptors()
        refused, waited, computed = 0, 0.0, 0.0
        for more in range(MOST):
            target.array[:] = 0
            with descriptors(more):
                waited, computed = waited - time.monotonic(), computed - time.process_time()
                try:
                    await third.connect(pair.b.address)
                except (BrokenResourceError, NativeCallError, TimeoutError):
                    refused += 1
                waited, computed = waited + time.monotonic(), computed + time.process_time()
                # Who is connected already is not disturbed.
                await pair.a.write(source, target.remote, counter=remote)
                await asyncio.wait_for(counter.wait(more + 1), SOON)
            assert np.array_equal(target.array, data)
            if third.peers:
                break
            await eventually(lambda: not third._peers and len(pair.b._peers) == 1, "nothing is left of it")
            await eventually(lambda: open_descriptors() == before, "no descriptor is left of it")
        else:
            pytest.fail("it never connected")
        assert refused >= 2
        assert pair.is_healthy
        # Who calls while there is no descriptor to accept it with waits; nobody spins for that. (libfabric does.)
        assert fabric.name == "tcp" or computed < waited * 0.3 + 0.1
        assert not any("too many others connect" in record.message for record in caplog.records)
        await third.peers[0].close()
        await eventually(lambda: open_descriptors() == before, "no descriptor is left of it")
        ours, theirs = await connect(third, pair.b)
        assert await ours.send(b"again") == 5
        assert theirs.is_open


async def test_memory_without_descriptors(fabric):
    """`empty` needs one; to register what it made needs another one for ipc, and to write there a third."""
    async with open_pair(fabric) as pair:
        pair.a.empty(10)
        source = await pair.source(SIZE)
        array = pair.b.empty(SIZE)
        before = open_descriptors()
        with descriptors(0):
            with pytest.raises(NativeCallError, match="memfd_create for shared memory") as caught:
                pair.b.empty(SIZE)
            assert isinstance(caught.value, OSError)
            assert caught.value.strerror
            assert "ulimit -n" in caught.value.hint
            if fabric.name == "ipc":
                with pytest.raises(RegistrationError, match="ulimit -n") as caught:
                    await pair.b.register(array)
                assert "ulimit -l" not in str(caught.value)
            else:
                region = await pair.b.register(array)
        if fabric.name == "ipc":
            region = await pair.b.register(array)
        # The peer's first write there, when nobody can be handed a descriptor.
        remote = pair.ab.region(region.to_bytes())
        with descriptors(0):
            await asyncio.wait_for(pair.a.write(source, remote), SOON)
        assert np.array_equal(array, pattern(SIZE, 1))
        assert pair.is_healthy
        await region.close()
        await pair.write(SIZE)
        await eventually(lambda: open_descriptors() == before, "no descriptor is left")


# ---- memory ----

PRESSURE = """
def vm_nbytes():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

async def main():
    async with open_pair(fabric) as pair, engine_on(fabric, connect_timeout=2) as third:
        await write_and_count(pair, 100_000, 10)
        pair.a.empty(10)
        pages = np.zeros(3_000_000, dtype=np.int8)
        source, target = await pair.source(8), await pair.target(8)
        _, remote_counter = pair.counter()
        engines = []

        async def more_engines():
            for _ in range(100):
                engine = engine_on(fabric, ring_entries=1 << 16, message_slots=64, message_nbytes=1 << 16)
                await engine.open()
                engines.append(engine)
                await engine.connect(pair.b.address)

        async def more_regions():
            return await pair.a.register(bytearray(1 << 20))

        tries = {
            "empty": lambda: pair.a.empty(1 << 30),
            "pages": lambda: pair.a.write_pages(
                source, target.remote, page_nbytes=1, local_pages=pages, remote_pages=pages
            ),
            "notify": lambda: pair.a.batch().notify(remote_counter, 2**32 - 1),
            "engines": more_engines,
        }
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        told = {}
        resource.setrlimit(resource.RLIMIT_AS, (vm_nbytes() + (32 << 20), hard))
        try:
            for name, call in tries.items():
                try:
                    result = call()
                    if asyncio.iscoroutine(result):
                        await result
                except (MemoryError, PplxAsyncError, OSError) as error:
                    told[name] = [type(error).__name__, str(error)]
            # Little still goes.
            await asyncio.wait_for(pair.a.write(source, target.remote, counter=remote_counter), SOON)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for engine in engines:
            await engine.close()
        assert pair.is_healthy
        await write_and_count(pair, 100_000, 10)
        few = pages[:1000]
        async with asyncio.timeout(SOON):
            await pair.a.write_pages(source, target.remote, page_nbytes=1, local_pages=few, remote_pages=few)
        await connect(third, pair.b)
        print(json.dumps(told))
run(main)
"""


@pytest.mark.fabrics("loopback", "ipc")
def test_address_space_runs_out(fabric, loop_name):
    """Not on tcp: what libfabric does without memory is its own."""
    told = run_limited(PRESSURE, fabric, loop_name)
    assert told["empty"][0] == "NativeCallError"
    assert told["pages"][0] == "MemoryError"
    assert told["notify"][0] == "MemoryError"
    assert told["engines"][0] in ("MemoryError", "NativeCallError", "BrokenResourceError", "RegistrationError")
    assert "power of two" not in told["engines"][1]


STARVED = """
starver = Starver()
TYPED = (MemoryError, PplxAsyncError)

async def main():
    told = {}
    async with open_pair(fabric) as pair:
        await write_and_count(pair, 1000)
        target_array = np.zeros(64_000, dtype=np.uint8)
        mapped = pair.b.empty(64_000)

        async def opens():
            async with engine_on(fabric):
                pass

        async def connects():
            async with engine_on(fabric, connect_timeout=limit) as third:
                peer = await third.connect(pair.b.address)
                await peer.close()

        async def registers():
            async with await pair.a.register(bytearray(100)):
                pass

        async def makes():
            array = pair.b.empty(1000)
            del array

        async def writes():
            await pair.a.write(source, remote)

        async def writes_to_mapped():
            # A region that the peer does not know yet.
            async with await pair.b.register(mapped) as fresh:
                await pair.a.write(source, pair.ab.region(fresh.to_bytes()))
                mapped[:] = 0

        async def reads():
            await pair.a.read(remote, sink)

        async def writes_pages():
            order = np.random.default_rng(1).permutation(1000)
            await pair.a.write_pages(source, remote, page_nbytes=64, local_pages=order, remote_pages=order)

        async def batches():
            batch = pair.a.batch()
            for at in range(0, 2000, 10):
                batch.write(source[at : at + 10], remote[at : at + 10])
            batch.notify(remote_counter, 100)
            await batch.submit()

        async def counts():
            async with pair.a.counter():
                pass

        async def sends():
            await pair.ab.send(b"x" * 1000)
            await anext(pair.b.messages())

        async def groups():
            made = await asyncio.gather(pair.a.group("both", [pair.ab]), pair.b.group("both", [pair.ba]))
            for group in made:
                await group.close()

        source = await pair.a.register(pattern(64_000))
        region = await pair.b.register(target_array)
        sink = await pair.a.register(bytearray(64_000))
        remote = pair.ab.region(region.to_bytes())
        counter = pair.b.counter()
        remote_counter = pair.ab.counter(counter.to_bytes())
        memory = opens, connects, registers, makes
        work = writes, writes_to_mapped, reads, writes_pages, batches, counts, sends, groups
        for act in memory + work:
            limit = 10.0
            await act()  # what is made at first use is there
            limit = 0.3
            patience(pair.b, 0.5)
            await eventually(lambda: len(pair.b._peers) == 1, "alone")
            before = open_descriptors(), proxy_threads(), pair.a.stats().regions, pair.b.stats().regions
            for count, step in ((1, 1), (1 << 30, 3)):
                first, hurt = 1, []
                while True:
                    task = asyncio.ensure_future(act())
                    with starver.starve(first, count):
                        await asyncio.wait({task}, timeout=0.4)
                        seen = starver.seen
                    # What could only wait goes on now.
                    try:
                        await asyncio.wait_for(task, SOON)
                    except TYPED as error:
                        hurt.append(type(error).__name__)
                    except TimeoutError as error:
                        assert act is connects
                        assert "did not connect in time" in str(error) or "no answer in" in str(error)
                    if seen < first:
                        break
                    await eventually(lambda: len(pair.b._peers) == 1, f"{act.__name__} {first}: nobody is left")
                    assert pair.is_healthy, (act.__name__, first)
                    gc.collect()
                    await eventually(
                        lambda: before
                        == (open_descriptors(), proxy_threads(), pair.a.stats().regions, pair.b.stats().regions),
                        f"{act.__name__} {first}: nothing is left",
                    )
                    first += step
                told.setdefault(act.__name__, []).append([first, sorted(set(hurt))])
            limit = 10.0
            patience(pair.b, limit)
            await act()
            await write_and_count(pair, 1000)
        print(json.dumps(told))

run(main)
"""


@pytest.mark.deadline(200)
def test_each_request_for_memory_that_fails_is_survived(fabric, loop_name, tmp_path):
    """Ours alone, one after the other and from each one on: an error that says so, or none, and nothing is left."""
    told = run_limited(STARVED, fabric, loop_name, seconds=180, LD_PRELOAD=str(build_starver(tmp_path)))
    for act in ("opens", "connects", "registers", "writes_pages", "batches"):
        (tried, errors), (_, all_errors) = told[act]
        assert tried > 1
        assert "MemoryError" in errors
        assert "MemoryError" in all_errors
