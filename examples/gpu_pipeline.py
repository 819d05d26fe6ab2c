# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes share a chain of matrices: each makes half of each product, and needs both halves for the next one.

A product starts by itself when 16 shards have landed, and its output goes out by itself; a coroutine awaits the end.
On two GPUs, if CuPy finds them and the fabric is ipc; else with NumPy, on streams of the host.

Run: python examples/gpu_pipeline.py [fabric] [--graph]   (default: ipc, which needs no library; --graph: captured once)
"""

import asyncio
import importlib.util
import json
import sys

import numpy as np

from pplx_async import TransferEngine
from pplx_async.testing import HostStream

GRAPH, WORDS = "--graph" in sys.argv, [word for word in sys.argv[1:] if word != "--graph"]
FABRIC, ADDRESS = WORDS[0] if WORDS else "ipc", WORDS[1] if len(WORDS) > 1 else None
LAYERS, WIDTH, BATCH, INPUTS, SHARDS = 6, 256, 32, 5, 16
cupy = importlib.import_module("cupy") if FABRIC == "ipc" and importlib.util.find_spec("cupy") else None
GPUS = cupy is not None and cupy.is_available() and cupy.cuda.runtime.getDeviceCount() > 1
random, xp, WHERE = np.random.default_rng(1), *((cupy, "two GPUs") if GPUS else (np, "streams of the host"))
WEIGHTS = random.normal(0, WIDTH**-0.5, (LAYERS, WIDTH, WIDTH)).astype("f4")  # the same in both processes
GIVEN = random.normal(0, 1, (INPUTS, WIDTH, BATCH)).astype("f4")
# Each element of a product. Not cupy.dot: that is cuBLAS's, which CuPy lets no graph capture.
ELEMENT = f"c = 0; for (int k = 0; k < {WIDTH}; k++) c += a[i / {BATCH} * {WIDTH} + k] * b[k * {BATCH} + i % {BATCH}]"
product = cupy.ElementwiseKernel("raw float32 a, raw float32 b", "float32 c", ELEMENT) if GPUS else np.dot


async def work(engine, peer, rank, stream, run):
    """Make half of what each layer makes, for each input, and check what both have made in the end."""
    rows, shard = slice(rank * WIDTH // 2, (rank + 1) * WIDTH // 2), WIDTH // 2 * BATCH * 4 // SHARDS
    weights, given = xp.array(WEIGHTS[:, rows]), xp.array(GIVEN[:, rows])
    values = xp.zeros((LAYERS + 1, WIDTH, BATCH), "f4")  # what goes into each layer, and comes out of the last one
    halves = [range((2 * n + rank) * SHARDS, (2 * n + rank + 1) * SHARDS) for n in range(LAYERS + 1)]  # of shards
    counters = [engine.counter(peer=peer) for _ in halves]  # one for each layer: writes may overtake one another
    region, sent = await engine.register(values), []
    await engine.reached(stream)  # the zeros are there: from here on the other one may write
    await peer.send(json.dumps([each.to_bytes().hex() for each in (region, *counters)]).encode())
    there, *theirs = map(bytes.fromhex, json.loads((await anext(engine.messages())).data))
    remote, theirs = peer.region(there), [peer.counter(each) for each in theirs]

    def queue():
        for n, half in enumerate(halves):
            pages = {"page_nbytes": shard, "local_pages": half, "remote_pages": half, "counter": theirs[n]}
            sent.append(engine.write_pages(region, remote, **pages, after=stream))
            counters[n].gate(stream, SHARDS)  # the stream waits here for the other half
            if n < LAYERS:
                run(product, weights[n], values[n], values[n + 1, rows])

    run(product, weights[0], values[0], values[1, rows])  # for nothing: CuPy compiles what it can't in a capture
    if GRAPH and GPUS:
        stream.begin_capture()
        queue()
        graph = stream.end_capture()
    elif GRAPH:
        with stream.capture() as graph:
            queue()
    for n in range(INPUTS):
        run(xp.copyto, values[0, rows], given[n])
        (graph.launch if GRAPH else queue)()
        await engine.reached(stream)
        result = values[LAYERS].get() if GPUS else values[LAYERS]
        assert np.allclose(result, np.linalg.multi_dot([*WEIGHTS[::-1], GIVEN[n]]), rtol=1e-3, atol=1e-3)
    await asyncio.gather(*(transfer.close() if GRAPH else transfer for transfer in sent))
    await engine.barrier(await engine.group("both", [peer]))  # a goodbye ends what the other one has captured
    await region.close()


async def main():
    rank, stream, run = int(ADDRESS is not None), (host := HostStream()), host.run
    if GPUS:  # CuPy queues on the stream that is in use what it is called for
        cupy.cuda.Device(rank).use()
        stream, run = cupy.cuda.Stream(non_blocking=True).use(), lambda function, *arguments: function(*arguments)
    async with TransferEngine(fabric=FABRIC, name=f"half {rank}") as engine:
        if ADDRESS:
            return await work(engine, await engine.connect(ADDRESS), rank, stream, run)
        command = sys.executable, __file__, FABRIC, engine.address, *["--graph"] * GRAPH
        other = await asyncio.create_subprocess_exec(*command)
        await work(engine, await engine.accept(), rank, stream, run)
        assert await other.wait() == 0
        print(f"{INPUTS} inputs through {LAYERS} layers over {FABRIC}, on {WHERE}: as one process makes it")


asyncio.run(main())
