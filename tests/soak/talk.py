# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Two members talk about one exercise, in messages of the engine; a wait ends when the other is gone."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import msgspec

from pplx_async import Peer, PeerLost

__all__ = ["ROOM", "Ask", "Elsewhere", "Refused", "Say", "Talk", "decode", "try_to_say"]

# Bytes of a message that an exercise may fill; the frame round it takes a few.
ROOM = 8000


class Ask(msgspec.Struct, tag="a", frozen=True, array_like=True):
    """Take part in an exercise. Both sides know from the seed what there is to do."""

    serial: int
    exercise: str
    seed: int
    nbytes: int
    names: list[str]


class Say(msgspec.Struct, tag="s", frozen=True, array_like=True):
    """A word about an exercise that was asked for."""

    serial: int
    to_host: bool
    word: str
    items: list[bytes]


class Refused(Exception):
    """The other side, or this one, has no room for the exercise now."""


class Elsewhere(Exception):
    """The other side was ended by the loss of a third one."""


# Words that may come in the place of any other.
_INSTEAD: dict[str, type[Exception]] = {"refused": Refused, "never mind": Refused, "elsewhere": Elsewhere}


class Talk:
    """One side of it. The one who asks acts, the other is the host.

    Attributes
    ----------
    peer : Peer
        The other side.
    """

    def __init__(self, peer: Peer, serial: int, *, is_host: bool) -> None:
        self.peer = peer
        self.key = (peer, is_host, serial)
        self._serial = serial
        self._is_host = is_host
        self._heard: asyncio.Queue[Say | BaseException] = asyncio.Queue()

    async def ask(self, exercise: str, seed: int, nbytes: int, names: list[str]) -> None:
        """Begin it."""
        await self._send(Ask(self._serial, exercise, seed, nbytes, names))

    async def say(self, word: str, *items: bytes) -> None:
        """Say a word, with whatever bytes belong to it."""
        await self._send(Say(self._serial, not self._is_host, word, list(items)))

    async def _send(self, message: msgspec.Struct) -> None:
        await self.peer.send(msgspec.msgpack.encode(message))

    def take(self, heard: Say | BaseException) -> None:
        """What the other side says, or why it never will."""
        self._heard.put_nowait(heard)

    async def hear(self, word: str) -> list[bytes]:
        """Wait for a word.

        Raises
        ------
        Refused, Elsewhere
            The other side says so instead: "refused" or "never mind", "elsewhere".
        PeerLost, ClosedResourceError
            It is gone.
        """
        heard = await self._heard.get()
        if isinstance(heard, BaseException):
            self._heard.put_nowait(heard)  # for whoever asks again
            raise copy.copy(heard)
        if heard.word == word:
            return heard.items
        if heard.word in _INSTEAD:
            raise _INSTEAD[heard.word]
        raise AssertionError(f"{heard.word!r} was said where {word!r} is due")


def decode(data: bytes) -> Any:
    """Read an Ask or a Say."""
    return msgspec.msgpack.decode(data, type=Ask | Say)


async def try_to_say(talk: Talk, word: str) -> None:
    """Say a word to someone who may be lost, and then needs no telling."""
    try:
        await talk.say(word)
    except PeerLost:
        return
