# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``demo weights``: a checkpoint goes from one process into another, one-sided, and is awaited.

1. The sender maps its file, registers the mapping, hashes every tensor and sends the list.
2. The receiver allocates a buffer for each tensor in shared memory, registers it as a region that its peer may
   write, makes one counter, and sends the descriptors of all of them.
3. The sender writes every tensor; the receiver only waits until its counter shows them all.
4. The receiver hashes what has landed, and compares.

Messages carry 1 and 2; the bytes of the tensors go straight into the receiver's buffers.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import time
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from pplx_async import TransferEngine
from pplx_async.cli.safetensors_file import SafetensorsFile
from pplx_async.cli.side_link import (
    Done,
    Job,
    Link,
    Listening,
    Phase,
    Role,
    Talk,
    describe,
    split_in_messages,
    watch_progress,
)

__all__ = ["ROLES"]

_HASH_CHUNK = 8 << 20
_LINE = 64


class _Offer(msgspec.Struct, frozen=True):
    """One tensor that the sender has."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    sha256: bytes


class _Offers(msgspec.Struct, tag=True, frozen=True):
    part: int
    parts: int
    tensors: list[_Offer]


class _Grant(msgspec.Struct, frozen=True):
    """Where a tensor may be written: its place in the list of offers, and a region's descriptor."""

    tensor: int
    region: bytes


class _Grants(msgspec.Struct, tag=True, frozen=True):
    part: int
    parts: int
    counter: bytes
    regions: list[_Grant]


async def _send(job: Job, link: Link) -> None:
    file = SafetensorsFile.open(Path(job.arguments["file"]))
    total = sum(tensor.nbytes for tensor in file.tensors)
    async with TransferEngine(job.options()) as engine:
        started = time.perf_counter()
        mapping = await engine.register(file.data, access="none")
        register_seconds = time.perf_counter() - started
        started = time.perf_counter()
        with memoryview(file.data) as view:
            views = [view[tensor.start : tensor.stop] for tensor in file.tensors]
            digests = await _hash(views, "hashing", link)
            for piece in views:
                piece.release()
        hash_seconds = time.perf_counter() - started

        link.emit(Phase("connecting"))
        peer = await engine.connect(await link.hear())
        talk = Talk(engine, peer)
        offers = [
            _Offer(tensor.name, tensor.dtype, tensor.shape, tensor.nbytes, digest)
            for tensor, digest in zip(file.tensors, digests, strict=True)
        ]
        link.emit(Phase("waiting for descriptors"))
        await talk.send(split_in_messages(offers, _Offers, talk.limit))
        grants = await talk.receive(_Grants)
        counter = peer.counter(grants[0].counter)
        writes = []
        for grant in [region for part in grants for region in part.regions]:
            tensor = file.tensors[grant.tensor]
            writes.append((mapping[tensor.start : tensor.stop], peer.region(grant.region)))

        link.emit(Phase("writing", total))
        before = engine.stats().nbytes
        async with watch_progress(link, lambda: min(total, engine.stats().nbytes - before)):
            started = time.perf_counter()
            # Left when every write has landed and the mapping is free again, or one has failed.
            async with engine.scope() as scope:
                for local, remote in writes:
                    await engine.drain()  # returns at once while there is room in the queue
                    scope.write(local, remote, counter=counter)
            seconds = time.perf_counter() - started
        result = {
            "file": str(file.path),
            "tensors": len(file.tensors),
            "nbytes": total,
            "seconds": seconds,
            "hash_seconds": hash_seconds,
            "register_seconds": register_seconds,
            "engine": describe(engine.explain()),
        }
    link.emit(Done(result))


def _buffers(engine: TransferEngine, sizes: list[int]) -> list[NDArray[np.uint8]]:
    """Allocate them in one piece, each at a cache line."""
    starts = list(itertools.accumulate((-(-size // _LINE) * _LINE for size in sizes), initial=0))
    memory = engine.empty(max(1, starts[-1]))
    memory.fill(0)  # so that the kernel hands the pages out now and not under the NIC's writes
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=False)]


async def _receive(job: Job, link: Link) -> None:
    async with TransferEngine(job.options()) as engine:
        link.emit(Listening(engine.address))
        link.emit(Phase("waiting for the sender"))
        peer = await engine.accept()
        talk = Talk(engine, peer)
        offers = [tensor for part in await talk.receive(_Offers) for tensor in part.tensors]

        started = time.perf_counter()
        buffers = _buffers(engine, [offer.nbytes for offer in offers])
        allocate_seconds = time.perf_counter() - started
        started = time.perf_counter()
        # A tensor may have no elements; nothing moves for it, and there is nothing to register.
        regions = {i: await engine.register(buffer, access="write") for i, buffer in enumerate(buffers) if buffer.size}
        register_seconds = time.perf_counter() - started
        async with engine.counter(peer=peer) as counter:
            grants = [_Grant(i, region.to_bytes()) for i, region in regions.items()]
            descriptor = counter.to_bytes()
            await talk.send(
                split_in_messages(grants, lambda part, parts, some: _Grants(part, parts, descriptor, some), talk.limit)
            )
            link.emit(Phase("waiting for its counter"))
            await counter.wait(len(regions))

        started = time.perf_counter()
        digests = await _hash([buffer.data for buffer in buffers], "checking", link)
        check_seconds = time.perf_counter() - started
        wrong = [offer.name for offer, digest in zip(offers, digests, strict=True) if digest != offer.sha256]
        result = {
            "verified": len(offers) - len(wrong),
            "wrong": wrong,
            "allocate_seconds": allocate_seconds,
            "register_seconds": register_seconds,
            "check_seconds": check_seconds,
        }
    link.emit(Done(result))


async def _hash(views: list[memoryview], phase: str, link: Link) -> list[bytes]:
    """Compute SHA-256 of each, beside the event loop."""
    hashed = 0
    link.emit(Phase(phase, sum(view.nbytes for view in views)))
    digests = []
    async with watch_progress(link, lambda: hashed):
        for view in views:
            digest = hashlib.sha256()
            # In pieces: a thread cannot be cancelled, and a demo that is stopped ends at once.
            for start in range(0, view.nbytes, _HASH_CHUNK):
                piece = view[start : start + _HASH_CHUNK]
                await asyncio.to_thread(digest.update, piece)
                hashed += piece.nbytes
            digests.append(digest.digest())
    return digests


ROLES: dict[str, Role] = {"receiver": _receive, "sender": _send}
