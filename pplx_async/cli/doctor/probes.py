# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What only the machine itself can say: libraries are loaded, space is counted, calls are tried.

Libraries are loaded in processes of their own, with a limit of time: one that crashes or hangs is a finding.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from pplx_async import topology
from pplx_async._core import rt
from pplx_async.errors import ProviderUnavailable
from pplx_async.options import EngineOptions

__all__ = ["PROBES"]

_SECONDS = 20
_DMA_BUF_SUPPORTED = 124  # CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED


def _built(options: EngineOptions) -> dict[str, str | None]:
    """Say what this build lacks of each provider, or None.

    An option that none of them has is refused before any library is loaded.
    """
    lacks: dict[str, str | None] = {}
    for provider in ("fabric", "verbs"):
        try:
            rt.discover(provider, {"nothing": ""})
        except ProviderUnavailable as error:
            said = re.search("this build has no [^;]*", error.reason)
            lacks[provider] = said[0] if said else None
        except ValueError:
            lacks[provider] = None
    return lacks


def _libfabric(options: EngineOptions) -> list[dict[str, Any]]:
    """Each libfabric: library, version, providers, reason; and whether it offers memory of GPUs on EFA."""
    rows = []
    for row in topology.survey(options):
        words = " ".join(str(device["description"]) for device in row["devices"])
        version = re.search(r"libfabric (\d[\d.]*)", words)
        rows.append(
            {
                "library": row["library"],
                "version": version[1] if version else None,
                "providers": sorted({str(device["provider"]) for device in row["devices"]}),
                "reason": row["reason"],
                "gpus": row.get("gpus"),
            }
        )
    return rows


def _look_at(soname: str) -> dict[str, Any]:
    # -P: the user's folder is not ours to import from.
    command = [sys.executable, "-P", "-m", "pplx_async.cli.doctor.probes", soname]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"reason": f"it did not answer within {_SECONDS} s"}
    if done.returncode == 0:
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    return {"reason": f"looking at it ended with status {done.returncode}: {done.stderr.strip()[-300:]}"}


def _space(options: EngineOptions) -> dict[str, Any]:
    there = os.statvfs("/dev/shm")
    return {"total": there.f_blocks * there.f_frsize, "free": there.f_bavail * there.f_frsize}


def _calls(options: EngineOptions) -> dict[str, Any]:
    """Try what shared memory between processes needs; the error of each, or None."""

    def tried(call: Callable[[], int]) -> str | None:
        try:
            os.close(call())
        except OSError as error:
            return error.strerror or str(error)
        return None

    return {
        "pidfd_open": tried(lambda: os.pidfd_open(os.getpid())),
        "memfd_create": tried(lambda: os.memfd_create("pplx_async", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)),
    }


PROBES: dict[str, Callable[[EngineOptions], Any]] = {
    "built": _built,
    "libfabric": _libfabric,
    "libibverbs": lambda options: _look_at("libibverbs.so.1"),
    "libcuda": lambda options: _look_at("libcuda.so.1"),
    "shm": _space,
    "calls": _calls,
}


def _look(soname: str) -> dict[str, Any]:
    """In the other process: load a library, and say which file it is and what it says of itself."""
    try:
        library = ctypes.CDLL(soname)
    except OSError as error:
        return {"reason": str(error)}
    with open("/proc/self/maps") as maps:
        path = next((line.split()[-1] for line in maps if f"/{soname.partition('.')[0]}.so" in line), soname)
    version = re.search(r"\.so\.(\d[\d.]*)$", path)
    found: dict[str, Any] = {"library": path, "version": version[1] if version else None, "reason": None}
    if soname.startswith("libibverbs"):
        found["dma_buf"] = hasattr(library, "ibv_reg_dmabuf_mr")
    return found | (_look_at_cuda(library) if soname.startswith("libcuda") else {})


def _look_at_cuda(library: ctypes.CDLL) -> dict[str, Any]:
    number, count = ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    code = library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return {"version": version, "reason": f"cuInit says {code}"}
    dma_buf = []
    for device in range(count.value):
        library.cuDeviceGetAttribute(ctypes.byref(number), _DMA_BUF_SUPPORTED, device)
        dma_buf.append(bool(number.value))
    return {"version": version, "dma_buf": all(dma_buf) if dma_buf else None}


if __name__ == "__main__":
    print(json.dumps(_look(sys.argv[1])))
