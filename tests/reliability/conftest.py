# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""One survivor per module and fabric, as a service has one engine: what one death leaves behind would hurt the next."""

import pytest_asyncio

from helpers.survivor import Survivor, open_survivor


class _Shared:
    """The survivor of a module; another one if a test has failed and left peers behind."""

    def __init__(self, fabric):
        self.fabric = fabric
        self.context = None
        self.survivor = None

    async def get(self) -> Survivor:
        if self.survivor is None or not self.survivor.is_alone:
            await self.close()
            self.context = open_survivor(self.fabric)
            self.survivor = await self.context.__aenter__()
        return self.survivor

    async def close(self) -> None:
        context, self.context, self.survivor = self.context, None, None
        if context is not None:
            await context.__aexit__(None, None, None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(fabric):
    box = _Shared(fabric)
    yield box
    await box.close()


@pytest_asyncio.fixture(loop_scope="module")
async def survivor(shared) -> Survivor:
    """An engine with the defaults, a third process for a peer, and others to be killed."""
    return await shared.get()
