# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""How the regions and counters of an engine end.

Peers have their descriptors. So what ends is taken from the NICs, and then each peer is asked for a
fence (`wire.Fence`): its answer says that it has nothing under way there any more. Only after that is
memory given back, and the id of a counter used again. One who does not answer a revoke is cut off.
"""

from __future__ import annotations

import asyncio
import warnings
from typing import TYPE_CHECKING

from pplx_async import _loop
from pplx_async.errors import CleanupWarning, ClosedResourceError, UnreleasedMemory

if TYPE_CHECKING:
    from pplx_async._core.memory import Registration
    from pplx_async._core.transfer import Transfer
    from pplx_async.counters import ImmCounter
    from pplx_async.engine import TransferEngine
    from pplx_async.memory import MemoryRegion
    from pplx_async.peer import Peer

__all__ = ["abandon_region", "close_counters", "close_region", "deregister_soon", "revoke_region"]

# Seconds between attempts to deregister what a peer has not let go of.
_DEREGISTER_AGAIN = 0.02


def deregister_soon(engine: TransferEngine, registration: Registration) -> None:
    """Take it from the NICs soon, then give the buffer back; what can't be taken from them keeps its buffer."""

    def let_go(deregistering: Transfer) -> None:
        if not deregistering.cancelled() and deregistering.exception() is None:
            registration.let_go()
        else:
            warnings.warn("memory could not be deregistered and stays allocated", CleanupWarning, stacklevel=1)

    engine._core.deregister(registration).add_done_callback(let_go)


def _check_close(engine: TransferEngine, region: MemoryRegion) -> bool:
    """Return whether there is anything to close; an engine takes its regions with it."""
    engine._check_here()
    if engine._core.running or region._ending is not None:
        return True
    if region.is_open:
        raise ClosedResourceError("the engine is closed, and a NIC may still know this region of it")
    return False


async def close_region(engine: TransferEngine, region: MemoryRegion) -> None:
    """Close it, once nothing of ours uses it."""
    if not _check_close(engine, region):
        return
    if region._ending is None:
        region.registration.is_open = False
        region._ending = engine._spawn(_end_region(engine, region.registration, region._fence_id))
    await engine._wait(region._ending)


async def revoke_region(engine: TransferEngine, region: MemoryRegion) -> None:
    """Close it, and return when no peer can be in the middle of a write any more."""
    if not _check_close(engine, region):
        return
    if not region._revoking:
        region._revoking = True
        region.registration.is_open = False
        region._ending = engine._spawn(_end_revoked(engine, region.registration, region._id, region._ending))
    assert region._ending is not None
    await engine._wait(region._ending)


async def _end_region(engine: TransferEngine, registration: Registration, region: int | None) -> None:
    """Take it from the NICs after its last use of ours, then give the buffer back."""
    await _idle(engine, registration)
    await _deregister(engine, registration)
    if region is None:
        registration.let_go()
    else:
        # A peer that has the descriptor may be in the middle of a write: the buffer is held until
        # that has ended, which we don't wait for without limit.
        await asyncio.wait(
            {engine._spawn(_let_go_later(engine, registration, region))}, timeout=engine.options.revoke_timeout
        )


async def _deregister(engine: TransferEngine, registration: Registration) -> None:
    """Take it from the NICs; a peer that has to let go before that has `drain_timeout` to do so."""
    deadline = engine._loop.time() + engine.options.drain_timeout
    while True:
        try:
            await engine._core.deregister(registration)
            return
        except UnreleasedMemory:
            if engine._loop.time() >= deadline:
                raise
        await asyncio.sleep(_DEREGISTER_AGAIN)


async def _let_go_later(engine: TransferEngine, registration: Registration, region: int) -> None:
    await asyncio.gather(*(_fence(engine, peer, (region,), ()) for peer in engine._peers))
    registration.let_go()


