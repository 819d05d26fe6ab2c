# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A provider from outside the tree, compiled against the public headers alone, moves real transfers."""

import subprocess
from pathlib import Path

import pytest

import pplx_async

SOURCE = Path(__file__).with_name("tiny_provider.c")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    library = tmp_path_factory.mktemp("tiny") / "tiny_provider.so"
    command = ["gcc", "-std=gnu11", "-O2", "-shared", "-fPIC", "-pthread"]
    subprocess.run([*command, f"-I{pplx_async.get_include()}", "-o", library, SOURCE], check=True, timeout=60)
    return str(library)


async def test_engine_runs_on_it(tiny):
    async with (
        pplx_async.TransferEngine(fabric=tiny, name="a") as a,
        pplx_async.TransferEngine(fabric=tiny, name="b") as b,
    ):
        peer = await a.connect(b.address)
        await b.accept()
        source, sink = bytearray(range(256)) * 64, bytearray(256 * 64)
        local, target = await a.register(source), await b.register(sink)
        counter = b.counter()
        remote, remote_counter = peer.region(target.to_bytes()), peer.counter(counter.to_bytes())

        assert await a.write(local, remote, counter=remote_counter) == len(source)
        await counter.wait(1)
        assert sink == source

        order = [5, 3, 1, 0]
        await a.write_pages(
            local, remote, page_nbytes=256, local_pages=order, remote_pages=order[::-1], counter=remote_counter
        )
        await counter.wait(1 + len(order))
        assert [sink[256 * r : 256 * r + 256] for r in order[::-1]] == [source[256 * p : 256 * p + 256] for p in order]

        await a.read(remote[0:256], local[256:512])
        assert source[256:512] == sink[0:256]

        await peer.send(b"over the tiny one")
        async for message in b.messages():
            assert message.data == b"over the tiny one"
            break
        explanation = str(a.explain())
        assert tiny in explanation
        assert "polled every" in explanation


async def test_a_file_that_is_no_provider(tmp_path):
    file = tmp_path / "empty.so"
    subprocess.run(["gcc", "-shared", "-x", "c", "/dev/null", "-o", file], check=True, timeout=60)
    with pytest.raises(pplx_async.ProviderUnavailable, match="pplx_provider_entry"):
        async with pplx_async.TransferEngine(fabric=str(file)):
            pass


async def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(pplx_async.ProviderUnavailable, match=r"nothing\.so"):
        async with pplx_async.TransferEngine(fabric=str(tmp_path / "nothing.so")):
            pass
