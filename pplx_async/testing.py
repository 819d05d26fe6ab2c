# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Helpers for testing code that uses pplx_async, without a NIC."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from pplx_async._host_stream import HostGraph, HostStream
from pplx_async.engine import TransferEngine
from pplx_async.peer import Peer

__all__ = ["FaultPlan", "HostGraph", "HostStream", "connected_pair"]


@contextlib.asynccontextmanager
async def connected_pair(**options: Any) -> AsyncGenerator[tuple[Peer, Peer]]:
    """Open two engines in this process and connect them.

    Parameters
    ----------
    **options
        Fields of `pplx_async.EngineOptions` for both; ``fabric`` is ``"loopback"`` unless given.

    Yields
    ------
    tuple of Peer
        The second engine as the first one sees it, and the first as the second one does. Each
        peer's ``engine`` is the engine that sees it.
    """
    options.setdefault("fabric", "loopback")
    async with TransferEngine(**options) as first, TransferEngine(**options) as second:
        there = await first.connect(second.address)
        here = await second.accept()
        yield there, here


# What a completion can fail with: the names in status.h but OK and AGAIN.
_FAILURES = (
    "INVALID",
    "NO_MEMORY",
    "CLOSED",
    "UNAVAILABLE",
    "NATIVE",
    "UNSUPPORTED",
    "REGISTRATION",
    "TOO_LARGE",
    "REMOTE_ACCESS",
    "LOCAL_ACCESS",
    "PEER_LOST",
    "FLUSHED",
    "CANCELLED",
    "TRANSPORT",
    "TRUNCATED",
    "UNRELEASED",
    "INTERNAL",
    "CONNECTION",
)

_MAX_DELAY_US = 3_600_000_000
_MIN_PROBABILITY = 1e-9
_MAX_AGAIN = 0.99

