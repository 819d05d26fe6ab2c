# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Memory that is not released: each way to hear of it says what of how many bytes, with whom, and what to do.

What other failures say is checked where they are provoked: `PeerLost` in test_death.py and `RemoteAccessError` in
test_requests.py, by `helpers.told`; `RegistrationError` in tests/loopback/test_faults.py and test_resources.py.
"""

import asyncio
import contextlib

import pytest

from helpers.engines import connect, engine_on
from helpers.require import find_fabric
from pplx_async import CompletionError, UnreleasedMemory
from pplx_async.testing import FaultPlan

DRAIN = 0.3
NBYTES = 100


@contextlib.asynccontextmanager
async def open_stuck(**options):
    """Yield (engine, peer, source, remote): what is written hangs, and the NIC never lets go of its memory."""
    loopback = find_fabric("loopback")
    options = {"heartbeat_interval": 0.05, "peer_timeout": 1.0, "drain_timeout": DRAIN, "revoke_timeout": 0.1} | options
    engine = engine_on(loopback, faults=FaultPlan(drop_after=40, release=False), **options)
    async with engine_on(loopback, **options) as other:
        await engine.open()
        peer, _ = await connect(engine, other)
        source, target = await engine.register(bytearray(NBYTES)), await other.register(bytearray(NBYTES))
        remote = peer.region(target.to_bytes())
        while True:
            transfer = engine.write(source, remote)
            done, _ = await asyncio.wait({transfer}, timeout=0.25)
            if not done:
                break
        yield engine, peer, source, remote
        with contextlib.suppress(CompletionError):  # the peer is lost, or the engine was closed
            await transfer
        with contextlib.suppress(UnreleasedMemory):
            await engine.close()


async def leave_a_scope(engine, source, remote):
    try:
        async with engine.scope() as scope:
            scope.write(source, remote)
            raise LookupError
    except ExceptionGroup as group:
        (raised,) = [error for error in group.exceptions if not isinstance(error, LookupError)]
        raise raised from None


async def cancel_a_transfer(engine, source, remote):
    transfer = engine.write(source, remote)
    transfer.cancel()
    await transfer


# What gives up, and what it must name besides seconds and hint: the operation, its size, the peer.
UNRELEASED = {
    "scope": (leave_a_scope, "write", True),
    "cancelled": (cancel_a_transfer, "write", True),
    "close": (lambda engine, source, remote: source.close(), "region", False),
    "revoke": (lambda engine, source, remote: source.revoke(), "region", False),
    "engine": (lambda engine, source, remote: engine.close(), "engine", True),
}


@pytest.mark.parametrize("what", UNRELEASED)
async def test_memory_that_is_not_released(what):
    act, word, names_peer = UNRELEASED[what]
    async with open_stuck() as (engine, peer, source, remote):
        with pytest.raises(UnreleasedMemory) as caught:
            await act(engine, source, remote)
        text = str(caught.value)
        assert word in text
        assert f"{DRAIN} s" in text
        assert what == "engine" or f"{NBYTES} B" in text
        assert (peer.label in text) == names_peer, text
        assert "drain_timeout" in caught.value.hint
        assert caught.value.hint in text
