# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: a process with a network of its own, which goes when the process does.

``python -m helpers.namespaces`` exits with 0 where all that the tests need of this is there, and else says why not.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CLONE_NEWNET = 0x40000000  # sched.h
TUN = Path("/dev/net/tun")

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def leave() -> None:
    """Give this thread, and what it starts from now on, a network of its own, with nothing but a loopback device."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare")
    ip("link set lo up")


@contextlib.contextmanager
def inside(pid: int) -> Iterator[None]:
    """Be in the network of another process for a while; this thread only."""
    home, there = (os.open(f"/proc/{of}/ns/net", os.O_RDONLY) for of in ("thread-self", pid))
    try:
        _check(_libc.setns(there, CLONE_NEWNET), "setns")
        yield
    finally:
        _check(_libc.setns(home, CLONE_NEWNET), "setns")
        os.close(home)
        os.close(there)


def ip(command: str) -> None:
    """Run ip(8) in the network where we are."""
    subprocess.run(["ip", *command.split()], check=True, capture_output=True, text=True, timeout=10)


def what_is_missing() -> str | None:
    """Try everything once, in a network that this process will have made for itself."""
    try:
        leave()
        # Not called "a", for one: `ip link add` takes that for "address".
        ip("link add probe type veth peer name eborp")
        TUN.open("rb").close()
    except PermissionError as error:
        return f"network namespaces need root: {error}"
    except FileNotFoundError as error:
        return f"not on this machine: {error.filename}"
    except subprocess.CalledProcessError as error:
        return f"the kernel has no veth: {error.stderr.strip()}"
    return None


if __name__ == "__main__":
    reason = what_is_missing()
    if reason is not None:
        raise SystemExit(reason)
