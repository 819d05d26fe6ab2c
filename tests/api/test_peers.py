# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""connect, accept, close, stats and explain; who may connect at all."""

import asyncio
import logging
import resource
import shutil
import ssl
import subprocess
import time

import numpy as np
import pytest

from helpers.engines import SOON, connect, engine_on, eventually, open_pair, pattern
from pplx_async import (
    BrokenResourceError,
    ClosedResourceError,
    EngineOptions,
    EngineStats,
    Explanation,
    NativeCallError,
    Peer,
    PeerLost,
    ProviderUnavailable,
    TransferEngine,
    WorkFlushed,
)
from pplx_async._connector import Connector

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_a_peer_says_of_itself(pair):
    assert isinstance(pair.ab, Peer)
    assert pair.ab.id == pair.b.id
    assert pair.ba.id == pair.a.id
    assert pair.ab.name == "b"
    assert pair.ab.address == pair.b.address
    assert pair.ab.same_host
    assert pair.ab.is_open
    assert pair.ab.lost is None
    assert pair.ab in pair.a.peers
    assert pair.ab.label in repr(pair.ab)
    assert pair.b.id.hex()[:2] in pair.ab.label
    assert "open" in repr(pair.a)


async def test_stats(pair):
    before = pair.a.stats()
    assert isinstance(before, EngineStats)
    await pair.write(5000)
    sink = bytearray(100)
    target, local = await pair.target(100), await pair.source(sink)
    await pair.a.read(target.remote, local)
    after = pair.a.stats()
    assert after.requests >= before.requests + 2
    assert after.operations >= before.operations + 2
    assert after.nbytes - before.nbytes == 5100
    assert after.inflight == 0
    assert after.turns > before.turns
    assert after.overflowed == 0
    links = [link for peer in after.peers for link in peer.links]
    assert len(links) == 1
    assert after.domain(0) == tuple(links)
    assert after.domain(1) == ()
    assert links[0].domain == links[0].remote_domain == 0
    assert links[0].inflight_nbytes == 0
    mine = pair.ab.stats()
    assert mine.peer == pair.ab.label
    assert mine.nbytes >= 5100
    assert mine.inflight in (0, 1)  # a heartbeat may be under way
    for op in ("write_imm", "read"):
        histogram = mine.latency(op)
        assert histogram.total == links[0].completed[op] or histogram.total > 0
        assert 0 < histogram.percentile(50) <= histogram.percentile(99) < 60
    assert mine.latency("write_imm").percentile(0) <= mine.latency("write_imm").percentile(100)
    with pytest.raises(ValueError, match="from 0 to 100"):
        mine.latency("read").percentile(101)
    # While connecting, a heartbeat may fail: the other side doesn't know us yet.
    assert [link.failed for link in links] == [link.failed for peer in before.peers for link in peer.links]
    assert {op: count for op, count in links[0].failed.items() if count and op != "write_imm"} == {}


async def test_explain(pair):
    told = pair.a.explain()
    assert isinstance(told, Explanation)
    assert told.fabric == pair.fabric.name
    assert told.why
    assert len(told.domains) == 1
    assert told.domains[0]["max_message"] > 0
    assert [peer["peer"] for peer in told.peers] == [pair.ab.label]
    assert told.peers[0]["state"] == "open"
    assert any("loopback only" in note for note in told.notes)
    text = str(told)
    assert pair.fabric.name in text
    assert pair.ab.label in text
    assert any("polled" in note for note in told.notes) == (not told.domains[0]["wait_fd"])


async def test_several_peers_and_who_called_whom(fabric):
    async with engine_on(fabric, name="hub") as hub, engine_on(fabric, name="x") as x, engine_on(fabric, name="y") as y:
        assert hub.peers == ()
        called, accepted = await connect(hub, x)
        y_hub = await y.connect(hub.address)
        hub_y = await hub.accept()
        assert set(hub.peers) == {called, hub_y}
        assert (hub_y.name, y_hub.name, accepted.name) == ("y", "hub", "hub")
        assert y.peers == (y_hub,)


async def test_cancelled_accept_loses_nobody(fabric):
    async with engine_on(fabric, name="a") as a, engine_on(fabric, name="b") as b:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await b.accept()
        await a.connect(b.address)
        async with asyncio.timeout(SOON):
            assert (await b.accept()).name == "a"


async def test_nobody_listens(fabric):
    async with engine_on(fabric) as engine:
        async with engine_on(fabric) as other:
            address = other.address
        with pytest.raises(BrokenResourceError, match="failed"):
            await engine.connect(address)
        for bad in ("nonsense", "127.0.0.1:99999", ""):
            with pytest.raises(ValueError):
                await engine.connect(bad)
        assert engine.peers == ()


async def test_somebody_else_listens(fabric):
    async def silent(reader, writer):
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, engine_on(fabric) as engine:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="no answer"):
            await engine.connect(f"127.0.0.1:{port}", timeout=0.5)
        assert time.monotonic() - start < 5  # half of the usual limit
        task = asyncio.create_task(engine.connect(f"127.0.0.1:{port}"))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.peers == ()


