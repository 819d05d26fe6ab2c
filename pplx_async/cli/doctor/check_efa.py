# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""EFA: AWS's NIC, its driver, its libfabric, huge pages, and variables that make it slow."""

from __future__ import annotations

from collections.abc import Iterator

from pplx_async.cli.doctor.finding import Finding, ok, problem, warning
from pplx_async.cli.doctor.system import System
from pplx_async.pci import Device

__all__ = ["efa", "efa_variables"]

_AMAZON = 0x1D0F
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


def efa_variables(system: System) -> Iterator[Finding]:
    """Look for variables of libfabric's that keep EFA from being used, or from using RDMA."""
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


def _says(system: System, variable: str, words: frozenset[str]) -> bool:
    return system.environ.get(variable, "").lower() in words


def _nics(system: System) -> list[Device]:
    return [nic for nic in system.machine.devices if nic.model[0] == _AMAZON and nic.model[1] in _EFA_DEVICES]
