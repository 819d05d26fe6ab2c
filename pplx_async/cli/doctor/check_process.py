# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a process may do here: descriptors, other processes' memory, CPUs, and how near these are to GPUs and NICs."""

from __future__ import annotations

from collections.abc import Iterator

from pplx_async._streams import MOST_QUEUES, QUEUES, read_queues
from pplx_async.cli.doctor.finding import Finding, ok, problem, warning
from pplx_async.cli.doctor.system import System
from pplx_async.pci import Distance
from pplx_async.placement import choose_cpu, pair

__all__ = ["cpus", "descriptors", "gpu_queues", "pairs", "process_vm"]

_FEW_DESCRIPTORS = 1024
_CORES_FOR_A_PROXY = 4


def descriptors(system: System) -> Iterator[Finding]:
    """Look at the limit on descriptors: each peer takes some."""
    limit = system.limit("Max open files")
    if limit is None:
        return
    soft, hard = limit
    if soft is None or soft >= _FEW_DESCRIPTORS:
        yield ok(f"open files: {soft or 'no limit'}")
    else:
        most = "unlimited" if hard is None else str(hard)
        yield warning(f"at most {soft} open files: enough for few peers", f"ulimit -n {most}")


def process_vm(system: System) -> Iterator[Finding]:
    """Ask whether Yama lets ``ipc_vm_writev`` write to a peer's memory."""
    scope = system.number("proc/sys/kernel/yama/ptrace_scope")
    if not scope:
        yield ok("processes of one user may write to each other's memory (process_vm_writev)")
    elif system.options.ipc_vm_writev:
        yield warning(
            f"ipc_vm_writev is asked for, and ptrace_scope={scope} refuses it between processes that are no relatives",
            "sudo sysctl -w kernel.yama.ptrace_scope=0",
        )
    else:
        yield ok(f"ptrace_scope={scope} would refuse ipc_vm_writev, which is not asked for")


def cpus(system: System) -> Iterator[Finding]:
    """Look for cores for the proxy thread, and on the node where the NICs are."""
    usable = set(system.usable_cpus)
    if not usable:
        return
    few = ": the event loop does the NICs' work (progress='auto')" if len(usable) < _CORES_FOR_A_PROXY else ""
    yield ok(f"{len(usable)} CPUs may be used{few}")
    cpu = system.options.cpu
    if cpu is not None and cpu not in usable:
        yield problem(f"EngineOptions.cpu is {cpu}, which this process may not use", "unset PPLX_ASYNC_CPU")
    nodes = {nic.node for nic in system.machine.rdma_nics if nic.node is not None}
    near = set().union(*(system.machine.nodes.get(node, frozenset()) for node in nodes))
    if near and not near & usable:
        yield warning(
            f"this process runs on no CPU of NUMA node {', '.join(map(str, sorted(nodes)))}, where the NICs are",
            f"numactl --cpunodebind={','.join(map(str, sorted(nodes)))} ...  # in front of the command",
        )


def gpu_queues(system: System) -> Iterator[Finding]:
    """Look at how many streams may wait in gates before nothing else runs on a GPU."""
    if not any(gpu.model[0] == 0x10DE for gpu in system.machine.gpus):
        return
    queues = read_queues(system.environ)
    if queues == MOST_QUEUES:
        yield ok(f"{QUEUES}={queues}: fewer streams than that may wait in gates at once")
    else:
        yield warning(
            f"while {queues} streams wait in gates nothing else runs on a GPU, nor do the engine's copies, "
            f"and processes may wait for each other for ever: {QUEUES} is {system.environ.get(QUEUES, 'not set')}",
            f"export {QUEUES}={MOST_QUEUES}  # before CUDA starts; only gates need it",
        )


def pairs(system: System) -> Iterator[Finding]:
    """Say which NICs each GPU takes, and how far they are."""
    usable = set(system.usable_cpus)
    for number, share in enumerate(pair(system.machine)):
        if share.distance is None:
            continue
        names = ", ".join(name for nic in share.nics for name in nic.rdma)
        cpu = choose_cpu(system.machine, share.gpu, usable)
        text = f"gpu{number} ({share.gpu.address}): {names}, {share.distance.words}"
        text += f", CPU {cpu}" if cpu is not None else ""
        if share.distance is Distance.SYSTEM and len(system.machine.nodes) > 1 and share.gpu.node is not None:
            yield warning(
                f"{text}: each byte crosses between the CPUs",
                "use a GPU of the NICs' node, or move a card to another slot",
            )
        else:
            yield ok(text)
