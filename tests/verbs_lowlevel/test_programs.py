# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The examples that are about libibverbs, on devices; those of other bindings where the binding is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.process import ROOT, environment
from helpers.verbs_low import names

# Where Debian has the bindings that come with rdma-core, for its own Python.
DISTRIBUTION = Path("/usr/lib/python3/dist-packages")


def run(name, fabric, **extra):
    library = fabric.options.get("library")
    extra |= {} if library is None else {"PPLX_ASYNC_LIBRARY": library}
    command = [sys.executable, "-W", "error", str(ROOT / "examples" / f"{name}.py"), *names(fabric)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment(extra))
    assert (result.returncode, result.stderr) == (0, "")
    assert "over verbs" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.fabrics("verbs", "verbs-fake")
def test_ping_pong(fabric):
    run("verbs_ping_pong", fabric)


@pytest.mark.deadline(120)
@pytest.mark.fabrics("verbs")
def test_queue_of_pyverbs_is_awaited(fabric, tmp_path):
    extra = {}
    if importlib.util.find_spec("pyverbs") is None:
        # Not the folder itself: other things in it would be found before ours.
        own = sorted((DISTRIBUTION / "pyverbs").glob(f"device.cpython-{sys.version_info[0]}{sys.version_info[1]}-*.so"))
        if not own:
            pytest.skip(f"no pyverbs for this Python (package python3-pyverbs, Python {sys.version_info[:2]})")
        (tmp_path / "pyverbs").symlink_to(DISTRIBUTION / "pyverbs")
        extra["PYTHONPATH"] = f"{ROOT}:{tmp_path}"
    run("pyverbs_queue", fabric, **extra)


@pytest.mark.deadline(120)
@pytest.mark.fabrics("verbs")
def test_queue_of_the_wheel_ibverbs_is_awaited(fabric):
    if importlib.util.find_spec("ibverbs") is None:
        pytest.skip("the wheel ibverbs is not installed (extra [rdma])")
    run("ibverbs_queue", fabric)
