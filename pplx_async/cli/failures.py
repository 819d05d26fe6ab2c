# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Which failures a command expects, and what each means for its exit code.

Expected ones become one line and a hint. Whatever else is raised is a bug, and keeps its traceback.
"""

from __future__ import annotations

import enum
import traceback
from typing import Any

import msgspec

from pplx_async.errors import PplxAsyncError, ProviderUnavailable

__all__ = ["CommandError", "ExitCode", "Failure", "is_expected"]


class ExitCode(enum.IntEnum):
    """How a command ends; ``pplx-async --help`` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    UNAVAILABLE = 3
    INTERRUPTED = 130
    TERMINATED = 143


class CommandError(Exception):
    """A command cannot go on, for a reason that is the command's own.

    Parameters
    ----------
    reason : str
        What happened.
    hint : str
        What would help.
    code : ExitCode
        How the command ends.
    kind : str, optional
        What ``--json`` calls it, where that is more than ``"CommandError"``.
    traceback : str
        That of another process, where this was raised first.
    """

    def __init__(
        self,
        reason: str,
        *,
        hint: str = "",
        code: ExitCode = ExitCode.FAILED,
        kind: str = "CommandError",
        traceback: str = "",
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint
        self.code = code
        self.kind = kind
        self.traceback = traceback


def is_expected(error: BaseException) -> bool:
    """Whether a failure is one of the world, for a line; all others are bugs, for a traceback."""
    return isinstance(_first(error), (CommandError, PplxAsyncError, OSError, ValueError, MemoryError))


class Failure(msgspec.Struct, tag=True, frozen=True):
    """A failure in words; also how a process of a demo tells the one that started it.

    Attributes
    ----------
    kind : str
        Name of the exception's class.
    message : str
        What happened.
    hint : str
        What would help, or empty.
    code : int
        Exit code of the command.
    traceback : str
        For ``--debug``.
    """

    kind: str
    message: str
    hint: str = ""
    code: int = ExitCode.FAILED
    traceback: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Put an exception into words; of a group, the first one that says most."""
        text = "".join(traceback.format_exception(error))
        error = _first(error)
        kind = type(error).__name__
        if isinstance(error, CommandError):
            return cls(error.kind, error.reason, error.hint, error.code, error.traceback or text)
        if isinstance(error, PplxAsyncError):
            code = ExitCode.UNAVAILABLE if isinstance(error, ProviderUnavailable) else ExitCode.FAILED
            # The hint gets a line of its own: take it off the end of the whole sentence.
            message = str(error).removesuffix(error.hint).rstrip() if error.hint else str(error)
            return cls(kind, message, error.hint, code, text)
        if isinstance(error, MemoryError):
            return cls(kind, f"out of memory: {error}" if str(error) else "out of memory", traceback=text)
        return cls(kind, str(error) or kind, traceback=text)

    @property
    def is_echo(self) -> bool:
        """Whether it probably only echoes what happened at the other process."""
        return self.kind in {"PeerLost", "BrokenResourceError", "ClosedResourceError", "WorkFlushed"}

    def to_dict(self) -> dict[str, Any]:
        """Give what ``--json`` shows of it."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint}


def _first(error: BaseException) -> BaseException:
    """Look through exception groups: asyncio's and those of a transfer scope."""
    while isinstance(error, BaseExceptionGroup):
        leaves = error.exceptions
        error = next((leaf for leaf in leaves if not isinstance(leaf, BaseExceptionGroup)), leaves[0])
    return error
