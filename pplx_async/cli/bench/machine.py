# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a result was measured on."""

from __future__ import annotations

import os
import platform

__all__ = ["describe"]


def describe() -> dict[str, str | int]:
    """Name the machine as far as it matters for figures."""
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _field("/proc/cpuinfo", "model name") or platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "system": system,
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _field(path: str, name: str) -> str | None:
    with open(path) as file:
        for line in file:
            found, _, value = line.partition(":")
            if found.strip() == name:
                return value.strip()
    return None
