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
                "attach an interface of type EFA to the instance (of a type that has it)",
            )
        else:
            yield ok("no EFA device")
        return
    blind = [nic.address for nic in nics if not nic.rdma]
    if blind:
        yield problem(f"no driver serves the EFA at {', '.join(blind)}", "sudo modprobe efa")
    if len(blind) < len(nics):
        yield ok(f"{len(nics) - len(blind)} EFA devices")
    rows = system.probe("libfabric")
    if rows is not None:
        able = [row for row in rows if "efa" in row["providers"]]
        if able:
            yield ok(f"{able[0]['library']} speaks to EFA")
        elif not blind:
            yield problem("no libfabric here speaks to EFA", _INSTALL)
    pages = system.number("proc/sys/vm/nr_hugepages")
    if pages == 0 and system.environ.get("FI_EFA_USE_HUGE_PAGE") != "0":
        yield warning(
            "no huge pages: EFA's buffers are made of small ones, and set-up is slower",
            "sudo sysctl -w vm.nr_hugepages=5128",
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
    if environ.get("FI_EFA_USE_DEVICE_RDMA") == "0":
        yield problem(
            "FI_EFA_USE_DEVICE_RDMA=0: writes are emulated by messages, and the peer's CPU copies them",
            "unset FI_EFA_USE_DEVICE_RDMA",
        )
    if "FI_EFA_USE_UNSOLICITED_WRITE_RECV" in environ:
        yield warning(
            "FI_EFA_USE_UNSOLICITED_WRITE_RECV is set: it must say the same at every peer, or immediates are lost",
            "unset FI_EFA_USE_UNSOLICITED_WRITE_RECV",
        )


def _nics(system: System) -> list[Device]:
    return [nic for nic in system.machine.devices if nic.model[0] == _AMAZON and nic.model[1] in _EFA_DEVICES]
