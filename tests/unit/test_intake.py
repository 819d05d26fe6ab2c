# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What is taken for memory, and where it lies: by three protocols, of libraries that are not imported."""

import array
import ctypes
import mmap

import numpy as np
import pytest

from helpers.require import find_fabric
from pplx_async import RegistrationError, TransferEngine
from pplx_async._intake import HOST, take

ADDRESS = 0x7F0000000000


class Interface:
    """What CuPy's arrays tell."""

    def __init__(self, shape=(4, 8), typestr="<f4", readonly=False, device=None, **more):
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": typestr,
            "data": (ADDRESS, readonly),
        } | more
        self.device = device


class Named:
    def __init__(self, **values):
        self.__dict__.update(values)


class Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", ctypes.c_int32 * 2),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class Capsule:
    """What JAX's arrays tell: DLPack and nothing else."""

    def __init__(self, kind=2, shape=(4, 8), strides=None, bits=32, lanes=1, offset=0, ordinal=1):
        self.asked, self.capsules = [], []
        self.kind = kind
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = (ctypes.c_int64 * len(strides))(*strides) if strides else None
        self._tensor = Tensor(ADDRESS, (kind, ordinal), len(shape), 2, bits, lanes, self._shape, None, offset)
        if self._strides:
            self._tensor.strides = ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64))

    def __dlpack_device__(self):
        return self.kind, 1

    def __dlpack__(self, **options):
        self.asked.append(options)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self.capsules.append(new(ctypes.addressof(self._tensor), b"dltensor", None))
        return self.capsules[-1]

    def given(self):
        (capsule,) = self.capsules
        return capsule


def facts(buffer):
    memory = take(buffer)
    return memory.nbytes, memory.readonly, memory.address, memory.device


@pytest.mark.parametrize(
    ("buffer", "nbytes", "readonly"),
    [
        (bytearray(10), 10, False),
        (b"0123456789", 10, True),
        (array.array("d", [1, 2]), 16, False),
        (np.zeros((3, 4), "f4"), 48, False),
        (mmap.mmap(-1, 4096), 4096, False),
        (np.float64(1), 8, True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_buffers_say_where_they_lie_when_they_are_asked(buffer, nbytes, readonly):
    assert facts(buffer) == (nbytes, readonly, None, HOST)


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (Interface(), (128, False, ADDRESS, 0)),
        (Interface(readonly=True), (128, True, ADDRESS, 0)),
        (Interface(device=Named(id=3)), (128, False, ADDRESS, 3)),
        (Interface(device=Named(index=2)), (128, False, ADDRESS, 2)),
        (Interface(device=Named(id=-1)), (128, False, ADDRESS, 0)),
        (Interface(strides=(32, 4)), (128, False, ADDRESS, 0)),
        (Interface(shape=(1, 8), strides=(999, 4)), (32, False, ADDRESS, 0)),
        (Interface(shape=()), (4, False, ADDRESS, 0)),
        (Capsule(), (128, False, ADDRESS, 1)),
        (Capsule(bits=4, lanes=2, shape=(6,)), (6, False, ADDRESS, 1)),
        (Capsule(strides=(8, 1)), (128, False, ADDRESS, 1)),
        (Capsule(offset=64), (128, False, ADDRESS + 64, 1)),
        (Capsule(kind=1), (128, False, ADDRESS, HOST)),
        (Capsule(kind=3), (128, False, ADDRESS, HOST)),
    ],
)
def test_memory_of_a_gpu_says_where_it_lies(offered, expected):
    assert facts(offered) == expected


@pytest.mark.parametrize(
    ("offered", "error", "message"),
    [
        (Interface(strides=(4, 16)), ValueError, "not C-contiguous"),
        (Interface(shape=(0, 8)), ValueError, "empty"),
        (Interface(mask=Named()), ValueError, "mask"),
        (Capsule(strides=(1, 4)), ValueError, "not C-contiguous"),
        (Capsule(shape=(0,)), ValueError, "empty"),
        (Capsule(bits=4, shape=(2,)), ValueError, "4 bits"),
        (Capsule(kind=10), ValueError, "CUDA doesn't know: DLPack's number 10"),
        (np.zeros((4, 4))[:, 1], ValueError, "not C-contiguous"),
        (bytearray(), ValueError, "empty"),
        ("text", TypeError, "not str"),
        (None, TypeError, "not NoneType"),
        ([1, 2], TypeError, "not list"),
    ],
)
def test_what_cannot_be_registered_says_why(offered, error, message):
    with pytest.raises(error, match=message):
        take(offered)


def test_a_tensor_is_asked_for_without_waiting_for_its_stream():
    """What its streams still do is the caller's to order, as with every write."""
    tensor = Capsule()
    take(tensor)
    assert tensor.asked == [{"stream": -1}]


def test_what_tells_of_memory_is_kept_as_long_as_it_is_registered():
    offered = Interface()
    assert take(offered).owner is offered
    tensor = Capsule()
    memory = take(tensor)
    # The capsule, unconsumed: its destructor gives the tensor back, when nobody holds it any more.
    assert type(memory.owner).__name__ == "PyCapsule"
    assert tensor.given() is memory.owner


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["loopback", "tcp"])
async def test_a_fabric_that_reaches_no_gpu_says_which_one_would(name):
    if (missing := find_fabric(name).missing) is not None:
        pytest.skip(missing)
    async with TransferEngine(fabric=name) as engine:
        with pytest.raises(RegistrationError, match='fabric="ipc" reaches it inside a host'):
            await engine.register(Interface())
