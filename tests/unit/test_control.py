# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The control channel: friends get in, strangers don't, and neither can make it hang or swell."""

import asyncio
import contextlib
import gc
import logging
import random
import resource
import shutil
import socket
import ssl
import struct
import subprocess
import time
import tracemalloc

import msgspec
import pytest
import uvloop

from helpers.engines import eventually
from pplx_async import _frames, listen, wire
from pplx_async.control import Identity, connect_channel, host_identity
from pplx_async.errors import BrokenResourceError, ClosedResourceError
from pplx_async.listen import ControlServer, check_bind

CLIENT = Identity(engine=b"c" * 16, networks=("tcp",), name="client")
SERVER = Identity(engine=b"s" * 16, networks=("tcp",) * 4, name="server")
SECRET = b"a shared secret"
# Seconds that what need not wait may take on a busy machine: half of what a handshake is given.
LATER = 5.0


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine function on a fresh loop; it must end in time and leave no task behind."""
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    async def checked(main):
        problems = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        result = await asyncio.wait_for(main(), 50)
        await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()}, "no task is left")
        assert problems == []
        return result

    def run(main):
        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(checked(main))
        gc.collect()  # an unclosed transport warns now, and warnings are errors
        return result

    return run


class Peers:
    """A server that keeps the channels it is given."""

    def __init__(self, **options):
        self.options = {"identity": SERVER} | options
        self.channels = asyncio.Queue()

    async def __aenter__(self):
        self.server = await ControlServer.start("127.0.0.1", 0, on_channel=self.channels.put, **self.options)
        self.address = self.server.address
        return self

    async def __aexit__(self, *exc):
        while not self.channels.empty():
            await self.channels.get_nowait().aclose()
        await self.server.aclose()

    async def pair(self, **options):
        client = await connect_channel(self.address, CLIENT, **options)
        server = await self.channels.get()
        for channel in (client, server):
            channel.expect_long()
        return client, server


async def raw(peers):
    return await asyncio.open_connection("127.0.0.1", peers.server.port)


def frame(payload):
    return len(payload).to_bytes(4, "big") + payload


async def read_frame(reader):
    return await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big"))


async def read_to_end(reader):
    """Everything until the other side closes or resets."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            data += chunk
    return data


async def shut(writer):
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Contexts of a server and of a client, over one self-signed certificate for 127.0.0.1."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=cert)


# ---- friends ------------------------------------------------------------------------------------


@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize("tls", [False, True])
def test_messages_go_both_ways(run, secret, tls, request):
    server_tls, client_tls = request.getfixturevalue("certificates") if tls else (None, None)
    big = wire.Fence(1, tuple(range(2**63, 2**63 + wire.MAX_FENCED)), ())

    async def main():
        async with Peers(secret=secret, ssl=server_tls) as peers:
            client, server = await peers.pair(secret=secret, ssl=client_tls)
            async with client, server:
                assert client.remote_hello.networks == ("tcp",) * 4
                assert (server.remote_hello.name, server.remote_hello.engine) == ("client", b"c" * 16)
                assert client.remote_hello.host == server.remote_hello.host == host_identity()
                assert client.peername == peers.address
                assert client.local_host == server.local_host == "127.0.0.1"
                for one, other in ((client, server), (server, client)):

                    async def send(one=one):
                        for serial in range(1000):
                            await one.send(wire.Fenced(serial))
                        for _ in range(20):
                            await one.send(big)
                        one.post(wire.Goodbye())

                    sending = asyncio.create_task(send())
                    for serial in range(1000):
                        assert await other.receive() == wire.Fenced(serial)
                    for _ in range(20):
                        assert await other.receive() == big
                    assert await other.receive() == wire.Goodbye()
                    await sending
            assert server.reason == "closed on this side"

    run(main)


def test_first_message_may_ride_on_the_last_proof(run):
    async def main():
        async def greet(channel):
            channel.post(wire.Fenced(7))
            with contextlib.suppress(BrokenResourceError):
                await channel.receive()

        server = await ControlServer.start("127.0.0.1", 0, SERVER, greet, secret=SECRET)
        async with server:
            for _ in range(20):
                async with await connect_channel(server.address, CLIENT, secret=SECRET) as client:
                    assert await client.receive() == wire.Fenced(7)

    run(main)


