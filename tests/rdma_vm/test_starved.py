# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""A receiver that does not come to post receives: who writes to it waits, and nothing is lost or counted twice."""

import asyncio
import json
import os
import signal

import numpy as np
import pytest
import uvloop

from helpers.cables import ends
from helpers.engines import engine_on
from helpers.process import helper

RECEIVES = 4096  # that verbs keeps posted for immediates


@pytest.mark.fabrics("verbs")
@pytest.mark.deadline(90)
async def test_receive_queue_that_is_starved_loses_nothing(fabric):
    ours, theirs = ends(fabric)
    patient = {"peer_timeout": 40.0, "again_timeout": 40.0}
    given = {"fabric": fabric.name, **fabric.options, **patient, **theirs}
    given["uvloop"] = isinstance(asyncio.get_running_loop(), uvloop.Loop)
    page, pages = 8, 2 * RECEIVES
    async with helper("receiver", json.dumps(given)) as process, engine_on(fabric, **patient, **ours) as engine:
        address = await process.ask("open", nbytes=page * pages)
        process.post("accept")
        peer = await engine.connect(address)
        answer = await process.answer()
        remote, counter = (peer.region(bytes.fromhex(answer["region"])), peer.counter(bytes.fromhex(answer["counter"])))
        order = np.random.default_rng(1).permutation(pages)
        async with await engine.register(np.ones(page * pages, np.uint8)) as source:
            os.kill(process.pid, signal.SIGSTOP)
            try:
                writing = engine.write_pages(
                    source,
                    remote,
                    page_nbytes=page,
                    local_pages=order[::-1].copy(),
                    remote_pages=order,
                    counter=counter,
                )
                # Twice as many as there are receives, and nobody posts more: it can't end.
                done, _ = await asyncio.wait([asyncio.ensure_future(writing)], timeout=3)
                assert not done
            finally:
                os.kill(process.pid, signal.SIGCONT)
            assert await writing == page * pages
        assert peer.lost is None
        await process.ask("wait", count=pages)
        ours_counter = engine.counter(peer=peer)
        await process.ask("notify", counter=ours_counter.to_bytes().hex())
        assert await ours_counter.wait(1) == 1
        await process.ask("close")
        assert await process.finish() == 0
