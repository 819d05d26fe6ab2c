# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever was cancelled, whenever: after a scope, its memory is nobody's but ours."""

import asyncio
import contextlib

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.engines import open_pair, pattern
from pplx_async import BrokenResourceError, CompletionError
from pplx_async.testing import FaultPlan

SIZE = 64 << 10

OPERATION = st.tuples(
    st.sampled_from(["write", "pages", "scatter", "read", "detached"]), st.integers(0, SIZE - 1), st.integers(1, SIZE)
)
ENDING = st.sampled_from(["none", "timeout", "raise", "cancel some", "task group"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    operations=st.lists(OPERATION, min_size=1, max_size=20),
    ending=ENDING,
    after=st.floats(0, 0.004),
    seed=st.integers(0, 1000),
    domains=st.sampled_from([1, 2]),
    fail=st.sampled_from([0.0, 0.02]),
)
async def test_nothing_changes_the_pages_after_the_scope(operations, ending, after, seed, domains, fail):
    plan = FaultPlan(
        seed=seed, reorder=16, delay_us=(0, 1500), again=0.2, max_message=16 << 10, fail=fail, fail_status="INTERNAL"
    )
    async with open_pair(
        "loopback", faults=plan, domains=domains, shard_nbytes=4096, b={"faults": FaultPlan()}
    ) as pair:
        source_array, sink = pattern(SIZE, 1), np.zeros(SIZE, dtype=np.uint8)
        source, local, target = await pair.source(source_array), await pair.source(sink), await pair.target(SIZE)
        counter, remote = pair.counter()
        counted = []

        async def work():
            async with pair.a.scope() as scope:
                for kind, start, length in operations:
                    stop = min(SIZE, start + length)
                    a, b = source[start:stop], target.remote[start:stop]
                    if kind == "write":
                        counted.append(scope.write(a, b, counter=remote))
                    elif kind == "pages":
                        scope.write_pages(
                            source,
                            target.remote,
                            page_nbytes=256,
                            local_pages=range(start // 256, (start + stop) // 512 + 1),
                            remote_pages=range(start // 256, (start + stop) // 512 + 1),
                        )
                    elif kind == "scatter":
                        scope.scatter([(a, b, remote), (a, b)])
                    elif kind == "read":
                        scope.read(b, local[start:stop])
                    else:
                        scope.add(pair.a.write(a, b))
                if ending == "raise":
                    await asyncio.sleep(after)
                    raise LookupError
                if ending == "cancel some":
                    await asyncio.sleep(after)
                    for transfer in counted[::2]:
                        transfer.cancel()
                if ending in ("timeout", "task group"):
                    await asyncio.sleep(60)

        async def failing():
            await asyncio.sleep(after)
            raise LookupError

        with contextlib.suppress(TimeoutError, ExceptionGroup):
            if ending == "task group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(work())
                    group.create_task(failing())
            else:
                async with asyncio.timeout(after if ending == "timeout" else None):
                    await work()
        assert all(transfer.released for transfer in counted)
        # The pages are reused at once.
        target.array[:] = 0xA5
        sink[:] = 0x5A
        await asyncio.sleep(0.006)  # four times the longest delay
        assert (target.array == 0xA5).all()
        assert (sink == 0x5A).all()
        # The counter shows at most what can have landed, or says that it is broken.
        if counter.broken is None:
            whole = sum(not t.cancelled() and t.exception() is None for t in counted)
            assert whole <= counter.value <= len(operations)
        assert pair.a.stats().inflight == 0


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(seed=st.integers(0, 1000), after=st.floats(0, 0.01), size=st.integers(1, SIZE))
async def test_nothing_changes_the_pages_after_a_revoke(seed, after, size):
    plan = FaultPlan(seed=seed, reorder=16, delay_us=(0, 1500), again=0.2)
    async with open_pair("loopback", faults=plan) as pair:
        source, target = await pair.source(size), await pair.target(size)

        async def write():
            while True:
                try:
                    await pair.a.write(source, target.remote)
                except (BrokenResourceError, CompletionError):
                    return

        tasks = [asyncio.create_task(write()) for _ in range(6)]
        await asyncio.sleep(after)
        await target.region.revoke()
        target.array[:] = 0xA5
        await asyncio.sleep(0.006)
        assert (target.array == 0xA5).all()
        await asyncio.gather(*tasks)
