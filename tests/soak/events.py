# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a member is told by the command, and what it tells: one JSON line each."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = [
    "Close",
    "Connect",
    "Connected",
    "Done",
    "Event",
    "Job",
    "Left",
    "Listening",
    "Lost",
    "NotConnected",
    "Order",
    "Pause",
    "Paused",
    "Recall",
    "Recent",
    "Resume",
    "Sample",
    "Sampled",
    "Tally",
    "Totals",
    "Trouble",
]


class Job(msgspec.Struct, frozen=True):
    """What a member is.

    Attributes
    ----------
    name : str
        Its name and how often it was started: ``"c.3"``.
    seed : list of int
        Of its choices; the first is the run's, and that of the contents.
    engine : dict
        Fields of EngineOptions.
    loop : str
        ``"asyncio"`` or ``"uvloop"``.
    actors : int
        Exercises that it carries out at a time.
    limit : float
        Seconds that one may take.
    sabotage : str
        What this member is to do wrong, so that somebody notices; empty as a rule.
    """

    name: str
    seed: list[int]
    engine: dict[str, Any]
    loop: str
    actors: int
    limit: float
    sabotage: str = ""


# ---- orders, to a member ----


class Connect(msgspec.Struct, tag=True, frozen=True):
    """Connect to these: addresses by name."""

    addresses: dict[str, str]


class Pause(msgspec.Struct, tag=True, frozen=True):
    """Begin no exercise; say when those of yours have ended."""


class Sample(msgspec.Struct, tag=True, frozen=True):
    """Everyone is paused: say what you hold."""


class Resume(msgspec.Struct, tag=True, frozen=True):
    """Go on."""


class Recall(msgspec.Struct, tag=True, frozen=True):
    """Something is wrong somewhere: say what you did last."""


class Close(msgspec.Struct, tag=True, frozen=True):
    """Everyone is paused, and the run is over: close the engine."""


Order = Connect | Pause | Sample | Resume | Recall | Close


# ---- events, of a member ----


class Listening(msgspec.Struct, tag=True, frozen=True):
    """The engine is open at this address."""

    address: str


class Connected(msgspec.Struct, tag=True, frozen=True):
    """A peer is there, whoever called."""

    peer: str


class NotConnected(msgspec.Struct, tag=True, frozen=True):
    """A connect failed."""

    peer: str
    why: str


class Lost(msgspec.Struct, tag=True, frozen=True):
    """A peer is lost."""

    peer: str
    why: str


class Left(msgspec.Struct, tag=True, frozen=True):
    """A peer has said goodbye."""

    peer: str


class Totals(msgspec.Struct):
    """What has become of the exercises of one kind.

    Attributes
    ----------
    done : int
        To the end, verified.
    nbytes : int
        Verified at the receiver.
    ended : int
        By the loss of a peer.
    refused : int
        The other side had no room, and nothing was done.
    longest : float
        Seconds.
    """

    done: int = 0
    nbytes: int = 0
    ended: int = 0
    refused: int = 0
    longest: float = 0.0


class Tally(msgspec.Struct, tag=True, frozen=True):
    """What this member has carried out so far, by kind."""

    totals: dict[str, Totals]


class Paused(msgspec.Struct, tag=True, frozen=True):
    """No exercise of ours is under way."""


class Sampled(msgspec.Struct, tag=True, frozen=True):
    """What a member holds while nothing is under way.

    Attributes
    ----------
    rss : int
        Resident bytes.
    descriptors : int
        Open ones.
    stray : int
        Immediates and messages that belonged to nothing, so far.
    """

    rss: int
    descriptors: int
    stray: int


class Recent(msgspec.Struct, tag=True, frozen=True):
    """What it did last, the latest at the end."""

    lines: list[str]


class Trouble(msgspec.Struct, tag=True, frozen=True):
    """What must not happen has."""

    what: str
    traceback: str
    lines: list[str]


class Done(msgspec.Struct, tag=True, frozen=True):
    """The engine is closed."""


Event = Listening | Connected | NotConnected | Lost | Left | Tally | Paused | Sampled | Recent | Trouble | Done
