# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What may be registered: any memory that says where it lies, in the host or on a GPU.

Three protocols say so: `__cuda_array_interface__` (CuPy, Numba, torch), DLPack (torch, JAX, CuPy) and Python's own
buffers (NumPy, bytearray, mmap). None of those libraries is imported here.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pplx_async._typing import Buffer

__all__ = ["Memory", "take"]

#: Where host memory lies, among the ordinals of GPUs.
HOST = -1

# DLPack's kinds of device (dlpack.h, DLDeviceType).
_DL_CPU, _DL_CUDA, _DL_CUDA_HOST = 1, 2, 3


@dataclass(frozen=True)
class Memory:
    """Memory that was offered for registration.

    Attributes
    ----------
    owner : object
        Keeps it alive: the object with the buffer protocol, or what tells of a GPU's memory.
    nbytes : int
        Its size.
    readonly : bool
        Nobody may write there.
    address : int, optional
        Of its first byte, where the buffer protocol does not tell: None with that.
    device : int
        Ordinal of the GPU, -1 for memory of the host.
    """

    owner: Any
    nbytes: int
    readonly: bool
    address: int | None = None
    device: int = HOST


def take(buffer: Buffer) -> Memory:
    """Find out where an object's memory lies.

    Raises
    ------
    TypeError
        It doesn't say, by any of the three protocols.
    ValueError
        Not C-contiguous, empty, or on a device that is no GPU of CUDA.
    """
    # torch's tensors in the host have the attribute and raise AttributeError.
    interface = getattr(buffer, "__cuda_array_interface__", None)
    if interface is not None:
        return _of_interface(buffer, interface)
    if hasattr(buffer, "__dlpack_device__") and not _is_buffer(buffer):
        return _of_dlpack(buffer)
    try:
        view = memoryview(buffer)
    except TypeError:
        raise TypeError(
            "buffer must be memory that says where it lies: with the buffer protocol, such as a bytearray or a NumPy "
            "array, or on a GPU with __cuda_array_interface__ or DLPack, such as a CuPy array or a torch tensor; "
            f"not {type(buffer).__name__}"
        ) from None
    _check(view.nbytes, view.c_contiguous)
    return Memory(buffer, view.nbytes, view.readonly)


def _is_buffer(buffer: object) -> bool:
    try:
        memoryview(buffer)  # type: ignore[arg-type]
    except (TypeError, BufferError):
        return False
    return True


def _check(nbytes: int, contiguous: bool) -> None:
    if nbytes == 0:
        raise ValueError("there is nothing to register: the buffer is empty")
    if not contiguous:
        raise ValueError("the buffer is not C-contiguous: copy it first, or register the array it is a view of")


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...] | None, itemsize: int) -> bool:
    """Say whether elements lie one behind the other, the last index first; strides count as itemsize does."""
    if strides is None or 0 in shape:
        return True
    expected = itemsize
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


def _of_interface(buffer: Any, interface: dict[str, Any]) -> Memory:
    """CUDA Array Interface, version 2 and 3 (Numba's documentation has it)."""
    shape = tuple(interface["shape"])
    itemsize = int(str(interface["typestr"])[2:])
    address, readonly = interface["data"]
    if interface.get("mask") is not None:
        raise ValueError("the array has a mask: register the array of its data")
    nbytes = math.prod(shape) * itemsize
    _check(nbytes, _is_contiguous(shape, interface.get("strides"), itemsize))
    return Memory(buffer, nbytes, bool(readonly), int(address), _device_of(buffer))


def _device_of(buffer: Any) -> int:
    """Which GPU, where that is told; the provider asks the driver anyway, and an address says it, too."""
    device = getattr(buffer, "device", None)
    index = getattr(device, "id", getattr(device, "index", None))  # CuPy's; torch's
    return index if isinstance(index, int) and index >= 0 else 0


# ---- DLPack ----


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),  # in elements; NULL: contiguous
        ("byte_offset", ctypes.c_uint64),
    )


_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype = ctypes.c_void_p
_pointer_of.argtypes = (ctypes.py_object, ctypes.c_char_p)


def _of_dlpack(buffer: Any) -> Memory:
    """Of a capsule that is never consumed: as long as it lives, so does the memory."""
    kind, _ = buffer.__dlpack_device__()
    if kind not in (_DL_CPU, _DL_CUDA, _DL_CUDA_HOST):
        raise ValueError(f"memory of a device that CUDA doesn't know: DLPack's number {int(kind)} for it")
    # -1: what its streams still do is the caller's to order, as with every other write.
    capsule = buffer.__dlpack__(stream=-1) if kind == _DL_CUDA else buffer.__dlpack__()
    tensor = _Tensor.from_address(_pointer_of(capsule, b"dltensor"))
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    bits = tensor.bits * tensor.lanes
    if bits % 8:
        raise ValueError(f"elements of {bits} bits are not whole bytes")
    nbytes = math.prod(shape) * (bits // 8)
    _check(nbytes, _is_contiguous(shape, strides, 1))
    device = int(tensor.device_id) if kind == _DL_CUDA else HOST
    return Memory(capsule, nbytes, False, int(tensor.data) + int(tensor.byte_offset), device)
