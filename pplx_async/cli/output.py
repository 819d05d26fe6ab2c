# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""What a command prints, and where: results on stdout, all else on stderr.

With ``--json`` stdout carries one JSON object, whether the command succeeds or not.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pplx_async.cli.failures import ExitCode, Failure, is_expected

__all__ = ["Output", "size", "span"]


class _LogLines(logging.Handler):
    """Shows what the package logs, a line each."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(Text.assemble((f"{record.levelname.lower()}: ", "yellow"), self.format(record)))


class Output:
    """Where one command prints.

    Parameters
    ----------
    json : bool
        One JSON object on stdout, and nothing else there.
    debug : bool
        Show tracebacks of expected errors too.

    Attributes
    ----------
    out : Console
        For the result, in words.
    err : Console
        For progress, warnings and errors.
    """

    def __init__(self, *, json: bool, debug: bool) -> None:
        self.json = json
        self.debug = debug
        # No highlighting and no wrapping: paths and figures stay as they are, and can be copied.
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(stderr=True, highlight=False, soft_wrap=True)
        logging.basicConfig(format="%(message)s", handlers=[_LogLines(self.err)], level=logging.WARNING)

    def result(self, values: dict[str, Any]) -> None:
        """Print the result as JSON; without ``--json`` the command prints it in words."""
        if self.json:
            text = msgspec.json.format(msgspec.json.encode(values), indent=2)
            sys.stdout.write(text.decode() + "\n")
            sys.stdout.flush()

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print a line of text and (text, style) parts; brackets in them mean nothing."""
        self.out.print(Text.assemble(*parts))

    def table(self, table: Table, width: int) -> None:
        """Print a table that needs so many columns; a narrower terminal breaks its lines, and cuts no figure."""
        Console(highlight=False, width=max(self.out.width, width)).print(table)

    def fail(self, failure: Failure, values: dict[str, Any] | None = None) -> None:
        """Say what failed; programs also get what there is of a result."""
        self.result((values or {}) | {"ok": False, "error": failure.to_dict()})
        if self.debug and failure.traceback:
            self.err.print(Text(failure.traceback.rstrip()))
        self.err.print(Text.assemble(("error: ", "bold red"), (failure.message, "red")))
        if failure.hint:
            self.err.print(Text.assemble(("hint: ", "bold"), failure.hint))

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Turn expected errors into a line and an exit code; all others are bugs and stay as they are."""
        try:
            yield
        except KeyboardInterrupt:
            self.fail(Failure("KeyboardInterrupt", "interrupted"))
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except typer.Exit:
            raise
        except BrokenPipeError:
            # Whoever read our output has left, as `head` does. The flush at exit must not complain.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(ExitCode.FAILED) from None
        except Exception as error:
            if not is_expected(error):
                raise
            failure = Failure.of(error)
            self.fail(failure)
            raise typer.Exit(failure.code) from None


def size(nbytes: float) -> str:
    """Write a number of bytes for humans, in decimal units: GB/s are decimal too."""
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} B" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def span(seconds: float) -> str:
    """Write a time for humans."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