def test_end_of_the_connection_ends_the_iteration(run):
    async def main():
        async with Peers() as peers:
            client, server = await peers.pair()
            client.post(wire.Ready())
            client.post(wire.Goodbye())
            await client.aclose()
            assert [message async for message in server] == [wire.Ready(), wire.Goodbye()]
            assert server.reason == "the peer closed the connection"
            with pytest.raises(BrokenResourceError, match=r"ended: the peer closed"):
                server.post(wire.Ready())
            with pytest.raises(BrokenResourceError):
                await server.send(wire.Ready())
            await server.aclose()
            with pytest.raises(ClosedResourceError):
                await client.receive()
            with pytest.raises(ClosedResourceError):
                client.post(wire.Ready())

    run(main)


def test_reset(run):
    async def main():
        async with Peers() as peers:
            reader, writer = await raw(peers)
            writer.write(frame(wire.encode_message(CLIENT.hello(False))))
            await read_frame(reader)
            server = await peers.channels.get()
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            assert [message async for message in server] == []
            assert "broke" in server.reason
            with pytest.raises(BrokenResourceError) as caught:
                await server.receive()
            assert isinstance(caught.value.__cause__, ConnectionResetError)
            await server.aclose()

    run(main)


def test_cancelled_receive_loses_nothing_and_a_second_reader_is_told(run):
    async def main():
        async with Peers() as peers:
            client, server = await peers.pair()
            async with client, server:
                waiting = asyncio.create_task(server.receive())
                await asyncio.sleep(0.01)
                with pytest.raises(RuntimeError, match="two tasks"):
                    await server.receive()
                client.post(wire.Fenced(1))
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert await server.receive() == wire.Fenced(1)
                receiving = asyncio.create_task(server.receive())
                await asyncio.sleep(0.01)
                server.close()
                with pytest.raises(ClosedResourceError):
                    await receiving

    run(main)


def test_bad_message_of_our_own_hurts_nobody(run):
    async def main():
        async with Peers() as peers:
            client, server = await peers.pair()
            async with client, server:
                with pytest.raises(ValueError, match="counter"):
                    client.post(wire.CounterBroken(-1, 1, "the counter is out of range"))
                client.post(wire.Ready())
                assert await server.receive() == wire.Ready()

    run(main)


def test_peer_that_does_not_read(run):
    """`send` waits, `post` breaks the channel at its limit, and neither `aclose` hangs."""
    big = wire.Fence(1, tuple(range(wire.MAX_FENCED)), ())

    async def main():
        async with Peers() as peers:
            client, server = await peers.pair()

            async def send():
                for _ in range(1000):
                    await client.send(big)

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(send(), 0.5)
            assert client.reason is None
            with pytest.raises(BrokenResourceError, match="unread"):
                for _ in range(1000):
                    client.post(big)
            started = time.monotonic()
            await client.aclose()
            await server.aclose()
            assert time.monotonic() - started < _frames.CLOSE_TIMEOUT + LATER

            client, server = await peers.pair()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.gather(*[send() for _ in range(3)]), 0.5)
            started = time.monotonic()
            await client.aclose()  # what is queued can't go out
            assert time.monotonic() - started < _frames.CLOSE_TIMEOUT + LATER
            await server.aclose()

    run(main)


# ---- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "says"),
    [
        (b"wrong", SECRET, "secrets differ"),
        (None, SECRET, "listening side has a secret, the connecting side has none"),
        (SECRET, None, "connecting side has a secret, the listening side has none"),
    ],
)
def test_secrets_that_differ(run, caplog, theirs, ours, says):
    async def main():
        async with Peers(secret=ours) as peers:
            with pytest.raises(BrokenResourceError, match=says) as caught:
                await connect_channel(peers.address, CLIENT, secret=theirs)
            assert peers.address in str(caught.value)
            assert peers.channels.empty()

    run(main)
    assert says in caplog.text


def test_providers_that_differ(run):
    async def main():
        async with Peers() as peers:
            other = Identity(engine=b"c" * 16, networks=("efa",))
            with pytest.raises(BrokenResourceError, match=r"'efa' on the connecting side, 'tcp'.*EngineOptions.fabric"):
                await connect_channel(peers.address, other)

    run(main)


