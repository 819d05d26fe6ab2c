# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which peers are measured; beside the plain C programs of ``pplx_async/cli/bench/c_program.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["KEY_VARIABLE", "PEERS", "Peer"]

# In the environment of a peer's two processes: the key of the connection between them.
KEY_VARIABLE = "PPLX_BENCH_KEY"

_LOCAL = {"UCX_NET_DEVICES": "lo", "UCX_LOG_LEVEL": "ERROR", "UCXX_LOG_LEVEL": "ERROR", "NIXL_LOG_LEVEL": "ERROR"}
_TCP = {**_LOCAL, "UCX_TLS": "tcp,self"}
_SHM = {**_LOCAL, "UCX_TLS": "sm,self"}


@dataclass(frozen=True)
class Peer:
    """One line of the tables.

    Attributes
    ----------
    name : str
        What it is called.
    module : str
        Its file here; also the name of its environment and of its list of requirements.
    variant : str
        Which of the module's.
    environment : dict
        What both processes get.
    launcher : tuple of str
        A program of its environment that starts both; without, each is started by itself.
    """

    name: str
    module: str
    variant: str
    environment: dict[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return Path(__file__).parent / f".venv-{self.module}"

    @property
    def requirements(self) -> Path:
        """What is installed there."""
        return Path(__file__).parent / "requirements" / f"{self.module}.txt"


_MPI_LOCAL = {"FI_PROVIDER": "tcp", "FI_TCP_IFACE": "lo", "UCX_NET_DEVICES": "lo", "HYDRA_IFACE": "lo"}
_MPIEXEC = ("mpiexec", "-n", "2")

PEERS = (
    Peer("nixl-shm", "nixl", "shm", _SHM),
    Peer("nixl-tcp", "nixl", "tcp", _TCP),
    Peer("mooncake-tcp", "mooncake", "tcp", {"MC_LOG_LEVEL": "ERROR", "GLOG_minloglevel": "2"}),
    Peer("ucxx-shm-polling", "ucxx", "shm-polling", _SHM),
    Peer("ucxx-tcp-polling", "ucxx", "tcp-polling", _TCP),
    Peer("ucxx-tcp-thread", "ucxx", "tcp-thread", _TCP),
    Peer("mpi-put", "mpi", "window", _MPI_LOCAL, _MPIEXEC),
    Peer("mpi-put-own", "mpi", "own", _MPI_LOCAL, _MPIEXEC),
    Peer("uvloop-unix", "uvloop", "unix"),
    Peer("uvloop-tcp", "uvloop", "tcp"),
    Peer("pyzmq-ipc", "pyzmq", "ipc"),
    Peer("gloo-tcp", "gloo", "tcp"),
)
