# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Await one-sided memory transfers between processes, GPUs and machines.

    async with pplx_async.TransferEngine() as engine:
        region = await engine.register(array)
        peer = await engine.connect("host:port")
        await engine.write(region[0:4096], remote[8192:12288], counter=remote_counter)

Importing this package loads no native library of a fabric; opening an engine does.
"""

import os

from pplx_async._core.gates import CapturedTransfer
from pplx_async._core.transfer import Transfer
from pplx_async.batch import Batch
from pplx_async.counters import ImmCounter, RemoteCounter
from pplx_async.engine import TransferEngine
from pplx_async.errors import (
    BrokenResourceError,
    CleanupWarning,
    ClosedResourceError,
    CompletionError,
    CudaError,
    FabricError,
    LeakWarning,
    NativeCallError,
    PeerLost,
    PplxAsyncError,
    ProviderUnavailable,
    QueueFull,
    RailLost,
    RegistrationError,
    RemoteAccessError,
    UnreleasedMemory,
    VerbsError,
    WorkFlushed,
)
from pplx_async.gpu import Gate, Watcher
from pplx_async.group import PeerGroup
from pplx_async.memory import MemoryRegion, RemoteRegion
from pplx_async.options import EngineOptions
from pplx_async.peer import Message, Peer
from pplx_async.scope import TransferScope
from pplx_async.stats import EngineStats, Histogram, LinkStats, PeerStats
from pplx_async.topology import Explanation

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "BrokenResourceError",
    "CapturedTransfer",
    "CleanupWarning",
    "ClosedResourceError",
    "CompletionError",
    "CudaError",
    "EngineOptions",
    "EngineStats",
    "Explanation",
    "FabricError",
    "Gate",
    "Histogram",
    "ImmCounter",
    "LeakWarning",
    "LinkStats",
    "MemoryRegion",
    "Message",
    "NativeCallError",
    "Peer",
    "PeerGroup",
    "PeerLost",
    "PeerStats",
    "PplxAsyncError",
    "ProviderUnavailable",
    "QueueFull",
    "RailLost",
    "RegistrationError",
    "RemoteAccessError",
    "RemoteCounter",
    "RemoteRegion",
    "Transfer",
    "TransferEngine",
    "TransferScope",
    "UnreleasedMemory",
    "VerbsError",
    "Watcher",
    "WorkFlushed",
    "__version__",
    "get_include",
]


def get_include() -> str:
    """Return the directory of the C headers, for building against them.

    Returns
    -------
    str
        Pass it as an include directory; ``#include <pplx_async/pplx_async.h>`` then works.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    installed = os.path.join(package, "include")
    return installed if os.path.isdir(installed) else os.path.join(os.path.dirname(package), "include")
