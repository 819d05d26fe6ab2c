# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Each example runs, by itself, and says that it checked itself."""

import subprocess
import sys

import pytest

from helpers.process import ROOT, environment
from helpers.require import find_fabric

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# These are about a library, and have no loopback to fall back to.
OF_VERBS = {"verbs_ping_pong", "pyverbs_queue", "ibverbs_queue"}
OF_A_LIBRARY = {"own_engine"} | OF_VERBS
# These are two processes, which loopback does not join.
OF_PROCESSES = {"gpu_pipeline"}
# What they are called with; the others with nothing.
FORMS = {"gpu_pipeline": [[], ["--graph"]]}


def forms(*, without):
    """List each example in each of its forms, but for some examples."""
    return [
        pytest.param(path, arguments, id=" ".join([path.stem, *arguments]))
        for path in EXAMPLES
        if path.stem not in without
        for arguments in FORMS.get(path.stem, [[]])
    ]


def run(path, *arguments, library=None):
    extra = {} if library is None else {"PPLX_ASYNC_LIBRARY": library}
    command = [sys.executable, "-W", "error", str(path), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, env=environment(extra))


def test_there_are_examples():
    assert len(EXAMPLES) >= 6


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short(path):
    assert len(path.read_text().splitlines()) < 90


@pytest.mark.parametrize(("path", "arguments"), forms(without=OF_A_LIBRARY))
def test_example_runs_with_no_library(path, arguments):
    fabric = find_fabric("ipc" if path.stem in OF_PROCESSES else "loopback")
    if fabric.missing:
        pytest.skip(fabric.missing)
    result = run(path, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"over {fabric.name}" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.fabrics("tcp")
@pytest.mark.parametrize(("path", "arguments"), forms(without=OF_VERBS))
def test_example_runs_over_a_fabric(path, arguments, fabric):
    result = run(path, fabric.name, *arguments, library=fabric.options["library"])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert f"over {fabric.name}" in result.stdout