async def test_goodbye_is_no_loss(fabric):
    async with open_pair(fabric) as pair:
        await pair.write(100)
        await pair.ab.close()
        await eventually(lambda: not pair.b.peers, "the other side has heard the goodbye")
        assert pair.ab.lost is None
        assert pair.ba.lost is None
        assert not pair.ab.is_open
        assert "closed" in repr(pair.ab)
        assert pair.a.peers == ()
        with pytest.raises(ClosedResourceError):
            pair.ab.send(b"x")
        with pytest.raises(ClosedResourceError):
            pair.ba.send(b"x")
        await pair.ab.close()
        # The engines live on and can meet again.
        ab, ba = await connect(pair.a, pair.b)
        assert await ab.send(b"again") == 5
        assert ba.is_open


async def test_close_finishes_what_is_under_way(fabric):
    size = 4 << 20
    async with open_pair(fabric) as pair:
        data = pattern(size)
        source, target = await pair.source(data), await pair.target(size)
        counter, remote = pair.counter()
        transfers = [pair.a.write(source, target.remote, counter=remote) for _ in range(5)]
        await pair.ab.close()
        assert await asyncio.gather(*transfers) == [size] * 5
        assert await counter.wait(5) == 5
        assert np.array_equal(target.array, data)


async def test_engine_close_finishes_what_is_under_way(fabric):
    size = 4 << 20
    async with open_pair(fabric) as pair:
        data = pattern(size)
        source, target = await pair.source(data), await pair.target(size)
        transfers = [pair.a.write(source, target.remote) for _ in range(5)]
        await pair.a.close()
        assert await asyncio.gather(*transfers) == [size] * 5
        assert np.array_equal(target.array, data)
        assert not pair.a.is_open
        assert "closed" in repr(pair.a)
        await pair.a.close()
        for call in (pair.a.stats, pair.a.explain, pair.a.counter, pair.a.batch):
            with pytest.raises(ClosedResourceError):
                call()
        with pytest.raises(ClosedResourceError):
            await pair.a.accept()
        with pytest.raises(ClosedResourceError):
            await pair.a.drain()


async def test_peer_closed_by_the_receiver_ends_transfers_with_a_typed_error(fabric):
    size = 1 << 20
    async with open_pair(fabric, drain_timeout=1.0) as pair:
        source, target = await pair.source(size), await pair.target(size)
        transfers = [pair.a.write(source, target.remote) for _ in range(50)]
        await pair.b.close()
        results = await asyncio.gather(*transfers, return_exceptions=True)
        for result in results:
            assert result == size or isinstance(result, (PeerLost, WorkFlushed, ClosedResourceError)), repr(result)


async def test_all_waiters_hear_the_end_of_the_engine(fabric):
    async with open_pair(fabric) as pair:
        counter = pair.b.counter()
        tasks = [
            asyncio.create_task(pair.b.accept()),
            asyncio.ensure_future(counter.wait(1)),
            asyncio.ensure_future(counter.take(1)),
        ]
        await asyncio.sleep(0.01)
        await pair.b.close()
        for task in tasks:
            with pytest.raises(ClosedResourceError):
                await asyncio.wait_for(task, SOON)


@pytest.mark.fabrics("tcp", "rxm", "efa", "ipc", "verbs")
async def test_fabrics_must_agree(fabric):
    async with engine_on(fabric) as one, TransferEngine(fabric="loopback") as two:
        with pytest.raises(BrokenResourceError, match="fabric"):
            await one.connect(two.address)
        with pytest.raises(BrokenResourceError, match="fabric"):
            await two.connect(one.address)
        assert one.peers == two.peers == ()


async def test_options_object_and_overrides():
    options = EngineOptions(fabric="loopback", name="named", domains=2)
    async with TransferEngine(options) as engine:
        assert engine.options is options
        assert len(engine.explain().domains) == 2
        assert "named" in repr(engine)
    with pytest.raises(TypeError, match="not both"):
        TransferEngine(options, name="other")
    with pytest.raises(TypeError):
        TransferEngine(no_such_option=1)


async def test_advertise(fabric):
    async with engine_on(fabric, advertise="example.org") as engine:
        assert engine.address.startswith("example.org:")
    async with engine_on(fabric, advertise="example.org:55") as engine:
        assert engine.address == "example.org:55"


async def test_library_that_is_not_there():
    with pytest.raises(ProviderUnavailable, match="no-such-file") as caught:
        await TransferEngine(fabric="tcp", library="/no-such-file/libfabric.so.1").open()
    assert caught.value.hint


