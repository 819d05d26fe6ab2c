# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory: how much may be registered, whether NICs reach that of GPUs, and what is shared between processes."""

from __future__ import annotations

from collections.abc import Iterator

from pplx_async.cli.doctor.finding import Finding, ok, problem, warning
from pplx_async.cli.doctor.system import System
from pplx_async.cli.output import size

__all__ = ["gpu_memory", "memlock", "shared_memory"]

# With less not even the buffers of messages can be registered for some peers.
_LITTLE = 64 << 20
_DMA_BUF_KERNEL = (5, 12)
_PEER_MEMORY = ("nvidia_peermem", "nv_peer_mem", "efa_nv_peermem")
# A container has 64 MiB, where nobody says otherwise.
_SMALL_SHM = 512 << 20


def memlock(system: System) -> Iterator[Finding]:
    """Look at the limit on locked memory, which is what is registered with an RDMA device."""
    limit = system.limit("Max locked memory")
    if limit is None:
        return
    soft, hard = limit
    fix = "echo '* - memlock unlimited' | sudo tee /etc/security/limits.d/95-rdma.conf  # and log in again; " + (
        "docker run --ulimit memlock=-1:-1 ...; a systemd unit: LimitMEMLOCK=infinity"
    )
    if soft is None:
        yield ok("locked memory: no limit")
    elif system.may_lock_all:
        yield ok(f"locked memory: {size(soft)}, which does not count for this user (CAP_IPC_LOCK)")
    elif not system.rdma:
        yield ok(f"locked memory: {size(soft)}, which counts with RDMA devices only")
    else:
        grade = problem if soft < _LITTLE else warning
        text = f"at most {size(soft)} of memory can be registered with RDMA devices"
        yield grade(text, "ulimit -l unlimited" if hard is None else fix)


def gpu_memory(system: System) -> Iterator[Finding]:
    """Look for a way to GPU memory: as a dma-buf, or by a kernel module of NVIDIA's."""
    gpus = [gpu for gpu in system.machine.gpus if gpu.model[0] == 0x10DE]
    if not gpus or not system.rdma:
        yield ok("no GPU beside an RDMA device: there is no GPU memory to register")
        return
    module = next((name for name in _PEER_MEMORY if system.exists(f"sys/module/{name}")), None)
    dma_buf = (system.probe("libcuda") or {}).get("dma_buf")
    by_libibverbs = not all(device.is_efa for device in system.rdma)
    old_library = by_libibverbs and (system.probe("libibverbs") or {}).get("dma_buf") is False
    if system.kernel >= _DMA_BUF_KERNEL and dma_buf and not old_library:
        yield ok("GPU memory is registered as a dma-buf" + (f" ({module} is loaded as well)" if module else ""))
    elif module:
        yield ok(f"GPU memory is registered by {module}")
    else:
        old = "the driver of the GPUs has none"
        if system.kernel < _DMA_BUF_KERNEL:
            old = "the kernel is older than 5.12"
        elif old_library:
            old = "libibverbs is older than rdma-core 34"
        yield problem(
            f"RDMA devices cannot reach GPU memory: no dma-buf ({old}), and no peer memory module",
            "sudo modprobe nvidia_peermem",
        )


def shared_memory(system: System) -> Iterator[Finding]:
    """Try what shared memory between processes needs; count the room that other libraries of a program find."""
    calls = system.probe("calls") or {}
    for call, error in calls.items():
        if error is None:
            yield ok(f"{call} works")
        else:
            yield problem(
                f"{call} fails ({error}), and without it there is no shared memory between processes",
                "docker run --security-opt seccomp=unconfined ...  # or a profile that allows the call",
            )
    space = system.probe("shm")
    if space is None:
        return
    text = f"/dev/shm has {size(space['free'])} of {size(space['total'])} free"
    if space["total"] < _SMALL_SHM or space["free"] < _SMALL_SHM // 4:
        yield warning(
            f"{text}: enough for us, who do not use it; NCCL, MPI and data loaders do",
            "sudo mount -o remount,size=50% /dev/shm  # docker run --shm-size=16g ..., or --ipc=host",
        )
    else:
        yield ok(text)
