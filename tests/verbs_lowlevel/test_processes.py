# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes over the low layer of libibverbs, on devices."""

import asyncio
import hashlib
import json

import pytest
import uvloop

from helpers.process import helper
from helpers.verbs_low import IMPATIENT, Side, names
from pplx_async import PeerLost, WorkFlushed, verbs

pytestmark = [pytest.mark.fabrics("verbs"), pytest.mark.deadline(60)]

SIZE, PAGE = 1 << 18, 4096


async def meet(fabric, process, side, **connection):
    """Connect our queue pair with that of the second process; its memory."""
    told = await process.ask("open", nbytes=SIZE)
    await process.ask("connect", address=side.pair.address.to_bytes().hex(), **connection)
    side.pair.connect(bytes.fromhex(told["address"]), **connection)
    return verbs.RemoteMemory.from_bytes(bytes.fromhex(told["memory"]))


def second_process(fabric):
    given = {"device": names(fabric)[1], "uvloop": isinstance(asyncio.get_running_loop(), uvloop.Loop)}
    return helper("verbs_low", json.dumps(given))


async def test_counted_writes(fabric):
    async with second_process(fabric) as process:
        side = Side(fabric, names(fabric)[0])
        async with side.context:
            remote = await meet(fabric, process, side)
            data = bytes(range(256)) * (SIZE // 256)
            source = side.pd.register(data)
            pages = SIZE // PAGE
            for page in range(pages):
                place = slice(page * PAGE, (page + 1) * PAGE)
                await side.pair.write(source[place], remote[place], imm=page, context=page)
            done = []
            while len(done) < pages:
                done += [completion.raise_for_error().context for completion in await side.queue.poll()]
            assert done == list(range(pages))
            seen = await process.ask("wait", count=pages)
            assert seen == {
                "count": pages,
                "sum": pages * (pages - 1) // 2,
                "sha256": hashlib.sha256(data).hexdigest(),
            }


async def test_peer_that_is_killed(fabric):
    async with second_process(fabric) as process:
        side = Side(fabric, names(fabric)[0])
        async with side.context:
            remote = await meet(fabric, process, side, **IMPATIENT)
            _, source = side.memory(PAGE)
            await side.pair.write(source, remote[0:PAGE])
            (await side.outcome()).raise_for_error()
            process.kill()
            await process.process.wait()
            for _ in range(10):
                side.pair.write_nowait(source, remote[0:PAGE])
            errors = []
            async with asyncio.timeout(10):
                while len(errors) < 10:
                    errors += [completion.error for completion in await side.queue.poll()]
            assert isinstance(errors[0], PeerLost)
            assert {type(error) for error in errors[1:]} == {WorkFlushed}
