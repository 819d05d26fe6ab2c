# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""`pplx-async doctor` and `info` on a machine with devices, with broken ones, and with none any more."""

import json
import subprocess
import sys

import pytest

from helpers.cables import administer
from helpers.process import ROOT, environment
from pplx_async import EngineOptions
from pplx_async.cli.doctor.examine import CHECKS, examine
from pplx_async.cli.doctor.system import System

pytestmark = [pytest.mark.fabrics("verbs"), pytest.mark.deadline(120)]


def by_check(findings):
    found = {}
    for check, finding in findings:
        found.setdefault((check, finding["level"]), []).append(finding)
    return found


def look(*checks):
    """What these checks say, in this process: a run of the whole command takes a minute in an emulated machine."""
    system = System("/", EngineOptions(fabric="verbs"))
    chosen = [(name, check) for name, check in CHECKS if name in checks]
    return by_check((check, finding.to_dict(check)) for check, finding in examine(system, chosen))


def texts(found, check, level):
    return [finding["text"] for finding in found.get((check, level), [])]


def test_all_is_well(fabric, cables):
    command = [sys.executable, "-m", "pplx_async.cli.main", "doctor", "--fabric", "verbs", "--json"]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, ""), run.stdout
    found = by_check((finding["check"], finding) for finding in json.loads(run.stdout)["findings"])
    for cable in cables:
        for device in cable.devices:
            assert any(text.startswith(f"{device} port 1: active") for text in texts(found, "ports", "ok")), found
            assert any(text.startswith(f"{device} port 1: GID") for text in texts(found, "GIDs", "ok")), found


def test_cable_that_is_out_is_named_with_the_line_that_mends_it(fabric, cable):
    cable.pull()
    found = look("ports", "GIDs", "MTU")
    told = found["ports", "warning"]  # no problem: the other pair can be used
    assert {finding["text"].split()[0] for finding in told} == set(cable.devices)
    assert all(finding["fix"] for finding in told)
    cable.mend()
    assert ("ports", "warning") not in look("ports")


def test_address_that_is_missing_is_named(fabric, cable):
    administer("ip", "address", "del", "10.77.0.1/24", "dev", "eth0a")
    try:
        found = look("GIDs")
    finally:
        administer("ip", "address", "add", "10.77.0.1/24", "dev", "eth0a")
    assert any("rxe0 " in text and "no IP address" in text for text in texts(found, "GIDs", "warning")), found


WITHOUT = """
from pplx_async import EngineOptions
from pplx_async.cli.doctor.examine import CHECKS, examine
from pplx_async.cli.doctor.system import System
system = System("/", EngineOptions(fabric="verbs"))
for _, finding in examine(system, [each for each in CHECKS if each[0] == "devices"]):
    print(finding.level.value, finding.text)
"""


def test_without_devices_it_is_said(fabric, cables):
    """They are hidden from one process: to remove one, rdma_rxe may wait for ever for its last user."""
    cover = "for each in infiniband infiniband_verbs; do mount -t tmpfs none /sys/class/$each; done"
    command = ["unshare", "--mount", "sh", "-c", f'{cover} && exec "$@"', "sh", sys.executable, "-c", WITHOUT]
    run = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert (run.returncode, run.stderr) == (0, "")
    assert "problem" in run.stdout
    assert "there is no RDMA device" in run.stdout