# Ranges of the integers, both ends included. None as a value means: not set.
_RANGES = {
    "seed": (0, 2**64 - 1),
    "reorder": (0, 4096),
    "fail_after": (1, 2**64 - 2),
    "fail_registration": (1, 2**64 - 2),
    "fail_deregistration": (1, 2**64 - 2),
    "drop_after": (0, 2**64 - 2),
    "max_message": (1, 2**40),
    "max_inflight": (1, 65536),
    "eager_posts": (1, 65536),
    "posts_per_turn": (1, 65536),
    "device": (0, 7),
    "bits_per_second": (0, 2**50),
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FaultPlan:
    """Say which faults the ``loopback`` provider makes, and what its limits are.

    Each domain of an engine follows the plan by itself: counts such as `drop_after` are per domain,
    and domains on different devices draw different random numbers from one seed. For a given seed
    the decisions are the same in every run, in the order in which operations are posted.

    Without arguments the plan makes no faults. The provider's own rules hold under any plan:
    operations may complete in any order, keys and ranges are checked, local memory is registered.

    Parameters
    ----------
    seed : int, default 0
        Start of the random numbers, 0 to 2**64 - 1.
    reorder : int, default 0
        Window in operations, 0 to 4096: so many pending operations, immediates and completions are
        shuffled. 0 keeps the order in which they were posted.
    delay_us : tuple of (int, int), default (0, 0)
        Shortest and longest delay of an operation in microseconds, at most one hour, drawn evenly
        for each.
    again : float, default 0.0
        Probability, 0 to 0.99, that posting a batch takes only a part of it, or nothing.
    fail : float, default 0.0
        Probability, 0 to 1, that an operation fails. It writes nothing then.
    fail_status : str, default "TRANSPORT"
        How such operations fail: a name from ``status.h``, for example ``"REMOTE_ACCESS"``.
    fail_after : int, optional
        This operation of the domain fails, counted from 1 in the order of posting; receives don't
        count.
    fail_registration : int, optional
        This registration is refused, counted from 1.
    fail_deregistration : int, optional
        This end of a registration fails, counted from 1: the memory stays known to the provider.
    drop_after : int, optional
        After so many operations the domain goes silent like a dead NIC: nothing completes any more
        and nothing arrives. 0: it is silent from the start.
    max_message : int, optional
        Bytes of one operation, 1 to 2**40. Default: 2**30.
    max_inflight : int, optional
        Operations in flight on one endpoint, 1 to 65536. Default: 1024.
    eager_posts : int, optional
        Operations that the engine posts at once for a new request, 1 to 65536. Default: 16.
    posts_per_turn : int, optional
        Operations that it posts per turn afterwards, 1 to 65536. Default: 64.
    device : int, optional
        Only domains on this device follow the plan (1: ``loop1``), 0 to 7; the others make no faults.
    bits_per_second : int, optional
        Speed of the link, in bits per second, kept and reported. Default, or 0: as fast as memory.
    wait_fd : bool, default True
        False: the domain has no descriptor to block on, so the engine polls on a timer.
    release : bool, default True
        False: closing an endpoint does not let go of memory that operations in flight use. Together
        with `drop_after` that memory is never released.

    Raises
    ------
    TypeError
        A value is of another type than stated.
    ValueError
        A value is outside the range stated.

    Examples
    --------
    >>> FaultPlan(seed=7, reorder=32, fail=0.01).options()
    {'seed': '7', 'reorder': '32', 'fail': '0.01'}
    """

    seed: int = 0
    reorder: int = 0
    delay_us: tuple[int, int] = (0, 0)
    again: float = 0.0
    fail: float = 0.0
    fail_status: str = "TRANSPORT"
    fail_after: int | None = None
    fail_registration: int | None = None
    fail_deregistration: int | None = None
    drop_after: int | None = None
    max_message: int | None = None
    max_inflight: int | None = None
    eager_posts: int | None = None
    posts_per_turn: int | None = None
    device: int | None = None
    bits_per_second: int | None = None
    wait_fd: bool = True
    release: bool = True

    def __post_init__(self) -> None:
        """Check every value, so that a mistake shows where it is made."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None or name in ("seed", "reorder"):
                _check_integer(name, value, low, high)
        for name in ("again", "fail"):
            _check_probability(name, getattr(self, name))
        if self.again > _MAX_AGAIN:
            raise ValueError(f"again must be at most {_MAX_AGAIN}, or next to nothing is ever posted; not {self.again}")
        for name in ("wait_fd", "release"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        delay: object = self.delay_us
        if not isinstance(delay, tuple) or len(delay) != 2:
            raise TypeError(f"delay_us must be a tuple (shortest, longest), not {delay!r}")
        for bound in delay:
            _check_integer("delay_us", bound, 0, _MAX_DELAY_US)
        if self.delay_us[0] > self.delay_us[1]:
            raise ValueError(f"delay_us must be (shortest, longest), not {self.delay_us!r}")
        if self.fail_status not in _FAILURES:
            raise ValueError(f"fail_status must be one of {', '.join(_FAILURES)}; not {self.fail_status!r}")

    def options(self) -> dict[str, str]:
        """Return the plan as options of the ``loopback`` provider.

        Returns
        -------
        dict of str to str
            Only what differs from the provider's defaults. Empty for a plan without faults.
        """
        texts: dict[str, str] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if isinstance(value, tuple):
                texts[field.name] = f"{value[0]}:{value[1]}"
            elif isinstance(value, bool):
                texts[field.name] = str(int(value))
            elif isinstance(value, float):
                texts[field.name] = f"{value:.12f}".rstrip("0").rstrip(".")  # never "1e-05"
            else:
                texts[field.name] = str(value)
        return texts


def _check_integer(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")


def _check_probability(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a float, not {value!r}")
    if not 0 <= value <= 1:  # false for NaN too
        raise ValueError(f"{name} must be a probability from 0 to 1, not {value}")
    if 0 < value < _MIN_PROBABILITY:
        raise ValueError(f"{name} must be 0, or at least {_MIN_PROBABILITY:g}; not {value}")