async def _end_revoked(
    engine: TransferEngine, registration: Registration, region: int, closing: asyncio.Task[None] | None
) -> None:
    asked: set[Peer] = set()
    if closing is not None:
        await closing
    # Twice: who connects while the key is still valid may have used it.
    for withdrawn in (closing is not None, True):
        while late := engine._peers - asked:
            asked |= late
            await asyncio.gather(*(_fence_or_cut_off(engine, peer, (region,)) for peer in late))
        if not withdrawn:
            await _idle(engine, registration)
            await _deregister(engine, registration)
    registration.let_go()


async def _fence(engine: TransferEngine, peer: Peer, regions: tuple[int, ...], counters: tuple[int, ...]) -> None:
    """Return when a peer has nothing under way there any more, or is gone; however long it takes."""
    await peer._met.wait()
    if peer.is_open:
        await peer._fence(regions, counters)
    if not peer.is_open:
        await peer._gone.wait()


async def _fence_or_cut_off(engine: TransferEngine, peer: Peer, regions: tuple[int, ...]) -> None:
    timeout = engine.options.revoke_timeout
    try:
        async with asyncio.timeout(timeout):
            return await _fence(engine, peer, regions, ())
    except TimeoutError:
        engine._complain("peer %s did not confirm a revoke in %s s and is cut off", peer.label, timeout)
    peer._lose(f"cut off: it did not confirm a revoke in {timeout} s")
    try:
        async with asyncio.timeout(engine.options.drain_timeout):
            await peer._gone.wait()
    except TimeoutError:
        raise UnreleasedMemory(
            f"peer {peer.label} did not confirm the revoke and its endpoint did not close in "
            f"{engine.options.drain_timeout} s: it may still write"
        ) from None


async def _idle(engine: TransferEngine, used: Registration) -> None:
    """Wait until no transfer uses it; but not for what a provider may never let go."""
    while True:
        try:
            async with asyncio.timeout(engine.options.drain_timeout):
                return await _loop.idle(engine._loop, used)
        except TimeoutError:
            if used.stuck:
                raise UnreleasedMemory(
                    f"closing a region of {used.nbytes} B: {used.stuck} transfer(s) ended, but the provider still "
                    f"holds their memory after {engine.options.drain_timeout} s; it stays registered and alive"
                ) from None


def abandon_region(engine: TransferEngine, registration: Registration, region: int | None) -> bool:
    """Deregister a region that was garbage-collected open; return whether that is worth a warning."""
    if engine._closing or not engine._core.running or engine._loop.is_closed():
        return False
    registration.is_open = False
    # The collector may run on any thread; the loop's is ours.
    engine._loop.call_soon_threadsafe(lambda: engine._spawn(_end_region(engine, registration, region)))
    return True


async def close_counters(engine: TransferEngine, *counters: ImmCounter) -> None:
    """Close them; their ids are used again when no peer can count under them."""
    closable = tuple(counter for counter in counters if counter.is_open)
    if not closable:
        return
    engine._check_here()
    closing = engine._spawn(_end_counters(engine, closable))
    engine._spawn(_recycle(engine, closable, closing))
    await engine._wait(closing)


async def _end_counters(engine: TransferEngine, counters: tuple[ImmCounter, ...]) -> None:
    for ending in [engine._core.counter_close(counter) for counter in counters]:
        await ending


async def _recycle(engine: TransferEngine, counters: tuple[ImmCounter, ...], closing: asyncio.Task[None]) -> None:
    """Use the ids again once nobody counts under them here, and no peer can."""
    await closing
    keys = tuple(counter._key for counter in counters)
    await asyncio.gather(*(_fence(engine, peer, (), keys) for peer in engine._peers))
    # A peer's last immediate may have been acknowledged and still be unread in our queue.
    await engine._core.count_arrived()
    for counter in counters:
        engine._counters.pop(counter.id, None)
        engine._core.counter_recycle(counter.id)
