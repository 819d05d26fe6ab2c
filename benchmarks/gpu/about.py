# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a result was measured with: for its file."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pplx_async
from benchmarks.gpu.cuda import Cuda
from pplx_async.cli.bench import machine

__all__ = ["describe", "write"]

_DRIVER = Path("/proc/driver/nvidia/version")


def describe(cuda: Cuda, gpus: int, libraries: Sequence[str]) -> dict[str, Any]:
    """Name the cards, the driver, and the versions of these Python packages, where they are installed."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": command_of(sys.orig_argv),
        "machine": machine.describe(),
        "gpus": gpus,
        "cards": [cuda.name(ordinal) for ordinal in range(gpus)],
        "driver": driver_of(_DRIVER.read_text()) if _DRIVER.exists() else None,
        "cuda": cuda.version,
        "versions": {"pplx_async": pplx_async.__version__} | versions(libraries),
    }


def command_of(arguments: Sequence[str]) -> str:
    """Write a command line without the folders of this machine."""
    return shlex.join(Path(each).name if each.startswith("/") else each for each in arguments)


def driver_of(text: str) -> str | None:
    """Find the version in what the kernel module says of itself."""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found and found.group()


def versions(libraries: Sequence[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(path: Path, result: dict[str, Any]) -> None:
    """Write a result, all of it or nothing: the run may be ended at any time."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(unfinished, path)
