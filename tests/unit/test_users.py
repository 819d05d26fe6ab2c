# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Without a secret, loopback is for processes of one user: the kernel says whose the other end is."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys

import pytest

from helpers.process import ROOT, environment
from pplx_async import BrokenResourceError, _users
from pplx_async.control import Identity, connect_channel
from pplx_async.listen import ControlServer

NOBODY = 65534
SECRET = b"a shared secret"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")

# What it needs is loaded before it is nobody: the tree may be out of nobody's reach.
OTHER_USER = """
import asyncio, os, sys
from pplx_async import BrokenResourceError
from pplx_async.control import Identity, connect_channel
from pplx_async.listen import ControlServer
import concurrent.futures.thread, encodings.idna

os.setresgid(NOBODY, NOBODY, NOBODY)
os.setresuid(NOBODY, NOBODY, NOBODY)
what, address, secret, allow = sys.argv[1], sys.argv[2], sys.argv[3].encode() or None, sys.argv[4] == "True"
us = Identity(engine=b"o" * 16, networks=("tcp",), name="other user")

async def call():
    try:
        async with await connect_channel(address, us, secret=secret, allow_insecure=allow):
            print("in")
    except BrokenResourceError as error:
        print(error)

async def listen():
    gone = asyncio.Event()

    async def serve(channel):
        async for _ in channel:
            pass

    async with await ControlServer.start("127.0.0.1", 0, us, serve, secret=secret, allow_insecure=allow) as server:
        print(server.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(call() if what == "call" else listen())
""".replace("NOBODY", str(NOBODY))


def start(*arguments):
    """Run the program of another user."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER_USER, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


@contextlib.asynccontextmanager
async def server(host="127.0.0.1", **options):
    async def serve(channel):
        async for _ in channel:
            pass

    us = Identity(engine=b"s" * 16, networks=("tcp",), name="server")
    async with await ControlServer.start(host, 0, us, serve, **options) as started:
        yield started


async def call(address, **options):
    us = Identity(engine=b"c" * 16, networks=("tcp",), name="client")
    async with await connect_channel(address, us, **options):
        pass


# ---- what the kernel says ----


@pytest.fixture(params=["sock_diag", "proc"])
def source(request, monkeypatch):
    """Both ways to ask."""
    if request.param == "proc":

        def none(*_):
            raise OSError("no sock_diag here")

        monkeypatch.setattr(_users, "_ask", none)
    else:
        monkeypatch.setattr(_users, "_look", lambda *_: None)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_user_behind_both_ends(source, host):
    here = host.removeprefix("::ffff:")
    try:
        listener = socket.create_server((here, 0), family=socket.AF_INET6 if ":" in here else socket.AF_INET)
    except OSError as error:
        pytest.skip(f"this host has no {here}: {error}")
    with listener, socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as client:
        client.connect((host, listener.getsockname()[1]))
        accepted, address = listener.accept()
        with accepted:
            assert _users.user_behind(accepted.getsockname(), address) == os.geteuid()
            assert _users.user_behind(client.getsockname(), client.getpeername()) == os.geteuid()
            assert _users.stranger(accepted.getsockname(), address) is None
            assert _users.is_connected(accepted.getsockname(), address)
            client.close()
            assert _users.user_behind(accepted.getsockname(), address) is None
            assert "of an unknown user" in _users.stranger(accepted.getsockname(), address)
            assert not _users.is_connected(accepted.getsockname(), address)


def test_nobody_there(source):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert _users.user_behind(listener.getsockname(), ("127.0.0.1", 1)) is None


@needs_root
def test_socket_of_another_user(source):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        os.seteuid(NOBODY)
        try:
            client = socket.socket()
        finally:
            os.seteuid(0)
        client.connect(listener.getsockname())
        accepted, address = listener.accept()
        with client, accepted:
            assert _users.user_behind(accepted.getsockname(), address) == NOBODY
            assert "of user 65534, this one of user 0" in _users.stranger(accepted.getsockname(), address)


# ---- who is let in ----


async def test_same_user_is_let_in():
    async with server() as there:
        await call(there.address)


async def test_who_cannot_be_told_is_kept_out(monkeypatch):
    """It is there, and the kernel doesn't say whose it is."""
    ends = []

    def only_ours(ours, theirs):
        ends.append((ours, theirs))
        return None if len(ends) == 1 else os.geteuid()

    monkeypatch.setattr(_users, "user_behind", only_ours)
    async with server() as there:
        with pytest.raises(BrokenResourceError, match="of an unknown user"):
            await call(there.address)
    assert ends[0] == ends[1][::-1]


@needs_root
@pytest.mark.parametrize(
    ("options", "theirs", "answer"),
    [
        ({}, ("", False), "it refused: the process on the other side is of user 65534, this one of user 0"),
        ({}, ("", True), "it refused: the process on the other side is of user 65534, this one of user 0"),
        ({"allow_insecure": True}, ("", False), "the process on the other side is of user 0, this one of user 65534"),
        ({"allow_insecure": True}, ("", True), "in"),
        ({"secret": SECRET}, (SECRET.decode(), False), "in"),
    ],
    ids=["neither", "it only", "we only", "both", "secret"],
)
async def test_another_user_is_let_in_with_a_secret_or_where_both_say_so(options, theirs, answer, caplog):
    async with server(**options) as there:
        process = start("call", there.address, *theirs)
        said, _ = await asyncio.to_thread(process.communicate, timeout=50)
        assert answer in said
        assert (said.strip() == "in") == (answer == "in")
        assert ("of user 65534" in caplog.text) == (options == {})


@needs_root
async def test_listener_of_another_user_is_no_peer():
    """It may listen in the place of one that has ended."""
    with start("listen", "", "", True) as process:
        address = (await asyncio.to_thread(process.stdout.readline)).strip()
        with pytest.raises(BrokenResourceError, match="the process on the other side is of user 65534"):
            await call(address)
        await call(address, allow_insecure=True)
        process.stdin.close()
        assert await asyncio.to_thread(process.wait, 20) == 0
