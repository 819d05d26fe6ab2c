# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What has been counted: by link, by peer, and in all."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["OPCODES", "EngineStats", "Histogram", "LinkStats", "PeerStats"]

# In the order of the core's enum pplx_opcode.
OPCODES = ("write", "write_imm", "read", "send", "recv")


@dataclass(frozen=True)
class Histogram:
    """Latencies, in buckets of half an octave.

    Attributes
    ----------
    counts : tuple of int
        Bucket 2 k + h counts latencies from 2**k (1 + h/2) ns up to the next bucket's start.
    """

    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """How many latencies were counted."""
        return sum(self.counts)

    @staticmethod
    def bucket_start(bucket: int) -> float:
        """Where a bucket starts, in seconds."""
        return float(2 ** (bucket // 2) * (1 + bucket % 2 / 2)) / 1e9

    def percentile(self, percent: float) -> float:
        """Return the latency, in seconds, that ``percent`` % stay below; 0.0 if none was counted.

        It is the end of the bucket where that falls: never too low, at most 50 % too high.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"a percentile is from 0 to 100, not {percent}")
        left = self.total * percent / 100
        for bucket, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return self.bucket_start(bucket + 1)
        return 0.0

    def __add__(self, other: Histogram) -> Histogram:
        return Histogram(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))


@dataclass(frozen=True)
class LinkStats:
    """One of our NICs to one of a peer's. Dicts are by opcode: write, write_imm, read, send, recv.

    Attributes
    ----------
    domain, remote_domain : int
        Index of our NIC and of the peer's.
    posted, completed, failed : dict of int
        Work requests: taken by the NIC, ended well, ended badly.
    nbytes : dict of int
        Bytes of those that ended well.
    again : int
        Times the provider took nothing for now.
    inflight, inflight_nbytes : int
        Under way now.
    latency : dict of Histogram
        From post to completion.
    lost : str or None
        Why it is lost, if it is and the peer lives.
    """

    domain: int
    remote_domain: int
    posted: dict[str, int]
    completed: dict[str, int]
    failed: dict[str, int]
    nbytes: dict[str, int]
    again: int
    inflight: int
    inflight_nbytes: int
    latency: dict[str, Histogram]
    lost: str | None = None

    @classmethod
    def from_core(cls, raw: dict[str, Any]) -> LinkStats:
        """Make it of what the core counted."""
        return cls(
            domain=raw["domain"],
            remote_domain=raw["remote_domain"],
            posted=dict(zip(OPCODES, raw["posted"], strict=True)),
            completed=dict(zip(OPCODES, raw["completed"], strict=True)),
            failed=dict(zip(OPCODES, raw["failed"], strict=True)),
            nbytes=dict(zip(OPCODES, raw["nbytes"], strict=True)),
            again=raw["again"],
            inflight=raw["inflight"],
            inflight_nbytes=raw["inflight_nbytes"],
            lost=raw["lost"],
            latency={op: Histogram(tuple(counts)) for op, counts in zip(OPCODES, raw["latency"], strict=True)},
        )


@dataclass(frozen=True)
class PeerStats:
    """All links to one peer.

    Attributes
    ----------
    peer : str
        Its label.
    links : tuple of LinkStats
        One for each pair of NICs.
    """

    peer: str
    links: tuple[LinkStats, ...]

    @property
    def operations(self) -> int:
        """Work requests that ended well, heartbeats and credits included."""
        return sum(sum(link.completed.values()) for link in self.links)

    @property
    def nbytes(self) -> int:
        """Bytes moved by us: written, read, sent."""
        return sum(link.nbytes[op] for link in self.links for op in OPCODES if op != "recv")

    @property
    def inflight(self) -> int:
        """Work requests under way now."""
        return sum(link.inflight for link in self.links)

    def latency(self, op: str) -> Histogram:
        """Return the latencies of one opcode over all links."""
        return _sum(link.latency[op] for link in self.links)


@dataclass(frozen=True)
class EngineStats:
    """What an engine has counted so far; see `TransferEngine.stats`.

    Attributes
    ----------
    requests : int
        Taken by the proxy thread.
    overflowed : int
        Those that found the ring full and waited behind it.
    inflight : int
        Submitted and not released.
    turns, sleeps, wakes : int
        Turns of the proxy thread's loop, times it slept, times it woke the event loop.
    spin_ns : int
        How long the proxy thread now turns without finding anything before it sleeps, in nanoseconds:
        `EngineOptions.spin`, less where that has brought nothing, twice that at most where it has.
    stray_imms, stray_messages : int
        Immediates and messages that belonged to nothing, and were dropped.
    registrations, register_ns : int
        Memory registered so far, the engine's own buffers with it, and what that took on all NICs, in nanoseconds.
    words : int
        Gates, doorbells and watches that streams and kernels may still use: while there are any, the proxy thread does
        not sleep.
    regions, counters : int
        Open now.
    registered_nbytes : int
        Bytes registered now.
    peers : tuple of PeerStats
        Every connected peer.
    """

    requests: int
    overflowed: int
    inflight: int
    turns: int
    sleeps: int
    wakes: int
    spin_ns: int
    stray_imms: int
    stray_messages: int
    registrations: int
    register_ns: int
    words: int
    regions: int
    counters: int
    registered_nbytes: int
    peers: tuple[PeerStats, ...]

    @property
    def operations(self) -> int:
        """Work requests that ended well, of all peers."""
        return sum(peer.operations for peer in self.peers)

    @property
    def nbytes(self) -> int:
        """Bytes moved by us, of all peers."""
        return sum(peer.nbytes for peer in self.peers)

    def domain(self, index: int) -> tuple[LinkStats, ...]:
        """Return the links that go through one of our NICs."""
        return tuple(link for peer in self.peers for link in peer.links if link.domain == index)


def _sum(histograms: Iterable[Histogram]) -> Histogram:
    total: Histogram | None = None
    for histogram in histograms:
        total = histogram if total is None else total + histogram
    return total if total is not None else Histogram(())
