# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""EFA: AWS's NIC, its driver, its libfabric, huge pages, memory of GPUs, and variables that make it slow."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pplx_async.cli.doctor.finding import Finding, ok, problem, warning
from pplx_async.cli.doctor.system import System
from pplx_async.pci import Device

__all__ = ["efa", "efa_gpus", "efa_variables"]

_AMAZON, _NVIDIA = 0x1D0F, 0x10DE
_DMA_BUF_VERSION = (1, 20)
_EFA_DEVICES = range(0xEFA0, 0xEFB0)
_OFF, _ON = frozenset({"0", "no", "off", "false"}), frozenset({"1", "yes", "on", "true"})  # to libfabric
_INSTALL = (
    "curl -O https://efa-installer.amazonaws.com/aws-efa-installer-latest.tar.gz && "
    "tar xf aws-efa-installer-latest.tar.gz && cd aws-efa-installer && sudo ./efa_installer.sh -y"
)


def efa(system: System) -> Iterator[Finding]:
    """Look for the device, its driver, a libfabric that speaks to it, and huge pages for its buffers."""
    nics = _nics(system)
    if not nics:
        if system.options.fabric == "efa":
            yield problem(
                'fabric="efa" was asked for, and no EFA device is there',
                "stop the instance, attach a network interface of type EFA (if its type has that), start it",
            )
        else:
            yield ok("no EFA device")
        return
    blind = [nic.address for nic in nics if not nic.rdma]
    if blind:
        yield problem(f"no driver serves the EFA at {', '.join(blind)}", "sudo modprobe efa")
    if len(blind) < len(nics):
        yield ok(
            f"{len(nics) - len(blind)} EFA devices; what can't be seen from here: their security group has to allow "
            "all traffic to and from itself"
        )
    rows = system.probe("libfabric")
    if rows is not None:
        able = [row for row in rows if "efa" in row["providers"]]
        if able:
            yield ok(f"{able[0]['library']} speaks to EFA")
        elif not blind:
            yield problem("no libfabric here speaks to EFA", _INSTALL)
    pages = system.number("proc/sys/vm/nr_hugepages")
    unwanted = _says(system, "FI_EFA_USE_HUGE_PAGE", _OFF) or _says(system, "FI_EFA_FORK_SAFE", _ON)
    if pages == 0 and not unwanted:
        yield warning(
            "no huge pages: EFA's buffers are made of small ones, a little slower",
            "sudo sysctl -w vm.nr_hugepages=$((110 * $(nproc) + 1))  # as many as AWS's installer takes",
        )
    elif pages:
        yield ok(f"{pages} huge pages")


def efa_gpus(system: System) -> Iterator[Finding]:
    """Look for a libfabric that gives EFA memory of GPUs; whether the machine has a way is asked elsewhere."""
    able = [row for row in system.probe("libfabric") or () if "efa" in row["providers"]]
    if not able or not _has_gpus(system):
        return
    library, version = able[0]["library"], tuple(int(part) for part in re.findall(r"\d+", able[0]["version"] or ""))
    if able[0].get("gpus") is False:
        yield problem(
            f"{library} offers EFA no memory of GPUs: it was built without CUDA, or finds no libcudart.so",
            f"sudo ldconfig /usr/local/cuda/lib64  # or: {_INSTALL}",
        )
    elif version and version < _DMA_BUF_VERSION:
        yield ok(f"{library} is older than 1.20: it is given addresses in memory of GPUs, and no dma-bufs")
    else:
        yield ok(f"{library} takes memory of GPUs for EFA")


def efa_variables(system: System) -> Iterator[Finding]:
    """Look for variables of libfabric's that keep EFA from being used, from using RDMA, or from memory of GPUs."""
    environ = system.environ
    if not _nics(system):
        return
    wanted = [name.strip() for name in environ.get("FI_PROVIDER", "").lstrip("^").split(",") if name.strip()]
    excluding = environ.get("FI_PROVIDER", "").startswith("^")
    if wanted and (("efa" in wanted) == excluding):
        yield problem(f"FI_PROVIDER={environ['FI_PROVIDER']} hides EFA from libfabric", "unset FI_PROVIDER")
    if _says(system, "FI_EFA_USE_DEVICE_RDMA", _OFF):
        yield problem(
            f"FI_EFA_USE_DEVICE_RDMA={environ['FI_EFA_USE_DEVICE_RDMA']}: writes are emulated by messages, and the "
            "peer's CPU copies them",
            "unset FI_EFA_USE_DEVICE_RDMA",
        )
    if _says(system, "FI_EFA_USE_DEVICE_RDMA", _ON):
        yield warning(
            f"FI_EFA_USE_DEVICE_RDMA={environ['FI_EFA_USE_DEVICE_RDMA']}: libfabric aborts the process where the "
            "device has no RDMA; without it RDMA is used where it is there",
            "unset FI_EFA_USE_DEVICE_RDMA",
        )
    if _says(system, "FI_EFA_USE_UNSOLICITED_WRITE_RECV", _OFF):
        yield warning(
            "FI_EFA_USE_UNSOLICITED_WRITE_RECV is off: with peers where it is on, writes are emulated by messages",
            "unset FI_EFA_USE_UNSOLICITED_WRITE_RECV",
        )

    if _has_gpus(system) and "FI_HMEM" in environ and "cuda" not in environ["FI_HMEM"].lower():
        yield problem(f"FI_HMEM={environ['FI_HMEM']} keeps libfabric from memory of GPUs", "unset FI_HMEM")
    if _has_gpus(system) and _says(system, "FI_HMEM_DISABLE_P2P", _ON):
        yield problem(
            f"FI_HMEM_DISABLE_P2P={environ['FI_HMEM_DISABLE_P2P']} keeps EFA from memory of GPUs",
            "unset FI_HMEM_DISABLE_P2P",
        )


def _has_gpus(system: System) -> bool:
    return bool(_nics(system)) and any(gpu.model[0] == _NVIDIA for gpu in system.machine.gpus)


def _says(system: System, variable: str, words: frozenset[str]) -> bool:
    return system.environ.get(variable, "").lower() in words


def _nics(system: System) -> list[Device]:
    return [nic for nic in system.machine.devices if nic.model[0] == _AMAZON and nic.model[1] in _EFA_DEVICES]
