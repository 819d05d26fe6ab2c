# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""The messages of an engine as an asynchronous iterator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from pplx_async.errors import ClosedResourceError

if TYPE_CHECKING:
    from pplx_async.engine import TransferEngine
    from pplx_async.peer import Message

__all__ = ["MessageStream"]


class MessageStream:
    """Iterates until the engine is closed; made by `TransferEngine.messages`.

    No asynchronous generator: a time-out inside of one would end it, and here it ends the one wait.
    """

    def __init__(self, engine: TransferEngine) -> None:
        self._engine = engine
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        engine = self._engine
        while not self._ended:
            if engine._open:
                engine._check_here()
            if engine._messages:
                return engine._next_message()
            try:
                await engine._wait_for_news()
            except ClosedResourceError:
                if not engine._closing:
                    raise  # it is not open yet
                self._ended = True
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End this iterator, for `contextlib.aclosing`; what is unread stays for others."""
        self._ended = True
