# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory regions: ours, registered with every NIC of an engine; and those of peers."""

from __future__ import annotations

import math
import operator
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pplx_async import _endings
from pplx_async._core.allocation import Allocation
from pplx_async._core.memory import ElementView, LocalSlice, Registration, RemoteRecord, RemoteSlice
from pplx_async._intake import take
from pplx_async.errors import ClosedResourceError, LeakWarning
from pplx_async.wire import RegionDescriptor, RemoteKey, encode_region

if TYPE_CHECKING:
    import asyncio

    from numpy.typing import NDArray

    from pplx_async._intake import Memory
    from pplx_async._typing import AccessName, Buffer
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Peer

__all__ = ["ACCESS", "ElementView", "MemoryRegion", "RemoteRegion", "check_access", "check_buffer", "shared_array"]

# What peers may do, as bits: 1 read, 2 write.
ACCESS: dict[AccessName, int] = {"none": 0, "read": 1, "write": 2, "both": 3}


def check_access(memory: Memory, access: AccessName | None) -> AccessName:
    """Say what peers may do with memory that is to be registered.

    Parameters
    ----------
    memory : Memory
        As `_intake.take` found it.
    access : {"none", "read", "write", "both"}, optional
        By default ``"both"``, or ``"read"`` if the memory is read-only.

    Raises
    ------
    ValueError, TypeError
        No such access, or read-only memory where peers may write.
    """
    if access is None:
        access = "read" if memory.readonly else "both"
    if not isinstance(access, str):
        raise TypeError(f"access is one of {', '.join(ACCESS)}, not of type {type(access).__name__}")
    if access not in ACCESS:
        raise ValueError(f"access={access!r}: expected one of {', '.join(ACCESS)}")
    if memory.readonly and ACCESS[access] & ACCESS["write"]:
        raise ValueError(f'the buffer is read-only: register it with access="read", not {access!r}')
    return access


def check_buffer(buffer: Buffer, access: AccessName | None) -> tuple[AccessName, bool]:
    """Say the same of a buffer, and whether it is writable: for the low layers, which take no other memory."""
    memory = take(buffer)
    if memory.address is not None:
        raise TypeError("this layer registers memory with the buffer protocol, and no GPU's: an engine does")
    return check_access(memory, access), not memory.readonly


class MemoryRegion(LocalSlice):
    """Local memory that the engine's NICs can reach; made by `TransferEngine.register`.

    Slicing is by bytes, free and bounds-checked: ``region[0:4096]``; in elements it is
    ``region.view("f4")[10:20]``. A region is its own largest slice. It holds the buffer it was made
    from, until it is closed and no transfer uses it.

    Attributes
    ----------
    nbytes : int
        Size in bytes.
    access : {"none", "read", "write", "both"}
        What peers that hold the descriptor may do.
    """

    def __init__(self, engine: TransferEngine, registration: Registration, access: AccessName, region_id: int) -> None:
        super().__init__(registration, 0, registration.nbytes, self)
        self._engine = engine
        self._id = region_id
        self._exported = False  # somebody may have the descriptor
        self._revoking = False
        self._ending: asyncio.Task[None] | None = None
        self.access: AccessName = access

    @property
    def _fence_id(self) -> int | None:
        """What peers would have to fence: None if none of them can know it."""
        return self._id if self._exported else None

    @property
    def is_open(self) -> bool:
        """Whether transfers may use it."""
        return self.registration.is_open

    @property
    def register_seconds(self) -> float:
        """What registering it cost, on all NICs."""
        return self.registration.register_ns / 1e9

    def to_bytes(self) -> bytes:
        """Publish it: the descriptor that a peer needs to reach it.

        Returns
        -------
        bytes
            Less than 256 B for one NIC; it travels by any means. Who holds it and is connected may
            do what `access` says until the region is revoked or closed: it is a capability.

        Raises
        ------
        ValueError
            The region was registered with ``access="none"``.
        ClosedResourceError
            The region is closed or revoked.
        """
        self._engine._check_here()
        if not self.is_open:
            raise ClosedResourceError("the region is closed")
        if self.access == "none":
            raise ValueError('the region was registered with access="none": peers may not reach it')
        self._exported = True
        keys = tuple(RemoteKey(key, base) for key, base in self.registration.keys)
        return encode_region(
            RegionDescriptor(
                engine=self._engine.id, region=self._id, nbytes=self.nbytes, access=ACCESS[self.access], keys=keys
            )
        )

    async def revoke(self) -> None:
        """Make sure that no peer can write here (or read) any more, and close the region.

        Every connected peer is asked to fence: it starts nothing new, waits until what it has in
        flight is done, and confirms. One that doesn't confirm within
        ``EngineOptions.revoke_timeout`` is cut off: its connection is closed, and it is lost to
        this engine. Then the key is withdrawn.

        Raises
        ------
        UnreleasedMemory
            The provider doesn't let go; the memory stays registered and alive.

        Cancelling
        ----------
        The revoke goes on in the background; only the wait ends.
        """
        await _endings.revoke_region(self._engine, self)

    async def close(self) -> None:
        """Wait for our own transfers that use it, then take it from the NICs. Idempotent.

        Peers that write here meanwhile get RemoteAccessError, or, on some providers, land a last
        write: `revoke` is the call that fences them.

        Raises
        ------
        UnreleasedMemory
            A transfer has ended without the provider letting go of its memory; or a peer that may write
            here directly (`EngineOptions.ipc_vm_writev`) did not let go within `drain_timeout`.

        Cancelling
        ----------
        The close goes on in the background; only the wait ends.
        """
        await _endings.close_region(self._engine, self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # No slice of it is left either: each holds the region.
        engine = getattr(self, "_engine", None)  # __init__ may have failed
        if engine is not None and self.is_open and _endings.abandon_region(engine, self.registration, self._fence_id):
            warnings.warn(f"{self!r} was never closed", LeakWarning, stacklevel=2, source=self)


class RemoteRegion(RemoteSlice):
    """A peer's memory, as its descriptor tells; made by `Peer.region`. Sliced like a local one.

    Attributes
    ----------
    nbytes : int
        Size in bytes.
    peer : Peer
        Whose memory it is.
    """

    def __init__(self, peer: Peer, record: RemoteRecord) -> None:
        peer.engine._check_here()
        super().__init__(record, 0, record.nbytes)
        self.peer = peer


def shared_array(shape: int | tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Make an array of zeros on a memfd; see `TransferEngine.empty`."""
    import numpy as np  # the engine itself needs none

    dtype = np.dtype(dtype)
    if dtype.hasobject:
        raise TypeError(f"{dtype} holds references, which mean nothing to another process")
    lengths = shape if isinstance(shape, (tuple, list)) else (shape,)
    if any(isinstance(length, bool) or not hasattr(length, "__index__") for length in lengths):
        raise TypeError(f"a shape is an integer or a tuple of integers, not {shape!r}")
    count = math.prod(operator.index(length) for length in lengths)
    if dtype.itemsize < 1 or any(length < 1 for length in lengths):
        raise ValueError(f"an array of shape {shape!r} and {dtype.itemsize} B an element is empty")
    memory: Any = Allocation(count * dtype.itemsize)
    return np.frombuffer(memory, dtype).reshape(shape)
