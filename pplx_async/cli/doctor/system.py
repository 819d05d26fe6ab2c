# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The machine that is looked at: this one, or the recorded tree of another."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pplx_async.cli.doctor import probes
from pplx_async.options import EngineOptions
from pplx_async.pci import Machine, parse_cpus, read_machine

__all__ = ["RdmaDevice", "System"]

_CAP_IPC_LOCK = 14


class RdmaDevice:
    """An RDMA device, as ``/sys/class/infiniband`` shows it.

    Attributes
    ----------
    name : str
        Such as ``"mlx5_0"``.
    driver : str
        Of its PCI function; empty for a device in software.
    """

    def __init__(self, system: System, name: str) -> None:
        self._system = system
        self.name = name
        self._path = f"sys/class/infiniband/{name}"
        self.driver = system.link(f"{self._path}/device/driver")

    @property
    def is_efa(self) -> bool:
        """Whether it is AWS's, which has neither ports to configure nor RoCE's GIDs."""
        return self.driver == "efa" or self._system.number(f"{self._path}/device/vendor") == 0x1D0F

    @property
    def ports(self) -> list[int]:
        """The numbers of its ports."""
        return [int(name) for name in self._system.names(f"{self._path}/ports") if name.isdigit()]

    @property
    def interfaces(self) -> list[str]:
        """Its network interfaces: those of its function, or, in software, those that its GIDs name."""
        found = self._system.names(f"{self._path}/device/net")
        for port in self.ports:
            found += [gid["interface"] for gid in self.gids(port) if gid["interface"]]
        parent = self._system.text(f"{self._path}/parent")  # of soft-RoCE
        return list(dict.fromkeys([*found, *([parent] if parent else [])]))

    def text(self, path: str) -> str | None:
        """Read a file of the device."""
        return self._system.text(f"{self._path}/{path}")

    def gids(self, port: int) -> list[dict[str, Any]]:
        """List the GIDs of a port that are set: index, GID, type, interface."""
        folder = f"{self._path}/ports/{port}"
        found = []
        for index in sorted(int(name) for name in self._system.names(f"{folder}/gids") if name.isdigit()):
            gid = self._system.text(f"{folder}/gids/{index}")
            if gid and gid.strip("0:"):
                kind = self._system.text(f"{folder}/gid_attrs/types/{index}") or ""
                interface = self._system.text(f"{folder}/gid_attrs/ndevs/{index}") or ""
                found.append({"index": index, "gid": gid, "type": kind, "interface": interface})
        return found

    def partitions(self, port: int) -> list[tuple[int, int]]:
        """List the P_Keys of a port that are set: index and key."""
        folder = f"{self._path}/ports/{port}/pkeys"
        indices = sorted(int(name) for name in self._system.names(folder) if name.isdigit())
        keys = [(index, self._system.number(f"{folder}/{index}") or 0) for index in indices]
        return [(index, key) for index, key in keys if 0 < key <= 0xFFFF and key & 0x7FFF]


class System:
    """What the checks ask.

    Parameters
    ----------
    root : path
        ``/``, or a recorded tree.
    options : EngineOptions, optional
        What the engine is to be opened with.
    environ : mapping, optional
        Instead of ``os.environ``.
    """

    def __init__(
        self, root: str | Path = "/", options: EngineOptions | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.root = Path(root)
        self.options = EngineOptions() if options is None else options
        self.is_recorded = self.root.resolve() != Path("/")
        self._environ = environ
        self._probed: dict[str, Any] = {}

    # ---- files ----

    def text(self, path: str) -> str | None:
        """Read a small file; None: it is not there, or may not be read."""
        try:
            with open(self.root / path, "rb") as file:
                return file.read(1 << 20).decode(errors="replace").strip()
        except OSError:
            return None

    def number(self, path: str) -> int | None:
        """Read a number; None: there is none."""
        try:
            return int(self.text(path) or "", 0)
        except ValueError:
            return None

    def names(self, folder: str) -> list[str]:
        """List a folder; empty: it is not there."""
        try:
            return sorted(os.listdir(self.root / folder))
        except OSError:
            return []

    def exists(self, path: str) -> bool:
        """Whether something is there."""
        return os.path.exists(self.root / path)

    def may_open(self, path: str) -> bool:
        """Whether this user may read and write something."""
        return os.access(self.root / path, os.R_OK | os.W_OK)

    def link(self, path: str) -> str:
        """Name what a link leads to; empty: it is none."""
        try:
            return os.path.basename(os.readlink(self.root / path))
        except OSError:
            return ""

    # ---- what several checks need ----

    @functools.cached_property
    def machine(self) -> Machine:
        """GPUs, NICs, nodes."""
        return read_machine(self.root)

    @functools.cached_property
    def rdma(self) -> list[RdmaDevice]:
        """The RDMA devices."""
        return [RdmaDevice(self, name) for name in self.names("sys/class/infiniband")]

    @property
    def kernel(self) -> tuple[int, int]:
        """Version of the kernel; (0, 0): unknown."""
        match = re.match(r"(\d+)\.(\d+)", self.text("proc/sys/kernel/osrelease") or "")
        return (int(match[1]), int(match[2])) if match else (0, 0)

    @property
    def usable_cpus(self) -> list[int]:
        """CPUs that a process started here may use."""
        return parse_cpus(self.status("Cpus_allowed_list"))

    @property
    def may_lock_all(self) -> bool:
        """Whether the limit on locked memory does not count (CAP_IPC_LOCK)."""
        try:
            return bool(int(self.status("CapEff"), 16) >> _CAP_IPC_LOCK & 1)
        except ValueError:
            return False

    def status(self, field: str) -> str:
        """Read a line of ``/proc/self/status``; empty: there is none."""
        match = re.search(rf"^{field}:\s*(.*)$", self.text("proc/self/status") or "", re.MULTILINE)
        return match[1].strip() if match else ""

    def limit(self, name: str) -> tuple[int | None, int | None] | None:
        """Read a soft and a hard limit of ``/proc/self/limits``; None in them is unlimited, None alone unknown."""
        match = re.search(rf"^{name}\s+(\d+|unlimited)\s+(\d+|unlimited)", self.text("proc/self/limits") or "", re.M)
        if match is None:
            return None
        soft, hard = (None if word == "unlimited" else int(word) for word in match.groups())
        return soft, hard

    # ---- what no file says ----

    @functools.cached_property
    def _recorded(self) -> dict[str, Any]:
        found = json.loads(self.text("probes.json") or "{}")
        return found if isinstance(found, dict) else {}

    @property
    def environ(self) -> Mapping[str, str]:
        """Variables of the environment."""
        if self._environ is not None:
            return self._environ
        return self._recorded.get("environ", {}) if self.is_recorded else os.environ

    def probe(self, name: str) -> Any:
        """Ask the machine itself; None: it is recorded, and that was not."""
        if self.is_recorded:
            return self._recorded.get(name)
        if name not in self._probed:
            self._probed[name] = probes.PROBES[name](self.options)
        return self._probed[name]
