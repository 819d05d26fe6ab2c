# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A GPU through its driver alone, so that the tests' own libcuda can stand in for one."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Cuda", "CudaFailed", "Gpu", "Kernel", "Words"]

_PAGE = 4096
_LINE = 64
_MULTIPROCESSORS = 16
# Pinned memory stays: a stream of a repetition that has failed may still look there.
_pinned: list[mmap.mmap] = []
# Streams share so many queues of the GPU, 8 if nothing is said: who waits there holds up those that come behind.
_MOST_QUEUES = "32"


class CudaFailed(Exception):
    """The driver said no."""


class Cuda:
    """The driver."""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] = _MOST_QUEUES  # here, and in the processes that we start
        self._driver = ctypes.CDLL(library)
        self("cuInit", 0)

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call one of its functions; integers are 64 bits wide unless they say that they aren't."""
        wide = [ctypes.c_uint64(each) if isinstance(each, int) else each for each in arguments]
        result = getattr(self._driver, name)(*wide)
        if result:
            raise CudaFailed(f"{name} says {result}")

    def integer(self, name: str, *arguments: Any) -> int:
        """Call one whose first argument is where an int goes."""
        value = ctypes.c_int()
        self(name, ctypes.byref(value), *arguments)
        return value.value

    def pointer(self, name: str, *arguments: Any) -> int:
        """Call one whose first argument is where a pointer goes."""
        value = ctypes.c_uint64()
        self(name, ctypes.byref(value), *arguments)
        return value.value

    @property
    def gpus(self) -> int:
        """How many there are."""
        return self.integer("cuDeviceGetCount")

    @property
    def version(self) -> str:
        """Of CUDA, as far as the driver has it."""
        version = self.integer("cuDriverGetVersion")
        return f"{version // 1000}.{version % 1000 // 10}"

    def name(self, ordinal: int) -> str:
        """Say what a GPU is called."""
        text = ctypes.create_string_buffer(256)
        self("cuDeviceGetName", text, 256, ordinal)
        return text.value.decode()


class Words:
    """Numbers of 64 bits in pinned memory of the host, each on a cache line of its own."""

    def __init__(self, cuda: Cuda) -> None:
        memory = mmap.mmap(-1, _PAGE)
        _pinned.append(memory)
        self._numbers = np.frombuffer(memory, dtype=np.uint64)
        self._host = int(self._numbers.ctypes.data)
        cuda("cuMemHostRegister_v2", self._host, _PAGE, 3)  # for all GPUs, and mapped
        self._device = cuda.pointer("cuMemHostGetDevicePointer_v2", self._host, 0)

    def __getitem__(self, i: int) -> int:
        return int(self._numbers[i * _LINE // 8])

    def __setitem__(self, i: int, value: int) -> None:
        self._numbers[i * _LINE // 8] = value

    def address(self, i: int) -> int:
        """Say where one lies, for the host."""
        return self._host + i * _LINE

    def device_address(self, i: int) -> int:
        """Say the same for GPUs."""
        return self._device + i * _LINE


class Array:
    """Bytes on a GPU."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self._cuda = cuda
        self.nbytes = nbytes
        self.address = cuda.pointer("cuMemAlloc_v2", nbytes)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"version": 3, "shape": (self.nbytes,), "typestr": "|u1", "data": (self.address, False)}

    def set(self, content: NDArray[Any]) -> None:
        """Copy an array of the host's there."""
        self._cuda("cuMemcpyHtoD_v2", self.address, int(content.ctypes.data), content.nbytes)

    def get(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        """Copy a part of it to the host."""
        content = np.empty(nbytes, np.uint8)
        self._cuda("cuMemcpyDtoH_v2", int(content.ctypes.data), self.address + start, nbytes)
        return content


class Kernel:
    """One of ``kernels.cu``."""

    def __init__(self, cuda: Cuda, function: int) -> None:
        self._cuda, self._function = cuda, function

    def launch(self, blocks: int, threads: int, stream: int, *arguments: Any) -> None:
        """Queue it on a stream; arguments are of ctypes."""
        pointers = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(each) for each in arguments))
        shape = [ctypes.c_uint(n) for n in (blocks, 1, 1, threads, 1, 1, 0)]
        self._cuda("cuLaunchKernel", self._function, *shape, stream, pointers, None)


class Gpu:
    """One GPU: its primary context, which `use` makes this thread's, and the kernels of ``kernels.cu``."""

    def __init__(self, cuda: Cuda, ordinal: int, kernels: Path) -> None:
        self.cuda, self.ordinal = cuda, ordinal
        self._context = cuda.pointer("cuDevicePrimaryCtxRetain", ordinal)
        self.use()
        self.processors = cuda.integer("cuDeviceGetAttribute", _MULTIPROCESSORS, ordinal)
        self._module = cuda.pointer("cuModuleLoadData", ctypes.c_char_p(kernels.read_bytes()))
        self.store = self._kernel(b"bench_store")
        self.count = self._kernel(b"bench_count")
        self.compute = self._kernel(b"bench_compute")
        self.streams = [cuda.pointer("cuStreamCreate", 1) for _ in range(2)]  # they wait for no other one
        self._warm_up(Words(cuda))

    def _kernel(self, name: bytes) -> Kernel:
        return Kernel(self.cuda, self.cuda.pointer("cuModuleGetFunction", self._module, ctypes.c_char_p(name)))

    def _warm_up(self, words: Words) -> None:
        """Run each kernel once: at its first launch the driver loads it, and may wait for streams that wait for us."""
        stream, memory = self.streams[0], self.array(_PAGE)
        word, none, out = (ctypes.c_uint64(each) for each in (words.device_address(0), 0, memory.address))
        self.store.launch(1, 1, stream, word, none)
        self.count.launch(1, 1, stream, word, word, none)
        self.compute.launch(1, 1, stream, out, ctypes.c_uint32(0))
        self.synchronize(stream)

    def use(self) -> None:
        """Have calls of this thread be for it."""
        self.cuda("cuCtxSetCurrent", self._context)

    def array(self, nbytes: int) -> Array:
        """Allocate there."""
        return Array(self.cuda, nbytes)

    def synchronize(self, stream: int) -> None:
        """Wait until a stream has done what is queued on it."""
        self.cuda("cuStreamSynchronize", stream)
