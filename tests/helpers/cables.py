# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two RDMA devices and what lies between them; in the virtual machine of `tests/rdma_vm` a cable that can be hurt."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

import pytest

from helpers.require import Fabric
from pplx_async._core import rt

IN_VM = os.environ.get("RDMA_VM") == "1"


def administer(program: str, *arguments: str) -> str:
    """Run ``ip``, ``tc`` or ``rdma``, as root."""
    path = shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin")
    assert path is not None, f"{program} is not installed (package iproute2)"
    result = subprocess.run([path, *arguments], capture_output=True, text=True, timeout=20)
    assert result.returncode == 0, f"{program} {' '.join(arguments)}: {result.stderr}"
    return result.stdout


class Cable:
    """A pair of veth interfaces below two soft-RoCE devices.

    Attributes
    ----------
    devices : tuple of str
        Those at its ends.
    """

    def __init__(self, number: int) -> None:
        self.devices = (f"rxe{number}", f"rxe{number}p")
        self._interfaces = (f"eth{number}a", f"eth{number}b")

    def hurt(self, how: str) -> None:
        """Do this to the packets, each way, in the words of netem."""
        for name in self._interfaces:
            administer("tc", "qdisc", "replace", "dev", name, "root", "netem", "limit", "100000", *how.split())

    def harmed(self) -> dict[str, int]:
        """How many packets were sent and how many were dropped, both ways together."""
        counts = {"sent": 0, "dropped": 0}
        for name in self._interfaces:
            words = administer("tc", "-s", "qdisc", "show", "dev", name).replace(",", " ").split()
            counts["sent"] += int(words[words.index("pkt") - 1])
            counts["dropped"] += int(words[words.index("(dropped") + 1])
        return counts

    def pull(self) -> None:
        """Pull it out: both ends see that it is down."""
        administer("ip", "link", "set", "dev", self._interfaces[1], "down")

    def mend(self) -> None:
        """Plug it in, and hurt it no more."""
        administer("ip", "link", "set", "dev", self._interfaces[1], "up")
        for name in self._interfaces:
            if "netem" in administer("tc", "qdisc", "show", "dev", name):
                administer("tc", "qdisc", "del", "dev", name, "root")


def need_vm() -> None:
    """Skip the test where cables are not ours to pull."""
    if not IN_VM:
        pytest.skip("only in the virtual machine of `make test-rdma`: it pulls cables, and loses packets")


def ends(fabric: Fabric) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options for two engines that don't share a device, as far as there are two that reach each other."""
    found = [device["name"] for device in rt.discover("verbs", dict(fabric.options))]
    across = [name for name in found if name + "p" in found]
    names = (across[0], across[0] + "p") if across else (found[0], found[0])
    return {"devices": names[:1]}, {"devices": names[1:]}
