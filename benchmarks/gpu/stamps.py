# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""When a word of the host's got the values 1, 2, ...: seen by a thread that polls in C."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from pathlib import Path

__all__ = ["Stamps"]


class Stamps:
    """Polls for the values 1 to ``count``, from now until they have come or it is stopped."""

    def __init__(self, library: Path, address: int, count: int) -> None:
        poll = ctypes.CDLL(str(library)).gpu_stamps
        poll.restype = ctypes.c_uint64
        self._stop = ctypes.c_uint32()
        self._stamps = (ctypes.c_uint64 * count)()
        self._seen = 0
        arguments = (ctypes.c_void_p(address), ctypes.c_uint64(count), self._stamps, ctypes.byref(self._stop))
        self._thread = threading.Thread(target=self._run, args=(poll, *arguments), daemon=True)
        self._thread.start()

    def _run(self, poll, *arguments) -> None:
        self._seen = poll(*arguments)

    async def wait(self) -> list[int]:
        """Wait until all have come; return when, in nanoseconds of the monotonic clock."""
        await asyncio.to_thread(self._thread.join)
        return list(self._stamps[: self._seen])

    def stop(self) -> None:
        """Wait no more."""
        self._stop.value = 1
        self._thread.join()
