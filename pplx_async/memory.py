# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory regions: ours, registered with every NIC of an engine; and those of peers."""

from __future__ import annotations

import struct
import warnings
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pplx_async._core.memory import LocalSlice, Registration, RemoteRecord, RemoteSlice
from pplx_async.errors import ClosedResourceError, LeakWarning
from pplx_async.wire import RegionDescriptor, RemoteKey, encode_region

if TYPE_CHECKING:
    from pplx_async._typing import AccessName
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Peer

__all__ = ["ACCESS", "ElementView", "MemoryRegion", "RemoteRegion"]

# What peers may do, as bits: 1 read, 2 write.
ACCESS: dict[AccessName, int] = {"none": 0, "read": 1, "write": 2, "both": 3}

_Slice = TypeVar("_Slice", LocalSlice, RemoteSlice)


def _itemsize(dtype: Any) -> int:
    if isinstance(dtype, int):
        return dtype
    itemsize = getattr(dtype, "itemsize", None)
    if isinstance(itemsize, int):
        return itemsize
    if isinstance(dtype, str) and len(dtype) == 1:
        return struct.calcsize("=" + dtype)
    # NumPy's scalar types and its strings, such as numpy.float32 and "f4", are NumPy's to read.
    import numpy as np

    return int(np.dtype(dtype).itemsize)


class ElementView(Generic[_Slice]):
    """A region sliced in elements instead of bytes: ``region.view("f4")[10:20]``.

    Indexing gives slices of the region itself, so everything that takes one takes them.
    """

    def __init__(self, memory: _Slice, itemsize: int) -> None:
        if itemsize < 1:
            raise ValueError(f"an element has at least 1 B, not {itemsize}")
        if memory.nbytes % itemsize:
            raise ValueError(f"{memory.nbytes} B are no whole number of elements of {itemsize} B")
        self._memory: _Slice = memory
        self.itemsize = itemsize

    def __len__(self) -> int:
        nbytes: int = self._memory.nbytes
        return nbytes // self.itemsize

    def __getitem__(self, index: slice) -> _Slice:
        if not isinstance(index, slice):
            raise TypeError(f"slice a view, as in view[0:10], not with {type(index).__name__}")
        if index.step not in (None, 1):
            raise ValueError(f"a slice of a view is contiguous: no step ({index.step})")
        count = len(self)
        start = 0 if index.start is None else index.start
        stop = count if index.stop is None else index.stop
        start = start + count if start < 0 else start
        stop = stop + count if stop < 0 else stop
        if not 0 <= start <= stop <= count:
            raise IndexError(f"[{index.start}:{index.stop}] is not inside a view of {count} elements")
        part: _Slice = self._memory[start * self.itemsize : stop * self.itemsize]
        return part


class MemoryRegion(LocalSlice):
    """Local memory that the engine's NICs can reach; made by `TransferEngine.register`.

    Slicing is by bytes, free and bounds-checked: ``region[0:4096]``. A region is its own largest
    slice. It holds the buffer it was made from, until it is closed and no transfer uses it.

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
        self.access: AccessName = access

    @property
    def is_open(self) -> bool:
        """Whether transfers may use it."""
        return self.registration.is_open

    @property
    def register_seconds(self) -> float:
        """What registering it cost, on all NICs."""
        return self.registration.register_ns / 1e9

    def view(self, dtype: Any) -> ElementView[LocalSlice]:
        """Slice in elements: ``region.view("f4")[i:j]``.

        Parameters
        ----------
        dtype : int, str, or anything with ``itemsize``
            Bytes of an element, or its type as `struct` or NumPy name it.
        """
        return ElementView(self, _itemsize(dtype))

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
        if not self.is_open:
            raise ClosedResourceError("the region is closed")
        if self.access == "none":
            raise ValueError('the region was registered with access="none": peers may not reach it')
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
        await self._engine._revoke(self)

    async def close(self) -> None:
        """Wait for our own transfers that use it, then take it from the NICs. Idempotent.

        Peers that write here meanwhile get RemoteAccessError, or, on some providers, land a last
        write: `revoke` is the call that fences them.

        Raises
        ------
        UnreleasedMemory
            A transfer has ended without the provider letting go of its memory.

        Cancelling
        ----------
        The close goes on in the background; only the wait ends.
        """
        await self._engine._close_region(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        # No slice of it is left either: each holds the region.
        engine = getattr(self, "_engine", None)  # __init__ may have failed
        if engine is not None and self.is_open and engine._abandon_region(self.registration):
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
        super().__init__(record, 0, record.nbytes)
        self.peer = peer

    def view(self, dtype: Any) -> ElementView[RemoteSlice]:
        """Slice in elements; see `MemoryRegion.view`."""
        return ElementView(self, _itemsize(dtype))
