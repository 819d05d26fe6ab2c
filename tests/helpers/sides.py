# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The two processes that a command starts."""

import contextlib
import time
from pathlib import Path

import msgspec

from pplx_async.cli.side_link import Job


def children(process):
    """The pids of the sides of a command, by name, as soon as both are there."""
    found = {}
    deadline = time.monotonic() + 30
    while len(found) < 2 and time.monotonic() < deadline and process.poll() is None:
        for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            with contextlib.suppress(OSError, IndexError, msgspec.DecodeError):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found[msgspec.json.decode(arguments[-2], type=Job).side] = int(pid)
        time.sleep(0.01)
    return found


def are_gone(pids):
    """Whether these processes end, in a while."""
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
