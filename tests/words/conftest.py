# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Streams of the host, two engines on each fabric, and what both need for a counted write."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from helpers.engines import Pair, eventually, open_pair
from pplx_async.testing import HostStream

NBYTES = 4096


class Board:
    """a writes into memory of b, counted; streams of both sides wait and ring."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.a, self.b = pair.a, pair.b
        self.streams: list[HostStream] = []

    async def open(self) -> Board:
        self.memory = np.zeros(NBYTES, dtype=np.uint8)
        self.source = await self.pair.source(self.memory)
        self.target = await self.pair.target(NBYTES)
        self.array = self.target.array
        self.counter, self.remote_counter = self.pair.counter()
        return self

    def stream(self) -> HostStream:
        self.streams.append(HostStream())
        return self.streams[-1]

    def write(self, **options: Any) -> Any:
        """Count 1 at b's counter."""
        return self.a.write(self.source, self.target.remote, **({"counter": self.remote_counter} | options))

    async def idle(self, *streams: HostStream) -> None:
        """Wait until these have done all that is queued; without standing in the loop's way."""
        for stream in streams:
            await eventually(lambda stream=stream: stream.is_idle, "the stream comes to rest")
            if stream.failure is not None:
                raise stream.failure

    async def no_words(self) -> None:
        """Wait until the proxies of both have none to look at, and this thread has heard of the last."""
        await eventually(lambda: self.a.stats().words == self.b.stats().words == 0, "no word is armed")
        await asyncio.sleep(0.01)  # that is told right after it is counted

    def close(self) -> None:
        for stream in self.streams:
            stream.close()


@pytest_asyncio.fixture
async def board(fabric):
    async with open_pair(fabric) as pair:
        board = await Board(pair).open()
        yield board
        board.close()


@pytest_asyncio.fixture
async def loopback_board():
    async with open_pair("loopback") as pair:
        board = await Board(pair).open()
        yield board
        board.close()


@pytest.fixture
def streams():
    """Make streams that are closed at the end."""
    made = []

    def make():
        made.append(HostStream())
        return made[-1]

    yield make
    for stream in made:
        stream.close()
