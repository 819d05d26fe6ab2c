# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory of a GPU through the driver alone, real or the tests' own, without CuPy."""

from __future__ import annotations

import contextlib
import ctypes
import os
import weakref
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["CHUNK", "Adopted", "Device", "DeviceArray", "DeviceGraph", "DeviceStream", "Flushing", "VirtualArray"]

_POINTER, _SIZE, _FLAGS = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_ulonglong

CHUNK = 2 << 20  # what the driver makes physical memory in units of


class Device:
    """A GPU's primary context, current in this thread for good."""

    def __init__(self, ordinal: int = 0, library: str | None = None) -> None:
        self.driver = ctypes.CDLL(library or os.environ.get("PPLX_ASYNC_CUDA_LIBRARY", "libcuda.so.1"))
        self.ordinal = ordinal
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuInit", 0)
        self.call("cuDeviceGet", ctypes.byref(device), ordinal)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.call("cuCtxPushCurrent_v2", context)
        self._context = context

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make its context the current one where another GPU's is."""
        self.call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @contextlib.contextmanager
    def own_context(self) -> Iterator[None]:
        """Make another context of this GPU the current one, which ends with the block."""
        context = ctypes.c_void_p()
        self.call("cuCtxCreate_v2", ctypes.byref(context), 0, self.ordinal)
        try:
            yield
        finally:
            self.call("cuCtxDestroy_v2", context)

    def call(self, name: str, *arguments: Any) -> None:
        result = getattr(self.driver, name)(*arguments)
        if result:
            raise RuntimeError(f"{name} says {result}")

    def array(self, content: bytes) -> DeviceArray:
        return DeviceArray(self, content)

    def zeros(self, nbytes: int) -> DeviceArray:
        return DeviceArray(self, bytes(nbytes))

    def virtual(self, nbytes: int, **options: Any) -> VirtualArray:
        return VirtualArray(self, nbytes, **options)

    def reserve(self, nbytes: int) -> int:
        """Addresses, with nothing behind them."""
        start = _POINTER()
        self.call("cuMemAddressReserve", ctypes.byref(start), _SIZE(nbytes), _SIZE(0), _POINTER(0), _FLAGS(0))
        return start.value

    def unreserve(self, start: int, mapped: int, reserved: int) -> None:
        """Give them back, and what is mapped at their start."""
        self.call("cuMemUnmap", _POINTER(start), _SIZE(mapped))
        self.call("cuMemAddressFree", _POINTER(start), _SIZE(reserved))

    def physical(self, nbytes: int, handle_types: int = 1) -> ctypes.c_uint64:
        """Memory without an address, of this GPU."""
        handle, properties = ctypes.c_uint64(), _Properties(1, handle_types, 1, self.ordinal)
        self.call("cuMemCreate", ctypes.byref(handle), _SIZE(nbytes), ctypes.byref(properties), _FLAGS(0))
        return handle

    def give_access(self, start: int, nbytes: int) -> None:
        """Let this GPU's work read and write what is mapped there."""
        access = (ctypes.c_int * 3)(1, self.ordinal, 3)
        self.call("cuMemSetAccess", _POINTER(start), _SIZE(nbytes), ctypes.byref(access), _SIZE(1))


class Adopted:
    """Memory of the host that the tests' libcuda takes for a device's: the array shows what is there."""

    def __init__(self, array: Any, library: str) -> None:
        self._driver = ctypes.CDLL(library)
        self._array = array
        self._driver.cuInit(0)
        pointer = _POINTER()
        memory, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        assert self._driver.fake_cuda_adopt(ctypes.byref(pointer), memory, size) == 0
        self.address = pointer.value
        weakref.finalize(self, self._driver.fake_cuda_forget, pointer)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self._array.nbytes,), "typestr": "|u1", "data": (self.address, False)}


class DeviceArray:
    """Bytes on a GPU."""

    def __init__(self, device: Device, content: bytes) -> None:
        self._device = device
        self.nbytes = len(content)
        pointer = _POINTER()
        device.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(self.nbytes))
        self.address = pointer.value
        self.set(content)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False), "strides": None}

    def set(self, content: bytes, at: int = 0) -> None:
        self._device.call("cuMemcpyHtoD_v2", _POINTER(self.address + at), content, ctypes.c_size_t(len(content)))

    def get(self) -> bytes:
        content = ctypes.create_string_buffer(self.nbytes)
        self._device.call("cuMemcpyDtoH_v2", content, _POINTER(self.address), ctypes.c_size_t(self.nbytes))
        return content.raw

    def free(self) -> None:
        self._device.call("cuMemFree_v2", _POINTER(self.address))


