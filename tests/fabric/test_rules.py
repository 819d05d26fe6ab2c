# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What libfabric's providers make different: shown by explain(), and endpoints stay on loopback."""

import pytest

from helpers.engines import engine_on, open_pair
from pplx_async import BrokenResourceError, ProviderUnavailable, RemoteAccessError, TransferEngine, wire

pytestmark = [pytest.mark.fabrics("tcp", "rxm", "efa")]


async def test_explain_names_library_and_device(fabric):
    async with engine_on(fabric) as engine:
        told = engine.explain()
        assert told.fabric == fabric.name
        assert any(fabric.options["library"] in reason for reason in told.why)
        assert "libfabric" in told.domains[0]["description"]
        assert told.domains[0]["wait_fd"] == (fabric.name != "efa")
        assert told.domains[0]["read"]


async def test_unknown_device(fabric):
    with pytest.raises(ProviderUnavailable, match="no device nonsense"):
        await TransferEngine(fabric=fabric.name, **fabric.options, devices=("nonsense",)).open()


async def test_wrong_key_is_refused_by_the_nic(fabric):
    """A forged descriptor: right engine, wrong key. The target is untouched and both sides live on."""
    async with open_pair(fabric) as pair:
        source, target = await pair.source(1000), await pair.target(1000)
        counter, remote = pair.counter()
        parsed = wire.decode_region(target.region.to_bytes())
        keys = tuple(wire.RemoteKey(key.key ^ 0x5A5A, key.base) for key in parsed.keys)
        forged = pair.ab.region(
            wire.encode_region(
                wire.RegionDescriptor(
                    engine=parsed.engine, region=parsed.region + 1000, nbytes=1000, access=3, keys=keys
                )
            )
        )
        with pytest.raises(RemoteAccessError) as caught:
            await pair.a.write(source, forged, counter=remote)
        assert caught.value.peer == pair.ab.label
        assert not target.array.any()
        assert counter.value == 0
        await pair.write(1000)
        assert pair.is_healthy


async def test_range_outside_the_region_is_refused_by_the_nic(fabric):
    async with open_pair(fabric) as pair:
        source, target = await pair.source(1000), await pair.target(1000)
        parsed = wire.decode_region(target.region.to_bytes())
        forged = pair.ab.region(
            wire.encode_region(
                wire.RegionDescriptor(
                    engine=parsed.engine, region=parsed.region + 1000, nbytes=1 << 20, access=3, keys=parsed.keys
                )
            )
        )
        with pytest.raises(RemoteAccessError):
            await pair.a.write(source, forged[1000:2000])
        with pytest.raises(RemoteAccessError):
            await pair.a.write(source, forged[500:1500])
        assert not target.array.any()
        await pair.write(1000)


async def test_closed_region_is_refused_by_the_nic(fabric):
    """A peer that knows refuses at the call; one that does not is refused by the NIC: the key is gone."""
    async with open_pair(fabric) as pair:
        source, target = await pair.source(1000), await pair.target(1000)
        stale = target.region.to_bytes()
        await target.region.close()
        with pytest.raises(BrokenResourceError, match="closed or revoked"):
            pair.a.write(source, target.remote)
        parsed = wire.decode_region(stale)
        forged = wire.RegionDescriptor(
            engine=parsed.engine, region=parsed.region + 1000, nbytes=1000, access=3, keys=parsed.keys
        )
        with pytest.raises(RemoteAccessError):
            await pair.a.write(source, pair.ab.region(wire.encode_region(forged)))
        assert not target.array.any()
        await pair.write(1000)
