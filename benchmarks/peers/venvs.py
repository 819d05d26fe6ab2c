# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The peers' virtual environments, one for each, made at first use."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from benchmarks.peers.registry import Peer

__all__ = ["EnvironmentFailed", "is_made", "make", "versions"]

_COMMON = Path(__file__).parent / "requirements" / "common.txt"


class EnvironmentFailed(Exception):
    """A peer cannot be installed here."""


def is_made(peer: Peer) -> bool:
    """Say whether all that the peer needs is installed."""
    stamp = _stamp(peer)
    return stamp.exists() and stamp.read_text() == _wanted(peer)


def make(peer: Peer) -> None:
    """Install what the peer needs, from nothing."""
    if peer.folder.exists():
        shutil.rmtree(peer.folder)
    _run(sys.executable, "-m", "venv", str(peer.folder))
    python = str(peer.folder / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
    _run(*pip, "-r", str(_COMMON), "-r", str(peer.requirements))
    _stamp(peer).write_text(_wanted(peer))


def _stamp(peer: Peer) -> Path:
    return peer.folder / "installed"


def _wanted(peer: Peer) -> str:
    """Name what an environment is made of: its requirements, and this interpreter."""
    return _COMMON.read_text() + peer.requirements.read_text() + sys.version


def versions(peer: Peer) -> dict[str, str]:
    """Say which versions its list of requirements has brought."""
    folders = [str(path) for path in peer.folder.glob("lib/python*/site-packages")]
    installed = {found.name.lower(): found.version for found in metadata.distributions(path=folders)}
    lines = [line for line in peer.requirements.read_text().splitlines() if line and not line.startswith("#")]
    names = [re.split(r"[<>=~ ]", line)[0] for line in lines]
    return {name: installed[name.lower()] for name in names}


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        said = (result.stderr + result.stdout).strip().splitlines()
        raise EnvironmentFailed(said[-1] if said else f"{command[0]}: exit status {result.returncode}")
