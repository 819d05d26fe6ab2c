# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Where an engine meets the event loop, the interpreter's end, and fork.

The proxy thread rings an eventfd when the loop is about to sleep; the loop's reader drains the done
list. One wake-up settles everything that has finished.
"""

import asyncio
import atexit
import os

from pplx_async._core.engine import Engine, forget_after_fork, running_engines
from pplx_async._core.memory import Used

__all__ = ["attach", "detach", "idle", "room"]


def attach(loop: asyncio.AbstractEventLoop, core: Engine) -> None:
    """Drain the engine's done list from ``loop`` whenever it rings."""
    loop.add_reader(core.fd, core.on_readable)
    core.listen(True)


async def idle(loop: asyncio.AbstractEventLoop, used: Used) -> None:
    """Wait until no transfer uses it, those that start meanwhile included."""
    while used.uses:
        future: asyncio.Future[None] = loop.create_future()
        used.tell_idle(future)
        await future


async def room(core: Engine, limit: int) -> None:
    """Wait until at most ``limit`` requests are in flight."""
    future: asyncio.Future[None] = core.loop.create_future()
    core.tell_room(limit, future)
    await future


def detach(loop: asyncio.AbstractEventLoop, core: Engine) -> None:
    """Undo `attach`; a closed loop has forgotten it already."""
    if not loop.is_closed():
        loop.remove_reader(core.fd)
        core.listen(False)


def _stop_proxies() -> None:
    # Engines that were never closed: their threads may not run while libraries and memory go away.
    left_open = running_engines()
    for core in left_open:
        core.stop()
    for core in left_open:
        if core.on_left_open is not None:
            core.on_left_open()


atexit.register(_stop_proxies)
os.register_at_fork(after_in_child=forget_after_fork)
