# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A peer's two processes: started together, read line by line, and ended whatever happens."""

from __future__ import annotations

import contextlib
import os
import secrets
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from benchmarks.peers.registry import KEY_VARIABLE, Peer
from pplx_async.cli.bench.rows import Row, line_of

__all__ = ["PeerFailed", "run_peer"]

_ROOT = Path(__file__).parents[2]
_TAIL_NBYTES = 4000
_CLOSE_SECONDS = 10.0
_Process = subprocess.Popen[bytes]


class PeerFailed(Exception):
    """A peer did not get through; what it measured before still counts."""


def run_peer(peer: Peer, options: Sequence[str], timeout: float, on_line: Callable[[Row], None]) -> None:
    """Run a peer to its end, and pass on each line that it prints.

    Parameters
    ----------
    peer : Peer
        Its environment must have been made.
    options : sequence of str
        For both processes, see ``driver.py``.
    timeout : float
        Seconds that it may take.
    on_line : callable
        Called with each line.
    """
    commands = _commands(peer, options)
    with contextlib.ExitStack() as stack:
        # Each its own: in one, two tracebacks come out mixed.
        errors = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in commands]
        processes = stack.enter_context(_started(commands, peer, errors))
        try:
            _follow(processes, time.monotonic() + timeout, on_line)
        except PeerFailed as failure:
            raise PeerFailed(f"{failure}{_tail(errors)}") from None


def _follow(processes: Sequence[_Process], end: float, on_line: Callable[[Row], None]) -> None:
    leader = processes[0]
    assert leader.stdout is not None
    for text in _lines(leader.stdout.fileno()):
        line = line_of(text or "")
        if line is not None:
            on_line(line)
        if time.monotonic() > end:
            raise PeerFailed("it took too long")
        # A target that died leaves a leader that waits for it.
        if text is None and any(process.poll() for process in processes):
            break
    with contextlib.suppress(subprocess.TimeoutExpired):
        leader.wait(_CLOSE_SECONDS)
    for process in processes:
        if process.poll():
            raise PeerFailed(f"exit status {process.returncode}")
    if leader.returncode is None:
        raise PeerFailed("it hangs at its end")


def _commands(peer: Peer, options: Sequence[str]) -> list[list[str]]:
    """Name the programs to start: the leader, and the target unless a launcher starts it."""
    python = str(peer.folder / "bin" / "python")
    control = f"pplx-bench-{secrets.token_hex(8)}"
    base = [python, "-m", f"benchmarks.peers.{peer.module}", "--name", peer.name, "--variant", peer.variant]
    base += ["--control", control, *options]
    if peer.launcher:
        return [[str(peer.folder / "bin" / peer.launcher[0]), *peer.launcher[1:], *base]]
    return [[*base, "--rank", "0"], [*base, "--rank", "1"]]


@contextlib.contextmanager
def _started(commands: Sequence[list[str]], peer: Peer, errors: Sequence[IO[str]]) -> Iterator[list[_Process]]:
    environment = {**os.environ, **peer.environment, KEY_VARIABLE: secrets.token_hex(16), "PYTHONUNBUFFERED": "1"}
    processes: list[_Process] = []
    try:
        for command, stderr in zip(commands, errors, strict=True):
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=_ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL if processes else subprocess.PIPE,
                    stderr=stderr,
                    start_new_session=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            # The group: a launcher has children of its own.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _lines(fd: int) -> Iterator[str | None]:
    """Read lines until the other end closes; None now and then, when nothing comes."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            if not selector.select(0.2):
                yield None
                continue
            data = os.read(fd, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                yield line.decode(errors="replace")


def _tail(errors: Sequence[IO[str]]) -> str:
    """Give the last words of the process that had any: who ends since the other did says nothing."""
    for file in errors:
        file.seek(0)
        if said := file.read()[-_TAIL_NBYTES:].strip().splitlines():
            return f": {said[-1]}"
    return ""
