# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the machine, and the one place that may skip for it.

A reason is looked for before the test, and only where the product itself says "not available":
nothing that a test does can turn into a skip.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers.cuda import Adopted
from pplx_async._core import rt
from pplx_async.errors import ProviderUnavailable
from pplx_async.libraries import libfabric_files

ROOT = Path(__file__).parents[2]
FAKE_SOURCES = ROOT / "tests" / "fake_libfabric"
FAKE_LIBRARY = ROOT / "build" / "c" / "libfabric_fake.so.1"
FAKE_VERBS_SOURCES = ROOT / "tests" / "fake_ibverbs"
FAKE_VERBS_LIBRARY = ROOT / "build" / "c" / "libibverbs_fake.so.1"
FAKE_CUDA_SOURCES = ROOT / "tests" / "fake_libcuda"
FAKE_CUDA_LIBRARY = ROOT / "build" / "c" / "libcuda_fake.so.1"


def _as_it_is(array: Any) -> Any:
    return array


@dataclass(frozen=True)
class Fabric:
    """One of the fabrics that the public API is tested on.

    Attributes
    ----------
    id : str
        How pytest shows it.
    name : str
        ``EngineOptions.fabric``.
    options : dict
        Other options that an engine on it needs.
    missing : str or None
        Why it cannot be had here.
    wrap : callable
        What a `Pair` registers in place of an array.
    """

    id: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    missing: str | None = None
    wrap: Callable[[Any], Any] = _as_it_is

    def __repr__(self) -> str:
        return self.id


def fabric_ids() -> tuple[str, ...]:
    """List every fabric that there is a test for."""
    return tuple(_FIND)


@functools.cache
def find_fabric(fabric_id: str) -> Fabric:
    """Find a fabric, or the reason why it isn't here."""
    return _FIND[fabric_id]()


def _loopback() -> Fabric:
    return Fabric("loopback", "loopback")


def _ipc() -> Fabric:
    try:
        rt.discover("ipc", {})
    except ProviderUnavailable as error:
        return Fabric("ipc", "ipc", missing=f"ipc not available: {error}")
    return Fabric("ipc", "ipc")


def _tcp() -> Fabric:
    wheels = [file.path for file in libfabric_files() if file.origin.startswith("wheel")]
    if not wheels:
        return _missing("tcp", "tcp", "no wheel that carries a libfabric is installed (extra [fabric])")
    return _from_library("tcp", "tcp", wheels[0])


def _rxm() -> Fabric:
    path = _system_libfabric()
    if path is None:
        return _missing("rxm", "tcp;ofi_rxm", "this system has no libfabric.so.1 (package libfabric1)")
    return _from_library("rxm", "tcp;ofi_rxm", path)


def _efa() -> Fabric:
    reason = _build_fake(FAKE_LIBRARY, FAKE_SOURCES, "rdma/fabric.h", "libfabric-dev")
    if reason is not None:
        return _missing("efa", "efa", reason)
    return _from_library("efa", "efa", str(FAKE_LIBRARY))


def _efa_gpu() -> Fabric:
    """Take the same where it was built with CUDA, with what a pair moves on a GPU: that of the tests' own libcuda."""
    efa = _efa()
    reason = efa.missing or _build_fake(FAKE_CUDA_LIBRARY, FAKE_CUDA_SOURCES, "pthread.h", "libc6-dev")
    if reason is not None:
        return Fabric("efa-gpu", "efa", missing=reason)
    library = str(FAKE_CUDA_LIBRARY)
    os.environ["FAKE_EFA_CUDA"] = library
    return Fabric(
        "efa-gpu", "efa", efa.options | {"cuda_library": library}, wrap=lambda array: _on_device(array, library)
    )


def _verbs() -> Fabric:
    try:
        rt.discover("verbs", {})
    except ProviderUnavailable as error:
        return Fabric("verbs", "verbs", missing=f"verbs not available: {error}")
    return Fabric("verbs", "verbs")


