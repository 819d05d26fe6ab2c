# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Libraries: which are there, and load."""

from __future__ import annotations

from collections.abc import Iterator

from pplx_async.cli.doctor.finding import Finding, ok, problem, warning
from pplx_async.cli.doctor.system import System

__all__ = ["libcuda", "libfabric", "libibverbs"]

_GET = "pip install 'pplx_async[fabric]'"
_REBUILD = (
    "sudo apt-get install {} && pip install --force-reinstall --no-deps --no-binary pplx_async pplx_async"
    "  # Fedora, Amazon Linux: {}; in a checkout: pip install -e ."
)


def libfabric(system: System) -> Iterator[Finding]:
    """Look for a libfabric with a provider that can be used."""
    asked = system.options.fabric in ("tcp", "tcp;ofi_rxm", "efa")
    lacks = (system.probe("built") or {}).get("fabric")
    if lacks is not None:
        yield (problem if asked else warning)(lacks, _REBUILD.format("libfabric-dev", "libfabric-devel"))
        return
    rows = system.probe("libfabric")
    if rows is None:
        return
    for row in rows:
        if row["providers"]:
            yield ok(f"{row['library']}, version {row['version']}: {', '.join(row['providers'])}")
    broken = [row for row in rows if not row["providers"]]
    usable = len(broken) < len(rows)
    for row in broken:
        yield ok(f"{row['library']} is not used: {row['reason']}")
    if usable:
        return
    if asked:
        yield problem(f"fabric={system.options.fabric!r} was asked for, and no libfabric can be used", _GET)
    else:
        yield warning("no libfabric can be used: neither tcp nor EFA to other hosts", _GET)


def libibverbs(system: System) -> Iterator[Finding]:
    """Look for a libibverbs, where there are devices for it."""
    lacks = (system.probe("built") or {}).get("verbs")
    if lacks is not None:
        if system.options.fabric == "verbs" or not all(device.is_efa for device in system.rdma):
            yield problem(lacks, _REBUILD.format("libibverbs-dev", "rdma-core-devel"))
        else:
            yield ok(f"no RDMA device that would need it; {lacks}")
        return
    found = system.probe("libibverbs")
    if found is None:
        return
    devices = [device.name for device in system.rdma]
    if found.get("library"):
        yield ok(f"{found['library']}, version {found['version']}")
    elif devices or system.options.fabric == "verbs":
        what = f"there are RDMA devices ({', '.join(devices)})" if devices else 'fabric="verbs" was asked for'
        yield problem(
            f"{what}, but no libibverbs: {found['reason']}", "sudo apt-get install libibverbs1 ibverbs-providers"
        )
    else:
        yield ok("no libibverbs, and no RDMA device that would need it")


def libcuda(system: System) -> Iterator[Finding]:
    """Look for the driver of the GPUs."""
    found = system.probe("libcuda")
    gpus = [gpu for gpu in system.machine.gpus if gpu.model[0] == 0x10DE]
    if found is None:
        return
    if not gpus and not found.get("library"):
        yield ok("no NVIDIA GPU")
    elif not found.get("library"):
        yield problem(
            f"there are {len(gpus)} GPUs, but libcuda does not load: {found['reason']}",
            "install NVIDIA's driver; in a container: docker run --gpus all ...",
        )
    elif found["reason"] and gpus:
        yield problem(f"{found['library']} is there, but {found['reason']}", "nvidia-smi")
    else:
        yield ok(f"{found['library']}, CUDA {found['version']}")
