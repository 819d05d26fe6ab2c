# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""Options that several commands have in common."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from pplx_async.cli.failures import CommandError, ExitCode
from pplx_async.options import EngineOptions

__all__ = ["Debug", "Fabric", "Json", "Library", "Loop", "LoopName", "engine_options"]


class LoopName(enum.StrEnum):
    """Event loops that the sides of a command can run on."""

    asyncio = "asyncio"
    uvloop = "uvloop"


Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; words for humans go to stderr.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Fabric = Annotated[
    str | None,
    typer.Option(
        help="What moves the bytes: auto, verbs, tcp, tcp;ofi_rxm, efa, ipc, loopback. By default PPLX_ASYNC_FABRIC, "
        "or auto."
    ),
]
Loop = Annotated[LoopName, typer.Option(help="Event loop of both sides.")]
Library = Annotated[str | None, typer.Option(help="Path of the libfabric.so.1 to use, instead of searching for one.")]


def engine_options(environ: Mapping[str, str] | None = None, /, **overrides: Any) -> EngineOptions:
    """Make the options of an engine: what was given on the command line, over the environment.

    Parameters
    ----------
    environ : mapping of str to str, optional
        Instead of ``os.environ``.
    **overrides
        Fields of EngineOptions; those that are None were not given.

    Raises
    ------
    CommandError
        A value is out of range: a mistake in usage, whichever of the two it came from.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return EngineOptions.from_env(environ, **given)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from error
