# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of work that gates and doorbells are queued on, whoever's they are."""

from __future__ import annotations

import abc
import os
import sys
import warnings
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

from pplx_async._core.words import cuda_identify

if TYPE_CHECKING:
    from pplx_async._core.gates import BellCore, GateCore
    from pplx_async._core.words import Lane, Page, Words

__all__ = ["MOST_QUEUES", "QUEUES", "Stream", "Streamlike", "check_queues", "find", "read_queues"]

#: How many queues of a GPU the streams of a process share: this variable, a number up to `MOST_QUEUES`.
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
MOST_QUEUES = 32
_USUAL_QUEUES = 8

# Of this process: CUDA reads the variable once, too. None: no gate was queued yet; more than any: somebody was warned.
_queues: int | None = None

#: What is taken for a stream; `find` tells them apart.
Streamlike = Any


class Stream(abc.ABC):
    """What the engine needs of one.

    Attributes
    ----------
    key : hashable
        Tells it from every other one that there is.
    label : str
        How errors call it.
    id : int
        Tells it from others that had its key before, or get it; 0: it can't be told.
    context : int
        Where CUDA has it; 0: it is the host's.
    """

    key: Hashable
    label: str
    id: int = 0
    context: int = 0

    @abc.abstractmethod
    def is_capturing(self) -> bool:
        """Whether what is queued now becomes part of a graph."""

    @abc.abstractmethod
    def push(self, page: Page, word: GateCore | BellCore) -> None:
        """Queue the steps of a word, whose cell is in this page: all of them, or none and raise."""


class CudaStream(Stream):
    """One of CUDA's as it is now, by its handle, whichever library made it.

    Handles of default streams are the same in all contexts, and that of one which was destroyed is given out again.
    """

    def __init__(self, handle: int, library: str | None) -> None:
        self.context, self.id, self._capturing = cuda_identify(library, handle)
        self.key = ("cuda", self.context, handle or 1)  # 0 and 1 are the same: the legacy default stream
        self.label = f"CUDA stream {handle:#x}"
        self._handle = handle
        self._library = library

    def is_capturing(self) -> bool:
        """Whether what is queued now becomes part of a graph."""
        return self._capturing

    def push(self, page: Page, word: GateCore | BellCore) -> None:
        """Queue the steps of a word."""
        word.hold()
        page.pin(self._library, self._handle)
        word.queue(self._library, self._handle)


def _handle_of(stream: Any) -> int | None:
    if isinstance(stream, int) and not isinstance(stream, bool):
        return stream
    protocol = getattr(stream, "__cuda_stream__", None)  # of cuda.core: (0, handle)
    if protocol is not None:
        _, handle = protocol() if callable(protocol) else protocol
        return int(handle)
    for name in ("cuda_stream", "ptr"):  # torch's; CuPy's
        handle = getattr(stream, name, None)
        if isinstance(handle, int) and not isinstance(handle, bool):
            return handle
    return None


def find(stream: Streamlike, library: str | None) -> Stream:
    """Find out whose stream it is; `library` is the libcuda to use for it, None the system's.

    Raises
    ------
    TypeError, ValueError
        It is none.
    """
    ours = getattr(stream, "__pplx_stream__", None)
    if ours is not None:
        return ours()  # type: ignore[no-any-return]
    handle = _handle_of(stream)
    if handle is None:
        raise TypeError(
            "a stream is CuPy's or torch's, has __cuda_stream__, is a handle (int), or a testing.HostStream, "
            f"not {type(stream).__name__}"
        )
    if not 0 <= handle < 1 << 64:
        raise ValueError(f"a stream's handle is not negative and has 64 bits, and {handle} is none")
    return CudaStream(handle, library)


def read_queues(environ: Mapping[str, str]) -> int:
    """Say how many queues there are; so many streams that wait in gates leave none for the others."""
    try:
        return min(max(int(environ.get(QUEUES, "")), 1), MOST_QUEUES)
    except ValueError:
        return _USUAL_QUEUES


def check_queues(words: Words, lane: Lane, stacklevel: int) -> None:
    """Warn, once a process, if a gate on this lane is to hold the last stream of a GPU that may be held."""
    global _queues
    if _queues is None:
        _queues = read_queues(os.environ)
    if not words.fills(lane, _queues):
        return
    queues, _queues = _queues, sys.maxsize
    advice = f"set {QUEUES}={MOST_QUEUES} before CUDA is initialised, or let" if queues < MOST_QUEUES else "let"
    warnings.warn(
        f"with this gate {queues} streams of a GPU wait in gates, or will, and the process has {queues} queues there: "
        "while all of them wait no other stream runs, nor do those of the engine, which may be what opens them. "
        f"Remedy: {advice} fewer wait at once",
        RuntimeWarning,
        stacklevel=stacklevel + 1,
    )
