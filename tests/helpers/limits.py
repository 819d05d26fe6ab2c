# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Limits that a process sets itself, and lifts again: descriptors, and memory for our modules alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.process import TESTS


def is_sanitized() -> bool:
    """Whether this process runs with AddressSanitizer, which keeps for a while what was freed, and takes its time."""
    return "asan" in os.environ.get("LD_PRELOAD", "")


def open_descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd")) - 1


@contextlib.contextmanager
def descriptors(more: int) -> Iterator[None]:
    """Let this process open so many more descriptors than it has, and none beyond."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(map(int, os.listdir("/proc/self/fd")))
    held = []
    # The limit is on numbers: those that are free below the highest one are taken first.
    while (fd := os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)) <= top:
        held.append(fd)
    os.close(fd)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + more, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)


def proxy_threads() -> int:
    """How many proxy threads run in this process."""
    found = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            found += (task / "comm").read_text() == "pplx-proxy\n"
    return found


def build_starver(folder: Path) -> Path:
    """Compile ``starve.c``, for `Starver` in a process that preloads it; skips where there is no compiler."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed, which builds what takes memory away from our modules")
    if is_sanitized():
        pytest.skip("AddressSanitizer has an allocator of its own, which nobody can take memory away from")
    library = folder / "starve.so"
    source = TESTS / "reliability" / "starve.c"
    command = ["gcc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-o", str(library), str(source)]
    subprocess.run([*command, "-ldl", "-lpthread"], check=True, timeout=60)
    return library


class Starver:
    """In a process that has preloaded ``starve.so``: takes memory away from our extension modules, and only them."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(None)
        self._library.starve_seen.restype = ctypes.c_long
        self._library.starve_module.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
        self._library.starve.argtypes = [ctypes.c_long, ctypes.c_long]
        for line in Path("/proc/self/maps").read_text().splitlines():
            addresses, rights, *_, file = line.split(maxsplit=5)
            if "x" in rights and "/pplx_async/_core/" in file:
                start, end = addresses.split("-")
                self._library.starve_module(int(start, 16), int(end, 16))

    @contextlib.contextmanager
    def starve(self, first: int, count: int) -> Iterator[None]:
        """Refuse so many requests for memory or a thread, beginning with this one, counted from 1."""
        self._library.starve(first, count)
        try:
            yield
        finally:
            self._library.starve(0, 0)

    @property
    def seen(self) -> int:
        """Requests since `starve` was last called."""
        return int(self._library.starve_seen())
