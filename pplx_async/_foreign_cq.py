# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Completion queues of other bindings as sources of a `CompletionQueue`: pyverbs, and the wheel ibverbs.

Through their Python objects, and an fd: neither says how its objects lie in memory, and that differs
between versions. Only pyverbs' fd takes a look there, since nothing in it tells.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
from collections import deque
from typing import Any

from pplx_async.errors import ClosedResourceError

__all__ = ["ForeignQueue", "find_fd"]

_EVENTS = "anon_inode:[infinibandevent]"  # what the kernel calls the fd of a completion channel


class ForeignQueue:
    """A queue and the channel that it was made with. Both stay their owner's, who closes them.

    Parameters
    ----------
    cq : pyverbs.cq.CQ or ibverbs.CQ
        The queue.
    channel : pyverbs.cq.CompChannel or ibverbs.CompChannel, optional
        Its channel, that no other queue has; by default as the queue tells.
    fd : int, optional
        The channel's, where it is known.
    """

    def __init__(self, cq: Any, channel: Any = None, fd: int | None = None) -> None:
        self._is_pyverbs = _is_of(cq, "pyverbs")
        if not all(hasattr(cq, name) for name in ("poll", "req_notify", "ack_events")):
            raise TypeError(f"a completion queue of pyverbs or ibverbs is needed, not {type(cq).__name__}")
        if channel is None:
            channel = getattr(cq, "comp_channel" if self._is_pyverbs else "channel", None)
        if channel is None:
            raise ValueError("the completion queue has no completion channel: make it with one")
        if not hasattr(channel, "get_cq_event"):
            raise TypeError(f"a completion channel of pyverbs or ibverbs is needed, not {type(channel).__name__}")
        if fd is None:
            fd = find_fd(cq, channel) if self._is_pyverbs else channel.fd
        self._cq, self._channel, self._fd = cq, channel, int(fd)
        self._kept: deque[Any] = deque()
        self._event = select.poll()
        self._event.register(self._fd, select.POLLIN)
        self.is_open = True

    @property
    def fd(self) -> int:
        """What turns readable after `arm`."""
        return self._fd

    def poll(self, most: int) -> list[Any]:
        """Take up to ``most`` completions, as the library's own objects."""
        self._require()
        taken = [self._kept.popleft() for _ in range(min(most, len(self._kept)))]
        if len(taken) < most:
            taken += self._take(most - len(taken))
        return taken

    def arm(self) -> bool:
        """Take the events that were, ask for the next, and look once more for what came before that."""
        self._require()
        if self._kept:
            return False
        while self._event.poll(0):  # there is one, so that getting it doesn't block
            if self._is_pyverbs:
                self._channel.get_cq_event(self._cq)
            else:
                self._channel.get_cq_event()
            self._cq.ack_events(1)
        self._cq.req_notify()
        self._kept.extend(self._take(1))
        return not self._kept

    def close(self) -> None:
        """Look at it no more."""
        self.is_open = False
        self._kept.clear()

    def _take(self, most: int) -> list[Any]:
        taken = self._cq.poll(most)
        return list(taken[1] if self._is_pyverbs else taken)  # pyverbs gives the number before them

    def _require(self) -> None:
        if not self.is_open:
            raise ClosedResourceError("the completion queue is closed")


def find_fd(cq: Any, channel: Any) -> int:
    """Find the fd of a pyverbs channel.

    Its object holds a pointer to ``struct ibv_comp_channel {context, fd, refcount}``, and the queue's one
    to ``struct ibv_cq {context, channel, ...}``, which are public. Where among the words of the objects
    they are, the version decides; but only the right ones lead to each other, to one context, and to an
    fd that the kernel calls by this name. What isn't memory of ours is not touched: the kernel says so.
    """
    try:
        memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"the channel's fd can't be found ({error}): name it, fd=...") from error
    try:
        channels = _words(channel)
        for pointer in _words(cq):
            context, its_channel = _read(memory, pointer, "QQ") or (0, 0)
            if not context or its_channel not in channels:
                continue
            same, fd = _read(memory, its_channel, "Qi") or (0, -1)
            if same == context and _is_event_fd(fd):
                return fd
    finally:
        os.close(memory)
    raise ValueError("the channel's fd can't be found, or the queue was made with another channel: name it, fd=...")


def _words(thing: Any) -> set[int]:
    size = type(thing).__basicsize__ // 8 * 8
    return set(struct.unpack(f"{size // 8}Q", ctypes.string_at(id(thing), size))) - {0}


def _read(memory: int, address: int, layout: str) -> tuple[int, ...] | None:
    try:
        return struct.unpack(layout, os.pread(memory, struct.calcsize(layout), address))
    except (OSError, OverflowError, struct.error):
        return None


def _is_event_fd(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == _EVENTS
    except OSError:
        return False


def _is_of(thing: Any, package: str) -> bool:
    return any(cls.__module__.partition(".")[0] == package for cls in type(thing).__mro__)