@pytest.mark.fabrics("tcp", "rxm")
@pytest.mark.parametrize("fails", ["connecting", "listening"])
async def test_failure_of_one_side_is_told_to_the_other(fabric, fails, monkeypatch, caplog):
    """The side that fails has no file descriptor left for an endpoint."""
    async with engine_on(fabric, name="a") as a, engine_on(fabric, name="b") as b:
        failing = b if fails == "listening" else a
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        establish = Peer._establish

        async def starved(peer):
            if peer.engine is not failing:
                return await establish(peer)
            # The other side has its endpoints, and needs no more descriptors, once it tells of them.
            await eventually(lambda: peer._channel._frames._front(), "the other side's endpoints")
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
            try:
                await peer._record.open()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

        before = [engine.stats().counters for engine in (a, b)]
        with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "pplx_async"):
            patch.setattr(Peer, "_establish", starved)
            if fails == "listening":
                # It hears what failed, and where.
                with pytest.raises(BrokenResourceError, match=r"peer b \(.*: open endpoints failed: fi_\w+ ") as told:
                    await a.connect(b.address)
                assert "its side" in told.value.hint
            else:
                with pytest.raises(NativeCallError, match=r"open endpoints failed: fi_\w+ "):
                    await a.connect(b.address)
            await eventually(lambda: not a._peers and not b._peers and caplog.records, "nothing is left of it")
        (record,) = caplog.records
        assert "no connection with" in record.message
        assert "open endpoints failed: fi_" in record.message
        assert "\n" not in record.message
        assert record.exc_info is None
        assert [engine.stats().counters for engine in (a, b)] == before
        assert not b._connector.accepted
        await connect(a, b)  # both work as before


async def test_attempt_that_is_given_up_is_told_to_the_other(fabric, monkeypatch):
    """The other side of an attempt that is given up hears that, and not only that a connection ended."""
    async with engine_on(fabric, name="a") as a, engine_on(fabric, name="b") as b:
        monkeypatch.setattr(Peer, "_say_ready", lambda peer, connecting: asyncio.sleep(60))
        failures = []
        meet = Connector._meet

        async def watched(connector, channel, deadline):
            try:
                return await meet(connector, channel, deadline)
            except BaseException as error:
                failures.append((connector._engine, error))
                raise

        monkeypatch.setattr(Connector, "_meet", watched)
        with pytest.raises(TimeoutError, match="the NICs did not connect in time"):
            await a.connect(b.address, timeout=1.0)
        await eventually(lambda: len(failures) == 2, "b has given up too")
        assert str(dict(failures)[b]).startswith(f"peer a ({a.id[:1].hex()}:")
        assert "does not connect: it took too long" in str(dict(failures)[b])


async def test_loss_while_connecting_says_why(fabric, monkeypatch):
    async with engine_on(fabric, name="a") as a, engine_on(fabric, name="b") as b:
        monkeypatch.setattr(Peer, "_say_ready", lambda peer, connecting: asyncio.sleep(60))
        connecting = asyncio.create_task(a.connect(b.address))
        await eventually(lambda: any(peer._message_nbytes for peer in a._peers), "a knows b's endpoints")
        (peer,) = a._peers
        peer._lose("unplugged")
        with pytest.raises(BrokenResourceError, match=r"peer b \(.* was lost while connecting: unplugged"):
            await asyncio.wait_for(connecting, 5)


# ---- who may connect ----


async def test_same_secret(fabric):
    async with open_pair(fabric, secret="a shared secret") as pair:
        await pair.write(100)


@pytest.mark.parametrize("secret", [None, "another secret"])
async def test_other_or_no_secret_is_refused(fabric, secret):
    async with (
        engine_on(fabric, secret="a shared secret", name="guarded") as guarded,
        engine_on(fabric, secret=secret, name="stranger") as stranger,
    ):
        with pytest.raises(BrokenResourceError, match="secret"):
            await stranger.connect(guarded.address)
        with pytest.raises(BrokenResourceError, match="secret"):
            await guarded.connect(stranger.address)
        assert guarded.peers == stranger.peers == ()


async def test_beyond_loopback_needs_a_secret():
    with pytest.raises(ValueError, match=r"Set EngineOptions\.secret"):
        await TransferEngine(fabric="loopback", listen="0.0.0.0:0").open()
    for options in ({"secret": b"x" * 32}, {"allow_insecure": True}):
        async with TransferEngine(fabric="loopback", listen="0.0.0.0:0", **options) as engine:
            assert engine.address.startswith("0.0.0.0:")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed, which makes the test's certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


async def test_tls(fabric, certificate):
    server, client = certificate
    async with open_pair(fabric, ssl_server=server, ssl_client=client) as pair:
        await pair.write(100)
        # Who doesn't speak TLS, or doesn't trust the certificate, stays outside.
        async with engine_on(fabric, name="plain") as plain:
            with pytest.raises((BrokenResourceError, TimeoutError)):
                await plain.connect(pair.b.address, timeout=2)
            with pytest.raises((BrokenResourceError, TimeoutError)):
                await pair.a.connect(plain.address, timeout=2)
        async with engine_on(fabric, name="wary", ssl_client=ssl.create_default_context()) as wary:
            with pytest.raises(BrokenResourceError, match="certificate"):
                await wary.connect(pair.b.address)
        assert pair.b.peers == (pair.ba,)
