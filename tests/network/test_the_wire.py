# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The bad wire itself, between sockets instead of devices: it does what its plan says, and the same each time."""

import asyncio
import socket
import time

from helpers.bad_wire import QUEUE, Direction, Plan
from helpers.engines import eventually

PACKETS = 200  # fewer than a socket holds: none is lost but by plan


async def send_through(plan, count=PACKETS):
    """Send numbered packets as they are taken: what arrives, in order, what was counted, how long sending took."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    (near, source), (sink, far) = pairs
    for each in (source, sink, far):
        each.setblocking(False)
    arrived = []
    loop = asyncio.get_running_loop()
    loop.add_reader(far, lambda: arrived.append(int.from_bytes(far.recv(100), "big")))
    direction = Direction(source.fileno(), sink.fileno())
    direction.follow(plan, 0)
    counts = direction.counts

    def is_over():
        due = counts["sent"] - counts["lost"] + counts["duplicated"]
        return counts["arrived"] == due == len(arrived)

    began = time.monotonic()
    try:
        for number in range(count):
            near.send(number.to_bytes(100, "big"))
            await asyncio.sleep(0)
        await eventually(lambda: counts["sent"] == count, "all have been judged")
        took = time.monotonic() - began
        await eventually(is_over, "all that is not lost has arrived")
    finally:
        loop.remove_reader(source)
        loop.remove_reader(far)
        for pair in pairs:
            for each in pair:
                each.close()
    return arrived, counts, took


async def test_good_wire():
    arrived, counts, _ = await send_through(Plan())
    assert arrived == list(range(PACKETS))
    assert counts == {"sent": PACKETS, "lost": 0, "duplicated": 0, "overtaking": 0, "arrived": PACKETS}


async def test_bad_wire_is_as_bad_as_planned():
    plan = Plan(seed=1, loss=0.2, delay=0.01, jitter=0.005, reorder=0.2, duplicate=0.2)
    arrived, counts, _ = await send_through(plan)
    assert counts["sent"] == PACKETS
    assert 20 < counts["lost"] < 60
    assert 20 < counts["duplicated"] < 60
    assert counts["overtaking"] > 20
    assert counts["arrived"] == PACKETS - counts["lost"] + counts["duplicated"] == len(arrived)
    assert arrived != sorted(arrived)
    again, *_ = await send_through(plan)
    assert sorted(again) == sorted(arrived)  # when each arrives is the clock's business
    other, *_ = await send_through(Plan(seed=2, loss=0.2))
    assert sorted(set(other)) != sorted(set(arrived))


async def test_slow_wire_drops_who_would_wait_too_long():
    _, counts, took = await send_through(Plan(rate=10_000), 50)  # one of them in 10 ms
    assert 5 < counts["arrived"] <= (QUEUE + took) / 0.01 + 2
    assert took > 0.3 or counts["lost"]
    assert counts["arrived"] + counts["lost"] == 50
