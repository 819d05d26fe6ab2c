# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Run the checks. One that fails or hangs is a finding like any other, and the rest go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from pplx_async.cli.doctor import check_efa, check_libraries, check_memory, check_process, check_rdma
from pplx_async.cli.doctor.finding import Finding, warning
from pplx_async.cli.doctor.system import System

__all__ = ["CHECKS", "Check", "examine"]

Check = tuple[str, Callable[[System], Iterable[Finding]]]

# In the order in which one depends on the other: what is mended first may mend the rest.
CHECKS: tuple[Check, ...] = (
    ("libfabric", check_libraries.libfabric),
    ("libibverbs", check_libraries.libibverbs),
    ("libcuda", check_libraries.libcuda),
    ("devices", check_rdma.devices),
    ("ports", check_rdma.ports),
    ("GIDs", check_rdma.gids),
    ("partitions", check_rdma.partitions),
    ("MTU", check_rdma.mtu),
    ("PCI links", check_rdma.pci_links),
    ("EFA", check_efa.efa),
    ("EFA and GPUs", check_efa.efa_gpus),
    ("EFA variables", check_efa.efa_variables),
    ("locked memory", check_memory.memlock),
    ("GPU memory", check_memory.gpu_memory),
    ("shared memory", check_memory.shared_memory),
    ("process_vm", check_process.process_vm),
    ("open files", check_process.descriptors),
    ("CPUs", check_process.cpus),
    ("GPUs and NICs", check_process.pairs),
    ("GPU queues", check_process.gpu_queues),
)
# Each library has half a minute to answer in, and three are usual.
_SECONDS = 120.0
_REPORT = "please report it, with the output of: pplx-async doctor --json"


def examine(
    system: System, checks: Sequence[Check] = CHECKS, *, seconds: float = _SECONDS
) -> list[tuple[str, Finding]]:
    """Run checks, one after the other.

    Parameters
    ----------
    system : System
        What is looked at.
    checks : sequence of (str, callable)
        Names and checks.
    seconds : float
        For each of them.

    Returns
    -------
    list of (str, Finding)
        What each said.
    """
    found: list[tuple[str, Finding]] = []
    for name, check in checks:
        said = _run(check, system, seconds)
        found += [(name, finding) for finding in said]
    return found


def _run(check: Callable[[System], Iterable[Finding]], system: System, seconds: float) -> list[Finding]:
    """In a thread, which is left alone if it does not end: a file or a call of a broken driver may never return."""
    said: list[Finding] = []

    def run() -> None:
        try:
            for finding in check(system):
                said.append(finding)
        except Exception as error:
            said.append(warning(f"this check failed: {type(error).__name__}: {error}", _REPORT))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [*said, warning(f"this check did not end within {seconds:g} s", _REPORT)]
    return said
