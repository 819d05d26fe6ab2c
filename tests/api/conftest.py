# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One pair of engines per module and fabric, for all of its tests: most need no fresh one."""

import pytest_asyncio

from helpers.engines import Pair, eventually, open_pair


class _Shared:
    """The pair of a module; opened again if a test has left it unusable."""

    def __init__(self, fabric):
        self.fabric = fabric
        self.context = None
        self.pair = None

    async def get(self) -> Pair:
        if self.pair is None or not self.pair.is_healthy:
            await self.close()
            self.context = open_pair(self.fabric)
            self.pair = await self.context.__aenter__()
        return self.pair

    async def close(self) -> None:
        context, self.context, self.pair = self.context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(fabric):
    box = _Shared(fabric)
    yield box
    await box.close()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(shared) -> Pair:
    """Two connected engines. What the test opens through the pair is closed; nothing may be left."""
    pair = await shared.get()
    yield pair
    await pair.forget()
    if pair.is_healthy:
        await eventually(lambda: pair.a.stats().inflight == 0 and pair.b.stats().inflight == 0, "nothing is in flight")
        assert pair.a.stats().regions == 0
        assert pair.b.stats().regions == 0
