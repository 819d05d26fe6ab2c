# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Packets that are lost, late, damaged, twice there or out of order: the data is right, and nothing hangs."""

import asyncio

import msgspec
import numpy as np
import pytest

from helpers.engines import open_pair, pattern
from pplx_async import PeerLost, RemoteAccessError, wire

pytestmark = [pytest.mark.fabrics("verbs"), pytest.mark.deadline(90)]

NBYTES = 128 << 10
PAGE = 4096


async def exchange(pair, seed):
    """Write, write pages, read and send, both ways at once; what has arrived is what was sent."""

    async def one_way(sender, receiver, to, back, seed):
        data, sink, target = pattern(NBYTES, seed), np.zeros(NBYTES, np.uint8), np.zeros(NBYTES, np.uint8)
        counter = receiver.counter(peer=back)
        async with (
            await sender.register(data) as source,
            await sender.register(sink) as local,
            await receiver.register(target) as region,
        ):
            remote, remote_counter = to.region(region.to_bytes()), to.counter(counter.to_bytes())
            await sender.write(source, remote, counter=remote_counter)
            assert await counter.wait(1) == 1
            assert np.array_equal(target, data)
            order = np.random.default_rng(seed).permutation(NBYTES // PAGE)
            pages = {"page_nbytes": PAGE, "local_pages": order, "remote_pages": order[::-1].copy()}
            await sender.write_pages(source, remote, **pages, counter=remote_counter)
            assert await counter.wait(1 + len(order)) == 1 + len(order)
            assert np.array_equal(target.reshape(-1, PAGE)[order[::-1]], data.reshape(-1, PAGE)[order])
            assert await sender.read(remote, local) == NBYTES
            assert np.array_equal(sink, target)
        await counter.close()
        await asyncio.gather(*(to.send(bytes([number]) * 100) for number in range(10)))
        messages = aiter(receiver.messages())
        arrived = [bytes((await anext(messages)).data) for _ in range(10)]
        assert sorted(arrived) == [bytes([number]) * 100 for number in range(10)]

    await asyncio.gather(
        one_way(pair.a, pair.b, pair.ab, pair.ba, seed), one_way(pair.b, pair.a, pair.ba, pair.ab, seed + 1)
    )


@pytest.mark.parametrize(
    "how",
    ["loss 1%", "loss 5%", "delay 10ms", "duplicate 5%", "corrupt 2%", "loss 1% duplicate 5% corrupt 1%"],
)
async def test_data_is_right_and_nobody_is_lost(fabric, cable, how, record_property):
    async with open_pair(fabric, b={"devices": cable.devices[1:]}, devices=cable.devices[:1]) as pair:
        cable.hurt(how)
        await exchange(pair, 3)
        assert (pair.ab.lost, pair.ba.lost) == (None, None)
        counts = cable.harmed()
        assert counts["sent"] > 100
        if "loss" in how:
            assert counts["dropped"] > 0
        record_property("packets", counts["sent"])
        cable.mend()
        await pair.write(1000)


@pytest.mark.deadline(180)  # at 20 ms a round trip brings one packet or two through, see docs/verbs.md
@pytest.mark.parametrize("how", ["delay 2ms 1ms", "delay 5ms reorder 5%", "delay 20ms 5ms loss 1%"])
async def test_packets_out_of_order_end_right_or_typed(fabric, cable, how):
    """A NIC takes packets out of order for lost ones. It may give up, but not in silence, nor with wrong data."""
    async with open_pair(fabric, b={"devices": cable.devices[1:]}, devices=cable.devices[:1]) as pair:
        cable.hurt(how)
        try:
            await exchange(pair, 5)
        except* PeerLost:
            assert pair.ab.lost or pair.ba.lost
        cable.mend()


async def test_reads_are_right_though_wrong_keys_break_their_queue_pair(fabric, cable):
    """soft-RoCE would say of the first that is posted again that it has succeeded (docs/verbs.md)."""
    async with open_pair(fabric, b={"devices": cable.devices[1:]}, devices=cable.devices[:1]) as pair:
        data, sink = pattern(NBYTES, 3), np.zeros(NBYTES, dtype=np.uint8)
        source, local = await pair.b.register(data), await pair.a.register(sink)
        parsed = wire.decode_region(source.to_bytes())
        keys = tuple(wire.RemoteKey(key ^ 0x5A5A, base) for key, base in parsed.keys)
        forged = msgspec.structs.replace(parsed, region=parsed.region + 10**6, keys=keys)
        remote, nowhere = pair.ab.region(source.to_bytes()), pair.ab.region(wire.encode_region(forged))
        cable.hurt("delay 5ms reorder 5%")
        for _ in range(25):
            sink[:] = 0xEE
            read, refused = await asyncio.gather(
                pair.a.read(remote, local), pair.a.write(local[:64], nowhere[:64]), return_exceptions=True
            )
            if pair.ab.lost or pair.ba.lost:
                break  # it may give up, see above
            assert isinstance(refused, RemoteAccessError)
            assert (read, np.array_equal(sink, data)) == (NBYTES, True)
        cable.mend()
