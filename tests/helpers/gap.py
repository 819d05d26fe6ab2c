# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory with a page that isn't there yet: who reads it is held up, in the middle of a copy, until it comes.

By userfaultfd(2): for faults in user mode only, which takes no rights, or for those of system calls as well.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import functools
import mmap
import os
import platform
import struct

import numpy as np

_NUMBERS = {"x86_64": 323, "aarch64": 282}  # of the system call
_USER_MODE_ONLY = 1
_API, _REGISTER, _COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03  # ioctls
_VERSION = 0xAA
_MISSING = 1  # of the pages that are registered, those that are missing are told of
_PAGE = mmap.PAGESIZE


def _open(kernel: bool) -> int:
    """The descriptor; OSError says why there is none."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"not tried on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | (0 if kernel else _USER_MODE_ONLY))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    fcntl.ioctl(fd, _API, struct.pack("QQQ", _VERSION, 0, 0))
    return fd


@functools.cache
def refusal(kernel: bool = False) -> str | None:
    """Why nobody can be held up here, in the kernel or not, or None."""
    try:
        os.close(_open(kernel))
    except OSError as error:
        return f"no userfaultfd: {error}"
    return None


class Gap:
    """Private memory full of one byte, but for one page.

    Attributes
    ----------
    array : numpy.ndarray
        All of it; reading the page that is missing holds the reader up.
    """

    def __init__(self, nbytes: int, page: int, value: int, kernel: bool = False) -> None:
        self._memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.madvise(mmap.MADV_NOHUGEPAGE)  # or its neighbours would bring it along
        self.array = np.frombuffer(self._memory, dtype=np.uint8)
        self._value = value
        self._gap = self.array.ctypes.data + page * _PAGE
        self._fd = _open(kernel)
        self.array[: page * _PAGE] = value
        self.array[(page + 1) * _PAGE :] = value
        fcntl.ioctl(self._fd, _REGISTER, struct.pack("QQQQ", self._gap, _PAGE, _MISSING, 0))

    async def held_up(self) -> None:
        """Wait until somebody wants to read the page."""
        loop = asyncio.get_running_loop()
        readable = loop.create_future()
        loop.add_reader(self._fd, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(self._fd)
        (address,) = struct.unpack_from("Q", os.read(self._fd, 32), 16)
        assert address == self._gap

    def fill(self) -> None:
        """Let the page come; the reader goes on."""
        page = np.full(_PAGE, self._value, dtype=np.uint8)
        fcntl.ioctl(self._fd, _COPY, struct.pack("QQQQq", self._gap, page.ctypes.data, _PAGE, 0, 0))
