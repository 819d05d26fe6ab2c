# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The public API over the other libraries. A process loads one of a kind, so each gets a process of its own.

``tcp;ofi_rxm`` is the system library's, ``efa`` the tests' own, which speaks EFA's rules: unordered
delivery, address handles on both sides, EAGAIN, no wait fd, no immediate without a target. ``verbs-fake`` is the
tests' own libibverbs, as strict as a device; so is the libcuda of ``ipc-gpu`` and ``efa-gpu``.
"""

import subprocess
import sys
from itertools import product

import pytest

from helpers.process import ROOT, environment
from helpers.require import find_fabric

# What one library's run may take, all of it.
LIMIT = 900


@pytest.mark.fabric
@pytest.mark.deadline(LIMIT)
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        *(pytest.param("api", name, marks=pytest.mark.any_loop) for name in ("rxm", "efa", "efa-gpu", "ipc-gpu")),
        *(pytest.param(folder, "verbs-fake", marks=pytest.mark.any_loop) for folder in ("api", "verbs")),
        *product(["lowlevel"], ["rxm", "efa"]),  # these wait on the library's own descriptors, with the loop
        *product(["verbs_lowlevel", "rdma_vm"], ["verbs-fake"]),
        pytest.param("efa", "efa-gpu", marks=pytest.mark.any_loop),
    ],
)
def test_public_api(folder, name, loop_name, request):
    if request.config.getoption("--fabric"):
        pytest.skip("the fabrics were chosen by --fabric")
    command = [sys.executable, "-m", "pytest", f"tests/{folder}", "--fabric", name, "--loop", loop_name, "-q"]
    command += ["-p", "no:cacheprovider"]
    if folder == "api":
        command += ["-m", "fabric"]  # not again what is on no fabric, or has one of its own
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    print(run.stdout[-20_000:], run.stderr[-5000:])
    assert run.returncode == 0, f"pytest --fabric {name} failed: its output is below"
    # Skipped because the library is missing: say so here as well, in its own words.
    reasons = [line.partition(": ")[2] for line in run.stdout.splitlines() if " not available: " in line]
    if reasons:
        pytest.skip(reasons[0])
    assert " passed" in run.stdout


def test_fabrics_are_found_or_say_why():
    for name in ("rxm", "efa"):
        program = f"from helpers.require import find_fabric; print(find_fabric({name!r}).missing)"
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120
        )
        assert run.returncode == 0, run.stderr
        told = run.stdout.strip()
        assert told == "None" or told.startswith("libfabric "), told
    assert find_fabric("loopback").missing is None