class _Properties(ctypes.Structure):
    """The driver's CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location_type", ctypes.c_int),
        ("location_id", ctypes.c_int),
        ("security", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class VirtualArray(DeviceArray):
    """Bytes on a GPU in a virtual mapping, as torch's expandable_segments make them: in chunks, from `at` on.

    Parameters
    ----------
    chunks : list of int, optional
        The chunks' sizes; as many as it takes of one of `CHUNK` each by default.
    owners : list of Device, optional
        On whose GPU each chunk lies; on that of `device`, whose work reaches all of them, by default.
    handle_types : int
        By what other processes can open them; 1: by a descriptor.
    """

    def __init__(
        self,
        device: Device,
        nbytes: int,
        *,
        at: int = 4096,
        chunks: list[int] | None = None,
        owners: list[Device] | None = None,
        handle_types: int = 1,
        reserved: int | None = None,
    ) -> None:
        self._device, self.nbytes = device, nbytes
        chunks = chunks or [CHUNK] * -(-(at + nbytes) // CHUNK)
        self._mapped = sum(chunks)
        self.reserved = reserved or self._mapped + CHUNK
        self.start = device.reserve(self.reserved)
        self.address = self.start + at
        end = self.start
        for size, owner in zip(chunks, owners or [device] * len(chunks), strict=True):
            handle = owner.physical(size, handle_types)
            device.call("cuMemMap", _POINTER(end), _SIZE(size), _SIZE(0), handle, _FLAGS(0))
            device.call("cuMemRelease", handle)
            end += size
        device.give_access(self.start, self._mapped)

    def free(self) -> None:
        self._device.unreserve(self.start, self._mapped, self.reserved)


class DeviceStream:
    """A stream that the driver made, as CuPy's and torch's are; its graphs, too."""

    def __init__(self, device: Device) -> None:
        self._device = device
        handle = ctypes.c_void_p()
        device.call("cuStreamCreate", ctypes.byref(handle), 1)
        self.ptr = int(handle.value or 0)

    @property
    def handle(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.ptr)

    def copy(self, target: DeviceArray, source: DeviceArray) -> None:
        """Queue a copy, as a stand-in for a kernel."""
        self._device.call(
            "cuMemcpyAsync",
            _POINTER(target.address),
            _POINTER(source.address),
            ctypes.c_size_t(source.nbytes),
            self.handle,
        )

    @property
    def is_idle(self) -> bool:
        result = self._device.driver.cuStreamQuery(self.handle)
        assert result in (0, 600), result
        return result == 0

    def synchronize(self) -> None:
        self._device.call("cuStreamSynchronize", self.handle)

    @contextlib.contextmanager
    def capture(self) -> Iterator[DeviceGraph]:
        """Have a graph capture what is queued in this block."""
        self._device.call("cuStreamBeginCapture_v2", self.handle, 0)
        graph = DeviceGraph(self._device, self)
        try:
            yield graph
        finally:
            captured, executable = ctypes.c_void_p(), ctypes.c_void_p()
            self._device.call("cuStreamEndCapture", self.handle, ctypes.byref(captured))
            self._device.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), captured, ctypes.c_ulonglong(0))
            self._device.call("cuGraphDestroy", captured)
            graph.executable = executable

    def close(self) -> None:
        self._device.call("cuStreamDestroy_v2", self.handle)


class DeviceGraph:
    """What a `DeviceStream` captured."""

    def __init__(self, device: Device, stream: DeviceStream) -> None:
        self._device, self._stream = device, stream
        self.executable = ctypes.c_void_p()

    def launch(self) -> None:
        self._device.call("cuGraphLaunch", self.executable, self._stream.handle)


class Flushing:
    """What the tests' libcuda does about writes of NICs, and has been asked to."""

    def __init__(self, library: str, setenv: Callable[[str, str], None]) -> None:
        self._setenv = setenv
        self._calls = self._waits = 0
        self.driver = ctypes.CDLL(library)

    def behaves(self, ordering: int, flush: int, words: bool = True) -> None:
        self._setenv("FAKE_CUDA_ORDERING", str(ordering))
        self._setenv("FAKE_CUDA_FLUSH", str(flush))
        self._setenv("FAKE_CUDA_WORDS", str(int(words)))
        self._calls, self._waits = self.driver.fake_cuda_flushes(), self.driver.fake_cuda_flushing_waits()

    @property
    def calls(self) -> int:
        return int(self.driver.fake_cuda_flushes()) - self._calls

    @property
    def waits(self) -> int:
        return int(self.driver.fake_cuda_flushing_waits()) - self._waits
