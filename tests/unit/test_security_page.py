# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""docs/security.md: each promise names tests that there are, and its certificates work as it says."""

import re
import ssl
import subprocess
from pathlib import Path

import pytest

from helpers import require
from helpers.process import ROOT, TESTS
from pplx_async import BrokenResourceError, TransferEngine

PAGE = (ROOT / "docs" / "security.md").read_text()


def named_tests():
    """(file, test) of every test that a table of the page names; test None: all of the file."""
    for line in PAGE.splitlines():
        if line.startswith("| ") and "`test_" in line:
            for file, rest in re.findall(r"`(test_\w+\.(?:py|c))`(.*?)(?=`test_\w+\.(?:py|c)`|$)", line):
                for test in re.findall(r"`(test_\w+)`", rest) or [None]:
                    yield file, test


def test_every_promise_has_a_test():
    rows = PAGE.split("## What is promised")[1].split("## What is not")[0].splitlines()
    promises = [line for line in rows if line.startswith("| ") and not line.startswith(("| promise", "| ---"))]
    assert len(promises) > 25
    assert [line for line in promises if not re.search(r"`test_\w+\.(py|c)`", line)] == []


@pytest.mark.parametrize(("file", "test"), sorted(set(named_tests()), key=str))
def test_that_is_named_is_there(file, test):
    (path,) = TESTS.rglob(file)
    assert test is None or re.search(rf"(def|void) {test}\(", path.read_text())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """Two folders: what the page's commands make, each of an authority of its own."""
    require.programs("openssl", "bash")
    script = PAGE.split("<!-- certificates:")[1].split("```sh\n")[1].split("```")[0]
    folders = [tmp_path_factory.mktemp("machine"), tmp_path_factory.mktemp("elsewhere")]
    for folder in folders:
        subprocess.run(["bash", "-euc", script], cwd=folder, check=True, capture_output=True, timeout=60)
    return folders


def contexts(folder: Path, monkeypatch):
    """What the page's Python makes of them."""
    program = PAGE.split("```py\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    names = {}
    exec(compile(program, "security.md", "exec"), names)
    return names["options"]


async def test_certificates_of_the_page(certificates, monkeypatch):
    here, elsewhere = (contexts(folder, monkeypatch) for folder in certificates)
    async with (
        TransferEngine(fabric="loopback", **here) as a,
        TransferEngine(fabric="loopback", **here) as b,
        TransferEngine(fabric="loopback", **elsewhere) as stranger,
        TransferEngine(
            fabric="loopback", ssl_client=ssl.create_default_context(cafile=certificates[0] / "authority.pem")
        ) as nameless,
    ):
        assert (await a.connect(b.address)).is_open
        with pytest.raises(BrokenResourceError, match="certificate"):
            await stranger.connect(b.address)
        with pytest.raises(BrokenResourceError):  # it has no certificate to show
            await nameless.connect(b.address)
        assert len(b.peers) == 1
