# SPDX-FileCopyrightText: 2026 The pplx_async authors
# SPDX-License-Identifier: Apache-2.0
"""``pplx-async``: the way into the command line."""

from __future__ import annotations

from typing import Annotated

import typer

from pplx_async import __version__
from pplx_async.cli import demo, info
from pplx_async.cli.bench.command import bench
from pplx_async.cli.doctor.command import doctor

__all__ = ["app", "main"]

_EXIT_CODES = """
Exit codes:

- 0: it went well
- 1: it failed
- 2: wrong usage
- 3: something is not available here: a library, a device, a package
- 130, 143: ended by Ctrl-C, by SIGTERM
"""

app = typer.Typer(
    name="pplx-async",
    help="Awaitable one-sided memory transfers between processes, GPUs and machines.",
    epilog=_EXIT_CODES,
    rich_markup_mode="markdown",  # reflows docstrings
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Expected errors are one line (output.py); for a bug of ours a plain traceback is the best report.
    pretty_exceptions_enable=False,
)
app.command("info")(info.info)
app.command("doctor")(doctor)
app.command("bench")(bench)
app.add_typer(demo.app, name="demo")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pplx-async {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line, and exit with its code."""
    app(prog_name="pplx-async")


if __name__ == "__main__":
    main()