def test_newer_version_is_refused_in_words(run, monkeypatch):
    async def main():
        async with Peers() as peers:
            reader, writer = await raw(peers)
            writer.write(frame(msgspec.msgpack.encode(["hello", "pplx_async", 2, "all", "else", "differs"])))
            refusal = wire.decode_message(await read_frame(reader))
            assert "version 2 on the connecting side, 1 on the other" in refusal.reason
            assert await read_to_end(reader) == b""
            await shut(writer)

        async def newer(reader, writer):
            await read_frame(reader)
            writer.write(frame(msgspec.msgpack.encode(["hello", "pplx_async", 3])))
            assert isinstance(wire.decode_message(await read_frame(reader)), wire.Refused)
            await shut(writer)

        async with await asyncio.start_server(newer, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            with pytest.raises(BrokenResourceError, match="version 3 on the listening side"):
                await connect_channel(f"{host}:{port}", CLIENT)

    run(main)


def test_replayed_handshake(run):
    """What a friend sent is worth nothing on another connection, and our own proof isn't either."""

    async def main():
        async with Peers(secret=SECRET) as peers:
            recorded = []

            async def tap(reader, writer):
                up_reader, up_writer = await raw(peers)
                recorded.append(await read_frame(reader))
                up_writer.write(frame(recorded[0]))
                writer.write(frame(await read_frame(up_reader)))
                recorded.append(await read_frame(reader))
                up_writer.write(frame(recorded[1]))
                recorded.append(await read_frame(up_reader))
                writer.write(frame(recorded[2]))
                await read_to_end(reader)
                await shut(up_writer)
                await shut(writer)

            async with await asyncio.start_server(tap, "127.0.0.1", 0) as server:
                host, port = server.sockets[0].getsockname()
                client = await connect_channel(f"{host}:{port}", CLIENT, secret=SECRET)
                await (await peers.channels.get()).aclose()
                await client.aclose()
            assert [type(wire.decode_message(item)) for item in recorded] == [wire.Hello, wire.Proof, wire.Proof]
            for proof in (recorded[1], recorded[2]):
                reader, writer = await raw(peers)
                writer.write(frame(recorded[0]) + frame(proof))
                assert isinstance(wire.decode_message(await read_frame(reader)), wire.Hello)
                assert "secrets differ" in wire.decode_message(await read_frame(reader)).reason
                assert await read_to_end(reader) == b""
                await shut(writer)
            assert peers.channels.empty()

    run(main)


def test_impostor_learns_no_proof_of_ours_that_opens_us(run):
    """A listener without the secret sends back what it got; the connecting side refuses it."""

    async def main():
        async def mirror(reader, writer):
            await read_frame(reader)
            writer.write(frame(wire.encode_message(SERVER.hello(True))))
            writer.write(frame(await read_frame(reader)))
            await read_to_end(reader)
            await shut(writer)

        async with await asyncio.start_server(mirror, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            with pytest.raises(BrokenResourceError, match="secrets differ"):
                await connect_channel(f"{host}:{port}", CLIENT, secret=SECRET)

    run(main)


def test_nobody_there(run):
    async def main():
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unused.getsockname()[1]}"
            with pytest.raises(BrokenResourceError, match=address) as caught:
                await connect_channel(address, CLIENT)
            assert isinstance(caught.value.__cause__, ConnectionRefusedError)
            assert "Check that" in str(caught.value)
            unused.listen()  # the kernel answers, and nobody else
            started = time.monotonic()
            with pytest.raises(TimeoutError, match=r"no answer in 0\.2 s"):
                await connect_channel(address, CLIENT, timeout=0.2)
            assert time.monotonic() - started < 0.2 + LATER
            connecting = asyncio.create_task(connect_channel(address, CLIENT))
            await asyncio.sleep(0.05)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting

    run(main)


def test_tls_that_differs(run, certificates, caplog):
    server_tls, client_tls = certificates

    async def main():
        async with Peers() as plain, Peers(ssl=server_tls) as tls:
            with pytest.raises(BrokenResourceError, match="TLS"):
                await connect_channel(plain.address, CLIENT, ssl=client_tls)
            assert "it speaks TLS, this side does not" in caplog.text
            with pytest.raises(BrokenResourceError, match="TLS"):
                await connect_channel(tls.address, CLIENT)
            with pytest.raises(BrokenResourceError, match="certificate"):
                await connect_channel(tls.address, CLIENT, ssl=ssl.create_default_context())
            localhost = f"localhost:{tls.server.port}"  # the certificate is for 127.0.0.1 only
            with pytest.raises(BrokenResourceError, match="certificate"):
                await connect_channel(localhost, CLIENT, ssl=client_tls)
            assert plain.channels.empty()
            assert tls.channels.empty()

    run(main)


# ---- strangers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True])
def test_slow_strangers_are_closed(run, caplog, tls, request):
    server_tls = request.getfixturevalue("certificates")[0] if tls else None

    async def main():
        async with Peers(handshake_timeout=0.4, ssl=server_tls) as peers:
            started = time.monotonic()

            async def silent():
                reader, writer = await raw(peers)
                await read_to_end(reader)
                await shut(writer)

            async def loris():
                reader, writer = await raw(peers)
                ended = asyncio.create_task(read_to_end(reader))
                for byte in frame(wire.encode_message(CLIENT.hello(False))):
                    with contextlib.suppress(OSError):
                        writer.write(bytes([byte]))
                    if ended in (await asyncio.wait([ended], timeout=0.05))[0]:
                        break
                await ended
                await shut(writer)

            await asyncio.gather(silent(), loris())
            assert 0.3 < time.monotonic() - started < 0.4 + LATER
            assert not peers.server._callers

    run(main)
    assert caplog.text.count("no complete handshake in 0.4 s") + caplog.text.count("during the handshake") == 2


@pytest.mark.parametrize("tls", [False, True])
def test_many_connections_at_once(run, caplog, tls, request):
    server_tls, client_tls = request.getfixturevalue("certificates") if tls else (None, None)

    async def main():
        async with Peers(max_pending=16, ssl=server_tls, secret=SECRET) as peers:
            tracemalloc.start()
            strangers = await asyncio.gather(*[raw(peers) for _ in range(200)])
            ends = [asyncio.create_task(read_to_end(reader)) for reader, _ in strangers]
            closed = asyncio.Queue()
            for end in ends:
                end.add_done_callback(closed.put_nowait)
            for _ in range(184):
                await closed.get()
            await asyncio.sleep(0.1)
            assert closed.empty()
            assert tracemalloc.get_traced_memory()[0] < 200 * 80_000 + 16 * 600_000  # streams of this test; ours
            tracemalloc.stop()
            assert len(peers.server._callers) == 16
            for _, writer in strangers:
                await shut(writer)
            await asyncio.wait(ends)
            client, server = await peers.pair(secret=SECRET, ssl=client_tls)  # open for friends again
            await client.aclose()
            await server.aclose()

    run(main)
    assert len(caplog.records) < 30
    assert "to make room for another: 16 were in the handshake" in caplog.text


@pytest.mark.parametrize("how", ["leaves", "silent", "refused", "late"])
@pytest.mark.parametrize("tls", [False, True])
def test_strangers_leave_nothing_to_the_garbage_collector(run, tls, how, request, caplog):
    """With TLS each has 256 KiB: a flood must not grow until the collector comes."""
    server_tls, client_tls = request.getfixturevalue("certificates") if tls else (None, None)

    def every():
        return [item for item in gc.get_objects() if isinstance(item, _frames.Frames)]

    of_others = every()  # tests of engines that were never closed, in this process

    def kept():
        return [item for item in every() if item not in of_others]

    async def stranger(peers):
        if how == "refused":
            with pytest.raises(BrokenResourceError):
                await connect_channel(peers.address, CLIENT, secret=b"another", ssl=client_tls)
            return
        reader, writer = await raw(peers)
        if how != "leaves":
            await read_to_end(reader)
        await shut(writer)

    async def main():
        async with Peers(secret=SECRET, ssl=server_tls, max_pending=2, handshake_timeout=0.3) as peers:
            gc.collect()
            gc.disable()
            try:
                await asyncio.gather(*[stranger(peers) for _ in range(2 if how == "late" else 8)])
                deadline = time.monotonic() + 10
                while kept() and time.monotonic() < deadline:
                    await asyncio.sleep(0.02)
                assert kept() == []
            finally:
                gc.enable()

    run(main)


@pytest.mark.parametrize("speak", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_strangers_keep_no_friend_out(run, tls, speak, request):
    """However many are in the handshake and stay there, whoever comes next gets in."""
    server_tls, client_tls = request.getfixturevalue("certificates") if tls else (None, None)

    async def main():
        async with Peers(ssl=server_tls, secret=SECRET) as peers:
            strangers = await asyncio.gather(*[raw(peers) for _ in range(64)])
            if speak:
                for _, writer in strangers:
                    writer.write(b"\0")  # of a Hello, perhaps
            await asyncio.sleep(listen._HEARD_PATIENCE)
            assert len(peers.server._callers) == 64
            strangers += await asyncio.gather(*[raw(peers) for _ in range(100)])
            started = time.monotonic()
            for _ in range(2):
                client, server = await peers.pair(secret=SECRET, ssl=client_tls)
                await client.aclose()
                await server.aclose()
            assert time.monotonic() - started < LATER
            assert len(peers.server._callers) <= 64
            assert len(peers.server._serving) <= 64
            for _, writer in strangers:
                await shut(writer)

    run(main)


@pytest.mark.parametrize("max_pending", [256, 8, 1])
def test_many_friends_at_once(run, max_pending, monkeypatch):
    """None of them makes room for another: they speak at once, and a machine that stands still is no reason."""
    for patience in ("_SILENT_PATIENCE", "_HEARD_PATIENCE"):
        monkeypatch.setattr(listen, patience, 20.0)

    async def main():
        async with Peers(secret=SECRET, max_pending=max_pending) as peers:
            clients = await asyncio.gather(*[connect_channel(peers.address, CLIENT, secret=SECRET) for _ in range(200)])
            for client in clients:
                client.post(wire.Ready())
            for _ in clients:
                server = await peers.channels.get()
                assert await server.receive() == wire.Ready()
                await server.aclose()
            for client in clients:
                await client.aclose()

    run(main)


def test_large_frames_are_refused_before_they_come(run):
    async def main():
        async with Peers() as peers:
            reader, writer = await raw(peers)
            writer.write((_frames.HANDSHAKE_NBYTES + 1).to_bytes(4, "big"))
            refusal = await read_to_end(reader)
            assert refusal == b""
            await shut(writer)

            reader, writer = await raw(peers)
            writer.write(frame(wire.encode_message(CLIENT.hello(False))))
            await read_frame(reader)
            server = await peers.channels.get()
            writer.write((_frames.HANDSHAKE_NBYTES + 1).to_bytes(4, "big"))
            with pytest.raises(BrokenResourceError, match="4097 B, over 4096 B"):
                await server.receive()
            assert await read_to_end(reader) == b""
            await shut(writer)
            await server.aclose()

            reader, writer = await raw(peers)
            writer.write(frame(wire.encode_message(CLIENT.hello(False))))
            await read_frame(reader)
            server = await peers.channels.get()
            server.expect_long()  # its NICs are connected
            writer.write((wire.MAX_MESSAGE_NBYTES + 1).to_bytes(4, "big"))
            with pytest.raises(BrokenResourceError, match="1048577 B, over 1048576 B"):
                await server.receive()
            assert await read_to_end(reader) == b""
            await shut(writer)
            await server.aclose()

    run(main)


@pytest.mark.parametrize("payload", [b"", b"\xc0", wire.encode_message(wire.Proof(b"x" * 32)), b"\x91" * 100_000])
def test_bad_message_ends_the_channel(run, caplog, payload):
    async def main():
        async with Peers() as peers:
            reader, writer = await raw(peers)
            writer.write(frame(wire.encode_message(CLIENT.hello(False))))
            server = await peers.channels.get()
            server.expect_long()
            writer.write(frame(payload))
            assert [message async for message in server] == []
            assert "broke the protocol" in server.reason
            await read_to_end(reader)
            await shut(writer)
            await server.aclose()

    run(main)
    assert "closed the control channel" in caplog.text


def test_unread_messages_are_bounded(run):
    """A peer that floods us while we don't receive is held back by TCP; nothing is lost."""

    async def main():
        async with Peers() as peers:
            client, server = await peers.pair()
            async with client, server:

                async def flood():
                    for serial in range(400_000):
                        await client.send(wire.Fenced(serial))

                flooding = asyncio.create_task(flood())
                await asyncio.sleep(0.5)
                assert len(server._frames._buffer) <= _frames.HIGH_WATER + _frames.CHUNK
                for serial in range(20_000):
                    assert await server.receive() == wire.Fenced(serial)
                flooding.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await flooding

    run(main)


def test_fuzzed_handshakes(run, caplog):
    rng = random.Random(1)
    hello = frame(wire.encode_message(CLIENT.hello(True)))

    def hostile():
        kind = rng.randrange(4)
        if kind == 0:
            return rng.randbytes(rng.randrange(1, 6000))
        if kind == 1:
            return b"GET / HTTP/1.1\r\n\r\n"
        if kind == 2:
            return frame(rng.randbytes(rng.randrange(0, 4096)))
        data = bytearray(hello + frame(wire.encode_message(wire.Proof(rng.randbytes(32)))))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    async def attack(peers, limit):
        async with limit:
            reader, writer = await raw(peers)
            writer.write(hostile())
            if rng.random() < 0.5:
                writer.write_eof()
            await read_to_end(reader)
            await shut(writer)

    async def main():
        async with Peers(secret=SECRET, handshake_timeout=0.3) as peers:
            limit = asyncio.Semaphore(32)
            await asyncio.gather(*[attack(peers, limit) for _ in range(400)])
            assert peers.channels.empty()
            client, server = await peers.pair(secret=SECRET)
            await client.aclose()
            await server.aclose()

    run(main)
    assert all(record.message.isprintable() for record in caplog.records)


# ---- server -------------------------------------------------------------------------------------


def test_handler_that_raises_hurts_only_itself(run, caplog):
    async def main():
        async def broken(channel):
            raise LookupError("a bug of ours")

        async with await ControlServer.start("127.0.0.1", 0, SERVER, broken) as server:
            for _ in range(2):
                # Whose the other end was, the kernel can't say when that has gone.
                client = await connect_channel(server.address, CLIENT, allow_insecure=True)
                assert [message async for message in client] == []
                await client.aclose()

    run(main)
    assert caplog.text.count("its handler failed") == 2


def test_aclose_with_everything_under_way(run):
    async def main():
        cancelled = asyncio.Event()

        async def handler(channel):
            try:
                await channel.receive()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        server = await ControlServer.start("127.0.0.1", 0, SERVER, handler)
        client = await connect_channel(server.address, CLIENT)
        strangers = [await asyncio.open_connection(server.host, server.port) for _ in range(5)]
        late = socket.create_connection((server.host, server.port))
        await server.aclose()
        await server.aclose()
        assert cancelled.is_set()
        assert [message async for message in client] == []
        await client.aclose()
        late.close()
        for reader, writer in strangers:
            await read_to_end(reader)
            await shut(writer)
        with pytest.raises(BrokenResourceError):
            await connect_channel(server.address, CLIENT)

    run(main)


def test_out_of_descriptors(run, caplog):
    """Connections wait in the backlog until there are descriptors again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    async def main():
        async with Peers() as peers:
            connecting = socket.create_connection(("127.0.0.1", peers.server.port))
            lowest = socket.socket()
            lowest.close()
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
                await asyncio.sleep(0.3)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            connecting.sendall(frame(wire.encode_message(CLIENT.hello(False))))
            await (await peers.channels.get()).aclose()
            connecting.close()

    run(main)
    assert "cannot accept a connection" in caplog.text


def test_start_that_fails_leaves_nothing(run):
    async def main():
        async with Peers() as peers:
            with pytest.raises(OSError, match="in use"):
                await ControlServer.start("127.0.0.1", peers.server.port, SERVER, peers.channels.put)
        for host in ("0.0.0.0", "::", ""):
            with pytest.raises(ValueError, match="listening on"):
                await ControlServer.start(host, 0, SERVER, peers.channels.put)
        with pytest.raises(ValueError, match="secret is empty"):
            await ControlServer.start("127.0.0.1", 0, SERVER, peers.channels.put, secret=b"")
        with pytest.raises(ValueError, match="networks"):
            await ControlServer.start("127.0.0.1", 0, Identity(engine=b"x" * 16, networks=("",)), peers.channels.put)
        open_to_all = await ControlServer.start("0.0.0.0", 0, SERVER, peers.channels.put, secret=SECRET)
        await open_to_all.aclose()

    run(main)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost", "::ffff:127.0.0.1", "127.1"])
def test_loopback_needs_no_secret(host):
    check_bind(host, None, None, False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "10.0.0.1", "::ffff:10.0.0.1", "169.254.1.1"])
def test_beyond_loopback_needs_one(host):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for tls in (None, context):  # TLS that lets any client in keeps nobody out
        with pytest.raises(ValueError, match=r"EngineOptions\.secret"):
            check_bind(host, None, tls, False)
    check_bind(host, b"secret", None, False)
    check_bind(host, None, None, True)
    context.verify_mode = ssl.CERT_REQUIRED
    check_bind(host, None, context, False)


def test_host_identity_tells_nothing():
    assert len(host_identity()) == 32
    int(host_identity(), 16)
    assert socket.gethostname() not in host_identity()


def test_log_goes_to_its_logger(caplog):
    throttle = _frames.Throttle(logging.getLogger("pplx_async.control"))
    with caplog.at_level(logging.WARNING, "pplx_async.control"):
        for _ in range(1000):
            throttle.warning("one more")
    assert len(caplog.records) <= 2 * throttle.LINES + 1
    assert {record.name for record in caplog.records} == {"pplx_async.control"}
