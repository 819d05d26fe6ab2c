# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Each example runs, by itself, and says that it checked itself."""

import subprocess
import sys

import pytest

from helpers.process import ROOT, environment

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# These are about a library, and have no loopback to fall back to.
OF_VERBS = {"verbs_ping_pong", "pyverbs_queue", "ibverbs_queue"}
OF_A_LIBRARY = {"own_engine"} | OF_VERBS


def run(path, *arguments, library=None):
    extra = {} if library is None else {"PPLX_ASYNC_LIBRARY": library}
    command = [sys.executable, "-W", "error", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment(extra))


def test_there_are_examples():
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) < 90


@pytest.mark.parametrize(
    "path", [path for path in EXAMPLES if path.stem not in OF_A_LIBRARY], ids=lambda path: path.stem
)
def test_example_runs_with_no_library(path):
    result = run(path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "over loopback" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.fabrics("tcp")
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem not in OF_VERBS], ids=lambda path: path.stem)
def test_example_runs_over_a_fabric(path, fabric):
    result = run(path, fabric.name, library=fabric.options["library"])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"over {fabric.name}" in result.stdout