def _verbs_fake() -> Fabric:
    """Take the tests' own libibverbs: as strict as a device, within one process."""
    reason = _build_fake(FAKE_VERBS_LIBRARY, FAKE_VERBS_SOURCES, "infiniband/verbs.h", "libibverbs-dev")
    if reason is not None:
        return Fabric("verbs-fake", "verbs", missing=f"the tests' own libibverbs not available: {reason}")
    return Fabric("verbs-fake", "verbs", {"library": str(FAKE_VERBS_LIBRARY)})


def _ipc_gpu() -> Fabric:
    """Shared memory, but what a pair moves lies on a GPU, as far as the tests' own libcuda can have one."""
    ipc = _ipc()
    reason = ipc.missing or _build_fake(FAKE_CUDA_LIBRARY, FAKE_CUDA_SOURCES, "pthread.h", "libc6-dev")
    if reason is not None:
        return Fabric("ipc-gpu", "ipc", missing=reason)
    library = str(FAKE_CUDA_LIBRARY)
    return Fabric("ipc-gpu", "ipc", {"cuda_library": library}, wrap=lambda array: _on_device(array, library))


def _on_device(array: Any, library: str) -> Any:
    flags = getattr(array, "flags", None)
    if flags is None or not (flags.c_contiguous and flags.writeable and array.nbytes):
        return array  # refused, or the host's, as everywhere
    return Adopted(array, library)


_FIND = {
    "loopback": _loopback,
    "ipc": _ipc,
    "ipc-gpu": _ipc_gpu,
    "tcp": _tcp,
    "rxm": _rxm,
    "efa": _efa,
    "efa-gpu": _efa_gpu,
    "verbs": _verbs,
    "verbs-fake": _verbs_fake,
}


def _missing(fabric_id: str, name: str, reason: str) -> Fabric:
    return Fabric(fabric_id, name, missing=f"libfabric {name} not available: {reason}")


def _from_library(fabric_id: str, name: str, path: str) -> Fabric:
    try:
        devices = rt.discover("fabric", {"library": path, "provider": name})
    except ProviderUnavailable as error:
        return _missing(fabric_id, name, str(error))
    assert all(device["provider"] == name for device in devices)
    return Fabric(fabric_id, name, {"library": path})


def _system_libfabric() -> str | None:
    # By its path: the bare soname would give whichever library of that name is loaded already.
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin")
    if ldconfig is None:
        return None
    listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True, timeout=30).stdout
    for line in listed.splitlines():
        name, _, path = line.partition("=>")
        if name.split()[:1] == ["libfabric.so.1"] and path:
            return path.strip()
    return None


def _build_fake(library: Path, sources: Path, header: str, package: str) -> str | None:
    """Compile one of the tests' own libraries, if need be; return why that can't be done."""
    if not list(sources.glob("*.c")):
        return f"{sources.relative_to(ROOT)} has no sources"
    for tool in ("make", "gcc"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed, which builds {library.name}"
    headers = subprocess.run(
        ["gcc", "-E", "-x", "c", "-o", "/dev/null", "-"],
        input=f"#include <{header}>\n",
        capture_output=True,
        text=True,
    )
    if headers.returncode != 0:
        return f"its headers are not installed (package {package})"
    target = str(library.relative_to(ROOT))
    # A failure of this is no reason to skip: the sources are ours.
    built = subprocess.run(
        ["make", "-f", "tests/c/Makefile", "CC=gcc", target], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, f"{sources.relative_to(ROOT)} does not compile:\n{built.stdout}\n{built.stderr}"
    return None


def programs(*names: str) -> None:
    """Skip the test where a program is not installed."""
    for name in names:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")


@functools.cache
def _no_networks() -> str | None:
    tried = subprocess.run(
        [sys.executable, "-m", "helpers.namespaces"], cwd=ROOT / "tests", capture_output=True, text=True, timeout=60
    )
    return None if tried.returncode == 0 else tried.stderr.strip().splitlines()[-1]


def networks() -> None:
    """Skip the test where a process cannot have a network of its own, and devices in it."""
    programs("ip")
    reason = _no_networks()
    if reason is not None:
        pytest.skip(reason)
