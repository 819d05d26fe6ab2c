# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What one would pick instead, where it is installed: NCCL and UCXX, two processes with a GPU each.

python -m benchmarks.gpu.peers --results FOLDER [--quick]

It writes what each has, and of each that is not there the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import about
from benchmarks.gpu.cuda import Cuda
from benchmarks.gpu.measure import row_of
from pplx_async.cli.bench.rows import Row, key, line_of

__all__ = ["PEERS", "absence", "main", "run"]

#: The module that measures it, and what has to be installed.
PEERS = {"nccl": "torch", "ucxx": "ucxx"}
_SECONDS = 40
_GRACE = 5


class PeerFailed(Exception):
    """A peer did not measure all; `rows` has what it did."""

    def __init__(self, reason: str, rows: list[Row]) -> None:
        super().__init__(reason)
        self.rows = rows


def absence(name: str, gpus: int) -> str | None:
    """Say why a peer can't be measured here; None if it can."""
    if importlib.util.find_spec(PEERS[name]) is None:
        return f"{PEERS[name]} is not installed"
    return f"it takes two GPUs, and there is {gpus or 'none'}" if gpus < 2 else None


def run(name: str, arguments: Sequence[str], seconds: float = _SECONDS) -> list[Row]:
    """Run both ranks of a peer; return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        commands = [
            [sys.executable, "-m", f"benchmarks.gpu.{name}", str(rank), f"{folder}/store", *arguments]
            for rank in (0, 1)
        ]
        other = subprocess.Popen(commands[1], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        why = None
        try:
            first = subprocess.run(commands[0], capture_output=True, text=True, timeout=seconds)
            out = first.stdout
            if first.returncode:
                why = _last(first.stderr) or f"exit status {first.returncode}"
        except subprocess.TimeoutExpired as error:
            out = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
            why = "it took too long"
        finally:
            # Whose failure the first one only suffers from may have something to say of it.
            try:
                _, said = other.communicate(timeout=min(seconds, _GRACE))
            except subprocess.TimeoutExpired:
                other.kill()
                _, said = other.communicate()
    rows: dict[str, list[Row]] = {}
    for line in filter(None, map(line_of, out.splitlines())):
        rows.setdefault(key(line), []).append(line)
    found = [row_of(lines, name) for lines in rows.values()]
    if why is not None:
        raise PeerFailed(f"{why}; the other rank: {_last(said) or 'said nothing'}", found)
    return found


def _last(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all that are there, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True, help="folder of the file to write")
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--library", default="libcuda.so.1", help="the libcuda that says how many GPUs there are")
    options = parser.parse_args(arguments)
    cuda = Cuda(options.library)
    gpus = min(cuda.gpus, 2)
    result = about.describe(cuda, gpus, ["torch", "nvidia-nccl-cu13", "nvidia-nccl-cu12", "ucxx-cu12", "ucxx-cu13"])
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    rows: list[Row] = []
    result |= {"quick": options.quick, "rows": rows, "absent": absent, "failed": failed}
    for name in PEERS:
        reason = absence(name, gpus)
        if reason is not None:
            absent[name] = reason
            print(f"  {name}: {reason}", flush=True)
        else:
            try:
                found = run(name, ["--quick"] if options.quick else [])
            except PeerFailed as error:
                found, failed[name] = error.rows, str(error)
                print(f"  {name} failed: {error}", flush=True)
            rows += found
            for row in found:
                print(f"  {key(row):12} {name:8} {row['value']:12.4g} {row['unit']}", flush=True)
        about.write(options.results / f"gpu-{gpus}-peers.json", result)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
